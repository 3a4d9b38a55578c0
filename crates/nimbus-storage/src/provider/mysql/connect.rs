//! Connections: how a session is set up, and which servers are fit.
//!
//! Must not know tenants.

use std::collections::HashMap;
use std::future::Future;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt};
use sqlx::mysql::{MySqlConnectOptions, MySqlRow};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, MySqlConnection, raw_sql};

use super::error::{self, text_column};
use super::{MysqlOptions, Timing};
use crate::provider::external::{DatabaseUrl, pool, relay};
use crate::provider::{Durability, ProviderError, ProviderResult};

/// The oldest servers that are taken: MySQL and MariaDB.
const OLDEST: [(u32, u32); 2] = [(8, 0), (10, 6)];
/// What a packet must hold: the longest value that the engine writes is a module of 15 MiB.
const LEAST_PACKET: u64 = 16 * 1024 * 1024;
/// Pages on which a key of 2,048 bytes fits.
const LEAST_PAGE: u64 = 16 * 1024;
/// Seconds after which the server ends a session that nobody uses. The pool ends it sooner.
pub(super) const SESSION_IDLE_S: u64 = 900;
/// Seconds that the server waits for the rest of a packet, either way: for a process that stopped in the middle.
const NET_S: u64 = 8;

/// Connections of a pool.
pub(super) type Pool = pool::Pool<MyDial>;
/// A connection in use.
pub(super) type Lease = pool::Lease<MyDial>;

/// Makes connections to one server.
pub(super) struct MyDial {
    options: MySqlConnectOptions,
    url: DatabaseUrl,
    setup: String,
}

impl MyDial {
    pub(super) fn new(
        client: MySqlConnectOptions,
        options: &MysqlOptions,
        timing: &Timing,
    ) -> MyDial {
        MyDial {
            // The texts of statements are of no use in a log, and their timing is in our own.
            options: client.disable_statement_logging(),
            url: options.url.clone(),
            setup: setup(seconds(timing.lock)),
        }
    }

    /// The URL, shown without its password.
    pub(super) fn shown(&self) -> String {
        self.url.to_string()
    }

    async fn connect(&self) -> ProviderResult<MySqlConnection> {
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
        let setup = raw_sql(AssertSqlSafe(self.setup.as_str()));
        setup.execute(&mut conn).await.map_err(failed)?;
        Ok(conn)
    }

    /// The options, with a way to the server on which nothing waits to be sent.
    async fn reachable(&self) -> Result<MySqlConnectOptions, sqlx::Error> {
        let options = self.options.clone();
        if options.get_socket().is_some() {
            return Ok(options);
        }
        match relay::connect(options.get_host(), options.get_port(), "").await? {
            Some(path) => Ok(options.socket(path)),
            None => Ok(options),
        }
    }

    /// Refuses a server that cannot keep its promises. Called once, at the start.
    ///
    /// # Errors
    /// `Settings` with what is wrong, or `Io`.
    pub(super) async fn check_server(
        &self,
        conn: &mut MySqlConnection,
        durability: Durability,
    ) -> ProviderResult<Fitness> {
        let read = |e| error::provider(format!("looking at {}", self.url), e);
        let rows = raw_sql(VARIABLES).fetch_all(conn).await.map_err(read)?;
        let variable = |row: &MySqlRow| Ok((text_column(row, 0)?, text_column(row, 1)?));
        let variables: Result<_, sqlx::Error> = rows.iter().map(variable).collect();
        let variables = Variables(variables.map_err(read)?);
        variables.check(&self.shown(), durability)
    }

    /// What the server calls itself.
    pub(super) async fn version(&self, conn: &mut MySqlConnection) -> ProviderResult<String> {
        let read = |e| error::provider(format!("looking at {}", self.url), e);
        let row = raw_sql("SELECT VERSION()")
            .fetch_one(conn)
            .await
            .map_err(read)?;
        text_column(&row, 0).map_err(read)
    }
}

/// Settings of a session. Nothing is left to the defaults of the server that a commit or a read relies on.
fn setup(lock_s: u64) -> String {
    format!(
        "SET SESSION sql_mode='STRICT_TRANS_TABLES,NO_ENGINE_SUBSTITUTION',autocommit=1,completion_type=0,\
         innodb_lock_wait_timeout={lock_s},lock_wait_timeout={lock_s},net_read_timeout={NET_S},\
         net_write_timeout={NET_S},wait_timeout={SESSION_IDLE_S};\
         SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED, READ WRITE"
    )
}

/// For a setting of the server that has seconds, and no 0.
pub(super) fn seconds(duration: Duration) -> u64 {
    duration.as_millis().div_ceil(1000).clamp(1, 1_000_000) as u64
}

const VARIABLES: &str = "SHOW VARIABLES WHERE Variable_name IN ('version','log_bin','binlog_format','sync_binlog',\
     'innodb_flush_log_at_trx_commit','innodb_page_size','max_allowed_packet','read_only','super_read_only',\
     'innodb_read_only')";

/// Settings of the server, by name.
struct Variables(HashMap<String, String>);

/// What a server that is fit has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fitness {
    /// Bytes of the longest packet that it takes.
    pub(super) max_packet: u64,
}

impl Variables {
    fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    fn is_on(&self, name: &str) -> bool {
        !matches!(self.get(name), "" | "OFF" | "0")
    }

    fn number(&self, name: &str) -> u64 {
        self.get(name).parse().unwrap_or(0)
    }

    fn check(&self, shown: &str, durability: Durability) -> ProviderResult<Fitness> {
        match self.objection(durability) {
            Some(why) => Err(ProviderError::Settings {
                reason: format!("{shown} is not fit: {why}"),
            }),
            None => Ok(Fitness {
                max_packet: self.number("max_allowed_packet"),
            }),
        }
    }

    /// What speaks against the server.
    fn objection(&self, durability: Durability) -> Option<String> {
        let version = self.get("version");
        let (is_mariadb, found) = parse_version(version);
        let (name, oldest) = match is_mariadb {
            true => ("MariaDB", OLDEST[1]),
            false => ("MySQL", OLDEST[0]),
        };
        if found < oldest {
            let (major, minor) = oldest;
            return Some(format!(
                "it is {name} {version:?}, and at least {major}.{minor} is needed"
            ));
        }
        for variable in ["read_only", "super_read_only", "innodb_read_only"] {
            if self.is_on(variable) {
                let value = self.get(variable);
                return Some(format!(
                    "{variable} is {value}, so it takes no writes; name the primary"
                ));
            }
        }
        let format = self.get("binlog_format");
        if self.is_on("log_bin") && format.eq_ignore_ascii_case("STATEMENT") {
            return Some(format!(
                "binlog_format is {format}, which cannot record transactions at READ COMMITTED; set it to ROW"
            ));
        }
        for (variable, least) in [
            ("innodb_page_size", LEAST_PAGE),
            ("max_allowed_packet", LEAST_PACKET),
        ] {
            if self.number(variable) < least {
                let value = self.get(variable);
                return Some(format!(
                    "{variable} is {value}, and at least {least} is needed"
                ));
            }
        }
        match durability {
            Durability::Full => self.loses_commits(),
            Durability::Relaxed => None,
        }
    }

    /// Settings with which a crash of the machine loses commits that were acknowledged.
    fn loses_commits(&self) -> Option<String> {
        let mut wanted = vec!["innodb_flush_log_at_trx_commit"];
        if self.is_on("log_bin") {
            // Recovery rolls back what is prepared in InnoDB and missing in the binary log.
            wanted.push("sync_binlog");
        }
        let lax = wanted.into_iter().find(|v| self.get(v) != "1")?;
        let value = self.get(lax);
        Some(format!(
            "{lax} is {value}, so a crash may take commits that were acknowledged; set it to 1, or choose \
             relaxed durability"
        ))
    }
}

/// Whether it is MariaDB, and its version.
fn parse_version(version: &str) -> (bool, (u32, u32)) {
    let is_mariadb = version.to_ascii_lowercase().contains("mariadb");
    let version = version.strip_prefix("5.5.5-").unwrap_or(version);
    let mut parts = version.split(|c: char| !c.is_ascii_digit());
    let mut part = || parts.next().and_then(|n| n.parse().ok()).unwrap_or(0);
    (is_mariadb, (part(), part()))
}

/// A statement, bounded in time. One that took too long counts as a lost connection.
pub(super) async fn within<T>(
    limit: Duration,
    work: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    match tokio::time::timeout(limit, work).await {
        Ok(done) => done,
        Err(_) => {
            let seconds = limit.as_secs_f64();
            let why = format!("no answer from the database within {seconds} s");
            let kind = std::io::ErrorKind::TimedOut;
            Err(sqlx::Error::Io(std::io::Error::new(kind, why)))
        }
    }
}

/// Runs statements, bounded in time.
pub(super) async fn run(
    conn: &mut MySqlConnection,
    limit: Duration,
    sql: String,
) -> Result<u64, sqlx::Error> {
    let done = within(limit, raw_sql(AssertSqlSafe(sql)).execute(conn)).await?;
    Ok(done.rows_affected())
}

/// The rows of all results of some statements, bounded in time.
pub(super) async fn rows(
    conn: &mut MySqlConnection,
    limit: Duration,
    sql: String,
) -> Result<Vec<MySqlRow>, sqlx::Error> {
    within(limit, raw_sql(AssertSqlSafe(sql)).fetch_all(conn)).await
}

impl pool::Dial for MyDial {
    type Conn = MySqlConnection;

    fn dial(&self) -> BoxFuture<'_, ProviderResult<MySqlConnection>> {
        self.connect().boxed()
    }

    fn hang_up(conn: MySqlConnection) -> BoxFuture<'static, ()> {
        async move {
            // The server notices in any case.
            let _ = conn.close().await;
        }
        .boxed()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    const GOOD: &[(&str, &str)] = &[
        ("version", "10.11.6-MariaDB-0+deb12u1"),
        ("log_bin", "ON"),
        ("binlog_format", "MIXED"),
        ("sync_binlog", "1"),
        ("innodb_flush_log_at_trx_commit", "1"),
        ("innodb_page_size", "16384"),
        ("max_allowed_packet", "16777216"),
        ("read_only", "OFF"),
        ("innodb_read_only", "OFF"),
    ];

    fn check(changes: &[(&str, &str)], durability: Durability) -> Result<Fitness, String> {
        let all = GOOD.iter().chain(changes);
        let all = all.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let checked = Variables(all.collect()).check("mysql://h", durability);
        checked.map_err(|e| {
            assert!(matches!(e, ProviderError::Settings { .. }), "{e:?}");
            e.to_string()
        })
    }

    #[test]
    fn servers_that_are_not_fit_are_refused_with_the_reason() {
        let full = |changes: &[(&str, &str)]| check(changes, Durability::Full);
        let fit = Fitness {
            max_packet: 16_777_216,
        };
        assert_eq!(full(&[]), Ok(fit));
        for version in [
            "8.0.36",
            "8.4.0-log",
            "9.1.0",
            "5.5.5-10.6.1-MariaDB",
            "11.4.2-MariaDB",
            "8.0.11-TiDB-v7.5.0",
        ] {
            assert_eq!(full(&[("version", version)]), Ok(fit), "{version}");
        }
        for (version, told) in [
            (
                "5.7.44",
                "it is MySQL \"5.7.44\", and at least 8.0 is needed",
            ),
            ("10.5.9-MariaDB", "at least 10.6 is needed"),
            ("5.5.5-10.3.1-MariaDB", "at least 10.6"),
            ("", "at least 8.0"),
        ] {
            let error = full(&[("version", version)]).unwrap_err();
            assert!(error.contains(told), "{error}");
            assert!(error.starts_with("mysql://h is not fit: "), "{error}");
        }
        for (name, value, told) in [
            ("read_only", "ON", "read_only is ON"),
            ("super_read_only", "1", "super_read_only is 1"),
            ("innodb_read_only", "ON", "takes no writes"),
            ("binlog_format", "STATEMENT", "binlog_format is STATEMENT"),
            ("innodb_page_size", "8192", "at least 16384 is needed"),
            (
                "max_allowed_packet",
                "4194304",
                "max_allowed_packet is 4194304",
            ),
        ] {
            for durability in [Durability::Full, Durability::Relaxed] {
                let error = check(&[(name, value)], durability).unwrap_err();
                assert!(error.contains(told), "{error}");
            }
        }
        let unused = [
            ("log_bin", "OFF"),
            ("binlog_format", "STATEMENT"),
            ("sync_binlog", "0"),
        ];
        assert_eq!(full(&unused), Ok(fit));
    }

    #[test]
    fn a_server_that_may_lose_commits_is_taken_on_purpose_only() {
        for (name, value) in [
            ("innodb_flush_log_at_trx_commit", "2"),
            ("innodb_flush_log_at_trx_commit", "0"),
            ("sync_binlog", "0"),
        ] {
            let error = check(&[(name, value)], Durability::Full).unwrap_err();
            assert!(error.contains(&format!("{name} is {value}")), "{error}");
            assert!(check(&[(name, value)], Durability::Relaxed).is_ok());
        }
    }

    #[test]
    fn seconds_are_whole_and_never_none() {
        assert_eq!(seconds(Duration::from_millis(200)), 1);
        assert_eq!(seconds(Duration::from_millis(1001)), 2);
        assert_eq!(seconds(Duration::from_secs(10)), 10);
    }
}
