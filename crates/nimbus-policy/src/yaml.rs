//! YAML as a tree in which every value knows its place.
//!
//! Takes the plain part of YAML only: one document of mappings, lists and scalars. Anchors, aliases, merge keys and
//! tags are refused: a reviewer must see each grant where it stands, and nothing can multiply. The sizes are
//! bounded before anything is built. Knows no key of a policy.

mod input;

use std::borrow::Cow;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError};

use crate::problem::{Code, Problems};
use crate::source::{MAX_FILE_BYTES, Source, SourceFault, Span};
use crate::text::shown;
use input::Text;

/// Deepest nesting; a policy needs nine levels.
const MAX_DEPTH: usize = 16;
/// Most values in a file.
const MAX_NODES: usize = 400_000;
/// Keys that a mapping has room for from the beginning; a rule has six or seven.
const USUAL_KEYS: usize = 8;
/// Most keys of one mapping; none of a policy has half as many.
const MAX_KEYS: usize = 64;

/// A value with its place.
#[derive(Debug)]
pub(crate) struct Node<'a> {
    pub(crate) span: Span,
    pub(crate) kind: Kind<'a>,
}

#[derive(Debug)]
pub(crate) enum Kind<'a> {
    /// Text as it was meant; `plain` if it had no quotes, so that it could be a number as well.
    Scalar { text: Cow<'a, str>, plain: bool },
    /// A list.
    List(Vec<Node<'a>>),
    /// A mapping, in the order of the file.
    Map(Vec<(Key<'a>, Node<'a>)>),
}

/// A key of a mapping.
#[derive(Debug)]
pub(crate) struct Key<'a> {
    pub(crate) span: Span,
    pub(crate) text: Cow<'a, str>,
}

/// Whether the bytes of a file are a text of a size that is taken; if not, the problem says why.
pub(crate) fn is_text(source: &Source, problems: &mut Problems) -> bool {
    match source.fault() {
        Some(SourceFault::TooLarge) => {
            let limit = MAX_FILE_BYTES / (1024 * 1024);
            let message = format!("the file has more than {limit} MiB");
            problems
                .add(Code::TooLarge, Span::default(), message)
                .help("split the policy: one file per tenant");
            false
        }
        Some(SourceFault::NotUtf8(at)) => {
            let span = Span { start: at, end: at };
            problems
                .add(Code::NotUtf8, span, "the file is not UTF-8")
                .label("the first byte that is none")
                .help("save the file as UTF-8");
            false
        }
        None => true,
    }
}

/// Reads the one document of a file. `None` if there is none that could be looked at; the problems say why.
pub(crate) fn parse<'a>(source: &'a Source, problems: &mut Problems) -> Option<Node<'a>> {
    if !is_text(source, problems) {
        return None;
    }
    let text = source
        .text()
        .strip_prefix('\u{feff}')
        .unwrap_or(source.text());
    let mut builder = Builder {
        parser: Parser::new(Text::new(text)),
        places: Places::new(source.text(), text),
        nodes: 0,
        problems,
    };
    builder.document().ok().flatten()
}

/// Byte offsets of characters, since the parser counts characters.
struct Places<'a> {
    text: &'a str,
    /// Of the text that is parsed, in the file.
    offset: usize,
    /// None for ASCII.
    bytes: Option<Vec<u32>>,
}

impl<'a> Places<'a> {
    fn new(file: &'a str, text: &'a str) -> Places<'a> {
        let index = |(at, _)| u32::try_from(at).unwrap_or(u32::MAX);
        let bytes = (!text.is_ascii()).then(|| text.char_indices().map(index).collect());
        Places {
            text,
            offset: file.len() - text.len(),
            bytes,
        }
    }

    fn byte(&self, at: usize) -> usize {
        let found = match &self.bytes {
            Some(bytes) => bytes.get(at).map_or(self.text.len(), |byte| *byte as usize),
            None => at.min(self.text.len()),
        };
        found + self.offset
    }

    /// A text as it stands in the file, where that is the same: the parser's own is a copy with room for much more.
    fn written(&self, span: Span, text: Cow<'a, str>) -> Cow<'a, str> {
        let file = self.text;
        let part = file.get(span.start - self.offset..span.end - self.offset);
        match part.filter(|part| *part == text) {
            Some(part) => Cow::Borrowed(part),
            None => text,
        }
    }

    /// The span without the white space at its end, which the parser counts in.
    fn span(&self, span: saphyr_parser::Span) -> Span {
        let start = self.byte(span.start.index());
        let end = self.byte(span.end.index()).max(start);
        let part = self.text.get(start - self.offset..end - self.offset);
        let kept = part.map_or(end - start, |part| match part.as_bytes().last() {
            Some(b'!'..=b'~') => part.len(),
            _ => part.trim_end().len(),
        });
        Span {
            start,
            end: start + kept,
        }
    }
}

/// The rest of the file is not looked at; the problem is told already.
struct Stop;

type Step<T> = Result<T, Stop>;

struct Builder<'a, 'p> {
    parser: Parser<'a, Text<'a>>,
    places: Places<'a>,
    nodes: usize,
    problems: &'p mut Problems,
}

impl<'a> Builder<'a, '_> {
    fn document(&mut self) -> Step<Option<Node<'a>>> {
        let mut root: Option<Node<'a>> = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(root),
                Event::StreamStart | Event::DocumentEnd | Event::Nothing => {}
                Event::DocumentStart(_) if root.is_some() => {
                    return self.stop(
                        Code::SeveralDocuments,
                        span,
                        "a second YAML document begins here",
                        "a policy file is one document: remove the rest, or make it a file of its own",
                    );
                }
                Event::DocumentStart(_) => {}
                event => root = Some(self.value(event, span, 0)?),
            }
        }
    }

    fn next(&mut self) -> Step<(Event<'a>, Span)> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, self.places.span(span))),
            Some(Err(error)) => self.broken(&error),
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn broken<T>(&mut self, error: &ScanError) -> Step<T> {
        let at = self.places.byte(error.marker().index());
        let span = Span { start: at, end: at };
        let problem = self.problems.add(
            Code::Syntax,
            span,
            format!("no YAML: {}", shown(error.info())),
        );
        problem.label("here, or just before").help(
            "check indentation, quotes and brackets; a text with `: `, `#` or a leading `*`, `&`, `!` or `@` needs quotes",
        );
        Err(Stop)
    }

    fn stop<T>(&mut self, code: Code, span: Span, message: &str, help: &str) -> Step<T> {
        self.problems.add(code, span, message).help(help);
        Err(Stop)
    }

    fn value(&mut self, event: Event<'a>, span: Span, depth: usize) -> Step<Node<'a>> {
        self.nodes += 1;
        if self.nodes > MAX_NODES {
            let message = format!("the file has more than {MAX_NODES} values");
            return self.stop(Code::TooMany, span, &message, "split the policy");
        }
        if depth > MAX_DEPTH {
            let message = format!("nested deeper than {MAX_DEPTH} levels");
            return self.stop(
                Code::TooDeep,
                span,
                &message,
                "no key of a policy is that deep",
            );
        }
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.bare(anchor, tag.is_some(), span)?;
                let kind = Kind::Scalar {
                    text: self.places.written(span, text),
                    plain: style == ScalarStyle::Plain,
                };
                Ok(Node { span, kind })
            }
            Event::SequenceStart(anchor, tag) => {
                self.bare(anchor, tag.is_some(), span)?;
                self.list(span, depth)
            }
            Event::MappingStart(anchor, tag) => {
                self.bare(anchor, tag.is_some(), span)?;
                self.map(span, depth)
            }
            _ => self.bare(1, false, span).map(|()| Node {
                span,
                kind: Kind::List(Vec::new()),
            }),
        }
    }

    fn bare(&mut self, anchor: usize, tag: bool, span: Span) -> Step<()> {
        if anchor > 0 {
            return self.stop(
                Code::AnchorOrAlias,
                span,
                "anchors and aliases are not taken in policy files",
                "write the value where it belongs, so that a reviewer sees every grant in its place",
            );
        }
        if tag {
            let help = "remove the tag; a text that looks like a number needs quotes instead";
            return self.stop(
                Code::Tag,
                span,
                "YAML tags are not taken in policy files",
                help,
            );
        }
        Ok(())
    }

    fn list(&mut self, begin: Span, depth: usize) -> Step<Node<'a>> {
        let mut items = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if event == Event::SequenceEnd {
                let span = until(begin, items.last().map(|item: &Node<'_>| item.span), span);
                let kind = Kind::List(items);
                return Ok(Node { span, kind });
            }
            items.push(self.value(event, span, depth + 1)?);
        }
    }

    fn map(&mut self, begin: Span, depth: usize) -> Step<Node<'a>> {
        let mut entries: Vec<(Key<'a>, Node<'a>)> = Vec::with_capacity(USUAL_KEYS);
        loop {
            let (event, span) = self.next()?;
            if event == Event::MappingEnd {
                let span = until(begin, entries.last().map(|(_, value)| value.span), span);
                let kind = Kind::Map(entries);
                return Ok(Node { span, kind });
            }
            let key = self.key(event, span, depth)?;
            let (event, span) = self.next()?;
            let value = self.value(event, span, depth + 1)?;
            if entries.len() == MAX_KEYS {
                let message = format!("a mapping has more than {MAX_KEYS} keys");
                return self.stop(
                    Code::TooMany,
                    key.span,
                    &message,
                    "no mapping of a policy has that many",
                );
            }
            match entries.iter().find(|(other, _)| other.text == key.text) {
                Some((first, _)) => {
                    let message = format!("the key `{}` is there twice", shown(&key.text));
                    self.problems
                        .add(Code::DuplicateKey, key.span, message)
                        .label("again here")
                        .help("keep one of the two")
                        .also(first.span, "first here");
                }
                None => entries.push((key, value)),
            }
        }
    }

    fn key(&mut self, event: Event<'a>, span: Span, depth: usize) -> Step<Key<'a>> {
        let node = self.value(event, span, depth + 1)?;
        let Kind::Scalar { text, plain } = node.kind else {
            let help = "write `key: value`";
            return self.stop(Code::WrongType, span, "a key must be a word", help);
        };
        if text == "<<" && plain {
            return self.bare(1, false, span).map(|()| Key { span, text });
        }
        Ok(Key { span, text })
    }
}

/// From the beginning of a container to the end of its last value, or to its closing bracket.
fn until(begin: Span, last: Option<Span>, end: Span) -> Span {
    let last = last.map_or(begin.end, |last| last.end);
    Span {
        start: begin.start,
        // The end of an indented container is where the next thing begins.
        end: if end.end > end.start {
            end.end.max(last)
        } else {
            last.max(begin.end)
        },
    }
}
