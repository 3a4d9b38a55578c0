//! The two rows that every namespace on a shared database has from its creation: its format, which names the
//! tenant, and its head.
//!
//! Must not know how rows are kept. The tenant is named because it cannot be read from the namespace's name.

use nimbus_core::TenantId;
use serde::{Deserialize, Serialize};

use crate::control::RandomId;
use crate::provider::{Head, ProviderError, ProviderResult};

/// Key of the format row in `meta`. Written when the namespace is made only.
pub(crate) const FORMAT_KEY: &[u8] = b"format";
/// Layout version of a namespace.
const FORMAT_VERSION: u32 = 1;
const FORMAT_NAME: &str = "nimbus-tenant";

#[derive(Serialize, Deserialize)]
struct Format {
    format: String,
    version: u32,
    tenant: String,
    life: RandomId,
}

/// The format row of a tenant's new namespace. `life` is another each time that the tenant is created, so that
/// a server notices when another one deleted the tenant and created it again.
pub(crate) fn format_row(tenant: &TenantId, life: RandomId) -> String {
    format!(
        "{{\"format\":\"{FORMAT_NAME}\",\"version\":{FORMAT_VERSION},\"tenant\":\"{tenant}\",\
         \"life\":\"{life}\"}}"
    )
}

/// The tenant that the format row names, or why it is not one.
fn read(row: Option<&[u8]>) -> Result<(TenantId, RandomId), String> {
    let row = row.ok_or("its format row is missing")?;
    let format: Format =
        serde_json::from_slice(row).map_err(|e| format!("its format row is unreadable: {e}"))?;
    if format.format != FORMAT_NAME || format.version != FORMAT_VERSION {
        return Err(format!(
            "its format is {} version {} and this server reads {FORMAT_NAME} version \
             {FORMAT_VERSION}; use the version of Nimbus that wrote it",
            format.format, format.version
        ));
    }
    let tenant = format.tenant.parse();
    let tenant = tenant.map_err(|e| format!("its format row names no tenant: {e}"))?;
    Ok((tenant, format.life))
}

/// The tenant whose namespace has this format row, and its life; `None` if it is not a namespace of Nimbus.
pub(crate) fn tenant_of(row: Option<&[u8]>) -> Option<(TenantId, RandomId)> {
    read(row).ok()
}

/// Checks the format row of a tenant's namespace.
///
/// # Errors
/// `Corrupt` when it is missing, unreadable, of another version or another tenant's.
pub(crate) fn check_format(
    namespace: &str,
    tenant: &TenantId,
    row: Option<&[u8]>,
) -> ProviderResult<()> {
    let (found, _) = read(row).map_err(|reason| corrupt(namespace, reason))?;
    if found != *tenant {
        let reason = format!("it is tenant {found}'s, expected {tenant}'s");
        return Err(corrupt(namespace, reason));
    }
    Ok(())
}

/// The head in its row.
///
/// # Errors
/// `Corrupt` when it is missing or has another length.
pub(crate) fn decode_head(namespace: &str, row: Option<&[u8]>) -> ProviderResult<Head> {
    let row = row.ok_or_else(|| corrupt(namespace, "its head row is missing"))?;
    Head::decode(row).ok_or_else(|| {
        let (found, expected) = (row.len(), Head::ENCODED_LEN);
        let reason = format!("its head row has {found} bytes, expected {expected}");
        corrupt(namespace, reason)
    })
}

fn corrupt(namespace: &str, reason: impl Into<String>) -> ProviderError {
    ProviderError::Corrupt {
        what: namespace.to_owned(),
        reason: reason.into(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn the_format_row_names_its_tenant() {
        let (acme, other) = ("acme".parse().unwrap(), "other".parse().unwrap());
        let life = RandomId::try_from("0f".repeat(16)).unwrap();
        let row = format_row(&acme, life);
        assert_eq!(
            row,
            format!(r#"{{"format":"nimbus-tenant","version":1,"tenant":"acme","life":"{life}"}}"#)
        );
        assert_eq!(tenant_of(Some(row.as_bytes())), Some((acme.clone(), life)));
        check_format("n", &acme, Some(row.as_bytes())).unwrap();
        let refused = |row: Option<&str>| {
            let error = check_format("n", &other, row.map(str::as_bytes)).unwrap_err();
            error.to_string()
        };
        assert_eq!(
            refused(Some(&row)),
            "storage of n is damaged: it is tenant acme's, expected other's"
        );
        assert!(refused(None).contains("missing"));
        assert!(refused(Some("{")).contains("unreadable"));
        let newer = row.replace(":1,", ":2,");
        assert!(refused(Some(&newer)).contains("version 2"));
        assert!(refused(Some(&row.replace("acme", "a/b"))).contains("no tenant"));
    }

    #[test]
    fn a_head_of_another_length_is_damage() {
        let head = Head {
            sequence: 7,
            timestamp: 9,
            hash: [3; 32],
        };
        assert_eq!(decode_head("n", Some(&head.encode())).unwrap(), head);
        let error = decode_head("n", Some(b"short")).unwrap_err().to_string();
        assert!(error.contains("5 bytes, expected 48"), "{error}");
        assert!(decode_head("n", None).is_err());
    }
}
