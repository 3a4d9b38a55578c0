//! The Postgres provider: durable inserts over HTTP against pgbench writing the same rows, pages by index against
//! the same statements by hand, and how long a commit on one server takes to a subscriber on another.
//!
//! Runs when a database is named (`--postgres`). Tables of its own are made in it and dropped.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nimbus_storage::control::ControlDb;
use nimbus_storage::core::{FieldPath, Object, TableName, Value};
use nimbus_storage::provider::postgres::{PostgresOptions, PostgresProvider};
use nimbus_storage::{
    Direction, Engine, EngineOptions, FieldSchema, FieldType, Filter, FilterOp, IndexSchema, Order,
    Provider, Query, TableSchema, Tenant,
};
use serde_json::json;
use sqlx::{Connection as _, PgConnection, Row as _};

use super::inserts;
use crate::documents;
use crate::machine::Watch;
use crate::plan::{CLIENTS, Plan};
use crate::process::{Site, Start, flags};
use crate::random::Rng;
use crate::report::{Bound, Line, Unit};
use crate::rounds;
use crate::stats::{Latencies, Spread};

const ROW: &str = "postgres";
/// Documents of one page.
const PAGE: u32 = 100;
/// Longest wait for one delivery.
const LIMIT: Duration = Duration::from_secs(30);

pub(crate) fn run(plan: &Plan) -> Result<Vec<Line>> {
    let Some(url) = &plan.postgres else {
        return Ok(Vec::new());
    };
    let base = Base { url, mark: mark() };
    let measured = all(plan, &base);
    base.clear()?;
    measured
}

fn all(plan: &Plan, base: &Base<'_>) -> Result<Vec<Line>> {
    let mut lines = durable_inserts(plan, base)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    lines.extend(runtime.block_on(pages(plan, base))?);
    lines.push(runtime.block_on(delay(plan, base))?);
    Ok(lines)
}

fn mark() -> String {
    format!(
        "{:x}",
        jiff::Timestamp::now().as_nanosecond() & 0xffff_ffff_ffff
    )
}

/// What is made in the database, by a name of this run.
struct Base<'a> {
    url: &'a str,
    mark: String,
}

impl Base<'_> {
    fn metadata(&self) -> String {
        format!("bench_m{}", self.mark)
    }

    fn prefix(&self) -> String {
        format!("bench_t{}_", self.mark)
    }

    fn psql(&self, sql: &str) -> Result<()> {
        let output = Command::new("psql")
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", sql, self.url])
            .output()
            .context("cannot start psql")?;
        if !output.status.success() {
            bail!("psql: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    fn clear(&self) -> Result<()> {
        self.psql(&format!(
            "DO $$ DECLARE s text; BEGIN FOR s IN SELECT nspname FROM pg_namespace WHERE \
             starts_with(nspname, '{}') OR nspname IN ('{}', 'bench_p{}') LOOP \
             EXECUTE format('DROP SCHEMA %I CASCADE', s); END LOOP; END $$",
            self.prefix(),
            self.metadata(),
            self.mark
        ))
    }

    /// An engine over the database, with a control database of its own.
    async fn engine(&self, join: Option<&Engines>) -> Result<Engines> {
        let dir = tempfile::tempdir()?;
        let control = Arc::new(ControlDb::open(dir.path())?);
        let mut options = PostgresOptions::new(self.url)?;
        options.metadata_schema = self.metadata();
        options.tenant_schema_prefix = self.prefix();
        let own = control.installation();
        options.join_installation = join.map(|first| first.installation);
        let installation = join.map_or(own, |first| first.installation);
        let provider = PostgresProvider::connect(options, own).await?;
        let provider: Arc<dyn Provider> = Arc::new(provider);
        Ok(Engines {
            engine: Engine::new(provider, EngineOptions::default()),
            installation,
            _dir: dir,
        })
    }
}

struct Engines {
    engine: Engine,
    installation: nimbus_storage::control::RandomId,
    _dir: tempfile::TempDir,
}

/// pgbench with a script that writes what one of our commits writes: a document and a log record of its size. With
/// `head`, also the row that every commit of a tenant changes, which orders them.
fn pgbench(plan: &Plan, base: &Base<'_>, head: bool) -> Result<f64> {
    let schema = format!("bench_p{}", base.mark);
    let mut rng = Rng::new(7);
    // As hexadecimal: pgbench takes a colon and a word in a text for a variable.
    let body = documents::stored(&mut rng, 1);
    let record = data_encoding::HEXLOWER.encode(format!("{body}{}", "r".repeat(400)).as_bytes());
    let body = data_encoding::HEXLOWER.encode(body.as_bytes());
    let move_head = match head {
        true => format!("UPDATE {schema}.head SET value = value + 1;\n"),
        false => String::new(),
    };
    let script = format!(
        "\\set a random(1, 9000000000000000000)\n\\set b random(1, 9000000000000000000)\nBEGIN;\n{move_head}\
         INSERT INTO {schema}.docs VALUES (int8send(:a) || int8send(:b), decode('{body}', 'hex'));\n\
         INSERT INTO {schema}.log VALUES (int8send(:b) || int8send(:a), decode('{record}', 'hex'));\nCOMMIT;\n"
    );
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), script)?;
    let seconds = plan.time.as_secs().max(1).to_string();
    let clients = CLIENTS.to_string();
    let output = Command::new("pgbench")
        .args([
            "-n", "-M", "prepared", "-c", &clients, "-j", "2", "-T", &seconds, "-f",
        ])
        .arg(file.path())
        .arg(base.url)
        .output()
        .context("cannot start pgbench, of Debian's package postgresql")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let rate = text.lines().find_map(|line| line.strip_prefix("tps = "));
    let rate = rate.and_then(|line| line.split_whitespace().next()?.parse().ok());
    rate.with_context(|| {
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        format!("pgbench told no rate: {text}{errors}")
    })
}

enum Leg {
    Ours(inserts::Inserts),
    Theirs(f64),
}

fn durable_inserts(plan: &Plan, base: &Base<'_>) -> Result<Vec<Line>> {
    let schema = format!("bench_p{}", base.mark);
    base.psql(&format!(
        "CREATE SCHEMA {schema}; CREATE TABLE {schema}.docs (key bytea PRIMARY KEY, value bytea NOT NULL); \
         CREATE TABLE {schema}.log (key bytea PRIMARY KEY, value bytea NOT NULL); \
         CREATE TABLE {schema}.head (value bigint NOT NULL); INSERT INTO {schema}.head VALUES (0)"
    ))?;
    let site = Site::new(&plan.dir)?;
    let how = Start {
        storage: flags([
            ("--tenant-provider", "postgres"),
            ("--postgres-url", base.url),
            ("--postgres-metadata-schema", &base.metadata()),
            ("--postgres-tenant-schema-prefix", &base.prefix()),
        ]),
        ..Start::default()
    };
    let server = inserts::start(plan, &site, &how)?;
    let leg = |round: u64, at: usize| {
        Ok(match at {
            0 => Leg::Ours(inserts::inserts(plan, &server, CLIENTS, round)?),
            1 => Leg::Theirs(pgbench(plan, base, false)?),
            _ => Leg::Theirs(pgbench(plan, base, true)?),
        })
    };
    let gather = |legs: Vec<Leg>| {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for leg in legs {
            match leg {
                Leg::Ours(inserts) => ours.push(inserts.per_second),
                Leg::Theirs(rate) => theirs.push(rate),
            }
        }
        [ours[0], theirs[0], theirs[1]]
    };
    // The database works for both sides, as a process that is not ours.
    let rounds = rounds::run(plan, ROW, &[server.pid()], 3, leg, gather)?;
    server.stop()?;
    // The next parts make an installation of their own.
    base.clear()?;
    let of = |at: usize| rounds.each(|round: &[f64; 3]| round[at]);
    let job = "durable inserts over HTTP, 64 clients, Postgres";
    Ok(vec![
        Line::new(ROW, job, Unit::PerSecond, of(0))
            .against(
                "pgbench -M prepared -c64, the same rows",
                Unit::PerSecond,
                of(1),
            )
            .ratio_goal(Bound::AtLeast(1.0)),
        Line::new(ROW, job, Unit::PerSecond, of(0)).against(
            "pgbench, with one row that orders commits",
            Unit::PerSecond,
            of(2),
        ),
    ])
}

async fn pages(plan: &Plan, base: &Base<'_>) -> Result<Vec<Line>> {
    let own = base.engine(None).await?;
    let tenant = people(&own.engine, "pages").await?;
    let count = plan.documents.min(20_000);
    let mut rng = Rng::new(11);
    fill(&tenant, count, &mut rng).await?;
    let owned = own.engine.provider().owned(tenant.id()).join("");
    let mut hand = Hand::open(base, owned.trim_start_matches("schema ")).await?;
    let (mut ours, mut theirs) = (Latencies::default(), Latencies::default());
    let watch = Watch::start(&[])?;
    for turn in 0..600 {
        let rank = rng.below(documents::RANKS / 2) as f64;
        if turn % 2 == 0 {
            let started = Instant::now();
            let page = tenant.page(&from_rank(rank)?, PAGE, None).await?;
            ours.push(started.elapsed());
            anyhow::ensure!(page.documents.len() == PAGE as usize, "a short page");
        } else {
            let start = hand.somewhere(&mut rng, count).await?;
            let started = Instant::now();
            hand.page(&start).await?;
            theirs.push(started.elapsed());
        }
    }
    let foreign = watch.foreign()?;
    drop(tenant);
    own.engine.close().await?;
    base.clear()?;
    let rate = |latencies: &mut Latencies| Spread::new([1_000.0 / latencies.percentile_ms(0.5)]);
    Ok(vec![
        Line::new(
            ROW,
            format!(
                "page of {PAGE} by index in the process, one client, {count} documents, Postgres"
            ),
            Unit::PerSecond,
            rate(&mut ours),
        )
        .against(
            "the same statements by hand",
            Unit::PerSecond,
            rate(&mut theirs),
        )
        .ratio_goal(Bound::AtLeast(0.6))
        // The database's own work counts as somebody else's.
        .facts(json!({ "foreign_cpus": foreign }), false),
    ])
}

/// A tenant with an indexed table.
async fn people(engine: &Engine, id: &str) -> Result<Tenant> {
    let id = id.parse()?;
    engine.create_tenant(&id).await?;
    let tenant = engine.tenant(&id).await?;
    let field = |name: &str| FieldSchema {
        name: name.to_owned(),
        field_type: FieldType::Any,
        required: false,
    };
    let index = IndexSchema {
        name: "by_rank".parse()?,
        fields: vec!["rank".parse()?],
        id: None,
        state: None,
    };
    let schema = TableSchema {
        table: documents::TABLE.parse()?,
        fields: vec![field("rank")],
        indexes: vec![index],
    };
    tenant.put_schema(schema).await?;
    Ok(tenant)
}

async fn fill(tenant: &Tenant, count: u64, rng: &mut Rng) -> Result<()> {
    let table: TableName = documents::TABLE.parse()?;
    for first in (0..count).step_by(256) {
        let rows: Vec<Object> = (first..count.min(first + 256))
            .map(|number| serde_json::from_str(&documents::object(rng, number)))
            .collect::<Result<_, _>>()?;
        let (table, rows) = (table.clone(), Arc::new(rows));
        let done = tenant.transact(move |tx| {
            let (table, rows) = (table.clone(), rows.clone());
            Box::pin(async move {
                for row in &*rows {
                    tx.insert(&table, row.clone()).await?;
                }
                Ok(())
            })
        });
        done.await?;
    }
    Ok(())
}

fn from_rank(rank: f64) -> Result<Query> {
    let field: FieldPath = "rank".parse()?;
    Ok(Query {
        filters: vec![Filter {
            field: field.clone(),
            op: FilterOp::Gte,
            value: Value::Float64(rank),
        }],
        order: Some(Order {
            field,
            direction: Direction::Forward,
        }),
        ..Query::table(documents::TABLE.parse()?)
    })
}

/// What the provider asks for a page, without Nimbus around it.
struct Hand {
    connection: PgConnection,
    begin: String,
    somewhere: String,
    index: String,
    docs: String,
    /// The table's number, which documents' keys begin with.
    number: Vec<u8>,
}

impl Hand {
    async fn open(base: &Base<'_>, schema: &str) -> Result<Hand> {
        let mut connection = PgConnection::connect(base.url).await?;
        let first = format!("SELECT key FROM \"{schema}\".docs ORDER BY key DESC LIMIT 1");
        let row = sqlx::query(sqlx::AssertSqlSafe(first))
            .fetch_one(&mut connection)
            .await?;
        let key: Vec<u8> = row.try_get(0)?;
        Ok(Hand {
            connection,
            begin: format!(
                "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT value FROM \"{schema}\".meta WHERE key = 'head'"
            ),
            somewhere: format!("SELECT key FROM \"{schema}\".index ORDER BY key OFFSET $1 LIMIT 1"),
            index: format!(
                "SELECT key, value FROM \"{schema}\".index WHERE key >= $1 ORDER BY key LIMIT {}",
                PAGE + 1
            ),
            docs: format!("SELECT key, value FROM \"{schema}\".docs WHERE key = ANY($1)"),
            number: key[..4].to_vec(),
        })
    }

    /// A key to begin at with a whole page behind it. Not measured.
    async fn somewhere(&mut self, rng: &mut Rng, count: u64) -> Result<Vec<u8>> {
        let offset = i64::try_from(rng.below(count / 2))?;
        let found = sqlx::query(sqlx::AssertSqlSafe(self.somewhere.clone()))
            .bind(offset)
            .fetch_one(&mut self.connection)
            .await?;
        Ok(found.try_get(0)?)
    }

    async fn page(&mut self, start: &[u8]) -> Result<()> {
        let connection = &mut self.connection;
        sqlx::raw_sql(sqlx::AssertSqlSafe(self.begin.clone()))
            .execute(&mut *connection)
            .await?;
        let entries = sqlx::query(sqlx::AssertSqlSafe(self.index.clone()))
            .bind(start)
            .fetch_all(&mut *connection)
            .await?;
        let keys: Vec<Vec<u8>> = entries
            .iter()
            .map(|row| {
                let key: Vec<u8> = row.get(0);
                [&self.number[..], &key[key.len() - 16..]].concat()
            })
            .collect();
        let found = sqlx::query(sqlx::AssertSqlSafe(self.docs.clone()))
            .bind(&keys)
            .fetch_all(&mut *connection)
            .await?;
        anyhow::ensure!(found.len() > PAGE as usize, "a short page by hand");
        sqlx::raw_sql("ROLLBACK").execute(connection).await?;
        Ok(())
    }
}

/// From the acknowledgement of a commit on one server to the result at a subscriber of another.
async fn delay(plan: &Plan, base: &Base<'_>) -> Result<Line> {
    let first = base.engine(None).await?;
    let second = base.engine(Some(&first)).await?;
    let writer = people(&first.engine, "news").await?;
    let reader = second.engine.tenant(writer.id()).await?;
    let table: TableName = documents::TABLE.parse()?;
    let mut live = reader.subscribe(Query::table(table.clone())).await?;
    live.next().await.context("no first result")?;
    let mut delays = Latencies::default();
    for number in 0..plan.commits.min(200) {
        let row: Object =
            serde_json::from_str(&documents::object(&mut Rng::new(5), number as u64))?;
        writer.insert(&table, row).await?;
        let started = Instant::now();
        loop {
            let next = tokio::time::timeout(LIMIT, live.next()).await?;
            let result = next.context("the subscription ended")?;
            let documents = result
                .documents
                .as_ref()
                .map_err(|e| anyhow::anyhow!("{e}"))?;
            if documents.len() > number {
                break;
            }
        }
        delays.push(started.elapsed());
    }
    let p99 = delays.percentile_ms(0.99);
    drop((live, reader, writer));
    first.engine.close().await?;
    second.engine.close().await?;
    Ok(Line::new(
        ROW,
        "a commit on one server to a subscriber of another, idle, p50 after the acknowledgement, Postgres",
        Unit::Milliseconds,
        Spread::new([delays.percentile_ms(0.5)]),
    )
    .goal(Bound::AtMost(50.0))
    .facts(json!({ "p99_ms": p99, "commits": delays.len() }), false))
}
