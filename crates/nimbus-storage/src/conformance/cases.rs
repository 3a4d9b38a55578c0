//! The list of cases: written once, and expanded both into [`CASES`] and into tests.
//!
//! Must not hold cases itself; they are grouped by subject in the modules beside this one.

use std::sync::Arc;

use futures_util::future::FutureExt;

use super::{Case, Fixture};

/// Calls the macro `$apply` of this crate with `$make` and the name of every case.
#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_cases {
    ($apply:ident, $make:expr) => {
        $crate::$apply! { $make,
            create_open_list_delete
            create_twice_is_refused
            create_marked_has_its_row
            unknown_tenants_are_not_found
            similar_ids_are_separate
            delete_leaves_nothing
            recreated_tenant_is_empty
            new_tenant_has_the_empty_head
            registry_survives_restart
            health_of_a_working_backend
            commit_is_visible_and_durable
            commit_survives_restart_without_close
            stale_head_is_refused
            racing_commits_have_one_winner
            commit_spans_all_keyspaces
            refused_commit_writes_nothing
            dropped_commit_is_whole_or_absent
            overwrites_and_deletes
            empty_batch_moves_the_head
            snapshot_is_isolated_from_later_commits
            snapshots_of_two_times_differ
            snapshots_see_whole_commits_only
            more_snapshots_than_readers_take_turns
            scans_both_ways_with_bounds_and_limits
            scan_of_nothing
            extreme_keys
            extreme_values
            get_many_keeps_order_and_reports_missing
            keyspaces_are_separate
            scans_agree_with_a_model
            closed_store_refuses_everything
            close_can_be_followed_by_open
            stats_count
            wake_times_are_kept
        }
    };
}

macro_rules! case_table {
    ($make:expr, $($name:ident)*) => {
        /// Every case.
        pub(super) const CASES: &[Case] = &[
            $(Case { name: stringify!($name), run: |fixture: Arc<dyn Fixture>| $name(fixture).boxed() }),*
        ];
    };
}

use super::atomicity::*;
use super::isolation::*;
use super::namespaces::*;
use super::rows::*;
use super::wakes::*;

// The list goes through the macro above, so that it exists once.
#[doc(hidden)]
#[macro_export]
macro_rules! __conformance_table {
    ($($rest:tt)*) => { case_table! { $($rest)* } };
}

crate::__conformance_cases!(__conformance_table, ());
