//! The two rows that every tenant file has from its creation: its format, and its head.
//!
//! Must not know how rows are kept.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::pages::error::corrupt;
use crate::provider::{Head, ProviderResult};

/// Key of the format row in `meta`. Written when the file is made only.
pub(in crate::provider) const FORMAT_KEY: &[u8] = b"format";
/// Layout version of the tenant file.
const FORMAT_VERSION: u32 = 1;
const FORMAT_NAME: &str = "nimbus-tenant";

#[derive(Serialize, Deserialize)]
struct Format {
    format: String,
    version: u32,
}

/// The format row of a new file.
pub(in crate::provider) fn format_row() -> String {
    format!("{{\"format\":\"{FORMAT_NAME}\",\"version\":{FORMAT_VERSION}}}")
}

/// Checks the format row of the file at `path`.
pub(in crate::provider) fn check_format(path: &Path, row: Option<&[u8]>) -> ProviderResult<()> {
    let Some(row) = row else {
        return Err(corrupt(path, "its format row is missing"));
    };
    let format: Format = serde_json::from_slice(row)
        .map_err(|e| corrupt(path, format!("its format row is unreadable: {e}")))?;
    if format.format != FORMAT_NAME || format.version != FORMAT_VERSION {
        let reason = format!(
            "its format is {} version {} and this server reads {FORMAT_NAME} version \
             {FORMAT_VERSION}; use the version of Nimbus that wrote it",
            format.format, format.version
        );
        return Err(corrupt(path, reason));
    }
    Ok(())
}

/// The head in its row.
pub(in crate::provider) fn decode_head(path: &Path, row: Option<&[u8]>) -> ProviderResult<Head> {
    let Some(row) = row else {
        return Err(corrupt(path, "its head row is missing"));
    };
    Head::decode(row).ok_or_else(|| {
        let (found, expected) = (row.len(), Head::ENCODED_LEN);
        corrupt(
            path,
            format!("its head row has {found} bytes, expected {expected}"),
        )
    })
}
