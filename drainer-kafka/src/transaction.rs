//! One transaction of the upstream as a pump hands it over: still encoded, not yet shaped.

use std::sync::Arc;

use bytes::Bytes;
use tidb::ts::{CommitTs, StartTs};
use tokio::sync::OwnedSemaphorePermit;

/// What a DDL's binlog says: which job, the text, and the state it was written in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DdlBinlog {
    /// TiDB's job id; positive.
    pub job_id: i64,
    /// The statement as TiDB rendered it.
    pub query: Bytes,
    /// TiDB's SchemaState; 1 is DROP COLUMN's extra record, written when the column becomes delete-only.
    pub schema_state: i32,
}

/// A committed transaction. `commit_ts` is its place in the total order; no two transactions of a cluster share one.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// When it began.
    pub start_ts: StartTs,
    /// When it became visible.
    pub commit_ts: CommitTs,
    /// A serialised `PrewriteValue`; empty for a DDL.
    pub payload: Bytes,
    /// Set for a DDL.
    pub ddl: Option<DdlBinlog>,
    /// Its share of the pump's byte budget, given back when the last holder is done with it.
    pub budget: Option<Arc<OwnedSemaphorePermit>>,
}

impl Transaction {
    /// True if both are the same transaction with the same content: what a retried `WriteBinlog` leaves on two pumps.
    pub fn is_copy_of(&self, other: &Self) -> bool {
        self.start_ts == other.start_ts
            && self.commit_ts == other.commit_ts
            && self.ddl == other.ddl
            && self.payload == other.payload
    }
}
