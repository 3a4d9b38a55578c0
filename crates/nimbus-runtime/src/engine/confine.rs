//! What a worker process gives up before it runs anything: so that code which breaks out of the engine finds no
//! file of another tenant, no other process and, in the lane of transactions, no network.
//!
//! Limits of the system hold everywhere; Landlock (files, TCP) and seccomp (system calls) where Linux has them.
//! An older kernel enforces what it knows.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::protocol::{Lane, Setup, Task};

/// Memory that a worker may have beside its heap and array buffers, in MiB.
const OVERHEAD_MB: u64 = 512;

/// Why a worker does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ConfineError {
    #[error("a resource limit: {0}")]
    Limit(#[from] rustix::io::Errno),
    #[cfg(target_os = "linux")]
    #[error("Landlock: {0}")]
    Landlock(#[from] landlock::RulesetError),
    #[cfg(target_os = "linux")]
    #[error("seccomp: {0}")]
    Seccomp(#[from] seccompiler::Error),
    #[cfg(target_os = "linux")]
    #[error("seccomp: {0}")]
    Filter(#[from] seccompiler::BackendError),
}

/// Confines this thread, and those that it will start. `false`: the system does not keep it from files.
pub(crate) fn confine(setup: &Setup) -> Result<bool, ConfineError> {
    limit(setup)?;
    #[cfg(target_os = "linux")]
    if setup.task != Task::MakeSnapshot {
        let confined = linux::files(setup.lane)?;
        linux::calls(setup.lane)?;
        return Ok(confined);
    }
    Ok(false)
}

fn limit(setup: &Setup) -> Result<(), ConfineError> {
    let memory = (2 * setup.heap_mb + OVERHEAD_MB) * 1024 * 1024;
    lower(Resource::Core, 0)?;
    lower(Resource::Fsize, 0)?;
    lower(Resource::Nofile, 256)?;
    lower(Resource::Data, memory)
}

/// Sets a limit, or leaves one that is lower already: it cannot be raised.
fn lower(resource: Resource, most: u64) -> Result<(), ConfineError> {
    let held = getrlimit(resource).maximum.unwrap_or(u64::MAX);
    let limit = Some(most.min(held));
    let limit = Rlimit {
        current: limit,
        maximum: limit,
    };
    Ok(setrlimit(resource, limit)?)
}

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::BTreeMap;

    use landlock::{
        ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, Ruleset,
        RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus, Scope, path_beneath_rules,
    };
    use seccompiler::SeccompCmpOp::{MaskedEq, Ne};
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule, TargetArch,
    };

    use super::{ConfineError, Lane};

    /// What the C library and the engine look at while they start.
    const SYSTEM: [&str; 3] = [
        "/proc/self/maps",
        "/proc/cpuinfo",
        "/sys/devices/system/cpu",
    ];

    /// What resolving a name needs.
    const RESOLVER: [&str; 10] = [
        "/etc/gai.conf",
        "/etc/host.conf",
        "/etc/hosts",
        "/etc/ld.so.cache",
        "/etc/nsswitch.conf",
        "/etc/resolv.conf",
        "/lib",
        "/lib64",
        "/run/systemd/resolve",
        "/usr/lib",
    ];

    /// Calls that no worker makes: other processes, the kernel's insides, ways around the file rules.
    const NEVER: [libc::c_long; 37] = [
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_kill,
        libc::SYS_tkill,
        libc::SYS_rt_sigqueueinfo,
        libc::SYS_rt_tgsigqueueinfo,
        libc::SYS_pidfd_open,
        libc::SYS_pidfd_getfd,
        libc::SYS_pidfd_send_signal,
        libc::SYS_open_by_handle_at,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_bpf,
        libc::SYS_perf_event_open,
        libc::SYS_io_uring_setup,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_keyctl,
        libc::SYS_userfaultfd,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_kexec_load,
        libc::SYS_reboot,
        libc::SYS_shmget,
        libc::SYS_shmat,
        libc::SYS_shmctl,
        libc::SYS_msgget,
        libc::SYS_semget,
        libc::SYS_process_madvise,
        libc::SYS_kcmp,
    ];

    /// Calls that make a process; architectures of today have only clone(2).
    #[cfg(target_arch = "x86_64")]
    const FORKS: [libc::c_long; 2] = [libc::SYS_fork, libc::SYS_vfork];
    #[cfg(not(target_arch = "x86_64"))]
    const FORKS: [libc::c_long; 0] = [];

    /// Calls that begin with a network.
    const NETWORK: [libc::c_long; 2] = [libc::SYS_socket, libc::SYS_socketpair];

    /// Leaves no file but those that a lane reads, and no TCP to the lane of transactions.
    /// `false`: the system has no Landlock.
    pub(super) fn files(lane: Lane) -> Result<bool, ConfineError> {
        let abi = ABI::V6;
        let mut ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(abi))?
            .scope(Scope::from_all(abi))?;
        let mut paths = SYSTEM.to_vec();
        match lane {
            Lane::Transactions => ruleset = ruleset.handle_access(AccessNet::from_all(abi))?,
            Lane::Actions => paths.extend(RESOLVER),
        }
        let read = AccessFs::from_read(abi);
        let status = ruleset
            .create()?
            .add_rules(path_beneath_rules(paths, read))?
            .restrict_self()?;
        Ok(status.ruleset != RulesetStatus::NotEnforced)
    }

    /// Refuses calls with EPERM; `clone3` as one that the kernel does not know, so that the C library takes `clone`,
    /// whose flags a filter can see.
    pub(super) fn calls(lane: Lane) -> Result<(), ConfineError> {
        let network: &[libc::c_long] = match lane {
            Lane::Transactions => &NETWORK,
            Lane::Actions => &[],
        };
        let all = NEVER.iter().chain(&FORKS).chain(network);
        let mut refused: Rules = all.map(|call| (*call, Vec::new())).collect();
        let own = u64::from(std::process::id());
        // Signals and limits of other processes; processes rather than threads.
        refused.insert(libc::SYS_tgkill, vec![rule(&[(0, Ne, own)])?]);
        refused.insert(
            libc::SYS_prlimit64,
            vec![rule(&[(0, Ne, 0), (0, Ne, own)])?],
        );
        let threads = libc::CLONE_THREAD.unsigned_abs().into();
        refused.insert(libc::SYS_clone, vec![rule(&[(0, MaskedEq(threads), 0)])?]);
        if lane == Lane::Actions {
            let [v4, v6] =
                [libc::AF_INET, libc::AF_INET6].map(|family| u64::from(family.unsigned_abs()));
            refused.insert(libc::SYS_socket, vec![rule(&[(0, Ne, v4), (0, Ne, v6)])?]);
        }
        apply(refused, libc::EPERM)?;
        apply(Rules::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS)
    }

    type Rules = BTreeMap<i64, Vec<SeccompRule>>;

    /// Holds when every argument compares as said.
    fn rule(conditions: &[(u8, SeccompCmpOp, u64)]) -> Result<SeccompRule, ConfineError> {
        let conditions: Result<Vec<_>, _> = conditions
            .iter()
            .map(|(at, compare, value)| {
                SeccompCondition::new(*at, SeccompCmpArgLen::Dword, compare.clone(), *value)
            })
            .collect();
        Ok(SeccompRule::new(conditions?)?)
    }

    fn apply(refused: Rules, errno: i32) -> Result<(), ConfineError> {
        let errno = SeccompAction::Errno(errno.unsigned_abs());
        let arch = TargetArch::try_from(std::env::consts::ARCH)?;
        let filter = SeccompFilter::new(refused, SeccompAction::Allow, errno, arch)?;
        let program: BpfProgram = filter.try_into()?;
        Ok(seccompiler::apply_filter(&program)?)
    }
}

#[cfg(all(test, target_os = "linux"))]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::io::ErrorKind::PermissionDenied;
    use std::net::{TcpListener, ToSocketAddrs as _};

    use super::*;

    /// What is left to a thread of this lane: reading another's file, a program, a socket, resolving a name.
    fn left(lane: Lane) -> [bool; 4] {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_owned();
        std::thread::spawn(move || {
            assert!(linux::files(lane).unwrap(), "this system has no Landlock");
            linux::calls(lane).unwrap();
            // What a worker needs goes on: threads, and limits of its own.
            std::thread::spawn(|| {}).join().unwrap();
            rustix::process::getrlimit(rustix::process::Resource::Stack);
            let refused = |error: &std::io::Error| error.kind() == PermissionDenied;
            let read = std::fs::read(&path);
            let program = std::process::Command::new("/bin/true").status();
            let socket = TcpListener::bind("127.0.0.1:0");
            [
                !read.is_err_and(|e| refused(&e)),
                !program.is_err_and(|e| refused(&e)),
                !socket.is_err_and(|e| refused(&e)),
                ("localhost", 80).to_socket_addrs().is_ok(),
            ]
        })
        .join()
        .unwrap()
    }

    #[test]
    fn a_confined_thread_reaches_no_file_no_program_and_in_transactions_no_network() {
        let [file, program, socket, _] = left(Lane::Transactions);
        assert_eq!([file, program, socket], [false; 3]);
        assert_eq!(left(Lane::Actions), [false, false, true, true]);
    }
}
