//! The command line: what can be said, and what it says.
//!
//! [`table`] lists the options, clap tells them apart, [`grammar`] and [`values`] read their `key=value` texts, and
//! each option's module makes a wire type of `api_client` of it: the same that a request over the API would bring.
//! What that comes to is `vmm::config`'s business. Names, defaults and the grammar are an interface that clients
//! depend on.

mod config_file;
mod console;
mod cpus;
pub mod descriptor;
pub mod device;
pub mod disk;
pub mod endpoint;
pub mod grammar;
mod memory;
pub mod net;
mod overrides;
pub mod passthrough;
mod place;
mod platform;
pub mod restore;
pub mod table;
#[cfg(test)]
mod tests;
pub mod values;
mod vm;

use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
};

use api_client::wire::{self, ConsoleMode, RestoreCommit};
use clap::ArgMatches;
use clap_complete::Shell;
use thiserror::Error;

use self::{endpoint::Endpoint, grammar::GrammarError, restore::Restore};
use crate::program::Program;

/// An option that says something that cannot be.
#[derive(Debug, Error)]
pub enum OptionError {
    /// Its text does not read.
    #[error("--{option}")]
    Grammar {
        /// Which option.
        option: &'static str,
        /// What is wrong, by key.
        #[source]
        source: GrammarError,
    },
    /// The file of a configuration cannot be read.
    #[error("--config {}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It can, and is no configuration.
    #[error("--config {}", .path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where it is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// It is no configuration of any use.
    #[error("--config {}: more than {limit} bytes", .path.display())]
    Large {
        /// The file.
        path: PathBuf,
        /// How many bytes there may be.
        limit: u64,
    },
}

/// What `--seccomp` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seccomp {
    /// The process ends.
    Trap,
    /// Nothing.
    Off,
    /// The kernel logs it.
    Log,
    /// The call fails.
    Errno,
}

/// What was said on the command line.
#[derive(Debug)]
pub struct Options {
    matches: ArgMatches,
}

impl Options {
    /// Reads the command line of a program, its name first.
    ///
    /// # Errors
    /// A usage error, or the help: clap prints it and knows the exit code.
    pub fn parse(
        program: Program,
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<Self, clap::Error> {
        let mut command = table::command(program.name());
        Ok(Self { matches: command.try_get_matches_from_mut(arguments)? })
    }

    /// Whether only the version is asked for.
    pub fn version(&self) -> bool {
        self.flag("version")
    }

    /// The shell whose completions are asked for, and nothing else.
    pub fn completions(&self) -> Option<Shell> {
        self.text("completions").and_then(|name| name.parse().ok())
    }

    /// How often more of the log was asked for.
    pub fn verbosity(&self) -> u8 {
        self.matches.get_count("verbose")
    }

    /// Where the log goes; standard error if not given.
    pub fn log_file(&self) -> Option<&Path> {
        self.path("log-file")
    }

    /// What a line of the log looks like.
    pub fn log_format(&self) -> Option<&str> {
        self.text("log-format")
    }

    /// Which hypervisor to use.
    pub fn hypervisor(&self) -> Option<hypervisor::HypervisorKind> {
        self.matches.get_one("hypervisor").copied()
    }

    /// Whether the wiring of each machine is printed.
    pub fn report(&self) -> bool {
        self.flag("report")
    }

    /// Whether the process stays when the guest powers off.
    pub fn no_shutdown(&self) -> bool {
        self.flag("no-shutdown")
    }

    /// Whether requests over the API that say something unknown are refused.
    pub fn strict_api(&self) -> bool {
        self.flag("strict-api")
    }

    /// What to do at system calls that no thread should make, if anything was said about it.
    pub fn seccomp(&self) -> Option<Seccomp> {
        self.text("seccomp").map(|mode| match mode {
            "false" => Seccomp::Off,
            "log" => Seccomp::Log,
            "errno" => Seccomp::Errno,
            _ => Seccomp::Trap,
        })
    }

    /// Whether the process shall confine itself.
    pub fn landlock(&self) -> bool {
        self.flag("landlock")
    }

    /// Whether rules for a confined process are given.
    pub fn landlock_rules(&self) -> bool {
        self.given("landlock-rules")
    }

    /// Where the API is served.
    ///
    /// # Errors
    /// The option does not read.
    pub fn api_socket(&self) -> Result<Option<Endpoint>, OptionError> {
        self.one("api-socket", endpoint::api_socket)
    }

    /// Where events are told.
    ///
    /// # Errors
    /// The option does not read.
    pub fn event_monitor(&self) -> Result<Option<Endpoint>, OptionError> {
        self.one("event-monitor", endpoint::event_monitor)
    }

    /// The saved VM that is to be brought back, whether or not there is another to boot.
    ///
    /// # Errors
    /// The option does not read, or names a descriptor that is not open.
    pub fn restore(&self) -> Result<Option<Restore>, OptionError> {
        let mut restore = self.one("restore", restore::parse)?;
        if let Some(restore) = &mut restore {
            restore.config.commit = self.text("restore-commit").map(|when| match when {
                "each" => RestoreCommit::Each,
                _ => RestoreCommit::Once,
            });
        }
        Ok(restore)
    }

    /// Whether a saved VM is named.
    pub fn restores(&self) -> bool {
        self.given("restore")
    }

    /// Whether there is a VM to create and boot.
    pub fn boots(&self) -> bool {
        ["kernel", "firmware", "config"].into_iter().any(|name| self.given(name))
    }

    /// The VM that is described, as a request over the API would describe it; `None` if none is. Each call
    /// duplicates the descriptors that devices were handed.
    ///
    /// # Errors
    /// An option cannot be; the error names it and the key.
    pub fn vm(&self) -> Result<Option<wire::VmConfig>, OptionError> {
        if !self.boots() {
            return Ok(None);
        }
        let said = match self.path("config") {
            Some(path) => config_file::read(path)?,
            None => vm::said(self)?,
        };
        if [said.serial.mode, said.console.mode] == [ConsoleMode::Tty; 2] {
            log::warn!("serial port and console share the terminal: what is typed may go to either");
        }
        Ok(Some(said))
    }

    fn given(&self, name: &str) -> bool {
        self.matches.value_source(name) == Some(clap::parser::ValueSource::CommandLine)
    }

    fn flag(&self, name: &str) -> bool {
        self.matches.get_flag(name)
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.matches.get_one::<String>(name).map(String::as_str)
    }

    fn path(&self, name: &str) -> Option<&Path> {
        self.matches.get_one::<PathBuf>(name).map(PathBuf::as_path)
    }

    /// An option that may be there once.
    fn one<T>(
        &self,
        option: &'static str,
        parse: impl FnOnce(&str) -> Result<T, GrammarError>,
    ) -> Result<Option<T>, OptionError> {
        self.text(option).map(parse).transpose().map_err(|source| OptionError::Grammar { option, source })
    }

    /// An option that may be there several times; `None` if it is not.
    fn several<T>(
        &self,
        option: &'static str,
        parse: impl FnMut(&str) -> Result<T, GrammarError>,
    ) -> Result<Option<Vec<T>>, OptionError> {
        let Some(texts) = self.matches.get_many::<String>(option) else { return Ok(None) };
        let parsed: Result<Vec<T>, GrammarError> = texts.map(String::as_str).map(parse).collect();
        parsed.map(Some).map_err(|source| OptionError::Grammar { option, source })
    }
}
