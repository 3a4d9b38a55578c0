//! Table numbers, internal ids and document ids (convex.md 2.3, design.md 2). This room turns ids
//! into text and key bytes and back. It has no clock and no source of randomness: both are handed in.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Crockford base32 in lower case: no `i`, `l`, `o`, `u`.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// Shortest id text: one byte of table number, 16 of internal id, 2 of checksum.
const MIN_TEXT: usize = 31;
/// Longest id text: five bytes of table number.
const MAX_TEXT: usize = 37;
/// Most bytes before base32: 5 + 16 + 2.
const MAX_BINARY: usize = 23;
const CHECKSUM_LEN: usize = 2;
const MS_PER_DAY: u64 = 86_400_000;
/// Ticks use 60 bits: 48 of milliseconds, 12 of fraction.
const TICK_MASK: u64 = (1 << 60) - 1;
const FRACTION_MASK: u64 = (1 << FRACTION_BITS) - 1;
const FRACTION_BITS: u32 = 12;
const RANDOM_BITS: u32 = 52;
const RANDOM_MASK: u64 = (1 << RANDOM_BITS) - 1;

/// Ticks in one millisecond: the unit of [`InternalId::generate`].
pub const TICKS_PER_MS: u64 = 1 << FRACTION_BITS;

/// Why bytes or text are not an id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// The text has the wrong length.
    #[error("an id has {MIN_TEXT} to {MAX_TEXT} characters, found {found}")]
    Length {
        /// Characters found (bytes where the text is not ASCII).
        found: usize,
    },
    /// A character outside Crockford base32 in lower case.
    #[error("byte {position} cannot be in an id: only 0-9 and a-z without i, l, o, u can")]
    Alphabet {
        /// Zero-based offset of the byte.
        position: usize,
    },
    /// The table number does not fit 32 bits or is not ended within five bytes.
    #[error("the table number of the id does not fit 32 bits")]
    TableNumberTooLarge,
    /// The table number is zero, which no table has.
    #[error("the table number of the id is zero")]
    TableNumberZero,
    /// The id holds too few or too many bytes after its table number.
    #[error("the id holds {found} bytes after the table number, expected {expected}")]
    BodyLength {
        /// Bytes that must follow: internal id and checksum.
        expected: usize,
        /// Bytes found.
        found: usize,
    },
    /// The checksum does not match: most likely a typing error.
    #[error("the checksum of the id is {found:#06x}, expected {expected:#06x}")]
    Checksum {
        /// Checksum computed over the bytes.
        expected: u16,
        /// Checksum the text carries.
        found: u16,
    },
    /// Another text is the canonical one of the same id.
    #[error("the id is not in its canonical form")]
    NotCanonical,
    /// Key bytes of the wrong length.
    #[error("a document key has {expected} bytes, found {found}")]
    KeyLength {
        /// Bytes of a document key.
        expected: usize,
        /// Bytes found.
        found: usize,
    },
}

/// The number of a table within its tenant; never zero, never used again for another name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TableNumber(NonZeroU32);

impl TableNumber {
    /// The first number a user table gets; those below belong to system tables (convex.md 2.3).
    pub const FIRST_USER: TableNumber = match NonZeroU32::new(10_001) {
        Some(number) => TableNumber(number),
        None => TableNumber(NonZeroU32::MIN),
    };

    /// `None` for zero.
    #[must_use]
    pub const fn new(number: u32) -> Option<TableNumber> {
        match NonZeroU32::new(number) {
            Some(number) => Some(TableNumber(number)),
            None => None,
        }
    }

    /// The number itself.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for TableNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for TableNumber {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.get())
    }
}

impl<'de> Deserialize<'de> for TableNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let number = u32::deserialize(deserializer)?;
        TableNumber::new(number).ok_or_else(|| de::Error::custom(IdError::TableNumberZero))
    }
}

/// The 16 bytes that tell a document from every other in its table; compared as bytes.
///
/// Ids that we make are `ms since 1970 (u48) ++ fraction of the ms in 1/4096 (12 bits) ++ random
/// (52 bits) ++ days since 1970-01-01 (u16)`, all big-endian, so inserts append and the order of ids
/// is the order of creation. Ids that came from elsewhere (imports) may hold any 16 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InternalId([u8; InternalId::LEN]);

impl InternalId {
    /// Bytes of an internal id.
    pub const LEN: usize = 16;

    /// Takes any 16 bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; InternalId::LEN]) -> InternalId {
        InternalId(bytes)
    }

    /// The bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; InternalId::LEN] {
        &self.0
    }

    /// Lays out an id. `ticks` is the creation time in 1/4096 ms since 1970 (60 bits used); of
    /// `random` the low 52 bits are used and must come from the operating system. The day field
    /// stays at its maximum after 2149-06-06.
    #[must_use]
    pub fn generate(ticks: u64, random: u64) -> InternalId {
        let ticks = ticks & TICK_MASK;
        let ms = ticks >> FRACTION_BITS;
        let tail = ((ticks & FRACTION_MASK) << RANDOM_BITS) | (random & RANDOM_MASK);
        let days = u16::try_from(ms / MS_PER_DAY).unwrap_or(u16::MAX);
        let mut bytes = [0; InternalId::LEN];
        bytes[..6].copy_from_slice(&ms.to_be_bytes()[2..]);
        bytes[6..14].copy_from_slice(&tail.to_be_bytes());
        bytes[14..].copy_from_slice(&days.to_be_bytes());
        InternalId(bytes)
    }

    /// The ticks that [`InternalId::generate`] was given. Meaningless for an id made elsewhere.
    #[must_use]
    pub fn ticks(&self) -> u64 {
        let ticks = self.0[..8]
            .iter()
            .fold(0_u64, |acc, byte| (acc << 8) | u64::from(*byte));
        ticks >> 4
    }
}

impl fmt::Debug for InternalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InternalId(")?;
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        f.write_str(")")
    }
}

/// The `_creationTime` (ms since 1970, with fraction) of a document created at `ticks`.
///
/// Exact, and so strictly increasing with `ticks`, below 2^53 ticks = 2^41 ms (2039-09-07). From
/// then on a double holds one bit of fraction less, so two neighbouring ticks may give the same
/// time; it never decreases, and the order by time and id still holds since the id breaks the tie.
#[must_use]
pub fn creation_time_ms(ticks: u64) -> f64 {
    ticks as f64 / TICKS_PER_MS as f64
}

/// A document id: what `_id` holds. The text form is the Convex one (convex.md 2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DocumentId {
    /// The table of the document.
    pub table: TableNumber,
    /// The document within its table.
    pub internal: InternalId,
}

impl DocumentId {
    /// Bytes of [`DocumentId::key`].
    pub const KEY_LEN: usize = 20;

    /// The key in the `docs` keyspace: table number (u32, big-endian) then internal id.
    #[must_use]
    pub fn key(&self) -> [u8; DocumentId::KEY_LEN] {
        let mut key = [0; DocumentId::KEY_LEN];
        key[..4].copy_from_slice(&self.table.get().to_be_bytes());
        key[4..].copy_from_slice(self.internal.as_bytes());
        key
    }

    /// The inverse of [`DocumentId::key`].
    ///
    /// # Errors
    /// [`IdError::KeyLength`] unless there are exactly 20 bytes, [`IdError::TableNumberZero`].
    pub fn from_key(key: &[u8]) -> Result<DocumentId, IdError> {
        let wrong = || IdError::KeyLength {
            expected: DocumentId::KEY_LEN,
            found: key.len(),
        };
        let (table, internal) = key.split_first_chunk::<4>().ok_or_else(wrong)?;
        let internal = internal.try_into().map_err(|_| wrong())?;
        let table = TableNumber::new(u32::from_be_bytes(*table)).ok_or(IdError::TableNumberZero)?;
        Ok(DocumentId {
            table,
            internal: InternalId(internal),
        })
    }

    /// Binary form in a fixed buffer, and its length.
    fn binary(&self) -> ([u8; MAX_BINARY], usize) {
        let mut bytes = [0; MAX_BINARY];
        let mut len = write_vint(self.table.get(), &mut bytes);
        bytes[len..len + InternalId::LEN].copy_from_slice(self.internal.as_bytes());
        len += InternalId::LEN;
        let footer = checksum(&bytes[..len]).to_le_bytes();
        bytes[len..len + CHECKSUM_LEN].copy_from_slice(&footer);
        (bytes, len + CHECKSUM_LEN)
    }
}

impl fmt::Display for DocumentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bytes, len) = self.binary();
        let mut text = [0; MAX_TEXT];
        let text = base32(&bytes[..len], &mut text);
        f.write_str(std::str::from_utf8(text).map_err(|_| fmt::Error)?)
    }
}

impl FromStr for DocumentId {
    type Err = IdError;

    fn from_str(text: &str) -> Result<DocumentId, IdError> {
        let mut buffer = [0; MAX_BINARY];
        let bytes = unbase32(text.as_bytes(), &mut buffer)?;
        let (table, body) = read_vint(bytes)?;
        let table = TableNumber::new(table).ok_or(IdError::TableNumberZero)?;
        let expected = InternalId::LEN + CHECKSUM_LEN;
        let wrong = || IdError::BodyLength {
            expected,
            found: body.len(),
        };
        let (internal, footer) = body.split_first_chunk().ok_or_else(wrong)?;
        let footer: [u8; CHECKSUM_LEN] = footer.try_into().map_err(|_| wrong())?;
        let (found, expected) = (
            u16::from_le_bytes(footer),
            checksum(&bytes[..bytes.len() - CHECKSUM_LEN]),
        );
        if found != expected {
            return Err(IdError::Checksum { expected, found });
        }
        let id = DocumentId {
            table,
            internal: InternalId(*internal),
        };
        // A padded table number or set bits after the last byte would be a second name for one id.
        let (canonical, len) = id.binary();
        let mut again = [0; MAX_TEXT];
        if base32(&canonical[..len], &mut again) != text.as_bytes() {
            return Err(IdError::NotCanonical);
        }
        Ok(id)
    }
}

impl Serialize for DocumentId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for DocumentId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Text;
        impl de::Visitor<'_> for Text {
            type Value = DocumentId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a document id")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<DocumentId, E> {
                text.parse().map_err(E::custom)
            }
        }
        deserializer.deserialize_str(Text)
    }
}

/// LEB128; returns the bytes written (1 to 5).
fn write_vint(mut number: u32, out: &mut [u8; MAX_BINARY]) -> usize {
    let mut len = 0;
    loop {
        let low = (number & 0x7f) as u8;
        number >>= 7;
        out[len] = if number == 0 { low } else { low | 0x80 };
        len += 1;
        if number == 0 {
            return len;
        }
    }
}

/// LEB128 of at most five bytes; returns the number and the rest.
fn read_vint(bytes: &[u8]) -> Result<(u32, &[u8]), IdError> {
    let mut number = 0_u64;
    for (index, byte) in bytes.iter().take(5).enumerate() {
        number |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            let number = u32::try_from(number).map_err(|_| IdError::TableNumberTooLarge)?;
            return Ok((number, &bytes[index + 1..]));
        }
    }
    Err(IdError::TableNumberTooLarge)
}

/// Fletcher-16 with modulus 256, exclusive-or the id version, which is 0 (convex.md 2.3).
fn checksum(bytes: &[u8]) -> u16 {
    let (mut low, mut high) = (0_u8, 0_u8);
    for byte in bytes {
        low = low.wrapping_add(*byte);
        high = high.wrapping_add(low);
    }
    u16::from_be_bytes([high, low])
}

/// Big-endian bit order, zero bits at the end. `bytes` has at most [`MAX_BINARY`] bytes.
fn base32<'a>(bytes: &[u8], out: &'a mut [u8; MAX_TEXT]) -> &'a [u8] {
    let (mut acc, mut bits, mut len) = (0_u32, 0, 0);
    for byte in bytes {
        acc = (acc << 8) | u32::from(*byte);
        bits += 8;
        while bits >= 5 {
            bits -= 5;
            out[len] = ALPHABET[(acc >> bits) as usize & 31];
            len += 1;
        }
    }
    if bits > 0 {
        out[len] = ALPHABET[(acc << (5 - bits)) as usize & 31];
        len += 1;
    }
    &out[..len]
}

/// Whole bytes only; the bits left over are checked by the caller, which encodes again.
fn unbase32<'a>(text: &[u8], out: &'a mut [u8; MAX_BINARY]) -> Result<&'a [u8], IdError> {
    if !(MIN_TEXT..=MAX_TEXT).contains(&text.len()) {
        return Err(IdError::Length { found: text.len() });
    }
    let (mut acc, mut bits, mut len) = (0_u32, 0, 0);
    for (position, character) in text.iter().enumerate() {
        let digit = digit(*character).ok_or(IdError::Alphabet { position })?;
        acc = (acc << 5) | u32::from(digit);
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            out[len] = (acc >> bits) as u8;
            len += 1;
        }
    }
    Ok(&out[..len])
}

fn digit(character: u8) -> Option<u8> {
    let index = ALPHABET
        .iter()
        .position(|candidate| *candidate == character)?;
    u8::try_from(index).ok()
}

#[cfg(test)]
#[path = "id_tests.rs"]
mod tests;
