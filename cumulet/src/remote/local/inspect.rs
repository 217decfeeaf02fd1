//! `snapshot inspect`: what a snapshot is.

use std::{fmt::Display, path::Path};

use serde_json::{Value, json};
use vmm::snapshot::{Device, FileInfo, Inspection, Link, SectionInfo, Verify};

use super::{LocalError, open};
use crate::logger::clock::Moment;

pub(super) fn tell(directory: &Path) -> Result<(String, Value), LocalError> {
    let told = open(directory, None, Some(Verify::State))?.inspect()?;
    Ok((text(&told), json!(told)))
}

/// Width of the column with the names.
const NAMES: usize = 12;

fn text(told: &Inspection) -> String {
    let mut lines = Lines(String::new());
    lines.add("snapshot", told.directory.display());
    lines.add("format", format_args!("{}, written by {}", told.format, told.program));
    for (name, at) in [("written", told.written_at), ("VM paused", told.paused_at)] {
        if let Some(at) = at {
            lines.add(name, moment(at));
        }
    }
    lines.add("checksum", &told.root);
    for (number, Link { directory, root, pages }) in told.chain.iter().enumerate() {
        let name = if number == 0 { "builds on" } else { "" };
        let pages = pages.map_or_else(|| "all else".to_owned(), |pages| format!("{pages} pages"));
        lines.add(name, format_args!("{}, checksum {root}: {pages}", directory.display()));
    }
    let processors = &told.processors;
    let (vendor, bits) = (&processors.vendor, processors.physical_address_bits);
    let count =
        format_args!("{} of {}, {vendor}, {bits} physical address bits", processors.present, processors.max);
    lines.add("processors", count);
    lines.wrap("features", &processors.features);
    let memory = &told.memory;
    let (size, content) = (bytes(memory.size), bytes(memory.content));
    lines.add(
        "memory",
        format_args!("{size}, of which {content} are stored, in chunks of {}", bytes(memory.chunk_size)),
    );
    for zone in &memory.zones {
        let kept = if zone.stored { "" } else { ", kept in a file of its own" };
        lines.add("", format_args!("{:<16} {}{kept}", zone.id, bytes(zone.size)));
    }
    for (number, Device { id, kind, bdf, queues }) in told.devices.iter().enumerate() {
        let kind = json!(kind).as_str().unwrap_or_default().to_owned();
        let name = if number == 0 { "devices" } else { "" };
        lines.add(name, format_args!("{id:<16} {kind:<8} {bdf}, {queues} queues"));
    }
    for (number, SectionInfo { id, kind, version, size }) in told.sections.iter().enumerate() {
        let name = if number == 0 { "sections" } else { "" };
        lines.add(name, format_args!("{id:<16} {kind} {version}, {size} bytes"));
    }
    for (number, FileInfo { name, size, on_disk, known }) in told.files.iter().enumerate() {
        let column = if number == 0 { "files" } else { "" };
        let known = if *known { "" } else { ", not a part of it" };
        lines.add(column, format_args!("{name:<16} {size} bytes, {} on the disk{known}", bytes(*on_disk)));
    }
    if !told.edited.is_empty() {
        lines.add("edited", told.edited.join(", "));
    }
    lines.0
}

/// Text of two columns.
struct Lines(String);

impl Lines {
    fn add(&mut self, name: &str, value: impl Display) {
        self.0 += format!("{name:<NAMES$}{value}").trim_end();
        self.0.push('\n');
    }

    /// Words, on as many lines as they take.
    fn wrap(&mut self, name: &str, words: &[&str]) {
        const WIDTH: usize = 100;
        let (mut name, mut line) = (name, String::new());
        for word in words {
            if !line.is_empty() && NAMES + line.len() + 1 + word.len() > WIDTH {
                self.add(name, &line);
                (name, line) = ("", String::new());
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line += word;
        }
        if !line.is_empty() {
            self.add(name, &line);
        }
    }
}

/// A number of bytes as people read it, to a tenth.
fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    while unit + 1 < UNITS.len() && count >> (10 * (unit + 1)) > 0 {
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    let (whole, tenths) = (count >> (10 * unit), (u128::from(count) * 10) >> (10 * unit));
    if tenths.is_multiple_of(10) {
        return format!("{whole} {name}");
    }
    format!("{whole}.{} {name}", tenths % 10)
}

/// A second since 1970, as RFC 3339 has it.
fn moment(seconds: u64) -> String {
    let parts = Moment::at(seconds.try_into().unwrap_or(i64::MAX), 0).utc;
    let (year, month, day) = (parts.year, parts.month, parts.day);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", parts.hour, parts.minute, parts.second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_are_told_as_people_read_them() {
        for (count, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (36 << 20, "36 MiB"),
            (u64::MAX, "16777215.9 TiB"),
        ] {
            assert_eq!(bytes(count), text);
        }
        assert_eq!(moment(951_827_696), "2000-02-29T12:34:56Z");
        assert_eq!(moment(u64::MAX), "0000-00-00T00:00:00Z");
    }

    #[test]
    fn words_take_as_many_lines_as_they_need() {
        let mut lines = Lines(String::new());
        let word = "x".repeat(30);
        lines.wrap("many", &[&word, &word, &word]);
        lines.wrap("none", &[]);
        assert_eq!(lines.0, format!("many        {word} {word}\n            {word}\n"));
    }
}
