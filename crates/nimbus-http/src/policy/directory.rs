//! A directory of policy files, one for each tenant, taken as a whole or not at all.
//!
//! While it is served, changes are taken in as they come to rest; a candidate in which anything is wrong leaves what
//! was last good in force. This room must not know what a policy grants.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use jiff::Timestamp;
use nimbus_core::TenantId;
use nimbus_policy::{Source, compile};

use super::authority::Authority;
use super::{lock, next_stamp};

/// How often the directory is looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The ending of policy files.
const ENDING: &str = ".yaml";
/// Everyone may write.
const WORLD_WRITABLE: u32 = 0o002;

/// Why a directory of policies cannot be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyDirectoryError {
    /// It or a file in it cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others could change what is enforced.
    #[error("{} may be written by everyone; `chmod o-w` it", path.display())]
    Writable {
        /// The file or directory.
        path: PathBuf,
    },
    /// Something that is no policy file.
    #[error("{}: {what}; a file is named after its tenant, `<tenant>.yaml`", path.display())]
    Stray {
        /// The entry.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A file that is for another tenant than its name says.
    #[error("{} is for the tenant `{found}`, not `{named}`", path.display())]
    OtherTenant {
        /// The file.
        path: PathBuf,
        /// The tenant of its name.
        named: TenantId,
        /// The tenant that it is for.
        found: TenantId,
    },
    /// A file that is no valid policy.
    #[error("{} is no valid policy:\n{text}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// Everything that is wrong with it, for people; no secret handle.
        text: String,
    },
}

/// What a look at the names and times in the directory found; the same if nothing changed.
type Look = BTreeMap<OsString, (u64, i64, i64, u64)>;

/// A policy as it was loaded.
#[derive(Clone, Debug)]
pub(crate) struct LoadedFile {
    pub text: Arc<str>,
    pub authority: Authority,
}

/// All policies of one moment.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub files: BTreeMap<TenantId, LoadedFile>,
    /// Of tenants without a file.
    pub others: Authority,
    /// Loads that changed something, from 1.
    pub generation: u64,
    pub at: Timestamp,
}

/// How the last reload went.
#[derive(Clone, Debug)]
pub(crate) struct Reload {
    pub at: Timestamp,
    /// What is wrong with the candidate; `None` if it was taken.
    pub problem: Option<String>,
}

#[derive(Debug, Default)]
struct Looks {
    /// The last that was loaded, or tried.
    tried: Look,
    /// The last of all; loaded once a second one is the same.
    last: Look,
}

/// How reloads went, apart from [`Looks`]: those are held while files are read, which may take as long as a disk does.
#[derive(Clone, Debug, Default)]
struct Reloads {
    last: Option<Reload>,
    applied: u64,
    refused: u64,
}

/// A directory of policy files that is enforced. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PolicyDirectory {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    loaded: RwLock<Arc<Loaded>>,
    looks: Mutex<Looks>,
    reloads: Mutex<Reloads>,
}

impl PolicyDirectory {
    /// Loads all policies of a directory.
    ///
    /// # Errors
    /// [`PolicyDirectoryError`] if anything is wrong with any of them.
    pub fn open(path: &Path) -> Result<PolicyDirectory, PolicyDirectoryError> {
        let tried = look(path)?;
        let loaded = load(path, &tried, None)?;
        let looks = Looks {
            last: tried.clone(),
            tried,
        };
        Ok(PolicyDirectory {
            inner: Arc::new(Inner {
                path: path.to_owned(),
                loaded: RwLock::new(Arc::new(loaded)),
                looks: Mutex::new(looks),
                reloads: Mutex::default(),
            }),
        })
    }

    /// Looks at everything that [`PolicyDirectory::open`] would load, beyond the first fault, and keeps nothing: how many
    /// tenants have a file.
    ///
    /// # Errors
    /// Everything that is wrong, in the order of the names; at least one thing.
    pub fn examine(path: &Path) -> Result<usize, Vec<PolicyDirectoryError>> {
        let found = look(path).map_err(|error| vec![error])?;
        let whole = check_directory(path).err().into_iter();
        let each = found.keys().map(|name| load_file(&path.join(name), None));
        let faults: Vec<_> = whole.chain(each.filter_map(Result::err)).collect();
        match faults.is_empty() {
            true => Ok(found.len()),
            false => Err(faults),
        }
    }

    /// Loads all policies anew, now. Blocks on files.
    ///
    /// # Errors
    /// As [`PolicyDirectory::open`]; what was last good stays in force, and the status says so.
    pub fn reload(&self) -> Result<(), PolicyDirectoryError> {
        let mut looks = self.looks();
        let found = look(&self.inner.path);
        // What could not be looked at is not tried again before it looks otherwise.
        let seen = found.as_ref().ok().cloned().unwrap_or_default();
        looks.tried.clone_from(&seen);
        looks.last = seen;
        let before = self.loaded();
        let result = found.and_then(|found| load(&self.inner.path, &found, Some(&before)));
        let problem = result.as_ref().err().map(ToString::to_string);
        let mut reloads = lock(&self.inner.reloads);
        reloads.last = Some(Reload {
            at: Timestamp::now(),
            problem,
        });
        match result {
            Ok(loaded) => {
                reloads.applied += 1;
                let (tenants, generation) = (loaded.files.len(), loaded.generation);
                *self
                    .inner
                    .loaded
                    .write()
                    .unwrap_or_else(PoisonError::into_inner) = Arc::new(loaded);
                tracing::info!(tenants, generation, "policies were loaded");
                Ok(())
            }
            Err(error) => {
                reloads.refused += 1;
                tracing::error!(%error, "policies were not loaded; the last good ones stay in force");
                Err(error)
            }
        }
    }

    /// Loads the policies if they changed and the change came to rest: a file that is being written is not read.
    /// Blocks on files.
    pub(super) fn look(&self) {
        let due = {
            let mut looks = self.looks();
            // What cannot be looked at is a change as well; loading tells why.
            let found = look(&self.inner.path).unwrap_or_default();
            let rests = found == looks.last;
            looks.last = found;
            rests && looks.last != looks.tried
        };
        if due {
            // It is logged, and in the status.
            let _ = self.reload();
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.inner.path
    }

    /// The policies in force.
    pub(crate) fn loaded(&self) -> Arc<Loaded> {
        let loaded = self.inner.loaded.read();
        Arc::clone(&loaded.unwrap_or_else(PoisonError::into_inner))
    }

    /// The last reload; how many were applied and how many refused.
    pub(crate) fn reloads(&self) -> (Option<Reload>, u64, u64) {
        let reloads = lock(&self.inner.reloads).clone();
        (reloads.last, reloads.applied, reloads.refused)
    }

    fn looks(&self) -> MutexGuard<'_, Looks> {
        lock(&self.inner.looks)
    }
}

fn reading(path: &Path) -> impl FnOnce(io::Error) -> PolicyDirectoryError {
    let path = path.to_owned();
    move |source| PolicyDirectoryError::Read { path, source }
}

/// Names and times of what is in the directory. Hidden entries are nobody's policy: editors and Kubernetes keep some.
fn look(directory: &Path) -> Result<Look, PolicyDirectoryError> {
    let mut found = Look::new();
    for entry in fs::read_dir(directory).map_err(reading(directory))? {
        let name = entry.map_err(reading(directory))?.file_name();
        if name.as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = directory.join(&name);
        // Through links: a ConfigMap is made of them, and whoever may write here decides anyway.
        let data = fs::metadata(&path).map_err(reading(&path))?;
        let times = (data.len(), data.mtime(), data.mtime_nsec(), data.ino());
        found.insert(name, times);
    }
    Ok(found)
}

fn load(
    directory: &Path,
    found: &Look,
    before: Option<&Loaded>,
) -> Result<Loaded, PolicyDirectoryError> {
    check_directory(directory)?;
    let mut files = BTreeMap::new();
    for name in found.keys() {
        let path = directory.join(name);
        let (tenant, file) = load_file(&path, before)?;
        files.insert(tenant, file);
    }
    Ok(Loaded {
        files,
        // After those of the files: a tenant whose file went has a newer one than before.
        others: Authority::nothing(next_stamp()),
        generation: before.map_or(0, |before| before.generation) + 1,
        at: Timestamp::now(),
    })
}

fn check_directory(path: &Path) -> Result<(), PolicyDirectoryError> {
    check_mode(path, &fs::metadata(path).map_err(reading(path))?)
}

fn check_mode(path: &Path, data: &Metadata) -> Result<(), PolicyDirectoryError> {
    match data.permissions().mode() & WORLD_WRITABLE {
        0 => Ok(()),
        _ => Err(PolicyDirectoryError::Writable {
            path: path.to_owned(),
        }),
    }
}

fn load_file(
    path: &Path,
    before: Option<&Loaded>,
) -> Result<(TenantId, LoadedFile), PolicyDirectoryError> {
    let stray = |what| PolicyDirectoryError::Stray {
        path: path.to_owned(),
        what,
    };
    let name = path.file_name().and_then(|name| name.to_str());
    let stem = name.and_then(|name| name.strip_suffix(ENDING));
    let stem = stem.ok_or_else(|| stray("the name does not end in `.yaml`"))?;
    let named: TenantId = stem
        .parse()
        .map_err(|_| stray("the name is not that of a tenant"))?;
    let data = fs::metadata(path).map_err(reading(path))?;
    if !data.is_file() {
        return Err(stray("it is no file"));
    }
    check_mode(path, &data)?;
    let source = Source::read(path).map_err(|error| reading(path)(error.source))?;
    // A policy that did not change keeps its stamp, and what was cached under it.
    let known = before.and_then(|before| before.files.get(&named));
    if let Some(known) = known.filter(|known| *known.text == *source.text()) {
        return Ok((named, known.clone()));
    }
    let policy = compile(&source).map_err(|invalid| PolicyDirectoryError::Invalid {
        path: path.to_owned(),
        text: invalid.render(false),
    })?;
    if *policy.tenant() != named {
        return Err(PolicyDirectoryError::OtherTenant {
            path: path.to_owned(),
            named,
            found: policy.tenant().clone(),
        });
    }
    let file = LoadedFile {
        text: source.text().into(),
        authority: Authority::of(next_stamp(), policy),
    };
    Ok((named, file))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn policy(tenant: &str, name: &str) -> String {
        format!(
            "schema_version: 1\ntenant: {tenant}\nworkloads:\n- {{kind: runtime_function, name: '{name}'}}\n"
        )
    }

    struct Place(tempfile::TempDir);

    impl Place {
        fn new() -> Place {
            let place = Place(tempfile::tempdir().unwrap());
            place.put("acme.yaml", &policy("acme", "m:one"));
            place.put("globex.yaml", &policy("globex", "m:one"));
            place
        }

        fn put(&self, name: &str, text: &str) {
            fs::write(self.0.path().join(name), text).unwrap();
        }

        fn open(&self) -> Result<PolicyDirectory, PolicyDirectoryError> {
            PolicyDirectory::open(self.0.path())
        }
    }

    /// Tenant, stamp and the first workload.
    fn in_force(directory: &PolicyDirectory) -> Vec<(String, u64, String)> {
        let loaded = directory.loaded();
        let told = loaded.files.iter().map(|(tenant, file)| {
            let policy = file.authority.policy().unwrap();
            let first = policy.decisions()[0].key().to_owned();
            (tenant.to_string(), file.authority.stamp(), first)
        });
        told.collect()
    }

    #[test]
    fn a_change_is_taken_once_it_rests_and_what_did_not_change_keeps_its_stamp() {
        let place = Place::new();
        let directory = place.open().unwrap();
        let first = in_force(&directory);
        directory.look();
        assert_eq!(in_force(&directory), first);
        place.put("acme.yaml", &policy("acme", "m:another"));
        place.put(".acme.yaml.swp", "not a policy");
        directory.look();
        assert_eq!(in_force(&directory), first, "it may still be written");
        directory.look();
        let second = in_force(&directory);
        assert_eq!(second[0].2, "runtime_function/m:another");
        assert!(second[0].1 > first[0].1);
        assert_eq!(second[1], first[1]);
        fs::remove_file(place.0.path().join("globex.yaml")).unwrap();
        directory.reload().unwrap();
        assert_eq!(in_force(&directory).len(), 1);
        assert_eq!(directory.loaded().generation, 3);
    }

    #[test]
    fn anything_wrong_leaves_the_last_good_ones_in_force_until_it_is_mended() {
        let place = Place::new();
        let directory = place.open().unwrap();
        let good = in_force(&directory);
        place.put("acme.yaml", &policy("acme", "m:new"));
        place.put("globex.yaml", "tenant: globex\nsecrets: [hunter2]\n");
        for _ in 0..5 {
            directory.look();
        }
        assert_eq!(in_force(&directory), good, "all or nothing");
        let (reload, applied, refused) = directory.reloads();
        let problem = reload.unwrap().problem.unwrap();
        assert!(
            problem.contains("globex.yaml") && problem.contains("missing_key"),
            "{problem}"
        );
        assert_eq!(
            (applied, refused),
            (0, 1),
            "it is not tried again as long as nothing changes"
        );
        place.put("globex.yaml", &policy("globex", "m:new"));
        for _ in 0..2 {
            directory.look();
        }
        assert_eq!(directory.reloads().0.unwrap().problem, None);
        assert!(
            in_force(&directory)
                .iter()
                .all(|file| file.2.ends_with("m:new"))
        );
        fs::rename(place.0.path(), place.0.path().with_extension("away")).unwrap();
        for _ in 0..2 {
            directory.look();
        }
        assert_eq!(
            in_force(&directory).len(),
            2,
            "a directory that is away takes nothing back"
        );
        assert!(directory.reloads().0.unwrap().problem.is_some());
        fs::rename(place.0.path().with_extension("away"), place.0.path()).unwrap();
    }

    #[test]
    fn what_is_no_directory_of_policies_is_refused() {
        use PolicyDirectoryError as E;
        let check = |name: &str, text: &str, wanted: fn(&E) -> bool| {
            let place = Place::new();
            place.put(name, text);
            let error = place.open().unwrap_err();
            assert!(wanted(&error), "{error}");
            assert!(error.to_string().contains(name), "{error}");
        };
        check("README", "", |e| matches!(e, E::Stray { .. }));
        check("acme.yml", "", |e| matches!(e, E::Stray { .. }));
        check("a b.yaml", "", |e| matches!(e, E::Stray { .. }));
        check("acme.yaml", "tenant: [", |e| matches!(e, E::Invalid { .. }));
        check("other.yaml", &policy("acme", "m:f"), |e| {
            matches!(e, E::OtherTenant { .. })
        });
        let place = Place::new();
        fs::create_dir(place.0.path().join("sub.yaml")).unwrap();
        assert!(matches!(place.open(), Err(E::Stray { .. })));
        let place = Place::new();
        let file = place.0.path().join("acme.yaml");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(matches!(place.open(), Err(E::Writable { .. })));
        let gone = place.0.path().join("gone");
        assert!(matches!(PolicyDirectory::open(&gone), Err(E::Read { .. })));
    }
}
