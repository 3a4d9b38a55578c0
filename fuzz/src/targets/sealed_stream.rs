//! Sealed streams (`nimbus-crypto`, `stream.rs`): a reader gives nothing that was not sealed, and whatever
//! is done to a stream it finds it.

use std::io::{Read, Write};
use std::sync::LazyLock;

use nimbus_crypto::{CHUNK_BYTES, Dek, FileId, SealedReader, SealedWriter, StreamError};

/// Headers and frames.
pub const WORDS: &[&str] = &["NIMBSEAL\0\0\0\u{1}", "NIMBSEAL", "\0\u{1}\0\0", "\0\0\0\0"];

/// A short stream of the vectors, under the key and the id below.
const GOOD: &[u8] = include_bytes!("../../corpus/sealed_stream/short");
const ASSOCIATED: &[u8] = b"a backup of tenant demo";
/// Bytes of an input that say what to change: where, and how much is taken away.
const RECIPE: usize = 6;

/// Plaintext of two chunks, the last of them short, and its stream.
static LONG: LazyLock<(Vec<u8>, Vec<u8>)> = LazyLock::new(|| {
    let length = u32::try_from(CHUNK_BYTES).expect("a chunk is short") + 100;
    let text: Vec<u8> = (0..length).map(|at| at.to_be_bytes()[3]).collect();
    let writer = SealedWriter::new(Vec::new(), &key(), id(), ASSOCIATED);
    let mut writer = writer.expect("memory takes everything");
    writer.write_all(&text).expect("memory takes everything");
    (text, writer.finish().expect("memory takes everything"))
});

fn key() -> Dek {
    Dek::from_bytes(&[3; 32])
}

fn id() -> FileId {
    FileId::from_bytes([4; 16])
}

/// Checks the bytes as a stream, and as a change of a good one.
pub fn check(data: &[u8]) {
    let (given, error) = opened(data);
    assert_eq!(error.is_none(), data == GOOD, "forged");
    assert!(error.is_none() || given.is_empty(), "{} bytes", given.len());
    if let Some((recipe, fresh)) = data.split_first_chunk::<RECIPE>() {
        as_change(*recipe, fresh);
    }
}

fn as_change(recipe: [u8; RECIPE], fresh: &[u8]) {
    let (text, good) = &*LONG;
    let [a, b, c, d, e, f] = recipe;
    let from = u32::from_be_bytes([a, b, c, d]) as usize % (good.len() + 1);
    let taken = usize::from(u16::from_be_bytes([e, f])) % (good.len() - from + 1);
    let mut changed = good.clone();
    changed.splice(from..from + taken, fresh.iter().copied());
    let (given, error) = opened(&changed);
    if changed == *good {
        assert!(error.is_none() && given == *text);
        return;
    }
    let error = error.expect("a change is found");
    assert!(text.starts_with(&given) && given.len() % CHUNK_BYTES == 0);
    if good.starts_with(&changed) {
        assert!(matches!(error, StreamError::Truncated { .. }), "{error}");
    }
    if changed.starts_with(good) {
        assert_eq!(error, StreamError::Trailing);
    }
}

fn opened(stream: &[u8]) -> (Vec<u8>, Option<StreamError>) {
    let mut given = Vec::new();
    let outcome = SealedReader::new(stream, &key(), id(), ASSOCIATED)
        .and_then(|mut reader| reader.read_to_end(&mut given));
    let error = outcome.err();
    let error = error.map(|error| StreamError::of(&error).expect("memory does not fail"));
    (given, error)
}
