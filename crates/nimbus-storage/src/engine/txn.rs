//! Transactions: document reads and writes at one state, committed all or not at all.
//!
//! Index entries and schema checks follow from document writes here and nowhere else.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use nimbus_core::{DocumentId, InternalId, Object, TableName, TableNumber, Value, value};

use super::catalog::{COUNTERS_KEY, Catalog, Counters, MAX_TABLES, TableDef};
use super::cursor::Position;
use super::exec::{self, Want, parse};
use super::function::TransactionUsage;
use super::index;
use super::query::{MAX_PAGE_SIZE, MAX_RESULT_DOCUMENTS, Query, check_count};
use super::record::{Write, render_writes};
use super::state::Proposal;
use super::tenant::{Tenant, TenantInner};
use super::view::{Savepoint, View};
use super::{Document, Page};
use crate::error::{CommitId, StoreError, StoreResult};
use crate::provider::Keyspace;

/// A read-write transaction on one tenant; see [`super::Tenant::transact`].
///
/// Reads see the state at its start plus its own writes. Nothing is visible to others before
/// the commit. Dropping it writes nothing.
pub struct Transaction {
    pub(crate) tenant: Arc<TenantInner>,
    pub(crate) view: View,
    execution: Option<String>,
    wake_at: Option<u64>,
    random: Entropy,
    /// What a function read and wrote so far.
    pub(crate) usage: TransactionUsage,
    /// The write at work is a function's, and counted.
    pub(crate) for_function: bool,
    /// Keeps the tenant open.
    _lease: Tenant,
}

impl Transaction {
    pub(crate) fn new(tenant: Arc<TenantInner>, view: View) -> Transaction {
        Transaction {
            _lease: Tenant::hold(tenant.clone()),
            tenant,
            view,
            execution: None,
            wake_at: None,
            random: Entropy::default(),
            usage: TransactionUsage::default(),
            for_function: false,
        }
    }

    /// Sequence of the newest commit that this transaction sees. It may not be durable yet, and
    /// if its batch fails, never will be. In [`Tenant::transact`] on a store that servers share it may be
    /// a greater one after the first read.
    pub fn read_sequence(&self) -> u64 {
        self.view.read_sequence
    }

    /// Names the scheduled execution that this commit completes; it goes into the log record.
    pub fn set_execution(&mut self, execution: impl Into<String>) {
        self.execution = Some(execution.into());
    }

    /// Asks that the tenant be woken at `at_ms` (ms since 1970-01-01). The wake time is durable
    /// before the commit is, so work that is committed is never slept through. A transaction that writes
    /// nothing schedules nothing.
    pub fn wake_at(&mut self, at_ms: u64) {
        self.wake_at = Some(self.wake_at.map_or(at_ms, |t| t.min(at_ms)));
    }

    pub(crate) fn wanted_wake(&self) -> Option<u64> {
        self.wake_at
    }

    /// Inserts a document and returns its id. The table exists from then on.
    ///
    /// # Errors
    /// `InvalidInput` for values beyond the limits (a document over 1 MiB is one) or reserved names,
    /// `SchemaViolation`, `CapExceeded` for too many tables or too much in one transaction.
    pub async fn insert(&mut self, table: &TableName, fields: Object) -> StoreResult<DocumentId> {
        value::check_user_fields(&fields).map_err(|e| StoreError::invalid(e.to_string()))?;
        if self.table(table).await.is_some() {
            return self.insert_into(table, fields).await;
        }
        // A caller that goes on after a refusal must not leave an empty table.
        let before = self.savepoint();
        let inserted = self.insert_into(table, fields).await;
        if inserted.is_err() {
            self.roll_back(before);
        }
        inserted
    }

    async fn insert_into(&mut self, table: &TableName, fields: Object) -> StoreResult<DocumentId> {
        let def = self.table_or_new(table).await?;
        let ticks = self.tenant.next_ticks();
        let internal = InternalId::generate(ticks, self.random.next()?);
        let id = DocumentId {
            table: def.number,
            internal,
        };
        let mut document = fields;
        document.insert("_id".into(), Value::String(id.to_string()));
        let created = nimbus_core::id::creation_time_ms(ticks);
        document.insert("_creationTime".into(), Value::Float64(created));
        def.check_document(&document)?;
        self.store(&def, id, None, Some(&document))?;
        Ok(id)
    }

    /// The document with this id, or `None`.
    pub async fn get(&mut self, id: DocumentId) -> StoreResult<Option<Document>> {
        let body = self.view.get(Keyspace::Docs, &id.key()).await?;
        Ok(body.map(|json| Document { id, json }))
    }

    /// Shallow merge: the fields given replace those of the same name; others stay.
    ///
    /// # Errors
    /// `DocumentNotFound`, else as [`Transaction::insert`].
    pub async fn patch(
        &mut self,
        table: &TableName,
        id: DocumentId,
        patch: Object,
    ) -> StoreResult<()> {
        let patch = patch.into_iter().map(|(k, v)| (k, Some(v))).collect();
        self.merge(table, id, patch).await
    }

    /// As [`Transaction::patch`]; `None` removes the field.
    ///
    /// # Errors
    /// As [`Transaction::patch`].
    pub async fn merge(
        &mut self,
        table: &TableName,
        id: DocumentId,
        patch: BTreeMap<String, Option<Value>>,
    ) -> StoreResult<()> {
        check_patch(&patch)?;
        let (def, old, body) = self.existing(table, id).await?;
        let mut document = old.clone();
        for (name, value) in patch {
            match value {
                Some(value) => document.insert(name, value),
                None => document.remove(&name),
            };
        }
        def.check_document(&document)?;
        self.store(&def, id, Some((old, body)), Some(&document))
    }

    /// Replaces every field but `_id` and `_creationTime`.
    ///
    /// # Errors
    /// As [`Transaction::patch`].
    pub async fn replace(
        &mut self,
        table: &TableName,
        id: DocumentId,
        fields: Object,
    ) -> StoreResult<()> {
        value::check_user_fields(&fields).map_err(|e| StoreError::invalid(e.to_string()))?;
        let (def, old, body) = self.existing(table, id).await?;
        let mut document = fields;
        for name in ["_id", "_creationTime"] {
            if let Some(value) = old.get(name) {
                document.insert(name.into(), value.clone());
            }
        }
        def.check_document(&document)?;
        self.store(&def, id, Some((old, body)), Some(&document))
    }

    /// Deletes a document.
    ///
    /// # Errors
    /// `DocumentNotFound`.
    pub async fn delete(&mut self, table: &TableName, id: DocumentId) -> StoreResult<()> {
        let (def, old, body) = self.existing(table, id).await?;
        self.store(&def, id, Some((old, body)), None)
    }

    /// All documents that match, in order.
    ///
    /// # Errors
    /// `CapExceeded` past 10,000 documents or 16 MiB, `MissingIndex` when too much would be scanned.
    pub async fn query(&mut self, query: &Query) -> StoreResult<Vec<Document>> {
        query_all(&mut self.view, query).await
    }

    /// One page of a query's result.
    ///
    /// # Errors
    /// `Cursor` for a cursor of another query, else as [`Transaction::query`].
    pub async fn page(
        &mut self,
        query: &Query,
        page_size: u32,
        after: Option<&str>,
    ) -> StoreResult<Page> {
        let tenant = self.tenant.clone();
        query_page(&tenant, &mut self.view, query, page_size, after).await
    }

    /// A point to which later writes can be undone.
    pub fn savepoint(&self) -> TransactionSavepoint {
        TransactionSavepoint(self.view.savepoint())
    }

    /// Undoes the writes since the savepoint; what was read stays in the read set.
    pub fn roll_back(&mut self, savepoint: TransactionSavepoint) {
        self.view.roll_back(savepoint.0);
    }

    /// The table's definition, recording that it was relied on.
    pub(crate) async fn table(&mut self, name: &TableName) -> Option<Arc<TableDef>> {
        lookup(&mut self.view, name)
    }

    pub(crate) async fn table_or_new(&mut self, name: &TableName) -> StoreResult<Arc<TableDef>> {
        if let Some(def) = self.table(name).await {
            return Ok(def);
        }
        let mut counters = self.counters();
        if self.view.catalog.len() >= MAX_TABLES {
            return Err(StoreError::CapExceeded {
                cap: "tables",
                limit: MAX_TABLES as u64,
                observed: MAX_TABLES as u64 + 1,
                advice: "use fewer tables",
            });
        }
        let number = TableNumber::new(counters.next_table)
            .ok_or_else(|| StoreError::corrupt("table numbers are used up"))?;
        counters.next_table += 1;
        self.put_counters(counters).await?;
        let def = TableDef::new(name.clone(), number);
        self.put_table(&def).await?;
        Ok(Arc::new(def))
    }

    pub(crate) fn counters(&mut self) -> Counters {
        self.view.rely_on(Keyspace::Meta, COUNTERS_KEY);
        self.view.catalog.counters
    }

    pub(crate) async fn put_counters(&mut self, counters: Counters) -> StoreResult<()> {
        let encoded = serde_json::to_vec(&counters)
            .map_err(|e| StoreError::corrupt(format!("counters do not encode: {e}")))?;
        self.put_meta(COUNTERS_KEY, Bytes::from(encoded)).await
    }

    pub(crate) async fn put_table(&mut self, def: &TableDef) -> StoreResult<()> {
        let key = TableDef::meta_key(&def.name);
        self.put_meta(&key, def.encode()?).await
    }

    /// Writes a row that the catalog follows.
    pub(crate) async fn put_meta(&mut self, key: &[u8], after: Bytes) -> StoreResult<()> {
        // What the catalog of the view becomes must follow from the one of the snapshot.
        self.view.take_snapshot().await?;
        let before = self.view.get(Keyspace::Meta, key).await?;
        let mut catalog = Catalog::clone(&self.view.catalog);
        catalog.apply(key, Some(&after))?;
        self.view.put(Keyspace::Meta, key, before, Some(after))?;
        self.view.catalog = Arc::new(catalog);
        Ok(())
    }

    async fn existing(
        &mut self,
        table: &TableName,
        id: DocumentId,
    ) -> StoreResult<(Arc<TableDef>, Object, Bytes)> {
        let missing = || StoreError::DocumentNotFound {
            table: table.clone(),
            id: id.to_string(),
        };
        let def = self
            .table(table)
            .await
            .filter(|d| d.number == id.table)
            .ok_or_else(missing)?;
        let body = self
            .view
            .get(Keyspace::Docs, &id.key())
            .await?
            .ok_or_else(missing)?;
        Ok((def, parse(&body)?, body))
    }

    /// Writes a document and the index entries that its change entails.
    fn store(
        &mut self,
        def: &TableDef,
        id: DocumentId,
        old: Option<(Object, Bytes)>,
        new: Option<&Object>,
    ) -> StoreResult<()> {
        if let Some(document) = new {
            self.admit(def, id, document)?;
            value::check_document(document).map_err(|e| StoreError::invalid(e.to_string()))?;
        }
        let mut puts = Vec::new();
        for index in def.maintained() {
            let before = old
                .as_ref()
                .map(|(o, _)| index::entry(index, id.internal, o));
            let after = new.map(|n| index::entry(index, id.internal, n));
            let same = matches!((&before, &after), (Some(b), Some(a)) if b.full == a.full);
            if same {
                continue;
            }
            if let Some(entry) = before {
                puts.push((Keyspace::Index, entry.stored, Write::to(None)));
            }
            if let Some(entry) = after {
                puts.push((Keyspace::Index, entry.stored, Write::to(Some(entry.value))));
            }
        }
        let after = new.map(|document| {
            let mut text = String::new();
            value::write_object_json(document, &mut text);
            Bytes::from(text)
        });
        if self.for_function {
            self.usage
                .count_write(after.as_ref().map_or(0, Bytes::len))?;
        }
        let before = old.map(|(_, body)| body);
        puts.push((Keyspace::Docs, id.key().to_vec(), Write { before, after }));
        self.view.put_all(puts)
    }

    /// What the committer needs.
    pub(crate) fn into_proposal(self, commit: CommitId) -> Proposal {
        let rendered = render_writes(
            self.view
                .writes
                .iter()
                .map(|((s, k), w)| (*s, k.as_ref(), w)),
        );
        Proposal {
            // Commits above it did not touch what was read. The newer the sequence, the likelier that its
            // batch fails: who did not rely on that need not run again.
            read_sequence: self.view.answered_at(),
            epoch: self.view.epoch,
            reads: self.view.reads,
            writes: self.view.writes,
            rendered,
            commit,
            execution: self.execution,
            maintenance: false,
        }
    }
}

/// See [`Transaction::savepoint`].
pub struct TransactionSavepoint(Savepoint);

fn check_patch(patch: &BTreeMap<String, Option<Value>>) -> StoreResult<()> {
    let probe: Object = patch
        .iter()
        .map(|(k, v)| (k.clone(), v.clone().unwrap_or(Value::Null)))
        .collect();
    value::check_user_fields(&probe).map_err(|e| StoreError::invalid(e.to_string()))
}

/// A table's definition, recording that it was relied on.
pub(crate) fn lookup(view: &mut View, name: &TableName) -> Option<Arc<TableDef>> {
    view.rely_on(Keyspace::Meta, &TableDef::meta_key(name));
    view.catalog.table(name).cloned()
}

/// Parses an id that a caller sent for `table`.
///
/// # Errors
/// `InvalidInput` when malformed; `DocumentNotFound` when it belongs to another table.
pub(crate) fn parse_id(view: &mut View, table: &TableName, text: &str) -> StoreResult<DocumentId> {
    let id: DocumentId = text
        .parse()
        .map_err(|e| StoreError::invalid(format!("document id is not valid: {e}")))?;
    match lookup(view, table) {
        Some(def) if def.number == id.table => Ok(id),
        _ => Err(StoreError::DocumentNotFound {
            table: table.clone(),
            id: text.to_owned(),
        }),
    }
}

pub(crate) async fn query_all(view: &mut View, query: &Query) -> StoreResult<Vec<Document>> {
    query.check()?;
    let Some(def) = lookup(view, &query.table) else {
        return Ok(Vec::new());
    };
    let cap = MAX_RESULT_DOCUMENTS as usize;
    let documents = query.limit.map_or(cap + 1, |n| n as usize);
    let want = Want {
        documents,
        short_is_fine: false,
    };
    let found = exec::run(view, &def, query, None, want).await?;
    if found.hits.len() > cap {
        return Err(StoreError::CapExceeded {
            cap: "result_documents",
            limit: u64::from(MAX_RESULT_DOCUMENTS),
            observed: found.hits.len() as u64,
            advice: "read page by page with query/paginated",
        });
    }
    Ok(found.hits.into_iter().map(Document::from).collect())
}

pub(crate) async fn query_page(
    tenant: &TenantInner,
    view: &mut View,
    query: &Query,
    page_size: u32,
    after: Option<&str>,
) -> StoreResult<Page> {
    query.check()?;
    check_count("page_size", Some(page_size), MAX_PAGE_SIZE)?;
    if query.limit.is_some() {
        return Err(StoreError::invalid(
            "a paginated query takes `page_size`, not `limit`",
        ));
    }
    let digest = query.digest();
    let after = after
        .map(|c| tenant.cursor_key.open(&digest, c))
        .transpose()?;
    let Some(def) = lookup(view, &query.table) else {
        return Ok(Page::default());
    };
    let size = page_size as usize;
    let want = Want {
        documents: size + 1,
        short_is_fine: true,
    };
    let mut found = exec::run(view, &def, query, after.as_ref(), want).await?;
    let has_more = found.hits.len() > size || found.cut_by_bytes;
    found.hits.truncate(size);
    let next_cursor = match found.hits.last() {
        Some(last) if has_more => {
            let document = parse(&last.body)?;
            let position = Position::of(&document, last.id.internal, query.order_field());
            Some(tenant.cursor_key.seal(&digest, &position))
        }
        _ => None,
    };
    Ok(Page {
        documents: found.hits.into_iter().map(Document::from).collect(),
        next_cursor,
        has_more,
    })
}

/// Random bits for ids, fetched from the operating system a block at a time.
struct Entropy {
    block: [u8; 64],
    used: usize,
}

impl Default for Entropy {
    fn default() -> Entropy {
        Entropy {
            block: [0; 64],
            used: 64,
        }
    }
}

impl Entropy {
    fn next(&mut self) -> StoreResult<u64> {
        if self.used + 8 > self.block.len() {
            super::fill_random(&mut self.block)?;
            self.used = 0;
        }
        let mut word = [0; 8];
        word.copy_from_slice(&self.block[self.used..self.used + 8]);
        self.used += 8;
        Ok(u64::from_be_bytes(word))
    }
}
