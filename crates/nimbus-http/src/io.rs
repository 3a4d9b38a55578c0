//! A socket that gives up on a client that does not take its answer, that leaves others their turn
//! when a client sends without a pause, and that is still there when the connection over it has
//! ended.
//!
//! Answers lie in memory until the client takes them, so one that never reads would hold up to
//! 16 MiB for ever. Reading has its own deadlines elsewhere; this room must not know HTTP.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::unconstrained;
use tokio::time::{Instant, Sleep};

/// How long a write may make no progress at all.
pub(crate) const WRITE_STALL: Duration = Duration::from_secs(30);

/// Reads in a row before the task gets its turn again.
const READS_IN_A_ROW: u32 = 32;

/// Wraps a stream and fails writes that stall.
#[derive(Debug)]
pub(crate) struct Stalling<S> {
    stream: S,
    /// The deadline of the present stall; kept to be used again.
    deadline: Option<Pin<Box<Sleep>>>,
    stalled: bool,
    reads: u32,
}

impl<S> Stalling<S> {
    pub(crate) fn new(stream: S) -> Stalling<S> {
        Stalling {
            stream,
            deadline: None,
            stalled: false,
            reads: 0,
        }
    }

    /// The stream without its guard.
    pub(crate) fn into_inner(self) -> S {
        self.stream
    }

    fn watch<T>(
        &mut self,
        cx: &mut Context<'_>,
        outcome: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.stalled = false;
            return outcome;
        }
        let at = Instant::now() + WRITE_STALL;
        let deadline = self
            .deadline
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if !self.stalled {
            self.stalled = true;
            deadline.as_mut().reset(at);
        }
        match deadline.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Stalling<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // The HTTP library reads on while it gets nothing whole out of what it reads. Left to the
        // runtime, those reads would use up the budget of the task every time, and whatever else
        // the task waits for, clocks included, would never be looked at.
        if self.reads == READS_IN_A_ROW {
            self.reads = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let stream = &mut self.stream;
        let read = unconstrained(poll_fn(|cx| Pin::new(&mut *stream).poll_read(cx, buf)));
        let outcome = pin!(read).poll(cx);
        self.reads = if outcome.is_ready() {
            self.reads + 1
        } else {
            0
        };
        outcome
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Stalling<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch(cx, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watch(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch(cx, outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.watch(cx, outcome)
    }
}

/// A stream with two holders: the connection, which is to end it, and whoever wants it afterwards.
///
/// The HTTP library gives a stream back only if it is not asked to end it, and then it does not
/// write out what it still holds. So it is asked, writes all out, and the end is not passed on.
#[derive(Debug)]
pub(crate) struct Kept<S>(Arc<Mutex<S>>);

impl<S> Kept<S> {
    pub(crate) fn new(stream: S) -> Kept<S> {
        Kept(Arc::new(Mutex::new(stream)))
    }

    /// The stream for the connection.
    pub(crate) fn share(&self) -> Kept<S> {
        Kept(Arc::clone(&self.0))
    }

    /// The stream, once the connection was dropped.
    pub(crate) fn into_inner(self) -> Option<S> {
        let stream = Arc::into_inner(self.0)?;
        Some(stream.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    // Never contended: one holder waits for the end of the other.
    fn stream(&self) -> MutexGuard<'_, S> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Kept<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream()).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Kept<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream()).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream()).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_write_that_nobody_takes_fails_after_the_stall() {
        let (ours, mut theirs) = tokio::io::duplex(8);
        let mut guarded = Stalling::new(ours);
        guarded.write_all(&[0; 8]).await.unwrap();
        // Progress, however slow, starts the clock again.
        for _ in 0..3 {
            let taking = async {
                tokio::time::sleep(WRITE_STALL - Duration::from_secs(1)).await;
                theirs.read_exact(&mut [0; 8]).await.unwrap();
            };
            let (written, ()) = tokio::join!(guarded.write_all(&[0; 8]), taking);
            written.unwrap();
        }
        let started = Instant::now();
        let error = guarded.write_all(&[0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(started.elapsed().as_secs(), WRITE_STALL.as_secs());
    }

    #[tokio::test]
    async fn a_stream_without_a_pause_leaves_the_task_its_budget() {
        let mut endless = Stalling::new(tokio::io::repeat(0));
        let (mut read, mut paused) = (0, 0);
        // One poll of the task: what it reads must not count.
        poll_fn(|cx| {
            while read < 10 * READS_IN_A_ROW {
                let mut bytes = [0; 8];
                let mut buf = ReadBuf::new(&mut bytes);
                match Pin::new(&mut endless).poll_read(cx, &mut buf) {
                    Poll::Ready(outcome) => {
                        outcome.unwrap();
                        read += 1;
                    }
                    Poll::Pending => {
                        paused += 1;
                        assert!(paused < 10, "the budget is spent");
                    }
                }
            }
            assert!(tokio::task::coop::has_budget_remaining());
            Poll::Ready(())
        })
        .await;
        assert_eq!(paused, 9);
        // A pause is followed by a wake, or this would wait for ever.
        let mut bytes = vec![0; 10_000];
        for byte in &mut bytes {
            endless
                .read_exact(std::slice::from_mut(byte))
                .await
                .unwrap();
        }
    }

    #[tokio::test]
    async fn a_kept_stream_survives_the_end_of_its_connection() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let kept = Kept::new(ours);
        let mut shared = kept.share();
        shared.write_all(b"before").await.unwrap();
        shared.shutdown().await.unwrap();
        drop(shared);
        let mut stream = kept.into_inner().unwrap();
        stream.write_all(b" and after").await.unwrap();
        drop(stream);
        let mut text = String::new();
        theirs.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "before and after");
        // Not while the connection still has it.
        let kept = Kept::new(tokio::io::empty());
        let _shared = kept.share();
        assert!(kept.into_inner().is_none());
    }
}
