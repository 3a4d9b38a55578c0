//! Checks of the machine and of this process: disks, clock, limits, user.
//!
//! The limits are those of this command; a service manager may set others for the server.

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use jiff::Timestamp;
use nimbus_storage::survey::{Disk, DiskKind};

use super::report::Check;

const MIB: u64 = 1 << 20;
/// Below this a disk fails: a checkpoint or a rotation of the audit log may not go through.
const FAIL_BYTES: u64 = 64 * MIB;
/// Below this, or below a tenth of the disk, there is a warning.
const WARN_BYTES: u64 = 1 << 30;
/// The same for files that can still be created.
const FAIL_FILES: u64 = 64;
const WARN_FILES: u64 = 1_000;

/// `disk_data`, `disk_control`, `disk_token`, `disk_audit`: free bytes and files.
pub(crate) fn disk(name: &'static str, path: &Path, disk: &io::Result<Disk>) -> Check {
    let disk = match disk {
        Ok(disk) => disk,
        Err(error) => {
            let text = format!("{} cannot be looked at: {error}", path.display());
            return Check::fail(name, text, "see whether the disk is mounted");
        }
    };
    let (bytes, files) = (disk.free_bytes, disk.free_files);
    let message = format!("{} of {} free", size(bytes), size(disk.total_bytes));
    // Some file systems make room for file names as they go, and say 0 of 0.
    let counts_files = disk.total_files > 0;
    let advice = "free some space, or move to a larger disk; a full disk refuses writes with 507";
    if bytes < FAIL_BYTES {
        return Check::fail(name, message, advice);
    }
    if counts_files && files < FAIL_FILES {
        return Check::fail(name, format!("{files} more files fit, {message}"), advice);
    }
    if bytes < WARN_BYTES || bytes < disk.total_bytes / 10 {
        return Check::warn(name, message, advice);
    }
    if counts_files && files < WARN_FILES {
        return Check::warn(name, format!("{files} more files fit, {message}"), advice);
    }
    Check::ok(name, message)
}

fn size(bytes: u64) -> String {
    if bytes < 10 << 30 {
        format!("{} MiB", bytes / MIB)
    } else {
        format!("{} GiB", bytes >> 30)
    }
}

/// `file_system`: whether the data directory's disk keeps what SQLite relies on.
pub(crate) fn file_system(disk: &io::Result<Disk>, ignores_case: Option<bool>) -> Check {
    let name = "file_system";
    let kind = disk.as_ref().ok().and_then(|disk| disk.kind);
    let case = match ignores_case {
        Some(true) => {
            "; upper and lower case are one, so ids that differ by case alone are refused"
        }
        _ => "",
    };
    match kind {
        None => Check::ok(name, format!("a local disk{case}")),
        Some(DiskKind::Network(kind)) => Check::warn(
            name,
            format!("the data directory is on a network ({kind}){case}"),
            "use a local disk: SQLite's write-ahead log needs shared memory and locks that hold",
        ),
        Some(DiskKind::Memory(kind)) => Check::warn(
            name,
            format!("the data directory is in memory ({kind}){case}"),
            "use a disk: everything is gone when the machine restarts",
        ),
        Some(DiskKind::Layer(kind)) => Check::warn(
            name,
            format!("the data directory is in a container's own layer ({kind}){case}"),
            "mount a volume: everything is gone with the container",
        ),
        Some(DiskKind::Program(kind)) => Check::warn(
            name,
            format!("the data directory is served by a program ({kind}){case}"),
            "make sure that it keeps locks and syncs, or use a local disk",
        ),
        Some(_) => Check::ok(name, format!("of another kind{case}")),
    }
}

/// `clock`: not before this version was made, and not before a file that was written already.
pub(crate) fn clock(now: Timestamp, newest: Option<(PathBuf, SystemTime)>) -> Check {
    let name = "clock";
    // 2026-01-01: the year in which this version was made.
    let made = Timestamp::from_second(1_767_225_600).unwrap_or(Timestamp::UNIX_EPOCH);
    let advice =
        "set the clock (`timedatectl set-ntp true`): ids, tokens and the log carry its time";
    let shown = format!("{now:.0}");
    if now < made {
        return Check::fail(
            name,
            format!("{shown} is before this version was made"),
            advice,
        );
    }
    let newest = newest.and_then(|(path, at)| Some((path, Timestamp::try_from(at).ok()?)));
    match newest {
        // A minute is left for clocks that were just corrected.
        Some((path, at)) if at.duration_since(now).as_secs() > 60 => Check::warn(
            name,
            format!("{shown} is before {} was written ({at:.0})", path.display()),
            advice,
        ),
        _ => Check::ok(name, shown),
    }
}

/// `open_files`: what tenants and connections take their descriptors from; `None` is no limit.
pub(crate) fn open_files(soft: Option<u64>, hard: Option<u64>) -> Check {
    let name = "open_files";
    let shown = |limit: Option<u64>| limit.map_or("unlimited".to_owned(), |n| n.to_string());
    let message = format!("{}, raised to {} at the start", shown(soft), shown(hard));
    let advice = "raise the limit (LimitNOFILE= in the unit, `ulimit -Hn` in a shell)";
    match hard {
        Some(limit) if limit < 256 => Check::fail(name, message, advice),
        Some(limit) if limit < 4_096 => Check::warn(
            name,
            format!("{message}: few tenants and connections can be open at once"),
            advice,
        ),
        _ => Check::ok(name, message),
    }
}

/// `core_dumps`: a dump holds the admin token and whatever else was in memory.
pub(crate) fn core_dumps(soft: Option<u64>) -> Check {
    let name = "core_dumps";
    match soft {
        Some(0) => Check::ok(name, "off"),
        _ => Check::warn(
            name,
            "on: a crash would write secrets from memory to the disk",
            "set LimitCORE=0 in the unit, or `ulimit -c 0` in the shell",
        ),
    }
}

/// `memory`: the limit that a control group sets, if one does.
pub(crate) fn memory(limit: Option<u64>) -> Check {
    let name = "memory";
    let Some(limit) = limit else {
        return Check::ok(name, "no limit");
    };
    let message = format!("a limit of {} MiB", limit / MIB);
    if limit < 128 * MIB {
        return Check::warn(
            name,
            message,
            "give it 128 MiB or more (MemoryMax= in the unit), or fewer --max-open-tenants",
        );
    }
    Check::ok(name, message)
}

/// `user`: root can do what the server never needs.
pub(crate) fn user(id: u32) -> Check {
    let name = "user";
    match id {
        0 => Check::warn(
            name,
            "root",
            "run the server as a user of its own; packaging/systemd has a unit that does",
        ),
        id => Check::ok(name, format!("user id {id}")),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::time::Duration;

    use nimbus_storage::survey;

    use super::super::report::Status;
    use super::*;

    fn disk_with(edit: impl Fn(&mut Disk)) -> io::Result<Disk> {
        let mut disk = survey::disk_of(Path::new("/"))?;
        (disk.free_bytes, disk.total_bytes) = (50 << 30, 100 << 30);
        (disk.free_files, disk.total_files) = (1 << 20, 2 << 20);
        disk.kind = None;
        edit(&mut disk);
        Ok(disk)
    }

    #[test]
    fn disks_are_judged_by_bytes_and_files() {
        let judge = |bytes, total, files, all| {
            let found = disk_with(|disk| {
                (disk.free_bytes, disk.total_bytes) = (bytes, total);
                (disk.free_files, disk.total_files) = (files, all);
            });
            disk("disk_data", Path::new("/d"), &found).status
        };
        let (gib, many) = (1_u64 << 30, 1 << 20);
        assert_eq!(judge(50 * gib, 100 * gib, many, many), Status::Ok);
        assert_eq!(
            judge(9 * gib, 100 * gib, many, many),
            Status::Warn,
            "under a tenth"
        );
        assert_eq!(
            judge(gib - 1, 2 * gib, many, many),
            Status::Warn,
            "under 1 GiB"
        );
        assert_eq!(judge(64 * MIB, 2 * gib, many, many), Status::Warn);
        assert_eq!(judge(64 * MIB - 1, 2 * gib, many, many), Status::Fail);
        assert_eq!(judge(50 * gib, 100 * gib, 999, many), Status::Warn);
        assert_eq!(judge(50 * gib, 100 * gib, 63, many), Status::Fail);
        assert_eq!(
            judge(50 * gib, 100 * gib, 0, 0),
            Status::Ok,
            "no limit of files"
        );
        let gone = Err(io::ErrorKind::NotFound.into());
        assert_eq!(
            disk("disk_data", Path::new("/d"), &gone).status,
            Status::Fail
        );
    }

    #[test]
    fn file_systems_that_lose_data_are_named() {
        let judge = |kind| file_system(&disk_with(|disk| disk.kind = kind), None);
        assert_eq!(judge(None).status, Status::Ok);
        for kind in [
            DiskKind::Network("nfs"),
            DiskKind::Memory("tmpfs"),
            DiskKind::Layer("overlayfs"),
            DiskKind::Program("fuse"),
        ] {
            assert_eq!(judge(Some(kind)).status, Status::Warn, "{kind:?}");
        }
        let check = file_system(&disk_with(|_| {}), Some(true));
        assert!(check.message.contains("differ by case"), "{check:?}");
    }

    #[test]
    fn the_clock_is_compared_with_files() {
        let now = Timestamp::now();
        let file = |ahead| {
            Some((
                PathBuf::from("/d/f"),
                SystemTime::now() + Duration::from_secs(ahead),
            ))
        };
        assert_eq!(clock(now, None).status, Status::Ok);
        assert_eq!(clock(now, file(30)).status, Status::Ok);
        let check = clock(now, file(7_200));
        assert_eq!(check.status, Status::Warn);
        assert!(check.message.contains("/d/f"), "{check:?}");
        let past = "2025-12-31T23:59:59Z".parse().unwrap();
        assert_eq!(clock(past, None).status, Status::Fail);
    }

    #[test]
    fn limits_are_judged() {
        for (hard, status) in [
            (None, Status::Ok),
            (Some(524_288), Status::Ok),
            (Some(1_024), Status::Warn),
            (Some(64), Status::Fail),
        ] {
            assert_eq!(open_files(Some(64), hard).status, status, "{hard:?}");
        }
        assert_eq!(core_dumps(Some(0)).status, Status::Ok);
        assert_eq!(core_dumps(Some(1)).status, Status::Warn);
        assert_eq!(core_dumps(None).status, Status::Warn);
        assert_eq!(memory(None).status, Status::Ok);
        assert_eq!(memory(Some(512 * MIB)).status, Status::Ok);
        assert_eq!(memory(Some(64 * MIB)).status, Status::Warn);
        assert_eq!(
            (user(0).status, user(1_000).status),
            (Status::Warn, Status::Ok)
        );
    }
}
