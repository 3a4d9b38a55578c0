//! Many processes at once, and processes that die: the token file is whole at every moment.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// Names the token file for the process that is killed while it rotates.
const VICTIM: &str = "NIMBUS_AUTH_TEST_ROTATE";

#[test]
fn concurrent_rotations_give_consecutive_generations() {
    let (_temp, path) = fixture();
    TokenFile::load_or_create(&path).unwrap();
    let rotations: Vec<Rotation> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    (0..5)
                        .map(|_| TokenFile::rotate(&path).unwrap())
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect()
    });
    let generations: BTreeSet<u64> = rotations.iter().map(|one| one.file.generation()).collect();
    assert_eq!(generations, (2..=41).collect());
    let tokens: BTreeSet<&str> = rotations
        .iter()
        .map(|one| one.file.token().expose_secret())
        .collect();
    assert_eq!(tokens.len(), 40);
    let stored = TokenFile::load(&path).unwrap();
    let last = rotations
        .iter()
        .find(|one| one.file.generation() == 41)
        .unwrap();
    assert_eq!(
        stored.token().expose_secret(),
        last.file.token().expose_secret()
    );
}

#[test]
fn concurrent_first_boots_agree_on_one_token() {
    let (_temp, path) = fixture();
    let tokens: BTreeSet<String> = std::thread::scope(|scope| {
        let boot = || {
            TokenFile::load_or_create(&path)
                .unwrap()
                .token()
                .expose_secret()
                .to_owned()
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(boot)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect()
    });
    assert_eq!(tokens.len(), 1);
}

#[test]
fn readers_always_see_a_whole_file() {
    let (_temp, path) = fixture();
    TokenFile::load_or_create(&path).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let (mut last, mut reads) = (0, 0_u32);
                    while !stop.load(Ordering::Relaxed) {
                        let seen = TokenFile::load(&path).unwrap().generation();
                        assert!(seen >= last, "generation went from {last} back to {seen}");
                        (last, reads) = (seen, reads + 1);
                    }
                    reads
                })
            })
            .collect();
        for _ in 0..60 {
            TokenFile::rotate(&path).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        for reader in readers {
            assert!(reader.join().unwrap() > 0);
        }
    });
    assert_eq!(TokenFile::load(&path).unwrap().generation(), 61);
}

#[test]
fn replacing_a_bad_file_leaves_no_gap() {
    let (_temp, path) = with_content(b"bad");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                match TokenFile::load(&path) {
                    Ok(_) | Err(TokenError::Invalid { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        });
        for _ in 0..30 {
            fs::write(&path, "bad").unwrap();
            assert!(TokenFile::rotate(&path).unwrap().set_aside.is_some());
        }
        stop.store(true, Ordering::Relaxed);
        reader.join().unwrap();
    });
    assert_eq!(names(&path).len(), 32);
}

#[test]
fn a_leftover_of_a_killed_rotation_is_ignored_and_replaced() {
    let (_temp, path) = fixture();
    TokenFile::load_or_create(&path).unwrap();
    let leftover = path.with_file_name(TEMP_NAME);
    fs::write(&leftover, r#"{"version": 1, "tok"#).unwrap();
    assert_eq!(TokenFile::load(&path).unwrap().generation(), 1);
    assert_eq!(TokenFile::rotate(&path).unwrap().file.generation(), 2);
    assert!(!leftover.exists());
}

/// Not a test by itself: the process that `a_killed_rotation_leaves_a_whole_file` kills.
#[test]
#[ignore = "run by a_killed_rotation_leaves_a_whole_file"]
fn rotate_until_killed() {
    if let Some(path) = std::env::var_os(VICTIM) {
        for _ in 0..100_000 {
            TokenFile::rotate(Path::new(&path)).unwrap();
        }
    }
}

#[test]
fn a_killed_rotation_leaves_a_whole_file() {
    let (_temp, path) = fixture();
    let mut last = TokenFile::load_or_create(&path).unwrap().generation();
    for round in 1..=5 {
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "token::tests::crashes::rotate_until_killed",
                "--ignored",
            ])
            .env(VICTIM, &path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Kill it in the middle of its work, each round a little further on.
        while TokenFile::load(&path).unwrap().generation() < last + 3 * round {
            assert!(
                victim.try_wait().unwrap().is_none(),
                "the other process ended early"
            );
            std::thread::yield_now();
        }
        victim.kill().unwrap();
        victim.wait().unwrap();
        let found = TokenFile::load(&path).unwrap().generation();
        assert!(found >= last + 3 * round);
        // The lock of the dead process is gone, and counting goes on.
        last = TokenFile::rotate(&path).unwrap().file.generation();
        assert_eq!(last, found + 1);
    }
}
