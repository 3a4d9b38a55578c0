//! The control database: what is local to this server and belongs to no tenant.
//!
//! It holds the registry of embedded tenants, the time at which each of its tenants next wants to be
//! woken, and anchors of logs that are kept elsewhere, in `nimbus-control.db` (redb, 0600, encrypted if
//! there is a key). It must not know tenant data, nor what a wake or an anchor is for. Everything is mirrored in memory, so reading never touches the disk;
//! writing blocks for a sync, so async callers go through `spawn_blocking`.

mod file;
mod wakes;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{SystemTime, UNIX_EPOCH};

use nimbus_core::TenantId;
use redb::{Database, Durability, ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use crate::encryption::{FileKey, Keyring};
use crate::pages::error::error;
use crate::provider::wakes::WakeTable;
use crate::provider::{ProviderError, ProviderResult};

pub use file::CONTROL_FILE;
pub(crate) use file::NEW_FILE;
pub use wakes::LocalWakes;

/// `format` and `installation`.
const META: TableDefinition<'static, &str, &str> = TableDefinition::new("meta");
/// Tenant id to [`TenantEntry`] as JSON.
const TENANTS: TableDefinition<'static, &str, &str> = TableDefinition::new("tenants");
/// The same for the second life of a tenant that is being moved from one embedded provider to another.
const MOVING: TableDefinition<'static, &str, &str> = TableDefinition::new("moving_tenants");
/// Tenant id to wake time in milliseconds since 1970-01-01.
const WAKES: TableDefinition<'static, &str, u64> = TableDefinition::new("wakes");
/// The same, ordered by time.
const WAKES_BY_TIME: TableDefinition<'static, (u64, &str), ()> =
    TableDefinition::new("wakes_by_time");

/// Name of a log that is kept elsewhere to the text that says how far it reaches.
const ANCHORS: TableDefinition<'static, &str, &str> = TableDefinition::new("anchors");

/// Raises of a wake time between two durable commits: redb frees no pages before one.
const LAZY_COMMITS: u32 = 64;

/// Sixteen random bytes shown as 32 hexadecimal digits: the name of an installation, or of
/// one life of a tenant id (deleting and creating it again makes another).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RandomId([u8; 16]);

impl RandomId {
    pub(crate) fn generate() -> ProviderResult<RandomId> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)
            .map_err(|e| ProviderError::io("reading random bytes", e.to_string()))?;
        Ok(RandomId(bytes))
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for RandomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for RandomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RandomId({self})")
    }
}

impl TryFrom<String> for RandomId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<RandomId, &'static str> {
        data_encoding::HEXLOWER
            .decode(text.as_bytes())
            .ok()
            .and_then(|b| <[u8; 16]>::try_from(b).ok())
            .map(RandomId)
            .ok_or("expected 32 lower-case hexadecimal digits")
    }
}

impl From<RandomId> for String {
    fn from(id: RandomId) -> String {
        id.to_string()
    }
}

/// Where a tenant is between being created and being gone. Only `Ready` is visible to users.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TenantState {
    /// Being created; a start that finds this undoes it.
    Creating,
    /// In use.
    Ready,
    /// Being deleted; a start that finds this finishes it.
    Deleting,
}

/// What the registry knows of a tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TenantEntry {
    /// Where it is in its life.
    pub state: TenantState,
    /// Name of the provider that keeps its data, for example `sqlite`.
    pub provider: String,
    /// When it was created, milliseconds since 1970-01-01.
    pub created_at_ms: u64,
    /// Names this life of the id.
    pub incarnation: RandomId,
}

/// How [`ControlDb::register`] compares ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distinct {
    /// All ids are distinct.
    Exactly,
    /// Ids of one provider that differ only by ASCII case cannot exist side by side, because
    /// they would be one file.
    IgnoringCase,
}

/// The open control database.
pub struct ControlDb {
    path: PathBuf,
    /// Kept, so that the file can be opened again whatever the key provider does.
    key: Option<FileKey>,
    installation: RandomId,
    /// `None` after an I/O error, until the next writer has opened the file again.
    writer: Mutex<Writer>,
    mirror: RwLock<Mirror>,
}

struct Writer {
    db: Option<Database>,
    lazy: u32,
}

/// Everything in the file, in memory.
#[derive(Default)]
struct Mirror {
    tenants: BTreeMap<TenantId, TenantEntry>,
    /// Entries in the provider that a tenant is being moved to. Once its other entry is removed, the tenant
    /// has this one.
    moving: BTreeMap<TenantId, TenantEntry>,
    wakes: WakeTable,
    anchors: BTreeMap<String, String>,
}

impl Mirror {
    /// The entry that a provider has for a tenant.
    fn of(&self, tenant: &TenantId, provider: &str) -> Option<&TenantEntry> {
        let both = [self.tenants.get(tenant), self.moving.get(tenant)];
        both.into_iter().flatten().find(|e| e.provider == provider)
    }

    fn all(&self) -> impl Iterator<Item = (&TenantId, &TenantEntry)> {
        self.tenants.iter().chain(&self.moving)
    }

    /// Whether a file of the provider can have the tenant's name.
    fn check_name(
        &self,
        tenant: &TenantId,
        provider: &str,
        distinct: Distinct,
    ) -> ProviderResult<()> {
        let clash = |(t, e): &(&TenantId, &TenantEntry)| {
            e.provider == provider && t.as_str().eq_ignore_ascii_case(tenant.as_str())
        };
        match self.all().find(clash) {
            Some((existing, _)) if distinct == Distinct::IgnoringCase => {
                Err(ProviderError::NameClash {
                    tenant: tenant.clone(),
                    existing: existing.clone(),
                })
            }
            _ => Ok(()),
        }
    }

    fn sorted(&self) -> Vec<(TenantId, TenantEntry)> {
        let all = self.all().map(|(t, e)| (t.clone(), e.clone()));
        let mut entries: Vec<_> = all.collect();
        entries.sort_by(|(a, _), (b, _)| a.cmp(b));
        entries
    }

    /// Whether the entry that a provider has for a tenant is its second one.
    fn is_moving(&self, tenant: &TenantId, provider: &str) -> bool {
        let second = self.moving.get(tenant);
        second.is_some_and(|e| e.provider == provider)
    }
}

/// What [`look`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ControlLook {
    /// There is no control database yet.
    Absent,
    /// It is larger than what is read into memory to look at it.
    TooLarge {
        /// Its length in bytes.
        len: u64,
    },
    /// Every entry in every state, sorted by tenant.
    Entries(Vec<(TenantId, TenantEntry)>),
}

/// Reads the registry in `dir` with every check of [`ControlDb::open`], changing nothing. Only while
/// no server holds the directory, which could be writing. `keyring` is as for [`ControlDb::open_with`].
///
/// # Errors
/// `Corrupt`, `Locked`, `KeyUnavailable`, `Io`.
pub fn look(dir: &Path, keyring: Option<&Arc<Keyring>>) -> ProviderResult<ControlLook> {
    file::look(&dir.join(CONTROL_FILE), keyring)
}

/// Reads the anchor of a log from the database in `dir` as [`look`] reads the registry; `None` when
/// there is no database, or no anchor in it.
///
/// # Errors
/// `Corrupt`, `Locked`, `KeyUnavailable`, `Io`.
pub fn look_anchor(
    dir: &Path,
    log: &str,
    keyring: Option<&Arc<Keyring>>,
) -> ProviderResult<Option<String>> {
    file::look_anchor(&dir.join(CONTROL_FILE), log, keyring)
}

impl ControlDb {
    /// [`ControlDb::open_with`] without encryption.
    ///
    /// # Errors
    /// As there.
    pub fn open(dir: &Path) -> ProviderResult<ControlDb> {
        ControlDb::open_with(dir, None)
    }

    /// Opens `dir/nimbus-control.db`, creating it with mode 0600 if absent, encrypted if there is a
    /// keyring. The caller holds the lock of `dir`. Blocks.
    ///
    /// # Errors
    /// `Corrupt`, naming the file and leaving every byte of it as it was, if it is damaged, cut
    /// short, a symbolic link, of an unknown format version, or encrypted while there is no keyring;
    /// `Locked` or `KeyUnavailable` if there is a keyring and the file has no manifest, or one that
    /// cannot be unlocked; `Busy` if another process has the file open; `Full`; `Io`.
    pub fn open_with(dir: &Path, keyring: Option<&Arc<Keyring>>) -> ProviderResult<ControlDb> {
        let path = dir.join(CONTROL_FILE);
        let key = file::prepare(dir, &path, keyring)?;
        let (db, contents) = file::open(&path, key.as_ref())?;
        Ok(ControlDb {
            path,
            key,
            installation: contents.installation,
            writer: Mutex::new(Writer {
                db: Some(db),
                lazy: 0,
            }),
            mirror: RwLock::new(contents.mirror),
        })
    }

    /// The random name of this installation, made with the file.
    pub fn installation(&self) -> RandomId {
        self.installation
    }

    /// The database file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The registry's entry for a tenant, in whatever state. Of one that is being moved, that of the
    /// provider it comes from.
    pub fn get(&self, tenant: &TenantId) -> Option<TenantEntry> {
        self.read().tenants.get(tenant).cloned()
    }

    /// The entry that `provider` has for a tenant, in whatever state.
    pub fn get_of(&self, tenant: &TenantId, provider: &str) -> Option<TenantEntry> {
        self.read().of(tenant, provider).cloned()
    }

    /// Whether `provider` has the tenant ready to be used.
    pub fn contains(&self, tenant: &TenantId, provider: &str) -> bool {
        let mirror = self.read();
        let entry = mirror.of(tenant, provider);
        entry.is_some_and(|e| e.state == TenantState::Ready)
    }

    /// The ready tenants of `provider`, sorted.
    pub fn list(&self, provider: &str) -> Vec<TenantId> {
        let mirror = self.read();
        let ready = |e: &TenantEntry| e.state == TenantState::Ready && e.provider == provider;
        let ready = mirror.all().filter(|(_, e)| ready(e));
        let mut tenants: Vec<TenantId> = ready.map(|(t, _)| t.clone()).collect();
        tenants.sort();
        tenants
    }

    /// Every entry in every state, sorted by tenant; two for one that is being moved.
    pub fn entries(&self) -> Vec<(TenantId, TenantEntry)> {
        self.read().sorted()
    }

    /// Whether an id can be entered.
    ///
    /// # Errors
    /// `AlreadyExists` if there is an entry in any state and of any provider, `NameClash` as
    /// `distinct` asks.
    pub fn check_free(
        &self,
        tenant: &TenantId,
        provider: &str,
        distinct: Distinct,
    ) -> ProviderResult<()> {
        let mirror = self.read();
        if mirror.tenants.contains_key(tenant) {
            return Err(ProviderError::AlreadyExists {
                tenant: tenant.clone(),
            });
        }
        mirror.check_name(tenant, provider, distinct)
    }

    /// Enters a tenant in `state`, durably. Of two callers with one id, one gets the entry.
    ///
    /// # Errors
    /// `AlreadyExists` if there is an entry in any state and of any provider, `NameClash` as
    /// `distinct` asks, `Full`, `Io`.
    pub fn register(
        &self,
        tenant: &TenantId,
        provider: &str,
        distinct: Distinct,
        state: TenantState,
    ) -> ProviderResult<TenantEntry> {
        let mut writer = self.writer();
        self.check_free(tenant, provider, distinct)?;
        let entry = new_entry(provider, state)?;
        self.write_entry(&mut writer, Which::First, tenant, &entry)?;
        Ok(entry)
    }

    /// Enters a tenant that another provider has a second time, durably: it is being moved. Without another
    /// entry this is [`ControlDb::register`].
    ///
    /// # Errors
    /// `AlreadyExists` if `provider` has the tenant, or a third one has; otherwise as there.
    pub fn register_moving(
        &self,
        tenant: &TenantId,
        provider: &str,
        distinct: Distinct,
        state: TenantState,
    ) -> ProviderResult<TenantEntry> {
        let mut writer = self.writer();
        let which = {
            let mirror = self.read();
            let first = mirror.tenants.get(tenant);
            let taken = mirror.moving.contains_key(tenant);
            if taken || first.is_some_and(|e| e.provider == provider) {
                return Err(ProviderError::AlreadyExists {
                    tenant: tenant.clone(),
                });
            }
            mirror.check_name(tenant, provider, distinct)?;
            if first.is_some() {
                Which::Second
            } else {
                Which::First
            }
        };
        let entry = new_entry(provider, state)?;
        self.write_entry(&mut writer, which, tenant, &entry)?;
        Ok(entry)
    }

    /// Changes the state of the entry that `provider` has, durably.
    ///
    /// # Errors
    /// `NotFound` without an entry, `Full`, `Io`.
    pub fn put_state(
        &self,
        tenant: &TenantId,
        provider: &str,
        state: TenantState,
    ) -> ProviderResult<()> {
        let mut writer = self.writer();
        let (found, second) = {
            let mirror = self.read();
            let found = mirror.of(tenant, provider).cloned();
            (found, mirror.is_moving(tenant, provider))
        };
        let Some(mut entry) = found else {
            return Err(ProviderError::NotFound {
                tenant: tenant.clone(),
            });
        };
        entry.state = state;
        let which = if second { Which::Second } else { Which::First };
        self.write_entry(&mut writer, which, tenant, &entry)
    }

    /// Removes the entry that `provider` has, durably; true if there was one. A tenant that was being moved has its
    /// second entry from then on. Its wake stays: after its last entry it may have been moved to a database that is not
    /// registered here. Whoever deletes it forgets the wake after.
    ///
    /// # Errors
    /// `Full`, `Io`.
    pub fn remove(&self, tenant: &TenantId, provider: &str) -> ProviderResult<bool> {
        let mut writer = self.writer();
        let (found, second) = {
            let mirror = self.read();
            let found = mirror.of(tenant, provider).is_some();
            (found, mirror.moving.get(tenant).cloned())
        };
        if !found {
            return Ok(false);
        }
        let Some(second) = second else {
            self.commit(&mut writer, Sync::Registry, |txn| {
                txn.open_table(TENANTS)?.remove(tenant.as_str())?;
                Ok(())
            })?;
            self.mirror().tenants.remove(tenant);
            return Ok(true);
        };
        let left = (second.provider != provider).then_some(second);
        let json = left.as_ref().map(to_json).transpose()?;
        self.commit(&mut writer, Sync::Registry, |txn| {
            txn.open_table(MOVING)?.remove(tenant.as_str())?;
            if let Some(json) = &json {
                txn.open_table(TENANTS)?
                    .insert(tenant.as_str(), json.as_str())?;
            }
            Ok(())
        })?;
        let mut mirror = self.mirror();
        mirror.moving.remove(tenant);
        if let Some(left) = left {
            mirror.tenants.insert(tenant.clone(), left);
        }
        Ok(true)
    }

    /// The text that was last set for a log.
    pub fn anchor(&self, log: &str) -> Option<String> {
        self.read().anchors.get(log).cloned()
    }

    /// The names of logs that have an anchor here and begin with `prefix`, sorted.
    pub fn anchors(&self, prefix: &str) -> Vec<String> {
        let mirror = self.read();
        let names = mirror
            .anchors
            .keys()
            .filter(|name| name.starts_with(prefix));
        names.cloned().collect()
    }

    /// Keeps a text for a log, durably.
    ///
    /// # Errors
    /// `Full`, `Io`.
    pub fn set_anchor(&self, log: &str, text: &str) -> ProviderResult<()> {
        let mut writer = self.writer();
        self.commit(&mut writer, Sync::Wake, |txn| {
            txn.open_table(ANCHORS)?.insert(log, text)?;
            Ok(())
        })?;
        let mut mirror = self.mirror();
        mirror.anchors.insert(log.to_owned(), text.to_owned());
        Ok(())
    }

    /// Whether the file is open and takes writes. Opens it again after an I/O error, so it
    /// blocks.
    ///
    /// # Errors
    /// `Full`, `Io`, `Corrupt` if it could not be opened again.
    pub fn check(&self) -> ProviderResult<()> {
        let mut writer = self.writer();
        let db = self.reopened(&mut writer)?;
        let checked = (|| {
            let txn = db.begin_write()?;
            txn.open_table(META)?.get("format")?;
            txn.abort()?;
            Ok(())
        })();
        checked.map_err(|e| self.failed(&mut writer, e))
    }

    fn write_entry(
        &self,
        writer: &mut Writer,
        which: Which,
        tenant: &TenantId,
        entry: &TenantEntry,
    ) -> ProviderResult<()> {
        let json = to_json(entry)?;
        let table = match which {
            Which::First => TENANTS,
            Which::Second => MOVING,
        };
        self.commit(writer, Sync::Registry, |txn| {
            txn.open_table(table)?
                .insert(tenant.as_str(), json.as_str())?;
            Ok(())
        })?;
        let mut mirror = self.mirror();
        let entries = match which {
            Which::First => &mut mirror.tenants,
            Which::Second => &mut mirror.moving,
        };
        entries.insert(tenant.clone(), entry.clone());
        Ok(())
    }

    fn commit(
        &self,
        writer: &mut Writer,
        sync: Sync,
        write: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
    ) -> ProviderResult<()> {
        let db = self.reopened(writer)?;
        match run(db, sync, self.key.is_some(), write) {
            Ok(()) => {
                writer.lazy = if sync == Sync::Lazy {
                    writer.lazy + 1
                } else {
                    0
                };
                Ok(())
            }
            Err(e) => Err(self.failed(writer, e)),
        }
    }

    /// The open database, opened again and mirrored again if an error closed it.
    fn reopened<'w>(&self, writer: &'w mut Writer) -> ProviderResult<&'w Database> {
        let db = match writer.db.take() {
            Some(db) => db,
            None => {
                let (db, contents) = file::open(&self.path, self.key.as_ref())?;
                *self.mirror() = contents.mirror;
                tracing::info!(path = %self.path.display(), "control database opened again");
                db
            }
        };
        Ok(writer.db.insert(db))
    }

    /// After an error redb refuses all work until the file is opened again, and whether the
    /// last commit is on disk is not known: the next writer finds out.
    fn failed(&self, writer: &mut Writer, e: redb::Error) -> ProviderError {
        writer.db = None;
        writer.lazy = 0;
        error("writing", &self.path, e)
    }

    fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self) -> RwLockReadGuard<'_, Mirror> {
        self.mirror.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn mirror(&self) -> RwLockWriteGuard<'_, Mirror> {
        self.mirror.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for ControlDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlDb")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// Which of the entries that a tenant may have.
#[derive(Clone, Copy)]
enum Which {
    First,
    /// That of the provider that it is being moved to.
    Second,
}

fn new_entry(provider: &str, state: TenantState) -> ProviderResult<TenantEntry> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Ok(TenantEntry {
        state,
        provider: provider.to_owned(),
        created_at_ms: u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
        incarnation: RandomId::generate()?,
    })
}

fn to_json(entry: &TenantEntry) -> ProviderResult<String> {
    serde_json::to_string(entry).map_err(|e| ProviderError::io("encoding a registry entry", e))
}

/// What a commit waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sync {
    /// Two syncs: the commit slot is proven good before it counts, so damage found later is an
    /// error and never a silent step back to the commit before.
    Registry,
    /// One sync. On encrypted pages two as well: falling back from a torn commit means reading its
    /// pages, which there is an error.
    Wake,
    /// None.
    Lazy,
}

fn run(
    db: &Database,
    sync: Sync,
    encrypted: bool,
    write: impl FnOnce(&WriteTransaction) -> Result<(), redb::Error>,
) -> Result<(), redb::Error> {
    let mut txn = db.begin_write()?;
    match sync {
        Sync::Registry => txn.set_two_phase_commit(true),
        Sync::Wake => txn.set_two_phase_commit(encrypted),
        Sync::Lazy => txn.set_durability(Durability::None)?,
    }
    write(&txn)?;
    txn.commit()?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests;
