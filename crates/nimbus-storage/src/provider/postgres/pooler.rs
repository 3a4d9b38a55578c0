//! Refuses a pooler that hands a session of the server from one connection to another after each transaction.
//!
//! Must not know pools of ours. Settings of a session and prepared statements are lost behind such a pooler, so that a
//! commit could be undone by the settings of somebody else; it shows by two open connections that are one session.

use sqlx::{PgConnection, Row as _, raw_sql};

use super::error;
use crate::provider::{ProviderError, ProviderResult};

/// How often both connections are asked: a pooler with other clients may give another session by chance.
const ROUNDS: usize = 3;

/// Checks that two open connections are two sessions of the server at `shown`.
///
/// # Errors
/// `Settings` when they are one; `Io`.
pub(super) async fn check(
    shown: &str,
    first: &mut PgConnection,
    second: &mut PgConnection,
) -> ProviderResult<()> {
    for _ in 0..ROUNDS {
        let (a, b) = (session(shown, first).await?, session(shown, second).await?);
        if a == b {
            return Err(shared(shown));
        }
    }
    Ok(())
}

fn shared(shown: &str) -> ProviderError {
    let reason = format!(
        "{shown} is a pooler that gives one session of the server to several connections (transaction pooling), \
         where settings of a session and prepared statements are lost; use its session mode, or connect to the server"
    );
    ProviderError::Settings { reason }
}

/// The process of the server. Asked without a prepared statement, which such a pooler may refuse.
async fn session(shown: &str, conn: &mut PgConnection) -> ProviderResult<i32> {
    let failed = |e| error::provider(format!("looking at {shown}"), e);
    let row = raw_sql("SELECT pg_backend_pid()").fetch_one(conn).await;
    row.map_err(failed)?.try_get(0).map_err(failed)
}
