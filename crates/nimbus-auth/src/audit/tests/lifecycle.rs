//! The life of a log: opening again, crashes, full segments, threads, the key.

use std::collections::BTreeSet;
use std::io::Write as _;

use super::*;

fn cut(path: &Path, bytes: u64) {
    let file = fs::File::options().write(true).open(path).unwrap();
    let len = file.metadata().unwrap().len();
    file.set_len(len - bytes).unwrap();
}

fn numbers(path: &Path) -> Vec<u64> {
    let found = lines(path);
    found
        .iter()
        .map(|line| line["seq"].as_u64().unwrap())
        .collect()
}

#[test]
fn opening_again_goes_on_with_the_chain() {
    let fixture = Fixture::new();
    for count in [2, 0, 1] {
        fixture.write(count);
    }
    assert_eq!(numbers(&fixture.path), [1, 2, 3]);
    let found = fixture.verify();
    assert!(found.is_intact(), "{found:?}");
    assert_eq!(
        (
            found.entries,
            found.first,
            found.last,
            found.anchor,
            found.torn
        ),
        (3, Some(1), 3, Some(3), false)
    );
    assert_eq!(found.bytes, fs::metadata(&fixture.path).unwrap().len());
}

#[test]
fn a_log_that_was_never_written_to_is_intact() {
    let fixture = Fixture::new();
    fixture.write(0);
    let found = fixture.verify();
    assert!(
        found.is_intact() && found.entries == 0 && found.first.is_none(),
        "{found:?}"
    );
    fs::remove_dir_all(fixture.dir()).unwrap();
    assert!(fixture.verify().is_intact());
}

/// As after a crash between two anchors: the end is newer than the anchor.
#[test]
fn a_line_torn_by_a_crash_is_moved_and_spoils_nothing() {
    let fixture = Fixture::new();
    fixture.write(2);
    let known = fixture.anchor().unwrap().encode(&fixture.key());
    fixture.write(1);
    fixture.anchors.store(fixture.key().id(), &known).unwrap();
    cut(&fixture.path, 10);
    let torn = fixture.verify();
    assert!(torn.is_intact() && torn.torn && torn.last == 2, "{torn:?}");
    let (log, recovered) = fixture.try_open().unwrap();
    assert_eq!((recovered.last, recovered.missing), (2, None));
    let kept = fs::read_to_string(recovered.torn.unwrap()).unwrap();
    assert!(
        kept.starts_with("{\"ts\"") && kept.contains("\"seq\":3"),
        "{kept}"
    );
    assert_eq!(log.record(&entry()).unwrap(), 3);
    drop(log);
    assert_eq!(numbers(&fixture.path), [1, 2, 3]);
    assert!(fixture.verify().is_intact());
}

#[test]
fn only_a_torn_line_is_a_log_without_entries() {
    let fixture = Fixture::new();
    fixture.write(0);
    fs::write(&fixture.path, "{\"ts\":\"20").unwrap();
    let (log, recovered) = fixture.try_open().unwrap();
    assert!(recovered.torn.is_some() && recovered.last == 0);
    assert_eq!(log.record(&entry()).unwrap(), 1);
    drop(log);
    assert!(fixture.verify().is_intact());
}

#[test]
fn full_segments_keep_the_chain() {
    let mut fixture = Fixture::new();
    fixture.options.segment_bytes = 3_000;
    fixture.write(40);
    fixture.write(10);
    let names = fixture.names();
    assert!(names.len() >= 5, "{names:?}");
    let mut all = Vec::new();
    for name in names.iter().filter(|name| name.contains('-')) {
        let of_segment = numbers(&fixture.dir().join(name));
        assert_eq!(*name, format!("access-{:020}.jsonl", of_segment[0]));
        all.extend(of_segment);
    }
    all.extend(numbers(&fixture.path));
    assert_eq!(all, (1..=50).collect::<Vec<u64>>());
    let found = fixture.verify();
    assert!(found.is_intact(), "{found:?}");
    assert_eq!((found.entries, found.segments), (50, names.len() as u64));
}

#[test]
fn a_crash_while_segments_change_is_made_good() {
    let mut fixture = Fixture::new();
    fixture.options.segment_bytes = 3_000;
    fixture.write(20);
    // The full segment has its name, and the next one is not there yet.
    let first = numbers(&fixture.path)[0];
    let full = fixture.dir().join(format!("access-{first:020}.jsonl"));
    fs::rename(&fixture.path, &full).unwrap();
    assert!(fixture.verify().is_intact());
    fixture.write(1);
    assert_eq!(numbers(&fixture.path), [21]);
    let found = fixture.verify();
    assert!(found.is_intact() && found.entries == 21, "{found:?}");
}

#[test]
fn a_segment_whose_name_is_taken_grows_on() {
    let mut fixture = Fixture::new();
    fixture.options.segment_bytes = 3_000;
    let log = fixture.open();
    let taken = fixture.dir().join("access-00000000000000000001.jsonl");
    fs::write(&taken, "somebody's\n").unwrap();
    for _ in 0..20 {
        log.record(&entry()).unwrap();
    }
    drop(log);
    assert_eq!(numbers(&fixture.path).len(), 20);
    assert_eq!(fs::read_to_string(taken).unwrap(), "somebody's\n");
}

#[test]
fn old_segments_are_deleted_and_the_rest_stays_provable() {
    let mut fixture = Fixture::new();
    fixture.options.segment_bytes = 3_000;
    fixture.options.keep_bytes = Some(10_000);
    let log = fixture.open();
    for _ in 0..200 {
        let seq = log.record(&entry()).unwrap();
        // Deleting is the syncing thread's work: give it each change of segment.
        pause(&log, seq);
    }
    drop(log);
    let names = fixture.names();
    let sizes = names
        .iter()
        .map(|name| fs::metadata(fixture.dir().join(name)).unwrap().len());
    let total: u64 = sizes.sum();
    assert!(total < 17_000, "{total} bytes in {names:?}");
    let floor = fixture.anchor().unwrap().floor.seq;
    let found = fixture.verify();
    assert!(found.is_intact(), "{found:?}");
    assert_eq!((found.first, found.last), (Some(floor + 1), 200));
    assert!(floor > 100);
    // Opened again, it goes on.
    fixture.write(1);
    assert!(fixture.verify().is_intact());
    // One more file gone than the anchor says is found.
    fs::remove_file(fixture.dir().join(&names[0])).unwrap();
    let found = fixture.verify();
    assert!(matches!(found.breaks[0].kind, BreakKind::Missing { from, .. } if from == floor + 1));
}

/// Waits until a line is durable, without a runtime.
fn pause(log: &AuditLog, seq: u64) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(log.durable(seq)).unwrap();
}

#[test]
fn waiting_for_durability_ends_with_it() {
    let mut fixture = Fixture::new();
    // Nothing but a caller that waits makes a line durable.
    fixture.options.sync_every = std::time::Duration::from_secs(3_600);
    let log = fixture.open();
    for _ in 0..3 {
        let seq = log.record(&entry()).unwrap();
        pause(&log, seq);
        pause(&log, seq);
    }
    log.close();
    let refused = log.record(&entry());
    assert!(
        matches!(refused, Err(AuditError::Closed { .. })),
        "{refused:?}"
    );
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let refused = runtime.block_on(log.durable(4));
    assert!(
        matches!(refused, Err(AuditError::Closed { .. })),
        "{refused:?}"
    );
    assert_eq!(fixture.anchor().unwrap().head.seq, 3);
}

#[test]
fn lines_of_many_threads_stay_whole_and_in_order() {
    let mut fixture = Fixture::new();
    fixture.options.segment_bytes = 20_000;
    let log = fixture.open();
    let seen = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8_u16)
            .map(|thread| {
                let log = &log;
                scope.spawn(move || {
                    let path = format!("/{}", "x".repeat(usize::from(thread) * 100));
                    let record = |_| {
                        log.record(&AuditEntry {
                            path: &path,
                            ..entry()
                        })
                        .unwrap()
                    };
                    let own: Vec<u64> = (0..100).map(record).collect();
                    assert!(own.is_sorted());
                    pause(log, own[99]);
                    own
                })
            })
            .collect();
        let all = threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap());
        all.collect::<BTreeSet<u64>>()
    });
    drop(log);
    assert_eq!(seen, (1..=800).collect());
    let found = fixture.verify();
    assert!(found.is_intact() && found.entries == 800, "{found:?}");
}

#[test]
fn a_log_has_one_writer() {
    let fixture = Fixture::new();
    let log = fixture.open();
    let text = fixture.try_open().unwrap_err().to_string();
    assert!(
        text.contains("written by another server") && text.contains("XDG_STATE_HOME"),
        "{text}"
    );
    drop(log);
    fixture.write(1);
}

#[test]
fn a_log_is_not_continued_without_its_key() {
    let fixture = Fixture::new();
    fixture.write(1);
    let before = fs::read(&fixture.path).unwrap();
    let key = fixture.token.with_file_name("audit.key");
    let kept = fs::read(&key).unwrap();
    fs::remove_file(&key).unwrap();
    let text = fixture.try_open().unwrap_err().to_string();
    assert!(
        text.contains("audit.key") && text.contains("is missing"),
        "{text}"
    );
    assert!(!key.exists());
    // Another key, of another machine.
    let other = Fixture::new();
    other.write(1);
    fs::copy(other.token.with_file_name("audit.key"), &key).unwrap();
    let text = fixture.try_open().unwrap_err().to_string();
    assert!(text.contains("was not written with the key"), "{text}");
    assert_eq!(fs::read(&fixture.path).unwrap(), before);
    fs::write(&key, kept).unwrap();
    fixture.write(1);
    assert_eq!(numbers(&fixture.path), [1, 2]);
    // Moved away, a log makes room for a new chain.
    fs::remove_file(&key).unwrap();
    fs::remove_dir_all(fixture.dir()).unwrap();
    fixture.write(1);
    assert_eq!(numbers(&fixture.path), [1]);
    assert!(fixture.verify().is_intact());
}

#[test]
fn the_end_is_read_and_followed_across_segments() {
    let mut fixture = Fixture::new();
    assert!(Tail::open(&fixture.path, 5).unwrap().is_none());
    fixture.options.segment_bytes = 3_000;
    fixture.write(30);
    let number = |line: &Vec<u8>| -> u64 {
        serde_json::from_slice::<Value>(line).unwrap()["seq"]
            .as_u64()
            .unwrap()
    };
    for (count, first) in [(0, 31), (1, 30), (20, 11), (30, 1), (99, 1)] {
        let lines = Tail::open(&fixture.path, count)
            .unwrap()
            .unwrap()
            .more()
            .unwrap();
        let found: Vec<u64> = lines.iter().map(number).collect();
        assert_eq!(found, (first..=30).collect::<Vec<u64>>(), "{count}");
    }
    let mut tail = Tail::open(&fixture.path, 0).unwrap().unwrap();
    assert!(tail.more().unwrap().is_empty());
    let log = fixture.open();
    let mut seen = Vec::new();
    for _ in 0..30 {
        log.record(&entry()).unwrap();
        seen.extend(tail.more().unwrap().iter().map(number));
    }
    while let lines = tail.more().unwrap()
        && !lines.is_empty()
    {
        seen.extend(lines.iter().map(number));
    }
    assert_eq!(seen, (31..=60).collect::<Vec<u64>>());
    drop(log);
    // A line is shown when it is whole.
    let mut tail = Tail::open(&fixture.path, 0).unwrap().unwrap();
    let mut file = fs::File::options()
        .append(true)
        .open(&fixture.path)
        .unwrap();
    file.write_all(b"{\"a\":").unwrap();
    assert!(tail.more().unwrap().is_empty());
    file.write_all(b"1}\n{").unwrap();
    assert_eq!(tail.more().unwrap(), [b"{\"a\":1}".to_vec()]);
}

#[test]
fn a_long_piece_without_an_end_is_moved_whole() {
    let fixture = Fixture::new();
    fixture.write(2);
    let whole = fs::read(&fixture.path).unwrap();
    for before in [&whole[..], b""] {
        fs::write(&fixture.path, [before, &vec![0; 3 << 20]].concat()).unwrap();
        let (log, recovered) = fixture.try_open().unwrap();
        assert_eq!(
            fs::metadata(recovered.torn.unwrap()).unwrap().len(),
            3 << 20
        );
        assert_eq!(fs::read(&fixture.path).unwrap(), before);
        drop(log);
    }
}

#[test]
fn numbers_at_the_end_of_their_range_are_survived() {
    let fixture = Fixture::new();
    fixture.write(2);
    let text = fs::read_to_string(&fixture.path).unwrap();
    let forged = text.replace("\"seq\":2,", &format!("\"seq\":{},", u64::MAX));
    fs::write(&fixture.path, format!("{forged}{forged}")).unwrap();
    let name = fixture.dir().join(format!("access-{}.jsonl", u64::MAX));
    fs::copy(&fixture.path, name).unwrap();
    let found = fixture.verify();
    assert!(!found.is_intact() && found.last <= 2, "{found:?}");
    drop(fixture.try_open().unwrap());
}
