//! Page positions and the cursors that carry them between requests.
//!
//! A cursor is base64url of: version, the query's digest (16 bytes), the position, and
//! HMAC-SHA256 under the tenant's own key (RFC 2104). It is bound to the query and the tenant,
//! not to the plan: the same cursor works before and after an index appears.
//!
//! A cursor of a function is a place in an index, encrypted (AES-256-GCM-SIV) under a key derived from
//! the tenant's, since the values of an index are not for everyone who may page through it.

use std::cmp::Ordering;

use aes_gcm_siv::{AeadInOut, Aes256GcmSiv};
use data_encoding::BASE64URL_NOPAD;
use hmac::{Hmac, KeyInit, Mac};
use nimbus_core::{FieldPath, InternalId, Object, key, value};
use sha2::Sha256;
use subtle::ConstantTimeEq;

use super::index;
use crate::error::{StoreError, StoreResult};

const VERSION: u8 = 1;
/// Version of the cursors of functions.
const PLACE_VERSION: u8 = 1;
const NONCE: [u8; 12] = [0; 12];
const DIGEST: usize = 16;
const TAG: usize = 32;
const TAIL: usize = 8 + InternalId::LEN;
/// Longest cursor accepted, in characters: an order value is at most a document of 1 MiB.
const MAX_TEXT: usize = 3 * 1024 * 1024;

/// Where a document stands in a query's order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Position {
    /// Key bytes of the order field's value; `None` when the order is creation time and id.
    pub(crate) order: Option<Vec<u8>>,
    /// `_creationTime` in ms.
    pub(crate) creation: f64,
    pub(crate) id: InternalId,
}

impl Position {
    pub(crate) fn of(document: &Object, id: InternalId, order: Option<&FieldPath>) -> Position {
        Position {
            order: order.map(|field| {
                let mut out = Vec::new();
                key::encode(value::object_get(document, field), &mut out);
                out
            }),
            creation: index::creation_time(document),
            id,
        }
    }

    pub(crate) fn compare(&self, other: &Position) -> Ordering {
        self.order
            .cmp(&other.order)
            .then(self.creation.total_cmp(&other.creation))
            .then(self.id.cmp(&other.id))
    }

    /// The position's bytes as they end a full index key.
    pub(crate) fn key_suffix(&self) -> Vec<u8> {
        let mut out = self.order.clone().unwrap_or_default();
        key::encode_f64(self.creation, &mut out);
        out.extend_from_slice(self.id.as_bytes());
        out
    }
}

/// A tenant's secret for cursors. No `Debug`: it never leaves this room.
#[derive(Clone)]
pub(crate) struct CursorKey(pub(crate) [u8; 32]);

impl CursorKey {
    /// Whether it is the same key, in constant time.
    pub(crate) fn is(&self, other: &CursorKey) -> bool {
        self.0.ct_eq(&other.0).into()
    }

    /// The stored form.
    pub(crate) fn decode(stored: &[u8]) -> StoreResult<CursorKey> {
        let key = <[u8; 32]>::try_from(stored);
        let key = key.map_err(|_| StoreError::corrupt("the cursor key is not 32 bytes"))?;
        Ok(CursorKey(key))
    }

    pub(crate) fn tag(&self, bytes: &[u8]) -> [u8; TAG] {
        // HMAC takes keys of any length, so this cannot fail; a failure yields a tag that
        // no cursor carries.
        match Hmac::<Sha256>::new_from_slice(&self.0) {
            Ok(mut mac) => {
                mac.update(bytes);
                mac.finalize().into_bytes().into()
            }
            Err(_) => [0; TAG],
        }
    }

    /// The cipher of cursors that functions hand out. Its nonce is fixed, so that one place has one
    /// cursor: a repeated nonce does no more than show equal places (RFC 8452).
    fn cipher(&self) -> Aes256GcmSiv {
        Aes256GcmSiv::new(&self.tag(b"nimbus function cursor").into())
    }

    /// The cursor of a function for a place in the query with this fingerprint. It shows nothing of the
    /// place but how long it is.
    ///
    /// # Errors
    /// None for places that fit into memory.
    pub(crate) fn seal_place(&self, fingerprint: &[u8; 32], place: &[u8]) -> StoreResult<String> {
        let mut bytes = place.to_vec();
        let tag = self
            .cipher()
            .encrypt_inout_detached(&NONCE.into(), fingerprint, bytes.as_mut_slice().into())
            .map_err(|_| StoreError::invalid("the place is too long for a cursor"))?;
        bytes.extend_from_slice(&tag);
        bytes.push(PLACE_VERSION);
        Ok(BASE64URL_NOPAD.encode(&bytes))
    }

    /// The place in a function's cursor; `None` if it was edited, or made by another tenant or for
    /// another query.
    pub(crate) fn open_place(&self, fingerprint: &[u8; 32], cursor: &str) -> Option<Vec<u8>> {
        if cursor.len() > MAX_TEXT {
            return None;
        }
        let mut bytes = BASE64URL_NOPAD.decode(cursor.as_bytes()).ok()?;
        if bytes.pop() != Some(PLACE_VERSION) {
            return None;
        }
        let tag: [u8; 16] = *bytes.last_chunk()?;
        bytes.truncate(bytes.len() - tag.len());
        self.cipher()
            .decrypt_inout_detached(
                &NONCE.into(),
                fingerprint,
                bytes.as_mut_slice().into(),
                &tag.into(),
            )
            .ok()?;
        Some(bytes)
    }

    /// The cursor for `position` in the query with this digest.
    pub(crate) fn seal(&self, digest: &[u8; 32], position: &Position) -> String {
        let mut bytes = vec![VERSION];
        bytes.extend_from_slice(&digest[..DIGEST]);
        bytes.push(u8::from(position.order.is_some()));
        bytes.extend_from_slice(position.order.as_deref().unwrap_or_default());
        bytes.extend_from_slice(&position.creation.to_bits().to_be_bytes());
        bytes.extend_from_slice(position.id.as_bytes());
        let tag = self.tag(&bytes);
        bytes.extend_from_slice(&tag);
        BASE64URL_NOPAD.encode(&bytes)
    }

    /// The position in `cursor`.
    ///
    /// # Errors
    /// [`StoreError::Cursor`] if it was edited, or made by another tenant or for another query.
    pub(crate) fn open(&self, digest: &[u8; 32], cursor: &str) -> StoreResult<Position> {
        let refuse = |reason| StoreError::Cursor { reason };
        if cursor.len() > MAX_TEXT {
            return Err(refuse("it is too long"));
        }
        let bytes = BASE64URL_NOPAD
            .decode(cursor.as_bytes())
            .map_err(|_| refuse("it is not base64url"))?;
        let split = bytes
            .len()
            .checked_sub(TAG)
            .ok_or_else(|| refuse("it is too short"))?;
        let (body, tag) = bytes.split_at(split);
        if !bool::from(self.tag(body).ct_eq(tag)) {
            return Err(refuse("it was not made by this tenant or was edited"));
        }
        let rest = body
            .strip_prefix(&[VERSION])
            .ok_or_else(|| refuse("its version is not known"))?;
        let (bound, rest) = rest
            .split_at_checked(DIGEST)
            .ok_or_else(|| refuse("it is too short"))?;
        if bound != &digest[..DIGEST] {
            return Err(refuse("it was made for another query"));
        }
        parse_position(rest).ok_or_else(|| refuse("it is too short"))
    }
}

fn parse_position(bytes: &[u8]) -> Option<Position> {
    let (has_order, rest) = bytes.split_first()?;
    let (order, tail) = rest.split_at_checked(rest.len().checked_sub(TAIL)?)?;
    let (creation, id) = tail.split_first_chunk::<8>()?;
    Some(Position {
        order: (*has_order == 1).then(|| order.to_vec()),
        creation: f64::from_bits(u64::from_be_bytes(*creation)),
        id: InternalId::from_bytes(id.try_into().ok()?),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn position(order: Option<&[u8]>) -> Position {
        Position {
            order: order.map(<[u8]>::to_vec),
            creation: 1.5,
            id: InternalId::from_bytes([4; 16]),
        }
    }

    #[test]
    fn round_trip() {
        let key = CursorKey([1; 32]);
        for p in [
            position(None),
            position(Some(b"")),
            position(Some(b"\x10abc\0")),
        ] {
            assert_eq!(key.open(&[2; 32], &key.seal(&[2; 32], &p)).unwrap(), p);
        }
    }

    #[test]
    fn places_are_sealed_and_bound_to_query_and_tenant() {
        let key = CursorKey([1; 32]);
        let cursor = key.seal_place(&[2; 32], b"\x01secret value").unwrap();
        assert_eq!(
            cursor,
            key.seal_place(&[2; 32], b"\x01secret value").unwrap()
        );
        let opened = key.open_place(&[2; 32], &cursor).unwrap();
        assert_eq!(opened, b"\x01secret value");
        let bytes = BASE64URL_NOPAD.decode(cursor.as_bytes()).unwrap();
        assert!(!bytes.windows(6).any(|w| w == b"secret"));
        for i in 0..bytes.len() {
            let mut edited = bytes.clone();
            edited[i] ^= 1;
            let text = BASE64URL_NOPAD.encode(&edited);
            assert!(key.open_place(&[2; 32], &text).is_none(), "byte {i}");
            let text = BASE64URL_NOPAD.encode(&bytes[..i]);
            assert!(key.open_place(&[2; 32], &text).is_none(), "cut at {i}");
        }
        assert!(key.open_place(&[3; 32], &cursor).is_none());
        assert!(CursorKey([9; 32]).open_place(&[2; 32], &cursor).is_none());
    }

    #[test]
    fn every_edit_is_refused() {
        let key = CursorKey([1; 32]);
        let cursor = key.seal(&[2; 32], &position(Some(b"xyz")));
        let bytes = BASE64URL_NOPAD.decode(cursor.as_bytes()).unwrap();
        for i in 0..bytes.len() {
            let mut edited = bytes.clone();
            edited[i] ^= 1;
            let text = BASE64URL_NOPAD.encode(&edited);
            assert!(key.open(&[2; 32], &text).is_err(), "byte {i}");
        }
        for n in 0..bytes.len() {
            assert!(
                key.open(&[2; 32], &BASE64URL_NOPAD.encode(&bytes[..n]))
                    .is_err(),
                "cut at {n}"
            );
        }
        assert!(key.open(&[3; 32], &cursor).is_err(), "another query");
        assert!(
            CursorKey([9; 32]).open(&[2; 32], &cursor).is_err(),
            "another tenant"
        );
        assert!(key.open(&[2; 32], "***").is_err());
    }
}
