//! The backup route: what it refuses, and that a backup which cannot go on does not look like one.

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{Ask, Fixture};

const BACKUP: &str = "/api/system/backup";

#[tokio::test]
async fn what_is_refused_is_refused_before_the_first_byte() {
    let fixture = Fixture::start().await;
    fixture.tenant("demo").await;
    for query in [
        "tenant=",
        "tenant=_a",
        "tenant=a%2Fb",
        "plain=yes",
        "plain=true&plain=true",
        "seal=false",
    ] {
        let answer = fixture.admin(Ask::get(&format!("{BACKUP}?{query}"))).await;
        answer.expect_error(400, "op.invalid_input");
    }
    let query = format!("{BACKUP}?tenant=demo&tenant=nobody&tenant=none");
    let missing = fixture.admin(Ask::get(&query)).await;
    missing.expect_error(404, "session.tenant_not_found");
    assert!(missing.body.contains("nobody, none"), "{missing:?}");
    // Without chunks a backup that was cut off would look whole.
    let bearer = format!("authorization: Bearer {}", fixture.token);
    let old = fixture
        .raw(format!("GET {BACKUP} HTTP/1.0\r\n{bearer}\r\n\r\n").as_bytes())
        .await;
    old.expect_error(400, "op.invalid_input");
    assert!(old.body.contains("HTTP/1.1"), "{old:?}");
    let plain = fixture
        .admin(Ask::get(&format!(
            "{BACKUP}?tenant=demo&tenant=demo&plain=true"
        )))
        .await;
    assert_eq!(plain.status, 200);
    assert!(plain.body.starts_with("NIMBUSBK"));
    let line = fixture.audit_of(plain.request_id()).remove(0);
    assert_eq!(line["reason"], "backup.begun_plain");
}

#[tokio::test]
async fn a_backup_that_cannot_go_on_is_cut_off_for_all_to_see() {
    let fixture = Fixture::start().await;
    fixture.tenant("demo").await;
    // More than what lies in the buffers between.
    let text = "x".repeat(900_000);
    for n in 0..40 {
        fixture
            .insert("demo", "rows", json!({"n": n, "s": text}))
            .await;
    }
    let mut stream = TcpStream::connect(fixture.address).await.unwrap();
    let ask = Ask::get(BACKUP).bearer(&fixture.token);
    stream.write_all(&ask.bytes()).await.unwrap();
    let mut front = vec![0; 1_000];
    stream.read_exact(&mut front).await.unwrap();
    assert!(front.starts_with(b"HTTP/1.1 200"));
    let delete = Ask::new("DELETE", "/api/tenants/demo");
    assert_eq!(fixture.admin(delete).await.status, 204);
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest).await;
    assert!(
        !rest.ends_with(b"0\r\n\r\n"),
        "it ended as if it were whole"
    );
    assert!(rest.len() < 36_000_000, "{}", rest.len());
}
