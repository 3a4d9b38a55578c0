//! Making tenants again from a backup, all of them or none.
//!
//! Every tenant stays unusable until the whole backup was read to its end and found whole; then all
//! become usable, one after the other. A failure removes what was made. After a crash the same
//! command begins anew: it removes what the earlier one left unusable.

use nimbus_core::TenantId;

use super::error::{BackupError, BackupResult};
use super::format::Frame;
use super::seal::Source;
use super::summary::Summary;
use super::verify::{Walk, header};
use crate::engine::{Engine, Restore};
use crate::error::StoreError;

/// Makes the tenants of the backup, or those named, in the engine's provider, whichever that is.
/// Reads `source` blocking: for a runtime that has nothing else to do.
///
/// # Errors
/// `TenantsExist` and `TenantsMissing` before anything is changed; `Damaged`, `Truncated`, `Io`,
/// `Store`, after which nothing of it is left, but for what a log line names.
pub async fn restore(
    engine: &Engine,
    mut source: Source,
    only: &[TenantId],
) -> BackupResult<Summary> {
    let header = header(&mut source)?;
    let wanted = wanted(&header.tenants, only)?;
    let leftover = look(engine, &wanted).await?;
    for tenant in leftover {
        engine.delete_tenant(&tenant).await?;
    }
    let mut made = Vec::new();
    let walk = Walk::new(&header, source.sealed);
    match read(engine, &mut source, walk, &wanted, &mut made).await {
        Ok(mut summary) => {
            for tenant in &made {
                let ended = engine.end_restore(tenant).await;
                ended.map_err(|e| BackupError::of(tenant, e))?;
            }
            summary.tenants.retain(|t| wanted.contains(&t.tenant));
            summary.deleted.retain(|t| wanted.contains(t));
            Ok(summary)
        }
        Err(error) => {
            for tenant in made {
                remove(engine, &tenant).await;
            }
            Err(error)
        }
    }
}

fn wanted(all: &[TenantId], only: &[TenantId]) -> BackupResult<Vec<TenantId>> {
    if only.is_empty() {
        return Ok(all.to_vec());
    }
    let missing: Vec<_> = only.iter().filter(|t| !all.contains(t)).cloned().collect();
    match missing.is_empty() {
        true => Ok(only.to_vec()),
        false => Err(BackupError::TenantsMissing { missing }),
    }
}

/// Refuses tenants that are there; returns those that an earlier restore left unusable.
async fn look(engine: &Engine, wanted: &[TenantId]) -> BackupResult<Vec<TenantId>> {
    let all = engine.list_tenants().await?;
    let unregistered = engine.unregistered().await?;
    if let Some(tenant) = wanted.iter().find(|t| unregistered.contains(t)) {
        let tenant = tenant.clone();
        return Err(StoreError::TenantUnregistered { tenant }.into());
    }
    let (mut existing, mut leftover) = (Vec::new(), Vec::new());
    for tenant in wanted.iter().filter(|t| all.contains(t)) {
        match engine.is_restoring(tenant).await {
            Ok(true) => leftover.push(tenant.clone()),
            // What cannot be opened is there all the same.
            Ok(false) | Err(_) => existing.push(tenant.clone()),
        }
    }
    if existing.is_empty() {
        return Ok(leftover);
    }
    let others = wanted.iter().filter(|t| !existing.contains(t));
    Err(BackupError::TenantsExist {
        others: others.cloned().collect(),
        existing,
    })
}

/// Reads the backup to its end; tenants that were written whole, and are marked yet, are `made`.
async fn read(
    engine: &Engine,
    source: &mut Source,
    mut walk: Walk,
    wanted: &[TenantId],
    made: &mut Vec<TenantId>,
) -> BackupResult<Summary> {
    let mut current: Option<(TenantId, Restore)> = None;
    loop {
        let step = step(engine, source, &mut walk, wanted, &mut current).await;
        match step {
            Ok(Step::Made(tenant)) => made.push(tenant),
            Ok(Step::More) => {}
            Ok(Step::End) => return Ok(walk.summary),
            Err(error) => {
                if let Some((tenant, restore)) = current
                    && let Err(left) = restore.abandon().await
                {
                    tracing::warn!(%tenant, error = %left, "what a failed restore made is left, unusable");
                }
                return Err(error);
            }
        }
    }
}

enum Step {
    More,
    /// This tenant is written whole.
    Made(TenantId),
    End,
}

async fn step(
    engine: &Engine,
    source: &mut Source,
    walk: &mut Walk,
    wanted: &[TenantId],
    current: &mut Option<(TenantId, Restore)>,
) -> BackupResult<Step> {
    let frame = source.frames.next()?;
    walk.frame(source, &frame)?;
    match frame {
        Frame::Tenant(start) if wanted.contains(&start.tenant) => {
            let begun = engine.begin_restore(&start.tenant, start.head(), start.floor());
            let restore = begun.await.map_err(|e| BackupError::of(&start.tenant, e))?;
            *current = Some((start.tenant, restore));
        }
        Frame::Row(space, key, value) => {
            if let Some((tenant, restore)) = current {
                let row = restore.row(space, key, value).await;
                row.map_err(|e| fault(source, tenant, e))?;
            }
        }
        Frame::TenantEnd => {
            if let Some((tenant, restore)) = current {
                let finished = restore.finish().await;
                finished.map_err(|e| fault(source, tenant, e))?;
            }
            if let Some((tenant, _)) = current.take() {
                return Ok(Step::Made(tenant));
            }
        }
        Frame::End => return Ok(Step::End),
        Frame::Header(_) | Frame::Tenant(_) | Frame::Gone(_) => {}
    }
    Ok(Step::More)
}

/// What contradicts itself comes from the backup, not from what was stored here.
fn fault(source: &Source, tenant: &TenantId, error: StoreError) -> BackupError {
    match error {
        StoreError::Corrupt { inside } => {
            source.frames.damaged(format!("tenant {tenant}: {inside}"))
        }
        other => BackupError::of(tenant, other),
    }
}

async fn remove(engine: &Engine, tenant: &TenantId) {
    if let Err(error) = engine.delete_tenant(tenant).await {
        tracing::warn!(%tenant, %error, "what a failed restore made is left, unusable");
    }
}
