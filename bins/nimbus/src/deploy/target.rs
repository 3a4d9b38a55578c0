//! Which server is asked, and with which credential.
//!
//! It must not know what is asked. A credential never appears in an error, nor in the arguments or the
//! environment of a child.

use anyhow::bail;
use nimbus_auth::{Environment, TokenFile};
use nimbus_storage::provider::lock::{DataDirLock, LockError};
use zeroize::Zeroizing;

use super::cli::Target;
use crate::remote::{Credential, Remote, is_local};
use crate::settings::{self, Lookup, UsageError};

/// The server that `target` names, and the credential for it.
pub(crate) fn connect(target: &mut Target) -> anyhow::Result<Remote> {
    let env = &settings::process_environment;
    let base = base(target, env)?;
    let credential = credential(target, &base, env)?;
    Remote::with(&base, credential)
}

fn base(target: &Target, env: Lookup<'_>) -> anyhow::Result<String> {
    if let Some(url) = &target.url {
        return Ok(url.clone());
    }
    let named = || env("NIMBUS_DEPLOY_URL").or_else(|| env("NIMBUS_URL"));
    if let Some(url) = target.data_dir.is_none().then(named).flatten() {
        return Ok(url);
    }
    let file = settings::persistence(None, env)?;
    let (data, _) = settings::directories(target.data_dir.clone(), None, &file, env);
    let held = match data.is_dir() {
        true => DataDirLock::acquire(&data),
        false => bail!(
            "{} is not a directory; name the server with --url, or its data directory with --data-dir",
            data.display()
        ),
    };
    match held {
        Ok(_) => bail!(
            "no server holds {}; start one, or name a server with --url",
            data.display()
        ),
        Err(LockError::Held { holder, path }) => match holder.and_then(|holder| holder.address) {
            Some(address) => Ok(format!("http://{address}")),
            None => bail!(
                "{} is held by a process that does not listen",
                path.display()
            ),
        },
        Err(other) => Err(other.into()),
    }
}

fn credential(target: &mut Target, base: &str, env: Lookup<'_>) -> anyhow::Result<Credential> {
    let flags = (target.token.take(), target.admin_token.take());
    let given = match flags {
        (None, None) => (env("NIMBUS_DEPLOY_TOKEN"), env("NIMBUS_ADMIN_TOKEN")),
        flags => flags,
    };
    match given {
        (Some(key), _) => {
            let key = Zeroizing::new(key);
            check_key(&key, target)?;
            Ok(Credential::Given(key))
        }
        (None, Some(token)) => Ok(Credential::Given(Zeroizing::new(token))),
        (None, None) if is_local(base) => {
            let file = TokenFile::load(&Environment::system().token_path()?);
            file.map(Credential::File).map_err(|error| {
                let text = "a credential is needed: NIMBUS_DEPLOY_TOKEN, NIMBUS_ADMIN_TOKEN or the token file";
                anyhow::Error::from(error).context(text)
            })
        }
        (None, None) => bail!(
            "a server on another machine is asked with a credential of its own: set NIMBUS_DEPLOY_TOKEN to a key of the \
             tenant, or NIMBUS_ADMIN_TOKEN; the token file of this user is not sent there"
        ),
    }
}

/// A key of another tenant is answered as if the tenant were missing, so that is better said here.
fn check_key(key: &str, target: &Target) -> anyhow::Result<()> {
    let Some((tenant, secret)) = key.split_once('|') else {
        return Err(UsageError(
            "a key has the form TENANT|SECRET; an admin token is given as NIMBUS_ADMIN_TOKEN"
                .into(),
        )
        .into());
    };
    // Convex tools write the type of a deployment before its name (convex.md 4.8).
    let tenant = tenant.split_once(':').map_or(tenant, |(_, name)| name);
    // The name of a tenant is no secret, but what stands there may be anything.
    if tenant != target.tenant.as_str() {
        return Err(UsageError(format!(
            "the key is not one of the tenant {}",
            target.tenant
        ))
        .into());
    }
    let fits_a_header = |c: char| c.is_ascii_graphic();
    if secret.is_empty() || !secret.chars().all(fits_a_header) {
        return Err(UsageError(
            "the key has no secret, or characters in it that no key has".into(),
        )
        .into());
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::cli::Format;

    fn target(token: Option<&str>, admin: Option<&str>) -> Target {
        Target {
            tenant: "demo".parse().unwrap(),
            url: None,
            data_dir: None,
            token: token.map(str::to_owned),
            admin_token: admin.map(str::to_owned),
            format: Format::Text,
        }
    }

    fn found(
        token: Option<&str>,
        admin: Option<&str>,
        base: &str,
        env: &[(&str, &str)],
    ) -> Result<String, String> {
        let lookup = |name: &str| {
            let found = env.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        match credential(&mut target(token, admin), base, &lookup) {
            Ok(Credential::Given(text)) => Ok(text.to_string()),
            Ok(Credential::File(_)) => Ok("file".into()),
            Err(error) => Err(format!("{error:#}")),
        }
    }

    #[test]
    fn flags_come_before_the_environment_and_keys_before_the_admin_token() {
        let env = [
            ("NIMBUS_DEPLOY_TOKEN", "demo|env"),
            ("NIMBUS_ADMIN_TOKEN", "admin-env"),
        ];
        let far = "http://10.0.0.1:8080";
        assert_eq!(
            found(Some("demo|flag"), None, far, &env).unwrap(),
            "demo|flag"
        );
        assert_eq!(
            found(Some("prod:demo|flag"), None, far, &env).unwrap(),
            "prod:demo|flag"
        );
        assert_eq!(
            found(None, Some("admin-flag"), far, &env).unwrap(),
            "admin-flag"
        );
        assert_eq!(found(None, None, far, &env).unwrap(), "demo|env");
        assert_eq!(found(None, None, far, &env[1..]).unwrap(), "admin-env");
        let error = found(None, None, far, &[]).unwrap_err();
        assert!(error.contains("is not sent there"), "{error}");
    }

    #[test]
    fn a_key_that_cannot_fit_is_refused_without_being_shown() {
        for bad in [
            "hunter2",
            "other|hunter2",
            "demo|",
            "demo|hunter2\n",
            "demo|h\u{fc}nter2",
        ] {
            let error = found(Some(bad), None, "http://127.0.0.1", &[]).unwrap_err();
            assert!(!error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn only_loopback_gets_the_token_file() {
        for local in [
            "http://127.0.0.1:8080",
            "http://127.1.2.3",
            "http://[::1]:80/x",
            "http://LOCALHOST",
        ] {
            assert!(is_local(local), "{local}");
        }
        for far in [
            "http://localhost.evil.example",
            "http://127.0.0.1.evil.example:80",
            "http://10.0.0.1",
            "http://[::2]",
            "",
            "http://user@127.0.0.1",
            "http://localhost:80@evil.example",
            "http://127.0.0.1:80@evil.example:80/x",
            "http://localhost@evil.example",
            "http://[::1]@evil.example",
            "http://localhost\\@evil.example",
            "https://localhost",
            "localhost:8080",
        ] {
            assert!(!is_local(far), "{far}");
        }
    }
}
