//! Embeds `nimbus-storage` alone: two tenants, a schema with an index, a transaction that
//! moves a note between folders, a page, and a live query.
//!
//! Run with `cargo run -p nimbus-storage --example notes`.
#![allow(clippy::print_stdout)]

use std::sync::Arc;

use nimbus_storage::control::ControlDb;
use nimbus_storage::provider::sqlite::{SqliteOptions, SqliteProvider};
use nimbus_storage::{
    Engine, EngineOptions, FieldSchema, FieldType, Filter, FilterOp, IndexSchema, Query,
    TableSchema,
    core::{Object, TableName, TenantId, Value},
};

fn note(folder: &str, text: &str) -> Object {
    Object::from([
        ("folder".to_owned(), Value::String(folder.to_owned())),
        ("text".to_owned(), Value::String(text.to_owned())),
    ])
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;

    // A provider keeps one file per tenant; the control database knows which exist.
    let control = Arc::new(ControlDb::open(dir.path())?);
    let provider = SqliteProvider::open(SqliteOptions::new(dir.path()), control)?;
    let engine = Engine::new(Arc::new(provider), EngineOptions::default());

    for name in ["acme", "globex"] {
        engine.create_tenant(&name.parse::<TenantId>()?).await?;
    }
    let acme = engine.tenant(&"acme".parse()?).await?;
    let notes: TableName = "notes".parse()?;

    acme.put_schema(TableSchema {
        table: notes.clone(),
        fields: ["folder", "text"]
            .map(|name| FieldSchema {
                name: name.to_owned(),
                field_type: FieldType::String,
                required: true,
            })
            .to_vec(),
        indexes: vec![IndexSchema {
            name: "by_folder".parse()?,
            fields: vec!["folder".parse()?],
            id: None,
            state: None,
        }],
    })
    .await?;

    // A live query first, so that it sees what follows.
    let inbox = Query {
        filters: vec![Filter {
            field: "folder".parse()?,
            op: FilterOp::Eq,
            value: Value::String("inbox".into()),
        }],
        ..Query::table(notes.clone())
    };
    let mut live = acme.subscribe(inbox.clone()).await?;
    let first = live.next().await.ok_or("the tenant closed")?;
    println!(
        "inbox at commit {}: {} notes",
        first.sequence,
        first.documents.as_ref().map_or(0, |d| d.len())
    );

    // Acknowledged means durable: each insert returns after its sync.
    let id = acme.insert(&notes, note("inbox", "call Ann")).await?;
    acme.insert(&notes, note("inbox", "buy milk")).await?;
    let moved = acme
        .transact(|tx| {
            let notes = notes.clone();
            Box::pin(async move {
                let patch = Object::from([("folder".to_owned(), Value::String("done".into()))]);
                tx.patch(&notes, id, patch).await?;
                Ok(id)
            })
        })
        .await?;
    println!("moved {moved}");

    let page = acme.page(&inbox, 10, None).await?;
    for document in &page.documents {
        println!("{}", String::from_utf8_lossy(&document.json));
    }
    let newest = live.next().await.ok_or("the tenant closed")?;
    println!(
        "inbox at commit {}: {} notes",
        newest.sequence,
        newest.documents.as_ref().map_or(0, |d| d.len())
    );

    // The other tenant has no such table.
    let globex = engine.tenant(&"globex".parse()?).await?;
    println!(
        "globex: {} notes",
        globex.query(&Query::table(notes)).await?.len()
    );
    println!("consistent: {}", acme.consistency().await?.ok);
    drop((live, acme, globex));
    engine.close().await?;
    Ok(())
}
