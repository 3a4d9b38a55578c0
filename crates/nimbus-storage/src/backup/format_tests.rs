//! The format's vector, and that nothing but what was written is read.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Cursor;

use super::*;
use crate::backup::{Source, verify};

fn sample() -> Vec<u8> {
    let preamble = preamble(None).unwrap();
    let mut writer = FrameWriter::new(preamble.clone(), &preamble);
    let tenants = ["a", "b"].map(|t| t.parse().unwrap()).to_vec();
    let header = Header {
        created_at_ms: 1_790_000_000_000,
        nimbus: "0.1.0".into(),
        provider: "sqlite".into(),
        tenants,
    };
    writer.header(&header).unwrap();
    let start = TenantStart::new("a".parse().unwrap(), Head::EMPTY, Floor::default());
    writer.tenant(&start).unwrap();
    writer.row(Keyspace::Meta, b"cursor_key", &[7; 32]).unwrap();
    writer.row(Keyspace::Code, &[1, 2], b"").unwrap();
    writer.tenant_end().unwrap();
    writer.gone(&"b".parse().unwrap()).unwrap();
    writer.end().unwrap();
    writer.out
}

fn read(bytes: Vec<u8>) -> BackupResult<crate::backup::Summary> {
    verify(Source::open(Cursor::new(bytes), None)?)
}

/// If this changes, backups that were made by earlier releases cannot be read any more.
#[test]
fn format_vector() {
    let text = data_encoding::HEXLOWER.encode(&sample());
    assert_eq!(text, include_str!("format_v1.hex").trim());
    let summary = read(sample()).unwrap();
    assert_eq!(summary.created_at_ms, 1_790_000_000_000);
    assert_eq!(summary.deleted, ["b".parse().unwrap()]);
    let [tenant] = &summary.tenants[..] else {
        panic!("{summary:?}");
    };
    assert_eq!((tenant.rows, tenant.documents, tenant.bytes), (2, 0, 44));
}

#[test]
fn no_bit_can_change_unseen() {
    let good = sample();
    for at in 0..good.len() * 8 {
        let mut bad = good.clone();
        bad[at / 8] ^= 1 << (at % 8);
        let error = read(bad).expect_err(&format!("bit {at}"));
        let expected = match at / 8 {
            0..8 => matches!(error, BackupError::NotABackup),
            8..10 => matches!(
                error,
                BackupError::NewerVersion { .. } | BackupError::Damaged { .. }
            ),
            _ => matches!(
                error,
                BackupError::Damaged { .. } | BackupError::Truncated { .. }
            ),
        };
        assert!(expected, "bit {at}: {error:?}");
    }
}

#[test]
fn no_byte_can_be_missing_and_none_too_many() {
    let good = sample();
    for length in 0..good.len() {
        let error = read(good[..length].to_vec()).expect_err(&length.to_string());
        let expected = match length {
            0 => matches!(error, BackupError::NotABackup),
            _ => matches!(error, BackupError::Truncated { .. }),
        };
        assert!(expected, "{length}: {error:?}");
    }
    let error = read([&good[..], b"x"].concat()).unwrap_err();
    assert!(error.to_string().contains("bytes after the end"), "{error}");
}

#[test]
fn frames_come_in_their_order_only() {
    let preamble = preamble(None).unwrap();
    let refused = |write: &dyn Fn(&mut FrameWriter<Vec<u8>>)| {
        let mut writer = FrameWriter::new(preamble.clone(), &preamble);
        write(&mut writer);
        read(writer.out).unwrap_err().to_string()
    };
    let header = |tenants: &[&str]| Header {
        created_at_ms: 0,
        nimbus: String::new(),
        provider: String::new(),
        tenants: tenants.iter().map(|t| t.parse().unwrap()).collect(),
    };
    let start = |t: &str| TenantStart::new(t.parse().unwrap(), Head::EMPTY, Floor::default());
    let text = refused(&|w| w.end().unwrap());
    assert!(text.contains("a frame of kind 6"), "{text}");
    let text = refused(&|w| {
        w.header(&header(&[])).unwrap();
        w.header(&header(&[])).unwrap();
    });
    assert!(text.contains("a frame of kind 1"), "{text}");
    let text = refused(&|w| {
        w.header(&header(&["a"])).unwrap();
        w.row(Keyspace::Docs, b"", b"").unwrap();
    });
    assert!(text.contains("a frame of kind 3"), "{text}");
    let text = refused(&|w| {
        w.header(&header(&["a"])).unwrap();
        w.tenant(&start("a")).unwrap();
        w.end().unwrap();
    });
    assert!(text.contains("a frame of kind 6"), "{text}");
    let text = refused(&|w| {
        w.header(&header(&["a"])).unwrap();
        w.tenant(&start("b")).unwrap();
    });
    assert!(text.contains("not the next of the header"), "{text}");
    let text = refused(&|w| {
        w.header(&header(&["a"])).unwrap();
        w.end().unwrap();
    });
    assert!(text.contains("tenants of the header are missing"), "{text}");
    // A length that nobody can have meant takes no memory.
    let text = refused(&|w| w.out.extend([HEADER, 0xff, 0xff, 0xff, 0xff]));
    assert!(text.contains("4294967295 bytes"), "{text}");
    let text = refused(&|w| w.out.extend([HEADER, 3, 0, 0, 0, b'{']));
    assert!(text.contains("cut off after 6 bytes"), "{text}");
}
