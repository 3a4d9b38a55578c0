//! Export of a whole table, streamed from one commit's state as JSON lines or CSV.
//!
//! Stored JSON text goes out unparsed. It must not know how that state is kept together.

use bytes::{BufMut as _, Bytes, BytesMut};
use http::Version;
use nimbus_auth::{OperationContext, Permission};
use nimbus_core::TableName;
use nimbus_storage::{Document, Export, StoreError, Tenant};

use crate::answer::Streamed;
use crate::error::{ApiError, ApiResult};
use crate::extract::{QueryField, QueryKind};
use crate::route::Call;
use crate::stream::{self, Source};
use crate::{cells, lines};

/// Parameters of the route.
pub(crate) const PARAMETERS: &[QueryField] = &[
    QueryField {
        name: "format",
        kind: QueryKind::Word(&["jsonl", "csv"]),
        summary: "JSON lines, or comma-separated values under a header.",
    },
    QueryField {
        name: "columns",
        kind: QueryKind::Text,
        summary: "Columns of CSV, with commas between: field names; by default `_id`, \
                  `_creationTime` and the fields of the schema.",
    },
];

pub(crate) async fn table(call: Call<OperationContext>, _: ()) -> ApiResult<Streamed> {
    let table: TableName = call.params.name("table")?;
    let csv = call.query.text("format")? == Some("csv");
    let columns = call.query.text("columns")?.map(columns).transpose()?;
    if columns.is_some() && !csv {
        return Err(ApiError::invalid("`columns` goes with `format=csv`"));
    }
    if call.version < Version::HTTP_11 {
        // An HTTP/1.0 answer ends with its connection, so half an export would look whole.
        let text = "an export needs HTTP/1.1, in which a client can tell that it is complete; \
                    a proxy between may have to be told to use it";
        return Err(ApiError::invalid(text));
    }
    let store = &call.app.store;
    let tenant = store.tenant(&call.context, Permission::ReadData).await?;
    let export = tenant.export(&table).await?;
    let form = match (csv, columns) {
        (false, _) => Form::Lines,
        (true, Some(columns)) => Form::Cells(columns),
        (true, None) => Form::Cells(declared(&tenant, &table).await?),
    };
    let media = form.media();
    let header = form.header()?;
    let mut rows = Rows { export, form };
    // Read before the status goes out, so that what fails at once is answered as elsewhere.
    let first = match (header, rows.next().await?) {
        (Some(header), Some(more)) => Some([header, more].concat().into()),
        (header, more) => header.or(more),
    };
    let body = stream::body(first, rows, call.exchange.id);
    Ok(Streamed { media, body })
}

/// The names in the parameter `columns`.
fn columns(text: &str) -> ApiResult<Vec<String>> {
    let names: Vec<String> = text.split(',').map(str::to_owned).collect();
    for (at, name) in names.iter().enumerate() {
        if name.is_empty() {
            return Err(ApiError::invalid("`columns` has an empty name"));
        }
        if names[..at].contains(name) {
            return Err(ApiError::invalid(format!("`columns` names `{name}` twice")));
        }
    }
    Ok(names)
}

async fn declared(tenant: &Tenant, table: &TableName) -> ApiResult<Vec<String>> {
    match tenant.table_schema(table).await {
        Ok(schema) => {
            let declared = schema.fields.into_iter().map(|field| field.name);
            Ok(cells::default_columns(declared))
        }
        Err(StoreError::SchemaNotFound { .. }) => Err(ApiError::invalid(
            "the table has no schema, so the columns are not known; name them with `columns`",
        )),
        Err(other) => Err(other.into()),
    }
}

/// How documents are written.
enum Form {
    Lines,
    /// CSV with these columns.
    Cells(Vec<String>),
}

impl Form {
    fn media(&self) -> &'static str {
        match self {
            Form::Lines => lines::MEDIA,
            Form::Cells(_) => cells::MEDIA,
        }
    }

    fn header(&self) -> ApiResult<Option<Bytes>> {
        match self {
            Form::Lines => Ok(None),
            Form::Cells(columns) => records(std::iter::once(Ok(columns.clone()))).map(Some),
        }
    }

    fn write(&self, documents: &[Document]) -> ApiResult<Bytes> {
        match self {
            Form::Lines => Ok(join(documents)),
            Form::Cells(columns) => records(documents.iter().map(|document| {
                let fields = document.fields()?;
                Ok(cells::record(columns, &fields).collect())
            })),
        }
    }
}

struct Rows {
    export: Export,
    form: Form,
}

impl Source for Rows {
    async fn next(&mut self) -> ApiResult<Option<Bytes>> {
        let documents = self.export.next().await?;
        let some = !documents.is_empty();
        some.then(|| self.form.write(&documents)).transpose()
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

fn records(rows: impl Iterator<Item = ApiResult<Vec<String>>>) -> ApiResult<Bytes> {
    let failed = |error: csv::Error| ApiError::internal(error.to_string());
    let mut writer = csv::Writer::from_writer(Vec::new());
    for row in rows {
        writer.write_record(row?).map_err(failed)?;
    }
    let text = writer.into_inner();
    Ok(text
        .map_err(|error| ApiError::internal(error.to_string()))?
        .into())
}
