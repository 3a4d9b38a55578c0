//! Answers that come before the body was read: what becomes of the rest, and of the connection.

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{Answer, Fixture};

#[tokio::test]
async fn an_answer_before_the_body_leaves_nothing_of_it_on_the_connection() {
    let fixture = Fixture::start().await;
    fixture.tenant("demo").await;
    let token = format!("authorization: Bearer {}\r\n", fixture.token);
    let foreign = format!("{token}origin: https://evil.example\r\n");
    let typed = format!("{token}content-type: application/json\r\n");
    let cases: [(&str, &str, &str, u16); 9] = [
        ("POST", "/nope", "", 404),
        ("GET", "/health", "", 200),
        ("PUT", "/health", "", 405),
        ("POST", "/api/tenants", "", 401),
        ("POST", "/api/tenants", &foreign, 403),
        ("PUT", "/api/tenants", &typed, 405),
        ("POST", "/api/tenants", &token, 415),
        ("POST", "/api/tenants/%zz", &token, 400),
        ("POST", "/api/tenants/demo/prune", &token, 200),
    ];
    let hidden = "GET /api/hidden HTTP/1.1\r\nhost: a\r\n\r\n";
    for (method, path, headers, status) in cases {
        let what = format!("{method} {path}, {status}");
        let head = format!("{method} {path} HTTP/1.1\r\nhost: a\r\n{headers}");
        // The whole body is there: the connection serves on, and never from within the body.
        let mut stream = TcpStream::connect(fixture.address).await.unwrap();
        let whole = format!("{head}content-length: {}\r\n\r\n{hidden}", hidden.len());
        stream.write_all(whole.as_bytes()).await.unwrap();
        let answer = Answer::read(&mut stream, false).await;
        assert_eq!(answer.status, status, "{what}: {answer:?}");
        if answer.header("connection") != Some("close") {
            stream
                .write_all(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n")
                .await
                .unwrap();
            let next = Answer::read(&mut stream, false).await;
            assert_eq!(next.body, r#"{"ok":true}"#, "{what}: {next:?}");
        }
        // Half of it is there, or too much, or it is announced only: the answer says that it is
        // the last, and the server ends its side.
        let long = "x".repeat(65_537);
        for rest in [
            format!("content-length: 100\r\n\r\n{hidden}"),
            format!("content-length: 65537\r\n\r\n{long}"),
            "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\n".to_owned(),
            "transfer-encoding: chunked\r\n\r\nzz\r\n".to_owned(),
            "content-length: 5\r\nexpect: 100-continue\r\n\r\n".to_owned(),
        ] {
            let mut stream = TcpStream::connect(fixture.address).await.unwrap();
            stream
                .write_all(format!("{head}{rest}").as_bytes())
                .await
                .unwrap();
            let answer = Answer::read(&mut stream, false).await;
            assert_eq!(answer.status, status, "{what}: {answer:?}");
            let rest: String = rest.chars().take(60).collect();
            assert_eq!(
                answer.header("connection"),
                Some("close"),
                "{what} {rest}: {answer:?}"
            );
            let mut more = Vec::new();
            stream.read_to_end(&mut more).await.unwrap();
            assert_eq!(String::from_utf8_lossy(&more), "", "{what} {rest}");
        }
    }
    let hidden: Vec<_> = fixture.audit();
    assert!(hidden.iter().all(|line| line["path"] != "/api/hidden"));
}

#[tokio::test]
async fn a_long_answer_on_an_unread_body_is_sent_whole() {
    let fixture = Fixture::start().await;
    fixture.tenant("demo").await;
    // More than the buffers of both sockets take at once.
    let text = "x".repeat(900_000);
    for n in 0..14 {
        let fields = json!({"n": n, "text": text});
        fixture.insert("demo", "large", fields).await;
    }
    for rest in [
        "content-length: 100\r\n\r\nhalf",
        "transfer-encoding: chunked\r\n\r\nzz\r\n",
    ] {
        let raw = format!(
            "GET /api/tenants/demo/documents/large HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\n{rest}",
            fixture.token
        );
        let answer = fixture.raw(raw.as_bytes()).await;
        assert_eq!(
            (answer.status, answer.header("connection")),
            (200, Some("close"))
        );
        assert_eq!(answer.json()["data"].as_array().unwrap().len(), 14);
    }
}
