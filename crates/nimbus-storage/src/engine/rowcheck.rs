//! What must hold for the rows of an archive, checked as they pass.
//!
//! A restore checks order, definitions and the log's chain here, and the rest on the tenant that it
//! made. Who has no tenant to look at ([`RowCheck::deep`]) checks documents, and that the log and the
//! data agree, here as well: what passes can then be restored. Where rows come from is not known.

use std::collections::HashMap;

use bytes::Bytes;
use nimbus_core::DocumentId;
use sha2::{Digest as _, Sha256};

use super::archive::{ORDER, gap, is_left_out};
use super::catalog::Catalog;
use super::check::{Findings, expected_entries, image_hash};
use super::log::Floor;
use super::record::{self, Record};
use crate::error::{StoreError, StoreResult};
use crate::provider::{Head, Keyspace};

type Hash = [u8; 32];

/// What a deep check remembers.
#[derive(Default)]
struct Deep {
    /// The newest image of every key in the log whose row is still to come; `None` for a deletion.
    logged: HashMap<(Keyspace, Vec<u8>), Option<Hash>>,
    /// Rows of meta, which come before the log.
    meta: HashMap<Vec<u8>, Hash>,
}

/// Checks rows one by one, in constant memory but for the definitions of tables and one commit
/// record; a deep check remembers a hash for every key in the log besides.
pub(crate) struct RowCheck {
    head: Head,
    last: Option<(usize, Vec<u8>)>,
    catalog: Catalog,
    /// The record that is being put together from parts: its sequence, the next part, its text.
    record: Option<(u64, u16, Vec<u8>)>,
    /// The newest whole record: its sequence, hash and time.
    newest: (u64, Hash, u64),
    deep: Option<Deep>,
}

impl RowCheck {
    pub(crate) fn new(head: Head, floor: Floor) -> RowCheck {
        RowCheck {
            head,
            last: None,
            catalog: Catalog::default(),
            record: None,
            newest: (floor.sequence, floor.hash, 0),
            deep: None,
        }
    }

    /// A check after which nothing but storage can keep the rows from being restored.
    pub(crate) fn deep(head: Head, floor: Floor) -> RowCheck {
        RowCheck {
            deep: Some(Deep::default()),
            ..RowCheck::new(head, floor)
        }
    }

    /// The tables that were defined so far.
    pub(crate) fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Takes the next row.
    ///
    /// # Errors
    /// `Corrupt` with what is wrong with it.
    pub(crate) fn row(&mut self, space: Keyspace, key: &[u8], value: &Bytes) -> StoreResult<()> {
        let place = ORDER.iter().position(|s| *s == space);
        let Some(place) = place.filter(|_| !is_left_out(space, key)) else {
            return Err(StoreError::corrupt(format!(
                "a row of {} that an archive does not hold",
                space.name()
            )));
        };
        let follows = self
            .last
            .as_ref()
            .is_none_or(|(p, k)| (*p, k.as_slice()) < (place, key));
        if !follows {
            return Err(StoreError::corrupt("rows are out of order"));
        }
        self.last = Some((place, key.to_vec()));
        if space != Keyspace::Log {
            self.end_record()?;
        }
        match space {
            Keyspace::Meta if Catalog::owns(key) => {
                self.catalog.apply(key, Some(value))?;
            }
            Keyspace::Log => self.part(key, value)?,
            Keyspace::Docs => self.document(key, value)?,
            _ => {}
        }
        self.agrees(space, key, value)
    }

    /// Whether a row is what the log says.
    fn agrees(&mut self, space: Keyspace, key: &[u8], value: &[u8]) -> StoreResult<()> {
        let Some(deep) = &mut self.deep else {
            return Ok(());
        };
        match space {
            Keyspace::Log => Ok(()),
            Keyspace::Meta => {
                deep.meta.insert(key.to_vec(), Sha256::digest(value).into());
                Ok(())
            }
            _ => match deep.logged.remove(&(space, key.to_vec())) {
                Some(logged) if logged != Some(Sha256::digest(value).into()) => {
                    Err(disagrees(space, key))
                }
                _ => Ok(()),
            },
        }
    }

    fn document(&mut self, key: &[u8], body: &Bytes) -> StoreResult<()> {
        let id = DocumentId::from_key(key)
            .map_err(|e| StoreError::corrupt(format!("document key: {e}")))?;
        if self.catalog.by_number(id.table).is_none() {
            return Err(StoreError::corrupt(format!("document {id} has no table")));
        }
        if self.deep.is_none() {
            return Ok(());
        }
        let mut findings = Findings::default();
        expected_entries(
            &self.catalog,
            &[(key.to_vec(), body.clone())],
            &mut findings,
        );
        match findings.first() {
            None => Ok(()),
            Some(found) => Err(StoreError::corrupt(found)),
        }
    }

    fn part(&mut self, key: &[u8], value: &[u8]) -> StoreResult<()> {
        let (sequence, part) = record::parse_key(key)?;
        match &mut self.record {
            Some((s, next, text)) if *s == sequence && *next == part => {
                *next = part.saturating_add(1);
                text.extend_from_slice(value);
                return Ok(());
            }
            _ => self.end_record()?,
        }
        if part != 0 || sequence != self.newest.0 + 1 {
            return Err(gap(self.newest.0));
        }
        self.record = Some((sequence, 1, value.to_vec()));
        Ok(())
    }

    fn end_record(&mut self) -> StoreResult<()> {
        let Some((sequence, _, text)) = self.record.take() else {
            return Ok(());
        };
        let hash: [u8; 32] = Sha256::digest(&text).into();
        let record = Record::decode(&text)?;
        let (before, previous, time) = self.newest;
        if record.sequence != sequence || sequence != before + 1 || record.previous != previous {
            return Err(StoreError::corrupt(format!(
                "commit record {sequence} does not follow the one before it"
            )));
        }
        if record.timestamp <= time {
            return Err(StoreError::corrupt(format!(
                "commit record {sequence} is not later than the one before it"
            )));
        }
        self.newest = (sequence, hash, record.timestamp);
        if let Some(deep) = &mut self.deep {
            for write in record.writes {
                let after = image_hash(&write.after);
                deep.logged.insert((write.space, write.key), after);
            }
        }
        Ok(())
    }

    /// Ends the check.
    ///
    /// # Errors
    /// `Corrupt` when the log does not lead to the head.
    pub(crate) fn end(&mut self) -> StoreResult<()> {
        self.end_record()?;
        let (sequence, hash, _) = self.newest;
        if (sequence, hash) != (self.head.sequence, self.head.hash) {
            return Err(StoreError::corrupt(format!(
                "the log ends with commit {sequence} and does not lead to the head, {:?}",
                self.head
            )));
        }
        let Some(deep) = &self.deep else {
            return Ok(());
        };
        // What no row came for must be gone; rows of meta came before.
        for ((space, key), logged) in &deep.logged {
            let stored = match space {
                Keyspace::Meta => deep.meta.get(key).copied(),
                _ => None,
            };
            if stored != *logged {
                return Err(disagrees(*space, key));
            }
        }
        Ok(())
    }
}

fn disagrees(space: Keyspace, key: &[u8]) -> StoreError {
    let key = data_encoding::HEXLOWER.encode(&key[..key.len().min(64)]);
    StoreError::corrupt(format!(
        "the newest commit that wrote {} {key} does not agree with what is there",
        space.name()
    ))
}
