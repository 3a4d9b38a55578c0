//! `nimbus tenants`: through a running server, or offline when nobody holds the data directory.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use nimbus_core::TenantId;
use nimbus_storage::control::ControlDb;
use nimbus_storage::provider::lock::{DataDirLock, LockError};
use nimbus_storage::provider::sqlite::{SqliteOptions, SqliteProvider};
use nimbus_storage::{Engine, EngineOptions};
use serde_json::{Value as Json, json};

use crate::cli::{Format, Place, TenantsCommand};
use crate::remote::Remote;
use crate::{output, settings};

/// What is to be done, wherever it is done.
enum Act {
    Create(TenantId),
    List,
    Delete(TenantId),
    Adopt(TenantId),
    Prune(TenantId),
}

/// Runs one of the commands.
pub(crate) fn run(command: TenantsCommand) -> anyhow::Result<()> {
    let (act, place) = match command {
        TenantsCommand::Create { tenant, place } => (Act::Create(tenant), place),
        TenantsCommand::List { place } => (Act::List, place),
        TenantsCommand::Delete { tenant, yes, place } => {
            if !yes {
                confirm(&tenant)?;
            }
            (Act::Delete(tenant), place)
        }
        TenantsCommand::Adopt { tenant, place } => (Act::Adopt(tenant), place),
        TenantsCommand::Prune { tenant, place } => (Act::Prune(tenant), place),
    };
    let format = place.format;
    let result = perform(&act, place)?;
    report(&act, &result, format)
}

fn confirm(tenant: &TenantId) -> anyhow::Result<()> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        bail!("deleting {tenant} cannot be undone; pass --yes to do it without being asked");
    }
    let mut err = std::io::stderr();
    write!(
        err,
        "Delete tenant {tenant} with all its data? There is no way back. Type its id: "
    )?;
    err.flush()?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    if answer.trim() != tenant.as_str() {
        bail!("nothing was deleted");
    }
    Ok(())
}

fn perform(act: &Act, place: Place) -> anyhow::Result<Json> {
    let env = &settings::process_environment;
    if let Some(url) = place
        .url
        .or_else(|| env("NIMBUS_URL").filter(|_| place.data_dir.is_none()))
    {
        return over_http(act, &url);
    }
    let file = settings::persistence(None, env)?;
    let (data, control) = settings::directories(place.data_dir, place.control_data_dir, &file, env);
    if !data.is_dir() {
        bail!(
            "{} is not a directory; name the data directory with --data-dir or the server with --url",
            data.display()
        );
    }
    match DataDirLock::acquire(&data) {
        Ok(lock) => offline(act, &data, &control, lock),
        Err(LockError::Held { holder, path }) => match holder.and_then(|h| h.address) {
            Some(address) => over_http(act, &format!("http://{address}")),
            None => bail!(
                "{} is held by a process that does not listen; try again, or stop it",
                path.display()
            ),
        },
        Err(other) => Err(other.into()),
    }
}

fn over_http(act: &Act, url: &str) -> anyhow::Result<Json> {
    let remote = Remote::new(url)?;
    match act {
        Act::Create(id) => remote.call("POST", "/api/tenants", Some(&json!({"id": id.as_str()}))),
        Act::List => remote.call("GET", "/api/tenants", None),
        Act::Delete(id) => remote.call("DELETE", &format!("/api/tenants/{id}"), None),
        Act::Adopt(id) => remote.call("POST", &format!("/api/tenants/{id}/adopt"), None),
        Act::Prune(id) => remote.call("POST", &format!("/api/tenants/{id}/prune"), None),
    }
}

/// The lock is held until the work is done.
fn offline(act: &Act, data: &Path, control: &Path, _lock: DataDirLock) -> anyhow::Result<Json> {
    let _control_lock = if control == data {
        None
    } else {
        Some(DataDirLock::acquire(control)?)
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let control = Arc::new(ControlDb::open(control)?);
        let provider = SqliteProvider::open(SqliteOptions::new(data), control)
            .with_context(|| format!("opening the tenants in {}", data.display()))?;
        let engine = Engine::new(Arc::new(provider), EngineOptions::default());
        let result = on_engine(act, &engine).await;
        engine.close().await?;
        Ok(result?)
    })
}

async fn on_engine(act: &Act, engine: &Engine) -> nimbus_storage::StoreResult<Json> {
    Ok(match act {
        Act::Create(id) => {
            engine.create_tenant(id).await?;
            Json::Null
        }
        Act::List => json!({"tenants": engine.list_tenants().await?}),
        Act::Delete(id) => {
            engine.delete_tenant(id).await?;
            Json::Null
        }
        Act::Adopt(id) => {
            engine.adopt_tenant(id).await?;
            Json::Null
        }
        Act::Prune(id) => json!({"pruned": engine.tenant(id).await?.prune_log().await?}),
    })
}

fn report(act: &Act, result: &Json, format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        return output::json(&match act {
            Act::List => json!({"tenants": result["tenants"]}),
            Act::Prune(id) => json!({"id": id.as_str(), "pruned": result["pruned"]}),
            Act::Create(id) | Act::Adopt(id) => json!({"id": id.as_str()}),
            Act::Delete(id) => json!({"id": id.as_str(), "deleted": true}),
        });
    }
    match act {
        Act::List => {
            for id in result["tenants"].as_array().into_iter().flatten() {
                output::line(id.as_str().unwrap_or_default())?;
            }
            Ok(())
        }
        Act::Create(id) => output::line(&format!("created {id}")),
        Act::Delete(id) => output::line(&format!("deleted {id}")),
        Act::Adopt(id) => output::line(&format!("adopted {id}")),
        Act::Prune(id) => {
            output::line(&format!("dropped {} log records of {id}", result["pruned"]))
        }
    }
}
