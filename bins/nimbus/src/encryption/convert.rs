//! `nimbus encryption migrate`, `export` and `rotate-dek`: one file, its directory locked, with a
//! progress bar. It must not know how files are converted.

use std::path::Path;

use nimbus_storage::encryption::{self, AdminError, Migration, PlainExport};
use serde_json::json;

use super::cli::{ExportArgs, FileFamily, MigrateArgs, RotateDekArgs};
use super::source::KeySource;
use super::{lock_beside, refuse_in_use, subject};
use crate::cli::Format;
use crate::{output, progress};

/// Converts a file in plain text into an encrypted one.
pub(super) fn migrate(args: MigrateArgs, source: &KeySource) -> anyhow::Result<()> {
    refuse_cache(args.provider, "migrated")?;
    let subject = subject(&args.source, args.provider, args.tenant_id.as_ref())?;
    let job = Migration {
        target: args.target,
        subject,
        validate: !args.skip_validation,
        retire_source: args.retire_source,
        replace: args.replace,
        source: args.source,
    };
    let keyring = source.keyring()?;
    let _lock = lock_beside(&job.source)?;
    refuse_in_use(job.target.as_deref())?;
    let target = with_bar(&job.source, |told| {
        encryption::migrate(&job, &keyring, told)
    })?;
    let (from, to) = (job.source.display(), target.display());
    let kept = !(job.replace || job.retire_source);
    let text = match (job.replace, kept) {
        (true, _) => format!("{to} is encrypted"),
        (_, true) => format!(
            "{to} is the encrypted copy of {from}; move it and {to}.nimbus-enc into the place of the source, which is still there in plain text"
        ),
        _ => format!(
            "{to} is the encrypted copy of {from}, which is deleted; move it and {to}.nimbus-enc into its place"
        ),
    };
    told(
        args.format,
        &text,
        &json!({
            "source": from.to_string(),
            "target": to.to_string(),
            "validated": job.validate,
            "sourceKept": kept,
        }),
    )
}

/// Converts an encrypted file into one in plain text.
pub(super) fn export(args: ExportArgs, source: &KeySource) -> anyhow::Result<()> {
    refuse_cache(args.provider, "exported")?;
    let job = PlainExport {
        subject: subject(&args.source, args.provider, args.tenant_id.as_ref())?,
        source: args.source,
        target: args.target,
    };
    let keyring = source.keyring()?;
    let _lock = lock_beside(&job.source)?;
    refuse_in_use(Some(&job.target))?;
    with_bar(&job.source, |told| encryption::export(&job, &keyring, told))?;
    let (from, to) = (job.source.display(), job.target.display());
    let text = format!("{to} is the copy of {from} in plain text");
    told(
        args.format,
        &text,
        &json!({"source": from.to_string(), "target": to.to_string()}),
    )
}

/// Gives a file a new key.
pub(super) fn rotate_dek(args: RotateDekArgs, source: &KeySource) -> anyhow::Result<()> {
    let subject = subject(&args.path, args.provider, args.tenant_id.as_ref())?;
    let keyring = source.keyring()?;
    let _lock = lock_beside(&args.path)?;
    with_bar(&args.path, |told| {
        encryption::rotate_dek(&args.path, &subject, !args.skip_backup, &keyring, told)
    })?;
    let path = args.path.display();
    told(
        args.format,
        &format!("{path} has a new key"),
        &json!({"path": path.to_string()}),
    )
}

/// Before a tenant is asked for: a cache is not converted, whatever else is wrong.
fn refuse_cache(family: FileFamily, action: &'static str) -> anyhow::Result<()> {
    match family {
        FileFamily::LibsqlCache => Err(AdminError::Cache { action }.into()),
        _ => Ok(()),
    }
}

/// Runs a conversion under a bar as long as the file.
fn with_bar<T>(
    path: &Path,
    run: impl FnOnce(encryption::Progress<'_>) -> encryption::AdminResult<T>,
) -> anyhow::Result<T> {
    let size = std::fs::symlink_metadata(path)
        .map(|found| found.len())
        .ok();
    let bar = progress::bar(size, "bytes");
    let done = run(&mut |bytes| bar.set_position(bytes));
    bar.finish_and_clear();
    Ok(done?)
}

fn told(format: Format, text: &str, json: &serde_json::Value) -> anyhow::Result<()> {
    match format {
        Format::Text => output::line(text),
        Format::Json => output::json(json),
    }
}
