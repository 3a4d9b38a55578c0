//! What a handler may take from a request: a body, path parameters, a query string.
//!
//! Bodies are bounded in time, and in size before a byte is parsed. This room must not know
//! which routes exist or what the values mean.

use std::str::FromStr;
use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, Uri};
use http_body_util::BodyExt as _;
use nimbus_core::{ErrorCode, NameError};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use tokio::task::unconstrained;
use tokio::time::{Instant, timeout};

use crate::error::{ApiError, ApiResult};
use crate::status::Special;

/// A client may pause this long within a body.
const BODY_IDLE: Duration = Duration::from_secs(10);
/// Below this rate a body is given up, once [`BODY_IDLE`] has passed since its start.
const BODY_FLOOR_BYTES_PER_SEC: u64 = 1024;

/// A body type: how it reads in OpenAPI, and one example that the route test sends.
pub(crate) trait JsonBody: DeserializeOwned + JsonSchema + Send + 'static {
    /// A body that the route accepts, as JSON text.
    const EXAMPLE: &'static str;
}

/// What the OpenAPI document and the route test say about a body.
#[derive(Clone, Copy)]
pub(crate) struct BodyDoc {
    /// The schema of the body.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
    /// See [`JsonBody::EXAMPLE`].
    pub example: &'static str,
    /// Its media type.
    pub media: &'static str,
}

/// What a handler takes beside its context.
pub(crate) trait Input: Sized + Send + 'static {
    /// Whether the body is still coming in while the handler runs.
    const STREAMS: bool = false;
    /// Describes the body; `None` when the route reads none.
    fn doc() -> Option<BodyDoc>;
    /// Takes the body, of at most `limit` bytes unless it streams.
    fn take(
        headers: &HeaderMap,
        body: Body,
        limit: usize,
    ) -> impl Future<Output = ApiResult<Self>> + Send;
}

/// No body. One that is sent anyway is left unread.
impl Input for () {
    fn doc() -> Option<BodyDoc> {
        None
    }

    async fn take(_: &HeaderMap, _: Body, _: usize) -> ApiResult<()> {
        Ok(())
    }
}

/// A JSON body, read by the strict reader of `nimbus-core`.
pub(crate) struct Json<T>(pub T);

impl<T: JsonBody> Input for Json<T> {
    fn doc() -> Option<BodyDoc> {
        Some(BodyDoc {
            schema: SchemaGenerator::subschema_for::<T>,
            example: T::EXAMPLE,
            media: "application/json",
        })
    }

    async fn take(headers: &HeaderMap, body: Body, limit: usize) -> ApiResult<Json<T>> {
        check_content_type(headers, "application/json")?;
        Json::parse(&read_body(headers, body, limit).await?)
    }
}

impl<T: JsonBody> Json<T> {
    /// Reads a whole body.
    pub(crate) fn parse(body: &Bytes) -> ApiResult<Json<T>> {
        Ok(Json(nimbus_core::json::from_slice(body)?))
    }
}

/// Checks that the body is announced as `media`, plain and in UTF-8.
pub(crate) fn check_content_type(headers: &HeaderMap, media: &str) -> ApiResult<()> {
    let refuse = |message: &str| Err(ApiError::special(Special::MediaType, message));
    let mut types = headers.get_all(CONTENT_TYPE).iter();
    let (first, more) = (
        types.next().and_then(|value| value.to_str().ok()),
        types.next(),
    );
    let (Some(first), None) = (first, more) else {
        return refuse(&format!("send one `Content-Type: {media}` header"));
    };
    let mut parts = first.split(';').map(str::trim);
    if !parts
        .next()
        .is_some_and(|found| found.eq_ignore_ascii_case(media))
    {
        return refuse(&format!("the content type must be `{media}`"));
    }
    for parameter in parts.filter(|part| !part.is_empty()) {
        let charset = parameter
            .split_once('=')
            .filter(|(name, _)| name.eq_ignore_ascii_case("charset"));
        if charset.is_some_and(|(_, set)| !set.trim_matches('"').eq_ignore_ascii_case("utf-8")) {
            return refuse("the charset must be utf-8");
        }
    }
    let identity = |value: &http::HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    if !headers.get_all(CONTENT_ENCODING).iter().all(identity) {
        return refuse("compressed request bodies are not accepted");
    }
    Ok(())
}

/// Reads a body of at most `limit` bytes, each part within [`BODY_IDLE`] and the whole no slower
/// than [`BODY_FLOOR_BYTES_PER_SEC`].
///
/// # Errors
/// 413 `body_bytes`, 408 when it comes too slowly, 400 when it ends early.
pub(crate) async fn read_body(headers: &HeaderMap, body: Body, limit: usize) -> ApiResult<Bytes> {
    let declared = headers
        .get(CONTENT_LENGTH)
        .and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    let bound = u64::try_from(limit).unwrap_or(u64::MAX);
    let too_large = |n: u64| ApiError::too_large(Special::BodyTooLarge, "body_bytes", n, bound);
    if let Some(declared) = declared.filter(|declared| *declared > bound) {
        return Err(too_large(declared));
    }
    let (mut body, mut chunks) = (PacedBody::new(body), Chunks::default());
    while let Some(data) = body.next().await? {
        chunks.push(data);
        if chunks.len() > bound {
            return Err(too_large(chunks.len()));
        }
    }
    Ok(chunks.join())
}

/// A body that must come no slower than the bounds say, counting only the time that the server
/// waited for it.
pub(crate) struct PacedBody {
    body: Body,
    taken: u64,
    waited: Duration,
}

impl PacedBody {
    pub(crate) fn new(body: Body) -> PacedBody {
        PacedBody {
            body,
            taken: 0,
            waited: Duration::ZERO,
        }
    }

    /// The next part; `None` at the end.
    ///
    /// # Errors
    /// 408 when it comes too slowly, 400 when the body ends early.
    pub(crate) async fn next(&mut self) -> ApiResult<Option<Bytes>> {
        loop {
            let earned = Duration::from_secs(self.taken / BODY_FLOOR_BYTES_PER_SEC);
            let left = (BODY_IDLE + earned).saturating_sub(self.waited);
            let started = Instant::now();
            // Unconstrained, or a client that sends faster than its bytes are looked at would use up
            // the task's budget at the socket each time, and the clock would never be asked.
            let waiting = timeout(left.min(BODY_IDLE), self.body.frame());
            let outcome = unconstrained(waiting).await;
            self.waited += started.elapsed();
            let frame = match outcome {
                Ok(None) => return Ok(None),
                Ok(Some(Ok(frame))) => frame,
                Ok(Some(Err(error))) => {
                    let text = "the request body ended early or is malformed";
                    return Err(ApiError::invalid(text).with_inside(error.to_string()));
                }
                Err(_) => {
                    let text = "the request body came too slowly";
                    return Err(ApiError::new(ErrorCode::OpCancelled, text));
                }
            };
            if let Ok(data) = frame.into_data() {
                self.taken += u64::try_from(data.len()).unwrap_or(u64::MAX);
                return Ok(Some(data));
            }
        }
    }
}

/// Body parts; a body that came in one piece is not copied.
#[derive(Default)]
struct Chunks {
    first: Bytes,
    rest: BytesMut,
}

impl Chunks {
    fn len(&self) -> u64 {
        u64::try_from(self.first.len() + self.rest.len()).unwrap_or(u64::MAX)
    }

    fn push(&mut self, data: Bytes) {
        if self.first.is_empty() && self.rest.is_empty() {
            self.first = data;
            return;
        }
        if self.rest.is_empty() {
            self.rest
                .extend_from_slice(&std::mem::take(&mut self.first));
        }
        self.rest.extend_from_slice(&data);
    }

    fn join(self) -> Bytes {
        if self.rest.is_empty() {
            self.first
        } else {
            self.rest.freeze()
        }
    }
}

/// The parameters of the matched path, percent-decoded.
#[derive(Clone, Debug, Default)]
pub(crate) struct PathParams(pub Vec<(String, String)>);

impl PathParams {
    /// The parameter `name` as text.
    ///
    /// # Errors
    /// An internal error when the route has no such parameter.
    pub(crate) fn text(&self, name: &str) -> ApiResult<&str> {
        let found = self.0.iter().find(|(key, _)| key == name);
        found
            .map(|(_, value)| value.as_str())
            .ok_or_else(|| ApiError::internal(format!("the route has no parameter {name}")))
    }

    /// The parameter `name` as a checked name.
    ///
    /// # Errors
    /// 400 when it is not one.
    pub(crate) fn name<T: FromStr<Err = NameError>>(&self, name: &str) -> ApiResult<T> {
        Ok(self.text(name)?.parse()?)
    }
}

/// One parameter that a route takes in its query string.
#[derive(Clone, Copy, Debug)]
pub(crate) struct QueryField {
    /// Its name.
    pub name: &'static str,
    /// What it may be.
    pub kind: QueryKind,
    /// What it does.
    pub summary: &'static str,
}

/// What a query parameter may be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum QueryKind {
    /// An unsigned integer, with its value when absent; `None` leaves that to the handler.
    Number(Option<u64>),
    /// One of these words, the first when absent.
    Word(&'static [&'static str]),
    /// Any text but none.
    Text,
    /// Any number of such texts.
    Texts,
}

/// The query string of a request, known parameters only, as they were given.
#[derive(Clone, Debug, Default)]
pub(crate) struct QueryArgs {
    fields: &'static [QueryField],
    given: Vec<(&'static str, String)>,
}

impl QueryArgs {
    /// Reads the query string of `uri` against the route's `fields`.
    ///
    /// # Errors
    /// 400 for an unknown or repeated parameter, or one that is not of its kind.
    pub(crate) fn parse(uri: &Uri, fields: &'static [QueryField]) -> ApiResult<QueryArgs> {
        let mut given: Vec<(&'static str, String)> = Vec::new();
        if uri.query().is_none_or(str::is_empty) {
            return Ok(QueryArgs { fields, given });
        }
        let pairs = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|_| ApiError::invalid("the query string is malformed"))?
            .0;
        for (name, value) in pairs {
            let shown: String = name.chars().take(80).collect();
            let refuse =
                |what: &str| ApiError::invalid(format!("query parameter `{shown}` {what}"));
            let Some(field) = fields.iter().find(|field| field.name == name) else {
                return Err(ApiError::invalid(format!(
                    "unknown query parameter `{shown}`"
                )));
            };
            let repeats = matches!(field.kind, QueryKind::Texts);
            if !repeats && given.iter().any(|(seen, _)| *seen == field.name) {
                return Err(refuse("is repeated"));
            }
            match field.kind {
                QueryKind::Number(_) if unsigned(&value).is_none() => {
                    return Err(refuse("must be an unsigned integer"));
                }
                QueryKind::Word(words) if !words.contains(&value.as_str()) => {
                    return Err(refuse(&format!("must be one of: {}", words.join(", "))));
                }
                QueryKind::Text | QueryKind::Texts if value.is_empty() => {
                    return Err(refuse("is empty"));
                }
                _ => given.push((field.name, value)),
            }
        }
        Ok(QueryArgs { fields, given })
    }

    fn value(&self, name: &str) -> ApiResult<(QueryKind, Option<&str>)> {
        let field = self.fields.iter().find(|field| field.name == name);
        let kind = field.map(|field| field.kind).ok_or_else(|| {
            ApiError::internal(format!("the route has no query parameter {name}"))
        })?;
        let given = self.given.iter().find(|(key, _)| *key == name);
        Ok((kind, given.map(|(_, value)| value.as_str())))
    }

    /// The number `name`, its default included.
    ///
    /// # Errors
    /// An internal error when the route does not declare it as one.
    pub(crate) fn number(&self, name: &str) -> ApiResult<Option<u64>> {
        match self.value(name)? {
            (QueryKind::Number(default), given) => Ok(given.and_then(unsigned).or(default)),
            _ => Err(ApiError::internal(format!("{name} is no number"))),
        }
    }

    /// The word or text `name`; none for a text that is absent.
    ///
    /// # Errors
    /// An internal error when the route does not declare it.
    pub(crate) fn text(&self, name: &str) -> ApiResult<Option<&str>> {
        Ok(match self.value(name)? {
            (QueryKind::Word(words), None) => words.first().copied(),
            (_, given) => given,
        })
    }
}

impl QueryArgs {
    /// Every text that is given as `name`, in their order.
    ///
    /// # Errors
    /// An internal error when the route does not declare it.
    pub(crate) fn texts<'a>(&'a self, name: &'a str) -> ApiResult<impl Iterator<Item = &'a str>> {
        self.value(name)?;
        let of_name = move |(key, _): &&(&'static str, String)| *key == name;
        let given = self.given.iter().filter(of_name);
        Ok(given.map(|(_, value)| value.as_str()))
    }
}

fn unsigned(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use futures_util::stream;
    use http::HeaderValue;

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        map
    }

    #[test]
    fn only_plain_json_in_utf8_is_accepted() {
        let good = [
            "application/json",
            "Application/JSON; charset=UTF-8",
            "application/json; charset=\"utf-8\"",
        ];
        for value in good {
            assert!(
                check_content_type(&headers(&[("content-type", value)]), "application/json")
                    .is_ok(),
                "{value}"
            );
        }
        let bad: &[&[(&'static str, &str)]] = &[
            &[],
            &[("content-type", "text/plain")],
            &[("content-type", "application/jsonp")],
            &[("content-type", "application/json; charset=latin1")],
            &[
                ("content-type", "application/json"),
                ("content-type", "text/plain"),
            ],
            &[
                ("content-type", "application/json"),
                ("content-encoding", "gzip"),
            ],
        ];
        for pairs in bad {
            let error = check_content_type(&headers(pairs), "application/json").unwrap_err();
            assert_eq!(error.status().as_u16(), 415, "{pairs:?}");
        }
    }

    fn stream_of(parts: &[&'static str]) -> Body {
        let parts: Vec<Result<Bytes, std::io::Error>> = parts
            .iter()
            .map(|part| Ok(Bytes::from_static(part.as_bytes())))
            .collect();
        Body::from_stream(stream::iter(parts))
    }

    #[tokio::test]
    async fn bodies_are_joined_and_bounded() {
        let none = HeaderMap::new();
        assert_eq!(read_body(&none, Body::empty(), 4).await.unwrap(), "");
        assert_eq!(
            read_body(&none, stream_of(&["ab", "cd"]), 4).await.unwrap(),
            "abcd"
        );
        assert_eq!(
            read_body(&none, stream_of(&["a", "", "b", "cd"]), 4)
                .await
                .unwrap(),
            "abcd"
        );
        let error = read_body(&none, stream_of(&["ab", "cde"]), 4)
            .await
            .unwrap_err();
        assert_eq!(error.status().as_u16(), 413);
        // A declared length is enough to refuse, before any byte.
        let pending = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        let error = read_body(&headers(&[("content-length", "5")]), pending, 4)
            .await
            .unwrap_err();
        assert_eq!(error.status().as_u16(), 413);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_stalls_or_trickles_is_given_up() {
        let none = HeaderMap::new();
        let stalled = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        let started = Instant::now();
        let error = read_body(&none, stalled, 100).await.unwrap_err();
        assert_eq!(error.status().as_u16(), 408);
        assert_eq!(started.elapsed().as_secs(), BODY_IDLE.as_secs());

        // One byte every 9 s is never idle for 10 s, yet far below the floor.
        let trickle = stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_secs(9)).await;
            Some((Ok::<_, std::io::Error>(Bytes::from_static(b"x")), ()))
        });
        let started = Instant::now();
        let error = read_body(&none, Body::from_stream(trickle), 1_000_000)
            .await
            .unwrap_err();
        assert_eq!(error.status().as_u16(), 408);
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "{:?}",
            started.elapsed()
        );
    }

    const FIELDS: &[QueryField] = &[
        QueryField {
            name: "after",
            kind: QueryKind::Number(None),
            summary: "",
        },
        QueryField {
            name: "limit",
            kind: QueryKind::Number(Some(100)),
            summary: "",
        },
        QueryField {
            name: "form",
            kind: QueryKind::Word(&["one", "two"]),
            summary: "",
        },
        QueryField {
            name: "list",
            kind: QueryKind::Text,
            summary: "",
        },
    ];

    #[test]
    fn query_strings_are_strict() {
        let parse = |text: &str| QueryArgs::parse(&text.parse().unwrap(), FIELDS);
        for (text, after, limit) in [
            ("/j", None, 100),
            ("/j?", None, 100),
            ("/j?limit=5", None, 5),
            ("/j?after=7", Some(7), 100),
            ("/j?limit=5&after=18446744073709551615", Some(u64::MAX), 5),
            ("/j?%61fter=3", Some(3), 100),
        ] {
            let args = parse(text).unwrap();
            assert_eq!(
                (args.number("after").unwrap(), args.number("limit").unwrap()),
                (after, Some(limit))
            );
        }
        let words = |text: &str| {
            let args = parse(text).unwrap();
            let text = |name| args.text(name).unwrap().map(str::to_owned);
            (text("form"), text("list"))
        };
        assert_eq!(words("/j"), (Some("one".into()), None));
        let given = (Some("two".into()), Some("a,b c".into()));
        assert_eq!(words("/j?form=two&list=a%2Cb+c"), given);
        for text in [
            "/j?x=1",
            "/j?after=1&after=1",
            "/j?after=",
            "/j?after=-1",
            "/j?after=%2B1",
            "/j?after",
            "/j?after=18446744073709551616",
            "/j?after=1.0",
            "/j?After=1",
            "/j?form=three",
            "/j?form=",
            "/j?form=one&form=one",
            "/j?list=",
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.status().as_u16(), 400, "{text}");
        }
    }
}
