//! Where tenants are: on a running server, or in a data directory that nobody holds.
//!
//! Commands ask one `Backend`. Offline, too, the store is reached through its door: whoever can
//! read the token file is the operator.

use std::path::Path;

use anyhow::bail;
use nimbus_auth::{Authenticated, Environment, TokenFile};
use nimbus_http::Store;
use nimbus_storage::provider::Durability;
use nimbus_storage::provider::lock::{DataDirLock, LockError};
use nimbus_storage::{Engine, EngineOptions};

use crate::cli::Place;
use crate::config::Persistence;
use crate::encryption;
use crate::external;
use crate::local::Local;
use crate::remote::Remote;
use crate::settings::{self, ProviderName, Providers};

/// Snapshots of a tenant that a command has open at once.
const OFFLINE_READERS: usize = 4;

/// What answers a command.
pub(crate) enum Backend {
    /// A running server.
    Server(Remote),
    /// The data directory itself.
    Offline(Box<Offline>),
}

/// A store of our own, with the directory's lock held.
pub(crate) struct Offline {
    pub(crate) store: Store,
    pub(crate) caller: Authenticated,
    engine: Engine,
    pub(crate) runtime: tokio::runtime::Runtime,
    _locks: (DataDirLock, Option<DataDirLock>),
}

impl Backend {
    /// Finds the server or opens the directory.
    pub(crate) fn open(place: Place) -> anyhow::Result<Backend> {
        Backend::open_with(place, None)
    }

    /// The same; offline, tenants of the provider `also` are there too.
    pub(crate) fn open_with(place: Place, also: Option<ProviderName>) -> anyhow::Result<Backend> {
        let env = &settings::process_environment;
        let url = place
            .url
            .or_else(|| env("NIMBUS_URL").filter(|_| place.data_dir.is_none()));
        if let Some(url) = url {
            return Ok(Backend::Server(Remote::new(&url)?));
        }
        let file = settings::persistence(None, env)?;
        let (data, control) =
            settings::directories(place.data_dir, place.control_data_dir, &file, env);
        if !data.is_dir() {
            bail!(
                "{} is not a directory; name the data directory with --data-dir or the server with --url",
                data.display()
            );
        }
        match DataDirLock::acquire(&data) {
            Ok(lock) => {
                let mut providers = settings::tenant_providers(&file, env)?;
                also.into_iter().for_each(|name| providers.add(name));
                let local = local((&data, &control), &file, &providers)?;
                Ok(Backend::Offline(Box::new(Offline::open(&local, lock)?)))
            }
            Err(LockError::Held { holder, path }) => match holder.and_then(|h| h.address) {
                Some(address) => Ok(Backend::Server(Remote::new(&format!("http://{address}"))?)),
                None => bail!(
                    "{} is held by a process that does not listen; try again, or stop it",
                    path.display()
                ),
            },
            Err(other) => Err(other.into()),
        }
    }

    /// Finishes what was begun and lets go of the directory.
    pub(crate) fn close(self) -> anyhow::Result<()> {
        match self {
            Backend::Server(_) => Ok(()),
            Backend::Offline(offline) => Ok(offline.runtime.block_on(offline.engine.close())?),
        }
    }
}

/// Tenants as a command opens them.
fn local<'a>(
    (data, control): (&'a Path, &'a Path),
    file: &Persistence,
    providers: &Providers,
) -> anyhow::Result<Local<'a>> {
    let env = &settings::process_environment;
    let (home, also) = external::resolve(None, env, file, providers, Durability::Full)?;
    Ok(Local {
        data,
        control,
        home,
        also,
        durability: Durability::Full,
        readers: OFFLINE_READERS,
        keyring: encryption::keyring(file)?,
    })
}

impl Offline {
    /// A store in a directory that is made if there is none.
    pub(crate) fn create(
        data: &Path,
        control: &Path,
        provider: ProviderName,
    ) -> anyhow::Result<Offline> {
        let env = &settings::process_environment;
        let file = settings::persistence(None, env)?;
        let providers = Providers::only(provider);
        let local = local((data, control), &file, &providers)?;
        Offline::open(&local, DataDirLock::acquire(data)?)
    }

    fn open(local: &Local<'_>, lock: DataDirLock) -> anyhow::Result<Offline> {
        let apart = !settings::same_directory(local.control, local.data);
        let control_lock = apart
            .then(|| DataDirLock::acquire(local.control))
            .transpose()?;
        let token = TokenFile::load_or_create(&Environment::system().token_path()?)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        local.recover()?;
        let provider = runtime.block_on(local.open_provider(local.open_control()?))?;
        let entered = runtime.enter();
        let engine = Engine::new(provider, EngineOptions::default());
        drop(entered);
        Ok(Offline {
            store: Store::new(engine.clone()).sealed_by(local.keyring.clone()),
            caller: Authenticated::local_operator(&token),
            engine,
            runtime,
            _locks: (lock, control_lock),
        })
    }
}
