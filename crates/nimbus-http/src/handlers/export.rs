//! Export of a whole table as JSON lines, streamed from one commit's state.
//!
//! Stored JSON text goes out unparsed. It must not know how that state is kept together.

use bytes::{BufMut as _, Bytes, BytesMut};
use http::Version;
use nimbus_auth::{OperationContext, Permission};
use nimbus_storage::{Document, Export};

use crate::answer::JsonLines;
use crate::error::{ApiError, ApiResult};
use crate::route::Call;
use crate::stream::{self, Source};

pub(crate) async fn table(call: Call<OperationContext>, _: ()) -> ApiResult<JsonLines> {
    let table = call.params.name("table")?;
    if call.version < Version::HTTP_11 {
        // An HTTP/1.0 answer ends with its connection, so half an export would look whole.
        let text = "an export needs HTTP/1.1, in which a client can tell that it is complete; \
                    a proxy between may have to be told to use it";
        return Err(ApiError::invalid(text));
    }
    let store = &call.app.store;
    let tenant = store.tenant(&call.context, Permission::ReadData).await?;
    let mut export = Documents(tenant.export(&table).await?);
    // Read before the status goes out, so that what fails at once is answered as elsewhere.
    let first = export.next().await?;
    Ok(JsonLines(stream::body(first, export, call.exchange.id)))
}

struct Documents(Export);

impl Source for Documents {
    async fn next(&mut self) -> ApiResult<Option<Bytes>> {
        let documents = self.0.next().await?;
        Ok((!documents.is_empty()).then(|| join(&documents)))
    }
}

fn join(documents: &[Document]) -> Bytes {
    let bytes = documents.iter().map(|document| document.json.len() + 1);
    let mut text = BytesMut::with_capacity(bytes.sum());
    for document in documents {
        text.put_slice(&document.json);
        text.put_u8(b'\n');
    }
    text.freeze()
}
