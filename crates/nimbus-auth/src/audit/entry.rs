//! What an audit entry says: words, limits and fields. It must not know how entries are kept.

use std::net::IpAddr;

use jiff::Timestamp;
use nimbus_core::TenantId;

use crate::context::{AuthMethod, RequestId};

/// Most bytes of a request path that are kept.
pub const MAX_PATH: usize = 1024;
/// Most bytes of an origin that are kept.
pub const MAX_ORIGIN: usize = 256;
/// Most bytes of a reason that are kept.
pub const MAX_REASON: usize = 256;
/// Most bytes of a request method that are kept; HTTP sets no limit to extension methods.
pub const MAX_METHOD: usize = 32;

/// The family of routes that a request belongs to (nimbus.md 4). The edge decides; here it is a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RouteFamily {
    /// The health answer.
    Health,
    /// Demonstration pages.
    Demos,
    /// The console.
    Ui,
    /// Opening a console session.
    UiAuthSession,
    /// The native HTTP API.
    NativeApi,
    /// Diagnostic reports.
    Debug,
    /// Deployment by the operator.
    DeployAdmin,
    /// The native WebSocket.
    NativeWebsocket,
    /// Convex over HTTP.
    ConvexHttp,
    /// Convex over WebSocket.
    ConvexWebsocket,
    /// Firebase REST.
    FirebaseRest,
    /// Firebase gRPC.
    FirebaseGrpc,
    /// Firebase gRPC-Web.
    FirebaseGrpcWeb,
    /// Firebase over WebSocket.
    FirebaseWebsocket,
    /// None of these.
    Unknown,
}

impl RouteFamily {
    /// The word in the log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Health => "health",
            Self::Demos => "demos",
            Self::Ui => "ui",
            Self::UiAuthSession => "ui_auth_session",
            Self::NativeApi => "native_api",
            Self::Debug => "debug",
            Self::DeployAdmin => "deploy_admin",
            Self::NativeWebsocket => "native_websocket",
            Self::ConvexHttp => "convex_http",
            Self::ConvexWebsocket => "convex_websocket",
            Self::FirebaseRest => "firebase_rest",
            Self::FirebaseGrpc => "firebase_grpc",
            Self::FirebaseGrpcWeb => "firebase_grpc_web",
            Self::FirebaseWebsocket => "firebase_websocket",
            Self::Unknown => "unknown",
        }
    }
}

/// What the decision was about (nimbus.md 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AuthScope {
    /// Access to the server by credential.
    ServerAccess,
    /// The check of the `Origin` header.
    Origin,
    /// A console session.
    Session,
    /// A connection that a function asked for. Ours, not in nimbus.md 4.
    Egress,
    /// A secret that a function wanted to read. Ours as well.
    Secret,
}

impl AuthScope {
    /// The word in the log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ServerAccess => "server_access",
            Self::Origin => "origin",
            Self::Session => "session",
            Self::Egress => "egress",
            Self::Secret => "secret",
        }
    }
}

/// One decision. It is written as one JSON object with these fields in camelCase and this order;
/// text is cut at its limit, and anything that looks like an admin token is replaced.
#[derive(Clone, Debug)]
pub struct AuditEntry<'a> {
    /// When it was decided; written in UTC with milliseconds (RFC 3339).
    pub ts: Timestamp,
    /// The family of the route.
    pub route_family: RouteFamily,
    /// The tenant that the path names, if it names one.
    pub tenant_id: Option<&'a TenantId>,
    /// What the decision was about.
    pub auth_scope: AuthScope,
    /// The form of the credential, if there was one.
    pub auth_method: Option<AuthMethod>,
    /// Whether the caller was let through.
    pub success: bool,
    /// Value of the `Origin` header, at most [`MAX_ORIGIN`] bytes.
    pub origin: Option<&'a str>,
    /// Why: `authorized`, [`crate::AuthFailure::audit_reason`] or the like, at most [`MAX_REASON`]
    /// bytes.
    pub reason: &'a str,
    /// The request method, at most [`MAX_METHOD`] bytes.
    pub method: &'a str,
    /// The request path, at most [`MAX_PATH`] bytes; from the first `?` or `#` on it is dropped.
    pub path: &'a str,
    /// The HTTP status of the answer.
    pub status: u16,
    /// The request.
    pub request_id: Option<&'a RequestId>,
    /// Address of the client.
    pub client_addr: Option<IpAddr>,
}
