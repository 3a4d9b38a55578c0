//! The edge: everything that happens to a request before a route sees it, in one order.
//!
//! Bounds, then Origin and Host, then CORS preflight, then the admin gate, then routing; on the way
//! back the audit line, the security headers, the request id and the counters. The edge must not
//! know tenants, documents or which routes exist.

pub(crate) mod attempts;
pub(crate) mod bounds;
pub(crate) mod client;
pub(crate) mod egress;
pub(crate) mod exchange;
pub(crate) mod gate;
pub(crate) mod headers;
pub(crate) mod origin;
pub(crate) mod request_id;
pub(crate) mod surface;
pub(crate) mod unread;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::header::{ACCESS_CONTROL_REQUEST_METHOD, HOST, ORIGIN};
use http::{HeaderMap, Method, Request, Response, request::Parts};
use nimbus_auth::{AuthScope, Authenticated};
use nimbus_core::ErrorCode;
use tower::{Layer as _, Service, ServiceExt as _};
use tower_http::cors::CorsLayer;

use crate::app::App;
use crate::error::{ApiError, ApiResult};
use exchange::Exchange;

/// What the edge hands to a route with the request.
#[derive(Clone)]
pub(crate) struct Ticket {
    /// The request's decision.
    pub exchange: Arc<Exchange>,
    /// The verified caller; `None` on open surfaces.
    pub caller: Option<Authenticated>,
}

/// The edge in front of a router.
pub(crate) struct Edge {
    app: Arc<App>,
    router: Router,
    cors: CorsLayer,
}

impl Edge {
    /// Puts the edge in front of `router`.
    pub(crate) fn new(app: Arc<App>, router: Router) -> Edge {
        let cors = app.origins.cors();
        Edge { app, router, cors }
    }

    /// Answers one request. Never fails and never panics.
    pub(crate) async fn answer(
        self: Arc<Self>,
        peer: SocketAddr,
        request: Request<Body>,
    ) -> Response<Body> {
        let started = Instant::now();
        let (parts, body) = request.into_parts();
        let client = self.app.proxies.client(peer, &parts.headers);
        let exchange = Arc::new(Exchange::begin(&self.app.trail, &parts, client));
        let (unread, body) = unread::Unread::watch(&parts.headers, body);
        let passing = Arc::clone(&self).pass(Arc::clone(&exchange), parts, body);
        let outcome = AssertUnwindSafe(passing).catch_unwind().await;
        let result = outcome.unwrap_or_else(|panic| Err(panicked(panic.as_ref())));
        let answer = result.unwrap_or_else(|error| exchange.fail(error));
        let mut answer = exchange.conclude(answer).await;
        unread.settle(&mut answer).await;
        headers::finish(answer.headers_mut(), &exchange.id);
        self.app
            .metrics
            .observe(exchange.target.family, answer.status(), started.elapsed());
        tracing::debug!(
            request_id = exchange.id.as_str(),
            status = answer.status().as_u16(),
            family = exchange.target.family.as_str(),
            "answered"
        );
        answer
    }

    async fn pass(
        self: Arc<Self>,
        exchange: Arc<Exchange>,
        parts: Parts,
        body: Body,
    ) -> ApiResult<Response<Body>> {
        bounds::check(&parts).inspect_err(|_| {
            exchange.refuse(AuthScope::ServerAccess, "request.bounds");
        })?;
        self.check_origin(&exchange, &parts.headers)?;
        if exchange.target.checks_host() && !self.app.hosts.approves(parts.headers.get(HOST)) {
            let text = "this host name is not served; see --tenant-domain and --allowed-host";
            return Err(ApiError::new(ErrorCode::AuthForbidden, text));
        }
        let (crossing, preflight) = (parts.headers.contains_key(ORIGIN), is_preflight(&parts));
        if preflight {
            exchange.exempt();
        }
        let request = Request::from_parts(parts, body);
        let behind = Behind {
            edge: Arc::clone(&self),
            exchange,
        };
        // The layer answers every OPTIONS as a preflight; one that is none must reach the gate.
        let through_cors = crossing && (preflight || request.method() != Method::OPTIONS);
        if through_cors {
            match self.cors.layer(behind).oneshot(request).await {
                Ok(response) => Ok(response),
                Err(never) => match never {},
            }
        } else {
            Ok(behind.answer(request).await)
        }
    }

    fn check_origin(&self, exchange: &Exchange, headers: &HeaderMap) -> ApiResult<()> {
        if !exchange.target.checks_origin() {
            return Ok(());
        }
        let mut origins = headers.get_all(ORIGIN).iter();
        let approved = match (origins.next(), origins.next()) {
            (None, _) => true,
            (Some(origin), None) => self.app.origins.approves(origin),
            (Some(_), Some(_)) => false,
        };
        if approved {
            return Ok(());
        }
        exchange.refuse(AuthScope::Origin, "auth.origin_not_approved");
        let text = "pages of this origin may not use this surface; see --cors-allow-origin";
        Err(ApiError::new(ErrorCode::AuthForbidden, text))
    }
}

fn is_preflight(parts: &Parts) -> bool {
    parts.method == Method::OPTIONS
        && parts.headers.contains_key(ORIGIN)
        && parts.headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD)
}

/// The text of a panic, for the log.
pub(crate) fn panicked(panic: &(dyn std::any::Any + Send)) -> ApiError {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    ApiError::internal(format!(
        "panic: {}",
        text.as_deref().unwrap_or("without a text")
    ))
}

/// What lies behind the CORS layer: the gate and the routes.
#[derive(Clone)]
struct Behind {
    edge: Arc<Edge>,
    exchange: Arc<Exchange>,
}

impl Behind {
    async fn answer(self, request: Request<Body>) -> Response<Body> {
        let exchange = Arc::clone(&self.exchange);
        match self.route(request).await {
            Ok(response) => response,
            Err(error) => exchange.fail(error),
        }
    }

    async fn route(self, mut request: Request<Body>) -> ApiResult<Response<Body>> {
        let Behind { edge, exchange } = self;
        let caller = match exchange.target.gated {
            true => Some(edge.app.gate().admit(&exchange, request.headers()).await?),
            false => None,
        };
        if let Some(reason) = exchange.target.refused {
            return Err(ApiError::invalid(reason));
        }
        request.extensions_mut().insert(Ticket { exchange, caller });
        match edge.router.clone().oneshot(request).await {
            Ok(response) => Ok(response),
            Err(never) => match never {},
        }
    }
}

impl Service<Request<Body>> for Behind {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let behind = self.clone();
        Box::pin(async move { Ok(behind.answer(request).await) })
    }
}
