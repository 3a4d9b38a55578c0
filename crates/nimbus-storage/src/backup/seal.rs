//! Plain or sealed: where frames go to and come from. Knows manifests and a keyring; must not know
//! what is in a frame.

use std::io::{self, BufReader, Read, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use nimbus_crypto::{Dek, Manifest, SealedReader, SealedWriter, Subject};

use super::error::{BackupError, BackupResult};
use super::format::{self, FrameReader, sealed_fault};
use crate::encryption::Keyring;

/// Names a backup where a keyring wants the name of a file.
const SHOWN: &str = "the backup";
/// Bytes read from a file at once.
const BUFFER: usize = 256 * 1024;

/// Bytes that were written and not yet fetched.
#[derive(Clone, Default)]
pub(super) struct Outbox(Arc<Mutex<Vec<u8>>>);

impl Outbox {
    pub(super) fn fetch(&self) -> Vec<u8> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Write for Outbox {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut outbox = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        outbox.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Where frames are written.
pub(super) enum Sink {
    Plain(Outbox),
    Sealed(Box<SealedWriter<Outbox>>),
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Sink::Plain(out) => out.write(bytes),
            Sink::Sealed(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Sink::Plain(out) => out.flush(),
            Sink::Sealed(out) => out.flush(),
        }
    }
}

impl Sink {
    /// Writes the preamble; returns it and what takes the frames.
    pub(super) fn begin(
        mut out: Outbox,
        key: Option<(Manifest, Dek)>,
    ) -> BackupResult<(Vec<u8>, Sink)> {
        let preamble = format::preamble(key.as_ref().map(|(manifest, _)| manifest))?;
        out.write_all(&preamble).map_err(BackupError::Io)?;
        let Some((manifest, dek)) = key else {
            return Ok((preamble, Sink::Plain(out)));
        };
        let sealed = SealedWriter::new(out, &dek, manifest.file_id(), &preamble);
        let sealed = sealed.map_err(BackupError::Io)?;
        Ok((preamble, Sink::Sealed(Box::new(sealed))))
    }

    /// Writes what marks the end of a sealed stream.
    pub(super) fn finish(self) -> BackupResult<()> {
        match self {
            Sink::Plain(_) => Ok(()),
            Sink::Sealed(out) => out.finish().map(drop).map_err(BackupError::Io),
        }
    }
}

/// Makes the key of a new backup. Blocks.
pub(super) fn new_key(keyring: &Keyring) -> BackupResult<(Manifest, Dek)> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default().as_secs();
    keyring
        .ask(Path::new(SHOWN), move |provider| {
            Box::pin(async move { Manifest::create(&*provider, Subject::backup(), now).await })
        })
        .map_err(BackupError::Key)
}

/// Whether a backup is sealed, by its first bytes.
///
/// # Errors
/// `NotABackup`, `NewerVersion`, `Damaged`, `Truncated`, `Io`.
pub fn is_sealed(mut input: impl Read) -> BackupResult<bool> {
    Ok(format::read_preamble(&mut input)?.1.is_some())
}

/// A backup that is about to be read.
pub struct Source {
    pub(super) frames: FrameReader<Box<dyn Read + Send>>,
    pub(super) sealed: bool,
}

impl Source {
    /// Reads the first bytes of a backup, and unwraps its key if it is sealed. Blocks; call it
    /// outside asynchronous tasks.
    ///
    /// # Errors
    /// `NotABackup`, `NewerVersion`, `KeyNeeded` without a keyring for a sealed backup, `Key` when
    /// it has another key or provider, `Damaged`, `Truncated`, `Io`.
    pub fn open(
        input: impl Read + Send + 'static,
        keyring: Option<&Keyring>,
    ) -> BackupResult<Source> {
        let mut input = BufReader::with_capacity(BUFFER, input);
        let (preamble, manifest) = format::read_preamble(&mut input)?;
        let sealed = manifest.is_some();
        let input: Box<dyn Read + Send> = match manifest {
            None => Box::new(input),
            Some(manifest) => {
                let dek = unlock(&manifest, keyring)?;
                let opened = SealedReader::new(input, &dek, manifest.file_id(), &preamble);
                Box::new(opened.map_err(|e| sealed_fault(e, 0))?)
            }
        };
        Ok(Source {
            frames: FrameReader::new(input, &preamble),
            sealed,
        })
    }
}

fn unlock(manifest: &Manifest, keyring: Option<&Keyring>) -> BackupResult<Dek> {
    let Some(keyring) = keyring else {
        let key = manifest.current();
        return Err(BackupError::KeyNeeded {
            provider: key.provider.clone(),
            key_id: key.key_id.clone(),
        });
    };
    let manifest = manifest.clone();
    let keys = keyring.ask(Path::new(SHOWN), move |provider| {
        Box::pin(async move { manifest.unlock(&*provider, &Subject::backup()).await })
    });
    Ok(keys.map_err(BackupError::Key)?.current)
}
