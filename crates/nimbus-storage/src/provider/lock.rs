//! The lock that gives one process the data directory, and says who holds it.
//!
//! Must not know what the directory holds. The lock is `flock` on `nimbus.lock`: the kernel
//! drops it with the process, so a crash leaves nothing to clean up. The file's content is a
//! hint for people and for the command line; only the lock is the truth.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::files;

/// Name of the lock file inside the data directory.
pub const LOCK_FILE: &str = "nimbus.lock";

/// Longest content that is read as a holder, bytes.
const MAX_CONTENT: u64 = 4096;
/// A reader of the holder takes the lock shared for an instant, so a refusal is tried again
/// this often ...
const ATTEMPTS: u32 = 20;
/// ... at this distance.
const ATTEMPT_GAP: Duration = Duration::from_millis(10);

/// The process that holds a data directory, as it wrote itself down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// Process id.
    pub pid: u32,
    /// Address the server listens on; `None` until it listens.
    pub address: Option<SocketAddr>,
    /// When the lock was taken, milliseconds since 1970-01-01.
    pub started_at: u64,
}

/// Why the data directory could not be locked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another process, or another open in this one, holds it.
    #[error("{} is held by {}; stop that server or use another data directory", path.display(), describe(holder.as_ref()))]
    Held {
        /// The lock file.
        path: PathBuf,
        /// Who holds it, if the file says so.
        holder: Option<Holder>,
    },
    /// The operating system refused something else.
    #[error("{}: {source}", path.display())]
    Io {
        /// The directory or the lock file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Something else has the directory's name.
    #[error("{} is not a directory; name another data directory", path.display())]
    NotADirectory {
        /// The directory, as it was given.
        path: PathBuf,
    },
    /// The process may not write there.
    #[error("{} is not writable ({source}); give the user that runs Nimbus write access, or choose another data directory", path.display())]
    NotWritable {
        /// The directory or the lock file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The lock file is a symbolic link or no regular file, which Nimbus never creates.
    #[error("{} is not a regular file; remove it and start again", path.display())]
    NotRegular {
        /// The lock file.
        path: PathBuf,
    },
}

fn describe(holder: Option<&Holder>) -> String {
    match holder {
        Some(Holder {
            pid,
            address: Some(address),
            ..
        }) => {
            format!("the Nimbus process {pid}, which listens on {address}")
        }
        Some(Holder {
            pid, address: None, ..
        }) => format!("the Nimbus process {pid}"),
        None => "another process".to_owned(),
    }
}

/// Exclusive hold of a data directory, until dropped or until the process ends.
#[derive(Debug)]
pub struct DataDirLock {
    dir: PathBuf,
    path: PathBuf,
    file: File,
    holder: Mutex<Holder>,
}

impl DataDirLock {
    /// Creates `dir` with mode 0700 if absent (parents too) and takes its lock.
    ///
    /// # Errors
    /// `Held` if someone else has it, `NotADirectory`, `NotWritable`, `NotRegular` for a symbolic link in the
    /// lock file's place, `Io`.
    pub fn acquire(dir: &Path) -> Result<DataDirLock, LockError> {
        create_dir(dir).map_err(|e| match e.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
                LockError::NotADirectory {
                    path: dir.to_owned(),
                }
            }
            _ => classify(dir, e),
        })?;
        let path = dir.join(LOCK_FILE);
        let file = files::open_or_create(&path).map_err(|e| classify(&path, e))?;
        lock_exclusive(&path, &file)?;
        files::make_private(&file).map_err(|e| classify(&path, e))?;
        let started_at = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let holder = Holder {
            pid: std::process::id(),
            address: None,
            started_at: u64::try_from(started_at.as_millis()).unwrap_or(u64::MAX),
        };
        write_content(&file, &holder).map_err(|e| classify(&path, e))?;
        Ok(DataDirLock {
            dir: dir.to_owned(),
            path,
            file,
            holder: Mutex::new(holder),
        })
    }

    /// The locked directory, as it was given.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes down where the server listens, for [`read_holder`].
    ///
    /// # Errors
    /// `Io` if the file could not be written; the lock is held all the same.
    pub fn set_address(&self, address: SocketAddr) -> Result<(), LockError> {
        let mut holder = self
            .holder
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        holder.address = Some(address);
        write_content(&self.file, &holder).map_err(|e| classify(&self.path, e))
    }
}

impl Drop for DataDirLock {
    fn drop(&mut self) {
        // Empty before the lock goes, so that nobody reads a holder that is gone. The file
        // itself stays: removing it would let two processes lock two files of one name.
        let _ = self.file.set_len(0);
        let _ = self.file.unlock();
    }
}

/// Who holds the directory now; `None` if nobody does or the file does not say.
pub fn read_holder(dir: &Path) -> Option<Holder> {
    match look(dir) {
        Ok(Holding::Held(holder)) => holder,
        Ok(Holding::Free) | Err(_) => None,
    }
}

/// Whether a directory is held, as [`look`] found it.
#[derive(Debug)]
#[non_exhaustive]
pub enum Holding {
    /// Nobody holds it, or it has never been held.
    Free,
    /// Somebody does; who, if the file says so.
    Held(Option<Holder>),
}

/// Looks whether the directory is held, changing nothing.
///
/// # Errors
/// What [`DataDirLock::acquire`] would meet at the lock file: `NotRegular`, `NotWritable`, `Io`.
pub fn look(dir: &Path) -> Result<Holding, LockError> {
    let path = dir.join(LOCK_FILE);
    let file = match files::open_read_only(&path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Holding::Free),
        Err(e) => return Err(classify(&path, e)),
    };
    match file.try_lock_shared() {
        Ok(()) => {
            // The content, if any, is what a killed process left.
            let _ = file.unlock();
            Ok(Holding::Free)
        }
        Err(TryLockError::WouldBlock) => Ok(Holding::Held(content(&file))),
        Err(TryLockError::Error(e)) => Err(classify(&path, e)),
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "runs once, at start, before anything is async; a file lock cannot be awaited"
)]
fn lock_exclusive(path: &Path, file: &File) -> Result<(), LockError> {
    for attempt in 1.. {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) if attempt < ATTEMPTS => std::thread::sleep(ATTEMPT_GAP),
            Err(TryLockError::WouldBlock) => {
                return Err(LockError::Held {
                    path: path.to_owned(),
                    holder: content(file),
                });
            }
            Err(TryLockError::Error(e)) => return Err(classify(path, e)),
        }
    }
    Ok(())
}

/// Creates a directory and the parents that are missing, durably: files can be synced as often
/// as one likes, a power cut takes them all along with a directory whose own name was not.
fn create_dir(dir: &Path) -> io::Result<()> {
    let absent = |path: &&Path| !path.as_os_str().is_empty() && !path.exists();
    let missing: Vec<&Path> = dir.ancestors().take_while(absent).collect();
    DirBuilder::new()
        .recursive(true)
        .mode(files::PRIVATE_DIR)
        .create(dir)?;
    for made in &missing {
        files::sync_dir(parent(made))?;
    }
    if missing.is_empty() {
        // A crash may have come between the creation and its sync. The parent of a directory
        // that somebody else made may be closed to us, and then it is theirs to sync.
        let _ = files::sync_dir(parent(dir));
    }
    Ok(())
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) => Path::new("."),
        None => path,
    }
}

fn content(file: &File) -> Option<Holder> {
    let mut text = Vec::new();
    file.take(MAX_CONTENT).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

fn write_content(file: &File, holder: &Holder) -> io::Result<()> {
    let mut text = serde_json::to_vec(holder)?;
    text.push(b'\n');
    file.write_all_at(&text, 0)?;
    file.set_len(text.len() as u64)
}

fn classify(path: &Path, source: io::Error) -> LockError {
    let path = path.to_owned();
    if files::is_symlink_refusal(&source) || source.kind() == io::ErrorKind::InvalidInput {
        return LockError::NotRegular { path };
    }
    match source.kind() {
        io::ErrorKind::IsADirectory => LockError::NotRegular { path },
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            LockError::NotWritable { path, source }
        }
        _ => LockError::Io { path, source },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::process::{Command, Stdio};

    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::symlink_metadata(path)
            .unwrap()
            .permissions()
            .mode()
            & 0o7777
    }

    #[test]
    fn creates_private_directory_and_file() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("a/b");
        let lock = DataDirLock::acquire(&dir).unwrap();
        assert_eq!(lock.dir(), dir);
        assert_eq!(mode(&dir), 0o700);
        assert_eq!(mode(&root.path().join("a")), 0o700);
        assert_eq!(mode(&dir.join(LOCK_FILE)), 0o600);
    }

    #[test]
    fn parents_are_found_for_any_spelling() {
        for (path, expected) in [
            ("/a/b", "/a"),
            ("/a", "/"),
            ("/", "/"),
            ("a/b", "a"),
            ("a", "."),
            ("./a", "."),
            ("a/", "."),
        ] {
            assert_eq!(parent(Path::new(path)), Path::new(expected), "{path}");
        }
    }

    #[test]
    fn second_acquire_names_the_holder_and_succeeds_after_drop() {
        let root = tempfile::tempdir().unwrap();
        let lock = DataDirLock::acquire(root.path()).unwrap();
        let Err(LockError::Held {
            holder: Some(holder),
            path,
        }) = DataDirLock::acquire(root.path())
        else {
            panic!("the lock was given twice");
        };
        assert_eq!((holder.pid, holder.address), (std::process::id(), None));
        assert_eq!(path, root.path().join(LOCK_FILE));

        lock.set_address("127.0.0.1:8080".parse().unwrap()).unwrap();
        let e = DataDirLock::acquire(root.path()).unwrap_err();
        let text = e.to_string();
        assert!(
            text.contains("127.0.0.1:8080") && text.contains("stop that server"),
            "{text}"
        );
        let holder = read_holder(root.path()).unwrap();
        assert_eq!(holder.address, Some("127.0.0.1:8080".parse().unwrap()));
        assert!(holder.started_at > 1_600_000_000_000);

        assert!(matches!(look(root.path()), Ok(Holding::Held(Some(found))) if found == holder));

        drop(lock);
        assert_eq!(read_holder(root.path()), None);
        assert!(matches!(look(root.path()), Ok(Holding::Free)));
        assert_eq!(std::fs::read(root.path().join(LOCK_FILE)).unwrap(), b"");
        DataDirLock::acquire(root.path()).unwrap();
    }

    #[test]
    fn content_has_the_documented_form() {
        let root = tempfile::tempdir().unwrap();
        let lock = DataDirLock::acquire(root.path()).unwrap();
        // A longer address followed by a shorter one must leave no tail behind.
        for address in ["[2001:db8::1234:5678]:65535", "127.0.0.1:80"] {
            lock.set_address(address.parse().unwrap()).unwrap();
            let text = std::fs::read_to_string(root.path().join(LOCK_FILE)).unwrap();
            let json: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(json["pid"], std::process::id());
            assert_eq!(json["address"], address);
            assert!(json["startedAt"].is_u64());
        }
    }

    #[test]
    fn a_killed_holder_leaves_nothing_that_counts() {
        let root = tempfile::tempdir().unwrap();
        // What a killed server leaves: content, but no lock.
        let stale = r#"{"pid":1,"address":"127.0.0.1:1","startedAt":5}"#;
        std::fs::write(root.path().join(LOCK_FILE), stale).unwrap();
        assert_eq!(read_holder(root.path()), None);
        let lock = DataDirLock::acquire(root.path()).unwrap();
        assert_eq!(read_holder(root.path()).unwrap().pid, std::process::id());
        drop(lock);
    }

    #[test]
    fn another_process_holds_and_dies() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join(LOCK_FILE);
        // `flock` takes the same lock from a process of its own, prints once it has it, and
        // goes away when its input ends.
        let mut child = Command::new("flock")
            .args([
                "--exclusive",
                path.to_str().unwrap(),
                "sh",
                "-c",
                "echo held; read line",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("util-linux `flock` runs");
        let mut said = [0; 5];
        child
            .stdout
            .as_mut()
            .unwrap()
            .read_exact(&mut said)
            .unwrap();
        let e = DataDirLock::acquire(root.path()).unwrap_err();
        assert!(matches!(e, LockError::Held { holder: None, .. }), "{e}");
        drop(child.stdin.take());
        child.wait().unwrap();
        DataDirLock::acquire(root.path()).unwrap();
    }

    #[test]
    fn a_symbolic_link_in_place_of_the_lock_file_is_refused() {
        let root = tempfile::tempdir().unwrap();
        let target = root.path().join("target");
        std::fs::write(&target, "precious").unwrap();
        std::os::unix::fs::symlink(&target, root.path().join(LOCK_FILE)).unwrap();
        let e = DataDirLock::acquire(root.path()).unwrap_err();
        assert!(matches!(e, LockError::NotRegular { .. }), "{e}");
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "precious");
        assert_eq!(read_holder(root.path()), None);
        assert!(matches!(
            look(root.path()),
            Err(LockError::NotRegular { .. })
        ));
    }

    #[test]
    fn directories_that_cannot_be_written_say_what_to_do() {
        // Refused to root as well: the kernel's own file systems take no new directories.
        for dir in ["/sys/nimbus-lock-test", "/sys/kernel"] {
            let e = DataDirLock::acquire(Path::new(dir)).unwrap_err();
            assert!(matches!(e, LockError::NotWritable { .. }), "{dir}: {e:?}");
            assert!(
                e.to_string().contains("choose another data directory"),
                "{e}"
            );
        }
        // A file where the directory should be.
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(
            DataDirLock::acquire(&file).unwrap_err(),
            LockError::NotADirectory { .. }
        ));
        // A directory in place of the lock file.
        std::fs::create_dir(root.path().join(LOCK_FILE)).unwrap();
        let e = DataDirLock::acquire(root.path()).unwrap_err();
        assert!(matches!(e, LockError::NotRegular { .. }), "{e:?}");
    }
}
