//! The metadata namespace: which installation it belongs to, and which tenants exist.
//!
//! The only truth about tenants. Must not touch a tenant's namespace. Every change can be repeated, so one whose answer
//! was lost is sent again.

use nimbus_core::TenantId;

use super::hrana::{Outcome, Script, Value};
use super::http::{Fault, Http};
use super::primary::Row;
use super::{Timing, sql};
use crate::control::{RandomId, TenantState};
use crate::provider::external::{Ownership, ownership, state_of};
use crate::provider::{ProviderError, ProviderResult};

/// Version of the metadata namespace.
const FORMAT: i64 = 1;

/// The registry on one primary.
pub(super) struct Registry {
    namespace: String,
    prefix: String,
}

/// What the registry says of a tenant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) tenant: TenantId,
    pub(super) namespace: String,
    pub(super) state: TenantState,
    /// Another each time that the tenant is created.
    pub(super) life: RandomId,
    /// Milliseconds since it was entered, by the primary's clock.
    pub(super) age_ms: i64,
}

impl Registry {
    pub(super) fn new(namespace: &str, prefix: &str) -> Registry {
        Registry {
            namespace: namespace.to_owned(),
            prefix: prefix.to_owned(),
        }
    }

    pub(super) fn place(&self) -> String {
        format!("the metadata namespace {}", self.namespace)
    }

    fn error(&self, doing: &str, fault: Fault) -> ProviderError {
        fault.provider(format!("{doing} in namespace {}", self.namespace))
    }

    fn corrupt(&self, reason: impl Into<String>) -> ProviderError {
        ProviderError::Corrupt {
            what: self.place(),
            reason: reason.into(),
        }
    }

    /// Makes the metadata if it is missing, and checks whose it is.
    ///
    /// # Errors
    /// `OtherInstallation`, `Settings`, `Corrupt` for a format that is not known, `Busy`, `Io`.
    pub(super) async fn enter(
        &self,
        http: &Http,
        timing: &Timing,
        (ours, join): (RandomId, Option<RandomId>),
    ) -> ProviderResult<RandomId> {
        let place = self.place();
        let stored = self.stored(http, timing).await?;
        let id = match ownership(&place, stored, ours, join)? {
            Ownership::Ours(id) => id,
            Ownership::Claim(id) => {
                self.make(http, timing, id).await?;
                // Another server may have been first.
                let stored = self.stored(http, timing).await?;
                match ownership(&place, stored, ours, join)? {
                    Ownership::Ours(id) => id,
                    Ownership::Claim(_) => return Err(self.corrupt("its installation is missing")),
                }
            }
        };
        // Metadata of an older version has no such table.
        let mut script = Script::default();
        let begun = script.begin();
        for statement in sql::CREATE_WAKES {
            script.then(statement, Vec::new());
        }
        let commit = script.commit(begun);
        self.change_wakes(http, timing, (&script, commit)).await?;
        Ok(id)
    }

    /// Runs a transaction about wake times, which may be repeated.
    pub(super) async fn change_wakes(
        &self,
        http: &Http,
        timing: &Timing,
        (script, commit): (&Script, usize),
    ) -> ProviderResult<Vec<Outcome>> {
        let done = self.write(http, timing, script, commit).await;
        done.map_err(|e| self.error("keeping wake times", e))
    }

    /// The rows of a question about wake times.
    pub(super) async fn read_wakes(
        &self,
        http: &Http,
        timing: &Timing,
        script: &Script,
    ) -> ProviderResult<Vec<Vec<Value>>> {
        let answer = again!(timing, http.rows(&self.namespace, script));
        let answer = answer.map_err(|e| self.error("reading wake times", e))?;
        Ok(answer.into_iter().next().unwrap_or_default())
    }

    /// Looks whether the primary and its admin API answer and take our credentials; what was found, in words.
    ///
    /// # Errors
    /// `Settings`, `Corrupt`, `Busy`, `Io`.
    pub(super) async fn probe(&self, http: &Http, timing: &Timing) -> ProviderResult<String> {
        let stored = self.stored(http, timing).await?;
        let admin = http.look_at_admin(&self.namespace, stored.is_some()).await;
        admin.map_err(|e| self.error("asking the admin API", e))?;
        let version = http.version().await;
        let version = version.map_err(|e| self.error("asking for the version", e))?;
        let whose = match stored {
            Some(id) => format!("{} of installation {id}", self.namespace),
            None => format!("{} is not there yet", self.namespace),
        };
        Ok(format!(
            "Hrana {version} over HTTP, metadata namespace {whose}"
        ))
    }

    async fn stored(&self, http: &Http, timing: &Timing) -> ProviderResult<Option<RandomId>> {
        let script = Script::query(sql::INSTALLATION, Vec::new());
        let answer = match again!(timing, http.rows(&self.namespace, &script)) {
            Err(Fault::Gone) => Ok(Vec::new()),
            other => other,
        };
        let doing = "reading the installation";
        let answer = answer.map_err(|e| self.error(doing, e))?;
        let Some(row) = answer.into_iter().flatten().next() else {
            return Ok(None);
        };
        let mut row = Row::new(row);
        let read = |e| self.error(doing, e);
        let format = row.integer().map_err(read)?;
        let (id, theirs) = (row.text().map_err(read)?, row.text().map_err(read)?);
        if format != FORMAT {
            return Err(self.corrupt(format!(
                "its format is {format} and this server reads {FORMAT}; use the version of Nimbus that wrote it"
            )));
        }
        let id = RandomId::try_from(id).map_err(|e| self.corrupt(format!("its id: {e}")))?;
        if theirs != self.prefix {
            let reason = format!(
                "the tenants of namespace {} have the prefix {theirs}, and this server is told to use {}",
                self.namespace, self.prefix
            );
            return Err(ProviderError::Settings { reason });
        }
        Ok(Some(id))
    }

    /// A namespace of that name without an installation may be what another start left, and is used; one with tables
    /// of someone else's gets two more, which disturb nobody.
    async fn make(&self, http: &Http, timing: &Timing, id: RandomId) -> ProviderResult<()> {
        let made = again!(timing, http.create_namespace(&self.namespace));
        made.map_err(|e| self.error("making the metadata", e))?;
        let mut script = Script::default();
        let begun = script.begin();
        for table in sql::CREATE_REGISTRY {
            script.then(table, Vec::new());
        }
        let id = id.to_string();
        let row = vec![
            FORMAT.into(),
            id.as_str().into(),
            self.prefix.as_str().into(),
        ];
        script.then(sql::CLAIM, row);
        let commit = script.commit(begun);
        let done = self.write(http, timing, &script, commit).await;
        done.map(drop)
            .map_err(|e| self.error("making the metadata", e))
    }

    /// Runs a transaction that may be repeated.
    async fn write(
        &self,
        http: &Http,
        timing: &Timing,
        script: &Script,
        commit: usize,
    ) -> Result<Vec<Outcome>, Fault> {
        again!(timing, async {
            let outcomes = http.run(&self.namespace, script).await?;
            committed(outcomes, commit)
        })
    }

    /// Whether the primary answers.
    pub(super) async fn look(&self, http: &Http) -> ProviderResult<()> {
        let script = Script::query(sql::INSTALLATION, Vec::new());
        let looked = http.rows(&self.namespace, &script).await;
        looked
            .map(drop)
            .map_err(|e| self.error("looking at the metadata", e))
    }

    /// The entry of a tenant, in whatever state.
    pub(super) async fn get(
        &self,
        http: &Http,
        timing: &Timing,
        tenant: &TenantId,
    ) -> ProviderResult<Option<Entry>> {
        let script = Script::query(sql::entries(true), vec![tenant.as_str().into()]);
        Ok(self.read(http, timing, &script).await?.into_iter().next())
    }

    /// Every entry, sorted by tenant.
    pub(super) async fn entries(&self, http: &Http, timing: &Timing) -> ProviderResult<Vec<Entry>> {
        let script = Script::query(sql::entries(false), Vec::new());
        self.read(http, timing, &script).await
    }

    async fn read(
        &self,
        http: &Http,
        timing: &Timing,
        script: &Script,
    ) -> ProviderResult<Vec<Entry>> {
        let answer = again!(timing, http.rows(&self.namespace, script));
        let answer = answer.map_err(|e| self.error("reading the registry", e))?;
        let rows = answer.into_iter().next().unwrap_or_default();
        rows.into_iter().map(|row| self.entry(row)).collect()
    }

    fn entry(&self, row: Vec<Value>) -> ProviderResult<Entry> {
        let mut row = Row::new(row);
        let read = |e| self.error("reading the registry", e);
        let tenant = row.text().map_err(read)?;
        let tenant: TenantId = tenant
            .parse()
            .map_err(|e| self.corrupt(format!("it names tenant {tenant:?}: {e}")))?;
        let namespace = row.text().map_err(read)?;
        let state = row.text().map_err(read)?;
        let state = state_of(&state)
            .ok_or_else(|| self.corrupt(format!("tenant {tenant} is in state {state:?}")))?;
        let life = RandomId::try_from(row.text().map_err(read)?);
        let life = life.map_err(|e| self.corrupt(format!("the life of tenant {tenant}: {e}")))?;
        let age_ms = row.integer().map_err(read)?;
        Ok(Entry {
            tenant,
            namespace,
            state,
            life,
            age_ms,
        })
    }

    /// Enters a tenant as being created, unless it has an entry; the entry that it has then.
    pub(super) async fn add(
        &self,
        http: &Http,
        timing: &Timing,
        tenant: &TenantId,
        (namespace, life): (&str, RandomId),
    ) -> ProviderResult<Option<Entry>> {
        let mut script = Script::default();
        let begun = script.begin();
        let life = life.to_string();
        let entry = vec![
            tenant.as_str().into(),
            namespace.into(),
            life.as_str().into(),
        ];
        script.then(sql::enter(), entry);
        let read = script.then(sql::entries(true), vec![tenant.as_str().into()]);
        let commit = script.commit(begun);
        let done = self.write(http, timing, &script, commit).await;
        let outcomes = done.map_err(|e| self.error("entering a tenant", e))?;
        match outcomes.into_iter().nth(read) {
            Some(Outcome::Done(rows)) => rows
                .into_iter()
                .next()
                .map(|row| self.entry(row))
                .transpose(),
            _ => Ok(None),
        }
    }

    /// Changes the entry of a life of a tenant by one of [`sql::SET_READY`], [`sql::SET_DELETING`] and
    /// [`sql::FORGET`]; the entry that the tenant has then.
    pub(super) async fn change(
        &self,
        http: &Http,
        timing: &Timing,
        how: &str,
        (tenant, life): (&TenantId, RandomId),
    ) -> ProviderResult<Option<Entry>> {
        let mut script = Script::default();
        let begun = script.begin();
        let life = life.to_string();
        script.then(how, vec![tenant.as_str().into(), life.as_str().into()]);
        let read = script.then(sql::entries(true), vec![tenant.as_str().into()]);
        let commit = script.commit(begun);
        let done = self.write(http, timing, &script, commit).await;
        let outcomes = done.map_err(|e| self.error("writing the registry", e))?;
        match outcomes.into_iter().nth(read) {
            Some(Outcome::Done(rows)) => rows
                .into_iter()
                .next()
                .map(|row| self.entry(row))
                .transpose(),
            _ => Ok(None),
        }
    }
}

/// The outcomes of a transaction that was committed, else why it was not.
pub(super) fn committed(outcomes: Vec<Outcome>, commit: usize) -> Result<Vec<Outcome>, Fault> {
    if outcomes.get(commit).is_some_and(Outcome::is_done) {
        return Ok(outcomes);
    }
    let failed = outcomes.iter().find_map(|outcome| match outcome {
        Outcome::Failed(fault) => Some(Fault::of(fault)),
        _ => None,
    });
    Err(failed.unwrap_or_else(|| Fault::Lost("steps were skipped".to_owned())))
}
