//! Which statements sqld refuses: other files, settings of the connection, code from libraries.
//! It must not know streams or transactions; SQLite asks it while it reads a statement.

use std::sync::{Arc, Mutex};

use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::{Connection, ffi};

use crate::lock;

/// Pragmas that describe: their argument names what to describe.
const DESCRIBE: [&str; 14] = [
    "collation_list",
    "compile_options",
    "database_list",
    "foreign_key_check",
    "foreign_key_list",
    "function_list",
    "index_info",
    "index_list",
    "index_xinfo",
    "integrity_check",
    "quick_check",
    "table_info",
    "table_list",
    "table_xinfo",
];

/// Pragmas that may be set.
const SET: [&str; 3] = ["defer_foreign_keys", "foreign_keys", "user_version"];

/// Pragmas that may be asked, not set.
const ASK: [&str; 12] = [
    "application_id",
    "auto_vacuum",
    "busy_timeout",
    "cache_size",
    "data_version",
    "encoding",
    "freelist_count",
    "journal_mode",
    "max_page_count",
    "page_count",
    "page_size",
    "synchronous",
];

/// Functions that reach files or code beyond the database.
const FUNCTIONS: [&str; 3] = ["fts3_tokenizer", "load_extension", "sqlcipher_export"];

/// Guards a connection. What it refused last is left in the returned place.
pub(crate) fn watch(conn: &mut Connection) -> rusqlite::Result<Arc<Mutex<Option<String>>>> {
    let refused = Arc::new(Mutex::new(None));
    let place = Arc::clone(&refused);
    conn.authorizer(Some(move |context: AuthContext<'_>| {
        match refusal(&context.action) {
            None => Authorization::Allow,
            Some(what) => {
                *lock(&place) = Some(what);
                Authorization::Deny
            }
        }
    }))?;
    Ok(refused)
}

fn refusal(action: &AuthAction<'_>) -> Option<String> {
    match action {
        // VACUUM attaches a file of its own.
        AuthAction::Attach { .. } => Some("ATTACH or VACUUM".to_owned()),
        // A file whose name is computed.
        AuthAction::Unknown { code, .. } if *code == ffi::SQLITE_ATTACH => {
            Some("ATTACH".to_owned())
        }
        AuthAction::Detach { .. } => Some("DETACH".to_owned()),
        AuthAction::Function { function_name } if has(&FUNCTIONS, function_name) => {
            Some((*function_name).to_owned())
        }
        AuthAction::Pragma {
            pragma_name,
            pragma_value,
        } => {
            let known = has(&DESCRIBE, pragma_name)
                || has(&SET, pragma_name)
                || has(&ASK, pragma_name) && pragma_value.is_none();
            (!known).then(|| format!("PRAGMA {pragma_name}"))
        }
        _ => None,
    }
}

fn has(list: &[&str], name: &str) -> bool {
    list.iter().any(|listed| listed.eq_ignore_ascii_case(name))
}
