//! Encryption at rest, end to end: the commands of seed 003 as written, refusals at the start, rotation
//! between key providers, and a reader that is not ours.
//!
//! What the pieces do when they fail is tested beside them.

mod canaries;
mod interop;
mod kills;
mod refusals;
mod rotation;
mod seed;

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use nimbus_e2e::home::{Finished, Home};
use nimbus_e2e::server::{Options, Server};
use serde_json::json;

const PROVIDER: &str = "NIMBUS_ENCRYPTION_KEY_PROVIDER";
const KEY_FILE: &str = "NIMBUS_ENCRYPTION_MASTER_KEY_FILE";
const KEY_DIR: &str = "NIMBUS_ENCRYPTION_KEY_DIR";

/// A home with a master key, and the environment of the admin commands.
struct Vault {
    home: Arc<Home>,
    /// What `nimbus encryption` and servers are given beside the home.
    env: Vec<(&'static str, String)>,
}

impl Vault {
    /// A home, and a key file made as the documents say.
    fn new() -> Vault {
        let home = Arc::new(Home::new());
        let key = home.path().join("master.key");
        make_key(&key);
        let env = vec![
            (PROVIDER, "master-key-file".to_owned()),
            (KEY_FILE, text(&key)),
        ];
        Vault { home, env }
    }

    /// The same home with other settings.
    fn with(&self, env: &[(&'static str, &str)]) -> Vault {
        let env = env.iter().map(|(name, value)| (*name, (*value).to_owned()));
        Vault {
            home: Arc::clone(&self.home),
            env: env.collect(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// The file of a tenant.
    fn file(&self, name: &str) -> PathBuf {
        self.home.data_dir().join(name)
    }

    fn command<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.home.command(args);
        command.env("NIMBUS_DATA_DIR", self.home.data_dir());
        command.envs(self.env.iter().map(|(name, value)| (*name, value)));
        command
    }

    fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Finished {
        Finished::of(&mut self.command(args))
    }

    /// `nimbus encryption ...`, its words in one text; `{data}` and `{home}` stand for directories.
    fn encryption(&self, words: &str) -> Finished {
        let words = words
            .replace("{data}", &text(&self.home.data_dir()))
            .replace("{home}", &text(self.home.path()));
        let args = words.split_whitespace().map(str::to_owned);
        self.run(std::iter::once("encryption".to_owned()).chain(args))
    }

    fn options(&self) -> Options {
        let options = Options::new().home(&self.home);
        self.env
            .iter()
            .fold(options, |options, (name, value)| options.env(name, value))
    }

    fn start(&self) -> Server {
        Server::start(self.options())
    }

    /// Starts a server without encryption and ends it again.
    fn plain_tenant(&self, tenant: &str) {
        let mut server = Server::start(Options::new().home(&self.home));
        fill(&server, tenant);
        assert!(server.terminate().success());
    }
}

/// `openssl rand -out FILE 32` and `chmod 400 FILE` (seed 003).
fn make_key(path: &std::path::Path) {
    let mut openssl = Command::new("openssl");
    openssl.args(["rand", "-out"]).arg(path).arg("32");
    assert!(openssl.status().unwrap().success());
    nimbus_e2e::files::set_mode(path, 0o400);
}

fn text(path: &std::path::Path) -> String {
    path.to_str().unwrap().to_owned()
}

/// A tenant with one document.
fn fill(server: &Server, tenant: &str) {
    let client = server.client();
    client.create_tenant(tenant);
    client.insert(tenant, "notes", &json!({"text": canary(tenant)}));
}

/// The document of a tenant is there, and all is consistent.
fn check(server: &Server, tenant: &str) {
    let documents = server.client().documents(tenant, "notes");
    assert_eq!(documents.len(), 1);
    assert_eq!(documents[0]["text"], canary(tenant));
    server.client().check_consistency(tenant);
}

/// What is in no file of an encrypted tenant.
fn canary(tenant: &str) -> String {
    format!("canary of {tenant} 0f7c21")
}
