//! Policies that a server enforces on functions: where `fetch` goes, which variables are seen, who gets in, and how policies
//! are changed while they are used.
//!
//! It must not know how a decision is made.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use nimbus_e2e::{App, Home, Options, wait};
use serde_json::{Value as Json, json};

use super::{World, call};

/// Functions that reach for whatever they are told to.
const MAIN: &str = r#"
import { actionGeneric, mutationGeneric, queryGeneric } from "convex/server";

const fetching = async (_ctx, { url, method }) => {
  try {
    const answer = await fetch(url, { method: method ?? "GET" });
    return { status: answer.status, text: await answer.text() };
  } catch (error) {
    return { refused: `${error.message} ${error.cause ?? ""}` };
  }
};
export const reach = actionGeneric(fetching);
export const other = actionGeneric(fetching);
export const variable = queryGeneric((_ctx, { name }) => process.env[name] ?? "unset");
export const again = queryGeneric((_ctx, { name }) => process.env[name] ?? "unset");
export const inAction = actionGeneric((_ctx, { name }) => process.env[name] ?? "unset");
export const outer = queryGeneric((ctx, args) => ctx.runQuery("main:variable", args));
export const add = mutationGeneric((ctx, { text }) => ctx.db.insert("notes", { text }));
export const remove = mutationGeneric(async (ctx, { id }) => { await ctx.db.delete(id); });
export const cut = mutationGeneric(async (ctx, { id }) => { await ctx.db.patch(id, { text: "" }); });
export const count = queryGeneric(async (ctx) => (await ctx.db.query("notes").collect()).length);
export const wait = actionGeneric(async (_ctx, { ms }) => { await new Promise((done) => setTimeout(done, ms)); return "waited"; });
export const spin = queryGeneric(() => { for (;;); });
export const talk = queryGeneric(() => { for (let n = 0; n < 20; n++) console.log("x".repeat(100)); return "said"; });
"#;

pub(super) fn app() -> App {
    App::of(&[("package.json", "{}"), ("convex/main.js", MAIN)])
}

/// A policy of the tenant `demo` that lets everyone call its functions; `more` are further workloads.
pub(super) fn policy(more: &str) -> String {
    let surface = "- {kind: http_request, name: convex_http}";
    format!("schema_version: 1\ntenant: demo\nworkloads:\n{surface}\n{more}\n")
}

/// A server with a directory of policies.
struct Governed {
    world: World,
    dir: PathBuf,
}

impl Governed {
    fn new(policy: &str) -> Governed {
        Governed::with(policy, Options::new())
    }

    fn with(policy: &str, options: Options) -> Governed {
        let home = Arc::new(Home::new());
        let dir = home.path().join("policies");
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("demo.yaml"), policy).unwrap();
        let flag = dir.to_str().unwrap().to_owned();
        let options = options.home(&home).args(&["--policy-dir", &flag]);
        let world = World::started(app(), options);
        world.app.deployed(&world.server, "demo");
        Governed { world, dir }
    }

    fn change(&self, policy: &str) {
        let fresh = self.dir.join(".demo.yaml.new");
        std::fs::write(&fresh, policy).unwrap();
        std::fs::rename(fresh, self.dir.join("demo.yaml")).unwrap();
    }

    fn status(&self) -> Json {
        let client = self.world.client();
        client.get("/debug/policy/status").expect(200).json()
    }

    /// Status of the answer and what it says, or why there is none.
    fn reach(&self, function: &str, method: &str, url: &str) -> Result<String, String> {
        let args = json!({"url": url, "method": method});
        let value = self.world.value("action", function, &args);
        match value["refused"].as_str() {
            Some(why) => Err(why.to_owned()),
            None => Ok(value["text"].as_str().unwrap().to_owned()),
        }
    }
}

/// A server on loopback that answers by path and remembers what it was asked.
struct Stub {
    port: u16,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Stub {
    fn start() -> Stub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let seen = Arc::clone(&asked);
        std::thread::spawn(move || {
            for socket in listener.incoming() {
                let mut socket = socket.unwrap();
                let mut lines = BufReader::new(socket.try_clone().unwrap()).lines();
                let head: Vec<String> = lines
                    .by_ref()
                    .map_while(Result::ok)
                    .take_while(|line| !line.is_empty())
                    .collect();
                let Some(line) = head.first() else { continue };
                let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
                seen.lock().unwrap().push(path.clone());
                let answer = match path.strip_prefix("/to") {
                    Some(target) => {
                        format!("HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n")
                    }
                    None => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n", path.len()),
                };
                let body = if answer.contains(" 200 ") { &*path } else { "" };
                let _ = write!(socket, "{answer}Connection: close\r\n\r\n{body}");
            }
        });
        Stub { port, asked }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    /// What it was asked since the last time.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

fn reaching(host: &str, port: u16, internal: bool) -> String {
    policy(&format!(
        "- kind: runtime_function\n  name: main:reach\n  runtime: {{tier: in_process_trusted_only}}\n  network:\n    egress:\n      allow:\n      - {{name: stub, protocol: http, host: {host}, port: {port}, methods: [GET], path_prefixes: [/in, /to], allow_internal_ips: {internal}}}"
    ))
}

#[test]
fn fetch_goes_where_the_policy_says_and_what_was_refused_can_be_suggested() {
    let stub = Stub::start();
    let governed = Governed::new(&reaching("127.0.0.1", stub.port, true));
    let reach = |method: &str, path: &str| governed.reach("main:reach", method, &stub.url(path));
    assert_eq!(reach("GET", "/in/x?secret=1").unwrap(), "/in/x?secret=1");
    assert_eq!(reach("GET", "/to/in/y").unwrap(), "/in/y");
    assert_eq!(stub.asked(), ["/in/x?secret=1", "/to/in/y", "/in/y"]);

    let refused = |outcome: Result<String, String>, why: &str| {
        let text = outcome.unwrap_err();
        assert!(
            text.contains(why) && text.contains("policy of the tenant"),
            "{text}"
        );
    };
    refused(reach("POST", "/in/x"), "method_not_allowed");
    refused(reach("GET", "/out"), "path_not_allowed");
    refused(reach("GET", "/in/%2e%2e/out"), "path_not_allowed");
    refused(reach("GET", "/in/%2fx"), "path_ambiguous");
    let fetch = |function, url: &str| governed.reach(function, "GET", url);
    refused(
        fetch("main:reach", "http://127.0.0.1:60999/in"),
        "port_or_protocol_not_allowed",
    );
    refused(
        fetch("main:reach", "https://127.0.0.1/in"),
        "port_or_protocol_not_allowed",
    );
    refused(
        fetch("main:reach", "http://127.0.0.2/in"),
        "host_not_allowed",
    );
    refused(fetch("main:other", &stub.url("/in/x")), "host_not_allowed");
    assert_eq!(stub.asked(), [""; 0], "nothing left the server");
    // A redirect is a request of its own.
    refused(reach("GET", "/to/out"), "path_not_allowed");
    assert_eq!(stub.asked(), ["/to/out"]);

    let client = governed.world.client();
    assert_eq!(client.metric("nimbus_policy_refusals_egress_total"), 9);
    let home = governed.world.server.home();
    let data = governed.world.server.data_dir();
    let exported = home
        .run([
            "audit",
            "export",
            "--denied",
            "--tenant",
            "demo",
            "--data-dir",
            data.to_str().unwrap(),
        ])
        .expect(0)
        .stdout;
    assert!(!exported.contains("secret=1"), "{exported}");
    std::fs::write(home.path().join("denied.jsonl"), &exported).unwrap();
    let file = governed.dir.join("demo.yaml");
    let suggest = [
        "policy",
        "suggest",
        "--file",
        file.to_str().unwrap(),
        "--audit",
        "denied.jsonl",
    ];
    let before = std::fs::read(&file).unwrap();
    let text = home.run(suggest).expect(0).stdout;
    let port = stub.port;
    for part in [
        "# runtime_function/main:other: the policy has no such workload".to_owned(),
        format!("port: {port}\n  methods: [POST]\n  path_prefixes: [\"/in/x\"]\n"),
        "allow_internal_ips: true".to_owned(),
        "1 that no rule should allow".to_owned(),
    ] {
        assert!(text.contains(&part), "{part}\n{text}");
    }
    assert_eq!(std::fs::read(&file).unwrap(), before, "nothing is applied");
    let json = home
        .run([&suggest[..], &["-f", "json"]].concat())
        .expect(0)
        .json();
    assert_eq!(json["status"], "review_required");
}

/// A name server that gives a public address first, and this machine's from then on.
fn rebinding(address: IpAddr) -> Arc<AtomicUsize> {
    let socket = UdpSocket::bind((address, 53)).unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let question = &buffer[12..length];
            let end = question.iter().position(|byte| *byte == 0).unwrap() + 5;
            let of_v4 = question[end - 3] == 1;
            let mut answer = buffer[..2].to_vec();
            answer.extend([0x81, 0x80, 0, 1, 0, u8::from(of_v4), 0, 0, 0, 0]);
            answer.extend(&question[..end]);
            if of_v4 {
                // TEST-NET addresses are not public, so it is one that is, and that nobody here can reach.
                let first = count.fetch_add(1, Ordering::SeqCst) == 0;
                let address = if first {
                    [192, 31, 196, 1]
                } else {
                    [127, 0, 0, 1]
                };
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
                answer.extend(address);
            }
            socket.send_to(&answer, from).unwrap();
        }
    });
    asked
}

#[test]
fn a_name_is_connected_to_where_it_led_when_it_was_checked() {
    if nimbus_e2e::mount::switched_off("names that lead inside") {
        return;
    }
    let stub = Stub::start();
    let name_server: IpAddr = "127.0.53.77".parse().unwrap();
    let asked = rebinding(name_server);
    let port = stub.port;
    let names = |policy: &str| {
        let hosts = "127.0.0.1 localhost inside.example\n10.0.0.7 private.example\n";
        Governed::with(policy, Options::new().names(hosts, name_server))
    };
    let governed = names(&reaching("inside.example", port, false));
    let fetch = |host: &str| {
        let url = format!("http://{host}:{port}/in");
        governed.reach("main:reach", "GET", &url)
    };
    let why = fetch("inside.example").unwrap_err();
    assert!(
        why.contains("leads to an address that is not public"),
        "{why}"
    );
    governed.change(&reaching("inside.example", port, true));
    wait::until("the change is in force", || fetch("inside.example").is_ok());
    governed.change(&reaching("private.example", port, false));
    wait::until("the change is in force", || {
        fetch("private.example")
            .unwrap_err()
            .contains("leads to an address")
    });
    stub.asked();
    // The first answer of the name server is checked and connected to; the second, for the same name, leads inside.
    let limits = "\n  quotas: {function_call: {timeout_ms: 1500}}";
    governed.change(&(reaching("rebound.test", port, false).trim_end().to_owned() + limits));
    wait::until("the change is in force", || {
        governed.status()["lastReload"]["outcome"] == "applied"
            && fetch("private.example")
                .unwrap_err()
                .contains("host_not_allowed")
    });
    let args = json!({"url": format!("http://rebound.test:{port}/in"), "method": "GET"});
    let outcome = governed
        .world
        .call("action", "main:reach", &args)
        .expect(200)
        .json();
    assert!(outcome["value"]["text"].is_null(), "{outcome}");
    assert_eq!(
        asked.load(Ordering::SeqCst),
        1,
        "a name is resolved once for a connection: {outcome}"
    );
    let why = fetch("rebound.test").unwrap_err();
    assert!(
        why.contains("leads to an address that is not public"),
        "{why}"
    );
    assert_eq!(stub.asked(), [""; 0]);
}

#[test]
fn a_function_sees_the_variables_that_it_was_granted() {
    let secrets = |function: &str, name: &str| {
        format!(
            "- {{kind: runtime_function, name: 'main:{function}', secrets: {{handles: [{name}]}}}}\n"
        )
    };
    let governed = Governed::new(&policy(
        &(secrets("variable", "FIRST") + &secrets("inAction", "SECOND")),
    ));
    let world = &governed.world;
    world.set("FIRST", "one");
    world.set("SECOND", "two");
    let seen = |kind, function: &str, name: &str| {
        world.value(kind, &format!("main:{function}"), &json!({"name": name}))
    };
    assert_eq!(seen("query", "variable", "FIRST"), "one");
    assert_eq!(seen("query", "variable", "SECOND"), "unset");
    assert_eq!(seen("query", "again", "FIRST"), "unset");
    assert_eq!(seen("action", "inAction", "SECOND"), "two");
    assert_eq!(seen("action", "inAction", "FIRST"), "unset");
    // Within a transaction as well each function has its own.
    assert_eq!(seen("query", "outer", "FIRST"), "one");
    let url = seen("query", "again", "CONVEX_CLOUD_URL");
    assert!(url.as_str().unwrap().ends_with("/convex/demo"), "{url}");
    let lines = std::fs::read_to_string(world.server.home().audit_log()).unwrap();
    let denied: Vec<&str> = lines
        .lines()
        .filter(|line| line.contains("secret.denied"))
        .collect();
    assert_eq!(denied.len(), 3, "{denied:#?}");
    assert!(!denied.concat().contains("FIRST") && !denied.concat().contains("SECOND"));
    // What was cached under another policy is not shown under this one.
    governed.change(&policy(&secrets("again", "FIRST")));
    wait::until("the change is in force", || {
        seen("query", "variable", "FIRST") == "unset"
    });
    assert_eq!(seen("query", "again", "FIRST"), "one");

    // Modules see what the deployment may, while they are analysed.
    let auth =
        r#"export default { providers: [{ domain: process.env.FIRST, applicationID: "app" }] };"#;
    world.app.write("convex/auth.config.js", auth);
    let failed = world.app.deploy(&world.server, "demo", &[]).expect(1);
    assert!(failed.stderr.contains("FIRST"), "{}", failed.stderr);
    let deploy = "- {kind: system_task, name: deploy, secrets: {handles: [FIRST]}}";
    governed.change(&policy(deploy));
    wait::until("the change is in force", || {
        seen("query", "again", "FIRST") == "unset"
    });
    world.app.deployed(&world.server, "demo");
}

#[test]
fn policies_change_in_the_middle_of_traffic_and_a_bad_one_changes_nothing() {
    let one = |function: &str| {
        policy(&format!(
            "- {{kind: runtime_function, name: 'main:{function}', secrets: {{handles: [V]}}}}"
        ))
    };
    let governed = Governed::new(&one("variable"));
    let world = &governed.world;
    world.set("V", "seen");
    let (over, calls) = (AtomicBool::new(false), AtomicUsize::new(0));
    let hangup = || {
        let pid = rustix::process::Pid::from_raw(i32::try_from(world.server.pid()).unwrap());
        rustix::process::kill_process(pid.unwrap(), rustix::process::Signal::HUP).unwrap();
    };
    let anybody = world.server.anonymous();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut seen = BTreeSet::new();
                while !over.load(Ordering::Relaxed) {
                    for path in ["main:variable", "main:again"] {
                        let outcome = call(&anybody, "query", path, &json!({"name": "V"}));
                        let outcome = outcome.expect(200).json();
                        assert_eq!(outcome["status"], "success", "{outcome}");
                        seen.insert(outcome["value"].as_str().unwrap().to_owned());
                        calls.fetch_add(1, Ordering::Relaxed);
                    }
                }
                assert_eq!(Vec::from_iter(seen), ["seen", "unset"]);
            });
        }
        for turn in 1..=20_u64 {
            governed.change(&one(if turn % 2 == 0 { "variable" } else { "again" }));
            hangup();
            wait::until("the change is in force", || {
                governed.status()["generation"] == turn + 1
            });
            let so_far = calls.load(Ordering::Relaxed);
            wait::until("calls were made", || {
                calls.load(Ordering::Relaxed) > so_far + 8
            });
        }
        over.store(true, Ordering::Relaxed);
    });
    println!(
        "20 reloads during {} calls, none of which failed",
        calls.load(Ordering::Relaxed)
    );

    // Nothing is told to the server here: it looks by itself.
    governed.change("schema_version: 1\ntenant: demo\nworkloads: []\nsurprise: 1\n");
    wait::until("the candidate was looked at", || {
        governed.status()["lastReload"]["outcome"] == "refused"
    });
    let status = governed.status();
    let problem = status["lastReload"]["problem"].as_str().unwrap();
    assert!(
        problem.contains("surprise") && problem.contains("demo.yaml"),
        "{problem}"
    );
    assert_eq!(status["generation"], 21, "the last good one is in force");
    let client = world.client();
    assert_eq!(client.metric("nimbus_policy_reload_failing"), 1);
    assert_eq!(client.get("/health").expect(200).text(), r#"{"ok":true}"#);
    assert_eq!(
        world.value("query", "main:variable", &json!({"name": "V"})),
        "seen"
    );
    governed.change(&one("again"));
    wait::until("it is mended", || {
        client.metric("nimbus_policy_reload_failing") == 0
    });
    assert_eq!(
        world.value("query", "main:variable", &json!({"name": "V"})),
        "unset"
    );
    // What the directory decides is not decided elsewhere.
    let put = json!({"policy": one("variable")});
    client
        .put("/api/tenants/demo/policy", &put)
        .refused(409, "op.conflict");
    let shown = client.get("/api/tenants/demo/policy").expect(200).json();
    assert_eq!(
        (shown["source"].as_str(), shown["policy"].as_str()),
        (Some("directory"), Some(&*one("again")))
    );
}

#[test]
fn a_bad_directory_is_no_start_and_a_tenant_without_a_file_is_closed() {
    let home = Arc::new(Home::new());
    let dir = home.path().join("policies");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("demo.yaml"), policy("- {kind: moon, name: x}")).unwrap();
    let options = Options::new()
        .home(&home)
        .args(&["--policy-dir", dir.to_str().unwrap()]);
    nimbus_e2e::Server::refused(options.clone())
        .expect(1)
        .says(&["demo.yaml is no valid policy", "moon", "runtime_function"]);
    std::fs::rename(dir.join("demo.yaml"), dir.join("other.yaml")).unwrap();
    std::fs::write(dir.join("other.yaml"), policy("")).unwrap();
    nimbus_e2e::Server::refused(options.clone())
        .expect(1)
        .says(&["other.yaml is for the tenant `demo`, not `other`"]);
    std::fs::remove_file(dir.join("other.yaml")).unwrap();
    let world = World::started(app(), options);
    world.app.deployed(&world.server, "demo");
    // Operators may always; others find it closed.
    let refused = world.call("query", "main:count", &json!({}));
    assert_eq!(refused.convex_refusal(403), "Forbidden");
    let body = json!({"path": "main:count", "args": {}});
    let counted = world
        .client()
        .post("/convex/demo/api/query", &body)
        .expect(200)
        .json();
    assert_eq!(counted["value"], 0.0);
}

#[test]
fn a_tenant_keeps_its_policy_with_versions() {
    let world = World::with(app());
    world.app.deployed(&world.server, "demo");
    world.set("V", "seen");
    let seen = || world.value("query", "main:variable", &json!({"name": "V"}));
    assert_eq!(seen(), "seen", "without a policy the flags hold");
    let home = world.server.home();
    let put = |text: &str, more: &[&str]| {
        std::fs::write(home.path().join("policy.yaml"), text).unwrap();
        world.nimbus(&[&["policy", "put", "--file", "policy.yaml"], more].concat())
    };
    let granting =
        policy("- {kind: runtime_function, name: 'main:variable', secrets: {handles: [V]}}");
    put(&policy(""), &["--dry-run"])
        .expect(0)
        .prints(&["nothing was changed"]);
    assert_eq!(seen(), "seen");
    put(&policy(""), &[])
        .expect(0)
        .prints(&["version 1 is in force, after no policy"]);
    assert_eq!(seen(), "unset");
    // A dry run says the same as the attempt.
    for dry in [&[][..], &["--dry-run"]] {
        put(&granting, &[&["--expected-version", "7"], dry].concat())
            .expect(1)
            .says(&[
                "op.precondition_failed",
                "version 1 of the policy is current, not 7 (0: none); read it and try again",
            ]);
    }
    put(&granting, &[])
        .expect(0)
        .prints(&["version 2", "authority: widened"]);
    assert_eq!(seen(), "seen");
    let answer = world
        .nimbus(&["policy", "restore", "--policy-version", "1", "-f", "json"])
        .expect(0)
        .json();
    assert_eq!(
        (
            answer["version"].as_u64(),
            answer["changes"]["authority"].as_str()
        ),
        (Some(3), Some("narrowed"))
    );
    assert_eq!(seen(), "unset");

    // A bad one is refused with everything that is wrong, and changes nothing.
    put("schema_version: 1\ntenant: demo\nmoon: 1\n", &[])
        .expect(1)
        .says(&["there is no key `moon` here", "workloads"]);
    put(&granting.replace("demo", "globex"), &[])
        .expect(1)
        .says(&["`globex`, not `demo`"]);
    let client = world.client();
    let path = "/api/tenants/demo/policy";
    for body in [
        json!({}),
        json!({"policy": granting, "restoreVersion": 1}),
        json!({"policy": 1}),
    ] {
        client.put(path, &body).refused(400, "op.invalid_input");
    }
    client
        .put(path, &json!({"restoreVersion": 9}))
        .refused(404, "op.not_found");
    client
        .get(&format!("{path}?version=9"))
        .refused(404, "op.not_found");
    let shown = world
        .nimbus(&["policy", "show", "-f", "json"])
        .expect(0)
        .json();
    let versions: Vec<u64> = shown["versions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["version"].as_u64().unwrap())
        .collect();
    assert_eq!(
        (versions, shown["restoredFrom"].as_u64()),
        (vec![3, 2, 1], Some(1))
    );
    world
        .nimbus(&["policy", "show", "--policy-version", "2"])
        .expect(0)
        .prints(&["# version 2, put 20", "handles: [V]"]);

    // A key opens what the policy exposes, and never the policy itself.
    let key = |scope: &str| {
        world
            .nimbus(&["keys", "create", "--scope", scope])
            .expect(0)
            .stdout
            .trim()
            .to_owned()
    };
    let (admin, writer) = (
        client.with_token(Some(key("admin"))),
        client.with_token(Some(key("write"))),
    );
    admin
        .put(path, &json!({"policy": granting}))
        .refused(403, "auth.permission_denied");
    let note = json!({"table": "notes", "fields": {"text": "x"}});
    writer
        .post("/api/tenants/demo/documents", &note)
        .refused(403, "auth.forbidden");
    let native = "- {kind: http_request, name: native_api}";
    put(&policy(native), &[]).expect(0);
    writer
        .post("/api/tenants/demo/documents", &note)
        .expect(201);

    // It is the tenant's: it comes back with it.
    let mut world = world;
    world.server.terminate();
    world.server.restart();
    assert_eq!(
        world.value("query", "main:variable", &json!({"name": "V"})),
        "unset"
    );
    let client = world.client();
    let lines = std::fs::read_to_string(world.server.home().audit_log()).unwrap();
    let put = |line: &&str| line.contains(r#""method":"PUT","path":"/api/tenants/demo/policy""#);
    assert!(lines.lines().filter(put).count() >= 6);
    client.delete("/api/tenants/demo").expect(204);
    client.create_tenant("demo");
    let shown = client.get("/api/tenants/demo/policy").expect(200).json();
    assert_eq!(shown["source"], "none");
}
