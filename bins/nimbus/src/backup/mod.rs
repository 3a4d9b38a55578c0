//! `nimbus backup`: tenants into one file, and back.
//!
//! `create` asks the server that holds the data directory, or reads it when nobody does; `restore`
//! writes a directory that nobody holds; `verify` needs neither. What is in the file is not known here.

mod restore;

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek as _, Write};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use indicatif::ProgressBar;
use nimbus_auth::Permission;
use nimbus_core::TenantId;
use nimbus_storage::backup::{Source, Summary, TenantSummary, is_sealed, verify};
use serde_json::json;

use crate::cli::{BackupCommand, BackupCreateArgs, Format};
use crate::place::{Backend, Offline};
use crate::{encryption, output, progress, settings};

/// Bytes copied at once.
const COPY: usize = 256 * 1024;

/// Runs one of the commands.
pub(crate) fn run(command: BackupCommand) -> anyhow::Result<()> {
    match command {
        BackupCommand::Create(args) => create(args),
        BackupCommand::Restore(args) => restore::run(args),
        BackupCommand::Verify { input, format } => {
            let (source, bar) = open(&input)?;
            let outcome = verify(source);
            bar.finish_and_clear();
            let summary =
                outcome.with_context(|| format!("{} is not to be used", input.display()))?;
            report(&summary, format, "whole")
        }
    }
}

fn create(args: BackupCreateArgs) -> anyhow::Result<()> {
    let shown = args.out.display();
    refuse_existing(&args.out)?;
    let format = args.place.format;
    let backend = Backend::open(args.place)?;
    let written = output::new_file(&args.out, |out| match &backend {
        Backend::Server(remote) => {
            let path = backup_path(&args.tenant, args.plain);
            copy(remote.stream(&path)?, out)
        }
        Backend::Offline(offline) => write_offline(offline, &args.tenant, args.plain, out),
    });
    backend.close()?;
    let bytes = written.with_context(|| format!("nothing was written to {shown}"))?;
    let sealed = is_sealed(File::open(&args.out)?)?;
    match format {
        Format::Json => output::json(
            &json!({"out": args.out.to_string_lossy(), "bytes": bytes, "sealed": sealed}),
        ),
        Format::Text => output::line(&format!("wrote {shown}: {bytes} bytes, {}", seal(sealed))),
    }
}

/// Before any work; the file is made in a way that overwrites nothing, too.
fn refuse_existing(path: &Path) -> anyhow::Result<()> {
    match path.symlink_metadata() {
        Ok(_) => bail!(
            "{} exists already and is not overwritten; name another file",
            path.display()
        ),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e).with_context(|| format!("looking at {}", path.display())),
    }
}

fn backup_path(tenants: &[TenantId], plain: bool) -> String {
    let mut path = format!("/api/system/backup?plain={plain}");
    for tenant in tenants {
        path.push_str(&format!("&tenant={tenant}"));
    }
    path
}

/// A body that is cut off is an error of its reader.
fn copy(mut from: impl Read, out: &mut dyn Write) -> anyhow::Result<u64> {
    let bar = progress::bar(None, "bytes");
    let mut buffer = vec![0; COPY];
    let mut bytes = 0;
    loop {
        let read = from
            .read(&mut buffer)
            .context("the server cut the backup off; its log says why")?;
        if read == 0 {
            bar.finish_and_clear();
            return Ok(bytes);
        }
        out.write_all(&buffer[..read])?;
        bytes += read as u64;
        bar.inc(read as u64);
    }
}

fn write_offline(
    offline: &Offline,
    tenants: &[TenantId],
    plain: bool,
    out: &mut dyn Write,
) -> anyhow::Result<u64> {
    let context = offline.caller.server_context(Permission::ManageSystem)?;
    let bar = progress::bar(None, "bytes");
    let bytes = offline.runtime.block_on(async {
        let mut backup = offline.store.backup(&context, tenants, plain).await?;
        let mut bytes = 0;
        while let Some(piece) = backup.next().await? {
            out.write_all(&piece)?;
            bytes += piece.len() as u64;
            bar.inc(piece.len() as u64);
        }
        anyhow::Ok(bytes)
    });
    bar.finish_and_clear();
    bytes
}

/// Opens a backup to be read, with a progress bar over it.
fn open(path: &Path) -> anyhow::Result<(Source, ProgressBar)> {
    let shown = path.display();
    // A pipe without a writer must not keep us waiting.
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits())?;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = file.with_context(|| format!("opening {shown}"))?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        bail!("{shown} is not a regular file; name the file that `nimbus backup create` wrote");
    }
    let bar = progress::bar(Some(meta.len()), "bytes");
    // One in plain text is read without a key, whatever the settings are.
    let sealed = is_sealed(&file).with_context(|| shown.to_string())?;
    (&file).rewind()?;
    let keyring = match sealed {
        true => {
            let settings = settings::persistence(None, &settings::process_environment)?;
            encryption::keyring(&settings)?
        }
        false => None,
    };
    let source = Source::open(bar.wrap_read(file), keyring.as_deref());
    Ok((source.with_context(|| shown.to_string())?, bar))
}

fn report(summary: &Summary, format: Format, done: &str) -> anyhow::Result<()> {
    if format == Format::Json {
        return output::json(&serde_json::to_value(summary)?);
    }
    let made = i64::try_from(summary.created_at_ms).ok();
    let made = made.and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    output::line(&format!(
        "backup of {}, made by nimbus {}, {}",
        made.unwrap_or_default(),
        output::printable(&summary.nimbus),
        seal(summary.sealed)
    ))?;
    for tenant in &summary.tenants {
        output::line(&line_of(tenant))?;
    }
    for tenant in &summary.deleted {
        output::line(&format!("{tenant}: was deleted while the backup was made"))?;
    }
    let count = summary.tenants.len();
    let tenants = if count == 1 { "tenant" } else { "tenants" };
    output::line(&format!("{done}: {count} {tenants}"))
}

fn line_of(tenant: &TenantSummary) -> String {
    let at = jiff::Timestamp::from_nanosecond(i128::from(tenant.timestamp)).unwrap_or_default();
    let commit = match tenant.sequence {
        0 => "before its first commit".to_owned(),
        sequence => format!("at commit {sequence} of {at:.3}"),
    };
    format!(
        "{}: {} documents {commit}, {} rows, {} bytes",
        tenant.tenant, tenant.documents, tenant.rows, tenant.bytes
    )
}

fn seal(sealed: bool) -> &'static str {
    if sealed { "sealed" } else { "in plain text" }
}
