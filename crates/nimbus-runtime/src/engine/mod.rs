//! The worker's half: a process that runs one invocation of one tenant at a time.
//!
//! It is started by [`crate::Runtime`] with a socket as its standard input and nothing else. It trusts the server;
//! the server trusts it with nothing but the tenant's own transaction.

mod action;
mod analyze;
mod confine;
mod egress;
mod failure;
mod guard;
mod invoke;
mod link;
mod maps;
mod memory;
mod modules;
mod natives;
mod realm;
mod session;
mod sources;
mod strings;

use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::time::Duration;

use deno_core::v8;

use crate::call::JsFailure;
use crate::protocol::{Done, FromWorker, Lane, Task, ToWorker};
use action::Actions;
use invoke::Call;
use link::Link;
use realm::Factory;

/// The engine of this build.
pub const NAME: &str = if cfg!(feature = "quickjs") {
    "quickjs"
} else {
    "v8"
};

/// What makes a worker's end certain and its start cheap. Without concurrent on-stack replacement V8 can be
/// stopped in any loop (ARCHITECTURE.md, "Functions"); one thread is enough for one invocation.
const V8_FLAGS: &str = "--single-threaded --no-concurrent-osr --stack-size=900";

/// Heap of a warm worker beyond which it is not used again, in MiB.
const RETIRE_MB: u64 = 64;

/// The same in bytes. QuickJS gives little back between calls: there a worker goes while three quarters of the heap
/// that a call may have are left.
const fn retire_bytes(heap_mb: u64) -> u64 {
    let mb = match cfg!(feature = "quickjs") {
        true => heap_mb / 4,
        false => RETIRE_MB,
    };
    mb * 1024 * 1024
}

/// Runs the worker until the server closes the socket. The main function of the hidden subcommand; the process must
/// have done nothing else.
pub fn main() -> ExitCode {
    match worker() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The server reads this when a worker is lost.
            drop(writeln!(std::io::stderr(), "{error}"));
            ExitCode::FAILURE
        }
    }
}

fn worker() -> Result<(), Box<dyn std::error::Error>> {
    guard::close_inherited();
    // QuickJS would keep compiled code in files for others to read.
    // SAFETY: the process has no other thread yet.
    #[cfg(feature = "quickjs")]
    unsafe {
        std::env::set_var("V82JSC_NO_BC_CACHE", "1");
    }
    let socket = std::io::stdin().as_fd().try_clone_to_owned()?;
    let watched = socket.try_clone()?;
    let mut link = Link::new(UnixStream::from(socket));
    let ToWorker::Setup(setup) = link.receive() else {
        return Err("a worker is started by the server".into());
    };
    let confined = confine::confine(&setup)?;
    // After it was confined: a thread that was there before would not be.
    guard::end_with_server(watched)?;
    v8::V8::set_flags_from_string(V8_FLAGS);
    deno_core::JsRuntime::init_platform(None);
    if setup.task == Task::MakeSnapshot {
        link.send(&FromWorker::Snapshot(match setup.lane {
            Lane::Transactions => realm::snapshot(),
            Lane::Actions => action::snapshot(),
        }));
        return Ok(());
    }
    let snapshot = given_snapshot(setup.task)?;
    match setup.lane {
        Lane::Transactions => {
            let retire = retire_bytes(setup.heap_mb);
            transactions(link, Factory::new(snapshot, &setup), confined, retire);
        }
        Lane::Actions => {
            // Nobody else in this process chooses, so there is no error.
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
            actions(link, Actions::new(snapshot, &setup), confined);
        }
    }
    Err("the server sent what a worker does not know".into())
}

/// Runs queries, mutations and analyses; the worker is not used again once its heap has more than `retire` bytes.
fn transactions(mut link: Link, factory: Factory, confined: bool, retire: u64) {
    let mut isolate = factory.isolate();
    factory.prepare(&mut isolate);
    link.send(&FromWorker::Ready { confined });
    session::open(link);
    loop {
        match session::with(|session| session.link.receive()) {
            ToWorker::Start(start) => {
                let done = measured(|| invoke::run(&factory, &mut isolate, &Call::of(&start)));
                let heap = isolate.get_heap_statistics().used_heap_size() as u64;
                finish(done, heap > retire);
                factory.prepare(&mut isolate);
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
            _ => return,
        }
    }
}

/// Runs actions; each has an isolate of its own.
fn actions(mut link: Link, mut actions: Actions, confined: bool) {
    actions.prepare();
    link.send(&FromWorker::Ready { confined });
    session::open(link);
    loop {
        match session::with(|session| session.link.receive()) {
            ToWorker::Start(start) => {
                finish(measured(|| actions.run(&Call::of(&start))), false);
                actions.prepare();
            }
            _ => return,
        }
    }
}

/// A result, and the CPU time of this thread that it took.
fn measured(
    job: impl FnOnce() -> Result<String, JsFailure>,
) -> (Result<String, JsFailure>, Duration) {
    let before = thread_cpu();
    let result = job();
    (result, thread_cpu().saturating_sub(before))
}

/// Tells the server how the invocation ended.
fn finish((result, cpu): (Result<String, JsFailure>, Duration), retire: bool) {
    session::with(|session| {
        let done = Done {
            result,
            observed_time: session.observed_time,
            cpu_ns: u64::try_from(cpu.as_nanos()).unwrap_or(u64::MAX),
            retire,
        };
        session.reset();
        session.link.send(&FromWorker::Done(done));
    });
}

/// The snapshot that the server put at the standard output: mapped, so that all workers share its memory.
fn given_snapshot(task: Task) -> rustix::io::Result<Option<&'static [u8]>> {
    use rustix::mm::{MapFlags, ProtFlags, mmap};
    if task != Task::RunFromSnapshot {
        return Ok(None);
    }
    let file = std::io::stdout();
    let length = usize::try_from(rustix::fs::fstat(&file)?.st_size).unwrap_or_default();
    // SAFETY: the memory is sealed against writing and shrinking, and mapped for as long as the process lives.
    let bytes = unsafe {
        let start = mmap(
            std::ptr::null_mut(),
            length,
            ProtFlags::READ,
            MapFlags::SHARED,
            &file,
            0,
        )?;
        std::slice::from_raw_parts(start.cast::<u8>(), length)
    };
    Ok(Some(bytes))
}

/// CPU time of this thread.
fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}
