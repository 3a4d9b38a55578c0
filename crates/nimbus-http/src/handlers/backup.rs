//! A backup of tenants as they are now, streamed while it is made.
//!
//! It must not know the format, nor how a tenant's state is kept together.

use bytes::Bytes;
use http::Version;
use nimbus_auth::ServerContext;
use nimbus_core::TenantId;
use nimbus_storage::backup::Backup;

use crate::answer::BackupBytes;
use crate::error::{ApiError, ApiResult};
use crate::extract::{QueryField, QueryKind};
use crate::route::Call;
use crate::stream::{self, Source};

/// Parameters of the route.
pub(crate) const PARAMETERS: &[QueryField] = &[
    QueryField {
        name: "tenant",
        kind: QueryKind::Texts,
        summary: "A tenant to back up; repeatable. All of them by default.",
    },
    QueryField {
        name: "plain",
        kind: QueryKind::Word(&["false", "true"]),
        summary: "Whether the backup is left in plain text although the store is encrypted. A store that \
                  is not encrypted has backups in plain text only.",
    },
];

pub(crate) async fn create(call: Call<ServerContext>, _: ()) -> ApiResult<BackupBytes> {
    if call.version < Version::HTTP_11 {
        // An HTTP/1.0 answer ends with its connection, so half a backup would look whole.
        let text = "a backup needs HTTP/1.1, in which a client can tell that it is complete; \
                    a proxy between may have to be told to use it";
        return Err(ApiError::invalid(text));
    }
    let named = call.query.texts("tenant")?;
    let tenants: Vec<TenantId> = named.map(str::parse).collect::<Result<_, _>>()?;
    let plain = call.query.text("plain")? == Some("true");
    // Everything leaves the server: like an act that cannot be undone, it is on record first.
    call.exchange.weigh();
    let backup = call.app.store.backup(&call.context, &tenants, plain);
    let mut bytes = Pieces(backup.await?);
    // Read before the status goes out, so that what fails at once is answered as elsewhere.
    let first = bytes.next().await?;
    call.exchange.note(match plain {
        true => "backup.begun_plain",
        false => "backup.begun",
    });
    Ok(BackupBytes(stream::body(first, bytes, call.exchange.id)))
}

struct Pieces(Backup);

impl Source for Pieces {
    async fn next(&mut self) -> ApiResult<Option<Bytes>> {
        Ok(self.0.next().await?)
    }
}
