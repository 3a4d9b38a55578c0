//! The check of encryption at rest: the key source can be used, and every local file has its manifest and
//! key, or none has.
//!
//! It must not open a database; keys are unlocked in memory and forgotten.

use nimbus_storage::encryption;

use super::report::Check;
use crate::settings::Settings;

const NAME: &str = "encryption";

/// `encryption`.
pub(crate) fn check(settings: &Settings) -> Check {
    let keyring = match settings.encryption.as_ref().map(|source| source.keyring()) {
        None => None,
        Some(Ok(keyring)) => Some(keyring),
        Some(Err(error)) => return Check::refused(NAME, &format!("{error:#}")),
    };
    let (data, control) = (&settings.data_dir, &settings.control_data_dir);
    let faults = match data.is_dir() {
        true => encryption::scan(data, control, keyring.as_deref()),
        false => Ok(Vec::new()),
    };
    let on = settings.encryption.as_ref();
    let state = on.map_or("off, files are in plain text".to_owned(), |source| {
        format!("on, {source}")
    });
    match faults {
        Err(error) => Check::io(NAME, &error),
        Ok(faults) => match faults.first() {
            None => Check::ok(NAME, state),
            Some(first) => Check::fail(
                NAME,
                format!("{state}; {} files cannot be served", faults.len()),
                first.to_string(),
            ),
        },
    }
}
