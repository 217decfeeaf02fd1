//! The `key=value,key=[list]` grammar of the options.
//!
//! Commas separate pairs, except inside quotes and brackets; a quoted part loses its quotes, and two
//! quotes in it stand for one. Errors point at the key.

use std::{collections::BTreeMap, fmt, str::FromStr};

use thiserror::Error;

/// An option's text that does not parse.
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
    /// A value that is not of its key's type.
    #[error("{key}={value}: {why}")]
    Value {
        /// The key.
        key: String,
        /// The value.
        value: String,
        /// What is expected.
        why: String,
    },
}

/// The pairs of one option.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pairs(BTreeMap<String, String>);

impl Pairs {
    /// Parses an option's text; its keys must be among `known`.
    ///
    /// # Errors
    /// Quotes or brackets do not balance, a word has no value, a key is unknown.
    pub fn parse(text: &str, known: &[&str]) -> Result<Self, GrammarError> {
        let mut pairs = BTreeMap::new();
        for word in split(text.trim())? {
            let Some((key, value)) = word.split_once('=') else {
                return Err(GrammarError::NoValue(word));
            };
            if !known.contains(&key) {
                return Err(GrammarError::UnknownKey { key: key.to_owned(), known: known.join(", ") });
            }
            // The last of several wins; an empty one is as good as none.
            match value.trim() {
                "" => pairs.remove(key),
                value => pairs.insert(key.to_owned(), value.to_owned()),
            };
        }
        Ok(Self(pairs))
    }

    /// A value as it was given.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(String::as_str)
    }

    /// A value of a type that reads itself, if the key was given.
    ///
    /// # Errors
    /// The value does not read.
    pub fn value<T: FromStr<Err: fmt::Display>>(&self, key: &'static str) -> Result<Option<T>, GrammarError> {
        self.get(key).map(|text| text.parse().map_err(|why: T::Err| bad(key, text, why))).transpose()
    }

    /// A size in bytes.
    ///
    /// # Errors
    /// See [`size`].
    pub fn size(&self, key: &'static str) -> Result<Option<u64>, GrammarError> {
        self.get(key).map(|text| size(text).map_err(|why| bad(key, text, why))).transpose()
    }

    /// A switch, off if not given.
    ///
    /// # Errors
    /// The value is not on, off, true or false.
    pub fn toggle(&self, key: &'static str, default: bool) -> Result<bool, GrammarError> {
        match self.get(key) {
            None => Ok(default),
            Some(text) => toggle(text).map_err(|why| bad(key, text, why)),
        }
    }

    /// A list of words, brackets optional.
    pub fn words(&self, key: &str) -> Vec<&str> {
        self.get(key).map(|text| inside(text).split(',').map(str::trim).collect()).unwrap_or_default()
    }
}

fn bad(key: &str, value: &str, why: impl fmt::Display) -> GrammarError {
    GrammarError::Value { key: key.to_owned(), value: value.to_owned(), why: why.to_string() }
}

/// The text between a pair of brackets around the whole, or all of it.
fn inside(text: &str) -> &str {
    text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text)
}

/// A number of bytes with an optional suffix K, M or G.
///
/// # Errors
/// Not a decimal number, another suffix, or more than 64 bits.
pub fn size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err("a decimal number with an optional K, M or G is expected".into());
    }
    let number: u64 = digits.parse().map_err(|_| "more than 64 bits".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "more than 64 bits".to_owned())
}

/// on, off, true or false, in any case.
///
/// # Errors
/// Another word.
pub fn toggle(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err("on, off, true or false is expected".into()),
    }
}

/// The members of a list without its brackets; commas in inner brackets do not separate.
pub fn split_list(text: &str) -> Vec<&str> {
    let mut depth = 0i32;
    let members = text.split(|character| {
        match character {
            '[' => depth += 1,
            ']' => depth -= 1,
            _ => {}
        }
        character == ',' && depth == 0
    });
    members.map(str::trim).filter(|member| !member.is_empty()).collect()
}

/// A list of integers and ranges: `[1,3-5]`; brackets may be left out.
///
/// # Errors
/// It is empty, a member is no number, or a range does not go up.
pub fn integers(text: &str) -> Result<Vec<usize>, String> {
    /// More than any host has: a range must not fill memory.
    const LIMIT: usize = 1 << 16;
    let mut numbers = Vec::new();
    for member in inside(text.trim()).split(',').map(str::trim) {
        let number = |digits: &str| digits.parse::<usize>().map_err(|_| format!("{digits:?} is no number"));
        match member.split_once('-') {
            None => numbers.push(number(member)?),
            Some((first, last)) => {
                let (first, last) = (number(first)?, number(last)?);
                if first >= last || last > LIMIT {
                    return Err(format!("{member:?} is no range"));
                }
                numbers.extend(first..=last);
            }
        }
    }
    Ok(numbers)
}

/// Splits at commas outside quotes and brackets, and takes the quotes away.
fn split(text: &str) -> Result<Vec<String>, GrammarError> {
    let mut words = Vec::new();
    let mut word = String::new();
    let (mut quoted, mut depth) = (false, 0u32);
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                word.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted && depth == 0 => words.push(std::mem::take(&mut word)),
            _ => {
                if !quoted {
                    depth = match character {
                        '[' => depth + 1,
                        ']' => depth.checked_sub(1).ok_or_else(|| GrammarError::Brackets(text.into()))?,
                        _ => depth,
                    };
                }
                word.push(character);
            }
        }
    }
    if quoted {
        return Err(GrammarError::Quotes(text.into()));
    }
    if depth != 0 {
        return Err(GrammarError::Brackets(text.into()));
    }
    if !word.is_empty() || !words.is_empty() {
        words.push(word);
    }
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_in_quotes_and_brackets_are_kept() {
        let known = ["path", "cpus", "name"];
        let pairs = Pairs::parse(r#" path="/a,b=c",cpus=[1,2,[3]],name="say ""hi""" "#, &known).unwrap();
        assert_eq!(pairs.get("path"), Some("/a,b=c"));
        assert_eq!(pairs.get("cpus"), Some("[1,2,[3]]"));
        assert_eq!(pairs.get("name"), Some(r#"say "hi""#));
    }

    #[test]
    fn the_last_wins_and_empty_is_absent() {
        let pairs = Pairs::parse("a=1,a=2,b=", &["a", "b"]).unwrap();
        assert_eq!((pairs.get("a"), pairs.get("b")), (Some("2"), None));
        assert_eq!(Pairs::parse("  ", &[]).unwrap(), Pairs::default());
    }

    #[test]
    fn what_does_not_parse_is_named() {
        let error = |text| Pairs::parse(text, &["a"]).unwrap_err().to_string();
        assert_eq!(error("b=1"), "unknown key \"b\": one of a is expected");
        assert_eq!(error("a=1, a=2"), "unknown key \" a\": one of a is expected");
        assert_eq!(error("a"), "\"a\" has no value: key=value is expected");
        assert!(error("a=\"1").contains("quotes"));
        assert!(error("a=[1").contains("brackets"));
        assert!(error("a=1]").contains("brackets"));
    }

    #[test]
    fn lists_of_integers() {
        assert_eq!(integers("[1,3-5]"), Ok(vec![1, 3, 4, 5]));
        assert_eq!(integers("7"), Ok(vec![7]));
        for bad in ["", "[]", "5-3", "3-3", "a", "1-99999999999", "[1"] {
            assert!(integers(bad).is_err(), "{bad}");
        }
        assert_eq!(split_list("0@[1,2], 1@[3]"), ["0@[1,2]", "1@[3]"]);
    }

    #[test]
    fn sizes() {
        assert_eq!(size("512M"), Ok(512 << 20));
        assert_eq!(size("12"), Ok(12));
        for bad in ["", "M", "1T", "1.5G", "-1", "1k", "99999999999G", "1MB", "+1"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
