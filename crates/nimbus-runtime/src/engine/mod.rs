//! The worker's half: a process that runs one invocation of one tenant at a time.
//!
//! It is started by [`crate::Runtime`] with a socket as its standard input and nothing else. It trusts the server;
//! the server trusts it with nothing but the tenant's own transaction.

mod action;
mod analyze;
mod egress;
mod failure;
mod invoke;
mod link;
mod maps;
mod memory;
mod modules;
mod natives;
mod realm;
mod session;
mod strings;

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use deno_core::v8;

use crate::protocol::{Done, FromWorker, Setup, Start, ToWorker};
use action::Actions;
use invoke::Call;
use realm::Factory;

/// What makes a worker's end certain and its start cheap. Without concurrent on-stack replacement V8 can be
/// stopped in any loop (ARCHITECTURE.md, "Functions"); one thread is enough for one invocation.
const V8_FLAGS: &str = "--single-threaded --no-concurrent-osr --stack-size=900";

/// Memory that a worker may have beside its heap and array buffers, in MiB.
const OVERHEAD_MB: u64 = 512;
/// Heap of a warm worker beyond which it is not used again, in MiB.
const RETIRE_MB: u64 = 64;

/// Runs the worker until the server closes the socket. The main function of the hidden subcommand; the process must
/// have done nothing else.
pub fn main() -> ExitCode {
    let Ok(fd) = std::io::stdin().as_fd().try_clone_to_owned() else {
        return ExitCode::FAILURE;
    };
    let mut link = link::Link::new(UnixStream::from(fd));
    let ToWorker::Setup(setup) = link.receive() else {
        return ExitCode::FAILURE;
    };
    if confine(&setup).is_err() {
        return ExitCode::FAILURE;
    }
    v8::V8::set_flags_from_string(V8_FLAGS);
    deno_core::JsRuntime::init_platform(None);
    let factory = Factory::new(setup.heap_mb, setup.initial_heap_mb);
    let mut isolate = factory.isolate();
    egress::grant(setup.egress.clone());
    let actions = Actions::new(None, setup.heap_mb, setup.initial_heap_mb);
    link.send(&FromWorker::Ready);
    session::open(link);
    loop {
        match session::with(|session| session.link.receive()) {
            ToWorker::Start(start) => {
                let done = start_function(&factory, &mut isolate, &actions, &start);
                session::with(|session| {
                    session.reset();
                    session.link.send(&FromWorker::Done(done));
                });
            }
            ToWorker::Analyze(asked) => {
                let found = analyze::run(&factory, &mut isolate, &asked);
                let found = found.map(|analysis| {
                    // Strings and numbers always make JSON; were it not so, the server refuses the text.
                    serde_json::to_string(&analysis).unwrap_or_default()
                });
                session::with(|session| {
                    session.reset();
                    session.link.send(&FromWorker::Analyzed(found));
                });
            }
            _ => return ExitCode::FAILURE,
        }
    }
}

fn start_function(
    factory: &Factory,
    isolate: &mut v8::OwnedIsolate,
    actions: &Actions,
    start: &Start,
) -> Done {
    let before = thread_cpu();
    let call = Call::of(start);
    let result = match start.kind.is_transactional() {
        true => invoke::run(factory, isolate, &call),
        false => actions.run(&call),
    };
    let cpu = thread_cpu().saturating_sub(before);
    let heap = isolate.get_heap_statistics();
    Done {
        result,
        observed_time: session::with(|session| session.observed_time),
        cpu_ns: u64::try_from(cpu.as_nanos()).unwrap_or(u64::MAX),
        retire: heap.used_heap_size() as u64 > RETIRE_MB * 1024 * 1024,
    }
}

/// CPU time of this thread.
fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

/// Gives up what a worker does not need: files, core dumps, memory without end.
fn confine(setup: &Setup) -> rustix::io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let to = |n: u64| Rlimit {
        current: Some(n),
        maximum: Some(n),
    };
    setrlimit(Resource::Core, to(0))?;
    setrlimit(Resource::Fsize, to(0))?;
    setrlimit(Resource::Nofile, to(256))?;
    let memory = (2 * setup.heap_mb + OVERHEAD_MB) * 1024 * 1024;
    setrlimit(Resource::Data, to(memory))?;
    Ok(())
}
