//! Settings that every provider of a shared database has.
//!
//! Must not know where they were read from.

use crate::provider::{ProviderError, ProviderResult};

/// Connections that only commits may use, so that readers cannot keep them waiting.
pub(crate) const RESERVED_FOR_COMMITS: u32 = 2;
/// The connection that waits for notifications, or polls, and the one that sends them.
pub(crate) const RESERVED_FOR_HINTS: u32 = 2;

/// How many connections a provider holds, all of them counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSize {
    /// Kept open although nobody uses them.
    pub min: u32,
    /// Never more than these.
    pub max: u32,
}

impl Default for PoolSize {
    /// Up to 20, none of them kept.
    fn default() -> PoolSize {
        PoolSize { min: 0, max: 20 }
    }
}

impl PoolSize {
    /// The smallest number of connections that a provider works with.
    pub const LEAST: u32 = RESERVED_FOR_COMMITS + RESERVED_FOR_HINTS + 1;

    /// Checks them; `what` names the provider.
    ///
    /// # Errors
    /// `Settings` when there are fewer than [`PoolSize::LEAST`], more than 10,000, or fewer than the minimum.
    pub(crate) fn check(self, what: &str) -> ProviderResult<()> {
        let PoolSize { min, max } = self;
        let (least, most) = (PoolSize::LEAST, 10_000);
        let reason = if max < least {
            format!(
                "the maximum of {max} {what} connections is too small: {RESERVED_FOR_COMMITS} are for commits and \
                 {RESERVED_FOR_HINTS} for notifications, so at least {least} are needed"
            )
        } else if max > most {
            format!("the maximum of {max} {what} connections is above {most}")
        } else if min > max {
            format!("the minimum of {min} {what} connections is above the maximum of {max}")
        } else {
            return Ok(());
        };
        Err(ProviderError::Settings { reason })
    }

    /// Connections in the pool, without those for notifications.
    pub(crate) const fn pooled(self) -> u32 {
        self.max.saturating_sub(RESERVED_FOR_HINTS)
    }

    /// Connections that reads may use at once.
    pub(crate) const fn readers(self) -> u32 {
        self.pooled().saturating_sub(RESERVED_FOR_COMMITS)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_cannot_work_are_refused() {
        let check = |min, max| PoolSize { min, max }.check("Postgres");
        let refused = |min, max| check(min, max).unwrap_err().to_string();
        assert!(refused(0, 4).contains("at least 5"));
        assert!(refused(21, 20).contains("minimum of 21"));
        assert!(refused(0, 10_001).contains("above 10000"));
        check(5, 5).unwrap();
        assert_eq!(PoolSize { min: 0, max: 5 }.readers(), 1);
        assert!(PoolSize::default().check("Postgres").is_ok());
    }
}
