//! Reading a sealed stream: a chunk is handed out when it was authenticated, and the last one when
//! nothing follows it.
//!
//! Must not know where the bytes come from.

use std::fmt;
use std::io::{self, Read};

use super::{
    Buffer, CHUNK_BYTES, Chunks, FRAME_BYTES, LAST, MAGIC, STREAM_HEADER_BYTES, STREAM_VERSION,
    StreamError, TAG_BYTES, VERSION_BYTES,
};
use crate::context::FileId;
use crate::key::Dek;

/// Opens a stream that a [`super::SealedWriter`] sealed, in constant memory (one chunk).
///
/// Every byte that it gives was authenticated, and so was its place. What was read is the whole of
/// it only when `read` gave 0: act on nothing before. After an error it gives no more bytes.
pub struct SealedReader<R: Read> {
    inner: R,
    pub(super) chunks: Chunks,
    /// The present chunk, opened.
    buffer: Buffer,
    /// How much of it was handed out.
    taken: usize,
    state: State,
}

#[derive(Clone, Copy)]
enum State {
    /// More chunks follow.
    Within,
    /// The present chunk is the last.
    Ended,
    /// Nothing more is given.
    Refused(StreamError),
}

impl<R: Read> SealedReader<R> {
    /// Reads the header. File id and associated data have to be those of the writer. The reader
    /// below needs no buffer and is read to its end.
    ///
    /// # Errors
    /// Those of the reader below; [`StreamError::NotAStream`], [`StreamError::Version`],
    /// [`StreamError::Truncated`].
    pub fn new(mut inner: R, dek: &Dek, file_id: FileId, associated: &[u8]) -> io::Result<Self> {
        let mut header = [0; STREAM_HEADER_BYTES];
        let found = fill(&mut inner, &mut header)?;
        let magic = found.min(MAGIC.len());
        if header[..magic] != MAGIC[..magic] {
            return Err(StreamError::NotAStream.into());
        }
        let short = || StreamError::Truncated { chunk: 0 };
        if found < STREAM_HEADER_BYTES {
            return Err(short().into());
        }
        let rest = &header[MAGIC.len()..];
        let (version, prefix) = rest
            .split_first_chunk::<VERSION_BYTES>()
            .ok_or_else(short)?;
        let version = u32::from_be_bytes(*version);
        if version != STREAM_VERSION {
            return Err(StreamError::Version { found: version }.into());
        }
        let prefix = prefix.try_into().map_err(|_| short())?;
        Ok(Self {
            inner,
            chunks: Chunks::new(dek, file_id, associated, prefix),
            buffer: Buffer::new(),
            taken: 0,
            state: State::Within,
        })
    }

    #[cfg(test)]
    pub(super) fn inner_mut(&mut self) -> &mut R {
        &mut self.inner
    }

    /// Reads and opens the next chunk.
    fn advance(&mut self) -> io::Result<()> {
        let (last, length) = self.frame()?;
        self.taken = 0;
        let sealed = self.buffer.sized(length + TAG_BYTES);
        if fill(&mut self.inner, sealed)? < length + TAG_BYTES {
            return Err(self.truncated().into());
        }
        self.chunks.open(last, &mut self.buffer)?;
        if last {
            if fill(&mut self.inner, &mut [0])? > 0 {
                return Err(StreamError::Trailing.into());
            }
            self.state = State::Ended;
        }
        Ok(())
    }

    /// Whether the next chunk is the last, and the length of its plaintext.
    fn frame(&mut self) -> io::Result<(bool, usize)> {
        let mut frame = [0; FRAME_BYTES];
        if fill(&mut self.inner, &mut frame)? < FRAME_BYTES {
            return Err(self.truncated().into());
        }
        let frame = u32::from_be_bytes(frame);
        let last = frame & LAST != 0;
        let length = usize::try_from(frame & !LAST).unwrap_or(usize::MAX);
        if length > CHUNK_BYTES || (!last && length < CHUNK_BYTES) {
            let chunk = self.chunks.position;
            return Err(StreamError::Unauthentic { chunk }.into());
        }
        Ok((last, length))
    }

    fn truncated(&self) -> StreamError {
        StreamError::Truncated {
            chunk: self.chunks.position,
        }
    }

    /// After an error nothing of the present chunk is left, and each read repeats it. An error from
    /// below ends the stream too: nobody knows how much was read.
    fn refuse(&mut self, error: &io::Error) {
        self.buffer.wipe();
        self.taken = 0;
        self.state = State::Refused(StreamError::of(error).unwrap_or(StreamError::Broken));
    }
}

/// Reads until `buffer` is full or the end is there, and says how much.
fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut found = 0;
    while found < buffer.len() {
        match from.read(&mut buffer[found..]) {
            Ok(0) => break,
            Ok(count) => found += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

impl<R: Read> Read for SealedReader<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        while self.taken == self.buffer.0.len() {
            match self.state {
                State::Within => {}
                State::Ended => return Ok(0),
                State::Refused(error) => return Err(error.into()),
            }
            if let Err(error) = self.advance() {
                self.refuse(&error);
                return Err(error);
            }
        }
        let rest = &self.buffer.0[self.taken..];
        let count = rest.len().min(into.len());
        into[..count].copy_from_slice(&rest[..count]);
        self.taken += count;
        Ok(count)
    }
}

impl<R: Read> fmt::Debug for SealedReader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedReader(chunk {}, redacted)", self.chunks.position)
    }
}
