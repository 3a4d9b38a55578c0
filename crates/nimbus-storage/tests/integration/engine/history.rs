//! A checker of histories: every committed transaction must have read exactly the state just
//! before its own commit, as the journal tells it, and no older than what had been
//! acknowledged when it began. That is strict serializability with the commit order as witness.
//!
//! It must not trust anything but the journal and what the clients saw.

use std::collections::BTreeMap;

use nimbus_storage::core::{DocumentId, Object};
use nimbus_storage::{Document, Query, StoreResult, Tenant, Transaction};

use super::support::{Model, json, jsons};

/// One thing that a client read.
pub enum Read {
    Document(DocumentId, Option<String>),
    Query(Query, Vec<String>),
}

/// When the reads of an observation must hold, all at once.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// In the state after this commit.
    After(u64),
    /// In one of the states after these commits, bounds included.
    Within(u64, u64),
}

/// What one committed transaction, or one plain read, saw.
pub struct Observed {
    pub label: String,
    /// Greatest commit that was acknowledged to anyone before it began.
    pub acknowledged: u64,
    pub when: When,
    pub reads: Vec<Read>,
}

/// A transaction that notes what it reads. Reads come before writes.
pub struct Session {
    pub tx: Transaction,
    label: String,
    acknowledged: u64,
    reads: Vec<Read>,
}

impl Session {
    pub async fn begin(
        tenant: &Tenant,
        label: impl Into<String>,
        acknowledged: u64,
    ) -> StoreResult<Session> {
        Ok(Session {
            tx: tenant.begin().await?,
            label: label.into(),
            acknowledged,
            reads: Vec::new(),
        })
    }

    pub async fn get(&mut self, id: DocumentId) -> StoreResult<Option<Object>> {
        let found = self.tx.get(id).await?;
        self.reads
            .push(Read::Document(id, found.as_ref().map(json)));
        found.map(|d| d.fields()).transpose()
    }

    pub async fn query(&mut self, query: &Query) -> StoreResult<Vec<Document>> {
        let found = self.tx.query(query).await?;
        self.reads.push(Read::Query(query.clone(), jsons(&found)));
        Ok(found)
    }

    /// Commits a transaction that wrote; the observation and the commit's sequence.
    pub async fn commit(self, tenant: &Tenant) -> StoreResult<(Observed, u64)> {
        let sequence = tenant.commit(self.tx).await?;
        let observed = Observed {
            label: format!("{} (commit {sequence})", self.label),
            acknowledged: self.acknowledged,
            when: When::After(sequence - 1),
            reads: self.reads,
        };
        Ok((observed, sequence))
    }

    /// Ends a transaction that wrote nothing.
    pub async fn finish(self, tenant: &Tenant) -> StoreResult<Observed> {
        let sequence = tenant.commit(self.tx).await?;
        Ok(Observed {
            label: format!("{} (read at {sequence})", self.label),
            acknowledged: self.acknowledged,
            when: When::After(sequence),
            reads: self.reads,
        })
    }
}

/// One commit's effect on the table.
struct Change {
    id: DocumentId,
    before: Option<String>,
    after: Option<String>,
}

/// Commits 1, 2, .. in order, as the journal has them.
async fn journal(tenant: &Tenant, table: &str) -> Vec<Vec<Change>> {
    let mut commits = Vec::new();
    let mut after = 0;
    loop {
        let page = tenant.journal(after, 500).await.unwrap();
        for record in page.records {
            assert_eq!(
                record.sequence,
                commits.len() as u64 + 1,
                "a gap in the journal"
            );
            let writes = record.writes.into_iter().filter(|w| w.table == table);
            let changes = writes.map(|w| Change {
                id: w.doc_id.parse().unwrap(),
                before: w.previous.map(|v| v.get().to_owned()),
                after: w.current.map(|v| v.get().to_owned()),
            });
            commits.push(changes.collect());
        }
        after = page.next_cursor;
        if !page.has_more {
            return commits;
        }
    }
}

/// The table as the journal says it was after some commit.
#[derive(Default)]
struct State {
    texts: BTreeMap<DocumentId, String>,
    model: Model,
}

impl State {
    fn apply(&mut self, sequence: u64, changes: &[Change], found: &mut Vec<String>) {
        for change in changes {
            if self.texts.get(&change.id) != change.before.as_ref() {
                found.push(format!(
                    "commit {sequence} replaced {:?} of {}, which was {:?}",
                    change.before,
                    change.id,
                    self.texts.get(&change.id)
                ));
            }
            match &change.after {
                Some(text) => {
                    let fields: Object = serde_json::from_str(text).unwrap();
                    self.texts.insert(change.id, text.clone());
                    self.model.0.insert(change.id, fields);
                }
                None => {
                    self.texts.remove(&change.id);
                    self.model.0.remove(&change.id);
                }
            }
        }
    }

    /// What contradicts this state among the reads.
    fn contradiction(&self, reads: &[Read]) -> Option<String> {
        reads.iter().find_map(|read| match read {
            Read::Document(id, seen) => {
                let actual = self.texts.get(id);
                (actual != seen.as_ref()).then(|| format!("{id}: read {seen:?}, was {actual:?}"))
            }
            Read::Query(query, seen) => {
                let answer = self.model.answer(query);
                let actual: Vec<_> = answer.iter().map(|id| &self.texts[id]).collect();
                let same = actual.iter().copied().eq(seen.iter());
                (!same).then(|| format!("{query:?}: read {seen:?}, was {actual:?}"))
            }
        })
    }
}

/// Everything that a serial execution in commit order cannot explain; empty if all is well.
pub async fn anomalies(tenant: &Tenant, table: &str, observed: &[Observed]) -> Vec<String> {
    let commits = journal(tenant, table).await;
    let mut found = Vec::new();
    let mut explained = vec![false; observed.len()];
    let mut state = State::default();
    for sequence in 0..=commits.len() as u64 {
        if let Some(changes) = sequence.checked_sub(1) {
            let changes = &commits[usize::try_from(changes).unwrap()];
            state.apply(sequence, changes, &mut found);
        }
        for (seen, explained) in observed.iter().zip(&mut explained) {
            let (first, last) = match seen.when {
                When::After(at) => (at, at),
                When::Within(first, last) => (first, last),
            };
            if *explained || !(first.max(seen.acknowledged)..=last).contains(&sequence) {
                continue;
            }
            match state.contradiction(&seen.reads) {
                None => *explained = true,
                Some(what) if sequence == last => found.push(format!("{}: {what}", seen.label)),
                Some(_) => {}
            }
        }
    }
    let stale = observed.iter().zip(&explained).filter(|(seen, explained)| {
        let (When::After(last) | When::Within(_, last)) = seen.when;
        !**explained && (last < seen.acknowledged || last > commits.len() as u64)
    });
    found.extend(stale.map(|(seen, _)| {
        format!(
            "{}: {:?}, but {} was acknowledged before it began and the head is {}",
            seen.label,
            seen.when,
            seen.acknowledged,
            commits.len()
        )
    }));
    found
}
