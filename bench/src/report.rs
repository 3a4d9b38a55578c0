//! Goals, verdicts, and the two forms of the result: JSON for programs, Markdown for people.
//!
//! It must not know how a figure was measured.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::stats::Spread;

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Unit {
    KibibytesEach,
    Mebibytes,
    Milliseconds,
    PerCpuSecond,
    PerSecond,
    Seconds,
    Times,
}

impl Unit {
    fn show(self, number: f64) -> String {
        match self {
            Unit::KibibytesEach => format!("{} KiB", short(number)),
            Unit::Mebibytes => format!("{} MiB", short(number)),
            Unit::Milliseconds => format!("{} ms", short(number)),
            Unit::PerCpuSecond => format!("{} per CPU-s", short(number)),
            Unit::PerSecond => format!("{}/s", short(number)),
            Unit::Seconds => format!("{} s", short(number)),
            Unit::Times => format!("{}x", short(number)),
        }
    }

    /// Median with the least and the greatest.
    fn show_spread(self, spread: &Spread) -> String {
        let median = self.show(spread.median());
        match spread.samples.len() {
            0 | 1 => median,
            _ => format!("{median} ({}-{})", short(spread.min()), short(spread.max())),
        }
    }
}

/// Three significant digits, or a whole number with its thousands set apart.
fn short(number: f64) -> String {
    if !number.is_finite() {
        return "none".to_owned();
    }
    let size = number.abs();
    if size >= 100.0 {
        return thousands(number.round() as i64);
    }
    let digits = if size >= 10.0 {
        1
    } else if size >= 1.0 {
        2
    } else {
        3
    };
    format!("{number:.digits$}")
}

fn thousands(number: i64) -> String {
    let digits = number.unsigned_abs().to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    if number < 0 {
        text.insert(0, '-');
    }
    text
}

/// The bound that a goal sets.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Bound {
    fn holds(self, number: f64) -> bool {
        match self {
            Bound::AtLeast(least) => number >= least,
            Bound::AtMost(most) => number <= most,
        }
    }

    fn show(self, unit: Unit) -> String {
        match self {
            Bound::AtLeast(least) => format!(">= {}", plain(unit, least)),
            Bound::AtMost(most) => format!("<= {}", plain(unit, most)),
        }
    }
}

/// A goal as people write it: 0.4x, 1,000/s.
fn plain(unit: Unit, number: f64) -> String {
    let shown = unit.show(number);
    match shown.split_once(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | ',' | '-')) {
        Some((digits, _)) if digits.contains('.') => {
            let rest = &shown[digits.len()..];
            let digits = digits.trim_end_matches('0').trim_end_matches('.');
            format!("{digits}{rest}")
        }
        _ => shown,
    }
}

/// One figure of ours, perhaps beside another's, perhaps with a goal.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) row: &'static str,
    pub(crate) job: String,
    pub(crate) figure: (Unit, Spread),
    /// What it is compared with, and the other's figure.
    pub(crate) against: Option<(String, Unit, Spread)>,
    /// The goal for the ratio of the two where `on_ratio`, else for the figure.
    pub(crate) goal: Option<Bound>,
    pub(crate) on_ratio: bool,
    /// Facts beside it, for the JSON.
    pub(crate) facts: Value,
    /// Whether the machine was busy with something else.
    pub(crate) noisy: bool,
}

impl Line {
    /// A figure without a goal.
    pub(crate) fn new(
        row: &'static str,
        job: impl Into<String>,
        unit: Unit,
        figure: Spread,
    ) -> Line {
        Line {
            row,
            job: job.into(),
            figure: (unit, figure),
            against: None,
            goal: None,
            on_ratio: false,
            facts: json!({}),
            noisy: false,
        }
    }

    /// Of another build of the server.
    pub(crate) fn of(mut self, build: &str) -> Line {
        self.job = format!("{build}: {}", self.job);
        self
    }

    /// Compared with another's figure, round by round.
    pub(crate) fn against(mut self, other: impl Into<String>, unit: Unit, figure: Spread) -> Line {
        self.against = Some((other.into(), unit, figure));
        self
    }

    /// With a goal for the figure itself.
    pub(crate) fn goal(mut self, goal: Bound) -> Line {
        self.goal = Some(goal);
        self
    }

    /// With a goal for the ratio.
    pub(crate) fn ratio_goal(mut self, goal: Bound) -> Line {
        self.on_ratio = true;
        self.goal(goal)
    }

    /// With facts for the JSON, and whether the rounds were noisy.
    pub(crate) fn facts(mut self, facts: Value, noisy: bool) -> Line {
        (self.facts, self.noisy) = (facts, noisy);
        self
    }

    fn ratio(&self) -> Option<Spread> {
        let (_, _, other) = self.against.as_ref()?;
        Some(self.figure.1.over(other))
    }

    /// `None` without a goal.
    pub(crate) fn passes(&self) -> Option<bool> {
        let goal = self.goal?;
        let judged = match self.on_ratio {
            true => self.ratio()?.median(),
            false => self.figure.1.median(),
        };
        Some(goal.holds(judged))
    }

    fn verdict(&self) -> &'static str {
        match self.passes() {
            Some(true) => "pass",
            Some(false) => "miss",
            None => "-",
        }
    }

    fn goal_text(&self) -> String {
        let unit = if self.on_ratio {
            Unit::Times
        } else {
            self.figure.0
        };
        self.goal.map_or("-".to_owned(), |goal| goal.show(unit))
    }

    fn json(&self) -> Value {
        let spread = |spread: &Spread| {
            json!({
                "median": spread.median(), "min": spread.min(), "max": spread.max(),
                "samples": spread.samples,
            })
        };
        json!({
            "row": self.row,
            "job": self.job,
            "unit": format!("{:?}", self.figure.0),
            "figure": spread(&self.figure.1),
            "against": self.against.as_ref().map(|(name, unit, figure)| json!({
                "what": name, "unit": format!("{unit:?}"), "figure": spread(figure),
            })),
            "ratio": self.ratio().as_ref().map(spread),
            "goal": self.goal_text(),
            "verdict": self.verdict(),
            "noisy": self.noisy,
            "facts": self.facts,
        })
    }

    fn markdown(&self) -> String {
        let against = self
            .against
            .as_ref()
            .map_or("-".to_owned(), |(name, unit, figure)| {
                format!("{name}: {}", unit.show_spread(figure))
            });
        let ratio = self.ratio();
        let ratio = ratio.map_or("-".to_owned(), |ratio| Unit::Times.show_spread(&ratio));
        let mark = if self.noisy { " (noisy)" } else { "" };
        format!(
            "| {} | {} | {against} | {ratio} | {} | {}{mark} |",
            self.job,
            self.figure.0.show_spread(&self.figure.1),
            self.goal_text(),
            self.verdict(),
        )
    }
}

/// All lines of a run, and what it ran on.
#[derive(Debug)]
pub(crate) struct Report {
    /// Machine, date, commit, compiler, sizes.
    pub(crate) run: Value,
    pub(crate) quick: bool,
    pub(crate) lines: Vec<Line>,
}

impl Report {
    pub(crate) fn json(&self) -> Value {
        let lines: Vec<Value> = self.lines.iter().map(Line::json).collect();
        json!({
            "version": 1,
            "quick": self.quick,
            "run": self.run,
            "lines": lines,
        })
    }

    pub(crate) fn markdown(&self) -> String {
        let mut text = self.preface();
        text.push_str(
            "| job | figure | against | ratio | goal | verdict |\n|---|---|---|---|---|---|\n",
        );
        for line in &self.lines {
            text.push_str(&line.markdown());
            text.push('\n');
        }
        text
    }

    fn preface(&self) -> String {
        let mut text = String::new();
        if self.quick {
            text.push_str("A quick run: it shows that everything runs; its figures and verdicts mean nothing.\n\n");
        }
        let run = &self.run;
        let machine = &run["machine"];
        let word = |value: &Value| value.as_str().unwrap_or("unknown").to_owned();
        let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
        let sync = |name: &str, part: &str| short(number(&machine[name][part]));
        let _ = writeln!(
            text,
            "{}, commit {}, {}. {} cores of {}, {} GiB, Linux {}, {}. \
             fdatasync of 4 KiB: appended {} ms (p95 {}), in place {} ms (p95 {}).\n",
            word(&run["date"]),
            word(&run["commit"]),
            word(&run["rustc"]),
            machine["cores"],
            word(&machine["cpu"]),
            short(number(&machine["memory_bytes"]) / f64::from(1 << 30)),
            word(&machine["kernel"]),
            word(&machine["disk"]),
            sync("sync_append_4k_ms", "p50"),
            sync("sync_append_4k_ms", "p95"),
            sync("sync_overwrite_4k_ms", "p50"),
            sync("sync_overwrite_4k_ms", "p95"),
        );
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> Line {
        let ours = Spread::new([400.0, 500.0, 450.0]);
        let theirs = Spread::new([1_000.0, 1_000.0, 1_000.0]);
        Line::new("get", "get by id", Unit::PerCpuSecond, ours)
            .against("hello", Unit::PerCpuSecond, theirs)
            .ratio_goal(Bound::AtLeast(0.4))
    }

    #[test]
    fn verdicts_follow_the_median() {
        assert_eq!(line().passes(), Some(true));
        let strict = line().ratio_goal(Bound::AtLeast(0.46));
        assert_eq!(strict.passes(), Some(false));
        let alone = |goal| Line::new("x", "x", Unit::Milliseconds, Spread::new([0.5])).goal(goal);
        assert_eq!(alone(Bound::AtMost(0.5)).passes(), Some(true));
        assert_eq!(alone(Bound::AtMost(0.4)).passes(), Some(false));
        let none = Line::new("x", "x", Unit::Seconds, Spread::new([1.0]));
        assert_eq!((none.passes(), none.verdict()), (None, "-"));
        // A figure that could not be taken passes nothing.
        let missing = Line::new("x", "x", Unit::Seconds, Spread::new([])).goal(Bound::AtMost(1.0));
        assert_eq!(missing.passes(), Some(false));
    }

    #[test]
    fn numbers_are_short() {
        for (number, expected) in [
            (0.0123, "0.012"),
            (1.234, "1.23"),
            (12.34, "12.3"),
            (123.4, "123"),
            (1_234_567.0, "1,234,567"),
            (-1_234.0, "-1,234"),
            (f64::NAN, "none"),
        ] {
            assert_eq!(short(number), expected);
        }
    }

    #[test]
    fn goals_read_as_people_write_them() {
        for (unit, bound, expected) in [
            (Unit::Times, Bound::AtLeast(0.4), ">= 0.4x"),
            (Unit::Times, Bound::AtLeast(30.0), ">= 30x"),
            (Unit::PerSecond, Bound::AtLeast(1_000.0), ">= 1,000/s"),
            (Unit::Milliseconds, Bound::AtMost(25.0), "<= 25 ms"),
            (Unit::KibibytesEach, Bound::AtMost(512.0), "<= 512 KiB"),
            (Unit::Seconds, Bound::AtMost(1.0), "<= 1 s"),
        ] {
            assert_eq!(bound.show(unit), expected);
        }
    }

    #[test]
    fn both_forms_carry_the_line() {
        let report = Report {
            run: json!({ "machine": {} }),
            quick: true,
            lines: vec![line()],
        };
        let markdown = report.markdown();
        let expected = "| get by id | 450 per CPU-s (400-500) | hello: 1,000 per CPU-s (1,000-1,000) \
                        | 0.450x (0.400-0.500) | >= 0.4x | pass |";
        assert!(markdown.contains(expected), "{markdown}");
        assert!(markdown.contains("mean nothing"));
        let json = report.json();
        assert_eq!(json["lines"][0]["ratio"]["median"], 0.45);
        assert_eq!(json["lines"][0]["verdict"], "pass");
    }
}
