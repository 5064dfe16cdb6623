//! What is done now and then: retention, the service safe point, metrics.
//!
//! *Retention* (the rule is in `retention`): transactions older than `gc` by PD's time go, and the oldest when the log
//! exceeds `gc-size`, but never those that a registered drainer (any state but offline) has not reported as done, unless
//! `gc-past-drainers` says so. An operator who gives a drainer up sets its entry to offline. While drainers' positions are
//! unknown nothing goes.
//!
//! *Service safe point*: TiKV must remember the outcome of every open prewrite. Outcomes lie above the prewrite's floor, and
//! no floor lies below the watermark, so the safe point is held at the watermark, for a day beyond this pump's last word.
//! If PD's is past it already, answers other than "committed" about prewrites below it are no longer believed. A pump that
//! has left for good lets go of it.
//!
//! *Gaps*: a declared gap keeps the pump from being ready until it is collected or the operator has accepted it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use node::admin::Health;
use node::pd::Pd;
use node::registry::{NodeKind, NodeState, Registry};
use node::shutdown::Shutdown;
use tidb::ts::Tso;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::budget::ReceiveBudget;
use crate::metrics;
use crate::progress::Progress;
use crate::resolver::Forgotten;
use crate::retention::{Drainer, Policy};
use crate::state::{State, StateCell};
use crate::store::Reader;
use crate::writer::{Write, WriteHandle};

/// Between two looks at what is due.
const LOOK: Duration = Duration::from_secs(2);

/// Between two runs of retention by age, and of the safe point.
const RETENTION: Duration = Duration::from_secs(600);
const SAFE_POINT: Duration = Duration::from_secs(60);

/// Between two looks at drainers' positions and the log's size.
const DRAINERS: Duration = Duration::from_secs(10);

/// How long TiKV remembers after this pump's last word.
const REMEMBER: Duration = Duration::from_secs(26 * 3600);

/// How long a pump that leaves waits for PD to take its safe point away; it would run out by itself.
const LET_GO: Duration = Duration::from_secs(5);

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
    /// Makes the collection point durable.
    pub writer: WriteHandle,
    /// Told what TiKV may have forgotten.
    pub forgotten: Arc<Forgotten>,
    /// Whether the pump has left.
    pub state: Arc<StateCell>,
    /// Where gaps are named, and that the safe point is not held.
    pub health: Health,
    /// Gaps that end at or below it are known to the operator.
    pub accept_gaps_upto: Tso,
    /// What is kept.
    pub policy: Policy,
    /// Asks for a run of retention now.
    pub trigger: Arc<Notify>,
    /// For metrics.
    pub budget: ReceiveBudget,
}

impl Housekeeping {
    /// Runs until the shutdown.
    ///
    /// # Errors
    /// The store failed.
    pub async fn run(self, shutdown: Shutdown) -> anyhow::Result<()> {
        self.keep_house(&shutdown).await?;
        if self.state.get() == State::Offline {
            self.let_go().await;
        }
        Ok(())
    }

    async fn keep_house(&self, shutdown: &Shutdown) -> anyhow::Result<()> {
        let mut known = BTreeSet::new();
        let mut retention = Instant::now() + RETENTION;
        let mut drainers = Instant::now();
        // First of all: the resolver waits for it.
        let mut safe_point = Instant::now();
        loop {
            if Instant::now() >= safe_point || !self.forgotten.is_known() {
                safe_point = Instant::now() + SAFE_POINT;
                if shutdown.unless(self.hold_safe_point()).await.is_none() {
                    return Ok(());
                }
            }
            let triggered = tokio::select! {
                () = tokio::time::sleep(LOOK) => false,
                () = self.trigger.notified() => true,
                () = shutdown.cancelled() => return Ok(()),
            };
            self.measure();
            let all = triggered || Instant::now() >= retention;
            if all {
                retention = Instant::now() + RETENTION;
            }
            if all || Instant::now() >= drainers {
                drainers = Instant::now() + DRAINERS;
                self.collect(all, &mut known).await?;
            }
        }
    }

    fn measure(&self) {
        metrics::progress(&self.progress.snapshot(), self.budget.used(), self.reader.size());
        metrics::waiting(self.reader.waiting(), self.reader.spilled());
        let gaps = self.reader.gaps_within(self.accept_gaps_upto, Tso::MAX);
        metrics::open_gaps(gaps.len());
        let state = gaps.first().map_or(Ok(()), |gap| {
            Err(format!(
                "{} acknowledged transactions cannot be delivered, the first is start_ts {} ({}); /status has all; \
                 accept-gaps-upto = {} accepts it",
                gaps.len(),
                gap.start_ts,
                gap.cause,
                gap.upto
            ))
        });
        self.health.set("gaps", state);
    }

    fn service(&self) -> String {
        format!("sluice-pump-{}", self.node_id)
    }

    /// Nothing is open here any more, and nobody will look after the safe point: it would keep TiKV from collecting for a day.
    async fn let_go(&self) {
        let removed = tokio::time::timeout(LET_GO, self.pd.remove_service_safe_point(&self.service())).await;
        match removed {
            Ok(Ok(())) => info!("service safe point removed"),
            Ok(Err(error)) => warn!(%error, "the service safe point stays until it runs out"),
            Err(_) => warn!("the service safe point stays until it runs out: PD does not answer"),
        }
    }

    async fn hold_safe_point(&self) {
        let wanted = self.progress.watermark();
        let held = self.pd.update_service_safe_point(&self.service(), REMEMBER, wanted).await;
        let state =
            held.as_ref().map(|_| ()).map_err(|error| format!("not held, so TiKV is not asked: {error}"));
        self.health.set("safe point", state);
        match held {
            Ok(smallest) if smallest > wanted => {
                warn!(%wanted, %smallest, "TiKV may have forgotten transactions that are open here");
                self.forgotten.below(smallest);
            }
            Ok(_) => self.forgotten.below(Tso::ZERO),
            Err(error) => {
                metrics::safe_point_failed();
                warn!(%error, "cannot hold the service safe point, trying again");
            }
        }
    }

    /// Gives up what retention allows, if it frees space or `all` is wanted. `known` are the drainers that were there last
    /// time.
    async fn collect(&self, all: bool, known: &mut BTreeSet<String>) -> anyhow::Result<()> {
        let listed = match self.registry.list(NodeKind::Drainer).await {
            Ok(listed) => listed,
            Err(error) => {
                warn!(%error, "retention waits: drainers' positions are unknown");
                return Ok(());
            }
        };
        // Without a main entry: a standby, which needs nothing yet.
        let drainers: Vec<_> = listed
            .into_iter()
            .filter_map(|entry| entry.record)
            .filter(|record| record.state != NodeState::Offline)
            .map(|record| Drainer { node_id: record.node_id, position: record.max_commit_ts })
            .collect();
        let by_size = self.policy.size.and_then(|size| self.reader.through_for_size(size));
        let (newest, watermark) = (self.progress.newest(), self.progress.watermark());
        let plan = self.policy.plan(newest, watermark, by_size, &drainers);
        let present: BTreeSet<_> = drainers.iter().map(|drainer| drainer.node_id.clone()).collect();
        for departed in known.difference(&present) {
            metrics::no_headroom(departed);
        }
        *known = present;
        for drainer in &drainers {
            metrics::headroom(&drainer.node_id, drainer.headroom(plan.cutoff));
        }
        if let Some(drainer) = plan.held_by.filter(|_| all) {
            let seconds = -drainer.headroom(plan.cutoff);
            warn!(drainer = drainer.node_id, seconds, "retention is held back by a drainer");
        }
        if plan.upto > self.reader.collected() && (all || by_size.is_some()) {
            let before = self.reader.size();
            self.writer.write(Write::Collect(plan.upto), None).await?;
            let bytes = before.saturating_sub(self.reader.size());
            metrics::collected(plan.upto, self.reader.given_up());
            info!(upto = %plan.upto, bytes, "old transactions given up");
        }
        Ok(())
    }
}
