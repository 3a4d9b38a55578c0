//! Printing results to standard output. Errors of a closed pipe are errors like others.

use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;

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

/// Writes a file, 0600, that appears under its name only when it is whole and durable.
pub(crate) fn file(
    path: &Path,
    write: impl FnOnce(&mut dyn std::io::Write) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    place(path, write, |file| Ok(file.persist(path).map(drop)?))
}

/// As [`file()`], in a place where nothing is yet: not even a link is followed or replaced.
pub(crate) fn new_file<T>(
    path: &Path,
    write: impl FnOnce(&mut dyn std::io::Write) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    place(path, write, |file| {
        Ok(file.persist_noclobber(path).map(drop)?)
    })
}

fn place<T>(
    path: &Path,
    write: impl FnOnce(&mut dyn std::io::Write) -> anyhow::Result<T>,
    persist: impl FnOnce(tempfile::NamedTempFile) -> std::io::Result<()>,
) -> anyhow::Result<T> {
    // Beside the target, so that the rename at the end stays on one file system.
    let dir = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let file = tempfile::NamedTempFile::new_in(dir)
        .with_context(|| format!("making a file in {}", dir.display()))?;
    let mut buffered = std::io::BufWriter::new(file.reopen()?);
    let written = write(&mut buffered)?;
    buffered.flush()?;
    file.as_file().sync_all()?;
    persist(file).with_context(|| format!("writing {}", path.display()))?;
    std::fs::File::open(dir)?.sync_all()?;
    Ok(written)
}

/// Text that cannot act on a terminal: what is not printable ASCII is escaped.
pub(crate) fn printable(text: &str) -> String {
    let shown = |c: char| match c {
        ' '..='~' => c.to_string(),
        other => other.escape_default().to_string(),
    };
    text.chars().map(shown).collect()
}
