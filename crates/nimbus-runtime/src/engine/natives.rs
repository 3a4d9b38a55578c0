//! The functions that a bare realm's scripts are given: syscalls, console lines, clock, chance, and the codecs
//! behind URL and text. They reach the invocation through [`super::session`], and no function of the developer
//! ever holds one of them.

use deno_core::v8;
use v8::MapFnTo as _;

use super::session::{self, Pending};
use super::strings::{self, text};
use crate::protocol::Reply;

type Args<'s> = v8::FunctionCallbackArguments<'s>;
type Return<'s> = v8::ReturnValue<'s, v8::Value>;
type Scope<'s, 'i> = v8::PinScope<'s, 'i>;

/// Every native with its name, in the order of the snapshot's external references.
fn all() -> [(&'static str, v8::FunctionCallback); 15] {
    [
        ("syscall", syscall.map_fn_to()),
        ("asyncSyscall", async_syscall.map_fn_to()),
        ("env", env.map_fn_to()),
        ("log", log.map_fn_to()),
        ("random", random.map_fn_to()),
        ("now", now.map_fn_to()),
        ("clock", clock.map_fn_to()),
        ("encode", strings::encode.map_fn_to()),
        ("decode", strings::decode.map_fn_to()),
        ("toBase64", strings::to_base64.map_fn_to()),
        ("fromBase64", strings::from_base64.map_fn_to()),
        ("parseUrl", strings::parse_url.map_fn_to()),
        ("setUrl", strings::set_url.map_fn_to()),
        ("parseForm", strings::parse_form.map_fn_to()),
        ("formatForm", strings::format_form.map_fn_to()),
    ]
}

/// What a snapshot refers to outside itself.
pub(crate) fn external_references() -> Vec<v8::ExternalReference> {
    let functions = all();
    functions
        .iter()
        .map(|(_, function)| v8::ExternalReference {
            function: *function,
        })
        .collect()
}

/// The object with all natives.
pub(crate) fn object<'s>(scope: &mut Scope<'s, '_>) -> Option<v8::Local<'s, v8::Object>> {
    let host = v8::Object::new(scope);
    for (name, callback) in all() {
        let key = v8::String::new(scope, name)?;
        let function = v8::Function::builder_raw(callback).build(scope)?;
        host.set(scope, key.into(), function.into())?;
    }
    Some(host)
}

/// `[message, data]`: the scripts make the error, in the function's own realm.
fn failed<'s>(
    scope: &mut Scope<'s, '_>,
    message: &str,
    data: Option<&str>,
) -> Option<v8::Local<'s, v8::Value>> {
    let message = v8::String::new(scope, message)?.into();
    let data = match data {
        Some(data) => v8::String::new(scope, data)?.into(),
        None => v8::undefined(scope).into(),
    };
    Some(strings::list(scope, &[message, data])?.into())
}

/// Why the host is not asked now.
fn refused(op: &str) -> Option<String> {
    let importing = session::frame(|frame| frame.importing).unwrap_or(true);
    importing.then(|| {
        format!("Can't use `{op}` at import time: call the database, other functions and the like within a function.")
    })
}

fn syscall(scope: &mut Scope<'_, '_>, args: Args<'_>, mut rv: Return<'_>) {
    let (op, json) = (text(scope, args.get(0)), text(scope, args.get(1)));
    let reply = match refused(&op) {
        Some(message) => Reply::Error {
            message,
            data: None,
        },
        None => session::with(|session| session.ask(&op, &json)),
    };
    let value = match reply {
        Reply::Json(answer) => v8::String::new(scope, &answer).map(Into::into),
        Reply::Error { message, data } => failed(scope, &message, data.as_deref()),
        Reply::Run(_) => failed(scope, &format!("Unknown operation {op}"), None),
    };
    if let Some(value) = value {
        rv.set(value);
    }
}

/// `(op, json, resolve, reject)`: queued until the realm has nothing else to do.
fn async_syscall(scope: &mut Scope<'_, '_>, args: Args<'_>, _: Return<'_>) {
    let (op, json) = (text(scope, args.get(0)), text(scope, args.get(1)));
    let resolve = v8::Local::<v8::Function>::try_from(args.get(2));
    let reject = v8::Local::<v8::Function>::try_from(args.get(3));
    let (Ok(resolve), Ok(reject)) = (resolve, reject) else {
        return;
    };
    if let Some(message) = refused(&op) {
        let undefined = v8::undefined(scope).into();
        if let Some(message) = v8::String::new(scope, &message) {
            reject.call(scope, undefined, &[message.into()]);
        }
        return;
    }
    let pending = Pending {
        op,
        args: json,
        resolve: v8::Global::new(scope, resolve),
        reject: v8::Global::new(scope, reject),
    };
    session::frame(|frame| frame.pending.push_back(pending));
}

fn env(scope: &mut Scope<'_, '_>, args: Args<'_>, mut rv: Return<'_>) {
    let name = text(scope, args.get(0));
    match variable(&name) {
        Ok(Some(value)) => {
            if let Some(value) = v8::String::new(scope, &value) {
                rv.set(value.into());
            }
        }
        Ok(None) => {}
        Err(message) => strings::throw(scope, &message),
    }
}

fn variable(name: &str) -> Result<Option<String>, String> {
    let analysed = session::frame(|frame| {
        let environment = frame.environment.as_ref()?;
        let found = environment.get(name).cloned();
        if found.is_none() && frame.strict_environment {
            frame
                .missing_variable
                .get_or_insert_with(|| name.to_owned());
            return Some(Err(format!(
                "Environment variable {name} is used in auth config file but its value was not set"
            )));
        }
        Some(Ok(found))
    });
    if let Some(Some(known)) = analysed {
        return known;
    }
    let args = serde_json::json!({ "name": name }).to_string();
    match session::with(|session| session.ask("nimbus/env", &args)) {
        Reply::Json(answer) => {
            serde_json::from_str(&answer).map_err(|e| format!("environment variable {name}: {e}"))
        }
        Reply::Error { message, .. } => Err(message),
        Reply::Run(_) => Ok(None),
    }
}

fn log(scope: &mut Scope<'_, '_>, args: Args<'_>, _: Return<'_>) {
    let line = text(scope, args.get(0));
    session::with(|session| session.log(line));
}

fn random(_: &mut Scope<'_, '_>, _: Args<'_>, mut rv: Return<'_>) {
    rv.set_double(session::frame(|frame| frame.random()).unwrap_or(0.0));
}

fn now(_: &mut Scope<'_, '_>, _: Args<'_>, mut rv: Return<'_>) {
    let importing = session::frame(|frame| frame.importing).unwrap_or(true);
    session::with(|session| session.observed_time |= !importing);
    rv.set_double(session::frame(|frame| frame.now()).unwrap_or(0.0));
}

/// For `console.time` and `performance.now`: it stands, since what they say could become a result.
fn clock(_: &mut Scope<'_, '_>, _: Args<'_>, mut rv: Return<'_>) {
    rv.set_double(0.0);
}
