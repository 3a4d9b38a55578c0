//! A route as data, and how a request runs through it.
//!
//! The types of a handler's context, body and answer are the only source of its class, its
//! schemas and its success status, so that table, OpenAPI and behaviour cannot disagree. This
//! room must not know any particular route.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequestParts as _, RawPathParams};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, Request, Response, Uri, Version};
use nimbus_auth::{
    AuthFailure, Authenticated, OperationContext, Permission, RouteFamily, ServerContext,
};
use nimbus_core::{ErrorCode, TenantId};
use tokio::task::unconstrained;

use crate::answer::{AnswerDoc, Output};
use crate::app::App;
use crate::edge::exchange::Exchange;
use crate::edge::gate::refusal;
use crate::edge::surface::classify;
use crate::edge::{Ticket, panicked};
use crate::error::{ApiError, ApiResult};
use crate::extract::{BodyDoc, Input, PathParams, QueryArgs, QueryField};
use crate::status::Special;

/// Who may call a route, and what it acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RouteClass {
    /// Anyone, without a credential.
    Open,
    /// A verified caller, on the server as a whole.
    Server,
    /// A verified caller, on the tenant that the path names.
    Tenant,
    /// Anyone, and callers with more leave, on the functions of the tenant that the path names. A
    /// credential is looked at by the route itself; one that fails is refused.
    Convex,
    /// Reserved for a later version: 404 `service.route_not_found` behind the gate.
    Planned,
}

type Handler = Box<dyn Fn(Arrived) -> BoxFuture<'static, ApiResult<Response<Body>>> + Send + Sync>;

/// One row of the route table.
pub(crate) struct Route {
    pub method: Method,
    /// Path template; parameters stand in braces.
    pub path: &'static str,
    pub class: RouteClass,
    /// What a caller needs; `None` on open and planned routes.
    pub permission: Option<Permission>,
    /// One line for OpenAPI.
    pub summary: &'static str,
    pub query: &'static [QueryField],
    pub body: Option<BodyDoc>,
    pub answer: AnswerDoc,
    handler: Handler,
}

/// A request on its way into a handler.
struct Arrived {
    app: Arc<App>,
    ticket: Ticket,
    version: Version,
    headers: HeaderMap,
    params: PathParams,
    query: QueryArgs,
    uri: Uri,
    body: Body,
}

/// What a handler is given: the context that the caller earned, and the request.
pub(crate) struct Call<S> {
    /// [`OperationContext`], [`ServerContext`] or, on open routes, `()`.
    pub context: S,
    pub app: Arc<App>,
    pub exchange: Arc<Exchange>,
    /// Of the HTTP that the client speaks.
    pub version: Version,
    pub headers: HeaderMap,
    pub params: PathParams,
    pub query: QueryArgs,
}

/// A request of the Convex surface, nothing of it looked at yet.
pub(crate) struct ConvexCall {
    pub app: Arc<App>,
    pub exchange: Arc<Exchange>,
    pub headers: HeaderMap,
    pub params: PathParams,
    pub uri: Uri,
    pub body: Body,
}

/// How a caller becomes the context of a route.
pub(crate) trait Scope: Sized + Send + 'static {
    const CLASS: RouteClass;
    fn enter(
        caller: Option<&Authenticated>,
        params: &PathParams,
        permission: Option<Permission>,
    ) -> ApiResult<Self>;
}

impl Scope for () {
    const CLASS: RouteClass = RouteClass::Open;

    fn enter(_: Option<&Authenticated>, _: &PathParams, _: Option<Permission>) -> ApiResult<()> {
        Ok(())
    }
}

impl Scope for ServerContext {
    const CLASS: RouteClass = RouteClass::Server;

    fn enter(
        caller: Option<&Authenticated>,
        _: &PathParams,
        permission: Option<Permission>,
    ) -> ApiResult<Self> {
        let (caller, permission) = verified(caller, permission)?;
        Ok(caller.server_context(permission)?)
    }
}

impl Scope for OperationContext {
    const CLASS: RouteClass = RouteClass::Tenant;

    fn enter(
        caller: Option<&Authenticated>,
        params: &PathParams,
        permission: Option<Permission>,
    ) -> ApiResult<Self> {
        let (caller, permission) = verified(caller, permission)?;
        let tenant: TenantId = params.name("tenant")?;
        let context = caller.tenant_context(tenant.clone(), permission);
        context.map_err(|failure| refusal(failure, &tenant))
    }
}

/// A protected route outside the gate would be a mistake of ours; it fails closed.
fn verified(
    caller: Option<&Authenticated>,
    permission: Option<Permission>,
) -> ApiResult<(&Authenticated, Permission)> {
    match (caller, permission) {
        (Some(caller), Some(permission)) => Ok((caller, permission)),
        _ => Err(AuthFailure::Missing.into()),
    }
}

impl Route {
    /// A row for `handler`, which needs `permission`.
    pub(crate) fn new<S, I, O, F, Fut>(
        method: Method,
        path: &'static str,
        permission: Permission,
        summary: &'static str,
        handler: F,
    ) -> Route
    where
        S: Scope,
        I: Input,
        O: Output,
        F: Fn(Call<S>, I) -> Fut + Copy + Send + Sync + 'static,
        Fut: Future<Output = ApiResult<O>> + Send + 'static,
    {
        Route::row(method, path, Some(permission), summary, handler)
    }

    /// A row that anyone may call.
    pub(crate) fn open<I, O, F, Fut>(
        method: Method,
        path: &'static str,
        summary: &'static str,
        handler: F,
    ) -> Route
    where
        I: Input,
        O: Output,
        F: Fn(Call<()>, I) -> Fut + Copy + Send + Sync + 'static,
        Fut: Future<Output = ApiResult<O>> + Send + 'static,
    {
        Route::row(method, path, None, summary, handler)
    }

    fn row<S, I, O, F, Fut>(
        method: Method,
        path: &'static str,
        permission: Option<Permission>,
        summary: &'static str,
        handler: F,
    ) -> Route
    where
        S: Scope,
        I: Input,
        O: Output,
        F: Fn(Call<S>, I) -> Fut + Copy + Send + Sync + 'static,
        Fut: Future<Output = ApiResult<O>> + Send + 'static,
    {
        let handler: Handler =
            Box::new(move |arrived| Box::pin(run::<S, I, O, F, Fut>(arrived, permission, handler)));
        let (body, answer) = (I::doc(), O::doc());
        Route {
            method,
            path,
            class: S::CLASS,
            permission,
            summary,
            query: &[],
            body,
            answer,
            handler,
        }
    }

    /// A row of the Convex surface: anyone may call it, and the answer is in Convex's shape.
    pub(crate) fn convex<F, Fut>(
        method: Method,
        path: &'static str,
        summary: &'static str,
        handler: F,
    ) -> Route
    where
        F: Fn(ConvexCall) -> Fut + Copy + Send + Sync + 'static,
        Fut: Future<Output = ApiResult<Response<Body>>> + Send + 'static,
    {
        let handler: Handler = Box::new(move |arrived: Arrived| {
            Box::pin(handler(ConvexCall {
                app: arrived.app,
                exchange: arrived.ticket.exchange,
                headers: arrived.headers,
                params: arrived.params,
                uri: arrived.uri,
                body: arrived.body,
            }))
        });
        Route {
            method,
            path,
            class: RouteClass::Convex,
            permission: None,
            summary,
            query: &[],
            body: None,
            answer: AnswerDoc::convex(),
            handler,
        }
    }

    /// A row for a route of nimbus.md 2.2 that this version does not have.
    pub(crate) fn planned(method: Method, path: &'static str) -> Route {
        let handler: Handler = Box::new(|_| Box::pin(async { Err(ApiError::route_not_found()) }));
        Route {
            method,
            path,
            class: RouteClass::Planned,
            permission: None,
            summary: "Reserved for a later version.",
            query: &[],
            body: None,
            answer: AnswerDoc::planned(),
            handler,
        }
    }

    /// The same row with query parameters.
    pub(crate) fn with_query(self, query: &'static [QueryField]) -> Route {
        Route { query, ..self }
    }

    /// The family for metrics and the audit log, as the gate sees it.
    pub(crate) fn family(&self) -> RouteFamily {
        classify(self.path).family
    }

    /// Whether a call changes more than documents, or destroys something, so that its audit line is
    /// durable before the answer.
    fn is_weighty(&self) -> bool {
        match self.permission {
            Some(
                Permission::ManageSchema
                | Permission::Deploy
                | Permission::ManageKeys
                | Permission::ManageTenants
                | Permission::ManageSystem,
            ) => !self.method.is_safe(),
            _ => self.method == Method::DELETE,
        }
    }

    /// Runs a request that the router matched to this row.
    pub(crate) async fn serve(&self, app: Arc<App>, request: Request<Body>) -> Response<Body> {
        let (mut parts, body) = request.into_parts();
        let Some(ticket) = parts.extensions.remove::<Ticket>() else {
            let id = crate::edge::request_id::Ulid::next();
            return ApiError::internal("a request came past the edge").into_response(&id);
        };
        let exchange = Arc::clone(&ticket.exchange);
        if self.is_weighty() {
            exchange.weigh();
        }
        let arrived = async {
            let raw = RawPathParams::from_request_parts(&mut parts, &()).await;
            let raw = raw.map_err(|error| {
                ApiError::invalid("the path is malformed").with_inside(error.to_string())
            })?;
            let params = PathParams(
                raw.iter()
                    .map(|(k, v)| (k.to_owned(), v.to_owned()))
                    .collect(),
            );
            let query = match self.class {
                // A probe may add what it likes to defeat caches.
                RouteClass::Open | RouteClass::Planned | RouteClass::Convex => QueryArgs::default(),
                RouteClass::Server | RouteClass::Tenant => {
                    QueryArgs::parse(&parts.uri, self.query)?
                }
            };
            Ok(Arrived {
                app,
                ticket,
                version: parts.version,
                headers: parts.headers,
                params,
                query,
                uri: parts.uri,
                body,
            })
        };
        let result = match arrived.await {
            Ok(arrived) => (self.handler)(arrived).await,
            Err(error) => Err(error),
        };
        result.unwrap_or_else(|error: ApiError| exchange.fail(error))
    }
}

async fn run<S, I, O, F, Fut>(
    arrived: Arrived,
    permission: Option<Permission>,
    handler: F,
) -> ApiResult<Response<Body>>
where
    S: Scope,
    I: Input,
    O: Output,
    F: Fn(Call<S>, I) -> Fut + Copy + Send + Sync + 'static,
    Fut: Future<Output = ApiResult<O>> + Send + 'static,
{
    let Arrived {
        app,
        ticket,
        version,
        headers,
        params,
        query,
        body,
        ..
    } = arrived;
    let context = S::enter(ticket.caller.as_ref(), &params, permission).inspect_err(|error| {
        if error.code() == ErrorCode::AuthPermissionDenied {
            ticket.exchange.forbid();
        }
    })?;
    let input = I::take(&headers, body, app.config.max_body_bytes).await?;
    let exchange = ticket.exchange;
    let call = Call {
        context,
        app: Arc::clone(&app),
        exchange: Arc::clone(&exchange),
        version,
        headers,
        params,
        query,
    };
    let work = async move { handler(call, input).await?.into_response() };
    if !permission.is_some_and(writes) {
        return read(app, work).await;
    }
    // A handler whose input streams waits for the client, and bounds its own steps.
    let limit = (!I::STREAMS).then_some(app.config.request_timeout);
    write(app, exchange, work, limit).await
}

/// Whether calls with this permission change something.
fn writes(permission: Permission) -> bool {
    !matches!(permission, Permission::ReadData | Permission::Inspect)
}

/// A read ends with the request's time, or when the client leaves.
async fn read(
    app: Arc<App>,
    work: impl Future<Output = ApiResult<Response<Body>>> + Send,
) -> ApiResult<Response<Body>> {
    match tokio::time::timeout(app.config.request_timeout, work).await {
        Ok(result) => result,
        Err(_) => Err(ApiError::new(
            ErrorCode::OpCancelled,
            "the request took too long and was cancelled",
        )),
    }
}

/// A call of the Convex surface that may change something: it goes on when the client leaves. The
/// budgets of the runtime bound it.
pub(crate) async fn detached(
    app: Arc<App>,
    exchange: Arc<Exchange>,
    work: impl Future<Output = ApiResult<Response<Body>>> + Send + 'static,
) -> ApiResult<Response<Body>> {
    write(app, exchange, work, None).await
}

/// A write runs in a task of its own, so that a client that leaves does not cancel it (design
/// section 3); the task also writes its audit line.
async fn write(
    app: Arc<App>,
    exchange: Arc<Exchange>,
    work: impl Future<Output = ApiResult<Response<Body>>> + Send + 'static,
    limit: Option<Duration>,
) -> ApiResult<Response<Body>> {
    let in_progress = app.drain.enter();
    let task = tokio::spawn(async move {
        let outcome = AssertUnwindSafe(work).catch_unwind().await;
        let result = outcome.unwrap_or_else(|panic| Err(panicked(panic.as_ref())));
        let response = result.unwrap_or_else(|error| exchange.fail(error));
        let response = exchange.conclude(response).await;
        drop(in_progress);
        response
    });
    let ended = match limit {
        // Unconstrained, or a client that sends without end would use up the connection's budget,
        // and the end of the task would never be seen.
        None => Ok(unconstrained(task).await),
        Some(limit) => tokio::time::timeout(limit, task).await,
    };
    match ended {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => Err(ApiError::internal(error.to_string())),
        Err(_) => Err(ApiError::special(
            Special::OutcomeUnknown,
            "the write takes too long; it goes on, and its outcome is not known: read before trying again",
        )),
    }
}
