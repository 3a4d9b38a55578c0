//! Modules as the code keyspace stores them: under their hash, checked whenever they are read.
//!
//! Format version 1: version u8; 0 or 1 for a source map u8; length of the source u64; the source;
//! the source map. The hash is SHA-256 of source and source map, one behind the other, since that is
//! the hash by which the official command line names modules.

use std::sync::Arc;

use bytes::Bytes;
use data_encoding::HEXLOWER;
use sha2::{Digest, Sha256};

use crate::error::{StoreError, StoreResult};

const VERSION: u8 = 1;
const HEAD: usize = 10;
/// First byte of the keys of modules.
const KEY_TAG: u8 = b'm';

/// The text of a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleSource {
    /// JavaScript.
    pub source: Arc<str>,
    /// Its source map, if there is one.
    pub source_map: Option<Arc<str>>,
}

impl ModuleSource {
    /// SHA-256 of source and source map.
    pub(super) fn hash(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        hash.update(self.source.as_bytes());
        hash.update(self.source_map.as_deref().unwrap_or_default().as_bytes());
        hash.finalize().into()
    }

    /// Bytes of source and source map.
    pub(super) fn size(&self) -> usize {
        self.source.len() + self.source_map.as_ref().map_or(0, |map| map.len())
    }

    pub(super) fn encode(&self) -> Bytes {
        let mut out = Vec::with_capacity(HEAD + self.size());
        out.extend_from_slice(&[VERSION, u8::from(self.source_map.is_some())]);
        out.extend_from_slice(&(self.source.len() as u64).to_be_bytes());
        out.extend_from_slice(self.source.as_bytes());
        out.extend_from_slice(self.source_map.as_deref().unwrap_or_default().as_bytes());
        Bytes::from(out)
    }

    /// Reads a stored module and compares its hash.
    ///
    /// # Errors
    /// `Corrupt`.
    pub(super) fn decode(bytes: &[u8], hash: &[u8; 32]) -> StoreResult<ModuleSource> {
        let parsed = parse(bytes).filter(|module| module.hash() == *hash);
        parsed.ok_or_else(|| {
            StoreError::corrupt(format!(
                "the stored module {} is damaged",
                HEXLOWER.encode(hash)
            ))
        })
    }
}

fn parse(bytes: &[u8]) -> Option<ModuleSource> {
    let (head, rest) = bytes.split_at_checked(HEAD)?;
    let (&[version, has_map], length) = head.split_first_chunk::<2>()?;
    let length = u64::from_be_bytes(length.try_into().ok()?);
    let (source, map) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    let source_map = match (version, has_map, map.is_empty()) {
        (VERSION, 1, _) => Some(Arc::from(std::str::from_utf8(map).ok()?)),
        (VERSION, 0, true) => None,
        _ => return None,
    };
    Some(ModuleSource {
        source: Arc::from(std::str::from_utf8(source).ok()?),
        source_map,
    })
}

/// Key of a module in the code keyspace.
pub(super) fn key(hash: &[u8; 32]) -> Vec<u8> {
    tagged(KEY_TAG, hash)
}

pub(super) fn tagged(tag: u8, hash: &[u8; 32]) -> Vec<u8> {
    [&[tag], &hash[..]].concat()
}

/// A hash written as 64 hexadecimal digits.
pub(super) fn parse_hash(text: &str) -> Option<[u8; 32]> {
    HEXLOWER.decode(text.as_bytes()).ok()?.try_into().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn module(source: &str, map: Option<&str>) -> ModuleSource {
        ModuleSource {
            source: Arc::from(source),
            source_map: map.map(Arc::from),
        }
    }

    /// The stored bytes of format version 1.
    #[test]
    fn format_vector() {
        let stored = module("a;", Some("{}")).encode();
        assert_eq!(&stored[..], b"\x01\x01\0\0\0\0\0\0\0\x02a;{}");
        assert_eq!(
            HEXLOWER.encode(&module("a;", Some("{}")).hash()),
            HEXLOWER.encode(&Sha256::digest(b"a;{}"))
        );
    }

    #[test]
    fn modules_come_back() {
        for made in [
            module("", None),
            module("é", None),
            module("x", Some("")),
            module("", Some("y")),
        ] {
            let back = ModuleSource::decode(&made.encode(), &made.hash()).unwrap();
            assert_eq!(back, made);
        }
    }

    #[test]
    fn damage_is_refused() {
        let made = module("let a = 1;", Some("map"));
        let good = made.encode();
        for at in 0..good.len() {
            let mut bad = good.to_vec();
            bad[at] ^= 0x81;
            let read = ModuleSource::decode(&bad, &made.hash());
            assert!(matches!(read, Err(StoreError::Corrupt { .. })), "byte {at}");
            assert!(ModuleSource::decode(&good[..at], &made.hash()).is_err());
        }
        assert!(ModuleSource::decode(&good, &[0; 32]).is_err());
    }
}
