//! The fuzz targets of `fuzz/`: built with coverage on stable Rust, and run by libFuzzer.
//!
//! What a nightly `cargo fuzz` would add is the address sanitizer. The targets here are code that forbids or
//! hardly uses `unsafe`, where panics, overflows and endless loops are what there is to find, and those the
//! plain build finds too.

use std::{fs, path::PathBuf, process::ExitCode};

use crate::{
    install,
    process::{Finished, Invocation},
    test::{Tally, Verdict},
    workspace::Workspace,
};

/// Coverage feedback for libFuzzer, by the compiler options that stable Rust has.
const COVERAGE: &str = "\
-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares --cfg fuzzing";

/// How long the step `fuzz` runs each target.
const SMOKE_SECONDS: u32 = 5;

/// Limits of every run: seconds that one input may take, and MiB of memory.
const LIMITS: &str = "-timeout=10 -rss_limit_mb=2048";

/// `cargo xtask fuzz`.
pub fn run(args: &[String]) -> Result<ExitCode, String> {
    let workspace = Workspace::find()?;
    let targets = targets(&workspace);
    let Some((name, rest)) = args.split_first() else {
        targets.iter().for_each(|target| println!("{target}"));
        return Ok(ExitCode::SUCCESS);
    };
    if !targets.contains(name) {
        return Err(format!("no such fuzz target: {name}; `cargo xtask fuzz` lists them"));
    }
    install::ensure(&workspace, install::FUZZ)?;
    let triple = host_triple(&workspace)?;
    let built = build(&workspace, &triple).run();
    if !built.success {
        return Err(built.in_full());
    }
    let corpus = made(&workspace, &format!("fuzz/corpus/{name}"))?;
    let fuzzer = fuzzer(&workspace, &triple, name)?.arg(corpus);
    let fuzzer = seeds(&workspace, name).into_iter().fold(fuzzer, |fuzzer, folder| fuzzer.arg(folder));
    let status = rest.iter().fold(fuzzer, |fuzzer, arg| fuzzer.arg(arg)).hand_over()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The step `fuzz`.
pub fn smoke(workspace: &Workspace, tally: &mut Tally) {
    let targets = targets(workspace);
    if targets.is_empty() {
        return tally.check("targets", || Verdict::Skipped("there is no fuzz target yet".to_owned()));
    }
    let triple = host_triple(workspace);
    tally.check("build", || match &triple {
        Ok(triple) => {
            let built = build(workspace, triple).run();
            if built.success { Verdict::Passed } else { Verdict::Failed(built.in_full()) }
        }
        Err(message) => Verdict::Failed(message.clone()),
    });
    let Ok(triple) = triple else { return };
    for target in targets {
        tally.check(&target, || match smoke_run(workspace, &triple, &target) {
            Ok(fuzzer) => judge(&fuzzer.run()),
            Err(message) => Verdict::Failed(message),
        });
    }
}

/// The names of the files in `fuzz/fuzz_targets`, in order.
fn targets(workspace: &Workspace) -> Vec<String> {
    let Ok(entries) = fs::read_dir(workspace.root.join("fuzz/fuzz_targets")) else { return vec![] };
    let mut names: Vec<String> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".rs").map(str::to_owned))
        .collect();
    names.sort();
    names
}

/// Builds all targets. Naming the host's own triple keeps the instrumentation out of build scripts.
fn build(workspace: &Workspace, triple: &str) -> Invocation {
    workspace
        .cargo()
        .env("RUSTFLAGS", COVERAGE)
        .words("build --release --bins --manifest-path fuzz/Cargo.toml --target-dir fuzz/target")
        .arg("--target")
        .arg(triple)
}

/// A short run that always starts from the seeds and mutates them in the same order.
fn smoke_run(workspace: &Workspace, triple: &str, target: &str) -> Result<Invocation, String> {
    let fresh = format!("fuzz/target/smoke/{target}");
    // Inputs that an earlier run left would make this one a different test.
    let _ = fs::remove_dir_all(workspace.root.join(&fresh));
    let corpus = made(workspace, &fresh)?;
    let fuzzer = fuzzer(workspace, triple, target)?
        .arg(format!("-max_total_time={SMOKE_SECONDS}"))
        .words("-seed=1 -print_final_stats=1")
        .arg(corpus);
    Ok(seeds(workspace, target).into_iter().fold(fuzzer, |fuzzer, folder| fuzzer.arg(folder)))
}

fn fuzzer(workspace: &Workspace, triple: &str, target: &str) -> Result<Invocation, String> {
    let program = workspace.root.join(format!("fuzz/target/{triple}/release/{target}"));
    if !program.is_file() {
        return Err(format!("fuzz/Cargo.toml has no [[bin]] for fuzz/fuzz_targets/{target}.rs"));
    }
    let artifacts = made(workspace, &format!("fuzz/artifacts/{target}"))?;
    let program = workspace.program(&program.to_string_lossy()).words(LIMITS);
    Ok(program.arg(format!("-artifact_prefix={artifacts}/")))
}

/// The inputs that are kept in the repository for `target`, if it has any.
fn seeds(workspace: &Workspace, target: &str) -> Option<String> {
    let folder = workspace.root.join("fuzz/seeds").join(target);
    folder.is_dir().then(|| folder.to_string_lossy().into_owned())
}

fn made(workspace: &Workspace, folder: &str) -> Result<String, String> {
    let path: PathBuf = workspace.root.join(folder);
    fs::create_dir_all(&path).map_err(|error| format!("cannot make {folder}: {error}"))?;
    Ok(path.to_string_lossy().into_owned())
}

fn host_triple(workspace: &Workspace) -> Result<String, String> {
    let version = workspace.program("rustc").arg("-vV").run();
    let host = version.output.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).ok_or_else(|| version.in_full())
}

/// A run is good if libFuzzer had coverage to steer by, tried inputs, and none of them failed.
fn judge(finished: &Finished) -> Verdict {
    let covered = finished.output.contains("inline 8-bit counters");
    let tried = finished
        .output
        .lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))
        .and_then(|count| count.trim().parse::<u64>().ok())
        .unwrap_or(0);
    let trouble = match (finished.success, covered, tried) {
        (true, true, 1..) => return Verdict::Passed,
        (true, true, 0) => "no input was tried\n",
        (true, false, _) => "built without coverage\n",
        (false, ..) => "",
    };
    Verdict::Failed(format!("{trouble}{}", without_progress(&finished.in_full())))
}

/// Leaves out the thousands of lines in which libFuzzer says that it found something new.
fn without_progress(output: &str) -> String {
    let progress =
        |line: &&str| line.starts_with('#') && line.contains(" cov: ") || line.contains("NEW_FUNC[");
    output.lines().filter(|line| !progress(line)).flat_map(|line| [line, "\n"]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\
INFO: Loaded 1 modules   (3035 inline 8-bit counters): 3035 [1, 2),
Done 7 runs in 5 second(s)
stat::number_of_executed_units: 7
";

    fn judged(success: bool, output: &str) -> Verdict {
        judge(&Finished::with(success, output))
    }

    #[test]
    fn only_a_run_with_coverage_and_inputs_passes() {
        assert!(matches!(judged(true, GOOD), Verdict::Passed));
        assert!(matches!(judged(false, GOOD), Verdict::Failed(_)));
        assert!(matches!(judged(true, &GOOD.replace("units: 7", "units: 0")), Verdict::Failed(_)));
        assert!(matches!(judged(true, &GOOD.replace("inline 8-bit", "no")), Verdict::Failed(_)));
        assert!(matches!(judged(true, ""), Verdict::Failed(_)));
    }

    #[test]
    fn a_failure_is_shown_without_the_progress_before_it() {
        let output = "#7 NEW cov: 462 ft: 494\n\tNEW_FUNC[1/4]: 0x5\nthread panicked\n# of it\n";
        match judged(false, output) {
            Verdict::Failed(shown) => assert_eq!(shown, "`program` ended\nthread panicked\n# of it\n"),
            other => panic!("{other:?}"),
        }
    }
}
