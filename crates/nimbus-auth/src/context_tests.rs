//! Tests of authentication and of the contexts that it gives.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;

const ALL_PERMISSIONS: [Permission; 8] = [
    Permission::ReadData,
    Permission::WriteData,
    Permission::ManageSchema,
    Permission::Deploy,
    Permission::ManageKeys,
    Permission::ManageTenants,
    Permission::Inspect,
    Permission::ManageSystem,
];

fn fixture() -> (tempfile::TempDir, TokenFile, Authenticator) {
    let temp = tempfile::tempdir().unwrap();
    let file = TokenFile::load_or_create(&temp.path().join("auth/token")).unwrap();
    let authenticator = Authenticator::new(Arc::new(AdminVerifier::new(&file)));
    (temp, file, authenticator)
}

#[test]
fn every_form_of_credential_has_its_outcome() {
    use AuthMethod::{LocalAdminBearer as Bearer, LocalAdminHeader as Header};
    use MalformedCredential::{Characters, Empty, Scheme, TooLong};
    let malformed = |method, fault| Err(AuthFailure::Malformed { method, fault });
    let wrong = |method| Err(AuthFailure::Wrong { method });
    let (_temp, file, authenticator) = fixture();
    let token = file.token().expose_secret();
    let long = "a".repeat(MAX_CREDENTIAL + 1);
    let longest = "a".repeat(MAX_CREDENTIAL);

    // T stands for the token; (authorization, admin header, outcome)
    type Row<'a> = (
        Option<&'a str>,
        Option<&'a str>,
        Result<AuthMethod, AuthFailure>,
    );
    let table: &[Row<'_>] = &[
        (None, None, Err(AuthFailure::Missing)),
        (Some("Bearer T"), None, Ok(Bearer)),
        (Some("bearer T"), None, Ok(Bearer)),
        (Some("BEARER T"), None, Ok(Bearer)),
        (Some("Bearer  T"), None, Ok(Bearer)),
        (Some("\tBearer \t T "), None, Ok(Bearer)),
        (None, Some("T"), Ok(Header)),
        (None, Some(" T\t"), Ok(Header)),
        // The admin header wins, for better and for worse.
        (Some("Bearer wrong"), Some("T"), Ok(Header)),
        (Some("Basic eDp5"), Some("T"), Ok(Header)),
        (Some("Bearer T"), Some("wrong"), wrong(Header)),
        (Some("Bearer T"), Some(""), malformed(Header, Empty)),
        (Some(""), None, malformed(Bearer, Empty)),
        (Some(" \t"), None, malformed(Bearer, Empty)),
        (Some("Bearer"), None, malformed(Bearer, Empty)),
        (Some("Bearer  "), None, malformed(Bearer, Empty)),
        (Some("T"), None, malformed(Bearer, Scheme)),
        (Some("Basic T"), None, malformed(Bearer, Scheme)),
        (Some("Convex T"), None, malformed(Bearer, Scheme)),
        (Some("BearerT"), None, malformed(Bearer, Scheme)),
        (Some("Bearer: T"), None, malformed(Bearer, Scheme)),
        (Some("Bearer T T"), None, malformed(Bearer, Characters)),
        (
            Some("Bearer T,Bearer T"),
            None,
            malformed(Bearer, Characters),
        ),
        (Some("Bearer T\u{e9}"), None, malformed(Bearer, Characters)),
        (Some("Bearer T\0"), None, malformed(Bearer, Characters)),
        (Some("Bearer \u{a0}T"), None, malformed(Bearer, Characters)),
        (None, Some("Bearer T"), malformed(Header, Characters)),
        (None, Some("\r\nT"), malformed(Header, Characters)),
        (None, Some(&long), malformed(Header, TooLong)),
        (None, Some(&longest), wrong(Header)),
        (Some("Bearer Tx"), None, wrong(Bearer)),
        (Some("Bearer \"T\""), None, wrong(Bearer)),
        (Some("Bearer nimbus_at_"), None, wrong(Bearer)),
        (None, Some("wrong"), wrong(Header)),
    ];
    for (authorization, admin_header, expected) in table {
        let fill = |text: &str| text.replace('T', token);
        let (first, second) = (authorization.map(fill), admin_header.map(fill));
        let credentials = Credentials {
            authorization: first.as_deref(),
            admin_header: second.as_deref(),
        };
        let found = authenticator.authenticate(&credentials);
        match (&found, expected) {
            (Ok(caller), Ok(method)) => {
                assert_eq!(
                    caller.method(),
                    *method,
                    "{authorization:?} {admin_header:?}"
                );
                assert_eq!(*caller.principal(), Principal::Operator { generation: 1 });
            }
            (Err(failure), Err(expected)) => {
                assert_eq!(failure, expected, "{authorization:?} {admin_header:?}");
            }
            _ => panic!("{authorization:?} {admin_header:?}: {found:?}"),
        }
    }
}

#[test]
fn a_key_is_told_from_a_token_by_its_form() {
    let (_temp, file, authenticator) = fixture();
    let token = file.token().expose_secret();
    let claim = |authorization: &str, admin_header: Option<&str>| {
        authenticator.claim(&Credentials {
            authorization: Some(authorization),
            admin_header,
        })
    };
    for form in [
        "Convex acme|nimbus_tk_x",
        "convex  acme|nimbus_tk_x ",
        "Bearer acme|nimbus_tk_x",
        "Convex prod:acme|nimbus_tk_x",
    ] {
        match claim(form, None) {
            Ok(Claim::Key(key)) => assert_eq!(key.tenant().as_str(), "acme", "{form}"),
            other => panic!("{form}: {other:?}"),
        }
        // The admin header wins, and holds no key.
        assert!(matches!(claim(form, Some(token)), Ok(Claim::Verified(_))));
    }
    let method = AuthMethod::TenantKey;
    for form in [
        "Convex |x",
        "Convex acme|",
        "Bearer acme|x y",
        "Convex acme|x:eyJ9",
        "Bearer _x|y",
    ] {
        let failure = claim(form, None).unwrap_err();
        assert!(
            matches!(failure, AuthFailure::Malformed { method: found, .. } if found == method),
            "{form}: {failure:?}"
        );
    }
    assert!(matches!(
        claim(&format!("Bearer {token}"), None),
        Ok(Claim::Verified(_))
    ));
    for form in ["Convex T", "Basic a|b", "acme|x"] {
        let failure = claim(form, None).unwrap_err();
        let method = AuthMethod::LocalAdminBearer;
        let fault = MalformedCredential::Scheme;
        assert_eq!(failure, AuthFailure::Malformed { method, fault }, "{form}");
    }
}

#[test]
fn failures_look_alike_outside_and_differ_in_the_audit_log() {
    let method = AuthMethod::LocalAdminHeader;
    let malformed = |fault| AuthFailure::Malformed { method, fault };
    let failures = [
        AuthFailure::Missing,
        malformed(MalformedCredential::Empty),
        malformed(MalformedCredential::Scheme),
        malformed(MalformedCredential::Characters),
        AuthFailure::Wrong { method },
        AuthFailure::Expired { method },
    ];
    let mut reasons = std::collections::BTreeSet::new();
    for failure in failures {
        assert_eq!(failure.code(), ErrorCode::AuthUnauthorized, "{failure:?}");
        assert_eq!(
            failure.outside_text(),
            AuthFailure::Missing.outside_text(),
            "{failure:?}"
        );
        assert!(reasons.insert(failure.audit_reason()), "{failure:?}");
        let method = (failure != AuthFailure::Missing).then_some(method);
        assert_eq!(failure.method(), method);
    }
    let denied = AuthFailure::Denied {
        method,
        permission: Permission::ManageSystem,
    };
    assert_eq!(denied.code(), ErrorCode::AuthPermissionDenied);
    assert_eq!(
        denied.to_string(),
        "the caller (local_admin_header) may not manage the system"
    );
    assert!(reasons.insert(denied.audit_reason()));
}

#[test]
fn the_operator_gets_every_context_with_what_it_asked_for() {
    let (_temp, file, authenticator) = fixture();
    let credentials = Credentials {
        authorization: None,
        admin_header: Some(file.token().expose_secret()),
    };
    let request: RequestId = "req-1".parse().unwrap();
    let caller = authenticator
        .authenticate(&credentials)
        .unwrap()
        .with_request_id(request.clone());
    let operator = Principal::Operator { generation: 1 };
    for permission in ALL_PERMISSIONS {
        let tenant: TenantId = "acme".parse().unwrap();
        let context = caller.tenant_context(tenant.clone(), permission).unwrap();
        assert_eq!(*context.tenant(), tenant);
        assert_eq!(*context.principal(), operator);
        assert_eq!(context.permission(), permission);
        assert_eq!(context.request_id(), Some(&request));
        let context = caller.server_context(permission).unwrap();
        assert_eq!(*context.principal(), operator);
        assert_eq!(context.permission(), permission);
        assert_eq!(context.request_id(), Some(&request));
    }
}

#[test]
fn a_permission_includes_itself_and_writing_includes_reading() {
    for held in ALL_PERMISSIONS {
        for needed in ALL_PERMISSIONS {
            let expected =
                held == needed || (held, needed) == (Permission::WriteData, Permission::ReadData);
            assert_eq!(held.includes(needed), expected, "{held} {needed}");
        }
    }
    let (_temp, file, _) = fixture();
    let caller = Authenticated::local_operator(&file);
    let context = caller
        .tenant_context("a".parse().unwrap(), Permission::WriteData)
        .unwrap();
    assert!(context.allows(Permission::ReadData) && !context.allows(Permission::ManageSchema));
    let context = caller.server_context(Permission::Inspect).unwrap();
    assert!(context.allows(Permission::Inspect) && !context.allows(Permission::ManageSystem));
}

#[test]
fn the_holder_of_the_file_is_the_operator() {
    let (_temp, file, _) = fixture();
    let caller = Authenticated::local_operator(&file);
    assert_eq!(*caller.principal(), Principal::Operator { generation: 1 });
    assert_eq!(caller.method(), AuthMethod::LocalTokenFile);
    assert!(
        caller
            .server_context(Permission::ManageTenants)
            .unwrap()
            .request_id()
            .is_none()
    );
}

#[test]
fn rotation_reaches_an_authenticator_in_use() {
    let (_temp, file, _) = fixture();
    let verifier = Arc::new(AdminVerifier::new(&file));
    let authenticator = Authenticator::new(Arc::clone(&verifier));
    let old = Credentials {
        authorization: None,
        admin_header: Some(file.token().expose_secret()),
    };
    assert!(authenticator.authenticate(&old).is_ok());
    verifier.rotate_live(file.path()).unwrap();
    let method = AuthMethod::LocalAdminHeader;
    assert_eq!(
        authenticator.authenticate(&old).unwrap_err(),
        AuthFailure::Wrong { method }
    );
    let stored = TokenFile::load(file.path()).unwrap();
    let new = Credentials {
        authorization: None,
        admin_header: Some(stored.token().expose_secret()),
    };
    let caller = authenticator.authenticate(&new).unwrap();
    assert_eq!(*caller.principal(), Principal::Operator { generation: 2 });
}

#[test]
fn request_ids_are_safe_to_print() {
    let longest = "a".repeat(MAX_REQUEST_ID);
    for good in ["a", "req_01J.x:Y-9", &longest] {
        let id: RequestId = good.parse().unwrap();
        assert_eq!((id.as_str(), id.to_string().as_str()), (good, good));
    }
    let long = "a".repeat(MAX_REQUEST_ID + 1);
    for bad in ["", " ", "a b", "a\n", "a\"", "\u{e9}", "a/b", &long] {
        assert_eq!(bad.parse::<RequestId>(), Err(RequestIdError), "{bad:?}");
    }
}

#[test]
fn no_debug_text_shows_a_credential() {
    let (_temp, file, authenticator) = fixture();
    let token = file.token().expose_secret();
    let header = format!("Bearer {token}");
    let credentials = Credentials {
        authorization: Some(&header),
        admin_header: Some(token),
    };
    let caller = authenticator.authenticate(&credentials).unwrap();
    let context = caller
        .tenant_context("acme".parse().unwrap(), Permission::ReadData)
        .unwrap();
    let wrong = Credentials {
        authorization: None,
        admin_header: Some(&token[1..]),
    };
    let failure = authenticator.authenticate(&wrong).unwrap_err();
    let shown = format!(
        "{credentials:?} {authenticator:?} {caller:?} {context:?} {wrong:?} {failure:?} {failure} {:?}",
        caller.server_context(Permission::Inspect).unwrap()
    );
    let secret = token.strip_prefix("nimbus_at_").unwrap();
    assert!(
        !shown.contains(&secret[..8]) && !shown.contains(&secret[secret.len() - 8..]),
        "{shown}"
    );
}
