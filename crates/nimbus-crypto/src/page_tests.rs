//! Tests of the page cipher: the vectors, every bit of a slot, and slots in the wrong place.

use data_encoding::HEXLOWER;
use proptest::prelude::*;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::*;

fn cipher(key: u8, file: u8) -> PageCipher {
    PageCipher::new(&Dek::from_bytes(&[key; 32]), FileId::from_bytes([file; 16]))
}

fn plain() -> [u8; PAGE_BYTES] {
    std::array::from_fn(|at| u8::try_from(at % 251).unwrap())
}

fn sealed(cipher: &PageCipher, page: u64) -> [u8; SLOT_BYTES] {
    let mut slot = [0; SLOT_BYTES];
    cipher.seal(page, &plain(), &mut slot).unwrap();
    slot
}

/// Asserts that opening is refused for the page and leaves nothing of it in the buffer.
fn refused(cipher: &PageCipher, page: u64, slot: &[u8; SLOT_BYTES]) {
    let mut buffer = [0xee; PAGE_BYTES];
    let error = cipher.open(page, slot, &mut buffer).unwrap_err();
    assert!(matches!(error, PageError::Unauthentic { page: found } if found == page));
    assert!(buffer.iter().all(|byte| *byte == 0));
}

fn vectors() -> Value {
    serde_json::from_str(include_str!("../vectors/pages.json")).unwrap()
}

/// The field of a vector as bytes.
fn bytes<const N: usize>(vector: &Value, name: &str) -> [u8; N] {
    let text = vector[name].as_str().unwrap();
    let bytes = HEXLOWER.decode(text.as_bytes()).unwrap();
    bytes.try_into().unwrap()
}

/// Cipher and page number of a vector.
fn of(vector: &Value) -> (PageCipher, u64) {
    let dek = Dek::from_bytes(&bytes(vector, "key"));
    let cipher = PageCipher::new(&dek, FileId::from_bytes(bytes(vector, "file_id")));
    (cipher, vector["page"].as_str().unwrap().parse().unwrap())
}

fn slot_of(vector: &Value) -> [u8; SLOT_BYTES] {
    let (cipher, page) = of(vector);
    let mut slot = [0; SLOT_BYTES];
    let nonce = bytes(vector, "nonce");
    cipher.seal_with(nonce, page, &plain(), &mut slot).unwrap();
    slot
}

#[test]
fn slots_match_the_vectors() {
    let vectors = vectors();
    let valid = vectors["valid"].as_array().unwrap();
    assert_eq!(valid.len(), 3);
    for vector in valid {
        let slot = slot_of(vector);
        assert_eq!(HEXLOWER.encode(&slot[..44]), vector["first_44_bytes"]);
        assert_eq!(HEXLOWER.encode(&slot[SLOT_BYTES - 16..]), vector["tag"]);
        let hash = HEXLOWER.encode(&Sha256::digest(slot));
        assert_eq!(hash, vector["slot_sha256"]);
        let (cipher, page) = of(vector);
        let mut buffer = [0; PAGE_BYTES];
        cipher.open(page, &slot, &mut buffer).unwrap();
        assert_eq!(buffer, plain());
    }
}

/// Each changes the first valid vector.
#[test]
fn invalid_vectors_are_refused() {
    let vectors = vectors();
    let invalid = vectors["invalid"].as_array().unwrap();
    assert_eq!(invalid.len(), 12);
    for vector in invalid {
        assert_eq!(vector["failure"], "unauthentic");
        let mut changed = vectors["valid"][0].clone();
        let mut slot = slot_of(&changed);
        for (name, value) in vector.as_object().unwrap() {
            match name.as_str() {
                "key" | "file_id" | "page" => changed[name] = value.clone(),
                "at" => {
                    let at = usize::try_from(value.as_u64().unwrap()).unwrap();
                    slot[at] ^= u8::try_from(vector["xor"].as_u64().unwrap()).unwrap();
                }
                "zero" => slot.fill(0),
                "name" | "failure" | "xor" => {}
                other => panic!("{other}"),
            }
        }
        let (cipher, page) = of(&changed);
        refused(&cipher, page, &slot);
    }
}

/// The copy of a vector, and what opens it.
fn copy_of(vector: &Value) -> (PageCipher, u8, [u8; COPY_BYTES]) {
    let dek = Dek::from_bytes(&bytes(vector, "key"));
    let cipher = PageCipher::new(&dek, FileId::from_bytes(bytes(vector, "file_id")));
    let (copy, nonce) = (copy_number(vector), bytes(vector, "nonce"));
    let mut out = [0; COPY_BYTES];
    let sealed = cipher.seal_copy_with(nonce, copy, counter(vector), &plain(), &mut out);
    sealed.unwrap();
    (cipher, copy, out)
}

fn copy_number(vector: &Value) -> u8 {
    u8::try_from(vector["copy"].as_u64().unwrap()).unwrap()
}

fn counter(vector: &Value) -> u64 {
    vector["counter"].as_str().unwrap().parse().unwrap()
}

fn copy_refused(cipher: &PageCipher, copy: u8, bytes: &[u8; COPY_BYTES]) {
    let mut buffer = [0xee; PAGE_BYTES];
    let error = cipher.open_copy(copy, bytes, &mut buffer).unwrap_err();
    assert!(matches!(error, PageError::Unauthentic { page: 0 }));
    assert!(buffer.iter().all(|byte| *byte == 0));
}

/// Made by another implementation (OpenSSL through Python's `cryptography`).
#[test]
fn copies_match_the_vectors() {
    let vectors = vectors();
    let valid = vectors["copies"].as_array().unwrap();
    assert_eq!(valid.len(), 3);
    for vector in valid {
        let (cipher, copy, bytes) = copy_of(vector);
        assert_eq!(HEXLOWER.encode(&bytes[..52]), vector["first_52_bytes"]);
        assert_eq!(HEXLOWER.encode(&bytes[COPY_BYTES - 16..]), vector["tag"]);
        let hash = HEXLOWER.encode(&Sha256::digest(bytes));
        assert_eq!(hash, vector["copy_sha256"]);
        let mut buffer = [0; PAGE_BYTES];
        let found = cipher.open_copy(copy, &bytes, &mut buffer).unwrap();
        assert_eq!((found, buffer), (counter(vector), plain()));
    }
}

/// Each changes the first vector of a copy.
#[test]
fn invalid_copies_are_refused() {
    let vectors = vectors();
    let invalid = vectors["invalid_copies"].as_array().unwrap();
    assert_eq!(invalid.len(), 12);
    for vector in invalid {
        assert_eq!(vector["failure"], "unauthentic");
        let mut opener = vectors["copies"][0].clone();
        let (_, _, mut bytes) = copy_of(&opener);
        for (name, value) in vector.as_object().unwrap() {
            match name.as_str() {
                "key" | "file_id" | "copy" => opener[name] = value.clone(),
                "counter" => bytes[..8].copy_from_slice(&counter(vector).to_be_bytes()),
                "at" => {
                    let at = usize::try_from(value.as_u64().unwrap()).unwrap();
                    bytes[at] ^= u8::try_from(vector["xor"].as_u64().unwrap()).unwrap();
                }
                "slot" => bytes[8..].copy_from_slice(&slot_of(&vectors["valid"][0])),
                "zero" => bytes.fill(0),
                "name" | "failure" | "xor" => {}
                other => panic!("{other}"),
            }
        }
        let (cipher, copy, _) = copy_of(&opener);
        copy_refused(&cipher, copy, &bytes);
    }
}

#[test]
fn every_byte_of_a_copy_counts() {
    let cipher = cipher(1, 1);
    let mut copy = [0; COPY_BYTES];
    cipher.seal_copy(1, 9, &plain(), &mut copy).unwrap();
    let opened = cipher.open_copy(1, &copy, &mut [0; PAGE_BYTES]);
    assert_eq!(opened.unwrap(), 9);
    for at in 0..COPY_BYTES {
        let mut changed = copy;
        changed[at] ^= 1 << (at % 8);
        copy_refused(&cipher, 1, &changed);
    }
}

/// Nor is a copy a slot of page 0.
#[test]
fn a_copy_is_no_slot() {
    let cipher = cipher(1, 1);
    let mut copy = [0; COPY_BYTES];
    cipher.seal_copy(0, 0, &plain(), &mut copy).unwrap();
    refused(&cipher, 0, &copy[8..].try_into().unwrap());
}

#[test]
fn every_bit_of_a_slot_counts() {
    let cipher = cipher(1, 1);
    let slot = sealed(&cipher, 5);
    for bit in 0..SLOT_BYTES * 8 {
        let mut changed = slot;
        changed[bit / 8] ^= 1 << (bit % 8);
        refused(&cipher, 5, &changed);
    }
}

#[test]
fn slots_fit_only_their_page_their_file_and_their_key() {
    let right = cipher(1, 1);
    for page in [0, 1, 255, u64::from(u32::MAX), u64::MAX] {
        let slot = sealed(&right, page);
        for other in [0, 1, 2, 255, 256, u64::from(u32::MAX), 1 << 32, u64::MAX] {
            if other != page {
                refused(&right, other, &slot);
            }
        }
        refused(&cipher(1, 2), page, &slot);
        refused(&cipher(2, 1), page, &slot);
        right.open(page, &slot, &mut [0; PAGE_BYTES]).unwrap();
    }
}

#[test]
fn a_slot_that_was_never_written_is_refused() {
    for page in [0, 1, u64::MAX] {
        refused(&cipher(1, 1), page, &[0; SLOT_BYTES]);
        refused(&cipher(0, 0), page, &[0; SLOT_BYTES]);
    }
}

#[test]
fn equal_pages_give_different_slots_without_a_trace_of_the_page() {
    let cipher = cipher(1, 1);
    let (one, two) = (sealed(&cipher, 5), sealed(&cipher, 5));
    assert_ne!(one[..NONCE_BYTES], two[..NONCE_BYTES]);
    assert_ne!(one[NONCE_BYTES..], two[NONCE_BYTES..]);
    let text = plain();
    assert!(!one.windows(8).any(|window| window == &text[..8]));
    assert!(format!("{cipher:?}").ends_with("redacted)"));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_is_sealed_opens(page: u64, bytes in proptest::collection::vec(any::<u8>(), PAGE_BYTES)) {
        let cipher = cipher(3, 4);
        let plain: [u8; PAGE_BYTES] = bytes.try_into().unwrap();
        let mut slot = [0; SLOT_BYTES];
        cipher.seal(page, &plain, &mut slot).unwrap();
        let mut opened = [0; PAGE_BYTES];
        cipher.open(page, &slot, &mut opened).unwrap();
        prop_assert_eq!(opened, plain);
    }
}
