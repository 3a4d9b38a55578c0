//! `nimbus env`: the environment variables that a tenant's functions read.
//!
//! It must not know where they are kept. Values are printed by `list` and nowhere else.

use std::io::Read as _;

use anyhow::Context as _;
use serde_json::json;

use super::cli::{EnvCommand, Target};
use super::target;
use crate::cli::Format;
use crate::output;

/// Runs one of the commands.
pub(crate) fn run(command: EnvCommand) -> anyhow::Result<()> {
    match command {
        EnvCommand::List { target } => list(target),
        EnvCommand::Set {
            name,
            value,
            target,
        } => {
            let value = match value {
                Some(value) => value,
                None => from_stdin()?,
            };
            change(target, &name, Some(&value))
        }
        EnvCommand::Remove { name, target } => change(target, &name, None),
    }
}

fn path(target: &Target) -> String {
    format!("/api/tenants/{}/environment", target.tenant)
}

fn list(mut target: Target) -> anyhow::Result<()> {
    let answer = target::connect(&mut target)?.call("GET", &path(&target), None)?;
    if target.format == Format::Json {
        return output::json(&answer);
    }
    for variable in answer["variables"].as_array().into_iter().flatten() {
        let text = |member: &str| variable[member].as_str().unwrap_or_default().to_owned();
        output::line(&format!("{}={}", text("name"), text("value")))?;
    }
    Ok(())
}

fn change(mut target: Target, name: &str, value: Option<&str>) -> anyhow::Result<()> {
    let body = json!({"changes": [{"name": name, "value": value}]});
    target::connect(&mut target)?.call("POST", &path(&target), Some(&body))?;
    match target.format {
        Format::Json => output::json(&json!({"name": name, "set": value.is_some()})),
        Format::Text => match value {
            Some(_) => output::line(&format!("set {name}")),
            None => output::line(&format!("removed {name}")),
        },
    }
}

/// A value that is neither in the history of a shell nor in a list of processes.
fn from_stdin() -> anyhow::Result<String> {
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .context("reading the value from standard input")?;
    let end = text.strip_suffix('\n').map_or(text.len(), |cut| {
        cut.strip_suffix('\r').unwrap_or(cut).len()
    });
    text.truncate(end);
    Ok(text)
}
