//! What a playback plays: TiDB's records with their times, the truth about their transactions, and the DDL jobs.
//!
//! A script comes from a recorded folder ([`crate::recording`]) or is built in code from [`Binlog`] messages.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use schemas::binlog::{Binlog, BinlogType};
use tidb::model::Job;
use tidb::ts::{CommitTs, StartTs, Tso};

use crate::schedule::{Entry, Kind};
use crate::tso::Recorded;

/// Why records cannot be played.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ScriptError {
    /// Not a `Binlog` message.
    #[error("payload is not a Binlog message: {0}")]
    Undecodable(String),
    /// A kind of record that TiDB does not send.
    #[error("record is of type {0}, which TiDB does not send")]
    Type(i32),
    /// Timestamps that cannot be.
    #[error("record of type {kind:?} has start_ts {start_ts} and commit_ts {commit_ts}, which cannot be")]
    Timestamps {
        /// What it is.
        kind: Kind,
        /// As in the record.
        start_ts: i64,
        /// As in the record.
        commit_ts: i64,
    },
    /// Two sources disagree about when a transaction committed.
    #[error("transaction {start_ts} committed at {first} by one record and at {second} by another")]
    Contradiction {
        /// The transaction.
        start_ts: StartTs,
        /// One of them.
        first: CommitTs,
        /// The other.
        second: CommitTs,
    },
    /// A timestamp that two transactions took.
    #[error("timestamp {0} belongs to two transactions")]
    Shared(Tso),
}

/// One record as TiDB sent it.
#[derive(Clone, Debug)]
pub struct Record {
    /// When it was sent, counted from any moment common to the script.
    pub at: Duration,
    /// Which pump it went to.
    pub pump: u32,
    /// The serialised `Binlog`, sent as it is.
    pub payload: Bytes,
    /// What it is.
    pub kind: Kind,
    /// Its transaction.
    pub start_ts: StartTs,
    /// A commit's timestamp.
    pub commit_ts: Option<CommitTs>,
    /// The transaction's primary key.
    pub primary: Bytes,
    /// The DDL job whose end (or, with schema state 1, whose step to delete-only) it tells of.
    pub ddl: Option<Ddl>,
}

/// The DDL part of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ddl {
    /// Job id.
    pub job_id: i64,
    /// TiDB's number of the schema state.
    pub schema_state: i32,
}

impl Record {
    /// Reads what the playback needs to know of a payload.
    pub fn new(at: Duration, pump: u32, payload: Bytes) -> Result<Self, ScriptError> {
        let binlog =
            Binlog::decode(payload.clone()).map_err(|error| ScriptError::Undecodable(error.to_string()))?;
        let (start_ts, commit_ts) = (binlog.start_ts(), binlog.commit_ts());
        let number = binlog.tp.unwrap_or_default();
        let kind = match BinlogType::try_from(number) {
            Ok(BinlogType::Prewrite) => Kind::Prewrite,
            Ok(BinlogType::Commit) => Kind::Commit,
            Ok(BinlogType::Rollback) => Kind::Rollback,
            Ok(BinlogType::PreDdl | BinlogType::PostDdl) | Err(_) => return Err(ScriptError::Type(number)),
        };
        let possible =
            start_ts > 0 && if kind == Kind::Commit { commit_ts > start_ts } else { commit_ts == 0 };
        if !possible {
            return Err(ScriptError::Timestamps { kind, start_ts, commit_ts });
        }
        let ddl = Some(Ddl { job_id: binlog.ddl_job_id(), schema_state: binlog.ddl_schema_state() });
        Ok(Self {
            at,
            pump,
            payload,
            kind,
            start_ts: StartTs(Tso::from_i64(start_ts)),
            commit_ts: (kind == Kind::Commit).then_some(CommitTs(Tso::from_i64(commit_ts))),
            primary: binlog.prewrite_key.unwrap_or_default(),
            ddl: ddl.filter(|ddl| ddl.job_id > 0),
        })
    }

    /// From a message, encoded as TiDB encodes it if fields 1, 2, 3, 7 and 8 are `Some`.
    pub fn of(at: Duration, pump: u32, binlog: &Binlog) -> Result<Self, ScriptError> {
        Self::new(at, pump, binlog.encode_to_vec().into())
    }
}

/// Everything a playback needs.
#[derive(Clone, Debug)]
pub struct Script {
    records: Vec<Record>,
    commits: HashMap<StartTs, CommitTs>,
    jobs: Vec<Job>,
}

impl Script {
    /// `records` in any order; `truth` says of transactions without a commit binlog that they committed all the same,
    /// and when (all others are rolled back); `jobs` is TiDB's DDL history at the end.
    pub fn new(
        mut records: Vec<Record>,
        truth: impl IntoIterator<Item = (StartTs, CommitTs)>,
        jobs: Vec<Job>,
    ) -> Result<Self, ScriptError> {
        records.sort_by_key(|record| record.at);
        let mut commits: HashMap<StartTs, CommitTs> = HashMap::new();
        let recorded = records.iter().filter_map(|record| Some((record.start_ts, record.commit_ts?)));
        for (start_ts, second) in recorded.chain(truth) {
            let first = *commits.entry(start_ts).or_insert(second);
            if first != second {
                return Err(ScriptError::Contradiction { start_ts, first, second });
            }
        }
        let mut owners: HashMap<Tso, StartTs> = HashMap::new();
        let starts = records.iter().map(|record| (record.start_ts.0, record.start_ts));
        for (ts, owner) in starts.chain(commits.iter().map(|(start_ts, commit_ts)| (commit_ts.0, *start_ts)))
        {
            if *owners.entry(ts).or_insert(owner) != owner {
                return Err(ScriptError::Shared(ts));
            }
        }
        Ok(Self { records, commits, jobs })
    }

    /// In the order in which they were sent.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// TiDB's DDL history.
    pub fn jobs(&self) -> &[Job] {
        &self.jobs
    }

    /// When a transaction committed; `None` if it never did.
    pub fn commit_ts(&self, start_ts: StartTs) -> Option<CommitTs> {
        self.commits.get(&start_ts).copied()
    }

    /// The records as far as their order is concerned.
    pub fn entries(&self) -> Vec<Entry> {
        let entry = |record: &Record| Entry {
            kind: record.kind,
            start_ts: record.start_ts,
            commit_ts: self.commit_ts(record.start_ts),
            pump: record.pump,
        };
        self.records.iter().map(entry).collect()
    }

    /// Every timestamp that a transaction of the script took.
    pub fn recorded(&self) -> Recorded {
        let starts = self.records.iter().map(|record| record.start_ts.0);
        Recorded::new(starts.chain(self.commits.values().map(|commit_ts| commit_ts.0)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binlog(tp: BinlogType, start_ts: i64, commit_ts: i64) -> Binlog {
        Binlog {
            tp: Some(tp.into()),
            start_ts: Some(start_ts),
            commit_ts: Some(commit_ts),
            prewrite_key: Some(Bytes::from_static(b"k")),
            ddl_job_id: Some(0),
            ddl_schema_state: Some(0),
            ..Binlog::default()
        }
    }

    fn record(tp: BinlogType, start_ts: i64, commit_ts: i64) -> Result<Record, ScriptError> {
        Record::of(Duration::ZERO, 1, &binlog(tp, start_ts, commit_ts))
    }

    #[test]
    fn refuses_what_cannot_be() {
        for (tp, start_ts, commit_ts) in [
            (BinlogType::Prewrite, 0, 0),
            (BinlogType::Prewrite, 5, 6),
            (BinlogType::Commit, 5, 5),
            (BinlogType::Rollback, 5, 6),
            (BinlogType::Commit, -5, 6),
        ] {
            let error = record(tp, start_ts, commit_ts).unwrap_err();
            assert!(matches!(error, ScriptError::Timestamps { .. }), "{error}");
        }
        assert_eq!(record(BinlogType::PreDdl, 5, 6).unwrap_err(), ScriptError::Type(3));
        let garbage = Record::new(Duration::ZERO, 1, Bytes::from_static(b"\xff\xff")).unwrap_err();
        assert!(matches!(garbage, ScriptError::Undecodable(_)), "{garbage}");
        assert_eq!(record(BinlogType::Commit, 5, 6).unwrap().primary, "k");
    }

    #[test]
    fn refuses_contradictions() {
        let commits = |pairs: &[(i64, i64)]| {
            pairs.iter().map(|(s, c)| record(BinlogType::Commit, *s, *c).unwrap()).collect::<Vec<_>>()
        };
        let truth = [(StartTs::new(5), CommitTs::new(8))];
        let error = Script::new(commits(&[(5, 7)]), truth, Vec::new()).unwrap_err();
        assert!(matches!(error, ScriptError::Contradiction { .. }), "{error}");
        let error = Script::new(commits(&[(5, 7), (6, 7)]), [], Vec::new()).unwrap_err();
        assert_eq!(error, ScriptError::Shared(Tso::new(7)));
        // A commit sent twice says the same twice.
        assert!(Script::new(commits(&[(5, 7), (5, 7)]), [], Vec::new()).is_ok());
    }
}
