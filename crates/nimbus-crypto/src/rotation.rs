//! Giving manifests another wrapping key (`rotate-kek`): one file, or all of a directory.
//!
//! Only manifests are rewritten, never the files that they belong to. Must not know providers, commands or
//! terminals. The caller keeps other processes away from the directory, and runs this on a thread of
//! its own: it waits for disks.
//!
//! Everything is looked at and unlocked before anything is changed. Then batches are written: new
//! versions beside the manifests, made durable in parallel, renamed, and one sync of each directory. A
//! manifest is under the old key or under the new one at every moment, so running it again finishes what was
//! interrupted, and what is done already is left alone.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use futures_util::future::join_all;

use crate::manifest::{Manifest, ManifestError, manifest_path};
use crate::provider::KeyProvider;

mod scan;
mod write;

/// Manifests that are written together: each takes two file descriptors.
const BATCH: usize = if cfg!(test) { 3 } else { 256 };
/// Manifests whose keys are unwrapped at the same time, for key services.
const AT_ONCE: usize = 16;

/// Rotates wrapping keys from one provider's to another's.
///
/// ```
/// use nimbus_crypto::{KekRotation, Manifest, MasterKeyFile, Subject, WrappingKey};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let dir = tempfile::tempdir()?;
/// let old = MasterKeyFile::new(WrappingKey::generate()?);
/// let new = MasterKeyFile::new(WrappingKey::generate()?);
/// # let subject = Subject::sqlite_tenant("demo")?;
/// # let (manifest, _) = Manifest::create(&old, subject, 0).await?;
/// # manifest.write_new(&dir.path().join("demo.sqlite3"))?;
/// let rotation = KekRotation::new(&old, &new);
/// let plan = rotation.plan_directory(dir.path(), &mut |_| ()).await?;
/// // A dry run ends here.
/// assert_eq!((plan.due().len(), plan.already().len()), (1, 0));
/// let report = rotation.apply(plan, &mut |_| ()).await?;
/// assert!(report.is_complete());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy)]
pub struct KekRotation<'a> {
    old: &'a dyn KeyProvider,
    new: &'a dyn KeyProvider,
    /// Told of every step that changes a disk: where tests stop.
    step: fn(Step),
}

impl fmt::Debug for KekRotation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KekRotation({:?}, {:?})", self.old, self.new)
    }
}

/// A change of a disk that has just happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    LeftoverRemoved,
    TempWritten,
    TempSynced,
    Renamed,
    DirectorySynced,
}

/// How far a rotation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RotationProgress {
    /// Manifests are looked at; nothing is changed yet.
    Planned {
        /// Manifests looked at.
        done: usize,
        /// Manifests in all.
        total: usize,
    },
    /// Manifests have the new key, durably.
    Rotated {
        /// Manifests rotated.
        done: usize,
        /// Manifests to rotate in all.
        total: usize,
    },
}

/// What is to be done. Paths are those of the protected files.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RotationPlan {
    due: Vec<PathBuf>,
    already: Vec<PathBuf>,
    /// Temporary files of an interrupted run.
    leftovers: Vec<PathBuf>,
}

impl RotationPlan {
    /// Files whose manifest is under the old key.
    #[must_use]
    pub fn due(&self) -> &[PathBuf] {
        &self.due
    }

    /// Files whose manifest is under the new key already.
    #[must_use]
    pub fn already(&self) -> &[PathBuf] {
        &self.already
    }
}

/// What was done. Paths are those of the protected files.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct RotationReport {
    /// Files whose manifest was rotated.
    pub rotated: Vec<PathBuf>,
    /// Files whose manifest was under the new key already.
    pub already: Vec<PathBuf>,
    /// Files whose manifest was not rotated, and why.
    pub failed: Vec<RotationFailure>,
    /// Files that were not tried any more after a failure.
    pub left: Vec<PathBuf>,
}

impl RotationReport {
    /// Whether every manifest is under the new key.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.failed.is_empty() && self.left.is_empty()
    }
}

/// A file whose manifest cannot be rotated.
#[derive(Debug, thiserror::Error)]
#[error("{}: {error}", .file.display())]
#[non_exhaustive]
pub struct RotationFailure {
    /// The protected file.
    pub file: PathBuf,
    /// Why not.
    #[source]
    pub error: ManifestError,
}

/// Why a rotation did not begin. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RotationError {
    /// The directory cannot be searched.
    #[error("cannot search {} for manifests: {source}", .path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file has no manifest.
    #[error("there is no manifest at {}: name the database file, whose manifest is beside it", .path.display())]
    NoManifest {
        /// Where it should be.
        path: PathBuf,
    },
    /// Manifests that cannot be read, unlocked with the old key, or brought under the new one.
    #[error("{} cannot be rotated, and nothing was changed:{}", count(.0), listed(.0))]
    Unusable(Vec<RotationFailure>),
    /// What an interrupted run left cannot be removed.
    #[error("cannot remove the leftover {}: {source}", .path.display())]
    Leftover {
        /// The temporary file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

fn count(failures: &[RotationFailure]) -> String {
    match failures.len() {
        1 => "1 manifest".to_owned(),
        many => format!("{many} manifests"),
    }
}

fn listed(failures: &[RotationFailure]) -> String {
    failures.iter().map(|one| format!("\n  {one}")).collect()
}

/// Called as a rotation goes on.
pub type OnProgress<'a> = &'a mut (dyn FnMut(RotationProgress) + Send);

impl<'a> KekRotation<'a> {
    /// From the key of `old` to that of `new`.
    #[must_use]
    pub fn new(old: &'a dyn KeyProvider, new: &'a dyn KeyProvider) -> Self {
        Self {
            old,
            new,
            step: |_| (),
        }
    }

    /// Looks at the manifest of one file.
    ///
    /// # Errors
    /// [`RotationError::NoManifest`], [`RotationError::Unusable`].
    pub async fn plan_file(&self, file: &Path) -> Result<RotationPlan, RotationError> {
        if let Ok(None) = Manifest::find(file) {
            return Err(RotationError::NoManifest {
                path: manifest_path(file),
            });
        }
        let found = scan::Found {
            files: vec![file.to_path_buf()],
            ..scan::Found::default()
        };
        self.plan(found, &mut |_| ()).await
    }

    /// Looks at all manifests in a directory and in its subdirectories, where libSQL caches are. No
    /// links are followed. Each is unlocked with the key that it is under, and the new key of each
    /// subject has to be there.
    ///
    /// # Errors
    /// [`RotationError::Directory`]; [`RotationError::Unusable`] with all that are.
    pub async fn plan_directory(
        &self,
        dir: &Path,
        progress: OnProgress<'_>,
    ) -> Result<RotationPlan, RotationError> {
        let found = scan::scan(dir)?;
        self.plan(found, progress).await
    }

    async fn plan(
        &self,
        found: scan::Found,
        progress: OnProgress<'_>,
    ) -> Result<RotationPlan, RotationError> {
        let total = found.files.len();
        let mut plan = RotationPlan {
            leftovers: found.leftovers,
            ..RotationPlan::default()
        };
        let mut failures = found.odd;
        for (number, files) in found.files.chunks(AT_ONCE).enumerate() {
            let looked_at = join_all(files.iter().map(|file| self.is_due(file))).await;
            for (file, due) in files.iter().zip(looked_at) {
                match due {
                    Ok(true) => plan.due.push(file.clone()),
                    Ok(false) => plan.already.push(file.clone()),
                    Err(error) => failures.push(failure(file, error)),
                }
            }
            let done = number * AT_ONCE + files.len();
            progress(RotationProgress::Planned { done, total });
        }
        if failures.is_empty() {
            return Ok(plan);
        }
        Err(RotationError::Unusable(failures))
    }

    /// Whether the manifest is under the old key; an error when it is under neither.
    async fn is_due(&self, file: &Path) -> Result<bool, ManifestError> {
        let manifest = read(file)?;
        let subject = manifest.subject();
        let id = self.new.key_id(subject).await?;
        let done = [Some(manifest.current()), manifest.pending()]
            .into_iter()
            .flatten()
            .all(|key| key.provider == self.new.name() && key.key_id == id);
        let provider = if done { self.new } else { self.old };
        manifest.unlock(provider, subject).await?;
        Ok(!done)
    }

    /// Rotates what is due. A failure ends it after its batch: what was rotated is reported, and a
    /// new plan goes on from there.
    ///
    /// # Errors
    /// [`RotationError::Leftover`]. Failures of single manifests are in the report.
    pub async fn apply(
        &self,
        plan: RotationPlan,
        progress: OnProgress<'_>,
    ) -> Result<RotationReport, RotationError> {
        self.remove_leftovers(&plan.leftovers)?;
        let total = plan.due.len();
        let mut report = RotationReport {
            already: plan.already,
            ..RotationReport::default()
        };
        let mut batches = plan.due.chunks(BATCH);
        for batch in batches.by_ref() {
            let ready = self.rewrapped(batch, &mut report.failed).await;
            let (done, failed) = write::replace_all(ready, self.step);
            report.rotated.extend(done);
            report.failed.extend(failed);
            let done = report.rotated.len();
            progress(RotationProgress::Rotated { done, total });
            if !report.failed.is_empty() {
                break;
            }
        }
        report.left = batches.flatten().cloned().collect();
        Ok(report)
    }

    /// The new manifests of a batch.
    async fn rewrapped(
        &self,
        batch: &[PathBuf],
        failed: &mut Vec<RotationFailure>,
    ) -> Vec<(PathBuf, Manifest)> {
        let mut ready = Vec::with_capacity(batch.len());
        for files in batch.chunks(AT_ONCE) {
            let made = join_all(files.iter().map(|file| self.rewrap(file))).await;
            for (file, made) in files.iter().zip(made) {
                match made {
                    Ok(manifest) => ready.push((file.clone(), manifest)),
                    Err(error) => failed.push(failure(file, error)),
                }
            }
        }
        ready
    }

    async fn rewrap(&self, file: &Path) -> Result<Manifest, ManifestError> {
        let manifest = read(file)?;
        let subject = manifest.subject();
        manifest.rewrap(self.old, self.new, subject).await
    }

    fn remove_leftovers(&self, leftovers: &[PathBuf]) -> Result<(), RotationError> {
        for path in leftovers {
            match std::fs::remove_file(path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    let path = path.clone();
                    return Err(RotationError::Leftover { path, source });
                }
                _ => (self.step)(Step::LeftoverRemoved),
            }
        }
        Ok(())
    }
}

fn failure(file: &Path, error: ManifestError) -> RotationFailure {
    RotationFailure {
        file: file.to_path_buf(),
        error,
    }
}

/// The manifest that was there a moment ago.
fn read(file: &Path) -> Result<Manifest, ManifestError> {
    let gone = || ManifestError::Io {
        action: "read",
        path: manifest_path(file),
        source: io::ErrorKind::NotFound.into(),
    };
    Manifest::find(file)?.ok_or_else(gone)
}

#[cfg(test)]
mod tests;
