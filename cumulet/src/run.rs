//! What the options ask for, done: the log, the event stream, the API, a VM to boot, and then the control
//! thread until the end.

use std::{error::Error, os::fd::OwnedFd};

use vmm::{
    api::{Api, ApiSocket, Vmm},
    config::{
        ConfigError, VmConfig,
        wire::{IdCounter, has_payload},
    },
    control::{Control, Ending, First, Restore, Settings},
    events::Events,
    machine::{Host, Machine},
    snapshot::RestoreReport,
};

use crate::{
    absent::{self, AbsentError},
    logger::{self, Template},
    options::{OptionError, Options, descriptor, endpoint::Endpoint},
    program::{FEATURES, Program},
};

/// Runs the program until it shall end.
///
/// # Errors
/// The options ask for what cannot be, or the VM fails.
pub fn run(program: Program, options: &Options) -> Result<Ending, Box<dyn Error>> {
    let template = match options.log_format() {
        Some(text) => text.parse()?,
        None => Template::of(program),
    };
    logger::install(options.verbosity(), template, options.log_file())?;
    absent::refuse(options)?;
    let first = first(options)?;
    let socket = options.api_socket()?.map(api_socket).transpose()?;
    if first.is_none() && socket.is_none() {
        log::warn!("there is nothing to run, and without --api-socket nobody can ask for anything");
    }
    let events = options.event_monitor()?.map(event_stream).transpose()?.unwrap_or_default();

    let host = Host { events, ..Host::new(hypervisor::open(options.hypervisor())?)? };
    let report = options.report();
    let on_boot = move |machine: &Machine, restored: Option<&RestoreReport>| {
        if report {
            #[expect(clippy::print_stderr, reason = "what the user asked for")]
            {
                // In one piece: standard error is not buffered.
                let text = restored.map_or_else(|| machine.report().to_string(), ToString::to_string);
                eprintln!("{text}");
            }
        }
    };
    let control = Control::new(Settings { host, no_shutdown: options.no_shutdown() }, Box::new(on_boot))?;
    let features = FEATURES.iter().map(|feature| (*feature).to_owned()).collect();
    let vmm = Vmm::new(&control, options.strict_api(), features);
    let api = socket.map(|socket| Api::start(socket, vmm)).transpose()?;
    let ended = control.run(first);
    if let Some(api) = api {
        // After a failure the socket stays, as clients know it.
        let well = ended.as_ref().is_ok_and(|ending| !matches!(ending, Ending::DebugExit(1..)));
        api.end(well);
    }
    Ok(ended?)
}

/// The VM that there shall be at once; one to boot counts before one to restore.
fn first(options: &Options) -> Result<Option<First>, Box<dyn Error>> {
    if let Some(said) = options.vm()? {
        // What cannot be is said before anything is opened, as clients expect of the command line.
        if !has_payload(&said) {
            return Err(ConfigError::NoPayload.into());
        }
        VmConfig::from_wire(&mut said.clone(), &mut IdCounter::default())?;
        return Ok(Some(First::Boot(Box::new(said))));
    }
    let Some(restore) = options.restore()? else { return Ok(None) };
    if restore.config.dry_run {
        return Err(AbsentError::DryRun.into());
    }
    let descriptors: Result<Vec<OwnedFd>, _> =
        restore.descriptors.iter().map(|descriptor| descriptor.try_clone()).collect();
    Ok(Some(First::Restore(Box::new(Restore { said: restore.config, descriptors: descriptors? }))))
}

fn api_socket(endpoint: Endpoint) -> Result<ApiSocket, Box<dyn Error>> {
    match endpoint {
        Endpoint::Path(path) => Ok(ApiSocket::bind(&path)?),
        Endpoint::Descriptor(number) => Ok(ApiSocket::from_descriptor(handed("api-socket", number)?)?),
    }
}

fn event_stream(endpoint: Endpoint) -> Result<Events, Box<dyn Error>> {
    let opened = match &endpoint {
        Endpoint::Path(path) => Events::to_path(path),
        Endpoint::Descriptor(number) => Events::to_descriptor(handed("event-monitor", *number)?),
    };
    opened.map_err(|error| match endpoint {
        Endpoint::Path(path) => format!("--event-monitor: {}: {error}", path.display()).into(),
        Endpoint::Descriptor(number) => format!("--event-monitor: fd {number}: {error}").into(),
    })
}

/// A descriptor that the program was started with.
fn handed(option: &'static str, number: i32) -> Result<OwnedFd, Box<dyn Error>> {
    let duplicate =
        descriptor::inherited("fd", number).map_err(|source| OptionError::Grammar { option, source })?;
    // Nobody else has this duplicate.
    std::sync::Arc::into_inner(duplicate).ok_or_else(|| format!("--{option}: fd {number} is shared").into())
}
