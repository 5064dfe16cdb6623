//! The sorter behind a lock, and its watermark on a watch.
//!
//! Every step is short and never waits. The watermark is published inside the lock, so that it never goes back.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use tidb::ts::{CommitTs, StartTs, Tso};
use tokio::sync::watch;

use crate::sorter::{Judgement, Sorter};

/// Shared by the writer, the ticks, the resolver and whoever reads the watermark.
pub struct Progress {
    sorter: Mutex<Sorter>,
    watermark: watch::Sender<Tso>,
}

/// The sorter's state for metrics and status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Snapshot {
    /// Everything at or below it is readable.
    pub watermark: Tso,
    /// The newest timestamp had from PD.
    pub newest: Tso,
    /// Number of open prewrites.
    pub pending: usize,
    /// The open prewrite that holds the watermark most, with its floor.
    pub lowest: Option<(StartTs, Tso)>,
    /// The smallest start_ts of an open prewrite.
    pub oldest_start: Option<StartTs>,
}

/// What a durable group did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    Settle(StartTs),
    Raise(StartTs, Tso),
}

impl Progress {
    /// Around a recovered sorter.
    pub fn new(sorter: Sorter) -> Self {
        let watermark = watch::Sender::new(sorter.watermark());
        Self { sorter: Mutex::new(sorter), watermark }
    }

    /// A step that cannot move the watermark.
    fn look<T>(&self, look: impl FnOnce(&mut Sorter) -> T) -> T {
        look(&mut self.sorter.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn step<T>(&self, step: impl FnOnce(&mut Sorter) -> T) -> T {
        let mut sorter = self.sorter.lock().unwrap_or_else(PoisonError::into_inner);
        let result = step(&mut sorter);
        let reached = sorter.watermark();
        self.watermark.send_if_modified(|watermark| {
            let moved = reached > *watermark;
            *watermark = reached;
            moved
        });
        result
    }

    /// PD gave out `now`.
    pub fn tick(&self, now: Tso) {
        self.step(|sorter| sorter.tick(now));
    }

    pub(crate) fn prewrite(&self, start_ts: StartTs) -> Tso {
        self.look(|sorter| sorter.prewrite(start_ts))
    }

    pub(crate) fn judge(&self, start_ts: StartTs, commit_ts: CommitTs) -> Judgement {
        self.look(|sorter| sorter.judge(start_ts, commit_ts))
    }

    pub(crate) fn floor(&self, start_ts: StartTs) -> Option<Tso> {
        self.look(|sorter| sorter.floor(start_ts))
    }

    pub(crate) fn apply(&self, effects: impl IntoIterator<Item = Effect>) {
        self.step(|sorter| {
            for effect in effects {
                match effect {
                    Effect::Settle(start_ts) => sorter.settle(start_ts),
                    Effect::Raise(start_ts, floor) => sorter.raise(start_ts, floor),
                };
            }
        });
    }

    /// The open prewrites that hold the watermark most, at most `limit`.
    pub fn lowest(&self, limit: usize) -> Vec<(StartTs, Tso)> {
        self.look(|sorter| sorter.lowest().take(limit).collect())
    }

    /// Keeps what is about open prewrites.
    pub(crate) fn retain_pending<T>(&self, entries: &mut HashMap<StartTs, T>) {
        self.look(|sorter| entries.retain(|&start_ts, _| sorter.floor(start_ts).is_some()));
    }

    /// Whether a prewrite is open.
    pub fn is_pending(&self, start_ts: StartTs) -> bool {
        self.floor(start_ts).is_some()
    }

    /// Everything at or below it is readable.
    pub fn watermark(&self) -> Tso {
        *self.watermark.borrow()
    }

    /// The newest timestamp had from PD.
    pub fn newest(&self) -> Tso {
        self.look(|sorter| sorter.newest())
    }

    /// For whoever waits for the watermark.
    pub fn subscribe(&self) -> watch::Receiver<Tso> {
        self.watermark.subscribe()
    }

    /// For metrics and status.
    pub fn snapshot(&self) -> Snapshot {
        self.look(|sorter| Snapshot {
            watermark: sorter.watermark(),
            newest: sorter.newest(),
            pending: sorter.len(),
            lowest: sorter.lowest().next(),
            oldest_start: sorter.oldest_start(),
        })
    }
}
