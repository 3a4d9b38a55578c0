//! Reads of a libSQL replica beside the SQLite provider, over HTTP. The primary is the tests' own, in this process.
//!
//! A read goes to the local replica once it is as new as the primary was a moment ago; what is measured includes
//! finding that out.

use anyhow::Result;
use nimbus_libsql_primary::{Options, Primary};
use serde_json::json;

use super::reads;
use crate::machine;
use crate::plan::Plan;
use crate::process::{Site, Start, flags};
use crate::report::{Bound, Line, Unit};

const ROW: &str = "replica";

pub(crate) fn run(plan: &Plan) -> Result<Vec<Line>> {
    let (local_site, replica_site) = (Site::new(&plan.dir)?, Site::new(&plan.dir)?);
    let primary = Primary::start(replica_site.path().join("primary"), Options::default())?;
    let local = Start {
        cpu: (machine::cpus() > 1).then_some(0),
        ..Start::default()
    };
    let replica = Start {
        storage: storage(&primary, &replica_site),
        ..local.clone()
    };
    let places = [(&local_site, &local), (&replica_site, &replica)];
    let both = reads::side_by_side(plan, "replica gets", places)?;
    let what = format!(
        "get by id over HTTP, 64 clients, {} documents, libSQL replica",
        both.documents
    );
    let [plain, replica] = both.per_cpu_second;
    Ok(vec![
        Line::new(ROW, what, Unit::PerCpuSecond, replica)
            .against("SQLite", Unit::PerCpuSecond, plain)
            .ratio_goal(Bound::AtLeast(1.0))
            .facts(
                json!({
                    "noise": both.noise,
                    "p50_ms": both.p50_ms[1].samples,
                    "sqlite_p50_ms": both.p50_ms[0].samples,
                }),
                both.noisy,
            ),
    ])
}

fn storage(primary: &Primary, site: &Site) -> Vec<String> {
    let cache = site.path().join("replicas").display().to_string();
    flags([
        ("--tenant-provider", "libsql-replica"),
        ("--libsql-url", &primary.url()),
        ("--libsql-admin-url", &primary.admin_url()),
        ("--libsql-replica-cache-dir", &cache),
    ])
}
