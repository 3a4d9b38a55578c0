//! 5,000 hostile strings from a seed: what a path, a shell, a file system or a decoder may take
//! for something else.
//!
//! It must not know where they are sent.

use std::collections::BTreeSet;

use nimbus_e2e::Rng;

/// The tenant and the table that exist, for strings that are almost their names.
pub const TENANT: &str = "acme";
pub const TABLE: &str = "notes";

/// What the strings are made from.
fn seeds() -> Vec<Vec<u8>> {
    const TEXTS: [&str; 76] = [
        "",
        ".",
        "..",
        "...",
        "../",
        "..\\",
        "../..",
        "../../../../etc/passwd",
        "/etc/passwd",
        "/",
        "//",
        "\\",
        "C:\\",
        "\\\\server\\share",
        "file:///etc/passwd",
        "~",
        "~root",
        "$HOME",
        "$(id)",
        "`id`",
        "|id",
        ";id",
        "&",
        "*",
        "?",
        "'",
        "\"",
        "' OR 1=1 --",
        "%",
        "%00",
        "%2e",
        "%2e%2e",
        "%2e%2e%2f",
        "%252e%252e%252f",
        "%c0%ae%c0%ae%c0%af",
        "..%00",
        "..;",
        ";",
        "acme",
        "ACME",
        "Acme",
        "acme.",
        "acme ",
        " acme",
        "acme/",
        "acme/..",
        "./acme",
        "acme\0",
        "acme%00",
        "acme.sqlite3",
        "acme.sqlite3-wal",
        "acme-wal",
        "acme-journal",
        "acme:stream",
        "nimbus-control",
        "nimbus-control.db",
        ".nimbus.lock",
        "lock",
        "_nimbus",
        "__proto__",
        "con",
        "CON",
        "nul",
        "aux",
        "prn",
        "com1",
        "lpt1.txt",
        "constructor",
        "true",
        "null",
        "0",
        "-1",
        "-rf",
        "--help",
        "1e309",
        "notes",
    ];
    const BYTES: [&[u8]; 14] = [
        b"\x00",
        b"\x1b[2J",
        b"\x7f",
        b"\xff\xfe",
        b"\xc0\xae\xc0\xae\xc0\xaf",
        b"\xe0\x80\xae\xe0\x80\xae\xe0\x80\xaf",
        b"\xf0\x80\x80\xae",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\x80",
        "acm\u{e9}".as_bytes(),
        "acme\u{301}".as_bytes(),
        "\u{ff0e}\u{ff0e}\u{ff0f}".as_bytes(),
        "\u{202e}emca\u{200b}\u{feff}".as_bytes(),
    ];
    let texts = TEXTS.iter().map(|text| text.as_bytes().to_vec());
    texts
        .chain(BYTES.iter().map(|bytes| bytes.to_vec()))
        .collect()
}

/// One more twist to a string.
fn twist(mut text: Vec<u8>, rng: &mut Rng) -> Vec<u8> {
    let pick = |rng: &mut Rng, n: usize| usize::try_from(rng.between(0, n as u64)).unwrap();
    match rng.between(0, 17) {
        0 => percent(&text),
        1 => percent(&percent(&text)),
        2 => text.iter().flat_map(|byte| overlong(*byte)).collect(),
        3 => [&b"../".repeat(1 + pick(rng, 20)), text.as_slice()].concat(),
        4 => [text.as_slice(), b"/../", TENANT.as_bytes()].concat(),
        5 => {
            text.insert(pick(rng, text.len()), 0);
            text
        }
        6 => {
            let at = pick(rng, text.len());
            text.insert(at, u8::try_from(rng.between(0, 255)).unwrap());
            text
        }
        7 => [text.as_slice(), b".sqlite3"].concat(),
        8 => [text.as_slice(), b".sqlite3-wal"].concat(),
        9 => text
            .iter()
            .map(|b| {
                if rng.next_u64() & 1 == 0 {
                    b.to_ascii_uppercase()
                } else {
                    b.to_ascii_lowercase()
                }
            })
            .collect(),
        10 => text.iter().flat_map(|b| wide(*b)).collect(),
        11 => [text.as_slice(), "\u{301}".as_bytes()].concat(),
        // 4 KiB, and the lengths around the limits of names and paths.
        12 => {
            const LENGTHS: [usize; 7] = [64, 65, 128, 129, 255, 256, 4096];
            let length = LENGTHS[pick(rng, LENGTHS.len() - 1)];
            if text.is_empty() {
                text.push(b'a');
            }
            text.into_iter().cycle().take(length).collect()
        }
        13 => [rng.letters(3).as_bytes(), b"/", text.as_slice()].concat(),
        14 => [rng.letters(3).as_bytes(), b"\\", text.as_slice()].concat(),
        15 => [text.as_slice(), b".", rng.letters(3).as_bytes()].concat(),
        16 => [text.as_slice(), b" "].concat(),
        _ => {
            let mut seeds = seeds();
            let other = seeds.swap_remove(pick(rng, seeds.len() - 1));
            [text, other].concat()
        }
    }
}

fn percent(text: &[u8]) -> Vec<u8> {
    text.iter()
        .flat_map(|byte| format!("%{byte:02x}").into_bytes())
        .collect()
}

/// The byte as two bytes of UTF-8, which is one too many.
fn overlong(byte: u8) -> Vec<u8> {
    match byte {
        0..=0x7f => vec![0xc0 | (byte >> 6), 0x80 | (byte & 0x3f)],
        _ => vec![byte],
    }
}

/// The full-width twin of an ASCII character, which some normal forms fold into it.
fn wide(byte: u8) -> Vec<u8> {
    match byte {
        0x21..=0x7e => {
            let twin = char::from_u32(u32::from(byte) + 0xfee0).unwrap();
            twin.to_string().into_bytes()
        }
        _ => vec![byte],
    }
}

/// `count` different strings.
pub fn hostile(seed: u64, count: usize) -> Vec<Vec<u8>> {
    let mut rng = Rng::new(seed);
    let seeds = seeds();
    let mut known: BTreeSet<Vec<u8>> = BTreeSet::new();
    let mut made = Vec::with_capacity(count);
    let mut add = |text: Vec<u8>, made: &mut Vec<Vec<u8>>| {
        if known.insert(text.clone()) {
            made.push(text);
        }
    };
    for text in &seeds {
        add(text.clone(), &mut made);
    }
    while made.len() < count {
        let from = usize::try_from(rng.between(0, seeds.len() as u64 - 1)).unwrap();
        let mut text = seeds[from].clone();
        for _ in 0..rng.between(1, 3) {
            text = twist(text, &mut rng);
        }
        text.truncate(4096);
        add(text, &mut made);
    }
    made
}
