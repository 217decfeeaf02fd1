//! The program of the boot processor: says that it is ready, carries out the orders of the command line, then those
//! that come over the serial port, one reply line each.
//!
//! This file boots, listens and names the orders; the files beside it carry them out, one topic each.

#![expect(unsafe_code, reason = "entered from assembly")]

mod background;
mod block_orders;
mod junk;
mod machine;
mod memory_orders;
mod net_orders;
mod net_server;
mod pmem_orders;
mod registers;
mod reply;
mod socket_peer;
mod stress;
mod virtio_orders;

use core::fmt::Write;
use core::sync::atomic::Ordering;

use test_guest::orders::Words;

use self::net_server::Server;
use self::reply::{OrderError, Reply, say};
use self::socket_peer::SocketPeer;
use self::stress::Stress;
use crate::acpi::Acpi;
use crate::cell::BootCell;
use crate::clock::Clock;
use crate::memory::Memory;
use crate::pci::Pci;
use crate::serial::Serial;
use crate::start_info::StartInfo;
use crate::virtio::Virtio;
use crate::{apic, cpu, interrupts, io_apic, jobs, smp};

/// Version of the orders, raised when one changes its meaning.
const VERSION: u32 = 1;

/// Exit code of a guest that was not started by the PVH protocol, or with too little memory.
const EXIT_NO_START: u32 = 0x7c;

const LINE_MAX: usize = 4096;

/// How long the program keeps looking for the rest of an order before it halts.
const LOOK_TSC: u64 = 500_000;
/// How long it halts: until the serial port's interrupt, or where that cannot come, a millisecond.
const WAIT_COUNTS: u64 = apic::TIMER_HZ / 50;
const WAIT_POLLING_COUNTS: u64 = apic::TIMER_HZ / 1000;

static START_INFO: BootCell<StartInfo> = BootCell::new(StartInfo::empty());
static LINE: BootCell<[u8; LINE_MAX]> = BootCell::new([0; LINE_MAX]);
static REPLY: BootCell<Reply> = BootCell::new(Reply::new());

/// The state of the program.
struct Program {
    serial: Serial,
    serial_interrupts: bool,
    memory: Memory,
    start_info: &'static StartInfo,
    acpi: Acpi,
    pci: Pci,
    clock: Clock,
    virtio: Virtio,
    scratch: Option<u64>,
    server: Option<Server>,
    peer: Option<SocketPeer>,
    stress: Option<Stress>,
    nonce: u64,
    reply: &'static mut Reply,
}

/// Where `boot.s` enters ring 3.
#[unsafe(no_mangle)]
extern "C" fn guest_main(start_info_address: u64) -> ! {
    interrupts::setup_faults();
    interrupts::setup_interrupts(apic::has_x2apic());
    let mut serial = Serial::new();
    serial.setup();
    // SAFETY: this function runs once.
    let start_info = unsafe { START_INFO.take() };
    if !start_info.copy_from(start_info_address) {
        serial.write(b"test-guest: no PVH start info\n");
        cpu::exit(EXIT_NO_START);
    }
    // SAFETY: this function runs once.
    let reply = unsafe { REPLY.take() };
    let Some(mut program) = Program::start(serial, start_info, reply) else {
        Serial::new().write(b"test-guest: too little memory\n");
        cpu::exit(EXIT_NO_START);
    };
    let orders = start_info.command_line();
    let orders = orders.split_once("orders=").map_or(orders, |(_, orders)| orders);
    for order in orders.split(';') {
        program.obey(order);
    }
    // SAFETY: this function runs once.
    program.listen(unsafe { LINE.take() })
}

impl Program {
    /// Takes the machine into use, with all its processors, and says so. `None` if memory does not suffice.
    fn start(mut serial: Serial, start_info: &'static StartInfo, reply: &'static mut Reply) -> Option<Self> {
        let mut memory = Memory::new(start_info);
        memory.reach(apic::XAPIC_BASE, 4096).ok()?;
        apic::mask_pic();
        apic::setup();
        cpu::enable_interrupts();
        let acpi = Acpi::read(&mut memory, start_info);
        let listed = (acpi.processors > 0).then_some(acpi.processors);
        smp::start(&mut memory, start_info, listed).ok()?;
        let serial_interrupts =
            acpi.io_apic.is_some_and(|address| io_apic::route_serial(&mut memory, address));
        let pci = Pci::new(&mut memory, &acpi);
        let virtio = Virtio::new(&mut memory).ok()?;
        let nonce = cpu::random();
        let _ = writeln!(
            serial,
            "test-guest ready version={VERSION} cpus={} mem={} nonce={nonce:#x} tsc={}",
            smp::online(),
            start_info.ram_bytes(),
            cpu::tsc()
        );
        let clock = Clock::new();
        Some(Self {
            serial,
            serial_interrupts,
            memory,
            start_info,
            acpi,
            pci,
            clock,
            virtio,
            scratch: None,
            server: None,
            peer: None,
            stress: None,
            nonce,
            reply,
        })
    }

    /// Takes orders from the serial port, for ever.
    fn listen(&mut self, line: &'static mut [u8; LINE_MAX]) -> ! {
        let mut len = 0;
        let mut last_byte_tsc = cpu::tsc();
        loop {
            let seen = interrupts::total().load(Ordering::Acquire);
            match self.serial.read() {
                Some(b'\n' | b'\r') => {
                    match line.get(..len).map(core::str::from_utf8) {
                        Some(Ok(order)) => self.obey(order),
                        Some(Err(_)) => self.serial.write(b"err the order is not text\n"),
                        None => self.serial.write(b"err the order is too long\n"),
                    }
                    len = 0;
                    last_byte_tsc = cpu::tsc();
                }
                Some(byte) => {
                    if let Some(place) = line.get_mut(len) {
                        *place = byte;
                    }
                    len = len.saturating_add(1);
                    last_byte_tsc = cpu::tsc();
                }
                None if cpu::tsc().wrapping_sub(last_byte_tsc) < LOOK_TSC => core::hint::spin_loop(),
                None => {
                    let served = self.serve();
                    let echoed = self.echo();
                    let stressed = self.stress();
                    match jobs::step(0) {
                        jobs::Next::Again => {}
                        _ if served || echoed || stressed => {}
                        jobs::Next::After(counts) => self.wait(seen, counts),
                        jobs::Next::WhenWoken => self.wait(seen, WAIT_COUNTS),
                    }
                }
            }
        }
    }

    /// Halts until an interrupt comes that was not yet counted in `seen`.
    fn wait(&self, seen: u64, counts: u64) {
        let longest = if self.serial_interrupts { WAIT_COUNTS } else { WAIT_POLLING_COUNTS };
        // A tick that runs has the timer, and wakes the processor itself.
        let counts = (!self.clock.is_ticking()).then_some(counts.min(longest));
        smp::halt(0, interrupts::total(), seen, counts);
    }

    /// Carries out one order and writes its reply. An empty order has none.
    fn obey(&mut self, order: &str) {
        let mut words = Words::new(order);
        let Some(name) = words.optional_word() else {
            return;
        };
        self.reply.clear();
        say!(self.reply, "ok");
        if let Err(error) = self.carry_out(name, &mut words) {
            self.reply.clear();
            say!(self.reply, "err {name}: {error}");
        }
        if self.reply.is_full() {
            self.reply.clear();
            say!(self.reply, "err {name}: the reply is too long");
        }
        self.serial.write(self.reply.bytes());
        self.serial.write(b"\n");
    }

    fn carry_out(&mut self, name: &str, words: &mut Words<'_>) -> Result<(), OrderError> {
        match name {
            "ping" => words.end()?,
            "nonce" => self.number(words, self.nonce)?,
            "tsc" => {
                words.end()?;
                say!(self.reply, " {} {}", cpu::tsc(), cpu::tsc_ring0());
            }
            "tsc-hz" => {
                let hz = self.clock.tsc_hz();
                words.end()?;
                say!(self.reply, " {hz}");
            }

            "in" => self.port_in(words)?,
            "out" => self.port_out(words)?,
            "peek" => self.peek(words)?,
            "poke" => self.poke(words)?,
            "cpuid" => self.cpuid(words)?,
            "msr" => self.msr(words)?,

            "mem" => self.memory_map(words)?,
            "fill" => self.fill(words)?,
            "sum" => self.sum(words)?,
            "verify" => self.verify(words)?,

            "cpus" => self.cpus(words)?,
            "ticks" => self.ticks(words)?,
            "timer" => self.timer(words)?,
            "dirty" => self.dirty(words, false)?,
            "dirty-all" => self.dirty(words, true)?,
            "dirty-stop" => {
                words.end()?;
                let written = self.dirty_stop();
                say!(self.reply, " {written}");
            }
            "dirty-state" => {
                words.end()?;
                self.dirty_state();
            }
            "dirty-check" => {
                words.end()?;
                self.dirty_check();
            }
            "watch" => self.watch(words)?,

            "acpi" => self.acpi(words)?,
            "pci" => self.pci(words)?,
            "pci-read" => self.pci_read(words)?,
            "pci-write" => self.pci_write(words)?,
            "pci-size" => self.pci_size(words)?,
            "pci-move" => self.pci_move(words)?,
            "pci-ecam" => self.pci_ecam(words)?,
            "pci-assign" => self.pci_assign(words)?,
            "junk" => self.junk(words)?,
            "junk-ports" => self.junk_ports(words)?,
            "junk-memory" => self.junk_memory(words)?,
            "interrupts" => self.interrupts(words)?,
            "hold" => self.hold(words)?,
            "spin" => self.spin(words)?,
            "ioexit" => self.ioexit(words)?,

            "virtio" => self.virtio(words)?,
            "vinit" => self.vinit(words)?,
            "vreset" => self.vreset(words)?,
            "vqueue-state" => self.vqueue_state(words)?,
            "vkick" => self.vkick(words)?,
            "vmask" => self.vmask(words)?,
            "vconfig" => self.vconfig(words)?,
            "vcheck" => self.vcheck(words)?,
            "vrng" => self.vrng(words)?,
            "vblk-read" => self.vblk_read(words)?,
            "vblk-write" => self.vblk_write(words)?,
            "vblk-flush" => self.vblk_flush(words)?,
            "vblk-id" => self.vblk_id(words)?,
            "vblk-discard" => self.vblk_range(words, false)?,
            "vblk-zero" => self.vblk_range(words, true)?,
            "vblk-submit" => self.vblk_submit(words)?,
            "vblk-wait" => self.vblk_wait(words)?,
            "vblk-bench" => self.vblk_bench(words)?,
            "vpmem" => self.vpmem(words)?,
            "vpmem-flush" => self.vpmem_flush(words)?,
            "vnet-tx" => self.vnet_tx(words)?,
            "vnet-rx" => self.vnet_rx(words)?,
            "vnet-serve" => self.vnet_serve(words)?,
            "vstress" => self.vstress(words)?,
            "vcon-write" => self.vcon_write(words)?,
            "vcon-read" => self.vcon_read(words)?,
            "vsock-serve" => self.vsock_serve(words)?,
            "vsock-state" => self.vsock_state(words)?,
            "vsock-connect" => self.vsock_connect(words)?,
            "vsock-close" => self.vsock_close(words)?,

            "exit" => {
                let code = words.narrow("CODE")?;
                words.end()?;
                cpu::exit(code)
            }
            "reset" => {
                self.farewell(words)?;
                self.reset()
            }
            "fault" => {
                self.farewell(words)?;
                cpu::undefined()
            }
            "triple" => {
                self.farewell(words)?;
                cpu::triple_fault()
            }
            "halt" => {
                self.farewell(words)?;
                cpu::stop()
            }
            "shutdown" => self.shutdown(words)?,
            _ => return Err(OrderError::Unknown),
        }
        Ok(())
    }

    fn number(&mut self, words: &mut Words<'_>, value: u64) -> Result<(), OrderError> {
        words.end()?;
        say!(self.reply, " {value:#x}");
        Ok(())
    }

    /// Answers an order that cannot answer when it is done.
    fn farewell(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        words.end()?;
        self.serial.write(b"ok\n");
        Ok(())
    }
}
