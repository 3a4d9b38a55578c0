//! The command line as clap sees it: names, help, shapes. No defaults are decided here; flags
//! are optional so that `settings` can tell a flag from the environment and the file.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use jiff::Timestamp;
use nimbus_core::{TableName, TenantId};

use crate::deploy::cli::{DeployArgs, DeploymentsCommand, EnvCommand, KeysCommand};
use crate::encryption::cli::EncryptionCommand;
use crate::functions::RuntimeArgs;
use crate::policy::PolicyCommand;
use crate::settings::ProviderName;

/// Many isolated tenants behind one server.
#[derive(Debug, Parser)]
#[command(
    name = "nimbus",
    version,
    propagate_version = true,
    arg_required_else_help = true
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve tenants over HTTP, in the foreground.
    Start(Box<StartArgs>),
    /// Check, show and export the audit log.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Show or replace the admin token.
    #[command(subcommand)]
    Auth(AuthCommand),
    /// Write tenants to one file, check such a file, make tenants of it.
    #[command(subcommand)]
    Backup(BackupCommand),
    /// Bundle an application with its own esbuild and make its functions, schema and crons those of a tenant.
    Deploy(Box<DeployArgs>),
    /// List what was deployed to a tenant, and go back to an earlier deployment.
    #[command(subcommand)]
    Deployments(DeploymentsCommand),
    /// Check everything that `start` relies on, changing nothing; exit code 1 if a check fails.
    Doctor(Box<DoctorArgs>),
    /// Encryption at rest: status, migration, rotation of keys.
    #[command(subcommand)]
    Encryption(EncryptionCommand),
    /// List, set and remove the environment variables that a tenant's functions read.
    #[command(subcommand)]
    Env(EnvCommand),
    /// Write a table's documents as JSON lines or CSV.
    Export(ExportArgs),
    /// Insert documents from JSON lines or CSV; goes on where an earlier run ended.
    Import(ImportArgs),
    /// Create, list and revoke the keys of a tenant: credentials that open nothing else.
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Review policy files offline (validate, explain, prove, diff, suggest), and change those of a running server (put, restore, show).
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Create, list, delete, adopt, move and prune tenants.
    #[command(subcommand)]
    Tenants(TenantsCommand),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Print the manual page, or write one page per command.
    Man {
        /// Directory for the pages.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON value.
    Json,
}

/// Settings of the server. Each can also be given as `NIMBUS_<FLAG>`; a flag beats the
/// environment, which beats the configuration file, which beats the default.
#[derive(Debug, Default, Args)]
pub(crate) struct StartArgs {
    /// JSON file with settings, `{"persistence": {...}}` [env: NIMBUS_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// Address or host name to listen on [env: NIMBUS_HOST] [default: 127.0.0.1]
    #[arg(long, value_name = "HOST", help_heading = "Network")]
    pub(crate) host: Option<String>,
    /// Port to listen on; 0 takes a free one [env: NIMBUS_PORT] [default: 8080]
    #[arg(long, value_name = "PORT", help_heading = "Network")]
    pub(crate) port: Option<String>,
    /// Allow a host outside loopback; the admin token must have been rotated within 30 days [env: NIMBUS_ALLOW_NETWORK]
    #[arg(long, help_heading = "Network")]
    pub(crate) allow_network: bool,
    /// Directory of policy files, `<tenant>.yaml` each: they are enforced, a change is taken in as it comes, and a tenant without a file is granted nothing [env: NIMBUS_POLICY_DIR]
    #[arg(long, value_name = "DIR")]
    pub(crate) policy_dir: Option<String>,

    /// Origin whose pages may use the server, beside loopback; repeatable [env: NIMBUS_CORS_ALLOW_ORIGINS, comma separated]
    #[arg(long, value_name = "ORIGIN", help_heading = "Network")]
    pub(crate) cors_allow_origin: Vec<String>,
    /// Scheme and host by which clients reach the server, such as `https://nimbus.example`; functions see it in CONVEX_CLOUD_URL and CONVEX_SITE_URL [env: NIMBUS_PUBLIC_ORIGIN] [default: the address it listens on]
    #[arg(long, value_name = "ORIGIN", help_heading = "Network")]
    pub(crate) public_origin: Option<String>,
    /// Host name under which the console is served, with everything below it [env: NIMBUS_TENANT_DOMAIN]
    #[arg(long, value_name = "DOMAIN", help_heading = "Network")]
    pub(crate) tenant_domain: Option<String>,
    /// Another host name for the console; repeatable [env: NIMBUS_ALLOWED_HOST, comma separated]
    #[arg(long, value_name = "HOST", help_heading = "Network")]
    pub(crate) allowed_host: Vec<String>,
    /// Address or network of a proxy whose X-Forwarded-For counts; repeatable [env: NIMBUS_TRUSTED_PROXY, comma separated]
    #[arg(long, value_name = "IP", help_heading = "Network")]
    pub(crate) trusted_proxy: Vec<String>,
    /// Connections open at once [env: NIMBUS_MAX_CONNECTIONS] [default: 10000]
    #[arg(long, value_name = "N", help_heading = "Network")]
    pub(crate) max_connections: Option<String>,
    /// Longest request body in bytes [env: NIMBUS_MAX_BODY_BYTES] [default: 8388608]
    #[arg(long, value_name = "BYTES", help_heading = "Network")]
    pub(crate) max_body_bytes: Option<String>,
    /// Longest time for a request, once its body is read [env: NIMBUS_REQUEST_TIMEOUT_SECS] [default: 30]
    #[arg(long, value_name = "SECONDS", help_heading = "Network")]
    pub(crate) request_timeout_secs: Option<String>,

    /// Directory of the tenants' data [env: NIMBUS_DATA_DIR] [default: ./data]
    #[arg(long, value_name = "DIR", help_heading = "Storage")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Directory of the control database [env: NIMBUS_CONTROL_DATA_DIR] [default: the data directory]
    #[arg(long, value_name = "DIR", help_heading = "Storage")]
    pub(crate) control_data_dir: Option<PathBuf>,
    /// sqlite, redb, postgres, mysql or libsql-replica [env: NIMBUS_TENANT_PROVIDER] [default: sqlite]
    #[arg(long, value_name = "PROVIDER", help_heading = "Storage")]
    pub(crate) tenant_provider: Option<String>,
    /// Another provider whose tenants are served too, those that `nimbus tenants move` brought there; new tenants go to --tenant-provider; repeatable [env: NIMBUS_ALSO_TENANT_PROVIDER, comma separated]
    #[arg(long, value_name = "PROVIDER", help_heading = "Storage")]
    pub(crate) also_tenant_provider: Vec<String>,
    /// full: acknowledged writes survive a power cut; relaxed: the newest may be lost [env: NIMBUS_DURABILITY] [default: full]
    #[arg(long, value_name = "LEVEL", help_heading = "Storage")]
    pub(crate) durability: Option<String>,
    /// Tenants kept open at once [env: NIMBUS_MAX_OPEN_TENANTS] [default: what file descriptors and half of the memory allow, at most 1024]
    #[arg(long, value_name = "N", help_heading = "Storage")]
    pub(crate) max_open_tenants: Option<String>,

    #[command(flatten)]
    pub(crate) encryption: EncryptionArgs,

    #[command(flatten)]
    pub(crate) external: ExternalArgs,

    #[command(flatten)]
    pub(crate) runtime: RuntimeArgs,

    /// Bytes of audit log to keep; beyond, the oldest segments are deleted; 0 keeps all [env: NIMBUS_AUDIT_KEEP_BYTES] [default: 4294967296]
    #[arg(long, value_name = "BYTES", help_heading = "Log")]
    pub(crate) audit_keep_bytes: Option<String>,
    /// text or json, to standard error; RUST_LOG filters [env: NIMBUS_LOG_FORMAT] [default: text]
    #[arg(long, value_name = "FORMAT", help_heading = "Log")]
    pub(crate) log_format: Option<String>,
}

/// What to check: the server that `nimbus start` with the same settings would be.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// How to print what was found.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) format: Format,
    #[command(flatten)]
    pub(crate) start: StartArgs,
}

/// Encryption at rest. Settings of a key provider that is not selected are refused.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Encryption at rest")]
pub(crate) struct EncryptionArgs {
    /// Encrypt local files with keys of: master-key-file, key-dir or aws-kms [env: NIMBUS_ENCRYPTION_KEY_PROVIDER] [default: no encryption]
    #[arg(long, value_name = "PROVIDER")]
    pub(crate) encryption_key_provider: Option<String>,
    /// File of exactly 32 raw bytes, mode 0400 [env: NIMBUS_ENCRYPTION_MASTER_KEY_FILE]
    #[arg(long, value_name = "FILE")]
    pub(crate) encryption_master_key_file: Option<String>,
    /// Directory with one such file for each protected file [env: NIMBUS_ENCRYPTION_KEY_DIR]
    #[arg(long, value_name = "DIR")]
    pub(crate) encryption_key_dir: Option<String>,
    /// Id, ARN or alias of the key in AWS KMS [env: NIMBUS_ENCRYPTION_AWS_KMS_KEY_ID]
    #[arg(long, value_name = "KEY")]
    pub(crate) encryption_aws_kms_key_id: Option<String>,
    /// Region of AWS KMS [env: NIMBUS_ENCRYPTION_AWS_REGION] [default: as the AWS tools find it]
    #[arg(long, value_name = "REGION")]
    pub(crate) encryption_aws_region: Option<String>,
    /// Another endpoint of AWS KMS, such as one inside a VPC [env: NIMBUS_ENCRYPTION_AWS_ENDPOINT_URL]
    #[arg(long, value_name = "URL")]
    pub(crate) encryption_aws_endpoint_url: Option<String>,
}

impl EncryptionArgs {
    /// A flag's value, by the name of its setting without `encryption_`.
    pub(crate) fn given(&self, name: &str) -> Option<&str> {
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
}

/// Settings of providers outside the process. Refused unless their provider is selected.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "External providers")]
pub(crate) struct ExternalArgs {
    /// Connection URL [env: NIMBUS_POSTGRES_URL]
    #[arg(long, value_name = "URL")]
    pub(crate) postgres_url: Option<String>,
    /// Schema of the registry [env: NIMBUS_POSTGRES_METADATA_SCHEMA]
    #[arg(long, value_name = "NAME")]
    pub(crate) postgres_metadata_schema: Option<String>,
    /// Prefix of tenant schemas [env: NIMBUS_POSTGRES_TENANT_SCHEMA_PREFIX]
    #[arg(long, value_name = "PREFIX")]
    pub(crate) postgres_tenant_schema_prefix: Option<String>,
    /// Connections kept [env: NIMBUS_POSTGRES_MIN_CONNECTIONS]
    #[arg(long, value_name = "N")]
    pub(crate) postgres_min_connections: Option<String>,
    /// Connections at most [env: NIMBUS_POSTGRES_MAX_CONNECTIONS]
    #[arg(long, value_name = "N")]
    pub(crate) postgres_max_connections: Option<String>,
    /// Connection URL [env: NIMBUS_MYSQL_URL]
    #[arg(long, value_name = "URL")]
    pub(crate) mysql_url: Option<String>,
    /// Database of the registry [env: NIMBUS_MYSQL_METADATA_DATABASE]
    #[arg(long, value_name = "NAME")]
    pub(crate) mysql_metadata_database: Option<String>,
    /// Prefix of tenant databases [env: NIMBUS_MYSQL_TENANT_DATABASE_PREFIX]
    #[arg(long, value_name = "PREFIX")]
    pub(crate) mysql_tenant_database_prefix: Option<String>,
    /// Connections kept [env: NIMBUS_MYSQL_MIN_CONNECTIONS]
    #[arg(long, value_name = "N")]
    pub(crate) mysql_min_connections: Option<String>,
    /// Connections at most [env: NIMBUS_MYSQL_MAX_CONNECTIONS]
    #[arg(long, value_name = "N")]
    pub(crate) mysql_max_connections: Option<String>,
    /// URL of the primary [env: NIMBUS_LIBSQL_URL]
    #[arg(long, value_name = "URL")]
    pub(crate) libsql_url: Option<String>,
    /// URL of the primary's admin API [env: NIMBUS_LIBSQL_ADMIN_URL]
    #[arg(long, value_name = "URL")]
    pub(crate) libsql_admin_url: Option<String>,
    /// Directory of the local replicas [env: NIMBUS_LIBSQL_REPLICA_CACHE_DIR]
    #[arg(long, value_name = "DIR")]
    pub(crate) libsql_replica_cache_dir: Option<String>,
    /// Token of the primary; better given in the environment [env: NIMBUS_LIBSQL_AUTH_TOKEN]
    #[arg(long, value_name = "TOKEN")]
    pub(crate) libsql_auth_token: Option<String>,
    /// Authorization header of the admin API; better given in the environment [env: NIMBUS_LIBSQL_ADMIN_AUTH_HEADER]
    #[arg(long, value_name = "VALUE")]
    pub(crate) libsql_admin_auth_header: Option<String>,
    /// Namespace of the registry [env: NIMBUS_LIBSQL_METADATA_NAMESPACE]
    #[arg(long, value_name = "NAME")]
    pub(crate) libsql_metadata_namespace: Option<String>,
    /// Prefix of tenant namespaces [env: NIMBUS_LIBSQL_TENANT_NAMESPACE_PREFIX]
    #[arg(long, value_name = "PREFIX")]
    pub(crate) libsql_tenant_namespace_prefix: Option<String>,
    /// Share the tenants of this installation, whose id its refusal names, on purpose [env: NIMBUS_JOIN_INSTALLATION]
    #[arg(long, value_name = "ID")]
    pub(crate) join_installation: Option<String>,
    /// true: send a password to another machine without checked encryption [env: NIMBUS_ALLOW_PLAINTEXT_PASSWORD] [default: false]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub(crate) allow_plaintext_password: Option<String>,
}

impl ExternalArgs {
    /// Every flag with its value, by the name that the configuration file uses.
    pub(crate) fn given(&self) -> [(&'static str, Option<&String>); 19] {
        [
            ("postgres_url", self.postgres_url.as_ref()),
            (
                "postgres_metadata_schema",
                self.postgres_metadata_schema.as_ref(),
            ),
            (
                "postgres_tenant_schema_prefix",
                self.postgres_tenant_schema_prefix.as_ref(),
            ),
            (
                "postgres_min_connections",
                self.postgres_min_connections.as_ref(),
            ),
            (
                "postgres_max_connections",
                self.postgres_max_connections.as_ref(),
            ),
            ("mysql_url", self.mysql_url.as_ref()),
            (
                "mysql_metadata_database",
                self.mysql_metadata_database.as_ref(),
            ),
            (
                "mysql_tenant_database_prefix",
                self.mysql_tenant_database_prefix.as_ref(),
            ),
            ("mysql_min_connections", self.mysql_min_connections.as_ref()),
            ("mysql_max_connections", self.mysql_max_connections.as_ref()),
            ("libsql_url", self.libsql_url.as_ref()),
            ("libsql_admin_url", self.libsql_admin_url.as_ref()),
            (
                "libsql_replica_cache_dir",
                self.libsql_replica_cache_dir.as_ref(),
            ),
            ("libsql_auth_token", self.libsql_auth_token.as_ref()),
            (
                "libsql_admin_auth_header",
                self.libsql_admin_auth_header.as_ref(),
            ),
            (
                "libsql_metadata_namespace",
                self.libsql_metadata_namespace.as_ref(),
            ),
            (
                "libsql_tenant_namespace_prefix",
                self.libsql_tenant_namespace_prefix.as_ref(),
            ),
            ("join_installation", self.join_installation.as_ref()),
            (
                "allow_plaintext_password",
                self.allow_plaintext_password.as_ref(),
            ),
        ]
    }
}

/// Commands about the audit log of this user's server.
#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Check that no line was changed, moved, inserted, taken out or cut off; exit code 1 if one was.
    Verify {
        #[command(flatten)]
        place: AuditPlace,
        /// How to print what was found.
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
    /// Print the newest entries. Nothing is checked.
    Tail {
        /// How many.
        #[arg(short = 'n', long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
        lines: u32,
        /// Go on printing what is added, until interrupted.
        #[arg(short = 'F', long)]
        follow: bool,
        /// How to print entries; json prints them as they are stored, one a line.
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
    /// Write entries as they are stored, one JSON object a line, and check the whole log on the way.
    Export {
        /// Entries at this time or later (RFC 3339).
        #[arg(long, value_name = "TIME")]
        since: Option<Timestamp>,
        /// Entries before this time (RFC 3339).
        #[arg(long, value_name = "TIME")]
        until: Option<Timestamp>,
        /// Entries about this tenant.
        #[arg(long)]
        tenant: Option<TenantId>,
        /// Entries about refused requests.
        #[arg(long)]
        denied: bool,
        /// File to write, 0600; standard output if not given.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        #[command(flatten)]
        place: AuditPlace,
    },
}

/// Where the anchor of the audit log is: in the control database.
#[derive(Debug, Args)]
pub(crate) struct AuditPlace {
    /// Data directory [env: NIMBUS_DATA_DIR] [default: ./data]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Directory of the control database [env: NIMBUS_CONTROL_DATA_DIR] [default: the data directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) control_data_dir: Option<PathBuf>,
}

/// Commands about the admin token.
#[derive(Debug, Subcommand)]
pub(crate) enum AuthCommand {
    /// Print the admin token.
    Token,
    /// Replace the admin token; a running server keeps the old one until it is restarted.
    RotateAdmin {
        /// How to print what was done.
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
}

/// Commands about backups.
#[derive(Debug, Subcommand)]
pub(crate) enum BackupCommand {
    /// Write tenants, each as of one commit, to one file; sealed if the store is encrypted.
    Create(BackupCreateArgs),
    /// Make the tenants of a backup in a data directory that no server holds; all of them, or none.
    Restore(BackupRestoreArgs),
    /// Read a whole backup and check all of it; exit code 1 if it is not to be used.
    Verify {
        /// The backup.
        #[arg(long = "in", value_name = "FILE")]
        input: PathBuf,
        /// How to print what was found.
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
}

/// What to back up, and where to.
#[derive(Debug, Args)]
pub(crate) struct BackupCreateArgs {
    /// File to write, 0600; it must not exist.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// A tenant to back up; repeatable. All of them by default.
    #[arg(long)]
    pub(crate) tenant: Vec<TenantId>,
    /// Leave the backup in plain text although the store is encrypted.
    #[arg(long)]
    pub(crate) plain: bool,
    #[command(flatten)]
    pub(crate) place: Place,
}

/// What to restore, and where to.
#[derive(Debug, Args)]
pub(crate) struct BackupRestoreArgs {
    /// The backup.
    #[arg(long = "in", value_name = "FILE")]
    pub(crate) input: PathBuf,
    /// A tenant to restore; repeatable. All of the backup by default.
    #[arg(long)]
    pub(crate) tenant: Vec<TenantId>,
    /// Data directory; made if there is none [env: NIMBUS_DATA_DIR] [default: ./data]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Directory of the control database [env: NIMBUS_CONTROL_DATA_DIR] [default: the data directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) control_data_dir: Option<PathBuf>,
    /// Provider that is to keep the tenants, whichever kept them before [env: NIMBUS_TENANT_PROVIDER] [default: sqlite]
    #[arg(long, value_name = "PROVIDER")]
    pub(crate) provider: Option<String>,
    /// How to print what was done.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

/// Where the tenants are: on a running server, or in a data directory that no server holds.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// Data directory; if a server holds it, that server is asked [env: NIMBUS_DATA_DIR] [default: ./data]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Directory of the control database [env: NIMBUS_CONTROL_DATA_DIR] [default: the data directory]
    #[arg(long, value_name = "DIR")]
    pub(crate) control_data_dir: Option<PathBuf>,
    /// Server to ask instead, such as http://127.0.0.1:8080 [env: NIMBUS_URL]
    #[arg(long, value_name = "URL", conflicts_with = "data_dir")]
    pub(crate) url: Option<String>,
    /// How to print results.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

/// File formats of import and export.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FileFormat {
    /// One JSON object a line.
    Jsonl,
    /// Comma-separated values with a header line.
    Csv,
}

/// What to export, and where to.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The tenant.
    #[arg(long)]
    pub(crate) tenant: TenantId,
    /// The table.
    #[arg(long)]
    pub(crate) table: TableName,
    /// File to write, 0600; standard output if not given.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Form of the file.
    #[arg(long, value_enum, default_value = "jsonl")]
    pub(crate) file_format: FileFormat,
    /// Columns of a CSV file, comma separated; by default `_id`, `_creationTime` and the fields that the schema declares.
    #[arg(long, value_name = "FIELDS", value_delimiter = ',')]
    pub(crate) columns: Vec<String>,
    #[command(flatten)]
    pub(crate) place: Place,
}

/// What to import, and where to.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// File to read; `-` is standard input.
    pub(crate) file: PathBuf,
    /// The tenant; it must exist.
    #[arg(long)]
    pub(crate) tenant: TenantId,
    /// The table; it appears with its first document.
    #[arg(long)]
    pub(crate) table: TableName,
    /// Form of the file; by default what its name ends with.
    #[arg(long, value_enum)]
    pub(crate) file_format: Option<FileFormat>,
    /// Name under which progress is kept; by default made from the file's path, size and time.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    #[command(flatten)]
    pub(crate) place: Place,
}

/// Commands about tenants.
#[derive(Debug, Subcommand)]
pub(crate) enum TenantsCommand {
    /// Create an empty tenant.
    Create {
        /// Its id: ASCII letters, digits, `_` and `-`, at most 128, not starting with `_`.
        tenant: TenantId,
        #[command(flatten)]
        place: Place,
    },
    /// List all tenants.
    List {
        #[command(flatten)]
        place: Place,
    },
    /// Delete a tenant with all its data. There is no way back.
    Delete {
        /// Its id.
        tenant: TenantId,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Take in tenant data that lies in the data directory without being registered.
    Adopt {
        /// Its id.
        tenant: TenantId,
        #[command(flatten)]
        place: Place,
    },
    /// Move a tenant to another storage provider while it is used. A running server must serve both: see
    /// `--also-tenant-provider` of `nimbus start`.
    Move {
        /// Its id.
        #[arg(long)]
        tenant: TenantId,
        /// The provider that is to keep it: sqlite, redb, postgres, mysql or libsql-replica.
        #[arg(long, value_name = "PROVIDER", required_unless_present = "cancel")]
        to: Option<ProviderName>,
        /// End the move that is under way, unless the tenant is with the other provider already.
        #[arg(long, conflicts_with = "to")]
        cancel: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Drop a tenant's retained commit log now, and with it the last copies of deleted data.
    Prune {
        /// Its id.
        tenant: TenantId,
        #[command(flatten)]
        place: Place,
    },
}
