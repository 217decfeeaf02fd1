//! The log: one line an event, on standard error.

use std::{io::Write, time::Instant};

use log::{LevelFilter, Log, Metadata, Record};

struct Logger {
    start: Instant,
    level: LevelFilter,
}

/// Logs events of `level` and above from now on.
pub fn install(level: LevelFilter) {
    let logger = Logger { start: Instant::now(), level };
    // Fails only if there is a logger, and this program installs one.
    if log::set_boxed_logger(Box::new(logger)).is_ok() {
        log::set_max_level(level);
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= self.level
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let thread = std::thread::current();
        let line = format!(
            "cumulet: {:.6}s: <{}> {}:{}:{} -- {}\n",
            self.start.elapsed().as_secs_f64(),
            thread.name().unwrap_or("?"),
            record.level(),
            record.file().unwrap_or("?"),
            record.line().unwrap_or(0),
            record.args(),
        );
        // A log that cannot be written has nowhere to complain.
        let _ = std::io::stderr().write_all(line.as_bytes());
    }

    fn flush(&self) {}
}
