//! Deployments: what a deploy makes current, what its schema asks of every write, what is refused
//! and leaves nothing, and the way back.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use nimbus_storage::backup::{Backup, Source, restore};
use nimbus_storage::core::{Object, TableName, TableNames, Validator, Value};
use nimbus_storage::provider::Keyspace;
use nimbus_storage::{
    DeployError, DeployPlan, FilterOp, FunctionQuery, ImportRow, KEPT_DEPLOYMENTS,
    MAX_MODULE_BYTES, MAX_MODULES, StoreError, Tenant,
};
use serde_json::{Value as Json, json};

use super::support::*;

async fn world() -> (World, Tenant) {
    let world = World::new().await;
    let tenant = world.create("t").await;
    (world, tenant)
}

fn users() -> Json {
    let fields = [("name", of("string"), false), ("age", of("number"), true)];
    declared("users", &fields, &[("by_name", &["name"])])
}

fn user(name: &str) -> Object {
    object([("name", text(name))])
}

#[tokio::test]
async fn a_deployment_is_what_was_deployed() {
    let (mut world, tenant) = world().await;
    assert_eq!(tenant.deployment().await.unwrap(), None);
    assert!(tenant.deployments(5).await.unwrap().is_empty());
    let mut first = plan(&[("a.js", "export const a = 1;"), ("dir/b.js", "b")]);
    first.message = Some("first".to_owned());
    let report = deploy(&tenant, first).await;
    assert!(!report.schema_changed && report.added_indexes.is_empty());
    assert_eq!(report.previous, None);
    let one = tenant.deployment().await.unwrap().unwrap();
    assert_eq!(one, report.deployment);
    assert_eq!((one.generation, one.message.as_deref()), (1, Some("first")));
    let paths: Vec<_> = one.modules.keys().map(String::as_str).collect();
    assert_eq!(paths, ["a.js", "dir/b.js"]);
    assert_eq!(&*one.analysis, "{\"modules\":{}}");
    assert_eq!(&*one.udf_config, "{\"seed\":1}");
    assert!(one.created_ms > 1_600_000_000_000);
    // SHA-256 of source and source map.
    let a = tenant.module(&one.modules["a.js"].hash).await.unwrap();
    assert_eq!(&*a.source, "export const a = 1;");
    assert_eq!(a.source_map.as_deref(), Some("{}"));
    assert_eq!(one.modules["dir/b.js"].hash, sha256("b{}"));

    let mut dry = plan(&[("a.js", "export const a = 2;")]);
    dry.dry_run = true;
    assert_eq!(deploy(&tenant, dry).await.previous, Some(one.clone()));
    let two = deploy(&tenant, plan(&[("a.js", "export const a = 2;")])).await;
    assert_eq!(two.previous, Some(one.clone()));
    drop(tenant);
    world.reopen().await;
    let tenant = world.tenant("t").await;
    let current = tenant.deployment().await.unwrap().unwrap();
    assert_eq!(current, two.deployment);
    assert_eq!((current.generation, current.message.clone()), (2, None));
    let all = tenant.deployments(9).await.unwrap();
    assert_eq!(all, [current, one.clone()]);
    assert_eq!(tenant.deployments(1).await.unwrap().len(), 1);
    // The old code stays for calls in flight and for the way back.
    tenant.module(&one.modules["dir/b.js"].hash).await.unwrap();
    assert_consistent(&tenant).await;
}

fn sha256(text: &str) -> String {
    use sha2::{Digest, Sha256};
    data_encoding::HEXLOWER.encode(&Sha256::digest(text))
}

#[tokio::test]
async fn the_newest_ten_are_kept_with_their_code() {
    let (mut world, tenant) = world().await;
    let mut made = Vec::new();
    for n in 0..KEPT_DEPLOYMENTS + 2 {
        let own = format!("own {n}");
        let report = deploy(&tenant, plan(&[("own.js", &own), ("shared.js", "shared")])).await;
        made.push(report.deployment);
    }
    let kept = tenant.deployments(100).await.unwrap();
    let generations: Vec<_> = kept.iter().map(|d| d.generation).collect();
    assert_eq!(generations, (3..=12).rev().collect::<Vec<_>>());
    for old in &made[..2] {
        let gone = tenant.module(&old.modules["own.js"].hash).await;
        assert!(matches!(gone, Err(StoreError::Corrupt { .. })), "{gone:?}");
        let back = tenant.roll_back(&old.id).await;
        assert!(matches!(back, Err(DeployError::UnknownDeployment { .. })));
    }
    for kept in &kept {
        for module in kept.modules.values() {
            tenant.module(&module.hash).await.unwrap();
        }
    }
    assert_consistent(&tenant).await;
    drop(tenant);
    let rows = rows(&mut world, "t").await;
    let code = rows.keys().filter(|(space, _)| *space == Keyspace::Code);
    // A module and a manifest for each, and the shared module.
    assert_eq!(code.count(), 2 * KEPT_DEPLOYMENTS + 1);
    assert!(!rows.contains_key(&(Keyspace::Meta, b"push".to_vec())));
}

#[tokio::test]
async fn every_write_obeys_the_deployed_schema() {
    let (_world, tenant) = world().await;
    let report = deploy(&tenant, with_schema(vec![users()])).await;
    assert!(report.schema_changed);
    assert_eq!(report.added_indexes.len(), 1);
    let table: TableName = name("users");
    let id = insert(&tenant, "users", user("x")).await;
    let text_of_insert = unfit(tenant.insert(&table, object([("age", num(1.0))])).await);
    assert_eq!(
        text_of_insert,
        "Failed to insert or update a document in table \"users\" because it does not match the schema: \
         Object is missing the required field `name`. Consider wrapping the field validator in `v.optional(...)` if this is expected.\n\n\
         Object: {age: 1.0}\nValidator: v.object({age: v.optional(v.float64()), name: v.string()})"
    );
    let patch = tenant
        .patch(&table, &id.to_string(), object([("age", text("old"))]))
        .await;
    assert!(unfit(patch).contains("Path: .age\nValue: \"old\"\nValidator: v.float64()"));
    let replaced = tenant
        .transact(|tx| {
            Box::pin(async move {
                tx.replace(&name("users"), id, object([("n", int(1))]))
                    .await
            })
        })
        .await;
    unfit(replaced);
    let removal = tenant
        .transact(|tx| {
            let removal = BTreeMap::from([("name".to_owned(), None)]);
            Box::pin(async move { tx.merge(&name("users"), id, removal).await })
        })
        .await;
    unfit(removal);
    let row = ImportRow {
        line: 1,
        fields: object([("name", int(1))]),
    };
    let import = tenant.import_chunk(&table, "i", vec![row], 1).await;
    let Err(StoreError::AtLine { line: 1, source }) = import else {
        panic!("{import:?}");
    };
    unfit::<()>(Err(*source));
    // Another table is unrestricted.
    insert(&tenant, "others", object([("name", int(1))])).await;
    assert_eq!(Model::of(&tenant, "users").await.0.len(), 1);
    assert_consistent(&tenant).await;
}

#[tokio::test]
async fn ids_are_checked_against_their_table() {
    let (_world, tenant) = world().await;
    let to_users = json!({"type": "id", "tableName": "users"});
    let notes = declared("notes", &[("by", to_users, false)], &[]);
    deploy(&tenant, with_schema(vec![notes])).await;
    let stray = insert(&tenant, "others", object([])).await.to_string();
    let by = |id: &str| object([("by", text(id))]);
    let table: TableName = name("notes");
    let refused = unfit(tenant.insert(&table, by(&stray)).await);
    assert!(
        refused.contains(&format!("Found ID \"{stray}\" from table `others`, which does not match the table name in validator `v.id(\"users\")`.")),
        "{refused}"
    );
    let user = insert(&tenant, "users", object([])).await.to_string();
    insert(&tenant, "notes", by(&user)).await;
    // A table that was looked up and did not exist is part of what was read.
    let mut tx = tenant.begin().await.unwrap();
    let validator: Validator =
        Validator::from_json_text("{\"type\":\"id\",\"tableName\":\"later\"}").unwrap();
    let tables = tx.table_names();
    assert_eq!(tables.number("later"), None);
    assert!(tables.name(tables.number("users").unwrap()).is_some());
    assert!(validator.check(&Value::String(user), &tables).is_err());
    tx.insert(&name("others"), object([])).await.unwrap();
    insert(&tenant, "later", object([])).await;
    let committed = tenant.commit(tx).await;
    assert!(
        matches!(committed, Err(StoreError::Conflict { .. })),
        "{committed:?}"
    );
    assert_consistent(&tenant).await;
}

#[tokio::test]
async fn documents_that_contradict_the_schema_refuse_it() {
    let (mut world, tenant) = world().await;
    deploy(&tenant, plan(&[("a.js", "old")])).await;
    for n in 0..600 {
        let value = if n == 577 { int(7) } else { text("x") };
        insert(&tenant, "users", object([("name", value)])).await;
    }
    let odd = query("users", vec![filter("name", FilterOp::Eq, int(7))], None);
    let odd = tenant.query(&odd).await.unwrap()[0].id;
    drop(tenant);
    let before = rows(&mut world, "t").await;
    let tenant = world.tenant("t").await;
    let mut strict = with_schema(vec![users()]);
    for dry_run in [true, false] {
        strict.dry_run = dry_run;
        let text = refused(tenant.deploy(strict.clone()).await);
        assert_eq!(
            text,
            format!(
                "Schema validation failed. Document with ID \"{odd}\" in table \"users\" does not match the schema: \
                 Value does not match validator.\nPath: .name\nValue: 7n\nValidator: v.string()"
            )
        );
    }
    until("the index of the failed push is gone", || async {
        is_unmarked(&definition(&tenant, "users").await)
    })
    .await;
    assert_eq!(tenant.deployment().await.unwrap().unwrap().generation, 1);
    drop(tenant);
    let mut after = rows(&mut world, "t").await;
    let counters = (Keyspace::Meta, b"counters".to_vec());
    // Numbers are not used twice.
    after.insert(counters.clone(), before[&counters].clone());
    assert_eq!(as_text(after), as_text(before));
    // Without enforcement the same schema goes through.
    let tenant = world.tenant("t").await;
    let off = strict
        .schema
        .unwrap()
        .replace("\"schemaValidation\":true", "\"schemaValidation\":false");
    strict.schema = Some(Arc::from(off));
    deploy(&tenant, strict).await;
    insert(&tenant, "users", object([("anything", int(1))])).await;
    assert_eq!(indexes(&tenant, "users").await, ["by_name [name] enabled"]);
    assert_consistent(&tenant).await;
}

fn as_text<K: Ord>(rows: BTreeMap<K, Vec<u8>>) -> BTreeMap<K, String> {
    rows.into_iter()
        .map(|(k, v)| (k, String::from_utf8_lossy(&v).into_owned()))
        .collect()
}

#[tokio::test]
async fn a_wider_schema_does_not_look_at_documents_again() {
    let (world, tenant) = world().await;
    deploy(
        &tenant,
        with_schema(vec![declared("d", &[("a", of("string"), false)], &[])]),
    )
    .await;
    for _ in 0..10 {
        insert(&tenant, "d", object([("a", text("x"))])).await;
    }
    // What is not declared to the writers' eyes during the push was not to be checked.
    let marked = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = marked.clone();
    world.hooks.on_commit(move |batch| {
        if declares_push(&batch, "d") {
            seen.store(true, std::sync::atomic::Ordering::SeqCst);
        }
        async { Verdict::Pass }
    });
    let wider = json!({"type": "union", "value": [of("string"), of("null")]});
    deploy(
        &tenant,
        with_schema(vec![declared("d", &[("a", wider, true)], &[])]),
    )
    .await;
    assert!(!marked.load(std::sync::atomic::Ordering::SeqCst));
    deploy(
        &tenant,
        with_schema(vec![declared("d", &[("a", of("string"), true)], &[])]),
    )
    .await;
    assert!(marked.load(std::sync::atomic::Ordering::SeqCst));
}

#[tokio::test]
async fn tables_that_the_schema_drops_keep_documents_and_nothing_else() {
    let (_world, tenant) = world().await;
    deploy(&tenant, with_schema(vec![users()])).await;
    insert(&tenant, "users", user("x")).await;
    let report = deploy(&tenant, plan(&[("a.js", "no schema")])).await;
    assert!(report.schema_changed);
    assert_eq!(report.removed_indexes.len(), 1);
    assert_eq!(report.removed_indexes[0].index.as_str(), "by_name");
    insert(&tenant, "users", object([("free", int(1))])).await;
    until("the index is gone", || async {
        indexes(&tenant, "users").await.is_empty()
    })
    .await;
    assert_eq!(Model::of(&tenant, "users").await.0.len(), 2);
    // The way back is the same as any deployment: it looks at documents.
    let first = tenant.deployments(2).await.unwrap()[1].id;
    let refused = tenant.roll_back(&first).await;
    assert!(
        matches!(refused, Err(DeployError::SchemaValidation { .. })),
        "{refused:?}"
    );
    assert_consistent(&tenant).await;
}

#[tokio::test]
async fn an_index_may_change_its_fields() {
    let (_world, tenant) = world().await;
    let notes = |fields: &[&str]| {
        let any = [("a", of("number"), false), ("b", of("number"), false)];
        with_schema(vec![declared("notes", &any, &[("by_it", fields)])])
    };
    deploy(&tenant, notes(&["a"])).await;
    for n in 0..300 {
        let fields = object([("a", num(f64::from(n))), ("b", num(f64::from(-n)))]);
        insert(&tenant, "notes", fields).await;
    }
    let report = deploy(&tenant, notes(&["b", "a"])).await;
    assert_eq!(report.added_indexes[0].fields.len(), 2);
    assert_eq!(report.removed_indexes[0].fields, [name("a")]);
    until("the old index is gone", || async {
        indexes(&tenant, "notes").await.len() == 1
    })
    .await;
    assert_eq!(indexes(&tenant, "notes").await, ["by_it [b,a] enabled"]);
    let asked = query("notes", vec![filter("b", FilterOp::Lt, num(-290.0))], None);
    let found = tenant.query(&asked).await.unwrap();
    assert_eq!(found.len(), 9);
    let again = deploy(&tenant, notes(&["b", "a"])).await;
    assert!(!again.schema_changed, "{again:?}");
    assert_consistent(&tenant).await;
}

#[tokio::test]
async fn rolling_back_makes_the_old_content_current() {
    let (_world, tenant) = world().await;
    deploy(&tenant, with_schema(vec![users()])).await;
    let first = tenant.deployment().await.unwrap().unwrap();
    deploy(&tenant, plan(&[("a.js", "second")])).await;
    let report = tenant.roll_back(&first.id).await.unwrap();
    let now = tenant.deployment().await.unwrap().unwrap();
    assert_eq!(now, report.deployment);
    assert_eq!((now.generation, &now.modules), (3, &first.modules));
    assert_eq!(now.schema, first.schema);
    assert_eq!(now.message, Some(format!("roll back to {}", first.id)));
    assert_ne!(now.id, first.id);
    unfit(tenant.insert(&name("users"), object([])).await);
    assert_eq!(tenant.deployments(9).await.unwrap().len(), 3);
    assert_consistent(&tenant).await;
}

#[tokio::test]
async fn a_dry_run_changes_nothing_and_says_what_would() {
    let (mut world, tenant) = world().await;
    insert(&tenant, "users", user("x")).await;
    drop(tenant);
    let before = rows(&mut world, "t").await;
    let tenant = world.tenant("t").await;
    let mut plan = with_schema(vec![users()]);
    plan.dry_run = true;
    let report = deploy(&tenant, plan.clone()).await;
    assert_eq!(report.added_indexes[0].table.as_str(), "users");
    assert_eq!(report.deployment.generation, 1);
    drop(tenant);
    assert_eq!(rows(&mut world, "t").await, before);
    let tenant = world.tenant("t").await;
    plan.dry_run = false;
    let real = deploy(&tenant, plan).await;
    assert_eq!(real.added_indexes, report.added_indexes);
}

#[tokio::test]
async fn a_table_has_one_kind_of_schema() {
    let (_world, tenant) = world().await;
    let native = schema("users", &["name"], &[("mine", &["name"])]);
    tenant.put_schema(native.clone()).await.unwrap();
    let mut both = with_schema(vec![users()]);
    for dry_run in [true, false] {
        both.dry_run = dry_run;
        let refused = tenant.deploy(both.clone()).await;
        assert!(
            matches!(refused, Err(DeployError::NativeSchema { .. })),
            "{refused:?}"
        );
    }
    assert_eq!(tenant.deployment().await.unwrap(), None);
    assert_eq!(
        tenant.table_schema(&name("users")).await.unwrap().fields,
        native.fields
    );
    tenant.delete_schema(&name("users")).await.unwrap();
    deploy(&tenant, both).await;
    for refused in [
        tenant.put_schema(native.clone()).await,
        tenant.delete_schema(&name("users")).await,
    ] {
        let error = refused.unwrap_err();
        assert!(matches!(error, StoreError::InvalidInput { .. }), "{error}");
        assert!(error.to_string().contains("deployed functions"), "{error}");
    }
    deploy(&tenant, plan(&[("a.js", "none")])).await;
    tenant.put_schema(native).await.unwrap();
    indexes_ready(&tenant, "users").await;
    assert_consistent(&tenant).await;
}

#[tokio::test]
async fn plans_beyond_a_limit_are_refused() {
    let (_world, tenant) = world().await;
    let huge = "x".repeat(MAX_MODULE_BYTES);
    let with = |change: &dyn Fn(&mut DeployPlan)| {
        let mut made = plan(&[("a.js", "a"), ("b.js", "b")]);
        change(&mut made);
        made
    };
    let many: Vec<_> = (0..=MAX_MODULES).map(|n| format!("m{n}.js")).collect();
    let many: Vec<_> = many.iter().map(|path| (path.as_str(), "x")).collect();
    let cases = [
        (
            with(&|p| p.modules[1].path = "a.js".into()),
            "`a.js` is there twice",
        ),
        (
            with(&|p| p.modules[1].path = String::new()),
            "1 to 1024 bytes",
        ),
        (
            with(&|p| p.modules[1].source = Arc::from(huge.as_str())),
            "module `b.js` has",
        ),
        (with(&|p| p.message = Some("x".repeat(1_025))), "message"),
        (
            with(&|p| p.analysis = Arc::from("x".repeat(13 << 20))),
            "analysis and schema",
        ),
        (
            with(&|p| p.schema = Some(Arc::from("{}"))),
            "the schema is not valid",
        ),
        (plan(&many), "4097 modules"),
        (
            with(&|p| {
                p.modules[0].source = Arc::from("ab");
                p.modules[0].source_map = None;
                p.modules[1].source = Arc::from("a");
                p.modules[1].source_map = Some(Arc::from("b"));
            }),
            "divided differently",
        ),
    ];
    for (plan, says) in cases {
        let text = refused(tenant.deploy(plan).await);
        assert!(text.contains(says), "{says}: {text}");
    }
    assert_eq!(tenant.metrics().mutation_journal.applied_head, 0);
}

#[tokio::test]
async fn large_bundles_are_stored_backed_up_and_restored() {
    let (world, tenant) = world().await;
    let big = |n: usize| format!("// {n}\n{}", "é\n\"x\"".repeat(1_200_000));
    let sources: Vec<String> = (0..4).map(big).collect();
    let small: Vec<String> = (0..300).map(|n| format!("export const x = {n};")).collect();
    let paths: Vec<String> = (0..304).map(|n| format!("m{n}.js")).collect();
    let all = paths.iter().zip(sources.iter().chain(&small));
    let modules: Vec<_> = all.map(|(p, s)| (p.as_str(), s.as_str())).collect();
    let mut made = plan(&modules);
    made.schema = Some(exported(vec![users()]));
    deploy(&tenant, made.clone()).await;
    insert(&tenant, "users", user("x")).await;
    assert_consistent(&tenant).await;

    let begun = Backup::begin(world.engine(), &[name("t")], None).await;
    let mut backup = begun.unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = backup.next().await.unwrap() {
        bytes.extend_from_slice(&piece);
    }
    let copy = World::new().await;
    let source = Source::open(std::io::Cursor::new(bytes), None).unwrap();
    restore(copy.engine(), source, &[]).await.unwrap();
    let restored = copy.tenant("t").await;
    let deployment = restored.deployment().await.unwrap().unwrap();
    assert_eq!(
        Some(&deployment),
        tenant.deployment().await.unwrap().as_ref()
    );
    for (path, source) in modules.iter().take(6) {
        let module = restored
            .module(&deployment.modules[*path].hash)
            .await
            .unwrap();
        assert_eq!(&*module.source, *source);
    }
    unfit(restored.insert(&name("users"), object([])).await);
    // What is stored already is not written again, and the schema of the copy is in force.
    let again = deploy(&restored, made).await;
    assert!(!again.schema_changed);
    assert_consistent(&restored).await;
}

#[tokio::test]
async fn damaged_code_is_refused_and_a_deploy_mends_it() {
    let (mut world, tenant) = world().await;
    let plan = plan(&[("a.js", "export const a = 1;")]);
    deploy(&tenant, plan.clone()).await;
    drop(tenant);
    let before = rows(&mut world, "t").await;
    let code: HashSet<_> = before
        .keys()
        .filter(|(s, _)| *s == Keyspace::Code)
        .collect();
    assert_eq!(code.len(), 2);
    for (space, key) in code {
        let mut value = before[&(*space, key.clone())].clone();
        *value.last_mut().unwrap() ^= 1;
        overwrite(&mut world, "t", Keyspace::Code, &[(key.clone(), value)]).await;
    }
    let tenant = world.tenant("t").await;
    let report = tenant.consistency().await.unwrap();
    assert!(!report.ok);
    let broken = tenant.deployment().await;
    assert!(
        matches!(broken, Err(StoreError::Corrupt { .. })),
        "{broken:?}"
    );
    let mut tx = tenant.begin().await.unwrap();
    assert!(matches!(
        tx.deployment().await,
        Err(StoreError::Corrupt { .. })
    ));
    let module = sha256("export const a = 1;{}");
    let broken = tenant.module(&module).await;
    assert!(
        matches!(broken, Err(StoreError::Corrupt { .. })),
        "{broken:?}"
    );
    assert!(matches!(
        tenant.module("x").await,
        Err(StoreError::InvalidInput { .. })
    ));
    deploy(&tenant, plan).await;
    tenant.module(&module).await.unwrap();
    assert_eq!(tenant.deployments(9).await.unwrap().len(), 2);
    assert_consistent(&tenant).await;
}

#[tokio::test]
async fn the_deployment_is_one_key_of_a_read_set() {
    let (_world, tenant) = world().await;
    deploy(&tenant, plan(&[("a.js", "one")])).await;
    insert(&tenant, "d", object([])).await;
    for (read, conflicts) in [(true, true), (false, false)] {
        let mut tx = tenant.begin().await.unwrap();
        if read {
            let seen = tx.deployment().await.unwrap().unwrap();
            assert_eq!(Some(seen), tenant.deployment().await.unwrap());
        }
        tx.insert(&name("d"), object([])).await.unwrap();
        deploy(
            &tenant,
            plan(&[("a.js", if read { "two" } else { "three" })]),
        )
        .await;
        let committed = tenant.commit(tx).await;
        let found = matches!(committed, Err(StoreError::Conflict { .. }));
        assert_eq!(found, conflicts, "{committed:?}");
    }
}

#[tokio::test]
async fn staged_indexes_are_known_and_not_served() {
    let (_world, tenant) = world().await;
    let mut notes = declared("notes", &[("a", of("any"), true)], &[("by_a", &["a"])]);
    notes["stagedDbIndexes"] = json!([{"indexDescriptor": "later", "fields": ["a"]}]);
    let enabled = declared(
        "notes",
        &[("a", of("any"), true)],
        &[("by_a", &["a"]), ("later", &["a"])],
    );
    let ask = async |index: &str| {
        let source = json!({"type": "IndexRange", "indexName": format!("notes.{index}"), "range": [], "order": null});
        let asked = FunctionQuery::parse(&json!({"source": source, "operators": []})).unwrap();
        let mut tx = tenant.begin_read(None).await.unwrap();
        tx.open_query(&asked).map(|_| ()).map_err(|e| e.to_string())
    };
    deploy(&tenant, with_schema(vec![notes])).await;
    assert_eq!(ask("by_a").await, Ok(()));
    let staged = ask("later").await.unwrap_err();
    assert!(staged.contains("notes.later is staged"), "{staged}");
    let missing = ask("none").await.unwrap_err();
    assert_eq!(missing, "Index notes.none not found.");
    deploy(&tenant, with_schema(vec![enabled])).await;
    assert_eq!(ask("later").await, Ok(()));
}

/// Modules are stored in the order of their hashes, and a large one fills a commit.
#[tokio::test]
async fn a_large_module_behind_small_ones_is_stored() {
    let (_world, tenant) = world().await;
    let large = "x".repeat(MAX_MODULE_BYTES - 2);
    let bound = sha256(&format!("{large}{{}}"));
    let padding = "y".repeat(1_900_000);
    let small = (0..1_000)
        .map(|n| format!("{n}{padding}"))
        .find(|text| sha256(&format!("{text}{{}}")) < bound)
        .unwrap();
    let report = deploy(&tenant, plan(&[("large.js", &large), ("small.js", &small)])).await;
    for (path, source) in [("large.js", &large), ("small.js", &small)] {
        let hash = &report.deployment.modules[path].hash;
        let stored = tenant.module(hash).await.unwrap();
        assert!(*stored.source == **source, "{path}");
    }
}

/// What is not there cannot be made current.
#[tokio::test]
async fn there_is_no_way_back_to_code_that_is_gone() {
    let (mut world, tenant) = world().await;
    let one = deploy(&tenant, plan(&[("a.js", "a1")])).await.deployment;
    let two = deploy(&tenant, plan(&[("a.js", "a2")])).await.deployment;
    drop(tenant);
    world.engine().close().await.unwrap();
    let store = world.engine().provider().open(&name("t")).await.unwrap();
    let head = store.snapshot().await.unwrap().head().await.unwrap();
    let hash = data_encoding::HEXLOWER.decode(one.modules["a.js"].hash.as_bytes());
    let key = [&b"m"[..], &hash.unwrap()].concat();
    let writes = [((Keyspace::Code, key), None)].into_iter().collect();
    store
        .commit(head, nimbus_storage::provider::Batch { head, writes })
        .await
        .unwrap();
    store.close().await.unwrap();
    drop(store);
    world.reopen().await;
    let tenant = world.tenant("t").await;
    let back = tenant.roll_back(&one.id).await;
    assert!(
        matches!(back, Err(DeployError::Store(StoreError::Corrupt { .. }))),
        "{back:?}"
    );
    assert_eq!(tenant.deployment().await.unwrap().unwrap(), two);
}
