//! The control thread: owns the machine, waits for what a client, the guest or a signal asks, and does it,
//! one thing after the other.
//!
//! Clients reach it through a [`Handle`]. What they merely want to know they read off the [`Board`] and the
//! table of [`Jobs`], which never wait for this thread. What is absent: how requests arrive (`api`), and how
//! a machine comes to be (`machine`).

mod board;
pub mod check;
mod command;
mod edit;
mod error;
mod life;
mod saved;
mod signals;
#[cfg(test)]
pub(crate) mod tests;
mod tree;

use std::{fmt, io, os::fd::AsFd, sync::Arc};

use api_client::wire;
use devices::GuestRequest;
use rustix::event::{PollFd, PollFlags, poll};
use thiserror::Error;

pub use self::{
    board::{Board, Status},
    command::{Addition, Answer, Command, Handle, Receive, Reply, Restore},
    error::{CommandError, FailureClass},
    life::OnBoot,
};
use self::{command::Inbox, life::Life, signals::Signals};
use crate::{jobs::Jobs, machine::Host};

/// How the process came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The guest powered off.
    PoweredOff,
    /// The process was asked to stop.
    Signalled,
    /// A client asked for it.
    Asked,
    /// The guest wrote this code to the debug exit port.
    DebugExit(u32),
}

/// The control thread cannot go on.
#[derive(Debug, Error)]
pub enum RunError {
    /// What the command line asks for failed.
    #[error("the VM could not boot")]
    Command(#[from] CommandError),
    /// What it asks to be restored cannot be.
    #[error("the VM could not be restored")]
    Restore(#[source] CommandError),
    /// The host has no descriptor left.
    #[error("the control thread cannot wait")]
    Wait(#[from] io::Error),
    /// A processor or device could not go on; the log has said why.
    #[error("the VM failed: a processor or device could not go on")]
    Failed,
}

/// What a process begins with, before anybody can ask for anything.
#[derive(Debug)]
pub enum First {
    /// A VM is created and booted.
    Boot(Box<wire::VmConfig>),
    /// A VM is restored.
    Restore(Box<Restore>),
}

/// How the control thread shall be.
#[derive(Debug)]
pub struct Settings {
    /// What machines use of this host.
    pub host: Host,
    /// Whether the process stays when the guest powers off.
    pub no_shutdown: bool,
}

/// The control thread, before and while it runs.
pub struct Control {
    life: Life,
    inbox: Arc<Inbox>,
    handle: Handle,
    signals: Signals,
    no_shutdown: bool,
}

impl Control {
    /// Makes ready. From now on a signal to end is kept until [`run`](Self::run). `on_boot` is called with
    /// each machine before its first instruction.
    ///
    /// # Errors
    /// The host has no descriptor left.
    pub fn new(settings: Settings, on_boot: OnBoot) -> io::Result<Self> {
        let Settings { host, no_shutdown } = settings;
        let (handle, inbox) = Handle::new()?;
        let jobs = Jobs::new(host.events.clone());
        let signals = Signals::new(jobs.ending())?;
        host.events.tell("vmm", "starting");
        let life = Life { host, jobs, board: Arc::default(), on_boot, stored: None, booted: None };
        Ok(Self { life, inbox, handle, signals, no_shutdown })
    }

    /// The way to ask for something.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// What is known of the VM.
    pub fn board(&self) -> Arc<Board> {
        Arc::clone(&self.life.board)
    }

    /// What is being worked on.
    pub fn jobs(&self) -> Jobs {
        self.life.jobs.clone()
    }

    /// Runs on the calling thread until the process shall end. What it begins with is done first, by
    /// the same commands that clients give. At the end there is no VM any more, and whoever
    /// still asks for something is refused.
    ///
    /// # Errors
    /// That VM cannot be booted, or a VM fails.
    pub fn run(mut self, first: Option<First>) -> Result<Ending, RunError> {
        let ended = self.live(first);
        self.inbox.close();
        if let Err(error) = self.life.carry_out(Command::Delete) {
            log::warn!("{}", crate::error::chain(&error));
        }
        self.life.events().tell("vmm", "shutdown");
        ended
    }

    fn live(&mut self, first: Option<First>) -> Result<Ending, RunError> {
        if let Err(error) = self.begin(first) {
            // What was given up because the process shall end has not failed.
            return if self.signals.arrived() { Ok(Ending::Signalled) } else { Err(error) };
        }
        loop {
            if self.signals.arrived() {
                return Ok(Ending::Signalled);
            }
            if let Some(request) = self.life.host.requests.take() {
                if let Some(ending) = self.guest(request)? {
                    return Ok(ending);
                }
            } else if let Some((command, reply)) = self.inbox.take() {
                let last = matches!(command, Command::Quit);
                let outcome = self.life.carry_out(command);
                let ends = last && outcome.is_ok();
                reply(outcome);
                if ends {
                    return Ok(Ending::Asked);
                }
            } else {
                self.wait()?;
            }
        }
    }

    /// Does what the process begins with.
    fn begin(&mut self, first: Option<First>) -> Result<(), RunError> {
        match first {
            Some(First::Boot(config)) => {
                self.life.carry_out(Command::Create(config))?;
                self.life.carry_out(Command::Boot)?;
            }
            Some(First::Restore(restore)) => {
                self.life.carry_out(Command::Restore(restore)).map_err(RunError::Restore)?;
            }
            None => {}
        }
        Ok(())
    }

    /// Does what the guest asks for; says so if that is the end.
    fn guest(&mut self, request: GuestRequest) -> Result<Option<Ending>, RunError> {
        match request {
            GuestRequest::PowerOff if self.no_shutdown => {
                self.life.carry_out(Command::Shutdown)?;
            }
            GuestRequest::PowerOff => return Ok(Some(Ending::PoweredOff)),
            GuestRequest::DebugExit(code) => return Ok(Some(Ending::DebugExit(code))),
            GuestRequest::Failed => return Err(RunError::Failed),
            GuestRequest::Reset => {
                log::info!("the guest reboots");
                match self.life.carry_out(Command::Reboot) {
                    // Somebody wants the machine down, or the process to end.
                    Err(error) if error.is_cancelled() => {
                        log::info!("the guest does not boot again: given up")
                    }
                    rebooted => drop(rebooted?),
                }
            }
            GuestRequest::Panicked(events) => {
                log::error!("the guest has panicked (events {events:#x})");
                self.life.events().tell_with("guest", "panic", &[("event", panic_name(events))]);
            }
        }
        Ok(None)
    }

    fn wait(&self) -> io::Result<()> {
        let (asked, commands, signals) =
            (self.life.host.requests.as_fd(), self.inbox.as_fd(), self.signals.as_fd());
        let mut fds = [&asked, &commands, &signals].map(|fd| PollFd::new(fd, PollFlags::IN));
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Control({:?})", self.life)
    }
}

/// What a guest's panic is called in the event stream (the bits are those of the pvpanic device).
fn panic_name(events: u8) -> &'static str {
    match events {
        events if events & 1 != 0 => "panic",
        events if events & 2 != 0 => "crash_loaded",
        _ => "unknown_event",
    }
}
