//! What can be wrong with the order, the counts or the offsets.

use tidb::ts::{CommitTs, Tso};

/// Why the epoch ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SequenceError {
    /// Kafka gave an offset at or below one that a commit record already names.
    #[error(
        "offsets of {topic}[{partition}] go back: the commit stream names offset {named}, new records got {got}; the \
         topic was deleted and created again, or truncated"
    )]
    OffsetsWentBack {
        /// Topic name.
        topic: String,
        /// Partition.
        partition: i32,
        /// The greatest offset named so far.
        named: i64,
        /// The first new one.
        got: i64,
    },
    /// Delivery reports and records sent do not add up.
    #[error("{sent} records were sent to {topic}[{partition}], {delivered} were delivered")]
    Miscounted {
        /// Topic name.
        topic: String,
        /// Partition.
        partition: i32,
        /// Sent.
        sent: u64,
        /// Delivered.
        delivered: u64,
    },
    /// A transaction came out of order.
    #[error("transaction {commit_ts} comes after everything up to {watermark} was written")]
    OutOfOrder {
        /// The transaction.
        commit_ts: CommitTs,
        /// Everything up to here is in Kafka.
        watermark: Tso,
    },
    /// The log ends in the middle of another transaction than the one that comes.
    #[error(
        "the log ends after change {changes} of transaction commit_ts {commit_ts}, but the feed goes on with \
         {next}; the same pumps and the same filter rules are needed to finish it"
    )]
    UnfinishedElsewhere {
        /// Changes in Kafka.
        changes: u32,
        /// Its commit_ts.
        commit_ts: u64,
        /// What came instead.
        next: CommitTs,
    },
    /// One entry alone does not fit into a commit record.
    #[error("the entry of transaction {commit_ts} takes {bytes} bytes, more than a commit record may hold")]
    EntryTooLarge {
        /// The transaction.
        commit_ts: CommitTs,
        /// Its size.
        bytes: usize,
    },
    /// A transaction in parts shares a batch with others: a bug.
    #[error("transaction {commit_ts} was cut in a batch that holds other transactions")]
    Mixed {
        /// The transaction.
        commit_ts: CommitTs,
    },
    /// Rows and their count do not agree: a bug.
    #[error("transaction {commit_ts} announced {announced} changes and brought {brought}")]
    ChangesDiffer {
        /// The transaction.
        commit_ts: CommitTs,
        /// Announced.
        announced: u32,
        /// Brought.
        brought: u32,
    },
}
