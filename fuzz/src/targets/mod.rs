//! The checks, one room each, and the table that lists them.

pub mod audit_line;
pub mod audit_segment;
pub mod backup_stream;
pub mod commit_record;
pub mod cursor;
pub mod id;
pub mod json_value;
pub mod key;
pub mod manifest;
pub mod policy;
pub mod query;
pub mod sealed_stream;
pub mod subject;
pub mod token_file;
pub mod validator;

/// A check and what mutations of its inputs are made from.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The name of the binary, of the corpus directory and of the module.
    pub name: &'static str,
    /// Panics when an input breaks a promise.
    pub check: fn(&[u8]),
    /// Pieces that inputs are made of.
    pub words: &'static [&'static str],
}

/// Every target, by name.
pub const ALL: [Target; 15] = [
    Target {
        name: "audit_line",
        check: audit_line::check,
        words: audit_line::WORDS,
    },
    Target {
        name: "audit_segment",
        check: audit_segment::check,
        words: audit_segment::WORDS,
    },
    Target {
        name: "backup_stream",
        check: backup_stream::check,
        words: backup_stream::WORDS,
    },
    Target {
        name: "commit_record",
        check: commit_record::check,
        words: commit_record::WORDS,
    },
    Target {
        name: "cursor",
        check: cursor::check,
        words: &[],
    },
    Target {
        name: "id",
        check: id::check,
        words: id::WORDS,
    },
    Target {
        name: "json_value",
        check: json_value::check,
        words: json_value::WORDS,
    },
    Target {
        name: "key",
        check: key::check,
        words: key::WORDS,
    },
    Target {
        name: "manifest",
        check: manifest::check,
        words: manifest::WORDS,
    },
    Target {
        name: "policy",
        check: policy::check,
        words: policy::WORDS,
    },
    Target {
        name: "query",
        check: query::check,
        words: query::WORDS,
    },
    Target {
        name: "sealed_stream",
        check: sealed_stream::check,
        words: sealed_stream::WORDS,
    },
    Target {
        name: "subject",
        check: subject::check,
        words: subject::WORDS,
    },
    Target {
        name: "token_file",
        check: token_file::check,
        words: token_file::WORDS,
    },
    Target {
        name: "validator",
        check: validator::check,
        words: validator::WORDS,
    },
];
