//! Clients that leave, writes that go on, and the end of a server.

use std::time::Duration;

use nimbus_http::{ServerConfig, Stopped};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

use crate::harness::{Answer, Ask, Fixture};

#[tokio::test]
async fn shutdown_lets_requests_in_progress_finish() {
    let mut fixture = Fixture::start().await;
    fixture.tenant("demo").await;
    let body = json!({"table": "tasks", "fields": {"n": 1}}).to_string();
    let head = format!(
        "POST /api/tenants/demo/documents HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        fixture.token,
        body.len()
    );
    let mut stream = TcpStream::connect(fixture.address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut idle = TcpStream::connect(fixture.address).await.unwrap();
    idle.write_all(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(Answer::read(&mut idle, false).await.status, 200);

    fixture.tell_to_stop();
    // It no longer listens, and still waits for the request that has begun.
    while TcpStream::connect(fixture.address).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(fixture.is_running());
    stream.write_all(body.as_bytes()).await.unwrap();
    let answer = Answer::read(&mut stream, false).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(fixture.ended().await, Stopped::Drained);
    assert_eq!(fixture.audit_of(answer.request_id()).len(), 1);
}

#[tokio::test]
async fn shutdown_does_not_wait_for_ever() {
    let mut config = ServerConfig::default();
    config.drain_timeout = Duration::from_millis(100);
    let mut fixture = Fixture::start_with(config).await;
    let head = format!(
        "POST /api/tenants HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n",
        fixture.token
    );
    let mut stream = TcpStream::connect(fixture.address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    // The server has it once it says so in its counters.
    loop {
        let text = fixture.admin(Ask::get("/metrics")).await.body;
        if text.contains("nimbus_http_connections 2") {
            break;
        }
        tokio::task::yield_now().await;
    }
    fixture.tell_to_stop();
    assert!(matches!(
        fixture.ended().await,
        Stopped::TimedOut { left: 1.. }
    ));
}

#[tokio::test]
async fn many_clients_write_at_once() {
    let fixture = Fixture::start().await;
    fixture.tenant("demo").await;
    let body = json!({"table": "tasks", "fields": {"n": 1}});
    let ask = Ask::post("/api/tenants/demo/documents")
        .bearer(&fixture.token)
        .json(&body);
    let bytes = ask.bytes();
    let writers = (0..64).map(|_| async {
        let mut ids = Vec::new();
        for _ in 0..5 {
            let answer = fixture.raw(&bytes).await;
            assert_eq!(answer.status, 201, "{answer:?}");
            ids.push(answer.json()["id"].as_str().unwrap().to_owned());
        }
        ids
    });
    let ids: std::collections::BTreeSet<String> = futures_util::future::join_all(writers)
        .await
        .into_iter()
        .flatten()
        .collect();
    assert_eq!(ids.len(), 320);
    let list = fixture
        .admin(Ask::get("/api/tenants/demo/documents/tasks"))
        .await
        .json();
    assert_eq!(list["data"].as_array().unwrap().len(), 320);
    let (_, stopped) = fixture.stop().await;
    assert_eq!(stopped, Stopped::Drained);
}
