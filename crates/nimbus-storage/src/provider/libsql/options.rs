//! Settings of the libSQL provider: checked here, and made into what requests need.
//!
//! Must not open a connection. A token is text that nobody gets to see, and does not travel unprotected unless that
//! was asked for.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use url::{Host, Url};
use zeroize::Zeroizing;

use crate::control::RandomId;
use crate::encryption::Keyring;
use crate::provider::external::{Names, is_local};
use crate::provider::{ProviderError, ProviderResult};

const URL: &str = "the libSQL URL";
const ADMIN_URL: &str = "the libSQL admin URL";
const TOKEN: &str = "the libSQL auth token";
const ADMIN_HEADER: &str = "the libSQL admin auth header";
const METADATA: &str = "the libSQL metadata namespace";
const PREFIX: &str = "the prefix of tenant namespaces";

/// A token or the value of a header. Shown as `***`.
#[derive(Clone)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// A secret with this text.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(Zeroizing::new(text.into()))
    }

    /// The value of a header that ends with it.
    fn header(&self, setting: &str, before: &str) -> ProviderResult<HeaderValue> {
        let text = Zeroizing::new(format!("{before}{}", *self.0));
        let mut value = HeaderValue::from_str(&text).map_err(|_| ProviderError::Settings {
            reason: format!("{setting} has characters that no HTTP header takes"),
        })?;
        value.set_sensitive(true);
        Ok(value)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Settings of the [`LibsqlProvider`](super::LibsqlProvider). `Debug` shows no secret.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LibsqlOptions {
    /// Where the primary answers: `http://`, `https://`, or `libsql://`, which stands for `https://`.
    pub url: String,
    /// Where its admin API answers.
    pub admin_url: String,
    /// Where the replicas are. Made if it is missing, and held by one process at a time.
    pub cache_dir: PathBuf,
    /// Sent to the primary as `Authorization: Bearer …`.
    pub auth_token: Option<Secret>,
    /// Sent to the admin API as `Authorization`, to the letter.
    pub admin_auth_header: Option<Secret>,
    /// Namespace of the registry.
    pub metadata_namespace: String,
    /// What the namespace of every tenant begins with. Nothing else on the primary may.
    pub tenant_namespace_prefix: String,
    /// The installation whose tenants are shared on purpose.
    pub join_installation: Option<RandomId>,
    /// Lets a token travel to another machine without encryption.
    pub allow_plaintext_token: bool,
    /// Keys of the replicas' files; `None` keeps plain text.
    pub keyring: Option<Arc<Keyring>>,
    /// Snapshots that one tenant can have open at once; 1 to 1,024. More than the transactions that run at once on a
    /// tenant: each may hold one while it waits for commits of other servers to be read, which takes two more.
    pub readers: usize,
    /// How old the newest look at the primary may be for a read that asks for nothing newer. Zero: every read
    /// asks. The default is 250 ms.
    pub max_staleness: Duration,
    /// With a keyring: bytes that SQLite may keep in memory for all replicas together.
    pub heap_limit: u64,
}

impl LibsqlOptions {
    /// The defaults, for a primary and a directory.
    pub fn new(
        url: impl Into<String>,
        admin_url: impl Into<String>,
        cache_dir: impl Into<PathBuf>,
    ) -> LibsqlOptions {
        LibsqlOptions {
            url: url.into(),
            admin_url: admin_url.into(),
            cache_dir: cache_dir.into(),
            auth_token: None,
            admin_auth_header: None,
            metadata_namespace: "nimbus_provider".to_owned(),
            tenant_namespace_prefix: "tenant_".to_owned(),
            join_installation: None,
            allow_plaintext_token: false,
            keyring: None,
            readers: 64,
            max_staleness: Duration::from_millis(250),
            heap_limit: 512 << 20,
        }
    }

    /// Checks the settings against each other, without connecting. Before that a URL may hold a password, which is
    /// refused here and must not be shown.
    ///
    /// # Errors
    /// `Settings`, without any part of a URL that is refused.
    pub fn validate(&self) -> ProviderResult<()> {
        self.check().map(drop)
    }

    /// Checks the settings against each other.
    pub(super) fn check(&self) -> ProviderResult<(Names, Targets)> {
        let names = Names::new(PREFIX, &self.tenant_namespace_prefix)?;
        names.check_metadata(METADATA, &self.metadata_namespace)?;
        let user = self.target(URL, &self.url, (TOKEN, "Bearer ", &self.auth_token))?;
        let header = (ADMIN_HEADER, "", &self.admin_auth_header);
        let admin = self.target(ADMIN_URL, &self.admin_url, header)?;
        Ok((names, Targets { user, admin }))
    }

    fn target(
        &self,
        setting: &str,
        text: &str,
        (of, before, secret): (&str, &str, &Option<Secret>),
    ) -> ProviderResult<Target> {
        let refused = |why: &str| ProviderError::Settings {
            reason: format!("{setting} is not a URL like http://127.0.0.1:8080: {why}"),
        };
        let mut url = Url::parse(text).map_err(|e| refused(&e.to_string()))?;
        if url.scheme() == "libsql" {
            let https = text.replacen("libsql", "https", 1);
            url = Url::parse(&https).map_err(|e| refused(&e.to_string()))?;
        }
        if !matches!(url.scheme(), "http" | "https") {
            return Err(refused("it begins with another scheme"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refused("a name or a password has no place in it"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(refused("a query or a fragment has no place in it"));
        }
        let host = url.host().ok_or_else(|| refused("it names no host"))?;
        let host = match host {
            Host::Domain(name) => name.to_owned(),
            Host::Ipv4(ip) => ip.to_string(),
            Host::Ipv6(ip) => format!("[{ip}]"),
        };
        let encrypted = url.scheme() == "https";
        if secret.is_some() && !encrypted && !is_local(&host) && !self.allow_plaintext_token {
            let reason = format!(
                "{setting} names {host}, which is not this machine, and begins with http, so {of} could be read \
                 on the way; use https, or allow a plaintext token on purpose"
            );
            return Err(ProviderError::Settings { reason });
        }
        let authorization = secret.as_ref().map(|s| s.header(of, before)).transpose()?;
        Ok(Target {
            base: url.as_str().trim_end_matches('/').to_owned(),
            authorization,
        })
    }
}

/// Where one of the two surfaces is, and what opens it.
#[derive(Clone)]
pub(super) struct Target {
    /// Without a slash at the end.
    pub(super) base: String,
    /// Marked as sensitive, so that it is not printed.
    pub(super) authorization: Option<HeaderValue>,
}

/// The primary and its admin API.
#[derive(Clone)]
pub(super) struct Targets {
    pub(super) user: Target,
    pub(super) admin: Target,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn options(url: &str) -> LibsqlOptions {
        let mut options = LibsqlOptions::new(url, "http://localhost:1", "/c");
        options.auth_token = Some(Secret::new("s3cret"));
        options.admin_auth_header = Some(Secret::new("Basic s3cret"));
        options
    }

    fn refused(options: &LibsqlOptions) -> String {
        let error = options.check().err().unwrap();
        assert!(matches!(error, ProviderError::Settings { .. }), "{error:?}");
        let text = error.to_string();
        assert!(!text.contains("s3cret"), "{text}");
        text
    }

    #[test]
    fn no_secret_is_shown() {
        let options = options("https://db.example/");
        let text = format!("{options:?}");
        assert!(!text.contains("s3cret") && text.contains("***"), "{text}");
        let (_, targets) = options.check().unwrap();
        let header = targets.user.authorization.unwrap();
        assert_eq!(header.to_str().unwrap(), "Bearer s3cret");
        assert!(!format!("{header:?}").contains("s3cret"));
        let header = targets.admin.authorization.unwrap();
        assert_eq!(header.to_str().unwrap(), "Basic s3cret");
    }

    #[test]
    fn urls_that_cannot_work_are_refused() {
        for (url, why) in [
            ("", "not a URL"),
            ("s3cret", "not a URL"),
            ("postgres://s3cret@h/x", "another scheme"),
            ("http://me:s3cret@h/", "name or a password"),
            ("http://h/?authToken=s3cret", "query"),
        ] {
            let text = refused(&options(url));
            assert!(text.contains(why) && text.contains(URL), "{url}: {text}");
        }
        let base = |url| options(url).check().unwrap().1.user.base;
        assert_eq!(base("libsql://db.example/"), "https://db.example");
        assert_eq!(base("http://[::1]:80/x/"), "http://[::1]/x");
    }

    #[test]
    fn a_token_in_the_clear_is_refused_unless_asked_for() {
        let mut remote = options("http://db.example:8080");
        let text = refused(&remote);
        assert!(
            text.contains("db.example") && text.contains("https"),
            "{text}"
        );
        remote.allow_plaintext_token = true;
        remote.check().unwrap();
        let mut admin = options("http://127.0.0.1:1");
        admin.check().unwrap();
        admin.admin_url = "http://10.0.0.1:1".into();
        assert!(refused(&admin).contains(ADMIN_HEADER));
        // Without a secret there is nothing to protect.
        admin.admin_auth_header = None;
        admin.check().unwrap();
        let mut broken = options("http://127.0.0.1:1");
        broken.auth_token = Some(Secret::new("s3cret\n"));
        assert!(refused(&broken).contains("no HTTP header takes"));
    }

    #[test]
    fn names_that_cannot_work_are_refused() {
        let with = |change: fn(&mut LibsqlOptions)| {
            let mut options = options("http://localhost:1");
            change(&mut options);
            refused(&options)
        };
        assert!(with(|o| o.tenant_namespace_prefix = "Tenant".into()).contains("a-z"));
        assert!(
            with(|o| o.metadata_namespace = "tenant_x".into()).contains("begins with the prefix")
        );
        assert!(with(|o| o.metadata_namespace = "x/y".into()).contains("a-z"));
    }
}
