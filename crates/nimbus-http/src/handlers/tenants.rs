//! Tenants: create, list, delete, adopt, move, prune (nimbus.md 2.3).
//!
//! It must not know what a tenant holds.

use nimbus_auth::{OperationContext, Permission, ServerContext};
use nimbus_core::ErrorCode;

use crate::answer::{Accepted, Created, Found, NoContent};
use crate::error::{ApiError, ApiResult};
use crate::extract::Json;
use crate::route::Call;
use crate::store::Store;
use crate::wire::{CreateTenant, Id, MoveTenant, Pruned, TenantList, TenantMove};

pub(crate) async fn create(
    call: Call<ServerContext>,
    Json(body): Json<CreateTenant>,
) -> ApiResult<Created<Id>> {
    call.app
        .store
        .create_tenant(&call.context, &body.id)
        .await?;
    Ok(Created(Id {
        id: body.id.to_string(),
    }))
}

pub(crate) async fn list(call: Call<ServerContext>, _: ()) -> ApiResult<Found<TenantList>> {
    let tenants = call.app.store.list_tenants(&call.context).await?;
    Ok(Found(TenantList { tenants }))
}

pub(crate) async fn delete(call: Call<OperationContext>, _: ()) -> ApiResult<NoContent> {
    let (app, tenant) = (&call.app, call.context.tenant());
    // Nothing of it runs when its storage goes, and what is made under its name later may.
    app.functions.stop_tenant(tenant);
    let deleted = app.store.delete_tenant(&call.context).await;
    app.functions.allow_tenant(tenant);
    deleted?;
    Ok(NoContent)
}

pub(crate) async fn adopt(call: Call<OperationContext>, _: ()) -> ApiResult<Created<Id>> {
    call.app.store.adopt_tenant(&call.context).await?;
    Ok(Created(Id {
        id: call.context.tenant().to_string(),
    }))
}

pub(crate) async fn begin_move(
    call: Call<OperationContext>,
    Json(body): Json<MoveTenant>,
) -> ApiResult<Accepted<TenantMove>> {
    let store = &call.app.store;
    store.begin_move(&call.context, &body.to).await?;
    Ok(Accepted(newest_move(store, &call.context)?))
}

pub(crate) async fn move_status(
    call: Call<OperationContext>,
    _: (),
) -> ApiResult<Found<TenantMove>> {
    // A tenant that is not there was not moved either.
    let (store, needed) = (&call.app.store, Permission::ManageTenants);
    if store.move_status(&call.context)?.is_none() {
        store.tenant(&call.context, needed).await?;
    }
    Ok(Found(newest_move(store, &call.context)?))
}

pub(crate) async fn cancel_move(
    call: Call<OperationContext>,
    _: (),
) -> ApiResult<Found<TenantMove>> {
    let status = call.app.store.cancel_move(&call.context).await?;
    Ok(Found(TenantMove::of(status)))
}

fn newest_move(store: &Store, context: &OperationContext) -> ApiResult<TenantMove> {
    let status = store.move_status(context)?.ok_or_else(|| {
        let tenant = context.tenant();
        let text = format!("tenant {tenant} was not moved since this server started");
        ApiError::new(ErrorCode::OpNotFound, text)
    })?;
    Ok(TenantMove::of(status))
}

pub(crate) async fn prune(call: Call<OperationContext>, _: ()) -> ApiResult<Found<Pruned>> {
    let tenant = call
        .app
        .store
        .tenant(&call.context, Permission::ManageTenants)
        .await?;
    Ok(Found(Pruned {
        pruned: tenant.prune_log().await?,
    }))
}
