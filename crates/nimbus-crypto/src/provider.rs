//! Key providers: who wraps and unwraps data-encryption keys.
//!
//! The trait is asynchronous because a key service is a network call away; the local providers
//! answer at once. A provider must not know where manifests lie or what a file holds.

use std::fmt;
use std::pin::Pin;

use crate::context::KeyContext;
use crate::key::Dek;
use crate::subject::Subject;

#[cfg(feature = "aws-kms")]
mod aws_kms;
mod error;
mod key_dir;
mod kms_fault;
mod master_key_file;
mod wrap;

#[cfg(feature = "aws-kms")]
pub use aws_kms::{AwsKms, AwsKmsOptions};
pub use error::{DirectoryFault, KeyError};
pub use key_dir::KeyDir;
pub use kms_fault::KmsFault;
pub use master_key_file::MasterKeyFile;
pub use wrap::{AES_256_GCM_SIV, WRAPPED_BYTES};

/// What a provider's call gives, later.
pub type KeyFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, KeyError>> + Send + 'a>>;

/// A data-encryption key as a manifest holds it. Nothing here is secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrappedKey {
    /// [`KeyProvider::name`] of the provider that wrapped it.
    pub provider: String,
    /// Which of the provider's keys wrapped it: a fingerprint, or the id in a key service; never a
    /// path, since key files may move.
    pub key_id: String,
    /// How it is wrapped, such as [`AES_256_GCM_SIV`].
    pub algorithm: String,
    /// The wrapped key.
    pub bytes: Vec<u8>,
}

/// Wraps and unwraps data-encryption keys.
///
/// There is a call that makes a key beside the one that wraps one, because a key service hands out
/// new keys and does not need the right to encrypt given ones.
pub trait KeyProvider: Send + Sync + fmt::Debug {
    /// The provider's name in manifests and on the command line: visible ASCII, at most 512 bytes,
    /// as are the other names in a [`WrappedKey`].
    fn name(&self) -> &str;

    /// The [`WrappedKey::key_id`] that keys of this subject are wrapped under now. An error says
    /// that none could be wrapped, so this is also how to check a key before relying on it.
    fn key_id<'a>(&'a self, subject: &'a Subject) -> KeyFuture<'a, String>;

    /// Makes a new data-encryption key and wraps it.
    fn generate_key<'a>(&'a self, context: &'a KeyContext) -> KeyFuture<'a, (Dek, WrappedKey)> {
        Box::pin(async move {
            let dek = Dek::generate()?;
            let wrapped = self.wrap_key(context, &dek).await?;
            Ok((dek, wrapped))
        })
    }

    /// Wraps a data-encryption key, bound to `context` as [`KeyContext`] says.
    fn wrap_key<'a>(&'a self, context: &'a KeyContext, dek: &'a Dek) -> KeyFuture<'a, WrappedKey>;

    /// Unwraps a key that was wrapped for exactly this context.
    fn unwrap_key<'a>(
        &'a self,
        context: &'a KeyContext,
        wrapped: &'a WrappedKey,
    ) -> KeyFuture<'a, Dek>;

    /// The same key, which this provider unwrapped just now, for the other place of its manifest:
    /// `to` differs from its context in the role alone. A provider that does not bind the role
    /// gives `wrapped` back.
    fn change_role<'a>(
        &'a self,
        to: &'a KeyContext,
        wrapped: &'a WrappedKey,
        dek: &'a Dek,
    ) -> KeyFuture<'a, WrappedKey> {
        let _ = wrapped;
        self.wrap_key(to, dek)
    }

    /// Which service the keys are in, such as a region and an endpoint; `None` for keys that are
    /// here. Between two providers of one name and one service, [`KeyProvider::rewrap_key`] is
    /// given keys that the other one wrapped.
    fn service(&self) -> Option<&str> {
        None
    }

    /// Brings a key under this provider's own key. Another provider of the same name and
    /// [`KeyProvider::service`] wrapped it as `wrapped`, and unwrapped it to `dek` just now.
    fn rewrap_key<'a>(
        &'a self,
        context: &'a KeyContext,
        wrapped: &'a WrappedKey,
        dek: &'a Dek,
    ) -> KeyFuture<'a, WrappedKey> {
        let _ = wrapped;
        self.wrap_key(context, dek)
    }
}

#[cfg(test)]
#[path = "provider_tests.rs"]
mod tests;
