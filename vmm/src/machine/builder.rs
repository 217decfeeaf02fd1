//! The one path of boot, restore and migration: prepare, load, commit.
//!
//! Everything a machine is wired with is staged in one transaction. The slots are set first, ahead of the rest, and the
//! interrupt controllers and the vCPUs made after them, because a slot call that follows such a registration waits for a
//! grace period. A restore does that beside opening and loading the devices.

use std::{collections::BTreeMap, iter, sync::Arc};

use address_manager::{
    AddressManager, HandlerRange, IoSpace, Owner, Route, Transaction, Window, WindowKind, Windows,
};
use arch::x86_64::boot::registers;
use devices::{
    RequestSink, SharedDevice,
    pci::{HostBridge, PciSegment},
};
use hypervisor::{IrqchipMode, Vm, VmOptions, x86_64::IrqchipState};
use vm_migration::LoadError;

use super::{
    BuildError, Commits, Host, Machine, MachineState, NamedDevice,
    attach::{self, Attached, ImageLocks, RateLimiters},
    consoles::Seat,
    flash::Flash,
    generation,
    payload::{self, OpenPayload},
    persistent::{Files, Persistent},
    platform::{Platform, PlatformParts},
    processors::{host_caps, irqchip_mode, signature, vcpu_plans},
    sinks::{Interrupts, RequestQueue},
};
use crate::{
    config::{ConfigError, DeviceConfig, VmConfig},
    cpu::{VcpuPlan, VcpuStart, Vcpus},
    layout::{Layout, LayoutError, SegmentLayout},
    memory::{GuestMemory, content::Tally},
    parallel,
};

/// GSIs beyond the pins of the IOAPIC, for message-signalled interrupts that need a route.
const FIRST_MSI_GSI: u64 = 24;

/// Devices for which a thread of its own is worth it when they are opened or loaded.
const DEVICES_PER_THREAD: usize = 4;
/// Devices for which a thread of its own is worth it when they take their state: making a thread takes as long as loading
/// a dozen of the small ones.
const LOADS_PER_THREAD: usize = 16;
impl Machine {
    /// Builds a machine for a cold boot. It is paused, with its payload in memory and its first vCPU
    /// at the entry. `tally` is told how far it is.
    ///
    /// # Errors
    /// See [`BuildError`]; whatever was opened or made is gone again.
    pub fn boot(config: &VmConfig, host: &Host, tally: &dyn Tally) -> Result<Self, BuildError> {
        let not_cancelled = || if tally.is_cancelled() { Err(BuildError::Cancelled) } else { Ok(()) };
        config.check()?;
        let supported = host.hypervisor.supported_cpuid()?;
        let caps = host_caps(host, &supported);
        let payload = config.payload.as_ref().ok_or(ConfigError::NoPayload)?;
        let flash = Flash::of(payload)?;
        let files = Files::open(config, None)?;
        let layout = Layout::allocate(config, &caps, flash.as_ref().map(Flash::range), &files.sizes())?;
        let persistent = files.map()?;
        let (acpi, taken) = super::tables::acpi(&layout, config)?;
        let (smbios_at, smbios) = super::tables::smbios(&config.platform)?;
        let payload = match &flash {
            // It is all that there is, and lies where it is.
            Some(_) => None,
            None => Some(OpenPayload::open(payload, &layout, acpi.rsdp, taken.as_slice())?),
        };
        let entry = payload
            .as_ref()
            .map_or_else(|| registers::reset(signature(&supported)), |payload| payload.plan.entry);
        let memory = GuestMemory::map(&config.memory, tally)?;
        tally.phase("machine", None);
        not_cancelled()?;
        let vm = host.hypervisor.create_vm(&VmOptions::default())?;
        let ground = Arc::new(Ground::new(host, vm, layout, &memory, (flash.as_ref(), persistent), "boot")?);
        let peripherals = Peripherals::new(config, host, &ground)?;
        let staged = ground.transaction.memory();
        if let Some(payload) = &payload {
            payload.load(&staged, tally)?;
        }
        for (at, bytes) in &acpi.pieces {
            payload::write(bytes, *at, &staged)?;
        }
        payload::write(&smbios, smbios_at, &staged)?;
        let (reset_at, reset) = super::tables::reset_vector();
        payload::write(&reset, reset_at, &staged)?;
        if let Some(at) = ground.layout.generation_id {
            payload::write(&generation::fresh()?, at, &staged)?;
        }
        drop(staged);
        not_cancelled()?;
        let plans = vcpu_plans(&config.cpus, &ground.layout, &supported, |index| match index {
            0 => VcpuStart::Ready(Box::new(entry)),
            _ => VcpuStart::Waiting,
        })?;
        let vcpus = ground.make_processors(plans, &host.requests, None)?;
        let flash = flash.as_ref().map(Flash::saved);
        let machine = peripherals.commit(ground, vcpus, (memory, flash), None, Commits::Once)?;
        machine.set_taps_up()?;
        Ok(machine)
    }
}

/// What a machine stands on: a VM, and a transaction in which memory is staged. Interrupt controllers and vCPUs are made on
/// it on one side, devices on the other.
pub(super) struct Ground {
    pub(super) layout: Layout,
    pub(super) vm: Arc<dyn Vm>,
    pub(super) manager: Arc<AddressManager>,
    pub(super) transaction: Transaction<'static>,
    persistent: Persistent,
    irqchip: IrqchipMode,
}

impl Ground {
    /// Stages memory of every kind, and the lines that the interrupt controllers come with.
    pub(super) fn new(
        host: &Host,
        vm: Arc<dyn Vm>,
        layout: Layout,
        memory: &GuestMemory,
        (flash, persistent): (Option<&Flash>, Persistent),
        label: &str,
    ) -> Result<Self, BuildError> {
        let capabilities = host.hypervisor.capabilities();
        let windows = windows(&layout, capabilities.max_gsis);
        let manager = AddressManager::new(Arc::clone(&vm), capabilities.max_slots, windows);
        let transaction = manager.begin_owned(label);
        transaction.add(&memory.wired(&layout.ram))?;
        if let Some(flash) = flash {
            transaction.add_slot(flash.slot())?;
        }
        persistent.stage(&layout, &transaction)?;
        let irqchip = irqchip_mode(host, &layout);
        transaction.adopt_routes(lines(irqchip))?;
        Ok(Self { layout, vm, manager, transaction, persistent, irqchip })
    }

    /// Sets the memory slots, and makes what a slot call must not follow: the interrupt controllers, with their state if
    /// there is one, and the vCPUs of `plans`, each by its thread.
    pub(super) fn make_processors(
        &self,
        plans: Vec<VcpuPlan>,
        requests: &Arc<RequestQueue>,
        saved: Option<&IrqchipState>,
    ) -> Result<Vcpus, BuildError> {
        let requests = Arc::clone(requests) as Arc<dyn RequestSink>;
        let vcpus = Vcpus::make(plans, &self.vm, &self.manager, &requests, || {
            self.transaction.set_slots_ahead().map_err(|error| BuildError::Commit(Box::new(error)))?;
            self.vm.create_irqchip(self.irqchip, false)?;
            Ok::<_, BuildError>(())
        })?;
        // Pending interrupts go to local APICs, which are there only now.
        if let Some(saved) = saved {
            self.vm.load_irqchip(saved)?;
        }
        Ok(vcpus)
    }
}

/// The devices of a machine: built, and their wiring staged.
pub(super) struct Peripherals {
    pub(super) segments: Vec<Arc<PciSegment>>,
    pub(super) platform: Platform,
    pub(super) devices: Vec<NamedDevice>,
}

impl Peripherals {
    /// Opens what the configuration names, builds the devices, and stages what is fixed.
    pub(super) fn new(config: &VmConfig, host: &Host, ground: &Ground) -> Result<Self, BuildError> {
        let Ground { layout, vm, manager, transaction, persistent, irqchip } = ground;
        let interrupts = Interrupts::new(Arc::clone(vm), *irqchip);
        let mut segments = Vec::with_capacity(layout.segments.len());
        for segment in &layout.segments {
            segments.push(build_segment(segment, manager, transaction)?);
        }
        let serial = host
            .consoles
            .take(Seat::Serial, &config.serial)
            .map_err(|source| BuildError::Attach { id: super::platform::SERIAL_ID.into(), source })?;
        let first = segments.first().ok_or(LayoutError::Windows { segment: 0, segments: 0 })?;
        let parts = PlatformParts {
            layout,
            interrupts: &interrupts,
            requests: &host.requests,
            segment: first,
            serial,
        };
        let platform = Platform::build(parts, transaction)?;

        let limiters = RateLimiters::new(&config.rate_limit_groups);
        let context = attach::Context {
            manager,
            interrupts: &interrupts,
            consoles: &host.consoles,
            events: &host.events,
            doorbell_any_width: host.hypervisor.capabilities().doorbell_any_width,
            limiters: &limiters,
            image_locks: ImageLocks::Now,
            persistent,
        };
        let wanted = layout.devices.iter().zip(&config.devices).enumerate();
        // The host has one lock for all its network interfaces: threads that wait for it at the same time keep processors
        // busy, and the guest's are being made meanwhile.
        let (networks, others): (Vec<_>, Vec<_>) =
            wanted.partition(|(_, (_, config))| matches!(config, DeviceConfig::Net(_)));
        let turns: Vec<Vec<_>> = iter::once(networks)
            .filter(|networks| !networks.is_empty())
            .chain(others.into_iter().map(|other| vec![other]))
            .collect();
        let attached = parallel::map(&turns, DEVICES_PER_THREAD, |turn| {
            let each = turn.iter().map(|(number, (device, config))| {
                let attached = attach::attach(config, device, &context)
                    .map_err(|source| BuildError::Attach { id: device.id.clone(), source })?;
                Ok((*number, attached))
            });
            each.collect::<Result<Vec<_>, BuildError>>()
        })?;
        let attached: BTreeMap<usize, Attached> = attached.into_iter().flatten().collect();
        let attached = attached.into_values();
        let mut devices = Vec::with_capacity(layout.devices.len());
        for (device, Attached { device: attached, control }) in layout.devices.iter().zip(attached) {
            let segment =
                segments.iter().find(|segment| segment.number() == device.bdf.segment()).ok_or_else(
                    || LayoutError::SegmentFull { id: device.id.clone(), segment: device.bdf.segment() },
                )?;
            segment.plug(device.bdf.device(), attached.clone())?;
            devices.push(NamedDevice { id: device.id.clone(), device: attached, control });
        }
        Ok(Self { segments, platform, devices })
    }

    /// Gives every device its saved state, several at a time. What that changes in the wiring is staged.
    pub(super) fn load(&self, state: &MachineState, transaction: &Transaction<'_>) -> Result<(), LoadError> {
        let all: Vec<&NamedDevice> = self.platform.devices.iter().chain(&self.devices).collect();
        parallel::map(&all, LOADS_PER_THREAD, |NamedDevice { id, device, .. }| {
            device.lock().load_section(state.section(id)?, transaction)
        })?;
        Ok(())
    }
}

/// The lines that come with the controllers: in the manager's table from the beginning, so that whatever writes the
/// kernel's writes them too.
fn lines(irqchip: IrqchipMode) -> Vec<Route> {
    let owner = Owner::new("__irqchip");
    let routes = irqchip.first_routes().into_iter();
    routes.map(|route| Route { gsi: route.gsi, target: route.target, owner: owner.clone() }).collect()
}

fn windows(layout: &Layout, max_gsis: u32) -> Windows {
    let gsis = u64::from(max_gsis).saturating_sub(FIRST_MSI_GSI);
    let mut windows = Windows::new().with(Window { kind: WindowKind::Gsi, segment: 0 }, FIRST_MSI_GSI, gsis);
    for SegmentLayout { number, mmio32, mmio64, .. } in &layout.segments {
        let of = |kind| Window { kind, segment: *number };
        windows = windows.with(of(WindowKind::Mmio32), mmio32.base, mmio32.size).with(
            of(WindowKind::Mmio64),
            mmio64.base,
            mmio64.size,
        );
    }
    windows
}

/// A segment with its host bridge, and its configuration space in memory.
fn build_segment(
    layout: &SegmentLayout,
    manager: &Arc<AddressManager>,
    transaction: &Transaction<'_>,
) -> Result<Arc<PciSegment>, BuildError> {
    let segment = PciSegment::new(layout.number, manager);
    let id = format!("__pci{}", layout.number);
    segment.plug(0, SharedDevice::new(HostBridge::new(&id, layout.number)))?;
    transaction.add_handler(HandlerRange {
        space: IoSpace::Mmio,
        base: layout.ecam.base,
        size: layout.ecam.size,
        handler: segment.ecam_handler(),
        owner: Owner::new(&id),
    })?;
    Ok(segment)
}
