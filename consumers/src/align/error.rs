//! What can be wrong with a feed, each with the place where it shows.

use std::io;

use tidb::ts::CommitTs;

use crate::chain::ChainError;

/// The log does not add up. Only [`AlignError::Spill`] may heal.
#[derive(Debug, thiserror::Error)]
pub enum AlignError {
    /// The commit stream itself.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// A range lies before one already read.
    #[error(
        "the commit record at offset {commit} names offsets {first}..={last} of {topic} partition {partition}, but offsets up to {read} were already read: the partition went back"
    )]
    RangeBack {
        /// Topic of the range.
        topic: String,
        /// Its partition.
        partition: i32,
        /// Its first offset.
        first: i64,
        /// Its last offset.
        last: i64,
        /// The end of the range before it.
        read: i64,
        /// Offset of the commit record.
        commit: i64,
    },
    /// Rows are missing or there are too many.
    #[error(
        "torn transaction: {topic} partition {partition} should hold {expected} records at offsets {first}..={last} for the commit record at offset {commit}, but {seen} were there"
    )]
    Torn {
        /// Topic of the range.
        topic: String,
        /// Its partition.
        partition: i32,
        /// Its first offset.
        first: i64,
        /// Its last offset.
        last: i64,
        /// Its count.
        expected: u64,
        /// Records of these seqs that were seen.
        seen: u64,
        /// Offset of the commit record.
        commit: i64,
    },
    /// A record is not what was written.
    #[error("{topic} partition {partition} offset {offset}: {what}")]
    BadRow {
        /// Topic of the record.
        topic: String,
        /// Its partition.
        partition: i32,
        /// Its offset.
        offset: i64,
        /// What is wrong.
        what: String,
    },
    /// A transaction's records do not make it whole.
    #[error("transaction {seq} (commit_ts {commit_ts}): {what}")]
    BadTxn {
        /// The transaction.
        seq: u64,
        /// Its timestamp.
        commit_ts: CommitTs,
        /// What is wrong.
        what: String,
    },
    /// The temporary file failed.
    #[error("could not spill rows to a temporary file")]
    Spill(#[from] io::Error),
}
