//! Which refusals of what functions want get a line in the audit log: other people's code decides how many there are, so
//! it is one a minute for each tenant and request, with the number of those that had none.
//!
//! It must not write the log, nor decide what is refused.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nimbus_auth::AuthScope;
use nimbus_auth::audit::MAX_METHOD;
use nimbus_core::TenantId;
use nimbus_runtime::EgressRequest;

use crate::functions::path::FunctionPath;

/// How long one line stands for all others.
const WINDOW: Duration = Duration::from_secs(60);
/// Requests of one tenant that have lines of their own in one window; all others share one.
const MAX_LINES: usize = 32;
/// What stands for the others.
const OTHERS: &str = "other requests";
/// Bytes of a request that are looked at; the log keeps no more.
const MAX_TARGET: usize = 1_024;

/// A request that a function was kept from sending.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeniedFetch<'a> {
    pub function: &'a FunctionPath,
    pub request: &'a EgressRequest,
    /// One word.
    pub reason: &'static str,
}

/// A line to write.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Line {
    pub scope: AuthScope,
    /// The method of the request, or `ENV`.
    pub method: String,
    /// Where it was to go, without query; nothing of a secret.
    pub target: String,
    pub reason: String,
}

impl DeniedFetch<'_> {
    /// `nimbus policy suggest` reads it again.
    fn line(&self) -> Line {
        let EgressRequest {
            scheme,
            host,
            port,
            method,
            path,
        } = self.request;
        let bracketed = match host.contains(':') {
            true => format!("[{host}]"),
            false => host.clone(),
        };
        let mut target = format!("{scheme}://{bracketed}:{port}{path}");
        target.truncate(target.floor_char_boundary(MAX_TARGET));
        let (reason, function) = (self.reason, self.function);
        // Both are kept for a while, and both are as long as other people's code made them.
        let method = &method[..method.floor_char_boundary(MAX_METHOD)];
        Line {
            scope: AuthScope::Egress,
            method: method.to_owned(),
            target,
            reason: format!("egress.denied: {reason} for {function}"),
        }
    }
}

#[derive(Debug)]
struct Seen {
    since: Instant,
    /// Refusals after the one that has the line.
    more: u64,
}

/// What was refused lately.
#[derive(Debug, Default)]
pub(crate) struct Denials(Mutex<HashMap<TenantId, HashMap<Line, Seen>>>);

impl Denials {
    /// Takes note of a refused request; the lines that are due.
    pub(crate) fn note(
        &self,
        now: Instant,
        tenant: &TenantId,
        denied: &DeniedFetch<'_>,
    ) -> Vec<Line> {
        self.due(now, tenant, denied.line())
    }

    /// Takes note of a variable that was not shown to a function; the lines that are due.
    pub(crate) fn note_secret(
        &self,
        now: Instant,
        tenant: &TenantId,
        function: &FunctionPath,
    ) -> Vec<Line> {
        let line = Line {
            scope: AuthScope::Secret,
            method: "ENV".to_owned(),
            target: function.to_string(),
            reason: "secret.denied: not_granted".to_owned(),
        };
        self.due(now, tenant, line)
    }

    fn due(&self, now: Instant, tenant: &TenantId, line: Line) -> Vec<Line> {
        let mut all = self.lock();
        let seen_lines = all.entry(tenant.clone()).or_default();
        let mut due = Vec::new();
        seen_lines.retain(|line, seen| {
            let goes_on = now.saturating_duration_since(seen.since) < WINDOW;
            if !goes_on && seen.more > 0 {
                let more = seen.more;
                due.push(Line {
                    reason: format!("{} ({more} more within a minute)", line.reason),
                    ..line.clone()
                });
            }
            goes_on
        });
        let key = match seen_lines.len() < MAX_LINES || seen_lines.contains_key(&line) {
            true => line.clone(),
            false => Line {
                scope: AuthScope::Egress,
                method: String::new(),
                target: OTHERS.to_owned(),
                reason: "egress.denied: too many to tell apart".to_owned(),
            },
        };
        if let Some(seen) = seen_lines.get_mut(&key) {
            seen.more += 1;
            return due;
        }
        let seen = Seen {
            since: now,
            more: 0,
        };
        seen_lines.insert(key, seen);
        due.push(line);
        due
    }

    /// Forgets a tenant that is deleted.
    pub(crate) fn forget(&self, tenant: &TenantId) {
        self.lock().remove(tenant);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TenantId, HashMap<Line, Seen>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn request(host: &str) -> EgressRequest {
        EgressRequest {
            scheme: "https".into(),
            host: host.into(),
            port: 443,
            method: "POST".into(),
            path: "/v1".into(),
        }
    }

    fn noted(denials: &Denials, now: Instant, tenant: &TenantId, host: &str) -> Vec<String> {
        let denied = DeniedFetch {
            function: &"m:f".parse().unwrap(),
            request: &request(host),
            reason: "host_not_allowed",
        };
        let lines = denials.note(now, tenant, &denied).into_iter();
        let told = lines.map(|line| format!("{} {} {}", line.method, line.target, line.reason));
        told.collect()
    }

    fn line(host: &str) -> String {
        format!("POST https://{host}:443/v1 egress.denied: host_not_allowed for m:f")
    }

    #[test]
    fn a_request_has_one_line_a_minute_and_then_a_count() {
        let denials = Denials::default();
        let (demo, other) = ("demo".parse().unwrap(), "other".parse().unwrap());
        let start = Instant::now();
        let note =
            |after, tenant, host| noted(&denials, start + Duration::from_secs(after), tenant, host);
        let none: [String; 0] = [];
        assert_eq!(note(0, &demo, "a"), [line("a")]);
        for after in 0..1_000 {
            assert_eq!(note(after / 20, &demo, "a"), none);
        }
        assert_eq!(note(1, &demo, "b"), [line("b")]);
        assert_eq!(note(1, &other, "a"), [line("a")]);
        assert_eq!(note(1, &demo, "fd00::1"), [line("[fd00::1]")]);
        let more = format!("{} (1000 more within a minute)", line("a"));
        assert_eq!(note(60, &demo, "a"), [more, line("a")]);
        assert_eq!(note(61, &demo, "a"), none);
        denials.forget(&demo);
        assert_eq!(note(61, &demo, "a"), [line("a")]);
    }

    #[test]
    fn many_requests_share_a_line() {
        let denials = Denials::default();
        let (demo, start) = ("demo".parse().unwrap(), Instant::now());
        let mut lines = 0;
        for at in 0..10_000 {
            lines += noted(&denials, start, &demo, &format!("h{at}")).len();
        }
        assert_eq!(lines, MAX_LINES + 1);
        let long = "\u{e9}".repeat(10_000);
        let endless = DeniedFetch {
            function: &"m:f".parse().unwrap(),
            request: &EgressRequest {
                method: "A".repeat(1 << 20),
                path: "/x".repeat(1 << 20),
                ..request("h")
            },
            reason: "host_not_allowed",
        };
        let cut = endless.line();
        assert!(cut.method.len() <= MAX_METHOD && cut.target.len() <= MAX_TARGET);
        assert_eq!(noted(&denials, start, &demo, &long).len(), 0);
        let later = start + WINDOW;
        let due = noted(&denials, later, &demo, "a");
        let more = 10_000 - MAX_LINES as u64;
        let others = format!(
            " {OTHERS} egress.denied: too many to tell apart ({more} more within a minute)"
        );
        assert_eq!(due, [others, line("a")]);
    }

    #[test]
    fn a_secret_is_not_named() {
        let denials = Denials::default();
        let (demo, function) = ("demo".parse().unwrap(), "m:f".parse().unwrap());
        let lines = denials.note_secret(Instant::now(), &demo, &function);
        assert_eq!(lines.len(), 1);
        assert_eq!(
            (lines[0].method.as_str(), lines[0].target.as_str()),
            ("ENV", "m:f")
        );
    }
}
