//! Snapshots whose checksums are right and whose content cannot be: each is refused by name, before anything is opened
//! for it. The golden snapshot's disk and serial port are not where its configuration says, so whatever opens one of
//! them first says that, and not what is wrong.

use std::fs;

use arch::x86_64::compat;
use hypervisor::{Capabilities, fake::capable, x86_64::CpuidEntry};
use serde_json::{Value, json};
use vm_migration::snapshot::CONFIG;

use super::{
    super::{Request, Verify},
    golden::{Golden, Offering},
};
use crate::{
    error::chain,
    machine::{ClockPolicy, TscFrequency},
};

/// Why it is refused where nothing of its host's is there.
fn refusal(golden: &Golden) -> String {
    chain(&golden.rehearse_on(&Offering::host(golden.cpu.clone())).unwrap_err())
}

#[test]
fn it_is_one_that_can_be_restored_where_its_resources_are() {
    let golden = Golden::unpacked();
    let rehearsal = golden.rehearse(Verify::Full).unwrap();
    assert_eq!((rehearsal.vcpus, rehearsal.edited), (2, vec![]));
    assert_eq!(rehearsal.devices, ["__console", "_disk0", "__rng"]);
    let said = refusal(&golden);
    assert!(said.contains("__serial"), "{said}");
}

#[test]
fn a_newer_format_is_refused_by_its_number_and_its_writer() {
    let golden = Golden::unpacked();
    golden.forge_manifest(|manifest| {
        manifest["format"] = json!(1000);
        manifest["program"] = json!("cumulet 9.0");
        // Whatever else it may have.
        manifest["colour"] = json!("red");
    });
    let said = refusal(&golden);
    assert!(said.contains("snapshot format 1000 (written by cumulet 9.0)"), "{said}");
}

#[test]
fn a_configuration_in_a_list_is_refused_by_the_name_of_its_file() {
    let golden = Golden::unpacked();
    let good = fs::read_to_string(golden.file(CONFIG)).unwrap();
    for text in ["[]", "[ ]", "[[]]", &format!("[{good}]")] {
        fs::write(golden.file(CONFIG), text).unwrap();
        let said = refusal(&golden);
        assert!(
            said.contains(CONFIG) && said.contains(": a list, where an object is expected"),
            "{text}: {said}"
        );
    }
}

#[test]
fn lists_for_structures_are_refused_by_their_place() {
    let golden = Golden::unpacked();
    let good = fs::read_to_string(golden.file(CONFIG)).unwrap();
    for (place, list) in [("/cpus", "cpus"), ("/disks/0", "disks.0"), ("/rng", "rng")] {
        let mut config: Value = serde_json::from_str(&good).unwrap();
        let structure = config.pointer_mut(place).unwrap();
        *structure = structure.as_object().unwrap().values().cloned().collect();
        fs::write(golden.file(CONFIG), config.to_string()).unwrap();
        let said = refusal(&golden);
        let expected = format!("config.json of the snapshot cannot be understood: {list}: a list, where an");
        assert!(said.contains(&expected), "{said}");
    }

    let golden = Golden::unpacked();
    golden.forge_manifest(|manifest| {
        let device = &mut manifest["layout"]["devices"][0];
        *device = device.as_object().unwrap().values().cloned().collect();
    });
    let said = refusal(&golden);
    assert!(said.contains("the layout of the snapshot cannot be understood: devices.0: a list"), "{said}");
}

#[test]
fn a_section_from_the_future_is_refused_by_name() {
    let newest = {
        let golden = Golden::unpacked();
        let mut sections = Vec::new();
        golden.forge_state(|state| sections.clone_from(state));
        sections
    };
    assert_eq!(newest.len(), 17);
    for (at, section) in newest.iter().enumerate() {
        let golden = Golden::unpacked();
        golden.forge_state(|state| state[at]["version"] = json!(section["version"].as_u64().unwrap() + 7));
        let said = refusal(&golden);
        let name = section["id"].as_str().unwrap();
        assert!(said.contains(name) && said.contains("state has version"), "{name}: {said}");
    }
}

#[test]
fn sections_that_are_missing_twice_or_unknown_are_refused_by_name() {
    let golden = Golden::unpacked();
    golden.forge_state(|state| state.retain(|section| section["id"] != "_disk0"));
    assert!(refusal(&golden).contains("_disk0: its state is missing"));

    let golden = Golden::unpacked();
    golden.forge_state(|state| {
        let vcpu = state.iter().find(|section| section["id"] == "__vcpu1").unwrap().clone();
        state.push(vcpu);
    });
    assert!(refusal(&golden).contains("state of __vcpu1: it is there twice"));

    let golden = Golden::unpacked();
    golden.forge_state(|state| {
        let mut more = state.iter().find(|section| section["id"] == "__rtc_cmos").unwrap().clone();
        more["id"] = json!("__flux");
        state.push(more);
    });
    assert!(refusal(&golden).contains("state of __flux: the machine has nothing of that name"));

    let golden = Golden::unpacked();
    golden.forge_state(|state| {
        state.iter_mut().find(|section| section["id"] == "__rng").unwrap()["kind"] = json!("clock");
    });
    assert!(refusal(&golden).contains("__rng: state is of kind \"clock\""));
}

#[test]
fn what_the_hosts_processors_lack_is_refused_by_name() {
    let golden = Golden::unpacked();
    let without = |leaf: u32, change: fn(&mut CpuidEntry)| {
        let mut offered = golden.cpu.clone();
        offered.iter_mut().filter(|entry| entry.leaf == leaf && entry.subleaf == 0).for_each(change);
        let names: Vec<String> =
            compat::missing(&golden.cpu, &offered).iter().map(ToString::to_string).collect();
        let said = chain(&golden.rehearse_on(&Offering::host(offered)).unwrap_err());
        assert!(said.contains(&format!("lack what the guest uses: {}", names.join(", "))), "{said}");
        said
    };
    assert!(without(1, |entry| entry.edx &= !(1 << 26)).ends_with(": sse2"));
    assert!(without(1, |entry| entry.ecx &= !(1 << 13)).ends_with(": cx16"));
    assert!(without(0x8000_0001, |entry| entry.edx &= !(1 << 20)).ends_with(": nx"));
    assert!(without(0, |entry| entry.ebx ^= 1).contains("CPU vendor "));
}

#[test]
fn counters_that_this_host_cannot_have_are_found_out_when_a_restore_is_tried() {
    let golden = Golden::unpacked();
    let host = |tsc_control| Offering::able_to(Capabilities { tsc_control, ..capable() }, golden.cpu.clone());
    let request = |tsc| Request { tsc, ..golden.request(Verify::State) };
    let error = golden.try_out(request(TscFrequency::Saved), &host(false)).unwrap_err();
    assert_eq!(error.code(), "restore-failed");
    let said = chain(&error);
    assert!(
        said.contains("TSC of ") && said.contains("this host's has 1000000 kHz and cannot be scaled"),
        "{said}"
    );
    golden.try_out(request(TscFrequency::Host), &host(false)).unwrap();
    golden.try_out(request(TscFrequency::Saved), &host(true)).unwrap();
}

#[test]
fn clocks_that_cannot_be_set_forward_are_found_out_when_a_restore_is_tried() {
    let golden = Golden::unpacked();
    let advance = || Request { clock: ClockPolicy::Advance, ..golden.request(Verify::State) };
    golden.try_out(advance(), &Offering::host(golden.cpu.clone())).unwrap();
    golden.forge_state(|state| {
        state.iter_mut().find(|section| section["id"] == "__clock").unwrap()["state"]["realtime_ns"] =
            json!(null);
    });
    let said = chain(&golden.try_out(advance(), &Offering::host(golden.cpu.clone())).unwrap_err());
    assert!(said.contains("the snapshot does not say when it was"), "{said}");
    golden.rehearse(Verify::State).unwrap();
}
