//! The `cumulet-remote` program: one request to a VMM, and what came of it.

use std::{env, process::ExitCode};

fn main() -> ExitCode {
    cumulet::process::outlive_size_limits();
    cumulet::remote::run(env::args_os())
}
