//! The sidecar manifest of an encrypted file (`nimbus-crypto`, `manifest/format.rs`): one text for each
//! content, nothing unlocks but what was written, and an error is short and safe to print.

use futures_util::FutureExt;
use nimbus_crypto::{Manifest, MasterKeyFile, Unlocked, WrappingKey};

/// Members of the file.
pub const WORDS: &[&str] = &[
    "\"format\": \"nimbus-enc\",",
    "\"version\": 1,",
    "\"subject\": \"db:redb:control:nimbus-control.db\",",
    "\"cipher\": \"sqlcipher-4\",",
    "\"createdAt\": 18446744073709551615,",
    "\"provider\": \"aws-kms\",",
    "\"algorithm\": \"aes-256-gcm-siv\",",
    "\"wrappedKey\": \"AA==\"",
    "\"pending\": null,",
    "{\n  ",
    "\n    ",
    "\\u0000",
];

/// A manifest with a pending key, under the master key of 32 ones.
const GOOD: &[u8] = include_bytes!("../../corpus/manifest/rotating");
/// Bytes of an input that say what to change: where, and how much is taken away.
const RECIPE: usize = 4;
/// Longest error in bytes.
const MESSAGE: usize = 700;

/// Checks the bytes as a manifest, and as a change of a good one.
pub fn check(data: &[u8]) {
    as_manifest(data);
    let Some((recipe, fresh)) = data.split_first_chunk::<RECIPE>() else {
        return;
    };
    let [a, b, c, d] = *recipe;
    let from = usize::from(u16::from_be_bytes([a, b])) % (GOOD.len() + 1);
    let taken = usize::from(u16::from_be_bytes([c, d])) % (GOOD.len() - from + 1);
    let mut changed = GOOD.to_vec();
    changed.splice(from..from + taken, fresh.iter().copied());
    as_manifest(&changed);
}

fn as_manifest(data: &[u8]) {
    let manifest = match Manifest::decode(data) {
        Ok(manifest) => manifest,
        Err(fault) => return printable(&fault.to_string()),
    };
    let written = manifest.encode().expect("a manifest is JSON");
    assert_eq!(written, data, "the form is not canonical");
    assert_eq!(unlocked(&manifest).is_some(), data == GOOD, "forged");
}

fn unlocked(manifest: &Manifest) -> Option<Unlocked> {
    let provider = MasterKeyFile::new(WrappingKey::from_bytes(&[1; 32]));
    let unlocking = manifest.unlock(&provider, manifest.subject());
    let outcome = unlocking
        .now_or_never()
        .expect("a local provider answers at once");
    if let Err(error) = &outcome {
        printable(&error.to_string());
    }
    outcome.ok()
}

fn printable(message: &str) {
    // A key id of 512 bytes and the configured one may both be repeated.
    assert!(message.len() <= MESSAGE, "{} bytes", message.len());
    assert!(!message.contains(char::is_control), "{message:?}");
}
