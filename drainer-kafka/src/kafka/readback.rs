//! Reads the commit stream behind the sink, as any consumer would, and reports the position that is really there. Only
//! that position lets pumps delete: a broker that acknowledged a commit and lost it would otherwise cost data.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use node::shutdown::Shutdown;
use rdkafka::consumer::Consumer as _;
use rdkafka::error::KafkaError;
use rdkafka::{Offset, TopicPartitionList};

use tidb::ts::Tso;

use super::reader::{commit_record, is_passing};
use super::{Kafka, LogError, blocking};
use crate::sequence::TailReader;
use crate::status::Status;

/// Tells the blocking loop to end, also when [`follow`] is dropped halfway: a loop that nobody stops keeps the process from
/// ending.
#[derive(Default)]
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Follows `topic` from offset `from`, where epoch `epoch` begins, until the shutdown.
pub async fn follow(
    kafka: Kafka,
    topic: String,
    from: i64,
    epoch: u64,
    status: Status,
    shutdown: Shutdown,
) -> Result<(), LogError> {
    let stop = StopOnDrop::default();
    let stopped = stop.0.clone();
    let reading = blocking(move || {
        let what = || format!("reading {topic} back");
        let consumer = kafka.reader(true)?;
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(&topic, 0, Offset::Offset(from)).map_err(LogError::kafka(what()))?;
        consumer.assign(&assignment).map_err(LogError::kafka(what()))?;
        let mut fold = TailReader::default();
        while !stopped.load(Ordering::Relaxed) {
            let message = match consumer.poll(Duration::from_millis(100)) {
                Some(Ok(message)) => message,
                None | Some(Err(KafkaError::PartitionEOF(_))) => continue,
                Some(Err(source)) if is_passing(&source) => continue,
                Some(Err(source)) => return Err(LogError::Kafka { what: what(), source }),
            };
            let record = commit_record(&message)?;
            if record.epoch > epoch {
                return Err(LogError::Fenced { ours: epoch, seen: record.epoch });
            }
            fold.push(&record).map_err(|source| LogError::Tail { topic: topic.clone(), source })?;
            let held = (record.pull_from > 0).then_some(record.pull_from);
            let needed = held.unwrap_or(record.watermark).min(record.watermark);
            status.read_back(Tso::new(record.watermark), Tso::new(needed));
        }
        Ok(())
    });
    tokio::pin!(reading);
    tokio::select! {
        done = &mut reading => done,
        () = shutdown.cancelled() => {
            drop(stop);
            reading.await
        }
    }
}
