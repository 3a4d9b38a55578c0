//! The command line of `nimbus encryption`. Settings of server and keys are not here: these commands
//! take them from the environment or from the file that `NIMBUS_CONFIG` names (seed 003).

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use nimbus_core::TenantId;

use crate::cli::Format;

/// Commands about encryption at rest. The settings come from the environment or from the file that
/// NIMBUS_CONFIG names; those of `nimbus start` are the same.
#[derive(Debug, Subcommand)]
pub(crate) enum EncryptionCommand {
    /// Show whether encryption is on, with which keys, and which files are encrypted.
    Status {
        /// How to print it.
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
    /// Convert a database in plain text into an encrypted copy.
    Migrate(MigrateArgs),
    /// Convert an encrypted database into a copy in plain text.
    Export(ExportArgs),
    /// Wrap the keys of files under another key; the files themselves are not touched.
    RotateKek(RotateKekArgs),
    /// Give a file a new key and encrypt it again.
    RotateDek(RotateDekArgs),
}

/// Kinds of local database files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum FileFamily {
    /// A tenant in SQLite.
    Sqlite,
    /// A tenant in redb, or nimbus-control.db.
    Redb,
    /// The local cache of a tenant on a libSQL server.
    LibsqlCache,
}

/// Which file in plain text, and what becomes of it.
#[derive(Debug, Args)]
pub(crate) struct MigrateArgs {
    /// The database in plain text.
    #[arg(long, value_name = "FILE")]
    pub(crate) source: PathBuf,
    /// Its kind.
    #[arg(long, value_enum)]
    pub(crate) provider: FileFamily,
    /// The encrypted copy; by default the source's name with .encrypted.
    #[arg(long, value_name = "FILE", conflicts_with = "replace")]
    pub(crate) target: Option<PathBuf>,
    /// The tenant that owns the file; not needed for nimbus-control.db alone.
    #[arg(long, value_name = "TENANT")]
    pub(crate) tenant_id: Option<TenantId>,
    /// Do not compare the copy with the source.
    #[arg(long)]
    pub(crate) skip_validation: bool,
    /// Delete the source, and what SQLite keeps beside it, at the end.
    #[arg(long, conflicts_with = "replace")]
    pub(crate) retire_source: bool,
    /// Put the encrypted database into the place of the source.
    #[arg(long)]
    pub(crate) replace: bool,
    /// How to print what was done.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

/// Which encrypted file, and where the one in plain text goes.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The encrypted database.
    #[arg(long, value_name = "FILE")]
    pub(crate) source: PathBuf,
    /// The copy in plain text; must not exist.
    #[arg(long, value_name = "FILE")]
    pub(crate) target: PathBuf,
    /// Its kind.
    #[arg(long, value_enum)]
    pub(crate) provider: FileFamily,
    /// The tenant that owns the file; not needed for nimbus-control.db alone.
    #[arg(long, value_name = "TENANT")]
    pub(crate) tenant_id: Option<TenantId>,
    /// How to print what was done.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

/// Which files, and the key that is to wrap theirs.
#[derive(Debug, Args)]
pub(crate) struct RotateKekArgs {
    /// The protected database; with --all, the directory of all of them.
    #[arg(long, value_name = "PATH")]
    pub(crate) path: PathBuf,
    /// Every file in the directory that has a manifest.
    #[arg(long)]
    pub(crate) all: bool,
    /// Say what would be done, and do nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// master-key-file, key-dir or aws-kms; follows from the settings below when those of one are given.
    #[arg(long, value_name = "PROVIDER")]
    pub(crate) new_key_provider: Option<String>,
    /// File of exactly 32 raw bytes, mode 0400.
    #[arg(long, value_name = "FILE")]
    pub(crate) new_master_key_file: Option<String>,
    /// Directory with one such file for each protected file.
    #[arg(long, value_name = "DIR")]
    pub(crate) new_key_dir: Option<String>,
    /// Id, ARN or alias of the key in AWS KMS.
    #[arg(long, value_name = "KEY")]
    pub(crate) new_aws_kms_key_id: Option<String>,
    /// Region of AWS KMS.
    #[arg(long, value_name = "REGION")]
    pub(crate) new_aws_region: Option<String>,
    /// Another endpoint of AWS KMS.
    #[arg(long, value_name = "URL")]
    pub(crate) new_aws_endpoint_url: Option<String>,
    /// Kind of the file; the manifest says it too.
    #[arg(long, value_enum, hide = true)]
    pub(crate) provider: Option<FileFamily>,
    /// How to print what was done.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

/// Which file gets a new key.
#[derive(Debug, Args)]
pub(crate) struct RotateDekArgs {
    /// The protected database.
    #[arg(long, value_name = "FILE")]
    pub(crate) path: PathBuf,
    /// Its kind.
    #[arg(long, value_enum)]
    pub(crate) provider: FileFamily,
    /// The tenant that owns the file; not needed for nimbus-control.db alone.
    #[arg(long, value_name = "TENANT")]
    pub(crate) tenant_id: Option<TenantId>,
    /// Keep no .bak copies until it has succeeded.
    #[arg(long)]
    pub(crate) skip_backup: bool,
    /// How to print what was done.
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) format: Format,
}
