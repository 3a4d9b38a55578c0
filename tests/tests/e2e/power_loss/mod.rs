//! Power cuts and failing disks: what was acknowledged is there afterwards, whole.
//!
//! `recorded` drives the real binary under the recorder, `images` cuts the power at seeded points
//! and starts the binary on what may be left, `faults` makes the Nth call fail. `sqlite` and
//! `escapes` show that the recorder and the model can be believed. docs/reliability.md has the
//! figures; `cargo xtask soak power-loss` runs the long form. A full disk is `full_disk`'s.
//!
//! It must not know how the server keeps its promises, only what they are.

mod escapes;
mod faults;
mod images;
mod recorded;
mod sqlite;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use nimbus_e2e::{Client, Home};
use serde_json::Value as Json;
use tempfile::TempDir;

/// Mark before a request is sent; its number names the request.
const ASKED: u64 = 1;
/// Mark after its answer came.
const ANSWERED: u64 = 2;

/// What kind of server is cut off.
#[derive(Clone, Copy, Debug)]
struct Kind {
    /// `--tenant-provider`.
    provider: &'static str,
    /// Whether its files are encrypted.
    encrypted: bool,
    /// `--durability`.
    durability: &'static str,
}

/// The default: SQLite in plain text, at full durability.
const PLAIN: Kind = Kind {
    provider: "sqlite",
    encrypted: false,
    durability: "full",
};

impl Kind {
    /// A server of this kind on a data directory. The key is the same in every home, and not on the disk
    /// that loses its power.
    fn command(self, home: &Home, data: &Path) -> Command {
        let mut command = home.command(["start", "--port", "0", "--data-dir"]);
        command.arg(data);
        command.args(["--tenant-provider", self.provider]);
        command.args(["--durability", self.durability]);
        if self.encrypted {
            let key = home.path().join("master.key");
            let _ = std::fs::remove_file(&key);
            std::fs::write(&key, [0x4e; 32]).unwrap();
            nimbus_e2e::files::set_mode(&key, 0o400);
            command.args(["--encryption-key-provider", "master-key-file"]);
            command.arg("--encryption-master-key-file").arg(key);
        }
        command
    }
}

/// A directory of the test's own, in memory where the machine has such a place: the suite decides
/// itself what a disk keeps, and thousands of images need not wear out a real one.
fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    let prefix = "nimbus-power-";
    TempDir::with_prefix_in(prefix, memory)
        .unwrap_or_else(|_| TempDir::with_prefix(prefix).unwrap())
}

/// Reads something; anything but 200 is a text about it.
fn read(client: &Client, path: &str) -> Result<Json, String> {
    let reply = client.send("GET", path, None)?;
    if reply.status == 200 {
        return Ok(reply.json());
    }
    Err(format!("{path}: {} {}", reply.status, reply.text()))
}

/// The documents of a table.
fn documents(client: &Client, tenant: &str, table: &str) -> Result<Vec<Json>, String> {
    let path = format!("/api/tenants/{tenant}/documents/{table}");
    match read(client, &path)?["data"].take() {
        Json::Array(documents) => Ok(documents),
        other => Err(format!("{path}: {other}")),
    }
}

/// The ids of the tenants.
fn tenants(client: &Client) -> Result<Vec<String>, String> {
    let list = read(client, "/api/tenants")?;
    let ids = list["tenants"].as_array().unwrap().iter();
    Ok(ids.map(|id| id.as_str().unwrap().to_owned()).collect())
}

/// Whether documents, indexes and commit log agree.
fn consistent(client: &Client, tenant: &str) -> Result<(), String> {
    let report = read(client, &format!("/debug/tenants/{tenant}/consistency"))?;
    if report["ok"] == true {
        return Ok(());
    }
    Err(format!("{report:#}"))
}

/// No file belongs to nobody.
fn check_names(data: &Path, tenants: &BTreeSet<String>) -> Result<(), String> {
    for name in nimbus_e2e::files::names(data) {
        let file = name.strip_suffix(".nimbus-enc").unwrap_or(&name);
        let parts = file.split_once(".sqlite3").or(file.split_once(".redb"));
        let known = match parts {
            Some((tenant, "" | "-wal" | "-shm")) => tenants.contains(tenant),
            Some(_) => false,
            None => file == "nimbus.lock" || file == "nimbus-control.db",
        };
        if !known {
            return Err(format!("{name} belongs to nobody"));
        }
    }
    Ok(())
}

/// A number from the environment, by which `cargo xtask soak` lengthens a run.
fn setting(name: &str, otherwise: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => text
            .parse()
            .unwrap_or_else(|e| panic!("{name}={text}: {e}")),
        _ => otherwise,
    }
}

/// Does `work` on each item, on as many threads as the machine has processors, and returns the
/// results in the order of the items.
fn in_parallel<T: Send, R: Send>(
    items: impl Iterator<Item = T> + Send,
    work: impl Fn(usize, T) -> R + Sync,
) -> Vec<R> {
    let threads = std::thread::available_parallelism().map_or(2, |n| n.get());
    let items = Mutex::new(items.enumerate());
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let take = || {
            loop {
                let next = items.lock().unwrap().next();
                let Some((n, item)) = next else { return };
                let result = work(n, item);
                results.lock().unwrap().push((n, result));
            }
        };
        for _ in 0..threads {
            scope.spawn(take);
        }
    });
    let mut results = results.into_inner().unwrap();
    results.sort_by_key(|(n, _)| *n);
    results.into_iter().map(|(_, result)| result).collect()
}
