//! The messages between the server and a worker process, and their frames.
//!
//! A frame is a u32 length (little-endian) and that many bytes of postcard. Both ends are the same binary,
//! so there is no version. The worker runs other people's code: nothing that it sends is trusted beyond its form.

use serde::{Deserialize, Serialize};

use crate::call::{JsFailure, SubCall, UdfKind};

/// Longest frame that the server takes: results and arguments have at most 16 MiB, and JSON in escapes.
pub(crate) const MAX_FRAME: usize = 80 * 1024 * 1024;

/// What the server says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToWorker {
    /// First and once.
    Setup(Setup),
    /// Run a function.
    Start(Box<Start>),
    /// Import a bundle and say what it declares.
    Analyze(Box<Analyze>),
    /// The answer to a `Syscall` or `UdfFinished`.
    Reply { call: u32, reply: Reply },
    /// The answer to a `Module`; `None` when the bundle has no such file.
    Module(Option<WireModule>),
    /// The answer to `Resume`: an active slot was granted.
    Go,
}

/// Limits of the process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub heap_mb: u64,
    pub initial_heap_mb: u64,
    pub lane: Lane,
    pub task: Task,
}

/// What a worker process runs. V8 wants one snapshot for all isolates of a process, so it is either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Lane {
    /// Queries, mutations and analyses, in bare realms.
    Transactions,
    /// Actions, with web APIs.
    Actions,
}

impl Lane {
    pub(crate) const fn of(kind: UdfKind) -> Lane {
        match kind.is_transactional() {
            true => Lane::Transactions,
            false => Lane::Actions,
        }
    }
}

/// What a worker process is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Task {
    /// Run functions.
    Run,
    /// The same; its standard output is the lane's snapshot, to be read.
    RunFromSnapshot,
    /// Make that snapshot, and end.
    MakeSnapshot,
}

/// One function to run.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Start {
    pub kind: UdfKind,
    pub module: String,
    pub export: String,
    pub args: String,
    pub import: Import,
    /// Seed of `Math.random` while the function runs.
    pub seed: [u8; 32],
    /// The clock, in ms since 1970-01-01.
    pub now_ms: f64,
}

/// What modules see while they are imported.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Import {
    pub seed: [u8; 32],
    pub time_ms: f64,
}

/// A bundle to analyse; its modules are asked for as they are needed.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Analyze {
    pub paths: Vec<String>,
    pub environment: Vec<(String, String)>,
    pub import: Import,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WireModule {
    pub source: String,
    pub source_map: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Json(String),
    Run(SubCall),
    Error {
        message: String,
        data: Option<String>,
    },
}

/// What the worker says.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromWorker {
    /// The engine is up.
    Ready {
        /// Whether the system keeps the process from files.
        confined: bool,
    },
    /// A realm with our scripts run in it; empty where the engine has no snapshots.
    Snapshot(Vec<u8>),
    Syscall {
        call: u32,
        op: String,
        args: String,
        /// Whether the worker waits for this one answer, or for none.
        urgent: bool,
    },
    UdfFinished {
        call: u32,
        token: u64,
        result: Result<String, JsFailure>,
    },
    /// Asks for a file of the bundle.
    Module(String),
    /// A console line, as soon as it is written: a killed function keeps its lines.
    Log(String),
    /// Nothing runs until a timer or the network wakes the function.
    Park,
    /// It woke up.
    Resume,
    Done(Done),
    /// An [`crate::Analysis`] as JSON.
    Analyzed(Result<String, WireAnalyzeError>),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Done {
    pub result: Result<String, JsFailure>,
    pub observed_time: bool,
    pub cpu_ns: u64,
    /// Whether this process should not be used again: its heap grew, or something is left running.
    pub retire: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct WireAnalyzeError {
    pub path: String,
    pub code: Option<String>,
    pub message: String,
}

/// Status with which a worker exits when its heap or its array buffers reach the limit.
pub(crate) const EXIT_OUT_OF_MEMORY: i32 = 86;

/// A frame that cannot be made or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum FrameError {
    #[error("a frame of {0} bytes is longer than the limit of {MAX_FRAME}")]
    TooLong(usize),
    #[error("a frame does not decode: {0}")]
    Malformed(#[from] postcard::Error),
}

/// Appends the frame of `message`.
pub(crate) fn encode<T: Serialize>(message: &T, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    let mut buffer = postcard::to_extend(message, std::mem::take(out))?;
    let length = buffer.len() - start - 4;
    if length > MAX_FRAME {
        buffer.truncate(start);
        *out = buffer;
        return Err(FrameError::TooLong(length));
    }
    buffer[start..start + 4].copy_from_slice(&(length as u32).to_le_bytes());
    *out = buffer;
    Ok(())
}

/// Takes the first whole frame out of `buffer`: the message and how many bytes it took.
pub(crate) fn decode<'a, T: Deserialize<'a>>(
    buffer: &'a [u8],
) -> Result<Option<(T, usize)>, FrameError> {
    let Some((head, rest)) = buffer.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let length = u32::from_le_bytes(*head) as usize;
    if length > MAX_FRAME {
        return Err(FrameError::TooLong(length));
    }
    match rest.get(..length) {
        Some(frame) => Ok(Some((postcard::from_bytes(frame)?, length + 4))),
        None => Ok(None),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn frames_follow_one_another_and_may_be_cut_anywhere() {
        let mut bytes = Vec::new();
        for text in ["a", "", "long ".repeat(1000).as_str()] {
            encode(&FromWorker::Log(text.to_owned()), &mut bytes).unwrap();
        }
        for cut in 0..bytes.len() {
            let found = decode::<FromWorker>(&bytes[..cut]).unwrap();
            assert_eq!(found.is_some(), cut >= 4 + 3, "{cut}");
        }
        let mut rest = bytes.as_slice();
        let mut seen = Vec::new();
        while let Some((FromWorker::Log(line), used)) = decode(rest).unwrap() {
            seen.push(line.len());
            rest = &rest[used..];
        }
        assert_eq!(seen, [1, 0, 5000]);
    }

    #[test]
    fn what_a_worker_makes_up_is_refused() {
        assert!(decode::<FromWorker>(&[255; 64]).is_err());
        let mut bytes = vec![9, 0, 0, 0];
        bytes.extend([200; 9]);
        assert!(decode::<FromWorker>(&bytes).is_err());
    }
}
