//! A client for well-formed requests, over `ureq`. A refusal is an answer here, not an error.
//!
//! It must not know how the server is run; malformed requests are `raw`'s.

use std::io::Read;
use std::time::Duration;

use serde_json::{Value as Json, json};
use ureq::http::request::Builder;
use ureq::http::{Request, Response};
use ureq::{Agent, SendBody};

/// Longest time for one call.
const CALL_LIMIT: Duration = Duration::from_secs(60);

/// How long a connection is kept for another call: less than the server keeps it.
const IDLE_LIMIT: Duration = Duration::from_secs(5);

/// A client of one server. Each clone shares its connections.
#[derive(Clone, Debug)]
pub struct Client {
    agent: Agent,
    base: String,
    token: Option<String>,
}

/// An answer, whatever its status.
#[derive(Clone, Debug)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// Header names in lower case, and values.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Client {
    /// A client of `base` (`http://host:port`) that sends `token` as a bearer.
    pub fn new(base: impl Into<String>, token: Option<String>) -> Client {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .timeout_global(Some(CALL_LIMIT))
            .max_idle_age(IDLE_LIMIT)
            .build();
        Client {
            agent: config.new_agent(),
            base: base.into(),
            token,
        }
    }

    /// The same server with connections of its own.
    pub fn apart(&self) -> Client {
        Client::new(self.base.clone(), self.token.clone())
    }

    /// The same server with another token or none.
    pub fn with_token(&self, token: Option<String>) -> Client {
        Client::new(self.base.clone(), token)
    }

    /// Sends a request; `Err` is a text about the connection.
    ///
    /// # Errors
    /// When no complete answer came.
    pub fn send(&self, method: &str, path: &str, body: Option<&Json>) -> Result<Reply, String> {
        self.send_with(method, path, &[], body)
    }

    /// Sends a request with more headers. The body is announced as JSON unless they say otherwise.
    ///
    /// # Errors
    /// When no complete answer came.
    pub fn send_with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Json>,
    ) -> Result<Reply, String> {
        let mut request = self.request(method, path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let outcome = match body {
            Some(body) => {
                if !headers.iter().any(|(name, _)| *name == "content-type") {
                    request = request.header("content-type", "application/json");
                }
                self.agent.run(request.body(body.to_string()).unwrap())
            }
            None => self.agent.run(request.body(()).unwrap()),
        };
        let mut response = outcome.map_err(|e| e.to_string())?;
        let body = response.body_mut().with_config().limit(64 << 20);
        let body = body.read_to_vec().map_err(|e| e.to_string())?;
        Ok(Reply::new(&response, body))
    }

    /// POST of a body that is read while it is sent, for as long as it takes.
    pub fn upload(&self, path: &str, media: &str, mut body: impl Read) -> Reply {
        let request = self
            .request("POST", path)
            .header("content-type", media)
            .body(SendBody::from_reader(&mut body))
            .unwrap();
        let request = self.agent.configure_request(request);
        let outcome = self.agent.run(request.timeout_global(None).build());
        let mut response = outcome.unwrap_or_else(|e| panic!("POST {path}: {e}"));
        let body = response.body_mut().read_to_vec().unwrap();
        Reply::new(&response, body)
    }

    fn request(&self, method: &str, path: &str) -> Builder {
        let request = Request::builder()
            .method(method)
            .uri(format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    fn call(&self, method: &str, path: &str, body: Option<&Json>) -> Reply {
        self.send(method, path, body)
            .unwrap_or_else(|e| panic!("{method} {path}: {e}"))
    }

    /// GET.
    pub fn get(&self, path: &str) -> Reply {
        self.call("GET", path, None)
    }

    /// POST with a JSON body.
    pub fn post(&self, path: &str, body: &Json) -> Reply {
        self.call("POST", path, Some(body))
    }

    /// POST without a body.
    pub fn post_empty(&self, path: &str) -> Reply {
        self.call("POST", path, None)
    }

    /// PUT with a JSON body.
    pub fn put(&self, path: &str, body: &Json) -> Reply {
        self.call("PUT", path, Some(body))
    }

    /// PATCH with a JSON body.
    pub fn patch(&self, path: &str, body: &Json) -> Reply {
        self.call("PATCH", path, Some(body))
    }

    /// DELETE.
    pub fn delete(&self, path: &str) -> Reply {
        self.call("DELETE", path, None)
    }

    /// Creates a tenant.
    pub fn create_tenant(&self, tenant: &str) {
        let reply = self.post("/api/tenants", &json!({"id": tenant}));
        assert_eq!(reply.expect(201).json(), json!({"id": tenant}));
    }

    /// The ids of all tenants.
    pub fn tenants(&self) -> Vec<String> {
        let reply = self.get("/api/tenants").expect(200).json();
        let ids = reply["tenants"].as_array().unwrap().iter();
        ids.map(|id| id.as_str().unwrap().to_owned()).collect()
    }

    /// Inserts a document and returns its id.
    pub fn insert(&self, tenant: &str, table: &str, fields: &Json) -> String {
        let reply = self.post(
            &format!("/api/tenants/{tenant}/documents"),
            &json!({"table": table, "fields": fields}),
        );
        let id = reply.expect(201).json()["id"].clone();
        id.as_str().unwrap().to_owned()
    }

    /// All documents of a table.
    pub fn documents(&self, tenant: &str, table: &str) -> Vec<Json> {
        let reply = self.get(&format!("/api/tenants/{tenant}/documents/{table}"));
        let Json::Array(documents) = reply.expect(200).json()["data"].take() else {
            panic!("no list of documents");
        };
        documents
    }

    /// Checks that documents, indexes and commit log of a tenant agree; returns the report.
    pub fn check_consistency(&self, tenant: &str) -> Json {
        let path = format!("/debug/tenants/{tenant}/consistency");
        let report = self.get(&path).expect(200).json();
        assert_eq!(report["ok"], true, "{report:#}");
        assert_eq!(report["tenant_id"], tenant);
        assert_eq!(report["mismatches"], json!([]));
        report
    }

    /// The newest sequence in the journal of a tenant.
    pub fn journal_head(&self, tenant: &str) -> u64 {
        let reply = self.get(&format!("/api/tenants/{tenant}/journal?limit=1"));
        reply.expect(200).json()["latest_sequence"]
            .as_u64()
            .unwrap()
    }

    /// The value of an unlabelled counter or gauge in `/metrics`.
    pub fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").expect(200).text();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let value = line.and_then(|rest| rest.trim().parse().ok());
        value.unwrap_or_else(|| panic!("no {name} in\n{text}"))
    }
}

impl Reply {
    fn new(response: &Response<ureq::Body>, body: Vec<u8>) -> Reply {
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        let headers = response.headers().iter();
        Reply {
            status: response.status().as_u16(),
            headers: headers
                .map(|(name, value)| (name.as_str().to_owned(), text(value.as_bytes())))
                .collect(),
            body,
        }
    }

    /// The same, once the status is as expected.
    pub fn expect(self, status: u16) -> Reply {
        assert_eq!(self.status, status, "{}", self.text());
        self
    }

    /// The same, once it is the error envelope with this status and code (nimbus.md 2.11).
    pub fn refused(self, status: u16, code: &str) -> Reply {
        let reply = self.expect(status);
        assert_eq!(reply.error()["code"], code, "{}", reply.text());
        reply
    }

    /// A header's value; `None` when it is absent. A repeated header is a failure.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(found, _)| found == name);
        let value = values.next().map(|(_, value)| value.as_str());
        assert!(values.next().is_none(), "{name} is repeated");
        value
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Json {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| {
            panic!("status {} without JSON ({e}): {}", self.status, self.text())
        })
    }

    /// The code of an error for Convex clients, after checking its status and shape (convex.md 1.5).
    pub fn convex_refusal(&self, status: u16) -> String {
        let json = self.json();
        assert_eq!(self.status, status, "{json:#}");
        let members: Vec<&String> = json.as_object().unwrap().keys().collect();
        assert_eq!(members, ["code", "message"], "{json:#}");
        json["code"].as_str().unwrap().to_owned()
    }

    /// The error of the envelope, after checking the envelope's shape (nimbus.md 2.11).
    pub fn error(&self) -> Json {
        let mut json = self.json();
        let outer: Vec<&String> = json.as_object().unwrap().keys().collect();
        assert_eq!(outer, ["error"], "{json:#}");
        let error = json["error"].take();
        check_envelope(&error);
        assert_eq!(
            error["requestId"].as_str(),
            self.header("x-request-id"),
            "the request id of the body and of the header differ"
        );
        assert_eq!(self.header("content-type"), Some("application/json"));
        error
    }
}

fn check_envelope(error: &Json) {
    const REQUIRED: [&str; 7] = [
        "code",
        "message",
        "requestId",
        "timestamp",
        "severity",
        "retryable",
        "detail",
    ];
    const ACTIONS: [&str; 9] = [
        "retry",
        "wait_and_retry",
        "fix_request",
        "reauthenticate",
        "refresh_resource",
        "create_index",
        "upgrade_client",
        "upgrade_server",
        "contact_operator",
    ];
    let fields = error.as_object().unwrap();
    for name in REQUIRED {
        assert!(fields.contains_key(name), "no {name} in {error:#}");
    }
    for name in fields.keys() {
        let known = REQUIRED.contains(&name.as_str()) || name == "remediation";
        assert!(known, "unknown field {name} in {error:#}");
    }
    for name in ["code", "message", "requestId", "timestamp", "severity"] {
        let text = error[name].as_str();
        assert!(
            text.is_some_and(|text| !text.is_empty()),
            "{name} in {error:#}"
        );
    }
    let severity = error["severity"].as_str().unwrap();
    assert!(["fatal", "error", "warning"].contains(&severity));
    assert!(error["retryable"].is_boolean());
    assert!(error["detail"].is_object() || error["detail"].is_null());
    assert_rfc3339(error["timestamp"].as_str().unwrap());
    if let Some(remedy) = fields.get("remediation") {
        let action = remedy["action"].as_str().unwrap();
        assert!(ACTIONS.contains(&action), "{action}");
        assert!(remedy["message"].is_string());
    }
}

/// Checks that `text` is an RFC 3339 time in UTC, with or without a fraction.
pub fn assert_rfc3339(text: &str) {
    let shape: String = text
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    let whole = shape.strip_prefix("0000-00-00T00:00:00").unwrap_or("?");
    let tail = whole.strip_suffix('Z').unwrap_or("?");
    let fraction = tail.strip_prefix('.').unwrap_or("0");
    let good = !fraction.is_empty() && fraction.chars().all(|c| c == '0');
    assert!(good, "{text} is not an RFC 3339 time in UTC");
}
