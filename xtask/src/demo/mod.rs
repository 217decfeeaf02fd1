//! `cargo xtask demo`: the main job, on the host's own KVM, in seconds. A guest with many devices boots, is saved, is
//! killed, and lives again: once with a commit after each change of its wiring, and once with one commit for all.
//!
//! The guest is `tests/guest` (docs/test-guest.md). The programs are started as a user would start them, every command
//! is shown, and nothing is shown that they or the guest did not print. With `--linux` it is Debian, in the lab.

mod linux;
mod report;
mod vm;

use std::{fs, path::Path, process::ExitCode};

use self::{report::Restored, vm::Vm};
use crate::{kvm, process::Invocation, workspace::Workspace};

/// Disks, and queues of each.
const DISKS: usize = 24;
const DISK_QUEUES: usize = 4;
const DISK_BYTES: u64 = 16 << 20;

/// Where the demonstration keeps its files, below the workspace.
const PLACE: &str = "target/demo";

/// What the guest writes into its memory, and looks for afterwards.
const MEMORY: &str = "0x2000000 64M 7";

/// Builds the programs and the guest, and shows the main job.
pub fn run(args: &[String]) -> Result<ExitCode, String> {
    match args {
        [] => {}
        [linux] if linux == "--linux" => return linux::run(),
        [arg, ..] => return Err(format!("demo takes --linux or nothing: {arg}")),
    }
    kvm::check()?;
    let workspace = Workspace::find()?;
    build(&workspace)?;
    let place = workspace.root.join(PLACE);
    prepare(&place).map_err(|error| format!("{}: {error}", place.display()))?;

    println!(
        "\n1. A guest boots: 4 vCPUs, 1 GiB, {DISKS} disks of {DISK_QUEUES} queues, and drives all of them.\n"
    );
    let mut first = Vm::start(boot(&workspace), &place)?;
    first.ready()?;
    let devices = first.set_up_devices()?;
    first.obey(&format!("fill {MEMORY}"))?;
    let nonce = first.obey("nonce")?;
    let checked = first.obey("vcheck")?;
    println!("     guest: its random number {nonce}; {devices} devices set up; every queue: {checked}");

    println!("\n2. It is paused and saved, and its process is killed.\n");
    let snapshot = place.join("snapshot");
    let remote = |words: &str| {
        workspace.program("target/release/cumulet-remote").words("--api-socket target/demo/api").words(words)
    };
    shown(&remote("pause"))?;
    shown(&remote(&format!("snapshot file://{}", snapshot.display())))?;
    first.kill()?;
    println!("     (killed)\n     {}", stored(&snapshot)?);

    println!("\n3. It lives again, in new processes.\n");
    let mut told = Vec::new();
    for commits in ["each", "once"] {
        let mut vm = Vm::start(restore(&workspace, &snapshot, commits), &place)?;
        let same = vm.obey("nonce")?;
        let verified = vm.obey(&format!("verify {MEMORY}"))?;
        let checked = vm.obey("vcheck")?;
        println!("     guest: its random number {same}; its memory: {verified}; every queue: {checked}\n");
        prove(&nonce, &same, &verified, &checked)?;
        told.push(vm.end()?);
    }
    compare(&told)?;
    println!(
        "\nThe same guest, killed once and restored twice. What each step is: docs/snapshot-restore.md."
    );
    Ok(ExitCode::SUCCESS)
}

fn build(workspace: &Workspace) -> Result<(), String> {
    println!("building the monitor, its client and the test guest (some minutes the first time) ...");
    for package in ["cumulet", "test-guest"] {
        let built = workspace.cargo().words("build --release -p").arg(package).run();
        if !built.success {
            return Err(built.in_full());
        }
    }
    Ok(())
}

/// A directory with nothing in it, whatever was there.
fn clear(place: &Path) -> std::io::Result<()> {
    match fs::remove_dir_all(place) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => fs::create_dir_all(place),
    }
}

/// An empty directory with empty disks.
fn prepare(place: &Path) -> std::io::Result<()> {
    clear(place)?;
    fs::create_dir(place.join("snapshot"))?;
    for disk in 0..DISKS {
        fs::File::create(place.join(format!("disk{disk}")))?.set_len(DISK_BYTES)?;
    }
    Ok(())
}

fn boot(workspace: &Workspace) -> Invocation {
    let mut vm = workspace
        .program("target/release/cumulet")
        .words(
            "--api-socket target/demo/api --kernel target/release/test-guest --cpus boot=4 --memory size=1G",
        )
        .words("--serial socket=target/demo/serial --console off --debug-exit 0x501 --disk");
    for disk in 0..DISKS {
        vm = vm.arg(format!("path={PLACE}/disk{disk},num_queues={DISK_QUEUES},image_type=raw"));
    }
    vm
}

fn restore(workspace: &Workspace, snapshot: &Path, commits: &str) -> Invocation {
    workspace
        .program("target/release/cumulet")
        .arg("--restore")
        .arg(format!("source_url=file://{},resume=on", snapshot.display()))
        .words("--report --restore-commit")
        .arg(commits)
}

/// Runs a command to its end, and shows it.
fn shown(command: &Invocation) -> Result<(), String> {
    println!("   $ {command}");
    let finished = command.run();
    if finished.success { Ok(()) } else { Err(finished.in_full()) }
}

/// What the snapshot takes on the disk.
fn stored(snapshot: &Path) -> Result<String, String> {
    use std::os::unix::fs::MetadataExt;
    let path = snapshot.join("memory-ranges");
    let metadata = fs::metadata(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let (mib, stored) = (metadata.len() >> 20, (metadata.blocks() * 512) >> 20);
    Ok(format!(
        "the snapshot: {stored} MiB stored of {mib} MiB of memory; what the guest never wrote takes no room"
    ))
}

fn prove(nonce: &str, same: &str, verified: &str, checked: &str) -> Result<(), String> {
    let field =
        |name: &str| checked.split_whitespace().find_map(|field| field.strip_prefix(name)).map(str::to_owned);
    if nonce != same {
        return Err(format!("another guest: its random number was {nonce}, and is {same}"));
    }
    if verified != "same" {
        return Err(format!("the guest's memory is not what it was: {verified}"));
    }
    if field("asked=").is_none() || field("asked=") != field("answered=") {
        return Err(format!("not every queue answers: {checked}"));
    }
    Ok(())
}

fn compare(told: &[String]) -> Result<(), String> {
    let read: Vec<Restored> = told.iter().map(|text| Restored::read(text)).collect::<Result<_, _>>()?;
    let [each, once] = read.as_slice() else { return Err("two reports were expected".to_owned()) };
    println!("   What the two restores report (milliseconds):\n");
    println!("     {:<36}{:>12}{:>12}", "", "each", "once");
    println!("     {:<36}{:>12}{:>12}", "commits", each.commits, once.commits);
    println!("     {:<36}{:>12}{:>12}", "calls of KVM in them", each.calls, once.calls);
    for (name, time) in &each.phases {
        let other = once.phases.iter().find(|(other, _)| other == name).map_or("", |(_, time)| time);
        println!("     {name:<36}{time:>12}{other:>12}");
    }
    println!("     {:<36}{:>12}{:>12}", "from the request until it ran", each.total, once.total);
    if once.commits != 1 || each.commits <= once.commits {
        return Err(format!("{} commits and {} were not expected", each.commits, once.commits));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_that_is_none_is_refused() {
        let error = run(&["--windows".to_owned()]).expect_err("there is no such demonstration");
        assert!(error.contains("--windows"), "{error}");
    }

    #[test]
    fn only_the_same_guest_is_a_success() {
        let checked = "asked=97 answered=97 vectors=97 signalled=97 ticks=5";
        assert_eq!(prove("0x1", "0x1", "same", checked), Ok(()));
        assert!(prove("0x1", "0x2", "same", checked).is_err());
        assert!(prove("0x1", "0x1", "mismatch 0x0 is 0x1 want 0x2", checked).is_err());
        assert!(prove("0x1", "0x1", "same", &checked.replace("answered=97", "answered=96")).is_err());
        assert!(prove("0x1", "0x1", "same", "").is_err());
    }
}
