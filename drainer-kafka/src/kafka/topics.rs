//! The topics, and the configuration that is part of the contract: without it rows would vanish or be reordered, so it
//! is checked at every start.

use std::collections::HashMap;
use std::time::Duration;

use rdkafka::admin::{AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::types::RDKafkaErrorCode;
use tracing::info;

use super::{Kafka, LogError};

/// What a commit record, or a slice of anything, may need beside its key and value: headers and Kafka's framing.
const OVERHEAD: usize = 2048;

/// Names of a feed's topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topics {
    /// Row changes.
    pub rows: String,
    /// The commit stream.
    pub commits: String,
    /// Table definitions and DDL.
    pub schema: String,
}

impl Topics {
    /// From the row topic's name.
    pub fn new(rows: &str) -> Self {
        Self { rows: rows.to_owned(), commits: format!("{rows}.commits"), schema: format!("{rows}.schema") }
    }
}

/// What a topic is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Row changes.
    Rows,
    /// The commit stream.
    Commits,
    /// Definitions and DDL.
    Schema,
}

impl Purpose {
    /// Settings that the contract demands.
    fn demanded(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Rows => &[("cleanup.policy", "delete"), ("message.timestamp.type", "LogAppendTime")],
            Self::Commits => &[
                ("cleanup.policy", "delete"),
                ("retention.ms", "-1"),
                ("retention.bytes", "-1"),
                ("message.timestamp.type", "LogAppendTime"),
            ],
            Self::Schema => &[("cleanup.policy", "compact"), ("message.timestamp.type", "LogAppendTime")],
        }
    }
}

/// How topics are created.
#[derive(Clone, Copy, Debug)]
pub struct Creation {
    /// Partitions of the row topic.
    pub partitions: u32,
    /// −1: the brokers' default.
    pub replication_factor: i32,
    /// Of the row topic; zero: the brokers' default.
    pub retention: Duration,
}

fn options() -> AdminOptions {
    let limit = Some(Duration::from_secs(30));
    AdminOptions::new().request_timeout(limit).operation_timeout(limit)
}

/// Creates a topic as the contract demands.
pub async fn create(
    kafka: &Kafka,
    topic: &str,
    purpose: Purpose,
    creation: &Creation,
) -> Result<(), LogError> {
    let partitions = if purpose == Purpose::Rows { creation.partitions as i32 } else { 1 };
    let retention = creation.retention.as_millis().to_string();
    let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(creation.replication_factor));
    for (key, value) in purpose.demanded() {
        new = new.set(key, value);
    }
    if purpose == Purpose::Rows && !creation.retention.is_zero() {
        new = new.set("retention.ms", &retention);
    }
    let admin = kafka.admin()?;
    let results = admin
        .create_topics([&new], &options())
        .await
        .map_err(LogError::kafka(format!("creating topic {topic}")))?;
    for result in results {
        match result {
            Ok(_) => info!(topic, partitions, "created a topic"),
            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
            Err((_, code)) => {
                let source = rdkafka::error::KafkaError::AdminOp(code);
                return Err(LogError::Kafka { what: format!("creating topic {topic}"), source });
            }
        }
    }
    Ok(())
}

/// Checks a topic's configuration; returns the most bytes of key and value that one record may hold.
pub async fn verify(kafka: &Kafka, topic: &str, purpose: Purpose) -> Result<usize, LogError> {
    let what = || format!("configuration of topic {topic}");
    let admin = kafka.admin()?;
    let results = admin
        .describe_configs([&ResourceSpecifier::Topic(topic)], &options())
        .await
        .map_err(LogError::kafka(what()))?;
    let mut settings = HashMap::new();
    for result in results {
        let resource = result.map_err(|code| LogError::Kafka {
            what: what(),
            source: rdkafka::error::KafkaError::AdminOp(code),
        })?;
        settings
            .extend(resource.entries.into_iter().map(|entry| (entry.name, entry.value.unwrap_or_default())));
    }
    for (key, wanted) in purpose.demanded() {
        let found = settings.get(*key).map(String::as_str).unwrap_or_default();
        if found.is_empty() {
            // A broker that has not heard of a new topic's configuration yet describes it without values.
            let source = rdkafka::error::KafkaError::AdminOp(RDKafkaErrorCode::UnknownTopicOrPartition);
            return Err(LogError::Kafka { what: format!("{}: {key} has no value yet", what()), source });
        }
        if found != *wanted {
            return Err(LogError::Refused(format!(
                "topic {topic} has {key}={found}, the log needs {key}={wanted}: with the other setting records would be \
                 lost or reordered. Set it with kafka-configs --alter --entity-type topics --entity-name {topic} \
                 --add-config {key}={wanted}"
            )));
        }
    }
    let limit: usize =
        settings.get("max.message.bytes").and_then(|bytes| bytes.parse().ok()).unwrap_or(1_048_588);
    let least = match purpose {
        Purpose::Commits => schemas::MAX_COMMIT_RECORD + OVERHEAD,
        Purpose::Rows | Purpose::Schema => 16 * 1024,
    };
    if limit < least {
        return Err(LogError::Refused(format!(
            "topic {topic} has max.message.bytes={limit}, the log needs at least {least}"
        )));
    }
    Ok(limit - OVERHEAD)
}
