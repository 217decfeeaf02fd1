//! Why a piece of wiring was not accepted.

use thiserror::Error;

use super::Owner;

/// Why a piece of wiring was not accepted. Names both owners.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Conflict {
    /// Two ranges overlap.
    #[error(
        "{what} {base:#x}+{size:#x} of {owner} overlaps {other_what} {other_base:#x}+{other_size:#x} of {other}"
    )]
    Overlap {
        /// What was to be added.
        what: &'static str,
        /// Its first address.
        base: u64,
        /// Its length.
        size: u64,
        /// Its owner.
        owner: Owner,
        /// What is there.
        other_what: &'static str,
        /// Its first address.
        other_base: u64,
        /// Its length.
        other_size: u64,
        /// Its owner.
        other: Owner,
    },
    /// A range is empty, misaligned, beyond its address space or beyond its backing.
    #[error("{what} {base:#x}+{size:#x} of {owner}: {why}")]
    Range {
        /// What was to be added.
        what: &'static str,
        /// Its first address.
        base: u64,
        /// Its length.
        size: u64,
        /// Its owner.
        owner: Owner,
        /// What is wrong.
        why: &'static str,
    },
    /// The same doorbell, GSI or irqfd exists already.
    #[error("{what} of {owner} is taken by {other}")]
    Taken {
        /// What was to be added, with its number.
        what: String,
        /// Who wanted it.
        owner: Owner,
        /// Who has it.
        other: Owner,
    },
    /// What was to be removed is not there, or differs from what was named.
    #[error("{what} of {owner} is not wired")]
    Absent {
        /// What was to be removed, with its number.
        what: String,
        /// Who named it.
        owner: Owner,
    },
}

/// A refusal: that piece is not wired.
pub(super) fn absent(what: String, owner: &Owner) -> Conflict {
    Conflict::Absent { what, owner: owner.clone() }
}

/// A refusal: somebody has it.
pub(super) fn taken(what: String, owner: &Owner, other: &Owner) -> Conflict {
    Conflict::Taken { what, owner: owner.clone(), other: other.clone() }
}
