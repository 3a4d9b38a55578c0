//! The one door through which `fetch` leaves: the server is asked about every request, names are resolved first, and the
//! connection goes to the address that was checked (design section 6).
//!
//! Which requests may be sent is the server's to say; this room must not know why.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use deno_error::JsErrorBox;
use deno_fetch::ReqBody;
use deno_fetch::dns::{Resolve, Resolving};
use deno_permissions::{PermissionsContainer, RuntimePermissionDescriptorParser};
use hyper_util::client::legacy::connect::dns::Name;
use nimbus_core::net::is_public;

use super::session;
use crate::egress::{EGRESS, EGRESS_DENIED, EgressLeave, EgressRefusal, EgressRequest};
use crate::protocol::Reply;

/// Why a name is not connected to.
const LEADS_INSIDE: &str = "the name leads to an address that is not public";

/// What was granted for a host in this call.
struct Granted {
    internal: bool,
    advice: String,
    /// The request that it was granted to last.
    request: EgressRequest,
}

thread_local! {
    /// By host. A resolver is told the name alone, and connections are used again, so what holds for a host holds
    /// for all its requests.
    static GRANTED: RefCell<HashMap<String, Granted>> = RefCell::default();
}

/// Forgets what was granted to the last call.
pub(crate) fn forget() {
    GRANTED.with_borrow_mut(HashMap::clear);
}

fn asked(request: &http::Request<ReqBody>) -> EgressRequest {
    let uri = request.uri();
    let host = uri.host().unwrap_or_default();
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let scheme = uri.scheme_str().unwrap_or("http");
    EgressRequest {
        scheme: scheme.to_owned(),
        host: canonical(bare),
        port: uri.port_u16().unwrap_or(match scheme {
            "https" => 443,
            _ => 80,
        }),
        method: request.method().as_str().to_owned(),
        path: uri.path().to_owned(),
    }
}

/// Names in one form, so that the resolver finds what was granted.
fn canonical(host: &str) -> String {
    host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase()
}

fn refused(host: &str, why: &str) -> JsErrorBox {
    JsErrorBox::type_error(format!("fetch to {host} is refused: {why}"))
}

/// Looks at every request before it is sent, that of each redirect included.
pub(crate) fn check_request(request: &mut http::Request<ReqBody>) -> Result<(), JsErrorBox> {
    let request = asked(request);
    let host = request.host.clone();
    let args = serde_json::to_string(&request)
        .map_err(|error| refused(&host, &format!("the request cannot be told: {error}")))?;
    let leave = match session::with(|session| session.ask(EGRESS, &args)) {
        Reply::Json(answer) => serde_json::from_str(&answer).ok(),
        Reply::Error { message, .. } => Some(EgressLeave::Denied { why: message }),
        Reply::Run(_) => None,
    };
    match leave {
        Some(EgressLeave::Granted { internal, advice }) => note(
            host,
            Granted {
                internal,
                advice,
                request,
            },
        ),
        Some(EgressLeave::Denied { why }) => Err(refused(&host, &why)),
        None => Err(refused(&host, "the server gave no answer.")),
    }
}

/// Remembers a grant for the resolver.
fn note(host: String, grant: Granted) -> Result<(), JsErrorBox> {
    GRANTED.with_borrow_mut(|all| match all.get(&host) {
        // A connection that the one may use would be the other's as well.
        Some(before) if before.internal != grant.internal => Err(refused(
            &host,
            "requests of this call to the host differ in whether it may be internal.",
        )),
        _ => {
            all.insert(host, grant);
            Ok(())
        }
    })
}

/// Resolves names to the addresses among theirs that may be reached.
#[derive(Debug)]
pub(crate) struct GuardedResolver;

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let host = name.as_str().to_owned();
            let found = tokio::net::lookup_host((host.as_str(), 0)).await?;
            let found: Vec<SocketAddr> = found.collect();
            let inside = found.iter().any(|address| !is_public(address.ip()));
            match may_connect(&canonical(&host), inside) {
                Ok(()) => Ok(found.into_iter()),
                Err(text) => Err(io::Error::new(io::ErrorKind::PermissionDenied, text)),
            }
        })
    }
}

/// Whether a name may be connected to. One address that is not public condemns it: to leave that one out would be a
/// way to ask which are there.
fn may_connect(host: &str, inside: bool) -> Result<(), String> {
    let refusal = GRANTED.with_borrow(|all| match all.get(host) {
        None => Some((None, "nothing was granted for it.".to_owned())),
        Some(grant) if inside && !grant.internal => {
            let told = EgressRefusal {
                request: grant.request.clone(),
                reason: LEADS_INSIDE.to_owned(),
            };
            Some((Some(told), format!("{LEADS_INSIDE}. {}", grant.advice)))
        }
        Some(_) => None,
    });
    let Some((told, why)) = refusal else {
        return Ok(());
    };
    if let Some(args) = told.and_then(|told| serde_json::to_string(&told).ok()) {
        session::with(|session| session.tell(EGRESS_DENIED, args));
    }
    Err(format!("fetch to {host} is refused: {why}"))
}

/// What Deno's extensions ask for leave: all is granted, since what may leave is decided here and files are not
/// reachable.
pub(crate) fn permissions() -> PermissionsContainer {
    let parser = RuntimePermissionDescriptorParser::new(sys_traits::impls::RealSys);
    PermissionsContainer::allow_all(Arc::new(parser))
}
