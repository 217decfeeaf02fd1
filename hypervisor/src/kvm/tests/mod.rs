//! The back end on the host's own KVM, with guests of a few instructions in real mode.
//!
//! A guest has 32 KiB of memory at 0, its code at [`CODE`], and nothing else, so that what lies
//! above in its 64 KiB segment is MMIO.

mod dirty;
mod hostile;
mod interrupts;
mod open;
mod run;
mod state;
mod wiring;

use std::{
    env,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use crate::{
    ExitBus, Hypervisor, IrqchipMode, MemorySlot, SlotFlags, Vcpu, VcpuExit, Vm, VmOptions,
    x86_64::{ReadyRegisters, Segment},
};

const PAGE: usize = 4096;
const RAM_PAGES: usize = 8;
const CODE: u64 = 0x1000;
const DATA: usize = 0x2000;
/// First address behind the memory.
const HOLE: u64 = 0x8000;

/// The host's KVM. Without one a test fails, unless it was said that there is none.
fn host() -> Option<Arc<dyn Hypervisor>> {
    match super::open() {
        Ok(host) => Some(host),
        Err(error) if env::var_os("CUMULET_WITHOUT_KVM").is_some_and(|value| value == "1") => {
            println!("SKIPPED: {error}");
            None
        }
        Err(error) => panic!("{error} (CUMULET_WITHOUT_KVM=1 skips the tests that need it)"),
    }
}

#[repr(C, align(4096))]
struct Page([AtomicU8; PAGE]);

/// Memory that a guest writes behind our back, hence atomic.
struct Ram(Box<[Page]>);

impl Ram {
    fn new(pages: usize) -> Self {
        Self((0..pages).map(|_| Page([const { AtomicU8::new(0) }; PAGE])).collect())
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        for (offset, byte) in bytes.iter().enumerate() {
            let at = at + offset;
            self.0[at / PAGE].0[at % PAGE].store(*byte, Ordering::SeqCst);
        }
    }

    fn read(&self, at: usize, len: usize) -> Vec<u8> {
        (at..at + len).map(|at| self.0[at / PAGE].0[at % PAGE].load(Ordering::SeqCst)).collect()
    }

    fn copy_from(&self, other: &Self) {
        self.write(0, &other.read(0, other.0.len() * PAGE));
    }

    fn slot(&self, slot: u32, guest_address: u64) -> MemorySlot {
        MemorySlot {
            slot,
            guest_address,
            size: (self.0.len() * PAGE) as u64,
            host_address: self.0.as_ptr().expose_provenance() as u64,
            flags: SlotFlags::empty(),
        }
    }
}

/// A VM with its memory in slot 0. The VM is dropped before the memory.
struct Machine {
    vm: Arc<dyn Vm>,
    ram: Ram,
}

impl Machine {
    fn new(host: &dyn Hypervisor, irqchip: Option<IrqchipMode>, code: &[u8]) -> Self {
        Self::with_options(host, &VmOptions::default(), irqchip, code)
    }

    fn with_options(
        host: &dyn Hypervisor,
        options: &VmOptions,
        irqchip: Option<IrqchipMode>,
        code: &[u8],
    ) -> Self {
        let vm = host.create_vm(options).unwrap();
        let ram = Ram::new(RAM_PAGES);
        ram.write(usize::try_from(CODE).unwrap(), code);
        vm.wiring().set_slot(&ram.slot(0, 0)).unwrap();
        if let Some(mode) = irqchip {
            vm.create_irqchip(mode, mode == IrqchipMode::Kernel && host.capabilities().pit).unwrap();
        }
        Self { vm, ram }
    }

    fn vcpu(&self, host: &dyn Hypervisor) -> Box<dyn Vcpu> {
        let mut vcpu = self.vm.create_vcpu(0, 0).unwrap();
        vcpu.set_cpuid(&host.supported_cpuid().unwrap()).unwrap();
        vcpu.set_ready(&real_mode(CODE)).unwrap();
        vcpu
    }
}

fn real_mode(rip: u64) -> ReadyRegisters {
    let code = Segment { limit: 0xffff, kind: 0xb, code_or_data: true, present: true, ..Segment::default() };
    ReadyRegisters {
        rip,
        rflags: 2,
        cs: code,
        data: Segment { kind: 3, ..code },
        tr: Segment { code_or_data: false, ..code },
        cr0: 0x10,
        ..ReadyRegisters::default()
    }
}

/// Writes down every access. Reads are answered with 1, 2, 3 and so on, one number a byte.
#[derive(Default)]
struct Seen {
    accesses: Vec<Access>,
    next: u8,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Access {
    In(u16, usize),
    Out(u16, Vec<u8>),
    Read(u64, usize),
    Write(u64, Vec<u8>),
}

impl Seen {
    fn fill(&mut self, data: &mut [u8]) {
        for byte in data {
            self.next = self.next.wrapping_add(1);
            *byte = self.next;
        }
    }
}

impl ExitBus for Seen {
    fn port_read(&mut self, port: u16, data: &mut [u8]) {
        self.fill(data);
        self.accesses.push(Access::In(port, data.len()));
    }
    fn port_write(&mut self, port: u16, data: &[u8]) {
        self.accesses.push(Access::Out(port, data.to_vec()));
    }
    fn mmio_read(&mut self, address: u64, data: &mut [u8]) {
        self.fill(data);
        self.accesses.push(Access::Read(address, data.len()));
    }
    fn mmio_write(&mut self, address: u64, data: &[u8]) {
        self.accesses.push(Access::Write(address, data.to_vec()));
    }
}

/// Runs to the first exit that is not an access.
fn run(vcpu: &mut dyn Vcpu, seen: &mut Seen) -> VcpuExit {
    loop {
        match vcpu.run(seen).unwrap() {
            VcpuExit::Handled | VcpuExit::Interrupted => {}
            exit => return exit,
        }
    }
}

/// The accesses of a guest without interrupt controller, up to its HLT.
fn accesses_of(code: &[u8]) -> Option<Vec<Access>> {
    let host = host()?;
    let machine = Machine::new(&*host, None, code);
    let mut seen = Seen::default();
    assert_eq!(run(&mut *machine.vcpu(&*host), &mut seen), VcpuExit::Halted);
    Some(seen.accesses)
}

/// Code that makes these accesses and halts.
fn code(parts: &[&[u8]]) -> Vec<u8> {
    let mut all = parts.concat();
    all.push(HLT);
    all
}

const HLT: u8 = 0xf4;

/// `mov al, value; out port, al`.
fn out(port: u8, value: u8) -> [u8; 4] {
    [0xb0, value, 0xe6, port]
}

/// `mov ax, value; mov [address], ax`.
fn store_word(address: u16, value: u16) -> [u8; 6] {
    let [v0, v1] = value.to_le_bytes();
    let [a0, a1] = address.to_le_bytes();
    [0xb8, v0, v1, 0xa3, a0, a1]
}
