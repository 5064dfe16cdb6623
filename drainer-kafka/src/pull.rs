//! One pump's stream: our own pull (`sluice.pump.v1`), or the original `PullBinlogs` where a pump does not know it.
//!
//! The task reconnects for ever, with back-off, from the last timestamp it received; a pump that is away holds the
//! merge up, rightly, and is named in the status. It ends with an error only where going on would lose data: the pump
//! says that the position was collected, sends what cannot be read, or breaks its own order. What a pump says it has lost goes on
//! to the merge, which declares a gap.
//!
//! Memory: what a pump sent and Kafka does not have yet is charged to that pump's byte budget. A transaction larger
//! than the whole budget is taken alone. Nothing is allocated by a declared length.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use node::tls::Security;
use prost::Message;
use schemas::binlog::pump_client::PumpClient;
use schemas::binlog::{Binlog, Entity, Pos, PullBinlogReq};
use schemas::sluice::pump::v1::drain_client::DrainClient;
use schemas::sluice::pump::v1::pull_request::Body as Request;
use schemas::sluice::pump::v1::pull_response::Body as Response;
use schemas::sluice::pump::v1::{Batch, Chunk, Gap, Open, PullRequest, Transaction as PumpTransaction, Want};
use tidb::ts::{CommitTs, StartTs, Tso};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use tracing::{debug, info, warn};

use crate::merge::SourceId;
use crate::status::PumpStatus;
use crate::transaction::{DdlBinlog, Transaction};

/// The first wait after a lost connection; it doubles up to [`MAX_BACKOFF`].
const MIN_BACKOFF: Duration = Duration::from_millis(100);
const MAX_BACKOFF: Duration = Duration::from_secs(3);
/// Payload bytes asked for in one message of our own pull.
const BATCH_BYTES: u32 = 1 << 20;
/// What a message may take beside its payload: small transactions have more frame than content.
const FRAME: usize = 16 << 20;
/// Budgets are counted in units of this many bytes, so that they fit a semaphore.
const UNIT: u64 = 256;

/// How much of a pump's explanation goes into the log, in bytes.
const MAX_CAUSE: usize = 1024;

/// A transaction that a pump acknowledged and cannot deliver any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LostTransaction {
    /// Its identity.
    pub start_ts: StartTs,
    /// It committed after this…
    pub after: Tso,
    /// … and not after this, if at all.
    pub upto: Tso,
    /// In the pump's words.
    pub cause: String,
}

/// What a pump sent: transactions in order, and the watermark after them.
#[derive(Debug)]
pub struct PumpBatch {
    /// Which pump.
    pub source: SourceId,
    /// Which of its pulls.
    pub generation: u64,
    /// Its transactions, in order of commit_ts.
    pub transactions: Vec<Transaction>,
    /// Those that it says are lost.
    pub lost: Vec<LostTransaction>,
    /// Nothing at or below it will follow.
    pub watermark: Tso,
}

/// What a pull needs to know.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// The pump.
    pub source: SourceId,
    /// Told apart from earlier pulls of the same pump.
    pub generation: u64,
    /// The cluster both belong to.
    pub cluster_id: u64,
    /// The drainer's own id, for the pump's list of readers.
    pub node_id: String,
    /// Bytes received and not yet in Kafka.
    pub budget: u64,
    /// The largest transaction taken.
    pub max_message: u64,
    /// TLS.
    pub security: Security,
}

/// Why a stream ended.
#[derive(Debug)]
enum End {
    /// Connect again.
    Retry(String),
    /// The pump does not know our pull.
    Unimplemented,
    /// Nobody takes the transactions any more.
    Closed,
    /// The feed must stop.
    Fatal(anyhow::Error),
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        Self::Retry(format!("{:?}: {}", status.code(), status.message()))
    }
}

/// One pump's pull.
#[derive(Debug)]
pub struct Pull {
    options: PullOptions,
    out: mpsc::Sender<PumpBatch>,
    address: watch::Receiver<String>,
    want: watch::Receiver<Tso>,
    status: PumpStatus,
    budget: Arc<Semaphore>,
    budget_units: u32,
    position: Tso,
}

impl Pull {
    /// Delivers everything after `position` to `out`. `address` may change; `want` carries the timestamp that the merge
    /// waits for.
    pub fn new(
        options: PullOptions,
        position: Tso,
        out: mpsc::Sender<PumpBatch>,
        address: watch::Receiver<String>,
        want: watch::Receiver<Tso>,
        status: PumpStatus,
    ) -> Self {
        let budget_units = u32::try_from(options.budget.div_ceil(UNIT)).unwrap_or(u32::MAX).max(1);
        let budget = Arc::new(Semaphore::new(budget_units as usize));
        Self { options, out, address, want, status, budget, budget_units, position }
    }

    /// Runs until nobody takes the transactions any more, or the feed must stop. Cancel-safe: what was not delivered is
    /// pulled again.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut backoff = MIN_BACKOFF;
        loop {
            let before = self.position;
            let mut address = self.address.clone();
            address.mark_unchanged();
            let session = tokio::select! {
                ended = self.session() => ended,
                moved = address.changed() => match moved {
                    Ok(()) => Err(End::Retry("its address changed".to_owned())),
                    Err(_) => return Ok(()),
                },
            };
            let reason = match session {
                Ok(()) => "the pump ended the stream".to_owned(),
                Err(End::Closed) => return Ok(()),
                Err(End::Fatal(error)) => return Err(error),
                Err(End::Unimplemented) => "it speaks neither sluice.pump.v1 nor PullBinlogs".to_owned(),
                Err(End::Retry(reason)) => reason,
            };
            self.status.disconnected(&reason);
            if self.position > before {
                backoff = MIN_BACKOFF;
            }
            warn!(pump = %self.options.source, reason, position = %self.position, "lost a pump's stream");
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(MAX_BACKOFF);
        }
    }

    async fn session(&mut self) -> Result<(), End> {
        let address = self.address.borrow().clone();
        let channel = node::dial::channel(&[address], &self.options.security).map_err(|e| {
            End::Fatal(anyhow::Error::new(e).context(format!("pump {}", self.options.source)))
        })?;
        match self.own(channel.clone()).await {
            Err(End::Unimplemented) => {
                debug!(pump = %self.options.source, "an original pump");
                self.original(channel).await
            }
            other => other,
        }
    }

    /// Our own pull.
    async fn own(&mut self, channel: Channel) -> Result<(), End> {
        let (requests, outgoing) = mpsc::channel(8);
        let open = Open {
            cluster_id: self.options.cluster_id,
            after: self.position.get(),
            max_batch_bytes: BATCH_BYTES,
            node_id: self.options.node_id.clone(),
        };
        requests.send(PullRequest { body: Some(Request::Open(open)) }).await.map_err(|_| End::Closed)?;
        let mut client = DrainClient::new(channel).max_decoding_message_size(BATCH_BYTES as usize + FRAME);
        let stream = match client.pull(ReceiverStream::new(outgoing)).await {
            Ok(response) => response.into_inner(),
            Err(status) if status.code() == Code::Unimplemented => return Err(End::Unimplemented),
            Err(status) => return Err(status.into()),
        };
        self.status.connected("sluice.pump.v1");
        info!(pump = %self.options.source, after = %self.position, "pulling from a pump");
        let wanting = ask(self.want.clone(), requests);
        tokio::select! {
            ended = self.receive(stream) => ended,
            end = wanting => Err(end),
        }
    }

    async fn receive(
        &mut self,
        mut stream: Streaming<schemas::sluice::pump::v1::PullResponse>,
    ) -> Result<(), End> {
        let mut chunked: Option<Chunked> = None;
        while let Some(response) = stream.next().await {
            match response?.body {
                Some(Response::Batch(batch)) => {
                    if chunked.is_some() {
                        return Err(self.broken("a batch in the middle of a large transaction"));
                    }
                    self.batch(batch).await?;
                }
                Some(Response::Chunk(chunk)) => self.chunk(&mut chunked, chunk).await?,
                Some(Response::OutOfRange(range)) => {
                    return Err(End::Fatal(anyhow::anyhow!(
                        "pump {} no longer has transactions in ({}, {}]: they were collected before this drainer read them. \
                         Start a new feed (new topics) from a fresh copy of the data, or restore the pump's data",
                        self.options.source,
                        range.requested,
                        range.oldest
                    )));
                }
                Some(Response::Gap(gap)) => {
                    if chunked.is_some() {
                        return Err(self.broken("a gap in the middle of a large transaction"));
                    }
                    self.gap(gap).await?;
                }
                None => return Err(self.broken("a message of an unknown kind")),
            }
        }
        Ok(())
    }

    async fn batch(&mut self, batch: Batch) -> Result<(), End> {
        let bytes: u64 = batch.transactions.iter().map(|t| t.encoded_len() as u64).sum();
        let permit = self.charge(bytes).await?;
        let watermark = Tso::new(batch.watermark);
        let mut transactions = Vec::with_capacity(batch.transactions.len());
        for transaction in batch.transactions {
            transactions.push(self.transaction(transaction, permit.clone())?);
        }
        if transactions.last().is_some_and(|last: &Transaction| last.commit_ts.0 > watermark) {
            return Err(self.broken("a transaction above its batch's watermark"));
        }
        self.deliver(transactions, watermark).await
    }

    /// A gap has no part in the budget: it holds no payload.
    async fn gap(&mut self, gap: Gap) -> Result<(), End> {
        let Gap { start_ts, after, upto, mut cause } = gap;
        if after >= upto || start_ts >= upto {
            return Err(self.broken("a gap that ends before it, or its transaction, begins"));
        }
        cause.truncate(cause.floor_char_boundary(MAX_CAUSE));
        let lost = LostTransaction {
            start_ts: StartTs::new(start_ts),
            after: Tso::new(after),
            upto: Tso::new(upto),
            cause,
        };
        // It says nothing about how far the pump is.
        let batch = PumpBatch { lost: vec![lost], ..self.empty(self.position) };
        self.out.send(batch).await.map_err(|_| End::Closed)
    }

    async fn chunk(&mut self, chunked: &mut Option<Chunked>, chunk: Chunk) -> Result<(), End> {
        match (chunked.as_mut(), chunk.transaction) {
            (None, Some(transaction)) => {
                if chunk.total_bytes > self.options.max_message {
                    return Err(self.too_large(transaction.commit_ts, chunk.total_bytes));
                }
                let budget = self.charge(chunk.total_bytes).await?;
                let total = chunk.total_bytes;
                *chunked = Some(Chunked { transaction, data: BytesMut::new(), total, budget });
            }
            (Some(_), None) => {}
            (None, None) | (Some(_), Some(_)) => {
                return Err(self.broken("pieces of large transactions mixed up"));
            }
        }
        let Some(whole) = chunked else { return Ok(()) };
        if whole.data.len() as u64 + chunk.data.len() as u64 > whole.total {
            return Err(self.broken("a large transaction longer than announced"));
        }
        whole.data.extend_from_slice(&chunk.data);
        if !chunk.last {
            return Ok(());
        }
        let Some(whole) = chunked.take() else { return Ok(()) };
        if whole.data.len() as u64 != whole.total {
            return Err(self.broken("a large transaction shorter than announced"));
        }
        let transaction = PumpTransaction { prewrite_value: whole.data.freeze(), ..whole.transaction };
        let transaction = self.transaction(transaction, whole.budget)?;
        // Nothing at or below it follows, because commit_ts grow.
        let watermark = transaction.commit_ts.0;
        self.deliver(vec![transaction], watermark).await
    }

    fn transaction(
        &self,
        from: PumpTransaction,
        budget: Arc<OwnedSemaphorePermit>,
    ) -> Result<Transaction, End> {
        let ddl = (from.ddl_job_id > 0).then(|| DdlBinlog {
            job_id: from.ddl_job_id,
            query: from.ddl_query,
            schema_state: from.ddl_schema_state,
        });
        if from.commit_ts <= from.start_ts {
            return Err(self.broken("a transaction whose commit_ts is not above its start_ts"));
        }
        Ok(Transaction {
            start_ts: StartTs::new(from.start_ts),
            commit_ts: CommitTs::new(from.commit_ts),
            payload: from.prewrite_value,
            ddl,
            budget: Some(budget),
        })
    }

    /// The original pull: a transaction a message, no watermarks; fake binlogs (start_ts equal to commit_ts) stand for
    /// them. Such a pump skips a collected position without a word.
    async fn original(&mut self, channel: Channel) -> Result<(), End> {
        let limit = usize::try_from(self.options.max_message).unwrap_or(usize::MAX).saturating_add(FRAME);
        let mut client = PumpClient::new(channel).max_decoding_message_size(limit);
        let request = PullBinlogReq {
            cluster_id: self.options.cluster_id,
            start_from: Some(Pos { suffix: 0, offset: self.position.to_i64() }),
        };
        let mut stream = client.pull_binlogs(request).await?.into_inner();
        self.status.connected("PullBinlogs");
        info!(pump = %self.options.source, after = %self.position, "pulling from an original pump");
        while let Some(response) = stream.next().await {
            let Some(Entity { payload, .. }) = response?.entity else { continue };
            let bytes = payload.len() as u64;
            let binlog = Binlog::decode(payload)
                .map_err(|e| self.broken(&format!("a binlog that cannot be read ({e})")))?;
            let (start_ts, commit_ts) = (Tso::from_i64(binlog.start_ts()), Tso::from_i64(binlog.commit_ts()));
            if start_ts == commit_ts {
                self.deliver(Vec::new(), commit_ts).await?;
                continue;
            }
            let budget = self.charge(bytes).await?;
            let transaction = PumpTransaction {
                start_ts: start_ts.get(),
                commit_ts: commit_ts.get(),
                ddl_job_id: binlog.ddl_job_id(),
                ddl_schema_state: binlog.ddl_schema_state(),
                prewrite_value: binlog.prewrite_value.unwrap_or_default(),
                ddl_query: binlog.ddl_query.unwrap_or_default(),
            };
            let transaction = self.transaction(transaction, budget)?;
            self.deliver(vec![transaction], commit_ts).await?;
        }
        Ok(())
    }

    /// Waits until the budget has room; the permit gives it back when the last transaction is done with.
    async fn charge(&self, bytes: u64) -> Result<Arc<OwnedSemaphorePermit>, End> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).clamp(1, self.budget_units);
        let permit = self.budget.clone().acquire_many_owned(units).await.map_err(|_| End::Closed)?;
        Ok(Arc::new(permit))
    }

    async fn deliver(&mut self, transactions: Vec<Transaction>, watermark: Tso) -> Result<(), End> {
        self.status.received(transactions.len() as u64, watermark);
        let batch = PumpBatch { transactions, ..self.empty(watermark) };
        self.out.send(batch).await.map_err(|_| End::Closed)?;
        self.position = self.position.max(watermark);
        Ok(())
    }

    fn empty(&self, watermark: Tso) -> PumpBatch {
        PumpBatch {
            source: self.options.source.clone(),
            generation: self.options.generation,
            transactions: Vec::new(),
            lost: Vec::new(),
            watermark,
        }
    }

    fn broken(&self, what: &str) -> End {
        End::Fatal(anyhow::anyhow!("pump {} sent {what} (after {})", self.options.source, self.position))
    }

    fn too_large(&self, commit_ts: u64, bytes: u64) -> End {
        End::Fatal(anyhow::anyhow!(
            "transaction {commit_ts} of pump {} takes {bytes} bytes, more than max-message-size ({}); raise it",
            self.options.source,
            self.options.max_message
        ))
    }
}

/// Tells the pump each timestamp that the merge waits for, as long as both are there.
async fn ask(mut want: watch::Receiver<Tso>, requests: mpsc::Sender<PullRequest>) -> End {
    loop {
        let wanted = *want.borrow_and_update();
        if !wanted.is_zero() {
            let request = PullRequest { body: Some(Request::Want(Want { commit_ts: wanted.get() })) };
            if requests.send(request).await.is_err() {
                // A connection that breaks takes the requests first; that it broke may be seen there only later.
                return End::Retry("the pump takes no more requests".to_owned());
            }
        }
        if want.changed().await.is_err() {
            return End::Closed;
        }
    }
}

/// A large transaction on its way.
#[derive(Debug)]
struct Chunked {
    transaction: PumpTransaction,
    data: BytesMut,
    total: u64,
    budget: Arc<OwnedSemaphorePermit>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests are refused when the connection breaks, which may be noticed before the answers end. Only the merge's end
    /// ends a pull.
    #[tokio::test]
    async fn a_broken_connection_is_no_end() {
        let (want, wanted) = watch::channel(Tso::new(1));
        let (requests, outgoing) = mpsc::channel(1);
        drop(outgoing);
        assert!(matches!(ask(wanted.clone(), requests).await, End::Retry(_)));

        let (requests, mut outgoing) = mpsc::channel(1);
        let asking = tokio::spawn(ask(wanted, requests));
        let first = outgoing.recv().await.and_then(|request| request.body);
        assert!(matches!(first, Some(Request::Want(Want { commit_ts: 1 }))));
        drop(want);
        assert!(matches!(asking.await, Ok(End::Closed)));
    }
}
