//! The provider `key-dir`: one key file for each subject.
//!
//! Must not know how keys are wrapped. It keeps no key: each call reads its file and wipes it.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{DirectoryFault, KeyError, KeyFuture, KeyProvider, WrappedKey, wrap};
use crate::context::KeyContext;
use crate::key::{Dek, WrappingKey};
use crate::key_file::read_key_file;
use crate::subject::Subject;

/// Bits that the directory must not have: whoever may change it could choose the keys of new files.
const OTHERS_WRITE: u32 = 0o022;

/// The provider `key-dir`: a directory with one wrapping key for each subject, named by
/// [`Subject::key_file_name`].
///
/// Its calls read 32 bytes from the directory, on the thread that polls them.
#[derive(Debug)]
pub struct KeyDir {
    path: PathBuf,
}

impl KeyDir {
    /// The provider's name.
    pub const NAME: &'static str = "key-dir";

    /// Checks that the directory is there, can be read and cannot be changed by others.
    ///
    /// # Errors
    /// [`KeyError::Directory`].
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        let refuse = |fault| KeyError::Directory {
            path: path.to_path_buf(),
            fault,
        };
        let found = fs::metadata(path).map_err(|error| {
            refuse(match error.kind() {
                io::ErrorKind::NotFound => DirectoryFault::Missing,
                _ => DirectoryFault::Io(error),
            })
        })?;
        if !found.is_dir() {
            return Err(refuse(DirectoryFault::NotDirectory));
        }
        let mode = found.mode() & 0o7777;
        if mode & OTHERS_WRITE != 0 {
            return Err(refuse(DirectoryFault::Loose { mode }));
        }
        fs::read_dir(path).map_err(|error| refuse(DirectoryFault::Io(error)))?;
        Ok(Self {
            path: path.to_path_buf(),
        })
    }

    fn key(&self, subject: &Subject) -> Result<WrappingKey, KeyError> {
        Ok(read_key_file(&self.path.join(subject.key_file_name()?))?)
    }
}

impl KeyProvider for KeyDir {
    fn name(&self) -> &str {
        Self::NAME
    }

    /// The fingerprint of the subject's key file, which is read.
    fn key_id<'a>(&'a self, subject: &'a Subject) -> KeyFuture<'a, String> {
        Box::pin(async move { Ok(self.key(subject)?.fingerprint().to_string()) })
    }

    fn wrap_key<'a>(&'a self, context: &'a KeyContext, dek: &'a Dek) -> KeyFuture<'a, WrappedKey> {
        Box::pin(async move {
            let key = self.key(&context.subject)?;
            wrap::wrap(&key, Self::NAME, &key.fingerprint(), context, dek)
        })
    }

    fn unwrap_key<'a>(
        &'a self,
        context: &'a KeyContext,
        wrapped: &'a WrappedKey,
    ) -> KeyFuture<'a, Dek> {
        Box::pin(async move {
            // A foreign manifest is told without looking for a key file that need not be there.
            wrap::check_provider(Self::NAME, context, wrapped)?;
            let key = self.key(&context.subject)?;
            wrap::unwrap(&key, Self::NAME, &key.fingerprint(), context, wrapped)
        })
    }
}
