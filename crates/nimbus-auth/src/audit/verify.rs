//! The check of a log: every line against the chain, its beginning and its end against the anchor.
//!
//! It changes nothing, needs memory for one line, and may run while a server writes. This room must
//! not know what the lines say.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use super::AuditError;
use super::anchor::Anchor;
use super::chain::{ChainKey, Point, Sealed};
use super::segments::Place;
use crate::private_fs::{Access, PrivateFileError, same_file};

/// Longest line that is looked at, bytes; a line of ours has at most about 11 KiB, with every
/// character escaped.
const MAX_LINE: usize = 16 << 10;
/// Breaks that are described; the others are counted.
const MAX_BREAKS: usize = 100;

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verification {
    /// Lines that follow the line before them.
    pub entries: u64,
    /// Number of the first entry that is kept; `None` without entries.
    pub first: Option<u64>,
    /// Number of the last entry; 0 without entries.
    pub last: u64,
    /// Files that were read.
    pub segments: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Number that the anchor says the log must reach; `None` when there was no anchor.
    pub anchor: Option<u64>,
    /// Whether the log ends within a line: a crash, or a server that is writing just now.
    pub torn: bool,
    /// The first breaks of the chain, in their order.
    pub breaks: Vec<Break>,
    /// How many there are in all.
    pub broken: u64,
}

impl Verification {
    /// Whether nothing was changed, moved, inserted, taken out or cut off.
    pub fn is_intact(&self) -> bool {
        self.broken == 0
    }
}

/// A place where the chain does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Break {
    /// The file.
    pub file: PathBuf,
    /// The line, counted from 1.
    pub line: u64,
    /// Where it begins, in bytes from the beginning of the file.
    pub offset: u64,
    /// What is wrong there.
    pub kind: BreakKind,
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Break {
            file, line, offset, ..
        } = self;
        write!(
            f,
            "{} line {line} (byte {offset}): {}",
            file.display(),
            self.kind
        )
    }
}

/// What is wrong at a break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BreakKind {
    /// The line has not the form of an entry: it was damaged or inserted.
    Malformed,
    /// The line stands where entry `seq` belongs and is not what was written there.
    Changed {
        /// The number of the entry.
        seq: u64,
    },
    /// Entries between the line before and this one are missing.
    Missing {
        /// The first that is missing.
        from: u64,
        /// The last that is missing.
        to: u64,
    },
    /// The line claims a number that came already: it was moved or put in again.
    OutOfPlace {
        /// The number that it claims.
        claimed: u64,
        /// The number that belongs here.
        expected: u64,
    },
    /// The log ends too early.
    CutEnd {
        /// The first entry that is missing.
        from: u64,
        /// The last one that is known to have been there.
        to: u64,
    },
    /// The chain holds, but its entry `seq` is not the one that the anchor knows: an older log was
    /// put back and written on.
    OtherHistory {
        /// The number of the entry.
        seq: u64,
    },
}

impl BreakKind {
    /// The word for programs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Changed { .. } => "changed",
            Self::Missing { .. } => "missing",
            Self::OutOfPlace { .. } => "out_of_place",
            Self::CutEnd { .. } => "cut_end",
            Self::OtherHistory { .. } => "other_history",
        }
    }
}

impl fmt::Display for BreakKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed => f.write_str("this line is no entry; it was damaged or inserted"),
            Self::Changed { seq } => write!(f, "entry {seq} was changed"),
            Self::Missing { from, to } if from == to => {
                write!(f, "entry {from} is missing before it")
            }
            Self::Missing { from, to } => write!(f, "entries {from} to {to} are missing before it"),
            Self::OutOfPlace { claimed, expected } => {
                write!(f, "entry {claimed} stands where {expected} belongs")
            }
            Self::CutEnd { from, to } => write!(
                f,
                "the log ends too early: entries {from} to {to} are missing"
            ),
            Self::OtherHistory { seq } => {
                write!(
                    f,
                    "entry {seq} is not the one that was written first: an older log was put back"
                )
            }
        }
    }
}

/// One line on the way through the log.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// The line without its newline; cut when it is longer than any entry can be.
    pub line: &'a [u8],
    /// Whether it belongs to the chain.
    pub good: bool,
    /// Bytes read so far.
    pub bytes: u64,
}

/// Checks the log at `path` against the chain of `key` and against the anchor, and shows `visit` every
/// line in order. Read the anchor first: the log may grow meanwhile, the anchor must not.
///
/// # Errors
/// [`AuditError::Open`] when a file cannot be read, or what `visit` returns.
pub fn verify<E: From<AuditError>>(
    path: &Path,
    key: &ChainKey,
    anchor: Option<Anchor>,
    mut visit: impl FnMut(Step<'_>) -> Result<(), E>,
) -> Result<Verification, E> {
    let mut check = Check::new(key, anchor);
    for (file, path, last) in open_all(path, check.anchor)? {
        check.read(file, path, last, &mut visit)?;
    }
    Ok(check.finish())
}

/// A file to read, its path, and whether it is the last.
type Opened = (File, PathBuf, bool);

/// Opens all segments, oldest first.
fn open_all(path: &Path, anchor: Anchor) -> Result<Vec<Opened>, AuditError> {
    let Some(place) = Place::open(path)? else {
        return Ok(Vec::new());
    };
    // The one in use first: if it becomes a full one meanwhile, it is found twice and not missed.
    let active = place.dir.open_file(place.active(), Access::Read)?;
    let mut opened: Vec<Opened> = Vec::new();
    for segment in place.full_segments()? {
        // One that a server is about to delete.
        if segment.first <= anchor.floor.seq {
            continue;
        }
        let path = place.path_of(&segment.name);
        let Some(file) = place.dir.open_file(&segment.name, Access::Read)? else {
            // A server deleted it meanwhile, or somebody else did: look once more to know.
            return Err(AuditError::Vanished { path });
        };
        let twice = match &active {
            Some(active) => same_file(active, &file).unwrap_or(false),
            None => false,
        };
        if !twice {
            opened.push((file, path, false));
        }
    }
    opened.extend(active.map(|file| (file, place.path.clone(), true)));
    Ok(opened)
}

/// The state of a check.
struct Check<'k> {
    key: &'k ChainKey,
    anchor: Anchor,
    /// What the next line may follow: the last good line, and what the line before claims to be.
    last: Point,
    claimed: Point,
    /// Whether the line of the anchor was seen.
    reached: bool,
    position: Break,
    bytes: u64,
    found: Verification,
}

impl<'k> Check<'k> {
    fn new(key: &'k ChainKey, anchor: Option<Anchor>) -> Check<'k> {
        let found = Verification {
            anchor: anchor.map(|anchor| anchor.head.seq),
            ..Verification::default()
        };
        let anchor = anchor.unwrap_or_else(|| Anchor::origin(key));
        Check {
            key,
            anchor,
            last: anchor.floor,
            claimed: anchor.floor,
            reached: anchor.head == anchor.floor,
            position: Break {
                file: PathBuf::new(),
                line: 1,
                offset: 0,
                kind: BreakKind::Malformed,
            },
            bytes: 0,
            found,
        }
    }

    /// Reads a segment; `last` is the one in use, which may end within a line.
    fn read<E: From<AuditError>>(
        &mut self,
        input: impl io::Read,
        file: PathBuf,
        last: bool,
        visit: &mut impl FnMut(Step<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.position.file = file;
        self.position.line = 1;
        self.position.offset = 0;
        self.found.segments += 1;
        let mut lines = Lines::new(input);
        loop {
            let next = lines.next().map_err(|error| {
                AuditError::from(PrivateFileError::io("read", &self.position.file)(error))
            })?;
            match next {
                Piece::End => break,
                Piece::Torn if last => {
                    self.found.torn = true;
                    break;
                }
                Piece::Torn | Piece::Line => {}
            }
            let good = self.line(&lines.line);
            visit(Step {
                line: &lines.line,
                good,
                bytes: self.bytes + lines.end,
            })?;
            self.position.line += 1;
            self.position.offset = lines.end;
        }
        self.bytes += lines.end;
        Ok(())
    }

    /// Whether the line belongs where it stands.
    fn line(&mut self, line: &[u8]) -> bool {
        let Some(sealed) = Sealed::parse(line) else {
            self.report(BreakKind::Malformed);
            return false;
        };
        let claim = sealed.claim;
        let follows = [self.claimed, self.last]
            .iter()
            .any(|point| sealed.follows(self.key, point));
        if !follows {
            self.report(misplaced(claim.seq, self.claimed.seq.saturating_add(1)));
        }
        self.claimed = claim;
        // Nobody without the key can make that MAC, though the text may have been changed since.
        self.reached |= claim == self.anchor.head;
        if !follows {
            return false;
        }
        self.last = claim;
        self.found.entries += 1;
        self.found.first.get_or_insert(claim.seq);
        if claim.seq == self.anchor.head.seq && claim != self.anchor.head {
            self.report(BreakKind::OtherHistory { seq: claim.seq });
        }
        true
    }

    fn report(&mut self, kind: BreakKind) {
        self.found.broken += 1;
        if self.found.breaks.len() < MAX_BREAKS {
            self.found.breaks.push(Break {
                kind,
                ..self.position.clone()
            });
        }
    }

    fn finish(mut self) -> Verification {
        let known = if self.reached {
            self.anchor.head.seq
        } else {
            0
        };
        let last = self.last.seq.max(known);
        if !self.reached && last < self.anchor.head.seq {
            self.report(BreakKind::CutEnd {
                from: last + 1,
                to: self.anchor.head.seq,
            });
        } else if !self.reached && self.found.broken == 0 {
            // The entry of the anchor is not there, and yet nothing seems to be missing.
            self.report(BreakKind::OtherHistory {
                seq: self.anchor.head.seq,
            });
        }
        self.found.last = last;
        self.found.bytes = self.bytes;
        self.found
    }
}

fn misplaced(claimed: u64, expected: u64) -> BreakKind {
    match claimed.cmp(&expected) {
        std::cmp::Ordering::Equal => BreakKind::Changed { seq: expected },
        std::cmp::Ordering::Greater => BreakKind::Missing {
            from: expected,
            to: claimed - 1,
        },
        std::cmp::Ordering::Less => BreakKind::OutOfPlace { claimed, expected },
    }
}

/// What was read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Piece {
    /// A line.
    Line,
    /// The rest of the file, which does not end with a newline.
    Torn,
    /// Nothing.
    End,
}

/// The lines of a file, in bounded memory.
struct Lines<R> {
    input: BufReader<R>,
    /// The line without its newline.
    line: Vec<u8>,
    /// Where it ends, its newline included.
    end: u64,
}

impl<R: io::Read> Lines<R> {
    fn new(input: R) -> Lines<R> {
        Lines {
            input: BufReader::with_capacity(64 << 10, input),
            line: Vec::new(),
            end: 0,
        }
    }

    fn next(&mut self) -> io::Result<Piece> {
        self.line.clear();
        let mut any = false;
        loop {
            let chunk = self.input.fill_buf()?;
            if chunk.is_empty() {
                return Ok(if any { Piece::Torn } else { Piece::End });
            }
            any = true;
            let at = chunk.iter().position(|byte| *byte == b'\n');
            let part = chunk.get(..at.unwrap_or(chunk.len())).unwrap_or_default();
            let room = MAX_LINE.saturating_sub(self.line.len());
            self.line
                .extend_from_slice(part.get(..room).unwrap_or(part));
            let taken = part.len() + usize::from(at.is_some());
            self.input.consume(taken);
            self.end += taken as u64;
            if at.is_some() {
                return Ok(Piece::Line);
            }
        }
    }
}

/// Checks bytes as if they were the only segment; for the fuzz target.
#[cfg(feature = "fuzzing")]
pub(crate) fn verify_bytes(
    bytes: &[u8],
    key: &ChainKey,
    anchor: Option<Anchor>,
) -> Result<Verification, AuditError> {
    let mut check = Check::new(key, anchor);
    check.read(bytes, PathBuf::from("bytes"), true, &mut |_| {
        Ok::<(), AuditError>(())
    })?;
    Ok(check.finish())
}
