//! `nimbus start`: wires the rooms together in an order in which every refusal comes before
//! anything expensive, and takes them apart again without losing what was accepted.

use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use nimbus_auth::audit::{AnchorCopy, AuditOptions};
use nimbus_auth::{AdminVerifier, AuditLog, Environment, MAX_ROTATION_AGE, TokenFile};
use nimbus_http::{PolicyDirectory, Server, Services, Stopped, Store};
use nimbus_runtime::{Runtime, RuntimeConfig};
use nimbus_storage::control::{ControlDb, LocalWakes};
use nimbus_storage::encryption::Keyring;
use nimbus_storage::provider::lock::DataDirLock;
use nimbus_storage::{Engine, EngineOptions};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::anchors::{self, ControlAnchors};
use crate::cli::StartArgs;
use crate::encryption::source::{self, KeySource};
use crate::local::Local;
use crate::memory;
use crate::settings::{self, LogFormat, Settings, UsageError};

/// Descriptors of the process itself.
const OTHER_FILES: u64 = 128;

/// Runs the server until it is told to stop.
pub(crate) fn run(args: StartArgs) -> anyhow::Result<()> {
    let settings = settings::resolve(args, &settings::process_environment)?;
    init_log(settings.log_format);
    check_network_flag(&settings)?;
    let keyring = settings
        .encryption
        .as_ref()
        .map(KeySource::keyring)
        .transpose()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(serve(settings, keyring));
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    let held = outcome?;
    // Last: what was cut off leaves its line when it ends.
    held.audit.close();
    tracing::info!("stopped");
    Ok(())
}

/// What outlives the runtime.
struct Held {
    audit: Arc<AuditLog>,
    /// The anchor of the audit log is in the control database.
    _locks: (DataDirLock, Option<DataDirLock>),
}

fn init_log(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => log.json().init(),
    }
}

/// The first half of the network gate (seed 000); it costs nothing and touches nothing.
fn check_network_flag(settings: &Settings) -> anyhow::Result<()> {
    if settings::is_loopback(&settings.host) || settings.allow_network {
        return Ok(());
    }
    let text = format!(
        "--host {} is not on loopback; keep the server on 127.0.0.1 behind a reverse proxy, or pass --allow-network",
        settings.host
    );
    Err(UsageError(text).into())
}

/// The second half: a token on a public interface must have been rotated, and lately.
fn check_token(
    settings: &Settings,
    addresses: &[SocketAddr],
    token: &TokenFile,
) -> anyhow::Result<()> {
    let public = addresses
        .iter()
        .any(|a| !a.ip().to_canonical().is_loopback());
    if !public {
        return Ok(());
    }
    if !settings.allow_network {
        bail!(
            "{} resolves to an address outside loopback; pass --allow-network if that is meant",
            settings.host
        );
    }
    token
        .fresh_for_network(jiff::Timestamp::now(), MAX_ROTATION_AGE)
        .with_context(|| {
            format!(
                "--host {} needs an admin token that was rotated within 30 days",
                settings.host
            )
        })
}

async fn serve(mut settings: Settings, keyring: Option<Arc<Keyring>>) -> anyhow::Result<Held> {
    let host = settings.host.trim_start_matches('[').trim_end_matches(']');
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, settings.port))
        .await
        .with_context(|| format!("looking up --host {host}"))?
        .collect();
    let paths = Environment::system();
    let token_path = paths.token_path()?;
    let token = TokenFile::load_or_create(&token_path)?;
    check_token(&settings, &addresses, &token)?;
    if token.stamps_in_future() {
        tracing::warn!(path = %token_path.display(), "the admin token carries a time in the future; check the clock");
    }

    let policies = settings.policy_dir.as_deref().map(PolicyDirectory::open);
    let policies = policies.transpose().context("--policy-dir")?;

    let files = raise_file_limit();
    // More connections than descriptors would only fail later, in the middle of something.
    let affordable = usize::try_from(files / 2).unwrap_or(usize::MAX);
    settings.server.max_connections = settings.server.max_connections.min(affordable);
    let lock = DataDirLock::acquire(&settings.data_dir)?;
    let control_apart = !settings::same_directory(&settings.control_data_dir, &settings.data_dir);
    let control_lock = control_apart
        .then(|| DataDirLock::acquire(&settings.control_data_dir))
        .transpose()?;
    let local = Local {
        data: &settings.data_dir,
        control: &settings.control_data_dir,
        home: settings.home.clone(),
        also: settings.also.clone(),
        durability: settings.durability,
        readers: readers(&settings.functions.runtime),
        keyring,
    };
    local.recover()?;
    local.scan()?;
    let control = local.open_control()?;
    let audit = Arc::new(open_audit_log(&settings, &paths, &control)?);
    let engine = open_engine(&settings, &local, control, files).await?;
    for tenant in engine.unregistered().await? {
        tracing::warn!(%tenant, "data of this tenant is in storage but not registered; `nimbus tenants adopt {tenant}` takes it in");
    }

    // Makes no process yet: workers are started when functions are called.
    let functions = Runtime::new(settings.functions.runtime.clone());
    let services = Services {
        runtime: functions.clone(),
        store: Store::new(engine.clone()).sealed_by(local.keyring.clone()),
        verifier: Arc::new(AdminVerifier::new(&token)),
        token_path,
        audit: Arc::clone(&audit),
        encryption: source::report(settings.encryption.as_ref(), settings.home.name),
        policies: policies.clone(),
    };
    drop(token);
    let server = Server::bind(&addresses, settings.server, services).await?;
    let address = server.local_addr();
    lock.set_address(address)?;
    if let Some(lock) = &control_lock {
        lock.set_address(address)?;
    }
    let stop = stop_signal()?;
    reload_on_signal(policies)?;
    tracing::info!(data_dir = %settings.data_dir.display(), durability = ?settings.durability, "listening on http://{address}");
    let stopped = server.run(stop).await;
    if let Stopped::TimedOut { left } = stopped {
        tracing::warn!(
            left,
            "requests were still in progress when the time to finish them ran out"
        );
    }
    functions.close();
    engine.close().await?;
    Ok(Held {
        audit,
        _locks: (lock, control_lock),
    })
}

/// Reads of one tenant at once: each function that runs holds one, and two are left for everything else (design
/// section 4). Not fewer than the processors can use.
fn readers(functions: &RuntimeConfig) -> usize {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let natural = processors * 2 + 2;
    natural.max(functions.active_per_tenant() + 2)
}

fn open_audit_log(
    settings: &Settings,
    paths: &Environment<'_>,
    control: &Arc<ControlDb>,
) -> anyhow::Result<AuditLog> {
    let token = paths.token_path()?;
    let mut options = AuditOptions::default();
    options.keep_bytes = settings.audit_keep_bytes;
    let anchors = ControlAnchors::new(Arc::clone(control), AnchorCopy::beside(&token));
    let path = paths.audit_path()?;
    let (log, recovered) = AuditLog::open(&path, &token, Arc::new(anchors), options)?;
    let chains = control.anchors(anchors::PREFIX);
    if recovered.new_chain && !chains.is_empty() {
        tracing::error!(log = %path.display(), "a new audit chain begins, although this data directory knows an older one: the key and the log were taken away");
    }
    Ok(log)
}

async fn open_engine(
    settings: &Settings,
    local: &Local<'_>,
    control: Arc<ControlDb>,
    files: u64,
) -> anyhow::Result<Engine> {
    let per_tenant = local.per_tenant();
    let mut options = EngineOptions::default();
    let connections = settings.server.max_connections as u64;
    let by_files = files.saturating_sub(OTHER_FILES + connections) / per_tenant.files;
    // Half of the memory, with every tenant at its largest.
    let memory = memory::available().unwrap_or(u64::MAX) / 2;
    let affordable = by_files.min(memory / per_tenant.caches);
    options.max_open_tenants = settings
        .max_open_tenants
        .unwrap_or(usize::try_from(affordable.clamp(8, 1_024)).unwrap_or(1_024));
    options.wakes = Some(Arc::new(LocalWakes::new(control.clone())));
    Ok(Engine::new(local.open_provider(control).await?, options))
}

/// Raises the soft limit of open files to the hard one; returns what is allowed now.
fn raise_file_limit() -> u64 {
    let now = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: now.maximum,
        maximum: now.maximum,
    };
    let limit = match setrlimit(Resource::Nofile, wanted) {
        Ok(()) => now.maximum,
        Err(error) => {
            tracing::warn!(%error, "the limit of open files could not be raised");
            now.current
        }
    };
    limit.unwrap_or(1 << 20)
}

/// Reloads policies at SIGHUP, without waiting for them to rest. Without any the signal ends the server, as it does
/// other programs.
fn reload_on_signal(policies: Option<PolicyDirectory>) -> anyhow::Result<()> {
    let Some(policies) = policies else {
        return Ok(());
    };
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            let policies = policies.clone();
            // How it went is logged, and in /debug/policy/status.
            drop(tokio::task::spawn_blocking(move || policies.reload()).await);
        }
    });
    Ok(())
}

/// Ends at the first SIGTERM or SIGINT. The second one ends the process at once.
fn stop_signal() -> anyhow::Result<impl Future<Output = ()>> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
        tracing::info!("stopping; a second signal ends at once");
        tokio::spawn(async move {
            tokio::select! { _ = term.recv() => {}, _ = int.recv() => {} }
            // Acknowledged writes are durable; what is cut off was not acknowledged.
            #[expect(clippy::disallowed_methods, reason = "the operator asked twice")]
            std::process::exit(1);
        });
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_function_that_runs_has_a_reader() {
        let worker = nimbus_runtime::WorkerCommand::this_binary().unwrap();
        let mut config = RuntimeConfig::new(worker);
        let natural = readers(&config);
        assert!(natural >= config.active_per_tenant() + 2);
        config.max_instances = Some(500);
        assert_eq!(readers(&config), 499 + 2);
        config.max_active_per_tenant = Some(100);
        assert_eq!(readers(&config), natural.max(102));
        config.max_active_per_tenant = Some(1);
        assert_eq!(readers(&config), natural);
    }
}
