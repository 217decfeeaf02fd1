//! Choosing and opening the host's hypervisor.

use std::{fmt, path::Path, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{Hypervisor, HypervisorError};

/// A back end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HypervisorKind {
    /// Linux KVM, `/dev/kvm`.
    Kvm,
    /// Microsoft Hypervisor, `/dev/mshv`.
    Mshv,
    /// The recording back end of the tests.
    Fake,
}

impl HypervisorKind {
    /// The name as given on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Mshv => "mshv",
            Self::Fake => "fake",
        }
    }

    /// The device node, for the kinds that have one.
    pub fn device(self) -> Option<&'static Path> {
        match self {
            Self::Kvm => Some(Path::new("/dev/kvm")),
            Self::Mshv => Some(Path::new("/dev/mshv")),
            Self::Fake => None,
        }
    }
}

impl fmt::Display for HypervisorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for HypervisorKind {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "kvm" => Ok(Self::Kvm),
            "mshv" => Ok(Self::Mshv),
            _ => Err(format!("unknown hypervisor {word:?}: expected kvm or mshv")),
        }
    }
}

/// The back ends this binary was built with that have a device node, in the order in which they are tried.
const BUILT: &[HypervisorKind] = &[
    #[cfg(feature = "kvm")]
    HypervisorKind::Kvm,
    #[cfg(feature = "mshv")]
    HypervisorKind::Mshv,
];

/// Opens the hypervisor that was asked for, or the first one whose device node is there.
///
/// # Errors
/// No device node is there, the one asked for is not built in, or it cannot be opened; the error
/// names the node.
pub fn open(kind: Option<HypervisorKind>) -> Result<Arc<dyn Hypervisor>, HypervisorError> {
    let kind =
        match kind {
            Some(kind) => kind,
            None => BUILT.iter().copied().find(|kind| kind.device().is_some_and(Path::exists)).ok_or_else(
                || HypervisorError::NoDevice {
                    tried: BUILT.iter().filter_map(|kind| kind.device()).map(Path::to_path_buf).collect(),
                },
            )?,
        };
    if let Some(path) = kind.device()
        && BUILT.contains(&kind)
        && !path.exists()
    {
        return Err(HypervisorError::NoDevice { tried: vec![path.to_path_buf()] });
    }
    match kind {
        #[cfg(feature = "kvm")]
        HypervisorKind::Kvm => crate::kvm::open(),
        #[cfg(feature = "mshv")]
        HypervisorKind::Mshv => crate::mshv::open(),
        other => Err(HypervisorError::NotBuilt { kind: other.name() }),
    }
}
