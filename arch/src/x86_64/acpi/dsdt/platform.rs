//! Devices of the platform: what the motherboard reserves, serial port, clock, button, panic
//! notifier, generation id.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package,
    ResourceTemplate, ZERO,
};

use crate::x86_64::{
    acpi::{AcpiConfig, IsaDevice, table::Raw},
    layout::Range,
};

/// `_STA`: present, enabled, shown, working.
const WORKING: u8 = 0xf;

/// Ranges that no driver owns and none may be given: configuration spaces and register blocks. Linux
/// uses a configuration space in memory only if it finds it reserved here or in the memory map.
pub(super) fn motherboard(config: &AcpiConfig) -> Raw {
    let mut resources = Raw::default();
    for segment in &config.segments {
        reserve(&mut resources, &segment.ecam);
    }
    reserve(&mut resources, &Range { start: config.events.address, size: super::event::SIZE });
    if let Some(start) = config.cpu_hotplug {
        reserve(&mut resources, &Range { start, size: super::cpu_hotplug::SIZE });
    }
    for port in [config.power.sleep_control, config.power.sleep_status, config.power.reset] {
        resources.push(&IO::new(port, port, 1, 1));
    }
    if let Some(port) = config.pm_timer_port {
        resources.push(&IO::new(port, port, 1, 4));
    }
    let mut device = Raw::default();
    device.push(&Device::new(
        "MBRD".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&resources])),
        ],
    ));
    device
}

fn reserve(resources: &mut Raw, range: &Range) {
    match (u32::try_from(range.start), u32::try_from(range.size)) {
        (Ok(start), Ok(size)) => resources.push(&Memory32Fixed::new(true, start, size)),
        _ => resources.push(&AddressSpace::new_memory(
            AddressSpaceCacheable::NotCacheable,
            true,
            range.start,
            range.end() - 1,
            None,
        )),
    }
}

pub(super) fn serial(device: &IsaDevice) -> Raw {
    isa("COM1", "PNP0501", device)
}

pub(super) fn rtc(device: &IsaDevice) -> Raw {
    isa("RTC_", "PNP0B00", device)
}

fn isa(name: &str, id: &str, device: &IsaDevice) -> Raw {
    let ports = IO::new(device.port, device.port, 1, device.ports);
    let interrupt = Interrupt::new(true, true, false, false, device.gsi);
    let mut raw = Raw::default();
    raw.push(&Device::new(
        name.into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new(id)),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_STA".into(), &WORKING),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports, &interrupt])),
        ],
    ));
    raw
}

/// The power button, pressed through the generic event device (ACPI 6.5, 4.8.2.2.1.2).
pub(super) fn power_button() -> Raw {
    let mut raw = Raw::default();
    raw.push(&Device::new(
        "PWRB".into(),
        vec![&Name::new("_HID".into(), &EISAName::new("PNP0C0C")), &Name::new("_UID".into(), &ZERO)],
    ));
    raw
}

/// The panic notifier (QEMU `docs/specs/pvpanic.rst`).
pub(super) fn pvpanic(port: u16) -> Raw {
    let mut raw = Raw::default();
    raw.push(&Device::new(
        "PEVT".into(),
        vec![
            &Name::new("_HID".into(), &"QEMU0001"),
            &Name::new("_STA".into(), &WORKING),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&IO::new(port, port, 1, 1)])),
        ],
    ));
    raw
}

/// The VM generation id (Microsoft "Virtual Machine Generation ID").
pub(super) fn generation_id(address: u64) -> Raw {
    let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
    let (low, high) = (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]));
    let mut raw = Raw::default();
    raw.push(&Device::new(
        "VGEN".into(),
        vec![
            &Name::new("_HID".into(), &"VMGENCTR"),
            &Name::new("_CID".into(), &"VM_Gen_Counter"),
            &Name::new("_DDN".into(), &"VM_Gen_Counter"),
            &Name::new("ADDR".into(), &Package::new(vec![&low, &high])),
        ],
    ));
    raw
}
