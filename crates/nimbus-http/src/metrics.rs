//! Counters of the server in OpenMetrics text, for Prometheus.
//!
//! Labels are a route family and a status, never a tenant, a path or a token: the number of
//! series stays bounded. It must not know what the counters mean to anyone.

use std::fmt;
use std::time::Duration;

use http::StatusCode;
use nimbus_auth::RouteFamily;
use nimbus_storage::EngineMetrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::policy::Policies;

/// Upper bounds of the latency buckets in seconds: around one sync (4 ms) they are close.
const BUCKETS: [f64; 13] = [
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    family: &'static str,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfFamily {
    family: &'static str,
}

/// The counters that this crate keeps itself.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Answered, Counter>,
    latency: Family<OfFamily, Histogram>,
    /// Connections open now.
    pub connections: Gauge,
    /// Connections closed at once because of the limit.
    pub connections_refused: Counter,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let mut registry = Registry::with_prefix("nimbus");
        let requests = Family::<Answered, Counter>::default();
        let latency: Family<OfFamily, Histogram> =
            Family::new_with_constructor(|| Histogram::new(BUCKETS));
        let (connections, refused) = (Gauge::default(), Counter::default());
        registry.register("http_requests", "Requests answered", requests.clone());
        registry.register(
            "http_request_seconds",
            "Time from head to answer",
            latency.clone(),
        );
        registry.register(
            "http_connections",
            "Connections open now",
            connections.clone(),
        );
        registry.register(
            "http_connections_refused",
            "Connections closed because of the limit",
            refused.clone(),
        );
        Metrics {
            registry,
            requests,
            latency,
            connections,
            connections_refused: refused,
        }
    }

    /// Counts one answer.
    pub(crate) fn observe(&self, family: RouteFamily, status: StatusCode, elapsed: Duration) {
        let family = family.as_str();
        self.requests
            .get_or_create(&Answered {
                family,
                status: status.as_u16(),
            })
            .inc();
        self.latency
            .get_or_create(&OfFamily { family })
            .observe(elapsed.as_secs_f64());
    }

    /// All counters, the engine's and the process's as of now.
    ///
    /// # Errors
    /// None in practice: formatting into a `String` does not fail.
    pub(crate) fn render(
        &self,
        engine: &EngineMetrics,
        policies: &Policies,
    ) -> Result<String, fmt::Error> {
        let mut now = Registry::with_prefix("nimbus");
        policy_rows(policies, &mut now);
        for (name, help, kind, value) in engine_rows(engine) {
            match kind {
                Kind::Counter => now.register(name, help, ConstCounter::new(value)),
                Kind::Gauge => now.register(name, help, gauge(value)),
            }
        }
        let mut process = Registry::with_prefix("process");
        if let Some(bytes) = resident_bytes() {
            process.register("resident_memory_bytes", "Resident memory", gauge(bytes));
        }
        if let Some(count) = open_files() {
            process.register("open_fds", "Open file descriptors", gauge(count));
        }
        let mut text = String::with_capacity(8 * 1024);
        encode_registry(&mut text, &self.registry)?;
        encode_registry(&mut text, &now)?;
        encode_registry(&mut text, &process)?;
        encode_eof(&mut text)?;
        Ok(text)
    }
}

/// What policies refused, and how reloads of their directory went.
fn policy_rows(policies: &Policies, registry: &mut Registry) {
    for (kind, count) in policies.refusals() {
        let name = format!("policy_refusals_{kind}");
        let help = format!("Refused by a policy: {kind}");
        registry.register(name, help, ConstCounter::new(count));
    }
    let Some(directory) = policies.directory() else {
        return;
    };
    let (last, applied, refused) = directory.reloads();
    let failing = last.is_some_and(|reload| reload.problem.is_some());
    let counters = [
        (
            "policy_reloads_applied",
            "Reloads of policies that took effect",
            applied,
        ),
        (
            "policy_reloads_refused",
            "Reloads of policies in which something was wrong",
            refused,
        ),
    ];
    for (name, help, count) in counters {
        registry.register(name, help, ConstCounter::new(count));
    }
    let help = "Whether the last reload was refused, so that older policies are in force";
    registry.register("policy_reload_failing", help, gauge(u64::from(failing)));
}

fn gauge(value: u64) -> ConstGauge<i64> {
    ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX))
}

enum Kind {
    Counter,
    Gauge,
}

type Row = (&'static str, &'static str, Kind, u64);

/// One row per engine counter; the test finds one that was forgotten.
fn engine_rows(m: &EngineMetrics) -> Vec<Row> {
    vec![
        (
            "open_tenants",
            "Tenants open now",
            Kind::Gauge,
            m.open_tenants,
        ),
        (
            "tenants_opened",
            "Times that a tenant was opened",
            Kind::Counter,
            m.tenants_opened,
        ),
        (
            "tenants_closed",
            "Times that a tenant was closed",
            Kind::Counter,
            m.tenants_closed,
        ),
        (
            "transactions",
            "Transactions accepted",
            Kind::Counter,
            m.transactions,
        ),
        (
            "conflicts",
            "Runs of transactions that conflicted",
            Kind::Counter,
            m.conflicts,
        ),
        ("commits", "Durable commits", Kind::Counter, m.commits),
        (
            "batches",
            "Provider batches that carried commits",
            Kind::Counter,
            m.batches,
        ),
        (
            "commit_syncs",
            "Syncs that commits waited for",
            Kind::Counter,
            m.commit_syncs,
        ),
        ("snapshots", "Read views taken", Kind::Counter, m.snapshots),
        (
            "documents_read",
            "Documents read, scanned ones included",
            Kind::Counter,
            m.documents_read,
        ),
        (
            "documents_written",
            "Documents inserted, changed or deleted",
            Kind::Counter,
            m.documents_written,
        ),
        (
            "index_entries_written",
            "Index entries added or removed",
            Kind::Counter,
            m.index_entries_written,
        ),
        (
            "subscriptions",
            "Live subscriptions now",
            Kind::Gauge,
            m.subscriptions,
        ),
        (
            "reevaluations",
            "Runs of live queries",
            Kind::Counter,
            m.reevaluations,
        ),
        (
            "log_records_pruned",
            "Log records dropped by retention",
            Kind::Counter,
            m.log_records_pruned,
        ),
        (
            "wal_bytes",
            "Bytes in write-ahead logs now",
            Kind::Gauge,
            m.wal_bytes,
        ),
        (
            "oldest_snapshot_ms",
            "Age of the oldest read view in milliseconds",
            Kind::Gauge,
            m.oldest_snapshot_ms,
        ),
    ]
}

/// Resident memory from `/proc`; `None` where there is none.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()?
        .checked_mul(1024)
}

/// Open descriptors from `/proc`; `None` where there is none.
fn open_files() -> Option<u64> {
    // The directory itself is open while it is read.
    let count = std::fs::read_dir("/proc/self/fd").ok()?.count();
    u64::try_from(count).ok()?.checked_sub(1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn every_engine_counter_is_shown() {
        let engine = EngineMetrics::default();
        let names: Vec<&str> = engine_rows(&engine).iter().map(|row| row.0).collect();
        let fields = serde_json::to_value(engine).unwrap();
        for field in fields.as_object().unwrap().keys() {
            assert!(names.contains(&field.as_str()), "{field} is not shown");
        }
    }

    #[test]
    fn the_text_has_the_counters_and_ends_as_it_must() {
        let metrics = Metrics::new();
        metrics.observe(
            RouteFamily::NativeApi,
            StatusCode::CREATED,
            Duration::from_millis(3),
        );
        let mut engine = EngineMetrics::default();
        engine.commit_syncs = 7;
        let policies = Policies::default();
        policies.count(crate::policy::Refusal::Rate);
        let text = metrics.render(&engine, &policies).unwrap();
        for line in [
            "nimbus_http_requests_total{family=\"native_api\",status=\"201\"} 1",
            "nimbus_http_request_seconds_bucket{le=\"0.005\",family=\"native_api\"} 1",
            "nimbus_commit_syncs_total 7",
            "nimbus_open_tenants 0",
            "nimbus_policy_refusals_rate_total 1",
            "nimbus_policy_refusals_egress_total 0",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is not in\n{text}"
            );
        }
        assert!(text.ends_with("# EOF\n"));
        if cfg!(target_os = "linux") {
            assert!(
                text.contains("process_resident_memory_bytes ")
                    && text.contains("process_open_fds ")
            );
        }
    }
}
