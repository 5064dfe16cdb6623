//! Being there: a leased entry that says that this process lives, and some facts about it.
//!
//! ```text
//! announce ──▶ lease ──▶ side entry ──▶ run: extend every TTL/3, rewrite when facts change
//!                 ▲                          │ lease lost (a long pause, etcd away)
//!                 └──────────────────────────┘ shutdown: revoke, which removes the entry
//! ```
//!
//! An etcd that is away is waited for, at the start as later: it never ends a process.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use etcd_client::{Compare, CompareOp, Txn, TxnOp};
use serde_json::Value;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{info, warn};

use super::{NodeKind, Registry, RegistryError, Side, leased, side_key};
use crate::shutdown::Shutdown;

/// A process that fell silent for this long is dead.
pub(super) const TTL: Duration = Duration::from_secs(10);
/// How often a taken id is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// Pauses while etcd cannot be asked.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// This process's entry. The entry is written; [`Self::run`] keeps it.
pub struct Presence {
    registry: Registry,
    kind: NodeKind,
    side: Side,
    lease: i64,
    facts: Facts,
    changes: watch::Receiver<Value>,
}

impl std::fmt::Debug for Presence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Presence").field("kind", &self.kind).field("side", &self.side).finish_non_exhaustive()
    }
}

/// Says what others should know of this process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Facts(watch::Sender<Value>);

impl Facts {
    /// Replaces the facts; the entry is rewritten soon, and only if they differ.
    pub fn set(&self, facts: Value) {
        self.0.send_if_modified(|old| {
            let differ = *old != facts;
            *old = facts;
            differ
        });
    }
}

pub(super) async fn announce(
    registry: Registry,
    kind: NodeKind,
    side: Side,
) -> Result<Presence, RegistryError> {
    let mut pauses = ExponentialBuilder::new()
        .with_min_delay(FIRST_PAUSE)
        .with_max_delay(LONGEST_PAUSE)
        .with_jitter()
        .without_max_times()
        .build();
    // From when the id was first seen in use: etcd may have been away before.
    let mut deadline = None;
    let lease = loop {
        match write_new(&registry, kind, &side).await {
            // Most likely an earlier self that was killed: its lease runs out.
            Err(RegistryError::InUse { host, .. })
                if Instant::now()
                    < *deadline.get_or_insert_with(|| Instant::now() + TTL + Duration::from_secs(2)) =>
            {
                info!(%kind, id = side.node_id, host, "the node id is still in use, waiting for its lease to run out");
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            Err(error) if error.is_retryable() => {
                let pause = pauses.next().unwrap_or(LONGEST_PAUSE);
                warn!(
                    %kind, id = side.node_id, etcd = registry.addresses(), %error, seconds = pause.as_secs_f64(),
                    "cannot register this process, trying again"
                );
                tokio::time::sleep(pause).await;
            }
            other => break other?,
        }
    };
    let (facts, changes) = watch::channel(side.facts.clone());
    Ok(Presence { registry, kind, side, lease, facts: Facts(facts), changes })
}

/// Writes the entry under a new lease, unless another process (one with another address) has it.
async fn write_new(registry: &Registry, kind: NodeKind, side: &Side) -> Result<i64, RegistryError> {
    let current = registry.get(kind, &side.node_id).await?.and_then(|entry| entry.side);
    if let Some(other) = current.filter(|other| other.host != side.host) {
        return Err(RegistryError::InUse { kind, id: side.node_id.clone(), host: other.host });
    }
    let lease = registry.grant(TTL).await?;
    put(registry, kind, side, lease).await?;
    Ok(lease)
}

async fn put(registry: &Registry, kind: NodeKind, side: &Side, lease: i64) -> Result<(), RegistryError> {
    let mut kv = registry.etcd.kv_client();
    super::in_time(kv.put(side_key(kind, &side.node_id)?, side.to_json(), leased(lease))).await?;
    Ok(())
}

impl Presence {
    /// A handle to change the facts while [`Self::run`] runs.
    pub fn facts(&self) -> Facts {
        self.facts.clone()
    }

    /// Keeps the entry until `shutdown`, then removes it. Comes back by itself after a lost lease. Ends with an error only
    /// if another process took the node id meanwhile.
    pub async fn run(mut self, shutdown: Shutdown) -> anyhow::Result<()> {
        let mut beat = tokio::time::interval(TTL / 3);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let rewrite = tokio::select! {
                () = shutdown.cancelled() => break,
                changed = self.changes.changed() => changed.is_ok(),
                _ = beat.tick() => false,
            };
            let kept = if rewrite {
                self.side.facts = self.changes.borrow_and_update().clone();
                put(&self.registry, self.kind, &self.side, self.lease).await.map(|()| true)
            } else {
                self.still_there().await
            };
            match kept {
                Ok(true) => {}
                Ok(false) => self.come_back().await?,
                // A put under a lease that is gone is refused as not found.
                Err(error) if error.is_retryable() => {
                    warn!(kind = %self.kind, id = self.side.node_id, %error, "cannot keep the entry of this process");
                    if rewrite {
                        self.come_back().await?;
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        if let Err(error) = self.registry.revoke(self.lease).await {
            warn!(%error, "the entry of this process stays until its lease runs out");
        }
        Ok(())
    }

    /// Extends the lease and looks whether the entry still hangs on it (somebody may have deleted it).
    async fn still_there(&self) -> Result<bool, RegistryError> {
        if !self.registry.extend(self.lease).await? {
            return Ok(false);
        }
        let key = side_key(self.kind, &self.side.node_id)?;
        let txn = Txn::new()
            .when([Compare::lease(key.as_str(), CompareOp::Equal, self.lease)])
            .or_else([TxnOp::get(key.as_str(), None)]);
        let mut kv = self.registry.etcd.kv_client();
        Ok(super::in_time(kv.txn(txn)).await?.succeeded())
    }

    async fn come_back(&mut self) -> Result<(), RegistryError> {
        match write_new(&self.registry, self.kind, &self.side).await {
            Ok(lease) => {
                warn!(kind = %self.kind, id = self.side.node_id, "the entry of this process had gone, wrote it again");
                self.lease = lease;
                Ok(())
            }
            Err(error) if error.is_retryable() => {
                warn!(kind = %self.kind, id = self.side.node_id, %error, "cannot write the entry of this process, trying again");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}
