//! The one writer: decides what each write means, groups writes into one synced append, then answers them all.
//!
//! ```text
//! WriteBinlog ─┐                 ┌─ append (one sync) ─▶ sorter ─▶ answers
//! resolver ────┼─▶ queue ─▶ group┤
//! retention ───┘                 └─ error ─▶ nobody is answered, the process ends and says why
//! ```
//!
//! A group is whatever waits in the queue, up to a byte budget: no timer, so an idle pump answers at once and a busy one
//! shares each sync among many. Prewrites enter the sorter when the group is made (before they are written); settlements
//! reach it when the group is durable. A crash anywhere loses only what nobody was told.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tidb::ts::{CommitTs, StartTs, Tso};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};
use tracing::{error, warn};

use crate::metrics;
use crate::progress::{Effect, Progress};
use crate::sorter::Judgement;
use crate::store::{Appender, Fate, Reader, Record, Recovered, StoreError};

/// Writes that may wait; their bytes are bounded by whoever took them in.
const QUEUE: usize = 16 * 1024;

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
    /// The writer has ended.
    #[error("the pump is going down")]
    Stopped,
}

struct Job {
    write: Write,
    answer: oneshot::Sender<Result<Outcome, Refusal>>,
    /// The share of the receive budget that the write holds until it is answered.
    _permit: Option<OwnedSemaphorePermit>,
}

/// Hands writes to the writer. The writer ends when the last handle is gone.
#[derive(Clone)]
pub struct WriteHandle {
    queue: mpsc::Sender<Job>,
}

impl WriteHandle {
    /// Waits until the write is durable. Not cancel-safe in one respect: when the future is dropped the write may still
    /// be made. `permit` is held until then.
    ///
    /// # Errors
    /// The write contradicts what is stored, or the pump is going down.
    pub async fn write(
        &self,
        write: Write,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Result<Outcome, Refusal> {
        let (answer, answered) = oneshot::channel();
        self.queue.send(Job { write, answer, _permit: permit }).await.map_err(|_| Refusal::Stopped)?;
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
        while let Some(job) = self.queue.blocking_recv() {
            let mut group = Group::default();
            let mut answers = Vec::new();
            let mut next = Some(job);
            while let Some(Job { write, answer, _permit }) = next {
                let decided = self.decider.decide(write, &mut group)?;
                answers.push((answer, decided, _permit));
                next = if group.bytes < self.group_bytes { self.queue.try_recv().ok() } else { None };
            }
            if saved.elapsed() >= SAVE_EVERY && !group.records.is_empty() {
                group.push(Record::Watermark(self.decider.progress.watermark()));
                saved = Instant::now();
            }
            self.commit(group)?;
            for (answer, decided, permit) in answers {
                drop(permit);
                // The caller may have given up; the write is durable all the same.
                let _ = answer.send(decided);
            }
        }
        self.appender.append(&[Record::Watermark(self.decider.progress.watermark())])
    }

    fn commit(&mut self, group: Group) -> Result<(), StoreError> {
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
            result?;
        }
        self.decider.progress.apply(group.effects);
        Ok(())
    }
}

/// Writes that become durable together.
#[derive(Default)]
struct Group {
    records: Vec<Record>,
    effects: Vec<Effect>,
    bytes: usize,
    prewrites: HashMap<StartTs, Bytes>,
    settled: HashMap<StartTs, Option<CommitTs>>,
}

impl Group {
    fn push(&mut self, record: Record) {
        self.bytes += record.weight();
        self.records.push(record);
    }

    fn settle(&mut self, start_ts: StartTs, commit_ts: Option<CommitTs>, record: Record) {
        self.push(record);
        self.effects.push(Effect::Settle(start_ts));
        self.settled.insert(start_ts, commit_ts);
    }
}

/// Decides what a write means, given the store, the sorter and the group being made.
struct Decider {
    reader: Reader,
    progress: Arc<Progress>,
    /// No prewrite above it is stored, so none need be looked for.
    newest_start: Tso,
    /// Open prewrites whose rollback binlog came.
    rollback_seen: HashSet<StartTs>,
}

impl Decider {
    fn new(reader: Reader, progress: Arc<Progress>, recovered: &Recovered) -> Self {
        let rollback_seen =
            recovered.pending.iter().filter(|open| open.rollback_seen).map(|open| open.start_ts).collect();
        Self { reader, progress, newest_start: recovered.newest_start, rollback_seen }
    }

    fn decide(&mut self, write: Write, group: &mut Group) -> Result<Result<Outcome, Refusal>, StoreError> {
        match write {
            Write::Prewrite { start_ts, payload } => self.prewrite(start_ts, payload, group),
            Write::Commit { start_ts, commit_ts, payload } => {
                self.commit(start_ts, commit_ts, payload, group)
            }
            Write::RollbackSeen { start_ts } => Ok(Ok(self.rollback_seen(start_ts, group))),
            Write::Verdict { start_ts, verdict } => self.verdict(start_ts, verdict, group),
            Write::SaveWatermark => {
                group.push(Record::Watermark(self.progress.watermark()));
                Ok(Ok(Outcome::Stored))
            }
            Write::Collect(ts) => {
                group.push(Record::Collected(ts));
                Ok(Ok(Outcome::Stored))
            }
        }
    }

    fn prewrite(
        &mut self,
        start_ts: StartTs,
        payload: Bytes,
        group: &mut Group,
    ) -> Result<Result<Outcome, Refusal>, StoreError> {
        let stored = match group.prewrites.get(&start_ts) {
            Some(payload) => Some(payload.clone()),
            None if start_ts.0 <= self.newest_start => self.reader.prewrite(start_ts)?,
            None => None,
        };
        if let Some(stored) = stored {
            metrics::repeated("prewrite");
            if stored != payload {
                error!(%start_ts, "a prewrite binlog came again with other contents, refused");
                return Ok(Err(Refusal::PrewriteDiffers { start_ts }));
            }
            return Ok(Ok(Outcome::Repeated));
        }
        let floor = self.progress.prewrite(start_ts);
        self.newest_start = self.newest_start.max(start_ts.0);
        group.prewrites.insert(start_ts, payload.clone());
        group.push(Record::Prewrite { start_ts, floor, payload });
        Ok(Ok(Outcome::Stored))
    }

    fn commit(
        &mut self,
        start_ts: StartTs,
        commit_ts: CommitTs,
        payload: Bytes,
        group: &mut Group,
    ) -> Result<Result<Outcome, Refusal>, StoreError> {
        if let Some(settled) = group.settled.get(&start_ts) {
            return Ok(if *settled == Some(commit_ts) {
                Ok(Outcome::Repeated)
            } else {
                Err(Refusal::CommitDiffers { start_ts, commit_ts })
            });
        }
        match self.progress.judge(start_ts, commit_ts) {
            Judgement::Emit => {
                self.rollback_seen.remove(&start_ts);
                group.settle(start_ts, Some(commit_ts), Record::Commit { start_ts, commit_ts, payload });
                Ok(Ok(Outcome::Stored))
            }
            Judgement::Late { floor } => {
                self.rollback_seen.remove(&start_ts);
                metrics::late_copy();
                warn!(%start_ts, %commit_ts, %floor, "late copy of a prewrite that another pump took, not emitted here");
                let record = Record::Dropped { start_ts, fate: Fate::LateCopy { commit_ts }, floor };
                group.settle(start_ts, Some(commit_ts), record);
                Ok(Ok(Outcome::LateCopy))
            }
            Judgement::NotPending => self.commit_of_settled(start_ts, commit_ts, payload, group),
        }
    }

    fn commit_of_settled(
        &mut self,
        start_ts: StartTs,
        commit_ts: CommitTs,
        payload: Bytes,
        group: &mut Group,
    ) -> Result<Result<Outcome, Refusal>, StoreError> {
        if self.reader.has_commit(start_ts, commit_ts)? {
            metrics::repeated("commit");
            return Ok(Ok(Outcome::Repeated));
        }
        match self.reader.dropped(start_ts)? {
            Some((Fate::LateCopy { commit_ts: known }, _)) if known == commit_ts => Ok(Ok(Outcome::Repeated)),
            Some((Fate::RolledBack | Fate::Unknown, _)) => {
                Ok(Ok(self.overrule(start_ts, commit_ts, payload, group)))
            }
            Some((Fate::LateCopy { .. }, _)) => Ok(Err(self.contradicted(start_ts, commit_ts))),
            None if self.reader.prewrite(start_ts)?.is_some() => {
                Ok(Err(self.contradicted(start_ts, commit_ts)))
            }
            None => {
                metrics::commit_without_prewrite();
                warn!(%start_ts, %commit_ts, "commit binlog without a prewrite here, nothing to emit");
                Ok(Ok(Outcome::NoPrewrite))
            }
        }
    }

    fn contradicted(&self, start_ts: StartTs, commit_ts: CommitTs) -> Refusal {
        error!(%start_ts, %commit_ts, "a settled transaction was committed a second time, refused");
        Refusal::CommitDiffers { start_ts, commit_ts }
    }

    /// TiKV's word was "rolled back", and now TiDB says that it committed. The prewrite is still stored: if its place is
    /// still ahead of the stream it is emitted, otherwise the loss is declared.
    fn overrule(
        &mut self,
        start_ts: StartTs,
        commit_ts: CommitTs,
        payload: Bytes,
        group: &mut Group,
    ) -> Outcome {
        // Open again, so that the watermark cannot pass it until it is durable.
        let floor = self.progress.prewrite(start_ts);
        if commit_ts.0 > floor {
            warn!(%start_ts, %commit_ts, "committed although TiKV had called it rolled back, emitted all the same");
            group.settle(start_ts, Some(commit_ts), Record::Commit { start_ts, commit_ts, payload });
            return Outcome::Stored;
        }
        let cause = format!(
            "committed at {commit_ts} although TiKV had called it rolled back; the stream is past it"
        );
        error!(%start_ts, %commit_ts, cause, "transaction cannot be delivered any more, gap declared");
        metrics::gap();
        group.settle(start_ts, Some(commit_ts), Record::Gap { start_ts, at: commit_ts.0, cause });
        Outcome::Stored
    }

    fn rollback_seen(&mut self, start_ts: StartTs, group: &mut Group) -> Outcome {
        match self.progress.floor(start_ts) {
            Some(floor) if !group.settled.contains_key(&start_ts) => {
                self.rollback_seen.insert(start_ts);
                group.push(Record::Floor { start_ts, floor, rollback_seen: true });
                Outcome::Stored
            }
            Some(_) => Outcome::Repeated,
            None => Outcome::NoPrewrite,
        }
    }

    fn verdict(
        &mut self,
        start_ts: StartTs,
        verdict: Verdict,
        group: &mut Group,
    ) -> Result<Result<Outcome, Refusal>, StoreError> {
        // TiDB's own commit binlog may have come while TiKV was asked.
        let floor = match self.progress.floor(start_ts) {
            Some(floor) if !group.settled.contains_key(&start_ts) => floor,
            _ => return Ok(Ok(Outcome::Repeated)),
        };
        match verdict {
            Verdict::Committed(commit_ts) => return self.commit(start_ts, commit_ts, Bytes::new(), group),
            Verdict::Above(raised) if raised > floor => {
                let rollback_seen = self.rollback_seen.contains(&start_ts);
                group.push(Record::Floor { start_ts, floor: raised, rollback_seen });
                group.effects.push(Effect::Raise(start_ts, raised));
            }
            Verdict::Above(_) => {}
            Verdict::RolledBack => {
                self.rollback_seen.remove(&start_ts);
                group.settle(start_ts, None, Record::Dropped { start_ts, fate: Fate::RolledBack, floor });
            }
            Verdict::Unknown { cause } => {
                self.rollback_seen.remove(&start_ts);
                error!(%start_ts, cause, "TiKV may have forgotten a transaction, gap declared");
                metrics::gap();
                group.push(Record::Gap { start_ts, at: floor, cause });
                group.settle(start_ts, None, Record::Dropped { start_ts, fate: Fate::Unknown, floor });
            }
        }
        Ok(Ok(Outcome::Stored))
    }
}
