//! Other programs: started, waited for, and their output kept in the order it was written.

use std::{
    fmt::{self, Write as _},
    io::{self, BufRead, BufReader, PipeReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

/// A program with its arguments and environment, not started yet.
#[derive(Clone, Debug)]
pub struct Invocation {
    program: String,
    args: Vec<String>,
    env: Vec<(String, Option<String>)>,
    dir: PathBuf,
    echo: bool,
}

/// What became of a program.
#[derive(Debug)]
pub struct Finished {
    /// It started, and exited with status 0.
    pub success: bool,
    /// Everything that it printed, standard output and standard error together.
    pub output: String,
    /// The command line, and how it ended: what a person needs to repeat it.
    pub story: String,
}

impl Invocation {
    /// `program`, to be started in `dir`, without standard input.
    pub fn new(program: &str, dir: &Path) -> Self {
        Self { program: program.to_owned(), args: vec![], env: vec![], dir: dir.to_owned(), echo: false }
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments that are written as one line, separated by blanks.
    pub fn words(mut self, line: &str) -> Self {
        self.args.extend(line.split_whitespace().map(str::to_owned));
        self
    }

    /// Sets a variable of the program's environment.
    pub fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.env.push((name.to_owned(), Some(value.into())));
        self
    }

    /// Takes a variable out of the program's environment.
    pub fn without_env(mut self, name: &str) -> Self {
        self.env.push((name.to_owned(), None));
        self
    }

    /// Prints what the program prints at once, besides keeping it.
    pub fn echo(mut self) -> Self {
        self.echo = true;
        self
    }

    /// Runs the program to its end and keeps its output.
    pub fn run(&self) -> Finished {
        match self.try_run() {
            Ok((status, output)) => {
                let story = format!("`{self}` ended with {status}");
                Finished { success: status.success(), output, story }
            }
            Err(error) => Finished {
                success: false,
                output: String::new(),
                story: format!("`{self}` could not be run: {error}"),
            },
        }
    }

    /// Runs the program on this process's own terminal and gives its status.
    pub fn hand_over(&self) -> Result<ExitStatus, String> {
        self.command().status().map_err(|error| format!("`{self}` could not be run: {error}"))
    }

    /// Starts the program, without standard input and output, and does not wait for it.
    pub fn spawn(&self, stderr: Stdio) -> io::Result<Child> {
        self.command().stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr).spawn()
    }

    /// The command line, without the middle of one that nobody reads to its end.
    pub fn shortened(&self) -> String {
        const SHOWN: usize = 19;
        if self.args.len() <= SHOWN {
            return self.to_string();
        }
        let few = Self { args: self.args.iter().take(SHOWN).cloned().collect(), ..self.clone() };
        format!("{few} ... ({} more)", self.args.len() - SHOWN)
    }

    fn try_run(&self) -> io::Result<(ExitStatus, String)> {
        let (reader, writer) = io::pipe()?;
        let mut command = self.command();
        command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
        let mut child = command.spawn()?;
        // `command` holds the write ends; the pipe ends only once they are closed here too.
        drop(command);
        let output = self.collect(reader)?;
        Ok((child.wait()?, output))
    }

    fn collect(&self, reader: PipeReader) -> io::Result<String> {
        let mut output = String::new();
        let mut reader = BufReader::new(reader);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line)? > 0 {
            let text = String::from_utf8_lossy(&line);
            if self.echo {
                print!("{text}");
            }
            output.push_str(&text);
            line.clear();
        }
        Ok(output)
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args).current_dir(&self.dir);
        for (name, value) in &self.env {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }
}

impl fmt::Display for Invocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in &self.env {
            if let Some(value) = value {
                write!(f, "{name}={} ", quoted(value))?;
            }
        }
        let program = Path::new(&self.program).file_name().unwrap_or_default().to_string_lossy();
        f.write_str(&program)?;
        for arg in &self.args {
            write!(f, " {}", quoted(arg))?;
        }
        Ok(())
    }
}

impl Finished {
    /// What a program with that output would have left, for tests of those who read it.
    #[cfg(test)]
    pub fn with(success: bool, output: &str) -> Self {
        Self { success, output: output.to_owned(), story: "`program` ended".to_owned() }
    }

    /// The whole output under the command line: for a person who has to find out what went wrong.
    pub fn in_full(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(text, "{}", self.story);
        text.push_str(&self.output);
        text
    }
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=+./:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Finished {
        Invocation::new("sh", Path::new("/")).words("-c").arg(script).run()
    }

    #[test]
    fn both_streams_are_kept_in_order() {
        let finished = shell("echo one; echo two >&2; echo three");
        assert!(finished.success);
        assert_eq!(finished.output, "one\ntwo\nthree\n");
    }

    #[test]
    fn a_status_other_than_zero_is_no_success() {
        let finished = shell("echo why; exit 3");
        assert!(!finished.success);
        assert!(finished.in_full().contains("exit status: 3"), "{}", finished.in_full());
        assert!(finished.in_full().ends_with("why\n"));
    }

    #[test]
    fn a_program_that_is_not_there_is_no_success() {
        let finished = Invocation::new("no-such-program-here", Path::new("/")).run();
        assert!(!finished.success);
        assert!(finished.story.contains("no-such-program-here"), "{}", finished.story);
    }

    #[test]
    fn bytes_that_are_no_text_are_kept_as_marks() {
        assert_eq!(shell(r"printf 'a\377b'").output, "a\u{fffd}b");
    }

    #[test]
    fn a_variable_can_be_set_and_taken_away() {
        let invocation = Invocation::new("sh", Path::new("/")).words("-c").arg("echo ${HOME-none} $OURS");
        assert_eq!(invocation.without_env("HOME").env("OURS", "yes").run().output, "none yes\n");
    }

    #[test]
    fn the_printed_command_line_can_be_pasted_into_a_shell() {
        let invocation =
            Invocation::new("cargo", Path::new("/")).env("RUSTFLAGS", "--cfg loom").words("test -p x");
        assert_eq!(invocation.arg("it's").to_string(), r"RUSTFLAGS='--cfg loom' cargo test -p x 'it'\''s'");
    }
}
