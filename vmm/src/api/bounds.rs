//! How much a body may hold: looked at before a body is read, so that one within the limit on its length cannot
//! come to many times its length in memory, nor keep the API thread busy for long.
//!
//! An empty object of two bytes is a disk of some hundred in memory. So what is counted is what takes room there. The
//! bounds are beyond what any machine can have: KVM knows 4096 processors, PCI has places for fewer than 4096 devices.

use thiserror::Error;

/// Most items of one list.
const MAX_ITEMS: usize = 4096;
/// Most objects and lists of a body.
const MAX_CONTAINERS: usize = 16 << 10;
/// Most members of objects and items of lists of a body, all together.
const MAX_VALUES: usize = 128 << 10;
/// Longest string as it is written, in bytes.
const MAX_STRING: usize = 1 << 20;

/// Longest path to something in a body that an error repeats, in bytes.
const MAX_PATH: usize = 100;

/// A body holds more than any client sends.
#[derive(Debug, Error, PartialEq, Eq)]
pub(super) enum TooMuch {
    /// A list is too long.
    #[error("{path}: more than {MAX_ITEMS} items")]
    Items {
        /// Where it is.
        path: String,
    },
    /// There are too many objects and lists.
    #[error("{path}: more than {MAX_CONTAINERS} objects and lists so far")]
    Containers {
        /// Where one too many is.
        path: String,
    },
    /// The objects and lists hold too much, all together.
    #[error("{path}: more than {MAX_VALUES} members of objects and items of lists so far")]
    Values {
        /// The one with one too many.
        path: String,
    },
    /// A string is too long.
    #[error("{path}: a string of more than {MAX_STRING} bytes")]
    String {
        /// What it is in.
        path: String,
    },
}

/// Counts what a body holds. What is no JSON is somebody else's to tell: up to where it ceases to be, this
/// has seen the same as any reader.
///
/// # Errors
/// It is more than any client sends.
pub(super) fn check(body: &[u8]) -> Result<(), TooMuch> {
    let mut levels: Vec<Level<'_>> = Vec::new();
    let (mut containers, mut values) = (0, 0);
    // The last string, which a colon makes the name of the member whose value comes next.
    let (mut last, mut name): (&[u8], &[u8]) = (&[], &[]);
    let mut rest = body;
    while let Some((byte, after)) = rest.split_first() {
        rest = after;
        match byte {
            b'"' => {
                let length = string_length(rest);
                let (string, after) = rest.split_at(length);
                if length > MAX_STRING {
                    return Err(TooMuch::String { path: path(&levels, Some(name)) });
                }
                last = string;
                rest = after.get(1..).unwrap_or_default();
            }
            b':' => {
                name = last;
                values += 1;
            }
            b'{' | b'[' => {
                let kind = if *byte == b'[' { Kind::List { commas: 0 } } else { Kind::Object };
                containers += 1;
                if containers > MAX_CONTAINERS {
                    return Err(TooMuch::Containers { path: path(&levels, Some(name)) });
                }
                levels.push(Level { kind, name: std::mem::take(&mut name) });
            }
            b'}' | b']' => {
                levels.pop();
                name = &[];
            }
            b',' => {
                name = &[];
                if let Some(Level { kind: Kind::List { commas }, .. }) = levels.last_mut() {
                    *commas += 1;
                    values += 1;
                    if *commas >= MAX_ITEMS {
                        return Err(TooMuch::Items { path: path(&levels, None) });
                    }
                }
            }
            _ => {}
        }
        if values > MAX_VALUES {
            return Err(TooMuch::Values { path: path(&levels, None) });
        }
    }
    Ok(())
}

/// An object or list that is not closed yet.
struct Level<'body> {
    kind: Kind,
    /// Of which member it is the value; empty for the body and for items of a list.
    name: &'body [u8],
}

enum Kind {
    Object,
    List { commas: usize },
}

/// How long the string is whose opening quote came before `text`; up to the end if it has none.
fn string_length(text: &[u8]) -> usize {
    let mut at = 0;
    while let Some(byte) = text.get(at) {
        match byte {
            b'"' => return at,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    text.len()
}

/// The way to the innermost level, or to something in it; cut off where it is long.
fn path(levels: &[Level<'_>], inside: Option<&[u8]>) -> String {
    let mut path = String::new();
    let inner = levels.iter().skip(1).map(|level| level.name).chain(inside);
    for (above, name) in levels.iter().zip(inner) {
        let step = match above.kind {
            Kind::List { commas } => commas.to_string(),
            Kind::Object => String::from_utf8_lossy(name.get(..MAX_PATH).unwrap_or(name)).into_owned(),
        };
        if step.is_empty() {
            continue;
        }
        if !path.is_empty() {
            path.push('.');
        }
        path += &step;
        if path.len() > MAX_PATH {
            path.truncate(path.floor_char_boundary(MAX_PATH));
            path += "...";
            break;
        }
    }
    if path.is_empty() { "the body".to_owned() } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(body: &str) -> String {
        check(body.as_bytes()).map_or_else(|error| error.to_string(), |()| String::new())
    }

    fn list(item: &str, count: usize) -> String {
        format!("[{}]", vec![item; count].join(","))
    }

    #[test]
    fn each_bound_is_told_with_its_place() {
        let disks = |count| format!("{{\"disks\":{}}}", list("{}", count));
        assert_eq!(said(&disks(MAX_ITEMS)), "");
        assert_eq!(said(&disks(MAX_ITEMS + 1)), "disks: more than 4096 items");
        let inner = format!("{{\"a\":[0,{{\"b\":{}}}]}}", list("1", MAX_ITEMS + 1));
        assert_eq!(said(&inner), "a.1.b: more than 4096 items");

        // The body, its list, four lists in it.
        let full = MAX_CONTAINERS / 4;
        let lists = |more: usize| {
            let rows = [full, full, full, full - 6 + more].map(|count| list("[]", count)).join(",");
            format!("{{\"x\":[{rows}]}}")
        };
        assert_eq!(said(&lists(0)), "");
        assert_eq!(said(&lists(1)), format!("x.3.{}: more than 16384 objects and lists so far", full - 6));

        let members = |count: usize| format!("{{{}}}", vec!["\"m\":0"; count].join(","));
        let told = "more than 131072 members of objects and items of lists so far";
        assert_eq!(said(&members(MAX_VALUES)), "");
        assert_eq!(said(&members(MAX_VALUES + 1)), format!("the body: {told}"));
        let lists = format!("{{\"x\":{}}}", list(&list("1", MAX_ITEMS), 40));
        assert_eq!(said(&lists), format!("x: {told}"));

        let string = |length: usize| format!("{{\"s\":[\"{}\"]}}", "x".repeat(length));
        assert_eq!(said(&string(MAX_STRING)), "");
        assert_eq!(said(&string(MAX_STRING + 1)), "s.0: a string of more than 1048576 bytes");
    }

    #[test]
    fn what_is_in_a_string_is_not_counted() {
        let text =
            format!("{{\"a\":\"{}\\\"{}\\\\\"}}", "{[".repeat(MAX_CONTAINERS), ",:".repeat(MAX_VALUES));
        assert_eq!(said(&text), "");
        // Nor what follows a quote that is not closed.
        assert_eq!(said(&format!("\"{}", "[".repeat(MAX_CONTAINERS + 1))), "");
        assert_eq!(said("\"\\"), "");
    }

    #[test]
    fn depth_and_long_names_are_cut_off() {
        let deep = format!("{}1", "{\"abc\":".repeat(MAX_CONTAINERS + 1));
        let told = said(&deep);
        assert!(told.starts_with("abc.abc.") && told.contains("...: more than 16384 objects"), "{told}");
        let long = format!("{{\"{}\":{}}}", "\u{20ac}".repeat(1000), list("1", MAX_ITEMS + 1));
        let told = said(&long);
        assert!(told.len() < 200 && told.ends_with("...: more than 4096 items"), "{told}");
        // What closes more than there is does no harm.
        assert_eq!(said("]]}}[,,,"), "");
    }
}
