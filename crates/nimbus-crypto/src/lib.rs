//! Encrypts database files at rest: one random key for each file, wrapped by a key that you keep
//! elsewhere, in a sidecar manifest `<file>.nimbus-enc`.
//!
//! # What you want to do
//!
//! **Encrypt a new file.** Choose a [`KeyProvider`], say which file it is ([`Subject`]), and make a
//! [`Manifest`]. Write it before the file, and encrypt the file with the [`Dek`] that came with it.
//!
//! **Open it again.** [`Manifest::read`], then [`Manifest::unlock`] with the subject that the file
//! should have. Only that authenticates what the manifest says.
//!
//! ```
//! use nimbus_crypto::{Manifest, MasterKeyFile, Subject, WrappingKey};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! # let file = dir.path().join("demo.sqlite3");
//! // From a file of 32 bytes and mode 0400: MasterKeyFile::open(path)
//! let provider = MasterKeyFile::new(WrappingKey::generate()?);
//! let subject = Subject::sqlite_tenant("demo")?;
//!
//! let (manifest, key) = Manifest::create(&provider, subject.clone(), 1_790_000_000).await?;
//! manifest.write_new(&file)?;
//!
//! let unlocked = Manifest::read(&file, &subject)?
//!     .unlock(&provider, &subject)
//!     .await?;
//! assert!(unlocked.current == key);
//! # Ok(())
//! # }
//! ```
//!
//! **Encrypt the pages of a file yourself.** [`PageCipher`] with the [`Dek`] and
//! [`Manifest::file_id`]; SQLCipher takes the key raw instead ([`Dek::expose_secret`]).
//!
//! **Encrypt a stream of any length**, such as a backup. [`SealedWriter`] and [`SealedReader`], with
//! a manifest of [`Subject::backup`] that the stream's own header carries ([`Manifest::encode`]).
//!
//! **Give a file a new key.** [`Manifest::begin_rotation`] and [`Manifest::replace`], re-encrypt the
//! file, [`Manifest::finish_rotation`] and [`Manifest::replace`]. In between the manifest has both
//! keys, so if the file changes over in one step (as with SQLCipher's rekey, or a rename), a crash at
//! any time leaves one that the current or the pending key opens.
//!
//! **Keep keys in a service of yours.** Implement [`KeyProvider`]; its calls are asynchronous.
//!
//! # What is not detected
//!
//! An older version of a whole file together with its manifest, and an older version of one page in
//! its own place, are authentic. Whoever can read this process's memory can read its keys.
//!
//! Unix only: modes and links are part of the promises. This crate knows no other crate of Nimbus,
//! no database and no network.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod cipher;
mod context;
mod key;
mod key_file;
mod manifest;
mod page;
mod provider;
mod seal;
mod stream;
mod subject;

pub use cipher::Cipher;
pub use context::{FILE_ID_BYTES, FileId, KeyContext, KeyRole, MANIFEST_VERSION};
pub use key::{Dek, Entropy, Fingerprint, KEY_BYTES, WrappingKey};
pub use key_file::{KeyFileError, read_key_file};
pub use manifest::{
    MAX_MANIFEST_BYTES, Manifest, ManifestError, ManifestFault, Unlocked, manifest_path,
};
pub use page::{PAGE_BYTES, PAGE_FORMAT_VERSION, PageCipher, PageError, SLOT_BYTES};
pub use provider::{
    AES_256_GCM_SIV, DirectoryFault, KeyDir, KeyError, KeyFuture, KeyProvider, MasterKeyFile,
    WRAPPED_BYTES, WrappedKey,
};
pub use stream::{
    CHUNK_BYTES, STREAM_HEADER_BYTES, STREAM_VERSION, SealedReader, SealedWriter, StreamError,
    sealed_length,
};
pub use subject::{
    CONTROL_FILE, KEY_FILE_ENDING, MAX_FILE_NAME, MAX_TENANT_ID, Subject, SubjectError, SubjectKind,
};
