//! Writes documents as JSON lines or CSV. It must not know where they come from.

use std::io::{BufWriter, Write};

use nimbus_core::Object;
use nimbus_http::cells;

use super::Output;
use crate::cli::FileFormat;

/// Where exported documents go.
pub(crate) enum Sink<'a> {
    /// One object a line.
    Jsonl(BufWriter<Output<'a>>),
    /// Records under a header.
    Csv {
        records: Box<csv::Writer<Output<'a>>>,
        columns: Vec<String>,
    },
}

impl<'a> Sink<'a> {
    /// Starts a file; a CSV file's header is written at once.
    pub(crate) fn new(
        format: FileFormat,
        columns: Vec<String>,
        out: Output<'a>,
    ) -> anyhow::Result<Sink<'a>> {
        Ok(match format {
            FileFormat::Jsonl => Sink::Jsonl(BufWriter::with_capacity(256 * 1024, out)),
            FileFormat::Csv => {
                let mut records = csv::Writer::from_writer(out);
                records.write_record(&columns)?;
                Sink::Csv {
                    records: Box::new(records),
                    columns,
                }
            }
        })
    }

    /// Writes one document, given as its JSON text.
    pub(crate) fn write(&mut self, json: &[u8]) -> anyhow::Result<()> {
        match self {
            Sink::Jsonl(out) => {
                out.write_all(json)?;
                out.write_all(b"\n")?;
            }
            Sink::Csv { records, columns } => {
                let document: Object = serde_json::from_slice(json)?;
                let cells = cells::record(columns, &document);
                records.write_record(cells)?;
            }
        }
        Ok(())
    }

    /// Writes what is buffered.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        match self {
            Sink::Jsonl(mut out) => out.flush()?,
            Sink::Csv { mut records, .. } => records.flush()?,
        }
        Ok(())
    }
}
