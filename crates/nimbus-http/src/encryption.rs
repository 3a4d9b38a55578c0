//! What operators are told of encryption at rest (seed 003, nimbus.md 2.10).
//!
//! It must not hold or reach a key: it names the provider and where that looks.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Serialize;

/// Whether and how the server's local files are encrypted.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct EncryptionReport {
    enabled: bool,
    /// Kinds of local files that are encrypted.
    encrypted_families: Vec<&'static str>,
    descriptor: Descriptor,
}

#[derive(Clone, Debug, Serialize, JsonSchema)]
struct Descriptor {
    status: &'static str,
    #[serde(flatten)]
    provider: Option<KeyDescriptor>,
}

/// A key provider, without a key.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[serde(tag = "provider", rename_all = "snake_case")]
#[non_exhaustive]
pub enum KeyDescriptor {
    /// One key file for all.
    MasterKeyFile {
        /// The file.
        path: PathBuf,
    },
    /// One key file for each protected file.
    KeyDirectory {
        /// Their directory.
        path: PathBuf,
    },
    /// AWS KMS.
    AwsKms {
        /// Id, ARN or alias of the key.
        key_id: String,
        /// The region, unless the environment tells it.
        #[serde(skip_serializing_if = "Option::is_none")]
        region: Option<String>,
        /// The endpoint, unless it is the region's own.
        #[serde(skip_serializing_if = "Option::is_none")]
        endpoint_url: Option<String>,
    },
}

impl EncryptionReport {
    /// Files are in plain text.
    pub fn disabled() -> EncryptionReport {
        EncryptionReport {
            enabled: false,
            encrypted_families: Vec::new(),
            descriptor: Descriptor {
                status: "disabled",
                provider: None,
            },
        }
    }

    /// Files of these families are encrypted with keys of this provider.
    pub fn enabled(families: Vec<&'static str>, provider: KeyDescriptor) -> EncryptionReport {
        EncryptionReport {
            enabled: true,
            encrypted_families: families,
            descriptor: Descriptor {
                status: "enabled",
                provider: Some(provider),
            },
        }
    }

    /// The kinds of local files that are encrypted.
    pub fn families(&self) -> &[&'static str] {
        &self.encrypted_families
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_shape_is_that_of_the_documents() {
        let path = "/secure/path/master.key".into();
        let families = vec!["embedded_sqlite", "control_plane_redb"];
        let report = EncryptionReport::enabled(families, KeyDescriptor::MasterKeyFile { path });
        assert_eq!(
            serde_json::to_value(report).ok(),
            Some(json!({
                "enabled": true,
                "encrypted_families": ["embedded_sqlite", "control_plane_redb"],
                "descriptor": {
                    "status": "enabled",
                    "provider": "master_key_file",
                    "path": "/secure/path/master.key"
                }
            }))
        );
        assert_eq!(
            serde_json::to_value(EncryptionReport::disabled()).ok(),
            Some(json!({
                "enabled": false,
                "encrypted_families": [],
                "descriptor": {"status": "disabled"}
            }))
        );
    }
}
