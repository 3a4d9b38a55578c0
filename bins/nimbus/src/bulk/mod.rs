//! `nimbus import` and `nimbus export`: files to documents and back, in constant memory.
//!
//! Both go through the same calls that a program would use: chunks of an import, which carry their
//! line numbers whatever the file's format and are acknowledged one by one, and the stream of an
//! export. How documents are stored is not known here.

mod backend;
mod reader;
mod writer;

use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, bail};
use data_encoding::HEXLOWER;
use nimbus_http::cells;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::cli::{ExportArgs, FileFormat, Format, ImportArgs};
use crate::place::Backend;
use crate::{output, progress};
use backend::Table;
use reader::Rows;
use writer::Sink;

/// Documents of one chunk.
const CHUNK_ROWS: usize = 1_000;
/// Bytes of source after which a chunk ends; its request stays well below the body limit.
const CHUNK_BYTES: u64 = 2 * 1024 * 1024;

/// Runs `nimbus import`.
pub(crate) fn import(args: ImportArgs) -> anyhow::Result<()> {
    let format = match args.file_format {
        Some(format) => format,
        None => guess_format(&args.file)?,
    };
    let source = Source::open(&args.file)?;
    let name = args.name.clone().unwrap_or_else(|| source.name.clone());
    let shown = args.place.format;
    let backend = Backend::open(args.place)?;
    let table = Table::new(&backend, &args.tenant, &args.table);
    let outcome = import_into(&table, source, format, &name);
    backend.close()?;
    let done = outcome?;
    match shown {
        Format::Json => output::json(
            &json!({"inserted": done.inserted, "lines": done.lines, "resumedAfter": done.resumed_after}),
        ),
        Format::Text => {
            if done.resumed_after > 0 {
                output::line(&format!("went on after line {}", done.resumed_after))?;
            }
            output::line(&format!(
                "inserted {} documents from {} lines",
                done.inserted, done.lines
            ))
        }
    }
}

struct Imported {
    inserted: u64,
    lines: u64,
    resumed_after: u64,
}

fn import_into(
    table: &Table<'_>,
    source: Source,
    format: FileFormat,
    name: &str,
) -> anyhow::Result<Imported> {
    let resumed_after = table.import_progress(name)?;
    let bar = progress::bar(source.size, "bytes");
    let schema = table.field_types()?;
    let counted = bar.wrap_read(source.input);
    let mut rows = Rows::new(format, Box::new(counted), schema)?;
    let mut done = Imported {
        inserted: 0,
        lines: resumed_after,
        resumed_after,
    };
    let outcome = loop {
        let chunk = match rows.chunk(CHUNK_ROWS, CHUNK_BYTES) {
            Ok(Some(chunk)) => chunk,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        if chunk.last_line <= resumed_after {
            continue;
        }
        done.lines = chunk.last_line;
        match table.import_chunk(name, chunk) {
            Ok(inserted) => done.inserted += inserted,
            Err(error) => break Err(error),
        }
    };
    bar.finish_and_clear();
    outcome.with_context(|| {
        format!("the import `{name}` stopped; what came before is in, and the same command goes on from there")
    })?;
    table.finish_import(name)?;
    Ok(done)
}

/// Runs `nimbus export`.
pub(crate) fn export(args: ExportArgs) -> anyhow::Result<()> {
    let backend = Backend::open(args.place)?;
    let table = Table::new(&backend, &args.tenant, &args.table);
    let outcome = export_from(&table, args.file_format, args.columns, args.out.as_deref());
    backend.close()?;
    outcome
}

fn export_from(
    table: &Table<'_>,
    format: FileFormat,
    columns: Vec<String>,
    out: Option<&Path>,
) -> anyhow::Result<()> {
    let columns = match format {
        FileFormat::Csv if columns.is_empty() => default_columns(table)?,
        _ => columns,
    };
    match out {
        None => {
            let mut sink = Sink::new(format, columns, Box::new(std::io::stdout().lock()))?;
            copy(table, &mut sink)?;
            sink.finish()
        }
        Some(path) => output::file(path, |file| {
            let mut sink = Sink::new(format, columns, Box::new(file))?;
            copy(table, &mut sink)?;
            sink.finish()
        }),
    }
}

fn copy(table: &Table<'_>, sink: &mut Sink<'_>) -> anyhow::Result<()> {
    let bar = progress::bar(None, "documents");
    let outcome = table.export(&mut |json| {
        bar.inc(1);
        sink.write(json)
    });
    bar.finish_and_clear();
    outcome
}

fn default_columns(table: &Table<'_>) -> anyhow::Result<Vec<String>> {
    let declared = table.field_types()?;
    if declared.is_empty() {
        bail!("the table has no schema, so the columns are not known; name them with --columns");
    }
    Ok(cells::default_columns(
        declared.into_iter().map(|(name, _)| name),
    ))
}

/// What is read, with a name that stays the same as long as the file does.
struct Source {
    input: Box<dyn Read>,
    size: Option<u64>,
    name: String,
}

impl Source {
    fn open(path: &Path) -> anyhow::Result<Source> {
        if path == Path::new("-") {
            let name = format!(
                "stdin-{}-{}",
                std::process::id(),
                jiff::Timestamp::now().as_millisecond()
            );
            return Ok(Source {
                input: Box::new(std::io::stdin()),
                size: None,
                name,
            });
        }
        let shown = path.display();
        let file = File::open(path).with_context(|| format!("opening {shown}"))?;
        let meta = file.metadata()?;
        if !meta.is_file() {
            bail!("{shown} is not a regular file; use `-` and a pipe");
        }
        let full = path.canonicalize()?;
        let mut hash = Sha256::new();
        hash.update(full.as_os_str().as_encoded_bytes());
        hash.update(format!(
            "\0{}\0{}\0{}",
            meta.len(),
            meta.mtime(),
            meta.mtime_nsec()
        ));
        let name = format!("file-{}", &HEXLOWER.encode(&hash.finalize())[..32]);
        Ok(Source {
            input: Box::new(BufReader::new(file)),
            size: Some(meta.len()),
            name,
        })
    }
}

fn guess_format(path: &Path) -> anyhow::Result<FileFormat> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("jsonl" | "ndjson") => Ok(FileFormat::Jsonl),
        Some("csv") => Ok(FileFormat::Csv),
        _ => bail!(
            "{}: say with --file-format whether this is jsonl or csv",
            path.display()
        ),
    }
}

/// Anything that export writes to.
type Output<'a> = Box<dyn Write + 'a>;
