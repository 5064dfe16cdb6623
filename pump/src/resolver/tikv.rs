//! `KvCheckTxnStatus`, put to the leader of the primary key's region.
//!
//! Regions are found through PD and cached by their range. A region error (moved, split, unknown) drops the cached region
//! and tries again; what stays is for the caller to repeat later.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use node::dial::{self, DialError};
use node::pd::{Pd, PdError, RegionRoute, encode_region_key};
use node::tls::Security;
use schemas::kvrpcpb::{Action, CheckTxnStatusRequest, CheckTxnStatusResponse, Context};
use schemas::tikvpb::tikv_client::TikvClient;
use tidb::ts::{CommitTs, StartTs, Tso};
use tonic::transport::Channel;

/// Attempts at finding the right region within one question.
const ATTEMPTS: u32 = 4;

/// One call.
const CALL: Duration = Duration::from_secs(3);

/// Regions kept; beyond it all are forgotten and found again.
const CACHED: usize = 100_000;

/// What TiKV knows about a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TxnStatus {
    /// With this commit_ts.
    Committed(CommitTs),
    /// For good.
    RolledBack,
    /// Undecided; will commit at `min_commit_ts` or later if at all. Zero: TiKV promises nothing.
    Locked {
        /// Lower bound of the commit_ts (inclusive).
        min_commit_ts: Tso,
    },
    /// Neither a lock nor a record.
    NotFound,
}

/// Why a question has no answer. All of them may have one later.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// PD did not say where the key lives.
    #[error("cannot find the region: {0}")]
    Pd(#[from] PdError),
    /// The store's address cannot be used.
    #[error("cannot dial TiKV: {0}")]
    Dial(#[from] DialError),
    /// The call failed.
    #[error("TiKV at {address}: {}: {}", status.code(), status.message())]
    Call {
        /// The store.
        address: String,
        /// gRPC's words.
        status: Box<tonic::Status>,
    },
    /// The region kept moving.
    #[error("region error: {0}")]
    Region(String),
    /// TiKV has an error of its own about the key.
    #[error("TiKV refused: {0}")]
    Key(String),
    /// TiKV's answer contradicts what it or PD promises; nothing may follow from it.
    #[error("TiKV's answer cannot be true: {0}")]
    Untrue(String),
    /// The prewrite is not readable yet, or names no primary key.
    #[error("the prewrite has no primary key")]
    NoKey,
}

impl AskError {
    /// For metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Pd(_) => "pd",
            Self::Dial(_) => "dial",
            Self::Call { .. } => "call",
            Self::Region(_) => "region",
            Self::Key(_) => "key",
            Self::Untrue(_) => "untrue",
            Self::NoKey => "no key",
        }
    }
}

/// A client of the few things asked of TiKV.
pub struct Tikv {
    pd: Pd,
    security: Security,
    /// By end key, so that the first entry above a key is its candidate; the empty end key is the last of all.
    regions: Mutex<BTreeMap<RegionEnd, RegionRoute>>,
    stores: Mutex<HashMap<String, Channel>>,
}

/// A region's end; the empty key means "no end".
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum RegionEnd {
    Key(Bytes),
    Open,
}

impl RegionEnd {
    fn of(route: &RegionRoute) -> Self {
        if route.region.end_key.is_empty() { Self::Open } else { Self::Key(route.region.end_key.clone()) }
    }
}

impl Tikv {
    /// Finds stores through `pd`.
    pub fn new(pd: Pd, security: Security) -> Self {
        Self { pd, security, regions: Mutex::default(), stores: Mutex::default() }
    }

    /// What became of the transaction; pushes a living lock's min_commit_ts above `now`. With `fence`, an unknown one is
    /// rolled back for good.
    ///
    /// # Errors
    /// No answer; ask again later.
    pub async fn check(
        &self,
        primary: &Bytes,
        start_ts: StartTs,
        now: Tso,
        fence: bool,
    ) -> Result<TxnStatus, AskError> {
        let request = CheckTxnStatusRequest {
            primary_key: primary.clone(),
            lock_ts: start_ts.get(),
            caller_start_ts: now.get(),
            current_ts: now.get(),
            rollback_if_not_exist: fence,
            verify_is_primary: true,
            ..CheckTxnStatusRequest::default()
        };
        self.ask(request, now).await
    }

    /// What became of the transaction, for looking only: nothing is pushed, and no lock counts as expired.
    ///
    /// # Errors
    /// No answer.
    pub async fn peek(&self, primary: &Bytes, start_ts: StartTs, now: Tso) -> Result<TxnStatus, AskError> {
        let request = CheckTxnStatusRequest {
            primary_key: primary.clone(),
            lock_ts: start_ts.get(),
            verify_is_primary: true,
            ..CheckTxnStatusRequest::default()
        };
        self.ask(request, now).await
    }

    async fn ask(&self, question: CheckTxnStatusRequest, now: Tso) -> Result<TxnStatus, AskError> {
        let (primary, start_ts) = (question.primary_key.clone(), StartTs::new(question.lock_ts));
        if primary.is_empty() {
            return Err(AskError::NoKey);
        }
        let mut last = String::new();
        for _ in 0..ATTEMPTS {
            let route = self.route(&primary).await?;
            let context = Context {
                region_id: route.region.id,
                region_epoch: route.region.region_epoch,
                peer: Some(route.leader),
            };
            let request = CheckTxnStatusRequest { context: Some(context), ..question.clone() };
            let mut client = TikvClient::new(self.store(&route.address)?);
            let call = tokio::time::timeout(CALL, client.kv_check_txn_status(request)).await;
            let response =
                match call.unwrap_or_else(|_| Err(tonic::Status::deadline_exceeded("no answer in 3s"))) {
                    Ok(response) => response.into_inner(),
                    Err(status) => {
                        // The store may be gone for good, its regions elsewhere.
                        self.forget(&route);
                        return Err(AskError::Call { address: route.address, status: Box::new(status) });
                    }
                };
            match &response.region_error {
                None => return interpret(&response, start_ts, now),
                Some(error) => {
                    last = format!("region {}: {}", route.region.id, error.message);
                    if error.server_is_busy.is_some() {
                        return Err(AskError::Region(last));
                    }
                    self.forget(&route);
                }
            }
        }
        Err(AskError::Region(last))
    }

    async fn route(&self, primary: &Bytes) -> Result<RegionRoute, AskError> {
        let key = Bytes::from(encode_region_key(primary));
        let above = (std::ops::Bound::Excluded(RegionEnd::Key(key.clone())), std::ops::Bound::Unbounded);
        {
            let regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((_, route)) = regions.range(above).next()
                && route.region.start_key <= key
            {
                return Ok(route.clone());
            }
        }
        let route = self.pd.region(primary).await?;
        let mut regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
        if regions.len() >= CACHED {
            regions.clear();
        }
        regions.insert(RegionEnd::of(&route), route.clone());
        Ok(route)
    }

    fn forget(&self, route: &RegionRoute) {
        self.regions.lock().unwrap_or_else(PoisonError::into_inner).remove(&RegionEnd::of(route));
    }

    fn store(&self, address: &str) -> Result<Channel, AskError> {
        let mut stores = self.stores.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(channel) = stores.get(address) {
            return Ok(channel.clone());
        }
        let channel = dial::channel(&[address], &self.security)?;
        stores.insert(address.to_owned(), channel.clone());
        Ok(channel)
    }
}

fn interpret(response: &CheckTxnStatusResponse, start_ts: StartTs, now: Tso) -> Result<TxnStatus, AskError> {
    if let Some(error) = &response.error {
        if error.txn_not_found.is_some() {
            return Ok(TxnStatus::NotFound);
        }
        if error.primary_mismatch.is_some() {
            return Err(AskError::Key("the key is not the transaction's primary".into()));
        }
        return Err(AskError::Key(format!("{} {}", error.retryable, error.abort).trim().to_owned()));
    }
    // A living lock first: TiKV may set both it and a commit_version of an older record.
    if response.lock_ttl > 0 {
        let promised = response.lock_info.as_ref().map(|lock| Tso::new(lock.min_commit_ts));
        let min_commit_ts = match (response.action() == Action::MinCommitTsPushed, promised) {
            (true, Some(promised)) if promised <= now => {
                let text = format!("the lock of {start_ts} is pushed above {now}, but to {promised}");
                return Err(AskError::Untrue(text));
            }
            // An older TiKV says so without showing the lock.
            (true, promised) => promised.unwrap_or(now.next()),
            (false, promised) => promised.unwrap_or(Tso::ZERO),
        };
        return Ok(TxnStatus::Locked { min_commit_ts });
    }
    if response.commit_version > 0 {
        let commit_ts = CommitTs::new(response.commit_version);
        if commit_ts.0 <= start_ts.0 {
            let text = format!("{start_ts} committed at {commit_ts}, before it began");
            return Err(AskError::Untrue(text));
        }
        return Ok(TxnStatus::Committed(commit_ts));
    }
    match response.action() {
        Action::LockNotExistDoNothing | Action::TtlExpirePessimisticRollback => Ok(TxnStatus::NotFound),
        Action::NoAction | Action::TtlExpireRollback | Action::LockNotExistRollback => {
            Ok(TxnStatus::RolledBack)
        }
        // Only a lock can be pushed.
        Action::MinCommitTsPushed => {
            Err(AskError::Untrue(format!("the lock of {start_ts} is pushed, but there is no lock")))
        }
    }
}

#[cfg(test)]
mod tests {
    use schemas::kvrpcpb::{KeyError, LockInfo, TxnNotFound};

    use super::*;

    #[test]
    fn answers() {
        let (start_ts, now) = (StartTs::new(5), Tso::new(50));
        let status = |response: CheckTxnStatusResponse| interpret(&response, start_ts, now);
        let blank = CheckTxnStatusResponse::default;
        assert_eq!(status(blank()).unwrap(), TxnStatus::RolledBack);
        assert_eq!(
            status(CheckTxnStatusResponse { commit_version: 9, ..blank() }).unwrap(),
            TxnStatus::Committed(CommitTs::new(9))
        );
        let locked = |action: Action, min_commit_ts| CheckTxnStatusResponse {
            lock_ttl: 3000,
            action: action.into(),
            lock_info: Some(LockInfo { min_commit_ts, ..LockInfo::default() }),
            ..blank()
        };
        let min_commit_ts = |response| match status(response).unwrap() {
            TxnStatus::Locked { min_commit_ts } => min_commit_ts.get(),
            other => panic!("{other:?}"),
        };
        let unshown = CheckTxnStatusResponse { lock_info: None, ..locked(Action::MinCommitTsPushed, 0) };
        assert_eq!(min_commit_ts(unshown), 51);
        assert_eq!(min_commit_ts(locked(Action::MinCommitTsPushed, 60)), 60);
        assert_eq!(min_commit_ts(locked(Action::NoAction, 0)), 0);
        assert_eq!(min_commit_ts(locked(Action::NoAction, 70)), 70);
        // What cannot be true is no answer.
        let untrue = |response| matches!(status(response), Err(AskError::Untrue(_)));
        assert!(untrue(locked(Action::MinCommitTsPushed, 50)));
        assert!(untrue(CheckTxnStatusResponse { commit_version: 5, ..blank() }));
        assert!(untrue(CheckTxnStatusResponse { action: Action::MinCommitTsPushed.into(), ..blank() }));
        let error = |error| status(CheckTxnStatusResponse { error: Some(error), ..blank() });
        let not_found = KeyError { txn_not_found: Some(TxnNotFound::default()), ..KeyError::default() };
        assert_eq!(error(not_found).unwrap(), TxnStatus::NotFound);
        assert!(error(KeyError { abort: "busy".into(), ..KeyError::default() }).is_err());
    }
}
