//! The URL of a database, which may hold a password that nobody gets to see.
//!
//! Must not know which parameters a database has, nor open a connection. Whether a password may travel
//! unprotected is decided here.

use std::fmt;
use std::net::IpAddr;

use url::Url;
use zeroize::Zeroizing;

use crate::provider::{ProviderError, ProviderResult};

/// What stands for a password.
const HIDDEN: &str = "***";

/// The URL of a database server. Its `Debug` and `Display` show no password.
#[derive(Clone)]
pub struct DatabaseUrl {
    text: Zeroizing<String>,
    shown: String,
    secrets: Vec<Zeroizing<String>>,
    parameters: Vec<String>,
}

impl DatabaseUrl {
    /// Parses the text of a setting; `setting` names it and `schemes` lists what it may begin with.
    ///
    /// # Errors
    /// `Settings`, without any part of the text, which may be a password.
    pub fn parse(setting: &str, schemes: &[&str], text: &str) -> ProviderResult<DatabaseUrl> {
        let refused = |why: String| ProviderError::Settings {
            reason: format!(
                "{setting} is not a URL like {}://user@host/database: {why}",
                schemes[0]
            ),
        };
        let parsed = Url::parse(text).map_err(|e| refused(e.to_string()))?;
        if !schemes.contains(&parsed.scheme()) {
            return Err(refused("it begins with another scheme".to_owned()));
        }
        let mut secrets = Vec::new();
        if let Some(password) = parsed.password() {
            secrets.push(Zeroizing::new(password.to_owned()));
            let decoded = percent_encoding::percent_decode_str(password).decode_utf8_lossy();
            secrets.push(Zeroizing::new(decoded.into_owned()));
        }
        for (key, value) in parsed.query_pairs() {
            if is_secret(&key) {
                secrets.push(Zeroizing::new(value.into_owned()));
            }
        }
        let parameters = parsed.query_pairs().map(|(key, _)| key.into_owned());
        let parameters = parameters.collect();
        Ok(DatabaseUrl {
            parameters,
            text: Zeroizing::new(text.to_owned()),
            shown: shown(parsed),
            secrets,
        })
    }

    /// The whole URL, for the database's client.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Whether it has one of these parameters.
    pub(crate) fn has_parameter(&self, names: &[&str]) -> bool {
        self.parameters.iter().any(|p| names.contains(&p.as_str()))
    }

    /// A parameter with none of these names: a slip of the pen, which clients pass over in silence.
    #[cfg_attr(not(feature = "mysql"), allow(dead_code))]
    pub(crate) fn unknown_parameter(&self, names: &[&str]) -> Option<&str> {
        let mut parameters = self.parameters.iter().map(String::as_str);
        parameters.find(|p| !names.contains(p))
    }

    /// A text of someone else, without the password.
    pub(crate) fn redact(&self, text: &str) -> String {
        let mut text = text.replace(self.text.as_str(), &self.shown);
        for secret in self.secrets.iter().filter(|s| s.len() > 2) {
            text = text.replace(secret.as_str(), HIDDEN);
        }
        text
    }
}

/// Whether the value of a parameter is not to be shown.
fn is_secret(parameter: &str) -> bool {
    matches!(
        parameter.to_ascii_lowercase().as_str(),
        "password" | "sslpassword"
    )
}

fn shown(mut url: Url) -> String {
    if url.password().is_some() {
        // Fails for URLs without a host only, which have no password.
        let _ = url.set_password(Some(HIDDEN));
    }
    let pairs: Vec<_> = url.query_pairs().into_owned().collect();
    if !pairs.is_empty() {
        let hidden = pairs.iter().map(|(key, value)| {
            let value = if is_secret(key) { HIDDEN } else { value };
            (key.as_str(), value)
        });
        url.query_pairs_mut().clear().extend_pairs(hidden);
    }
    url.into()
}

impl fmt::Display for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DatabaseUrl({})", self.shown)
    }
}

/// Whether a connection to `host` stays on this machine: a loopback address, or the directory of a socket.
pub(crate) fn is_local(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host.starts_with('/')
        || host.eq_ignore_ascii_case("localhost")
        || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Refuses a connection on which a password could be read, unless that was asked for: `encrypted` says whether
/// the connection cannot come about without encryption.
///
/// # Errors
/// `Settings`; `setting` names the URL's option and `ask` what to add for a protected connection.
pub(crate) fn check_protected(
    (setting, ask): (&str, &str),
    host: &str,
    encrypted: bool,
    allow_plaintext_password: bool,
) -> ProviderResult<()> {
    if encrypted || allow_plaintext_password || is_local(host) {
        return Ok(());
    }
    let reason = format!(
        "{setting} names {host}, which is not this machine, and does not insist on encryption, so the password \
         could be read on the way; add {ask}, or give --allow-plaintext-password"
    );
    Err(ProviderError::Settings { reason })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    const SCHEMES: &[&str] = &["postgres", "postgresql"];

    fn parse(text: &str) -> ProviderResult<DatabaseUrl> {
        DatabaseUrl::parse("--postgres-url", SCHEMES, text)
    }

    #[test]
    fn no_password_is_shown() {
        let url =
            parse("postgres://me:s3cr%40t@db.example/x?password=0th3r&sslmode=require").unwrap();
        let shown = format!("{url} {url:?}");
        for secret in ["s3cr", "0th3r"] {
            assert!(!shown.contains(secret), "{shown}");
        }
        assert_eq!(
            url.to_string(),
            "postgres://me:***@db.example/x?password=***&sslmode=require"
        );
        let foreign = format!(
            "cannot use {} nor s3cr@t nor s3cr%40t nor 0th3r",
            url.text()
        );
        let redacted = url.redact(&foreign);
        for secret in ["s3cr", "0th3r"] {
            assert!(!redacted.contains(secret), "{redacted}");
        }
        let plain = parse("postgresql:///x?host=/run/pg").unwrap();
        assert_eq!(plain.redact("a text"), "a text");
    }

    #[test]
    fn what_is_not_a_url_is_refused_without_repeating_it() {
        for text in [
            "",
            "s3cret",
            "mysql://s3cret@h/x",
            "postgres://h:s3cret/x",
            "s3cret://x",
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(
                error.contains("--postgres-url is not a URL like postgres://"),
                "{error}"
            );
            assert!(!error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn local_hosts_are_known() {
        for host in [
            "localhost",
            "LOCALHOST",
            "127.0.0.1",
            "127.9.9.9",
            "::1",
            "[::1]",
            "/run/x",
        ] {
            assert!(is_local(host), "{host}");
        }
        for host in [
            "db.example",
            "10.0.0.1",
            "0.0.0.0",
            "localhost.example",
            "",
            "::2",
        ] {
            assert!(!is_local(host), "{host}");
        }
    }

    #[test]
    fn a_password_does_not_travel_unprotected_unless_asked() {
        let check = |host, encrypted, allowed| {
            check_protected(
                ("--postgres-url", "sslmode=verify-full"),
                host,
                encrypted,
                allowed,
            )
        };
        let error = check("db.example", false, false).unwrap_err().to_string();
        assert!(
            error.contains("db.example") && error.contains("sslmode=verify-full"),
            "{error}"
        );
        check("db.example", true, false).unwrap();
        check("db.example", false, true).unwrap();
        check("127.0.0.1", false, false).unwrap();
    }
}
