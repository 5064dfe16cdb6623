//! The one writer: decides what each write means, groups writes into one synced append, then answers them all.
//!
//! ```text
//! WriteBinlog ─┐                 ┌─ append (one sync) ─▶ sorter ─▶ answers
//! resolver ────┼─▶ queue ─▶ group┤
//! retention ───┘                 └─ error ─▶ nobody is answered, the process ends and says why
//! ```
//!
//! A full disk is no error: prewrites are refused before they are decided, so that the reserve is left to the commits of
//! those that are stored; a group for which there is no space at all is refused whole and taken back. Space that comes
//! back is used by the next write. Collecting, which makes space, needs none and stands outside the groups.
//!
//! A group is whatever waits in the queue, up to a byte budget: no timer, so an idle pump answers at once and a busy one
//! shares each sync among many. Prewrites enter the sorter when the group is made (before they are written); settlements
//! reach it when the group is durable. A crash anywhere loses only what nobody was told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidb::ts::{CommitTs, StartTs, Tso};
use tokio::sync::{mpsc, oneshot};
use tracing::warn;

use crate::budget::Share;
use crate::decider::{Decider, Group};
use crate::metrics;
use crate::progress::Progress;
use crate::store::{Appender, Reader, Record, Recovered, StoreError};

/// Writes that may wait; their bytes are bounded by whoever took them in.
const QUEUE: usize = 16 * 1024;

/// Bytes that a record takes beside its payload, at most.
const OVERHEAD: usize = 64;

/// How often the watermark is saved, at most.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// Something to be made durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Write {
    /// TiDB's prewrite binlog.
    Prewrite {
        /// The transaction.
        start_ts: StartTs,
        /// As received.
        payload: Bytes,
    },
    /// TiDB's commit binlog.
    Commit {
        /// The transaction.
        start_ts: StartTs,
        /// Its place.
        commit_ts: CommitTs,
        /// As received.
        payload: Bytes,
    },
    /// TiDB's rollback binlog: a hint, not a proof.
    RollbackSeen {
        /// The transaction.
        start_ts: StartTs,
    },
    /// What TiKV said.
    Verdict {
        /// The transaction.
        start_ts: StartTs,
        /// Its state.
        verdict: Verdict,
    },
    /// Keep the present watermark.
    SaveWatermark,
    /// Transactions at or below it may be deleted from now on.
    Collect(Tso),
}

/// What TiKV said about an open prewrite.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It has committed.
    Committed(CommitTs),
    /// It has been rolled back, or can no longer commit.
    RolledBack,
    /// It is undecided, but will commit above this timestamp if at all.
    Above(Tso),
    /// TiKV may have forgotten it.
    Unknown {
        /// For the operator.
        cause: String,
    },
}

/// What a durable write was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// New, and stored.
    Stored,
    /// Stored before; nothing to do.
    Repeated,
    /// A commit at or below its prewrite's floor: another pump emits the transaction.
    LateCopy,
    /// About a transaction whose prewrite is not here; nothing to do.
    NoPrewrite,
}

/// Why a write was not made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Two prewrites of one transaction differ.
    #[error("prewrite binlog of start_ts {start_ts} differs from the one stored before")]
    PrewriteDiffers {
        /// The transaction.
        start_ts: StartTs,
    },
    /// Two commit timestamps for one transaction.
    #[error("start_ts {start_ts} is already settled, and not with commit_ts {commit_ts}")]
    CommitDiffers {
        /// The transaction.
        start_ts: StartTs,
        /// The one that came now.
        commit_ts: CommitTs,
    },
    /// The data volume is full; nothing was written.
    #[error("no available space: the volume of data-dir is full")]
    NoSpace,
    /// The writer has ended.
    #[error("the pump is going down")]
    Stopped,
}

struct Job {
    write: Write,
    caller: Caller,
}

struct Caller {
    answer: oneshot::Sender<Result<Outcome, Refusal>>,
    /// The share of the receive budget that the write holds until it is answered.
    share: Option<Share>,
}

impl Caller {
    fn answer(self, answer: Result<Outcome, Refusal>) {
        drop(self.share);
        // The caller may have given up; the write is durable all the same.
        let _ = self.answer.send(answer);
    }
}

/// Hands writes to the writer. The writer ends when the last handle is gone.
#[derive(Clone)]
pub struct WriteHandle {
    queue: mpsc::Sender<Job>,
}

impl WriteHandle {
    /// Waits until the write is durable. Not cancel-safe in one respect: when the future is dropped the write may still
    /// be made. `share` is held until then.
    ///
    /// # Errors
    /// The write contradicts what is stored, or the pump is going down.
    pub async fn write(&self, write: Write, share: Option<Share>) -> Result<Outcome, Refusal> {
        let (answer, answered) = oneshot::channel();
        self.queue
            .send(Job { write, caller: Caller { answer, share } })
            .await
            .map_err(|_| Refusal::Stopped)?;
        answered.await.unwrap_or(Err(Refusal::Stopped))
    }
}

/// The writer's own state.
pub struct Writer {
    queue: mpsc::Receiver<Job>,
    appender: Appender,
    decider: Decider,
    group_bytes: usize,
    slow: Duration,
}

impl Writer {
    /// The writer and the handle to it.
    pub fn new(
        appender: Appender,
        reader: Reader,
        progress: Arc<Progress>,
        recovered: &Recovered,
        group_bytes: usize,
        slow: Duration,
    ) -> (Self, WriteHandle) {
        let (sender, queue) = mpsc::channel(QUEUE);
        let decider = Decider::new(reader, progress, recovered);
        (Self { queue, appender, decider, group_bytes, slow }, WriteHandle { queue: sender })
    }

    /// Runs until every handle is gone. Blocking.
    ///
    /// # Errors
    /// The store failed. Nobody whose write was in hand is answered, since its state on disk is unknown.
    pub fn run(mut self) -> Result<(), StoreError> {
        let mut saved = Instant::now();
        let mut next = None;
        while let Some(job) = next.take().or_else(|| self.queue.blocking_recv()) {
            if let Write::Collect(through) = job.write {
                self.collect(through)?;
                job.caller.answer(Ok(Outcome::Stored));
                continue;
            }
            let mut group = Group::default();
            let mut answers = Vec::new();
            let mut waiting = Some(job);
            while let Some(job) = waiting {
                if matches!(job.write, Write::Collect(_)) {
                    next = Some(job);
                    break;
                }
                answers.push((job.caller, self.decide(job.write, &mut group)?));
                waiting = if group.bytes < self.group_bytes { self.queue.try_recv().ok() } else { None };
            }
            if saved.elapsed() >= SAVE_EVERY && !group.records.is_empty() {
                group.push(Record::Watermark(self.decider.progress.watermark()));
                saved = Instant::now();
            }
            let stored = self.commit(group)?;
            for (caller, decided) in answers {
                caller.answer(if stored { decided } else { Err(Refusal::NoSpace) });
            }
        }
        match self.appender.append(&[Record::Watermark(self.decider.progress.watermark())]) {
            Err(error) if !error.is_retryable() => return Err(error),
            // Without space for it the next start asks PD all the same.
            _ => {}
        }
        self.appender.close()
    }

    /// What was recorded as passed by the watermark can be collected, so that is brought up to date first, if there is space.
    fn collect(&mut self, through: Tso) -> Result<(), StoreError> {
        let watermark = Record::Watermark(self.decider.progress.watermark());
        match self.appender.append(&[watermark]) {
            Err(error) if !error.is_retryable() => Err(error),
            _ => self.appender.append(&[Record::Collected(through)]),
        }
    }

    fn decide(&mut self, write: Write, group: &mut Group) -> Result<Result<Outcome, Refusal>, StoreError> {
        if let Write::Prewrite { payload, .. } = &write
            && !self.appender.admits((group.bytes + payload.len() + OVERHEAD) as u64)?
        {
            return Ok(Err(Refusal::NoSpace));
        }
        self.decider.decide(write, group)
    }

    /// True if the group is durable, false if there is no space for it.
    fn commit(&mut self, group: Group) -> Result<bool, StoreError> {
        if !group.records.is_empty() {
            let began = Instant::now();
            let result = self.appender.append(&group.records);
            let took = began.elapsed();
            metrics::group_written(group.records.len(), group.bytes, took, result.is_ok());
            if took > self.slow {
                warn!(
                    seconds = took.as_secs_f64(),
                    bytes = group.bytes,
                    records = group.records.len(),
                    "slow write"
                );
            }
            match result {
                Ok(()) => {}
                Err(error) if error.is_retryable() => {
                    warn!(%error, records = group.records.len(), "writes are refused");
                    self.decider.undo(group);
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        self.decider.done(group);
        Ok(true)
    }
}
