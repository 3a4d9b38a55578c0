//! From the tree to typed values: keys that exist, values of the right type, and every fault at once.
//!
//! Knows no key of a policy and no rule beyond types; `mapping!` and `choices!` make one definition serve the
//! decoder, the JSON Schema and the message that lists what may be written.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator};

use crate::problem::{Code, Problem, Problems};
use crate::source::Span;
use crate::text::{acts, shown};
use crate::yaml::{Kind, Node};

/// Longest text in bytes.
const MAX_TEXT: usize = 4_096;

/// What can be made of a node.
pub(crate) trait Decode: Sized {
    /// The value, or `None` with at least one problem added.
    fn decode(node: &Node<'_>, problems: &mut Problems) -> Option<Self>;
}

/// A value with its place.
#[derive(Clone, Debug)]
pub(crate) struct Spanned<T> {
    pub(crate) span: Span,
    pub(crate) value: T,
}

impl<T: Decode> Decode for Spanned<T> {
    fn decode(node: &Node<'_>, problems: &mut Problems) -> Option<Spanned<T>> {
        Some(Spanned {
            span: node.span,
            value: T::decode(node, problems)?,
        })
    }
}

impl<T: JsonSchema> JsonSchema for Spanned<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }

    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }

    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

impl Decode for String {
    fn decode(node: &Node<'_>, problems: &mut Problems) -> Option<String> {
        let Kind::Scalar { text, plain } = &node.kind else {
            return wrong(node, "a text", problems);
        };
        if *plain && no_value(text) {
            return missing_value(node, problems);
        }
        if *plain && ambiguous(text) {
            problems
                .add(
                    Code::WrongType,
                    node.span,
                    "a text is needed, and this reads as a number or a truth value",
                )
                .help("put it in quotes");
            return None;
        }
        if text.len() > MAX_TEXT {
            let message = format!(
                "the text has {} bytes, at most {MAX_TEXT} are taken",
                text.len()
            );
            problems.add(Code::BadText, node.span, message);
            return None;
        }
        if !plainly_seen(text) && text.chars().any(acts) {
            problems
                .add(
                    Code::BadText,
                    node.span,
                    "the text has a character that is not seen: a control character or a mark of direction",
                )
                .help("write it without; escapes such as `\\x1b` count as the character");
            return None;
        }
        Some(text.as_ref().to_owned())
    }
}

/// Whether every character is visible ASCII or a space, as mostly is so.
fn plainly_seen(text: &str) -> bool {
    text.bytes().all(|byte| matches!(byte, b' '..=b'~'))
}

/// Whether a plain scalar is nothing at all.
fn no_value(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

/// Whether some reader of YAML takes a plain scalar for something else than a text.
fn ambiguous(text: &str) -> bool {
    const WORDS: [&str; 6] = ["true", "false", "yes", "no", "on", "off"];
    // Numbers, infinities and what is none begin with one of these; nothing else is looked at closely.
    const FIRST: &[u8] = b"0123456789+-.iInN";
    let first = text.trim_start_matches('_').bytes().next();
    let number = || {
        text.replace('_', "").parse::<f64>().is_ok()
            || text.starts_with("0x")
            || text.starts_with("0o")
    };
    WORDS.iter().any(|word| text.eq_ignore_ascii_case(word))
        || (first.is_some_and(|byte| FIRST.contains(&byte)) && number())
}

impl Decode for bool {
    fn decode(node: &Node<'_>, problems: &mut Problems) -> Option<bool> {
        match &node.kind {
            Kind::Scalar { text, plain: true } if text == "true" => Some(true),
            Kind::Scalar { text, plain: true } if text == "false" => Some(false),
            Kind::Scalar { text, plain: true } if no_value(text) => missing_value(node, problems),
            _ => wrong(node, "`true` or `false`", problems),
        }
    }
}

/// Whole numbers, in decimal and in no other form.
fn number(node: &Node<'_>, most: u64, problems: &mut Problems) -> Option<u64> {
    let Kind::Scalar { text, plain } = &node.kind else {
        return wrong(node, "a whole number", problems);
    };
    if *plain && no_value(text) {
        return missing_value(node, problems);
    }
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let leading = text.len() > 1 && text.starts_with('0');
    let value = text.parse().ok().filter(|value| *value <= most);
    if let (true, true, false, Some(value)) = (*plain, digits, leading, value) {
        return Some(value);
    }
    let message = format!("a whole number from 0 to {most} is needed");
    problems
        .add(Code::BadNumber, node.span, message)
        .help("write decimal digits without quotes, separators, sign or leading zeros");
    None
}

impl Decode for u16 {
    fn decode(node: &Node<'_>, problems: &mut Problems) -> Option<u16> {
        let value = number(node, u64::from(u16::MAX), problems)?;
        u16::try_from(value).ok()
    }
}

impl Decode for u32 {
    fn decode(node: &Node<'_>, problems: &mut Problems) -> Option<u32> {
        let value = number(node, u64::from(u32::MAX), problems)?;
        u32::try_from(value).ok()
    }
}

impl Decode for u64 {
    fn decode(node: &Node<'_>, problems: &mut Problems) -> Option<u64> {
        // What JSON carries without loss.
        number(node, (1 << 53) - 1, problems)
    }
}

impl<T: Decode> Decode for Vec<T> {
    fn decode(node: &Node<'_>, problems: &mut Problems) -> Option<Vec<T>> {
        let items = match &node.kind {
            Kind::List(items) => items,
            Kind::Scalar { text, plain: true } if no_value(text) => {
                return missing_value(node, problems);
            }
            _ => return wrong(node, "a list", problems),
        };
        // All are looked at before the first fault counts.
        let mut decoded = Vec::with_capacity(items.len());
        decoded.extend(items.iter().filter_map(|item| T::decode(item, problems)));
        (decoded.len() == items.len()).then_some(decoded)
    }
}

fn wrong<T>(node: &Node<'_>, expected: &str, problems: &mut Problems) -> Option<T> {
    let found = match &node.kind {
        Kind::Scalar { .. } => "a single value",
        Kind::List(_) => "a list",
        Kind::Map(_) => "a mapping",
    };
    let message = format!("{expected} is needed, found {found}");
    problems.add(Code::WrongType, node.span, message);
    None
}

fn missing_value<T>(node: &Node<'_>, problems: &mut Problems) -> Option<T> {
    problems
        .add(Code::NoValue, node.span, "the key has no value")
        .help("give it one, or remove the key: nothing is not the same as an empty list");
    None
}

/// The keys of a mapping that is being decoded.
pub(crate) struct Fields<'a> {
    node: &'a Node<'a>,
    entries: &'a [(crate::yaml::Key<'a>, Node<'a>)],
}

impl<'a> Fields<'a> {
    /// The mapping, once all keys that do not exist are told.
    pub(crate) fn of(
        node: &'a Node<'a>,
        keys: &[&'static str],
        problems: &mut Problems,
    ) -> Option<Fields<'a>> {
        let entries = match &node.kind {
            Kind::Map(entries) => entries,
            Kind::Scalar { text, plain: true } if no_value(text) => {
                return missing_value(node, problems);
            }
            _ => return wrong(node, "a mapping", problems),
        };
        for (key, _) in entries {
            if !keys.contains(&&*key.text) {
                let message = format!("there is no key `{}` here", shown(&key.text));
                let problem = problems.add(Code::UnknownKey, key.span, message);
                choices(problem, &key.text, keys, "keys");
            }
        }
        Some(Fields { node, entries })
    }

    /// A key that must be there.
    pub(crate) fn required<T: Decode>(&self, key: &str, problems: &mut Problems) -> Option<T> {
        if let Some(node) = self.find(key) {
            return T::decode(node, problems);
        }
        let span = Span {
            start: self.node.span.start,
            end: self
                .entries
                .first()
                .map_or(self.node.span.end, |(key, _)| key.span.end),
        };
        problems
            .add(
                Code::MissingKey,
                span,
                format!("the key `{key}` is missing"),
            )
            .label("in the mapping that begins here");
        None
    }

    /// A key that may be there: `Some(None)` if it is not.
    pub(crate) fn optional<T: Decode>(
        &self,
        key: &str,
        problems: &mut Problems,
    ) -> Option<Option<T>> {
        match self.find(key) {
            Some(node) => T::decode(node, problems).map(Some),
            None => Some(None),
        }
    }

    fn find(&self, key: &str) -> Option<&'a Node<'a>> {
        let entry = self.entries.iter().find(|(found, _)| found.text == key);
        entry.map(|(_, node)| node)
    }
}

/// Adds what may be written, the likeliest first.
pub(crate) fn choices(problem: &mut Problem, found: &str, known: &[&'static str], what: &str) {
    let list = known.join("`, `");
    let near = known
        .iter()
        .map(|name| (strsim::damerau_levenshtein(&shown(found), name), name))
        .filter(|(distance, name)| *distance <= 1 + name.len() / 4)
        .min();
    problem.help(match near {
        Some((_, name)) => format!("did you mean `{name}`? The {what} are `{list}`"),
        None => format!("the {what} are `{list}`"),
    });
}

/// One mapping: its type, its decoder and its schema.
macro_rules! mapping {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $how:ident $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, schemars::JsonSchema)]
        #[schemars(deny_unknown_fields)]
        pub(crate) struct $name {
            $($(#[$field_doc])* pub(crate) $field: $crate::decode::mapping!(@ $how $type),)*
        }

        impl $crate::decode::Decode for $name {
            fn decode(
                node: &$crate::yaml::Node<'_>,
                problems: &mut $crate::problem::Problems,
            ) -> Option<$name> {
                let keys = [$(stringify!($field)),*];
                let fields = $crate::decode::Fields::of(node, &keys, problems)?;
                $(let $field = fields.$how::<$type>(stringify!($field), problems);)*
                Some($name { $($field: $field?,)* })
            }
        }
    };
    (@ required $type:ty) => { $type };
    (@ optional $type:ty) => { Option<$type> };
}

/// One set of words: its type, its decoder and its schema.
macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$word_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, schemars::JsonSchema,
        )]
        #[non_exhaustive]
        pub enum $name {
            $($(#[$word_doc])* #[serde(rename = $word)] $variant,)*
        }

        impl $name {
            /// The word in a policy file.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $($name::$variant => $word,)* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl $crate::decode::Decode for $name {
            fn decode(
                node: &$crate::yaml::Node<'_>,
                problems: &mut $crate::problem::Problems,
            ) -> Option<$name> {
                if let $crate::yaml::Kind::Scalar { text, .. } = &node.kind {
                    $(if text == $word { return Some($name::$variant); })*
                }
                let text = String::decode(node, problems)?;
                $crate::decode::unknown(node, &text, &[$($word),*], problems);
                None
            }
        }
    };
}

/// Tells a word that is none of those that there are.
pub(crate) fn unknown(
    node: &Node<'_>,
    text: &str,
    known: &[&'static str],
    problems: &mut Problems,
) {
    let message = format!("`{}` is none of the values here", shown(text));
    let problem = problems.add(Code::UnknownValue, node.span, message);
    choices(problem, text, known, "values");
}

pub(crate) use {choice, mapping};
