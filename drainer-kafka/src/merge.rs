//! Merges the pumps' streams into one, in order of commit_ts. Pure: no clock, channel or disk.
//!
//! Each source delivers strictly growing commit_ts and, beside them, a watermark below or at which nothing more will
//! come. The smallest head is released only when every other source has a head of its own or a watermark that has
//! reached it; so a silent source holds everything, which is right: its disk may have acknowledged what comes next.
//!
//! ```text
//!   pump-1  ──●──●────●──▶ watermark 9 ┐
//!   pump-2  ────●─────────▶ watermark 6 ├─▶ released up to 6
//!   pump-3  ─────────●──●─▶ watermark 9 ┘
//! ```
//!
//! Promise: what [`Merger::pop`] returns has strictly growing commit_ts, all above the position the merger began with,
//! and nothing at or below [`Merger::position`] is released later. A second copy of a transaction (TiDB's retry on
//! another pump) is dropped only if it is equal in every byte; anything else that contradicts the order is an error
//! that stops the feed. A crash loses nothing: the successor begins again from the position the log names.
//!
//! What is lost stands in the order, too: a gap is released where its range begins, once everything before it was and before
//! anything in it is. A gap that the log has already, or that lies behind the position, is not released again.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use tidb::ts::{CommitTs, StartTs, Tso};

use crate::transaction::Transaction;

/// A pump, by its node id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(Arc<str>);

impl SourceId {
    /// From a node id.
    pub fn new(node_id: &str) -> Self {
        Self(node_id.into())
    }

    /// The node id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why the feed must stop: a pump broke the order, or two pumps tell different stories.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MergeError {
    /// A transaction came at or below what was already released.
    #[error(
        "pump {source_id} sent transaction start_ts {start_ts} commit_ts {commit_ts} after everything up to {position} \
         was released; its place in the order is lost"
    )]
    Late {
        /// The pump.
        source_id: SourceId,
        /// The late transaction.
        start_ts: StartTs,
        /// Its place.
        commit_ts: CommitTs,
        /// Everything at or below it had been released.
        position: Tso,
    },
    /// A pump sent a transaction at or below its own watermark.
    #[error(
        "pump {source_id} sent commit_ts {commit_ts} after promising that nothing at or below {watermark} would follow"
    )]
    BrokenPromise {
        /// The pump.
        source_id: SourceId,
        /// The transaction it sent.
        commit_ts: CommitTs,
        /// Its own watermark.
        watermark: Tso,
    },
    /// Two transactions with one commit_ts that are not copies of each other.
    #[error(
        "pumps {first} and {second} both hold commit_ts {commit_ts}, but with different content (start_ts {first_start} \
         and {second_start}); with binlog on every commit_ts is unique"
    )]
    Conflict {
        /// One pump.
        first: SourceId,
        /// The other.
        second: SourceId,
        /// The shared timestamp.
        commit_ts: CommitTs,
        /// start_ts on the first.
        first_start: StartTs,
        /// start_ts on the second.
        second_start: StartTs,
    },
}

#[derive(Debug)]
struct Source {
    id: SourceId,
    queue: VecDeque<Transaction>,
    /// Nothing at or below it will be pushed.
    watermark: Tso,
    /// Sends nothing more: what is queued is still released, its watermark no longer counts.
    ended: bool,
}

/// The source everything waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lagging {
    /// The pump with the lowest watermark.
    pub source: SourceId,
    /// Its watermark.
    pub watermark: Tso,
    /// The commit_ts that is ready elsewhere.
    pub wanted: CommitTs,
}

/// Transactions that will never come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Exclusive: everything up to here came before it.
    pub from: Tso,
    /// Inclusive.
    pub to: Tso,
    /// Whose, and why.
    pub cause: String,
}

/// What the merge releases.
#[derive(Clone, Debug)]
pub enum Released {
    /// The next transaction.
    Transaction(Transaction),
    /// Transactions are missing from here on.
    Gap(Gap),
}

/// What became of a transaction that a pump declared lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lost {
    /// It will be released as a gap, or was.
    Declared,
    /// The range that it can lie in is behind the position, or in the log as a gap.
    Known,
}

/// The k-way merge.
#[derive(Debug)]
pub struct Merger {
    sources: Vec<Source>,
    position: Tso,
    copies_dropped: u64,
    /// By where they begin and in the order of their arrival.
    gaps: BTreeMap<(Tso, u64), Gap>,
    arrivals: u64,
    /// Lost transactions whose range the position has not passed, by where it ends.
    lost: HashMap<StartTs, Tso>,
    /// The log names everything missing up to here.
    declared: Tso,
}

impl Merger {
    /// Begins after `position`: only greater commit_ts are accepted. What is missing at or below `declared` is in the log.
    pub fn new(position: Tso, declared: Tso) -> Self {
        Self {
            sources: Vec::new(),
            position,
            copies_dropped: 0,
            gaps: BTreeMap::new(),
            arrivals: 0,
            lost: HashMap::new(),
            declared: declared.max(position),
        }
    }

    /// Everything at or below it has been released, or never existed.
    pub fn position(&self) -> Tso {
        self.position
    }

    /// How many second copies were dropped.
    pub fn copies_dropped(&self) -> u64 {
        self.copies_dropped
    }

    /// The sources and their watermarks.
    pub fn watermarks(&self) -> impl Iterator<Item = (&SourceId, Tso)> {
        self.sources.iter().filter(|source| !source.ended).map(|source| (&source.id, source.watermark))
    }

    /// Adds a source and returns the timestamp after which it must deliver; from now on everything waits for it too.
    /// A source that was ended and comes back goes on where it stopped.
    pub fn add(&mut self, id: &SourceId) -> Tso {
        let position = self.position;
        match self.sources.iter_mut().find(|source| source.id == *id) {
            Some(source) => {
                source.ended = false;
                source.watermark = source.watermark.max(position);
                source.watermark
            }
            None => {
                self.sources.push(Source {
                    id: id.clone(),
                    queue: VecDeque::new(),
                    watermark: position,
                    ended: false,
                });
                position
            }
        }
    }

    /// The source sends nothing more and no longer holds anything up; what it delivered is still released in order.
    pub fn end(&mut self, id: &SourceId) {
        if let Some(source) = self.sources.iter_mut().find(|source| source.id == *id) {
            source.ended = true;
        }
        self.sources.retain(|source| !source.ended || !source.queue.is_empty());
    }

    /// Takes the next transaction of a source. Of an unknown (removed) source it is ignored.
    pub fn push(&mut self, id: &SourceId, transaction: Transaction) -> Result<(), MergeError> {
        let position = self.position;
        let Some(source) = self.sources.iter_mut().find(|source| source.id == *id) else { return Ok(()) };
        let commit_ts = transaction.commit_ts;
        if commit_ts.0 <= position {
            return Err(MergeError::Late {
                source_id: id.clone(),
                start_ts: transaction.start_ts,
                commit_ts,
                position,
            });
        }
        if commit_ts.0 <= source.watermark {
            return Err(MergeError::BrokenPromise {
                source_id: id.clone(),
                commit_ts,
                watermark: source.watermark,
            });
        }
        source.watermark = commit_ts.0;
        source.queue.push_back(transaction);
        Ok(())
    }

    /// Nothing at or below `watermark` will follow from this source. Lower ones than before are ignored.
    pub fn advance(&mut self, id: &SourceId, watermark: Tso) {
        if let Some(source) = self.sources.iter_mut().find(|source| source.id == *id) {
            source.watermark = source.watermark.max(watermark);
        }
    }

    /// A source cannot deliver the transaction `start_ts`, which committed in (after, upto], if at all. The same transaction
    /// is declared once, however often it is named.
    pub fn lose(&mut self, start_ts: StartTs, after: Tso, upto: Tso, cause: String) -> Lost {
        let position = self.position;
        self.lost.retain(|_, upto| *upto > position);
        if self.lost.contains_key(&start_ts) {
            return Lost::Declared;
        }
        let fate = self.miss(after, upto, cause);
        if fate == Lost::Declared {
            self.lost.insert(start_ts, upto);
        }
        fate
    }

    /// Transactions in (after, upto] will never come.
    pub fn miss(&mut self, after: Tso, upto: Tso, cause: String) -> Lost {
        let from = after.max(self.position);
        if upto <= from || upto <= self.declared {
            return Lost::Known;
        }
        self.arrivals += 1;
        self.gaps.insert((from, self.arrivals), Gap { from, to: upto, cause });
        Lost::Declared
    }

    /// The next gap, if nothing at or below its beginning can come any more once everything up to `settled` was released.
    fn gap_within(&mut self, settled: Tso) -> Option<Gap> {
        let first = self.gaps.first_entry()?;
        if first.key().0 > settled.max(self.position) {
            return None;
        }
        let gap = first.remove();
        self.position = self.position.max(gap.from);
        Some(Gap { from: self.position, ..gap })
    }

    /// Releases what comes next, or `None` while a source without a head has not reached it. Then everything up
    /// to [`Self::position`] is settled.
    pub fn pop(&mut self) -> Result<Option<Released>, MergeError> {
        let head = self.sources.iter().filter_map(|source| source.queue.front()).map(|t| t.commit_ts.0).min();
        // A source without a head may still bring anything above its watermark, also a copy of the smallest head.
        let floor = self.silent().map(|source| source.watermark).min();
        let (ready, settled) = match (head, floor) {
            (Some(head), Some(floor)) if head > floor => (None, floor),
            (Some(head), _) => (Some(head), head.prev()),
            (None, floor) => (None, floor.unwrap_or_default()),
        };
        if let Some(gap) = self.gap_within(settled) {
            return Ok(Some(Released::Gap(gap)));
        }
        let Some(commit_ts) = ready else {
            self.position = self.position.max(settled);
            return Ok(None);
        };
        let mut released: Option<(usize, Transaction)> = None;
        for (index, source) in self.sources.iter_mut().enumerate() {
            let Some(head) = source.queue.pop_front_if(|head| head.commit_ts.0 == commit_ts) else {
                continue;
            };
            match &released {
                None => released = Some((index, head)),
                Some((_, first)) if first.is_copy_of(&head) => self.copies_dropped += 1,
                Some((first_index, first)) => {
                    return Err(MergeError::Conflict {
                        commit_ts: first.commit_ts,
                        first_start: first.start_ts,
                        second_start: head.start_ts,
                        second: source.id.clone(),
                        first: self.sources[*first_index].id.clone(),
                    });
                }
            }
        }
        self.position = commit_ts;
        self.sources.retain(|source| !source.ended || !source.queue.is_empty());
        Ok(released.map(|(_, transaction)| Released::Transaction(transaction)))
    }

    /// Whom everything waits for: set when a transaction is ready and another source has not reached it.
    pub fn lagging(&self) -> Option<Lagging> {
        let wanted =
            self.sources.iter().filter_map(|source| source.queue.front()).map(|t| t.commit_ts).min()?;
        let source = self.silent().min_by_key(|source| source.watermark)?;
        (source.watermark < wanted.0).then(|| Lagging {
            source: source.id.clone(),
            watermark: source.watermark,
            wanted,
        })
    }

    fn silent(&self) -> impl Iterator<Item = &Source> {
        self.sources.iter().filter(|source| !source.ended && source.queue.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn transaction(commit_ts: u64, content: &'static str) -> Transaction {
        Transaction {
            start_ts: StartTs::new(commit_ts.saturating_sub(1)),
            commit_ts: CommitTs::new(commit_ts),
            payload: Bytes::from_static(content.as_bytes()),
            ddl: None,
            budget: None,
        }
    }

    fn id(name: &str) -> SourceId {
        SourceId::new(name)
    }

    fn drain(merger: &mut Merger) -> Vec<u64> {
        let transactions = released(merger).into_iter().map(|released| match released {
            Released::Transaction(transaction) => transaction.commit_ts.get(),
            Released::Gap(gap) => panic!("{gap:?}"),
        });
        transactions.collect()
    }

    fn released(merger: &mut Merger) -> Vec<Released> {
        std::iter::from_fn(|| merger.pop().unwrap()).collect()
    }

    fn begin(position: u64) -> Merger {
        Merger::new(Tso::new(position), Tso::ZERO)
    }

    #[test]
    fn waits_for_the_silent_source() {
        let mut merger = begin(10);
        assert_eq!(merger.add(&id("a")), Tso::new(10));
        merger.add(&id("b"));
        merger.push(&id("a"), transaction(15, "")).unwrap();
        merger.push(&id("a"), transaction(20, "")).unwrap();
        assert_eq!(drain(&mut merger), [0_u64; 0]);
        merger.advance(&id("b"), Tso::new(14));
        // b may still bring its copy of 15.
        assert_eq!(drain(&mut merger), [0_u64; 0]);
        assert_eq!(merger.position(), Tso::new(14));
        let lagging = merger.lagging().unwrap();
        assert_eq!((lagging.source.as_str(), lagging.wanted), ("b", CommitTs::new(15)));
        merger.advance(&id("b"), Tso::new(17));
        assert_eq!(drain(&mut merger), [15]);
        assert_eq!(merger.position(), Tso::new(17));
        // A pump that joins now must deliver from here, and holds 20 back until it has.
        merger.advance(&id("b"), Tso::new(30));
        assert_eq!(merger.add(&id("c")), Tso::new(17));
        assert_eq!(drain(&mut merger), [0_u64; 0]);
        merger.advance(&id("c"), Tso::new(25));
        assert_eq!(drain(&mut merger), [20]);
        // One that leaves holds nothing up, but what it brought comes out.
        merger.push(&id("c"), transaction(28, "")).unwrap();
        merger.end(&id("c"));
        merger.advance(&id("a"), Tso::new(40));
        merger.advance(&id("b"), Tso::new(40));
        assert_eq!(drain(&mut merger), [28]);
        assert_eq!(merger.position(), Tso::new(40));
        assert_eq!(merger.watermarks().count(), 2);
    }

    #[test]
    fn drops_equal_copies_only() {
        let mut merger = begin(0);
        merger.add(&id("a"));
        merger.add(&id("b"));
        for source in ["a", "b"] {
            merger.push(&id(source), transaction(5, "same")).unwrap();
        }
        assert_eq!(drain(&mut merger), [5]);
        assert_eq!(merger.copies_dropped(), 1);
        merger.push(&id("a"), transaction(6, "one")).unwrap();
        merger.push(&id("b"), transaction(6, "other")).unwrap();
        assert!(matches!(merger.pop(), Err(MergeError::Conflict { commit_ts, .. }) if commit_ts.get() == 6));
    }

    #[test]
    fn refuses_what_comes_too_late() {
        let mut merger = begin(5);
        merger.add(&id("a"));
        assert!(matches!(merger.push(&id("a"), transaction(5, "")), Err(MergeError::Late { .. })));
        merger.push(&id("a"), transaction(9, "")).unwrap();
        let broken = merger.push(&id("a"), transaction(9, ""));
        assert!(matches!(broken, Err(MergeError::BrokenPromise { .. })));
    }

    /// Transactions by commit_ts and gaps by their range, as they come out.
    fn shown(merger: &mut Merger) -> Vec<String> {
        let show = |released| match released {
            Released::Transaction(transaction) => transaction.commit_ts.to_string(),
            Released::Gap(gap) => format!("({}, {}] {}", gap.from, gap.to, gap.cause),
        };
        released(merger).into_iter().map(show).collect()
    }

    fn lose(merger: &mut Merger, start_ts: u64, after: u64, upto: u64) -> Lost {
        merger.lose(StartTs::new(start_ts), Tso::new(after), Tso::new(upto), format!("lost {start_ts}"))
    }

    #[test]
    fn a_gap_stands_where_its_range_begins() {
        let mut merger = begin(0);
        merger.add(&id("a"));
        merger.add(&id("b"));
        for ts in [10, 20, 30] {
            merger.push(&id("a"), transaction(ts, "")).unwrap();
        }
        assert_eq!(lose(&mut merger, 3, 14, 25), Lost::Declared);
        assert_eq!(lose(&mut merger, 5, 29, 40), Lost::Declared);
        // b may still bring something before it.
        merger.advance(&id("b"), Tso::new(13));
        assert_eq!(shown(&mut merger), ["10"]);
        assert_eq!(merger.position(), Tso::new(13));
        // Everything before the gap is there; nothing in it has been released.
        merger.advance(&id("b"), Tso::new(19));
        assert_eq!(shown(&mut merger), ["(14, 25] lost 3"]);
        assert_eq!(merger.position(), Tso::new(19));
        merger.advance(&id("b"), Tso::new(50));
        assert_eq!(shown(&mut merger), ["20", "(29, 40] lost 5", "30"]);
        // One whose beginning was passed begins where the merge stands.
        merger.advance(&id("a"), Tso::new(50));
        assert_eq!(shown(&mut merger), [""; 0]);
        assert_eq!(lose(&mut merger, 7, 44, 60), Lost::Declared);
        assert_eq!(shown(&mut merger), ["(50, 60] lost 7"]);
        assert_eq!(merger.position(), Tso::new(50));
    }

    #[test]
    fn a_lost_transaction_is_declared_once() {
        let mut merger = begin(0);
        merger.add(&id("a"));
        assert_eq!(lose(&mut merger, 3, 0, 25), Lost::Declared);
        assert_eq!(lose(&mut merger, 3, 0, 25), Lost::Declared);
        assert_eq!(shown(&mut merger), ["(0, 25] lost 3"]);
        // Its pump was pulled anew, from below the end of the range.
        assert_eq!(lose(&mut merger, 3, 0, 25), Lost::Declared);
        // Another one in the same range is another loss.
        assert_eq!(lose(&mut merger, 4, 0, 20), Lost::Declared);
        assert_eq!(shown(&mut merger), ["(0, 20] lost 4"]);
        merger.advance(&id("a"), Tso::new(30));
        assert_eq!(shown(&mut merger), [""; 0]);
        assert_eq!(lose(&mut merger, 3, 0, 25), Lost::Known);
        assert_eq!(merger.miss(Tso::new(1), Tso::new(30), "offline".to_owned()), Lost::Known);

        // A successor within the range, which the log says is declared: what is named again is in the log.
        let mut successor = Merger::new(Tso::new(12), Tso::new(25));
        successor.add(&id("a"));
        assert_eq!(lose(&mut successor, 3, 0, 25), Lost::Known);
        assert_eq!(lose(&mut successor, 4, 0, 20), Lost::Known);
        assert_eq!(lose(&mut successor, 9, 20, 26), Lost::Declared);
        successor.advance(&id("a"), Tso::new(25));
        assert_eq!(shown(&mut successor), ["(20, 26] lost 9"]);
    }

    /// What one source does next.
    #[derive(Clone, Debug)]
    enum Step {
        /// Its next transaction.
        Push,
        /// A watermark up to its next transaction (exclusive), or past its end.
        Advance,
    }

    proptest! {
        /// Whatever the interleaving, the output is the sorted union, and never runs ahead of a source.
        #[test]
        fn equals_a_sort(
            // For every commit_ts from 1: the set of sources that hold it (a copy each), as bits.
            held in proptest::collection::vec(0_u8..8, 0..60),
            steps in proptest::collection::vec((0_usize..3, prop_oneof![Just(Step::Push), Just(Step::Advance)]), 0..200),
        ) {
            let mut queues: Vec<VecDeque<u64>> = (0..3)
                .map(|source| (1..).zip(&held).filter(|(_, bits)| *bits & (1 << source) != 0).map(|(ts, _)| ts).collect())
                .collect();
            let expected: Vec<u64> = (1..).zip(&held).filter(|(_, bits)| **bits != 0).map(|(ts, _)| ts).collect();
            let end = held.len() as u64 + 5;
            let ids = [id("a"), id("b"), id("c")];
            let mut merger = begin(0);
            ids.iter().for_each(|id| { merger.add(id); });
            let mut out = Vec::new();
            let mut reached = [0_u64; 3];
            let drive = |merger: &mut Merger, queues: &mut Vec<VecDeque<u64>>, reached: &mut [u64; 3], source: usize, step: &Step| {
                match step {
                    Step::Push => {
                        if let Some(ts) = queues[source].pop_front() {
                            merger.push(&ids[source], transaction(ts, "x")).unwrap();
                            reached[source] = ts;
                        }
                    }
                    Step::Advance => {
                        let ts = queues[source].front().map_or(end, |next| next - 1);
                        merger.advance(&ids[source], Tso::new(ts));
                        reached[source] = reached[source].max(ts);
                    }
                }
            };
            for (source, step) in &steps {
                drive(&mut merger, &mut queues, &mut reached, *source, step);
                out.extend(drain(&mut merger));
                let slowest = reached.iter().min().unwrap();
                prop_assert!(out.last().is_none_or(|last| last <= slowest));
                prop_assert!(merger.position().get() <= *slowest);
            }
            for source in 0..3 {
                while !queues[source].is_empty() {
                    drive(&mut merger, &mut queues, &mut reached, source, &Step::Push);
                }
                drive(&mut merger, &mut queues, &mut reached, source, &Step::Advance);
            }
            out.extend(drain(&mut merger));
            prop_assert_eq!(out, expected);
            prop_assert_eq!(merger.position(), Tso::new(end));
            let copies: u32 = held.iter().map(|bits| bits.count_ones().saturating_sub(1)).sum();
            prop_assert_eq!(merger.copies_dropped(), u64::from(copies));
        }
    }
}
