//! Asks TiKV about prewrites whose commit does not come. Nothing is ever guessed.
//!
//! A prewrite open for a second is asked about, one whose rollback binlog came at once (a rollback binlog is a hint: TiDB
//! sends it on any error, an unknown outcome of a commit included). The rules:
//!
//! | TiKV says | then |
//! |---|---|
//! | committed | the commit is stored, as if its binlog had come |
//! | rolled back | dropped |
//! | locked, min_commit_ts above T | floor := T (our question pushed it: the commit_ts will be above T) |
//! | locked, not pushable | it holds the watermark until the lock expires; counted, and named in the log |
//! | not found | floor := T: its primary is not locked yet, so its commit_ts is still to be taken |
//! | not found, rollback binlog seen before asking | dropped: the two-phase commit is over without a lock |
//! | not found, older than TiDB lets a transaction get | dropped: TiDB would refuse to commit it |
//!
//! T is fetched before asking. We do not have TiKV write a rollback for a transaction that it does not know: it may be
//! about to begin. The one exception is a pump that an operator has told to leave for good: it must not leave with a
//! prewrite that could still commit, so what TiKV has not heard of two minutes after it came here is fenced off there
//! (`rollback_if_not_exist`; TiDB tries to lock a primary key for 40 s at most, so nothing that lives is hit). An expired
//! lock TiKV clears by itself when asked, as any reader has it do.
//!
//! What TiKV says is checked against what must be true: a commit_ts above start_ts and not above PD's newest timestamp, a
//! pushed lock above T. An answer that cannot be true counts as a failed question, for nothing could undo believing it.
//!
//! Questions go out off the write path, many at a time and each for itself: a store that does not answer holds up only the
//! transactions that live there. An open prewrite thus holds the watermark for [`PATIENCE`] and one question. A question
//! that fails is repeated with growing pauses, per transaction. After a crash the open prewrites are asked about at once.
//!
//! Memory: about 200 bytes and the primary key for an open prewrite in all (sorter and resolver); its payload stays on
//! disk, and is read once, for that key.

mod ask;
mod judge;
mod tikv;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use node::shutdown::Shutdown;
use tidb::ts::{StartTs, Tso};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{debug, info, warn};

pub use ask::Asker;
pub use tikv::{AskError, Tikv, TxnStatus};

use crate::metrics;
use crate::state::{State, StateCell};
use crate::store::Recovered;
use crate::writer::{Refusal, Verdict};
use ask::Answered;
use judge::Answer;

/// How long a prewrite may stay open before it is asked about, and between two questions about the same one.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often the open prewrites are looked over.
const LOOK: Duration = Duration::from_millis(100);

/// Open prewrites that are taken under watch at a look, those that hold the watermark most.
const WATCHED: usize = 16 * 1024;

/// Questions under way together.
const TOGETHER: usize = 256;

/// The longest pause after failed questions.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// News of rollback binlogs, from whoever takes them in.
#[derive(Debug, Default)]
pub struct Hints {
    rolled_back: Mutex<HashSet<StartTs>>,
    news: Notify,
}

impl Hints {
    /// TiDB sent a rollback binlog; it is durable.
    pub fn rolled_back(&self, start_ts: StartTs) {
        self.rolled_back.lock().unwrap_or_else(PoisonError::into_inner).insert(start_ts);
        self.news.notify_one();
    }

    fn take(&self) -> HashSet<StartTs> {
        std::mem::take(&mut *self.rolled_back.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// What is known about TiKV's memory: below it, transactions may be forgotten. Nobody is asked before PD has said.
#[derive(Debug, Default)]
pub struct Forgotten(Mutex<Option<Tso>>);

impl Forgotten {
    /// PD says that versions below `ts` may be gone; zero: everything that matters here is remembered.
    pub fn below(&self, ts: Tso) {
        let mut forgotten = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *forgotten = (*forgotten).max(Some(ts));
    }

    /// True once PD has said.
    pub fn is_known(&self) -> bool {
        self.get().is_some()
    }

    fn get(&self) -> Option<Tso> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One watched prewrite.
#[derive(Debug, Clone)]
struct Watched {
    due: Instant,
    /// PD's newest timestamp when it came under watch: it has been here at least since then.
    seen: Tso,
    /// Of its own memory; known once it was read.
    primary: Option<Bytes>,
    rollback_seen: bool,
    asking: bool,
    unpushable: bool,
    failures: u32,
}

impl Watched {
    fn new(due: Instant, seen: Tso, rollback_seen: bool) -> Self {
        Self { due, seen, primary: None, rollback_seen, asking: false, unpushable: false, failures: 0 }
    }
}

/// Settles what TiDB left open.
pub struct Resolver {
    asker: Arc<Asker>,
    state: Arc<StateCell>,
    hints: Arc<Hints>,
    watched: HashMap<StartTs, Watched>,
    under_way: FuturesUnordered<BoxFuture<'static, Answered>>,
    /// More are due than there was room for.
    more_due: bool,
}

impl Resolver {
    /// Watches what a restart found open, and whatever stays open later.
    pub fn new(asker: Asker, state: Arc<StateCell>, hints: Arc<Hints>, recovered: &Recovered) -> Self {
        let (now, seen) = (Instant::now(), asker.clock.newest());
        let watch = |rollback_seen| Watched::new(now, seen, rollback_seen);
        let watched =
            recovered.pending.iter().map(|open| (open.start_ts, watch(open.rollback_seen))).collect();
        let under_way = FuturesUnordered::new();
        Self { asker: Arc::new(asker), state, hints, watched, under_way, more_due: false }
    }

    /// Asks until the shutdown.
    ///
    /// # Errors
    /// The store cannot be read, or the writer has ended.
    pub async fn run(mut self, shutdown: Shutdown) -> anyhow::Result<()> {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                Some(answered) = self.under_way.next() => {
                    self.heed(answered)?;
                    // Where more are waiting, half of the places are filled at a time.
                    if !self.more_due || self.under_way.len() > TOGETHER / 2 {
                        continue;
                    }
                }
                _ = looks.tick() => self.look(),
                () = self.hints.news.notified() => self.look(),
            }
            match shutdown.unless(self.ask()).await {
                None => return Ok(()),
                Some(asked) => asked?,
            }
        }
    }

    /// Brings the list of watched prewrites up to date.
    fn look(&mut self) {
        let (now, seen) = (Instant::now(), self.asker.clock.newest());
        for (start_ts, _) in self.asker.progress.lowest(WATCHED) {
            self.watched.entry(start_ts).or_insert_with(|| Watched::new(now + PATIENCE, seen, false));
        }
        for start_ts in self.hints.take() {
            let watched = self.watched.entry(start_ts).or_insert_with(|| Watched::new(now, seen, true));
            watched.rollback_seen = true;
            watched.due = now;
        }
        self.asker.progress.retain_pending(&mut self.watched);
        metrics::unpushable(self.watched.values().filter(|watched| watched.unpushable).count());
    }

    /// Begins the questions that are due, as many as there is room for.
    async fn ask(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        let mut due: Vec<_> = self
            .watched
            .iter()
            .filter(|(_, watched)| watched.due <= now && !watched.asking)
            .map(|(&start_ts, watched)| (watched.due, start_ts))
            .collect();
        let room = TOGETHER - self.under_way.len().min(TOGETHER);
        self.more_due = due.len() > room;
        if self.more_due {
            due.select_nth_unstable(room);
            due.truncate(room);
        }
        if due.is_empty() {
            return Ok(());
        }
        let closing = self.state.get() == State::Closing;
        let known = |start_ts| self.watched.get(&start_ts).and_then(|watched| watched.primary.clone());
        let due: Vec<_> = due.into_iter().map(|(_, start_ts)| (start_ts, known(start_ts))).collect();
        for mut question in self.asker.prepare(due).await? {
            let Some(watched) = self.watched.get_mut(&question.start_ts) else { continue };
            watched.asking = true;
            watched.primary = (!question.key.is_empty()).then(|| question.key.clone());
            question.rollback_seen = watched.rollback_seen;
            question.fence = closing && judge::is_fenceable(watched.seen, question.now);
            self.under_way.push(Box::pin(self.asker.clone().ask(question)));
        }
        Ok(())
    }

    /// # Errors
    /// The writer has ended.
    fn heed(&mut self, Answered { start_ts, answer, written }: Answered) -> Result<(), Refusal> {
        let Some(watched) = self.watched.get_mut(&start_ts) else {
            return Ok(());
        };
        watched.asking = false;
        let asked_again = Instant::now() + PATIENCE;
        match written {
            // The writer said why, and whether the stream can go on without it.
            Ok(())
            | Err(Refusal::CommitDiffers { .. } | Refusal::PrewriteDiffers { .. } | Refusal::Closing) => {}
            Err(Refusal::NoSpace) => {
                metrics::resolver_failed("no_space");
                watched.due = asked_again;
                return Ok(());
            }
            Err(stopped @ Refusal::Stopped) => return Err(stopped),
        }
        match answer {
            Answer::Verdict(name, verdict) => {
                metrics::verdict(name);
                debug!(%start_ts, ?verdict, "TiKV answered");
                if !matches!(verdict, Verdict::Above(_)) {
                    info!(%start_ts, verdict = name, "open prewrite settled by TiKV's word");
                }
                (watched.due, watched.failures, watched.unpushable) = (asked_again, 0, false);
            }
            Answer::Unpushable => {
                metrics::verdict("unpushable");
                if !watched.unpushable {
                    warn!(%start_ts, "open prewrite holds the watermark: its lock cannot be pushed, it has to expire");
                }
                (watched.due, watched.failures, watched.unpushable) = (asked_again, 0, true);
            }
            Answer::Failed(error) => {
                metrics::resolver_failed(error.name());
                watched.failures += 1;
                let pause = LOOK.saturating_mul(1 << watched.failures.min(10)).min(LONGEST_PAUSE);
                watched.due = Instant::now() + pause;
                if watched.failures == 3 {
                    warn!(%start_ts, %error, "TiKV does not tell about an open prewrite, trying on");
                }
            }
        }
        Ok(())
    }
}
