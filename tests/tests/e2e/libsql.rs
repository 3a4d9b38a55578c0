//! The libSQL primary of the tests is one for npm's `@libsql/client` as well, which is run unmodified; and it is a
//! process for tests that kill it.
//!
//! It must not know Nimbus: what Nimbus does with a primary is tested elsewhere.

use std::time::Duration;

use nimbus_e2e::databases::{PRIMARY_DIR, PRIMARY_PORTS};
use nimbus_e2e::{App, Client, Home};
use nimbus_libsql_primary::{Options, Primary};
use serde_json::json;

#[test]
fn the_npm_client_finds_a_primary() {
    let home = Home::new();
    let never = Duration::from_secs(3_600);
    let options = Options {
        auth_token: Some("secret".to_owned()),
        idle_timeout: never,
        lock_timeout: never,
        ..Options::default()
    };
    let hasty = Options {
        lock_timeout: Duration::from_millis(20),
        ..options.clone()
    };
    let primary = Primary::start(home.path().join("primary"), options).unwrap();
    let hasty = Primary::start(home.path().join("hasty"), hasty).unwrap();
    let admin = Client::new(primary.admin_url(), None);
    admin
        .post("/v1/namespaces/other/create", &json!({}))
        .expect(200);
    let app = App::of(&[]);
    let (url, hasty_url) = (primary.url(), hasty.url());
    let args = [&*url, "secret", &*hasty_url];
    let finished = app.node(&home, include_str!("libsql.mjs"), &args).expect(0);
    assert!(finished.stdout.ends_with("all is well\n"), "{finished:?}");
    assert_eq!((primary.open_streams(), hasty.open_streams()), (0, 0));
}

#[test]
#[ignore = "it runs until it is killed, by the tests that start it"]
fn the_process_of_a_primary() {
    let (dir, ports) = (
        std::env::var(PRIMARY_DIR).unwrap(),
        std::env::var(PRIMARY_PORTS).unwrap(),
    );
    let (port, admin_port) = ports.split_once(',').unwrap();
    let options = Options {
        port: port.parse().unwrap(),
        admin_port: admin_port.parse().unwrap(),
        ..Options::default()
    };
    let _primary = Primary::start(dir, options).unwrap();
    loop {
        std::thread::park();
    }
}
