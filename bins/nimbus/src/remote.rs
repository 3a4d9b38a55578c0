//! Asking a running server, with the admin token of this user or a credential that was given.
//!
//! Plain HTTP only: TLS ends at a reverse proxy, and this talks to the server itself.

use std::io::Read;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, anyhow, bail};
use nimbus_auth::{Environment, TokenFile};
use serde_json::Value as Json;
use ureq::http::Uri;
use zeroize::Zeroizing;

/// How long the server may take over an answer, or over the head of one that is streamed.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long it may take over a deployment: every document may have to be checked, every index filled.
const LONG_PATIENCE: Duration = Duration::from_secs(3_600);

/// What proves to a server who asks. It has no `Debug`: it would show it.
pub(crate) enum Credential {
    /// The admin token of this user.
    File(TokenFile),
    /// A token or key that a flag or the environment gave.
    Given(Zeroizing<String>),
}

impl Credential {
    fn secret(&self) -> &str {
        match self {
            Credential::File(file) => file.token().expose_secret(),
            Credential::Given(text) => text,
        }
    }

    /// What to say when the server refuses it.
    fn refusal(&self, base: &str) -> String {
        match self {
            Credential::File(file) => format!(
                "the server at {base} refuses the admin token in {}; is it run by another user, or was the token rotated since it started?",
                file.path().display()
            ),
            Credential::Given(_) => format!(
                "the server at {base} refuses the credential that was given; was it revoked, or has it ended?"
            ),
        }
    }
}

/// A base address without the slash at its end. It is read as it will be when it is asked: `http://localhost:80@host`
/// leads to `host`.
fn checked(base: &str) -> anyhow::Result<String> {
    let uri = base.parse::<Uri>().ok();
    let Some(authority) = uri.as_ref().and_then(Uri::authority) else {
        bail!("the address of the server is no URL such as http://127.0.0.1:8080");
    };
    // A name and a password may be a secret, so the address is not shown.
    if authority.as_str().contains('@') {
        bail!("the address of the server has a user name in it (`…@host`); leave that away");
    }
    if !base.starts_with("http://") {
        bail!(
            "{base}: only http:// is spoken here; use the server's own address, not that of its TLS proxy"
        );
    }
    Ok(base.trim_end_matches('/').to_owned())
}

/// Whether the address is one of this machine's loopback, by its text alone.
pub(crate) fn is_local(base: &str) -> bool {
    let Ok(base) = checked(base) else {
        return false;
    };
    let Ok(uri) = base.parse::<Uri>() else {
        return false;
    };
    let host = uri.host().unwrap_or_default();
    let address = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    host.eq_ignore_ascii_case("localhost")
        || address.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

/// A server and the credential for it.
pub(crate) struct Remote {
    base: String,
    agent: ureq::Agent,
    credential: Credential,
}

impl Remote {
    /// A server at `base`, such as `http://127.0.0.1:8080`, asked with the admin token of this user.
    pub(crate) fn new(base: &str) -> anyhow::Result<Remote> {
        let token = TokenFile::load(&Environment::system().token_path()?)
            .context("the admin token is needed to ask the server")?;
        Remote::with(base, Credential::File(token))
    }

    /// A server at `base`, asked with `credential`.
    pub(crate) fn with(base: &str, credential: Credential) -> anyhow::Result<Remote> {
        let base = checked(base)?;
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            // A proxy of the environment must not see the admin token.
            .proxy(None)
            .max_redirects(0)
            .timeout_global(Some(PATIENCE))
            .build()
            .into();
        Ok(Remote {
            base,
            agent,
            credential,
        })
    }

    /// Sends a request; an error answer becomes an error with the server's own words.
    pub(crate) fn call(
        &self,
        method: &str,
        path: &str,
        body: Option<&Json>,
    ) -> anyhow::Result<Json> {
        self.send(method, path, body.map(Json::to_string).unwrap_or_default())
    }

    /// As [`Remote::call`], with a body that is JSON text already; empty is none.
    pub(crate) fn send(&self, method: &str, path: &str, body: String) -> anyhow::Result<Json> {
        self.send_within(PATIENCE, method, path, body)
    }

    /// As [`Remote::send`], for what may take as long as the tenant is large.
    pub(crate) fn send_patiently(
        &self,
        method: &str,
        path: &str,
        body: String,
    ) -> anyhow::Result<Json> {
        self.send_within(LONG_PATIENCE, method, path, body)
    }

    fn send_within(
        &self,
        patience: Duration,
        method: &str,
        path: &str,
        body: String,
    ) -> anyhow::Result<Json> {
        let mut request = self.request(method, path);
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        let request = self
            .agent
            .configure_request(request.body(body)?)
            .timeout_global(Some(patience))
            .build();
        let mut answer = self
            .agent
            .run(request)
            .with_context(|| format!("asking the server at {}", self.base))?;
        if answer.status().is_success() {
            let text = answer.body_mut().read_to_string()?;
            return Ok(serde_json::from_str::<Json>(&text).unwrap_or(Json::Null));
        }
        Err(self.refused(answer))
    }

    /// Asks for an answer of any length, for as long as it takes. Its reader fails when the
    /// answer is cut off.
    pub(crate) fn stream(&self, path: &str) -> anyhow::Result<impl Read + use<>> {
        let request = self.request("GET", path).body(())?;
        let request = self
            .agent
            .configure_request(request)
            .timeout_global(None)
            .timeout_recv_response(Some(PATIENCE))
            .build();
        let answer = self
            .agent
            .run(request)
            .with_context(|| format!("asking the server at {}", self.base))?;
        if answer.status().is_success() {
            return Ok(answer.into_body().into_reader());
        }
        Err(self.refused(answer))
    }

    fn request(&self, method: &str, path: &str) -> ureq::http::request::Builder {
        let bearer = format!("Bearer {}", self.credential.secret());
        ureq::http::Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base))
            .header("authorization", bearer)
    }

    /// What an error answer says.
    fn refused(&self, mut answer: ureq::http::Response<ureq::Body>) -> anyhow::Error {
        let status = answer.status();
        let text = answer.body_mut().read_to_string().unwrap_or_default();
        let json = serde_json::from_str::<Json>(&text).unwrap_or(Json::Null);
        let error = &json["error"];
        match (error["code"].as_str(), error["message"].as_str()) {
            (Some("auth.unauthorized"), _) => anyhow!(self.credential.refusal(&self.base)),
            (Some(code), Some(message)) => anyhow!("{message} ({code})"),
            _ => anyhow!("the server at {} answered {status}", self.base),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_address_with_a_user_name_gets_nothing() {
        let given = |base: &str| {
            let credential = Credential::Given(Zeroizing::new("t0ken".to_owned()));
            Remote::with(base, credential).map(|remote| remote.base)
        };
        let base = given("http://[::1]:8080/").unwrap();
        assert_eq!(base, "http://[::1]:8080");
        for bad in [
            "http://localhost:80@evil.example",
            "http://hunter2@127.0.0.1",
            "http://user:hunter2@localhost:8080/x",
            "http://@localhost",
            "https://localhost",
            "http://",
            "localhost:8080",
            "",
        ] {
            let error = given(bad).err().unwrap().to_string();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
