//! How the tenant files agree with the registry, found out without opening any of them.
//!
//! It must not change or judge anything, nor know keys: a manifest is a file beside another.

use std::io;
use std::path::Path;

use nimbus_core::TenantId;

use super::{Family, NAME, RedbFiles};
use crate::control::{NEW_FILE, TenantEntry, TenantState};
use crate::provider::ProviderResult;
use crate::provider::files::{self, Entry};
use crate::provider::local::tenant_of;
use crate::survey::{TenantFiles, mode, present};

const ENDING: &str = RedbFiles::ENDING;
/// What may stay beside a tenant file. Without the file it is kept as well: the file may come back
/// from a backup.
const MANIFEST: &str = ".nimbus-enc";

/// Compares the files in `dir` with the registry's entries.
///
/// # Errors
/// `Io` when the directory cannot be listed or a name in it cannot be looked at.
pub fn survey(dir: &Path, entries: &[(TenantId, TenantEntry)]) -> ProviderResult<TenantFiles> {
    let fail = |e| files::error("looking at", dir, e);
    let mut found = TenantFiles::default();
    for (tenant, entry) in entries.iter().filter(|(_, entry)| entry.provider == NAME) {
        let path = dir.join(format!("{tenant}{ENDING}"));
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
    if name == NEW_FILE {
        found.leftovers.push(path.to_owned());
        return Ok(());
    }
    let tenant = tenant_of(name, ENDING);
    let owner = owner(path);
    if tenant.is_none() && owner.is_none() {
        return Ok(());
    }
    // It may have gone since the listing.
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
    if owner.is_some_and(|ending| ending != MANIFEST) {
        found.leftovers.push(path.to_owned());
    }
    Ok(())
}

/// The ending of a file that is beside a tenant file.
fn owner(path: &Path) -> Option<&'static str> {
    let text = path.to_str()?;
    let (owner, ending) = RedbFiles::BESIDE
        .iter()
        .find_map(|ending| Some((text.strip_suffix(ending)?, *ending)))?;
    tenant_of(Path::new(owner).file_name()?, ENDING)?;
    Some(ending)
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
        for (id, provider, state) in [
            ("here", NAME, TenantState::Ready),
            ("gone", NAME, TenantState::Ready),
            ("half", NAME, TenantState::Creating),
            ("linked", NAME, TenantState::Ready),
            ("elsewhere", "sqlite", TenantState::Ready),
        ] {
            let entered =
                control.register(&id.parse().unwrap(), provider, Distinct::Exactly, state);
            entered.unwrap();
        }
        drop(control);
        for (name, mode) in [
            ("here.redb", 0o600),
            ("here.redb.nimbus-enc", 0o644),
            ("here.redb.rotating", 0o600),
            ("stray.redb", 0o600),
            ("lost.redb.nimbus-enc", 0o600),
            ("notes.txt", 0o644),
            ("_bad.redb", 0o644),
            ("elsewhere.sqlite3", 0o644),
            (NEW_FILE, 0o600),
        ] {
            touch(dir, name, mode);
        }
        symlink(dir.join("here.redb"), dir.join("linked.redb")).unwrap();
        let ControlLook::Entries(entries) = look_at_control(dir, None).unwrap() else {
            panic!("no entries");
        };
        let found = survey(dir, &entries).unwrap();
        let path = |name: &str| dir.join(name);
        assert_eq!(found.sound, 1);
        assert_eq!(found.missing, ["gone".parse().unwrap()]);
        assert_eq!(found.unregistered, ["stray".parse().unwrap()]);
        assert_eq!(found.unfinished, ["half".parse().unwrap()]);
        assert_eq!(found.loose, [(path("here.redb.nimbus-enc"), 0o644)]);
        assert_eq!(found.odd, [path("linked.redb")]);
        let leftovers = ["here.redb.rotating", NEW_FILE];
        assert_eq!(found.leftovers, leftovers.map(path));
        assert!(found.newest.is_some());
        assert!(survey(Path::new("/nowhere/at/all"), &[]).is_err());
    }
}
