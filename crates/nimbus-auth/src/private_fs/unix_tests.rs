//! Tests of the Unix private files: modes, owners, links and odd files, each refused by its name.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Read;
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path)
        .unwrap()
        .permissions()
        .mode()
        & 0o7777
}

/// A fresh `<temp>/share/nimbus/auth`.
fn fixture() -> (tempfile::TempDir, PathBuf, PrivateDir) {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("share/nimbus/auth");
    let dir = PrivateDir::create(&path).unwrap();
    (temp, path, dir)
}

#[test]
fn what_is_made_belongs_to_its_owner_alone() {
    let (temp, path, dir) = fixture();
    for step in ["share", "share/nimbus", "share/nimbus/auth"] {
        assert_eq!(mode(&temp.path().join(step)), 0o700, "{step}");
    }
    dir.open_file(OsStr::new("log"), Access::Update)
        .unwrap()
        .unwrap();
    let lock = dir.lock(OsStr::new(".lock")).unwrap();
    dir.replace(OsStr::new("token"), OsStr::new(".temp"), b"x")
        .unwrap();
    drop(lock);
    for name in ["log", ".lock", "token"] {
        assert_eq!(mode(&path.join(name)), 0o600, "{name}");
    }
    assert!(!path.join(".temp").exists());
}

#[test]
fn absent_directories_and_files_are_told_apart_from_errors() {
    let temp = tempfile::tempdir().unwrap();
    assert!(
        PrivateDir::open(&temp.path().join("a/nimbus/auth"))
            .unwrap()
            .is_none()
    );
    std::fs::create_dir(temp.path().join("nimbus")).unwrap();
    assert!(
        PrivateDir::open(&temp.path().join("nimbus/auth"))
            .unwrap()
            .is_none()
    );
    let (_temp, _, dir) = fixture();
    assert!(
        dir.open_file(OsStr::new("token"), Access::Read)
            .unwrap()
            .is_none()
    );
}

#[test]
fn directory_modes_are_judged() {
    let (_temp, path, _) = fixture();
    let above = path.parent().unwrap().to_path_buf();
    // (mode of nimbus, mode of auth, repair expected, directory named)
    type Row<'a> = (u32, u32, Option<(&'a str, &'a Path)>);
    let table: &[Row<'_>] = &[
        (0o700, 0o700, None),
        (0o755, 0o700, None),
        (0o700, 0o500, None),
        (0o700, 0o710, Some(("700", &path))),
        (0o700, 0o701, Some(("700", &path))),
        (0o700, 0o750, Some(("700", &path))),
        (0o700, 0o777, Some(("700", &path))),
        (0o775, 0o700, Some(("go-w", &above))),
        (0o702, 0o700, Some(("go-w", &above))),
    ];
    for (outer, inner, expected) in table {
        set_mode(&above, *outer);
        set_mode(&path, *inner);
        match (PrivateDir::open(&path), expected) {
            (Ok(Some(_)), None) => {}
            (Err(error @ PrivateFileError::LooseDirectory { .. }), Some((repair, named))) => {
                let command = format!("run `chmod {repair} {}`", named.display());
                assert!(error.to_string().ends_with(&command), "{error}");
            }
            (found, _) => panic!("{outer:o} {inner:o}: {found:?}"),
        }
    }
    set_mode(&above, 0o700);
    set_mode(&path, 0o700);
}

#[test]
fn file_modes_are_judged_for_every_access() {
    let (_temp, path, dir) = fixture();
    let file = path.join("token");
    std::fs::write(&file, "x").unwrap();
    for access in [Access::Read, Access::Update] {
        for good in [0o600, 0o700] {
            set_mode(&file, good);
            assert!(
                dir.open_file(OsStr::new("token"), access)
                    .unwrap()
                    .is_some(),
                "{good:o}"
            );
        }
        for bad in [0o640, 0o620, 0o610, 0o604, 0o602, 0o601, 0o644, 0o666] {
            set_mode(&file, bad);
            let error = dir.open_file(OsStr::new("token"), access).unwrap_err();
            let PrivateFileError::LooseFile { mode, .. } = &error else {
                panic!("{error}")
            };
            assert_eq!(*mode, bad);
            assert!(
                error
                    .to_string()
                    .ends_with(&format!("run `chmod 600 {}`", file.display())),
                "{error}"
            );
        }
    }
}

#[test]
fn links_are_refused_at_our_names_and_followed_above() {
    let (temp, path, dir) = fixture();
    let target = temp.path().join("target");
    std::fs::write(&target, "x").unwrap();
    set_mode(&target, 0o600);
    symlink(&target, path.join("token")).unwrap();
    symlink(temp.path().join("nowhere"), path.join("dangling")).unwrap();
    for name in ["token", "dangling"] {
        for access in [Access::Read, Access::Update] {
            let found = dir.open_file(OsStr::new(name), access);
            assert!(
                matches!(found, Err(PrivateFileError::Symlink { .. })),
                "{name} {access:?}: {found:?}"
            );
        }
    }
    assert!(!temp.path().join("nowhere").exists());

    // A link above our own directories is the operator's choice.
    symlink(temp.path().join("share"), temp.path().join("link")).unwrap();
    assert!(
        PrivateDir::open(&temp.path().join("link/nimbus/auth"))
            .unwrap()
            .is_some()
    );
    // A link at `auth` or at `nimbus` is not.
    symlink(&path, temp.path().join("auth")).unwrap();
    std::fs::create_dir(temp.path().join("other")).unwrap();
    symlink(
        temp.path().join("share/nimbus"),
        temp.path().join("other/nimbus"),
    )
    .unwrap();
    symlink("/nonexistent", temp.path().join("gone")).unwrap();
    for bad in ["auth", "other/nimbus/auth", "gone"] {
        for found in [
            PrivateDir::open(&temp.path().join(bad)).map(|_| ()),
            PrivateDir::create(&temp.path().join(bad)).map(|_| ()),
        ] {
            assert!(
                matches!(found, Err(PrivateFileError::Symlink { .. })),
                "{bad}: {found:?}"
            );
        }
    }
}

#[test]
fn odd_files_are_refused_without_waiting() {
    let (_temp, path, dir) = fixture();
    std::fs::create_dir(path.join("directory")).unwrap();
    let mode = Mode::from_bits_truncate(0o600);
    fs::mknodat(fs::CWD, path.join("pipe"), fs::FileType::Fifo, mode, 0).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(path.join("socket")).unwrap();
    for name in ["directory", "pipe", "socket"] {
        for access in [Access::Read, Access::Update] {
            let found = dir.open_file(OsStr::new(name), access);
            assert!(
                matches!(found, Err(PrivateFileError::NotRegular { .. })),
                "{name} {access:?}: {found:?}"
            );
        }
    }
    std::fs::write(path.join("file"), "").unwrap();
    let found = PrivateDir::create(&path.join("file"));
    assert!(
        matches!(found, Err(PrivateFileError::NotDirectory { .. })),
        "{found:?}"
    );
}

#[test]
fn another_owner_is_refused() {
    let (_temp, path, dir) = fixture();
    let file = path.join("token");
    std::fs::write(&file, "x").unwrap();
    set_mode(&file, 0o600);
    let user = rustix::process::geteuid().as_raw();
    // Root alone can give files away; as another user, files of root stand in as the good case.
    if user != 0 {
        return check_owner(&std::fs::metadata("/").unwrap(), Path::new("/")).unwrap();
    }
    std::os::unix::fs::chown(&file, Some(65_534), None).unwrap();
    let found = dir.open_file(OsStr::new("token"), Access::Read);
    assert!(
        matches!(
            found,
            Err(PrivateFileError::Owner {
                owner: 65_534,
                user: 0,
                ..
            })
        ),
        "{found:?}"
    );
    std::os::unix::fs::chown(&path, Some(65_534), None).unwrap();
    let found = PrivateDir::open(&path);
    assert!(
        matches!(found, Err(PrivateFileError::Owner { owner: 65_534, .. })),
        "{found:?}"
    );
}

#[test]
fn replacing_leaves_the_old_file_whole_when_it_fails() {
    let (_temp, path, dir) = fixture();
    let token = OsStr::new("token");
    dir.replace(token, OsStr::new(".temp"), b"old").unwrap();
    // A directory in the place of the temporary file cannot be removed as a file.
    std::fs::create_dir(path.join(".temp")).unwrap();
    assert!(dir.replace(token, OsStr::new(".temp"), b"new").is_err());
    assert_eq!(std::fs::read(path.join("token")).unwrap(), b"old");
    std::fs::remove_dir(path.join(".temp")).unwrap();
    // A leftover of a killed process, even one that is a link, does not stand in the way.
    symlink("token", path.join(".temp")).unwrap();
    dir.replace(token, OsStr::new(".temp"), b"new").unwrap();
    let mut text = String::new();
    let mut file = dir.open_file(token, Access::Read).unwrap().unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "new");
    assert!(path.join(".temp").symlink_metadata().is_err());
}

#[test]
fn a_second_name_never_replaces_a_file() {
    let (_temp, path, dir) = fixture();
    std::fs::write(path.join("token"), "bad").unwrap();
    set_mode(&path.join("token"), 0o700);
    std::fs::write(path.join("kept"), "kept").unwrap();
    assert!(!dir.link(OsStr::new("token"), OsStr::new("kept")).unwrap());
    assert_eq!(std::fs::read(path.join("kept")).unwrap(), b"kept");
    assert!(dir.link(OsStr::new("token"), OsStr::new("second")).unwrap());
    assert_eq!(mode(&path.join("second")), 0o600);
}

#[test]
fn the_lock_excludes_other_holders_until_dropped() {
    let (_temp, path, dir) = fixture();
    let name = OsStr::new(".lock");
    let held = dir.lock(name).unwrap();
    let other = dir.open_file(name, Access::Update).unwrap().unwrap();
    assert!(matches!(
        other.try_lock(),
        Err(std::fs::TryLockError::WouldBlock)
    ));
    drop(held);
    other.try_lock().unwrap();
    drop(path);
}
