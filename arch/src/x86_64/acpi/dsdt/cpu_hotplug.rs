//! Processor devices and their hotplug.
//!
//! The register block, in memory, all accesses 32 bits wide:
//!
//! | offset | read | write |
//! | --- | --- | --- |
//! | 0 | the selected vCPU | selects a vCPU |
//! | 4 | state of the selected vCPU: [`PRESENT`], [`INSERTED`], [`REMOVE`] | clears [`INSERTED`] and [`REMOVE`] where set; [`EJECT`] takes the vCPU away |
//! | 8 | the next vCPU with [`INSERTED`] or [`REMOVE`], or [`NONE`] | nothing |
//!
//! The machine sets a bit and raises [`event::CPU`](super::event::CPU). The guest's scan method reads
//! the next vCPU with an event, clears it, notifies the device, and goes on until there is none: the
//! work grows with the events, not with the vCPUs.

use acpi_tables::{
    Aml,
    aml::{
        Acquire, And, Arg, BufferData, Device, EISAName, Equal, Field, FieldAccessType, FieldEntry,
        FieldLockRule, FieldUpdateRule, If, Local, Method, MethodCall, Mutex, Name, NotEqual, Notify,
        OpRegion, OpRegionSpace, Path, Release, Return, Store, While, ZERO,
    },
};

use crate::x86_64::acpi::{AcpiConfig, madt, table::Raw};

/// Bytes of the register block.
pub const SIZE: u64 = 12;
/// Offset of the selector.
pub const SELECT: u64 = 0;
/// Offset of the state.
pub const STATE: u64 = 4;
/// Offset of the next vCPU with an event.
pub const NEXT: u64 = 8;

/// The vCPU is there.
pub const PRESENT: u32 = 1 << 0;
/// The vCPU has come and the guest has not seen it.
pub const INSERTED: u32 = 1 << 1;
/// The vCPU is to go and the guest has not been asked.
pub const REMOVE: u32 = 1 << 2;
/// Written by the guest when it has let go of the vCPU.
pub const EJECT: u32 = 1 << 3;

/// No vCPU has an event.
pub const NONE: u32 = u32::MAX;

/// `Notify` values (ACPI 6.5, 5.6.6).
const DEVICE_CHECK: u8 = 1;
const EJECT_REQUEST: u8 = 3;

/// `_STA` of a vCPU that is there.
const WORKING: u8 = 0xf;

/// Waits without end for the mutex of the registers.
const FOREVER: u16 = 0xffff;

pub(super) fn devices(config: &AcpiConfig, address: u64) -> Raw {
    let mut body = Raw::default();
    body.push(&Name::new("_HID".into(), &"ACPI0010"));
    body.push(&Name::new("_CID".into(), &EISAName::new("PNP0A05")));
    body.push(&OpRegion::new("CREG".into(), OpRegionSpace::SystemMemory, &address, &SIZE));
    body.push(&Field::new(
        "CREG".into(),
        FieldAccessType::DWord,
        FieldLockRule::NoLock,
        FieldUpdateRule::WriteAsZeroes,
        vec![
            FieldEntry::Named(*b"CSEL", 32),
            FieldEntry::Named(*b"CSTT", 32),
            FieldEntry::Named(*b"CNXT", 32),
        ],
    ));
    body.push(&Mutex::new("CLCK".into(), 0));
    body.push(&status());
    body.push(&eject());
    body.push(&scan());

    let vcpus = config.topology.vcpus();
    let mut notify = Raw::default();
    for vcpu in 0..vcpus {
        let boot_processor = vcpu == 0;
        body.push(&processor(vcpu, config.topology.apic_id(vcpu), !boot_processor));
        let name = device_name(vcpu);
        let device = Path::new(&name);
        notify.push(&If::new(&Equal::new(&Arg(0), &vcpu), vec![&Notify::new(&device, &Arg(1))]));
    }
    body.push(&Method::new("CNTF".into(), 2, true, vec![&notify]));

    let mut devices = Raw::default();
    devices.push(&Device::new("CPUS".into(), vec![&body]));
    devices
}

/// `CSTA`: the `_STA` of a vCPU.
fn status() -> Raw {
    let state = Path::new("CSTT");
    locked(
        "CSTA",
        1,
        Some(&Local(0)),
        &[
            &Store::new(&Path::new("CSEL"), &Arg(0)),
            &Store::new(&Local(0), &ZERO),
            &If::new(&And::new(&ZERO, &state, &PRESENT), vec![&Store::new(&Local(0), &WORKING)]),
        ],
    )
}

/// `CEJ0`: the guest has let go of a vCPU.
fn eject() -> Raw {
    locked(
        "CEJ0",
        1,
        None,
        &[&Store::new(&Path::new("CSEL"), &Arg(0)), &Store::new(&Path::new("CSTT"), &EJECT)],
    )
}

/// `CSCN`: tells the guest of every vCPU that came or is to go.
fn scan() -> Raw {
    let (next, select, state) = (Path::new("CNXT"), Path::new("CSEL"), Path::new("CSTT"));
    let tell = |bit: u32, value: u8| {
        let mut statement = Raw::default();
        statement.push(&If::new(
            &And::new(&ZERO, &Local(1), &bit),
            vec![&MethodCall::new("CNTF".into(), vec![&Local(0), &value])],
        ));
        statement
    };
    locked(
        "CSCN",
        0,
        None,
        &[
            &Store::new(&Local(0), &next),
            &While::new(
                &NotEqual::new(&Local(0), &NONE),
                vec![
                    &Store::new(&select, &Local(0)),
                    &Store::new(&Local(1), &state),
                    &Store::new(&state, &(INSERTED | REMOVE)),
                    &tell(INSERTED, DEVICE_CHECK),
                    &tell(REMOVE, EJECT_REQUEST),
                    &Store::new(&Local(0), &next),
                ],
            ),
        ],
    )
}

/// A method that holds the mutex of the registers.
fn locked(name: &str, arguments: u8, result: Option<&dyn Aml>, statements: &[&dyn Aml]) -> Raw {
    let mut body = Raw::default();
    body.push(&Acquire::new("CLCK".into(), FOREVER));
    for statement in statements {
        body.push(*statement);
    }
    body.push(&Release::new("CLCK".into()));
    if let Some(result) = result {
        body.push(&Return::new(result));
    }
    let mut method = Raw::default();
    method.push(&Method::new(name.into(), arguments, true, vec![&body]));
    method
}

fn device_name(vcpu: u32) -> String {
    // 8192 vCPUs need four digits less one: C000 to CFFF, then D000 to DFFF.
    let letter = if vcpu < 0x1000 { 'C' } else { 'D' };
    format!("{letter}{:03X}", vcpu & 0xfff)
}

fn processor(vcpu: u32, apic_id: u32, removable: bool) -> Raw {
    let mut body = Raw::default();
    body.push(&Name::new("_HID".into(), &"ACPI0007"));
    body.push(&Name::new("_UID".into(), &vcpu));
    let status = MethodCall::new("CSTA".into(), vec![&vcpu]);
    body.push(&Method::new("_STA".into(), 0, false, vec![&Return::new(&status)]));
    let madt = BufferData::new(madt::present_processor(vcpu, apic_id));
    body.push(&Name::new("_MAT".into(), &madt));
    if removable {
        let eject = MethodCall::new("CEJ0".into(), vec![&vcpu]);
        body.push(&Method::new("_EJ0".into(), 1, false, vec![&eject]));
    }
    let mut device = Raw::default();
    device.push(&Device::new(Path::new(&device_name(vcpu)), vec![&body]));
    device
}
