//! The segment log: what the pump acknowledged, written once, synced, and read back in commit_ts order.
//!
//! ```text
//!  records ──▶ Appender ──one write, one fdatasync──▶ 00000000000000000000.seg 00000000000067108864.seg … spare-….seg
//!                 │                                      ▲ binlogs, verbatim
//!                 └─ pairing ─▶ *.run, *.spill ──────────┘ (commit_ts, start_ts, positions), sorted
//!                                             ▲
//!  Reader ── (after, upto] ───────────────────┘          mark: durable up to here   checkpoint: the index's state
//! ```
//!
//! **The log** is a chain of segment files. A segment is reserved and written over with zeros before it is used (the
//! keeper does it ahead of time), because a sync into written space changes no metadata and takes about half the time of a
//! sync of an append. A record that is longer than a segment gets one of its own size. Every record carries a CRC-32C, a
//! sequence number without gaps, and the generation of its segment file, so that bytes of an earlier use of the file are
//! never taken for records.
//!
//! **The index** is derived. Open prewrites are in memory (their number is the sorter's to bound), and so are commits that no
//! recorded watermark has passed, up to a number of bytes; what the watermark passes, and what is beyond that, is written
//! to sorted files. Memory does not grow with the backlog, nor while the watermark stands.
//! A checkpoint saves the state now and then; a start replays the log from there. Without one, the index is rebuilt from
//! the whole log, which has everything, watermarks and verdicts too.
//!
//! **Order**: [`Reader::scan`] returns transactions in commit_ts order. A record must not contradict those before it: a
//! commit needs a prewrite, and lies above every watermark recorded before ([`StoreError::Unfounded`] otherwise).
//!
//! **A crash** leaves at most a part of the last batch, which was not acknowledged; it is cut. Anything else that is
//! missing is refused at the start with the file, the offset and the sequence numbers ([`StoreError`]): a later record behind
//! a damaged one, an end before the mark, a missing segment. What is assumed of the disk: a synced sector stays, and a
//! sector of 512 bytes is written whole or not at all.
//!
//! **The first failed write or sync** stops the writer for good: what the disk holds is unknown then, and a repeated sync
//! may claim success for pages that were lost. A full disk is no such failure: space is reserved before anything is
//! written, and a part of it can be kept back for commits, without which nothing could be drained ([`Appender::admits`]).

mod appender;
mod checkpoint;
mod disk;
mod index;
mod keeper;
mod log;
mod mark;
mod open;
mod pairing;
mod reader;
mod record;
mod recover;
mod run;
mod scan;
mod segment;

#[cfg(test)]
mod cases;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod model;
#[cfg(test)]
mod rot;
#[cfg(test)]
mod standing;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tidb::ts::{CommitTs, StartTs, Tso};

pub use self::appender::Appender;
pub use self::open::open;
pub use self::pairing::{Committed, Place};
pub use self::reader::{Reader, Scan, Stored};
pub use self::segment::Position;

/// How the log uses its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Length of a segment file in bytes; a multiple of 4096, at least 8192. Collected space is given back in such pieces.
    pub segment_bytes: u64,
    /// Segments prepared ahead of the writer.
    pub spares: usize,
    /// Collected segments kept for reuse beside those.
    pub recycled: usize,
    /// Bytes that prewrites may not use, so that commits can still be stored on a full disk.
    pub reserve_bytes: u64,
    /// Bytes of memory for commits that no recorded watermark has passed; more are spilled to files.
    pub waiting_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            spares: 1,
            recycled: 2,
            reserve_bytes: 16 << 20,
            waiting_bytes: 64 << 20,
        }
    }
}

impl Options {
    /// The defaults, scaled down so that what is prepared and held back stays a small part of a volume of `bytes`.
    pub fn for_volume(bytes: u64) -> Self {
        let whole = Self::default();
        let mut segment_bytes = whole.segment_bytes;
        while segment_bytes > 1 << 20 && segment_bytes > bytes / 64 {
            segment_bytes /= 2;
        }
        whole.with_segments_of(segment_bytes)
    }

    /// The same with segments of this length, and a reserve to match.
    pub fn with_segments_of(self, segment_bytes: u64) -> Self {
        Self { segment_bytes, reserve_bytes: segment_bytes / 4, ..self }
    }
}

/// Why a prewrite is never emitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// TiKV rolled the transaction back, or it can no longer commit.
    RolledBack,
    /// A second copy that came after another pump's acknowledgement: the other pump emits it.
    LateCopy {
        /// When the transaction committed.
        commit_ts: CommitTs,
    },
    /// TiKV may have forgotten the transaction: a declared gap.
    Unknown,
}

/// One change to the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A prewrite, open from now on.
    Prewrite {
        /// The transaction.
        start_ts: StartTs,
        /// Lower bound of its commit_ts (exclusive).
        floor: Tso,
        /// The binlog as received; below 4 GiB.
        payload: Bytes,
    },
    /// A raised floor of an open prewrite, or news of its rollback binlog.
    Floor {
        /// The transaction.
        start_ts: StartTs,
        /// Its new floor.
        floor: Tso,
        /// TiDB sent a rollback binlog for it.
        rollback_seen: bool,
    },
    /// An open (or wrongly dropped) prewrite has committed.
    Commit {
        /// The transaction.
        start_ts: StartTs,
        /// Its place in the order.
        commit_ts: CommitTs,
        /// The commit binlog as received; empty if TiKV told us.
        payload: Bytes,
    },
    /// An open prewrite will never be emitted.
    Dropped {
        /// The transaction.
        start_ts: StartTs,
        /// Why.
        fate: Fate,
        /// Its floor, by which it is collected.
        floor: Tso,
    },
    /// A transaction that this pump cannot deliver.
    Gap(Gap),
    /// The watermark: every commit to come is above it. To be recorded about once a second while there is traffic; what
    /// it passes leaves memory.
    Watermark(Tso),
    /// Transactions at or below it are not needed any more, and may not be read. The space of whole segments is given back
    /// once every prewrite in them is settled at or below; one that is not holds its segment and all behind it.
    Collected(Tso),
}

impl Record {
    /// Bytes that the record adds to a group, roughly.
    pub fn weight(&self) -> usize {
        let variable = match self {
            Self::Prewrite { payload, .. } | Self::Commit { payload, .. } => payload.len(),
            Self::Gap(gap) => gap.cause.len(),
            Self::Floor { .. } | Self::Dropped { .. } | Self::Watermark(_) | Self::Collected(_) => 0,
        };
        variable + 64
    }
}

/// A transaction that was acknowledged and cannot be delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    /// The transaction.
    pub start_ts: StartTs,
    /// It committed above this, if at all.
    pub after: Tso,
    /// It committed at or below this, if at all. Above the watermark when the gap was declared: whoever reads up to it
    /// learns of the gap before.
    pub upto: Tso,
    /// What happened, for the operator.
    pub cause: String,
}

/// An open prewrite as found at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pending {
    /// The transaction.
    pub start_ts: StartTs,
    /// Lower bound of its commit_ts (exclusive).
    pub floor: Tso,
    /// TiDB sent a rollback binlog for it.
    pub rollback_seen: bool,
}

/// What the store knew when it was opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Prewrites without settlement, by start_ts.
    pub pending: Vec<Pending>,
    /// The watermark as last saved; the true one may have been higher.
    pub watermark: Tso,
    /// The greatest start_ts of a prewrite, zero if none.
    pub newest_start: Tso,
    /// The greatest timestamp of any kind: PD's next one must be greater.
    pub newest: Tso,
    /// Nothing was ever stored here.
    pub empty: bool,
    /// Records read at this start.
    pub replayed: u64,
    /// There was no usable checkpoint, so the index was rebuilt from the whole log.
    pub rebuilt: bool,
}

/// Why the store cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file could not be read, listed or opened.
    #[error("{}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Records are gone although later ones are there.
    #[error(
        "{}: acknowledged records {from} to {to} are damaged or missing at offset {offset}, later ones are there; restore \
         the directory from a copy, or declare this pump lost with `binlogctl -cmd update-pump -node-id … -state offline`",
        path.display()
    )]
    Hole {
        /// The segment in which the hole ends.
        path: PathBuf,
        /// Where whole records end in it.
        offset: u64,
        /// The first sequence number that is missing.
        from: u64,
        /// The last one.
        to: u64,
    },
    /// The log ends before what was durable.
    #[error(
        "{}: the log ends at offset {offset}, but records {from} to {to} had been acknowledged; restore the directory \
         from a copy, or declare this pump lost with `binlogctl -cmd update-pump -node-id … -state offline`",
        path.display()
    )]
    LostTail {
        /// The last segment.
        path: PathBuf,
        /// Where it ends.
        offset: u64,
        /// The first sequence number that is missing.
        from: u64,
        /// The last one known to have been durable.
        to: u64,
    },
    /// Segment files are not there.
    #[error("{}: the part of the log before this file is gone (positions {from} to {to})", next.display())]
    MissingSegment {
        /// Where the missing part begins.
        from: Position,
        /// Where the log goes on.
        to: Position,
        /// The segment there.
        next: PathBuf,
    },
    /// No segment file is there although there were records.
    #[error("{}: all segments of the log are gone; records below {sequence} had been acknowledged", dir.display())]
    AllMissing {
        /// The log's directory.
        dir: PathBuf,
        /// The sequence number that the next record would have had.
        sequence: u64,
    },
    /// A segment's first block is damaged.
    #[error("{}: the segment's first block is damaged; restore it from a copy", path.display())]
    BadSegment {
        /// Which file.
        path: PathBuf,
    },
    /// The mark is missing or damaged.
    #[error("{}: missing or damaged; without it a lost tail of the log cannot be noticed; restore it from a copy", path.display())]
    NoMark {
        /// Which file.
        path: PathBuf,
    },
    /// What is there is not what was written.
    #[error("{}, offset {offset}: {what}", path.display())]
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// Where.
        offset: u64,
        /// What does not fit.
        what: &'static str,
    },
    /// A record contradicts what came before it: a commit without a prewrite or at or below a recorded watermark, news of a
    /// prewrite that is not open. When appending, nothing was written.
    #[error("a record of transaction {start_ts} contradicts what is stored before it")]
    Unfounded {
        /// Which transaction.
        start_ts: StartTs,
    },
    /// There is no space. Nothing was written; the same call may succeed later.
    #[error("{}: no space left for the log", dir.display())]
    NoSpace {
        /// The log's directory.
        dir: PathBuf,
    },
    /// A payload of 4 GiB or more, which the format cannot hold. Nothing was written.
    #[error("the binlog of transaction {start_ts} has {len} bytes, the log's limit is {}", u32::MAX)]
    TooLarge {
        /// Which transaction.
        start_ts: StartTs,
        /// Its binlog's length.
        len: usize,
    },
    /// A write or sync failed. Whether it reached the disk is unknown: the process has to end.
    #[error("the log stopped: {reason}")]
    Stopped {
        /// The first failure.
        reason: Arc<str>,
    },
    /// Transactions that were asked for were collected.
    #[error("transactions up to commit_ts {oldest} were collected, those after {requested} were asked for")]
    Collected {
        /// What was asked for.
        requested: CommitTs,
        /// Reading begins after this.
        oldest: CommitTs,
    },
    /// It was written, but the sync failed: the writer has stopped.
    #[error("the record at position {position} is not durable")]
    Unsynced {
        /// Where it would be.
        position: Position,
    },
    /// The options make no sense.
    #[error("{0}")]
    Options(&'static str),
}

impl StoreError {
    /// True if the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NoSpace { .. } => true,
            Self::Read { .. }
            | Self::Hole { .. }
            | Self::LostTail { .. }
            | Self::MissingSegment { .. }
            | Self::AllMissing { .. }
            | Self::BadSegment { .. }
            | Self::NoMark { .. }
            | Self::Corrupt { .. }
            | Self::Unfounded { .. }
            | Self::TooLarge { .. }
            | Self::Stopped { .. }
            | Self::Collected { .. }
            | Self::Unsynced { .. }
            | Self::Options(_) => false,
        }
    }
}
