//! Reads documents from JSON lines or CSV, a bounded chunk at a time, each with its line.
//!
//! `_id` and `_creationTime` of the input are left out: documents get new ones.

use std::io::{BufRead, BufReader, Read};

use anyhow::{Context as _, anyhow, bail};
use nimbus_core::{Object, Value, json};
use nimbus_http::lines::{self, MAX_LINE_BYTES};
use nimbus_storage::FieldType;

use crate::cli::FileFormat;

/// Documents with their lines, and the last line covered.
pub(crate) struct Chunk {
    pub(crate) rows: Vec<(u64, Object)>,
    pub(crate) last_line: u64,
}

/// Documents of a file, in order.
pub(crate) enum Rows {
    /// One object a line.
    Jsonl { input: Box<dyn BufRead>, line: u64 },
    /// Records under a header.
    Csv(Box<CsvRows>),
}

/// Records of a CSV file.
pub(crate) struct CsvRows {
    records: csv::Reader<Box<dyn Read>>,
    columns: Vec<(String, Option<FieldType>)>,
}

impl Rows {
    /// Starts reading; a CSV file's header is read at once.
    pub(crate) fn new(
        format: FileFormat,
        input: Box<dyn Read>,
        schema: Vec<(String, FieldType)>,
    ) -> anyhow::Result<Rows> {
        match format {
            FileFormat::Jsonl => Ok(Rows::Jsonl {
                input: Box::new(BufReader::with_capacity(256 * 1024, input)),
                line: 0,
            }),
            FileFormat::Csv => Ok(Rows::Csv(Box::new(CsvRows::new(input, &schema)?))),
        }
    }

    /// The next documents, about as many as asked for; `None` at the end.
    pub(crate) fn chunk(&mut self, rows: usize, bytes: u64) -> anyhow::Result<Option<Chunk>> {
        let mut chunk = Chunk {
            rows: Vec::new(),
            last_line: 0,
        };
        let mut taken = 0;
        while chunk.rows.len() < rows && taken < bytes {
            let Some((line, size, fields)) = self.next_row()? else {
                break;
            };
            taken += size;
            chunk.last_line = line;
            chunk.rows.extend(fields.map(|fields| (line, fields)));
        }
        Ok((chunk.last_line > 0).then_some(chunk))
    }

    /// Line, size and, unless the line is blank, document.
    fn next_row(&mut self) -> anyhow::Result<Option<(u64, u64, Option<Object>)>> {
        match self {
            Rows::Jsonl { input, line } => next_line(input, line),
            Rows::Csv(csv) => csv.next_row(),
        }
    }
}

fn next_line(
    input: &mut Box<dyn BufRead>,
    line: &mut u64,
) -> anyhow::Result<Option<(u64, u64, Option<Object>)>> {
    let mut text = Vec::new();
    // One byte more than a line may have shows one that has more.
    let bound = MAX_LINE_BYTES as u64 + 1;
    let size = input.by_ref().take(bound).read_until(b'\n', &mut text)? as u64;
    if size == 0 {
        return Ok(None);
    }
    *line += 1;
    let fields = lines::fields(&text).with_context(|| format!("line {line}"))?;
    Ok(Some((*line, size, fields)))
}

impl CsvRows {
    fn new(input: Box<dyn Read>, schema: &[(String, FieldType)]) -> anyhow::Result<CsvRows> {
        let mut records = csv::ReaderBuilder::new().from_reader(input);
        let header = records.headers().context("reading the header line")?;
        if header.is_empty() {
            bail!("line 1: a CSV file needs a header line with field names");
        }
        let mut columns: Vec<(String, Option<FieldType>)> = Vec::new();
        for name in header {
            if columns.iter().any(|(known, _)| known == name) {
                bail!("line 1: column `{name}` appears twice");
            }
            let declared = schema
                .iter()
                .find(|(field, _)| field == name)
                .map(|(_, t)| *t);
            columns.push((name.to_owned(), declared));
        }
        Ok(CsvRows { records, columns })
    }

    fn next_row(&mut self) -> anyhow::Result<Option<(u64, u64, Option<Object>)>> {
        let mut record = csv::StringRecord::new();
        // The csv crate's errors name the line.
        if !self.records.read_record(&mut record)? {
            return Ok(None);
        }
        let line = record.position().map_or(0, csv::Position::line);
        let mut fields = Object::new();
        for ((name, declared), cell) in self.columns.iter().zip(&record) {
            if cell.is_empty() {
                continue;
            }
            let value = parse_cell(cell, *declared)
                .map_err(|reason| anyhow!("line {line}: column `{name}`: {reason}"))?;
            fields.insert(name.clone(), value);
        }
        Ok(Some((
            line,
            record.as_slice().len() as u64,
            Some(lines::without_system_fields(fields)),
        )))
    }
}

/// An empty cell is no field; the others follow the declared type, and are strings without one.
fn parse_cell(cell: &str, declared: Option<FieldType>) -> Result<Value, String> {
    let json = |cell: &str| json::from_slice::<Value>(cell.as_bytes()).map_err(|e| e.to_string());
    match declared {
        Some(FieldType::Number) => match json(cell.trim()) {
            Ok(number @ (Value::Float64(_) | Value::Int64(_))) => Ok(number),
            _ => Err(format!("`{}` is not a number", clip(cell))),
        },
        Some(FieldType::Boolean) => match cell.trim() {
            "true" => Ok(Value::Bool(true)),
            "false" => Ok(Value::Bool(false)),
            _ => Err(format!("`{}` is neither true nor false", clip(cell))),
        },
        Some(FieldType::Array | FieldType::Object) => json(cell),
        _ => Ok(Value::String(cell.to_owned())),
    }
}

fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn rows(
        format: FileFormat,
        text: &str,
        schema: &[(&str, FieldType)],
    ) -> anyhow::Result<Vec<(u64, String)>> {
        let schema = schema.iter().map(|(n, t)| ((*n).to_owned(), *t)).collect();
        let input: Box<dyn Read> = Box::new(std::io::Cursor::new(text.to_owned().into_bytes()));
        let mut rows = Rows::new(format, input, schema)?;
        let mut out = Vec::new();
        while let Some(chunk) = rows.chunk(2, 1 << 20)? {
            out.extend(
                chunk
                    .rows
                    .into_iter()
                    .map(|(l, o)| (l, Value::Object(o).to_json())),
            );
        }
        Ok(out)
    }

    #[test]
    fn json_lines_keep_their_numbers() {
        let text = "{\"a\":1}\n\n  \n{\"_id\":\"x\",\"b\":{\"$integer\":\"BQAAAAAAAAA=\"}}\r\n{}";
        let found = rows(FileFormat::Jsonl, text, &[]).unwrap();
        let lines: Vec<_> = found.iter().map(|(l, t)| (*l, t.as_str())).collect();
        assert_eq!(
            lines,
            [
                (1, "{\"a\":1}"),
                (4, "{\"b\":{\"$integer\":\"BQAAAAAAAAA=\"}}"),
                (5, "{}")
            ]
        );
    }

    #[test]
    fn csv_cells_follow_the_schema() {
        let schema = [
            ("n", FieldType::Number),
            ("b", FieldType::Boolean),
            ("o", FieldType::Array),
        ];
        let text = "n,b,o,s\n1.5,true,\"[1,2]\",\"two\nlines, \"\"quoted\"\"\"\n,,,x\n";
        let found = rows(FileFormat::Csv, text, &schema).unwrap();
        assert_eq!(
            found[0],
            (
                2,
                "{\"b\":true,\"n\":1.5,\"o\":[1,2],\"s\":\"two\\nlines, \\\"quoted\\\"\"}".into()
            )
        );
        assert_eq!(found[1], (4, "{\"s\":\"x\"}".into()));
    }

    #[test]
    fn every_error_names_its_line() {
        let number = [("n", FieldType::Number)];
        let cases = [
            (FileFormat::Jsonl, "{}\n{\"a\":", &[][..], "line 2"),
            (
                FileFormat::Jsonl,
                "{}\n[1]\n",
                &[],
                "line 2: expected a JSON object, found array",
            ),
            (FileFormat::Jsonl, "{\"a\":9007199254740993}", &[], "line 1"),
            (FileFormat::Csv, "n\n1\nx\n", &number, "line 3: column `n`"),
            (
                FileFormat::Csv,
                "n,n\n1,2\n",
                &[],
                "line 1: column `n` appears twice",
            ),
            (FileFormat::Csv, "a,b\n1\n", &[], "line: 2"),
        ];
        for (format, text, schema, part) in cases {
            let error = format!("{:#}", rows(format, text, schema).unwrap_err());
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }
}
