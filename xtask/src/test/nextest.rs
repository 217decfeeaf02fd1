//! Reads what `cargo nextest run` prints.
//!
//! The runner's stable machine format leaves out what a passing test printed, and a test that skips itself
//! says so in just that: a line `SKIPPED: reason`. So the lines for people are read. The counts that come
//! out are compared with the runner's own summary line, so that a format we do not understand is a failure
//! and not a wrong number.

use super::TestRun;
use crate::process::{Finished, Invocation};

/// How a test says that it could not do its work on this machine.
const SKIP_MARK: &str = "SKIPPED: ";

/// Adds the options without which the output cannot be read.
pub fn readable(invocation: Invocation) -> Invocation {
    invocation.words(
        "--color never --no-fail-fast --status-level pass --final-status-level none \
         --success-output immediate --failure-output immediate",
    )
}

/// Which tests a run was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All that there are: one that is left out is marked to be ignored, and that is an error.
    All,
    /// Those that a filter picks; the others run elsewhere.
    Filtered,
}

/// Counts the tests in the output of a finished run.
pub fn read(finished: &Finished, scope: Scope) -> TestRun {
    let mut run = TestRun::default();
    run.output.push_str(&finished.story);
    run.output.push('\n');
    let mut current: Option<Test> = None;
    let mut summary = None;
    for line in finished.output.lines() {
        let begun = Test::begun_by(line);
        let summed = Summary::parse(line);
        if (begun.is_some() || summed.is_some())
            && let Some(test) = current.take()
        {
            test.count(&mut run);
        }
        if summed.is_some() {
            summary = summed;
        }
        if begun.is_some() {
            current = begun;
        }
        match &mut current {
            Some(test) => test.add(line),
            None => run.output.extend([line, "\n"]),
        }
    }
    if let Some(test) = current.take() {
        test.count(&mut run);
    }
    run.broken = trouble(&run, summary.as_ref(), scope, finished.success);
    run
}

/// What is wrong with the run as a whole, if anything is.
fn trouble(run: &TestRun, summary: Option<&Summary>, scope: Scope, success: bool) -> Option<String> {
    let Some(summary) = summary else {
        return Some("the tests did not run to their end".to_owned());
    };
    let passed = run.passed + run.skipped.len();
    let failed = run.failed.len();
    if summary.run != passed + failed || summary.passed != passed {
        return Some(format!(
            "the runner counts {} tests and {} passed, its lines show {} and {passed}",
            summary.run,
            summary.passed,
            passed + failed
        ));
    }
    if summary.run == 0 {
        return Some("no test ran".to_owned());
    }
    if summary.left_out > 0 && scope == Scope::All {
        return Some(format!("{} tests are marked to be ignored", summary.left_out));
    }
    if !success && failed == 0 {
        return Some("the runner failed though no test did".to_owned());
    }
    None
}

/// One test, with what it printed.
#[derive(Debug)]
struct Test {
    name: String,
    passed: bool,
    output: String,
    reasons: Vec<String>,
}

impl Test {
    /// The line that begins a test's report: `PASS [   0.017s] (2/6) crate::binary name`.
    fn begun_by(line: &str) -> Option<Self> {
        let (word, rest) = line.trim_start().split_once(" [")?;
        let (_, rest) = rest.split_once("] (")?;
        let (place, name) = rest.split_once(") ")?;
        let (index, total) = place.split_once('/')?;
        let number = |text: &str| text.trim().parse::<usize>().is_ok();
        // A line without its place in the run is news about a test that still runs.
        if !number(index) || !number(total) || word.is_empty() || word.contains(' ') {
            return None;
        }
        let passed = matches!(word, "PASS" | "LEAK");
        Some(Self { name: name.trim().to_owned(), passed, output: String::new(), reasons: vec![] })
    }

    fn add(&mut self, line: &str) {
        if let Some(reason) = line.trim_start().strip_prefix(SKIP_MARK) {
            self.reasons.push(reason.trim().to_owned());
        }
        self.output.extend([line, "\n"]);
    }

    fn count(self, run: &mut TestRun) {
        if !self.passed {
            run.output.push_str(&self.output);
            run.failed.push(self.name);
        } else if self.reasons.is_empty() {
            run.passed += 1;
        } else {
            run.skipped.push((self.name, self.reasons.join("; ")));
        }
    }
}

/// The runner's own count: `Summary [   2.0s] 6 tests run: 3 passed, 2 failed, 1 timed out, 1 skipped`.
#[derive(Debug, PartialEq, Eq)]
struct Summary {
    run: usize,
    passed: usize,
    /// Left out by a filter or marked `#[ignore]`, not run at all.
    left_out: usize,
}

impl Summary {
    fn parse(line: &str) -> Option<Self> {
        let (_, rest) = line.trim_start().strip_prefix("Summary [")?.split_once("] ")?;
        let (run, counts) = rest.split_once(" run: ")?;
        // `5/6 tests run` when the run was cut short.
        let run = run.split(['/', ' ']).next()?.parse().ok()?;
        let of = |what: &str| {
            counts.split(", ").find_map(|part| {
                let mut words = part.split_whitespace();
                let number = words.next()?.parse().ok()?;
                (words.next()? == what).then_some(number)
            })
        };
        Some(Self { run, passed: of("passed").unwrap_or(0), left_out: of("skipped").unwrap_or(0) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "\
   Compiling nx v0.1.0
    Starting 4 tests across 1 binary
     SIGABRT [   0.017s] (1/4) nx m::aborts
  stdout ───

    running 1 test

        PASS [   0.017s] (2/4) nx m::good
  stdout ───

    test m::good ... ok

        PASS [   0.020s] (3/4) nx m::skips
  stdout ───

    SKIPPED: no /dev/kvm
    test m::skips ... ok

        SLOW [>  1.000s] (───) nx m::bad
        FAIL [   0.203s] (4/4) nx m::bad
  stderr ───

    left: 1, right: 2

────────────
     Summary [   2.073s] 4 tests run: 2 passed, 1 failed, 1 aborted, 0 skipped
error: test run failed
";

    fn read_text(success: bool, output: &str) -> TestRun {
        read(&Finished::with(success, output), Scope::All)
    }

    #[test]
    fn each_test_is_counted_under_what_it_did() {
        let run = read_text(false, OUTPUT);
        assert_eq!(run.broken, None);
        assert_eq!(run.passed, 1);
        assert_eq!(run.failed, ["nx m::aborts", "nx m::bad"]);
        assert_eq!(run.skipped, [("nx m::skips".to_owned(), "no /dev/kvm".to_owned())]);
    }

    #[test]
    fn failures_are_shown_and_passes_are_not() {
        let run = read_text(false, OUTPUT);
        assert!(run.output.contains("left: 1, right: 2") && run.output.contains("Compiling nx"));
        assert!(!run.output.contains("m::good"), "{}", run.output);
    }

    #[test]
    fn a_count_that_differs_from_the_summary_breaks_the_run() {
        let run = read_text(true, &OUTPUT.replace("4 tests run: 2 passed", "5 tests run: 3 passed"));
        assert!(run.broken.is_some_and(|trouble| trouble.contains("counts 5 tests")));
    }

    #[test]
    fn a_test_that_imitates_the_runner_breaks_the_run() {
        let forged = OUTPUT.replace("test m::good ... ok", "PASS [   0.001s] (9/9) nx m::forged");
        assert!(read_text(false, &forged).broken.is_some());
    }

    #[test]
    fn a_run_without_a_summary_or_without_tests_is_broken() {
        assert!(read_text(false, "error: could not compile `nx`\n").broken.is_some());
        let nothing = "     Summary [   0.000s] 0 tests run: 0 passed, 0 skipped\n";
        assert_eq!(read_text(true, nothing).broken.as_deref(), Some("no test ran"));
    }

    #[test]
    fn an_ignored_test_breaks_a_run_of_all_tests() {
        let output = OUTPUT.replace("0 skipped", "3 skipped");
        assert!(read_text(false, &output).broken.is_some_and(|trouble| trouble.contains("3 tests")));
        assert_eq!(read(&Finished::with(false, &output), Scope::Filtered).broken, None);
    }

    #[test]
    fn summary_lines_of_every_form_are_read() {
        let line = "     Summary [   0.1s] 1 test run: 1 passed (1 slow, 1 leaky), 7 skipped";
        assert_eq!(Summary::parse(line), Some(Summary { run: 1, passed: 1, left_out: 7 }));
        let cut = "     Summary [   0.1s] 5/6 tests run: 4 passed, 1 failed, 0 skipped";
        assert_eq!(Summary::parse(cut), Some(Summary { run: 5, passed: 4, left_out: 0 }));
        assert_eq!(Summary::parse("Summary of findings"), None);
    }
}
