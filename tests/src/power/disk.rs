//! A disk as the recorder saw it used: what is visible, and what is promised to outlive a power cut.
//!
//! The promises are the narrow ones of POSIX. Bytes of a file: after `fsync` or `fdatasync` of the
//! file, as far as they were written before the call. A name (created, renamed, removed): after
//! `fsync` of its directory; syncing the file does not keep its name. A rename is one step.
//!
//! A failed sync is taken as Linux means it: the bytes stay visible, count as clean, and no later
//! sync writes them unless their page is written again.
//!
//! It must not know what the files mean.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use super::image::{Change, Cut, Image, Survival, is_volatile};
use super::log::{Event, FileId, Record};
use crate::Rng;

/// The unit in which the page cache remembers what is dirty, bytes.
const PAGE: u64 = 4096;

/// Which syncs a disk ignores, to show what they are needed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deaf {
    /// None: an honest disk.
    Never,
    /// All.
    ToAll,
    /// Those of directories.
    ToDirectories,
    /// Those of files whose name contains this.
    ToFiles(&'static str),
}

/// The model.
#[derive(Debug)]
pub struct Disk<'a> {
    deaf: Deaf,
    files: Vec<File<'a>>,
    ids: BTreeMap<FileId, usize>,
    live: Names,
    durable: Names,
    pending: Vec<(Stamp, NameChange)>,
    order: u64,
    rng: Rng,
}

type Names = BTreeMap<String, Node>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Dir,
    File(usize),
}

/// When a change happened.
#[derive(Clone, Copy, Debug)]
struct Stamp {
    process: u64,
    serial: u64,
    order: u64,
}

#[derive(Debug, Default)]
struct File<'a> {
    /// Its newest name.
    path: String,
    durable: Vec<u8>,
    pending: Vec<(Stamp, Change<'a>)>,
    /// What is visible, once that is more than `durable` and `pending`: after a failed sync.
    live: Option<Vec<u8>>,
    /// Pages that count as clean but never reached the disk.
    lost: BTreeSet<u64>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Put(String, Node),
    Remove(String),
    Move {
        from: String,
        to: String,
        node: Node,
    },
}

impl NameChange {
    fn apply(&self, names: &mut Names) {
        match self {
            NameChange::Put(path, node) => {
                names.insert(path.clone(), *node);
            }
            NameChange::Remove(path) => {
                names.remove(path);
            }
            NameChange::Move { from, to, node } => {
                if names.get(from) == Some(node) {
                    names.remove(from);
                }
                names.insert(to.clone(), *node);
            }
        }
    }

    /// The directory whose sync keeps the change.
    fn directory(&self) -> &str {
        match self {
            NameChange::Put(path, _) | NameChange::Remove(path) => parent(path),
            NameChange::Move { to, .. } => parent(to),
        }
    }
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

impl<'a> Disk<'a> {
    /// A disk that holds `image` durably. The seed decides what a failed sync leaves.
    pub fn new(image: &Image, deaf: Deaf, seed: u64) -> Disk<'a> {
        let mut disk = Disk {
            deaf,
            files: Vec::new(),
            ids: BTreeMap::new(),
            live: Names::new(),
            durable: Names::new(),
            pending: Vec::new(),
            order: 0,
            rng: Rng::new(seed),
        };
        for (path, bytes) in &image.entries {
            let node = match bytes {
                None => Node::Dir,
                Some(bytes) => disk.add(path, bytes.clone()),
            };
            disk.live.insert(path.clone(), node);
            disk.durable.insert(path.clone(), node);
        }
        disk
    }

    fn add(&mut self, path: &str, durable: Vec<u8>) -> Node {
        self.files.push(File {
            path: path.to_owned(),
            durable,
            ..File::default()
        });
        Node::File(self.files.len() - 1)
    }

    /// Changes which syncs count from now on.
    pub fn set_deaf(&mut self, deaf: Deaf) {
        self.deaf = deaf;
    }

    /// Follows one record.
    ///
    /// # Panics
    /// When the record is a violation, or does not fit what was recorded before.
    pub fn follow(&mut self, record: &Record<'a>) {
        self.order += 1;
        let stamp = Stamp {
            process: record.process,
            serial: record.serial,
            order: self.order,
        };
        match record.event {
            Event::Allocate { file, at, len } => {
                self.change(stamp, file, Change::Allocate { at, len });
            }
            Event::Create { file, path } => {
                let node = self.add(path, Vec::new());
                self.know(file, node);
                self.rename(stamp, NameChange::Put(path.to_owned(), node));
            }
            Event::Link { from, to } => {
                let node = self.visible(from);
                self.rename(stamp, NameChange::Put(to.to_owned(), node));
            }
            Event::Mkdir(path) => self.rename(stamp, NameChange::Put(path.to_owned(), Node::Dir)),
            Event::Open { file, path } => {
                let node = match self.live.get(path) {
                    None if is_volatile(path) => self.add(path, Vec::new()),
                    _ => self.visible(path),
                };
                self.know(file, node);
            }
            Event::Rename { from, to } => {
                let node = self.visible(from);
                assert_eq!(parent(from), parent(to), "a rename between directories");
                if let Node::File(n) = node {
                    to.clone_into(&mut self.files[n].path);
                }
                let (from, to) = (from.to_owned(), to.to_owned());
                self.rename(stamp, NameChange::Move { from, to, node });
            }
            Event::Rmdir(path) | Event::Unlink(path) => {
                self.rename(stamp, NameChange::Remove(path.to_owned()));
            }
            Event::Sync { file, began } => self.sync(record.process, file, began),
            Event::SyncDir { began, path } => self.sync_dir(record.process, path, began),
            Event::SyncFailed { file, began } => self.fail_sync(record.process, file, began),
            Event::Truncate { file, len } => self.change(stamp, file, Change::Truncate { len }),
            Event::Violation(text) => panic!("the recorder has no model for: {text}"),
            Event::Write { file, at, data } => {
                let data = Cow::Borrowed(data);
                self.change(stamp, file, Change::Write { at, data });
            }
            Event::Counts(_) | Event::Fault(_) | Event::Mark { .. } | Event::Start => {}
        }
    }

    fn visible(&self, path: &str) -> Node {
        let node = self.live.get(path).copied();
        node.unwrap_or_else(|| panic!("{path} is used and was never created"))
    }

    fn know(&mut self, id: FileId, node: Node) {
        let Node::File(n) = node else {
            panic!("a directory is used as a file");
        };
        self.ids.insert(id, n);
    }

    fn file(&mut self, id: FileId) -> &mut File<'a> {
        let n = self.ids[&id];
        &mut self.files[n]
    }

    fn rename(&mut self, stamp: Stamp, change: NameChange) {
        change.apply(&mut self.live);
        self.pending.push((stamp, change));
    }

    fn change(&mut self, stamp: Stamp, id: FileId, change: Change<'a>) {
        let file = self.file(id);
        let change = match file.live.as_mut() {
            None => change,
            Some(live) => {
                change.apply(live);
                whole_pages(change, live, &mut file.lost)
            }
        };
        file.pending.push((stamp, change));
    }

    fn sync(&mut self, process: u64, id: FileId, began: u64) {
        let deaf = self.deaf;
        let file = self.file(id);
        match deaf {
            Deaf::ToAll => return,
            Deaf::ToFiles(part) if file.path.contains(part) => return,
            _ => {}
        }
        for (_, change) in file.take_covered(process, began) {
            change.apply(&mut file.durable);
        }
    }

    fn sync_dir(&mut self, process: u64, path: &str, began: u64) {
        if matches!(self.deaf, Deaf::ToAll | Deaf::ToDirectories) {
            return;
        }
        let durable = &mut self.durable;
        self.pending.retain(|(stamp, change)| {
            let kept = stamp.covered(process, began) && change.directory() == path;
            if kept {
                change.apply(durable);
            }
            !kept
        });
    }

    fn fail_sync(&mut self, process: u64, id: FileId, began: u64) {
        let mut rng = Rng::new(self.rng.next_u64());
        let file = self.file(id);
        if file.live.is_none() {
            file.live = Some(file.visible());
        }
        for (_, change) in file.take_covered(process, began) {
            if let Change::Write { at, data } = &change {
                let last = (at + data.len() as u64).saturating_sub(1);
                file.lost.extend(at / PAGE..=last / PAGE);
            }
            change.apply_where(&mut file.durable, |_| rng.between(0, 1) == 0);
        }
    }

    /// What every process sees now. Shared-memory files of SQLite are left out.
    pub fn visible_image(&self) -> Image {
        let mut image = Image::default();
        for (path, node) in &self.live {
            match node {
                Node::Dir => drop(image.entries.insert(path.clone(), None)),
                Node::File(_) if is_volatile(path) => {}
                Node::File(n) => {
                    let bytes = self.files[*n].visible();
                    image.entries.insert(path.clone(), Some(bytes));
                }
            }
        }
        image
    }

    /// What may be there when the power goes now.
    pub fn cut(&self, survival: Survival, rng: &mut Rng) -> Image {
        let mut orders: Vec<u64> = self.pending.iter().map(|(s, _)| s.order).collect();
        for file in &self.files {
            orders.extend(file.pending.iter().map(|(s, _)| s.order));
        }
        let mut cut = Cut::new(survival, &orders, rng);
        let mut names = self.durable.clone();
        for (stamp, change) in &self.pending {
            if cut.keeps_name(stamp.order) {
                change.apply(&mut names);
            }
        }
        let mut image = Image::default();
        for (path, node) in &names {
            // A name whose directory is gone is gone with it.
            let dir = parent(path);
            if !dir.is_empty() && image.entries.get(dir) != Some(&None) {
                continue;
            }
            let entry = match node {
                Node::Dir => None,
                Node::File(_) if is_volatile(path) => match cut.volatile() {
                    None => continue,
                    bytes => bytes,
                },
                Node::File(n) => Some(self.files[*n].after(&mut cut)),
            };
            image.entries.insert(path.clone(), entry);
        }
        image
    }
}

impl<'a> File<'a> {
    /// Takes out what a sync that began after serial `began` of `process` covers.
    fn take_covered(&mut self, process: u64, began: u64) -> Vec<(Stamp, Change<'a>)> {
        let covered = |(stamp, _): &&(Stamp, _)| stamp.covered(process, began);
        let count = self.pending.iter().take_while(covered).count();
        self.pending.drain(..count).collect()
    }

    fn visible(&self) -> Vec<u8> {
        if let Some(live) = &self.live {
            return live.clone();
        }
        let mut bytes = self.durable.clone();
        for (_, change) in &self.pending {
            change.apply(&mut bytes);
        }
        bytes
    }

    fn after(&self, cut: &mut Cut<'_>) -> Vec<u8> {
        let changes: Vec<_> = self.pending.iter().map(|(s, c)| (s.order, c)).collect();
        cut.bytes(&self.durable, &changes)
    }
}

impl Stamp {
    fn covered(self, process: u64, began: u64) -> bool {
        self.process < process || self.serial <= began
    }
}

/// Writing to a page that counts as clean makes all of it dirty again.
fn whole_pages<'a>(change: Change<'a>, live: &[u8], lost: &mut BTreeSet<u64>) -> Change<'a> {
    let Change::Write { at, data } = &change else {
        return change;
    };
    let (first, last) = (at / PAGE, (at + data.len() as u64).saturating_sub(1) / PAGE);
    let touched: Vec<u64> = lost.range(first..=last).copied().collect();
    if touched.is_empty() {
        return change;
    }
    for page in touched {
        lost.remove(&page);
    }
    let from = usize::try_from(first * PAGE).unwrap();
    let to = usize::try_from((last + 1) * PAGE).unwrap().min(live.len());
    Change::Write {
        at: first * PAGE,
        data: Cow::Owned(live[from..to].to_vec()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileId = FileId {
        process: 1,
        number: 1,
    };

    fn disk<'a>(deaf: Deaf, events: &[Event<'a>]) -> Disk<'a> {
        let mut disk = Disk::new(&Image::default(), deaf, 1);
        for (n, event) in events.iter().enumerate() {
            disk.follow(&Record {
                process: 1,
                serial: n as u64 + 1,
                event: *event,
            });
        }
        disk
    }

    fn write(at: u64, data: &[u8]) -> Event<'_> {
        Event::Write {
            file: FILE,
            at,
            data,
        }
    }

    fn create(path: &str) -> Event<'_> {
        Event::Create { file: FILE, path }
    }

    fn sync(began: u64) -> Event<'static> {
        Event::Sync { file: FILE, began }
    }

    fn sync_dir(began: u64) -> Event<'static> {
        Event::SyncDir { began, path: "" }
    }

    /// Every image that 400 cuts give of the file `path`.
    fn cuts(disk: &Disk<'_>, path: &str) -> BTreeSet<Option<Vec<u8>>> {
        let mut rng = Rng::new(7);
        (0..400)
            .map(|_| {
                let image = disk.cut(Survival::pick(&mut rng), &mut rng);
                image.entries.get(path).cloned().map(Option::unwrap)
            })
            .collect()
    }

    fn one(bytes: &[u8]) -> BTreeSet<Option<Vec<u8>>> {
        BTreeSet::from([Some(bytes.to_vec())])
    }

    #[test]
    fn a_name_needs_the_sync_of_its_directory() {
        let events = [create("a"), write(0, b"x"), sync(2)];
        assert!(cuts(&disk(Deaf::Never, &events), "a").contains(&None));
        let events = [create("a"), write(0, b"x"), sync(2), sync_dir(3)];
        assert_eq!(cuts(&disk(Deaf::Never, &events), "a"), one(b"x"));
        for deaf in [Deaf::ToAll, Deaf::ToDirectories] {
            assert!(cuts(&disk(deaf, &events), "a").contains(&None), "{deaf:?}");
        }
    }

    #[test]
    fn a_sync_covers_what_came_before_it_began() {
        let base = [create("a"), sync_dir(1), write(0, b"old")];
        let late = [&base[..], &[write(0, b"new"), sync(4)]].concat();
        assert_eq!(cuts(&disk(Deaf::Never, &late), "a"), one(b"new"));
        // The second write happened while the sync ran.
        let during = [&base[..], &[write(0, b"new"), sync(3)]].concat();
        let both = [Some(b"old".to_vec()), Some(b"new".to_vec())];
        assert_eq!(cuts(&disk(Deaf::Never, &during), "a"), both.into());
        assert!(cuts(&disk(Deaf::ToFiles("a"), &late), "a").contains(&Some(Vec::new())));
        assert_eq!(cuts(&disk(Deaf::ToFiles("b"), &late), "a"), one(b"new"));
    }

    #[test]
    fn unsynced_sectors_are_torn_and_reordered() {
        let (first, second) = ([1; 1024], [2; 1024]);
        let events = [
            create("a"),
            sync_dir(1),
            write(0, &first),
            sync(3),
            write(0, &second),
        ];
        let found = cuts(&disk(Deaf::Never, &events), "a");
        for (x, y) in [(1, 1), (1, 2), (2, 1), (2, 2)] {
            let wanted = [[x; 512], [y; 512]].concat();
            assert!(found.contains(&Some(wanted)), "{x} {y}");
        }
        // A later write may be there without an earlier one.
        let events = [create("a"), sync_dir(1), write(0, b"1"), write(1, b"2")];
        assert!(cuts(&disk(Deaf::Never, &events), "a").contains(&Some(b"\x002".to_vec())));
    }

    #[test]
    fn a_rename_is_one_step() {
        let rename = Event::Rename {
            from: "a.new",
            to: "a",
        };
        let events = [
            create("a.new"),
            write(0, b"x"),
            sync(2),
            sync_dir(3),
            rename,
        ];
        let disk = disk(Deaf::Never, &events);
        let mut rng = Rng::new(3);
        for _ in 0..100 {
            let image = disk.cut(Survival::pick(&mut rng), &mut rng);
            assert_eq!(image.entries.len(), 1, "{image:?}");
        }
    }

    #[test]
    fn truncation_waits_for_its_sync() {
        let truncate = Event::Truncate { file: FILE, len: 1 };
        let base = [
            create("a"),
            write(0, b"xyz"),
            sync(2),
            sync_dir(3),
            truncate,
        ];
        let both = [Some(b"xyz".to_vec()), Some(b"x".to_vec())];
        assert_eq!(cuts(&disk(Deaf::Never, &base), "a"), both.into());
        let synced = [&base[..], &[sync(5)]].concat();
        assert_eq!(cuts(&disk(Deaf::Never, &synced), "a"), one(b"x"));
    }

    #[test]
    fn a_failed_sync_loses_what_a_later_one_does_not_write() {
        let fail = Event::SyncFailed {
            file: FILE,
            began: 4,
        };
        let base = [
            create("a"),
            sync_dir(1),
            write(0, b"old"),
            write(0, b"new"),
            fail,
        ];
        let again = [&base[..], &[sync(5)]].concat();
        let lost = (0..20).any(|seed| {
            let mut disk = Disk::new(&Image::default(), Deaf::Never, seed);
            for (n, event) in again.iter().enumerate() {
                let serial = n as u64 + 1;
                disk.follow(&Record {
                    process: 1,
                    serial,
                    event: *event,
                });
            }
            assert_eq!(disk.visible_image().entries["a"], Some(b"new".to_vec()));
            cuts(&disk, "a") != one(b"new")
        });
        assert!(lost);
        // Another write to the page takes all of the page along.
        let rewritten = [&base[..], &[write(9, b"!"), sync(6)]].concat();
        let expected = b"new\0\0\0\0\0\0!";
        assert_eq!(cuts(&disk(Deaf::Never, &rewritten), "a"), one(expected));
    }

    #[test]
    fn files_of_a_directory_that_is_gone_are_gone() {
        let events = [Event::Mkdir("d"), create("d/a"), write(0, b"x"), sync(3)];
        let dir = Event::SyncDir {
            began: 4,
            path: "d",
        };
        let events = [&events[..], &[dir]].concat();
        assert!(cuts(&disk(Deaf::Never, &events), "d/a").contains(&None));
        let events = [&events[..], &[sync_dir(5)]].concat();
        assert_eq!(cuts(&disk(Deaf::Never, &events), "d/a"), one(b"x"));
    }
}
