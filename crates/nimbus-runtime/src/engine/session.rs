//! What a worker's thread knows of the invocation in progress: the link, the bundle's files, and one frame for
//! each realm that runs. The engine's callbacks have no arguments of ours, so it is kept per thread.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;

use deno_core::v8;

use super::guard;
use super::link::Link;
use super::maps::SourceMaps;
use crate::protocol::{FromWorker, Import, Reply, ToWorker};

/// One file of the bundle.
pub(crate) struct File {
    pub source: String,
    /// The compiler's output from an earlier call.
    pub cache: RefCell<Option<Vec<u8>>>,
}

/// A syscall whose promise waits.
pub(crate) struct Pending {
    pub op: String,
    pub args: String,
    pub resolve: v8::Global<v8::Function>,
    pub reject: v8::Global<v8::Function>,
}

/// What chance and the clock give, and until when.
pub(crate) struct Times {
    rng: fastrand::Rng,
    now_ms: f64,
}

impl Times {
    pub(crate) fn new(seed: &[u8; 32], now_ms: f64) -> Times {
        let mut word = [0; 8];
        word.copy_from_slice(&seed[..8]);
        Times {
            rng: fastrand::Rng::with_seed(u64::from_le_bytes(word)),
            now_ms,
        }
    }
}

/// One realm in progress.
pub(crate) struct Frame {
    /// Whether modules are being imported: then nothing may be asked of the host.
    pub importing: bool,
    times: Times,
    /// Variables of an analysis; otherwise the host knows them.
    pub environment: Option<HashMap<String, String>>,
    /// Whether reading a variable that is not set is an error (auth.config.js).
    pub strict_environment: bool,
    pub missing_variable: Option<String>,
    pub pending: VecDeque<Pending>,
    pub modules: HashMap<String, v8::Global<v8::Module>>,
    pub paths: HashMap<i32, Vec<String>>,
    /// Promises that were rejected and that nobody handles, with the reason.
    pub unhandled: Vec<(v8::Global<v8::Promise>, v8::Global<v8::Value>)>,
}

impl Frame {
    pub(crate) fn new(import: &Import) -> Frame {
        Frame {
            importing: true,
            times: Times::new(&import.seed, import.time_ms),
            environment: None,
            strict_environment: false,
            missing_variable: None,
            pending: VecDeque::new(),
            modules: HashMap::new(),
            paths: HashMap::new(),
            unhandled: Vec::new(),
        }
    }

    /// Modules are imported; the function runs now.
    pub(crate) fn begin(&mut self, times: Times) {
        self.importing = false;
        self.times = times;
    }

    pub(crate) fn random(&mut self) -> f64 {
        self.times.rng.f64()
    }

    pub(crate) fn now(&self) -> f64 {
        self.times.now_ms
    }
}

/// See the module documentation.
pub(crate) struct Session {
    pub link: Link,
    /// The bundle's files, as far as they were needed. `None`: the bundle has no such file.
    files: HashMap<String, Option<Rc<File>>>,
    /// Messages that came while another was waited for.
    stash: VecDeque<ToWorker>,
    /// Calls whose answers nobody wants.
    ignored: HashSet<u32>,
    pub maps: SourceMaps,
    pub frames: Vec<Frame>,
    next_call: u32,
    pub observed_time: bool,
    pub log_lines: usize,
}

thread_local! {
    static SESSION: RefCell<Option<Session>> = const { RefCell::new(None) };
}

/// Makes the session of this thread.
pub(crate) fn open(link: Link) {
    SESSION.set(Some(Session {
        link,
        files: HashMap::new(),
        stash: VecDeque::new(),
        ignored: HashSet::new(),
        maps: SourceMaps::default(),
        frames: Vec::new(),
        next_call: 0,
        observed_time: false,
        log_lines: 0,
    }));
}

/// Lends the session. JavaScript must not run meanwhile.
pub(crate) fn with<T>(job: impl FnOnce(&mut Session) -> T) -> T {
    SESSION.with_borrow_mut(|session| match session {
        Some(session) => job(session),
        // Every thread that runs JavaScript opened one.
        None => guard::end(),
    })
}

/// Lends the frame that runs.
pub(crate) fn frame<T>(job: impl FnOnce(&mut Frame) -> T) -> Option<T> {
    with(|session| session.frames.last_mut().map(job))
}

/// Console lines that a worker sends; the server keeps fewer.
const MAX_LOG_LINES: usize = 300;

impl Session {
    /// A file of the bundle, asked for the first time.
    pub(crate) fn file(&mut self, path: &str) -> Option<Rc<File>> {
        if let Some(known) = self.files.get(path) {
            return known.clone();
        }
        self.link.send(&FromWorker::Module(path.to_owned()));
        let found = match self.wait(|message| matches!(message, ToWorker::Module(_))) {
            ToWorker::Module(found) => found,
            _ => guard::end(),
        };
        let file = found.map(|module| {
            if let Some(map) = module.source_map {
                self.maps.add(path, map);
            }
            Rc::new(File {
                source: module.source,
                cache: RefCell::new(None),
            })
        });
        self.files.insert(path.to_owned(), file.clone());
        file
    }

    /// A number for the next message that wants a reply.
    pub(crate) fn call(&mut self) -> u32 {
        self.next_call = self.next_call.wrapping_add(1);
        self.next_call
    }

    /// The reply to the message `call`. Of a transaction they come in the order of the questions; of an action
    /// others may come first, and are kept.
    pub(crate) fn reply(&mut self, call: u32) -> Reply {
        let wanted =
            |message: &ToWorker| matches!(message, ToWorker::Reply { call: to, .. } if *to == call);
        match self.wait(wanted) {
            ToWorker::Reply { reply, .. } => reply,
            _ => guard::end(),
        }
    }

    /// The next message that is `wanted`.
    fn wait(&mut self, wanted: impl Fn(&ToWorker) -> bool) -> ToWorker {
        if let Some(at) = self.stash.iter().position(&wanted)
            && let Some(message) = self.stash.remove(at)
        {
            return message;
        }
        loop {
            let message = self.link.receive();
            if wanted(&message) {
                return message;
            }
            self.stash.push_back(message);
        }
    }

    /// Asks for the slot back that parking gave away, and waits for it.
    pub(crate) fn resume(&mut self) {
        self.link.send(&FromWorker::Resume);
        self.wait(|message| matches!(message, ToWorker::Go));
    }

    /// Answers that came so far.
    pub(crate) fn take_replies(&mut self) -> Vec<(u32, Reply)> {
        while let Some(message) = self.link.buffered() {
            self.stash.push_back(message);
        }
        let mut replies = Vec::new();
        for message in std::mem::take(&mut self.stash) {
            match message {
                ToWorker::Reply { call, reply } => {
                    if !self.ignored.remove(&call) {
                        replies.push((call, reply));
                    }
                }
                other => self.stash.push_back(other),
            }
        }
        replies
    }

    /// Tells the host something that has no answer.
    pub(crate) fn tell(&mut self, op: &str, args: String) {
        let call = self.call();
        self.ignored.insert(call);
        self.link.send(&FromWorker::Syscall {
            call,
            op: op.to_owned(),
            args,
            urgent: true,
        });
    }

    /// Asks the host and waits.
    pub(crate) fn ask(&mut self, op: &str, args: &str) -> Reply {
        let call = self.call();
        self.link.send(&FromWorker::Syscall {
            call,
            op: op.to_owned(),
            args: args.to_owned(),
            urgent: true,
        });
        self.reply(call)
    }

    /// Sends a console line at once, so that it is not lost with the process.
    pub(crate) fn log(&mut self, line: String) {
        self.log_lines += 1;
        if self.log_lines <= MAX_LOG_LINES {
            self.link.send(&FromWorker::Log(line));
        }
    }

    /// Forgets the last invocation.
    pub(crate) fn reset(&mut self) {
        self.frames.clear();
        self.stash.clear();
        self.ignored.clear();
        self.observed_time = false;
        self.log_lines = 0;
    }
}
