//! Closed-loop load: every client sends its next request when it has its last answer.
//!
//! One thread drives all clients. It must not know what the requests mean.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::task::{JoinSet, LocalSet};

use crate::http::Connection;
use crate::machine::{self, CpuTime};
use crate::random::Rng;
use crate::stats::Latencies;

/// Whom to load, and how.
#[derive(Clone, Debug)]
pub(crate) struct Load {
    pub(crate) address: SocketAddr,
    pub(crate) clients: usize,
    /// The one status that counts as success; any other fails the run.
    pub(crate) status: u16,
    /// Process whose CPU time is taken beside the count.
    pub(crate) pid: Option<u32>,
    /// CPU that the clients run on; any when absent.
    pub(crate) cpu: Option<usize>,
    /// Whether the thread of the clients never sleeps. A server pays for waking a client that
    /// sleeps, and a slow server meets more of those than a fast one.
    pub(crate) spin: bool,
}

/// What a timed load measured, warm-up apart.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) seconds: f64,
    /// What the watched process used.
    pub(crate) server_cpu: CpuTime,
    pub(crate) latencies: Latencies,
}

impl Measured {
    pub(crate) fn per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.seconds
    }

    pub(crate) fn per_cpu_second(&self) -> f64 {
        self.latencies.len() as f64 / self.server_cpu.all()
    }

    /// CPUs that the watched process kept busy.
    pub(crate) fn cpus_used(&self) -> f64 {
        self.server_cpu.all() / self.seconds
    }
}

/// Makes a request: the client's random numbers, the number of the request, where to write it.
pub(crate) trait Make: Fn(&mut Rng, u64, &mut Vec<u8>) + Send + 'static {}
impl<F: Fn(&mut Rng, u64, &mut Vec<u8>) + Send + 'static> Make for F {}

/// Takes an answer: the number of its request and its body.
pub(crate) trait Take: Fn(u64, &[u8]) -> Result<()> + Send + 'static {}
impl<F: Fn(u64, &[u8]) -> Result<()> + Send + 'static> Take for F {}

/// Loads for `warm`, then measures for `time`. A client starts no request after that, and the
/// call returns when each has its last answer.
pub(crate) fn timed(
    load: &Load,
    warm: Duration,
    time: Duration,
    seed: u64,
    make: impl Make,
) -> Result<Measured> {
    let load = load.clone();
    on_a_thread(load.cpu, async move || {
        let run = Rc::new(Run::new(load, u64::MAX, make, |_, _| Ok(())));
        let clients = run.start(seed);
        let measured = tokio::select! {
            measured = run.measure(warm, time) => measured?,
            () = run.failed.notified() => return Err(run.first_failure()),
        };
        run.end(clients).await?;
        let (seconds, server_cpu) = measured;
        Ok(Measured {
            seconds,
            server_cpu,
            latencies: run.latencies.take(),
        })
    })
}

/// Sends `count` requests and hands each answer over.
pub(crate) fn counted(load: &Load, count: u64, make: impl Make, take: impl Take) -> Result<()> {
    let load = load.clone();
    on_a_thread(load.cpu, async move || {
        let run = Rc::new(Run::new(load, count, make, take));
        let clients = run.start(0);
        run.end(clients).await
    })
}

/// Sends `count` requests and tells how long each took.
pub(crate) fn counted_timed(load: &Load, count: u64, make: impl Make) -> Result<Latencies> {
    let load = load.clone();
    on_a_thread(load.cpu, async move || {
        let run = Rc::new(Run::new(load, count, make, |_, _| Ok(())));
        run.measuring.set(true);
        let clients = run.start(0);
        run.end(clients).await?;
        Ok(run.latencies.take())
    })
}

/// What the clients of one run share.
struct Run {
    load: Load,
    make: Box<dyn Make>,
    take: Box<dyn Take>,
    count: u64,
    next: Cell<u64>,
    measuring: Cell<bool>,
    stop: Cell<bool>,
    latencies: RefCell<Latencies>,
    failure: RefCell<Option<anyhow::Error>>,
    failed: tokio::sync::Notify,
}

impl Run {
    fn new(load: Load, count: u64, make: impl Make, take: impl Take) -> Run {
        Run {
            load,
            make: Box::new(make),
            take: Box::new(take),
            count,
            next: Cell::new(0),
            measuring: Cell::new(false),
            stop: Cell::new(false),
            latencies: RefCell::default(),
            failure: RefCell::default(),
            failed: tokio::sync::Notify::new(),
        }
    }

    fn start(self: &Rc<Run>, seed: u64) -> JoinSet<()> {
        let mut clients = JoinSet::new();
        if self.load.spin {
            let run = Rc::clone(self);
            clients.spawn_local(async move {
                while !run.stop.get() && run.next.get() < run.count {
                    tokio::task::yield_now().await;
                }
            });
        }
        for client in 0..self.load.clients {
            let run = Rc::clone(self);
            clients.spawn_local(async move {
                let rng = Rng::new((seed << 16) + client as u64);
                if let Err(error) = run.client(rng).await {
                    run.failure.borrow_mut().get_or_insert(error);
                    run.stop.set(true);
                    run.failed.notify_one();
                }
            });
        }
        clients
    }

    async fn measure(&self, warm: Duration, time: Duration) -> Result<(f64, CpuTime)> {
        tokio::time::sleep(warm).await;
        let (cpu, started) = (self.server_cpu()?, Instant::now());
        self.measuring.set(true);
        tokio::time::sleep(time).await;
        self.measuring.set(false);
        let seconds = started.elapsed().as_secs_f64();
        let server_cpu = self.server_cpu()?.since(cpu);
        self.stop.set(true);
        Ok((seconds, server_cpu))
    }

    async fn end(&self, mut clients: JoinSet<()>) -> Result<()> {
        while let Some(ended) = clients.join_next().await {
            ended?;
        }
        match self.failure.take() {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn first_failure(&self) -> anyhow::Error {
        let failure = self.failure.take();
        failure.unwrap_or_else(|| anyhow::anyhow!("a client failed"))
    }

    fn server_cpu(&self) -> Result<CpuTime> {
        let pid = self.load.pid;
        pid.map_or(Ok(CpuTime::default()), CpuTime::of_family)
    }

    async fn client(&self, mut rng: Rng) -> Result<()> {
        let mut connection = Connection::open(self.load.address).await?;
        let mut request = Vec::with_capacity(1024);
        let mut latencies = Latencies::default();
        while !self.stop.get() {
            let number = self.next.get();
            if number >= self.count {
                break;
            }
            self.next.set(number + 1);
            (self.make)(&mut rng, number, &mut request);
            let started = Instant::now();
            let answer = connection.call(&request).await?;
            let elapsed = started.elapsed();
            if answer.status != self.load.status {
                let text = String::from_utf8_lossy(&answer.body[..answer.body.len().min(500)]);
                bail!(
                    "status {} instead of {}: {text}",
                    answer.status,
                    self.load.status
                );
            }
            (self.take)(number, answer.body)?;
            if self.measuring.get() {
                latencies.push(elapsed);
            }
        }
        self.latencies.borrow_mut().append(latencies);
        Ok(())
    }
}

/// Runs `work` to its end on a thread and a runtime of its own.
fn on_a_thread<T: Send>(
    cpu: Option<usize>,
    work: impl AsyncFnOnce() -> Result<T> + Send,
) -> Result<T> {
    let run = move || {
        if let Some(cpu) = cpu {
            machine::pin(cpu)?;
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(LocalSet::new().run_until(work()))
    };
    std::thread::scope(|scope| {
        let joined = scope.spawn(run).join();
        joined.unwrap_or_else(|_| bail!("the thread that drives the clients panicked"))
    })
}
