//! From the file to decisions: the rules of nimbus.md 6.2, each with the place and what to write instead.
//!
//! Knows no commands. All faults of a file are told at once, as far as they can be told apart.

mod grants;
mod names;
mod network;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use nimbus_core::TenantId;

use crate::decision::{Acceptance, Decision, DecisionId, Expiry, Limits, Policy};
use crate::decode::{Decode as _, Spanned};
use crate::problem::{Code, Invalid, Problems};
use crate::schema::{
    AcceptedRisk, Defaults, IsolationMode, PolicyFile, RuntimeProfile, RuntimeTier, SandboxBlock,
    Workload, WorkloadKind,
};
use crate::source::{Place, Source, Span};
use crate::text::shown;

/// The only version of the format.
const SCHEMA_VERSION: u32 = 1;
/// What must be kept out of audit lines in every policy.
pub(crate) const MANDATORY_REDACTIONS: [&str; 4] = [
    "principal_claims",
    "bearer_claims",
    "secret_handles",
    "raw_credentials",
];

/// Compiles a policy file.
///
/// # Errors
/// Everything that is wrong with the file.
pub fn compile(source: &Source) -> Result<Policy, Box<Invalid>> {
    let mut problems = Problems::default();
    let node = crate::yaml::parse(source, &mut problems);
    let file = node.and_then(|node| PolicyFile::decode(&node, &mut problems));
    let policy = file.and_then(|file| {
        let mut compiler = Compiler {
            problems: &mut problems,
            lines: Lines::new(source),
            places: BTreeMap::new(),
        };
        compiler.policy(&file, source)
    });
    match policy {
        Some(policy) if problems.count() == 0 => Ok(policy),
        _ => {
            if problems.count() == 0 {
                let message = "the file has no policy";
                problems
                    .add(Code::MissingKey, Span::default(), message)
                    .help("begin with `schema_version: 1` and `tenant:`");
            }
            Err(Box::new(problems.into_invalid(source)))
        }
    }
}

/// What compiling needs at every turn.
struct Compiler<'a> {
    problems: &'a mut Problems,
    lines: Lines<'a>,
    /// Of the workload at hand.
    places: BTreeMap<(&'static str, String), Place>,
}

/// Places of bytes, without counting the lines before them each time.
struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
    /// The line of the last place: most places are a little further down.
    last: Cell<usize>,
}

impl<'a> Lines<'a> {
    fn new(source: &'a Source) -> Lines<'a> {
        let text = source.text();
        let newlines = text.match_indices('\n');
        let starts = std::iter::once(0)
            .chain(newlines.map(|(at, _)| at + 1))
            .collect();
        let last = Cell::new(0);
        Lines { text, starts, last }
    }

    /// How many lines begin at or before a byte.
    fn line(&self, at: usize) -> usize {
        /// Lines of a rule.
        const NEAR: usize = 16;
        let from = self.last.get();
        let near = self.starts.get(from..).unwrap_or_default();
        let near = near.get(..NEAR).unwrap_or(near);
        let line = match near {
            [first, .., end] if *first <= at && at < *end => {
                from + near.partition_point(|start| *start <= at)
            }
            _ => self.starts.partition_point(|start| *start <= at),
        };
        self.last.set(line.saturating_sub(1));
        line
    }

    fn place(&self, span: Span) -> Place {
        let line = self.line(span.start);
        let start = line
            .checked_sub(1)
            .and_then(|at| self.starts.get(at))
            .copied();
        let before = start.and_then(|start| self.text.get(start..span.start));
        Place {
            line,
            column: before.map_or(0, |before| before.chars().count()) + 1,
        }
    }
}

impl Compiler<'_> {
    fn policy(&mut self, file: &PolicyFile, source: &Source) -> Option<Policy> {
        self.version(&file.schema_version);
        let tenant = self.tenant(&file.tenant);
        let metadata = file.metadata.as_ref();
        let name = metadata.and_then(|metadata| metadata.name.as_ref());
        let name = name.map(|name| self.prose(name, "name").unwrap_or_default());
        let description = metadata.and_then(|metadata| metadata.description.as_ref());
        let description = description.and_then(|text| self.prose(text, "description"));
        let acceptances = self.acceptances(file.accepted_risks.as_deref().unwrap_or_default());
        let redactions = self.redactions(
            file.defaults
                .as_ref()
                .and_then(|defaults| defaults.audit_redactions.as_ref()),
        );
        if file.workloads.value.is_empty() {
            self.problems
                .add(Code::NoValue, file.workloads.span, "there is no workload")
                .help("a policy describes at least one");
        }
        let tenant = tenant?;
        let base = Base {
            tenant: &tenant,
            isolation: file
                .defaults
                .as_ref()
                .and_then(|defaults| defaults.tenant_isolation_mode),
            redactions: &redactions,
        };
        let mut decisions = Vec::with_capacity(file.workloads.value.len());
        let mut seen: HashMap<String, Span> = HashMap::new();
        for workload in &file.workloads.value {
            let Some(decision) = self.workload(workload, &base) else {
                continue;
            };
            let span = workload.value.name.span;
            if let Some(first) = seen.insert(decision.key.clone(), span) {
                let message = format!("the workload `{}` is there twice", decision.key);
                self.problems
                    .add(Code::Duplicate, span, message)
                    .help("kind and name together must be unique")
                    .also(first, "first here");
            }
            decisions.push(decision);
        }
        decisions.sort_by(|a, b| a.key.cmp(&b.key));
        let limits = self.limits(file.defaults.as_ref(), &decisions);
        let quotas = file.defaults.as_ref();
        let quotas = quotas.and_then(|defaults| defaults.tenant_quotas.as_ref());
        let quotas = quotas.map(|quotas| self.tenant_quotas(quotas));
        Some(Policy {
            name: name.unwrap_or_else(|| tenant.to_string()),
            description,
            tenant,
            limits,
            quotas: quotas.unwrap_or_default(),
            acceptances,
            decisions,
            file: source.name().to_owned(),
        })
    }

    fn version(&mut self, version: &Spanned<u32>) {
        if version.value != SCHEMA_VERSION {
            let message = format!("the version {} of the format is not known", version.value);
            self.problems
                .add(Code::BadVersion, version.span, message)
                .help(format!("write `schema_version: {SCHEMA_VERSION}`"));
        }
    }

    fn tenant(&mut self, tenant: &Spanned<String>) -> Option<TenantId> {
        match tenant.value.parse() {
            Ok(tenant) => Some(tenant),
            Err(error) => {
                let message = format!("`{}` is no tenant id: {error}", shown(&tenant.value));
                self.problems
                    .add(Code::BadTenant, tenant.span, message)
                    .help("a tenant id has 1 to 128 ASCII letters, digits, `_` and `-`, and no `_` first");
                None
            }
        }
    }

    fn acceptances(&mut self, risks: &[AcceptedRisk]) -> Vec<Acceptance> {
        let mut seen: HashMap<&str, Span> = HashMap::new();
        let mut acceptances = Vec::new();
        for risk in risks {
            let id = &risk.advisory_id;
            if id.value.is_empty() || id.value.chars().any(|c| !c.is_ascii_graphic()) {
                self.problems
                    .add(Code::BadName, id.span, "this is no advisory id")
                    .help("copy the id as `nimbus policy prove` prints it");
            }
            if let Some(first) = seen.insert(&id.value, id.span) {
                self.problems
                    .add(Code::Duplicate, id.span, "the advisory is accepted twice")
                    .help("keep one of the two")
                    .also(first, "first here");
            }
            let approved_by = self.prose(&risk.approved_by, "approved_by");
            let reason = self.prose(&risk.reason, "reason");
            let expires = match &risk.expires {
                Some(text) => self.expiry(text).map(Some),
                None => Some(None),
            };
            if let (Some(approved_by), Some(reason), Some(expires)) = (approved_by, reason, expires)
            {
                acceptances.push(Acceptance {
                    advisory_id: id.value.clone(),
                    approved_by,
                    reason,
                    expires,
                    place: self.lines.place(id.span),
                });
            }
        }
        acceptances.sort_by(|a, b| a.advisory_id.cmp(&b.advisory_id));
        acceptances
    }

    fn expiry(&mut self, text: &Spanned<String>) -> Option<Expiry> {
        let Some(ends) = ends(&text.value) else {
            let message = format!("`{}` is no date", shown(&text.value));
            self.problems.add(Code::BadDate, text.span, message).help(
                "write the last day (UTC) as `2027-01-31`, or a moment as `2027-01-31T12:00:00Z`",
            );
            return None;
        };
        Some(Expiry {
            text: text.value.clone(),
            ends,
        })
    }

    fn workload(&mut self, workload: &Spanned<Workload>, base: &Base<'_>) -> Option<Decision> {
        let file = &workload.value;
        let name = self.name(&file.name, "the workload")?;
        let key = format!("{}/{name}", file.kind);
        let place = self.lines.place(workload.span);
        self.places.clear();
        let runtime = file.runtime.as_ref();
        let isolation = runtime
            .and_then(|runtime| runtime.tenant_isolation_mode)
            .or(base.isolation)
            .unwrap_or(IsolationMode::Production);
        self.sandbox_fits(file, workload.span);
        let services = file
            .services
            .as_ref()
            .map(|services| services.allow.as_slice());
        let services = self.names(services.unwrap_or_default(), "a service");
        let network = file.network.as_ref();
        let endpoints = network.and_then(|network| network.endpoints.as_deref());
        let endpoints = self.endpoints(endpoints.unwrap_or_default(), &services);
        let rules = network.and_then(|network| network.egress.as_ref());
        let egress = self.egress(rules.map_or(&[], |egress| &egress.allow));
        let volumes = file
            .volumes
            .as_ref()
            .map(|volumes| volumes.named.as_slice());
        let volumes = self.names(volumes.unwrap_or_default(), "a volume");
        let secrets = file
            .secrets
            .as_ref()
            .map(|secrets| secrets.handles.as_slice());
        let secrets = self.secrets(secrets.unwrap_or_default());
        let image = file
            .image
            .as_ref()
            .map(|image| self.image(&image.value, isolation));
        let (charge, scaling) = self.quotas(file.quotas.as_ref());
        let call = self.function_call(file);
        let audit = file
            .audit
            .as_ref()
            .and_then(|audit| audit.redacted_fields.as_ref());
        let mut redactions = base.redactions.clone();
        if audit.is_some() {
            redactions.append(&mut self.redactions(audit));
        }
        let sandbox = file
            .sandbox
            .as_ref()
            .map(|sandbox| self.sandbox(&sandbox.value));
        let mut decision = Decision {
            id: DecisionId::none(),
            key,
            tenant: base.tenant.clone(),
            kind: file.kind,
            name,
            isolation,
            profile: runtime
                .and_then(|runtime| runtime.profile)
                .unwrap_or(RuntimeProfile::WebStandard),
            tier: runtime
                .and_then(|runtime| runtime.tier)
                .unwrap_or(RuntimeTier::InProcessUntrusted),
            sandbox,
            services,
            endpoints,
            egress,
            volumes,
            image,
            secrets,
            charge,
            scaling,
            call,
            redactions,
            place,
            places: std::mem::take(&mut self.places),
        };
        decision.seal();
        Some(decision)
    }

    fn sandbox_fits(&mut self, file: &Workload, span: Span) {
        let needed = file.kind.needs_sandbox();
        match &file.sandbox {
            None if needed => {
                let head = Span {
                    start: span.start,
                    end: file.name.span.end.max(span.start),
                };
                let message = format!("a `{}` needs a sandbox", file.kind);
                self.problems
                    .add(Code::MissingKey, head, message)
                    .help("add `sandbox: {backend: container, sandbox_id: <id>}`");
            }
            Some(sandbox) if needed && sandbox.value.sandbox_id.is_none() => {
                let message = format!("the sandbox of a `{}` needs an id", file.kind);
                self.problems
                    .add(Code::MissingKey, sandbox.span, message)
                    .help("add `sandbox_id: <id>`");
            }
            Some(sandbox)
                if matches!(
                    file.kind,
                    WorkloadKind::HttpRequest | WorkloadKind::SystemTask
                ) =>
            {
                let message = format!("a workload of the kind `{}` has no sandbox", file.kind);
                self.problems
                    .add(Code::Misplaced, sandbox.span, message)
                    .help("remove the block, or make the workload a `sandbox_service`");
            }
            _ => {}
        }
    }

    fn sandbox(&mut self, sandbox: &SandboxBlock) -> crate::decision::Sandbox {
        crate::decision::Sandbox {
            backend: sandbox.backend,
            id: sandbox
                .sandbox_id
                .as_ref()
                .and_then(|id| self.name(id, "the sandbox")),
        }
    }

    fn redactions(&mut self, list: Option<&Spanned<Vec<Spanned<String>>>>) -> BTreeSet<String> {
        let Some(list) = list else {
            return MANDATORY_REDACTIONS.map(str::to_owned).into();
        };
        let names = self.names(&list.value, "a redaction");
        let missing = MANDATORY_REDACTIONS
            .iter()
            .filter(|name| !names.contains(**name));
        let missing: Vec<&str> = missing.copied().collect();
        if !missing.is_empty() {
            let message = format!(
                "mandatory redactions are missing: `{}`",
                missing.join("`, `")
            );
            self.problems
                .add(Code::MissingRedaction, list.span, message)
                .help("list them as well, or remove the key: they are the default");
        }
        names
    }

    fn limits(&mut self, defaults: Option<&Defaults>, decisions: &[Decision]) -> Limits {
        let Some(found) = defaults.and_then(|defaults| defaults.runtime_scaling_limits.as_ref())
        else {
            return Limits::default();
        };
        let limits = Limits {
            max_total_warm: found.value.max_total_warm,
            max_min_warm_total: found.value.max_min_warm_total,
            max_warm_per_function: found.value.max_warm_per_function,
            live_scaling_forbidden: found.value.allow_live_scaling == Some(false),
        };
        let sum = |value: fn(&Decision) -> Option<u32>| -> u64 {
            decisions.iter().filter_map(value).map(u64::from).sum()
        };
        let totals = [
            (
                "max_total_warm",
                limits.max_total_warm,
                sum(|d| d.scaling.max_warm),
            ),
            (
                "max_min_warm_total",
                limits.max_min_warm_total,
                sum(|d| d.scaling.max_min_warm),
            ),
        ];
        for (name, limit, asked) in totals {
            if limit.is_some_and(|limit| asked > u64::from(limit)) {
                let message = format!("the workloads ask for {asked} together, more than `{name}`");
                self.problems
                    .add(Code::ScalingLimit, found.span, message)
                    .help("raise the limit, or lower what workloads ask for");
            }
        }
        for decision in decisions {
            let most = limits.max_warm_per_function;
            let over =
                most.is_some_and(|most| decision.scaling.max_warm.is_some_and(|warm| warm > most));
            let live = limits.live_scaling_forbidden && decision.scaling.allow_live_scaling;
            if over || live {
                let what = if over {
                    "more than `max_warm_per_function`"
                } else {
                    "live scaling"
                };
                let message = format!("the workload `{}` asks for {what}", decision.key);
                self.problems
                    .add(Code::ScalingLimit, found.span, message)
                    .help("raise the limit, or lower what the workload asks for");
            }
        }
        limits
    }
}

/// What all workloads have from the file.
struct Base<'a> {
    tenant: &'a TenantId,
    isolation: Option<IsolationMode>,
    redactions: &'a BTreeSet<String>,
}

/// The first moment at which an acceptance does not count.
pub(crate) fn ends(text: &str) -> Option<Timestamp> {
    if let Ok(moment) = text.parse::<Timestamp>() {
        return Some(moment);
    }
    // jiff would take a time of day as well and drop it.
    if text.len() != "2027-01-31".len() {
        return None;
    }
    let day: Date = text.parse().ok()?;
    let next = day.tomorrow().ok()?;
    Some(next.to_zoned(TimeZone::UTC).ok()?.timestamp())
}
