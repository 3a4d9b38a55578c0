//! What JavaScript threw, as the caller may see it (convex.md 1.5).

use deno_core::v8;

use super::session;
use crate::call::JsFailure;

/// Longest message that is passed on, in bytes.
const MAX_MESSAGE: usize = 64 * 1024;

/// A failure of our own, without a stack.
pub(crate) fn plain(message: impl Into<String>) -> JsFailure {
    JsFailure {
        message: message.into(),
        stack: String::new(),
        data: None,
    }
}

/// Describes an exception. Getters of the exception may run, and may throw: that is contained.
pub(crate) fn of(
    scope: &mut v8::PinScope<'_, '_>,
    exception: v8::Local<'_, v8::Value>,
) -> JsFailure {
    v8::tc_scope!(let scope, scope);
    let exception = v8::Local::new(scope, exception);
    let mut message = message_of(scope, exception);
    clip(&mut message);
    let (mut stack, mut data) = (String::new(), None);
    if let Ok(object) = v8::Local::<v8::Object>::try_from(exception) {
        if let Some(text) = string_property(scope, object, "stack") {
            stack = session::with(|session| session.maps.stack(&text));
        }
        data = convex_error_data(scope, object);
    }
    JsFailure {
        message,
        stack,
        data,
    }
}

/// The message of what deno_core asks about; of an error it makes its own.
pub(crate) fn text(
    scope: &mut v8::PinScope<'_, '_>,
    args: v8::FunctionCallbackArguments<'_>,
    mut rv: v8::ReturnValue<'_>,
) {
    let thrown = args.get(0);
    if thrown.is_native_error() {
        return;
    }
    v8::tc_scope!(let scope, scope);
    let message = message_of(scope, thrown);
    if let Some(message) = v8::String::new(scope, &message) {
        rv.set(message.into());
    }
}

fn message_of(scope: &mut v8::PinScope<'_, '_>, exception: v8::Local<'_, v8::Value>) -> String {
    if cfg!(not(feature = "quickjs")) {
        return v8::Exception::create_message(scope, exception)
            .get(scope)
            .to_rust_string_lossy(scope);
    }
    // QuickJS asks the exception for its text, and has no message of one that gives none: looking for it would end
    // the process.
    match v8::Local::<v8::Symbol>::try_from(exception) {
        Ok(symbol) => {
            let description = symbol.description(scope);
            let name = match description.is_string() {
                true => description.to_rust_string_lossy(scope),
                false => String::new(),
            };
            format!("Uncaught Symbol({name})")
        }
        Err(_) => match exception.to_string(scope) {
            Some(text) => format!("Uncaught {}", text.to_rust_string_lossy(scope)),
            None => "Uncaught [object Object]".to_owned(),
        },
    }
}

/// Cuts a message to the length that is passed on.
pub(crate) fn clip(message: &mut String) {
    if message.len() > MAX_MESSAGE {
        let cut = (0..=MAX_MESSAGE)
            .rev()
            .find(|at| message.is_char_boundary(*at));
        message.truncate(cut.unwrap_or(0));
        message.push_str("...");
    }
}

fn property<'s>(
    scope: &mut v8::PinScope<'s, '_>,
    object: v8::Local<'_, v8::Object>,
    name: &str,
) -> Option<v8::Local<'s, v8::Value>> {
    let key = v8::String::new(scope, name)?;
    object.get(scope, key.into())
}

fn string_property(
    scope: &mut v8::PinScope<'_, '_>,
    object: v8::Local<'_, v8::Object>,
    name: &str,
) -> Option<String> {
    let value = property(scope, object, name)?;
    value.is_string().then(|| value.to_rust_string_lossy(scope))
}

/// The JSON that the bundle put into `data` of a `ConvexError` (convex.md 5.2).
fn convex_error_data(
    scope: &mut v8::PinScope<'_, '_>,
    object: v8::Local<'_, v8::Object>,
) -> Option<String> {
    let symbol = property(scope, object, "ConvexErrorSymbol")?;
    if !symbol.is_symbol() || !object.get(scope, symbol)?.is_true() {
        return None;
    }
    string_property(scope, object, "data")
}
