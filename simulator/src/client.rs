//! Sends binlogs as TiDB's pump client does.
//!
//! A prewrite goes to the next pump after a failure, for as long as the write timeout allows, and last to every pump
//! that is online over a fresh connection; if that fails too, TiDB stops, and so do we. A commit or rollback goes to its
//! prewrite's pump only, once a second for ten minutes. A pump that keeps failing is left alone and probed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use etcd_client::{EventType, GetOptions, WatchOptions};
use schemas::binlog::WriteBinlogReq;
use schemas::binlog::pump_client::PumpClient as Grpc;
use tidb::ts::StartTs;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::pumps::{Pumps, Registration, Strategy};

/// Where pumps register.
const PREFIX: &str = "/tidb-binlog/v1/pumps/";
/// Between attempts of a prewrite.
const PREWRITE_PAUSE: Duration = Duration::from_millis(100);
/// Between attempts of a commit or rollback.
const FOLLOWER_PAUSE: Duration = Duration::from_secs(1);
/// For how long a commit or rollback is tried.
const FOLLOWER_PATIENCE: Duration = Duration::from_secs(600);
/// Between probes of pumps that are left alone.
const PROBE_INTERVAL: Duration = Duration::from_secs(30);

/// How to send.
#[derive(Clone, Copy, Debug)]
pub struct ClientOptions {
    /// Which pump a transaction goes to.
    pub strategy: Strategy,
    /// TiDB's `binlog.write-timeout`.
    pub write_timeout: Duration,
    /// For how long a commit or rollback is tried (TiDB: ten minutes).
    pub follower_patience: Duration,
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            strategy: Strategy::default(),
            write_timeout: Duration::from_secs(15),
            follower_patience: FOLLOWER_PATIENCE,
        }
    }
}

/// Why a prewrite is not on any pump.
#[derive(Debug, thiserror::Error)]
pub enum PrewriteError {
    /// The pump will not take this record ever; only this transaction fails.
    #[error("pump {node_id} refuses the record: {reason}")]
    Refused {
        /// Which pump.
        node_id: String,
        /// Its words.
        reason: String,
    },
    /// No pump took it; TiDB would exit now.
    #[error(
        "no pump took the prewrite of {start_ts} for {patience:?} (TiDB stops here); the last failure: {last}"
    )]
    Critical {
        /// Which transaction.
        start_ts: StartTs,
        /// For how long it was tried.
        patience: Duration,
        /// The last failure.
        last: String,
    },
}

/// What became of a commit or rollback.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// Its pump has it.
    Stored,
    /// Its pump refuses it, or did not take it for as long as it is tried; TiDB forgets it silently.
    Lost,
}

/// A pump client; clones share their connections.
#[derive(Clone, Debug)]
pub struct PumpClient {
    shared: Arc<Shared>,
    _background: Arc<Background>,
}

/// Follows the registrations and probes.
#[derive(Debug)]
struct Background([JoinHandle<()>; 2]);

impl Drop for Background {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

#[derive(Debug)]
struct Shared {
    cluster_id: u64,
    options: ClientOptions,
    pumps: Mutex<Pumps>,
    connections: Mutex<HashMap<String, (String, Channel)>>,
    online: watch::Sender<usize>,
    retries: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PumpClient {
    /// Lists the pumps through PD and follows their registrations. One that cannot be read is an error, as in TiDB,
    /// which then does not see any.
    pub async fn connect(pd_url: &str, cluster_id: u64, options: ClientOptions) -> anyhow::Result<Self> {
        let mut etcd =
            etcd_client::Client::connect([pd_url], None).await.context("cannot reach etcd through PD")?;
        let shared = Arc::new(Shared {
            cluster_id,
            options,
            pumps: Mutex::default(),
            connections: Mutex::default(),
            online: watch::Sender::new(0),
            retries: AtomicU64::new(0),
        });
        let mut revision = shared.list(&mut etcd).await?;
        let follower = Arc::clone(&shared);
        let follow = tokio::spawn(async move {
            loop {
                if let Err(error) = follower.follow(&mut etcd, revision).await {
                    tracing::warn!(%error, "watch of the pumps was interrupted");
                }
                sleep(Duration::from_secs(1)).await;
                match follower.list(&mut etcd).await {
                    Ok(listed) => revision = listed,
                    Err(error) => tracing::warn!(%error, "pumps could not be listed"),
                }
            }
        });
        let prober = Arc::clone(&shared);
        let probe = tokio::spawn(async move {
            loop {
                sleep(PROBE_INTERVAL).await;
                prober.probe().await;
            }
        });
        Ok(Self { shared, _background: Arc::new(Background([follow, probe])) })
    }

    /// Waits until that many pumps are online; returns them.
    pub async fn wait_online(&self, count: usize) -> Vec<Registration> {
        // The sender lives as long as we do, so this ends only when the condition holds.
        let _ = self.shared.online.subscribe().wait_for(|online| *online >= count).await;
        lock(&self.shared.pumps).online()
    }

    /// Attempts that had to be repeated so far.
    pub fn retries(&self) -> u64 {
        self.shared.retries.load(Ordering::Relaxed)
    }

    /// Sends a prewrite; returns the node id of the pump that acknowledged it. `recorded` is its pump in the recording.
    pub async fn prewrite(
        &self,
        start_ts: StartTs,
        recorded: u32,
        payload: Bytes,
    ) -> Result<String, PrewriteError> {
        let begin = Instant::now();
        let patience = self.shared.options.write_timeout;
        let mut last = "no pump is available".to_owned();
        for attempt in 0.. {
            let pump =
                lock(&self.shared.pumps).choose(self.shared.options.strategy, start_ts, recorded, attempt);
            if let Some(pump) = pump {
                match self.shared.write(&pump, payload.clone()).await {
                    Ok(()) => return Ok(pump.node_id),
                    Err(status) if status.code() == Code::ResourceExhausted => {
                        return Err(PrewriteError::Refused {
                            node_id: pump.node_id,
                            reason: status.message().into(),
                        });
                    }
                    Err(status) => {
                        if status.code() == Code::Unavailable {
                            lock(&self.shared.connections).remove(&pump.node_id);
                        }
                        last = format!("{}: {}", pump.node_id, describe(&status));
                    }
                }
            }
            if begin.elapsed() > patience && attempt >= lock(&self.shared.pumps).available() {
                break;
            }
            self.shared.count_retry();
            sleep(PREWRITE_PAUSE).await;
        }
        let online = lock(&self.shared.pumps).online();
        for pump in online {
            lock(&self.shared.connections).remove(&pump.node_id);
            match self.shared.write(&pump, payload.clone()).await {
                Ok(()) => return Ok(pump.node_id),
                Err(status) => last = format!("{}: {}", pump.node_id, describe(&status)),
            }
        }
        Err(PrewriteError::Critical { start_ts, patience: begin.elapsed(), last })
    }

    /// The pump for a record whose prewrite nobody knows; waits until there is one.
    pub async fn any_pump(&self, recorded: u32) -> String {
        loop {
            let chosen = lock(&self.shared.pumps).choose(Strategy::Recorded, StartTs::new(0), recorded, 0);
            if let Some(pump) = chosen {
                return pump.node_id;
            }
            sleep(FOLLOWER_PAUSE).await;
        }
    }

    /// Sends a commit or rollback to the pump that has its prewrite.
    pub async fn follow(&self, node_id: &str, payload: Bytes) -> Delivery {
        let begin = Instant::now();
        loop {
            let pump = lock(&self.shared.pumps).find(node_id);
            if let Some(pump) = pump {
                match self.shared.write(&pump, payload.clone()).await {
                    Ok(()) => return Delivery::Stored,
                    Err(status) if status.code() == Code::ResourceExhausted => return Delivery::Lost,
                    Err(_) => {}
                }
            }
            if begin.elapsed() > self.shared.options.follower_patience {
                return Delivery::Lost;
            }
            self.shared.count_retry();
            sleep(FOLLOWER_PAUSE).await;
        }
    }
}

impl Shared {
    async fn list(&self, etcd: &mut etcd_client::Client) -> anyhow::Result<i64> {
        let options = GetOptions::new().with_prefix();
        let listed = etcd.get(PREFIX, Some(options)).await.context("cannot list the pumps")?;
        for pair in listed.kvs() {
            let key = String::from_utf8_lossy(pair.key());
            let registration = serde_json::from_slice(pair.value()).with_context(|| {
                format!("etcd key {key} is not a pump's registration (TiDB would see no pump)")
            })?;
            lock(&self.pumps).update(registration);
        }
        self.publish();
        Ok(listed.header().map_or(0, |header| header.revision()))
    }

    async fn follow(&self, etcd: &mut etcd_client::Client, revision: i64) -> anyhow::Result<()> {
        let options = WatchOptions::new().with_prefix().with_start_revision(revision + 1);
        let mut changes = etcd.watch(PREFIX, Some(options)).await?;
        while let Some(change) = changes.message().await? {
            anyhow::ensure!(!change.canceled(), "etcd ended it: {}", change.cancel_reason());
            for event in change.events() {
                let (EventType::Put, Some(pair)) = (event.event_type(), event.kv()) else { continue };
                match serde_json::from_slice(pair.value()) {
                    Ok(registration) => lock(&self.pumps).update(registration),
                    Err(error) => {
                        let key = String::from_utf8_lossy(pair.key());
                        tracing::warn!(%key, %error, "not a pump's registration");
                    }
                }
            }
            self.publish();
        }
        anyhow::bail!("etcd closed the stream")
    }

    fn publish(&self) {
        let online = lock(&self.pumps).online().len();
        self.online.send_if_modified(|known| std::mem::replace(known, online) != online);
    }

    async fn probe(&self) {
        let pumps = lock(&self.pumps).to_probe();
        for pump in pumps {
            // What an answer means is noted by the call itself.
            let _ = self.write(&pump, Bytes::new()).await;
        }
    }

    fn count_retry(&self) {
        self.retries.fetch_add(1, Ordering::Relaxed);
    }

    fn connection(&self, pump: &Registration) -> Result<Channel, Status> {
        let mut connections = lock(&self.connections);
        if let Some((host, channel)) = connections.get(&pump.node_id)
            && *host == pump.host
        {
            return Ok(channel.clone());
        }
        let endpoint = Endpoint::from_shared(format!("http://{}", pump.host))
            .map_err(|error| Status::invalid_argument(format!("address {}: {error}", pump.host)))?;
        let channel = endpoint.tcp_nodelay(true).connect_timeout(Duration::from_secs(3)).connect_lazy();
        connections.insert(pump.node_id.clone(), (pump.host.clone(), channel.clone()));
        Ok(channel)
    }

    async fn write(&self, pump: &Registration, payload: Bytes) -> Result<(), Status> {
        let request = WriteBinlogReq { cluster_id: self.cluster_id, payload };
        let call = async {
            let answer = Grpc::new(self.connection(pump)?).write_binlog(request).await?.into_inner();
            if answer.errmsg.is_empty() { Ok(()) } else { Err(Status::unknown(answer.errmsg)) }
        };
        let limit = self.options.write_timeout;
        let result = match timeout(limit, call).await {
            Ok(result) => result,
            Err(_) => Err(Status::deadline_exceeded(format!("no answer for {limit:?}"))),
        };
        let node_id = &pump.node_id;
        match &result {
            Ok(()) => {
                if lock(&self.pumps).succeeded(node_id) {
                    tracing::info!(%node_id, "pump is available again");
                }
            }
            Err(status) => match lock(&self.pumps).failed(node_id) {
                1 => tracing::warn!(%node_id, error = %describe(status), "write failed"),
                11 => {
                    tracing::warn!(%node_id, error = %describe(status), "pump is left alone until a probe succeeds")
                }
                _ => tracing::debug!(%node_id, error = %describe(status), "write failed"),
            },
        }
        result
    }
}

fn describe(status: &Status) -> String {
    let mut text = format!("{:?}: {}", status.code(), status.message());
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}
