//! Saving what changed since another snapshot, in each way of finding it, beside saving all; and restoring that.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use api_client::{Client, Method, wire::VmSnapshotConfig};
use cumulet_benches::vm::{Result, Shape, Vm, shown};

use super::COW;

/// Memory, what is written of it before the first snapshot, and after, in MiB.
const MEMORY_MIB: u64 = 1024;
const BEFORE_MIB: u64 = 512;
const AFTER_MIB: u64 = 64;

/// How the second snapshot is taken.
const WAYS: [&str; 4] = ["all", "compared", "tracked", "mapped"];

/// Prints a table of each.
pub fn measure(runs: usize, place: &Path) -> Result<()> {
    println!("| {MEMORY_MIB} MiB, {BEFORE_MIB} written, a snapshot, {AFTER_MIB} written | time | bytes |");
    println!("| --- | --- | --- |");
    let mut times = [const { Vec::new() }; WAYS.len()];
    let mut bytes = [0; WAYS.len()];
    let mut restored = [const { Vec::new() }; MODES.len()];
    for run in 0..runs {
        for ((way, times), bytes) in WAYS.iter().zip(&mut times).zip(&mut bytes) {
            let place = Place::new(&place.join(way))?;
            let (time, stored) = save(way, &place)?;
            times.push(time);
            *bytes = stored;
            if *way == "compared" {
                for (mode, times) in MODES.iter().zip(&mut restored) {
                    times.push(restore(&place.second(), mode, &place)?);
                }
            }
            fs::remove_dir_all(&place.0)?;
        }
        eprintln!("differences: run {} of {runs}", run + 1);
    }
    for ((way, times), bytes) in WAYS.iter().zip(&mut times).zip(bytes) {
        println!("| {way} | {} | {bytes} |", shown(times));
    }
    println!("\n| the second on top of the first, restored with | {} |", MODES.join(" | "));
    println!("| --- | --- | --- | --- |");
    let restored: Vec<String> = restored.iter_mut().map(|times| shown(times)).collect();
    println!("| | {} |\n", restored.join(" | "));
    Ok(())
}

const MODES: [&str; 3] = ["cow", "ondemand", "copy"];

/// Where one run is.
struct Place(PathBuf);

impl Place {
    fn new(place: &Path) -> Result<Self> {
        let place = Self(place.to_owned());
        fs::create_dir_all(place.first())?;
        fs::create_dir_all(place.second())?;
        Ok(place)
    }

    fn first(&self) -> PathBuf {
        self.0.join("first")
    }

    fn second(&self) -> PathBuf {
        self.0.join("second")
    }

    fn control(&self) -> PathBuf {
        self.0.join("control")
    }
}

/// Takes both snapshots; returns the time that the second took, and the bytes of memory in it.
fn save(way: &str, place: &Place) -> Result<(Duration, u64)> {
    let shape = Shape { vcpus: 1, memory_mib: MEMORY_MIB, ..Shape::default() };
    let (mut vm, _) = Vm::boot(&COW, &shape, &place.0)?;
    vm.obey(&format!("fill 0x2000000 {BEFORE_MIB}M 7"))?;
    let track = (way == "tracked").then_some(true);
    take(place, &place.first(), None, track)?;
    if way == "mapped" {
        drop(vm);
        vm = Vm::restore(&place.first(), "", Some(&place.control()))?;
    }
    vm.obey(&format!("fill 0x4000000 {AFTER_MIB}M 8"))?;
    let parent = place.first();
    take(place, &place.second(), (way != "all").then_some(&parent), None)
}

fn take(
    place: &Place,
    target: &Path,
    parent: Option<&PathBuf>,
    track: Option<bool>,
) -> Result<(Duration, u64)> {
    let url = |path: &Path| format!("file://{}", path.display());
    let mut said = VmSnapshotConfig::to(url(target));
    said.parent = parent.map(|parent| url(parent));
    said.track_changes = track;
    let mut client = Client::connect(&place.control())?;
    client.pause()?;
    let body = serde_json::to_vec(&said)?;
    let started = Instant::now();
    let answer = client.request(Method::Put, "vm.snapshot", Some(&body), &[])?;
    let took = started.elapsed();
    client.resume()?;
    let report: serde_json::Value = answer.json()?;
    Ok((took, report["memory_bytes"].as_u64().ok_or("no report")?))
}

/// The time from the start of the process until the guest has answered.
fn restore(snapshot: &Path, mode: &str, place: &Place) -> Result<Duration> {
    let _ = fs::remove_file(place.control());
    let started = Instant::now();
    let mut vm = Vm::restore(snapshot, &format!(",memory_restore_mode={mode}"), None)?;
    vm.obey("ping")?;
    let took = started.elapsed();
    vm.end()?;
    Ok(took)
}
