//! Putting the wiring of a prepared machine in place: in one commit, or, to see what that is worth, in
//! as many as there are changes.

use std::{sync::Arc, time::Instant};

use address_manager::{AddressManager, Arm, CommitError};
use devices::{SharedDevice, pci::StagedBars};

use super::{
    BuildError, Host, Machine, NamedDevice, builder::Prepared, processors::irqchip_mode, restore::SavedChips,
};
use crate::cpu::{VcpuPlan, Vcpus};

/// How often the wiring is reconfigured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Commits {
    /// Once.
    #[default]
    Once,
    /// After each change, as is done where there is no transaction: for the comparison.
    Each,
}

impl Prepared {
    /// Stages the BARs of every device where its registers, which may have been loaded, say.
    fn stage(&self) -> Vec<(SharedDevice, StagedBars)> {
        let staged = self.devices.iter().filter_map(|NamedDevice { device, .. }| {
            let staged = device.lock().pci().map(|function| function.endpoint().stage(&self.transaction))?;
            Some((device.clone(), staged))
        });
        staged.collect()
    }

    /// Puts the wiring in place, with one commit, and makes the vCPUs of `plans`, each by its thread.
    pub(super) fn commit(
        self,
        host: &Host,
        mut vcpus: Vcpus,
        plans: Vec<VcpuPlan>,
        saved: Option<SavedChips>,
        commits: Commits,
    ) -> Result<Machine, BuildError> {
        let staged = match commits {
            Commits::Once => self.stage(),
            Commits::Each => Vec::new(),
        };
        let Self { layout, memory, flash, vm, manager, segments, platform, devices, transaction } = self;
        let requests = Arc::clone(&host.requests) as Arc<dyn devices::RequestSink>;
        let committed = transaction.commit_with(|| {
            vm.create_irqchip(irqchip_mode(host, &layout), false)?;
            vcpus.set_up(&vm, &manager, &requests, plans)?;
            // The controllers' pending interrupts go to local APICs, which are there only now.
            if let Some(SavedChips { irqchip, .. }) = &saved {
                vm.load_irqchip(irqchip)?;
            }
            Ok::<(), BuildError>(())
        });
        let report = match committed {
            Ok(report) => report,
            Err(CommitError::AfterSlots { source, .. }) => return Err(source),
            Err(other) => return Err(BuildError::Commit(Box::new(other))),
        };
        for (device, staged) in staged {
            if let Some(function) = device.lock().pci() {
                function.endpoint().committed(staged);
            }
        }
        if commits == Commits::Each {
            for NamedDevice { device, .. } in &devices {
                wire_piece_by_piece(device, &manager)?;
            }
        }
        let stopped_clock = saved.and_then(|saved| saved.clock);
        let arming = None;
        Ok(Machine {
            layout,
            memory,
            vcpus,
            arming,
            platform,
            devices,
            segments,
            manager,
            vm,
            stopped_clock,
            // Its counters run since they were set.
            stopped_at: Instant::now(),
            flash,
            report,
        })
    }
}

/// Wires a loaded function as its registers are set one after the other: its BARs, then each queue's doorbell,
/// at once and not later.
fn wire_piece_by_piece(device: &SharedDevice, manager: &Arc<AddressManager>) -> Result<(), BuildError> {
    let mut bars = Vec::new();
    if let Some(function) = device.lock().pci() {
        let endpoint = function.endpoint();
        let indices: Vec<u8> = endpoint.bars().map(|(spec, _)| spec.index).collect();
        for index in indices {
            let doorbells = endpoint.shape_mut(index).map(|shape| std::mem::take(&mut shape.doorbells));
            bars.push((index, doorbells.unwrap_or_default()));
        }
    }
    commit_function(device, manager)?;
    for (index, doorbells) in bars {
        for mut doorbell in doorbells {
            doorbell.arm = Arm::Now;
            if let Some(function) = device.lock().pci()
                && let Some(shape) = function.endpoint().shape_mut(index)
            {
                shape.doorbells.push(doorbell);
            }
            commit_function(device, manager)?;
        }
    }
    Ok(())
}

/// One commit of what a function's registers ask for.
fn commit_function(device: &SharedDevice, manager: &Arc<AddressManager>) -> Result<(), BuildError> {
    let transaction = manager.begin_labelled("restore, a piece");
    let staged = device.lock().pci().map(|function| function.endpoint().stage(&transaction));
    transaction.commit().map_err(|error| BuildError::Commit(Box::new(error)))?;
    if let (Some(function), Some(staged)) = (device.lock().pci(), staged) {
        function.endpoint().committed(staged);
    }
    Ok(())
}
