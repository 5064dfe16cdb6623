//! Leading: one key, bound to the leader's lease; whoever creates it leads.
//!
//! A leader counts itself lost before etcd can give the key to somebody else: its deadline runs from the moment *before* the
//! last confirmation was asked for, less a margin. That is a time bound and not a proof: what a leader writes has to be
//! fenced by its own means as well (the drainer's transactional id, the revision here).

use std::time::Duration;

use etcd_client::{Compare, CompareOp, EventType, Txn, TxnOp, TxnOpResponse, WatchOptions};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::{Registry, RegistryError, in_time, leased};

/// A waiting candidate looks at least this often, whatever its watch tells it.
const LOOK: Duration = Duration::from_secs(5);
/// After a failed confirmation.
const RETRY: Duration = Duration::from_millis(200);

/// The right to lead, while it lasts. Dropped without [`Self::resign`], the key stays until its lease runs out.
pub struct Leadership {
    registry: Registry,
    key: String,
    lease: i64,
    revision: i64,
    lost: CancellationToken,
    keeper: AbortOnDropHandle<()>,
}

impl std::fmt::Debug for Leadership {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leadership").field("revision", &self.revision).finish_non_exhaustive()
    }
}

impl Leadership {
    /// etcd's revision at which leadership was won: grows from leader to leader, so it can fence.
    pub fn revision(&self) -> i64 {
        self.revision
    }

    /// What etcd has to find for leadership to stand.
    pub(super) fn stands(&self) -> Compare {
        Compare::create_revision(self.key.as_str(), CompareOp::Equal, self.revision)
    }

    /// Resolves when leadership is lost, for whatever reason. Cancel-safe.
    pub async fn lost(&self) {
        self.lost.cancelled().await;
    }

    /// False once leadership is lost.
    pub fn is_held(&self) -> bool {
        !self.lost.is_cancelled()
    }

    /// Gives leadership up, so that the next candidate need not wait for the lease to run out.
    pub async fn resign(self) -> Result<(), RegistryError> {
        self.keeper.abort();
        self.registry.revoke(self.lease).await
    }
}

pub(super) async fn campaign(
    registry: Registry,
    key: String,
    candidate: String,
    ttl: Duration,
) -> Result<Leadership, RegistryError> {
    let ttl = Duration::from_secs(ttl.as_secs().max(2));
    loop {
        let Some(revision) = holder(&registry, &key).await? else {
            let asked = Instant::now();
            let lease = registry.grant(ttl).await?;
            let txn = Txn::new()
                .when([Compare::create_revision(key.as_str(), CompareOp::Equal, 0)])
                .and_then([TxnOp::put(key.as_str(), candidate.as_str(), leased(lease))]);
            let mut kv = registry.etcd.kv_client();
            let response = in_time(kv.txn(txn)).await?;
            if response.succeeded() {
                let revision = response.header().map_or(0, etcd_client::ResponseHeader::revision);
                info!(key, candidate, revision, "won leadership");
                let lost = CancellationToken::new();
                let keeper = Keeper {
                    registry: registry.clone(),
                    key: key.clone(),
                    lease,
                    revision,
                    ttl,
                    deadline: asked + ttl - margin(ttl),
                };
                // However the task ends, even by a panic, leadership is lost.
                let guard = lost.clone().drop_guard();
                let keeper = AbortOnDropHandle::new(tokio::spawn(async move {
                    let _guard = guard;
                    keeper.run().await;
                }));
                return Ok(Leadership { registry, key, lease, revision, lost, keeper });
            }
            registry.revoke(lease).await?;
            continue;
        };
        gone(&registry, &key, revision).await?;
    }
}

/// The revision of the list at which somebody holds the key; `None` if nobody does.
async fn holder(registry: &Registry, key: &str) -> Result<Option<i64>, RegistryError> {
    let mut kv = registry.etcd.kv_client();
    let response = in_time(kv.get(key, None)).await?;
    let revision = response.header().map_or(0, etcd_client::ResponseHeader::revision);
    Ok((!response.kvs().is_empty()).then_some(revision))
}

/// Waits until the key is deleted after `revision`, or it is time to look again.
async fn gone(registry: &Registry, key: &str, revision: i64) -> Result<(), RegistryError> {
    let mut client = registry.etcd.watch_client();
    let options = WatchOptions::new().with_start_revision(revision + 1);
    let mut stream = in_time(client.watch(key, Some(options))).await?;
    let deleted = async {
        while let Some(message) = stream.message().await? {
            if message.canceled()
                || message.events().iter().any(|event| event.event_type() == EventType::Delete)
            {
                break;
            }
        }
        Ok::<_, RegistryError>(())
    };
    tokio::time::timeout(LOOK, deleted).await.unwrap_or(Ok(()))
}

/// By how much a leader is lost earlier than etcd may think.
fn margin(ttl: Duration) -> Duration {
    ttl / 5
}

/// Confirms leadership again and again.
struct Keeper {
    registry: Registry,
    key: String,
    lease: i64,
    revision: i64,
    ttl: Duration,
    /// Without another confirmation, leadership is lost then.
    deadline: Instant,
}

impl Keeper {
    /// Ends when leadership is lost.
    async fn run(mut self) {
        let mut pause = self.ttl / 3;
        loop {
            if tokio::time::timeout_at(self.deadline, tokio::time::sleep(pause)).await.is_err() {
                warn!(key = self.key, "lost leadership: etcd did not confirm it in time");
                return;
            }
            let asked = Instant::now();
            match tokio::time::timeout_at(self.deadline, self.confirm()).await {
                Ok(Ok(true)) => {
                    self.deadline = asked + self.ttl - margin(self.ttl);
                    pause = self.ttl / 3;
                }
                Ok(Ok(false)) => {
                    warn!(key = self.key, "lost leadership: the key is no longer ours");
                    return;
                }
                Ok(Err(error)) => {
                    warn!(key = self.key, %error, "cannot confirm leadership, trying again");
                    pause = RETRY;
                }
                Err(_) => {
                    warn!(key = self.key, "lost leadership: etcd did not confirm it in time");
                    return;
                }
            }
        }
    }

    /// Extends the lease, and looks whether the key still is the one that was created.
    async fn confirm(&self) -> Result<bool, RegistryError> {
        if !self.registry.extend(self.lease).await? {
            return Ok(false);
        }
        let txn = Txn::new()
            .when([Compare::create_revision(self.key.as_str(), CompareOp::Equal, self.revision)])
            .or_else([TxnOp::get(self.key.as_str(), None)]);
        let mut kv = self.registry.etcd.kv_client();
        let response = in_time(kv.txn(txn)).await?;
        if let Some(TxnOpResponse::Get(found)) = response.op_responses().into_iter().next() {
            info!(key = self.key, holders = found.kvs().len(), "the leader's key has changed");
        }
        Ok(response.succeeded())
    }
}
