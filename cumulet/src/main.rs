//! The `cumulet` program: arguments in, a VM's life, an exit code out.

use std::{
    env,
    io::{self, Write},
    process::ExitCode,
};

use cumulet::{
    options::{Options, table},
    process,
    program::Program,
    run::run,
};
use vmm::control::Ending;

fn main() -> ExitCode {
    process::prepare();
    let program = Program::called(env::args_os().next().as_deref());
    let options = match Options::parse(program, env::args_os()) {
        Ok(options) => options,
        Err(usage) => usage.exit(),
    };
    if let Some(shell) = options.completions() {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut table::command(program.name()), program.name(), &mut script);
        return print(&script);
    }
    if options.version() {
        return print(program.version(options.verbosity() > 0).as_bytes());
    }
    let ended = run(program, &options);
    vmm::terminal::restore();
    match ended {
        Ok(Ending::PoweredOff | Ending::Signalled | Ending::Asked) => ExitCode::SUCCESS,
        // A process has eight bits to say it with.
        Ok(Ending::DebugExit(code)) => ExitCode::from(code.to_le_bytes()[0]),
        Err(error) => {
            // What cannot be told has nowhere to be told.
            let _ = io::stderr().write_all(program.complaint(&*error).as_bytes());
            ExitCode::FAILURE
        }
    }
}

/// What the user asked for, on standard output.
fn print(text: &[u8]) -> ExitCode {
    match io::stdout().write_all(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
