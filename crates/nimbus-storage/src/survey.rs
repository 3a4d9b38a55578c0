//! Looking at the places where data is kept, without changing anything in them: what a directory and
//! its disk are like, and how the tenant files agree with the registry.
//!
//! This room gathers facts. It must not judge them, repair anything, or take a lock.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use nimbus_core::TenantId;
use rustix::fs::{Access, AtFlags, CWD, StatVfsMountFlags};

/// A directory and the disk that it is on.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Directory {
    /// Whether the path itself is a symbolic link; the other facts are those of what it leads to.
    pub is_link: bool,
    /// Permission bits.
    pub mode: u32,
    /// User id of the owner.
    pub owner: u32,
    /// Whether this process may create files in it; false on a disk that is mounted read-only.
    pub writable: bool,
    /// The disk.
    pub disk: Disk,
}

/// A mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Disk {
    /// Bytes that an unprivileged process may still write.
    pub free_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// Files that an unprivileged process may still create.
    pub free_files: u64,
    /// Files in all; 0 where the file system has no such limit.
    pub total_files: u64,
    /// Whether it is mounted read-only.
    pub read_only: bool,
    /// Its kind, where it is no ordinary local disk.
    pub kind: Option<DiskKind>,
}

/// Kinds of file systems that are no ordinary local disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiskKind {
    /// On another machine: locks and syncs may not hold what SQLite's log needs.
    Network(&'static str),
    /// In memory: gone after a restart of the machine.
    Memory(&'static str),
    /// The writable layer of a container: gone with the container.
    Layer(&'static str),
    /// Served by a program, which may be any of these.
    Program(&'static str),
}

impl Disk {
    /// The kind by the number that statfs(2) reports (`linux/magic.h`).
    pub fn kind_of(magic: u64) -> Option<DiskKind> {
        Some(match magic {
            0x6969 => DiskKind::Network("nfs"),
            0x517b => DiskKind::Network("smb"),
            0xff53_4d42 => DiskKind::Network("cifs"),
            0xfe53_4d42 => DiskKind::Network("smb2"),
            0x0102_1997 => DiskKind::Network("9p"),
            0x00c3_6400 => DiskKind::Network("ceph"),
            0x5346_414f => DiskKind::Network("afs"),
            0x0102_1994 => DiskKind::Memory("tmpfs"),
            0x8584_58f6 => DiskKind::Memory("ramfs"),
            0x794c_7630 => DiskKind::Layer("overlayfs"),
            0x6573_5546 => DiskKind::Program("fuse"),
            _ => return None,
        })
    }
}

/// Looks at a directory; `None` when nothing has this name.
///
/// # Errors
/// When the system refuses to look, or something else has the name (`NotADirectory`).
pub fn directory(path: &Path) -> io::Result<Option<Directory>> {
    let Some(own) = present(path.symlink_metadata())? else {
        return Ok(None);
    };
    // A link to nowhere is not an absent directory: creating it would go through the link.
    let found = path.metadata()?;
    if !found.is_dir() {
        return Err(io::ErrorKind::NotADirectory.into());
    }
    let wanted = Access::WRITE_OK | Access::EXEC_OK;
    Ok(Some(Directory {
        is_link: own.is_symlink(),
        mode: mode(&found),
        owner: found.uid(),
        writable: rustix::fs::accessat(CWD, path, wanted, AtFlags::EACCESS).is_ok(),
        disk: disk(path)?,
    }))
}

/// The disk that `path` is or will be on: that of the nearest directory that exists.
///
/// # Errors
/// When the system refuses to look.
pub fn disk_of(path: &Path) -> io::Result<Disk> {
    disk(nearest(path))
}

/// The nearest of `path` and the directories above it that exists; `.` for a relative path
/// without one.
pub fn nearest(path: &Path) -> &Path {
    let written = |step: &&Path| !step.as_os_str().is_empty();
    let exists = |step: &&Path| step.symlink_metadata().is_ok();
    let found = path.ancestors().filter(written).find(exists);
    found.unwrap_or(Path::new("."))
}

fn disk(path: &Path) -> io::Result<Disk> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(Disk {
        free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        free_files: stat.f_favail,
        total_files: stat.f_files,
        read_only: stat.f_flag.contains(StatVfsMountFlags::RDONLY),
        kind: kind(path)?,
    })
}

#[cfg(target_os = "linux")]
fn kind(path: &Path) -> io::Result<Option<DiskKind>> {
    let magic = rustix::fs::statfs(path)?.f_type;
    // The type is signed on some architectures; the numbers have 32 bits.
    Ok(u32::try_from(magic & 0xffff_ffff)
        .ok()
        .and_then(|magic| Disk::kind_of(magic.into())))
}

#[cfg(not(target_os = "linux"))]
fn kind(_: &Path) -> io::Result<Option<DiskKind>> {
    Ok(None)
}

/// Whether the directory takes `a` and `A` for one name; `None` when it holds no file to tell by.
///
/// # Errors
/// When the directory cannot be listed.
pub fn ignores_case(dir: &Path) -> io::Result<Option<bool>> {
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        let other = name.to_ascii_uppercase();
        if other == name {
            continue;
        }
        let Some(one) = present(dir.join(name).symlink_metadata())? else {
            continue;
        };
        let other = present(dir.join(other).symlink_metadata())?;
        let same = |other: &Metadata| other.ino() == one.ino() && other.dev() == one.dev();
        return Ok(Some(other.as_ref().is_some_and(same)));
    }
    Ok(None)
}

/// How the files of embedded tenants agree with the registry. Every list is sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct TenantFiles {
    /// Tenants in use, with their file.
    pub sound: usize,
    /// Tenants in use whose file is not there.
    pub missing: Vec<TenantId>,
    /// Tenants whose file is there and whose entry is not.
    pub unregistered: Vec<TenantId>,
    /// Tenants whose creation or deletion the next start finishes.
    pub unfinished: Vec<TenantId>,
    /// Files that the group or others may read or write, with their permission bits.
    pub loose: Vec<(PathBuf, u32)>,
    /// What has the name of a tenant file and is none: a link, a directory, a device.
    pub odd: Vec<PathBuf>,
    /// Manifests of encrypted files that are not there and not registered.
    pub lone_manifests: Vec<PathBuf>,
    /// Names that a crash left; the next start removes them.
    pub leftovers: Vec<PathBuf>,
    /// The newest change of any file.
    pub newest: Option<SystemTime>,
}

impl TenantFiles {
    /// Takes in what was found of the files of another kind in the same directory.
    pub fn merge(&mut self, other: TenantFiles) {
        fn union<T: Ord>(ours: &mut Vec<T>, theirs: Vec<T>) {
            ours.extend(theirs);
            ours.sort();
            // Leftovers that belong to no kind are found with each.
            ours.dedup();
        }
        self.sound += other.sound;
        union(&mut self.missing, other.missing);
        union(&mut self.unregistered, other.unregistered);
        union(&mut self.unfinished, other.unfinished);
        union(&mut self.loose, other.loose);
        union(&mut self.odd, other.odd);
        union(&mut self.lone_manifests, other.lone_manifests);
        union(&mut self.leftovers, other.leftovers);
        self.newest = self.newest.max(other.newest);
    }
}

pub(crate) fn mode(found: &Metadata) -> u32 {
    found.permissions().mode() & 0o7777
}

/// `None` for a name that is not there.
pub(crate) fn present(found: io::Result<Metadata>) -> io::Result<Option<Metadata>> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_directory_is_described_and_left_alone() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("data");
        assert!(directory(&dir).unwrap().is_none());
        std::fs::create_dir(&dir).unwrap();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o750)).unwrap();
        let found = directory(&dir).unwrap().unwrap();
        assert_eq!((found.mode, found.is_link), (0o750, false));
        assert_eq!(found.owner, rustix::process::geteuid().as_raw());
        assert!(found.writable && !found.disk.read_only);
        assert!(found.disk.free_bytes <= found.disk.total_bytes);
        assert_eq!(
            disk_of(&dir.join("a/b")).unwrap().total_bytes,
            found.disk.total_bytes
        );

        let link = root.path().join("link");
        symlink(&dir, &link).unwrap();
        assert!(directory(&link).unwrap().unwrap().is_link);
        std::fs::remove_dir(&dir).unwrap();
        assert!(directory(&link).is_err(), "a link to nowhere");
        std::fs::write(&dir, "").unwrap();
        let error = directory(&dir).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotADirectory);
    }

    #[test]
    fn a_place_that_takes_no_files_is_not_writable() {
        // Refused to root as well: the kernel's own file system takes no new files.
        let found = directory(Path::new("/proc/self")).unwrap().unwrap();
        assert!(!found.writable || rustix::process::geteuid().is_root());
        let read_only = directory(Path::new("/sys")).unwrap().unwrap();
        assert!(!read_only.writable || !read_only.disk.read_only);
    }

    #[test]
    fn the_nearest_directory_is_found_for_any_spelling() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(nearest(&root.path().join("a/b/c")), root.path());
        assert_eq!(nearest(root.path()), root.path());
        assert_eq!(nearest(Path::new("not-here/at-all")), Path::new("."));
    }

    #[test]
    fn kinds_of_file_systems_are_told_by_their_number() {
        assert_eq!(Disk::kind_of(0x6969), Some(DiskKind::Network("nfs")));
        assert_eq!(Disk::kind_of(0xff53_4d42), Some(DiskKind::Network("cifs")));
        assert_eq!(Disk::kind_of(0x0102_1994), Some(DiskKind::Memory("tmpfs")));
        assert_eq!(Disk::kind_of(0xef53), None, "ext4");
        // The kernel's own are none of these, and cost no error.
        assert_eq!(disk(Path::new("/proc")).unwrap().kind, None);
    }

    #[test]
    fn case_is_told_by_a_file_that_is_there() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(ignores_case(dir.path()).unwrap(), None);
        std::fs::write(dir.path().join("nimbus.lock"), "").unwrap();
        let expected = dir.path().join("NIMBUS.LOCK").exists();
        assert_eq!(ignores_case(dir.path()).unwrap(), Some(expected));
    }
}
