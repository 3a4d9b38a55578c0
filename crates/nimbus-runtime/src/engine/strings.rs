//! Natives that turn text into other text or bytes: UTF-8, base64, URLs and forms. Pure.

use data_encoding::BASE64;
use deno_core::v8;
use url::{Url, form_urlencoded, quirks};

type Args<'s> = v8::FunctionCallbackArguments<'s>;
type Return<'s> = v8::ReturnValue<'s, v8::Value>;
type Scope<'s, 'i> = v8::PinScope<'s, 'i>;

/// A value as text.
pub(crate) fn text(scope: &mut Scope<'_, '_>, value: v8::Local<'_, v8::Value>) -> String {
    value.to_rust_string_lossy(scope)
}

/// Throws an `Error`.
pub(crate) fn throw(scope: &mut Scope<'_, '_>, message: &str) {
    if let Some(message) = v8::String::new(scope, message) {
        let error = v8::Exception::error(scope, message);
        scope.throw_exception(error);
    }
}

fn give_text(scope: &mut Scope<'_, '_>, rv: &mut Return<'_>, value: &str) {
    if let Some(value) = v8::String::new(scope, value) {
        rv.set(value.into());
    }
}

fn give_bytes(scope: &mut Scope<'_, '_>, rv: &mut Return<'_>, bytes: Vec<u8>) {
    let store = v8::ArrayBuffer::new_backing_store_from_vec(bytes).make_shared();
    rv.set(v8::ArrayBuffer::with_backing_store(scope, &store).into());
}

fn give_all(scope: &mut Scope<'_, '_>, rv: &mut Return<'_>, parts: &[&str]) {
    let parts: Option<Vec<v8::Local<'_, v8::Value>>> = parts
        .iter()
        .map(|part| v8::String::new(scope, part).map(Into::into))
        .collect();
    if let Some(list) = parts.and_then(|parts| list(scope, &parts)) {
        rv.set(list.into());
    }
}

/// An array of these values. They are defined and not set: QuickJS would ask a setter of `Array.prototype`.
pub(crate) fn list<'s>(
    scope: &mut Scope<'s, '_>,
    values: &[v8::Local<'s, v8::Value>],
) -> Option<v8::Local<'s, v8::Array>> {
    if cfg!(not(feature = "quickjs")) {
        return Some(v8::Array::new_with_elements(scope, values));
    }
    let list = v8::Array::new(scope, 0);
    for (at, value) in values.iter().enumerate() {
        let at = v8::String::new(scope, &at.to_string())?.into();
        list.create_data_property(scope, at, *value)?;
    }
    Some(list)
}

fn bytes(value: v8::Local<'_, v8::Value>) -> Vec<u8> {
    let Ok(buffer) = v8::Local::<v8::ArrayBuffer>::try_from(value) else {
        return Vec::new();
    };
    let store = buffer.get_backing_store();
    store.iter().map(std::cell::Cell::get).collect()
}

pub(crate) fn encode(scope: &mut Scope<'_, '_>, args: Args<'_>, mut rv: Return<'_>) {
    let bytes = text(scope, args.get(0)).into_bytes();
    give_bytes(scope, &mut rv, bytes);
}

/// `(buffer, fatal)`; nothing when the bytes are not UTF-8 and that is fatal.
pub(crate) fn decode(scope: &mut Scope<'_, '_>, args: Args<'_>, mut rv: Return<'_>) {
    let bytes = bytes(args.get(0));
    match (std::str::from_utf8(&bytes), args.get(1).is_true()) {
        (Ok(text), _) => give_text(scope, &mut rv, text),
        (Err(_), true) => {}
        (Err(_), false) => give_text(scope, &mut rv, &String::from_utf8_lossy(&bytes)),
    }
}

pub(crate) fn to_base64(scope: &mut Scope<'_, '_>, args: Args<'_>, mut rv: Return<'_>) {
    give_text(scope, &mut rv, &BASE64.encode(&bytes(args.get(0))));
}

/// Forgiving base64 (WHATWG Infra 8): white space goes, padding may be missing.
pub(crate) fn from_base64(scope: &mut Scope<'_, '_>, args: Args<'_>, mut rv: Return<'_>) {
    let mut input = text(scope, args.get(0));
    input.retain(|c| !matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0c'));
    if input.len().is_multiple_of(4) {
        let cut = input.len()
            - input
                .bytes()
                .rev()
                .take(2)
                .take_while(|b| *b == b'=')
                .count();
        input.truncate(cut);
    }
    let mut lenient = data_encoding::Specification::new();
    lenient
        .symbols
        .push_str("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/");
    lenient.check_trailing_bits = false;
    let decoded = lenient
        .encoding()
        .ok()
        .and_then(|e| e.decode(input.as_bytes()).ok());
    if let Some(decoded) = decoded {
        give_bytes(scope, &mut rv, decoded);
    }
}

fn give_url(scope: &mut Scope<'_, '_>, rv: &mut Return<'_>, url: &Url) {
    let parts = [
        quirks::href(url),
        quirks::protocol(url),
        quirks::username(url),
        quirks::password(url),
        quirks::host(url),
        quirks::hostname(url),
        quirks::port(url),
        quirks::pathname(url),
        quirks::search(url),
        quirks::hash(url),
        &quirks::origin(url),
    ];
    give_all(scope, rv, &parts);
}

/// `(url, base)`; nothing when it is none.
pub(crate) fn parse_url(scope: &mut Scope<'_, '_>, args: Args<'_>, mut rv: Return<'_>) {
    let input = text(scope, args.get(0));
    let parsed = if args.get(1).is_undefined() {
        Url::parse(&input)
    } else {
        let base = text(scope, args.get(1));
        Url::parse(&base).and_then(|base| base.join(&input))
    };
    if let Ok(url) = parsed {
        give_url(scope, &mut rv, &url);
    }
}

/// `(href, part, value)`; nothing when the part does not take the value.
pub(crate) fn set_url(scope: &mut Scope<'_, '_>, args: Args<'_>, mut rv: Return<'_>) {
    let [href, part, value] = [0, 1, 2].map(|at| text(scope, args.get(at)));
    let Ok(mut url) = Url::parse(&href) else {
        return;
    };
    let set = match part.as_str() {
        "href" => quirks::set_href(&mut url, &value).map_err(drop),
        "protocol" => quirks::set_protocol(&mut url, &value),
        "username" => quirks::set_username(&mut url, &value),
        "password" => quirks::set_password(&mut url, &value),
        "host" => quirks::set_host(&mut url, &value),
        "hostname" => quirks::set_hostname(&mut url, &value),
        "port" => quirks::set_port(&mut url, &value),
        "pathname" => {
            quirks::set_pathname(&mut url, &value);
            Ok(())
        }
        "search" => {
            quirks::set_search(&mut url, &value);
            Ok(())
        }
        "hash" => {
            quirks::set_hash(&mut url, &value);
            Ok(())
        }
        _ => Err(()),
    };
    if set.is_ok() {
        give_url(scope, &mut rv, &url);
    }
}

/// A form as an array of `[name, value]`.
pub(crate) fn parse_form(scope: &mut Scope<'_, '_>, args: Args<'_>, mut rv: Return<'_>) {
    let input = text(scope, args.get(0));
    let pairs: Option<Vec<v8::Local<'_, v8::Value>>> = form_urlencoded::parse(input.as_bytes())
        .map(|(name, value)| {
            let name = v8::String::new(scope, &name)?.into();
            let value = v8::String::new(scope, &value)?.into();
            Some(list(scope, &[name, value])?.into())
        })
        .collect();
    if let Some(list) = pairs.and_then(|pairs| list(scope, &pairs)) {
        rv.set(list.into());
    }
}

/// A flat array of names and values as a form.
pub(crate) fn format_form(scope: &mut Scope<'_, '_>, args: Args<'_>, mut rv: Return<'_>) {
    let Ok(flat) = v8::Local::<v8::Array>::try_from(args.get(0)) else {
        return;
    };
    let mut parts = Vec::new();
    for at in 0..flat.length() {
        match flat.get_index(scope, at) {
            Some(part) => parts.push(text(scope, part)),
            None => return,
        }
    }
    let mut form = form_urlencoded::Serializer::new(String::new());
    for pair in parts.chunks_exact(2) {
        form.append_pair(&pair[0], &pair[1]);
    }
    give_text(scope, &mut rv, &form.finish());
}
