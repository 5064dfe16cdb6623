//! The tracker over every recorded DDL, compared with the recorded states; and the same from every starting position.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use drainer_kafka::ddl;
use drainer_kafka::filter::{Filter, FilterRules};
use drainer_kafka::routing::Routing;
use drainer_kafka::schema::bootstrap::Jobs;
use drainer_kafka::schema::history::{HistoryError, SchemaHistory};
use drainer_kafka::schema::records::{self, SchemaReader};
use drainer_kafka::schema::{Definitions, Tracker};
use drainer_kafka::sequence::RowLayout;
use serde_json::json;
use tidb::model::{Job, TableInfo};
use tidb::ts::{CommitTs, StartTs, Tso};

use crate::recording::{ALL, Recording, State};

pub(crate) fn routing() -> Arc<Routing> {
    let filter = Filter::new(FilterRules::default()).unwrap();
    Arc::new(Routing::new(filter, RowLayout { topics: vec![("t".to_owned(), 4)] }))
}

/// Every table, view and sequence outside the system schemas: kind and visible columns.
fn shown(definitions: &Definitions) -> BTreeMap<String, (String, Vec<String>)> {
    let kind =
        |table: &drainer_kafka::schema::Definition| match (table.info.is_view(), table.info.is_sequence()) {
            (true, _) => "VIEW",
            (_, true) => "SEQUENCE",
            _ => "BASE TABLE",
        };
    let columns = |table: &drainer_kafka::schema::Definition| {
        table.info.public_columns().map(|column| column.name().to_owned()).collect::<Vec<_>>()
    };
    definitions
        .tables()
        .filter(|table| table.database != "mysql")
        .map(|table| {
            let columns = if kind(table) == "BASE TABLE" { columns(table) } else { Vec::new() };
            (format!("{}.{}", table.database, table.table()), (kind(table).to_owned(), columns))
        })
        .collect()
}

fn expected(state: &State) -> BTreeMap<String, (String, Vec<String>)> {
    let columns = |table: &crate::recording::StateTable| {
        if table.kind == "BASE TABLE" { table.columns.clone() } else { Vec::new() }
    };
    state.tables.iter().map(|(name, table)| (name.clone(), (table.kind.clone(), columns(table)))).collect()
}

#[test]
fn reproduces_every_recorded_state() {
    for name in ALL {
        let recording = Recording::load(name);
        let mut tracker = Tracker::new(routing());
        let mut states = recording.states.iter().peekable();
        let mut applied = 0;
        for transaction in &recording.transactions {
            while let Some(state) = states.next_if(|state| state.commit_ts < transaction.commit_ts.get()) {
                assert_eq!(shown(&tracker.definitions()), expected(state), "{name}, state {}", state.label);
            }
            let Some(ddl) = &transaction.ddl else { continue };
            if ddl::is_setval(&ddl.query) || ddl.schema_state == 1 {
                continue;
            }
            let job = recording.job(ddl.job_id).unwrap();
            let effect = tracker.apply(job, transaction.commit_ts).unwrap();
            let query = &ddl.query;
            ddl::outgoing(
                routing().filter(),
                job,
                &effect,
                query,
                transaction.start_ts,
                transaction.commit_ts,
            )
            .unwrap();
            applied += 1;
        }
        for state in states {
            assert_eq!(shown(&tracker.definitions()), expected(state), "{name}, state {}", state.label);
        }
        assert!(applied > 40, "{name}: {applied} jobs");
    }
}

/// A feed may begin anywhere: the history replayed up to there gives what the binlogs gave up to there; and a restart
/// from the schema topic gives it again.
#[tokio::test]
async fn starts_anywhere() {
    for name in ["ddl", "random", "keys"] {
        let recording = Recording::load(name);
        let directory = tempfile::tempdir().unwrap();
        let jobs = Jobs::load(&recording, directory.path()).await.unwrap();
        let with_version = recording.jobs.iter().filter(|job| job.schema_version() > 0).count();
        assert_eq!(jobs.len(), with_version, "{name}");
        let mut tracker = Tracker::new(routing());
        let mut topic = records::of_all(&tracker, 700);
        let ddls: Vec<_> = recording
            .transactions
            .iter()
            .filter_map(|t| {
                Some((t, t.ddl.as_ref().filter(|d| d.schema_state != 1 && !ddl::is_setval(&d.query))?))
            })
            .collect();
        for (at, (transaction, ddl)) in ddls.iter().enumerate() {
            let job = recording.job(ddl.job_id).unwrap();
            let effect = tracker.apply(job, transaction.commit_ts).unwrap();
            topic.extend(records::of_effect(&effect, None, transaction.commit_ts, 700));
            // Just after this DDL and just before the next: the same schema, whatever FinishedTS says.
            let next = ddls.get(at + 1).map_or(transaction.commit_ts.0, |(next, _)| next.commit_ts.0.prev());
            for position in [transaction.commit_ts.0, next] {
                let undecided = jobs.undecided(position);
                let first_after = undecided
                    .iter()
                    .find(|job| ddls.iter().any(|(t, d)| d.job_id == job.id && t.commit_ts.0 > position))
                    .map(|job| job.id);
                let replayed = jobs.replay(routing(), position, first_after).unwrap();
                let begun = replayed.complete(&recording).await.unwrap();
                assert_eq!(
                    shown(&begun.definitions()),
                    shown(&tracker.definitions()),
                    "{name} at {position}"
                );
            }
            let mut reader = SchemaReader::default();
            for record in &topic {
                reader.push(&record.key, &record.meta, &record.value).unwrap();
            }
            let restarted = reader.finish(routing()).unwrap();
            // A job that makes no definition (a placement policy) leaves no version behind, nor needs one.
            assert!(restarted.version() <= tracker.version());
            assert_eq!(
                all(&restarted.definitions()),
                all(&tracker.definitions()),
                "{name} after {}",
                job.query
            );
        }
    }
}

/// Everything a definition decides.
fn all(definitions: &Definitions) -> BTreeMap<i64, String> {
    let tables = definitions.tables().map(|t| {
        (
            t.id(),
            format!(
                "{} {} {} {:?}",
                t.version,
                t.database,
                t.commit_ts,
                tidb::gojson::to_vec(&t.info).unwrap()
            ),
        )
    });
    let dropped = definitions.dropped().map(|(id, dropped)| (-id, format!("{dropped:?}")));
    let databases = definitions.databases().map(|d| (d.info.id << 32, d.info.name.as_str().to_owned()));
    tables.chain(dropped).chain(databases).collect()
}

/// The history of a cluster that has been upgraded: a job of a kind that no TiDB of today knows.
#[derive(Debug)]
struct Upgraded(Vec<serde_json::Value>);

impl SchemaHistory for Upgraded {
    async fn page(&self, start_job_id: i64) -> Result<Bytes, HistoryError> {
        let jobs = if start_job_id == 0 { self.0.as_slice() } else { &[] };
        Ok(serde_json::to_vec(jobs).unwrap().into())
    }

    async fn job(&self, _: i64, _: StartTs) -> Result<Option<Job>, HistoryError> {
        Ok(None)
    }

    async fn table(&self, _: i64) -> Result<Option<TableInfo>, HistoryError> {
        Ok(None)
    }

    async fn schema(&self, database: Option<&str>) -> Result<Bytes, HistoryError> {
        let shown = match database {
            None => json!([{"id": 70, "db_name": {"O": "d", "L": "d"}}]),
            Some(_) => json!([{"id": 88, "name": {"O": "made", "L": "made"}, "cols": []}]),
        };
        Ok(serde_json::to_vec(&shown).unwrap().into())
    }
}

#[tokio::test]
async fn kinds_of_jobs_that_are_not_known_any_more_do_not_end_a_start() {
    let table = |columns: &[i64]| {
        let column = |id: &i64| json!({"id": id, "name": {"O": format!("c{id}"), "L": format!("c{id}")}, "state": 5, "type": {"Tp": 8}});
        let columns: Vec<_> = columns.iter().map(column).collect();
        json!({"id": 71, "name": {"O": "t", "L": "t"}, "cols": columns})
    };
    let job = |id: i64, kind: u32, mut binlog: serde_json::Value| {
        binlog["SchemaVersion"] = json!(id);
        binlog["FinishedTS"] = json!(id * 10);
        json!({"id": id, "type": kind, "schema_id": 70, "schema_name": "d", "table_id": 71, "state": 6, "start_ts": id * 10 - 5, "binlog": binlog})
    };
    let history = Upgraded(vec![
        job(5, 5, json!({"TableInfo": table(&[1, 2, 3])})),
        job(4, 46, json!({"TableInfo": table(&[1, 2])})),
        job(3, 250, json!({})),
        job(2, 3, json!({"TableInfo": table(&[1])})),
        job(1, 1, json!({"DBInfo": {"id": 70, "db_name": {"O": "d", "L": "d"}}})),
    ]);
    let directory = tempfile::tempdir().unwrap();
    let jobs = Jobs::load(&history, directory.path()).await.unwrap();
    for (position, columns) in [(32, 1), (42, 2), (52, 3)] {
        let replayed = jobs.replay(routing(), Tso::new(position), None).unwrap();
        assert_eq!(replayed.tracker.version(), i64::try_from(position).unwrap() / 10);
        let begun = replayed.complete(&history).await.unwrap().definitions();
        assert_eq!(begun.table(71).unwrap().info.cols.len(), columns, "at {position}");
        // What such a job made shows in `/schema`.
        assert_eq!(begun.table(88).unwrap().table(), "made");
    }
    // While the feed runs such a job is refused by name.
    let mut tracker = Tracker::new(routing());
    let unknown: Job = serde_json::from_value(job(3, 250, json!({}))).unwrap();
    assert!(tracker.apply(&unknown, CommitTs::new(1)).unwrap_err().to_string().contains("job type 250"));
}
