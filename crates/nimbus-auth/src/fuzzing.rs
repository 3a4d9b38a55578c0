//! A door for the fuzz targets to formats that are private to this crate: the token file, the audit
//! line and the chain. Compiled with the feature `fuzzing` only, which the server never enables.
//!
//! It must not hold checks: those are in `fuzz/`.

use std::path::Path;

use zeroize::Zeroizing;

use crate::audit::{self, Anchor, AuditEntry, AuditError, ChainKey, Verification, line};
use crate::token::{TokenFault, TokenFile, format};

/// Reads the content of a token file, as loading it does once the file is open.
///
/// # Errors
/// What is wrong with it.
pub fn decode_token(bytes: &[u8]) -> Result<TokenFile, TokenFault> {
    TokenFile::parse(Path::new("token"), bytes)
}

/// Writes the content of a token file.
pub fn encode_token(file: &TokenFile) -> Option<Zeroizing<Vec<u8>>> {
    format::encode(file).ok()
}

/// The line of an entry, with its newline.
///
/// # Errors
/// `Encode`.
pub fn audit_line(entry: &AuditEntry<'_>) -> Result<Vec<u8>, AuditError> {
    let mut out = Vec::new();
    line::append(entry, 1, &mut out).map_err(AuditError::Encode)?;
    Ok(out)
}

/// A segment with these entries and the anchor behind its last line.
///
/// # Errors
/// `Encode`.
pub fn audit_segment(
    key: &ChainKey,
    entries: &[AuditEntry<'_>],
) -> Result<(Vec<u8>, Anchor), AuditError> {
    let mut anchor = Anchor::origin(key);
    let mut out = Vec::new();
    for entry in entries {
        let start = out.len();
        line::append(entry, anchor.head.seq + 1, &mut out).map_err(AuditError::Encode)?;
        anchor.head = audit::seal(key, &anchor.head, &mut out, start);
    }
    Ok((out, anchor))
}

/// Checks bytes as if they were the only segment.
///
/// # Errors
/// None: bytes can be read.
pub fn verify_segment(
    bytes: &[u8],
    key: &ChainKey,
    anchor: Option<Anchor>,
) -> Result<Verification, AuditError> {
    audit::verify_bytes(bytes, key, anchor)
}
