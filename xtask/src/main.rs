//! `cargo xtask`: the project's own chores, each one command on a fresh machine.
//!
//! Nothing here is part of the monitor. The program knows how to install what a chore needs, run other
//! programs, and count what they say. It is called by people, and by `.ci/run`.

#![expect(clippy::print_stdout, reason = "its output is what the program is for")]
#![expect(clippy::print_stderr, reason = "usage and errors of a command-line program")]

mod bench;
mod demo;
mod fuzz;
mod install;
mod kvm;
mod lab;
mod process;
mod test;
mod workspace;

use std::{env, process::ExitCode};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  demo [--linux]                            save, kill and restore a guest and show what happened: the test
                                            guest on KVM, or Debian in the lab
  test [--without-kvm] [--quick] [--verbose] [STEP...]
                                            install what is missing, run every step (or those named),
                                            and count what passed, failed and was skipped
  lint                                      the steps fmt, clippy, docs and deny
  setup                                     only install what the other commands need
  bench [NAME [ARG...]]                     run the benchmarks, or one of them
  fuzz [NAME [ARG...]]                      list the fuzz targets, or run one (ARG goes to libFuzzer)
  lab -- COMMAND                            run a command in the lab (see docs/testing.md)

steps of `test`:
";

fn main() -> ExitCode {
    let mut args = env::args().skip(1);
    let command = args.next();
    let rest: Vec<String> = args.collect();
    let outcome = match command.as_deref() {
        Some("demo") => demo::run(&rest),
        Some("test") => test::run(&rest),
        Some("lint") => test::lint(&rest),
        Some("setup") => install::everything(),
        Some("bench") => bench::run(&rest),
        Some("fuzz") => fuzz::run(&rest),
        Some("lab") => lab::run(&rest),
        Some("help" | "--help" | "-h") => {
            print!("{USAGE}{}", test::list_of_steps());
            return ExitCode::SUCCESS;
        }
        Some(other) => Err(format!("no such command: {other}; `cargo xtask help` lists them")),
        None => Err(format!("{USAGE}{}", test::list_of_steps())),
    };
    match outcome {
        Ok(code) => code,
        Err(message) => {
            eprintln!("xtask: {message}");
            ExitCode::FAILURE
        }
    }
}
