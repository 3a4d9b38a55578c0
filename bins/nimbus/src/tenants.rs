//! `nimbus tenants`: through a running server, or offline when nobody holds the data directory.
//!
//! It must not know how tenants are stored.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use anyhow::bail;
use nimbus_auth::Permission;
use nimbus_core::TenantId;
use serde_json::{Value as Json, json};

use crate::cli::{Format, Place, TenantsCommand};
use crate::output;
use crate::place::{Backend, Offline};
use crate::remote::Remote;

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
    let backend = Backend::open(place)?;
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
    }
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
