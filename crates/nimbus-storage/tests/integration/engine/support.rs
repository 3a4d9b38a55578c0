//! What the engine tests share: a world (directory, provider, engine), a provider wrapper with
//! hooks for faults, a gate that holds commits, a naive model of queries, seeded randomness.
//!
//! The model must not use the engine's filters, planner or key encoding.

mod app;
mod faults;
mod functions;
mod site;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use nimbus_storage::control::{ControlDb, LocalWakes};
use nimbus_storage::core::{DocumentId, FieldPath, Object, TableName, Value};
use nimbus_storage::provider::Keyspace;
use nimbus_storage::{
    Direction, Document, Engine, EngineOptions, FieldSchema, FieldType, Filter, FilterOp,
    IndexSchema, IndexState, Order, ProviderError, Query, TableSchema, Tenant, WakeStore,
};

pub use app::*;
pub use faults::*;
pub use functions::*;
pub use site::Site;

/// Longest that a test waits for something that must happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// A parsed name; the text is a constant of the test.
pub fn name<T: FromStr>(text: &str) -> T
where
    T::Err: std::fmt::Debug,
{
    text.parse().unwrap()
}

pub fn object<const N: usize>(fields: [(&str, Value); N]) -> Object {
    fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect()
}

pub fn num(n: f64) -> Value {
    Value::Float64(n)
}

pub fn int(n: i64) -> Value {
    Value::Int64(n)
}

pub fn text(s: &str) -> Value {
    Value::String(s.to_owned())
}

pub fn filter(field: &str, op: FilterOp, value: Value) -> Filter {
    Filter {
        field: name(field),
        op,
        value,
    }
}

pub fn query(table: &str, filters: Vec<Filter>, order: Option<(&str, Direction)>) -> Query {
    Query {
        filters,
        order: order.map(|(field, direction)| Order {
            field: name(field),
            direction,
        }),
        ..Query::table(name(table))
    }
}

/// A schema of optional fields of any type, with indexes by name.
pub fn schema(table: &str, fields: &[&str], indexes: &[(&str, &[&str])]) -> TableSchema {
    TableSchema {
        table: name(table),
        fields: fields
            .iter()
            .map(|field| FieldSchema {
                name: (*field).to_owned(),
                field_type: FieldType::Any,
                required: false,
            })
            .collect(),
        indexes: indexes
            .iter()
            .map(|(index, fields)| IndexSchema {
                name: name(index),
                fields: fields.iter().map(|f| name(f)).collect(),
                id: None,
                state: None,
            })
            .collect(),
    }
}

/// The document's text, for comparing and for messages.
pub fn json(document: &Document) -> String {
    String::from_utf8(document.json.to_vec()).unwrap()
}

pub fn jsons(documents: &[Document]) -> Vec<String> {
    documents.iter().map(json).collect()
}

/// Waits for a condition that nothing announces, asking again and again.
pub async fn until<F>(what: &str, mut condition: impl FnMut() -> F)
where
    F: Future<Output = bool>,
{
    let ask = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, ask).await.is_err() {
        panic!("waited too long until {what}");
    }
}

/// A future that must end; the bound only turns a hang into a failure.
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited too long for {what}"),
    }
}

/// Waits until the table's indexes are all enabled.
pub async fn indexes_ready(tenant: &Tenant, table: &str) {
    let table: TableName = name(table);
    until("every index is enabled", || async {
        let schema = tenant.table_schema(&table).await.unwrap();
        schema
            .indexes
            .iter()
            .all(|i| i.state == Some(IndexState::Enabled))
    })
    .await;
}

/// The consistency check must find nothing.
pub async fn assert_consistent(tenant: &Tenant) {
    let report = tenant.consistency().await.unwrap();
    assert!(report.ok, "{:#?}", report.mismatches);
    assert_eq!(report.authoritative.digest, report.shadow.digest);
}

/// SplitMix64, seeded so that a failure can be repeated.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }
}

/// A site with an engine over it, whose provider is behind the wrapper.
pub struct World {
    engine: Option<Engine>,
    pub hooks: Arc<Hooks>,
    settings: Settings,
    pub dir: Arc<Site>,
}

/// How a [`World`] is made, again on each reopening.
#[derive(Clone)]
pub struct Settings {
    pub options: EngineOptions,
    pub readers: usize,
    /// Wraps the store for wake times.
    pub wakes: Arc<dyn Fn(Arc<ControlDb>) -> Arc<dyn WakeStore> + Send + Sync>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            options: EngineOptions::default(),
            readers: 8,
            wakes: Arc::new(|control| Arc::new(LocalWakes::new(control))),
        }
    }
}

impl World {
    pub async fn new() -> World {
        World::with(Settings::default()).await
    }

    pub async fn with(settings: Settings) -> World {
        World::at(Arc::new(Site::new()), settings).await
    }

    /// A world over a site that may hold data already.
    pub async fn at(dir: Arc<Site>, settings: Settings) -> World {
        let mut world = World {
            engine: None,
            hooks: Arc::default(),
            settings,
            dir,
        };
        world.start().await;
        world
    }

    async fn start(&mut self) {
        let mut control = ControlDb::open(self.dir.path());
        // The engine before may still be letting go of the file.
        while matches!(control, Err(ProviderError::Busy { .. })) {
            tokio::time::sleep(Duration::from_millis(2)).await;
            control = ControlDb::open(self.dir.path());
        }
        let control = Arc::new(control.unwrap());
        let inner = self
            .dir
            .provider(control.clone(), self.settings.readers)
            .await;
        let hooks = self.hooks.clone();
        let mut options = self.settings.options.clone();
        options.wakes = Some((self.settings.wakes)(control));
        self.engine = Some(Engine::new(Arc::new(Wrapper { inner, hooks }), options));
    }

    pub fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    /// Closes the engine and opens another over the same directory.
    pub async fn reopen(&mut self) {
        self.engine().close().await.unwrap();
        self.engine = None;
        self.start().await;
    }

    /// The tenant's file, as another program opens it.
    pub fn raw(&self, tenant: &str) -> rusqlite::Connection {
        let path = self.dir.path().join(format!("{tenant}.sqlite3"));
        assert!(path.exists(), "this test looks into a SQLite file");
        rusqlite::Connection::open(path).unwrap()
    }

    /// A new tenant.
    pub async fn create(&self, tenant: &str) -> Tenant {
        self.engine().create_tenant(&name(tenant)).await.unwrap();
        self.tenant(tenant).await
    }

    pub async fn tenant(&self, tenant: &str) -> Tenant {
        self.engine().tenant(&name(tenant)).await.unwrap()
    }
}

/// Every row of a keyspace, in key order.
pub fn raw_rows(raw: &rusqlite::Connection, keyspace: Keyspace) -> Vec<(Vec<u8>, Vec<u8>)> {
    let sql = format!(
        "SELECT key, CAST(value AS BLOB) FROM \"{}\" ORDER BY key",
        keyspace.name()
    );
    let mut statement = raw.prepare(&sql).unwrap();
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)));
    rows.unwrap().map(Result::unwrap).collect()
}

/// Documents of one table, asked naively.
#[derive(Clone, Default)]
pub struct Model(pub BTreeMap<DocumentId, Object>);

impl Model {
    /// Everything the table holds now.
    pub async fn of(tenant: &Tenant, table: &str) -> Model {
        let all = tenant.query(&Query::table(name(table))).await.unwrap();
        Model::from(all.as_slice())
    }

    /// The ids that match, in the query's order.
    pub fn answer(&self, query: &Query) -> Vec<DocumentId> {
        let matching = self
            .0
            .iter()
            .filter(|(_, d)| query.filters.iter().all(|f| holds(f, d)));
        let mut found: Vec<_> = matching.collect();
        let order = query.order.as_ref();
        found.sort_by(|(a_id, a), (b_id, b)| {
            let by_field = order.map_or(Ordering::Equal, |o| {
                lookup(a, &o.field).cmp(&lookup(b, &o.field))
            });
            by_field
                .then_with(|| a.get("_creationTime").cmp(&b.get("_creationTime")))
                .then_with(|| a_id.internal.cmp(&b_id.internal))
        });
        if order.is_some_and(|o| o.direction == Direction::Backward) {
            found.reverse();
        }
        let limit = query.limit.map_or(usize::MAX, |n| n as usize);
        found.into_iter().map(|(id, _)| *id).take(limit).collect()
    }
}

impl From<&[Document]> for Model {
    fn from(documents: &[Document]) -> Model {
        let parsed = documents.iter().map(|d| (d.id, d.fields().unwrap()));
        Model(parsed.collect())
    }
}

pub fn lookup<'a>(document: &'a Object, path: &FieldPath) -> Option<&'a Value> {
    let mut segments = path.as_str().split('.');
    let mut found = document.get(segments.next()?)?;
    for segment in segments {
        let Value::Object(inner) = found else {
            return None;
        };
        found = inner.get(segment)?;
    }
    Some(found)
}

fn holds(filter: &Filter, document: &Object) -> bool {
    let Some(found) = lookup(document, &filter.field) else {
        return false;
    };
    let comparable = found.type_name() == filter.value.type_name();
    let order = found.cmp(&filter.value);
    match filter.op {
        FilterOp::Eq => order == Ordering::Equal,
        FilterOp::Neq => order != Ordering::Equal,
        FilterOp::Gt => comparable && order == Ordering::Greater,
        FilterOp::Gte => comparable && order != Ordering::Less,
        FilterOp::Lt => comparable && order == Ordering::Less,
        FilterOp::Lte => comparable && order != Ordering::Greater,
    }
}
