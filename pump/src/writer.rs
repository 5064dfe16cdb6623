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
    /// The pump leaves for good: prewrites behind this one in the queue are refused. Those before it are open, settled or
    /// refused when it is answered.
    Close,
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
    /// A commit whose place in the stream is past: a gap was declared.
    Lost,
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
    /// A prewrite, after [`Write::Close`].
    #[error("no online: closing")]
    Closing,
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::sorter::Sorter;
    use crate::store::{self, Gap, Options};

    use super::*;

    fn prewrite(start: u64) -> Write {
        Write::Prewrite { start_ts: StartTs::new(start), payload: Bytes::from(vec![start as u8; 10]) }
    }

    fn verdict(start: u64, verdict: Verdict) -> Write {
        Write::Verdict { start_ts: StartTs::new(start), verdict }
    }

    fn commit(start: u64, commit: u64) -> Write {
        Write::Commit {
            start_ts: StartTs::new(start),
            commit_ts: CommitTs::new(commit),
            payload: Bytes::from_static(b"commit"),
        }
    }

    /// One life of a writer on the store in `dir`.
    struct Life {
        reader: Reader,
        progress: Arc<Progress>,
        recovered: Recovered,
        writer: Writer,
        handle: WriteHandle,
    }

    impl Life {
        fn begin(dir: &Path) -> Self {
            let (appender, reader, recovered) = store::open(&dir.join("store"), Options::default()).unwrap();
            let pending = recovered.pending.iter().map(|open| (open.start_ts, open.floor));
            let progress = Arc::new(Progress::new(Sorter::recover(pending, recovered.watermark)));
            let (writer, handle) = Writer::new(
                appender,
                reader.clone(),
                progress.clone(),
                &recovered,
                1 << 20,
                Duration::from_secs(60),
            );
            Self { reader, progress, recovered, writer, handle }
        }

        /// Makes all of these writes in one group, and ends.
        fn write(self, writes: impl IntoIterator<Item = Write>) -> Vec<Result<Outcome, Refusal>> {
            let answers: Vec<_> = writes
                .into_iter()
                .map(|write| {
                    let (answer, answered) = oneshot::channel();
                    let caller = Caller { answer, share: None };
                    self.handle.queue.try_send(Job { write, caller }).ok().unwrap();
                    answered
                })
                .collect();
            drop(self.handle);
            self.writer.run().unwrap();
            answers.into_iter().map(|answered| answered.blocking_recv().unwrap()).collect()
        }
    }

    /// Whoever looked at the pump's state before it closed, and came to the writer after: refused, and not stored.
    #[test]
    fn no_prewrite_comes_behind_a_close() {
        let dir = tempfile::tempdir().unwrap();
        let life = Life::begin(dir.path());
        let progress = life.progress.clone();
        let answers =
            life.write([prewrite(1), Write::Close, prewrite(2), commit(1, 3), prewrite(1), prewrite(4)]);
        let closing = Err(Refusal::Closing);
        let stored = Ok(Outcome::Stored);
        assert_eq!(
            answers,
            [stored.clone(), stored.clone(), closing.clone(), stored, closing.clone(), closing]
        );
        assert_eq!(Refusal::Closing.to_string(), "no online: closing");
        assert_eq!(progress.snapshot().pending, 0);
        assert_eq!(Life::begin(dir.path()).recovered.pending, []);
    }

    /// TiKV's word raises the floor, and the rollback binlog comes in the same group: the floor on disk is the raised one,
    /// or the watermark would fall with the next start.
    #[test]
    fn a_rollback_binlog_does_not_sink_the_floor() {
        let dir = tempfile::tempdir().unwrap();
        let life = Life::begin(dir.path());
        life.progress.tick(Tso::new(10));
        life.write([prewrite(5)])[0].clone().unwrap();

        let life = Life::begin(dir.path());
        let progress = life.progress.clone();
        progress.tick(Tso::new(20));
        let rollback = Write::RollbackSeen { start_ts: StartTs::new(5) };
        life.write([verdict(5, Verdict::Above(Tso::new(20))), rollback]);
        assert_eq!(progress.watermark(), Tso::new(20));

        let life = Life::begin(dir.path());
        let open = life.recovered.pending[0];
        assert_eq!((open.start_ts.get(), open.floor.get(), open.rollback_seen), (5, 20, true));
        life.progress.tick(Tso::new(21));
        assert!(life.progress.watermark() >= progress.watermark(), "the watermark fell");
    }

    /// A commit_ts above the floor with which the prewrite came is no late copy, whatever the floor was raised to: another
    /// pump need not have it. The gap is declared above the watermark, once, and outlives a restart.
    #[test]
    fn a_commit_that_tikv_had_ruled_out_is_a_gap() {
        let dir = tempfile::tempdir().unwrap();
        let life = Life::begin(dir.path());
        life.progress.tick(Tso::new(10));
        life.write([prewrite(5), prewrite(6)]);
        let life = Life::begin(dir.path());
        life.progress.tick(Tso::new(20));
        life.write([5, 6].map(|start| verdict(start, Verdict::Above(Tso::new(20)))));

        let life = Life::begin(dir.path());
        life.progress.tick(Tso::new(30));
        let watermark = life.progress.watermark();
        assert_eq!(watermark, Tso::new(20));
        let answers = life.write([commit(5, 15), commit(6, 9), commit(5, 15)]);
        assert_eq!(answers, [Ok(Outcome::Lost), Ok(Outcome::LateCopy), Ok(Outcome::Repeated)]);

        let life = Life::begin(dir.path());
        let gaps = life.reader.gaps_within(watermark, Tso::MAX);
        let [Gap { start_ts, after, upto, cause }] = gaps.as_slice() else { panic!("{gaps:?}") };
        assert_eq!((start_ts.get(), after.get(), upto.get()), (5, 14, 21));
        assert!(cause.contains("committed at 15"), "{cause}");
        assert!(life.reader.scan(Tso::ZERO, Tso::MAX, 1 << 20).unwrap().transactions.is_empty());
        // TiDB sends it again.
        assert_eq!(life.write([commit(5, 15)]), [Ok(Outcome::Repeated)]);
        assert_eq!(Life::begin(dir.path()).reader.gaps(9).len(), 1);
    }

    /// What TiKV may have forgotten committed after its floor and before now, if at all.
    #[test]
    fn a_forgotten_transaction_is_a_gap_up_to_now() {
        let dir = tempfile::tempdir().unwrap();
        let life = Life::begin(dir.path());
        life.progress.tick(Tso::new(10));
        life.write([prewrite(5)]);
        let life = Life::begin(dir.path());
        life.progress.tick(Tso::new(40));
        let (reader, progress) = (life.reader.clone(), life.progress.clone());
        let watermark = progress.watermark();
        let unknown = Verdict::Unknown { cause: "forgotten".into() };
        life.write([verdict(5, unknown)]);
        let gap = Gap {
            start_ts: StartTs::new(5),
            after: Tso::new(10),
            upto: Tso::new(40),
            cause: "forgotten".into(),
        };
        assert_eq!(reader.gaps_within(watermark, progress.watermark()), [gap]);
    }
}
