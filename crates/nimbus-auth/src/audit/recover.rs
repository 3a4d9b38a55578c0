//! Where an opened log goes on: behind its last good line, or behind the anchor if lines are missing.
//!
//! Evidence is never destroyed: whole lines stay as they are, good or not, and the piece of a line
//! that a crash left is moved to a file of its own. This room must not know who reads the result.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::PathBuf;

use jiff::Timestamp;

use super::AuditError;
use super::anchor::Anchor;
use super::chain::{ChainKey, Point, Sealed};
use super::segments::{Place, Segment};
use crate::private_fs::{Access, PrivateFileError};

/// How much of the end of a file is searched for the last good line, bytes: about a hundred of the
/// longest lines.
const WINDOW: u64 = 1 << 20;
/// How much of the beginning of a file is searched for the number of its first line, bytes.
const HEAD: u64 = 64 << 10;

/// What opening the log found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovered {
    /// Whether a key was made, and with it a new chain.
    pub new_chain: bool,
    /// Number of the last entry.
    pub last: u64,
    /// The numbers of entries that the anchor knows and the log does not end with: lines were cut
    /// off or changed. They stay missing, and the check tells so for ever.
    pub missing: Option<(u64, u64)>,
    /// Where the piece of a line was put that a crash left at the end.
    pub torn: Option<PathBuf>,
}

/// An opened log, ready to be written to.
pub(super) struct Start {
    /// The segment, with its position at the end.
    pub(super) file: File,
    /// Its length in bytes.
    pub(super) len: u64,
    /// Number of its first entry.
    pub(super) first: u64,
    /// What the next line follows.
    pub(super) last: Point,
    /// The last full segment and its length, if there is one.
    pub(super) full: Option<(File, u64)>,
    pub(super) recovered: Recovered,
}

/// Whether there is any line, in whatever file.
pub(super) fn is_empty(place: &Place) -> Result<bool, AuditError> {
    let active = place.dir.open_file(place.active(), Access::Read)?;
    let len = match active {
        Some(file) => length(&file).map_err(PrivateFileError::io("inspect", &place.path))?,
        None => 0,
    };
    Ok(len == 0 && place.full_segments()?.is_empty())
}

/// Opens the segment that is being written and finds out where it goes on.
pub(super) fn start(
    place: &Place,
    key: &ChainKey,
    key_path: PathBuf,
    anchor: Option<Anchor>,
) -> Result<Start, AuditError> {
    let known = anchor.unwrap_or_else(|| Anchor::origin(key));
    let full = place.full_segments()?;
    let mut points = vec![key.origin(), known.floor, known.head];
    let before = end_of(place, full.last(), key, &points)?;
    points.extend(before);

    let failed = |action| PrivateFileError::io(action, &place.path);
    let mut file = place.dir.open_update(place.active())?;
    let torn = set_torn_aside(place, &mut file)?;
    let len = length(&file).map_err(failed("inspect"))?;
    let good = last_good(&mut file, len, key, &points).map_err(failed("read"))?;
    let good = good.or(before);
    if good.is_none() && anchor.is_none() && !(len == 0 && full.is_empty()) {
        return Err(AuditError::Foreign {
            log: place.path.clone(),
            key: key_path,
        });
    }
    let good = good.unwrap_or(known.floor);
    let reached = good.seq > known.head.seq || good == known.head;
    let last = if reached { good } else { known.head };
    let missing = (!reached).then(|| {
        (
            good.seq.min(known.head.seq.saturating_sub(1)) + 1,
            known.head.seq,
        )
    });
    let first = first_number(&mut file, len).map_err(failed("read"))?;
    file.seek(SeekFrom::Start(len)).map_err(failed("seek in"))?;
    let least = full
        .last()
        .map_or(1, |segment| segment.first.saturating_add(1));
    let full = full
        .last()
        .map(|segment| reopened(place, segment))
        .transpose()?;
    Ok(Start {
        file,
        len,
        first: first.unwrap_or(last.seq + 1).max(least),
        last,
        full,
        recovered: Recovered {
            new_chain: false,
            last: last.seq,
            missing,
            torn,
        },
    })
}

/// The point behind the last good line of a full segment.
pub(super) fn end_of(
    place: &Place,
    segment: Option<&Segment>,
    key: &ChainKey,
    points: &[Point],
) -> Result<Option<Point>, AuditError> {
    let Some(segment) = segment else {
        return Ok(None);
    };
    let path = place.path_of(&segment.name);
    let Some(mut file) = place.dir.open_file(&segment.name, Access::Read)? else {
        return Ok(None);
    };
    let found = length(&file).and_then(|len| last_good(&mut file, len, key, points));
    Ok(found.map_err(PrivateFileError::io("read", &path))?)
}

fn reopened(place: &Place, segment: &Segment) -> Result<(File, u64), AuditError> {
    let file = place.dir.open_update(&segment.name)?;
    let path = place.path_of(&segment.name);
    let len = length(&file).map_err(PrivateFileError::io("inspect", &path))?;
    Ok((file, len))
}

fn length(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.len())
}

/// The point behind the last line that follows the line before it, or one of `points`, which are
/// known to belong to the chain.
fn last_good(
    file: &mut File,
    len: u64,
    key: &ChainKey,
    points: &[Point],
) -> io::Result<Option<Point>> {
    let from = len.saturating_sub(WINDOW);
    let window = read(file, from, len - from)?;
    let mut lines = window.split(|byte| *byte == b'\n');
    if from > 0 {
        // It begins within a line.
        lines.next();
    }
    let (mut before, mut good) = (None::<Point>, None);
    for line in lines {
        let Some(sealed) = Sealed::parse(line) else {
            continue;
        };
        let mut candidates = before.iter().chain(points);
        if candidates.any(|point| sealed.follows(key, point)) {
            good = Some(sealed.claim);
        }
        before = Some(sealed.claim);
    }
    Ok(good)
}

fn first_number(file: &mut File, len: u64) -> io::Result<Option<u64>> {
    let head = read(file, 0, len.min(HEAD))?;
    let mut lines = head.split(|byte| *byte == b'\n');
    Ok(lines.find_map(|line| Some(Sealed::parse(line)?.claim.seq)))
}

fn read(file: &mut File, from: u64, count: u64) -> io::Result<Vec<u8>> {
    file.seek(SeekFrom::Start(from))?;
    let mut bytes = Vec::new();
    file.take(count).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Moves what stands behind the last newline to a file of its own.
fn set_torn_aside(place: &Place, file: &mut File) -> Result<Option<PathBuf>, AuditError> {
    let failed = |action| PrivateFileError::io(action, &place.path);
    let len = length(file).map_err(failed("inspect"))?;
    let whole = end_of_lines(file, len).map_err(failed("read"))?;
    if whole == len {
        return Ok(None);
    }
    let name = place.torn(Timestamp::now());
    let path = place.path_of(&name);
    let mut kept = place.dir.open_update(&name)?;
    file.seek(SeekFrom::Start(whole))
        .and_then(|_| io::copy(&mut (&*file).take(len - whole), &mut kept))
        .and_then(|_| kept.sync_all())
        .map_err(PrivateFileError::io("write", &path))?;
    file.set_len(whole)
        .and_then(|()| file.sync_all())
        .map_err(failed("cut"))?;
    Ok(Some(path))
}

/// Where the last whole line ends, its newline included.
fn end_of_lines(file: &mut File, len: u64) -> io::Result<u64> {
    let mut to = len;
    while to > 0 {
        let from = to.saturating_sub(WINDOW);
        let window = read(file, from, to - from)?;
        if let Some(at) = window.iter().rposition(|byte| *byte == b'\n') {
            return Ok(from + at as u64 + 1);
        }
        to = from;
    }
    Ok(0)
}
