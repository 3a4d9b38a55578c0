//! Settings of the Postgres provider: checked here, and made into what the client takes.
//!
//! Must not open a connection.

use std::str::FromStr;

use sqlx::postgres::{PgConnectOptions, PgSslMode};

use crate::control::RandomId;
use crate::provider::external::{DatabaseUrl, Names, PoolSize, check_protected, is_local};
use crate::provider::{Durability, ProviderError, ProviderResult};

const URL: &str = "the Postgres URL";
const METADATA: &str = "the Postgres metadata schema";
const PREFIX: &str = "the prefix of tenant schemas";

/// Settings of the [`PostgresProvider`](super::PostgresProvider). `Debug` shows no password.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PostgresOptions {
    /// `postgres://user@host/database`, with the parameters of libpq (`sslmode`, `sslrootcert`, …).
    pub url: DatabaseUrl,
    /// Schema of the registry.
    pub metadata_schema: String,
    /// What the schema of every tenant begins with. Nothing else in the database may.
    pub tenant_schema_prefix: String,
    /// Connections.
    pub pool: PoolSize,
    /// The installation whose tenants are shared on purpose.
    pub join_installation: Option<RandomId>,
    /// Lets a connection to another machine do without encryption that was checked.
    pub allow_plaintext_password: bool,
    /// What a commit waits for. Relaxed: a crash of the database server may take the newest commits.
    pub durability: Durability,
}

impl PostgresOptions {
    /// The defaults, for a URL.
    ///
    /// # Errors
    /// `Settings` if that is none.
    pub fn new(url: &str) -> ProviderResult<PostgresOptions> {
        Ok(PostgresOptions {
            url: DatabaseUrl::parse(URL, &["postgres", "postgresql"], url)?,
            metadata_schema: "nimbus_provider".to_owned(),
            tenant_schema_prefix: "tenant_".to_owned(),
            pool: PoolSize::default(),
            join_installation: None,
            allow_plaintext_password: false,
            durability: Durability::Full,
        })
    }

    /// Checks the settings against each other; the names of tenants, and what the client takes.
    pub(super) fn check(&self) -> ProviderResult<(Names, PgConnectOptions)> {
        self.pool.check("Postgres")?;
        let names = Names::new(PREFIX, &self.tenant_schema_prefix)?;
        names.check_metadata(METADATA, &self.metadata_schema)?;
        for (setting, name) in [
            (PREFIX, &self.tenant_schema_prefix),
            (METADATA, &self.metadata_schema),
        ] {
            if name.starts_with("pg_") {
                let reason = format!("{setting} is {name}; Postgres keeps names in pg_ for itself");
                return Err(ProviderError::Settings { reason });
            }
        }
        Ok((names, self.client()?))
    }

    fn client(&self) -> ProviderResult<PgConnectOptions> {
        let options = PgConnectOptions::from_str(self.url.text()).map_err(|e| {
            let reason = format!("{URL} {}: {}", self.url, self.url.redact(&e.to_string()));
            ProviderError::Settings { reason }
        })?;
        let host = host(&options);
        let options = match self.url.has_parameter(&["sslmode", "ssl-mode"]) {
            true => options,
            false if is_local(&host) => options.ssl_mode(PgSslMode::Prefer),
            false => options.ssl_mode(PgSslMode::VerifyFull),
        };
        let insists = matches!(
            options.get_ssl_mode(),
            PgSslMode::Require | PgSslMode::VerifyCa | PgSslMode::VerifyFull
        );
        check_protected(
            (URL, "sslmode=verify-full"),
            &host,
            insists,
            self.allow_plaintext_password,
        )?;
        let options = match options.get_application_name() {
            Some(_) => options,
            None => options.application_name("nimbus"),
        };
        // No number is read as text, and poolers refuse a connection that asks for digits at its start.
        let options = options.extra_float_digits(None::<i8>);
        Ok(options.statement_cache_capacity(1024))
    }
}

/// The host, or the directory of the socket.
fn host(options: &PgConnectOptions) -> String {
    match options.get_socket() {
        Some(path) => path.display().to_string(),
        None => options.get_host().to_owned(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn options(url: &str) -> PostgresOptions {
        PostgresOptions::new(url).unwrap()
    }

    fn mode(url: &str) -> PgSslMode {
        options(url).client().unwrap().get_ssl_mode()
    }

    #[test]
    fn other_machines_are_verified_unless_the_url_says_otherwise() {
        assert!(matches!(
            mode("postgres://u:p@127.0.0.1/x"),
            PgSslMode::Prefer
        ));
        assert!(matches!(
            mode("postgres://u@localhost/x"),
            PgSslMode::Prefer
        ));
        assert!(matches!(
            mode("postgres:///x?host=/run/pg"),
            PgSslMode::Prefer
        ));
        assert!(matches!(
            mode("postgres://u:p@db.example/x"),
            PgSslMode::VerifyFull
        ));
        assert!(matches!(
            mode("postgres://u:p@db.example/x?sslmode=require"),
            PgSslMode::Require
        ));
        assert!(matches!(
            mode("postgres://u@localhost/x?sslmode=disable"),
            PgSslMode::Disable
        ));
    }

    #[test]
    fn a_password_in_the_clear_is_refused_unless_asked_for() {
        for mode in ["disable", "allow", "prefer"] {
            let mut options = options(&format!("postgres://u:s3cret@db.example/x?sslmode={mode}"));
            let error = options.check().unwrap_err().to_string();
            assert!(
                error.contains("db.example") && !error.contains("s3cret"),
                "{error}"
            );
            options.allow_plaintext_password = true;
            options.check().unwrap();
        }
        // The host may be given as a parameter.
        let hidden = options("postgres:///x?host=db.example&sslmode=disable");
        assert!(hidden.check().is_err());
    }

    #[test]
    fn settings_that_cannot_work_are_refused() {
        let with = |change: fn(&mut PostgresOptions)| {
            let mut options = options("postgres://u:s3cret@localhost/x");
            change(&mut options);
            let error = options.check().unwrap_err();
            assert!(matches!(error, ProviderError::Settings { .. }), "{error:?}");
            error.to_string()
        };
        assert!(with(|o| o.tenant_schema_prefix = "Tenant".into()).contains("a-z"));
        assert!(with(|o| o.tenant_schema_prefix = "pg_t_".into()).contains("pg_"));
        assert!(with(|o| o.metadata_schema = "tenant_x".into()).contains("begins with the prefix"));
        assert!(with(|o| o.metadata_schema = "x\"y".into()).contains("a-z"));
        assert!(with(|o| o.pool.min = 30).contains("minimum"));
        let text = format!("{:?}", options("postgres://u:s3cret@localhost/x"));
        assert!(!text.contains("s3cret"), "{text}");
        let bad = options("postgres://u:s3cret@localhost/x?sslmode=sure");
        let error = bad.check().unwrap_err().to_string();
        assert!(
            error.contains("sure") && !error.contains("s3cret"),
            "{error}"
        );
    }
}
