//! TLS to the database: it is checked as the URL says, nothing goes in the clear beside it, and what cannot be trusted
//! is no start.
//!
//! It must not know how a provider connects.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;

use nimbus_e2e::{Authority, Database, Home, Options, Recorder, Server};
use serde_json::json;

/// What a document holds that must not be seen on the way.
const CANARY: &str = "canary-on-the-way-7c1f";

/// How the URL of a kind of database says what is to be checked.
struct Dialect {
    provider: &'static str,
    mode: &'static str,
    authority: &'static str,
    require: &'static str,
    verify_ca: &'static str,
    verify_full: &'static str,
    disable: &'static str,
}

const POSTGRES: Dialect = Dialect {
    provider: "postgres",
    mode: "sslmode",
    authority: "sslrootcert",
    require: "require",
    verify_ca: "verify-ca",
    verify_full: "verify-full",
    disable: "disable",
};

const MYSQL: Dialect = Dialect {
    provider: "mysql",
    mode: "ssl-mode",
    authority: "ssl-ca",
    require: "REQUIRED",
    verify_ca: "VERIFY_CA",
    verify_full: "VERIFY_IDENTITY",
    disable: "DISABLED",
};

/// A database server that speaks TLS, with a certificate for `localhost` alone.
struct World {
    dialect: Dialect,
    database: Database,
    authority: Authority,
    home: Arc<Home>,
}

fn postgres() -> World {
    let authority = Authority::new();
    let (certificate, key) = authority.server("DNS:localhost", Some("postgres"));
    let settings = [
        ("ssl", "on".to_owned()),
        ("ssl_cert_file", certificate.display().to_string()),
        ("ssl_key_file", key.display().to_string()),
    ];
    World {
        dialect: POSTGRES,
        database: Database::postgres_with(None, &settings),
        authority,
        home: Arc::new(Home::new()),
    }
}

fn mysql() -> World {
    let authority = Authority::new();
    let (certificate, key) = authority.server("DNS:localhost", None);
    let settings = [
        ("ssl-cert", certificate.display().to_string()),
        ("ssl-key", key.display().to_string()),
    ];
    World {
        dialect: MYSQL,
        database: Database::mysql_with(None, &settings),
        authority,
        home: Arc::new(Home::new()),
    }
}

/// Where a database listens.
fn address(database: &Database) -> SocketAddr {
    let url = database.url();
    let (_, rest) = url.split_once('@').unwrap();
    rest.split('/').next().unwrap().parse().unwrap()
}

impl World {
    /// The database by another name of its machine, through another port.
    fn url(&self, host: &str, port: u16, mode: &str, authority: Option<&Path>) -> String {
        let real = address(&self.database).to_string();
        let url = self
            .database
            .url()
            .replace(&real, &format!("{host}:{port}"));
        let mut url = format!("{url}?{}={mode}", self.dialect.mode);
        if let Some(path) = authority {
            url = format!("{url}&{}={}", self.dialect.authority, path.display());
        }
        url
    }

    fn options(&self, url: &str) -> Options {
        let flag = format!("--{}-url", self.dialect.provider);
        let args = ["--tenant-provider", self.dialect.provider, &flag, url];
        Options::new().home(&self.home).args(&args)
    }

    /// Writes and reads a document through this URL; whether the document could be read on the way.
    fn is_seen(&self, host: &str, mode: &str, authority: Option<&Path>) -> bool {
        let recorder = Recorder::before(address(&self.database));
        let url = self.url(host, recorder.port(), mode, authority);
        let mut server = Server::start(self.options(&url));
        let client = server.client();
        client.create_tenant("acme");
        client.insert("acme", "notes", &json!({"text": CANARY}));
        let notes = client.documents("acme", "notes");
        assert_eq!(notes.len(), 1);
        client.delete("/api/tenants/acme").expect(204);
        assert!(notes.iter().all(|note| note["text"] == CANARY));
        assert!(server.terminate().success());
        assert!(recorder.len() > 2_000, "{} bytes", recorder.len());
        recorder.saw(CANARY.as_bytes())
    }

    /// The one line with which a start through this URL is refused.
    fn refusal(&self, url: &str) -> String {
        let refused = Server::refused(self.options(url)).expect(1);
        let errors = refused
            .stderr
            .lines()
            .filter(|line| line.starts_with("error: "));
        let errors: Vec<_> = errors.collect();
        assert_eq!(errors.len(), 1, "{}", refused.stderr);
        assert_eq!(refused.stderr.lines().last(), Some(errors[0]));
        println!("{}", errors[0]);
        errors[0].to_owned()
    }
}

fn nothing_in_the_clear(world: &World) {
    let authority = world.authority.certificate();
    let of_it = Some(authority.as_path());
    let dialect = &world.dialect;
    for (host, mode, authority) in [
        ("localhost", dialect.verify_full, of_it),
        // Not the name in the certificate, which these do not ask about.
        ("127.0.0.1", dialect.verify_ca, of_it),
        ("127.0.0.1", dialect.require, None),
    ] {
        assert!(!world.is_seen(host, mode, authority), "{mode} to {host}");
    }
    let seen = world.is_seen("127.0.0.1", dialect.disable, None);
    assert!(seen, "the recorder would not have noticed");
}

/// `plain` is a server of the same kind without TLS.
fn refusals(world: &World, plain: &Database, no_tls: &str) {
    let (other, port) = (Authority::new(), address(&world.database).port());
    let authority = world.authority.certificate();
    let missing = world.home.path().join("no-such.pem");
    let full = world.dialect.verify_full;
    for (host, authority, told) in [
        ("localhost", Some(&*other.certificate()), "UnknownIssuer"),
        ("localhost", None, "UnknownIssuer"),
        ("127.0.0.1", Some(&*authority), "not valid for name"),
        ("localhost", Some(&*missing), "no-such.pem"),
    ] {
        let line = world.refusal(&world.url(host, port, full, authority));
        assert!(line.contains(told), "{told}: {line}");
    }
    for mode in [world.dialect.require, full] {
        let url = world.url("localhost", address(plain).port(), mode, Some(&*authority));
        let line = world.refusal(&url);
        assert!(line.contains(no_tls), "{no_tls}: {line}");
    }
}

#[test]
fn nothing_goes_to_postgres_in_the_clear() {
    nothing_in_the_clear(&postgres());
}

#[test]
fn nothing_goes_to_mariadb_in_the_clear() {
    nothing_in_the_clear(&mysql());
}

#[test]
fn a_postgres_that_cannot_be_trusted_is_refused() {
    refusals(&postgres(), &Database::private_postgres(), "TLS");
}

#[test]
fn a_mariadb_that_cannot_be_trusted_is_refused() {
    refusals(&mysql(), &Database::private_mysql(), "TLS");
}

/// Somebody on the way says that the server has no TLS, which is how a connection would be listened to.
#[test]
fn who_denies_tls_on_the_way_is_told_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let told = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut question = [0; 8];
        client.read_exact(&mut question).unwrap();
        client.write_all(b"N").unwrap();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).unwrap();
        (question, rest)
    });
    let url = format!("postgres://nimbus:s3cret@127.0.0.1:{port}/x?sslmode=require");
    let args = ["--tenant-provider", "postgres", "--postgres-url", &url];
    let refused = Server::refused(Options::new().args(&args)).expect(1);
    assert!(refused.stderr.contains("TLS"), "{}", refused.stderr);
    assert!(!refused.stderr.contains("s3cret"), "{}", refused.stderr);
    let (question, rest) = told.join().unwrap();
    // SSLRequest, and not a word more.
    assert_eq!(question, [0, 0, 0, 8, 4, 210, 22, 47]);
    assert_eq!(rest, b"");
}
