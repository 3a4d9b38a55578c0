//! What the checks found, for people and for programs.
//!
//! It must not know what is checked.

use std::fmt::Write as _;

use serde_json::{Value as Json, json};

/// How a check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Status {
    /// Nothing to do.
    Ok,
    /// The server runs, but something should be looked at.
    Warn,
    /// The server does not start, or is not safe.
    Fail,
}

impl Status {
    fn word(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::Warn => "warn",
            Status::Fail => "fail",
        }
    }
}

/// One check. Its name is stable: programs may rely on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Check {
    pub(crate) name: &'static str,
    pub(crate) status: Status,
    /// What was found.
    pub(crate) message: String,
    /// What to do next; always there unless the status is ok.
    pub(crate) advice: Option<String>,
}

impl Check {
    pub(crate) fn ok(name: &'static str, message: impl Into<String>) -> Check {
        Check {
            name,
            status: Status::Ok,
            message: message.into(),
            advice: None,
        }
    }

    pub(crate) fn warn(
        name: &'static str,
        message: impl Into<String>,
        advice: impl Into<String>,
    ) -> Check {
        Check {
            status: Status::Warn,
            advice: Some(advice.into()),
            ..Check::ok(name, message)
        }
    }

    pub(crate) fn fail(
        name: &'static str,
        message: impl Into<String>,
        advice: impl Into<String>,
    ) -> Check {
        Check {
            status: Status::Fail,
            ..Check::warn(name, message, advice)
        }
    }

    /// From an error that the system gave, whose text does not say what to do.
    pub(crate) fn io(name: &'static str, error: &dyn std::fmt::Display) -> Check {
        let advice = "see whether the user of the service may use it, and whether the disk is well";
        Check::fail(name, error.to_string(), advice)
    }

    /// From an error whose text goes on with what to do after the first `: ` or `; `.
    pub(crate) fn refused(name: &'static str, error: &dyn std::fmt::Display) -> Check {
        let text = error.to_string();
        match text.split_once(": ") {
            Some((found, advice)) => Check::fail(name, found, advice),
            None => match text.split_once("; ") {
                Some((found, advice)) => Check::fail(name, found, advice),
                None => Check::fail(name, text, "correct it, then run `nimbus doctor` again"),
            },
        }
    }
}

/// All checks, in order.
#[derive(Debug)]
pub(crate) struct Report(pub(crate) Vec<Check>);

impl Report {
    fn count(&self, status: Status) -> usize {
        self.0.iter().filter(|check| check.status == status).count()
    }

    /// Names of the checks that failed.
    pub(crate) fn failed(&self) -> Vec<&'static str> {
        let failed = self.0.iter().filter(|check| check.status == Status::Fail);
        failed.map(|check| check.name).collect()
    }

    /// One line for each check, its advice below it, and a line that sums up.
    pub(crate) fn text(&self) -> String {
        let width = self
            .0
            .iter()
            .map(|check| check.name.len())
            .max()
            .unwrap_or(0);
        let mut out = String::new();
        for check in &self.0 {
            let (status, name) = (check.status.word(), check.name);
            // Writing to a string cannot fail.
            let _ = writeln!(out, "{status:<4}  {name:<width$}  {}", check.message);
            if let Some(advice) = &check.advice {
                let _ = writeln!(out, "{:<4}  {:<width$}  -> {advice}", "", "");
            }
        }
        let (warnings, failures) = (self.count(Status::Warn), self.count(Status::Fail));
        let _ = writeln!(
            out,
            "{} checks: {} ok, {warnings} warn, {failures} fail",
            self.0.len(),
            self.count(Status::Ok)
        );
        out
    }

    pub(crate) fn json(&self) -> Json {
        let worst = self.0.iter().map(|check| check.status).max();
        let checks: Vec<Json> = self
            .0
            .iter()
            .map(|check| {
                json!({
                    "name": check.name,
                    "status": check.status.word(),
                    "message": check.message,
                    "advice": check.advice,
                })
            })
            .collect();
        json!({
            "status": worst.unwrap_or(Status::Ok).word(),
            "checks": checks,
        })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report(vec![
            Check::ok("one", "fine"),
            Check::warn("second", "odd", "look at it"),
            Check::fail("c", "broken", "mend it"),
        ])
    }

    #[test]
    fn people_read_lines() {
        let expected = "ok    one     fine\n\
                        warn  second  odd\n\
                        \x20             -> look at it\n\
                        fail  c       broken\n\
                        \x20             -> mend it\n\
                        3 checks: 1 ok, 1 warn, 1 fail\n";
        assert_eq!(report().text(), expected);
        assert_eq!(report().failed(), ["c"]);
    }

    #[test]
    fn programs_read_one_value() {
        let json = report().json();
        assert_eq!(json["status"], "fail");
        assert_eq!(json["checks"][0]["advice"], Json::Null);
        assert_eq!(
            json["checks"][1],
            json!({"name": "second", "status": "warn", "message": "odd", "advice": "look at it"})
        );
    }

    #[test]
    fn errors_are_divided_into_what_and_what_to_do() {
        let check = Check::refused("x", &"others have access (mode 0644): run `chmod 600 t`");
        assert_eq!(check.message, "others have access (mode 0644)");
        assert_eq!(check.advice.as_deref(), Some("run `chmod 600 t`"));
        let check = Check::refused("x", &"it is not writable; choose another");
        assert_eq!(check.advice.as_deref(), Some("choose another"));
        assert!(Check::refused("x", &"plain").advice.is_some());
    }
}
