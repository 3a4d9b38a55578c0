//! The connection behind one stream: it runs what a pipeline asks for.
//! It must not know batons, HTTP or other streams but through the slot of writers.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use rusqlite::fallible_iterator::FallibleIterator;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Statement, TransactionState, ffi};

use crate::error::{ProtocolError, SqlError};
use crate::proto::{
    Batch, BatchResult, Column, Condition, Description, Outcome, Parameter, Request, Response, Sql,
    Stmt, StmtResult, Value,
};
use crate::slot::Slot;
use crate::{World, guard, lock};

#[derive(Debug)]
pub(crate) struct Session {
    id: u64,
    me: Weak<Mutex<Session>>,
    world: Arc<World>,
    slot: Arc<Slot>,
    /// None once the namespace is gone.
    conn: Option<Connection>,
    refused: Arc<Mutex<Option<String>>>,
    /// Commits that the hook saw since the last look.
    commits: Arc<AtomicU64>,
    /// The transaction was taken away and the client does not know yet.
    lost: Cell<bool>,
    /// The answer is not to be sent.
    cut: Cell<bool>,
    texts: HashMap<i32, String>,
}

/// One request of a pipeline: what its statements share.
struct Program {
    /// Bytes that its rows may still take.
    room: usize,
    /// Its transaction was taken away, so nothing more of it runs.
    lost: bool,
}

impl Session {
    pub(crate) fn new(
        id: u64,
        mut conn: Connection,
        world: &Arc<World>,
        slot: &Arc<Slot>,
    ) -> rusqlite::Result<Arc<Mutex<Session>>> {
        let refused = guard::watch(&mut conn)?;
        let commits = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&commits);
        conn.commit_hook(Some(move || {
            count.fetch_add(1, SeqCst);
            false
        }))?;
        // The slot decides who waits for whom.
        conn.busy_timeout(Duration::ZERO)?;
        Ok(Arc::new_cyclic(|me| {
            Mutex::new(Session {
                id,
                me: me.clone(),
                world: Arc::clone(world),
                slot: Arc::clone(slot),
                conn: Some(conn),
                refused,
                commits,
                lost: Cell::new(false),
                cut: Cell::new(false),
                texts: HashMap::new(),
            })
        }))
    }

    /// Rolls back, frees the lock and closes the file. Statements fail from now on.
    pub(crate) fn close(&mut self) {
        drop(self.conn.take());
        self.slot.release(self.id);
    }

    /// Whether the answer is to be cut; asked once.
    pub(crate) fn take_cut(&self) -> bool {
        self.cut.take()
    }

    /// Runs the requests of a pipeline in order, whatever became of those before. True: the stream is closed.
    pub(crate) fn pipeline(
        &mut self,
        requests: &[Request],
        version: u8,
    ) -> Result<(Vec<Outcome>, bool), ProtocolError> {
        let mut closed = false;
        let mut outcomes = Vec::new();
        for request in requests {
            if closed {
                return Err(ProtocolError::Closed);
            }
            closed = matches!(request, Request::Close);
            outcomes.push(match self.request(request, version)? {
                Ok(response) => Outcome::Ok { response },
                Err(error) => Outcome::Error {
                    error: self.wire(&error),
                },
            });
        }
        Ok((outcomes, closed))
    }

    pub(crate) fn wire(&self, error: &SqlError) -> crate::proto::Error {
        error.wire(self.world.options.extended_codes)
    }

    fn request(
        &mut self,
        request: &Request,
        version: u8,
    ) -> Result<Result<Response, SqlError>, ProtocolError> {
        let program = &mut self.program(self.world.options.max_response);
        Ok(match request {
            Request::Close => Ok(Response::Close),
            Request::Execute { stmt } => {
                let result = self.execute(stmt, program)?;
                result.map(|result| Response::Execute { result })
            }
            Request::Batch { batch } => Ok(Response::Batch {
                result: self.batch(batch, version, program)?,
            }),
            Request::Sequence(sql) => {
                let result = self.sequence(self.text(sql)?, program);
                result.map(|()| Response::Sequence)
            }
            Request::Describe(sql) => {
                let result = self.describe(self.text(sql)?);
                result.map(|result| Response::Describe { result })
            }
            Request::StoreSql { sql_id, sql } => {
                if self.texts.contains_key(sql_id) {
                    return Err(ProtocolError::SqlExists(*sql_id));
                }
                self.texts.insert(*sql_id, sql.clone());
                Ok(Response::StoreSql)
            }
            Request::CloseSql { sql_id } => {
                self.texts.remove(sql_id);
                Ok(Response::CloseSql)
            }
            Request::GetAutocommit if version < 3 => {
                return Err(ProtocolError::NotInVersion2("get_autocommit"));
            }
            Request::GetAutocommit => Ok(Response::GetAutocommit {
                is_autocommit: self.is_autocommit(),
            }),
        })
    }

    /// A batch whose rows may take any space: what a cursor sends.
    pub(crate) fn cursor(&self, batch: &Batch) -> Result<BatchResult, ProtocolError> {
        self.batch(batch, 3, &mut self.program(usize::MAX))
    }

    fn program(&self, room: usize) -> Program {
        Program { room, lost: false }
    }

    fn text<'a>(&'a self, sql: &'a Sql) -> Result<&'a str, ProtocolError> {
        match (&sql.sql, sql.sql_id) {
            (Some(text), None) => Ok(text),
            (None, Some(id)) => {
                let text = self.texts.get(&id).map(String::as_str);
                text.ok_or(ProtocolError::SqlNotFound(id))
            }
            _ => Err(ProtocolError::SqlOrId),
        }
    }

    fn conn(&self) -> Result<&Connection, SqlError> {
        let gone = || SqlError::sqlite(ffi::SQLITE_CANTOPEN, "the namespace was deleted");
        self.conn.as_ref().ok_or_else(gone)
    }

    fn is_autocommit(&self) -> bool {
        self.conn.as_ref().is_none_or(Connection::is_autocommit)
    }

    fn batch(
        &self,
        batch: &Batch,
        version: u8,
        program: &mut Program,
    ) -> Result<BatchResult, ProtocolError> {
        for (at, step) in batch.steps.iter().enumerate() {
            let condition = step.condition.as_ref();
            condition.map_or(Ok(()), |condition| check(condition, at, version))?;
        }
        let mut done = BatchResult::default();
        for step in &batch.steps {
            let condition = step.condition.as_ref();
            let outcome = match condition.is_none_or(|condition| self.holds(condition, &done)) {
                true => Some(self.execute(&step.stmt, program)?),
                false => None,
            };
            let (result, error) = match outcome {
                None => (None, None),
                Some(Ok(result)) => (Some(result), None),
                Some(Err(error)) => (None, Some(self.wire(&error))),
            };
            done.step_results.push(result);
            done.step_errors.push(error);
        }
        Ok(done)
    }

    fn holds(&self, condition: &Condition, done: &BatchResult) -> bool {
        match condition {
            Condition::Ok { step } => done.step_results[*step].is_some(),
            Condition::Error { step } => done.step_errors[*step].is_some(),
            Condition::Not { cond } => !self.holds(cond, done),
            Condition::And { conds } => conds.iter().all(|cond| self.holds(cond, done)),
            Condition::Or { conds } => conds.iter().any(|cond| self.holds(cond, done)),
            Condition::IsAutocommit => self.is_autocommit(),
        }
    }

    fn execute(
        &self,
        stmt: &Stmt,
        program: &mut Program,
    ) -> Result<Result<StmtResult, SqlError>, ProtocolError> {
        let sql = self.text(&stmt.sql)?;
        let result = self.one(sql, stmt, program);
        self.settle();
        Ok(result.map_err(|error| self.explain(error)))
    }

    fn one(&self, sql: &str, stmt: &Stmt, program: &mut Program) -> Result<StmtResult, SqlError> {
        self.still_mine(program)?;
        let started = Instant::now();
        let conn = self.conn()?;
        let mut prepared = only(conn, sql)?;
        let keyword = keyword(&prepared);
        bind(&mut prepared, stmt)?;
        self.admit(conn, &prepared, &keyword)?;
        let cols = columns(&prepared);
        let before = conn.total_changes();
        let mut rows = Vec::new();
        let mut found = prepared.raw_query();
        while let Some(row) = found.next()? {
            if stmt.want_rows.unwrap_or(true) {
                let values = (0..cols.len()).map(|at| value(row.get_ref(at)?));
                let values: Vec<Value> = values.collect::<Result<_, SqlError>>()?;
                let bytes = values.iter().map(size).sum();
                let room = program.room.checked_sub(bytes);
                let limit = self.world.options.max_response;
                program.room = room.ok_or(SqlError::TooLarge(limit))?;
                rows.push(values);
            }
        }
        drop(found);
        // SQLite keeps the count of the last change through statements that change nothing.
        let changed = conn.total_changes() != before;
        let affected_row_count = if changed { conn.changes() } else { 0 };
        let inserts = ["INSERT", "REPLACE"].contains(&keyword.as_str());
        Ok(StmtResult {
            rows_read: rows.len() as u64,
            rows_written: affected_row_count,
            cols,
            rows,
            affected_row_count,
            last_insert_rowid: inserts.then(|| conn.last_insert_rowid()),
            replication_index: None,
            query_duration_ms: started.elapsed().as_secs_f64() * 1e3,
        })
    }

    fn sequence(&self, sql: &str, program: &mut Program) -> Result<(), SqlError> {
        let conn = self.conn()?;
        let mut statements = rusqlite::Batch::new(conn, sql);
        loop {
            let next = statements.next().map_err(SqlError::from);
            let Some(mut statement) = next.map_err(|error| self.explain(error))? else {
                return Ok(());
            };
            let result = self.run(conn, &mut statement, program);
            drop(statement);
            self.settle();
            result.map_err(|error| self.explain(error))?;
        }
    }

    fn run(
        &self,
        conn: &Connection,
        statement: &mut Statement<'_>,
        program: &mut Program,
    ) -> Result<(), SqlError> {
        self.still_mine(program)?;
        self.admit(conn, statement, &keyword(statement))?;
        let mut rows = statement.raw_query();
        while rows.next()?.is_some() {}
        Ok(())
    }

    fn describe(&self, sql: &str) -> Result<Description, SqlError> {
        let found = only(self.conn()?, sql);
        let prepared = found.map_err(|error| self.explain(error))?;
        let names = (1..=prepared.parameter_count()).map(|at| Parameter {
            name: prepared.parameter_name(at).map(str::to_owned),
        });
        Ok(Description {
            params: names.collect(),
            cols: columns(&prepared),
            is_explain: prepared.is_explain() != 0,
            is_readonly: prepared.readonly(),
        })
    }

    /// A program whose transaction was taken away hears of it and does nothing more. Its session is then
    /// outside of a transaction, so a client that goes on all the same commits each statement by itself.
    fn still_mine(&self, program: &mut Program) -> Result<(), SqlError> {
        program.lost |= self.lost.take();
        match program.lost {
            true => Err(SqlError::TransactionTimeout),
            false => Ok(()),
        }
    }

    /// Waits for the write lock where a statement needs it. BEGIN IMMEDIATE counts as a write for SQLite.
    fn admit(
        &self,
        conn: &Connection,
        prepared: &Statement<'_>,
        word: &str,
    ) -> Result<(), SqlError> {
        let commits = ["COMMIT", "END"].contains(&word) && is_writing(conn);
        if !prepared.readonly() && !is_writing(conn) {
            self.slot.acquire(self.id, &self.me)?;
        }
        let writes = commits || !prepared.readonly() && word != "BEGIN";
        if writes && self.world.faults.take_full() {
            if !conn.is_autocommit() {
                conn.execute_batch("ROLLBACK")?;
            }
            let message = "database or disk is full";
            return Err(SqlError::sqlite(ffi::SQLITE_FULL, message));
        }
        Ok(())
    }

    /// After each statement: frees the lock that it no longer needs, or that others wait for too long.
    fn settle(&self) {
        let Some(conn) = &self.conn else { return };
        if is_writing(conn) {
            self.yield_lock();
            return;
        }
        self.slot.release(self.id);
        for _ in 0..self.commits.swap(0, SeqCst) {
            self.cut.set(self.cut.get() | self.world.faults.committed());
        }
    }

    /// Gives the lock and the transaction up if the time is over and somebody waits.
    pub(crate) fn yield_lock(&self) {
        let Some(conn) = &self.conn else { return };
        if self.slot.is_wanted(self.id) {
            // It fails only where SQLite has rolled back already.
            let _ = conn.execute_batch("ROLLBACK");
            self.lost.set(true);
            self.slot.release(self.id);
        }
    }

    /// What the guard refused is no error of SQLite's for sqld: its parser does not know such statements.
    fn explain(&self, error: SqlError) -> SqlError {
        match lock(&self.refused).take() {
            Some(what) => SqlError::Parse(format!("unsupported statement: {what}")),
            None => error,
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.close();
    }
}

/// Conditions look back only, and `is_autocommit` is newer than version 2.
fn check(condition: &Condition, at: usize, version: u8) -> Result<(), ProtocolError> {
    match condition {
        Condition::Ok { step } | Condition::Error { step } if *step >= at => {
            Err(ProtocolError::BadStep(*step))
        }
        Condition::Not { cond } => check(cond, at, version),
        Condition::And { conds } | Condition::Or { conds } => {
            conds.iter().try_for_each(|cond| check(cond, at, version))
        }
        Condition::IsAutocommit if version < 3 => {
            Err(ProtocolError::NotInVersion2("is_autocommit"))
        }
        _ => Ok(()),
    }
}

fn is_writing(conn: &Connection) -> bool {
    conn.transaction_state(Some("main")) == Ok(TransactionState::Write)
}

/// The one statement of a text.
fn only<'a>(conn: &'a Connection, sql: &str) -> Result<Statement<'a>, SqlError> {
    let mut statements = rusqlite::Batch::new(conn, sql);
    let first = statements.next()?.ok_or(SqlError::NoStatement)?;
    // The second may be wrong only because the first was not run yet.
    match statements.next() {
        Ok(None) => Ok(first),
        _ => Err(SqlError::ManyStatements),
    }
}

/// The first word of a statement in capitals; asked before values are bound, which would be written out.
fn keyword(statement: &Statement<'_>) -> String {
    let text = statement.expanded_sql().unwrap_or_default();
    let mut rest = text.trim_start();
    loop {
        let comment = match rest.get(..2) {
            Some("--") => rest.split_once('\n'),
            Some("/*") => rest.split_once("*/"),
            _ => break,
        };
        rest = comment.map_or("", |(_, after)| after.trim_start());
    }
    let end = rest.find(|c: char| !c.is_ascii_alphabetic());
    rest[..end.unwrap_or(rest.len())].to_ascii_uppercase()
}

fn columns(prepared: &Statement<'_>) -> Vec<Column> {
    let columns = prepared.columns().map(|column| Column {
        name: column.name().to_owned(),
        decltype: column.decl_type().map(str::to_owned),
    });
    columns.collect()
}

/// Every parameter gets a value, and every positional value a parameter.
fn bind(prepared: &mut Statement<'_>, stmt: &Stmt) -> Result<(), SqlError> {
    if !stmt.args.is_empty() && !stmt.named_args.is_empty() {
        return Err(SqlError::BothArgs);
    }
    let count = prepared.parameter_count();
    let given = stmt.args.len() + stmt.named_args.len();
    if given > count {
        let message = format!("too many parameters, expected {count} found {given}");
        return Err(SqlError::Args(message));
    }
    for at in 1..=count {
        let name = prepared.parameter_name(at).map(str::to_owned);
        let named = stmt.named_args.iter().find(|arg| {
            let full = name.as_deref().unwrap_or_default();
            arg.name == full || full.get(1..) == Some(arg.name.as_str())
        });
        let value = named.map(|arg| &arg.value).or(stmt.args.get(at - 1));
        let missing = || {
            let name = name.clone().unwrap_or(at.to_string());
            SqlError::Args(format!("value for parameter {name} not found"))
        };
        match value.ok_or_else(missing)? {
            Value::Null => prepared.raw_bind_parameter(at, rusqlite::types::Null)?,
            Value::Integer { value } => prepared.raw_bind_parameter(at, value)?,
            Value::Float { value } => prepared.raw_bind_parameter(at, value)?,
            Value::Text { value } => prepared.raw_bind_parameter(at, value)?,
            Value::Blob { base64 } => prepared.raw_bind_parameter(at, base64)?,
        }
    }
    Ok(())
}

fn value(found: ValueRef<'_>) -> Result<Value, SqlError> {
    Ok(match found {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(value) => Value::Integer { value },
        ValueRef::Real(value) => Value::Float { value },
        ValueRef::Text(bytes) => {
            let invalid = |_| SqlError::sqlite(ffi::SQLITE_ERROR, "text is not UTF-8");
            let value = String::from_utf8(bytes.to_vec()).map_err(invalid)?;
            Value::Text { value }
        }
        ValueRef::Blob(bytes) => Value::Blob {
            base64: bytes.to_vec(),
        },
    })
}

/// About what a value takes as JSON, in bytes.
fn size(value: &Value) -> usize {
    match value {
        Value::Null => 15,
        Value::Integer { .. } | Value::Float { .. } => 40,
        Value::Text { value } => 28 + value.len(),
        Value::Blob { base64 } => 28 + base64.len().div_ceil(3) * 4,
    }
}
