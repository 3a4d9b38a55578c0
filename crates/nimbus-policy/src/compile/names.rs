//! Names, lists of names, and texts of people.

use std::collections::BTreeSet;
use std::collections::hash_map::{Entry, HashMap};

use super::Compiler;
use crate::decision::SecretHandle;
use crate::decode::Spanned;
use crate::problem::Code;
use crate::source::Span;
use crate::text::shown;

/// Longest name in bytes.
const MAX_NAME: usize = 200;

/// Longest list that is searched from its beginning; nearly all are shorter.
const FEW: usize = 16;

/// What a list had so far, and where.
#[derive(Default)]
pub(super) struct Seen<'a> {
    few: Vec<(&'a str, Span)>,
    many: HashMap<&'a str, Span>,
}

impl<'a> Seen<'a> {
    /// Where the same text stood first; if nowhere, it stands here.
    pub(super) fn before(&mut self, text: &'a str, span: Span) -> Option<Span> {
        if let Some((_, first)) = self.few.iter().find(|(known, _)| *known == text) {
            return Some(*first);
        }
        if self.few.len() < FEW {
            self.few.push((text, span));
            return None;
        }
        match self.many.entry(text) {
            Entry::Occupied(first) => Some(*first.get()),
            Entry::Vacant(free) => {
                free.insert(span);
                None
            }
        }
    }
}

impl Compiler<'_> {
    /// One concrete name: visible ASCII without wildcards.
    pub(super) fn name(&mut self, name: &Spanned<String>, what: &str) -> Option<String> {
        let text = &name.value;
        let (code, message, help) = if text.is_empty() {
            (
                Code::NoValue,
                format!("the name of {what} is empty"),
                "give it one".to_owned(),
            )
        } else if text.contains('*') {
            (
                Code::Wildcard,
                format!("`{}` is a wildcard", shown(text)),
                format!("name {what} exactly, each in an entry of its own"),
            )
        } else if !text.bytes().all(|byte| byte.is_ascii_graphic()) || text.len() > MAX_NAME {
            (
                Code::BadName,
                format!("`{}` is no name of {what}", shown(text)),
                format!("a name has 1 to {MAX_NAME} visible ASCII characters and no spaces"),
            )
        } else {
            return Some(text.clone());
        };
        self.problems.add(code, name.span, message).help(help);
        None
    }

    /// A list of names, each once.
    pub(super) fn names(&mut self, list: &[Spanned<String>], what: &str) -> BTreeSet<String> {
        let mut seen = Seen::default();
        let mut names = BTreeSet::new();
        for item in list {
            let Some(name) = self.name(item, what) else {
                continue;
            };
            match seen.before(&item.value, item.span) {
                Some(first) => self.twice(item.span, first, &format!("`{name}` is listed twice")),
                None => drop(names.insert(name)),
            }
        }
        names
    }

    pub(super) fn twice(&mut self, span: Span, first: Span, message: &str) {
        self.problems
            .add(Code::Duplicate, span, message)
            .help("keep one of the two")
            .also(first, "first here");
    }

    /// A text of people that must say something.
    pub(super) fn prose(&mut self, text: &Spanned<String>, key: &str) -> Option<String> {
        if text.value.trim().is_empty() {
            self.problems
                .add(Code::NoValue, text.span, format!("`{key}` is empty"))
                .help("say something that another person understands");
            return None;
        }
        Some(text.value.trim().to_owned())
    }

    /// Handles of secrets. No message repeats one: it may be the secret itself.
    pub(super) fn secrets(&mut self, list: &[Spanned<String>]) -> BTreeSet<SecretHandle> {
        let mut seen = Seen::default();
        let mut handles = BTreeSet::new();
        for item in list {
            let text = &item.value;
            let help = "name the secret by its handle, such as `PAYMENTS_API_KEY`; its value stays outside the file";
            let message = if text.is_empty() {
                "the handle is empty"
            } else if text.starts_with("raw:") {
                "this is a secret, not the handle of one: `raw:` values are not taken"
            } else if text.contains('=') {
                "a handle has no `=`: this looks like a secret or an assignment"
            } else if text.contains('*') {
                self.problems
                    .add(Code::Wildcard, item.span, "a handle with a wildcard")
                    .help("name each secret");
                continue;
            } else if !text.bytes().all(|byte| byte.is_ascii_graphic()) || text.len() > MAX_NAME {
                "a handle has 1 to 200 visible ASCII characters and no spaces"
            } else {
                match seen.before(text, item.span) {
                    Some(first) => self.twice(item.span, first, "the handle is listed twice"),
                    None => drop(handles.insert(SecretHandle::new(text.clone()))),
                }
                continue;
            };
            self.problems
                .add(Code::BadSecret, item.span, message)
                .help(help);
        }
        handles
    }
}
