//! The clocks behind the timestamps that the PD stand-in gives out. Pure: time comes in as an argument.
//!
//! A recording fixes every timestamp that a transaction took, so the clock of a playback may not run freely. What a
//! real PD would have answered is anything above all that was sent and below all that is still to be taken: a
//! commit_ts is taken only after the prewrite's acknowledgement. [`PlaybackClock`] stays inside that interval.

use tidb::ts::Tso;

/// The recorded timestamps, each of which belongs to the transaction that took it.
#[derive(Clone, Debug, Default)]
pub struct Recorded(Vec<Tso>);

impl Recorded {
    /// Any order, duplicates allowed.
    pub fn new(mut all: Vec<Tso>) -> Self {
        all.sort_unstable();
        all.dedup();
        Self(all)
    }

    /// The earliest one.
    pub fn first(&self) -> Option<Tso> {
        self.0.first().copied()
    }

    /// The latest one.
    pub fn last(&self) -> Option<Tso> {
        self.0.last().copied()
    }

    /// True if a recorded transaction took this timestamp.
    pub fn contains(&self, ts: Tso) -> bool {
        self.0.binary_search(&ts).is_ok()
    }

    /// The last of the first `count` consecutive timestamps at or after `from` that nobody took.
    pub fn free_run(&self, from: Tso, count: u64) -> Tso {
        let mut run = from.get();
        for taken in &self.0[self.0.partition_point(|ts| *ts < from)..] {
            if taken.get() - run >= count {
                break;
            }
            run = taken.get() + 1;
        }
        Tso::new(run + count - 1)
    }

    /// The last timestamp before `ts` that nobody took.
    pub fn free_before(&self, ts: Tso) -> Tso {
        let mut free = ts.prev();
        for taken in self.0[..self.0.partition_point(|other| *other < ts)].iter().rev() {
            if *taken != free {
                break;
            }
            free = free.prev();
        }
        free
    }

    /// The first timestamp after `ts` that nobody took.
    pub fn free_after(&self, ts: Tso) -> Tso {
        self.free_run(ts.next(), 1)
    }
}

/// The clock of a playback. Monotonic; gives out no recorded timestamp; stays below `bound` and, wherever there is
/// room, goes above everything that was sent.
#[derive(Debug)]
pub struct PlaybackClock {
    recorded: Recorded,
    last: Tso,
}

impl PlaybackClock {
    /// Begins one second before the first recorded timestamp.
    pub fn new(recorded: Recorded) -> Self {
        let first = recorded.first().unwrap_or(Tso::from_parts(1000, 0));
        Self { last: Tso::from_parts(first.physical_ms().saturating_sub(1000), 0), recorded }
    }

    /// The recorded timestamps.
    pub fn recorded(&self) -> &Recorded {
        &self.recorded
    }

    /// The newest timestamp given out.
    pub fn last(&self) -> Tso {
        self.last
    }

    /// Gives out a timestamp.
    ///
    /// `floor`: the newest timestamp that was sent. `bound`: the smallest commit_ts whose prewrite is not yet
    /// acknowledged. `drift`: where the passing of time alone would have brought the clock. Without room between the
    /// two, the greatest that is left below `bound` is given out, again and again: late, but true.
    pub fn take(&mut self, floor: Tso, bound: Option<Tso>, drift: Tso) -> Tso {
        if let Some(ts) = self.take_run(1, floor, bound, drift) {
            return ts;
        }
        // Not above everything that was sent, then, but as near to it as is true.
        if let Some(bound) = bound {
            self.last = self.last.max(self.recorded.free_before(bound));
        }
        self.last
    }

    /// Gives out `count` consecutive timestamps and returns the last of them; `None` while there is no room for so many:
    /// what could be repeated is one timestamp, and those before it may have been taken by recorded transactions.
    pub fn take_run(&mut self, count: u32, floor: Tso, bound: Option<Tso>, drift: Tso) -> Option<Tso> {
        let count = u64::from(count.max(1));
        let earliest = self.last.max(floor).next();
        // Time brings the clock only up to the millisecond of the bound, so that there is always room for more questions.
        let drift =
            bound.map_or(drift, |bound| drift.min(Tso::from_parts(bound.physical_ms().saturating_sub(1), 0)));
        let runs = [earliest.max(drift), earliest].map(|from| self.recorded.free_run(from, count));
        let last = runs.into_iter().find(|ts| bound.is_none_or(|bound| *ts < bound))?;
        self.last = last;
        Some(last)
    }
}

/// An ordinary PD's clock, for load and for tests: follows the time given to it, counts on within a millisecond.
#[derive(Debug, Default)]
pub struct LiveClock {
    last: Tso,
}

impl LiveClock {
    /// The newest timestamp given out.
    pub fn last(&self) -> Tso {
        self.last
    }

    /// Gives out `count` consecutive timestamps at Unix time `now_ms` and returns the last of them.
    pub fn take(&mut self, count: u32, now_ms: u64) -> Tso {
        let first = self.last.next().max(Tso::from_parts(now_ms, 1));
        self.last = Tso::new(first.get() + u64::from(count.max(1)) - 1);
        self.last
    }

    /// Goes on from `ts`, forwards or (a PD restored from an old backup) backwards.
    pub fn set(&mut self, ts: Tso) {
        self.last = ts;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn repeats_rather_than_passing() {
        let base = 500_000 << 18;
        let recorded = Recorded::new([10, 11, 12].map(|n| Tso::new(base + n)).to_vec());
        let mut clock = PlaybackClock::new(recorded);
        let start = clock.take(Tso::ZERO, Some(Tso::new(base + 11)), Tso::ZERO);
        assert_eq!(start, Tso::from_parts(499_000, 1));
        // Between 10 (sent) and 11 (its prewrite not yet acknowledged) there is nothing; 9 is the best, and stays it.
        for _ in 0..2 {
            assert_eq!(
                clock.take(Tso::new(base + 10), Some(Tso::new(base + 11)), Tso::ZERO),
                Tso::new(base + 9)
            );
        }
        // 13 is the first that nobody took.
        assert_eq!(clock.take(Tso::new(base + 11), None, Tso::ZERO), Tso::new(base + 13));
        assert_eq!(clock.take_run(3, Tso::new(base + 11), None, Tso::ZERO), Some(Tso::new(base + 16)));
    }

    /// 10 can be repeated, but 9 and 10 cannot: 9 was taken.
    #[test]
    fn a_run_without_room_is_not_given_out() {
        let at = |n| Tso::new((500_000_u64 << 18) + n);
        let mut clock = PlaybackClock::new(Recorded::new(vec![at(9), at(11), at(12)]));
        let ask = |clock: &mut PlaybackClock, count| clock.take_run(count, at(9), Some(at(11)), Tso::ZERO);
        assert_eq!(clock.take(at(9), Some(at(11)), Tso::ZERO), at(10));
        assert_eq!(ask(&mut clock, 2), None);
        assert_eq!((clock.last(), clock.take(at(9), Some(at(11)), Tso::ZERO)), (at(10), at(10)));
        assert_eq!(clock.take_run(2, at(12), None, Tso::ZERO), Some(at(14)));
    }

    #[test]
    fn time_stops_before_the_bound() {
        let bound = Tso::from_parts(900_000, 7);
        let mut clock = PlaybackClock::new(Recorded::new(vec![Tso::from_parts(500_000, 0), bound]));
        let late = Tso::from_parts(950_000, 0);
        assert_eq!(clock.take(Tso::ZERO, Some(bound), late), Tso::from_parts(899_999, 0));
        assert_eq!(clock.take(Tso::ZERO, Some(bound), late), Tso::from_parts(899_999, 1));
        assert_eq!(clock.take(Tso::ZERO, None, late), late);
    }

    #[test]
    fn live() {
        let mut clock = LiveClock::default();
        assert_eq!(clock.take(1, 77), Tso::from_parts(77, 1));
        assert_eq!(clock.take(5, 77), Tso::from_parts(77, 6));
        assert_eq!(clock.take(1, 76), Tso::from_parts(77, 7));
        assert_eq!(clock.take(1, 78), Tso::from_parts(78, 1));
    }

    proptest! {
        #[test]
        fn free_run_is_free_and_first(taken in prop::collection::vec(1u64..60, 0..40), from in 1u64..70, count in 1u64..5) {
            let recorded = Recorded::new(taken.iter().map(|n| Tso::new(*n)).collect());
            let expected = (from..).find(|first| (*first..first + count).all(|ts| !taken.contains(&ts))).unwrap() + count - 1;
            prop_assert_eq!(recorded.free_run(Tso::new(from), count), Tso::new(expected));
        }

        /// Any sequence of questions: never down, never a recorded one, never at or past the bound, and above what was
        /// sent whenever a free timestamp lies between.
        #[test]
        fn never_lies(
            taken in prop::collection::btree_set(1u64..200, 1..60),
            steps in prop::collection::vec((0u64..3, 0u64..40, any::<bool>(), 2u32..6), 1..60),
        ) {
            let base = 5_000u64 << 18;
            let all: Vec<u64> = taken.iter().map(|n| base + n).collect();
            let mut clock = PlaybackClock::new(Recorded::new(all.iter().map(|n| Tso::new(*n)).collect()));
            let (mut sent, mut last) = (0, clock.last());
            for (advance, drift, bounded, count) in steps {
                sent = (sent + advance as usize).min(all.len());
                let floor = if sent == 0 { Tso::ZERO } else { Tso::new(all[sent - 1]) };
                let bound = all.get(sent).filter(|_| bounded || sent < all.len()).map(|n| Tso::new(*n));
                let run = clock.take_run(count, floor, bound, Tso::new(base + drift));
                if let Some(run) = run {
                    prop_assert!((run.get() - u64::from(count) + 1..=run.get()).all(|ts| !all.contains(&ts)));
                    prop_assert!(run.get() - u64::from(count) >= last.max(floor).get());
                    prop_assert!(bound.is_none_or(|bound| run < bound));
                    last = run;
                }
                let ts = clock.take(floor, bound, Tso::new(base + drift));
                prop_assert!(ts >= last);
                prop_assert!(!all.contains(&ts.get()));
                let room_from = floor.max(last).get().max(base - (1000 << 18)) + 1;
                let free = (room_from..bound.map_or(room_from + 300, Tso::get)).take(300).find(|n| !all.contains(n));
                match (free, bound) {
                    (Some(_), _) => {
                        prop_assert!(ts > floor && ts > last);
                        prop_assert!(bound.is_none_or(|bound| ts < bound));
                    }
                    (None, Some(bound)) => {
                        let below = (last.get()..bound.get()).rev().find(|n| !all.contains(n));
                        prop_assert_eq!(ts.get(), below.unwrap_or(last.get()).max(last.get()));
                    }
                    (None, None) => prop_assert!(false, "without a bound there is room"),
                }
                last = ts;
            }
        }
    }
}
