//! `state.json`, taken apart without reading what is in its sections.
//!
//! A restore reads each section when its device is loaded, several at a time. Finding out where one ends by the rules of
//! JSON takes as long as reading it, and nothing else can begin meanwhile; here only strings and brackets count.

use std::{ops::Range, sync::Arc};

use memchr::memchr2;

use crate::state::{Content, Section};

/// The sections of a text of the form in which this program writes them, which has nothing between its tokens. `None` where
/// it has another form: it may be JSON all the same. What is in a section may be anything but unbalanced brackets.
pub(super) fn split(text: &Arc<String>) -> Option<Vec<Section>> {
    let mut rest = Rest { text: text.as_bytes(), at: 0 };
    let mut sections = Vec::new();
    rest.word(b"[")?;
    if rest.word(b"]").is_none() {
        loop {
            rest.word(b"{\"id\":")?;
            let id = text.get(rest.plain_string()?)?.to_owned();
            rest.word(b",\"kind\":")?;
            let kind = text.get(rest.plain_string()?)?.to_owned();
            rest.word(b",\"version\":")?;
            let version = text.get(rest.number()?)?.parse().ok()?;
            rest.word(b",\"state\":")?;
            let state = Content::piece(text, rest.value()?)?;
            rest.word(b"}")?;
            sections.push(Section { id, kind, version, state });
            if rest.word(b",").is_none() {
                break;
            }
        }
        rest.word(b"]")?;
    }
    (rest.at == rest.text.len()).then_some(sections)
}

/// What has not been looked at yet. Once a function has found nothing, where it stands says nothing either, but for `word`,
/// which stays.
struct Rest<'a> {
    text: &'a [u8],
    at: usize,
}

impl Rest<'_> {
    fn rest(&self) -> &[u8] {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn skip(&mut self, count: usize) {
        self.at = self.at.saturating_add(count);
    }

    fn word(&mut self, word: &[u8]) -> Option<()> {
        self.rest().starts_with(word).then(|| self.skip(word.len()))
    }

    /// A string without escapes: where what is between its quotes is.
    fn plain_string(&mut self) -> Option<Range<usize>> {
        self.word(b"\"")?;
        let from = self.at;
        let end = memchr2(b'"', b'\\', self.rest())?;
        self.skip(end);
        let to = self.at;
        // Control characters are not for strings either.
        let plain = self.text.get(from..to)?.iter().all(|byte| *byte >= b' ');
        self.word(b"\"")?;
        plain.then_some(from..to)
    }

    /// Decimal digits, as JSON has them.
    fn number(&mut self) -> Option<Range<usize>> {
        let from = self.at;
        let digits = self.rest().iter().take_while(|byte| byte.is_ascii_digit()).count();
        let leading_zero = digits > 1 && self.rest().first() == Some(&b'0');
        self.skip(digits);
        (digits > 0 && !leading_zero).then_some(from..self.at)
    }

    /// An object: where it is.
    fn value(&mut self) -> Option<Range<usize>> {
        let from = self.at;
        if self.rest().first() != Some(&b'{') {
            return None;
        }
        let mut depth = 0_usize;
        loop {
            let next =
                self.rest().iter().position(|byte| matches!(byte, b'"' | b'{' | b'}' | b'[' | b']'))?;
            self.skip(next);
            match self.text.get(self.at)? {
                b'"' => self.string()?,
                b'{' | b'[' => {
                    depth = depth.checked_add(1)?;
                    self.skip(1);
                }
                _ => {
                    depth = depth.checked_sub(1)?;
                    self.skip(1);
                }
            }
            if depth == 0 {
                return Some(from..self.at);
            }
        }
    }

    /// Passes over a string.
    fn string(&mut self) -> Option<()> {
        self.skip(1);
        loop {
            let end = memchr2(b'"', b'\\', self.rest())?;
            self.skip(end);
            let escapes = self.text.get(self.at)? == &b'\\';
            self.skip(if escapes { 2 } else { 1 });
            if !escapes {
                return Some(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sections(text: &str) -> Option<Vec<Section>> {
        split(&Arc::new(text.to_owned()))
    }

    fn same(one: &[Section], other: &[Section]) -> bool {
        let plain = |section: &Section| {
            (section.id.clone(), section.kind.clone(), section.version, section.state.get().to_owned())
        };
        one.iter().map(plain).eq(other.iter().map(plain))
    }

    #[test]
    fn what_was_written_is_taken_apart_as_a_reader_of_json_does_it() {
        let states = [
            json!({}),
            json!({ "a": [1, [2, { "b": "]}" }], -3.5e7, null, true] }),
            json!({ "text": "quotes \" and \\ and \\\" { [ \u{1F600} \n", "{": "[" }),
            json!({ "long": "A".repeat(10_000), "deep": [[[[[[[[[[{}]]]]]]]]]] }),
        ];
        for count in 0..=states.len() {
            let listed: Vec<_> = states[..count].iter().enumerate().map(|(number, state)| {
                json!({ "id": format!("_disk{number}"), "kind": "virtio-\u{e9}", "version": u32::MAX - 3 + u32::try_from(number).unwrap(), "state": state })
            }).collect();
            // In the order of the fields, which `json!` does not keep.
            let read: Vec<Section> = serde_json::from_value(listed.into()).unwrap();
            let text = serde_json::to_string(&read).unwrap();
            let split = sections(&text).unwrap();
            assert!(same(&split, &read), "{text}");
            // And what is written of the pieces is the same text.
            assert_eq!(serde_json::to_string(&split).unwrap(), text);
        }
    }

    #[test]
    fn what_has_another_form_is_left_to_a_reader_of_json() {
        let whole = r#"[{"id":"a","kind":"b","version":1,"state":{"x":"\"}"}},{"id":"c","kind":"d","version":20,"state":{}}]"#;
        assert_eq!(sections(whole).unwrap().len(), 2);
        for end in 0..whole.len() {
            assert!(sections(&whole[..end]).is_none(), "{}", &whole[..end]);
        }
        for (by, other) in [
            (":1,", ": 1,"),
            (":1,", ":01,"),
            (":1,", ":,"),
            (":1,", ":4294967296,"),
            (":1,", ":-1,"),
            ("\"a\"", "\"\\u0061\""),
            ("\"a\"", "\"\n\""),
            ("\"a\"", "1"),
            ("{}", "[]"),
            ("{}", "null"),
            ("{}", "{}}"),
            ("\"kind\"", "\"sort\""),
            ("}},{", "},{"),
            ("}]", "},]"),
            ("}]", "}]\n"),
            ("}]", "}]]"),
        ] {
            let changed = whole.replacen(by, other, 1);
            assert_ne!(changed, whole);
            assert!(sections(&changed).is_none(), "{changed}");
        }
    }

    #[test]
    fn what_is_no_json_within_a_section_is_found_when_it_is_read() {
        let split = sections(r#"[{"id":"a","kind":"b","version":1,"state":{x]}]"#).unwrap();
        assert_eq!(split[0].state.get(), "{x]");
        let error = split[0].content::<serde_json::Value>().unwrap_err();
        assert!(error.to_string().starts_with("a: "), "{error}");
        assert!(serde_json::to_string(&split).is_err());
    }
}
