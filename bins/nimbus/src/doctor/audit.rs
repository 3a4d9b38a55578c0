//! The check of the audit log's file.
//!
//! It must not know what the lines say.

use nimbus_auth::PrivateFileError;
use nimbus_auth::audit::{AuditLook, LastLine};

use super::report::Check;

/// `audit_log`: private, ours, and its last line whole.
pub(crate) fn log(
    path: &std::path::Path,
    found: &Result<Option<AuditLook>, PrivateFileError>,
) -> Check {
    let name = "audit_log";
    let shown = path.display();
    match found {
        Err(error @ PrivateFileError::Io { .. }) => Check::io(name, error),
        Err(error) => Check::refused(name, error),
        Ok(None) => Check::ok(
            name,
            format!("{shown} is not there yet; `nimbus start` makes it"),
        ),
        Ok(Some(look)) => match look.last {
            LastLine::Torn => Check::warn(
                name,
                format!("the last line of {shown} is cut short"),
                "a crash while it was written; the next start moves the piece to a file of its own",
            ),
            LastLine::Damaged => Check::fail(
                name,
                format!("the last line of {shown} is no JSON object"),
                "keep the file as evidence, and look for what else writes to it",
            ),
            _ => Check::ok(name, format!("{shown}, {} bytes", look.size)),
        },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use nimbus_auth::audit::{AuditOptions, MemoryAnchors};
    use nimbus_auth::{AuditLog, audit};

    use super::super::report::Status;
    use super::*;

    #[test]
    fn the_last_line_decides() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("nimbus/logs/access.jsonl");
        let judge = |path: &Path| log(path, &audit::look(path));
        assert_eq!(judge(&path).status, Status::Ok);
        let (token, anchors) = (
            path.with_file_name("token"),
            Arc::new(MemoryAnchors::default()),
        );
        drop(AuditLog::open(&path, &token, anchors, AuditOptions::default()).unwrap());
        for (text, status) in [
            ("", Status::Ok),
            ("{\"a\":1}\n", Status::Ok),
            ("{\"a\":1}\n{\"b\"", Status::Warn),
            ("{\"a\":1}\nnoise\n", Status::Fail),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(judge(&path).status, status, "{text:?}");
        }
        let file = std::fs::File::open(&path).unwrap();
        rustix::fs::fchmod(&file, rustix::fs::Mode::from_raw_mode(0o644)).unwrap();
        let check = judge(&path);
        assert_eq!(check.status, Status::Fail);
        assert!(check.advice.unwrap().contains("chmod 600"));
    }
}
