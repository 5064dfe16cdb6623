//! Reading a pump's backlog: through our own pull, and through the original `PullBinlogs`. Every answer is checked: strictly
//! increasing commit_ts, none missing.

use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use prost::Message as _;
use schemas::binlog::pump_client::PumpClient;
use schemas::binlog::{Binlog, BinlogType, Pos, PullBinlogReq};
use schemas::sluice::pump::v1::drain_client::DrainClient;
use schemas::sluice::pump::v1::pull_request::Body as Ask;
use schemas::sluice::pump::v1::pull_response::Body;
use schemas::sluice::pump::v1::{Open, PullRequest};
use serde::Serialize;
use tonic::transport::{Channel, Endpoint};

use crate::process::Process;

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// `sluice.pump.v1`, transactions in batches.
    Batches,
    /// The original `PullBinlogs`, a message per transaction.
    Original,
}

/// What is pulled.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    /// Transactions with a greater commit_ts,
    pub after: u64,
    /// up to this one.
    pub upto: u64,
    /// How many these are, if it is known.
    pub expected: Option<u64>,
}

/// One measurement.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Which way.
    pub way: Way,
    /// Transactions.
    pub transactions: u64,
    /// The same per second.
    pub per_second: f64,
    /// Bytes of binlogs.
    pub bytes: u64,
    /// The same per second.
    pub bytes_per_second: f64,
    /// Milliseconds until the first transaction.
    pub first_ms: f64,
    /// The pump's processor microseconds per transaction.
    pub pump_cpu_micros: Option<f64>,
    /// This program's.
    pub client_cpu_micros: f64,
    /// The pump's resident memory at the end, bytes.
    pub pump_resident: Option<u64>,
}

/// Counts what arrives, and refuses what must not.
#[derive(Debug)]
struct Check {
    range: Range,
    last: u64,
    transactions: u64,
    bytes: u64,
    first: Option<Instant>,
}

impl Check {
    fn new(range: Range) -> Self {
        Self { range, last: range.after, transactions: 0, bytes: 0, first: None }
    }

    fn take(&mut self, commit_ts: u64, bytes: usize) -> anyhow::Result<()> {
        ensure!(commit_ts > self.last, "commit_ts {commit_ts} came after {}", self.last);
        self.last = commit_ts;
        if commit_ts <= self.range.upto {
            self.first.get_or_insert_with(Instant::now);
            self.transactions += 1;
            self.bytes += bytes as u64;
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.last >= self.range.upto
    }
}

/// Pulls `range` from the pump at `addr`.
///
/// # Errors
/// The pump cannot be reached, or its answer is out of order or not complete.
pub async fn measure(
    addr: &str,
    cluster_id: u64,
    way: Way,
    range: Range,
    pump: Option<Process>,
) -> anyhow::Result<Measured> {
    let endpoint = Endpoint::from_shared(format!("http://{addr}"))?.initial_stream_window_size(4 << 20);
    let endpoint = endpoint.initial_connection_window_size(16 << 20).tcp_nodelay(true);
    let channel = endpoint.connect().await.with_context(|| format!("connect to the pump at {addr}"))?;
    let own = Process::own();
    let cpu = || anyhow::Ok((pump.map(Process::cpu).transpose()?, own.cpu()?));
    let before = cpu()?;
    let began = Instant::now();
    let mut check = Check::new(range);
    match way {
        Way::Batches => batches(channel, cluster_id, &mut check).await?,
        Way::Original => original(channel, cluster_id, &mut check).await?,
    }
    let seconds = began.elapsed().as_secs_f64();
    let after = cpu()?;
    if let Some(expected) = range.expected {
        ensure!(
            check.transactions == expected,
            "{} transactions came, {expected} were stored",
            check.transactions
        );
    }
    let micros = |time: std::time::Duration| time.as_secs_f64() * 1e6 / check.transactions.max(1) as f64;
    Ok(Measured {
        way,
        transactions: check.transactions,
        per_second: check.transactions as f64 / seconds,
        bytes: check.bytes,
        bytes_per_second: check.bytes as f64 / seconds,
        first_ms: check.first.map_or(0.0, |first| (first - began).as_secs_f64() * 1000.0),
        pump_cpu_micros: after.0.zip(before.0).map(|(after, before)| micros(after - before)),
        client_cpu_micros: micros(after.1 - before.1),
        pump_resident: pump.map(Process::memory).transpose()?.map(|memory| memory.resident),
    })
}

async fn batches(channel: Channel, cluster_id: u64, check: &mut Check) -> anyhow::Result<()> {
    let open = Open {
        cluster_id,
        after: check.range.after,
        max_batch_bytes: 1 << 20,
        node_id: "sluice-bench".into(),
    };
    let ask = futures::stream::iter([PullRequest { body: Some(Ask::Open(open)) }]);
    // The request stream must stay open: its end would end the pull.
    let asks = futures::StreamExt::chain(ask, futures::stream::pending());
    let mut client = DrainClient::new(channel).max_decoding_message_size(usize::MAX);
    let mut stream = client.pull(asks).await?.into_inner();
    let mut chunked = None;
    while !check.is_done() {
        let response = stream.message().await?.context("the pull ended early")?;
        match response.body.context("an empty answer")? {
            Body::Batch(batch) => {
                for transaction in batch.transactions {
                    check.take(transaction.commit_ts, transaction.prewrite_value.len())?;
                }
                // Nothing at or below it follows, so the range may be done without a transaction at its end.
                check.last = check.last.max(batch.watermark);
            }
            Body::Chunk(chunk) => {
                let (commit_ts, bytes) = match chunk.transaction {
                    Some(transaction) => (transaction.commit_ts, 0),
                    None => chunked.context("a chunk without a transaction")?,
                };
                let bytes = bytes + chunk.data.len();
                chunked = Some((commit_ts, bytes));
                if chunk.last {
                    ensure!(bytes as u64 == chunk.total_bytes, "{bytes} bytes came of {}", chunk.total_bytes);
                    check.take(commit_ts, bytes)?;
                }
            }
            Body::OutOfRange(out) => bail!("collected up to {}, {} was asked for", out.oldest, out.requested),
            Body::Gap(gap) => bail!("transaction {} is lost: {}", gap.start_ts, gap.cause),
        }
    }
    Ok(())
}

async fn original(channel: Channel, cluster_id: u64, check: &mut Check) -> anyhow::Result<()> {
    let start_from = Some(Pos { suffix: 0, offset: check.range.after as i64 });
    let mut client = PumpClient::new(channel).max_decoding_message_size(usize::MAX);
    let mut stream = client.pull_binlogs(PullBinlogReq { cluster_id, start_from }).await?.into_inner();
    while !check.is_done() {
        let entity =
            stream.message().await?.context("the pull ended early")?.entity.context("an empty answer")?;
        let bytes = entity.payload.len();
        let binlog = Binlog::decode(entity.payload)?;
        let commit_ts = binlog.commit_ts.unwrap_or(0) as u64;
        if binlog.tp == Some(BinlogType::Rollback as i32) {
            // A fake: it says how far the pump is, as a watermark does.
            ensure!(commit_ts > check.last, "fake {commit_ts} came after {}", check.last);
            check.last = commit_ts;
        } else {
            check.take(commit_ts, bytes)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_range_are_checked() {
        let mut check = Check::new(Range { after: 10, upto: 20, expected: None });
        check.take(11, 5).unwrap();
        assert!(check.take(11, 5).is_err());
        assert!(!check.is_done());
        check.take(21, 5).unwrap();
        assert!(check.is_done());
        assert_eq!((check.transactions, check.bytes), (1, 5));
    }
}
