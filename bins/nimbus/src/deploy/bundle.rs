//! Bundling, by a script that the user's Node.js runs with the application's own esbuild.
//!
//! The child gets neither our environment nor any credential. This room must not know what is done
//! with the modules.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use super::app::App;

const SCRIPT: &str = include_str!("bundle.mjs");

/// What Node.js and esbuild may need of our environment; tokens and keys are not among it.
const PASSED_ON: [&str; 10] = [
    "PATH",
    "HOME",
    "TMPDIR",
    "LANG",
    "LC_ALL",
    "NODE_OPTIONS",
    "NODE_PATH",
    "NODE_EXTRA_CA_CERTS",
    "ESBUILD_BINARY_PATH",
    "XDG_CACHE_HOME",
];

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Job<'a> {
    app_dir: &'a Path,
    functions_dir: &'a Path,
    entry_points: &'a [PathBuf],
    schema: Option<&'a Path>,
    auth_config: Option<&'a Path>,
    app_config: Option<&'a Path>,
}

/// A module as it is sent.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Module {
    pub(crate) path: String,
    pub(crate) source: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) source_map: Option<String>,
    /// Where it is to run; the one kind that there is.
    #[serde(default = "isolate")]
    pub(crate) environment: String,
}

fn isolate() -> String {
    "isolate".into()
}

/// A bundled application.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Bundle {
    /// Functions, auth.config.js and shared chunks.
    pub(crate) modules: Vec<Module>,
    pub(crate) schema: Option<Module>,
    pub(crate) definition: Option<Module>,
    pub(crate) components: Vec<String>,
    pub(crate) warnings: Vec<String>,
    pub(crate) convex_version: Option<String>,
    pub(crate) esbuild_version: String,
}

/// What the script answers.
#[derive(Deserialize)]
#[serde(untagged)]
enum Answer {
    Missing { missing: String, message: String },
    Failed { errors: Vec<String>, node: bool },
    Done(Box<Bundle>),
}

/// Bundles the application.
///
/// # Errors
/// When Node.js, esbuild or the package `convex` is missing, and esbuild's own errors in its words.
pub(crate) fn bundle(app: &App) -> anyhow::Result<Bundle> {
    let job = Job {
        app_dir: &app.dir,
        functions_dir: &app.functions,
        entry_points: &app.entry_points,
        schema: app.schema.as_deref(),
        auth_config: app.auth_config.as_deref(),
        app_config: app.app_config.as_deref(),
    };
    let text = run_script(&app.dir, &serde_json::to_vec(&job)?)?;
    let answer = serde_json::from_slice(&text).context("reading what the bundling script wrote")?;
    match answer {
        Answer::Missing { missing, message } => {
            let how = if app.dir.join("package.json").is_file() {
                "run `npm install` there".to_owned()
            } else {
                format!(
                    "there is no package.json either; run `npm install {missing}` in the application's directory, or name that with --app-dir"
                )
            };
            let first = message.lines().next().unwrap_or_default();
            bail!(
                "the package `{missing}` is not installed in {}: {how} ({first})",
                app.dir.display()
            )
        }
        Answer::Failed { errors, node } => {
            let hint = match node {
                true => "\nA function cannot use what belongs to Node.js.",
                false => "",
            };
            bail!(
                "esbuild could not bundle the application:\n{}{hint}",
                errors.concat().trim_end()
            )
        }
        Answer::Done(bundle) => {
            if let Some(component) = bundle.components.first() {
                bail!(
                    "convex.config uses the component `{component}`, and components cannot be deployed here yet"
                );
            }
            Ok(*bundle)
        }
    }
}

fn run_script(dir: &Path, job: &[u8]) -> anyhow::Result<Vec<u8>> {
    let environment = PASSED_ON
        .into_iter()
        .filter_map(|name| Some((name, std::env::var_os(name)?)));
    let mut child = Command::new("node")
        .args(["--input-type=module", "--eval", SCRIPT])
        .current_dir(dir)
        .env_clear()
        .envs(environment)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting `node`; Node.js 18 or newer is needed to bundle an application, and has to be on the PATH")?;
    // The script reads its input to the end before it writes anything, so neither waits for the other.
    let sent = child.stdin.take().map(|mut input| input.write_all(job));
    let output = child.wait_with_output().context("waiting for `node`")?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("bundling failed ({}):\n{}", output.status, text.trim_end());
    }
    sent.transpose().context("telling `node` what to bundle")?;
    Ok(output.stdout)
}
