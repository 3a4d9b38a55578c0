//! What a start looks at before it serves: that every protected file has its manifest and key, and
//! that none is encrypted while encryption is off (seed 003).
//!
//! Must not open a database. It changes nothing.

use std::io;
use std::path::{Path, PathBuf};

use nimbus_crypto::{KeyError, Manifest, ManifestError, Subject, manifest_path};

use super::Keyring;
use crate::control::CONTROL_FILE;
use crate::provider::files::{self, Entry};
use crate::provider::{ProviderError, ProviderResult};

/// How SQLite files in plain text begin.
pub(crate) const SQLITE_HEADER: &[u8] = b"SQLite format 3\0";
/// How redb files in plain text begin.
pub(crate) const REDB_HEADER: &[u8] = b"redb\x1A\x0A\xA9\x0D\x0A";

/// Providers that unlock without a call over the network.
const LOCAL: [&str; 2] = ["master-key-file", "key-dir"];

/// The protected files in these directories that a server could not open, or must not: one error
/// each, in the order of their names. Blocks.
///
/// With a local key provider every manifest is unlocked. With a key service only what a manifest says
/// is checked, since ten thousand calls would take minutes.
///
/// # Errors
/// `Io` when a directory cannot be listed.
pub fn scan(
    data_dir: &Path,
    control_dir: &Path,
    keyring: Option<&Keyring>,
) -> ProviderResult<Vec<ProviderError>> {
    let files = protected(data_dir, control_dir)?;
    let checked = each(&files, |path, subject| match keyring {
        Some(keyring) => check(path, subject, keyring),
        None => super::refuse_manifest(path),
    });
    Ok(checked.into_iter().filter_map(Result::err).collect())
}

/// Does `work` for each file on as many threads as there are processors; the results in order. A start
/// with ten thousand files waits for it.
pub(super) fn each<T: Send>(
    files: &[(PathBuf, Subject)],
    work: impl Fn(&Path, &Subject) -> T + Sync,
) -> Vec<T> {
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get());
    let share = files.len().div_ceil(threads).max(1);
    std::thread::scope(|scope| {
        let parts: Vec<_> = files
            .chunks(share)
            .map(|part| {
                let work = &work;
                scope.spawn(move || {
                    let done = part.iter().map(|(path, subject)| work(path, subject));
                    done.collect::<Vec<_>>()
                })
            })
            .collect();
        let joined = parts.into_iter().map(std::thread::ScopedJoinHandle::join);
        // A panic of one goes on in the caller.
        joined
            .flat_map(|part| part.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

/// Every file in these directories that is encrypted when encryption is on, with its subject; sorted.
/// A file that is gone and whose manifest is there counts.
///
/// # Errors
/// `Io` when a directory cannot be listed.
pub fn protected(data_dir: &Path, control_dir: &Path) -> ProviderResult<Vec<(PathBuf, Subject)>> {
    let fail = |e| files::error("listing", data_dir, e);
    let mut found = Vec::new();
    let control = control_dir.join(CONTROL_FILE);
    for path in [control.clone(), manifest_path(&control)] {
        if files::inspect(&path).map_err(fail)? != Entry::Absent {
            found.push((control.clone(), Subject::control()));
        }
    }
    let names = std::fs::read_dir(data_dir)
        .and_then(|listing| {
            listing
                .map(|entry| Ok(entry?.file_name()))
                .collect::<io::Result<Vec<_>>>()
        })
        .map_err(fail)?;
    for name in names.iter().filter_map(|name| name.to_str()) {
        let file = manifest_of(name).unwrap_or(name);
        if let Some(subject) = tenant_subject(file) {
            found.push((data_dir.join(file), subject));
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// The file that a manifest of this name is for.
fn manifest_of(name: &str) -> Option<&str> {
    let file = name.strip_suffix(".nimbus-enc")?;
    (!file.is_empty()).then_some(file)
}

/// The subject of a tenant file of this name.
pub(crate) fn tenant_subject(name: &str) -> Option<Subject> {
    if let Some(tenant) = name.strip_suffix(".sqlite3") {
        return Subject::sqlite_tenant(tenant).ok();
    }
    Subject::redb_tenant(name.strip_suffix(".redb")?).ok()
}

fn check(path: &Path, subject: &Subject, keyring: &Keyring) -> ProviderResult<()> {
    match files::inspect(path).map_err(|e| files::error("looking at", path, e))? {
        // An interrupted creation, or a lost file: the registry knows which.
        Entry::Absent => return Ok(()),
        // The provider says what is wrong with it.
        Entry::Other => return Ok(()),
        Entry::Regular { .. } => {}
    }
    let locked = |e| ProviderError::locked(path, e);
    let local = LOCAL.contains(&keyring.provider_name());
    if is_plain(path)? {
        // Without a manifest it is to be migrated; with one, something was mixed up.
        Manifest::read(path, subject).map_err(locked)?;
        return Err(plain_with_manifest(path));
    }
    if local {
        return keyring.unlock(path, subject).map(drop);
    }
    let manifest = Manifest::read(path, subject).map_err(locked)?;
    check_names(&manifest, subject, keyring).map_err(locked)
}

/// What can be told without the key.
fn check_names(
    manifest: &Manifest,
    subject: &Subject,
    keyring: &Keyring,
) -> Result<(), ManifestError> {
    if manifest.subject() != subject {
        return Err(ManifestError::Foreign {
            expected: subject.to_string(),
            found: manifest.subject().to_string(),
        });
    }
    if manifest.current().provider != keyring.provider_name() {
        return Err(ManifestError::Key(KeyError::OtherProvider {
            subject: subject.to_string(),
            expected: keyring.provider_name().to_owned(),
            found: manifest.current().provider.clone(),
        }));
    }
    Ok(())
}

/// Whether a file that no process has open begins as a database in plain text does.
pub(crate) fn is_plain(path: &Path) -> ProviderResult<bool> {
    let start = files::start_of(path, SQLITE_HEADER.len());
    let start = start.map_err(|e| files::error("reading", path, e))?;
    Ok(start.starts_with(SQLITE_HEADER) || start.starts_with(REDB_HEADER))
}

/// The error for a file in plain text that has a manifest.
pub(crate) fn plain_with_manifest(path: &Path) -> ProviderError {
    ProviderError::Corrupt {
        what: path.display().to_string(),
        reason: "it is in plain text although it has a manifest: restore file and manifest from one \
                 backup, or move the manifest away and encrypt the file with `nimbus encryption migrate`"
            .to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::sync::Arc;

    use nimbus_crypto::{MasterKeyFile, WrappingKey};

    use super::*;

    fn keyring() -> Arc<Keyring> {
        let key = WrappingKey::generate().unwrap();
        Keyring::new(Arc::new(MasterKeyFile::new(key))).unwrap()
    }

    fn texts(dir: &Path, keyring: Option<&Keyring>) -> Vec<String> {
        let found = scan(dir, dir, keyring).unwrap();
        found.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_empty_directory_is_in_order() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(texts(dir.path(), None), [] as [&str; 0]);
        assert_eq!(texts(dir.path(), Some(&keyring())), [] as [&str; 0]);
        assert!(scan(&dir.path().join("missing"), dir.path(), None).is_err());
    }

    #[test]
    fn files_in_plain_text_are_named_with_what_to_run() {
        let dir = tempfile::tempdir().unwrap();
        let write =
            |name: &str, bytes: &[u8]| std::fs::write(dir.path().join(name), bytes).unwrap();
        write("a.sqlite3", SQLITE_HEADER);
        write("b.redb", REDB_HEADER);
        write("nimbus-control.db", REDB_HEADER);
        // Not files of tenants.
        write("a.sqlite3-wal", b"");
        write("_odd.sqlite3", SQLITE_HEADER);
        write("a.sqlite3.encrypted", b"x");
        let found = texts(dir.path(), Some(&keyring()));
        assert_eq!(found.len(), 3, "{found:?}");
        for (text, expected) in found.iter().zip([
            "--provider sqlite --tenant-id a",
            "--provider redb --tenant-id b",
            "nimbus-control.db --provider redb --replace`",
        ]) {
            assert!(text.contains("sidecar manifest is missing"), "{text}");
            assert!(text.contains(expected), "{text}");
        }
        assert_eq!(texts(dir.path(), None), [] as [&str; 0]);
    }

    #[test]
    fn manifests_are_held_against_their_files_and_keys() {
        let dir = tempfile::tempdir().unwrap();
        let keys = keyring();
        for tenant in ["a", "b", "c"] {
            let path = dir.path().join(format!("{tenant}.sqlite3"));
            std::fs::write(&path, "encrypted").unwrap();
            keys.create(&path, &Subject::sqlite_tenant(tenant).unwrap())
                .unwrap();
        }
        assert_eq!(texts(dir.path(), Some(&keys)), [] as [&str; 0]);
        let off = texts(dir.path(), None);
        assert_eq!(off.len(), 3);
        assert!(off[0].contains("encryption is not configured"), "{off:?}");
        let other = texts(dir.path(), Some(&keyring()));
        assert!(other[0].contains("wrong key"), "{other:?}");

        std::fs::write(dir.path().join("a.sqlite3"), SQLITE_HEADER).unwrap();
        let manifest = |tenant: &str| dir.path().join(format!("{tenant}.sqlite3.nimbus-enc"));
        std::fs::copy(manifest("c"), manifest("b")).unwrap();
        std::fs::write(manifest("c"), "{}").unwrap();
        let found = texts(dir.path(), Some(&keys));
        assert!(found[0].contains("in plain text although"), "{found:?}");
        assert!(found[1].contains("mixed up"), "{found:?}");
        assert!(found[2].contains("cannot be used"), "{found:?}");
    }
}
