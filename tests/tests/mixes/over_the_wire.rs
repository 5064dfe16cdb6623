//! The same mixes as a recording: the simulator plays them as TiDB, PD and TiKV over the network, through two pumps, the
//! drainer, Kafka and `apply-mysql` into MariaDB. Transactions begin before the schema changes that they span.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use e2e::harness::mariadb::MariaDb;
use e2e::harness::process::PATIENCE;
use e2e::harness::site::{Site, Speed};
use e2e::recording::Recording;
use flate2::Compression;
use flate2::write::GzEncoder;
use mysql_async::prelude::Queryable as _;
use proptest::strategy::{Strategy as _, ValueTree as _};
use proptest::test_runner::TestRunner;
use prost::Message as _;
use schemas::binlog::{Binlog, BinlogType};
use serde_json::json;
use tidb::ts::Tso;

use crate::downstream::{NamedRow, Shown};
use crate::steps::Step;
use crate::upstream::{Event, Upstream};

const PUMPS: usize = 2;
/// When the mixes happen, by PD's clock; a step of theirs is a millisecond.
const BEGIN: u64 = 1_790_000_000_000;

fn at(step: u64, logical: u64) -> Tso {
    Tso::from_parts(BEGIN + step, logical)
}

/// What one pump receives, by the time it does.
#[derive(Default)]
struct Received(Vec<(Tso, Vec<u8>)>);

impl Received {
    fn write(mut self, file: &Path) -> Result<()> {
        self.0.sort();
        let mut out = GzEncoder::new(File::create(file)?, Compression::fast());
        for (at, payload) in self.0 {
            out.write_all(&(at.physical_ms() * 1_000_000).to_be_bytes())?;
            out.write_all(&u32::try_from(payload.len())?.to_be_bytes())?;
            out.write_all(&payload)?;
        }
        Ok(out.finish()?.flush()?)
    }
}

/// Writes the events down as if pumps had received them. Returns the last commit_ts.
fn record(folder: &Path, events: Vec<Event>) -> Result<u64> {
    let mut pumps: [Received; PUMPS] = Default::default();
    let mut jobs = Vec::new();
    let mut last = Tso::ZERO;
    for (index, event) in (1_u64..).zip(events) {
        let (step, value, job) = match event {
            Event::Transaction(transaction) => (transaction.commit_ts.get(), transaction.payload, None),
            Event::Ddl { job, commit_ts, .. } => (commit_ts.get(), Default::default(), Some(job)),
            Event::Restart => continue,
        };
        // A transaction begins up to six commits before its own; a schema change is quick.
        let earlier = if job.is_some() { 1 } else { 1 + 2 * (index * 5 % 7) };
        let (start_ts, commit_ts) = (at(step.saturating_sub(earlier), index), at(step, 0));
        let mut prewrite = Binlog {
            tp: Some(BinlogType::Prewrite.into()),
            start_ts: Some(start_ts.to_i64()),
            commit_ts: Some(0),
            prewrite_key: Some(format!("key of {index}").into()),
            prewrite_value: Some(value),
            ddl_query: None,
            ddl_job_id: Some(0),
            ddl_schema_state: Some(0),
        };
        if let Some(job) = job {
            // Nothing is left of what was dropped, everything else ends public.
            let state = if job.query.contains("DROP") { 0 } else { 5 };
            prewrite.ddl_query = Some(job.query.clone().into());
            prewrite.ddl_job_id = Some(job.id);
            prewrite.ddl_schema_state = Some(state);
            let mut job = serde_json::to_value(&job)?;
            job["binlog"]["FinishedTS"] = json!(commit_ts.get());
            jobs.insert(0, job);
        }
        let commit = Binlog {
            tp: Some(BinlogType::Commit.into()),
            commit_ts: Some(commit_ts.to_i64()),
            prewrite_value: None,
            ..prewrite.clone()
        };
        let pump = &mut pumps[index as usize % PUMPS].0;
        pump.push((start_ts, prewrite.encode_to_vec()));
        pump.push((commit_ts, commit.encode_to_vec()));
        last = last.max(commit_ts);
    }
    for (number, pump) in (1..).zip(pumps) {
        pump.write(&folder.join(format!("pump-{number}.rec.gz")))?;
    }
    std::fs::write(folder.join("ddl-history.json"), serde_json::to_vec(&jobs)?)?;
    let corpus =
        json!({"note": "a generated mix", "checkpoints": [{"label": "end", "commit_ts": last.get()}]});
    std::fs::write(folder.join("corpus.json"), serde_json::to_vec(&corpus)?)?;
    Ok(last.get())
}

async fn shown(mariadb: &MariaDb) -> Result<Shown> {
    let mut session = mariadb.connect().await?;
    let mut shown = Shown::new();
    for table in session.query::<String, _>("SHOW TABLES FROM `d`").await? {
        let rows: Vec<mysql_async::Row> = session.query(format!("SELECT * FROM `d`.`{table}`")).await?;
        let named = |row: mysql_async::Row| -> NamedRow {
            let names: Vec<_> =
                row.columns_ref().iter().map(|column| column.name_str().into_owned()).collect();
            let number = |place: usize| {
                let text: Option<String> = row.get(place).unwrap();
                text.map(|text| text.trim_end().parse().unwrap())
            };
            (0..names.len()).map(|place| (names[place].clone(), number(place))).collect()
        };
        let mut rows: Vec<_> = rows.into_iter().map(named).collect();
        rows.sort();
        shown.insert(table, rows);
    }
    session.disconnect().await?;
    Ok(shown)
}

async fn run(name: &str, steps: &[Step]) -> Result<()> {
    let mut upstream = Upstream::default();
    upstream.keys_hold = true;
    let mut events: Vec<Event> = steps.iter().flat_map(|step| upstream.step(step)).collect();
    events.extend(upstream.settle());
    let spans = events.len();
    ensure!(spans > 100, "{spans} events are hardly a mix");
    let folder = tempfile::tempdir()?;
    let end = record(folder.path(), events)?.to_string();
    let recording = Recording::open(folder.path().to_str().context("a path in UTF-8")?)?;

    // Processes end before their site does.
    let site = Site::new(name, &recording).await?;
    let _simulator = site.start_simulator(Speed::Max).await?;
    let mut pumps = Vec::new();
    for number in 0..site.pump_count() {
        let service = site.pump(number, "")?;
        let mut process = service.program.start()?;
        service.await_ready(&mut process).await?;
        pumps.push(process);
    }
    let drainer = site.drainer("")?.start().await?;
    let mut apply = site.apply()?.with(&["--until-commit-ts", &end]).program.start()?;
    let status = apply.wait(PATIENCE).await?;
    ensure!(status.success(), "{status}: {}\n{}", apply.log_tail(), drainer.log_tail());
    let found = shown(&site.mariadb).await?;
    ensure!(found.values().map(Vec::len).sum::<usize>() > 10, "hardly a row is left: {found:?}");
    assert_eq!(found, upstream.shown());
    Ok(())
}

#[tokio::test]
async fn over_the_wire_too() -> Result<()> {
    let mut runner = TestRunner::deterministic();
    if std::env::var_os("SLUICE_MIXES").is_some() {
        runner = TestRunner::default();
    }
    for mix in 0..2 {
        let steps = proptest::collection::vec(Step::any(), 300).new_tree(&mut runner).unwrap().current();
        run(&format!("mix{mix}"), &steps).await.with_context(|| format!("the mix {steps:?}"))?;
    }
    Ok(())
}
