//! Settings of the HTTP server, with their defaults.
//!
//! Plain data; it must not know flags, environment variables or files.

use std::time::Duration;

use crate::edge::attempts::FailedTokenLimits;
use crate::edge::client::{ProxyError, TrustedProxies};
use crate::edge::origin::{OriginError, Origins, check_origin};

/// Settings of a [`crate::Server`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServerConfig {
    /// Origins approved beside loopback, compared exactly.
    pub cors_allow_origins: Vec<String>,
    /// Scheme and authority by which clients reach this server, as functions see it in `CONVEX_CLOUD_URL` and
    /// `CONVEX_SITE_URL`. `None`: the address that it listens on.
    pub public_origin: Option<String>,
    /// Host name under which the console is served, with everything below it.
    pub tenant_domain: Option<String>,
    /// More host names for the console.
    pub allowed_hosts: Vec<String>,
    /// Addresses and networks of proxies whose `X-Forwarded-For` counts. None by default.
    pub trusted_proxies: Vec<String>,
    /// When failed tokens are slowed down.
    pub failed_tokens: FailedTokenLimits,
    /// Connections open at once; more are accepted and closed. Default 10,000.
    pub max_connections: usize,
    /// Longest request body in bytes. Default 8 MiB: a document of 1 MiB with every byte escaped.
    pub max_body_bytes: usize,
    /// Longest time for the head of a request, which is also how long a connection may idle.
    /// Default 10 s.
    pub head_timeout: Duration,
    /// Longest time for a handler, once the body is read. Default 30 s.
    pub request_timeout: Duration,
    /// Bytes of results of queries that are kept; 0 keeps and shares none. Default 100 MiB.
    pub query_cache_bytes: usize,
    /// How long a shutdown waits for requests in progress. Default 30 s.
    pub drain_timeout: Duration,
}

impl Default for ServerConfig {
    fn default() -> ServerConfig {
        ServerConfig {
            cors_allow_origins: Vec::new(),
            public_origin: None,
            tenant_domain: None,
            allowed_hosts: Vec::new(),
            trusted_proxies: Vec::new(),
            failed_tokens: FailedTokenLimits::default(),
            max_connections: 10_000,
            max_body_bytes: 8 * 1024 * 1024,
            head_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            query_cache_bytes: 100 * 1024 * 1024,
            drain_timeout: Duration::from_secs(30),
        }
    }
}

impl ServerConfig {
    /// Checks what can be checked without opening anything.
    ///
    /// # Errors
    /// [`ServerError::Origin`] or [`ServerError::PublicOrigin`] for a setting that is no origin, [`ServerError::Proxy`] for one that is
    /// no address.
    pub fn check(&self) -> Result<(), ServerError> {
        Origins::new(&self.cors_allow_origins)?;
        TrustedProxies::new(&self.trusted_proxies)?;
        if let Some(origin) = &self.public_origin {
            check_origin(origin).map_err(ServerError::PublicOrigin)?;
        }
        Ok(())
    }
}

/// Why a server was not made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServerError {
    /// No address could be listened on.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The last address that was tried.
        address: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// An approved origin is not one.
    #[error(transparent)]
    Origin(#[from] OriginError),
    /// The public origin is not one.
    #[error("--public-origin: {0}")]
    PublicOrigin(OriginError),
    /// A trusted proxy is not an address or network.
    #[error("--trusted-proxy: {0}")]
    Proxy(#[from] ProxyError),
}
