//! Reading a backup to its end and checking all of it, without a place to put it.
//!
//! Memory is constant but for the names of tenants, the definitions of one tenant's tables, one commit
//! record, and a hash for each key in one tenant's log.

use nimbus_core::TenantId;

use super::error::BackupResult;
use super::format::{Frame, Header, TenantStart};
use super::seal::Source;
use super::summary::{Summary, TenantSummary};
use crate::engine::RowCheck;
use crate::error::{StoreError, StoreResult};
use crate::provider::Keyspace;

/// Reads the whole backup: frames, digests and seal; for every tenant the order of rows, table
/// definitions, documents and their schemas, the hash chain of the commit log, and that log and data
/// agree. Blocks.
///
/// # Errors
/// `Damaged`, `Truncated`, `Io`.
pub fn verify(mut source: Source) -> BackupResult<Summary> {
    let header = header(&mut source)?;
    let mut walk = Walk::new(&header, source.sealed);
    let mut check = None;
    loop {
        let frame = source.frames.next()?;
        walk.frame(&source, &frame)?;
        let fault = |e: StoreError| source.frames.damaged(e.inside().unwrap_or(e.to_string()));
        match frame {
            Frame::Tenant(start) => check = Some(RowCheck::deep(start.head(), start.floor())),
            Frame::Row(space, key, value) => {
                let row = |check: &mut RowCheck| check.row(space, &key, &value);
                each(&mut check, row).map_err(fault)?;
            }
            Frame::TenantEnd => each(&mut check, RowCheck::end).map_err(fault)?,
            Frame::End => return Ok(walk.summary),
            Frame::Header(_) | Frame::Gone(_) => {}
        }
    }
}

fn each(
    check: &mut Option<RowCheck>,
    step: impl FnOnce(&mut RowCheck) -> StoreResult<()>,
) -> StoreResult<()> {
    check.as_mut().map_or(Ok(()), step)
}

/// The first frame.
pub(super) fn header(source: &mut Source) -> BackupResult<Header> {
    match source.frames.next()? {
        Frame::Header(header) => Ok(header),
        _ => Err(source.frames.damaged("it does not begin with a header")),
    }
}

/// Counts what passes, and holds it against the header.
pub(super) struct Walk {
    pub(super) summary: Summary,
    /// Tenants that are still to come, the next one last.
    expected: Vec<TenantId>,
}

impl Walk {
    pub(super) fn new(header: &Header, sealed: bool) -> Walk {
        Walk {
            summary: Summary {
                created_at_ms: header.created_at_ms,
                nimbus: header.nimbus.clone(),
                sealed,
                ..Summary::default()
            },
            expected: header.tenants.iter().rev().cloned().collect(),
        }
    }

    pub(super) fn frame(&mut self, source: &Source, frame: &Frame) -> BackupResult<()> {
        match frame {
            Frame::Tenant(start) => {
                self.turn(source, &start.tenant)?;
                self.summary.tenants.push(begun(start));
            }
            Frame::Gone(tenant) => {
                self.turn(source, tenant)?;
                self.summary.deleted.push(tenant.clone());
            }
            Frame::Row(space, key, value) => {
                if let Some(tenant) = self.summary.tenants.last_mut() {
                    tenant.rows += 1;
                    tenant.documents += u64::from(*space == Keyspace::Docs);
                    tenant.bytes += (key.len() + value.len()) as u64;
                }
            }
            Frame::End if !self.expected.is_empty() => {
                return Err(source.frames.damaged("tenants of the header are missing"));
            }
            Frame::Header(_) | Frame::TenantEnd | Frame::End => {}
        }
        Ok(())
    }

    fn turn(&mut self, source: &Source, tenant: &TenantId) -> BackupResult<()> {
        match self.expected.pop() {
            Some(expected) if expected == *tenant => Ok(()),
            _ => Err(source
                .frames
                .damaged(format!("tenant {tenant} is not the next of the header"))),
        }
    }
}

fn begun(start: &TenantStart) -> TenantSummary {
    let head = start.head();
    TenantSummary {
        tenant: start.tenant.clone(),
        sequence: head.sequence,
        timestamp: head.timestamp,
        documents: 0,
        rows: 0,
        bytes: 0,
    }
}
