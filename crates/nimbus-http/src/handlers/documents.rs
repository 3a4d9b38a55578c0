//! Single documents and whole tables (nimbus.md 2.4).
//!
//! Stored JSON text is spliced into answers unparsed. It must not know limits or schemas.

use bytes::{BufMut as _, BytesMut};
use nimbus_auth::{OperationContext, Permission};
use nimbus_storage::{Document, Query};

use crate::answer::{Created, Found, NoContent, Spliced};
use crate::error::ApiResult;
use crate::extract::Json;
use crate::route::Call;
use crate::wire::{DocumentList, Id, InsertDocument, OneDocument, PatchDocument};

pub(crate) async fn insert(
    call: Call<OperationContext>,
    Json(body): Json<InsertDocument>,
) -> ApiResult<Created<Id>> {
    let tenant = call
        .app
        .store
        .tenant(&call.context, Permission::WriteData)
        .await?;
    let id = tenant.insert(&body.table, body.fields.0).await?;
    Ok(Created(Id { id: id.to_string() }))
}

pub(crate) async fn list(call: Call<OperationContext>, _: ()) -> ApiResult<Spliced<DocumentList>> {
    let table = call.params.name("table")?;
    let tenant = call
        .app
        .store
        .tenant(&call.context, Permission::ReadData)
        .await?;
    let query = Query {
        table,
        filters: Vec::new(),
        order: None,
        limit: None,
    };
    Ok(Spliced::new(splice_list(&tenant.query(&query).await?)))
}

pub(crate) async fn get(call: Call<OperationContext>, _: ()) -> ApiResult<Spliced<OneDocument>> {
    let table = call.params.name("table")?;
    let tenant = call
        .app
        .store
        .tenant(&call.context, Permission::ReadData)
        .await?;
    let document = tenant.get(&table, call.params.text("id")?).await?;
    let mut text = BytesMut::with_capacity(document.json.len() + 16);
    text.put_slice(b"{\"document\":");
    text.put_slice(&document.json);
    text.put_u8(b'}');
    Ok(Spliced::new(text))
}

pub(crate) async fn patch(
    call: Call<OperationContext>,
    Json(body): Json<PatchDocument>,
) -> ApiResult<Found<Id>> {
    let table = call.params.name("table")?;
    let tenant = call
        .app
        .store
        .tenant(&call.context, Permission::WriteData)
        .await?;
    let id = tenant
        .patch(&table, call.params.text("id")?, body.patch.0)
        .await?;
    Ok(Found(Id { id: id.to_string() }))
}

pub(crate) async fn delete(call: Call<OperationContext>, _: ()) -> ApiResult<NoContent> {
    let table = call.params.name("table")?;
    let tenant = call
        .app
        .store
        .tenant(&call.context, Permission::WriteData)
        .await?;
    tenant.delete(&table, call.params.text("id")?).await?;
    Ok(NoContent)
}

/// `{"data":[...]`, to be closed by the caller, who adds at most `extra` bytes.
pub(crate) fn splice_data(documents: &[Document], extra: usize) -> BytesMut {
    let bytes: usize = documents
        .iter()
        .map(|document| document.json.len() + 1)
        .sum();
    let mut text = BytesMut::with_capacity(bytes + 16 + extra);
    text.put_slice(b"{\"data\":[");
    for (i, document) in documents.iter().enumerate() {
        if i > 0 {
            text.put_u8(b',');
        }
        text.put_slice(&document.json);
    }
    text.put_u8(b']');
    text
}

/// `{"data":[...]}`.
pub(crate) fn splice_list(documents: &[Document]) -> BytesMut {
    let mut text = splice_data(documents, 1);
    text.put_u8(b'}');
    text
}
