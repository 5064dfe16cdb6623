//! The pure core: which prewrites are still open, and how far the stream of commits is complete.
//!
//! Owns the pending set and the watermark. Knows no clock, channel or disk; every step is a plain function.
//!
//! *T* is the newest timestamp had from PD, *floor* a lower bound of an open prewrite's commit_ts, *W* the watermark:
//! every transaction with commit_ts ≤ W that this pump will ever emit is durable and readable.
//!
//! ```text
//! W := max(W, min(T, floors))         floor := max(T, W, start_ts), taken in the step that inserts
//! ```
//!
//! Why nothing at or below W can appear later:
//!
//! 1. TiDB asks PD for a commit_ts only after its prewrite was acknowledged, and PD never gives a timestamp twice.
//! 2. A prewrite is in the set before it is written, hence before it is acknowledged.
//! 3. Its floor is at most T, W or its own start_ts; all of them existed when it was inserted, so commit_ts > floor.
//! 4. Take W := min(T, floors) at some moment. A prewrite inserted later takes its commit_ts later than T existed: > W.
//! 5. A prewrite in the set commits above its floor, which is ≥ W. So nothing still to come is ≤ W by 4 and 5.
//! 6. What left the set did so only when its settlement was durable and readable, so what is ≤ W is there to read.
//! 7. Floors are stored with their prewrites, raised ones before they count here; after a restart the stored floors and
//!    a fresh T give a W that is no smaller than before: T grew, floors only grew, sets only lost settled members.
//! 8. A floor may be raised to a T fetched *before* TiKV was asked, if TiKV says that the primary is not locked yet or
//!    that its lock's min_commit_ts is above T: either way the commit_ts is still to be taken, later than T existed.
//! 9. A commit_ts ≤ floor contradicts 3 unless TiDB had another copy's acknowledgement before this copy came: this pump
//!    holds a late second copy, the other pump emits the transaction, and emitting it here could fall below W. That goes
//!    for the floor taken at the insertion; a commit_ts between it and a raised one contradicts 8 instead, and whether
//!    another pump has the transaction is unknown (the decider, who can look the first floor up, declares a gap).
//! 10. W never shrinks: it is the maximum of itself and anything.
//!
//! Timestamps inside binlogs never move T: a wrong one must not carry W past what PD has given out. Nothing is lost by
//! that, since a tick is fetched every 100 ms and at once when a drainer waits.

use std::collections::{BTreeSet, HashMap};

use tidb::ts::{CommitTs, StartTs, Tso};

/// The open prewrites and the watermark. See the module's description for the rules and why they hold.
#[derive(Debug, Clone, Default)]
pub struct Sorter {
    newest: Tso,
    watermark: Tso,
    pending: HashMap<StartTs, Tso>,
    floors: BTreeSet<(Tso, StartTs)>,
}

/// What a commit means to the prewrite that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// The prewrite is open and the commit lies above its floor: to be stored and emitted.
    Emit,
    /// The prewrite is open but the commit lies at or below its floor: never to be emitted.
    Late {
        /// The floor that the commit does not exceed.
        floor: Tso,
    },
    /// No such prewrite is open here: settled before, or never seen.
    NotPending,
}

impl Sorter {
    /// From what the store kept: the open prewrites with their floors, and a watermark saved at some time before.
    pub fn recover(pending: impl IntoIterator<Item = (StartTs, Tso)>, saved_watermark: Tso) -> Self {
        let pending: HashMap<_, _> = pending.into_iter().collect();
        let floors = pending.iter().map(|(&start_ts, &floor)| (floor, start_ts)).collect();
        Self { newest: saved_watermark, watermark: saved_watermark, pending, floors }
    }

    /// PD gave out `now`; an older timestamp than the newest changes nothing. Returns the watermark.
    pub fn tick(&mut self, now: Tso) -> Tso {
        self.newest = self.newest.max(now);
        self.advance()
    }

    /// Opens a prewrite, or finds it open. Returns its floor. To be called before the prewrite is written.
    pub fn prewrite(&mut self, start_ts: StartTs) -> Tso {
        let floor = self.newest.max(self.watermark).max(start_ts.0);
        match self.pending.get(&start_ts) {
            Some(&floor) => floor,
            None => {
                self.pending.insert(start_ts, floor);
                self.floors.insert((floor, start_ts));
                floor
            }
        }
    }

    /// What to do with a commit.
    pub fn judge(&self, start_ts: StartTs, commit_ts: CommitTs) -> Judgement {
        match self.pending.get(&start_ts) {
            None => Judgement::NotPending,
            Some(&floor) if commit_ts.0 <= floor => Judgement::Late { floor },
            Some(_) => Judgement::Emit,
        }
    }

    /// The prewrite's settlement is durable and readable: it holds the watermark no longer. Returns the watermark.
    pub fn settle(&mut self, start_ts: StartTs) -> Tso {
        if let Some(floor) = self.pending.remove(&start_ts) {
            self.floors.remove(&(floor, start_ts));
        }
        self.advance()
    }

    /// The prewrite is now known to commit above `floor` (and the store knows). Floors never sink. Returns the watermark.
    pub fn raise(&mut self, start_ts: StartTs, floor: Tso) -> Tso {
        if let Some(held) = self.pending.get_mut(&start_ts)
            && *held < floor
        {
            self.floors.remove(&(*held, start_ts));
            self.floors.insert((floor, start_ts));
            *held = floor;
        }
        self.advance()
    }

    fn advance(&mut self) -> Tso {
        let lowest = self.floors.first().map_or(self.newest, |&(floor, _)| floor.min(self.newest));
        self.watermark = self.watermark.max(lowest);
        self.watermark
    }

    /// Everything at or below it that this pump will ever emit is readable.
    pub fn watermark(&self) -> Tso {
        self.watermark
    }

    /// The newest timestamp had from PD.
    pub fn newest(&self) -> Tso {
        self.newest
    }

    /// The floor of an open prewrite.
    pub fn floor(&self, start_ts: StartTs) -> Option<Tso> {
        self.pending.get(&start_ts).copied()
    }

    /// Number of open prewrites.
    pub fn len(&self) -> usize {
        self.pending.len()
    }

    /// True when no prewrite is open.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// Open prewrites, those that hold the watermark most first.
    pub fn lowest(&self) -> impl Iterator<Item = (StartTs, Tso)> {
        self.floors.iter().map(|&(floor, start_ts)| (start_ts, floor))
    }

    /// The smallest start_ts among the open prewrites: TiKV must not forget it.
    pub fn oldest_start(&self) -> Option<StartTs> {
        self.pending.keys().min().copied()
    }
}

#[cfg(test)]
mod tests {
    //! A small world drives the sorter: a PD that counts, a TiDB that takes a commit_ts only once some pump has
    //! acknowledged, a disk that survives restarts. It checks the promises against the world's own knowledge, and W
    //! against a recomputation from scratch.

    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, Copy)]
    enum Op {
        /// TiDB begins a transaction.
        Begin,
        /// A prewrite reaches this pump (again, perhaps).
        Prewrite(usize),
        /// This pump's write becomes durable: the prewrite is acknowledged.
        Acknowledge(usize),
        /// Another pump acknowledges a copy.
        AcknowledgeElsewhere(usize),
        /// TiDB takes the commit_ts.
        TakeCommit(usize),
        /// The commit binlog arrives, or TiKV tells.
        Commit(usize),
        /// TiKV rolled it back.
        RollBack(usize),
        /// TiKV was asked: the commit_ts will be taken later than now.
        Raise(usize),
        Tick,
        /// kill -9; unacknowledged prewrites may or may not have reached the disk.
        Restart(bool),
    }

    #[derive(Debug, Default, Clone)]
    struct Txn {
        start: u64,
        acknowledged: bool,
        commit: Option<u64>,
        rolled_back: bool,
        settled_here: bool,
    }

    #[derive(Default)]
    struct World {
        pd: u64,
        txns: Vec<Txn>,
        sorter: Sorter,
        /// Floors on disk, of prewrites that are open and written.
        disk: BTreeMap<u64, Tso>,
        /// Floors taken but not yet on disk.
        unwritten: BTreeMap<u64, Tso>,
        emitted: Vec<u64>,
        late: usize,
        published: Tso,
        /// Naive twin: T, W, floors in a list.
        naive: (u64, u64, Vec<(u64, u64)>),
    }

    impl World {
        fn timestamp(&mut self) -> u64 {
            self.pd += 1;
            self.pd
        }

        fn check(&mut self) {
            let (newest, watermark, floors) = &mut self.naive;
            let lowest = floors.iter().map(|&(_, floor)| floor).chain([*newest]).min().unwrap();
            *watermark = (*watermark).max(lowest);
            assert_eq!(self.sorter.watermark().get(), *watermark, "W differs from its definition");
            assert!(self.sorter.watermark() >= self.published, "W fell");
            self.published = self.sorter.watermark();
            assert_eq!(self.sorter.len(), self.sorter.floors.len());
        }

        fn settle(&mut self, i: usize) {
            let start = self.txns[i].start;
            self.txns[i].settled_here = true;
            self.disk.remove(&start);
            self.sorter.settle(StartTs::new(start));
            self.naive.2.retain(|&(s, _)| s != start);
        }

        fn apply(&mut self, op: Op) {
            let pick = |i: usize, txns: &[Txn]| (!txns.is_empty()).then(|| i % txns.len());
            match op {
                Op::Begin => {
                    let start = self.timestamp();
                    self.txns.push(Txn { start, ..Txn::default() });
                }
                Op::Tick => {
                    let now = self.timestamp();
                    self.sorter.tick(Tso::new(now));
                    self.naive.0 = now;
                }
                Op::Prewrite(i) => {
                    let Some(i) = pick(i, &self.txns) else { return };
                    if self.txns[i].settled_here {
                        return;
                    }
                    let start = self.txns[i].start;
                    let floor = self.sorter.prewrite(StartTs::new(start));
                    if !self.disk.contains_key(&start) {
                        self.unwritten.entry(start).or_insert(floor);
                    }
                    if !self.naive.2.iter().any(|&(s, _)| s == start) {
                        let expected = self.naive.0.max(self.naive.1).max(start);
                        assert_eq!(floor.get(), expected);
                        self.naive.2.push((start, expected));
                    }
                }
                Op::Acknowledge(i) => {
                    let Some(i) = pick(i, &self.txns) else { return };
                    if let Some(floor) = self.unwritten.remove(&self.txns[i].start) {
                        self.disk.insert(self.txns[i].start, floor);
                        self.txns[i].acknowledged = true;
                    }
                }
                Op::AcknowledgeElsewhere(i) => {
                    let Some(i) = pick(i, &self.txns) else { return };
                    self.txns[i].acknowledged = true;
                }
                Op::TakeCommit(i) => {
                    let Some(i) = pick(i, &self.txns) else { return };
                    if self.txns[i].acknowledged && !self.txns[i].rolled_back && self.txns[i].commit.is_none()
                    {
                        self.txns[i].commit = Some(self.timestamp());
                    }
                }
                Op::Commit(i) => {
                    let Some(i) = pick(i, &self.txns) else { return };
                    let Some(commit) = self.txns[i].commit else { return };
                    let start = self.txns[i].start;
                    if !self.disk.contains_key(&start) {
                        return;
                    }
                    match self.sorter.judge(StartTs::new(start), CommitTs::new(commit)) {
                        Judgement::Emit => {
                            assert!(
                                commit > self.published.get(),
                                "{commit} appears at or below W {}",
                                self.published
                            );
                            self.emitted.push(commit);
                        }
                        Judgement::Late { floor } => {
                            assert!(commit <= floor.get());
                            self.late += 1;
                        }
                        Judgement::NotPending => panic!("an open prewrite is unknown"),
                    }
                    self.settle(i);
                }
                Op::RollBack(i) => {
                    let Some(i) = pick(i, &self.txns) else { return };
                    if self.txns[i].commit.is_none() && self.disk.contains_key(&self.txns[i].start) {
                        self.txns[i].rolled_back = true;
                        self.settle(i);
                    }
                }
                Op::Raise(i) => {
                    let Some(i) = pick(i, &self.txns) else { return };
                    let start = self.txns[i].start;
                    if self.txns[i].commit.is_some() || !self.disk.contains_key(&start) {
                        return;
                    }
                    let now = self.timestamp();
                    self.sorter.tick(Tso::new(now));
                    self.naive.0 = now;
                    self.disk.insert(start, Tso::new(now));
                    self.sorter.raise(StartTs::new(start), Tso::new(now));
                    for (s, floor) in &mut self.naive.2 {
                        if *s == start {
                            *floor = now;
                        }
                    }
                }
                Op::Restart(written) => {
                    if written {
                        self.disk.append(&mut self.unwritten);
                    }
                    self.unwritten.clear();
                    // The saved watermark is lazy: anything up to the published one, here the oldest possible.
                    self.sorter =
                        Sorter::recover(self.disk.iter().map(|(&s, &f)| (StartTs::new(s), f)), Tso::ZERO);
                    let now = self.timestamp();
                    self.sorter.tick(Tso::new(now));
                    let floors: Vec<_> = self.disk.iter().map(|(&s, f)| (s, f.get())).collect();
                    let watermark = floors.iter().map(|&(_, f)| f).chain([now]).min().unwrap();
                    self.naive = (now, watermark, floors);
                }
            }
            self.check();
        }
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => Just(Op::Begin),
            6 => (0..8usize).prop_map(Op::Prewrite),
            6 => (0..8usize).prop_map(Op::Acknowledge),
            1 => (0..8usize).prop_map(Op::AcknowledgeElsewhere),
            6 => (0..8usize).prop_map(Op::TakeCommit),
            6 => (0..8usize).prop_map(Op::Commit),
            1 => (0..8usize).prop_map(Op::RollBack),
            2 => (0..8usize).prop_map(Op::Raise),
            6 => Just(Op::Tick),
            1 => any::<bool>().prop_map(Op::Restart),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

        #[test]
        fn promises_hold_in_every_history(ops in prop::collection::vec(op(), 1..80)) {
            let mut world = World::default();
            for op in ops {
                world.apply(op);
            }
            // Whatever is left open is settled by TiKV's word in the end, and then nothing holds W.
            for i in 0..world.txns.len() {
                world.apply(Op::Acknowledge(i));
                world.apply(Op::TakeCommit(i));
                world.apply(Op::Commit(i));
                world.apply(Op::RollBack(i));
            }
            world.apply(Op::Tick);
            prop_assert_eq!(world.sorter.len(), world.unwritten.len());
            if world.sorter.is_empty() {
                prop_assert_eq!(world.sorter.watermark().get(), world.pd);
            }
            // Every commit taken while this pump held the prewrite was emitted once, unless it was a late copy.
            let mut sorted = world.emitted.clone();
            sorted.sort_unstable();
            sorted.dedup();
            prop_assert_eq!(sorted.len(), world.emitted.len());
            let settled = world.txns.iter().filter(|t| t.settled_here && t.commit.is_some()).count();
            prop_assert_eq!(settled, world.emitted.len() + world.late);
        }
    }

    #[test]
    fn an_open_prewrite_holds_the_watermark_at_its_floor() {
        let mut sorter = Sorter::default();
        sorter.tick(Tso::new(10));
        assert_eq!(
            sorter.prewrite(StartTs::new(7)),
            Tso::new(10),
            "the floor is the newest timestamp, not start_ts"
        );
        assert_eq!(sorter.tick(Tso::new(20)), Tso::new(10));
        assert_eq!(sorter.prewrite(StartTs::new(7)), Tso::new(10), "a repeated prewrite keeps its floor");
        assert_eq!(sorter.raise(StartTs::new(7), Tso::new(15)), Tso::new(15));
        assert_eq!(sorter.raise(StartTs::new(7), Tso::new(12)), Tso::new(15), "floors never sink");
        assert_eq!(sorter.judge(StartTs::new(7), CommitTs::new(15)), Judgement::Late { floor: Tso::new(15) });
        assert_eq!(sorter.judge(StartTs::new(7), CommitTs::new(16)), Judgement::Emit);
        assert_eq!(sorter.settle(StartTs::new(7)), Tso::new(20));
        assert_eq!(sorter.judge(StartTs::new(7), CommitTs::new(16)), Judgement::NotPending);
    }

    #[test]
    fn a_start_ts_ahead_of_the_ticks_does_not_move_the_watermark() {
        let mut sorter = Sorter::default();
        sorter.tick(Tso::new(10));
        assert_eq!(sorter.prewrite(StartTs::new(1_000)), Tso::new(1_000));
        assert_eq!(sorter.watermark(), Tso::new(10));
        assert_eq!(sorter.tick(Tso::new(11)), Tso::new(11));
    }
}
