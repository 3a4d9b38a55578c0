//! Policies made at random, written in many ways, and widened in every way that there is.
//!
//! Knows what a widening is from the meaning of the keys, not from the code that classifies one.

use std::collections::BTreeSet;

use fastrand::Rng;
use nimbus_policy::{Policy, Source, compile};
use serde_json::{Map, Value, json};

/// A policy as its author thinks of it.
#[derive(Clone, Debug)]
pub(crate) struct Model {
    pub(crate) workloads: Vec<Workload>,
    pub(crate) local: bool,
    /// Of [`QUOTAS`]; no limit without a number.
    quotas: [Option<u64>; 4],
}

#[derive(Clone, Debug)]
pub(crate) struct Workload {
    kind: &'static str,
    name: String,
    node: bool,
    /// Of [`TIERS`].
    tier: usize,
    services: BTreeSet<&'static str>,
    volumes: BTreeSet<&'static str>,
    secrets: BTreeSet<&'static str>,
    pub(crate) rules: Vec<Rule>,
    image: Option<Image>,
    charge: [Option<u64>; 5],
    max_warm: Option<u64>,
    /// Of [`CALL`], of functions only; no limit without a number.
    call: [Option<u64>; 3],
    redactions: BTreeSet<&'static str>,
}

#[derive(Clone, Debug)]
pub(crate) struct Rule {
    name: String,
    protocol: &'static str,
    host: &'static str,
    /// All if there are none.
    methods: BTreeSet<&'static str>,
    /// All if there are none.
    prefixes: BTreeSet<&'static str>,
    internal: bool,
}

#[derive(Clone, Debug)]
struct Image {
    registries: BTreeSet<&'static str>,
    signed: bool,
    sbom: bool,
}

/// From the strongest walls to the weakest.
const TIERS: [&str; 4] = [
    "microvm_service",
    "wasm_capability_sandbox",
    "in_process_untrusted",
    "in_process_trusted_only",
];
const KINDS: [&str; 6] = [
    "runtime_function",
    "service",
    "sandbox",
    "sandbox_service",
    "http_request",
    "system_task",
];
pub(crate) const HOSTS: [&str; 3] = ["a.example", "b.example", "1.1.1.1"];
pub(crate) const METHODS: [&str; 3] = ["GET", "POST", "DELETE"];
/// None covers another.
const PREFIXES: [&str; 4] = ["/a", "/b/c", "/b/d", "/%C3%BC"];
pub(crate) const PROTOCOLS: [&str; 4] = ["tcp", "http", "https", "wss"];
const NAMES: [&str; 5] = ["cache", "orders-db", "tenant-globex", "files", "queue"];
const MANDATORY: [&str; 4] = [
    "principal_claims",
    "bearer_claims",
    "secret_handles",
    "raw_credentials",
];

const QUOTAS: [&str; 4] = [
    "storage_bytes",
    "documents",
    "requests_per_second",
    "active_functions",
];
const CALL: [&str; 3] = ["timeout_ms", "user_cpu_ms", "log_bytes"];

/// Numbers by their keys, those that are there.
fn numbers(keys: &[&str], values: &[Option<u64>]) -> Map<String, Value> {
    let pairs = keys.iter().zip(values);
    pairs
        .filter_map(|(key, value)| Some(((*key).to_owned(), (*value)?.into())))
        .collect()
}

/// Raises a limit, or lifts it.
fn lift(limits: &mut [Option<u64>], rng: &mut Rng) -> Option<()> {
    let limit = &mut limits[rng.usize(0..limits.len())];
    let value = (*limit)?;
    *limit = rng.bool().then_some(value + 1);
    Some(())
}

fn some(rng: &mut Rng, from: &[&'static str]) -> BTreeSet<&'static str> {
    from.iter().filter(|_| rng.u8(0..3) == 0).copied().collect()
}

impl Model {
    pub(crate) fn random(rng: &mut Rng) -> Model {
        let count = rng.usize(1..4);
        Model {
            workloads: (0..count).map(|at| Workload::random(rng, at)).collect(),
            local: rng.bool(),
            quotas: std::array::from_fn(|_| rng.bool().then(|| rng.u64(1..100))),
        }
    }

    /// The same with something in it that allows more; `None` if that way does not fit.
    pub(crate) fn widened(&self, rng: &mut Rng) -> Option<(Model, &'static str)> {
        let mut wide = self.clone();
        let at = rng.usize(0..wide.workloads.len());
        let way = match rng.u8(0..16) {
            0 => {
                let fresh = Workload::random(rng, 9);
                wide.workloads.push(fresh);
                "a workload"
            }
            1 if !self.local => {
                wide.local = true;
                "isolation"
            }
            2 => {
                lift(&mut wide.quotas, rng)?;
                "a quota of the tenant"
            }
            _ => wide.workloads[at].widen(rng)?,
        };
        Some((wide, way))
    }

    /// A file that says this, in a way that the generator chooses.
    pub(crate) fn write(&self, rng: &mut Rng) -> String {
        let isolation = if self.local {
            "local_development"
        } else {
            "production"
        };
        let file = json!({
            "schema_version": 1,
            "tenant": "acme",
            "defaults": {
                "tenant_isolation_mode": isolation,
                "tenant_quotas": numbers(&QUOTAS, &self.quotas),
            },
            "workloads": self.workloads.iter().map(|workload| workload.value(rng)).collect::<Vec<_>>(),
        });
        let file = shuffled(file, rng);
        if rng.u8(0..4) == 0 {
            return file.to_string();
        }
        let mut out = String::new();
        block(&file, 0, rng, &mut out);
        out
    }

    pub(crate) fn compile(&self, rng: &mut Rng) -> Policy {
        let text = self.write(rng);
        let compiled = compile(&Source::new("random.yaml", text.clone().into()));
        compiled.unwrap_or_else(|invalid| panic!("{text}\n{}", invalid.render(false)))
    }
}

impl Workload {
    fn random(rng: &mut Rng, at: usize) -> Workload {
        let rules = rng.usize(0..4);
        Workload {
            kind: KINDS[rng.usize(0..KINDS.len())],
            name: format!("w{at}:f"),
            node: rng.bool(),
            tier: rng.usize(0..TIERS.len()),
            services: some(rng, &NAMES),
            volumes: some(rng, &NAMES),
            secrets: some(rng, &NAMES),
            rules: (0..rules).map(|at| Rule::random(rng, at)).collect(),
            image: rng.bool().then(|| Image {
                registries: some(rng, &["ghcr.io", "quay.io"]),
                signed: rng.bool(),
                sbom: rng.bool(),
            }),
            charge: std::array::from_fn(|_| rng.bool().then(|| rng.u64(1..100))),
            max_warm: rng.bool().then(|| rng.u64(1..100)),
            call: std::array::from_fn(|_| rng.bool().then(|| rng.u64(1..100))),
            redactions: some(rng, &["body", "query"]),
        }
    }

    fn widen(&mut self, rng: &mut Rng) -> Option<&'static str> {
        let extra = |set: &mut BTreeSet<&'static str>, from: &[&'static str]| -> Option<()> {
            let new = from.iter().find(|name| !set.contains(*name))?;
            set.insert(new);
            Some(())
        };
        match rng.u8(0..13) {
            12 if self.kind == "runtime_function" => {
                lift(&mut self.call, rng).map(|()| "a limit of calls")
            }
            0 => extra(&mut self.services, &NAMES).map(|()| "a service"),
            1 => extra(&mut self.volumes, &NAMES).map(|()| "a volume"),
            2 => extra(&mut self.secrets, &NAMES).map(|()| "a secret"),
            3 => {
                let quota = &mut self.charge[rng.usize(0..5)];
                *quota = Some(quota.map_or(1, |quota| quota + 1));
                Some("a quota")
            }
            4 => {
                self.max_warm = Some(self.max_warm.map_or(1, |warm| warm + 1));
                Some("warm instances")
            }
            5 if self.tier < 3 => {
                self.tier += 1;
                Some("the tier")
            }
            6 if !self.node => {
                self.node = true;
                Some("the profile")
            }
            7 => {
                let first = *self.redactions.first()?;
                self.redactions.remove(first);
                Some("a redaction")
            }
            8 => {
                // A host of its own, so that no other rule covers it.
                let mut rule = Rule::random(rng, 9);
                rule.host = "new.example";
                self.rules.push(rule);
                Some("a rule")
            }
            9 => match &mut self.image {
                None => {
                    self.image = Some(Image {
                        registries: BTreeSet::new(),
                        signed: true,
                        sbom: true,
                    });
                    Some("an image")
                }
                Some(image) if image.signed => {
                    image.signed = false;
                    Some("an unsigned image")
                }
                Some(image) if image.sbom => {
                    image.sbom = false;
                    Some("an image without a bill")
                }
                Some(image) if !image.registries.is_empty() => {
                    image.registries.clear();
                    Some("any registry")
                }
                Some(_) => None,
            },
            _ => {
                let count = self.rules.len();
                let others = self.rules.clone();
                let rule = self.rules.get_mut(rng.usize(0..count.max(1)))?;
                // What another rule allows already is no widening.
                let same =
                    |other: &&Rule| other.host == rule.host && other.protocol == rule.protocol;
                if others.iter().filter(same).count() > 1 {
                    return None;
                }
                rule.widen(rng)
            }
        }
    }

    fn value(&self, rng: &mut Rng) -> Value {
        let mut quotas = Map::new();
        let keys = [
            "active_sandboxes",
            "vcpus",
            "memory_bytes",
            "disk_bytes",
            "log_bytes",
        ];
        let charge = numbers(&keys, &self.charge);
        if !charge.is_empty() || rng.bool() {
            quotas.insert("sandbox_charge".to_owned(), Value::Object(charge));
        }
        if let Some(warm) = self.max_warm {
            quotas.insert("runtime_scaling".to_owned(), json!({"max_warm": warm}));
        }
        let call = numbers(&CALL, &self.call);
        if self.kind == "runtime_function" && (!call.is_empty() || rng.bool()) {
            quotas.insert("function_call".to_owned(), Value::Object(call));
        }
        let profile = if self.node { "node22" } else { "web_standard" };
        let redactions: Vec<&str> = MANDATORY.iter().chain(&self.redactions).copied().collect();
        let mut value = json!({
            "kind": self.kind,
            "name": self.name,
            "runtime": {"profile": profile, "tier": TIERS[self.tier]},
            "quotas": quotas,
            "audit": {"redacted_fields": redactions},
        });
        if self.kind.starts_with("sandbox") {
            value["sandbox"] = json!({"backend": "krun", "sandbox_id": self.name});
        }
        // An empty list is the same as none.
        let lists = [
            ("services", "allow", &self.services),
            ("volumes", "named", &self.volumes),
            ("secrets", "handles", &self.secrets),
        ];
        for (block, key, set) in lists {
            if !set.is_empty() || rng.bool() {
                value[block] = json!({key: set});
            }
        }
        if !self.rules.is_empty() || rng.bool() {
            let rules: Vec<Value> = self.rules.iter().map(|rule| rule.value(rng)).collect();
            value["network"] = json!({"egress": {"allow": rules}});
        }
        if let Some(image) = &self.image {
            value["image"] =
                json!({"allowed_registries": image.registries, "sbom_required": image.sbom});
            if image.signed {
                value["image"]["signature"] = json!({"issuer": "i", "subject": "s"});
            }
        }
        value
    }
}

impl Rule {
    fn random(rng: &mut Rng, at: usize) -> Rule {
        let protocol = PROTOCOLS[rng.usize(0..PROTOCOLS.len())];
        let tcp = protocol == "tcp";
        Rule {
            name: format!("r{at}"),
            protocol,
            host: HOSTS[rng.usize(0..HOSTS.len())],
            methods: if tcp {
                BTreeSet::new()
            } else {
                some(rng, &METHODS)
            },
            prefixes: if tcp {
                BTreeSet::new()
            } else {
                some(rng, &PREFIXES)
            },
            internal: rng.u8(0..4) == 0,
        }
    }

    fn widen(&mut self, rng: &mut Rng) -> Option<&'static str> {
        let more = |set: &mut BTreeSet<&'static str>, from: &[&'static str], rng: &mut Rng| {
            let new = from.iter().find(|name| !set.contains(*name));
            match new {
                Some(new) if !set.is_empty() && rng.bool() => drop(set.insert(new)),
                _ if set.is_empty() => return false,
                _ => set.clear(),
            }
            true
        };
        match rng.u8(0..3) {
            0 => more(&mut self.methods, &METHODS, rng).then_some("methods"),
            1 => more(&mut self.prefixes, &PREFIXES, rng).then_some("paths"),
            _ if !self.internal => {
                self.internal = true;
                Some("internal addresses")
            }
            _ => None,
        }
    }

    fn value(&self, rng: &mut Rng) -> Value {
        // One host in several forms.
        let host = match rng.u8(0..3) {
            0 => self.host.to_uppercase(),
            1 if self.host.ends_with("example") => format!("{}.", self.host),
            1 => format!("::ffff:{}", self.host),
            _ => self.host.to_owned(),
        };
        let mut value =
            json!({"name": self.name, "protocol": self.protocol, "host": host, "port": 443});
        if !self.methods.is_empty() {
            value["methods"] = json!(self.methods);
        }
        if !self.prefixes.is_empty() {
            let form = |prefix: &&str| match rng.u8(0..3) {
                0 => format!("{prefix}/"),
                1 => prefix.replace("/a", "/%61").replace("%C3", "%c3"),
                _ => (*prefix).to_owned(),
            };
            value["path_prefixes"] = self.prefixes.iter().map(form).collect();
        }
        if self.internal || rng.bool() {
            value["allow_internal_ips"] = json!(self.internal);
        }
        value
    }
}

/// The same with keys and lists in another order; no list of a policy has one.
fn shuffled(value: Value, rng: &mut Rng) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<(String, Value)> = map.into_iter().collect();
            rng.shuffle(&mut entries);
            entries
                .into_iter()
                .map(|(key, value)| (key, shuffled(value, rng)))
                .collect()
        }
        Value::Array(mut items) => {
            rng.shuffle(&mut items);
            items.into_iter().map(|item| shuffled(item, rng)).collect()
        }
        other => other,
    }
}

/// YAML in block style, with comments, blank lines, quotes and brackets as the generator likes.
fn block(value: &Value, indent: usize, rng: &mut Rng, out: &mut String) {
    let pad = " ".repeat(indent);
    let entry = |head: String, value: &Value, rng: &mut Rng, out: &mut String| {
        if rng.u8(0..6) == 0 {
            out.push_str(&format!("{pad}# {}\n\n", rng.u8(..)));
        }
        let nested = value.as_object().is_some_and(|map| !map.is_empty())
            || value.as_array().is_some_and(|items| !items.is_empty());
        if nested && rng.u8(0..5) > 0 {
            out.push_str(&format!("{pad}{head}\n"));
            block(value, indent + rng.usize(2..5), rng, out);
        } else if let (Some(text), true) = (value.as_str(), rng.bool()) {
            let quoted = if rng.bool() {
                format!("'{text}'")
            } else {
                plain(text)
            };
            out.push_str(&format!("{pad}{head} {quoted}  # {}\n", rng.u8(..)));
        } else {
            out.push_str(&format!("{pad}{head} {value}\n"));
        }
    };
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                entry(format!("{key}:"), value, rng, out);
            }
        }
        Value::Array(items) => {
            for item in items {
                entry("-".to_owned(), item, rng, out);
            }
        }
        _ => {}
    }
}

/// Without quotes where that means the same.
fn plain(text: &str) -> String {
    let safe = text
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"_./-".contains(&byte))
        && text.starts_with(|c: char| c.is_ascii_alphabetic());
    if safe {
        text.to_owned()
    } else {
        Value::from(text).to_string()
    }
}
