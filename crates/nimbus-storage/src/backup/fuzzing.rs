//! A door for the fuzz target of backups. Compiled with the feature `fuzzing` only, which the server
//! never enables.
//!
//! It must not hold checks: those are in `fuzz/`.

use std::io::Cursor;

use super::error::BackupResult;
use super::format::{self, FrameWriter, Header, TenantStart};
use super::{Source, Summary, verify};
use crate::engine::Floor;
use crate::provider::{Head, Keyspace};

/// What any bytes hold as a backup.
///
/// # Errors
/// Whatever is wrong with them.
pub fn read(bytes: &[u8]) -> BackupResult<Summary> {
    verify(Source::open(Cursor::new(bytes.to_vec()), None)?)
}

/// A backup of one tenant without commits and with these rows, whose digests are right whatever the
/// rows are.
///
/// # Errors
/// For rows that do not fit in a frame.
pub fn assemble(rows: &[(u8, Vec<u8>, Vec<u8>)]) -> BackupResult<Vec<u8>> {
    let preamble = format::preamble(None)?;
    let mut frames = FrameWriter::new(preamble.clone(), &preamble);
    let tenant: nimbus_core::TenantId = match "t".parse() {
        Ok(tenant) => tenant,
        Err(_) => return Ok(Vec::new()),
    };
    frames.header(&Header {
        created_at_ms: 1,
        nimbus: "0".to_owned(),
        provider: "sqlite".to_owned(),
        tenants: vec![tenant.clone()],
    })?;
    frames.tenant(&TenantStart::new(tenant, Head::EMPTY, Floor::default()))?;
    for (space, key, value) in rows {
        let space = Keyspace::ALL[usize::from(*space) % Keyspace::ALL.len()];
        frames.row(space, key, value)?;
    }
    frames.tenant_end()?;
    frames.end()?;
    Ok(frames.out)
}
