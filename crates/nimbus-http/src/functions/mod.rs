//! Functions: their deployment and their calls, over the runtime and the store.
//!
//! It must not know routes or how a credential is checked.

pub(crate) mod checks;
pub(crate) mod diff;
pub(crate) mod push;
