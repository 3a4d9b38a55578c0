//! Where the keys come from: the settings of encryption at rest, one source at most.
//!
//! It must not hold a key: it names files and ids, and makes the provider that reads them.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use nimbus_crypto::{AwsKms, AwsKmsOptions, KeyDir, KeyProvider, MasterKeyFile};
use nimbus_http::{EncryptionReport, KeyDescriptor};
use nimbus_storage::encryption::Keyring;

use crate::cli::EncryptionArgs;
use crate::config::Persistence;
use crate::settings::{Lookup, ProviderName, UsageError};

/// What begins the name of every setting of encryption, as the configuration file has it.
const PREFIX: &str = "encryption_";
/// The setting that selects the source.
const SELECTOR: &str = "key_provider";
/// Names of the three sources and of the settings that belong to each (seed 003).
const SETTINGS: [(&str, &[&str]); 3] = [
    ("master-key-file", &["master_key_file"]),
    ("key-dir", &["key_dir"]),
    (
        "aws-kms",
        &["aws_kms_key_id", "aws_region", "aws_endpoint_url"],
    ),
];

/// A configured key provider.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KeySource {
    /// One key of the operator for all files.
    MasterKeyFile(PathBuf),
    /// One key file for each file.
    KeyDir(PathBuf),
    /// AWS KMS, or a service with its interface.
    AwsKms {
        key_id: String,
        region: Option<String>,
        endpoint_url: Option<String>,
    },
}

fn usage(message: impl Into<String>) -> anyhow::Error {
    UsageError(message.into()).into()
}

/// Resolves the settings of encryption; `None` when there are none.
///
/// # Errors
/// [`UsageError`] for an unknown provider, a setting of another one, a setting without a provider, and
/// a provider without its own setting.
pub(crate) fn resolve(
    args: &EncryptionArgs,
    env: Lookup<'_>,
    file: &Persistence,
) -> anyhow::Result<Option<KeySource>> {
    let given = Given { args, env, file };
    let Some((provider, origin)) = given.setting(SELECTOR) else {
        return match given.any() {
            None => Ok(None),
            Some(origin) => Err(usage(format!(
                "{origin} is given, and no key provider is selected: add --encryption-key-provider"
            ))),
        };
    };
    let provider = provider.replace('_', "-");
    let Some((name, own)) = SETTINGS.iter().find(|(name, _)| *name == provider) else {
        let names: Vec<_> = SETTINGS.iter().map(|(name, _)| *name).collect();
        return Err(usage(format!(
            "{origin}: `{provider}` is not a key provider; use one of {}",
            names.join(", ")
        )));
    };
    given.refuse_others(name)?;
    let needed = own.first().copied().unwrap_or_default();
    let value = given.setting(needed).map(|(value, _)| value);
    let Some(value) = value.filter(|value| !value.is_empty()) else {
        return Err(usage(format!(
            "the key provider {name} needs --{}",
            flag(needed)
        )));
    };
    let optional = |setting| given.setting(setting).map(|(value, _)| value);
    Ok(Some(match *name {
        MasterKeyFile::NAME => KeySource::MasterKeyFile(value.into()),
        KeyDir::NAME => KeySource::KeyDir(value.into()),
        _ => KeySource::AwsKms {
            key_id: value,
            region: optional("aws_region"),
            endpoint_url: optional("aws_endpoint_url"),
        },
    }))
}

/// The three places of settings: flags, environment, file.
struct Given<'a> {
    args: &'a EncryptionArgs,
    env: Lookup<'a>,
    file: &'a Persistence,
}

impl Given<'_> {
    /// The value of a setting and where it came from.
    fn setting(&self, name: &str) -> Option<(String, String)> {
        if let Some(value) = self.args.given(name) {
            return Some((value.to_owned(), format!("--{}", flag(name))));
        }
        let variable = format!("NIMBUS_{}", format!("{PREFIX}{name}").to_uppercase());
        if let Some(value) = (self.env)(&variable) {
            return Some((value, variable));
        }
        let value = self.file.encryption(name)?;
        let origin = format!("`{PREFIX}{name}` in the configuration");
        Some((value.to_owned(), origin))
    }

    /// Where some setting of encryption is given.
    fn any(&self) -> Option<String> {
        let all = SETTINGS.iter().flat_map(|(_, own)| own.iter());
        all.filter_map(|name| self.setting(name))
            .map(|(_, origin)| origin)
            .next()
    }

    fn refuse_others(&self, selected: &str) -> anyhow::Result<()> {
        for (owner, own) in SETTINGS.iter().filter(|(owner, _)| *owner != selected) {
            if let Some((_, origin)) = own.iter().find_map(|name| self.setting(name)) {
                return Err(usage(format!(
                    "{origin} belongs to the key provider {owner}, but {selected} is selected; remove it or select {owner}"
                )));
            }
        }
        Ok(())
    }
}

fn flag(setting: &str) -> String {
    format!("{PREFIX}{setting}").replace('_', "-")
}

impl KeySource {
    /// The provider, its key files and directory checked. The region of a key service is looked up here;
    /// it is not called.
    pub(crate) fn provider(&self) -> anyhow::Result<Arc<dyn KeyProvider>> {
        Ok(match self {
            KeySource::MasterKeyFile(path) => Arc::new(MasterKeyFile::open(path)?),
            KeySource::KeyDir(path) => Arc::new(KeyDir::open(path)?),
            KeySource::AwsKms {
                key_id,
                region,
                endpoint_url,
            } => Arc::new(connect(AwsKmsOptions {
                key_id: key_id.clone(),
                region: region.clone(),
                endpoint_url: endpoint_url.clone(),
            })?),
        })
    }

    /// The settings of the replacement that `rotate-kek` names, which are all flags.
    pub(crate) fn from_flags(args: &EncryptionArgs) -> anyhow::Result<KeySource> {
        let none = |_: &str| None;
        let source = resolve(args, &none, &Persistence::default())?;
        source.ok_or_else(|| usage("name the new key provider and its key"))
    }

    /// What unlocks files with this source.
    pub(crate) fn keyring(&self) -> anyhow::Result<Arc<Keyring>> {
        let provider = self.provider().context("encryption at rest")?;
        Ok(Keyring::new(provider)?)
    }

    fn descriptor(&self) -> KeyDescriptor {
        match self {
            KeySource::MasterKeyFile(path) => KeyDescriptor::MasterKeyFile { path: path.clone() },
            KeySource::KeyDir(path) => KeyDescriptor::KeyDirectory { path: path.clone() },
            KeySource::AwsKms {
                key_id,
                region,
                endpoint_url,
            } => KeyDescriptor::AwsKms {
                key_id: key_id.clone(),
                region: region.clone(),
                endpoint_url: endpoint_url.clone(),
            },
        }
    }
}

impl std::fmt::Display for KeySource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            KeySource::MasterKeyFile(path) => write!(f, "master-key-file, {}", path.display()),
            KeySource::KeyDir(path) => write!(f, "key-dir, {}", path.display()),
            KeySource::AwsKms { key_id, region, .. } => {
                write!(f, "aws-kms, {key_id}")?;
                region
                    .iter()
                    .try_for_each(|region| write!(f, " in {region}"))
            }
        }
    }
}

/// Prepares the client of the key service. Calls are made on the thread of the keyring.
fn connect(options: AwsKmsOptions) -> anyhow::Result<AwsKms> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(AwsKms::connect(options))?)
}

/// What `/debug/encryption/status` and `nimbus encryption status` say.
pub(crate) fn report(source: Option<&KeySource>, provider: ProviderName) -> EncryptionReport {
    match source {
        None => EncryptionReport::disabled(),
        Some(source) => EncryptionReport::enabled(families(provider), source.descriptor()),
    }
}

/// The kinds of local files that a server with this tenant provider encrypts (seed 003).
fn families(provider: ProviderName) -> Vec<&'static str> {
    const CONTROL: &str = "control_plane_redb";
    match provider {
        ProviderName::Sqlite => vec!["embedded_sqlite", CONTROL],
        ProviderName::Redb => vec!["embedded_redb", CONTROL],
        ProviderName::Postgres | ProviderName::Mysql => vec![CONTROL],
        ProviderName::LibsqlReplica => vec!["libsql_replica_cache", CONTROL],
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn resolved(env: &[(&str, &str)], file: &str) -> Result<Option<KeySource>, String> {
        let lookup = |name: &str| {
            let found = env.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let file: Persistence = serde_json::from_str(file).unwrap();
        resolve(&EncryptionArgs::default(), &lookup, &file).map_err(|e| e.to_string())
    }

    #[test]
    fn nothing_is_encrypted_by_default() {
        assert_eq!(resolved(&[], "{}").unwrap(), None);
        assert_eq!(families(ProviderName::Mysql), ["control_plane_redb"]);
    }

    #[test]
    fn a_source_comes_from_the_environment_or_the_file() {
        let env = [
            ("NIMBUS_ENCRYPTION_KEY_PROVIDER", "master-key-file"),
            ("NIMBUS_ENCRYPTION_MASTER_KEY_FILE", "/k"),
        ];
        let expected = KeySource::MasterKeyFile("/k".into());
        assert_eq!(resolved(&env, "{}").unwrap(), Some(expected));
        let file = r#"{"encryption_key_provider": "aws-kms", "encryption_aws_kms_key_id": "alias/a", "encryption_aws_region": "r"}"#;
        let expected = KeySource::AwsKms {
            key_id: "alias/a".into(),
            region: Some("r".into()),
            endpoint_url: None,
        };
        assert_eq!(resolved(&[], file).unwrap(), Some(expected));
    }

    #[test]
    fn settings_of_another_source_and_of_none_are_refused() {
        let key_file = ("NIMBUS_ENCRYPTION_MASTER_KEY_FILE", "/k");
        let text = resolved(&[key_file], "{}").unwrap_err();
        assert!(text.contains("NIMBUS_ENCRYPTION_MASTER_KEY_FILE"), "{text}");
        assert!(text.contains("add --encryption-key-provider"), "{text}");
        let dir = ("NIMBUS_ENCRYPTION_KEY_PROVIDER", "key-dir");
        let text = resolved(&[dir], "{}").unwrap_err();
        assert!(text.contains("needs --encryption-key-dir"), "{text}");
        let text = resolved(&[dir, key_file], "{}").unwrap_err();
        assert!(
            text.contains("belongs to the key provider master-key-file"),
            "{text}"
        );
        let kms = r#"{"encryption_aws_region": "eu-west-1"}"#;
        let text = resolved(&[dir], kms).unwrap_err();
        assert!(
            text.contains("`encryption_aws_region` in the configuration"),
            "{text}"
        );
        let text = resolved(&[("NIMBUS_ENCRYPTION_KEY_PROVIDER", "vault")], "{}").unwrap_err();
        assert!(
            text.contains("use one of master-key-file, key-dir, aws-kms"),
            "{text}"
        );
    }
}
