//! Making a replica anew: a copy beside the old one, key by key, then the changes that were made meanwhile, then the
//! place of the old one.
//!
//! Rows that were read late may be newer than others; every change since the beginning is applied again in order, and
//! only then does the copy say how far it is. What a crash leaves says nothing and is thrown away.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::{Replica, written};
use crate::provider::external::FORMAT_KEY;
use crate::provider::libsql::cache::{CacheFile, remove_replica, replace};
use crate::provider::libsql::feed::{Feed, Mark};
use crate::provider::libsql::primary;
use crate::provider::libsql::record::Writes;
use crate::provider::local::blocking;
use crate::provider::{Batch, HEAD_KEY, Head, Keyspace, ProviderResult, TenantStore};

impl Replica {
    /// Makes the replica anew. The inner error says why it has to be tried again.
    pub(super) async fn rebuild(
        self: &Arc<Self>,
        inner: &mut Option<Mark>,
    ) -> ProviderResult<Result<(), String>> {
        self.check_open()?;
        *inner = None;
        let file = self.file()?;
        let staging = file.staging();
        let store = self.blank(&file, &staging).await?;
        let filled = self.fill(&*store).await;
        // Nothing may be left open under a name that another file gets.
        store.close().await?;
        let mark = match filled? {
            Ok(mark) => mark,
            Err(reason) => return Ok(Err(reason)),
        };
        self.shared.reached("built").await;
        let old = self.current().take();
        if let Some(old) = old {
            old.close().await?;
        }
        self.shared.reached("old one closed").await;
        let (shared, place) = (self.shared.clone(), file.clone());
        let opened = blocking(move || {
            replace(&staging, &place.path)?;
            shared.copies.open(&place.path, place.key.clone())
        });
        let opened = opened.await?;
        self.shared.reached("replaced").await;
        *self.current() = Some(opened);
        *inner = Some(mark);
        // A look at the primary follows, so what was committed meanwhile is not missed.
        self.view().rebuilt(&mark);
        Ok(Ok(()))
    }

    async fn blank(
        &self,
        file: &Arc<CacheFile>,
        staging: &Path,
    ) -> ProviderResult<Arc<dyn TenantStore>> {
        let (shared, file, staging) = (self.shared.clone(), file.clone(), staging.to_owned());
        blocking(move || {
            remove_replica(&staging)?;
            shared.copies.create(&staging, file.key.clone())?;
            shared.copies.open(&staging, file.key.clone())
        })
        .await
    }

    async fn fill(
        self: &Arc<Self>,
        store: &dyn TenantStore,
    ) -> ProviderResult<Result<Mark, String>> {
        let (http, name) = (&self.shared.http, &self.space.name);
        let timing = &self.shared.timing;
        let state = again!(timing, primary::state(http, name));
        let state = state.map_err(|e| self.failed(e))?;
        self.saw(&state)?;
        self.shared.reached("begun").await;
        for keyspace in Keyspace::ALL {
            let mut from = Some(Vec::new());
            while let Some(key) = from {
                self.check_open()?;
                let copied = again!(timing, primary::copy(http, name, keyspace, &key));
                let copied = copied.map_err(|e| self.failed(e))?;
                from = copied.next;
                let rows = copied.rows.into_iter().filter(|(key, _)| {
                    keyspace != Keyspace::Meta || key != HEAD_KEY && key != FORMAT_KEY
                });
                let writes = rows.map(|(key, value)| ((keyspace, key), Some(value)));
                if let Err(reason) = put(store, Head::EMPTY, writes.collect()).await? {
                    return Ok(Err(reason));
                }
            }
        }
        self.shared.reached("copied").await;
        self.complete(store, Feed::at(Mark::of(&state))).await
    }

    /// Applies what was committed since the copy was begun, and says how far it is.
    async fn complete(
        self: &Arc<Self>,
        store: &dyn TenantStore,
        mut feed: Feed,
    ) -> ProviderResult<Result<Mark, String>> {
        loop {
            self.check_open()?;
            let (state, parts) = self.fetch(feed.cursor()).await?;
            let step = match feed.take(&state, parts, None) {
                Ok(step) => step,
                Err(reason) => return Ok(Err(reason)),
            };
            if let Some(step) = step {
                self.view().foreign += step.foreign;
                if let Err(reason) = put(store, Head::EMPTY, step.writes).await? {
                    return Ok(Err(reason));
                }
            }
            match feed.is_at(&state) {
                Ok(true) => break,
                Ok(false) => {}
                Err(reason) => return Ok(Err(reason)),
            }
        }
        self.shared.reached("completed").await;
        let mark = feed.mark();
        let row = Bytes::from(mark.row(self.space.life));
        let writes = Writes::from([((Keyspace::Meta, FORMAT_KEY.to_vec()), Some(row))]);
        Ok(put(store, mark.head, writes).await?.map(|()| mark))
    }
}

/// Writes to a copy that is not finished, whose head is that of an empty tenant until the last write.
async fn put(
    store: &dyn TenantStore,
    head: Head,
    writes: Writes,
) -> ProviderResult<Result<(), String>> {
    match store.commit(Head::EMPTY, Batch { head, writes }).await {
        Ok(()) => Ok(Ok(())),
        Err(e) => written(e),
    }
}
