//! The `key=value,key=[list]` grammar of the options: text into pairs.
//!
//! What a value is, is [`values`](super::values)' business; what it means, that of the option's own module.
//!
//! * Commas separate pairs, except inside quotes and brackets. A value may contain `=`.
//! * A quoted part loses its quotes, and two quotes in it stand for one.
//! * An empty value is as good as none. Of several values for one key the last wins.
//! * A few options know words that stand alone, as `pty` does.

use std::collections::{BTreeMap, BTreeSet};

use thiserror::Error;

/// An option's text that does not read. Each names the key.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum GrammarError {
    /// A quote without its partner.
    #[error("unbalanced quotes in {0:?}")]
    Quotes(String),
    /// A bracket without its partner.
    #[error("unbalanced brackets in {0:?}")]
    Brackets(String),
    /// A word without a value.
    #[error("{0:?} has no value: key=value is expected")]
    NoValue(String),
    /// A key that the option does not have.
    #[error("unknown key {key:?}: one of {known} is expected")]
    UnknownKey {
        /// The key.
        key: String,
        /// Those there are.
        known: String,
    },
    /// A value that is not of its key's type or range.
    #[error("{key}: {what}")]
    Value {
        /// The key.
        key: String,
        /// The value, and what is expected instead.
        what: String,
    },
    /// A key that must be there is not.
    #[error("{0}: is missing, and has no default")]
    Missing(&'static str),
    /// The option as a whole says something that cannot be.
    #[error("{0}")]
    Whole(String),
}

impl GrammarError {
    /// A wrong value.
    pub fn value(key: &str, what: impl Into<String>) -> Self {
        Self::Value { key: key.to_owned(), what: what.into() }
    }
}

/// What an option may say: groups of keys, each with the value that stands for its absence or with what a value looks
/// like, as `size=512M` and `path=PATH`. Without a value it is a word that stands alone.
pub type Keys = &'static [&'static [&'static str]];

/// The entries of all groups, as name and the rest.
pub fn entries(keys: Keys) -> impl Iterator<Item = (&'static str, Option<&'static str>)> {
    keys.iter().copied().flatten().map(|entry| match entry.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (*entry, None),
    })
}

/// The pairs of one option, values still in their quotes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pairs {
    values: BTreeMap<String, String>,
    words: BTreeSet<String>,
}

impl Pairs {
    /// Takes an option's text apart.
    ///
    /// # Errors
    /// Quotes or brackets do not balance, a word has no value, a key is unknown.
    pub fn parse(text: &str, keys: Keys) -> Result<Self, GrammarError> {
        let mut pairs = Self::default();
        let text = text.trim();
        if text.is_empty() {
            return Ok(pairs);
        }
        for part in split(text)? {
            let Some((key, value)) = part.split_once('=') else {
                if !entries(keys).any(|known| known == (part, None)) {
                    return Err(GrammarError::NoValue(part.to_owned()));
                }
                pairs.words.insert(part.to_owned());
                continue;
            };
            if !entries(keys).any(|(name, value)| name == key && value.is_some()) {
                return Err(unknown(key, keys));
            }
            match value.trim() {
                "" => pairs.values.remove(key),
                value => pairs.values.insert(key.to_owned(), value.to_owned()),
            };
        }
        Ok(pairs)
    }

    /// A value as it was given, with its quotes.
    pub(super) fn raw(&self, key: &str) -> Option<&str> {
        self.values.get(key).map(String::as_str)
    }

    /// Whether a word that stands alone is there.
    pub fn has(&self, word: &str) -> bool {
        self.words.contains(word)
    }
}

fn unknown(key: &str, keys: Keys) -> GrammarError {
    let known: Vec<&str> = entries(keys).map(|(name, _)| name).collect();
    GrammarError::UnknownKey { key: key.to_owned(), known: known.join(", ") }
}

/// Splits at commas outside quotes and brackets. Quotes stay.
///
/// # Errors
/// Quotes or brackets do not balance.
pub(super) fn split(text: &str) -> Result<Vec<&str>, GrammarError> {
    let mut parts = Vec::new();
    let (mut quoted, mut depth, mut start) = (false, 0u32, 0);
    for (at, character) in text.char_indices() {
        match character {
            // Two quotes in a quoted part close it and open it again, which comes to the same here.
            '"' => quoted = !quoted,
            _ if quoted => {}
            '[' => depth += 1,
            ']' => depth = depth.checked_sub(1).ok_or_else(|| GrammarError::Brackets(text.into()))?,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if quoted {
        return Err(GrammarError::Quotes(text.into()));
    }
    if depth != 0 {
        return Err(GrammarError::Brackets(text.into()));
    }
    parts.push(&text[start..]);
    Ok(parts)
}

/// Takes quotes away; two in a quoted part leave one.
pub(super) fn unquote(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut quoted = false;
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                plain.push('"');
            }
            '"' => quoted = !quoted,
            _ => plain.push(character),
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEYS: Keys = &[&["path=PATH", "name=NAME", "size=1"], &["cpus=LIST", "pty"]];

    fn parsed(text: &str) -> Pairs {
        Pairs::parse(text, KEYS).unwrap()
    }

    fn refused(text: &str) -> String {
        Pairs::parse(text, KEYS).unwrap_err().to_string()
    }

    #[test]
    fn commas_separate_and_equal_signs_do_not() {
        let pairs = parsed("path=/a=b,size=2");
        assert_eq!((pairs.raw("path"), pairs.raw("size")), (Some("/a=b"), Some("2")));
        assert_eq!(refused("path=/a,,size=2"), r#""" has no value: key=value is expected"#);
    }

    #[test]
    fn quotes_and_brackets_protect_commas() {
        let pairs = parsed(r#"path="/a,b=c",cpus=[1,[2,3]],name="x ""y"" [,""#);
        assert_eq!(pairs.raw("path").map(unquote).as_deref(), Some("/a,b=c"));
        assert_eq!(pairs.raw("cpus"), Some("[1,[2,3]]"));
        assert_eq!(pairs.raw("name").map(unquote).as_deref(), Some(r#"x "y" [,"#));
    }

    #[test]
    fn what_does_not_balance_is_refused() {
        assert!(refused(r#"path="a"#).starts_with("unbalanced quotes"));
        for text in ["cpus=[1", "cpus=1]", "cpus=]1[", "cpus=[[1]"] {
            assert!(refused(text).starts_with("unbalanced brackets"), "{text}");
        }
    }

    #[test]
    fn unknown_keys_are_refused_with_those_there_are() {
        assert_eq!(
            refused("pasth=/a"),
            r#"unknown key "pasth": one of path, name, size, cpus, pty is expected"#
        );
        assert!(refused("path=/a, size=1").contains(r#"unknown key " size""#), "a space is part of a key");
        assert!(refused("pty=1").contains("unknown key"), "a word that stands alone takes no value");
    }

    #[test]
    fn a_key_needs_a_value_but_for_words_that_stand_alone() {
        assert_eq!(refused("path"), r#""path" has no value: key=value is expected"#);
        assert!(parsed("pty,size=1").has("pty"));
        assert!(!parsed("size=1").has("pty"));
    }

    #[test]
    fn empty_is_absent_and_the_last_wins() {
        assert_eq!(parsed("size=1,size=2").raw("size"), Some("2"));
        assert_eq!(parsed("size=1,size=").raw("size"), None);
        assert_eq!(parsed("size= ").raw("size"), None);
        assert_eq!(parsed(""), Pairs::default());
        assert_eq!(parsed(" \t"), Pairs::default());
    }

    #[test]
    fn blanks_around_the_whole_and_around_values_go() {
        assert_eq!(parsed("  size= 7 ,path=/a ").raw("size"), Some("7"));
        assert_eq!(parsed("path= /a b ").raw("path"), Some("/a b"));
    }
}
