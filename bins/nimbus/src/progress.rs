//! Progress of long work, for people who watch a terminal.
//!
//! It must not know the work.

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressStyle};

/// On a terminal only: a log does not want it.
pub(crate) fn bar(size: Option<u64>, unit: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template = match (size, unit) {
        (Some(_), _) => "{wide_bar} {bytes}/{total_bytes} {eta}",
        (None, "bytes") => "{spinner} {bytes} {elapsed}",
        (None, "rows") => "{spinner} {human_pos} rows {elapsed}",
        (None, "manifests") => "{spinner} {human_pos} manifests {elapsed}",
        (None, _) => "{spinner} {human_pos} documents {elapsed}",
    };
    let bar = size.map_or_else(ProgressBar::new_spinner, ProgressBar::new);
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// Work without a size, on a terminal only.
pub(crate) fn step(what: &'static str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner().with_message(what);
    bar.enable_steady_tick(std::time::Duration::from_millis(100));
    match ProgressStyle::with_template("{spinner} {msg} {elapsed}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
