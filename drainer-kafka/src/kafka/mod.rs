//! Everything that talks to Kafka: the start-up checks, the transactional producer, the sink task, and the reader that
//! confirms what was written.

mod client;
pub mod producer;
pub mod readback;
pub mod reader;
pub mod remains;
pub mod sink;
pub mod start;
pub mod topics;
pub mod trim;

pub use self::client::{Kafka, LogContext};

use rdkafka::error::KafkaError;

/// Why an epoch ends. Whether beginning anew can heal it is [`LogError::is_retryable`].
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A Kafka operation failed or its outcome is unknown. The producer is not used again.
    #[error("Kafka: {what}: {source}")]
    Kafka {
        /// What was being done.
        what: String,
        /// What librdkafka says.
        source: KafkaError,
    },
    /// A record that was sent did not arrive, or has no offset.
    #[error("Kafka: a record for {topic}[{partition}] was not delivered: {reason}")]
    NotDelivered {
        /// Topic.
        topic: String,
        /// Partition.
        partition: i32,
        /// What librdkafka says.
        reason: String,
    },
    /// A transaction of somebody else stays open.
    #[error(
        "{topic}[{partition}] has an open transaction of another producer: read_committed ends at offset {stable}, the \
         log at {end}. End it (kafka-transactions find-hanging, abort), or wait until the broker times it out"
    )]
    OpenTransaction {
        /// Topic.
        topic: String,
        /// Partition.
        partition: i32,
        /// Last stable offset.
        stable: i64,
        /// End of the log.
        end: i64,
    },
    /// The topics are not what the feed left there, or not what the contract demands.
    #[error("{0}")]
    Refused(String),
    /// Something else wrote a later epoch: this process is not the leader any more.
    #[error(
        "epoch {seen} appeared in the commit stream while this process writes epoch {ours}: another drainer leads"
    )]
    Fenced {
        /// Ours.
        ours: u64,
        /// The later one.
        seen: u64,
    },
    /// The commit stream cannot be continued.
    #[error("{topic}: {source}")]
    Tail {
        /// The topic.
        topic: String,
        /// Why.
        source: crate::sequence::TailError,
    },
    /// The order, the counts or the offsets do not fit.
    #[error(transparent)]
    Sequence(#[from] crate::sequence::SequenceError),
    /// A blocking call did not come back.
    #[error("a Kafka call panicked or was cancelled")]
    Interrupted,
}

impl LogError {
    pub(crate) fn kafka(what: impl Into<String>) -> impl FnOnce(KafkaError) -> Self {
        let what = what.into();
        move |source| Self::Kafka { what, source }
    }

    /// True if a new producer that reads the tail anew may succeed; false where an operator has to look.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Kafka { .. }
            | Self::NotDelivered { .. }
            | Self::OpenTransaction { .. }
            | Self::Interrupted => true,
            Self::Refused(_) | Self::Fenced { .. } | Self::Tail { .. } | Self::Sequence(_) => false,
        }
    }
}

/// Runs a blocking call of librdkafka off the runtime.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LogError> + Send + 'static,
) -> Result<T, LogError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| LogError::Interrupted)?
}
