//! `cargo xtask test`: every check of the project, in steps, counted.
//!
//! A step is a function that tells the [`Tally`] what it found. Nothing is skipped in silence: a check that
//! cannot be made on this machine is counted as skipped and gives its reason.

mod lint;
mod nextest;
mod openapi;
mod runs;
mod tally;

use std::{process::ExitCode, time::Instant};

use crate::{
    fuzz,
    install::{self, Tool},
    kvm, lab,
    workspace::Workspace,
};

pub use tally::{Tally, TestRun, Verdict};

/// One part of the whole run.
#[derive(Debug)]
struct Step {
    name: &'static str,
    about: &'static str,
    when: When,
    /// Its tests run guests on the host's KVM.
    kvm: bool,
    tools: &'static [Tool],
    run: fn(&Workspace, &mut Tally),
}

/// Which runs a step is part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    /// Every run, `--quick` too.
    Always,
    /// Those without `--quick`.
    Whole,
    /// Only those that name it; a whole run counts it as skipped and says so.
    Named,
}

/// In the order they run: what fails soonest comes first.
const STEPS: &[Step] = &[
    Step {
        name: "fmt",
        about: "formatting",
        when: When::Always,
        kvm: false,
        tools: install::TOOLCHAIN,
        run: lint::fmt,
    },
    Step {
        name: "deny",
        about: "licences, sources, duplicates and advisories of the dependencies",
        when: When::Always,
        kvm: false,
        tools: install::DENY,
        run: lint::deny,
    },
    Step {
        name: "clippy",
        about: "lints, over all targets and every combination of the hypervisor features",
        when: When::Always,
        kvm: false,
        tools: install::TOOLCHAIN,
        run: lint::clippy,
    },
    Step {
        name: "docs",
        about: "the API documentation builds without a warning",
        when: When::Whole,
        kvm: false,
        tools: &[],
        run: lint::docs,
    },
    Step {
        name: "build",
        about: "release binaries and the test guest",
        when: When::Whole,
        kvm: false,
        tools: &[],
        run: runs::build,
    },
    Step {
        name: "tests",
        about: "unit, property and integration tests, and the examples in the documentation",
        when: When::Always,
        kvm: true,
        tools: install::TESTS,
        run: runs::tests,
    },
    Step {
        name: "openapi",
        about: "the document of the API against a VMM that runs, by schemathesis",
        when: When::Whole,
        kvm: true,
        tools: install::OPENAPI,
        run: openapi::run,
    },
    Step {
        name: "loom",
        about: "every interleaving of the published wiring's readers and writer",
        when: When::Whole,
        kvm: false,
        tools: install::TESTS,
        run: runs::loom,
    },
    Step {
        name: "fuzz",
        about: "each fuzz target, from its seeds, for a few seconds",
        when: When::Whole,
        kvm: false,
        tools: install::FUZZ,
        run: fuzz::smoke,
    },
    Step {
        name: "bench",
        about: "the benchmarks compile",
        when: When::Whole,
        kvm: false,
        tools: &[],
        run: runs::bench,
    },
    Step {
        name: "labkit",
        about: "the program that builds and starts the lab",
        when: When::Whole,
        kvm: false,
        tools: install::LAB,
        run: lab::own_tests,
    },
    Step {
        name: "lab",
        about: "stock Linux guests in a whole host, in software emulation: an hour and more, if named",
        when: When::Named,
        kvm: false,
        tools: install::LAB,
        run: lab::suites,
    },
];

/// `cargo xtask test`.
pub fn run(args: &[String]) -> Result<ExitCode, String> {
    let mut workspace = Workspace::find()?;
    let mut quick = false;
    let mut named: Vec<&str> = Vec::new();
    for arg in args {
        match arg.as_str() {
            "--without-kvm" => workspace.without_kvm = true,
            "--quick" => quick = true,
            "--verbose" => workspace.verbose = true,
            step if STEPS.iter().any(|known| known.name == step) => named.push(step),
            other => {
                return Err(format!(
                    "test: neither an option nor a step: {other}\nsteps:\n{}",
                    list_of_steps()
                ));
            }
        }
    }
    let wanted = |step: &Step| match step.when {
        _ if !named.is_empty() => named.contains(&step.name),
        When::Always => true,
        When::Whole => !quick,
        When::Named => false,
    };
    let (chosen, others): (Vec<&Step>, Vec<&Step>) = STEPS.iter().partition(|step| wanted(step));
    // Who names steps or asks for a quick run knows what is left out.
    let whole = named.is_empty() && !quick;
    execute(&workspace, &chosen, if whole { &others } else { &[] })
}

/// `cargo xtask lint`.
pub fn lint(args: &[String]) -> Result<ExitCode, String> {
    if let Some(arg) = args.first() {
        return Err(format!("lint takes no argument: {arg}"));
    }
    run(&["fmt", "deny", "clippy", "docs"].map(str::to_owned))
}

/// One line a step, for the usage text.
pub fn list_of_steps() -> String {
    STEPS.iter().map(|step| format!("  {:<8} {}\n", step.name, step.about)).collect()
}

/// Runs `steps`, and counts `left_out` as skipped.
fn execute(workspace: &Workspace, steps: &[&Step], left_out: &[&Step]) -> Result<ExitCode, String> {
    if !workspace.without_kvm && steps.iter().any(|step| step.kvm) {
        kvm::check().map_err(|message| {
            format!("{message}\nTo run only what needs no KVM: cargo xtask test --without-kvm")
        })?;
    }
    for step in steps {
        install::ensure(workspace, step.tools)?;
    }
    let started = Instant::now();
    let mut tally = Tally::default();
    for step in steps {
        tally.begin(step.name);
        (step.run)(workspace, &mut tally);
    }
    for step in left_out {
        tally.begin(step.name);
        let reason = format!("not part of an ordinary run: cargo xtask test {}", step.name);
        tally.check("all", || Verdict::Skipped(reason));
    }
    Ok(tally.conclude(started.elapsed()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_no_step_is_refused() {
        let error = run(&["no-such-step".to_owned()]).expect_err("there is no such step");
        assert!(error.contains("no-such-step") && error.contains("clippy"), "{error}");
    }

    #[test]
    fn step_names_are_unique() {
        for (index, step) in STEPS.iter().enumerate() {
            assert!(STEPS[..index].iter().all(|earlier| earlier.name != step.name), "{}", step.name);
        }
    }
}
