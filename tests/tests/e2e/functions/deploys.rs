//! Deployments: what they change, what they keep, and going back.
//!
//! It must not know how code is stored.

use nimbus_e2e::App;
use serde_json::{Value as Json, json};

use super::World;

/// A package.json, and functions below `convex/` that need no generated code.
fn made(files: &[(&str, &str)]) -> App {
    let app = App::of(&[("package.json", "{}")]);
    for (path, text) in files {
        app.write(&format!("convex/{path}"), text);
    }
    app
}

const VERSION_1: &str = r#"
import { queryGeneric as query, mutationGeneric as mutation, actionGeneric as action } from "convex/server";
import { v } from "convex/values";
export const version = query({ args: {}, handler: async () => 1 });
export const old = query({ args: {}, handler: async () => "old" });
export const open = mutation({ args: {}, handler: async (ctx) => await ctx.db.insert("gates", {}) });
export const isOpen = query({ args: {}, handler: async (ctx) => (await ctx.db.query("gates").first()) !== null });
export const begin = mutation({ args: {}, handler: async (ctx) => await ctx.db.insert("begun", {}) });
export const begun = query({ args: {}, handler: async (ctx) => (await ctx.db.query("begun").first()) !== null });
export const wait = action({
  args: { max: v.number() },
  handler: async (ctx, { max }) => {
    await ctx.runMutation("main:begin");
    for (let i = 0; i < max; i++) {
      if (await ctx.runQuery("main:isOpen", {})) return [1, i > 0];
    }
    throw new Error("the gate stayed closed");
  },
});
"#;

#[test]
fn the_difference_to_the_deployment_before_is_told() {
    let world = World::with(App::named("chat"));
    world.set("CHAT_ISSUER", "https://id.example");
    // A dry run tells, and changes nothing.
    let dry = world
        .app
        .deploy(&world.server, "demo", &["--dry-run", "-f", "json"])
        .expect(0)
        .json();
    assert_eq!(dry["dryRun"], true);
    assert_eq!(dry["deployment"], Json::Null);
    assert_eq!(world.deployments(), Vec::<Json>::new());
    assert!(
        world
            .failure("query", "counters:get", &json!({"name": "x"}))
            .contains("Could not find public function")
    );

    let first = world
        .app
        .deploy(
            &world.server,
            "demo",
            &["--message", "the first one", "-f", "json"],
        )
        .expect(0)
        .json();
    assert_eq!(first["deployment"]["generation"], 1);
    assert_eq!(first["previousGeneration"], Json::Null);
    assert_eq!(first["diff"], dry["diff"]);
    let added = first["diff"]["functions"]["added"].as_array().unwrap();
    for name in ["messages:send", "lib/rooms:create", "admin:secret"] {
        assert!(added.contains(&json!(name)), "{name} is not in {added:?}");
    }
    assert_eq!(
        first["diff"]["httpRoutes"]["added"],
        json!(["GET /counters", "POST /hooks/*"])
    );
    assert_eq!(
        first["diff"]["crons"]["added"],
        json!(["double", "every Monday", "forget test counters"])
    );
    assert!(
        first["diff"]["indexes"]["added"]
            .as_array()
            .unwrap()
            .contains(&json!("messages.by_room"))
    );
    assert_eq!(
        (
            &first["diff"]["schemaChanged"],
            &first["diff"]["authChanged"]
        ),
        (&json!(true), &json!(true))
    );

    // Deployed again, nothing differs, whichever directory it is deployed from.
    let again = App::named("chat").deployed(&world.server, "demo");
    assert_eq!(again["deployment"]["generation"], 2);
    let nothing = json!({"added": [], "changed": [], "removed": []});
    for member in ["functions", "httpRoutes", "crons", "modules", "indexes"] {
        assert_eq!(again["diff"][member], nothing, "{member}");
    }
    assert_eq!(
        (
            &again["diff"]["schemaChanged"],
            &again["diff"]["authChanged"]
        ),
        (&json!(false), &json!(false))
    );

    // What is taken away is gone, and an index with it.
    world.app.remove("convex/nested.ts");
    world
        .app
        .edit("convex/schema.ts", ".index(\"by_title\", [\"title\"])", "");
    world.app.edit(
        "convex/lib/rooms.ts",
        ".withIndex(\"by_title\", (q) => q.eq(\"title\", title))",
        ".filter((q) => q.eq(q.field(\"title\"), title))",
    );
    world.app.edit("convex/counters.ts", "args: { name: v.string() },\n  returns: v.number(),\n  handler: async (ctx, { name }) => (await", "args: { name: v.optional(v.string()) },\n  returns: v.number(),\n  handler: async (ctx, { name = \"\" }) => (await");
    let text = world.app.deploy(&world.server, "demo", &[]).expect(0);
    for line in [
        "- function nested:names\n",
        "~ function counters:get\n",
        "- index rooms.by_title\n",
        "~ the schema\n",
        "as generation 3\n",
    ] {
        assert!(
            text.stdout.contains(line),
            "{line:?} is not in {}",
            text.stdout
        );
    }
    assert!(
        world
            .failure("query", "nested:names", &json!({"tag": "x"}))
            .contains("Could not find public function")
    );

    let listed = world.deployments();
    assert_eq!(
        listed
            .iter()
            .map(|one| one["generation"].as_u64().unwrap())
            .collect::<Vec<_>>(),
        [3, 2, 1]
    );
    assert_eq!(listed[2]["message"], "the first one");
    let shown = world.nimbus(&["deployments", "list"]).expect(0).stdout;
    assert!(
        shown.starts_with("* ") && shown.contains("the first one"),
        "{shown}"
    );
    assert_eq!(
        world
            .nimbus(&["deployments", "list", "-f", "json"])
            .expect(0)
            .json()["deployments"],
        json!(listed)
    );
}

#[test]
fn a_deployment_that_fails_leaves_the_one_before() {
    let world = World::with(made(&[("main.ts", VERSION_1)]));
    world.app.deployed(&world.server, "demo");
    let name = world.value("mutation", "main:open", &json!({}));
    let before = world.deployments();
    let refused = |edit: &dyn Fn(&App), says: &[&str]| {
        let app = made(&[("main.ts", VERSION_1)]);
        edit(&app);
        app.deploy(&world.server, "demo", &[]).expect(1).says(says);
        assert_eq!(world.deployments(), before);
        assert_eq!(world.value("query", "main:version", &json!({})), json!(1.0));
    };
    refused(
        &|app| app.edit("convex/main.ts", "async () => 1", "async () => }"),
        &["esbuild could not bundle", "convex/main.ts"],
    );
    refused(
        &|app| app.edit("convex/main.ts", "async () => 1", "missing()"),
        &["main.js", "missing is not defined"],
    );
    refused(
        &|app| app.write("convex/loop.ts", "export const x = 1;\nfor (;;);"),
        &["could not be imported", "timed out"],
    );
    refused(
        &|app| {
            app.write(
                "convex/fs.ts",
                "import fs from \"node:fs\"; export const x = fs;",
            )
        },
        &["node:fs", "Node.js"],
    );
    let crons = "import { cronJobs } from \"convex/server\"; const crons = cronJobs(); crons.interval(\"tick\", { hours: 1 }, \"main:none\"); export default crons;";
    refused(
        &|app| app.write("convex/crons.ts", crons),
        &["the cron `tick` calls main:none, which does not exist"],
    );
    refused(
        &|app| app.write("convex/http.ts", "export const x = 1;"),
        &["http.js", "default export"],
    );
    refused(
        &|app| {
            app.write("convex/auth.config.ts", "export default { providers: [{ domain: process.env.NOT_SET, applicationID: \"x\" }] };")
        },
        &["Environment variable NOT_SET is used in auth config file but its value was not set"],
    );
    refused(
        &|app| {
            app.write(
                "convex/auth.config.ts",
                "export default { providers: [{ domain: \"https://x.example\" }] };",
            )
        },
        &["providers[0] of auth.config"],
    );
    let schema = "import { defineSchema, defineTable } from \"convex/server\"; import { v } from \"convex/values\"; export default defineSchema({ gates: defineTable({ width: v.number() }) });";
    let id = name.as_str().unwrap().to_owned();
    refused(
        &|app| app.write("convex/schema.ts", schema),
        &[
            "Schema validation failed. Document with ID",
            &id,
            "gates",
            "`width`",
        ],
    );
    refused(
        &|app| app.write("convex/schema.ts", "export default 7;"),
        &["schema.js"],
    );
    refused(
        &|app| {
            app.write("convex/convex.config.ts", "import { defineApp } from \"convex/server\"; import c from \"./part/convex.config\"; const app = defineApp(); app.use(c); export default app;")
        },
        &["components cannot be deployed"],
    );
    // Not even a dry run lets it pass.
    let app = made(&[("main.ts", VERSION_1), ("schema.ts", schema)]);
    app.deploy(&world.server, "demo", &["--dry-run"])
        .expect(1)
        .says(&["Schema validation failed"]);
}

#[test]
fn a_rollback_brings_back_what_ran() {
    let world = World::with(made(&[("main.ts", VERSION_1)]));
    let first = world.app.deployed(&world.server, "demo");
    world
        .app
        .edit("convex/main.ts", "async () => 1", "async () => 2");
    world
        .app
        .edit("convex/main.ts", "export const old", "export const young");
    world.app.deployed(&world.server, "demo");
    assert_eq!(world.value("query", "main:version", &json!({})), json!(2.0));
    assert!(
        world
            .failure("query", "main:old", &json!({}))
            .contains("Could not find public function")
    );

    let id = first["deployment"]["id"].as_str().unwrap();
    let back = world
        .nimbus(&["deployments", "rollback", id, "-f", "json"])
        .expect(0)
        .json();
    assert_eq!(back["deployment"]["generation"], 3);
    assert_eq!(
        back["diff"]["functions"],
        json!({"added": ["main:old"], "changed": [], "removed": ["main:young"]})
    );
    assert_eq!(world.value("query", "main:version", &json!({})), json!(1.0));
    assert_eq!(world.value("query", "main:old", &json!({})), json!("old"));

    let unknown = "0".repeat(32);
    world
        .nimbus(&["deployments", "rollback", &unknown])
        .expect(1)
        .says(&["no deployment", "op.not_found"]);
    world
        .nimbus(&["deployments", "rollback", "../../keys"])
        .expect(1)
        .says(&["is not an id"]);
    assert_eq!(world.deployments().len(), 3);
}

#[test]
fn a_call_in_progress_ends_on_the_code_that_it_began_with() {
    let world = World::with(made(&[("main.ts", VERSION_1)]));
    world.app.deployed(&world.server, "demo");
    let anybody = world.server.anonymous();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(move || {
            let args = json!({"max": 1_000_000});
            let body = json!({"path": "main:wait", "args": args, "format": "convex_encoded_json"});
            anybody
                .post("/convex/demo/api/action", &body)
                .expect(200)
                .json()
        });
        // Each look is a call, so this waits for the action and not for time.
        while world.value("query", "main:begun", &json!({})) != json!(true) {
            assert!(
                !waiting.is_finished(),
                "the action ended before the gate was opened"
            );
        }
        world
            .app
            .edit("convex/main.ts", "async () => 1", "async () => 2");
        world.app.edit("convex/main.ts", "return [1,", "return [2,");
        world.app.deployed(&world.server, "demo");
        assert_eq!(world.value("query", "main:version", &json!({})), json!(2.0));
        world.value("mutation", "main:open", &json!({}));
        let outcome = waiting.join().unwrap();
        assert_eq!(outcome["status"], "success", "{outcome}");
        assert_eq!(outcome["value"][0], json!(1.0));
    });
    assert_eq!(
        world.value("action", "main:wait", &json!({"max": 1})),
        json!([2.0, false])
    );
}

#[test]
fn a_deployment_outlives_the_server() {
    let mut world = World::chat();
    world.value("mutation", "counters:increment", &json!({"name": "n"}));
    assert!(world.server.terminate().success());
    world.server.restart();
    assert_eq!(
        world.value("mutation", "counters:increment", &json!({"name": "n"})),
        json!(2.0)
    );
    assert_eq!(
        world.value("query", "settings:get", &json!({"name": "CHAT_ISSUER"})),
        json!("https://id.example")
    );
    world.client().check_consistency("demo");
}

#[test]
fn variables_are_seen_by_the_next_call_and_acts_are_on_record() {
    let world = World::chat();
    let seen = || world.value("query", "settings:get", &json!({"name": "COLOUR"}));
    assert_eq!(seen(), Json::Null);
    world.set("COLOUR", "canary-yellow");
    assert_eq!(seen(), json!("canary-yellow"));
    world
        .nimbus(&["env", "set", "CONVEX_CLOUD_URL", "x"])
        .expect(1)
        .says(&["reserved"]);
    world
        .nimbus(&["env", "set", "a-b", "x"])
        .expect(1)
        .says(&["a-b"]);
    let listed = world.nimbus(&["env", "list"]).expect(0).stdout;
    assert_eq!(
        listed,
        "CHAT_ISSUER=https://id.example\nCOLOUR=canary-yellow\n"
    );
    world.nimbus(&["env", "remove", "COLOUR"]).expect(0);
    assert_eq!(seen(), Json::Null);

    let log = std::fs::read_to_string(world.server.home().audit_log()).unwrap();
    let reasons: Vec<String> = log
        .lines()
        .map(|line| {
            serde_json::from_str::<Json>(line).unwrap()["reason"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    let id = world.deployments()[0]["id"].as_str().unwrap().to_owned();
    for reason in [
        format!("deployment.created {id}"),
        "environment.changed COLOUR".into(),
        "environment.changed CHAT_ISSUER".into(),
    ] {
        assert!(reasons.contains(&reason), "{reason} is not in {reasons:?}");
    }
    assert!(
        !log.contains("canary-yellow"),
        "a value is in the audit log"
    );
}
