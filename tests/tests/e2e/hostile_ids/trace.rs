//! Reads what `strace -y` wrote about calls that name files: which paths were touched.
//!
//! It must not know which paths are allowed.

use std::path::{Component, Path, PathBuf};

/// The paths that one line names, resolved as far as text can be: arguments against the directory
/// that they are relative to, and the path of the descriptor that was returned.
pub fn paths(line: &str) -> Vec<PathBuf> {
    let (call, result) = match line.rfind(") = ") {
        Some(at) => line.split_at(at),
        None => (line, ""),
    };
    let mut found = Vec::new();
    let mut directory = PathBuf::from("/");
    let mut rest = call;
    while let Some(at) = rest.find(['"', '<']) {
        let tail = &rest[at + 1..];
        if rest.as_bytes()[at] == b'"' {
            let (text, after) = quoted(tail);
            found.push(normal(&directory.join(text)));
            rest = after;
        } else {
            // `<unfinished ...>` and `<... openat resumed>` are no paths.
            if tail.starts_with('/') {
                directory = PathBuf::from(annotation(tail));
            }
            rest = tail;
        }
    }
    if let Some(at) = result.find("</") {
        found.push(normal(Path::new(&annotation(&result[at + 1..]))));
    }
    found
}

/// The text up to the closing quote without its escapes, and what follows.
fn quoted(text: &str) -> (String, &str) {
    let mut end = 0;
    let bytes = text.as_bytes();
    while end < bytes.len() && bytes[end] != b'"' {
        end += if bytes[end] == b'\\' { 2 } else { 1 };
    }
    let end = end.min(bytes.len());
    (
        unescaped(&text[..end]),
        text.get(end + 1..).unwrap_or_default(),
    )
}

/// The path of a descriptor, up to the closing bracket; brackets within it are escaped.
fn annotation(text: &str) -> String {
    let path = text.split('>').next().unwrap_or_default();
    unescaped(path.strip_suffix(" (deleted)").unwrap_or(path))
}

/// Octal escapes and those of C; other bytes are kept.
fn unescaped(text: &str) -> String {
    let mut out = Vec::new();
    let mut bytes = text.bytes().peekable();
    while let Some(byte) = bytes.next() {
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        let mut value = 0_u32;
        let mut digits = 0;
        while let Some(digit) = bytes.next_if(|b| digits < 3 && (b'0'..=b'7').contains(b)) {
            value = value * 8 + u32::from(digit - b'0');
            digits += 1;
        }
        match digits {
            0 => out.extend(bytes.next().map(|b| match b {
                b'n' => b'\n',
                b't' => b'\t',
                b'r' => b'\r',
                b'v' => 0x0b,
                b'f' => 0x0c,
                other => other,
            })),
            _ => out.push(u8::try_from(value & 0xff).unwrap()),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The path without `.` and `..`.
fn normal(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

#[test]
fn lines_of_strace_are_read() {
    let cases: [(&str, &[&str]); 9] = [
        (
            r#"12 openat(AT_FDCWD</home/a>, "/data/x.sqlite3", O_RDWR|O_CREAT, 0600) = 7</data/x.sqlite3>"#,
            &["/data/x.sqlite3", "/data/x.sqlite3"],
        ),
        (
            r#"12 openat(5</data>, "x.sqlite3", O_RDWR) = -1 ELOOP (Too many levels)"#,
            &["/data/x.sqlite3"],
        ),
        (
            r#"12 openat(5</data>, "../etc/passwd", O_RDONLY <unfinished ...>"#,
            &["/etc/passwd"],
        ),
        (
            r#"12 <... openat resumed>) = 7</etc/passwd>"#,
            &["/etc/passwd"],
        ),
        (
            r#"12 openat(5</data>, "link", O_RDONLY) = 7</outside/victim>"#,
            &["/data/link", "/outside/victim"],
        ),
        (
            r#"12 renameat2(5</data>, "a", 6</tmp>, "b", 0) = 0"#,
            &["/data/a", "/tmp/b"],
        ),
        (
            r#"12 unlink("/data/a\"b\\c\303\251") = 0"#,
            &["/data/a\"b\\c\u{e9}"],
        ),
        (
            r#"12 openat(5</data>, "a\0b", O_RDONLY) = 7</data/a (deleted)>"#,
            &["/data/a\0b", "/data/a"],
        ),
        ("12 +++ exited with 0 +++", &[]),
    ];
    for (line, wanted) in cases {
        let wanted: Vec<PathBuf> = wanted.iter().map(PathBuf::from).collect();
        assert_eq!(paths(line), wanted, "{line}");
    }
}
