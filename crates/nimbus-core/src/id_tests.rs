//! Tests of ids: the vectors of `vectors/ids.json`, the layout of ids we make, and round trips.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use data_encoding::HEXLOWER;
use proptest::prelude::*;
use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Vectors {
    valid: Vec<Valid>,
    invalid: Vec<Invalid>,
}

#[derive(Deserialize)]
struct Valid {
    text: String,
    table: u32,
    internal: String,
}

#[derive(Deserialize)]
struct Invalid {
    text: String,
    error: String,
    why: String,
}

fn vectors() -> Vectors {
    serde_json::from_str(include_str!("../vectors/ids.json")).unwrap()
}

fn internal(hex: &str) -> InternalId {
    InternalId::from_bytes(HEXLOWER.decode(hex.as_bytes()).unwrap().try_into().unwrap())
}

#[test]
fn valid_vectors_read_and_print() {
    for vector in vectors().valid {
        let table = TableNumber::new(vector.table).unwrap();
        let id = DocumentId {
            table,
            internal: internal(&vector.internal),
        };
        assert_eq!(id.to_string(), vector.text);
        assert_eq!(vector.text.parse(), Ok(id));
    }
}

#[test]
fn invalid_vectors_fail_for_the_stated_reason() {
    for vector in vectors().invalid {
        let error = vector.text.parse::<DocumentId>().expect_err(&vector.why);
        let kind = format!("{error:?}");
        let kind = kind.split([' ', '{']).next().unwrap();
        assert_eq!(kind, vector.error, "{}: {error}", vector.why);
    }
}

#[test]
fn the_id_of_convex_md_is_among_the_vectors() {
    let mut bytes = [251_u8; 16];
    for index in 1..16 {
        bytes[index] = bytes[index - 1].wrapping_mul(251);
    }
    let table = TableNumber::new(1017).unwrap();
    let id = DocumentId {
        table,
        internal: InternalId::from_bytes(bytes),
    };
    assert_eq!(id.to_string(), "z43zp6c3e75gkmz1kfwj6mbbx5sw281h");
}

#[test]
fn table_zero_is_no_table() {
    assert_eq!(TableNumber::new(0), None);
    assert_eq!(TableNumber::FIRST_USER.get(), 10_001);
    assert!(serde_json::from_str::<TableNumber>("0").is_err());
    assert_eq!(
        serde_json::from_str::<TableNumber>("7")
            .unwrap()
            .to_string(),
        "7"
    );
}

#[test]
fn serde_form_is_the_text() {
    let text = "\"j57000820c20a1g7104gm2rc1m70ynr8\"";
    let id: DocumentId = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_string(&id).unwrap(), text);
    assert!(serde_json::from_str::<DocumentId>("\"j57000820c20a1g7104gm2rc1m70ynr9\"").is_err());
    assert!(serde_json::from_str::<DocumentId>("1").is_err());
}

#[test]
fn key_is_table_then_internal_and_reads_back() {
    let internal = internal("000102030405060708090a0b0c0d0e0f");
    let id = DocumentId {
        table: TableNumber::new(0x0102_0304).unwrap(),
        internal,
    };
    let key = id.key();
    assert_eq!(
        HEXLOWER.encode(&key),
        "01020304000102030405060708090a0b0c0d0e0f"
    );
    assert_eq!(DocumentId::from_key(&key), Ok(id));
    for found in [0, 3, 4, 19] {
        let error = DocumentId::from_key(&key[..found]);
        assert_eq!(
            error,
            Err(IdError::KeyLength {
                expected: 20,
                found
            })
        );
    }
    let error = DocumentId::from_key(&[1; 21]);
    assert_eq!(
        error,
        Err(IdError::KeyLength {
            expected: 20,
            found: 21
        })
    );
    assert_eq!(
        DocumentId::from_key(&[0; 20]),
        Err(IdError::TableNumberZero)
    );
}

#[test]
fn generated_layout_is_the_stated_one() {
    // 2026-01-02T03:04:05.678Z is 1,767,323,045,678 ms = 0x019b7cae032e and day 20,455 = 0x4fe7.
    let ms = 1_767_323_045_678_u64;
    let id = InternalId::generate(ms * TICKS_PER_MS + 0xabc, 0xffff_1234_5678_9abc);
    assert_eq!(
        format!("{id:?}"),
        format!("InternalId({ms:012x}abcf123456789abc4fe7)")
    );
    assert_eq!(id.ticks(), ms * TICKS_PER_MS + 0xabc);
}

#[test]
fn day_field_does_not_wrap() {
    let last = 65_535 * MS_PER_DAY * TICKS_PER_MS;
    for ticks in [last, last + MS_PER_DAY * TICKS_PER_MS, TICK_MASK] {
        let id = InternalId::generate(ticks, 0);
        assert_eq!(id.as_bytes()[14..], [0xff, 0xff]);
        assert_eq!(id.ticks(), ticks);
    }
    // Bits above the 60 used count nowhere.
    assert_eq!(
        InternalId::generate(1 << 60 | 7, 0),
        InternalId::generate(7, 0)
    );
}

/// Exactness ends at 2^53 ticks, so every count of ticks up to there is a different time.
#[test]
fn creation_time_is_exact_until_2039() {
    let end = 1_u64 << 53;
    let round = |ticks: u64| (creation_time_ms(ticks) * 4096.0) as u64;
    for start in [
        0,
        1_700_000_000_000 * TICKS_PER_MS,
        1_999_999_999_999 * TICKS_PER_MS,
        end - 50_000,
    ] {
        for ticks in start..start + 50_000 {
            assert_eq!(round(ticks), ticks);
            assert!(creation_time_ms(ticks) < creation_time_ms(ticks + 1) || ticks + 1 > end);
        }
    }
    let step = 999_999_999_937;
    for ticks in (0..end).step_by(step) {
        assert_eq!(round(ticks), ticks);
    }
    // 2039-09-07T15:47:35.552Z; after it two neighbours share a time, and it still never falls.
    assert_eq!(creation_time_ms(end), 2_199_023_255_552.0);
    assert_eq!(creation_time_ms(end), creation_time_ms(end + 1));
    for ticks in end..end + 50_000 {
        assert!(creation_time_ms(ticks) <= creation_time_ms(ticks + 1));
    }
}

proptest! {
    #[test]
    fn any_id_reads_back(table in 1_u32.., bytes: [u8; 16]) {
        let table = TableNumber::new(table).unwrap();
        let id = DocumentId { table, internal: InternalId::from_bytes(bytes) };
        let text = id.to_string();
        prop_assert!((MIN_TEXT..=MAX_TEXT).contains(&text.len()));
        prop_assert_eq!(text.parse(), Ok(id));
        prop_assert_eq!(DocumentId::from_key(&id.key()), Ok(id));
    }

    #[test]
    fn one_wrong_character_is_noticed(table in 1_u32.., bytes: [u8; 16], at: prop::sample::Index, by in 1_usize..32) {
        let table = TableNumber::new(table).unwrap();
        let id = DocumentId { table, internal: InternalId::from_bytes(bytes) };
        let mut text = id.to_string().into_bytes();
        let at = at.index(text.len());
        let old = usize::from(digit(text[at]).unwrap());
        text[at] = ALPHABET[(old + by) % 32];
        let read = String::from_utf8(text).unwrap().parse::<DocumentId>();
        // A Fletcher sum modulo 256 misses some changes; what it lets pass must be another id.
        if let Ok(read) = read {
            prop_assert_ne!(read, id);
        }
    }

    #[test]
    fn what_parses_prints_the_same(text in "[0-9a-z]{30,38}") {
        if let Ok(id) = text.parse::<DocumentId>() {
            prop_assert_eq!(id.to_string(), text);
        }
    }

    #[test]
    fn parsing_never_panics(text in "\\PC{0,40}", key: Vec<u8>) {
        let _ = text.parse::<DocumentId>();
        let _ = DocumentId::from_key(&key);
    }

    #[test]
    fn ids_sort_by_ticks_first(a in 0..=TICK_MASK, b in 0..=TICK_MASK, x: u64, y: u64) {
        let (first, second) = (InternalId::generate(a, x), InternalId::generate(b, y));
        if a != b {
            prop_assert_eq!(first.cmp(&second), a.cmp(&b));
        }
        prop_assert_eq!(first.ticks(), a);
        prop_assert_eq!(&first.as_bytes()[8..14], &x.to_be_bytes()[2..]);
    }

    #[test]
    fn creation_time_follows_ticks(a in 0_u64..1 << 53, b in 0_u64..1 << 53) {
        prop_assert_eq!(creation_time_ms(a).total_cmp(&creation_time_ms(b)), a.cmp(&b));
        prop_assert_eq!((creation_time_ms(a) * 4096.0) as u64, a);
    }
}
