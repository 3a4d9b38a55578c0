//! Why a deployment was refused. `Display` is the outside text.

use nimbus_core::{DocumentId, TableName};
use thiserror::Error;

use super::DeploymentId;
use crate::error::StoreError;

/// Failure of a deployment; the one before is in force and nothing is left of the new one.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DeployError {
    /// Another push was in progress, or took this one's place.
    #[error("another push to this tenant is in progress; push again when it is done")]
    ConcurrentPush,
    /// The plan breaks a rule or a limit; the text says which.
    #[error("{message}")]
    Invalid {
        /// Outside text.
        message: String,
    },
    /// A table that the schema declares has a native schema.
    #[error(
        "table \"{table}\" has a native schema (the schema routes of the tenant), and a table obeys one schema only; delete that one, or leave the table out of the deployed schema"
    )]
    NativeSchema {
        /// The table.
        table: TableName,
    },
    /// The environment is not the one that the modules were analysed with.
    #[error("the environment variables changed while the push was made; push again")]
    RaceDetected,
    /// The exported schema breaks a rule; the text says which.
    #[error("the schema is not valid: {message}")]
    Schema {
        /// Outside text.
        message: String,
    },
    /// A document contradicts the new schema: one that was there, or one that was written while
    /// the push was made.
    #[error(
        "Schema validation failed. Document with ID \"{id}\" in table \"{table}\" does not match the schema: {failure}"
    )]
    SchemaValidation {
        /// The table.
        table: TableName,
        /// The document.
        id: DocumentId,
        /// The text of convex.md 1.5.
        failure: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No deployment with this id is kept.
    #[error(
        "no deployment {id} is kept; the newest {} are",
        super::KEPT_DEPLOYMENTS
    )]
    UnknownDeployment {
        /// The id asked for.
        id: DeploymentId,
    },
}

impl DeployError {
    pub(super) fn invalid(message: impl Into<String>) -> DeployError {
        DeployError::Invalid {
            message: message.into(),
        }
    }

    pub(super) fn schema(message: impl Into<String>) -> DeployError {
        DeployError::Schema {
            message: message.into(),
        }
    }
}
