//! A transactional document store for programs that serve many isolated tenants.
//!
//! # What do you want to do?
//!
//! **Keep documents of many tenants in one directory.** Open a [`control::ControlDb`] and a
//! [`provider::sqlite::SqliteProvider`], make an [`Engine`], create tenants and work on a
//! [`Tenant`]. `examples/notes.rs` is a whole program.
//!
//! **Read and write.** [`Tenant::insert`], [`Tenant::get`], [`Tenant::patch`],
//! [`Tenant::delete`], [`Tenant::query`] and [`Tenant::page`] are one transaction or one read
//! each. A write returns when it is durable; many writers share one sync.
//!
//! **Change several documents at once.** [`Tenant::transact`] runs a closure over a
//! [`Transaction`], again if a concurrent commit touched what it read. Transactions are
//! serializable, range reads and index reads included.
//!
//! **Make queries fast.** Declare indexes with [`Tenant::put_schema`]; they are filled in the
//! background and used once complete. Values of every type have one total order.
//!
//! **React to changes.** [`Tenant::subscribe`] delivers a query's result, and again whenever
//! a durable commit changes it. [`Tenant::journal`] reads the commits themselves.
//!
//! **Read or write a whole table.** [`Tenant::export`] reads every document as of one commit, step
//! by step; [`Tenant::import_chunk`] inserts many at once and remembers how far an import is.
//!
//! **Run functions over documents.** [`FunctionQuery`] is a query as JSON; [`Transaction::open_query`],
//! [`Transaction::fn_page`] and their neighbours are what a function may ask. [`Tenant::begin_read`] reads
//! the newest state or one of the last minute, and [`Tenant::watch`] tells when what was read changes.
//!
//! **Back tenants up.** [`backup`] makes one stream of any number of tenants, each as of one commit,
//! and tenants from that in whatever provider.
//!
//! **Limit what a tenant holds.** [`Engine::set_quota`] refuses commits beyond a number of documents or of
//! bytes, [`Tenant::usage`] says what there is, and [`Tenant::put_policy`] keeps the text that an operator's limits
//! come from, in versions.
//!
//! **Keep the functions of an application.** [`Tenant::deploy`] swaps modules, schema and indexes in one
//! commit and [`Tenant::roll_back`] goes back; [`Tenant::update_environment`] and [`Tenant::put_key`] keep what
//! belongs to them.
//!
//! **Use another storage backend.** Implement [`Provider`], [`provider::TenantStore`] and
//! [`provider::Snapshot`], and run [`conformance`] against them.
//!
//! **Check that all is well.** [`Tenant::consistency`] compares documents, indexes and log.
//!
//! # What it does not know
//!
//! Who the caller is, HTTP, and JavaScript. Errors are [`StoreError`]: their `Display` is safe to
//! show to a caller, their [`StoreError::inside`] belongs in a log.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod backup;
pub mod conformance;
pub mod control;
pub mod encryption;
mod engine;
mod error;
mod pages;
pub mod provider;
pub mod survey;

/// The crate of values, ids and names that this crate's interface is made of.
pub use nimbus_core as core;

pub use engine::*;
pub use error::{CommitId, StoreError, StoreResult, Violation};
pub use provider::{CommitError, Direction, Provider, ProviderError};
