//! The shape task: only a DDL waits for its job, and what needs no job asks for none.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use drainer_kafka::feed::{FeedError, Merged, ShapeTask};
use drainer_kafka::filter::{Filter, FilterRules};
use drainer_kafka::kafka::sink::Work;
use drainer_kafka::routing::Routing;
use drainer_kafka::schema::Tracker;
use drainer_kafka::schema::history::{HistoryError, SchemaHistory};
use drainer_kafka::schema::zone::UpstreamZone;
use drainer_kafka::sequence::RowLayout;
use drainer_kafka::status::Status;
use drainer_kafka::transaction::{DdlBinlog, Transaction};
use drainer_kafka::translate::{LargeRow, Shape};
use prost::Message as _;
use schemas::binlog::PrewriteValue;
use serde_json::json;
use tidb::model::{Job, TableInfo};
use tidb::ts::{CommitTs, StartTs, Tso};
use tokio::sync::mpsc;

use crate::schema::routing;

/// What TiDB shows of the jobs it is asked for, answer by answer.
#[derive(Debug, Default)]
struct Answers {
    jobs: Mutex<VecDeque<Option<Job>>>,
    asked: Mutex<Vec<(i64, StartTs)>>,
}

impl SchemaHistory for Answers {
    async fn page(&self, _: i64) -> Result<Bytes, HistoryError> {
        Ok(Bytes::from_static(b"null"))
    }

    async fn job(&self, job_id: i64, start_ts: StartTs) -> Result<Option<Job>, HistoryError> {
        self.asked.lock().unwrap().push((job_id, start_ts));
        Ok(self.jobs.lock().unwrap().pop_front().expect("it was asked once too often"))
    }

    async fn table(&self, _: i64) -> Result<Option<TableInfo>, HistoryError> {
        Ok(None)
    }

    async fn schema(&self, _: Option<&str>) -> Result<Bytes, HistoryError> {
        Ok(Bytes::from_static(b"null"))
    }
}

fn database(state: u32) -> Job {
    serde_json::from_value(json!({
        "id": 7, "type": 1, "schema_id": 70, "schema_name": "d", "table_id": 0, "state": state,
        "binlog": {"SchemaVersion": 40, "DBInfo": {"id": 70, "db_name": {"O": "d", "L": "d"}}},
    }))
    .unwrap()
}

fn rows(commit_ts: u64) -> Transaction {
    Transaction {
        start_ts: StartTs::new(commit_ts - 1),
        commit_ts: CommitTs::new(commit_ts),
        payload: PrewriteValue::default().encode_to_vec().into(),
        ddl: None,
        budget: None,
    }
}

fn ddl(commit_ts: u64, job_id: i64, query: &'static str, schema_state: i32) -> Transaction {
    let ddl = DdlBinlog { job_id, query: Bytes::from_static(query.as_bytes()), schema_state };
    Transaction { ddl: Some(ddl), payload: Bytes::new(), ..rows(commit_ts) }
}

/// Runs the task over `transactions` and gives what came out.
async fn shaped(answers: Arc<Answers>, transactions: Vec<Transaction>) -> Vec<String> {
    run(routing(), answers, transactions).await.unwrap()
}

async fn run(
    routing: Arc<Routing>,
    answers: Arc<Answers>,
    transactions: Vec<Transaction>,
) -> Result<Vec<String>, FeedError> {
    let shape = Shape { max_record: 1 << 20, large_row: LargeRow::Chunk };
    let tracker = Tracker::new(routing.clone());
    let task = ShapeTask::new(tracker, answers, routing, shape, 1 << 20, Tso::ZERO, Status::default());
    let (merged_in, merged_out) = mpsc::channel(4);
    let (work_in, mut work_out) = mpsc::channel(16);
    merged_in.send(Merged::Transactions(transactions)).await.unwrap();
    drop(merged_in);
    task.run(merged_out, work_in).await?;
    let mut out = Vec::new();
    while let Some(work) = work_out.recv().await {
        out.push(match work {
            Work::Shaping(shaping) => {
                let shaped = shaping.await.unwrap().unwrap();
                let places: Vec<_> = shaped.iter().map(|s| s.header.commit_ts.to_string()).collect();
                format!("rows {}", places.join(" "))
            }
            Work::Ddl { commit_ts, entry, dropped, .. } => {
                format!("ddl {commit_ts} {} {dropped:?}", if entry.is_some() { "out" } else { "silent" })
            }
            other => format!("{other:?}"),
        });
    }
    Ok(out)
}

/// TIMESTAMP defaults from before TiDB kept them in UTC go out in UTC, or nothing does.
#[tokio::test]
async fn a_default_in_a_server_s_time_zone_stops_the_feed_until_the_zone_is_known() {
    let column = json!({
        "id": 1, "name": {"O": "at", "L": "at"}, "state": 5, "version": 0, "default": "2019-01-15 12:00:00",
        "type": {"Tp": 7, "Flen": 19, "Charset": "binary"},
    });
    let table = json!({
        "id": 8, "type": 3, "schema_id": 70, "schema_name": "d", "table_id": 71, "state": 6,
        "binlog": {"SchemaVersion": 41, "TableInfo": {"id": 71, "name": {"O": "t", "L": "t"}, "cols": [column]}},
    });
    let table: Job = serde_json::from_value(table).unwrap();
    let zone = || UpstreamZone::parse("+08:00").unwrap();
    let ignore = FilterRules { ignore_schemas: vec!["d".to_owned()], ..FilterRules::default() };
    for (rules, zone, stops) in [
        (FilterRules::default(), None, true),
        (FilterRules::default(), Some(zone()), false),
        (ignore, None, false),
    ] {
        let answers = Arc::new(Answers::default());
        answers.jobs.lock().unwrap().extend([Some(database(6)), Some(table.clone())]);
        let layout = RowLayout { topics: vec![("t".to_owned(), 1)] };
        let routing = Arc::new(Routing::new(Filter::new(rules).unwrap(), layout).in_zone(zone));
        let transactions =
            vec![ddl(10, 7, "CREATE DATABASE `d`;", 5), ddl(20, 8, "CREATE TABLE `t` LIKE `old`;", 5)];
        match run(routing, answers, transactions).await {
            Ok(out) => assert!(!stops && out.len() == 2, "{out:?}"),
            Err(error) => {
                let text = format!("{error} {}", std::error::Error::source(&error).unwrap());
                assert!(stops && text.contains("upstream-time-zone") && text.contains("d.t"), "{text}");
            }
        }
    }
}

#[tokio::test]
async fn a_ddl_waits_until_its_job_is_shown_as_done() {
    let answers = Arc::new(Answers::default());
    let (running, done) = (1, 4);
    assert_eq!(database(done).state, tidb::model::JobState::Done);
    answers.jobs.lock().unwrap().extend([None, None, Some(database(running)), None, Some(database(done))]);
    let transactions = vec![rows(10), rows(20), ddl(30, 7, "CREATE DATABASE `d`;", 5), rows(40)];
    let out = shaped(answers.clone(), transactions).await;
    assert_eq!(out, ["rows 10 20", "ddl 30 out []", "rows 40"]);
    assert_eq!(
        *answers.asked.lock().unwrap(),
        vec![(7, StartTs::new(29)); 5],
        "by the id and the start of its binlog"
    );
}

#[tokio::test]
async fn what_changes_no_schema_asks_for_no_job() {
    let answers = Arc::new(Answers::default());
    let rolled_back = 3;
    let undone = Job { table_id: 55, ..database(rolled_back) };
    answers.jobs.lock().unwrap().push_back(Some(undone));
    let transactions = vec![
        ddl(10, 99, "SELECT SETVAL(`d`.`s`, 5);", 5),
        ddl(20, 7, "ALTER TABLE `t` DROP COLUMN `c`;", 1),
        ddl(30, 7, "ALTER TABLE `t` DROP COLUMN `c`;", 0),
        rows(40),
    ];
    // The job that was undone has no entry; values held for its table's columns are given up.
    assert_eq!(shaped(answers.clone(), transactions).await, ["ddl 30 silent [55]", "rows 40"]);
    assert_eq!(answers.asked.lock().unwrap().len(), 1);
}

/// A sequence's value has no job either, but an entry, if the sequence is there.
#[tokio::test]
async fn a_sequence_s_value_goes_out_without_a_job() {
    let answers = Arc::new(Answers::default());
    let sequence = json!({
        "id": 8, "type": 34, "schema_id": 70, "schema_name": "d", "table_id": 71, "state": 6,
        "binlog": {"SchemaVersion": 41, "TableInfo": {"id": 71, "name": {"O": "s", "L": "s"}, "sequence": {"sequence_start": 1}}},
    });
    let jobs = [Some(database(6)), Some(serde_json::from_value(sequence).unwrap())];
    answers.jobs.lock().unwrap().extend(jobs);
    let transactions = vec![
        ddl(10, 7, "CREATE DATABASE `d`;", 5),
        ddl(20, 8, "CREATE SEQUENCE `s`;", 5),
        ddl(30, 99, "SELECT SETVAL(`d`.`s`, 1000);", 5),
        ddl(40, 100, "SELECT SETVAL(`d`.`gone`, 1000);", 5),
    ];
    let out = shaped(answers.clone(), transactions).await;
    assert_eq!(out, ["ddl 10 out []", "ddl 20 out []", "ddl 30 out []"]);
    assert_eq!(answers.asked.lock().unwrap().len(), 2);
}
