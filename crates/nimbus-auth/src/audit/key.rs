//! The file with the key of the audit chain: 0600, beside the admin token.
//!
//! It must not know what is sealed with the key.

use std::ffi::OsStr;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use data_encoding::HEXLOWER;
use zeroize::Zeroizing;

use super::AuditError;
use super::chain::{ChainKey, KEY_BYTES};
use crate::private_fs::{Access, PrivateDir, PrivateFileError, split};

/// Name of the key file, in the directory of the admin token.
pub(crate) const KEY_FILE: &str = "audit.key";
/// Written in full before it takes the name of the key file.
const TEMP_NAME: &str = ".audit.key.tmp";
/// Held while the key is made.
const LOCK_NAME: &str = ".audit.key.lock";
/// Length of the file: the key in hexadecimal and a newline.
const FILE_BYTES: usize = 2 * KEY_BYTES + 1;

/// Where the key of the chain is, given the admin token's file.
pub(super) fn beside(token: &Path) -> PathBuf {
    token.with_file_name(KEY_FILE)
}

impl ChainKey {
    /// Reads the key from the directory of the admin token; `None` when there is none yet.
    ///
    /// # Errors
    /// [`AuditError::Open`] for a link, a looser mode than 0600 and the like,
    /// [`AuditError::KeyInvalid`].
    pub fn load(token: &Path) -> Result<Option<ChainKey>, AuditError> {
        let path = beside(token);
        let (parent, name) = split(&path)?;
        match PrivateDir::open(parent)? {
            Some(dir) => read(&dir, name, &path),
            None => Ok(None),
        }
    }

    /// Makes a key unless another process was first; returns the one that stands.
    pub(super) fn create(token: &Path) -> Result<ChainKey, AuditError> {
        let path = beside(token);
        let (parent, name) = split(&path)?;
        let dir = PrivateDir::create(parent)?;
        let _lock = dir.lock(OsStr::new(LOCK_NAME))?;
        if let Some(found) = read(&dir, name, &path)? {
            return Ok(found);
        }
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        getrandom::fill(bytes.as_mut()).map_err(AuditError::Entropy)?;
        let mut text = Zeroizing::new([b'\n'; FILE_BYTES]);
        if let Some(digits) = text.get_mut(..2 * KEY_BYTES) {
            HEXLOWER.encode_mut(bytes.as_ref(), digits);
        }
        dir.replace(name, OsStr::new(TEMP_NAME), text.as_ref())?;
        tracing::info!(path = %path.display(), "made the key of the audit log");
        Ok(ChainKey::new(bytes))
    }
}

fn read(dir: &PrivateDir, name: &OsStr, path: &Path) -> Result<Option<ChainKey>, AuditError> {
    let Some(file) = dir.open_file(name, Access::Read)? else {
        return Ok(None);
    };
    // Reserved in full: growing would leave copies behind that are not wiped.
    let mut text = Zeroizing::new(Vec::with_capacity(FILE_BYTES + 1));
    file.take(FILE_BYTES as u64 + 1)
        .read_to_end(&mut text)
        .map_err(PrivateFileError::io("read", path))?;
    let invalid = |fault| AuditError::KeyInvalid {
        path: path.to_path_buf(),
        fault,
    };
    let digits = text
        .strip_suffix(b"\n")
        .filter(|digits| digits.len() == 2 * KEY_BYTES)
        .ok_or_else(|| invalid("it does not have 64 hexadecimal digits and a newline"))?;
    let mut bytes = Zeroizing::new([0; KEY_BYTES]);
    HEXLOWER
        .decode_mut(digits, bytes.as_mut())
        .map_err(|_| invalid("it has something else than lower-case hexadecimal digits"))?;
    Ok(Some(ChainKey::new(bytes)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn place() -> (tempfile::TempDir, PathBuf) {
        let temp = tempfile::tempdir().unwrap();
        let token = temp.path().join("nimbus/auth/token");
        (temp, token)
    }

    #[test]
    fn a_key_is_made_once_and_private() {
        let (_temp, token) = place();
        assert!(ChainKey::load(&token).unwrap().is_none());
        let made = ChainKey::create(&token).unwrap();
        let again = ChainKey::create(&token).unwrap();
        let loaded = ChainKey::load(&token).unwrap().unwrap();
        assert_eq!((made.id(), made.id()), (again.id(), loaded.id()));
        let found = fs::metadata(beside(&token)).unwrap();
        assert_eq!(
            (found.len(), found.permissions().mode() & 0o7777),
            (65, 0o600)
        );
        let (_other, elsewhere) = place();
        assert_ne!(ChainKey::create(&elsewhere).unwrap().id(), made.id());
    }

    #[test]
    fn what_is_no_key_is_refused_and_left_alone() {
        let (_temp, token) = place();
        ChainKey::create(&token).unwrap();
        let path = beside(&token);
        let good = fs::read_to_string(&path).unwrap();
        let bad = [
            String::new(),
            good.trim_end().to_owned(),
            good[1..].to_owned(),
            format!("{good}\n"),
            good.to_uppercase()
                .replace(|c: char| c.is_ascii_digit(), "A"),
            good.replacen(|_| true, "g", 1),
        ];
        for text in bad {
            fs::write(&path, &text).unwrap();
            for found in [ChainKey::load(&token).err(), ChainKey::create(&token).err()] {
                let told = found.unwrap().to_string();
                assert!(told.contains("audit.key"), "{told}");
                assert!(text.len() < 9 || !told.contains(&text[..8]), "{told}");
            }
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }

    #[test]
    fn links_and_looser_modes_are_refused() {
        let (temp, token) = place();
        ChainKey::create(&token).unwrap();
        let path = beside(&token);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let told = ChainKey::load(&token).unwrap_err().to_string();
        assert!(told.contains("chmod 600"), "{told}");
        let target = temp.path().join("target");
        fs::rename(&path, &target).unwrap();
        fs::set_permissions(&target, fs::Permissions::from_mode(0o600)).unwrap();
        symlink(&target, &path).unwrap();
        let found = ChainKey::load(&token);
        let refused = AuditError::Open(PrivateFileError::Symlink { path });
        assert_eq!(found.unwrap_err().to_string(), refused.to_string());
    }
}
