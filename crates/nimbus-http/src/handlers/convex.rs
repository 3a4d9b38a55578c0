//! Handlers of the Convex surface (convex.md 1).
//!
//! Each finds out who calls, reads the call, has it run and writes what became of it. It must not
//! look at credentials or know how functions run.

use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Response};
use nimbus_core::ErrorCode;

use crate::answer::JSON;
use crate::convex::entry::{Entered, enter};
use crate::convex::wire::{
    BatchBody, CallAtBody, CallBody, MAX_BODY, MAX_ECHO, RunBody, Wanted, from_query, parse,
    timestamp_answer, write_outcome,
};
use crate::error::{ApiError, ApiResult};
use crate::extract::{check_content_type, read_body};
use crate::functions::error::CallError;
use crate::functions::format::Format;
use crate::functions::{Ran, Wants};
use crate::route::{ConvexCall, detached};

/// Longest answer to a batch in bytes (design section 7).
const MAX_BATCH_ANSWER: usize = 16 * 1024 * 1024;
/// Longest time of a query, or of all queries of a batch, their waits for a place included (convex.md 0).
const QUERY_TIME: Duration = Duration::from_secs(300);

type Answer = ApiResult<Response<Body>>;

fn text(text: &str) -> Answer {
    let mut response = Response::new(Body::from(text.to_owned()));
    let media = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, media);
    Ok(response)
}

fn json(text: String) -> Answer {
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    Ok(response)
}

pub(crate) async fn banner(call: ConvexCall) -> Answer {
    let _ = enter(call).await?;
    text("This Convex deployment is running on Nimbus. See https://docs.convex.dev/.")
}

pub(crate) async fn version(call: ConvexCall) -> Answer {
    let _ = enter(call).await?;
    text(env!("CARGO_PKG_VERSION"))
}

pub(crate) async fn instance_name(call: ConvexCall) -> Answer {
    let (entered, _) = enter(call).await?;
    text(entered.caller.context.tenant().as_str())
}

pub(crate) async fn echo(call: ConvexCall) -> Answer {
    let (entered, body) = enter(call).await?;
    let media = entered.headers.get(CONTENT_TYPE).cloned();
    // The whole body is held, so anyone may send no more than to a function.
    let limit = match entered.caller.context.principal() {
        Some(_) => MAX_ECHO,
        None => MAX_BODY,
    };
    let body = read_body(&entered.headers, body, limit).await?;
    let mut response = Response::new(Body::from(body));
    if let Some(media) = media {
        response.headers_mut().insert(CONTENT_TYPE, media);
    }
    Ok(response)
}

/// The body of a call, JSON.
async fn read(headers: &HeaderMap, body: Body) -> ApiResult<Bytes> {
    check_content_type(headers, "application/json")?;
    read_body(headers, body, MAX_BODY).await
}

/// Who calls, and what.
async fn called(call: ConvexCall) -> ApiResult<(Entered, Wanted)> {
    let (entered, body) = enter(call).await?;
    let body: CallBody = parse(&read(&entered.headers, body).await?)?;
    let wanted = body.wanted(entered.client.default_format)?;
    Ok((entered, wanted))
}

fn outcome(entered: &Entered, wanted: &Wanted, ran: &Ran) -> Answer {
    let request = entered.exchange.id.hex();
    let mut out = String::new();
    write_outcome(ran, wanted.format, &request, &mut out);
    json(out)
}

pub(crate) async fn query(call: ConvexCall) -> Answer {
    let (entered, wanted) = called(call).await?;
    run_query(&entered, &wanted, None).await
}

pub(crate) async fn get_query(call: ConvexCall) -> Answer {
    let (entered, _) = enter(call).await?;
    let wanted = from_query(&entered.uri, entered.client.default_format)?;
    run_query(&entered, &wanted, None).await
}

pub(crate) async fn query_at_ts(call: ConvexCall) -> Answer {
    let (entered, body) = enter(call).await?;
    let body: CallAtBody = parse(&read(&entered.headers, body).await?)?;
    let (at, wanted) = body.wanted(entered.client.default_format)?;
    run_query(&entered, &wanted, Some(at)).await
}

async fn run_query(entered: &Entered, wanted: &Wanted, at: Option<u64>) -> Answer {
    let ran = in_time(QUERY_TIME, one_query(entered, wanted, at)).await?;
    outcome(entered, wanted, &ran)
}

async fn one_query(entered: &Entered, wanted: &Wanted, at: Option<u64>) -> ApiResult<Ran> {
    let (service, call) = (&entered.app.functions, &wanted.call);
    let running = service.query(&entered.tenant, &entered.caller, call, at);
    Ok(running.await?)
}

/// A request for queries is not worth more time than a client waits, and ends when the client leaves.
async fn in_time<T>(time: Duration, running: impl Future<Output = ApiResult<T>>) -> ApiResult<T> {
    match tokio::time::timeout(time, running).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let text = "the query took too long and was cancelled";
            Err(ApiError::new(ErrorCode::OpCancelled, text))
        }
    }
}

/// Time of the newest commit of any server.
async fn newest(entered: &Entered) -> ApiResult<u64> {
    entered.tenant.catch_up().await?;
    Ok(entered.tenant.latest_timestamp())
}

pub(crate) async fn query_ts(call: ConvexCall) -> Answer {
    let (entered, _) = enter(call).await?;
    json(timestamp_answer(newest(&entered).await?))
}

pub(crate) async fn query_batch(call: ConvexCall) -> Answer {
    let (entered, body) = enter(call).await?;
    let body: BatchBody = parse(&read(&entered.headers, body).await?)?;
    let all = body.wanted(entered.client.default_format)?;
    let at = newest(&entered).await?;
    let request = entered.exchange.id.hex();
    let running = async {
        let mut answer = BatchAnswer::new();
        for wanted in &all {
            let ran = one_query(&entered, wanted, Some(at)).await?;
            answer.add(&ran, wanted.format, &request)?;
        }
        Ok(answer.end())
    };
    json(in_time(QUERY_TIME, running).await?)
}

/// The answer to a batch as far as it is written.
struct BatchAnswer {
    out: String,
    count: usize,
}

impl BatchAnswer {
    fn new() -> BatchAnswer {
        BatchAnswer {
            out: String::from("{\"results\":["),
            count: 0,
        }
    }

    /// Appends what became of one more query.
    ///
    /// # Errors
    /// 400 `op.cap_exceeded` when it is too much.
    fn add(&mut self, ran: &Ran, format: Format, request: &str) -> ApiResult<()> {
        if self.count > 0 {
            self.out.push(',');
        }
        self.count += 1;
        write_outcome(ran, format, request, &mut self.out);
        if self.out.len() > MAX_BATCH_ANSWER {
            let text = format!(
                "the answers to the first {} queries of the batch have more than {MAX_BATCH_ANSWER} bytes; ask fewer queries at once",
                self.count
            );
            return Err(ApiError::new(ErrorCode::OpCapExceeded, text));
        }
        Ok(())
    }

    fn end(mut self) -> String {
        self.out.push_str("]}");
        self.out
    }
}

pub(crate) async fn mutation(call: ConvexCall) -> Answer {
    let (entered, wanted) = called(call).await?;
    run_to_the_end(entered, wanted, Wants::Mutation).await
}

pub(crate) async fn action(call: ConvexCall) -> Answer {
    let (entered, wanted) = called(call).await?;
    run_to_the_end(entered, wanted, Wants::Action).await
}

pub(crate) async fn function(call: ConvexCall) -> Answer {
    let (entered, wanted) = called(call).await?;
    run_to_the_end(entered, wanted, Wants::Named).await
}

pub(crate) async fn run(call: ConvexCall) -> Answer {
    let (entered, body) = enter(call).await?;
    let body: RunBody = parse(&read(&entered.headers, body).await?)?;
    let wanted = body.wanted(entered.params.text("path")?)?;
    run_to_the_end(entered, wanted, Wants::Any).await
}

/// What may change something goes on when the client leaves.
async fn run_to_the_end(entered: Entered, wanted: Wanted, wants: Wants) -> Answer {
    let (app, exchange) = (entered.app.clone(), entered.exchange.clone());
    let work = async move {
        let (service, call) = (&entered.app.functions, &wanted.call);
        let ran = service.run(&entered.tenant, &entered.caller, call, wants);
        let ran = ran.await.inspect_err(|error| {
            if matches!(error, CallError::Denied(_)) {
                entered.exchange.forbid();
            }
        });
        outcome(&entered, &wanted, &ran?)
    };
    detached(app, exchange, work).await
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use nimbus_core::Value;

    use super::*;

    #[test]
    fn a_batch_ends_at_its_size() {
        let text = "x".repeat(MAX_BATCH_ANSWER / 4);
        let ran = Ran {
            result: Ok(Value::String(text)),
            log_lines: Vec::new(),
        };
        let mut answer = BatchAnswer::new();
        for _ in 0..3 {
            answer.add(&ran, Format::Clean, "0").unwrap();
        }
        let error = answer.add(&ran, Format::Clean, "0").unwrap_err();
        let found = (error.status().as_u16(), error.code());
        assert_eq!(found, (400, ErrorCode::OpCapExceeded));
    }

    #[tokio::test(start_paused = true)]
    async fn queries_end_with_their_time() {
        let sleep = async |time| {
            tokio::time::sleep(time).await;
            Ok(())
        };
        in_time(QUERY_TIME, sleep(QUERY_TIME / 2)).await.unwrap();
        let error = in_time(QUERY_TIME, sleep(QUERY_TIME * 2))
            .await
            .unwrap_err();
        assert_eq!(error.code(), ErrorCode::OpCancelled);
    }
}
