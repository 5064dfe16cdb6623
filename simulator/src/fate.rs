//! How a recorded transaction looks in TiKV while it is under way. Pure.
//!
//! A recording says how each transaction ended, not in which order its prewrite binlog, its locks and its end were seen
//! by whom. Everything that could have been seen is played; a seed chooses.

use std::collections::HashMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tidb::ts::{StartTs, Tso};

use crate::schedule::Kind;
use crate::script::{Record, Script};
use crate::transactions::{DEFAULT_TTL_MS, End, Transaction};

/// A living TiDB renews the locks of its transactions to this long after now.
const RENEWED_TTL_MS: u64 = 20_000;

/// The course of each transaction.
#[derive(Debug)]
pub struct Fates {
    seed: u64,
    /// How long after its prewrite a transaction's rollback binlog was sent.
    rollbacks: HashMap<StartTs, Duration>,
}

impl Fates {
    /// Of a script's transactions.
    pub fn new(script: &Script, seed: u64) -> Self {
        let of = |kind| script.records().iter().filter(move |record| record.kind == kind);
        let begun: HashMap<StartTs, Duration> =
            of(Kind::Prewrite).map(|record| (record.start_ts, record.at)).collect();
        let rollbacks = of(Kind::Rollback).map(|record| {
            let begun = begun.get(&record.start_ts).copied().unwrap_or(record.at);
            (record.start_ts, record.at.saturating_sub(begun))
        });
        Self { seed, rollbacks: rollbacks.collect() }
    }

    fn rng(&self, start_ts: StartTs) -> StdRng {
        StdRng::seed_from_u64(self.seed ^ start_ts.get())
    }

    /// The transaction when its prewrite binlog leaves. TiDB sends that in parallel with locking the keys, so in some
    /// cases the lock is not there yet. `now` is the newest timestamp that anyone can have seen.
    pub fn begin(&self, script: &Script, record: &Record, now: Tso) -> Transaction {
        let start_ts = record.start_ts;
        let mut rng = self.rng(start_ts);
        let begun = Transaction::locked(start_ts, record.primary.clone());
        match (script.commit_ts(start_ts), self.rollbacks.get(&start_ts)) {
            (Some(commit_ts), _) => {
                let lock_later = rng.random_bool(0.25) && now < commit_ts.0;
                Transaction {
                    locked_from: if lock_later {
                        Tso::new(rng.random_range(now.get()..commit_ts.get()))
                    } else {
                        Tso::ZERO
                    },
                    ttl_ms: commit_ts.0.physical_ms().saturating_sub(start_ts.0.physical_ms())
                        + RENEWED_TTL_MS,
                    end: End::Commit(commit_ts),
                    ..begun
                }
            }
            // It fails, and TiDB says so later; one in three could not even lock its primary key.
            (None, Some(after)) => Transaction {
                locked_from: if rng.random_bool(1.0 / 3.0) { Tso::MAX } else { Tso::ZERO },
                ttl_ms: after.as_millis() as u64 + RENEWED_TTL_MS,
                ..begun
            },
            // Nobody ever says anything: either TiDB died with it, and its lock runs out, or only the binlog is missing.
            (None, None) => Transaction { ttl_ms: DEFAULT_TTL_MS, ..begun },
        }
    }

    /// How a transaction ends at its rollback binlog; `None` if it does not (it committed all the same).
    pub fn at_rollback(&self, script: &Script, start_ts: StartTs) -> Option<End> {
        if script.commit_ts(start_ts).is_some() {
            return None;
        }
        let mut rng = self.rng(start_ts);
        let never_locked = rng.random_bool(1.0 / 3.0);
        // Without a lock there may be nothing to clean up, and so no trace.
        Some(if never_locked && rng.random_bool(0.5) { End::Vanished } else { End::RolledBack })
    }

    /// How a transaction that nobody will mention again ends once its prewrite is acknowledged; `None` if it does not.
    pub fn at_silence(&self, script: &Script, start_ts: StartTs) -> Option<End> {
        let silent = script.commit_ts(start_ts).is_none() && !self.rollbacks.contains_key(&start_ts);
        (silent && self.rng(start_ts).random_bool(0.5)).then_some(End::RolledBack)
    }
}
