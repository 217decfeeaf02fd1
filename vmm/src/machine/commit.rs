//! Putting the wiring of a prepared machine in place: in one commit, or, to see what that is worth, in
//! as many as there are changes.

use std::{io, sync::Arc, time::Instant};

use address_manager::{AddressManager, Arm, Transaction};
use devices::{SharedDevice, pci::StagedBars};
use hypervisor::x86_64::VmClock;

use super::{
    BuildError, Machine, NamedDevice,
    builder::{Ground, Peripherals},
    flash::SavedFlash,
};
use crate::{cpu::Vcpus, memory::GuestMemory};

/// How often the wiring is reconfigured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Commits {
    /// Once.
    #[default]
    Once,
    /// Once for memory and the platform, and then after each change of a PCI device, as is done where there is no
    /// transaction: for the comparison.
    Each,
}

impl Peripherals {
    /// Stages the BARs of every device where its registers, which may have been loaded, say.
    fn stage(&self, transaction: &Transaction<'_>) -> Vec<(SharedDevice, StagedBars)> {
        let staged = self.devices.iter().filter_map(|NamedDevice { device, .. }| {
            let staged = device.lock().pci().map(|function| function.endpoint().stage(transaction))?;
            Some((device.clone(), staged))
        });
        staged.collect()
    }

    /// Puts the wiring in place, with one commit. The processors are there.
    pub(super) fn commit(
        self,
        ground: Arc<Ground>,
        vcpus: Vcpus,
        (memory, flash): (GuestMemory, Option<SavedFlash>),
        stopped_clock: Option<VmClock>,
        commits: Commits,
    ) -> Result<Machine, BuildError> {
        let ground = Arc::into_inner(ground);
        let shared = || BuildError::Host(io::Error::other("somebody still makes a part of the machine"));
        let Ground { layout, vm, manager, transaction, .. } = ground.ok_or_else(shared)?;
        let staged = match commits {
            Commits::Once => self.stage(&transaction),
            Commits::Each => Vec::new(),
        };
        let Self { segments, platform, devices } = self;
        let report = transaction.commit().map_err(|error| BuildError::Commit(Box::new(error)))?;
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
