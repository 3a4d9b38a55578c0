//! AES-256-GCM-SIV as the page cipher uses it. With the feature `aws-lc` it is that of AWS-LC, which takes
//! about half the time for a page; without it, that of RustCrypto. Both give the same bytes.
//!
//! Must not know what a page is.

#[cfg(feature = "aws-lc")]
use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, Nonce, UnboundKey};

use aes_gcm_siv::Aes256GcmSiv;

use crate::key::Dek;
use crate::seal::{self, NONCE_BYTES, TAG_BYTES, Unauthentic};

/// A key, ready to be used. Wiped when it is dropped.
pub(super) enum PageAead {
    /// AWS-LC clears its memory when it frees it.
    #[cfg(feature = "aws-lc")]
    Fast(LessSafeKey),
    Portable(Box<Aes256GcmSiv>),
}

impl PageAead {
    pub(super) fn new(dek: &Dek) -> Self {
        #[cfg(feature = "aws-lc")]
        if let Ok(key) = UnboundKey::new(&AES_256_GCM_SIV, dek.expose_secret()) {
            return Self::Fast(LessSafeKey::new(key));
        }
        Self::portable(dek)
    }

    fn portable(dek: &Dek) -> Self {
        Self::Portable(Box::new(dek.aead()))
    }

    /// Encrypts `buffer` in place and gives its tag.
    pub(super) fn seal(
        &self,
        nonce: [u8; NONCE_BYTES],
        aad: &[u8],
        buffer: &mut [u8],
    ) -> Result<[u8; TAG_BYTES], Unauthentic> {
        match self {
            #[cfg(feature = "aws-lc")]
            Self::Fast(key) => {
                let nonce = Nonce::assume_unique_for_key(nonce);
                let tag = key.seal_in_place_separate_tag(nonce, Aad::from(aad), buffer);
                let tag = tag.map_err(|_| Unauthentic)?;
                tag.as_ref().try_into().map_err(|_| Unauthentic)
            }
            Self::Portable(aead) => seal::seal(aead, nonce, aad, buffer),
        }
    }

    /// Decrypts `sealed` into `plain`, which has its length; zeros when it is refused.
    pub(super) fn open(
        &self,
        nonce: [u8; NONCE_BYTES],
        aad: &[u8],
        (sealed, tag): (&[u8], [u8; TAG_BYTES]),
        plain: &mut [u8],
    ) -> Result<(), Unauthentic> {
        match self {
            #[cfg(feature = "aws-lc")]
            Self::Fast(key) => {
                let nonce = Nonce::assume_unique_for_key(nonce);
                let opened = key.open_separate_gather(nonce, Aad::from(aad), sealed, &tag, plain);
                opened.map_err(|_| {
                    // No unauthenticated byte gets out.
                    plain.fill(0);
                    Unauthentic
                })
            }
            Self::Portable(aead) => {
                plain.copy_from_slice(sealed);
                seal::open(aead, nonce, aad, plain, tag)
            }
        }
    }
}

#[cfg(all(test, feature = "aws-lc"))]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// What one seals the other opens, and refuses when a bit is changed.
    #[test]
    fn both_give_the_same_bytes() {
        let dek = Dek::generate().unwrap();
        let both = [PageAead::new(&dek), PageAead::portable(&dek)];
        assert!(matches!(both[0], PageAead::Fast(_)));
        for len in [0, 1, 16, 4096] {
            let page: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
            let sealed = both.each_ref().map(|aead| {
                let mut buffer = page.clone();
                let tag = aead
                    .seal([7; NONCE_BYTES], b"associated", &mut buffer)
                    .unwrap();
                (buffer, tag)
            });
            assert_eq!(sealed[0], sealed[1]);
            let (bytes, mut tag) = sealed[0].clone();
            for aead in &both {
                let mut plain = vec![1; len];
                let nonce = [7; NONCE_BYTES];
                aead.open(nonce, b"associated", (&bytes, tag), &mut plain)
                    .unwrap();
                assert_eq!(plain, page);
                assert!(
                    aead.open(nonce, b"other", (&bytes, tag), &mut plain)
                        .is_err()
                );
                assert!(plain.iter().all(|byte| *byte == 0));
            }
            tag[3] ^= 1;
            for aead in &both {
                let mut plain = vec![1; len];
                assert!(
                    aead.open([7; NONCE_BYTES], b"associated", (&bytes, tag), &mut plain)
                        .is_err()
                );
                assert!(plain.iter().all(|byte| *byte == 0));
            }
        }
    }
}
