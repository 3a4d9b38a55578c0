//! Tests of the shapes of requests and answers.

use super::*;
use crate::functions::UdfError;

fn read(body: &str) -> ApiResult<(String, String, Format)> {
    let body: CallBody = parse(body.as_bytes())?;
    let wanted = body.wanted(Format::Clean)?;
    let args = wanted.call.args.to_json();
    Ok((wanted.call.path.to_string(), args, wanted.format))
}

#[test]
fn arguments_come_alone_or_in_an_array() {
    for args in [r#"{"a":1}"#, r#"[{"a":1}]"#] {
        let read = read(&format!(r#"{{"path":"m:f","args":{args}}}"#)).unwrap();
        assert_eq!(read, ("m:f".into(), r#"{"a":1}"#.into(), Format::Clean));
    }
    let with = r#"{"path":"d/m.js:f","args":{},"format":"convex_encoded_json","componentPath":null,"extra":[1]}"#;
    let expected = ("d/m:f".into(), "{}".into(), Format::Encoded);
    assert_eq!(read(with).unwrap(), expected);
    let long = r#"{"path":"m:f","args":{"n":9223372036854776000,"i":{"$integer":"AQAAAAAAAAA="},"z":{"$float":"AAAAAAAAAIA="}}}"#;
    let (_, args, _) = read(long).unwrap();
    assert_eq!(
        args,
        r#"{"i":{"$integer":"AQAAAAAAAAA="},"n":9.223372036854776e+18,"z":{"$float":"AAAAAAAAAIA="}}"#
    );
}

#[test]
fn bad_bodies_have_their_codes() {
    let table = [
        ("", "BadJsonBody"),
        ("{", "BadJsonBody"),
        ("[]", "BadJsonBody"),
        (r#"{"path":"m:f"}"#, "BadJsonBody"),
        (r#"{"args":{}}"#, "BadJsonBody"),
        (r#"{"path":1,"args":{}}"#, "BadJsonBody"),
        (r#"{"path":"m:f","args":{"$x":1}}"#, "BadJsonBody"),
        (
            r#"{"path":"m:f","args":{"$undefined":null}}"#,
            "BadJsonBody",
        ),
        (r#"{"path":"m:f","args":{"a":{"$set":[]}}}"#, "BadJsonBody"),
        (r#"{"path":"m:f","args":{"a":1,"a":2}}"#, "BadJsonBody"),
        (r#"{"path":"m:f","args":{"a":"\ud800"}}"#, "BadJsonBody"),
        (
            r#"{"path":"m:f","args":{"a":9007199254740993}}"#,
            "BadJsonBody",
        ),
        (
            r#"{"path":"m-1:f","args":{}}"#,
            "BadConvexFunctionIdentifier",
        ),
        (r#"{"path":"","args":{}}"#, "BadConvexFunctionIdentifier"),
        (r#"{"path":"m:f","args":[]}"#, "InvalidArguments"),
        (r#"{"path":"m:f","args":[{},{}]}"#, "InvalidArguments"),
        (r#"{"path":"m:f","args":[1]}"#, "InvalidArguments"),
        (r#"{"path":"m:f","args":null}"#, "InvalidArguments"),
        (r#"{"path":"m:f","args":"{}"}"#, "InvalidArguments"),
        (r#"{"path":"m:f","args":{},"format":"xml"}"#, "BadFormat"),
        (
            r#"{"path":"m:f","args":{},"componentPath":"c"}"#,
            "ComponentNotFound",
        ),
    ];
    for (body, code) in table {
        let error = read(body).unwrap_err();
        assert_eq!(error.convex_name(), Some(code), "{body}");
        assert_eq!(error.status().as_u16(), 400, "{body}");
    }
}

/// Arguments whose text has about `bytes` and that need ninety times that.
fn amplifying(bytes: usize) -> String {
    let list = format!("[{}]", vec![r#"{"":0}"#; 1_000].join(","));
    let lists = vec![list; bytes / 7_000].join(",");
    format!(r#"{{"a":[{lists}]}}"#)
}

#[test]
fn small_bodies_do_not_become_large_arguments() {
    let too_large = |error: ApiError| {
        assert_eq!(error.status().as_u16(), 400);
        let text = error.message();
        assert!(text.contains("bytes of memory"), "{text}");
    };
    let args = amplifying(4_000_000);
    let call = format!(r#"{{"ts":"AgEAAAAAAAA=","path":"m:f","args":{args}}}"#);
    too_large(parse::<CallBody>(call.as_bytes()).err().unwrap());
    too_large(parse::<CallAtBody>(call.as_bytes()).err().unwrap());
    too_large(parse::<RunBody>(call.as_bytes()).err().unwrap());
    // Each of these could be read.
    let call = format!(r#"{{"path":"m:f","args":{}}}"#, amplifying(350_000));
    let batch = format!(r#"{{"queries":[{}]}}"#, vec![call.clone(); 3].join(","));
    let read = |text: &str| parse::<BatchBody>(text.as_bytes()).unwrap();
    too_large(read(&batch).wanted(Format::Clean).err().unwrap());
    let single = format!(r#"{{"queries":[{call}]}}"#);
    assert_eq!(read(&single).wanted(Format::Clean).unwrap().len(), 1);
}

#[test]
fn a_query_string_is_the_same_call() {
    let read = |query: &str| {
        let uri = format!("/convex/t/api/query?{query}").parse().unwrap();
        let wanted = from_query(&uri, Format::Clean)?;
        let args = wanted.call.args.to_json();
        ApiResult::Ok((wanted.call.path.to_string(), args, wanted.format))
    };
    let expected = ("m:f".into(), r#"{"a":"x y"}"#.into(), Format::Encoded);
    let query = "path=m%3Af&args=%7B%22a%22%3A%22x+y%22%7D&format=convex_json";
    assert_eq!(read(query).unwrap(), expected);
    for bad in [
        "",
        "path=m:f",
        "args=%7B%7D",
        "path=m:f&path=m:g&args=%7B%7D",
        "path=m:f&args=x",
        "path=m:f&args=%7B%7D&format=x",
        "path=m:f&args=%ff",
    ] {
        assert_eq!(read(bad).unwrap_err().status().as_u16(), 400, "{bad}");
    }
}

#[test]
fn a_timestamp_is_eight_bytes_the_lowest_first() {
    assert_eq!(timestamp_answer(258), r#"{"ts":"AgEAAAAAAAA="}"#);
    assert_eq!(timestamp("AgEAAAAAAAA=").unwrap(), 258);
    for bad in ["", "AgEAAAAAAAA", "AgEAAAAAAAAA", "AgE=", "258"] {
        assert!(timestamp(bad).is_err(), "{bad}");
    }
    let body = r#"{"ts":"AgEAAAAAAAA=","path":"m:f","args":{"b":{"$bytes":"AA=="}}}"#;
    let body: CallAtBody = parse(body.as_bytes()).unwrap();
    let (at, wanted) = body.wanted(Format::Clean).unwrap();
    assert_eq!((at, wanted.call.path.to_string().as_str()), (258, "m:f"));
}

#[test]
fn outcomes_have_the_shapes_of_the_clients() {
    let write = |result: Result<Value, UdfError>, lines: &[&str], format| {
        let log_lines = lines.iter().map(|line| (*line).to_owned()).collect();
        let ran = Ran { result, log_lines };
        let mut out = String::new();
        write_outcome(&ran, format, "0123456789abcdef", &mut out);
        out
    };
    let five = || Ok(Value::Int64(5));
    assert_eq!(
        write(five(), &[], Format::Clean),
        r#"{"status":"success","value":"5"}"#
    );
    assert_eq!(
        write(five(), &["[LOG] 'a\"b'"], Format::Encoded),
        r#"{"status":"success","value":{"$integer":"BQAAAAAAAAA="},"logLines":["[LOG] 'a\"b'"]}"#
    );
    let error = |data| {
        Err(UdfError {
            message: "Uncaught Error: boom\n    at f (../convex/a.ts:1:2)".into(),
            data,
        })
    };
    assert_eq!(
        write(error(None), &[], Format::Clean),
        r#"{"status":"error","errorMessage":"[Request ID: 0123456789abcdef] Server Error\nUncaught Error: boom\n    at f (../convex/a.ts:1:2)"}"#
    );
    let with = write(error(Some(Value::Int64(5))), &["x"], Format::Encoded);
    assert!(
        with.ends_with(r#","errorData":{"$integer":"BQAAAAAAAAA="},"logLines":["x"]}"#),
        "{with}"
    );
}
