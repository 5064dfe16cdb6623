//! The transactional producer of one epoch. After any failure or unknown outcome it is dropped, never reused: a delayed
//! answer could commit or abort the next transaction.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::Message as _;
use rdkafka::ClientContext;
use rdkafka::config::FromClientConfigAndContext as _;
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::types::RDKafkaErrorCode;
use rdkafka::util::Timeout;
use schemas::sluice::v1::{CommitRecord, RowMeta};
use schemas::{COMMIT_TS_HEADER, META_HEADER};
use tokio::sync::Notify;

use super::{Kafka, LogContext, LogError, blocking};
use crate::sequence::{Delivered, RowPartition};

/// How long fencing the predecessor may take.
const INIT: Duration = Duration::from_secs(60);

/// Where a record goes, as its delivery is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Place {
    /// A row topic.
    Rows(RowPartition),
    /// The schema topic.
    Schema,
    /// The commit stream.
    Commits,
}

/// Where the records of one Kafka transaction went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deliveries {
    /// Rows.
    pub rows: HashMap<RowPartition, Delivered>,
    /// Definitions and DDL, if there were any.
    pub schema: Option<Delivered>,
}

/// What became of the records of one Kafka transaction.
#[derive(Debug, Default)]
pub struct Acks {
    state: Mutex<AckState>,
    progress: Notify,
}

#[derive(Debug, Default)]
struct AckState {
    sent: u64,
    delivered: u64,
    places: HashMap<Place, Delivered>,
    failed: Option<(String, i32, String)>,
}

impl Acks {
    fn state(&self) -> MutexGuard<'_, AckState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn delivered(&self, place: Place, message: &impl Message, error: Option<&KafkaError>) {
        let mut state = self.state();
        state.delivered += 1;
        let offset = message.offset();
        if error.is_some() || offset < 0 {
            let reason = error.map_or_else(|| "the broker gave no offset".to_owned(), ToString::to_string);
            state.failed.get_or_insert_with(|| (message.topic().to_owned(), message.partition(), reason));
        } else {
            let at = state.places.entry(place).or_insert(Delivered { first: offset, last: offset, count: 0 });
            at.first = at.first.min(offset);
            at.last = at.last.max(offset);
            at.count += 1;
        }
        // Waiters look at the state themselves; waking them for each record would be waste.
        let wake =
            state.delivered == state.sent || state.delivered.is_multiple_of(256) || state.failed.is_some();
        drop(state);
        if wake {
            self.progress.notify_waiters();
        }
    }

    /// Waits until all records sent so far are delivered; where they went since the last time. Cancel-safe.
    pub async fn all(&self) -> Result<Deliveries, LogError> {
        loop {
            let progress = self.progress.notified();
            tokio::pin!(progress);
            progress.as_mut().enable();
            {
                let mut state = self.state();
                if let Some((topic, partition, reason)) = state.failed.take() {
                    return Err(LogError::NotDelivered { topic, partition, reason });
                }
                if state.delivered == state.sent {
                    let mut deliveries = Deliveries::default();
                    for (place, at) in state.places.drain() {
                        match place {
                            Place::Rows(place) => {
                                deliveries.rows.insert(place, at);
                            }
                            Place::Schema => deliveries.schema = Some(at),
                            Place::Commits => {}
                        }
                    }
                    return Ok(deliveries);
                }
            }
            progress.await;
        }
    }

    async fn some_progress(&self) {
        // A lost wake-up only costs this long.
        let _ = tokio::time::timeout(Duration::from_millis(10), self.progress.notified()).await;
    }
}

/// What a delivery report belongs to.
#[derive(Debug)]
struct Sent {
    acks: Arc<Acks>,
    place: Place,
}

#[derive(Debug)]
struct Context {
    log: LogContext,
}

impl ClientContext for Context {
    fn log(&self, level: rdkafka::config::RDKafkaLogLevel, facility: &str, message: &str) {
        self.log.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.log.error(error, reason);
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = Box<Sent>;

    fn delivery(&self, result: &DeliveryResult<'_>, sent: Box<Sent>) {
        match result {
            Ok(message) => {
                self.log.answered();
                sent.acks.delivered(sent.place, message, None);
            }
            Err((error, message)) => sent.acks.delivered(sent.place, message, Some(error)),
        }
    }
}

/// How the producer is set up.
#[derive(Clone, Debug)]
pub struct ProducerOptions {
    /// Fixed per cluster and topic, so that a new producer fences the old one.
    pub transactional_id: String,
    /// How long the broker lets a transaction stay open.
    pub transaction_timeout: Duration,
    /// none, lz4, snappy, gzip, zstd.
    pub compression: String,
}

/// One epoch's producer. Dropped, it lets go on a thread where waiting for librdkafka's own threads does no harm.
pub struct Producer {
    inner: Arc<ThreadedProducer<Context>>,
}

impl Drop for Producer {
    fn drop(&mut self) {
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let inner = self.inner.clone();
            runtime.spawn_blocking(move || drop(inner));
        }
    }
}

impl std::fmt::Debug for Producer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer").finish_non_exhaustive()
    }
}

impl Producer {
    /// Makes a producer and fences every earlier one of the same id; their open transaction is settled when it returns.
    pub async fn init(kafka: &Kafka, options: &ProducerOptions) -> Result<Self, LogError> {
        let mut config = kafka.base();
        config
            .set("transactional.id", &options.transactional_id)
            .set("transaction.timeout.ms", options.transaction_timeout.as_millis().to_string())
            .set("enable.idempotence", "true")
            .set("acks", "all")
            .set("compression.type", &options.compression)
            .set("linger.ms", "5")
            .set("batch.num.messages", "20000")
            .set("queue.buffering.max.messages", "500000")
            .set("queue.buffering.max.kbytes", "131072")
            // The topic's own limit is kept to by cutting; the client must not be stricter.
            .set("message.max.bytes", "100000000")
            .set("batch.size", "900000");
        let context = Context { log: kafka.context() };
        blocking(move || {
            let inner: ThreadedProducer<Context> =
                ThreadedProducer::from_config_and_context(&config, context)
                    .map_err(LogError::kafka("making a producer"))?;
            inner
                .init_transactions(INIT)
                .map_err(LogError::kafka("fencing the predecessor (init_transactions)"))?;
            Ok(Self { inner: Arc::new(inner) })
        })
        .await
    }

    /// Opens a Kafka transaction.
    pub fn begin(&self) -> Result<Arc<Acks>, LogError> {
        self.inner.begin_transaction().map_err(LogError::kafka("beginning a transaction"))?;
        Ok(Arc::new(Acks::default()))
    }

    /// Sends a record of a row topic or of the schema topic. Waits while the client's queue is full.
    #[expect(clippy::too_many_arguments, reason = "each is one field of the record that is sent")]
    pub async fn send(
        &self,
        acks: &Arc<Acks>,
        topic: &str,
        partition: i32,
        place: Place,
        key: Option<&[u8]>,
        value: &[u8],
        meta: &RowMeta,
    ) -> Result<(), LogError> {
        let meta_bytes = meta.encode_to_vec();
        let commit_ts = meta.commit_ts.to_string();
        let headers = OwnedHeaders::new_with_capacity(2)
            .insert(Header { key: META_HEADER, value: Some(&meta_bytes) })
            .insert(Header { key: COMMIT_TS_HEADER, value: Some(&commit_ts) });
        let sent = Box::new(Sent { acks: acks.clone(), place });
        let mut record =
            BaseRecord::with_opaque_to(topic, sent).partition(partition).payload(value).headers(headers);
        record.key = key;
        self.enqueue(acks, record).await
    }

    /// Sends a record of the commit stream.
    pub async fn send_commit(
        &self,
        acks: &Arc<Acks>,
        topic: &str,
        record: &CommitRecord,
    ) -> Result<(), LogError> {
        let value = record.encode_to_vec();
        let sent = Box::new(Sent { acks: acks.clone(), place: Place::Commits });
        let record: BaseRecord<'_, [u8], [u8], Box<Sent>> =
            BaseRecord::with_opaque_to(topic, sent).partition(0).payload(&value);
        self.enqueue(acks, record).await
    }

    async fn enqueue(
        &self,
        acks: &Arc<Acks>,
        mut record: BaseRecord<'_, [u8], [u8], Box<Sent>>,
    ) -> Result<(), LogError> {
        acks.state().sent += 1;
        let topic = record.topic.to_owned();
        loop {
            match self.inner.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    record = back;
                    acks.some_progress().await;
                }
                Err((source, _)) => {
                    return Err(LogError::Kafka { what: format!("sending to {topic}"), source });
                }
            }
        }
    }

    /// Sends out what waits for company, now.
    pub async fn flush(&self) -> Result<(), LogError> {
        let inner = self.inner.clone();
        blocking(move || inner.flush(Timeout::Never).map_err(LogError::kafka("flushing"))).await
    }

    /// Commits the open transaction. An error leaves its outcome unknown.
    pub async fn commit(&self) -> Result<(), LogError> {
        let inner = self.inner.clone();
        blocking(move || {
            inner.commit_transaction(Timeout::Never).map_err(LogError::kafka("committing a transaction"))
        })
        .await
    }
}
