//! Machines on the fake hypervisor, built from what a client would say.

mod clock;
mod firmware;
mod flash;
mod images;
mod kinds;
mod lifecycle;
mod listeners;
mod order;
mod persistent;
mod pipes;
mod processors;
mod sections;

use std::{io::Write, path::Path, sync::Arc};

use api_client::wire;
use hypervisor::{Capabilities, VmOptions, fake::FakeHypervisor};
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use vm_memory::{Bytes, GuestAddress};

use super::{
    BuildError, Commits, Host, Machine, MachineState,
    builder::{Ground, Peripherals},
    persistent::Files,
};
use crate::{
    config::{VmConfig, wire::IdCounter},
    cpu::VcpuPlan,
    memory::GuestMemory,
};

/// A bench for machines: a host that records, and a kernel.
pub(super) struct Bench {
    pub(super) hypervisor: Arc<FakeHypervisor>,
    pub(super) host: Host,
    kernel: NamedTempFile,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::on(FakeHypervisor::new())
    }

    /// On a host that can do no more than that.
    pub(super) fn with(capabilities: Capabilities) -> Self {
        Self::on(FakeHypervisor::with_capabilities(capabilities))
    }

    fn on(hypervisor: FakeHypervisor) -> Self {
        let hypervisor = Arc::new(hypervisor);
        let host = Host::new(Arc::clone(&hypervisor) as _).unwrap();
        let mut kernel = NamedTempFile::new().unwrap();
        kernel.write_all(&kernel_image()).unwrap();
        Self { hypervisor, host, kernel }
    }

    /// A configuration of 64 MiB and no console, with `said` laid over it.
    pub(super) fn config(&self, said: Value) -> VmConfig {
        let mut whole = json!({
            "payload": { "kernel": self.kernel.path() },
            "memory": { "size": 64 << 20 },
            "console": { "mode": "Off" },
        });
        for (key, value) in said.as_object().unwrap() {
            whole[key] = value.clone();
        }
        let mut said: wire::VmConfig = serde_json::from_value(whole).unwrap();
        VmConfig::from_wire(&mut said, &mut IdCounter::default()).unwrap()
    }

    pub(super) fn boot(&self, said: Value) -> Result<Machine, BuildError> {
        Machine::boot(&self.config(said), &self.host, &())
    }

    /// A machine that was booted and saved, prepared to live again. The memory is new.
    pub(super) fn saved(&self, said: Value) -> Saved {
        let config = self.config(said);
        let machine = Machine::boot(&config, &self.host, &()).unwrap();
        let (sections, _) = machine.save().unwrap();
        let layout = machine.layout().clone();
        drop(machine);
        let state =
            MachineState::new(sections.into_iter().map(|section| (section.id.clone(), section)).collect());
        let memory = GuestMemory::map(&config.memory, &()).unwrap();
        let vm = self.host.hypervisor.create_vm(&VmOptions::default()).unwrap();
        let held = (None, Files::open(&config, Some(&layout)).unwrap().map().unwrap());
        let ground = Arc::new(Ground::new(&self.host, vm, layout, &memory, held, "restore").unwrap());
        let peripherals = Peripherals::new(&config, &self.host, &ground).unwrap();
        Saved { ground, peripherals, memory, state }
    }

    /// Why a machine cannot be built.
    pub(super) fn refusal(&self, said: Value) -> String {
        crate::error::chain(&self.boot(said).unwrap_err())
    }
}

/// A machine on its way back, whose devices have not taken their state yet.
pub(super) struct Saved {
    pub(super) ground: Arc<Ground>,
    peripherals: Peripherals,
    memory: GuestMemory,
    state: MachineState,
}

impl Saved {
    pub(super) fn load(&self) {
        self.peripherals.load(&self.state, &self.ground.transaction).unwrap();
    }

    /// The machine, with the processors of `plans`.
    pub(super) fn commit(self, host: &Host, plans: Vec<VcpuPlan>, commits: Commits) -> Machine {
        let Self { ground, peripherals, memory, .. } = self;
        let vcpus = ground.make_processors(plans, &host.requests, None).unwrap();
        peripherals.commit(ground, vcpus, (memory, None), None, commits).unwrap()
    }
}

/// What is in a machine's memory.
pub(super) fn memory(machine: &Machine, at: u64, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    machine.manager().memory().view().read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

/// An image of that many bytes.
pub(super) fn image(size: u64) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(size).unwrap();
    file
}

pub(super) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// An ELF file with a PVH entry and one segment of a page at 1 MiB.
pub(crate) fn kernel_image() -> Vec<u8> {
    const NOTE_AT: u64 = 0x400;
    const ENTRY: u32 = 0x10_0000;
    let mut image = vec![0; 0x2000];
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &2u16.to_le_bytes()); // an executable
    put(18, &62u16.to_le_bytes()); // x86-64
    put(32, &64u64.to_le_bytes()); // program headers: where, how long, how many
    put(54, &56u16.to_le_bytes());
    put(56, &2u16.to_le_bytes());
    let mut header = |at: usize, kind: u32, offset: u64, address: u64, size: u64| {
        put(at, &kind.to_le_bytes());
        put(at + 8, &offset.to_le_bytes());
        put(at + 24, &address.to_le_bytes());
        put(at + 32, &size.to_le_bytes());
        put(at + 40, &size.to_le_bytes());
        put(at + 48, &4u64.to_le_bytes());
    };
    header(64, 4, NOTE_AT, 0, 20);
    header(120, 1, 0x1000, u64::from(ENTRY), 0x1000);
    for (index, word) in [4, 4, 18, u32::from_le_bytes(*b"Xen\0"), ENTRY].into_iter().enumerate() {
        put(0x400 + 4 * index, &word.to_le_bytes());
    }
    image
}
