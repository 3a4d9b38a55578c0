//! Every class of caller, with the headers by which it presents itself.
//!
//! A class whose credential no version accepts yet has a place here all the same, with a
//! credential in the form that it will have, and is a stranger until then. This room must not
//! know routes.

use std::collections::BTreeMap;

use nimbus_auth::PrincipalKind;

use crate::harness::Ask;

/// A class of callers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// No credential, or one in a place where none is looked for.
    Anonymous,
    /// A credential of the right form and length that never was one.
    WrongToken,
    /// A credential that cannot be one, or more than one.
    Malformed,
    /// The token from before the last rotation.
    Rotated,
    /// Both headers with one of them wrong, where the wrong one decides.
    BothWrong,
    /// The admin token in every form, and both headers where the right one decides.
    Operator,
    /// Keys of the tenant `demo`, one of each scope.
    TenantKey,
    /// Keys of another tenant.
    ForeignKey,
    /// Keys that are none, or none any more, and the token of the deploy API.
    WrongKey,
    /// Later: a machine that signs its requests.
    Machine,
    /// Later: a service of a tenant, by its workload identity.
    Service,
    /// Later: a console session, or the ticket that opens one.
    Session,
    /// Later: a user of an application, by a JWT of its issuer.
    AppUser,
}

impl Class {
    pub const ALL: [Class; 13] = [
        Class::Anonymous,
        Class::WrongToken,
        Class::Malformed,
        Class::Rotated,
        Class::BothWrong,
        Class::Operator,
        Class::TenantKey,
        Class::ForeignKey,
        Class::WrongKey,
        Class::Machine,
        Class::Service,
        Class::Session,
        Class::AppUser,
    ];

    /// The callers of this class.
    pub fn callers(self) -> &'static [Caller] {
        match self {
            Class::Anonymous => ANONYMOUS,
            Class::WrongToken => WRONG_TOKEN,
            Class::Malformed => MALFORMED,
            Class::Rotated => ROTATED,
            Class::BothWrong => BOTH_WRONG,
            Class::Operator => OPERATOR,
            Class::TenantKey => TENANT_KEY,
            Class::ForeignKey => FOREIGN_KEY,
            Class::WrongKey => WRONG_KEY,
            Class::Machine => MACHINE,
            Class::Service => SERVICE,
            Class::Session => SESSION,
            Class::AppUser => APP_USER,
        }
    }
}

/// The class whose callers prove to be of a kind. A new kind of principal stops the build here:
/// give it its class, and take that class out of those that are refused everywhere.
pub fn class_of(kind: PrincipalKind) -> Class {
    match kind {
        PrincipalKind::Operator => Class::Operator,
        PrincipalKind::TenantKey => Class::TenantKey,
    }
}

/// How a caller presents itself; `{}` stands for the right token, `{old}` for the one before,
/// and other names in braces for keys, see [`Tokens`].
#[derive(Debug)]
pub struct Caller {
    pub name: &'static str,
    headers: &'static [(&'static str, &'static str)],
    /// Word for the credential in the audit log; empty for none.
    pub method: &'static str,
    /// Why it is refused; empty when it is let in.
    pub reason: &'static str,
}

/// The tokens that callers know.
#[derive(Clone, Debug)]
pub struct Tokens {
    pub right: String,
    /// Rotated away.
    pub old: String,
    /// Keys by name: one of `demo` for each scope, `revoked` and `expired` of `demo`, `foreign` of
    /// another tenant.
    pub keys: BTreeMap<&'static str, String>,
}

/// A request as `caller` sends it.
pub fn ask(method: &str, path: &str, caller: &Caller, tokens: &Tokens) -> Ask {
    let with = |ask: Ask, (name, value): &(&str, &str)| {
        let value = value.replace("{}", &tokens.right);
        let value = value.replace("{old}", &tokens.old);
        let keys = tokens.keys.iter();
        let value = keys.fold(value, |value, (name, key)| {
            value.replace(&format!("{{{name}}}"), key)
        });
        ask.header(name, &value)
    };
    caller.headers.iter().fold(Ask::new(method, path), with)
}

/// All callers with their classes.
pub fn all() -> impl Iterator<Item = (Class, &'static Caller)> {
    Class::ALL
        .into_iter()
        .flat_map(|class| class.callers().iter().map(move |caller| (class, caller)))
}

/// A token that no file ever held, as long as one that did.
pub const WRONG: &str = "nimbus_at_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

#[rustfmt::skip] // a table
const ANONYMOUS: &[Caller] = &[
    Caller { name: "anonymous", headers: &[], method: "", reason: "auth.credential_missing" },
    Caller { name: "right token in a cookie", headers: &[("cookie", "nimbus_session={}; token={}")], method: "", reason: "auth.credential_missing" },
    Caller { name: "right token in headers of others", headers: &[("x-auth-token", "{}"), ("proxy-authorization", "Bearer {}"), ("x-api-key", "{}")], method: "", reason: "auth.credential_missing" },
];

#[rustfmt::skip] // a table
const WRONG_TOKEN: &[Caller] = &[
    Caller { name: "wrong token", headers: &[("authorization", "Bearer nimbus_at_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")], method: "local_admin_bearer", reason: "auth.credential_wrong" },
    Caller { name: "wrong header token", headers: &[("x-nimbus-admin-token", "nimbus_at_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")], method: "local_admin_header", reason: "auth.credential_wrong" },
    Caller { name: "right token, more behind it", headers: &[("authorization", "Bearer {}x")], method: "local_admin_bearer", reason: "auth.credential_wrong" },
];

#[rustfmt::skip] // a table
const MALFORMED: &[Caller] = &[
    Caller { name: "right token without scheme", headers: &[("authorization", "{}")], method: "local_admin_bearer", reason: "auth.credential_scheme" },
    Caller { name: "another scheme", headers: &[("authorization", "Basic {}")], method: "local_admin_bearer", reason: "auth.credential_scheme" },
    Caller { name: "scheme alone", headers: &[("authorization", "Bearer")], method: "local_admin_bearer", reason: "auth.credential_empty" },
    Caller { name: "empty", headers: &[("authorization", "")], method: "local_admin_bearer", reason: "auth.credential_empty" },
    Caller { name: "empty header", headers: &[("x-nimbus-admin-token", "")], method: "local_admin_header", reason: "auth.credential_empty" },
    Caller { name: "two words", headers: &[("authorization", "Bearer {} {}")], method: "local_admin_bearer", reason: "auth.credential_malformed" },
    Caller { name: "right twice", headers: &[("authorization", "Bearer {}"), ("authorization", "Bearer {}")], method: "local_admin_bearer", reason: "auth.credential_malformed" },
    Caller { name: "right header twice", headers: &[("x-nimbus-admin-token", "{}"), ("x-nimbus-admin-token", "{}")], method: "local_admin_header", reason: "auth.credential_malformed" },
    Caller { name: "not ASCII", headers: &[("x-nimbus-admin-token", "{}\u{e9}")], method: "local_admin_header", reason: "auth.credential_malformed" },
];

#[rustfmt::skip] // a table
const ROTATED: &[Caller] = &[
    Caller { name: "old token", headers: &[("authorization", "Bearer {old}")], method: "local_admin_bearer", reason: "auth.credential_wrong" },
    Caller { name: "old header token", headers: &[("x-nimbus-admin-token", "{old}")], method: "local_admin_header", reason: "auth.credential_wrong" },
];

#[rustfmt::skip] // a table
const BOTH_WRONG: &[Caller] = &[
    Caller { name: "header wrong, bearer right", headers: &[("x-nimbus-admin-token", "nimbus_at_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"), ("authorization", "Bearer {}")], method: "local_admin_header", reason: "auth.credential_wrong" },
    Caller { name: "header old, bearer right", headers: &[("x-nimbus-admin-token", "{old}"), ("authorization", "Bearer {}")], method: "local_admin_header", reason: "auth.credential_wrong" },
    Caller { name: "header empty, bearer right", headers: &[("x-nimbus-admin-token", ""), ("authorization", "Bearer {}")], method: "local_admin_header", reason: "auth.credential_empty" },
    Caller { name: "both wrong", headers: &[("x-nimbus-admin-token", "{old}"), ("authorization", "Bearer {old}")], method: "local_admin_header", reason: "auth.credential_wrong" },
];

#[rustfmt::skip] // a table
const OPERATOR: &[Caller] = &[
    Caller { name: "bearer", headers: &[("authorization", "Bearer {}")], method: "local_admin_bearer", reason: "" },
    Caller { name: "bearer in lower case", headers: &[("authorization", "bearer {}")], method: "local_admin_bearer", reason: "" },
    Caller { name: "header", headers: &[("x-nimbus-admin-token", "{}")], method: "local_admin_header", reason: "" },
    Caller { name: "both", headers: &[("x-nimbus-admin-token", "{}"), ("authorization", "Bearer {}")], method: "local_admin_header", reason: "" },
    Caller { name: "both, bearer wrong", headers: &[("x-nimbus-admin-token", "{}"), ("authorization", "Bearer nimbus_at_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")], method: "local_admin_header", reason: "" },
    Caller { name: "approved origin", headers: &[("origin", "http://localhost:3000"), ("authorization", "Bearer {}")], method: "local_admin_bearer", reason: "" },
];

#[rustfmt::skip] // a table
const TENANT_KEY: &[Caller] = &[
    Caller { name: "read key", headers: &[("authorization", "Convex {read}")], method: "tenant_key", reason: "" },
    Caller { name: "write key", headers: &[("authorization", "Bearer {write}")], method: "tenant_key", reason: "" },
    Caller { name: "deploy key", headers: &[("authorization", "convex prod:{deploy}")], method: "tenant_key", reason: "" },
    Caller { name: "admin key", headers: &[("authorization", "Convex {admin}")], method: "tenant_key", reason: "" },
];

// What is refused is the answer for a tenant that is not there, where one is named.
#[rustfmt::skip] // a table
const FOREIGN_KEY: &[Caller] = &[
    Caller { name: "key of another tenant", headers: &[("authorization", "Convex {foreign}")], method: "tenant_key", reason: "auth.foreign_tenant" },
    Caller { name: "key of another tenant, as bearer", headers: &[("authorization", "Bearer {foreign}"), ("x-tenant-id", "demo")], method: "tenant_key", reason: "auth.foreign_tenant" },
];

// convex.md 1.2 and 4.8: `Convex <name>|<hex>`, with a deployment type before and a user to act as
// behind; nimbus.md 2.12: the deploy token as bearer.
#[rustfmt::skip] // a table
const WRONG_KEY: &[Caller] = &[
    Caller { name: "wrong deploy key", headers: &[("authorization", "Convex demo|01a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f90")], method: "tenant_key", reason: "auth.credential_wrong" },
    Caller { name: "wrong deploy key of a deployment", headers: &[("authorization", "Convex prod:demo|01a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f90")], method: "tenant_key", reason: "auth.credential_wrong" },
    Caller { name: "wrong deploy key as bearer", headers: &[("authorization", "Bearer demo|01a1b2c3d4e5f60718293a4b5c6d7e8f90a1b2c3d4e5f60718293a4b5c6d7e8f90")], method: "tenant_key", reason: "auth.credential_wrong" },
    Caller { name: "key of a tenant that is not there", headers: &[("authorization", "Convex absent|nimbus_tk_BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB")], method: "tenant_key", reason: "auth.credential_wrong" },
    Caller { name: "right key, more behind it", headers: &[("authorization", "Convex {admin}x")], method: "tenant_key", reason: "auth.credential_wrong" },
    Caller { name: "revoked key", headers: &[("authorization", "Convex {revoked}")], method: "tenant_key", reason: "auth.credential_wrong" },
    Caller { name: "expired key", headers: &[("authorization", "Convex {expired}")], method: "tenant_key", reason: "auth.credential_expired" },
    Caller { name: "key without a secret", headers: &[("authorization", "Convex demo|")], method: "tenant_key", reason: "auth.credential_empty" },
    Caller { name: "key of a reserved tenant", headers: &[("authorization", "Bearer _nimbus|nimbus_tk_BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB")], method: "tenant_key", reason: "auth.credential_malformed" },
    Caller { name: "right key twice", headers: &[("authorization", "Convex {admin}"), ("authorization", "Convex {admin}")], method: "local_admin_bearer", reason: "auth.credential_malformed" },
    Caller { name: "right key as admin header", headers: &[("x-nimbus-admin-token", "{admin}")], method: "local_admin_header", reason: "auth.credential_wrong" },
    Caller { name: "secret of a key alone", headers: &[("authorization", "Bearer nimbus_tk_BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBB")], method: "local_admin_bearer", reason: "auth.credential_wrong" },
    Caller { name: "deploy token", headers: &[("authorization", "Bearer 4f1d6c0e9b7a45d28c3e5f60718293a4")], method: "local_admin_bearer", reason: "auth.credential_wrong" },
];

// The classes below are refused like any stranger until the version that builds them. Each form
// is that of the place named; where none is published, it is our own token's with another prefix.

// nimbus.md 11: HMAC-SHA256 under an access key, or the JWT that is traded for it.
#[rustfmt::skip] // a table
const MACHINE: &[Caller] = &[
    Caller { name: "machine", headers: &[("x-access-key", "NBUSABCDEFGHIJKLMNOPQRST"), ("x-timestamp", "1790000000"), ("x-signature", "9c1185a5c5e9fc54612808977ee8f548b2258d31ddadef7079c6dde5b5d5b5a1")], method: "", reason: "auth.credential_missing" },
    Caller { name: "machine with a JWT", headers: &[("authorization", "Bearer eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJ1c2VyX2lkIjoiMSIsInVzZXJuYW1lIjoiYWRtaW4iLCJhZG1pbiI6dHJ1ZSwiZXhwIjo0MTAyNDQ0ODAwfQ.c2lnbmF0dXJlLXRoYXQtaXMtbm9uZS1hdC1hbGwtLS0")], method: "local_admin_bearer", reason: "auth.credential_wrong" },
];

// nimbus.md 6: the subject of a workload.
#[rustfmt::skip] // a table
const SERVICE: &[Caller] = &[
    Caller { name: "service", headers: &[("authorization", "Bearer eyJhbGciOiJFZERTQSIsInR5cCI6IkpXVCJ9.eyJzdWIiOiJuaW1idXMtd29ya2xvYWQ6djEvdGVuYW50L2RlbW8vZGVwbG95bWVudC8xL3N1cmZhY2Uvc2VydmljZS9raW5kL3NlcnZpY2UvbmFtZS9hIiwiZXhwIjo0MTAyNDQ0ODAwfQ.c2lnbmF0dXJlLXRoYXQtaXMtbm9uZS1hdC1hbGwtLS0")], method: "local_admin_bearer", reason: "auth.credential_wrong" },
    Caller { name: "service that names its tenant", headers: &[("x-tenant-id", "demo"), ("x-nimbus-service", "demo/worker")], method: "", reason: "auth.credential_missing" },
];

// nimbus.md 2.13.
#[rustfmt::skip] // a table
const SESSION: &[Caller] = &[
    Caller { name: "console session", headers: &[("cookie", "nimbus_session=v1.eyJzZXNzaW9uSWQiOiIxIiwiZ2VuZXJhdGlvbiI6MX0.c2lnbmF0dXJlLXRoYXQtaXMtbm9uZS1hdC1hbGwtLS0")], method: "", reason: "auth.credential_missing" },
    Caller { name: "launch ticket", headers: &[("authorization", "Bearer nimbus_lt_CCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCC")], method: "local_admin_bearer", reason: "auth.credential_wrong" },
];

// convex.md 6.12, a forgery without a signature among them.
#[rustfmt::skip] // a table
const APP_USER: &[Caller] = &[
    Caller { name: "application user", headers: &[("authorization", "Bearer eyJhbGciOiJSUzI1NiIsImtpZCI6IjEiLCJ0eXAiOiJKV1QifQ.eyJpc3MiOiJodHRwczovL2lzc3Vlci5leGFtcGxlIiwiYXVkIjoiY29udmV4Iiwic3ViIjoiYWxpY2UiLCJleHAiOjQxMDI0NDQ4MDB9.c2lnbmF0dXJlLXRoYXQtaXMtbm9uZS1hdC1hbGwtLS0")], method: "local_admin_bearer", reason: "auth.credential_wrong" },
    Caller { name: "application user without a signature", headers: &[("authorization", "Bearer eyJhbGciOiJub25lIn0.eyJpc3MiOiJodHRwczovL2lzc3Vlci5leGFtcGxlIiwic3ViIjoiYWRtaW4ifQ.")], method: "local_admin_bearer", reason: "auth.credential_wrong" },
];

#[test]
fn every_class_has_callers_and_every_kind_of_principal_a_class() {
    let mut names = std::collections::BTreeSet::new();
    for (_, caller) in all() {
        assert!(names.insert(caller.name), "{} is there twice", caller.name);
    }
    for class in Class::ALL {
        assert!(!class.callers().is_empty(), "{class:?} must be filled");
        let accepted = PrincipalKind::ALL
            .into_iter()
            .any(|kind| class_of(kind) == class);
        for caller in class.callers() {
            assert_eq!(
                caller.reason.is_empty(),
                accepted,
                "{class:?}: {}",
                caller.name
            );
        }
    }
}
