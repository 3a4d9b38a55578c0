//! Tables, their schema and their indexes, as the meta keyspace stores them.
//!
//! One meta row per table (`table/<name>`) holds everything about it, so that a transaction
//! which relied on a table's definition has exactly one key in its read set. Beside tables it has the list of
//! versions of the policy, which is asked for with every request. The catalog knows no documents and reads no
//! storage by itself.

use std::sync::Arc;

use bytes::Bytes;
use imbl::{HashMap, OrdMap};
use nimbus_core::{
    FieldPath, IndexName, Object, TableName, TableNames, TableNumber, Validator, Value,
};
use serde::{Deserialize, Serialize};

use super::app::{POLICY_KEY, Policies};
use crate::error::{StoreError, StoreResult, Violation};
use crate::provider::Keyspace;

/// Prefix of the meta rows that define tables.
pub(crate) const TABLE_PREFIX: &[u8] = b"table/";
/// Meta row with the counters from which table and index numbers are taken.
pub(crate) const COUNTERS_KEY: &[u8] = b"counters";
/// Tables that a tenant may have (convex.md 2.2).
pub(crate) const MAX_TABLES: usize = 10_000;
/// Indexes that a table may have.
pub const MAX_INDEXES: usize = 64;
/// Fields that an index may have.
pub const MAX_INDEX_FIELDS: usize = 16;
/// Fields that a schema may declare; a document has at most as many.
pub const MAX_SCHEMA_FIELDS: usize = 1024;

/// Type that a schema asks of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FieldType {
    /// A string.
    String,
    /// A float64 or an int64.
    Number,
    /// A boolean.
    Boolean,
    /// An array of anything.
    Array,
    /// An object of anything.
    Object,
    /// Any value, null included.
    Any,
}

impl FieldType {
    /// The word used in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            FieldType::String => "string",
            FieldType::Number => "number",
            FieldType::Boolean => "boolean",
            FieldType::Array => "array",
            FieldType::Object => "object",
            FieldType::Any => "any",
        }
    }

    fn accepts(self, value: &Value) -> bool {
        match self {
            FieldType::String => matches!(value, Value::String(_)),
            FieldType::Number => matches!(value, Value::Float64(_) | Value::Int64(_)),
            FieldType::Boolean => matches!(value, Value::Bool(_)),
            FieldType::Array => matches!(value, Value::Array(_)),
            FieldType::Object => matches!(value, Value::Object(_)),
            FieldType::Any => true,
        }
    }
}

/// One declared field of a table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FieldSchema {
    /// Top-level field name.
    pub name: String,
    /// Type of its value.
    pub field_type: FieldType,
    /// Whether every document must have it.
    #[serde(default)]
    pub required: bool,
}

/// Where an index stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IndexState {
    /// Writes maintain it; documents from before are being added; queries ignore it.
    Backfilling,
    /// Complete; queries use it.
    Enabled,
    /// No longer declared; its entries are being removed.
    Deleting,
}

/// One declared index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IndexSchema {
    /// Name, unique in its table.
    pub name: IndexName,
    /// Indexed fields in order; `_creationTime` and `_id` follow implicitly.
    pub fields: Vec<FieldPath>,
    /// Server-managed number; set on output, ignored on input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
    /// Server-managed state; set on output, ignored on input.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<IndexState>,
}

/// A table's declared constraints and indexes. Fields that are not declared are allowed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TableSchema {
    /// The table.
    pub table: TableName,
    /// Declared fields.
    pub fields: Vec<FieldSchema>,
    /// Declared indexes.
    pub indexes: Vec<IndexSchema>,
}

impl TableSchema {
    /// Checks the declaration itself (nimbus.md 2.7).
    ///
    /// # Errors
    /// [`StoreError::InvalidInput`] for a bad or repeated field name, an index without
    /// fields, a repeated index name or field, an index on an undeclared field, or too many.
    pub fn check(&self) -> StoreResult<()> {
        cap("fields", self.fields.len(), MAX_SCHEMA_FIELDS)?;
        cap("indexes", self.indexes.len(), MAX_INDEXES)?;
        let mut names = std::collections::HashSet::new();
        for field in &self.fields {
            check_field_name(&field.name)?;
            if !names.insert(field.name.as_str()) {
                return Err(StoreError::invalid(format!(
                    "field `{}` is declared twice",
                    clip(&field.name)
                )));
            }
        }
        let mut index_names = std::collections::HashSet::new();
        for index in &self.indexes {
            if !index_names.insert(&index.name) {
                return Err(StoreError::invalid(format!(
                    "index `{}` is declared twice",
                    index.name
                )));
            }
            self.check_index(index, &names)?;
        }
        Ok(())
    }

    fn check_index(
        &self,
        index: &IndexSchema,
        declared: &std::collections::HashSet<&str>,
    ) -> StoreResult<()> {
        let name = &index.name;
        if index.fields.is_empty() {
            return Err(StoreError::invalid(format!(
                "index `{name}` needs at least one field"
            )));
        }
        cap("index fields", index.fields.len(), MAX_INDEX_FIELDS)?;
        for (i, field) in index.fields.iter().enumerate() {
            if index.fields[..i].contains(field) {
                return Err(StoreError::invalid(format!(
                    "index `{name}` names field `{field}` twice"
                )));
            }
            let top = field.segments().next().unwrap_or_default();
            if top.starts_with('_') {
                return Err(StoreError::invalid(format!(
                    "index `{name}` may not name `{field}`: every index ends with _creationTime and _id by itself"
                )));
            }
            if !declared.contains(top) {
                return Err(StoreError::invalid(format!(
                    "index `{name}` names field `{field}`, which `fields` does not declare"
                )));
            }
        }
        Ok(())
    }
}

fn cap(what: &str, found: usize, limit: usize) -> StoreResult<()> {
    if found > limit {
        return Err(StoreError::invalid(format!(
            "{found} {what} are more than the limit of {limit}"
        )));
    }
    Ok(())
}

fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

fn check_field_name(name: &str) -> StoreResult<()> {
    let mut probe = Object::new();
    probe.insert(name.to_owned(), Value::Null);
    nimbus_core::value::check_user_fields(&probe)
        .map_err(|e| StoreError::invalid(e.to_string()))?;
    if name.is_empty() || name.contains('.') {
        return Err(StoreError::invalid(format!(
            "field name `{}` must not be empty or contain a dot",
            clip(name)
        )));
    }
    Ok(())
}

/// A stored index definition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IndexDef {
    pub(crate) id: u32,
    pub(crate) name: IndexName,
    pub(crate) fields: Vec<FieldPath>,
    pub(crate) state: IndexState,
    /// The push that prepares it. Until that push is committed the index serves nothing, and
    /// another of the same name may serve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) push: Option<String>,
}

/// What the deployed schema (convex.md 6.9) says about a table. Its indexes are among
/// [`TableDef::indexes`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct DeployedTable {
    /// What documents must match; `None` when any will do or the schema is not enforced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) document_type: Option<Validator>,
    /// Indexes that are declared but not built, since they are staged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) staged: Vec<IndexName>,
}

/// A document validator that a push is about to introduce. Writes do not obey it: one that
/// contradicts it makes the push fail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PendingPush {
    /// The push.
    pub(crate) id: String,
    pub(crate) document_type: Validator,
}

/// A stored table definition: the value of one `table/<name>` row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TableDef {
    pub(crate) number: TableNumber,
    pub(crate) name: TableName,
    /// Declared fields; `None` when the table has no schema.
    pub(crate) fields: Option<Vec<FieldSchema>>,
    /// A schema being introduced: writes obey it already, existing documents are checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pending: Option<Vec<FieldSchema>>,
    /// Set for a table that the deployed schema declares; then there are no `fields`, so that a
    /// table obeys one kind of schema only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) deployed: Option<DeployedTable>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) push: Option<PendingPush>,
    pub(crate) indexes: Vec<IndexDef>,
}

impl TableDef {
    pub(crate) fn new(name: TableName, number: TableNumber) -> TableDef {
        TableDef {
            number,
            name,
            fields: None,
            pending: None,
            deployed: None,
            push: None,
            indexes: Vec::new(),
        }
    }

    pub(crate) fn meta_key(name: &TableName) -> Vec<u8> {
        [TABLE_PREFIX, name.as_ref().as_bytes()].concat()
    }

    /// Indexes that writes keep up to date.
    pub(crate) fn maintained(&self) -> impl Iterator<Item = &IndexDef> {
        self.indexes
            .iter()
            .filter(|i| i.state != IndexState::Deleting)
    }

    /// Indexes of the table's schema, complete or not; those of a push in progress are not.
    pub(crate) fn declared(&self) -> impl Iterator<Item = &IndexDef> {
        self.maintained().filter(|i| i.push.is_none())
    }

    /// Indexes that queries may use; no two have one name.
    pub(crate) fn usable(&self) -> impl Iterator<Item = &IndexDef> {
        self.indexes
            .iter()
            .filter(|i| i.state == IndexState::Enabled)
    }

    /// The public form of a native schema, if there is one.
    pub(crate) fn schema(&self) -> Option<TableSchema> {
        Some(TableSchema {
            table: self.name.clone(),
            fields: self.fields.clone()?,
            indexes: self
                .declared()
                .map(|i| IndexSchema {
                    name: i.name.clone(),
                    fields: i.fields.clone(),
                    id: Some(i.id),
                    state: Some(i.state),
                })
                .collect(),
        })
    }

    /// Checks a document against the schema and, if one is being introduced, that as well.
    pub(crate) fn check_document(&self, document: &Object) -> StoreResult<()> {
        let mut violations = Vec::new();
        for fields in [&self.fields, &self.pending].into_iter().flatten() {
            collect_violations(fields, document, &mut violations);
        }
        violations.dedup();
        if violations.is_empty() {
            return Ok(());
        }
        Err(StoreError::SchemaViolation {
            table: self.name.clone(),
            id: None,
            violations,
        })
    }

    /// Checks a document against the deployed schema.
    pub(crate) fn check_deployed(
        &self,
        document: &Object,
        tables: &dyn TableNames,
    ) -> StoreResult<()> {
        let validator = self
            .deployed
            .as_ref()
            .and_then(|d| d.document_type.as_ref());
        let Some(validator) = validator else {
            return Ok(());
        };
        validator
            .check_document(document, tables)
            .map_err(|failure| StoreError::SchemaEnforcement {
                table: self.name.clone(),
                failure: Box::new(failure),
            })
    }

    pub(crate) fn encode(&self) -> StoreResult<Bytes> {
        serde_json::to_vec(self)
            .map(Bytes::from)
            .map_err(|e| StoreError::corrupt(format!("table definition does not encode: {e}")))
    }

    pub(crate) fn decode(row: &[u8]) -> StoreResult<TableDef> {
        serde_json::from_slice(row)
            .map_err(|e| StoreError::corrupt(format!("table definition does not decode: {e}")))
    }
}

/// Lists how `document` contradicts `fields`.
pub(crate) fn collect_violations(
    fields: &[FieldSchema],
    document: &Object,
    out: &mut Vec<Violation>,
) {
    for field in fields {
        match document.get(&field.name) {
            None if field.required => out.push(violation(field, "missing")),
            Some(v) if !field.field_type.accepts(v) => out.push(violation(field, v.type_name())),
            _ => {}
        }
    }
}

fn violation(field: &FieldSchema, found: &str) -> Violation {
    Violation {
        field: field.name.clone(),
        expected: field.field_type.name().to_owned(),
        found: found.to_owned(),
    }
}

/// Where the next table and index numbers come from; numbers are never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Counters {
    pub(crate) next_table: u32,
    pub(crate) next_index: u32,
}

impl Default for Counters {
    fn default() -> Counters {
        Counters {
            next_table: TableNumber::FIRST_USER.get(),
            next_index: 1,
        }
    }
}

/// Every table of a tenant at one sequence, and the versions of its policy.
#[derive(Clone, Debug, Default)]
pub(crate) struct Catalog {
    tables: OrdMap<TableName, Arc<TableDef>>,
    names: HashMap<TableNumber, TableName>,
    pub(crate) counters: Counters,
    policies: Option<Arc<Policies>>,
}

impl Catalog {
    pub(crate) fn table(&self, name: &TableName) -> Option<&Arc<TableDef>> {
        self.tables.get(name)
    }

    pub(crate) fn by_number(&self, number: TableNumber) -> Option<&Arc<TableDef>> {
        self.tables.get(self.names.get(&number)?)
    }

    pub(crate) fn tables(&self) -> impl Iterator<Item = &Arc<TableDef>> {
        self.tables.values()
    }

    pub(crate) fn len(&self) -> usize {
        self.tables.len()
    }

    /// The versions of the policy, if there is one.
    pub(crate) fn policies(&self) -> Option<&Policies> {
        self.policies.as_deref()
    }

    /// The table that a key belongs to, if it belongs to one.
    pub(crate) fn table_of(&self, space: Keyspace, key: &[u8]) -> Option<TableName> {
        let number = || Some(u32::from_be_bytes(*key.first_chunk()?));
        match space {
            Keyspace::Docs => self.names.get(&TableNumber::new(number()?)?).cloned(),
            Keyspace::Index => {
                let number = number()?;
                let mut tables = self.tables.values();
                let owner = tables.find(|t| t.indexes.iter().any(|i| i.id == number))?;
                Some(owner.name.clone())
            }
            Keyspace::Meta => {
                let name = key.strip_prefix(TABLE_PREFIX)?;
                std::str::from_utf8(name).ok()?.parse().ok()
            }
            _ => None,
        }
    }

    /// Whether a meta row belongs to the catalog.
    pub(crate) fn owns(key: &[u8]) -> bool {
        key.starts_with(TABLE_PREFIX) || key == COUNTERS_KEY || key == POLICY_KEY
    }

    /// Takes over a written or loaded meta row.
    pub(crate) fn apply(&mut self, key: &[u8], value: Option<&[u8]>) -> StoreResult<()> {
        let damaged = |e: serde_json::Error| {
            StoreError::corrupt(format!("meta row {}: {e}", String::from_utf8_lossy(key)))
        };
        if key == COUNTERS_KEY {
            self.counters = match value {
                Some(v) => serde_json::from_slice(v).map_err(damaged)?,
                None => Counters::default(),
            };
            return Ok(());
        }
        if key == POLICY_KEY {
            self.policies = value.map(Policies::decode).transpose()?.map(Arc::new);
            return Ok(());
        }
        let Some(name) = key.strip_prefix(TABLE_PREFIX) else {
            return Ok(());
        };
        match value {
            Some(value) => {
                let def: TableDef = serde_json::from_slice(value).map_err(damaged)?;
                if def.name.as_ref().as_bytes() != name {
                    return Err(StoreError::corrupt(format!("table row names {}", def.name)));
                }
                self.names.insert(def.number, def.name.clone());
                self.tables.insert(def.name.clone(), Arc::new(def));
            }
            None => {
                let found = self
                    .tables
                    .values()
                    .find(|t| t.name.as_ref().as_bytes() == name)
                    .cloned();
                if let Some(def) = found {
                    self.names.remove(&def.number);
                    self.tables.remove(&def.name);
                }
            }
        }
        Ok(())
    }
}

impl TableNames for Catalog {
    fn number(&self, name: &str) -> Option<TableNumber> {
        Some(self.tables.get(name)?.number)
    }

    fn name(&self, number: TableNumber) -> Option<String> {
        Some(self.names.get(&number)?.to_string())
    }
}

#[cfg(test)]
#[path = "catalog_tests.rs"]
mod tests;
