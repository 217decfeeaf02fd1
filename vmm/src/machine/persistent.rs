//! The persistent memory of a machine: opened and mapped before anything else of its devices, because its slots are set
//! with those of main memory, ahead of the commit.

use std::{collections::BTreeMap, sync::Arc};

use address_manager::{Owner, Transaction, Window, WindowKind};

use super::{BuildError, attach::pmem::PmemFile};
use crate::{
    config::{DeviceConfig, VmConfig},
    layout::{DeviceLayout, Layout, RangeLayout},
    memory::PersistentMemory,
};

/// The opened files, by device id.
#[derive(Debug)]
pub(super) struct Files(BTreeMap<String, PmemFile>);

impl Files {
    /// Opens the file of each device that has one; for a saved machine, to fill the windows of its layout.
    pub(super) fn open(config: &VmConfig, saved: Option<&Layout>) -> Result<Self, BuildError> {
        let pmem = config.devices.iter().filter_map(|device| match device {
            DeviceConfig::Pmem(pmem) => Some(pmem),
            _ => None,
        });
        let opened = pmem.map(|pmem| {
            let id = pmem.id.clone();
            let mut known = saved.into_iter().flat_map(|layout| &layout.devices);
            let known = known.find(|device| device.id == id).and_then(|device| device.window);
            match PmemFile::open(pmem, known.map(|window| window.size)) {
                Ok(file) => Ok((id, file)),
                Err(source) => Err(BuildError::Attach { id, source }),
            }
        });
        Ok(Self(opened.collect::<Result<_, _>>()?))
    }

    /// Bytes of the windows that they ask for.
    pub(super) fn sizes(&self) -> BTreeMap<String, u64> {
        self.0.iter().map(|(id, file)| (id.clone(), file.size())).collect()
    }

    /// Maps as much of each as its window has.
    pub(super) fn map(self) -> Result<Persistent, BuildError> {
        let mapped = self.0.into_iter().map(|(id, file)| match file.map() {
            Ok(memory) => Ok((id, Arc::new(memory))),
            Err(source) => Err(BuildError::Attach { id, source }),
        });
        Ok(Persistent(mapped.collect::<Result<_, _>>()?))
    }
}

/// What was mapped, by device id.
#[derive(Debug, Default)]
pub struct Persistent(BTreeMap<String, Arc<PersistentMemory>>);

impl Persistent {
    /// The memory of a device.
    pub fn get(&self, id: &str) -> Option<&Arc<PersistentMemory>> {
        self.0.get(id)
    }

    /// Stages the slots, and takes their places out of the windows that BARs are in.
    pub(super) fn stage(&self, layout: &Layout, transaction: &Transaction<'_>) -> Result<(), BuildError> {
        for DeviceLayout { id, bdf, window, .. } in &layout.devices {
            let (Some(RangeLayout { base, size }), Some(memory)) = (*window, self.get(id)) else { continue };
            let place = Window { kind: WindowKind::Mmio64, segment: bdf.segment() };
            transaction.reserve(place, base, size, &Owner::new(id))?;
            transaction.add_slot(memory.slot(base, id))?;
        }
        Ok(())
    }
}
