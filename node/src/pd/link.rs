//! Connections to PD: any member for the question who leads, the leader for everything else.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use schemas::pdpb::pd_client::PdClient;
use schemas::pdpb::{
    ErrorType, GetMembersRequest, GetMembersResponse, GetRegionResponse, GetStoreResponse, RequestHeader,
    ResponseHeader, UpdateServiceGcSafePointResponse,
};
use tonic::Status;
use tonic::transport::Channel;
use tracing::debug;

use super::{PdError, within_a_call};
use crate::dial;
use crate::tls::Security;

/// One attempt of one call.
const ATTEMPT: Duration = Duration::from_secs(3);

pub(super) struct Link {
    urls: Vec<String>,
    security: Security,
    members: Channel,
    leader: Mutex<Leader>,
    cluster_id: u64,
}

struct Leader {
    urls: Vec<String>,
    channel: Channel,
}

/// Answers that carry PD's own verdict.
pub(super) trait Answer {
    fn header(&self) -> Option<&ResponseHeader>;
}

impl Answer for GetRegionResponse {
    fn header(&self) -> Option<&ResponseHeader> {
        self.header.as_ref()
    }
}

impl Answer for GetStoreResponse {
    fn header(&self) -> Option<&ResponseHeader> {
        self.header.as_ref()
    }
}

impl Answer for UpdateServiceGcSafePointResponse {
    fn header(&self) -> Option<&ResponseHeader> {
        self.header.as_ref()
    }
}

impl Link {
    pub(super) async fn connect(urls: &[String], security: &Security) -> Result<Self, PdError> {
        let members = dial::channel(urls, security)?;
        // Each address may take its time not to answer.
        let limit = ATTEMPT * (urls.len() as u32 + 1);
        let answer = ask_members(&members, 0, limit).await?;
        let cluster_id = answer.header.as_ref().map_or(0, |header| header.cluster_id);
        if cluster_id == 0 {
            return Err(PdError::Refused {
                call: "GetMembers",
                message: "it names no cluster id (is it PD?)".to_owned(),
                transient: false,
            });
        }
        let leader = Leader::new(&answer, urls, security)?;
        Ok(Self {
            urls: urls.to_vec(),
            security: security.clone(),
            members,
            leader: Mutex::new(leader),
            cluster_id,
        })
    }

    pub(super) fn cluster_id(&self) -> u64 {
        self.cluster_id
    }

    pub(super) fn header(&self) -> Option<RequestHeader> {
        Some(RequestHeader { cluster_id: self.cluster_id, sender_id: 0 })
    }

    /// A client of whoever led when it was last asked. No limit on an answer: a region's is small, PD is trusted.
    pub(super) fn client(&self) -> PdClient<Channel> {
        let channel = self.leader.lock().unwrap_or_else(PoisonError::into_inner).channel.clone();
        PdClient::new(channel)
    }

    /// Asks the members who leads and connects there. Even if it is the same one: the channel dials anew.
    pub(super) async fn find_leader(&self) -> Result<(), PdError> {
        let limit = ATTEMPT * (self.urls.len() as u32 + 1);
        let answer = ask_members(&self.members, self.cluster_id, limit).await?;
        self.check(answer.header.as_ref(), "GetMembers")?;
        let found = Leader::new(&answer, &self.urls, &self.security)?;
        let mut leader = self.leader.lock().unwrap_or_else(PoisonError::into_inner);
        if found.urls != leader.urls {
            tracing::info!(urls = ?found.urls, "PD has another leader");
        }
        *leader = found;
        Ok(())
    }

    /// Runs one call against the leader; looks for the leader and tries again where that can help.
    pub(super) async fn call<T: Answer, F: Future<Output = Result<T, Status>> + Send>(
        &self,
        name: &'static str,
        call: impl Fn(PdClient<Channel>, Option<RequestHeader>) -> F + Send + Sync,
    ) -> Result<T, PdError> {
        let mut pauses = within_a_call();
        loop {
            let result = match tokio::time::timeout(ATTEMPT, call(self.client(), self.header())).await {
                Ok(Ok(answer)) => self.check(answer.header(), name).map(|()| answer),
                Ok(Err(status)) => Err(PdError::Call { call: name, status: Box::new(status) }),
                Err(_) => Err(PdError::Timeout { call: name, limit: ATTEMPT, last: None }),
            };
            let error = match result {
                Ok(answer) => return Ok(answer),
                Err(error) if !error.is_retryable() => return Err(error),
                Err(error) => error,
            };
            let Some(pause) = pauses.next() else {
                return Err(error);
            };
            debug!(%error, "a call to PD failed, trying again");
            tokio::time::sleep(pause).await;
            if let Err(error) = self.find_leader().await {
                if !error.is_retryable() {
                    return Err(error);
                }
                debug!(%error, "cannot find PD's leader");
            }
        }
    }

    /// PD's own verdict in an answer's header.
    pub(super) fn check(&self, header: Option<&ResponseHeader>, call: &'static str) -> Result<(), PdError> {
        let Some(header) = header else {
            return Ok(());
        };
        if let Some(error) = &header.error
            && error.r#type() != ErrorType::Ok
        {
            let transient = match error.r#type() {
                ErrorType::NotBootstrapped | ErrorType::Unknown => true,
                ErrorType::Ok
                | ErrorType::StoreTombstone
                | ErrorType::AlreadyBootstrapped
                | ErrorType::IncompatibleVersion
                | ErrorType::RegionNotFound => false,
            };
            return Err(PdError::Refused { call, message: error.message.clone(), transient });
        }
        if header.cluster_id != 0 && header.cluster_id != self.cluster_id {
            return Err(PdError::OtherCluster { expected: self.cluster_id, found: header.cluster_id });
        }
        Ok(())
    }
}

impl Leader {
    /// The leader's own addresses first; then the configured ones, for where the leader advertises an address that cannot
    /// be reached from here (they refuse if they do not lead).
    fn new(answer: &GetMembersResponse, configured: &[String], security: &Security) -> Result<Self, PdError> {
        let mut urls = answer
            .leader
            .as_ref()
            .map(|leader| leader.client_urls.clone())
            .filter(|urls| !urls.is_empty())
            .ok_or(PdError::NoLeader)?;
        urls.extend(configured.iter().filter(|url| !urls.contains(url)).cloned().collect::<Vec<_>>());
        let channel = dial::channel(&urls, security)?;
        Ok(Self { urls, channel })
    }
}

async fn ask_members(
    members: &Channel,
    cluster_id: u64,
    limit: Duration,
) -> Result<GetMembersResponse, PdError> {
    let request = GetMembersRequest { header: Some(RequestHeader { cluster_id, sender_id: 0 }) };
    let mut client = PdClient::new(members.clone());
    match tokio::time::timeout(limit, client.get_members(request)).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(PdError::Call { call: "GetMembers", status: Box::new(status) }),
        Err(_) => Err(PdError::Timeout { call: "GetMembers", limit, last: None }),
    }
}
