//! `--serial`, `--console` and `--debug-console`.

use std::path::PathBuf;

use api_client::wire::{ConsoleConfig, ConsoleMode, DebugConsoleConfig, SerialConfig};

use super::{
    grammar::{GrammarError, Keys, Pairs},
    place::{IOMMU, PCI, Place},
    values::hex,
};

/// The words and keys of `--serial`.
pub const SERIAL_KEYS: Keys = &[TARGETS, SOCKET];

/// The words and keys of `--console`.
pub const CONSOLE_KEYS: Keys = &[TARGETS, SOCKET, PCI, IOMMU];

/// The words and keys of `--debug-console`.
pub const DEBUG_KEYS: Keys = &[TARGETS, &["iobase=0xe9"]];

const TARGETS: &[&str] = &["off", "null", "pty", "tty", "file=PATH"];
const SOCKET: &[&str] = &["socket=PATH"];

/// Reads `--serial`.
///
/// # Errors
/// A key or value that is none, or no target.
pub fn serial(text: &str) -> Result<SerialConfig, GrammarError> {
    let pairs = Pairs::parse(text, SERIAL_KEYS)?;
    let Target { mode, file, socket } = Target::parse(text, &pairs)?;
    Ok(SerialConfig { mode, file, socket })
}

/// Reads `--console`.
///
/// # Errors
/// A key or value that is none, or no target.
pub fn console(text: &str) -> Result<ConsoleConfig, GrammarError> {
    let pairs = Pairs::parse(text, CONSOLE_KEYS)?;
    let Target { mode, file, socket } = Target::parse(text, &pairs)?;
    let Place { id, iommu, pci_segment, pci_device_id } = Place::parse(&pairs)?;
    Ok(ConsoleConfig { mode, file, socket, id, iommu, pci_segment, pci_device_id })
}

/// Reads `--debug-console`.
///
/// # Errors
/// A key or value that is none, or no target.
pub fn debug_console(text: &str) -> Result<DebugConsoleConfig, GrammarError> {
    let pairs = Pairs::parse(text, DEBUG_KEYS)?;
    let Target { mode, file, .. } = Target::parse(text, &pairs)?;
    let iobase = pairs.read("iobase", hex)?.unwrap_or(DebugConsoleConfig::IOBASE);
    Ok(DebugConsoleConfig { mode, file, iobase: Some(iobase) })
}

/// The other end of a console.
struct Target {
    mode: ConsoleMode,
    file: Option<PathBuf>,
    socket: Option<PathBuf>,
}

impl Target {
    /// Of several the first counts, in this order.
    fn parse(text: &str, pairs: &Pairs) -> Result<Self, GrammarError> {
        let mut target = Self { mode: ConsoleMode::Off, file: None, socket: None };
        let words = [
            ("off", ConsoleMode::Off),
            ("pty", ConsoleMode::Pty),
            ("tty", ConsoleMode::Tty),
            ("null", ConsoleMode::Null),
        ];
        if let Some((_, mode)) = words.into_iter().find(|(word, _)| pairs.has(word)) {
            target.mode = mode;
        } else if let Some(file) = pairs.path("file") {
            (target.mode, target.file) = (ConsoleMode::File, Some(file));
        } else if let Some(socket) = pairs.path("socket") {
            (target.mode, target.socket) = (ConsoleMode::Socket, Some(socket));
        } else {
            let what = format!("{text:?} names none of off, null, pty, tty, file=PATH, socket=PATH");
            return Err(GrammarError::Whole(what));
        }
        Ok(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_target_of_the_serial_port() {
        let words = [
            ("off", ConsoleMode::Off),
            ("null", ConsoleMode::Null),
            ("pty", ConsoleMode::Pty),
            ("tty", ConsoleMode::Tty),
        ];
        for (text, mode) in words {
            assert_eq!(serial(text), Ok(SerialConfig::new(mode)), "{text}");
        }
        let file = SerialConfig { file: Some("/f".into()), ..SerialConfig::new(ConsoleMode::File) };
        assert_eq!(serial("file=/f"), Ok(file));
        let socket = SerialConfig { socket: Some("/s".into()), ..SerialConfig::new(ConsoleMode::Socket) };
        assert_eq!(serial("socket=/s"), Ok(socket));
    }

    #[test]
    fn of_several_targets_one_counts() {
        let order = ["off", "pty", "tty", "null", "file=/f", "socket=/s"];
        for (at, first) in order.iter().enumerate() {
            for second in &order[at + 1..] {
                let both = serial(&format!("{second},{first}")).unwrap();
                assert_eq!(both, serial(first).unwrap(), "{first} before {second}");
            }
        }
    }

    #[test]
    fn no_target_is_refused() {
        for text in ["", "file=", "colour"] {
            assert!(serial(text).is_err(), "{text}");
        }
        assert!(console("id=c").unwrap_err().to_string().contains("names none of off"));
        assert!(serial("tty,id=s").unwrap_err().to_string().contains("unknown key"));
    }

    #[test]
    fn every_key_of_the_console_arrives() {
        let expected = ConsoleConfig {
            file: Some("/f".into()),
            id: Some("c0".into()),
            iommu: true,
            pci_segment: 1,
            pci_device_id: Some(2),
            ..ConsoleConfig::new(ConsoleMode::File)
        };
        assert_eq!(console("file=/f,id=c0,iommu=on,pci_segment=1,pci_device_id=2"), Ok(expected));
        assert_eq!(console("tty"), Ok(ConsoleConfig::default()));
    }

    #[test]
    fn every_key_of_the_debug_console_arrives() {
        let expected =
            DebugConsoleConfig { mode: ConsoleMode::File, file: Some("/f".into()), iobase: Some(0x402) };
        assert_eq!(debug_console("file=/f,iobase=0x402"), Ok(expected));
        assert_eq!(debug_console("off"), Ok(DebugConsoleConfig::default()));
        assert!(debug_console("off,iobase=233").unwrap_err().to_string().starts_with("iobase: "));
        assert!(debug_console("socket=/s").is_err(), "it has no socket");
    }
}
