//! The bytes of a backup, format version 1: preamble, then frames.
//!
//! The preamble is magic, version u16, flags u16 (bit 0: sealed), length u32 and text of the manifest
//! that holds the key of a sealed backup. The frames follow as they are, or as a sealed stream that is
//! bound to the preamble. A frame is kind u8, length u32 and that many bytes. All integers are
//! big-endian. Digests are SHA-256 over whole frames, so no bit of a backup can change unseen, if
//! only a sealed one is proof against intent. What rows mean is not known here.

use std::io::{self, Read, Write};

use bytes::Bytes;
use nimbus_core::TenantId;
use nimbus_crypto::{MAX_MANIFEST_BYTES, Manifest, StreamError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::error::{BackupError, BackupResult};
use crate::engine::Floor;
use crate::error::StoreError;
use crate::provider::{Head, Keyspace};

/// Version of the format that is written, and the only one that is read.
pub const BACKUP_VERSION: u16 = 1;
/// Longest frame: 64 MiB. A commit record's part has 4 MiB and any other value less than 16.
pub const MAX_FRAME_BYTES: usize = 64 * 1024 * 1024;

const MAGIC: [u8; 8] = *b"NIMBUSBK";
const FIXED_BYTES: usize = 16;
const SEALED: u16 = 1;
const FRAME_HEAD: usize = 5;
/// Memory taken on the word of a length; more only as the bytes are there.
const TRUSTED_BYTES: usize = 64 * 1024;

const HEADER: u8 = 1;
const TENANT: u8 = 2;
const ROW: u8 = 3;
const TENANT_END: u8 = 4;
const GONE: u8 = 5;
const END: u8 = 6;

/// What a backup says about itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Header {
    /// When it was begun, in milliseconds since 1970-01-01.
    pub created_at_ms: u64,
    /// The version of Nimbus that made it.
    pub nimbus: String,
    /// The provider that the tenants were kept by.
    pub provider: String,
    /// Its tenants, in its order.
    pub tenants: Vec<TenantId>,
}

/// What comes before a tenant's rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct TenantStart {
    pub(crate) tenant: TenantId,
    sequence: u64,
    timestamp: u64,
    hash: Hash,
    floor_sequence: u64,
    floor_hash: Hash,
    floor_offset: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Hash([u8; 32]);

impl From<Hash> for String {
    fn from(hash: Hash) -> String {
        data_encoding::HEXLOWER.encode(&hash.0)
    }
}

impl TryFrom<String> for Hash {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Hash, &'static str> {
        let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).ok();
        bytes
            .and_then(|b| b.try_into().ok())
            .map(Hash)
            .ok_or("expected 64 lower-case hexadecimal digits")
    }
}

impl TenantStart {
    pub(crate) fn new(tenant: TenantId, head: Head, floor: Floor) -> TenantStart {
        TenantStart {
            tenant,
            sequence: head.sequence,
            timestamp: head.timestamp,
            hash: Hash(head.hash),
            floor_sequence: floor.sequence,
            floor_hash: Hash(floor.hash),
            floor_offset: floor.offset,
        }
    }

    pub(crate) fn head(&self) -> Head {
        Head {
            sequence: self.sequence,
            timestamp: self.timestamp,
            hash: self.hash.0,
        }
    }

    pub(crate) fn floor(&self) -> Floor {
        Floor {
            sequence: self.floor_sequence,
            hash: self.floor_hash.0,
            offset: self.floor_offset,
        }
    }
}

/// One step of a backup. A reader gives them in a good order only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    Header(Header),
    Tenant(TenantStart),
    Row(Keyspace, Vec<u8>, Bytes),
    TenantEnd,
    /// A tenant of the header that was deleted before its turn.
    Gone(TenantId),
    End,
}

/// Digests of what passed, the same on both sides.
#[derive(Default)]
struct Tally {
    /// Over everything outside tenants, with their ends, which hold their digests.
    whole: Sha256,
    /// Of the tenant that is under way: digest over its start and rows, and rows by keyspace.
    tenant: Option<(Sha256, [u64; 7])>,
    tenants: u64,
}

impl Tally {
    fn new(preamble: &[u8]) -> Tally {
        Tally {
            whole: Sha256::new_with_prefix(preamble),
            ..Tally::default()
        }
    }

    fn tenant_end(&mut self) -> Option<Vec<u8>> {
        let (digest, rows) = self.tenant.take()?;
        self.tenants += 1;
        let mut payload: Vec<u8> = rows.iter().flat_map(|n| n.to_be_bytes()).collect();
        payload.extend_from_slice(&digest.finalize());
        Some(payload)
    }

    fn end(&self) -> Vec<u8> {
        let mut payload = self.tenants.to_be_bytes().to_vec();
        payload.extend_from_slice(&self.whole.clone().finalize());
        payload
    }

    fn add(&mut self, kind: u8, head: &[u8], payload: &[u8]) {
        if kind == TENANT {
            self.tenant = Some(Default::default());
        }
        let digest = match &mut self.tenant {
            Some((digest, _)) => digest,
            None => &mut self.whole,
        };
        digest.update(head);
        digest.update(payload);
    }
}

/// The preamble of a backup, sealed under the manifest if there is one.
pub(crate) fn preamble(manifest: Option<&Manifest>) -> BackupResult<Vec<u8>> {
    let text = match manifest {
        Some(manifest) => manifest
            .encode()
            .map_err(|e| BackupError::Io(io::Error::other(e)))?,
        None => Vec::new(),
    };
    let flags = if manifest.is_some() { SEALED } else { 0 };
    let mut out = MAGIC.to_vec();
    out.extend_from_slice(&BACKUP_VERSION.to_be_bytes());
    out.extend_from_slice(&flags.to_be_bytes());
    out.extend_from_slice(&(text.len() as u32).to_be_bytes());
    out.extend_from_slice(&text);
    Ok(out)
}

/// Reads a preamble; returns its bytes and the manifest of a sealed backup.
pub(crate) fn read_preamble(input: &mut impl Read) -> BackupResult<(Vec<u8>, Option<Manifest>)> {
    let damaged = |reason: String| BackupError::Damaged { at: 0, reason };
    let mut out = read_some(input, FIXED_BYTES).map_err(BackupError::Io)?;
    let known = out.len().min(MAGIC.len());
    if known == 0 || out[..known] != MAGIC[..known] {
        return Err(BackupError::NotABackup);
    }
    let Some(&[v0, v1, f0, f1, l0, l1, l2, l3]) = out.get(MAGIC.len()..FIXED_BYTES) else {
        return Err(BackupError::Truncated { at: 0 });
    };
    let version = u16::from_be_bytes([v0, v1]);
    match version {
        BACKUP_VERSION => {}
        0 => return Err(damaged("its format version is 0".into())),
        found => return Err(BackupError::NewerVersion { found }),
    }
    let flags = u16::from_be_bytes([f0, f1]);
    let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
    let expected = match flags {
        0 => length == 0,
        SEALED => (1..=MAX_MANIFEST_BYTES).contains(&length),
        _ => false,
    };
    if !expected {
        return Err(damaged(format!(
            "flags {flags} do not go with a manifest of {length} bytes"
        )));
    }
    let text = read_some(input, length).map_err(BackupError::Io)?;
    if text.len() < length {
        return Err(BackupError::Truncated { at: 0 });
    }
    out.extend_from_slice(&text);
    if flags == 0 {
        return Ok((out, None));
    }
    let manifest = Manifest::decode(&text).map_err(|e| damaged(format!("its manifest: {e}")))?;
    Ok((out, Some(manifest)))
}

/// As many bytes as there are, up to `length`.
fn read_some(input: &mut impl Read, length: usize) -> io::Result<Vec<u8>> {
    let mut out = Vec::with_capacity(length.min(TRUSTED_BYTES));
    input.take(length as u64).read_to_end(&mut out)?;
    Ok(out)
}

/// Writes frames.
pub(crate) struct FrameWriter<W> {
    pub(crate) out: W,
    tally: Tally,
}

impl<W: Write> FrameWriter<W> {
    /// A writer of what follows `preamble`, which is not written.
    pub(crate) fn new(out: W, preamble: &[u8]) -> FrameWriter<W> {
        FrameWriter {
            out,
            tally: Tally::new(preamble),
        }
    }

    pub(crate) fn header(&mut self, header: &Header) -> BackupResult<()> {
        self.write(HEADER, &[&json(header)?])
    }

    pub(crate) fn tenant(&mut self, start: &TenantStart) -> BackupResult<()> {
        self.write(TENANT, &[&json(start)?])
    }

    pub(crate) fn row(&mut self, space: Keyspace, key: &[u8], value: &[u8]) -> BackupResult<()> {
        let length = u16::try_from(key.len()).map_err(|_| too_long(key.len()))?;
        if let Some((_, rows)) = &mut self.tally.tenant {
            rows[space as usize] += 1;
        }
        self.write(ROW, &[&[space as u8], &length.to_be_bytes(), key, value])
    }

    pub(crate) fn tenant_end(&mut self) -> BackupResult<()> {
        let payload = self.tally.tenant_end().unwrap_or_default();
        self.write(TENANT_END, &[&payload])
    }

    pub(crate) fn gone(&mut self, tenant: &TenantId) -> BackupResult<()> {
        self.write(GONE, &[tenant.as_str().as_bytes()])
    }

    pub(crate) fn end(&mut self) -> BackupResult<()> {
        let payload = self.tally.end();
        self.write(END, &[&payload])
    }

    fn write(&mut self, kind: u8, parts: &[&[u8]]) -> BackupResult<()> {
        let payload = parts.concat();
        if payload.len() > MAX_FRAME_BYTES {
            return Err(too_long(payload.len()));
        }
        let mut head = [kind, 0, 0, 0, 0];
        head[1..].copy_from_slice(&(payload.len() as u32).to_be_bytes());
        self.tally.add(kind, &head, &payload);
        self.out.write_all(&head).map_err(BackupError::Io)?;
        self.out.write_all(&payload).map_err(BackupError::Io)
    }
}

fn too_long(length: usize) -> BackupError {
    let text = format!("{length} bytes do not fit in a frame of a backup");
    StoreError::corrupt(text).into()
}

fn json(value: &impl Serialize) -> BackupResult<Vec<u8>> {
    serde_json::to_vec(value).map_err(|e| BackupError::Io(io::Error::other(e)))
}

/// Reads frames, refusing any that is damaged or out of place.
pub(crate) struct FrameReader<R> {
    input: R,
    tally: Tally,
    /// Bytes of content read so far.
    at: u64,
    begun: bool,
}

impl<R: Read> FrameReader<R> {
    /// A reader of what follows `preamble`.
    pub(crate) fn new(input: R, preamble: &[u8]) -> FrameReader<R> {
        FrameReader {
            input,
            tally: Tally::new(preamble),
            at: 0,
            begun: false,
        }
    }

    /// Damage at the present place, found by whoever understands the content.
    pub(crate) fn damaged(&self, reason: impl Into<String>) -> BackupError {
        BackupError::Damaged {
            at: self.at,
            reason: reason.into(),
        }
    }

    /// The next frame; nothing after [`Frame::End`].
    pub(crate) fn next(&mut self) -> BackupResult<Frame> {
        let head = self.take(FRAME_HEAD)?;
        let Some((&kind, length)) = head.split_first() else {
            return Err(self.damaged("a frame without a kind"));
        };
        let length =
            <[u8; 4]>::try_from(length).map_or(usize::MAX, |l| u32::from_be_bytes(l) as usize);
        let in_place = match kind {
            HEADER => !self.begun,
            TENANT | GONE | END => self.begun && self.tally.tenant.is_none(),
            ROW | TENANT_END => self.tally.tenant.is_some(),
            _ => false,
        };
        if !in_place || length > MAX_FRAME_BYTES {
            return Err(self.damaged(format!("a frame of kind {kind} and {length} bytes")));
        }
        let payload = self.take(length)?;
        let frame = self.decode(kind, &payload)?;
        self.tally.add(kind, &head, &payload);
        self.begun = true;
        Ok(frame)
    }

    fn decode(&mut self, kind: u8, payload: &[u8]) -> BackupResult<Frame> {
        match kind {
            HEADER => Ok(Frame::Header(self.json(payload)?)),
            TENANT => Ok(Frame::Tenant(self.json(payload)?)),
            ROW => self.row(payload),
            GONE => {
                let id = std::str::from_utf8(payload).ok();
                let id = id.and_then(|id| id.parse().ok());
                id.map(Frame::Gone)
                    .ok_or_else(|| self.damaged("a name that no tenant can have"))
            }
            TENANT_END => match self.tally.tenant_end().as_deref() == Some(payload) {
                true => Ok(Frame::TenantEnd),
                false => Err(self
                    .damaged("the rows of a tenant do not have the digest and count at their end")),
            },
            _ => {
                if self.tally.end() != payload {
                    return Err(self.damaged("the content does not have the digest at its end"));
                }
                match self.read(1)?.is_empty() {
                    true => Ok(Frame::End),
                    false => Err(self.damaged("there are bytes after the end")),
                }
            }
        }
    }

    fn row(&mut self, payload: &[u8]) -> BackupResult<Frame> {
        let parsed = payload.split_first_chunk::<3>().and_then(|(front, rest)| {
            let space = *Keyspace::ALL.get(usize::from(front[0]))?;
            let length = usize::from(u16::from_be_bytes([front[1], front[2]]));
            let (key, value) = rest.split_at_checked(length)?;
            Some((space, key.to_vec(), Bytes::copy_from_slice(value)))
        });
        let Some((space, key, value)) = parsed else {
            return Err(self.damaged("a row that cannot be taken apart"));
        };
        if let Some((_, rows)) = &mut self.tally.tenant {
            rows[space as usize] += 1;
        }
        Ok(Frame::Row(space, key, value))
    }

    fn json<T: DeserializeOwned>(&self, payload: &[u8]) -> BackupResult<T> {
        serde_json::from_slice(payload).map_err(|e| self.damaged(e.to_string()))
    }

    fn take(&mut self, length: usize) -> BackupResult<Vec<u8>> {
        let bytes = self.read(length)?;
        match bytes.len() == length {
            true => Ok(bytes),
            false => Err(BackupError::Truncated { at: self.at }),
        }
    }

    fn read(&mut self, length: usize) -> BackupResult<Vec<u8>> {
        let at = self.at;
        let bytes = read_some(&mut self.input, length).map_err(|e| sealed_fault(e, at))?;
        self.at += bytes.len() as u64;
        Ok(bytes)
    }
}

/// What a sealed stream says when it is not whole.
pub(super) fn sealed_fault(error: io::Error, at: u64) -> BackupError {
    match StreamError::of(&error) {
        Some(StreamError::Truncated { .. }) => BackupError::Truncated { at },
        Some(other) => BackupError::Damaged {
            at,
            reason: other.to_string(),
        },
        None => BackupError::Io(error),
    }
}

#[cfg(test)]
#[path = "format_tests.rs"]
mod tests;
