//! The end of a log, as it stands and as it grows. Nothing is checked here, and nothing changed.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use super::AuditError;
use super::segments::Place;
use crate::private_fs::{Access, PrivateFileError, same_file};

/// Bytes that are read first from the end of a file.
const FIRST_WINDOW: u64 = 64 << 10;
/// Most bytes that are taken in at once while following.
const CHUNK: u64 = 1 << 20;

/// A reader at the end of the log.
#[derive(Debug)]
pub struct Tail {
    place: Place,
    file: File,
    /// Lines that were read and not asked for yet.
    pending: Vec<Vec<u8>>,
    /// The beginning of a line whose end is not there yet.
    partial: Vec<u8>,
}

impl Tail {
    /// Begins at the last `count` lines. `None` when there is no log yet.
    ///
    /// # Errors
    /// [`AuditError::Open`].
    pub fn open(path: &Path, count: usize) -> Result<Option<Tail>, AuditError> {
        let Some(place) = Place::open(path)? else {
            return Ok(None);
        };
        let Some(mut file) = place.dir.open_file(place.active(), Access::Read)? else {
            return Ok(None);
        };
        let failed = |error| PrivateFileError::io("read", path)(error);
        let (mut lines, partial) = last_lines(&mut file, count).map_err(failed)?;
        for segment in place.full_segments()?.iter().rev() {
            let missing = count.saturating_sub(lines.len());
            if missing == 0 {
                break;
            }
            let Some(mut older) = place.dir.open_file(&segment.name, Access::Read)? else {
                break;
            };
            if same_file(&file, &older).unwrap_or(false) {
                continue;
            }
            let (mut before, _) = last_lines(&mut older, missing).map_err(failed)?;
            before.append(&mut lines);
            lines = before;
        }
        Ok(Some(Tail {
            place,
            file,
            pending: lines,
            partial,
        }))
    }

    /// The whole lines since the last call, oldest first and without newlines, across a change of
    /// the segment. Empty when there is none now; ask again later.
    ///
    /// # Errors
    /// [`AuditError::Open`].
    pub fn more(&mut self) -> Result<Vec<Vec<u8>>, AuditError> {
        let mut lines = std::mem::take(&mut self.pending);
        // Looked for first: what is written to the old segment comes before the change.
        let next = self
            .place
            .dir
            .open_file(self.place.active(), Access::Read)?
            .filter(|active| !same_file(active, &self.file).unwrap_or(true));
        let mut bytes = std::mem::take(&mut self.partial);
        let read = (&self.file).take(CHUNK).read_to_end(&mut bytes);
        let read = read.map_err(PrivateFileError::io("read", &self.place.path))?;
        if let (Some(next), true) = (next, (read as u64) < CHUNK) {
            self.file = next;
        }
        let (mut fresh, partial) = split(&bytes);
        self.partial = partial;
        lines.append(&mut fresh);
        Ok(lines)
    }
}

fn last_lines(file: &mut File, count: usize) -> io::Result<(Vec<Vec<u8>>, Vec<u8>)> {
    let len = file.metadata()?.len();
    let mut window = FIRST_WINDOW;
    loop {
        let from = len.saturating_sub(window);
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        (&*file).take(len - from).read_to_end(&mut bytes)?;
        let (mut lines, partial) = split(&bytes);
        if from > 0 && !lines.is_empty() {
            // Its beginning is not in the window.
            lines.remove(0);
        }
        if lines.len() >= count || from == 0 {
            let surplus = lines.len().saturating_sub(count);
            return Ok((lines.split_off(surplus), partial));
        }
        window *= 4;
    }
}

/// Whole lines, and what stands behind the last newline.
fn split(bytes: &[u8]) -> (Vec<Vec<u8>>, Vec<u8>) {
    let mut lines: Vec<Vec<u8>> = bytes
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::to_vec)
        .collect();
    let partial = lines.pop().unwrap_or_default();
    (lines, partial)
}
