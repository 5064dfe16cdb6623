//! Being a member: registered for TiDB and drainers, joining without losing the first binlog, leaving in good order.
//!
//! ```text
//! join:   entry `paused` + lease  ─▶  list drainers  ─▶  Notify each live one  ─▶  take prewrites, entry `online`
//! pause:  entry `pausing`  ─▶  refuse prewrites, wait a little for commits under way  ─▶  entry `paused`, end
//! close:  entry `closing`  ─▶  refuse prewrites, wait until all is settled and every drainer has it  ─▶  `offline`, end
//! ```
//!
//! *Joining*: a drainer that answered a Notify has this pump in its list, so its merge cannot pass the first commit taken
//! here. The pump registers first and lists second; a drainer starting meanwhile registers first and lists second too, so
//! one of them sees the other. A drainer that is listed but dead (no lease, entry not rewritten) is not waited for. A pump
//! that was a member before (any state but offline) is still in every drainer's list and goes online at once; one that went
//! down while it was joining is not, and joins anew. Prewrites are taken before the entry says so: TiDB sends them as soon
//! as it reads `online`.
//!
//! *A member's store is never empty*: a watermark is made durable before the entry first says `online`. So an empty store
//! under a member's name is another directory than the one that has the acknowledged binlogs (lost, not mounted, mistyped),
//! and the pump does not start: it would tell drainers that there is nothing where there was something.
//!
//! *Closing*: the writer is told, and takes no prewrite from then on, whatever state its caller saw; so what is open then is
//! all that will ever be. It is settled first, by TiDB or by TiKV's word (the resolver fences off what never began), then every
//! drainer that is not offline has to report a position at or above the last commit. `/status` and `/readyz` say what is
//! waited for. There is no time limit: only an operator can declare a drainer gone (`binlogctl update-drainer`).
//!
//! *Publishing before refusing*: TiDB learns from the registry that it should use another pump before this one says no.
//!
//! One task does all of this in order, heartbeats included, so entries never go back.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use node::admin::Health;
use node::dial;
use node::registry::{NodeKind, NodeRecord, NodeState, Registry, UpdateClock};
use node::shutdown::Shutdown;
use node::tls::Security;
use schemas::binlog::NotifyReq;
use schemas::binlog::cistern_client::CisternClient;
use tidb::ts::CommitTs;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::clock::Clock;
use crate::progress::Progress;
use crate::state::{State, StateCell};
use crate::store::Reader;
use crate::writer::{Refusal, Write, WriteHandle};

/// Pause before drainers that did not answer are notified again.
const NOTIFY_AGAIN: Duration = Duration::from_millis(500);
/// Pause before a start asks a registry again that did not answer.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// One Notify; the drainer reads the list from etcd before it answers.
const NOTIFY: Duration = Duration::from_secs(3);

/// How long a pausing pump waits for the commits of prewrites that it has.
const PAUSE_PATIENCE: Duration = Duration::from_secs(3);

/// How often a leaving pump looks whether it may go.
const LOOK: Duration = Duration::from_millis(100);

/// How often a closing pump says what it waits for.
const SAY: Duration = Duration::from_secs(10);

/// What an operator asks of a pump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Stop, to come back.
    Pause,
    /// Leave for good.
    Close,
}

/// This pump in the registry.
pub struct Membership {
    /// The registry.
    pub registry: Registry,
    /// This pump's name.
    pub node_id: String,
    /// Where others dial it.
    pub host: String,
    /// The pump's state.
    pub state: Arc<StateCell>,
    /// For the time by PD.
    pub clock: Arc<Clock>,
    /// For the watermark and what is open.
    pub progress: Arc<Progress>,
    /// For the last commit.
    pub reader: Reader,
    /// Shuts the door behind the last prewrite.
    pub writer: WriteHandle,
    /// For dialling drainers.
    pub security: Security,
    /// Between heartbeats.
    pub heartbeat: Duration,
    /// The registry's idea of the present.
    pub update_clock: UpdateClock,
    /// Where to tell about trouble with the registry.
    pub health: Health,
}

impl Membership {
    /// Joins, stays, and leaves when `asked` (shutdown by signal counts as pause). Returns when the pump may end.
    ///
    /// # Errors
    /// The registry refuses for good.
    pub async fn run(
        self,
        mut actions: mpsc::Receiver<Action>,
        asked: Shutdown,
        going_down: Shutdown,
    ) -> anyhow::Result<()> {
        let joined = tokio::select! {
            joined = self.join() => Some(joined?),
            () = asked.cancelled() => None,
            () = going_down.cancelled() => return Ok(()),
        };
        if joined.is_none() {
            // Never was online: nothing to hand over.
            return Ok(());
        }
        let action = tokio::select! {
            action = self.stay(&mut actions) => action,
            () = asked.cancelled() => Action::Pause,
            // Something broke: as after a crash, the entry stays as it is.
            () = going_down.cancelled() => return Ok(()),
        };
        let leave = async {
            match action {
                Action::Pause => self.pause().await,
                Action::Close => self.close(&asked).await,
            }
        };
        going_down.unless(leave).await;
        Ok(())
    }

    async fn join(&self) -> anyhow::Result<()> {
        let known = loop {
            match self.registry.get(NodeKind::Pump, &self.node_id).await {
                Ok(entry) => break entry.and_then(|entry| entry.record),
                Err(error) if error.is_retryable() => self.trouble(&error).await,
                Err(error) => return Err(error.into()),
            }
        };
        let member = known.as_ref().is_some_and(was_member);
        if !member {
            self.publish(State::Joining).await;
            info!(node_id = self.node_id, "registered, telling the drainers");
            self.notify_drainers().await?;
            self.leave_a_trace().await?;
        }
        self.state.set(State::Online);
        self.publish(State::Online).await;
        self.health.set("join", Ok(()));
        info!(
            node_id = self.node_id,
            host = self.host,
            was = known.map(|record| tracing::field::display(record.state)),
            "online"
        );
        Ok(())
    }

    /// Makes the store one of a member.
    async fn leave_a_trace(&self) -> Result<(), Refusal> {
        loop {
            match self.writer.write(Write::SaveWatermark, None).await {
                Err(refusal @ Refusal::NoSpace) => {
                    warn!(%refusal, "cannot go online, trying again");
                    self.state.waits_for(Some(refusal.to_string()));
                    self.health.set("join", Err(refusal.to_string()));
                    tokio::time::sleep(NOTIFY_AGAIN).await;
                }
                written => return written.map(|_| ()),
            }
        }
    }

    /// Returns once every live drainer lists this pump.
    async fn notify_drainers(&self) -> anyhow::Result<()> {
        let mut told = HashSet::new();
        loop {
            let drainers = match self.registry.list(NodeKind::Drainer).await {
                Ok(drainers) => drainers,
                Err(error) if error.is_retryable() => {
                    self.trouble(&error).await;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let now = self.clock.newest();
            let mut waiting = Vec::new();
            for drainer in drainers {
                let listed = drainer.state() == Some(NodeState::Online);
                if !listed || told.contains(drainer.id()) {
                    continue;
                }
                if !drainer.is_alive(now) {
                    warn!(
                        drainer = drainer.id(),
                        "a drainer is registered as online but dead, not waited for"
                    );
                    continue;
                }
                match self.notify(drainer.host()).await {
                    Ok(()) => {
                        info!(drainer = drainer.id(), "drainer lists this pump");
                        told.insert(drainer.id().to_owned());
                    }
                    Err(reason) => waiting.push(format!("{}: {reason}", drainer.id())),
                }
            }
            if waiting.is_empty() {
                return Ok(());
            }
            let reason = waiting.join("; ");
            warn!(reason, "waiting for drainers to list this pump");
            self.state.waits_for(Some(format!("drainers to list this pump: {reason}")));
            self.health.set("join", Err(format!("waiting for drainers: {reason}")));
            tokio::time::sleep(NOTIFY_AGAIN).await;
        }
    }

    async fn notify(&self, host: &str) -> Result<(), String> {
        let channel = dial::channel(&[host], &self.security).map_err(|error| error.to_string())?;
        let mut client = CisternClient::new(channel);
        match tokio::time::timeout(NOTIFY, client.notify(NotifyReq {})).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(status)) => Err(format!("{}: {}", status.code(), status.message())),
            Err(_) => Err(format!("no answer within {NOTIFY:?}")),
        }
    }

    /// Heartbeats until an action is asked for.
    async fn stay(&self, actions: &mut mpsc::Receiver<Action>) -> Action {
        loop {
            tokio::select! {
                action = actions.recv() => return action.unwrap_or(Action::Pause),
                () = tokio::time::sleep(self.heartbeat) => self.heartbeat().await,
            }
        }
    }

    async fn heartbeat(&self) {
        let record = self.record(self.state.get().registered(), CommitTs(self.progress.watermark()));
        match self.registry.put(NodeKind::Pump, &record).await {
            Ok(()) => self.health.set("registry", Ok(())),
            Err(error) => {
                warn!(%error, "heartbeat failed");
                self.health.set("registry", Err(error.to_string()));
            }
        }
    }

    async fn pause(&self) {
        info!("pausing");
        self.publish_once(State::Pausing).await;
        self.state.set(State::Pausing);
        let deadline = Instant::now() + PAUSE_PATIENCE;
        while self.progress.snapshot().pending > 0 && Instant::now() < deadline {
            tokio::time::sleep(LOOK).await;
        }
        let pending = self.progress.snapshot().pending;
        if pending > 0 {
            info!(
                pending,
                "some transactions are still open; TiKV will be asked about them at the next start"
            );
        }
        self.state.set(State::Paused);
        self.publish_once(State::Paused).await;
        info!("paused");
    }

    /// Returns once offline, or early if told to end: then the entry stays `closing`, and the next start goes online.
    async fn close(&self, asked: &Shutdown) {
        info!("closing");
        self.publish_once(State::Closing).await;
        self.state.set(State::Closing);
        let leave = async {
            // If the writer has ended, so will this.
            while let Err(refusal) = self.writer.write(Write::Close, None).await {
                warn!(%refusal, "cannot close yet");
                self.state.waits_for(Some(refusal.to_string()));
                tokio::time::sleep(NOTIFY_AGAIN).await;
            }
            let mut said = Instant::now() - SAY;
            let mut beat = Instant::now();
            loop {
                let Some(reason) = self.unfinished().await else { break };
                if said.elapsed() >= SAY {
                    info!(reason, "closing waits");
                    said = Instant::now();
                }
                self.health.set("close", Err(format!("waits for {reason}")));
                self.state.waits_for(Some(reason));
                if beat.elapsed() >= self.heartbeat {
                    self.heartbeat().await;
                    beat = Instant::now();
                }
                tokio::time::sleep(LOOK).await;
            }
        };
        if asked.unless(leave).await.is_none() {
            warn!("asked to end before everything was drained; the pump stays a member");
            return;
        }
        self.state.set(State::Offline);
        self.publish(State::Offline).await;
        info!("offline");
    }

    /// What is stored and not final.
    fn unsettled(&self) -> Option<String> {
        let snapshot = self.progress.snapshot();
        if snapshot.pending > 0 {
            return Some(format!("{} open transactions", snapshot.pending));
        }
        let last = self.reader.last_commit();
        (snapshot.watermark < last.0).then(|| format!("the watermark to reach the last commit {last}"))
    }

    /// What keeps the pump from leaving. To be asked once no prewrite can come any more.
    async fn unfinished(&self) -> Option<String> {
        let last = self.reader.last_commit();
        if let Some(reason) = self.unsettled() {
            return Some(reason);
        }
        let drainers = match self.registry.list(NodeKind::Drainer).await {
            Ok(drainers) => drainers,
            Err(error) => return Some(format!("the registry: {error}")),
        };
        let behind: Vec<_> = drainers
            .iter()
            .filter_map(|drainer| drainer.record.as_ref())
            .filter(|record| record.state != NodeState::Offline && record.max_commit_ts < last)
            .map(|record| {
                format!("drainer {} at {} (the last commit is {last})", record.node_id, record.max_commit_ts)
            })
            .collect();
        if !behind.is_empty() {
            return Some(behind.join(", "));
        }
        // A commit may have overruled TiKV's word while the list was read.
        let now = self.reader.last_commit();
        self.unsettled().or_else(|| (now > last).then(|| format!("drainers to have the last commit {now}")))
    }

    /// Writes the entry, however long it takes.
    async fn publish(&self, state: State) {
        loop {
            let record = self.record_of(state);
            match self.registry.put(NodeKind::Pump, &record).await {
                Ok(()) => return self.health.set("registry", Ok(())),
                Err(error) => self.trouble(&error).await,
            }
        }
    }

    /// Writes the entry once: on the way out nobody waits for etcd.
    async fn publish_once(&self, state: State) {
        let record = self.record_of(state);
        if let Err(error) = self.registry.put(NodeKind::Pump, &record).await {
            warn!(%error, state = state.name(), "cannot publish the state");
        }
    }

    fn record_of(&self, state: State) -> NodeRecord {
        let max_commit_ts = match state {
            // See `was_member`.
            State::Joining => CommitTs::default(),
            // Of a pump that left, drainers ask what it has had, not how far it was complete.
            State::Offline => self.reader.last_commit(),
            State::Online | State::Pausing | State::Paused | State::Closing => {
                CommitTs(self.progress.watermark())
            }
        };
        self.record(state.registered(), max_commit_ts)
    }

    fn record(&self, state: NodeState, max_commit_ts: CommitTs) -> NodeRecord {
        let mut record = NodeRecord::new(&self.node_id, &self.host, state);
        record.max_commit_ts = max_commit_ts;
        record.update_ts = self.update_clock.now();
        record
    }

    async fn trouble(&self, error: &node::registry::RegistryError) {
        warn!(%error, "the registry cannot be used, trying again");
        self.health.set("registry", Err(error.to_string()));
        tokio::time::sleep(NOTIFY_AGAIN).await;
    }
}

/// Refuses an empty store under the name of a pump that drainers count on: whoever asked it would be told that there is
/// nothing up to its watermark.
///
/// # Errors
/// It is one; or the registry refuses for good.
pub async fn refuse_lost_store(registry: &Registry, node_id: &str, data_dir: &Path) -> anyhow::Result<()> {
    let entry = loop {
        match registry.get(NodeKind::Pump, node_id).await {
            Ok(entry) => break entry,
            Err(error) if error.is_retryable() => {
                warn!(
                    etcd = registry.addresses(),
                    %error,
                    "cannot register this pump before the registry has said whether it is new, trying again"
                );
                tokio::time::sleep(ASK_AGAIN).await;
            }
            Err(error) => return Err(error.into()),
        }
    };
    let Some(record) = entry.and_then(|entry| entry.record) else { return Ok(()) };
    if record.state == NodeState::Offline || record.max_commit_ts == CommitTs::default() {
        return Ok(());
    }
    anyhow::bail!(
        "the store in {} is empty, but the registry has pump {node_id} as {} with binlogs up to {}: its data directory \
         is gone, not mounted, or another one. Restore it; or declare the pump lost with `binlogctl -cmd update-pump \
         -node-id {node_id} -state offline` (drainers declare a gap then) and start with a new node id",
        data_dir.display(),
        record.state,
        record.max_commit_ts
    )
}

/// Whether every drainer listed this pump once. Joining and paused look alike to others; of the two only a pump that has
/// been online has written a watermark.
fn was_member(record: &NodeRecord) -> bool {
    record.state != NodeState::Offline
        && !(record.state == NodeState::Paused && record.max_commit_ts == CommitTs::default())
}
