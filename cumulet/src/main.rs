//! The `cumulet` program: arguments in, a VM's life, an exit code out.

use std::{
    env,
    error::Error,
    io::{self, Write},
    process::ExitCode,
};

use cumulet::{
    absent,
    logger::{self, Template},
    options::{Options, table},
    process,
    program::Program,
};
use vmm::{
    config::{ConfigError, VmConfig, wire::IdCounter},
    control::{self, Ending},
};

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

fn run(program: Program, options: &Options) -> Result<Ending, Box<dyn Error>> {
    let template = match options.log_format() {
        Some(text) => text.parse()?,
        None => Template::of(program),
    };
    logger::install(options.verbosity(), template, options.log_file())?;
    absent::refuse(options)?;
    let mut said = options.vm()?.ok_or(ConfigError::NoPayload)?;
    let config = VmConfig::from_wire(&mut said, &mut IdCounter::default())?;
    let hypervisor = hypervisor::open(options.hypervisor())?;
    let report = options.report();
    let ending = control::run(&config, hypervisor, &mut |machine| {
        if report {
            #[expect(clippy::print_stderr, reason = "what the user asked for")]
            {
                eprintln!("{}", machine.report());
            }
        }
    })?;
    Ok(ending)
}

/// What the user asked for, on standard output.
fn print(text: &[u8]) -> ExitCode {
    match io::stdout().write_all(text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
