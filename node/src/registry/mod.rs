//! Who is there: the original's registry in PD's etcd, and ours beside it.
//!
//! ```text
//! /tidb-binlog/v1/pumps/<id>      the original's JSON; no lease; never deleted; TiDB, the original's drainer and binlogctl read it
//! /tidb-binlog/v1/drainers/<id>   the same
//! /sluice/v1/pumps/<id>           ours, bound to a lease: present while the process lives
//! /sluice/v1/drainers/<id>        the same; a standby drainer has only this
//! /sluice/v1/leaders/<name>       who leads, bound to the leader's lease
//! ```
//!
//! Every request gives up after five seconds. Values are decoded strictly: one that does not decode is an error that names
//! its key, because a node that is silently left out could cost data.

mod leadership;
mod presence;
mod record;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, Compare, CompareOp, GetOptions, KeyValue, PutOptions, Txn, TxnOp, TxnOpResponse};

pub use leadership::Leadership;
pub use presence::{Facts, Presence};
pub use record::{Entry, Label, NodeKind, NodeRecord, NodeState, Side, UpdateClock};
pub use watch::Watch;

/// Where leaders stand.
const LEADERS: &str = "/sluice/v1/leaders/";
/// One request; the original's limit.
const REQUEST: Duration = Duration::from_secs(5);
/// Attempts to change a state that somebody else rewrites meanwhile.
const ATTEMPTS: usize = 10;

/// Why the registry did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// etcd said no, or cannot be reached.
    #[error("etcd: {0}")]
    Etcd(#[from] etcd_client::Error),
    /// etcd did not answer in time.
    #[error("etcd: no answer within {REQUEST:?}")]
    Timeout,
    /// A value that cannot be understood.
    #[error("etcd key {key} is not understood: {reason}")]
    Malformed {
        /// The key.
        key: String,
        /// What is wrong with it or its value.
        reason: String,
    },
    /// No such node.
    #[error("no {kind} with node id `{id}` is registered")]
    NotFound {
        /// Which list.
        kind: NodeKind,
        /// The id.
        id: String,
    },
    /// There is such a node already.
    #[error("a {kind} with node id `{id}` is registered already")]
    Exists {
        /// Which list.
        kind: NodeKind,
        /// The id.
        id: String,
    },
    /// Another living process uses the id.
    #[error(
        "node id `{id}` is used by the {kind} at {host}, which is alive: every node needs an id of its own"
    )]
    InUse {
        /// Which list.
        kind: NodeKind,
        /// The id.
        id: String,
        /// Where the other one is.
        host: String,
    },
    /// Somebody else kept rewriting the value.
    #[error("etcd key {key} changed again and again while it was being changed")]
    Contended {
        /// The key.
        key: String,
    },
    /// An id that cannot be a key.
    #[error("{0}")]
    BadId(String),
}

impl RegistryError {
    /// True if the same request may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Timeout | Self::Contended { .. } => true,
            Self::Etcd(error) => etcd_is_retryable(error),
            Self::Malformed { .. }
            | Self::NotFound { .. }
            | Self::Exists { .. }
            | Self::InUse { .. }
            | Self::BadId(_) => false,
        }
    }
}

fn etcd_is_retryable(error: &etcd_client::Error) -> bool {
    use etcd_client::Error;
    use tonic::Code;
    match error {
        Error::GRpcStatus(status) => !matches!(
            status.code(),
            Code::InvalidArgument | Code::PermissionDenied | Code::Unauthenticated | Code::Unimplemented
        ),
        Error::IoError(_)
        | Error::TransportError(_)
        | Error::WatchError(_)
        | Error::LeaseKeepAliveError(_)
        | Error::ElectError(_)
        | Error::EndpointError(_)
        | Error::Internal(_) => true,
        Error::InvalidArgs(_)
        | Error::InvalidUri(_)
        | Error::Utf8Error(_)
        | Error::InvalidMetadataValue(_)
        | Error::EndpointsNotManaged => false,
    }
}

/// The registry. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    etcd: Client,
    addresses: Arc<str>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

/// A list with etcd's revision of it.
struct Listing {
    entries: Vec<Entry>,
    revision: i64,
}

impl Registry {
    /// Over a client such as [`crate::pd::Pd::etcd`].
    pub fn new(etcd: Client) -> Self {
        Self { etcd, addresses: "".into() }
    }

    /// With the addresses that the client connects to, for messages.
    #[must_use]
    pub fn at(self, urls: &[String]) -> Self {
        Self { addresses: urls.join(",").into(), ..self }
    }

    /// The addresses that the client connects to, for messages; empty if nobody told.
    pub fn addresses(&self) -> &str {
        &self.addresses
    }

    /// Every node of a kind, by id, at one revision.
    pub async fn list(&self, kind: NodeKind) -> Result<Vec<Entry>, RegistryError> {
        Ok(self.listing(kind).await?.entries)
    }

    async fn listing(&self, kind: NodeKind) -> Result<Listing, RegistryError> {
        let prefix = || Some(GetOptions::new().with_prefix());
        let txn = Txn::new()
            .and_then([TxnOp::get(kind.main_prefix(), prefix()), TxnOp::get(kind.side_prefix(), prefix())]);
        let mut kv = self.etcd.kv_client();
        let response = in_time(kv.txn(txn)).await?;
        let revision = response.header().map_or(0, etcd_client::ResponseHeader::revision);
        let mut entries = BTreeMap::new();
        for answer in response.op_responses() {
            if let TxnOpResponse::Get(got) = answer {
                for kv in got.kvs() {
                    add(&mut entries, kind, kv)?;
                }
            }
        }
        Ok(Listing { entries: entries.into_values().collect(), revision })
    }

    /// One node; `None` if neither list has it.
    pub async fn get(&self, kind: NodeKind, id: &str) -> Result<Option<Entry>, RegistryError> {
        let txn = Txn::new()
            .and_then([TxnOp::get(main_key(kind, id)?, None), TxnOp::get(side_key(kind, id)?, None)]);
        let mut kv = self.etcd.kv_client();
        let response = in_time(kv.txn(txn)).await?;
        let mut entries = BTreeMap::new();
        for answer in response.op_responses() {
            if let TxnOpResponse::Get(got) = answer {
                for kv in got.kvs() {
                    add(&mut entries, kind, kv)?;
                }
            }
        }
        Ok(entries.into_values().next())
    }

    /// Registers a node that is not registered.
    pub async fn create(&self, kind: NodeKind, record: &NodeRecord) -> Result<(), RegistryError> {
        if self.put_if(kind, record, CompareOp::Equal, 0).await? {
            return Ok(());
        }
        Err(RegistryError::Exists { kind, id: record.node_id.clone() })
    }

    /// Rewrites the entry of a node that is registered.
    pub async fn update(&self, kind: NodeKind, record: &NodeRecord) -> Result<(), RegistryError> {
        if self.put_if(kind, record, CompareOp::Greater, 0).await? {
            return Ok(());
        }
        Err(RegistryError::NotFound { kind, id: record.node_id.clone() })
    }

    /// Registers or rewrites: the heartbeat.
    pub async fn put(&self, kind: NodeKind, record: &NodeRecord) -> Result<(), RegistryError> {
        match self.update(kind, record).await {
            Err(RegistryError::NotFound { .. }) => self.create(kind, record).await,
            other => other,
        }
    }

    /// Registers or rewrites while `leadership` stands, judged by etcd itself in the same step. False, and nothing is
    /// written, once its key is another one's or nobody's: whoever leads next never finds an entry that was rewritten
    /// after it won.
    pub async fn put_leading(
        &self,
        leadership: &Leadership,
        kind: NodeKind,
        record: &NodeRecord,
    ) -> Result<bool, RegistryError> {
        let key = main_key(kind, &record.node_id)?;
        let txn = Txn::new().when([leadership.stands()]).and_then([TxnOp::put(
            key.as_str(),
            record.to_json(),
            None,
        )]);
        let mut kv = self.etcd.kv_client();
        Ok(in_time(kv.txn(txn)).await?.succeeded())
    }

    /// Changes only the state of a node's entry, whatever else is rewritten meanwhile; returns the entry as it is then.
    pub async fn set_state(
        &self,
        kind: NodeKind,
        id: &str,
        state: NodeState,
    ) -> Result<NodeRecord, RegistryError> {
        for _ in 0..ATTEMPTS {
            let entry = self.get(kind, id).await?;
            let Some((mut record, revision)) =
                entry.and_then(|entry| Some((entry.record?, entry.mod_revision)))
            else {
                return Err(RegistryError::NotFound { kind, id: id.to_owned() });
            };
            record.state = state;
            if self.put_if(kind, &record, CompareOp::Equal, revision).await? {
                return Ok(record);
            }
        }
        Err(RegistryError::Contended { key: main_key(kind, id)? })
    }

    /// Writes a main entry if its revision compares so. False if not.
    async fn put_if(
        &self,
        kind: NodeKind,
        record: &NodeRecord,
        op: CompareOp,
        revision: i64,
    ) -> Result<bool, RegistryError> {
        let key = main_key(kind, &record.node_id)?;
        let txn = Txn::new()
            .when([Compare::mod_revision(key.as_str(), op, revision)])
            .and_then([TxnOp::put(key.as_str(), record.to_json(), None)]);
        let mut kv = self.etcd.kv_client();
        Ok(in_time(kv.txn(txn)).await?.succeeded())
    }

    /// Announces that this process lives, by a leased entry beside the list; it is written when this returns. A living
    /// process elsewhere that uses the id is given the time of its lease to vanish, then it is an error. While etcd cannot
    /// be reached this waits, with a warning at each attempt. Cancel-safe, except that the entry may stand for the time of
    /// its lease. Spawn [`Presence::run`] next.
    pub async fn announce(&self, kind: NodeKind, side: Side) -> Result<Presence, RegistryError> {
        presence::announce(self.clone(), kind, side).await
    }

    /// The list now, and again after every change.
    pub fn watch(&self, kind: NodeKind) -> Watch {
        Watch::new(self.clone(), kind)
    }

    /// Waits until `candidate` leads `name`. Leadership is lost when etcd has not confirmed it for `ttl` (whole seconds,
    /// at least two). Cancel-safe, except that leadership won in that very moment may stand for `ttl`.
    pub async fn campaign(
        &self,
        name: &str,
        candidate: &str,
        ttl: Duration,
    ) -> Result<Leadership, RegistryError> {
        record::check_id(name).map_err(RegistryError::BadId)?;
        leadership::campaign(self.clone(), format!("{LEADERS}{name}"), candidate.to_owned(), ttl).await
    }

    /// Who leads `name` now: the candidate's id.
    pub async fn leader(&self, name: &str) -> Result<Option<String>, RegistryError> {
        let mut kv = self.etcd.kv_client();
        let response = in_time(kv.get(format!("{LEADERS}{name}"), None)).await?;
        Ok(response.kvs().first().map(|kv| String::from_utf8_lossy(kv.value()).into_owned()))
    }

    async fn grant(&self, ttl: Duration) -> Result<i64, RegistryError> {
        let mut lease = self.etcd.lease_client();
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        Ok(in_time(lease.grant(seconds, None)).await?.id())
    }

    async fn revoke(&self, lease: i64) -> Result<(), RegistryError> {
        let mut client = self.etcd.lease_client();
        in_time(client.revoke(lease)).await?;
        Ok(())
    }

    /// Extends a lease once. False if it is gone.
    async fn extend(&self, lease: i64) -> Result<bool, RegistryError> {
        let mut client = self.etcd.lease_client();
        // Opening the stream makes one whole round trip, whose answer the library judges; the stream is not needed longer.
        match in_time(client.keep_alive(lease)).await {
            Ok(_) => Ok(true),
            Err(RegistryError::Etcd(etcd_client::Error::LeaseKeepAliveError(_))) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// With the original's limit on a request.
async fn in_time<T>(
    request: impl Future<Output = Result<T, etcd_client::Error>>,
) -> Result<T, RegistryError> {
    match tokio::time::timeout(REQUEST, request).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(RegistryError::Timeout),
    }
}

fn main_key(kind: NodeKind, id: &str) -> Result<String, RegistryError> {
    record::check_id(id).map_err(RegistryError::BadId)?;
    Ok(format!("{}{id}", kind.main_prefix()))
}

fn side_key(kind: NodeKind, id: &str) -> Result<String, RegistryError> {
    record::check_id(id).map_err(RegistryError::BadId)?;
    Ok(format!("{}{id}", kind.side_prefix()))
}

fn leased(lease: i64) -> Option<PutOptions> {
    Some(PutOptions::new().with_lease(lease))
}

/// Adds what stands under one key to the entries by id.
fn add(entries: &mut BTreeMap<String, Entry>, kind: NodeKind, kv: &KeyValue) -> Result<(), RegistryError> {
    let key = String::from_utf8_lossy(kv.key()).into_owned();
    let malformed = |reason: String| RegistryError::Malformed { key: key.clone(), reason };
    let (id, is_main) = match (key.strip_prefix(kind.main_prefix()), key.strip_prefix(kind.side_prefix())) {
        (Some(id), _) => (id, true),
        (None, Some(id)) => (id, false),
        (None, None) => return Err(malformed("it is outside of the registry".to_owned())),
    };
    record::check_id(id).map_err(malformed)?;
    let entry = entries.entry(id.to_owned()).or_insert_with(|| Entry {
        id: id.to_owned(),
        record: None,
        side: None,
        mod_revision: 0,
    });
    let named = if is_main {
        let record = NodeRecord::parse(kv.value()).map_err(malformed)?;
        entry.mod_revision = kv.mod_revision();
        entry.record.insert(record).node_id.clone()
    } else {
        let side = Side::parse(kv.value()).map_err(malformed)?;
        entry.side.insert(side).node_id.clone()
    };
    if named != id {
        return Err(malformed(format!("its value is of node id `{named}`")));
    }
    Ok(())
}
