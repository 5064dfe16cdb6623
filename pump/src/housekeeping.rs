//! What is done now and then: retention, checkpoints of the store, the service safe point, metrics.
//!
//! *Retention*: transactions older than `gc` by PD's time go, but never those that a registered drainer (any state but
//! offline) has not reported as done.
//!
//! *Service safe point*: TiKV must remember the outcome of every open prewrite. Outcomes lie above the prewrite's floor, and
//! no floor lies below the watermark, so the safe point is held at the watermark, for a day beyond this pump's last word.
//! If PD's is past it already, answers other than "committed" about prewrites below it are no longer believed.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use node::pd::Pd;
use node::registry::{NodeKind, NodeState, Registry};
use node::shutdown::Shutdown;
use tidb::ts::Tso;
use tokio::sync::{Notify, Semaphore};
use tokio::time::Instant;
use tracing::{info, warn};

use crate::metrics;
use crate::progress::Progress;
use crate::resolver::Forgotten;
use crate::store::{Collector, Reader};
use crate::writer::{Write, WriteHandle};

/// Between two looks at what is due.
const LOOK: Duration = Duration::from_secs(2);

/// Between two runs of retention, and of the safe point.
const RETENTION: Duration = Duration::from_secs(600);
const SAFE_POINT: Duration = Duration::from_secs(60);

/// How long TiKV remembers after this pump's last word.
const REMEMBER: Duration = Duration::from_secs(26 * 3600);

/// Synced writes after which the store's log is moved into table files: bounds what a restart reads back.
const CHECKPOINT: u64 = 50_000;

/// The parts it looks after.
pub struct Housekeeping {
    /// This pump's name.
    pub node_id: String,
    /// For the safe point.
    pub pd: Pd,
    /// For drainers' positions.
    pub registry: Registry,
    /// For the watermark.
    pub progress: Arc<Progress>,
    /// For sizes.
    pub reader: Reader,
    /// Deletes and checkpoints.
    pub collector: Collector,
    /// Makes the collection point durable.
    pub writer: WriteHandle,
    /// Told what TiKV may have forgotten.
    pub forgotten: Arc<Forgotten>,
    /// How long transactions are kept.
    pub keep: Duration,
    /// Asks for a run of retention now.
    pub trigger: Arc<Notify>,
    /// The receive budget and its size, for metrics.
    pub budget: (Arc<Semaphore>, u32),
}

impl Housekeeping {
    /// Runs until the shutdown.
    ///
    /// # Errors
    /// The store failed.
    pub async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        let this = Arc::new(self);
        let mut retention = Instant::now() + RETENTION;
        // First of all: the resolver waits for it.
        let mut safe_point = Instant::now();
        loop {
            if Instant::now() >= safe_point || !this.forgotten.is_known() {
                safe_point = Instant::now() + SAFE_POINT;
                if shutdown.unless(this.hold_safe_point()).await.is_none() {
                    return Ok(());
                }
            }
            let triggered = tokio::select! {
                () = tokio::time::sleep(LOOK) => false,
                () = this.trigger.notified() => true,
                () = shutdown.cancelled() => return Ok(()),
            };
            this.measure();
            let checkpoint = this.clone();
            tokio::task::spawn_blocking(move || checkpoint.checkpoint()).await??;
            if triggered || Instant::now() >= retention {
                retention = Instant::now() + RETENTION;
                this.collect(&shutdown).await?;
            }
        }
    }

    fn measure(&self) {
        let used = self.budget.1 as usize - self.budget.0.available_permits().min(self.budget.1 as usize);
        metrics::progress(&self.progress.snapshot(), used, self.reader.size());
    }

    fn checkpoint(&self) -> anyhow::Result<()> {
        if self.collector.since_checkpoint()? >= CHECKPOINT {
            self.collector.checkpoint().context("the store cannot write its tables")?;
        }
        Ok(())
    }

    async fn hold_safe_point(&self) {
        let wanted = self.progress.watermark();
        let service = format!("sluice-pump-{}", self.node_id);
        match self.pd.update_service_safe_point(&service, REMEMBER, wanted).await {
            Ok(smallest) if smallest > wanted => {
                warn!(%wanted, %smallest, "TiKV may have forgotten transactions that are open here");
                self.forgotten.below(smallest);
            }
            Ok(_) => self.forgotten.below(Tso::ZERO),
            Err(error) => warn!(%error, "cannot hold the service safe point, trying again"),
        }
    }

    async fn collect(self: &Arc<Self>, shutdown: &Shutdown) -> anyhow::Result<()> {
        let newest = self.progress.newest();
        let keep = u64::try_from(self.keep.as_millis()).unwrap_or(u64::MAX);
        let by_age = Tso::from_parts(newest.physical_ms().saturating_sub(keep), 0);
        let drainers = match self.registry.list(NodeKind::Drainer).await {
            Ok(drainers) => drainers,
            Err(error) => {
                warn!(%error, "retention waits: drainers' positions are unknown");
                return Ok(());
            }
        };
        let slowest = drainers
            .iter()
            .filter_map(|drainer| drainer.record.as_ref())
            .filter(|record| record.state != NodeState::Offline)
            .min_by_key(|record| record.max_commit_ts);
        let mut upto = by_age.min(self.progress.watermark());
        if let Some(slowest) = slowest
            && slowest.max_commit_ts.0 < upto
        {
            let behind = upto.seconds_since(slowest.max_commit_ts.0);
            warn!(drainer = slowest.node_id, seconds = behind, "retention is held back by a drainer");
            upto = slowest.max_commit_ts.0;
        }
        if upto > self.reader.collected() {
            self.writer.write(Write::Collect(upto), None).await?;
            metrics::collected(upto);
        }
        let mut records = 0;
        while !shutdown.is_cancelled() {
            let this = self.clone();
            let count = tokio::task::spawn_blocking(move || this.collector.clear()).await??;
            metrics::cleared(count, (count == 0).then_some(upto));
            records += count;
            if count == 0 {
                break;
            }
        }
        if records > 0 {
            info!(records, %upto, "old transactions deleted");
        }
        Ok(())
    }
}
