//! The sidecar manifest of a protected file: its wrapped keys, and what they are bound to.
//!
//! Must not know what a provider does. Two things authenticate a manifest: providers bind each wrapped
//! key to the fields beside it, and a tag under the current data-encryption key covers everything,
//! the absence of a pending key included, whatever the provider can bind.

use std::path::PathBuf;

use futures_util::future::join;
use hmac::Mac;

use crate::context::{FileId, KeyContext, KeyRole};
use crate::key::{Dek, Entropy};
use crate::provider::{KeyError, KeyProvider, WrappedKey};
use crate::subject::Subject;

mod file;
mod format;

pub use file::manifest_path;
pub(crate) use file::{ENDING, Replacement, TEMP_ENDING};
pub use format::{MAX_MANIFEST_BYTES, ManifestFault};

/// Length of a manifest's tag in bytes.
const TAG_BYTES: usize = 32;

/// Why a manifest cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// There is none.
    #[error("the sidecar manifest is missing: {} should be beside {}. If that file is in plain text, stop the server and run `{remedy}`; if it is encrypted, restore the manifest from the backup of the file", .path.display(), .file.display())]
    Missing {
        /// Where the manifest should be.
        path: PathBuf,
        /// The protected file.
        file: PathBuf,
        /// The command for a file in plain text.
        remedy: String,
    },
    /// There is one already, and it is not overwritten: with it, the data would be lost.
    #[error("there is a manifest at {} already; it is not overwritten, since its file cannot be opened without it", .path.display())]
    Exists {
        /// Where it is.
        path: PathBuf,
    },
    /// A link, a directory or something else that is no regular file.
    #[error("the manifest {} is not a regular file; links are not followed", .path.display())]
    NotRegular {
        /// Where it is.
        path: PathBuf,
    },
    /// Not a manifest of this version.
    #[error("the manifest {} cannot be used: {fault}", .path.display())]
    Invalid {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with it.
        fault: ManifestFault,
    },
    /// A good manifest of another file.
    #[error(
        "the manifest belongs to {found}, and the file is {expected}: file and manifest were mixed up"
    )]
    Foreign {
        /// The subject of the file.
        expected: String,
        /// The subject that the manifest names.
        found: String,
    },
    /// The wrapped keys are good, and something else in the manifest was changed.
    #[error(
        "the manifest of {subject} was changed: its tag does not authenticate. Restore file and manifest from one backup"
    )]
    Tampered {
        /// The subject of the file.
        subject: String,
    },
    /// A rotation is in progress already.
    #[error("a rotation of the key of {subject} is in progress: finish or abandon it first")]
    RotationPending {
        /// The subject of the file.
        subject: String,
    },
    /// There is no rotation to finish.
    #[error("no rotation of the key of {subject} is in progress")]
    NoRotation {
        /// The subject of the file.
        subject: String,
    },
    /// A provider gave another key back than it was given.
    #[error("the new key provider does not give the key of {subject} back; nothing was changed")]
    NotRewrapped {
        /// The subject of the file.
        subject: String,
    },
    /// The provider did not wrap or unwrap.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// No random bytes.
    #[error(transparent)]
    Entropy(#[from] Entropy),
    /// The manifest could not be written as JSON.
    #[error("the manifest cannot be written as JSON: {0}")]
    Encode(#[source] serde_json::Error),
    /// The system failed.
    #[error("cannot {action} {}: {source}", .path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
}

/// The manifest of one file. Nothing in it is secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    subject: Subject,
    file_id: FileId,
    created_at: u64,
    current: WrappedKey,
    pending: Option<WrappedKey>,
    tag: [u8; TAG_BYTES],
}

/// The data-encryption keys of a manifest.
#[derive(Debug)]
pub struct Unlocked {
    /// What the file is encrypted with, unless a rotation was interrupted.
    pub current: Dek,
    /// What a rotation in progress re-encrypts the file with: try it when `current` does not fit.
    pub pending: Option<Dek>,
}

impl Manifest {
    /// Makes the manifest of a new file, and the key to encrypt it with. `created_at` is in seconds
    /// since 1970. Nothing is written: see [`Manifest::write_new`].
    ///
    /// # Errors
    /// [`ManifestError::Key`], [`ManifestError::Entropy`].
    pub async fn create(
        provider: &dyn KeyProvider,
        subject: Subject,
        created_at: u64,
    ) -> Result<(Self, Dek), ManifestError> {
        let context = KeyContext {
            file_id: FileId::generate()?,
            cipher: subject.cipher(),
            created_at,
            role: KeyRole::Current,
            subject,
        };
        let (dek, current) = provider.generate_key(&context).await?;
        let manifest = Self {
            subject: context.subject,
            file_id: context.file_id,
            created_at,
            current,
            pending: None,
            tag: [0; TAG_BYTES],
        };
        Ok((manifest.tagged(&dek), dek))
    }

    /// Unwraps the keys, after checking that this is the manifest of `subject`.
    ///
    /// # Errors
    /// [`ManifestError::Foreign`], [`ManifestError::Key`] with the wrong key told from a changed
    /// manifest, [`ManifestError::Tampered`].
    pub async fn unlock(
        &self,
        provider: &dyn KeyProvider,
        subject: &Subject,
    ) -> Result<Unlocked, ManifestError> {
        if self.subject != *subject {
            return Err(ManifestError::Foreign {
                expected: subject.to_string(),
                found: self.subject.to_string(),
            });
        }
        let (current, pending) = self.unwrapped(provider).await;
        let current = current?;
        let tag = current.manifest_mac(&self.authenticated());
        if tag.verify(&self.tag.into()).is_err() {
            return Err(ManifestError::Tampered {
                subject: self.subject.to_string(),
            });
        }
        let pending = pending.transpose()?;
        Ok(Unlocked { current, pending })
    }

    /// Both keys at the same time, so that a key service that is slow is waited for once.
    async fn unwrapped(
        &self,
        provider: &dyn KeyProvider,
    ) -> (Result<Dek, KeyError>, Option<Result<Dek, KeyError>>) {
        let context = self.context(KeyRole::Current);
        let current = provider.unwrap_key(&context, &self.current);
        let context = self.context(KeyRole::Pending);
        match &self.pending {
            Some(wrapped) => {
                let (current, pending) =
                    join(current, provider.unwrap_key(&context, wrapped)).await;
                (current, Some(pending))
            }
            None => (current.await, None),
        }
    }

    /// A manifest with a pending key beside the current one, and both keys: the first step of
    /// giving the file a new key. [`Manifest::replace`] it before the file is touched.
    ///
    /// # Errors
    /// As [`Manifest::unlock`], and [`ManifestError::RotationPending`].
    pub async fn begin_rotation(
        &self,
        provider: &dyn KeyProvider,
        subject: &Subject,
    ) -> Result<(Self, Unlocked), ManifestError> {
        let keys = self.unlock(provider, subject).await?;
        if keys.pending.is_some() {
            return Err(ManifestError::RotationPending {
                subject: self.subject.to_string(),
            });
        }
        let context = self.context(KeyRole::Pending);
        let (dek, wrapped) = provider.generate_key(&context).await?;
        let mut next = self.clone();
        next.pending = Some(wrapped);
        let next = next.tagged(&keys.current);
        let pending = Some(dek);
        Ok((next, Unlocked { pending, ..keys }))
    }

    /// A manifest whose pending key is the current one: the last step, when the whole file is
    /// encrypted with it.
    ///
    /// # Errors
    /// As [`Manifest::unlock`], and [`ManifestError::NoRotation`].
    pub async fn finish_rotation(
        &self,
        provider: &dyn KeyProvider,
        subject: &Subject,
    ) -> Result<Self, ManifestError> {
        let keys = self.unlock(provider, subject).await?;
        let dek = keys.pending.ok_or_else(|| self.no_rotation())?;
        let context = self.context(KeyRole::Current);
        let mut next = self.clone();
        let pending = next.pending.take().ok_or_else(|| self.no_rotation())?;
        next.current = provider.change_role(&context, &pending, &dek).await?;
        Ok(next.tagged(&dek))
    }

    /// A manifest without the pending key: the way back, when no part of the file was encrypted
    /// with it.
    ///
    /// # Errors
    /// As [`Manifest::unlock`], and [`ManifestError::NoRotation`].
    pub async fn abandon_rotation(
        &self,
        provider: &dyn KeyProvider,
        subject: &Subject,
    ) -> Result<Self, ManifestError> {
        let keys = self.unlock(provider, subject).await?;
        keys.pending.ok_or_else(|| self.no_rotation())?;
        let mut next = self.clone();
        next.pending = None;
        Ok(next.tagged(&keys.current))
    }

    /// A manifest whose keys are under the key of `new` in place of that of `old`; the data-encryption
    /// keys stay, a pending one too. Within one key service this is done there
    /// ([`KeyProvider::rewrap_key`]).
    ///
    /// Before it is given back, the new provider has unwrapped what it wrapped: a key that encrypts
    /// and does not decrypt would otherwise lose the file.
    ///
    /// # Errors
    /// As [`Manifest::unlock`] for `old`, [`ManifestError::Key`] for `new`, and
    /// [`ManifestError::NotRewrapped`].
    pub async fn rewrap(
        &self,
        old: &dyn KeyProvider,
        new: &dyn KeyProvider,
        subject: &Subject,
    ) -> Result<Self, ManifestError> {
        let keys = self.unlock(old, subject).await?;
        let within =
            old.name() == new.name() && old.service().is_some() && old.service() == new.service();
        let mut next = self.clone();
        let places = [
            (
                KeyRole::Current,
                Some(&mut next.current),
                Some(&keys.current),
            ),
            (
                KeyRole::Pending,
                next.pending.as_mut(),
                keys.pending.as_ref(),
            ),
        ];
        for (role, place, dek) in places {
            let (Some(place), Some(dek)) = (place, dek) else {
                continue;
            };
            let context = self.context(role);
            *place = if within {
                new.rewrap_key(&context, place, dek).await?
            } else {
                new.wrap_key(&context, dek).await?
            };
            if new.unwrap_key(&context, place).await? != *dek {
                return Err(ManifestError::NotRewrapped {
                    subject: self.subject.to_string(),
                });
            }
        }
        Ok(next.tagged(&keys.current))
    }

    fn no_rotation(&self) -> ManifestError {
        ManifestError::NoRotation {
            subject: self.subject.to_string(),
        }
    }

    /// The subject that the manifest names. It is what it says only once it was unlocked.
    #[must_use]
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// The id of the file, which its pages are bound to.
    #[must_use]
    pub fn file_id(&self) -> FileId {
        self.file_id
    }

    /// When the manifest was made, in seconds since 1970.
    #[must_use]
    pub fn created_at(&self) -> u64 {
        self.created_at
    }

    /// The wrapped current key: it names provider and wrapping key.
    #[must_use]
    pub fn current(&self) -> &WrappedKey {
        &self.current
    }

    /// The wrapped key of a rotation in progress.
    #[must_use]
    pub fn pending(&self) -> Option<&WrappedKey> {
        self.pending.as_ref()
    }

    fn context(&self, role: KeyRole) -> KeyContext {
        KeyContext {
            subject: self.subject.clone(),
            file_id: self.file_id,
            cipher: self.subject.cipher(),
            created_at: self.created_at,
            role,
        }
    }

    fn tagged(mut self, current: &Dek) -> Self {
        let tag = current.manifest_mac(&self.authenticated());
        self.tag = tag.finalize().into_bytes().into();
        self
    }

    /// Everything but the tag.
    fn authenticated(&self) -> Vec<u8> {
        let mut fields = self.context(KeyRole::Current).header("nimbus-enc manifest");
        for key in [Some(&self.current), self.pending.as_ref()]
            .into_iter()
            .flatten()
        {
            fields.text(&key.provider);
            fields.text(&key.key_id);
            fields.text(&key.algorithm);
            fields.bytes(&key.bytes);
        }
        fields.0
    }
}

#[cfg(test)]
#[path = "manifest/tests.rs"]
mod tests;
