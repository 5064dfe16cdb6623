//! Load against pumps that check its promises, and `tidb-sim` itself as a process.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "what a test prepares may fail loudly"
)]

mod etcd;
mod witness;

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use etcd::Etcd;
use schemas::binlog::PrewriteValue;
use serde_json::Value as Json;
use simulator::client::{ClientOptions, PumpClient};
use simulator::load::workload::{ACCOUNTS, Kind as Workload, OPENING_BALANCE, Workload as Tables};
use simulator::load::{Load, LoadOptions};
use simulator::pumps::Strategy;
use simulator::schedule::Kind;
use simulator::script::Script;
use simulator::stage::{Stage, StageOptions};
use simulator::transactions::Status;
use tidb::binlog::{Change, Header, changes, decode_value};
use tidb::row::{decode_insert, decode_update};
use tidb::value::Value;
use tokio_util::sync::CancellationToken;
use witness::Witness;

fn options(kind: Workload) -> LoadOptions {
    LoadOptions {
        kind,
        sessions: 8,
        rate: None,
        payload: 500,
        transactions: Some(400),
        duration: None,
        rollback_share: 0.1,
        orphan_share: 0.1,
        seed: 1,
    }
}

fn int(value: Option<&Value>) -> i64 {
    let Some(Value::Int(value)) = value else { panic!("{value:?}") };
    *value
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bank_transfers_add_up_at_every_commit() {
    let etcd = Etcd::start().await;
    let stage_options = StageOptions { etcd: Some(etcd.url.clone()), ..StageOptions::default() };
    let stage = Stage::live(&stage_options).await.unwrap();
    // The script is empty: what the witness knows of promises it learns as it goes.
    let script = Arc::new(Script::new(Vec::new(), [], Vec::new()).unwrap());
    let witness = Witness::new(stage.cluster.clone(), script, &stage.tikv.address());
    for index in 1..=2 {
        witness.pump(&etcd.url, index).await;
    }
    let client = ClientOptions { strategy: Strategy::Range, ..ClientOptions::default() };
    let client = PumpClient::connect(&stage.pd.url(), stage.cluster.id(), client).await.unwrap();
    client.wait_online(2).await;
    let load = Load::new(stage.cluster.clone(), stage.schema.clone(), client, options(Workload::Bank));
    let report = load.run(CancellationToken::new()).await.unwrap();
    assert_eq!((report.lost, report.refused, report.aborted, report.retries), (0, 0, 0, 0));
    assert_eq!(report.committed + report.rolled_back, 400);
    assert!((10..100).contains(&report.rolled_back), "{}", report.rolled_back);
    assert_eq!(report.prewrite.count(), 400);

    let seen = witness.seen();
    assert!(seen.complaints.is_empty(), "{}", seen.complaints[0]);
    let prewrites = seen.arrived.iter().filter(|(_, record)| record.kind == Kind::Prewrite);
    let mut committed = Vec::new();
    for (_, record) in prewrites {
        let Status::Committed(commit_ts) = stage.cluster.status(record.start_ts) else { continue };
        let header = Header::decode(record.payload.clone()).unwrap();
        if !header.is_ddl() {
            committed.push((commit_ts, decode_value(header.prewrite_value).unwrap()));
        }
    }
    let commits = seen.arrived.iter().filter(|(_, r)| r.kind == Kind::Commit && r.ddl.is_none()).count();
    let opening = ACCOUNTS / 100;
    assert_eq!(committed.len() as u64, report.committed + opening as u64);
    assert!(commits < committed.len() - 10, "some commit binlogs never come");
    committed.sort_by_key(|(commit_ts, _)| *commit_ts);

    // Each image before is exactly what the transactions before it left.
    let tables = Tables::new(Workload::Bank, 500);
    let mut balances: HashMap<i64, i64> = HashMap::new();
    for (_, PrewriteValue { mutations, .. }) in &committed {
        for change in mutations.iter().flat_map(changes) {
            match change.unwrap() {
                Change::Insert(blob) => {
                    let row = decode_insert(&tables.schema.tables[0], blob).unwrap();
                    assert_eq!(balances.insert(int(row.get(1)), int(row.get(2))), None);
                }
                Change::Update(blob) => {
                    let (before, after) = decode_update(&tables.schema.tables[0], blob).unwrap();
                    let known = balances.insert(int(after.get(1)), int(after.get(2)));
                    assert_eq!(known, Some(int(before.get(2))));
                }
                Change::Delete(_) => panic!("transfers delete nothing"),
            }
        }
        let opened = balances.len() as i64;
        assert_eq!(balances.values().sum::<i64>(), opened * OPENING_BALANCE);
    }
    assert_eq!(balances.len(), ACCOUNTS);
}

/// Reads the process's JSON lines until one has this event.
fn await_event(lines: &mut impl Iterator<Item = std::io::Result<String>>, event: &str) -> Json {
    for line in lines {
        let line = line.unwrap();
        let json: Json = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        if json["event"] == event {
            return json;
        }
    }
    panic!("no {event}");
}

fn tidb_sim(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidb-sim"));
    command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_process_says_where_it_is_and_what_it_did() {
    let etcd = Etcd::start().await;
    let folder =
        PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("../tests/fixtures/types");
    let arguments =
        ["play", folder.to_str().unwrap(), "-etcd", &etcd.url, "--speed", "max", "--output", "json"];
    let mut child = tidb_sim(&arguments).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = tokio::task::block_in_place(|| await_event(&mut lines, "ready"));
    assert!(ready["pd"].as_str().unwrap().starts_with("http://127.0.0.1:"), "{ready}");

    // A witness for whatever comes: it has no script, and its own clock only.
    let script = Arc::new(Script::new(Vec::new(), [], Vec::new()).unwrap());
    let cluster = simulator::cluster::Cluster::live(ready["cluster_id"].as_u64().unwrap());
    let witness = Witness::silent(cluster, script);
    witness.pump(&etcd.url, 1).await;
    let played = tokio::task::block_in_place(|| await_event(&mut lines, "played"));
    assert_eq!((&played["faithful"], &played["done"]), (&Json::Bool(true), &ready["records"]));
    assert_eq!(witness.seen().arrived.len() as u64, played["done"].as_u64().unwrap());
    assert!(played["tso"].as_u64() > played["newest_commit_ts"].as_u64(), "{played}");

    // It keeps standing in, and ends on SIGTERM with success.
    let mut pd = etcd_client::Client::connect([ready["pd"].as_str().unwrap()], None).await.unwrap();
    assert_eq!(pd.get("/tidb-binlog/v1/pumps/pump-1", None).await.unwrap().kvs().len(), 1);
    let kill = Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert!(kill.success());
    let status = tokio::task::spawn_blocking(move || child.wait().unwrap());
    let status = tokio::time::timeout(Duration::from_secs(120), status).await.unwrap().unwrap();
    assert!(status.success(), "{status}");
}

#[test]
fn bad_input_is_named() {
    for (arguments, needle) in [
        ("play /nowhere --etcd http://127.0.0.1:1", "/nowhere"),
        ("play .", "--etcd"),
        ("play . --etcd http://127.0.0.1:1", "not a recording"),
        ("play . --speed fast", "speed"),
        ("load --etcd http://127.0.0.1:1 --listen 256.0.0.1:1", "256.0.0.1:1"),
        ("load --payload much", "much"),
        ("serve --late-share 2", "from 0 to 1"),
    ] {
        let words: Vec<&str> = arguments.split(' ').collect();
        let output = tidb_sim(&words).current_dir("src").output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(needle), "{arguments}: {error}");
    }
}
