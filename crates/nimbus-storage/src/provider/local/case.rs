//! Whether a directory takes names that differ by case for one, found out with a file that is made and
//! removed.
//!
//! Must not know tenants.

use std::path::Path;

use crate::provider::{ProviderError, ProviderResult, files};

/// Start of the name of the file that tells whether the disk ignores case. The rest differs each
/// time: what the system still remembers of an earlier probe must not answer for the disk, as it
/// does for a second through FUSE.
pub(super) const PROBE: &str = ".Nimbus-Case-Probe-";

/// Whether names in `dir` that differ by case are one file.
pub(super) fn ignores_case(dir: &Path) -> ProviderResult<bool> {
    remove_probes(dir).map_err(|e| files::error("cleaning up", dir, e))?;
    let mut unique = [0; 8];
    getrandom::fill(&mut unique)
        .map_err(|e| ProviderError::io("reading random bytes", e.to_string()))?;
    let name = format!("{PROBE}{}", data_encoding::HEXLOWER.encode(&unique));
    let path = dir.join(&name);
    let other = dir.join(name.to_ascii_lowercase());
    let fail = |e| files::error("probing", &path, e);
    files::create_new(&path).map_err(fail)?;
    let seen = files::inspect(&other);
    files::remove_if_exists(&path).map_err(fail)?;
    Ok(seen.map_err(fail)? != files::Entry::Absent)
}

/// Removes the probes that crashes left.
fn remove_probes(dir: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PROBE) {
            files::remove_if_exists(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn the_probe_agrees_with_the_disk_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let upper = dir.path().join("X");
        std::fs::write(&upper, "").unwrap();
        let expected = dir.path().join("x").exists();
        std::fs::remove_file(&upper).unwrap();
        assert_eq!(ignores_case(dir.path()).unwrap(), expected);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        // Those that crashes left go.
        for left in ["", "0", "0123456789abcdef"] {
            std::fs::write(dir.path().join(format!("{PROBE}{left}")), "").unwrap();
        }
        assert_eq!(ignores_case(dir.path()).unwrap(), expected);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_missing_directory_is_an_error() {
        let e = ignores_case(Path::new("/nowhere/at/all")).unwrap_err();
        assert!(matches!(e, ProviderError::Io { .. }), "{e:?}");
    }
}
