//! Private files on Unix: every step is relative to an open directory, so a name that changes
//! under us cannot lead elsewhere. It must not know what the files hold.

use std::ffi::{OsStr, OsString};
use std::fs::{DirBuilder, File, Metadata, TryLockError};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, Mode, OFlags};
use rustix::io::Errno;

use super::{Access, PrivateFileError, guarded};

/// Owner alone: read and write.
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);
/// Owner alone: list, enter and change.
const DIRECTORY_MODE: Mode = Mode::RWXU;
/// Bits that a private file or directory must not have.
const OTHERS: u32 = 0o077;
/// Bits that a directory above it must not have: with them another user could replace its entries.
const OTHERS_WRITE: u32 = 0o022;
/// How often opening is tried again while another process makes or removes the same file.
const RACES: usize = 16;

/// An open directory that only its owner may use.
#[derive(Debug)]
pub(crate) struct PrivateDir {
    handle: File,
    path: PathBuf,
}

impl PrivateDir {
    /// Opens an existing directory; `None` when it, or one above it, is absent.
    pub(crate) fn open(path: &Path) -> Result<Option<Self>, PrivateFileError> {
        let (base, names) = guarded(path);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut handle = match fs::open(base, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::NOTDIR) => return Err(not_directory(base)),
            Err(errno) => return Err(PrivateFileError::io("open the directory", base)(errno)),
        };
        if names.is_empty() {
            check_directory(&handle, base, OTHERS)?;
        }
        for (index, step) in names.iter().enumerate() {
            let name = step.file_name().unwrap_or_default();
            handle = match open_directory(&handle, name, step)? {
                Some(next) => next,
                None => return Ok(None),
            };
            let forbidden = if index + 1 == names.len() {
                OTHERS
            } else {
                OTHERS_WRITE
            };
            check_directory(&handle, step, forbidden)?;
        }
        Ok(Some(Self {
            handle,
            path: path.to_path_buf(),
        }))
    }

    /// Opens the directory after making what is missing of it, mode 0700 (the XDG base directory
    /// specification asks the same for the directories above).
    pub(crate) fn create(path: &Path) -> Result<Self, PrivateFileError> {
        let mut missing: Vec<&Path> = Vec::new();
        for step in path.ancestors().filter(|step| !step.as_os_str().is_empty()) {
            if step.symlink_metadata().is_ok() {
                break;
            }
            missing.push(step);
        }
        for step in missing.iter().rev() {
            make_directory(step)?;
        }
        Self::open(path)?.ok_or_else(|| {
            PrivateFileError::io("open the directory", path)(io::Error::from(
                io::ErrorKind::NotFound,
            ))
        })
    }

    /// Opens a regular file that belongs to us with no bit for others. `None` only for
    /// [`Access::Read`] of an absent file.
    pub(crate) fn open_file(
        &self,
        name: &OsStr,
        access: Access,
    ) -> Result<Option<File>, PrivateFileError> {
        let path = self.path.join(name);
        // NONBLOCK: opening a pipe that was put there must not wait for its other end.
        let common = OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let flags = match access {
            Access::Read => common | OFlags::RDONLY,
            Access::Update => common | OFlags::RDWR,
        };
        for _ in 0..RACES {
            match fs::openat(&self.handle, name, flags, Mode::empty()) {
                Ok(fd) => {
                    let file = File::from(fd);
                    check_file(&file, &path)?;
                    return Ok(Some(file));
                }
                Err(Errno::NOENT) if access == Access::Read => return Ok(None),
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(self.refusal(errno, name, "open")),
            }
            match self.create_file(name, flags) {
                Ok(file) => {
                    self.sync()?;
                    return Ok(Some(file));
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(self.refusal(errno, name, "create")),
            }
        }
        Err(PrivateFileError::io("open", &path)(io::Error::from(
            io::ErrorKind::ResourceBusy,
        )))
    }

    /// Opens a regular file to be changed, making it empty when it is absent.
    pub(crate) fn open_update(&self, name: &OsStr) -> Result<File, PrivateFileError> {
        let path = self.path.join(name);
        let absent = || PrivateFileError::io("open", &path)(io::Error::from(Errno::NOENT));
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
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => {
                Err(PrivateFileError::io("lock", &self.path.join(name))(error))
            }
        }
    }

    /// The names in the directory, in no order.
    pub(crate) fn names(&self) -> Result<Vec<OsString>, PrivateFileError> {
        let listed = || -> Result<Vec<OsString>, Errno> {
            let entries = fs::Dir::read_from(&self.handle)?;
            let names = entries
                .map(|entry| Ok(OsStr::from_bytes(entry?.file_name().to_bytes()).to_os_string()));
            names.collect()
        };
        listed().map_err(PrivateFileError::io("list", &self.path))
    }

    /// Renames a file; what has the new name already is not replaced.
    pub(crate) fn rename(&self, name: &OsStr, to: &OsStr) -> Result<(), PrivateFileError> {
        let flags = fs::RenameFlags::NOREPLACE;
        let renamed = match fs::renameat_with(&self.handle, name, &self.handle, to, flags) {
            // The file system does not know the flag; only the holder of the lock makes names here.
            Err(Errno::INVAL | Errno::NOSYS) => self.rename_unless_there(name, to),
            outcome => outcome,
        };
        renamed.map_err(|errno| self.refusal(errno, to, "rename to"))
    }

    fn rename_unless_there(&self, name: &OsStr, to: &OsStr) -> Result<(), Errno> {
        match fs::statat(&self.handle, to, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Err(Errno::EXIST),
            Err(Errno::NOENT) => fs::renameat(&self.handle, name, &self.handle, to),
            Err(errno) => Err(errno),
        }
    }

    /// Removes a file; `false` when it was not there.
    pub(crate) fn remove(&self, name: &OsStr) -> Result<bool, PrivateFileError> {
        match fs::unlinkat(&self.handle, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(self.refusal(errno, name, "remove")),
        }
    }

    /// Replaces `name` by `bytes` in one step that survives a crash and a power loss. `temp` is a
    /// name in the same directory; the caller holds the lock, so a leftover of that name is dead.
    pub(crate) fn replace(
        &self,
        name: &OsStr,
        temp: &OsStr,
        bytes: &[u8],
    ) -> Result<(), PrivateFileError> {
        let temp_path = self.path.join(temp);
        match fs::unlinkat(&self.handle, temp, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(self.refusal(errno, temp, "remove the leftover")),
        }
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mut file = self
            .create_file(temp, flags)
            .map_err(|errno| self.refusal(errno, temp, "create"))?;
        let placed = file
            .write_all(bytes)
            .and_then(|()| file.sync_all())
            .map_err(PrivateFileError::io("write", &temp_path))
            .and_then(|()| {
                fs::renameat(&self.handle, temp, &self.handle, name)
                    .map_err(|errno| self.refusal(errno, name, "replace"))
            });
        if placed.is_err() {
            // The first error is the one to report; a leftover is removed by the next attempt.
            let _ = fs::unlinkat(&self.handle, temp, AtFlags::empty());
        }
        placed.and_then(|()| self.sync())
    }

    /// Gives the file `name` a second name, mode 0600; `false` when that name is taken.
    pub(crate) fn link(&self, name: &OsStr, second: &OsStr) -> Result<bool, PrivateFileError> {
        match fs::linkat(&self.handle, name, &self.handle, second, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Ok(false),
            Err(errno) => return Err(self.refusal(errno, second, "link")),
        }
        fs::chmodat(&self.handle, second, FILE_MODE, AtFlags::empty())
            .map_err(|errno| self.refusal(errno, second, "set the mode of"))?;
        self.sync()?;
        Ok(true)
    }

    /// Length of a file in bytes.
    pub(crate) fn len(&self, name: &OsStr) -> Result<u64, PrivateFileError> {
        let found = fs::statat(&self.handle, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| self.refusal(errno, name, "inspect"))?;
        Ok(u64::try_from(found.st_size).unwrap_or_default())
    }

    /// Makes what was created, renamed and removed in the directory durable.
    pub(crate) fn sync(&self) -> Result<(), PrivateFileError> {
        self.handle
            .sync_all()
            .map_err(PrivateFileError::io("sync the directory", &self.path))
    }

    fn create_file(&self, name: &OsStr, flags: OFlags) -> Result<File, Errno> {
        let flags = flags | OFlags::CREATE | OFlags::EXCL;
        let fd = fs::openat(&self.handle, name, flags, FILE_MODE)?;
        // The umask may have taken bits of the owner away.
        fs::fchmod(&fd, FILE_MODE)?;
        Ok(File::from(fd))
    }

    /// The error for a system call on `name` that failed, a link or odd file told apart.
    fn refusal(&self, errno: Errno, name: &OsStr, action: &'static str) -> PrivateFileError {
        let path = self.path.join(name);
        match errno {
            Errno::LOOP | Errno::MLINK => PrivateFileError::Symlink { path },
            Errno::ISDIR | Errno::NXIO | Errno::NODEV => PrivateFileError::NotRegular { path },
            errno => PrivateFileError::io(action, &path)(errno),
        }
    }
}

/// Opens the directory `name` in `above` without following a link; `None` when absent.
fn open_directory(
    above: &File,
    name: &OsStr,
    path: &Path,
) -> Result<Option<File>, PrivateFileError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match fs::openat(above, name, flags, Mode::empty()) {
        Ok(fd) => Ok(Some(File::from(fd))),
        Err(Errno::NOENT) => Ok(None),
        // A link gives NOTDIR on Linux and LOOP elsewhere; the name itself tells which it is.
        Err(Errno::NOTDIR | Errno::LOOP | Errno::MLINK) => Err(not_directory(path)),
        Err(errno) => Err(PrivateFileError::io("open the directory", path)(errno)),
    }
}

fn not_directory(path: &Path) -> PrivateFileError {
    let path = path.to_path_buf();
    match path.symlink_metadata() {
        Ok(found) if found.is_symlink() => PrivateFileError::Symlink { path },
        _ => PrivateFileError::NotDirectory { path },
    }
}

/// Makes one directory and syncs the one above, so that the entry outlives a power loss.
fn make_directory(path: &Path) -> Result<(), PrivateFileError> {
    match DirBuilder::new().mode(DIRECTORY_MODE.bits()).create(path) {
        Ok(()) => {}
        // Another process was first; `open` judges what it made.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        Err(error) => return Err(PrivateFileError::io("create the directory", path)(error)),
    }
    let above = super::or_current(path.parent().unwrap_or(path));
    File::open(above)
        .and_then(|handle| handle.sync_all())
        .map_err(PrivateFileError::io("sync the directory", above))
}

fn check_directory(handle: &File, path: &Path, forbidden: u32) -> Result<(), PrivateFileError> {
    let found = handle
        .metadata()
        .map_err(PrivateFileError::io("inspect", path))?;
    check_owner(&found, path)?;
    let mode = found.mode() & 0o7777;
    if mode & forbidden != 0 {
        let repair = if forbidden == OTHERS { "700" } else { "go-w" };
        return Err(PrivateFileError::LooseDirectory {
            path: path.to_path_buf(),
            mode,
            repair,
        });
    }
    Ok(())
}

fn check_file(file: &File, path: &Path) -> Result<(), PrivateFileError> {
    let found = file
        .metadata()
        .map_err(PrivateFileError::io("inspect", path))?;
    if !found.is_file() {
        return Err(PrivateFileError::NotRegular {
            path: path.to_path_buf(),
        });
    }
    check_owner(&found, path)?;
    let mode = found.mode() & 0o7777;
    if mode & OTHERS != 0 {
        return Err(PrivateFileError::LooseFile {
            path: path.to_path_buf(),
            mode,
        });
    }
    Ok(())
}

/// Whether two open files are one.
pub(crate) fn same_file(one: &File, other: &File) -> io::Result<bool> {
    let (one, other) = (one.metadata()?, other.metadata()?);
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}

/// Writes what a file holds from `from` to `to` to where it is: after a sync that failed, pages are
/// marked clean, and another sync would write nothing and succeed. The position stays.
pub(crate) fn rewrite(file: &File, from: u64, to: u64) -> io::Result<()> {
    let mut block = vec![0; 1 << 20];
    let mut at = from;
    while at < to {
        let wanted = usize::try_from(to - at)
            .unwrap_or(usize::MAX)
            .min(block.len());
        let part = block.get_mut(..wanted).unwrap_or_default();
        file.read_exact_at(part, at)?;
        file.write_all_at(part, at)?;
        at += wanted as u64;
    }
    Ok(())
}

/// Allocates the room of `file` up to `len` bytes without changing its length, so that writing there
/// needs no free space later. `false` where the file system cannot.
pub(crate) fn allocate(file: &File, len: u64) -> io::Result<bool> {
    #[cfg(target_os = "linux")]
    match fs::fallocate(file, fs::FallocateFlags::KEEP_SIZE, 0, len) {
        Ok(()) => Ok(true),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (file, len);
        Ok(false)
    }
}

fn check_owner(found: &Metadata, path: &Path) -> Result<(), PrivateFileError> {
    let user = rustix::process::geteuid().as_raw();
    let owner = found.uid();
    if owner != user && owner != 0 {
        return Err(PrivateFileError::Owner {
            path: path.to_path_buf(),
            owner,
            user,
        });
    }
    Ok(())
}

#[cfg(test)]
#[path = "unix_tests.rs"]
mod tests;
