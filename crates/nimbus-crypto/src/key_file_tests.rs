//! Tests of key files: each thing that can be wrong gives its own error and no byte of the key.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use super::*;

fn key_file(dir: &Path, name: &str, bytes: &[u8], mode: u32) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    path
}

#[test]
fn a_good_file_is_read_with_any_bytes() {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in [
        ("zero", [0; 32]),
        ("newlines", [b'\n'; 32]),
        ("high", [255; 32]),
    ] {
        for mode in [0o400, 0o600] {
            let path = key_file(dir.path(), &format!("{name}{mode:o}"), &bytes, mode);
            assert!(read_key_file(&path).unwrap() == WrappingKey::from_bytes(&bytes));
        }
    }
}

#[test]
fn a_link_is_followed_and_its_target_judged() {
    let dir = tempfile::tempdir().unwrap();
    key_file(dir.path(), "good", &[7; 32], 0o400);
    key_file(dir.path(), "loose", &[7; 32], 0o440);
    for name in ["good", "loose", "nowhere"] {
        symlink(name, dir.path().join(format!("to-{name}"))).unwrap();
    }
    let read = |name: &str| read_key_file(&dir.path().join(name));
    assert!(read("to-good").unwrap() == WrappingKey::from_bytes(&[7; 32]));
    assert!(matches!(
        read("to-loose").unwrap_err(),
        KeyFileError::Loose { mode: 0o440, .. }
    ));
    assert!(matches!(
        read("to-nowhere").unwrap_err(),
        KeyFileError::Missing { .. }
    ));
    symlink("loop", dir.path().join("loop")).unwrap();
    assert!(matches!(read("loop").unwrap_err(), KeyFileError::Io { .. }));
}

#[test]
fn every_bit_for_others_is_refused_with_the_command() {
    let dir = tempfile::tempdir().unwrap();
    let path = key_file(dir.path(), "key", &[7; 32], 0o400);
    for bit in 0..6 {
        let mode = 0o400 | 1 << bit;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let error = read_key_file(&path).unwrap_err();
        assert!(
            matches!(error, KeyFileError::Loose { mode: found, .. } if found == mode),
            "{mode:o}: {error}"
        );
        let text = error.to_string();
        assert!(
            text.contains(&format!("chmod 400 {}", path.display())),
            "{text}"
        );
    }
}

#[test]
fn other_sizes_are_refused_with_the_number() {
    let dir = tempfile::tempdir().unwrap();
    // 31 and 33 bytes, hexadecimal and base64 of 32, with and without a newline.
    for size in [0, 1, 31, 33, 44, 45, 64, 65, 100_000] {
        let path = key_file(dir.path(), &size.to_string(), &vec![b'a'; size], 0o400);
        let error = read_key_file(&path).unwrap_err();
        assert!(
            matches!(error, KeyFileError::Size { found, .. } if found == size as u64),
            "{error}"
        );
        assert!(!error.to_string().contains("aaa"), "{error}");
    }
}

#[test]
fn what_is_no_file_is_refused_without_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let read = |name: &str| read_key_file(&dir.path().join(name)).unwrap_err();
    assert!(matches!(read("absent"), KeyFileError::Missing { .. }));
    key_file(dir.path(), "plain", &[7; 32], 0o400);
    assert!(matches!(read("plain/key"), KeyFileError::Missing { .. }));
    fs::create_dir(dir.path().join("directory")).unwrap();
    assert!(matches!(read("directory"), KeyFileError::Directory { .. }));
    let _listener = UnixListener::bind(dir.path().join("socket")).unwrap();
    assert!(matches!(read("socket"), KeyFileError::NotRegular { .. }));
    let fifo = dir.path().join("pipe");
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    assert!(matches!(read("pipe"), KeyFileError::NotRegular { .. }));
    assert!(matches!(
        read_key_file(Path::new("/dev/null")).unwrap_err(),
        KeyFileError::NotRegular { .. }
    ));
}

#[test]
fn a_file_that_may_not_be_read_has_its_own_error() {
    // Root reads everything, so the mapping is tested by itself, and the system where it applies.
    for errno in [Errno::ACCESS, Errno::PERM] {
        let error = refusal(errno, Path::new("/k"));
        assert!(matches!(error, KeyFileError::Unreadable { .. }), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let path = key_file(dir.path(), "key", &[7; 32], 0o000);
    if !rustix::process::geteuid().is_root() {
        let error = read_key_file(&path).unwrap_err();
        assert!(matches!(error, KeyFileError::Unreadable { .. }), "{error}");
    }
}
