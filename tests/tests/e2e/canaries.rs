//! Canaries: each tenant holds strings that occur nowhere else, in its names, values, index keys,
//! ids and cursors. Every route of a tenant is then driven with what belongs to another, and with
//! what belonged to one that is gone: nothing crosses, and the two look the same.
//!
//! The routes are those that the running server lists, so a new one is driven the day it is added,
//! and one with a body says here what it is sent. This room must not know how tenants are kept
//! apart.

mod probes;

use std::collections::{BTreeMap, BTreeSet};

use nimbus_e2e::{Client, Options, Reply, Rng, Server, files};
use serde_json::{Value as Json, json};

use probes::{Probe, probes, routes};

/// A table that every tenant has, so that ids of one have the form of ids of another.
const SHARED: &str = "shared";

/// A tenant and everything that may be told from others by.
struct Tenant {
    id: String,
    table: String,
    field: String,
    index: String,
    import: String,
    values: [String; 2],
    /// A document in the shared table and one in its own.
    documents: [String; 2],
    cursors: [String; 2],
    commit: String,
}

impl Tenant {
    /// Creates a tenant that has everything.
    fn create(client: &Client, rng: &mut Rng) -> Tenant {
        let mut canary = |prefix: &str| format!("{prefix}{}", rng.letters(20));
        let mut tenant = Tenant {
            id: canary("tid"),
            table: canary("tab"),
            field: canary("fld"),
            index: canary("idx"),
            import: canary("imp"),
            values: [canary("val"), canary("txt")],
            documents: Default::default(),
            cursors: Default::default(),
            commit: String::new(),
        };
        client.create_tenant(&tenant.id);
        for (at, table) in [SHARED, &tenant.table.clone()].into_iter().enumerate() {
            let path = tenant.path(&format!("/schema/{table}"));
            client.put(&path, &tenant.schema(table)).expect(204);
            let fields = json!({&tenant.field: tenant.values[0], "text": tenant.values[1]});
            tenant.documents[at] = client.insert(&tenant.id, table, &fields);
            client.insert(&tenant.id, table, &fields);
            let page = json!({"query": tenant.query(table), "page_size": 1});
            let page = client
                .post(&tenant.path("/query/paginated"), &page)
                .expect(200);
            let cursor = page.json()["next_cursor"].as_str().unwrap().to_owned();
            tenant.cursors[at] = cursor;
        }
        let rows = json!([{"line": 1, "fields": {&tenant.field: tenant.values[0]}}]);
        let chunk = json!({"import": tenant.import, "last_line": 1, "rows": rows});
        let path = tenant.path(&format!("/import/{}", tenant.table));
        client.post(&path, &chunk).expect(200);
        let journal = client
            .get(&tenant.path("/journal?limit=1"))
            .expect(200)
            .json();
        tenant.commit = journal["records"][0]["commit_id"]
            .as_str()
            .unwrap()
            .to_owned();
        tenant
    }

    fn path(&self, rest: &str) -> String {
        format!("/api/tenants/{}{rest}", self.id)
    }

    fn schema(&self, table: &str) -> Json {
        json!({
            "table": table,
            "fields": [{"name": self.field, "field_type": "any", "required": false}],
            "indexes": [{"name": self.index, "fields": [self.field]}],
        })
    }

    fn query(&self, table: &str) -> Json {
        json!({"table": table, "filters": [], "order": {"field": self.field, "direction": "asc"}})
    }

    /// What a caller may write elsewhere under the same name.
    fn names(&self) -> Vec<&str> {
        vec![
            &self.id,
            &self.table,
            &self.field,
            &self.index,
            &self.import,
        ]
    }

    /// What no other tenant may ever hold or tell.
    fn secrets(&self) -> Vec<&str> {
        let parts = self
            .values
            .iter()
            .chain(&self.documents)
            .chain(&self.cursors);
        let mut all: Vec<&str> = parts.map(String::as_str).collect();
        all.push(&self.commit);
        all
    }

    fn canaries(&self) -> Vec<&str> {
        [self.names(), self.secrets()].concat()
    }
}

/// The answer without the request id and the time, and with what the probe was made from covered.
fn comparable(reply: &Reply, other: &Tenant) -> String {
    let mut headers = reply.headers.clone();
    headers.retain(|(name, _)| name != "x-request-id" && name != "date");
    let mut text = reply.text();
    if let Ok(Json::Object(mut outer)) = serde_json::from_str(&text)
        && let Some(error) = outer.get_mut("error")
    {
        for name in ["requestId", "timestamp"] {
            let value = error[name].as_str().unwrap_or_default().to_owned();
            text = text.replace(&value, "#");
        }
    }
    for canary in other.canaries() {
        text = text.replace(canary, &"x".repeat(canary.len()));
    }
    format!("{} {headers:?} {text}", reply.status)
}

/// Which of `canaries` are in `text` although they were not in `asked`.
fn crossed<'a>(canaries: &[&'a str], text: &str, asked: &str) -> Vec<&'a str> {
    let found = canaries
        .iter()
        .filter(|c| text.contains(**c) && !asked.contains(**c));
    found.copied().collect()
}

/// What was sent, by the request id of its answer.
type Sent = BTreeMap<String, String>;

/// Sends a probe and checks its answer for what belongs to `strangers`.
fn drive(
    client: &Client,
    probe: &Probe,
    headers: &[(&str, &str)],
    forbidden: &[&str],
    sent: &mut Sent,
) -> Reply {
    let reply = probe.send(client, headers);
    let text = format!("{:?} {}", reply.headers, reply.text());
    let crossed = crossed(forbidden, &text, &probe.text());
    assert!(
        crossed.is_empty(),
        "{crossed:?} in the answer to {probe:?}: {text}"
    );
    sent.insert(
        reply.header("x-request-id").unwrap().to_owned(),
        probe.path.clone(),
    );
    reply
}

/// Files of a tenant that hold one of `canaries`.
fn in_files(server: &Server, tenant: &str, canaries: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for path in files::all_below(&server.data_dir()) {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        for canary in canaries {
            if name.starts_with(tenant) && files::contains(&path, canary) {
                found.push(format!("{canary} in {name}"));
            }
        }
    }
    found
}

#[test]
fn nothing_of_one_tenant_shows_in_another() {
    let server = Server::start(Options::new().env("RUST_LOG", "debug"));
    let client = server.client();
    let mut rng = Rng::new(8);
    let [one, two, gone] = [(); 3].map(|()| Tenant::create(&client, &mut rng));
    client
        .delete(&format!("/api/tenants/{}", gone.id))
        .expect(204);
    let routes = routes(&client);
    for (tenant, other) in [(&one, &two), (&two, &one)] {
        assert!(!in_files(&server, &tenant.id, &tenant.secrets()[..2]).is_empty());
        let found = in_files(
            &server,
            &tenant.id,
            &[other.canaries(), gone.canaries()].concat(),
        );
        assert!(found.is_empty(), "{found:?}");
    }
    let heads = [&one, &two].map(|t| client.journal_head(&t.id));

    let (stranger, mut shut) = (server.anonymous(), BTreeSet::new());
    let (mut sent, mut equal) = (Sent::new(), 0);
    for (tenant, other) in [(&one, &two), (&two, &one)] {
        let forbidden = [other.canaries(), gone.canaries()].concat();
        let naming = [
            ("x-tenant-id", other.id.as_str()),
            ("x-nimbus-tenant", &other.id),
            ("x-forwarded-host", &other.id),
            ("cookie", &other.cursors[0]),
        ];
        let foreign = probes(&routes, tenant, other);
        let missing = probes(&routes, tenant, &gone);
        assert_eq!(foreign.len(), missing.len());
        for (foreign, missing) in foreign
            .iter()
            .zip(&missing)
            .filter(|(p, _)| !p.writes_names)
        {
            let there = drive(&client, foreign, &[], &forbidden, &mut sent);
            let not = drive(&client, missing, &[], &forbidden, &mut sent);
            drive(&client, foreign, &naming, &forbidden, &mut sent);
            // Without a credential there is one answer to all of them.
            for probe in [foreign, missing] {
                let reply = probe.send(&stranger, &naming);
                shut.insert(comparable(&reply.expect(401), other));
            }
            // A route that takes nothing of another was asked twice, and may count that.
            if crossed(&other.canaries(), &foreign.text(), "").is_empty() {
                continue;
            }
            assert_eq!(
                comparable(&there, other),
                comparable(&not, &gone),
                "{foreign:?}\n{missing:?}"
            );
            equal += 1;
        }
    }
    assert_eq!(shut.len(), 1, "the refusal tells something: {shut:#?}");
    // Nothing was written: what was refused changed neither side.
    let after = [&one, &two].map(|t| client.journal_head(&t.id));
    assert_eq!(
        after, heads,
        "a probe with things of another tenant wrote something"
    );
    for (tenant, other) in [(&one, &two), (&two, &one)] {
        let found = in_files(
            &server,
            &tenant.id,
            &[other.canaries(), gone.canaries()].concat(),
        );
        assert!(found.is_empty(), "{found:?}");
    }

    // Names may be chosen by anybody, also those of another tenant; they bring nothing along.
    for (tenant, other) in [(&one, &two), (&two, &one)] {
        for probe in probes(&routes, tenant, other)
            .iter()
            .filter(|p| p.writes_names)
        {
            drive(&client, probe, &[], &other.secrets(), &mut sent);
        }
    }
    for (tenant, other) in [(&one, &two), (&two, &one)] {
        let own = format!("/api/tenants/{}/journal/bootstrap", tenant.id);
        let whole = client.get(&own).expect(200).text();
        assert!(whole.contains(&tenant.values[0]) && whole.contains(&tenant.documents[0]));
        assert_eq!(crossed(&other.secrets(), &whole, ""), [""; 0]);
        let found = in_files(
            &server,
            &tenant.id,
            &[other.secrets(), gone.secrets()].concat(),
        );
        assert!(found.is_empty(), "{found:?}");
        client.check_consistency(&tenant.id);
    }
    println!(
        "{} routes, {} requests, {equal} pairs of foreign and missing alike",
        routes.len(),
        sent.len()
    );

    let metrics = client.get("/metrics").expect(200).text();
    let all = [one.canaries(), two.canaries(), gone.canaries()].concat();
    assert_eq!(crossed(&all, &metrics, ""), [""; 0]);
    check_audit(&server, &[&one, &two], &sent);
    let log = server.log();
    assert!(log.contains("DEBUG"), "the log was to be a talkative one");
    let secrets = [one.secrets(), two.secrets(), gone.secrets()].concat();
    assert_eq!(crossed(&secrets, &log, ""), [""; 0]);
    // One goes, and the other is as it was.
    client
        .delete(&format!("/api/tenants/{}", one.id))
        .expect(204);
    client.check_consistency(&two.id);
    let path = format!(
        "/api/tenants/{}/documents/{SHARED}/{}",
        two.id, two.documents[0]
    );
    client.get(&path).expect(200);
}

/// Lines about one tenant name nothing of the other but what their own request had in its path.
fn check_audit(server: &Server, tenants: &[&Tenant; 2], sent: &Sent) {
    let text = std::fs::read_to_string(server.home().audit_log()).unwrap();
    let mut checked = 0;
    for line in text.lines() {
        let json: Json = serde_json::from_str(line).unwrap();
        let asked = json["requestId"].as_str().and_then(|id| sent.get(id));
        let Some(asked) = asked else { continue };
        for tenant in tenants {
            let other = tenants.iter().find(|other| other.id != tenant.id).unwrap();
            if json["tenantId"] == tenant.id.as_str() {
                assert_eq!(crossed(&other.canaries(), line, asked), [""; 0], "{line}");
                checked += 1;
            }
        }
    }
    assert_eq!(checked, sent.len(), "each request has its line");
}
