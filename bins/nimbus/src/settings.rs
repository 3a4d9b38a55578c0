//! One value per setting: flag, else environment, else file, else default.
//!
//! The environment is injected, so the whole table is testable. It must not open anything but
//! the configuration file.

use std::fmt::Display;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use nimbus_auth::audit::AuditOptions;
use nimbus_http::ServerConfig;
use nimbus_storage::provider::Durability;

use crate::cli::StartArgs;
use crate::config::{self, ConfigFile, Persistence};
use crate::encryption::source::{self, KeySource};
use crate::external::{self, Served};
use crate::functions::{self, FunctionSettings};

/// A setting that contradicts a rule; exit code 2.
#[derive(Debug)]
pub(crate) struct UsageError(pub(crate) String);

impl Display for UsageError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for UsageError {}

pub(crate) fn usage(message: impl Into<String>) -> anyhow::Error {
    UsageError(message.into()).into()
}

/// The storage backends that `--tenant-provider` names (seed 002).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProviderName {
    Sqlite,
    Redb,
    Postgres,
    Mysql,
    LibsqlReplica,
}

impl ProviderName {
    const ALL: [(&'static str, ProviderName); 5] = [
        ("sqlite", ProviderName::Sqlite),
        ("redb", ProviderName::Redb),
        ("postgres", ProviderName::Postgres),
        ("mysql", ProviderName::Mysql),
        ("libsql-replica", ProviderName::LibsqlReplica),
    ];

    pub(crate) fn name(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(_, p)| *p == self)
            .map_or("sqlite", |(name, _)| name)
    }

    /// The provider that an external setting belongs to; `None` for those that all of them have.
    fn of_setting(setting: &str) -> Option<ProviderName> {
        match setting.split('_').next() {
            Some("postgres") => Some(ProviderName::Postgres),
            Some("mysql") => Some(ProviderName::Mysql),
            Some("libsql") => Some(ProviderName::LibsqlReplica),
            _ => None,
        }
    }

    /// Whether tenants are in files of this machine alone.
    pub(crate) fn is_embedded(self) -> bool {
        matches!(self, ProviderName::Sqlite | ProviderName::Redb)
    }
}

impl FromStr for ProviderName {
    type Err = String;

    fn from_str(text: &str) -> Result<ProviderName, String> {
        let wanted = text.replace('_', "-");
        let found = Self::ALL.iter().find(|(name, _)| *name == wanted);
        found.map(|(_, provider)| *provider).ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(|(name, _)| *name).collect();
            format!(
                "`{text}` is not a provider; use one of {}",
                names.join(", ")
            )
        })
    }
}

/// How log events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// Everything that `nimbus start` needs to know.
#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) allow_network: bool,
    pub(crate) data_dir: PathBuf,
    pub(crate) control_data_dir: PathBuf,
    pub(crate) policy_dir: Option<PathBuf>,
    /// Of new tenants.
    pub(crate) home: Served,
    /// Whose tenants are served too.
    pub(crate) also: Vec<Served>,
    pub(crate) durability: Durability,
    pub(crate) max_open_tenants: Option<usize>,
    /// `None` keeps files in plain text.
    pub(crate) encryption: Option<KeySource>,
    pub(crate) log_format: LogFormat,
    /// `None` keeps every segment.
    pub(crate) audit_keep_bytes: Option<u64>,
    pub(crate) server: ServerConfig,
    pub(crate) functions: FunctionSettings,
}

/// Reads an environment variable; empty counts as unset.
pub(crate) type Lookup<'a> = &'a dyn Fn(&str) -> Option<String>;

/// The process's own environment.
pub(crate) fn process_environment(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Directories of data and control database, for commands that work without a server.
pub(crate) fn directories(
    data_dir: Option<PathBuf>,
    control_data_dir: Option<PathBuf>,
    file: &Persistence,
    env: Lookup<'_>,
) -> (PathBuf, PathBuf) {
    let data = data_dir
        .or_else(|| env("NIMBUS_DATA_DIR").map(PathBuf::from))
        .or_else(|| file.data_dir.clone())
        .unwrap_or_else(|| PathBuf::from("./data"));
    let control = control_data_dir
        .or_else(|| env("NIMBUS_CONTROL_DATA_DIR").map(PathBuf::from))
        .or_else(|| file.control_data_dir.clone())
        .unwrap_or_else(|| data.clone());
    (data, control)
}

/// The configuration file that a flag or `NIMBUS_CONFIG` names; the flag wins.
fn config_file(flag: Option<PathBuf>, env: Lookup<'_>) -> anyhow::Result<ConfigFile> {
    match flag.or_else(|| env("NIMBUS_CONFIG").map(PathBuf::from)) {
        Some(path) => config::load(&path),
        None => Ok(ConfigFile::default()),
    }
}

/// What that file says about data.
pub(crate) fn persistence(flag: Option<PathBuf>, env: Lookup<'_>) -> anyhow::Result<Persistence> {
    Ok(config_file(flag, env)?.persistence)
}

/// The providers whose tenants are served together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Providers {
    /// That of new tenants.
    pub(crate) home: ProviderName,
    pub(crate) also: Vec<ProviderName>,
}

impl Providers {
    /// One alone.
    pub(crate) fn only(home: ProviderName) -> Providers {
        let also = Vec::new();
        Providers { home, also }
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = ProviderName> {
        std::iter::once(self.home).chain(self.also.iter().copied())
    }

    /// Serves one more, unless it is served.
    pub(crate) fn add(&mut self, name: ProviderName) {
        if !self.all().any(|known| known == name) {
            self.also.push(name);
        }
    }

    fn resolve(
        (home, also): (Option<String>, &[String]),
        env: Lookup<'_>,
        file: &Persistence,
    ) -> anyhow::Result<Providers> {
        let pick = Pick { env };
        let named = pick.text(home, "tenant-provider", file.tenant_provider.clone());
        let home = match named {
            Some((text, source)) => text.parse().map_err(|e| usage(format!("{source}: {e}")))?,
            None => ProviderName::Sqlite,
        };
        let mut also = pick.list(also, "NIMBUS_ALSO_TENANT_PROVIDER");
        if also.is_empty() {
            also.clone_from(&file.also_tenant_provider);
        }
        let mut providers = Providers::only(home);
        for text in also {
            let name = text
                .parse()
                .map_err(|e| usage(format!("--also-tenant-provider: {e}")))?;
            providers.add(name);
        }
        Ok(providers)
    }
}

/// The tenant providers, for commands that work without flags of the server.
pub(crate) fn tenant_providers(file: &Persistence, env: Lookup<'_>) -> anyhow::Result<Providers> {
    Providers::resolve((None, &[]), env, file)
}

/// Resolves every setting of `nimbus start`.
///
/// # Errors
/// [`UsageError`] for a bad value and for settings of a provider that is not selected; the
/// configuration file's own errors.
pub(crate) fn resolve(args: StartArgs, env: Lookup<'_>) -> anyhow::Result<Settings> {
    let config = config_file(args.config.clone(), env)?;
    let functions = functions::resolve(&args.runtime, env, &config.runtime)?;
    let file = config.persistence;
    let pick = Pick { env };
    let named = (args.tenant_provider.clone(), &*args.also_tenant_provider);
    let providers = Providers::resolve(named, env, &file)?;
    refuse_other_providers(&args, env, &file, &providers)?;
    let encryption = source::resolve(&args.encryption, env, &file)?;
    let durability = pick.text(
        args.durability.clone(),
        "durability",
        file.durability.clone(),
    );
    let durability = match durability
        .as_ref()
        .map(|(text, source)| (text.as_str(), source))
    {
        None | Some(("full", _)) => Durability::Full,
        Some(("relaxed", _)) => Durability::Relaxed,
        Some((other, source)) => {
            return Err(usage(format!(
                "{source}: `{other}` is neither full nor relaxed"
            )));
        }
    };
    let (home, also) = external::resolve(Some(&args.external), env, &file, &providers, durability)?;
    let log_format = pick.text(args.log_format.clone(), "log-format", None);
    let log_format = match log_format
        .as_ref()
        .map(|(text, source)| (text.as_str(), source))
    {
        None | Some(("text", _)) => LogFormat::Text,
        Some(("json", _)) => LogFormat::Json,
        Some((other, source)) => {
            return Err(usage(format!(
                "{source}: `{other}` is neither text nor json"
            )));
        }
    };
    let max_open = pick.number(
        args.max_open_tenants.clone(),
        "max-open-tenants",
        file.max_open_tenants.map(|n| n.to_string()),
        1..=1_000_000,
    )?;
    let keep = pick.number(
        args.audit_keep_bytes.clone(),
        "audit-keep-bytes",
        None,
        0..=u64::MAX,
    )?;
    let port = pick.number(args.port.clone(), "port", None, 0..=65_535)?;
    let mut server = server_config(&args, &pick)?;
    server.public_origin = pick
        .text(
            args.public_origin.clone(),
            "public-origin",
            config.public_origin,
        )
        .map(|(origin, _)| origin);
    server.query_cache_bytes = usize::try_from(functions.query_cache_bytes).unwrap_or(usize::MAX);
    server.check().map_err(|e| usage(e.to_string()))?;
    let host = pick.text(args.host.clone(), "host", None);
    if let Some((_, source)) = host.as_ref().filter(|(host, _)| host.is_empty()) {
        return Err(usage(format!("{source}: the host is empty")));
    }
    let policy_dir = pick.text(args.policy_dir.clone(), "policy-dir", config.policy_dir);
    if let Some((_, source)) = policy_dir.as_ref().filter(|(dir, _)| dir.is_empty()) {
        return Err(usage(format!("{source}: the directory is empty")));
    }
    let (data_dir, control_data_dir) =
        directories(args.data_dir, args.control_data_dir, &file, env);
    Ok(Settings {
        host: host.map_or("127.0.0.1".into(), |(host, _)| host),
        port: port.map_or(8080, |n| u16::try_from(n).unwrap_or(u16::MAX)),
        allow_network: args.allow_network || pick.switch("allow-network")?,
        data_dir,
        control_data_dir,
        policy_dir: policy_dir.map(|(dir, _)| PathBuf::from(dir)),
        home,
        also,
        durability,
        encryption,
        max_open_tenants: max_open.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
        log_format,
        audit_keep_bytes: match keep {
            Some(0) => None,
            Some(bytes) => Some(bytes),
            None => AuditOptions::default().keep_bytes,
        },
        server,
        functions,
    })
}

fn server_config(args: &StartArgs, pick: &Pick<'_>) -> anyhow::Result<ServerConfig> {
    let mut server = ServerConfig::default();
    let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let flag = args.max_connections.clone();
    if let Some(n) = pick.number(flag, "max-connections", None, 1..=1_000_000)? {
        server.max_connections = count(n);
    }
    let flag = args.max_body_bytes.clone();
    if let Some(n) = pick.number(flag, "max-body-bytes", None, 1_024..=1 << 30)? {
        server.max_body_bytes = count(n);
    }
    let flag = args.request_timeout_secs.clone();
    if let Some(n) = pick.number(flag, "request-timeout-secs", None, 1..=3_600)? {
        server.request_timeout = Duration::from_secs(n);
    }
    server.cors_allow_origins = pick.list(&args.cors_allow_origin, "NIMBUS_CORS_ALLOW_ORIGINS");
    server.allowed_hosts = pick.list(&args.allowed_host, "NIMBUS_ALLOWED_HOST");
    server.trusted_proxies = pick.list(&args.trusted_proxy, "NIMBUS_TRUSTED_PROXY");
    server.tenant_domain = pick
        .text(args.tenant_domain.clone(), "tenant-domain", None)
        .map(|(d, _)| d);
    Ok(server)
}

/// Settings of a provider that is not selected are a mistake, wherever they come from (seed 002).
fn refuse_other_providers(
    args: &StartArgs,
    env: Lookup<'_>,
    file: &Persistence,
    selected: &Providers,
) -> anyhow::Result<()> {
    let in_file = file.external();
    for (setting, flag) in args.external.given() {
        let Some(owner) = ProviderName::of_setting(setting) else {
            continue;
        };
        let variable = format!("NIMBUS_{}", setting.to_uppercase());
        let name = format!("--{}", setting.replace('_', "-"));
        let source = if flag.is_some() {
            String::new()
        } else if env(&variable).is_some() {
            format!(" (here {variable})")
        } else if in_file.contains(&setting) {
            format!(" (here `{setting}` in the configuration)")
        } else {
            continue;
        };
        if !selected.all().any(|name| name == owner) {
            return Err(usage(format!(
                "{name}{source} belongs to the provider {}, but {} is selected; remove it or pass --tenant-provider {}",
                owner.name(),
                selected.home.name(),
                owner.name()
            )));
        }
    }
    Ok(())
}

/// Where one setting is looked up: flag, else environment, else file.
pub(crate) struct Pick<'a> {
    pub(crate) env: Lookup<'a>,
}

impl Pick<'_> {
    /// The value of a setting and, for error texts, where it came from.
    pub(crate) fn text(
        &self,
        flag: Option<String>,
        name: &str,
        file: Option<String>,
    ) -> Option<(String, String)> {
        let variable = variable(name);
        if let Some(value) = flag {
            return Some((value, format!("--{name}")));
        }
        if let Some(value) = (self.env)(&variable) {
            return Some((value, variable));
        }
        file.map(|value| {
            (
                value,
                format!("`{}` in the configuration", name.replace('-', "_")),
            )
        })
    }

    fn number(
        &self,
        flag: Option<String>,
        name: &str,
        file: Option<String>,
        range: std::ops::RangeInclusive<u64>,
    ) -> anyhow::Result<Option<u64>> {
        let Some((text, source)) = self.text(flag, name, file) else {
            return Ok(None);
        };
        let number = text.parse::<u64>().ok().filter(|n| range.contains(n));
        number.map(Some).ok_or_else(|| {
            usage(format!(
                "{source}: `{text}` is not a number from {} to {}",
                range.start(),
                range.end()
            ))
        })
    }

    fn switch(&self, name: &str) -> anyhow::Result<bool> {
        let variable = variable(name);
        match (self.env)(&variable).as_deref() {
            None | Some("false" | "0") => Ok(false),
            Some("true" | "1") => Ok(true),
            Some(other) => Err(usage(format!(
                "{variable}: `{other}` is neither true nor false"
            ))),
        }
    }

    fn list(&self, flags: &[String], variable: &str) -> Vec<String> {
        if !flags.is_empty() {
            return flags.to_vec();
        }
        let text = (self.env)(variable).unwrap_or_default();
        text.split(',')
            .map(|part| part.trim().to_owned())
            .filter(|part| !part.is_empty())
            .collect()
    }
}

fn variable(name: &str) -> String {
    format!("NIMBUS_{}", name.to_uppercase().replace('-', "_"))
}

/// Whether a host is on this machine only: 127/8, `::1` or `localhost` in any case.
pub(crate) fn is_loopback(host: &str) -> bool {
    let bare = host
        .strip_prefix('[')
        .and_then(|h| h.strip_suffix(']'))
        .unwrap_or(host);
    match bare.parse::<IpAddr>() {
        Ok(address) => address.to_canonical().is_loopback(),
        Err(_) => bare.eq_ignore_ascii_case("localhost"),
    }
}

/// Whether two paths name one directory, however they are spelled.
pub(crate) fn same_directory(one: &Path, other: &Path) -> bool {
    let real = |path: &Path| path.canonicalize().ok();
    one == other || real(one).is_some_and(|found| real(other) == Some(found))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::{Cli, Command};

    fn start(args: &[&str]) -> StartArgs {
        let line = ["nimbus", "start"].into_iter().chain(args.iter().copied());
        match Cli::try_parse_from(line).unwrap().command {
            Command::Start(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    fn resolved(args: &[&str], env: &[(&str, &str)]) -> anyhow::Result<Settings> {
        let lookup = |name: &str| {
            env.iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| (*v).to_owned())
                .filter(|v| !v.is_empty())
        };
        resolve(start(args), &lookup)
    }

    #[test]
    fn defaults() {
        let s = resolved(&[], &[]).unwrap();
        assert_eq!(
            (s.host.as_str(), s.port, s.allow_network),
            ("127.0.0.1", 8080, false)
        );
        assert_eq!(s.data_dir, PathBuf::from("./data"));
        assert_eq!(s.control_data_dir, PathBuf::from("./data"));
        assert_eq!(
            (s.home.name, s.durability),
            (ProviderName::Sqlite, Durability::Full)
        );
    }

    #[test]
    fn a_flag_beats_the_environment_and_that_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("nimbus.json");
        std::fs::write(
            &file,
            r#"{"persistence": {"data_dir": "/file", "durability": "relaxed", "max_open_tenants": 7}}"#,
        )
        .unwrap();
        let file = file.to_str().unwrap();
        let s = resolved(&["--config", file], &[]).unwrap();
        assert_eq!(
            (s.data_dir, s.max_open_tenants),
            (PathBuf::from("/file"), Some(7))
        );
        assert_eq!(s.durability, Durability::Relaxed);
        let env = [
            ("NIMBUS_CONFIG", file),
            ("NIMBUS_DATA_DIR", "/env"),
            ("NIMBUS_PORT", "81"),
            ("NIMBUS_DURABILITY", ""),
        ];
        let s = resolved(&[], &env).unwrap();
        assert_eq!(
            (s.data_dir, s.port, s.durability),
            (PathBuf::from("/env"), 81, Durability::Relaxed)
        );
        let s = resolved(
            &[
                "--data-dir",
                "/flag",
                "--port",
                "82",
                "--durability",
                "full",
            ],
            &env,
        )
        .unwrap();
        assert_eq!(
            (s.data_dir, s.port, s.durability),
            (PathBuf::from("/flag"), 82, Durability::Full)
        );
    }

    #[test]
    fn bad_values_name_where_they_came_from() {
        for (args, env, part) in [
            (&["--port", "65536"][..], &[][..], "--port"),
            (&["--port", "-"], &[], "--port"),
            (&[], &[("NIMBUS_PORT", "x")], "NIMBUS_PORT"),
            (&["--tenant-provider", "oracle"], &[], "libsql-replica"),
            (
                &[],
                &[("NIMBUS_TENANT_PROVIDER", "oracle")],
                "NIMBUS_TENANT_PROVIDER",
            ),
            (
                &["--also-tenant-provider", "oracle"],
                &[],
                "--also-tenant-provider",
            ),
            (
                &["--also-tenant-provider", "postgres"],
                &[],
                "--postgres-url",
            ),
            (&["--durability", "off"], &[], "--durability"),
            (&["--log-format", "xml"], &[], "--log-format"),
            (
                &[],
                &[("NIMBUS_ALLOW_NETWORK", "maybe")],
                "NIMBUS_ALLOW_NETWORK",
            ),
            (&["--max-body-bytes", "1"], &[], "--max-body-bytes"),
            (&["--max-open-tenants", "0"], &[], "--max-open-tenants"),
        ] {
            let error = resolved(args, env).unwrap_err();
            assert!(
                error.to_string().contains(part),
                "{args:?} {env:?}: {error}"
            );
            assert!(error.downcast_ref::<UsageError>().is_some());
        }
    }

    #[test]
    fn other_providers_are_served_with_their_settings() {
        let url = ["--postgres-url", "postgres://localhost/x"];
        let named = |settings: &Settings| settings.also.iter().map(|s| s.name).collect::<Vec<_>>();
        let also = [
            "--also-tenant-provider",
            "postgres",
            "--also-tenant-provider",
            "sqlite",
        ];
        let served = resolved(&[&also[..], &url].concat(), &[]).unwrap();
        assert_eq!(served.home.name, ProviderName::Sqlite);
        assert_eq!(
            named(&served),
            [ProviderName::Postgres],
            "the home is there already"
        );
        assert!(served.also[0].external.is_some());
        let env = [("NIMBUS_ALSO_TENANT_PROVIDER", "redb, postgres")];
        let served = resolved(&url, &env).unwrap();
        assert_eq!(named(&served), [ProviderName::Redb, ProviderName::Postgres]);
        let file = r#"{"persistence": {"also_tenant_provider": ["redb"]}}"#;
        let mut config = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut config, file.as_bytes()).unwrap();
        let path = config.path().to_str().unwrap();
        let served = resolved(&["--config", path], &[]).unwrap();
        assert_eq!(named(&served), [ProviderName::Redb]);
    }

    #[test]
    fn the_public_origin_has_three_places() {
        let config = |text: &str| {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            std::io::Write::write_all(&mut file, text.as_bytes()).unwrap();
            file
        };
        let file = config(r#"{"public_origin": "https://file.example"}"#);
        let path = file.path().to_str().unwrap();
        let origin = |args: &[&str], env: &[(&str, &str)]| {
            let settings = resolved(args, env).map_err(|error| error.to_string())?;
            Ok::<_, String>(settings.server.public_origin)
        };
        let env = [("NIMBUS_PUBLIC_ORIGIN", "https://env.example:8443")];
        let flag = "--public-origin=http://flag.example";
        let known = |text: &str| Ok(Some(text.to_owned()));
        assert_eq!(origin(&[], &[]), Ok(None));
        assert_eq!(
            origin(&["--config", path], &[]),
            known("https://file.example")
        );
        assert_eq!(
            origin(&["--config", path], &env),
            known("https://env.example:8443")
        );
        assert_eq!(
            origin(&["--config", path, flag], &env),
            known("http://flag.example")
        );
        for bad in [
            "nimbus.example",
            "https://nimbus.example/",
            "https://nimbus.example/path",
            "https://user@nimbus.example",
            "ftp://nimbus.example",
            "https://*",
            "https://",
        ] {
            let error = origin(&["--public-origin", bad], &[]).unwrap_err();
            assert!(error.starts_with("--public-origin: "), "{bad}: {error}");
        }
    }

    #[test]
    fn proxies_and_the_length_of_the_audit_log() {
        let s = resolved(&[], &[]).unwrap();
        assert_eq!(s.audit_keep_bytes, Some(4 << 30));
        assert_eq!(s.server.trusted_proxies, [""; 0]);
        let s = resolved(&["--audit-keep-bytes", "0"], &[]).unwrap();
        assert_eq!(s.audit_keep_bytes, None);
        let env = [
            ("NIMBUS_AUDIT_KEEP_BYTES", "5"),
            ("NIMBUS_TRUSTED_PROXY", "10.0.0.1, fd00::/8"),
        ];
        let s = resolved(&[], &env).unwrap();
        assert_eq!(s.audit_keep_bytes, Some(5));
        assert_eq!(s.server.trusted_proxies, ["10.0.0.1", "fd00::/8"]);
        let s = resolved(
            &["--trusted-proxy", "::1", "--trusted-proxy", "10.0.0.2"],
            &env,
        )
        .unwrap();
        assert_eq!(s.server.trusted_proxies, ["::1", "10.0.0.2"]);
        let error = resolved(&["--trusted-proxy", "proxy.example"], &[]).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("--trusted-proxy: `proxy.example`"),
            "{error}"
        );
    }

    #[test]
    fn settings_of_another_provider_are_refused_from_every_source() {
        let args = start(&[]);
        for (setting, _) in args.external.given() {
            let flag = format!("--{}", setting.replace('_', "-"));
            let given = format!("{flag}=1");
            let error = resolved(&[&given], &[]).unwrap_err().to_string();
            assert!(
                error.contains(&flag) && error.contains("sqlite is selected"),
                "{error}"
            );
            let variable = format!("NIMBUS_{}", setting.to_uppercase());
            let error = resolved(&[], &[(&variable, "1")]).unwrap_err().to_string();
            assert!(error.contains(&variable), "{error}");
            let owner = ProviderName::of_setting(setting).unwrap_or(ProviderName::Postgres);
            let own = resolved(&["--tenant-provider", owner.name(), &given], &[]);
            // The value is not one that all of them take.
            let said = own.err().map(|e| e.to_string()).unwrap_or_default();
            assert!(!said.contains("is selected"), "{setting}: {said}");
        }
    }

    #[test]
    fn providers_may_be_spelled_with_underscores() {
        assert_eq!(
            "libsql_replica".parse::<ProviderName>(),
            Ok(ProviderName::LibsqlReplica)
        );
    }

    #[test]
    fn loopback_spellings() {
        for host in [
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "[::1]",
            "localhost",
            "LocalHost",
            "::ffff:127.0.0.1",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "0.0.0.0",
            "::",
            "10.0.0.1",
            "localhost.example.com",
            "example.com",
            "",
            "128.0.0.1",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
