//! Writing to a pump as TiDB sessions do: prewrite, answer, commit_ts from PD, commit, answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;
use tidb::ts::{CommitTs, StartTs};
use tokio::task::JoinSet;

use crate::binlogs::{Binlogs, PRIMARY};
use crate::latency::{Latencies, Percentiles};
use crate::link::{Link, Refused, frame};
use crate::process::Process;
use crate::timestamps::Timestamps;

/// What is written, and how.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Sessions that each wait for their answers; or with a rate, none.
    pub sessions: usize,
    /// Transactions that begin per second, whether or not others were answered: open loop.
    pub rate: Option<f64>,
    /// Bytes of a prewrite binlog.
    pub payload: usize,
    /// Connections that the sessions share: TiDB servers.
    pub connections: usize,
    /// Before measuring.
    pub warm_up: Duration,
    /// Measured.
    pub time: Duration,
}

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Sessions, 0 for an open loop.
    pub sessions: usize,
    /// Begun per second, if open loop.
    pub rate: Option<f64>,
    /// Bytes of a prewrite.
    pub payload: usize,
    /// TiDB servers.
    pub connections: usize,
    /// Transactions with both answers inside the measured time.
    pub transactions: u64,
    /// The same per second.
    pub per_second: f64,
    /// Milliseconds until an answer, prewrites and commits alike; in an open loop from when it should have been sent.
    pub ack: Percentiles,
    /// Milliseconds until a prewrite's.
    pub prewrite: Percentiles,
    /// Milliseconds until a commit's.
    pub commit: Percentiles,
    /// Transactions given up because of a refusal.
    pub refused: u64,
    /// The pump's processor microseconds per transaction.
    pub pump_cpu_micros: Option<f64>,
    /// This program's.
    pub client_cpu_micros: f64,
    /// The pump's resident memory at the end, bytes.
    pub pump_resident: Option<u64>,
    /// The most it had so far, bytes.
    pub pump_peak: Option<u64>,
    /// All transactions committed by this run, warm-up included: what a pull must return.
    pub committed: u64,
    /// The greatest commit_ts of them.
    pub last_commit: u64,
}

/// What the sessions share.
struct Run {
    links: Vec<Link>,
    cluster_id: u64,
    timestamps: Timestamps,
    binlogs: Binlogs,
    measuring: AtomicBool,
    stop: AtomicBool,
    refused: AtomicU64,
    committed: AtomicU64,
    last_commit: AtomicU64,
}

#[derive(Default)]
struct Tally {
    transactions: u64,
    prewrites: Latencies,
    commits: Latencies,
}

impl Tally {
    fn merge(&mut self, other: Self) {
        self.transactions += other.transactions;
        self.prewrites.merge(other.prewrites);
        self.commits.merge(other.commits);
    }
}

impl Run {
    /// One transaction. In an open loop, `due` is when its prewrite should have been sent.
    async fn transaction(&self, nth: usize, due: Option<Instant>, tally: &mut Tally) -> anyhow::Result<()> {
        let link = &self.links[nth % self.links.len()];
        let cluster = self.cluster_id;
        let start_ts = StartTs(self.timestamps.next().await?);
        let prewrite = frame(cluster, self.binlogs.prewrite(start_ts));
        let measured = self.measuring.load(Ordering::Relaxed);

        let began = due.unwrap_or_else(Instant::now);
        if let Timestamps::Own(truth) = &self.timestamps {
            truth.prewrite(start_ts, PRIMARY);
        }
        if let Err(refused) = link.write(prewrite).await {
            if let Timestamps::Own(truth) = &self.timestamps {
                truth.roll_back(start_ts);
            }
            return self.refuse(&refused);
        }
        let prewritten = began.elapsed();

        let commit_ts = CommitTs(self.timestamps.next().await?);
        if let Timestamps::Own(truth) = &self.timestamps {
            anyhow::ensure!(
                truth.commit(start_ts, commit_ts),
                "the pump had transaction {start_ts} rolled back"
            );
        }
        let commit = frame(cluster, self.binlogs.commit(start_ts, commit_ts));
        let began = Instant::now();
        if let Err(refused) = link.write(commit).await {
            return self.refuse(&refused);
        }
        let committed = began.elapsed();
        if let Timestamps::Own(truth) = &self.timestamps {
            truth.forget(start_ts);
        }

        self.committed.fetch_add(1, Ordering::Relaxed);
        self.last_commit.fetch_max(commit_ts.get(), Ordering::Relaxed);
        if measured && self.measuring.load(Ordering::Relaxed) {
            tally.transactions += 1;
            tally.prewrites.add(prewritten);
            tally.commits.add(committed);
        }
        Ok(())
    }

    fn refuse(&self, refused: &Refused) -> anyhow::Result<()> {
        // A few are measured; a pump that refuses everything is not.
        if self.refused.fetch_add(1, Ordering::Relaxed) >= 100 {
            anyhow::bail!("the pump refuses binlogs: {refused}");
        }
        Ok(())
    }

    async fn session(self: Arc<Self>, nth: usize) -> anyhow::Result<Tally> {
        let mut tally = Tally::default();
        while !self.stop.load(Ordering::Relaxed) {
            self.transaction(nth, None, &mut tally).await?;
        }
        Ok(tally)
    }

    /// Begins transactions by the clock, each on a task of its own.
    async fn open_loop(self: Arc<Self>, rate: f64) -> anyhow::Result<Tally> {
        let mut tasks = JoinSet::new();
        let mut tally = Tally::default();
        let began = Instant::now();
        let mut due = began;
        for nth in 1.. {
            if self.stop.load(Ordering::Relaxed) {
                break;
            }
            tokio::time::sleep_until(due.into()).await;
            let run = Arc::clone(&self);
            tasks.spawn(async move {
                let mut tally = Tally::default();
                run.transaction(nth, Some(due), &mut tally).await.map(|()| tally)
            });
            while let Some(done) = tasks.try_join_next() {
                tally.merge(done??);
            }
            // From the beginning, so that rounding does not add up.
            due = began + Duration::from_secs_f64(nth as f64 / rate);
        }
        while let Some(done) = tasks.join_next().await {
            tally.merge(done??);
        }
        Ok(tally)
    }
}

/// Runs the load against the pump at `addr`; `pump` is its process, if it is on this machine. A stand-in that gives
/// timestamps is also the TiKV that the pump asks, so it is told what becomes of each transaction.
///
/// # Errors
/// The pump or PD cannot be reached, or the pump refuses nearly everything.
pub async fn measure(
    addr: &str,
    cluster_id: u64,
    timestamps: &Timestamps,
    load: Load,
    pump: Option<Process>,
) -> anyhow::Result<Measured> {
    let mut links = Vec::new();
    let mut connections = Vec::new();
    for _ in 0..load.connections.max(1) {
        let (link, connection) = Link::connect(addr).await?;
        links.push(link);
        connections.push(connection);
    }
    let run = Arc::new(Run {
        links,
        cluster_id,
        timestamps: timestamps.clone(),
        binlogs: Binlogs::new(load.payload),
        measuring: AtomicBool::new(false),
        stop: AtomicBool::new(false),
        refused: AtomicU64::new(0),
        committed: AtomicU64::new(0),
        last_commit: AtomicU64::new(0),
    });
    let mut tasks = JoinSet::new();
    match load.rate {
        Some(rate) => {
            tasks.spawn(Arc::clone(&run).open_loop(rate));
        }
        None => {
            for nth in 0..load.sessions {
                tasks.spawn(Arc::clone(&run).session(nth));
            }
        }
    }

    let own = Process::own();
    let cpu = |process: Option<Process>| process.map(Process::cpu).transpose();
    let timed = async {
        tokio::time::sleep(load.warm_up).await;
        let before = (cpu(pump)?, own.cpu()?, Instant::now());
        run.measuring.store(true, Ordering::Relaxed);
        tokio::time::sleep(load.time).await;
        run.measuring.store(false, Ordering::Relaxed);
        let after = (cpu(pump)?, own.cpu()?, Instant::now());
        run.stop.store(true, Ordering::Relaxed);
        anyhow::Ok((before, after))
    };
    let mut tally = Tally::default();
    let ended = async {
        while let Some(done) = tasks.join_next().await {
            tally.merge(done.context("a session")??);
        }
        anyhow::Ok(())
    };
    let ((before, after), ()) = tokio::try_join!(timed, ended)?;

    let seconds = (after.2 - before.2).as_secs_f64();
    let micros = |time: Duration| time.as_secs_f64() * 1e6 / tally.transactions.max(1) as f64;
    let memory = pump.map(Process::memory).transpose()?;
    let mut all = tally.prewrites.clone();
    all.merge(tally.commits.clone());
    Ok(Measured {
        sessions: if load.rate.is_some() { 0 } else { load.sessions },
        rate: load.rate,
        payload: load.payload,
        connections: load.connections.max(1),
        transactions: tally.transactions,
        per_second: tally.transactions as f64 / seconds,
        ack: all.percentiles(),
        prewrite: tally.prewrites.percentiles(),
        commit: tally.commits.percentiles(),
        refused: run.refused.load(Ordering::Relaxed),
        pump_cpu_micros: after.0.zip(before.0).map(|(after, before)| micros(after - before)),
        client_cpu_micros: micros(after.1 - before.1),
        pump_resident: memory.map(|memory| memory.resident),
        pump_peak: memory.map(|memory| memory.peak),
        committed: run.committed.load(Ordering::Relaxed),
        last_commit: run.last_commit.load(Ordering::Relaxed),
    })
}
