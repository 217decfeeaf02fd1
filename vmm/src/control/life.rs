//! The VM's life: what each command does in each state.
//!
//! ```text
//!          create            boot             pause
//!  (none) --------> created --------> running -------> paused
//!         <--------         <--------         <-------
//!          delete            shutdown          resume      (shutdown and delete from anywhere to the right)
//! ```
//!
//! What the API shows of it is published after each step, so that nobody has to wait for the next.

use std::{fmt, path::PathBuf, sync::Arc};

use api_client::wire::{self, ConsoleMode, JobKind, VmState};

use super::{
    board::{Board, memory_size},
    command::{Answer, Command},
    error::CommandError,
    tree,
};
use crate::{
    config::{
        ConfigError, VmConfig,
        wire::{IdCounter, has_payload},
    },
    error::messages,
    events::Events,
    host::give_back_memory,
    jobs::Jobs,
    machine::{Host, Machine, attach::terminal::Existing, consoles::Seat},
    snapshot::RestoreReport,
};

pub(super) type Outcome = Result<Answer, CommandError>;

/// Called with each machine before its first instruction; with how it went for one that was restored.
pub type OnBoot = Box<dyn FnMut(&Machine, Option<&RestoreReport>) + Send>;

/// The one VM of this process, from nothing on.
pub(super) struct Life {
    pub(super) host: Host,
    pub(super) jobs: Jobs,
    pub(super) board: Arc<Board>,
    pub(super) on_boot: OnBoot,
    pub(super) stored: Option<Stored>,
    pub(super) booted: Option<Booted>,
}

/// A configuration as it was said, with what has been assigned in the course of time.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) said: wire::VmConfig,
    pub(super) ids: IdCounter,
}

/// A machine.
#[derive(Debug)]
pub(super) struct Booted {
    pub(super) machine: Machine,
    /// What the configuration came to.
    pub(super) config: VmConfig,
    pub(super) paused: bool,
}

impl Booted {
    pub(super) fn state(&self) -> VmState {
        if self.paused { VmState::Paused } else { VmState::Running }
    }
}

impl fmt::Debug for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Life").field("state", &self.state()).finish_non_exhaustive()
    }
}

impl Life {
    /// Carries a command out.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub(super) fn carry_out(&mut self, command: Command) -> Outcome {
        let outcome = match command {
            Command::Create(said) => self.create(*said),
            Command::Delete | Command::Quit => self.delete(),
            Command::Boot => self.boot(),
            Command::Shutdown => self.shutdown(),
            Command::Reboot => self.reboot(),
            Command::Pause => self.pause(),
            Command::Resume => self.resume(),
            Command::PowerButton => self.power_button(),
            Command::Nmi => self.nmi(),
            Command::Resize(said) => self.resize(said),
            Command::ResizeDisk(said) => self.resize_disk(said),
            Command::ResizeZone(said) => self.resize_zone(&said),
            Command::Add(addition) => self.add(*addition),
            Command::Remove(said) => self.remove(&said.id),
            Command::Snapshot(said) => self.snapshot(&said),
            Command::Restore(restore) => self.restore(*restore),
            Command::Coredump(_) => self.coredump(),
            Command::SendMigration(said) => self.send_migration(&said),
            Command::ReceiveMigration(receive) => self.receive_migration(&receive.said),
        };
        self.publish();
        outcome
    }

    pub(super) fn events(&self) -> &Events {
        &self.host.events
    }

    fn state(&self) -> Option<VmState> {
        let created = self.stored.as_ref().map(|_| VmState::Created);
        self.booted.as_ref().map(Booted::state).or(created)
    }

    fn create(&mut self, said: wire::VmConfig) -> Outcome {
        if self.stored.is_some() {
            return Err(CommandError::AlreadyCreated);
        }
        super::check::size(&said)?;
        let consoles = prepare_consoles(&said, &self.host);
        // A configuration whose consoles cannot be opened is there all the same: clients delete it.
        self.stored = Some(Stored { said, ids: IdCounter::default() });
        self.name_ptys();
        consoles.map(|()| Answer::Done)
    }

    /// Nothing that is there is no error.
    pub(super) fn delete(&mut self) -> Outcome {
        if self.stored.is_none() {
            return Ok(Answer::Done);
        }
        if self.booted.is_some() {
            self.shutdown()?;
        }
        self.stored = None;
        self.host.consoles.forget();
        self.events().tell("vm", "deleted");
        self.board.publish(None);
        give_back_memory();
        Ok(Answer::Done)
    }

    fn boot(&mut self) -> Outcome {
        self.events().tell("vm", "booting");
        if self.stored.is_none() {
            return Err(CommandError::ConfigMissing);
        }
        if self.booted.is_some() {
            return Err(CommandError::AlreadyCreated);
        }
        self.build()?;
        self.events().tell("vm", "booted");
        Ok(Answer::Done)
    }

    /// Takes the machine down. The guest is not asked.
    pub(super) fn shutdown(&mut self) -> Outcome {
        if self.booted.is_none() {
            return Err(CommandError::NotRunning);
        }
        self.take_down();
        self.events().tell("vm", "shutdown");
        Ok(Answer::Done)
    }

    /// Takes the machine down and builds it again from the same configuration.
    pub(super) fn reboot(&mut self) -> Outcome {
        self.events().tell("vm", "rebooting");
        if self.booted.is_none() {
            return Err(CommandError::NotCreated);
        }
        self.take_down();
        self.build()?;
        self.events().tell("vm", "rebooted");
        Ok(Answer::Done)
    }

    fn take_down(&mut self) {
        self.board.gauge(None);
        if let Some(mut booted) = self.booted.take()
            && !booted.machine.can_go()
        {
            std::mem::forget(booted);
        }
        self.host.consoles.forget();
        // What the old machine's processors asked for on their way out is no concern of the next one.
        while self.host.requests.take().is_some() {}
    }

    /// From the stored configuration to a machine that runs.
    fn build(&mut self) -> Result<(), CommandError> {
        let job = self.jobs.begin(JobKind::Boot, "configuration");
        let built = self.try_build(&job);
        job.end(built.as_ref().map(|_| ()).map_err(|error| messages(error)));
        let (machine, config) = built?;
        self.board.gauge(Some(&machine));
        (self.on_boot)(&machine, None);
        let booted = self.booted.insert(Booted { machine, config, paused: false });
        booted.machine.resume();
        Ok(())
    }

    fn try_build(&mut self, job: &crate::jobs::Job) -> Result<(Machine, VmConfig), CommandError> {
        let stored = self.stored.as_mut().ok_or(CommandError::ConfigMissing)?;
        let config = stored.effective()?;
        let machine = Machine::boot(&config, &self.host, &**job.progress()).map_err(CommandError::Build)?;
        self.name_ptys();
        Ok((machine, config))
    }

    /// Where the consoles' pseudo-terminals are: clients read it in the configuration.
    pub(super) fn name_ptys(&mut self) {
        let Some(Stored { said, .. }) = &mut self.stored else { return };
        let name = |mode: ConsoleMode, seat: Seat, file: &mut Option<PathBuf>| {
            if mode == ConsoleMode::Pty
                && let Some(path) = self.host.consoles.pty(seat)
            {
                *file = Some(path);
            }
        };
        name(said.serial.mode, Seat::Serial, &mut said.serial.file);
        name(said.console.mode, Seat::Virtio, &mut said.console.file);
    }

    fn pause(&mut self) -> Outcome {
        self.events().tell("vm", "pausing");
        let booted = self.booted.as_mut().ok_or(CommandError::NotRunning)?;
        if booted.paused {
            return Err(CommandError::Transition { from: VmState::Paused, to: VmState::Paused });
        }
        booted.machine.pause()?;
        booted.paused = true;
        self.events().tell("vm", "paused");
        Ok(Answer::Done)
    }

    pub(super) fn resume(&mut self) -> Outcome {
        self.events().tell("vm", "resuming");
        let booted = self.booted.as_mut().ok_or(CommandError::NotRunning)?;
        if !booted.paused {
            return Err(CommandError::Transition { from: VmState::Running, to: VmState::Running });
        }
        booted.machine.resume();
        booted.paused = false;
        self.events().tell("vm", "resumed");
        Ok(Answer::Done)
    }

    fn power_button(&mut self) -> Outcome {
        self.booted.as_ref().ok_or(CommandError::NotRunning)?.machine.press_power_button();
        Ok(Answer::Done)
    }

    fn nmi(&mut self) -> Outcome {
        self.booted.as_ref().ok_or(CommandError::NotRunning)?.machine.vcpus().inject_nmi()?;
        Ok(Answer::Done)
    }

    fn coredump(&mut self) -> Outcome {
        self.events().tell("vm", "coredumping");
        self.booted.as_ref().ok_or(CommandError::NotRunning)?;
        Err(CommandError::Unavailable("dumps of guest memory"))
    }

    fn send_migration(&mut self, said: &wire::SendMigrationData) -> Outcome {
        self.booted.as_ref().ok_or(CommandError::NotRunning)?;
        super::check::send(said)?;
        Err(CommandError::Unavailable("live migration"))
    }

    fn receive_migration(&mut self, said: &wire::ReceiveMigrationData) -> Outcome {
        if self.booted.is_some() {
            return Err(CommandError::AlreadyCreated);
        }
        super::check::receive(said)?;
        Err(CommandError::Unavailable("live migration"))
    }

    /// Shows everybody what there is now.
    fn publish(&self) {
        let tree = self.booted.as_ref().map(|booted| tree::device_tree(booted.machine.layout()));
        let info = self.state().zip(self.stored.as_ref()).map(|(state, stored)| wire::VmInfo {
            config: Box::new(stored.said.clone()),
            state,
            memory_actual_size: memory_size(&stored.said),
            device_tree: tree,
        });
        self.board.publish(info);
    }
}

impl Stored {
    /// What the configuration comes to. What is assigned in the course of that stays.
    pub(super) fn effective(&mut self) -> Result<VmConfig, CommandError> {
        // First: what the machinery for the rest lacks is no answer to that.
        if !has_payload(&self.said) {
            return Err(CommandError::Config(ConfigError::NoPayload));
        }
        VmConfig::from_wire(&mut self.said, &mut self.ids).map_err(CommandError::Config)
    }
}

/// Opens the consoles, so that whoever asked for the VM learns where they are, or that they cannot be.
fn prepare_consoles(said: &wire::VmConfig, host: &Host) -> Result<(), CommandError> {
    let (serial, console) = VmConfig::consoles_from_wire(said).map_err(CommandError::ConsoleConfig)?;
    for (seat, name, target) in [(Seat::Serial, "serial port", serial), (Seat::Virtio, "console", console)] {
        host.consoles
            .prepare(seat, &target, Existing::Truncate)
            .map_err(|source| CommandError::Console { console: name, source })?;
    }
    Ok(())
}
