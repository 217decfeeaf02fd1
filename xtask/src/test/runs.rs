//! The steps that build and run the project's own code.

use super::{
    Tally, TestRun, Verdict,
    nextest::{self, Scope},
};
use crate::{
    process::{Finished, Invocation},
    workspace::Workspace,
};

pub fn build(workspace: &Workspace, tally: &mut Tally) {
    for (name, package) in [("release binaries", "cumulet"), ("test guest", "test-guest")] {
        tally.check(name, || built(&workspace.cargo().words("build --release -p").arg(package)));
    }
}

pub fn tests(workspace: &Workspace, tally: &mut Tally) {
    let run = nextest::readable(workspace.cargo().words("nextest run --workspace"));
    tally.tests("workspace", || nextest::read(&run.run(), Scope::All));
    tally.tests("examples in the documentation", || {
        read_doctests(&workspace.cargo().words("test --doc --workspace --no-fail-fast").run())
    });
}

/// Loom replaces the atomics and locks of the code under test when `cfg(loom)` is set, so it has its own
/// build of everything.
pub fn loom(workspace: &Workspace, tally: &mut Tally) {
    let run = workspace
        .cargo()
        .env("RUSTFLAGS", "--cfg loom")
        .env("CARGO_PROFILE_RELEASE_LTO", "off")
        .words("nextest run -p address-manager --cargo-profile release --target-dir target/loom -E")
        .arg("binary(loom) + test(/(^|::)loom/)");
    tally.tests("address-manager", || nextest::read(&nextest::readable(run).run(), Scope::Filtered));
}

pub fn bench(workspace: &Workspace, tally: &mut Tally) {
    tally.check("compile", || built(&workspace.cargo().words("bench --no-run -p cumulet-benches")));
}

fn built(invocation: &Invocation) -> Verdict {
    let finished = invocation.run();
    if finished.success { Verdict::Passed } else { Verdict::Failed(finished.in_full()) }
}

/// Counts the examples in what rustdoc's test runner printed, once for each crate.
fn read_doctests(finished: &Finished) -> TestRun {
    let mut run = TestRun { output: finished.in_full(), ..TestRun::default() };
    for line in finished.output.lines() {
        let Some(test) = line.strip_prefix("test ") else { continue };
        if let Some(name) = test.strip_suffix(" ... ignored") {
            run.skipped.push((name.to_owned(), "the example is marked `ignore`".to_owned()));
        } else if let Some(name) = test.strip_suffix(" ... FAILED") {
            run.failed.push(name.to_owned());
        } else if test.ends_with(" ... ok") {
            run.passed += 1;
        }
    }
    if !finished.success && run.failed.is_empty() {
        run.broken = Some("the examples could not be built and run".to_owned());
    }
    run
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_are_counted_over_all_crates() {
        let output = "\
test a/src/lib.rs - A (line 3) ... ok
test a/src/lib.rs - B (line 9) - compile ... ok
test result: ok. 2 passed; 0 failed; 0 ignored
test b/src/lib.rs - C (line 1) ... FAILED
test b/src/lib.rs - D (line 2) ... ignored
test result: FAILED. 0 passed; 1 failed; 1 ignored
";
        let finished = Finished::with(false, output);
        let run = read_doctests(&finished);
        assert_eq!((run.passed, run.failed.len(), run.skipped.len()), (2, 1, 1));
        assert_eq!(run.failed, ["b/src/lib.rs - C (line 1)"]);
        assert!(run.broken.is_none());
    }

    #[test]
    fn examples_that_do_not_build_are_a_failure() {
        let finished = Finished::with(false, "error");
        assert!(read_doctests(&finished).broken.is_some());
    }
}
