//! Checks of the directories, the lock, the registry and the tenant files.
//!
//! It must not open a tenant file, nor read the registry while a server holds it.

use std::io;
use std::net::SocketAddr;
use std::path::Path;

use nimbus_core::TenantId;
use nimbus_storage::ProviderError;
use nimbus_storage::control::{ControlLook, TenantEntry};
use nimbus_storage::provider::lock::{Holding, LockError};
use nimbus_storage::survey::{Directory, TenantFiles, nearest};

use super::listen::Answer;
use super::report::Check;
use crate::external::External;
use crate::settings::ProviderName;

/// Most names in a message.
const SHOWN: usize = 5;

/// `provider`: where tenants are.
pub(crate) fn provider(provider: ProviderName, external: Option<&External>) -> Check {
    let place = match external {
        Some(external) => format!("{}, tenants in {}", provider.name(), external.shown()),
        None => format!("{}, files in the data directory", provider.name()),
    };
    Check::ok("provider", place)
}

/// The name of the check of a second database.
pub(crate) fn database_of(provider: ProviderName) -> &'static str {
    match provider {
        ProviderName::Mysql => "database_mysql",
        ProviderName::LibsqlReplica => "database_libsql",
        _ => "database_postgres",
    }
}

/// `database`: whether the database of an external provider answers and is fit.
pub(crate) fn database(name: &'static str, external: &External) -> Check {
    match external.probe() {
        Ok(version) => Check::ok(name, format!("{}, {version}", external.shown())),
        Err(error) => Check::fail(
            name,
            format!("{} cannot be used: {error:#}", external.shown()),
            "check the URL, the network and the role or token; docs/storage.md lists what is needed",
        ),
    }
}

/// `data_dir` and `control_dir`: there, ours, private and writable.
pub(crate) fn directory(
    name: &'static str,
    path: &Path,
    found: &io::Result<Option<Directory>>,
    above_writable: bool,
    user: u32,
) -> Check {
    let shown = path.display();
    let found = match found {
        Ok(Some(found)) => found,
        Ok(None) if above_writable => {
            return Check::ok(
                name,
                format!("{shown} is not there yet; `nimbus start` makes it"),
            );
        }
        Ok(None) => {
            return Check::fail(
                name,
                format!(
                    "{shown} is not there, and {} takes no directory",
                    nearest(path).display()
                ),
                "make it as the user of the service, or name another one",
            );
        }
        Err(error) => {
            return Check::fail(
                name,
                format!("{shown} cannot be used: {error}"),
                "name a directory of the user of the service",
            );
        }
    };
    if found.disk.read_only {
        return Check::fail(
            name,
            format!("{shown} is mounted read-only"),
            "mount it writable; in a unit, list it in ReadWritePaths=",
        );
    }
    if !found.writable {
        return Check::fail(
            name,
            format!(
                "user id {user} may not write to {shown}, which belongs to user id {}",
                found.owner
            ),
            "run this command as the user of the service, or give the directory to that user",
        );
    }
    let repair = format!("run `chmod 700 {shown}`");
    let mode = found.mode;
    if mode & 0o022 != 0 {
        let text = format!("other users can replace files in {shown} (mode {mode:04o})");
        return Check::fail(name, text, repair);
    }
    if mode & 0o077 != 0 {
        let text = format!("other users can list {shown} (mode {mode:04o})");
        return Check::warn(name, text, repair);
    }
    if found.owner != user {
        return Check::warn(
            name,
            format!(
                "{shown} belongs to user id {}, and this command runs as {user}",
                found.owner
            ),
            "run this command as the user of the service",
        );
    }
    let link = if found.is_link {
        ", through a symbolic link"
    } else {
        ""
    };
    Check::ok(name, format!("{shown}, mode {mode:04o}{link}"))
}

/// `lock`: who holds the data directory, and whether they answer.
pub(crate) fn lock(held: &Result<Holding, LockError>, ask: impl Fn(SocketAddr) -> Answer) -> Check {
    let name = "lock";
    let holder = match held {
        Ok(Holding::Held(holder)) => holder,
        Ok(_) => return Check::ok(name, "nobody holds the data directory"),
        Err(error @ LockError::Io { .. }) => return Check::io(name, error),
        Err(error) => return Check::refused(name, error),
    };
    let Some(holder) = holder else {
        return Check::warn(
            name,
            "a process that does not say who it is holds the data directory",
            "find it with `fuser` on the file nimbus.lock, and stop it",
        );
    };
    let pid = holder.pid;
    let Some(address) = holder.address else {
        return Check::warn(
            name,
            format!("the process {pid} holds the data directory and does not listen"),
            "it is starting, or another command is at work; run `nimbus doctor` again when it is done",
        );
    };
    match ask(address) {
        Answer::Nimbus => Check::ok(
            name,
            format!("the running server, process {pid} on {address}; /health answers"),
        ),
        _ => Check::fail(
            name,
            format!(
                "the process {pid} holds the data directory and says that it listens on {address}, where /health does not answer"
            ),
            "look into its log, and restart it",
        ),
    }
}

/// `control_db`: the registry opens, with every check.
pub(crate) fn control_db(looked: Option<&Result<ControlLook, ProviderError>>) -> Check {
    let name = "control_db";
    match looked {
        None => Check::ok(
            name,
            "in use by the process that holds the directory, so it was not read",
        ),
        Some(Ok(ControlLook::Absent)) => Check::ok(name, "not there yet; `nimbus start` makes it"),
        Some(Ok(ControlLook::Entries(entries))) => {
            Check::ok(name, format!("sound, {} registered", entries.len()))
        }
        Some(Ok(_)) => Check::ok(name, "too large to be checked in memory"),
        Some(Err(error)) => Check::fail(
            name,
            error.to_string(),
            "keep a copy of the directory, then restore the control database from a backup",
        ),
    }
}

/// `tenants`: the registry and the files agree.
pub(crate) fn tenants(
    found: Option<&Result<TenantFiles, ProviderError>>,
    unserved: &[TenantId],
) -> Check {
    let name = "tenants";
    let unserved_warning = || {
        Check::warn(
            name,
            format!(
                "registered with a provider that these settings do not serve: {}",
                list(unserved)
            ),
            "name their provider in --also-tenant-provider; until then those tenants are not there",
        )
    };
    let found = match found {
        None if !unserved.is_empty() => return unserved_warning(),
        None => {
            return Check::ok(
                name,
                "not compared with the registry, which is in use; the server did so when it started",
            );
        }
        Some(Err(error)) => {
            return Check::fail(name, error.to_string(), "see `data_dir`");
        }
        Some(Ok(found)) => found,
    };
    if !found.missing.is_empty() {
        return Check::fail(
            name,
            format!("registered, but without a file: {}", list(&found.missing)),
            "restore the files from a backup, or delete those tenants with `nimbus tenants delete`",
        );
    }
    if !found.odd.is_empty() {
        let odd: Vec<_> = found.odd.iter().map(|path| path.display()).collect();
        return Check::fail(
            name,
            format!("no regular files: {}", list(&odd)),
            "move them away; the server follows no links",
        );
    }
    if let Some((path, mode)) = found.loose.first() {
        let more = found.loose.len() - 1;
        let more = if more == 0 {
            String::new()
        } else {
            format!(" and {more} more")
        };
        return Check::fail(
            name,
            format!(
                "other users have access to {}{more} (mode {mode:04o})",
                path.display()
            ),
            format!("run `chmod 600 {}`", path.display()),
        );
    }
    if !unserved.is_empty() {
        return unserved_warning();
    }
    if let Some(first) = found.unregistered.first() {
        return Check::warn(
            name,
            format!(
                "files of tenants that are not registered: {}",
                list(&found.unregistered)
            ),
            format!("`nimbus tenants adopt {first}` takes one in; or move the file away"),
        );
    }
    if !found.lone_manifests.is_empty() {
        let paths: Vec<_> = found.lone_manifests.iter().map(|p| p.display()).collect();
        return Check::warn(
            name,
            format!(
                "manifests of encrypted files that are not there: {}",
                list(&paths)
            ),
            "restore each file beside its manifest, which holds its key, and adopt it; if no copy of it is wanted any more, remove the manifest",
        );
    }
    if !found.unfinished.is_empty() {
        return Check::warn(
            name,
            format!("half created or half deleted: {}", list(&found.unfinished)),
            "the next `nimbus start` finishes that",
        );
    }
    Check::ok(
        name,
        format!("every registered tenant has its file ({})", found.sound),
    )
}

/// `leftovers`: what a crash left, which the next start removes.
pub(crate) fn leftovers(found: &TenantFiles) -> Check {
    let name = "leftovers";
    if found.leftovers.is_empty() {
        return Check::ok(name, "none");
    }
    let shown: Vec<_> = found.leftovers.iter().map(|path| path.display()).collect();
    Check::warn(
        name,
        format!("left by a crash: {}", list(&shown)),
        "the next `nimbus start` removes what is its own; a log without its tenant file is of no use",
    )
}

/// The first few of a list.
fn list<T: ToString>(all: &[T]) -> String {
    let mut shown: Vec<String> = all.iter().take(SHOWN).map(T::to_string).collect();
    if all.len() > SHOWN {
        shown.push(format!("and {} more", all.len() - SHOWN));
    }
    shown.join(", ")
}

/// The entries that were read.
pub(crate) fn entries(
    looked: Option<&Result<ControlLook, ProviderError>>,
) -> Option<&[(TenantId, TenantEntry)]> {
    match looked? {
        Ok(ControlLook::Entries(entries)) => Some(entries),
        Ok(ControlLook::Absent) => Some(&[]),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use nimbus_storage::provider::lock::Holder;
    use nimbus_storage::survey;

    use super::super::report::Status;
    use super::*;

    fn ids(names: &[&str]) -> Vec<TenantId> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn the_provider_is_named_with_its_place() {
        let check = provider(ProviderName::Redb, None);
        assert_eq!(check.status, Status::Ok);
        assert!(check.message.contains("redb, files"), "{}", check.message);
    }

    #[test]
    fn directories_are_judged_by_owner_and_mode() {
        let dir = tempfile::tempdir().unwrap();
        let mut sound = survey::directory(dir.path()).unwrap().unwrap();
        sound.mode = 0o700;
        let user = sound.owner;
        let judge = |edit: &dyn Fn(&mut Directory)| {
            let mut found = sound.clone();
            edit(&mut found);
            directory("data_dir", Path::new("/d"), &Ok(Some(found)), true, user)
        };
        assert_eq!(judge(&|_| {}).status, Status::Ok);
        assert!(
            judge(&|d| d.is_link = true)
                .message
                .contains("symbolic link")
        );
        for (mode, status) in [
            (0o700, Status::Ok),
            (0o750, Status::Warn),
            (0o711, Status::Warn),
            (0o720, Status::Fail),
            (0o777, Status::Fail),
        ] {
            assert_eq!(judge(&|d| d.mode = mode).status, status, "{mode:o}");
        }
        assert_eq!(judge(&|d| d.owner += 1).status, Status::Warn);
        assert_eq!(judge(&|d| d.writable = false).status, Status::Fail);
        let check = judge(&|d| d.disk.read_only = true);
        assert!(check.message.contains("mounted read-only"), "{check:?}");

        let absent = |above| directory("data_dir", Path::new("/d"), &Ok(None), above, user).status;
        assert_eq!((absent(true), absent(false)), (Status::Ok, Status::Fail));
        let odd = Err(io::ErrorKind::NotADirectory.into());
        assert_eq!(
            directory("data_dir", Path::new("/d"), &odd, true, user).status,
            Status::Fail
        );
    }

    #[test]
    fn holders_are_asked() {
        let address: SocketAddr = "127.0.0.1:8080".parse().unwrap();
        let holder = |address| {
            Ok(Holding::Held(Some(Holder {
                pid: 7,
                address,
                started_at: 0,
            })))
        };
        let (free, silent) = (Ok(Holding::Free), Ok(Holding::Held(None)));
        for (held, answer, status) in [
            (&free, Answer::Nobody, Status::Ok),
            (&silent, Answer::Nobody, Status::Warn),
            (&holder(None), Answer::Nobody, Status::Warn),
            (&holder(Some(address)), Answer::Nimbus, Status::Ok),
            (&holder(Some(address)), Answer::Nobody, Status::Fail),
            (&holder(Some(address)), Answer::Other, Status::Fail),
        ] {
            assert_eq!(lock(held, |_| answer).status, status, "{held:?}");
        }
        let refused = Err(LockError::NotRegular {
            path: "/d/nimbus.lock".into(),
        });
        let check = lock(&refused, |_| Answer::Nobody);
        assert_eq!(check.advice.as_deref(), Some("remove it and start again"));
    }

    #[test]
    fn the_registry_is_judged() {
        let corrupt = ProviderError::Corrupt {
            what: "/d/nimbus-control.db".to_owned(),
            reason: "it is empty".to_owned(),
        };
        for (looked, status) in [
            (None, Status::Ok),
            (Some(&Ok(ControlLook::Absent)), Status::Ok),
            (Some(&Ok(ControlLook::TooLarge { len: 1 })), Status::Ok),
            (Some(&Ok(ControlLook::Entries(Vec::new()))), Status::Ok),
            (Some(&Err(corrupt)), Status::Fail),
        ] {
            assert_eq!(control_db(looked).status, status, "{looked:?}");
        }
    }

    #[test]
    fn disagreements_are_named_worst_first() {
        let judge = |edit: &dyn Fn(&mut TenantFiles)| {
            let mut found = TenantFiles::default();
            edit(&mut found);
            tenants(Some(&Ok(found)), &[])
        };
        assert_eq!(
            judge(&|f| f.sound = 3).message,
            "every registered tenant has its file (3)"
        );
        assert_eq!(tenants(None, &[]).status, Status::Ok);
        for found in [None, Some(&Ok(TenantFiles::default()))] {
            let check = tenants(found, &ids(&["moved"]));
            assert_eq!(check.status, Status::Warn);
            assert!(check.message.ends_with(": moved"), "{check:?}");
        }
        let check = judge(&|f| {
            f.missing = ids(&["a", "b", "c", "d", "e", "f", "g"]);
            f.unregistered = ids(&["x"]);
        });
        assert_eq!(check.status, Status::Fail);
        assert!(
            check.message.ends_with("a, b, c, d, e, and 2 more"),
            "{check:?}"
        );
        let check = judge(&|f| f.unregistered = ids(&["stray"]));
        assert_eq!(check.status, Status::Warn);
        assert!(check.advice.unwrap().contains("nimbus tenants adopt stray"));
        let check = judge(&|f| f.loose = vec![("/d/a.sqlite3".into(), 0o644)]);
        assert_eq!(
            check.advice.as_deref(),
            Some("run `chmod 600 /d/a.sqlite3`")
        );
        assert_eq!(
            judge(&|f| f.odd = vec!["/d/a.sqlite3".into()]).status,
            Status::Fail
        );
        assert_eq!(
            judge(&|f| f.unfinished = ids(&["half"])).status,
            Status::Warn
        );
        let check = judge(&|f| f.lone_manifests = vec!["/d/a.redb.nimbus-enc".into()]);
        assert_eq!(check.status, Status::Warn);
        assert!(check.message.ends_with(": /d/a.redb.nimbus-enc"));
        let mut found = TenantFiles::default();
        assert_eq!(leftovers(&found).status, Status::Ok);
        found.leftovers = vec!["/d/nimbus-control.db.new".into()];
        assert_eq!(leftovers(&found).status, Status::Warn);
    }
}
