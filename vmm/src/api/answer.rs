//! What came of a request, as a response: bodies and codes that clients match.

use std::{collections::BTreeMap, sync::Arc};

use api_client::wire;
use serde::Serialize;

use super::http::{ERROR_HEADER, REPORT_HEADER, Response, Status};
use crate::{
    control::{Answer, CommandError, FailureClass},
    error::messages,
    snapshot::{RestoreReport, SaveReport},
};

/// Longest answer, in bytes, to requests of which some clients read it by one read and take what they got
/// for all of it (rest-api.md, section 8.3).
pub(super) const ONE_READ: usize = 1023;

/// A body of JSON.
pub(super) fn json(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => Response::json(Status::Ok, body),
        Err(error) => not_json(&error.to_string()),
    }
}

/// A body of JSON that was written before, if it could be.
pub(super) fn told(json: &Result<Arc<[u8]>, String>) -> Response {
    match json {
        Ok(body) => Response::json(Status::Ok, Arc::clone(body)),
        Err(error) => not_json(error),
    }
}

/// A path that is no text.
fn not_json(error: &str) -> Response {
    let messages = ["Error from API", "The answer cannot be told", error];
    refusal(Status::InternalServerError, &messages, "not-json")
}

/// An error as the array of its messages.
pub(super) fn refusal(status: Status, messages: &[&str], code: &str) -> Response {
    let body = serde_json::Value::from(messages).to_string();
    Response::json(status, body).header(ERROR_HEADER, code)
}

/// There is no such path.
pub(super) fn not_found() -> Response {
    refusal(Status::NotFound, &["Not Found"], "not-found")
}

/// The request does not fit the endpoint.
pub(super) fn bad_request(code: &str) -> Response {
    refusal(Status::BadRequest, &["Bad Request"], code)
}

/// The same where clients know an empty answer.
pub(super) fn bad_request_without_words(code: &str) -> Response {
    Response::new(Status::BadRequest).header(ERROR_HEADER, code)
}

/// As many commands wait as there is room for.
pub(super) fn no_room(sentence: &str) -> Response {
    let messages = ["Error from API", sentence, "Too many requests wait to be done"];
    refusal(Status::ServiceUnavailable, &messages, "too-many-requests")
}

/// Whoever was to answer has given up without a word.
pub(super) fn unanswered() -> Response {
    let messages = ["Error from API", "The request was dropped without an answer"];
    refusal(Status::InternalServerError, &messages, "unanswered")
}

/// What came of a command. `sentence` says what could not be done; with `wants_report` a report is the
/// body, all of it.
pub(super) fn outcome(result: Result<Answer, CommandError>, sentence: &str, wants_report: bool) -> Response {
    match result {
        Ok(Answer::Done) => Response::new(Status::NoContent),
        Ok(Answer::Added(info)) => json(&info),
        Ok(Answer::Saved(report)) if wants_report => json(&wire::SaveReport::from(*report)),
        Ok(Answer::Saved(report)) => brief(&BriefSave::of(&report)),
        Ok(Answer::Restored(report)) if wants_report => json(&wire::RestoreReport::from(*report)),
        Ok(Answer::Restored(report)) => brief(&BriefRestore::of(&report)),
        Ok(Answer::Rehearsed(rehearsal)) => json(&wire::RestoreRehearsal::from(*rehearsal)),
        Err(error) => failure(&error, sentence),
    }
}

/// How it went is told in a header: clients know these answers without a body.
fn brief(report: &impl Serialize) -> Response {
    let response = Response::new(Status::NoContent);
    match serde_json::to_string(report) {
        Ok(text) => response.header(REPORT_HEADER, &text),
        // It is numbers and a few words of our own: there is nothing in it that is no text.
        Err(_) => response,
    }
}

/// What a client is told of a snapshot that did not ask for all. However large the VM, it stays short.
#[derive(Debug, Serialize)]
struct BriefSave {
    memory_bytes: u64,
    total_ns: u64,
}

impl BriefSave {
    fn of(report: &SaveReport) -> Self {
        Self { memory_bytes: report.memory_bytes, total_ns: report.total_ns }
    }
}

/// The same of a restore.
#[derive(Debug, Serialize)]
struct BriefRestore {
    /// How many zones came back in each of the modes.
    memory: BTreeMap<wire::ZoneMemoryMode, usize>,
    memory_bytes: u64,
    total_ns: u64,
    running: bool,
    /// How many taps were not there and were made.
    #[serde(skip_serializing_if = "is_zero")]
    made_taps: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &usize) -> bool {
    *count == 0
}

impl BriefRestore {
    fn of(report: &RestoreReport) -> Self {
        let mut memory = BTreeMap::new();
        for zone in &report.memory {
            *memory.entry(zone.mode.into()).or_default() += 1;
        }
        let RestoreReport { memory_bytes, total_ns, running, .. } = *report;
        Self { memory, memory_bytes, total_ns, running, made_taps: report.made_taps.len() }
    }
}

/// The same answer for a client that reads [`ONE_READ`] bytes of it: of an error's messages the longest are
/// cut until it fits.
pub(super) fn fitted(response: Response) -> Response {
    let Ok(messages) = serde_json::from_slice::<Vec<String>>(response.body()) else { return response };
    let longest = messages.iter().map(String::len).max().unwrap_or(0);
    let (mut limit, mut response) = (longest.min(ONE_READ), response);
    while response.clone().into_bytes().len() > ONE_READ && limit > 0 {
        limit = limit * 7 / 8;
        let cut: Vec<String> = messages.iter().map(|message| cut(message, limit)).collect();
        response = response.with_body(serde_json::Value::from(cut).to_string());
    }
    response
}

/// The first bytes of a message, and a sign that it goes on.
fn cut(message: &str, limit: usize) -> String {
    if message.len() <= limit {
        return message.to_owned();
    }
    format!("{}...", &message[..message.floor_char_boundary(limit)])
}

/// A command that failed.
pub(super) fn failure(error: &CommandError, sentence: &str) -> Response {
    let status = match error.class() {
        FailureClass::NotFound => Status::NotFound,
        FailureClass::Invalid => Status::BadRequest,
        FailureClass::Conflict => Status::Conflict,
        FailureClass::Failed => Status::InternalServerError,
    };
    let causes = messages(error);
    let mut all = vec!["Error from API", sentence];
    all.extend(causes.iter().map(String::as_str));
    refusal(status, &all, error.code())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(response: &Response) -> Vec<String> {
        serde_json::from_slice(response.body()).unwrap()
    }

    #[test]
    fn an_error_is_cut_to_what_is_read_of_it() {
        let path = format!("/{}", "ö\u{1}\"".repeat(2000));
        let error =
            || refusal(Status::InternalServerError, &["Error from API", "It failed", &path], "failed");
        let fits = fitted(error());
        assert_eq!(messages(&fits)[..2], ["Error from API", "It failed"]);
        let last = &messages(&fits)[2];
        assert!(last.starts_with("/ö\u{1}\"ö") && last.ends_with("..."), "{last}");
        let length = fits.into_bytes().len();
        assert!((800..=ONE_READ).contains(&length), "{length}");
        let short = refusal(Status::NotFound, &["Not Found"], "not-found");
        assert_eq!(fitted(short.clone()), short);
        assert_eq!(fitted(Response::new(Status::NoContent)), Response::new(Status::NoContent));
        // However long the chain is.
        let chain = vec!["x".repeat(1000); 60];
        let chain: Vec<&str> = chain.iter().map(String::as_str).collect();
        assert!(fitted(refusal(Status::BadRequest, &chain, "failed")).into_bytes().len() <= ONE_READ);
    }

    #[test]
    fn what_is_told_in_brief_is_brief_whatever_is_told() {
        use wire::ZoneMemoryMode::{Copy, Cow, Kept, OnDemand};
        let memory = [Copy, Cow, OnDemand, Kept].into_iter().map(|mode| (mode, usize::MAX)).collect();
        let (memory_bytes, total_ns) = (u64::MAX, u64::MAX);
        let most = BriefRestore { memory, memory_bytes, total_ns, running: false, made_taps: usize::MAX };
        let length = brief(&most).into_bytes().len();
        // There is room for the list of unknown fields.
        assert!(length < 400, "{length}");
        assert_eq!(
            serde_json::to_string(&BriefRestore { memory: [(Cow, 2)].into(), made_taps: 3, ..most }).unwrap(),
            format!(
                r#"{{"memory":{{"cow":2}},"memory_bytes":{0},"total_ns":{0},"running":false,"made_taps":3}}"#,
                u64::MAX
            )
        );
    }
}
