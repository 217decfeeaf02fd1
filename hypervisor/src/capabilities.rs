//! What the host's hypervisor can do, asked once when it is opened.

use serde::Serialize;

/// Optional abilities and limits of a hypervisor. Every optional ability is looked up here before
/// it is used; a `false` is an ordinary host, never an error by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// Greatest number of vCPUs of one VM.
    pub max_vcpus: u32,
    /// Greatest vCPU (local APIC) id plus one.
    pub max_vcpu_id: u32,
    /// Number of memory slots of one VM.
    pub max_slots: u32,
    /// Number of GSIs of one VM.
    pub max_gsis: u32,
    /// Slots can be read-only.
    pub read_only_slots: bool,
    /// A doorbell may match any write width.
    pub doorbell_any_width: bool,
    /// Interrupts can be sent by message without a route.
    pub signal_msi: bool,
    /// Local APICs in the kernel, IOAPIC and PIC in user space.
    pub split_irqchip: bool,
    /// Local APIC ids above 254 (x2APIC format of MSI and IOAPIC entries).
    pub x2apic_ids: bool,
    /// Size in bytes of nested virtualization state; 0 when it cannot be saved.
    pub nested_state_size: u32,
    /// System management mode.
    pub smm: bool,
    /// Dirty pages by bitmap with explicit re-protection.
    pub manual_dirty_log: bool,
    /// Entries of a dirty ring, per vCPU, at most; 0 without.
    pub dirty_ring_entries: u32,
    /// The guest's clock can be read together with the host's real time.
    pub realtime_clock: bool,
    /// The TSC frequency can be read and set per vCPU.
    pub tsc_control: bool,
    /// Size in bytes of a vCPU's XSAVE area.
    pub xsave_size: u32,
    /// In-kernel programmable interval timer.
    pub pit: bool,
    /// Immediate exit can be asked for through the shared run page.
    pub immediate_exit: bool,
}
