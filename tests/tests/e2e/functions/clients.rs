//! The official clients, unmodified: npm `convex` and PyPI `convex`.
//!
//! It must not know the wire; the packages do.

use nimbus_e2e::python::python;
use nimbus_e2e::{Finished, Options, apps};

use super::World;

/// Runs a script of this directory with Node.js; it must print its last word.
pub(super) fn node(world: &World, script: &str) {
    let finished = world.app.node(world.server.home(), script, &[&world.url()]);
    let finished = finished.expect(0);
    assert!(finished.stdout.ends_with("all is well\n"), "{finished:?}");
}

#[test]
fn the_npm_client_finds_everything_as_it_expects_it() {
    node(&World::chat(), include_str!("http_client.mjs"));
}

#[test]
fn a_pair_of_mutations_that_skew_never_both_commits() {
    node(&World::chat(), include_str!("write_skew.mjs"));
}

#[test]
fn sixty_four_clients_lose_no_increment() {
    // More than the default of a small machine may wait.
    let options = Options::new().args(&["--runtime-max-queued-per-tenant", "64"]);
    node(&World::chat_on(options), include_str!("one_counter.mjs"));
}

#[test]
fn the_python_client_finds_everything_as_it_expects_it() {
    python_client(&World::chat());
}

/// Runs the script of the Python client.
pub(super) fn python_client(world: &World) {
    let mut command = python();
    command.args(["-", &world.url()]);
    let finished: Finished =
        apps::with_input(&mut command, include_str!("http_client.py")).expect(0);
    assert!(finished.stdout.ends_with("all is well\n"), "{finished:?}");
}
