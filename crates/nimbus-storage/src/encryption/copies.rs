//! The copies that a rotation keeps of a database and its manifest until it has succeeded:
//! `<file>.bak` and `<file>.nimbus-enc.bak` (seed 003).
//!
//! Must not know when they are made or wanted. They are known as ours by a mark, `<file>.bak-rotation`,
//! which holds the file's id, is written first and removed last: without it, whatever has these names is
//! an operator's own and is neither read nor removed.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use nimbus_crypto::{FileId, manifest_path};

use super::steps::{PARTIAL, appended, look, remove, rename, sync_dir_of};
use crate::provider::files::{self, Entry};
use crate::provider::{ProviderError, ProviderResult};

const BACKUP: &str = ".bak";
/// What is appended to the file's name for the mark.
const MARK: &str = ".bak-rotation";
/// Bytes of a mark that are read: one more than it has.
const MOST_OF_MARK: u64 = 33;

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

    fn mark(&self) -> PathBuf {
        appended(&self.file, MARK)
    }

    /// Whether a rotation of this very file made copies, or began to.
    pub(super) fn ours(&self, file_id: FileId) -> ProviderResult<bool> {
        let path = self.mark();
        if !matches!(look(&path)?, Entry::Regular { .. }) {
            return Ok(false);
        }
        let mut text = String::new();
        let read = files::open_read_only(&path)
            .and_then(|file| file.take(MOST_OF_MARK).read_to_string(&mut text));
        read.map_err(|e| files::error("reading", &path, e))?;
        Ok(text == file_id.to_string())
    }

    /// Nothing of someone else has their names.
    pub(super) fn refuse_foreign(&self, file_id: FileId) -> ProviderResult<()> {
        for path in [self.database(), self.manifest(), self.mark()] {
            if look(&path)? != Entry::Absent && !self.ours(file_id)? {
                let what = format!("keeping {} as {}", self.file.display(), path.display());
                let why = "that name is taken: move it away, or pass --skip-backup";
                return Err(ProviderError::io(what, why));
            }
        }
        Ok(())
    }

    /// Copies manifest and database as they are, each durably under another name first.
    pub(super) fn make(&self, file_id: FileId) -> ProviderResult<()> {
        self.write_mark(file_id)?;
        copy(&manifest_path(&self.file), &self.manifest())?;
        copy(&self.file, &self.database())
    }

    fn write_mark(&self, file_id: FileId) -> ProviderResult<()> {
        let (path, partial) = (self.mark(), appended(&self.mark(), PARTIAL));
        remove(&partial)?;
        let written = files::create_new(&partial).and_then(|mut file| {
            file.write_all(file_id.to_string().as_bytes())?;
            file.sync_all()
        });
        written.map_err(|e| files::error("writing", &partial, e))?;
        rename(&partial, &path)
    }

    /// Whether both are there.
    pub(super) fn whole(&self) -> ProviderResult<bool> {
        let regular = |path: &Path| Ok(matches!(look(path)?, Entry::Regular { .. }));
        Ok(regular(&self.database())? && regular(&self.manifest())?)
    }

    /// Puts them back. The manifest goes last: until then the one that is there has the old key, too.
    pub(super) fn restore(&self) -> ProviderResult<()> {
        rename(&self.database(), &self.file)?;
        rename(&self.manifest(), &manifest_path(&self.file))?;
        remove(&self.mark())?;
        sync_dir_of(&self.file)
    }

    /// Removes them if they are ours, and what is left of unfinished ones; true if there was something.
    pub(super) fn remove(&self, file_id: FileId) -> ProviderResult<bool> {
        remove(&appended(&self.mark(), PARTIAL))?;
        if !self.ours(file_id)? {
            return Ok(false);
        }
        for path in [self.database(), self.manifest()] {
            remove(&appended(&path, PARTIAL))?;
            remove(&path)?;
        }
        sync_dir_of(&self.file)?;
        remove(&self.mark())?;
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
