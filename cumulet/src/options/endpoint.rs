//! Where others reach the program: `--api-socket` and `--event-monitor`.

use std::path::PathBuf;

use super::grammar::{GrammarError, Keys, Pairs};

/// The keys of both.
pub const KEYS: Keys = &[&["path=PATH", "fd=FD"]];

/// An end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// To be opened, or made, at this path.
    Path(PathBuf),
    /// Opened by whoever started the program.
    Descriptor(i32),
}

/// Reads `--api-socket`: a text that says of neither key that it is one is a path.
///
/// # Errors
/// Neither or both of the keys, or a value that is none.
pub fn api_socket(text: &str) -> Result<Endpoint, GrammarError> {
    let bare = text.trim();
    if !bare.is_empty() && !bare.starts_with("path=") && !bare.starts_with("fd=") {
        return Ok(Endpoint::Path(PathBuf::from(bare)));
    }
    event_monitor(text)
}

/// Reads `--event-monitor`.
///
/// # Errors
/// Neither or both of the keys, or a value that is none.
pub fn event_monitor(text: &str) -> Result<Endpoint, GrammarError> {
    let pairs = Pairs::parse(text, KEYS)?;
    match (pairs.path("path"), pairs.number("fd")?) {
        (Some(path), None) => Ok(Endpoint::Path(path)),
        (None, Some(fd)) => Ok(Endpoint::Descriptor(fd)),
        _ => Err(GrammarError::Whole(format!("{text:?} is neither path=PATH nor fd=FD"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_a_path_or_a_descriptor() {
        for text in ["/run/a", "path=/run/a", " path=/run/a "] {
            assert_eq!(api_socket(text), Ok(Endpoint::Path("/run/a".into())), "{text}");
        }
        assert_eq!(api_socket("fd=7"), Ok(Endpoint::Descriptor(7)));
        assert_eq!(api_socket("/run/a=b"), Ok(Endpoint::Path("/run/a=b".into())), "a bare path is as it is");
        for text in ["", "path=", "path=/run/a,fd=7", "fd=x", "fd=-1", "path=/run/a,mode=7"] {
            assert!(api_socket(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_monitor_is_never_bare() {
        assert_eq!(event_monitor("path=/run/e"), Ok(Endpoint::Path("/run/e".into())));
        assert_eq!(event_monitor("fd=7"), Ok(Endpoint::Descriptor(7)));
        for text in ["/run/e", "", "path=/run/e,fd=7"] {
            assert!(event_monitor(text).is_err(), "{text}");
        }
    }
}
