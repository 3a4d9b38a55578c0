//! Queries, whole and in pages (nimbus.md 2.5, 2.6).
//!
//! It must not know how a query is planned or what a cursor holds.

use bytes::BufMut as _;
use nimbus_auth::{OperationContext, Permission};

use super::documents::{splice_data, splice_list};
use crate::answer::Spliced;
use crate::error::ApiResult;
use crate::extract::Json;
use crate::route::Call;
use crate::wire::{DocumentList, DocumentPage, PageBody, QueryBody};

pub(crate) async fn query(
    call: Call<OperationContext>,
    Json(body): Json<QueryBody>,
) -> ApiResult<Spliced<DocumentList>> {
    let tenant = call
        .app
        .store
        .tenant(&call.context, Permission::ReadData)
        .await?;
    Ok(Spliced::new(splice_list(
        &tenant.query(&body.into()).await?,
    )))
}

pub(crate) async fn paginated(
    call: Call<OperationContext>,
    Json(body): Json<PageBody>,
) -> ApiResult<Spliced<DocumentPage>> {
    let tenant = call
        .app
        .store
        .tenant(&call.context, Permission::ReadData)
        .await?;
    let page = tenant
        .page(&body.query.into(), body.page_size, body.after.as_deref())
        .await?;
    // Cursors are base64url text and need no escaping, but a quoted string is what JSON asks for.
    let cursor = serde_json::Value::from(page.next_cursor).to_string();
    let tail = format!(",\"next_cursor\":{cursor},\"has_more\":{}}}", page.has_more);
    let mut text = splice_data(&page.documents, tail.len());
    text.put_slice(tail.as_bytes());
    Ok(Spliced::new(text))
}
