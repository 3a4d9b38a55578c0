//! A batch on its way to the server: rows sorted by table, cut into packets, and sent.
//!
//! Must not decide what a lost connection means; it says how far things had come. A batch that fits one packet
//! goes with its transaction around it: one round trip, in which the statement that compares the head ends
//! everything after it if the head is another.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sqlx::{AssertSqlSafe, MySqlConnection};

use super::connect::{SESSION_IDLE_S, run};
use super::error::{self, Kind};
use super::space::Space;
use super::sql;
use crate::provider::external::FORMAT_KEY;
use crate::provider::external::backend::{Goal, Sent};
use crate::provider::external::error::within;
use crate::provider::{Batch, CommitError, HEAD_KEY, Head, Keyspace};

/// Text of SQL after which a packet is sent.
const PACKET: usize = 1024 * 1024;
/// Longer values travel alone, bound to a statement, and not as digits.
const ALONE: usize = 128 * 1024;
/// What a packet holds beside a key and a value.
const OVERHEAD: u64 = 4096;
/// Keys that one statement deletes.
const DELETES: usize = 500;

/// A batch as the server takes it.
pub(super) struct Plan {
    pub(super) space: Arc<Space>,
    pub(super) goal: Goal,
    puts: [Vec<(Vec<u8>, Bytes)>; Keyspace::ALL.len()],
    deletes: [Vec<Vec<u8>>; Keyspace::ALL.len()],
}

impl Plan {
    /// # Errors
    /// `Refused` for a batch that writes rows of the provider, and for a row that no packet of the server holds.
    pub(super) fn new(
        space: &Arc<Space>,
        expected: Head,
        batch: Batch,
        max_packet: u64,
    ) -> Result<Plan, CommitError> {
        let mut plan = Plan {
            space: space.clone(),
            goal: Goal {
                expected,
                new: batch.head,
                log: None,
            },
            puts: Default::default(),
            deletes: Default::default(),
        };
        for ((keyspace, key), value) in batch.writes {
            plan.check(keyspace, &key, value.as_ref(), max_packet)?;
            match value {
                Some(value) => {
                    if keyspace == Keyspace::Log && plan.goal.log.is_none() {
                        plan.goal.log = Some((key.clone(), value.clone()));
                    }
                    plan.puts[keyspace as usize].push((key, value));
                }
                None => plan.deletes[keyspace as usize].push(key),
            }
        }
        Ok(plan)
    }

    fn check(
        &self,
        keyspace: Keyspace,
        key: &[u8],
        value: Option<&Bytes>,
        max_packet: u64,
    ) -> Result<(), CommitError> {
        let refused = |reason| Err(CommitError::Refused { reason });
        if keyspace == Keyspace::Meta && (key == HEAD_KEY || key == FORMAT_KEY) {
            let key = String::from_utf8_lossy(key);
            return refused(format!("the row {key} of meta belongs to the provider"));
        }
        let longest = nimbus_core::key::MAX_STORED_KEY;
        if key.len() > longest {
            let (name, found) = (keyspace.name(), key.len());
            return refused(format!(
                "a key of {name} has {found} bytes and at most {longest} fit"
            ));
        }
        let bytes = (key.len() + value.map_or(0, Bytes::len)) as u64;
        if bytes + OVERHEAD > max_packet {
            let name = keyspace.name();
            return refused(format!(
                "a row of {name} has {bytes} bytes, and the server takes {max_packet} at once \
                 (max_allowed_packet)"
            ));
        }
        Ok(())
    }

    /// Sends it and commits. `begin` begins the transaction, and is empty in one that was begun. With
    /// `one_packet`, what fits one packet is sent as one.
    pub(super) async fn apply(
        &self,
        conn: &mut MySqlConnection,
        limit: Duration,
        begin: String,
        one_packet: bool,
    ) -> Sent {
        let mut out = Out {
            conn,
            limit,
            text: begin,
            sent: !one_packet,
        };
        let mut gathered = self.send(&mut out).await;
        if gathered.is_ok() && out.sent {
            // The end is sent alone, so that it is known when it was.
            gathered = out.flush().await;
        }
        if let Err(error) = gathered {
            return failed(error, false);
        }
        out.text.push_str(&sql::end("COMMIT", SESSION_IDLE_S));
        match out.flush().await {
            Ok(()) => Sent::Committed,
            Err(error) => failed(error, true),
        }
    }

    async fn send(&self, out: &mut Out<'_>) -> Result<(), sqlx::Error> {
        let Space { name, format, .. } = &*self.space;
        let guard = sql::guard(name, &self.goal.expected, &self.goal.new, format);
        out.text.push_str(&guard);
        out.text.push(';');
        if out.sent {
            // The head is locked before anything else is sent.
            out.flush().await?;
        }
        for keyspace in Keyspace::ALL {
            let puts = &self.puts[keyspace as usize];
            let (long, short): (Vec<_>, Vec<_>) = puts.iter().partition(|(_, v)| v.len() > ALONE);
            self.put_short(out, keyspace, &short).await?;
            for (key, value) in long {
                out.flush().await?;
                self.put_long(out, keyspace, key, value).await?;
            }
            let deletes = &self.deletes[keyspace as usize];
            self.delete(out, keyspace, deletes).await?;
        }
        Ok(())
    }

    async fn put_short(
        &self,
        out: &mut Out<'_>,
        keyspace: Keyspace,
        rows: &[&(Vec<u8>, Bytes)],
    ) -> Result<(), sqlx::Error> {
        let begin = sql::put(&self.space.name, keyspace);
        let mut open = false;
        for (key, value) in rows {
            out.text.push_str(if open { "," } else { &begin });
            open = true;
            out.text.push('(');
            sql::literal(&mut out.text, key);
            out.text.push(',');
            sql::literal(&mut out.text, value);
            out.text.push(')');
            if out.text.len() > PACKET {
                out.text.push_str(sql::PUT_END);
                out.flush().await?;
                open = false;
            }
        }
        if open {
            out.text.push_str(sql::PUT_END);
            out.text.push(';');
        }
        Ok(())
    }

    async fn put_long(
        &self,
        out: &mut Out<'_>,
        keyspace: Keyspace,
        key: &[u8],
        value: &[u8],
    ) -> Result<(), sqlx::Error> {
        let begin = sql::put(&self.space.name, keyspace);
        let sql = format!("{begin}(?,?){}", sql::PUT_END);
        let query = sqlx::query(AssertSqlSafe(sql)).persistent(false);
        let query = query.bind(key).bind(value);
        within(out.limit, query.execute(&mut *out.conn)).await?;
        Ok(())
    }

    async fn delete(
        &self,
        out: &mut Out<'_>,
        keyspace: Keyspace,
        keys: &[Vec<u8>],
    ) -> Result<(), sqlx::Error> {
        let begin = sql::delete(&self.space.name, keyspace);
        for some in keys.chunks(DELETES) {
            for (n, key) in some.iter().enumerate() {
                out.text.push_str(if n > 0 { "," } else { &begin });
                sql::literal(&mut out.text, key);
            }
            out.text.push_str(");");
            if out.text.len() > PACKET {
                out.flush().await?;
            }
        }
        Ok(())
    }
}

fn failed(error: sqlx::Error, at_end: bool) -> Sent {
    match error::kind(&error) {
        Kind::Moved => Sent::Moved,
        _ => Sent::Failed { error, at_end },
    }
}

/// Where statements gather until they are sent.
struct Out<'a> {
    conn: &'a mut MySqlConnection,
    limit: Duration,
    text: String,
    /// Whether a packet was sent, or is to be sent at once.
    sent: bool,
}

impl Out<'_> {
    async fn flush(&mut self) -> Result<(), sqlx::Error> {
        self.sent = true;
        if self.text.is_empty() {
            return Ok(());
        }
        let mut text = std::mem::take(&mut self.text);
        // An empty statement is an error.
        if text.ends_with(';') {
            text.pop();
        }
        run(self.conn, self.limit, text).await.map(drop)
    }
}
