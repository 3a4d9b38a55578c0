//! What a bundle declares, and what is wrong with it.

use nimbus_runtime::{AnalyzeError, UdfKind, Visibility};

use crate::support::{bundle, per_engine, runtime, tenant};

async fn wrong(path: &str, source: &str) -> (String, Option<String>, String) {
    let code = bundle(&[(path, source)]);
    match runtime().analyze(&tenant(), &code, Vec::new()).await {
        Err(AnalyzeError::Module {
            path,
            code,
            message,
        }) => (path, code, message),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn functions_routes_crons_schema_and_logins_are_found() {
    let code = bundle(&[
        ("dir/a.js", "export const one = query(() => 1); export const two = mutation(() => 2); two.isPublic = false; two.isInternal = true;
export default action(() => 3); export const other = { isHttp: true }; export const plain = 5; one.exportReturns = () => '{\"type\":\"any\"}';"),
        ("http.js", "export default { isRouter: true, getRoutes: () => [['/x*', 'GET', { isHttp: true }]] };"),
        ("crons.js", "export default { isCrons: true, export: () => '{}' };"),
        ("schema.js", "export default { export: () => JSON.stringify({ tables: [], random: Math.random() < 2 }) };"),
        ("auth.config.js", "export default { providers: [{ domain: process.env.DOMAIN }] };"),
    ]);
    let environment = vec![("DOMAIN".to_owned(), "https://x".to_owned())];
    let found = runtime()
        .analyze(&tenant(), &code, environment)
        .await
        .unwrap();
    let functions = &found.modules["dir/a.js"].functions;
    let shown: Vec<_> = functions
        .iter()
        .map(|f| (f.name.as_str(), f.kind, f.visibility))
        .collect();
    assert_eq!(
        shown,
        [
            ("default", UdfKind::Action, Some(Visibility::Public)),
            ("one", UdfKind::Query, Some(Visibility::Public)),
            ("two", UdfKind::Mutation, Some(Visibility::Internal)),
        ]
    );
    assert_eq!(functions[0].args.as_deref(), Some(r#"{"type":"any"}"#));
    assert_eq!(functions[0].returns, None);
    assert_eq!(functions[1].returns.as_deref(), Some(r#"{"type":"any"}"#));
    let routes = found.modules["http.js"].http_routes.as_ref().unwrap();
    assert_eq!(
        (routes[0].path.as_str(), routes[0].method.as_str()),
        ("/x*", "GET")
    );
    assert_eq!(found.modules["crons.js"].crons.as_deref(), Some("{}"));
    assert_eq!(
        found.schema.as_deref(),
        Some(r#"{"tables":[],"random":true}"#)
    );
    assert_eq!(
        found.auth.as_deref(),
        Some(r#"{"providers":[{"domain":"https://x"}]}"#)
    );
    assert!(!found.modules.contains_key("_deps/lib.js"));
}

#[tokio::test]
async fn what_is_wrong_is_said_with_its_place() {
    for (path, source, code, part) in [
        ("a.js", "export const f = ;", None, "SyntaxError"),
        (
            "a.js",
            "throw new Error('no');",
            None,
            per_engine(
                "Uncaught Error: no\n    at <anonymous> (../convex/a.js:2:7)",
                "Uncaught Error: no\n    at <anonymous> (../convex/a.js:2:11)",
            ),
        ),
        ("a.js", "await 1;", None, "top-level await"),
        (
            "a.js",
            "const f = query(() => 1); export { f as 'odd name' };",
            Some("InvalidFunctionName"),
            "`odd name`",
        ),
        (
            "a.js",
            "export const f = query(() => 1); f.isMutation = true;",
            Some("InvalidFunction"),
            "query and mutation",
        ),
        (
            "a.js",
            "export const f = query(() => 1); f.isInternal = true;",
            Some("InvalidFunction"),
            "public and internal",
        ),
        ("a.js", "Promise.reject(new Error('left'));", None, "left"),
        (
            "a.js",
            "Convex.syscall('1.0/queryStream', '{}');",
            None,
            "at import time",
        ),
        (
            "a.js",
            "crypto.randomUUID();",
            None,
            "Can't use crypto.randomUUID()",
        ),
        (
            "http.js",
            "export const x = 1;",
            Some("InvalidHttpModule"),
            "default export",
        ),
        (
            "http.js",
            "export default {};",
            Some("InvalidHttpModule"),
            "no router",
        ),
        (
            "crons.js",
            "export default {};",
            Some("InvalidCronModule"),
            "no cron list",
        ),
        (
            "schema.js",
            "export const x = 1;",
            Some("InvalidSchema"),
            "defineSchema",
        ),
        (
            "schema.js",
            "throw new Error('broken schema');",
            Some("InvalidSchema"),
            "broken schema",
        ),
        (
            "auth.config.js",
            "export const x = 1;",
            Some("AuthConfigMissingExportError"),
            "default export",
        ),
        (
            "auth.config.js",
            "export default {};",
            Some("AuthConfigNotMatchingSchemaError"),
            "providers",
        ),
        (
            "auth.config.js",
            "export default { providers: [process.env.CLIENT_ID] };",
            Some("AuthConfigMissingEnvironmentVariable"),
            "Environment variable CLIENT_ID is used",
        ),
    ] {
        let (at, said, message) = wrong(path, source).await;
        assert_eq!(at, path);
        assert_eq!(said.as_deref(), code, "{source}: {message}");
        assert!(message.contains(part), "{source}: {message}");
    }
}

#[tokio::test]
async fn a_module_that_never_ends_is_stopped() {
    let code = bundle(&[("a.js", "for (;;);")]);
    let error = runtime()
        .analyze(&tenant(), &code, Vec::new())
        .await
        .unwrap_err();
    assert!(error.to_string().contains("timed out"), "{error}");
}
