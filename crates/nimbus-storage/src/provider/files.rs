//! File handling shared by everything that keeps files in the data directory: private modes,
//! no symbolic links, directory syncs, and "disk full" told apart from other failures.
//!
//! Must not know what the files hold. Changes to files go through `std::fs` (libc), never
//! through raw system calls, so that the power-loss tests can record them.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read as _};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::ProviderError;

/// Mode of every file that Nimbus creates: the owner reads and writes, nobody else.
pub(crate) const PRIVATE_FILE: u32 = 0o600;
/// Mode of every directory that Nimbus creates.
pub(crate) const PRIVATE_DIR: u32 = 0o700;

/// What lies at a path, without following a symbolic link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// Nothing.
    Absent,
    /// A regular file of this many bytes.
    Regular {
        /// Length in bytes.
        len: u64,
    },
    /// A symbolic link, directory, socket or device.
    Other,
}

/// A path with something appended to its last part.
pub(crate) fn appended(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Looks at `path` without opening it: SQLite's locks of this process would be dropped if we
/// opened and closed a database file behind its back (POSIX locks belong to the process).
pub(crate) fn inspect(path: &Path) -> io::Result<Entry> {
    match std::fs::symlink_metadata(path) {
        Ok(m) if m.file_type().is_file() => Ok(Entry::Regular { len: m.len() }),
        Ok(_) => Ok(Entry::Other),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Entry::Absent),
        Err(e) => Err(e),
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .mode(PRIVATE_FILE)
        .custom_flags(nofollow());
    options
}

fn nofollow() -> i32 {
    // The flag's bits fit an `int` by definition of open(2).
    rustix::fs::OFlags::NOFOLLOW.bits().cast_signed()
}

/// Creates a file that must not exist, mode 0600. A symbolic link counts as existing.
pub(crate) fn create_new(path: &Path) -> io::Result<File> {
    options().create_new(true).open(path)
}

/// Opens an existing regular file for reading and writing; a symbolic link is refused.
pub(crate) fn open_existing(path: &Path) -> io::Result<File> {
    regular(options().open(path)?)
}

/// Opens a regular file, creating it with mode 0600 if absent; a symbolic link is refused.
pub(crate) fn open_or_create(path: &Path) -> io::Result<File> {
    regular(options().create(true).truncate(false).open(path)?)
}

/// Opens an existing regular file for reading only; a symbolic link is refused.
pub(crate) fn open_read_only(path: &Path) -> io::Result<File> {
    regular(
        OpenOptions::new()
            .read(true)
            .custom_flags(nofollow())
            .open(path)?,
    )
}

/// The first bytes of a regular file. Not for a database that this process has open: closing it again
/// would drop SQLite's locks.
pub(crate) fn start_of(path: &Path, len: usize) -> io::Result<Vec<u8>> {
    let mut start = Vec::with_capacity(len);
    let file = open_read_only(path)?;
    file.take(len as u64).read_to_end(&mut start)?;
    Ok(start)
}

fn regular(file: File) -> io::Result<File> {
    if file.metadata()?.file_type().is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        ))
    }
}

/// Takes access away from everyone but the owner.
pub(crate) fn make_private(file: &File) -> io::Result<()> {
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        file.set_permissions(Permissions::from_mode(PRIVATE_FILE))?;
    }
    Ok(())
}

/// Makes names created in and removed from `dir` durable.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Removes a name if it exists; true if it did. A symbolic link is removed, not its target.
pub(crate) fn remove_if_exists(path: &Path) -> io::Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Whether `open` failed because the name is a symbolic link.
pub(crate) fn is_symlink_refusal(e: &io::Error) -> bool {
    e.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

/// Whether the cause is a lack of space or quota.
pub(crate) fn is_full(e: &io::Error) -> bool {
    matches!(
        e.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Bytes that an unprivileged process may still write below `dir`.
pub(crate) fn free_bytes(dir: &Path) -> io::Result<u64> {
    let s = rustix::fs::statvfs(dir)?;
    Ok(s.f_bavail.saturating_mul(s.f_frsize))
}

/// The provider's error for a failed call on `path`: `Full` or `Io`.
pub(crate) fn error(doing: &str, path: &Path, e: io::Error) -> ProviderError {
    let what = format!("{doing} {}", path.display());
    if is_full(&e) {
        ProviderError::Full { what }
    } else {
        ProviderError::io(what, e)
    }
}

/// A small file system of its own, for tests of full disks.
#[cfg(test)]
#[allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr
)]
pub(crate) mod small_disk {
    use std::path::{Path, PathBuf};
    use std::process::Command;

    /// Mounted until dropped.
    pub(crate) struct SmallDisk {
        dir: tempfile::TempDir,
    }

    impl SmallDisk {
        /// Fails where this process may not mount, unless `NIMBUS_TEST_NO_MOUNT=1` accepts that
        /// full disks are then not tested.
        pub(crate) fn new(bytes: u64) -> Option<SmallDisk> {
            let dir = tempfile::tempdir().unwrap();
            let options = format!("size={bytes},mode=0700");
            let mut mount = Command::new("mount");
            mount
                .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
                .arg(dir.path());
            if mount.output().is_ok_and(|o| o.status.success()) {
                return Some(SmallDisk { dir });
            }
            assert!(
                std::env::var("NIMBUS_TEST_NO_MOUNT").is_ok_and(|v| v == "1"),
                "a tmpfs cannot be mounted; run as root, or accept with NIMBUS_TEST_NO_MOUNT=1 that full disks are not tested"
            );
            eprintln!("NOT TESTED: a full disk, because this process may not mount a tmpfs");
            None
        }

        pub(crate) fn path(&self) -> &Path {
            self.dir.path()
        }

        /// Writes a file until nothing more fits; dropping the guard frees the space.
        pub(crate) fn fill(&self) -> Ballast {
            use std::io::Write;
            let path = self.path().join("ballast");
            let mut file = std::fs::File::create(&path).unwrap();
            for block in [1 << 16, 1 << 12, 1] {
                while file.write_all(&vec![1; block]).is_ok() {}
            }
            Ballast(path)
        }
    }

    impl Drop for SmallDisk {
        fn drop(&mut self) {
            let _ = Command::new("umount")
                .arg("-l")
                .arg(self.dir.path())
                .status();
        }
    }

    /// What fills a [`SmallDisk`].
    pub(crate) struct Ballast(PathBuf);

    impl Drop for Ballast {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::symlink_metadata(path)
            .unwrap()
            .permissions()
            .mode()
            & 0o7777
    }

    #[test]
    fn new_files_are_private_and_never_overwrite() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        drop(create_new(&path).unwrap());
        assert_eq!(mode(&path), 0o600);
        assert_eq!(
            create_new(&path).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        let path = dir.path().join("b");
        drop(open_or_create(&path).unwrap());
        assert_eq!(mode(&path), 0o600);
    }

    #[test]
    fn symbolic_links_are_refused_by_every_opener() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        std::fs::write(&target, "x").unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        assert!(is_symlink_refusal(&open_existing(&link).unwrap_err()));
        assert!(is_symlink_refusal(&open_or_create(&link).unwrap_err()));
        assert!(is_symlink_refusal(&open_read_only(&link).unwrap_err()));
        assert_eq!(
            create_new(&link).unwrap_err().kind(),
            io::ErrorKind::AlreadyExists
        );
        assert_eq!(inspect(&link).unwrap(), Entry::Other);
        assert_eq!(inspect(&target).unwrap(), Entry::Regular { len: 1 });
        assert!(remove_if_exists(&link).unwrap());
        assert_eq!(inspect(&target).unwrap(), Entry::Regular { len: 1 });
        assert_eq!(inspect(&link).unwrap(), Entry::Absent);
        assert!(!remove_if_exists(&link).unwrap());
    }

    #[test]
    fn directories_are_not_regular_files() {
        let dir = tempfile::tempdir().unwrap();
        assert!(open_read_only(dir.path()).is_err());
        assert_eq!(inspect(dir.path()).unwrap(), Entry::Other);
    }

    #[test]
    fn lack_of_space_is_told_apart() {
        let path = Path::new("/data/x");
        for (kind, full) in [
            (io::ErrorKind::StorageFull, true),
            (io::ErrorKind::QuotaExceeded, true),
            (io::ErrorKind::PermissionDenied, false),
        ] {
            let e = error("writing", path, io::Error::from(kind));
            assert_eq!(matches!(e, ProviderError::Full { .. }), full, "{kind:?}");
            assert!(e.to_string().contains("writing /data/x"), "{e}");
        }
    }

    #[test]
    fn wide_modes_are_narrowed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, "x").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o664)).unwrap();
        make_private(&open_existing(&path).unwrap()).unwrap();
        assert_eq!(mode(&path), 0o600);
    }
}
