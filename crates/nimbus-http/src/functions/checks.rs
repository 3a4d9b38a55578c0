//! Whether what a bundle declares can work: validators, routes, crons and login (convex.md 4.5, 4.6).
//!
//! Pure: it reads an analysis. It must not know how the analysis was made, nor what a deployment was before.

use std::collections::{BTreeMap, BTreeSet};

use nimbus_core::validator::Validator;
use nimbus_runtime::{Analysis, FunctionSpec, UdfKind};
use serde::Deserialize;
use serde_json::Value as Json;

use super::push::{PushError, shown};

/// Methods that a route may have (convex.md 6.7).
const METHODS: [&str; 6] = ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"];
/// Days that a weekly cron may name.
const DAYS: [&str; 7] = [
    "sunday",
    "monday",
    "tuesday",
    "wednesday",
    "thursday",
    "friday",
    "saturday",
];
/// Crons of one deployment at most.
const MAX_CRONS: usize = 1_000;

/// Checks a whole bundle.
pub(crate) fn check(analysis: &Analysis) -> Result<(), PushError> {
    for (path, module) in &analysis.modules {
        for function in &module.functions {
            check_function(path, function)?;
        }
        if let Some(routes) = &module.http_routes {
            let mut seen = BTreeSet::new();
            for route in routes {
                check_route(&route.path, &route.method)?;
                if !seen.insert((&route.path, &route.method)) {
                    let text = format!(
                        "{path}: {} {} is routed twice",
                        route.method,
                        shown(&route.path)
                    );
                    return Err(PushError::new("InvalidHttpRoutes", text));
                }
            }
        }
        if let Some(crons) = &module.crons {
            check_crons(analysis, crons)?;
        }
    }
    analysis.auth.as_deref().map_or(Ok(()), check_auth)
}

fn check_function(path: &str, function: &FunctionSpec) -> Result<(), PushError> {
    let name = &function.name;
    if !is_identifier(name) {
        let text = format!(
            "{path}: `{}` is no name of a function; use letters, digits and `_`",
            shown(name)
        );
        return Err(PushError::new("InvalidFunctionName", text));
    }
    let wrong = |which: &str, why: String| {
        let text = format!(
            "the {which} validator of {} is wrong: {why}",
            identifier(path, name)
        );
        Err(PushError::new("InvalidValidator", text))
    };
    if let Some(args) = &function.args {
        match Validator::from_json_text(args) {
            Ok(found) if found.is_object() || found.is_any() => {}
            Ok(_) => return wrong("arguments", "it must be an object".into()),
            Err(error) => return wrong("arguments", error.to_string()),
        }
    }
    match function.returns.as_deref() {
        None | Some("null") => Ok(()),
        Some(returns) => match Validator::from_json_text(returns) {
            Ok(_) => Ok(()),
            Err(error) => wrong("result", error.to_string()),
        },
    }
}

/// Letters, digits and `_`, at most 64, not beginning with a digit, one character that is not `_`
/// (convex.md 2.2).
fn is_identifier(name: &str) -> bool {
    let within = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let begins = name.bytes().next().is_some_and(|b| !b.is_ascii_digit());
    begins && name.len() <= 64 && name.bytes().all(within) && name.bytes().any(|b| b != b'_')
}

/// How callers name a function: `dir/messages:list`.
pub(crate) fn identifier(path: &str, name: &str) -> String {
    format!("{}:{name}", path.strip_suffix(".js").unwrap_or(path))
}

fn check_route(path: &str, method: &str) -> Result<(), PushError> {
    let wrong = |why: &str| {
        let text = format!(
            "http.js: the route {} {} is wrong: {why}",
            shown(method),
            shown(path)
        );
        Err(PushError::new("InvalidHttpRoutes", text))
    };
    if !METHODS.contains(&method) {
        return wrong("its method is none of GET, POST, PUT, DELETE, OPTIONS and PATCH");
    }
    if !path.starts_with('/') {
        return wrong("its path does not begin with a slash");
    }
    if path == "/.files" || path.starts_with("/.files/") {
        return wrong("paths below /.files are reserved");
    }
    Ok(())
}

#[derive(Deserialize)]
struct Cron {
    name: String,
    args: Vec<Json>,
    schedule: Schedule,
}

/// When a cron runs (convex.md 4.5); times are UTC.
#[derive(Deserialize)]
#[serde(
    tag = "type",
    rename_all = "camelCase",
    rename_all_fields = "camelCase"
)]
enum Schedule {
    Interval {
        seconds: Option<f64>,
        minutes: Option<f64>,
        hours: Option<f64>,
    },
    Hourly {
        #[serde(rename = "minuteUTC")]
        minute: Option<f64>,
    },
    Daily {
        #[serde(rename = "hourUTC")]
        hour: f64,
        #[serde(rename = "minuteUTC")]
        minute: Option<f64>,
    },
    Weekly {
        day_of_week: String,
        #[serde(rename = "hourUTC")]
        hour: f64,
        #[serde(rename = "minuteUTC")]
        minute: Option<f64>,
    },
    Monthly {
        day: f64,
        #[serde(rename = "hourUTC")]
        hour: f64,
        #[serde(rename = "minuteUTC")]
        minute: Option<f64>,
    },
    Cron {
        cron: String,
    },
}

impl Schedule {
    /// What is wrong with it, if something is.
    fn fault(&self) -> Option<String> {
        let within = |what: &str, value: f64, least: f64, most: f64| {
            let fits = value.fract() == 0.0 && (least..=most).contains(&value);
            (!fits).then(|| format!("{what} must be a whole number from {least} to {most}"))
        };
        let minute = |minute: &Option<f64>| minute.and_then(|m| within("minuteUTC", m, 0.0, 59.0));
        let hour = |hour: &f64| within("hourUTC", *hour, 0.0, 23.0);
        match self {
            Schedule::Interval {
                seconds,
                minutes,
                hours,
            } => {
                let given: Vec<f64> = [seconds, minutes, hours]
                    .into_iter()
                    .copied()
                    .flatten()
                    .collect();
                match given.as_slice() {
                    [one] => within("an interval", *one, 1.0, 1e9),
                    _ => Some("an interval has one of seconds, minutes and hours".into()),
                }
            }
            Schedule::Hourly { minute: m } => minute(m),
            Schedule::Daily { hour: h, minute: m } => hour(h).or_else(|| minute(m)),
            Schedule::Weekly {
                day_of_week,
                hour: h,
                minute: m,
            } => {
                let known = DAYS.contains(&day_of_week.as_str());
                (!known)
                    .then(|| "dayOfWeek must be the English name of a day, in lower case".into())
                    .or_else(|| hour(h).or_else(|| minute(m)))
            }
            Schedule::Monthly {
                day,
                hour: h,
                minute: m,
            } => within("day", *day, 1.0, 31.0).or_else(|| hour(h).or_else(|| minute(m))),
            Schedule::Cron { cron } => {
                let plausible = |b: u8| b.is_ascii_alphanumeric() || b"*,-/?#".contains(&b);
                let fields: Vec<&str> = cron.split_whitespace().collect();
                let fits =
                    fields.len() == 5 && fields.iter().all(|field| field.bytes().all(plausible));
                (!fits).then(|| {
                    "a cron string has the five fields minute, hour, day, month and weekday".into()
                })
            }
        }
    }
}

fn check_crons(analysis: &Analysis, crons: &str) -> Result<(), PushError> {
    let wrong = |text: String| Err(PushError::new("InvalidCron", text));
    let crons: BTreeMap<String, Json> = match serde_json::from_str(crons) {
        Ok(crons) => crons,
        Err(error) => return wrong(format!("crons.js does not export crons: {error}")),
    };
    if crons.len() > MAX_CRONS {
        return wrong(format!(
            "a deployment has at most {MAX_CRONS} crons, and this one has {}",
            crons.len()
        ));
    }
    for (name, cron) in crons {
        let name = shown(&name);
        let cron: Cron = match serde_json::from_value(cron) {
            Ok(cron) => cron,
            Err(error) => return wrong(format!("the cron `{name}` is malformed: {error}")),
        };
        if let Some(fault) = cron.schedule.fault() {
            return wrong(format!(
                "the cron `{name}` has a schedule that cannot be kept: {fault}"
            ));
        }
        if !matches!(cron.args.as_slice(), [Json::Object(_)]) {
            return wrong(format!(
                "the cron `{name}` must give its function one object of arguments"
            ));
        }
        let target = shown(&cron.name);
        match find(analysis, &cron.name).map(|function| function.kind) {
            Some(UdfKind::Mutation | UdfKind::Action) => {}
            Some(_) => {
                return wrong(format!(
                    "the cron `{name}` calls {target}, which is neither a mutation nor an action"
                ));
            }
            None => {
                return wrong(format!(
                    "the cron `{name}` calls {target}, which does not exist"
                ));
            }
        }
    }
    Ok(())
}

/// The function that `name` (`dir/module:function`) stands for.
fn find<'a>(analysis: &'a Analysis, name: &str) -> Option<&'a FunctionSpec> {
    let (module, function) = name.split_once(':').unwrap_or((name, "default"));
    let module = module.strip_suffix(".js").unwrap_or(module);
    let module = analysis.modules.get(&format!("{module}.js"))?;
    module.functions.iter().find(|found| found.name == function)
}

#[derive(Deserialize)]
struct AuthConfig {
    providers: Vec<Json>,
}

/// A provider of identities (convex.md 4.6).
#[derive(Deserialize)]
#[serde(untagged, rename_all_fields = "camelCase")]
enum Provider {
    CustomJwt {
        #[serde(rename = "type")]
        kind: CustomJwt,
        issuer: String,
        jwks: String,
        algorithm: Algorithm,
        #[serde(default, rename = "applicationID")]
        application_id: Option<String>,
    },
    Oidc {
        domain: String,
        #[serde(rename = "applicationID")]
        application_id: String,
    },
}

#[derive(Deserialize)]
enum CustomJwt {
    #[serde(rename = "customJwt")]
    CustomJwt,
}

#[derive(Deserialize)]
enum Algorithm {
    #[serde(rename = "RS256")]
    Rs256,
    #[serde(rename = "ES256")]
    Es256,
}

fn check_auth(auth: &str) -> Result<(), PushError> {
    let wrong = |text: String| Err(PushError::new("AuthConfigNotMatchingSchemaError", text));
    let config: AuthConfig = match serde_json::from_str(auth) {
        Ok(config) => config,
        Err(_) => {
            return wrong("auth.config must export an object with the array `providers`".into());
        }
    };
    for (i, provider) in config.providers.into_iter().enumerate() {
        let filled = match serde_json::from_value(provider) {
            Ok(Provider::Oidc {
                domain,
                application_id,
            }) => !domain.is_empty() && !application_id.is_empty(),
            Ok(Provider::CustomJwt {
                kind: CustomJwt::CustomJwt,
                issuer,
                jwks,
                algorithm,
                application_id,
            }) => {
                let (Algorithm::Rs256 | Algorithm::Es256) = algorithm;
                !issuer.is_empty()
                    && !jwks.is_empty()
                    && application_id.is_none_or(|id| !id.is_empty())
            }
            Err(_) => false,
        };
        if !filled {
            return wrong(format!(
                "providers[{i}] of auth.config is neither {{domain, applicationID}} nor {{type: \"customJwt\", issuer, \
                 jwks, algorithm: \"RS256\" or \"ES256\", applicationID?}}, each of them a text that is not empty"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use nimbus_runtime::{HttpRoute, ModuleAnalysis, Visibility};
    use serde_json::json;

    use super::*;

    fn function(name: &str, kind: UdfKind) -> FunctionSpec {
        FunctionSpec {
            name: name.into(),
            kind,
            visibility: Some(Visibility::Internal),
            args: Some(r#"{"type":"any"}"#.into()),
            returns: Some("null".into()),
            position: None,
        }
    }

    fn analysis(functions: Vec<FunctionSpec>) -> Analysis {
        let mut analysis = Analysis::default();
        let module = ModuleAnalysis {
            functions,
            ..ModuleAnalysis::default()
        };
        analysis.modules.insert("dir/a.js".into(), module);
        analysis
    }

    fn code(analysis: &Analysis) -> Option<String> {
        check(analysis).err().map(|error| error.code)
    }

    fn with_crons(crons: Json) -> Option<String> {
        let mut analysis = analysis(vec![
            function("m", UdfKind::Mutation),
            function("act", UdfKind::Action),
            function("q", UdfKind::Query),
        ]);
        let module = ModuleAnalysis {
            crons: Some(crons.to_string()),
            ..ModuleAnalysis::default()
        };
        analysis.modules.insert("crons.js".into(), module);
        code(&analysis)
    }

    #[test]
    fn functions_have_names_and_validators() {
        assert_eq!(
            code(&analysis(vec![
                function("list", UdfKind::Query),
                function("default", UdfKind::Query)
            ])),
            None
        );
        for name in ["", "a-b", "1a", "_", "a b", "é", "a:b", &"a".repeat(65)] {
            assert_eq!(
                code(&analysis(vec![function(name, UdfKind::Query)])).as_deref(),
                Some("InvalidFunctionName"),
                "{name}"
            );
        }
        for (args, returns) in [
            (r#"{"type":"string"}"#, "null"),
            ("{", "null"),
            (r#"{"type":"moon"}"#, "null"),
            (r#"{"type":"any"}"#, r#"{"type":"moon"}"#),
            (r#"{"type":"any"}"#, ""),
        ] {
            let mut bad = function("f", UdfKind::Query);
            (bad.args, bad.returns) = (Some(args.into()), Some(returns.into()));
            assert_eq!(
                code(&analysis(vec![bad])).as_deref(),
                Some("InvalidValidator"),
                "{args} {returns}"
            );
        }
    }

    #[test]
    fn crons_call_what_exists_at_times_that_exist() {
        let cron = |name: &str, args: Json, schedule: Json| json!({"tick": {"name": name, "args": args, "schedule": schedule}});
        let every = json!({"type": "interval", "hours": 12});
        for schedule in [
            every.clone(),
            json!({"type": "hourly", "minuteUTC": 5}),
            json!({"type": "daily", "hourUTC": 23, "minuteUTC": 59}),
            json!({"type": "weekly", "dayOfWeek": "monday", "hourUTC": 0, "minuteUTC": 0}),
            json!({"type": "monthly", "day": 31, "hourUTC": 1, "minuteUTC": 2}),
            json!({"type": "cron", "cron": "*/5 0 1-7 JAN MON"}),
        ] {
            assert_eq!(
                with_crons(cron("dir/a:m", json!([{}]), schedule.clone())),
                None,
                "{schedule}"
            );
        }
        assert_eq!(
            with_crons(cron("dir/a:act", json!([{"n": 1}]), every.clone())),
            None
        );
        for bad in [
            json!([]),
            cron("dir/a:q", json!([{}]), every.clone()),
            cron("dir/a:none", json!([{}]), every.clone()),
            cron("none:m", json!([{}]), every.clone()),
            cron("dir/a", json!([{}]), every.clone()),
            cron("dir/a:m", json!([]), every.clone()),
            cron("dir/a:m", json!([1]), every.clone()),
            cron(
                "dir/a:m",
                json!([{}]),
                json!({"type": "interval", "hours": 0}),
            ),
            cron(
                "dir/a:m",
                json!([{}]),
                json!({"type": "interval", "hours": 1, "minutes": 1}),
            ),
            cron(
                "dir/a:m",
                json!([{}]),
                json!({"type": "interval", "seconds": 1.5}),
            ),
            cron(
                "dir/a:m",
                json!([{}]),
                json!({"type": "hourly", "minuteUTC": 60}),
            ),
            cron(
                "dir/a:m",
                json!([{}]),
                json!({"type": "daily", "hourUTC": 24}),
            ),
            cron(
                "dir/a:m",
                json!([{}]),
                json!({"type": "weekly", "dayOfWeek": "Monday", "hourUTC": 1}),
            ),
            cron(
                "dir/a:m",
                json!([{}]),
                json!({"type": "monthly", "day": 0, "hourUTC": 1}),
            ),
            cron(
                "dir/a:m",
                json!([{}]),
                json!({"type": "cron", "cron": "* * * *"}),
            ),
            cron(
                "dir/a:m",
                json!([{}]),
                json!({"type": "cron", "cron": "* * * * ;"}),
            ),
            cron("dir/a:m", json!([{}]), json!({"type": "yearly"})),
        ] {
            assert_eq!(
                with_crons(bad.clone()).as_deref(),
                Some("InvalidCron"),
                "{bad}"
            );
        }
    }

    #[test]
    fn routes_have_a_method_and_a_path_and_are_there_once() {
        let routes = |list: &[(&str, &str)]| {
            let mut analysis = Analysis::default();
            let route = |(method, path): &(&str, &str)| HttpRoute {
                path: (*path).into(),
                method: (*method).into(),
            };
            let http_routes = Some(list.iter().map(route).collect());
            analysis.modules.insert(
                "http.js".into(),
                ModuleAnalysis {
                    http_routes,
                    ..ModuleAnalysis::default()
                },
            );
            code(&analysis)
        };
        assert_eq!(
            routes(&[("GET", "/a"), ("POST", "/a"), ("GET", "/a/*")]),
            None
        );
        let bad: [&[(&str, &str)]; 4] = [
            &[("HEAD", "/a")],
            &[("GET", "a")],
            &[("GET", "/.files/x")],
            &[("GET", "/a"), ("GET", "/a")],
        ];
        for list in bad {
            assert_eq!(
                routes(list).as_deref(),
                Some("InvalidHttpRoutes"),
                "{list:?}"
            );
        }
    }

    #[test]
    fn providers_have_one_of_two_forms() {
        let auth = |auth: Json| {
            code(&Analysis {
                auth: Some(auth.to_string()),
                ..Analysis::default()
            })
        };
        let oidc = json!({"domain": "https://x.example", "applicationID": "chat"});
        let jwt =
            json!({"type": "customJwt", "issuer": "i", "jwks": "data:,", "algorithm": "ES256"});
        assert_eq!(auth(json!({"providers": []})), None);
        assert_eq!(auth(json!({"providers": [oidc, jwt]})), None);
        for bad in [
            json!(null),
            json!([]),
            json!({}),
            json!({"providers": {}}),
            json!({"providers": [{}]}),
            json!({"providers": [{"domain": "https://x.example"}]}),
            json!({"providers": [{"domain": "", "applicationID": "a"}]}),
            json!({"providers": [{"domain": 7, "applicationID": "a"}]}),
            json!({"providers": [{"type": "customJwt", "issuer": "i", "jwks": "j", "algorithm": "HS256"}]}),
            json!({"providers": [{"type": "other", "issuer": "i", "jwks": "j", "algorithm": "ES256"}]}),
        ] {
            assert_eq!(
                auth(bad.clone()).as_deref(),
                Some("AuthConfigNotMatchingSchemaError"),
                "{bad}"
            );
        }
    }
}
