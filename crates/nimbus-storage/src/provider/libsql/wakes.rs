//! Wake times in the metadata namespace, where every server on the primary finds them.
//!
//! Must not touch a tenant's namespace. Every change can be repeated, so one whose answer was lost is sent again; of a
//! replacement that was done the repetition says that it was not, upon which the caller looks again.

use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt as _};
use nimbus_core::TenantId;

use super::hrana::{Outcome, Script, Value};
use super::primary::Row;
use super::{Shared, sql};
use crate::provider::external::wakes::{signed, wake_of};
use crate::provider::{ProviderError, ProviderResult, Wake, WakeStore};

/// The wake times of one primary.
pub(super) struct Wakes(pub(super) Arc<Shared>);

impl Wakes {
    /// Runs one statement in a transaction; the rows that it returns.
    async fn write(&self, sql: &str, args: Vec<Value>) -> ProviderResult<Vec<Vec<Value>>> {
        let shared = &self.0;
        let mut script = Script::default();
        let begun = script.begin();
        let step = script.then(sql, args);
        let commit = script.commit(begun);
        let registry = &shared.registry;
        let done = registry.change_wakes(&shared.http, &shared.timing, (&script, commit));
        match done.await?.into_iter().nth(step) {
            Some(Outcome::Done(rows)) => Ok(rows),
            _ => Ok(Vec::new()),
        }
    }

    async fn read(&self, sql: &str, args: Vec<Value>) -> ProviderResult<Vec<Wake>> {
        let (shared, script) = (&self.0, Script::query(sql, args));
        let registry = &shared.registry;
        let rows = registry
            .read_wakes(&shared.http, &shared.timing, &script)
            .await?;
        rows.into_iter().map(|row| self.wake(row)).collect()
    }

    fn wake(&self, row: Vec<Value>) -> ProviderResult<Wake> {
        let what = || format!("the wake times in {}", self.0.registry.place());
        let mut row = Row::new(row);
        let read = |e: super::http::Fault| e.provider(what());
        let tenant = row.text().map_err(read)?;
        let (at_ms, mark) = (row.integer().map_err(read)?, row.integer().map_err(read)?);
        wake_of(&tenant, at_ms, mark).ok_or_else(|| ProviderError::Corrupt {
            what: what(),
            reason: format!("that of {tenant:?} is {at_ms}, its mark {mark}"),
        })
    }
}

impl WakeStore for Wakes {
    fn lower<'a>(&'a self, tenant: &'a TenantId, at_ms: u64) -> BoxFuture<'a, ProviderResult<()>> {
        async move {
            let args = vec![tenant.as_str().into(), signed(at_ms).into()];
            self.write(sql::LOWER_WAKE, args).await.map(drop)
        }
        .boxed()
    }

    fn replace<'a>(
        &'a self,
        seen: &'a Wake,
        at_ms: Option<u64>,
    ) -> BoxFuture<'a, ProviderResult<bool>> {
        async move {
            let mut args = vec![seen.tenant.as_str().into(), signed(seen.mark).into()];
            let sql = match at_ms {
                Some(at_ms) => {
                    args.push(signed(at_ms).into());
                    sql::REPLACE_WAKE
                }
                None => sql::CLEAR_WAKE,
            };
            Ok(!self.write(sql, args).await?.is_empty())
        }
        .boxed()
    }

    fn get<'a>(&'a self, tenant: &'a TenantId) -> BoxFuture<'a, ProviderResult<Option<Wake>>> {
        async move {
            let found = self.read(sql::WAKE, vec![tenant.as_str().into()]);
            Ok(found.await?.pop())
        }
        .boxed()
    }

    fn due(&self, now_ms: u64, limit: usize) -> BoxFuture<'_, ProviderResult<Vec<Wake>>> {
        let args = vec![signed(now_ms).into(), signed(limit as u64).into()];
        async move { self.read(sql::DUE_WAKES, args).await }.boxed()
    }
}
