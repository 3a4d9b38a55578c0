//! The keys of the files that this store encrypts: one data-encryption key a file, from its manifest.
//!
//! Knows manifests and a key provider. Must not know how a file is encrypted, nor what it holds. A key
//! service is a network call away, so a thread of its own runs the provider; callers block until it
//! answers and must not be asynchronous tasks.

mod admin;
mod copies;
mod lookup;
mod pending;
pub(crate) mod redb;
mod rotate;
mod scan;
mod steps;

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nimbus_crypto::{
    Dek, FileId, KeyError, KeyProvider, KmsFault, Manifest, ManifestError, Subject,
};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::provider::{ProviderError, ProviderResult, files};

pub use admin::{AdminError, AdminResult, Migration, PlainExport, export, migrate};
pub(crate) use lookup::{key_of, refuse_manifest};
pub use rotate::{Recovered, recover, rotate_dek};
pub(crate) use scan::{is_plain, plain_with_manifest};
pub use scan::{protected, scan};

/// Is told how many bytes of a copy are written.
pub type Progress<'a> = &'a mut (dyn FnMut(u64) + Send);

/// How long a provider may take to answer; an open that waits longer fails (reliability row 24).
const PATIENCE: Duration = Duration::from_millis(1_900);

/// How much later than that its thread may be.
const GRACE: Duration = Duration::from_millis(200);

/// Makes and unlocks the keys of files. Cheap to share; the keys it gave stay usable without it, so
/// files that are open are not touched by an outage of the provider.
pub struct Keyring {
    provider: Arc<dyn KeyProvider>,
    tasks: UnboundedSender<Task>,
}

/// The keys of one file, shared by everything that reads or writes it and wiped with the last.
#[derive(Clone, Debug)]
pub struct FileKey(Arc<Keys>);

#[derive(Debug)]
struct Keys {
    subject: Subject,
    file_id: FileId,
    current: Arc<Dek>,
    pending: Option<Arc<Dek>>,
}

impl FileKey {
    /// Which file it is for.
    pub fn subject(&self) -> &Subject {
        &self.0.subject
    }

    /// The file's id, which its pages are bound to.
    pub fn file_id(&self) -> FileId {
        self.0.file_id
    }

    /// What the file is encrypted with, unless a rotation was interrupted.
    pub fn current(&self) -> &Arc<Dek> {
        &self.0.current
    }

    /// The key of a rotation that was interrupted: to be tried when the current one does not fit.
    pub fn pending(&self) -> Option<&Arc<Dek>> {
        self.0.pending.as_ref()
    }
}

type Work = Box<dyn FnOnce(Arc<dyn KeyProvider>) -> WorkFuture + Send>;
type WorkFuture = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// Something to run on the keyring's thread.
struct Task(Work);

impl Keyring {
    /// Starts the thread that asks `provider`.
    ///
    /// # Errors
    /// `Io` when the system gives no thread.
    pub fn new(provider: Arc<dyn KeyProvider>) -> ProviderResult<Arc<Keyring>> {
        let (tasks, queue) = unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|e| ProviderError::io("starting the thread of keys", e))?;
        let own = Arc::clone(&provider);
        std::thread::Builder::new()
            .name("nimbus-keys".to_owned())
            .spawn(move || runtime.block_on(run(own, queue)))
            .map_err(|e| ProviderError::io("starting the thread of keys", e))?;
        Ok(Arc::new(Keyring { provider, tasks }))
    }

    /// The name of the provider, as the command line has it.
    pub fn provider_name(&self) -> &str {
        self.provider.name()
    }

    /// Makes the key of a file that is about to be created, and writes its manifest durably. Blocks.
    ///
    /// # Errors
    /// `Locked` with [`ManifestError::Exists`] when there is a manifest already, or another reason;
    /// `KeyUnavailable` when the provider does not answer.
    pub fn create(&self, file: &Path, subject: &Subject) -> ProviderResult<FileKey> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let created_at = now.unwrap_or_default().as_secs();
        let wanted = subject.clone();
        let (manifest, dek) = self.ask(file, move |provider| {
            Box::pin(async move { Manifest::create(&*provider, wanted, created_at).await })
        })?;
        manifest
            .write_new(file)
            .map_err(|e| ProviderError::locked(file, e))?;
        Ok(FileKey(Arc::new(Keys {
            subject: subject.clone(),
            file_id: manifest.file_id(),
            current: Arc::new(dek),
            pending: None,
        })))
    }

    /// Reads the manifest of a file and unwraps its keys. Blocks.
    ///
    /// # Errors
    /// `Locked` when the manifest is missing, belongs to another file, was changed or has another
    /// key; `KeyUnavailable` when the provider does not answer.
    pub fn unlock(&self, file: &Path, subject: &Subject) -> ProviderResult<FileKey> {
        let manifest = Manifest::read(file, subject).map_err(|e| ProviderError::locked(file, e))?;
        let file_id = manifest.file_id();
        let wanted = subject.clone();
        let keys = self.ask(file, move |provider| {
            Box::pin(async move { manifest.unlock(&*provider, &wanted).await })
        })?;
        Ok(FileKey(Arc::new(Keys {
            subject: subject.clone(),
            file_id,
            current: Arc::new(keys.current),
            pending: keys.pending.map(Arc::new),
        })))
    }

    /// Runs one call of the provider on the keyring's thread and waits for it. Blocks.
    ///
    /// # Errors
    /// What the call gave, as `Locked` or `KeyUnavailable` for `file`.
    pub fn ask<T: Send + 'static>(
        &self,
        file: &Path,
        call: impl FnOnce(Arc<dyn KeyProvider>) -> Answer<T> + Send + 'static,
    ) -> ProviderResult<T> {
        let (reply, answer) = mpsc::sync_channel(1);
        let work: Work = Box::new(move |provider| {
            Box::pin(async move {
                // Nobody waits any more if the caller is gone.
                let _ = reply.send(tokio::time::timeout(PATIENCE, call(provider)).await);
            })
        });
        let gone = || unavailable(file, "the thread of keys ended");
        self.tasks.send(Task(work)).map_err(|_| gone())?;
        // The provider itself may block its thread, as a key directory on a network disk does.
        let late = PATIENCE + GRACE;
        match answer.recv_timeout(late).map_err(|_| silent(file))? {
            Ok(answer) => answer.map_err(|e| ProviderError::locked(file, e)),
            Err(_) => Err(silent(file)),
        }
    }
}

/// What a call of the provider gives, later.
pub type Answer<T> =
    std::pin::Pin<Box<dyn Future<Output = Result<T, ManifestError>> + Send + 'static>>;

/// Runs what is asked, several calls at once, until the keyring is gone.
async fn run(provider: Arc<dyn KeyProvider>, mut queue: UnboundedReceiver<Task>) {
    while let Some(Task(work)) = queue.recv().await {
        tokio::spawn(work(Arc::clone(&provider)));
    }
}

fn silent(file: &Path) -> ProviderError {
    let text = format!(
        "the key provider did not answer within {} ms",
        PATIENCE.as_millis()
    );
    unavailable(file, &text)
}

fn unavailable(file: &Path, reason: &str) -> ProviderError {
    ProviderError::KeyUnavailable {
        what: file.display().to_string(),
        source: reason.into(),
    }
}

/// Whether a key service failed for a reason of its own, rather than refuse what the manifest holds.
fn may_pass(e: &KeyError) -> bool {
    match e {
        KeyError::Service { .. } => true,
        KeyError::Kms { fault, .. } => !matches!(
            fault,
            KmsFault::WrongKey { .. } | KmsFault::InvalidCiphertext
        ),
        _ => false,
    }
}

impl ProviderError {
    /// A file whose key is not to be had: for good, or because a key service fails.
    pub(crate) fn locked(file: &Path, e: ManifestError) -> ProviderError {
        let what = file.display().to_string();
        match e {
            ManifestError::Key(ref key) if may_pass(key) => ProviderError::KeyUnavailable {
                what,
                source: Box::new(e),
            },
            ManifestError::Io { ref source, .. } if files::is_full(source) => ProviderError::Full {
                what: e.to_string(),
            },
            source => ProviderError::Locked {
                what,
                source: Box::new(source),
            },
        }
    }
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keyring({})", self.provider.name())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
