//! A real server on a real engine, driven over raw HTTP/1.1.
//!
//! Each test has its own directory, port and data. These tests must not reach into the crate:
//! they know the public interface, the wire and the audit log.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod backup;
mod bad_input;
mod bulk;
mod callers;
mod commits;
mod convex;
mod deployments;
mod edge;
mod harness;
mod keys;
mod lifecycle;
mod matrix;
mod routes;
mod surface;
mod unread;
