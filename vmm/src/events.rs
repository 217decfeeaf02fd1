//! The event stream: what happens to the VM, told to whoever started this process.
//!
//! One JSON object an event, each followed by an empty line. Nothing of it blocks: what a full pipe does
//! not take is lost, as its reader chose, but never a part of an event. No string holds a brace as such, because there
//! are readers that find the end of an object by counting them.

use std::{
    fmt::Write as _,
    fs::{File, OpenOptions},
    io::{self, Write},
    os::fd::OwnedFd,
    path::Path,
    sync::Arc,
    time::Instant,
};

use parking_lot::Mutex;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

/// Where events go; to nobody by default. Copies go to the same place.
#[derive(Clone, Debug, Default)]
pub struct Events(Option<Arc<Stream>>);

#[derive(Debug)]
struct Stream {
    begun: Instant,
    target: Mutex<Target>,
}

#[derive(Debug)]
struct Target {
    file: File,
    /// What a pipe has not taken yet of an event of which it has taken a part: the kernel writes no more than 4096
    /// bytes all or nothing.
    rest: Vec<u8>,
}

impl Events {
    /// To a file, which is made or cut to nothing; or to a FIFO, for whose reader this waits.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn to_path(path: &Path) -> io::Result<Self> {
        Self::to_file(OpenOptions::new().write(true).create(true).truncate(true).open(path)?)
    }

    /// To a descriptor that this process was started with.
    ///
    /// # Errors
    /// It cannot be made non-blocking.
    pub fn to_descriptor(target: OwnedFd) -> io::Result<Self> {
        Self::to_file(target.into())
    }

    fn to_file(target: File) -> io::Result<Self> {
        fcntl_setfl(&target, fcntl_getfl(&target)? | OFlags::NONBLOCK)?;
        let target = Mutex::new(Target { file: target, rest: Vec::new() });
        Ok(Self(Some(Arc::new(Stream { begun: Instant::now(), target }))))
    }

    /// Tells of an event that has nothing more to say.
    pub fn tell(&self, source: &str, event: &str) {
        self.tell_with(source, event, &[]);
    }

    /// Tells of an event with its properties.
    pub fn tell_with(&self, source: &str, event: &str, properties: &[(&str, &str)]) {
        let Some(stream) = &self.0 else { return };
        // The order in the stream is that of the timestamps.
        let mut target = stream.target.lock();
        let elapsed = stream.begun.elapsed();
        let text = format(elapsed.as_secs(), elapsed.subsec_nanos(), source, event, properties);
        target.write(text.as_bytes());
    }
}

impl Target {
    /// Writes an event, or the first part of it, or loses it.
    fn write(&mut self, event: &[u8]) {
        let rest = std::mem::take(&mut self.rest);
        self.rest = not_taken(&mut self.file, &rest).to_vec();
        if self.rest.is_empty() {
            let left = not_taken(&mut self.file, event);
            if left.len() < event.len() {
                self.rest = left.to_vec();
            }
        }
    }
}

/// Writes what is taken without waiting; the rest of it.
fn not_taken<'a>(file: &mut File, mut bytes: &'a [u8]) -> &'a [u8] {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(taken @ 1..) => bytes = bytes.get(taken..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // It is full, or nobody reads it.
            Ok(0) | Err(_) => break,
        }
    }
    bytes
}

fn format(secs: u64, nanos: u32, source: &str, event: &str, properties: &[(&str, &str)]) -> String {
    let mut text = format!(
        "{{\n  \"timestamp\": {{\n    \"secs\": {secs},\n    \"nanos\": {nanos}\n  }},\n  \"source\": {},\n  \
         \"event\": {},\n  \"properties\": ",
        quoted(source),
        quoted(event)
    );
    if properties.is_empty() {
        text.push_str("null");
    } else {
        let mut before = "{\n";
        for (name, value) in properties {
            // Writing to a string does not fail.
            let _ = write!(text, "{before}    {}: {}", quoted(name), quoted(value));
            before = ",\n";
        }
        text.push_str("\n  }");
    }
    text.push_str("\n}\n\n");
    text
}

/// A JSON string without a brace in it.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('{', "\\u007b").replace('}', "\\u007d")
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn events_are_pretty_objects_with_an_empty_line_after_each() {
        assert_eq!(
            format(3, 7, "vmm", "starting", &[]),
            "{\n  \"timestamp\": {\n    \"secs\": 3,\n    \"nanos\": 7\n  },\n  \"source\": \"vmm\",\n  \"event\": \
             \"starting\",\n  \"properties\": null\n}\n\n"
        );
        let text = format(0, 0, "virtio-device", "activated", &[("id", "a}\"{\n"), ("more", "")]);
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(read["properties"]["id"], "a}\"{\n");
        assert_eq!(text.matches('{').count(), 3);
        assert_eq!(text.matches('}').count(), 3);
        let pretty = serde_json::to_string_pretty(&serde_json::json!({"properties": {"id": "x"}})).unwrap();
        assert!(format(0, 0, "", "", &[("id", "x")]).ends_with(&format!("{}\n\n", &pretty[2..])));
    }

    #[test]
    fn a_full_pipe_loses_events_and_blocks_nobody() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let events = Events::to_descriptor(writer).unwrap();
        for _ in 0..2000 {
            events.tell("vm", "booted");
        }
        drop(events);
        let mut text = String::new();
        File::from(reader).read_to_string(&mut text).unwrap();
        assert!(text.ends_with("}\n\n"));
        assert!((1..2000).contains(&text.matches("booted").count()));
    }

    #[test]
    fn an_event_that_a_pipe_takes_in_parts_is_whole_in_the_end() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let mut reader = File::from(reader);
        let events = Events::to_descriptor(writer).unwrap();
        // More than is written all or nothing, and no divisor of what a pipe holds.
        let long = "x".repeat(5000);
        let mut text = Vec::new();
        for _ in 0..3 {
            for _ in 0..40 {
                events.tell_with("vm", "restored", &[("report", &long)]);
            }
            let mut some = [0; 16384];
            let length = reader.read(&mut some).unwrap();
            text.extend_from_slice(&some[..length]);
        }
        events.tell("vm", "last");
        drop(events);
        reader.read_to_end(&mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let told: Vec<serde_json::Value> = serde_json::Deserializer::from_str(&text)
            .into_iter()
            .collect::<Result<_, _>>()
            .expect("there are whole events, and nothing else");
        assert!((10..120).contains(&told.len()), "{}", told.len());
        let of = |event: &serde_json::Value| event["properties"]["report"].as_str().map(str::len);
        assert!(told.iter().all(|event| event["event"] == "last" || of(event) == Some(5000)));
    }
}
