//! What a consumer hands to its target: transactions, schema changes and progress, in commit order.

use std::sync::Arc;

use bytes::Bytes;
use schemas::sluice::v1::{DdlEntry, Gap, Op, Origin, field};
use tidb::ts::{CommitTs, StartTs};

use crate::position::Position;
use crate::schema::Table;

/// A column's value, as the native format has it.
pub type Value = field::Value;

/// The columns of a row, in the order of the table's definition. `None`: the record does not carry the column – it did
/// not change and is not known, or is a virtual generated one.
pub type Row = Box<[Option<Value>]>;

/// One row change.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// The definition that shaped the row.
    pub table: Arc<Table>,
    /// What happened.
    pub kind: ChangeKind,
    /// Bytes it is counted with.
    pub cost: usize,
}

/// What happened to a row.
#[derive(Clone, Debug, PartialEq)]
pub enum ChangeKind {
    /// A row appeared.
    Insert {
        /// The row.
        after: Row,
    },
    /// A row changed.
    Update {
        /// The row as it was.
        before: Row,
        /// The row as it is.
        after: Row,
    },
    /// A row went away.
    Delete {
        /// The row as it was.
        before: Row,
    },
}

impl ChangeKind {
    /// The contract's name of it.
    pub fn op(&self) -> Op {
        match self {
            Self::Insert { .. } => Op::Insert,
            Self::Update { .. } => Op::Update,
            Self::Delete { .. } => Op::Delete,
        }
    }

    /// The row before, if there was one.
    pub fn before(&self) -> Option<&Row> {
        match self {
            Self::Insert { .. } => None,
            Self::Update { before, .. } | Self::Delete { before } => Some(before),
        }
    }

    /// The row after, if there is one.
    pub fn after(&self) -> Option<&Row> {
        match self {
            Self::Insert { after } | Self::Update { after, .. } => Some(after),
            Self::Delete { .. } => None,
        }
    }
}

/// A slice of a transaction's rows: all of them, unless it is larger than a slice may be. Slices of one transaction
/// follow each other; it ends with the one that has `after`.
#[derive(Debug)]
pub struct Rows {
    /// Number of the transaction.
    pub seq: u64,
    /// Its place in the order.
    pub commit_ts: CommitTs,
    /// Its identity upstream.
    pub start_ts: StartTs,
    /// Where it was first made, if another Sluice applied it upstream.
    pub origin: Option<Origin>,
    /// Number of the first change in this slice, counted within the transaction.
    pub first_change: u32,
    /// The changes, in order.
    pub changes: Vec<Change>,
    /// Bytes of the changes.
    pub cost: usize,
    /// The position after the transaction; on its last slice only.
    pub after: Option<Position>,
}

/// A schema change.
#[derive(Clone, Debug)]
pub struct Ddl {
    /// Number of the transaction.
    pub seq: u64,
    /// Its place in the order.
    pub commit_ts: CommitTs,
    /// Its identity upstream.
    pub start_ts: StartTs,
    /// What it is; the statement is always there, however long.
    pub entry: DdlEntry,
    /// The definitions it changed.
    pub before: Vec<Arc<Table>>,
    /// The definitions it made.
    pub after: Vec<Arc<Table>>,
    /// The job as TiDB's JSON, if the schema topic has it.
    pub job: Option<Bytes>,
    /// The position after it; `None` when rows with the same seq follow, which belong to it.
    pub after_position: Option<Position>,
}

/// True if the entry says what a sequence has handed out: a statement alone, for which TiDB has no job.
pub fn is_sequence_value(entry: &DdlEntry) -> bool {
    entry.statement.trim_start().get(..14).is_some_and(|head| head.eq_ignore_ascii_case("select setval("))
}

/// One step of the log.
#[derive(Debug)]
pub enum Event {
    /// A first attach found its place; nothing was applied yet.
    Attached(Position),
    /// Rows of a transaction.
    Rows(Rows),
    /// A schema change. Everything before it must be applied before it, and it before everything after it.
    Ddl(Box<Ddl>),
    /// Everything before the position was handed over.
    Passed(Position),
    /// Transactions are missing upstream, by an operator's decision; everything before the position was handed over.
    Gap {
        /// Which, and why.
        gap: Gap,
        /// The position after it; `None` within a large transaction.
        after: Option<Position>,
    },
    /// The timestamp at which to end is reached: the last event.
    Reached(Position),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_s_value_is_told_by_its_beginning() {
        let is = |statement: &str| {
            is_sequence_value(&DdlEntry { statement: statement.into(), ..Default::default() })
        };
        assert!(is("SELECT SETVAL(`d`.`s`, 5);") && is("  select setval(`s`,1)"));
        // A statement too long for the entry is empty there: that is a job's.
        assert!(!is("") && !is("select") && !is("SELECT 1") && !is("CREATE TABLE t(a int)"));
    }
}
