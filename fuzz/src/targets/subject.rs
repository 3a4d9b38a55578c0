//! Subjects of encrypted files (`nimbus-crypto`, `subject.rs`): one text for each, a key-file name that
//! a file system takes or an error, and no path in any name.

use nimbus_crypto::{KEY_FILE_ENDING, MAX_FILE_NAME, MAX_TENANT_ID, Subject, SubjectError};

/// Pieces of descriptors.
pub const WORDS: &[&str] = &[
    "db:sqlite:tenant:",
    "db:redb:tenant:",
    "db:libsql:cache:",
    "db:redb:control:nimbus-control.db",
    "artifact:backup",
    ".sqlite3",
    ".redb",
    "demo:demo",
    ":",
    "_",
    "../",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
];

/// Checks the bytes as a descriptor.
pub fn check(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let subject: Subject = match text.parse() {
        Ok(subject) => subject,
        Err(error) => return printable(&error),
    };
    assert_eq!(subject.descriptor(), text, "the form is not canonical");
    assert!(
        subject
            .tenant()
            .is_none_or(|tenant| tenant.len() <= MAX_TENANT_ID)
    );
    let names = [Some(subject.file()), subject.tenant()];
    for name in names.into_iter().flatten() {
        assert!(!name.contains('/') && !name.starts_with("..") && !name.is_empty());
    }
    match subject.key_file_name() {
        Ok(name) => {
            assert!(name.len() <= MAX_FILE_NAME && name.ends_with(KEY_FILE_ENDING));
            assert_eq!(name.len(), 2 * text.len() + KEY_FILE_ENDING.len());
        }
        Err(error) => {
            assert!(2 * text.len() + KEY_FILE_ENDING.len() > MAX_FILE_NAME);
            printable(&error);
        }
    }
}

fn printable(error: &SubjectError) {
    let message = error.to_string();
    assert!(message.len() <= 800, "{} bytes", message.len());
    assert!(!message.contains(char::is_control), "{message:?}");
}
