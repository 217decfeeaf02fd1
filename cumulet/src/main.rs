//! The `cumulet` program: arguments in, a VM's life, an exit code out.

mod logger;
mod options;

use std::{error::Error, process::ExitCode};

use clap::Parser;
use vmm::control::{self, Ending};

use crate::options::Options;

fn main() -> ExitCode {
    let options = match Options::try_parse() {
        Ok(options) => options,
        Err(usage) => usage.exit(),
    };
    if options.version() {
        #[expect(clippy::print_stdout, reason = "what the user asked for")]
        {
            println!("cumulet v{}", env!("CARGO_PKG_VERSION"));
        }
        return ExitCode::SUCCESS;
    }
    logger::install(options.log_level());
    let ended = run(&options);
    vmm::terminal::restore();
    match ended {
        Ok(Ending::PoweredOff | Ending::Signalled | Ending::Asked) => ExitCode::SUCCESS,
        // A process has eight bits to say it with.
        Ok(Ending::DebugExit(code)) => ExitCode::from(code.to_le_bytes()[0]),
        Err(error) => {
            complain(&*error);
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Result<Ending, Box<dyn Error>> {
    let config = options.config()?;
    config.check()?;
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

/// The error and its causes on one line.
#[expect(clippy::print_stderr, reason = "the user must learn why there is no VM")]
fn complain(error: &dyn Error) {
    eprintln!("cumulet: {}", vmm::error::chain(error));
}
