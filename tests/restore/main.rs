//! Restores under conditions that nobody wishes for: snapshots of long ago, damaged ones, hosts that lack something; and
//! how many calls of the kernel one really makes.

mod calls;
mod damage;
mod files;
mod golden;
mod homes;
mod hosts;
mod persistent;
mod states;
mod targets;
mod tools;

use std::fs;

use api_client::Refusal;
use cumulet_tests::monitor::{self, Monitor};
use serde_json::{Value, json};

/// Descriptors and threads of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    threads: usize,
}

impl Held {
    /// Of a process that has answered at least once: until then it may not have taken up the connection.
    fn by(monitor: &mut Monitor) -> Self {
        monitor.api.ping().expect("it answers");
        let count =
            |of: &str| fs::read_dir(format!("/proc/{}/{of}", monitor.pid())).expect("it is alive").count();
        Self { descriptors: count("fd"), threads: count("task") }
    }

    /// Waits until the process holds no more than this: threads that have been told to end take a moment.
    fn is_all_of(self, monitor: &mut Monitor) {
        monitor::until("what was made for a request that failed to be gone", || {
            let now = Self::by(monitor);
            (now.descriptors <= self.descriptors && now.threads <= self.threads).then_some(())
        });
    }
}

/// Has a restore refused, tried and meant, with the same words; what was made for it is gone. Returns the words.
fn refused_alike(monitor: &mut Monitor, held: Held, request: &Value) -> String {
    let mut tried = request.clone();
    tried["dry_run"] = json!(true);
    let [tried, meant] = [&tried, request].map(|request| {
        let refusal = monitor.refused("vm.restore", request);
        held.is_all_of(monitor);
        refusal
    });
    assert_eq!((text(&tried), &tried.code), (text(&meant), &meant.code));
    assert_eq!(meant.code.as_deref(), Some("restore-failed"), "{meant}");
    text(&meant)
}

/// What a refusal says, in one line.
fn text(refusal: &Refusal) -> String {
    refusal.messages.as_ref().expect("it says why").join(": ")
}
