//! The token file (`nimbus-auth`, `token/format.rs`): read strictly, written so that it reads back
//! the same, and never repeated in an error, since it holds a secret.

use nimbus_auth::fuzzing::{decode_token, encode_token};

/// Members of the file.
pub const WORDS: &[&str] = &[
    "\"version\": 1,",
    "\"token\": \"nimbus_at_",
    "nimbus_at_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    "\"generation\": 18446744073709551615,",
    "\"issuedAt\": \"2026-11-22T03:27:15Z\",",
    "\"rotatedAt\": null,",
    "\"scope\": \"local-admin\"",
    "\\u006e",
    "2026-11-22T03:27:15.5+14:00",
    "null",
];

/// Most bytes in a row that an error may repeat: a field name.
const ECHO: usize = 32;

/// Checks the bytes as the content of a token file.
pub fn check(data: &[u8]) {
    let file = match decode_token(data) {
        Ok(file) => file,
        Err(fault) => return silent(&fault.to_string(), data),
    };
    assert!(file.generation() > 0);
    let secret = file.token().expose_secret();
    assert!(!format!("{file:?}").contains(&secret["nimbus_at_".len()..]));
    let written = encode_token(&file).expect("a token file is JSON");
    let again = decode_token(&written).unwrap_or_else(|e| panic!("does not read back: {e}"));
    assert_eq!(again.token().expose_secret(), secret);
    assert_eq!(again.generation(), file.generation());
    assert_eq!(again.issued_at(), file.issued_at());
    assert_eq!(again.rotated_at(), file.rotated_at());
    let twice = encode_token(&again).expect("a token file is JSON");
    assert_eq!(*twice, *written, "the form is not canonical");
}

fn silent(message: &str, data: &[u8]) {
    let message = message.as_bytes();
    let repeats = message.windows(ECHO + 1).any(|part| {
        // Our own words may stand in the file as well.
        let secret = part
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"-_".contains(b));
        secret && data.windows(part.len()).any(|other| other == part)
    });
    assert!(!repeats, "{}", String::from_utf8_lossy(message));
}
