//! Platform devices: what a PC has that is no PCI function.

pub mod debug_exit;
pub mod reset;
pub mod serial;

pub use debug_exit::DebugExit;
pub use reset::{I8042, ResetControl};
pub use serial::Serial;
