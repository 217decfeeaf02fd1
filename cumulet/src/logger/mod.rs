//! The log: one line an event, on standard error or in a file.

mod budget;
pub mod clock;
mod template;

use std::{
    fmt,
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use log::{LevelFilter, Log, Metadata, Record};
use thiserror::Error;

use self::budget::Budget;
pub use self::{
    clock::{Moment, Parts},
    template::{Event, Template, TemplateError, tokens},
};

/// A log that cannot be kept.
#[derive(Debug, Error)]
#[error("--log-file {}", .path.display())]
pub struct LogError {
    path: PathBuf,
    source: io::Error,
}

struct Logger {
    start: Instant,
    level: LevelFilter,
    template: Template,
    // Standard error if none.
    file: Option<File>,
    budget: Budget,
}

impl Logger {
    fn write(&self, since_start: Duration, record: &Record<'_>, message: &fmt::Arguments<'_>) {
        let thread = std::thread::current();
        let event = Event {
            since_start,
            moment: Moment::now(),
            thread: thread.name().unwrap_or("?"),
            thread_id: rustix::thread::gettid().as_raw_nonzero().get(),
            level: record.level(),
            file: record.file().unwrap_or("?"),
            line: record.line().unwrap_or(0),
            message,
        };
        let mut line = self.template.line(&event);
        line.push('\n');
        // One call a line, so that lines of several threads do not mix. A log that cannot be written has nowhere to
        // complain.
        let _ = match &self.file {
            Some(file) => (&*file).write_all(line.as_bytes()),
            None => io::stderr().write_all(line.as_bytes()),
        };
    }
}

/// Logs from now on: errors and warnings, and more the greater `verbosity` is; to a file, created or truncated, or to
/// standard error.
///
/// # Errors
/// The file cannot be created.
pub fn install(verbosity: u8, template: Template, file: Option<&Path>) -> Result<(), LogError> {
    let level = match verbosity {
        0 => LevelFilter::Warn,
        1 => LevelFilter::Info,
        2 => LevelFilter::Debug,
        _ => LevelFilter::Trace,
    };
    let create =
        |path: &Path| File::create(path).map_err(|source| LogError { path: path.to_owned(), source });
    let file = file.map(create).transpose()?;
    let logger = Logger { start: Instant::now(), level, template, file, budget: Budget::default() };
    // Fails only if there is a logger, and this program installs one.
    if log::set_boxed_logger(Box::new(logger)).is_ok() {
        log::set_max_level(level);
    }
    Ok(())
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= self.level
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let since_start = self.start.elapsed();
        let place = (record.file_static().unwrap_or("?"), record.line().unwrap_or(0));
        match self.budget.admit(record.level(), place, since_start) {
            None => return,
            Some(0) => {}
            Some(left_out) => {
                self.write(since_start, record, &format_args!("{left_out} more like the next were left out"));
            }
        }
        self.write(since_start, record, record.args());
    }

    fn flush(&self) {}
}
