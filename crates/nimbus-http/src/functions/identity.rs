//! Who a function sees as its user (convex.md 6.12).
//!
//! For now an operator or a deploy key may name any user; logins of applications come later.

use data_encoding::BASE64;
use serde_json::{Map, Value as Json};

/// Longest identity in bytes of JSON.
const MAX_IDENTITY: usize = 8 * 1024;

/// The attributes of a user as `getUserIdentity` gives them: `tokenIdentifier`, `issuer` and
/// `subject` where they are known, and whatever else was named.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Identity {
    json: String,
}

/// Why a text names no user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the user to act as {0}")]
pub(crate) struct IdentityError(&'static str);

impl Identity {
    /// Reads the base64 of JSON behind an admin key (convex.md 1.2).
    ///
    /// # Errors
    /// [`IdentityError`] for what is not base64 of such an object.
    pub(crate) fn from_base64(text: &str) -> Result<Identity, IdentityError> {
        if text.len() > 2 * MAX_IDENTITY {
            return Err(IdentityError("is too long"));
        }
        let bytes = BASE64.decode(text.as_bytes());
        let bytes = bytes.map_err(|_| IdentityError("must be base64 of JSON"))?;
        let fields: Map<String, Json> = nimbus_core::json::from_slice(&bytes)
            .map_err(|_| IdentityError("must be a JSON object"))?;
        Identity::from_fields(fields)
    }

    fn from_fields(mut fields: Map<String, Json>) -> Result<Identity, IdentityError> {
        const NAMES: [&str; 3] = ["tokenIdentifier", "issuer", "subject"];
        let mut known = [None, None, None];
        for (slot, name) in known.iter_mut().zip(NAMES) {
            *slot = match fields.get(name) {
                None | Some(Json::Null) => None,
                Some(Json::String(text)) => Some(text.clone()),
                Some(_) => {
                    return Err(IdentityError(
                        "has a `tokenIdentifier`, `issuer` or `subject` that is no text",
                    ));
                }
            };
        }
        let known = match known {
            [Some(token), issuer, subject] => {
                let parts = token.split_once('|');
                let parts = parts.map(|(i, s)| (i.to_owned(), s.to_owned())).unzip();
                [Some(token), issuer.or(parts.0), subject.or(parts.1)]
            }
            [None, Some(issuer), Some(subject)] => [
                Some(format!("{issuer}|{subject}")),
                Some(issuer),
                Some(subject),
            ],
            _ => {
                return Err(IdentityError(
                    "needs a `tokenIdentifier`, or both `issuer` and `subject`",
                ));
            }
        };
        for (name, text) in NAMES.into_iter().zip(known) {
            match text {
                Some(text) => fields.insert(name.to_owned(), text.into()),
                None => fields.remove(name),
            };
        }
        let json = Json::Object(fields).to_string();
        if json.len() > MAX_IDENTITY {
            return Err(IdentityError("is too long"));
        }
        Ok(Identity { json })
    }

    /// JSON text of the attributes.
    pub(crate) fn json(&self) -> &str {
        &self.json
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<Json, IdentityError> {
        let identity = Identity::from_base64(&BASE64.encode(json.as_bytes()))?;
        Ok(serde_json::from_str(identity.json()).unwrap())
    }

    #[test]
    fn a_user_is_named_by_token_or_by_issuer_and_subject() {
        let both = read(r#"{"issuer":"https://i","subject":"a|b","name":"Zo\u00eb","role":7}"#);
        assert_eq!(
            both.unwrap(),
            serde_json::json!({"tokenIdentifier": "https://i|a|b", "issuer": "https://i",
                "subject": "a|b", "name": "Zo\u{eb}", "role": 7})
        );
        let token = read(r#"{"tokenIdentifier":"https://i|u"}"#).unwrap();
        assert_eq!(
            (&token["issuer"], &token["subject"]),
            (&"https://i".into(), &"u".into())
        );
        let plain = read(r#"{"tokenIdentifier":"u","issuer":null}"#).unwrap();
        assert_eq!(plain, serde_json::json!({"tokenIdentifier": "u"}));
    }

    #[test]
    fn what_names_no_user_is_refused() {
        for json in [
            "",
            "[]",
            "{}",
            "null",
            r#"{"issuer":"x"}"#,
            r#"{"subject":"x"}"#,
            r#"{"tokenIdentifier":1}"#,
            r#"{"tokenIdentifier":"a","subject":{}}"#,
        ] {
            assert!(read(json).is_err(), "{json}");
        }
        for text in ["e30", "%%%", "e30=\n", &"A".repeat(20_000)] {
            assert!(Identity::from_base64(text).is_err(), "{text}");
        }
    }
}
