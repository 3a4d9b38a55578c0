//! What MySQL and MariaDB report, told apart as far as the provider acts on it.
//!
//! Must not know statements: the caller says what it was doing.

use sqlx::mysql::{MySqlDatabaseError, MySqlRow};
use sqlx::{Decode, MySql, Row as _, Type};

use crate::provider::{ProviderError, external};

pub(super) use crate::provider::external::error::Kind;

/// The lock was not had in time.
pub(super) const LOCK_TIMEOUT: u16 = 1205;
/// There is a database of that name.
pub(super) const DATABASE_EXISTS: u16 = 1007;

/// The kind of an error; see [`Kind`].
pub(super) fn kind(error: &sqlx::Error) -> Kind {
    match error {
        sqlx::Error::Database(e) => match e.try_downcast_ref::<MySqlDatabaseError>() {
            Some(e) => kind_of(e.number(), e.message()),
            None => Kind::Refused,
        },
        sqlx::Error::Encode(_)
        | sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::Decode(_)
        | sqlx::Error::Configuration(_) => Kind::Refused,
        // Io, Tls, Protocol and what may come: nothing is known.
        _ => Kind::Lost,
    }
}

fn kind_of(number: u16, message: &str) -> Kind {
    match number {
        1048 => Kind::Moved,
        // Deadlock, lock timeouts, a row or table that changed since the view was taken, an interrupted
        // statement, memory, a server that became a replica.
        1213 | LOCK_TIMEOUT | 3572 | 1020 | 1412 | 1317 | 1037 | 1038 | 1041 | 1290 | 1792
        | 1836 => Kind::Passing,
        1021 | 1114 => Kind::Full,
        // A file or a storage engine says so with the number of the operating system.
        3 | 14 | 20 | 1005 | 1006 | 1026 | 1030 if says_no_space(message) => Kind::Full,
        1008 | 1049 | 1051 | 1146 | 1932 => Kind::Gone,
        1040 | 1129 | 1203 | 1226 => Kind::NoConnection,
        1044 | 1045 | 1142 | 1143 | 1227 | 1698 => Kind::Denied,
        // The session or the server ends, or COMMIT itself failed: perhaps after it was done.
        1053
        | 1077
        | 1078
        | 1079
        | 1080
        | 1152
        | 1158..=1161
        | 1180
        | 1184
        | 1927
        | 3169
        | 4031 => Kind::Lost,
        _ => Kind::Refused,
    }
}

/// In the words of MariaDB 10.11 and MySQL 8.
fn says_no_space(message: &str) -> bool {
    let number = ["errno: 28 ", "Errcode: 28 ", "error 28 "];
    number.iter().any(|n| message.contains(n))
}

/// Whether the server reported this number.
pub(super) fn is_number(error: &sqlx::Error, number: u16) -> bool {
    let e = error
        .as_database_error()
        .and_then(|e| e.try_downcast_ref::<MySqlDatabaseError>());
    e.is_some_and(|e| e.number() == number)
}

/// What the server said, with its number and SQLSTATE.
pub(super) fn text(error: &sqlx::Error) -> String {
    let e = error
        .as_database_error()
        .and_then(|e| e.try_downcast_ref::<MySqlDatabaseError>());
    match e {
        Some(e) => {
            let state = e.code().unwrap_or("HY000");
            format!("{} (error {}, SQLSTATE {state})", e.message(), e.number())
        }
        None => error.to_string(),
    }
}

/// A failure of anything but a commit. `Gone` is for the caller, who knows the tenant.
pub(super) fn provider(what: impl Into<String>, error: sqlx::Error) -> ProviderError {
    external::error::provider(what, kind(&error), &text(&error))
}

/// A column, whatever the server calls its type: expressions have types that differ between servers.
pub(super) fn column<'r, T>(row: &'r MySqlRow, index: usize) -> Result<T, sqlx::Error>
where
    T: Decode<'r, MySql> + Type<MySql>,
{
    row.try_get_unchecked(index)
}

/// A column of ASCII text.
pub(super) fn text_column(row: &MySqlRow, index: usize) -> Result<String, sqlx::Error> {
    let bytes: &[u8] = column(row, index)?;
    Ok(String::from_utf8_lossy(bytes).into_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn kinds() {
        for (number, message, expected) in [
            (1213, "Deadlock found", Kind::Passing),
            (1205, "Lock wait timeout", Kind::Passing),
            (1114, "The table 'docs' is full", Kind::Full),
            (1021, "Disk full", Kind::Full),
            (
                1030,
                "Got error 28 \"No space left on device\" from storage engine InnoDB",
                Kind::Full,
            ),
            (
                1006,
                "Can't create database 'e' (errno: 28 \"No space left on device\")",
                Kind::Full,
            ),
            (
                3,
                "Error writing file './d/u.frm' (Errcode: 28 \"No space left on device\")",
                Kind::Full,
            ),
            (
                1006,
                "Can't create database 'e28 ' (errno: 13 \"Permission denied\")",
                Kind::Refused,
            ),
            (1030, "Got error 168 from storage engine", Kind::Refused),
            (1049, "Unknown database", Kind::Gone),
            (1146, "Table 't.docs' doesn't exist", Kind::Gone),
            (
                1153,
                "Got a packet bigger than 'max_allowed_packet' bytes",
                Kind::Refused,
            ),
            (1040, "Too many connections", Kind::NoConnection),
            (1044, "Access denied", Kind::Denied),
            (1180, "Got error during COMMIT", Kind::Lost),
            (1927, "Connection was killed", Kind::Lost),
            (4031, "The client was disconnected", Kind::Lost),
            (1064, "You have an error in your SQL syntax", Kind::Refused),
        ] {
            assert_eq!(kind_of(number, message), expected, "{number} {message}");
        }
        let lost = sqlx::Error::Io(std::io::ErrorKind::BrokenPipe.into());
        assert_eq!(kind(&lost), Kind::Lost);
    }
}
