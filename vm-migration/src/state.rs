//! Saved state: plain data, named, versioned.
//!
//! A device's state is one serde struct with the version of its own layout ([`State`]). Saved, it
//! is a [`Section`]: the device's id, the kind and version of the layout, and the content. Content
//! comes from files and peers and is hostile: an unknown kind or version, or a field that does not
//! fit, is a [`LoadError`] that names the section and the field.

use std::{fmt, ops::Range, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned, ser::Error as _};
use serde_json::value::RawValue;
use thiserror::Error;

/// The saved form of one device, in one version of its layout.
pub trait State: Serialize + DeserializeOwned {
    /// Names the layout in its section. Never renamed, never reused for another device.
    const KIND: &'static str;
    /// Version of the layout: one more with every change of a field.
    const VERSION: u32;

    /// Reads an older version. `from` is below [`VERSION`](Self::VERSION).
    ///
    /// # Errors
    /// The version is no longer, or was never, known.
    fn upgrade(from: u32, old: &Section) -> Result<Self, LoadError> {
        Err(old.unknown_version::<Self>(from))
    }
}

/// The state of a device that has none to save. Written out: saving nothing is a decision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoState {}

impl State for NoState {
    const KIND: &'static str = "none";
    const VERSION: u32 = 1;
}

/// One device's state as it is kept and sent.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// The device's id.
    pub id: String,
    /// [`State::KIND`].
    pub kind: String,
    /// [`State::VERSION`] of the writer.
    pub version: u32,
    /// The content, as JSON text.
    pub state: Content,
}

/// JSON text: by itself, or a piece of the text that all sections of a snapshot are in.
#[derive(Clone, Debug)]
pub struct Content(Text);

#[derive(Clone, Debug)]
enum Text {
    /// Known to be JSON.
    Own(Box<RawValue>),
    /// Whether it is JSON is found out by whoever reads it.
    Piece { of: Arc<String>, range: Range<usize> },
}

impl Content {
    /// A piece of a longer text. `None` where there is no such piece: `range` is not within `of`, or cuts a character.
    pub(crate) fn piece(of: &Arc<String>, range: Range<usize>) -> Option<Self> {
        of.get(range.clone())?;
        Some(Self(Text::Piece { of: Arc::clone(of), range }))
    }

    /// The text.
    pub fn get(&self) -> &str {
        match &self.0 {
            Text::Own(text) => text.get(),
            // It was there when the piece was made.
            Text::Piece { of, range } => of.get(range.clone()).unwrap_or_default(),
        }
    }
}

impl From<Box<RawValue>> for Content {
    fn from(text: Box<RawValue>) -> Self {
        Self(Text::Own(text))
    }
}

impl Serialize for Content {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Text::Own(text) => text.serialize(serializer),
            Text::Piece { .. } => {
                serde_json::from_str::<&RawValue>(self.get()).map_err(S::Error::custom)?.serialize(serializer)
            }
        }
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Box::deserialize(deserializer).map(|text| Self(Text::Own(text)))
    }
}

impl Section {
    /// Writes a state into a section.
    ///
    /// # Errors
    /// The state cannot be written as JSON (a map with keys that are no strings, say).
    pub fn save<S: State>(id: &str, state: &S) -> Result<Self, SaveError> {
        let state = serde_json::value::to_raw_value(state).map_err(|source| SaveError {
            id: id.to_owned(),
            kind: S::KIND,
            source,
        })?;
        Ok(Self { id: id.to_owned(), kind: S::KIND.to_owned(), version: S::VERSION, state: state.into() })
    }

    /// Reads the state out of a section, upgrading an older version.
    ///
    /// # Errors
    /// The kind is another one, the version is newer or unknown, or a field does not fit.
    pub fn load<S: State>(&self) -> Result<S, LoadError> {
        self.check_kind(S::KIND, S::VERSION)?;
        if self.version < S::VERSION {
            return S::upgrade(self.version, self);
        }
        self.content()
    }

    /// Checks what it says of itself: that it is of that kind, and of no version after `newest`.
    ///
    /// # Errors
    /// It is of another kind, or of a newer or unknown version.
    pub fn check_kind(&self, kind: &'static str, newest: u32) -> Result<(), LoadError> {
        if self.kind != kind {
            let (id, found) = (self.id.clone(), self.kind.clone());
            return Err(LoadError::Kind { id, found, expected: kind });
        }
        if self.version > newest || self.version == 0 {
            return Err(LoadError::Version { id: self.id.clone(), kind, found: self.version, newest });
        }
        Ok(())
    }

    /// The content as some type, whatever kind and version say; for [`State::upgrade`].
    ///
    /// # Errors
    /// A field does not fit.
    pub fn content<T: DeserializeOwned>(&self) -> Result<T, LoadError> {
        serde_json::from_str(self.state.get()).map_err(|source| LoadError::Content {
            id: self.id.clone(),
            kind: self.kind.clone(),
            source,
        })
    }

    /// The error for a version of this section that cannot be read.
    pub fn unknown_version<S: State>(&self, found: u32) -> LoadError {
        LoadError::Version { id: self.id.clone(), kind: S::KIND, found, newest: S::VERSION }
    }
}

/// A state could not be written.
#[derive(Debug, Error)]
#[error("{id}: cannot write {kind} state")]
pub struct SaveError {
    /// The device.
    pub id: String,
    /// Its kind of state.
    pub kind: &'static str,
    /// Why.
    #[source]
    pub source: serde_json::Error,
}

/// A state could not be read or does not fit the device.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The section belongs to another kind of device.
    #[error("{id}: state is of kind {found:?}, expected {expected:?}")]
    Kind {
        /// The device.
        id: String,
        /// What the section says.
        found: String,
        /// What the device is.
        expected: &'static str,
    },
    /// The section's version is newer than this program, or was dropped.
    #[error("{id}: {kind} state has version {found}, this program reads up to {newest}")]
    Version {
        /// The device.
        id: String,
        /// Its kind of state.
        kind: &'static str,
        /// What the section says.
        found: u32,
        /// What this program writes.
        newest: u32,
    },
    /// The content is no JSON of that layout.
    #[error("{id}: {kind} state cannot be read")]
    Content {
        /// The device.
        id: String,
        /// Its kind of state.
        kind: String,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A field's value does not fit the device.
    #[error("field {field}: {why}")]
    Field {
        /// Path of the field inside the state, as in `queues[3].size`.
        field: String,
        /// The value, and what is wrong with it.
        why: String,
    },
    /// A failure inside the section of a device.
    #[error("{id}: state does not fit")]
    In {
        /// The device.
        id: String,
        /// Which field, and why.
        #[source]
        source: Box<LoadError>,
    },
    /// A section that the machine needs is not there.
    #[error("{id}: its state is missing")]
    Missing {
        /// The device.
        id: String,
    },
    /// A section that belongs to no device of the machine, or is there twice.
    #[error("state of {id}: {why}")]
    Unexpected {
        /// The section's id.
        id: String,
        /// What is wrong.
        why: &'static str,
    },
}

impl LoadError {
    /// A field's value does not fit. The device adds no id: [`in_device`](Self::in_device) does.
    pub fn field(field: impl fmt::Display, why: impl fmt::Display) -> Self {
        Self::Field { field: field.to_string(), why: why.to_string() }
    }

    /// Says whose state it was, unless that is said already.
    #[must_use]
    pub fn in_device(self, id: &str) -> Self {
        match self {
            Self::Field { .. } => Self::In { id: id.to_owned(), source: Box::new(self) },
            named => named,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Clock {
        ticks: u64,
    }

    impl State for Clock {
        const KIND: &'static str = "clock";
        const VERSION: u32 = 2;

        fn upgrade(from: u32, old: &Section) -> Result<Self, LoadError> {
            #[derive(Deserialize)]
            struct V1 {
                seconds: u32,
            }
            match from {
                1 => Ok(Self { ticks: u64::from(old.content::<V1>()?.seconds) * 1000 }),
                other => Err(old.unknown_version::<Self>(other)),
            }
        }
    }

    fn section(kind: &str, version: u32, json: &str) -> Section {
        Section {
            id: "rtc0".into(),
            kind: kind.into(),
            version,
            state: RawValue::from_string(json.into()).unwrap().into(),
        }
    }

    #[test]
    fn round_trip() {
        let saved = Section::save("rtc0", &Clock { ticks: 7 }).unwrap();
        let text = serde_json::to_string(&saved).unwrap();
        let read: Section = serde_json::from_str(&text).unwrap();
        assert_eq!(read.load::<Clock>().unwrap(), Clock { ticks: 7 });
    }

    #[test]
    fn an_older_version_is_upgraded() {
        let old = section("clock", 1, r#"{"seconds":3}"#);
        assert_eq!(old.load::<Clock>().unwrap(), Clock { ticks: 3000 });
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let newer = section("clock", 3, "{}").load::<Clock>().unwrap_err();
        assert_eq!(newer.to_string(), "rtc0: clock state has version 3, this program reads up to 2");
        let other = section("timer", 1, "{}").load::<Clock>().unwrap_err();
        assert_eq!(other.to_string(), "rtc0: state is of kind \"timer\", expected \"clock\"");
        let broken = section("clock", 2, r#"{"ticks":-1}"#).load::<Clock>().unwrap_err();
        assert!(matches!(broken, LoadError::Content { .. }));
        assert!(section("clock", 0, "{}").load::<Clock>().is_err());
    }
}
