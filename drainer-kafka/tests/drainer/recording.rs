//! The recordings under `tests/fixtures` of the workspace: transactions in commit order, DDL history, states.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use drainer_kafka::schema::history::{HistoryError, SchemaHistory};
use drainer_kafka::transaction::{DdlBinlog, Transaction};
use flate2::read::GzDecoder;
use prost::Message as _;
use schemas::binlog::{Binlog, BinlogType};
use serde::Deserialize;
use serde_json::value::RawValue;
use tidb::model::{Job, TableInfo};
use tidb::ts::{CommitTs, StartTs};

/// Every recording.
pub(crate) const ALL: [&str; 8] =
    ["shop", "concurrent", "orphans", "types", "keys", "ddl", "random", "large"];

/// One table of a state.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct StateTable {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    #[serde(default)]
    pub(crate) columns: Vec<String>,
    #[serde(default)]
    pub(crate) rows: Vec<Vec<Option<Cell>>>,
}

/// A value as the text protocol returned it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(untagged)]
pub(crate) enum Cell {
    Text(String),
    Hex { hex: String },
}

impl Cell {
    pub(crate) fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Text(text) => text.clone().into_bytes(),
            Self::Hex { hex } => (0..hex.len())
                .step_by(2)
                .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
                .collect(),
        }
    }
}

/// The database at one timestamp.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct State {
    pub(crate) label: String,
    pub(crate) commit_ts: u64,
    pub(crate) tables: BTreeMap<String, StateTable>,
}

/// A recording.
pub(crate) struct Recording {
    pub(crate) transactions: Vec<Transaction>,
    pub(crate) jobs: Vec<Job>,
    pub(crate) history: Vec<Box<RawValue>>,
    pub(crate) states: Vec<State>,
}

#[derive(Deserialize)]
struct TxnStatus {
    start_ts: u64,
    status: String,
    commit_ts: u64,
}

fn folder(name: &str) -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("../tests/fixtures").join(name)
}

fn unzipped(path: &Path) -> Vec<u8> {
    let mut out = Vec::new();
    GzDecoder::new(File::open(path).unwrap()).read_to_end(&mut out).unwrap();
    out
}

impl Recording {
    pub(crate) fn load(name: &str) -> Self {
        let folder = folder(name);
        let mut prewrites = HashMap::new();
        let mut commits = HashMap::new();
        let mut states = Vec::new();
        for entry in std::fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let file = path.file_name().unwrap().to_str().unwrap().to_owned();
            if file.starts_with("pump-") {
                frames(&unzipped(&path), &mut prewrites, &mut commits);
            } else if file.starts_with("state-") {
                states.push(serde_json::from_slice::<State>(&unzipped(&path)).unwrap());
            }
        }
        if let Ok(text) = std::fs::read(folder.join("txn-status.json")) {
            for status in serde_json::from_slice::<Vec<TxnStatus>>(&text).unwrap() {
                if status.status == "committed" {
                    commits.insert(status.start_ts, status.commit_ts);
                }
            }
        }
        states.sort_by_key(|state| state.commit_ts);
        let mut transactions: Vec<Transaction> = commits
            .into_iter()
            .map(|(start_ts, commit_ts)| transaction(&prewrites[&start_ts], start_ts, commit_ts))
            .collect();
        transactions.sort_by_key(|t| t.commit_ts);
        let history = unzipped(&folder.join("ddl-history.json.gz"));
        let jobs = Job::parse_list(&history).unwrap();
        Self { transactions, jobs, history: serde_json::from_slice(&history).unwrap(), states }
    }

    pub(crate) fn job(&self, id: i64) -> Option<&Job> {
        self.jobs.iter().find(|job| job.id == id)
    }
}

fn frames(mut data: &[u8], prewrites: &mut HashMap<u64, Binlog>, commits: &mut HashMap<u64, u64>) {
    while let Some((head, rest)) = data.split_first_chunk::<12>() {
        let length = u32::from_be_bytes([head[8], head[9], head[10], head[11]]) as usize;
        let (payload, rest) = rest.split_at(length);
        data = rest;
        if payload.is_empty() {
            continue;
        }
        let binlog = Binlog::decode(Bytes::copy_from_slice(payload)).unwrap();
        let start_ts = binlog.start_ts() as u64;
        match binlog.tp() {
            BinlogType::Prewrite => {
                prewrites.insert(start_ts, binlog);
            }
            BinlogType::Commit => {
                commits.insert(start_ts, binlog.commit_ts() as u64);
            }
            BinlogType::Rollback | BinlogType::PreDdl | BinlogType::PostDdl => {}
        }
    }
}

fn transaction(prewrite: &Binlog, start_ts: u64, commit_ts: u64) -> Transaction {
    let ddl = (prewrite.ddl_job_id() > 0).then(|| DdlBinlog {
        job_id: prewrite.ddl_job_id(),
        query: prewrite.ddl_query.clone().unwrap_or_default(),
        schema_state: prewrite.ddl_schema_state(),
    });
    Transaction {
        start_ts: StartTs::new(start_ts),
        commit_ts: CommitTs::new(commit_ts),
        payload: prewrite.prewrite_value.clone().unwrap_or_default(),
        ddl,
        budget: None,
    }
}

/// A recording's history, page by page as the status port gives it.
impl SchemaHistory for Recording {
    async fn page(&self, start_job_id: i64) -> Result<Bytes, HistoryError> {
        let page: Vec<&RawValue> = self
            .history
            .iter()
            .zip(&self.jobs)
            .filter(|(_, job)| start_job_id == 0 || job.id <= start_job_id)
            .map(|(raw, _)| raw.as_ref())
            .take(10)
            .collect();
        Ok(serde_json::to_vec(&page).unwrap().into())
    }

    async fn job(&self, job_id: i64, _: StartTs) -> Result<Option<Job>, HistoryError> {
        Ok(Self::job(self, job_id).cloned())
    }

    async fn table(&self, _: i64) -> Result<Option<TableInfo>, HistoryError> {
        Ok(None)
    }

    async fn schema(&self, _: Option<&str>) -> Result<Bytes, HistoryError> {
        Ok(Bytes::from_static(b"null"))
    }
}
