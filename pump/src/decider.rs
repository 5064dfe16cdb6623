//! What a write means, given the store, the sorter and the group being made.
//!
//! A group is decided before it is durable, so what it changes in memory is kept with it until then: only prewrites enter
//! the sorter at once, since nothing may pass them from here on. A group that could not be written is taken back.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use tidb::ts::{CommitTs, StartTs, Tso};
use tracing::{error, warn};

use crate::metrics;
use crate::progress::{Effect, Progress};
use crate::sorter::Judgement;
use crate::store::{Fate, Gap, Reader, Record, Recovered, StoreError};
use crate::writer::{Outcome, Refusal, Verdict, Write};

/// Writes that become durable together.
#[derive(Default)]
pub(crate) struct Group {
    /// To be appended, in this order.
    pub(crate) records: Vec<Record>,
    /// What the records weigh.
    pub(crate) bytes: usize,
    effects: Vec<Effect>,
    prewrites: HashMap<StartTs, Bytes>,
    settled: HashMap<StartTs, Option<CommitTs>>,
    rollbacks: HashSet<StartTs>,
    /// Settled ones that entered the sorter again.
    reopened: Vec<StartTs>,
}

impl Group {
    pub(crate) fn push(&mut self, record: Record) {
        self.bytes += record.weight();
        self.records.push(record);
    }

    fn settle(&mut self, start_ts: StartTs, commit_ts: Option<CommitTs>, record: Record) {
        self.push(record);
        self.settled(start_ts, commit_ts);
    }

    /// What was pushed already settles it.
    fn settled(&mut self, start_ts: StartTs, commit_ts: Option<CommitTs>) {
        self.effects.push(Effect::Settle(start_ts));
        self.settled.insert(start_ts, commit_ts);
    }
}

/// Decides what a write means, given the store, the sorter and the group being made.
pub(crate) struct Decider {
    reader: Reader,
    pub(crate) progress: Arc<Progress>,
    /// No prewrite above it is stored, so none need be looked for.
    newest_start: Tso,
    /// Open prewrites whose rollback binlog came.
    rollback_seen: HashSet<StartTs>,
    /// No prewrite is taken any more.
    closed: bool,
}

impl Decider {
    pub(crate) fn new(reader: Reader, progress: Arc<Progress>, recovered: &Recovered) -> Self {
        let rollback_seen =
            recovered.pending.iter().filter(|open| open.rollback_seen).map(|open| open.start_ts).collect();
        Self { reader, progress, newest_start: recovered.newest_start, rollback_seen, closed: false }
    }

    /// Adds to the group what the write needs to become durable. The answer holds once the group is.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(crate) fn decide(
        &mut self,
        write: Write,
        group: &mut Group,
    ) -> Result<Result<Outcome, Refusal>, StoreError> {
        match write {
            // Whatever its caller saw when it looked at the pump's state: the order of the queue decides.
            Write::Prewrite { .. } if self.closed => Ok(Err(Refusal::Closing)),
            Write::Prewrite { start_ts, payload } => self.prewrite(start_ts, payload, group),
            Write::Commit { start_ts, commit_ts, payload } => {
                self.commit(start_ts, commit_ts, payload, group)
            }
            Write::RollbackSeen { start_ts } => Ok(Ok(self.rollback_seen(start_ts, group))),
            Write::Verdict { start_ts, verdict } => self.verdict(start_ts, verdict, group),
            Write::Close => {
                self.closed = true;
                Ok(Ok(Outcome::Stored))
            }
            Write::SaveWatermark => {
                group.push(Record::Watermark(self.progress.watermark()));
                Ok(Ok(Outcome::Stored))
            }
            Write::Collect(through) => {
                group.push(Record::Collected(through));
                Ok(Ok(Outcome::Stored))
            }
        }
    }

    /// The group is durable and readable.
    pub(crate) fn done(&mut self, group: Group) {
        self.rollback_seen.extend(group.rollbacks);
        if !self.rollback_seen.is_empty() {
            for start_ts in group.settled.keys() {
                self.rollback_seen.remove(start_ts);
            }
        }
        self.progress.apply(group.effects);
    }

    /// Nothing of the group was written, and nobody was told otherwise: its prewrites are not here.
    pub(crate) fn undo(&mut self, group: Group) {
        let forgotten = group.prewrites.into_keys().chain(group.reopened);
        self.progress.apply(forgotten.map(Effect::Settle));
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
                group.settle(start_ts, Some(commit_ts), Record::Commit { start_ts, commit_ts, payload });
                Ok(Ok(Outcome::Stored))
            }
            Judgement::Late { floor } if self.is_ruled_out(start_ts, commit_ts, floor, group)? => {
                let cause =
                    format!("committed at {commit_ts}, but TiKV had said that it would commit above {floor}");
                self.lose(start_ts, commit_ts.0.prev(), floor.next(), cause, group);
                group.settle(
                    start_ts,
                    Some(commit_ts),
                    Record::Dropped { start_ts, fate: Fate::Unknown, floor },
                );
                Ok(Ok(Outcome::Lost))
            }
            Judgement::Late { floor } => {
                metrics::late_copy();
                warn!(%start_ts, %commit_ts, %floor, "late copy of a prewrite that another pump took, not emitted here");
                let record = Record::Dropped { start_ts, fate: Fate::LateCopy { commit_ts }, floor };
                group.settle(start_ts, Some(commit_ts), record);
                Ok(Ok(Outcome::LateCopy))
            }
            Judgement::NotPending => self.commit_of_settled(start_ts, commit_ts, payload, group),
        }
    }

    /// A commit_ts at or below the floor with which the prewrite came belongs to a late copy. One above that, and at or
    /// below what the floor was raised to, contradicts TiKV's word: no other pump need have the transaction.
    fn is_ruled_out(
        &self,
        start_ts: StartTs,
        commit_ts: CommitTs,
        floor: Tso,
        group: &Group,
    ) -> Result<bool, StoreError> {
        // Not stored yet: nothing can have raised its floor.
        if group.prewrites.contains_key(&start_ts) {
            return Ok(false);
        }
        let first = self.reader.first_floor(start_ts)?.unwrap_or(floor);
        Ok(commit_ts.0 > first)
    }

    /// Declares a gap. `upto` must lie above the watermark, or streams could be past it already.
    fn lose(&self, start_ts: StartTs, after: Tso, upto: Tso, cause: String, group: &mut Group) {
        error!(%start_ts, %after, %upto, cause, "transaction cannot be delivered any more, gap declared");
        metrics::gap();
        group.push(Record::Gap(Gap { start_ts, after, upto, cause }));
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
        if self.reader.is_lost(start_ts, commit_ts) {
            metrics::repeated("commit");
            return Ok(Ok(Outcome::Repeated));
        }
        match self.reader.dropped(start_ts) {
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
        group.reopened.push(start_ts);
        if commit_ts.0 > floor {
            warn!(%start_ts, %commit_ts, "committed although TiKV had called it rolled back, emitted all the same");
            group.settle(start_ts, Some(commit_ts), Record::Commit { start_ts, commit_ts, payload });
            return Outcome::Stored;
        }
        let cause = format!(
            "committed at {commit_ts} although TiKV had called it rolled back; the stream is past it"
        );
        self.lose(start_ts, commit_ts.0.prev(), floor.next(), cause, group);
        group.settled(start_ts, Some(commit_ts));
        Outcome::Lost
    }

    fn rollback_seen(&mut self, start_ts: StartTs, group: &mut Group) -> Outcome {
        match self.progress.floor(start_ts) {
            Some(floor) if !group.settled.contains_key(&start_ts) => {
                group.rollbacks.insert(start_ts);
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
                let rollback_seen =
                    self.rollback_seen.contains(&start_ts) || group.rollbacks.contains(&start_ts);
                group.push(Record::Floor { start_ts, floor: raised, rollback_seen });
                group.effects.push(Effect::Raise(start_ts, raised));
            }
            Verdict::Above(_) => {}
            Verdict::RolledBack => {
                group.settle(start_ts, None, Record::Dropped { start_ts, fate: Fate::RolledBack, floor });
            }
            Verdict::Unknown { cause } => {
                // What TiKV has forgotten lies in the past.
                let upto = self.progress.newest().max(floor.next());
                self.lose(start_ts, floor, upto, cause, group);
                group.settle(start_ts, None, Record::Dropped { start_ts, fate: Fate::Unknown, floor });
            }
        }
        Ok(Ok(Outcome::Stored))
    }
}
