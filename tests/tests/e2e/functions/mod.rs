//! Functions: applications of `tests/apps` are deployed by `nimbus deploy` and called by the official clients.
//!
//! The scripts beside this file use the packages as they come from the registries; each checks by itself and
//! prints a last word, so that a script that ends early is no success.

mod bombs;
mod calls;
mod clients;
mod deploys;
mod policies;
mod quotas;
mod refusals;
mod shared;

use nimbus_e2e::{App, Client, Options, Reply, Server, files};
use serde_json::{Value as Json, json};

/// The variable without which the chat cannot be deployed.
const ISSUER: &str = "https://id.example";

/// Calls a function of the tenant `demo`.
fn call(client: &Client, kind: &str, path: &str, args: &Json) -> Reply {
    let body = json!({"path": path, "args": args, "format": "convex_encoded_json"});
    client.post(&format!("/convex/demo/api/{kind}"), &body)
}

/// A server with the tenant `demo`, to which an application is deployed.
struct World {
    server: Server,
    app: App,
}

impl World {
    /// A server without a deployment.
    fn with(app: App) -> World {
        World::started(app, Options::new())
    }

    fn started(app: App, options: Options) -> World {
        let server = Server::start(options);
        server.client().create_tenant("demo");
        World { server, app }
    }

    /// The chat, deployed.
    fn chat() -> World {
        World::chat_on(Options::new())
    }

    /// The chat, deployed to a server with these options.
    fn chat_on(options: Options) -> World {
        let world = World::started(App::named("chat"), options);
        world.set("CHAT_ISSUER", ISSUER);
        world.app.deployed(&world.server, "demo");
        world
    }

    fn client(&self) -> Client {
        self.server.client()
    }

    /// `nimbus <command> --tenant demo --url …`.
    fn nimbus(&self, command: &[&str]) -> nimbus_e2e::Finished {
        let base = self.server.base();
        let place = ["--tenant", "demo", "--url", &base];
        self.server.home().run([command, &place].concat())
    }

    fn set(&self, name: &str, value: &str) {
        self.nimbus(&["env", "set", name, value]).expect(0);
    }

    /// Where the official clients are pointed to.
    fn url(&self) -> String {
        format!("{}/convex/demo", self.server.base())
    }

    /// Calls a function as anybody may.
    fn call(&self, kind: &str, path: &str, args: &Json) -> Reply {
        call(&self.server.anonymous(), kind, path, args)
    }

    /// The value of a function that must succeed.
    fn value(&self, kind: &str, path: &str, args: &Json) -> Json {
        let outcome = self.call(kind, path, args).expect(200).json();
        assert_eq!(outcome["status"], "success", "{path}: {outcome}");
        outcome["value"].clone()
    }

    /// The text of the error of a function that must fail.
    fn failure(&self, kind: &str, path: &str, args: &Json) -> String {
        let outcome = self.call(kind, path, args).expect(200).json();
        assert_eq!(outcome["status"], "error", "{path}: {outcome}");
        outcome["errorMessage"].as_str().unwrap().to_owned()
    }

    /// Deployments as the server lists them, newest first.
    fn deployments(&self) -> Vec<Json> {
        let listed = self
            .client()
            .get("/api/tenants/demo/deployments")
            .expect(200)
            .json();
        listed["deployments"].as_array().unwrap().clone()
    }
}

/// Without it the run on Postgres could be one on SQLite, and pass.
#[test]
fn tenants_are_where_the_run_wants_them() {
    let world = World::with(App::of(&[]));
    let files = files::names(&world.server.data_dir());
    let elsewhere = std::env::var("NIMBUS_TEST_DATABASE").is_ok_and(|name| !name.is_empty());
    assert_eq!(files.contains("demo.sqlite3"), !elsewhere, "{files:?}");
}
