//! A door for the fuzz targets to the request bodies of the API, which are private to this crate.
//! Compiled with the feature `fuzzing` only, which the server never enables.
//!
//! It must not hold checks: those are in `fuzz/`.

use bytes::Bytes;
use http_body_util::BodyExt as _;
use nimbus_core::TableName;
use nimbus_storage::Query;

use crate::edge::request_id::Ulid;
use crate::error::{ApiError, ApiResult};
use crate::extract::{Json, JsonBody};
use crate::wire::{
    CreateTenant, ImportBody, InsertDocument, PageBody, PatchDocument, QueryBody, SchemaBody,
};

/// The answer to a request that was refused.
#[derive(Debug)]
pub struct Refusal {
    /// HTTP status.
    pub status: u16,
    /// The error envelope.
    pub body: Bytes,
}

/// A page of a query, as a request asks for it.
#[derive(Debug)]
pub struct PageRequest {
    /// The query.
    pub query: Query,
    /// Most documents wanted.
    pub page_size: u32,
    /// The cursor.
    pub after: Option<String>,
}

/// Reads the body of `POST query`.
///
/// # Errors
/// The answer to the client.
pub fn query(body: &[u8]) -> Result<Query, Refusal> {
    read::<QueryBody>(body).map(Query::from).map_err(refuse)
}

/// Reads the body of `POST query/paginated`.
///
/// # Errors
/// The answer to the client.
pub fn page(body: &[u8]) -> Result<PageRequest, Refusal> {
    let page = read::<PageBody>(body).map_err(refuse)?;
    Ok(PageRequest {
        query: page.query.into(),
        page_size: page.page_size,
        after: page.after,
    })
}

/// Reads the body as that of every other route that takes one; the answers of those that refuse.
pub fn other_bodies(body: &[u8], table: &TableName) -> Vec<Refusal> {
    let answers = [
        read::<CreateTenant>(body).map(drop),
        read::<ImportBody>(body).map(|import| drop(import.into_rows())),
        read::<InsertDocument>(body).map(drop),
        read::<PatchDocument>(body).map(drop),
        read::<SchemaBody>(body).and_then(|schema| schema.into_schema(table).map(drop)),
    ];
    answers
        .into_iter()
        .filter_map(Result::err)
        .map(refuse)
        .collect()
}

/// A valid body of every route that takes one, for the fuzzer to start from.
pub fn examples() -> [&'static str; 7] {
    [
        CreateTenant::EXAMPLE,
        ImportBody::EXAMPLE,
        InsertDocument::EXAMPLE,
        PageBody::EXAMPLE,
        PatchDocument::EXAMPLE,
        QueryBody::EXAMPLE,
        SchemaBody::EXAMPLE,
    ]
}

fn read<T: JsonBody>(body: &[u8]) -> ApiResult<T> {
    Json::<T>::parse(&Bytes::copy_from_slice(body)).map(|json| json.0)
}

fn refuse(error: ApiError) -> Refusal {
    let (parts, body) = error.into_response(&Ulid::next()).into_parts();
    // The body is in memory, so it is ready at once.
    let body = futures_util::FutureExt::now_or_never(body.collect());
    Refusal {
        status: parts.status.as_u16(),
        body: body
            .and_then(Result::ok)
            .map(|whole| whole.to_bytes())
            .unwrap_or_default(),
    }
}
