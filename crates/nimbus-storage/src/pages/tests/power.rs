//! redb on plain and on encrypted pages when the power fails: every acknowledged commit is there, and
//! redb reads no page that it did not write.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};

use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::*;

const TABLE: TableDefinition<'static, u32, &[u8]> = TableDefinition::new("t");
/// The number of the newest commit is the row of this key.
const NEWEST: u32 = u32::MAX;

type Rows = BTreeMap<u32, Vec<u8>>;

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    // Small, so that pages are written in the middle of transactions.
    builder.set_cache_size(256 << 10);
    builder
}

fn commit(
    db: &Database,
    number: usize,
    rows: &mut Rows,
    random: &mut Random,
) -> Result<(), redb::Error> {
    let mut txn = db.begin_write()?;
    txn.set_quick_repair(true);
    {
        let mut table = txn.open_table(TABLE)?;
        for _ in 0..1 + random.below(4) {
            let key = u32::try_from(random.below(60)).unwrap();
            if random.below(4) == 0 {
                table.remove(key)?;
                rows.remove(&key);
                continue;
            }
            let len = [10, 500, 3000, 9000, 70_000][random.below(5)];
            let value = vec![u8::try_from(number % 251).unwrap(); len];
            table.insert(key, value.as_slice())?;
            rows.insert(key, value);
        }
        let value = (number as u64).to_be_bytes().to_vec();
        table.insert(NEWEST, value.as_slice())?;
        rows.insert(NEWEST, value);
    }
    txn.commit()?;
    Ok(())
}

fn contents(db: &Database) -> Result<Rows, redb::Error> {
    let table = db.begin_read()?.open_table(TABLE)?;
    table
        .iter()?
        .map(|row| {
            row.map(|(k, v)| (k.value(), v.value().to_vec()))
                .map_err(Into::into)
        })
        .collect()
}

/// What the commits up to each number of steps left.
struct Acknowledged(Vec<(usize, Rows)>);

impl Acknowledged {
    /// That these rows are those of the newest commit acknowledged by then, or of the one after it.
    fn check(&self, steps: usize, rows: &Rows) {
        let newest = self.0.iter().rposition(|(done, _)| *done <= steps).unwrap();
        let next = self.0.get(newest + 1).map(|(_, rows)| rows);
        let found = rows.get(&NEWEST);
        assert!(
            *rows == self.0[newest].1 || Some(rows) == next,
            "lost: found commit {found:?} after step {steps}, acknowledged {newest}",
        );
    }
}

fn survives<B: StorageBackend>(seed: u64, wrap: fn(&Tape) -> B) -> usize {
    let mut random = Random(seed);
    let tape = Tape::default();
    let mut rows = Rows::new();
    let mut done = Vec::new();
    for _life in 0..3 {
        let db = builder().create_with_backend(wrap(&tape)).unwrap();
        for _ in 0..8 {
            commit(&db, done.len(), &mut rows, &mut random).unwrap();
            done.push((tape.steps(), rows.clone()));
        }
        // Closing shrinks the file, and changes no row.
        db.close().unwrap();
        done.push((tape.steps(), rows.clone()));
    }
    let done = Acknowledged(done);
    let mut images = 0;
    for steps in done.0[0].0..=tape.steps() {
        for keep in [0, 1, 2] {
            // The middle one is the one with variety.
            if keep != 1 && random.below(3) > 0 {
                continue;
            }
            let image = Tape::holding(tape.image(steps, &mut random, keep));
            images += 1;
            let db = builder().create_with_backend(wrap(&image));
            let db = db.unwrap_or_else(|e| panic!("step {steps}, keep {keep}: {e}"));
            let mut found = contents(&db).unwrap_or_else(|e| panic!("step {steps}: {e}"));
            done.check(steps, &found);
            if images % 10 == 0 {
                // And again, while it goes on from there.
                let began = image.steps();
                let before = found.clone();
                commit(&db, 1000, &mut found, &mut random).unwrap();
                let again = Acknowledged(vec![(began, before), (image.steps(), found)]);
                for _ in 0..5 {
                    let steps = began + random.below(image.steps() - began + 1);
                    let second = Tape::holding(image.image(steps, &mut random, 1));
                    images += 1;
                    let db = builder().create_with_backend(wrap(&second)).unwrap();
                    again.check(steps, &contents(&db).unwrap());
                }
            }
        }
    }
    images
}

#[test]
fn encrypted_redb_survives_power_loss() {
    let images = survives(1, over);
    assert!(images >= 1000, "{images}");
}

#[test]
fn plain_redb_survives_power_loss() {
    let images = survives(1, Tape::clone);
    assert!(images >= 1000, "{images}");
}

/// Something that fails at any time: the database opens again with everything acknowledged before,
/// and loses nothing of it when the power fails later.
fn survives_failures(random: &mut Random, fails: impl Fn(&Tape)) {
    let tape = Tape::default();
    let mut rows = Rows::new();
    let db = builder().create_with_backend(over(&tape)).unwrap();
    commit(&db, 0, &mut rows, random).unwrap();
    fails(&tape);
    let mut before = rows.clone();
    let mut number = 0;
    loop {
        number += 1;
        before.clone_from(&rows);
        if commit(&db, number, &mut rows, random).is_err() {
            break;
        }
    }
    drop(db);
    tape.mend();
    let db = builder().create_with_backend(over(&tape)).unwrap();
    let found = contents(&db).unwrap();
    assert!(found == before || found == rows);
    // What was shown now is on disk.
    for _ in 0..5 {
        let image = Tape::holding(tape.image(tape.steps(), random, 1));
        let db = builder().create_with_backend(over(&image)).unwrap();
        assert_eq!(contents(&db).unwrap(), found);
    }
    rows = found;
    commit(&db, 100, &mut rows, random).unwrap();
    let image = Tape::holding(tape.image(tape.steps(), random, 0));
    let db = builder().create_with_backend(over(&image)).unwrap();
    assert_eq!(contents(&db).unwrap(), rows);
}

#[test]
fn encrypted_redb_survives_failed_syncs() {
    for fails in 0..30 {
        survives_failures(&mut Random(5 + fails as u64), |tape| {
            tape.fail_sync_after(fails)
        });
    }
}

/// As on a full disk.
#[test]
fn encrypted_redb_survives_failed_writes() {
    for fails in (0..120).step_by(3) {
        survives_failures(&mut Random(7 + fails as u64), |tape| {
            tape.fail_write_after(fails)
        });
    }
}

/// Fails when a page is read that was not written since the file was there.
#[derive(Clone, Debug)]
struct Strict(Tape, Arc<Mutex<HashSet<u64>>>);

impl Strict {
    fn pages(at: u64, len: usize) -> std::ops::Range<u64> {
        at / PAGE..(at + len as u64).div_ceil(PAGE)
    }
}

impl StorageBackend for Strict {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, at: u64, out: &mut [u8]) -> io::Result<()> {
        let written = self.1.lock().unwrap();
        for page in Strict::pages(at, out.len()) {
            assert!(written.contains(&page), "page {page} was never written");
        }
        self.0.read(at, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.1.lock().unwrap().retain(|page| page * PAGE < len);
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, at: u64, data: &[u8]) -> io::Result<()> {
        self.1.lock().unwrap().extend(Strict::pages(at, data.len()));
        self.0.write(at, data)
    }
}

/// This is what allows a slot of zeros to be an error.
#[test]
fn redb_reads_no_page_that_it_did_not_write() {
    for seed in 0..6 {
        let mut random = Random(seed);
        let disk = Strict(Tape::default(), Arc::default());
        let mut rows = Rows::new();
        for life in 0..6 {
            let db = builder().create_with_backend(disk.clone()).unwrap();
            for number in 0..15 {
                commit(&db, number, &mut rows, &mut random).unwrap();
                let txn = db.begin_write().unwrap();
                txn.open_table(TABLE)
                    .unwrap()
                    .insert(1, &[1; 50_000][..])
                    .unwrap();
                txn.abort().unwrap();
            }
            assert_eq!(contents(&db).unwrap(), rows);
            match life % 3 {
                0 => drop(db),
                1 => db.close().unwrap(),
                // As if it was killed.
                _ => {
                    let killed = Strict(
                        Tape::holding(disk.0.now()),
                        Arc::new(Mutex::new(disk.1.lock().unwrap().clone())),
                    );
                    let db = builder().create_with_backend(killed.clone()).unwrap();
                    assert_eq!(contents(&db).unwrap(), rows);
                    db.close().unwrap();
                    let checked = builder()
                        .set_check_integrity_on_open(true)
                        .create_with_backend(killed);
                    assert_eq!(contents(&checked.unwrap()).unwrap(), rows);
                }
            }
        }
    }
}
