//! The admin token on the disk: how it is made, when it is refused, how a new one comes into force.
//!
//! It must not know the token's format beyond what seed 000 and nimbus.md 4 publish.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use nimbus_e2e::http::assert_rfc3339;
use nimbus_e2e::{Finished, Home, Options, Server, files};
use serde_json::json;

/// A home with a token, and no server.
fn booted() -> Arc<Home> {
    let mut server = Server::start(Options::new());
    assert!(server.terminate().success());
    Arc::clone(server.home())
}

fn refused(home: &Arc<Home>) -> Finished {
    let finished = Server::refused(Options::new().home(home));
    assert_eq!(finished.code, Some(1));
    let path = home.token_file();
    let dir = path.parent().unwrap().to_str().unwrap();
    finished.says(&[dir])
}

#[test]
fn the_first_start_makes_a_private_token_and_does_not_show_it() {
    let server = Server::start(Options::new());
    let home = server.home();
    let path = home.token_file();
    assert_eq!(files::mode(&path), 0o600);
    assert_eq!(files::mode(path.parent().unwrap()), 0o700);
    let json = home.token_json();
    let token = home.token();
    assert!(
        token.starts_with("nimbus_at_") && token.len() == 10 + 43,
        "{}",
        token.len()
    );
    assert_eq!(json["version"], 1);
    assert_eq!(json["generation"], 1);
    assert_eq!(json["scope"], "local-admin");
    assert_rfc3339(json["issuedAt"].as_str().unwrap());
    assert_eq!(json.get("rotatedAt"), None);
    // The first start says where the token is, and nothing says what it is.
    let log = server.log();
    assert!(log.contains(path.to_str().unwrap()), "{log}");
    assert!(!log.contains(&token[10..]));
    let printed = home.run(["auth", "token"]).expect(0);
    assert_eq!(printed.stdout, format!("{token}\n"));
    assert!(!printed.stderr.contains(&token[10..]));
}

#[test]
fn a_token_file_that_others_could_use_is_refused() {
    let home = booted();
    let (path, elsewhere) = (home.token_file(), home.path().join("elsewhere"));
    let dir = path.parent().unwrap();
    let sound = fs::read(&path).unwrap();
    for mode in [0o640, 0o604, 0o644, 0o660, 0o666] {
        files::set_mode(&path, mode);
        refused(&home).says(&["chmod 600"]);
        home.run(["auth", "token"]).expect(1).says(&["chmod 600"]);
        assert_eq!(files::mode(&path), mode, "it was changed");
    }
    files::set_mode(&path, 0o600);
    for mode in [0o750, 0o705, 0o755, 0o777] {
        files::set_mode(dir, mode);
        refused(&home).says(&["chmod 700"]);
        files::set_mode(dir, 0o700);
    }
    // A link, even to a sound file.
    fs::rename(&path, &elsewhere).unwrap();
    symlink(&elsewhere, &path).unwrap();
    refused(&home).says(&["symbolic link"]);
    home.run(["auth", "rotate-admin"])
        .expect(1)
        .says(&["symbolic link"]);
    assert_eq!(fs::read(&elsewhere).unwrap(), sound);
    // A dangling link is not followed to make a file.
    fs::remove_file(&elsewhere).unwrap();
    refused(&home).says(&["symbolic link"]);
    assert!(!elsewhere.exists());
    fs::remove_file(&path).unwrap();
    // A linked directory.
    let real = home.path().join("real");
    fs::rename(dir, &real).unwrap();
    symlink(&real, dir).unwrap();
    refused(&home).says(&["symbolic link"]);
    fs::remove_file(dir).unwrap();
    fs::rename(&real, dir).unwrap();
    fs::write(&path, &sound).unwrap();
    files::set_mode(&path, 0o600);
    assert!(
        Server::start(Options::new().home(&home))
            .terminate()
            .success()
    );
}

#[test]
fn a_damaged_token_file_is_refused_and_kept() {
    let home = booted();
    let path = home.token_file();
    let (sound, token) = (fs::read(&path).unwrap(), home.token());
    let edited = |from: &str, to: &str| {
        String::from_utf8(sound.clone())
            .unwrap()
            .replace(from, to)
            .into_bytes()
    };
    let damaged: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("truncated", sound[..sound.len() / 2].to_vec()),
        ("without its end", sound[..sound.len() - 3].to_vec()),
        ("zeroes", vec![0; 200]),
        ("not UTF-8", vec![0xff; 200]),
        ("something else", b"[]".to_vec()),
        ("longer than any", vec![b' '; 1 << 20]),
        ("a short token", edited(&token, &token[..40])),
        ("another prefix", edited("nimbus_at_", "nimbus_xx_")),
        (
            "generation 0",
            edited("\"generation\": 1", "\"generation\": 0"),
        ),
        (
            "another version",
            edited("\"version\": 1", "\"version\": 2"),
        ),
        ("another scope", edited("local-admin", "local-guest")),
    ];
    for (name, bytes) in &damaged {
        assert_ne!(*bytes, sound, "{name} is not damaged");
        fs::write(&path, bytes).unwrap();
        for finished in [refused(&home), home.run(["auth", "token"]).expect(1)] {
            let finished = finished.says(&["nimbus auth rotate-admin"]);
            assert!(
                !finished.stderr.contains(&token[10..]),
                "{name} shows the token"
            );
            assert_eq!(finished.stdout, "", "{name}");
        }
        assert_eq!(fs::read(&path).unwrap(), *bytes, "{name} was overwritten");
    }
    // Rotation mends it, and what was there is kept.
    let last = &damaged.last().unwrap().1;
    home.run(["auth", "rotate-admin"]).expect(0);
    let kept = files::all_below(path.parent().unwrap());
    assert!(
        kept.iter().any(|file| fs::read(file).unwrap() == *last),
        "{kept:?}"
    );
    let mut server = Server::start(Options::new().home(&home));
    server.client().get("/api/tenants").expect(200);
    assert!(server.terminate().success());
}

#[test]
fn offline_rotation_comes_into_force_with_the_restart() {
    let mut server = Server::start(Options::new());
    let home = Arc::clone(server.home());
    let (first, old) = (home.token(), server.client());
    let rotated = home
        .run(["auth", "rotate-admin", "-f", "json"])
        .expect(0)
        .json();
    assert_eq!(rotated["generation"], 2);
    assert_eq!(rotated["path"], home.token_file().to_str().unwrap());
    assert_rfc3339(rotated["rotatedAt"].as_str().unwrap());
    assert_eq!(files::mode(&home.token_file()), 0o600);
    let new = server.client();
    old.get("/api/tenants").expect(200);
    new.get("/api/tenants").refused(401, "auth.unauthorized");
    assert!(server.terminate().success());
    server.restart();
    let new = server.client();
    let old = new.with_token(Some(first));
    new.get("/api/tenants").expect(200);
    old.get("/api/tenants").refused(401, "auth.unauthorized");
}

#[test]
fn live_rotation_comes_into_force_at_once() {
    let mut server = Server::start(Options::new());
    let home = Arc::clone(server.home());
    let (first, old) = (home.token(), server.client());
    // Only the bearer form may rotate.
    let by_header = server.anonymous();
    let reply = by_header
        .send_with(
            "POST",
            "/api/system/token/rotate",
            &[("x-nimbus-admin-token", &first)],
            None,
        )
        .unwrap();
    reply.refused(401, "auth.unauthorized");
    assert_eq!(home.token(), first);

    let reply = old.post_empty("/api/system/token/rotate").expect(200);
    assert_eq!(reply.json(), json!({"generation": 2}));
    old.get("/api/tenants").refused(401, "auth.unauthorized");
    old.post_empty("/api/system/token/rotate")
        .refused(401, "auth.unauthorized");
    let new = server.client();
    new.get("/api/tenants").expect(200);
    assert_eq!(home.token_json()["generation"], 2);
    assert_rfc3339(home.token_json()["rotatedAt"].as_str().unwrap());
    assert_eq!(files::mode(&home.token_file()), 0o600);
    assert!(!left_over(home.token_file().parent().unwrap()));
    assert!(server.terminate().success());
    // A live rotation counts for the network gate.
    let options = Options::new().home(&home);
    let public = options.args(&["--host", "0.0.0.0", "--allow-network"]);
    let server = Server::start(public);
    server.client().get("/api/tenants").expect(200);
}

/// Whether an unfinished file lies beside the token.
fn left_over(dir: &Path) -> bool {
    let names = files::names(dir);
    names.iter().any(|name| name.contains("tmp"))
}
