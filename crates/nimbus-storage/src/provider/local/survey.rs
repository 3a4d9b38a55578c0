//! How the tenant files agree with the registry, found out without opening any of them.
//!
//! It must not change or judge anything, nor know keys: a manifest is a file beside another.

use std::io;
use std::path::{Path, PathBuf};

use nimbus_core::TenantId;

use super::case::PROBE;
use super::{Beside, Family, tenant_of};
use crate::control::{NEW_FILE, TenantEntry, TenantState};
use crate::provider::ProviderResult;
use crate::provider::files::{self, Entry};
use crate::survey::{TenantFiles, mode, present};

/// Compares the files of one kind in `dir` with the registry's entries.
pub(in crate::provider) fn survey<F: Family>(
    dir: &Path,
    entries: &[(TenantId, TenantEntry)],
) -> ProviderResult<TenantFiles> {
    let fail = |e| files::error("looking at", dir, e);
    let mut found = TenantFiles::default();
    for (tenant, entry) in entries {
        if entry.provider != F::NAME {
            continue;
        }
        let path = dir.join(format!("{tenant}{}", F::ENDING));
        match (entry.state, files::inspect(&path).map_err(fail)?) {
            (TenantState::Ready, Entry::Absent) => found.missing.push(tenant.clone()),
            (TenantState::Ready, Entry::Regular { .. }) => found.sound += 1,
            // Reported by its name below.
            (TenantState::Ready, Entry::Other) => {}
            _ => found.unfinished.push(tenant.clone()),
        }
    }
    let listing = std::fs::read_dir(dir).and_then(|listing| {
        let paths = listing.map(|entry| Ok(entry?.path()));
        paths.collect::<io::Result<Vec<_>>>()
    });
    let mut paths = listing.map_err(fail)?;
    paths.sort();
    for path in paths {
        look::<F>(&path, entries, &mut found).map_err(fail)?;
    }
    Ok(found)
}

fn look<F: Family>(
    path: &Path,
    entries: &[(TenantId, TenantEntry)],
    found: &mut TenantFiles,
) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default();
    let text = name.to_string_lossy();
    if *text == *NEW_FILE || text.starts_with(PROBE) {
        found.leftovers.push(path.to_owned());
        return Ok(());
    }
    let tenant = tenant_of(name, F::ENDING);
    let owned = owned::<F>(path);
    if tenant.is_none() && owned.is_none() {
        return Ok(());
    }
    // It may have gone since the listing: SQLite removes its logs.
    let Some(metadata) = present(path.symlink_metadata())? else {
        return Ok(());
    };
    if !metadata.is_file() {
        found.odd.push(path.to_owned());
        return Ok(());
    }
    if mode(&metadata) & 0o077 != 0 {
        found.loose.push((path.to_owned(), mode(&metadata)));
    }
    found.newest = found.newest.max(metadata.modified().ok());
    if let Some(tenant) = tenant
        && !entries.iter().any(|(registered, _)| *registered == tenant)
    {
        found.unregistered.push(tenant);
    }
    if let Some(owned) = owned {
        owned.note::<F>(path, entries, found)?;
    }
    Ok(())
}

/// A file beside a tenant file.
struct Owned {
    file: PathBuf,
    tenant: TenantId,
    kind: Beside,
}

fn owned<F: Family>(path: &Path) -> Option<Owned> {
    let text = path.to_str()?;
    let strip = |(ending, kind): &(&str, Beside)| Some((text.strip_suffix(ending)?, *kind));
    let (file, kind) = F::BESIDE.iter().find_map(strip)?;
    let file = PathBuf::from(file);
    let tenant = tenant_of(file.file_name()?, F::ENDING)?;
    Some(Owned { file, tenant, kind })
}

impl Owned {
    fn note<F: Family>(
        self,
        path: &Path,
        entries: &[(TenantId, TenantEntry)],
        found: &mut TenantFiles,
    ) -> io::Result<()> {
        let alone = files::inspect(&self.file)? == Entry::Absent;
        // A tenant that is registered without its file is reported as that.
        let registered = |(tenant, entry): &(TenantId, TenantEntry)| {
            *tenant == self.tenant && entry.provider == F::NAME
        };
        match self.kind {
            Beside::Step => found.leftovers.push(path.to_owned()),
            Beside::Part if alone => found.leftovers.push(path.to_owned()),
            Beside::Manifest if alone && !entries.iter().any(registered) => {
                found.lone_manifests.push(path.to_owned());
            }
            Beside::Part | Beside::Manifest => {}
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;
    use crate::control::{ControlDb, ControlLook, Distinct, look as look_at_control};
    use crate::provider::{redb, sqlite};

    /// A directory with a tenant of every kind and these files, surveyed.
    fn surveyed(name: &str, files: &[(&str, u32)]) -> (tempfile::TempDir, TenantFiles) {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path();
        let control = ControlDb::open(dir).unwrap();
        for (id, provider, state) in [
            ("here", name, TenantState::Ready),
            ("gone", name, TenantState::Ready),
            ("half", name, TenantState::Creating),
            ("linked", name, TenantState::Ready),
            ("elsewhere", "postgres", TenantState::Ready),
        ] {
            let id = id.parse().unwrap();
            let entered = control.register(&id, provider, Distinct::Exactly, state);
            entered.unwrap();
        }
        drop(control);
        for (name, mode) in files {
            let path = dir.join(name);
            std::fs::write(&path, "x").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(*mode)).unwrap();
        }
        let ending = if name == "redb" { "redb" } else { "sqlite3" };
        let linked = dir.join(format!("linked.{ending}"));
        symlink(dir.join(format!("here.{ending}")), &linked).unwrap();

        let before = std::fs::read(dir.join("nimbus-control.db")).unwrap();
        let ControlLook::Entries(entries) = look_at_control(dir, None).unwrap() else {
            panic!("no entries");
        };
        let found = match name {
            "redb" => redb::survey(dir, &entries),
            _ => sqlite::survey(dir, &entries),
        };
        let found = found.unwrap();
        let after = std::fs::read(dir.join("nimbus-control.db")).unwrap();
        assert_eq!(after, before);
        // The same for both kinds.
        assert_eq!(found.sound, 1);
        assert_eq!(found.missing, ["gone".parse().unwrap()]);
        assert_eq!(found.unregistered, ["stray".parse().unwrap()]);
        assert_eq!(found.unfinished, ["half".parse().unwrap()]);
        assert_eq!(found.odd, [linked]);
        assert!(found.newest.is_some());
        (home, found)
    }

    #[test]
    fn every_disagreement_of_sqlite_files_is_listed_once() {
        let (home, found) = surveyed(
            "sqlite",
            &[
                ("here.sqlite3", 0o600),
                ("here.sqlite3-wal", 0o640),
                ("here.sqlite3.nimbus-enc", 0o600),
                ("half.sqlite3.nimbus-enc", 0o600),
                ("half.sqlite3.nimbus-enc.tmp", 0o600),
                ("gone.sqlite3.nimbus-enc", 0o600),
                ("elsewhere.sqlite3.nimbus-enc", 0o600),
                ("stray.sqlite3", 0o600),
                ("lost.sqlite3-journal", 0o600),
                ("lost.sqlite3.nimbus-enc", 0o600),
                ("notes.txt", 0o644),
                ("_bad.sqlite3", 0o644),
                ("other.redb", 0o644),
                (NEW_FILE, 0o600),
                (".Nimbus-Case-Probe-00", 0o600),
            ],
        );
        let path = |name: &str| home.path().join(name);
        assert_eq!(found.loose, [(path("here.sqlite3-wal"), 0o640)]);
        let leftovers = [
            ".Nimbus-Case-Probe-00",
            "half.sqlite3.nimbus-enc.tmp",
            "lost.sqlite3-journal",
            NEW_FILE,
        ];
        assert_eq!(found.leftovers, leftovers.map(path));
        let manifests = ["elsewhere.sqlite3.nimbus-enc", "lost.sqlite3.nimbus-enc"];
        assert_eq!(found.lone_manifests, manifests.map(path));
    }

    #[test]
    fn every_disagreement_of_redb_files_is_listed_once() {
        let (home, found) = surveyed(
            "redb",
            &[
                ("here.redb", 0o600),
                ("here.redb.nimbus-enc", 0o644),
                ("here.redb.rotating", 0o600),
                ("gone.redb.nimbus-enc", 0o600),
                ("stray.redb", 0o600),
                ("lost.redb.nimbus-enc", 0o600),
                ("notes.txt", 0o644),
                ("_bad.redb", 0o644),
                ("elsewhere.sqlite3", 0o644),
                (NEW_FILE, 0o600),
                (".Nimbus-Case-Probe-00", 0o600),
            ],
        );
        let path = |name: &str| home.path().join(name);
        assert_eq!(found.loose, [(path("here.redb.nimbus-enc"), 0o644)]);
        let leftovers = [".Nimbus-Case-Probe-00", "here.redb.rotating", NEW_FILE];
        assert_eq!(found.leftovers, leftovers.map(path));
        assert_eq!(found.lone_manifests, [path("lost.redb.nimbus-enc")]);
    }

    #[test]
    fn a_missing_directory_is_an_error() {
        assert!(sqlite::survey(Path::new("/nowhere/at/all"), &[]).is_err());
        assert!(redb::survey(Path::new("/nowhere/at/all"), &[]).is_err());
    }
}
