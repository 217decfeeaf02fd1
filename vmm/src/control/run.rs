//! The life of a VM that nobody but its command line, its guest and signals ask anything of.

use std::{
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::Arc,
};

use devices::GuestRequest;
use hypervisor::Hypervisor;
use rustix::event::{PollFd, PollFlags, poll};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::{CommandError, Ending, RunError};
use crate::{
    config::VmConfig,
    machine::{Host, Machine, sinks::RequestQueue},
};

/// Boots a VM and keeps it running, through its reboots, until it ends. `booted` is called with
/// each machine before its first instruction.
///
/// # Errors
/// It cannot be built, or fails.
pub fn run(
    config: &VmConfig,
    hypervisor: Arc<dyn Hypervisor>,
    booted: &mut dyn FnMut(&Machine),
) -> Result<Ending, RunError> {
    let host = Host::new(hypervisor)?;
    let signals = signals()?;
    loop {
        let mut machine = Machine::boot(config, &host).map_err(CommandError::Build)?;
        booted(&machine);
        machine.resume();
        match wait(&host.requests, &signals)? {
            Wake::Signal => return Ok(Ending::Signalled),
            Wake::Guest(GuestRequest::PowerOff) => return Ok(Ending::PoweredOff),
            Wake::Guest(GuestRequest::DebugExit(code)) => return Ok(Ending::DebugExit(code)),
            Wake::Guest(GuestRequest::Failed) => return Err(RunError::Failed),
            Wake::Guest(GuestRequest::Reset) => log::info!("the guest reboots"),
            Wake::Guest(GuestRequest::Panicked(events)) => {
                // Filtered out by `wait`.
                log::error!("the guest has panicked (events {events:#x})");
            }
        }
        drop(machine);
        // The next one has ends of its own.
        host.consoles.forget();
        // What the old machine's processors asked for on their way out is no concern of the new one.
        while host.requests.take().is_some() {}
    }
}

enum Wake {
    Signal,
    Guest(GuestRequest),
}

/// A descriptor that becomes readable when the process is asked to stop.
fn signals() -> io::Result<OwnedFd> {
    let (readable, writable) = UnixStream::pair()?;
    signal_hook::low_level::pipe::register(SIGTERM, writable.try_clone()?)?;
    signal_hook::low_level::pipe::register(SIGINT, writable)?;
    Ok(readable.into())
}

fn wait(requests: &RequestQueue, signals: &OwnedFd) -> io::Result<Wake> {
    loop {
        while let Some(request) = requests.take() {
            match request {
                GuestRequest::Panicked(events) => log::error!("the guest has panicked (events {events:#x})"),
                other => return Ok(Wake::Guest(other)),
            }
        }
        let asked = requests.as_fd();
        let mut fds = [PollFd::new(&asked, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let [_, signalled] = fds;
        if !signalled.revents().is_empty() {
            return Ok(Wake::Signal);
        }
    }
}
