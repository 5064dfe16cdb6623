//! Load: sessions that run transactions against the live cluster the way TiDB does. start_ts from PD; the prewrite
//! binlog beside TiKV's prewrite; commit_ts only when both are done; the commit binlog in the background.

pub mod latency;
pub mod tables;
pub mod workload;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde::Serialize;
use tidb::binlog::Header;
use tidb::model::Job;
use tidb::ts::{CommitTs, StartTs};
use tokio::sync::Semaphore;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::client::{Delivery, PrewriteError, PumpClient};
use crate::cluster::Cluster;
use crate::status_port::TidbSchema;
use latency::Latencies;
use workload::{ACCOUNTS, Contents, Kind, OPENING_BALANCE, Workload};

/// Commit binlogs under way, per session.
const COMMITS_PER_SESSION: usize = 64;
/// TiKV remembers this many finished transactions; nobody asks about older ones.
const REMEMBERED: usize = 200_000;

/// What load to make.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// What it does.
    pub kind: Kind,
    /// Sessions, each with one transaction at a time.
    pub sessions: usize,
    /// Transactions a second over all sessions; `None`: as fast as the pumps acknowledge.
    pub rate: Option<f64>,
    /// About how many bytes a prewrite has.
    pub payload: usize,
    /// Ends after so many transactions.
    pub transactions: Option<u64>,
    /// Ends after so long.
    pub duration: Option<Duration>,
    /// The share of transactions that fail and send a rollback.
    pub rollback_share: f64,
    /// The share of transactions that commit and send nothing more.
    pub orphan_share: f64,
    /// Chooses accounts, amounts and shares.
    pub seed: u64,
}

/// What became of the load.
#[derive(Clone, Debug, Default, Serialize)]
pub struct LoadReport {
    /// Transactions that committed.
    pub committed: u64,
    /// Transactions that were rolled back.
    pub rolled_back: u64,
    /// Transactions that were to commit and found themselves rolled back in TiKV: somebody killed a living one.
    pub aborted: u64,
    /// Transactions whose prewrite a pump refused.
    pub refused: u64,
    /// Commits and rollbacks that their pump did not take.
    pub lost: u64,
    /// Attempts that had to be repeated.
    pub retries: u64,
    /// Payload bytes of acknowledged prewrites.
    pub bytes: u64,
    /// Of prewrites, until acknowledged.
    pub prewrite: Latencies,
    /// Of commits and rollbacks, until acknowledged.
    pub commit: Latencies,
}

/// Why the load ended early.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// No pump took a prewrite.
    #[error(transparent)]
    Prewrite(#[from] PrewriteError),
    /// A row could not be made.
    #[error(transparent)]
    Row(#[from] tidb::row::BuildRowError),
    /// A session panicked.
    #[error("a session failed: {0}")]
    Task(#[from] JoinError),
}

/// A load in its course; clones are handles to the same.
#[derive(Clone, Debug)]
pub struct Load(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    options: LoadOptions,
    workload: Workload,
    cluster: Cluster,
    schema: TidbSchema,
    client: PumpClient,
    /// Balances, each locked from before a transfer reads it until the transfer has committed.
    accounts: Vec<tokio::sync::Mutex<i64>>,
    next_order: AtomicI64,
    begun: AtomicU64,
    commits: Arc<Semaphore>,
    background: TaskTracker,
    report: Mutex<LoadReport>,
    finished: Mutex<VecDeque<StartTs>>,
}

impl Load {
    /// On a live cluster, whose TiDB shows `schema`.
    pub fn new(cluster: Cluster, schema: TidbSchema, client: PumpClient, options: LoadOptions) -> Self {
        let account = |_| tokio::sync::Mutex::new(OPENING_BALANCE);
        Self(Arc::new(Inner {
            workload: Workload::new(options.kind, options.payload),
            cluster,
            schema,
            client,
            accounts: (0..ACCOUNTS).map(account).collect(),
            next_order: AtomicI64::new(1),
            begun: AtomicU64::new(0),
            commits: Arc::new(Semaphore::new(options.sessions.max(1) * COMMITS_PER_SESSION)),
            background: TaskTracker::new(),
            report: Mutex::default(),
            finished: Mutex::default(),
            options,
        }))
    }

    /// How far it is.
    pub fn report(&self) -> LoadReport {
        let mut report = self.0.report().clone();
        report.retries = self.0.client.retries();
        report
    }

    /// Creates the tables, fills them, runs the sessions, and waits for the last commit binlog.
    pub async fn run(&self, cancelled: CancellationToken) -> Result<LoadReport, LoadError> {
        let inner = &self.0;
        for job in inner.workload.schema.jobs() {
            inner.run_job(job).await?;
        }
        for contents in inner.workload.opening()? {
            inner.transact(&contents, Fate::Commit).await?;
        }
        *inner.report() = LoadReport::default();
        let begin = Instant::now();
        if let Some(duration) = inner.options.duration {
            let cancelled = cancelled.clone();
            inner.background.spawn(async move {
                tokio::select! {
                    () = sleep_until(begin + duration) => cancelled.cancel(),
                    () = cancelled.cancelled() => {}
                }
            });
        }
        let mut sessions = JoinSet::new();
        for number in 0..inner.options.sessions.max(1) {
            sessions.spawn(Arc::clone(inner).session(number, begin, cancelled.clone()));
        }
        let mut outcome = Ok(());
        while let Some(ended) = sessions.join_next().await {
            let ended = ended.map_err(LoadError::from).flatten();
            if outcome.is_ok() && ended.is_err() {
                outcome = ended;
                cancelled.cancel();
            }
        }
        cancelled.cancel();
        outcome?;
        inner.background.close();
        inner.background.wait().await;
        Ok(self.report())
    }
}

/// How a transaction is to end.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Commit,
    RollBack,
    /// It commits, and its commit binlog is lost.
    Orphan,
}

impl Inner {
    fn report(&self) -> MutexGuard<'_, LoadReport> {
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// True while there are transactions to begin; counts one.
    fn begin_one(&self) -> bool {
        let begun = self.begun.fetch_add(1, Ordering::Relaxed);
        self.options.transactions.is_none_or(|limit| begun < limit)
    }

    async fn session(
        self: Arc<Self>,
        number: usize,
        begin: Instant,
        cancelled: CancellationToken,
    ) -> Result<(), LoadError> {
        let mut rng = StdRng::seed_from_u64(self.options.seed.wrapping_mul(1_000_003) ^ number as u64);
        let sessions = self.options.sessions.max(1);
        for turn in 0.. {
            if let Some(rate) = self.options.rate {
                // Turns are fixed beforehand, so that a slow answer makes the next ones late, not fewer.
                let place = (turn * sessions + number) as f64;
                tokio::select! {
                    () = sleep_until(begin + Duration::from_secs_f64(place / rate)) => {}
                    () = cancelled.cancelled() => return Ok(()),
                }
            }
            if cancelled.is_cancelled() || !self.begin_one() {
                return Ok(());
            }
            match self.options.kind {
                Kind::Bank => self.transfer(&mut rng).await?,
                Kind::Orders => {
                    let id = self.next_order.fetch_add(1, Ordering::Relaxed);
                    let contents = self.workload.order(id, &mut rng)?;
                    self.transact(&contents, self.fate(&mut rng)).await?;
                }
            }
        }
        Ok(())
    }

    fn fate(&self, rng: &mut StdRng) -> Fate {
        let draw: f64 = rng.random();
        if draw < self.options.rollback_share {
            Fate::RollBack
        } else if draw < self.options.rollback_share + self.options.orphan_share {
            Fate::Orphan
        } else {
            Fate::Commit
        }
    }

    async fn transfer(self: &Arc<Self>, rng: &mut StdRng) -> Result<(), LoadError> {
        let (a, b) = (rng.random_range(0..ACCOUNTS), rng.random_range(0..ACCOUNTS - 1));
        let b = if b >= a { b + 1 } else { b };
        // In one order, or two transfers would wait for each other.
        let mut first = self.accounts[a.min(b)].lock().await;
        let mut second = self.accounts[a.max(b)].lock().await;
        let (from, to) = if a < b { (&mut *first, &mut *second) } else { (&mut *second, &mut *first) };
        let amount = rng.random_range(1..=10);
        let contents = self.workload.transfer((a as i64 + 1, *from), (b as i64 + 1, *to), amount)?;
        if self.transact(&contents, self.fate(rng)).await? {
            *from -= amount;
            *to += amount;
        }
        Ok(())
    }

    /// One transaction; true if it committed.
    async fn transact(self: &Arc<Self>, contents: &Contents, fate: Fate) -> Result<bool, LoadError> {
        let start_ts = StartTs(self.cluster.tso());
        let header = Header::prewrite(start_ts, contents.primary.clone(), &contents.value);
        self.two_phases(&header, fate).await.map(|commit_ts| commit_ts.is_some())
    }

    /// Creates something; the binlog goes out with the transaction that ends the job.
    async fn run_job(self: &Arc<Self>, mut job: Job) -> Result<(), LoadError> {
        let start_ts = StartTs(self.cluster.tso());
        let header = Header {
            ddl_query: Bytes::from(job.query.clone()),
            ddl_job_id: job.id,
            ddl_schema_state: u32::from(job.schema_state) as i32,
            prewrite_value: Bytes::new(),
            ..Header::prewrite(start_ts, tidb::key::database(job.schema_id).into(), &Default::default())
        };
        if let Some(commit_ts) = self.two_phases(&header, Fate::Commit).await? {
            job.start_ts = start_ts.get();
            job.binlog.finished_ts = self.cluster.tso().get();
            self.schema.add(job, start_ts, commit_ts);
        }
        Ok(())
    }

    async fn two_phases(
        self: &Arc<Self>,
        prewrite: &Header,
        fate: Fate,
    ) -> Result<Option<CommitTs>, LoadError> {
        let start_ts = prewrite.start_ts;
        let payload = prewrite.encode();
        let bytes = payload.len() as u64;
        self.cluster.prewrite(start_ts, prewrite.prewrite_key.clone());
        let begin = Instant::now();
        let node = match self.client.prewrite(start_ts, 1, payload).await {
            Ok(node) => node,
            Err(PrewriteError::Refused { reason, .. }) => {
                tracing::warn!(%start_ts, %reason, "prewrite refused");
                self.cluster.roll_back(start_ts);
                self.report().refused += 1;
                return Ok(None);
            }
            Err(error @ PrewriteError::Critical { .. }) => return Err(error.into()),
        };
        let latency = begin.elapsed();
        let commit_ts = if fate == Fate::RollBack {
            self.cluster.roll_back(start_ts);
            None
        } else {
            self.cluster.commit_now(start_ts)
        };
        {
            let mut report = self.report();
            report.prewrite.add(latency);
            report.bytes += bytes;
            match commit_ts {
                Some(_) => report.committed += 1,
                None if fate == Fate::RollBack => report.rolled_back += 1,
                None => report.aborted += 1,
            }
        }
        if fate != Fate::Orphan {
            let follower = match commit_ts {
                Some(commit_ts) => prewrite.committed(commit_ts),
                None => prewrite.rolled_back(),
            };
            // Closed only with the load itself.
            let permit = Arc::clone(&self.commits).acquire_owned().await;
            let load = Arc::clone(self);
            self.background.spawn(async move {
                let begin = Instant::now();
                let delivery = load.client.follow(&node, follower.encode()).await;
                {
                    let mut report = load.report();
                    report.commit.add(begin.elapsed());
                    report.lost += u64::from(delivery == Delivery::Lost);
                }
                load.forget_old(start_ts);
                drop(permit);
            });
        }
        Ok(commit_ts)
    }

    /// Keeps TiKV's memory bounded.
    fn forget_old(&self, finished: StartTs) {
        let mut queue = self.finished.lock().unwrap_or_else(PoisonError::into_inner);
        queue.push_back(finished);
        if queue.len() > REMEMBERED
            && let Some(old) = queue.pop_front()
        {
            self.cluster.forget(old);
        }
    }
}
