//! The copies that a rotation keeps of a database and its manifest until it has succeeded:
//! `<file>.bak` and `<file>.nimbus-enc.bak` (seed 003).
//!
//! Must not know when they are made or wanted. They are known as ours by the file id in the copy of the
//! manifest, which is therefore written first and removed last.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use nimbus_crypto::{FileId, MAX_MANIFEST_BYTES, Manifest, manifest_path};

use super::steps::{appended, remove, rename, sync_dir_of};
use crate::provider::files::{self, Entry};
use crate::provider::{ProviderError, ProviderResult};

const BACKUP: &str = ".bak";
/// What is appended to a copy until it is whole.
const PARTIAL: &str = ".partial";

/// The copies of one file.
pub(super) struct Copies {
    file: PathBuf,
}

impl Copies {
    pub(super) fn of(file: &Path) -> Copies {
        Copies {
            file: file.to_owned(),
        }
    }

    fn database(&self) -> PathBuf {
        appended(&self.file, BACKUP)
    }

    fn manifest(&self) -> PathBuf {
        appended(&manifest_path(&self.file), BACKUP)
    }

    /// Whether there are copies of this very file.
    pub(super) fn ours(&self, file_id: FileId) -> ProviderResult<bool> {
        let path = self.manifest();
        let mut bytes = Vec::new();
        let read = files::open_read_only(&path).and_then(|file| {
            let most = MAX_MANIFEST_BYTES as u64 + 1;
            file.take(most).read_to_end(&mut bytes)
        });
        match read {
            Ok(_) => {
                let manifest = Manifest::decode(&bytes);
                Ok(manifest.is_ok_and(|manifest| manifest.file_id() == file_id))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(files::error("reading", &path, e)),
        }
    }

    /// Nothing of someone else has their names.
    pub(super) fn refuse_foreign(&self, file_id: FileId) -> ProviderResult<()> {
        for path in [self.database(), self.manifest()] {
            let there = files::inspect(&path).map_err(|e| files::error("looking at", &path, e))?;
            if there != Entry::Absent && !self.ours(file_id)? {
                let what = format!("keeping {} as {}", self.file.display(), path.display());
                let why = "that name is taken: move it away, or pass --skip-backup";
                return Err(ProviderError::io(what, why));
            }
        }
        Ok(())
    }

    /// Copies manifest and database as they are, each durably under another name first.
    pub(super) fn make(&self) -> ProviderResult<()> {
        copy(&manifest_path(&self.file), &self.manifest())?;
        copy(&self.file, &self.database())
    }

    /// Whether the database is among them.
    pub(super) fn whole(&self) -> ProviderResult<bool> {
        let path = self.database();
        let there = files::inspect(&path).map_err(|e| files::error("looking at", &path, e))?;
        Ok(matches!(there, Entry::Regular { .. }))
    }

    /// Puts them back. The manifest goes last: until then the one that is there has the old key, too.
    pub(super) fn restore(&self) -> ProviderResult<()> {
        rename(&self.database(), &self.file)?;
        rename(&self.manifest(), &manifest_path(&self.file))
    }

    /// Removes them if they are ours, and what is left of unfinished ones; true if there was something.
    pub(super) fn remove(&self, file_id: FileId) -> ProviderResult<bool> {
        let mut found = false;
        for path in [self.database(), self.manifest()] {
            found |= remove(&appended(&path, PARTIAL))?;
        }
        if !self.ours(file_id)? {
            return Ok(found);
        }
        remove(&self.database())?;
        sync_dir_of(&self.file)?;
        remove(&self.manifest())?;
        sync_dir_of(&self.file).map(|()| true)
    }
}

fn copy(from: &Path, to: &Path) -> ProviderResult<()> {
    let partial = appended(to, PARTIAL);
    let copied = (|| {
        let mut source = files::open_read_only(from)?;
        files::remove_if_exists(&partial)?;
        let mut target = files::create_new(&partial)?;
        // By hand: what the system copies by itself the power-loss tests could not record.
        let mut buffer = vec![0; 1 << 20];
        loop {
            match source.read(&mut buffer)? {
                0 => break target.sync_all(),
                n => target.write_all(&buffer[..n])?,
            }
        }
    })();
    if let Err(e) = copied {
        let _ = files::remove_if_exists(&partial);
        return Err(files::error("copying to", to, e));
    }
    rename(&partial, to)
}
