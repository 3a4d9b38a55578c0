//! A request body that was answered before it was read.
//!
//! What is left of it would be taken for the next request, or cut off in the middle of a proxy's
//! sending. So a little of it is taken in, and when that does not reach the end the answer says
//! that the connection ends with it (RFC 9112 9.6). This room must not know why a body was left.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::header::{CONNECTION, EXPECT};
use http::{HeaderMap, HeaderValue, Response};
use http_body_util::BodyExt as _;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::timeout;

/// Most bytes taken in to keep a connection.
const DRAIN_BYTES: u64 = 64 * 1024;
/// Longest time for that: what has not arrived by then is not waited for.
const DRAIN_TIME: Duration = Duration::from_millis(100);

/// What was left of a body when it was dropped.
#[derive(Default)]
enum Left {
    /// It was read to its end, or is still with its reader.
    #[default]
    Nothing,
    Unread(Body),
    /// Its framing cannot be followed any further.
    Broken,
}

/// Where a watched body leaves its rest.
pub(crate) struct Unread {
    left: Arc<Mutex<Left>>,
    /// The client waits for a word before it sends, and asking for the body would be that word.
    expects: bool,
}

impl Unread {
    /// Puts a watch on `body`, the body of a request with these headers.
    pub(crate) fn watch(headers: &HeaderMap, body: Body) -> (Unread, Body) {
        let left = Arc::new(Mutex::new(Left::Nothing));
        let unread = Unread {
            left: Arc::clone(&left),
            expects: headers.contains_key(EXPECT),
        };
        if body.is_end_stream() {
            return (unread, body);
        }
        let body = Some(body);
        (unread, Body::new(Watched { body, left }))
    }

    /// Takes in a small rest, or announces in `answer` that the connection ends.
    pub(crate) async fn settle(self, answer: &mut Response<Body>) {
        let left = std::mem::take(&mut *self.left.lock().unwrap_or_else(PoisonError::into_inner));
        let ended = match left {
            Left::Nothing => true,
            Left::Broken => false,
            Left::Unread(body) => !self.expects && drain(body).await,
        };
        if !ended {
            let close = HeaderValue::from_static("close");
            answer.headers_mut().insert(CONNECTION, close);
        }
    }
}

/// Whether the end of `body` was reached within the bounds.
async fn drain(mut body: Body) -> bool {
    if body.size_hint().lower() > DRAIN_BYTES {
        return false;
    }
    let draining = async {
        let mut taken = 0;
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return false };
            let count = frame.data_ref().map_or(0, Bytes::len);
            taken += u64::try_from(count).unwrap_or(u64::MAX);
            if taken > DRAIN_BYTES {
                return false;
            }
        }
        true
    };
    let outcome = timeout(DRAIN_TIME, draining).await;
    outcome.unwrap_or(false)
}

/// A body that leaves its rest behind when it is dropped.
struct Watched {
    /// `None` once it has ended.
    body: Option<Body>,
    left: Arc<Mutex<Left>>,
}

impl Watched {
    fn leave(&self, left: Left) {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = left;
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(body) = self.body.as_mut() else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        match &frame {
            Some(Ok(_)) => {}
            Some(Err(_)) => {
                self.body = None;
                self.leave(Left::Broken);
            }
            None => self.body = None,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        let hint = self.body.as_ref().map(HttpBody::size_hint);
        hint.unwrap_or_else(|| SizeHint::with_exact(0))
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(body) = self.body.take().filter(|body| !body.is_end_stream()) {
            self.leave(Left::Unread(body));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use futures_util::{StreamExt as _, stream};

    use super::*;

    type Part = Result<Bytes, std::io::Error>;

    fn parts(sizes: &[usize]) -> Vec<Part> {
        sizes.iter().map(|size| Ok(vec![0; *size].into())).collect()
    }

    /// Whether an answer to this body closes the connection, after `read` of its parts were read.
    async fn closes(headers: &HeaderMap, body: Body, read: usize) -> bool {
        let (unread, mut body) = Unread::watch(headers, body);
        for _ in 0..read {
            let _ = body.frame().await;
        }
        drop(body);
        let mut answer = Response::new(Body::empty());
        unread.settle(&mut answer).await;
        answer
            .headers()
            .get(CONNECTION)
            .is_some_and(|v| v == "close")
    }

    #[tokio::test(start_paused = true)]
    async fn a_rest_is_taken_in_when_it_is_small_and_there() {
        let none = HeaderMap::new();
        let stream = |parts: Vec<Part>| Body::from_stream(stream::iter(parts));
        assert!(!closes(&none, Body::empty(), 0).await);
        assert!(!closes(&none, Body::from("small"), 0).await);
        assert!(!closes(&none, stream(parts(&[1, 2, 3])), 1).await);
        assert!(
            !closes(&none, stream(parts(&[1, 2])), 3).await,
            "all was read"
        );
        assert!(!closes(&none, stream(parts(&[64 * 1024])), 0).await);
        assert!(closes(&none, stream(parts(&[64 * 1024, 1])), 0).await);
        assert!(closes(&none, Body::from(vec![0; 64 * 1024 + 1]), 0).await);
        // What does not come is not waited for.
        let halting = stream::iter(parts(&[1])).chain(stream::pending());
        assert!(closes(&none, Body::from_stream(halting), 0).await);
        let broken = || stream(vec![Err(std::io::ErrorKind::InvalidData.into())]);
        assert!(closes(&none, broken(), 0).await);
        assert!(closes(&none, broken(), 1).await, "the reader saw the fault");
        // Asking for this body would tell the client to send it.
        let mut expecting = HeaderMap::new();
        expecting.insert(EXPECT, HeaderValue::from_static("100-continue"));
        assert!(closes(&expecting, Body::from("small"), 0).await);
        assert!(!closes(&expecting, Body::empty(), 0).await);
    }
}
