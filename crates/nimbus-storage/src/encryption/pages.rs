//! placeholder until the redb branch is merged
use std::path::Path;

use nimbus_crypto::{Dek, FileId};

use super::{FileKey, Progress};
use crate::provider::ProviderResult;

pub(super) fn encrypt(_: &Path, _: &Path, _: &FileKey, _: Progress<'_>) -> ProviderResult<()> {
    unimplemented!()
}
pub(super) fn decrypt(_: &Path, _: &Path, _: &FileKey, _: Progress<'_>) -> ProviderResult<()> {
    unimplemented!()
}
pub(super) fn compare(_: &Path, _: &Path, _: &FileKey) -> ProviderResult<()> {
    unimplemented!()
}
pub(super) fn reencrypt(_: &Path, _: &FileKey, _: Progress<'_>) -> ProviderResult<()> {
    unimplemented!()
}
pub(super) fn fits(_: &Path, _: &Dek, _: FileId) -> ProviderResult<()> {
    unimplemented!()
}
pub(super) fn remove_staged(_: &Path) -> ProviderResult<()> {
    Ok(())
}
