//! One tenant's database as it was opened: its name, and what tells it from a later database of that name.
//!
//! Must not send anything.

use nimbus_core::TenantId;
use sqlx::mysql::MySqlRow;

use super::error::{self, column};
use crate::provider::external::backend::Namespace;
use crate::provider::external::{FORMAT_KEY, decode_head};
use crate::provider::{HEAD_KEY, Head, ProviderResult};

/// A tenant and its database.
pub(super) struct Space {
    pub(super) tenant: TenantId,
    /// The database.
    pub(super) name: String,
    /// The format row: another one means that the tenant was deleted and created again.
    pub(super) format: Vec<u8>,
}

impl Space {
    /// The head in the rows of [`super::sql::state`].
    ///
    /// # Errors
    /// `NotFound` when the database is that of another life of the tenant, `Corrupt`.
    pub(super) fn head_in(&self, rows: &[MySqlRow]) -> ProviderResult<Head> {
        let State { head, format } = state_rows(&self.name, rows)?;
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

/// The rows of the provider in a database.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) head: Option<Vec<u8>>,
    pub(super) format: Option<Vec<u8>>,
}

/// The head row and the format row; of two that have the same key the later counts.
pub(super) fn state_rows(namespace: &str, rows: &[MySqlRow]) -> ProviderResult<State> {
    let read = |e| error::provider(format!("reading the head of {namespace}"), e);
    let mut state = State::default();
    for row in rows {
        let key: &[u8] = column(row, 0).map_err(read)?;
        let value: &[u8] = column(row, 1).map_err(read)?;
        match key {
            HEAD_KEY => state.head = Some(value.to_vec()),
            FORMAT_KEY => state.format = Some(value.to_vec()),
            _ => {}
        }
    }
    Ok(state)
}
