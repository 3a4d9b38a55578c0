//! Tests of the pen: writes that fail, and what follows them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Write as _;

use super::super::tests::{Fixture, entry};
use super::*;

/// A writer that follows a script: bytes to take at most, or a failure.
struct Scripted {
    script: Vec<Result<usize, io::ErrorKind>>,
    taken: Vec<u8>,
    calls: usize,
}

impl io::Write for Scripted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.calls += 1;
        let step = if self.script.is_empty() {
            Ok(usize::MAX)
        } else {
            self.script.remove(0)
        };
        let count = step?.min(bytes.len());
        self.taken.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn short_writes_are_completed_or_reported() {
    use io::ErrorKind::{Interrupted, StorageFull, WriteZero};
    // (script, calls, bytes taken, failure)
    let table = [
        (vec![], 1, 6, None),
        (vec![Ok(2)], 2, 6, None),
        (vec![Ok(1), Ok(1)], 3, 6, None),
        (vec![Err(Interrupted)], 2, 6, None),
        (vec![Ok(3), Err(Interrupted)], 3, 6, None),
        (vec![Err(StorageFull)], 1, 0, Some(StorageFull)),
        (vec![Ok(4), Err(StorageFull)], 2, 4, Some(StorageFull)),
        (vec![Ok(0)], 1, 0, Some(WriteZero)),
        (vec![Ok(5), Ok(0)], 2, 5, Some(WriteZero)),
    ];
    for (script, calls, taken, failure) in table {
        let mut writer = Scripted {
            script: script.clone(),
            taken: Vec::new(),
            calls: 0,
        };
        let (written, outcome) = write_line(&mut writer, b"12345\n");
        assert_eq!(
            (writer.calls, written, writer.taken.len()),
            (calls, taken, taken),
            "{script:?}"
        );
        let kind = outcome.err().map(|error| error.kind());
        assert_eq!(kind, failure, "{script:?}");
        assert_eq!(writer.taken, b"12345\n"[..taken], "{script:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_reported_for_each_entry_and_leaves_no_gap() {
    let fixture = Fixture::new();
    let log = fixture.open();
    assert_eq!(log.record(&entry()).unwrap(), 1);
    let full = Arc::new(File::options().append(true).open("/dev/full").unwrap());
    let good = std::mem::replace(&mut log.shared.pen().file, full);
    for _ in 0..2 {
        log.shared.pen().astray = false;
        let error = log.record(&entry()).unwrap_err();
        let AuditError::Write {
            written: 0,
            expected,
            source,
            ..
        } = &error
        else {
            panic!("{error}");
        };
        assert!(*expected > 200);
        assert_eq!(source.kind(), io::ErrorKind::StorageFull);
    }
    // What a short write left is overwritten.
    (&*good).write_all(b"{\"ts\":\"half a li").unwrap();
    log.shared.pen().file = good;
    assert_eq!(log.record(&entry()).unwrap(), 2);
    drop(log);
    let text = std::fs::read_to_string(&fixture.path).unwrap();
    assert_eq!(
        (text.lines().count(), text.contains("half a li")),
        (2, false),
        "{text}"
    );
}

#[cfg(target_os = "linux")]
#[test]
fn room_is_allocated_ahead_and_given_back() {
    use std::os::unix::fs::MetadataExt as _;
    let mut fixture = Fixture::new();
    fixture.options.segment_bytes = 1 << 20;
    let log = fixture.open();
    let room = |name: &str| {
        let found = std::fs::metadata(fixture.path.with_file_name(name));
        found.map_or(0, |found| found.blocks() * 512)
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while room("access.next") < 1 << 20 || room("access.jsonl") < 1 << 20 {
        assert!(
            Instant::now() < deadline,
            "{} {}",
            room("access.next"),
            room("access.jsonl")
        );
        std::thread::yield_now();
    }
    assert_eq!(std::fs::metadata(&fixture.path).unwrap().len(), 0);
    log.shared.pen().full_at = 1;
    let seq = log.record(&entry()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(log.durable(seq)).unwrap();
    assert!(room("access-00000000000000000001.jsonl") <= 64 << 10);
    while room("access.next") < 1 << 20 {
        assert!(Instant::now() < deadline);
        std::thread::yield_now();
    }
}

/// A place that takes no anchor, and counts the tries.
#[derive(Debug, Default)]
struct Refusing(std::sync::atomic::AtomicUsize);

impl AnchorStore for Refusing {
    fn load(&self, _: super::super::ChainId) -> io::Result<Vec<String>> {
        Ok(Vec::new())
    }

    fn store(&self, _: super::super::ChainId, _: &str) -> io::Result<()> {
        self.0.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Err(io::ErrorKind::StorageFull.into())
    }
}

#[tokio::test]
async fn an_anchor_that_cannot_be_kept_is_not_tried_without_pause() {
    let fixture = Fixture::new();
    let anchors = Arc::new(Refusing::default());
    let mut options = fixture.options.clone();
    options.anchor_every = Duration::from_secs(3_600);
    let opened = AuditLog::open(&fixture.path, &fixture.token, anchors.clone(), options);
    let log = opened.unwrap().0;
    for _ in 0..20 {
        let seq = log.record(&entry()).unwrap();
        log.durable(seq).await.unwrap();
    }
    log.close();
    // Once when there was something to anchor, and once at the end.
    assert_eq!(anchors.0.load(std::sync::atomic::Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_failed_sync_is_told_to_those_who_wait_and_what_it_left_is_written_again() {
    let fixture = Fixture::new();
    let log = fixture.open();
    let seq = log.record(&entry()).unwrap();
    log.durable(seq).await.unwrap();
    assert!(!log.is_failing());
    let line = std::fs::read(&fixture.path).unwrap();
    assert_eq!(log.shared.pen().synced_len, line.len() as u64);
    // A pipe takes bytes and cannot be synced.
    let (_reader, writer) = io::pipe().unwrap();
    let pipe = Arc::new(File::from(std::os::fd::OwnedFd::from(writer)));
    let good = std::mem::replace(&mut log.shared.pen().file, pipe);
    let seq = log.record(&entry()).unwrap();
    let failed = log.durable(seq).await;
    assert!(matches!(failed, Err(AuditError::Sync { .. })), "{failed:?}");
    assert!(log.is_failing());
    // Without the line there is nothing to write again, and that is an error as well.
    log.shared.pen().file = Arc::clone(&good);
    let failed = log.durable(seq).await;
    assert!(matches!(failed, Err(AuditError::Sync { .. })), "{failed:?}");
    (&*good).write_all(&line).unwrap();
    log.durable(seq).await.unwrap();
    assert!(!log.is_failing());
    let (synced, len) = {
        let pen = log.shared.pen();
        (pen.synced_len, pen.len)
    };
    assert_eq!((synced, len), (len, 2 * line.len() as u64));
}

#[test]
fn a_dead_thread_refuses_and_lets_nobody_wait() {
    let fixture = Fixture::new();
    let log = fixture.open();
    // As a panic would leave it.
    drop(sync::ended(Arc::clone(&log.shared)));
    assert!(matches!(
        log.record(&entry()),
        Err(AuditError::Closed { .. })
    ));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let waited = runtime.block_on(log.durable(1));
    assert!(
        matches!(waited, Err(AuditError::Closed { .. })),
        "{waited:?}"
    );
}
