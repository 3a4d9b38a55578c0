//! Timing of the steps of a task, with one table at the end.
//! Must not know what the steps do.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// The steps that ran, in order.
#[derive(Debug, Default)]
pub(crate) struct Phases {
    done: Vec<Phase>,
}

#[derive(Debug)]
struct Phase {
    name: &'static str,
    time: Duration,
    passed: bool,
}

impl Phases {
    /// Runs one step and notes how long it took; a failure is passed on with the step's name.
    pub(crate) fn run(
        &mut self,
        name: &'static str,
        step: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        println!("== {name}");
        let start = Instant::now();
        let result = step();
        self.done.push(Phase {
            name,
            time: start.elapsed(),
            passed: result.is_ok(),
        });
        result.with_context(|| format!("{name} failed"))
    }

    /// One line for each step that ran: name, seconds, minutes and outcome.
    pub(crate) fn table(&self) -> String {
        let total = self.done.iter().map(|phase| phase.time).sum();
        let rows = self.done.iter().map(|phase| {
            row(
                phase.name,
                phase.time,
                if phase.passed { "passed" } else { "FAILED" },
            )
        });
        rows.chain([row("total", total, "")]).collect()
    }
}

fn row(name: &str, time: Duration, outcome: &str) -> String {
    let seconds = time.as_secs_f64();
    let line = format!(
        "{name:<16}{seconds:>8.1} s {:>6.2} min  {outcome}",
        seconds / 60.0
    );
    format!("{}\n", line.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_step_is_named_and_stays_in_the_table() {
        let mut phases = Phases::default();
        phases.run("first", || Ok(())).unwrap();
        let error = phases
            .run("second", || anyhow::bail!("reason"))
            .unwrap_err();
        assert_eq!(format!("{error:#}"), "second failed: reason");
        let table = phases.table();
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(
            lines[0].starts_with("first") && lines[0].ends_with("passed"),
            "{table}"
        );
        assert!(
            lines[1].starts_with("second") && lines[1].ends_with("FAILED"),
            "{table}"
        );
        assert!(
            lines[2].starts_with("total") && lines[2].ends_with("min"),
            "{table}"
        );
    }
}
