//! Failed tokens are slowed down, right ones never; a trusted proxy's word about the client counts.
//!
//! It must not know how failures are counted.

use std::fs;

use nimbus_e2e::{Options, Server};
use serde_json::Value as Json;

fn wrong() -> String {
    format!("nimbus_at_{}", "A".repeat(43))
}

#[test]
fn after_ten_failures_a_client_is_slowed_down_and_a_right_token_is_not() {
    let server = Server::start(Options::new());
    let (client, anonymous) = (server.client(), server.anonymous());
    let guess = client.with_token(Some(wrong()));
    for _ in 0..10 {
        guess.get("/api/tenants").refused(401, "auth.unauthorized");
    }
    // Many at once: those for whom there is no place to wait are told to come back.
    let answers: Vec<_> = std::thread::scope(|scope| {
        let send = || guess.apart().get("/api/tenants");
        let all: Vec<_> = (0..100).map(|_| scope.spawn(send)).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let statuses: Vec<u16> = answers.iter().map(|reply| reply.status).collect();
    assert!(
        statuses.iter().all(|status| [401, 429].contains(status)),
        "{statuses:?}"
    );
    let busy: Vec<_> = answers.iter().filter(|reply| reply.status == 429).collect();
    assert!(!busy.is_empty(), "nobody was told to come back");
    for reply in busy {
        assert_eq!(reply.header("retry-after"), Some("1"));
        assert_eq!(reply.json()["error"]["code"], "rate.resource_exhausted");
    }
    // From the same address, in the same second.
    client.get("/api/tenants").expect(200);
    // Without a credential nobody guesses: the usual answer.
    for _ in 0..30 {
        anonymous
            .get("/api/tenants")
            .refused(401, "auth.unauthorized");
    }
    let text = fs::read_to_string(server.home().audit_log()).unwrap();
    assert!(text.contains("\"auth.too_many_failures\""));
    assert_eq!(
        text.lines().count(),
        10 + 100 + 1 + 30,
        "every try is in the log"
    );
}

#[test]
fn the_word_of_a_trusted_proxy_counts() {
    let server = Server::start(Options::new().args(&["--trusted-proxy", "127.0.0.0/8"]));
    let address = |forwarded: &[(&str, &str)]| {
        server
            .anonymous()
            .send_with("GET", "/api/tenants", forwarded, None)
            .unwrap()
            .refused(401, "auth.unauthorized");
        let text = fs::read_to_string(server.home().audit_log()).unwrap();
        let last: Json = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        last["clientAddr"].as_str().unwrap().to_owned()
    };
    assert_eq!(address(&[]), "127.0.0.1");
    assert_eq!(
        address(&[("x-forwarded-for", "203.0.113.9")]),
        "203.0.113.9"
    );
    assert_eq!(
        address(&[("x-forwarded-for", "6.6.6.6, 203.0.113.9, 127.0.0.5")]),
        "203.0.113.9"
    );
    assert_eq!(address(&[("x-forwarded-for", "nonsense")]), "127.0.0.1");
    assert_eq!(address(&[("forwarded", "for=203.0.113.9")]), "127.0.0.1");
    let refused = Server::refused(Options::new().args(&["--trusted-proxy", "proxy.example"]));
    let refused = refused.says(&["--trusted-proxy", "proxy.example"]);
    assert_eq!(refused.code, Some(2));
}
