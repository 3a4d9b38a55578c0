//! Settings of the MySQL provider: checked here, and made into what the client takes.
//!
//! Must not open a connection.

use std::str::FromStr;

use sqlx::mysql::{MySqlConnectOptions, MySqlSslMode};

use crate::control::RandomId;
use crate::provider::external::{DatabaseUrl, Names, PoolSize, check_protected, is_local};
use crate::provider::{Durability, ProviderError, ProviderResult};

const URL: &str = "the MySQL URL";
const METADATA: &str = "the MySQL metadata database";
const PREFIX: &str = "the prefix of tenant databases";
/// Parameters of the URL. Others of the client would change how rows are read.
const PARAMETERS: &[&str] = &[
    "ssl-mode", "sslmode", "ssl-ca", "sslca", "ssl-cert", "sslcert", "ssl-key", "sslkey", "socket",
];
/// Databases of the server itself.
const SYSTEM: &[&str] = &["mysql", "information_schema", "performance_schema", "sys"];

/// Settings of the [`MysqlProvider`](super::MysqlProvider). `Debug` shows no password.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct MysqlOptions {
    /// `mysql://user@host/`, with the parameters `ssl-mode` (`disabled`, `preferred`, `required`, `verify_ca`,
    /// `verify_identity`), `ssl-ca`, `ssl-cert`, `ssl-key` and `socket`. A database in it is not used.
    pub url: DatabaseUrl,
    /// Database of the registry.
    pub metadata_database: String,
    /// What the database of every tenant begins with. Nothing else on the server may.
    pub tenant_database_prefix: String,
    /// Connections.
    pub pool: PoolSize,
    /// The installation whose tenants are shared on purpose.
    pub join_installation: Option<RandomId>,
    /// Lets a connection to another machine do without encryption that was checked.
    pub allow_plaintext_password: bool,
    /// What a commit waits for is a setting of the server. Full: a server that does not sync every commit is refused.
    /// Relaxed: it is taken, and a crash of it may take the newest commits.
    pub durability: Durability,
}

impl MysqlOptions {
    /// The defaults, for a URL.
    ///
    /// # Errors
    /// `Settings` if that is none.
    pub fn new(url: &str) -> ProviderResult<MysqlOptions> {
        Ok(MysqlOptions {
            url: DatabaseUrl::parse(URL, &["mysql", "mariadb"], url)?,
            metadata_database: "nimbus_provider".to_owned(),
            tenant_database_prefix: "tenant_".to_owned(),
            pool: PoolSize::default(),
            join_installation: None,
            allow_plaintext_password: false,
            durability: Durability::Full,
        })
    }

    /// Checks the settings against each other; the names of tenants, and what the client takes.
    pub(super) fn check(&self) -> ProviderResult<(Names, MySqlConnectOptions)> {
        self.pool.check("MySQL")?;
        let names = Names::new(PREFIX, &self.tenant_database_prefix)?;
        names.check_metadata(METADATA, &self.metadata_database)?;
        let metadata = self.metadata_database.as_str();
        if SYSTEM.contains(&metadata) {
            let reason = format!("{METADATA} is {metadata}, which the server keeps for itself");
            return Err(ProviderError::Settings { reason });
        }
        Ok((names, self.client()?))
    }

    fn client(&self) -> ProviderResult<MySqlConnectOptions> {
        let refused = |why: &str| {
            let reason = format!("{URL} {}: {}", self.url, self.url.redact(why));
            ProviderError::Settings { reason }
        };
        if let Some(unknown) = self.url.unknown_parameter(PARAMETERS) {
            let known = PARAMETERS.join(", ");
            return Err(refused(&format!(
                "there is no parameter {unknown}, expected one of {known}"
            )));
        }
        let options = MySqlConnectOptions::from_str(self.url.text());
        let options = options.map_err(|e| refused(&e.to_string()))?;
        let host = host(&options);
        let options = match self.url.has_parameter(&["sslmode", "ssl-mode"]) {
            true => options,
            false if is_local(&host) => options.ssl_mode(MySqlSslMode::Preferred),
            false => options.ssl_mode(MySqlSslMode::VerifyIdentity),
        };
        let insists = matches!(
            options.get_ssl_mode(),
            MySqlSslMode::Required | MySqlSslMode::VerifyCa | MySqlSslMode::VerifyIdentity
        );
        check_protected(
            (URL, "ssl-mode=verify_identity"),
            &host,
            insists,
            self.allow_plaintext_password,
        )?;
        // The mode of SQL is set whole after connecting.
        let options = options.pipes_as_concat(false).no_engine_substitution(false);
        // Nothing is prepared but statements of one use.
        Ok(options.statement_cache_capacity(0))
    }
}

/// The host, or the path of the socket.
fn host(options: &MySqlConnectOptions) -> String {
    match options.get_socket() {
        Some(path) => path.display().to_string(),
        None => options.get_host().to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn options(url: &str) -> MysqlOptions {
        MysqlOptions::new(url).unwrap()
    }

    fn mode(url: &str) -> MySqlSslMode {
        options(url).client().unwrap().get_ssl_mode()
    }

    #[test]
    fn other_machines_are_verified_unless_the_url_says_otherwise() {
        use MySqlSslMode::{Disabled, Preferred, Required, VerifyIdentity};
        assert!(matches!(mode("mysql://u:p@127.0.0.1/x"), Preferred));
        assert!(matches!(mode("mariadb://u@localhost"), Preferred));
        assert!(matches!(
            mode("mysql://u@db.example/?socket=/run/my.sock"),
            Preferred
        ));
        assert!(matches!(mode("mysql://u:p@db.example/"), VerifyIdentity));
        let required = mode("mysql://u:p@db.example/?ssl-mode=required");
        assert!(matches!(required, Required));
        let disabled = mode("mysql://u@localhost/?ssl-mode=disabled");
        assert!(matches!(disabled, Disabled));
    }

    #[test]
    fn a_password_in_the_clear_is_refused_unless_asked_for() {
        for mode in ["disabled", "preferred"] {
            let mut options = options(&format!("mysql://u:s3cret@db.example/?ssl-mode={mode}"));
            let error = options.check().unwrap_err().to_string();
            assert!(
                error.contains("db.example") && !error.contains("s3cret"),
                "{error}"
            );
            assert!(error.contains("ssl-mode=verify_identity"), "{error}");
            options.allow_plaintext_password = true;
            options.check().unwrap();
        }
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let with = |change: fn(&mut MysqlOptions)| {
            let mut options = options("mysql://u:s3cret@localhost/");
            change(&mut options);
            let error = options.check().unwrap_err();
            assert!(matches!(error, ProviderError::Settings { .. }), "{error:?}");
            error.to_string()
        };
        assert!(with(|o| o.tenant_database_prefix = "Tenant".into()).contains("a-z"));
        assert!(
            with(|o| o.metadata_database = "tenant_x".into()).contains("begins with the prefix")
        );
        assert!(with(|o| o.metadata_database = "x`y".into()).contains("a-z"));
        assert!(with(|o| o.metadata_database = "mysql".into()).contains("for itself"));
        assert!(with(|o| o.pool.min = 30).contains("minimum"));
        let text = format!("{:?}", options("mysql://u:s3cret@localhost/"));
        assert!(!text.contains("s3cret"), "{text}");
        for (url, told) in [
            ("mysql://u:s3cret@localhost/?ssl-mode=sure", "sure"),
            (
                "mysql://u:s3cret@localhost/?ssl-mod=required",
                "no parameter ssl-mod,",
            ),
            (
                "mysql://u:s3cret@localhost/?charset=latin1",
                "no parameter charset,",
            ),
        ] {
            let error = options(url).check().unwrap_err().to_string();
            assert!(error.contains(told) && !error.contains("s3cret"), "{error}");
        }
        assert!(MysqlOptions::new("postgres://localhost/").is_err());
    }
}
