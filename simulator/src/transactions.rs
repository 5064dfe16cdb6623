//! TiKV's truth about every transaction the stand-in has begun, and the answers of `KvCheckTxnStatus`. Pure.
//!
//! A transaction is *not found* until its primary key is locked, then *locked*, then committed or rolled back, and
//! never goes back. `now` is the newest timestamp that anyone can have seen: the greatest that PD gave out or that was
//! sent. A commit_ts above `now` has not been taken yet, so the transaction is still locked; its lock can be pushed up
//! to, never past, the commit_ts it is going to take.

use std::collections::HashMap;

use bytes::Bytes;
use schemas::kvrpcpb::{
    Action, CheckTxnStatusRequest, CheckTxnStatusResponse, KeyError, LockInfo, TxnNotFound,
};
use tidb::ts::{CommitTs, StartTs, Tso};

/// How long a lock lives when nobody renews it, as TiDB's default for a small transaction.
pub const DEFAULT_TTL_MS: u64 = 3000;

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nobody has decided yet: locked until committed, rolled back, or the lock's time is up.
    Open,
    /// Committed once the clock reaches this timestamp.
    Commit(CommitTs),
    /// Rolled back; TiKV keeps a record of it.
    RolledBack,
    /// It failed before it could lock its primary key, and nobody left a record.
    Vanished,
}

/// A transaction as TiKV knows it.
#[derive(Clone, Debug)]
pub struct Transaction {
    /// Its primary key, raw.
    pub primary: Bytes,
    /// The clock at which the primary key gets locked; [`Tso::ZERO`]: it is already.
    pub locked_from: Tso,
    /// Milliseconds of the lock's life, counted from start_ts.
    pub ttl_ms: u64,
    /// What the lock has been pushed to. Zero: an old TiDB's lock, which cannot be pushed.
    pub min_commit_ts: Tso,
    /// Its end.
    pub end: End,
}

impl Transaction {
    /// A transaction whose primary key is locked from now on, by a TiDB whose locks can be pushed.
    pub fn locked(start_ts: StartTs, primary: Bytes) -> Self {
        Self {
            primary,
            locked_from: Tso::ZERO,
            ttl_ms: DEFAULT_TTL_MS,
            min_commit_ts: start_ts.0.next(),
            end: End::Open,
        }
    }
}

/// What TiKV holds about a transaction at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Neither a lock nor a record.
    NotFound,
    /// Its primary key is locked.
    Locked,
    /// It is visible from this timestamp on.
    Committed(CommitTs),
    /// A record says that it never will be.
    RolledBack,
}

/// All transactions of a cluster, by start_ts.
#[derive(Debug, Default)]
pub struct Transactions {
    all: HashMap<StartTs, Transaction>,
    aborted: u64,
}

impl Transactions {
    /// Begins a transaction. One that somebody fenced off before it came stays rolled back.
    pub fn begin(&mut self, start_ts: StartTs, transaction: Transaction) {
        let begun = self.all.entry(start_ts).or_insert(transaction);
        if begun.end == End::RolledBack {
            self.aborted += 1;
        }
    }

    /// The transaction, if it has begun.
    pub fn get(&self, start_ts: StartTs) -> Option<&Transaction> {
        self.all.get(&start_ts)
    }

    /// Decides an open transaction; false if it is unknown or was rolled back by somebody else meanwhile.
    pub fn end(&mut self, start_ts: StartTs, end: End) -> bool {
        match self.all.get_mut(&start_ts) {
            Some(transaction) if transaction.end != End::RolledBack => {
                transaction.end = end;
                true
            }
            _ => false,
        }
    }

    /// Forgets a transaction, as TiKV's garbage collection does.
    pub fn forget(&mut self, start_ts: StartTs) {
        self.all.remove(&start_ts);
    }

    /// Every transaction that is to commit, by commit_ts.
    pub fn committed(&self) -> Vec<(StartTs, CommitTs)> {
        let commit = |(&start_ts, transaction): (&StartTs, &Transaction)| match transaction.end {
            End::Commit(commit_ts) => Some((start_ts, commit_ts)),
            _ => None,
        };
        let mut committed: Vec<_> = self.all.iter().filter_map(commit).collect();
        committed.sort_unstable_by_key(|&(_, commit_ts)| commit_ts);
        committed
    }

    /// Live transactions that a caller rolled back by `rollback_if_not_exist` or a made-up `current_ts`: a caller's
    /// defect, unless a test does it on purpose.
    pub fn aborted(&self) -> u64 {
        self.aborted
    }

    /// What TiKV holds when the newest timestamp that anyone can have seen is `now`.
    pub fn status(&self, start_ts: StartTs, now: Tso) -> Status {
        let Some(transaction) = self.all.get(&start_ts) else { return Status::NotFound };
        match transaction.end {
            End::RolledBack => Status::RolledBack,
            End::Vanished => Status::NotFound,
            End::Commit(commit_ts) if commit_ts.0 <= now => Status::Committed(commit_ts),
            End::Commit(_) | End::Open if transaction.locked_from <= now => Status::Locked,
            End::Commit(_) | End::Open => Status::NotFound,
        }
    }

    /// Answers a `KvCheckTxnStatus` that has passed the region's checks.
    pub fn check(&mut self, request: &CheckTxnStatusRequest, now: Tso) -> CheckTxnStatusResponse {
        let start_ts = StartTs::new(request.lock_ts);
        // Every key but the primary is a key on which this transaction left nothing that we would know of.
        let foreign = self.all.get(&start_ts).is_some_and(|known| known.primary != request.primary_key);
        let status = if foreign { Status::NotFound } else { self.status(start_ts, now) };
        match status {
            Status::Committed(commit_ts) => CheckTxnStatusResponse {
                commit_version: commit_ts.get(),
                ..CheckTxnStatusResponse::default()
            },
            Status::RolledBack => CheckTxnStatusResponse::default(),
            Status::Locked => self.check_lock(request),
            Status::NotFound if !request.rollback_if_not_exist => not_found(request),
            Status::NotFound => {
                if !foreign {
                    self.fence(start_ts, request.primary_key.clone());
                }
                with_action(Action::LockNotExistRollback)
            }
        }
    }

    /// Writes the record that keeps a transaction from ever committing.
    fn fence(&mut self, start_ts: StartTs, primary: Bytes) {
        let transaction = self.all.entry(start_ts).or_insert_with(|| Transaction::locked(start_ts, primary));
        if matches!(transaction.end, End::Commit(_)) {
            self.aborted += 1;
        }
        transaction.end = End::RolledBack;
    }

    fn check_lock(&mut self, request: &CheckTxnStatusRequest) -> CheckTxnStatusResponse {
        let start_ts = StartTs::new(request.lock_ts);
        let Some(lock) = self.all.get_mut(&start_ts) else { return not_found(request) };
        if start_ts.0.physical_ms().saturating_add(lock.ttl_ms) < Tso::new(request.current_ts).physical_ms() {
            if matches!(lock.end, End::Commit(_)) {
                self.aborted += 1;
            }
            lock.end = End::RolledBack;
            return with_action(Action::TtlExpireRollback);
        }
        let caller = request.caller_start_ts;
        if caller != u64::MAX && !lock.min_commit_ts.is_zero() && caller >= lock.min_commit_ts.get() {
            let wanted = Tso::new(caller).next().max(Tso::new(request.current_ts));
            // A recorded commit_ts cannot move: the lock goes up to it, and a push past it is refused.
            lock.min_commit_ts = match lock.end {
                End::Commit(commit_ts) if caller >= commit_ts.get() => lock.min_commit_ts,
                End::Commit(commit_ts) => wanted.min(commit_ts.0),
                _ => wanted,
            };
        }
        let pushed = caller == u64::MAX || (caller != 0 && lock.min_commit_ts.get() > caller);
        CheckTxnStatusResponse {
            lock_ttl: lock.ttl_ms,
            lock_info: Some(LockInfo {
                primary_lock: lock.primary.clone(),
                lock_version: start_ts.get(),
                key: lock.primary.clone(),
                lock_ttl: lock.ttl_ms,
                min_commit_ts: lock.min_commit_ts.get(),
                ..LockInfo::default()
            }),
            ..with_action(if pushed { Action::MinCommitTsPushed } else { Action::NoAction })
        }
    }
}

fn with_action(action: Action) -> CheckTxnStatusResponse {
    CheckTxnStatusResponse { action: action.into(), ..CheckTxnStatusResponse::default() }
}

fn not_found(request: &CheckTxnStatusRequest) -> CheckTxnStatusResponse {
    let missing = TxnNotFound { start_ts: request.lock_ts, primary_key: request.primary_key.clone() };
    CheckTxnStatusResponse {
        error: Some(KeyError { txn_not_found: Some(missing), ..KeyError::default() }),
        ..CheckTxnStatusResponse::default()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PRIMARY: Bytes = Bytes::from_static(b"k");

    fn ask(start: u64, caller: Tso) -> CheckTxnStatusRequest {
        CheckTxnStatusRequest {
            primary_key: PRIMARY,
            lock_ts: start,
            caller_start_ts: caller.get(),
            current_ts: caller.get(),
            ..CheckTxnStatusRequest::default()
        }
    }

    fn ts(ms: u64) -> Tso {
        Tso::from_parts(ms, 0)
    }

    fn cluster(start: Tso, end: End) -> Transactions {
        let mut all = Transactions::default();
        let start_ts = StartTs(start);
        all.begin(
            start_ts,
            Transaction { end, locked_from: ts(110), ..Transaction::locked(start_ts, PRIMARY) },
        );
        all
    }

    #[test]
    fn not_found_then_locked_then_committed() {
        let mut all = cluster(ts(100), End::Commit(CommitTs(ts(200))));
        let start = ts(100).get();
        assert!(all.check(&ask(start, ts(105)), ts(105)).error.unwrap().txn_not_found.is_some());
        let locked = all.check(&ask(start, ts(150)), ts(150));
        assert_eq!((locked.lock_ttl, locked.action()), (DEFAULT_TTL_MS, Action::MinCommitTsPushed));
        assert_eq!(locked.lock_info.unwrap().min_commit_ts, ts(150).next().get());
        let committed = all.check(&ask(start, ts(200).next()), ts(200));
        assert_eq!((committed.lock_ttl, committed.commit_version), (0, ts(200).get()));
        assert_eq!(all.aborted(), 0);
    }

    #[test]
    fn a_lock_is_not_pushed_past_the_commit() {
        let mut all = cluster(ts(100), End::Commit(CommitTs(ts(200))));
        let answer = all.check(&ask(ts(100).get(), ts(300)), ts(150));
        assert_eq!(answer.action(), Action::NoAction);
        assert_eq!(answer.lock_info.unwrap().min_commit_ts, ts(100).next().get());
    }

    #[test]
    fn an_old_lock_cannot_be_pushed() {
        let mut all = Transactions::default();
        let start_ts = StartTs(ts(100));
        all.begin(
            start_ts,
            Transaction { min_commit_ts: Tso::ZERO, ..Transaction::locked(start_ts, PRIMARY) },
        );
        let answer = all.check(&ask(start_ts.get(), ts(150)), ts(150));
        assert_eq!((answer.action(), answer.lock_info.unwrap().min_commit_ts), (Action::NoAction, 0));
    }

    #[test]
    fn a_lock_expires() {
        let mut all = cluster(ts(100), End::Open);
        let start = ts(100).get();
        assert_eq!(all.check(&ask(start, ts(3100)), ts(3100)).lock_ttl, DEFAULT_TTL_MS);
        let expired = all.check(&ask(start, ts(3101)), ts(3101));
        assert_eq!(
            (expired.lock_ttl, expired.commit_version, expired.action()),
            (0, 0, Action::TtlExpireRollback)
        );
        assert_eq!(all.status(StartTs(ts(100)), ts(3101)), Status::RolledBack);
    }

    #[test]
    fn a_fence_keeps_the_transaction_out() {
        let mut all = Transactions::default();
        let fence = CheckTxnStatusRequest { rollback_if_not_exist: true, ..ask(ts(100).get(), ts(150)) };
        assert_eq!(all.check(&fence, ts(150)).action(), Action::LockNotExistRollback);
        assert_eq!(all.check(&ask(ts(100).get(), ts(150)), ts(150)), CheckTxnStatusResponse::default());
        let start_ts = StartTs(ts(100));
        all.begin(start_ts, Transaction::locked(start_ts, PRIMARY));
        assert_eq!(all.status(start_ts, ts(160)), Status::RolledBack);
        assert!(!all.end(start_ts, End::Commit(CommitTs(ts(170)))));
        assert_eq!(all.aborted(), 1);
    }

    #[test]
    fn another_key_knows_nothing() {
        let mut all = cluster(ts(100), End::Commit(CommitTs(ts(200))));
        let other = CheckTxnStatusRequest {
            primary_key: Bytes::from_static(b"other"),
            rollback_if_not_exist: true,
            ..ask(ts(100).get(), ts(150))
        };
        assert_eq!(all.check(&other, ts(150)).action(), Action::LockNotExistRollback);
        assert_eq!(all.status(StartTs(ts(100)), ts(150)), Status::Locked);
    }

    proptest! {
        /// Honest questions (timestamps that PD gave out) never change how a transaction ends, its answers only move
        /// forward, and a pushed lock never excludes the recorded commit_ts.
        #[test]
        fn honest_questions_change_nothing(
            locked in 0u64..120,
            commit in 101u64..160,
            steps in prop::collection::vec((0u64..6, 0u64..3), 1..60),
        ) {
            let (start_ts, commit_ts) = (StartTs(ts(100)), CommitTs(ts(commit)));
            let mut all = Transactions::default();
            all.begin(start_ts, Transaction {
                locked_from: ts(locked), end: End::Commit(commit_ts), ..Transaction::locked(start_ts, PRIMARY)
            });
            let (mut now, mut rank) = (100u64, 0);
            for (advance, behind) in steps {
                now += advance;
                let caller = ts(now - behind);
                let answer = all.check(&ask(start_ts.get(), caller), ts(now));
                let stage = match (&answer.error, answer.lock_ttl, answer.commit_version) {
                    (Some(_), 0, 0) => 0,
                    (None, 1.., 0) => 1,
                    (None, 0, version) => { prop_assert_eq!(version, commit_ts.get()); 2 }
                    _ => 9,
                };
                prop_assert!(stage >= rank && stage < 9);
                prop_assert_eq!(stage == 2, now >= commit);
                if let Some(lock) = answer.lock_info {
                    prop_assert!(lock.min_commit_ts <= commit_ts.get());
                    prop_assert!(lock.min_commit_ts > caller.get());
                }
                rank = stage;
            }
            prop_assert_eq!(all.aborted(), 0);
        }
    }
}
