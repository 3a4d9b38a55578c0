//! The real proxies, run with the files of `packaging/proxies`.
//!
//! A file is used as it is shipped but for what a test machine has otherwise: addresses, the
//! certificate, and the prefix that is forwarded. Each replacement must find its text, so a file
//! that drifts from what is tested here fails. This room must not know requests.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The host name that the shipped files serve.
pub const HOST: &str = "nimbus.example.com";

/// Longest time from the start of a proxy to its first connection.
const LIMIT: Duration = Duration::from_secs(30);

/// Which proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Nginx,
    HaProxy,
    Caddy,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Nginx, Kind::HaProxy, Kind::Caddy];

    fn shipped(self) -> &'static str {
        match self {
            Kind::Nginx => "proxies/nginx.conf",
            Kind::HaProxy => "proxies/haproxy.cfg",
            Kind::Caddy => "proxies/Caddyfile",
        }
    }

    fn program(self) -> &'static str {
        match self {
            Kind::Nginx => "nginx",
            Kind::HaProxy => "haproxy",
            Kind::Caddy => "caddy",
        }
    }
}

/// What a test sets in the shipped file.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Where requests are sent on.
    pub upstream: SocketAddr,
    /// What is forwarded instead of `/convex/`.
    pub prefix: &'static str,
    /// Whether the proxy speaks TLS, with a certificate that the test makes.
    pub tls: bool,
}

impl Setting {
    /// As shipped, but without TLS, which the tests' byte-by-byte client does not speak.
    pub fn plain(upstream: SocketAddr) -> Setting {
        Setting {
            upstream,
            prefix: "/convex/",
            tls: false,
        }
    }
}

/// A running proxy, ended by handle when dropped.
#[derive(Debug)]
pub struct Front {
    pub kind: Kind,
    /// Where clients connect.
    pub address: SocketAddr,
    /// Where plain HTTP is only sent on to HTTPS.
    pub redirect: SocketAddr,
    dir: TempDir,
    child: Child,
}

/// A file of `packaging/`.
pub fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../packaging")
        .join(name)
}

impl Front {
    /// Starts the proxy and waits until it accepts connections.
    pub fn start(kind: Kind, setting: &Setting) -> Front {
        let dir = TempDir::with_prefix("nimbus-e2e-proxy-").unwrap();
        let (address, redirect) = free_addresses();
        let text = fs::read_to_string(shipped(kind.shipped())).unwrap();
        if setting.tls {
            make_certificate(dir.path());
        }
        let place = Place {
            dir: dir.path(),
            address,
            redirect,
        };
        let mut command = match kind {
            Kind::Nginx => nginx(&text, setting, &place),
            Kind::HaProxy => haproxy(&text, setting, &place),
            Kind::Caddy => caddy(&text, setting, &place),
        };
        let log = dir.path().join("log");
        let output = File::create(&log).unwrap();
        command
            .env("HOME", dir.path())
            .env("PATH", with_sbin())
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        let child = command.spawn().unwrap_or_else(|e| {
            panic!(
                "cannot run {}: {e}; `cargo xtask setup` installs it",
                kind.program()
            )
        });
        let mut front = Front {
            kind,
            address,
            redirect,
            dir,
            child,
        };
        front.wait_until_ready();
        front
    }

    /// What the proxy has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }

    /// The certificate that clients are to trust.
    pub fn certificate(&self) -> PathBuf {
        self.dir.path().join("cert.pem")
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "another program's readiness shows by a connection alone, so it is tried for"
    )]
    fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("{:?} ended with {status}:\n{}", self.kind, self.log());
            }
            match TcpStream::connect(self.address) {
                Ok(_) => return,
                Err(e) if e.kind() == ErrorKind::ConnectionRefused => {}
                Err(e) => panic!("{:?} on {}: {e}", self.kind, self.address),
            }
            assert!(
                Instant::now() < deadline,
                "{:?} is not ready:\n{}",
                self.kind,
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        // Both fail only for a process that has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- log of {:?} ---\n{}---", self.kind, self.log());
        }
    }
}

/// Debian keeps nginx and HAProxy where not every user looks.
fn with_sbin() -> String {
    let path = std::env::var("PATH").unwrap_or_default();
    format!("{path}:/usr/sbin")
}

/// Two free ports on a loopback address that no other test uses: the proxies cannot tell which
/// port they took, so a port is found first and must still be free a moment later.
fn free_addresses() -> (SocketAddr, SocketAddr) {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    let own = Ipv4Addr::new(
        127,
        100 + high % 100,
        low,
        NEXT.fetch_add(1, Ordering::Relaxed),
    );
    let take = || TcpListener::bind((own, 0)).unwrap();
    let (one, two) = (take(), take());
    (one.local_addr().unwrap(), two.local_addr().unwrap())
}

/// Where a proxy runs.
struct Place<'a> {
    dir: &'a Path,
    address: SocketAddr,
    redirect: SocketAddr,
}

impl Place<'_> {
    fn path(&self, name: &str) -> String {
        self.dir.join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, text: &str) -> String {
        fs::write(self.dir.join(name), text).unwrap();
        self.path(name)
    }
}

/// Replaces each text by another, and insists that it was there.
fn replaced(mut text: String, changes: &[(&str, &str)]) -> String {
    for (from, to) in changes {
        assert!(text.contains(from), "the shipped file has no {from:?}");
        text = text.replace(from, to);
    }
    text
}

/// What all files have in common: where Nimbus is and what is forwarded. Comments stay.
fn common(text: &str, setting: &Setting) -> String {
    let lines = text.lines().map(|line| {
        let line = line.replace("127.0.0.1:8080", &setting.upstream.to_string());
        if line.trim_start().starts_with('#') {
            line
        } else {
            line.replace("/convex/", setting.prefix)
        }
    });
    let changed = lines.collect::<Vec<_>>().join("\n") + "\n";
    assert_ne!(changed, text, "the shipped file names no upstream");
    changed
}

fn nginx(text: &str, setting: &Setting, place: &Place<'_>) -> Command {
    let site = common(text, setting);
    let (own, plain) = (place.address, place.redirect);
    let site = if setting.tls {
        replaced(
            site,
            &[
                (
                    "listen 443 ssl default_server;",
                    &format!("listen {own} ssl default_server;"),
                ),
                ("listen 443 ssl http2;", &format!("listen {own} ssl http2;")),
                ("/etc/ssl/nimbus/fullchain.pem", &place.path("cert.pem")),
                ("/etc/ssl/nimbus/privkey.pem", &place.path("key.pem")),
                (
                    "listen 80 default_server;",
                    &format!("listen {plain} default_server;"),
                ),
                ("listen 80;", &format!("listen {plain};")),
            ],
        )
    } else {
        replaced(
            site,
            &[
                ("    listen 80 default_server;\n", ""),
                (
                    "listen 443 ssl default_server;",
                    &format!("listen {own} default_server;"),
                ),
                ("    ssl_reject_handshake on;\n", ""),
                ("listen 443 ssl http2;", &format!("listen {own};")),
                (
                    "    ssl_certificate     /etc/ssl/nimbus/fullchain.pem;\n",
                    "",
                ),
                ("    ssl_certificate_key /etc/ssl/nimbus/privkey.pem;\n", ""),
                ("listen 80;", &format!("listen {plain};")),
            ],
        )
    };
    let site = place.write("nimbus.conf", &site);
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {};", place.path(name)))
        .join(" ");
    // One process, so that ending it by its handle ends all of it.
    let main = place.write(
        "main.conf",
        &format!(
            "daemon off; master_process off; pid {}; error_log stderr notice; events {{}}\n\
             http {{ access_log off; {temporary} include {site}; }}\n",
            place.path("pid")
        ),
    );
    let mut command = Command::new("nginx");
    command.args(["-e", "stderr", "-p", &place.path(""), "-c", &main]);
    command
}

fn haproxy(text: &str, setting: &Setting, place: &Place<'_>) -> Command {
    let file = common(text, setting);
    let (own, plain) = (place.address, place.redirect);
    let bind_tls = "bind :443 ssl crt /etc/haproxy/certs/nimbus.pem alpn h2,http/1.1";
    let file = replaced(
        file,
        &[
            ("bind :80\n", &format!("bind {plain}\n")),
            // Only root may become another user.
            ("    user haproxy\n", ""),
            ("    group haproxy\n", ""),
            ("    chroot /var/lib/haproxy\n", ""),
        ],
    );
    let file = if setting.tls {
        let bind = format!(
            "bind {own} ssl crt {} alpn h2,http/1.1",
            place.path("both.pem")
        );
        replaced(file, &[(bind_tls, &bind)])
    } else {
        replaced(
            file,
            &[
                (bind_tls, &format!("bind {own}")),
                (
                    "    http-request redirect scheme https code 301 unless { ssl_fc }\n",
                    "",
                ),
            ],
        )
    };
    let file = place.write("haproxy.cfg", &file);
    let mut command = Command::new("haproxy");
    command.args(["-db", "-f", &file]);
    command
}

fn caddy(text: &str, setting: &Setting, place: &Place<'_>) -> Command {
    let file = common(text, setting);
    let (own, plain) = (place.address, place.redirect);
    let (port, plain_port) = (own.port(), plain.port());
    // The admin listener is off and nothing is asked of a certificate authority.
    let options = format!("{{\n\tadmin off\n\tdefault_bind {}\n", own.ip());
    let (options, site) = if setting.tls {
        let ports = format!("\thttp_port {plain_port}\n\thttps_port {port}\n");
        let (cert, key) = (place.path("cert.pem"), place.path("key.pem"));
        (options + &ports, format!("{HOST} {{\n\ttls {cert} {key}\n"))
    } else {
        (
            options + "\tauto_https off\n",
            format!("http://{HOST}:{port} {{\n"),
        )
    };
    let file = replaced(
        file,
        &[
            ("{\n\tservers {", &format!("{options}\tservers {{")),
            (&format!("{HOST} {{\n"), &site),
        ],
    );
    let file = place.write("Caddyfile", &file);
    let mut command = Command::new("caddy");
    command
        .args(["run", "--adapter", "caddyfile", "--config", &file])
        .env("XDG_DATA_HOME", place.path("data"))
        .env("XDG_CONFIG_HOME", place.path("config"));
    command
}

/// A certificate for [`HOST`] that signs itself.
fn make_certificate(dir: &Path) {
    let subject = format!("/CN={HOST}");
    let names = format!("subjectAltName=DNS:{HOST}");
    let mut command = Command::new("openssl");
    command.current_dir(dir).args([
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
        "-subj",
        &subject,
        "-addext",
        &names,
        "-keyout",
        "key.pem",
        "-out",
        "cert.pem",
    ]);
    let output = command.output().expect("openssl is installed");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
    fs::write(dir.join("both.pem"), read("cert.pem") + &read("key.pem")).unwrap();
}
