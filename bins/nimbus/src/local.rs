//! Tenants in files of this machine, or in a database elsewhere: the control database and the provider
//! beside it, as the settings have them. The caller holds the locks of the directories.
//!
//! It must not know commands; it refuses what this build or these files do not allow.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use nimbus_core::TenantId;
use nimbus_storage::control::{ControlDb, TenantEntry};
use nimbus_storage::encryption::{self, Keyring};
use nimbus_storage::provider::Durability;
use nimbus_storage::provider::combined::CombinedProvider;
use nimbus_storage::provider::redb::{self, RedbOptions, RedbProvider};
use nimbus_storage::provider::sqlite::{self, SqliteOptions, SqliteProvider};
use nimbus_storage::survey::TenantFiles;
use nimbus_storage::{Provider, ProviderError};

use crate::external::Served;
use crate::memory;
use crate::settings::ProviderName;

/// Faults that are named when a start refuses; the rest is counted.
const SHOWN: usize = 20;

/// Bytes that an open tenant of a database elsewhere takes in this process: a megabyte of recent commits and keys.
const EXTERNAL_MEMORY: u64 = 1024 * 1024;

/// What an open tenant may take.
pub(crate) struct PerTenant {
    /// Bytes of page caches at most.
    pub(crate) caches: u64,
    /// File descriptors at most.
    pub(crate) files: u64,
}

/// Where local tenants are and how they are kept.
pub(crate) struct Local<'a> {
    pub(crate) data: &'a Path,
    pub(crate) control: &'a Path,
    /// The provider of new tenants.
    pub(crate) home: Served,
    /// Providers whose tenants are served too.
    pub(crate) also: Vec<Served>,
    pub(crate) durability: Durability,
    /// Snapshots of one tenant that can be open at once.
    pub(crate) readers: usize,
    pub(crate) keyring: Option<Arc<Keyring>>,
}

/// Compares the files of a provider's tenants with the registry's entries, without opening any.
pub(crate) fn survey(
    provider: ProviderName,
    data: &Path,
    entries: &[(TenantId, TenantEntry)],
) -> Result<TenantFiles, ProviderError> {
    match provider {
        ProviderName::Redb => redb::survey(data, entries),
        _ => sqlite::survey(data, entries),
    }
}

impl Local<'_> {
    /// Finishes or undoes what an interrupted rotation or migration left.
    pub(crate) fn recover(&self) -> anyhow::Result<()> {
        let Some(keyring) = &self.keyring else {
            return Ok(());
        };
        let (done, failed) = encryption::recover(self.data, self.control, keyring)?;
        for recovered in done {
            tracing::warn!(
                ?recovered,
                "an interrupted change of encryption was put in order"
            );
        }
        for error in failed {
            // The tenant does not open; the others do.
            tracing::error!(%error, "an interrupted change of encryption could not be put in order");
        }
        Ok(())
    }

    /// Every local file is encrypted, or none is (seed 003).
    pub(crate) fn scan(&self) -> anyhow::Result<()> {
        let faults = encryption::scan(self.data, self.control, self.keyring.as_deref())?;
        if faults.is_empty() {
            return Ok(());
        }
        let shown = faults.iter().take(SHOWN);
        let lines: Vec<_> = shown.map(|fault| format!("\n  {fault}")).collect();
        let more = match faults.len() > SHOWN {
            true => "\n  ...",
            false => "",
        };
        bail!(
            "{} local files cannot be served:{}{more}",
            faults.len(),
            lines.concat()
        )
    }

    /// Opens the control database, making it if there is none.
    pub(crate) fn open_control(&self) -> anyhow::Result<Arc<ControlDb>> {
        let opened = ControlDb::open_with(self.control, self.keyring.as_ref())?;
        Ok(Arc::new(opened))
    }

    /// Opens the provider, or connects to its database; no tenant yet.
    pub(crate) async fn open_provider(
        &self,
        control: Arc<ControlDb>,
    ) -> anyhow::Result<Arc<dyn Provider>> {
        let home = self.open_one(&self.home, &control).await?;
        if self.also.is_empty() {
            return Ok(home);
        }
        let mut others = Vec::new();
        for served in &self.also {
            others.push(self.open_one(served, &control).await?);
        }
        let combined = CombinedProvider::new(home, others)?;
        combined.recover().await?;
        Ok(Arc::new(combined))
    }

    async fn open_one(
        &self,
        served: &Served,
        control: &Arc<ControlDb>,
    ) -> anyhow::Result<Arc<dyn Provider>> {
        if let Some(external) = &served.external {
            return external.connect(control, self.keyring.as_ref()).await;
        }
        let control = Arc::clone(control);
        let opened: Result<Arc<dyn Provider>, _> = match served.name {
            ProviderName::Redb => {
                RedbProvider::open(self.redb(), control).map(|p| Arc::new(p) as Arc<dyn Provider>)
            }
            _ => SqliteProvider::open(self.sqlite(), control)
                .map(|p| Arc::new(p) as Arc<dyn Provider>),
        };
        opened.with_context(|| format!("opening the tenants in {}", self.data.display()))
    }

    /// What one open tenant takes at most, with whichever provider it is.
    pub(crate) fn per_tenant(&self) -> PerTenant {
        let home = self.per_tenant_of(&self.home);
        let also = self.also.iter().map(|served| self.per_tenant_of(served));
        also.fold(home, |most, other| PerTenant {
            caches: most.caches.max(other.caches),
            files: most.files.max(other.files),
        })
    }

    fn per_tenant_of(&self, served: &Served) -> PerTenant {
        if served.external.is_some() {
            // Connections and caches are the provider's, not a tenant's.
            return PerTenant {
                caches: EXTERNAL_MEMORY,
                files: 1,
            };
        }
        match served.name {
            ProviderName::Redb => PerTenant {
                caches: self.redb().largest_caches(),
                files: 1,
            },
            // Three files of the writer, two of the checkpointer, and two for each reader.
            _ => PerTenant {
                caches: self.sqlite().largest_caches(),
                files: 5 + 2 * self.readers as u64,
            },
        }
    }

    fn sqlite(&self) -> SqliteOptions {
        let mut options = SqliteOptions::new(self.data);
        options.durability = self.durability;
        options.readers = self.readers;
        options.keyring.clone_from(&self.keyring);
        if let Some(memory) = memory::available() {
            options.heap_limit = memory / 4;
        }
        options
    }

    fn redb(&self) -> RedbOptions {
        let mut options = RedbOptions::new(self.data);
        options.durability = self.durability;
        options.keyring.clone_from(&self.keyring);
        options
    }
}
