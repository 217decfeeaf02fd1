//! The DSDT: the devices of the machine that cannot be enumerated, in AML (ACPI 6.5, chapter 20).

pub mod cpu_hotplug;
pub mod event;
mod pci;
mod platform;

use acpi_tables::aml::{Name, Package, Scope};

use super::{
    AcpiConfig, SLEEP_TYPE_S5,
    table::{self, Raw},
};

pub(super) fn build(config: &AcpiConfig) -> Vec<u8> {
    let mut system = Raw::default();
    for segment in &config.segments {
        system.push(&pci::host_bridge(segment));
    }
    system.push(&platform::motherboard(config));
    if let Some(device) = &config.serial {
        system.push(&platform::serial(device));
    }
    if let Some(device) = &config.rtc {
        system.push(&platform::rtc(device));
    }
    if let Some(port) = config.pvpanic_port {
        system.push(&platform::pvpanic(port));
    }
    if let Some(address) = config.generation_id {
        system.push(&platform::generation_id(address));
    }
    system.push(&platform::power_button());
    if let Some(address) = config.cpu_hotplug {
        system.push(&cpu_hotplug::devices(config, address));
    }
    system.push(&event::device(config));

    let mut body = Raw::default();
    let sleep_type = SLEEP_TYPE_S5;
    body.push(&Name::new("_S5_".into(), &Package::new(vec![&sleep_type, &sleep_type, &0u8, &0u8])));
    body.push(&Scope::new("_SB_".into(), vec![&system]));
    table::table(b"DSDT", 2, &body.0)
}
