//! Cases about wake times, of providers that keep them for all servers that share them.

use std::sync::Arc;

use super::kit::{check, check_eq, id};
use super::{CaseResult, Failure, Fixture};
use crate::provider::{Wake, WakeStore};

/// One that keeps none passes: its wake times are kept by each engine.
pub(super) async fn wake_times_are_kept(fixture: Arc<dyn Fixture>) -> CaseResult {
    let Some(wakes) = fixture.provider().wakes() else {
        return Ok(());
    };
    keeps_wake_times(&*wakes).await?;
    drop(wakes);
    fixture.restart().await?;
    let wakes = fixture.provider().wakes();
    let wakes = wakes.ok_or_else(|| Failure::new("no wake times after a restart"))?;
    check_eq!(
        times(&*wakes, u64::MAX, 9).await?,
        wanted(&KEPT),
        "after a restart"
    );
    Ok(())
}

/// What [`keeps_wake_times`] leaves.
const KEPT: [(u64, &str); 2] = [(0, "b"), (40, "a")];

/// A store that is empty before does what [`WakeStore`] says.
pub(crate) async fn keeps_wake_times(wakes: &dyn WakeStore) -> CaseResult {
    let (a, b, c) = (id("a")?, id("b")?, id("c")?);
    check_eq!(times(wakes, u64::MAX, 9).await?, vec![], "at first");
    check_eq!(wakes.get(&a).await?, None, "the time of nobody");
    for (tenant, at_ms) in [(&c, 30), (&a, 50), (&b, 10), (&a, 20), (&a, 70)] {
        wakes.lower(tenant, at_ms).await?;
    }
    let all = wanted(&[(10, "b"), (20, "a"), (30, "c")]);
    check_eq!(times(wakes, 9, 9).await?, vec![], "before the first");
    check_eq!(times(wakes, 29, 9).await?, all[..2], "some are due");
    check_eq!(times(wakes, u64::MAX, 1).await?, all[..1], "the earliest");
    check_eq!(times(wakes, u64::MAX, 9).await?, all, "all");

    let seen = seen(wakes, "a").await?;
    // Changes nothing but that it happened.
    wakes.lower(&a, 60).await?;
    let refused = wakes.replace(&seen, Some(90)).await?;
    check!(
        !refused,
        "a lowered time was replaced by one who had not seen it"
    );
    check!(!wakes.replace(&seen, None).await?, "and cleared");
    check_eq!(times(wakes, u64::MAX, 9).await?, all, "after refusals");
    let seen = self::seen(wakes, "a").await?;
    check!(
        wakes.replace(&seen, Some(40)).await?,
        "a time as it was seen"
    );
    check!(!wakes.replace(&seen, Some(41)).await?, "the same once more");
    let seen = self::seen(wakes, "c").await?;
    check!(wakes.replace(&seen, None).await?, "clearing a time");
    check_eq!(wakes.get(&c).await?, None, "a cleared time");
    // Not the time that was seen, but another one like it.
    wakes.lower(&c, 30).await?;
    check!(!wakes.replace(&seen, None).await?, "clearing it once more");
    let seen = self::seen(wakes, "c").await?;
    check!(wakes.replace(&seen, None).await?, "clearing the new one");
    wakes.lower(&b, 0).await?;
    check_eq!(
        times(wakes, u64::MAX, 9).await?,
        wanted(&KEPT),
        "in the end"
    );
    Ok(())
}

fn wanted(rows: &[(u64, &str)]) -> Vec<(u64, String)> {
    rows.iter()
        .map(|(at, tenant)| (*at, (*tenant).to_owned()))
        .collect()
}

async fn seen(wakes: &dyn WakeStore, tenant: &str) -> Result<Wake, Failure> {
    let found = wakes.get(&id(tenant)?).await?;
    found.ok_or_else(|| Failure::new(format!("{tenant} has no wake time")))
}

async fn times(
    wakes: &dyn WakeStore,
    now_ms: u64,
    limit: usize,
) -> Result<Vec<(u64, String)>, Failure> {
    let due = wakes.due(now_ms, limit).await?.into_iter();
    Ok(due
        .map(|wake| (wake.at_ms, wake.tenant.to_string()))
        .collect())
}
