//! Certificates of an authority of one's own, made by `openssl`.
//!
//! It must not know what they are for.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::geteuid;
use tempfile::TempDir;

use crate::files::set_mode;

const KEY: [&str; 5] = [
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:P-256",
    "-nodes",
];

/// An authority, with the certificates that it made.
#[derive(Debug)]
pub struct Authority {
    dir: TempDir,
}

impl Authority {
    /// A new one.
    pub fn new() -> Authority {
        let dir = TempDir::with_prefix("nimbus-authority-").unwrap();
        // Servers of other users read their certificates here.
        set_mode(dir.path(), 0o755);
        // A name of its own: two of one name are told apart by their keys only, which is another error.
        let name = dir.path().file_name().unwrap().to_str().unwrap();
        let subject = format!("/CN={name}");
        let authority = Authority { dir };
        let mut command = openssl(&["req", "-x509", "-days", "30", "-subj", &subject]);
        command
            .args(KEY)
            .arg("-keyout")
            .arg(authority.path("ca.key"));
        run(command.arg("-out").arg(authority.path("ca.pem")));
        authority
    }

    /// Its own certificate.
    pub fn certificate(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// The certificate of a server with this name (`DNS:…` or `IP:…`), and its key, which `user` owns and may read alone.
    pub fn server(&self, name: &str, user: Option<&str>) -> (PathBuf, PathBuf) {
        let path = |ending: &str| self.path(&format!("server.{ending}"));
        let (certificate, key, names) = (path("pem"), path("key"), path("names"));
        fs::write(&names, format!("subjectAltName = {name}\n")).unwrap();
        let mut command = openssl(&["req", "-new", "-subj", "/CN=server"]);
        command.args(KEY).arg("-keyout").arg(&key);
        run(command.arg("-out").arg(path("csr")));
        let mut command = openssl(&["x509", "-req", "-days", "30", "-CAcreateserial"]);
        command
            .arg("-in")
            .arg(path("csr"))
            .arg("-CA")
            .arg(self.certificate());
        command.arg("-CAkey").arg(self.path("ca.key"));
        run(command
            .arg("-extfile")
            .arg(names)
            .arg("-out")
            .arg(&certificate));
        set_mode(&key, 0o600);
        if let Some(user) = user.filter(|_| geteuid().is_root()) {
            chown(&key, Some(id_of(user)), None).unwrap();
        }
        (certificate, key)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

impl Default for Authority {
    fn default() -> Authority {
        Authority::new()
    }
}

fn id_of(user: &str) -> u32 {
    let users = fs::read_to_string(Path::new("/etc/passwd")).unwrap();
    let mut lines = users.lines().map(|line| line.split(':'));
    let mut found = lines.find_map(|mut line| (line.next() == Some(user)).then_some(line));
    let id = found.as_mut().and_then(|line| line.nth(1));
    id.unwrap_or_else(|| panic!("there is no user {user}"))
        .parse()
        .unwrap()
}

fn openssl(args: &[&str]) -> Command {
    let mut command = Command::new("openssl");
    command.args(args);
    command
}

fn run(command: &mut Command) {
    let output = command.output().expect("openssl");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {stderr}");
}
