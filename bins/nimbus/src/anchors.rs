//! Where the anchor of the audit log is kept: in the control database, with a copy beside its key.
//!
//! It must not know what an anchor says.

use std::io;
use std::sync::Arc;

use nimbus_auth::audit::{AnchorCopy, AnchorStore, ChainId};
use nimbus_storage::control::ControlDb;

/// The control database under the name of a chain, and the copy.
#[derive(Debug)]
pub(crate) struct ControlAnchors {
    control: Arc<ControlDb>,
    copy: AnchorCopy,
}

impl ControlAnchors {
    pub(crate) fn new(control: Arc<ControlDb>, copy: AnchorCopy) -> ControlAnchors {
        ControlAnchors { control, copy }
    }
}

/// What the names of the anchors in the control database begin with.
pub(crate) const PREFIX: &str = "audit/";

/// The name of a chain's anchor there.
pub(crate) fn name(chain: ChainId) -> String {
    format!("{PREFIX}{chain}")
}

impl AnchorStore for ControlAnchors {
    fn load(&self, chain: ChainId) -> io::Result<Vec<String>> {
        let copied = self.copy.load(chain).map_err(io::Error::other)?;
        let kept = self.control.anchor(&name(chain));
        Ok(kept.into_iter().chain(copied).collect())
    }

    fn store(&self, chain: ChainId, text: &str) -> io::Result<()> {
        self.control
            .set_anchor(&name(chain), text)
            .map_err(io::Error::other)?;
        // After it, so that the copy never knows more.
        self.copy.store(chain, text).map_err(io::Error::other)
    }
}
