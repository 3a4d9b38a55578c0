//! Wake times in the metadata of a database: what a row of them is made of, and the calls that any such table serves.
//!
//! Must not know where the table is, nor write SQL.

use crate::control::RandomId;
use crate::provider::{ProviderResult, Wake};

/// A mark that no other change has: one of 2^63, since servers do not know of each other.
pub(crate) fn fresh_mark() -> ProviderResult<i64> {
    let random = RandomId::generate()?;
    let [a, b, c, d, e, f, g, h, ..] = *random.as_bytes();
    Ok(i64::from_be_bytes([a & 0x7f, b, c, d, e, f, g, h]))
}

/// A time or a mark as a database keeps it, which has no unsigned integers.
pub(crate) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The row of a database; `None` if nothing of ours would be so.
pub(crate) fn wake_of(tenant: &str, at_ms: i64, mark: i64) -> Option<Wake> {
    Some(Wake {
        tenant: tenant.parse().ok()?,
        at_ms: u64::try_from(at_ms).ok()?,
        mark: u64::try_from(mark).ok()?,
    })
}

/// Implements [`crate::provider::WakeStore`] for a type with a `table()`, whose methods take a connection from `$lease!`.
/// Not a function, since the compiler cannot tell that what such a closure makes may change threads.
#[cfg(any(feature = "mysql", feature = "postgres"))]
macro_rules! wake_store {
    ($wakes:ty, $lease:ident) => {
        impl $crate::provider::WakeStore for $wakes {
            fn lower<'a>(
                &'a self,
                tenant: &'a nimbus_core::TenantId,
                at_ms: u64,
            ) -> futures_util::future::BoxFuture<'a, $crate::provider::ProviderResult<()>> {
                async move {
                    $lease!(self.0, |conn| {
                        // Drawn anew for each try: somebody may have seen the one of a try that was lost.
                        let mark = $crate::provider::external::wakes::fresh_mark()?;
                        self.table().lower(conn, (tenant, at_ms, mark))
                    })
                }
                .boxed()
            }

            fn replace<'a>(
                &'a self,
                seen: &'a $crate::provider::Wake,
                at_ms: Option<u64>,
            ) -> futures_util::future::BoxFuture<'a, $crate::provider::ProviderResult<bool>> {
                async move {
                    let mark = $crate::provider::external::wakes::fresh_mark()?;
                    let new = at_ms.map(|at_ms| (at_ms, mark));
                    $lease!(self.0, |conn| self.table().replace(conn, seen, new))
                }
                .boxed()
            }

            fn get<'a>(
                &'a self,
                tenant: &'a nimbus_core::TenantId,
            ) -> futures_util::future::BoxFuture<
                'a,
                $crate::provider::ProviderResult<Option<$crate::provider::Wake>>,
            > {
                async move { $lease!(self.0, |conn| self.table().get(conn, tenant)) }.boxed()
            }

            fn due(
                &self,
                now_ms: u64,
                limit: usize,
            ) -> futures_util::future::BoxFuture<
                '_,
                $crate::provider::ProviderResult<Vec<$crate::provider::Wake>>,
            > {
                async move { $lease!(self.0, |conn| self.table().due(conn, now_ms, limit)) }.boxed()
            }
        }
    };
}
#[cfg(any(feature = "mysql", feature = "postgres"))]
pub(crate) use wake_store;
