//! Writing a batch of manifests: all temporary files, all syncs at once, all renames, and one sync
//! of each directory.
//!
//! Must not know keys. A file that fails does not keep the others from being written.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread;

use super::{RotationFailure, Step, failure};
use crate::manifest::{Manifest, ManifestError, Replacement};

/// Threads that wait for the disk: a file system makes many small files durable together when it is
/// asked for them together.
const THREADS: usize = 16;

/// One manifest on its way.
type Written = (PathBuf, Replacement);

/// Replaces the manifests of these files; gives those that are durable, and the failures.
pub(super) fn replace_all(
    batch: Vec<(PathBuf, Manifest)>,
    step: fn(Step),
) -> (Vec<PathBuf>, Vec<RotationFailure>) {
    let mut failed = Vec::new();
    let mut written: Vec<Written> = Vec::with_capacity(batch.len());
    for (file, manifest) in batch {
        match Replacement::begin(&file, &manifest) {
            Ok(replacement) => written.push((file, replacement)),
            Err(error) => failed.push(failure(&file, error)),
        }
        step(Step::TempWritten);
    }
    let outcomes = in_parallel(&written, step);
    let written = keep(written, outcomes, &mut failed);
    let outcomes: Vec<_> = written.iter().map(|(_, one)| publish(one, step)).collect();
    let written = keep(written, outcomes, &mut failed);
    let outcomes = sync_directories(&written, step);
    let written = keep(written, outcomes, &mut failed);
    (written.into_iter().map(|(file, _)| file).collect(), failed)
}

/// Those whose outcome is good; the others go to `failed`.
fn keep(
    written: Vec<Written>,
    outcomes: Vec<Result<(), ManifestError>>,
    failed: &mut Vec<RotationFailure>,
) -> Vec<Written> {
    let mut kept = Vec::with_capacity(written.len());
    for (one, outcome) in written.into_iter().zip(outcomes) {
        match outcome {
            Ok(()) => kept.push(one),
            Err(error) => failed.push(failure(&one.0, error)),
        }
    }
    kept
}

/// Makes the temporary files durable, in the order of `written`.
fn in_parallel(written: &[Written], step: fn(Step)) -> Vec<Result<(), ManifestError>> {
    let sync = |(_, one): &Written| {
        let outcome = one.sync();
        step(Step::TempSynced);
        outcome
    };
    let share = written.len().div_ceil(THREADS).max(1);
    thread::scope(|scope| {
        let start = |part: &'_ [Written]| part.iter().map(sync).collect::<Vec<_>>();
        let threads: Vec<_> = written
            .chunks(share)
            .map(|part| (part, scope.spawn(move || start(part))))
            .collect();
        let mut outcomes = Vec::with_capacity(written.len());
        for (part, thread) in threads {
            match thread.join() {
                Ok(some) => outcomes.extend(some),
                Err(_) => outcomes.extend(part.iter().map(|(file, _)| Err(panicked(file)))),
            }
        }
        outcomes
    })
}

fn panicked(file: &Path) -> ManifestError {
    ManifestError::Io {
        action: "sync the new manifest of",
        path: file.to_path_buf(),
        source: std::io::Error::other("a thread panicked"),
    }
}

fn publish(one: &Replacement, step: fn(Step)) -> Result<(), ManifestError> {
    one.publish()?;
    step(Step::Renamed);
    Ok(())
}

/// Syncs each directory once. Where that fails, all files in it are not known to be durable.
fn sync_directories(written: &[Written], step: fn(Step)) -> Vec<Result<(), ManifestError>> {
    let mut failures = BTreeMap::new();
    let mut last: Option<&Path> = None;
    for (file, one) in written {
        let directory = file.parent();
        // In the order of names, files of one directory mostly follow each other.
        if directory == last {
            continue;
        }
        last = directory;
        if let Err(error) = one.sync_directory() {
            failures.insert(directory, error.to_string());
        }
        step(Step::DirectorySynced);
    }
    let outcome = |(file, _): &Written| match failures.get(&file.parent()) {
        None => Ok(()),
        Some(error) => Err(ManifestError::Io {
            action: "make durable the new manifest of",
            path: file.clone(),
            source: std::io::Error::other(error.clone()),
        }),
    };
    written.iter().map(outcome).collect()
}
