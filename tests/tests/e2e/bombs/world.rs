//! A server under bombs: each is sent, answered, and weighed by what it added to the process.
//!
//! It must not know what is in a bomb.

use std::fmt::Write as _;

use nimbus_e2e::{Client, Options, Reply, Server, process, raw};
use serde_json::json;

/// Most that one bomb may add to the memory of the process, in KiB. The largest body that is read
/// at all has 8 MiB.
pub const GROWTH_KIB: u64 = 16 * 1024;

pub struct World {
    pub server: Server,
    client: Client,
    token: String,
    /// Method and path of every route that takes JSON.
    pub routes: Vec<(String, String)>,
    /// The growth of each bomb in KiB, and the most it may be.
    grown: Vec<(u64, String)>,
    pub most: u64,
}

impl World {
    pub fn new() -> World {
        let server = Server::start(Options::new());
        let client = server.client();
        client.create_tenant("acme");
        let id = client.insert("acme", "notes", &json!({"text": "kept"}));
        let document = client.get("/openapi.json").expect(200).json();
        let mut routes = Vec::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                if operation["requestBody"]["content"]["application/json"].is_object() {
                    routes.push((method.to_uppercase(), fill(path, &id)));
                }
            }
        }
        assert!(routes.len() >= 7, "{routes:?}");
        let token = server.home().token();
        // Threads, caches and the first reading of each kind of body are not a bomb's.
        let world = World {
            server,
            client,
            token,
            routes,
            grown: Vec::new(),
            most: GROWTH_KIB,
        };
        let plain = format!("{{\"x\":\"{}\"}}", "y".repeat(1 << 20));
        for (method, path) in &world.routes {
            raw::exchange(
                world.server.address(),
                &world.request(method, path, "", plain.as_bytes()),
            )
            .unwrap()
            .refused(400, "op.invalid_input");
        }
        world
    }

    pub fn head(&self, method: &str, path: &str, headers: &str) -> String {
        format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\n\
             Content-Type: application/json\r\nConnection: close\r\n{headers}",
            self.token
        )
    }

    fn request(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
        let mut head = self.head(method, path, headers);
        let _ = write!(head, "Content-Length: {}\r\n\r\n", body.len());
        [head.as_bytes(), body].concat()
    }

    /// Runs one bomb and checks what it left: an answer, a server that lives, hardly any memory.
    pub fn explode(&mut self, name: &str, send: impl FnOnce(&World) -> Reply) -> Reply {
        let pid = self.server.pid();
        process::forget_peak(pid);
        let before = process::resident_kib(pid);
        let reply = send(self);
        let grown = process::peak_kib(pid).saturating_sub(before);
        self.grown.push((grown, name.to_owned()));
        assert!(grown < self.most, "{name}: the server grew by {grown} KiB");
        self.client.get("/health").expect(200);
        reply
    }

    /// Sends the same body to every route that takes one.
    pub fn everywhere(&mut self, name: &str, headers: &str, body: &[u8], status: u16, code: &str) {
        for (method, path) in self.routes.clone() {
            let what = format!("{name}: {method} {path}");
            // A bundle may be 200 MB, so its form is what it fails on.
            let (status, code) = match status == 413 && path.ends_with("/deployments") {
                true => (400, "op.invalid_input"),
                false => (status, code),
            };
            let reply = self.explode(&what, |world| {
                let request = world.request(&method, &path, headers, body);
                let reply = raw::exchange(world.server.address(), &request);
                reply.unwrap_or_else(|| panic!("{what}: no answer"))
            });
            assert_eq!(reply.status, status, "{what}: {}", reply.text());
            let error = reply.refused(status, code).error();
            let message = error["message"].as_str().unwrap();
            assert!(message.len() < 1_000, "{what}: {message}");
        }
    }

    /// Checks that nothing was written and nobody panicked, and prints the largest growths.
    pub fn check(mut self, name: &str) {
        assert_eq!(self.client.tenants(), ["acme"]);
        let documents = self.client.documents("acme", "notes");
        assert_eq!(documents.len(), 1);
        assert_eq!(documents[0]["text"], "kept");
        self.client.check_consistency("acme");
        let log = self.server.log();
        assert!(!log.contains("panicked") && !log.contains("ERROR"), "{log}");
        self.grown.sort();
        self.grown.reverse();
        println!("{name}: {} requests; KiB grown at most:", self.grown.len());
        for (grown, what) in self.grown.iter().take(5) {
            println!("  {grown:6} {what}");
        }
    }
}

/// The path with something in each brace.
fn fill(path: &str, id: &str) -> String {
    let part = |part: &str| match part {
        "{tenant}" => "acme".to_owned(),
        "{table}" => "notes".to_owned(),
        "{id}" => id.to_owned(),
        other if other.starts_with('{') => "x1".to_owned(),
        other => other.to_owned(),
    };
    path.split('/').map(part).collect::<Vec<_>>().join("/")
}
