//! Private files where there are no Unix modes (Windows): the user's profile directory carries the
//! access list that keeps others out, so only links and odd files are refused here.
//! It must not know what the files hold.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::{Access, PrivateFileError, guarded};

/// A directory of ours.
#[derive(Debug)]
pub(crate) struct PrivateDir {
    path: PathBuf,
}

impl PrivateDir {
    /// Checks an existing directory; `None` when absent.
    pub(crate) fn open(path: &Path) -> Result<Option<Self>, PrivateFileError> {
        let (_, names) = guarded(path);
        for step in names {
            match step.symlink_metadata() {
                Ok(found) if found.is_symlink() => {
                    return Err(PrivateFileError::Symlink {
                        path: step.to_path_buf(),
                    });
                }
                Ok(found) if !found.is_dir() => {
                    return Err(PrivateFileError::NotDirectory {
                        path: step.to_path_buf(),
                    });
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(PrivateFileError::io("inspect", step)(error)),
            }
        }
        Ok(Some(Self {
            path: path.to_path_buf(),
        }))
    }

    /// Makes what is missing of the directory and checks it.
    pub(crate) fn create(path: &Path) -> Result<Self, PrivateFileError> {
        // Checked before anything is made, so that nothing is made behind a link.
        Self::open(path)?;
        fs::create_dir_all(path).map_err(PrivateFileError::io("create the directory", path))?;
        Self::open(path)?.ok_or_else(|| {
            PrivateFileError::io("open the directory", path)(io::Error::from(
                io::ErrorKind::NotFound,
            ))
        })
    }

    /// Opens a regular file; `None` only for [`Access::Read`] of an absent file.
    pub(crate) fn open_file(
        &self,
        name: &OsStr,
        access: Access,
    ) -> Result<Option<File>, PrivateFileError> {
        let path = self.path.join(name);
        match path.symlink_metadata() {
            Ok(found) if found.is_symlink() => return Err(PrivateFileError::Symlink { path }),
            Ok(found) if !found.is_file() => return Err(PrivateFileError::NotRegular { path }),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if access == Access::Read {
                    return Ok(None);
                }
            }
            Err(error) => return Err(PrivateFileError::io("inspect", &path)(error)),
        }
        let mut options = File::options();
        options.read(true);
        match access {
            Access::Read => &mut options,
            Access::Update => options.write(true).create(true).truncate(false),
        };
        match options.open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound && access == Access::Read => {
                Ok(None)
            }
            Err(error) => Err(PrivateFileError::io("open", &path)(error)),
        }
    }

    /// Opens a regular file to be changed, making it empty when it is absent.
    pub(crate) fn open_update(&self, name: &OsStr) -> Result<File, PrivateFileError> {
        let path = self.path.join(name);
        let absent =
            || PrivateFileError::io("open", &path)(io::Error::from(io::ErrorKind::NotFound));
        self.open_file(name, Access::Update)?.ok_or_else(absent)
    }

    /// Takes the exclusive lock on `name`, waiting for other holders; dropping the file releases it.
    pub(crate) fn lock(&self, name: &OsStr) -> Result<File, PrivateFileError> {
        let file = self.open_update(name)?;
        file.lock()
            .map_err(PrivateFileError::io("lock", &self.path.join(name)))?;
        Ok(file)
    }

    /// Takes the exclusive lock on `name`; `None` while another holds it.
    pub(crate) fn try_lock(&self, name: &OsStr) -> Result<Option<File>, PrivateFileError> {
        let file = self.open_update(name)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(fs::TryLockError::WouldBlock) => Ok(None),
            Err(fs::TryLockError::Error(error)) => {
                Err(PrivateFileError::io("lock", &self.path.join(name))(error))
            }
        }
    }

    /// The names in the directory, in no order.
    pub(crate) fn names(&self) -> Result<Vec<OsString>, PrivateFileError> {
        fs::read_dir(&self.path)
            .and_then(|entries| entries.map(|entry| Ok(entry?.file_name())).collect())
            .map_err(PrivateFileError::io("list", &self.path))
    }

    /// Renames a file; what has the new name already is not replaced.
    pub(crate) fn rename(&self, name: &OsStr, to: &OsStr) -> Result<(), PrivateFileError> {
        let path = self.path.join(to);
        let renamed = match path.symlink_metadata() {
            Ok(_) => Err(io::Error::from(io::ErrorKind::AlreadyExists)),
            Err(_) => fs::rename(self.path.join(name), &path),
        };
        renamed.map_err(PrivateFileError::io("rename to", &path))
    }

    /// Removes a file; `false` when it was not there.
    pub(crate) fn remove(&self, name: &OsStr) -> Result<bool, PrivateFileError> {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(PrivateFileError::io("remove", &path)(error)),
        }
    }

    /// Length of a file in bytes.
    pub(crate) fn len(&self, name: &OsStr) -> Result<u64, PrivateFileError> {
        let path = self.path.join(name);
        let found = path.symlink_metadata();
        Ok(found.map_err(PrivateFileError::io("inspect", &path))?.len())
    }

    /// Directories need no sync of their own here.
    #[expect(clippy::unnecessary_wraps, reason = "as on Unix")]
    pub(crate) fn sync(&self) -> Result<(), PrivateFileError> {
        Ok(())
    }

    /// Replaces `name` by `bytes` in one step; `temp` is a name in the same directory.
    pub(crate) fn replace(
        &self,
        name: &OsStr,
        temp: &OsStr,
        bytes: &[u8],
    ) -> Result<(), PrivateFileError> {
        let (path, temp_path) = (self.path.join(name), self.path.join(temp));
        match fs::remove_file(&temp_path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(PrivateFileError::io("remove the leftover", &temp_path)(
                    error,
                ));
            }
            _ => {}
        }
        let placed = File::create_new(&temp_path)
            .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
            .map_err(PrivateFileError::io("write", &temp_path))
            .and_then(|()| {
                fs::rename(&temp_path, &path).map_err(PrivateFileError::io("replace", &path))
            });
        if placed.is_err() {
            // The first error is the one to report; a leftover is removed by the next attempt.
            let _ = fs::remove_file(&temp_path);
        }
        placed
    }

    /// Gives the file `name` a second name; `false` when that name is taken.
    pub(crate) fn link(&self, name: &OsStr, second: &OsStr) -> Result<bool, PrivateFileError> {
        let second_path = self.path.join(second);
        match fs::hard_link(self.path.join(name), &second_path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(PrivateFileError::io("link", &second_path)(error)),
        }
    }
}

/// Whether two open files are one; that cannot be told here, and no caller needs it where open files
/// cannot be renamed.
#[expect(clippy::unnecessary_wraps, reason = "as on Unix")]
pub(crate) fn same_file(_: &File, _: &File) -> io::Result<bool> {
    Ok(false)
}

/// Not known to be needed here.
#[expect(clippy::unnecessary_wraps, reason = "as on Unix")]
pub(crate) fn rewrite(_: &File, _: u64, _: u64) -> io::Result<()> {
    Ok(())
}

/// Room cannot be allocated ahead here.
#[expect(clippy::unnecessary_wraps, reason = "as on Unix")]
pub(crate) fn allocate(_: &File, _: u64) -> io::Result<bool> {
    Ok(false)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn files_are_made_replaced_linked_and_read() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("nimbus/auth");
        assert!(PrivateDir::open(&path).unwrap().is_none());
        let dir = PrivateDir::create(&path).unwrap();
        let token = OsStr::new("token");
        assert!(dir.open_file(token, Access::Read).unwrap().is_none());
        fs::write(path.join(".temp"), "leftover").unwrap();
        for content in ["one", "two"] {
            let _lock = dir.lock(OsStr::new(".lock")).unwrap();
            dir.replace(token, OsStr::new(".temp"), content.as_bytes())
                .unwrap();
            assert_eq!(fs::read_to_string(path.join("token")).unwrap(), content);
        }
        assert!(!path.join(".temp").exists());
        assert!(dir.link(token, OsStr::new("second")).unwrap());
        assert!(!dir.link(token, OsStr::new("second")).unwrap());
        let mut log = dir
            .open_file(OsStr::new("log"), Access::Update)
            .unwrap()
            .unwrap();
        log.write_all(b"line\n").unwrap();
        assert!(dir.open_file(token, Access::Read).unwrap().is_some());
    }

    #[cfg(unix)]
    #[test]
    fn links_and_odd_files_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let real = temp.path().join("real");
        fs::create_dir_all(real.join("sub")).unwrap();
        fs::write(real.join("file"), "").unwrap();
        std::os::unix::fs::symlink(&real, temp.path().join("auth")).unwrap();
        std::os::unix::fs::symlink("file", real.join("token")).unwrap();
        let linked = PrivateDir::create(&temp.path().join("auth"));
        assert!(
            matches!(linked, Err(PrivateFileError::Symlink { .. })),
            "{linked:?}"
        );
        let over_file = PrivateDir::create(&real.join("file"));
        assert!(
            matches!(over_file, Err(PrivateFileError::NotDirectory { .. })),
            "{over_file:?}"
        );
        let dir = PrivateDir::open(&real).unwrap().unwrap();
        let file = dir.open_file(OsStr::new("token"), Access::Read);
        assert!(
            matches!(file, Err(PrivateFileError::Symlink { .. })),
            "{file:?}"
        );
        let file = dir.open_file(OsStr::new("sub"), Access::Read);
        assert!(
            matches!(file, Err(PrivateFileError::NotRegular { .. })),
            "{file:?}"
        );
    }
}
