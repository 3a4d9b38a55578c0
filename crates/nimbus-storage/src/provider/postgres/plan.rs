//! A batch on its way to the server: one statement that compares the head and swaps it with all that it writes.
//!
//! Must not decide what a lost connection means.

use std::sync::Arc;

use bytes::Bytes;
use sqlx::{AssertSqlSafe, PgConnection};

use super::space::{Space, Text};
use super::sql::Touched;
use crate::provider::external::FORMAT_KEY;
use crate::provider::external::backend::Goal;
use crate::provider::{Batch, CommitError, HEAD_KEY, Head, Keyspace};

/// A batch as the statement takes it.
pub(super) struct Plan {
    pub(super) space: Arc<Space>,
    pub(super) goal: Goal,
    sql: Text,
    puts: Vec<(Vec<Vec<u8>>, Vec<Bytes>)>,
    deletes: Vec<Vec<Vec<u8>>>,
}

impl Plan {
    /// # Errors
    /// `Refused` for a batch that writes rows of the provider.
    pub(super) fn new(
        space: &Arc<Space>,
        expected: Head,
        batch: Batch,
    ) -> Result<Plan, CommitError> {
        let mut puts: [(Vec<Vec<u8>>, Vec<Bytes>); Keyspace::ALL.len()] = Default::default();
        let mut deletes: [Vec<Vec<u8>>; Keyspace::ALL.len()] = Default::default();
        let mut log = None;
        for ((keyspace, key), value) in batch.writes {
            if keyspace == Keyspace::Meta && (key == HEAD_KEY || key == FORMAT_KEY) {
                let key = String::from_utf8_lossy(&key);
                let reason = format!("the row {key} of meta belongs to the provider");
                return Err(CommitError::Refused { reason });
            }
            match value {
                Some(value) => {
                    if keyspace == Keyspace::Log && log.is_none() {
                        log = Some((key.clone(), value.clone()));
                    }
                    let (keys, values) = &mut puts[keyspace as usize];
                    keys.push(key);
                    values.push(value);
                }
                None => deletes[keyspace as usize].push(key),
            }
        }
        let touched = Touched {
            puts: puts.each_ref().map(|(keys, _)| !keys.is_empty()),
            deletes: deletes.each_ref().map(|keys| !keys.is_empty()),
        };
        Ok(Plan {
            sql: space.commit(touched),
            space: space.clone(),
            goal: Goal {
                expected,
                new: batch.head,
                log,
            },
            puts: puts.into_iter().filter(|(k, _)| !k.is_empty()).collect(),
            deletes: deletes.into_iter().filter(|k| !k.is_empty()).collect(),
        })
    }

    /// Runs the statement; whether the head was the expected one.
    pub(super) async fn apply(&self, conn: &mut PgConnection) -> Result<bool, sqlx::Error> {
        let (new, expected) = (self.goal.new.encode(), self.goal.expected.encode());
        let mut query = sqlx::query(AssertSqlSafe(self.sql.clone()))
            .bind(new.to_vec())
            .bind(expected.to_vec())
            .bind(self.space.format.as_slice());
        for (keys, values) in &self.puts {
            let values: Vec<&[u8]> = values.iter().map(|v| &v[..]).collect();
            query = query.bind(keys.as_slice()).bind(values);
        }
        for keys in &self.deletes {
            query = query.bind(keys.as_slice());
        }
        // Ends when the server is ready again: the commit itself comes after the answer to the statement.
        Ok(query.execute(conn).await?.rows_affected() == 1)
    }
}
