//! The values of an option, as whoever starts the program may write them: its name, a space, and a value a line.
//!
//! Either it is refused, or it says the same each time it is read, and the same as its own JSON, which is what a
//! request over the API would have brought. What it says is then made a configuration, or refused.

#![no_main]

use api_client::wire;
use cumulet::{
    options::{Options, table::ROWS},
    program::Program,
};
use libfuzzer_sys::fuzz_target;
use vmm::config::{VmConfig, wire::IdCounter};

fuzz_target!(|input: &[u8]| {
    let _ = run(input);
});

/// `None` when the input is no option, or was refused.
fn run(input: &[u8]) -> Option<()> {
    let (name, values) = str::from_utf8(input).ok()?.split_once(' ')?;
    // Those without keys are paths, which would be opened, and words for clap.
    let row = ROWS.iter().find(|row| row.name == name && row.takes.keys().is_some())?;
    let mut words = vec!["cumulet".to_owned(), "--kernel".to_owned(), "/k".to_owned()];
    words.extend(values.split('\n').map(|value| format!("--{}={value}", row.name)));
    let options = Options::parse(Program::Cumulet, words.into_iter().map(Into::into)).ok()?;

    let _ = (options.api_socket(), options.event_monitor(), options.restore());
    let mut said = options.vm().ok()??;
    without_descriptors(&mut said);
    let mut again = options.vm().expect("it was read before")?;
    without_descriptors(&mut again);
    assert_eq!(said, again);
    let json = serde_json::to_string(&said).expect("all of it is text and numbers");
    let read: wire::VmConfig = serde_json::from_str(&json).expect("it was written so");
    assert_eq!(said, read, "{json}");

    let config = VmConfig::from_wire(&mut said, &mut IdCounter::default()).ok()?;
    config.check().expect("it was checked");
    Some(())
}

/// They are no part of what is said.
fn without_descriptors(said: &mut wire::VmConfig) {
    for net in said.net.iter_mut().flatten() {
        net.descriptors = wire::Descriptors::default();
    }
}
