//! `nimbus doctor`: looks at everything that `nimbus start` relies on, and says what to do about it.
//!
//! Facts are gathered here and judged in the rooms below. Nothing is changed, and no secret is shown.
//! It must not take locks, nor open a store.

mod audit;
mod encryption;
mod functions;
mod host;
mod listen;
mod policies;
mod report;
mod storage;
mod token;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::bail;
use jiff::Timestamp;
use nimbus_auth::{Environment, PathError};
use nimbus_core::TenantId;
use nimbus_storage::control::TenantEntry;
use nimbus_storage::provider::lock::{self, Holding};
use nimbus_storage::survey::{self, TenantFiles};
use nimbus_storage::{ProviderError, control};
use rustix::process::{Resource, geteuid, getrlimit};

use crate::cli::{DoctorArgs, Format};
use crate::external::Served;
use crate::local;
use crate::output;
use crate::settings::{self, Settings};
use report::{Check, Report};

/// Runs every check and prints what they found; an error when one failed.
pub(crate) fn run(args: DoctorArgs) -> anyhow::Result<()> {
    let settings = settings::resolve(args.start, &settings::process_environment)?;
    let report = examine(&settings, &Environment::system());
    match args.format {
        Format::Text => output::raw(report.text().as_bytes())?,
        Format::Json => output::json(&report.json())?,
    }
    let failed = report.failed();
    if !failed.is_empty() {
        bail!(
            "{} of {} checks failed: {}",
            failed.len(),
            report.0.len(),
            failed.join(", ")
        );
    }
    Ok(())
}

fn examine(settings: &Settings, environment: &Environment<'_>) -> Report {
    let now = Timestamp::now();
    let (token_path, audit_path) = (environment.token_path(), environment.audit_path());
    let token = token::load(&token_path);
    let addresses = listen::resolve(settings);
    let store = Store::look(settings);

    let mut checks = vec![
        host::user(geteuid().as_raw()),
        token::file(&token_path, token.as_ref(), now),
    ];
    checks.extend(token_path.as_ref().ok().map(|path| token::leftovers(path)));
    checks.push(listen::gate(settings, &addresses, token.as_ref(), now));
    checks.push(listen::port(settings, &addresses, store.address()));
    checks.push(storage::provider(
        settings.home.name,
        settings.home.external.as_ref(),
    ));
    let databases =
        served(settings).filter_map(|served| Some((served.name, served.external.as_ref()?)));
    checks.extend(databases.enumerate().map(|(at, (provider, external))| {
        let name = match at {
            0 => "database",
            _ => storage::database_of(provider),
        };
        storage::database(name, external)
    }));
    checks.push(encryption::check(settings));
    checks.extend(store.checks(settings));
    checks.push(audit_log(&audit_path));
    checks.extend(disks(settings, &token_path, &audit_path));
    checks.push(host::clock(now, newest(&store, [&token_path, &audit_path])));
    checks.extend(limits());
    checks.push(functions::worker(&settings.functions.runtime));
    let policies = settings.policy_dir.as_deref();
    checks.extend(policies.map(policies::directory));
    Report(checks)
}

/// The provider of new tenants, and those whose tenants are served too.
fn served(settings: &Settings) -> impl Iterator<Item = &Served> {
    std::iter::once(&settings.home).chain(&settings.also)
}

/// What the data directory and the control directory hold.
struct Store {
    held: Result<Holding, lock::LockError>,
    control: Option<Result<control::ControlLook, ProviderError>>,
    /// Of all providers that keep files and are served.
    files: Option<Result<TenantFiles, ProviderError>>,
    /// Registered with a provider that is not served.
    unserved: Vec<TenantId>,
}

impl Store {
    fn look(settings: &Settings) -> Store {
        let held = lock::look(&settings.data_dir);
        let free = matches!(held, Ok(Holding::Free))
            && matches!(lock::look(&settings.control_data_dir), Ok(Holding::Free));
        let control = free.then(|| {
            // A key that cannot be used has a check of its own.
            let source = settings.encryption.as_ref();
            let keyring = source.and_then(|source| source.keyring().ok());
            control::look(&settings.control_data_dir, keyring.as_ref())
        });
        let entries = storage::entries(control.as_ref());
        let files = entries
            .filter(|_| keeps_files(settings) && settings.data_dir.is_dir())
            .map(|entries| survey_all(settings, entries));
        let strange = |(_, entry): &&(TenantId, TenantEntry)| {
            served(settings).all(|served| served.name.name() != entry.provider)
        };
        let unserved = entries.unwrap_or_default().iter().filter(strange);
        let unserved = unserved.map(|(tenant, _)| tenant.clone()).collect();
        Store {
            held,
            control,
            files,
            unserved,
        }
    }

    /// Where the process that holds the directory listens.
    fn address(&self) -> Option<SocketAddr> {
        match &self.held {
            Ok(Holding::Held(holder)) => holder.as_ref()?.address,
            _ => None,
        }
    }

    fn checks(&self, settings: &Settings) -> Vec<Check> {
        let mut checks = vec![directory("data_dir", &settings.data_dir)];
        if apart(settings) {
            checks.push(directory("control_dir", &settings.control_data_dir));
        }
        checks.push(storage::lock(&self.held, listen::ask));
        checks.push(storage::control_db(self.control.as_ref()));
        if settings.data_dir.is_dir() {
            if keeps_files(settings) || !self.unserved.is_empty() {
                checks.push(storage::tenants(self.files.as_ref(), &self.unserved));
            }
            let disk = survey::disk_of(&settings.data_dir);
            let case = survey::ignores_case(&settings.data_dir).ok().flatten();
            checks.push(host::file_system(&disk, case));
        }
        if let Some(Ok(files)) = &self.files {
            checks.push(storage::leftovers(files));
        }
        checks
    }
}

/// Whether tenants of a served provider are files of the data directory.
fn keeps_files(settings: &Settings) -> bool {
    served(settings).any(|served| served.name.is_embedded())
}

/// The files of every served provider: a tenant that was moved has its file with another one than new tenants.
fn survey_all(
    settings: &Settings,
    entries: &[(TenantId, TenantEntry)],
) -> Result<TenantFiles, ProviderError> {
    let mut found = TenantFiles::default();
    for served in served(settings).filter(|served| served.name.is_embedded()) {
        found.merge(local::survey(served.name, &settings.data_dir, entries)?);
    }
    Ok(found)
}

/// Whether the control database has a directory of its own.
fn apart(settings: &Settings) -> bool {
    !settings::same_directory(&settings.control_data_dir, &settings.data_dir)
}

fn directory(name: &'static str, path: &Path) -> Check {
    let above = survey::directory(survey::nearest(path));
    let above = above.is_ok_and(|above| above.is_some_and(|above| above.writable));
    let user = geteuid().as_raw();
    storage::directory(name, path, &survey::directory(path), above, user)
}

fn audit_log(path: &Result<PathBuf, PathError>) -> Check {
    match path {
        Ok(path) => audit::log(path, &nimbus_auth::audit::look(path)),
        Err(error) => Check::refused("audit_log", error),
    }
}

fn disks(
    settings: &Settings,
    token: &Result<PathBuf, PathError>,
    audit: &Result<PathBuf, PathError>,
) -> Vec<Check> {
    let control = apart(settings).then_some(&settings.control_data_dir);
    let places = [
        ("disk_data", Some(&settings.data_dir)),
        ("disk_control", control),
        ("disk_token", token.as_ref().ok()),
        ("disk_audit", audit.as_ref().ok()),
    ];
    let there = places
        .into_iter()
        .filter_map(|(name, path)| Some((name, path?)));
    there
        .map(|(name, path)| host::disk(name, path, &survey::disk_of(path)))
        .collect()
}

/// The newest of the files that Nimbus writes, and when it was written.
fn newest(store: &Store, paths: [&Result<PathBuf, PathError>; 2]) -> Option<(PathBuf, SystemTime)> {
    let written = |path: &PathBuf| {
        let modified = path.symlink_metadata().and_then(|found| found.modified());
        modified.ok().map(|at| (path.clone(), at))
    };
    let own = paths
        .into_iter()
        .filter_map(|path| written(path.as_ref().ok()?));
    let files = store.files.as_ref().and_then(|files| files.as_ref().ok());
    let tenants = files.and_then(|files| Some((PathBuf::from("a tenant file"), files.newest?)));
    own.chain(tenants).max_by_key(|(_, at)| *at)
}

fn limits() -> Vec<Check> {
    let files = getrlimit(Resource::Nofile);
    vec![
        host::open_files(files.current, files.maximum),
        host::core_dumps(getrlimit(Resource::Core).current),
        host::memory(crate::memory::limit()),
    ]
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::collections::BTreeSet;

    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    /// The settings of `nimbus doctor` with these arguments and no environment.
    pub(super) fn settings(args: &[&str]) -> Settings {
        let line = ["nimbus", "doctor"].into_iter().chain(args.iter().copied());
        match Cli::try_parse_from(line).unwrap().command {
            Command::Doctor(args) => settings::resolve(args.start, &|_| None).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn names_are_unique_and_whatever_is_not_ok_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        let (data, control) = (dir.path().join("data"), dir.path().join("control"));
        let home = dir.path().as_os_str().to_owned();
        let environment = Environment::new(nimbus_auth::Platform::Linux, move |name| {
            (name == "HOME").then(|| home.clone())
        });
        let args = ["--data-dir", data.to_str().unwrap()];
        let apart = [
            "--control-data-dir",
            control.to_str().unwrap(),
            "--port",
            "0",
        ];
        let report = examine(
            &settings(&[args, [apart[0], apart[1]], [apart[2], apart[3]]].concat()),
            &environment,
        );
        let names: BTreeSet<_> = report.0.iter().map(|check| check.name).collect();
        assert_eq!(names.len(), report.0.len());
        assert!(names.contains("control_dir") && names.contains("disk_control"));
        for check in &report.0 {
            assert_eq!(
                check.status == report::Status::Ok,
                check.advice.is_none(),
                "{check:?}"
            );
        }
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            0,
            "something was made"
        );
    }
}
