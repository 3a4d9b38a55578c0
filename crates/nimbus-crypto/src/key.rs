//! Key material: data-encryption keys, wrapping keys and their fingerprints.
//!
//! A key lies in one place on the heap, wiped when it is dropped, and can be neither printed,
//! cloned nor serialised. This room must not know where keys come from or what they protect.

use std::fmt;

use aes_gcm_siv::{Aes256GcmSiv, KeyInit};
use chacha20poly1305::XChaCha20Poly1305;
use data_encoding::HEXLOWER;
use hkdf::Hkdf;
use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use subtle::{Choice, ConstantTimeEq};
use zeroize::Zeroizing;

use crate::subject::Subject;

/// Length of every key in bytes.
pub const KEY_BYTES: usize = 32;

/// Block length of SHA-256 in bytes.
const BLOCK_BYTES: usize = 64;
/// What a fingerprint begins with; it names the hash.
const FINGERPRINT_PREFIX: &str = "sha256:";
/// Sets fingerprints apart from every other hash of a key.
const FINGERPRINT_LABEL: &[u8] = b"nimbus wrapping key fingerprint v1\0";
/// Sets the wrapping keys that a master key yields apart from its other uses.
const SUBJECT_LABEL: &[u8] = b"nimbus wrapping key v1\0";
/// Sets the key that authenticates a manifest apart from the one that encrypts pages.
const MANIFEST_LABEL: &[u8] = b"nimbus manifest authentication v1\0";
/// Sets the key of sealed streams apart from the one that encrypts pages.
const STREAM_LABEL: &[u8] = b"nimbus sealed stream v1\0";

/// The operating system gave no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("the operating system gave no random bytes: {0}")]
pub struct Entropy(#[source] getrandom::Error);

/// Random bytes from the operating system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], Entropy> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(Entropy)?;
    Ok(bytes)
}

/// 32 secret bytes. Boxed, so that moving a key leaves no copy behind.
struct Secret(Box<Zeroizing<[u8; KEY_BYTES]>>);

impl Secret {
    /// Zeros, to be filled in place.
    fn empty() -> Self {
        Self(Box::new(Zeroizing::new([0; KEY_BYTES])))
    }

    fn generate() -> Result<Self, Entropy> {
        let mut secret = Self::empty();
        getrandom::fill(secret.0.as_mut_slice()).map_err(Entropy)?;
        Ok(secret)
    }

    fn copy_of(bytes: &[u8; KEY_BYTES]) -> Self {
        let mut secret = Self::empty();
        secret.0.copy_from_slice(bytes);
        secret
    }

    /// HKDF-SHA256 (RFC 5869) without salt. 32 bytes are one block, so expanding cannot fail.
    fn derive(&self, info: &[&[u8]]) -> Self {
        let mut derived = Self::empty();
        let hkdf = Hkdf::<Sha256>::new(None, self.0.as_slice());
        let expanded = hkdf.expand_multi_info(info, derived.0.as_mut_slice());
        debug_assert!(expanded.is_ok());
        derived
    }

    fn aead(&self) -> Aes256GcmSiv {
        Aes256GcmSiv::new((&**self.0).into())
    }
}

macro_rules! secret {
    ($type:ident) => {
        impl $type {
            /// A new key from the operating system's randomness.
            ///
            /// # Errors
            /// When the operating system gives none.
            pub fn generate() -> Result<Self, Entropy> {
                Secret::generate().map(Self)
            }

            /// Takes a copy of key bytes; the caller wipes its own.
            #[must_use]
            pub fn from_bytes(bytes: &[u8; KEY_BYTES]) -> Self {
                Self(Secret::copy_of(bytes))
            }
        }

        impl ConstantTimeEq for $type {
            fn ct_eq(&self, other: &Self) -> Choice {
                self.0.0.as_slice().ct_eq(other.0.0.as_slice())
            }
        }

        /// In constant time.
        impl PartialEq for $type {
            fn eq(&self, other: &Self) -> bool {
                self.ct_eq(other).into()
            }
        }

        impl Eq for $type {}

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($type), "(redacted)"))
            }
        }
    };
}

/// The data-encryption key of one file.
///
/// It is wiped when it is dropped, compared in constant time, and `Debug` does not show it. It can
/// be neither cloned nor printed nor serialised:
///
/// ```compile_fail,E0599
/// let key = nimbus_crypto::Dek::generate().unwrap();
/// let copy: nimbus_crypto::Dek = key.clone();
/// ```
/// ```compile_fail,E0277
/// let key = nimbus_crypto::Dek::generate().unwrap();
/// println!("{key}");
/// ```
/// ```compile_fail,E0277
/// let key = nimbus_crypto::Dek::generate().unwrap();
/// let text = serde_json::to_string(&key);
/// ```
pub struct Dek(Secret);
secret!(Dek);

impl Dek {
    /// The bytes, for the cipher that encrypts the file. Copies are the caller's to wipe.
    #[must_use]
    pub fn expose_secret(&self) -> &[u8; KEY_BYTES] {
        &self.0.0
    }

    /// HMAC-SHA256 over a message under a key that is derived from this one for manifests alone.
    pub(crate) fn manifest_mac(&self, message: &[u8]) -> Hmac<Sha256> {
        let key = self.0.derive(&[MANIFEST_LABEL]);
        // The inherent way takes a key of one block; ours is shorter, and HMAC pads with zeros.
        let mut block = Zeroizing::new([0; BLOCK_BYTES]);
        block[..KEY_BYTES].copy_from_slice(key.0.as_slice());
        let mut mac = <Hmac<Sha256> as KeyInit>::new((&*block).into());
        mac.update(message);
        mac
    }

    /// The AEAD of sealed streams, under a key that is derived from this one for them alone.
    pub(crate) fn stream_aead(&self) -> XChaCha20Poly1305 {
        let key = self.0.derive(&[STREAM_LABEL]);
        XChaCha20Poly1305::new((&**key.0).into())
    }

    /// The AEAD of the page cipher.
    pub(crate) fn aead(&self) -> Aes256GcmSiv {
        self.0.aead()
    }
}

/// A key that wraps data-encryption keys: the content of a key file, or derived from one.
///
/// As secret as [`Dek`], and its bytes are not shown at all.
pub struct WrappingKey(Secret);
secret!(WrappingKey);

impl WrappingKey {
    /// Which key this is, without saying what it is: a labelled SHA-256.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let hash = Sha256::new()
            .chain_update(FINGERPRINT_LABEL)
            .chain_update(self.0.0.as_slice());
        Fingerprint(format!(
            "{FINGERPRINT_PREFIX}{}",
            HEXLOWER.encode(&hash.finalize())
        ))
    }

    /// The wrapping key of one subject: HKDF-SHA256 of this key without salt, its info a label and
    /// the descriptor.
    #[must_use]
    pub fn for_subject(&self, subject: &Subject) -> Self {
        let info = [SUBJECT_LABEL, subject.descriptor().as_bytes()];
        Self(self.0.derive(&info))
    }

    pub(crate) fn aead(&self) -> Aes256GcmSiv {
        self.0.aead()
    }
}

/// Names a wrapping key in manifests and messages: `sha256:` and 64 hexadecimal digits. Not secret.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Fingerprint(String);

impl Fingerprint {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
#[path = "key_tests.rs"]
mod tests;
