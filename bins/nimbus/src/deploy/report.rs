//! What people read about a deployment: the difference to the one before, and the list.
//!
//! It turns the server's answer into text and must not ask for anything.

use serde_json::Value as Json;

use super::keys::when;
use crate::output::printable;

/// A deployment, or what one would change.
pub(super) fn deployed(answer: &Json) -> String {
    let mut out = String::new();
    let diff = &answer["diff"];
    for (name, one) in [
        ("functions", "function"),
        ("httpRoutes", "HTTP route"),
        ("crons", "cron"),
        ("indexes", "index"),
    ] {
        for (member, sign) in [("added", '+'), ("changed", '~'), ("removed", '-')] {
            for entry in diff[name][member].as_array().into_iter().flatten() {
                let text = printable(entry.as_str().unwrap_or_default());
                out.push_str(&format!("{sign} {one} {text}\n"));
            }
        }
    }
    for (member, what) in [
        ("schemaChanged", "the schema"),
        ("authChanged", "auth.config"),
    ] {
        if diff[member] == true {
            out.push_str(&format!("~ {what}\n"));
        }
    }
    let modules = &diff["modules"];
    let count = |member: &str| modules[member].as_array().map_or(0, Vec::len);
    let (added, changed, removed) = (count("added"), count("changed"), count("removed"));
    let code = match added + changed + removed {
        0 => "the code is the same".to_owned(),
        _ => format!("modules: {added} added, {changed} changed, {removed} removed"),
    };
    let deployment = &answer["deployment"];
    let end = match answer["dryRun"] == true {
        true => format!("{code}; nothing was deployed (--dry-run)\n"),
        false => format!(
            "{code}; deployed {} as generation {}\n",
            deployment["id"].as_str().unwrap_or_default(),
            deployment["generation"]
        ),
    };
    out.push_str(&end);
    out
}

/// Deployments, one a line.
pub(super) fn list(answer: &Json) -> String {
    let mut out = String::new();
    for (i, deployment) in answer["deployments"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let made = deployment["createdMs"]
            .as_i64()
            .map(when)
            .unwrap_or_default();
        let mark = if i == 0 { "*" } else { " " };
        let line = format!(
            "{mark} {}  generation {}  {made}  modules: {}  {}",
            deployment["id"].as_str().unwrap_or_default(),
            deployment["generation"],
            deployment["modules"].as_u64().unwrap_or_default(),
            printable(deployment["message"].as_str().unwrap_or_default())
        );
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_difference_is_told_line_by_line() {
        let answer = json!({
            "dryRun": false,
            "deployment": {"id": "d1", "generation": 4},
            "diff": {
                "functions": {"added": ["messages:send"], "changed": ["users:get"], "removed": ["old:\u{1b}[31m"]},
                "httpRoutes": {"added": ["GET /x"], "removed": []},
                "crons": {"added": [], "changed": [], "removed": []},
                "indexes": {"added": ["messages.by_room"], "removed": []},
                "modules": {"added": ["a.js"], "changed": [], "removed": ["b.js"]},
                "schemaChanged": true,
                "authChanged": false,
            },
        });
        let text = "+ function messages:send\n~ function users:get\n- function old:\\u{1b}[31m\n+ HTTP route GET /x\n\
                    + index messages.by_room\n~ the schema\nmodules: 1 added, 0 changed, 1 removed; deployed d1 as \
                    generation 4\n";
        assert_eq!(deployed(&answer), text);
        let nothing = json!({"dryRun": true, "deployment": null, "diff": {}});
        assert_eq!(
            deployed(&nothing),
            "the code is the same; nothing was deployed (--dry-run)\n"
        );
    }

    #[test]
    fn the_list_marks_the_one_that_runs() {
        let answer = json!({"deployments": [
            {"id": "d2", "generation": 2, "createdMs": 1_000, "modules": 3, "message": null},
            {"id": "d1", "generation": 1, "createdMs": 0, "modules": 2, "message": "first"},
        ]});
        let text = "* d2  generation 2  1970-01-01 00:00:01  modules: 3\n  d1  generation 1  1970-01-01 00:00:00  modules: 2  first\n";
        assert_eq!(list(&answer), text);
    }
}
