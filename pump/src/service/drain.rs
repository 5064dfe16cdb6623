//! Our own pull: transactions in batches, large ones in chunks, the watermark beside them, and a word back from the
//! drainer about the timestamp its merge waits for.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt as _};
use node::shutdown::Shutdown;
use prost::Message as _;
use schemas::binlog::Binlog;
use schemas::sluice::pump::v1::drain_server::Drain;
use schemas::sluice::pump::v1::pull_request::Body as Ask;
use schemas::sluice::pump::v1::pull_response::Body;
use schemas::sluice::pump::v1::{
    Batch, Chunk, Gap, Open, OutOfRange, PullRequest, PullResponse, Transaction,
};
use tidb::ts::Tso;
use tokio::sync::watch;
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, info};

use super::admit::Slot;
use super::ahead::{Ahead, Ended};
use crate::clock::Clock;
use crate::metrics;
use crate::progress::Progress;
use crate::readers::{Readers, Registration};
use crate::store::{self, Reader, Stored};

const PROTOCOL: &str = "drain";

/// Bytes of a batch where the drainer names none.
const BATCH: usize = 1 << 20;

/// The least a batch may be asked to hold: below it everything would be chunks.
const LEAST_BATCH: usize = 4 << 10;

/// Serves `sluice.pump.v1.Drain`.
#[derive(Clone)]
pub struct DrainService {
    /// PD's cluster id.
    pub cluster_id: u64,
    /// The store.
    pub reader: Reader,
    /// The watermark.
    pub progress: Arc<Progress>,
    /// For ticks on demand.
    pub clock: Arc<Clock>,
    /// Who pulls.
    pub readers: Arc<Readers>,
    /// Bytes read ahead for one stream.
    pub budget: usize,
    /// Ends the streams.
    pub shutdown: Shutdown,
}

#[tonic::async_trait]
impl Drain for DrainService {
    type PullStream = Pin<Box<dyn Stream<Item = Result<PullResponse, Status>> + Send>>;

    async fn pull(
        &self,
        request: Request<Streaming<PullRequest>>,
    ) -> Result<Response<Self::PullStream>, Status> {
        let peer = request.extensions().get::<node::serve::Peer>().and_then(|peer| peer.address);
        let slot = request.extensions().get::<Slot>().cloned();
        let mut asks = request.into_inner();
        let open = match asks.next().await.transpose()?.and_then(|request| request.body) {
            Some(Ask::Open(open)) => open,
            _ => return Err(Status::invalid_argument("the first message must be Open")),
        };
        if open.cluster_id != self.cluster_id {
            let text = format!("cluster ID are mismatch, {} vs {}", open.cluster_id, self.cluster_id);
            return Err(Status::failed_precondition(text));
        }
        let after = Tso::new(open.after);
        info!(?peer, drainer = open.node_id, %after, "drainer pulls");
        let collected = self.reader.collected();
        if after < collected {
            info!(drainer = open.node_id, %after, %collected, "drainer's position was collected");
            let refusal = OutOfRange { requested: after.get(), oldest: collected.get() };
            let only = PullResponse { body: Some(Body::OutOfRange(refusal)) };
            return Ok(Response::new(Box::pin(futures::stream::iter([Ok(only)]))));
        }
        let feed = Feed::new(self.clone(), &open, asks, slot);
        let stream = futures::stream::unfold(Some(feed), |feed| async {
            let mut feed = feed?;
            match feed.next().await {
                Ok(Some(body)) => {
                    // Nothing follows an OutOfRange.
                    let rest = (!matches!(body, Body::OutOfRange(_))).then_some(feed);
                    Some((Ok(PullResponse { body: Some(body) }), rest))
                }
                Ok(None) => None,
                Err(status) => Some((Err(status), None)),
            }
        });
        Ok(Response::new(Box::pin(stream)))
    }
}

/// One stream's position.
struct Feed {
    service: DrainService,
    asks: Option<Streaming<PullRequest>>,
    watermark: watch::Receiver<Tso>,
    ready: VecDeque<Body>,
    batch_bytes: usize,
    /// Everything up to here was read.
    read: Tso,
    ahead: Ahead<Transaction>,
    registration: Registration,
    _slot: Option<Slot>,
}

impl Feed {
    fn new(service: DrainService, open: &Open, asks: Streaming<PullRequest>, slot: Option<Slot>) -> Self {
        metrics::puller(PROTOCOL, true);
        let batch_bytes = match open.max_batch_bytes as usize {
            0 => BATCH,
            bytes => bytes.clamp(LEAST_BATCH, service.budget.max(LEAST_BATCH)),
        };
        let watermark = service.progress.subscribe();
        let ahead = Ahead::new(service.reader.clone(), service.budget, PROTOCOL, transaction);
        let read = Tso::new(open.after);
        let registration = service.readers.join(&open.node_id, read);
        Self {
            service,
            asks: Some(asks),
            watermark,
            ready: VecDeque::new(),
            batch_bytes,
            read,
            ahead,
            registration,
            _slot: slot,
        }
    }

    async fn next(&mut self) -> Result<Option<Body>, Status> {
        loop {
            if let Some(body) = self.ready.pop_front() {
                if let Body::Batch(batch) = &body {
                    self.registration.sent(Tso::new(batch.watermark));
                }
                return Ok(Some(body));
            }
            let watermark = *self.watermark.borrow_and_update();
            if self.read < watermark {
                self.read_on(watermark).await?;
                continue;
            }
            tokio::select! {
                changed = self.watermark.changed() => if changed.is_err() { return Ok(None) },
                ask = next_ask(&mut self.asks) => self.heed(ask)?,
                () = self.service.shutdown.cancelled() => return Ok(None),
            }
        }
    }

    fn heed(&mut self, ask: Option<Result<PullRequest, Status>>) -> Result<(), Status> {
        match ask {
            Some(Ok(PullRequest { body: Some(Ask::Want(want)) })) => {
                debug!(commit_ts = want.commit_ts, "drainer waits");
                self.service.clock.want(Tso::new(want.commit_ts));
                Ok(())
            }
            Some(Ok(PullRequest { body: Some(Ask::Open(_)) })) => {
                Err(Status::invalid_argument("a second Open"))
            }
            // Nothing, or a message of a later version.
            Some(Ok(PullRequest { body: None })) => Ok(()),
            Some(Err(status)) => Err(status),
            None => {
                // The drainer has no more to say; it may go on reading.
                self.asks = None;
                Ok(())
            }
        }
    }

    async fn read_on(&mut self, watermark: Tso) -> Result<(), Status> {
        let stretch = match self.ahead.next(self.read, watermark).await {
            Ok(stretch) => stretch,
            Err(Ended::Collected(oldest)) => {
                let refusal = OutOfRange { requested: self.read.get(), oldest: oldest.get() };
                self.ready.push_back(Body::OutOfRange(refusal));
                return Ok(());
            }
            Err(Ended::Broken(status)) => return Err(status),
        };
        let gaps = self.service.reader.gaps_within(self.read, stretch.reached);
        let mut batches = Batches::new(self.batch_bytes, gaps);
        for transaction in stretch.transactions {
            batches.push(transaction);
        }
        self.ready.extend(batches.finish(stretch.reached));
        self.read = stretch.reached;
        Ok(())
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        metrics::puller(PROTOCOL, false);
    }
}

async fn next_ask(asks: &mut Option<Streaming<PullRequest>>) -> Option<Result<PullRequest, Status>> {
    match asks {
        Some(asks) => asks.next().await,
        None => std::future::pending().await,
    }
}

fn transaction(stored: &Stored) -> Result<Transaction, prost::DecodeError> {
    let prewrite = Binlog::decode(stored.prewrite.clone())?;
    Ok(Transaction {
        start_ts: stored.start_ts.get(),
        commit_ts: stored.commit_ts.get(),
        prewrite_value: prewrite.prewrite_value.unwrap_or_default(),
        ddl_query: prewrite.ddl_query.unwrap_or_default(),
        ddl_job_id: prewrite.ddl_job_id.unwrap_or(0),
        ddl_schema_state: prewrite.ddl_schema_state.unwrap_or(0),
    })
}

/// Cuts a run of transactions into batches and chunks, with the gaps in their places.
struct Batches {
    limit: usize,
    /// By their ends.
    gaps: VecDeque<store::Gap>,
    bytes: usize,
    open: Vec<Transaction>,
    bodies: Vec<Body>,
}

impl Batches {
    fn new(limit: usize, gaps: Vec<store::Gap>) -> Self {
        Self { limit, gaps: gaps.into(), bytes: 0, open: Vec::new(), bodies: Vec::new() }
    }

    /// Nothing may say that `ts` is reached before the gaps that end by then.
    fn gaps_through(&mut self, ts: u64) {
        while let Some(gap) = self.gaps.pop_front_if(|gap| gap.upto.get() <= ts) {
            self.close();
            let (start_ts, after, upto) = (gap.start_ts.get(), gap.after.get(), gap.upto.get());
            self.bodies.push(Body::Gap(Gap { start_ts, after, upto, cause: gap.cause }));
        }
    }

    fn push(&mut self, transaction: Transaction) {
        self.gaps_through(transaction.commit_ts);
        let size = transaction.prewrite_value.len() + transaction.ddl_query.len();
        if self.bytes + size > self.limit {
            self.close();
        }
        if transaction.prewrite_value.len() > self.limit {
            return self.chunks(transaction);
        }
        self.bytes += size;
        self.open.push(transaction);
    }

    /// A batch may say no more than that everything up to its last transaction was sent.
    fn close(&mut self) {
        if let Some(last) = self.open.last() {
            let watermark = last.commit_ts;
            self.bodies.push(Body::Batch(Batch { transactions: std::mem::take(&mut self.open), watermark }));
            self.bytes = 0;
        }
    }

    fn chunks(&mut self, mut transaction: Transaction) {
        let mut value = std::mem::take(&mut transaction.prewrite_value);
        let total_bytes = value.len() as u64;
        let mut head = Some(transaction);
        while !value.is_empty() {
            let data = value.split_to(self.limit.min(value.len()));
            let last = value.is_empty();
            self.bodies.push(Body::Chunk(Chunk { transaction: head.take(), data, last, total_bytes }));
        }
    }

    fn finish(mut self, reached: Tso) -> Vec<Body> {
        self.gaps_through(reached.get());
        let batch = Batch { transactions: self.open, watermark: reached.get() };
        self.bodies.push(Body::Batch(batch));
        self.bodies
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;
    use tidb::ts::StartTs;

    use super::*;

    proptest! {
        #[test]
        fn batches_and_chunks_add_up(
            sizes in prop::collection::vec(0..40usize, 0..30),
            limit in 1..20usize,
            ends in prop::collection::vec(1..1_000u64, 0..4),
        ) {
            let sent: Vec<_> = sizes.iter().enumerate().map(|(i, &size)| Transaction {
                commit_ts: i as u64 + 1,
                prewrite_value: vec![i as u8; size].into(),
                ..Transaction::default()
            }).collect();
            let mut ends = ends;
            ends.sort_unstable();
            let lost = ends.iter().map(|&upto| store::Gap {
                start_ts: StartTs::new(upto),
                after: Tso::ZERO,
                upto: Tso::new(upto),
                cause: format!("lost {upto}"),
            });
            let mut batches = Batches::new(limit, lost.collect());
            let mut gaps = Vec::new();
            for transaction in &sent {
                batches.push(transaction.clone());
            }
            let mut received: Vec<Transaction> = Vec::new();
            let mut watermark = 0;
            let mut open: Option<(Transaction, Vec<u8>, u64)> = None;
            for body in batches.finish(Tso::new(1_000)) {
                match body {
                    Body::Batch(batch) => {
                        prop_assert!(open.is_none(), "a batch between chunks");
                        let bytes: usize = batch.transactions.iter().map(|t| t.prewrite_value.len()).sum();
                        prop_assert!(bytes <= limit);
                        prop_assert!(batch.transactions.iter().all(|t| t.commit_ts <= batch.watermark));
                        prop_assert!(batch.transactions.iter().all(|t| t.commit_ts > watermark));
                        watermark = batch.watermark;
                        received.extend(batch.transactions);
                    }
                    Body::Chunk(chunk) => {
                        prop_assert!(chunk.data.len() <= limit && !chunk.data.is_empty());
                        match (&mut open, chunk.transaction) {
                            (None, Some(head)) => {
                                prop_assert!(head.commit_ts > watermark);
                                open = Some((head, chunk.data.to_vec(), chunk.total_bytes));
                            }
                            (Some((_, data, _)), None) => data.extend_from_slice(&chunk.data),
                            _ => prop_assert!(false, "a head in the middle, or none at the start"),
                        }
                        if chunk.last {
                            let (mut head, data, total) = open.take().unwrap();
                            prop_assert_eq!(data.len() as u64, total);
                            head.prewrite_value = Bytes::from(data);
                            received.push(head);
                        }
                    }
                    Body::Gap(gap) => {
                        prop_assert!(open.is_none(), "a gap between chunks");
                        prop_assert!(watermark < gap.upto);
                        prop_assert!(received.iter().all(|t| t.commit_ts < gap.upto));
                        prop_assert_eq!(gap.cause, format!("lost {}", gap.start_ts));
                        gaps.push(gap.upto);
                    }
                    Body::OutOfRange(_) => prop_assert!(false),
                }
            }
            prop_assert!(open.is_none());
            prop_assert_eq!(watermark, 1_000);
            prop_assert_eq!(received, sent);
            prop_assert_eq!(gaps, ends);
        }
    }
}
