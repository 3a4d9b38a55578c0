//! Each rule of the primary over real connections. It must not know the modules; only `Primary` and the wire.

mod faults;
mod rules;
mod server;
mod streams;

use std::time::{Duration, Instant};

use serde_json::{Value as Json, json};
use tempfile::TempDir;
use ureq::Agent;
use ureq::http::Request;

use crate::{Options, Primary};

/// A time that no test reaches.
const NEVER: Duration = Duration::from_secs(3_600);

/// A time that is over at once.
const SOON: Duration = Duration::from_millis(20);

struct World {
    primary: Primary,
    dir: TempDir,
    agent: Agent,
}

/// Streams and locks that last, unless `change` says otherwise.
fn world(change: impl FnOnce(&mut Options)) -> World {
    let dir = tempfile::tempdir().unwrap();
    let mut options = Options {
        idle_timeout: NEVER,
        lock_timeout: NEVER,
        ..Options::default()
    };
    change(&mut options);
    let config = Agent::config_builder().http_status_as_error(false);
    let config = config
        .proxy(None)
        .timeout_global(Some(Duration::from_secs(60)));
    World {
        primary: Primary::start(dir.path(), options).unwrap(),
        dir,
        agent: config.build().new_agent(),
    }
}

impl World {
    /// One request; an error is one of the connection.
    fn send(
        &self,
        call: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<(u16, String), ureq::Error> {
        let (method, url) = call.split_once(' ').unwrap();
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut answer = match method {
            "POST" => self.agent.run(request.body(body).unwrap())?,
            _ => self.agent.run(request.body(()).unwrap())?,
        };
        let text = answer.body_mut().read_to_string()?;
        Ok((answer.status().as_u16(), text))
    }

    fn post(&self, path: &str, headers: &[(&str, &str)], body: &Json) -> (u16, Json) {
        let call = format!("POST {}{path}", self.primary.url());
        let (status, text) = self
            .send(&call, headers, body.to_string().as_bytes())
            .unwrap();
        (status, serde_json::from_str(&text).unwrap_or(json!(text)))
    }

    /// A pipeline of version 3 on `default`: the baton and the results.
    fn pipe(&self, baton: Option<&str>, requests: Json) -> (Option<String>, Json) {
        let body = json!({ "baton": baton, "requests": requests });
        let (status, answer) = self.post("/v3/pipeline", &[], &body);
        assert_eq!(status, 200, "{answer}");
        let baton = answer["baton"].as_str().map(str::to_owned);
        (baton, answer["results"].clone())
    }

    /// A pipeline that must be refused as a whole: its status and its code.
    fn refused(&self, baton: &str, requests: Json) -> (u16, String) {
        let body = json!({ "baton": baton, "requests": requests });
        let (status, answer) = self.post("/v3/pipeline", &[], &body);
        (
            status,
            answer["code"].as_str().unwrap_or_default().to_owned(),
        )
    }

    /// One statement on a stream of its own.
    fn one(&self, stmt: Json) -> Json {
        let (baton, results) = self.pipe(None, json!([execute(stmt), { "type": "close" }]));
        assert_eq!(baton, None);
        results[0].clone()
    }

    /// The same, which must succeed; its rows without types.
    fn rows(&self, sql: &str) -> Json {
        rows(&self.one(json!(sql)))
    }

    /// The same, which must fail; the code.
    fn code(&self, sql: &str) -> String {
        code(&self.one(json!(sql)))
    }

    fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let start = Instant::now();
        while !holds() {
            assert!(start.elapsed() < Duration::from_secs(30), "never {what}");
            std::thread::yield_now();
        }
    }

    fn admin(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (u16, String) {
        let call = format!("{method} {}{path}", self.primary.admin_url());
        self.send(&call, headers, body.as_bytes()).unwrap()
    }

    fn create(&self, name: &str) -> (u16, String) {
        let headers = [("content-type", "application/json")];
        self.admin(
            "POST",
            &format!("/v1/namespaces/{name}/create"),
            &headers,
            "{}",
        )
    }
}

/// A request that runs a text, or a whole statement.
fn execute(stmt: Json) -> Json {
    let stmt = match stmt {
        Json::String(sql) => json!({ "sql": sql }),
        whole => whole,
    };
    json!({ "type": "execute", "stmt": stmt })
}

fn rows(outcome: &Json) -> Json {
    assert_eq!(outcome["type"], "ok", "{outcome}");
    let rows = outcome["response"]["result"]["rows"].as_array().unwrap();
    let plain = |value: &Json| match value["type"].as_str().unwrap() {
        "blob" => value["base64"].clone(),
        _ => value["value"].clone(),
    };
    let rows = rows
        .iter()
        .map(|row| row.as_array().unwrap().iter().map(plain).collect());
    Json::Array(rows.map(Json::Array).collect())
}

fn code(outcome: &Json) -> String {
    assert_eq!(outcome["type"], "error", "{outcome}");
    outcome["error"]["code"].as_str().unwrap().to_owned()
}
