//! The one path of boot, restore and migration: prepare, load, commit.
//!
//! Everything a machine is wired with is staged in one transaction. The slots are set first; the
//! interrupt controllers and the vCPUs are made in the transaction's own gap after them, because a
//! slot call that follows such a registration waits for a grace period.

use std::{error::Error, io, sync::Arc};

use address_manager::{
    AddressManager, CommitError, Conflict, HandlerRange, IoSpace, Owner, Transaction, Window, WindowKind,
    Windows,
};
use arch::x86_64::{
    acpi::AcpiError,
    cpuid::{self, CpuidConfig, CpuidError, CpuidTemplate},
    smbios::SmbiosError,
};
use devices::{
    SharedDevice,
    pci::{HostBridge, PciSegment, SlotError, StagedBars},
};
use hypervisor::{HypervisorError, IrqchipMode, Vm, VmOptions, x86_64::CpuidEntry};
use thiserror::Error;

use super::{
    Host, Machine, NamedDevice,
    attach::{self, AttachError, Attached, ImageLocks, RateLimiters},
    consoles::Seat,
    payload::{self, OpenPayload, PayloadError},
    platform::{Platform, PlatformParts},
    sinks::Interrupts,
};
use crate::{
    config::{ConfigError, VmConfig},
    cpu::{Cookie, VcpuError, VcpuPlan, VcpuStart, Vcpus},
    layout::{HostCaps, Layout, LayoutError, SegmentLayout},
    memory::{BackingError, GuestMemory},
};

/// GSIs beyond the pins of the IOAPIC, for message-signalled interrupts that need a route.
const FIRST_MSI_GSI: u64 = 24;

/// A machine could not be built.
#[derive(Debug, Error)]
pub enum BuildError {
    /// The configuration cannot be.
    #[error("configuration")]
    Config(#[from] ConfigError),
    /// It does not fit the address space or the host.
    #[error("layout")]
    Layout(#[from] LayoutError),
    /// The payload cannot be booted.
    #[error("payload")]
    Payload(#[from] PayloadError),
    /// The machine cannot be described to the guest.
    #[error("ACPI tables")]
    Acpi(#[from] AcpiError),
    /// It cannot be called what it shall be called.
    #[error("platform")]
    Smbios(#[from] SmbiosError),
    /// Memory cannot be had.
    #[error("guest memory")]
    Memory(#[from] BackingError),
    /// The hypervisor refuses something.
    #[error("hypervisor")]
    Hypervisor(#[from] HypervisorError),
    /// CPU identification cannot be made.
    #[error("CPU identification")]
    Cpuid(#[from] CpuidError),
    /// What a device needs cannot be opened, or its constructor refuses it.
    #[error("device {id}")]
    Attach {
        /// Which device.
        id: String,
        /// Why.
        #[source]
        source: AttachError,
    },
    /// Two things claim one address.
    #[error("wiring")]
    Conflict(#[from] Conflict),
    /// Two devices claim one slot.
    #[error("PCI")]
    Slot(#[from] SlotError),
    /// The commit failed.
    #[error("commit")]
    Commit(#[source] Box<dyn Error + Send + Sync>),
    /// A vCPU failed.
    #[error("processors")]
    Vcpu(#[from] VcpuError),
    /// The host has no descriptor or thread left.
    #[error("host resources")]
    Host(#[from] io::Error),
}

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
        let prepared = Prepared::new(config, host, layout, &supported)?;
        let memory = prepared.transaction.memory();
        payload.load(&memory)?;
        for (at, bytes) in &acpi.pieces {
            payload::write(bytes, *at, &memory)?;
        }
        payload::write(&smbios, smbios_at, &memory)?;
        let entry = payload.plan.entry;
        prepared.commit(host, |index| match index {
            0 => VcpuStart::Ready(Box::new(entry)),
            _ => VcpuStart::Waiting,
        })
    }
}

/// A machine whose wiring is staged and whose devices are built; no vCPU exists yet.
struct Prepared {
    layout: Layout,
    vm: Arc<dyn Vm>,
    manager: Arc<AddressManager>,
    segments: Vec<Arc<PciSegment>>,
    platform: Platform,
    devices: Vec<NamedDevice>,
    vcpus: Vec<VcpuIdentity>,
    staged: Vec<(SharedDevice, StagedBars)>,
    transaction: Transaction<'static>,
}

impl Prepared {
    fn new(
        config: &VmConfig,
        host: &Host,
        layout: Layout,
        supported: &[CpuidEntry],
    ) -> Result<Self, BuildError> {
        let memory = GuestMemory::map(&config.memory)?;
        let vm = host.hypervisor.create_vm(&VmOptions::default())?;
        let capabilities = host.hypervisor.capabilities();
        let windows = windows(&layout, capabilities.max_gsis);
        let manager = AddressManager::new(Arc::clone(&vm), capabilities.max_slots, windows);
        let transaction = manager.begin_owned("boot");
        transaction.add(&memory.wired(&layout.ram))?;
        let interrupts = Interrupts::new(Arc::clone(&vm));

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
        let mut devices = Vec::with_capacity(layout.devices.len());
        let mut staged = Vec::with_capacity(layout.devices.len());
        for (device, device_config) in layout.devices.iter().zip(&config.devices) {
            let Attached { device: attached, control } = attach::attach(device_config, device, &context)
                .map_err(|source| BuildError::Attach { id: device.id.clone(), source })?;
            let segment = segments
                .iter()
                .find(|segment| segment.number() == device.bdf.segment())
                .ok_or(LayoutError::SegmentFull { id: device.id.clone(), segment: device.bdf.segment() })?;
            segment.plug(device.bdf.device(), attached.clone())?;
            if let Some(function) = attached.lock().pci() {
                staged.push((attached.clone(), function.endpoint().stage(&transaction)));
            }
            devices.push(NamedDevice { id: device.id.clone(), device: attached, control });
        }

        let vcpus = vcpu_identities(config, &layout, supported)?;
        Ok(Self { layout, vm, manager, segments, platform, devices, vcpus, staged, transaction })
    }

    /// Puts the wiring in place, with one commit, and makes the vCPUs.
    fn commit(self, host: &Host, start: impl Fn(u32) -> VcpuStart) -> Result<Machine, BuildError> {
        let Self { layout, vm, manager, segments, platform, devices, vcpus, staged, transaction } = self;
        let plans = vcpus
            .into_iter()
            .map(|VcpuIdentity { index, apic_id, cpuid, affinity, cookie }| VcpuPlan {
                index,
                apic_id,
                cpuid,
                start: start(index),
                affinity,
                cookie,
            })
            .collect();
        let requests = Arc::clone(&host.requests) as Arc<dyn devices::RequestSink>;
        let mut made = None;
        let committed = transaction.commit_with(|| {
            vm.create_irqchip(IrqchipMode::Kernel, false)?;
            made = Some(Vcpus::create(&vm, &manager, &requests, plans)?);
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
        Ok(Machine { layout, vcpus, platform, devices, segments, manager, vm, stopped_clock: None, report })
    }
}

/// What the layout must know of the host.
fn host_caps(host: &Host, supported: &[CpuidEntry]) -> HostCaps {
    let capabilities = host.hypervisor.capabilities();
    HostCaps {
        phys_bits: cpuid::phys_bits(supported, u8::MAX),
        max_vcpus: capabilities.max_vcpus,
        max_apic_id: if capabilities.x2apic_ids { capabilities.max_vcpu_id } else { 255 },
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

/// A processor of the machine, before it exists.
struct VcpuIdentity {
    index: u32,
    apic_id: u32,
    cpuid: Vec<CpuidEntry>,
    affinity: Vec<usize>,
    cookie: Arc<Cookie>,
}

/// The processors that are present at boot.
fn vcpu_identities(
    config: &VmConfig,
    layout: &Layout,
    supported: &[CpuidEntry],
) -> Result<Vec<VcpuIdentity>, CpuidError> {
    let cpus = &config.cpus;
    let template = CpuidTemplate::new(&CpuidConfig {
        supported,
        topology: cpus.topology,
        max_phys_bits: layout.phys_bits,
        nested: cpus.nested,
        amx: cpus.amx,
        tsc_deadline_timer: true,
        // The interrupt controllers are the kernel's.
        extended_destination_id: false,
        hidden: &cpus.hide,
    })?;
    let cookie = Arc::new(Cookie::new(cpus.core_scheduling));
    let present = layout.vcpus.iter().filter(|vcpu| vcpu.present);
    let identities = present.map(|vcpu| {
        let affinity = cpus.affinity.iter().find(|(index, _)| *index == vcpu.index);
        VcpuIdentity {
            index: vcpu.index,
            apic_id: vcpu.apic_id,
            cpuid: template.for_vcpu(vcpu.index),
            affinity: affinity.map(|(_, cpus)| cpus.clone()).unwrap_or_default(),
            cookie: Arc::clone(&cookie),
        }
    });
    Ok(identities.collect())
}
