//! How far a queue has come, in its saved form.

use serde::{Deserialize, Serialize};

use super::{QueueError, RingFeatures};

/// The progress of a stopped queue. Size and addresses are registers of the transport and saved there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QueueState {
    /// Indices, by format.
    pub progress: RingProgress,
}

/// Where the device stands in the rings. No field may be missing, those that may be null neither.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
pub enum RingProgress {
    /// Split format: free-running indices.
    Split {
        /// Next entry of the available ring to take.
        next_avail: u16,
        /// Next entry of the used ring to write.
        next_used: u16,
        /// Used index at the last decision about an interrupt; none before the first.
        #[serde(deserialize_with = "Option::deserialize")]
        signalled: Option<u16>,
    },
    /// Packed format: slots of the one ring, with their wrap counters.
    Packed {
        /// Next slot to take.
        next_avail: u16,
        /// The driver's wrap counter there.
        avail_wrap: bool,
        /// Next slot to write.
        next_used: u16,
        /// The device's wrap counter there.
        used_wrap: bool,
        /// Descriptors used since the last decision about an interrupt; none before the first.
        #[serde(deserialize_with = "Option::deserialize")]
        unsignalled: Option<u16>,
    },
}

impl RingProgress {
    /// Where a queue begins.
    pub fn start(packed: bool) -> Self {
        if packed {
            Self::Packed { next_avail: 0, avail_wrap: true, next_used: 0, used_wrap: true, unsignalled: None }
        } else {
            Self::Split { next_avail: 0, next_used: 0, signalled: None }
        }
    }
}

impl QueueState {
    /// Checks the state against the queue it is for. A queue is saved when nothing is in flight, so both
    /// sides of it stand at the same place.
    ///
    /// # Errors
    /// The first field that does not fit.
    pub fn check(&self, size: u16, features: RingFeatures) -> Result<(), QueueError> {
        let wrong = |field, why: String| Err(QueueError::State { field, why });
        match self.progress {
            RingProgress::Split { next_avail, next_used, signalled: _ } => {
                if features.packed {
                    return wrong("progress", "split, but the packed format was negotiated".into());
                }
                if next_used != next_avail {
                    return wrong("next_used", format!("{next_used}, with {next_avail} taken"));
                }
            }
            RingProgress::Packed { next_avail, avail_wrap, next_used, used_wrap, unsignalled: _ } => {
                if !features.packed {
                    return wrong("progress", "packed, but the split format was negotiated".into());
                }
                if next_avail >= size {
                    return wrong("next_avail", format!("slot {next_avail} of {size}"));
                }
                if next_used != next_avail || used_wrap != avail_wrap {
                    return wrong("next_used", format!("slot {next_used}, with {next_avail} taken"));
                }
            }
        }
        Ok(())
    }
}
