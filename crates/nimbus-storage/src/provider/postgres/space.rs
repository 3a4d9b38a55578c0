//! One tenant's schema as it was opened: its names, its SQL, and what tells it from a later schema of that name.
//!
//! Must not send anything.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use nimbus_core::TenantId;
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, Row};

use super::sql::{self, Touched};
use crate::provider::external::backend::Namespace;
use crate::provider::external::{FORMAT_KEY, decode_head};
use crate::provider::{HEAD_KEY, Head, Keyspace, ProviderResult};

/// SQL that holds no value.
pub(super) type Text = Arc<str>;

/// The names and the SQL of one tenant.
pub(super) struct Space {
    tenant: TenantId,
    /// The schema.
    pub(super) name: String,
    /// The format row: another one means that the tenant was deleted and created again.
    pub(super) format: Vec<u8>,
    begin_read: Text,
    state: Text,
    gets: [Text; Keyspace::ALL.len()],
    /// By keyspace, whether backward, whether it has an end.
    scans: [[[Text; 2]; 2]; Keyspace::ALL.len()],
    commits: Mutex<HashMap<Touched, Text>>,
}

impl Space {
    pub(super) fn new(tenant: TenantId, name: String, format: Vec<u8>) -> Space {
        let scan = |keyspace, backward, bounded| -> Text {
            sql::scan(&name, keyspace, backward, bounded).into()
        };
        let both = |k, backward| [scan(k, backward, false), scan(k, backward, true)];
        Space {
            begin_read: sql::begin_read(&name).into(),
            state: sql::state(&name).into(),
            gets: Keyspace::ALL.map(|k| sql::get_many(&name, k).into()),
            scans: Keyspace::ALL.map(|k| [both(k, false), both(k, true)]),
            commits: Mutex::default(),
            tenant,
            name,
            format,
        }
    }

    pub(super) fn begin_read(&self) -> AssertSqlSafe<Text> {
        AssertSqlSafe(self.begin_read.clone())
    }

    pub(super) fn state(&self) -> AssertSqlSafe<Text> {
        AssertSqlSafe(self.state.clone())
    }

    pub(super) fn get_many(&self, keyspace: Keyspace) -> AssertSqlSafe<Text> {
        AssertSqlSafe(self.gets[keyspace as usize].clone())
    }

    pub(super) fn scan(
        &self,
        keyspace: Keyspace,
        backward: bool,
        bounded: bool,
    ) -> AssertSqlSafe<Text> {
        let text = &self.scans[keyspace as usize][usize::from(backward)][usize::from(bounded)];
        AssertSqlSafe(text.clone())
    }

    pub(super) fn commit(&self, touched: Touched) -> Text {
        let mut commits = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        let text = commits
            .entry(touched)
            .or_insert_with(|| sql::commit(&self.name, touched).into());
        text.clone()
    }

    /// The head in the rows of [`sql::state`].
    ///
    /// # Errors
    /// `NotFound` when the schema is that of another life of the tenant, `Corrupt`.
    pub(super) fn head_in(&self, rows: &[PgRow]) -> ProviderResult<Head> {
        let (head, format) = state_rows(&self.name, rows)?;
        if format.as_deref() != Some(&self.format) {
            return Err(self.not_found());
        }
        decode_head(&self.name, head.as_deref())
    }
}

impl Namespace for Space {
    fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    fn name(&self) -> &str {
        &self.name
    }
}

/// The head row and the format row.
pub(super) type State = (Option<Vec<u8>>, Option<Vec<u8>>);

/// The state in the rows of [`sql::state`].
pub(super) fn state_rows(namespace: &str, rows: &[PgRow]) -> ProviderResult<State> {
    let read = |e| super::error::provider(format!("reading the head of {namespace}"), e);
    let (mut head, mut format) = (None, None);
    for row in rows {
        let key: Vec<u8> = row.try_get(0).map_err(read)?;
        let value: Vec<u8> = row.try_get(1).map_err(read)?;
        match key.as_slice() {
            HEAD_KEY => head = Some(value),
            FORMAT_KEY => format = Some(value),
            _ => {}
        }
    }
    Ok((head, format))
}
