//! Nothing escapes the recorder: the kernel's view, through strace, is compared with its log.
//!
//! The recorder issues every change by a few system calls of its own choice, so any other call
//! that changes something below the data directory went past it; and those few must be as many
//! as the log has records. It must not know what the files mean.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use nimbus_e2e::power::image::is_volatile;
use nimbus_e2e::power::{Event, Process, Recorder, log};
use nimbus_e2e::{Client, Home};
use serde_json::json;

use super::scratch;

/// Every system call that can change a file, or let something else do so.
const CALLS: &str = "?write ?pwrite64 ?writev ?pwritev ?pwritev2 ?sendfile ?copy_file_range \
    ?splice ?vmsplice ?truncate ?ftruncate ?fallocate ?fsync ?fdatasync ?sync_file_range ?sync \
    ?syncfs ?rename ?renameat ?renameat2 ?unlink ?unlinkat ?link ?linkat ?symlink ?symlinkat \
    ?mkdir ?mkdirat ?rmdir ?mknod ?mknodat ?mmap ?open ?openat ?openat2 ?creat ?io_uring_setup \
    ?io_submit ?open_by_handle_at";

/// How often something happened to a path, and with how many bytes.
type Counts = BTreeMap<(&'static str, String), (u64, u64)>;

fn count(counts: &mut Counts, what: &'static str, path: &str, bytes: u64) {
    if is_volatile(path) && !matches!(what, "unlink" | "rename") {
        return;
    }
    let entry = counts.entry((what, path.to_owned())).or_default();
    entry.0 += 1;
    entry.1 += bytes;
}

/// What the recorder saw.
fn recorded(bytes: &[u8]) -> Counts {
    let mut counts = Counts::new();
    let mut paths = BTreeMap::new();
    for record in log::parse(bytes) {
        match record.event {
            Event::Create { file, path } | Event::Open { file, path } => {
                paths.insert(file, path.to_owned());
            }
            Event::Write { file, data, .. } => {
                count(&mut counts, "write", &paths[&file], data.len() as u64);
            }
            Event::Truncate { file, .. } => count(&mut counts, "truncate", &paths[&file], 0),
            Event::Allocate { file, .. } => count(&mut counts, "allocate", &paths[&file], 0),
            Event::Sync { file, .. } => count(&mut counts, "sync", &paths[&file], 0),
            Event::SyncDir { path, .. } => count(&mut counts, "sync", path, 0),
            Event::Rename { from, to } => {
                for path in paths.values_mut().filter(|path| *path == from) {
                    to.clone_into(path);
                }
                count(&mut counts, "rename", to, 0);
            }
            Event::Unlink(path) | Event::Rmdir(path) => count(&mut counts, "unlink", path, 0),
            Event::Mkdir(path) => count(&mut counts, "mkdir", path, 0),
            Event::Link { to, .. } => count(&mut counts, "link", to, 0),
            Event::Violation(text) => panic!("{text}"),
            _ => {}
        }
    }
    counts
}

/// What the kernel saw below `root`.
fn traced(dir: &Path, root: &str) -> Counts {
    let mut counts = Counts::new();
    for name in nimbus_e2e::files::names(dir) {
        let text = fs::read(dir.join(name)).unwrap();
        for line in String::from_utf8_lossy(&text).lines() {
            if let Some(call) = Call::parse(line) {
                call.count(root, &mut counts);
            }
        }
    }
    counts
}

/// A successful system call as strace prints it.
struct Call<'a> {
    line: &'a str,
    name: &'a str,
    arguments: &'a str,
    result: &'a str,
}

impl<'a> Call<'a> {
    fn parse(line: &'a str) -> Option<Call<'a>> {
        let (name, rest) = line.split_once('(')?;
        let (arguments, result) = rest.rsplit_once(" = ")?;
        let failed = result.starts_with('-') || result.starts_with('?');
        (!failed).then_some(Call {
            line,
            name,
            arguments,
            result,
        })
    }

    fn count(&self, root: &str, counts: &mut Counts) {
        let Call { name, line, .. } = self;
        assert!(
            !matches!(*name, "io_uring_setup" | "io_submit" | "sync" | "syncfs"),
            "{line}"
        );
        if !line.contains(root) {
            return;
        }
        // The path of the descriptor that comes first, or of the last name.
        let file = || below(root, self.arguments.split_once('<').unwrap().1, '>');
        let named = || {
            let mut quoted = self.arguments.rsplit('"');
            let name = quoted.nth(1).unwrap();
            below(root, name, '"')
        };
        match *name {
            "writev" | "pwritev" => {
                let bytes = self.result.trim().parse().unwrap();
                count(counts, "write", file(), bytes);
            }
            "ftruncate" => count(counts, "truncate", file(), 0),
            "fallocate" => count(counts, "allocate", file(), 0),
            "fsync" | "fdatasync" => count(counts, "sync", file(), 0),
            "renameat2" => count(counts, "rename", named(), 0),
            "unlinkat" => count(counts, "unlink", named(), 0),
            "mkdirat" => count(counts, "mkdir", named(), 0),
            "linkat" => count(counts, "link", named(), 0),
            // Its flags are the recorder's to judge: it saw the call, or a file has no record.
            "openat" => assert!(
                !line.contains("O_TRUNC") && !line.contains("O_TMPFILE"),
                "{line}"
            ),
            "mmap" => {
                let shared = line.contains("MAP_SHARED") && line.contains("PROT_WRITE");
                assert!(!shared || line.contains("-shm>"), "{line}");
            }
            _ => panic!("past the recorder: {line}"),
        }
    }
}

fn below<'a>(root: &str, text: &'a str, end: char) -> &'a str {
    let path = text.split(end).next().unwrap();
    let rest = path.strip_prefix(root).unwrap_or_else(|| panic!("{text}"));
    rest.trim_start_matches('/')
}

fn exercise(client: &Client) {
    for tenant in ["a", "b"] {
        client.create_tenant(tenant);
        let schema = json!({
            "table": "notes",
            "fields": [{"name": "n", "field_type": "string", "required": true}],
            "indexes": [{"name": "by_n", "fields": ["n"]}],
        });
        let path = format!("/api/tenants/{tenant}/schema/notes");
        client.put(&path, &schema).expect(204);
        for n in 0..60 {
            let text = "x".repeat(if n % 2 == 0 { 100 } else { 60_000 });
            let fields = json!({"n": format!("{n}"), "text": text});
            let id = client.insert(tenant, "notes", &fields);
            let path = format!("/api/tenants/{tenant}/documents/notes/{id}");
            client
                .patch(&path, &json!({"patch": {"n": "y"}}))
                .expect(200);
            if n % 3 == 0 {
                client.delete(&path).expect(204);
            }
        }
        let path = format!("/api/tenants/{tenant}/prune");
        client.post_empty(&path).expect(200);
    }
    client.delete("/api/tenants/b").expect(204);
}

#[test]
fn strace_sees_no_change_that_the_recorder_does_not() {
    let dir = scratch();
    let (root, traces) = (dir.path().join("disk"), dir.path().join("traces"));
    fs::create_dir(&root).unwrap();
    fs::create_dir(&traces).unwrap();
    let home = Home::within(dir.path());
    let recorder = Recorder::new(&root, &dir.path().join("log"));
    // Twice: an empty directory, and one with data.
    for round in 0..2 {
        let mut command = home.program("strace", ["-ff", "-y", "-s", "0"]);
        let calls: Vec<&str> = CALLS.split_whitespace().collect();
        command.arg(format!("--trace={}", calls.join(",")));
        command.arg("-o").arg(traces.join(format!("{round}")));
        for (name, value) in recorder.environment() {
            command.arg(format!("--env={name}={value}"));
        }
        command.arg(nimbus_e2e::home::binary());
        command.args(["start", "--port", "0", "--data-dir"]);
        command.arg(root.join("data"));
        let server = Process::start(&mut command).unwrap_or_else(|e| panic!("{e}"));
        let client = server.client(&home.token());
        if round == 0 {
            exercise(&client);
        } else {
            client.insert("a", "notes", &json!({"n": "again"}));
        }
        client.post_empty("/api/system/shutdown").expect(200);
        let (log, status) = server.wait();
        assert!(status.is_some_and(|s| s.success()), "{log}");
    }
    let root = fs::canonicalize(&root).unwrap();
    let kernel = traced(&traces, root.to_str().unwrap());
    let recorder = recorded(&recorder.read());
    for key in kernel.keys().chain(recorder.keys()) {
        let (kernel, recorder) = (kernel.get(key), recorder.get(key));
        assert_eq!(
            kernel, recorder,
            "{key:?}: calls and bytes of strace, recorder"
        );
    }
    let total: u64 = kernel.values().map(|(calls, _)| calls).sum();
    println!("{total} changes in strace and in the recorder's log, the same");
    assert!(total > 500, "{total}");
}
