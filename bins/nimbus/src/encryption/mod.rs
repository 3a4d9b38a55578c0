//! Encryption at rest on the command line: where keys come from, and `nimbus encryption`.
//!
//! It must not know ciphers or formats: `nimbus-crypto` and `nimbus-storage` do.

pub(crate) mod cli;
mod convert;
mod kek;
pub(crate) mod source;
mod status;

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use nimbus_core::TenantId;
use nimbus_crypto::{CONTROL_FILE, Subject};
use nimbus_storage::encryption::Keyring;
use nimbus_storage::provider::lock::{self, DataDirLock, Holding, LockError};

use crate::cli::EncryptionArgs;
use crate::config::Persistence;
use crate::settings::{self, UsageError};
use cli::{EncryptionCommand, FileFamily};
use source::KeySource;

/// Runs one of the commands.
pub(crate) fn run(command: EncryptionCommand) -> anyhow::Result<()> {
    let env = &settings::process_environment;
    let file = settings::persistence(None, env)?;
    let source = configured(&file)?;
    match command {
        EncryptionCommand::Status { format } => status::run(&source, &file, format),
        EncryptionCommand::Migrate(args) => convert::migrate(args, &source),
        EncryptionCommand::Export(args) => convert::export(args, &source),
        EncryptionCommand::RotateDek(args) => convert::rotate_dek(args, &source),
        EncryptionCommand::RotateKek(args) => kek::run(args, &source, &file),
    }
}

/// The key source of the environment and the configuration file, without which these commands refuse.
fn configured(file: &Persistence) -> anyhow::Result<KeySource> {
    without_flags(file)?.ok_or_else(|| {
        UsageError(
            "encryption is not configured: set NIMBUS_ENCRYPTION_KEY_PROVIDER and the variable of its keys, or name a configuration file in NIMBUS_CONFIG".to_owned(),
        )
        .into()
    })
}

/// The keyring that commands without flags of their own use; `None` while encryption is off.
pub(crate) fn keyring(file: &Persistence) -> anyhow::Result<Option<Arc<Keyring>>> {
    let source = without_flags(file)?;
    source.map(|source| source.keyring()).transpose()
}

fn without_flags(file: &Persistence) -> anyhow::Result<Option<KeySource>> {
    let env = &settings::process_environment;
    source::resolve(&EncryptionArgs::default(), env, file)
}

/// Keeps servers out of the directory of a file while it is changed.
fn lock_beside(path: &Path) -> anyhow::Result<DataDirLock> {
    lock_directory(directory_of(path))
}

fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// A target must not be made among the files of a running server. It is not locked, since it may be
/// anywhere, and a lock would leave its file there.
fn refuse_in_use(target: Option<&Path>) -> anyhow::Result<()> {
    let Some(target) = target else { return Ok(()) };
    let dir = directory_of(target);
    // The process itself holds the source's directory, which may be the same.
    let own = |holder: Option<lock::Holder>| holder.is_some_and(|h| h.pid == std::process::id());
    match lock::look(dir)? {
        Holding::Held(holder) if !own(holder.clone()) => bail!(
            "{} is held by a running process: choose another place for the target, or stop it first",
            dir.display()
        ),
        _ => Ok(()),
    }
}

/// What these commands write has to be the server's to read.
fn check_owner(dir: &Path) -> anyhow::Result<()> {
    let owner = std::fs::metadata(dir)?.uid();
    let user = rustix::process::geteuid().as_raw();
    if owner == user {
        return Ok(());
    }
    bail!(
        "{} belongs to the user with id {owner}, and this runs as {user}, whose files a server of that user could not read: run it as that user (`sudo -u '#{owner}' nimbus encryption ...`)",
        dir.display()
    )
}

fn lock_directory(dir: &Path) -> anyhow::Result<DataDirLock> {
    if !dir.is_dir() {
        bail!("{} is not a directory", dir.display());
    }
    check_owner(dir)?;
    DataDirLock::acquire(dir).map_err(|error| match error {
        LockError::Held { .. } => anyhow::Error::from(error)
            .context("the files must not be in use: stop the server first"),
        other => other.into(),
    })
}

/// Which file that is in its place.
fn subject(path: &Path, family: FileFamily, tenant: Option<&TenantId>) -> anyhow::Result<Subject> {
    let name = path.file_name().and_then(|name| name.to_str());
    let is_control = name == Some(CONTROL_FILE);
    let subject = match (family, tenant) {
        (FileFamily::Redb, None) if is_control => return Ok(Subject::control()),
        (FileFamily::Redb, Some(_)) if is_control => {
            bail!(UsageError(format!(
                "{CONTROL_FILE} belongs to no tenant: leave --tenant-id out"
            )))
        }
        (_, None) => bail!(UsageError(format!(
            "--tenant-id is needed: it may be left out for {CONTROL_FILE} alone"
        ))),
        (FileFamily::Sqlite, Some(tenant)) => Subject::sqlite_tenant(tenant.as_str()),
        (FileFamily::Redb, Some(tenant)) => Subject::redb_tenant(tenant.as_str()),
        (FileFamily::LibsqlCache, Some(tenant)) => {
            Subject::libsql_cache(tenant.as_str(), name.unwrap_or_default())
        }
    };
    subject.with_context(|| format!("naming the key of {}", path.display()))
}
