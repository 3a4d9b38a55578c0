//! Connections: how a session is set up, and which servers are fit.
//!
//! Must not know tenants. A session's settings are set after it is made and not in its start-up, which a
//! connection pooler would refuse.

use futures_util::future::{BoxFuture, FutureExt};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection, Row, raw_sql};

use super::error;
use crate::provider::external::{DatabaseUrl, pool, relay};
use crate::provider::{Durability, ProviderError, ProviderResult};

/// The oldest server that is taken, as in `server_version_num`.
const OLDEST: i32 = 140_000;

/// Connections of a pool.
pub(super) type Pool = pool::Pool<PgDial>;
/// A connection in use.
pub(super) type Lease = pool::Lease<PgDial>;

/// Makes connections to one database.
pub(super) struct PgDial {
    options: PgConnectOptions,
    url: DatabaseUrl,
    setup: String,
    /// The oldest server that is taken; higher in tests.
    oldest: i32,
}

impl PgDial {
    pub(super) fn new(
        options: PgConnectOptions,
        url: DatabaseUrl,
        durability: Durability,
        lock_ms: u64,
    ) -> PgDial {
        PgDial {
            // The texts of statements are of no use in a log, and their timing is in our own.
            options: options.disable_statement_logging(),
            url,
            setup: setup(durability, lock_ms),
            oldest: OLDEST,
        }
    }

    #[cfg(test)]
    pub(super) fn require(&mut self, oldest: i32) {
        self.oldest = oldest;
    }

    /// What the client takes, for a connection that waits for notifications.
    pub(super) fn options(&self) -> PgConnectOptions {
        self.options.clone()
    }

    /// The URL, shown without its password.
    pub(super) fn shown(&self) -> String {
        self.url.to_string()
    }

    async fn connect(&self) -> ProviderResult<PgConnection> {
        let failed = |e: sqlx::Error| {
            let what = format!("connecting to {}", self.url);
            let why = self.url.redact(&error::text(&e));
            match error::kind(&e) {
                error::Kind::NoConnection => ProviderError::Busy {
                    what: format!("{what}: {why}"),
                },
                _ => ProviderError::io(what, why),
            }
        };
        let options = self.reachable().await.map_err(failed)?;
        let mut conn = options.connect().await.map_err(failed)?;
        raw_sql(sqlx::AssertSqlSafe(self.setup.as_str()))
            .execute(&mut conn)
            .await
            .map_err(failed)?;
        Ok(conn)
    }

    /// The options, with a way to the server on which nothing waits to be sent.
    async fn reachable(&self) -> Result<PgConnectOptions, sqlx::Error> {
        let options = self.options.clone();
        let (host, port) = (options.get_host(), options.get_port());
        if options.get_socket().is_some() || host.starts_with('/') {
            return Ok(options);
        }
        // What the client adds to the directory of a socket.
        let suffix = format!("/.s.PGSQL.{port}");
        match relay::connect(host, port, &suffix).await? {
            Some(path) => Ok(options.socket(path)),
            None => Ok(options),
        }
    }

    /// Refuses a server that cannot keep its promises; its version. Called once, at the start.
    ///
    /// # Errors
    /// `Settings` with what is wrong, or `Io`.
    pub(super) async fn check_server(&self, conn: &mut PgConnection) -> ProviderResult<String> {
        let sql = "SELECT current_setting('server_version_num')::int, current_setting('server_version'), \
                   pg_is_in_recovery(), current_setting('fsync')";
        let read = |e| error::provider(format!("looking at {}", self.url), e);
        let row = sqlx::query(sql).fetch_one(conn).await.map_err(read)?;
        let number: i32 = row.try_get(0).map_err(read)?;
        let version: String = row.try_get(1).map_err(read)?;
        let standby: bool = row.try_get(2).map_err(read)?;
        let fsync: String = row.try_get(3).map_err(read)?;
        let refuse = |reason: String| Err(ProviderError::Settings { reason });
        if number < self.oldest {
            let least = self.oldest / 10_000;
            return refuse(format!(
                "{} is PostgreSQL {version}; at least {least} is needed",
                self.url
            ));
        }
        if standby {
            return refuse(format!(
                "{} is a standby, which takes no writes; name its primary",
                self.url
            ));
        }
        if fsync == "off" {
            tracing::warn!(server = %self.url, "fsync is off there: a crash of the server may lose or damage everything");
        }
        Ok(version)
    }
}

/// All statements here look rows up by their keys. A plan made while a table was empty stays, so plans that read
/// whole tables are ruled out, as are those that a few hundred keys would tempt the planner to.
fn setup(durability: Durability, lock_ms: u64) -> String {
    // Not lowered where the operator asked for more than `on`.
    let synchronous = match durability {
        Durability::Full => {
            "SELECT set_config('synchronous_commit', CASE WHEN current_setting('synchronous_commit') IN \
             ('off', 'local') THEN 'on' ELSE current_setting('synchronous_commit') END, false)"
        }
        Durability::Relaxed => "SET synchronous_commit = off",
    };
    format!(
        "{synchronous}; SET default_transaction_isolation = 'read committed'; \
         SET bytea_output = 'hex'; SET standard_conforming_strings = on; \
         SET lock_timeout = {lock_ms}; SET idle_in_transaction_session_timeout = 35000; \
         SET tcp_user_timeout = 9000; SET plan_cache_mode = force_generic_plan; SET jit = off; \
         SET enable_seqscan = off; SET enable_bitmapscan = off; \
         SET enable_hashjoin = off; SET enable_mergejoin = off"
    )
}

impl pool::Dial for PgDial {
    type Conn = PgConnection;

    fn dial(&self) -> BoxFuture<'_, ProviderResult<PgConnection>> {
        self.connect().boxed()
    }

    fn hang_up(conn: PgConnection) -> BoxFuture<'static, ()> {
        async move {
            // The server notices in any case.
            let _ = conn.close().await;
        }
        .boxed()
    }
}
