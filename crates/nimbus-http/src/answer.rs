//! What a handler may answer with: one type per success status, each with its schema.
//!
//! A handler cannot choose a status, so that a 200 with an error in it cannot be written. Errors
//! are [`crate::error`]'s.

use std::marker::PhantomData;

use axum::body::Body;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response, StatusCode};
use nimbus_core::ErrorCode;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;

use crate::error::{ApiError, ApiResult};
use crate::{cells, lines};

/// The media type of every JSON answer.
pub(crate) const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What OpenAPI says about an answer.
#[derive(Clone, Copy)]
pub(crate) struct AnswerDoc {
    pub status: StatusCode,
    /// Media types that it may have.
    pub media: &'static [&'static str],
    pub schema: Option<fn(&mut SchemaGenerator) -> Schema>,
}

impl AnswerDoc {
    fn json<T: JsonSchema>(status: StatusCode) -> AnswerDoc {
        let schema: fn(&mut SchemaGenerator) -> Schema = SchemaGenerator::subschema_for::<T>;
        AnswerDoc {
            status,
            media: &["application/json"],
            schema: Some(schema),
        }
    }

    /// An answer in the shapes of convex.md 1.5, which its clients know.
    pub(crate) const fn convex() -> AnswerDoc {
        AnswerDoc {
            status: StatusCode::OK,
            media: &["application/json"],
            schema: None,
        }
    }

    /// The answer of a route that does not exist yet.
    pub(crate) const fn planned() -> AnswerDoc {
        AnswerDoc {
            status: StatusCode::NOT_FOUND,
            media: &[],
            schema: None,
        }
    }
}

/// A successful answer.
pub(crate) trait Output: Send + 'static {
    fn doc() -> AnswerDoc;
    fn into_response(self) -> ApiResult<Response<Body>>;
}

/// 200 with JSON.
pub(crate) struct Found<T>(pub T);

/// 201 with JSON.
pub(crate) struct Created<T>(pub T);

/// 202 with JSON: what was asked for goes on.
pub(crate) struct Accepted<T>(pub T);

/// 204 without a body.
pub(crate) struct NoContent;

/// 200 with JSON text that was put together from stored text, shaped like `T`.
pub(crate) struct Spliced<T> {
    text: Bytes,
    shape: PhantomData<fn() -> T>,
}

impl<T> Spliced<T> {
    /// Takes JSON text that is shaped like `T`.
    pub(crate) fn new(text: impl Into<Bytes>) -> Spliced<T> {
        Spliced {
            text: text.into(),
            shape: PhantomData,
        }
    }
}

/// 200 with documents that are written while they are sent.
pub(crate) struct Streamed {
    /// Which of [`ROWS`] they are.
    pub media: &'static str,
    pub body: Body,
}

/// Media types of documents one after the other.
const ROWS: &[&str] = &[lines::MEDIA, cells::MEDIA];

/// 200 with a backup, written while it is sent.
pub(crate) struct BackupBytes(pub Body);

/// The media type of a backup.
const BACKUP: &str = "application/vnd.nimbus.backup";

/// 200 with OpenMetrics text.
pub(crate) struct MetricsText(pub String);

/// The media type of OpenMetrics text, which Prometheus asks for.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

impl<T: Serialize + JsonSchema + Send + 'static> Output for Found<T> {
    fn doc() -> AnswerDoc {
        AnswerDoc::json::<T>(StatusCode::OK)
    }

    fn into_response(self) -> ApiResult<Response<Body>> {
        json(StatusCode::OK, &self.0)
    }
}

impl<T: Serialize + JsonSchema + Send + 'static> Output for Created<T> {
    fn doc() -> AnswerDoc {
        AnswerDoc::json::<T>(StatusCode::CREATED)
    }

    fn into_response(self) -> ApiResult<Response<Body>> {
        json(StatusCode::CREATED, &self.0)
    }
}

impl<T: Serialize + JsonSchema + Send + 'static> Output for Accepted<T> {
    fn doc() -> AnswerDoc {
        AnswerDoc::json::<T>(StatusCode::ACCEPTED)
    }

    fn into_response(self) -> ApiResult<Response<Body>> {
        json(StatusCode::ACCEPTED, &self.0)
    }
}

impl Output for NoContent {
    fn doc() -> AnswerDoc {
        AnswerDoc {
            status: StatusCode::NO_CONTENT,
            media: &[],
            schema: None,
        }
    }

    fn into_response(self) -> ApiResult<Response<Body>> {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NO_CONTENT;
        Ok(response)
    }
}

impl<T: JsonSchema + 'static> Output for Spliced<T> {
    fn doc() -> AnswerDoc {
        AnswerDoc::json::<T>(StatusCode::OK)
    }

    fn into_response(self) -> ApiResult<Response<Body>> {
        Ok(typed(StatusCode::OK, JSON, self.text))
    }
}

impl Output for Streamed {
    fn doc() -> AnswerDoc {
        AnswerDoc {
            status: StatusCode::OK,
            media: ROWS,
            schema: None,
        }
    }

    fn into_response(self) -> ApiResult<Response<Body>> {
        let mut response = Response::new(self.body);
        let media = HeaderValue::from_static(self.media);
        response.headers_mut().insert(CONTENT_TYPE, media);
        Ok(response)
    }
}

impl Output for BackupBytes {
    fn doc() -> AnswerDoc {
        AnswerDoc {
            status: StatusCode::OK,
            media: &[BACKUP],
            schema: None,
        }
    }

    fn into_response(self) -> ApiResult<Response<Body>> {
        let mut response = Response::new(self.0);
        let media = HeaderValue::from_static(BACKUP);
        response.headers_mut().insert(CONTENT_TYPE, media);
        Ok(response)
    }
}

impl Output for MetricsText {
    fn doc() -> AnswerDoc {
        AnswerDoc {
            status: StatusCode::OK,
            media: &[OPENMETRICS],
            schema: None,
        }
    }

    fn into_response(self) -> ApiResult<Response<Body>> {
        Ok(typed(
            StatusCode::OK,
            HeaderValue::from_static(OPENMETRICS),
            self.0.into(),
        ))
    }
}

fn json<T: Serialize>(status: StatusCode, value: &T) -> ApiResult<Response<Body>> {
    let text = serde_json::to_vec(value).map_err(|error| {
        let text = "the answer could not be written as JSON";
        ApiError::new(ErrorCode::ServiceSerialization, text).with_inside(error.to_string())
    })?;
    Ok(typed(status, JSON, text.into()))
}

fn typed(status: StatusCode, media: HeaderValue, text: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, media);
    response
}
