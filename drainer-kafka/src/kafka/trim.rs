//! Trims the commit stream: records that only name rows which Kafka no longer keeps are of no use to anybody.
//!
//! The stream has no retention of its own (it is the drainer's checkpoint); this task deletes its beginning, up to the
//! first record that names a row still kept, and never the last records, from which a successor goes on.

use std::collections::HashMap;
use std::time::Duration;

use node::shutdown::Shutdown;
use rdkafka::admin::AdminOptions;
use rdkafka::message::Message as _;
use rdkafka::{Offset, TopicPartitionList};
use schemas::sluice::v1::PartitionRange;
use schemas::sluice::v1::commit_record::Body;
use tracing::{info, warn};

use super::reader::{Reader, commit_record};
use super::{Kafka, LogError, blocking};

/// How often there is a look.
const INTERVAL: Duration = Duration::from_secs(600);

/// Offsets at the end that always stay: far more than lie between two summaries.
const KEPT: i64 = 10_000;

/// Trims `commits` behind the rows of `row_topics` (name and partitions) until the shutdown. Failing is no reason to
/// stop: the stream only stays longer.
pub async fn run(kafka: Kafka, commits: String, row_topics: Vec<(String, u32)>, shutdown: Shutdown) {
    while shutdown.unless(tokio::time::sleep(INTERVAL)).await.is_some() {
        match shutdown.unless(once(&kafka, &commits, &row_topics)).await {
            Some(Ok(Some(before))) => info!(topic = commits, before, "trimmed the commit stream"),
            Some(Ok(None)) | None => {}
            Some(Err(error)) => warn!(%error, topic = commits, "cannot trim the commit stream"),
        }
    }
}

/// One look; returns the offset before which records were deleted.
pub async fn once(
    kafka: &Kafka,
    commits: &str,
    row_topics: &[(String, u32)],
) -> Result<Option<i64>, LogError> {
    let (client, topic, rows) = (kafka.clone(), commits.to_owned(), row_topics.to_vec());
    let Some(before) = blocking(move || first_needed(&client, &topic, &rows)).await? else { return Ok(None) };
    let what = || format!("deleting the beginning of {commits}");
    let mut offsets = TopicPartitionList::new();
    offsets.add_partition_offset(commits, 0, Offset::Offset(before)).map_err(LogError::kafka(what()))?;
    let limit = Some(Duration::from_secs(30));
    let options = AdminOptions::new().request_timeout(limit).operation_timeout(limit);
    kafka.admin()?.delete_records(&offsets, &options).await.map_err(LogError::kafka(what()))?;
    Ok(Some(before))
}

/// The offset of the first commit record that must stay, if any before it may go.
fn first_needed(kafka: &Kafka, commits: &str, row_topics: &[(String, u32)]) -> Result<Option<i64>, LogError> {
    let reader = Reader::new(kafka)?;
    let span = reader.span(commits, 0)?;
    let latest = span.end - KEPT;
    if span.low >= latest {
        return Ok(None);
    }
    let mut kept_from = HashMap::new();
    for (topic, partitions) in row_topics {
        for partition in 0..*partitions as i32 {
            kept_from.insert((topic.as_str(), partition), reader.span(topic, partition)?.low);
        }
    }
    let mut needed = latest;
    reader.read(commits, 0, span.low, |message| {
        if message.offset() >= latest {
            return Ok(false);
        }
        let record = commit_record(message)?;
        let ranges: &[PartitionRange] = match &record.body {
            Some(Body::Txns(txns)) => &txns.ranges,
            Some(Body::Part(part)) => &part.ranges,
            _ => &[],
        };
        // A partition that the layout does not have any more is none of ours to judge: its rows may be kept.
        let names_kept = ranges.iter().any(|range| {
            kept_from.get(&(range.topic.as_str(), range.partition)).is_none_or(|low| range.last >= *low)
        });
        if names_kept {
            needed = message.offset();
        }
        Ok(!names_kept)
    })?;
    Ok((needed > span.low).then_some(needed))
}
