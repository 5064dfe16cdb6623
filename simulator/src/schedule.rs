//! Which record of a recording may leave, and when. Pure: no clock, no channel.
//!
//! TiDB asks PD for a commit_ts only after the prewrite was acknowledged, and sends a commit or rollback only after
//! that. Whoever receives a record with a timestamp `t` may therefore conclude that every prewrite with a commit_ts
//! below `t` is durable on some pump. A playback that sends records in another order, or faster than they were
//! acknowledged, would lie to the pumps, so:
//!
//! - a commit or rollback leaves after the acknowledgement of its prewrite;
//! - a record leaves when every prewrite with a commit_ts below the record's own newest timestamp is acknowledged;
//! - a commit moreover leaves when PD could give out a timestamp above it: every prewrite is acknowledged whose
//!   commit_ts follows without a free timestamp between. (Prewrites are exempt: two of them could wait for each other.)
//!
//! Among the records that may leave, the earlier recorded goes first. It always ends: a prewrite waits only for
//! prewrites with a smaller start_ts.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};

use tidb::ts::{CommitTs, StartTs, Tso};

use crate::tso::Recorded;

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The transaction's contents, before it commits.
    Prewrite,
    /// It committed.
    Commit,
    /// Its commit failed, or TiDB does not know whether it did.
    Rollback,
}

/// A record as far as its order is concerned.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// What it is.
    pub kind: Kind,
    /// Its transaction.
    pub start_ts: StartTs,
    /// When its transaction commits; `None` if it never does. The same in all records of a transaction.
    pub commit_ts: Option<CommitTs>,
    /// Which pump received it.
    pub pump: u32,
}

impl Entry {
    /// The newest timestamp that the record itself shows.
    pub fn newest(&self) -> Tso {
        match (self.kind, self.commit_ts) {
            (Kind::Commit, Some(commit_ts)) => commit_ts.0,
            _ => self.start_ts.0,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Its prewrite is not acknowledged.
    Unanswered,
    /// A prewrite with a smaller commit_ts is not acknowledged.
    Gated,
    Ready,
    Sent,
    Done,
}

/// The state of a playback's order. Records are named by their place in the recording.
#[derive(Debug)]
pub struct Schedule {
    entries: Vec<Entry>,
    states: Vec<State>,
    /// The record leaves once every open commit_ts is above this.
    gates: Vec<Tso>,
    /// Prewrite → the commits and rollbacks that wait for its acknowledgement.
    followers: HashMap<usize, Vec<usize>>,
    /// The commit_ts of every prewrite that is not yet acknowledged, and which record that is.
    open: BTreeMap<CommitTs, usize>,
    gated: BinaryHeap<Reverse<(Tso, usize)>>,
    ready: BTreeSet<usize>,
    newest_sent: Tso,
    unfinished: usize,
    /// Everything before this record has left.
    unsent_from: usize,
}

impl Schedule {
    /// `entries` in the order of the recording; `recorded` all of their timestamps.
    ///
    /// A prewrite may be there twice (TiDB gave up on one pump and went to the next, and both had stored it): its
    /// commit follows the copy on its own pump. A commit without any prewrite waits for nothing.
    pub fn new(entries: Vec<Entry>, recorded: &Recorded) -> Self {
        let mut copies: HashMap<StartTs, Vec<usize>> = HashMap::new();
        for (index, entry) in entries.iter().enumerate().filter(|(_, entry)| entry.kind == Kind::Prewrite) {
            copies.entry(entry.start_ts).or_default().push(index);
        }
        // The copy whose acknowledgement TiDB went on from.
        let mut acknowledged: HashMap<StartTs, usize> =
            copies.iter().map(|(start_ts, copies)| (*start_ts, copies[0])).collect();
        for entry in entries.iter().filter(|entry| entry.kind != Kind::Prewrite) {
            if let Some(copies) = copies.get(&entry.start_ts)
                && let Some(copy) = copies.iter().find(|copy| entries[**copy].pump == entry.pump)
            {
                acknowledged.insert(entry.start_ts, *copy);
            }
        }
        let mut schedule = Self {
            states: vec![State::Gated; entries.len()],
            gates: Vec::with_capacity(entries.len()),
            followers: HashMap::new(),
            open: BTreeMap::new(),
            gated: BinaryHeap::new(),
            ready: BTreeSet::new(),
            newest_sent: Tso::ZERO,
            unfinished: entries.len(),
            unsent_from: 0,
            entries,
        };
        for (index, entry) in schedule.entries.iter().enumerate() {
            let gate = match (entry.kind, entry.commit_ts) {
                (Kind::Prewrite, _) | (_, None) => entry.start_ts.0,
                // The rollback binlog of a transaction that committed all the same was sent after its commit.
                (Kind::Commit | Kind::Rollback, Some(commit_ts)) => recorded.free_after(commit_ts.0),
            };
            schedule.gates.push(gate);
            let prewrite = acknowledged.get(&entry.start_ts).copied();
            match (entry.kind, prewrite, entry.commit_ts) {
                (Kind::Prewrite, Some(prewrite), Some(commit_ts)) if prewrite == index => {
                    schedule.open.insert(commit_ts, index);
                }
                (Kind::Commit | Kind::Rollback, Some(prewrite), _) => {
                    schedule.states[index] = State::Unanswered;
                    schedule.followers.entry(prewrite).or_default().push(index);
                }
                _ => {}
            }
        }
        for index in 0..schedule.entries.len() {
            if schedule.states[index] == State::Gated {
                schedule.gated.push(Reverse((schedule.gates[index], index)));
            }
        }
        schedule.release();
        schedule
    }

    /// The record.
    pub fn entry(&self, record: usize) -> &Entry {
        &self.entries[record]
    }

    /// The earliest recorded of the records that may leave now.
    pub fn next_ready(&self) -> Option<usize> {
        self.ready.first().copied()
    }

    /// The record leaves. It must be one that may.
    pub fn send(&mut self, record: usize) {
        debug_assert_eq!(self.states[record], State::Ready);
        if self.ready.remove(&record) {
            self.states[record] = State::Sent;
            self.newest_sent = self.newest_sent.max(self.entries[record].newest());
        }
    }

    /// The record was acknowledged, or nobody will ever try again to send it.
    pub fn finish(&mut self, record: usize) {
        if std::mem::replace(&mut self.states[record], State::Done) == State::Done {
            return;
        }
        self.ready.remove(&record);
        self.unfinished -= 1;
        let entry = self.entries[record];
        if let Some(commit_ts) = entry.commit_ts
            && self.open.get(&commit_ts) == Some(&record)
        {
            self.open.remove(&commit_ts);
        }
        for follower in self.followers.remove(&record).unwrap_or_default() {
            if self.states[follower] == State::Unanswered {
                self.states[follower] = State::Gated;
                self.gated.push(Reverse((self.gates[follower], follower)));
            }
        }
        self.release();
    }

    /// The prewrite was refused for good: its transaction does not happen. Returns the records that will never leave.
    pub fn refuse(&mut self, record: usize) -> Vec<usize> {
        let dropped = self.followers.remove(&record).unwrap_or_default();
        for follower in &dropped {
            if std::mem::replace(&mut self.states[*follower], State::Done) != State::Done {
                self.unfinished -= 1;
            }
        }
        self.finish(record);
        dropped
    }

    /// The smallest commit_ts whose prewrite is not yet acknowledged: PD has not given out anything as great.
    pub fn bound(&self) -> Option<Tso> {
        self.open.first_key_value().map(|(commit_ts, _)| commit_ts.0)
    }

    /// The newest timestamp in a record that has left: PD has given it out.
    pub fn newest_sent(&self) -> Tso {
        self.newest_sent
    }

    /// Records that are neither acknowledged nor given up.
    pub fn unfinished(&self) -> usize {
        self.unfinished
    }

    /// The earliest recorded of the records that have not left, ready or not.
    pub fn first_unsent(&mut self) -> Option<usize> {
        while matches!(self.states.get(self.unsent_from)?, State::Sent | State::Done) {
            self.unsent_from += 1;
        }
        Some(self.unsent_from)
    }

    fn release(&mut self) {
        let bound = self.bound();
        while let Some(Reverse((gate, record))) = self.gated.peek().copied() {
            if bound.is_some_and(|bound| gate >= bound) {
                break;
            }
            self.gated.pop();
            if self.states[record] == State::Gated {
                self.states[record] = State::Ready;
                self.ready.insert(record);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Transactions as PD and TiDB would make them: start_ts, prewrite acknowledged, commit_ts, commit sent; many at a
    /// time. Returns the entries in an order in which they could have arrived, and when each prewrite was acknowledged.
    fn history(choices: &[(u8, u8)]) -> Vec<Entry> {
        let mut ts = 1000u64;
        let mut open: Vec<(u64, usize, Option<u64>)> = Vec::new();
        let mut entries: Vec<Entry> = Vec::new();
        for (what, which) in choices {
            ts += u64::from(*which % 3 == 0) + 1;
            let pump = u32::from(*which % 3);
            if *what < 120 || open.is_empty() {
                entries.push(Entry {
                    kind: Kind::Prewrite,
                    start_ts: StartTs::new(ts),
                    commit_ts: None,
                    pump,
                });
                open.push((ts, entries.len() - 1, None));
                continue;
            }
            let at = usize::from(*which) % open.len();
            let (start, prewrite, commit) = open[at];
            match commit {
                None if *what < 200 => {
                    open[at].2 = Some(ts);
                    entries[prewrite].commit_ts = Some(CommitTs::new(ts));
                    if *what >= 195 {
                        open.remove(at); // the commit binlog is lost
                    }
                }
                commit => {
                    let kind = if commit.is_some() && *what < 250 { Kind::Commit } else { Kind::Rollback };
                    let pump = entries[prewrite].pump;
                    let commit_ts = commit.map(CommitTs::new);
                    entries.push(Entry { kind, start_ts: StartTs::new(start), commit_ts, pump });
                    open.remove(at);
                }
            }
        }
        entries
    }

    fn all_timestamps(entries: &[Entry]) -> Recorded {
        let commits = entries.iter().filter_map(|entry| entry.commit_ts.map(|ts| ts.0));
        Recorded::new(entries.iter().map(|entry| entry.start_ts.0).chain(commits).collect())
    }

    proptest! {
        #[test]
        fn keeps_tidbs_promises(
            choices in prop::collection::vec((any::<u8>(), any::<u8>()), 1..200),
            moves in prop::collection::vec((any::<bool>(), any::<u8>()), 0..800),
        ) {
            let entries = history(&choices);
            let recorded = all_timestamps(&entries);
            let mut schedule = Schedule::new(entries.clone(), &recorded);
            let (mut sent, mut done) = (vec![false; entries.len()], vec![false; entries.len()]);
            let mut moves = moves.into_iter();
            while schedule.unfinished() > 0 {
                let (send, which) = moves.next().unwrap_or((true, 0));
                let in_flight: Vec<usize> = (0..entries.len()).filter(|i| sent[*i] && !done[*i]).collect();
                let ready = schedule.next_ready();
                // Naively: the first unsent record that breaks no promise.
                let may_leave = |i: &usize| {
                    let entry = entries[*i];
                    let own = entries.iter().position(|e| e.kind == Kind::Prewrite && e.start_ts == entry.start_ts);
                    let limit = match entry.kind {
                        Kind::Prewrite => entry.start_ts.0,
                        _ => entry.commit_ts.map_or(entry.start_ts.0, |ts| recorded.free_after(ts.0)),
                    };
                    !sent[*i]
                        && (entry.kind == Kind::Prewrite || own.is_some_and(|own| done[own]))
                        && entries.iter().enumerate().all(|(j, other)| {
                            other.kind != Kind::Prewrite || done[j]
                                || other.commit_ts.is_none_or(|ts| ts.0 > limit)
                        })
                };
                prop_assert_eq!(ready, (0..entries.len()).find(|i| may_leave(i)));
                if let Some(record) = ready.filter(|_| send || in_flight.is_empty()) {
                    schedule.send(record);
                    sent[record] = true;
                } else {
                    // Never stuck: what is not ready waits for something in flight.
                    prop_assert!(!in_flight.is_empty());
                    let record = in_flight[usize::from(which) % in_flight.len()];
                    schedule.finish(record);
                    done[record] = true;
                }
                let newest = (0..entries.len()).filter(|i| sent[*i]).map(|i| entries[i].newest()).max();
                prop_assert_eq!(schedule.newest_sent(), newest.unwrap_or(Tso::ZERO));
                let bound = entries.iter().enumerate()
                    .filter(|(i, e)| e.kind == Kind::Prewrite && !done[*i])
                    .filter_map(|(_, e)| e.commit_ts).min();
                prop_assert_eq!(schedule.bound(), bound.map(|ts| ts.0));
                prop_assert_eq!(schedule.first_unsent(), (0..entries.len()).find(|i| !sent[*i]));
                // There is always something true for PD to say.
                prop_assert!(schedule.bound().is_none_or(|bound| bound > schedule.newest_sent()));
            }
        }
    }

    fn entry(kind: Kind, start: u64, commit: Option<u64>, pump: u32) -> Entry {
        Entry { kind, start_ts: StartTs::new(start), commit_ts: commit.map(CommitTs::new), pump }
    }

    #[test]
    fn a_commit_follows_the_copy_on_its_own_pump() {
        let entries = vec![
            entry(Kind::Prewrite, 10, Some(20), 1),
            entry(Kind::Prewrite, 10, Some(20), 2),
            entry(Kind::Commit, 10, Some(20), 2),
        ];
        let recorded = all_timestamps(&entries);
        let mut schedule = Schedule::new(entries, &recorded);
        for record in [0, 1] {
            assert_eq!(schedule.next_ready(), Some(record));
            schedule.send(record);
        }
        schedule.finish(0);
        assert_eq!((schedule.next_ready(), schedule.bound()), (None, Some(Tso::new(20))));
        schedule.finish(1);
        assert_eq!((schedule.next_ready(), schedule.bound()), (Some(2), None));
    }

    #[test]
    fn a_refused_transaction_does_not_happen() {
        let entries = vec![
            entry(Kind::Prewrite, 10, Some(20), 1),
            entry(Kind::Commit, 10, Some(20), 1),
            entry(Kind::Prewrite, 30, Some(40), 1),
        ];
        let recorded = all_timestamps(&entries);
        let mut schedule = Schedule::new(entries, &recorded);
        schedule.send(0);
        assert_eq!(schedule.next_ready(), None);
        assert_eq!(schedule.refuse(0), vec![1]);
        assert_eq!((schedule.next_ready(), schedule.unfinished()), (Some(2), 1));
    }
}
