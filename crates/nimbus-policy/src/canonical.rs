//! The one text of a value: JSON with the keys of every object in order and no white space. Ids are digests of it.
//!
//! Knows no grants. Nothing is built in between: a policy of a thousand workloads has this done four thousand times. Whoever writes an
//! object names its keys in order, and builds with debug assertions hold that.

use std::collections::BTreeSet;

use serde_json::Value;

/// What has a canonical text.
pub(crate) trait Canonical {
    /// Appends the text.
    fn write(&self, out: &mut String);
}

/// The canonical text of a value.
pub(crate) fn text(value: &(impl Canonical + ?Sized)) -> String {
    // Most decisions are some hundred bytes long.
    let mut out = String::with_capacity(1_024);
    value.write(&mut out);
    out
}

/// An object while it is written.
pub(crate) struct Object<'o> {
    out: &'o mut String,
    last: Option<&'static str>,
}

/// Appends an object; `members` names its keys in order.
pub(crate) fn object(out: &mut String, members: impl FnOnce(&mut Object<'_>)) {
    out.push('{');
    members(&mut Object { out, last: None });
    out.push('}');
}

impl Object<'_> {
    /// Appends a member.
    pub(crate) fn with(
        &mut self,
        key: &'static str,
        value: &(impl Canonical + ?Sized),
    ) -> &mut Self {
        value.write(self.key(key));
        self
    }

    /// Appends a member that is an object.
    pub(crate) fn nested(
        &mut self,
        key: &'static str,
        members: impl FnOnce(&mut Object<'_>),
    ) -> &mut Self {
        object(self.key(key), members);
        self
    }

    fn key(&mut self, key: &'static str) -> &mut String {
        debug_assert!(self.last < Some(key), "`{key}` is out of order");
        if self.last.replace(key).is_some() {
            self.out.push(',');
        }
        // Keys are words: nothing in them is escaped.
        self.out.push('"');
        self.out.push_str(key);
        self.out.push_str("\":");
        self.out
    }
}

fn list<T: Canonical>(items: impl Iterator<Item = T>, out: &mut String) {
    out.push('[');
    for (at, item) in items.enumerate() {
        if at > 0 {
            out.push(',');
        }
        item.write(out);
    }
    out.push(']');
}

impl Canonical for str {
    fn write(&self, out: &mut String) {
        let escaped = |byte: u8| byte < b' ' || byte == b'"' || byte == b'\\';
        // Without an early end, since that takes longer than to look at all of a short text.
        if self.bytes().fold(false, |any, byte| any | escaped(byte)) {
            out.push_str(&Value::from(self).to_string());
            return;
        }
        out.push('"');
        out.push_str(self);
        out.push('"');
    }
}

impl Canonical for String {
    fn write(&self, out: &mut String) {
        self.as_str().write(out);
    }
}

impl Canonical for bool {
    fn write(&self, out: &mut String) {
        out.push_str(if *self { "true" } else { "false" });
    }
}

impl Canonical for u64 {
    fn write(&self, out: &mut String) {
        let mut digits = [0_u8; 20];
        let (mut rest, mut at) = (*self, digits.len());
        for digit in digits.iter_mut().rev() {
            // A remainder of ten is a byte.
            *digit = b'0' + u8::try_from(rest % 10).unwrap_or_default();
            (rest, at) = (rest / 10, at - 1);
            if rest == 0 {
                break;
            }
        }
        out.extend(digits[at..].iter().copied().map(char::from));
    }
}

impl Canonical for u32 {
    fn write(&self, out: &mut String) {
        u64::from(*self).write(out);
    }
}

impl Canonical for u16 {
    fn write(&self, out: &mut String) {
        u64::from(*self).write(out);
    }
}

impl<T: Canonical + ?Sized> Canonical for &T {
    fn write(&self, out: &mut String) {
        (**self).write(out);
    }
}

impl<T: Canonical> Canonical for Option<T> {
    fn write(&self, out: &mut String) {
        match self {
            Some(value) => value.write(out),
            None => out.push_str("null"),
        }
    }
}

impl<T: Canonical> Canonical for [T] {
    fn write(&self, out: &mut String) {
        list(self.iter(), out);
    }
}

impl<T: Canonical> Canonical for BTreeSet<T> {
    fn write(&self, out: &mut String) {
        list(self.iter(), out);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_those_of_serde_json() {
        for odd in ["", "a b", "\"\\", "\n\u{1}\u{7f}", "gr\u{fc}n\u{202e}"] {
            assert_eq!(text(odd), Value::from(odd).to_string());
        }
        let mut out = String::new();
        object(&mut out, |it| {
            it.with("a", &None::<u64>)
                .nested("b", |it| {
                    it.with("c", &true).with("d", &7_u16);
                })
                .with("e", &[1_u64, 2][..]);
        });
        for number in [0, 9, 10, 65_535, u64::MAX] {
            assert_eq!(text(&number), number.to_string());
        }
        assert_eq!(out, r#"{"a":null,"b":{"c":true,"d":7},"e":[1,2]}"#);
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "`a` is out of order")]
    fn keys_are_in_order() {
        object(&mut String::new(), |it| {
            it.with("b", &1_u64).with("a", &1_u64);
        });
    }
}
