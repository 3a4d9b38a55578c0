//! Names and numbers of tables as a transaction sees them, for validators, and what documents must
//! match. A name that was asked for joins the read set.

use std::sync::{Mutex, PoisonError};

use nimbus_core::{DocumentId, Object, TableName, TableNames, TableNumber};

use crate::engine::catalog::{COUNTERS_KEY, TableDef};
use crate::engine::txn::Transaction;
use crate::engine::view::View;
use crate::error::StoreResult;
use crate::provider::Keyspace;

/// See [`Transaction::table_names`].
pub struct TransactionTables<'t> {
    view: Mutex<&'t mut View>,
}

impl TableNames for TransactionTables<'_> {
    fn number(&self, name: &str) -> Option<TableNumber> {
        let name: TableName = name.parse().ok()?;
        let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        view.rely_on(Keyspace::Meta, &TableDef::meta_key(&name));
        Some(view.catalog.table(&name)?.number)
    }

    fn name(&self, number: TableNumber) -> Option<String> {
        let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        let name = view.catalog.by_number(number).map(|t| t.name.clone());
        match &name {
            Some(name) => view.rely_on(Keyspace::Meta, &TableDef::meta_key(name)),
            // A table of this number may come, and then the counters move.
            None => view.rely_on(Keyspace::Meta, COUNTERS_KEY),
        }
        Some(name?.to_string())
    }
}

impl Transaction {
    /// Which table has which number, for [`nimbus_core::Validator::check`].
    pub fn table_names(&mut self) -> TransactionTables<'_> {
        TransactionTables {
            view: Mutex::new(&mut self.view),
        }
    }

    /// Whether a document may be written: it matches the deployed schema. One that contradicts the
    /// schema of a push in progress may be, and makes the push fail when it is committed.
    pub(crate) fn admit(
        &mut self,
        def: &TableDef,
        id: DocumentId,
        document: &Object,
    ) -> StoreResult<()> {
        if def.deployed.is_none() && def.push.is_none() {
            return Ok(());
        }
        let contradiction = {
            let tables = self.table_names();
            def.check_deployed(document, &tables)?;
            let push = def.push.as_ref();
            push.and_then(|push| push.document_type.check_document(document, &tables).err())
        };
        match contradiction {
            None => Ok(()),
            Some(failure) => super::push::note_violation(self, def, id, &failure.to_string()),
        }
    }
}
