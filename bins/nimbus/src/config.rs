//! The configuration file: JSON, strict at every level.
//!
//! It must not know flags or the environment.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::Deserialize;

/// The file: `{"persistence": {...}, "runtime": {...}, "public_origin": "https://...", "policy_dir": "..."}`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConfigFile {
    #[serde(default)]
    pub(crate) persistence: Persistence,
    #[serde(default)]
    pub(crate) runtime: Runtime,
    /// By which clients reach the server.
    pub(crate) public_origin: Option<String>,
    /// Of policy files.
    pub(crate) policy_dir: Option<String>,
}

/// Budgets of functions (nimbus.md 1.2).
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Runtime {
    heap_mb: Option<u64>,
    initial_heap_mb: Option<u64>,
    timeout_secs: Option<u64>,
    user_cpu_ms: Option<u64>,
    max_instances: Option<u64>,
    worker_threads: Option<u64>,
    max_active_per_tenant: Option<u64>,
    max_in_flight_per_tenant: Option<u64>,
    max_queued_per_tenant: Option<u64>,
    max_nested_calls: Option<u64>,
    query_cache_mb: Option<u64>,
    #[serde(default)]
    pub(crate) allow_net: Vec<String>,
}

impl Runtime {
    /// A number, by its key.
    pub(crate) fn given(&self, key: &str) -> Option<u64> {
        match key {
            "heap_mb" => self.heap_mb,
            "initial_heap_mb" => self.initial_heap_mb,
            "timeout_secs" => self.timeout_secs,
            "user_cpu_ms" => self.user_cpu_ms,
            "max_instances" => self.max_instances,
            "worker_threads" => self.worker_threads,
            "max_active_per_tenant" => self.max_active_per_tenant,
            "max_in_flight_per_tenant" => self.max_in_flight_per_tenant,
            "max_queued_per_tenant" => self.max_queued_per_tenant,
            "max_nested_calls" => self.max_nested_calls,
            "query_cache_mb" => self.query_cache_mb,
            _ => None,
        }
    }
}

/// Where data is kept (nimbus.md 1.2).
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Persistence {
    pub(crate) data_dir: Option<PathBuf>,
    pub(crate) control_data_dir: Option<PathBuf>,
    pub(crate) tenant_provider: Option<String>,
    #[serde(default)]
    pub(crate) also_tenant_provider: Vec<String>,
    pub(crate) durability: Option<String>,
    pub(crate) max_open_tenants: Option<u64>,
    encryption_key_provider: Option<String>,
    encryption_master_key_file: Option<String>,
    encryption_key_dir: Option<String>,
    encryption_aws_kms_key_id: Option<String>,
    encryption_aws_region: Option<String>,
    encryption_aws_endpoint_url: Option<String>,
    postgres_url: Option<String>,
    postgres_metadata_schema: Option<String>,
    postgres_tenant_schema_prefix: Option<String>,
    postgres_min_connections: Option<u64>,
    postgres_max_connections: Option<u64>,
    mysql_url: Option<String>,
    mysql_metadata_database: Option<String>,
    mysql_tenant_database_prefix: Option<String>,
    mysql_min_connections: Option<u64>,
    mysql_max_connections: Option<u64>,
    libsql_url: Option<String>,
    libsql_admin_url: Option<String>,
    libsql_replica_cache_dir: Option<String>,
    libsql_auth_token: Option<String>,
    libsql_admin_auth_header: Option<String>,
    libsql_metadata_namespace: Option<String>,
    libsql_tenant_namespace_prefix: Option<String>,
    join_installation: Option<String>,
    allow_plaintext_password: Option<bool>,
}

impl Persistence {
    /// A setting of encryption, by its name without `encryption_`.
    pub(crate) fn encryption(&self, name: &str) -> Option<&str> {
        let value = match name {
            "key_provider" => &self.encryption_key_provider,
            "master_key_file" => &self.encryption_master_key_file,
            "key_dir" => &self.encryption_key_dir,
            "aws_kms_key_id" => &self.encryption_aws_kms_key_id,
            "aws_region" => &self.encryption_aws_region,
            "aws_endpoint_url" => &self.encryption_aws_endpoint_url,
            _ => &None,
        };
        value.as_deref()
    }

    /// Names of the settings of external providers that the file gives.
    pub(crate) fn external(&self) -> Vec<&'static str> {
        let all = EXTERNAL.iter().copied();
        all.filter(|name| self.external_value(name).is_some())
            .collect()
    }

    /// A setting of an external provider as text.
    pub(crate) fn external_value(&self, name: &str) -> Option<String> {
        let text = match name {
            "postgres_url" => &self.postgres_url,
            "postgres_metadata_schema" => &self.postgres_metadata_schema,
            "postgres_tenant_schema_prefix" => &self.postgres_tenant_schema_prefix,
            "mysql_url" => &self.mysql_url,
            "mysql_metadata_database" => &self.mysql_metadata_database,
            "mysql_tenant_database_prefix" => &self.mysql_tenant_database_prefix,
            "libsql_url" => &self.libsql_url,
            "libsql_admin_url" => &self.libsql_admin_url,
            "libsql_replica_cache_dir" => &self.libsql_replica_cache_dir,
            "libsql_auth_token" => &self.libsql_auth_token,
            "libsql_admin_auth_header" => &self.libsql_admin_auth_header,
            "libsql_metadata_namespace" => &self.libsql_metadata_namespace,
            "libsql_tenant_namespace_prefix" => &self.libsql_tenant_namespace_prefix,
            "join_installation" => &self.join_installation,
            "allow_plaintext_password" => {
                return self.allow_plaintext_password.map(|yes| yes.to_string());
            }
            number => return self.external_number(number).map(|n| n.to_string()),
        };
        text.clone()
    }

    fn external_number(&self, name: &str) -> Option<u64> {
        match name {
            "postgres_min_connections" => self.postgres_min_connections,
            "postgres_max_connections" => self.postgres_max_connections,
            "mysql_min_connections" => self.mysql_min_connections,
            "mysql_max_connections" => self.mysql_max_connections,
            _ => None,
        }
    }
}

/// The settings of external providers.
const EXTERNAL: [&str; 19] = [
    "postgres_url",
    "postgres_metadata_schema",
    "postgres_tenant_schema_prefix",
    "postgres_min_connections",
    "postgres_max_connections",
    "mysql_url",
    "mysql_metadata_database",
    "mysql_tenant_database_prefix",
    "mysql_min_connections",
    "mysql_max_connections",
    "libsql_url",
    "libsql_admin_url",
    "libsql_replica_cache_dir",
    "libsql_auth_token",
    "libsql_admin_auth_header",
    "libsql_metadata_namespace",
    "libsql_tenant_namespace_prefix",
    "join_installation",
    "allow_plaintext_password",
];

/// Reads a configuration file.
pub(crate) fn load(path: &Path) -> anyhow::Result<ConfigFile> {
    let shown = path.display();
    let text = std::fs::read(path).with_context(|| format!("reading the configuration {shown}"))?;
    parse(&text).with_context(|| format!("in the configuration {shown}"))
}

fn parse(text: &[u8]) -> anyhow::Result<ConfigFile> {
    let json: serde_json::Value = serde_json::from_slice(text)?;
    // Serde would take an array for a struct, its elements for the fields in order.
    let objects = [Some(&json), json.get("persistence"), json.get("runtime")];
    if objects
        .into_iter()
        .flatten()
        .any(|value| !value.is_object())
    {
        bail!("the file, its `persistence` and its `runtime` must be JSON objects");
    }
    // From the text again: a parsed value no longer shows a key that was given twice.
    Ok(serde_json::from_slice(text)?)
}
