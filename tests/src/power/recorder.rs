//! The recorder: built with the machine's C compiler, given to a process in its environment.
//!
//! It must not know which process.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::log;

/// The source, which is part of the repository.
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/recorder/recorder.c");

/// A recorded directory and its log.
#[derive(Clone, Debug)]
pub struct Recorder {
    library: PathBuf,
    root: PathBuf,
    log: PathBuf,
    variables: Vec<(&'static str, String)>,
}

/// Calls that are made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// read, write, truncate, sync, name, open, any.
    pub calls: &'static str,
    /// The first that fails, counted from 1.
    pub nth: u64,
    /// EIO, ENOSPC, EINTR, SHORT.
    pub error: &'static str,
    /// How many fail; 0 for ever.
    pub times: u64,
}

impl Recorder {
    /// Builds the library and records `root`, which must exist, into `log` outside of it.
    pub fn new(root: &Path, log: &Path) -> Recorder {
        let root = fs::canonicalize(root).unwrap();
        assert!(!log.starts_with(&root), "the log records itself");
        Recorder {
            library: build(),
            root,
            log: log.to_owned(),
            variables: Vec::new(),
        }
    }

    /// The same, with every sync taking this much longer: it gives concurrent writers the time to
    /// meet that they have on a disk.
    pub fn with_slow_syncs(mut self, microseconds: u32) -> Recorder {
        let text = microseconds.to_string();
        self.variables.push(("RECORDER_DELAY", text));
        self
    }

    /// The same, with calls that fail.
    pub fn with_fault(mut self, fault: Fault) -> Recorder {
        self.variables.push(("RECORDER_FAULT", fault.to_string()));
        self
    }

    /// The environment of a process that is to be recorded.
    pub fn environment(&self) -> Vec<(&'static str, String)> {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let mut all = vec![
            ("LD_PRELOAD", text(&self.library)),
            ("RECORDER_ROOT", text(&self.root)),
            ("RECORDER_LOG", text(&self.log)),
        ];
        all.extend(self.variables.iter().cloned());
        all
    }

    /// Writes a mark into the log, after everything that the process has recorded so far.
    pub fn mark(&self, kind: u64, number: u64) {
        let mut options = OpenOptions::new();
        let mut file = options.append(true).create(true).open(&self.log).unwrap();
        file.write_all(&log::mark(kind, number)).unwrap();
    }

    /// The log, for [`log::parse`].
    pub fn read(&self) -> Vec<u8> {
        fs::read(&self.log).unwrap_or_else(|e| {
            let path = self.log.display();
            panic!("{path}: {e}; was {} preloaded?", self.library.display())
        })
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Fault {
            calls,
            nth,
            error,
            times,
        } = self;
        write!(f, "{calls}:{nth}:{error}:{times}")
    }
}

/// Compiles the recorder into the build directory, unless this source was compiled before.
fn build() -> PathBuf {
    let source = fs::read(SOURCE).unwrap_or_else(|e| panic!("{SOURCE}: {e}"));
    // FNV-1a: a name for this source, no more.
    let hash = source.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let this = std::env::current_exe().unwrap();
    let profile = this.parent().and_then(Path::parent).unwrap();
    let library = profile.join(format!("libdisk_recorder-{hash:016x}.so"));
    if library.is_file() {
        return library;
    }
    // Other tests may be doing the same: each builds its own and renames it.
    let own = library.with_extension(format!("{}", std::process::id()));
    let mut cc = Command::new("cc");
    cc.args(["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror"]);
    cc.args(["-shared", "-fPIC", "-pthread", "-o"]);
    let output = cc.arg(&own).arg(SOURCE).output();
    let output = output.unwrap_or_else(|e| {
        panic!("the recorder needs a C compiler and `cc` does not run ({e}): `cargo xtask setup`")
    });
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{SOURCE}:\n{messages}");
    fs::rename(&own, &library).unwrap();
    library
}
