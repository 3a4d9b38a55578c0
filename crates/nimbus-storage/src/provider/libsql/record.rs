//! What a commit wrote, as bytes in the table `changes`: enough to repeat it on a copy without knowing what it means.
//!
//! Must not know SQL. The format has a version; a reader that does not know it, or finds anything out of place, copies
//! everything anew instead of guessing.
//!
//! One row is a part: version (1 byte), number of the part and count of parts (u32 each), then a piece of the body. The
//! pieces in order are the body: the head (48 bytes), then for each row its keyspace (1 byte), the length of its key
//! (u32) and the key, and either the length of its value (u32) and the value, or `0xffff_ffff` for a row that was
//! removed. Integers are big-endian.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::provider::{Head, Keyspace};

const VERSION: u8 = 1;
const HEADER: usize = 9;
/// Bytes of a part at most.
pub(super) const MAX_PART: usize = 1 << 20;
/// Bytes of a body at most; more is damage.
const MAX_BODY: usize = 1 << 30;
const REMOVED: u32 = u32::MAX;

/// Final values by keyspace and key; `None` removes.
pub(super) type Writes = BTreeMap<(Keyspace, Vec<u8>), Option<Bytes>>;

/// What one commit did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) head: Head,
    pub(super) writes: Writes,
}

/// The parts of a change; `None` when something in it is too long for the format.
pub(super) fn encode(head: &Head, writes: &Writes) -> Option<Vec<Vec<u8>>> {
    let mut body = Vec::from(head.encode());
    for ((keyspace, key), value) in writes {
        body.push(*keyspace as u8);
        put(&mut body, key)?;
        match value {
            Some(value) => put(&mut body, value)?,
            None => body.extend(REMOVED.to_be_bytes()),
        }
    }
    if body.len() > MAX_BODY {
        return None;
    }
    let pieces = body.chunks(MAX_PART - HEADER);
    let count = u32::try_from(pieces.len()).ok()?;
    let parts = (0..count).zip(pieces).map(|(number, piece)| {
        let mut part = Vec::with_capacity(HEADER + piece.len());
        part.push(VERSION);
        part.extend(number.to_be_bytes());
        part.extend(count.to_be_bytes());
        part.extend(piece);
        part
    });
    Some(parts.collect())
}

fn put(body: &mut Vec<u8>, bytes: &[u8]) -> Option<()> {
    let len = u32::try_from(bytes.len())
        .ok()
        .filter(|len| *len != REMOVED)?;
    body.extend(len.to_be_bytes());
    body.extend(bytes);
    Some(())
}

/// Puts parts together again.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    body: Vec<u8>,
    /// The part that comes next.
    next: u32,
}

impl Assembler {
    /// Takes the next part; the change, if that was its last.
    ///
    /// # Errors
    /// Why the part cannot be the next of a change in this format.
    pub(super) fn add(&mut self, part: &[u8]) -> Result<Option<Change>, String> {
        let (header, piece) = part
            .split_first_chunk::<HEADER>()
            .ok_or("a part is too short")?;
        let [version, n0, n1, n2, n3, c0, c1, c2, c3] = *header;
        if version != VERSION {
            return Err(format!("its version is {version}, and {VERSION} is known"));
        }
        let number = u32::from_be_bytes([n0, n1, n2, n3]);
        let count = u32::from_be_bytes([c0, c1, c2, c3]);
        if number != self.next || number >= count || self.body.len() + piece.len() > MAX_BODY {
            return Err(format!(
                "part {number} of {count} where {} is due",
                self.next
            ));
        }
        self.body.extend(piece);
        self.next += 1;
        if self.next < count {
            return Ok(None);
        }
        self.next = 0;
        decode(&std::mem::take(&mut self.body)).map(Some)
    }

    /// Whether a change was begun and not ended.
    pub(super) fn is_within(&self) -> bool {
        self.next > 0
    }
}

fn decode(body: &[u8]) -> Result<Change, String> {
    let short = || "it ends within a row".to_owned();
    let (head, mut rest) = body.split_at_checked(Head::ENCODED_LEN).ok_or_else(short)?;
    let head = Head::decode(head).ok_or_else(short)?;
    let mut writes = Writes::new();
    while let Some((keyspace, after)) = rest.split_first() {
        let number = usize::from(*keyspace);
        let keyspace = Keyspace::ALL.get(number);
        let keyspace = keyspace.ok_or_else(|| format!("there is no keyspace {number}"))?;
        let (key, after) = take(after)?;
        let key = key.ok_or("a row without a key")?;
        let (value, after) = take(after)?;
        writes.insert((*keyspace, key.to_vec()), value.map(Bytes::copy_from_slice));
        rest = after;
    }
    Ok(Change { head, writes })
}

type Taken<'a> = (Option<&'a [u8]>, &'a [u8]);

fn take(from: &[u8]) -> Result<Taken<'_>, String> {
    let short = || "it ends within a row".to_owned();
    let (len, rest) = from.split_first_chunk::<4>().ok_or_else(short)?;
    let len = u32::from_be_bytes(*len);
    if len == REMOVED {
        return Ok((None, rest));
    }
    let (bytes, rest) = rest.split_at_checked(len as usize).ok_or_else(short)?;
    Ok((Some(bytes), rest))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(mark: u8) -> Head {
        Head {
            sequence: 7,
            timestamp: 9,
            hash: [mark; 32],
        }
    }

    fn read(parts: &[Vec<u8>]) -> Change {
        let mut assembler = Assembler::default();
        let (last, first) = parts.split_last().unwrap();
        for part in first {
            assert_eq!(assembler.add(part).unwrap(), None);
            assert!(assembler.is_within());
        }
        let change = assembler.add(last).unwrap().unwrap();
        assert!(!assembler.is_within());
        change
    }

    /// What is in primaries must stay readable.
    #[test]
    fn vector() {
        let writes = Writes::from([
            (
                (Keyspace::Docs, b"k".to_vec()),
                Some(Bytes::from_static(b"{}")),
            ),
            ((Keyspace::Index, b"".to_vec()), Some(Bytes::new())),
            ((Keyspace::Log, b"\x00".to_vec()), None),
        ]);
        let parts = encode(&head(3), &writes).unwrap();
        let expected = [
            "01",
            "00000000",
            "00000001",
            "0000000000000007",
            "0000000000000009",
            &"03".repeat(32),
            "01",
            "00000001",
            "6b",
            "00000002",
            "7b7d",
            "02",
            "00000000",
            "00000000",
            "03",
            "00000001",
            "00",
            "ffffffff",
        ];
        assert_eq!(data_encoding::HEXLOWER.encode(&parts[0]), expected.concat());
        assert_eq!(
            read(&parts),
            Change {
                head: head(3),
                writes
            }
        );
    }

    #[test]
    fn what_is_out_of_place_is_an_error() {
        let value = Bytes::from(vec![5; 3 << 20]);
        let writes = Writes::from([((Keyspace::Code, b"k".to_vec()), Some(value))]);
        let parts = encode(&head(1), &writes).unwrap();
        assert_eq!(parts.len(), 4);
        assert!(parts.iter().all(|p| p.len() <= MAX_PART));
        assert_eq!(read(&parts).writes, writes);
        let refused = |list: &[&[u8]]| {
            let mut assembler = Assembler::default();
            let mut results = list.iter().map(|part| assembler.add(part));
            results.find_map(Result::err).unwrap()
        };
        assert!(refused(&[&parts[1]]).contains("where 0 is due"));
        assert!(refused(&[&parts[0], &parts[2]]).contains("where 1 is due"));
        assert!(refused(&[&parts[0], &parts[0]]).contains("where 1 is due"));
        assert!(refused(&[b""]).contains("too short"));
        let one = encode(&head(1), &Writes::new()).unwrap().remove(0);
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut part = one.clone();
            change(&mut part);
            refused(&[&part])
        };
        assert!(with(&|p| p[0] = 2).contains("version is 2"));
        assert!(with(&|p| p.truncate(20)).contains("ends within"));
        assert!(with(&|p| p.push(9)).contains("no keyspace 9"));
        assert!(with(&|p| p.extend([1, 0, 0, 0, 9, 1])).contains("ends within"));
        assert!(with(&|p| p.extend([1, 255, 255, 255, 255])).contains("without a key"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 0..4)) {
            let mut assembler = Assembler::default();
            for part in parts {
                if assembler.add(&part).is_err() {
                    break;
                }
            }
        }
    }
}
