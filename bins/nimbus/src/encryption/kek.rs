//! `nimbus encryption rotate-kek`: the keys of one file, or of all in a directory, wrapped under
//! another key. It must not know manifests: `nimbus-crypto` plans and rewrites them.

use anyhow::bail;
use nimbus_crypto::{AwsKms, CONTROL_FILE, KeyDir, MasterKeyFile, manifest_path};
use nimbus_crypto::{KekRotation, KeyProvider, RotationPlan, RotationProgress, RotationReport};
use serde_json::json;

use super::cli::RotateKekArgs;
use super::source::KeySource;
use super::{lock_beside, lock_directory};
use crate::cli::{EncryptionArgs, Format};
use crate::config::Persistence;
use crate::settings;
use crate::{output, progress};

/// Plans, and unless it is a dry run, rotates.
pub(super) fn run(
    args: RotateKekArgs,
    source: &KeySource,
    file: &Persistence,
) -> anyhow::Result<()> {
    let new = replacement(&args)?;
    let (old, replacement) = (source.provider()?, new.provider()?);
    let _lock = match args.all {
        true => lock_directory(&args.path)?,
        false => lock_beside(&args.path)?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(rotate(&args, &*old, &*replacement, &new))?;
    mention_control(&args, file)
}

/// The control database may have a directory of its own, which `--all` does not look into.
fn mention_control(args: &RotateKekArgs, file: &Persistence) -> anyhow::Result<()> {
    let env = &settings::process_environment;
    let (data, control) = settings::directories(None, None, file, env);
    let apart = !settings::same_directory(&control, &args.path);
    let database = control.join(CONTROL_FILE);
    if args.all
        && apart
        && settings::same_directory(&data, &args.path)
        && manifest_path(&database).exists()
    {
        tracing::warn!(
            "{} is in a directory of its own and was not looked at: run the command for it, too, with --path {}",
            CONTROL_FILE,
            database.display()
        );
    }
    Ok(())
}

/// The provider that is named, or the one whose key is given (seed 003).
fn replacement(args: &RotateKekArgs) -> anyhow::Result<KeySource> {
    let given = [
        (MasterKeyFile::NAME, args.new_master_key_file.is_some()),
        (KeyDir::NAME, args.new_key_dir.is_some()),
        (AwsKms::NAME, args.new_aws_kms_key_id.is_some()),
    ];
    let inferred = given.iter().find(|(_, is)| *is).map(|(name, _)| *name);
    let provider = args.new_key_provider.as_deref().or(inferred);
    let flags = EncryptionArgs {
        encryption_key_provider: provider.map(str::to_owned),
        encryption_master_key_file: args.new_master_key_file.clone(),
        encryption_key_dir: args.new_key_dir.clone(),
        encryption_aws_kms_key_id: args.new_aws_kms_key_id.clone(),
        encryption_aws_region: args.new_aws_region.clone(),
        encryption_aws_endpoint_url: args.new_aws_endpoint_url.clone(),
    };
    // The texts name the flags of `start`, of which these are the twins.
    KeySource::from_flags(&flags).map_err(|e| {
        let text = e.to_string().replace("--encryption-", "--new-");
        crate::settings::UsageError(text).into()
    })
}

async fn rotate(
    args: &RotateKekArgs,
    old: &dyn KeyProvider,
    new: &dyn KeyProvider,
    source: &KeySource,
) -> anyhow::Result<()> {
    let rotation = KekRotation::new(old, new);
    let bar = progress::bar(None, "manifests");
    let mut told = |step| match step {
        RotationProgress::Planned { done, .. } | RotationProgress::Rotated { done, .. } => {
            bar.set_position(done as u64);
        }
        _ => {}
    };
    let plan = match args.all {
        true => rotation.plan_directory(&args.path, &mut told).await?,
        false => rotation.plan_file(&args.path).await?,
    };
    if args.dry_run {
        bar.finish_and_clear();
        return dry(&plan, args.format);
    }
    let report = rotation.apply(plan, &mut told).await?;
    bar.finish_and_clear();
    done(&report, source, args.format)
}

fn dry(plan: &RotationPlan, format: Format) -> anyhow::Result<()> {
    let (due, already) = (plan.due(), plan.already());
    match format {
        Format::Text => output::line(&format!(
            "{} manifests would be rotated, {} have the new key already; nothing was changed",
            due.len(),
            already.len()
        )),
        Format::Json => output::json(&json!({"dryRun": true, "due": due, "already": already})),
    }
}

fn done(report: &RotationReport, source: &KeySource, format: Format) -> anyhow::Result<()> {
    let failed: Vec<_> = report.failed.iter().map(ToString::to_string).collect();
    match format {
        Format::Text => output::line(&format!(
            "{} manifests rotated, {} had the new key already; use {source} from now on",
            report.rotated.len(),
            report.already.len()
        ))?,
        Format::Json => output::json(&json!({
            "dryRun": false,
            "rotated": report.rotated,
            "already": report.already,
            "failed": failed,
            "left": report.left,
        }))?,
    }
    if report.is_complete() {
        return Ok(());
    }
    bail!(
        "{} manifests were not rotated and {} not tried; each is under one of the two keys, and running the command again goes on:\n  {}",
        failed.len(),
        report.left.len(),
        failed.join("\n  ")
    )
}
