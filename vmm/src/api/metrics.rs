//! What Prometheus reads.

use std::fmt::Write as _;

use api_client::wire::{JobInfo, JobState, VmState};

use devices::device::QueueCount;

use super::{Vmm, http::Response};
use crate::control::CommandError;

/// The media type of the text format.
const TEXT: &str = "text/plain; version=0.0.4";

/// All metrics, in the text format. Without a VM there are those of the process alone.
pub(super) fn tell(vmm: &Vmm) -> Result<Response, CommandError> {
    let mut text = Text::default();
    let state = vmm.board.state();
    let states = [("created", VmState::Created), ("running", VmState::Running), ("paused", VmState::Paused)];
    text.family("cumulet_vm_state", "gauge", "What the VM does: 1 for the state that it is in.");
    text.sample("cumulet_vm_state", &[("state", "none")], u64::from(state.is_none()));
    for (name, of) in states {
        text.sample("cumulet_vm_state", &[("state", name)], u64::from(state == Some(of)));
    }
    if let Ok(status) = vmm.board.status() {
        text.family("cumulet_memory_bytes", "gauge", "Memory that the guest is configured with.");
        text.sample("cumulet_memory_bytes", &[], status.info.memory_actual_size);
    }
    resident(&mut text);
    exits(vmm, &mut text);
    commits(vmm, &mut text);
    devices(vmm, &mut text);
    queues(vmm, &mut text);
    restore(vmm, &mut text);
    jobs(vmm, &mut text);
    Ok(Response::with_type(TEXT, text.0))
}

/// What of this process is in memory, which is mostly the guest's. The kernel keeps these sums: nothing is locked and
/// nothing is walked through to read them.
fn resident(text: &mut Text) {
    let status = match std::fs::read_to_string("/proc/self/status") {
        Ok(status) => status,
        Err(error) => return log::warn!("metrics: resident memory is not told: /proc/self/status: {error}"),
    };
    text.family(
        "cumulet_resident_bytes",
        "gauge",
        "Resident memory of this process with its guest, by kind.",
    );
    for (kind, name) in [("anonymous", "RssAnon"), ("file", "RssFile"), ("shared", "RssShmem")] {
        if let Some(kib) = status_kib(&status, name) {
            text.sample("cumulet_resident_bytes", &[("kind", kind)], kib.saturating_mul(1024));
        }
    }
}

/// A size out of `/proc/PID/status`, in KiB (proc_pid_status(5)).
fn status_kib(status: &str, name: &str) -> Option<u64> {
    let mut lines = status.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = lines.find(|(known, _)| *known == name)?;
    value.trim().strip_suffix(" kB")?.trim().parse().ok()
}

fn exits(vmm: &Vmm, text: &mut Text) {
    let vcpus = vmm.board.exits();
    if vcpus.is_empty() {
        return;
    }
    text.family("cumulet_vcpu_exits_total", "counter", "Exits of a vCPU to this process, by kind.");
    for (index, counts) in vcpus {
        let index = index.to_string();
        for (kind, count) in counts {
            text.sample("cumulet_vcpu_exits_total", &[("vcpu", &index), ("kind", kind)], count);
        }
    }
}

/// How the guest's wiring was changed since the machine was built.
fn commits(vmm: &Vmm, text: &mut Text) {
    let Some(totals) = vmm.board.commits() else { return };
    text.family("cumulet_commits_total", "counter", "Changes of the guest's wiring.");
    text.sample("cumulet_commits_total", &[("result", "done")], totals.commits);
    text.sample("cumulet_commits_total", &[("result", "undone")], totals.failed);
    let kinds = totals.operations.kinds();
    text.family("cumulet_commit_operations_total", "counter", "Operations of those changes, by kind.");
    for (kind, operations) in &kinds {
        text.sample("cumulet_commit_operations_total", &[("kind", kind)], operations.count);
    }
    text.family("cumulet_commit_nanoseconds_total", "counter", "Time that they took, by kind.");
    for (kind, operations) in &kinds {
        text.sample("cumulet_commit_nanoseconds_total", &[("kind", kind)], operations.ns);
    }
}

/// How the last restore went.
fn restore(vmm: &Vmm, text: &mut Text) {
    let Some(report) = vmm.board.restored() else { return };
    text.family("cumulet_restore_phase_nanoseconds", "gauge", "Time that the last restore took, by phase.");
    for phase in &report.phases {
        text.sample("cumulet_restore_phase_nanoseconds", &[("phase", phase.name)], phase.ns);
    }
    text.sample("cumulet_restore_phase_nanoseconds", &[("phase", "all")], report.total_ns);
    let Some((filled, checked)) = vmm.board.looked_after() else { return };
    text.family(
        "cumulet_memory_filled_bytes_total",
        "counter",
        "Bytes brought in beside what the VM touched.",
    );
    text.sample("cumulet_memory_filled_bytes_total", &[], filled);
    text.family(
        "cumulet_memory_checked_chunks_total",
        "counter",
        "Chunks of mapped memory checked after use.",
    );
    text.sample("cumulet_memory_checked_chunks_total", &[], checked);
}

/// What devices count. Their latencies are no counters: they go up and down.
fn devices(vmm: &Vmm, text: &mut Text) {
    let Ok(devices) = vmm.board.counters() else { return };
    let mut families: Vec<(&str, &str, bool)> = Vec::new();
    for (id, counters) in &devices {
        families.extend(counters.keys().map(|name| (name.as_str(), id.as_str(), name.contains("latency"))));
    }
    families.sort_unstable();
    let mut last = "";
    for (name, id, is_latency) in families {
        let (family, kind, help) = match is_latency {
            true => (format!("cumulet_device_{name}_microseconds"), "gauge", "Time that operations took."),
            false => (format!("cumulet_device_{name}_total"), "counter", "What a device has done."),
        };
        if last != name {
            text.family(&family, kind, help);
            last = name;
        }
        let value = devices.get(id).and_then(|counters| counters.get(name)).copied().unwrap_or_default();
        // Nothing was measured yet.
        if !(is_latency && value >= u64::MAX / 10_000) {
            text.sample(&family, &[("device", id)], value);
        }
    }
}

/// What went through each queue.
fn queues(vmm: &Vmm, text: &mut Text) {
    let queues = vmm.board.queues();
    if queues.is_empty() {
        return;
    }
    let mut tell = |family: &str, help: &str, value: fn(&QueueCount) -> u64| {
        text.family(family, "counter", help);
        for (device, queue, count) in &queues {
            text.sample(family, &[("device", device), ("queue", &queue.to_string())], value(count));
        }
    };
    tell("cumulet_queue_requests_total", "Requests of the guest that a queue brought.", |count| {
        count.requests
    });
    tell("cumulet_queue_bytes_total", "Their bytes, in both directions.", |count| count.bytes);
}

fn jobs(vmm: &Vmm, text: &mut Text) {
    let jobs = vmm.jobs.list();
    if jobs.is_empty() {
        return;
    }
    let running = |state| matches!(state, JobState::Running | JobState::Cancelling);
    text.family("cumulet_job_running", "gauge", "Whether a job is being worked on, by its last phase.");
    for job in &jobs {
        let labels = [("id", &*job.id.to_string()), ("kind", job.kind.name()), ("phase", &job.phase)];
        text.sample("cumulet_job_running", &labels, u64::from(running(job.state)));
    }
    type Value = fn(&JobInfo) -> u64;
    let families: [(&str, &str, Value); 2] = [
        ("cumulet_job_milliseconds", "How long a job has taken.", |job| job.elapsed_ms),
        ("cumulet_job_bytes", "Bytes that a job's last phase has worked through.", |job| job.bytes_done),
    ];
    for (family, help, value) in families {
        text.family(family, "gauge", help);
        for job in &jobs {
            text.sample(family, &[("id", &*job.id.to_string()), ("kind", job.kind.name())], value(job));
        }
    }
}

/// The text format.
#[derive(Default)]
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string does not fail.
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: u64) {
        self.0.push_str(name);
        let mut before = '{';
        for (label, text) in labels {
            let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{before}{label}=\"{text}\"");
            before = ',';
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_as_the_kernel_writes_it() {
        let status =
            "Name:\tRssAnon: 1 kB\nVmRSS:\t    5124 kB\nRssAnon:\t    1000 kB\nRssFile:\t     ? kB\n";
        assert_eq!(status_kib(status, "RssAnon"), Some(1000));
        assert_eq!(status_kib(status, "RssFile"), None);
        assert_eq!(status_kib(status, "RssShmem"), None);
        let mut text = Text::default();
        resident(&mut text);
        assert_eq!(text.0.matches("cumulet_resident_bytes{kind=").count(), 3, "{}", text.0);
    }

    #[test]
    fn labels_are_quoted() {
        let mut text = Text::default();
        text.sample("a", &[], 1);
        text.sample("b", &[("c", "x\"\\\n"), ("d", "")], u64::MAX);
        assert_eq!(text.0, "a 1\nb{c=\"x\\\"\\\\\\n\",d=\"\"} 18446744073709551615\n");
    }
}
