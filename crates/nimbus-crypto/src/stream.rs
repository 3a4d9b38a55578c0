//! Sealed streams: bytes of any length encrypted and authenticated in constant memory.
//!
//! XChaCha20-Poly1305 in the STREAM construction (Hoang, Reyhanitabar, Rogaway and Vizár 2015, by
//! RustCrypto's `aead-stream`): 19 random bytes, a chunk counter u32 and a last-chunk flag are the
//! nonce. Must not know what is streamed, where to, or how its key is kept.
//!
//! A stream is a header (magic, version u32, the 19 bytes) and chunks. A chunk is a u32, its top bit
//! set on the last one and the rest the length of its plaintext, then ciphertext and tag. Every chunk
//! but the last has [`CHUNK_BYTES`]. The lengths stand there so that a stream that was cut is told
//! from one that was changed; the tags are what authenticates them.

use std::io;

use aead_stream::{NewStream, StreamBE32, StreamPrimitive};
use chacha20poly1305::XChaCha20Poly1305;
use sha2::{Digest, Sha256};
use zeroize::Zeroize;

use crate::context::{Fields, FileId};
use crate::key::{Dek, Entropy};

mod reader;
mod writer;

pub use reader::SealedReader;
pub use writer::SealedWriter;

/// Plaintext bytes in every chunk but the last, which has as many or fewer.
pub const CHUNK_BYTES: usize = 64 * 1024;
/// The version of the format.
pub const STREAM_VERSION: u32 = 1;
/// Length of the header in bytes: magic, version, and the random part of the nonces.
pub const STREAM_HEADER_BYTES: usize = MAGIC.len() + VERSION_BYTES + PREFIX_BYTES;

const MAGIC: [u8; 8] = *b"NIMBSEAL";
const VERSION_BYTES: usize = 4;
/// XChaCha20 has nonces of 24 bytes; counter and flag take 5.
const PREFIX_BYTES: usize = 19;
const TAG_BYTES: usize = 16;
/// Length of what stands before a chunk.
const FRAME_BYTES: usize = 4;
/// Marks the last chunk in its frame.
const LAST: u32 = 1 << 31;
/// Sets the associated data of chunks apart from all others.
const LABEL: &str = "nimbus sealed stream";

/// Why a stream was not sealed or opened. It comes inside an [`io::Error`]: [`StreamError::of`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// A chunk was changed or moved, or the stream has another key, file id or associated data.
    #[error(
        "the sealed stream does not authenticate at its chunk {chunk}: it was changed or damaged, or belongs to another key or file"
    )]
    Unauthentic {
        /// The chunk, counted from 0.
        chunk: u32,
    },
    /// The stream has no last chunk: it was cut, or its writer did not finish.
    #[error(
        "the sealed stream ends too early, after {chunk} whole chunks: it was cut, or writing it was interrupted"
    )]
    Truncated {
        /// Whole chunks before the end.
        chunk: u32,
    },
    /// There are bytes after the last chunk.
    #[error("the sealed stream has bytes after its end")]
    Trailing,
    /// The first bytes are not those of a sealed stream.
    #[error("this is not a sealed stream of Nimbus")]
    NotAStream,
    /// Sealed by another version of Nimbus.
    #[error(
        "the sealed stream has version {found}, and this program knows version {STREAM_VERSION}"
    )]
    Version {
        /// The version found.
        found: u32,
    },
    /// More chunks than the counter counts: the limit is 256 TiB.
    #[error("a sealed stream holds at most 256 TiB")]
    TooLong,
    /// An earlier write failed, so what is there cannot be continued.
    #[error("the sealed stream cannot be continued after an error")]
    Broken,
}

impl StreamError {
    /// The stream's own error in `error`, if it is one; otherwise what is below failed.
    #[must_use]
    pub fn of(error: &io::Error) -> Option<Self> {
        error.get_ref()?.downcast_ref().copied()
    }
}

/// [`io::ErrorKind::UnexpectedEof`] for a stream that ends too early, and
/// [`io::ErrorKind::InvalidData`] for everything else that reading finds.
impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        let kind = match error {
            StreamError::Truncated { .. } => io::ErrorKind::UnexpectedEof,
            StreamError::TooLong => io::ErrorKind::FileTooLarge,
            StreamError::Broken => io::ErrorKind::Other,
            _ => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

impl From<Entropy> for io::Error {
    fn from(error: Entropy) -> Self {
        Self::other(error)
    }
}

/// Length in bytes of the stream that seals `plain` bytes; `None` past the limit of 256 TiB.
#[must_use]
pub fn sealed_length(plain: u64) -> Option<u64> {
    let chunks = plain.div_ceil(CHUNK_BYTES as u64).max(1);
    // As many as there are counters.
    if chunks > 1 << 32 {
        return None;
    }
    let around = chunks * (FRAME_BYTES + TAG_BYTES) as u64;
    Some(STREAM_HEADER_BYTES as u64 + plain + around)
}

/// The first bytes of a stream.
fn header(prefix: &[u8; PREFIX_BYTES]) -> [u8; STREAM_HEADER_BYTES] {
    let mut header = [0; STREAM_HEADER_BYTES];
    header[..MAGIC.len()].copy_from_slice(&MAGIC);
    header[MAGIC.len()..][..VERSION_BYTES].copy_from_slice(&STREAM_VERSION.to_be_bytes());
    header[MAGIC.len() + VERSION_BYTES..].copy_from_slice(prefix);
    header
}

/// One chunk, wiped when it is dropped. It never grows past its first allocation, which would leave a copy
/// behind. Not generic, so that its loops are compiled with this crate's optimisation.
struct Buffer(Vec<u8>);

impl Buffer {
    fn new() -> Self {
        Self(Vec::with_capacity(CHUNK_BYTES + TAG_BYTES))
    }

    /// So many bytes to be filled, at most a chunk and its tag.
    fn sized(&mut self, length: usize) -> &mut [u8] {
        self.0.resize(length, 0);
        &mut self.0
    }

    fn wipe(&mut self) {
        self.0.zeroize();
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        self.wipe();
    }
}

/// Seals and opens the chunks of one stream in their order.
struct Chunks {
    /// Boxed, so that moving a reader or writer leaves no copy of the key behind.
    stream: Box<StreamBE32<XChaCha20Poly1305>>,
    aad: Vec<u8>,
    /// The number of the next chunk.
    position: u32,
}

impl Chunks {
    fn new(dek: &Dek, file_id: FileId, associated: &[u8], prefix: [u8; PREFIX_BYTES]) -> Self {
        let mut aad = Fields(Vec::with_capacity(160));
        aad.text(LABEL);
        aad.bytes(&header(&prefix));
        aad.bytes(file_id.as_bytes());
        // Hashed, since it is authenticated with every chunk and may be long.
        aad.bytes(&Sha256::digest(associated));
        Self {
            stream: Box::new(StreamBE32::from_aead(dek.stream_aead(), &prefix.into())),
            aad: aad.0,
            position: 0,
        }
    }

    /// Encrypts the plaintext in `buffer` and appends its tag.
    fn seal(&mut self, last: bool, buffer: &mut Buffer) -> Result<(), StreamError> {
        let next = self.next(last)?;
        let (at, stream) = (self.position, &self.stream);
        let sealed = stream.encrypt_in_place(at, last, &self.aad, &mut buffer.0);
        // Only for lengths that chunks do not have.
        sealed.map_err(|_| StreamError::TooLong)?;
        self.position = next;
        Ok(())
    }

    /// Decrypts `buffer` and takes its tag off. Wiped when it is refused, so that no
    /// unauthenticated byte gets out.
    fn open(&mut self, last: bool, buffer: &mut Buffer) -> Result<(), StreamError> {
        let next = self.next(last)?;
        let (at, stream) = (self.position, &self.stream);
        let opened = stream.decrypt_in_place(at, last, &self.aad, &mut buffer.0);
        if opened.is_err() {
            buffer.wipe();
            return Err(StreamError::Unauthentic { chunk: at });
        }
        self.position = next;
        Ok(())
    }

    /// The highest counter is for a last chunk alone.
    fn next(&self, last: bool) -> Result<u32, StreamError> {
        match self.position.checked_add(1) {
            Some(next) => Ok(next),
            None if last => Ok(self.position),
            None => Err(StreamError::TooLong),
        }
    }
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
