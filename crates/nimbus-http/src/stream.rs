//! Bodies that are read or made while they travel: lines of a request, parts of an answer.
//!
//! Either side waits for the other, so memory does not depend on the length. It must not know what
//! is in them.

use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::HeaderMap;
use schemars::{Schema, json_schema};
use tokio::sync::mpsc;

use crate::edge::request_id::Ulid;
use crate::error::{ApiError, ApiResult};
use crate::extract::{BodyDoc, Input, PacedBody, check_content_type};
use crate::io::WRITE_STALL;
use crate::lines::{MAX_LINE_BYTES, MEDIA};

/// Bytes handed to the connection at once. A client must take each such piece within
/// [`WRITE_STALL`].
const PIECE: usize = 256 * 1024;

/// A body of JSON lines, read as it comes.
pub(crate) struct Lines {
    body: PacedBody,
    buffer: BytesMut,
    /// Bytes at the front of the buffer that hold no line end.
    searched: usize,
    ended: bool,
}

impl Input for Lines {
    const STREAMS: bool = true;

    fn doc() -> Option<BodyDoc> {
        let schema = |_: &mut _| -> Schema {
            json_schema!({"type": "string", "description": "One JSON object a line, in UTF-8."})
        };
        Some(BodyDoc {
            schema,
            example: "{\"title\":\"Oslo\"}\n{\"title\":\"Bergen\"}\n",
            media: MEDIA,
        })
    }

    async fn take(headers: &HeaderMap, body: Body, _: usize) -> ApiResult<Lines> {
        check_content_type(headers, MEDIA)?;
        Ok(Lines::new(body))
    }
}

impl Lines {
    fn new(body: Body) -> Lines {
        Lines {
            body: PacedBody::new(body),
            buffer: BytesMut::new(),
            searched: 0,
            ended: false,
        }
    }

    /// The next line, its end included; `None` after the last. A line that is too long comes with
    /// more than [`MAX_LINE_BYTES`], cut off.
    ///
    /// # Errors
    /// 408 when the body comes too slowly, 400 when it ends early: what there is of a last line
    /// is not handed out then.
    pub(crate) async fn next(&mut self) -> ApiResult<Option<Bytes>> {
        loop {
            let fresh = &self.buffer[self.searched..];
            if let Some(at) = fresh.iter().position(|byte| *byte == b'\n') {
                return Ok(Some(self.split(self.searched + at + 1)));
            }
            self.searched = self.buffer.len();
            if self.searched > MAX_LINE_BYTES {
                return Ok(Some(self.split(self.searched)));
            }
            if self.ended {
                let last = self.split(self.searched);
                return Ok((!last.is_empty()).then_some(last));
            }
            match self.body.next().await? {
                Some(data) => self.buffer.extend_from_slice(&data),
                None => self.ended = true,
            }
        }
    }

    fn split(&mut self, at: usize) -> Bytes {
        self.searched = 0;
        self.buffer.split_to(at).freeze()
    }
}

/// Where the parts of an answer come from.
pub(crate) trait Source: Send + 'static {
    /// The next part; `None` at the end.
    fn next(&mut self) -> impl Future<Output = ApiResult<Option<Bytes>>> + Send;
}

enum Part {
    Data(Bytes),
    End,
}

/// A body of `first` and what follows from `source`; of nothing when `first` is the end already.
///
/// The source is read no further than the client does, and is dropped when the client leaves or
/// takes longer than [`WRITE_STALL`] over a piece. A body that ends before the source did is cut
/// off: it lacks the last chunk of HTTP/1.1's coding, which clients report. `request` names it in
/// the log.
pub(crate) fn body(first: Option<Bytes>, source: impl Source, request: Ulid) -> Body {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        if let Err(error) = pump(first, source, &sender).await {
            error.log_late(&request);
        }
    });
    let parts = stream::unfold(Some(receiver), |receiver| async move {
        let mut receiver = receiver?;
        match receiver.recv().await {
            Some(Part::Data(data)) => Some((Ok(data), Some(receiver))),
            Some(Part::End) => None,
            // The source failed, or its task is gone.
            None => Some((Err(std::io::Error::other("the answer is cut off")), None)),
        }
    });
    Body::from_stream(parts)
}

async fn pump(
    first: Option<Bytes>,
    mut source: impl Source,
    sender: &mpsc::Sender<Part>,
) -> ApiResult<()> {
    let mut part = first;
    while let Some(mut data) = part {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(PIECE));
            if !send(sender, Part::Data(piece), WRITE_STALL).await? {
                return Ok(());
            }
        }
        part = source.next().await?;
    }
    send(sender, Part::End, WRITE_STALL).await?;
    Ok(())
}

/// `false`: the client left.
async fn send(sender: &mpsc::Sender<Part>, part: Part, limit: Duration) -> ApiResult<bool> {
    match tokio::time::timeout(limit, sender.send(part)).await {
        Ok(sent) => Ok(sent.is_ok()),
        Err(_) => {
            let text = "the client takes the answer too slowly";
            Err(ApiError::new(nimbus_core::ErrorCode::OpCancelled, text))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::StreamExt as _;
    use http_body_util::BodyExt as _;
    use tokio::time::Instant;

    use super::*;

    fn lines_of(parts: &[&str]) -> Lines {
        let parts: Vec<std::io::Result<Bytes>> = parts
            .iter()
            .map(|part| match *part {
                "CUT" => Err(std::io::Error::other("cut")),
                text => Ok(Bytes::copy_from_slice(text.as_bytes())),
            })
            .collect();
        Lines::new(Body::from_stream(stream::iter(parts)))
    }

    #[tokio::test]
    async fn lines_are_the_same_however_the_body_is_cut_into_parts() {
        let text = "one\n\nthree\r\nfour";
        for size in 1..=text.len() {
            let parts: Vec<&str> = text
                .as_bytes()
                .chunks(size)
                .map(|part| std::str::from_utf8(part).unwrap())
                .collect();
            let mut lines = lines_of(&parts);
            for expected in ["one\n", "\n", "three\r\n", "four"] {
                assert_eq!(lines.next().await.unwrap().unwrap(), expected, "{size}");
            }
            assert_eq!(lines.next().await.unwrap(), None);
        }
    }

    #[tokio::test]
    async fn half_a_line_of_a_body_that_ends_early_is_not_handed_out() {
        let mut lines = lines_of(&["{}\n{}", "CUT"]);
        assert_eq!(lines.next().await.unwrap().unwrap(), "{}\n");
        assert_eq!(lines.next().await.unwrap_err().status().as_u16(), 400);
    }

    #[tokio::test]
    async fn a_line_without_an_end_is_given_up_at_the_bound() {
        let part = "x".repeat(1 << 20);
        let mut lines = lines_of(&vec![part.as_str(); 20]);
        let line = lines.next().await.unwrap().unwrap();
        assert_eq!(line.len(), MAX_LINE_BYTES + (1 << 20));
    }

    #[tokio::test(start_paused = true)]
    async fn time_that_the_server_takes_does_not_count_against_the_client() {
        let parts = stream::iter((0..100).map(|_| Ok::<_, std::io::Error>(Bytes::from("{}\n"))));
        let mut lines = Lines::new(Body::from_stream(parts));
        while lines.next().await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
    }

    /// Hands out `left` parts and then ends or fails; counts its calls and its end.
    struct Numbers {
        left: usize,
        fails: bool,
        calls: Arc<AtomicUsize>,
        _alive: Arc<()>,
    }

    impl Source for Numbers {
        async fn next(&mut self) -> ApiResult<Option<Bytes>> {
            self.calls.fetch_add(1, Ordering::SeqCst);
            if self.left == 0 {
                return match self.fails {
                    true => Err(ApiError::internal("broken")),
                    false => Ok(None),
                };
            }
            self.left -= 1;
            Ok(Some(Bytes::from_static(b"n\n")))
        }
    }

    fn numbers(left: usize, fails: bool) -> (Numbers, Arc<AtomicUsize>, std::sync::Weak<()>) {
        let (calls, alive) = (Arc::<AtomicUsize>::default(), Arc::new(()));
        let ended = Arc::downgrade(&alive);
        let source = Numbers {
            left,
            fails,
            calls: Arc::clone(&calls),
            _alive: alive,
        };
        (source, calls, ended)
    }

    #[tokio::test]
    async fn a_body_is_whole_or_visibly_cut() {
        let (source, ..) = numbers(3, false);
        let whole = body(Some("first\n".into()), source, Ulid::next());
        let text = whole.collect().await.unwrap().to_bytes();
        assert_eq!(text, "first\nn\nn\nn\n");
        let (source, ..) = numbers(0, false);
        let empty = body(None, source, Ulid::next());
        assert_eq!(empty.collect().await.unwrap().to_bytes(), "");
        let (source, ..) = numbers(3, true);
        let cut = body(Some("first\n".into()), source, Ulid::next());
        assert!(cut.collect().await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn the_source_waits_for_the_client_and_goes_when_the_client_does() {
        let (source, calls, ended) = numbers(1_000, false);
        let mut parts = body(Some("first\n".into()), source, Ulid::next()).into_data_stream();
        parts.next().await.unwrap().unwrap();
        // Slow is fine, within the bound.
        tokio::time::sleep(WRITE_STALL - Duration::from_secs(1)).await;
        assert!(calls.load(Ordering::SeqCst) <= 3, "{calls:?}");
        drop(parts);
        while ended.upgrade().is_some() {
            tokio::task::yield_now().await;
        }

        let (source, calls, ended) = numbers(1_000, false);
        let mut parts = body(None, source, Ulid::next()).into_data_stream();
        drop(calls);
        assert!(parts.next().await.is_none(), "nothing to begin with");
        drop(ended);

        let (source, _, ended) = numbers(1_000, false);
        let mut parts = body(Some("first\n".into()), source, Ulid::next()).into_data_stream();
        let started = Instant::now();
        while ended.upgrade().is_some() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let waited = started.elapsed();
        assert!(
            waited >= WRITE_STALL && waited < WRITE_STALL * 2,
            "{waited:?}"
        );
        // What was handed over comes, then the cut.
        let mut outcomes = Vec::new();
        while let Some(part) = parts.next().await {
            outcomes.push(part.is_ok());
        }
        assert_eq!(outcomes.last(), Some(&false), "{outcomes:?}");
    }
}
