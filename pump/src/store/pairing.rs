//! What the records say, taken together: which prewrites are open, what became of the last ones, which segments are
//! still needed. Pure; the writer and a replay of the log go through the same [`Pairing::apply`].

use std::collections::{BTreeMap, HashMap, VecDeque};

use tidb::ts::{CommitTs, StartTs, Tso};

use super::record::{Header, Kind, u64_at};
use super::segment::{Position, Segment};
use super::{Fate, Gap};

/// Settled transactions that are remembered, committed ones and dropped ones each: for a second copy of a prewrite or
/// commit, and for a commit that overrules a verdict. Older ones are known by their commit_ts only. The memory of the
/// dropped ones depends on nothing but the records about them, so that a replay remembers no fewer than the writer did.
pub(super) const REMEMBERED: usize = 1 << 16;

/// Where a binlog lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Where its record begins.
    pub position: Position,
    /// Its length in bytes.
    pub len: u32,
}

/// A transaction that is committed: where its binlogs lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its place in the order.
    pub commit_ts: CommitTs,
    /// When it began.
    pub start_ts: StartTs,
    /// The prewrite binlog.
    pub prewrite: Place,
    /// The commit binlog; empty where TiKV told us.
    pub commit: Place,
}

/// An open prewrite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Open {
    pub floor: Tso,
    pub rollback_seen: bool,
    pub place: Place,
}

/// A prewrite that is never emitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Dropped {
    pub fate: Fate,
    pub floor: Tso,
    pub place: Place,
}

/// The last [`REMEMBERED`] of something, by start_ts.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Remembered<T> {
    known: HashMap<StartTs, T>,
    /// Oldest first.
    order: VecDeque<StartTs>,
}

impl<T> Default for Remembered<T> {
    fn default() -> Self {
        Self { known: HashMap::new(), order: VecDeque::new() }
    }
}

impl<T: Copy> Remembered<T> {
    pub(super) fn get(&self, start_ts: StartTs) -> Option<T> {
        self.known.get(&start_ts).copied()
    }

    /// Oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (StartTs, T)> {
        self.order.iter().filter_map(|&start_ts| Some((start_ts, self.get(start_ts)?)))
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    pub(super) fn insert(&mut self, start_ts: StartTs, what: T) {
        if self.known.insert(start_ts, what).is_some() {
            return;
        }
        self.order.push_back(start_ts);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        self.known.retain(|_, what| keep(what));
        self.order.retain(|start_ts| self.known.contains_key(start_ts));
    }

    /// Rare, and as long as the memory.
    fn remove(&mut self, start_ts: StartTs) -> Option<T> {
        let what = self.known.remove(&start_ts)?;
        self.order.retain(|&known| known != start_ts);
        Some(what)
    }
}

/// How much of a segment is still needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Needed {
    /// Open prewrites in it.
    pub open: u64,
    /// The greatest commit_ts, or floor of a dropped one, of the settled ones.
    pub newest: CommitTs,
}

/// A record that does not fit what came before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unfounded;

/// See the module's description.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Pairing {
    pub open: HashMap<StartTs, Open>,
    pub committed: Remembered<Committed>,
    pub dropped: Remembered<Dropped>,
    /// By the base of the segment.
    pub needed: BTreeMap<u64, Needed>,
    pub gaps: Vec<Gap>,
    /// The last watermark recorded.
    pub watermark: Tso,
    pub newest_start: Tso,
    /// The greatest timestamp of any kind.
    pub newest: Tso,
}

impl Pairing {
    /// Takes in one record. `base` is its segment's, `payload` its payload if the kind keeps a fact in it. A commit yields
    /// the transaction.
    pub(super) fn apply(
        &mut self,
        header: &Header,
        payload: &[u8],
        position: Position,
        base: u64,
    ) -> Result<Option<Committed>, Unfounded> {
        let start_ts = StartTs::new(header.start_ts);
        let stamp = Tso::new(header.stamp);
        let place = Place { position, len: header.len };
        self.newest = self.newest.max(start_ts.0).max(stamp);
        match header.kind {
            Kind::Prewrite => {
                self.newest_start = self.newest_start.max(start_ts.0);
                self.open.insert(start_ts, Open { floor: stamp, rollback_seen: false, place });
                self.needed.entry(base).or_default().open += 1;
            }
            Kind::Floor | Kind::RollbackSeen => {
                let open = self.open.get_mut(&start_ts).ok_or(Unfounded)?;
                // Neither is ever taken back, in whatever order a group has its news.
                open.floor = open.floor.max(stamp);
                open.rollback_seen |= header.kind == Kind::RollbackSeen;
            }
            Kind::Commit => {
                let commit_ts = CommitTs(stamp);
                let prewrite = match self.close(start_ts, commit_ts) {
                    Some(open) => open.place,
                    None => self.dropped.remove(start_ts).ok_or(Unfounded)?.place,
                };
                self.need(prewrite.position, commit_ts);
                let committed = Committed { commit_ts, start_ts, prewrite, commit: place };
                self.committed.insert(start_ts, committed);
                return Ok(Some(committed));
            }
            Kind::Dropped => {
                let fate = Fate::decode(payload).ok_or(Unfounded)?;
                let open = self.close(start_ts, CommitTs(stamp)).ok_or(Unfounded)?;
                self.dropped.insert(start_ts, Dropped { fate, floor: stamp, place: open.place });
            }
            Kind::Gap => {
                let (after, cause) = payload.split_at_checked(8).ok_or(Unfounded)?;
                let needed = self.needed.entry(base).or_default();
                needed.newest = needed.newest.max(CommitTs(stamp));
                let cause = String::from_utf8_lossy(cause).into_owned();
                self.gaps.push(Gap { start_ts, after: Tso::new(u64_at(after, 0)), upto: stamp, cause });
            }
            Kind::Watermark => self.watermark = self.watermark.max(start_ts.0),
        }
        Ok(None)
    }

    /// A prewrite is open no longer; its segment is needed until `until` is collected.
    fn close(&mut self, start_ts: StartTs, until: CommitTs) -> Option<Open> {
        let open = self.open.remove(&start_ts)?;
        if let Some(needed) = self.need(open.place.position, until) {
            needed.open = needed.open.saturating_sub(1);
        }
        Some(open)
    }

    fn need(&mut self, position: Position, until: CommitTs) -> Option<&mut Needed> {
        // The segment of a position is the last one that begins at or before it.
        let (_, needed) = self.needed.range_mut(..=position.get()).next_back()?;
        needed.newest = needed.newest.max(until);
        Some(needed)
    }

    /// Through which commit_ts to collect so that segments with `excess` bytes in all go, or as many as can: an open
    /// prewrite holds its segment, and the last one stays. `None` if none can go.
    pub(super) fn through(&self, segments: &[Segment], excess: u64) -> Option<CommitTs> {
        let mut through = None;
        let mut bytes = 0;
        for segment in segments.iter().rev().skip(1).rev() {
            let needed = self.needed.get(&segment.base).copied().unwrap_or_default();
            if bytes >= excess || needed.open > 0 {
                break;
            }
            bytes += segment.size;
            through = through.max(Some(needed.newest));
        }
        through
    }

    /// Forgets what a collection up to `through` makes unneeded, and says from which base on the log is still needed; at
    /// most `limit`.
    pub(super) fn collect(&mut self, through: CommitTs, limit: u64) -> u64 {
        self.gaps.retain(|gap| gap.upto > through.0);
        self.dropped.retain(|dropped| dropped.floor > through.0);
        let is_needed = |needed: &Needed| needed.open > 0 || needed.newest > through;
        let first = self.needed.iter().find(|(_, needed)| is_needed(needed)).map_or(limit, |(&base, _)| base);
        let first = first.min(limit);
        self.needed = self.needed.split_off(&first);
        first
    }
}

impl Fate {
    /// As it stands in a record.
    pub(super) fn encode(self) -> [u8; 9] {
        let (code, commit_ts) = match self {
            Self::RolledBack => (1, 0),
            Self::LateCopy { commit_ts } => (2, commit_ts.get()),
            Self::Unknown => (3, 0),
        };
        let mut bytes = [code; 9];
        bytes[1..].copy_from_slice(&commit_ts.to_le_bytes());
        bytes
    }

    /// What [`Self::encode`] wrote.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [1, ..] => Some(Self::RolledBack),
            [2, rest @ ..] if rest.len() == 8 => {
                Some(Self::LateCopy { commit_ts: CommitTs::new(u64_at(rest, 0)) })
            }
            [3, ..] => Some(Self::Unknown),
            _ => None,
        }
    }
}
