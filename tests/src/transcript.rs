//! Golden transcripts: commands with what they print, kept as text files that people can read.
//!
//! A file holds blocks. `$ ` starts a command (`NAME=value` before `nimbus` sets a variable), the
//! lines after it are its standard output, those after `! ` its standard error, `? 1` its exit
//! code when that is not 0; `# ` starts a comment. Words in braces stand for what differs between
//! runs. With `NIMBUS_TEST_BLESS=1` the files are written anew instead of compared. This room must
//! not know any command.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use crate::home::{Finished, Home};

/// A transcript file and the words in it.
#[derive(Debug)]
pub struct Transcript<'a> {
    path: PathBuf,
    home: &'a Home,
    words: Vec<(String, String)>,
}

impl<'a> Transcript<'a> {
    /// The transcript `tests/cli/<name>.txt`, whose commands run in `home`.
    pub fn open(name: &str, home: &'a Home) -> Transcript<'a> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("cli");
        Transcript {
            path: dir.join(name).with_extension("txt"),
            home,
            words: vec![("home".to_owned(), shown(home.path()))],
        }
    }

    /// `{name}` stands for `value` in commands and in what they print.
    pub fn word(mut self, name: &str, value: impl Into<String>) -> Self {
        // Newest first: a later word is mostly a longer path.
        self.words.insert(0, (name.to_owned(), value.into()));
        self
    }

    /// Runs every command in order and compares.
    pub fn play(self) {
        let expected = fs::read_to_string(&self.path)
            .unwrap_or_else(|e| panic!("{}: {e}", self.path.display()));
        let mut found = String::new();
        for line in expected.lines() {
            let command = line.strip_prefix("$ ");
            if command.is_none() && !line.starts_with('#') {
                continue;
            }
            if !found.is_empty() && !ends_with_comment(&found) {
                found.push('\n');
            }
            let _ = writeln!(found, "{line}");
            if let Some(command) = command {
                found.push_str(&self.render(&self.run(command)));
            }
        }
        if std::env::var_os("NIMBUS_TEST_BLESS").is_some_and(|value| value == "1") {
            fs::write(&self.path, found).unwrap();
            return;
        }
        assert_eq!(
            without_blank_lines(&found),
            without_blank_lines(&expected),
            "{} differs. What was printed:\n{found}",
            self.path.display()
        );
    }

    fn run(&self, command: &str) -> Finished {
        let command = self
            .words
            .iter()
            .fold(command.to_owned(), |text, (name, value)| {
                text.replace(&format!("{{{name}}}"), value)
            });
        let mut words = command.split_whitespace();
        let mut variables = Vec::new();
        let program = loop {
            let word = words.next().expect("a command");
            match word.split_once('=') {
                Some(variable) => variables.push(variable),
                None => break word,
            }
        };
        assert_eq!(program, "nimbus", "{command}");
        let arguments = words.map(|word| if word == "''" { "" } else { word });
        let mut process = self.home.command(arguments);
        Finished::of(process.envs(variables))
    }

    fn render(&self, finished: &Finished) -> String {
        let mut text = String::new();
        for line in self.general(&finished.stdout).lines() {
            let _ = writeln!(text, "{}", line.trim_end());
        }
        for line in self.general(&finished.stderr).lines() {
            let _ = writeln!(text, "{}", format!("! {line}").trim_end());
        }
        match finished.code {
            Some(0) => {}
            Some(code) => {
                let _ = writeln!(text, "? {code}");
            }
            None => text.push_str("? signal\n"),
        }
        text
    }

    /// `text` with the values of words replaced by their names, and times by `{time}`.
    fn general(&self, text: &str) -> String {
        let text = self
            .words
            .iter()
            .fold(text.to_owned(), |text, (name, value)| {
                text.replace(value, &format!("{{{name}}}"))
            });
        times_replaced(&text)
    }
}

fn shown(path: &Path) -> String {
    path.to_str().unwrap().to_owned()
}

fn ends_with_comment(text: &str) -> bool {
    text.lines()
        .last()
        .is_some_and(|line| line.starts_with('#'))
}

fn without_blank_lines(text: &str) -> Vec<&str> {
    text.lines().filter(|line| !line.is_empty()).collect()
}

/// Replaces RFC 3339 times in UTC by `{time}`.
fn times_replaced(text: &str) -> String {
    const SHAPE: &[u8] = b"0000-00-00T00:00:00";
    let bytes = text.as_bytes();
    let is_time = |at: usize| {
        bytes.get(at..at + SHAPE.len()).is_some_and(|window| {
            window.iter().zip(SHAPE).all(|(found, shape)| match shape {
                b'0' => found.is_ascii_digit(),
                other => found == other,
            })
        })
    };
    let mut out = String::new();
    let mut rest = 0;
    while let Some(at) = (rest..bytes.len()).find(|at| is_time(*at)) {
        out.push_str(&text[rest..at]);
        out.push_str("{time}");
        let tail = &text[at + SHAPE.len()..];
        let fraction = tail.trim_start_matches(|c: char| c == '.' || c.is_ascii_digit());
        let end = fraction.strip_prefix('Z').unwrap_or(fraction);
        rest = text.len() - end.len();
    }
    out.push_str(&text[rest..]);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_replaced_with_their_fraction() {
        for (text, expected) in [
            ("at 2026-06-10T17:03:21Z.", "at {time}."),
            (
                "2026-06-10T17:03:21.123456Z INFO 2026-06-10",
                "{time} INFO 2026-06-10",
            ),
            ("\u{e9} 2026-06-10T17:03:21.5Z\n", "\u{e9} {time}\n"),
            ("none", "none"),
        ] {
            assert_eq!(times_replaced(text), expected);
        }
    }
}
