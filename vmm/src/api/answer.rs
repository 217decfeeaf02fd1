//! What came of a request, as a response: bodies and codes that clients match.

use serde::Serialize;

use super::http::{ERROR_HEADER, REPORT_HEADER, Response, Status};
use crate::{
    control::{Answer, CommandError, FailureClass},
    error::messages,
};

/// A body of JSON.
pub(super) fn json(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(body) => Response::json(Status::Ok, body),
        // A path that is no text.
        Err(error) => refusal(
            Status::InternalServerError,
            &["Error from API", "The answer cannot be told", &error.to_string()],
            "not-json",
        ),
    }
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

/// What came of a command. `sentence` says what could not be done.
pub(super) fn outcome(result: Result<Answer, CommandError>, sentence: &str) -> Response {
    match result {
        Ok(Answer::Done) => Response::new(Status::NoContent),
        Ok(Answer::Added(info)) => json(&info),
        Ok(Answer::Saved(report)) => reported(&report),
        Ok(Answer::Restored(report)) => reported(&report),
        Ok(Answer::Rehearsed(rehearsal)) => json(&rehearsal),
        Err(error) => failure(&error, sentence),
    }
}

/// How it went is told in a header: clients know these answers without a body.
fn reported(report: &impl Serialize) -> Response {
    let response = Response::new(Status::NoContent);
    match serde_json::to_string(report) {
        // A directory's name may be anything; a header is ASCII.
        Ok(text) if text.is_ascii() => response.header(REPORT_HEADER, &text),
        _ => response,
    }
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
