//! The engine against its public interface, on the SQLite provider behind a wrapper that can
//! hold, refuse or lose commits. One file per concern; what they share is in `support`.

mod backup;
mod blind;
mod committer;
mod damage;
mod deploy_crashes;
mod deploy_races;
mod deploys;
mod documents;
mod due;
mod environment;
mod export;
mod function_pages;
mod function_past;
mod function_streams;
mod function_watches;
mod function_writes;
mod history;
mod indexes;
mod isolation;
mod lists;
mod live;
mod logs;
mod long_keys;
mod outcomes;
mod policies;
mod queries;
mod quotas;
mod schemas;
pub mod servers;
mod stage;
pub mod support;
mod tenants;
mod transactions;
mod wakes;
