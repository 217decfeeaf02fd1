//! What a line of the log looks like: a text with tokens in braces.

use std::{
    fmt::{self, Write},
    str::FromStr,
    time::Duration,
};

use log::Level;
use thiserror::Error;

use super::clock::{Moment, Parts};
use crate::program::Program;

/// A text with tokens, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Piece>);

/// A text that is no template.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum TemplateError {
    /// A token that there is not.
    #[error("--log-format: unknown token {{{0}}}")]
    Unknown(String),
    /// A brace without its partner.
    #[error("--log-format: unbalanced braces in {0:?}; a brace is written {{{{ or }}}}")]
    Braces(String),
}

/// What is logged.
#[derive(Debug)]
pub struct Event<'a> {
    /// Since the program started.
    pub since_start: Duration,
    /// The time of day.
    pub moment: Moment,
    /// Name of the thread.
    pub thread: &'a str,
    /// Number of the thread.
    pub thread_id: i32,
    /// How grave it is.
    pub level: Level,
    /// Where in the source.
    pub file: &'a str,
    /// Where in the file.
    pub line: u32,
    /// What happened.
    pub message: &'a fmt::Arguments<'a>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Token(Token),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    BootTime,
    WallClock,
    Thread,
    Level,
    LevelChar,
    Location,
    Message,
    Pid,
    Tid,
    Calendar(Zone, Field),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Zone {
    Utc,
    Local,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Glog,
    Year,
    Month,
    Day,
    Hour,
    Minute,
    Second,
    Micros,
    Offset,
}

const TOKENS: [(&str, Token); 9] = [
    ("boottime", Token::BootTime),
    ("wallclock", Token::WallClock),
    ("thread", Token::Thread),
    ("level", Token::Level),
    ("levelchar", Token::LevelChar),
    ("location", Token::Location),
    ("msg", Token::Message),
    ("pid", Token::Pid),
    ("tid", Token::Tid),
];

/// These exist with the prefix `local` too.
const FIELDS: [(&str, Field); 9] = [
    ("glog", Field::Glog),
    ("year", Field::Year),
    ("month", Field::Month),
    ("day", Field::Day),
    ("hour", Field::Hour),
    ("minute", Field::Minute),
    ("second", Field::Second),
    ("micros", Field::Micros),
    ("offset", Field::Offset),
];

/// The names of all tokens.
pub fn tokens() -> Vec<String> {
    let fields = FIELDS.iter().map(|(name, _)| *name);
    let local = fields.clone().map(|name| format!("local{name}"));
    TOKENS.iter().map(|(name, _)| *name).chain(fields).map(str::to_owned).chain(local).collect()
}

impl Template {
    /// How the lines of a program look if nothing is said about it.
    pub fn of(program: Program) -> Self {
        let text = |text: &str| Piece::Text(text.to_owned());
        Self(vec![
            text(program.name()),
            text(": "),
            Piece::Token(Token::BootTime),
            text("s: <"),
            Piece::Token(Token::Thread),
            text("> "),
            Piece::Token(Token::Level),
            text(":"),
            Piece::Token(Token::Location),
            text(" -- "),
            Piece::Token(Token::Message),
        ])
    }

    /// The line for an event, without its end.
    pub fn line(&self, event: &Event<'_>) -> String {
        let mut line = String::new();
        for piece in &self.0 {
            match piece {
                Piece::Text(text) => line.push_str(text),
                // Writing to a string fails only if the message's own formatting does.
                Piece::Token(token) => drop(write_token(&mut line, *token, event)),
            }
        }
        line
    }
}

impl FromStr for Template {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        let unbalanced = || TemplateError::Braces(text.to_owned());
        let mut pieces = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, after) = rest.split_at(at);
            plain.push_str(before);
            if let Some(escaped) = after.strip_prefix("{{") {
                plain.push('{');
                rest = escaped;
            } else if let Some(escaped) = after.strip_prefix("}}") {
                plain.push('}');
                rest = escaped;
            } else {
                let inner = after.strip_prefix('{').ok_or_else(unbalanced)?;
                let (name, behind) = inner.split_once('}').ok_or_else(unbalanced)?;
                let token = token(name).ok_or_else(|| TemplateError::Unknown(name.to_owned()))?;
                pieces.push(Piece::Text(std::mem::take(&mut plain)));
                pieces.push(Piece::Token(token));
                rest = behind;
            }
        }
        plain.push_str(rest);
        pieces.push(Piece::Text(plain));
        Ok(Self(pieces))
    }
}

fn token(name: &str) -> Option<Token> {
    let field = |name: &str| FIELDS.iter().find(|(known, _)| *known == name).map(|(_, field)| *field);
    if let Some((_, token)) = TOKENS.iter().find(|(known, _)| *known == name) {
        return Some(*token);
    }
    match name.strip_prefix("local") {
        Some(name) => field(name).map(|field| Token::Calendar(Zone::Local, field)),
        None => field(name).map(|field| Token::Calendar(Zone::Utc, field)),
    }
}

fn write_token(line: &mut String, token: Token, event: &Event<'_>) -> fmt::Result {
    match token {
        Token::BootTime => write!(line, "{:.6}", event.since_start.as_secs_f64()),
        Token::WallClock => {
            let Parts { year, month, day, hour, minute, second, micros, .. } = event.moment.utc;
            write!(line, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
        }
        Token::Thread => line.write_str(event.thread),
        Token::Level => write!(line, "{}", event.level),
        Token::LevelChar => line.write_str(&event.level.as_str()[..1]),
        Token::Location => write!(line, "{}:{}", event.file, event.line),
        Token::Message => line.write_fmt(*event.message),
        Token::Pid => write!(line, "{}", std::process::id()),
        Token::Tid => write!(line, "{}", event.thread_id),
        Token::Calendar(Zone::Utc, field) => write_field(line, field, &event.moment.utc),
        Token::Calendar(Zone::Local, field) => write_field(line, field, &event.moment.local),
    }
}

fn write_field(line: &mut String, field: Field, parts: &Parts) -> fmt::Result {
    let Parts { year, month, day, hour, minute, second, micros, offset_s } = *parts;
    match field {
        Field::Glog => write!(line, "{month:02}{day:02} {hour:02}:{minute:02}:{second:02}.{micros:06}"),
        Field::Year => write!(line, "{year:04}"),
        Field::Month => write!(line, "{month:02}"),
        Field::Day => write!(line, "{day:02}"),
        Field::Hour => write!(line, "{hour:02}"),
        Field::Minute => write!(line, "{minute:02}"),
        Field::Second => write!(line, "{second:02}"),
        Field::Micros => write!(line, "{micros:06}"),
        Field::Offset => {
            let sign = if offset_s < 0 { '-' } else { '+' };
            let minutes = offset_s.unsigned_abs() / 60;
            write!(line, "{sign}{:02}:{:02}", minutes / 60, minutes % 60)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(template: &str) -> String {
        let utc =
            Parts { year: 2026, month: 8, day: 1, hour: 22, minute: 3, second: 4, micros: 56, offset_s: 0 };
        let local = Parts { day: 2, hour: 3, minute: 33, offset_s: 19800, ..utc };
        let template: Template = template.parse().unwrap();
        template.line(&Event {
            since_start: Duration::from_micros(1_500_000),
            moment: Moment { utc, local },
            thread: "vcpu0",
            thread_id: 77,
            level: Level::Warn,
            file: "a.rs",
            line: 12,
            message: &format_args!("it {}", "broke"),
        })
    }

    #[test]
    fn every_token() {
        for (template, expected) in [
            ("{boottime}", "1.500000"),
            ("{wallclock}", "2026-08-01T22:03:04.000056Z"),
            ("{glog}|{localglog}", "0801 22:03:04.000056|0802 03:33:04.000056"),
            ("<{thread}>", "<vcpu0>"),
            ("{level}{levelchar}", "WARNW"),
            ("{location} -- {msg}", "a.rs:12 -- it broke"),
            ("{tid}", "77"),
            ("{year}{month}{day}T{hour}{minute}{second}.{micros}{offset}", "20260801T220304.000056+00:00"),
            (
                "{localyear}{localmonth}{localday}T{localhour}{localminute}{localsecond}.{localmicros}{localoffset}",
                "20260802T033304.000056+05:30",
            ),
        ] {
            assert_eq!(line(template), expected, "{template}");
        }
        assert_eq!(line("{pid}"), std::process::id().to_string());
        for token in tokens() {
            assert!(!line(&format!("{{{token}}}")).is_empty(), "{token}");
        }
    }

    #[test]
    fn braces_are_written_twice() {
        assert_eq!(line("{{{level}}} {{msg}}"), "{WARN} {msg}");
        assert_eq!(line(""), "");
    }

    #[test]
    fn unknown_tokens_and_lone_braces_are_refused() {
        let error = |text: &str| text.parse::<Template>().unwrap_err().to_string();
        assert_eq!(error("{colour}"), "--log-format: unknown token {colour}");
        assert_eq!(error("{localmsg}"), "--log-format: unknown token {localmsg}");
        assert_eq!(error("{}"), "--log-format: unknown token {}");
        for text in ["{msg", "msg}", "{msg}}"] {
            assert!(error(text).starts_with("--log-format: unbalanced braces"), "{text}");
        }
    }

    #[test]
    fn the_default_names_the_program() {
        let written = "cloud-hypervisor: {boottime}s: <{thread}> {level}:{location} -- {msg}";
        let event = Event {
            since_start: Duration::ZERO,
            moment: Moment::default(),
            thread: "t",
            thread_id: 1,
            level: Level::Error,
            file: "f",
            line: 1,
            message: &format_args!("m"),
        };
        let same: Template = written.parse().unwrap();
        assert_eq!(Template::of(Program::Reference).line(&event), same.line(&event));
        assert!(
            Template::of(Program::Cumulet).line(&event).starts_with("cumulet: 0.000000s: <t> ERROR:f:1 -- m")
        );
    }
}
