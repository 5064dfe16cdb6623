//! Reads a partition from an offset to its end, under read_committed. Blocks: call it off the runtime.

use std::time::{Duration, Instant};

use bytes::Bytes;
use prost::Message as _;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};
use schemas::META_HEADER;
use schemas::sluice::v1::{CommitRecord, RowMeta};

use super::{Kafka, LogContext, LogError};

/// How long Kafka may stay silent while there is something to read.
const SILENCE: Duration = Duration::from_secs(60);

/// How long a single question to Kafka may take.
pub(super) const REQUEST: Duration = Duration::from_secs(30);

/// Of the troubles that wait in the client, this many are told of at a time.
const TROUBLES: usize = 256;

/// A question was not answered; why not waits in the client's queue. Logs it. Nothing is assigned while questions are asked,
/// so no record is lost.
fn tell(client: &BaseConsumer<LogContext>) {
    for _ in 0..TROUBLES {
        if client.poll(Duration::ZERO).is_none() {
            return;
        }
    }
}

/// Offsets of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First offset kept.
    pub low: i64,
    /// One past the last.
    pub end: i64,
}

/// Reads partitions.
pub struct Reader {
    committed: BaseConsumer<LogContext>,
    uncommitted: BaseConsumer<LogContext>,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

impl Reader {
    /// Connects when first used.
    pub fn new(kafka: &Kafka) -> Result<Self, LogError> {
        Ok(Self { committed: kafka.reader(true)?, uncommitted: kafka.reader(false)? })
    }

    /// Waits a moment for something outside to change (nothing is assigned, so nothing arrives).
    pub fn pause(&self) {
        let _ = self.uncommitted.poll(Duration::from_millis(50));
    }

    /// Number of partitions; `None` if there is no such topic.
    pub fn partitions(&self, topic: &str) -> Result<Option<u32>, LogError> {
        let what = || format!("metadata of topic {topic}");
        let asked = self.uncommitted.fetch_metadata(Some(topic), REQUEST);
        let metadata = asked.inspect_err(|_| tell(&self.uncommitted)).map_err(LogError::kafka(what()))?;
        self.uncommitted.context().answered();
        let Some(found) = metadata.topics().iter().find(|t| t.name() == topic) else { return Ok(None) };
        match found.error().map(rdkafka::types::RDKafkaErrorCode::from) {
            None if found.partitions().is_empty() => Ok(None),
            None => Ok(Some(found.partitions().len() as u32)),
            Some(
                rdkafka::types::RDKafkaErrorCode::UnknownTopicOrPartition
                | rdkafka::types::RDKafkaErrorCode::UnknownTopic,
            ) => Ok(None),
            Some(code) => Err(LogError::Kafka { what: what(), source: KafkaError::MetadataFetch(code) }),
        }
    }

    /// First offset kept and the end under read_uncommitted.
    pub fn span(&self, topic: &str, partition: i32) -> Result<Span, LogError> {
        let what = || format!("offsets of {topic}[{partition}]");
        let asked = self.uncommitted.fetch_watermarks(topic, partition, REQUEST);
        let (low, end) = asked.inspect_err(|_| tell(&self.uncommitted)).map_err(LogError::kafka(what()))?;
        self.uncommitted.context().answered();
        Ok(Span { low, end })
    }

    /// The end under read_committed: where the first open transaction begins.
    pub fn stable_end(&self, topic: &str, partition: i32) -> Result<i64, LogError> {
        let what = || format!("offsets of {topic}[{partition}]");
        let asked = self.committed.fetch_watermarks(topic, partition, REQUEST);
        let (_, end) = asked.inspect_err(|_| tell(&self.committed)).map_err(LogError::kafka(what()))?;
        Ok(end)
    }

    /// Hands every committed record from `from` to the end to `visit`, in order, or until that answers false. Behind an open
    /// transaction there is no end to see: the last records before it are the end then.
    pub fn read(
        &self,
        topic: &str,
        partition: i32,
        from: i64,
        mut visit: impl FnMut(&BorrowedMessage<'_>) -> Result<bool, LogError>,
    ) -> Result<(), LogError> {
        let what = || format!("reading {topic}[{partition}] from offset {from}");
        let mut assignment = TopicPartitionList::new();
        assignment
            .add_partition_offset(topic, partition, Offset::Offset(from))
            .map_err(LogError::kafka(what()))?;
        self.committed.assign(&assignment).map_err(LogError::kafka(what()))?;
        let mut last = Instant::now();
        loop {
            match self.committed.poll(Duration::from_millis(200)) {
                Some(Ok(message)) => {
                    if !visit(&message)? {
                        break;
                    }
                    last = Instant::now();
                }
                Some(Err(KafkaError::PartitionEOF(_))) => break,
                Some(Err(source)) if is_passing(&source) => {}
                Some(Err(source)) => return Err(LogError::Kafka { what: what(), source }),
                None => {}
            }
            if last.elapsed() > SILENCE {
                let source =
                    KafkaError::MessageConsumption(rdkafka::types::RDKafkaErrorCode::OperationTimedOut);
                return Err(LogError::Kafka { what: what(), source });
            }
        }
        self.committed.unassign().map_err(LogError::kafka(what()))
    }
}

/// True for errors that librdkafka itself keeps working on.
pub(super) fn is_passing(error: &KafkaError) -> bool {
    use rdkafka::types::RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(Code::AllBrokersDown | Code::BrokerTransportFailure | Code::Resolve | Code::LeaderNotAvailable)
    )
}

/// The commit record in a message.
pub fn commit_record(message: &BorrowedMessage<'_>) -> Result<CommitRecord, LogError> {
    CommitRecord::decode(message.payload().unwrap_or_default()).map_err(|e| {
        LogError::Refused(format!(
            "{}[{}] offset {} is not a commit record: {e}",
            message.topic(),
            message.partition(),
            message.offset()
        ))
    })
}

/// The header `sluice` of a message.
pub fn row_meta(message: &BorrowedMessage<'_>) -> Result<RowMeta, LogError> {
    let header = message.headers().and_then(|headers| headers.iter().find(|h| h.key == META_HEADER)?.value);
    let place = || format!("{}[{}] offset {}", message.topic(), message.partition(), message.offset());
    let Some(header) = header else {
        return Err(LogError::Refused(format!(
            "{} has no header `{META_HEADER}`: no drainer wrote it",
            place()
        )));
    };
    RowMeta::decode(Bytes::copy_from_slice(header))
        .map_err(|e| LogError::Refused(format!("{}: header `{META_HEADER}` cannot be read: {e}", place())))
}
