//! PCI: configuration space, BARs, MSI-X, and the root that finds functions.
//!
//! What is absent: bridges (bus 0 of each segment is all there is), legacy INTx (every function
//! here has MSI-X or needs no interrupt), and where BARs are put at boot (`vmm::layout`).

pub mod bar;
pub mod config;
pub mod endpoint;
pub mod msix;
pub mod root;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

pub use bar::{BarKind, BarShape, BarSpec};
pub use config::{ConfigSpace, Identity};
pub use endpoint::{ConfigEffect, Endpoint, EndpointState, StagedBars};
pub use msix::{MsiVector, MsixState, MsixTable};
pub use root::{ConfigPorts, HostBridge, PciSegment, SlotError};

/// A device that is a PCI function.
pub trait PciFunction {
    /// The guest reads configuration space: `data` has 1, 2 or 4 bytes, `offset` is below 4096 and
    /// aligned to them.
    fn config_read(&mut self, offset: u16, data: &mut [u8]);

    /// The guest writes configuration space, likewise. Says whether a BAR must be wired anew; the
    /// root then does that in a transaction, without this function's lock being held.
    fn config_write(&mut self, offset: u16, data: &[u8]) -> ConfigEffect;

    /// The standard part of the function.
    fn endpoint(&mut self) -> &mut Endpoint;
}

/// Segment, bus, device and function number, written `ssss:bb:dd.f` in hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Bdf {
    segment: u16,
    bus: u8,
    device: u8,
    function: u8,
}

impl Bdf {
    /// A function's address; `None` if `device` is above 31 or `function` above 7.
    pub fn new(segment: u16, bus: u8, device: u8, function: u8) -> Option<Self> {
        (device < 32 && function < 8).then_some(Self { segment, bus, device, function })
    }

    /// The segment.
    pub fn segment(self) -> u16 {
        self.segment
    }

    /// The bus.
    pub fn bus(self) -> u8 {
        self.bus
    }

    /// The device (slot) number, 0 to 31.
    pub fn device(self) -> u8 {
        self.device
    }

    /// The function number, 0 to 7.
    pub fn function(self) -> u8 {
        self.function
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.segment, self.bus, self.device, self.function)
    }
}

impl FromStr for Bdf {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (segment, rest) = text.split_once(':')?;
            let (bus, rest) = rest.split_once(':')?;
            let (device, function) = rest.split_once('.')?;
            let number = |digits: &str, length: usize| {
                (digits.len() == length && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
                    .then(|| u16::from_str_radix(digits, 16).ok())
                    .flatten()
            };
            Self::new(
                number(segment, 4)?,
                u8::try_from(number(bus, 2)?).ok()?,
                u8::try_from(number(device, 2)?).ok()?,
                u8::try_from(number(function, 1)?).ok()?,
            )
        };
        parse().ok_or_else(|| format!("{text:?} is no PCI address (ssss:bb:dd.f)"))
    }
}

impl TryFrom<String> for Bdf {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Bdf> for String {
    fn from(bdf: Bdf) -> Self {
        bdf.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_written_and_read() {
        let bdf = Bdf::new(1, 0, 0x1f, 7).unwrap();
        assert_eq!(bdf.to_string(), "0001:00:1f.7");
        assert_eq!("0001:00:1f.7".parse(), Ok(bdf));
        assert_eq!(Bdf::new(0, 0, 32, 0), None);
        for bad in ["", "0:0:0.0", "0000:00:20.0", "0000:00:00.8", "0000:00:+1.0", "0000:00:00"] {
            assert!(bad.parse::<Bdf>().is_err(), "{bad}");
        }
    }
}
