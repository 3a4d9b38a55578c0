//! The exported schema (convex.md 4.5 item 4, 6.9) as tables with what their documents must match
//! and which indexes they have. Search and vector indexes are accepted and not served.

use std::collections::{BTreeMap, HashMap, HashSet};

use nimbus_core::{FieldPath, IndexName, TableName, Validator};
use serde::Deserialize;
use serde_json::Value as Json;

use super::DeployError;
use crate::engine::catalog::{
    Catalog, DeployedTable, IndexDef, MAX_INDEX_FIELDS, MAX_INDEXES, MAX_TABLES, TableDef,
};

/// Longest exported schema, in bytes.
pub(super) const MAX_SCHEMA_BYTES: usize = 4 * 1024 * 1024;

/// A declared index that is to be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct AppIndex {
    pub(super) name: IndexName,
    pub(super) fields: Vec<FieldPath>,
}

/// A declared table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct AppTable {
    pub(super) deployed: DeployedTable,
    pub(super) indexes: Vec<AppIndex>,
}

/// A declared schema. Tables that it does not name are unrestricted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct AppSchema {
    pub(super) tables: BTreeMap<TableName, AppTable>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireSchema {
    tables: Vec<WireTable>,
    #[serde(default = "enforced")]
    schema_validation: bool,
}

fn enforced() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireTable {
    table_name: String,
    #[serde(default)]
    indexes: Vec<WireIndex>,
    #[serde(default)]
    staged_db_indexes: Vec<WireIndex>,
    #[serde(default)]
    search_indexes: Vec<WireName>,
    #[serde(default)]
    staged_search_indexes: Vec<WireName>,
    #[serde(default)]
    vector_indexes: Vec<WireName>,
    #[serde(default)]
    staged_vector_indexes: Vec<WireName>,
    #[serde(default)]
    document_type: Option<Json>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireIndex {
    index_descriptor: String,
    fields: Vec<String>,
}

/// An index that is not served: only its name is looked at.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireName {
    index_descriptor: String,
}

type Parsed<T> = Result<T, DeployError>;

impl AppSchema {
    /// Reads the exported JSON; no schema at all restricts nothing.
    ///
    /// # Errors
    /// [`DeployError::Schema`] with the rule that is broken.
    pub(super) fn parse(text: Option<&str>) -> Parsed<AppSchema> {
        let Some(text) = text else {
            return Ok(AppSchema::default());
        };
        if text.len() > MAX_SCHEMA_BYTES {
            return Err(DeployError::schema(format!(
                "its JSON has {} bytes, at most {MAX_SCHEMA_BYTES} are allowed",
                text.len()
            )));
        }
        let wire: WireSchema = serde_json::from_str(text)
            .map_err(|e| DeployError::schema(format!("its JSON does not read: {e}")))?;
        if wire.tables.len() > MAX_TABLES {
            return Err(DeployError::schema(format!(
                "{} tables are more than the limit of {MAX_TABLES}",
                wire.tables.len()
            )));
        }
        let mut tables = BTreeMap::new();
        for table in wire.tables {
            let name: TableName = table
                .table_name
                .parse()
                .map_err(|e| DeployError::schema(format!("{e}: {:?}", clip(&table.table_name))))?;
            let parsed = parse_table(&name, table, wire.schema_validation)?;
            if tables.insert(name.clone(), parsed).is_some() {
                return Err(DeployError::schema(format!(
                    "table \"{name}\" is declared twice"
                )));
            }
        }
        Ok(AppSchema { tables })
    }
}

fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

fn parse_table(name: &TableName, wire: WireTable, enforced: bool) -> Parsed<AppTable> {
    let document_type = parse_document(name, wire.document_type.as_ref())?;
    let mut names = HashSet::new();
    let mut indexes = Vec::with_capacity(wire.indexes.len());
    for index in wire.indexes {
        indexes.push(parse_index(name, index, &mut names)?);
    }
    let mut staged = Vec::new();
    for index in wire.staged_db_indexes {
        staged.push(parse_index(name, index, &mut names)?.name);
    }
    let declared = indexes.len() + staged.len();
    if declared > MAX_INDEXES {
        return Err(DeployError::schema(format!(
            "table \"{name}\" has {declared} indexes, at most {MAX_INDEXES} are allowed"
        )));
    }
    let others = [
        wire.search_indexes,
        wire.staged_search_indexes,
        wire.vector_indexes,
        wire.staged_vector_indexes,
    ];
    for other in others.into_iter().flatten() {
        index_name(name, &other.index_descriptor, &mut names)?;
    }
    let document_type = document_type.filter(|v| enforced && !v.is_any());
    Ok(AppTable {
        deployed: DeployedTable {
            document_type,
            staged,
        },
        indexes,
    })
}

fn parse_document(table: &TableName, json: Option<&Json>) -> Parsed<Option<Validator>> {
    let Some(json) = json else { return Ok(None) };
    let bad = |reason: String| DeployError::schema(format!("table \"{table}\": {reason}"));
    let validator = Validator::parse(json).map_err(|e| bad(e.to_string()))?;
    if !validator.is_for_documents() {
        return Err(bad(format!(
            "documents are objects, so `{}` cannot be their validator",
            clip(&validator.to_string())
        )));
    }
    if let Some(field) = validator.top_fields().find(|f| f.starts_with('_')) {
        return Err(bad(format!(
            "field `{}` cannot be declared: names that start with `_` belong to the system",
            clip(field)
        )));
    }
    Ok(Some(validator))
}

fn index_name(table: &TableName, text: &str, names: &mut HashSet<IndexName>) -> Parsed<IndexName> {
    let name: IndexName = text.parse().map_err(|e| {
        DeployError::schema(format!("table \"{table}\", index {:?}: {e}", clip(text)))
    })?;
    if !names.insert(name.clone()) {
        return Err(DeployError::schema(format!(
            "table \"{table}\" declares index \"{name}\" twice"
        )));
    }
    Ok(name)
}

fn parse_index(
    table: &TableName,
    wire: WireIndex,
    names: &mut HashSet<IndexName>,
) -> Parsed<AppIndex> {
    let name = index_name(table, &wire.index_descriptor, names)?;
    let bad = |reason: String| DeployError::schema(format!("index \"{table}.{name}\" {reason}"));
    if wire.fields.is_empty() || wire.fields.len() > MAX_INDEX_FIELDS {
        return Err(bad(format!(
            "has {} fields, 1 to {MAX_INDEX_FIELDS} are allowed",
            wire.fields.len()
        )));
    }
    let mut fields: Vec<FieldPath> = Vec::with_capacity(wire.fields.len());
    for text in &wire.fields {
        let field: FieldPath = text
            .parse()
            .map_err(|e| bad(format!("names the field {:?}: {e}", clip(text))))?;
        if field.is_id() || field.is_creation_time() {
            return Err(bad(format!(
                "may not name `{field}`: every index ends with _creationTime and _id by itself"
            )));
        }
        if fields.contains(&field) {
            return Err(bad(format!("names the field `{field}` twice")));
        }
        fields.push(field);
    }
    Ok(AppIndex { name, fields })
}

impl AppTable {
    /// Whether documents that were written under `def` could contradict this table's validator.
    pub(super) fn tightens(&self, def: &TableDef) -> bool {
        match (&self.deployed.document_type, document_type(def)) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(new), Some(old)) => !new.is_superset_of(old),
        }
    }
}

/// Which tables a schema asks more of than before. To compare two validators takes as long as both
/// are large together, multiplied, so it is done once for a push and outside of its transactions.
#[derive(Default)]
pub(super) struct Compared(HashMap<TableName, (Option<Validator>, bool)>);

impl Compared {
    pub(super) fn new(schema: &AppSchema, catalog: &Catalog) -> Compared {
        let tables = schema.tables.iter().filter_map(|(name, table)| {
            let def = catalog.table(name)?;
            Some((
                name.clone(),
                (document_type(def).cloned(), table.tightens(def)),
            ))
        });
        Compared(tables.collect())
    }

    /// [`AppTable::tightens`] for a definition that nobody but this push changes.
    pub(super) fn tightens(&self, table: &AppTable, def: &TableDef) -> bool {
        match self.0.get(&def.name) {
            Some((known, tightens)) if known.as_ref() == document_type(def) => *tightens,
            _ => table.tightens(def),
        }
    }
}

fn document_type(def: &TableDef) -> Option<&Validator> {
    def.deployed.as_ref().and_then(|d| d.document_type.as_ref())
}

impl AppIndex {
    /// Whether a stored definition is this one.
    pub(super) fn is(&self, def: &IndexDef) -> bool {
        def.name == self.name && def.fields == self.fields
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(json: &Json) -> String {
        AppSchema::parse(Some(&json.to_string()))
            .unwrap_err()
            .to_string()
    }

    fn with_index(index: Json) -> Json {
        json!({"tables": [{"tableName": "t", "indexes": [index], "documentType": null}]})
    }

    fn with_type(document: Json) -> Json {
        json!({"tables": [{"tableName": "t", "documentType": document}]})
    }

    #[test]
    fn a_whole_schema_is_read() {
        let object = json!({"type": "object", "value": {"a": {"fieldType": {"type": "string"}, "optional": false}}});
        let json = json!({
            "tables": [
                {
                    "tableName": "a", "documentType": object,
                    "indexes": [{"indexDescriptor": "by_a", "fields": ["a", "b.c"]}],
                    "stagedDbIndexes": [{"indexDescriptor": "later", "fields": ["a"]}],
                    "searchIndexes": [{"indexDescriptor": "find", "searchField": "a", "filterFields": []}],
                    "vectorIndexes": [{"indexDescriptor": "near", "vectorField": "v", "dimensions": 3, "filterFields": []}],
                    "somethingNewer": 1,
                },
                {"tableName": "b", "indexes": [], "documentType": {"type": "any"}},
                {"tableName": "c", "indexes": [], "documentType": null},
            ],
            "schemaValidation": true,
        });
        let schema = AppSchema::parse(Some(&json.to_string())).unwrap();
        let a = &schema.tables["a"];
        assert!(a.deployed.document_type.is_some());
        assert_eq!(a.indexes.len(), 1);
        assert_eq!(a.deployed.staged.len(), 1);
        assert!(schema.tables["b"].deployed.document_type.is_none());
        assert!(schema.tables["c"].deployed.document_type.is_none());
        let loose = json
            .to_string()
            .replace("\"schemaValidation\":true", "\"schemaValidation\":false");
        let schema = AppSchema::parse(Some(&loose)).unwrap();
        assert!(schema.tables["a"].deployed.document_type.is_none());
        assert_eq!(AppSchema::parse(None).unwrap(), AppSchema::default());
    }

    #[test]
    fn what_breaks_a_rule_is_named() {
        let many: Vec<Json> = (0..65)
            .map(|n| json!({"indexDescriptor": format!("i{n}"), "fields": ["a"]}))
            .collect();
        let long: Vec<String> = (0..17).map(|n| format!("f{n}")).collect();
        let twice = json!({"indexDescriptor": "i", "fields": ["a"]});
        let cases = [
            (json!({}), "missing field `tables`"),
            (json!({"tables": [{"tableName": "_t"}]}), "reserved"),
            (
                json!({"tables": [{"tableName": "t"}, {"tableName": "t"}]}),
                "table \"t\" is declared twice",
            ),
            (
                with_index(json!({"indexDescriptor": "by_id", "fields": ["a"]})),
                "built in",
            ),
            (
                with_index(json!({"indexDescriptor": "_i", "fields": ["a"]})),
                "reserved",
            ),
            (
                with_index(json!({"indexDescriptor": "i", "fields": []})),
                "index \"t.i\" has 0 fields",
            ),
            (
                with_index(json!({"indexDescriptor": "i", "fields": long})),
                "has 17 fields",
            ),
            (
                with_index(json!({"indexDescriptor": "i", "fields": ["a", "a"]})),
                "names the field `a` twice",
            ),
            (
                with_index(json!({"indexDescriptor": "i", "fields": ["_id"]})),
                "may not name `_id`",
            ),
            (
                with_index(json!({"indexDescriptor": "i", "fields": ["a", "_creationTime"]})),
                "may not name `_creationTime`",
            ),
            (
                with_index(json!({"indexDescriptor": "i", "fields": ["a..b"]})),
                "names the field \"a..b\"",
            ),
            (
                json!({"tables": [{"tableName": "t", "indexes": many}]}),
                "65 indexes",
            ),
            (
                json!({"tables": [{"tableName": "t", "indexes": [twice], "searchIndexes": [twice]}]}),
                "declares index \"i\" twice",
            ),
            (
                with_type(json!({"type": "string"})),
                "documents are objects",
            ),
            (
                with_type(json!({"type": "nothing"})),
                "table \"t\": the validator is not valid",
            ),
            (
                with_type(
                    json!({"type": "object", "value": {"_id": {"fieldType": {"type": "any"}, "optional": true}}}),
                ),
                "field `_id` cannot be declared",
            ),
        ];
        for (json, says) in cases {
            let text = refused(&json);
            assert!(text.starts_with("the schema is not valid: "), "{text}");
            assert!(text.contains(says), "{json}: {text}");
        }
        let long = format!("{{\"tables\":[]{}}}", " ".repeat(MAX_SCHEMA_BYTES));
        assert!(AppSchema::parse(Some(&long)).is_err());
    }
}
