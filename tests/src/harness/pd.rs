//! Asks PD (here: the simulated one) for its newest timestamp, the clock by which lag is measured.

use anyhow::{Context as _, Result};
use schemas::pdpb::{GetMembersRequest, RequestHeader, TsoRequest, pd_client::PdClient};

/// A fresh TSO of the PD at `host:port`.
pub async fn timestamp(address: &str) -> Result<u64> {
    let mut client = PdClient::connect(format!("http://{address}")).await.context("connect to PD")?;
    let members = client.get_members(GetMembersRequest::default()).await?.into_inner();
    let cluster_id = members.header.context("PD's answer has no header")?.cluster_id;
    let header = Some(RequestHeader { cluster_id, ..RequestHeader::default() });
    let request = TsoRequest { header, count: 1, ..TsoRequest::default() };
    let mut answers = client.tso(futures::stream::iter([request])).await?.into_inner();
    let timestamp =
        answers.message().await?.and_then(|answer| answer.timestamp).context("PD sent no timestamp")?;
    Ok(((timestamp.physical as u64) << 18) | timestamp.logical as u64)
}

/// Seconds from one TSO to a later one; negative if it is not later.
pub fn seconds_between(earlier: u64, later: u64) -> f64 {
    ((later >> 18) as f64 - (earlier >> 18) as f64) / 1000.0
}
