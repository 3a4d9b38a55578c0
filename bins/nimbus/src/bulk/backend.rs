//! One table, through a server or an engine of our own: the five calls that import and export
//! need. It must not know file formats beyond the lines that the server streams.

use std::io::{BufRead, BufReader};

use anyhow::{Context as _, bail};
use nimbus_auth::Permission;
use nimbus_core::{TableName, TenantId, Value};
use nimbus_storage::{FieldType, ImportRow, StoreError, StoreResult, Tenant};
use serde_json::json;

use super::reader::Chunk;
use crate::place::{Backend, Offline};
use crate::remote::Remote;

/// One table of one tenant.
pub(crate) struct Table<'b> {
    backend: &'b Backend,
    tenant: &'b TenantId,
    table: &'b TableName,
}

impl<'b> Table<'b> {
    pub(crate) fn new(
        backend: &'b Backend,
        tenant: &'b TenantId,
        table: &'b TableName,
    ) -> Table<'b> {
        Table {
            backend,
            tenant,
            table,
        }
    }

    fn path(&self, rest: &str) -> String {
        format!("/api/tenants/{}/{rest}", self.tenant)
    }

    fn offline<T>(
        &self,
        offline: &Offline,
        work: impl AsyncFnOnce(Tenant) -> StoreResult<T>,
    ) -> anyhow::Result<T> {
        let write = Permission::WriteData;
        let context = offline.caller.tenant_context(self.tenant.clone(), write)?;
        offline.runtime.block_on(async {
            let tenant = offline.store.tenant(&context, write).await?;
            Ok(work(tenant).await?)
        })
    }

    /// Lines of the import that are done.
    pub(crate) fn import_progress(&self, name: &str) -> anyhow::Result<u64> {
        match self.backend {
            Backend::Server(remote) => {
                let answer = remote.call(
                    "GET",
                    &self.path(&format!("import/{}/{name}", self.table)),
                    None,
                )?;
                Ok(answer["lines"].as_u64().unwrap_or(0))
            }
            Backend::Offline(offline) => {
                self.offline(offline, async |t| t.import_progress(self.table, name).await)
            }
        }
    }

    /// Inserts a chunk; returns the documents inserted.
    pub(crate) fn import_chunk(&self, name: &str, chunk: Chunk) -> anyhow::Result<u64> {
        match self.backend {
            Backend::Server(remote) => {
                let body = chunk_body(name, &chunk);
                let path = self.path(&format!("import/{}", self.table));
                let answer = remote.send("POST", &path, body)?;
                Ok(answer["inserted"].as_u64().unwrap_or(0))
            }
            Backend::Offline(offline) => {
                let row = |(line, fields)| ImportRow { line, fields };
                let rows = chunk.rows.into_iter().map(row).collect();
                let last_line = chunk.last_line;
                self.offline(offline, async |t| {
                    t.import_chunk(self.table, name, rows, last_line).await
                })
            }
        }
    }

    /// Forgets the progress of an import that is complete.
    pub(crate) fn finish_import(&self, name: &str) -> anyhow::Result<()> {
        match self.backend {
            Backend::Server(remote) => {
                remote.call(
                    "DELETE",
                    &self.path(&format!("import/{}/{name}", self.table)),
                    None,
                )?;
                Ok(())
            }
            Backend::Offline(offline) => {
                self.offline(offline, async |t| t.finish_import(self.table, name).await)
            }
        }
    }

    /// Declared fields with their types; none without a schema.
    pub(crate) fn field_types(&self) -> anyhow::Result<Vec<(String, FieldType)>> {
        match self.backend {
            Backend::Server(remote) => self.remote_field_types(remote),
            Backend::Offline(offline) => {
                self.offline(offline, async |t| match t.table_schema(self.table).await {
                    Ok(schema) => Ok(schema
                        .fields
                        .into_iter()
                        .map(|f| (f.name, f.field_type))
                        .collect()),
                    Err(StoreError::SchemaNotFound { .. }) => Ok(Vec::new()),
                    Err(other) => Err(other),
                })
            }
        }
    }

    fn remote_field_types(&self, remote: &Remote) -> anyhow::Result<Vec<(String, FieldType)>> {
        let all = remote.call("GET", &self.path("schema"), None)?;
        let fields = all["tables"][self.table.as_str()]["fields"]
            .as_array()
            .cloned();
        let mut out = Vec::new();
        for field in fields.unwrap_or_default() {
            let name = field["name"].as_str().unwrap_or_default().to_owned();
            out.push((name, serde_json::from_value(field["field_type"].clone())?));
        }
        Ok(out)
    }

    /// Hands every document to `each` as JSON text, oldest first, all as of one commit.
    pub(crate) fn export(
        &self,
        each: &mut dyn FnMut(&[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        match self.backend {
            Backend::Server(remote) => {
                let body = remote.stream(&self.path(&format!("export/{}", self.table)))?;
                each_line(BufReader::with_capacity(256 * 1024, body), each)
            }
            Backend::Offline(offline) => {
                let mut export = self.offline(offline, async |t| t.export(self.table).await)?;
                loop {
                    let documents = offline.runtime.block_on(export.next())?;
                    if documents.is_empty() {
                        return Ok(());
                    }
                    for document in documents {
                        each(&document.json)?;
                    }
                }
            }
        }
    }
}

/// A body that is cut off is an error of its reader, and so is a last line without an end.
fn each_line(
    mut body: impl BufRead,
    each: &mut dyn FnMut(&[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let cut = "the server cut the export off; its log says why";
    let mut line = Vec::new();
    loop {
        line.clear();
        if body.read_until(b'\n', &mut line).context(cut)? == 0 {
            return Ok(());
        }
        match line.strip_suffix(b"\n") {
            Some(json) => each(json)?,
            None => bail!(cut),
        }
    }
}

/// The request body of a chunk, written straight from values so that no number changes.
fn chunk_body(name: &str, chunk: &Chunk) -> String {
    let mut body = json!({"import": name, "last_line": chunk.last_line}).to_string();
    body.pop();
    body.push_str(",\"rows\":[");
    for (i, (line, fields)) in chunk.rows.iter().enumerate() {
        if i > 0 {
            body.push(',');
        }
        body.push_str(&format!("{{\"line\":{line},\"fields\":"));
        Value::Object(fields.clone()).write_json(&mut body);
        body.push('}');
    }
    body.push_str("]}");
    body
}
