//! The platform devices of a PC, wired where the architecture has them.

use std::sync::Arc;

use address_manager::{Handler, HandlerRange, IoSpace, Owner, Transaction};
use arch::x86_64::layout as map;
use devices::{
    IrqLine, SharedDevice,
    pci::{ConfigPorts, PciSegment},
    platform::{
        DebugExit, DebugPort, Events, I8042, IoApic, PmTimer, PowerControl, PvPanic, ResetControl, Rtc,
        Serial,
    },
    terminal::Terminal,
};
use parking_lot::Mutex;

use super::{
    BuildError, NamedDevice,
    attach::{Control, terminal::InputPump},
    sinks::Interrupts,
};
use crate::layout::Layout;

/// Id of COM1.
pub const SERIAL_ID: &str = "__serial";

/// Address of the event device's register.
pub const EVENTS_BASE: u64 = map::PLATFORM_MMIO_START;
/// Interrupt of the event device.
pub const EVENTS_GSI: u32 = 5;

/// The platform devices of a machine.
#[derive(Debug)]
pub struct Platform {
    /// What tells the guest of a pressed power button.
    pub events: Arc<Mutex<Events>>,
    /// The real-time clock.
    pub rtc: Arc<Mutex<Rtc>>,
    /// All of them, in the order in which they are saved.
    pub devices: Vec<NamedDevice>,
    // Pumps input into the serial port; stops when dropped.
    serial_input: Option<InputPump>,
}

/// What the platform devices are built from.
#[derive(Debug)]
pub struct PlatformParts<'parts> {
    /// The layout.
    pub layout: &'parts Layout,
    /// Where interrupts go.
    pub interrupts: &'parts Arc<Interrupts>,
    /// Where requests go.
    pub requests: &'parts Arc<super::sinks::RequestQueue>,
    /// PCI segment 0.
    pub segment: &'parts Arc<PciSegment>,
    /// The other end of COM1; `None` without one.
    pub serial: Option<Arc<Terminal>>,
}

impl Platform {
    /// Builds the devices and stages their wiring.
    ///
    /// # Errors
    /// Two of them claim one address, or the host has no thread left.
    pub fn build(parts: PlatformParts<'_>, transaction: &Transaction<'_>) -> Result<Self, BuildError> {
        let PlatformParts { layout, interrupts, requests, segment, serial } = parts;
        let mut devices = Vec::new();
        let mut add = |id: &str, device: SharedDevice, ports: Option<(u64, u64, Arc<dyn Handler>)>| {
            if let Some((base, size, handler)) = ports {
                let owner = Owner::new(id);
                transaction.add_handler(HandlerRange { space: IoSpace::Pio, base, size, handler, owner })?;
            }
            devices.push(NamedDevice { id: id.to_owned(), device, control: Control::None });
            Ok::<(), BuildError>(())
        };

        let ports = ConfigPorts::new(Arc::clone(segment));
        // The reset control register lies inside the range of the configuration ports, which take
        // no 1-byte access to the address port: the ports around it are theirs.
        let handler = ports.handler();
        let reset = SharedDevice::new(ResetControl::new(Arc::clone(requests) as _));
        let with_reset: Arc<dyn Handler> =
            Arc::new(WithReset { ports: handler, reset: reset.port_handler() });
        add(
            "__pci_config",
            SharedDevice::new(ports),
            Some((ConfigPorts::BASE, ConfigPorts::SIZE, with_reset)),
        )?;
        add("__reset", reset, None)?;

        // Each answers at its own ports.
        let mut add_ports = |id: &str, device: SharedDevice, base: u64, size: u64| {
            let handler = device.port_handler();
            add(id, device, Some((base, size, handler)))
        };
        let keyboard = SharedDevice::new(I8042::new(Arc::clone(requests) as _));
        add_ports("__i8042", keyboard, I8042::BASE, I8042::SIZE)?;
        let power = SharedDevice::new(PowerControl::new(Arc::clone(requests) as _));
        add_ports("__power", power, PowerControl::BASE, PowerControl::SIZE)?;
        let timer = SharedDevice::new(PmTimer::new());
        add_ports("__pm_timer", timer, PmTimer::BASE, PmTimer::SIZE)?;
        let (low, high) = ram_sizes(layout);
        let rtc = Arc::new(Mutex::new(Rtc::new(low, high)));
        add_ports("__rtc_cmos", SharedDevice::from_arc(Arc::clone(&rtc)), Rtc::BASE, Rtc::SIZE)?;
        let debug = SharedDevice::new(DebugPort::default());
        add_ports("__debug_port", debug, DebugPort::BASE, DebugPort::SIZE)?;
        if layout.pvpanic {
            let notifier = SharedDevice::new(PvPanic::new(Arc::clone(requests) as _));
            add_ports("__pvpanic", notifier, PvPanic::BASE, PvPanic::SIZE)?;
        }

        let irq = IrqLine::new(Arc::clone(interrupts) as _, EVENTS_GSI);
        let events = Arc::new(Mutex::new(Events::new(irq)));
        let device = SharedDevice::from_arc(Arc::clone(&events));
        transaction.add_handler(HandlerRange {
            space: IoSpace::Mmio,
            base: EVENTS_BASE,
            size: Events::SIZE,
            handler: device.mmio_handler(),
            owner: Owner::new("__events"),
        })?;
        add("__events", device, None)?;

        if let Some(io_apic) = interrupts.io_apic() {
            let device = SharedDevice::from_arc(Arc::clone(io_apic));
            transaction.add_handler(HandlerRange {
                space: IoSpace::Mmio,
                base: map::IOAPIC_START,
                size: IoApic::SIZE,
                handler: device.mmio_handler(),
                owner: Owner::new("__io_apic"),
            })?;
            add("__io_apic", device, None)?;
        }

        if let Some(port) = layout.debug_exit {
            let exit = SharedDevice::new(DebugExit::new(Arc::clone(requests) as _));
            let handler = exit.port_handler();
            add("__debug_exit", exit, Some((u64::from(port), DebugExit::SIZE, handler)))?;
        }

        let mut pump = None;
        if let Some(terminal) = serial {
            let irq = IrqLine::new(Arc::clone(interrupts) as _, Serial::COM1_IRQ);
            let serial = Arc::new(Mutex::new(Serial::new(irq, Box::new(terminal.writer()))));
            let device = SharedDevice::from_arc(Arc::clone(&serial));
            let handler = device.port_handler();
            add(SERIAL_ID, device, Some((Serial::COM1, Serial::SIZE, handler)))?;
            pump = Some(InputPump::new(terminal, serial)?);
        }
        Ok(Self { events, rtc, devices, serial_input: pump })
    }

    /// Lets input reach the serial port, or holds it back where it is.
    pub fn let_input(&self, flows: bool) {
        if let Some(pump) = &self.serial_input
            && let Err(error) = pump.let_flow(flows)
        {
            log::error!("the serial port gets no input: no thread to hand it over: {error}");
        }
    }
}

/// Bytes of RAM below and above 4 GiB.
fn ram_sizes(layout: &Layout) -> (u64, u64) {
    let of = |high: bool| {
        let parts = layout.ram.iter().filter(move |part| (part.base >= map::HOLE_END) == high);
        parts.fold(0u64, |sum, part| sum.saturating_add(part.size))
    };
    (of(false), of(true))
}

/// Ports 0xcf8 to 0xcff: a byte at 0xcf9 is the reset control register's, everything else PCI
/// configuration's. Chipsets tell them apart by width in the same way.
struct WithReset {
    ports: Arc<dyn Handler>,
    reset: Arc<dyn Handler>,
}

const RESET_OFFSET: u64 = ResetControl::BASE - ConfigPorts::BASE;

impl Handler for WithReset {
    fn read(&self, offset: u64, data: &mut [u8]) {
        if offset == RESET_OFFSET && data.len() == 1 {
            self.reset.read(0, data);
        } else {
            self.ports.read(offset, data);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == RESET_OFFSET && data.len() == 1 {
            self.reset.write(0, data);
        } else {
            self.ports.write(offset, data);
        }
    }
}
