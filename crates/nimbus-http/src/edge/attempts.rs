//! The slow-down of failed tokens, per client and in total.
//!
//! A right token never comes here, so whatever others do cannot delay it. This room must not know
//! tokens; it is told that one was wrong.

use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use governor::clock::DefaultClock;
use governor::state::keyed::HashMapStateStore;
use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::Semaphore;

/// Failures between two sweeps of the clients that are quiet again.
const SWEEP_EVERY: u32 = 256;

/// How many failed tokens are answered at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FailedTokenLimits {
    /// Per client: this many at once, then one a second. Default 10.
    pub client_burst: NonZeroU32,
    /// In total: this many at once, then as many in each second. Default 100.
    pub total: NonZeroU32,
    /// How long an answer beyond them takes. Default 1 s.
    pub pause: Duration,
    /// How many answers may wait at once; the others are 429 at once. Default 64.
    pub waiting: usize,
}

impl Default for FailedTokenLimits {
    fn default() -> FailedTokenLimits {
        FailedTokenLimits {
            client_burst: NonZeroU32::MIN.saturating_add(9),
            total: NonZeroU32::MIN.saturating_add(99),
            pause: Duration::from_secs(1),
            waiting: 64,
        }
    }
}

impl FailedTokenLimits {
    /// So many that nobody meets them, for tests of other things.
    pub fn none() -> FailedTokenLimits {
        FailedTokenLimits {
            client_burst: NonZeroU32::MAX,
            total: NonZeroU32::MAX,
            ..FailedTokenLimits::default()
        }
    }
}

type PerClient = RateLimiter<IpAddr, HashMapStateStore<IpAddr>, DefaultClock>;

/// The failures of late.
pub(crate) struct FailedTokens {
    per_client: PerClient,
    total: DefaultDirectRateLimiter,
    pause: Duration,
    waiting: Semaphore,
    failures: AtomicU32,
}

/// What becomes of the answer to a failed token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The usual answer.
    Answer,
    /// The caller is told to come back later.
    TooMany,
}

impl FailedTokens {
    pub(crate) fn new(limits: FailedTokenLimits) -> FailedTokens {
        let per_client = Quota::per_second(NonZeroU32::MIN).allow_burst(limits.client_burst);
        FailedTokens {
            per_client: RateLimiter::hashmap(per_client),
            total: RateLimiter::direct(Quota::per_second(limits.total)),
            pause: limits.pause,
            waiting: Semaphore::new(limits.waiting),
            failures: AtomicU32::new(0),
        }
    }

    /// Counts a failed token of `client`, and waits when there were too many.
    pub(crate) async fn slow_down(&self, client: IpAddr) -> Verdict {
        self.sweep();
        let alone = self.per_client.check_key(&network(client)).is_ok();
        // Counted in any case: many clients together are slowed down too.
        let together = self.total.check().is_ok();
        if alone && together {
            return Verdict::Answer;
        }
        // Bounded, so that those who wait cannot take all connections.
        let Ok(_place) = self.waiting.try_acquire() else {
            return Verdict::TooMany;
        };
        tokio::time::sleep(self.pause).await;
        Verdict::Answer
    }

    /// Forgets clients that are quiet again, so that the memory is bounded by the rate of failures.
    fn sweep(&self) {
        if self.failures.fetch_add(1, Ordering::Relaxed) % SWEEP_EVERY == SWEEP_EVERY - 1 {
            self.per_client.retain_recent();
            self.per_client.shrink_to_fit();
        }
    }
}

impl std::fmt::Debug for FailedTokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FailedTokens").finish_non_exhaustive()
    }
}

/// What counts as one client: an IPv4 address, or the /64 that one subscriber of IPv6 has.
fn network(client: IpAddr) -> IpAddr {
    match client {
        IpAddr::V4(_) => client,
        IpAddr::V6(address) => {
            let bits = u128::from(address) & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from(bits))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::task::Poll;

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn limits(burst: u32, total: u32, waiting: usize) -> FailedTokens {
        FailedTokens::new(FailedTokenLimits {
            client_burst: NonZeroU32::new(burst).unwrap(),
            total: NonZeroU32::new(total).unwrap(),
            // Longer than the test: who waits is seen waiting.
            pause: Duration::from_secs(3_600),
            waiting,
        })
    }

    /// Whether the answer comes at once, and which.
    async fn now(tokens: &FailedTokens, client: &str) -> Option<Verdict> {
        let slow = tokens.slow_down(ip(client));
        futures_util::FutureExt::now_or_never(slow)
    }

    #[tokio::test]
    async fn a_client_is_slowed_down_alone() {
        let tokens = limits(3, 1_000, 0);
        for _ in 0..3 {
            assert_eq!(now(&tokens, "10.0.0.1").await, Some(Verdict::Answer));
        }
        assert_eq!(now(&tokens, "10.0.0.1").await, Some(Verdict::TooMany));
        assert_eq!(now(&tokens, "10.0.0.2").await, Some(Verdict::Answer));
    }

    #[tokio::test]
    async fn one_subscriber_of_ipv6_is_one_client() {
        let tokens = limits(1, 1_000, 0);
        assert_eq!(now(&tokens, "2001:db8::1").await, Some(Verdict::Answer));
        assert_eq!(
            now(&tokens, "2001:db8::ffff:2").await,
            Some(Verdict::TooMany)
        );
        assert_eq!(now(&tokens, "2001:db8:0:1::1").await, Some(Verdict::Answer));
    }

    #[tokio::test]
    async fn many_clients_are_slowed_down_together() {
        let tokens = limits(10, 4, 0);
        for client in 1..5 {
            assert_eq!(
                now(&tokens, &format!("10.0.0.{client}")).await,
                Some(Verdict::Answer)
            );
        }
        assert_eq!(now(&tokens, "10.0.0.5").await, Some(Verdict::TooMany));
    }

    #[tokio::test]
    async fn those_who_wait_are_bounded() {
        let tokens = limits(1, 1_000, 2);
        now(&tokens, "10.0.0.1").await;
        let mut waiting: Vec<_> = (0..2)
            .map(|_| Box::pin(tokens.slow_down(ip("10.0.0.1"))))
            .collect();
        for one in &mut waiting {
            let polled = std::future::poll_fn(|cx| Poll::Ready(one.as_mut().poll(cx))).await;
            assert!(polled.is_pending(), "it did not wait");
        }
        assert_eq!(now(&tokens, "10.0.0.1").await, Some(Verdict::TooMany));
        // A client that leaves gives its place back.
        waiting.pop();
        assert_eq!(now(&tokens, "10.0.0.1").await, None);
    }

    #[tokio::test]
    async fn quiet_clients_are_forgotten() {
        let mut tokens = FailedTokens::new(FailedTokenLimits::none());
        // So short a memory that every client is quiet again at the next sweep.
        let period = Quota::with_period(Duration::from_nanos(1)).unwrap();
        tokens.per_client = RateLimiter::hashmap(period);
        for client in 0..SWEEP_EVERY * 4 {
            let address = IpAddr::V4(std::net::Ipv4Addr::from(client));
            assert_eq!(tokens.slow_down(address).await, Verdict::Answer);
        }
        assert!(
            tokens.per_client.len() <= SWEEP_EVERY as usize,
            "{}",
            tokens.per_client.len()
        );
    }
}
