//! Which refused fetches get a line in the audit log: other people's code decides how many there are, so it is one a
//! minute for each tenant and host, with the number of those that had none.
//!
//! It must not write the log, nor know what a fetch is.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nimbus_core::TenantId;

/// How long one line stands for all others.
const WINDOW: Duration = Duration::from_secs(60);
/// Hosts of one tenant that have lines of their own in one window; all others share one.
const MAX_HOSTS: usize = 32;
/// What stands for the others.
const OTHERS: &str = "other hosts";
/// Bytes of a host's name that are looked at; no name has more.
const MAX_NAME: usize = 256;

/// A line to write.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub host: String,
    pub reason: String,
}

#[derive(Debug)]
struct Seen {
    since: Instant,
    /// Refusals after the one that has the line.
    more: u64,
}

/// What was refused lately.
#[derive(Debug, Default)]
pub(crate) struct Denials(Mutex<HashMap<TenantId, HashMap<String, Seen>>>);

impl Denials {
    /// Takes note of a refusal; the lines that are due.
    pub(crate) fn note(&self, now: Instant, tenant: &TenantId, host: &str, why: &str) -> Vec<Line> {
        let mut all = self.lock();
        let hosts = all.entry(tenant.clone()).or_default();
        let mut lines = Vec::new();
        hosts.retain(|host, seen| {
            let goes_on = now.saturating_duration_since(seen.since) < WINDOW;
            if !goes_on && seen.more > 0 {
                lines.push(Line {
                    host: host.clone(),
                    reason: format!("egress.denied: {} more within a minute", seen.more),
                });
            }
            goes_on
        });
        let name = &host[..host.floor_char_boundary(MAX_NAME)];
        let key = match hosts.len() < MAX_HOSTS || hosts.contains_key(name) {
            true => name,
            false => OTHERS,
        };
        if let Some(seen) = hosts.get_mut(key) {
            seen.more += 1;
            return lines;
        }
        let seen = Seen {
            since: now,
            more: 0,
        };
        hosts.insert(key.to_owned(), seen);
        lines.push(Line {
            host: name.to_owned(),
            reason: format!("egress.denied: {why}"),
        });
        lines
    }

    /// Forgets a tenant that is deleted.
    pub(crate) fn forget(&self, tenant: &TenantId) {
        self.lock().remove(tenant);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TenantId, HashMap<String, Seen>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn line(host: &str, reason: &str) -> Line {
        Line {
            host: host.into(),
            reason: format!("egress.denied: {reason}"),
        }
    }

    #[test]
    fn a_host_has_one_line_a_minute_and_then_a_count() {
        let denials = Denials::default();
        let (demo, other) = ("demo".parse().unwrap(), "other".parse().unwrap());
        let start = Instant::now();
        let note = |after, tenant, host| {
            denials.note(start + Duration::from_secs(after), tenant, host, "private")
        };
        assert_eq!(note(0, &demo, "a"), [line("a", "private")]);
        for after in 0..1_000 {
            assert_eq!(note(after / 20, &demo, "a"), []);
        }
        assert_eq!(note(1, &demo, "b"), [line("b", "private")]);
        assert_eq!(note(1, &other, "a"), [line("a", "private")]);
        let due = [line("a", "1000 more within a minute"), line("a", "private")];
        assert_eq!(note(60, &demo, "a"), due);
        assert_eq!(note(61, &demo, "a"), []);
        denials.forget(&demo);
        assert_eq!(note(61, &demo, "a"), [line("a", "private")]);
    }

    #[test]
    fn many_hosts_share_a_line() {
        let denials = Denials::default();
        let (demo, start) = ("demo".parse().unwrap(), Instant::now());
        let mut lines = 0;
        for at in 0..10_000 {
            lines += denials
                .note(start, &demo, &format!("h{at}"), "private")
                .len();
        }
        assert_eq!(lines, MAX_HOSTS + 1);
        let long = "\u{e9}".repeat(10_000);
        assert_eq!(denials.note(start, &demo, &long, "private"), []);
        let later = start + WINDOW;
        let due = denials.note(later, &demo, "a", "private");
        let more = 10_000 - MAX_HOSTS as u64;
        let others = line(OTHERS, &format!("{more} more within a minute"));
        assert_eq!(due, [others, line("a", "private")]);
    }
}
