//! The names of the files of the log, and which of them are there. It must not know what they hold.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use super::AuditError;
use crate::private_fs::{PrivateDir, PrivateFileError, split};

/// The directory of a log, and the log's name in it.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) dir: PrivateDir,
    /// The segment that is being written.
    pub(crate) path: PathBuf,
    /// `access` of `access.jsonl`.
    stem: String,
    /// `.jsonl`, or nothing.
    extension: String,
}

/// A full segment.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Segment {
    /// Number of its first entry, as its name says.
    pub(crate) first: u64,
    /// Its name.
    pub(crate) name: OsString,
}

impl Place {
    /// Opens the directory of the log at `path`; `None` when it is absent.
    pub(crate) fn open(path: &Path) -> Result<Option<Place>, PrivateFileError> {
        let (parent, _) = split(path)?;
        Ok(PrivateDir::open(parent)?.map(|dir| Place::new(path, dir)))
    }

    /// Opens it after making what is missing.
    pub(crate) fn create(path: &Path) -> Result<Place, PrivateFileError> {
        let (parent, _) = split(path)?;
        Ok(Place::new(path, PrivateDir::create(parent)?))
    }

    fn new(path: &Path, dir: PrivateDir) -> Place {
        let text = |part: Option<&OsStr>| part.unwrap_or_default().to_string_lossy().into_owned();
        let extension = match path.extension() {
            Some(extension) => format!(".{}", extension.to_string_lossy()),
            None => String::new(),
        };
        Place {
            dir,
            path: path.to_path_buf(),
            stem: text(path.file_stem()),
            extension,
        }
    }

    /// Name of the segment that is being written.
    pub(crate) fn active(&self) -> &OsStr {
        self.path.file_name().unwrap_or_default()
    }

    /// Name of the full segment that begins with entry `first`.
    pub(crate) fn full(&self, first: u64) -> OsString {
        format!("{}-{first:020}{}", self.stem, self.extension).into()
    }

    /// Name of the file that keeps room for the next segment.
    pub(crate) fn spare(&self) -> OsString {
        format!("{}.next", self.stem).into()
    }

    /// Name of the lock.
    pub(crate) fn lock(&self) -> OsString {
        format!("{}.lock", self.stem).into()
    }

    /// Name for the piece of a line that a crash left.
    pub(crate) fn torn(&self, time: jiff::Timestamp) -> OsString {
        format!("{}.torn-{}", self.stem, time.as_millisecond()).into()
    }

    /// The path of a file of this directory.
    pub(crate) fn path_of(&self, name: &OsStr) -> PathBuf {
        self.path.with_file_name(name)
    }

    /// The full segments, oldest first.
    pub(crate) fn full_segments(&self) -> Result<Vec<Segment>, AuditError> {
        let mut found: Vec<Segment> = self
            .dir
            .names()?
            .into_iter()
            .filter_map(|name| {
                let first = self.first_of(name.to_str()?)?;
                Some(Segment { first, name })
            })
            .collect();
        found.sort();
        Ok(found)
    }

    fn first_of(&self, name: &str) -> Option<u64> {
        let digits = name
            .strip_prefix(&self.stem)?
            .strip_prefix('-')?
            .strip_suffix(&self.extension)?;
        let first = digits.parse().ok()?;
        // One number has one name.
        (self.full(first) == *name).then_some(first)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn full_segments_are_listed_in_the_order_of_their_entries() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("logs/access.jsonl");
        assert!(Place::open(&path).unwrap().is_none());
        let place = Place::create(&path).unwrap();
        assert_eq!(place.full_segments().unwrap(), []);
        let names = [place.full(100), place.full(9), place.full(u64::MAX)];
        let others = [
            "access.jsonl",
            "access-9.jsonl",
            "access-+0000000000000000009.jsonl",
            "access-00000000000000000009.json",
            "access-99999999999999999999.jsonl",
            "other-00000000000000000009.jsonl",
        ];
        for name in names
            .iter()
            .map(OsString::as_os_str)
            .chain(others.map(OsStr::new))
        {
            std::fs::write(place.path_of(name), "").unwrap();
        }
        let firsts: Vec<u64> = place
            .full_segments()
            .unwrap()
            .iter()
            .map(|s| s.first)
            .collect();
        assert_eq!(firsts, [9, 100, u64::MAX]);
        assert_eq!(place.full(9), "access-00000000000000000009.jsonl");
    }
}
