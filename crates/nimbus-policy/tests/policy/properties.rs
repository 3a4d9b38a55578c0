//! What must hold for every policy: ids do not depend on how a file is written, widening is seen as widening and hides
//! no advisory, and no request is allowed that a comparison did not tell.

use std::collections::BTreeSet;

use fastrand::Rng;
use jiff::Timestamp;
use nimbus_policy::{EgressProtocol, EgressRequest, Policy, ProveReport, Verdict, diff};
use proptest::prelude::*;

use crate::model::{HOSTS, METHODS, Model};

fn ids(policy: &Policy) -> Vec<String> {
    policy
        .decisions()
        .iter()
        .map(|decision| decision.id().to_string())
        .collect()
}

fn advisories(policy: &Policy) -> Vec<serde_json::Value> {
    let report = ProveReport::of(policy, Timestamp::UNIX_EPOCH);
    let report = serde_json::to_value(report).unwrap();
    report["advisories"].as_array().unwrap().clone()
}

/// What advisories are about: their ids without the digest of the grant.
fn subjects(policy: &Policy) -> BTreeSet<String> {
    let subject = |advisory: &serde_json::Value| {
        let id = advisory["id"].as_str().unwrap();
        id.rsplit_once(':').unwrap().0.to_owned()
    };
    advisories(policy).iter().map(subject).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn ids_do_not_depend_on_how_a_policy_is_written(seed: u64) {
        let mut rng = Rng::with_seed(seed);
        let model = Model::random(&mut rng);
        let (one, other) = (model.compile(&mut rng), model.compile(&mut rng));
        prop_assert_eq!(ids(&one), ids(&other));
        let ids = |policy: &Policy| -> Vec<String> {
            advisories(policy).iter().map(|advisory| advisory["id"].to_string()).collect()
        };
        prop_assert_eq!(ids(&one), ids(&other));
        prop_assert!(diff(&one, &other).is_empty());
        let unique: BTreeSet<String> = ids(&one).into_iter().collect();
        prop_assert_eq!(unique.len(), ids(&one).len());
    }

    #[test]
    fn a_policy_does_not_differ_from_itself(seed: u64) {
        let mut rng = Rng::with_seed(seed);
        let policy = Model::random(&mut rng).compile(&mut rng);
        let report = diff(&policy, &policy);
        prop_assert!(report.is_empty() && !report.widens());
    }

    #[test]
    fn a_widening_is_a_widening_and_back_again_it_is_none(seed: u64) {
        let mut rng = Rng::with_seed(seed);
        let model = Model::random(&mut rng);
        let Some((wide, way)) = model.widened(&mut rng) else { return Ok(()) };
        let (before, after) = (model.compile(&mut rng), wide.compile(&mut rng));
        prop_assert!(diff(&before, &after).widens(), "{}", way);
        prop_assert!(!diff(&after, &before).widens(), "{} backwards", way);
        prop_assert!(!diff(&after, &before).is_empty(), "{} backwards", way);
    }

    #[test]
    fn widening_a_grant_hides_no_advisory(seed: u64) {
        let mut rng = Rng::with_seed(seed);
        let model = Model::random(&mut rng);
        let Some((wide, way)) = model.widened(&mut rng) else { return Ok(()) };
        // Who declares code to be trusted, or puts it elsewhere, says that it may read its secrets.
        if way == "the tier" { return Ok(()) }
        let (before, after) = (model.compile(&mut rng), wide.compile(&mut rng));
        let (was, is) = (subjects(&before), subjects(&after));
        prop_assert!(was.is_subset(&is), "{}: {:?}", way, was.difference(&is));
    }

    #[test]
    fn decisions_that_differ_have_a_change_and_only_they(seed: u64) {
        let mut rng = Rng::with_seed(seed);
        let one = Model::random(&mut rng);
        let other = if rng.bool() { one.clone() } else { Model::random(&mut rng) };
        let (one, other) = (one.compile(&mut rng), other.compile(&mut rng));
        let report = diff(&one, &other);
        prop_assert_eq!(ids(&one) == ids(&other), report.is_empty());
        let told = serde_json::to_value(&report).unwrap();
        for workload in told["changed_workloads"].as_array().unwrap() {
            prop_assert!(!workload["changes"].as_array().unwrap().is_empty(), "{}", workload);
        }
    }

    #[test]
    fn no_request_is_allowed_anew_unless_the_diff_says_so(seed: u64) {
        let mut rng = Rng::with_seed(seed);
        let one = Model::random(&mut rng);
        let mut other = one.clone();
        // Rules of one workload against others: what else the workload may do stays.
        other.workloads[0].rules = Model::random(&mut rng).workloads[0].rules.clone();
        let (before, after) = (one.compile(&mut rng), other.compile(&mut rng));
        if diff(&before, &after).widens() { return Ok(()) }
        for (was, is) in before.decisions().iter().zip(after.decisions()) {
            for request in requests() {
                let internal = "10.0.0.1".parse().unwrap();
                let (was, is) = (was.egress().decide(&request), is.egress().decide(&request));
                if let Verdict::Allowed(_) = is {
                    prop_assert!(matches!(was, Verdict::Allowed(_)), "{:?}", request);
                }
                prop_assert!(!is.admits(internal) || was.admits(internal), "{:?}", request);
            }
        }
    }
}

/// Every request of a small world.
fn requests() -> Vec<EgressRequest<'static>> {
    let protocols = [
        EgressProtocol::Tcp,
        EgressProtocol::Http,
        EgressProtocol::Https,
        EgressProtocol::Wss,
    ];
    let mut all = Vec::new();
    for protocol in protocols {
        for host in HOSTS {
            for method in METHODS {
                for path in ["/", "/a", "/a/x", "/b", "/b/c", "/b/d/e", "/%c3%bc", "/ab"] {
                    let tcp = protocol == EgressProtocol::Tcp;
                    all.push(EgressRequest {
                        protocol,
                        host,
                        port: 443,
                        method: (!tcp).then_some(method),
                        path: (!tcp).then_some(path),
                    });
                }
            }
        }
    }
    all
}
