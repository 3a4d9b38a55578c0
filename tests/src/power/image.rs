//! What a disk holds at one moment: directories and files with their bytes; and the ways in which
//! a power cut chooses among unsynced changes.
//!
//! It must not know how the changes came about; `disk` does.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;

use crate::Rng;

/// The unit that a disk writes whole or not at all, bytes.
pub const SECTOR: u64 = 512;

/// Files by path below the recorded directory; `None` is a directory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// The entries, parents before what they hold.
    pub entries: BTreeMap<String, Option<Vec<u8>>>,
}

impl Image {
    /// What a directory holds now. Shared-memory files of SQLite are left out.
    pub fn read(dir: &Path) -> Image {
        let mut image = Image::default();
        image.add(dir, "");
        image
    }

    fn add(&mut self, dir: &Path, prefix: &str) {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{prefix}{}", entry.file_name().to_str().unwrap());
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                self.add(&entry.path(), &format!("{name}/"));
                self.entries.insert(name, None);
            } else if !is_volatile(&name) {
                let bytes = fs::read(entry.path()).unwrap();
                self.entries.insert(name, Some(bytes));
            }
        }
    }

    /// Makes the files in `dir`, which is empty or absent, private to their owner.
    pub fn write(&self, dir: &Path) {
        let mut make = fs::DirBuilder::new();
        make.recursive(true).mode(0o700);
        make.create(dir).unwrap();
        for (name, bytes) in &self.entries {
            let path = dir.join(name);
            let Some(bytes) = bytes else {
                make.create(&path).unwrap();
                continue;
            };
            let mut options = fs::OpenOptions::new();
            let file = options.write(true).create_new(true).mode(0o600).open(path);
            std::io::Write::write_all(&mut file.unwrap(), bytes).unwrap();
        }
    }

    /// The first difference to another image, for messages; `None` when there is none.
    pub fn difference(&self, other: &Image) -> Option<String> {
        let names: BTreeSet<&String> = self.entries.keys().chain(other.entries.keys()).collect();
        names.into_iter().find_map(
            |name| match (self.entries.get(name), other.entries.get(name)) {
                (Some(a), Some(b)) if a == b => None,
                (Some(Some(a)), Some(Some(b))) => {
                    let same = a.iter().zip(b).take_while(|(x, y)| x == y).count();
                    let (a, b) = (a.len(), b.len());
                    Some(format!("{name}: {a} and {b} bytes, the same up to {same}"))
                }
                (Some(_), Some(_)) => Some(format!("{name}: a file and a directory")),
                (Some(_), None) => Some(format!("{name}: only in the first")),
                (None, _) => Some(format!("{name}: only in the second")),
            },
        )
    }
}

/// Whether a file is SQLite's shared memory: mapped, never synced, rebuilt after a crash.
pub fn is_volatile(path: &str) -> bool {
    path.ends_with("-shm")
}

/// A change to the bytes of a file that was not synced yet.
#[derive(Clone, Debug)]
pub(super) enum Change<'a> {
    Allocate { at: u64, len: u64 },
    Truncate { len: u64 },
    Write { at: u64, data: Cow<'a, [u8]> },
}

impl Change<'_> {
    /// Carries the change out in full.
    pub(super) fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Change::Allocate { at, len } => reach(bytes, at + len),
            Change::Truncate { len } => bytes.resize(usize::try_from(*len).unwrap(), 0),
            Change::Write { at, data } => put(bytes, *at, data),
        }
    }

    /// Carries out the parts that lie in sectors for which `kept` holds. A change of length is
    /// one part, in no sector.
    pub(super) fn apply_where(
        &self,
        bytes: &mut Vec<u8>,
        mut kept: impl FnMut(Option<u64>) -> bool,
    ) {
        let Change::Write { at, data } = self else {
            if kept(None) {
                self.apply(bytes);
            }
            return;
        };
        let mut done = 0;
        while done < data.len() {
            let from = at + done as u64;
            let sector = from / SECTOR;
            let room = usize::try_from((sector + 1) * SECTOR - from).unwrap();
            let end = data.len().min(done + room);
            if kept(Some(sector)) {
                put(bytes, from, &data[done..end]);
            }
            done = end;
        }
    }
}

fn reach(bytes: &mut Vec<u8>, len: u64) {
    let len = usize::try_from(len).unwrap();
    if bytes.len() < len {
        bytes.resize(len, 0);
    }
}

fn put(bytes: &mut Vec<u8>, at: u64, data: &[u8]) {
    reach(bytes, at + data.len() as u64);
    let at = usize::try_from(at).unwrap();
    bytes[at..at + data.len()].copy_from_slice(data);
}

/// Which of the unsynced changes a power cut leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survival {
    /// All: what a killed process leaves.
    Everything,
    /// None: the least that was promised.
    Nothing,
    /// All up to a moment between the last sync and the cut, over all files.
    Prefix,
    /// Each sector is as it was at a moment of its own; so are lengths and names.
    Sectors,
    /// Each change is kept, dropped or torn by itself.
    Writes,
}

impl Survival {
    /// One of them, the last two more often than the others.
    pub fn pick(rng: &mut Rng) -> Survival {
        match rng.between(0, 19) {
            0..=1 => Survival::Everything,
            2..=4 => Survival::Nothing,
            5..=7 => Survival::Prefix,
            8..=13 => Survival::Sectors,
            _ => Survival::Writes,
        }
    }
}

/// A [`Survival`] with the choices that hold for a whole image.
pub(super) struct Cut<'r> {
    survival: Survival,
    rng: &'r mut Rng,
    /// Of [`Survival::Prefix`]: the first change that is gone.
    end: u64,
    /// Of [`Survival::Writes`]: how many in 8 are kept, and how many torn.
    kept: u64,
    torn: u64,
}

impl<'r> Cut<'r> {
    /// `orders` are the places in time of all unsynced changes.
    pub(super) fn new(survival: Survival, orders: &[u64], rng: &'r mut Rng) -> Cut<'r> {
        let end = match (orders.iter().min(), orders.iter().max()) {
            (Some(first), Some(last)) => rng.between(*first, last + 1),
            _ => 0,
        };
        Cut {
            survival,
            end,
            kept: rng.between(0, 6),
            torn: rng.between(0, 2),
            rng,
        }
    }

    /// A file's bytes after the cut.
    pub(super) fn bytes(&mut self, durable: &[u8], changes: &[(u64, &Change<'_>)]) -> Vec<u8> {
        let mut bytes = durable.to_vec();
        let mut moments = Moments::default();
        for (n, (order, change)) in changes.iter().enumerate() {
            match self.survival {
                Survival::Everything => change.apply(&mut bytes),
                Survival::Nothing => {}
                Survival::Prefix if *order < self.end => change.apply(&mut bytes),
                Survival::Prefix => {}
                Survival::Sectors => change.apply_where(&mut bytes, |sector| {
                    n < moments.of(sector, changes.len(), self.rng)
                }),
                Survival::Writes => match self.rng.between(0, 7) {
                    roll if roll < self.kept => change.apply(&mut bytes),
                    roll if roll < self.kept + self.torn => {
                        change.apply_where(&mut bytes, |_| self.rng.between(0, 1) == 0);
                    }
                    _ => {}
                },
            }
        }
        if self.survival == Survival::Sectors && self.rng.between(0, 1) == 0 {
            self.cut_length(&mut bytes, durable.len(), changes);
        }
        bytes
    }

    /// The length goes to the disk by itself too: what lies beyond an old one is not seen.
    fn cut_length(&mut self, bytes: &mut Vec<u8>, durable: usize, changes: &[(u64, &Change<'_>)]) {
        let until = self.rng.between(0, changes.len() as u64);
        let mut len = durable as u64;
        for (_, change) in &changes[..usize::try_from(until).unwrap()] {
            len = match change {
                Change::Allocate { at, len: more } => len.max(at + more),
                Change::Truncate { len } => *len,
                Change::Write { at, data } => len.max(at + data.len() as u64),
            };
        }
        bytes.truncate(usize::try_from(len).unwrap());
    }

    /// Whether a change of a name is kept.
    pub(super) fn keeps_name(&mut self, order: u64) -> bool {
        match self.survival {
            Survival::Everything => true,
            Survival::Nothing => false,
            Survival::Prefix => order < self.end,
            Survival::Sectors | Survival::Writes => self.rng.between(0, 1) == 0,
        }
    }

    /// What a file holds that promises nothing; `None` when even its name is gone.
    pub(super) fn volatile(&mut self) -> Option<Vec<u8>> {
        match self.rng.between(0, 2) {
            0 => None,
            1 => Some(Vec::new()),
            _ => Some(
                (0..4096)
                    .flat_map(|_| self.rng.next_u64().to_be_bytes())
                    .collect(),
            ),
        }
    }
}

/// For each sector and for the length, how many of the changes it has seen.
#[derive(Default)]
struct Moments(BTreeMap<Option<u64>, usize>);

impl Moments {
    fn of(&mut self, sector: Option<u64>, changes: usize, rng: &mut Rng) -> usize {
        *self.0.entry(sector).or_insert_with(|| {
            // Both ends often: most sectors are long written, or not yet.
            match rng.between(0, 3) {
                0 => 0,
                1 => changes,
                _ => usize::try_from(rng.between(0, changes as u64)).unwrap(),
            }
        })
    }
}
