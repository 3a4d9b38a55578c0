//! Writing a sealed stream: plaintext is gathered to whole chunks, and a full one is sealed when it
//! is known not to be the last.
//!
//! Must not know where the bytes go.

use std::fmt;
use std::io::{self, Write};

use super::{Buffer, CHUNK_BYTES, Chunks, LAST, PREFIX_BYTES, StreamError, header};
use crate::context::FileId;
use crate::key::{Dek, random};

/// Seals what is written to it, in constant memory (one chunk).
///
/// Call [`SealedWriter::finish`] at the end: a stream without its last chunk is one that was cut, and
/// [`super::SealedReader`] says so. Flushing hands on whole chunks only. The writer below is given
/// about 64 KiB at a time and needs no buffer.
///
/// ```
/// use std::io::{Read, Write};
///
/// use nimbus_crypto::{Dek, FileId, SealedReader, SealedWriter};
///
/// let (key, id) = (Dek::generate()?, FileId::generate()?);
/// let mut writer = SealedWriter::new(Vec::new(), &key, id, b"what it is")?;
/// writer.write_all(b"hello")?;
/// let sealed = writer.finish()?;
///
/// let mut text = String::new();
/// SealedReader::new(&sealed[..], &key, id, b"what it is")?.read_to_string(&mut text)?;
/// assert_eq!(text, "hello");
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct SealedWriter<W: Write> {
    inner: W,
    pub(super) chunks: Chunks,
    /// Plaintext that is not sealed yet, at most one chunk.
    buffer: Buffer,
    broken: bool,
}

impl<W: Write> SealedWriter<W> {
    /// Writes the header. `associated` is authenticated and not stored: the reader has to know the
    /// same bytes, of any length.
    ///
    /// # Errors
    /// Those of the writer below, and when the operating system gives no random bytes.
    pub fn new(inner: W, dek: &Dek, file_id: FileId, associated: &[u8]) -> io::Result<Self> {
        Self::with_prefix(inner, dek, file_id, associated, random()?)
    }

    pub(super) fn with_prefix(
        mut inner: W,
        dek: &Dek,
        file_id: FileId,
        associated: &[u8],
        prefix: [u8; PREFIX_BYTES],
    ) -> io::Result<Self> {
        inner.write_all(&header(&prefix))?;
        Ok(Self {
            inner,
            chunks: Chunks::new(dek, file_id, associated, prefix),
            buffer: Buffer::new(),
            broken: false,
        })
    }

    /// Seals the last chunk, flushes the writer below and gives it back. Making it durable is the
    /// caller's.
    ///
    /// # Errors
    /// Those of the writer below; [`StreamError::Broken`] after an earlier one,
    /// [`StreamError::TooLong`].
    pub fn finish(mut self) -> io::Result<W> {
        self.put(true)?;
        self.inner.flush()?;
        Ok(self.inner)
    }

    #[cfg(test)]
    pub(super) fn inner_mut(&mut self) -> &mut W {
        &mut self.inner
    }

    /// Seals the buffer and hands it on. After an error nobody knows how much of it arrived.
    fn put(&mut self, last: bool) -> io::Result<()> {
        if std::mem::replace(&mut self.broken, true) {
            return Err(StreamError::Broken.into());
        }
        // A chunk has at most 2^16 bytes.
        let length = u32::try_from(self.buffer.0.len()).map_err(io::Error::other)?;
        let frame = if last { length | LAST } else { length };
        self.chunks.seal(last, &mut self.buffer)?;
        self.inner.write_all(&frame.to_be_bytes())?;
        self.inner.write_all(&self.buffer.0)?;
        // It holds ciphertext now.
        self.buffer.0.clear();
        self.broken = false;
        Ok(())
    }
}

impl<W: Write> Write for SealedWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if bytes.is_empty() {
            return Ok(0);
        }
        if self.broken || self.buffer.0.len() >= CHUNK_BYTES {
            self.put(false)?;
        }
        let taken = bytes.len().min(CHUNK_BYTES - self.buffer.0.len());
        self.buffer.0.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<W: Write> fmt::Debug for SealedWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedWriter(chunk {}, redacted)", self.chunks.position)
    }
}
