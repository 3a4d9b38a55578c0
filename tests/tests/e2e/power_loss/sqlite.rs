//! The recorder and the model, tried on a database whose promises are known: SQLite's own shell
//! keeps every acknowledged row at `synchronous=FULL`, loses a suffix at `NORMAL`, and anything
//! may happen at `OFF` or on a disk that ignores syncs.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use nimbus_e2e::Rng;
use nimbus_e2e::power::disk::Deaf;
use nimbus_e2e::power::{Disk, Event, Image, Recorder, Survival, log};

use super::{ANSWERED, ASKED, in_parallel, scratch};

const SEED: u64 = 0x6e69_6d62_7573_0301;
const ROWS: u64 = 60;
const CUTS: usize = 150;

/// What was seen after the power cuts.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    /// Cuts after which acknowledged rows were missing at the end.
    shorter: usize,
    /// Cuts after which rows were missing in the middle, or nothing could be read.
    damaged: usize,
}

/// Inserts rows one by one and returns the log.
fn record(synchronous: &str) -> Vec<u8> {
    let dir = scratch();
    let root = dir.path().join("disk");
    std::fs::create_dir(&root).unwrap();
    let recorder = Recorder::new(&root, &dir.path().join("log"));
    let mut command = Command::new("sqlite3");
    command.arg("-batch").arg(root.join("a.db"));
    command.envs(recorder.environment());
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut shell = command.spawn().expect("sqlite3 runs");
    let mut input = shell.stdin.take().unwrap();
    let mut lines = BufReader::new(shell.stdout.take().unwrap()).lines();
    let mut ask = |sql: &str| -> String {
        writeln!(input, "{sql}\nSELECT 'end';").unwrap();
        let answer = lines.by_ref().map(Result::unwrap);
        answer.take_while(|line| line != "end").collect()
    };
    assert_eq!(ask("PRAGMA journal_mode=WAL;"), "wal");
    ask("PRAGMA synchronous=FULL;");
    ask("CREATE TABLE t(n INTEGER PRIMARY KEY, v);");
    assert_eq!(ask("PRAGMA wal_checkpoint(TRUNCATE);"), "0|0|0");
    ask(&format!("PRAGMA synchronous={synchronous};"));
    for n in 1..=ROWS {
        recorder.mark(ASKED, n);
        let error = ask(&format!("INSERT INTO t VALUES({n}, randomblob(3000));"));
        assert_eq!(error, "");
        recorder.mark(ANSWERED, n);
        if n % 25 == 0 {
            ask("PRAGMA wal_checkpoint(PASSIVE);");
        }
    }
    drop(input);
    assert!(shell.wait().unwrap().success());
    let bytes = recorder.read();
    let mut disk = Disk::new(&Image::default(), Deaf::Never, 0);
    for record in log::parse(&bytes) {
        disk.follow(&record);
    }
    let difference = disk.visible_image().difference(&Image::read(&root));
    assert_eq!(difference, None, "something escaped the recorder");
    bytes
}

/// Cuts the power at seeded points and looks at what SQLite then reads.
fn cut(bytes: &[u8], deaf: Deaf) -> Seen {
    let records = log::parse(bytes);
    let mut rng = Rng::new(SEED);
    // From the first row on: the table was made on an honest disk.
    let first = records
        .iter()
        .position(|r| matches!(r.event, Event::Mark { .. }));
    let range = (first.unwrap() as u64, records.len() as u64);
    let mut points: Vec<u64> = (0..CUTS).map(|_| rng.between(range.0, range.1)).collect();
    points.sort_unstable();
    let mut disk = Disk::new(&Image::default(), Deaf::Never, SEED);
    let (mut at, mut asked, mut answered) = (0, 0, 0);
    let images: Vec<(Image, u64, u64)> = points
        .into_iter()
        .map(|point| {
            while at < point {
                if at == range.0 {
                    disk.set_deaf(deaf);
                }
                let record = &records[usize::try_from(at).unwrap()];
                match record.event {
                    Event::Mark {
                        kind: ASKED,
                        number,
                    } => asked = number,
                    Event::Mark { number, .. } => answered = number,
                    _ => disk.follow(record),
                }
                at += 1;
            }
            let image = disk.cut(Survival::pick(&mut rng), &mut rng);
            (image, asked, answered)
        })
        .collect();
    let outcomes = in_parallel(images.into_iter(), |_, (image, asked, answered)| {
        let rows = read(&image);
        let whole = rows.as_ref().is_some_and(|rows| {
            let expected: Vec<u64> = (1..=rows.len() as u64).collect();
            *rows == expected && rows.len() as u64 <= asked
        });
        (
            whole,
            rows.is_some_and(|rows| rows.len() as u64 >= answered),
        )
    });
    Seen {
        shorter: outcomes.iter().filter(|o| **o == (true, false)).count(),
        damaged: outcomes.iter().filter(|(whole, _)| !whole).count(),
    }
}

/// The rows that are left; `None` when the database is damaged.
fn read(image: &Image) -> Option<Vec<u64>> {
    let dir = scratch();
    image.write(&dir.path().join("disk"));
    let mut command = Command::new("sqlite3");
    command.arg("-batch").arg(dir.path().join("disk/a.db"));
    command.arg("PRAGMA integrity_check; SELECT n FROM t ORDER BY n;");
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines = text.lines();
    if !output.status.success() || lines.next() != Some("ok") {
        return None;
    }
    Some(lines.map(|line| line.parse().unwrap()).collect())
}

#[test]
fn sqlite_itself_keeps_loses_and_breaks_as_it_says() {
    let full = record("FULL");
    assert_eq!(cut(&full, Deaf::Never), Seen::default(), "FULL");
    let normal = cut(&record("NORMAL"), Deaf::Never);
    assert!(normal.shorter > 0 && normal.damaged == 0, "{normal:?}");
    let off = cut(&record("OFF"), Deaf::Never);
    assert!(off.shorter > 0 && off.damaged > 0, "{off:?}");
    let deaf = cut(&full, Deaf::ToAll);
    assert!(deaf.shorter > 0 && deaf.damaged > 0, "{deaf:?}");
    let no_wal = cut(&full, Deaf::ToFiles("-wal"));
    assert!(no_wal.shorter > 0, "{no_wal:?}");
    println!(
        "seed {SEED:#x}, {CUTS} cuts of {ROWS} commits each: FULL nothing lost; NORMAL {normal:?}; \
         OFF {off:?}; deaf disk {deaf:?}; deaf to the log {no_wal:?}"
    );
}
