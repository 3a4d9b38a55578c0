//! `nimbus audit`: the audit log of this user's server, read where it lies.
//!
//! Nothing is changed, so a running server does not matter. How lines are chained is nimbus-auth's.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use jiff::Timestamp;
use nimbus_auth::Environment;
use nimbus_auth::audit::{self, Anchor, AnchorCopy, Break, ChainKey, Step, Tail, Verification};
use nimbus_core::TenantId;
use nimbus_storage::control;
use nimbus_storage::provider::lock::{self, Holding};
use serde_json::{Value as Json, json};

use crate::cli::{AuditCommand, AuditPlace, Format};
use crate::{anchors, encryption, output, progress, settings};

/// Where an anchor may be.
const IN_CONTROL: &str = "control_database";
const IN_COPY: &str = "copy";
/// Pause between two looks at a log that is followed.
const FOLLOW_EVERY: Duration = Duration::from_millis(250);

/// Runs one of the commands.
pub(crate) fn run(command: AuditCommand) -> anyhow::Result<()> {
    match command {
        AuditCommand::Verify { place, format } => verify(place, format),
        AuditCommand::Tail {
            lines,
            follow,
            format,
        } => tail(lines, follow, format),
        AuditCommand::Export {
            since,
            until,
            tenant,
            denied,
            out,
            place,
        } => {
            let filter = Filter {
                since,
                until,
                tenant,
                denied,
            };
            export(&filter, out.as_deref(), place)
        }
    }
}

/// The log and what is needed to check it.
struct Log {
    path: PathBuf,
    key: ChainKey,
    anchor: Option<Anchor>,
    /// Where the anchor was found.
    source: &'static str,
}

impl Log {
    fn find(place: AuditPlace) -> anyhow::Result<Log> {
        let paths = Environment::system();
        let (path, token) = (paths.audit_path()?, paths.token_path()?);
        let Some(key) = ChainKey::load(&token)? else {
            bail!(
                "there is no key of an audit log beside {}; `nimbus start` makes it at its first start: run this as the user of the server, with its XDG_DATA_HOME",
                token.display()
            );
        };
        let env = &settings::process_environment;
        let file = settings::persistence(None, env)?;
        let (_, control) =
            settings::directories(place.data_dir, place.control_data_dir, &file, env);
        let (anchor, source) = find_anchor(&control, &token, &key)?;
        Ok(Log {
            path,
            key,
            anchor,
            source,
        })
    }

    fn check(
        &self,
        mut visit: impl FnMut(Step<'_>) -> anyhow::Result<()>,
    ) -> anyhow::Result<Verification> {
        let bar = progress::bar(None, "bytes");
        let found = audit::verify(&self.path, &self.key, self.anchor, |step| {
            bar.set_position(step.bytes);
            bar.suspend(|| visit(step))
        });
        bar.finish_and_clear();
        found
    }
}

/// Whether the control database has a manifest, and so needs a key.
fn control_is_encrypted(control: &Path) -> bool {
    nimbus_crypto::manifest_path(&control.join(nimbus_crypto::CONTROL_FILE)).exists()
}

/// The newer of the anchor in the control database, unless a server holds it, and of the copy beside
/// the key; and where it was found.
fn find_anchor(
    control: &Path,
    token: &Path,
    key: &ChainKey,
) -> anyhow::Result<(Option<Anchor>, &'static str)> {
    let free = control.is_dir() && !matches!(lock::look(control)?, Holding::Held(_));
    let kept = match free {
        true => {
            let settings = settings::persistence(None, &settings::process_environment)?;
            let looked = encryption::keyring(&settings).and_then(|keyring| {
                Ok(control::look_anchor(
                    control,
                    &anchors::name(key.id()),
                    keyring.as_ref(),
                )?)
            });
            match looked {
                Ok(found) => found,
                // The copy beside the key is as new, and the log is in plain text.
                Err(error) if control_is_encrypted(control) => {
                    tracing::warn!(
                        "the control database was not read, so the anchor is the copy beside the key: {error:#}"
                    );
                    None
                }
                Err(error) => return Err(error),
            }
        }
        false => None,
    };
    let copied = AnchorCopy::beside(token).load(key.id())?;
    let newest =
        |texts| Anchor::newest(texts, key).context("the anchor of the audit log cannot be trusted");
    let all = newest(
        [kept.clone(), copied]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>(),
    )?;
    let of_control = newest(kept.into_iter().collect()).unwrap_or_default();
    let source = if of_control == all {
        IN_CONTROL
    } else {
        IN_COPY
    };
    Ok((all, source))
}

fn verify(place: AuditPlace, format: Format) -> anyhow::Result<()> {
    let log = Log::find(place)?;
    let found = log.check(|_| Ok(()))?;
    match format {
        Format::Json => output::json(&report(&log, &found))?,
        Format::Text => show(&log, &found)?,
    }
    judge(&log, &found)
}

fn report(log: &Log, found: &Verification) -> Json {
    let place = |at: &Break| {
        json!({
            "file": at.file,
            "line": at.line,
            "offset": at.offset,
            "kind": at.kind.as_str(),
            "message": at.kind.to_string(),
        })
    };
    json!({
        "log": log.path,
        "intact": found.is_intact(),
        "entries": found.entries,
        "first": found.first,
        "last": found.last,
        "files": found.segments,
        "bytes": found.bytes,
        "tornEnd": found.torn,
        "anchor": found.anchor.map(|seq| json!({"entry": seq, "source": log.source})),
        "broken": found.broken,
        "breaks": found.breaks.iter().map(place).collect::<Vec<_>>(),
    })
}

fn show(log: &Log, found: &Verification) -> anyhow::Result<()> {
    let range = match found.first {
        Some(first) => format!("entries {first} to {}", found.last),
        None => "no entries".to_owned(),
    };
    output::line(&format!(
        "{}: {range}, {} bytes in {}",
        log.path.display(),
        found.bytes,
        count(found.segments, "file")
    ))?;
    match (found.anchor, log.source) {
        (Some(entry), IN_COPY) => output::line(&format!(
            "anchor: entry {entry}, from the copy beside the key; the control database is in use or elsewhere"
        ))?,
        (Some(entry), _) => {
            output::line(&format!("anchor: entry {entry}, from the control database"))?;
        }
        (None, _) => output::line("anchor: none")?,
    }
    if found.torn {
        output::line("the log ends within a line: a crash, or a server that is writing just now")?;
    }
    if found.is_intact() && found.anchor.is_none() {
        return output::line("no line was changed, moved, inserted or taken out before the last");
    }
    if found.is_intact() {
        return output::line("intact: no line was changed, moved, inserted, taken out or cut off");
    }
    for place in &found.breaks {
        output::line(&place.to_string())?;
    }
    let more = found.broken - found.breaks.len() as u64;
    if more > 0 {
        output::line(&format!("and {more} more places"))?;
    }
    Ok(())
}

fn judge(log: &Log, found: &Verification) -> anyhow::Result<()> {
    if found.segments == 0 {
        bail!("there is a key and no audit log at {}", log.path.display());
    }
    if found.is_intact() && found.anchor.is_none() && found.entries > 0 {
        bail!(
            "whether the end of the audit log {} was cut off cannot be told without an anchor: name the data directory with --data-dir",
            log.path.display()
        );
    }
    if found.is_intact() {
        return Ok(());
    }
    bail!(
        "the chain of the audit log {} is broken in {}; keep its files as they are, they are evidence",
        log.path.display(),
        count(found.broken, "place")
    )
}

fn count(number: u64, thing: &str) -> String {
    format!("{number} {thing}{}", if number == 1 { "" } else { "s" })
}

fn tail(lines: u32, follow: bool, format: Format) -> anyhow::Result<()> {
    let path = Environment::system().audit_path()?;
    let Some(mut tail) = Tail::open(&path, usize::try_from(lines)?)? else {
        bail!(
            "there is no audit log at {} yet; `nimbus start` makes it",
            path.display()
        );
    };
    loop {
        let more = tail.more()?;
        print(&more, format)?;
        if !follow {
            return Ok(());
        }
        if more.is_empty() {
            #[expect(
                clippy::disallowed_methods,
                reason = "a file tells nobody that it grew"
            )]
            std::thread::sleep(FOLLOW_EVERY);
        }
    }
}

fn print(lines: &[Vec<u8>], format: Format) -> anyhow::Result<()> {
    let mut text = Vec::new();
    for line in lines {
        match format {
            Format::Json => text.extend_from_slice(line),
            Format::Text => text.extend_from_slice(for_people(line).as_bytes()),
        }
        text.push(b'\n');
    }
    output::raw(&text)
}

/// `TIME STATUS METHOD PATH client=… auth=… reason=… id=…`
fn for_people(line: &[u8]) -> String {
    let Ok(entry) = serde_json::from_slice::<Json>(line) else {
        return format!(
            "(no entry) {}",
            output::printable(&String::from_utf8_lossy(line))
        );
    };
    let text = |name: &str| match &entry[name] {
        Json::String(text) => output::printable(text),
        Json::Null => "-".to_owned(),
        other => other.to_string(),
    };
    format!(
        "{} {} {} {} client={} auth={} reason={} id={}",
        text("ts"),
        text("status"),
        text("method"),
        text("path"),
        text("clientAddr"),
        text("authMethod"),
        text("reason"),
        text("requestId")
    )
}

/// Which entries are exported.
struct Filter {
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    tenant: Option<TenantId>,
    denied: bool,
}

impl Filter {
    fn takes_all(&self) -> bool {
        self.since.is_none() && self.until.is_none() && self.tenant.is_none() && !self.denied
    }

    fn takes(&self, line: &[u8]) -> bool {
        if self.takes_all() {
            return true;
        }
        let Ok(entry) = serde_json::from_slice::<Json>(line) else {
            return false;
        };
        let time = entry["ts"]
            .as_str()
            .and_then(|ts| ts.parse::<Timestamp>().ok());
        let after = |from: Timestamp| time.is_some_and(|time| time >= from);
        let before = |to: Timestamp| time.is_some_and(|time| time < to);
        let about = |tenant: &TenantId| entry["tenantId"] == tenant.as_str();
        self.since.is_none_or(after)
            && self.until.is_none_or(before)
            && self.tenant.as_ref().is_none_or(about)
            && !(self.denied && entry["success"] == true)
    }
}

fn export(filter: &Filter, out: Option<&Path>, place: AuditPlace) -> anyhow::Result<()> {
    let log = Log::find(place)?;
    let mut found = None;
    let mut write = |to: &mut dyn Write| -> anyhow::Result<()> {
        found = Some(log.check(|step| {
            // A line that is not the server's own is no entry; the check below tells of it.
            if step.good && filter.takes(step.line) {
                to.write_all(step.line)?;
                to.write_all(b"\n")?;
            }
            Ok(())
        })?);
        Ok(())
    };
    match out {
        Some(path) => output::file(path, write)?,
        None => {
            let mut stdout = std::io::BufWriter::new(std::io::stdout().lock());
            write(&mut stdout)?;
            stdout.flush()?;
        }
    }
    let Some(found) = found else { return Ok(()) };
    let judged = judge(&log, &found);
    match found.breaks.first() {
        Some(first) => judged.context(first.to_string()),
        None => judged,
    }
}
