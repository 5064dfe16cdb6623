//! The schema and the DDL history along a playback, against the states that were recorded beside it; and the status
//! port over HTTP, found the way a drainer finds it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "what a test prepares may fail loudly"
)]

mod etcd;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use etcd::Etcd;
use flate2::read::GzDecoder;
use node::tidb_status::{StatusError, TidbStatus};
use node::tls::Security;
use serde::Deserialize;
use simulator::catalog::Catalog;
use simulator::jobs::{DdlJobs, Lateness, Moment};
use simulator::recording::Recording;
use simulator::schedule::Kind;
use simulator::script::{Record, Script};
use simulator::stage::{Stage, StageOptions};
use tidb::model::{ActionType, DbInfo, Job, JobState, SchemaState, TableInfo};
use tidb::schema_api::{self, DdlJobVersions};
use tidb::ts::{CommitTs, Tso};

fn fixtures() -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("../tests/fixtures")
}

#[derive(Deserialize)]
struct State {
    commit_ts: CommitTs,
    tables: BTreeMap<String, Table>,
}

#[derive(Deserialize)]
struct Table {
    #[serde(default)]
    columns: Vec<String>,
}

fn state(folder: &Path, label: &str) -> State {
    let plain = folder.join(format!("state-{label}.json"));
    if let Ok(file) = File::open(plain) {
        return serde_json::from_reader(file).unwrap();
    }
    let file = File::open(folder.join(format!("state-{label}.json.gz"))).unwrap();
    serde_json::from_reader(GzDecoder::new(file)).unwrap()
}

/// The binlogs of DDL transactions that had committed by then.
fn ddl_until(script: &Script, ts: Tso) -> impl Iterator<Item = &Record> {
    let commits =
        script.records().iter().filter(|record| record.kind == Kind::Commit && record.ddl.is_some());
    commits.filter(move |record| record.commit_ts.is_some_and(|commit_ts| commit_ts.0 <= ts))
}

/// Tables and views of user schemas with their visible columns.
fn shown(catalog: &Catalog) -> BTreeMap<String, Vec<String>> {
    let users = catalog.databases().filter(|database| database.name.lower != "mysql");
    let mut shown = BTreeMap::new();
    for database in users {
        for table in catalog.tables(database.name.as_str()).unwrap() {
            let mut columns: Vec<_> = table.public_columns().filter(|column| !column.hidden).collect();
            columns.sort_by_key(|column| column.offset);
            let columns = columns.iter().map(|column| column.name.to_string()).collect();
            shown.insert(format!("{}.{}", database.name, table.name), columns);
        }
    }
    shown
}

#[test]
fn the_schema_follows_every_recorded_state() {
    let mut checked = 0;
    for name in ["shop", "concurrent", "orphans", "types", "keys", "ddl", "random", "large"] {
        let folder = fixtures().join(name);
        let recording = Recording::load(&folder).unwrap();
        for checkpoint in &recording.checkpoints {
            let state = state(&folder, &checkpoint.label);
            let mut jobs = DdlJobs::new(&recording.script, Lateness { share: 1.0, by: None }, 1);
            let begin = jobs.catalog(Moment { now: Tso::ZERO, elapsed: Duration::ZERO });
            assert_eq!(
                begin.databases().map(|database| database.name.to_string()).collect::<Vec<_>>(),
                ["mysql"]
            );
            for record in ddl_until(&recording.script, state.commit_ts.0) {
                jobs.sent(record.ddl.unwrap().job_id, record.start_ts, Duration::ZERO);
            }
            let catalog = jobs.catalog(Moment { now: state.commit_ts.0, elapsed: Duration::ZERO });
            // Views and sequences have columns of another kind there; tables are enough.
            let shown = shown(&catalog);
            let names: BTreeSet<&String> = shown.keys().collect();
            assert_eq!(names, state.tables.keys().collect(), "{name} {}", checkpoint.label);
            for (table, definition) in &state.tables {
                if !definition.columns.is_empty() && !shown[table].is_empty() {
                    assert_eq!(shown[table], definition.columns, "{name} {} {table}", checkpoint.label);
                    checked += 1;
                }
            }
        }
    }
    assert!(checked > 100, "{checked}");
}

#[test]
fn exchanged_partitions_swap_their_ids() {
    let table = |id: i64, name: &str, partitions: &[i64]| -> TableInfo {
        let definitions: Vec<_> = partitions.iter().map(|id| serde_json::json!({ "id": id })).collect();
        let partition = (!partitions.is_empty())
            .then(|| serde_json::json!({ "type": 1, "enable": true, "definitions": definitions }));
        serde_json::from_value(serde_json::json!({
            "id": id, "name": { "O": name, "L": name }, "state": 5, "partition": partition,
        }))
        .unwrap()
    };
    let job = |id: i64, kind: ActionType, table_id: i64, info: TableInfo| {
        let mut job = Job { id, kind, schema_id: 2, table_id, state: JobState::Synced, ..Job::default() };
        job.binlog.schema_version = id;
        job.binlog.table_info = Some(info);
        job
    };
    let jobs = [
        job(1, ActionType::CreateTable, 10, table(10, "parts", &[11, 12])),
        job(2, ActionType::CreateTable, 20, table(20, "plain", &[])),
        job(3, ActionType::ExchangeTablePartition, 20, table(10, "parts", &[11, 20])),
    ];
    let catalog = Catalog::after(jobs.iter(), jobs.iter());
    assert_eq!(catalog.table(12).map(TableInfo::name), Some("plain"));
    assert_eq!((catalog.table(20).is_none(), catalog.table(10).is_some()), (true, true));
}

#[test]
fn a_job_is_in_the_history_only_after_its_binlog() {
    let recording = Recording::load(&fixtures().join("ddl")).unwrap();
    let script = recording.script;
    let at = |now: Tso, seconds: u64| Moment { now, elapsed: Duration::from_secs(seconds) };
    let mut jobs = DdlJobs::new(&script, Lateness::default(), 7);
    assert!(jobs.history(at(Tso::ZERO, 100), None, None).is_empty());
    let mut late = 0;
    for record in ddl_until(&script, Tso::MAX) {
        let (ddl, now) = (record.ddl.unwrap(), record.commit_ts.unwrap().0);
        let has = |jobs: &DdlJobs, seconds| {
            jobs.history(at(now, seconds), None, None).iter().any(|j| j.id == ddl.job_id)
        };
        let known = script.jobs().iter().any(|job| job.id == ddl.job_id);
        let versions = jobs.versions(at(now.prev(), 0), ddl.job_id).unwrap();
        assert!(versions.job(record.start_ts).is_none(), "{ddl:?}");
        assert!(!has(&jobs, 100), "{ddl:?}");
        jobs.sent(ddl.job_id, record.start_ts, Duration::from_secs(10));
        let delete_only = ddl.schema_state == 1;
        assert_eq!(has(&jobs, 15), known && !delete_only, "{ddl:?}");
        late += usize::from(known && !delete_only && !has(&jobs, 10));
        // The job's own row has it at once, as the binlog's transaction left it.
        let versions = jobs.versions(at(now, 10), ddl.job_id).unwrap();
        let job = versions.job(record.start_ts).map(Result::unwrap);
        assert_eq!(job.is_some(), known, "{ddl:?}");
        if let Some(job) = job {
            let expected = if delete_only { JobState::Running } else { JobState::Done };
            assert_eq!(job.state, expected);
            assert_eq!(job.schema_state == SchemaState::DeleteOnly, delete_only);
            assert_eq!(job.schema_version() == 0, delete_only);
        }
    }
    let all = script.jobs().len();
    assert!((all / 10..all / 3).contains(&late), "{late} of {all} jobs are late");
    // CACHE and NOCACHE send no binlog; everything else of the recording is there now.
    assert_eq!(jobs.history(at(Tso::MAX, 100), None, None).len(), all);
    assert_eq!(jobs.late(at(Tso::MAX, 100)), 0);
    assert!(jobs.late(at(Tso::MAX, 10)) == late);
}

/// What end-to-end tests and demo play says nothing of late jobs, and has some.
#[test]
fn some_jobs_are_late_unless_told_otherwise() {
    let options = StageOptions::default();
    for name in ["shop", "ddl", "random", "keys", "types"] {
        let script = Recording::load(&fixtures().join(name)).unwrap().script;
        let mut jobs = DdlJobs::new(&script, options.lateness, options.seed);
        let mut count = 0;
        for record in ddl_until(&script, Tso::MAX) {
            jobs.sent(record.ddl.unwrap().job_id, record.start_ts, Duration::ZERO);
            count += 1;
        }
        let late = |seconds| jobs.late(Moment { now: Tso::MAX, elapsed: Duration::from_secs(seconds) });
        assert!(late(0) > 0 && late(0) < count / 2, "{name}: {} of {count}", late(0));
        // Which makes them *seconds* late.
        assert_eq!((late(1) > 0, late(4)), (true, 0), "{name}");
    }
}

/// A job that enters the history when nobody plays any more is in its own row from its binlog on.
#[test]
fn a_job_that_is_never_in_the_history_is_in_its_row() {
    let script = Recording::load(&fixtures().join("ddl")).unwrap().script;
    let hour = Duration::from_secs(3600);
    let mut jobs = DdlJobs::new(&script, Lateness { share: 1.0, by: Some(hour) }, 1);
    let mut ended = BTreeSet::new();
    for record in ddl_until(&script, Tso::MAX) {
        jobs.sent(record.ddl.unwrap().job_id, record.start_ts, Duration::ZERO);
        ended.insert(record.ddl.unwrap().job_id);
        let at = Moment { now: record.commit_ts.unwrap().0, elapsed: hour - Duration::from_secs(1) };
        let known = script.jobs().iter().any(|job| job.id == record.ddl.unwrap().job_id);
        let versions = jobs.versions(at, record.ddl.unwrap().job_id).unwrap();
        assert_eq!(versions.job(record.start_ts).is_some(), known, "{record:?}");
        assert!(jobs.history(at, None, None).iter().all(|job| !ended.contains(&job.id)), "{record:?}");
    }
    let after = Moment { now: Tso::MAX, elapsed: hour };
    assert_eq!(jobs.history(after, None, None).len(), script.jobs().len());
}

#[tokio::test]
async fn the_status_port_is_found_in_etcd_and_answers_as_tidb() {
    let etcd = Etcd::start().await;
    let script = Arc::new(Recording::load(&fixtures().join("shop")).unwrap().script);
    let options = StageOptions {
        etcd: Some(etcd.url.clone()),
        lateness: Lateness { share: 1.0, by: None },
        ..StageOptions::default()
    };
    let stage = Stage::for_playback(&script, 1.0, &options).await.unwrap();
    let client = etcd_client::Client::connect([stage.pd.url()], None).await.unwrap();
    let tidb = TidbStatus::new(client, &[], &Security::default()).unwrap();
    let get = async |path: &str| tidb.get(path, 1 << 24).await;

    let databases: Vec<DbInfo> = schema_api::parse_list(&get("/schema").await.unwrap()).unwrap();
    assert_eq!(databases.iter().map(|db| db.name.as_str()).collect::<Vec<_>>(), ["mysql"]);
    assert!(schema_api::parse_list::<TableInfo>(&get("/schema/mysql").await.unwrap()).unwrap().is_empty());
    for record in ddl_until(&script, Tso::MAX) {
        stage.schema.sent(record.ddl.unwrap().job_id, record.start_ts);
    }
    assert!(stage.schema.late() > 0);

    let tables: Vec<TableInfo> = schema_api::parse_list(&get("/schema/SHOP").await.unwrap()).unwrap();
    let names: BTreeSet<&str> = tables.iter().map(TableInfo::name).collect();
    assert_eq!(names, BTreeSet::from(["customers", "products", "orders", "order_items", "vouchers"]));
    let orders = tables.iter().find(|table| table.name() == "orders").unwrap();
    for path in ["/schema/shop/Orders".to_owned(), format!("/schema?table_id={}", orders.id)] {
        let table: TableInfo = serde_json::from_slice(&get(&path).await.unwrap()).unwrap();
        assert_eq!(&table, orders);
    }

    let history = async |query: &str| {
        let body = get(&format!("/ddl/history{query}")).await.unwrap();
        schema_api::parse_list::<Job>(&body).unwrap().iter().map(|job| job.id).collect::<Vec<_>>()
    };
    let all = async {
        while stage.schema.late() > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        history("").await
    };
    let all = tokio::time::timeout(Duration::from_secs(120), all).await.expect("late jobs arrive");
    assert_eq!(all.len(), script.jobs().len());
    assert!(all.is_sorted_by(|a, b| a > b));
    assert_eq!(history("?limit=3").await, all[..3]);
    assert_eq!(history(&format!("?start_job_id={}&limit=2", all[4])).await, all[4..6]);
    for wrong in ["?limit=0", "?limit=2049", "?start_job_id=0&limit=1", "?start_job_id=5"] {
        let refused = get(&format!("/ddl/history{wrong}")).await.unwrap_err();
        assert!(matches!(refused, StatusError::Refused { status: 400, .. }), "{refused}");
    }
    let refused = get("/schema/nowhere").await.unwrap_err().to_string();
    assert!(refused.contains("Unknown database 'nowhere'"), "{refused}");

    // The clock has not moved, so no transaction has committed: no version of the job's row is there yet.
    let path = format!("/mvcc/key/mysql/tidb_ddl_job/{}?decode=true", all[0]);
    let versions: DdlJobVersions = serde_json::from_slice(&get(&path).await.unwrap()).unwrap();
    assert!(versions.data.is_none());
}
