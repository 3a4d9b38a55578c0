//! `kill -9` at every step of a command that changes files: at each system call that syncs, renames,
//! removes or cuts a file, `strace` kills the process before the call is made. Whatever is left, the next
//! start serves the data, or the next run of the command goes on.

use std::path::Path;
use std::process::Command;

use nimbus_e2e::files;
use nimbus_e2e::home::binary;
use nimbus_e2e::server::{Options, Server};

use super::{KEY_FILE, PROVIDER, Vault, check, fill, make_key, text};

/// The calls between which the disk changes in a way that names or durability depend on.
const CALLS: &str =
    "fsync,fdatasync,rename,renameat,renameat2,link,linkat,unlink,unlinkat,ftruncate";
/// More steps than any command has.
const MOST: usize = 300;

/// A prepared data directory that every attempt starts from.
struct Template {
    vault: Vault,
}

impl Template {
    /// A tenant `demo`, encrypted or in plain text, on a provider.
    fn new(provider: &str, encrypted: bool) -> Template {
        let vault = Vault::new();
        let options = match encrypted {
            true => vault.options(),
            false => Options::new().home(&vault.home),
        };
        let mut server = Server::start(options.args(&["--tenant-provider", provider]));
        fill(&server, "demo");
        assert!(server.terminate().success());
        let template = Template { vault };
        copy(&template.vault.home.data_dir(), &template.kept());
        template
    }

    fn kept(&self) -> std::path::PathBuf {
        self.vault.path("template")
    }

    fn renew(&self) {
        let data = self.vault.home.data_dir();
        std::fs::remove_dir_all(&data).unwrap();
        copy(&self.kept(), &data);
    }

    /// Runs a command from the template, killed before its `step`th call; true if it was.
    fn killed(&self, words: &str, calls: &str, step: usize) -> bool {
        self.renew();
        let words = words
            .replace("{data}", &text(&self.vault.home.data_dir()))
            .replace("{home}", &text(self.vault.home.path()));
        let mut strace = self
            .vault
            .home
            .program("strace", ["-f", "-qq", "-o", "/dev/null"]);
        strace
            .args(["-e", &format!("trace={calls}")])
            .args(["-e", &format!("inject={calls}:signal=SIGKILL:when={step}")])
            .arg(binary())
            .arg("encryption")
            .args(words.split_whitespace())
            .env("NIMBUS_DATA_DIR", self.vault.home.data_dir())
            .envs(self.vault.env.iter().map(|(name, value)| (*name, value)));
        let output = strace.output().unwrap();
        if output.status.success() {
            return false;
        }
        // Killed: nothing was said of another reason.
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!told.contains("error:"), "step {step} of {words}: {told}");
        true
    }

    /// Kills at every step and judges what is left each time; the number of steps.
    fn at_every_step(&self, words: &str, judge: impl Fn(usize)) -> usize {
        for step in 1..MOST {
            if !self.killed(words, CALLS, step) {
                judge(step);
                return step - 1;
            }
            judge(step);
        }
        panic!("{words} has more than {MOST} steps");
    }
}

fn copy(from: &Path, to: &Path) {
    let mut cp = Command::new("cp");
    assert!(cp.arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// The tenant is served with encryption on, and nothing but its files is left beside it.
fn serves(vault: &Vault, provider: &str, step: usize) {
    let mut server = Server::start(vault.options().args(&["--tenant-provider", provider]));
    check(&server, "demo");
    assert!(server.terminate().success(), "step {step}");
}

#[test]
fn rotate_dek_sqlite() {
    rotate_dek("sqlite", "sqlite3");
}

#[test]
fn rotate_dek_redb() {
    rotate_dek("redb", "redb");
}

fn rotate_dek(provider: &str, ending: &str) {
    let template = Template::new(provider, true);
    for backup in ["", " --skip-backup"] {
        let words = format!(
            "rotate-dek --path {{data}}/demo.{ending} --provider {provider} --tenant-id demo{backup}"
        );
        let steps = template.at_every_step(&words, |step| {
            serves(&template.vault, provider, step);
            let data = template.vault.home.data_dir();
            let left: Vec<_> = files::names(&data)
                .into_iter()
                .filter(|name| {
                    name.contains(".bak") || name.contains(".rotating") || name.contains(".tmp")
                })
                .collect();
            // A temporary manifest goes with the next one that is written.
            assert!(
                left.iter().all(|name| name.ends_with(".nimbus-enc.tmp")),
                "step {step}: {left:?}"
            );
        });
        assert!(steps >= 6, "{words}: only {steps} steps");
    }
}

/// In the middle of the pages, too.
#[test]
fn rotate_dek_between_page_writes() {
    for (provider, ending) in [("sqlite", "sqlite3"), ("redb", "redb")] {
        let template = Template::new(provider, true);
        let words = format!(
            "rotate-dek --path {{data}}/demo.{ending} --provider {provider} --tenant-id demo"
        );
        let mut killed = 0;
        for step in [1, 2, 3, 5, 8, 13, 21, 34, 55] {
            if template.killed(&words, "pwrite64,write", step) {
                killed += 1;
            }
            serves(&template.vault, provider, step);
        }
        assert!(killed >= 4, "{provider}: killed {killed} times");
    }
}

#[test]
fn migrate_and_replace() {
    for (provider, ending) in [("sqlite", "sqlite3"), ("redb", "redb")] {
        let template = Template::new(provider, false);
        let tenant = format!(
            "migrate --source {{data}}/demo.{ending} --provider {provider} --tenant-id demo --replace"
        );
        let control = "migrate --source {data}/nimbus-control.db --provider redb --replace";
        for words in [&*tenant, control] {
            let steps = template.at_every_step(words, |step| {
                // The other file is still in plain text, so the command is run again for both; one that
                // was through is told so.
                for words in [&*tenant, control] {
                    let again = template.vault.encryption(words);
                    let done = again.stderr.contains("it has a manifest");
                    let interrupted = again.code == Some(0);
                    assert!(done || interrupted, "step {step}: {}", again.stderr);
                }
                serves(&template.vault, provider, step);
            });
            assert!(steps >= 5, "{words}: only {steps} steps");
        }
    }
}

#[test]
fn migrate_to_a_copy() {
    let template = Template::new("sqlite", false);
    let words =
        "migrate --source {data}/demo.sqlite3 --provider sqlite --tenant-id demo --retire-source";
    template.at_every_step(words, |step| {
        let again = template.vault.encryption(words);
        // Unless it was through but for the end: then the copy is there, and the source may be, too.
        let there = template.vault.file("demo.sqlite3.encrypted").exists();
        assert!(
            again.code == Some(0) || there,
            "step {step}: {}",
            again.stderr
        );
        for ending in ["", ".nimbus-enc"] {
            let made = template
                .vault
                .file(&format!("demo.sqlite3.encrypted{ending}"));
            std::fs::rename(made, template.vault.file(&format!("demo.sqlite3{ending}"))).unwrap();
        }
        let control = "migrate --source {data}/nimbus-control.db --provider redb --replace";
        template.vault.encryption(control).expect(0);
        serves(&template.vault, "sqlite", step);
    });
}

#[test]
fn rotate_kek_of_a_directory() {
    let template = Template::new("sqlite", true);
    let new = template.vault.path("new.key");
    make_key(&new);
    let words = "rotate-kek --path {data} --all --new-master-key-file {home}/new.key";
    let rotated = template
        .vault
        .with(&[(PROVIDER, "master-key-file"), (KEY_FILE, &text(&new))]);
    template.at_every_step(words, |step| {
        template.vault.encryption(words).expect(0);
        serves(&rotated, "sqlite", step);
        let refused = Server::refused(template.vault.options());
        assert!(refused.stderr.contains("wrong key"), "{}", refused.stderr);
    });
}
