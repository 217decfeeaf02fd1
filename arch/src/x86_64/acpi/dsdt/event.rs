//! The generic event device: one interrupt, and a register that says what happened.
//!
//! The register is one byte. Reading it returns what happened since it was last read, as the bits
//! below, and clears it; writing does nothing. The device raises its interrupt, an edge, after it has
//! set a bit. The guest's event method reads the register once and notifies the devices of all bits,
//! so that no event is lost when several come together.

use acpi_tables::{
    Aml,
    aml::{
        And, Device, Field, FieldAccessType, FieldEntry, FieldLockRule, FieldUpdateRule, If, Interrupt,
        Local, Method, MethodCall, Name, Notify, OpRegion, OpRegionSpace, Path, ResourceTemplate, Store,
        ZERO,
    },
};

use crate::x86_64::acpi::{AcpiConfig, table::Raw};

/// vCPUs came or are to go; see [`cpu_hotplug`](super::cpu_hotplug).
pub const CPU: u8 = 1 << 0;
/// The power button was pressed.
pub const POWER_BUTTON: u8 = 1 << 3;
/// The VM generation id has changed: the guest goes on from a copied or restored state.
pub const GENERATION_ID: u8 = 1 << 4;

/// Bytes of the register.
pub const SIZE: u64 = 1;

/// `Notify` value of a pressed button and of a changed generation id.
const STATUS_CHANGE: u8 = 0x80;

pub(super) fn device(config: &AcpiConfig) -> Raw {
    let mut body = Raw::default();
    body.push(&Name::new("_HID".into(), &"ACPI0013"));
    body.push(&Name::new("_UID".into(), &ZERO));
    let interrupt = Interrupt::new(true, true, false, false, config.events.gsi);
    body.push(&Name::new("_CRS".into(), &ResourceTemplate::new(vec![&interrupt])));
    body.push(&OpRegion::new("GREG".into(), OpRegionSpace::SystemMemory, &config.events.address, &SIZE));
    body.push(&Field::new(
        "GREG".into(),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![FieldEntry::Named(*b"GEVT", 8)],
    ));

    let mut handler = Raw::default();
    handler.push(&Store::new(&Local(0), &Path::new("GEVT")));
    let button = Path::new("\\_SB_.PWRB");
    handler.push(&on(POWER_BUTTON, &Notify::new(&button, &STATUS_CHANGE)));
    if config.cpu_hotplug.is_some() {
        handler.push(&on(CPU, &MethodCall::new("\\_SB_.CPUS.CSCN".into(), vec![])));
    }
    if config.generation_id.is_some() {
        let device = Path::new("\\_SB_.VGEN");
        handler.push(&on(GENERATION_ID, &Notify::new(&device, &STATUS_CHANGE)));
    }
    body.push(&Method::new("_EVT".into(), 1, true, vec![&handler]));

    let mut device = Raw::default();
    device.push(&Device::new("GED_".into(), vec![&body]));
    device
}

/// What to do when a bit of what was read is set.
fn on(bit: u8, action: &dyn Aml) -> Raw {
    let mut statement = Raw::default();
    statement.push(&If::new(&And::new(&ZERO, &Local(0), &bit), vec![action]));
    statement
}
