//! Printing results to standard output. Errors of a closed pipe are errors like others.

use std::io::Write as _;

/// Writes bytes as they are.
pub(crate) fn raw(bytes: &[u8]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)?;
    Ok(out.flush()?)
}

/// Writes a line.
pub(crate) fn line(text: &str) -> anyhow::Result<()> {
    raw(format!("{text}\n").as_bytes())
}

/// Writes a JSON value on one line.
pub(crate) fn json(value: &serde_json::Value) -> anyhow::Result<()> {
    line(&value.to_string())
}
