//! The values of the grammar: numbers, sizes, switches, words, lists, tuples.
//!
//! Every reader of [`Pairs`] gives `None` for a key that was not given, and an error that begins with the key.

use std::path::PathBuf;

use super::grammar::{GrammarError, Pairs, split, unquote};

/// More members than a list of integers may have, ranges counted out: a range must not fill memory.
const MAX_INTEGERS: usize = 1 << 16;

/// A member of a tuple list: `key@value`, the value a list of integers.
pub type Tuple = (String, Vec<u64>);

impl Pairs {
    /// A text.
    pub fn text(&self, key: &str) -> Option<String> {
        self.raw(key).map(unquote)
    }

    /// A path.
    pub fn path(&self, key: &str) -> Option<PathBuf> {
        self.text(key).map(PathBuf::from)
    }

    /// A text that must be there.
    ///
    /// # Errors
    /// It is not.
    pub fn required(&self, key: &'static str) -> Result<String, GrammarError> {
        self.text(key).ok_or(GrammarError::Missing(key))
    }

    /// A value that `read` makes of the text.
    ///
    /// # Errors
    /// What `read` says.
    pub fn read<T>(
        &self,
        key: &str,
        read: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, GrammarError> {
        let text = self.text(key);
        text.map(|text| read(&text).map_err(|what| GrammarError::value(key, what))).transpose()
    }

    /// A decimal number that fits its type.
    ///
    /// # Errors
    /// It is none, or does not fit.
    pub fn number<T: TryFrom<u64>>(&self, key: &str) -> Result<Option<T>, GrammarError> {
        self.read(key, number)
    }

    /// A size in bytes.
    ///
    /// # Errors
    /// See [`size`].
    pub fn size(&self, key: &str) -> Result<Option<u64>, GrammarError> {
        self.read(key, size)
    }

    /// A switch.
    ///
    /// # Errors
    /// See [`toggle`].
    pub fn toggle(&self, key: &str) -> Result<Option<bool>, GrammarError> {
        self.read(key, toggle)
    }

    /// One of a few words, whatever their case.
    ///
    /// # Errors
    /// It is none of them.
    pub fn word<T: Copy>(&self, key: &str, words: &[(&str, T)]) -> Result<Option<T>, GrammarError> {
        self.read(key, |text| {
            let found = words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text));
            found.map(|(_, meaning)| *meaning).ok_or_else(|| none_of(text, words))
        })
    }

    /// The same, but case matters.
    ///
    /// # Errors
    /// It is none of them.
    pub fn exact_word<T: Copy>(&self, key: &str, words: &[(&str, T)]) -> Result<Option<T>, GrammarError> {
        self.read(key, |text| {
            let found = words.iter().find(|(word, _)| *word == text);
            found.map(|(_, meaning)| *meaning).ok_or_else(|| none_of(text, words))
        })
    }

    /// A list of integers and ranges: `[1,3-5]`; brackets may be left out around one.
    ///
    /// # Errors
    /// It is empty, a member is no number or does not fit, or a range does not go up.
    pub fn integers<T: TryFrom<u64>>(&self, key: &str) -> Result<Option<Vec<T>>, GrammarError> {
        self.read(key, integers)
    }

    /// A list of texts: `[a,b]`; brackets may be left out. `[]` has no members.
    ///
    /// # Errors
    /// A member is empty, or what is quoted in it does not balance.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<String>>, GrammarError> {
        let Some(text) = self.list(key) else { return Ok(None) };
        let inner = inside(&text).unwrap_or(&text).trim();
        if inner.is_empty() {
            return Ok(Some(Vec::new()));
        }
        let members: Vec<String> = split(inner)?.into_iter().map(|member| unquote(member.trim())).collect();
        if members.iter().any(String::is_empty) {
            return Err(GrammarError::value(key, format!("{text:?} has an empty member")));
        }
        Ok(Some(members))
    }

    /// A list of tuples: `[key@value,key@[1,3-5]]`, brackets mandatory.
    ///
    /// # Errors
    /// Brackets or a member's key or value are missing, or there is a second `@`.
    pub fn tuples(&self, key: &str) -> Result<Option<Vec<Tuple>>, GrammarError> {
        let Some(text) = self.list(key) else { return Ok(None) };
        let wrong = |what: String| GrammarError::value(key, what);
        let inner = inside(&text).ok_or_else(|| wrong(format!("{text:?} is not in brackets")))?.trim();
        if inner.is_empty() {
            return Err(wrong("an empty list".into()));
        }
        let members = split(inner)?.into_iter().map(|member| tuple(member.trim()).map_err(&wrong));
        members.collect::<Result<Vec<_>, _>>().map(Some)
    }

    /// A list of tuples with one integer each: `[key@value,...]`.
    ///
    /// # Errors
    /// As for [`tuples`](Self::tuples), or a value is a list or does not fit.
    pub fn single_tuples<T: TryFrom<u64>>(
        &self,
        key: &str,
    ) -> Result<Option<Vec<(String, T)>>, GrammarError> {
        let Some(tuples) = self.tuples(key)? else { return Ok(None) };
        let single = tuples.into_iter().map(|(name, values)| match values[..] {
            [value] => T::try_from(value)
                .map(|value| (name, value))
                .map_err(|_| GrammarError::value(key, format!("{value} has more than {} bits", bits::<T>()))),
            _ => Err(GrammarError::value(key, format!("{name:?} takes one number"))),
        });
        single.collect::<Result<Vec<_>, _>>().map(Some)
    }

    /// A list's text. Quotes around the whole go; those inside protect members.
    fn list(&self, key: &str) -> Option<String> {
        self.raw(key).map(|raw| if raw.starts_with('"') { unquote(raw) } else { raw.to_owned() })
    }
}

/// A decimal number that fits its type.
///
/// # Errors
/// It is none, or does not fit.
pub fn number<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    // A sign would be taken for a digit.
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("{text:?} is not a decimal number"));
    }
    let number: Option<u64> = text.parse().ok();
    let fitting = number.and_then(|number| T::try_from(number).ok());
    fitting.ok_or_else(|| format!("{text} has more than {} bits", bits::<T>()))
}

fn bits<T>() -> usize {
    8 * size_of::<T>()
}

/// A number of bytes with an optional suffix K, M or G.
///
/// # Errors
/// Not a decimal number, another suffix, or more than 64 bits.
pub fn size(text: &str) -> Result<u64, String> {
    let suffixes = [("K", 10), ("M", 20), ("G", 30)];
    let suffixed = suffixes.iter().find_map(|(suffix, shift)| Some((text.strip_suffix(suffix)?, *shift)));
    let (digits, shift) = suffixed.unwrap_or((text, 0));
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(format!("{text:?} is not a decimal number with an optional K, M or G"));
    }
    let number: Option<u64> = digits.parse().ok();
    let bytes = number.and_then(|number| number.checked_mul(1 << shift));
    bytes.ok_or_else(|| format!("{text} has more than 64 bits"))
}

/// on, off, true or false, in any case.
///
/// # Errors
/// Another word.
pub fn toggle(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err(format!("{text:?} is not on or off")),
    }
}

/// A hexadecimal number of 16 bits: `0xe9`.
///
/// # Errors
/// It is none.
pub fn hex(text: &str) -> Result<u16, String> {
    let digits = text.strip_prefix("0x").filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
    let number = digits.and_then(|digits| u16::from_str_radix(digits, 16).ok());
    number.ok_or_else(|| format!("{text:?} is not a port number like 0xe9"))
}

/// A list of integers and ranges.
fn integers<T: TryFrom<u64>>(text: &str) -> Result<Vec<T>, String> {
    let mut numbers = Vec::new();
    for member in inside(text).unwrap_or(text).split(',').map(str::trim) {
        let (first, last) = match member.split_once('-') {
            None => {
                let one = number::<u64>(member)?;
                (one, one)
            }
            Some((first, last)) => {
                let (first, last) = (number(first)?, number(last)?);
                if first >= last {
                    return Err(format!("{member:?} does not go up"));
                }
                (first, last)
            }
        };
        let room = MAX_INTEGERS.saturating_sub(numbers.len());
        if last - first >= room as u64 {
            return Err(format!("{text:?} has more than {MAX_INTEGERS} members"));
        }
        for one in first..=last {
            numbers.push(T::try_from(one).map_err(|_| format!("{one} has more than {} bits", bits::<T>()))?);
        }
    }
    Ok(numbers)
}

fn tuple(member: &str) -> Result<Tuple, String> {
    let (key, value) = member.split_once('@').ok_or_else(|| format!("{member:?} is not key@value"))?;
    let key = unquote(key.trim());
    if key.is_empty() {
        return Err(format!("{member:?} has nothing before the @"));
    }
    if value.contains('@') {
        return Err(format!("{member:?} has a second @"));
    }
    Ok((key, integers(value.trim())?))
}

/// The text between a pair of brackets around the whole.
pub(super) fn inside(text: &str) -> Option<&str> {
    text.strip_prefix('[')?.strip_suffix(']')
}

fn none_of<T>(text: &str, words: &[(&str, T)]) -> String {
    let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    format!("{text:?} is not one of {}", words.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::grammar::Keys;

    const KEYS: Keys = &[&["k=VALUE"]];

    fn of(value: &str) -> Pairs {
        Pairs::parse(&format!("k={value}"), KEYS).unwrap()
    }

    fn said<T: std::fmt::Debug>(result: Result<T, GrammarError>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn absent_is_none_and_required_is_missed() {
        let none = Pairs::parse("", KEYS).unwrap();
        assert_eq!(none.text("k"), None);
        assert_eq!(none.size("k"), Ok(None));
        assert_eq!(none.tuples("k"), Ok(None));
        assert_eq!(said(none.required("k")), "k: is missing, and has no default");
    }

    #[test]
    fn toggles() {
        for (text, meant) in [("on", true), ("ON", true), ("True", true), ("off", false), ("FALSE", false)] {
            assert_eq!(of(text).toggle("k"), Ok(Some(meant)), "{text}");
        }
        assert_eq!(said(of("maybe").toggle("k")), r#"k: "maybe" is not on or off"#);
        assert!(of("1").toggle("k").is_err());
    }

    #[test]
    fn sizes() {
        let good = [
            ("0", 0),
            ("7", 7),
            ("4K", 4096),
            ("3M", 3 << 20),
            ("2G", 2 << 30),
            ("17179869183G", 17_179_869_183 << 30),
        ];
        for (text, bytes) in good {
            assert_eq!(of(text).size("k"), Ok(Some(bytes)), "{text}");
        }
        for text in
            ["1k", "1T", "1B", "1.5G", "G", "-1", "+1", "0x10", "1 G", "17179869184G", "99999999999999999999"]
        {
            assert!(of(text).size("k").is_err(), "{text}");
        }
    }

    #[test]
    fn numbers_are_decimal_and_fit() {
        assert_eq!(of("255").number::<u8>("k"), Ok(Some(255)));
        assert_eq!(said(of("256").number::<u8>("k")), "k: 256 has more than 8 bits");
        for text in ["-1", "+1", "0x1", "1K", "one"] {
            assert!(of(text).number::<u32>("k").is_err(), "{text}");
        }
        assert_eq!(hex("0xe9"), Ok(0xe9));
        for text in ["e9", "0x", "0x10000", "0x+1", "233"] {
            assert!(hex(text).is_err(), "{text}");
        }
    }

    #[test]
    fn words() {
        let words = [("copy", 1), ("ondemand", 2)];
        assert_eq!(of("OnDemand").word("k", &words), Ok(Some(2)));
        assert_eq!(said(of("lazy").word("k", &words)), r#"k: "lazy" is not one of copy, ondemand"#);
        assert_eq!(of("copy").exact_word("k", &words), Ok(Some(1)));
        assert!(of("Copy").exact_word("k", &words).is_err());
    }

    #[test]
    fn integer_lists() {
        let good: [(&str, &[u16]); 5] = [
            ("[1,3-5,7]", &[1, 3, 4, 5, 7]),
            ("4", &[4]),
            ("2-4", &[2, 3, 4]),
            ("[ 1 , 2 ]", &[1, 2]),
            ("\"1,2\"", &[1, 2]),
        ];
        for (text, numbers) in good {
            assert_eq!(of(text).integers("k"), Ok(Some(numbers.to_vec())), "{text}");
        }
        for text in ["[]", "[1,]", "5-3", "3-3", "[a]", "1-", "-1", "1-2-3", "0-70000"] {
            assert!(of(text).integers::<u16>("k").is_err(), "{text}");
        }
        assert!(said(of("0-18446744073709551615").integers::<u64>("k")).contains("more than 65536 members"));
        assert!(said(of("[0-65535,1]").integers::<u64>("k")).contains("more than 65536 members"));
    }

    #[test]
    fn string_lists() {
        let good: [(&str, &[&str]); 6] = [
            ("[a,b]", &["a", "b"]),
            ("a", &["a"]),
            ("[]", &[]),
            (r#"["a,b",c]"#, &["a,b", "c"]),
            (r#""[""a,b"",c]""#, &["a,b", "c"]),
            (r#""a,b""#, &["a", "b"]),
        ];
        for (text, members) in good {
            let members = members.iter().map(|member| (*member).to_owned()).collect();
            assert_eq!(of(text).strings("k"), Ok(Some(members)), "{text}");
        }
        assert!(of("[a,,b]").strings("k").is_err());
        assert!(of(r#""[""a]""#).strings("k").is_err(), "quotes inside must balance too");
    }

    #[test]
    fn tuple_lists() {
        let tuple = |key: &str, values: &[u64]| (key.to_owned(), values.to_vec());
        let good = [
            ("[0@[1,2-4],1@5]", vec![tuple("0", &[1, 2, 3, 4]), tuple("1", &[5])]),
            ("[net0@3]", vec![tuple("net0", &[3])]),
            ("\"[0@[1,2]]\"", vec![tuple("0", &[1, 2])]),
            (r#"["a,b"@1]"#, vec![tuple("a,b", &[1])]),
        ];
        for (text, tuples) in good {
            assert_eq!(of(text).tuples("k"), Ok(Some(tuples)), "{text}");
        }
        for text in ["0@1", "[]", "[0]", "[@1]", "[0@1@2]", "[0@]", "[0@[]]", "[0@[x]]", "[0@1,]"] {
            assert!(of(text).tuples("k").is_err(), "{text}");
        }
    }

    #[test]
    fn single_tuple_lists() {
        assert_eq!(of("[a@255]").single_tuples::<u8>("k"), Ok(Some(vec![("a".to_owned(), 255)])));
        assert_eq!(said(of("[a@256]").single_tuples::<u8>("k")), "k: 256 has more than 8 bits");
        assert_eq!(said(of("[a@[1,2]]").single_tuples::<u8>("k")), r#"k: "a" takes one number"#);
    }
}
