//! `cargo xtask demo`: a guest of ours runs on the host's KVM, and the reader sees what happened.
//!
//! The guest is `tests/guest`; its orders are described in docs/test-guest.md. The monitor is started as a
//! user would start it, and nothing is shown that it or the guest did not print.

use std::{fs, path::Path, process::ExitCode, time::Instant};

use crate::{
    kvm,
    process::{Finished, Invocation},
    workspace::Workspace,
};

/// The orders that the guest obeys, and what each is to show.
const ORDERS: [(&str, &str); 5] = [
    ("ping", "the serial port works in both directions"),
    ("fill 0x2000000 64M 7", "64 MiB of memory are written with a pattern, by the guest, in ring 3"),
    ("verify 0x2000000 64M 7", "and read back: every word is what it was"),
    ("tsc", "the time stamp counter, read in ring 3 and in ring 0"),
    ("exit 42", "the guest ends the machine, and its code becomes the exit code"),
];

/// What the last order makes the monitor exit with.
const EXIT_CODE: i32 = 42;

/// The port of the device by which the guest ends the machine.
const DEBUG_EXIT: &str = "0x501";

/// Builds the monitor and the test guest, runs one in the other, and tells what happened.
pub fn run(args: &[String]) -> Result<ExitCode, String> {
    if let Some(arg) = args.first() {
        return Err(format!("demo takes no argument: {arg}"));
    }
    kvm::check()?;
    let workspace = Workspace::find()?;
    build(&workspace)?;
    let serial = workspace.root.join("target/demo-serial.txt");
    let monitor = monitor(&workspace, &serial);
    println!("$ {monitor}\n");
    // What an earlier run left must not be taken for this one's.
    let _ = fs::remove_file(&serial);
    let started = Instant::now();
    let finished = monitor.run();
    let took = started.elapsed();
    let said = fs::read_to_string(&serial).unwrap_or_default();
    tell(&said, &finished);
    judge(&said, &finished)?;
    println!(
        "\nThe guest ended with code {EXIT_CODE}, {} ms after the monitor was started.",
        took.as_millis()
    );
    Ok(ExitCode::SUCCESS)
}

fn build(workspace: &Workspace) -> Result<(), String> {
    println!("building the monitor and the test guest (some minutes the first time) ...");
    for package in ["cumulet", "test-guest"] {
        let built = workspace.cargo().words("build --release -p").arg(package).run();
        if !built.success {
            return Err(built.in_full());
        }
    }
    Ok(())
}

fn monitor(workspace: &Workspace, serial: &Path) -> Invocation {
    let orders: Vec<&str> = ORDERS.iter().map(|(order, _)| *order).collect();
    workspace
        .program(&workspace.root.join("target/release/cumulet").to_string_lossy())
        .words("--kernel target/release/test-guest")
        .arg("--cmdline")
        .arg(format!("orders={}", orders.join(";")))
        .words("--cpus boot=2 --memory size=256M --console off")
        .arg("--serial")
        .arg(format!("file={}", serial.display()))
        .words("--debug-exit")
        .arg(DEBUG_EXIT)
        .arg("--report")
}

/// Shows what the guest printed, each line beside what it is to show, and what the monitor printed.
fn tell(said: &str, finished: &Finished) {
    println!("What the guest was told, and what it answered on its serial port:\n");
    let mut lines = said.lines();
    println!("  {}", lines.next().unwrap_or("(nothing)"));
    for (order, meaning) in ORDERS {
        println!("  > {order:<24}{meaning}");
        if let Some(line) = lines.next() {
            println!("    {line}");
        }
    }
    println!("\nHow the machine was wired, in the monitor's words:\n");
    finished.output.lines().for_each(|line| println!("  {line}"));
}

fn judge(said: &str, finished: &Finished) -> Result<(), String> {
    let replies: Vec<&str> = said.lines().skip(1).collect();
    let refused = replies.iter().find(|reply| !reply.starts_with("ok"));
    match refused {
        Some(reply) => return Err(format!("the guest did not obey: {reply}")),
        // The last order gets no reply.
        None if replies.len() + 1 != ORDERS.len() => {
            return Err(format!("the guest answered {} orders of {}", replies.len(), ORDERS.len() - 1));
        }
        None => {}
    }
    if !replies.contains(&"ok same") {
        return Err("the guest's memory did not keep what was written".to_owned());
    }
    match finished.code {
        Some(EXIT_CODE) => Ok(()),
        _ => Err(finished.story.clone()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "test-guest ready\nok\nok\nok same\nok 1 2\n";

    fn ended(code: i32) -> Finished {
        Finished { success: false, code: Some(code), output: String::new(), story: "ended".to_owned() }
    }

    #[test]
    fn only_a_guest_that_did_everything_is_a_success() {
        assert_eq!(judge(SAID, &ended(EXIT_CODE)), Ok(()));
        assert!(judge(SAID, &ended(1)).is_err());
        assert!(judge("", &ended(EXIT_CODE)).is_err());
        assert!(judge(&SAID.replace("ok same", "ok mismatch"), &ended(EXIT_CODE)).is_err());
        assert!(judge(&SAID.replace("ok 1 2", "err tsc: no"), &ended(EXIT_CODE)).is_err());
    }
}
