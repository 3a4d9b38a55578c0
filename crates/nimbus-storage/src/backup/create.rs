//! Making a backup: one tenant after the other, each as of one commit, as a stream that is read as
//! fast as its reader takes it. Where the bytes go is not known here.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use nimbus_core::TenantId;
use nimbus_crypto::{Dek, Manifest};

use super::error::{BackupError, BackupResult};
use super::format::{FrameWriter, Header, TenantStart};
use super::seal::{Outbox, Sink, new_key};
use crate::encryption::Keyring;
use crate::engine::{Archive, Engine};
use crate::error::StoreError;

/// Bytes that are gathered before they are handed out: 256 KiB.
const PIECE: usize = 256 * 1024;

/// A backup in the making. Nothing is read from storage but by [`Backup::next`].
pub struct Backup {
    engine: Engine,
    waiting: VecDeque<TenantId>,
    current: Option<(TenantId, Archive)>,
    /// `None` once the end was written.
    frames: Option<FrameWriter<Sink>>,
    outbox: Outbox,
}

impl Backup {
    /// Begins a backup of these tenants, or of all. It is sealed if there is a keyring.
    ///
    /// # Errors
    /// `TenantsMissing`; `Key` when no key is to be had; the provider's failure.
    pub async fn begin(
        engine: &Engine,
        tenants: &[TenantId],
        keyring: Option<Arc<Keyring>>,
    ) -> BackupResult<Backup> {
        let all = engine.list_tenants().await?;
        let missing: Vec<_> = tenants.iter().filter(|t| !all.contains(t)).collect();
        if !missing.is_empty() {
            let missing = missing.into_iter().cloned().collect();
            return Err(BackupError::TenantsMissing { missing });
        }
        let mut waiting = match tenants {
            [] => all,
            some => some.to_vec(),
        };
        waiting.sort();
        waiting.dedup();
        let outbox = Outbox::default();
        let (preamble, sink) = Sink::begin(outbox.clone(), key(keyring).await?)?;
        let mut frames = FrameWriter::new(sink, &preamble);
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        frames.header(&Header {
            created_at_ms: u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX),
            nimbus: env!("CARGO_PKG_VERSION").to_owned(),
            provider: engine.provider().name().to_owned(),
            tenants: waiting.clone(),
        })?;
        Ok(Backup {
            engine: engine.clone(),
            waiting: waiting.into(),
            current: None,
            frames: Some(frames),
            outbox,
        })
    }

    /// The next bytes; `None` after the last.
    ///
    /// # Errors
    /// As reading a tenant. The backup cannot go on then, and what there is of it is none.
    pub async fn next(&mut self) -> BackupResult<Option<Bytes>> {
        let mut piece = Vec::new();
        while piece.len() < PIECE && self.step().await? {
            piece.append(&mut self.outbox.fetch());
        }
        piece.append(&mut self.outbox.fetch());
        Ok((!piece.is_empty()).then(|| piece.into()))
    }

    /// Writes a little more; `false` when all is written.
    async fn step(&mut self) -> BackupResult<bool> {
        let Some(frames) = &mut self.frames else {
            return Ok(false);
        };
        if let Some((tenant, archive)) = &mut self.current {
            let step = archive.next().await;
            match step.map_err(|e| BackupError::of(tenant, e))? {
                Some((space, rows)) => {
                    for (key, value) in rows {
                        frames.row(space, &key, &value)?;
                    }
                }
                None => {
                    frames.tenant_end()?;
                    self.current = None;
                }
            }
            return Ok(true);
        }
        let Some(tenant) = self.waiting.pop_front() else {
            frames.end()?;
            if let Some(frames) = self.frames.take() {
                frames.out.finish()?;
            }
            return Ok(true);
        };
        match begin(&self.engine, &tenant).await {
            Ok(archive) => {
                let start = TenantStart::new(tenant.clone(), archive.head(), archive.floor());
                frames.tenant(&start)?;
                self.current = Some((tenant, archive));
            }
            // It was there when the backup was begun.
            Err(StoreError::TenantNotFound { .. }) => frames.gone(&tenant)?,
            Err(other) => return Err(BackupError::of(&tenant, other)),
        }
        Ok(true)
    }
}

async fn begin(engine: &Engine, tenant: &TenantId) -> Result<Archive, StoreError> {
    engine.tenant(tenant).await?.archive().await
}

async fn key(keyring: Option<Arc<Keyring>>) -> BackupResult<Option<(Manifest, Dek)>> {
    let Some(keyring) = keyring else {
        return Ok(None);
    };
    let made = tokio::task::spawn_blocking(move || new_key(&keyring)).await;
    let made = made.map_err(|e| BackupError::Io(std::io::Error::other(e)))?;
    made.map(Some)
}
