//! The admin token and its file: first boot, loading, rotation and the freshness gate.
//!
//! The token is a 32-byte random value in a JSON file, 0600 in a directory 0700 (seed 000). This
//! room must not know who presents a token or over what; comparison is in [`crate::verify`].

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use data_encoding::BASE64URL_NOPAD;
use jiff::{SignedDuration, Timestamp};
use zeroize::Zeroizing;

use crate::private_fs::{Access, PrivateDir, PrivateFileError, split};

pub(crate) mod format;

pub use format::TokenFault;

/// Length of the random value in bytes (seed 000).
pub const TOKEN_BYTES: usize = 32;
/// What the text of every admin token begins with (nimbus.md 4).
pub const TOKEN_PREFIX: &str = "nimbus_at_";
/// Length of the text in bytes: the prefix and 43 characters of base64url.
pub const TOKEN_TEXT_LEN: usize = TOKEN_PREFIX.len() + 43;
/// Age from which an explicit rotation no longer allows a public listener: 30 days (seed 000).
pub const MAX_ROTATION_AGE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// How far ahead of the clock a stamp may be, for clocks that were just corrected.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_secs(60);
/// A longer token file is refused unread; a real one has about 250 bytes.
const MAX_FILE_BYTES: usize = 4096;
/// Held exclusively while the file is made or replaced (nimbus.md 1.13).
const LOCK_NAME: &str = ".token.lock";
/// Written in full before it takes the name of the token file; only the lock holder touches it.
const TEMP_NAME: &str = ".token.tmp";

/// The secret text of an admin token. Wiped on drop; shown only by [`AdminToken::expose_secret`].
pub struct AdminToken {
    text: Zeroizing<String>,
}

impl AdminToken {
    /// The text that a client presents: [`TOKEN_PREFIX`] and base64url without padding.
    pub fn expose_secret(&self) -> &str {
        &self.text
    }

    fn mint() -> Result<Self, TokenError> {
        let mut bytes = Zeroizing::new([0_u8; TOKEN_BYTES]);
        getrandom::fill(bytes.as_mut()).map_err(TokenError::Entropy)?;
        // Reserved in full: growing would leave a copy behind that is not wiped.
        let mut text = Zeroizing::new(String::with_capacity(TOKEN_TEXT_LEN));
        text.push_str(TOKEN_PREFIX);
        BASE64URL_NOPAD.encode_append(bytes.as_ref(), &mut text);
        Ok(Self { text })
    }

    /// Takes the canonical text only, so that one value has one text.
    fn parse(text: &str) -> Result<Self, TokenFault> {
        let body = text.strip_prefix(TOKEN_PREFIX).ok_or(TokenFault::Prefix)?;
        let bytes = BASE64URL_NOPAD.decode(body.as_bytes()).map(Zeroizing::new);
        let found = bytes.map_err(|_| TokenFault::Encoding)?.len();
        if found != TOKEN_BYTES {
            return Err(TokenFault::Length {
                found,
                expected: TOKEN_BYTES,
            });
        }
        Ok(Self {
            text: Zeroizing::new(text.to_owned()),
        })
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdminToken(redacted)")
    }
}

/// Why the token file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// There is no file.
    #[error(
        "there is no admin token at {}: start the server once, or run `nimbus auth rotate-admin`",
        .path.display()
    )]
    Missing {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The file is there and wrong. It is never overwritten by loading.
    #[error(
        "the admin token file {} cannot be used: {fault}. Run `nimbus auth rotate-admin` to replace it (the present file is kept beside the new one)",
        .path.display()
    )]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: TokenFault,
    },
    /// The generation cannot be counted further.
    #[error("the admin token file {} has the last generation, {}: move it away and start again", .path.display(), u64::MAX)]
    GenerationExhausted {
        /// The file.
        path: PathBuf,
    },
    /// The file, its directory or its lock was refused, or the system failed.
    #[error(transparent)]
    File(#[from] PrivateFileError),
    /// The system gave no random bytes.
    #[error("the operating system gave no random bytes for a new admin token: {0}")]
    Entropy(#[source] getrandom::Error),
    /// The token could not be written as JSON.
    #[error("the admin token cannot be written as JSON: {0}")]
    Encode(#[source] serde_json::Error),
}

/// Why a token does not allow a listener outside loopback.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StaleToken {
    /// No explicit rotation is on record; the token of the first boot never qualifies.
    #[error(
        "the admin token was never rotated, so the server does not listen beyond loopback: run `nimbus auth rotate-admin` as the user of the service, then restart the server"
    )]
    NeverRotated,
    /// The last rotation is too long ago.
    #[error(
        "the admin token was last rotated at {rotated_at}, {} days ago, and the limit is {} days: run `nimbus auth rotate-admin` as the user of the service, then restart the server",
        days(*.age), days(*.max_age)
    )]
    TooOld {
        /// Time of the last rotation.
        rotated_at: Timestamp,
        /// Its age.
        age: SignedDuration,
        /// The age that is too old.
        max_age: SignedDuration,
    },
    /// A stamp lies more than 60 s ahead, so no age can be told.
    #[error(
        "the admin token file says {field} is {stamp}, which is later than the clock of this machine ({now}): correct the clock, or run `nimbus auth rotate-admin` as the user of the service, then restart the server"
    )]
    FutureStamp {
        /// `rotatedAt` or `issuedAt`.
        field: &'static str,
        /// The stamp found.
        stamp: Timestamp,
        /// The clock.
        now: Timestamp,
    },
}

fn days(span: SignedDuration) -> i64 {
    span.as_hours() / 24
}

/// An admin token as its file holds it.
#[derive(Debug)]
pub struct TokenFile {
    path: PathBuf,
    token: AdminToken,
    generation: u64,
    issued_at: Timestamp,
    rotated_at: Option<Timestamp>,
    stamps_in_future: bool,
}

/// What a rotation did.
#[derive(Debug)]
pub struct Rotation {
    /// The new token.
    pub file: TokenFile,
    /// The file that could not be used, if there was one; the generations then start again.
    pub set_aside: Option<SetAside>,
}

/// A token file that could not be used and was kept under another name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetAside {
    /// Where it is now: `<token file>.corrupt-<UTC time>`, mode 0600.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: TokenFault,
}

impl TokenFile {
    /// Loads the file. It is read once and never changed.
    ///
    /// # Errors
    /// [`TokenError::Missing`], [`TokenError::Invalid`], or [`TokenError::File`] when the file or
    /// its directory is a link, is open to others, or belongs to another user.
    pub fn load(path: &Path) -> Result<Self, TokenError> {
        let (parent, name) = split(path)?;
        let found = match PrivateDir::open(parent)? {
            Some(dir) => read(&dir, name, path)?,
            None => None,
        };
        found.ok_or_else(|| TokenError::Missing {
            path: path.to_path_buf(),
        })
    }

    /// Loads the file, or mints generation 1 when there is none (first boot). A minted token
    /// carries no `rotatedAt`, so it does not pass [`TokenFile::fresh_for_network`].
    ///
    /// # Errors
    /// As [`TokenFile::load`], without `Missing`; a file that is wrong is left as it is.
    pub fn load_or_create(path: &Path) -> Result<Self, TokenError> {
        match Self::load(path) {
            Err(TokenError::Missing { .. }) => {}
            loaded => return loaded,
        }
        let (parent, name) = split(path)?;
        let dir = PrivateDir::create(parent)?;
        let _lock = dir.lock(OsStr::new(LOCK_NAME))?;
        // Another process may have been first while this one waited.
        if let Some(found) = read(&dir, name, path)? {
            return Ok(found);
        }
        let minted = Self::mint(path, 1, Timestamp::now(), false)?;
        minted.write(&dir, name)?;
        tracing::info!(path = %path.display(), "made the first admin token");
        Ok(minted)
    }

    /// Replaces the token by a new one with the next generation and `rotatedAt` set. With no file
    /// it makes generation 1, which counts as rotated. A file that cannot be used is kept beside
    /// the new one and the generations start again at 1; [`Rotation::set_aside`] says so.
    ///
    /// # Errors
    /// [`TokenError::File`] as in [`TokenFile::load`] (modes and owners are for the operator to
    /// correct), [`TokenError::GenerationExhausted`], [`TokenError::Entropy`].
    pub fn rotate(path: &Path) -> Result<Rotation, TokenError> {
        Self::rotate_at(path, 0, Timestamp::now())
    }

    /// [`TokenFile::rotate`] with a generation above `floor` in every case, so that a running
    /// server never takes a generation back.
    pub(crate) fn rotate_above(path: &Path, floor: u64) -> Result<Rotation, TokenError> {
        Self::rotate_at(path, floor, Timestamp::now())
    }

    fn rotate_at(path: &Path, floor: u64, now: Timestamp) -> Result<Rotation, TokenError> {
        let (parent, name) = split(path)?;
        let dir = PrivateDir::create(parent)?;
        let _lock = dir.lock(OsStr::new(LOCK_NAME))?;
        let (present, set_aside) = match read(&dir, name, path) {
            Ok(Some(found)) => (found.generation, None),
            Ok(None) => (0, None),
            Err(TokenError::Invalid { fault, .. }) => {
                (0, Some(set_aside(&dir, parent, name, fault, now)?))
            }
            Err(error) => return Err(error),
        };
        let generation =
            present
                .max(floor)
                .checked_add(1)
                .ok_or_else(|| TokenError::GenerationExhausted {
                    path: path.to_path_buf(),
                })?;
        let file = Self::mint(path, generation, now, true)?;
        file.write(&dir, name)?;
        if let Some(kept) = &set_aside {
            tracing::warn!(kept = %kept.path.display(), fault = %kept.fault, "replaced an admin token file that could not be used");
        }
        tracing::info!(path = %path.display(), generation, "rotated the admin token");
        Ok(Rotation { file, set_aside })
    }

    /// Reads the content of a file; stamps are not yet compared with the clock.
    pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Self, TokenFault> {
        if bytes.len() > MAX_FILE_BYTES {
            return Err(TokenFault::TooLarge {
                limit: MAX_FILE_BYTES,
            });
        }
        let parts = format::decode(bytes)?;
        Ok(Self {
            path: path.to_path_buf(),
            token: parts.token,
            generation: parts.generation,
            issued_at: parts.issued_at,
            rotated_at: parts.rotated_at,
            stamps_in_future: false,
        })
    }

    fn mint(
        path: &Path,
        generation: u64,
        now: Timestamp,
        rotated: bool,
    ) -> Result<Self, TokenError> {
        // Whole seconds are enough for an age in days and keep the file easy to read.
        let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
        Ok(Self {
            path: path.to_path_buf(),
            token: AdminToken::mint()?,
            generation,
            issued_at: now,
            rotated_at: rotated.then_some(now),
            stamps_in_future: false,
        })
    }

    fn write(&self, dir: &PrivateDir, name: &OsStr) -> Result<(), TokenError> {
        let bytes = format::encode(self).map_err(TokenError::Encode)?;
        Ok(dir.replace(name, OsStr::new(TEMP_NAME), &bytes)?)
    }

    /// The secret.
    pub fn token(&self) -> &AdminToken {
        &self.token
    }

    /// Counts the tokens of this file from 1.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// When the token was made.
    pub fn issued_at(&self) -> Timestamp {
        self.issued_at
    }

    /// When the token was explicitly rotated; `None` also when the file holds no readable time.
    pub fn rotated_at(&self) -> Option<Timestamp> {
        self.rotated_at
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a stamp lay more than 60 s ahead of the clock when the file was loaded. Loading
    /// allows it, since a wrong clock must not lock the operator out; the gate does not.
    pub fn stamps_in_future(&self) -> bool {
        self.stamps_in_future
    }

    /// Whether this token allows a listener outside loopback: rotated explicitly, less than
    /// `max_age` ago ([`MAX_ROTATION_AGE`] in the product; seed 000), and no stamp more than 60 s
    /// ahead of `now`, since a clock set back would otherwise keep an old token fresh.
    ///
    /// # Errors
    /// [`StaleToken`], whose text tells the operator what to run.
    pub fn fresh_for_network(&self, now: Timestamp, max_age: Duration) -> Result<(), StaleToken> {
        let rotated_at = self.rotated_at.ok_or(StaleToken::NeverRotated)?;
        if let Some((field, stamp)) = self.future_stamp(now) {
            return Err(StaleToken::FutureStamp { field, stamp, now });
        }
        let age = now.duration_since(rotated_at);
        let max_age = SignedDuration::try_from(max_age).unwrap_or(SignedDuration::MAX);
        if age >= max_age {
            return Err(StaleToken::TooOld {
                rotated_at,
                age,
                max_age,
            });
        }
        Ok(())
    }

    fn future_stamp(&self, now: Timestamp) -> Option<(&'static str, Timestamp)> {
        let stamps = [
            ("rotatedAt", self.rotated_at),
            ("issuedAt", Some(self.issued_at)),
        ];
        stamps
            .into_iter()
            .filter_map(|(field, stamp)| Some((field, stamp?)))
            .find(|(_, stamp)| stamp.duration_since(now) > CLOCK_TOLERANCE)
    }
}

/// Files beside the token file that an interrupted or a past rotation left: a half-written token, or
/// a file that could not be used. Sorted; either may hold a secret.
///
/// # Errors
/// When the directory cannot be listed.
pub fn leftovers(path: &Path) -> Result<Vec<PathBuf>, PrivateFileError> {
    let (parent, name) = split(path)?;
    let kept = format!("{}.corrupt-", name.to_string_lossy());
    let listing = match std::fs::read_dir(parent) {
        Ok(listing) => listing,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(PrivateFileError::io("list", parent)(error)),
    };
    let mut found = Vec::new();
    for entry in listing {
        let entry = entry.map_err(PrivateFileError::io("list", parent))?;
        let name = entry.file_name();
        if name == TEMP_NAME || name.to_string_lossy().starts_with(&kept) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Reads and checks the file; `None` when it is absent.
fn read(dir: &PrivateDir, name: &OsStr, path: &Path) -> Result<Option<TokenFile>, TokenError> {
    let Some(file) = dir.open_file(name, Access::Read)? else {
        return Ok(None);
    };
    // Reserved in full: growing would leave copies behind that are not wiped.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_FILE_BYTES + 1));
    let limit = u64::try_from(MAX_FILE_BYTES + 1).unwrap_or(u64::MAX);
    file.take(limit)
        .read_to_end(&mut bytes)
        .map_err(PrivateFileError::io("read", path))?;
    let parsed = TokenFile::parse(path, &bytes);
    let mut found = parsed.map_err(|fault| TokenError::Invalid {
        path: path.to_path_buf(),
        fault,
    })?;
    if let Some((field, stamp)) = found.future_stamp(Timestamp::now()) {
        found.stamps_in_future = true;
        tracing::warn!(path = %path.display(), field, %stamp, "the admin token file has a stamp later than the clock");
    }
    Ok(Some(found))
}

/// Keeps a file that cannot be used under a name that no other file has.
fn set_aside(
    dir: &PrivateDir,
    parent: &Path,
    name: &OsStr,
    fault: TokenFault,
    now: Timestamp,
) -> Result<SetAside, TokenError> {
    let time = now.strftime("%Y%m%dT%H%M%SZ").to_string();
    let mut attempt = 1_u32;
    loop {
        let mut kept = OsString::from(name);
        kept.push(format!(".corrupt-{time}"));
        if attempt > 1 {
            kept.push(format!("-{attempt}"));
        }
        // A second name, not a rename: at no moment is there no token file for a first boot to
        // mistake for a fresh machine.
        if dir.link(name, &kept)? {
            return Ok(SetAside {
                path: parent.join(kept),
                fault,
            });
        }
        attempt += 1;
    }
}

#[cfg(test)]
mod tests;
