//! Settings of functions: the flags, where a value comes from, and what contradicts what.
//!
//! It must not start anything; `start` makes the runtime of what is resolved here.

use std::time::Duration;

use clap::Args;
use nimbus_runtime::{EgressHost, RuntimeConfig, WorkerCommand};

use crate::config::Runtime;
use crate::settings::{Lookup, usage};

/// Budgets of functions (nimbus.md 1.2).
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Functions")]
pub(crate) struct RuntimeArgs {
    /// Heap of one running function in MiB, and as much again for array buffers [env: NIMBUS_RUNTIME_HEAP_MB] [default: 128]
    #[arg(long, value_name = "MIB")]
    runtime_heap_mb: Option<String>,
    /// Heap that it begins with in MiB [env: NIMBUS_RUNTIME_INITIAL_HEAP_MB] [default: 8]
    #[arg(long, value_name = "MIB")]
    runtime_initial_heap_mb: Option<String>,
    /// Longest time of one run of a function of any kind; waiting for a turn does not count, and a mutation that conflicted has it anew [env: NIMBUS_RUNTIME_TIMEOUT_SECS] [default: 30]
    #[arg(long, value_name = "SECONDS")]
    runtime_timeout_secs: Option<String>,
    /// CPU time of one query or mutation in milliseconds [env: NIMBUS_RUNTIME_USER_CPU_MS] [default: 1000]
    #[arg(long, value_name = "MS")]
    runtime_user_cpu_ms: Option<String>,
    /// Functions that run at once [env: NIMBUS_RUNTIME_MAX_INSTANCES] [default: the number of processors]
    #[arg(long, value_name = "N")]
    runtime_max_instances: Option<String>,
    /// Worker processes kept warm [env: NIMBUS_RUNTIME_WORKER_THREADS] [default: twice the instances]
    #[arg(long, value_name = "N")]
    runtime_worker_threads: Option<String>,
    /// Functions of one tenant that run at once [env: NIMBUS_RUNTIME_MAX_ACTIVE_PER_TENANT] [default: one less than the instances, at least 1]
    #[arg(long, value_name = "N")]
    runtime_max_active_per_tenant: Option<String>,
    /// Functions of one tenant that run or wait for something [env: NIMBUS_RUNTIME_MAX_IN_FLIGHT_PER_TENANT] [default: twice the active ones, at most the worker processes]
    #[arg(long, value_name = "N")]
    runtime_max_in_flight_per_tenant: Option<String>,
    /// Calls of one tenant that wait for their turn; beyond, the answer is 429; 0: nobody waits [env: NIMBUS_RUNTIME_MAX_QUEUED_PER_TENANT] [default: as many as may be in flight]
    #[arg(long, value_name = "N")]
    runtime_max_queued_per_tenant: Option<String>,
    /// How deep functions may call one another [env: NIMBUS_RUNTIME_MAX_NESTED_CALLS] [default: 64]
    #[arg(long, value_name = "N")]
    runtime_max_nested_calls: Option<String>,
    /// Memory for results of queries in MiB; 0 keeps none [env: NIMBUS_RUNTIME_QUERY_CACHE_MB] [default: 100]
    #[arg(long, value_name = "MIB")]
    runtime_query_cache_mb: Option<String>,
    /// Host that `fetch` of actions may reach although its address is not public; repeatable [env: NIMBUS_RUNTIME_ALLOW_NET, comma separated]
    #[arg(long, value_name = "HOST[:PORT]")]
    runtime_allow_net: Vec<String>,
}

impl RuntimeArgs {
    fn given(&self, key: &str) -> Option<&str> {
        let value = match key {
            "heap_mb" => &self.runtime_heap_mb,
            "initial_heap_mb" => &self.runtime_initial_heap_mb,
            "timeout_secs" => &self.runtime_timeout_secs,
            "user_cpu_ms" => &self.runtime_user_cpu_ms,
            "max_instances" => &self.runtime_max_instances,
            "worker_threads" => &self.runtime_worker_threads,
            "max_active_per_tenant" => &self.runtime_max_active_per_tenant,
            "max_in_flight_per_tenant" => &self.runtime_max_in_flight_per_tenant,
            "max_queued_per_tenant" => &self.runtime_max_queued_per_tenant,
            "max_nested_calls" => &self.runtime_max_nested_calls,
            "query_cache_mb" => &self.runtime_query_cache_mb,
            _ => &None,
        };
        value.as_deref()
    }
}

/// What `start` makes the runtime of.
#[derive(Debug)]
pub(crate) struct FunctionSettings {
    pub(crate) runtime: RuntimeConfig,
    /// Bytes of results that the query cache keeps; 0: it is off.
    pub(crate) query_cache_bytes: u64,
}

/// Resolves the settings of functions.
///
/// # Errors
/// A usage error that names the setting, for a value that is no number, out of its range, or that
/// contradicts another.
pub(crate) fn resolve(
    args: &RuntimeArgs,
    env: Lookup<'_>,
    file: &Runtime,
) -> anyhow::Result<FunctionSettings> {
    let from = Sources { args, env, file };
    let mut config = RuntimeConfig::new(WorkerCommand::this_binary()?);
    config.engine = nimbus_runtime::engine::NAME;
    let count = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    if let Some(mb) = from.number("heap_mb", 16..=4_096)? {
        config.heap_mb = mb;
    }
    if let Some(mb) = from.number("initial_heap_mb", 1..=4_096)? {
        config.initial_heap_mb = mb;
    }
    if let Some(seconds) = from.number("timeout_secs", 1..=3_600)? {
        config.timeout = Duration::from_secs(seconds);
    }
    if let Some(ms) = from.number("user_cpu_ms", 10..=3_600_000)? {
        config.user_cpu = Duration::from_millis(ms);
    }
    config.max_instances = from.number("max_instances", 1..=1_024)?.map(count);
    config.worker_threads = from.number("worker_threads", 1..=4_096)?.map(count);
    let active = from.number("max_active_per_tenant", 1..=1_024)?;
    config.max_active_per_tenant = active.map(count);
    let in_flight = from.number("max_in_flight_per_tenant", 1..=4_096)?;
    config.max_in_flight_per_tenant = in_flight.map(count);
    let queued = from.number("max_queued_per_tenant", 0..=1_000_000)?;
    config.max_queued_per_tenant = queued.map(count);
    if let Some(depth) = from.number("max_nested_calls", 1..=1_024)? {
        config.max_nested_calls = u32::try_from(depth).unwrap_or(u32::MAX);
    }
    config.egress.hosts = from.hosts()?;
    from.check(&config)?;
    let cache_mb = from.number("query_cache_mb", 0..=65_536)?.unwrap_or(100);
    Ok(FunctionSettings {
        runtime: config,
        query_cache_bytes: cache_mb * 1024 * 1024,
    })
}

/// The three places of a value; the first that has one counts.
struct Sources<'a> {
    args: &'a RuntimeArgs,
    env: Lookup<'a>,
    file: &'a Runtime,
}

impl Sources<'_> {
    /// A value and, for error texts, where it came from.
    fn text(&self, key: &str) -> Option<(String, String)> {
        if let Some(value) = self.args.given(key) {
            return Some((value.to_owned(), flag(key)));
        }
        let variable = format!("NIMBUS_RUNTIME_{}", key.to_uppercase());
        if let Some(value) = (self.env)(&variable) {
            return Some((value, variable));
        }
        let value = self.file.given(key)?;
        let source = format!("`{key}` in `runtime` of the configuration");
        Some((value.to_string(), source))
    }

    fn number(
        &self,
        key: &str,
        range: std::ops::RangeInclusive<u64>,
    ) -> anyhow::Result<Option<u64>> {
        let Some((text, source)) = self.text(key) else {
            return Ok(None);
        };
        let number = text.parse::<u64>().ok().filter(|n| range.contains(n));
        number.map(Some).ok_or_else(|| {
            let (low, high) = (range.start(), range.end());
            usage(format!(
                "{source}: `{text}` is not a number from {low} to {high}"
            ))
        })
    }

    fn hosts(&self) -> anyhow::Result<Vec<EgressHost>> {
        const VARIABLE: &str = "NIMBUS_RUNTIME_ALLOW_NET";
        let (texts, source) = if !self.args.runtime_allow_net.is_empty() {
            let flags = self.args.runtime_allow_net.clone();
            (flags, flag("allow_net"))
        } else if let Some(list) = (self.env)(VARIABLE) {
            let parts = list.split(',').map(|part| part.trim().to_owned());
            (
                parts.filter(|part| !part.is_empty()).collect(),
                VARIABLE.to_owned(),
            )
        } else {
            let source = "`allow_net` in `runtime` of the configuration";
            (self.file.allow_net.clone(), source.to_owned())
        };
        let parsed = texts.iter().map(|text| text.parse::<EgressHost>());
        parsed
            .collect::<Result<_, _>>()
            .map_err(|error| usage(format!("{source}: {error}")))
    }

    /// Budgets that are more than what they are a part of are a mistake, wherever they come from.
    fn check(&self, config: &RuntimeConfig) -> anyhow::Result<()> {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let n = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let parts = [
            (
                ("initial_heap_mb", config.initial_heap_mb),
                ("heap_mb", config.heap_mb),
            ),
            (
                ("user_cpu_ms", ms(config.user_cpu)),
                ("timeout_secs", ms(config.timeout)),
            ),
            (
                ("max_active_per_tenant", n(config.active_per_tenant())),
                ("max_instances", n(config.instances())),
            ),
            (
                ("max_active_per_tenant", n(config.active_per_tenant())),
                ("max_in_flight_per_tenant", n(config.in_flight_per_tenant())),
            ),
            (
                ("max_instances", n(config.instances())),
                ("worker_threads", n(config.workers())),
            ),
        ];
        for ((part, used), (whole, limit)) in parts {
            if used > limit {
                let unit = match part {
                    "initial_heap_mb" => " MiB",
                    "user_cpu_ms" => " ms",
                    _ => "",
                };
                return Err(usage(format!(
                    "{} ({used}{unit}) is more than {} ({limit}{unit})",
                    self.name(part),
                    self.name(whole)
                )));
            }
        }
        Ok(())
    }

    /// How a setting is called where it was given; by its flag where it was not.
    fn name(&self, key: &str) -> String {
        self.text(key)
            .map_or_else(|| flag(key), |(_, source)| source)
    }
}

fn flag(key: &str) -> String {
    format!("--runtime-{}", key.replace('_', "-"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::settings::UsageError;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        runtime: RuntimeArgs,
    }

    fn resolved(
        args: &[&str],
        env: &[(&str, &str)],
        file: &str,
    ) -> anyhow::Result<FunctionSettings> {
        let line = ["nimbus"].into_iter().chain(args.iter().copied());
        let args = Line::try_parse_from(line).unwrap().runtime;
        let lookup = |name: &str| {
            let found = env.iter().find(|(n, _)| *n == name);
            found
                .map(|(_, v)| (*v).to_owned())
                .filter(|v| !v.is_empty())
        };
        resolve(&args, &lookup, &serde_json::from_str(file).unwrap())
    }

    #[test]
    fn defaults() {
        let s = resolved(&[], &[], "{}").unwrap();
        let config = &s.runtime;
        assert_eq!((config.heap_mb, config.initial_heap_mb), (128, 8));
        assert_eq!(config.timeout, Duration::from_secs(30));
        assert_eq!(config.user_cpu, Duration::from_secs(1));
        assert_eq!(config.max_nested_calls, 64);
        assert_eq!(config.egress.hosts, []);
        assert_eq!(s.query_cache_bytes, 100 << 20);
        assert_eq!(config.worker.args, ["runtime-worker"]);
    }

    #[test]
    fn a_flag_beats_the_environment_and_that_the_file() {
        let keys = [
            "heap_mb",
            "initial_heap_mb",
            "timeout_secs",
            "user_cpu_ms",
            "max_instances",
            "worker_threads",
            "max_active_per_tenant",
            "max_in_flight_per_tenant",
            "max_queued_per_tenant",
            "max_nested_calls",
            "query_cache_mb",
        ];
        let all = |start: u64| {
            // In this order no value contradicts another.
            let [t, a, m, f, w, q, d, i, h, u, c] =
                [1, 2, 3, 4, 5, 6, 7, 8, 16, 20, 0].map(|n| n + start);
            [h, i, t, u, m, w, a, f, q, d, c]
        };
        let found = |s: &FunctionSettings| {
            let c = &s.runtime;
            [
                c.heap_mb,
                c.initial_heap_mb,
                c.timeout.as_secs(),
                c.user_cpu.as_millis() as u64,
                c.instances() as u64,
                c.workers() as u64,
                c.active_per_tenant() as u64,
                c.in_flight_per_tenant() as u64,
                c.queued_per_tenant() as u64,
                u64::from(c.max_nested_calls),
                s.query_cache_bytes >> 20,
            ]
        };
        let (flags, variables, file) = (all(200), all(100), all(0));
        let file: serde_json::Map<_, _> = keys
            .iter()
            .zip(file)
            .map(|(key, n)| ((*key).to_owned(), n.into()))
            .collect();
        let file = serde_json::Value::Object(file).to_string();
        let variables: Vec<(String, String)> = keys
            .iter()
            .zip(variables)
            .map(|(key, n)| {
                (
                    format!("NIMBUS_RUNTIME_{}", key.to_uppercase()),
                    n.to_string(),
                )
            })
            .collect();
        let variables: Vec<(&str, &str)> = variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        let flags: Vec<String> = keys
            .iter()
            .zip(flags)
            .flat_map(|(key, n)| [flag(key), n.to_string()])
            .collect();
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        assert_eq!(found(&resolved(&[], &[], &file).unwrap()), all(0));
        assert_eq!(found(&resolved(&[], &variables, &file).unwrap()), all(100));
        assert_eq!(
            found(&resolved(&flags, &variables, &file).unwrap()),
            all(200)
        );
    }

    #[test]
    fn grants_come_from_one_place() {
        let hosts = |args: &[&str], env: &[(&str, &str)], file: &str| {
            let config = resolved(args, env, file).unwrap().runtime;
            let shown = config.egress.hosts.into_iter().map(|g| (g.host, g.port));
            shown.collect::<Vec<_>>()
        };
        let file = r#"{"allow_net": ["File.example"]}"#;
        let env = [("NIMBUS_RUNTIME_ALLOW_NET", "a.example:80, ::1,")];
        let flags = [
            "--runtime-allow-net",
            "b.example",
            "--runtime-allow-net",
            "10.0.0.1:5432",
        ];
        assert_eq!(hosts(&[], &[], file), [("file.example".into(), None)]);
        assert_eq!(
            hosts(&[], &env, file),
            [("a.example".into(), Some(80)), ("::1".into(), None)]
        );
        assert_eq!(
            hosts(&flags, &env, file),
            [("b.example".into(), None), ("10.0.0.1".into(), Some(5_432))]
        );
    }

    #[test]
    fn bad_values_are_refused_with_their_source_and_their_range() {
        let in_env = |name| [(name, "0")];
        for (args, env, file, text) in [
            (
                &["--runtime-heap-mb", "15"][..],
                &[][..],
                "{}",
                "--runtime-heap-mb: `15` is not a number from 16 to 4096",
            ),
            (
                &["--runtime-heap-mb", "4097"],
                &[],
                "{}",
                "--runtime-heap-mb: `4097` is not a number from 16 to 4096",
            ),
            (
                &["--runtime-heap-mb", "128MB"],
                &[],
                "{}",
                "--runtime-heap-mb: `128MB` is not a number from 16 to 4096",
            ),
            (
                &[],
                &in_env("NIMBUS_RUNTIME_INITIAL_HEAP_MB"),
                "{}",
                "NIMBUS_RUNTIME_INITIAL_HEAP_MB: `0` is not a number from 1 to 4096",
            ),
            (
                &["--runtime-initial-heap-mb", "129"],
                &[],
                "{}",
                "--runtime-initial-heap-mb (129 MiB) is more than --runtime-heap-mb (128 MiB)",
            ),
            (
                &["--runtime-timeout-secs", "0"],
                &[],
                "{}",
                "--runtime-timeout-secs: `0` is not a number from 1 to 3600",
            ),
            (
                &["--runtime-timeout-secs", "1.5"],
                &[],
                "{}",
                "--runtime-timeout-secs: `1.5` is not a number from 1 to 3600",
            ),
            (
                &["--runtime-user-cpu-ms", "9"],
                &[],
                "{}",
                "--runtime-user-cpu-ms: `9` is not a number from 10 to 3600000",
            ),
            (
                &["--runtime-user-cpu-ms", "30001"],
                &[],
                "{}",
                "--runtime-user-cpu-ms (30001 ms) is more than --runtime-timeout-secs (30000 ms)",
            ),
            (
                &["--runtime-max-instances", "0"],
                &[],
                "{}",
                "--runtime-max-instances: `0` is not a number from 1 to 1024",
            ),
            (
                &["--runtime-max-instances", "4"],
                &[],
                r#"{"worker_threads": 3}"#,
                "--runtime-max-instances (4) is more than `worker_threads` in `runtime` of the configuration (3)",
            ),
            (
                &["--runtime-worker-threads", "-1"],
                &[],
                "{}",
                "--runtime-worker-threads: `-1` is not a number from 1 to 4096",
            ),
            (
                &[
                    "--runtime-max-instances",
                    "4",
                    "--runtime-max-active-per-tenant",
                    "5",
                ],
                &[],
                "{}",
                "--runtime-max-active-per-tenant (5) is more than --runtime-max-instances (4)",
            ),
            (
                &[
                    "--runtime-max-instances",
                    "4",
                    "--runtime-max-in-flight-per-tenant",
                    "2",
                ],
                &[],
                "{}",
                "--runtime-max-active-per-tenant (3) is more than --runtime-max-in-flight-per-tenant (2)",
            ),
            (
                &["--runtime-max-in-flight-per-tenant", "0"],
                &[],
                "{}",
                "--runtime-max-in-flight-per-tenant: `0` is not a number from 1 to 4096",
            ),
            (
                &["--runtime-max-queued-per-tenant", "many"],
                &[],
                "{}",
                "--runtime-max-queued-per-tenant: `many` is not a number from 0 to 1000000",
            ),
            (
                &["--runtime-max-nested-calls", "0"],
                &[],
                "{}",
                "--runtime-max-nested-calls: `0` is not a number from 1 to 1024",
            ),
            (
                &[],
                &[],
                r#"{"max_nested_calls": 5000}"#,
                "`max_nested_calls` in `runtime` of the configuration: `5000` is not a number from 1 to 1024",
            ),
            (
                &["--runtime-query-cache-mb", "65537"],
                &[],
                "{}",
                "--runtime-query-cache-mb: `65537` is not a number from 0 to 65536",
            ),
            (
                &["--runtime-allow-net", "http://x"],
                &[],
                "{}",
                "--runtime-allow-net: `http://x` is no HOST or HOST:PORT",
            ),
            (
                &[],
                &[("NIMBUS_RUNTIME_ALLOW_NET", "a.example, *")],
                "{}",
                "NIMBUS_RUNTIME_ALLOW_NET: `*` is no HOST or HOST:PORT",
            ),
            (
                &[],
                &[],
                r#"{"allow_net": [":80"]}"#,
                "`allow_net` in `runtime` of the configuration: `:80` is no HOST or HOST:PORT",
            ),
        ] {
            let args: Vec<String> = args.chunks(2).map(|pair| pair.join("=")).collect();
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let error = resolved(&args, env, file).unwrap_err();
            assert_eq!(error.to_string(), text);
            assert!(error.downcast_ref::<UsageError>().is_some());
        }
    }

    #[test]
    fn what_must_not_wait_may_be_said_and_no_cache_too() {
        let s = resolved(
            &[
                "--runtime-max-queued-per-tenant",
                "0",
                "--runtime-query-cache-mb",
                "0",
            ],
            &[],
            "{}",
        )
        .unwrap();
        assert_eq!(s.runtime.queued_per_tenant(), 0);
        assert_eq!(s.query_cache_bytes, 0);
    }
}
