//! When an invocation has had enough: CPU time of its process, and time on the wall.
//!
//! The worker is not asked how much it used, since its isolate may be the thing that does not answer.

use std::time::Duration;

use tokio::time::Instant;

use crate::process::{Worker, process_cpu};
use crate::runtime::drive::Stop;

/// How often a running worker is measured.
const TICK: Duration = Duration::from_millis(20);

/// Limits of one invocation.
pub(crate) struct Watch {
    pid: u32,
    /// Own CPU time allowed, and the reading at the start.
    cpu: Option<(Duration, Option<Duration>)>,
    deadline: Instant,
    next: Instant,
    limit: Duration,
}

impl Watch {
    pub(crate) fn new(worker: &Worker, cpu: Option<Duration>, wall: Duration) -> Watch {
        let now = Instant::now();
        Watch {
            pid: worker.pid(),
            cpu: cpu.map(|limit| (limit, process_cpu(worker.pid()))),
            deadline: now + wall,
            next: now + TICK,
            limit: wall,
        }
    }

    /// Waits until the worker should be measured.
    pub(crate) async fn due(&self) {
        tokio::time::sleep_until(self.next.min(self.deadline)).await;
    }

    /// Measures it.
    pub(crate) fn check(&mut self) -> Result<(), Stop> {
        let now = Instant::now();
        if now >= self.deadline {
            return Err(Stop::WallTime { limit: self.limit });
        }
        self.next = now + TICK;
        let Some((limit, start)) = self.cpu else {
            return Ok(());
        };
        let used = match (start, process_cpu(self.pid)) {
            (Some(start), Some(now)) => now.saturating_sub(start),
            // Where a process cannot be measured, the wall is what there is.
            _ => (self.limit - (self.deadline - now)) / 2,
        };
        if used > limit {
            return Err(Stop::UserTime { limit });
        }
        Ok(())
    }
}
