//! Documents of a function by id, with the argument errors of convex.md 2.3, 2.4 and 5.4.
//!
//! The writes themselves are those of [`Transaction`]. Which function asks is not known here.

use std::collections::BTreeMap;
use std::sync::Arc;

use nimbus_core::{DocumentId, Object, TableName, TableNames, Value};

use super::query::FunctionQuery;
use super::{FunctionError, FunctionResult, stream};
use crate::engine::Document;
use crate::engine::catalog::TableDef;
use crate::engine::txn::{Transaction, lookup};
use crate::error::StoreError;
use crate::provider::Keyspace;

/// What is done with a document, as errors name it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    Get,
    Patch,
    Replace,
    Delete,
}

impl Call {
    const fn name(self) -> &'static str {
        match self {
            Call::Get => "db.get",
            Call::Patch => "db.patch",
            Call::Replace => "db.replace",
            Call::Delete => "db.delete",
        }
    }

    fn nonexistent(self, id: &str) -> FunctionError {
        let what = if self == Call::Delete {
            "Delete"
        } else {
            "Update"
        };
        let message = format!("{what} on nonexistent document ID {id}");
        FunctionError::user("NonexistentDocument", message)
    }
}

impl Transaction {
    /// The document with this id, or `None`. With `table`, the id must be of that table.
    ///
    /// # Errors
    /// `User` for text that is not an id, or an id of another table; when the transaction read too much.
    pub async fn fn_get(
        &mut self,
        id: &str,
        table: Option<&TableName>,
    ) -> FunctionResult<Option<Document>> {
        let id = self.parse_for(Call::Get, id, table)?;
        self.read(id).await
    }

    /// The id in its canonical form if it is one of this table.
    pub fn normalize_id(&mut self, table: &str, id: &str) -> Option<String> {
        let id: DocumentId = id.parse().ok()?;
        let def = lookup(&mut self.view, &table.parse().ok()?)?;
        (def.number == id.table).then(|| id.to_string())
    }

    /// Inserts a document; the table exists from then on.
    ///
    /// # Errors
    /// `User` for a bad table name or value, a system field, a document against the schema; when the
    /// transaction wrote too much.
    pub async fn fn_insert(&mut self, table: &str, fields: Object) -> FunctionResult<DocumentId> {
        let argument =
            |name, why: &dyn std::fmt::Display| FunctionError::argument(name, "db.insert", why);
        let table: TableName = table.parse().map_err(|e| argument("table", &e))?;
        for name in ["_id", "_creationTime"] {
            if fields.contains_key(name) {
                let why =
                    format!("the document has the field `{name}`, which is set by the system");
                return Err(argument("value", &why));
            }
        }
        self.for_function = true;
        let inserted = self.insert(&table, fields).await;
        self.for_function = false;
        inserted.map_err(|e| match e {
            StoreError::InvalidInput { message } => argument("value", &message),
            other => other.into(),
        })
    }

    /// Shallow merge; `None` removes a field. Returns the document afterwards.
    ///
    /// # Errors
    /// As [`Transaction::fn_insert`] and [`Transaction::fn_get`]; `User` if there is no such document, or
    /// for another `_id` or `_creationTime` than it has.
    pub async fn fn_merge(
        &mut self,
        id: &str,
        table: Option<&TableName>,
        mut patch: BTreeMap<String, Option<Value>>,
    ) -> FunctionResult<Document> {
        let (id, def, old) = self.existing_for(Call::Patch, id, table).await?;
        check_system_fields(&old, |name| patch.remove(name))?;
        self.for_function = true;
        let merged = self.merge(&def.name, id, patch).await;
        self.for_function = false;
        merged.map_err(|e| bad_value(Call::Patch, e))?;
        self.written(id).await
    }

    /// Replaces every field but `_id` and `_creationTime`. Returns the document afterwards.
    ///
    /// # Errors
    /// As [`Transaction::fn_merge`].
    pub async fn fn_replace(
        &mut self,
        id: &str,
        table: Option<&TableName>,
        mut fields: Object,
    ) -> FunctionResult<Document> {
        let (id, def, old) = self.existing_for(Call::Replace, id, table).await?;
        check_system_fields(&old, |name| fields.remove(name).map(Some))?;
        self.for_function = true;
        let replaced = self.replace(&def.name, id, fields).await;
        self.for_function = false;
        replaced.map_err(|e| bad_value(Call::Replace, e))?;
        self.written(id).await
    }

    /// Deletes a document and returns it.
    ///
    /// # Errors
    /// As [`Transaction::fn_merge`].
    pub async fn fn_remove(
        &mut self,
        id: &str,
        table: Option<&TableName>,
    ) -> FunctionResult<Document> {
        let (id, def, old) = self.existing_for(Call::Delete, id, table).await?;
        self.for_function = true;
        let deleted = self.delete(&def.name, id).await;
        self.for_function = false;
        deleted?;
        Ok(old)
    }

    /// The number of documents in a table; all of it counts as read, for conflicts; for the
    /// limits, each 1,000 documents count as a query.
    ///
    /// # Errors
    /// `User` for a bad table name; too many queries in the transaction; when the table has more bytes than the
    /// engine reads in one transaction.
    pub async fn fn_count(&mut self, table: &str) -> FunctionResult<u64> {
        self.usage.count_query()?;
        let query = FunctionQuery::whole_table(table)?;
        match stream::span_of(&mut self.view, &query)? {
            Some(span) => stream::count(&mut self.view, &mut self.usage, span).await,
            None => Ok(0),
        }
    }

    fn parse_for(
        &mut self,
        call: Call,
        text: &str,
        table: Option<&TableName>,
    ) -> FunctionResult<DocumentId> {
        let argument = |why: String| FunctionError::argument("id", call.name(), why);
        let id: DocumentId = text
            .parse()
            .map_err(|e| argument(format!("Unable to decode ID: {e}")))?;
        let Some(table) = table else { return Ok(id) };
        match lookup(&mut self.view, table) {
            Some(def) if def.number == id.table => Ok(id),
            _ => {
                let owner = self.table_names().name(id.table);
                let found =
                    owner.map_or("an unknown table".into(), |name| format!("table `{name}`"));
                Err(argument(format!(
                    "Expected an ID of table `{table}`, found one of {found}"
                )))
            }
        }
    }

    /// The document that is to be changed, with its table.
    async fn existing_for(
        &mut self,
        call: Call,
        text: &str,
        table: Option<&TableName>,
    ) -> FunctionResult<(DocumentId, Arc<TableDef>, Document)> {
        let id = self.parse_for(call, text, table)?;
        // First: it can be a newer state that is read than the catalogue's until then.
        let old = self.read(id).await?;
        let def = self.view.catalog.by_number(id.table).cloned();
        match (def, old) {
            (Some(def), Some(old)) => Ok((id, def, old)),
            _ => Err(call.nonexistent(text)),
        }
    }

    /// Reads one document. Its key has the table's number, so the table need not be relied on.
    async fn read(&mut self, id: DocumentId) -> FunctionResult<Option<Document>> {
        let key = id.key();
        if !self.view.has_read(Keyspace::Docs, &key) {
            self.usage.count_query()?;
        }
        let Some(json) = self.view.get(Keyspace::Docs, &key).await? else {
            return Ok(None);
        };
        self.usage.count_read(json.len())?;
        Ok(Some(Document { id, json }))
    }

    /// The document that was just written.
    async fn written(&mut self, id: DocumentId) -> FunctionResult<Document> {
        let json = self.view.get(Keyspace::Docs, &id.key()).await?;
        let json =
            json.ok_or_else(|| StoreError::corrupt(format!("{id} was written and is not there")))?;
        Ok(Document { id, json })
    }
}

/// Takes the system fields out of a write; they may be given, but not changed.
fn check_system_fields(
    old: &Document,
    mut take: impl FnMut(&str) -> Option<Option<Value>>,
) -> FunctionResult<()> {
    let mut fields = None;
    for name in ["_id", "_creationTime"] {
        let Some(given) = take(name) else { continue };
        let fields = match &fields {
            Some(fields) => fields,
            None => fields.insert(old.fields()?),
        };
        if given.as_ref() != fields.get(name) {
            let show = |value: Option<&Value>| value.map_or("undefined".into(), Value::to_json);
            let message = format!(
                "Provided `{name}` field value {} does not match the document's, {}",
                show(given.as_ref()),
                show(fields.get(name))
            );
            return Err(FunctionError::user("InvalidArgument", message));
        }
    }
    Ok(())
}

fn bad_value(call: Call, error: StoreError) -> FunctionError {
    match error {
        StoreError::InvalidInput { message } => {
            FunctionError::argument("value", call.name(), message)
        }
        other => other.into(),
    }
}
