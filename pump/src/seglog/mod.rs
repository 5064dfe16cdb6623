//! The segment log: what the pump acknowledged, written once, synced, and read back in commit_ts order.
//!
//! ```text
//!  entries ──▶ Writer ──one write, one fdatasync──▶ 00000000000000000000.seg 00000000000067108864.seg … spare-….seg
//!                │                                      ▲ payloads, verbatim
//!                └─ Pairing ──watermark──▶ *.run ───────┘ (commit_ts, start_ts, position), sorted
//!                                            ▲
//!  Reader ── after ──────────────────────────┘           mark: durable up to here   checkpoint: the index's state
//! ```
//!
//! **The log** is a chain of segment files. A segment is reserved and written over with zeros before it is used (the
//! keeper does it ahead of time), because a sync into written space changes no metadata and takes about half the time of a
//! sync of an append. A record that is longer than a segment gets one of its own size. Every record carries a CRC-32C, a
//! sequence number without gaps, and the generation of its segment file, so that bytes of an earlier use of the file are
//! never taken for records.
//!
//! **The index** is derived. Prewrites that are not settled and commits that the watermark has not passed are in memory
//! (their number is the sorter's to bound); what the watermark passes is appended to sorted files. Memory does not grow
//! with the backlog. A checkpoint saves the state now and then; a start replays the log from there. Without one, the index
//! is rebuilt from the whole log: it holds everything, watermarks and outcomes too.
//!
//! **Order**: [`Reader::scan`] returns transactions in commit_ts order, complete up to the watermark.
//!
//! **A crash** leaves at most a part of the last batch, which was not acknowledged; it is cut. Anything else that is
//! missing is refused at the start with the file, the offset and the sequence numbers ([`OpenError`]): a later record behind
//! a damaged one, an end before the mark, a missing segment. What is assumed of the disk: a synced sector stays, and a
//! sector of 512 bytes is written whole or not at all.
//!
//! **The first failed write or sync** stops the writer for good: what the disk holds is unknown then, and a repeated sync
//! may claim success for pages that were lost. A full disk is no such failure: space is reserved before anything is
//! written, and a part of it is kept back for commits, without which nothing could be drained.

mod checkpoint;
mod disk;
mod keeper;
mod log;
mod mark;
mod pairing;
mod reader;
mod record;
mod recover;
mod run;
mod scan;
mod segment;
mod writer;

#[cfg(test)]
mod crash;
#[cfg(test)]
mod model;

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tidb::ts::{CommitTs, StartTs, Tso};

pub use self::pairing::{Applied, Committed, Pending};
pub use self::reader::{Reader, Transaction};
pub use self::segment::Position;
pub use self::writer::{Collected, Writer};

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
}

impl Default for Options {
    fn default() -> Self {
        Self { segment_bytes: 64 << 20, spares: 1, recycled: 4, reserve_bytes: 16 << 20 }
    }
}

impl Options {
    /// The defaults, scaled down so that the log's own reserves take at most a sixteenth of a volume of `bytes`.
    pub fn for_volume(bytes: u64) -> Self {
        let segment_bytes = (bytes / 64).clamp(1 << 20, 64 << 20).next_power_of_two().min(64 << 20);
        Self { segment_bytes, reserve_bytes: segment_bytes / 4, ..Self::default() }
    }
}

/// Something to store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A prewrite binlog.
    Prewrite {
        /// When its transaction began.
        start_ts: StartTs,
        /// What its commit_ts will exceed, taken when the sorter took it in.
        floor: Tso,
        /// As TiDB sent it; below 4 GiB.
        payload: Bytes,
    },
    /// A commit binlog, or what TiKV said instead of one.
    Commit {
        /// Which transaction.
        start_ts: StartTs,
        /// When it became visible.
        commit_ts: CommitTs,
        /// As TiDB sent it; empty if it was learned from TiKV.
        payload: Bytes,
    },
    /// A rollback binlog: a hint, which settles nothing.
    Rollback {
        /// Which transaction.
        start_ts: StartTs,
        /// As TiDB sent it.
        payload: Bytes,
    },
    /// A verdict: the prewrite is settled and never emitted.
    Dropped {
        /// Which transaction.
        start_ts: StartTs,
    },
}

impl Entry {
    /// Which transaction it is about.
    pub fn start_ts(&self) -> StartTs {
        match self {
            Self::Prewrite { start_ts, .. }
            | Self::Commit { start_ts, .. }
            | Self::Rollback { start_ts, .. }
            | Self::Dropped { start_ts } => *start_ts,
        }
    }
}

/// Which space entries may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// Not the reserve: for prewrites.
    Keep,
    /// The reserve too: for commits, rollbacks and verdicts.
    Use,
}

/// What a log that was opened holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// Prewrites that are not settled, by start_ts.
    pub pending: Vec<Pending>,
    /// The last watermark that was saved: at or below the one that was reached.
    pub watermark: Tso,
    /// The greatest timestamp of any kind in the log. PD's must be greater.
    pub newest: Tso,
    /// Transactions at or below it were collected.
    pub collected: CommitTs,
    /// The index was rebuilt from the whole log.
    pub index_rebuilt: bool,
    /// Records replayed.
    pub replayed: u64,
}

/// Why a log cannot be opened. None of these goes away by trying again.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// Records are gone although later ones are there.
    #[error("{}: acknowledged records {from} to {to} are damaged or missing at offset {offset}, later ones are there; restore the directory from a copy, or move it away and declare this pump's data lost", path.display())]
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
    #[error("{}: the log ends at offset {offset}, but records {from} to {to} had been acknowledged; restore the directory from a copy, or move it away and declare this pump's data lost", path.display())]
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
    /// A segment file is not there.
    #[error("the log's bytes from position {from} to {to} are missing: the file before {} is gone", next.display())]
    MissingSegment {
        /// Where the missing part begins.
        from: Position,
        /// Where the log goes on.
        to: Position,
        /// The segment there.
        next: PathBuf,
    },
    /// No segment file is there although there were records.
    #[error("{}: every segment of the log is gone, records up to {sequence} had been acknowledged", dir.display())]
    AllMissing {
        /// The log's directory.
        dir: PathBuf,
        /// The sequence number that the next record would have had.
        sequence: u64,
    },
    /// A segment's first block is damaged.
    #[error("{}: the segment's first block is damaged", path.display())]
    BadSegment {
        /// Which file.
        path: PathBuf,
    },
    /// The mark is missing or damaged: it cannot be told whether the log's end is there.
    #[error("{}: missing or damaged, so nobody can tell whether the log is whole; restore it from a copy", path.display())]
    NoMark {
        /// Which file.
        path: PathBuf,
    },
    /// A commit was stored as paired, and its prewrite is not there.
    #[error("{}: the commit at offset {offset} ({commit_ts}, of {start_ts}) has no prewrite before it", path.display())]
    Orphan {
        /// The segment of the commit.
        path: PathBuf,
        /// Where it is.
        offset: u64,
        /// Its transaction.
        start_ts: StartTs,
        /// Its commit_ts.
        commit_ts: CommitTs,
    },
    /// The options make no sense.
    #[error("{0}")]
    Options(&'static str),
}

/// Why entries were not stored.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    /// There is no space for them. Entries of the same call that come before a second one for the same transaction may
    /// have been stored; none is lost if all are sent again.
    #[error("{}: no space left for more of the log", dir.display())]
    NoSpace {
        /// The log's directory.
        dir: PathBuf,
    },
    /// A payload of 4 GiB or more, which the format cannot hold. Nothing was stored.
    #[error("the binlog of transaction {start_ts} has {len} bytes, the log's limit is {}", u32::MAX)]
    TooLarge {
        /// Which transaction.
        start_ts: StartTs,
        /// Its binlog's length.
        len: usize,
    },
    /// The disk failed; nothing can be stored any more by this process.
    #[error("the log stopped: {reason}")]
    Poisoned {
        /// The first failure.
        reason: Arc<str>,
    },
}

impl AppendError {
    /// True if the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::NoSpace { .. } => true,
            Self::TooLarge { .. } | Self::Poisoned { .. } => false,
        }
    }
}

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It was collected.
    #[error("transactions up to commit_ts {oldest} were collected, {requested} was asked for")]
    Collected {
        /// What was asked for.
        requested: CommitTs,
        /// Reading begins after this.
        oldest: CommitTs,
    },
    /// The file system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
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
    /// It was not synced, and never will be: the writer stopped.
    #[error("the record at position {position} is not durable")]
    Unsynced {
        /// Where it would be.
        position: Position,
    },
}

/// Opens the log in `dir`, or begins one. The caller makes sure that nobody else has it open.
///
/// # Errors
/// Acknowledged data is missing or damaged, or the disk fails.
pub fn open(dir: &Path, options: Options) -> Result<(Writer, Reader, Recovered), OpenError> {
    let io = |source| OpenError::Io { path: dir.to_owned(), source };
    match std::fs::DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => {
            // The directory itself must survive a crash, with what it will hold.
            let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
            std::fs::File::open(parent.unwrap_or(Path::new("."))).and_then(|dir| dir.sync_all()).map_err(io)?;
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(io(error)),
    }
    writer::open_on(Arc::new(disk::Directory(dir.to_owned())), options, keeper::Pace::Thread)
}
