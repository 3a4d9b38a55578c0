//! Tests of the encrypted pages: what is read, refused and synced, and page 0 at every crash.

use nimbus_crypto::{Dek, FileId};

use super::*;
use tape::{Random, SECTOR, Tape};

mod power;
pub(crate) mod tape;

pub(crate) fn cipher(key: u8) -> PageCipher {
    PageCipher::new(&Dek::from_bytes(&[key; 32]), FileId::from_bytes([9; 16]))
}

pub(crate) fn over(tape: &Tape) -> EncryptedPages<Tape> {
    EncryptedPages::with(tape.clone(), vec![cipher(1)])
}

/// A file of eight pages of which all are written.
fn filled(tape: &Tape) -> EncryptedPages<Tape> {
    let pages = over(tape);
    pages.set_len(8 * PAGE).unwrap();
    for page in 0..8_u8 {
        pages
            .write(u64::from(page) * PAGE, &[page; PAGE_BYTES])
            .unwrap();
    }
    pages.sync_data().unwrap();
    pages
}

fn read<B: StorageBackend>(pages: &EncryptedPages<B>, at: u64, len: usize) -> io::Result<Vec<u8>> {
    let mut out = vec![0xee; len];
    pages.read(at, &mut out).map(|()| out)
}

fn is_damage<T: std::fmt::Debug>(result: io::Result<T>) -> bool {
    matches!(result, Err(e) if e.kind() == io::ErrorKind::InvalidData)
}

#[test]
fn stretches_of_any_shape_are_read_and_written() {
    let tape = Tape::default();
    let pages = filled(&tape);
    assert_eq!(pages.len().unwrap(), 8 * PAGE);
    let mut model: Vec<u8> = (0..8).flat_map(|n| [n; PAGE_BYTES]).collect();
    let mut random = Random(1);
    for round in 0..200_u8 {
        let at = random.below(model.len());
        let len = random.below(model.len() - at + 1);
        let (at, len) = match round % 3 {
            0 => (at, len),
            1 => (at / PAGE_BYTES * PAGE_BYTES, len / PAGE_BYTES * PAGE_BYTES),
            _ => (random.below(100), random.below(320)),
        };
        model[at..at + len].fill(round);
        pages.write(at as u64, &vec![round; len]).unwrap();
        let from = random.below(model.len());
        let len = random.below(model.len() - from + 1);
        assert_eq!(
            read(&pages, from as u64, len).unwrap(),
            model[from..from + len]
        );
    }
    pages.sync_data().unwrap();
    pages.close().unwrap();
    assert_eq!(read(&over(&tape), 0, model.len()).unwrap(), model);
    let end = pages.len().unwrap();
    for (at, len) in [
        (end, 1),
        (end - 1, 2),
        (end - PAGE, 2 * PAGE_BYTES),
        (1 << 60, 1),
    ] {
        assert!(read(&pages, at, len).is_err(), "{at}");
        assert!(pages.write(at, &vec![0; len]).is_err(), "{at}");
    }
}

/// Pages side by side are one call.
#[test]
fn runs_take_one_call() {
    let tape = Tape::default();
    let pages = filled(&tape);
    let before = tape.steps();
    pages.write(PAGE, &[7; 6 * PAGE_BYTES]).unwrap();
    assert_eq!(tape.steps() - before, 1);
}

#[test]
fn lengths_are_those_of_whole_pages() {
    let tape = Tape::default();
    let pages = over(&tape);
    assert_eq!(pages.len().unwrap(), 0);
    for len in [0, 1, 4095, 4097] {
        let e = pages.set_len(len).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::InvalidInput, "{len}");
    }
    for count in [1, 2, 100] {
        pages.set_len(count * PAGE).unwrap();
        assert_eq!(pages.len().unwrap(), count * PAGE);
        assert_eq!(tape.now().len() as u64, 2 * 4132 + (count - 1) * 4124);
    }
    for len in [1, 4132, 8263, 8265, 8264 + 4123, 8264 + 4125] {
        let pages = over(&Tape::holding(vec![0; len]));
        assert!(is_damage(pages.len()), "{len}");
    }
}

#[test]
fn pages_never_written_are_refused() {
    let tape = Tape::default();
    let pages = filled(&tape);
    pages.set_len(10 * PAGE).unwrap();
    assert!(is_damage(read(&pages, 8 * PAGE, PAGE_BYTES)));
    // A part of a page that does not authenticate is not written either.
    assert!(is_damage(pages.write(9 * PAGE + 5, b"x")));
    assert!(pages.is_hole(9).unwrap() && !pages.is_hole(7).unwrap());
    pages.write(9 * PAGE, &[1; PAGE_BYTES]).unwrap();
    assert_eq!(read(&pages, 9 * PAGE, 3).unwrap(), [1; 3]);
    // Shrinking forgets.
    pages.set_len(9 * PAGE).unwrap();
    pages.set_len(10 * PAGE).unwrap();
    assert!(is_damage(read(&pages, 9 * PAGE, PAGE_BYTES)));
    // Page 0 of zeros is none.
    let empty = over(&Tape::holding(vec![0; 8264]));
    assert!(is_damage(read(&empty, 0, 320)));
}

#[test]
fn another_key_and_plain_text_are_told() {
    let tape = Tape::default();
    filled(&tape);
    let other =
        |keys: &[u8]| EncryptedPages::with(tape.clone(), keys.iter().map(|k| cipher(*k)).collect());
    assert!(is_damage(read(&other(&[2]), 0, 320)));
    // Those of a rotation that was interrupted.
    for (keys, fits) in [([1, 2], 0), ([2, 1], 1)] {
        let pages = other(&keys);
        assert_eq!(pages.fits().unwrap(), fits);
        assert_eq!(read(&pages, 0, 8 * PAGE_BYTES).unwrap()[5 * PAGE_BYTES], 5);
    }
    let mut plain = vec![0; 8264 + 4124];
    plain[..9].copy_from_slice(REDB_MAGIC);
    let e = read(&over(&Tape::holding(plain)), 0, 320).unwrap_err();
    assert!(e.to_string().contains("plain text"), "{e}");
}

#[test]
fn swapped_slots_and_copies_are_refused() {
    let tape = Tape::default();
    filled(&tape);
    let good = tape.now();
    let slot = |page: usize| 8264 + (page - 1) * 4124;
    let mut bytes = good.clone();
    bytes.copy_within(slot(3)..slot(4), slot(2));
    let pages = over(&Tape::holding(bytes));
    assert!(is_damage(read(&pages, 2 * PAGE, 1)));
    assert!(read(&pages, 3 * PAGE, 1).is_ok());
    let mut bytes = good;
    bytes.copy_within(0..4132, 4132);
    bytes[..4132].fill(0);
    assert!(is_damage(read(&over(&Tape::holding(bytes)), 0, 1)));
}

/// At rest both copies have the newest page 0, so one that is damaged is no step back.
#[test]
fn damage_to_one_copy_is_no_step_back() {
    for (copy, end) in [
        (0, "killed"),
        (4132, "killed"),
        (0, "closed"),
        (4132, "closed"),
    ] {
        let tape = Tape::default();
        let pages = filled(&tape);
        for round in 0..5 {
            pages.write(0, &[100 + round; 320]).unwrap();
            pages.sync_data().unwrap();
        }
        if end == "closed" {
            let syncs = tape.syncs();
            pages.close().unwrap();
            assert_eq!(tape.syncs(), syncs + 1);
        }
        tape.flip(copy + 1000, 1);
        let pages = over(&tape);
        assert_eq!(read(&pages, 0, 2).unwrap(), [104; 2], "{copy} {end}");
        // And it heals.
        pages.write(0, &[105]).unwrap();
        pages.sync_data().unwrap();
        tape.flip(4132 - copy + 1000, 1);
        assert_eq!(
            read(&over(&tape), 0, 2).unwrap(),
            [105, 104],
            "{copy} {end}"
        );
    }
}

/// Every image that a power loss can leave has a page 0 that was synced or one that was written since,
/// and it goes on from there: through a second power loss while the first one is recovered from.
#[test]
fn page_0_survives_every_power_loss() {
    let mut random = Random(42);
    let mut images = 0;
    for round in 0..40 {
        let tape = Tape::default();
        let pages = over(&tape);
        pages.set_len(2 * PAGE).unwrap();
        // The value that was synced last, and those written since, by number of steps.
        let mut states = Vec::new();
        let (mut synced, mut since) = (None, Vec::new());
        for value in 1..12_u8 {
            for _ in 0..=random.below(2) {
                pages.write(0, &[value; 320]).unwrap();
                since.push(value);
                states.push((tape.steps(), synced, since.clone()));
            }
            if random.below(3) > 0 {
                pages.sync_data().unwrap();
                (synced, since) = (Some(value), vec![]);
                states.push((tape.steps(), synced, since.clone()));
            }
        }
        for (steps, synced, since) in &states {
            let Some(synced) = synced else { continue };
            for keep in 0..3 {
                let image = Tape::holding(tape.image(*steps, &mut random, keep));
                images += 1;
                let found = value_of(&image, round);
                assert!(
                    found == *synced || since.contains(&found),
                    "{found} {synced} {since:?}"
                );
                goes_on(&image, found, &mut random);
            }
        }
    }
    assert!(images > 1000, "{images}");
}

fn value_of(tape: &Tape, round: usize) -> u8 {
    let found = read(&over(tape), 0, 320).unwrap_or_else(|e| panic!("round {round}: {e}"));
    assert!(found.iter().all(|byte| *byte == found[0]));
    found[0]
}

/// Writes to what a power loss left, and loses power again.
fn goes_on(tape: &Tape, found: u8, random: &mut Random) {
    let pages = over(tape);
    let began = tape.steps();
    // Another page comes first: from now on nothing but `found` or newer may come back.
    pages.write(PAGE, &[1; PAGE_BYTES]).unwrap();
    let settled = tape.steps();
    pages.write(0, &[200; 320]).unwrap();
    pages.sync_data().unwrap();
    let synced = tape.steps();
    for steps in began..=synced {
        let image = Tape::holding(tape.image(steps, random, 1));
        let value = value_of(&image, 0);
        if steps == synced {
            assert_eq!(value, 200);
        } else if steps >= settled {
            assert!(value == found || value == 200, "{value}");
        }
    }
}

/// After a sync that failed, what it covered can be read but is not on disk, and no later sync writes
/// it. Opened again, the file must not answer from it before it is.
#[test]
fn a_failed_sync_is_not_believed() {
    let mut random = Random(7);
    for more in 0..4 {
        let tape = Tape::default();
        let pages = filled(&tape);
        tape.fail_sync_after(more);
        let mut value = 0;
        while pages
            .write(0, &[value; 320])
            .and_then(|()| pages.sync_data())
            .is_ok()
        {
            value += 1;
            assert!(value < 10);
        }
        // Nothing works any more.
        let steps = tape.steps();
        assert!(pages.write(0, &[99; 320]).is_err());
        assert!(pages.write(PAGE, &[99; PAGE_BYTES]).is_err());
        assert!(pages.set_len(PAGE).is_err() && pages.sync_data().is_err());
        pages.close().unwrap();
        assert_eq!(tape.steps(), steps);

        let pages = over(&tape);
        let found = read(&pages, 0, 1).unwrap()[0];
        assert_eq!(found, value, "the cache has it");
        // The first write makes sure of it.
        pages.write(PAGE, &[1; PAGE_BYTES]).unwrap();
        for _ in 0..50 {
            let image = Tape::holding(tape.image(tape.steps(), &mut random, 1));
            assert_eq!(value_of(&image, more), value);
        }
        goes_on(&tape, value, &mut random);
    }
}

#[test]
fn a_write_that_fails_leaves_page_0() {
    for more in 0..3 {
        let tape = Tape::default();
        let pages = filled(&tape);
        pages.write(0, &[50; 320]).unwrap();
        pages.sync_data().unwrap();
        tape.fail_write_after(more);
        let mut value = 50;
        loop {
            match pages.write(0, &[value + 1; 320]) {
                Ok(()) => value += 1,
                Err(e) => break assert_eq!(e.kind(), io::ErrorKind::StorageFull),
            }
        }
        assert_eq!(value_of(&tape, more), value);
    }
}

#[test]
fn nothing_of_a_page_is_in_the_file() {
    let tape = Tape::default();
    let pages = over(&tape);
    pages.set_len(3 * PAGE).unwrap();
    let text = b"a canary that nobody may read";
    let page: Vec<u8> = text.iter().copied().cycle().take(3 * PAGE_BYTES).collect();
    pages.write(0, &page).unwrap();
    pages.sync_data().unwrap();
    let bytes = tape.now();
    assert!(!bytes.windows(8).any(|window| window == &text[..8]));
    assert!(bytes.len() > SECTOR);
    assert_eq!(format!("{pages:?}"), "EncryptedPages { inner: Tape, .. }");
}

#[test]
fn a_scratch_changes_nothing_below() {
    let tape = Tape::default();
    filled(&tape);
    let (before, steps) = (tape.now(), tape.steps());
    let scratch = Scratch::new(over(&tape));
    let mut model: Vec<u8> = (0..8).flat_map(|n| [n; PAGE_BYTES]).collect();
    let mut random = Random(3);
    for round in 0..300_u16 {
        if round % 20 == 19 {
            let len = (1 + random.below(12)) * PAGE_BYTES;
            scratch.set_len(len as u64).unwrap();
            model.resize(len, 0);
        }
        let at = random.below(model.len());
        let len = random.below((model.len() - at).min(9000) + 1);
        let value = u8::try_from(round % 251).unwrap();
        model[at..at + len].fill(value);
        scratch.write(at as u64, &vec![value; len]).unwrap();
        let mut out = vec![0xee; model.len()];
        scratch.read(0, &mut out).unwrap();
        assert_eq!(out, model);
        assert_eq!(scratch.len().unwrap(), model.len() as u64);
        assert!(scratch.read(model.len() as u64, &mut [0]).is_err());
    }
    scratch.sync_data().unwrap();
    assert_eq!((tape.now(), tape.steps()), (before, steps));
}
