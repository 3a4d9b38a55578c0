//! Starts servers and speaks HTTP to them, byte for byte.
//!
//! Knows no routes. The client sends exactly what a test wrote, repeated headers included.

use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use nimbus_auth::audit::{AuditOptions, MemoryAnchors};
use nimbus_auth::{AdminVerifier, AuditLog, TokenFile};
use nimbus_http::{FailedTokenLimits, Server, ServerConfig, Services, Stopped, Store};
use nimbus_runtime::{Runtime, RuntimeConfig, WorkerCommand};
use nimbus_storage::control::ControlDb;
use nimbus_storage::provider::combined::CombinedProvider;
use nimbus_storage::provider::redb::{RedbOptions, RedbProvider};
use nimbus_storage::provider::sqlite::{SqliteOptions, SqliteProvider};
use nimbus_storage::{Engine, EngineOptions, Provider};
use serde_json::{Value as Json, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running server with its files.
pub struct Fixture {
    pub dir: tempfile::TempDir,
    pub address: SocketAddr,
    pub token: String,
    pub token_path: PathBuf,
    pub audit_path: PathBuf,
    engine: Engine,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<Stopped>,
}

impl Fixture {
    pub async fn start() -> Fixture {
        Fixture::start_with(ServerConfig::default()).await
    }

    pub async fn start_with(mut config: ServerConfig) -> Fixture {
        // Tests of refusals send many wrong tokens; those of the slow-down set limits of their own.
        if config.failed_tokens == FailedTokenLimits::default() {
            config.failed_tokens = FailedTokenLimits::none();
        }
        let dir = tempfile::tempdir().unwrap();
        Fixture::start_on(dir, config, |provider| provider).await
    }

    /// Starts on a provider that `wrap` put around SQLite.
    pub async fn start_on(
        dir: tempfile::TempDir,
        config: ServerConfig,
        wrap: impl FnOnce(Arc<dyn Provider>) -> Arc<dyn Provider>,
    ) -> Fixture {
        let data = dir.path().join("data");
        std::fs::create_dir_all(&data).unwrap();
        let control = Arc::new(ControlDb::open(&data).unwrap());
        let home = SqliteProvider::open(SqliteOptions::new(&data), control.clone()).unwrap();
        // For tenants that are moved.
        let other = RedbProvider::open(RedbOptions::new(&data), control).unwrap();
        let providers = CombinedProvider::new(wrap(Arc::new(home)), vec![Arc::new(other)]);
        let engine = Engine::new(Arc::new(providers.unwrap()), EngineOptions::default());
        let token_path = dir.path().join("auth/token");
        let audit_path = dir.path().join("logs/access.jsonl");
        let token_file = TokenFile::load_or_create(&token_path).unwrap();
        let anchors = Arc::new(MemoryAnchors::default());
        let options = AuditOptions::default();
        let (audit, _) = AuditLog::open(&audit_path, &token_path, anchors, options).unwrap();
        let services = Services {
            store: Store::new(engine.clone()),
            verifier: Arc::new(AdminVerifier::new(&token_file)),
            token_path: token_path.clone(),
            audit: Arc::new(audit),
            // Functions are not run here: there is no such program.
            runtime: Runtime::new(RuntimeConfig::new(WorkerCommand {
                program: dir.path().join("no-worker"),
                args: Vec::new(),
            })),
            encryption: nimbus_http::EncryptionReport::disabled(),
            policies: None,
        };
        let loopback: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let server = Server::bind(&[loopback], config, services).await.unwrap();
        let address = server.local_addr();
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(server.run(async {
            // A dropped sender must not stop the server.
            if stopped.await.is_err() {
                std::future::pending::<()>().await;
            }
        }));
        let token = token_file.token().expose_secret().to_owned();
        Fixture {
            dir,
            address,
            token,
            token_path,
            audit_path,
            engine,
            stop: Some(stop),
            running,
        }
    }

    /// Asks the server to stop and waits for its end and the engine's.
    pub async fn stop(mut self) -> (tempfile::TempDir, Stopped) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        let stopped = self.ended().await;
        (self.dir, stopped)
    }

    /// Waits for the end of a server that was told to stop in another way.
    pub async fn ended(&mut self) -> Stopped {
        let stopped = tokio::time::timeout(PATIENCE, &mut self.running)
            .await
            .unwrap()
            .unwrap();
        self.engine.close().await.unwrap();
        stopped
    }

    /// Sends stop without waiting.
    pub fn tell_to_stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
    }

    pub fn is_running(&self) -> bool {
        !self.running.is_finished()
    }

    /// Sends a request with the right bearer token.
    pub async fn admin(&self, ask: Ask) -> Answer {
        self.send(ask.bearer(&self.token)).await
    }

    pub async fn send(&self, ask: Ask) -> Answer {
        self.raw(&ask.bytes()).await
    }

    /// Sends bytes on a new connection and reads one answer.
    pub async fn raw(&self, bytes: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // A server may refuse before it has read everything; the answer is what counts.
        let _ = stream.write_all(bytes).await;
        let head_only = bytes.starts_with(b"HEAD ");
        Answer::read(&mut stream, head_only).await
    }

    /// Creates a tenant.
    pub async fn tenant(&self, id: &str) {
        let answer = self
            .admin(Ask::post("/api/tenants").json(&json!({"id": id})))
            .await;
        assert_eq!(answer.status, 201, "{answer:?}");
    }

    /// Makes a key of a tenant; the credential and the id.
    pub async fn key(&self, tenant: &str, scope: &str) -> (String, String) {
        let path = format!("/api/tenants/{tenant}/keys");
        let ask = Ask::post(&path).json(&json!({"scope": scope}));
        let answer = self.admin(ask).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        let made = answer.json();
        let text = |name: &str| made[name].as_str().unwrap().to_owned();
        (text("key"), text("id"))
    }

    /// Makes a key of a tenant that has expired when this returns.
    pub async fn expired_key(&self, tenant: &str, scope: &str) -> String {
        let path = format!("/api/tenants/{tenant}/keys");
        let ask = Ask::post(&path).json(&json!({"scope": scope, "expiresInMs": 1}));
        let answer = self.admin(ask).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        let end = answer.json()["expiresMs"].as_i64().unwrap();
        while jiff::Timestamp::now().as_millisecond() < end {
            tokio::task::yield_now().await;
        }
        answer.json()["key"].as_str().unwrap().to_owned()
    }

    /// The engine below, for what no route does.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Inserts a document and returns its id.
    pub async fn insert(&self, tenant: &str, table: &str, fields: Json) -> String {
        let path = format!("/api/tenants/{tenant}/documents");
        let body = json!({"table": table, "fields": fields});
        let answer = self.admin(Ask::post(&path).json(&body)).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.json()["id"].as_str().unwrap().to_owned()
    }

    /// Everything that a refused request must leave as it was.
    pub async fn state(&self) -> Json {
        let tenants = self.admin(Ask::get("/api/tenants")).await.json();
        let mut heads = Vec::new();
        for tenant in tenants["tenants"].as_array().unwrap() {
            let tenant = tenant.as_str().unwrap();
            let journal = self
                .admin(Ask::get(&format!("/api/tenants/{tenant}/journal")))
                .await;
            heads.push(json!([tenant, journal.json()["latest_sequence"]]));
        }
        json!(heads)
    }

    /// The lines of the audit log.
    pub fn audit(&self) -> Vec<Json> {
        let text = std::fs::read_to_string(&self.audit_path).unwrap();
        text.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// The lines about one request, which was answered lately: the log is read from its end, as
    /// some tests make thousands of lines.
    pub fn audit_of(&self, request: &str) -> Vec<Json> {
        const TAIL: u64 = 64 * 1024;
        let mut file = std::fs::File::open(&self.audit_path).unwrap();
        let start = file.metadata().unwrap().len().saturating_sub(TAIL);
        file.seek(SeekFrom::Start(start)).unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        let about = text.lines().filter(|line| line.contains(request));
        let lines = about.map(|line| serde_json::from_str(line).unwrap());
        lines
            .filter(|line: &Json| line["requestId"] == request)
            .collect()
    }
}

/// A request under construction.
#[derive(Clone, Debug)]
pub struct Ask {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    content_type: Option<String>,
}

impl Ask {
    pub fn new(method: &str, path: &str) -> Ask {
        Ask {
            method: method.into(),
            path: path.into(),
            headers: Vec::new(),
            body: Vec::new(),
            content_type: None,
        }
    }

    pub fn get(path: &str) -> Ask {
        Ask::new("GET", path)
    }

    pub fn post(path: &str) -> Ask {
        Ask::new("POST", path)
    }

    pub fn header(mut self, name: &str, value: &str) -> Ask {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn bearer(self, token: &str) -> Ask {
        self.header("authorization", &format!("Bearer {token}"))
    }

    pub fn json(self, body: &Json) -> Ask {
        self.text(&body.to_string())
    }

    /// A JSON body as text.
    pub fn text(self, body: &str) -> Ask {
        self.body("application/json", body.as_bytes())
    }

    pub fn body(mut self, content_type: &str, body: &[u8]) -> Ask {
        self.content_type = Some(content_type.into());
        self.body = body.to_vec();
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut text = format!(
            "{} {} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n",
            self.method, self.path
        );
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(content_type) = &self.content_type {
            text.push_str(&format!("content-type: {content_type}\r\n"));
        }
        if !self.body.is_empty() || self.content_type.is_some() {
            text.push_str(&format!("content-length: {}\r\n", self.body.len()));
        }
        text.push_str("\r\n");
        let mut bytes = text.into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// An answer as it came.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
    /// Whether a chunked body ended without its last chunk.
    pub cut: bool,
}

impl Answer {
    /// Reads one answer; the body by its declared length, or by its chunks.
    pub async fn read(stream: &mut TcpStream, head_only: bool) -> Answer {
        let reading = async {
            let mut bytes = Vec::new();
            let head = loop {
                if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                    break end;
                }
                let mut chunk = vec![0; 4096];
                let count = stream.read(&mut chunk).await.unwrap();
                assert!(
                    count > 0,
                    "the server closed without an answer: {:?}",
                    String::from_utf8_lossy(&bytes)
                );
                bytes.extend_from_slice(&chunk[..count]);
            };
            let text = String::from_utf8(bytes[..head].to_vec()).unwrap();
            let mut lines = text.split("\r\n");
            let status = lines
                .next()
                .unwrap()
                .split(' ')
                .nth(1)
                .unwrap()
                .parse()
                .unwrap();
            let headers: Vec<(String, String)> = lines
                .map(|line| line.split_once(": ").unwrap())
                .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
                .collect();
            let mut body = bytes[head + 4..].to_vec();
            let chunked = ("transfer-encoding".to_owned(), "chunked".to_owned());
            if headers.contains(&chunked) && !head_only {
                let (body, cut) = read_chunks(stream, body).await;
                // Everything is text but backups, which no test here looks into.
                let body = String::from_utf8_lossy(&body).into_owned();
                return Answer {
                    status,
                    headers,
                    body,
                    cut,
                };
            }
            let declared = headers.iter().find(|(name, _)| name == "content-length");
            let length: usize = declared.map_or(0, |(_, value)| value.parse().unwrap());
            while !head_only && body.len() < length {
                let mut chunk = vec![0; 65_536];
                let count = stream.read(&mut chunk).await.unwrap();
                assert!(count > 0, "the body ended early");
                body.extend_from_slice(&chunk[..count]);
            }
            Answer {
                status,
                headers,
                body: String::from_utf8(body).unwrap(),
                cut: false,
            }
        };
        tokio::time::timeout(PATIENCE, reading)
            .await
            .expect("no answer")
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.headers.iter().filter(|(key, _)| key == name);
        let first = found.next().map(|(_, value)| value.as_str());
        assert!(found.next().is_none(), "{name} is repeated");
        first
    }

    pub fn json(&self) -> Json {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub fn request_id(&self) -> &str {
        self.header("x-request-id")
            .unwrap_or_else(|| panic!("no request id: {self:?}"))
    }

    /// Asserts the error shape of convex.md 1.5 and returns its message.
    #[track_caller]
    pub fn expect_convex(&self, status: u16, code: &str) -> String {
        assert_eq!(self.status, status, "{self:?}");
        let media = self.header("content-type");
        assert_eq!(media, Some("application/json"), "{self:?}");
        let error = self.json();
        assert_eq!(error["code"], code, "{self:?}");
        assert_eq!(error.as_object().unwrap().len(), 2, "{self:?}");
        error["message"].as_str().unwrap().to_owned()
    }

    /// Asserts the error envelope of nimbus.md 2.11 and returns its detail.
    #[track_caller]
    pub fn expect_error(&self, status: u16, code: &str) -> Json {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(
            self.header("content-type"),
            Some("application/json"),
            "{self:?}"
        );
        let body = self.json();
        let error = body["error"]
            .as_object()
            .unwrap_or_else(|| panic!("no envelope: {self:?}"));
        assert_eq!(body.as_object().unwrap().len(), 1, "{self:?}");
        assert_eq!(error["code"], code, "{self:?}");
        assert_eq!(error["requestId"], self.request_id(), "{self:?}");
        assert!(
            error["message"]
                .as_str()
                .is_some_and(|text| !text.is_empty()),
            "{self:?}"
        );
        assert!(
            error["timestamp"].as_str().unwrap().ends_with('Z'),
            "{self:?}"
        );
        assert!(["fatal", "error", "warning"].contains(&error["severity"].as_str().unwrap()));
        assert!(
            error["retryable"].is_boolean() && error.contains_key("detail"),
            "{self:?}"
        );
        error["detail"].clone()
    }
}

/// What the chunks of a body hold (RFC 9112 7.1), and whether the last one is missing.
async fn read_chunks(stream: &mut TcpStream, mut bytes: Vec<u8>) -> (Vec<u8>, bool) {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        if let Some(end) = bytes[at..].windows(2).position(|window| window == b"\r\n") {
            let size = std::str::from_utf8(&bytes[at..at + end]).unwrap();
            let size = usize::from_str_radix(size, 16).unwrap();
            let start = at + end + 2;
            if bytes.len() >= start + size + 2 {
                body.extend_from_slice(&bytes[start..start + size]);
                assert_eq!(&bytes[start + size..start + size + 2], b"\r\n");
                at = start + size + 2;
                if size == 0 {
                    return (body, false);
                }
                continue;
            }
        }
        bytes.drain(..at);
        at = 0;
        let mut more = vec![0; 65_536];
        match stream.read(&mut more).await {
            Ok(0) | Err(_) => return (body, true),
            Ok(count) => bytes.extend_from_slice(&more[..count]),
        }
    }
}
