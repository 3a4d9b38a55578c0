//! Snapshots of realms, in memory that every worker reads and none can change.
//!
//! It is code that other tenants' workers will run, so the memory is sealed before a worker sees it.

use std::io;
use std::os::fd::OwnedFd;

/// Puts the snapshot into sealed memory (memfd_create(2)). `None` when there is none, or no such memory: each
/// realm is then made anew.
#[cfg(target_os = "linux")]
pub(crate) fn seal(bytes: &[u8]) -> io::Result<Option<OwnedFd>> {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    use std::io::Write as _;

    if bytes.is_empty() {
        return Ok(None);
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut file = std::fs::File::from(memfd_create("nimbus-realm", flags)?);
    file.write_all(bytes)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    fcntl_add_seals(&file, seals)?;
    Ok(Some(file.into()))
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn seal(_: &[u8]) -> io::Result<Option<OwnedFd>> {
    Ok(None)
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn nobody_can_change_a_sealed_snapshot() {
        let fd = seal(b"bytes").unwrap().unwrap();
        let file = std::fs::File::from(fd);
        let mut found = [0; 5];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut found, 0).unwrap();
        assert_eq!(&found, b"bytes");
        assert!(std::os::unix::fs::FileExt::write_at(&file, b"x", 0).is_err());
        assert!(file.set_len(0).is_err());
        assert!(file.set_len(10).is_err());
        assert!(seal(b"").unwrap().is_none());
    }
}
