//! Requests to the primary and to its admin API: one at a time, with their time and size bounded, and with what is
//! known of them when they fail.
//!
//! Must not know what a script is for. A namespace is named by the header `x-namespace` and not by the first label of
//! `Host`, as sqld allows too: with the header one URL, one certificate and one pool of connections serve all tenants,
//! and no names need to be resolved for each. No cookie is kept and no redirect followed.

use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

use super::hrana::{Outcome, Script, SqlFault, read_answer};
use super::options::{Target, Targets};
use crate::provider::{ProviderError, ProviderResult};

/// Bytes of an answer that are read.
const MAX_ANSWER: usize = 64 << 20;
/// Bytes of an error's text that are kept.
const MAX_TEXT: usize = 300;
/// How long a connection that nobody uses is kept.
const KEEP_IDLE: Duration = Duration::from_secs(20);

/// Why a request gave nothing.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    /// It did not reach the primary.
    #[error("the primary cannot be reached: {0}")]
    NotSent(String),
    /// It was sent, and whether it was done is not known.
    #[error("no answer of the primary: {0}")]
    Lost(String),
    /// The token or the header is not the right one.
    #[error("the primary refuses the {what} ({status})")]
    Denied {
        what: &'static str,
        status: StatusCode,
    },
    /// The namespace is not there, or not its table.
    #[error("the namespace is not there")]
    Gone,
    /// It is too much for the primary at once; nothing was done.
    #[error("the primary takes no request of this size")]
    TooLarge,
    /// Nothing was done, and the same may work in a moment.
    #[error("the primary is busy: {0}")]
    Busy(String),
    /// There is no space; nothing was done.
    #[error("the primary has no space left: {0}")]
    Full(String),
    /// The primary refused and did nothing.
    #[error("the primary refuses: {0}")]
    Refused(String),
}

impl Fault {
    /// Of a statement; the transaction that it was part of is over.
    pub(super) fn of(fault: &SqlFault) -> Fault {
        let text = fault.to_string();
        if fault.is(&[
            "SQLITE_BUSY",
            "SQLITE_LOCKED",
            "TRANSACTION_",
            "SQLITE_NOMEM",
        ]) {
            Fault::Busy(text)
        } else if fault.is(&["SQLITE_FULL"]) {
            Fault::Full(text)
        } else if fault.is(&["SQLITE_TOOBIG"]) {
            Fault::TooLarge
        } else if fault.message.contains("no such table") || fault.is(&["SQLITE_CANTOPEN"]) {
            Fault::Gone
        } else if fault.is(&["SQLITE_IOERR"]) {
            Fault::Lost(text)
        } else {
            Fault::Refused(text)
        }
    }

    /// Whether the same request may work in a moment, if doing it twice is no harm.
    pub(super) fn may_pass(&self) -> bool {
        matches!(self, Fault::NotSent(_) | Fault::Lost(_) | Fault::Busy(_))
    }

    /// As the failure of something that is no commit. `Gone` is for the caller, who knows the tenant.
    pub(super) fn provider(self, what: impl Into<String>) -> ProviderError {
        let what = what.into();
        match self {
            Fault::NotSent(_) | Fault::Lost(_) | Fault::Busy(_) => ProviderError::Busy {
                what: format!("{what}: {self}"),
            },
            Fault::Full(_) => ProviderError::Full {
                what: format!("{what}: {self}"),
            },
            Fault::Denied { .. } => ProviderError::Settings {
                reason: format!("{what}: {self}"),
            },
            Fault::Gone | Fault::TooLarge | Fault::Refused(_) => {
                ProviderError::io(what, self.to_string())
            }
        }
    }
}

/// What the admin API said about a creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Made {
    /// It is new.
    New,
    /// There is one of that name, which may be anything.
    Exists,
}

/// A way to the primary.
pub(super) struct Http {
    client: Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    targets: Targets,
    limit: Duration,
    /// Path of pipelines, once the primary said which version it speaks.
    path: OnceLock<&'static str>,
}

impl Http {
    /// `connect` and `limit` bound the time of a connection and of a request.
    ///
    /// # Errors
    /// `Io` when the system's certificates cannot be read.
    pub(super) fn new(
        targets: Targets,
        (connect, limit): (Duration, Duration),
    ) -> ProviderResult<Http> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(connect));
        let tls = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::aws_lc_rs::default_provider())
            .map_err(|e| ProviderError::io("reading the system's certificates", e))?;
        let connector = tls.https_or_http().enable_http1().wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(KEEP_IDLE)
            .build(connector);
        Ok(Http {
            client,
            targets,
            limit,
            path: OnceLock::new(),
        })
    }

    /// Where the primary is, for people.
    pub(super) fn place(&self) -> &str {
        &self.targets.user.base
    }

    /// Runs a script in a namespace.
    ///
    /// # Errors
    /// `Lost` when nothing is known of what was done.
    pub(super) async fn run(
        &self,
        namespace: &str,
        script: &Script,
    ) -> Result<Vec<Outcome>, Fault> {
        let body = script.body().map_err(|e| Fault::Refused(e.to_string()))?;
        let path = self.path().await?;
        let value = HeaderValue::from_str(namespace);
        let value = value.map_err(|e| Fault::Refused(e.to_string()))?;
        let request = self.request(&self.targets.user, Method::POST, path)?;
        let request = request
            .header("x-namespace", value)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::from(body))
            .map_err(|e| Fault::Refused(e.to_string()))?;
        let (status, answer) = self.send(request).await?;
        if status != StatusCode::OK {
            return Err(refusal("libSQL auth token", status, &answer));
        }
        match read_answer(&answer, script.len()) {
            Ok(Ok(outcomes)) => Ok(outcomes),
            Ok(Err(fault)) => Err(Fault::of(&fault)),
            Err(e) => Err(Fault::Lost(format!("its answer cannot be read: {e}"))),
        }
    }

    /// Runs a script of which every step is to be done, with the rows of each.
    ///
    /// # Errors
    /// The failure of the first that was not.
    pub(super) async fn rows(
        &self,
        namespace: &str,
        script: &Script,
    ) -> Result<Vec<Vec<Vec<super::hrana::Value>>>, Fault> {
        let outcomes = self.run(namespace, script).await?;
        let rows = outcomes.into_iter().map(|outcome| match outcome {
            Outcome::Done(rows) => Ok(rows),
            Outcome::Failed(fault) => Err(Fault::of(&fault)),
            Outcome::Skipped => Err(Fault::Lost("a step was skipped".to_owned())),
        });
        rows.collect()
    }

    /// Makes a namespace.
    pub(super) async fn create_namespace(&self, name: &str) -> Result<Made, Fault> {
        let path = format!("/v1/namespaces/{name}/create");
        let request = self.request(&self.targets.admin, Method::POST, &path)?;
        let request = request
            .header(CONTENT_TYPE, "application/json")
            .body(Full::from("{}"))
            .map_err(|e| Fault::Refused(e.to_string()))?;
        let (status, answer) = self.send(request).await?;
        let text = text(&answer).to_ascii_lowercase();
        match status {
            StatusCode::OK | StatusCode::CREATED => Ok(Made::New),
            StatusCode::CONFLICT => Ok(Made::Exists),
            StatusCode::BAD_REQUEST if text.contains("already exists") => Ok(Made::Exists),
            StatusCode::NOT_FOUND => Err(no_admin()),
            status => Err(refusal("libSQL admin auth header", status, &answer)),
        }
    }

    /// Removes a namespace, which may be gone already.
    pub(super) async fn delete_namespace(&self, name: &str) -> Result<(), Fault> {
        let path = format!("/v1/namespaces/{name}");
        let request = self.request(&self.targets.admin, Method::DELETE, &path)?;
        let request = request
            .body(Full::default())
            .map_err(|e| Fault::Refused(e.to_string()))?;
        let (status, answer) = self.send(request).await?;
        match status {
            StatusCode::OK | StatusCode::NO_CONTENT | StatusCode::NOT_FOUND => Ok(()),
            status => Err(refusal("libSQL admin auth header", status, &answer)),
        }
    }

    /// Asks the admin API for the settings of a namespace. Whether it must know it says `there`: a primary
    /// answers alike for a namespace that is not there and at an address without an admin API.
    pub(super) async fn look_at_admin(&self, name: &str, there: bool) -> Result<(), Fault> {
        let path = format!("/v1/namespaces/{name}/config");
        let request = self.request(&self.targets.admin, Method::GET, &path)?;
        let request = request
            .body(Full::default())
            .map_err(|e| Fault::Refused(e.to_string()))?;
        let (status, answer) = self.send(request).await?;
        match status {
            StatusCode::NOT_FOUND if there => Err(no_admin()),
            StatusCode::OK | StatusCode::NOT_FOUND => Ok(()),
            status => Err(refusal("libSQL admin auth header", status, &answer)),
        }
    }

    /// The newest version of Hrana over HTTP that the primary speaks.
    pub(super) async fn version(&self) -> Result<&'static str, Fault> {
        let path = self.path().await?;
        Ok(path.trim_start_matches("/v").trim_end_matches("/pipeline"))
    }

    /// The path of pipelines in the newest version that the primary speaks.
    async fn path(&self) -> Result<&'static str, Fault> {
        if let Some(path) = self.path.get() {
            return Ok(path);
        }
        for (probe, path) in [("/v3", "/v3/pipeline"), ("/v2", "/v2/pipeline")] {
            let request = self.request(&self.targets.user, Method::GET, probe)?;
            let request = request
                .body(Full::default())
                .map_err(|e| Fault::Refused(e.to_string()))?;
            // A question that can be asked again: nothing is lost.
            let asked = self.send(request).await.map_err(|e| match e {
                Fault::Lost(text) => Fault::NotSent(text),
                other => other,
            });
            let (status, answer) = asked?;
            match status {
                StatusCode::OK => return Ok(self.path.get_or_init(|| path)),
                StatusCode::NOT_FOUND => {}
                status => {
                    return Err(match refusal("libSQL auth token", status, &answer) {
                        Fault::Lost(text) => Fault::NotSent(text),
                        other => other,
                    });
                }
            }
        }
        Err(Fault::Refused(format!(
            "{} speaks Hrana over HTTP neither in version 3 nor 2",
            self.place()
        )))
    }

    fn request(
        &self,
        target: &Target,
        method: Method,
        path: &str,
    ) -> Result<http::request::Builder, Fault> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", target.base));
        if let (Some(value), Some(headers)) = (&target.authorization, request.headers_mut()) {
            headers.insert(AUTHORIZATION, value.clone());
        }
        Ok(request)
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), Fault> {
        let exchange = async {
            let answer = self.client.request(request).await.map_err(|e| {
                let text = chain(&e);
                match e.is_connect() {
                    true => Fault::NotSent(text),
                    false => Fault::Lost(text),
                }
            })?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
            let body = body.map_err(|e| match e.is::<LengthLimitError>() {
                true => Fault::Lost(format!("it has more than {MAX_ANSWER} bytes")),
                false => Fault::Lost(e.to_string()),
            })?;
            Ok((status, body.to_bytes()))
        };
        let done = tokio::time::timeout(self.limit, exchange).await;
        done.unwrap_or_else(|_| Err(Fault::Lost(format!("none within {:?}", self.limit))))
    }
}

fn no_admin() -> Fault {
    Fault::Refused("there is no admin API at the libSQL admin URL (404)".to_owned())
}

/// What an answer that is no success means.
fn refusal(what: &'static str, status: StatusCode, answer: &[u8]) -> Fault {
    let text = format!("{status}: {}", text(answer));
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Fault::Denied { what, status },
        StatusCode::NOT_FOUND => Fault::Gone,
        StatusCode::PAYLOAD_TOO_LARGE => Fault::TooLarge,
        StatusCode::TOO_MANY_REQUESTS => Fault::Busy(text),
        // A proxy answers so too, after it passed the request on.
        status if status.is_server_error() => Fault::Lost(text),
        _ => Fault::Refused(text),
    }
}

fn text(answer: &[u8]) -> String {
    let text = String::from_utf8_lossy(&answer[..answer.len().min(MAX_TEXT)]);
    text.trim().to_owned()
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}
