//! Tests of the audit log as a file: content of the lines, modes, links, damage and concurrency.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;

use serde_json::{Value, json};

use super::*;

fn fixture() -> (tempfile::TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("state/nimbus/logs/access.jsonl");
    (temp, path)
}

/// An entry with the least in it.
fn entry() -> AuditEntry<'static> {
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
    let (_temp, path) = fixture();
    let log = AuditLog::open(&path).unwrap();
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
    log.sync().unwrap();
    let expected = concat!(
        r#"{"ts":"2026-06-10T17:03:21.042Z","routeFamily":"native_api","tenantId":"demo","#,
        r#""authScope":"server_access","authMethod":"local_admin_bearer","success":true,"#,
        r#""origin":"http://localhost:3000","reason":"authorized","method":"GET","#,
        r#""path":"/api/tenants/demo/schema","status":200,"requestId":"req-7","clientAddr":"2001:db8::1"}"#,
        "\n",
        r#"{"ts":"2026-06-10T16:46:40.000Z","routeFamily":"native_api","tenantId":null,"#,
        r#""authScope":"server_access","authMethod":null,"success":false,"#,
        r#""origin":null,"reason":"auth.credential_missing","method":"GET","#,
        r#""path":"/api/tenants","status":401,"requestId":null,"clientAddr":null}"#,
        "\n",
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), expected);
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
    let (_temp, path) = fixture();
    let log = AuditLog::open(&path).unwrap();
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
    let text = fs::read_to_string(&path).unwrap();
    assert!(
        text.bytes()
            .all(|b| b == b'\n' || (0x20..0x7f).contains(&b))
    );
    assert!(!text.contains("secret"));
    let found = lines(&path);
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
    let (_temp, path) = fixture();
    let log = AuditLog::open(&path).unwrap();
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
    let text = fs::read_to_string(&path).unwrap();
    assert!(!text.contains(&secret[..6]), "{text}");
    for field in ["origin", "reason", "method", "path", "requestId"] {
        assert_eq!(
            lines(&path)[0][field],
            json!("nimbus_at_(redacted)"),
            "{field}"
        );
    }
}

#[test]
fn reopening_appends() {
    let (_temp, path) = fixture();
    for _ in 0..2 {
        AuditLog::open(&path).unwrap().record(&entry()).unwrap();
    }
    assert_eq!(lines(&path).len(), 2);
}

#[test]
fn a_line_torn_by_a_crash_spoils_only_itself() {
    let (_temp, path) = fixture();
    let log = AuditLog::open(&path).unwrap();
    log.record(&entry()).unwrap();
    drop(log);
    let whole = fs::metadata(&path).unwrap().len();
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(whole - 10)
        .unwrap();
    let log = AuditLog::open(&path).unwrap();
    log.record(&entry()).unwrap();
    log.record(&entry()).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let good = text
        .lines()
        .filter(|line| serde_json::from_str::<Value>(line).is_ok())
        .count();
    assert_eq!((text.lines().count(), good), (3, 2), "{text}");
}

/// A writer that follows a script: bytes to take at most, or a failure.
struct Scripted {
    script: Vec<Result<usize, io::ErrorKind>>,
    taken: Vec<u8>,
    calls: usize,
}

impl Write for Scripted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.calls += 1;
        let step = if self.script.is_empty() {
            Ok(usize::MAX)
        } else {
            self.script.remove(0)
        };
        let count = step?.min(bytes.len());
        self.taken.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn short_writes_are_completed_or_reported() {
    use io::ErrorKind::{Interrupted, StorageFull, WriteZero};
    // (script, calls, bytes taken, failure)
    let table = [
        (vec![], 1, 6, None),
        (vec![Ok(2)], 2, 6, None),
        (vec![Ok(1), Ok(1)], 3, 6, None),
        (vec![Err(Interrupted)], 2, 6, None),
        (vec![Ok(3), Err(Interrupted)], 3, 6, None),
        (vec![Err(StorageFull)], 1, 0, Some(StorageFull)),
        (vec![Ok(4), Err(StorageFull)], 2, 4, Some(StorageFull)),
        (vec![Ok(0)], 1, 0, Some(WriteZero)),
        (vec![Ok(5), Ok(0)], 2, 5, Some(WriteZero)),
    ];
    for (script, calls, taken, failure) in table {
        let mut writer = Scripted {
            script: script.clone(),
            taken: Vec::new(),
            calls: 0,
        };
        let (written, outcome) = write_line(&mut writer, b"12345\n");
        assert_eq!(
            (writer.calls, written, writer.taken.len()),
            (calls, taken, taken),
            "{script:?}"
        );
        assert_eq!(
            outcome.err().map(|error| error.kind()),
            failure,
            "{script:?}"
        );
        assert_eq!(writer.taken, b"12345\n"[..taken], "{script:?}");
    }
}

#[test]
fn an_entry_after_a_failed_write_starts_its_own_line() {
    use io::ErrorKind::StorageFull;
    // (script of the first entry and what follows, whole lines, all lines)
    let table = [
        (vec![Ok(20), Err(StorageFull)], 1, 2),
        (vec![Err(StorageFull)], 1, 1),
        // The second entry fails after the newline that ends the torn line.
        (
            vec![Ok(20), Err(StorageFull), Ok(1), Err(StorageFull)],
            1,
            2,
        ),
        (
            vec![Ok(20), Err(StorageFull), Ok(9), Err(StorageFull)],
            1,
            3,
        ),
    ];
    for (script, whole, all) in table {
        let failures = script.iter().filter(|step| step.is_err()).count();
        let mut writer = Scripted {
            script: script.clone(),
            taken: Vec::new(),
            calls: 0,
        };
        let mut state = State::default();
        for index in 0..=failures {
            let outcome = state.append(&entry(), &mut writer, Path::new("log"));
            assert_eq!(outcome.is_err(), index < failures, "{script:?}");
        }
        let text = String::from_utf8(writer.taken).unwrap();
        let good = text
            .lines()
            .filter(|line| serde_json::from_str::<Value>(line).is_ok())
            .count();
        assert_eq!(
            (good, text.lines().count()),
            (whole, all),
            "{script:?}: {text}"
        );
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_reported_for_each_entry() {
    let (_temp, path) = fixture();
    let log = AuditLog {
        path,
        file: File::options().append(true).open("/dev/full").unwrap(),
        state: Mutex::default(),
    };
    for _ in 0..2 {
        let error = log.record(&entry()).unwrap_err();
        let AuditError::Write {
            written: 0,
            expected,
            source,
            ..
        } = &error
        else {
            panic!("{error}");
        };
        assert!(*expected > 200);
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
    }
}

#[test]
fn lines_of_many_threads_and_openings_stay_whole() {
    let (_temp, path) = fixture();
    let shared = AuditLog::open(&path).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8_u16 {
            let (shared, path) = (&shared, &path);
            scope.spawn(move || {
                let own = AuditLog::open(path).unwrap();
                let text = format!("/{}", "x".repeat(usize::from(thread) * 100));
                for index in 0..100 {
                    let log = if index % 2 == 0 { shared } else { &own };
                    let entry = AuditEntry {
                        status: thread,
                        path: &text,
                        ..entry()
                    };
                    log.record(&entry).unwrap();
                }
            });
        }
    });
    let found = lines(&path);
    assert_eq!(found.len(), 800);
    for line in found {
        let thread = usize::try_from(line["status"].as_u64().unwrap()).unwrap();
        assert_eq!(line["path"].as_str().unwrap().len(), 1 + thread * 100);
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
        let (temp, path) = fixture();
        AuditLog::open(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        for step in ["state", "state/nimbus", "state/nimbus/logs"] {
            assert_eq!(mode(&temp.path().join(step)), 0o700, "{step}");
        }
    }

    #[test]
    fn looser_modes_are_refused_with_the_repair() {
        let (_temp, path) = fixture();
        AuditLog::open(&path).unwrap();
        let parent = path.parent().unwrap();
        for bad in [0o640, 0o604, 0o622, 0o666] {
            set_mode(&path, bad);
            let text = AuditLog::open(&path).unwrap_err().to_string();
            assert!(
                text.ends_with(&format!("run `chmod 600 {}`", path.display())),
                "{text}"
            );
        }
        set_mode(&path, 0o600);
        set_mode(parent, 0o755);
        let text = AuditLog::open(&path).unwrap_err().to_string();
        assert!(
            text.ends_with(&format!("run `chmod 700 {}`", parent.display())),
            "{text}"
        );
    }

    #[test]
    fn links_are_refused_and_their_targets_left_alone() {
        let (temp, path) = fixture();
        AuditLog::open(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let target = temp.path().join("target");
        symlink(&target, &path).unwrap();
        for existing in [false, true] {
            if existing {
                fs::write(&target, "kept").unwrap();
                set_mode(&target, 0o600);
            }
            let found = AuditLog::open(&path);
            assert!(
                matches!(
                    found,
                    Err(AuditError::Open(PrivateFileError::Symlink { .. }))
                ),
                "{found:?}"
            );
        }
        assert_eq!(fs::read_to_string(&target).unwrap(), "kept");
    }
}
