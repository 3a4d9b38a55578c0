//! The listener, its connections and their end.
//!
//! HTTP/1.1 over plain TCP: TLS is the reverse proxy's (seed 000). It must not look at requests;
//! the edge does.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use futures_util::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use nimbus_auth::{AdminVerifier, AuditLog, Authenticator};
use nimbus_runtime::Runtime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::app::{App, Drain};
use crate::config::{ServerConfig, ServerError};
use crate::edge::Edge;
use crate::edge::attempts::FailedTokens;
use crate::edge::client::TrustedProxies;
use crate::edge::exchange::AuditTrail;
use crate::edge::origin::{Hosts, Origins, check_origin};
use crate::encryption::EncryptionReport;
use crate::functions::{FunctionService, FunctionSettings};
use crate::io::{Kept, Stalling};
use crate::metrics::Metrics;
use crate::policy::Policies;
use crate::policy::directory::PolicyDirectory;
use crate::routes::router;
use crate::store::Store;

/// Read buffer of a connection: above the bounds of the edge, so that those answer with the
/// envelope; what is larger still gets hyper's own bare 431.
const READ_BUFFER: usize = 128 * 1024;
/// Pause after a failed accept, which is mostly for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long and how much of an unread request is taken in after the last answer, since a socket
/// closed over unread bytes resets and may lose the answer (RFC 9112 9.6).
const LINGER_TIME: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 64 * 1024 * 1024;

/// What a server serves and checks against.
#[derive(Debug)]
pub struct Services {
    /// The data.
    pub store: Store,
    /// The admin token in force.
    pub verifier: Arc<AdminVerifier>,
    /// Where live rotation writes the token.
    pub token_path: PathBuf,
    /// Where decisions are recorded.
    pub audit: Arc<AuditLog>,
    /// What runs functions.
    pub runtime: Runtime,
    /// What is encrypted at rest, for operators.
    pub encryption: EncryptionReport,
    /// Where policies come from; `None`: from the tenants themselves.
    pub policies: Option<PolicyDirectory>,
}

/// A server that listens and does not serve yet.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    edge: Arc<Edge>,
    app: Arc<App>,
}

/// How a server ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stopped {
    /// Every request in progress was answered.
    Drained,
    /// The time for that ran out with this many connections or writes left.
    TimedOut {
        /// Connections and writes that were cut off.
        left: usize,
    },
}

impl Server {
    /// Listens on the first of `addresses` that works. Port 0 takes a free port.
    ///
    /// # Errors
    /// [`ServerError::Bind`], [`ServerError::Origin`] or [`ServerError::Proxy`] for a setting that is none.
    pub async fn bind(
        addresses: &[SocketAddr],
        config: ServerConfig,
        services: Services,
    ) -> Result<Server, ServerError> {
        let origins = Origins::new(&config.cors_allow_origins)?;
        let proxies = TrustedProxies::new(&config.trusted_proxies)?;
        let hosts = Hosts::new(config.tenant_domain.as_deref(), &config.allowed_hosts);
        let shown = addresses
            .last()
            .map_or_else(String::new, SocketAddr::to_string);
        let failed = |source| ServerError::Bind {
            address: shown.clone(),
            source,
        };
        let listener = TcpListener::bind(addresses).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let trail = Arc::new(AuditTrail::new(services.audit));
        let settings = FunctionSettings {
            cache_bytes: config.query_cache_bytes,
            origin: match &config.public_origin {
                Some(origin) => check_origin(origin).map_err(ServerError::PublicOrigin)?,
                None => format!("http://{address}"),
            },
        };
        let policies = Arc::new(Policies::new(services.policies));
        let store = services
            .store
            .governed_by(policies, services.runtime.clone());
        let functions = FunctionService::new(
            services.runtime,
            settings,
            Arc::clone(&trail),
            store.clone(),
        );
        let app = Arc::new(App {
            store,
            authenticator: Authenticator::new(Arc::clone(&services.verifier)),
            verifier: services.verifier,
            token_path: services.token_path,
            trail,
            encryption: services.encryption,
            functions,
            attempts: FailedTokens::new(config.failed_tokens),
            config,
            proxies,
            origins,
            hosts,
            metrics: Metrics::new(),
            stop: watch::Sender::new(false),
            drain: Drain::new(),
        });
        let edge = Arc::new(Edge::new(Arc::clone(&app), router(&app)));
        Ok(Server {
            listener,
            address,
            edge,
            app,
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` ends or a caller of `/api/system/shutdown` asks for it, then stops
    /// listening and lets requests in progress finish. The caller closes the engine afterwards.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Stopped {
        let Server {
            listener,
            edge,
            app,
            ..
        } = self;
        let mut asked = app.stop.subscribe();
        tokio::select! {
            () = accept_all(&listener, &edge, &app) => {}
            () = Arc::clone(app.store.policies()).watch() => {}
            () = shutdown => {}
            _ = asked.wait_for(|stop| *stop) => {}
        }
        drop(listener);
        app.stop.send_replace(true);
        match tokio::time::timeout(app.config.drain_timeout, app.drain.finished()).await {
            Ok(()) => Stopped::Drained,
            Err(_) => Stopped::TimedOut {
                left: app.drain.count(),
            },
        }
    }
}

async fn accept_all(listener: &TcpListener, edge: &Arc<Edge>, app: &Arc<App>) {
    let limit = i64::try_from(app.config.max_connections).unwrap_or(i64::MAX);
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if app.metrics.connections.get() >= limit {
            app.metrics.connections_refused.inc();
            continue;
        }
        app.metrics.connections.inc();
        let (edge, app, in_progress) = (Arc::clone(edge), Arc::clone(app), app.drain.enter());
        tokio::spawn(async move {
            serve(&edge, &app, stream, peer).await;
            app.metrics.connections.dec();
            drop(in_progress);
        });
    }
}

type Answering = BoxFuture<'static, Result<Response<Body>, Infallible>>;

async fn serve(edge: &Arc<Edge>, app: &Arc<App>, stream: TcpStream, peer: SocketAddr) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY");
    }
    let edge = Arc::clone(edge);
    let service = service_fn(move |request: Request<Incoming>| -> Answering {
        let edge = Arc::clone(&edge);
        Box::pin(async move { Ok(edge.answer(peer, request.map(Body::new)).await) })
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(app.config.head_timeout)
        .max_buf_size(READ_BUFFER);
    let kept = Kept::new(Stalling::new(stream));
    let mut connection = builder.serve_connection(TokioIo::new(kept.share()), service);
    let mut stopping = app.stop.subscribe();
    let mut told = false;
    let outcome = loop {
        let done = tokio::select! {
            outcome = &mut connection => Some(outcome),
            _ = stopping.wait_for(|stop| *stop), if !told => None,
        };
        if let Some(outcome) = done {
            break outcome;
        }
        told = true;
        Pin::new(&mut connection).graceful_shutdown();
    };
    drop(connection);
    let answered = match outcome {
        Ok(()) => true,
        Err(error) => {
            tracing::debug!(%error, %peer, "a connection ended early");
            // The library has answered what it could not read.
            error.is_parse()
        }
    };
    if let Some(stream) = kept.into_inner().filter(|_| answered) {
        linger(stream.into_inner(), &mut stopping).await;
    }
}

/// Ends our side, then takes in what the client still sends, within bounds, until it ends its own.
async fn linger(mut stream: TcpStream, stopping: &mut watch::Receiver<bool>) {
    let lingering = async {
        if stream.shutdown().await.is_err() {
            return;
        }
        let (mut taken, mut buffer) = (0, vec![0; 16 * 1024]);
        while taken < LINGER_BYTES {
            match stream.read(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(count) => taken += count,
            }
        }
    };
    tokio::select! {
        _ = tokio::time::timeout(LINGER_TIME, lingering) => {}
        _ = stopping.wait_for(|stop| *stop) => {}
    }
}
