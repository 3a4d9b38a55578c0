//! One data set through every key provider: master key, key directory, KMS, KMS of another region, master
//! key; each time the old keys are refused. And an outage of KMS.

use std::time::{Duration, Instant};

use nimbus_e2e::faults::{Fault, FaultProxy};
use nimbus_e2e::files;
use nimbus_e2e::moto::Moto;
use nimbus_e2e::server::Server;
use serde_json::json;

use super::{KEY_DIR, KEY_FILE, PROVIDER, Vault, check, fill, make_key, text};

/// Hexadecimal of a descriptor, as the files of a key directory are named.
fn key_name(descriptor: &str) -> String {
    let hex: String = descriptor
        .bytes()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("{hex}.key")
}

fn kms<'a>(key: &'a str, region: &'a str, url: &'a str) -> Vec<(&'static str, &'a str)> {
    vec![
        (PROVIDER, "aws-kms"),
        ("NIMBUS_ENCRYPTION_AWS_KMS_KEY_ID", key),
        ("NIMBUS_ENCRYPTION_AWS_REGION", region),
        ("NIMBUS_ENCRYPTION_AWS_ENDPOINT_URL", url),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
    ]
}

#[test]
fn through_every_provider_and_back() {
    let vault = Vault::new();
    let mut server = vault.start();
    for tenant in ["one", "two"] {
        fill(&server, tenant);
    }
    assert!(server.terminate().success());

    let keys = vault.path("keys");
    std::fs::create_dir(&keys).unwrap();
    files::set_mode(&keys, 0o700);
    let all = "rotate-kek --path {data} --all";
    // A key that is missing is found before anything is changed.
    vault
        .encryption(&format!("{all} --new-key-dir {}", text(&keys)))
        .expect(1)
        .says(&[
            "3 manifests cannot be rotated, and nothing was changed",
            "there is no key file",
        ]);
    for descriptor in [
        "db:redb:control:nimbus-control.db",
        "db:sqlite:tenant:one:one.sqlite3",
        "db:sqlite:tenant:two:two.sqlite3",
    ] {
        make_key(&keys.join(key_name(descriptor)));
    }
    vault
        .encryption(&format!("{all} --new-key-dir {}", text(&keys)))
        .expect(0);
    let old = [vault];
    let in_dir = old[0].with(&[(PROVIDER, "key-dir"), (KEY_DIR, &text(&keys))]);
    serves_with(&in_dir, &old[0]);

    let moto = Moto::start();
    moto.alias(
        "us-east-1",
        "alias/nimbus-production",
        &moto.create_key("us-east-1"),
    );
    let url = moto.url();
    // Credentials, beside the settings of the present provider.
    let mut present = in_dir.with(&[]);
    present.env.clone_from(&in_dir.env);
    present.env.extend(
        kms("x", "y", &url)
            .drain(4..)
            .map(|(n, v)| (n, v.to_owned())),
    );
    present
        .encryption(&format!(
            "{all} --new-key-provider aws-kms --new-aws-kms-key-id alias/nimbus-production --new-aws-region us-east-1 --new-aws-endpoint-url {url}"
        ))
        .expect(0);
    let first = in_dir.with(&kms("alias/nimbus-production", "us-east-1", &url));
    serves_with(&first, &in_dir);

    let other = moto.create_key("eu-central-1");
    first
        .encryption(&format!(
            "{all} --new-aws-kms-key-id {other} --new-aws-region eu-central-1 --new-aws-endpoint-url {url}"
        ))
        .expect(0);
    let second = in_dir.with(&kms(&other, "eu-central-1", &url));
    serves_with(&second, &first);

    make_key(&second.path("last.key"));
    second
        .encryption(&format!("{all} --new-master-key-file {{home}}/last.key"))
        .expect(0);
    let last = text(&second.path("last.key"));
    let last = second.with(&[(PROVIDER, "master-key-file"), (KEY_FILE, &last)]);
    serves_with(&last, &second);
    serves_with(&last, &old[0]);
}

/// The server starts with the one and not with the other.
fn serves_with(new: &Vault, old: &Vault) {
    let refused = Server::refused(old.options());
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    let mut server = new.start();
    for tenant in ["one", "two"] {
        check(&server, tenant);
    }
    assert!(server.terminate().success());
}

#[test]
fn open_tenants_outlive_an_outage_of_kms_and_others_fail_closed() {
    let vault = Vault::new();
    let moto = Moto::start();
    let key = moto.create_key("us-east-1");
    let proxy = FaultProxy::before(moto.address());
    let url = proxy.url();
    let vault = vault.with(&kms(&key, "us-east-1", &url));
    let mut server = vault.start();
    for tenant in ["open", "closed"] {
        fill(&server, tenant);
    }
    assert!(server.terminate().success());
    server.restart();
    check(&server, "open");

    let denied = r#"{"__type":"AccessDeniedException","message":"no"}"#.to_owned();
    for fault in [
        Fault::Hang,
        Fault::Close,
        Fault::Answer(500, "{}".to_owned()),
        Fault::Answer(400, denied),
    ] {
        proxy.set(fault.clone());
        let begun = Instant::now();
        let refused = server.client().get("/api/tenants/closed/documents/notes");
        refused.refused(503, "service.unavailable");
        // A bound of the contract, four times over: a machine under test may be slow.
        assert!(begun.elapsed() < Duration::from_secs(8), "{fault:?}");
        check(&server, "open");
        server
            .client()
            .insert("open", "more", &json!({"during": "the outage"}));
    }
    proxy.set(Fault::None);
    check(&server, "closed");
    assert!(server.terminate().success());
}
