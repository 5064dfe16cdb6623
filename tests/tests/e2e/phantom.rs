//! Deletes that did not happen: `UPDATE IGNORE` that would move a clustered key onto one that is there keeps the row, but
//! TiDB's binlog keeps the delete. Nothing tells it from a real one; what comes later does.

use std::{io::Write as _, path::Path};

use anyhow::{Context as _, Result, ensure};
use e2e::harness::{admin, process::eventually, site::Site, site::Speed};
use e2e::recording::Recording;
use flate2::{Compression, write::GzEncoder};
use mysql_async::prelude::Queryable as _;
use prost::Message as _;
use schemas::binlog::{Binlog, BinlogType, PrewriteValue, TableMutation};
use serde_json::{Value, json};
use tidb::{
    binlog::{Header, MutationBuilder},
    datum::Datum,
    key::{self, Handle},
    ts::{CommitTs, StartTs, Tso},
};

use crate::cast::Cast;

const DATABASE: i64 = 88;
const TABLE: i64 = 90;
const BEGIN_MS: u64 = 1_795_463_000_000;

/// A recording in the making: one pump, transactions one after the other.
#[derive(Default)]
struct Made {
    frames: Vec<u8>,
    jobs: Vec<Value>,
    at: u64,
}

impl Made {
    fn next(&mut self) -> (StartTs, CommitTs) {
        self.at += 100;
        let ts = |ms: u64| Tso::from_parts(BEGIN_MS + self.at + ms, 1);
        (StartTs(ts(0)), CommitTs(ts(5)))
    }

    fn frame(&mut self, ms: u64, payload: &[u8]) {
        let time = (BEGIN_MS + self.at + ms) * 1_000_000;
        self.frames.extend(time.to_be_bytes());
        self.frames.extend((payload.len() as u32).to_be_bytes());
        self.frames.extend(payload);
    }

    fn transaction(&mut self, mutation: TableMutation) {
        let (start_ts, commit_ts) = self.next();
        let key = key::record(TABLE, &Handle::Int(1)).into();
        let value = PrewriteValue { schema_version: Some(45), mutations: vec![mutation] };
        let prewrite = Header::prewrite(start_ts, key, &value);
        self.frame(2, &prewrite.encode());
        self.frame(6, &prewrite.committed(commit_ts).encode());
    }

    fn ddl(&mut self, kind: u32, table_id: i64, query: &str, mut info: Value) {
        let (start_ts, commit_ts) = self.next();
        let id = 100 + self.jobs.len() as i64;
        info["SchemaVersion"] = json!(44 + self.jobs.len());
        info["FinishedTS"] = json!(commit_ts.get() + 1);
        self.jobs.insert(
            0,
            json!({
                "id": id, "type": kind, "schema_id": DATABASE, "table_id": table_id, "schema_name": "d", "state": 6,
                "schema_state": 5, "start_ts": start_ts.get() - 1, "real_start_ts": start_ts.get() - 1, "query": query,
                "binlog": info,
            }),
        );
        let mut binlog = Binlog {
            tp: Some(BinlogType::Prewrite as i32),
            start_ts: Some(start_ts.get() as i64),
            commit_ts: Some(0),
            prewrite_key: Some(key::record(1, &Handle::Int(id)).into()),
            ddl_query: Some(query.as_bytes().to_vec().into()),
            ddl_job_id: Some(id),
            ddl_schema_state: Some(5),
            ..Binlog::default()
        };
        self.frame(2, &binlog.encode_to_vec());
        binlog.tp = Some(BinlogType::Commit as i32);
        binlog.commit_ts = Some(commit_ts.get() as i64);
        self.frame(6, &binlog.encode_to_vec());
    }

    /// Writes the folder; its end is after everything so far.
    fn write(mut self, folder: &Path) -> Result<Recording> {
        let (_, end) = self.next();
        let zipped = |name: &str, content: &[u8]| -> Result<()> {
            let mut file = GzEncoder::new(std::fs::File::create(folder.join(name))?, Compression::fast());
            file.write_all(content)?;
            Ok(file.finish()?.sync_all()?)
        };
        zipped("pump-1.rec.gz", &self.frames)?;
        zipped("ddl-history.json.gz", &serde_json::to_vec(&self.jobs)?)?;
        let end = end.get();
        zipped("state-end.json.gz", json!({"commit_ts": end, "tables": {}}).to_string().as_bytes())?;
        let corpus = json!({"note": "made", "checkpoints": [{"label": "end", "commit_ts": end}]});
        std::fs::write(folder.join("corpus.json"), corpus.to_string())?;
        Recording::open(folder.to_str().context("a folder's name is text")?)
    }
}

fn pairs(id: i64, value: i64) -> Vec<u8> {
    let mut out = Vec::new();
    for number in [1, id, 2, value] {
        Datum::Int(number).encode_value(&mut out);
    }
    out
}

fn insert(into: &mut MutationBuilder, id: i64, value: i64) {
    let mut row = Vec::new();
    for number in [id, 2, value] {
        Datum::Int(number).encode_value(&mut row);
    }
    into.insert(row);
}

fn one(change: impl Fn(&mut MutationBuilder) -> &mut MutationBuilder) -> TableMutation {
    let mut mutation = MutationBuilder::new(TABLE);
    change(&mut mutation);
    mutation.build()
}

fn table() -> Value {
    let column = |id: i64, name: &str, flag: i64| {
        json!({
            "id": id, "name": {"O": name, "L": name}, "offset": id - 1, "state": 5, "version": 2,
            "type": {"Tp": 8, "Flag": flag, "Flen": 20, "Decimal": 0, "Charset": "binary", "Collate": "binary"},
        })
    };
    json!({
        "id": TABLE, "name": {"O": "t", "L": "t"}, "charset": "utf8mb4", "collate": "utf8mb4_bin", "state": 5,
        "cols": [column(1, "id", 4099), column(2, "v", 0)], "pk_is_handle": true, "max_col_id": 2, "version": 5,
    })
}

#[tokio::test]
async fn phantom_deletes_heal_and_are_counted() -> Result<()> {
    let mut made = Made::default();
    let database = json!({"DBInfo": {"id": DATABASE, "db_name": {"O": "d", "L": "d"}, "charset": "utf8mb4", "collate": "utf8mb4_bin", "state": 5}});
    made.ddl(1, 0, "CREATE DATABASE `d`;", database);
    let create = "CREATE TABLE `d`.`t` (`id` BIGINT PRIMARY KEY,`v` BIGINT);";
    made.ddl(3, TABLE, create, json!({"TableInfo": table()}));
    let mut filling = MutationBuilder::new(TABLE);
    (1..=4).for_each(|id| insert(&mut filling, id, id * 10));
    made.transaction(filling.build());
    // UPDATE IGNORE d.t SET id = 4 WHERE id < 4: three deletes that do not happen.
    for id in 1..=3 {
        made.transaction(one(|m| m.delete(pairs(id, id * 10))));
    }
    // Row 1 is written once more: its update brings it back. Row 2 is really deleted: there is nothing to delete. Row 3 is
    // never touched again, and no consumer can know of it.
    made.transaction(one(|m| m.update([pairs(1, 10), pairs(1, 11)].concat())));
    made.transaction(one(|m| m.delete(pairs(2, 20))));
    made.transaction(one(|m| m.update([pairs(4, 40), pairs(4, 41)].concat())));

    let folder = tempfile::tempdir()?;
    let site = Site::new("phantom", &made.write(folder.path())?).await?;
    let cast = Cast::on(site, Speed::Times(1.0)).await?;
    let end = cast.site.recording().end().commit_ts;
    let apply = cast.site.apply()?;
    let mut process = apply.program.start()?;
    eventually("apply-mysql to reach the end", async || {
        ensure!(process.ended()?.is_none(), "it ended:\n{}", process.log_tail());
        // Until it listens it has nothing to say.
        let Ok(status) = admin::json(&apply.admin, "/status").await else { return Ok(None) };
        Ok((status["progress"]["commit_ts"].as_u64() >= Some(end)).then_some(()))
    })
    .await?;
    let mut session = cast.site.mariadb.connect().await?;
    let rows: Vec<(i64, i64)> = session.query("SELECT id, v FROM d.t ORDER BY id").await?;
    ensure!(rows == [(1, 11), (4, 41)], "{rows:?}");
    session.disconnect().await?;

    let metrics = admin::text(&apply.admin, "/metrics").await?;
    // Whether they meet in one batch or in the table, they count.
    let count = |what: &str| -> u64 {
        let lines =
            metrics.lines().filter(|line| line.starts_with("apply_conflicts_total") && line.contains(what));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    };
    ensure!(count("update_of_missing") == 1 && count("delete_of_missing") == 1, "{metrics}");
    let log = process.log_text();
    ensure!(
        log.lines().any(|line| line.contains("WARN") && line.replace('`', "").contains("d.t")),
        "the table is not named: {log}"
    );
    ensure!(process.stop().await?.success());
    cast.finish().await
}
