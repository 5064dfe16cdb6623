//! The client of PD: cluster id, timestamps, regions, stores, service safe points; and the way to its etcd.
//!
//! Calls go to PD's leader, which is found through whichever member answers and looked for again when a call fails in a way
//! that another leader could heal. A call retries by itself for some seconds; what it then returns says whether trying
//! again later makes sense ([`PdError::is_retryable`]).

mod link;
mod tso;

use std::sync::Arc;
use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBuilder};
use bytes::Bytes;
use etcd_client::Client;
use schemas::metapb;
use schemas::pdpb::{GetRegionRequest, GetStoreRequest, UpdateServiceGcSafePointRequest};
use tidb::ts::Tso;
use tonic::{Code, Status};
use tracing::warn;

use crate::dial::DialError;
use crate::etcd::{self, EtcdError};
use crate::shutdown::Shutdown;
use crate::tls::Security;
use link::Link;

/// Why PD did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum PdError {
    /// Addresses or TLS are configured wrongly.
    #[error("pd-urls: {0}")]
    Dial(#[from] DialError),
    /// The etcd client cannot be made.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// A call failed.
    #[error("PD {call}: {}: {}", status.code(), status.message())]
    Call {
        /// Which.
        call: &'static str,
        /// As gRPC has it.
        status: Box<Status>,
    },
    /// PD did not answer in time.
    #[error("PD {call}: no answer within {limit:?}{}", last.as_ref().map(|last| format!("; last failure: {last}")).unwrap_or_default())]
    Timeout {
        /// Which call.
        call: &'static str,
        /// How long was waited.
        limit: Duration,
        /// What went wrong meanwhile, if known.
        last: Option<String>,
    },
    /// PD has no leader just now.
    #[error("PD has no leader at the moment")]
    NoLeader,
    /// PD answered with an error of its own.
    #[error("PD {call}: {message}")]
    Refused {
        /// Which call.
        call: &'static str,
        /// PD's words.
        message: String,
        /// PD says so of itself, not of the question: it is not ready.
        transient: bool,
    },
    /// What answers belongs to another cluster than before.
    #[error(
        "PD answers for cluster {found}, but it was {expected} before: pd-urls point to more than one cluster"
    )]
    OtherCluster {
        /// At connecting.
        expected: u64,
        /// Now.
        found: u64,
    },
    /// No region, or none with a leader, holds the key at the moment.
    #[error("PD knows no region with a leader for key {key}")]
    NoRegion {
        /// In hexadecimal.
        key: String,
    },
    /// PD's clock fell behind what it gave out before: it was restored from an old backup, or is another one.
    #[error(
        "PD's timestamps went back from {last} to {got}: was PD restored? stop, and start from a new position"
    )]
    WentBack {
        /// The largest seen.
        last: Tso,
        /// Now.
        got: Tso,
    },
    /// The task that fetches timestamps is gone, or the end was asked for.
    #[error("the PD client has ended")]
    Ended,
}

impl PdError {
    /// True if the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Timeout { .. } | Self::NoLeader | Self::NoRegion { .. } => true,
            Self::Refused { transient, .. } => *transient,
            Self::Call { status, .. } => match status.code() {
                Code::Unavailable
                | Code::DeadlineExceeded
                | Code::Cancelled
                | Code::Aborted
                | Code::ResourceExhausted
                | Code::Internal
                | Code::Unknown => true,
                Code::Ok
                | Code::InvalidArgument
                | Code::NotFound
                | Code::AlreadyExists
                | Code::PermissionDenied
                | Code::FailedPrecondition
                | Code::OutOfRange
                | Code::Unimplemented
                | Code::DataLoss
                | Code::Unauthenticated => false,
            },
            Self::Dial(_)
            | Self::Etcd(_)
            | Self::OtherCluster { .. }
            | Self::WentBack { .. }
            | Self::Ended => false,
        }
    }
}

/// Where a key lives.
#[derive(Clone, Debug, PartialEq)]
pub struct RegionRoute {
    /// The region, with its epoch.
    pub region: metapb::Region,
    /// Its leading peer.
    pub leader: metapb::Peer,
    /// `host:port` of the leader's store.
    pub address: String,
}

/// A client of PD. Cheap to clone; clones share connections and the timestamp stream.
#[derive(Clone)]
pub struct Pd {
    link: Arc<Link>,
    tso: tso::Handle,
    etcd: Client,
}

impl std::fmt::Debug for Pd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pd").field("cluster_id", &self.link.cluster_id()).finish_non_exhaustive()
    }
}

impl Pd {
    /// Connects to whichever of `urls` (`http://host:port`) answers and learns the cluster id. Tries each once.
    pub async fn connect(urls: &[String], security: &Security) -> Result<Self, PdError> {
        let etcd = etcd::connect(urls, security).await?;
        let link = Arc::new(Link::connect(urls, security).await?);
        let tso = tso::start(Arc::clone(&link));
        Ok(Self { link, tso, etcd })
    }

    /// As [`Self::connect`], again and again with growing pauses until it succeeds, fails for good, or the end is asked for
    /// ([`PdError::Ended`]).
    pub async fn connect_until(
        urls: &[String],
        security: &Security,
        shutdown: &Shutdown,
    ) -> Result<Self, PdError> {
        let mut pauses = ExponentialBuilder::new()
            .with_min_delay(Duration::from_millis(200))
            .with_max_delay(Duration::from_secs(5))
            .with_jitter()
            .without_max_times()
            .build();
        loop {
            let error = match shutdown.unless(Self::connect(urls, security)).await {
                None => return Err(PdError::Ended),
                Some(Err(error)) if error.is_retryable() => error,
                Some(done) => return done,
            };
            let pause = pauses.next().unwrap_or(Duration::from_secs(5));
            warn!(%error, ?urls, seconds = pause.as_secs_f64(), "cannot reach PD, trying again");
            if shutdown.unless(tokio::time::sleep(pause)).await.is_none() {
                return Err(PdError::Ended);
            }
        }
    }

    /// The cluster's id; constant.
    pub fn cluster_id(&self) -> u64 {
        self.link.cluster_id()
    }

    /// A client of PD's etcd.
    pub fn etcd(&self) -> Client {
        self.etcd.clone()
    }

    /// A timestamp fetched after this call began: at or above everything PD gave out before. Concurrent callers share one
    /// round trip and may get the same one, so it is no transaction's identity. Waits up to ten seconds. Cancel-safe.
    pub async fn tso(&self) -> Result<Tso, PdError> {
        self.tso.fetch().await
    }

    /// The region that holds `key` (as TiKV's clients know it, not memcomparable), its leader and the leader's address.
    pub async fn region(&self, key: &[u8]) -> Result<RegionRoute, PdError> {
        let region_key = Bytes::from(encode_region_key(key));
        let hex = || key.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let found = self
            .link
            .call("GetRegion", |mut client, header| {
                let request = GetRegionRequest { header, region_key: region_key.clone() };
                async move { Ok(client.get_region(request).await?.into_inner()) }
            })
            .await?;
        let (Some(region), Some(leader)) = (found.region, found.leader.filter(|leader| leader.store_id != 0))
        else {
            return Err(PdError::NoRegion { key: hex() });
        };
        let store = self
            .link
            .call("GetStore", |mut client, header| {
                let request = GetStoreRequest { header, store_id: leader.store_id };
                async move { Ok(client.get_store(request).await?.into_inner()) }
            })
            .await?
            .store
            .ok_or_else(|| PdError::NoRegion { key: hex() })?;
        Ok(RegionRoute { region, leader, address: store.address })
    }

    /// Keeps TiKV from collecting versions at or after `safe_point` for `ttl` (cut to whole seconds, at least one), in the
    /// name of `service`. Returns the smallest safe point of all services: above `safe_point` means that it came too late
    /// and was not taken.
    pub async fn update_service_safe_point(
        &self,
        service: &str,
        ttl: Duration,
        safe_point: Tso,
    ) -> Result<Tso, PdError> {
        let ttl = i64::try_from(ttl.as_secs().max(1)).unwrap_or(i64::MAX);
        self.service_safe_point(service, ttl, safe_point).await
    }

    /// Takes the service's safe point away.
    pub async fn remove_service_safe_point(&self, service: &str) -> Result<(), PdError> {
        self.service_safe_point(service, 0, Tso::ZERO).await.map(|_| ())
    }

    async fn service_safe_point(&self, service: &str, ttl: i64, safe_point: Tso) -> Result<Tso, PdError> {
        let answer = self
            .link
            .call("UpdateServiceGCSafePoint", |mut client, header| {
                let request = UpdateServiceGcSafePointRequest {
                    header,
                    service_id: Bytes::copy_from_slice(service.as_bytes()),
                    ttl,
                    safe_point: safe_point.get(),
                };
                async move { Ok(client.update_service_gc_safe_point(request).await?.into_inner()) }
            })
            .await?;
        Ok(Tso::new(answer.min_safe_point))
    }
}

/// How PD orders keys: groups of eight bytes, padded with zeros, each followed by 255 minus the padding's length.
pub fn encode_region_key(key: &[u8]) -> Vec<u8> {
    const GROUP: usize = 8;
    let mut encoded = Vec::with_capacity((key.len() / GROUP + 1) * (GROUP + 1));
    let mut chunks = key.chunks_exact(GROUP);
    for chunk in &mut chunks {
        encoded.extend_from_slice(chunk);
        encoded.push(0xff);
    }
    let rest = chunks.remainder();
    let padding = GROUP - rest.len();
    encoded.extend_from_slice(rest);
    encoded.extend(std::iter::repeat_n(0, padding));
    encoded.push(0xff - padding as u8);
    encoded
}

/// Pauses within a call: a new leader is elected in a few seconds.
fn within_a_call() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(50))
        .with_max_delay(Duration::from_secs(2))
        .with_jitter()
        .with_max_times(6)
        .build()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn region_keys() {
        // The examples of the format's description in MyRocks and TiDB.
        assert_eq!(encode_region_key(&[]), [0, 0, 0, 0, 0, 0, 0, 0, 247]);
        assert_eq!(encode_region_key(&[1, 2, 3]), [1, 2, 3, 0, 0, 0, 0, 0, 250]);
        assert_eq!(
            encode_region_key(&[1, 2, 3, 4, 5, 6, 7, 8]),
            [1, 2, 3, 4, 5, 6, 7, 8, 255, 0, 0, 0, 0, 0, 0, 0, 0, 247]
        );
    }

    proptest! {
        #[test]
        fn region_keys_keep_the_order(a in proptest::collection::vec(0u8..3, 0..20), b in proptest::collection::vec(0u8..3, 0..20)) {
            prop_assert_eq!(encode_region_key(&a).cmp(&encode_region_key(&b)), a.cmp(&b));
        }
    }
}
