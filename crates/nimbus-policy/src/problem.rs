//! What is wrong with a policy file: collected, then shown with the place, or told to a program.
//!
//! Knows no rules; those who find a fault say what it is and what to write instead.

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use schemars::JsonSchema;
use serde::Serialize;

use crate::source::{Source, Span};
use crate::text::{file_name, masked, secret_spans};

/// Most problems of one file that are told.
const MOST: usize = 50;

/// The kind of a problem. Programs may rely on these names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Code {
    /// An anchor, an alias or a merge key.
    AnchorOrAlias,
    /// A date that is none.
    BadDate,
    /// A host that is neither a name nor an address.
    BadHost,
    /// An image reference or rule that cannot hold.
    BadImage,
    /// A method that is no upper-case token.
    BadMethod,
    /// A name with characters that names do not have.
    BadName,
    /// A number that is none, or out of range.
    BadNumber,
    /// A path prefix that servers could read in two ways, or that is none.
    BadPath,
    /// A secret handle that looks like a secret, or is none.
    BadSecret,
    /// A tenant id that the server would refuse.
    BadTenant,
    /// A text with characters that act on a terminal, or too long.
    BadText,
    /// A version that this program does not know.
    BadVersion,
    /// The same name or value twice in a list.
    Duplicate,
    /// The same key twice in a mapping.
    DuplicateKey,
    /// An internal host without `allow_internal_ips`.
    InternalHost,
    /// A block that the workload's kind does not have.
    Misplaced,
    /// A key that must be there.
    MissingKey,
    /// A mandatory audit redaction is not listed.
    MissingRedaction,
    /// A key that the protocol does not have.
    NotForProtocol,
    /// The bytes are no UTF-8.
    NotUtf8,
    /// A key without a value, or an empty list or text where something must be.
    NoValue,
    /// A path prefix that another covers.
    OverlappingPaths,
    /// Scaling beyond the limits of the tenant.
    ScalingLimit,
    /// An endpoint of a service that is not granted.
    ServiceNotAllowed,
    /// More than one YAML document.
    SeveralDocuments,
    /// The text is no YAML.
    Syntax,
    /// A YAML tag.
    Tag,
    /// Nested deeper than any policy.
    TooDeep,
    /// More bytes than a policy file may have.
    TooLarge,
    /// More values than a policy file may have.
    TooMany,
    /// A key that does not exist.
    UnknownKey,
    /// A value that is none of those allowed.
    UnknownValue,
    /// A wildcard where a concrete name is needed.
    Wildcard,
    /// A list where a text is needed, and the like.
    WrongType,
    /// A quota of zero.
    ZeroQuota,
}

impl Code {
    /// The name in JSON and in brackets.
    #[must_use]
    pub fn name(self) -> String {
        serde_json::to_value(self)
            .ok()
            .and_then(|value| value.as_str().map(str::to_owned))
            .unwrap_or_default()
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug)]
pub(crate) struct Problem {
    code: Code,
    message: String,
    span: Span,
    label: String,
    help: Option<String>,
    related: Option<(Span, String)>,
}

impl Problem {
    /// What stands at the place, in a few words.
    pub(crate) fn label(&mut self, text: impl Into<String>) -> &mut Problem {
        self.label = text.into();
        self
    }

    /// What to write instead.
    pub(crate) fn help(&mut self, text: impl Into<String>) -> &mut Problem {
        self.help = Some(text.into());
        self
    }

    /// Another place that has to do with it.
    pub(crate) fn also(&mut self, span: Span, text: &str) -> &mut Problem {
        self.related = Some((span, text.to_owned()));
        self
    }
}

/// Problems as they are found.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    list: Vec<Problem>,
}

impl Problems {
    /// Adds one; its details follow on what is returned.
    pub(crate) fn add(
        &mut self,
        code: Code,
        span: Span,
        message: impl Into<String>,
    ) -> &mut Problem {
        self.list.push(Problem {
            code,
            message: message.into(),
            span,
            label: String::new(),
            help: None,
            related: None,
        });
        let last = self.list.len() - 1;
        &mut self.list[last]
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.list.len()
    }

    /// All of them as the error of `source`, in the order of the file.
    pub(crate) fn into_invalid(self, source: &Source) -> Invalid {
        let mut list = self.list;
        list.sort_by_key(|problem| (problem.span.start, problem.span.end));
        Invalid {
            source: source.clone(),
            list,
        }
    }
}

/// A policy file that is not valid, with everything that is wrong with it.
#[derive(Clone, Debug)]
pub struct Invalid {
    source: Source,
    list: Vec<Problem>,
}

impl std::error::Error for Invalid {}

impl std::fmt::Display for Invalid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = file_name(self.source.name());
        match self.list.first() {
            Some(first) => {
                let at = self.source.place(first.span.start);
                write!(f, "{name}:{}:{}: {}", at.line, at.column, first.message)
            }
            None => write!(f, "{name} is not valid"),
        }
    }
}

impl Invalid {
    /// The kinds of the problems, in the order of the file.
    #[must_use]
    pub fn codes(&self) -> Vec<Code> {
        self.list.iter().map(|problem| problem.code).collect()
    }

    /// The problems with the lines of the file that they are about, for people.
    #[must_use]
    pub fn render(&self, color: bool) -> String {
        let renderer = if color {
            Renderer::styled()
        } else {
            Renderer::plain()
        };
        let secrets = secret_spans(self.source.text());
        let name = file_name(self.source.name());
        let mut out = String::new();
        for problem in self.list.iter().take(MOST) {
            out.push_str(&self.one(problem, &name, &secrets, &renderer));
            out.push_str("\n\n");
        }
        let (count, rest) = (self.list.len(), self.list.len().saturating_sub(MOST));
        if rest > 0 {
            out.push_str(&format!("and {rest} more like these\n"));
        }
        let noun = if count == 1 { "problem" } else { "problems" };
        out.push_str(&format!("invalid: {name}: {count} {noun}\n"));
        out
    }

    fn one(&self, problem: &Problem, name: &str, secrets: &[Span], renderer: &Renderer) -> String {
        let code = problem.code.name();
        let title = Level::ERROR.primary_title(&problem.message).id(code);
        let primary = AnnotationKind::Primary;
        let mut group =
            title.element(self.snippet(problem.span, &problem.label, primary, name, secrets));
        if let Some((span, label)) = &problem.related {
            let context = AnnotationKind::Context;
            group = group.element(self.snippet(*span, label, context, name, secrets));
        }
        if let Some(help) = &problem.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        let report: [Group<'_>; 1] = [group];
        renderer.render(&report)
    }

    fn snippet<'a>(
        &self,
        span: Span,
        label: &'a str,
        kind: AnnotationKind,
        name: &'a str,
        secrets: &[Span],
    ) -> Snippet<'a, annotate_snippets::Annotation<'a>> {
        let lines = self.source.lines(first_line(self.source.text(), span), 1);
        let from = lines.start;
        let text = masked(&self.source.text()[lines], secrets, from);
        let span = first_line(self.source.text(), span);
        let end = (span.end - from).min(text.len());
        let start = (span.start - from).min(end);
        let label = (!label.is_empty()).then_some(label);
        Snippet::source(text)
            .line_start(self.source.place(from).line)
            .path(name)
            .annotation(kind.span(start..end).label(label))
    }

    /// The same for programs.
    #[must_use]
    pub fn report(&self) -> InvalidReport {
        let told = |problem: &Problem| {
            let (start, end) = (
                self.source.place(problem.span.start),
                self.source.place(problem.span.end),
            );
            ProblemReport {
                code: problem.code,
                message: problem.message.clone(),
                file: file_name(self.source.name()),
                line: start.line,
                column: start.column,
                end_line: end.line,
                end_column: end.column,
                help: problem.help.clone(),
            }
        };
        InvalidReport {
            valid: false,
            error_count: self.list.len(),
            errors: self.list.iter().take(MOST).map(told).collect(),
        }
    }
}

/// The part of a span that is on its first line: what a snippet marks.
fn first_line(text: &str, span: Span) -> Span {
    let part = text.get(span.start..span.end).unwrap_or_default();
    let line = part.split('\n').next().unwrap_or_default();
    let end = span.start + line.trim_end().len();
    Span {
        start: span.start.min(text.len()),
        end: end.min(text.len()),
    }
}

/// A policy file that is not valid, as JSON.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(title = "What is wrong with a policy file")]
pub struct InvalidReport {
    /// Always false.
    valid: bool,
    /// How many problems there are.
    error_count: usize,
    /// The first 50 of them, in the order of the file.
    errors: Vec<ProblemReport>,
}

/// One problem.
#[derive(Debug, Serialize, JsonSchema)]
struct ProblemReport {
    /// The kind of problem.
    code: Code,
    /// What is wrong.
    message: String,
    /// The file as it was given.
    file: String,
    /// From 1.
    line: usize,
    /// In characters, from 1.
    column: usize,
    /// Line of the first character that is right again.
    end_line: usize,
    /// Column of that character.
    end_column: usize,
    /// What to write instead.
    help: Option<String>,
}
