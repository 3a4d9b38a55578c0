//! Functions on a database that servers share: the official clients find the same there, and what one server
//! deployed or committed the other runs and reads at once.

use std::sync::Arc;

use nimbus_e2e::{Database, Home, Options, Server};
use serde_json::{Value as Json, json};

use super::World;
use super::clients::{node, python_client};

#[test]
fn the_npm_client_finds_everything_on_postgres() {
    let database = Database::postgres();
    let world = World::chat_on(Options::new().on(&database));
    node(&world, include_str!("http_client.mjs"));
    node(&world, include_str!("write_skew.mjs"));
}

#[test]
fn the_python_client_finds_everything_on_postgres() {
    let database = Database::postgres();
    python_client(&World::chat_on(Options::new().on(&database)));
}

fn value(server: &Server, kind: &str, path: &str, args: &Json) -> Json {
    let body = json!({"path": path, "args": args, "format": "json"});
    let reply = server
        .anonymous()
        .post(&format!("/convex/demo/api/{kind}"), &body);
    let outcome = reply.expect(200).json();
    assert_eq!(outcome["status"], "success", "{path}: {outcome}");
    outcome["value"].clone()
}

#[test]
fn a_second_server_runs_what_the_first_deployed_on_what_it_committed() {
    let database = Database::postgres();
    let world = World::chat_on(Options::new().on(&database));
    let first = &world.server;
    let installation = database.ask("SELECT id FROM nimbus_provider.installation");
    let options = Options::new()
        .on(&database)
        .home(&Arc::new(Home::new()))
        .args(&["--join-installation", &installation]);
    let second = Server::start(options);
    let name = json!({"name": "both"});
    let count = |server: &Server| value(server, "query", "counters:get", &name).as_f64();
    let increment =
        |server: &Server| value(server, "mutation", "counters:increment", &name).as_f64();
    for n in 1..=20 {
        let (writer, reader) = if n % 2 == 0 {
            (first, &second)
        } else {
            (&second, first)
        };
        // What is kept of the query's last run is not what the other server committed since.
        assert_eq!(count(reader), Some(f64::from(n - 1)));
        assert_eq!(increment(writer), Some(f64::from(n)));
        assert_eq!(count(reader), Some(f64::from(n)));
    }
    world.app.edit(
        "convex/counters.ts",
        "await add(ctx, name, 1)",
        "await add(ctx, name, 100)",
    );
    world.app.deployed(first, "demo");
    assert_eq!(increment(&second), Some(120.0));
}
