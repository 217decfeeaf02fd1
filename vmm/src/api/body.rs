//! Bodies of requests: JSON into the wire types, and what in it nobody knows.

use api_client::wire::Objects;
use serde::de::DeserializeOwned;
use serde_ignored::Path;

use super::{
    answer, bounds,
    http::{Response, Status},
};

/// The header that lists what was not understood.
const UNKNOWN_HEADER: &str = "X-Cumulet-Unknown-Fields";

/// Most unknown fields that are told of, and how much of each name. An answer must stay short: there are
/// clients that read a thousand bytes of it.
const MAX_UNKNOWN: usize = 8;
const MAX_NAME: usize = 48;

/// Fields of a request that nobody knows.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unknown {
    first: Vec<String>,
    more: usize,
}

/// Reads a body. With `strict`, a field that nobody knows is refused.
///
/// # Errors
/// The answer: it holds more than any client sends, is no JSON object, has a list for a structure, or is not of that
/// type.
pub(super) fn read<T: DeserializeOwned>(body: &[u8], strict: bool) -> Result<(T, Unknown), Response> {
    bounds::check(body).map_err(|error| cannot_read(&error.to_string(), "body-too-large"))?;
    let mut unknown = Unknown::default();
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = serde_ignored::deserialize(&mut json, |path| unknown.add(&path))
        .and_then(|Objects(value)| json.end().map(|()| value));
    let value = value.map_err(|error| cannot_read(&error.to_string(), "invalid-json"))?;
    match unknown.first.first() {
        Some(field) if strict => Err(cannot_read(&format!("unknown field `{field}`"), "unknown-field")),
        _ => Ok((value, unknown)),
    }
}

fn cannot_read(why: &str, code: &str) -> Response {
    answer::refusal(Status::BadRequest, &["Failed to deserialize JSON", why], code)
}

impl Unknown {
    fn add(&mut self, path: &Path<'_>) {
        // Beyond the first few they are only counted: there may be more of them than can be written out in good time.
        if self.first.len() == MAX_UNKNOWN {
            self.more += 1;
            return;
        }
        // An optional member is a step of its own, which nobody has written.
        let path = path.to_string().split('.').filter(|step| *step != "?").collect::<Vec<_>>().join(".");
        if path.chars().count() > MAX_NAME {
            self.first.push(path.chars().take(MAX_NAME).chain("...".chars()).collect());
        } else {
            self.first.push(path);
        }
    }

    /// Tells the client, and the log.
    pub(super) fn tell(&self, endpoint: &str, response: Response) -> Response {
        if self.first.is_empty() {
            return response;
        }
        let mut list = self.first.join(", ");
        if self.more > 0 {
            list += &format!(" and {} more", self.more);
        }
        log::warn!("{endpoint}: unknown fields are passed over: {list:?}");
        response.header(UNKNOWN_HEADER, &list)
    }
}

#[cfg(test)]
mod tests {
    use api_client::wire;

    use super::*;

    fn list(body: &str) -> String {
        let (_, unknown) = read::<wire::VmConfig>(body.as_bytes(), false).unwrap();
        let bytes = unknown.tell("test", Response::new(Status::NoContent)).into_bytes();
        let text = String::from_utf8(bytes).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("X-Cumulet-Unknown-Fields: "));
        line.unwrap_or_default().to_owned()
    }

    #[test]
    fn unknown_fields_are_listed_wherever_they_are() {
        assert_eq!(list("{}"), "");
        assert_eq!(
            list(r#"{"a":1,"disks":[{"path":"/x","b":{"c":1}}],"serial":{"mode":"Off","iommu":true}}"#),
            "a, disks.0.b, serial.iommu"
        );
        let many: Vec<String> = (0..20).map(|n| format!("\"x{n}\": 0")).collect();
        assert!(list(&format!("{{{}}}", many.join(","))).ends_with("x7 and 12 more"));
        let long = list(&format!("{{\"{}\\r\\n\": 0}}", "y".repeat(100_000)));
        assert_eq!(long.len(), MAX_NAME + 3);
        assert_eq!(list("{\"a\\r\\nb\": 0}"), "a??b");
    }

    #[test]
    fn strictness_names_the_field() {
        let refused = read::<wire::VmConfig>(br#"{"memory":{"size":1,"sizee":2}}"#, true).unwrap_err();
        let body = String::from_utf8(refused.body().to_vec()).unwrap();
        assert_eq!(body, r#"["Failed to deserialize JSON","unknown field `memory.sizee`"]"#);
        assert!(read::<wire::VmConfig>(br#"{"memory":{"size":1}}"#, true).is_ok());
    }

    #[test]
    fn what_is_no_json_of_that_type_is_refused() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        let known = format!("{{\"payload\":{deep}}}");
        let objects = |depth| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
        let deeper = objects(100_000);
        let bad = [
            "",
            "{",
            "null",
            "[]",
            r#"[{"boot_vcpus":1,"max_vcpus":1}]"#,
            "{} x",
            "NaN",
            r#"{"iommu":NaN}"#,
            r#"{"iommu":null}"#,
            r#"{"cpus":{"boot_vcpus":-1}}"#,
            r#"{"memory":{"size":1e400}}"#,
            r#"{"iommu":true,"iommu":true}"#,
            "\u{0}",
        ];
        for body in bad {
            let refused = read::<wire::VmConfig>(body.as_bytes(), false).map(|_| ()).unwrap_err();
            assert_eq!(refused.status(), Status::BadRequest);
            let said: Vec<String> = serde_json::from_slice(refused.body()).unwrap();
            assert_eq!(said[0], "Failed to deserialize JSON");
            assert!(said[1].contains(" column "), "{said:?}");
            assert!(
                !body.starts_with('[') || said[1].starts_with("a list, where an object is expected"),
                "{said:?}"
            );
        }
        let refused = read::<wire::VmConfig>(br#"{"memory":{"size":1},"cpus":[1,2]}"#, false).unwrap_err();
        let said: Vec<String> = serde_json::from_slice(refused.body()).unwrap();
        assert_eq!(said[1], "cpus: a list, where an object is expected at line 1 column 29");
        assert!(read::<wire::VmConfig>(b"\"\xff\"", false).is_err());
        for body in [&deep, &known, &deeper] {
            let refused = read::<wire::VmConfig>(body.as_bytes(), false).unwrap_err();
            let said: Vec<String> = serde_json::from_slice(refused.body()).unwrap();
            assert!(said[1].ends_with(": more than 16384 objects and lists so far"), "{said:?}");
        }
        // What is as deep as a reader can go, and what nobody knows is passed over deeper than that.
        assert!(
            read::<wire::VmConfig>(format!("{{\"payload\":{}", "[".repeat(1000)).as_bytes(), false).is_err()
        );
        assert!(read::<wire::VmConfig>(objects(10_000).as_bytes(), false).is_ok());
    }
}
