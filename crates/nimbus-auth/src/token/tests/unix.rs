//! Refusals by mode and link on every way to the token file.

use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// The refusal of each way to the file.
fn refusals(path: &Path) -> [PrivateFileError; 3] {
    let unwrap = |error| match error {
        TokenError::File(error) => error,
        other => panic!("{other}"),
    };
    [
        unwrap(TokenFile::load(path).unwrap_err()),
        unwrap(TokenFile::load_or_create(path).unwrap_err()),
        unwrap(TokenFile::rotate(path).unwrap_err()),
    ]
}

#[test]
fn everything_made_belongs_to_its_owner_alone() {
    let (_temp, path) = with_content(b"bad");
    let kept = TokenFile::rotate(&path).unwrap().set_aside.unwrap();
    for file in [&path, &kept.path, &path.with_file_name(LOCK_NAME)] {
        assert_eq!(mode(file), 0o600, "{}", file.display());
    }
    assert_eq!(mode(path.parent().unwrap()), 0o700);
}

#[test]
fn loose_modes_are_refused_with_the_repair() {
    let (_temp, path) = fixture();
    TokenFile::load_or_create(&path).unwrap();
    let before = fs::read(&path).unwrap();
    let parent = path.parent().unwrap();
    for (target, bad, repair) in [
        (path.as_path(), 0o640, "chmod 600"),
        (path.as_path(), 0o604, "chmod 600"),
        (path.as_path(), 0o622, "chmod 600"),
        (parent, 0o750, "chmod 700"),
        (parent, 0o755, "chmod 700"),
        (parent, 0o777, "chmod 700"),
    ] {
        let good = mode(target);
        set_mode(target, bad);
        for error in refusals(&path) {
            let text = error.to_string();
            assert!(
                text.ends_with(&format!("run `{repair} {}`", target.display())),
                "{text}"
            );
        }
        set_mode(target, good);
    }
    assert_eq!(fs::read(&path).unwrap(), before);
}

#[test]
fn links_are_refused_on_every_way() {
    let (temp, path) = fixture();
    TokenFile::load_or_create(&path).unwrap();
    let real = temp.path().join("real");
    fs::rename(&path, &real).unwrap();
    let before = fs::read(&real).unwrap();
    symlink(&real, &path).unwrap();
    let auth = path.parent().unwrap();
    let nimbus = auth.parent().unwrap();
    let check = |named: &Path| {
        for error in refusals(&path) {
            assert!(
                matches!(&error, PrivateFileError::Symlink { path } if path == named),
                "{error}"
            );
        }
    };
    check(&path);
    for dir in [auth, nimbus] {
        let moved = temp.path().join("moved");
        fs::rename(dir, &moved).unwrap();
        symlink(&moved, dir).unwrap();
        check(dir);
        fs::remove_file(dir).unwrap();
        fs::rename(&moved, dir).unwrap();
    }
    assert_eq!(fs::read(&real).unwrap(), before);
}

#[test]
fn the_lock_file_is_judged_like_the_token() {
    let (temp, path) = fixture();
    TokenFile::load_or_create(&path).unwrap();
    let lock = path.with_file_name(LOCK_NAME);
    set_mode(&lock, 0o644);
    let error = TokenFile::rotate(&path).unwrap_err();
    assert!(
        matches!(error, TokenError::File(PrivateFileError::LooseFile { .. })),
        "{error}"
    );
    fs::remove_file(&lock).unwrap();
    symlink(temp.path().join("elsewhere"), &lock).unwrap();
    let error = TokenFile::rotate(&path).unwrap_err();
    assert!(
        matches!(error, TokenError::File(PrivateFileError::Symlink { .. })),
        "{error}"
    );
    assert!(!temp.path().join("elsewhere").exists());
    assert_eq!(TokenFile::load(&path).unwrap().generation(), 1);
}
