//! Key files: exactly 32 raw bytes that only their owner may read.
//!
//! Must not know what a key is for. A key is read once into memory that is wiped. The path may be a
//! symbolic link, as secret managers mount keys; what counts is the file that it leads to.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use zeroize::Zeroizing;

use crate::key::{KEY_BYTES, WrappingKey};

/// Bits that a key file must not have: anything for group or world.
const OTHERS: u32 = 0o077;

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// There is no file, or the link leads nowhere.
    #[error(
        "there is no key file at {}: make one with `openssl rand -out {} 32` and `chmod 400 {}`",
        .path.display(), .path.display(), .path.display()
    )]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The path leads to a directory.
    #[error("the key file {} is a directory: name the file in it", .path.display())]
    Directory {
        /// The path.
        path: PathBuf,
    },
    /// The path leads to a pipe, a socket or a device.
    #[error("the key file {} is not a regular file", .path.display())]
    NotRegular {
        /// The path.
        path: PathBuf,
    },
    /// Group or world have a right to the file.
    #[error("the key file {} is open to others (mode {mode:04o}): run `chmod 400 {}`", .path.display(), .path.display())]
    Loose {
        /// The path.
        path: PathBuf,
        /// The mode found.
        mode: u32,
    },
    /// More or fewer bytes than a key has.
    #[error("the key file {} has {found} bytes, and a key is exactly {KEY_BYTES} raw bytes, neither hexadecimal nor base64", .path.display())]
    Size {
        /// The path.
        path: PathBuf,
        /// Bytes found.
        found: u64,
    },
    /// This user may not read the file.
    #[error("the key file {} may not be read by the user of this process: {source}", .path.display())]
    Unreadable {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system failed otherwise.
    #[error("cannot read the key file {}: {source}", .path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Reads a key file.
///
/// # Errors
/// One variant of [`KeyFileError`] for each thing that can be wrong. No error has a byte of the key.
pub fn read_key_file(path: &Path) -> Result<WrappingKey, KeyFileError> {
    // NONBLOCK: opening a pipe that was put there must not wait for its other end.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = rustix::fs::open(path, flags, Mode::empty());
    let file = File::from(opened.map_err(|errno| refusal(errno, path))?);
    let size = check(&file, path)?;
    read_exactly(file, path, size)
}

/// Judges the open file, so that a name that changes meanwhile cannot lead elsewhere.
fn check(file: &File, path: &Path) -> Result<u64, KeyFileError> {
    let found = file.metadata().map_err(|source| KeyFileError::Io {
        path: path.to_path_buf(),
        source,
    })?;
    let path = path.to_path_buf();
    let mode = found.mode() & 0o7777;
    if found.is_dir() {
        Err(KeyFileError::Directory { path })
    } else if !found.is_file() {
        Err(KeyFileError::NotRegular { path })
    } else if mode & OTHERS != 0 {
        Err(KeyFileError::Loose { path, mode })
    } else {
        Ok(found.len())
    }
}

/// Without a buffered reader, which would keep a copy that nobody wipes.
fn read_exactly(mut file: File, path: &Path, size: u64) -> Result<WrappingKey, KeyFileError> {
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    let wrong_size = |found| KeyFileError::Size {
        path: path.to_path_buf(),
        found,
    };
    if size != KEY_BYTES as u64 {
        return Err(wrong_size(size));
    }
    match file.read_exact(bytes.as_mut_slice()) {
        Ok(()) => Ok(WrappingKey::from_bytes(&bytes)),
        // It was cut after its length was read.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(wrong_size(
            file.metadata().map_or(0, |metadata| metadata.len()),
        )),
        Err(source) => Err(KeyFileError::Io {
            path: path.to_path_buf(),
            source,
        }),
    }
}

fn refusal(errno: Errno, path: &Path) -> KeyFileError {
    let path = path.to_path_buf();
    match errno {
        Errno::NOENT | Errno::NOTDIR => KeyFileError::Missing { path },
        Errno::NXIO | Errno::NODEV => KeyFileError::NotRegular { path },
        Errno::ACCESS | Errno::PERM => KeyFileError::Unreadable {
            path,
            source: errno.into(),
        },
        errno => KeyFileError::Io {
            path,
            source: errno.into(),
        },
    }
}

#[cfg(test)]
#[path = "key_file_tests.rs"]
mod tests;
