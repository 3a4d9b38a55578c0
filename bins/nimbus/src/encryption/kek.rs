//! `nimbus encryption rotate-kek`: the keys of one file, or of all in a directory, wrapped under
//! another key.

use anyhow::bail;

use super::cli::RotateKekArgs;
use super::source::KeySource;

pub(super) fn run(_args: RotateKekArgs, _source: &KeySource) -> anyhow::Result<()> {
    bail!("not merged yet")
}
