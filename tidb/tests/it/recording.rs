//! Reading a folder of `tests/fixtures/` (its README says what the files hold).

use std::{
    collections::{BTreeMap, HashMap},
    fs::File,
    io::Read,
    path::PathBuf,
};

use bytes::Bytes;
use flate2::read::GzDecoder;
use serde_json::Value as Json;
use tidb::{
    binlog::{Header, Kind},
    model::{ActionType, Job, TableInfo},
    ts::{CommitTs, StartTs},
};

pub(crate) const NAMES: [&str; 8] =
    ["concurrent", "ddl", "keys", "large", "orphans", "random", "shop", "types"];

fn unzip(name: &str, file: &str) -> Vec<u8> {
    let path = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap())
        .join("../tests/fixtures")
        .join(name)
        .join(file);
    let mut out = Vec::new();
    GzDecoder::new(File::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
        .read_to_end(&mut out)
        .unwrap();
    out
}

/// The payloads of all pumps, liveness probes left out.
pub(crate) fn payloads(name: &str) -> Vec<Bytes> {
    let mut payloads = Vec::new();
    for pump in 1..=3 {
        let file = format!("pump-{pump}.rec.gz");
        let path = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap())
            .join("../tests/fixtures")
            .join(name)
            .join(&file);
        if !path.try_exists().unwrap() {
            continue;
        }
        let data = Bytes::from(unzip(name, &file));
        let mut at = 0;
        while at < data.len() {
            let len = u32::from_be_bytes(data[at + 8..at + 12].try_into().unwrap()) as usize;
            if len > 0 {
                payloads.push(data.slice(at + 12..at + 12 + len));
            }
            at += 12 + len;
        }
        assert_eq!(at, data.len());
    }
    assert!(!payloads.is_empty());
    payloads
}

/// The body of `/ddl/history`.
pub(crate) fn history_body(name: &str) -> Vec<u8> {
    unzip(name, "ddl-history.json.gz")
}

/// All recorded states.
pub(crate) fn states(name: &str) -> Vec<Json> {
    let folder =
        PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("../tests/fixtures").join(name);
    let files =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let states = files.filter(|file| file.starts_with("state-"));
    states.map(|file| serde_json::from_slice(&unzip(name, &file)).unwrap()).collect()
}

/// A committed transaction: its prewrite record and its commit_ts.
pub(crate) struct Transaction {
    pub(crate) commit_ts: CommitTs,
    pub(crate) prewrite: Header,
}

/// Committed transactions, in commit order: those with a commit record, and those that TiKV says are committed.
pub(crate) fn committed(name: &str) -> Vec<Transaction> {
    let mut prewrites = HashMap::new();
    let mut commits: BTreeMap<CommitTs, StartTs> = BTreeMap::new();
    for payload in payloads(name) {
        let header = Header::decode(payload).unwrap();
        match header.kind {
            Kind::Prewrite => {
                prewrites.insert(header.start_ts, header);
            }
            Kind::Commit => assert!(commits.insert(header.commit_ts, header.start_ts).is_none()),
            Kind::Rollback => {}
        }
    }
    let folder =
        PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("../tests/fixtures").join(name);
    let status = folder.join("txn-status.json");
    if status.try_exists().unwrap() {
        let status: Json = serde_json::from_slice(&std::fs::read(status).unwrap()).unwrap();
        for answer in status.as_array().unwrap().iter().filter(|answer| answer["status"] == "committed") {
            let start_ts = StartTs::new(answer["start_ts"].as_u64().unwrap());
            commits.insert(CommitTs::new(answer["commit_ts"].as_u64().unwrap()), start_ts);
        }
    }
    let transaction =
        |(commit_ts, start_ts)| Transaction { commit_ts, prewrite: prewrites[&start_ts].clone() };
    commits.into_iter().map(transaction).collect()
}

/// One definition of a table, made by the job of that schema version; `since` is the commit_ts of the job's binlog, zero
/// if it is not in the recording.
pub(crate) struct Definition {
    pub(crate) since: CommitTs,
    pub(crate) table: TableInfo,
}

/// All definitions by table id, oldest first.
pub(crate) fn definitions(jobs: &[Job], transactions: &[Transaction]) -> HashMap<i64, Vec<Definition>> {
    let commit_ts: HashMap<i64, CommitTs> = transactions
        .iter()
        .filter(|t| t.prewrite.is_ddl() && t.prewrite.ddl_schema_state != 1)
        .map(|t| (t.prewrite.ddl_job_id, t.commit_ts))
        .collect();
    let mut jobs: Vec<&Job> = jobs.iter().filter(|j| j.state.is_applied()).collect();
    jobs.sort_by_key(|j| j.schema_version());
    let mut definitions: HashMap<i64, Vec<Definition>> = HashMap::new();
    for job in jobs {
        let since = commit_ts.get(&job.id).copied().unwrap_or_default();
        for table in job.binlog.table_info.iter().chain(&job.binlog.multiple_table_infos) {
            if job.kind == ActionType::ExchangeTablePartition {
                // The plain table takes over the id of the partition that it gave its own id to.
                let before = definitions[&table.id].last().unwrap();
                let new_id = definition_ids(&before.table)
                    .find(|id| !definition_ids(table).any(|d| d == *id))
                    .unwrap();
                let plain =
                    TableInfo { id: new_id, ..definitions[&job.table_id].last().unwrap().table.clone() };
                definitions.entry(new_id).or_default().push(Definition { since, table: plain });
            }
            definitions.entry(table.id).or_default().push(Definition { since, table: table.clone() });
        }
    }
    definitions
}

pub(crate) fn definition_ids(table: &TableInfo) -> impl Iterator<Item = i64> {
    table.partitions().into_iter().flat_map(|p| p.definitions.iter().map(|d| d.id))
}

/// The definition that holds at a place in commit order, else the first.
pub(crate) fn at(definitions: &[Definition], commit_ts: CommitTs) -> &TableInfo {
    let place = definitions.partition_point(|d| d.since < commit_ts);
    &definitions[place.saturating_sub(1)].table
}
