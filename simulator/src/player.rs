//! Plays a script to the pumps: paces it, keeps TiDB's promises, follows what becomes of each record.

use std::collections::{HashMap, HashSet};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use tidb::binlog::Header;
use tidb::ts::{CommitTs, StartTs, Tso};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::client::{Delivery, PrewriteError, PumpClient};
use crate::cluster::Cluster;
use crate::fate::Fates;
use crate::schedule::Kind;
use crate::script::{Record, Script};
use crate::stage::Stage;
use crate::status_port::TidbSchema;
use crate::transactions::{End, Status};

/// Further behind than this, the playback's own time waits for the pumps, as TiDB's sessions would.
const SLACK: Duration = Duration::from_secs(1);

/// How fast to play.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Speed {
    /// Recorded seconds per second.
    Factor(f64),
    /// As fast as the pumps acknowledge.
    Max,
}

impl Speed {
    /// Recorded seconds that pass per second while nothing happens.
    pub fn rate(self) -> f64 {
        match self {
            Self::Factor(factor) => factor,
            Self::Max => 1.0,
        }
    }
}

impl FromStr for Speed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "recorded" => return Ok(Self::Factor(1.0)),
            "max" => return Ok(Self::Max),
            _ => {}
        }
        match text.trim_end_matches('x').parse() {
            Ok(factor) if (0.001..=100_000.0).contains(&factor) => Ok(Self::Factor(factor)),
            _ => Err(format!(
                "`{text}` is not a speed: use `recorded`, `max` or a factor from 0.001 to 100000"
            )),
        }
    }
}

/// How to play.
#[derive(Clone, Copy, Debug)]
pub struct PlayOptions {
    /// How fast.
    pub speed: Speed,
    /// Records that may be under way at a time: TiDB's sessions.
    pub in_flight: usize,
    /// Bytes that may be under way at a time; a greater record goes alone.
    pub in_flight_bytes: usize,
    /// Chooses what a recording leaves open.
    pub seed: u64,
}

impl Default for PlayOptions {
    fn default() -> Self {
        Self { speed: Speed::Factor(1.0), in_flight: 1024, in_flight_bytes: 64 << 20, seed: 1 }
    }
}

/// How far a playback is.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Progress {
    /// Records to play.
    pub records: usize,
    /// Records acknowledged or given up.
    pub done: usize,
    /// Prewrites acknowledged.
    pub prewrites: u64,
    /// Commits acknowledged.
    pub commits: u64,
    /// Rollbacks acknowledged.
    pub rollbacks: u64,
    /// Commits and rollbacks that their pump did not take in ten minutes, or refused: TiDB forgets them silently.
    pub lost: u64,
    /// Transactions that did not happen because a pump refused their prewrite.
    pub refused: u64,
    /// Transactions that committed in the recording and that somebody had TiKV roll back here.
    pub aborted: u64,
    /// Attempts that had to be repeated.
    pub retries: u64,
    /// Payload bytes acknowledged.
    pub bytes: u64,
    /// The newest commit_ts that was sent.
    pub newest_commit_ts: Tso,
    /// The recording's last timestamp.
    pub last_ts: Tso,
}

impl Progress {
    /// True if everything that TiDB can promise has arrived as it was recorded.
    pub fn is_faithful(&self) -> bool {
        self.done == self.records && self.lost == 0 && self.refused == 0 && self.aborted == 0
    }

    /// Recorded seconds still to be played.
    pub fn lag_seconds(&self) -> f64 {
        if self.newest_commit_ts.is_zero() { 0.0 } else { self.last_ts.seconds_since(self.newest_commit_ts) }
    }
}

/// Why a playback ended early.
#[derive(Debug, thiserror::Error)]
pub enum PlayError {
    /// No pump took a prewrite.
    #[error(transparent)]
    Critical(#[from] PrewriteError),
    /// Somebody asked for it.
    #[error("interrupted after {done} of {records} records")]
    Interrupted {
        /// Records acknowledged or given up.
        done: usize,
        /// Records to play.
        records: usize,
    },
    /// A task of the playback panicked.
    #[error("a task of the playback failed: {0}")]
    Task(#[from] JoinError),
}

/// A playback in its course.
#[derive(Debug)]
pub struct Player {
    script: Arc<Script>,
    cluster: Cluster,
    schema: TidbSchema,
    client: PumpClient,
    fates: Fates,
    options: PlayOptions,
    /// Transactions that a later record of the script mentions.
    followed: HashSet<StartTs>,
    /// Which pump acknowledged the prewrite that in the recording went to pump n.
    nodes: HashMap<StartTs, Vec<(u32, String)>>,
    progress: watch::Sender<Progress>,
}

/// What has become of a record that left.
enum Landing {
    Prewrite { record: usize, result: Result<String, PrewriteError> },
    Follower { record: usize, delivery: Delivery, aborted: bool },
}

/// A record on its way out.
struct Departure {
    record: usize,
    /// TiKV has rolled the transaction back, so its commit cannot happen.
    aborted: bool,
}

impl Player {
    /// `stage` must have been set for the same script.
    pub fn new(script: Arc<Script>, stage: &Stage, client: PumpClient, options: PlayOptions) -> Self {
        let followers = script.records().iter().filter(|record| record.kind != Kind::Prewrite);
        let progress = Progress {
            records: script.records().len(),
            last_ts: script.recorded().last().unwrap_or(Tso::ZERO),
            ..Progress::default()
        };
        Self {
            followed: followers.map(|record| record.start_ts).collect(),
            fates: Fates::new(&script, options.seed),
            cluster: stage.cluster.clone(),
            schema: stage.schema.clone(),
            nodes: HashMap::new(),
            progress: watch::Sender::new(progress),
            script,
            client,
            options,
        }
    }

    /// Follows the playback.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Plays to the end.
    pub async fn play(mut self, cancelled: CancellationToken) -> Result<Progress, PlayError> {
        let mut flights = JoinSet::new();
        let mut bytes = 0;
        let mut pace = Pace::new(self.options.speed, Instant::now());
        loop {
            let mut due = None;
            while flights.len() < self.options.in_flight && (bytes < self.options.in_flight_bytes) {
                match self.depart(&mut pace) {
                    Ok(Some(departure)) => {
                        bytes += self.record(departure.record).payload.len();
                        self.launch(departure, &mut flights);
                    }
                    Ok(None) => break,
                    Err(later) => {
                        due = Some(later);
                        break;
                    }
                }
            }
            if flights.is_empty() && due.is_none() {
                break;
            }
            tokio::select! {
                Some(landing) = flights.join_next() => {
                    let landing = landing?;
                    bytes -= self.record(landing.record()).payload.len();
                    self.land(landing)?;
                }
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
                () = cancelled.cancelled() => {
                    let Progress { done, records, .. } = *self.progress.borrow();
                    return Err(PlayError::Interrupted { done, records });
                }
            }
        }
        self.progress.send_modify(|progress| progress.aborted = progress.aborted.max(self.cluster.aborted()));
        Ok(self.progress.borrow().clone())
    }

    fn record(&self, record: usize) -> &Record {
        &self.script.records()[record]
    }

    /// The next record that may leave now; `Err` with the time at which one may, if all those that could are not due.
    fn depart(&self, pace: &mut Pace) -> Result<Option<Departure>, Instant> {
        let (script, fates, now) = (&self.script, &self.fates, Instant::now());
        let step = self.cluster.step(|playback, transactions| {
            if let Some(unsent) = playback.schedule.first_unsent() {
                pace.wait_for(script.records()[unsent].at, now);
            }
            let Some(index) = playback.schedule.next_ready() else { return Ok(None) };
            let record = &script.records()[index];
            if let Some(later) = pace.not_before(record.at, now) {
                return Err(later);
            }
            playback.send(index);
            let newest = playback.now();
            let mut aborted = false;
            match record.kind {
                Kind::Prewrite => transactions.begin(record.start_ts, fates.begin(script, record, newest)),
                Kind::Commit => aborted = transactions.status(record.start_ts, newest) == Status::RolledBack,
                Kind::Rollback => {
                    if let Some(end) = fates.at_rollback(script, record.start_ts) {
                        transactions.end(record.start_ts, end);
                    }
                }
            }
            Ok(Some(Departure { record: index, aborted }))
        });
        step.unwrap_or(Ok(None))
    }

    fn launch(&mut self, departure: Departure, flights: &mut JoinSet<Landing>) {
        let index = departure.record;
        let record = self.record(index).clone();
        let client = self.client.clone();
        if record.kind == Kind::Prewrite {
            flights.spawn(async move {
                let result = client.prewrite(record.start_ts, record.pump, record.payload).await;
                Landing::Prewrite { record: index, result }
            });
            return;
        }
        let aborted = departure.aborted;
        if record.kind == Kind::Commit {
            self.progress.send_if_modified(|progress| {
                let newest = record.commit_ts.map_or(Tso::ZERO, |commit_ts| commit_ts.0);
                progress.newest_commit_ts = progress.newest_commit_ts.max(newest);
                false
            });
            if let Some(ddl) = record.ddl.filter(|_| !aborted) {
                self.schema.sent(ddl.job_id, record.start_ts);
            }
        }
        let payload = if aborted { rolled_back(&record) } else { record.payload.clone() };
        let node = self.node_of(&record);
        flights.spawn(async move {
            let node = match node {
                Some(node) => node,
                None => client.any_pump(record.pump).await,
            };
            let delivery = client.follow(&node, payload).await;
            Landing::Follower { record: index, delivery, aborted }
        });
    }

    /// The pump that has the transaction's prewrite.
    fn node_of(&self, record: &Record) -> Option<String> {
        let copies = self.nodes.get(&record.start_ts)?;
        let own = copies.iter().find(|(pump, _)| *pump == record.pump);
        own.or(copies.first()).map(|(_, node)| node.clone())
    }

    fn land(&mut self, landing: Landing) -> Result<(), PlayError> {
        match landing {
            Landing::Prewrite { record, result: Ok(node) } => {
                let Record { start_ts, pump, ddl, .. } = *self.record(record);
                self.cluster.step(|playback, transactions| {
                    playback.finish(record);
                    if let Some(end) = self.fates.at_silence(&self.script, start_ts) {
                        transactions.end(start_ts, end);
                    }
                });
                if self.followed.contains(&start_ts) {
                    self.nodes.entry(start_ts).or_default().push((pump, node));
                } else if let Some(ddl) = ddl.filter(|_| self.script.commit_ts(start_ts).is_some()) {
                    self.schema.sent(ddl.job_id, start_ts);
                }
                self.count(record, |progress| progress.prewrites += 1);
            }
            Landing::Prewrite { record, result: Err(error @ PrewriteError::Refused { .. }) } => {
                let start_ts = self.record(record).start_ts;
                tracing::error!(%start_ts, %error, "transaction does not happen");
                let dropped = self.cluster.step(|playback, transactions| {
                    transactions.end(start_ts, End::RolledBack);
                    playback.refuse(record)
                });
                self.progress.send_modify(|progress| {
                    progress.done += 1 + dropped.unwrap_or(0);
                    progress.refused += 1;
                });
            }
            Landing::Prewrite { result: Err(error @ PrewriteError::Critical { .. }), .. } => {
                return Err(error.into());
            }
            Landing::Follower { record, delivery, aborted } => {
                self.cluster.step(|playback, _| playback.finish(record));
                let Record { start_ts, kind, .. } = *self.record(record);
                if aborted {
                    tracing::error!(%start_ts, "transaction was rolled back in TiKV by its asker and does not happen");
                }
                if delivery == Delivery::Lost {
                    tracing::error!(%start_ts, ?kind, "record was given up");
                    self.progress.send_modify(|progress| {
                        progress.done += 1;
                        progress.lost += 1;
                    });
                    return Ok(());
                }
                self.count(record, |progress| match (kind, aborted) {
                    (Kind::Commit, false) => progress.commits += 1,
                    (Kind::Commit, true) => progress.aborted += 1,
                    _ => progress.rollbacks += 1,
                });
            }
        }
        Ok(())
    }

    fn count(&self, record: usize, count: impl FnOnce(&mut Progress)) {
        let bytes = self.record(record).payload.len() as u64;
        let retries = self.client.retries();
        self.progress.send_modify(|progress| {
            progress.done += 1;
            progress.bytes += bytes;
            progress.retries = retries;
            count(progress);
        });
    }
}

impl Landing {
    fn record(&self) -> usize {
        match self {
            Self::Prewrite { record, .. } | Self::Follower { record, .. } => *record,
        }
    }
}

/// The rollback that TiDB sends in place of a commit that fails.
fn rolled_back(commit: &Record) -> Bytes {
    match Header::decode(commit.payload.clone()) {
        Ok(header) => Header { commit_ts: CommitTs::default(), ..header }.rolled_back().encode(),
        // It was decoded when the script was made.
        Err(_) => commit.payload.clone(),
    }
}

/// The playback's own time.
#[derive(Debug)]
struct Pace {
    speed: Speed,
    since: Instant,
    from: Duration,
}

impl Pace {
    fn new(speed: Speed, now: Instant) -> Self {
        Self { speed, since: now, from: Duration::ZERO }
    }

    fn position(&self, factor: f64, now: Instant) -> Duration {
        self.from + now.duration_since(self.since).mul_f64(factor)
    }

    /// Lets the playback's time wait if a record that should have left at `at` still has not.
    fn wait_for(&mut self, at: Duration, now: Instant) {
        if let Speed::Factor(factor) = self.speed
            && self.position(factor, now) > at + SLACK.mul_f64(factor)
        {
            self.from = at + SLACK.mul_f64(factor);
            self.since = now;
        }
    }

    /// When a record recorded at `at` is due; `None` if it is.
    fn not_before(&self, at: Duration, now: Instant) -> Option<Instant> {
        let Speed::Factor(factor) = self.speed else { return None };
        let wait = at.checked_sub(self.position(factor, now)).filter(|wait| !wait.is_zero())?;
        Some(now + wait.div_f64(factor))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds() {
        assert_eq!("recorded".parse(), Ok(Speed::Factor(1.0)));
        assert_eq!("max".parse(), Ok(Speed::Max));
        assert_eq!("2.5".parse(), Ok(Speed::Factor(2.5)));
        assert_eq!("10x".parse(), Ok(Speed::Factor(10.0)));
        for wrong in ["0", "-1", "NaN", "inf", "fast", ""] {
            assert!(wrong.parse::<Speed>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_pace_waits_for_the_pumps() {
        let seconds = Duration::from_secs;
        let begin = Instant::now();
        let mut pace = Pace::new(Speed::Factor(2.0), begin);
        assert_eq!(pace.not_before(seconds(10), begin), Some(begin + seconds(5)));
        let now = begin + seconds(5);
        assert_eq!(pace.not_before(seconds(10), now), None);
        // A record of second 4 has not left yet: at most one second of ours (two recorded) is made up for.
        pace.wait_for(seconds(4), now);
        assert_eq!(pace.not_before(seconds(6), now), None);
        assert_eq!(pace.not_before(seconds(10), now), Some(now + seconds(2)));
        assert_eq!(Pace::new(Speed::Max, begin).not_before(seconds(10), begin), None);
    }
}
