//! A Rust file as the rules see it: tokens with their lines, comments apart, test code marked.
//!
//! This is not a parser. It knows comments, strings, characters and lifetimes, so that a word in a comment or
//! a string is not taken for code, and it can find the end of an item that is only compiled for tests.

use std::iter;

/// A file of the repository.
#[derive(Clone, Debug)]
pub struct File {
    /// Inside the repository, with `/` between folders.
    pub path: String,
    /// The whole text.
    pub text: String,
    /// The code, without comments; a string is one token, `""`.
    pub tokens: Vec<Token>,
    /// The comments, in order.
    pub comments: Vec<Comment>,
    /// Compiled for tests only, as a whole.
    pub test_only: bool,
}

/// A word, a number, a lifetime, a string or a single mark.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub text: String,
    /// Counted from 1.
    pub line: usize,
    /// Inside an item that is compiled for tests only.
    pub in_test: bool,
}

/// A comment, one for each line that it covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Comment {
    pub text: String,
    /// Counted from 1.
    pub line: usize,
}

impl File {
    /// Reads the text of a file. Only a Rust file has tokens and comments.
    pub fn new(path: &str, text: &str) -> Self {
        let mut file = Self {
            path: path.to_owned(),
            text: text.to_owned(),
            tokens: vec![],
            comments: vec![],
            test_only: in_test_folder(path),
        };
        if file.is_rust() {
            Lexer::new(text).run(&mut file.tokens, &mut file.comments);
            mark_tests(&mut file.tokens);
        }
        file
    }

    /// Whether this is a Rust source file.
    pub fn is_rust(&self) -> bool {
        has_extension(&self.path, "rs")
    }

    /// Whether the file lies in `folder`, at any depth.
    pub fn is_in(&self, folder: &str) -> bool {
        self.path.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'))
    }

    /// The tokens that are compiled into the product.
    pub fn product_tokens(&self) -> Vec<&Token> {
        self.tokens.iter().filter(|token| !self.test_only && !token.in_test).collect()
    }

    /// The modules that this file declares for tests only and keeps elsewhere, as path prefixes.
    pub fn test_modules(&self) -> Vec<String> {
        let folder = match self.path.rsplit_once('/') {
            Some((folder, "lib.rs" | "main.rs" | "mod.rs")) => folder,
            _ => self.path.trim_end_matches(".rs"),
        };
        let declared = |window: &[Token]| match window {
            [keyword, name, end] => {
                keyword.in_test && keyword.text == "mod" && end.text == ";" && !name.text.is_empty()
            }
            _ => false,
        };
        let names = self.tokens.windows(3).filter(|window| declared(window)).map(|window| &window[1].text);
        names.map(|name| format!("{folder}/{name}")).collect()
    }
}

/// Marks the files of modules that another file declares for tests only.
pub fn mark_test_modules(files: &mut [File]) {
    let prefixes: Vec<String> = files.iter().flat_map(File::test_modules).collect();
    for file in files {
        let belongs = |prefix: &String| {
            file.path.strip_prefix(prefix.as_str()).is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
        };
        file.test_only = file.test_only || prefixes.iter().any(belongs);
    }
}

/// Splits a text into tokens, without comments.
pub fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = vec![];
    Lexer::new(text).run(&mut tokens, &mut vec![]);
    tokens
}

/// Whether `path` ends in `.extension`.
pub fn has_extension(path: &str, extension: &str) -> bool {
    path.rsplit_once('.').is_some_and(|(_, found)| found == extension)
}

fn in_test_folder(path: &str) -> bool {
    path.starts_with("tests/") && !path.starts_with("tests/guest/")
        || path.split('/').skip(1).any(|part| part == "tests" || part == "tests.rs")
}

/// Marks the items under `#[cfg(test)]`, `#[cfg(any(test, ...))]` and `#[test]`.
fn mark_tests(tokens: &mut [Token]) {
    let mut at = 0;
    while at < tokens.len() {
        let Some(attribute_end) = attribute(tokens, at) else {
            at += 1;
            continue;
        };
        if !is_for_tests(&tokens[at..attribute_end]) {
            at = attribute_end;
            continue;
        }
        let end = item_end(tokens, attribute_end);
        tokens[at..end].iter_mut().for_each(|token| token.in_test = true);
        at = end;
    }
}

/// The index behind the attribute that begins at `at`, if one does.
fn attribute(tokens: &[Token], at: usize) -> Option<usize> {
    let is = |index: usize, text: &str| tokens.get(index).is_some_and(|token| token.text == text);
    if is(at, "#") && is(at + 1, "[") { Some(closing(tokens, at + 1)) } else { None }
}

fn is_for_tests(attribute: &[Token]) -> bool {
    let has = |text: &str| attribute.iter().any(|token| token.text == text);
    let bare = attribute.len() == 4;
    has("test") && (bare || has("cfg")) && !has("not") && !has("cfg_attr")
}

/// The index behind the item that begins at `at`: behind its body, or behind its semicolon.
fn item_end(tokens: &[Token], mut at: usize) -> usize {
    while let Some(token) = tokens.get(at) {
        match token.text.as_str() {
            "#" => at = attribute(tokens, at).unwrap_or(at + 1),
            "(" | "[" => at = closing(tokens, at),
            "{" => return closing(tokens, at),
            ";" => return at + 1,
            _ => at += 1,
        }
    }
    at
}

/// The index behind the bracket that closes the one at `open`.
pub fn closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0_usize;
    for (index, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth == 0 {
            return index + 1;
        }
    }
    tokens.len()
}

#[derive(Debug)]
struct Lexer {
    chars: Vec<char>,
    at: usize,
    line: usize,
}

impl Lexer {
    fn new(text: &str) -> Self {
        Self { chars: text.chars().collect(), at: 0, line: 1 }
    }

    fn run(mut self, tokens: &mut Vec<Token>, comments: &mut Vec<Comment>) {
        while let Some(c) = self.peek(0) {
            let line = self.line;
            let text = match c {
                c if c.is_whitespace() => {
                    self.bump();
                    continue;
                }
                '/' if self.peek(1) == Some('/') => {
                    comments.push(Comment { text: self.take_while(|c| c != '\n'), line });
                    continue;
                }
                '/' if self.peek(1) == Some('*') => {
                    let text = self.block_comment();
                    comments.extend(
                        text.lines().zip(line..).map(|(text, line)| Comment { text: text.to_owned(), line }),
                    );
                    continue;
                }
                '"' => self.string(),
                '\'' => self.quote(),
                c if is_word(c) => self.word(),
                c => {
                    self.bump();
                    c.to_string()
                }
            };
            tokens.push(Token { text, line, in_test: false });
        }
    }

    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn bump(&mut self) -> Option<char> {
        let c = self.peek(0)?;
        self.at += 1;
        if c == '\n' {
            self.line += 1;
        }
        Some(c)
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> String {
        let mut text = String::new();
        while let Some(c) = self.peek(0).filter(|c| wanted(*c)) {
            text.push(c);
            self.bump();
        }
        text
    }

    fn block_comment(&mut self) -> String {
        let mut text = String::new();
        let mut depth = 0_usize;
        while let Some(c) = self.bump() {
            text.push(c);
            match (c, self.peek(0)) {
                ('/', Some('*')) => depth += 1,
                ('*', Some('/')) => depth -= 1,
                _ => continue,
            }
            text.extend(self.bump());
            if depth == 0 {
                break;
            }
        }
        text
    }

    fn string(&mut self) -> String {
        self.bump();
        while let Some(c) = self.bump() {
            match c {
                '\\' => drop(self.bump()),
                '"' => break,
                _ => {}
            }
        }
        "\"\"".to_owned()
    }

    /// A string that ends at a quote and as many hash signs as it began with.
    fn raw_string(&mut self) -> String {
        let hashes = self.take_while(|c| c == '#').len();
        self.bump();
        while let Some(c) = self.bump() {
            if c == '"' && (0..hashes).all(|ahead| self.peek(ahead) == Some('#')) {
                self.at += hashes;
                break;
            }
        }
        "\"\"".to_owned()
    }

    /// A character, or a lifetime.
    fn quote(&mut self) -> String {
        self.bump();
        match (self.peek(0), self.peek(1)) {
            (Some('\\'), _) => {
                self.bump();
                self.bump();
                self.take_while(|c| c != '\'');
                self.bump();
                "''".to_owned()
            }
            (Some(_), Some('\'')) => {
                self.bump();
                self.bump();
                "''".to_owned()
            }
            _ => iter::once('\'').chain(self.take_while(is_word).chars()).collect(),
        }
    }

    fn word(&mut self) -> String {
        let word = self.take_while(is_word);
        let hashes =
            iter::successors(Some(0), |n| Some(n + 1)).find(|n| self.peek(*n) != Some('#')).unwrap_or(0);
        match word.as_str() {
            "b" if self.peek(0) == Some('\'') => self.quote(),
            "b" | "c" if self.peek(0) == Some('"') => self.string(),
            "r" | "br" | "cr" if self.peek(hashes) == Some('"') => self.raw_string(),
            // A raw identifier is its name.
            "r" if hashes == 1 => {
                self.bump();
                self.take_while(is_word)
            }
            _ => word,
        }
    }
}

fn is_word(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}
