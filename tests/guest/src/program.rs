//! The program of the boot processor: says that it is ready, carries out the orders of the command line, then those
//! that come over the serial port, one reply line each.

#![expect(unsafe_code, reason = "entered from assembly")]

use core::fmt::{self, Write};
use core::sync::atomic::Ordering;

use test_guest::orders::{Malformed, Words};
use test_guest::pattern::{self, Checksum};

use crate::cell::BootCell;
use crate::cpu::{self, Width};
use crate::memory::{Memory, MemoryError};
use crate::serial::Serial;
use crate::start_info::StartInfo;
use crate::{apic, interrupts};

/// Version of the orders, raised when one changes its meaning.
const VERSION: u32 = 1;

/// Exit code of a guest that was not started by the PVH protocol.
const EXIT_NO_START_INFO: u32 = 0x7c;

const LINE_MAX: usize = 4096;
const REPLY_MAX: usize = 16384;

/// The vector of the timer's interrupts while the program waits, and of the tick counter.
const VECTOR_WAKE: u8 = 0x41;

/// How long the program keeps looking for the rest of an order before it halts, and how long it halts.
const LOOK_TSC: u64 = 500_000;
const WAIT_COUNTS: u64 = apic::TIMER_HZ / 1000;

static START_INFO: BootCell<StartInfo> = BootCell::new(StartInfo::empty());
static LINE: BootCell<[u8; LINE_MAX]> = BootCell::new([0; LINE_MAX]);
static REPLY: BootCell<Reply> = BootCell::new(Reply { bytes: [0; REPLY_MAX], len: 0, full: false });

/// Why an order was not carried out.
#[derive(Debug)]
pub enum OrderError {
    Malformed(Malformed),
    Memory(MemoryError),
    Unknown,
    Refused(&'static str),
}

impl fmt::Display for OrderError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(error) => error.fmt(f),
            Self::Memory(error) => error.fmt(f),
            Self::Unknown => f.write_str("no such order"),
            Self::Refused(reason) => f.write_str(reason),
        }
    }
}

impl From<Malformed> for OrderError {
    fn from(error: Malformed) -> Self {
        Self::Malformed(error)
    }
}

impl From<MemoryError> for OrderError {
    fn from(error: MemoryError) -> Self {
        Self::Memory(error)
    }
}

/// One reply line, written to the port when it is complete.
struct Reply {
    bytes: [u8; REPLY_MAX],
    len: usize,
    full: bool,
}

impl Write for Reply {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let bytes = text.as_bytes();
        let room = self.bytes.len() - self.len;
        let taken = bytes.len().min(room);
        self.bytes[self.len..self.len + taken].copy_from_slice(&bytes[..taken]);
        self.len += taken;
        self.full |= taken < bytes.len();
        Ok(())
    }
}

/// The state of the program.
struct Program {
    serial: Serial,
    memory: Memory,
    start_info: &'static StartInfo,
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
        cpu::exit(EXIT_NO_START_INFO);
    }
    let start_info: &'static StartInfo = start_info;
    let mut memory = Memory::new(start_info);
    if memory.reach(apic::XAPIC_BASE, 4096).is_err() {
        serial.write(b"test-guest: no memory\n");
        cpu::exit(EXIT_NO_START_INFO);
    }
    apic::mask_pic();
    apic::setup();
    cpu::enable_interrupts();
    // SAFETY: this function runs once.
    let reply = unsafe { REPLY.take() };
    let mut program = Program { serial, memory, start_info, nonce: cpu::random(), reply };
    program.ready();
    let orders = start_info.command_line();
    let orders = orders.split_once("orders=").map_or(orders, |(_, orders)| orders);
    for order in orders.split(';') {
        program.obey(order);
    }
    // SAFETY: this function runs once.
    program.listen(unsafe { LINE.take() })
}

impl Program {
    fn ready(&mut self) {
        let _ = writeln!(
            self.serial,
            "test-guest ready version={VERSION} cpus={} mem={} nonce={:#x} tsc={}",
            1,
            self.start_info.ram_bytes(),
            self.nonce,
            cpu::tsc()
        );
    }

    /// Takes orders from the serial port, for ever.
    fn listen(&mut self, line: &'static mut [u8; LINE_MAX]) -> ! {
        let mut len = 0;
        let mut last_byte_tsc = cpu::tsc();
        loop {
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
                None => Self::wait(),
            }
        }
    }

    /// Halts until the next interrupt, a millisecond at most.
    fn wait() {
        let wakes = interrupts::counter(VECTOR_WAKE);
        let seen = wakes.load(Ordering::Relaxed);
        apic::start_timer_once(VECTOR_WAKE, WAIT_COUNTS);
        cpu::halt_while(wakes, seen);
    }

    /// Carries out one order and writes its reply. An empty order has none.
    fn obey(&mut self, order: &str) {
        let mut words = Words::new(order);
        let Some(name) = words.optional_word() else {
            return;
        };
        self.reply.len = 0;
        self.reply.full = false;
        let _ = self.reply.write_str("ok");
        if let Err(error) = self.carry_out(name, &mut words) {
            self.reply.len = 0;
            let _ = write!(self.reply, "err {name}: {error}");
        }
        if self.reply.full {
            self.reply.len = 0;
            let _ = write!(self.reply, "err {name}: the reply is too long");
        }
        self.serial.write(&self.reply.bytes[..self.reply.len]);
        self.serial.write(b"\n");
    }

    fn carry_out(&mut self, name: &str, words: &mut Words<'_>) -> Result<(), OrderError> {
        match name {
            "ping" => words.end()?,
            "nonce" => {
                words.end()?;
                let _ = write!(self.reply, " {:#x}", self.nonce);
            }
            "tsc" => {
                words.end()?;
                let _ = write!(self.reply, " {} {}", cpu::tsc(), cpu::tsc_ring0());
            }
            "exit" => {
                let code = words.narrow("CODE")?;
                words.end()?;
                cpu::exit(code)
            }
            "halt" => {
                words.end()?;
                self.serial.write(b"ok\n");
                cpu::stop()
            }
            "triple" => {
                words.end()?;
                self.serial.write(b"ok\n");
                cpu::triple_fault()
            }
            "reset" => {
                words.end()?;
                self.serial.write(b"ok\n");
                reset()
            }
            "in" => self.port_in(words)?,
            "out" => Self::port_out(words)?,
            "peek" => self.peek(words)?,
            "poke" => self.poke(words)?,
            "cpuid" => self.cpuid(words)?,
            "msr" => {
                let index = words.narrow("IDX")?;
                words.end()?;
                let _ = write!(self.reply, " {:#x}", cpu::rdmsr(index));
            }
            "fill" => self.fill(words)?,
            "sum" => self.sum(words)?,
            "verify" => self.verify(words)?,
            _ => return Err(OrderError::Unknown),
        }
        Ok(())
    }

    fn port_in(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let port = words.narrow("PORT")?;
        let width = width(words)?;
        words.end()?;
        let value = match width {
            Width::Byte => u32::from(cpu::in8(port)),
            Width::Word => u32::from(cpu::in16(port)),
            Width::Long => cpu::in32(port),
            Width::Quad => return Err(Malformed::NotANumber { what: "WIDTH" }.into()),
        };
        let _ = write!(self.reply, " {value:#x}");
        Ok(())
    }

    fn port_out(words: &mut Words<'_>) -> Result<(), OrderError> {
        let port = words.narrow("PORT")?;
        match width(words)? {
            Width::Byte => cpu::out8(port, last(words)?),
            Width::Word => cpu::out16(port, last(words)?),
            Width::Long => cpu::out32(port, last(words)?),
            Width::Quad => return Err(Malformed::NotANumber { what: "WIDTH" }.into()),
        }
        Ok(())
    }

    fn peek(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let address = words.number("ADDR")?;
        let width = width(words)?;
        words.end()?;
        self.memory.reach(address, width.bytes())?;
        let _ = write!(self.reply, " {:#x}", cpu::read(address, width));
        Ok(())
    }

    fn poke(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let address = words.number("ADDR")?;
        let width = width(words)?;
        let value = words.number("VALUE")?;
        words.end()?;
        self.memory.reach(address, width.bytes())?;
        cpu::write(address, width, value);
        Ok(())
    }

    fn cpuid(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let leaf = words.narrow("LEAF")?;
        let subleaf = words.optional_number("SUBLEAF")?.unwrap_or(0);
        let subleaf = u32::try_from(subleaf).map_err(|_| Malformed::NotANumber { what: "SUBLEAF" })?;
        words.end()?;
        let is = cpu::cpuid(leaf, subleaf);
        let _ = write!(self.reply, " {:#x} {:#x} {:#x} {:#x}", is.eax, is.ebx, is.ecx, is.edx);
        Ok(())
    }

    fn fill(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let (address, len) = self.free_words(words)?;
        let seed = words.number("SEED")?;
        words.end()?;
        for index in 0..len / 8 {
            cpu::write(address + 8 * index, Width::Quad, pattern::word(seed, index));
        }
        Ok(())
    }

    fn sum(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let (address, len) = self.free_words(words)?;
        words.end()?;
        let mut sum = Checksum::new();
        for index in 0..len / 8 {
            sum.add(cpu::read(address + 8 * index, Width::Quad));
        }
        let _ = write!(self.reply, " {:#x}", sum.value());
        Ok(())
    }

    fn verify(&mut self, words: &mut Words<'_>) -> Result<(), OrderError> {
        let (address, len) = self.free_words(words)?;
        let seed = words.number("SEED")?;
        words.end()?;
        for index in 0..len / 8 {
            let at = address + 8 * index;
            let is = cpu::read(at, Width::Quad);
            let want = pattern::word(seed, index);
            if is != want {
                let _ = write!(self.reply, " mismatch {at:#x} is {is:#x} want {want:#x}");
                return Ok(());
            }
        }
        let _ = self.reply.write_str(" same");
        Ok(())
    }

    /// Reads `ADDR LEN`, whole words of free memory, and maps them.
    fn free_words(&mut self, words: &mut Words<'_>) -> Result<(u64, u64), OrderError> {
        let address = words.number("ADDR")?;
        let len = words.number("LEN")?;
        if address % 8 != 0 || len % 8 != 0 {
            return Err(OrderError::Refused("ADDR and LEN must be multiples of 8"));
        }
        self.memory.reach_free(address, len)?;
        Ok((address, len))
    }
}

/// Asks for a reset: by the reset control register, then the keyboard controller, then by shutting the processor down.
fn reset() -> ! {
    cpu::out8(0xcf9, 0x02);
    cpu::out8(0xcf9, 0x06);
    cpu::out8(0x64, 0xfe);
    cpu::triple_fault()
}

fn width(words: &mut Words<'_>) -> Result<Width, OrderError> {
    Width::from_bytes(words.number("WIDTH")?).ok_or(Malformed::NotANumber { what: "WIDTH" }.into())
}

/// Reads the last argument of an order.
fn last<T: TryFrom<u64>>(words: &mut Words<'_>) -> Result<T, OrderError> {
    let value = words.narrow("VALUE")?;
    words.end()?;
    Ok(value)
}
