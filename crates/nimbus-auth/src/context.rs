//! From presented credentials to the context without which no store is reached.
//!
//! [`OperationContext`] and [`ServerContext`] have private fields and come from an
//! [`Authenticated`] caller alone, which comes from a verified credential alone (design section 1).
//! This room must not know routes, header names or HTTP types; it sees header values as text.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use nimbus_core::{ErrorCode, TenantId};

use crate::keys::{KeyClaim, KeyId, KeyScope};
use crate::token::TokenFile;
use crate::verify::AdminVerifier;

/// Longest credential taken, in bytes; an admin token has 53.
const MAX_CREDENTIAL: usize = 4096;
/// Longest request id in bytes.
const MAX_REQUEST_ID: usize = 64;

/// Who acts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Principal {
    /// The operator of this server, proved by the admin token.
    Operator {
        /// Generation of the token that proved it.
        generation: u64,
    },
    /// A program with a key of one tenant. It has no leave outside that tenant.
    TenantKey {
        /// The tenant that keeps the key.
        tenant: TenantId,
        /// Which of its keys.
        key: KeyId,
        /// What the key may do.
        scope: KeyScope,
    },
}

/// The kinds of [`Principal`]. Exhaustive on purpose, unlike its brothers: the test that drives
/// every route as every kind of caller does not compile until a new kind has its callers there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PrincipalKind {
    /// See [`Principal::Operator`].
    Operator,
    /// See [`Principal::TenantKey`].
    TenantKey,
}

impl PrincipalKind {
    /// Every kind.
    pub const ALL: [PrincipalKind; 2] = [PrincipalKind::Operator, PrincipalKind::TenantKey];
}

impl Principal {
    /// Which kind this is.
    pub fn kind(&self) -> PrincipalKind {
        match self {
            Self::Operator { .. } => PrincipalKind::Operator,
            Self::TenantKey { .. } => PrincipalKind::TenantKey,
        }
    }

    /// Whether this principal may be given `permission` at all. A new kind of principal must
    /// answer here before it can get any context.
    fn may(&self, permission: Permission) -> bool {
        match self {
            Self::Operator { .. } => match permission {
                Permission::ReadData
                | Permission::WriteData
                | Permission::ManageSchema
                | Permission::Deploy
                | Permission::ManageKeys
                | Permission::ManageTenants
                | Permission::Inspect
                | Permission::ManageSystem => true,
            },
            Self::TenantKey { scope, .. } => match permission {
                Permission::ReadData => true,
                Permission::WriteData => *scope >= KeyScope::Write,
                Permission::ManageSchema | Permission::Deploy => *scope >= KeyScope::Deploy,
                Permission::ManageKeys => *scope >= KeyScope::Admin,
                Permission::ManageTenants | Permission::Inspect | Permission::ManageSystem => false,
            },
        }
    }
}

/// What a context allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Permission {
    /// Read documents, queries and the journal.
    ReadData,
    /// Insert, change and delete documents; reading is included.
    WriteData,
    /// Change tables, indexes and schemas.
    ManageSchema,
    /// Change deployments and the environment of functions.
    Deploy,
    /// List, make and revoke the keys of a tenant.
    ManageKeys,
    /// Create, list and delete tenants.
    ManageTenants,
    /// Read reports and metrics.
    Inspect,
    /// Rotate the token, stop the server and the like.
    ManageSystem,
}

impl Permission {
    /// Whether a context with this permission may do what needs `needed`.
    pub fn includes(self, needed: Self) -> bool {
        self == needed || (self == Self::WriteData && needed == Self::ReadData)
    }

    /// The name for messages and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ReadData => "read data",
            Self::WriteData => "write data",
            Self::ManageSchema => "manage schema",
            Self::Deploy => "deploy",
            Self::ManageKeys => "manage keys",
            Self::ManageTenants => "manage tenants",
            Self::Inspect => "inspect",
            Self::ManageSystem => "manage the system",
        }
    }
}

impl fmt::Display for Permission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// By which proof a caller was, or tried to be, authenticated; for the audit log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AuthMethod {
    /// The admin token as `Authorization: Bearer`.
    LocalAdminBearer,
    /// The admin token as `X-Nimbus-Admin-Token`.
    LocalAdminHeader,
    /// A console session cookie.
    LocalSessionCookie,
    /// The admin token posted to open a console session.
    LocalAdminTokenPost,
    /// A single-use console launch ticket.
    LaunchTicket,
    /// Sessions ended by a rotation of the token.
    TokenRotation,
    /// A surface that takes either the bearer form or a session.
    LocalAdminBearerOrSession,
    /// The offline command line: whoever can read the token file. Ours, not in nimbus.md 4.
    LocalTokenFile,
    /// A key of a tenant. Ours, not in nimbus.md 4.
    TenantKey,
}

impl AuthMethod {
    /// The word in the audit log (nimbus.md 4).
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LocalAdminBearer => "local_admin_bearer",
            Self::LocalAdminHeader => "local_admin_header",
            Self::LocalSessionCookie => "local_session_cookie",
            Self::LocalAdminTokenPost => "local_admin_token_post",
            Self::LaunchTicket => "launch_ticket",
            Self::TokenRotation => "token_rotation",
            Self::LocalAdminBearerOrSession => "local_admin_bearer_or_session",
            Self::LocalTokenFile => "local_token_file",
            Self::TenantKey => "tenant_key",
        }
    }
}

/// Name of one request: 1 to 64 of `A-Z a-z 0-9 . _ : -`. It links an answer, a log line and an
/// audit entry, so it must be safe to print anywhere.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(Arc<str>);

/// A text that is no [`RequestId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a request id has 1 to {MAX_REQUEST_ID} characters of A-Z a-z 0-9 . _ : -")]
#[non_exhaustive]
pub struct RequestIdError;

impl RequestId {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RequestId {
    type Err = RequestIdError;

    fn from_str(text: &str) -> Result<Self, RequestIdError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._:-".contains(&b);
        if text.is_empty() || text.len() > MAX_REQUEST_ID || !text.bytes().all(allowed) {
            return Err(RequestIdError);
        }
        Ok(Self(Arc::from(text)))
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The two header values that may carry the admin token (seed 000). The edge refuses requests
/// that repeat either header; here each is one text.
#[derive(Clone, Copy, Default)]
pub struct Credentials<'a> {
    /// Value of `Authorization`.
    pub authorization: Option<&'a str>,
    /// Value of `X-Nimbus-Admin-Token`; it wins when both are present, even when it is wrong.
    pub admin_header: Option<&'a str>,
}

impl fmt::Debug for Credentials<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |value: Option<&str>| value.map(|_| "(redacted)");
        f.debug_struct("Credentials")
            .field("authorization", &shown(self.authorization))
            .field("admin_header", &shown(self.admin_header))
            .finish()
    }
}

/// What is wrong with the form of a credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MalformedCredential {
    /// The header is there without a credential in it.
    Empty,
    /// `Authorization` with a scheme that its credential cannot have.
    Scheme,
    /// A character outside visible ASCII, or white space within.
    Characters,
    /// More than 4,096 bytes.
    TooLong,
}

/// Why a caller was not let through. `Display` is the inside text; what the caller may see is
/// [`AuthFailure::outside_text`]. No variant holds text of the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AuthFailure {
    /// No credential was presented.
    #[error("no credential was presented")]
    Missing,
    /// A credential that cannot be one.
    #[error("the credential ({}) is malformed: {fault:?}", .method.as_str())]
    Malformed {
        /// The form in which it came.
        method: AuthMethod,
        /// What is wrong with it.
        fault: MalformedCredential,
    },
    /// A well-formed credential that is not the one in force.
    #[error("the credential ({}) is not the one in force", .method.as_str())]
    Wrong {
        /// The form in which it came.
        method: AuthMethod,
    },
    /// A key that was right until it expired.
    #[error("the credential ({}) has expired", .method.as_str())]
    Expired {
        /// The form in which it came.
        method: AuthMethod,
    },
    /// A verified key on a tenant that is not its own. What the caller sees is the answer for a
    /// tenant that does not exist, which the room with the tenant's name makes.
    #[error("the key ({}) belongs to another tenant", .method.as_str())]
    Foreign {
        /// The form of the credential.
        method: AuthMethod,
    },
    /// A verified caller without the permission.
    #[error("the caller ({}) may not {permission}", .method.as_str())]
    Denied {
        /// The form of the credential.
        method: AuthMethod,
        /// What was needed.
        permission: Permission,
    },
}

impl AuthFailure {
    /// The code for the caller: one for every failed credential, so that an answer does not tell
    /// which part was wrong.
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Missing | Self::Malformed { .. } | Self::Wrong { .. } | Self::Expired { .. } => {
                ErrorCode::AuthUnauthorized
            }
            Self::Foreign { .. } => ErrorCode::SessionTenantNotFound,
            Self::Denied { .. } => ErrorCode::AuthPermissionDenied,
        }
    }

    /// The message for the caller, one per code.
    pub const fn outside_text(&self) -> &'static str {
        match self {
            Self::Missing | Self::Malformed { .. } | Self::Wrong { .. } | Self::Expired { .. } => {
                "This request needs the local admin token, sent as `Authorization: Bearer <token>` or `X-Nimbus-Admin-Token: <token>`; below a tenant, one of its keys will do, sent as `Authorization: Convex <tenant>|<secret>`."
            }
            Self::Foreign { .. } => "There is no such tenant.",
            Self::Denied { .. } => "This credential does not allow the operation.",
        }
    }

    /// The reason for the audit log.
    pub const fn audit_reason(&self) -> &'static str {
        match self {
            Self::Missing => "auth.credential_missing",
            Self::Malformed {
                fault: MalformedCredential::Empty,
                ..
            } => "auth.credential_empty",
            Self::Malformed {
                fault: MalformedCredential::Scheme,
                ..
            } => "auth.credential_scheme",
            Self::Malformed { .. } => "auth.credential_malformed",
            Self::Wrong { .. } => "auth.credential_wrong",
            Self::Expired { .. } => "auth.credential_expired",
            Self::Foreign { .. } => "auth.foreign_tenant",
            Self::Denied { .. } => "auth.permission_denied",
        }
    }

    /// The form in which the credential came; `None` when there was none.
    pub const fn method(&self) -> Option<AuthMethod> {
        match self {
            Self::Missing => None,
            Self::Malformed { method, .. }
            | Self::Wrong { method }
            | Self::Expired { method }
            | Self::Foreign { method }
            | Self::Denied { method, .. } => Some(*method),
        }
    }
}

/// What a well-formed credential claims to be.
#[derive(Debug)]
pub enum Claim {
    /// The admin token in force: verified.
    Verified(Authenticated),
    /// A key of a tenant: to be verified with the keys that the tenant keeps.
    Key(KeyClaim),
}

/// Turns credentials into callers.
#[derive(Clone, Debug)]
pub struct Authenticator {
    admin: Arc<AdminVerifier>,
}

impl Authenticator {
    /// Verifies against the admin token that `admin` has in force at the time of each call.
    pub fn new(admin: Arc<AdminVerifier>) -> Self {
        Self { admin }
    }

    /// Reads what was presented: the admin token as [`Self::authenticate`] does, or, in
    /// `Authorization` with the scheme `Convex` or `Bearer`, a key, which has a `|`.
    ///
    /// # Errors
    /// [`AuthFailure::Missing`], [`AuthFailure::Malformed`] or [`AuthFailure::Wrong`].
    pub fn claim(&self, credentials: &Credentials<'_>) -> Result<Claim, AuthFailure> {
        let key = match (credentials.admin_header, credentials.authorization) {
            (None, Some(value)) => key_text(value),
            _ => None,
        };
        let Some(key) = key else {
            return self.authenticate(credentials).map(Claim::Verified);
        };
        let method = AuthMethod::TenantKey;
        let key = token_text(key).map_err(|fault| AuthFailure::Malformed { method, fault })?;
        KeyClaim::parse(key).map(Claim::Key)
    }

    /// Verifies what was presented. The admin header wins when both are present (nimbus.md 2.1);
    /// the scheme `Bearer` is matched without regard to case (RFC 9110, 11.1).
    ///
    /// # Errors
    /// [`AuthFailure::Missing`], [`AuthFailure::Malformed`] or [`AuthFailure::Wrong`].
    pub fn authenticate(
        &self,
        credentials: &Credentials<'_>,
    ) -> Result<Authenticated, AuthFailure> {
        let (method, presented) = match (credentials.admin_header, credentials.authorization) {
            (Some(value), _) => (AuthMethod::LocalAdminHeader, Ok(value)),
            (None, Some(value)) => (AuthMethod::LocalAdminBearer, bearer(value)),
            (None, None) => return Err(AuthFailure::Missing),
        };
        let token = presented
            .and_then(token_text)
            .map_err(|fault| AuthFailure::Malformed { method, fault })?;
        let generation = self
            .admin
            .matching_generation(token)
            .ok_or(AuthFailure::Wrong { method })?;
        Ok(Authenticated {
            principal: Principal::Operator { generation },
            method,
            request_id: None,
        })
    }
}

/// The credential of an `Authorization` value that presents a key.
fn key_text(value: &str) -> Option<&str> {
    let (scheme, credential) = trim(value).split_once([' ', '\t'])?;
    let named = ["Bearer", "Convex"].iter();
    let mut named = named.filter(|name| scheme.eq_ignore_ascii_case(name));
    named.next().filter(|_| credential.contains('|'))?;
    Some(credential)
}

/// The credential of an `Authorization` value with the scheme `Bearer`.
fn bearer(value: &str) -> Result<&str, MalformedCredential> {
    let value = trim(value);
    let (scheme, credential) = value.split_once([' ', '\t']).unwrap_or((value, ""));
    if scheme.is_empty() {
        Err(MalformedCredential::Empty)
    } else if scheme.eq_ignore_ascii_case("Bearer") {
        Ok(credential)
    } else {
        Err(MalformedCredential::Scheme)
    }
}

/// A credential without the white space that HTTP allows around a field value.
fn token_text(value: &str) -> Result<&str, MalformedCredential> {
    let token = trim(value);
    if token.is_empty() {
        Err(MalformedCredential::Empty)
    } else if token.len() > MAX_CREDENTIAL {
        Err(MalformedCredential::TooLong)
    } else if !token.bytes().all(|b| b.is_ascii_graphic()) {
        Err(MalformedCredential::Characters)
    } else {
        Ok(token)
    }
}

fn trim(value: &str) -> &str {
    value.trim_matches([' ', '\t'])
}

/// A caller whose credential was verified. It cannot be made in any other way:
///
/// ```compile_fail,E0451
/// # use nimbus_auth::{AuthMethod, Authenticated, Principal};
/// let forged = Authenticated {
///     principal: Principal::Operator { generation: 1 },
///     method: AuthMethod::LocalAdminBearer,
///     request_id: None,
/// };
/// ```
#[derive(Clone, Debug)]
pub struct Authenticated {
    principal: Principal,
    method: AuthMethod,
    request_id: Option<RequestId>,
}

impl Authenticated {
    /// The operator at the command line, with no server between: whoever can read the token file,
    /// which its owner alone can, is the operator.
    pub fn local_operator(file: &TokenFile) -> Self {
        Self {
            principal: Principal::Operator {
                generation: file.generation(),
            },
            method: AuthMethod::LocalTokenFile,
            request_id: None,
        }
    }

    /// A caller who has proved to be `principal`.
    pub(crate) fn proved(principal: Principal, method: AuthMethod) -> Self {
        Self {
            principal,
            method,
            request_id: None,
        }
    }

    /// The same caller with the request that its contexts belong to.
    #[must_use]
    pub fn with_request_id(mut self, request_id: RequestId) -> Self {
        self.request_id = Some(request_id);
        self
    }

    /// Who the caller is.
    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    /// By which proof.
    pub fn method(&self) -> AuthMethod {
        self.method
    }

    /// Leave to act on one tenant.
    ///
    /// # Errors
    /// [`AuthFailure::Foreign`] for a key on another tenant than its own, [`AuthFailure::Denied`]
    /// when this principal may not have `permission`.
    pub fn tenant_context(
        &self,
        tenant: TenantId,
        permission: Permission,
    ) -> Result<OperationContext, AuthFailure> {
        self.check_tenant(&tenant)?;
        self.check(permission)?;
        Ok(OperationContext {
            tenant,
            principal: self.principal.clone(),
            permission,
            request_id: self.request_id.clone(),
        })
    }

    /// Whether this caller may have anything to do with `tenant`.
    ///
    /// # Errors
    /// [`AuthFailure::Foreign`] for a key of another tenant.
    pub fn check_tenant(&self, tenant: &TenantId) -> Result<(), AuthFailure> {
        match &self.principal {
            Principal::Operator { .. } => Ok(()),
            Principal::TenantKey { tenant: own, .. } if own == tenant => Ok(()),
            Principal::TenantKey { .. } => Err(AuthFailure::Foreign {
                method: self.method,
            }),
        }
    }

    fn check(&self, permission: Permission) -> Result<(), AuthFailure> {
        if self.principal.may(permission) {
            return Ok(());
        }
        Err(self.denied(permission))
    }

    fn denied(&self, permission: Permission) -> AuthFailure {
        AuthFailure::Denied {
            method: self.method,
            permission,
        }
    }

    /// Leave to act on the server as a whole.
    ///
    /// # Errors
    /// [`AuthFailure::Denied`] when this principal may not have `permission`, and for every key of
    /// a tenant.
    pub fn server_context(&self, permission: Permission) -> Result<ServerContext, AuthFailure> {
        if matches!(self.principal, Principal::TenantKey { .. }) {
            return Err(self.denied(permission));
        }
        self.check(permission)?;
        Ok(ServerContext {
            principal: self.principal.clone(),
            permission,
            request_id: self.request_id.clone(),
        })
    }
}

/// Leave to act on one tenant with one permission: the only key to a tenant's store.
/// [`Authenticated::tenant_context`] makes it; it cannot be built by hand:
///
/// ```compile_fail,E0451
/// # use nimbus_auth::{OperationContext, Permission, Principal};
/// # fn forge(tenant: nimbus_core::TenantId) {
/// let forged = OperationContext {
///     tenant,
///     principal: Principal::Operator { generation: 1 },
///     permission: Permission::ReadData,
///     request_id: None,
/// };
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct OperationContext {
    tenant: TenantId,
    principal: Principal,
    permission: Permission,
    request_id: Option<RequestId>,
}

impl OperationContext {
    /// The tenant.
    pub fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// Who acts.
    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    /// What is allowed.
    pub fn permission(&self) -> Permission {
        self.permission
    }

    /// The request behind it, if one was named.
    pub fn request_id(&self) -> Option<&RequestId> {
        self.request_id.as_ref()
    }

    /// Whether this context allows what needs `needed`.
    pub fn allows(&self, needed: Permission) -> bool {
        self.permission.includes(needed)
    }
}

/// Leave to act on the server as a whole with one permission.
/// [`Authenticated::server_context`] makes it; it cannot be built by hand:
///
/// ```compile_fail,E0451
/// # use nimbus_auth::{Permission, Principal, ServerContext};
/// let forged = ServerContext {
///     principal: Principal::Operator { generation: 1 },
///     permission: Permission::ManageSystem,
///     request_id: None,
/// };
/// ```
#[derive(Clone, Debug)]
pub struct ServerContext {
    principal: Principal,
    permission: Permission,
    request_id: Option<RequestId>,
}

impl ServerContext {
    /// Who acts.
    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    /// What is allowed.
    pub fn permission(&self) -> Permission {
        self.permission
    }

    /// The request behind it, if one was named.
    pub fn request_id(&self) -> Option<&RequestId> {
        self.request_id.as_ref()
    }

    /// Whether this context allows what needs `needed`.
    pub fn allows(&self, needed: Permission) -> bool {
        self.permission.includes(needed)
    }
}

#[cfg(test)]
#[path = "context_tests.rs"]
mod tests;
