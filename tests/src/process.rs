//! What the kernel says about a running process: memory and descriptors.
//!
//! It must not know what the process does.

use std::fs;
use std::path::PathBuf;

fn file(pid: u32, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

/// A line of `/proc/<pid>/status` in KiB.
fn status_kib(pid: u32, name: &str) -> u64 {
    let text = fs::read_to_string(file(pid, "status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|rest| rest.trim_start_matches(':').split_whitespace().next());
    let value = value.unwrap_or_else(|| panic!("no {name} in\n{text}"));
    value.parse().unwrap()
}

/// Resident memory now, in KiB.
pub fn resident_kib(pid: u32) -> u64 {
    status_kib(pid, "VmRSS")
}

/// The most resident memory since the start or since [`forget_peak`], in KiB.
pub fn peak_kib(pid: u32) -> u64 {
    status_kib(pid, "VmHWM")
}

/// Lets the peak begin again at what is resident now (proc(5), `clear_refs`).
pub fn forget_peak(pid: u32) {
    fs::write(file(pid, "clear_refs"), "5").unwrap();
}

/// Open sockets, the listening one included.
pub fn sockets(pid: u32) -> usize {
    let entries = fs::read_dir(file(pid, "fd")).unwrap();
    // A descriptor may be closed between listing and looking.
    let targets = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    targets
        .filter(|target| target.to_string_lossy().starts_with("socket:"))
        .count()
}
