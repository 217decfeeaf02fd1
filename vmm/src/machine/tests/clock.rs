//! What the real-time clock of a restored machine shows, by each policy.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use hypervisor::{VmOptions, x86_64::VmClock};
use serde_json::{Value, json, value::to_raw_value};
use vm_migration::Section;

use super::Bench;
use crate::{
    machine::{Beside, ClockPolicy, Commits, Machine, MachineState, Restored, TscFrequency},
    memory::GuestMemory,
    phases::Phases,
};

const HOUR: Duration = Duration::from_secs(3600);

/// How far the real-time clock of a saved machine is ahead of the host's, in nanoseconds.
fn ahead_ns(sections: &[Section]) -> i64 {
    let section = sections.iter().find(|section| section.id == "__rtc_cmos").unwrap();
    section.content::<Value>().unwrap()["offset_ns"].as_i64().unwrap()
}

/// Restores a machine that was paused an hour ago, and saves it.
fn an_hour_later(bench: &Bench, mut sections: Vec<Section>, policy: ClockPolicy) -> Vec<Section> {
    let config = bench.config(json!({}));
    let paused = (SystemTime::now() - HOUR).duration_since(UNIX_EPOCH).unwrap();
    let realtime_ns = Some(u64::try_from(paused.as_nanos()).unwrap());
    let clock = VmClock { guest_ns: 1, realtime_ns, host_tsc: None };
    for section in sections.iter_mut().filter(|section| section.id == "__clock") {
        section.state = to_raw_value(&clock).unwrap().into();
    }
    let sections: BTreeMap<_, _> =
        sections.into_iter().map(|section| (section.id.clone(), section)).collect();
    let restored = Restored {
        beside: Beside::nobody(),
        layout: bench.boot(json!({})).unwrap().layout().clone(),
        memory: GuestMemory::map(&config.memory, &()).unwrap(),
        flash: None,
        state: MachineState::new(sections),
        supported: bench.host.hypervisor.supported_cpuid().unwrap(),
        commits: Commits::Once,
        clock: policy,
        tsc: TscFrequency::Saved,
        vm: bench.host.hypervisor.create_vm(&VmOptions::default()).unwrap(),
    };
    let machine = Machine::restore(&config, &bench.host, restored, &mut Phases::begin()).unwrap();
    machine.save().unwrap().0
}

#[test]
fn it_stands_still_if_all_clocks_do_and_stays_behind() {
    let bench = Bench::new();
    let (sections, _) = bench.boot(json!({})).unwrap().save().unwrap();
    assert_eq!(ahead_ns(&sections), 0);
    let hour = i64::try_from(HOUR.as_nanos()).unwrap();
    let wall = an_hour_later(&bench, sections.clone(), ClockPolicy::Wall);
    assert_eq!(ahead_ns(&wall), 0);
    let frozen = an_hour_later(&bench, sections, ClockPolicy::Frozen);
    // A test may take a while.
    let behind = -ahead_ns(&frozen);
    assert!((hour..2 * hour).contains(&behind), "{behind}");
    let later = an_hour_later(&bench, frozen.clone(), ClockPolicy::Wall);
    assert_eq!(-ahead_ns(&later), behind);
    let still = an_hour_later(&bench, frozen, ClockPolicy::Frozen);
    assert!((behind + hour..behind + 2 * hour).contains(&-ahead_ns(&still)));
}
