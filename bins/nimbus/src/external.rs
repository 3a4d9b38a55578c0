//! Settings of databases that run elsewhere: which are given, by what, and what the provider makes of them.
//!
//! It must not connect to anything. A password or token is never in a message or in `Debug`.

use std::sync::Arc;
use std::time::Duration;

use nimbus_storage::Provider;
use nimbus_storage::control::{ControlDb, RandomId};
use nimbus_storage::encryption::Keyring;
use nimbus_storage::provider::libsql::{LibsqlOptions, LibsqlProvider, Secret};
use nimbus_storage::provider::mysql::{MysqlOptions, MysqlProvider};
use nimbus_storage::provider::postgres::{PoolSize, PostgresOptions, PostgresProvider};
use nimbus_storage::provider::{Durability, ProviderError};

use crate::cli::ExternalArgs;
use crate::config::Persistence;
use crate::memory;
use crate::settings::{Lookup, Pick, ProviderName, Providers, UsageError, usage};

/// Longest wait for a database that is only asked for its version.
const PROBE: Duration = Duration::from_secs(5);

/// The selected provider of a database elsewhere, ready to connect.
#[derive(Clone, Debug)]
pub(crate) enum External {
    Libsql(Box<LibsqlOptions>),
    Mysql(MysqlOptions),
    Postgres(PostgresOptions),
}

impl External {
    /// Connects to the database. `keyring` is for the local replicas of one.
    pub(crate) async fn connect(
        &self,
        control: &ControlDb,
        keyring: Option<&Arc<Keyring>>,
    ) -> anyhow::Result<Arc<dyn Provider>> {
        let installation = control.installation();
        let opened: Result<Arc<dyn Provider>, ProviderError> = match self {
            External::Libsql(options) => {
                let mut options = LibsqlOptions::clone(options);
                options.keyring = keyring.cloned();
                if let Some(memory) = memory::available() {
                    options.heap_limit = memory / 4;
                }
                LibsqlProvider::connect(options, installation)
                    .await
                    .map(|provider| Arc::new(provider) as Arc<dyn Provider>)
            }
            External::Mysql(options) => MysqlProvider::connect(options.clone(), installation)
                .await
                .map(|provider| Arc::new(provider) as Arc<dyn Provider>),
            External::Postgres(options) => PostgresProvider::connect(options.clone(), installation)
                .await
                .map(|provider| Arc::new(provider) as Arc<dyn Provider>),
        };
        opened.map_err(|error| {
            let (shown, told) = (self.shown(), error.to_string());
            match told.contains(&shown) {
                true => error.into(),
                false => anyhow::Error::from(error).context(format!("connecting to {shown}")),
            }
        })
    }

    /// Asks the database what it is, changing nothing there. Blocks.
    pub(crate) fn probe(&self) -> anyhow::Result<String> {
        let probe = async {
            anyhow::Ok(match self {
                External::Libsql(options) => {
                    let found = LibsqlProvider::probe(options).await?;
                    format!("libSQL, {found}")
                }
                External::Mysql(options) => {
                    let version = MysqlProvider::probe(options).await?;
                    format!("MySQL or MariaDB {version}")
                }
                External::Postgres(options) => {
                    let version = PostgresProvider::probe(options).await?;
                    format!("PostgreSQL {version}")
                }
            })
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            match tokio::time::timeout(PROBE, probe).await {
                Ok(answer) => answer,
                Err(_) => Err(anyhow::anyhow!("no answer within {} s", PROBE.as_secs())),
            }
        })
    }

    /// The address of the database, without its password.
    pub(crate) fn shown(&self) -> String {
        match self {
            External::Libsql(options) => options.url.clone(),
            External::Mysql(options) => options.url.to_string(),
            External::Postgres(options) => options.url.to_string(),
        }
    }
}

/// Where the settings of one provider are looked up: flags, else environment, else the file.
struct Given<'a> {
    args: Option<&'a ExternalArgs>,
    env: Lookup<'a>,
    file: &'a Persistence,
}

impl Given<'_> {
    /// A setting by the name that the configuration file uses, and where it came from.
    fn text(&self, setting: &str) -> Option<(String, String)> {
        let flags = self.args.map(ExternalArgs::given);
        let flag = flags.and_then(|all| {
            let found = all.into_iter().find(|(name, _)| *name == setting);
            found.and_then(|(_, value)| value.cloned())
        });
        let pick = Pick { env: self.env };
        let name = setting.replace('_', "-");
        pick.text(flag, &name, self.file.external_value(setting))
    }

    fn required(&self, setting: &str, provider: ProviderName) -> anyhow::Result<String> {
        self.text(setting).map(|(value, _)| value).ok_or_else(|| {
            usage(format!(
                "the provider {} needs {} (or NIMBUS_{})",
                provider.name(),
                flag_of(setting),
                setting.to_uppercase()
            ))
        })
    }

    fn number(&self, setting: &str) -> anyhow::Result<Option<u32>> {
        let Some((text, source)) = self.text(setting) else {
            return Ok(None);
        };
        let number = text
            .parse()
            .map_err(|_| usage(format!("{source}: `{text}` is not a number of connections")))?;
        Ok(Some(number))
    }

    fn switch(&self, setting: &str) -> anyhow::Result<bool> {
        let Some((text, source)) = self.text(setting) else {
            return Ok(false);
        };
        match text.as_str() {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            other => Err(usage(format!(
                "{source}: `{other}` is neither true nor false"
            ))),
        }
    }

    fn installation(&self) -> anyhow::Result<Option<RandomId>> {
        let Some((text, source)) = self.text("join_installation") else {
            return Ok(None);
        };
        let id = RandomId::try_from(text.clone()).map_err(|_| {
            usage(format!(
                "{source}: `{text}` is not an installation id, which is 32 hexadecimal digits"
            ))
        })?;
        Ok(Some(id))
    }

    fn pool(&self, provider: &str) -> anyhow::Result<PoolSize> {
        let mut size = PoolSize::default();
        if let Some(max) = self.number(&format!("{provider}_max_connections"))? {
            size.max = max;
        }
        if let Some(min) = self.number(&format!("{provider}_min_connections"))? {
            size.min = min;
        }
        Ok(size)
    }
}

fn flag_of(setting: &str) -> String {
    format!("--{}", setting.replace('_', "-"))
}

/// A provider whose tenants are served, with the database of one that is not embedded.
#[derive(Clone, Debug)]
pub(crate) struct Served {
    pub(crate) name: ProviderName,
    pub(crate) external: Option<External>,
}

/// The settings of the selected provider, and of those whose tenants are served too.
///
/// # Errors
/// [`UsageError`] for settings that are missing or cannot work.
pub(crate) fn resolve(
    args: Option<&ExternalArgs>,
    env: Lookup<'_>,
    file: &Persistence,
    providers: &Providers,
    durability: Durability,
) -> anyhow::Result<(Served, Vec<Served>)> {
    let given = Given { args, env, file };
    let home = providers.home;
    if providers.all().all(ProviderName::is_embedded) {
        for setting in ["join_installation", "allow_plaintext_password"] {
            if let Some((_, source)) = given.text(setting) {
                return Err(usage(format!(
                    "{source} is for databases that run elsewhere, but {} is selected",
                    home.name()
                )));
            }
        }
    }
    let served = |name| {
        let external = resolve_one(&given, name, durability)?;
        anyhow::Ok(Served { name, external })
    };
    let also = providers.also.iter().map(|name| served(*name));
    Ok((served(home)?, also.collect::<Result<_, _>>()?))
}

fn resolve_one(
    given: &Given<'_>,
    provider: ProviderName,
    durability: Durability,
) -> anyhow::Result<Option<External>> {
    match provider {
        ProviderName::Sqlite | ProviderName::Redb => Ok(None),
        ProviderName::Postgres => postgres(given, durability).map(Some),
        ProviderName::Mysql => mysql(given, durability).map(Some),
        ProviderName::LibsqlReplica => libsql(given).map(Some),
    }
}

fn postgres(given: &Given<'_>, durability: Durability) -> anyhow::Result<External> {
    let url = given.required("postgres_url", ProviderName::Postgres)?;
    let mut options = PostgresOptions::new(&url).map_err(settings_error)?;
    if let Some((name, _)) = given.text("postgres_metadata_schema") {
        options.metadata_schema = name;
    }
    if let Some((prefix, _)) = given.text("postgres_tenant_schema_prefix") {
        options.tenant_schema_prefix = prefix;
    }
    options.pool = given.pool("postgres")?;
    options.join_installation = given.installation()?;
    options.allow_plaintext_password = given.switch("allow_plaintext_password")?;
    options.durability = durability;
    Ok(External::Postgres(options))
}

fn mysql(given: &Given<'_>, durability: Durability) -> anyhow::Result<External> {
    let url = given.required("mysql_url", ProviderName::Mysql)?;
    let mut options = MysqlOptions::new(&url).map_err(settings_error)?;
    if let Some((name, _)) = given.text("mysql_metadata_database") {
        options.metadata_database = name;
    }
    if let Some((prefix, _)) = given.text("mysql_tenant_database_prefix") {
        options.tenant_database_prefix = prefix;
    }
    options.pool = given.pool("mysql")?;
    options.join_installation = given.installation()?;
    options.allow_plaintext_password = given.switch("allow_plaintext_password")?;
    options.durability = durability;
    Ok(External::Mysql(options))
}

fn libsql(given: &Given<'_>) -> anyhow::Result<External> {
    let required = |setting| given.required(setting, ProviderName::LibsqlReplica);
    let (url, admin) = (required("libsql_url")?, required("libsql_admin_url")?);
    let mut options = LibsqlOptions::new(url, admin, required("libsql_replica_cache_dir")?);
    let secret = |setting| given.text(setting).map(|(value, _)| Secret::new(value));
    options.auth_token = secret("libsql_auth_token");
    options.admin_auth_header = secret("libsql_admin_auth_header");
    if let Some((name, _)) = given.text("libsql_metadata_namespace") {
        options.metadata_namespace = name;
    }
    if let Some((prefix, _)) = given.text("libsql_tenant_namespace_prefix") {
        options.tenant_namespace_prefix = prefix;
    }
    options.join_installation = given.installation()?;
    options.allow_plaintext_token = given.switch("allow_plaintext_password")?;
    // Before anybody shows the URL.
    options.validate().map_err(settings_error)?;
    Ok(External::Libsql(Box::new(options)))
}

fn settings_error(error: ProviderError) -> anyhow::Error {
    match error {
        ProviderError::Settings { reason } => UsageError(reason).into(),
        other => other.into(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn resolved(provider: ProviderName, env: &[(&str, &str)]) -> anyhow::Result<Option<External>> {
        let lookup = |name: &str| {
            let found = env.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let selected = Providers::only(provider);
        let file = Persistence::default();
        let (home, _) = resolve(None, &lookup, &file, &selected, Durability::Full)?;
        Ok(home.external)
    }

    #[test]
    fn a_database_is_named_without_its_password() {
        let url = ("NIMBUS_POSTGRES_URL", "postgres://u:s3cret@localhost/x");
        let found = resolved(ProviderName::Postgres, &[url]).unwrap().unwrap();
        let shown = format!("{} {found:?}", found.shown());
        assert!(
            shown.contains("localhost") && !shown.contains("s3cret"),
            "{shown}"
        );
        let url = ("NIMBUS_MYSQL_URL", "mysql://u:s3cret@localhost/");
        let found = resolved(ProviderName::Mysql, &[url]).unwrap().unwrap();
        let shown = format!("{} {found:?}", found.shown());
        assert!(
            shown.contains("localhost") && !shown.contains("s3cret"),
            "{shown}"
        );
    }

    #[test]
    fn settings_that_are_missing_or_wrong_are_named() {
        let url = ("NIMBUS_POSTGRES_URL", "postgres://localhost/x");
        let cases: [(&[(&str, &str)], &str); 5] = [
            (&[], "--postgres-url"),
            (&[("NIMBUS_POSTGRES_URL", "http://x")], "postgres://"),
            (
                &[url, ("NIMBUS_POSTGRES_MAX_CONNECTIONS", "many")],
                "NIMBUS_POSTGRES_MAX_CONNECTIONS",
            ),
            (
                &[url, ("NIMBUS_JOIN_INSTALLATION", "abc")],
                "32 hexadecimal",
            ),
            (
                &[url, ("NIMBUS_ALLOW_PLAINTEXT_PASSWORD", "maybe")],
                "neither true nor false",
            ),
        ];
        for (env, part) in cases {
            let error = resolved(ProviderName::Postgres, env)
                .unwrap_err()
                .to_string();
            assert!(error.contains(part), "{error}");
        }
        let error = resolved(ProviderName::LibsqlReplica, &[])
            .unwrap_err()
            .to_string();
        assert!(error.contains("--libsql-url"), "{error}");
        let at = |url| {
            [
                ("NIMBUS_LIBSQL_URL", url),
                ("NIMBUS_LIBSQL_ADMIN_URL", "http://localhost:2"),
                ("NIMBUS_LIBSQL_REPLICA_CACHE_DIR", "/c"),
            ]
        };
        for url in [
            "http://u:s3cret@localhost:1",
            "http://localhost:1/?authToken=s3cret",
        ] {
            let error = resolved(ProviderName::LibsqlReplica, &at(url)).unwrap_err();
            assert!(error.is::<UsageError>(), "{error:?}");
            assert!(!format!("{error:?}").contains("s3cret"), "{error:?}");
        }
        assert!(resolved(ProviderName::LibsqlReplica, &at("http://localhost:1")).is_ok());
        assert!(resolved(ProviderName::Sqlite, &[]).unwrap().is_none());
    }
}
