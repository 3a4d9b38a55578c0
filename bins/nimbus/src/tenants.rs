//! `nimbus tenants`: through a running server, or offline when nobody holds the data directory.
//!
//! It must not know how tenants are stored.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::bail;
use nimbus_auth::Permission;
use nimbus_core::TenantId;
use serde_json::{Value as Json, json};

use crate::cli::{Format, Place, TenantsCommand};
use crate::output;
use crate::place::{Backend, Offline};
use crate::progress;
use crate::remote::Remote;
use crate::settings::ProviderName;

/// Between two questions how far a move is.
const ASK_EVERY: Duration = Duration::from_millis(100);

/// What is to be done, wherever it is done.
enum Act {
    Create(TenantId),
    List,
    Delete(TenantId),
    Adopt(TenantId),
    Prune(TenantId),
    Move(TenantId, ProviderName),
    CancelMove(TenantId),
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
        TenantsCommand::Move {
            tenant, to, place, ..
        } => match to {
            Some(to) => (Act::Move(tenant, to), place),
            None => (Act::CancelMove(tenant), place),
        },
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
    let also = match act {
        Act::Move(_, to) => Some(*to),
        _ => None,
    };
    let backend = Backend::open_with(place, also)?;
    let result = match &backend {
        Backend::Server(remote) => over_http(act, remote),
        Backend::Offline(offline) => offline.runtime.block_on(through_the_door(act, offline)),
    };
    backend.close()?;
    result
}

fn over_http(act: &Act, remote: &Remote) -> anyhow::Result<Json> {
    match act {
        Act::Create(id) => remote.call("POST", "/api/tenants", Some(&json!({"id": id.as_str()}))),
        Act::List => remote.call("GET", "/api/tenants", None),
        Act::Delete(id) => remote.call("DELETE", &format!("/api/tenants/{id}"), None),
        Act::Adopt(id) => remote.call("POST", &format!("/api/tenants/{id}/adopt"), None),
        Act::Prune(id) => remote.call("POST", &format!("/api/tenants/{id}/prune"), None),
        Act::Move(id, to) => {
            let path = format!("/api/tenants/{id}/move");
            remote.call("POST", &path, Some(&json!({"to": to.name()})))?;
            watch(|| remote.call("GET", &path, None))
        }
        Act::CancelMove(id) => {
            cancelled(remote.call("DELETE", &format!("/api/tenants/{id}/move"), None)?)
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the server tells nobody how far a move is"
)]
fn wait() {
    std::thread::sleep(ASK_EVERY);
}

/// Asks how far a move is until it is over.
fn watch(mut ask: impl FnMut() -> anyhow::Result<Json>) -> anyhow::Result<Json> {
    let bar = progress::bar(None, "rows");
    loop {
        let status = ask()?;
        bar.set_position(status["rows"].as_u64().unwrap_or_default());
        match status["phase"].as_str() {
            Some("done") => return Ok(status),
            Some("failed") => {
                let why = status["error"]
                    .as_str()
                    .unwrap_or("the server does not say why");
                bail!("the tenant was not moved: {why}");
            }
            _ => wait(),
        }
    }
}

/// Fails when the move had been decided before it could be cancelled.
fn cancelled(status: Json) -> anyhow::Result<Json> {
    if status["phase"] == "done" {
        let to = status["to"].as_str().unwrap_or_default();
        bail!("it was too late: the tenant is with {to} now");
    }
    Ok(status)
}

async fn through_the_door(act: &Act, offline: &Offline) -> anyhow::Result<Json> {
    let (store, caller) = (&offline.store, &offline.caller);
    let manage = Permission::ManageTenants;
    let on = |id: &TenantId| caller.tenant_context(id.clone(), manage);
    Ok(match act {
        Act::Create(id) => {
            store
                .create_tenant(&caller.server_context(manage)?, id)
                .await?;
            Json::Null
        }
        Act::List => {
            let tenants = store.list_tenants(&caller.server_context(manage)?).await?;
            json!({"tenants": tenants})
        }
        Act::Delete(id) => {
            store.delete_tenant(&on(id)?).await?;
            Json::Null
        }
        Act::Adopt(id) => {
            store.adopt_tenant(&on(id)?).await?;
            Json::Null
        }
        Act::Prune(id) => {
            let tenant = store.tenant(&on(id)?, manage).await?;
            json!({"pruned": tenant.prune_log().await?})
        }
        Act::Move(id, to) => {
            let context = on(id)?;
            store.begin_move(&context, to.name()).await?;
            let bar = progress::step("moving");
            let status = store.move_ended(&context).await?;
            bar.finish_and_clear();
            let failed = status
                .as_ref()
                .and_then(|s| s.inside.as_ref().or(s.error.as_ref()));
            if let Some(why) = failed {
                bail!("the tenant was not moved: {why}");
            }
            serde_json::to_value(status)?
        }
        Act::CancelMove(id) => {
            let status = store.cancel_move(&on(id)?).await?;
            cancelled(serde_json::to_value(status)?)?
        }
    })
}

fn report(act: &Act, result: &Json, format: Format) -> anyhow::Result<()> {
    if format == Format::Json {
        return output::json(&match act {
            Act::List => json!({"tenants": result["tenants"]}),
            Act::Prune(id) => json!({"id": id.as_str(), "pruned": result["pruned"]}),
            Act::Create(id) | Act::Adopt(id) => json!({"id": id.as_str()}),
            Act::Delete(id) => json!({"id": id.as_str(), "deleted": true}),
            Act::Move(id, _) | Act::CancelMove(id) => {
                let mut all = result.clone();
                all["id"] = id.as_str().into();
                all
            }
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
        Act::Move(id, to) => output::line(&format!(
            "moved {id} from {} to {}: {} rows, {} bytes; {} commits repeated; closed for {} ms of {} ms",
            result["from"].as_str().unwrap_or_default(),
            to.name(),
            result["rows"],
            result["bytes"],
            result["commits"],
            result["pause_ms"],
            result["elapsed_ms"],
        )),
        Act::CancelMove(id) => output::line(&format!(
            "cancelled: {id} stays with {}",
            result["from"].as_str().unwrap_or_default()
        )),
        Act::Prune(id) => {
            output::line(&format!("dropped {} log records of {id}", result["pruned"]))
        }
    }
}
