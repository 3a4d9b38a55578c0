//! The chain of the audit log: how a line is sealed and how a seal is checked.
//!
//! `mac[n] = HMAC-SHA256(key, mac[n-1] || line[n])`, where `line[n]` is the text of the line up to
//! `,"mac":` (it ends with the line's number) and `mac[0]` is the HMAC of a fixed text. This room
//! must not know files.

use std::fmt;

use data_encoding::HEXLOWER;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use subtle::ConstantTimeEq as _;
use zeroize::Zeroizing;

/// Length of the key in bytes: that of the hash, which RFC 2104 recommends as the least.
pub(crate) const KEY_BYTES: usize = 32;
/// What stands between the sealed text and its MAC.
const MAC_FIELD: &[u8] = br#","mac":""#;
/// What ends a sealed line, without its newline.
const END: &[u8] = br#""}"#;
/// What stands before the number at the end of the sealed text.
const SEQ_FIELD: &[u8] = br#","seq":"#;
/// Length of a MAC in hexadecimal digits.
const MAC_DIGITS: usize = 64;

/// The key of a chain. Wiped on drop; it cannot be shown.
pub struct ChainKey(Zeroizing<[u8; KEY_BYTES]>);

impl ChainKey {
    /// Takes the bytes of a key.
    pub fn new(bytes: Zeroizing<[u8; KEY_BYTES]>) -> ChainKey {
        ChainKey(bytes)
    }

    /// A public name of the chain that this key makes.
    pub fn id(&self) -> ChainId {
        let mut id = [0; 16];
        for (to, from) in id
            .iter_mut()
            .zip(self.mac(&[b"nimbus audit: name of the chain, 1"]).0)
        {
            *to = from;
        }
        ChainId(id)
    }

    /// The point before the first entry.
    pub fn origin(&self) -> Point {
        Point {
            seq: 0,
            mac: self.mac(&[b"nimbus audit: origin of the chain, 1"]),
        }
    }

    /// The point after `last` when the next line has the sealed text `body`.
    pub(crate) fn next(&self, last: &Point, body: &[u8]) -> Point {
        Point {
            seq: last.seq.saturating_add(1),
            mac: self.mac(&[&last.mac.0, body]),
        }
    }

    /// The MAC of an anchor's text, which no line can have: lines begin after 32 bytes of MAC.
    pub(crate) fn anchor_mac(&self, text: &[u8]) -> Mac {
        self.mac(&[b"nimbus audit: anchor, 1\n", text])
    }

    fn mac(&self, parts: &[&[u8]]) -> Mac {
        // HMAC takes keys of every length, so this cannot fail; an all-zero MAC matches nothing.
        let Ok(mut hmac) = Hmac::<Sha256>::new_from_slice(self.0.as_ref()) else {
            return Mac([0; 32]);
        };
        for part in parts {
            hmac.update(part);
        }
        Mac(hmac.finalize().into_bytes().into())
    }
}

impl fmt::Debug for ChainKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChainKey(redacted)")
    }
}

/// The public name of a chain, made from its key: 16 bytes, shown as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChainId([u8; 16]);

impl fmt::Display for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for ChainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChainId({self})")
    }
}

/// The HMAC of a line. It is no secret; it stands in the log.
#[derive(Clone, Copy)]
pub struct Mac(pub(crate) [u8; 32]);

impl Mac {
    /// Reads 64 lower-case hexadecimal digits.
    pub(crate) fn parse(text: &[u8]) -> Option<Mac> {
        let bytes = HEXLOWER.decode(text).ok()?;
        Some(Mac(bytes.try_into().ok()?))
    }
}

/// In constant time, so that a forger who can make the check run learns nothing from its length.
impl PartialEq for Mac {
    fn eq(&self, other: &Mac) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for Mac {}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mac({self})")
    }
}

/// A place in a chain: behind the entry with this number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Number of the entry, counted from 1; 0 before the first.
    pub seq: u64,
    /// Its MAC.
    pub mac: Mac,
}

/// Seals the line that `buffer` holds from `start` on, `{…,"seq":N}` and a newline, as the one
/// after `last`.
pub(crate) fn seal(key: &ChainKey, last: &Point, buffer: &mut Vec<u8>, start: usize) -> Point {
    // Takes the brace and the newline away; they are put back behind the MAC.
    buffer.truncate(buffer.len().saturating_sub(2));
    let point = key.next(last, buffer.get(start..).unwrap_or_default());
    buffer.extend_from_slice(MAC_FIELD);
    buffer.extend_from_slice(HEXLOWER.encode(&point.mac.0).as_bytes());
    buffer.extend_from_slice(END);
    buffer.push(b'\n');
    point
}

/// A line that has the form of a sealed one; whether the seal is right is another question.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sealed<'a> {
    /// What the MAC is over, beside the MAC before.
    pub(crate) body: &'a [u8],
    /// Where the line claims to stand.
    pub(crate) claim: Point,
}

impl<'a> Sealed<'a> {
    /// Reads a line without its newline. `None` when it does not have the form.
    pub(crate) fn parse(line: &'a [u8]) -> Option<Sealed<'a>> {
        let inner = line.strip_suffix(END)?;
        let (head, digits) = inner.split_at_checked(inner.len().checked_sub(MAC_DIGITS)?)?;
        let mac = Mac::parse(digits)?;
        let body = head.strip_suffix(MAC_FIELD)?;
        let digits = body.iter().rev().take_while(|b| b.is_ascii_digit()).count();
        let (front, number) = body.split_at_checked(body.len().checked_sub(digits)?)?;
        if !front.ends_with(SEQ_FIELD) || !front.starts_with(b"{") {
            return None;
        }
        let seq = std::str::from_utf8(number).ok()?.parse().ok()?;
        Some(Sealed {
            body,
            claim: Point { seq, mac },
        })
    }

    /// Whether this is the line after `last`. The MAC covers the number of the line itself, so that of
    /// `last`, which may be forged, does not matter.
    pub(crate) fn follows(&self, key: &ChainKey, last: &Point) -> bool {
        key.next(last, self.body).mac == self.claim.mac
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn key(byte: u8) -> ChainKey {
        ChainKey::new(Zeroizing::new([byte; KEY_BYTES]))
    }

    fn sealed(key: &ChainKey, last: &Point, text: &str) -> (Vec<u8>, Point) {
        let mut buffer = format!("{text}\n").into_bytes();
        let point = seal(key, last, &mut buffer, 0);
        assert_eq!(buffer.pop(), Some(b'\n'));
        (buffer, point)
    }

    /// HMAC-SHA256 computed apart: Python's `hmac`, key 0x07 32 times.
    #[test]
    fn the_chain_is_what_the_documentation_says() {
        let key = key(7);
        assert_eq!(
            key.origin().mac.to_string(),
            "c7ab5d3b5fea649e42c7ecacc60e67cc92e9a205873ef87fd7c830b1daac6761"
        );
        let (line, point) = sealed(&key, &key.origin(), r#"{"ts":"x","seq":1}"#);
        assert_eq!(
            String::from_utf8(line).unwrap(),
            concat!(
                r#"{"ts":"x","seq":1,"mac":""#,
                "da6fd596bc3d2b8444e4a2c6d92cc652e90369b22bc1eb4df37f99c4dac3e2e8",
                r#""}"#
            )
        );
        assert_eq!(point.seq, 1);
        assert_eq!(key.id().to_string(), "98101718bbd2146562148297b4f79fed");
    }

    #[test]
    fn a_seal_holds_for_one_text_one_place_and_one_key() {
        let key_ = key(1);
        let (first, one) = sealed(&key_, &key_.origin(), r#"{"a":1,"seq":1}"#);
        let (second, two) = sealed(&key_, &one, r#"{"a":2,"seq":2}"#);
        let line = Sealed::parse(&second).unwrap();
        assert!(
            Sealed::parse(&first)
                .unwrap()
                .follows(&key_, &key_.origin())
        );
        assert!(line.follows(&key_, &one));
        assert_eq!(line.claim, two);
        assert!(!line.follows(&key_, &key_.origin()));
        assert!(!line.follows(&key(2), &one));
        assert_ne!(key(2).origin(), key_.origin());
        for at in 0..second.len() {
            for bit in 0..8 {
                let mut changed = second.clone();
                changed[at] ^= 1 << bit;
                let holds = Sealed::parse(&changed).is_some_and(|l| l.follows(&key_, &one));
                assert!(!holds, "bit {bit} of byte {at}");
            }
        }
    }

    #[test]
    fn what_has_not_the_form_is_no_sealed_line() {
        let (line, _) = sealed(&key(1), &key(1).origin(), r#"{"a":1,"seq":1}"#);
        assert!(Sealed::parse(&line).is_some());
        let text = String::from_utf8(line.clone()).unwrap();
        let bad = [
            String::new(),
            "{}".into(),
            "\"}".into(),
            text.to_uppercase(),
            text.replace("seq", "sek"),
            text.replace("\"seq\":1", "\"seq\":-1"),
            text.replace("\"seq\":1", "\"seq\":"),
            text.replace("\"seq\":1", "\"seq\":99999999999999999999"),
            text.replace("mac", "max"),
            text.replacen('{', "[", 1),
            format!("{text} "),
            text[..text.len() - 1].to_owned(),
        ];
        for text in bad {
            assert!(Sealed::parse(text.as_bytes()).is_none(), "{text}");
        }
    }

    #[test]
    fn the_key_is_not_shown() {
        assert_eq!(format!("{:?}", key(9)), "ChainKey(redacted)");
    }
}
