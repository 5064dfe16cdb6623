//! `WriteBinlog`: the order of checks, and the codes that decide what TiDB does next.
//!
//! TiDB retries elsewhere on any error but RESOURCE_EXHAUSTED with "message larger than max", which fails the one
//! transaction; UNAVAILABLE makes it close the connection that all its sessions share, so it is kept for going down.
//! Overload first holds the call, then answers ABORTED.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message as _;
use schemas::binlog::{Binlog, BinlogType};
use tidb::ts::{CommitTs, StartTs, Tso};
use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tracing::{debug, warn};

use crate::budget::{ReceiveBudget, Receiving, SMALL, Share};
use crate::clock::Clock;
use crate::disk::{Disk, Need};
use crate::metrics;
use crate::resolver::Hints;
use crate::state::{State, StateCell};
use crate::writer::{Refusal, Write, WriteHandle};

/// How long a call is held for room in the receive budget. TiDB waits 15 s in all.
const HOLD: Duration = Duration::from_secs(5);

/// Memory of a call under way, its message aside.
const CALL: u32 = 4 << 10;

const BUDGET_USED_UP: &str = "receive-budget is used up";

/// How many calls may be under way at a time beside this receive budget: as many as take a quarter of it once more.
pub fn calls_within(budget: u32) -> usize {
    (budget / 4 / CALL).max(16) as usize
}

/// A commit_ts further ahead of the newest tick than this is checked against a fresh one. (Below it the check would tell
/// nothing new: ticks come every 100 ms, and timestamps in binlogs never move the watermark.)
const PLAUSIBLE_MS: u64 = 3_000;

/// A start_ts further ahead of a fresh tick than this was not given out by this cluster's PD; nor, while PD is silent, a
/// commit_ts that is so far ahead of what the time since its last tick explains.
const FOREIGN_MS: u64 = 60_000;

/// Waits for room, but not for ever: overload is told as ABORTED.
async fn held<T>(room: impl Future<Output = T>, reason: &str) -> Result<T, Status> {
    tokio::time::timeout(HOLD, room).await.map_err(|_| {
        metrics::refused();
        Status::aborted(format!("pump is overloaded: {reason}, try another pump"))
    })
}

fn going_down(_: AcquireError) -> Status {
    Status::unavailable("the pump is going down")
}

/// Takes binlogs in.
pub struct Intake {
    /// PD's cluster id.
    pub cluster_id: u64,
    /// Largest message, in bytes.
    pub max_message: u64,
    /// Calls not yet answered, as many as [`calls_within`] allows.
    pub calls: Arc<Semaphore>,
    /// Bytes received and not yet durable.
    pub budget: ReceiveBudget,
    /// The pump's state.
    pub state: Arc<StateCell>,
    /// The data volume.
    pub disk: Arc<Disk>,
    /// For timestamps that look wrong.
    pub clock: Arc<Clock>,
    /// Makes it durable.
    pub writer: WriteHandle,
    /// Told of rollbacks.
    pub hints: Arc<Hints>,
    /// Counts calls.
    pub metrics: metrics::Calls,
}

impl Intake {
    /// Whether a message of this declared length may be sent at all.
    pub(super) fn check_size(&self, length: u64) -> Result<(), Status> {
        if length > self.max_message {
            warn!(length, max = self.max_message, "binlog refused: larger than max-message-size");
            metrics::refused();
            let text = format!("grpc: received message larger than max ({length} vs. {})", self.max_message);
            return Err(Status::resource_exhausted(text));
        }
        Ok(())
    }

    /// Room for a call until it is answered, waited for. A budget of its own, so that calls that hold it never wait for
    /// each other's.
    pub(super) async fn admit_call(&self) -> Result<OwnedSemaphorePermit, Status> {
        // Mostly there is room, so no timer is set. Those who wait are served first all the same.
        if let Ok(permit) = Arc::clone(&self.calls).try_acquire_owned() {
            return Ok(permit);
        }
        held(Arc::clone(&self.calls).acquire_owned(), "too many calls at a time").await?.map_err(going_down)
    }

    /// Room for `length` bytes that are all there, or will be at once, waited for.
    pub(super) async fn reserve(&self, length: u64) -> Result<Share, Status> {
        match u32::try_from(length) {
            Ok(length) if length <= SMALL => {
                if let Some(share) = self.budget.try_small(length) {
                    return Ok(share);
                }
                held(self.budget.small(length), BUDGET_USED_UP).await?.map_err(going_down)
            }
            _ => {
                let mut receiving = self.budget.large(length);
                self.make_room(&mut receiving, length).await?;
                Ok(receiving.whole())
            }
        }
    }

    /// Room for the first `upto` bytes of a large message, waited for.
    pub(super) async fn make_room(&self, receiving: &mut Receiving, upto: u64) -> Result<(), Status> {
        held(receiving.room(upto), BUDGET_USED_UP).await
    }

    /// Takes one binlog. Returns once it is durable.
    pub(super) async fn write(
        &self,
        cluster_id: u64,
        payload: Bytes,
        share: Option<Share>,
    ) -> Result<(), Status> {
        let began = Instant::now();
        let size = payload.len();
        let result = self.check_and_write(cluster_id, payload, share).await;
        let took = began.elapsed();
        self.metrics.ended(size, took, result.is_ok());
        if result.is_err() && cluster_id == self.cluster_id {
            metrics::refused();
        }
        result
    }

    async fn check_and_write(
        &self,
        cluster_id: u64,
        payload: Bytes,
        share: Option<Share>,
    ) -> Result<(), Status> {
        if cluster_id != self.cluster_id {
            return Err(Status::unknown(format!(
                "cluster ID are mismatch, {cluster_id} vs {}",
                self.cluster_id
            )));
        }
        let binlog = Binlog::decode(payload.clone()).map_err(|error| {
            warn!(%error, bytes = payload.len(), "binlog refused: it does not decode");
            Status::unknown(format!("binlog payload of {} bytes does not decode: {error}", payload.len()))
        })?;
        let tp = BinlogType::try_from(binlog.tp.unwrap_or(0))
            .map_err(|_| Status::unknown(format!("unknown binlog type {}", binlog.tp.unwrap_or(0))))?;
        let (start_ts, commit_ts) = (binlog.start_ts.unwrap_or(0), binlog.commit_ts.unwrap_or(0));

        let state = self.state.get();
        if tp == BinlogType::Prewrite && state != State::Online {
            return Err(Status::unknown(format!("no online: {}", state.name())));
        }
        let fake = tp == BinlogType::Rollback && start_ts == commit_ts && commit_ts > 0;
        let need = if tp == BinlogType::Prewrite { Need::Prewrite } else { Need::Settlement };
        if !fake && let Some((available, limit)) = self.disk.shortage(need) {
            return Err(Status::aborted(format!(
                "no available space: {available} bytes free, limit {limit}"
            )));
        }
        if (start_ts == 0 && commit_ts == 0) || fake {
            // TiDB's liveness probe; or a fake, which only a pump makes and this one never stores.
            return Ok(());
        }
        if start_ts <= 0 || commit_ts < 0 {
            return Err(Status::unknown(format!("binlog with start_ts {start_ts}, commit_ts {commit_ts}")));
        }
        let start_ts = StartTs(Tso::from_i64(start_ts));
        match tp {
            BinlogType::Prewrite => self.prewrite(start_ts, payload, share).await,
            BinlogType::Commit => {
                self.commit(start_ts, CommitTs(Tso::from_i64(commit_ts)), payload, share).await
            }
            BinlogType::Rollback => self.rollback(start_ts, share).await,
            BinlogType::PreDdl | BinlogType::PostDdl => {
                Err(Status::unknown(format!("binlog type {tp:?} is obsolete and not supported")))
            }
        }
    }

    async fn prewrite(&self, start_ts: StartTs, payload: Bytes, share: Option<Share>) -> Result<(), Status> {
        // Without PD's word it is taken: its floor is at least its start_ts, so wherever it commits, the watermark holds.
        if self.is_ahead(start_ts.0)
            && let Some(now) = self.ask_pd().await
            && start_ts.0.physical_ms() > now.physical_ms() + FOREIGN_MS
        {
            warn!(%start_ts, %now, "prewrite refused: PD has not given out its start_ts");
            return Err(Status::unknown(format!(
                "start_ts {start_ts} is ahead of PD's newest timestamp {now}"
            )));
        }
        self.store(Write::Prewrite { start_ts, payload }, share).await
    }

    async fn commit(
        &self,
        start_ts: StartTs,
        commit_ts: CommitTs,
        payload: Bytes,
        share: Option<Share>,
    ) -> Result<(), Status> {
        if commit_ts.0 <= start_ts.0 {
            return Err(Status::unknown(format!("commit_ts {commit_ts} is not above start_ts {start_ts}")));
        }
        if self.is_ahead(commit_ts.0) {
            // PD that is silent may have given out as much as the time since can explain. Nothing above T is emitted before T
            // has come there; what has to be kept out is a place in the order that PD never gave to anybody.
            let now = self.ask_pd().await;
            let possible = now.is_none() && self.is_explained_by_silence(commit_ts.0);
            let now = now.unwrap_or_else(|| self.clock.newest());
            if !possible && commit_ts.0 > now && self.is_ahead(commit_ts.0) {
                warn!(%start_ts, %commit_ts, %now, "commit refused: PD has not given out its commit_ts");
                return Err(Status::aborted(format!(
                    "commit_ts {commit_ts} is ahead of PD's newest timestamp {now}"
                )));
            }
        }
        self.store(Write::Commit { start_ts, commit_ts, payload }, share).await
    }

    async fn rollback(&self, start_ts: StartTs, share: Option<Share>) -> Result<(), Status> {
        self.store(Write::RollbackSeen { start_ts }, share).await?;
        self.hints.rolled_back(start_ts);
        Ok(())
    }

    fn is_ahead(&self, ts: Tso) -> bool {
        ts.physical_ms() > self.clock.newest().physical_ms() + PLAUSIBLE_MS
    }

    /// PD's newest timestamp, if PD answers.
    async fn ask_pd(&self) -> Option<Tso> {
        tokio::time::timeout(HOLD, self.clock.fresh_if_heard()).await.ok().flatten()
    }

    fn is_explained_by_silence(&self, ts: Tso) -> bool {
        let silence = self.clock.silence().map_or(0, |silence| silence.as_millis() as u64);
        ts.physical_ms() <= self.clock.newest().physical_ms() + silence + FOREIGN_MS
    }

    async fn store(&self, write: Write, share: Option<Share>) -> Result<(), Status> {
        match self.writer.write(write, share).await {
            Ok(outcome) => {
                debug!(?outcome, "binlog taken");
                Ok(())
            }
            Err(
                refusal
                @ (Refusal::PrewriteDiffers { .. } | Refusal::CommitDiffers { .. } | Refusal::Closing),
            ) => Err(Status::unknown(refusal.to_string())),
            // TiDB goes on to another pump, and the calls of other sessions on this connection are not disturbed.
            Err(refusal @ Refusal::NoSpace) => Err(Status::aborted(refusal.to_string())),
            Err(refusal @ Refusal::Stopped) => Err(Status::unavailable(refusal.to_string())),
        }
    }
}
