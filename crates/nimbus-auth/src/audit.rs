//! The audit log: one JSON line for each authentication decision on the admin surface (seed 000).
//!
//! [`AuditLog::record`] is the only door. A line is printable ASCII and never holds a token. This
//! room must not know routes or what was decided and why; it writes down what it is told.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use nimbus_core::TenantId;

use crate::context::{AuthMethod, RequestId};
use crate::private_fs::{Access, PrivateDir, PrivateFileError, split};

pub(crate) mod line;
mod look;

pub use look::{AuditLook, LastLine, look};

/// Most bytes of a request path that are kept.
pub const MAX_PATH: usize = 1024;
/// Most bytes of an origin that are kept.
pub const MAX_ORIGIN: usize = 256;
/// Most bytes of a reason that are kept.
pub const MAX_REASON: usize = 256;
/// Most bytes of a request method that are kept; HTTP sets no limit to extension methods.
pub const MAX_METHOD: usize = 32;

/// The family of routes that a request belongs to (nimbus.md 4). The edge decides; here it is a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RouteFamily {
    /// The health answer.
    Health,
    /// Demonstration pages.
    Demos,
    /// The console.
    Ui,
    /// Opening a console session.
    UiAuthSession,
    /// The native HTTP API.
    NativeApi,
    /// Diagnostic reports.
    Debug,
    /// Deployment by the operator.
    DeployAdmin,
    /// The native WebSocket.
    NativeWebsocket,
    /// Convex over HTTP.
    ConvexHttp,
    /// Convex over WebSocket.
    ConvexWebsocket,
    /// Firebase REST.
    FirebaseRest,
    /// Firebase gRPC.
    FirebaseGrpc,
    /// Firebase gRPC-Web.
    FirebaseGrpcWeb,
    /// Firebase over WebSocket.
    FirebaseWebsocket,
    /// None of these.
    Unknown,
}

impl RouteFamily {
    /// The word in the log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Health => "health",
            Self::Demos => "demos",
            Self::Ui => "ui",
            Self::UiAuthSession => "ui_auth_session",
            Self::NativeApi => "native_api",
            Self::Debug => "debug",
            Self::DeployAdmin => "deploy_admin",
            Self::NativeWebsocket => "native_websocket",
            Self::ConvexHttp => "convex_http",
            Self::ConvexWebsocket => "convex_websocket",
            Self::FirebaseRest => "firebase_rest",
            Self::FirebaseGrpc => "firebase_grpc",
            Self::FirebaseGrpcWeb => "firebase_grpc_web",
            Self::FirebaseWebsocket => "firebase_websocket",
            Self::Unknown => "unknown",
        }
    }
}

/// What the decision was about (nimbus.md 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AuthScope {
    /// Access to the server by credential.
    ServerAccess,
    /// The check of the `Origin` header.
    Origin,
    /// A console session.
    Session,
}

impl AuthScope {
    /// The word in the log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ServerAccess => "server_access",
            Self::Origin => "origin",
            Self::Session => "session",
        }
    }
}

/// One decision. It is written as one JSON object with these fields in camelCase and this order;
/// text is cut at its limit, and anything that looks like an admin token is replaced.
#[derive(Clone, Debug)]
pub struct AuditEntry<'a> {
    /// When it was decided; written in UTC with milliseconds (RFC 3339).
    pub ts: Timestamp,
    /// The family of the route.
    pub route_family: RouteFamily,
    /// The tenant that the path names, if it names one.
    pub tenant_id: Option<&'a TenantId>,
    /// What the decision was about.
    pub auth_scope: AuthScope,
    /// The form of the credential, if there was one.
    pub auth_method: Option<AuthMethod>,
    /// Whether the caller was let through.
    pub success: bool,
    /// Value of the `Origin` header, at most [`MAX_ORIGIN`] bytes.
    pub origin: Option<&'a str>,
    /// Why: `authorized`, [`crate::AuthFailure::audit_reason`] or the like, at most [`MAX_REASON`]
    /// bytes.
    pub reason: &'a str,
    /// The request method, at most [`MAX_METHOD`] bytes.
    pub method: &'a str,
    /// The request path, at most [`MAX_PATH`] bytes; from the first `?` or `#` on it is dropped.
    pub path: &'a str,
    /// The HTTP status of the answer.
    pub status: u16,
    /// The request.
    pub request_id: Option<&'a RequestId>,
    /// Address of the client.
    pub client_addr: Option<IpAddr>,
}

/// Why the audit log failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuditError {
    /// The file or its directory was refused, or the system failed.
    #[error("the audit log cannot be opened: {0}")]
    Open(#[from] PrivateFileError),
    /// The entry could not be written as JSON.
    #[error("an audit entry cannot be written as JSON: {0}")]
    Encode(#[source] serde_json::Error),
    /// The system took only a part of the line, or nothing. The entry is not in the log; the next
    /// one starts on a line of its own.
    #[error("the audit log {} took {written} of {expected} bytes: {source}", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Bytes of the line that were written.
        written: usize,
        /// Bytes of the line.
        expected: usize,
        /// The reason given by the system.
        #[source]
        source: io::Error,
    },
    /// Written lines could not be made durable.
    #[error("the audit log {} cannot be synced: {source}", .path.display())]
    Sync {
        /// The file.
        path: PathBuf,
        /// The reason given by the system.
        #[source]
        source: io::Error,
    },
}

/// The open audit log. Share it in an `Arc`; all methods take `&self`.
#[derive(Debug)]
pub struct AuditLog {
    path: PathBuf,
    file: File,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The line being made; kept so that an entry costs no allocation.
    buffer: Vec<u8>,
    /// Whether the file ends within a line, after a failed write or a crash.
    torn: bool,
}

impl State {
    fn append(
        &mut self,
        entry: &AuditEntry<'_>,
        file: &mut impl Write,
        path: &Path,
    ) -> Result<(), AuditError> {
        self.buffer.clear();
        if self.torn {
            self.buffer.push(b'\n');
        }
        line::append(entry, &mut self.buffer).map_err(AuditError::Encode)?;
        let (written, outcome) = write_line(file, &self.buffer);
        // No byte of a line but its last is a newline; when nothing was written nothing changed.
        if let Some(last) = written.checked_sub(1).and_then(|at| self.buffer.get(at)) {
            self.torn = *last != b'\n';
        }
        outcome.map_err(|source| AuditError::Write {
            path: path.to_path_buf(),
            written,
            expected: self.buffer.len(),
            source,
        })
    }
}

impl AuditLog {
    /// Opens the log for appending. A missing file is made 0600, missing directories 0700.
    ///
    /// # Errors
    /// [`AuditError::Open`] when the file or its directory is a link, is open to others, belongs
    /// to another user or is of another kind.
    pub fn open(path: &Path) -> Result<Self, AuditError> {
        let (parent, name) = split(path)?;
        let dir = PrivateDir::create(parent)?;
        let file = open_append(&dir, name, path)?;
        let torn =
            ends_within_a_line(&file).map_err(PrivateFileError::io("read the end of", path))?;
        Ok(Self {
            path: path.to_path_buf(),
            file,
            state: Mutex::new(State {
                buffer: Vec::with_capacity(1024),
                torn,
            }),
        })
    }

    /// Appends one line, in one write. It is then in the page cache of the system, safe from a
    /// crash of this process; [`AuditLog::sync`] makes it safe from a power loss.
    ///
    /// # Errors
    /// [`AuditError::Write`], for example on a full disk; the entry is then not in the log.
    pub fn record(&self, entry: &AuditEntry<'_>) -> Result<(), AuditError> {
        // A poisoned lock is taken over: the buffer is cleared before each use.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.append(entry, &mut &self.file, &self.path)
    }

    /// Makes all recorded lines durable (`fdatasync`); other threads may record meanwhile.
    ///
    /// # Errors
    /// [`AuditError::Sync`]; lines recorded before may then be lost in a power loss.
    pub fn sync(&self) -> Result<(), AuditError> {
        self.file.sync_data().map_err(|source| AuditError::Sync {
            path: self.path.clone(),
            source,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn open_append(dir: &PrivateDir, name: &OsStr, path: &Path) -> Result<File, PrivateFileError> {
    let absent = || PrivateFileError::io("open", path)(io::Error::from(io::ErrorKind::NotFound));
    dir.open_file(name, Access::Append)?.ok_or_else(absent)
}

/// Writes a whole line in one call; what a short write leaves is written after it. Returns how
/// much was written in any case.
fn write_line(file: &mut impl Write, line: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while let Some(rest) = line.get(written..).filter(|rest| !rest.is_empty()) {
        match file.write(rest) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}

fn ends_within_a_line(mut file: &File) -> io::Result<bool> {
    if file.seek(SeekFrom::End(0))? == 0 {
        return Ok(false);
    }
    let mut last = [0_u8];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

#[cfg(test)]
mod tests;
