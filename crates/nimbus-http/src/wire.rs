//! The JSON shapes of the native API: request bodies in, answers out (nimbus.md 2.3 - 2.10).
//!
//! Unknown members are refused at every level. This room turns wire shapes into engine types; it
//! must not know limits of the engine or whether anything exists.

use std::collections::BTreeMap;

use nimbus_core::value::deserialize_within_document;
use nimbus_core::{FieldPath, IndexName, Object, TableName, TenantId, Value};
use nimbus_storage::{
    Direction, FieldSchema, FieldType, Filter, FilterOp, ImportRow, IndexSchema, MovePhase,
    MoveStatus, Order, Query, TableSchema,
};
use schemars::JsonSchema;
use serde::de::{Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{ApiError, ApiResult};
use crate::extract::JsonBody;

/// A JSON object of user fields; int64 and bytes as `{"$integer": ...}` and `{"$bytes": ...}`.
// Read through `Value`, which refuses duplicate keys and other `$` keys.
#[derive(Debug, JsonSchema)]
#[schemars(with = "BTreeMap<String, serde_json::Value>")]
pub(crate) struct Fields(pub Object);

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Fields, D::Error> {
        match deserialize_within_document(deserializer)? {
            Value::Object(fields) => Ok(Fields(fields)),
            other => Err(D::Error::custom(format!(
                "expected an object of fields, found {}",
                other.type_name()
            ))),
        }
    }
}

/// Body of `POST /api/tenants`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateTenant {
    /// 1 to 128 ASCII letters, digits, `_` and `-`; not starting with `_`.
    #[schemars(with = "String")]
    pub id: TenantId,
}

impl JsonBody for CreateTenant {
    const EXAMPLE: &'static str = r#"{"id":"acme"}"#;
}

/// Body of `POST documents`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct InsertDocument {
    /// The table; it appears on its first document.
    #[schemars(with = "String")]
    pub table: TableName,
    /// The fields of the new document.
    pub fields: Fields,
}

impl JsonBody for InsertDocument {
    const EXAMPLE: &'static str =
        r#"{"table":"tasks","fields":{"title":"water the plants","done":false}}"#;
}

/// Body of `POST import`: a chunk of an import.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImportBody {
    /// Name of the import: 1 to 128 letters, digits, `.`, `_` or `-`.
    pub import: String,
    /// Last line of the source that this chunk covers, blank lines included.
    pub last_line: u64,
    /// Documents with their lines, in order; at most 2,000.
    pub rows: Vec<ImportRowBody>,
}

/// One document of an import.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImportRowBody {
    /// Line of the source, from 1.
    pub line: u64,
    /// The fields of the new document.
    pub fields: Fields,
}

impl ImportBody {
    /// The rows as the store takes them.
    pub(crate) fn into_rows(self) -> Vec<ImportRow> {
        let row = |row: ImportRowBody| ImportRow {
            line: row.line,
            fields: row.fields.0,
        };
        self.rows.into_iter().map(row).collect()
    }
}

impl JsonBody for ImportBody {
    const EXAMPLE: &'static str =
        r#"{"import":"cities-1","last_line":1,"rows":[{"line":1,"fields":{"title":"Oslo"}}]}"#;
}

/// Body of `PATCH document`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PatchDocument {
    /// Fields to set; the others stay.
    pub patch: Fields,
}

impl JsonBody for PatchDocument {
    const EXAMPLE: &'static str = r#"{"patch":{"done":true}}"#;
}

/// A query; also the `query` member of a paginated one.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct QueryBody {
    /// The table.
    #[schemars(with = "String")]
    pub table: TableName,
    /// All must hold; `[]` selects every document.
    pub filters: Vec<FilterBody>,
    /// By default, ascending order of creation.
    #[serde(default)]
    pub order: Option<OrderBody>,
    /// Most documents returned.
    #[serde(default)]
    pub limit: Option<u32>,
}

/// One condition on a field.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FilterBody {
    /// Dotted path.
    #[schemars(with = "String")]
    pub field: FieldPath,
    /// One of eq, neq, gt, gte, lt, lte.
    #[schemars(with = "OpName")]
    #[serde(deserialize_with = "filter_op")]
    pub op: FilterOp,
    /// What to compare with; range operators match values of the same type only.
    #[schemars(with = "serde_json::Value")]
    #[serde(deserialize_with = "deserialize_within_document")]
    pub value: Value,
}

/// The operators, for the OpenAPI document.
#[derive(JsonSchema)]
#[serde(rename_all = "lowercase")]
#[allow(dead_code, reason = "read by the schema generator alone")]
enum OpName {
    Eq,
    Neq,
    Gt,
    Gte,
    Lt,
    Lte,
}

fn filter_op<'de, D: Deserializer<'de>>(deserializer: D) -> Result<FilterOp, D::Error> {
    let text = String::deserialize(deserializer)?;
    FilterOp::parse(&text).ok_or_else(|| {
        let shown: String = text.chars().take(80).collect();
        D::Error::custom(format!(
            "unknown operator `{shown}`, expected eq, neq, gt, gte, lt or lte"
        ))
    })
}

/// An order by one field; ties are broken by id.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct OrderBody {
    /// Dotted path.
    #[schemars(with = "String")]
    pub field: FieldPath,
    /// Ascending or descending.
    pub direction: DirectionName,
}

/// `asc` or `desc`.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DirectionName {
    Asc,
    Desc,
}

impl JsonBody for QueryBody {
    const EXAMPLE: &'static str =
        r#"{"table":"tasks","filters":[{"field":"done","op":"eq","value":false}],"limit":10}"#;
}

impl From<QueryBody> for Query {
    fn from(body: QueryBody) -> Query {
        let filter = |f: FilterBody| Filter {
            field: f.field,
            op: f.op,
            value: f.value,
        };
        let order = |order: OrderBody| Order {
            field: order.field,
            direction: match order.direction {
                DirectionName::Asc => Direction::Forward,
                DirectionName::Desc => Direction::Backward,
            },
        };
        Query {
            table: body.table,
            filters: body.filters.into_iter().map(filter).collect(),
            order: body.order.map(order),
            limit: body.limit,
        }
    }
}

/// Body of `POST query/paginated`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PageBody {
    /// The query; the same for every page.
    pub query: QueryBody,
    /// Most documents in the page, 1 to 1,000.
    pub page_size: u32,
    /// `next_cursor` of the page before.
    #[serde(default)]
    pub after: Option<String>,
}

impl JsonBody for PageBody {
    const EXAMPLE: &'static str = r#"{"query":{"table":"tasks","filters":[]},"page_size":10}"#;
}

/// Body of `PUT schema/{table}`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SchemaBody {
    /// Must equal the table in the path.
    #[schemars(with = "String")]
    pub table: TableName,
    /// Declared fields; others stay allowed.
    #[serde(default)]
    pub fields: Vec<FieldBody>,
    /// Declared indexes.
    #[serde(default)]
    pub indexes: Vec<IndexBody>,
    #[schemars(skip)]
    #[serde(default)]
    access_policy: Option<IgnoredAny>,
}

/// A declared field.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct FieldBody {
    /// A top-level field.
    pub name: String,
    /// string, number, boolean, array, object or any.
    pub field_type: FieldTypeName,
    /// Whether every document must have it.
    #[serde(default)]
    pub required: bool,
}

/// The type of a declared field; `number` is float64 or int64.
#[derive(Clone, Copy, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum FieldTypeName {
    String,
    Number,
    Boolean,
    Array,
    Object,
    Any,
}

/// A declared index.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct IndexBody {
    /// Unique within the table.
    #[schemars(with = "String")]
    pub name: IndexName,
    /// Dotted paths, first one first.
    #[schemars(with = "Vec<String>")]
    pub fields: Vec<FieldPath>,
    // Managed by the server: accepted so that a schema that was read can be sent back.
    #[schemars(skip)]
    #[serde(default, rename = "id")]
    _id: Option<IgnoredAny>,
    #[schemars(skip)]
    #[serde(default, rename = "state")]
    _state: Option<IgnoredAny>,
}

impl JsonBody for SchemaBody {
    const EXAMPLE: &'static str = r#"{"table":"tasks","fields":[{"name":"title","field_type":"string","required":true},{"name":"done","field_type":"boolean","required":false}],"indexes":[{"name":"by_done","fields":["done"]}]}"#;
}

impl SchemaBody {
    /// The schema for the table that the path names.
    ///
    /// # Errors
    /// 400 for another table in the body, an access policy, or a field name that is none.
    pub(crate) fn into_schema(self, path_table: &TableName) -> ApiResult<TableSchema> {
        if self.table != *path_table {
            let text = format!(
                "the body is the schema of table `{}`, the path names `{path_table}`",
                self.table
            );
            return Err(ApiError::invalid(text));
        }
        if self.access_policy.is_some() {
            return Err(ApiError::invalid(
                "`access_policy` is not supported by this version; leave it out",
            ));
        }
        let fields = self
            .fields
            .into_iter()
            .map(FieldBody::into_field)
            .collect::<ApiResult<_>>()?;
        let index = |index: IndexBody| IndexSchema {
            name: index.name,
            fields: index.fields,
            id: None,
            state: None,
        };
        let indexes = self.indexes.into_iter().map(index).collect();
        Ok(TableSchema {
            table: self.table,
            fields,
            indexes,
        })
    }
}

impl FieldBody {
    fn into_field(self) -> ApiResult<FieldSchema> {
        let path: FieldPath = self.name.parse()?;
        if path.segments().count() != 1 || path.is_id() || path.is_creation_time() {
            // A path may have 16 KiB; an error repeats 80 characters.
            let shown: String = self.name.chars().take(80).collect();
            let text = format!("`{shown}` cannot be declared: name a top-level field of your own");
            return Err(ApiError::invalid(text));
        }
        let field_type = match self.field_type {
            FieldTypeName::String => FieldType::String,
            FieldTypeName::Number => FieldType::Number,
            FieldTypeName::Boolean => FieldType::Boolean,
            FieldTypeName::Array => FieldType::Array,
            FieldTypeName::Object => FieldType::Object,
            FieldTypeName::Any => FieldType::Any,
        };
        Ok(FieldSchema {
            name: self.name,
            field_type,
            required: self.required,
        })
    }
}

/// A stored document: the caller's fields and the two of the system.
#[derive(JsonSchema)]
#[allow(
    dead_code,
    reason = "read by the schema generator alone; documents are spliced in as text"
)]
pub(crate) struct StoredDocument {
    #[serde(rename = "_id")]
    id: String,
    /// Milliseconds since 1970.
    #[serde(rename = "_creationTime")]
    creation_time: f64,
    #[serde(flatten)]
    fields: BTreeMap<String, serde_json::Value>,
}

/// Answer with documents.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "read by the schema generator alone")]
pub(crate) struct DocumentList {
    data: Vec<StoredDocument>,
}

/// Answer with one page of documents.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "read by the schema generator alone")]
pub(crate) struct DocumentPage {
    data: Vec<StoredDocument>,
    /// Send it back as `after`.
    next_cursor: Option<String>,
    has_more: bool,
}

/// Answer with one document.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "read by the schema generator alone")]
pub(crate) struct OneDocument {
    document: StoredDocument,
}

/// Answer that names what was made or changed.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Id {
    pub id: String,
}

/// Answer of `GET /api/tenants`.
#[derive(Serialize, JsonSchema)]
pub(crate) struct TenantList {
    #[schemars(with = "Vec<String>")]
    pub tenants: Vec<TenantId>,
}

/// A table schema as answers show it.
#[derive(Serialize, JsonSchema)]
#[serde(transparent)]
#[schemars(with = "ShownSchema")]
pub(crate) struct SchemaAnswer(pub TableSchema);

#[derive(JsonSchema)]
#[schemars(rename = "TableSchema")]
#[allow(dead_code, reason = "read by the schema generator alone")]
struct ShownSchema {
    table: String,
    fields: Vec<ShownField>,
    indexes: Vec<ShownIndex>,
}

#[derive(JsonSchema)]
#[schemars(rename = "FieldSchema")]
#[allow(dead_code, reason = "read by the schema generator alone")]
struct ShownField {
    name: String,
    field_type: FieldTypeName,
    required: bool,
}

#[derive(JsonSchema)]
#[schemars(rename = "IndexSchema")]
#[allow(dead_code, reason = "read by the schema generator alone")]
struct ShownIndex {
    name: String,
    fields: Vec<String>,
    id: Option<u32>,
    /// backfilling, enabled or deleting.
    state: Option<String>,
}

/// Answer of `GET schema`.
#[derive(Serialize, JsonSchema)]
pub(crate) struct SchemaList {
    #[schemars(with = "BTreeMap<String, ShownSchema>")]
    pub tables: BTreeMap<TableName, TableSchema>,
}

/// Answer of `GET commits/{commit}`.
#[derive(Serialize, JsonSchema)]
pub(crate) struct CommitOutcome {
    /// Whether the commit is in the retained log.
    pub committed: bool,
    /// Its place in the log.
    pub sequence: Option<u64>,
}

/// Body of `POST move`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct MoveTenant {
    /// The provider that is to keep the tenant: one that the server serves.
    pub to: String,
}

impl JsonBody for MoveTenant {
    const EXAMPLE: &'static str = r#"{"to":"redb"}"#;
}

/// Answer of `POST move` and `GET move`.
#[derive(Serialize, JsonSchema)]
pub(crate) struct TenantMove {
    /// copying, verifying, catching_up, switching, done or failed.
    #[schemars(with = "String")]
    phase: MovePhase,
    /// The provider that the tenant was with.
    from: String,
    /// The provider that it was to be with.
    to: String,
    /// Rows copied, index entries not counted.
    rows: u64,
    /// Bytes of their keys and values.
    bytes: u64,
    /// Commits repeated since.
    commits: u64,
    /// Milliseconds in which no new call was let in.
    pause_ms: u64,
    /// Milliseconds since it began, or that it took.
    elapsed_ms: u64,
    /// Why it failed.
    error: Option<String>,
}

impl TenantMove {
    pub(crate) fn of(status: MoveStatus) -> TenantMove {
        TenantMove {
            phase: status.phase,
            from: status.from,
            to: status.to,
            rows: status.rows,
            bytes: status.bytes,
            commits: status.commits,
            pause_ms: status.pause_ms,
            elapsed_ms: status.elapsed_ms,
            error: status.error,
        }
    }
}

/// Answer of `POST prune`.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Pruned {
    /// Log records dropped.
    pub pruned: u64,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use nimbus_core::json::from_slice;

    use super::*;

    #[test]
    fn every_example_is_accepted() {
        from_slice::<CreateTenant>(CreateTenant::EXAMPLE.as_bytes()).unwrap();
        from_slice::<MoveTenant>(MoveTenant::EXAMPLE.as_bytes()).unwrap();
        from_slice::<InsertDocument>(InsertDocument::EXAMPLE.as_bytes()).unwrap();
        from_slice::<PatchDocument>(PatchDocument::EXAMPLE.as_bytes()).unwrap();
        from_slice::<QueryBody>(QueryBody::EXAMPLE.as_bytes()).unwrap();
        from_slice::<PageBody>(PageBody::EXAMPLE.as_bytes()).unwrap();
        let body: SchemaBody = from_slice(SchemaBody::EXAMPLE.as_bytes()).unwrap();
        body.into_schema(&"tasks".parse().unwrap()).unwrap();
    }

    fn query_error(text: &str) -> String {
        from_slice::<QueryBody>(text.as_bytes())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn queries_are_strict() {
        let cases = [
            (r#"{"table":"t"}"#, "missing field `filters`"),
            (r#"{"filters":[]}"#, "missing field `table`"),
            (r#"{"table":"t","filters":[],"x":1}"#, "unknown field `x`"),
            (
                r#"{"table":"t","filters":[{"field":"a","op":"like","value":1}]}"#,
                "expected eq, neq, gt, gte, lt or lte",
            ),
            (
                r#"{"table":"t","filters":[{"field":"a","op":"eq"}]}"#,
                "missing field `value`",
            ),
            (
                r#"{"table":"t","filters":[{"field":"a","op":"eq","value":1,"x":2}]}"#,
                "unknown field `x`",
            ),
            (
                r#"{"table":"t","filters":[{"field":"_x","op":"eq","value":1}]}"#,
                "reserved",
            ),
            (r#"{"table":"_t","filters":[]}"#, "reserved"),
            (
                r#"{"table":"t","filters":[],"order":{"field":"a","direction":"up"}}"#,
                "unknown variant `up`",
            ),
            (
                r#"{"table":"t","filters":[],"order":{"field":"a"}}"#,
                "missing field `direction`",
            ),
            (r#"{"table":"t","filters":[],"limit":-1}"#, "invalid value"),
            (r#"{"table":"t","filters":[],"limit":1.5}"#, "invalid type"),
            (
                r#"{"table":"t","filters":[],"limit":4294967296}"#,
                "invalid value",
            ),
        ];
        for (text, part) in cases {
            let error = query_error(text);
            assert!(error.contains(part), "{text}: {error}");
        }
        let null = r#"{"table":"t","filters":[{"field":"a","op":"eq","value":null}]}"#;
        assert_eq!(
            from_slice::<QueryBody>(null.as_bytes()).unwrap().filters[0].value,
            Value::Null
        );
    }

    #[test]
    fn fields_must_be_an_object_without_surprises() {
        let insert = |fields: &str| {
            let text = format!(r#"{{"table":"t","fields":{fields}}}"#);
            from_slice::<InsertDocument>(text.as_bytes())
        };
        assert!(insert(r#"{"a":{"$integer":"AQAAAAAAAAA="}}"#).is_ok());
        for bad in [
            "1",
            "[]",
            "null",
            r#"{"$integer":"AQAAAAAAAAA="}"#,
            r#"{"a":1,"a":2}"#,
            r#"{"$x":1}"#,
        ] {
            assert!(insert(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn schemas_are_checked_against_their_path() {
        let table: TableName = "tasks".parse().unwrap();
        let put = |text: &str| match from_slice::<SchemaBody>(text.as_bytes()) {
            Ok(body) => body
                .into_schema(&table)
                .map_err(|error| error.status().as_u16()),
            Err(_) => Err(400),
        };
        let round_trip = r#"{"table":"tasks","fields":[],"indexes":[{"name":"by_a","fields":["a"],"id":3,"state":"enabled"}]}"#;
        let schema = put(round_trip).unwrap();
        assert_eq!(
            (schema.indexes[0].id, schema.indexes[0].state),
            (None, None)
        );
        assert!(put(r#"{"table":"tasks","access_policy":null}"#).is_ok());
        for bad in [
            r#"{"table":"other","fields":[],"indexes":[]}"#,
            r#"{"table":"tasks","access_policy":{}}"#,
            r#"{"table":"tasks","fields":[{"name":"a.b","field_type":"any"}]}"#,
            r#"{"table":"tasks","fields":[{"name":"_id","field_type":"any"}]}"#,
            r#"{"table":"tasks","fields":[{"name":"_x","field_type":"any"}]}"#,
            r#"{"table":"tasks","fields":[{"name":"a","field_type":"date"}]}"#,
            r#"{"table":"tasks","indexes":[{"name":"by_id","fields":["a"]}]}"#,
            r#"{"table":"tasks","indexes":[{"name":"i","fields":["$a"]}]}"#,
            r#"{"table":"tasks","indexes":[{"name":"i","fields":["a"],"unique":true}]}"#,
        ] {
            assert_eq!(put(bad).unwrap_err(), 400, "{bad}");
        }
    }
}
