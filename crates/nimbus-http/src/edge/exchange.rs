//! One request and its decision: what the audit log is told, exactly once.
//!
//! An exchange on the admin surface is concluded before its answer is sent. If it is dropped
//! unconcluded (the client left, the handler was cancelled) the line is written then. This room
//! must not decide anything; the gate and the handlers do.

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use axum::body::Body;
use http::header::ORIGIN;
use http::{Response, StatusCode, request::Parts};
use nimbus_auth::{
    AuditEntry, AuditLog, AuthFailure, AuthMethod, AuthScope, RequestId, RouteFamily,
};
use nimbus_core::{ErrorCode, TenantId};

use super::egress::{Denials, DeniedFetch, Line};
use super::request_id::Ulid;
use super::surface::{Target, classify};
use crate::error::ApiError;
use crate::functions::path::FunctionPath;

/// The status in the audit line of a request whose client left before the answer.
const CLIENT_LEFT: u16 = 499;

/// The audit log and whether its last line could be written.
#[derive(Debug)]
pub(crate) struct AuditTrail {
    log: Arc<AuditLog>,
    failing: AtomicBool,
    denials: Denials,
    /// Makes the next lines fail, as on a full disk.
    #[cfg(test)]
    break_it: AtomicBool,
}

impl AuditTrail {
    pub(crate) fn new(log: Arc<AuditLog>) -> AuditTrail {
        AuditTrail {
            log,
            failing: AtomicBool::new(false),
            denials: Denials::default(),
            #[cfg(test)]
            break_it: AtomicBool::new(false),
        }
    }

    /// Whether the last line could not be written, or the last sync failed. Protected calls are then
    /// refused before they run; the line about the refusal tells whether the log works again.
    pub(crate) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed) || self.log.is_failing()
    }

    /// Writes a line; its number, or `None` when it is not in the log.
    fn record(&self, entry: &AuditEntry<'_>) -> Option<u64> {
        #[cfg(test)]
        if self.break_it.load(Ordering::Relaxed) {
            self.failing.store(true, Ordering::Relaxed);
            return None;
        }
        let outcome = self.log.record(entry);
        if let Err(error) = &outcome {
            tracing::error!(%error, "the audit log cannot be written; protected calls are refused");
        }
        self.failing.store(outcome.is_err(), Ordering::Relaxed);
        outcome.ok()
    }

    /// Writes that a function of `tenant` was kept from sending a request, unless that was written a moment ago. The
    /// text comes from other people's code: the log cuts and escapes it.
    pub(crate) fn egress_denied(
        &self,
        tenant: &TenantId,
        request: Option<&RequestId>,
        denied: &DeniedFetch<'_>,
    ) {
        for line in self.denials.note(Instant::now(), tenant, denied) {
            self.denied(tenant, request, &line);
        }
    }

    /// Writes that a function was not shown a variable that is set, unless that was written a moment ago. Which one is
    /// not said: names of secrets are kept out of the log.
    pub(crate) fn secret_denied(
        &self,
        tenant: &TenantId,
        request: Option<&RequestId>,
        function: &FunctionPath,
    ) {
        for line in self.denials.note_secret(Instant::now(), tenant, function) {
            self.denied(tenant, request, &line);
        }
    }

    fn denied(&self, tenant: &TenantId, request: Option<&RequestId>, line: &Line) {
        self.record(&AuditEntry {
            ts: jiff::Timestamp::now(),
            route_family: RouteFamily::ConvexHttp,
            tenant_id: Some(tenant),
            auth_scope: line.scope,
            auth_method: None,
            success: false,
            origin: None,
            reason: &line.reason,
            method: &line.method,
            path: &line.target,
            status: StatusCode::FORBIDDEN.as_u16(),
            request_id: request,
            client_addr: None,
        });
    }

    /// Forgets what functions of a tenant that is deleted were kept from.
    pub(crate) fn forget_egress(&self, tenant: &TenantId) {
        self.denials.forget(tenant);
    }

    /// Waits until a line is durable.
    async fn durable(&self, seq: u64) -> bool {
        let outcome = self.log.durable(seq).await;
        if let Err(error) = &outcome {
            tracing::error!(%error, "the audit log cannot be synced; protected calls are refused");
        }
        outcome.is_ok()
    }
}

/// What was decided so far.
struct Decision {
    scope: AuthScope,
    method: Option<AuthMethod>,
    success: bool,
    reason: Cow<'static, str>,
    /// Whether the line must be durable before the answer although the caller was let through.
    weighty: bool,
    /// What became of the line; `None` before it is written.
    recorded: Option<Recorded>,
}

/// What became of an audit line.
#[derive(Clone, Copy, Debug)]
enum Recorded {
    /// There is none to write.
    Exempt,
    /// It could not be written.
    Failed,
    /// It is written, and that is enough.
    Written,
    /// It is written and must be durable before the answer.
    MustSync(u64),
}

/// A request from its first check to its answer.
pub(crate) struct Exchange {
    /// Its name.
    pub id: Ulid,
    /// Where it goes.
    pub target: Target,
    shared_id: Option<RequestId>,
    method: String,
    path: String,
    origin: Option<String>,
    client: IpAddr,
    trail: Arc<AuditTrail>,
    decision: Mutex<Decision>,
}

impl Exchange {
    /// Begins an exchange; nothing is decided yet.
    pub(crate) fn begin(trail: &Arc<AuditTrail>, parts: &Parts, client: IpAddr) -> Exchange {
        let id = Ulid::next();
        let target = classify(parts.uri.path());
        let audited = target.gated;
        let named = audited || target.family == RouteFamily::ConvexHttp;
        let origin = parts.headers.get(ORIGIN);
        Exchange {
            id,
            shared_id: named.then(|| id.shared()).flatten(),
            method: if named {
                parts.method.to_string()
            } else {
                String::new()
            },
            path: if named {
                parts.uri.path().to_owned()
            } else {
                String::new()
            },
            origin: origin.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()),
            client,
            target,
            trail: Arc::clone(trail),
            decision: Mutex::new(Decision {
                scope: AuthScope::ServerAccess,
                method: None,
                success: false,
                reason: Cow::Borrowed("request.unfinished"),
                weighty: false,
                recorded: (!audited).then_some(Recorded::Exempt),
            }),
        }
    }

    /// The id as contexts carry it.
    pub(crate) fn shared_id(&self) -> Option<&RequestId> {
        self.shared_id.as_ref()
    }

    /// Whether protected calls must be refused because they could not be recorded.
    pub(crate) fn audit_is_failing(&self) -> bool {
        self.trail.is_failing()
    }

    /// The caller was let through.
    pub(crate) fn allow(&self, method: AuthMethod) {
        self.decide(AuthScope::ServerAccess, Some(method), true, "authorized");
    }

    /// The caller was refused for `reason`, by the credential check.
    pub(crate) fn deny(&self, failure: &AuthFailure) {
        self.decide(
            AuthScope::ServerAccess,
            failure.method(),
            false,
            failure.audit_reason(),
        );
    }

    /// The request was refused before or beside the credential check.
    pub(crate) fn refuse(&self, scope: AuthScope, reason: &'static str) {
        self.decide(scope, None, false, reason);
    }

    /// Replaces the reason of an allowed call, for acts that have a name of their own
    /// (nimbus.md 4: `token.rotated`, `server.shutdown_requested`).
    pub(crate) fn note(&self, reason: impl Into<Cow<'static, str>>) {
        self.decision().reason = reason.into();
    }

    /// The call changes what the server is, or destroys something: its line is durable before the
    /// answer, like those of refusals (design section 7).
    pub(crate) fn weigh(&self) {
        self.decision().weighty = true;
    }

    /// A credential was presented where none is needed: what becomes of it is recorded.
    pub(crate) fn audit(&self) {
        self.decision().recorded = None;
    }

    /// The caller was known, and may not do this.
    pub(crate) fn forbid(&self) {
        let mut decision = self.decision();
        decision.success = false;
        decision.reason = Cow::Borrowed("auth.permission_denied");
        decision.recorded = None;
    }

    /// The answer to a failure, in the shape of the surface: `{code, message}` for the clients of
    /// Convex, the envelope for all others (design section 6).
    pub(crate) fn fail(&self, error: ApiError) -> Response<Body> {
        // Who has no credential is not in the log, whatever is refused.
        let exempt = matches!(self.decision().recorded, Some(Recorded::Exempt));
        if error.is_by_policy() && !exempt {
            self.forbid();
        }
        match self.target.family {
            RouteFamily::ConvexHttp => error.into_convex_response(&self.id),
            _ => error.into_response(&self.id),
        }
    }

    /// No decision is asked for: a CORS preflight carries no credential and reaches nothing.
    pub(crate) fn exempt(&self) {
        self.decision().recorded = Some(Recorded::Exempt);
    }

    /// Whose request it is.
    pub(crate) fn client(&self) -> IpAddr {
        self.client
    }

    fn decision(&self) -> MutexGuard<'_, Decision> {
        self.decision.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn decide(
        &self,
        scope: AuthScope,
        method: Option<AuthMethod>,
        success: bool,
        reason: &'static str,
    ) {
        let mut decision = self.decision();
        *decision = Decision {
            scope,
            method,
            success,
            reason: Cow::Borrowed(reason),
            ..*decision
        };
    }

    /// Writes the audit line for `response` unless it was written before, and returns what may be
    /// sent: the response, or 503 when the line could not be kept (design section 7).
    pub(crate) async fn conclude(&self, response: Response<Body>) -> Response<Body> {
        let kept = match self.record(response.status()) {
            Recorded::Exempt | Recorded::Written => true,
            Recorded::Failed => false,
            Recorded::MustSync(seq) => self.trail.durable(seq).await,
        };
        if kept {
            return response;
        }
        let text = "the audit log cannot be written, so this call is not answered; if it was a \
                    write it may have been carried out";
        self.fail(ApiError::new(ErrorCode::ServiceUnavailable, text))
    }

    fn record(&self, status: StatusCode) -> Recorded {
        let mut decision = self.decision();
        if let Some(outcome) = decision.recorded {
            return outcome;
        }
        let outcome = match self.write(&decision, status.as_u16()) {
            Some(seq) if decision.weighty || !decision.success => Recorded::MustSync(seq),
            Some(_) => Recorded::Written,
            None => Recorded::Failed,
        };
        decision.recorded = Some(outcome);
        outcome
    }

    fn write(&self, decision: &Decision, status: u16) -> Option<u64> {
        self.trail.record(&AuditEntry {
            ts: jiff::Timestamp::now(),
            route_family: self.target.family,
            tenant_id: self.target.tenant.as_ref(),
            auth_scope: decision.scope,
            auth_method: decision.method,
            success: decision.success,
            origin: self.origin.as_deref(),
            reason: &decision.reason,
            method: &self.method,
            path: &self.path,
            status,
            request_id: self.shared_id.as_ref(),
            client_addr: Some(self.client),
        })
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let decision = self.decision();
        if decision.recorded.is_none() {
            self.write(&decision, CLIENT_LEFT);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use nimbus_auth::audit::{AuditOptions, MemoryAnchors};
    use nimbus_auth::{AdminVerifier, Authenticator, TokenFile};
    use serde_json::Value as Json;

    use super::*;
    use crate::edge::attempts::{FailedTokenLimits, FailedTokens};
    use crate::edge::gate::{Gate, KeySource};

    struct NoKeys;

    impl KeySource for NoKeys {
        fn keys_of<'a>(
            &'a self,
            _: &'a nimbus_auth::KeyClaim,
        ) -> futures_util::future::BoxFuture<
            'a,
            nimbus_storage::StoreResult<Vec<nimbus_auth::KeyRecord>>,
        > {
            Box::pin(async { Ok(Vec::new()) })
        }
    }

    struct Fixture {
        _dir: tempfile::TempDir,
        trail: Arc<AuditTrail>,
        path: std::path::PathBuf,
    }

    fn fixture() -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("logs/access.jsonl");
        let anchors = Arc::new(MemoryAnchors::default());
        let options = AuditOptions::default();
        let token = path.with_file_name("token");
        let (log, _) = AuditLog::open(&path, &token, anchors, options).unwrap();
        let trail = Arc::new(AuditTrail::new(Arc::new(log)));
        Fixture {
            _dir: dir,
            trail,
            path,
        }
    }

    impl Fixture {
        fn begin(&self, path: &str) -> Exchange {
            let request = http::Request::builder()
                .uri(path)
                .header("origin", "http://localhost:1");
            let parts = request.body(()).unwrap().into_parts().0;
            Exchange::begin(&self.trail, &parts, "127.0.0.1".parse().unwrap())
        }

        fn lines(&self) -> Vec<Json> {
            let text = std::fs::read_to_string(&self.path).unwrap();
            text.lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect()
        }
    }

    #[tokio::test]
    async fn one_line_per_exchange_however_often_it_is_concluded() {
        let fixture = fixture();
        let exchange = fixture.begin("/api/tenants/acme?secret=1");
        exchange.allow(AuthMethod::LocalAdminBearer);
        assert_eq!(
            exchange
                .conclude(Response::new(Body::empty()))
                .await
                .status(),
            StatusCode::OK
        );
        exchange.conclude(Response::new(Body::empty())).await;
        let id = exchange.id.as_str().to_owned();
        drop(exchange);
        let lines = fixture.lines();
        assert_eq!(lines.len(), 1);
        let line = &lines[0];
        assert_eq!(line["requestId"], id.as_str());
        assert_eq!(line["tenantId"], "acme");
        assert_eq!(line["status"], 200);
        assert_eq!(line["success"], true);
        assert_eq!(line["reason"], "authorized");
        assert_eq!(line["authMethod"], "local_admin_bearer");
        assert_eq!(line["routeFamily"], "native_api");
        assert_eq!(line["path"], "/api/tenants/acme");
        assert_eq!(line["origin"], "http://localhost:1");
        assert_eq!(line["clientAddr"], "127.0.0.1");
    }

    #[test]
    fn an_exchange_that_is_dropped_still_leaves_its_line() {
        let fixture = fixture();
        let exchange = fixture.begin("/debug/license/status");
        exchange.allow(AuthMethod::LocalAdminHeader);
        drop(exchange);
        let lines = fixture.lines();
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0]["status"], CLIENT_LEFT);
        assert_eq!(lines[0]["success"], true);
    }

    #[tokio::test]
    async fn open_surfaces_leave_no_line() {
        let fixture = fixture();
        for path in ["/health", "/", "/convex/demo/query"] {
            let exchange = fixture.begin(path);
            exchange.conclude(Response::new(Body::empty())).await;
        }
        assert_eq!(fixture.lines(), Vec::<Json>::new());
    }

    #[tokio::test]
    async fn while_lines_cannot_be_written_protected_calls_are_refused_before_they_run() {
        let fixture = fixture();
        let token = TokenFile::load_or_create(&fixture.path.with_file_name("token")).unwrap();
        let authenticator = Authenticator::new(Arc::new(AdminVerifier::new(&token)));
        let mut headers = http::HeaderMap::new();
        let bearer = format!("Bearer {}", token.token().expose_secret());
        headers.insert("authorization", bearer.parse().unwrap());
        let attempts = FailedTokens::new(FailedTokenLimits::none());
        let call = async || {
            let exchange = fixture.begin("/api/tenants");
            let gate = Gate {
                authenticator: &authenticator,
                attempts: &attempts,
                keys: &NoKeys,
            };
            let admitted = gate.admit(&exchange, &headers).await;
            let ran = admitted.is_ok();
            let answer = match admitted {
                Ok(_) => Response::new(Body::empty()),
                Err(error) => error.into_response(&exchange.id),
            };
            (ran, exchange.conclude(answer).await.status().as_u16())
        };
        assert_eq!(call().await, (true, 200));
        fixture.trail.break_it.store(true, Ordering::Relaxed);
        // The first failure is found out after the fact, and not hidden.
        assert_eq!(call().await, (true, 503));
        assert_eq!(call().await, (false, 503));
        // Once lines go through again, one refusal shows it and calls run again.
        fixture.trail.break_it.store(false, Ordering::Relaxed);
        assert_eq!(call().await, (false, 503));
        assert_eq!(call().await, (true, 200));
        let reasons: Vec<Json> = fixture
            .lines()
            .iter()
            .map(|l| l["reason"].clone())
            .collect();
        assert_eq!(reasons, ["authorized", "audit.unavailable", "authorized"]);
    }
}
