//! Platform devices: what a PC has that is no PCI function.

pub mod debug_exit;
pub mod io_apic;
pub mod ports;
pub mod power;
pub mod reset;
pub mod rtc;
pub mod serial;

pub use debug_exit::DebugExit;
pub use io_apic::IoApic;
pub use ports::{DebugPort, PmTimer, PvPanic};
pub use power::{Events, PowerControl};
pub use reset::{I8042, ResetControl};
pub use rtc::Rtc;
pub use serial::Serial;
