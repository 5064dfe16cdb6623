//! Which pumps the merge waits for: the registry's list, followed.
//!
//! Every pump that is registered and not offline is a source, also one that is paused, closing or dead: its disk may hold
//! acknowledged transactions, so it holds the stream, and the status names it. Only `offline` releases it; if it had
//! stored more than arrived here (an operator forced it), the difference is declared as a gap in the log.
//!
//! A pump that joins calls [`Notify`](crate::service); the answer goes out once the list was read again and the merge
//! waits for the pump. All new sources are added before any of them is pulled, so the merge cannot run ahead of one.

use std::collections::HashMap;

use node::registry::{Entry, NodeKind, NodeState, Registry, RegistryError};
use tidb::ts::Tso;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tracing::{error, info, warn};

use crate::feed::SourceChange;
use crate::merge::SourceId;
use crate::pull::{Pull, PullOptions, PumpBatch};
use crate::status::Status;

/// Asks for the list to be read now; answered when the merge knows every pump in it.
pub type Refresh = oneshot::Sender<Result<(), String>>;

/// A pump being pulled.
#[derive(Debug)]
struct Member {
    address: watch::Sender<String>,
    task: tokio::task::AbortHandle,
}

/// Follows the registry and runs one pull per pump.
#[derive(Debug)]
pub struct Membership {
    registry: Registry,
    template: PullOptions,
    detect_interval: std::time::Duration,
    status: Status,
    changes: mpsc::Sender<SourceChange>,
    batches: mpsc::Sender<PumpBatch>,
    members: HashMap<SourceId, Member>,
    pulls: JoinSet<anyhow::Result<()>>,
    generation: u64,
    /// The position at which the feed began; older gaps are not its business.
    position: Tso,
    first: bool,
}

impl Membership {
    /// `template` holds what all pulls share; its source is filled in per pump.
    pub fn new(
        registry: Registry,
        template: PullOptions,
        detect_interval: std::time::Duration,
        position: Tso,
        status: Status,
        changes: mpsc::Sender<SourceChange>,
        batches: mpsc::Sender<PumpBatch>,
    ) -> Self {
        Self {
            registry,
            template,
            detect_interval,
            status,
            changes,
            batches,
            members: HashMap::new(),
            pulls: JoinSet::new(),
            generation: 0,
            position,
            first: true,
        }
    }

    /// Runs until the merge is gone, or a pull ends with an error. Pulls are aborted when this is dropped.
    pub async fn run(mut self, refreshes: &mut mpsc::Receiver<Refresh>) -> anyhow::Result<()> {
        let mut watch = self.registry.watch(NodeKind::Pump);
        let mut again = tokio::time::interval(self.detect_interval);
        again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(ended) = self.pulls.join_next() => match ended {
                    Ok(Ok(())) => self.check_pulls()?,
                    Ok(Err(error)) => return Err(error),
                    Err(aborted) if aborted.is_cancelled() => {}
                    Err(panicked) => return Err(panicked.into()),
                },
                list = watch.next() => self.listed(list).await?,
                _ = again.tick() => {
                    let list = self.registry.list(NodeKind::Pump).await;
                    self.listed(list).await?;
                }
                Some(reply) = refreshes.recv() => {
                    let answer = match self.registry.list(NodeKind::Pump).await {
                        Ok(list) => self.reconcile(list).await.map_err(|e| e.to_string()),
                        Err(error) => Err(error.to_string()),
                    };
                    info!(pumps = self.members.len(), ok = answer.is_ok(), "refreshed the pumps for a joining pump");
                    let _ = reply.send(answer);
                }
                () = self.changes.closed() => return Ok(()),
            }
        }
    }

    /// While the merge is there, no pump's pull ends by itself: everything would wait for that pump for ever.
    fn check_pulls(&self) -> anyhow::Result<()> {
        let ended = self.members.iter().find(|(_, member)| member.task.is_finished());
        match ended {
            Some((id, _)) if !self.changes.is_closed() => {
                Err(anyhow::anyhow!("the pull of pump {id} ended by itself"))
            }
            _ => Ok(()),
        }
    }

    async fn listed(&mut self, list: Result<Vec<Entry>, RegistryError>) -> anyhow::Result<()> {
        match list {
            Ok(list) => self.reconcile(list).await,
            // The pumps known so far go on. A new one cannot join meanwhile: its Notify fails.
            Err(error) => {
                if error.is_retryable() {
                    warn!(%error, "cannot list the pumps");
                } else {
                    error!(%error, "cannot list the pumps");
                }
                Ok(())
            }
        }
    }

    async fn reconcile(&mut self, list: Vec<Entry>) -> anyhow::Result<()> {
        let mut joining = Vec::new();
        for entry in &list {
            let Some(record) = &entry.record else { continue };
            let id = SourceId::new(entry.id());
            if record.state == NodeState::Offline {
                self.offline(&id, record.max_commit_ts.0).await?;
                continue;
            }
            self.status.pump(&id, entry.host(), &record.state.to_string());
            match self.members.get(&id) {
                Some(member) => {
                    member.address.send_if_modified(|address| {
                        let moved = address != entry.host();
                        entry.host().clone_into(address);
                        moved
                    });
                }
                None => joining.push((id, entry.host().to_owned())),
            }
        }
        self.first = false;
        let mut added = Vec::new();
        for (id, address) in joining {
            self.generation += 1;
            let (want, wanted) = watch::channel(Tso::ZERO);
            let (reply, after) = oneshot::channel();
            let add = SourceChange::Add { id: id.clone(), generation: self.generation, want, reply };
            if self.changes.send(add).await.is_err() {
                return Ok(());
            }
            let Ok(after) = after.await else { return Ok(()) };
            added.push((id, address, self.generation, after, wanted));
        }
        for (id, address, generation, after, wanted) in added {
            info!(pump = %id, address, %after, "added a pump");
            let options = PullOptions { source: id.clone(), generation, ..self.template.clone() };
            let (sender, receiver) = watch::channel(address.clone());
            let status = self.status.pump(&id, &address, "online");
            let pull = Pull::new(options, after, self.batches.clone(), receiver, wanted, status);
            let task = self.pulls.spawn(pull.run());
            self.members.insert(id, Member { address: sender, task });
        }
        Ok(())
    }

    /// A pump is offline: it goes, and what it had stored beyond what arrived is a gap.
    async fn offline(&mut self, id: &SourceId, stored: Tso) -> anyhow::Result<()> {
        let arrived = match self.members.remove(id) {
            Some(member) => {
                member.task.abort();
                let (reply, arrived) = oneshot::channel();
                if self.changes.send(SourceChange::End { id: id.clone(), reply }).await.is_err() {
                    return Ok(());
                }
                self.status.forget_pump(id);
                let Ok(arrived) = arrived.await else { return Ok(()) };
                info!(pump = %id, %arrived, %stored, "a pump went offline");
                arrived
            }
            // It went offline while nobody led.
            None if self.first => self.position,
            None => return Ok(()),
        };
        if stored > arrived {
            let cause = format!(
                "pump {id} is offline and had stored transactions up to {stored}; up to {arrived} had been read"
            );
            error!(pump = %id, %stored, %arrived, "declaring a gap: an offline pump was not drained");
            let _ = self.changes.send(SourceChange::Gap { to: stored, cause }).await;
        }
        Ok(())
    }
}
