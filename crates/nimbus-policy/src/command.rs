//! What `nimbus policy` does: read, look, tell, and say by the exit code how it went.
//!
//! Also hands out the text of a file that somebody else judges ([`text_of`]).
//!
//! Writes nothing and prints nothing: the caller does. Knows no clock: the caller says what time it is.

mod render;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use crate::compile::{compile, ends};
use crate::decision::Policy;
use crate::diff::diff;
use crate::problem::{Invalid, Problems};
use crate::prove::prove;
use crate::report::{ExplainReport, ProveReport};
use crate::source::{ReadError, Source};
use crate::suggest::suggest;

/// What to do, with which files; `-` is standard input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// Compile the policy and tell what is wrong with it.
    Validate {
        /// The policy.
        file: PathBuf,
    },
    /// Show the decisions and everything that they grant.
    Explain {
        /// The policy.
        file: PathBuf,
    },
    /// Flag risky grants.
    Prove {
        /// The policy.
        file: PathBuf,
        /// When acceptances are looked at.
        now: Timestamp,
    },
    /// Classify what changed.
    Diff {
        /// The policy before.
        from: PathBuf,
        /// The policy after.
        to: PathBuf,
        /// Whether more authority is a failure.
        deny_widening: bool,
    },
    /// Find the rules that would allow what was refused.
    Suggest {
        /// The policy.
        file: PathBuf,
        /// Lines of the audit log, as `nimbus audit export` writes them.
        audit: PathBuf,
    },
}

/// How the answer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// For people.
    Text,
    /// For programs: one JSON value.
    Json,
    /// For code hosts: SARIF 2.1.0, of [`Command::Prove`] only; JSON for the others.
    Sarif,
}

/// How a command ended. Usage errors (2) are the caller's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Nothing is wrong.
    Clean,
    /// A file could not be read.
    CouldNotRun,
    /// A file is no valid policy.
    Invalid,
    /// Advisories that nobody accepted, or acceptances that are stale or expired.
    Advisories,
    /// More authority, and that was to be refused.
    Widening,
}

impl Exit {
    /// The exit code.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Exit::Clean => 0,
            Exit::CouldNotRun => 1,
            Exit::Invalid => 3,
            Exit::Advisories => 4,
            Exit::Widening => 5,
        }
    }
}

/// What a command has to say.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How it ended.
    pub exit: Exit,
    /// For standard output.
    pub stdout: String,
    /// For standard error.
    pub stderr: String,
}

/// A policy file could not be used.
enum Failure {
    Read(ReadError),
    Invalid(Box<Invalid>),
}

/// Runs a command. `color` is about what goes to standard error.
#[must_use]
pub fn run(command: &Command, format: Format, color: bool) -> Outcome {
    let outcome = match command {
        Command::Validate { file } => load(file).map(|policy| validate(&policy, format)),
        Command::Explain { file } => load(file).map(|policy| explain(&policy, format)),
        Command::Prove { file, now } => load(file).map(|policy| proven(&policy, *now, format)),
        Command::Diff {
            from,
            to,
            deny_widening,
        } => load(from).and_then(|before| {
            let after = load(to)?;
            Ok(compared(&before, &after, *deny_widening, format))
        }),
        Command::Suggest { file, audit } => {
            load(file).and_then(|policy| suggested(&policy, audit, format))
        }
    };
    outcome.unwrap_or_else(|failure| failed(&failure, format, color))
}

/// The text of a file, for somebody else to compile: every byte of it, or nothing.
///
/// # Errors
/// What [`run`] says of a file that cannot be read, is too large or is not UTF-8.
pub fn text_of(file: &Path, format: Format, color: bool) -> Result<String, Box<Outcome>> {
    let text = || {
        let source = Source::read(file).map_err(Failure::Read)?;
        let mut problems = Problems::default();
        match crate::yaml::is_text(&source, &mut problems) {
            true => Ok(source.into_text()),
            false => Err(Failure::Invalid(Box::new(problems.into_invalid(&source)))),
        }
    };
    text().map_err(|failure| Box::new(failed(&failure, format, color)))
}

/// The moment of `--as-of`: a day counts from its first moment.
///
/// # Errors
/// What is expected, if the text is neither a day nor a moment.
pub fn as_of(text: &str) -> Result<Timestamp, String> {
    let day = ends(text).map(|end| {
        if text.len() == "2027-01-31".len() {
            end - jiff::SignedDuration::from_hours(24)
        } else {
            end
        }
    });
    day.ok_or_else(|| {
        "write a day as `2027-01-31`, or a moment as `2027-01-31T12:00:00Z`".to_owned()
    })
}

fn load(file: &Path) -> Result<Policy, Failure> {
    let source = Source::read(file).map_err(Failure::Read)?;
    compile(&source).map_err(Failure::Invalid)
}

fn validate(policy: &Policy, format: Format) -> Outcome {
    let report = ExplainReport::new(policy);
    told(Exit::Clean, format, &report, || render::validate(policy))
}

fn explain(policy: &Policy, format: Format) -> Outcome {
    let report = ExplainReport::new(policy);
    told(Exit::Clean, format, &report, || {
        render::explain(policy, &report)
    })
}

fn proven(policy: &Policy, now: Timestamp, format: Format) -> Outcome {
    let proof = prove(policy, now);
    let exit = if proof.is_clean() {
        Exit::Clean
    } else {
        Exit::Advisories
    };
    if format == Format::Sarif {
        return Outcome {
            exit,
            stdout: pretty(&crate::sarif::log(policy, &proof)),
            stderr: String::new(),
        };
    }
    let report = ProveReport::new(policy, &proof);
    told(exit, format, &report, || render::prove(policy, &proof))
}

fn compared(before: &Policy, after: &Policy, deny_widening: bool, format: Format) -> Outcome {
    let report = diff(before, after);
    let exit = if deny_widening && report.widens() {
        Exit::Widening
    } else {
        Exit::Clean
    };
    let mut outcome = told(exit, format, &report, || render::diff(&report));
    if exit == Exit::Widening {
        outcome.stderr = "refused: authority was widened (--deny-widening)\n".to_owned();
    }
    outcome
}

fn suggested(policy: &Policy, audit: &Path, format: Format) -> Result<Outcome, Failure> {
    let fail = |source| {
        Failure::Read(ReadError {
            path: audit.to_owned(),
            source,
        })
    };
    let report = if audit == Path::new("-") {
        suggest(policy, io::stdin().lock())
    } else {
        let log = File::open(audit).map_err(fail)?;
        suggest(policy, io::BufReader::new(log))
    };
    let report = report.map_err(fail)?;
    Ok(told(Exit::Clean, format, &report, || report.text()))
}

fn told(
    exit: Exit,
    format: Format,
    report: &impl Serialize,
    text: impl FnOnce() -> String,
) -> Outcome {
    let stdout = match format {
        Format::Text => text(),
        Format::Json | Format::Sarif => {
            pretty(&serde_json::to_value(report).unwrap_or(Value::Null))
        }
    };
    Outcome {
        exit,
        stdout,
        stderr: String::new(),
    }
}

fn failed(failure: &Failure, format: Format, color: bool) -> Outcome {
    match failure {
        Failure::Read(error) => Outcome {
            exit: Exit::CouldNotRun,
            stdout: String::new(),
            stderr: format!("error: {error}\n"),
        },
        Failure::Invalid(invalid) if format == Format::Text => Outcome {
            exit: Exit::Invalid,
            stdout: String::new(),
            stderr: invalid.render(color),
        },
        Failure::Invalid(invalid) => {
            let report = serde_json::to_value(invalid.report()).unwrap_or(Value::Null);
            Outcome {
                exit: Exit::Invalid,
                stdout: pretty(&report),
                stderr: String::new(),
            }
        }
    }
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
