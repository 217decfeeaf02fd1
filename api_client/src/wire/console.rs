//! Consoles: the serial port, the virtio console, the debug console.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::pci::pci_device;

/// The other end of a console.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConsoleMode {
    /// There is no device.
    Off,
    /// A new pseudo-terminal.
    Pty,
    /// Standard input and output.
    Tty,
    /// A file.
    File,
    /// A socket that is listened on; for the serial port only.
    Socket,
    /// Output is dropped.
    Null,
}

/// The serial port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SerialConfig {
    /// Its other end.
    pub mode: ConsoleMode,
    /// The file of mode `File`; the terminal's path in mode `Pty`, in answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// The socket of mode `Socket`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
}

impl SerialConfig {
    /// A serial port without file or socket.
    pub fn new(mode: ConsoleMode) -> Self {
        Self { mode, file: None, socket: None }
    }
}

impl Default for SerialConfig {
    fn default() -> Self {
        Self::new(ConsoleMode::Null)
    }
}

pci_device! {
    /// The virtio console.
    pub struct ConsoleConfig {
        /// Its other end; not `Socket`.
        pub mode: ConsoleMode,
        /// The file of mode `File`; the terminal's path in mode `Pty`, in answers.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub file: Option<PathBuf>,
        /// Of no use yet.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub socket: Option<PathBuf>,
        ..pci,
    }
}

impl ConsoleConfig {
    /// A console without file, at the next free place.
    pub fn new(mode: ConsoleMode) -> Self {
        Self { mode, file: None, socket: None, id: None, iommu: false, pci_segment: 0, pci_device_id: None }
    }
}

impl Default for ConsoleConfig {
    fn default() -> Self {
        Self::new(ConsoleMode::Tty)
    }
}

/// A port that takes one character a write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DebugConsoleConfig {
    /// Its other end; not `Socket`.
    pub mode: ConsoleMode,
    /// The file of mode `File`; the terminal's path in mode `Pty`, in answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// The port; 0xe9 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iobase: Option<u16>,
}

impl DebugConsoleConfig {
    /// The port of a debug console that names none.
    pub const IOBASE: u16 = 0xe9;
}

impl Default for DebugConsoleConfig {
    fn default() -> Self {
        Self { mode: ConsoleMode::Off, file: None, iobase: Some(Self::IOBASE) }
    }
}
