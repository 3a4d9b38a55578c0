//! Looking at the audit log without changing it: is it private, is its last line whole?
//!
//! It must not judge what is written there.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use crate::private_fs::{Access, PrivateDir, PrivateFileError, split};

/// Bytes at the end that are read to find the last line; a line has at most about 8 KiB, with
/// every character escaped.
const TAIL: u64 = 64 * 1024;

/// The audit log as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct AuditLook {
    /// Length in bytes.
    pub size: u64,
    /// The last line.
    pub last: LastLine,
}

/// The last line of the audit log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LastLine {
    /// There is none.
    None,
    /// A JSON object with its newline.
    Whole,
    /// The newline is missing: a crash cut it short. The next start moves the piece away.
    Torn,
    /// It is no JSON object.
    Damaged,
}

/// Looks at the audit log; `None` when there is none yet.
///
/// # Errors
/// [`PrivateFileError`] when the file or its directory is a link, is open to others, or belongs
/// to another user.
pub fn look(path: &Path) -> Result<Option<AuditLook>, PrivateFileError> {
    let (parent, name) = split(path)?;
    let Some(dir) = PrivateDir::open(parent)? else {
        return Ok(None);
    };
    let Some(file) = dir.open_file(name, Access::Read)? else {
        return Ok(None);
    };
    examine(file)
        .map(Some)
        .map_err(PrivateFileError::io("read", path))
}

fn examine(mut file: File) -> io::Result<AuditLook> {
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(TAIL)))?;
    let mut tail = Vec::new();
    // A running server may append meanwhile; what was there at first is what is judged.
    file.take(size.min(TAIL)).read_to_end(&mut tail)?;
    Ok(AuditLook {
        size,
        last: last_line(&tail),
    })
}

fn last_line(tail: &[u8]) -> LastLine {
    let Some((end, lines)) = tail.split_last() else {
        return LastLine::None;
    };
    if *end != b'\n' {
        return LastLine::Torn;
    }
    let line = lines.rsplit(|byte| *byte == b'\n').next();
    let object = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>;
    match line.map(object) {
        Some(Ok(_)) => LastLine::Whole,
        _ => LastLine::Damaged,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn last_lines_are_told_apart() {
        for (text, expected) in [
            ("", LastLine::None),
            ("{\"a\":1}\n", LastLine::Whole),
            ("{\"a\":1}\n{\"b\":2}\n", LastLine::Whole),
            ("{\"a\":1}\n{\"b\":", LastLine::Torn),
            ("{\"a\":1}\n{\"b\":\n", LastLine::Damaged),
            ("[1]\n", LastLine::Damaged),
            ("\n", LastLine::Damaged),
            ("\0\0\0\n", LastLine::Damaged),
        ] {
            assert_eq!(last_line(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn a_log_is_looked_at_and_left_alone() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("nimbus/logs/access.jsonl");
        assert_eq!(look(&path).unwrap(), None);
        assert!(!home.path().join("nimbus").exists(), "it was made");
        crate::audit::tests::Fixture::at(&path).open();
        let line = format!("{{\"path\":\"{}\"}}\n", "x".repeat(1_000));
        std::fs::write(&path, line.repeat(100)).unwrap();
        let found = look(&path).unwrap().unwrap();
        assert_eq!((found.size, found.last), (101_200, LastLine::Whole));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        let refused = look(&path);
        assert!(
            matches!(
                refused,
                Err(PrivateFileError::LooseFile { mode: 0o640, .. })
            ),
            "{refused:?}"
        );
    }
}
