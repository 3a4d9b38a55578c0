//! Tests of the provider `aws-kms` against a real moto server, and against a proxy that misbehaves.

use std::process::Command;

use aws_sdk_kms::config::Credentials;
use nimbus_e2e::moto::REGION;
use nimbus_e2e::{Fault, FaultProxy, Moto};
use serde_json::{Value, json};

use super::*;
use crate::manifest::{Manifest, ManifestError};
use crate::provider::MasterKeyFile;

const CREATED: u64 = 1_790_000_000;

fn options(url: &str, region: &str, key: &str) -> AwsKmsOptions {
    AwsKmsOptions {
        key_id: key.to_owned(),
        region: Some(region.to_owned()),
        endpoint_url: Some(url.to_owned()),
    }
}

/// A provider with credentials of its own: the chain has a test of its own.
async fn kms_in(url: &str, region: &str, key: &str) -> AwsKms {
    connected(url, region, key, patient()).await
}

/// Limits that a busy machine does not reach: only an outage is to be cut short.
fn patient() -> TimeoutConfig {
    let long = Duration::from_secs(60);
    TimeoutConfig::builder()
        .connect_timeout(long)
        .operation_attempt_timeout(long)
        .operation_timeout(long)
        .build()
}

async fn connected(url: &str, region: &str, key: &str, limits: TimeoutConfig) -> AwsKms {
    let credentials = Credentials::new("test", "test", None, None, "tests");
    let loader = aws_config::defaults(BehaviorVersion::v2026_01_12());
    let loader = loader.credentials_provider(credentials);
    let connected = AwsKms::connect_by(loader, limits, options(url, region, key)).await;
    connected.unwrap()
}

async fn kms(url: &str, key: &str) -> AwsKms {
    kms_in(url, REGION, key).await
}

fn subject() -> Subject {
    Subject::sqlite_tenant("demo").unwrap()
}

fn context() -> KeyContext {
    KeyContext {
        subject: subject(),
        file_id: FileId::from_bytes([3; 16]),
        cipher: subject().cipher(),
        created_at: CREATED,
        role: KeyRole::Current,
    }
}

fn fault(error: KeyError) -> KmsFault {
    match error {
        KeyError::Kms { subject, fault } => {
            assert_eq!(subject, "db:sqlite:tenant:demo:demo.sqlite3");
            fault
        }
        error => panic!("{error}"),
    }
}

async fn unwrap_fault(provider: &AwsKms, context: &KeyContext, wrapped: &WrappedKey) -> KmsFault {
    fault(provider.unwrap_key(context, wrapped).await.unwrap_err())
}

/// A key made by KMS and one that existed before, both unwrapped to what they are.
async fn both_ways(provider: &AwsKms) -> [(Dek, WrappedKey); 2] {
    let made = provider.generate_key(&context()).await.unwrap();
    let dek = Dek::generate().unwrap();
    let wrapped = provider.wrap_key(&context(), &dek).await.unwrap();
    [made, (dek, wrapped)]
}

#[tokio::test]
async fn made_and_given_keys_unwrap_for_their_file_alone() {
    let moto = Moto::start();
    let arn = moto.create_key(REGION);
    let provider = kms(&moto.url(), &arn).await;
    let ways = both_ways(&provider).await;
    assert_eq!(ways[0].1.algorithm, DIRECT);
    assert_eq!(ways[1].1.algorithm, UNDER_DATA_KEY);
    for (dek, wrapped) in ways {
        assert_eq!(
            (wrapped.provider.as_str(), &wrapped.key_id),
            ("aws-kms", &arn)
        );
        assert!(provider.unwrap_key(&context(), &wrapped).await.unwrap() == dek);
        let mut other = context();
        other.subject = Subject::redb_tenant("demo").unwrap();
        let error = provider.unwrap_key(&other, &wrapped).await.unwrap_err();
        let expected = KmsFault::InvalidCiphertext;
        assert!(matches!(error, KeyError::Kms { fault, .. } if fault == expected));
        let mut other = context();
        other.file_id = FileId::from_bytes([4; 16]);
        assert_eq!(unwrap_fault(&provider, &other, &wrapped).await, expected);
        // Not bound by KMS, so that a pending key becomes the current one without a call.
        let mut other = context();
        other.role = KeyRole::Pending;
        assert!(provider.unwrap_key(&other, &wrapped).await.unwrap() == dek);
        let same = provider.change_role(&context(), &wrapped, &dek).await;
        assert_eq!(same.unwrap(), wrapped);
    }
}

#[tokio::test]
async fn changed_wrapped_keys_are_refused() {
    let moto = Moto::start();
    let provider = kms(&moto.url(), &moto.create_key(REGION)).await;
    for (_, wrapped) in both_ways(&provider).await {
        for at in [wrapped.bytes.len() - 1, wrapped.bytes.len() / 2, 60] {
            let mut changed = wrapped.clone();
            changed.bytes[at] ^= 1;
            let error = provider.unwrap_key(&context(), &changed).await.unwrap_err();
            let refused = matches!(
                &error,
                KeyError::Tampered { .. }
                    | KeyError::Kms {
                        fault: KmsFault::InvalidCiphertext,
                        ..
                    }
            );
            assert!(refused, "{at}: {error}");
        }
        let mut changed = wrapped.clone();
        changed.algorithm = "aes-256-gcm-siv".to_owned();
        let error = provider.unwrap_key(&context(), &changed).await.unwrap_err();
        assert!(matches!(error, KeyError::Algorithm { .. }), "{error}");
        let mut changed = wrapped.clone();
        changed.provider = MasterKeyFile::NAME.to_owned();
        let error = provider.unwrap_key(&context(), &changed).await.unwrap_err();
        assert!(matches!(error, KeyError::OtherProvider { .. }), "{error}");
        let mut changed = wrapped.clone();
        changed.key_id.push('0');
        let found = unwrap_fault(&provider, &context(), &changed).await;
        assert!(matches!(found, KmsFault::WrongKey { .. }), "{found}");
    }
    let [_, (_, wrapped)] = both_ways(&provider).await;
    for length in [
        0,
        1,
        2,
        40,
        wrapped.bytes.len() - 1,
        wrapped.bytes.len() + 1,
    ] {
        let mut changed = wrapped.clone();
        changed.bytes.resize(length, 0);
        let error = provider.unwrap_key(&context(), &changed).await.unwrap_err();
        assert!(
            matches!(error, KeyError::WrappedSize { .. }),
            "{length}: {error}"
        );
    }
}

/// Names and bodies of the calls since the last time.
fn calls(proxy: &FaultProxy) -> Vec<(String, Value)> {
    let requests = proxy.take_requests().into_iter();
    requests
        .map(|request| {
            let mut words = request.head.split_whitespace();
            let target = words.find_map(|word| word.strip_prefix("TrentService."));
            let body = serde_json::from_str(&request.body).unwrap();
            (target.unwrap().to_owned(), body)
        })
        .collect()
}

#[tokio::test]
async fn a_manifests_life_takes_three_operations_and_binds_what_never_changes() {
    let moto = Moto::start();
    let proxy = FaultProxy::before(moto.address());
    let arns = [moto.create_key(REGION), moto.create_key(REGION)];
    let old = kms(&proxy.url(), &arns[0]).await;
    let new = kms(&proxy.url(), &arns[1]).await;
    let local = MasterKeyFile::new(WrappingKey::from_bytes(&[1; 32]));

    let (first, _) = Manifest::create(&local, subject(), CREATED).await.unwrap();
    let there = first.rewrap(&local, &old, &subject()).await.unwrap();
    let (both, keys) = there.begin_rotation(&old, &subject()).await.unwrap();
    let names: Vec<String> = calls(&proxy).into_iter().map(|call| call.0).collect();
    assert_eq!(
        names,
        ["GenerateDataKey", "Decrypt", "Decrypt", "GenerateDataKey"]
    );

    let moved = both.rewrap(&old, &new, &subject()).await.unwrap();
    let seen = calls(&proxy);
    let names: Vec<&str> = seen.iter().map(|call| call.0.as_str()).collect();
    let expected = [
        "Decrypt",
        "Decrypt",
        "ReEncrypt",
        "Decrypt",
        "ReEncrypt",
        "Decrypt",
    ];
    assert_eq!(names, expected);
    for (name, body) in seen {
        let bound = json!({
            "nimbus:version": "1",
            "nimbus:subject": "db:sqlite:tenant:demo:demo.sqlite3",
            "nimbus:file-id": first.file_id().to_string(),
        });
        if name == "ReEncrypt" {
            assert_eq!(body["SourceEncryptionContext"], bound);
            assert_eq!(body["DestinationEncryptionContext"], bound);
            assert_eq!(body["SourceKeyId"], arns[0].as_str());
            assert_eq!(body["DestinationKeyId"], arns[1].as_str());
        } else {
            assert_eq!(body["EncryptionContext"], bound);
            assert!(arns.iter().any(|arn| body["KeyId"] == arn.as_str()));
        }
    }
    assert_eq!(moved.current().algorithm, UNDER_DATA_KEY);
    assert_eq!(moved.pending().unwrap().algorithm, DIRECT);
    for wrapped in [Some(moved.current()), moved.pending()] {
        assert_eq!(wrapped.unwrap().key_id, arns[1]);
    }
    let done = moved.finish_rotation(&new, &subject()).await.unwrap();
    let pending = keys.pending.unwrap();
    assert!(done.unlock(&new, &subject()).await.unwrap().current == pending);
    let names: Vec<String> = calls(&proxy).into_iter().map(|call| call.0).collect();
    assert_eq!(names, ["Decrypt", "Decrypt", "Decrypt"]);

    let back = done.rewrap(&new, &local, &subject()).await.unwrap();
    assert!(back.unlock(&local, &subject()).await.unwrap().current == pending);
    assert_eq!(back.current().provider, MasterKeyFile::NAME);
    let read = Manifest::decode(&moved.encode().unwrap()).unwrap();
    assert_eq!(read, moved);
}

#[tokio::test]
async fn keys_move_to_another_region_and_the_old_one_opens_nothing_more() {
    let moto = Moto::start();
    let (here, there) = (moto.create_key(REGION), moto.create_key("eu-west-1"));
    let old = kms(&moto.url(), &here).await;
    let new = kms_in(&moto.url(), "eu-west-1", &there).await;
    assert_ne!(old.service(), new.service());
    let (first, dek) = Manifest::create(&old, subject(), CREATED).await.unwrap();
    let moved = first.rewrap(&old, &new, &subject()).await.unwrap();
    assert_eq!(moved.current().key_id, there);
    assert_eq!(moved.current().algorithm, UNDER_DATA_KEY);
    assert!(moved.unlock(&new, &subject()).await.unwrap().current == dek);
    let error = moved.unlock(&old, &subject()).await.unwrap_err();
    assert!(
        matches!(error, ManifestError::Key(KeyError::Kms { .. })),
        "{error}"
    );
}

#[tokio::test]
async fn the_tag_covers_what_kms_does_not_bind() {
    let moto = Moto::start();
    let provider = kms(&moto.url(), &moto.create_key(REGION)).await;
    let (first, _) = Manifest::create(&provider, subject(), CREATED)
        .await
        .unwrap();
    let (both, _) = first.begin_rotation(&provider, &subject()).await.unwrap();
    let text = String::from_utf8(both.encode().unwrap()).unwrap();
    let wrapped = |key: &WrappedKey| data_encoding::BASE64.encode(&key.bytes);
    let (current, pending) = (wrapped(both.current()), wrapped(both.pending().unwrap()));
    let swapped = text.replace(&current, "?").replace(&pending, &current);
    for changed in [
        text.replace(&CREATED.to_string(), "1790000001"),
        swapped.replace('?', &pending),
    ] {
        assert_ne!(changed, text);
        let changed = Manifest::decode(changed.as_bytes()).unwrap();
        let error = changed.unlock(&provider, &subject()).await.unwrap_err();
        assert!(matches!(error, ManifestError::Tampered { .. }), "{error}");
    }
}

#[tokio::test]
async fn an_alias_stands_for_its_key_and_is_asked_once() {
    let moto = Moto::start();
    let proxy = FaultProxy::before(moto.address());
    let arn = moto.create_key(REGION);
    moto.alias(REGION, "alias/nimbus-production", &arn);
    let provider = kms(&proxy.url(), "alias/nimbus-production").await;
    for tenant in ["a", "b"] {
        let subject = Subject::sqlite_tenant(tenant).unwrap();
        assert_eq!(provider.key_id(&subject).await.unwrap(), arn);
    }
    assert_eq!(calls(&proxy).len(), 1);
    let (dek, wrapped) = provider.generate_key(&context()).await.unwrap();
    assert_eq!(wrapped.key_id, arn);
    assert!(provider.unwrap_key(&context(), &wrapped).await.unwrap() == dek);
}

#[tokio::test]
async fn a_key_that_is_not_there_is_named_with_its_region() {
    let moto = Moto::start();
    for key in ["alias/none", "00000000-0000-0000-0000-000000000000"] {
        let provider = kms(&moto.url(), key).await;
        for error in [
            provider.generate_key(&context()).await.unwrap_err(),
            provider.key_id(&subject()).await.unwrap_err(),
        ] {
            let expected = KmsFault::KeyNotFound {
                key: key.to_owned(),
                service: format!("{REGION} at {}", moto.url()),
            };
            assert!(!error.is_transient());
            assert_eq!(fault(error), expected);
        }
    }
}

fn refusal(code: &str) -> String {
    json!({"__type": code, "message": "said\u{1b} so"}).to_string()
}

#[tokio::test]
async fn every_refusal_has_an_error_that_says_what_to_check() {
    let moto = Moto::start();
    let proxy = FaultProxy::before(moto.address());
    let provider = kms(&proxy.url(), &moto.create_key(REGION)).await;
    let (_, wrapped) = provider.generate_key(&context()).await.unwrap();
    let cases = [
        (400, "NotFoundException", "alias, the region", false),
        (400, "AccessDeniedException", "grant kms:Decrypt", false),
        (400, "DisabledException", "enable it", false),
        (400, "KMSInvalidStateException", "deletion", false),
        (400, "InvalidKeyUsageException", "symmetric", false),
        (400, "IncorrectKeyException", "wrong key", false),
        (400, "InvalidCiphertextException", "was changed", false),
        (400, "UnrecognizedClientException", "credentials", false),
        (400, "ExpiredTokenException", "expired", false),
        (403, "InvalidSignatureException", "clock", false),
        (400, "ThrottlingException", "throttles Decrypt", true),
        (429, "Anything", "throttles Decrypt", true),
        (500, "KMSInternalException", "try again", true),
        (500, "KeyUnavailableException", "try again", true),
        (503, "DependencyTimeoutException", "try again", true),
        (502, "Anything", "try again", true),
        (400, "NewException", "refused Decrypt: NewException", false),
    ];
    for (status, code, says, transient) in cases {
        proxy.set(Fault::Answer(status, refusal(code)));
        let error = provider.unwrap_key(&context(), &wrapped).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains(says), "{code}: {text}");
        assert!(!text.contains(char::is_control), "{code}: {text:?}");
        assert_eq!(error.is_transient(), transient, "{code}: {text}");
    }
    for body in ["", "<html>bad gateway</html>", "{}"] {
        proxy.set(Fault::Answer(502, body.to_owned()));
        let found = unwrap_fault(&provider, &context(), &wrapped).await;
        assert!(
            matches!(found, KmsFault::Unavailable { .. }),
            "{body:?}: {found}"
        );
    }
}

#[tokio::test]
async fn a_service_that_fails_for_a_moment_is_asked_again() {
    let moto = Moto::start();
    let proxy = FaultProxy::before(moto.address());
    let provider = kms(&proxy.url(), &moto.create_key(REGION)).await;
    let (dek, wrapped) = provider.generate_key(&context()).await.unwrap();
    for (status, code) in [(500, "KMSInternalException"), (400, "ThrottlingException")] {
        proxy.take_requests();
        proxy.set(Fault::AnswerTimes(2, status, refusal(code)));
        assert!(provider.unwrap_key(&context(), &wrapped).await.unwrap() == dek);
        assert_eq!(proxy.take_requests().len(), 3, "{code}");
    }
    // A refusal is final.
    proxy.set(Fault::AnswerTimes(1, 400, refusal("AccessDeniedException")));
    unwrap_fault(&provider, &context(), &wrapped).await;
    assert_eq!(proxy.take_requests().len(), 1);
}

#[tokio::test]
async fn an_outage_is_a_network_error_in_bounded_time_and_passes() {
    const { assert!(OPERATION.as_millis() <= 1_500 && CONNECT.as_millis() <= 500) };
    let moto = Moto::start();
    let proxy = FaultProxy::before(moto.address());
    let arn = moto.create_key(REGION);
    let provider = kms(&proxy.url(), &arn).await;
    let strict = connected(&proxy.url(), REGION, &arn, limits()).await;
    let (made, dek) = Manifest::create(&provider, subject(), CREATED)
        .await
        .unwrap();
    let (both, _) = made.begin_rotation(&provider, &subject()).await.unwrap();
    for outage in [Fault::Hang, Fault::Close, Fault::Half] {
        proxy.set(outage.clone());
        // Far more than it takes; without limits a service that hangs is waited for for minutes.
        let limit = Duration::from_secs(10);
        let opened = tokio::time::timeout(limit, both.unlock(&strict, &subject())).await;
        let ManifestError::Key(error) = opened.unwrap().unwrap_err() else {
            panic!("another error");
        };
        assert!(error.is_transient(), "{outage:?}");
        let text = error.to_string();
        assert!(text.contains("VPC routing"), "{outage:?}: {text}");
        proxy.set(Fault::None);
        assert!(both.unlock(&provider, &subject()).await.unwrap().current == dek);
    }
}

#[tokio::test]
async fn an_address_where_nobody_is_is_a_network_error() {
    let free = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    for url in [
        format!("http://{address}"),
        "https://kms.invalid".to_owned(),
    ] {
        let provider = connected(&url, REGION, "alias/x", limits()).await;
        let found = fault(provider.generate_key(&context()).await.unwrap_err());
        assert!(
            matches!(&found, KmsFault::Network { service, .. } if service.contains(&url)),
            "{found}"
        );
    }
}

#[tokio::test]
async fn answers_that_kms_does_not_give_are_refused() {
    let moto = Moto::start();
    let proxy = FaultProxy::before(moto.address());
    let arn = moto.create_key(REGION);
    let provider = kms(&proxy.url(), &arn).await;
    let base64 = |length| data_encoding::BASE64.encode(&vec![7; length]);
    let good = json!({
        "KeyId": arn, "Plaintext": base64(32), "CiphertextBlob": base64(100),
    });
    proxy.set(Fault::Answer(200, good.to_string()));
    let (_, wrapped) = provider.generate_key(&context()).await.unwrap();
    let cases = [
        ("Plaintext", json!(base64(31))),
        ("Plaintext", json!(base64(33))),
        ("Plaintext", json!(base64(0))),
        ("Plaintext", Value::Null),
        ("CiphertextBlob", json!(base64(0))),
        ("CiphertextBlob", json!(base64(answer::MAX_BLOB + 1))),
        ("CiphertextBlob", Value::Null),
        ("KeyId", json!("")),
        ("KeyId", json!("an id with spaces")),
        ("KeyId", json!("x".repeat(513))),
        ("KeyId", Value::Null),
        ("KeyId", json!(7)),
    ];
    for (field, value) in cases {
        let mut changed = good.clone();
        changed[field] = value.clone();
        proxy.set(Fault::Answer(200, changed.to_string()));
        let found = fault(provider.generate_key(&context()).await.unwrap_err());
        assert!(
            matches!(found, KmsFault::BadAnswer { .. }),
            "{field} {value}: {found}"
        );
    }
    for body in ["", "null", "[]", "no JSON"] {
        proxy.set(Fault::Answer(200, body.to_owned()));
        let found = unwrap_fault(&provider, &context(), &wrapped).await;
        assert!(
            matches!(found, KmsFault::BadAnswer { .. }),
            "{body:?}: {found}"
        );
    }
    // A key that the service says is another one.
    let mut other = good.clone();
    other["KeyId"] = json!("arn:aws:kms:us-east-1:1:key/other");
    proxy.set(Fault::Answer(200, other.to_string()));
    let found = unwrap_fault(&provider, &context(), &wrapped).await;
    assert!(matches!(found, KmsFault::WrongKey { .. }), "{found}");
}

#[test]
fn replicas_of_a_multi_region_key_are_one_key() {
    let arn = |region: &str, id: &str| format!("arn:aws:kms:{region}:1:key/{id}");
    assert!(answer::same_key(&arn("a", "mrk-1"), &arn("b", "mrk-1")));
    assert!(!answer::same_key(&arn("a", "mrk-1"), &arn("b", "mrk-2")));
    assert!(!answer::same_key(&arn("a", "1"), &arn("b", "1")));
    assert!(answer::same_key("x", "x"));
    assert!(!answer::same_key("x", "y"));
}

/// What the child of the next test does, with the environment that it was given.
#[tokio::test]
async fn child_of_the_credential_chain() {
    let Ok(url) = std::env::var("NIMBUS_TEST_KMS_URL") else {
        return;
    };
    let options = AwsKmsOptions {
        key_id: "alias/nimbus".to_owned(),
        region: None,
        endpoint_url: Some(url),
    };
    let loader = aws_config::defaults(BehaviorVersion::v2026_01_12());
    let outcome = match AwsKms::connect_by(loader, patient(), options).await {
        Err(fault) => fault.to_string(),
        Ok(provider) => match provider.generate_key(&context()).await {
            Ok((_, wrapped)) => wrapped.key_id,
            Err(error) => error.to_string(),
        },
    };
    // The test's own output is captured unless it fails.
    std::fs::write(std::env::var("NIMBUS_TEST_KMS_OUT").unwrap(), outcome).unwrap();
}

#[test]
fn region_and_credentials_come_from_the_standard_chain() {
    let moto = Moto::start();
    let arn = moto.create_key("eu-north-1");
    moto.alias("eu-north-1", "alias/nimbus", &arn);
    let dir = tempfile::tempdir().unwrap();
    let profile = dir.path().join("credentials");
    std::fs::write(
        &profile,
        "[p]\naws_access_key_id=a\naws_secret_access_key=b\n",
    )
    .unwrap();
    let profile = profile.to_str().unwrap();
    let out = dir.path().join("out");
    let child = |variables: &[(&str, &str)]| {
        let status = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "provider::aws_kms::tests::child_of_the_credential_chain",
            ])
            .env_clear()
            .env("HOME", dir.path())
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("NIMBUS_TEST_KMS_URL", moto.url())
            .env("NIMBUS_TEST_KMS_OUT", &out)
            .envs(variables.iter().copied())
            .status();
        assert!(status.unwrap().success());
        std::fs::read_to_string(&out).unwrap()
    };
    let region = ("AWS_REGION", "eu-north-1");
    let keys = [("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b")];
    assert_eq!(child(&[region, keys[0], keys[1]]), arn);
    let file = [
        ("AWS_SHARED_CREDENTIALS_FILE", profile),
        ("AWS_PROFILE", "p"),
    ];
    assert_eq!(child(&[region, file[0], file[1]]), arn);
    let text = child(&[region]);
    assert!(text.contains("there are no AWS credentials"), "{text}");
    let text = child(&keys);
    assert!(text.contains("no AWS region is configured"), "{text}");
    let text = child(&[("AWS_REGION", REGION), keys[0], keys[1]]);
    assert!(
        text.contains("finds no key \"alias/nimbus\" in us-east-1"),
        "{text}"
    );
}

#[tokio::test]
async fn debug_is_short_and_shows_no_secret() {
    let moto = Moto::start();
    let provider = kms(&moto.url(), &moto.create_key(REGION)).await;
    provider.generate_key(&context()).await.unwrap();
    let expected = format!("AwsKms({} in {})", provider.key_id, provider.service);
    assert_eq!(format!("{provider:?}"), expected);
}
