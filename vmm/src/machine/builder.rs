//! The one path of boot, restore and migration: prepare, load, commit.
//!
//! Everything a machine is wired with is staged in one transaction. The slots are set first; the
//! interrupt controllers and the vCPUs are made in the transaction's own gap after them, because a
//! slot call that follows such a registration waits for a grace period.

use std::sync::Arc;

use address_manager::{
    AddressManager, CommitError, HandlerRange, IoSpace, Owner, Transaction, Window, WindowKind, Windows,
};
use arch::x86_64::cpuid::{self, CpuidConfig, CpuidError, CpuidTemplate};
use devices::{
    SharedDevice,
    pci::{HostBridge, PciSegment, StagedBars},
};
use hypervisor::{HypervisorKind, IrqchipMode, Vm, VmOptions, x86_64::CpuidEntry};
use vm_migration::LoadError;

use super::{
    BuildError, Host, Machine, MachineState, NamedDevice,
    attach::{self, Attached, ImageLocks, RateLimiters},
    consoles::Seat,
    payload::{self, OpenPayload},
    platform::{Platform, PlatformParts},
    restore::SavedChips,
    sinks::Interrupts,
};
use crate::{
    config::{ConfigError, VmConfig},
    cpu::{Cookie, VcpuPlan, VcpuStart, Vcpus},
    layout::{HostCaps, Layout, LayoutError, SegmentLayout},
    memory::GuestMemory,
    parallel,
};

/// GSIs beyond the pins of the IOAPIC, for message-signalled interrupts that need a route.
const FIRST_MSI_GSI: u64 = 24;

/// Devices for which a thread of its own is worth it when they are opened or loaded.
const DEVICES_PER_THREAD: usize = 4;
impl Machine {
    /// Builds a machine for a cold boot. It is paused, with its payload in memory and its first vCPU
    /// at the entry.
    ///
    /// # Errors
    /// See [`BuildError`]; whatever was opened or made is gone again.
    pub fn boot(config: &VmConfig, host: &Host) -> Result<Self, BuildError> {
        config.check()?;
        let supported = host.hypervisor.supported_cpuid()?;
        let caps = host_caps(host, &supported);
        let layout = Layout::allocate(config, &caps)?;
        let payload = config.payload.as_ref().ok_or(ConfigError::NoPayload)?;
        let (acpi, taken) = super::tables::acpi(&layout, config)?;
        let (smbios_at, smbios) = super::tables::smbios(&config.platform)?;
        let payload = OpenPayload::open(payload, &layout, acpi.rsdp, taken.as_slice())?;
        let prepared = Prepared::new(config, host, layout, GuestMemory::map(&config.memory)?, "boot")?;
        let vcpus = vcpu_plans(config, &prepared.layout, &supported, |index| match index {
            0 => VcpuStart::Ready(Box::new(payload.plan.entry)),
            _ => VcpuStart::Waiting,
        })?;
        let memory = prepared.transaction.memory();
        payload.load(&memory)?;
        for (at, bytes) in &acpi.pieces {
            payload::write(bytes, *at, &memory)?;
        }
        payload::write(&smbios, smbios_at, &memory)?;
        prepared.commit(host, vcpus, None)
    }
}

/// A machine whose wiring is staged and whose devices are built; no vCPU exists yet.
pub(super) struct Prepared {
    pub(super) layout: Layout,
    memory: GuestMemory,
    vm: Arc<dyn Vm>,
    manager: Arc<AddressManager>,
    segments: Vec<Arc<PciSegment>>,
    pub(super) platform: Platform,
    pub(super) devices: Vec<NamedDevice>,
    transaction: Transaction<'static>,
}

impl Prepared {
    /// Opens what the configuration names, builds the devices, and stages what is fixed.
    pub(super) fn new(
        config: &VmConfig,
        host: &Host,
        layout: Layout,
        memory: GuestMemory,
        label: &str,
    ) -> Result<Self, BuildError> {
        let vm = host.hypervisor.create_vm(&VmOptions::default())?;
        let capabilities = host.hypervisor.capabilities();
        let windows = windows(&layout, capabilities.max_gsis);
        let manager = AddressManager::new(Arc::clone(&vm), capabilities.max_slots, windows);
        let transaction = manager.begin_owned(label);
        transaction.add(&memory.wired(&layout.ram))?;
        let interrupts = Interrupts::new(Arc::clone(&vm), irqchip_mode(host, &layout));

        let mut segments = Vec::with_capacity(layout.segments.len());
        for segment in &layout.segments {
            segments.push(build_segment(segment, &manager, &transaction)?);
        }
        let serial = host
            .consoles
            .take(Seat::Serial, &config.serial)
            .map_err(|source| BuildError::Attach { id: super::platform::SERIAL_ID.into(), source })?;
        let first = segments.first().ok_or(LayoutError::Windows { segment: 0, segments: 0 })?;
        let parts = PlatformParts {
            layout: &layout,
            interrupts: &interrupts,
            requests: &host.requests,
            segment: first,
            serial,
        };
        let platform = Platform::build(parts, &transaction)?;

        let limiters = RateLimiters::new(&config.rate_limit_groups);
        let context = attach::Context {
            manager: &manager,
            interrupts: &interrupts,
            consoles: &host.consoles,
            events: &host.events,
            doorbell_any_width: capabilities.doorbell_any_width,
            limiters: &limiters,
            image_locks: ImageLocks::Now,
        };
        let wanted: Vec<_> = layout.devices.iter().zip(&config.devices).collect();
        let attached = parallel::map(&wanted, DEVICES_PER_THREAD, |(device, config)| {
            attach::attach(config, device, &context)
                .map_err(|source| BuildError::Attach { id: device.id.clone(), source })
        })?;
        let mut devices = Vec::with_capacity(layout.devices.len());
        for (device, Attached { device: attached, control }) in layout.devices.iter().zip(attached) {
            let segment =
                segments.iter().find(|segment| segment.number() == device.bdf.segment()).ok_or_else(
                    || LayoutError::SegmentFull { id: device.id.clone(), segment: device.bdf.segment() },
                )?;
            segment.plug(device.bdf.device(), attached.clone())?;
            devices.push(NamedDevice { id: device.id.clone(), device: attached, control });
        }
        Ok(Self { layout, memory, vm, manager, segments, platform, devices, transaction })
    }

    /// Gives every device its saved state, several at a time. What that changes in the wiring is staged.
    pub(super) fn load(&self, state: &MachineState) -> Result<(), LoadError> {
        let all: Vec<&NamedDevice> = self.platform.devices.iter().chain(&self.devices).collect();
        parallel::map(&all, DEVICES_PER_THREAD, |NamedDevice { id, device, .. }| {
            device.lock().load_section(state.section(id)?, &self.transaction)
        })?;
        Ok(())
    }

    /// Stages the BARs of every device where its registers, which may have been loaded, say.
    fn stage(&self) -> Vec<(SharedDevice, StagedBars)> {
        let staged = self.devices.iter().filter_map(|NamedDevice { device, .. }| {
            let staged = device.lock().pci().map(|function| function.endpoint().stage(&self.transaction))?;
            Some((device.clone(), staged))
        });
        staged.collect()
    }

    /// Puts the wiring in place, with one commit, and makes the vCPUs.
    pub(super) fn commit(
        self,
        host: &Host,
        vcpus: Vec<VcpuPlan>,
        saved: Option<SavedChips>,
    ) -> Result<Machine, BuildError> {
        let staged = self.stage();
        let Self { layout, memory, vm, manager, segments, platform, devices, transaction } = self;
        let requests = Arc::clone(&host.requests) as Arc<dyn devices::RequestSink>;
        let mut made = None;
        let committed = transaction.commit_with(|| {
            vm.create_irqchip(irqchip_mode(host, &layout), false)?;
            made = Some(Vcpus::create(&vm, &manager, &requests, vcpus)?);
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
        let vcpus = made.expect("a commit that succeeded has run its hook");
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
            report,
        })
    }
}

/// What the layout must know of the host.
pub(super) fn host_caps(host: &Host, supported: &[CpuidEntry]) -> HostCaps {
    let capabilities = host.hypervisor.capabilities();
    HostCaps {
        phys_bits: cpuid::phys_bits(supported, u8::MAX),
        max_vcpus: capabilities.max_vcpus,
        max_apic_id: if capabilities.x2apic_ids && capabilities.split_irqchip && capabilities.signal_msi {
            capabilities.max_vcpu_id.min(MAX_DESTINATIONS)
        } else {
            255
        },
    }
}

/// APIC ids that a message with an extended destination can name.
const MAX_DESTINATIONS: u32 = 1 << 15;

/// The kernel's controllers are the quickest; the destinations of its IOAPIC have eight bits. Other hypervisors have
/// none.
fn irqchip_mode(host: &Host, layout: &Layout) -> IrqchipMode {
    if layout.has_wide_apic_ids() || host.hypervisor.kind() == HypervisorKind::Mshv {
        IrqchipMode::Split
    } else {
        IrqchipMode::Kernel
    }
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

/// The processors that are present, each with what it starts from.
pub(super) fn vcpu_plans(
    config: &VmConfig,
    layout: &Layout,
    supported: &[CpuidEntry],
    start: impl Fn(u32) -> VcpuStart,
) -> Result<Vec<VcpuPlan>, CpuidError> {
    let cpus = &config.cpus;
    let template = CpuidTemplate::new(&CpuidConfig {
        supported,
        topology: cpus.topology,
        max_phys_bits: layout.phys_bits,
        nested: cpus.nested,
        amx: cpus.amx,
        tsc_deadline_timer: true,
        extended_destination_id: layout.has_wide_apic_ids(),
        hidden: &cpus.hide,
    })?;
    let cookie = Arc::new(Cookie::new(cpus.core_scheduling));
    let present = layout.vcpus.iter().filter(|vcpu| vcpu.present);
    let plans = present.map(|vcpu| {
        let affinity = cpus.affinity.iter().find(|(index, _)| *index == vcpu.index);
        let start = start(vcpu.index);
        let cpuid = match &start {
            // It has its own.
            VcpuStart::Saved(_) => Vec::new(),
            VcpuStart::Ready(_) | VcpuStart::Waiting => template.for_vcpu(vcpu.index),
        };
        VcpuPlan {
            index: vcpu.index,
            apic_id: vcpu.apic_id,
            cpuid,
            start,
            affinity: affinity.map(|(_, cpus)| cpus.clone()).unwrap_or_default(),
            cookie: Arc::clone(&cookie),
        }
    });
    Ok(plans.collect())
}
