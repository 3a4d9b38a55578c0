//! Checks of the admin token's file. The token itself is never shown.
//!
//! It must not know where the server listens; `listen` asks here whether the token is fresh.

use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nimbus_auth::{PathError, PrivateFileError, TokenError, TokenFile, token};

use super::report::Check;

/// The token file, or why it cannot be used.
pub(crate) fn load(path: &Result<PathBuf, PathError>) -> Option<Result<TokenFile, TokenError>> {
    path.as_ref().ok().map(|path| TokenFile::load(path))
}

/// `token`: there, private, ours, readable, and no stamp ahead of the clock.
pub(crate) fn file(
    path: &Result<PathBuf, PathError>,
    loaded: Option<&Result<TokenFile, TokenError>>,
    now: Timestamp,
) -> Check {
    let name = "token";
    let loaded = match (path, loaded) {
        (Err(error), _) => return Check::refused(name, error),
        (Ok(_), None) => return Check::fail(name, "not looked at", "run `nimbus doctor` again"),
        (Ok(_), Some(loaded)) => loaded,
    };
    let file = match loaded {
        Ok(file) => file,
        Err(TokenError::Missing { path }) => {
            return Check::warn(
                name,
                format!("there is no admin token at {}", path.display()),
                "the first `nimbus start` makes it; if the server has run before, run this command as the user of the service",
            );
        }
        Err(error) => return refused(name, error),
    };
    let shown = file.path().display();
    let generation = file.generation();
    let message = match file.rotated_at() {
        Some(at) => format!("generation {generation}, rotated {}, {shown}", age(at, now)),
        None => format!(
            "generation {generation}, never rotated, made {}, {shown}",
            age(file.issued_at(), now)
        ),
    };
    if file.stamps_in_future() {
        return Check::warn(
            name,
            format!("{message}: a stamp in the file is later than the clock"),
            "correct the clock, or run `nimbus auth rotate-admin` and restart the server",
        );
    }
    Check::ok(name, message)
}

/// Errors about the content and those of the system do not end with one clause of advice.
fn refused(name: &'static str, error: &TokenError) -> Check {
    match error {
        TokenError::Invalid { path, fault } => Check::fail(
            name,
            format!(
                "the admin token file {} cannot be used: {fault}",
                path.display()
            ),
            "run `nimbus auth rotate-admin` to replace it; the present file is kept beside the new one",
        ),
        TokenError::File(PrivateFileError::Io { .. }) => Check::io(name, error),
        _ => Check::refused(name, error),
    }
}

/// How long ago `at` was, in words.
fn age(at: Timestamp, now: Timestamp) -> String {
    match now.duration_since(at).as_hours() {
        hours if hours < 0 => format!("in the future ({at})"),
        hours if hours < 48 => format!("{hours} hours ago"),
        hours => format!("{} days ago", hours / 24),
    }
}

/// `token_leftovers`: files beside the token that may hold an older one.
pub(crate) fn leftovers(path: &Path) -> Check {
    let name = "token_leftovers";
    match token::leftovers(path) {
        Err(error) => Check::io(name, &error),
        Ok(found) if found.is_empty() => Check::ok(name, "none"),
        Ok(found) => {
            let shown: Vec<String> = found.iter().map(|p| p.display().to_string()).collect();
            Check::warn(
                name,
                format!("{} may hold an old token", shown.join(", ")),
                "remove what you no longer need",
            )
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::super::report::Status;
    use super::*;

    fn checked(path: &Path) -> Check {
        let path = Ok(path.to_owned());
        file(&path, load(&path).as_ref(), Timestamp::now())
    }

    #[test]
    fn the_file_is_judged_and_its_secret_is_not_shown() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("nimbus/auth/token");
        assert_eq!(checked(&path).status, Status::Warn);
        assert!(!home.path().join("nimbus").exists(), "it was made");

        let made = TokenFile::load_or_create(&path).unwrap();
        let check = checked(&path);
        assert_eq!(check.status, Status::Ok);
        assert!(
            check.message.contains("generation 1, never rotated"),
            "{check:?}"
        );
        let secret = made.token().expose_secret()["nimbus_at_".len()..].to_owned();
        assert!(!check.message.contains(&secret));

        TokenFile::rotate(&path).unwrap();
        let check = checked(&path);
        assert!(
            check.message.contains("generation 2, rotated 0 hours ago"),
            "{check:?}"
        );
        assert_eq!(leftovers(&path).status, Status::Ok);

        std::fs::write(&path, "{").unwrap();
        let check = checked(&path);
        assert_eq!(check.status, Status::Fail);
        assert!(check.advice.unwrap().contains("rotate-admin"));
        TokenFile::rotate(&path).unwrap();
        let check = leftovers(&path);
        assert_eq!(check.status, Status::Warn);
        assert!(check.message.contains("token.corrupt-"), "{check:?}");
    }

    #[test]
    fn ages_are_in_hours_then_in_days() {
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        for (at, expected) in [
            ("2026-11-22T11:30:00Z", "0 hours ago"),
            ("2026-11-20T13:00:00Z", "47 hours ago"),
            ("2026-11-19T11:00:00Z", "3 days ago"),
        ] {
            assert_eq!(age(at.parse().unwrap(), now), expected);
        }
        assert!(age("2026-12-01T00:00:00Z".parse().unwrap(), now).starts_with("in the future"));
    }

    #[test]
    fn a_user_without_a_home_is_told() {
        let path =
            nimbus_auth::Environment::new(nimbus_auth::Platform::Linux, |_| None).token_path();
        let check = file(&path, load(&path).as_ref(), Timestamp::now());
        assert_eq!(check.status, Status::Fail);
        assert!(check.message.contains("HOME is not set"), "{check:?}");
    }
}
