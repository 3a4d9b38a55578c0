//! Who may deploy, and what is refused before anything is sent.
//!
//! It must not know what functions do.

use nimbus_e2e::{App, Finished};
use serde_json::json;

use super::World;

/// A key of the tenant, made by the command line.
fn key(world: &World, scope: &str) -> String {
    let made = world
        .nimbus(&["keys", "create", "--scope", scope, "--name", scope])
        .expect(0);
    assert_eq!(made.stderr, "");
    made.stdout.trim_end().to_owned()
}

/// `nimbus deploy` by a user without a token file, with a key in the environment.
fn deploy_with(world: &World, key: &str, tenant: &str) -> Finished {
    let stranger = nimbus_e2e::Home::new();
    let (dir, base) = (world.app.path().to_str().unwrap(), world.server.base());
    let args = [
        "deploy",
        "--app-dir",
        dir,
        "--tenant",
        tenant,
        "--url",
        &base,
    ];
    Finished::of(stranger.command(args).env("NIMBUS_DEPLOY_TOKEN", key))
}

#[test]
fn a_key_deploys_to_its_own_tenant_if_its_scope_allows_it() {
    let world = World::with(App::of(&[
        ("package.json", "{}"),
        (
            "convex/main.js",
            "import { queryGeneric } from \"convex/server\"; export const one = queryGeneric(() => 1);",
        ),
    ]));
    world.client().create_tenant("other");
    for scope in ["read", "write"] {
        deploy_with(&world, &key(&world, scope), "demo")
            .expect(1)
            .says(&["does not allow"]);
    }
    assert!(world.deployments().is_empty());
    let deployer = key(&world, "deploy");
    deploy_with(&world, &deployer, "demo").expect(0);
    assert_eq!(world.value("query", "main:one", &json!({})), json!(1.0));
    // The command line sees that it cannot fit; and the server answers as if there were no such tenant.
    deploy_with(&world, &deployer, "other")
        .expect(2)
        .says(&["not one of the tenant other"]);
    let secret = deployer.split_once('|').unwrap().1;
    let forged = format!("other|{secret}");
    deploy_with(&world, &forged, "other").expect(1);
    let mut listed = world
        .nimbus(&["keys", "list", "-f", "json"])
        .expect(0)
        .json();
    assert!(!listed.to_string().contains(secret));
    let keys = listed["keys"].as_array_mut().unwrap();
    let found = keys.iter().find(|one| one["scope"] == "deploy").unwrap();
    world
        .nimbus(&["keys", "revoke", found["id"].as_str().unwrap()])
        .expect(0);
    deploy_with(&world, &deployer, "demo")
        .expect(1)
        .says(&["refuses the credential that was given"]);
}

#[test]
fn what_is_missing_is_named() {
    let world = World::with(App::of(&[
        ("package.json", "{}"),
        ("convex/a-b.ts", "export const x = 1;"),
    ]));
    world
        .app
        .deploy(&world.server, "demo", &[])
        .expect(1)
        .says(&["convex/a-b.ts cannot be deployed"]);
    world.app.remove("convex/a-b.ts");
    world
        .app
        .write("convex/a.ts", "\"use node\";\nexport const x = 1;");
    world
        .app
        .deploy(&world.server, "demo", &[])
        .expect(1)
        .says(&["convex/a.ts begins with \"use node\""]);
    world.app.write("convex/a.ts", "export const x = 1;");
    world
        .app
        .deploy(&world.server, "nobody", &[])
        .expect(1)
        .says(&["nothing was deployed to nobody"]);

    // Where no packages are installed.
    let home = world.server.home();
    let (bare, base) = (home.path().join("bare"), world.server.base());
    std::fs::create_dir_all(bare.join("convex")).unwrap();
    std::fs::write(bare.join("convex/a.ts"), "export const x = 1;").unwrap();
    let run = || {
        home.run([
            "deploy",
            "--app-dir",
            bare.to_str().unwrap(),
            "--tenant",
            "demo",
            "--url",
            &base,
        ])
    };
    run().expect(1).says(&[
        "the package `esbuild` is not installed in",
        "there is no package.json",
    ]);
    std::fs::write(bare.join("package.json"), "{}").unwrap();
    run().expect(1).says(&[
        "the package `esbuild` is not installed in",
        "run `npm install` there",
    ]);
    // And where there is no Node.js.
    let mut command = home.command([
        "deploy",
        "--app-dir",
        bare.to_str().unwrap(),
        "--tenant",
        "demo",
        "--url",
        &base,
    ]);
    Finished::of(command.env("PATH", "/nowhere"))
        .expect(1)
        .says(&["starting `node`", "has to be on the PATH"]);

    // And no server.
    let unheld = home.path().join("unheld");
    std::fs::create_dir(&unheld).unwrap();
    let args = [
        "deploy",
        "--app-dir",
        bare.to_str().unwrap(),
        "--tenant",
        "demo",
        "--data-dir",
        unheld.to_str().unwrap(),
    ];
    home.run(args).expect(1).says(&["no server holds"]);
    home.run([
        "env",
        "list",
        "--tenant",
        "demo",
        "--url",
        "http://10.255.255.1",
    ])
    .expect(1)
    .says(&["is not sent there"]);
    let port = world.server.base().rsplit_once(':').unwrap().1.to_owned();
    for command in [
        &["env", "list", "--tenant", "demo"][..],
        &["tenants", "list"],
    ] {
        let url = format!("http://localhost:80@127.0.0.1:{port}");
        home.run([command, &["--url", &url]].concat()).expect(1);
    }
    assert!(world.deployments().is_empty());
}

#[test]
fn what_would_silently_do_nothing_is_not_bundled() {
    let world = World::with(App::of(&[("package.json", "{}")]));
    for name in ["async_hooks", "node:async_hooks"] {
        let source = format!(
            "import {{ AsyncLocalStorage }} from \"{name}\"; export const store = new AsyncLocalStorage();"
        );
        world.app.write("convex/a.ts", &source);
        world
            .app
            .deploy(&world.server, "demo", &[])
            .expect(1)
            .says(&[
                "convex/a.ts",
                "AsyncLocalStorage, AsyncResource) is not there",
            ]);
    }
    assert!(world.deployments().is_empty());
}

#[test]
fn the_credential_is_not_handed_to_the_bundler() {
    let world = World::with(App::of(&[
        ("package.json", "{}"),
        ("convex/a.ts", "export const x = 1;"),
    ]));
    // Another esbuild: it writes down what it was given.
    world.app.write(
        "node_modules/esbuild/index.js",
        "const fs = require('fs'); fs.writeFileSync('seen', JSON.stringify([process.env, process.argv, process.execArgv])); \
         exports.build = async () => ({ outputFiles: [], warnings: [] }); exports.formatMessages = async () => []; exports.version = '0';",
    );
    world.app.write(
        "node_modules/esbuild/package.json",
        r#"{"name": "esbuild", "main": "index.js"}"#,
    );
    let token = world.server.home().token();
    let (dir, base) = (world.app.path().to_str().unwrap(), world.server.base());
    let mut command = world.server.home().command([
        "deploy",
        "--app-dir",
        dir,
        "--tenant",
        "demo",
        "--url",
        &base,
    ]);
    Finished::of(
        command
            .env("NIMBUS_ADMIN_TOKEN", &token)
            .env("AWS_SECRET_ACCESS_KEY", "canary"),
    )
    .expect(0);
    let seen = std::fs::read_to_string(world.app.path().join("seen")).unwrap();
    for secret in [token.as_str(), "canary", "NIMBUS_ADMIN_TOKEN"] {
        assert!(!seen.contains(secret), "{secret} in {seen}");
    }
    assert!(seen.contains("PATH"), "{seen}");
}
