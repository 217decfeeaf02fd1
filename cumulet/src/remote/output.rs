//! What came of a command, as people and scripts read it.

use api_client::{ClientError, Refusal};
use serde_json::{Value, json};

use super::{
    Called, RemoteError,
    local::{LocalError, Told},
};

/// How it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// The body as it came; an error in one line.
    Plain,
    /// The body as it came; an error as a numbered list.
    Numbered,
    /// One line of JSON, whatever happened.
    Json,
}

impl Form {
    pub(super) fn of(called: Called, json: bool) -> Self {
        match (json, called) {
            (true, _) => Self::Json,
            (false, Called::Cumulet) => Self::Plain,
            (false, Called::Reference) => Self::Numbered,
        }
    }

    /// What is printed after success.
    pub(super) fn answer(self, body: Option<&[u8]>) -> Vec<u8> {
        let mut text = match (self, body) {
            (Self::Json, body) => {
                let body = body.unwrap_or_default();
                let text = || Value::from(String::from_utf8_lossy(body).into_owned());
                let result = if body.is_empty() {
                    Value::Null
                } else {
                    serde_json::from_slice(body).unwrap_or_else(|_| text())
                };
                json!({ "result": result }).to_string().into_bytes()
            }
            (_, None) => return Vec::new(),
            (_, Some(body)) => body.to_vec(),
        };
        if text.last() != Some(&b'\n') {
            text.push(b'\n');
        }
        text
    }

    /// What is printed of something that was told here.
    pub(super) fn told(self, told: Told) -> Vec<u8> {
        match self {
            Self::Json => format!("{}\n", json!({ "result": told.value })).into_bytes(),
            Self::Plain | Self::Numbered => told.text.into_bytes(),
        }
    }

    /// What is printed after a failure, and whether on standard output.
    pub(super) fn error(self, error: &RemoteError) -> (String, bool) {
        let messages = messages(error);
        let local = match error {
            RemoteError::Local(error) => Some(error),
            _ => None,
        };
        match self {
            Self::Plain => {
                let line = local.map_or_else(|| messages.join(": "), LocalError::line);
                (format!("{}: {line}\n", Called::Cumulet.name()), false)
            }
            Self::Numbered => (numbered(&messages), false),
            Self::Json => {
                let refusal = refusal(error);
                let status = refusal.map(|refusal| refusal.status);
                let code = refusal.and_then(|refusal| refusal.code.as_deref());
                let code = code.or_else(|| local.and_then(LocalError::code));
                let said = refusal.and_then(|refusal| refusal.messages.as_ref()).unwrap_or(&messages);
                (format!("{}\n", json!({ "error": said, "code": code, "status": status })), true)
            }
        }
    }
}

fn refusal(error: &RemoteError) -> Option<&Refusal> {
    match error {
        RemoteError::Client(ClientError::Refused(refusal)) => Some(refusal),
        _ => None,
    }
}

/// The messages of the whole chain; the server's go on where ours end.
fn messages(error: &RemoteError) -> Vec<String> {
    if let RemoteError::Local(error) = error {
        return error.messages();
    }
    let Some(refusal) = refusal(error) else { return vmm::error::messages(error) };
    let mut messages = vec![format!("Server responded with {}", refusal.status_name())];
    match &refusal.messages {
        Some(said) => messages.extend(said.iter().cloned()),
        None => messages.push("Its reason cannot be read".to_owned()),
    }
    messages
}

fn numbered(messages: &[String]) -> String {
    if let [only] = messages {
        return format!("Error: ch-remote exited with the following error:\n  {only}\n");
    }
    let mut text = "Error: ch-remote exited with the following chain of errors:\n".to_owned();
    for (depth, message) in messages.iter().enumerate() {
        text += &format!("  {depth}: {message}\n");
    }
    text
}
