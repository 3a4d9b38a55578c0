//! Waiting for what another program shows only to those who ask.
//!
//! It must not decide anything by time: the limit only turns a hang into a failure.

use std::time::{Duration, Instant};

/// Longest wait.
const LIMIT: Duration = Duration::from_secs(60);

/// Asks again and again until a condition holds.
#[expect(
    clippy::disallowed_methods,
    reason = "nothing announces the condition, so it is asked for"
)]
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "waited too long until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
