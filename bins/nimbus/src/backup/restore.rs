//! `nimbus backup restore`: into a data directory that no server holds, new or not.

use anyhow::{Context as _, bail};
use nimbus_auth::Permission;

use super::{open, report};
use crate::cli::BackupRestoreArgs;
use crate::place::{Backend, Offline};
use crate::settings::{self, ProviderName};

/// Runs the command.
pub(crate) fn run(args: BackupRestoreArgs) -> anyhow::Result<()> {
    let env = &settings::process_environment;
    let file = settings::persistence(None, env)?;
    let provider = args
        .provider
        .or_else(|| env("NIMBUS_TENANT_PROVIDER"))
        .or_else(|| file.tenant_provider.clone());
    let provider = match provider {
        Some(name) => name.parse().map_err(settings::UsageError)?,
        None => ProviderName::Sqlite,
    };
    let (data, control) = settings::directories(args.data_dir, args.control_data_dir, &file, env);
    // Before anything is made: what is no backup must leave no directory behind.
    let (source, bar) = open(&args.input)?;
    let offline = Offline::create(&data, &control, provider).with_context(|| {
        format!(
            "a restore writes to a data directory that no server holds, and {} is not ready for that",
            data.display()
        )
    })?;
    let context = offline.caller.server_context(Permission::ManageSystem)?;
    let restore = offline.store.restore(&context, source, &args.tenant);
    let outcome = offline.runtime.block_on(restore);
    bar.finish_and_clear();
    Backend::Offline(Box::new(offline)).close()?;
    let summary = outcome.with_context(|| format!("restoring {}", args.input.display()))?;
    if summary.tenants.is_empty() && !args.tenant.is_empty() {
        bail!(
            "the tenants that were named were deleted while the backup was made; it does not hold them"
        );
    }
    report(&summary, args.format, "restored")
}
