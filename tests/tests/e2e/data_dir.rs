//! Data directories that cannot be used: held, read-only, no directory at all.
//!
//! It must not know how a directory is locked.

use std::fs;
use std::os::unix::fs::symlink;
use std::sync::Arc;

use nimbus_e2e::mount::{Mount, switched_off};
use nimbus_e2e::{Home, Options, Server, files};
use serde_json::json;

#[test]
fn a_data_directory_has_one_server() {
    let mut server = Server::start(Options::new());
    server.client().create_tenant("acme");
    let home = Arc::clone(server.home());
    let before = files::names(&server.data_dir());
    let (pid, address) = (server.pid().to_string(), server.address().to_string());
    // By another user's home, and by another spelling of the path.
    let again = home.data_dir().join("../data/.");
    for options in [
        Options::new().data_dir(server.data_dir()),
        Options::new().home(&home).data_dir(again),
    ] {
        let finished = Server::refused(options).says(&[&pid, &address, "held"]);
        assert_eq!(finished.code, Some(1));
    }
    // The control directory is held like the data directory.
    let apart = Options::new().args(&["--control-data-dir", server.data_dir().to_str().unwrap()]);
    Server::refused(apart).says(&[&pid, &address]);
    assert_eq!(files::names(&server.data_dir()), before);
    server.client().insert("acme", "notes", &json!({}));
    // A killed server leaves no hold behind.
    server.kill9();
    server.restart();
    assert_eq!(server.client().documents("acme", "notes").len(), 1);
}

#[test]
fn a_control_directory_of_its_own_is_used_and_held() {
    let home = Arc::new(Home::new());
    let control = home.path().join("control");
    let options = Options::new()
        .home(&home)
        .args(&["--control-data-dir", control.to_str().unwrap()]);
    let mut server = Server::start(options);
    server.client().create_tenant("acme");
    assert!(control.join("nimbus-control.db").is_file());
    assert!(!home.data_dir().join("nimbus-control.db").exists());
    assert_eq!(files::mode(&control), 0o700);
    assert_eq!(files::mode(&home.data_dir()), 0o700);
    for path in files::all_below(&control)
        .iter()
        .chain(&files::all_below(&home.data_dir()))
    {
        assert_eq!(files::mode(path), 0o600, "{}", path.display());
    }
    let pid = server.pid().to_string();
    Server::refused(Options::new().data_dir(&control)).says(&[&pid]);
    assert!(server.terminate().success());
    server.restart();
    assert_eq!(server.client().tenants(), ["acme"]);
}

#[test]
fn a_read_only_data_directory_is_refused() {
    if switched_off("a read-only data directory") {
        return;
    }
    let mut server = Server::start(Options::new());
    server.client().create_tenant("acme");
    assert!(server.terminate().success());
    let before = files::names(&server.data_dir());
    let view = Mount::read_only_view(&server.data_dir());
    for dir in [view.path(), view.path().join("new")] {
        let finished = Server::refused(Options::new().data_dir(&dir));
        assert_eq!(finished.code, Some(1));
        finished.says(&[view.path().to_str().unwrap(), "not writable"]);
    }
    assert_eq!(files::names(&server.data_dir()), before);
}

#[test]
fn what_is_no_directory_is_refused() {
    let home = Arc::new(Home::new());
    let file = home.path().join("file");
    fs::write(&file, "text").unwrap();
    for dir in [file.clone(), file.join("below")] {
        let options = Options::new().home(&home).data_dir(&dir);
        let finished = Server::refused(options);
        assert_eq!(finished.code, Some(1));
        finished.says(&[dir.to_str().unwrap(), "directory"]);
    }
    assert_eq!(fs::read_to_string(&file).unwrap(), "text");
    // A lock file that is a link would let the lock be taken elsewhere.
    let dir = home.path().join("linked");
    fs::create_dir(&dir).unwrap();
    symlink(&file, dir.join("nimbus.lock")).unwrap();
    let finished = Server::refused(Options::new().home(&home).data_dir(&dir));
    finished.says(&["nimbus.lock"]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "text");
}

#[test]
fn a_damaged_control_database_is_refused_and_kept() {
    let mut server = Server::start(Options::new());
    server.client().create_tenant("acme");
    assert!(server.terminate().success());
    let path = server.data_dir().join("nimbus-control.db");
    for damage in [b"not a database".to_vec(), vec![0xa5; 1 << 16]] {
        fs::write(&path, &damage).unwrap();
        let options = Options::new().home(server.home());
        let finished = Server::refused(options).says(&["nimbus-control.db"]);
        assert_eq!(finished.code, Some(1));
        assert_eq!(fs::read(&path).unwrap(), damage);
        assert!(server.data_dir().join("acme.sqlite3").is_file());
    }
}

#[test]
fn a_damaged_tenant_harms_no_other() {
    let mut server = Server::start(Options::new());
    let client = server.client();
    for id in ["good", "bad"] {
        client.create_tenant(id);
        client.insert(id, "notes", &json!({"owner": id}));
    }
    assert!(server.terminate().success());
    let path = server.data_dir().join("bad.sqlite3");
    fs::write(&path, vec![0xa5; 1 << 16]).unwrap();
    server.restart();
    let client = server.client();
    assert_eq!(client.tenants(), ["bad", "good"]);
    assert_eq!(client.documents("good", "notes").len(), 1);
    let reply = client.get("/api/tenants/bad/documents/notes");
    let error = reply.refused(500, "service.storage_corruption").error();
    let message = error["message"].as_str().unwrap();
    assert!(!message.contains("sqlite"), "{message}");
    // The operator is told which file it is.
    server.wait_for_log("bad.sqlite3");
    client.delete("/api/tenants/bad").expect(204);
    assert!(!path.exists());
}
