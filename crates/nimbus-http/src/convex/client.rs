//! The header `Convex-Client`: which client asks, in which version (convex.md 1.2).

use http::HeaderMap;

use crate::edge::origin::CONVEX_CLIENT;
use crate::error::{ApiError, ApiResult};
use crate::functions::format::Format;
use nimbus_core::ErrorCode;

/// A client, as far as answers depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Client {
    /// What a request without a format gets.
    pub default_format: Format,
}

/// The last version of the npm client that is too old.
const NPM_UNSUPPORTED: Version = Version(0, 19, 1);
/// The first versions whose users expect plain JSON by default.
const NPM_CLEAN: Version = Version(1, 4, 1);
const PYTHON_CLEAN: Version = Version(0, 5, 0);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version(u64, u64, u64);

impl Client {
    /// Reads the header; a request without it comes from some client of today.
    ///
    /// # Errors
    /// 400 `InvalidClientVersion`, `ClientVersionUnsupported`.
    pub(crate) fn of(headers: &HeaderMap) -> ApiResult<Client> {
        let mut values = headers.get_all(CONVEX_CLIENT).iter();
        let (first, more) = (values.next(), values.next());
        let Some(first) = first else {
            return Ok(Client {
                default_format: Format::Clean,
            });
        };
        let text = first.to_str().ok().filter(|_| more.is_none());
        let Some((name, version)) = text.and_then(split) else {
            let text = "the header `Convex-Client` must be a name, `-` and a version such as 1.2.3";
            let code = ErrorCode::OpInvalidInput;
            return Err(ApiError::convex("InvalidClientVersion", code, text));
        };
        if name == "npm" && version <= NPM_UNSUPPORTED {
            let text = "this version of the npm package `convex` is too old; update it";
            let code = ErrorCode::OpInvalidInput;
            return Err(ApiError::convex("ClientVersionUnsupported", code, text));
        }
        let ancient = match name {
            "npm" => version < NPM_CLEAN,
            "python" => version < PYTHON_CLEAN,
            _ => false,
        };
        let default_format = if ancient {
            Format::Encoded
        } else {
            Format::Clean
        };
        Ok(Client { default_format })
    }
}

/// Name and version: the longest ending that is a version begins after the name.
fn split(text: &str) -> Option<(&str, Version)> {
    text.match_indices('-').find_map(|(at, _)| {
        let (name, version) = (text.get(..at)?, text.get(at + 1..)?);
        let version = semantic(version).filter(|_| !name.is_empty())?;
        Some((name, version))
    })
}

/// Major, minor and patch of a semantic version (semver.org 2.0.0).
fn semantic(text: &str) -> Option<Version> {
    let (text, build) = text
        .split_once('+')
        .map_or((text, None), |(v, b)| (v, Some(b)));
    let (core, pre) = text
        .split_once('-')
        .map_or((text, None), |(v, p)| (v, Some(p)));
    let identifier = |part: &str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    let good = |list: Option<&str>| list.is_none_or(|list| list.split('.').all(identifier));
    let mut numbers = core.split('.').map(|part| {
        let plain =
            part.bytes().all(|b| b.is_ascii_digit()) && (part == "0" || !part.starts_with('0'));
        part.parse::<u64>().ok().filter(|_| plain)
    });
    let version = Version(numbers.next()??, numbers.next()??, numbers.next()??);
    (numbers.next().is_none() && good(build) && good(pre)).then_some(version)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn client(text: &str) -> ApiResult<Format> {
        let mut headers = HeaderMap::new();
        headers.insert(CONVEX_CLIENT, text.parse().unwrap());
        Client::of(&headers).map(|client| client.default_format)
    }

    #[test]
    fn names_and_versions_are_told_apart() {
        let table = [
            ("npm-1.48.0", "npm", Version(1, 48, 0)),
            ("npm-cli-1.48.0", "npm-cli", Version(1, 48, 0)),
            ("python-0.8.1", "python", Version(0, 8, 1)),
            ("npm-1.0.0-alpha.1", "npm", Version(1, 0, 0)),
            ("npm-1.0.0-1.2.3", "npm", Version(1, 0, 0)),
            (
                "streaming-import-0.0.0+x-y",
                "streaming-import",
                Version(0, 0, 0),
            ),
        ];
        for (text, name, version) in table {
            assert_eq!(split(text), Some((name, version)), "{text}");
        }
    }

    #[test]
    fn the_default_format_depends_on_the_client() {
        for text in [
            "npm-1.48.0",
            "npm-1.4.1",
            "python-0.8.1",
            "rust-0.10.4",
            "x-0.0.1",
        ] {
            assert_eq!(client(text).unwrap(), Format::Clean, "{text}");
        }
        for text in ["npm-1.4.0", "npm-0.20.0", "python-0.4.9"] {
            assert_eq!(client(text).unwrap(), Format::Encoded, "{text}");
        }
        let none = Client::of(&HeaderMap::new()).unwrap();
        assert_eq!(none.default_format, Format::Clean);
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "npm",
            "npm-",
            "-1.2.3",
            "npm-1.2",
            "npm-1.2.3.4",
            "npm-01.2.3",
            "npm-1.2.x",
            "npm-1.2.3-",
            "npm-99999999999999999999.0.0",
        ] {
            let error = client(text).unwrap_err();
            assert_eq!(error.convex_name(), Some("InvalidClientVersion"), "{text}");
        }
        for text in ["npm-0.19.1", "npm-0.1.0"] {
            let error = client(text).unwrap_err();
            assert_eq!(
                error.convex_name(),
                Some("ClientVersionUnsupported"),
                "{text}"
            );
        }
    }
}
