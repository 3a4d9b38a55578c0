//! Changes by others: each is found, with the place where it begins (reliability check 21).

use super::*;

/// Whole lines with their newline.
fn split(text: &[u8]) -> Vec<Vec<u8>> {
    text.split_inclusive(|byte| *byte == b'\n')
        .map(<[u8]>::to_vec)
        .collect()
}

fn first(found: &Verification) -> &Break {
    found
        .breaks
        .first()
        .unwrap_or_else(|| panic!("nothing found: {found:?}"))
}

#[test]
fn each_kind_of_change_is_named_with_its_place() {
    let fixture = Fixture::new();
    fixture.write(10);
    let whole = split(&fs::read(&fixture.path).unwrap());
    let offset = |line: usize| -> u64 { whole[..line - 1].iter().map(|l| l.len() as u64).sum() };
    let swapped = {
        let mut lines = whole.clone();
        lines.swap(3, 4);
        lines
    };
    let edited = |line: usize, from: &str, to: &str| {
        let mut lines = whole.clone();
        let text = String::from_utf8(lines[line - 1].clone()).unwrap();
        assert!(text.contains(from));
        lines[line - 1] = text.replacen(from, to, 1).into_bytes();
        lines
    };
    let with = |at: usize, line: &[u8]| {
        let mut lines = whole.clone();
        lines.insert(at - 1, line.to_vec());
        lines
    };
    let without = |from: usize, to: usize| [&whole[..from - 1], &whole[to..]].concat();
    // (what was done, the lines, line of the first break, kind, breaks in all)
    let table = [
        (
            "edited",
            edited(4, "401", "200"),
            4,
            BreakKind::Changed { seq: 4 },
            1,
        ),
        (
            "mac edited",
            edited(4, "\"mac\":\"", "\"mac\":\"x"),
            4,
            BreakKind::Malformed,
            2,
        ),
        (
            "number edited",
            edited(4, "\"seq\":4", "\"seq\":9"),
            4,
            BreakKind::Missing { from: 4, to: 8 },
            1,
        ),
        (
            "one taken out",
            without(4, 4),
            4,
            BreakKind::Missing { from: 4, to: 4 },
            1,
        ),
        (
            "three taken out",
            without(2, 4),
            2,
            BreakKind::Missing { from: 2, to: 4 },
            1,
        ),
        (
            "the first taken out",
            without(1, 1),
            1,
            BreakKind::Missing { from: 1, to: 1 },
            1,
        ),
        (
            "two exchanged",
            swapped,
            4,
            BreakKind::Missing { from: 4, to: 4 },
            2,
        ),
        (
            "noise inserted",
            with(4, b"noise\n"),
            4,
            BreakKind::Malformed,
            1,
        ),
        (
            "an empty line inserted",
            with(4, b"\n"),
            4,
            BreakKind::Malformed,
            1,
        ),
        (
            "one repeated",
            with(4, &whole[2]),
            4,
            BreakKind::OutOfPlace {
                claimed: 3,
                expected: 4,
            },
            1,
        ),
        (
            "the first repeated at the end",
            [&whole[..], &whole[..1]].concat(),
            11,
            BreakKind::OutOfPlace {
                claimed: 1,
                expected: 11,
            },
            1,
        ),
        (
            "cut off",
            without(8, 10),
            8,
            BreakKind::CutEnd { from: 8, to: 10 },
            1,
        ),
        (
            "all cut off",
            Vec::new(),
            1,
            BreakKind::CutEnd { from: 1, to: 10 },
            1,
        ),
    ];
    for (what, lines, line, kind, count) in table {
        fs::write(&fixture.path, lines.concat()).unwrap();
        let found = fixture.verify();
        let place = first(&found);
        assert_eq!((place.line, place.kind), (line, kind), "{what}: {found:?}");
        assert_eq!(
            (place.offset, found.broken),
            (
                offset(usize::try_from(line).unwrap().min(10))
                    + if line == 11 { whole[9].len() as u64 } else { 0 },
                count
            ),
            "{what}: {found:?}"
        );
        assert_eq!(place.file, fixture.path);
        assert!(
            place.to_string().contains(&format!("line {line} ")),
            "{place}"
        );
    }
    fs::write(&fixture.path, whole.concat()).unwrap();
    assert!(fixture.verify().is_intact());
}

#[test]
fn an_older_log_that_was_put_back_is_found_even_when_it_was_written_on() {
    let fixture = Fixture::new();
    fixture.write(3);
    let old = fs::read(&fixture.path).unwrap();
    fixture.write(5);
    fs::write(&fixture.path, &old).unwrap();
    assert_eq!(
        first(&fixture.verify()).kind,
        BreakKind::CutEnd { from: 4, to: 8 }
    );
    // The server goes on behind the gap and tells of it.
    let (log, recovered) = fixture.try_open().unwrap();
    assert_eq!((recovered.last, recovered.missing), (8, Some((4, 8))));
    assert_eq!(log.record(&entry()).unwrap(), 9);
    drop(log);
    for _ in 0..2 {
        let found = fixture.verify();
        assert_eq!(
            (first(&found).kind, found.broken),
            (BreakKind::Missing { from: 4, to: 8 }, 1)
        );
        // It stays on record, and what comes later is still checked.
        fixture.write(3);
    }
    let text = fs::read_to_string(&fixture.path).unwrap();
    fs::write(&fixture.path, text.replace("\"seq\":11,", "\"seq\":12,")).unwrap();
    assert_eq!(fixture.verify().broken, 2);
}

#[test]
fn a_forged_number_does_not_hide_a_cut_end() {
    let fixture = Fixture::new();
    fixture.write(10);
    let lines = split(&fs::read(&fixture.path).unwrap());
    let forged = String::from_utf8(lines[9].clone())
        .unwrap()
        .replace("\"seq\":10,", "\"seq\":200,");
    fs::write(
        &fixture.path,
        [&lines[..5].concat()[..], forged.as_bytes()].concat(),
    )
    .unwrap();
    let found = fixture.verify();
    let kinds: Vec<BreakKind> = found.breaks.iter().map(|place| place.kind).collect();
    let cut = BreakKind::CutEnd { from: 6, to: 10 };
    assert!(found.last == 5 && kinds.contains(&cut), "{found:?}");
}

#[test]
fn another_history_under_the_same_key_is_found() {
    let fixture = Fixture::new();
    fixture.write(3);
    let old = fs::read(&fixture.path).unwrap();
    fixture.write(1);
    let anchor = fixture.anchor().unwrap();
    // As if the anchor had been taken away, the log shortened and written on, and the anchor put back.
    fs::write(&fixture.path, &old).unwrap();
    let away = Fixture {
        anchors: Arc::default(),
        _temp: None,
        ..Fixture::at(&fixture.path)
    };
    let log = away.open();
    for _ in 0..3 {
        log.record(&AuditEntry {
            status: 200,
            ..entry()
        })
        .unwrap();
    }
    drop(log);
    let found = verify(&fixture.path, &fixture.key(), Some(anchor), |_| {
        Ok::<(), AuditError>(())
    });
    let found = found.unwrap();
    assert_eq!(
        (first(&found).kind, first(&found).line),
        (BreakKind::OtherHistory { seq: 4 }, 4)
    );
}

#[test]
fn an_end_that_was_changed_is_kept_and_told() {
    let fixture = Fixture::new();
    fixture.write(5);
    let text = fs::read_to_string(&fixture.path).unwrap();
    let at = text.rfind("401").unwrap();
    let changed = format!("{}200{}", &text[..at], &text[at + 3..]);
    fs::write(&fixture.path, &changed).unwrap();
    let (log, recovered) = fixture.try_open().unwrap();
    assert_eq!(
        (recovered.last, recovered.missing, recovered.torn),
        (5, Some((5, 5)), None)
    );
    log.record(&entry()).unwrap();
    drop(log);
    assert!(
        fs::read_to_string(&fixture.path)
            .unwrap()
            .starts_with(&changed)
    );
    let found = fixture.verify();
    assert_eq!(
        (first(&found).line, first(&found).kind),
        (5, BreakKind::Changed { seq: 5 })
    );
}

#[test]
fn a_forged_anchor_is_refused() {
    let fixture = Fixture::new();
    fixture.write(2);
    let key = fixture.key();
    let text = fixture.anchors.load(key.id()).unwrap().remove(0);
    fixture
        .anchors
        .store(key.id(), &text.replacen(" 2 ", " 1 ", 1))
        .unwrap();
    let refused = fixture.try_open().unwrap_err();
    assert!(
        matches!(refused, AuditError::AnchorFault(AnchorFault::Forged)),
        "{refused}"
    );
}

#[test]
fn lines_of_any_length_are_read_in_bounded_memory() {
    let fixture = Fixture::new();
    fixture.write(2);
    let mut lines = split(&fs::read(&fixture.path).unwrap());
    lines.insert(1, [&[b'x'; 4 << 20][..], b"\n"].concat());
    fs::write(&fixture.path, lines.concat()).unwrap();
    let mut longest = 0;
    let found = verify(&fixture.path, &fixture.key(), fixture.anchor(), |step| {
        longest = longest.max(step.line.len());
        Ok::<(), AuditError>(())
    });
    let found = found.unwrap();
    assert_eq!((first(&found).line, found.broken, found.entries), (2, 1, 2));
    assert!(longest <= 16 << 10, "{longest}");
}

/// One change, drawn by `rng`; returns the first line that differs from the original, from 0.
fn change(lines: &mut Vec<Vec<u8>>, rng: &mut fastrand::Rng) -> usize {
    let count = lines.len();
    let at = rng.usize(..count);
    match rng.u8(..8) {
        // A bit.
        0 | 1 => {
            let byte = rng.usize(..lines[at].len() - 1);
            let bit = 1 << rng.u8(..8);
            lines[at][byte] ^= bit;
            // A newline in the middle makes two lines of one; the first of them differs.
            at
        }
        // Bytes.
        2 => {
            let from = rng.usize(..lines[at].len() - 8);
            let fresh: Vec<u8> = (0..8).map(|_| rng.u8(b'0'..=b'9')).collect();
            if lines[at][from..from + 8] == fresh[..] {
                return change(lines, rng);
            }
            lines[at].splice(from..from + 8, fresh);
            at
        }
        3 => {
            lines.remove(at);
            at
        }
        4 => {
            let line = lines[rng.usize(..count)].clone();
            if lines[at] == line {
                // The same line once more: what differs is the line behind it.
                lines.insert(at, line);
                return at + 1;
            }
            lines.insert(at, line);
            at
        }
        5 => {
            let other = rng.usize(..count);
            if other == at {
                return change(lines, rng);
            }
            lines.swap(at, other);
            at.min(other)
        }
        6 => {
            lines.truncate(at);
            at
        }
        _ => {
            // Within a line, from which it goes on with another.
            let other = rng.usize(..count);
            let from = rng.usize(1..lines[at].len() - 1);
            let rest = lines[other].get(from..).unwrap_or(b"\n").to_vec();
            let before = lines[at].clone();
            lines[at].truncate(from);
            lines[at].extend(rest);
            if lines[at] == before {
                return change(lines, rng);
            }
            at
        }
    }
}

/// How many changes are tried; a soak sets `NIMBUS_AUDIT_EDITS`.
fn edits() -> usize {
    let wanted = std::env::var("NIMBUS_AUDIT_EDITS").ok();
    wanted.map_or(1_000, |count| count.parse().unwrap())
}

#[test]
fn a_thousand_seeded_edits_are_all_found_with_their_position() {
    let mut fixture = Fixture::new();
    fixture.options.segment_bytes = 6_000;
    let log = fixture.open();
    for index in 0..60_u16 {
        let path = format!("/api/tenants/t{}", index % 7);
        log.record(&AuditEntry {
            path: &path,
            status: 200 + index,
            ..entry()
        })
        .unwrap();
    }
    drop(log);
    let names: Vec<String> = {
        let mut names = fixture.names();
        // The segment in use comes last.
        names.retain(|name| name != "access.jsonl");
        names.push("access.jsonl".to_owned());
        names
    };
    assert!(names.len() > 3);
    let (key, anchor) = (fixture.key(), fixture.anchor());
    let seed = 20_261_125;
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut found = 0;
    for round in 0..edits() {
        let name = &names[rng.usize(..names.len())];
        let path = fixture.dir().join(name);
        let original = fs::read(&path).unwrap();
        let mut lines = split(&original);
        let at = change(&mut lines, &mut rng);
        fs::write(&path, lines.concat()).unwrap();
        let check = verify(&fixture.path, &key, anchor, |_| Ok::<(), AuditError>(())).unwrap();
        let place = check.breaks.first();
        let place = place
            .unwrap_or_else(|| panic!("seed {seed} round {round} {name} line {at}: not found"));
        // Lines missing at the end of a full segment are missed where the next one begins.
        let next = names.iter().skip_while(|n| *n != name).nth(1);
        let told = place.file.file_name().unwrap().to_str().unwrap();
        let here = told == name && place.line == at as u64 + 1;
        let behind = at >= lines.len() && place.line == 1 && next.is_some_and(|next| next == told);
        assert!(
            here || behind,
            "seed {seed} round {round}: {name} line {}: {place}",
            at + 1
        );
        found += 1;
        fs::write(&path, original).unwrap();
    }
    println!("{found} edits of {} found with their position", edits());
    assert!(fixture.verify().is_intact());
}
