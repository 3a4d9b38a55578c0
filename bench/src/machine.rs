//! What is measured on: the machine, the CPU time and memory of processes, and how busy others
//! keep the machine meanwhile.
//!
//! Reads `/proc`, so it works on Linux alone. It must not know servers or rows.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use crate::stats::Latencies;

/// CPUs that this process may use.
pub(crate) fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Ties the calling thread, and what it starts, to one CPU.
pub(crate) fn pin(cpu: usize) -> Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).with_context(|| format!("pinning to CPU {cpu}"))
}

/// CPU seconds of a process with all its threads.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct CpuTime {
    pub(crate) user: f64,
    pub(crate) system: f64,
}

impl CpuTime {
    /// What a process has used so far.
    pub(crate) fn of(pid: u32) -> Result<CpuTime> {
        let [user, system, ..] = stat_ticks(&read(format!("/proc/{pid}/stat"))?)?;
        let seconds = |ticks: u64| ticks as f64 / ticks_per_second();
        Ok(CpuTime {
            user: seconds(user),
            system: seconds(system),
        })
    }

    /// What a process and its children have used so far, those that ended included.
    pub(crate) fn of_family(pid: u32) -> Result<CpuTime> {
        let ticks = stat_ticks(&read(format!("/proc/{pid}/stat"))?)?;
        let mut sum = ticks;
        for child in children(pid)? {
            // One that ended meanwhile is counted by its parent at the next look.
            let stat = read(format!("/proc/{child}/stat"));
            let ticks = stat.and_then(|stat| stat_ticks(&stat)).unwrap_or_default();
            sum = [0, 1, 2, 3].map(|at| sum[at] + ticks[at]);
        }
        let seconds = |ticks: u64| ticks as f64 / ticks_per_second();
        Ok(CpuTime {
            user: seconds(sum[0] + sum[2]),
            system: seconds(sum[1] + sum[3]),
        })
    }

    pub(crate) fn since(self, before: CpuTime) -> CpuTime {
        CpuTime {
            user: self.user - before.user,
            system: self.system - before.system,
        }
    }

    pub(crate) fn all(self) -> f64 {
        self.user + self.system
    }
}

/// The processes whose parent is `pid`.
pub(crate) fn children(pid: u32) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(child) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let stat = fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        if rest.split_whitespace().nth(1) == Some(&pid.to_string()) {
            found.push(child);
        }
    }
    Ok(found)
}

fn ticks_per_second() -> f64 {
    rustix::param::clock_ticks_per_second() as f64
}

/// User and system time of a process, then of its children that ended, in clock ticks.
fn stat_ticks(stat: &str) -> Result<[u64; 4]> {
    // The name in parentheses may hold anything, a parenthesis included.
    let after_name = stat.rsplit_once(')').map_or(stat, |(_, rest)| rest);
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let times = fields.get(11..15).context("a short /proc/PID/stat")?;
    let mut ticks = [0; 4];
    for (tick, text) in ticks.iter_mut().zip(times) {
        *tick = text.parse()?;
    }
    Ok(ticks)
}

/// Memory of a process in bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Memory {
    pub(crate) rss: u64,
    /// Resident memory with shared pages divided among those who share them.
    pub(crate) pss: u64,
}

pub(crate) fn memory(pid: u32) -> Result<Memory> {
    let rollup = read(format!("/proc/{pid}/smaps_rollup"))?;
    Ok(Memory {
        rss: kib(&rollup, "Rss:")? * 1024,
        pss: kib(&rollup, "Pss:")? * 1024,
    })
}

/// Most memory that the process was ever resident with, in bytes, since [`forget_peak`].
pub(crate) fn peak_rss(pid: u32) -> Result<u64> {
    Ok(kib(&read(format!("/proc/{pid}/status"))?, "VmHWM:")? * 1024)
}

/// Lets [`peak_rss`] start over.
pub(crate) fn forget_peak(pid: u32) -> Result<()> {
    fs::write(format!("/proc/{pid}/clear_refs"), "5")
        .context("resetting the peak of resident memory")
}

fn kib(text: &str, name: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    let number = number.with_context(|| format!("no {name} in {text}"))?;
    Ok(number.parse()?)
}

fn read(path: String) -> Result<String> {
    fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
}

/// How busy processes that are not ours keep the machine, from one moment to another.
#[derive(Debug)]
pub(crate) struct Watch {
    pids: Vec<u32>,
    started: Instant,
    all: f64,
    ours: f64,
}

impl Watch {
    /// Starts to watch; this process, its ended children and `pids` are ours.
    pub(crate) fn start(pids: &[u32]) -> Result<Watch> {
        Ok(Watch {
            pids: pids.to_vec(),
            started: Instant::now(),
            all: busy_seconds(&read("/proc/stat".to_owned())?)?,
            ours: our_seconds(pids)?,
        })
    }

    /// CPUs that were busy with something else, on average. The kernel's own work on our behalf
    /// counts as that too.
    pub(crate) fn foreign(&self) -> Result<f64> {
        let all = busy_seconds(&read("/proc/stat".to_owned())?)? - self.all;
        let ours = our_seconds(&self.pids)? - self.ours;
        Ok(((all - ours) / self.started.elapsed().as_secs_f64()).max(0.0))
    }
}

fn our_seconds(pids: &[u32]) -> Result<f64> {
    let own = stat_ticks(&read("/proc/self/stat".to_owned())?)?;
    let own = own.iter().sum::<u64>() as f64 / ticks_per_second();
    let others: Result<Vec<f64>> = pids
        .iter()
        .map(|pid| Ok(CpuTime::of_family(*pid)?.all()))
        .collect();
    Ok(own + others?.iter().sum::<f64>())
}

/// CPU seconds of the machine that were not idle: user, nice, system, interrupts, stolen.
fn busy_seconds(stat: &str) -> Result<f64> {
    let line = stat
        .lines()
        .next()
        .and_then(|line| line.strip_prefix("cpu "));
    let fields: Vec<u64> = line
        .context("no CPU line in /proc/stat")?
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    let idle = [3, 4];
    let busy = fields.iter().take(8).enumerate();
    let ticks: u64 = busy
        .filter(|(at, _)| !idle.contains(at))
        .map(|(_, ticks)| ticks)
        .sum();
    Ok(ticks as f64 / ticks_per_second())
}

/// Describes the machine, the disk below `dir` included.
pub(crate) fn describe(dir: &Path) -> Result<Value> {
    let cpu = read("/proc/cpuinfo".to_owned())?;
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let kernel = read("/proc/sys/kernel/osrelease".to_owned())?;
    let (mut sync, mut overwrite) = (sync_latency(dir, true)?, sync_latency(dir, false)?);
    let (device, kind) = file_system(dir)?;
    let load = read("/proc/loadavg".to_owned())?;
    Ok(json!({
        "cpu": model.map_or("unknown", |(_, model)| model),
        "cores": cpus(),
        "memory_bytes": kib(&read("/proc/meminfo".to_owned())?, "MemTotal:")? * 1024,
        "kernel": kernel.trim(),
        "disk": format!("{kind} on {device}"),
        "sync_append_4k_ms": { "p50": sync.percentile_ms(0.5), "p95": sync.percentile_ms(0.95) },
        "sync_overwrite_4k_ms": { "p50": overwrite.percentile_ms(0.5), "p95": overwrite.percentile_ms(0.95) },
        "load_average_at_start": load.split_whitespace().next(),
    }))
}

/// How long `fdatasync` takes after 4 KiB, appended or written over what is there.
fn sync_latency(dir: &Path, append: bool) -> Result<Latencies> {
    use std::os::unix::fs::FileExt as _;
    const COUNT: u64 = 200;
    let path = dir.join("sync-probe");
    let mut file = fs::File::create(&path)?;
    if !append {
        file.write_all(&vec![1; 4096 * COUNT as usize])?;
        file.sync_all()?;
    }
    let mut latencies = Latencies::default();
    for n in 0..COUNT {
        file.write_all_at(&[2; 4096], n * 4096)?;
        let started = Instant::now();
        file.sync_data()?;
        latencies.push(started.elapsed());
    }
    fs::remove_file(&path)?;
    Ok(latencies)
}

/// Device and kind of the file system that holds `dir`.
fn file_system(dir: &Path) -> Result<(String, String)> {
    let device = fs::metadata(dir)?.dev();
    let wanted = format!(
        "{}:{}",
        rustix::fs::major(device),
        rustix::fs::minor(device)
    );
    let mounts = read("/proc/self/mountinfo".to_owned())?;
    let found = mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let same = before.split(' ').nth(2) == Some(&wanted);
        let mut kind_and_device = after.split(' ');
        same.then(|| Some((kind_and_device.next()?, kind_and_device.next()?)))?
    });
    let (kind, device) = found.unwrap_or(("an unknown file system", "an unknown device"));
    Ok((device.to_owned(), kind.to_owned()))
}

/// Whether `dir` is on a file system in memory, where syncs cost nothing.
pub(crate) fn is_in_memory(dir: &Path) -> Result<bool> {
    Ok(matches!(file_system(dir)?.1.as_str(), "tmpfs" | "ramfs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_found_behind_any_name() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16";
        for name in ["(nimbus)", "(a b)", "(a) S 9 9 9)"] {
            let stat = format!("42 {name} {rest}");
            assert_eq!(stat_ticks(&stat).unwrap(), [11, 12, 13, 14], "{name}");
        }
        assert!(stat_ticks("42 (nimbus) S 1 2").is_err());
    }

    #[test]
    fn idle_time_and_guests_are_not_busy() {
        let stat = "cpu  100 10 50 4000 300 7 3 30 5 6\ncpu0 1 2 3\n";
        assert_eq!(busy_seconds(stat).unwrap() * ticks_per_second(), 200.0);
        assert!(busy_seconds("intr 1\n").is_err());
    }

    #[test]
    fn memory_is_read_in_bytes() {
        assert_eq!(kib("Rss:   12 kB\nPss:    7 kB\n", "Pss:").unwrap(), 7);
        assert!(kib("Rss: 12 kB\n", "Swap:").is_err());
        let own = memory(std::process::id()).unwrap();
        assert!(own.rss >= own.pss && own.pss > 0, "{own:?}");
    }

    #[test]
    fn the_watch_does_not_count_this_process() {
        let watch = Watch::start(&[]).unwrap();
        let all = watch.all;
        while CpuTime::of(std::process::id()).unwrap().all() < watch.ours + 0.1 {}
        let foreign = watch.foreign().unwrap() * watch.started.elapsed().as_secs_f64();
        let busy = busy_seconds(&read("/proc/stat".to_owned()).unwrap()).unwrap() - all;
        // Ours is at least the tenth of a second that was burnt.
        assert!(foreign <= busy - 0.08, "{foreign} of {busy}");
    }

    #[test]
    fn this_machine_can_be_described() {
        let dir = tempfile::tempdir().unwrap();
        let machine = describe(dir.path()).unwrap();
        for key in ["cpu", "kernel", "disk"] {
            assert!(
                machine[key].as_str().is_some_and(|text| !text.is_empty()),
                "{key}"
            );
        }
        assert!(
            machine["memory_bytes"]
                .as_u64()
                .is_some_and(|bytes| bytes > 0)
        );
    }
}
