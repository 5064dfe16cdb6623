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
//! T is fetched before asking. We never have TiKV write a rollback for a transaction that it does not know
//! (`rollback_if_not_exist` is always false): it may be about to begin. An expired lock TiKV clears by itself when asked,
//! as any reader has it do.
//!
//! Questions go out in rounds off the write path, so open prewrites hold the watermark no longer than a round; floors of
//! the undecided are raised together by one durable write. A question that fails is repeated with growing pauses, per
//! transaction. After a crash the open prewrites are asked about at once.

mod tikv;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use node::shutdown::Shutdown;
use prost::Message as _;
use schemas::binlog::Binlog;
use tidb::ts::{StartTs, Tso};
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{debug, info, warn};

pub use tikv::{AskError, Tikv, TxnStatus};

use crate::clock::Clock;
use crate::metrics;
use crate::progress::Progress;
use crate::store::{Reader, Recovered};
use crate::writer::{Refusal, Verdict, Write, WriteHandle};

/// How long a prewrite may stay open before it is asked about, and between two questions about the same one.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often the open prewrites are looked over.
const LOOK: Duration = Duration::from_millis(100);

/// Open prewrites that are watched at a time, those that hold the watermark most.
const WATCHED: usize = 16 * 1024;

/// Questions of one round, and how many are under way together.
const ROUND: usize = 1024;
const TOGETHER: usize = 64;

/// The longest pause after failed questions.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// TiDB refuses to commit a transaction older than 24 hours; an hour more for whatever was under way.
const LONGEST_TRANSACTION_MS: u64 = 25 * 3600 * 1000;

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
    rollback_seen: bool,
    failures: u32,
    unpushable: bool,
}

/// Settles what TiDB left open.
pub struct Resolver {
    tikv: Tikv,
    clock: Arc<Clock>,
    progress: Arc<Progress>,
    reader: Reader,
    writer: WriteHandle,
    hints: Arc<Hints>,
    forgotten: Arc<Forgotten>,
    watched: HashMap<StartTs, Watched>,
}

/// What came of one question.
enum Answer {
    Verdict(&'static str, Verdict),
    Unpushable,
    Failed(AskError),
}

impl Resolver {
    /// Watches what a restart found open, and whatever stays open later.
    #[expect(clippy::too_many_arguments, reason = "the parts it stands between, each once")]
    pub fn new(
        tikv: Tikv,
        clock: Arc<Clock>,
        progress: Arc<Progress>,
        reader: Reader,
        writer: WriteHandle,
        hints: Arc<Hints>,
        forgotten: Arc<Forgotten>,
        recovered: &Recovered,
    ) -> Self {
        let now = Instant::now();
        let watch = |rollback_seen| Watched { due: now, rollback_seen, failures: 0, unpushable: false };
        let watched =
            recovered.pending.iter().map(|open| (open.start_ts, watch(open.rollback_seen))).collect();
        Self { tikv, clock, progress, reader, writer, hints, forgotten, watched }
    }

    /// Asks until the shutdown.
    ///
    /// # Errors
    /// The store cannot be read, or the writer has ended.
    pub async fn run(mut self, shutdown: Shutdown) -> anyhow::Result<()> {
        loop {
            let wait = async {
                tokio::select! {
                    () = tokio::time::sleep(LOOK) => {}
                    () = self.hints.news.notified() => {}
                }
            };
            if shutdown.unless(wait).await.is_none() {
                return Ok(());
            }
            self.look();
            let due = self.due();
            if !due.is_empty() {
                match shutdown.unless(self.round(due)).await {
                    None => return Ok(()),
                    Some(result) => result?,
                }
            }
        }
    }

    /// Brings the list of watched prewrites up to date.
    fn look(&mut self) {
        let now = Instant::now();
        for (start_ts, _) in self.progress.lowest(WATCHED) {
            self.watched.entry(start_ts).or_insert(Watched {
                due: now + PATIENCE,
                rollback_seen: false,
                failures: 0,
                unpushable: false,
            });
        }
        for start_ts in self.hints.take() {
            let fresh = Watched { due: now, rollback_seen: true, failures: 0, unpushable: false };
            let watched = self.watched.entry(start_ts).or_insert(fresh);
            watched.rollback_seen = true;
            watched.due = now;
        }
        self.progress.retain_pending(&mut self.watched);
        metrics::unpushable(self.watched.values().filter(|watched| watched.unpushable).count());
    }

    fn due(&self) -> Vec<(StartTs, bool)> {
        let now = Instant::now();
        let mut due: Vec<_> = self
            .watched
            .iter()
            .filter(|(_, watched)| watched.due <= now)
            .map(|(&start_ts, watched)| (watched.due, start_ts, watched.rollback_seen))
            .collect();
        due.sort_unstable();
        due.into_iter().take(ROUND).map(|(_, start_ts, rollback_seen)| (start_ts, rollback_seen)).collect()
    }

    /// One round of questions, answers made durable.
    async fn round(&mut self, due: Vec<(StartTs, bool)>) -> anyhow::Result<()> {
        // Before asking: what TiKV says holds at a later moment.
        let now = match self.clock.fresh().await {
            Ok(now) => now,
            Err(error) if error.is_retryable() => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let Some(forgotten) = self.forgotten.get() else {
            return Ok(());
        };
        let keys = self.primary_keys(&due).await?;
        let (tikv, writer, progress) = (&self.tikv, &self.writer, &self.progress);
        let answers: Vec<_> = futures::stream::iter(due.into_iter().zip(keys))
            .map(|((start_ts, rollback_seen), key)| async move {
                metrics::asked_tikv();
                // Its outcome lies above its floor; settled meanwhile, nothing is at stake.
                let remembered = progress.floor(start_ts).is_none_or(|floor| floor >= forgotten);
                let answer = match tikv.check(&key, start_ts, now).await {
                    Ok(status) if remembered => judge(status, start_ts, now, rollback_seen),
                    Ok(status) => judge_forgotten(status, forgotten),
                    Err(error) => Answer::Failed(error),
                };
                let written = match &answer {
                    Answer::Verdict(_, verdict) => writer
                        .write(Write::Verdict { start_ts, verdict: verdict.clone() }, None)
                        .await
                        .map(|_| ()),
                    Answer::Unpushable | Answer::Failed(_) => Ok(()),
                };
                (start_ts, answer, written)
            })
            .buffer_unordered(TOGETHER)
            .collect()
            .await;
        for (start_ts, answer, written) in answers {
            self.heed(start_ts, answer);
            match written {
                // The writer said why, and whether the stream can go on without it.
                Ok(()) | Err(Refusal::CommitDiffers { .. } | Refusal::PrewriteDiffers { .. }) => {}
                // Asked again later.
                Err(Refusal::NoSpace) => metrics::resolver_failed("no_space"),
                Err(stopped @ Refusal::Stopped) => return Err(stopped.into()),
            }
        }
        Ok(())
    }

    fn heed(&mut self, start_ts: StartTs, answer: Answer) {
        let Some(watched) = self.watched.get_mut(&start_ts) else {
            return;
        };
        match answer {
            Answer::Verdict(name, verdict) => {
                metrics::verdict(name);
                debug!(%start_ts, ?verdict, "TiKV answered");
                if !matches!(verdict, Verdict::Above(_)) {
                    info!(%start_ts, verdict = name, "open prewrite settled by TiKV's word");
                }
                *watched =
                    Watched { due: Instant::now() + PATIENCE, failures: 0, unpushable: false, ..*watched };
            }
            Answer::Unpushable => {
                metrics::verdict("unpushable");
                if !watched.unpushable {
                    warn!(%start_ts, "open prewrite holds the watermark: its lock cannot be pushed, it has to expire");
                }
                *watched =
                    Watched { due: Instant::now() + PATIENCE, failures: 0, unpushable: true, ..*watched };
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
    }

    async fn primary_keys(&self, due: &[(StartTs, bool)]) -> anyhow::Result<Vec<bytes::Bytes>> {
        let (reader, starts) =
            (self.reader.clone(), due.iter().map(|&(start_ts, _)| start_ts).collect::<Vec<_>>());
        tokio::task::spawn_blocking(move || {
            starts
                .into_iter()
                .map(|start_ts| {
                    // Open in the sorter means that it is being written or is written; not yet there: no key to ask for.
                    let payload = reader.prewrite(start_ts)?.unwrap_or_default();
                    let binlog = Binlog::decode(payload).map_err(|error| {
                        anyhow::anyhow!("stored prewrite {start_ts} does not decode: {error}")
                    })?;
                    Ok(binlog.prewrite_key.unwrap_or_default())
                })
                .collect()
        })
        .await?
    }
}

/// TiKV may have collected the record: only what it still shows can be believed.
fn judge_forgotten(status: TxnStatus, forgotten: Tso) -> Answer {
    match status {
        TxnStatus::Committed(commit_ts) => Answer::Verdict("committed", Verdict::Committed(commit_ts)),
        TxnStatus::Locked { .. } => Answer::Unpushable,
        TxnStatus::RolledBack | TxnStatus::NotFound => {
            let cause = format!("TiKV may have collected its record: PD's safe point is {forgotten}");
            Answer::Verdict("unknown", Verdict::Unknown { cause })
        }
    }
}

/// The table in the module's description.
fn judge(status: TxnStatus, start_ts: StartTs, now: Tso, rollback_seen: bool) -> Answer {
    let expired = now.physical_ms() > start_ts.0.physical_ms() + LONGEST_TRANSACTION_MS;
    match status {
        TxnStatus::Committed(commit_ts) => Answer::Verdict("committed", Verdict::Committed(commit_ts)),
        TxnStatus::RolledBack => Answer::Verdict("rolled back", Verdict::RolledBack),
        TxnStatus::NotFound if rollback_seen => Answer::Verdict("rolled back", Verdict::RolledBack),
        TxnStatus::NotFound if expired => Answer::Verdict("expired", Verdict::RolledBack),
        TxnStatus::NotFound => Answer::Verdict("not found", Verdict::Above(now)),
        TxnStatus::Locked { min_commit_ts } if min_commit_ts > now => {
            Answer::Verdict("locked", Verdict::Above(now))
        }
        TxnStatus::Locked { .. } => Answer::Unpushable,
    }
}

#[cfg(test)]
mod tests {
    use tidb::ts::CommitTs;

    use super::*;

    const HOUR: u64 = 3_600_000;

    fn shown(answer: Answer) -> Option<Verdict> {
        match answer {
            Answer::Verdict(_, verdict) => Some(verdict),
            Answer::Unpushable => None,
            Answer::Failed(_) => panic!("an answer never fails"),
        }
    }

    fn verdict(status: TxnStatus, age_hours: u64, rollback_seen: bool) -> Option<Verdict> {
        let start_ts = StartTs(Tso::from_parts(100 * HOUR, 0));
        shown(judge(status, start_ts, Tso::from_parts((100 + age_hours) * HOUR, 1), rollback_seen))
    }

    #[test]
    fn rules() {
        let now = Tso::from_parts(100 * HOUR, 1);
        let commit = CommitTs::new(7);
        assert_eq!(verdict(TxnStatus::Committed(commit), 0, true), Some(Verdict::Committed(commit)));
        assert_eq!(verdict(TxnStatus::RolledBack, 0, false), Some(Verdict::RolledBack));
        // Absent: perhaps about to begin.
        assert_eq!(verdict(TxnStatus::NotFound, 0, false), Some(Verdict::Above(now)));
        assert_eq!(verdict(TxnStatus::NotFound, 0, true), Some(Verdict::RolledBack));
        assert!(matches!(verdict(TxnStatus::NotFound, 24, false), Some(Verdict::Above(_))));
        assert_eq!(verdict(TxnStatus::NotFound, 26, false), Some(Verdict::RolledBack));
        // A lock lives until TiKV says otherwise, rollback binlog or not.
        let pushed = TxnStatus::Locked { min_commit_ts: now.next() };
        assert_eq!(verdict(pushed, 0, true), Some(Verdict::Above(now)));
        assert_eq!(verdict(TxnStatus::Locked { min_commit_ts: now }, 0, false), None);
        assert_eq!(verdict(TxnStatus::Locked { min_commit_ts: Tso::ZERO }, 0, true), None);
    }

    #[test]
    fn what_tikv_may_have_forgotten_is_unknown() {
        let forgotten = |status| shown(judge_forgotten(status, Tso::new(9)));
        let commit = CommitTs::new(7);
        assert_eq!(forgotten(TxnStatus::Committed(commit)), Some(Verdict::Committed(commit)));
        assert!(matches!(forgotten(TxnStatus::RolledBack), Some(Verdict::Unknown { .. })));
        assert!(matches!(forgotten(TxnStatus::NotFound), Some(Verdict::Unknown { .. })));
        assert_eq!(forgotten(TxnStatus::Locked { min_commit_ts: Tso::MAX }), None);
    }
}
