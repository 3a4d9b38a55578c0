//! The one answer that needs no credential.
//!
//! It must not tell anything about this server but that it answers (seed 000).

use schemars::JsonSchema;
use serde::Serialize;

use crate::answer::Found;
use crate::error::ApiResult;
use crate::route::Call;

/// Exactly `{"ok":true}`.
#[derive(Serialize, JsonSchema)]
pub(crate) struct Health {
    ok: bool,
}

pub(crate) async fn health(_: Call<()>, _: ()) -> ApiResult<Found<Health>> {
    Ok(Found(Health { ok: true }))
}
