//! Disks with properties that tests need: small, read-only, blind to case.
//!
//! Mounting needs root. Where it is refused the test fails, unless `NIMBUS_TEST_NO_MOUNT=1` says
//! that this machine cannot; then the test says aloud that it did nothing. It must not know what
//! is stored there.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use crate::files::set_mode;

/// A mounted file system, unmounted when dropped.
#[derive(Debug)]
pub struct Mount {
    dir: TempDir,
}

/// Whether tests that mount are switched off. Says so when they are.
pub fn switched_off(test: &str) -> bool {
    let off = std::env::var_os("NIMBUS_TEST_NO_MOUNT").is_some_and(|value| value == "1");
    if off {
        eprintln!("NOT TESTED: {test}: NIMBUS_TEST_NO_MOUNT=1 switches off tests that mount");
    }
    off
}

/// Writes to a file until no byte more goes in.
pub fn fill(path: &Path) {
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .unwrap();
    for size in [64 * 1024, 512, 1] {
        let block = vec![0x55; size];
        loop {
            match file.write(&block) {
                Ok(_) => {}
                Err(e) if e.kind() == ErrorKind::StorageFull => break,
                Err(e) => panic!("{}: {e}", path.display()),
            }
        }
    }
}

impl Mount {
    /// A file system in memory of `mebibytes` MiB.
    pub fn tmpfs(mebibytes: u32) -> Mount {
        let mount = Mount::unmounted();
        let options = format!("size={mebibytes}m,mode=0700");
        let mut command = Command::new("mount");
        command.args(["-t", "tmpfs", "-o", &options, "nimbus-e2e"]);
        run(command.arg(mount.point()), "a tmpfs");
        mount
    }

    /// The same, which servers of other users find their way into.
    pub fn shared_tmpfs(mebibytes: u32) -> Mount {
        let mount = Mount::tmpfs(mebibytes);
        for path in [mount.dir.path(), &mount.point()] {
            set_mode(path, 0o755);
        }
        mount
    }

    /// A file system on which `a` and `A` are one name: NTFS through FUSE with `ignore_case`,
    /// because few kernels of servers know a file system that is blind to case.
    pub fn blind_to_case() -> Mount {
        let mount = Mount::unmounted();
        let image = mount.dir.path().join("image");
        File::create(&image).unwrap().set_len(32 << 20).unwrap();
        let mut make = Command::new("mkfs.ntfs");
        run(make.args(["-F", "-q"]).arg(&image), "an NTFS image");
        let mut command = Command::new("lowntfs-3g");
        command.args(["-o", "permissions,ignore_case"]);
        run(command.arg(image).arg(mount.point()), "NTFS through FUSE");
        mount
    }

    /// The directory `source` at a second place, where it is read-only.
    pub fn read_only_view(source: &Path) -> Mount {
        let mount = Mount::unmounted();
        let mut bind = Command::new("mount");
        run(bind.arg("--bind").arg(source).arg(mount.point()), "a bind");
        let mut remount = Command::new("mount");
        remount.args(["-o", "remount,bind,ro"]);
        run(remount.arg(mount.point()), "a read-only bind");
        mount
    }

    /// Where it is mounted.
    pub fn path(&self) -> PathBuf {
        self.point()
    }

    fn unmounted() -> Mount {
        let dir = TempDir::with_prefix("nimbus-e2e-mount-").unwrap();
        fs::create_dir(dir.path().join("point")).unwrap();
        Mount { dir }
    }

    fn point(&self) -> PathBuf {
        self.dir.path().join("point")
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Lazily: a server that the test is about to end may still have files open.
        let outcome = Command::new("umount").arg("-l").arg(self.point()).output();
        if let Ok(output) = outcome
            && !output.status.success()
            && !std::thread::panicking()
        {
            eprintln!("umount: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}

fn run(command: &mut Command, what: &str) {
    let program = command.get_program().to_owned();
    let failed = match command.output() {
        Ok(output) if output.status.success() => return,
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    refuse(what, &program, &failed);
}

fn refuse(what: &str, program: &OsStr, failed: &str) -> ! {
    panic!(
        "this test needs {what}, and `{}` failed: {failed}. Run the tests as root, install what \
         `cargo xtask setup` installs, or set NIMBUS_TEST_NO_MOUNT=1 to leave out the tests that mount",
        program.to_string_lossy()
    );
}
