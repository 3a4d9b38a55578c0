//! `nimbus encryption status`: what a server with these settings encrypts, and with which keys the
//! files that are there are wrapped. It takes no lock and unlocks nothing.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use nimbus_crypto::Manifest;
use nimbus_storage::encryption::protected;
use serde_json::json;

use super::source::{self, KeySource};
use crate::cli::Format;
use crate::config::Persistence;
use crate::output;
use crate::settings::{self, ProviderName};

/// The files of the data directory, by who wrapped their keys.
#[derive(Default)]
struct Files {
    /// Provider and key id to the number of files.
    wrapped: BTreeMap<(String, String), u64>,
    /// Names of files without a manifest that can be read.
    without: Vec<String>,
    /// Names of files with a rotation in progress.
    rotating: Vec<String>,
}

/// Prints it.
pub(super) fn run(source: &KeySource, file: &Persistence, format: Format) -> anyhow::Result<()> {
    let env = &settings::process_environment;
    let provider = settings::tenant_providers(file, env)?.home;
    let (data, control) = settings::directories(None, None, file, env);
    let files = match data.is_dir() {
        true => Files::look(&protected(&data, &control)?),
        false => Files::default(),
    };
    match format {
        Format::Json => output::json(&files.json(source, provider)?),
        Format::Text => output::raw(files.text(source, provider, &data).as_bytes()),
    }
}

impl Files {
    fn look(protected: &[(std::path::PathBuf, nimbus_crypto::Subject)]) -> Files {
        let mut files = Files::default();
        for (path, subject) in protected {
            let name = || output::printable(subject.file());
            match Manifest::read(path, subject) {
                Ok(manifest) => {
                    let key = manifest.current();
                    let wrapped = (key.provider.clone(), key.key_id.clone());
                    *files.wrapped.entry(wrapped).or_default() += 1;
                    if manifest.pending().is_some() {
                        files.rotating.push(name());
                    }
                }
                Err(_) => files.without.push(name()),
            }
        }
        files
    }

    fn json(
        &self,
        source: &KeySource,
        provider: ProviderName,
    ) -> anyhow::Result<serde_json::Value> {
        let mut report = serde_json::to_value(source::report(Some(source), provider))?;
        let keys: Vec<_> = self
            .wrapped
            .iter()
            .map(|((provider, key_id), files)| {
                json!({"provider": provider, "key_id": key_id, "files": files})
            })
            .collect();
        report["files"] = json!({
            "keys": keys,
            "without_manifest": self.without,
            "rotating": self.rotating,
        });
        Ok(report)
    }

    fn text(&self, source: &KeySource, provider: ProviderName, data: &std::path::Path) -> String {
        let report = source::report(Some(source), provider);
        let mut text = format!(
            "Encryption at rest: enabled\nKey provider:       {source}\nEncrypted families: {}\n",
            report.families().join(", ")
        );
        // Writing to a String cannot fail.
        let _ = writeln!(text, "Data directory:     {}", data.display());
        for ((provider, key), files) in &self.wrapped {
            let _ = writeln!(text, "  {files} wrapped by {provider}, key {key}");
        }
        for (names, what) in [
            (&self.without, "without a manifest that can be read"),
            (&self.rotating, "with a rotation in progress"),
        ] {
            if !names.is_empty() {
                let _ = writeln!(text, "  {} {what}: {}", names.len(), some(names));
            }
        }
        text
    }
}

/// The first few names.
fn some(names: &[String]) -> String {
    const SHOWN: usize = 10;
    let mut text = names[..names.len().min(SHOWN)].join(", ");
    if names.len() > SHOWN {
        text.push_str(", ...");
    }
    text
}
