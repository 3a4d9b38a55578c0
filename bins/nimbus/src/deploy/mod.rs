//! `nimbus deploy` and its neighbours: an application is bundled here and sent to a server, which checks
//! and keeps it.
//!
//! Each file is one room: the files of an application, bundling, the server and the credential, and what
//! is printed. None of them must know how functions run.

mod app;
mod bundle;
pub(crate) mod cli;
mod keys;
mod report;
pub(crate) mod target;
mod variables;

use std::io::Write as _;

use anyhow::Context as _;
use serde::Serialize;
use serde_json::Value as Json;

use crate::cli::Format;
use crate::{output, progress};
use app::App;
use bundle::{Bundle, Module};
use cli::{DeployArgs, DeploymentsCommand, Target};
pub(crate) use keys::run as keys;
pub(crate) use variables::run as variables;

/// The version of the package `convex` that is told when the application has none that says it.
const UNKNOWN_CONVEX: &str = "unknown";

/// The body of a deployment: the form that the official command line sends (convex.md 4.3).
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Push<'a> {
    dry_run: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    app_definition: Definition<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Definition<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    definition: Option<&'a Module>,
    schema: Option<&'a Module>,
    changed_modules: &'a [Module],
    unchanged_module_hashes: [(); 0],
    udf_server_version: &'a str,
}

/// Runs `nimbus deploy`.
pub(crate) fn run(mut args: DeployArgs) -> anyhow::Result<()> {
    let remote = target::connect(&mut args.target)?;
    let bar = progress::step("bundling");
    let app = App::find(&args.app_dir)?;
    let bundled = bundle::bundle(&app)?;
    bar.finish_and_clear();
    tell(&app, &bundled, args.verbose)?;
    let body = serde_json::to_string(&Push {
        dry_run: args.dry_run,
        message: args.message.as_deref(),
        app_definition: Definition {
            definition: bundled.definition.as_ref(),
            schema: bundled.schema.as_ref(),
            changed_modules: &bundled.modules,
            unchanged_module_hashes: [],
            udf_server_version: bundled.convex_version.as_deref().unwrap_or(UNKNOWN_CONVEX),
        },
    })?;
    let bar = progress::step("checking and deploying");
    let answer = remote.send_patiently("POST", &deployments(&args.target), body);
    bar.finish_and_clear();
    let answer = answer.with_context(|| match args.dry_run {
        true => format!("{} could not be deployed as it is", args.target.tenant),
        false => format!("nothing was deployed to {}", args.target.tenant),
    })?;
    show(&answer, args.target.format)
}

/// Runs `nimbus deployments`.
pub(crate) fn deployments_command(command: DeploymentsCommand) -> anyhow::Result<()> {
    match command {
        DeploymentsCommand::List { mut target } => {
            let remote = target::connect(&mut target)?;
            let answer = remote.call("GET", &deployments(&target), None)?;
            match target.format {
                Format::Json => output::json(&answer),
                Format::Text => output::raw(report::list(&answer).as_bytes()),
            }
        }
        DeploymentsCommand::Rollback { id, mut target } => {
            let remote = target::connect(&mut target)?;
            let path = format!("{}/{}/rollback", deployments(&target), segment(&id)?);
            let bar = progress::step("checking and deploying");
            let answer = remote.send_patiently("POST", &path, String::new());
            bar.finish_and_clear();
            let answer =
                answer.with_context(|| format!("nothing was changed in {}", target.tenant))?;
            show(&answer, target.format)
        }
    }
}

fn show(answer: &Json, format: Format) -> anyhow::Result<()> {
    match format {
        Format::Json => output::json(answer),
        Format::Text => output::raw(report::deployed(answer).as_bytes()),
    }
}

fn deployments(target: &Target) -> String {
    format!("/api/tenants/{}/deployments", target.tenant)
}

/// An id that a user typed, as a segment of a path.
fn segment(id: &str) -> anyhow::Result<&str> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    if id.is_empty() || !id.chars().all(plain) {
        anyhow::bail!(
            "`{}` is not an id; the list shows ids",
            output::printable(id)
        );
    }
    Ok(id)
}

/// What the user should know about the files and about bundling, on standard error.
fn tell(app: &App, bundled: &Bundle, verbose: bool) -> anyhow::Result<()> {
    let mut err = std::io::stderr().lock();
    for warning in &bundled.warnings {
        writeln!(err, "{}", warning.trim_end())?;
    }
    if verbose {
        for path in &app.entry_points {
            writeln!(err, "deploying {}", output::printable(&app.shown(path)))?;
        }
        for (path, why) in &app.skipped {
            writeln!(err, "leaving out {}: {why}", output::printable(path))?;
        }
        let bytes: usize = bundled
            .modules
            .iter()
            .map(|module| module.source.len())
            .sum();
        writeln!(
            err,
            "bundled {} modules, {bytes} bytes, with esbuild {}",
            bundled.modules.len(),
            bundled.esbuild_version
        )?;
    }
    Ok(())
}
