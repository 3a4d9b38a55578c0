//! `nimbus policy put`, `restore` and `show`: the policy that a running server enforces for one tenant.
//!
//! The server decides; this room must not know what a policy grants.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use nimbus_policy::command;
use serde_json::{Value as Json, json};

use crate::cli::Format;
use crate::deploy::cli::Target;
use crate::deploy::target;
use crate::output;

/// A policy file, and the tenant that it is to govern.
#[derive(Debug, Args)]
pub(crate) struct PutArgs {
    /// The policy file; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    file: PathBuf,
    /// The version that must be current, 0 for none [default: whichever is current when the server looks]
    #[arg(long, value_name = "N")]
    expected_version: Option<u64>,
    /// Check everything and say what would change, changing nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    target: Target,
}

/// An earlier version.
#[derive(Debug, Args)]
pub(crate) struct RestoreArgs {
    /// The version to put in force again.
    #[arg(long, value_name = "N")]
    policy_version: u64,
    /// Say what would change, changing nothing.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    target: Target,
}

/// A version to look at.
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// An earlier version [default: the one that is in force]
    #[arg(long, value_name = "N")]
    policy_version: Option<u64>,
    #[command(flatten)]
    target: Target,
}

/// Puts a file in force.
pub(crate) fn put(args: PutArgs) -> anyhow::Result<()> {
    let color = std::io::stderr().is_terminal();
    // What is not text would be sent as another text: it is refused here, as `validate` does.
    let text = match command::text_of(&args.file, args.target.format.into(), color) {
        Ok(text) => text,
        Err(outcome) => return super::told(&outcome),
    };
    let body = json!({
        "policy": text,
        "expectedVersion": args.expected_version,
        "dryRun": args.dry_run,
    });
    change(args.target, &body)
}

/// Puts an earlier version in force again.
pub(crate) fn restore(args: RestoreArgs) -> anyhow::Result<()> {
    let body = json!({"restoreVersion": args.policy_version, "dryRun": args.dry_run});
    change(args.target, &body)
}

fn path(target: &Target) -> String {
    format!("/api/tenants/{}/policy", target.tenant)
}

fn change(mut target: Target, body: &Json) -> anyhow::Result<()> {
    let answer = target::connect(&mut target)?.call("PUT", &path(&target), Some(body))?;
    match target.format {
        Format::Json => output::json(&answer),
        Format::Text => output::raw(changed(&target, &answer).as_bytes()),
    }
}

fn changed(target: &Target, answer: &Json) -> String {
    let tenant = &target.tenant;
    let before = match answer["previousVersion"].as_u64() {
        Some(version) => format!("version {version}"),
        None => "no policy".to_owned(),
    };
    let head = match answer["version"].as_u64() {
        Some(version) => {
            format!("tenant {tenant}: version {version} is in force, after {before}\n")
        }
        None => format!(
            "tenant {tenant}: this could be put in force after {before}; nothing was changed\n"
        ),
    };
    let changes = &answer["changes"];
    let count = |member: &str| changes[member].as_array().map_or(0, Vec::len);
    let what = match changes["authority"].as_str() {
        None => "what was not limited before is now\n".to_owned(),
        Some(authority) => format!(
            "authority: {}; workloads: {} added, {} removed, {} changed\n",
            output::printable(authority),
            count("added_workloads"),
            count("removed_workloads"),
            count("changed_workloads"),
        ),
    };
    head + &what
}

/// Prints what is in force.
pub(crate) fn show(mut args: ShowArgs) -> anyhow::Result<()> {
    let target = &mut args.target;
    let query = args
        .policy_version
        .map(|version| format!("?version={version}"));
    let path = path(target) + &query.unwrap_or_default();
    let answer = target::connect(target)?.call("GET", &path, None)?;
    match target.format {
        Format::Json => output::json(&answer),
        Format::Text => output::raw(shown(&answer)?.as_bytes()),
    }
}

/// The file, after comments about where it comes from; so that it can be changed and put again.
fn shown(answer: &Json) -> anyhow::Result<String> {
    let mut out = match answer["source"].as_str() {
        Some("directory") => "# from the --policy-dir of the server\n".to_owned(),
        Some("tenant") => {
            let version = answer["version"].as_u64().context("a version")?;
            let ms = answer["createdMs"].as_i64().unwrap_or_default();
            let when = jiff::Timestamp::from_millisecond(ms)?;
            format!("# version {version}, put {when}\n")
        }
        _ => return Ok("# no policy: the flags of the server hold\n".to_owned()),
    };
    let Some(policy) = answer["policy"].as_str() else {
        return Ok(out + "# there is no file for this tenant, so nothing is granted\n");
    };
    out.push_str(policy);
    Ok(out)
}
