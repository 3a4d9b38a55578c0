//! The check of `--policy-dir`: what is in it, judged by what `nimbus start` loads it with.
//!
//! It must not know what a policy grants.

use std::path::Path;

use nimbus_http::{PolicyDirectory, PolicyDirectoryError};

use super::report::Check;
use crate::output;

const NAME: &str = "policies";
/// Faults that are told; the rest is counted.
const SHOWN: usize = 5;

/// `policies`: every file is a valid policy of the tenant that it is named after, or none is taken.
pub(crate) fn directory(path: &Path) -> Check {
    let shown = output::printable(&path.display().to_string());
    let faults = match PolicyDirectory::examine(path) {
        Ok(0) => {
            return Check::warn(
                NAME,
                format!("{shown} has no file, so no tenant is granted anything"),
                "put `<tenant>.yaml` there, or leave --policy-dir out",
            );
        }
        Ok(files) => return Check::ok(NAME, format!("{shown}, tenants with a policy: {files}")),
        Err(faults) => faults,
    };
    let mut told: Vec<String> = faults.iter().take(SHOWN).map(in_one_line).collect();
    if faults.len() > SHOWN {
        told.push(format!("and {} more", faults.len() - SHOWN));
    }
    let advice = match faults.first() {
        Some(PolicyDirectoryError::Invalid { path, .. }) => {
            let file = output::printable(&path.display().to_string());
            format!("`nimbus policy validate --file {file}` tells everything that is wrong")
        }
        _ => "correct it".to_owned(),
    };
    Check::fail(
        NAME,
        told.join("; "),
        format!(
            "{advice}; with one fault in {shown} no file is taken, and the server does not start"
        ),
    )
}

/// A fault on one line: of an invalid policy the first thing that is wrong.
fn in_one_line(fault: &PolicyDirectoryError) -> String {
    let text = match fault {
        PolicyDirectoryError::Invalid { path, text } => {
            let first = text.lines().next().unwrap_or_default();
            format!("{} is no valid policy: {first}", path.display())
        }
        other => other.to_string(),
    };
    output::printable(&text)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::fs;

    use super::super::report::Status;
    use super::*;

    fn policy(tenant: &str) -> String {
        format!(
            "schema_version: 1\ntenant: {tenant}\nworkloads:\n- {{kind: http_request, name: native_api}}\n"
        )
    }

    #[test]
    fn every_fault_is_told_on_a_line_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        put("acme.yaml", &policy("acme"));
        put(".acme.yaml.swp", "no policy");
        let check = directory(dir.path());
        assert_eq!(check.status, Status::Ok, "{check:?}");
        assert!(
            check.message.ends_with(", tenants with a policy: 1"),
            "{check:?}"
        );

        put("globex.yaml", &policy("initech"));
        put("hooli.yaml", "moon: 1\n");
        put("a\u{1b}[2J.txt", "");
        let check = directory(dir.path());
        assert_eq!(check.status, Status::Fail);
        for part in [
            "is for the tenant `initech`, not `globex`",
            "hooli.yaml is no valid policy: error[unknown_key]: there is no key `moon` here",
            "a\\u{1b}[2J.txt: the name does not end in `.yaml`",
        ] {
            assert!(check.message.contains(part), "{check:?}");
        }
        assert!(!check.message.contains(['\n', '\u{1b}']), "{check:?}");
        for at in 0..9 {
            put(&format!("t{at}.yaml"), "");
        }
        assert!(directory(dir.path()).message.ends_with("; and 7 more"));
    }

    #[test]
    fn a_directory_without_files_is_told_and_one_that_is_not_there_fails() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(directory(dir.path()).status, Status::Warn);
        let check = directory(&dir.path().join("gone"));
        assert_eq!(check.status, Status::Fail);
        assert!(check.message.contains("No such file"), "{check:?}");
    }
}
