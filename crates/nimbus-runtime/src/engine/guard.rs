//! What a worker does before it runs anything: it lets go of what it inherited, and it makes sure that it does not
//! outlive the server, whatever its JavaScript does. Knows no engine.

use std::io;
use std::os::fd::OwnedFd;

use rustix::event::{PollFd, PollFlags, poll};

/// Stack of the thread that waits for the server's end.
const STACK: usize = 64 * 1024;
/// The first descriptor beside standard input, output and errors.
const FIRST: libc::c_int = 3;
/// Where closing one by one stops, on a kernel without close_range(2).
const LAST: libc::c_int = 4_096;

/// Closes all descriptors beside the standard three: one that a library of the server forgot to mark would be the
/// developer's to find. Called before anything is opened, while no other thread runs.
pub(crate) fn close_inherited() {
    // SAFETY: closes descriptors by number, and none beside the standard three is ours yet.
    #[cfg(target_os = "linux")]
    if unsafe { libc::syscall(libc::SYS_close_range, FIRST, libc::c_uint::MAX, 0) } == 0 {
        return;
    }
    for fd in FIRST..LAST {
        // SAFETY: as above; a number that is not open is refused and changes nothing.
        unsafe { libc::close(fd) };
    }
}

/// Ends this process when the other side of its socket is gone, even while JavaScript runs without an end: a server
/// that was killed cannot kill its workers.
///
/// # Errors
/// When there can be no thread for it.
pub(crate) fn end_with_server(socket: OwnedFd) -> io::Result<()> {
    let wait = move || {
        // Asked for nothing, it wakes for a hang-up or an error alone.
        let mut fds = [PollFd::new(&socket, PollFlags::empty())];
        while let Ok(0) | Err(rustix::io::Errno::INTR) = poll(&mut fds, None) {}
        // SAFETY: `_exit` takes any number and does not return.
        unsafe { libc::_exit(0) }
    };
    let thread = std::thread::Builder::new().name("server-watch".into());
    thread.stack_size(STACK).spawn(wait).map(drop)
}

/// Ends this process: the server is gone, or says what no server says, and there is nobody to tell.
#[allow(
    clippy::disallowed_methods,
    reason = "a worker has nothing that a destructor would save"
)]
pub(crate) fn end() -> ! {
    std::process::exit(0)
}
