//! The name of a request: 26 characters, sorted by time, different for every request.
//!
//! Uniqueness matters here, secrecy does not: nothing may treat a request id as a credential.
//! An `x-request-id` that a client sends is ignored, so that ids in our log are ours.

use std::fmt;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use http::HeaderValue;

/// Crockford's base 32, as in ULIDs.
const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const LENGTH: usize = 26;
/// Bits of the counter within the 80 bits that follow the time.
const COUNTER_BITS: u32 = 40;

static COUNTER: AtomicU64 = AtomicU64::new(0);
/// 40 random bits per process, so that two servers sharing a log do not collide.
static PROCESS: LazyLock<u64> = LazyLock::new(|| {
    getrandom::u64().unwrap_or_else(|_| u64::from(std::process::id())) & ((1 << 40) - 1)
});

/// The text of a request id, in ULID form: 48 bits of milliseconds, 40 bits per process, a
/// counter. Contexts and audit entries carry it as a [`nimbus_auth::RequestId`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ulid([u8; LENGTH]);

impl Ulid {
    /// A new id.
    pub(crate) fn next() -> Ulid {
        let ms = u64::try_from(jiff::Timestamp::now().as_millisecond()).unwrap_or_default();
        let count = COUNTER.fetch_add(1, Ordering::Relaxed) & ((1 << COUNTER_BITS) - 1);
        let low = (u128::from(*PROCESS) << COUNTER_BITS) | u128::from(count);
        Ulid::encode((u128::from(ms & ((1 << 48) - 1)) << 80) | low)
    }

    fn encode(mut bits: u128) -> Ulid {
        let mut text = [b'0'; LENGTH];
        for slot in text.iter_mut().rev() {
            let digit = usize::try_from(bits & 31).unwrap_or_default();
            *slot = DIGITS.get(digit).copied().unwrap_or(b'0');
            bits >>= 5;
        }
        Ulid(text)
    }

    /// The id as text.
    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }

    /// The id in the 16 hexadecimal digits that Convex clients show: its last 64 bits.
    pub(crate) fn hex(&self) -> String {
        let digit = |byte: &u8| DIGITS.iter().position(|known| known == byte);
        let bits = self.0.iter().filter_map(digit).fold(0_u64, |bits, digit| {
            (bits << 5) | u64::try_from(digit).unwrap_or_default()
        });
        format!("{bits:016x}")
    }

    /// The id as contexts and audit entries carry it.
    pub(crate) fn shared(&self) -> Option<nimbus_auth::RequestId> {
        self.as_str().parse().ok()
    }

    /// The id as the value of `x-request-id`.
    pub(crate) fn header(&self) -> HeaderValue {
        HeaderValue::from_bytes(&self.0).unwrap_or(HeaderValue::from_static(""))
    }
}

impl fmt::Debug for Ulid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_and_have_the_ulid_form() {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..1_000 {
            let id = Ulid::next();
            assert_eq!(id.as_str().len(), LENGTH);
            assert!(id.as_str().bytes().all(|b| DIGITS.contains(&b)), "{id:?}");
            assert_eq!(id.shared().unwrap().as_str(), id.as_str());
            assert!(seen.insert(id.as_str().to_owned()), "{id:?} twice");
        }
    }

    #[test]
    fn known_values() {
        assert_eq!(Ulid::encode(0).as_str(), "0".repeat(26));
        assert_eq!(Ulid::encode(33).as_str(), format!("{}11", "0".repeat(24)));
        assert_eq!(
            Ulid::encode(u128::MAX).as_str(),
            format!("7{}", "Z".repeat(25))
        );
    }
}
