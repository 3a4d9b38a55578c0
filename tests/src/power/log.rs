//! The recorder's log, read back. The format is described in `tests/recorder/recorder.c`.
//!
//! It must not know what the records do to a disk; `disk` does.

/// Bytes of a record before its payload: length, kind, serial, file, two numbers.
const HEADER: usize = 4 + 1 + 4 * 8;

/// A file of one recorded process: the process's place in the log, and its own number for the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileId {
    /// How many processes started before in this log.
    pub process: u64,
    /// The number that process gave the file.
    pub number: u64,
}

/// What happened. Paths are relative to the recorded directory, which is `""` itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A file grew with zeros to hold this range, unless it did already.
    Allocate {
        /// The file.
        file: FileId,
        /// First byte.
        at: u64,
        /// Bytes.
        len: u64,
    },
    /// Calls by kind, when a process ends by itself.
    Counts(&'a str),
    /// A file came to be.
    Create {
        /// The file.
        file: FileId,
        /// Its name.
        path: &'a str,
    },
    /// A call was made to fail.
    Fault(&'a str),
    /// A file got a second name.
    Link {
        /// The name it had.
        from: &'a str,
        /// The new one.
        to: &'a str,
    },
    /// What a test wrote between the records of the process.
    Mark {
        /// What it means to the test.
        kind: u64,
        /// Likewise.
        number: u64,
    },
    /// A directory came to be.
    Mkdir(&'a str),
    /// A file that was there before is first used.
    Open {
        /// The file.
        file: FileId,
        /// Its name.
        path: &'a str,
    },
    /// A name was changed, replacing another.
    Rename {
        /// The old name.
        from: &'a str,
        /// The new one.
        to: &'a str,
    },
    /// A directory went.
    Rmdir(&'a str),
    /// A process started to record.
    Start,
    /// A file was synced, with all that happened to it up to and including this serial.
    Sync {
        /// The file.
        file: FileId,
        /// Serial of the last record before the sync began.
        began: u64,
    },
    /// The names of a directory were synced, likewise.
    SyncDir {
        /// Serial of the last record before the sync began.
        began: u64,
        /// The directory.
        path: &'a str,
    },
    /// A sync was made to fail.
    SyncFailed {
        /// The file.
        file: FileId,
        /// Serial of the last record before the sync began.
        began: u64,
    },
    /// The length of a file was set.
    Truncate {
        /// The file.
        file: FileId,
        /// Bytes.
        len: u64,
    },
    /// A name went.
    Unlink(&'a str),
    /// The process did something that there is no model for.
    Violation(&'a str),
    /// Bytes were written.
    Write {
        /// The file.
        file: FileId,
        /// First byte.
        at: u64,
        /// The bytes.
        data: &'a [u8],
    },
}

/// One record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// How many processes started before in this log.
    pub process: u64,
    /// Counts the records of a process from 1; 0 for marks.
    pub serial: u64,
    /// What happened.
    pub event: Event<'a>,
}

/// Reads a whole log.
///
/// # Panics
/// When it is not one: the run that wrote it is worthless then.
pub fn parse(mut bytes: &[u8]) -> Vec<Record<'_>> {
    let mut records = Vec::new();
    let mut process = 0;
    while !bytes.is_empty() {
        let length = u32::from_be_bytes(bytes[..4].try_into().unwrap());
        let (record, rest) = bytes[4..].split_at(usize::try_from(length).unwrap());
        bytes = rest;
        let number = |n: usize| {
            let at = 1 + 8 * n;
            u64::from_be_bytes(record[at..at + 8].try_into().unwrap())
        };
        if record[0] == 1 {
            process += 1;
        }
        let raw = Raw {
            kind: record[0],
            file: FileId {
                process,
                number: number(1),
            },
            a: number(2),
            b: number(3),
            payload: &record[HEADER - 4..],
        };
        records.push(Record {
            process,
            serial: number(0),
            event: raw.event(),
        });
    }
    records
}

/// A mark as bytes, for [`Event::Mark`]. It is to be appended by one call.
pub fn mark(kind: u64, number: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER);
    bytes.extend(u32::try_from(HEADER - 4).unwrap().to_be_bytes());
    bytes.push(16);
    for n in [0, 0, kind, number] {
        bytes.extend(n.to_be_bytes());
    }
    bytes
}

struct Raw<'a> {
    kind: u8,
    file: FileId,
    a: u64,
    b: u64,
    payload: &'a [u8],
}

impl<'a> Raw<'a> {
    fn event(self) -> Event<'a> {
        let Raw { file, a, b, .. } = self;
        match self.kind {
            1 => Event::Start,
            2 => Event::Create {
                file,
                path: self.text(),
            },
            3 => Event::Open {
                file,
                path: self.text(),
            },
            4 => Event::Write {
                file,
                at: a,
                data: self.payload,
            },
            5 => Event::Truncate { file, len: a },
            6 => Event::Allocate {
                file,
                at: a,
                len: b,
            },
            7 => Event::Sync { file, began: a },
            8 => Event::SyncFailed { file, began: a },
            9 => Event::SyncDir {
                began: a,
                path: self.text(),
            },
            10 => {
                let (from, to) = self.two();
                Event::Rename { from, to }
            }
            11 => Event::Unlink(self.text()),
            12 => Event::Mkdir(self.text()),
            13 => Event::Rmdir(self.text()),
            14 => {
                let (from, to) = self.two();
                Event::Link { from, to }
            }
            15 => Event::Violation(self.text()),
            16 => Event::Mark { kind: a, number: b },
            17 => Event::Fault(self.text()),
            18 => Event::Counts(self.text()),
            kind => panic!("the recorder's log has a record of kind {kind}"),
        }
    }

    fn text(&self) -> &'a str {
        std::str::from_utf8(self.payload).unwrap()
    }

    fn two(&self) -> (&'a str, &'a str) {
        self.text().split_once('\0').unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_records() {
        let bytes = [mark(1, 7), mark(2, u64::MAX)].concat();
        let events: Vec<Event<'_>> = parse(&bytes).iter().map(|r| r.event).collect();
        let expected = [(1, 7), (2, u64::MAX)].map(|(kind, number)| Event::Mark { kind, number });
        assert_eq!(events, expected);
    }
}
