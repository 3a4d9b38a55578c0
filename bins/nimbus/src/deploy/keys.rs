//! `nimbus keys`: credentials that open one tenant and no more of it than their scope says.
//!
//! It must not know how they are kept. The secret of a new key is printed once, to standard output.

use jiff::Timestamp;
use serde_json::{Value as Json, json};

use super::cli::{KeysCommand, Target};
use super::{segment, target};
use crate::cli::Format;
use crate::output;

/// Runs one of the commands.
pub(crate) fn run(command: KeysCommand) -> anyhow::Result<()> {
    match command {
        KeysCommand::Create {
            scope,
            name,
            expires,
            mut target,
        } => {
            let mut body = json!({"scope": scope.word(), "name": name});
            if let Some(lifetime_ms) = expires {
                body["expiresInMs"] = json!(lifetime_ms);
            }
            let answer = target::connect(&mut target)?.call("POST", &path(&target), Some(&body))?;
            match target.format {
                Format::Json => output::json(&answer),
                Format::Text => output::line(answer["key"].as_str().unwrap_or_default()),
            }
        }
        KeysCommand::List { mut target } => {
            let answer = target::connect(&mut target)?.call("GET", &path(&target), None)?;
            match target.format {
                Format::Json => output::json(&answer),
                Format::Text => output::raw(table(&answer).as_bytes()),
            }
        }
        KeysCommand::Revoke { key, mut target } => {
            let path = format!("{}/{}", path(&target), segment(&key)?);
            target::connect(&mut target)?.call("DELETE", &path, None)?;
            match target.format {
                Format::Json => output::json(&json!({"id": key, "revoked": true})),
                Format::Text => output::line(&format!("revoked {key}")),
            }
        }
    }
}

fn path(target: &Target) -> String {
    format!("/api/tenants/{}/keys", target.tenant)
}

fn table(answer: &Json) -> String {
    let mut out = String::new();
    for key in answer["keys"].as_array().into_iter().flatten() {
        let text = |member: &str| key[member].as_str().unwrap_or_default();
        let expires = key["expiresMs"]
            .as_i64()
            .map_or("never ends".to_owned(), |ms| format!("until {}", when(ms)));
        let made = key["createdMs"].as_i64().map(when).unwrap_or_default();
        let line = format!(
            "{}  {:6}  made {made}, {expires}  {}",
            text("id"),
            text("scope"),
            output::printable(text("name"))
        );
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// A time in milliseconds as people read it.
pub(super) fn when(ms: i64) -> String {
    Timestamp::from_millisecond(ms).map_or_else(
        |_| ms.to_string(),
        |time| time.strftime("%Y-%m-%d %H:%M:%S").to_string(),
    )
}
