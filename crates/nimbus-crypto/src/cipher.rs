//! The ciphers of protected files, by the names that manifests give them.
//!
//! Must not know how a cipher works: SQLCipher is in SQLite, the others in modules of their own.

use std::fmt;

/// How a file is encrypted under its data-encryption key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Cipher {
    /// SQLCipher with the defaults of its version 4 and the key given raw.
    SqlCipher4,
    /// Pages of 4,096 bytes, each under AES-256-GCM-SIV with a nonce of its own.
    Aes256GcmSivPages,
    /// A sealed stream: see [`crate::SealedWriter`].
    XChaCha20Poly1305Stream,
}

impl Cipher {
    /// The name in a manifest.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SqlCipher4 => "sqlcipher-4",
            Self::Aes256GcmSivPages => "aes-256-gcm-siv-pages",
            Self::XChaCha20Poly1305Stream => "xchacha20-poly1305-stream",
        }
    }

    /// The cipher of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [
            Self::SqlCipher4,
            Self::Aes256GcmSivPages,
            Self::XChaCha20Poly1305Stream,
        ]
        .into_iter()
        .find(|cipher| cipher.name() == name)
    }
}

impl fmt::Display for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
