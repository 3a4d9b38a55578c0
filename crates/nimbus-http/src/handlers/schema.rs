//! Table schemas and declared indexes (nimbus.md 2.7).
//!
//! It must not validate documents or build indexes; it hands schemas over.

use nimbus_auth::{OperationContext, Permission};

use crate::answer::{Found, NoContent};
use crate::error::ApiResult;
use crate::extract::Json;
use crate::route::Call;
use crate::wire::{SchemaAnswer, SchemaBody, SchemaList};

pub(crate) async fn list(call: Call<OperationContext>, _: ()) -> ApiResult<Found<SchemaList>> {
    let tenant = call
        .app
        .store
        .tenant(&call.context, Permission::ReadData)
        .await?;
    Ok(Found(SchemaList {
        tables: tenant.schema().await?,
    }))
}

pub(crate) async fn get(call: Call<OperationContext>, _: ()) -> ApiResult<Found<SchemaAnswer>> {
    let table = call.params.name("table")?;
    let tenant = call
        .app
        .store
        .tenant(&call.context, Permission::ReadData)
        .await?;
    Ok(Found(SchemaAnswer(tenant.table_schema(&table).await?)))
}

pub(crate) async fn put(
    call: Call<OperationContext>,
    Json(body): Json<SchemaBody>,
) -> ApiResult<NoContent> {
    let schema = body.into_schema(&call.params.name("table")?)?;
    let tenant = call
        .app
        .store
        .tenant(&call.context, Permission::ManageSchema)
        .await?;
    tenant.put_schema(schema).await?;
    Ok(NoContent)
}

pub(crate) async fn delete(call: Call<OperationContext>, _: ()) -> ApiResult<NoContent> {
    let table = call.params.name("table")?;
    let tenant = call
        .app
        .store
        .tenant(&call.context, Permission::ManageSchema)
        .await?;
    tenant.delete_schema(&table).await?;
    Ok(NoContent)
}
