//! How many requests a tenant has left: a bucket of tokens for each tenant that has a rate.
//!
//! It must not know what a request is, nor who sends it.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nimbus_core::TenantId;

/// Seconds of requests that may come at once.
const BURST_SECONDS: f64 = 2.0;

#[derive(Debug)]
struct Bucket {
    rate: u64,
    tokens: f64,
    filled: Instant,
}

/// The buckets.
#[derive(Debug, Default)]
pub(crate) struct Rates(Mutex<HashMap<TenantId, Bucket>>);

impl Rates {
    /// Takes one request of `tenant`, which may have `rate` in a second; `Err` says when there may be another.
    pub(crate) fn take(&self, tenant: &TenantId, rate: u64, now: Instant) -> Result<(), Duration> {
        let mut all = self.lock();
        let per_second = rate as f64;
        let burst = per_second * BURST_SECONDS;
        let bucket = match all.get_mut(tenant) {
            Some(bucket) => bucket,
            None => all.entry(tenant.clone()).or_insert(Bucket {
                rate,
                tokens: burst,
                filled: now,
            }),
        };
        if bucket.rate != rate {
            // What was saved up under another rate is not more than this one allows.
            bucket.rate = rate;
            bucket.tokens = bucket.tokens.min(burst);
        }
        let passed = now.saturating_duration_since(bucket.filled).as_secs_f64();
        bucket.tokens = (bucket.tokens + passed * per_second).min(burst);
        bucket.filled = now;
        if bucket.tokens < 1.0 {
            return Err(Duration::from_secs_f64((1.0 - bucket.tokens) / per_second));
        }
        bucket.tokens -= 1.0;
        Ok(())
    }

    /// Forgets a tenant: it was deleted, or has no rate any more.
    pub(crate) fn forget(&self, tenant: &TenantId) {
        self.lock().remove(tenant);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TenantId, Bucket>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_has_its_rate_and_two_seconds_of_it_at_once() {
        let rates = Rates::default();
        let (a, b) = ("a".parse().unwrap(), "b".parse().unwrap());
        let start = Instant::now();
        for _ in 0..20 {
            rates.take(&a, 10, start).unwrap();
        }
        let wait = rates.take(&a, 10, start).unwrap_err();
        assert_eq!(wait, Duration::from_millis(100));
        rates.take(&b, 10, start).unwrap();
        assert!(rates.take(&a, 10, start + wait / 2).is_err());
        rates.take(&a, 10, start + wait).unwrap();
        // A long pause saves up no more than the burst.
        let later = start + Duration::from_secs(3_600);
        let taken = (0..100).filter(|_| rates.take(&a, 10, later).is_ok());
        assert_eq!(taken.count(), 20);
        // A lower rate holds at once, and what a tenant of the same name had before does not.
        let later = later + Duration::from_secs(3_600);
        let taken = (0..100).filter(|_| rates.take(&a, 1, later).is_ok());
        assert_eq!(taken.count(), 2);
        rates.forget(&a);
        rates.take(&a, 1, later).unwrap();
    }
}
