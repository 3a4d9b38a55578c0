//! Tests of the audit log: content of the lines, modes and links here; its life in `lifecycle`, and
//! changes by others in `tamper`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::Path;

use jiff::Timestamp;
use nimbus_core::TenantId;
use serde_json::{Value, json};

use super::*;
use crate::context::{AuthMethod, RequestId};

mod lifecycle;
mod tamper;

/// A log with its key and anchors, which outlives its openings.
pub(crate) struct Fixture {
    _temp: Option<tempfile::TempDir>,
    pub(crate) path: PathBuf,
    pub(crate) token: PathBuf,
    pub(crate) anchors: Arc<MemoryAnchors>,
    pub(crate) options: AuditOptions,
}

impl Fixture {
    pub(crate) fn new() -> Fixture {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("state/nimbus/logs/access.jsonl");
        Fixture {
            _temp: Some(temp),
            ..Fixture::at(&path)
        }
    }

    /// A log at this path, its key in the directory `keys` beside its directory.
    pub(crate) fn at(path: &Path) -> Fixture {
        let above = path.parent().unwrap().parent().unwrap();
        Fixture {
            _temp: None,
            path: path.to_path_buf(),
            token: above.join("keys/token"),
            anchors: Arc::default(),
            options: AuditOptions {
                segment_bytes: 1 << 20,
                ..AuditOptions::default()
            },
        }
    }

    pub(crate) fn open(&self) -> AuditLog {
        self.try_open().unwrap().0
    }

    fn try_open(&self) -> Result<(AuditLog, Recovered), AuditError> {
        let anchors = Arc::clone(&self.anchors) as Arc<dyn AnchorStore>;
        AuditLog::open(&self.path, &self.token, anchors, self.options.clone())
    }

    /// Writes `count` lines in one opening.
    fn write(&self, count: usize) {
        let log = self.open();
        for _ in 0..count {
            log.record(&entry()).unwrap();
        }
    }

    /// Writes a line and waits until the reserve is there.
    fn write_with_reserve(&self) {
        let log = self.open();
        log.record(&entry()).unwrap();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        while !self.dir().join("access.next").exists() {
            assert!(std::time::Instant::now() < deadline, "no reserve");
            std::thread::yield_now();
        }
    }

    fn key(&self) -> ChainKey {
        ChainKey::load(&self.token).unwrap().unwrap()
    }

    fn anchor(&self) -> Option<Anchor> {
        Anchor::load(self.anchors.as_ref(), &self.key()).unwrap()
    }

    fn verify(&self) -> Verification {
        verify(&self.path, &self.key(), self.anchor(), |_| {
            Ok::<(), AuditError>(())
        })
        .unwrap()
    }

    fn dir(&self) -> &Path {
        self.path.parent().unwrap()
    }

    /// The names in the log's directory but for lock and reserve, sorted.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names
            .filter(|name| !["access.lock", "access.next"].contains(&name.as_str()))
            .collect();
        names.sort();
        names
    }
}

/// An entry with the least in it.
pub(crate) fn entry() -> AuditEntry<'static> {
    AuditEntry {
        ts: Timestamp::from_millisecond(1_781_110_000_000).unwrap(),
        route_family: RouteFamily::NativeApi,
        tenant_id: None,
        auth_scope: AuthScope::ServerAccess,
        auth_method: None,
        success: false,
        origin: None,
        reason: "auth.credential_missing",
        method: "GET",
        path: "/api/tenants",
        status: 401,
        request_id: None,
        client_addr: None,
    }
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'));
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[test]
fn a_line_has_every_field_in_order() {
    let fixture = Fixture::new();
    let (log, path) = (fixture.open(), &fixture.path);
    let tenant: TenantId = "demo".parse().unwrap();
    let request: RequestId = "req-7".parse().unwrap();
    log.record(&AuditEntry {
        ts: "2026-06-10T17:03:21.0429Z".parse().unwrap(),
        tenant_id: Some(&tenant),
        auth_method: Some(AuthMethod::LocalAdminBearer),
        success: true,
        origin: Some("http://localhost:3000"),
        reason: "authorized",
        path: "/api/tenants/demo/schema",
        status: 200,
        request_id: Some(&request),
        client_addr: Some("2001:db8::1".parse().unwrap()),
        ..entry()
    })
    .unwrap();
    log.record(&entry()).unwrap();
    let expected = [
        concat!(
            r#"{"ts":"2026-06-10T17:03:21.042Z","routeFamily":"native_api","tenantId":"demo","#,
            r#""authScope":"server_access","authMethod":"local_admin_bearer","success":true,"#,
            r#""origin":"http://localhost:3000","reason":"authorized","method":"GET","#,
            r#""path":"/api/tenants/demo/schema","status":200,"requestId":"req-7","clientAddr":"2001:db8::1","seq":1"#,
        ),
        concat!(
            r#"{"ts":"2026-06-10T16:46:40.000Z","routeFamily":"native_api","tenantId":null,"#,
            r#""authScope":"server_access","authMethod":null,"success":false,"#,
            r#""origin":null,"reason":"auth.credential_missing","method":"GET","#,
            r#""path":"/api/tenants","status":401,"requestId":null,"clientAddr":null,"seq":2"#,
        ),
    ];
    let text = fs::read_to_string(path).unwrap();
    let found: Vec<_> = text
        .lines()
        .map(|line| line.split_once(r#","mac":""#).unwrap())
        .collect();
    assert_eq!(
        found.iter().map(|(body, _)| *body).collect::<Vec<_>>(),
        expected
    );
    for (_, mac) in found {
        let digits = mac.strip_suffix("\"}").unwrap();
        assert!(
            digits.len() == 64 && digits.bytes().all(|b| b.is_ascii_hexdigit()),
            "{mac}"
        );
    }
    assert_eq!(log.path(), path);
}

#[test]
fn the_words_are_those_of_the_specification() {
    use RouteFamily::*;
    let families = [
        (Health, "health"),
        (Demos, "demos"),
        (Ui, "ui"),
        (UiAuthSession, "ui_auth_session"),
        (NativeApi, "native_api"),
        (Debug, "debug"),
        (DeployAdmin, "deploy_admin"),
        (NativeWebsocket, "native_websocket"),
        (ConvexHttp, "convex_http"),
        (ConvexWebsocket, "convex_websocket"),
        (FirebaseRest, "firebase_rest"),
        (FirebaseGrpc, "firebase_grpc"),
        (FirebaseGrpcWeb, "firebase_grpc_web"),
        (FirebaseWebsocket, "firebase_websocket"),
        (Unknown, "unknown"),
    ];
    for (family, word) in families {
        assert_eq!(family.as_str(), word);
    }
    let scopes = [
        (AuthScope::ServerAccess, "server_access"),
        (AuthScope::Origin, "origin"),
        (AuthScope::Session, "session"),
    ];
    for (scope, word) in scopes {
        assert_eq!(scope.as_str(), word);
    }
    let methods = [
        (AuthMethod::LocalAdminBearer, "local_admin_bearer"),
        (AuthMethod::LocalAdminHeader, "local_admin_header"),
        (AuthMethod::LocalSessionCookie, "local_session_cookie"),
        (AuthMethod::LocalAdminTokenPost, "local_admin_token_post"),
        (AuthMethod::LaunchTicket, "launch_ticket"),
        (AuthMethod::TokenRotation, "token_rotation"),
        (
            AuthMethod::LocalAdminBearerOrSession,
            "local_admin_bearer_or_session",
        ),
        (AuthMethod::LocalTokenFile, "local_token_file"),
    ];
    for (method, word) in methods {
        assert_eq!(method.as_str(), word);
    }
}

#[test]
fn what_a_client_sends_is_cut_and_cannot_make_lines() {
    let fixture = Fixture::new();
    let (log, path) = (fixture.open(), &fixture.path);
    let long = format!("/{}", "\u{e9}".repeat(2000));
    let hostile = "/a\r\n{\"success\":true}\u{1b}[2J\u{9b}";
    log.record(&AuditEntry {
        path: &long,
        origin: Some(&long),
        reason: &long,
        method: &long,
        ..entry()
    })
    .unwrap();
    log.record(&AuditEntry {
        path: hostile,
        origin: Some(hostile),
        ..entry()
    })
    .unwrap();
    let queries = [
        "/api?token=secret",
        "/api#token=secret",
        "/api?a=b?c#d",
        "?",
        "",
    ];
    for path in queries {
        log.record(&AuditEntry { path, ..entry() }).unwrap();
    }
    let text = fs::read_to_string(path).unwrap();
    assert!(
        text.bytes()
            .all(|b| b == b'\n' || (0x20..0x7f).contains(&b))
    );
    assert!(!text.contains("secret"));
    let found = lines(path);
    let length = |field: &str| found[0][field].as_str().unwrap().len();
    assert_eq!(
        ["path", "origin", "reason", "method"].map(length),
        [1023, 255, 255, 31]
    );
    assert_eq!(found[1]["path"], json!(hostile));
    assert_eq!(found[1]["success"], json!(false));
    let paths: Vec<_> = found[2..]
        .iter()
        .map(|line| line["path"].as_str().unwrap())
        .collect();
    assert_eq!(paths, ["/api", "/api", "/api", "", ""]);
}

#[test]
fn no_field_can_carry_a_token() {
    let fixture = Fixture::new();
    let (log, path) = (fixture.open(), &fixture.path);
    let secret = "A1b2-_".repeat(7) + "x";
    let token = format!("nimbus_at_{secret}");
    let request: RequestId = token.parse().unwrap();
    log.record(&AuditEntry {
        origin: Some(&token),
        reason: &token,
        method: &token,
        path: &token,
        request_id: Some(&request),
        ..entry()
    })
    .unwrap();
    let text = fs::read_to_string(path).unwrap();
    assert!(!text.contains(&secret[..6]), "{text}");
    for field in ["origin", "reason", "method", "path", "requestId"] {
        assert_eq!(
            lines(path)[0][field],
            json!("nimbus_at_(redacted)"),
            "{field}"
        );
    }
}

#[cfg(unix)]
mod unix {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn the_log_belongs_to_its_owner_alone() {
        let fixture = Fixture::new();
        fixture.write_with_reserve();
        for name in ["access.jsonl", "access.lock", "access.next"] {
            assert_eq!(mode(&fixture.dir().join(name)), 0o600, "{name}");
        }
        for step in fixture.dir().ancestors().take(3) {
            assert_eq!(mode(step), 0o700, "{}", step.display());
        }
    }

    #[test]
    fn looser_modes_are_refused_with_the_repair() {
        let fixture = Fixture::new();
        fixture.write(1);
        for bad in [0o640, 0o604, 0o622, 0o666] {
            set_mode(&fixture.path, bad);
            let text = fixture.try_open().unwrap_err().to_string();
            let repair = format!("run `chmod 600 {}`", fixture.path.display());
            assert!(text.ends_with(&repair), "{text}");
        }
        set_mode(&fixture.path, 0o600);
        set_mode(fixture.dir(), 0o755);
        let text = fixture.try_open().unwrap_err().to_string();
        let repair = format!("run `chmod 700 {}`", fixture.dir().display());
        assert!(text.ends_with(&repair), "{text}");
    }

    #[test]
    fn links_are_refused_and_their_targets_left_alone() {
        for name in ["access.jsonl", "access.lock"] {
            let fixture = Fixture::new();
            fixture.write(1);
            let path = fixture.dir().join(name);
            fs::remove_file(&path).unwrap();
            let target = fixture.dir().join("target");
            symlink(&target, &path).unwrap();
            for existing in [false, true] {
                if existing {
                    fs::write(&target, "kept").unwrap();
                    set_mode(&target, 0o600);
                }
                let found = fixture.try_open();
                let refused = matches!(
                    found,
                    Err(AuditError::Open(PrivateFileError::Symlink { .. }))
                );
                assert!(refused, "{name}: {found:?}");
            }
            assert_eq!(fs::read_to_string(&target).unwrap(), "kept");
        }
    }

    #[test]
    fn a_link_in_the_place_of_the_reserve_is_not_followed() {
        let fixture = Fixture::new();
        fixture.write_with_reserve();
        let spare = fixture.dir().join("access.next");
        let target = fixture.dir().join("target");
        fs::remove_file(&spare).unwrap();
        fs::write(&target, "kept").unwrap();
        symlink(&target, &spare).unwrap();
        // The log works without a reserve.
        fixture.write(1);
        assert_eq!(fs::read_to_string(&target).unwrap(), "kept");
        assert_eq!(lines(&fixture.path).len(), 2);
    }
}
