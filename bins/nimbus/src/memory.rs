//! How much memory this process may use: what the machine has, and what a control group leaves of it.
//! Must not know what the memory is for.

use std::path::Path;

/// Bytes that this process may use, as far as the system tells.
pub(crate) fn available() -> Option<u64> {
    let machine = std::fs::read_to_string("/proc/meminfo").ok();
    let machine = machine.as_deref().and_then(total);
    [machine, limit()].into_iter().flatten().min()
}

/// `MemTotal` of `/proc/meminfo` in bytes.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// The lowest limit of the control groups (v2) that this process is in, in bytes.
pub(crate) fn limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let root = Path::new("/sys/fs/cgroup");
    let group = root.join(own.trim_start_matches('/'));
    let levels = group
        .ancestors()
        .take_while(|level| level.starts_with(root));
    levels
        .filter_map(|level| std::fs::read_to_string(level.join("memory.max")).ok())
        .filter_map(|text| text.trim().parse().ok())
        .min()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn the_total_is_read_in_bytes() {
        let text = "MemFree: 1 kB\nMemTotal:       24684084 kB\nSwapTotal: 0 kB\n";
        assert_eq!(total(text), Some(24_684_084 * 1024));
        for bad in [
            "",
            "MemTotal: 5",
            "MemTotal: x kB",
            "MemTotal: 99999999999999999999 kB",
        ] {
            assert_eq!(total(bad), None, "{bad}");
        }
        assert!(available().is_some());
    }
}
