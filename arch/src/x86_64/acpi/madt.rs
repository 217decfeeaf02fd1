//! The MADT (ACPI 6.5, 5.2.12): local APICs, the IOAPIC, and ISA interrupts that are moved.

use super::{AcpiConfig, table};
use crate::x86_64::layout::LOCAL_APIC_START;

const LOCAL_APIC: u8 = 0;
const IO_APIC: u8 = 1;
const INTERRUPT_OVERRIDE: u8 = 2;
const LOCAL_APIC_NMI: u8 = 4;
const LOCAL_X2APIC: u8 = 9;
const LOCAL_X2APIC_NMI: u8 = 10;

/// Present now.
const ENABLED: u32 = 1 << 0;
/// Absent, and may come.
const ONLINE_CAPABLE: u32 = 1 << 1;

/// Active low, level-triggered; 0 is as the bus has it.
const LEVEL_LOW: u16 = 0b1111;

/// APIC ids that a plain local APIC structure may carry; 255 is the broadcast id.
const MAX_XAPIC_ID: u32 = 254;

pub(super) fn build(config: &AcpiConfig) -> Vec<u8> {
    let mut body = Vec::new();
    let local_apic = u32::try_from(LOCAL_APIC_START).expect("a constant below 4 GiB");
    body.extend_from_slice(&local_apic.to_le_bytes());
    body.extend_from_slice(&0u32.to_le_bytes()); // no 8259 that the guest needs to know of

    let told = if config.cpu_hotplug.is_some() { config.topology.vcpus() } else { config.boot_vcpus };
    for vcpu in 0..told {
        let flags = if vcpu < config.boot_vcpus { ENABLED } else { ONLINE_CAPABLE };
        body.extend(processor(vcpu, config.topology.apic_id(vcpu), flags));
    }
    let ioapic = &config.ioapic;
    structure(
        &mut body,
        IO_APIC,
        &[&[ioapic.id, 0], &ioapic.address.to_le_bytes(), &ioapic.gsi_base.to_le_bytes()],
    );
    for moved in &config.overrides {
        let flags = if moved.level_low { LEVEL_LOW } else { 0 };
        let bus = 0; // ISA
        structure(
            &mut body,
            INTERRUPT_OVERRIDE,
            &[&[bus, moved.isa], &moved.gsi.to_le_bytes(), &flags.to_le_bytes()],
        );
    }
    // NMIs arrive at LINT1 of every processor.
    structure(&mut body, LOCAL_APIC_NMI, &[&[0xff], &0u16.to_le_bytes(), &[1]]);
    if config.topology.max_apic_id() > MAX_XAPIC_ID {
        structure(
            &mut body,
            LOCAL_X2APIC_NMI,
            &[&0u16.to_le_bytes(), &u32::MAX.to_le_bytes(), &[1, 0, 0, 0]],
        );
    }
    table::table(b"APIC", 6, &body)
}

/// The structure of one processor. Its UID is the vCPU number. Also the value of `_MAT` of a
/// processor device.
pub(super) fn processor(vcpu: u32, apic_id: u32, flags: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16);
    match (u8::try_from(vcpu), u8::try_from(apic_id)) {
        (Ok(uid), Ok(id)) if apic_id <= MAX_XAPIC_ID => {
            structure(&mut bytes, LOCAL_APIC, &[&[uid, id], &flags.to_le_bytes()]);
        }
        _ => structure(
            &mut bytes,
            LOCAL_X2APIC,
            &[&[0, 0], &apic_id.to_le_bytes(), &flags.to_le_bytes(), &vcpu.to_le_bytes()],
        ),
    }
    bytes
}

/// The structure of a processor that is present.
pub(super) fn present_processor(vcpu: u32, apic_id: u32) -> Vec<u8> {
    processor(vcpu, apic_id, ENABLED)
}

fn structure(body: &mut Vec<u8>, kind: u8, fields: &[&[u8]]) {
    let len = 2 + fields.iter().map(|field| field.len()).sum::<usize>();
    body.push(kind);
    body.push(u8::try_from(len).expect("structures of this module are shorter than 256 bytes"));
    for field in fields {
        body.extend_from_slice(field);
    }
}
