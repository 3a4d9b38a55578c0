//! The baseline of writes: one thread that inserts the same documents into SQLite, one
//! transaction and one sync for each, with nothing around it.
//!
//! It must not know Nimbus. It runs as a process of its own, so that syncs can be slowed down
//! for it in the same way as for the server.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use rusqlite::Connection;
use serde_json::{Value, json};

use crate::documents;
use crate::process::{SlowSync, own_program};
use crate::random::Rng;
use crate::stats::Latencies;

/// What a run of the loop measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Commits {
    pub(crate) per_second: f64,
    pub(crate) p50_ms: f64,
}

/// Runs the loop in a process of its own on the database in `dir`.
pub(crate) fn run(
    dir: &Path,
    warm: Duration,
    time: Duration,
    slow_sync: Option<&SlowSync>,
) -> Result<Commits> {
    let mut command = own_program()?;
    if let Some(slow) = slow_sync {
        slow.apply(&mut command);
    }
    command.arg("bare").arg("--dir").arg(dir);
    command.args(["--warm-ms", &warm.as_millis().to_string()]);
    command.args(["--measure-ms", &time.as_millis().to_string()]);
    let output = command
        .stdin(Stdio::null())
        .output()
        .context("cannot start the bare loop")?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("the bare loop failed ({}): {text}", output.status);
    }
    let result: Value = serde_json::from_slice(&output.stdout)?;
    let number = |name: &str| {
        let value = result[name].as_f64();
        value.with_context(|| format!("the bare loop tells no {name}"))
    };
    Ok(Commits {
        per_second: number("per_second")?,
        p50_ms: number("p50_ms")?,
    })
}

/// The loop itself; its result goes to standard output.
pub(crate) fn main(dir: &Path, warm: Duration, time: Duration) -> Result<()> {
    let connection = open(&dir.join("bare.sqlite3"))?;
    let mut insert = connection.prepare("INSERT INTO documents (id, body) VALUES (?1, ?2)")?;
    let count = |row: &rusqlite::Row<'_>| row.get::<_, i64>(0);
    let there = connection.query_row("SELECT count(*) FROM documents", (), count)?;
    let mut number = u64::try_from(there)?;
    let mut rng = Rng::new(number);
    let mut latencies = Latencies::default();
    let started = Instant::now();
    loop {
        let body = documents::stored(&mut rng, number);
        let id = key(number);
        let before = Instant::now();
        insert.execute((id.as_slice(), body.as_str()))?;
        number += 1;
        let at = started.elapsed();
        if at > warm + time {
            break;
        }
        if at > warm {
            latencies.push(before.elapsed());
        }
    }
    let result = json!({
        "per_second": latencies.len() as f64 / time.as_secs_f64(),
        "p50_ms": latencies.percentile_ms(0.5),
    });
    println!("{result}");
    Ok(())
}

fn open(path: &Path) -> Result<Connection> {
    let connection = Connection::open(path)?;
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.execute(
        "CREATE TABLE IF NOT EXISTS documents (id BLOB PRIMARY KEY NOT NULL, body TEXT NOT NULL)",
        (),
    )?;
    Ok(connection)
}

/// A key as long as Nimbus's, in order of insertion.
fn key(number: u64) -> [u8; 20] {
    let mut key = [0; 20];
    key[4..12].copy_from_slice(&number.to_be_bytes());
    key
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_database_commits_as_the_row_says() {
        let dir = tempfile::tempdir().unwrap();
        let connection = open(&dir.path().join("bare.sqlite3")).unwrap();
        let pragma = |name| {
            connection.pragma_query_value(None, name, |row| row.get::<_, rusqlite::types::Value>(0))
        };
        assert_eq!(pragma("journal_mode").unwrap(), "wal".to_owned().into());
        assert_eq!(pragma("synchronous").unwrap(), 2.into());
    }

    #[test]
    fn keys_ascend() {
        assert!(key(255) < key(256));
    }
}
