//! Pairs commits with prewrites, and holds what the watermark has not passed: pure, no disk.
//!
//! A prewrite is *pending* until its commit, or a verdict, settles it. A paired commit *waits* until the watermark reaches
//! it; then it is final and goes to the index, in commit_ts order. What the watermark has passed is not remembered here,
//! and need not be: a commit that comes later than that is late by proof (its prewrite would still be pending and hold the
//! watermark), and a prewrite that comes a second time is settled by the commit_ts that is at or below its floor.

use std::collections::{BTreeMap, HashMap};

use tidb::ts::{CommitTs, StartTs, Tso};

use super::record::{Header, Kind};
use super::segment::Position;

/// A transaction that is committed: where its prewrite binlog lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// When it became visible.
    pub commit_ts: CommitTs,
    /// When it began.
    pub start_ts: StartTs,
    /// Where its prewrite's record begins.
    pub position: Position,
    /// Bytes of the prewrite binlog.
    pub len: u32,
}

/// A prewrite that is not settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    /// When its transaction began.
    pub start_ts: StartTs,
    /// Its commit_ts, if it gets one, is greater.
    pub floor: Tso,
    /// Where its record begins.
    pub position: Position,
    /// Bytes of the prewrite binlog.
    pub len: u32,
    /// TiDB said that it gave the transaction up. Not a proof.
    pub rollback_seen: bool,
}

/// What became of one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// A prewrite: stored here, and pending from now on.
    Pending(Position),
    /// A commit: its transaction waits for the watermark. A verdict: its prewrite is settled.
    Paired,
    /// Known already, with the same content; not stored a second time.
    Repeated,
    /// There is no such pending prewrite here; stored, never emitted.
    Unpaired,
    /// A commit_ts at or below the prewrite's floor or the watermark: the commit of another copy. The prewrite here is
    /// settled and never emitted.
    Late,
    /// TiDB's rollback was noted.
    Noted,
    /// The transaction is known with other content (another commit_ts, another payload): not stored. Somebody lies.
    Conflict,
}

impl Applied {
    /// True if the entry needs a record.
    pub(super) fn is_stored(self) -> bool {
        !matches!(self, Self::Repeated | Self::Conflict)
    }
}

/// How much of a segment is still needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Needed {
    /// Pending prewrites in it.
    pub pending: u64,
    /// The greatest commit_ts of the settled ones.
    pub newest: CommitTs,
}

/// The state that the log's records build up.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Pairing {
    pub pending: HashMap<StartTs, Pending>,
    /// commit_ts of those in `waiting`.
    pub decided: HashMap<StartTs, CommitTs>,
    pub waiting: BTreeMap<(CommitTs, StartTs), Committed>,
    /// By the base of the segment that a prewrite lies in.
    pub needed: BTreeMap<u64, Needed>,
    pub watermark: Tso,
    /// The greatest timestamp of any record.
    pub newest: Tso,
}

/// A commit record without its prewrite: the log contradicts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Orphan {
    pub start_ts: StartTs,
    pub commit_ts: CommitTs,
}

impl Pairing {
    /// What a commit would do. `indexed` answers whether the index has exactly this transaction.
    pub(super) fn judge_commit<E>(
        &self,
        start_ts: StartTs,
        commit_ts: CommitTs,
        indexed: impl FnOnce() -> Result<bool, E>,
    ) -> Result<Applied, E> {
        if let Some(&known) = self.decided.get(&start_ts) {
            return Ok(if known == commit_ts { Applied::Repeated } else { Applied::Conflict });
        }
        let below = commit_ts.0 <= self.watermark;
        Ok(match self.pending.get(&start_ts) {
            Some(pending) if below || commit_ts.0 <= pending.floor => Applied::Late,
            Some(_) => Applied::Paired,
            None if below && indexed()? => Applied::Repeated,
            None => Applied::Unpaired,
        })
    }

    /// Takes in one record, from the writer or from the log. `base` is that of its segment.
    pub(super) fn apply(&mut self, header: &Header, position: Position, base: u64) -> Result<(), Orphan> {
        let start_ts = StartTs::new(header.start_ts);
        self.newest = self.newest.max(start_ts.0).max(Tso::new(header.stamp));
        match header.kind {
            Kind::Prewrite => {
                let pending = Pending {
                    start_ts,
                    floor: Tso::new(header.stamp),
                    position,
                    len: header.len,
                    rollback_seen: false,
                };
                self.pending.insert(start_ts, pending);
                self.needed.entry(base).or_default().pending += 1;
            }
            Kind::Commit => {
                let commit_ts = CommitTs::new(header.stamp);
                let Some(pending) = self.settle(start_ts, commit_ts) else {
                    return Err(Orphan { start_ts, commit_ts });
                };
                self.decided.insert(start_ts, commit_ts);
                let committed = Committed { commit_ts, start_ts, position: pending.position, len: pending.len };
                self.waiting.insert((commit_ts, start_ts), committed);
            }
            Kind::Stray | Kind::Dropped => {
                self.settle(start_ts, CommitTs::default());
            }
            Kind::Rollback => {
                if let Some(pending) = self.pending.get_mut(&start_ts) {
                    pending.rollback_seen = true;
                }
            }
            Kind::Watermark => {}
        }
        Ok(())
    }

    fn settle(&mut self, start_ts: StartTs, commit_ts: CommitTs) -> Option<Pending> {
        let pending = self.pending.remove(&start_ts)?;
        // The segment of a position is the last one that begins at or before it.
        if let Some((_, needed)) = self.needed.range_mut(..=pending.position.get()).next_back() {
            needed.pending = needed.pending.saturating_sub(1);
            needed.newest = needed.newest.max(commit_ts);
        }
        Some(pending)
    }

    /// Raises the watermark; what it passes leaves, in order, through `emit`.
    pub(super) fn advance(&mut self, watermark: Tso, mut emit: impl FnMut(Committed)) {
        if watermark <= self.watermark {
            return;
        }
        self.watermark = watermark;
        self.newest = self.newest.max(watermark);
        while let Some(entry) = self.waiting.first_entry() {
            if entry.key().0.0 > watermark {
                break;
            }
            let committed = entry.remove();
            self.decided.remove(&committed.start_ts);
            emit(committed);
        }
    }

    /// The first segment that is still needed if transactions at or below `through` are not: those before it may go.
    /// `None` if no segment with prewrites is.
    pub(super) fn first_needed(&self, through: CommitTs) -> Option<u64> {
        let needed = |needed: &Needed| needed.pending > 0 || needed.newest > through;
        self.needed.iter().find(|(_, segment)| needed(segment)).map(|(&base, _)| base)
    }
}
