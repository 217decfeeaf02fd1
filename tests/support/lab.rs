//! The lab: starts a Linux host of its own, runs a payload in it, and reads what the payload's checks found.
//!
//! What the lab is and how it is built stands in `docs/lab.md`; here `tests/lab/lab.py` is only called. Booting the
//! host takes as long as several checks, so a test starts one host and asserts everything that it reports. Called by `tests/lab_*.rs`.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How one check of a payload ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It found what it looked for.
    Passed,
    /// It did not.
    Failed,
    /// It could not look; its note says why.
    Skipped,
}

/// One line `RESULT <name> <ok|FAIL|skip> <seconds> <note>`.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckResult {
    /// The check's name.
    pub name: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Time it took, in the emulated host's seconds.
    pub seconds: f64,
    /// What it wants to add.
    pub note: String,
}

/// What a run of the lab brought back.
#[derive(Clone, Debug)]
pub struct LabReport {
    /// The checks that were asked for.
    pub asked: Vec<String>,
    /// Exit status of the payload; 124 if it ran out of time, 125 if the host died.
    pub status: Option<i32>,
    /// What its checks found, in order.
    pub results: Vec<CheckResult>,
    /// Everything that was printed.
    pub output: String,
}

/// Boots the host with the release build of Cumulet at `/vmm`, and runs `payload` (a command and its arguments) in
/// it. `options` are those of `lab.py run`. Waits for its turn: one host at a time.
///
/// # Panics
///
/// If Cumulet cannot be built, or the lab cannot be started.
#[must_use]
pub fn run(payload: &[&str], options: &[&str]) -> LabReport {
    build_release();
    let mut lab = Command::new("python3");
    lab.current_dir(project()).args(["tests/lab/lab.py", "run", "--alone", "--stats"]);
    // For machines that do other things at the same time; see payload/lib.sh.
    if let Some(patience) = env::var_os("PATIENCE") {
        lab.arg("--env").arg(format!("PATIENCE={}", patience.to_string_lossy()));
    }
    lab.args(options).arg("--").args(payload);
    let (status, output) = echo(lab);
    LabReport { asked: Vec::new(), status, results: read_results(&output), output }
}

/// The checks of one boot of the lab: a file of `tests/lab/suites`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suite {
    options: Vec<String>,
    checks: Vec<String>,
}

impl Suite {
    /// # Panics
    ///
    /// If there is no such file, or it names no check.
    #[must_use]
    pub fn named(name: &str) -> Self {
        let path = project().join("tests/lab/suites").join(name);
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let suite = Self::parse(&text);
        assert!(!suite.checks.is_empty(), "{} names no check", path.display());
        suite
    }

    fn parse(text: &str) -> Self {
        let code = |line: &str| line.split('#').next().unwrap_or_default().trim().to_owned();
        let (options, checks): (Vec<_>, Vec<_>) =
            text.lines().map(code).filter(|line| !line.is_empty()).partition(|line| line.starts_with("--"));
        let options = options.iter().flat_map(|line| line.split_whitespace().map(str::to_owned)).collect();
        Self { options, checks }
    }

    /// Runs all checks in one boot of the lab.
    ///
    /// # Panics
    ///
    /// As [`run`].
    #[must_use]
    pub fn run(&self) -> LabReport {
        let checks = self.checks.iter().map(String::as_str);
        let payload: Vec<&str> = ["/payload/run.sh"].into_iter().chain(checks).collect();
        let options: Vec<&str> = self.options.iter().map(String::as_str).collect();
        LabReport { asked: self.checks.clone(), ..run(&payload, &options) }
    }
}

impl LabReport {
    /// Asserts that every check that was asked for has a result, and that it passed. One that skipped itself fails
    /// too: the lab has everything.
    ///
    /// # Panics
    ///
    /// If not, with a line for each. The payload's own output, logs included, has been printed before.
    pub fn assert_passed(&self) {
        let mut wrong = String::new();
        for name in &self.asked {
            let line = match self.results.iter().find(|result| result.name == *name) {
                Some(CheckResult { outcome: Outcome::Passed, .. }) => continue,
                Some(result) => format!("{:?}: {}", result.outcome, result.note),
                None => "did not report".to_owned(),
            };
            wrong.push_str(&format!("  {name}: {line}\n"));
        }
        assert!(wrong.is_empty(), "checks in the lab:\n{wrong}the lab ended with status {:?}", self.status);
        assert_eq!(self.status, Some(0), "all checks passed, but the payload ended with another status");
    }
}

/// Reads the lines `RESULT ...` of a payload. A line that is none is left out, and so its check has not reported.
#[must_use]
pub fn read_results(output: &str) -> Vec<CheckResult> {
    output.lines().filter_map(read_result).collect()
}

fn read_result(line: &str) -> Option<CheckResult> {
    let mut words = line.strip_prefix("RESULT ")?.splitn(4, ' ');
    let name = words.next()?.to_owned();
    let outcome = match words.next()? {
        "ok" => Outcome::Passed,
        "FAIL" => Outcome::Failed,
        "skip" => Outcome::Skipped,
        _ => return None,
    };
    // bc(1) writes less than a second without the nought before the point.
    let seconds = words.next()?.parse().ok()?;
    Some(CheckResult { name, outcome, seconds, note: words.next().unwrap_or_default().trim().to_owned() })
}

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The tests are to see the sources as they are, whatever was built before.
fn build_release() {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .args(["build", "--release", "--quiet", "--package", "cumulet"])
        .current_dir(project())
        .status()
        .unwrap_or_else(|error| panic!("cargo cannot be started to build Cumulet: {error}"));
    assert!(built.success(), "Cumulet cannot be built");
}

/// Runs a program, printing what it prints as it comes, and returns its status and output.
#[expect(clippy::print_stdout, reason = "a lab takes minutes, and what it printed explains a failed check")]
fn echo(mut command: Command) -> (Option<i32>, String) {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("python3 cannot be started for the lab: {error}"));
    let mut output = String::new();
    let stdout = child.stdout.take().expect("it was asked for");
    for line in BufReader::new(stdout).split(b'\n') {
        let Ok(line) = line else { break };
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        output.push_str(&line);
        output.push('\n');
    }
    let status = child.wait().expect("our own child can be waited for");
    (status.code(), output)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(output: &str, status: i32) -> LabReport {
        LabReport {
            asked: vec!["a".to_owned(), "b".to_owned()],
            status: Some(status),
            results: read_results(output),
            output: output.to_owned(),
        }
    }

    #[test]
    fn results_are_read_and_other_lines_are_not() {
        let results = read_results(
            "noise\nRESULT boot ok 4.25 guest uptime 2.1 s\nRESULT net skip .5 \nRESULT x FAIL 3\n\
             RESULT y maybe 3\nRESULT z ok soon\n RESULT w ok 1\n",
        );
        let outcomes: Vec<_> = results.iter().map(|r| (r.name.as_str(), r.outcome)).collect();
        assert_eq!(outcomes, [("boot", Outcome::Passed), ("net", Outcome::Skipped), ("x", Outcome::Failed)]);
        assert_eq!(results[0].note, "guest uptime 2.1 s");
        assert!((results[1].seconds - 0.5).abs() < f64::EPSILON);
    }

    #[test]
    fn a_suite_is_options_and_checks() {
        let suite = Suite::parse("# boots\n--mem 3G\n--full\n\nboot\n disk # raw\n");
        assert_eq!(suite.options, ["--mem", "3G", "--full"]);
        assert_eq!(suite.checks, ["boot", "disk"]);
    }

    #[test]
    fn all_checks_passing_is_a_pass() {
        report("RESULT a ok 1 \nRESULT b ok 1 \n", 0).assert_passed();
    }

    #[test]
    #[should_panic(expected = "b: Failed: no answer")]
    fn a_failed_check_fails_with_its_note() {
        report("RESULT a ok 1 \nRESULT b FAIL 1 no answer\n", 1).assert_passed();
    }

    #[test]
    #[should_panic(expected = "b: did not report")]
    fn a_silent_check_fails() {
        report("RESULT a ok 1 \n", 0).assert_passed();
    }

    #[test]
    #[should_panic(expected = "a: Skipped: no card")]
    fn a_skipped_check_fails() {
        report("RESULT a skip 1 no card\nRESULT b ok 1 \n", 0).assert_passed();
    }

    #[test]
    #[should_panic(expected = "another status")]
    fn a_payload_that_dies_after_its_checks_fails() {
        report("RESULT a ok 1 \nRESULT b ok 1 \n", 125).assert_passed();
    }
}
