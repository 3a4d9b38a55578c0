//! The manifest on disk: `<file>.nimbus-enc`, mode 0600, replaced in one step that survives a power
//! loss. No link is followed at its name.
//!
//! Must not know what a manifest says. The caller keeps other processes away from the directory.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::format::{MAX_MANIFEST_BYTES, ManifestFault};
use super::{Manifest, ManifestError};
use crate::subject::Subject;

/// What is appended to the name of the protected file (seed 003).
pub(crate) const ENDING: &str = ".nimbus-enc";
/// What is appended to that while a manifest is being written.
pub(crate) const TEMP_ENDING: &str = ".tmp";
/// Owner alone: read and write.
const FILE_MODE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Where the manifest of a protected file is: its name and `.nimbus-enc`.
#[must_use]
pub fn manifest_path(file: &Path) -> PathBuf {
    appended(file.as_os_str(), ENDING).into()
}

fn appended(name: &OsStr, ending: &str) -> OsString {
    let mut name = name.to_os_string();
    name.push(ending);
    name
}

impl Manifest {
    /// Reads the manifest of `file`. It is not authenticated yet: see [`Manifest::unlock`].
    /// `subject` is what the file should be; it is used for what to do when there is no manifest.
    ///
    /// # Errors
    /// [`ManifestError::Missing`], [`ManifestError::NotRegular`], [`ManifestError::Invalid`],
    /// [`ManifestError::Io`].
    pub fn read(file: &Path, subject: &Subject) -> Result<Self, ManifestError> {
        Self::find(file)?.ok_or_else(|| ManifestError::Missing {
            path: manifest_path(file),
            file: file.to_path_buf(),
            remedy: subject.remedy(file),
        })
    }

    /// Reads the manifest of `file` if there is one, whatever file it says it is for: to see who
    /// wrapped its keys ([`Manifest::current`], [`Manifest::pending`]). It is not authenticated.
    ///
    /// # Errors
    /// [`ManifestError::NotRegular`], [`ManifestError::Invalid`], [`ManifestError::Io`].
    pub fn find(file: &Path) -> Result<Option<Self>, ManifestError> {
        let path = manifest_path(file);
        // NONBLOCK: opening a pipe that was put there must not wait for its other end.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let opened = match fs::open(&path, flags, Mode::empty()) {
            Ok(opened) => File::from(opened),
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(refusal(errno, "open", &path)),
        };
        let found = opened.metadata().map_err(io_error("inspect", &path))?;
        if !found.is_file() {
            return Err(ManifestError::NotRegular { path });
        }
        let mut bytes = Vec::new();
        // One byte more than the limit tells a file that is too long.
        let mut limited = opened.take(MAX_MANIFEST_BYTES as u64 + 1);
        limited
            .read_to_end(&mut bytes)
            .map_err(io_error("read", &path))?;
        let decoded = Self::decode(&bytes);
        let invalid = |fault: ManifestFault| ManifestError::Invalid { path, fault };
        decoded.map(Some).map_err(invalid)
    }

    /// Writes the manifest of a new file. An existing one is never overwritten.
    ///
    /// # Errors
    /// [`ManifestError::Exists`], [`ManifestError::Io`].
    pub fn write_new(&self, file: &Path) -> Result<(), ManifestError> {
        let place = Place::of(file)?;
        if place.present()?.is_some() {
            return Err(ManifestError::Exists { path: place.path });
        }
        place.put(&self.bytes()?, Place::take_name)
    }

    /// Puts this manifest in the place of the present one, which must be there. After a power loss
    /// there is the one or the other.
    ///
    /// # Errors
    /// [`ManifestError::NotRegular`], [`ManifestError::Io`].
    pub fn replace(&self, file: &Path) -> Result<(), ManifestError> {
        let place = Place::of(file)?;
        match place.present()? {
            Some(FileType::RegularFile) => place.put(&self.bytes()?, Place::take_over),
            Some(_) => Err(ManifestError::NotRegular { path: place.path }),
            None => Err(place.error("replace")(Errno::NOENT)),
        }
    }

    fn bytes(&self) -> Result<Vec<u8>, ManifestError> {
        self.encode().map_err(ManifestError::Encode)
    }
}

/// A manifest's directory, held open so that all steps happen in the same one.
struct Place {
    directory: File,
    name: OsString,
    temp: OsString,
    path: PathBuf,
}

impl Place {
    fn of(file: &Path) -> Result<Self, ManifestError> {
        let path = manifest_path(file);
        let invalid = || io_error("name the manifest of", file)(Errno::INVAL.into());
        let name = appended(file.file_name().ok_or_else(invalid)?, ENDING);
        let above = match file.parent() {
            Some(above) if !above.as_os_str().is_empty() => above,
            _ => Path::new("."),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = fs::open(above, flags, Mode::empty())
            .map_err(|errno| io_error("open the directory", above)(errno.into()))?;
        Ok(Self {
            directory: File::from(directory),
            temp: appended(&name, TEMP_ENDING),
            name,
            path,
        })
    }

    /// What has the manifest's name now.
    fn present(&self) -> Result<Option<FileType>, ManifestError> {
        match fs::statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => Ok(Some(FileType::from_raw_mode(found.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.error("inspect")(errno)),
        }
    }

    /// Writes a temporary file in full, gives it the name by `publish`, and makes that durable.
    fn put(
        &self,
        bytes: &[u8],
        publish: fn(&Self) -> Result<(), Errno>,
    ) -> Result<(), ManifestError> {
        self.remove_temp()
            .map_err(self.error("remove the leftover beside"))?;
        let written = self.write_temp(bytes);
        let synced = written.and_then(|temp| self.sync_temp(&temp));
        let published = synced.and_then(|()| {
            publish(self).map_err(|errno| match errno {
                Errno::EXIST => ManifestError::Exists {
                    path: self.path.clone(),
                },
                errno => self.error("give its name to")(errno),
            })
        });
        if published.is_err() {
            // The first error is the one to report; the next attempt removes a leftover.
            let _ = self.remove_temp();
        }
        published?;
        self.sync_directory()
    }

    fn sync_directory(&self) -> Result<(), ManifestError> {
        let synced = self.directory.sync_all();
        synced.map_err(io_error("sync the directory of", &self.path))
    }

    fn sync_temp(&self, temp: &File) -> Result<(), ManifestError> {
        temp.sync_all().map_err(io_error("write", &self.path))
    }

    /// The temporary file, which is not durable yet.
    fn write_temp(&self, bytes: &[u8]) -> Result<File, ManifestError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let created = fs::openat(&self.directory, &self.temp, flags, FILE_MODE)
            .map_err(self.error("create the new version of"))?;
        // The umask may have taken bits of the owner away.
        fs::fchmod(&created, FILE_MODE).map_err(self.error("set the mode of"))?;
        let mut file = File::from(created);
        let written = file.write_all(bytes);
        written.map_err(io_error("write", &self.path))?;
        Ok(file)
    }

    fn remove_temp(&self) -> Result<(), Errno> {
        match fs::unlinkat(&self.directory, &self.temp, AtFlags::empty()) {
            Err(Errno::NOENT) => Ok(()),
            outcome => outcome,
        }
    }

    /// Renames over whatever regular file is there.
    fn take_over(&self) -> Result<(), Errno> {
        fs::renameat(&self.directory, &self.temp, &self.directory, &self.name)
    }

    /// Takes the name only while nothing has it.
    fn take_name(&self) -> Result<(), Errno> {
        let (dir, temp, name) = (&self.directory, &self.temp, &self.name);
        match fs::renameat_with(dir, temp, dir, name, RenameFlags::NOREPLACE) {
            // The file system does not know the flag.
            Err(Errno::INVAL | Errno::NOSYS) => self.link_name(),
            outcome => outcome,
        }
    }

    /// As [`Place::take_name`]: a hard link does not replace what is there either.
    fn link_name(&self) -> Result<(), Errno> {
        let dir = &self.directory;
        fs::linkat(dir, &self.temp, dir, &self.name, AtFlags::empty())?;
        self.remove_temp()
    }

    fn error(&self, action: &'static str) -> impl Fn(Errno) -> ManifestError {
        let path = self.path.clone();
        move |errno| refusal(errno, action, &path)
    }
}

/// One of many manifests that take the place of the present ones: the steps of [`Manifest::replace`] one
/// by one, so that the slow ones can be done for many at once.
pub(crate) struct Replacement {
    place: Place,
    temp: File,
}

impl Replacement {
    /// Writes the temporary file beside the manifest of `file`.
    pub(crate) fn begin(file: &Path, manifest: &Manifest) -> Result<Self, ManifestError> {
        let place = Place::of(file)?;
        match place.present()? {
            Some(FileType::RegularFile) => {}
            Some(_) => return Err(ManifestError::NotRegular { path: place.path }),
            None => return Err(place.error("replace")(Errno::NOENT)),
        }
        let cleared = place.remove_temp();
        cleared.map_err(place.error("remove the leftover beside"))?;
        let written = place.write_temp(&manifest.bytes()?);
        if written.is_err() {
            // The first error is the one to report; the next attempt removes a leftover.
            let _ = place.remove_temp();
        }
        Ok(Self {
            temp: written?,
            place,
        })
    }

    /// Makes the temporary file durable.
    pub(crate) fn sync(&self) -> Result<(), ManifestError> {
        let synced = self.place.sync_temp(&self.temp);
        if synced.is_err() {
            let _ = self.place.remove_temp();
        }
        synced
    }

    /// Renames it over the manifest, which [`Replacement::sync_directory`] makes durable.
    pub(crate) fn publish(&self) -> Result<(), ManifestError> {
        let taken = self.place.take_over();
        if taken.is_err() {
            let _ = self.place.remove_temp();
        }
        taken.map_err(self.place.error("give its name to"))
    }

    /// Makes all renames in its directory durable.
    pub(crate) fn sync_directory(&self) -> Result<(), ManifestError> {
        self.place.sync_directory()
    }
}

/// The error for a system call that failed, links and odd files told apart.
fn refusal(errno: Errno, action: &'static str, path: &Path) -> ManifestError {
    match errno {
        Errno::LOOP | Errno::MLINK | Errno::ISDIR | Errno::NXIO | Errno::NODEV => {
            ManifestError::NotRegular {
                path: path.to_path_buf(),
            }
        }
        errno => io_error(action, path)(errno.into()),
    }
}

fn io_error(action: &'static str, path: &Path) -> impl Fn(io::Error) -> ManifestError {
    let path = path.to_path_buf();
    move |source| ManifestError::Io {
        action,
        path: path.clone(),
        source,
    }
}

/// Both ways to write a new manifest, without looking first whether there is one.
#[cfg(test)]
pub(super) fn unchecked_writes(file: &Path) -> [impl Fn(&[u8]) -> Result<(), ManifestError>; 2] {
    [Place::take_name, Place::link_name].map(|publish: fn(&Place) -> Result<(), Errno>| {
        move |bytes: &[u8]| Place::of(file)?.put(bytes, publish)
    })
}
