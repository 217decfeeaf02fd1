//! Printing an error with its causes.

use std::error::Error;

/// The messages of an error and its causes, outermost first.
pub fn messages(error: &dyn Error) -> Vec<String> {
    let mut messages = vec![error.to_string()];
    let mut cause = error.source();
    while let Some(error) = cause {
        messages.push(error.to_string());
        cause = error.source();
    }
    messages
}

/// The same in one line, for the log.
pub fn chain(error: &dyn Error) -> String {
    messages(error).join(": ")
}
