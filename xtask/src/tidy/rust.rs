//! Rules about one Rust file at a time.
//! Must not know how source is read as code: `source` does.

use super::Finding;
use super::source;
use super::tree::File;

/// Longest file, in lines.
const MAX_LINES: usize = 1_000;

/// Macros that write to the terminal, which a server's library must leave to its log.
const PRINTING: [&str; 4] = ["eprint", "eprintln", "print", "println"];

/// Macros that mark work that is not finished.
const UNFINISHED: [&str; 3] = ["dbg", "todo", "unimplemented"];

/// Checks one Rust file.
pub(crate) fn check(file: &File) -> Vec<Finding> {
    let code = source::code(&file.text);
    let mut findings = Vec::new();
    findings.extend(room(file));
    findings.extend(length(file));
    findings.extend(unfinished(file, &code));
    findings.extend(printing(file, &code));
    findings.extend(ignored_tests(file, &code));
    findings.extend(one_door_to_the_store(file, &code));
    findings.extend(one_status_table(file, &code));
    findings
}

fn room(file: &File) -> Option<Finding> {
    (!file.text.starts_with("//!")).then(|| {
        let message = "the first line is no `//!` that says what the file is for and must not know";
        Finding::new(&file.path, 1, message)
    })
}

fn length(file: &File) -> Option<Finding> {
    let lines = file.text.lines().count();
    (lines > MAX_LINES).then(|| {
        let message = format!("{lines} lines, over the limit of {MAX_LINES}; divide it by subject");
        Finding::new(&file.path, 0, message)
    })
}

fn unfinished(file: &File, code: &str) -> Vec<Finding> {
    let message =
        |name| format!("`{name}!` has no place in the repository; finish it or return an error");
    macros(file, code, &UNFINISHED, message)
}

fn printing(file: &File, code: &str) -> Vec<Finding> {
    if may_print(&file.path) {
        return Vec::new();
    }
    let message = |name| format!("`{name}!` in library code; use `tracing`, or return the text");
    macros(file, &source::without_tests(code), &PRINTING, message)
}

/// Programs, tests and build scripts talk to the terminal or to cargo.
fn may_print(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path);
    let top = ["bench/", "bins/", "tests/", "xtask/"]
        .iter()
        .any(|dir| path.starts_with(dir));
    let inner = ["/examples/", "/tests/"]
        .iter()
        .any(|dir| path.contains(dir));
    top || inner || name == "build.rs" || name == "tests.rs" || name.ends_with("_tests.rs")
}

fn macros(
    file: &File,
    code: &str,
    names: &[&'static str],
    message: impl Fn(&'static str) -> String,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for &name in names {
        for at in source::words(code, name) {
            let after = code[at + name.len()..].trim_start();
            if after.starts_with('!') && !after.starts_with("!=") {
                findings.push(Finding::new(
                    &file.path,
                    source::line(code, at),
                    message(name),
                ));
            }
        }
    }
    findings
}

fn ignored_tests(file: &File, code: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for at in source::words(code, "ignore") {
        let attribute = code[..at]
            .rfind("#[")
            .map_or("", |start| &code[start + 2..at]);
        let in_attribute = attribute.trim().is_empty() && code[..at].trim_end().ends_with("#[")
            || attribute.trim_start().starts_with("cfg_attr") && !attribute.contains(']');
        let value = code[at + "ignore".len()..]
            .trim_start()
            .strip_prefix('=')
            .map(str::trim_start);
        let reasoned =
            value.is_some_and(|value| value.starts_with('"') && !value.starts_with("\"\""));
        if in_attribute && !reasoned {
            let message = "an ignored test without a reason; write #[ignore = \"why\"]";
            findings.push(Finding::new(&file.path, source::line(code, at), message));
        }
    }
    findings
}

/// Handlers reach the store through one file, which asks for an operation context
/// (ARCHITECTURE.md, design.md section 1).
fn one_door_to_the_store(file: &File, code: &str) -> Vec<Finding> {
    if !in_http(&file.path, "store.rs") {
        return Vec::new();
    }
    let message = "names the storage `Engine`; only store.rs may, handlers go through it";
    source::words(code, "Engine")
        .map(|at| Finding::new(&file.path, source::line(code, at), message))
        .collect()
}

/// An error code gets its HTTP status in one file (design.md section 1).
fn one_status_table(file: &File, code: &str) -> Option<Finding> {
    if !in_http(&file.path, "status.rs") || !code.contains("ErrorCode::") {
        return None;
    }
    let at = code
        .match_indices("=>")
        .map(|(at, _)| at)
        .find(|at| yields_status(&code[at + 2..]))?;
    let message = "maps an ErrorCode to a StatusCode; the table is in status.rs alone";
    Some(Finding::new(&file.path, source::line(code, at), message))
}

/// Whether an arm's value starts with `StatusCode::`, under any path and within braces or a tuple.
fn yields_status(arm: &str) -> bool {
    let value = arm.trim_start_matches(|c: char| c.is_whitespace() || c == '{' || c == '(');
    let path = value
        .split(|c: char| c != ':' && !source::is_word(c))
        .next()
        .unwrap_or_default();
    path.starts_with("StatusCode::") || path.contains("::StatusCode::")
}

/// Whether a file of nimbus-http is another one than the `door` of a rule.
fn in_http(path: &str, door: &str) -> bool {
    path.strip_prefix("crates/nimbus-http/src/")
        .is_some_and(|file| file != door)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File {
            path: path.to_owned(),
            text: text.to_owned(),
        }
    }

    /// The lines of the findings for code in a file at `path`; the first line is the module doc.
    fn lines(path: &str, code: &str) -> Vec<usize> {
        let findings = check(&file(path, &format!("//! Room.\n{code}")));
        findings.iter().map(|finding| finding.line).collect()
    }

    const LIB: &str = "crates/nimbus-core/src/value.rs";
    const HTTP: &str = "crates/nimbus-http/src/routes/documents.rs";

    #[test]
    fn a_file_without_a_module_doc_fails() {
        assert!(check(&file(LIB, "//! Room.\n")).is_empty());
        for bad in ["", "use std::fs;\n", "// Room.\n", "\n//! Room.\n"] {
            assert_eq!(check(&file(LIB, bad)).len(), 1, "{bad:?}");
        }
    }

    #[test]
    fn a_long_file_fails() {
        assert!(lines(LIB, &"\n".repeat(MAX_LINES - 1)).is_empty());
        assert_eq!(lines(LIB, &"\n".repeat(MAX_LINES)), [0]);
    }

    #[test]
    fn printing_fails_in_library_code_alone() {
        for name in PRINTING {
            let code = format!("fn f() {{\n    {name}!(\"x\");\n}}\n");
            assert_eq!(lines(LIB, &code), [3], "{name}");
            assert_eq!(
                lines(LIB, &format!("fn f() {{ std::{name} ! {{}} }}\n")),
                [2],
                "{name}"
            );
            for path in [
                "bins/nimbus/src/main.rs",
                "xtask/src/main.rs",
                "tests/src/lib.rs",
                "crates/nimbus-core/tests/all.rs",
                "crates/nimbus-core/examples/show.rs",
                "crates/nimbus-core/src/value/tests.rs",
                "crates/nimbus-core/build.rs",
            ] {
                assert!(lines(path, &code).is_empty(), "{path}");
            }
            assert!(lines(LIB, &format!("#[cfg(test)]\nmod tests {{\n{code}}}\n")).is_empty());
            assert!(
                lines(
                    LIB,
                    &format!("// {name}!()\nconst A: &str = \"{name}!()\";\n")
                )
                .is_empty()
            );
            assert!(lines(LIB, &format!("fn {name}(my_{name}: u8) {{}}\n")).is_empty());
        }
    }

    #[test]
    fn unfinished_work_fails_everywhere() {
        for name in UNFINISHED {
            let code = format!("#[cfg(test)]\nmod tests {{\n    fn f() {{ {name}!() }}\n}}\n");
            for path in [
                LIB,
                "bins/nimbus/src/main.rs",
                "tests/tests/all.rs",
                "xtask/src/main.rs",
            ] {
                assert_eq!(lines(path, &code), [4], "{path} {name}");
            }
        }
    }

    #[test]
    fn an_ignored_test_without_a_reason_fails() {
        for (code, bad) in [
            ("#[test]\n#[ignore = \"needs root\"]\nfn f() {}\n", false),
            ("#[test]\n#[ignore]\nfn f() {}\n", true),
            ("#[test]\n#[ ignore ]\nfn f() {}\n", true),
            ("#[test]\n#[ignore = \"\"]\nfn f() {}\n", true),
            ("#[test]\n#[cfg_attr(miri, ignore)]\nfn f() {}\n", true),
            (
                "#[test]\n#[cfg_attr(miri, ignore = \"slow\")]\nfn f() {}\n",
                false,
            ),
            ("#[test]\nfn f() { let ignore = 1; }\n", false),
            ("// #[ignore]\n#[test]\nfn f() {}\n", false),
        ] {
            assert_eq!(lines(LIB, code).len(), usize::from(bad), "{code}");
        }
    }

    #[test]
    fn a_second_door_to_the_store_fails() {
        let code = "use nimbus_storage::Engine;\n// Engine\nfn f(_: EngineRef) {}\n";
        assert_eq!(lines(HTTP, code), [2]);
        assert_eq!(lines("crates/nimbus-http/src/routes/store.rs", code), [2]);
        assert!(lines("crates/nimbus-http/src/store.rs", code).is_empty());
        assert!(lines("crates/nimbus-storage/src/lib.rs", code).is_empty());
    }

    #[test]
    fn a_second_status_table_fails() {
        for arm in [
            "StatusCode::NOT_FOUND,",
            "\n        StatusCode::NOT_FOUND,",
            "http::StatusCode::NOT_FOUND,",
            "{ StatusCode::NOT_FOUND }",
            "(StatusCode::NOT_FOUND, 1),",
        ] {
            let code = format!("match code {{\n    ErrorCode::NotFound => {arm}\n}}\n");
            assert_eq!(lines(HTTP, &code), [3], "{arm}");
            assert!(
                lines("crates/nimbus-http/src/status.rs", &code).is_empty(),
                "{arm}"
            );
            assert!(lines(LIB, &code).is_empty(), "{arm}");
        }
        let other = "match method {\n    Method::GET => StatusCode::OK,\n}\n";
        assert!(lines(HTTP, other).is_empty());
        let code = "match code {\n    ErrorCode::NotFound => status::of(code),\n}\n";
        assert!(lines(HTTP, code).is_empty());
    }
}
