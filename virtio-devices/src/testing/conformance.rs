//! What every virtio device passes, whatever it does: `conformance!(NAME, make: FN, drive: FN)`.
//!
//! `make` builds a device as at power-on; `drive` lets the guest use it for a while, so that there is
//! something to save.

use devices::{Device, Persist};
use serde_json::Value;

use super::machine::Machine;
use crate::{device::VirtioDevice, features};

pub(crate) type Make = fn() -> Box<dyn VirtioDevice>;
pub(crate) type Drive = fn(&mut Machine);

macro_rules! conformance {
    ($name:ident, make: $make:path, drive: $drive:path) => {
        mod $name {
            use super::*;
            use crate::testing::conformance as suite;

            #[test]
            fn pause_is_idempotent() {
                suite::pause_is_idempotent($make, $drive);
            }

            #[test]
            fn saved_loaded_and_saved_is_the_same() {
                suite::saved_loaded_and_saved_is_the_same($make, $drive);
            }

            #[test]
            fn reset_equals_fresh() {
                suite::reset_equals_fresh($make, $drive);
            }

            #[test]
            fn damaged_states_are_refused() {
                suite::damaged_states_are_refused($make, $drive);
            }

            #[test]
            fn a_restored_device_serves_without_a_kick() {
                suite::a_restored_device_goes_on($make, $drive);
            }

            #[test]
            fn junk_in_every_register_does_no_harm() {
                suite::junk_in_every_register_does_no_harm($make);
            }
        }
    };
}

pub(crate) use conformance;

fn used(make: Make, drive: Drive) -> Machine {
    let mut machine = Machine::new(make());
    drive(&mut machine);
    machine
}

pub(crate) fn pause_is_idempotent(make: Make, drive: Drive) {
    let machine = used(make, drive);
    let once = machine.save();
    assert_eq!(machine.save(), once);
    machine.resume();
    machine.resume();
    assert_eq!(machine.save(), once);
    // Never activated.
    let fresh = Machine::new(make());
    let once = fresh.save();
    assert_eq!(fresh.save(), once);
}

pub(crate) fn saved_loaded_and_saved_is_the_same(make: Make, drive: Drive) {
    for machine in [used(make, drive), Machine::new(make())] {
        let saved = machine.save();
        let restored = Machine::restore(&machine, make(), &saved).unwrap();
        assert_eq!(restored.function.lock().save_section("dev0").map(text).unwrap(), saved);
        assert_eq!(restored.save(), saved, "after a pause that had nothing to do");
        let doorbells = restored.vm.wiring_state().doorbells.len();
        assert_eq!(doorbells, 0, "no doorbell is registered by a restore");
        restored.resume();
        assert_eq!(restored.save(), saved, "after running with nothing to do");
    }
}

pub(crate) fn reset_equals_fresh(make: Make, drive: Drive) {
    let machine = used(make, drive);
    machine.function.lock().reset();
    let fresh = Machine::new(make());
    fresh.function.lock().reset();
    let mut reset: Value = serde_json::from_str(&machine.save()).unwrap();
    let mut expected: Value = serde_json::from_str(&fresh.save()).unwrap();
    for state in [&mut reset, &mut expected] {
        // Counts what changed; a driver compares it with itself only.
        state["state"]["config_generation"] = Value::Null;
    }
    assert_eq!(reset, expected);
}

pub(crate) fn damaged_states_are_refused(make: Make, drive: Drive) {
    let machine = used(make, drive);
    let saved: Value = serde_json::from_str(&machine.save()).unwrap();
    let mut paths = Vec::new();
    collect(&saved["state"], &mut vec!["state".into()], &mut paths);
    assert!(paths.len() > 30, "only {} fields", paths.len());
    let load = |state: &Value| Machine::restore(&machine, make(), &state.to_string()).err();
    for path in &paths {
        let mut wrong = saved.clone();
        *at(&mut wrong, path) = Value::String("x".into());
        if !at(&mut saved.clone(), path).is_string() {
            assert!(load(&wrong).is_some(), "{path:?} as text was accepted");
        }
        let mut missing = saved.clone();
        let (last, parent) = path.split_last().unwrap();
        if let Value::Object(fields) = at(&mut missing, parent) {
            fields.remove(last);
            assert!(load(&missing).is_some(), "{path:?} missing was accepted");
            let mut more = saved.clone();
            at(&mut more, parent)["surprise"] = Value::Bool(true);
            assert!(load(&more).is_some(), "an unknown field in {parent:?} was accepted");
        } else if let Value::Array(elements) = at(&mut missing, parent) {
            elements.pop();
            // A list whose length is free is accepted; it must not panic.
            let _ = load(&missing);
        }
        for number in [0, 1, 2, 3, 0x7fff, 0xffff, 0xffff_ffff, u64::MAX, 1 << 63] {
            let mut wild = saved.clone();
            if at(&mut wild, path).is_number() {
                *at(&mut wild, path) = number.into();
                // Accepted or refused, and running if accepted.
                if let Ok(machine) = Machine::restore(&machine, make(), &wild.to_string()) {
                    machine.resume();
                }
            }
        }
    }
}

pub(crate) fn a_restored_device_goes_on(make: Make, drive: Drive) {
    let machine = used(make, drive);
    let saved = machine.save();
    // Armed at none, some and all of the doorbells.
    for limit in 0..3 {
        let mut restored = Machine::restore(&machine, make(), &saved).unwrap();
        restored.resume();
        restored.arm_late(limit);
        // A guest that resets it and drives it again finds a working device.
        drive(&mut restored);
    }
}

pub(crate) fn junk_in_every_register_does_no_harm(make: Make) {
    let mut machine = Machine::new(make());
    let mut seed = 0x1234_5678_9abc_def0u64;
    let mut random = move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    };
    // Every offset in every width, with and without a device that is active.
    for wanted in
        [None, Some(0), Some(features::RING_PACKED | features::RING_EVENT_IDX | features::RING_RESET)]
    {
        if let Some(wanted) = wanted {
            machine.start(wanted, 16);
        }
        for offset in (0..0x80).chain(0xff8..0x1008).chain(0x1ff8..0x2080).chain(0x2ff8..0x3010) {
            for width in [1, 2, 4, 8] {
                let mut data = [0; 8];
                machine.try_read(offset, &mut data[..width]);
                for value in [random(), random() & 0x0f, 0, u64::MAX] {
                    // A status of 0 would end the test of the active device early.
                    if !(offset <= 20 && offset + width as u64 > 20) {
                        machine.try_write(offset, &value.to_le_bytes()[..width]);
                    }
                }
            }
        }
        for _ in 0..2000 {
            let value = random();
            let offset = random() % 0x6000;
            let width = [1, 2, 4, 8][usize::try_from(random() % 4).unwrap()];
            machine.try_write(offset, &value.to_le_bytes()[..width]);
            let offset = u16::try_from(random() % 256).unwrap() & !3;
            machine.try_config(offset, &value.to_le_bytes()[..4]);
        }
        machine.try_config(4, &6u32.to_le_bytes());
        machine.place_bar();
        machine.set_status(0);
        assert_eq!(machine.status(), 0);
    }
}

fn text(section: vm_migration::Section) -> String {
    serde_json::to_string(&section).unwrap()
}

/// Every path to a value.
fn collect(value: &Value, path: &mut Vec<String>, paths: &mut Vec<Vec<String>>) {
    let children: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), value)).collect(),
        // Elements are alike: the first three will do.
        Value::Array(elements) => {
            elements.iter().take(3).enumerate().map(|(at, value)| (at.to_string(), value)).collect()
        }
        _ => Vec::new(),
    };
    for (name, child) in children {
        path.push(name);
        paths.push(path.clone());
        collect(child, path, paths);
        path.pop();
    }
}

fn at<'v>(value: &'v mut Value, path: &[String]) -> &'v mut Value {
    path.iter().fold(value, |value, step| match value {
        Value::Array(elements) => &mut elements[step.parse::<usize>().unwrap()],
        other => &mut other[step.as_str()],
    })
}
