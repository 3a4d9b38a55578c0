//! What governs one tenant, and the questions that are asked of it. Default closed: what no decision grants is refused.
//!
//! The answers come from compiled decisions, or from the server's flags for a tenant that no policy governs; this room
//! must not know where policies are kept.

use std::sync::Arc;
use std::time::Duration;

use nimbus_policy::{
    DEPLOY_TASK, Decision, Egress, EgressProtocol, Policy, Reach, Surface, TenantQuotas, Verdict,
    WorkloadKind,
};
use nimbus_runtime::{CallBounds, EgressGrants, EgressLeave, EgressRequest};

use crate::functions::path::FunctionPath;

/// What a developer is told to do about a refusal.
const ADVICE: &str = "An operator may change the policy of the tenant.";

/// What governs a tenant at one moment. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Authority(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    stamp: u64,
    governing: Governing,
}

#[derive(Debug)]
enum Governing {
    /// No policy: the server's flags alone.
    Flags,
    /// A policy should be there and is not, or cannot be read: nothing is granted.
    Nothing,
    Policy(Box<Policy>),
}

/// The decision about a workload.
#[derive(Clone, Copy)]
enum Granted<'a> {
    Flags,
    Nothing,
    Decision(&'a Decision),
}

impl Authority {
    /// That of the flags.
    pub(crate) fn flags() -> Authority {
        Authority::new(0, Governing::Flags)
    }

    /// None at all.
    pub(crate) fn nothing(stamp: u64) -> Authority {
        Authority::new(stamp, Governing::Nothing)
    }

    /// That of a policy.
    pub(crate) fn of(stamp: u64, policy: Policy) -> Authority {
        Authority::new(stamp, Governing::Policy(Box::new(policy)))
    }

    fn new(stamp: u64, governing: Governing) -> Authority {
        Authority(Arc::new(Inner { stamp, governing }))
    }

    /// Another number for every policy and every version of one; 0 for the flags.
    pub(crate) fn stamp(&self) -> u64 {
        self.0.stamp
    }

    /// The policy, if one governs.
    pub(crate) fn policy(&self) -> Option<&Policy> {
        match &self.0.governing {
            Governing::Policy(policy) => Some(policy),
            Governing::Flags | Governing::Nothing => None,
        }
    }

    /// Whether the tenant takes requests this way.
    pub(crate) fn exposes(&self, surface: Surface) -> bool {
        match &self.0.governing {
            Governing::Flags => true,
            Governing::Nothing => false,
            Governing::Policy(policy) => policy.exposes(surface),
        }
    }

    /// What the whole tenant may take up.
    pub(crate) fn quotas(&self) -> TenantQuotas {
        self.policy().map(Policy::quotas).unwrap_or_default()
    }

    fn granted(&self, kind: WorkloadKind, name: &str) -> Granted<'_> {
        match &self.0.governing {
            Governing::Flags => Granted::Flags,
            Governing::Nothing => Granted::Nothing,
            Governing::Policy(policy) => policy
                .decision(kind, name)
                .map_or(Granted::Nothing, Granted::Decision),
        }
    }

    fn function(&self, path: &FunctionPath) -> Granted<'_> {
        self.granted(WorkloadKind::RuntimeFunction, &path.to_string())
    }

    /// Why a function must not run in this server; `None` if it may. One without a decision may run, without any
    /// authority beyond the tenant's own data.
    pub(crate) fn kept_out(&self, path: &FunctionPath) -> Option<String> {
        match self.function(path) {
            Granted::Decision(decision) => decision.kept_out(),
            Granted::Flags | Granted::Nothing => None,
        }
    }

    /// What one run of a function may take up.
    pub(crate) fn bounds(&self, path: &FunctionPath) -> CallBounds {
        let Granted::Decision(decision) = self.function(path) else {
            return CallBounds::default();
        };
        let limits = decision.call_limits();
        CallBounds {
            timeout: limits.timeout_ms.map(Duration::from_millis),
            user_cpu: limits.user_cpu_ms.map(Duration::from_millis),
            log_bytes: limits.log_bytes,
        }
    }

    /// Whether a function may read an environment variable that users set.
    pub(crate) fn may_read(&self, path: &FunctionPath, variable: &str) -> bool {
        reads(self.function(path), variable)
    }

    /// Whether modules may, while a deployment analyses them.
    pub(crate) fn deploy_may_read(&self, variable: &str) -> bool {
        reads(
            self.granted(WorkloadKind::SystemTask, DEPLOY_TASK),
            variable,
        )
    }

    /// The answer to a request that a function wants to send, and the reason for the log if it is refused.
    pub(crate) fn leave(
        &self,
        path: &FunctionPath,
        request: &EgressRequest,
        flags: &EgressGrants,
    ) -> (EgressLeave, Option<&'static str>) {
        let none = Egress::default();
        let egress = match self.function(path) {
            Granted::Flags => {
                let leave = flags.leave(request);
                let refused = matches!(leave, EgressLeave::Denied { .. });
                return (leave, refused.then_some("address_not_public"));
            }
            Granted::Nothing => &none,
            Granted::Decision(decision) => decision.egress(),
        };
        let asked = nimbus_policy::EgressRequest {
            protocol: match request.scheme.as_str() {
                "https" => EgressProtocol::Https,
                _ => EgressProtocol::Http,
            },
            host: &request.host,
            port: request.port,
            method: Some(&request.method),
            path: Some(&request.path),
        };
        match egress.decide(&asked) {
            Verdict::Denied(denied) => {
                let why = format!(
                    "the policy of the tenant does not let `{path}` do this ({}). {ADVICE}",
                    denied.reason()
                );
                (EgressLeave::Denied { why }, Some(denied.reason()))
            }
            // A literal address is the one that was granted, whether it is public or not.
            allowed => {
                let internal = allowed.reach() != Some(Reach::Public);
                let advice = ADVICE.to_owned();
                (EgressLeave::Granted { internal, advice }, None)
            }
        }
    }
}

fn reads(granted: Granted<'_>, variable: &str) -> bool {
    match granted {
        Granted::Flags => true,
        Granted::Nothing => false,
        Granted::Decision(decision) => decision.may_read_secret(variable),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use nimbus_policy::{Source, compile};

    use super::*;

    const POLICY: &str = "
schema_version: 1
tenant: acme
workloads:
- kind: http_request
  name: convex_http
- kind: runtime_function
  name: orders:notify
  network:
    egress:
      allow:
      - {name: partner, protocol: https, host: api.example, port: 443, methods: [POST], path_prefixes: [/v1]}
      - {name: inner, protocol: http, host: db.internal, port: 80, methods: [GET], path_prefixes: [/x], allow_internal_ips: true}
  runtime: {tier: in_process_trusted_only}
  secrets: {handles: [KEY]}
  quotas: {function_call: {timeout_ms: 5, log_bytes: 0}}
- kind: runtime_function
  name: orders:render
  runtime: {tier: microvm_service}
- kind: system_task
  name: deploy
  secrets: {handles: [ISSUER]}
";

    fn policy() -> Authority {
        Authority::of(7, compile(&Source::new("p", POLICY.into())).unwrap())
    }

    fn request(url: &str, method: &str) -> EgressRequest {
        let url: http::Uri = url.parse().unwrap();
        let scheme = url.scheme_str().unwrap().to_owned();
        EgressRequest {
            host: url.host().unwrap().to_owned(),
            port: url
                .port_u16()
                .unwrap_or(if scheme == "https" { 443 } else { 80 }),
            method: method.to_owned(),
            path: url.path().to_owned(),
            scheme,
        }
    }

    #[test]
    fn a_function_has_what_its_decision_grants_and_another_has_nothing() {
        let (policy, flags) = (policy(), EgressGrants::default());
        let (notify, other) = (
            "orders:notify".parse().unwrap(),
            "orders:other".parse().unwrap(),
        );
        let leave = |path: &FunctionPath, url: &str, method: &str| match policy.leave(
            path,
            &request(url, method),
            &flags,
        ) {
            (EgressLeave::Granted { internal, .. }, None) => Ok(internal),
            (EgressLeave::Denied { why }, Some(reason)) => {
                assert!(why.contains(reason) && why.contains("policy"), "{why}");
                Err(reason)
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(
            leave(&notify, "https://api.example/v1/a", "POST"),
            Ok(false)
        );
        assert_eq!(leave(&notify, "http://db.internal/x", "GET"), Ok(true));
        for (path, url, method, reason) in [
            (
                &notify,
                "https://api.example/v1/a",
                "GET",
                "method_not_allowed",
            ),
            (
                &notify,
                "https://api.example/v2",
                "POST",
                "path_not_allowed",
            ),
            (
                &notify,
                "http://api.example/v1",
                "POST",
                "port_or_protocol_not_allowed",
            ),
            (
                &notify,
                "https://other.example/v1",
                "POST",
                "host_not_allowed",
            ),
            (
                &other,
                "https://api.example/v1/a",
                "POST",
                "host_not_allowed",
            ),
        ] {
            assert_eq!(leave(path, url, method), Err(reason), "{url}");
        }
        assert!(policy.may_read(&notify, "KEY") && !policy.may_read(&other, "KEY"));
        assert!(!policy.may_read(&notify, "ISSUER") && policy.deploy_may_read("ISSUER"));
        assert!(!policy.deploy_may_read("KEY"));
        assert_eq!(
            policy.bounds(&notify).timeout,
            Some(Duration::from_millis(5))
        );
        assert_eq!(policy.bounds(&notify).log_bytes, Some(0));
        assert_eq!(policy.bounds(&other), CallBounds::default());
        let render = "orders:render".parse().unwrap();
        assert!(
            policy
                .kept_out(&render)
                .unwrap()
                .contains("microvm_service")
        );
        assert_eq!(policy.kept_out(&notify), None);
        assert!(policy.exposes(Surface::ConvexHttp) && !policy.exposes(Surface::NativeApi));
    }

    #[test]
    fn nothing_grants_nothing_and_the_flags_what_they_say() {
        let path = "m:f".parse().unwrap();
        let flags = EgressGrants {
            hosts: vec!["10.0.0.1".parse().unwrap()],
        };
        let (nothing, open) = (Authority::nothing(3), Authority::flags());
        for (url, by_flags) in [
            ("https://example.org/", true),
            ("http://10.0.0.1/", true),
            ("http://10.0.0.2/", false),
        ] {
            let request = request(url, "GET");
            let granted =
                |authority: &Authority| authority.leave(&path, &request, &flags).1.is_none();
            assert_eq!(
                (granted(&nothing), granted(&open)),
                (false, by_flags),
                "{url}"
            );
        }
        for surface in Surface::ALL {
            assert!(open.exposes(surface) && !nothing.exposes(surface));
        }
        assert!(open.may_read(&path, "X") && !nothing.may_read(&path, "X"));
        assert!(open.deploy_may_read("X") && !nothing.deploy_may_read("X"));
        assert_eq!(nothing.kept_out(&path), None);
    }
}
