//! The command line of `nimbus deploy`, `deployments`, `keys` and `env`: commands that a running server
//! answers, each about one tenant.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use nimbus_core::TenantId;

use crate::cli::Format;

/// What to deploy, and to whom.
#[derive(Debug, Args)]
pub(crate) struct DeployArgs {
    /// Directory of the application: where its package.json is, and convex.json if there is one.
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) app_dir: PathBuf,
    /// Check everything and say what would change, changing nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// A note that `nimbus deployments list` shows.
    #[arg(long, short, value_name = "TEXT")]
    pub(crate) message: Option<String>,
    /// Say which files are deployed and which are not.
    #[arg(long, short)]
    pub(crate) verbose: bool,
    #[command(flatten)]
    pub(crate) target: Target,
}

/// One tenant of a running server, and the credential for it.
#[derive(Debug, Args)]
pub(crate) struct Target {
    /// The tenant; it must exist.
    #[arg(long)]
    pub(crate) tenant: TenantId,
    /// The server, such as http://127.0.0.1:8080 [env: NIMBUS_DEPLOY_URL, NIMBUS_URL] [default: the server that holds the data directory]
    #[arg(long, value_name = "URL")]
    pub(crate) url: Option<String>,
    /// Data directory of the server, when no URL is given [env: NIMBUS_DATA_DIR] [default: ./data]
    #[arg(long, value_name = "DIR", conflicts_with = "url")]
    pub(crate) data_dir: Option<PathBuf>,
    /// A key of the tenant, `TENANT|SECRET`; better given in the environment [env: NIMBUS_DEPLOY_TOKEN]
    #[arg(long, value_name = "KEY", conflicts_with = "admin_token")]
    pub(crate) token: Option<String>,
    /// The admin token; better given in the environment [env: NIMBUS_ADMIN_TOKEN] [default: this user's token file, for a server on this machine]
    #[arg(long, value_name = "TOKEN")]
    pub(crate) admin_token: Option<String>,
    /// How to print results.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

/// Commands about what was deployed.
#[derive(Debug, Subcommand)]
pub(crate) enum DeploymentsCommand {
    /// List the newest deployments; the first is the one that runs.
    List {
        #[command(flatten)]
        target: Target,
    },
    /// Deploy again what an earlier deployment was; its schema is checked against the present documents.
    Rollback {
        /// The deployment to go back to.
        id: String,
        #[command(flatten)]
        target: Target,
    },
}

/// Commands about the keys of a tenant.
#[derive(Debug, Subcommand)]
pub(crate) enum KeysCommand {
    /// Make a key. It is shown once: only a digest of it is kept.
    Create {
        /// What it may do; each includes the ones before it.
        #[arg(long, value_enum)]
        scope: KeyScope,
        /// A name to know it by.
        #[arg(long, default_value = "")]
        name: String,
        /// When it ends to work: a number of seconds, minutes, hours or days, such as 12h or 30d.
        #[arg(long, value_name = "TIME", value_parser = lifetime_ms)]
        expires: Option<u64>,
        #[command(flatten)]
        target: Target,
    },
    /// List keys, without their secrets.
    List {
        #[command(flatten)]
        target: Target,
    },
    /// Make a key useless at once.
    Revoke {
        /// Its id, as `nimbus keys list` shows it.
        key: String,
        #[command(flatten)]
        target: Target,
    },
}

/// What a key may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KeyScope {
    /// Read documents; run queries.
    Read,
    /// Write documents; run mutations and actions.
    Write,
    /// Deploy code, schemas and variables.
    Deploy,
    /// All that the tenant has, internal functions and keys included.
    Admin,
}

impl KeyScope {
    /// The word of the API.
    pub(crate) fn word(self) -> &'static str {
        match self {
            KeyScope::Read => "read",
            KeyScope::Write => "write",
            KeyScope::Deploy => "deploy",
            KeyScope::Admin => "admin",
        }
    }
}

/// Commands about the environment variables that functions read.
#[derive(Debug, Subcommand)]
pub(crate) enum EnvCommand {
    /// List all variables with their values.
    List {
        #[command(flatten)]
        target: Target,
    },
    /// Set a variable.
    Set {
        /// Its name.
        name: String,
        /// Its value; if not given, standard input to its end, without the last line break.
        value: Option<String>,
        #[command(flatten)]
        target: Target,
    },
    /// Remove a variable.
    Remove {
        /// Its name.
        name: String,
        #[command(flatten)]
        target: Target,
    },
}

/// Milliseconds of a text such as `90s`, `15m`, `12h` or `30d`.
fn lifetime_ms(text: &str) -> Result<u64, String> {
    let wrong = || format!("`{text}` is not a time; write a number and s, m, h or d, such as 30d");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(wrong()),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let count: u64 = digits.parse().map_err(|_| wrong())?;
    match count.checked_mul(unit) {
        Some(0) => Err("a key that never works is not made".into()),
        Some(ms) if ms <= MAX_LIFETIME_MS => Ok(ms),
        _ => Err(format!("`{text}` is longer than 100 years")),
    }
}

const MAX_LIFETIME_MS: u64 = 36_525 * 86_400_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_numbers_with_a_unit() {
        assert_eq!(lifetime_ms("90s"), Ok(90_000));
        assert_eq!(lifetime_ms("15m"), Ok(900_000));
        assert_eq!(lifetime_ms("12h"), Ok(43_200_000));
        assert_eq!(lifetime_ms("30d"), Ok(2_592_000_000));
        for bad in [
            "",
            "d",
            "30",
            "30 d",
            "-1d",
            "1.5h",
            "30D",
            "0d",
            "99999999d",
            "18446744073709551616s",
            "1é",
        ] {
            assert!(lifetime_ms(bad).is_err(), "{bad}");
        }
    }
}
