//! `cargo xtask test`: every check of the project, in steps, counted.
//!
//! A step is a function that tells the [`Tally`] what it found. Nothing is skipped in silence: a check that
//! cannot be made on this machine is counted as skipped and gives its reason.

mod lint;
mod nextest;
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
    /// Part of `--quick`.
    quick: bool,
    /// Its tests run guests on the host's KVM.
    kvm: bool,
    tools: &'static [Tool],
    run: fn(&Workspace, &mut Tally),
}

/// In the order they run: what fails soonest comes first.
const STEPS: &[Step] = &[
    Step {
        name: "fmt",
        about: "formatting",
        quick: true,
        kvm: false,
        tools: install::TOOLCHAIN,
        run: lint::fmt,
    },
    Step {
        name: "deny",
        about: "licences, sources, duplicates and advisories of the dependencies",
        quick: true,
        kvm: false,
        tools: install::DENY,
        run: lint::deny,
    },
    Step {
        name: "clippy",
        about: "lints, over all targets and every combination of the hypervisor features",
        quick: true,
        kvm: false,
        tools: install::TOOLCHAIN,
        run: lint::clippy,
    },
    Step {
        name: "docs",
        about: "the API documentation builds without a warning",
        quick: false,
        kvm: false,
        tools: &[],
        run: lint::docs,
    },
    Step {
        name: "build",
        about: "release binaries and the test guest",
        quick: false,
        kvm: false,
        tools: &[],
        run: runs::build,
    },
    Step {
        name: "tests",
        about: "unit, property and integration tests, and the examples in the documentation",
        quick: true,
        kvm: true,
        tools: install::TESTS,
        run: runs::tests,
    },
    Step {
        name: "loom",
        about: "every interleaving of the published wiring's readers and writer",
        quick: false,
        kvm: false,
        tools: install::TESTS,
        run: runs::loom,
    },
    Step {
        name: "fuzz",
        about: "each fuzz target, from its seeds, for a few seconds",
        quick: false,
        kvm: false,
        tools: install::FUZZ,
        run: fuzz::smoke,
    },
    Step {
        name: "bench",
        about: "the benchmarks compile",
        quick: false,
        kvm: false,
        tools: &[],
        run: runs::bench,
    },
    Step {
        name: "lab",
        about: "tests that need a whole host: stock Linux guests, vhost, VFIO, migration",
        quick: false,
        kvm: false,
        tools: install::LAB,
        run: lab::tests,
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
    let chosen = |step: &&Step| (named.is_empty() && (step.quick || !quick)) || named.contains(&step.name);
    execute(&workspace, &STEPS.iter().filter(chosen).collect::<Vec<_>>())
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

fn execute(workspace: &Workspace, steps: &[&Step]) -> Result<ExitCode, String> {
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
