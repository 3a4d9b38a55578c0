//! Comparison of a presented token with the one in force, and its replacement while running.
//!
//! It keeps a digest, never the token. It must not know headers, routes or what a match allows.

use std::fmt;
use std::path::Path;
use std::sync::{Mutex, PoisonError, RwLock};

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::token::{TokenError, TokenFile};

/// The admin token in force. Share it in an `Arc`; all methods take `&self`.
pub struct AdminVerifier {
    current: RwLock<Accepted>,
    /// Held over write and swap, so that two rotations end in the order of their generations.
    rotation: Mutex<()>,
}

#[derive(Clone, Copy)]
struct Accepted {
    digest: [u8; 32],
    generation: u64,
}

impl Accepted {
    fn of(file: &TokenFile) -> Self {
        let digest = digest(file.token().expose_secret());
        Self {
            digest,
            generation: file.generation(),
        }
    }
}

impl fmt::Debug for AdminVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let generation = self.generation();
        f.debug_struct("AdminVerifier")
            .field("generation", &generation)
            .finish_non_exhaustive()
    }
}

impl AdminVerifier {
    /// Accepts the token of `file` and nothing else.
    pub fn new(file: &TokenFile) -> Self {
        Self {
            current: RwLock::new(Accepted::of(file)),
            rotation: Mutex::new(()),
        }
    }

    /// Whether `presented` is the token in force. The time taken depends on the length of
    /// `presented` alone: both sides are hashed and the digests compared in constant time, so
    /// neither a common prefix nor the length of the token can be measured (seed 000).
    pub fn verify(&self, presented: &str) -> bool {
        self.matching_generation(presented).is_some()
    }

    /// The generation of the token in force when `presented` is that token. Both come from one
    /// look, so a rotation in between cannot pair an old token with a new generation.
    pub(crate) fn matching_generation(&self, presented: &str) -> Option<u64> {
        let presented = digest(presented);
        let accepted = self.accepted();
        bool::from(presented.ct_eq(&accepted.digest)).then_some(accepted.generation)
    }

    /// The generation of the token in force.
    pub fn generation(&self) -> u64 {
        self.accepted().generation
    }

    /// Replaces the token in the file and then here, and returns the new generation. The old
    /// value is dead when this returns. Blocks on the file lock and on syncs to disk, for
    /// milliseconds, so call it where blocking is allowed; verification goes on meanwhile.
    ///
    /// # Errors
    /// As [`TokenFile::rotate`]; the token in force then stays.
    pub fn rotate_live(&self, path: &Path) -> Result<u64, TokenError> {
        let _turn = self.rotation.lock().unwrap_or_else(PoisonError::into_inner);
        let rotation = TokenFile::rotate_above(path, self.generation())?;
        let accepted = Accepted::of(&rotation.file);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = accepted;
        Ok(accepted.generation)
    }

    fn accepted(&self) -> Accepted {
        // A copy is stored whole, so a poisoned lock still holds a valid value.
        *self.current.read().unwrap_or_else(PoisonError::into_inner)
    }
}

fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn fixture() -> (tempfile::TempDir, std::path::PathBuf, TokenFile) {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("nimbus/auth/token");
        let file = TokenFile::load_or_create(&path).unwrap();
        (temp, path, file)
    }

    #[test]
    fn only_the_exact_token_is_accepted() {
        let (_temp, _, file) = fixture();
        let verifier = AdminVerifier::new(&file);
        let token = file.token().expose_secret();
        assert!(verifier.verify(token));
        assert_eq!(verifier.matching_generation(token), Some(1));

        let mut wrong = vec![
            String::new(),
            " ".to_owned(),
            format!("{token} "),
            format!(" {token}"),
            format!("{token}\n"),
            format!("{token}="),
            format!("{token}{token}"),
            token.to_uppercase(),
            token.strip_prefix("nimbus_at_").unwrap().to_owned(),
            "x".repeat(100_000),
        ];
        wrong.extend((0..token.len()).map(|end| token[..end].to_owned()));
        wrong.extend((1..token.len()).map(|start| token[start..].to_owned()));
        // Each byte changed, alone.
        wrong.extend((0..token.len()).map(|at| {
            let mut bytes = token.as_bytes().to_vec();
            bytes[at] ^= 1;
            String::from_utf8(bytes).unwrap()
        }));
        for presented in &wrong {
            assert!(
                !verifier.verify(presented),
                "a wrong token of {} bytes",
                presented.len()
            );
        }
        let (_other_temp, _, other) = fixture();
        assert!(!verifier.verify(other.token().expose_secret()));
    }

    #[test]
    fn live_rotation_writes_first_and_kills_the_old_token() {
        let (_temp, path, file) = fixture();
        let verifier = AdminVerifier::new(&file);
        assert_eq!(verifier.rotate_live(&path).unwrap(), 2);
        let stored = TokenFile::load(&path).unwrap();
        assert_eq!((stored.generation(), verifier.generation()), (2, 2));
        assert!(stored.rotated_at().is_some());
        assert!(verifier.verify(stored.token().expose_secret()));
        assert!(!verifier.verify(file.token().expose_secret()));
    }

    #[test]
    fn a_rotation_that_cannot_be_written_changes_nothing() {
        let (_temp, path, file) = fixture();
        let verifier = AdminVerifier::new(&file);
        // A directory at the name of the temporary file makes the write fail.
        let blocker = path.with_file_name(".token.tmp");
        std::fs::create_dir(&blocker).unwrap();
        assert!(matches!(
            verifier.rotate_live(&path),
            Err(TokenError::File(_))
        ));
        assert_eq!(verifier.generation(), 1);
        assert!(verifier.verify(file.token().expose_secret()));
        let stored = TokenFile::load(&path).unwrap();
        assert!(verifier.verify(stored.token().expose_secret()));
    }

    #[test]
    fn a_running_server_never_takes_a_generation_back() {
        let (_temp, path, file) = fixture();
        let verifier = AdminVerifier::new(&file);
        assert_eq!(verifier.rotate_live(&path).unwrap(), 2);
        // The file is damaged, or removed, behind the back of the server.
        std::fs::write(&path, "garbage").unwrap();
        assert_eq!(verifier.rotate_live(&path).unwrap(), 3);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(verifier.rotate_live(&path).unwrap(), 4);
        // A rotation on the command line meanwhile counts too.
        assert_eq!(TokenFile::rotate(&path).unwrap().file.generation(), 5);
        assert_eq!(verifier.generation(), 4);
        assert_eq!(verifier.rotate_live(&path).unwrap(), 6);
    }

    #[test]
    fn concurrent_rotations_end_with_the_token_of_the_file() {
        let (_temp, path, file) = fixture();
        let verifier = Arc::new(AdminVerifier::new(&file));
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut last = 0;
                while !stop.load(Ordering::Relaxed) {
                    assert!(!verifier.verify("nimbus_at_wrong"));
                    let seen = verifier.generation();
                    assert!(seen >= last, "generation went from {last} back to {seen}");
                    last = seen;
                }
            });
            let writers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        for _ in 0..5 {
                            verifier.rotate_live(&path).unwrap();
                        }
                    })
                })
                .collect();
            for writer in writers {
                writer.join().unwrap();
            }
            stop.store(true, Ordering::Relaxed);
            reader.join().unwrap();
        });
        let stored = TokenFile::load(&path).unwrap();
        assert_eq!((stored.generation(), verifier.generation()), (21, 21));
        assert!(verifier.verify(stored.token().expose_secret()));
    }

    #[test]
    fn one_rotation_waits_for_the_swap_of_another() {
        let (_temp, path, file) = fixture();
        let verifier = AdminVerifier::new(&file);
        let (done, outcome) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            // Stands for a rotation that has written the file and not yet swapped.
            let turn = verifier.rotation.lock().unwrap();
            scope.spawn(|| done.send(verifier.rotate_live(&path).unwrap()));
            // Correct code can only time out here, so a slow machine cannot fail the test.
            let early = outcome.recv_timeout(std::time::Duration::from_millis(100));
            assert!(early.is_err(), "rotated to {early:?} out of turn");
            assert_eq!(TokenFile::load(&path).unwrap().generation(), 1);
            assert!(verifier.verify(file.token().expose_secret()));
            drop(turn);
            assert_eq!(outcome.recv().unwrap(), 2);
        });
    }

    #[test]
    fn debug_shows_the_generation_alone() {
        let (_temp, _, file) = fixture();
        let shown = format!("{:?}", AdminVerifier::new(&file));
        assert_eq!(shown, "AdminVerifier { generation: 1, .. }");
    }
}
