//! `snapshot verify`: all of a snapshot against its checksums, with a bar on a terminal.

use std::{
    io::{self, IsTerminal},
    path::Path,
};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use vmm::{memory::content::Tally, snapshot::Verify};

use super::{LocalError, open};

/// A bar that grows with the bytes that have been read.
struct Bar(ProgressBar);

impl Tally for Bar {
    fn add(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    fn is_cancelled(&self) -> bool {
        false
    }
}

pub(super) fn tell(directory: &Path) -> Result<(String, Value), LocalError> {
    let opened = open(directory, None, Some(Verify::Full))?;
    let bytes = opened.bytes_to_verify();
    let bar = if io::stderr().is_terminal() { ProgressBar::new(bytes) } else { ProgressBar::hidden() };
    if let Ok(style) =
        ProgressStyle::with_template("memory [{bar:30}] {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}")
    {
        bar.set_style(style);
    }
    let bar = Bar(bar);
    let verified = opened.verify(&bar);
    bar.0.finish_and_clear();
    verified?;
    let told = opened.inspect()?;
    let mut text = format!("{} is whole\n", told.directory.display());
    text += &format!(
        "  {} sections of state, {bytes} bytes of memory, checksum of all {}\n",
        told.sections.len(),
        told.root
    );
    if !told.edited.is_empty() {
        text += &format!("  edited since the snapshot: {}\n", told.edited.join(", "));
    }
    let value = json!({
        "directory": told.directory,
        "root": told.root,
        "sections": told.sections.len(),
        "memory_bytes": bytes,
        "edited": told.edited,
    });
    Ok((text, value))
}
