//! The consistency check: do documents, index contents and commit log agree?
//!
//! Works in chunks, each on a view of its own, so it may run as long as it likes beside
//! writers: a chunk compares documents with index entries of the same view. The log is
//! verified on one view: chain, order, head, and that the newest image of every key in it
//! is what the keyspace holds.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use nimbus_core::{DocumentId, TenantId, value};
use serde::Serialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use super::catalog::{Catalog, IndexDef, IndexState, TableDef, TableSchema};
use super::exec::parse;
use super::index;
use super::log::{FLOOR_KEY, Floor, RecordReader};
use super::query::{MAX_RESULT_BYTES, MAX_RESULT_DOCUMENTS};
use super::record::Image;
use super::schema_change::indexes_by_id;
use super::tenant::Tenant;
use super::view::{Scan, View};
use crate::error::{StoreError, StoreResult};
use crate::provider::{Direction, Head, KeyRange, Keyspace};

/// Rows of one chunk.
const CHUNK: usize = 512;
/// Values read at once by key, where nothing else bounds their bytes.
const VALUES: usize = 16;
/// Mismatches reported at most; the count of the rest is in the last one.
const MAX_MISMATCHES: usize = 100;

/// Format version of documents and index entries.
const DATA_VERSION: u32 = 1;

/// Answer to [`Tenant::consistency`].
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ConsistencyReport {
    /// The tenant.
    pub tenant_id: TenantId,
    /// Whether nothing contradicts anything.
    pub ok: bool,
    /// What the documents say: counts, and a digest of the index entries that they entail.
    pub authoritative: Scope,
    /// The same from what the indexes hold; equal digests mean equal contents.
    pub shadow: Scope,
    /// Filled by the libSQL provider only.
    pub embedded_replica: Option<Scope>,
    /// Where the log stands.
    pub bootstrap: BootstrapCut,
    /// What contradicts what; at most 100.
    pub mismatches: Vec<Mismatch>,
}

/// One side of the comparison.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Scope {
    /// Order-independent digest of index entries, hexadecimal.
    pub digest: String,
    /// Format version of the data.
    pub version: u32,
    /// Newest commit that the last chunk saw.
    pub applied_sequence: u64,
    /// Newest durable commit.
    pub durable_head: u64,
    /// Tables with a schema.
    pub schema_table_count: u64,
    /// Documents.
    pub document_count: u64,
    /// Index entries.
    pub index_entry_count: u64,
    /// Scheduled executions recorded in the retained log.
    pub scheduled_execution_count: u64,
}

/// Where the log stands.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct BootstrapCut {
    /// Hash of the newest commit record, hexadecimal.
    pub snapshot_digest: String,
    /// Sequence from which the log continues a copy made now.
    pub resume_after_sequence: u64,
    /// Newest commit at the time of the check.
    pub bootstrap_cut_sequence: u64,
    /// Newest commit that was pruned from the log.
    pub cursor_floor_sequence: u64,
}

/// One contradiction.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Mismatch {
    /// The rule that is broken, for example `document_has_index_entry`.
    pub invariant: &'static str,
    /// One side: `documents`, `indexes`, `log`, `head` or `catalog`.
    pub left_scope: &'static str,
    /// The other side.
    pub right_scope: &'static str,
    /// What it is about: a document id, an index entry, a sequence.
    pub path: String,
    /// What the left side says.
    pub left_description: String,
    /// What the right side says.
    pub right_description: String,
}

/// Everything a tenant holds, for a copy that then follows the journal (nimbus.md 2.8).
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Bootstrap {
    /// The state.
    pub snapshot: BootstrapSnapshot,
    /// Continue the journal after this sequence.
    pub resume_after_sequence: u64,
    /// The commit at which the state was taken.
    pub bootstrap_cut_sequence: u64,
    /// Newest commit that was pruned from the log.
    pub cursor_floor_sequence: u64,
}

/// See [`Bootstrap::snapshot`].
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct BootstrapSnapshot {
    /// Format version.
    pub version: u32,
    /// The commit at which the state was taken.
    pub applied_sequence: u64,
    /// Newest durable commit.
    pub durable_head: u64,
    /// Schema per table.
    pub schema: BTreeMap<String, TableSchema>,
    /// Documents per table.
    pub documents: BTreeMap<String, Vec<Box<RawValue>>>,
    /// Scheduled executions recorded in the retained log.
    pub scheduled_execution_ids: Vec<String>,
}

/// Sum of SHA-256 digests modulo 2^256: equal for equal sets in any order.
#[derive(Default)]
struct SetDigest([u64; 4]);

impl SetDigest {
    fn add(&mut self, entry: &[u8]) {
        let hash = Sha256::digest(entry);
        let mut carry = 0u64;
        for (word, chunk) in self.0.iter_mut().zip(hash.chunks_exact(8)) {
            let add = chunk.iter().fold(0u64, |n, b| n << 8 | u64::from(*b));
            let (sum, over) = word.overflowing_add(add);
            let (sum, over_carry) = sum.overflowing_add(carry);
            *word = sum;
            carry = u64::from(over) + u64::from(over_carry);
        }
    }

    fn hex(&self) -> String {
        self.0.iter().map(|w| format!("{w:016x}")).collect()
    }
}

#[derive(Default)]
pub(super) struct Findings {
    list: Vec<Mismatch>,
    more: usize,
}

impl Findings {
    /// The first one, as text.
    pub(super) fn first(&self) -> Option<String> {
        let found = self.list.first()?;
        Some(format!(
            "{} at {}: {}, but {}",
            found.invariant, found.path, found.left_description, found.right_description
        ))
    }

    fn add(
        &mut self,
        invariant: &'static str,
        scopes: (&'static str, &'static str),
        path: impl Into<String>,
        left: impl Into<String>,
        right: impl Into<String>,
    ) {
        if self.list.len() >= MAX_MISMATCHES {
            self.more += 1;
            return;
        }
        self.list.push(Mismatch {
            invariant,
            left_scope: scopes.0,
            right_scope: scopes.1,
            path: path.into(),
            left_description: left.into(),
            right_description: right.into(),
        });
    }
}

impl Tenant {
    /// Compares documents, indexes and log. Heavy: reads the whole tenant, in constant memory
    /// but for one hash per key in the retained log.
    ///
    /// # Errors
    /// Only when storage cannot be read; contradictions are in the report.
    pub async fn consistency(&self) -> StoreResult<ConsistencyReport> {
        // What is looked for was not done through the store.
        self.inner.store.look_again();
        let mut findings = Findings::default();
        let mut authoritative = self.check_documents(&mut findings).await?;
        let mut shadow = self.check_indexes(&mut findings).await?;
        shadow.document_count = authoritative.document_count;
        let (bootstrap, executions) = self.check_log(&mut findings).await?;
        authoritative.scheduled_execution_count = executions;
        shadow.scheduled_execution_count = executions;
        if let (Some(last), true) = (findings.list.last_mut(), findings.more > 0) {
            last.right_description
                .push_str(&format!(" (and {} more mismatches)", findings.more));
        }
        Ok(ConsistencyReport {
            tenant_id: self.id().clone(),
            ok: findings.list.is_empty(),
            authoritative,
            shadow,
            embedded_replica: None,
            bootstrap,
            mismatches: findings.list,
        })
    }

    fn scope(&self, view: &View, digest: &SetDigest) -> Scope {
        Scope {
            digest: digest.hex(),
            version: DATA_VERSION,
            applied_sequence: view.read_sequence,
            durable_head: self.inner.state().durable.sequence,
            schema_table_count: view
                .catalog
                .tables()
                .filter(|t| t.fields.is_some() || t.deployed.is_some())
                .count() as u64,
            ..Scope::default()
        }
    }

    /// Every document is one of a known table, carries its id, matches the schema, and has
    /// its entry in every complete index.
    async fn check_documents(&self, findings: &mut Findings) -> StoreResult<Scope> {
        let mut range = KeyRange::all();
        let mut digest = SetDigest::default();
        let (mut documents, mut entries) = (0, 0);
        loop {
            let mut view = self.inner.durable_view(false).await?.unbounded();
            let mut scan = Scan::new(Keyspace::Docs, range.clone(), Direction::Forward);
            let rows = view.scan_next(&mut scan, CHUNK).await?;
            let Some((last, _)) = rows.last() else {
                let mut scope = self.scope(&view, &digest);
                (scope.document_count, scope.index_entry_count) = (documents, entries);
                return Ok(scope);
            };
            range.start = [last.as_slice(), &[0]].concat();
            documents += rows.len() as u64;
            let expected = expected_entries(&view.catalog, &rows, findings);
            entries += expected.len() as u64;
            for (stored, _) in &expected {
                digest.add(stored);
            }
            let keys: Vec<&[u8]> = expected.iter().map(|(k, _)| k.as_slice()).collect();
            let found = view.get_many(Keyspace::Index, &keys).await?;
            for ((stored, id), value) in expected.iter().zip(found) {
                if value.is_none() {
                    findings.add(
                        "document_has_index_entry",
                        ("documents", "indexes"),
                        id.to_string(),
                        format!("entails entry {}", describe(stored)),
                        "no such entry",
                    );
                }
            }
        }
    }

    /// Every entry of a complete index points to a document that entails it.
    async fn check_indexes(&self, findings: &mut Findings) -> StoreResult<Scope> {
        let mut range = KeyRange::all();
        let mut digest = SetDigest::default();
        let mut entries = 0;
        loop {
            let mut view = self.inner.durable_view(false).await?.unbounded();
            let mut scan = Scan::new(Keyspace::Index, range.clone(), Direction::Forward);
            let rows = view.scan_next(&mut scan, CHUNK).await?;
            let Some((last, _)) = rows.last() else {
                let mut scope = self.scope(&view, &digest);
                scope.index_entry_count = entries;
                return Ok(scope);
            };
            range.start = [last.as_slice(), &[0]].concat();
            let indexes = indexes_by_id(&view.catalog);
            for (stored, value) in &rows {
                match owner(&indexes, stored) {
                    None => findings.add(
                        "index_entry_has_index",
                        ("indexes", "catalog"),
                        describe(stored),
                        "entry is stored",
                        "no index of this number",
                    ),
                    Some((table, index)) if index.state == IndexState::Enabled => {
                        entries += 1;
                        digest.add(stored);
                        check_entry(&mut view, table, index, (stored, value), findings).await?;
                    }
                    // Being filled or removed: incomplete by design, and unused.
                    Some(_) => {}
                }
            }
        }
    }

    /// The log's chain is whole from its floor to the head, and its newest images are current.
    async fn check_log(&self, findings: &mut Findings) -> StoreResult<(BootstrapCut, u64)> {
        let mut view = self.inner.durable_view(false).await?.unbounded();
        let head = Head::decode(
            &view
                .get(Keyspace::Meta, crate::provider::HEAD_KEY)
                .await?
                .unwrap_or_default(),
        )
        .ok_or_else(|| StoreError::corrupt("the head row is missing"))?;
        let floor = Floor::decode(view.get(Keyspace::Meta, FLOOR_KEY).await?.as_deref())?;
        let mut reader = RecordReader::after(floor.sequence);
        let (mut sequence, mut hash, mut time, mut executions) = (floor.sequence, floor.hash, 0, 0);
        let mut newest: HashMap<(Keyspace, Vec<u8>), Option<[u8; 32]>> = HashMap::new();
        loop {
            let record = match reader.next(&mut view).await {
                Ok(Some((record, _))) => record,
                Ok(None) => break,
                Err(StoreError::Corrupt { inside }) => {
                    findings.add(
                        "log_record_decodes",
                        ("log", "log"),
                        format!("after {sequence}"),
                        inside,
                        "",
                    );
                    break;
                }
                Err(other) => return Err(other),
            };
            let path = record.sequence.to_string();
            if record.sequence != sequence + 1 || record.previous != hash {
                findings.add(
                    "log_is_chained",
                    ("log", "log"),
                    path.clone(),
                    format!("follows {sequence} with hash {}", short(&hash)),
                    format!("names {} as the hash before it", short(&record.previous)),
                );
            }
            if record.timestamp <= time {
                findings.add(
                    "log_time_increases",
                    ("log", "log"),
                    path,
                    format!("{time}"),
                    format!("{}", record.timestamp),
                );
            }
            (sequence, hash, time) = (record.sequence, record.hash, record.timestamp);
            executions += u64::from(record.execution.is_some());
            for write in record.writes {
                newest.insert((write.space, write.key), image_hash(&write.after));
            }
        }
        if (sequence, hash) != (head.sequence, head.hash) {
            findings.add(
                "head_is_newest_record",
                ("head", "log"),
                head.sequence.to_string(),
                format!("head {} {}", head.sequence, short(&head.hash)),
                format!("newest record {sequence} {}", short(&hash)),
            );
        }
        compare_images(&mut view, newest, findings).await?;
        let cut = BootstrapCut {
            snapshot_digest: data_encoding::HEXLOWER.encode(&head.hash),
            resume_after_sequence: head.sequence,
            bootstrap_cut_sequence: head.sequence,
            cursor_floor_sequence: floor.sequence,
        };
        Ok((cut, executions))
    }

    /// The whole state at one commit, from which a copy can follow the journal.
    ///
    /// # Errors
    /// `CapExceeded` past 10,000 documents or 16 MiB.
    pub async fn journal_bootstrap(&self) -> StoreResult<Bootstrap> {
        let mut view = self.inner.durable_view(false).await?.unbounded();
        let catalog = view.catalog.clone();
        let mut documents: BTreeMap<String, Vec<Box<RawValue>>> = BTreeMap::new();
        let (mut count, mut bytes) = (0u64, 0usize);
        let mut scan = Scan::new(Keyspace::Docs, KeyRange::all(), Direction::Forward);
        while !scan.done {
            for (key, body) in view.scan_next(&mut scan, CHUNK).await? {
                count += 1;
                bytes += body.len();
                bounded(count, bytes)?;
                let id =
                    DocumentId::from_key(&key).map_err(|e| StoreError::corrupt(e.to_string()))?;
                let table = catalog
                    .by_number(id.table)
                    .map(|t| t.name.to_string())
                    .unwrap_or_default();
                let text = String::from_utf8(body.to_vec())
                    .map_err(|_| StoreError::corrupt("a stored document is not UTF-8"))?;
                let raw =
                    RawValue::from_string(text).map_err(|e| StoreError::corrupt(e.to_string()))?;
                documents.entry(table).or_default().push(raw);
            }
        }
        let floor = Floor::decode(view.get(Keyspace::Meta, FLOOR_KEY).await?.as_deref())?;
        let mut executions = Vec::new();
        let mut reader = RecordReader::after(floor.sequence);
        while let Some((record, _)) = reader.next(&mut view).await? {
            executions.extend(record.execution);
        }
        let schema = catalog
            .tables()
            .filter_map(|t| Some((t.name.to_string(), t.schema()?)))
            .collect();
        Ok(Bootstrap {
            snapshot: BootstrapSnapshot {
                version: DATA_VERSION,
                applied_sequence: view.read_sequence,
                durable_head: view.read_sequence,
                schema,
                documents,
                scheduled_execution_ids: executions,
            },
            resume_after_sequence: view.read_sequence,
            bootstrap_cut_sequence: view.read_sequence,
            cursor_floor_sequence: floor.sequence,
        })
    }
}

fn bounded(count: u64, bytes: usize) -> StoreResult<()> {
    let advice = "read the tables page by page, then follow the journal";
    if count > u64::from(MAX_RESULT_DOCUMENTS) {
        let limit = u64::from(MAX_RESULT_DOCUMENTS);
        return Err(StoreError::CapExceeded {
            cap: "result_documents",
            limit,
            observed: count,
            advice,
        });
    }
    if bytes > MAX_RESULT_BYTES {
        let (limit, observed) = (MAX_RESULT_BYTES as u64, bytes as u64);
        return Err(StoreError::CapExceeded {
            cap: "result_bytes",
            limit,
            observed,
            advice,
        });
    }
    Ok(())
}

/// Stored index keys that the documents of a chunk entail, with the documents' ids.
pub(super) fn expected_entries(
    catalog: &Catalog,
    rows: &[(Vec<u8>, Bytes)],
    findings: &mut Findings,
) -> Vec<(Vec<u8>, DocumentId)> {
    let mut expected = Vec::new();
    for (key, body) in rows {
        let Ok(id) = DocumentId::from_key(key) else {
            findings.add(
                "document_key_is_an_id",
                ("documents", "documents"),
                describe(key),
                "key",
                "not an id",
            );
            continue;
        };
        let path = id.to_string();
        let Some(table) = catalog.by_number(id.table) else {
            findings.add(
                "document_has_table",
                ("documents", "catalog"),
                path,
                "document is stored",
                "no such table",
            );
            continue;
        };
        let Ok(document) = parse(body) else {
            findings.add(
                "document_decodes",
                ("documents", "documents"),
                path,
                "body is stored",
                "it does not parse",
            );
            continue;
        };
        let mut canonical = String::new();
        value::write_object_json(&document, &mut canonical);
        let named = document.get("_id") == Some(&nimbus_core::Value::String(path.clone()));
        if canonical.as_bytes() != body.as_ref() || !named {
            findings.add(
                "document_is_canonical",
                ("documents", "documents"),
                path.clone(),
                "body is stored",
                "it is not canonical or carries another _id",
            );
        }
        let admitted = table
            .check_document(&document)
            .and_then(|()| table.check_deployed(&document, catalog));
        if let Err(error) = admitted {
            findings.add(
                "document_matches_schema",
                ("documents", "catalog"),
                path,
                "document is stored",
                error.to_string(),
            );
        }
        for index in table.usable() {
            expected.push((index::entry(index, id.internal, &document).stored, id));
        }
    }
    expected
}

fn owner<'a>(
    indexes: &'a HashMap<u32, (Arc<TableDef>, IndexDef)>,
    stored: &[u8],
) -> Option<&'a (Arc<TableDef>, IndexDef)> {
    let number = stored.first_chunk::<{ index::INDEX_PREFIX }>()?;
    indexes.get(&u32::from_be_bytes(*number))
}

async fn check_entry(
    view: &mut View,
    table: &TableDef,
    index: &IndexDef,
    (stored, value): (&[u8], &[u8]),
    findings: &mut Findings,
) -> StoreResult<()> {
    let Ok(id) = index::target(table.number, stored, value) else {
        findings.add(
            "index_entry_has_document",
            ("indexes", "documents"),
            describe(stored),
            "entry is stored",
            "it names no document",
        );
        return Ok(());
    };
    let body = view.get(Keyspace::Docs, &id.key()).await?;
    let entailed = body.as_ref().and_then(|body| parse(body).ok()).map(|d| {
        let entry = index::entry(index, id.internal, &d);
        entry.stored == stored && entry.value == value
    });
    if entailed != Some(true) {
        let right = match entailed {
            Some(_) => "document entails another entry",
            None => "no such document",
        };
        findings.add(
            "index_entry_has_document",
            ("indexes", "documents"),
            describe(stored),
            id.to_string(),
            right,
        );
    }
    Ok(())
}

pub(super) fn image_hash(image: &Image) -> Option<[u8; 32]> {
    match image {
        Image::Absent => None,
        Image::Inline(value) => Some(Sha256::digest(value).into()),
        Image::Elsewhere { hash, .. } => Some(*hash),
    }
}

/// The newest image of every key in the log is what its keyspace holds now.
async fn compare_images(
    view: &mut View,
    newest: HashMap<(Keyspace, Vec<u8>), Option<[u8; 32]>>,
    findings: &mut Findings,
) -> StoreResult<()> {
    let spaces: HashSet<Keyspace> = newest.keys().map(|(s, _)| *s).collect();
    for space in spaces {
        let wanted: Vec<_> = newest.iter().filter(|((s, _), _)| *s == space).collect();
        // A module may have megabytes.
        let at_once = if space == Keyspace::Code { 1 } else { VALUES };
        for chunk in wanted.chunks(at_once) {
            let keys: Vec<&[u8]> = chunk.iter().map(|((_, k), _)| k.as_slice()).collect();
            let stored = view.get_many(space, &keys).await?;
            for (((_, key), logged), value) in chunk.iter().zip(stored) {
                let actual = value.map(|v| <[u8; 32]>::from(Sha256::digest(&v)));
                if actual != **logged {
                    findings.add(
                        "log_agrees_with_data",
                        (
                            "log",
                            if space == Keyspace::Docs {
                                "documents"
                            } else {
                                "catalog"
                            },
                        ),
                        describe(key),
                        logged.map_or("deleted".into(), |h| short(&h)),
                        actual.map_or("absent".into(), |h| short(&h)),
                    );
                }
            }
        }
    }
    Ok(())
}

fn describe(key: &[u8]) -> String {
    let mut out = data_encoding::HEXLOWER.encode(&key[..key.len().min(64)]);
    if key.len() > 64 {
        out.push_str("..");
    }
    out
}

fn short(hash: &[u8; 32]) -> String {
    data_encoding::HEXLOWER.encode(&hash[..8])
}
