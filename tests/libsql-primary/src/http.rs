//! The two HTTP surfaces: Hrana for users, and the admin API.
//! It must not know how a stream is kept or a statement run.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{HeaderMap, Method, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::error::Refusal;
use crate::namespace::Namespaces;
use crate::proto::{Cursor, Entry, Pipeline, PipelineAnswer};
use crate::{World, lock};

pub(crate) type Request = http::Request<Incoming>;
pub(crate) type Response = http::Response<Full<Bytes>>;

/// The connection is to end without an answer.
#[derive(Debug)]
pub(crate) struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a fault that a test asked for")
    }
}

impl std::error::Error for Cut {}

/// Which of the two surfaces a port has, and what both need.
#[derive(Clone, Debug)]
pub(crate) struct Api {
    pub(crate) admin: bool,
    pub(crate) world: Arc<World>,
    pub(crate) namespaces: Arc<Namespaces>,
}

/// What a request is answered with.
struct Answer {
    body: Vec<u8>,
    kind: &'static str,
    cut: bool,
}

impl Answer {
    fn text(text: &str) -> Answer {
        Answer {
            body: text.as_bytes().to_vec(),
            kind: "text/plain",
            cut: false,
        }
    }

    fn json(value: &impl Serialize) -> Result<Answer, Refusal> {
        Ok(Answer {
            body: line(value)?,
            kind: "application/json",
            cut: false,
        })
    }
}

impl Api {
    pub(crate) async fn serve(self, request: Request) -> Result<Response, Cut> {
        let delay = Arc::clone(&self.world);
        let answer = match self.admin {
            true => self.admin(request).await,
            false => self.user(request).await,
        };
        tokio::time::sleep(delay.faults.delay()).await;
        let (status, answer) = match answer {
            Ok(answer) => (StatusCode::OK, answer),
            Err(refusal) => (refusal.status(), refused(&refusal)),
        };
        if answer.cut {
            return Err(Cut);
        }
        let mut response = http::Response::new(Full::from(answer.body));
        *response.status_mut() = status;
        let kind = http::HeaderValue::from_static(answer.kind);
        response.headers_mut().insert(CONTENT_TYPE, kind);
        Ok(response)
    }

    async fn user(self, request: Request) -> Result<Answer, Refusal> {
        let path = request.uri().path().to_owned();
        let (method, version) = match path.as_str() {
            "/health" | "/version" | "/v2" | "/v3" => (Method::GET, 0),
            "/v2/pipeline" => (Method::POST, 2),
            "/v3/pipeline" | "/v3/cursor" => (Method::POST, 3),
            _ => return Err(Refusal::NotFound),
        };
        if request.method() != method {
            return Err(Refusal::Method);
        }
        match path.as_str() {
            "/health" => return Ok(Answer::text("")),
            "/version" => return Ok(Answer::text("nimbus-libsql-primary")),
            "/v2" => return Ok(Answer::text("Hello, this is HTTP API v2 (Hrana over HTTP)")),
            "/v3" => return Ok(Answer::text("Hello, this is HTTP API v3 (Hrana over HTTP)")),
            _ => {}
        }
        self.authorize(request.headers())?;
        let name = namespace(request.headers())?;
        let body = self.body(request).await?;
        let cursor = path == "/v3/cursor";
        blocking(move || match cursor {
            true => self.cursor(&name, &parse(&body)?),
            false => self.pipeline(&name, &parse(&body)?, version),
        })
        .await
    }

    fn authorize(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let Some(token) = &self.world.options.auth_token else {
            return Ok(());
        };
        let given = headers
            .get(AUTHORIZATION)
            .and_then(|value| value.to_str().ok());
        match given.and_then(|given| given.split_once(' ')) {
            Some((kind, given)) if kind.eq_ignore_ascii_case("bearer") && given == token => Ok(()),
            _ => Err(Refusal::Unauthorized),
        }
    }

    async fn body(&self, request: Request) -> Result<Bytes, Refusal> {
        let limit = self.world.options.max_body;
        let read = Limited::new(request.into_body(), limit).collect().await;
        match read {
            Ok(body) => Ok(body.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(Refusal::Body(limit)),
            Err(error) => Err(Refusal::BadRequest(error.to_string())),
        }
    }

    fn pipeline(&self, name: &str, asked: &Pipeline, version: u8) -> Result<Answer, Refusal> {
        let lease = self.namespaces.get(name)?.stream(asked.baton.as_deref())?;
        let mut session = lock(&lease.session);
        let (results, closed) = session.pipeline(&asked.requests, version)?;
        let cut = session.take_cut();
        drop(session);
        let answer = PipelineAnswer {
            baton: if closed { None } else { Some(lease.keep()?) },
            base_url: None,
            results,
        };
        Ok(Answer {
            cut,
            ..Answer::json(&answer)?
        })
    }

    fn cursor(&self, name: &str, asked: &Cursor) -> Result<Answer, Refusal> {
        let lease = self.namespaces.get(name)?.stream(asked.baton.as_deref())?;
        let session = lock(&lease.session);
        let result = session.cursor(&asked.batch)?;
        let cut = session.take_cut();
        drop(session);
        let mut body = line(&json!({ "baton": lease.keep()?, "base_url": null }))?;
        let steps = result.step_results.iter().zip(&result.step_errors);
        for (step, (result, error)) in steps.enumerate() {
            let mut entry = |entry: Entry<'_>| -> Result<(), Refusal> {
                body.push(b'\n');
                body.extend(line(&entry)?);
                Ok(())
            };
            if let Some(error) = error {
                entry(Entry::StepError { step, error })?;
            }
            let Some(result) = result else { continue };
            let cols = &result.cols;
            entry(Entry::StepBegin { step, cols })?;
            for row in &result.rows {
                entry(Entry::Row { row })?;
            }
            entry(Entry::StepEnd {
                affected_row_count: result.affected_row_count,
                last_insert_rowid: result.last_insert_rowid,
            })?;
        }
        body.push(b'\n');
        Ok(Answer {
            body,
            kind: "text/plain",
            cut,
        })
    }

    async fn admin(self, request: Request) -> Result<Answer, Refusal> {
        let wanted = self.world.options.admin_auth_header.as_deref();
        let given = request.headers().get(AUTHORIZATION);
        if wanted.is_some() && given.and_then(|value| value.to_str().ok()) != wanted {
            return Err(Refusal::Unauthorized);
        }
        let path = request.uri().path().to_owned();
        let rest = path.strip_prefix("/v1/namespaces/");
        let (name, action) =
            rest.map_or(("", ""), |rest| rest.split_once('/').unwrap_or((rest, "")));
        let name = name.to_owned();
        match (action, request.method().as_str()) {
            _ if name.is_empty() => Err(Refusal::NotFound),
            ("create", "POST") => self.create(name, request).await,
            ("", "DELETE") => {
                let namespaces = Arc::clone(&self.namespaces);
                blocking(move || namespaces.delete(&name)).await?;
                Ok(Answer::text(""))
            }
            ("config", "GET") => {
                let namespaces = Arc::clone(&self.namespaces);
                blocking(move || namespaces.get(&name)).await?;
                let none = None::<String>;
                Answer::json(&json!({
                    "block_reads": false, "block_writes": false, "block_reason": none,
                    "max_db_size": none, "heartbeat_url": none, "jwt_key": none,
                }))
            }
            ("create" | "" | "config", _) => Err(Refusal::Method),
            _ => Err(Refusal::NotFound),
        }
    }

    async fn create(self, name: String, request: Request) -> Result<Answer, Refusal> {
        let kind = request.headers().get(CONTENT_TYPE);
        let kind = kind
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        if kind.split(';').next().map(str::trim) != Some("application/json") {
            return Err(Refusal::MediaType);
        }
        let settings: serde_json::Map<String, serde_json::Value> =
            parse(&self.body(request).await?)?;
        if let Some(name) = settings.keys().next() {
            let message = format!("`{name}` is not supported here: only {{}} is");
            return Err(Refusal::BadRequest(message));
        }
        let namespaces = Arc::clone(&self.namespaces);
        blocking(move || namespaces.create(&name)).await?;
        Ok(Answer::text(""))
    }
}

/// SQLite and the wait for a lock would hold up the other connections.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Refusal::Internal(error.to_string())))
}

/// The header `x-namespace`, else the first label of the host, else `default`.
fn namespace(headers: &HeaderMap) -> Result<String, Refusal> {
    let text = |value: &http::HeaderValue| value.to_str().unwrap_or_default().to_owned();
    if let Some(name) = headers.get("x-namespace") {
        return Ok(text(name));
    }
    let missing = || Refusal::BadRequest("missing host header".to_owned());
    let host = headers.get(HOST).map(text).ok_or_else(missing)?;
    let name = host
        .rsplit_once(':')
        .map_or(host.as_str(), |(name, _)| name);
    let is_address = name.starts_with('[') || name.parse::<IpAddr>().is_ok();
    let label = name.split_once('.').filter(|_| !is_address);
    Ok(label.map_or("default", |(label, _)| label).to_owned())
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    let invalid = |error| Refusal::BadRequest(format!("could not parse the request body: {error}"));
    serde_json::from_slice(body).map_err(invalid)
}

fn line(value: &impl Serialize) -> Result<Vec<u8>, Refusal> {
    serde_json::to_vec(value).map_err(|error| Refusal::Internal(error.to_string()))
}

/// What breaks the protocol is an error of Hrana, the rest are errors of the server.
fn refused(refusal: &Refusal) -> Answer {
    let value = match refusal {
        Refusal::Protocol(error) => {
            let error = error.wire();
            json!({ "message": error.message, "code": error.code })
        }
        other => json!({ "error": other.to_string() }),
    };
    Answer {
        body: value.to_string().into_bytes(),
        kind: "application/json",
        cut: false,
    }
}
