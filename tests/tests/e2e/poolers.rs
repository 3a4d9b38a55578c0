//! PgBouncer in front of Postgres: what it takes away from sessions is found at the start, and what keeps sessions whole is
//! as good as the server itself.
//!
//! It must not know how either is told apart.

use nimbus_e2e::{Database, Options, Pooler, Server};
use serde_json::json;

fn by_way_of(pooler: &Pooler) -> Options {
    let flags = ["--tenant-provider", "postgres", "--postgres-url"];
    Options::new().args(&flags).args(&[pooler.url()])
}

#[test]
fn a_pooler_that_shares_sessions_is_refused_by_name() {
    let database = Database::private_postgres();
    for mode in ["transaction", "statement"] {
        let pooler = Pooler::before(&database, mode);
        let refused = Server::refused(by_way_of(&pooler)).expect(1);
        let place = format!("127.0.0.1:{}", pooler.port());
        refused.says(&[&place, "is a pooler", "use its session mode"]);
    }
    let made =
        "SELECT count(*) FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema$|public$)'";
    assert_eq!(database.ask(made), "0", "something was made before that");
}

#[test]
fn a_pooler_that_keeps_sessions_whole_is_as_good_as_the_server() {
    let database = Database::private_postgres();
    let pooler = Pooler::before(&database, "session");
    let mut server = Server::start(by_way_of(&pooler));
    let client = server.client();
    client.create_tenant("acme");
    std::thread::scope(|scope| {
        for writer in 0..16 {
            let client = server.client();
            scope.spawn(move || {
                for n in 0..10 {
                    client.insert("acme", "notes", &json!({"n": writer * 10 + n}));
                }
            });
        }
    });
    assert_eq!(client.documents("acme", "notes").len(), 160);
    assert!(server.terminate().success());
    // Past the pooler there is the same.
    let mut direct = Server::start(Options::new().home(server.home()).on(&database));
    let client = direct.client();
    assert_eq!(client.documents("acme", "notes").len(), 160);
    client.check_consistency("acme");
    client.delete("/api/tenants/acme").expect(204);
    assert_eq!(database.tenants_left(), "");
    assert!(direct.terminate().success());
}
