//! The process: registration, the race for leadership, epoch after epoch, and the way out.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use node::admin::{Admin, Health};
use node::data_dir::DataDir;
use node::kafka::Troubles;
use node::pd::Pd;
use node::registry::{Leadership, NodeKind, NodeRecord, NodeState, Registry, Side, UpdateClock};
use node::serve::{ALPN, Listener, ServeLimits, serve};
use node::shutdown::{Shutdown, Tasks};
use node::telemetry::Telemetry;
use tidb::ts::{CommitTs, Tso};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::backoff::Backoff;
use crate::config::Config;
use crate::kafka::LogError;
use crate::lead::{Leader, is_retryable};
use crate::service::{self, Leave};
use crate::status::Status;

/// How often the registry entry is rewritten and PD is asked for the time.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long a failed campaign waits.
const CAMPAIGN_AGAIN: Duration = Duration::from_secs(10);
/// How long everything gets to end.
const DRAIN: Duration = Duration::from_secs(30);

/// Why an entry was not written.
const NOT_LEADING: &str = "the leader's key is not this process's any more";

/// Label of a drainer's registry entry: which log it writes. A new leader retires entries of dead predecessors by it.
const LOG_LABEL: &str = "sluice-log";

/// Runs a drainer until `shutdown`.
///
/// # Errors
/// Something that trying again cannot mend; the message says what to do.
pub async fn run(config: Config, telemetry: Telemetry, shutdown: Shutdown) -> anyhow::Result<()> {
    crate::metrics::describe();
    let data_dir = Arc::new(DataDir::open(&config.data_dir)?);
    let listen = config.addresses().listen();
    let listener =
        Listener::tcp(&listen).await.with_context(|| format!("addr: cannot listen on {listen}"))?;
    let listening = listener.local_addr().context("addr")?;
    let address = config.addresses().registered(listening);
    let flag = (!config.node_id.is_empty()).then_some(config.node_id.as_str());
    let node_id = data_dir.node_id(flag, listening.port())?;
    let status = Status::default();
    let health = Health::new();
    health.set("feed", Err("starting".to_owned()));
    let shown = status.clone();
    let admin =
        Admin::new(telemetry, health.clone()).status(move || shown.to_json()).bind(&config.admin).await?;
    let server_tls = config.security.server_config(&ALPN)?;

    let mut tasks = Tasks::new(&shutdown);
    let stop = tasks.shutdown();
    tasks.spawn("admin", admin.run(stop.clone()));
    let (leave, mut leaving) = watch::channel(None);
    let (leading, refreshes) = watch::channel(None);
    let guarded = config.admin.token.is_some();
    let router = service::router(node_id.clone(), status.clone(), refreshes, leave.clone(), guarded);
    tasks.spawn("service", serve(vec![listener], router, server_tls, ServeLimits::default(), stop.clone()));
    info!(node_id, %address, "listening");

    let feed = async move {
        let Some(pd) = connect(&config, &stop).await? else { return Ok(()) };
        let cluster_id = pd.cluster_id();
        data_dir.claim_cluster(cluster_id)?;
        let registry = Registry::new(pd.etcd()).at(&config.pd_urls());
        let topic = config.topic(cluster_id);
        let mut side = Side::new(&node_id, &address);
        side.facts = serde_json::json!({ "log": topic });
        let Some(presence) = stop.unless(registry.announce(NodeKind::Drainer, side)).await else {
            return Ok(());
        };
        let presence = presence?;
        let entry = Registration {
            registry: registry.clone(),
            pd: pd.clone(),
            node_id: node_id.clone(),
            address,
            topic,
        };
        let leader = Leader {
            config,
            pd: pd.clone(),
            registry,
            node_id,
            data_dir,
            status: status.clone(),
            refreshes: leading,
            feed_id: OnceLock::new(),
            troubles: Troubles::default(),
        };
        // The way out is: end the epoch, say so in the registry, then let the lease go.
        let inner = Shutdown::new();
        let mut parts = Tasks::new(&inner);
        parts.spawn("presence", presence.run(inner.clone()));
        parts.spawn("clock", clock(pd, status.clone(), inner.clone()));
        let lead_stop = stop.child();
        let asked = lead_stop.clone();
        let leading = async move {
            let result = lead(&leader, &entry, &health, &lead_stop).await;
            let state = match *leave.borrow() {
                Some(Leave::Offline) => NodeState::Offline,
                Some(Leave::Paused) | None => NodeState::Paused,
            };
            entry.leave(state, status.released()).await;
            result
        };
        parts.spawn("lead", leading);
        let joined = parts.join(DRAIN);
        tokio::pin!(joined);
        loop {
            tokio::select! {
                ended = &mut joined => return ended,
                Ok(()) = leaving.changed() => asked.cancel(),
            }
        }
    };
    tasks.spawn("feed", feed);
    tasks.join(DRAIN).await
}

async fn connect(config: &Config, stop: &Shutdown) -> anyhow::Result<Option<Pd>> {
    match stop.unless(Pd::connect_until(&config.pd_urls(), &config.security, stop)).await {
        None => Ok(None),
        Some(Err(_)) if stop.is_cancelled() => Ok(None),
        Some(connected) => Ok(Some(connected.context("pd-urls")?)),
    }
}

/// PD's present, for lag.
async fn clock(pd: Pd, status: Status, stop: Shutdown) -> anyhow::Result<()> {
    let mut tick = tokio::time::interval(HEARTBEAT);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while stop.unless(tick.tick()).await.is_some() {
        if let Some(Ok(now)) = stop.unless(pd.tso()).await {
            status.now(now);
        }
    }
    Ok(())
}

/// Campaigns, leads, and campaigns again if leadership was lost.
async fn lead(leader: &Leader, entry: &Registration, health: &Health, stop: &Shutdown) -> anyhow::Result<()> {
    let name = format!("drainer.{}", entry.topic);
    loop {
        leader.status.role("standby");
        health.set("feed", Ok(()));
        let campaign = leader.registry.campaign(&name, &entry.node_id, leader.config.lease.get());
        let leadership = match stop.unless(campaign).await {
            None => return Ok(()),
            Some(Ok(leadership)) => leadership,
            Some(Err(error)) if error.is_retryable() => {
                warn!(%error, "cannot campaign for leadership, trying again");
                if stop.unless(tokio::time::sleep(CAMPAIGN_AGAIN)).await.is_none() {
                    return Ok(());
                }
                continue;
            }
            Some(Err(error)) => return Err(error.into()),
        };
        let led = epochs(leader, entry, health, &leadership, stop).await;
        let lost = !leadership.is_held();
        if lost {
            warn!("lost leadership");
        } else if let Err(error) = leadership.resign().await {
            warn!(%error, "cannot resign; leadership ends with its lease");
        }
        match led {
            Err(error) if !lost => return Err(error),
            _ if stop.is_cancelled() => return Ok(()),
            Err(error) => warn!(error = %format!("{error:#}"), "the epoch ended with leadership"),
            Ok(()) => {}
        }
    }
}

/// Epoch after epoch while this process leads.
async fn epochs(
    leader: &Leader,
    entry: &Registration,
    health: &Health,
    leadership: &Leadership,
    stop: &Shutdown,
) -> anyhow::Result<()> {
    let mut backoff = Backoff::default();
    // Before the first list of the pumps is read: whoever registers later finds this drainer, whoever registered earlier
    // is found.
    let registered = tokio::select! {
        registered = entry.register(leader, leadership) => registered?,
        () = stop.cancelled() => return Ok(()),
        () = leadership.lost() => return Ok(()),
    };
    loop {
        leader.status.role("starting");
        let running = stop.child();
        let began = Instant::now();
        let epoch = leader.epoch(&running);
        let ended = tokio::select! {
            ended = epoch => ended,
            () = leadership.lost() => return Ok(()),
            never = entry.heartbeats(leader, leadership, health, &registered) => never,
        };
        let Err(error) = ended else { return Ok(()) };
        if stop.is_cancelled() {
            return Ok(());
        }
        let led = if leader.status.is_leading() { began.elapsed() } else { Duration::ZERO };
        let message = format!("{error:#}");
        leader.status.failed(message.clone());
        health.set("feed", Err(message.clone()));
        let fenced = error.chain().any(|cause| matches!(cause.downcast_ref(), Some(LogError::Fenced { .. })));
        if fenced && !leadership.is_held() {
            return Ok(());
        }
        if !is_retryable(&error) {
            error!(error = message, "the feed stops");
            return Err(error);
        }
        let pause = backoff.after(led);
        warn!(error = message, retry_in = ?pause, "the epoch ended, beginning anew");
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = stop.cancelled() => return Ok(()),
            () = leadership.lost() => return Ok(()),
        }
    }
}

/// This drainer's entry in the registry. Only a leader has a main entry: pumps wait for every drainer in that list.
struct Registration {
    registry: Registry,
    pd: Pd,
    node_id: String,
    address: String,
    topic: String,
}

impl Registration {
    fn record(&self, state: NodeState, position: Tso, now: Tso) -> NodeRecord {
        let mut record = NodeRecord::new(&self.node_id, &self.address, state);
        let labels = std::iter::once((LOG_LABEL.to_owned(), self.topic.clone())).collect();
        record.label = Some(node::registry::Label { labels: Some(labels) });
        record.max_commit_ts = CommitTs(position);
        record.update_ts = now;
        record
    }

    /// Writes the entry for the first time; keeps trying while PD or etcd is away, or leadership is as good as lost.
    async fn register(&self, leader: &Leader, leadership: &Leadership) -> anyhow::Result<UpdateClock> {
        loop {
            let error = match self.pd.tso().await {
                Ok(now) => {
                    let clock = UpdateClock::new(now);
                    let record = self.record(NodeState::Online, leader.status.released(), clock.now());
                    match self.registry.put_leading(leadership, NodeKind::Drainer, &record).await {
                        Ok(true) => return Ok(clock),
                        Ok(false) => NOT_LEADING.to_owned(),
                        Err(error) if error.is_retryable() => error.to_string(),
                        Err(error) => return Err(error.into()),
                    }
                }
                Err(error) => error.to_string(),
            };
            warn!(error, "cannot register, trying again");
            tokio::time::sleep(HEARTBEAT).await;
        }
    }

    /// Rewrites the entry for as long as it is polled. A process that froze may wake here after another one took over and
    /// retired its entry: an entry that came to life again would let pumps wait for its old position, and nobody would
    /// retire it a second time. So it is written only under the leader's key.
    async fn heartbeats(
        &self,
        leader: &Leader,
        leadership: &Leadership,
        health: &Health,
        clock: &UpdateClock,
    ) -> anyhow::Result<()> {
        let mut retired = false;
        let mut tick = tokio::time::interval(HEARTBEAT);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            let record = self.record(NodeState::Online, leader.status.released(), clock.now());
            match self.registry.put_leading(leadership, NodeKind::Drainer, &record).await {
                Ok(true) => {}
                // Leadership notices by itself, in a moment.
                Ok(false) => {
                    warn!(reason = NOT_LEADING, "the registry entry was not rewritten");
                    continue;
                }
                Err(error) if error.is_retryable() => warn!(%error, "cannot rewrite the registry entry"),
                Err(error) => return Err(error.into()),
            }
            if leader.status.is_leading() {
                health.set("feed", Ok(()));
                if !retired {
                    retired = self.retire_predecessors(clock.now()).await;
                }
            }
        }
    }

    /// A predecessor that died left an entry that pumps would wait for; its work is ours now.
    async fn retire_predecessors(&self, now: Tso) -> bool {
        let entries = match self.registry.list(NodeKind::Drainer).await {
            Ok(entries) => entries,
            Err(error) => {
                warn!(%error, "cannot list the drainers");
                return false;
            }
        };
        let same_log = |record: &NodeRecord| {
            let label = record.label.as_ref().and_then(|label| label.labels.as_ref()?.get(LOG_LABEL));
            label.is_some_and(|log| *log == self.topic)
        };
        let mut all = true;
        for entry in entries {
            let Some(record) = &entry.record else { continue };
            if entry.id() == self.node_id || record.state == NodeState::Offline || !same_log(record) {
                continue;
            }
            if entry.side.is_none() && entry.is_alive(now) {
                // Its last heartbeat is too recent to tell.
                all = false;
                continue;
            }
            match self.registry.set_state(NodeKind::Drainer, entry.id(), NodeState::Offline).await {
                Ok(_) => info!(drainer = entry.id(), "took over from a former leader"),
                Err(error) => {
                    warn!(%error, drainer = entry.id(), "cannot retire a former leader's entry");
                    all = false;
                }
            }
        }
        all
    }

    /// Says in the registry that this process leaves; nothing if it never led, or a successor took over.
    async fn leave(&self, state: NodeState, position: Tso) {
        let entry = match self.registry.get(NodeKind::Drainer, &self.node_id).await {
            Ok(entry) => entry,
            Err(error) => {
                warn!(%error, "cannot read the registry entry");
                return;
            }
        };
        let Some(mut record) = entry.and_then(|entry| entry.record) else { return };
        if record.state == NodeState::Offline {
            return;
        }
        record.state = state;
        record.max_commit_ts = record.max_commit_ts.max(CommitTs(position));
        match self.registry.update(NodeKind::Drainer, &record).await {
            Ok(()) => info!(state = %state, position = %record.max_commit_ts, "left the registry"),
            Err(error) => warn!(%error, "cannot write the state into the registry"),
        }
    }
}
