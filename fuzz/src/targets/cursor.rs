//! Page cursors (`nimbus-storage`, `engine/cursor.rs`): what the tenant made comes back as it was,
//! and nothing else is taken, whatever was edited.

use arbitrary::{Result, Unstructured};
use nimbus_storage::StoreError;
use nimbus_storage::fuzzing::{
    CursorPosition, open_cursor, query_digest, seal_cursor, sign_cursor,
};

use crate::make;

const KEY: [u8; 32] = [7; 32];
const DIGEST: [u8; 32] = [9; 32];

/// Checks the bytes as a cursor, as what is behind a good signature, and as the recipe of a position.
pub fn check(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        forged(text);
    }
    signed(data);
    let _ = sealed(&mut Unstructured::new(data));
}

fn forged(text: &str) {
    match open_cursor(KEY, &DIGEST, text) {
        Err(StoreError::Cursor { .. }) => {}
        other => panic!("taken without the key, or refused for another reason: {other:?}"),
    }
}

/// Behind the signature a position is read, or refused, in one piece.
fn signed(body: &[u8]) {
    let cursor = sign_cursor(KEY, body);
    let bound = [&[1][..], &DIGEST[..16], body].concat();
    for (body, cursor) in [(body, cursor), (bound.as_slice(), sign_cursor(KEY, &bound))] {
        let Ok(position) = open_cursor(KEY, &DIGEST, &cursor) else {
            continue;
        };
        // The flag before the order is the only byte that has more than one reading.
        if body[17] <= 1 && (body[17] == 1 || body.len() == 18 + 24) {
            assert_eq!(seal_cursor(KEY, &DIGEST, &position), cursor);
        }
    }
}

fn sealed(u: &mut Unstructured<'_>) -> Result<()> {
    let position = CursorPosition {
        order: u.arbitrary::<bool>()?.then(|| make::bytes(u)).transpose()?,
        creation: u.arbitrary()?,
        id: make::internal_id(u)?,
    };
    let (query, other) = (make::query(u)?, make::query(u)?);
    let (digest, another) = (query_digest(&query), query_digest(&other));
    let cursor = seal_cursor(KEY, &digest, &position);
    let opened = open_cursor(KEY, &digest, &cursor).expect("a cursor that was made");
    assert_eq!(opened.order, position.order);
    assert_eq!(opened.creation.to_bits(), position.creation.to_bits());
    assert_eq!(opened.id, position.id);

    assert!(
        open_cursor([8; 32], &digest, &cursor).is_err(),
        "another tenant"
    );
    if digest != another {
        assert!(
            open_cursor(KEY, &another, &cursor).is_err(),
            "another query"
        );
    }
    let at = u.choose_index(cursor.len())?;
    let character = char::from(*u.choose(b"AZaz09-_+/= \n\0")?);
    let mut edited = cursor.clone();
    edited.replace_range(at..=at, &character.to_string());
    let cut = &cursor[..at];
    let grown = format!("{cursor}{character}");
    for text in [edited.as_str(), cut, &grown] {
        assert!(
            text == cursor || open_cursor(KEY, &digest, text).is_err(),
            "{text} was taken for {cursor}"
        );
    }
    Ok(())
}
