//! Wrapping under a local key: AES-256-GCM-SIV with a random nonce, bound to the whole context.
//!
//! Must not know where the wrapping key comes from. A wrapped key is nonce, ciphertext and tag.

use aes_gcm_siv::Aes256GcmSiv;
use zeroize::Zeroizing;

use super::{KeyError, WrappedKey};
use crate::context::KeyContext;
use crate::key::{Dek, Fingerprint, KEY_BYTES, WrappingKey, random};
use crate::seal::{self, NONCE_BYTES, TAG_BYTES};

/// The name of the algorithm in manifests.
pub const AES_256_GCM_SIV: &str = "aes-256-gcm-siv";
/// Length of a wrapped key in bytes: nonce, key and tag.
pub const WRAPPED_BYTES: usize = NONCE_BYTES + KEY_BYTES + TAG_BYTES;

pub(super) fn wrap(
    key: &WrappingKey,
    provider: &str,
    id: &Fingerprint,
    context: &KeyContext,
    dek: &Dek,
) -> Result<WrappedKey, KeyError> {
    let aad = context.aad(provider, id.as_str(), AES_256_GCM_SIV);
    Ok(WrappedKey {
        provider: provider.to_owned(),
        key_id: id.as_str().to_owned(),
        algorithm: AES_256_GCM_SIV.to_owned(),
        bytes: seal_under(key, &aad, context, dek)?,
    })
}

/// Nonce, ciphertext and tag of a key under another one.
pub(super) fn seal_under(
    key: &WrappingKey,
    aad: &[u8],
    context: &KeyContext,
    dek: &Dek,
) -> Result<Vec<u8>, KeyError> {
    sealed(&key.aead(), random()?, aad, dek).ok_or_else(|| tampered(context))
}

/// What [`seal_under`] sealed.
pub(super) fn open_under(
    key: &WrappingKey,
    aad: &[u8],
    context: &KeyContext,
    wrapped: &[u8],
) -> Result<Dek, KeyError> {
    opened(&key.aead(), aad, wrapped).ok_or_else(|| tampered(context))
}

/// `None` only for lengths that do not occur here.
fn sealed(aead: &Aes256GcmSiv, nonce: [u8; NONCE_BYTES], aad: &[u8], dek: &Dek) -> Option<Vec<u8>> {
    let mut buffer = Zeroizing::new(*dek.expose_secret());
    let tag = seal::seal(aead, nonce, aad, buffer.as_mut_slice()).ok()?;
    Some([&nonce[..], buffer.as_slice(), &tag[..]].concat())
}

pub(super) fn unwrap(
    key: &WrappingKey,
    provider: &str,
    id: &Fingerprint,
    context: &KeyContext,
    wrapped: &WrappedKey,
) -> Result<Dek, KeyError> {
    check_provider(provider, context, wrapped)?;
    let subject = || context.subject.to_string();
    if wrapped.key_id != id.as_str() {
        return Err(KeyError::WrongKey {
            subject: subject(),
            expected: id.to_string(),
            found: wrapped.key_id.clone(),
        });
    }
    if wrapped.algorithm != AES_256_GCM_SIV {
        return Err(KeyError::Algorithm {
            subject: subject(),
            expected: AES_256_GCM_SIV,
            found: wrapped.algorithm.clone(),
        });
    }
    if wrapped.bytes.len() != WRAPPED_BYTES {
        return Err(KeyError::WrappedSize {
            subject: subject(),
            expected: WRAPPED_BYTES,
            found: wrapped.bytes.len(),
        });
    }
    let aad = context.aad(provider, id.as_str(), AES_256_GCM_SIV);
    open_under(key, &aad, context, &wrapped.bytes)
}

pub(super) fn check_provider(
    provider: &str,
    context: &KeyContext,
    wrapped: &WrappedKey,
) -> Result<(), KeyError> {
    if wrapped.provider == provider {
        return Ok(());
    }
    Err(KeyError::OtherProvider {
        subject: context.subject.to_string(),
        expected: provider.to_owned(),
        found: wrapped.provider.clone(),
    })
}

/// `None` when it does not authenticate or has not the length of a wrapped key.
fn opened(aead: &Aes256GcmSiv, aad: &[u8], wrapped: &[u8]) -> Option<Dek> {
    let (nonce, rest) = wrapped.split_first_chunk::<NONCE_BYTES>()?;
    let (sealed, tag) = rest.split_last_chunk::<TAG_BYTES>()?;
    let sealed: &[u8; KEY_BYTES] = sealed.try_into().ok()?;
    let mut buffer = Zeroizing::new(*sealed);
    seal::open(aead, *nonce, aad, buffer.as_mut_slice(), *tag).ok()?;
    Some(Dek::from_bytes(&buffer))
}

fn tampered(context: &KeyContext) -> KeyError {
    KeyError::Tampered {
        subject: context.subject.to_string(),
    }
}
