//! The count of what passed, failed and was skipped, and the lines that tell it.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

/// How one check ended.
#[derive(Debug)]
pub enum Verdict {
    Passed,
    /// With everything that a person needs to see.
    Failed(String),
    /// With the reason.
    Skipped(String),
}

/// How a run of many tests ended.
#[derive(Debug, Default)]
pub struct TestRun {
    /// How many passed.
    pub passed: usize,
    /// The names of those that failed.
    pub failed: Vec<String>,
    /// The names of those that skipped themselves, with the reason of each.
    pub skipped: Vec<(String, String)>,
    /// What went wrong with the run as a whole, whatever its tests said.
    pub broken: Option<String>,
    /// The output to show if anything failed.
    pub output: String,
}

/// The running count of all steps.
#[derive(Debug, Default)]
pub struct Tally {
    step: String,
    passed: usize,
    failed: Vec<String>,
    skipped: Vec<(String, String)>,
}

impl Tally {
    /// Names the step that the following checks belong to.
    pub fn begin(&mut self, step: &str) {
        step.clone_into(&mut self.step);
    }

    /// Makes one check and counts it.
    pub fn check(&mut self, what: &str, check: impl FnOnce() -> Verdict) {
        let started = Instant::now();
        let name = format!("{}: {what}", self.step);
        match check() {
            Verdict::Passed => {
                self.passed += 1;
                line("pass", &name, started.elapsed());
            }
            Verdict::Failed(output) => {
                line("FAIL", &name, started.elapsed());
                println!("{}", output.trim_end());
                self.failed.push(name);
            }
            Verdict::Skipped(reason) => {
                line("skip", &name, started.elapsed());
                println!("       {reason}");
                self.skipped.push((name, reason));
            }
        }
    }

    /// Runs a set of tests and counts each.
    pub fn tests(&mut self, what: &str, run: impl FnOnce() -> TestRun) {
        let started = Instant::now();
        let name = format!("{}: {what}", self.step);
        let run = run();
        let good = run.failed.is_empty() && run.broken.is_none();
        let counts = format!(
            "{name}: {} passed, {} failed, {} skipped",
            run.passed,
            run.failed.len(),
            run.skipped.len()
        );
        line(if good { "pass" } else { "FAIL" }, &counts, started.elapsed());
        if !good {
            println!("{}", run.output.trim_end());
        }
        self.passed += run.passed;
        self.failed.extend(run.failed.into_iter().map(|test| format!("{name}: {test}")));
        self.skipped.extend(run.skipped.into_iter().map(|(test, why)| (format!("{name}: {test}"), why)));
        if let Some(trouble) = run.broken {
            println!("       {trouble}");
            self.failed.push(format!("{name}: {trouble}"));
        }
    }

    /// Prints the summary, whose last line is the count alone, and gives the exit code.
    pub fn conclude(mut self, took: Duration) -> ExitCode {
        if self.passed == 0 && self.failed.is_empty() {
            self.failed.push("nothing was tested".to_owned());
        }
        print!("{}", self.summary(took));
        if self.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }

    fn summary(&self, took: Duration) -> String {
        let mut text = format!("\nsummary, after {}\n", spoken(took));
        if !self.skipped.is_empty() {
            text.push_str("skipped:\n");
        }
        for (name, reason) in &self.skipped {
            text.push_str(&format!("  {name}\n      {reason}\n"));
        }
        if !self.failed.is_empty() {
            text.push_str("failed:\n");
        }
        for name in &self.failed {
            text.push_str(&format!("  {name}\n"));
        }
        text.push_str(&format!(
            "\n{} passed, {} failed, {} skipped\n",
            self.passed,
            self.failed.len(),
            self.skipped.len()
        ));
        text
    }
}

fn line(verdict: &str, name: &str, took: Duration) {
    println!("{verdict}   {name} ({})", spoken(took));
}

fn spoken(took: Duration) -> String {
    let seconds = took.as_secs();
    if seconds < 60 {
        format!("{seconds}.{} s", took.subsec_millis() / 100)
    } else {
        format!("{} min {} s", seconds / 60, seconds % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally_of_all_kinds() -> Tally {
        let mut tally = Tally::default();
        tally.begin("clippy");
        tally.check("one", || Verdict::Passed);
        tally.check("two", || Verdict::Failed("why".to_owned()));
        tally.begin("tests");
        tally.tests("all", || TestRun {
            passed: 40,
            failed: vec!["a::b".to_owned()],
            skipped: vec![("c::d".to_owned(), "no such device".to_owned())],
            ..TestRun::default()
        });
        tally
    }

    #[test]
    fn the_last_line_is_the_count_alone() {
        let summary = tally_of_all_kinds().summary(Duration::from_secs(61));
        assert!(summary.ends_with("\n41 passed, 2 failed, 1 skipped\n"), "{summary}");
    }

    #[test]
    fn every_failure_is_named_and_every_skip_has_its_reason() {
        let summary = tally_of_all_kinds().summary(Duration::from_secs(61));
        for part in ["clippy: two", "tests: all: a::b", "tests: all: c::d\n      no such device"] {
            assert!(summary.contains(part), "{part} is not in: {summary}");
        }
    }

    #[test]
    fn a_broken_run_fails_though_no_test_did() {
        let mut tally = Tally::default();
        tally.tests("all", || TestRun { broken: Some("did not compile".to_owned()), ..TestRun::default() });
        assert_eq!(tally.failed, [": all: did not compile"]);
    }

    #[test]
    fn a_run_that_tested_nothing_fails() {
        let tally = Tally::default();
        assert_eq!(format!("{:?}", tally.conclude(Duration::ZERO)), format!("{:?}", ExitCode::FAILURE));
        let mut tally = Tally::default();
        tally.check("all", || Verdict::Skipped("no device".to_owned()));
        assert_eq!(format!("{:?}", tally.conclude(Duration::ZERO)), format!("{:?}", ExitCode::FAILURE));
    }
}
