//! Snapshots of the VM, and the VM out of a snapshot.

use std::{collections::BTreeMap, os::fd::OwnedFd, sync::Arc, thread, time::Duration};

use api_client::wire::{
    self, BackgroundFill, GenerationId, JobKind, MemoryRestoreMode, RestoreClock, RestoreCommit, RestoreTsc,
    RestoreVerify,
};

use devices::{GuestRequest, RequestSink};

use super::{
    check,
    command::{Answer, Restore},
    error::CommandError,
    life::{Booted, Life, Outcome, Stored},
};
use crate::{
    config::{
        self, VmConfig,
        wire::{CONSOLE_ID, IdCounter},
    },
    error::messages,
    jobs::Job,
    machine::{
        Blank, BuildError, ClockPolicy, Commits, TscFrequency,
        attach::{net::MadeTap, terminal::Existing},
        consoles::Seat,
        platform::SERIAL_ID,
    },
    memory::{
        background::{Fill, Watch},
        content::MemoryMode,
        demand::OnFailure,
    },
    snapshot::{self, Opened, Request, RestoreError, RestoreReport, Revived, SaveRequest, Verify},
};

impl Life {
    /// Saves the paused VM into a directory. It stays paused.
    pub(super) fn snapshot(&mut self, said: &wire::VmSnapshotConfig) -> Outcome {
        self.events().tell("vm", "snapshotting");
        let booted = self.booted.as_mut().ok_or(CommandError::NotRunning)?;
        let stored = self.stored.as_ref().ok_or(CommandError::NotRunning)?;
        if !booted.paused {
            return Err(CommandError::SnapshotWhileRunning);
        }
        let request = SaveRequest {
            target: snapshot::directory(&said.destination_url)?,
            parent: said.parent.as_deref().map(snapshot::directory).transpose()?,
            track: said.track_changes,
        };
        let job = self.jobs.begin(JobKind::Snapshot, "state");
        let saved =
            snapshot::save(&mut booted.machine, &stored.said, &booted.config, &request, job.progress());
        end(job, &saved);
        let report = saved?;
        log::info!("{report}");
        let root = format!("{:#010x}", report.root);
        let (bytes, ns) = (report.memory_bytes.to_string(), report.total_ns.to_string());
        let mut properties = vec![("root", root), ("memory_bytes", bytes), ("total_ns", ns)];
        if let Some(difference) = &report.difference {
            let ways = difference.ways.iter().map(|zone| format!("{}={}", zone.zone, zone.way));
            properties.push(("parent_root", format!("{:#010x}", difference.parent_root)));
            properties.push(("changed_bytes", difference.changed_bytes.to_string()));
            properties.push(("changes", ways.collect::<Vec<_>>().join(",")));
        }
        let properties: Vec<_> = properties.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.events().tell_with("vm", "snapshotted", &properties);
        Ok(Answer::Saved(Box::new(report)))
    }

    /// Makes the VM that a snapshot holds. It is paused, or runs if that was asked for.
    pub(super) fn restore(&mut self, restore: Restore) -> Outcome {
        if !restore.said.dry_run {
            self.events().tell("vm", "restoring");
        }
        if self.stored.is_some() {
            return Err(CommandError::AlreadyCreated);
        }
        if restore.said.dry_run {
            return self.rehearse(restore);
        }
        let resume = restore.said.resume;
        let job = self.jobs.begin(JobKind::Restore, "read state");
        let revived = self.revive(restore, &job);
        if revived.is_err() {
            // Whatever was opened for it is closed again: the next request finds nothing of this one.
            self.host.consoles.give_up();
            while self.host.requests.take().is_some() {}
        }
        end(job, &revived);
        let Revived { mut machine, said, config, ids, mut report, mut phases } = revived?;
        if resume {
            phases.time("run processors", || machine.resume_processors());
            report.running = true;
            report.total_ns = phases.total_ns();
            phases.time("run devices", || machine.resume_devices_beside());
            report.phases = phases.done().to_vec();
        }
        self.stored = Some(Stored { said, ids });
        self.name_ptys();
        self.board.gauge(Some(&machine));
        (self.on_boot)(&machine, Some(&report));
        self.booted = Some(Booted { machine, config, paused: !resume });
        self.tell_restored(&report);
        if resume {
            self.events().tell("vm", "resuming");
            self.events().tell("vm", "resumed");
        }
        Ok(Answer::Restored(Box::new(report)))
    }

    /// Finds out what a restore would do.
    fn rehearse(&self, restore: Restore) -> Outcome {
        let rehearsal = open(restore)?.check(&self.host, IdCounter::default())?.rehearse(&self.host)?;
        Ok(Answer::Rehearsed(Box::new(rehearsal)))
    }

    fn revive(&self, restore: Restore, job: &Job) -> Result<Revived, CommandError> {
        thread::scope(|scope| self.revive_on(Blank::begin(scope, &*self.host.hypervisor), restore, job))
    }

    fn revive_on(&self, blank: Blank<'_>, restore: Restore, job: &Job) -> Result<Revived, CommandError> {
        let opened = open(restore)?;
        let (serial, console) =
            VmConfig::consoles_from_wire(&opened.said).map_err(CommandError::ConsoleConfig)?;
        let console_id = opened.said.console.id.clone().unwrap_or_else(|| CONSOLE_ID.to_owned());
        let checked = opened.check_with(&self.host, IdCounter::default(), || blank.supported())?;
        for (seat, id, target) in
            [(Seat::Serial, SERIAL_ID, serial), (Seat::Virtio, console_id.as_str(), console)]
        {
            let prepared = self.host.consoles.prepare(seat, &target, Existing::Append);
            prepared
                .map_err(|source| BuildError::Attach { id: id.to_owned(), source })
                .map_err(RestoreError::from)?;
        }
        let (requests, events) = (Arc::clone(&self.host.requests), self.host.events.clone());
        let on_failure: OnFailure = Arc::new(move |error| {
            let error = crate::error::chain(error);
            log::error!("the guest's memory is not what was saved, or cannot be had: {error}");
            events.tell_with("vm", "memory-failed", &[("error", &error)]);
            requests.request(GuestRequest::Failed);
        });
        let watch = Watch { on_failure, jobs: self.jobs.clone(), events: self.host.events.clone() };
        Ok(checked.revive(&self.host, blank, job.progress(), watch)?)
    }

    /// Tells everybody how it went.
    fn tell_restored(&self, report: &RestoreReport) {
        log::info!("{report}");
        for MadeTap { id, tap } in &report.made_taps {
            log::warn!("{id}: tap {} was not there and was made", tap.as_deref().unwrap_or_default());
        }
        self.board.remember(report);
        let commit = &report.commit;
        let modes: Vec<String> =
            report.memory.iter().map(|zone| format!("{}={}", zone.zone, zone.mode)).collect();
        let mut properties = vec![
            ("memory".to_owned(), modes.join(",")),
            ("total_ns".to_owned(), report.total_ns.to_string()),
            ("commits".to_owned(), report.totals.commits.to_string()),
            ("kernel_calls".to_owned(), report.totals.operations.kernel_calls().to_string()),
            ("doorbells_late".to_owned(), commit.doorbells_late.to_string()),
            ("commit_ns".to_owned(), commit.total_ns.to_string()),
        ];
        properties.extend(report.phases.iter().map(|phase| {
            let name = phase.name.replace(' ', "_");
            (format!("phase_{name}_ns"), phase.ns.to_string())
        }));
        match serde_json::to_string(&wire::RestoreReport::from(report.clone())) {
            Ok(report) => properties.push(("report".to_owned(), report)),
            Err(error) => log::error!("the report of the restore cannot be told: {error}"),
        }
        let properties: Vec<(&str, &str)> =
            properties.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        self.events().tell_with("vm", "restored", &properties);
    }
}

/// Reads a snapshot, and makes its configuration what the request has it be.
fn open(restore: Restore) -> Result<Opened, CommandError> {
    let Restore { said, descriptors } = restore;
    check::restore(&said)?;
    let memory = match said.memory_restore_mode {
        None => None,
        Some(MemoryRestoreMode::Copy) => Some(MemoryMode::Copy),
        Some(MemoryRestoreMode::Cow) => Some(MemoryMode::Cow),
        Some(MemoryRestoreMode::OnDemand) => Some(MemoryMode::OnDemand),
    };
    let verify = said.verify.map(|verify| match verify {
        RestoreVerify::Off => Verify::Off,
        RestoreVerify::State => Verify::State,
        RestoreVerify::Full => Verify::Full,
    });
    let fill = match (said.background_fill, said.fill_bytes_per_second) {
        (None, _) => None,
        (Some(BackgroundFill::WorkingSet), _) => Some(Fill::WorkingSet),
        (Some(BackgroundFill::All), Some(rate)) => Some(Fill::All { rate }),
        (Some(_), _) => Some(Fill::None),
    };
    let source = snapshot::directory(&said.source_url)?;
    let mut opened = Opened::open(Request {
        source,
        memory,
        verify,
        fill,
        record: said.record_working_set_ms.map(|time| Duration::from_millis(time.get().into())),
        prefault: said.prefault,
        commits: match said.commit {
            None | Some(RestoreCommit::Once) => Commits::Once,
            Some(RestoreCommit::Each) => Commits::Each,
        },
        clock: match said.clock {
            None | Some(RestoreClock::Wall) => ClockPolicy::Wall,
            Some(RestoreClock::Frozen) => ClockPolicy::Frozen,
            Some(RestoreClock::Advance) => ClockPolicy::Advance,
        },
        tsc: match said.tsc {
            None | Some(RestoreTsc::Saved) => TscFrequency::Saved,
            Some(RestoreTsc::Host) => TscFrequency::Host,
        },
        new_generation: said.generation_id != Some(GenerationId::Keep),
    })?;
    update_zones(&mut opened.said, &said.zone_updates)?;
    opened.lay_over(&said.overrides)?;
    // Last: a device may have been given a tap instead.
    hand_over(&mut opened.said, &said, descriptors)?;
    Ok(opened)
}

fn end<T, E: std::error::Error>(job: Job, result: &Result<T, E>) {
    job.end(result.as_ref().map(|_| ()).map_err(|error| messages(error)));
}

/// Gives network devices the descriptors that came with the request, in its order.
fn hand_over(
    said: &mut wire::VmConfig,
    request: &wire::RestoreConfig,
    descriptors: Vec<OwnedFd>,
) -> Result<(), CommandError> {
    let announced = check::announced(request);
    if announced != descriptors.len() {
        return Err(CommandError::Descriptors { announced, received: descriptors.len() });
    }
    if request.vfio_fds.as_ref().is_some_and(|devices| !devices.is_empty()) {
        return Err(CommandError::Unavailable("VFIO: vfio_fds"));
    }
    // Behind those of network devices there is an iommufd, if there are devices of the host; with none, nobody
    // needs it.
    let mut descriptors = descriptors.into_iter().map(Arc::new);
    let mut given: BTreeMap<&str, Vec<Arc<OwnedFd>>> = BTreeMap::new();
    for net in request.net_fds.iter().flatten() {
        given.insert(&net.id, descriptors.by_ref().take(net.num_fds).collect());
    }
    let wrong = |why: String| Err(CommandError::Request(format!("net_fds: {why}")));
    for net in said.net.iter_mut().flatten() {
        let id = net.id.as_deref().unwrap_or_default();
        let saved = net.fds.as_ref().map_or(0, Vec::len);
        match given.remove(id) {
            Some(now) if saved > 0 && now.len() != saved => {
                return wrong(format!("{id} had {saved} descriptors, {} are given", now.len()));
            }
            Some(now) => {
                // Whoever opened the tap has set it up.
                let laid_over = request.overrides.iter().find(|laid_over| laid_over.id == id);
                let tap = laid_over.and_then(|laid_over| laid_over.tap.as_ref().map(|_| "tap"));
                let mac = laid_over.and_then(|laid_over| laid_over.host_mac.map(|_| "host_mac"));
                if let Some(key) = tap.or(mac) {
                    return wrong(format!("{id} is given descriptors, and overrides have a {key} for it"));
                }
                net.tap = None;
                net.fds = Some(vec![-1; now.len()]);
                net.descriptors = wire::Descriptors(now);
            }
            None if saved > 0 => {
                let why = "none is given, and no tap in their place (overrides)";
                return wrong(format!("{id} had {saved} descriptors, {why}"));
            }
            None => {}
        }
    }
    for id in given.keys() {
        log::warn!("net_fds: the snapshot has no network device {id}");
    }
    Ok(())
}

/// Lets memory zones come from other nodes of the host.
fn update_zones(said: &mut wire::VmConfig, updates: &[wire::ZoneUpdate]) -> Result<(), CommandError> {
    for update in updates {
        let id = &update.id;
        let zone = config::wire::memory_zone(&mut said.memory, id)
            .map_err(|why| CommandError::Request(format!("zone_updates: {id}: {why}")))?
            .ok_or_else(|| CommandError::UnknownZone(id.clone()))?;
        zone.host_numa_node = Some(update.host_numa_node);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use serde_json::{Value, json};

    use super::*;

    fn descriptors(count: usize) -> Vec<OwnedFd> {
        (0..count).map(|_| std::fs::File::open("/dev/null").unwrap().into()).collect()
    }

    /// What two network devices that were saved with descriptors, one with one pair of queues and one with
    /// two, are given.
    fn given(request: Value, descriptors: Vec<OwnedFd>) -> Result<Vec<Vec<i32>>, CommandError> {
        let mut said: wire::VmConfig = serde_json::from_value(json!({
            "net": [{ "id": "a", "fds": [7] }, { "id": "b", "fds": [8, 9], "num_queues": 4 }, { "id": "tap" }],
        }))
        .unwrap();
        hand_over(&mut said, &serde_json::from_value(request).unwrap(), descriptors)?;
        let nets = said.net.iter().flatten();
        assert!(nets.clone().all(|net| net.fds.as_ref().map_or(0, Vec::len) == net.descriptors.0.len()));
        Ok(nets.map(|net| net.descriptors.0.iter().map(AsRawFd::as_raw_fd).collect()).collect())
    }

    fn request(more: Value) -> Value {
        let mut request = json!({
            "source_url": "file:///s",
            "net_fds": [{ "id": "b", "num_fds": 2 }, { "id": "a", "num_fds": 1 }],
        });
        request.as_object_mut().unwrap().append(&mut more.as_object().unwrap().clone());
        request
    }

    #[test]
    fn descriptors_go_to_devices_in_the_order_of_the_request() {
        for (more, behind) in
            [(json!({}), 0), (json!({ "vfio_fds": null }), 0), (json!({ "vfio_fds": [] }), 1)]
        {
            let opened = descriptors(3 + behind);
            let numbers: Vec<i32> = opened.iter().map(AsRawFd::as_raw_fd).collect();
            let expected = [vec![numbers[2]], vec![numbers[0], numbers[1]], Vec::new()];
            assert_eq!(given(request(more), opened).unwrap(), expected);
        }
    }

    #[test]
    fn descriptors_are_as_many_as_were_announced() {
        for (more, announced) in
            [(json!({}), 3), (json!({ "vfio_fds": [] }), 4), (json!({ "vfio_fds": [{ "id": "v" }] }), 5)]
        {
            for received in (0..7).filter(|received| *received != announced) {
                match given(request(more.clone()), descriptors(received)) {
                    Err(CommandError::Descriptors { announced: said, received: came }) => {
                        assert_eq!((said, came), (announced, received));
                    }
                    other => panic!("{received} of {announced}: {other:?}"),
                }
            }
        }
        // The number is right, and there is nothing that could take them.
        let refused = given(request(json!({ "vfio_fds": [{ "id": "v" }] })), descriptors(5)).unwrap_err();
        assert!(matches!(refused, CommandError::Unavailable(what) if what.contains("VFIO")), "{refused}");
    }

    #[test]
    fn a_tap_that_was_named_is_replaced_by_descriptors_and_not_both_are_given() {
        let net_fds = json!([
            { "id": "a", "num_fds": 1 }, { "id": "b", "num_fds": 2 }, { "id": "tap", "num_fds": 1 },
        ]);
        let opened = descriptors(4);
        let numbers: Vec<i32> = opened.iter().map(AsRawFd::as_raw_fd).collect();
        let expected = [vec![numbers[0]], vec![numbers[1], numbers[2]], vec![numbers[3]]];
        assert_eq!(given(request(json!({ "net_fds": net_fds })), opened).unwrap(), expected);
        for (key, value) in [("tap", "tap0"), ("host_mac", "2e:00:00:00:00:01")] {
            let overrides = json!([{ "id": "tap", key: value }]);
            let said = request(json!({ "net_fds": net_fds, "overrides": overrides }));
            let refused = given(said, descriptors(4)).unwrap_err().to_string();
            let expected = format!("net_fds: tap is given descriptors, and overrides have a {key} for it");
            assert_eq!(refused, expected);
        }
    }

    #[test]
    fn memory_comes_from_another_node() {
        let updates = |id: &str| vec![wire::ZoneUpdate { id: id.into(), host_numa_node: 1 }];
        let mut zones: wire::VmConfig = serde_json::from_value(json!({
            "memory": { "size": 0, "zones": [{ "id": "z", "size": 4096 }] },
        }))
        .unwrap();
        update_zones(&mut zones, &updates("z")).unwrap();
        assert_eq!(zones.memory.zones.as_ref().unwrap()[0].host_numa_node, Some(1));
        let error = update_zones(&mut zones, &updates("mem0")).unwrap_err();
        assert!(matches!(error, CommandError::UnknownZone(id) if id == "mem0"));
        let mut plain: wire::VmConfig =
            serde_json::from_value(json!({ "memory": { "size": 4096, "shared": true } })).unwrap();
        update_zones(&mut plain, &updates("mem0")).unwrap();
        let zone = &plain.memory.zones.as_ref().unwrap()[0];
        assert_eq!((zone.id.as_str(), zone.host_numa_node, zone.shared), ("mem0", Some(1), true));
        plain = wire::VmConfig::default();
        plain.memory.hotplug_size = Some(4096);
        let error = update_zones(&mut plain, &updates("mem0")).unwrap_err().to_string();
        assert!(error.starts_with("zone_updates: mem0: ") && error.contains("ACPI"), "{error}");
    }

    #[test]
    fn a_device_has_as_many_descriptors_as_it_had() {
        for (nets, expected) in [
            (json!([{ "id": "a", "num_fds": 1 }]), "b had 2 descriptors, none is given"),
            (json!([{ "id": "a", "num_fds": 1 }, { "id": "b", "num_fds": 1 }]), "b had 2 descriptors, 1 are"),
        ] {
            let count = nets.as_array().unwrap().len();
            let refused = given(request(json!({ "net_fds": nets })), descriptors(count)).unwrap_err();
            assert!(refused.to_string().contains(expected), "{refused}");
        }
    }
}
