//! The lab, a whole Linux host of its own to run a command in: `cargo xtask lab`, and the tests that need it.
//!
//! What the lab is and how it is built stands in `tests/lab`; here it is only called, and what it prints is
//! counted.

use std::{env, fs, process::ExitCode};

use crate::{
    install,
    process::{Finished, Invocation},
    test::{Tally, TestRun, Verdict},
    workspace::Workspace,
};

const PROGRAM: &str = "tests/lab/lab.py";

/// Each file names the checks of one boot of the lab, a name a line, and options of `lab.py run` in lines that begin
/// with `--`; `#` begins a comment. `tests/support/lab.rs` reads the same files.
const SUITES: &str = "tests/lab/suites";

/// Hands the arguments to the lab's own program.
pub fn run(args: &[String]) -> Result<ExitCode, String> {
    let workspace = Workspace::find()?;
    install::ensure(&workspace, install::LAB)?;
    let built = build(&workspace).run();
    if !built.success {
        return Err(built.in_full());
    }
    let status = args.iter().fold(program(&workspace), |lab, arg| lab.arg(arg)).hand_over()?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

/// The step `labkit`.
pub fn own_tests(workspace: &Workspace, tally: &mut Tally) {
    let own = workspace
        .program("python3")
        .words("-B -m unittest discover -v -s tests/lab/labkit/tests -t tests/lab");
    tally.tests("the lab's own tests", || read_unittest(&own.run()));
}

/// The step `lab`.
pub fn suites(workspace: &Workspace, tally: &mut Tally) {
    let suites = match names_of_suites(workspace) {
        Ok(names) => names,
        Err(reason) => return tally.check("suites", || Verdict::Failed(reason)),
    };
    let built = build(workspace).run();
    if !built.success {
        return tally.check("release binaries", || Verdict::Failed(built.in_full()));
    }
    for name in suites {
        let text = fs::read_to_string(workspace.root.join(SUITES).join(&name)).unwrap_or_default();
        let (options, checks) = suite(&text);
        let lab = program(workspace).words("run --alone --stats");
        // For machines that do other things at the same time; see payload/lib.sh.
        let lab = env::var("PATIENCE")
            .iter()
            .fold(lab, |lab, times| lab.words("--env").arg(format!("PATIENCE={times}")));
        let lab = options.iter().fold(lab, |lab, options| lab.words(options)).words("-- /payload/run.sh");
        let lab = checks.iter().fold(lab, |lab, check| lab.arg(check));
        tally.tests(&name, || read_results(&lab.run(), &checks));
    }
}

/// Builds the VMM that the lab sees at `/vmm`.
pub fn build(workspace: &Workspace) -> Invocation {
    workspace.cargo().words("build --release --quiet -p cumulet")
}

fn names_of_suites(workspace: &Workspace) -> Result<Vec<String>, String> {
    let entries = fs::read_dir(workspace.root.join(SUITES)).map_err(|error| format!("{SUITES}: {error}"))?;
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    if names.is_empty() { Err(format!("{SUITES} holds no suite")) } else { Ok(names) }
}

/// The lab's own program.
pub fn program(workspace: &Workspace) -> Invocation {
    workspace.program("python3").arg(PROGRAM)
}

/// The lines of options and the names of checks in a suite file.
fn suite(text: &str) -> (Vec<String>, Vec<String>) {
    let code = |line: &str| line.split('#').next().unwrap_or_default().trim().to_owned();
    text.lines().map(code).filter(|line| !line.is_empty()).partition(|line| line.starts_with("--"))
}

/// Counts the lines of Python's `unittest -v`: `test_a (module.Class.test_a) ... ok`. What a test or its
/// description prints may stand between the name and the verdict, so only the runner's total is trusted.
fn read_unittest(finished: &Finished) -> TestRun {
    let mut run = TestRun { output: finished.in_full(), ..TestRun::default() };
    let mut ran = None;
    for line in finished.output.lines() {
        if let Some(name) = line.strip_prefix("FAIL: ").or_else(|| line.strip_prefix("ERROR: ")) {
            run.failed.push(name.to_owned());
        } else if let Some((test, reason)) = line.split_once(" ... skipped ") {
            run.skipped.push((test.to_owned(), reason.trim_matches(['\'', '"']).to_owned()));
        } else if let Some(rest) = line.strip_prefix("Ran ") {
            ran = rest.split(' ').next().and_then(|count| count.parse::<usize>().ok());
        }
    }
    match ran.and_then(|ran| ran.checked_sub(run.failed.len() + run.skipped.len())) {
        Some(passed) if passed + run.failed.len() + run.skipped.len() > 0 => run.passed = passed,
        _ => run.broken = Some("the tests did not run to their end".to_owned()),
    }
    if !finished.success && run.failed.is_empty() && run.broken.is_none() {
        run.broken = Some("the runner failed though no test did".to_owned());
    }
    run
}

/// Counts the lines `RESULT <name> <ok|FAIL|skip> <seconds> <note>`, one for each check that was named.
fn read_results(finished: &Finished, checks: &[String]) -> TestRun {
    let mut run = TestRun { output: finished.in_full(), ..TestRun::default() };
    for check in checks {
        let result = finished.output.lines().find_map(|line| {
            let rest = line.trim_start().strip_prefix("RESULT ")?.strip_prefix(check.as_str())?;
            rest.strip_prefix(' ')?.split_once(' ')
        });
        match result {
            Some(("ok", _)) => run.passed += 1,
            Some(("skip", rest)) => {
                let reason = rest.split_once(' ').map_or("no reason given", |(_, note)| note.trim());
                run.skipped.push((check.clone(), reason.to_owned()));
            }
            Some(_) => run.failed.push(check.clone()),
            None => run.failed.push(format!("{check} (no result)")),
        }
    }
    if !finished.success && run.failed.is_empty() {
        run.broken = Some("the lab failed though no check did".to_owned());
    }
    run
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_suite_is_a_list_with_options_and_comments() {
        let (options, checks) = suite("# boots\n--mem 3G\nboot\n\n disk # raw\n");
        assert_eq!(
            (options, checks),
            (vec!["--mem 3G".to_owned()], vec!["boot".to_owned(), "disk".to_owned()])
        );
    }

    #[test]
    fn python_tests_are_counted_by_the_runners_total() {
        let output = "\
test_a (m.C.test_a) ... ok
test_b (m.C.test_b) ... noise
ok
test_c (m.C.test_c) ... skipped 'no network'
test_d (m.C.test_d) ... FAIL
======
FAIL: test_d (m.C.test_d)
------
Ran 4 tests in 0.1s

FAILED (failures=1, skipped=1)
";
        let run = read_unittest(&Finished::with(false, output));
        assert_eq!((run.passed, run.failed.len()), (2, 1));
        assert_eq!(run.skipped, [("test_c (m.C.test_c)".to_owned(), "no network".to_owned())]);
        assert!(run.broken.is_none());
    }

    #[test]
    fn python_tests_that_did_not_run_are_a_failure() {
        for output in ["", "Ran 0 tests in 0.0s\n\nOK\n", "No module named labkit\n"] {
            assert!(read_unittest(&Finished::with(true, output)).broken.is_some(), "{output}");
        }
    }

    #[test]
    fn every_check_that_was_named_has_a_result() {
        let checks = ["boot", "boot2", "vfio", "lost"].map(str::to_owned);
        let output = "\
RESULT boot ok 8.11 up in 4 s
RESULT boot2 FAIL 4.00 no end
RESULT vfio skip 0.1 no IOMMU
";
        let run = read_results(&Finished::with(false, output), &checks);
        assert_eq!(run.passed, 1);
        assert_eq!(run.failed, ["boot2", "lost (no result)"]);
        assert_eq!(run.skipped, [("vfio".to_owned(), "no IOMMU".to_owned())]);
    }
}
