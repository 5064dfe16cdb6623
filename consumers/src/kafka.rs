//! Partitions read one record at a time, by offset, under `read_committed`.
//!
//! Static assignment, no consumer group, nothing is ever committed to Kafka, and `auto.offset.reset=error`: an offset that
//! is not there is an error, never a jump. Every partition has a queue of its own that librdkafka fills in the
//! background up to a byte budget, so a partition that is not asked for holds nobody up.
//!
//! Everything here blocks; it belongs on a thread of its own.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use node::kafka::Troubles;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Headers as _, Message as _};
use rdkafka::{ClientConfig, ClientContext, Offset, TopicPartitionList};
use schemas::META_HEADER;
use tracing::debug;

/// How long one question to the brokers may take.
const ASK: Duration = Duration::from_secs(10);
/// Of the troubles that wait in the client, this many are told of at a time.
const TROUBLES: usize = 256;
/// How long a topic must be missing from the brokers' answers before it is taken as deleted.
const MISSING: Duration = Duration::from_secs(10);

/// The log cannot be read on. Nothing here heals by trying again: what can (brokers away, leaders moving) is retried
/// below for ever and shows in the status.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Offsets that are needed were deleted.
    #[error(
        "{topic} partition {partition} begins at offset {log_start}, but offsets {first}..={last} are needed: they were \
         deleted (retention, or records deleted by hand). What they held is lost to this consumer"
    )]
    Gap {
        /// The topic.
        topic: String,
        /// Its partition.
        partition: i32,
        /// First offset needed.
        first: i64,
        /// Last offset known to be needed.
        last: i64,
        /// First offset there is.
        log_start: i64,
    },
    /// The log ends before an offset that was there once.
    #[error(
        "{topic} partition {partition} ends at offset {end}, but offset {offset} was there before: the topic lost records \
         or was made anew"
    )]
    Shorter {
        /// The topic.
        topic: String,
        /// Its partition.
        partition: i32,
        /// What was there.
        offset: i64,
        /// Where the log ends now.
        end: i64,
    },
    /// A log that held records holds none.
    #[error("{topic} partition {partition} was emptied: it holds no record, and its next offset is {end}")]
    Emptied {
        /// The topic.
        topic: String,
        /// Its partition.
        partition: i32,
        /// The next offset.
        end: i64,
    },
    /// The brokers do not know a topic.
    #[error("topic {topic} does not exist (any more), or has no partition {partition}")]
    NoTopic {
        /// The topic.
        topic: String,
        /// The partition looked for.
        partition: i32,
    },
    /// The brokers refuse.
    #[error("the brokers refuse to let {topic} be read: {reason}")]
    Refused {
        /// The topic, or what was asked for.
        topic: String,
        /// What they say.
        reason: String,
    },
    /// The client cannot work.
    #[error("the Kafka client failed: {0}")]
    Client(#[from] KafkaError),
}

impl ReadError {
    /// True where asking again may help: the brokers could not be asked.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Client(KafkaError::MetadataFetch(_) | KafkaError::OffsetFetch(_)) => true,
            Self::Client(_)
            | Self::Gap { .. }
            | Self::Shorter { .. }
            | Self::Emptied { .. }
            | Self::NoTopic { .. }
            | Self::Refused { .. } => false,
        }
    }
}

/// A record, copied out of the client.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its offset.
    pub offset: i64,
    /// Its key.
    pub key: Option<Bytes>,
    /// Its value.
    pub value: Option<Bytes>,
    /// Its `sluice` header.
    pub meta: Option<Bytes>,
}

/// What [`LogReader::poll`] found.
#[derive(Debug)]
pub enum Polled {
    /// The next record.
    Record(Record),
    /// Everything readable was read.
    End,
    /// Nothing came in time.
    Nothing,
}

/// Reads partitions. See the module's description.
pub struct LogReader {
    consumer: Arc<BaseConsumer<Context>>,
    config: ClientConfig,
    /// Sees what is not committed yet, too; only asked for ends, and made when it is.
    uncommitted: Option<BaseConsumer<Context>>,
    queues: HashMap<(String, i32), Queue>,
}

struct Queue {
    queue: PartitionQueue<Context>,
    /// Where reading goes on.
    next: i64,
    held: Option<Record>,
    missing_since: Option<Instant>,
}

impl std::fmt::Debug for LogReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LogReader").field("partitions", &self.queues.len()).finish_non_exhaustive()
    }
}

/// Sends the client's own log lines where ours go.
#[derive(Clone)]
struct Context {
    troubles: Troubles,
}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.troubles.logged(level as i32, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        match error.rdkafka_error_code() {
            Some(RDKafkaErrorCode::PartitionEOF) => {}
            // The client retries by itself whatever else arrives here, unless it is fatal.
            Some(code) => {
                self.troubles.reported(&format!("{code:?}"), code == RDKafkaErrorCode::Fatal, reason);
            }
            None => self.troubles.reported(&error.to_string(), false, reason),
        }
    }
}

impl ConsumerContext for Context {}

impl LogReader {
    /// A reader with `settings` of librdkafka; up to `prefetch` bytes wait in each partition's queue. What it complains of
    /// goes to `troubles`.
    pub fn new(
        settings: &[(String, String)],
        prefetch: usize,
        troubles: &Troubles,
    ) -> Result<Self, ReadError> {
        let mut config = ClientConfig::new();
        let kilobytes = (prefetch / 1024).clamp(64, 1 << 20).to_string();
        let fetch = prefetch.clamp(64 * 1024, 1 << 28);
        for (key, value) in [
            // librdkafka wants a group's name for any assignment. No group is ever joined, nothing is committed.
            ("group.id", "sluice-consumer"),
            ("enable.auto.commit", "false"),
            ("enable.auto.offset.store", "false"),
            ("isolation.level", "read_committed"),
            ("auto.offset.reset", "error"),
            ("enable.partition.eof", "true"),
            ("check.crcs", "true"),
            ("fetch.wait.max.ms", "100"),
            ("fetch.error.backoff.ms", "100"),
            ("topic.metadata.refresh.interval.ms", "30000"),
            ("max.poll.interval.ms", "86400000"),
            ("allow.auto.create.topics", "false"),
            ("queued.max.messages.kbytes", &kilobytes),
            ("fetch.message.max.bytes", &fetch.min(1 << 20).to_string()),
            ("fetch.max.bytes", &fetch.to_string()),
            // A producer's limit, but librdkafka wants it to be below the fetch's in a consumer, too.
            ("message.max.bytes", &fetch.min(1_000_000).to_string()),
            // A record larger than a fetch comes alone, whatever its size.
            ("receive.message.max.bytes", "1073741824"),
        ] {
            config.set(key, value);
        }
        for (key, value) in settings {
            config.set(key, value);
        }
        let context = Context { troubles: troubles.clone() };
        let consumer: BaseConsumer<Context> = config.create_with_context(context)?;
        Ok(Self { consumer: Arc::new(consumer), config, uncommitted: None, queues: HashMap::new() })
    }

    /// Begins (or begins again) to read a partition at `offset`.
    pub fn open(&mut self, topic: &str, partition: i32, offset: i64) -> Result<(), ReadError> {
        let key = (topic.to_owned(), partition);
        if self.queues.remove(&key).is_some() {
            let mut gone = TopicPartitionList::new();
            gone.add_partition(topic, partition);
            self.consumer.incremental_unassign(&gone)?;
        }
        // Split before assigning, so that no record takes the common queue.
        let no_topic = || ReadError::NoTopic { topic: topic.to_owned(), partition };
        let queue = self.consumer.split_partition_queue(topic, partition).ok_or_else(no_topic)?;
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(topic, partition, Offset::Offset(offset))?;
        self.consumer.incremental_assign(&assignment)?;
        self.queues.insert(key, Queue { queue, next: offset, held: None, missing_since: None });
        debug!(topic, partition, offset, "began to read a partition");
        Ok(())
    }

    /// True once [`Self::open`] was called for the partition.
    pub fn is_open(&self, topic: &str, partition: i32) -> bool {
        self.queues.contains_key(&(topic.to_owned(), partition))
    }

    /// The offset at which the partition is read on.
    pub fn next_offset(&self, topic: &str, partition: i32) -> Option<i64> {
        self.queues.get(&(topic.to_owned(), partition)).map(|queue| queue.next)
    }

    /// The next record of an open partition, waiting up to `wait`.
    pub fn poll(&mut self, topic: &str, partition: i32, wait: Duration) -> Result<Polled, ReadError> {
        // Serves callbacks; errors of the whole client are retried by it and were logged. All that wait: while the brokers are
        // away they come faster than this is called, and would be told of long after they are back.
        for _ in 0..TROUBLES {
            match self.consumer.poll(Duration::ZERO) {
                Some(Err(error)) => self.common_error(error)?,
                _ => break,
            }
        }
        let Entry::Occupied(mut entry) = self.queues.entry((topic.to_owned(), partition)) else {
            return Err(ReadError::NoTopic { topic: topic.to_owned(), partition });
        };
        let queue = entry.get_mut();
        if let Some(record) = queue.held.take() {
            return Ok(Polled::Record(record));
        }
        let error = match queue.queue.poll(wait) {
            None => return Ok(Polled::Nothing),
            Some(Ok(message)) => {
                let offset = message.offset();
                if offset < queue.next {
                    // A seek's leftovers never come: queues are made anew. So the partition itself went back.
                    let topic = topic.to_owned();
                    return Err(ReadError::Shorter { topic, partition, offset: queue.next - 1, end: offset });
                }
                queue.next = offset + 1;
                queue.missing_since = None;
                let headers = message.headers();
                let meta = headers.and_then(|headers| {
                    headers.iter().find(|header| header.key == META_HEADER).and_then(|header| header.value)
                });
                return Ok(Polled::Record(Record {
                    offset,
                    key: message.key().map(Bytes::copy_from_slice),
                    value: message.payload().map(Bytes::copy_from_slice),
                    meta: meta.map(Bytes::copy_from_slice),
                }));
            }
            Some(Err(error)) => error,
        };
        let next = queue.next;
        match error {
            KafkaError::PartitionEOF(_) => Ok(Polled::End),
            KafkaError::MessageConsumption(
                RDKafkaErrorCode::AutoOffsetReset
                | RDKafkaErrorCode::OffsetOutOfRange
                | RDKafkaErrorCode::LogTruncation,
            ) => Err(self.out_of_range(topic, partition, next)?),
            KafkaError::MessageConsumption(
                RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownPartition
                | RDKafkaErrorCode::UnknownTopicId,
            ) => self.missing(topic, partition),
            KafkaError::MessageConsumption(
                code @ (RDKafkaErrorCode::TopicAuthorizationFailed | RDKafkaErrorCode::InvalidTopic),
            ) => Err(ReadError::Refused { topic: topic.to_owned(), reason: code.to_string() }),
            other => {
                self.common_error(other)?;
                Ok(Polled::Nothing)
            }
        }
    }

    /// Puts a record back: the next [`Self::poll`] gives it again.
    pub fn put_back(&mut self, topic: &str, partition: i32, record: Record) {
        if let Some(queue) = self.queues.get_mut(&(topic.to_owned(), partition)) {
            queue.held = Some(record);
        }
    }

    /// First offset there is, and the one after the last that may be read.
    pub fn bounds(&self, topic: &str, partition: i32) -> Result<(i64, i64), ReadError> {
        bounds(&self.consumer, topic, partition)
    }

    /// The one after the last offset there is, committed or not. Nothing below it that was ever acknowledged is missing
    /// behind it.
    pub fn end_of_log(&mut self, topic: &str, partition: i32) -> Result<i64, ReadError> {
        let uncommitted = match self.uncommitted.take() {
            Some(consumer) => consumer,
            None => {
                let context = self.consumer.context().as_ref().clone();
                self.config.clone().set("isolation.level", "read_uncommitted").create_with_context(context)?
            }
        };
        let bounds = bounds(&uncommitted, topic, partition);
        self.uncommitted = Some(uncommitted);
        Ok(bounds?.1)
    }

    /// Number of partitions of a topic; 0 if the brokers do not know it.
    pub fn partitions(&self, topic: &str) -> Result<usize, ReadError> {
        let metadata =
            self.consumer.fetch_metadata(Some(topic), ASK).inspect_err(|_| tell(&self.consumer))?;
        self.consumer.context().troubles.answered();
        let found = metadata.topics().iter().find(|found| found.name() == topic);
        Ok(found.filter(|found| found.error().is_none()).map_or(0, |found| found.partitions().len()))
    }

    /// An offset is not there: says why.
    fn out_of_range(&self, topic: &str, partition: i32, offset: i64) -> Result<ReadError, ReadError> {
        let (log_start, end) = self.bounds(topic, partition)?;
        let topic = topic.to_owned();
        Ok(if offset < log_start {
            ReadError::Gap { topic, partition, first: offset, last: log_start - 1, log_start }
        } else {
            ReadError::Shorter { topic, partition, offset, end }
        })
    }

    /// The brokers said they do not know the topic. That may be for a moment only, while they restart.
    fn missing(&mut self, topic: &str, partition: i32) -> Result<Polled, ReadError> {
        let known = self.partitions(topic).unwrap_or(usize::MAX) > partition.unsigned_abs() as usize;
        let Some(queue) = self.queues.get_mut(&(topic.to_owned(), partition)) else {
            return Ok(Polled::Nothing);
        };
        if known {
            let next = queue.next;
            // It is there (again). Reading on at the same offset tells whether it is the same topic.
            self.open(topic, partition, next)?;
            return Ok(Polled::Nothing);
        }
        let since = *queue.missing_since.get_or_insert_with(Instant::now);
        if since.elapsed() < MISSING {
            return Ok(Polled::Nothing);
        }
        Err(ReadError::NoTopic { topic: topic.to_owned(), partition })
    }

    fn common_error(&self, error: KafkaError) -> Result<(), ReadError> {
        match &error {
            KafkaError::MessageConsumptionFatal(_) => Err(ReadError::Client(error)),
            KafkaError::MessageConsumption(RDKafkaErrorCode::SaslAuthenticationFailed) => {
                let reason = "authentication failed".to_owned();
                Err(ReadError::Refused { topic: "any topic".to_owned(), reason })
            }
            _ => {
                debug!(%error, "kafka client goes on after an error");
                Ok(())
            }
        }
    }
}

/// A question was not answered; why not waits in the client's queue. Logs it. Records do not come this way.
fn tell(consumer: &BaseConsumer<Context>) {
    for _ in 0..TROUBLES {
        if consumer.poll(Duration::ZERO).is_none() {
            return;
        }
    }
}

fn bounds(consumer: &BaseConsumer<Context>, topic: &str, partition: i32) -> Result<(i64, i64), ReadError> {
    let answer = consumer.fetch_watermarks(topic, partition, ASK).inspect_err(|_| tell(consumer));
    if answer.is_ok() {
        consumer.context().troubles.answered();
    }
    answer.map_err(|error| match error {
        KafkaError::MetadataFetch(
            RDKafkaErrorCode::UnknownTopicOrPartition
            | RDKafkaErrorCode::UnknownTopic
            | RDKafkaErrorCode::UnknownPartition,
        ) => ReadError::NoTopic { topic: topic.to_owned(), partition },
        KafkaError::MetadataFetch(
            code @ (RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed
            | RDKafkaErrorCode::Authentication
            | RDKafkaErrorCode::SaslAuthenticationFailed),
        ) => ReadError::Refused { topic: topic.to_owned(), reason: code.to_string() },
        other => ReadError::Client(other),
    })
}
