//! How the tenant files agree with the registry, found out without opening any of them: opening and
//! closing a database file would drop SQLite's locks of this process.
//!
//! It must not change or judge anything.

use std::io;
use std::path::{Path, PathBuf};

use nimbus_core::TenantId;

use super::recovery::PROBE;
use super::{NAME, SIDECARS, SUFFIX, tenant_of};
use crate::control::{NEW_FILE, TenantEntry, TenantState};
use crate::provider::ProviderResult;
use crate::provider::files::{self, Entry};
use crate::survey::{TenantFiles, mode, present};

/// Compares the files in `dir` with the registry's entries.
///
/// # Errors
/// `Io` when the directory cannot be listed or a name in it cannot be looked at.
pub fn survey(dir: &Path, entries: &[(TenantId, TenantEntry)]) -> ProviderResult<TenantFiles> {
    let fail = |e| files::error("looking at", dir, e);
    let mut found = TenantFiles::default();
    for (tenant, entry) in entries.iter().filter(|(_, entry)| entry.provider == NAME) {
        let path = dir.join(format!("{tenant}{SUFFIX}"));
        match (entry.state, files::inspect(&path).map_err(fail)?) {
            (TenantState::Ready, Entry::Absent) => found.missing.push(tenant.clone()),
            (TenantState::Ready, Entry::Regular { .. }) => found.sound += 1,
            // Reported by its name below.
            (TenantState::Ready, Entry::Other) => {}
            _ => found.unfinished.push(tenant.clone()),
        }
    }
    let mut names = std::fs::read_dir(dir)
        .and_then(|listing| {
            listing
                .map(|entry| Ok(entry?.path()))
                .collect::<io::Result<Vec<_>>>()
        })
        .map_err(fail)?;
    names.sort();
    for path in names {
        look(&path, entries, &mut found).map_err(fail)?;
    }
    Ok(found)
}

fn look(
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
    let tenant = tenant_of(name);
    let owner = owner(path);
    if tenant.is_none() && owner.is_none() {
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
    if owner.is_some_and(|owner| !owner.exists()) {
        found.leftovers.push(path.to_owned());
    }
    Ok(())
}

/// The tenant file beside which SQLite keeps this one.
fn owner(path: &Path) -> Option<PathBuf> {
    let text = path.to_str()?;
    let owner = SIDECARS.iter().find_map(|end| text.strip_suffix(end))?;
    tenant_of(Path::new(owner).file_name()?)?;
    Some(PathBuf::from(owner))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;
    use crate::control::{ControlDb, ControlLook, Distinct, look as look_at_control};

    fn touch(dir: &Path, name: &str, mode: u32) {
        let path = dir.join(name);
        std::fs::write(&path, "x").unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn every_disagreement_is_listed_once() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let control = ControlDb::open(dir).unwrap();
        for (id, state) in [
            ("here", TenantState::Ready),
            ("gone", TenantState::Ready),
            ("half", TenantState::Creating),
            ("linked", TenantState::Ready),
        ] {
            control
                .register(&id.parse().unwrap(), NAME, Distinct::Exactly, state)
                .unwrap();
        }
        let other = "elsewhere".parse().unwrap();
        control
            .register(&other, "postgres", Distinct::Exactly, TenantState::Ready)
            .unwrap();
        drop(control);
        touch(dir, "here.sqlite3", 0o600);
        touch(dir, "here.sqlite3-wal", 0o640);
        touch(dir, "stray.sqlite3", 0o600);
        touch(dir, "lost.sqlite3-journal", 0o600);
        touch(dir, "notes.txt", 0o644);
        touch(dir, "_bad.sqlite3", 0o644);
        touch(dir, NEW_FILE, 0o600);
        touch(dir, ".Nimbus-Case-Probe-00", 0o600);
        symlink(dir.join("here.sqlite3"), dir.join("linked.sqlite3")).unwrap();

        let before = std::fs::read(dir.join("nimbus-control.db")).unwrap();
        let ControlLook::Entries(entries) = look_at_control(dir, None).unwrap() else {
            panic!("no entries");
        };
        let found = survey(dir, &entries).unwrap();
        let path = |name: &str| dir.join(name);
        assert_eq!(found.sound, 1);
        assert_eq!(found.missing, ["gone".parse().unwrap()]);
        assert_eq!(found.unregistered, ["stray".parse().unwrap()]);
        assert_eq!(found.unfinished, ["half".parse().unwrap()]);
        assert_eq!(found.loose, [(path("here.sqlite3-wal"), 0o640)]);
        assert_eq!(found.odd, [path("linked.sqlite3")]);
        let leftovers = [".Nimbus-Case-Probe-00", "lost.sqlite3-journal", NEW_FILE];
        assert_eq!(found.leftovers, leftovers.map(path));
        assert!(found.newest.is_some());
        assert_eq!(
            std::fs::read(dir.join("nimbus-control.db")).unwrap(),
            before
        );
    }

    #[test]
    fn a_missing_directory_is_an_error() {
        assert!(survey(Path::new("/nowhere/at/all"), &[]).is_err());
    }
}
