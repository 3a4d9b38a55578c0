//! Environment variables of the functions (convex.md 4.7, 5.9): one row each, so that a change
//! invalidates those who read the variable and nobody else.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{put_row, rows_under};
use crate::engine::tenant::Tenant;
use crate::engine::txn::Transaction;
use crate::engine::view::View;
use crate::error::{StoreError, StoreResult};
use crate::provider::Keyspace;

const PREFIX: &[u8] = b"env/";
/// Longest name, in characters.
const MAX_NAME: usize = 256;
/// Longest value, in bytes.
const MAX_VALUE: usize = 8 * 1024;
const MAX_VARIABLES: usize = 512;
/// Names and values together, in bytes.
const MAX_TOTAL: usize = 512 * 1024;
/// Names that belong to the server.
const RESERVED: &str = "CONVEX_";

#[derive(Serialize, Deserialize)]
struct Row {
    value: String,
}

fn key(name: &str) -> Vec<u8> {
    [PREFIX, name.as_bytes()].concat()
}

/// Whether a variable may have the name.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX_NAME
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn check(name: &str, value: Option<&str>) -> StoreResult<()> {
    let shown: String = name.chars().take(80).collect();
    if !is_name(name) {
        return Err(StoreError::invalid(format!(
            "environment variable name `{shown}` is not 1 to {MAX_NAME} ASCII letters, digits and `_`, not a digit first"
        )));
    }
    if name.starts_with(RESERVED) {
        return Err(StoreError::invalid(format!(
            "environment variable `{shown}` is reserved: names that start with `{RESERVED}` belong to the server"
        )));
    }
    match value {
        Some(value) if value.len() > MAX_VALUE => Err(StoreError::invalid(format!(
            "the value of environment variable `{shown}` has {} bytes, at most {MAX_VALUE} are allowed",
            value.len()
        ))),
        _ => Ok(()),
    }
}

fn decode(stored: &[u8]) -> StoreResult<String> {
    // The error of serde_json names a place and not the value.
    let row: Row = serde_json::from_slice(stored)
        .map_err(|e| StoreError::corrupt(format!("environment variable: {e}")))?;
    Ok(row.value)
}

/// All variables, by name.
pub(super) async fn read(view: &mut View) -> StoreResult<BTreeMap<String, String>> {
    let mut found = BTreeMap::new();
    for (key, value) in rows_under(view, PREFIX).await? {
        let name = String::from_utf8(key[PREFIX.len()..].to_vec())
            .map_err(|_| StoreError::corrupt("the name of an environment variable"))?;
        found.insert(name, decode(&value)?);
    }
    Ok(found)
}

fn check_totals(all: &BTreeMap<String, String>) -> StoreResult<()> {
    let total: usize = all
        .iter()
        .map(|(name, value)| name.len() + value.len())
        .sum();
    let over = |cap, limit: usize, observed: usize| {
        Err(StoreError::CapExceeded {
            cap,
            limit: limit as u64,
            observed: observed as u64,
            advice: "remove variables that are not used",
        })
    };
    if all.len() > MAX_VARIABLES {
        return over("environment_variables", MAX_VARIABLES, all.len());
    }
    if total > MAX_TOTAL {
        return over("environment_bytes", MAX_TOTAL, total);
    }
    Ok(())
}

impl Tenant {
    /// All environment variables, as of the newest durable commit.
    ///
    /// # Errors
    /// The provider's failure.
    pub async fn environment(&self) -> StoreResult<BTreeMap<String, String>> {
        read(&mut self.inner.durable_view(false).await?).await
    }

    /// Sets variables, or removes those whose value is `None`, in one commit.
    ///
    /// # Errors
    /// `InvalidInput` for a name that is no identifier, is too long (256) or starts with
    /// `CONVEX_`, or for a value over 8 KiB; `CapExceeded` beyond 512 variables or 512 KiB. Then
    /// nothing changed.
    pub async fn update_environment(
        &self,
        changes: Vec<(String, Option<String>)>,
    ) -> StoreResult<()> {
        for (name, value) in &changes {
            check(name, value.as_deref())?;
        }
        self.transact(move |tx| {
            let changes = changes.clone();
            Box::pin(async move { update(tx, changes).await })
        })
        .await
    }
}

async fn update(tx: &mut Transaction, changes: Vec<(String, Option<String>)>) -> StoreResult<()> {
    let mut all = read(&mut tx.view).await?;
    for (name, value) in changes {
        let row = value.as_ref().map(|value| Row {
            value: value.clone(),
        });
        let after = row
            .map(|row| serde_json::to_vec(&row).map(Bytes::from))
            .transpose()
            .map_err(|e| StoreError::corrupt(e.to_string()))?;
        put_row(tx, Keyspace::Meta, &key(&name), after).await?;
        match value {
            Some(value) => all.insert(name, value),
            None => all.remove(&name),
        };
    }
    check_totals(&all)
}

impl Transaction {
    /// The value of an environment variable, which joins the read set.
    ///
    /// # Errors
    /// The provider's failure.
    pub async fn env(&mut self, name: &str) -> StoreResult<Option<String>> {
        if !is_name(name) {
            return Ok(None);
        }
        let stored = self.view.get(Keyspace::Meta, &key(name)).await?;
        stored.map(|stored| decode(&stored)).transpose()
    }
}
