//! What the end of the commit stream says: where the feed stands and how it goes on. Pure.
//!
//! The commit stream is the drainer's only checkpoint. A starting drainer folds its last records, oldest first, from
//! one that carries a summary, into a [`Tail`].

use std::collections::BTreeMap;

use schemas::sluice::v1::commit_record::Body;
use schemas::sluice::v1::{CommitRecord, Part, PartitionRange};
use tidb::ts::Tso;

/// A partition of a row topic.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicPartition {
    /// Topic name.
    pub topic: String,
    /// Partition number, from 0.
    pub partition: i32,
}

/// The topics that rows go to and their partition counts, as fixed in the commit stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowLayout {
    /// Name and number of partitions.
    pub topics: Vec<(String, u32)>,
}

impl RowLayout {
    /// As the contract spells it.
    pub fn to_proto(&self) -> schemas::sluice::v1::Layout {
        schemas::sluice::v1::Layout {
            topics: self
                .topics
                .iter()
                .map(|(topic, partitions)| schemas::sluice::v1::TopicLayout {
                    topic: topic.clone(),
                    partitions: *partitions as i32,
                })
                .collect(),
            partition_by: "table".to_owned(),
            hash: "murmur2".to_owned(),
        }
    }

    fn from_proto(layout: &schemas::sluice::v1::Layout) -> Self {
        let topic = |t: &schemas::sluice::v1::TopicLayout| (t.topic.clone(), t.partitions.max(0) as u32);
        Self { topics: layout.topics.iter().map(topic).collect() }
    }
}

/// A transaction whose first parts are in Kafka and whose closing record is not.
#[derive(Clone, Debug, PartialEq)]
pub struct Unfinished {
    /// Its number.
    pub seq: u64,
    /// Its place.
    pub commit_ts: u64,
    /// Its identity.
    pub start_ts: u64,
    /// The next part's number.
    pub next_part: u32,
    /// Changes already in Kafka.
    pub changes: u32,
    /// Digest of their records.
    pub digest: u32,
}

impl Unfinished {
    fn after(part: &Part) -> Self {
        Self {
            seq: part.seq,
            commit_ts: part.commit_ts,
            start_ts: part.start_ts,
            next_part: part.part + 1,
            changes: part.changes_so_far,
            digest: part.digest_so_far,
        }
    }

    /// As the summary carries it.
    pub fn to_proto(&self) -> Part {
        Part {
            seq: self.seq,
            commit_ts: self.commit_ts,
            start_ts: self.start_ts,
            part: self.next_part.saturating_sub(1),
            changes_so_far: self.changes,
            digest_so_far: self.digest,
            ..Part::default()
        }
    }
}

/// What the schema topic holds of a feed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchemaExtent {
    /// One past the last offset.
    pub end: i64,
    /// Distinct record keys.
    pub keys: u64,
}

impl SchemaExtent {
    /// As the summary carries it.
    pub fn to_proto(self) -> schemas::sluice::v1::SchemaExtent {
        schemas::sluice::v1::SchemaExtent { end: self.end, keys: self.keys }
    }
}

/// Where the feed stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Tail {
    /// The feed's name.
    pub feed_id: Vec<u8>,
    /// The upstream cluster.
    pub cluster_id: u64,
    /// Version of the contract that was written.
    pub contract_version: u32,
    /// The last epoch.
    pub epoch: u64,
    /// Everything at or below it is in Kafka.
    pub watermark: Tso,
    /// Number of the next transaction.
    pub next_seq: u64,
    /// Topics and partition counts.
    pub layout: RowLayout,
    /// Hash of the filter and partition rules.
    pub rules_hash: u32,
    /// The greatest offset named per partition.
    pub ends: BTreeMap<TopicPartition, i64>,
    /// A transaction in the middle of which the log ends.
    pub unfinished: Option<Unfinished>,
    /// Where to read the pumps from: the watermark, or before it where values are held.
    pub pull_from: Tso,
    /// What the schema topic must hold at least; `None`: a build wrote the log that did not count it.
    pub schema: Option<SchemaExtent>,
    /// What is missing up to here is in the log as gaps; zero unless that lies above the watermark.
    pub declared_to: Tso,
}

/// Why the commit stream cannot be continued.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TailError {
    /// Two feeds in one stream.
    #[error(
        "the commit stream holds records of two feeds, {first} and {second}: another drainer wrote into it"
    )]
    ForeignFeed {
        /// Feed id before.
        first: String,
        /// Feed id after.
        second: String,
    },
    /// A number that may only grow fell.
    #[error("{what} of the commit stream falls from {from} to {to}")]
    WentBack {
        /// Which number.
        what: &'static str,
        /// Before.
        from: u64,
        /// After.
        to: u64,
    },
    /// A record without a body.
    #[error(
        "the commit stream holds a record of a kind this version does not know; a newer drainer wrote it"
    )]
    UnknownRecord,
}

/// Reads the end of the stream, oldest record first. Records before the first summary only count for nothing.
#[derive(Clone, Debug, Default)]
pub struct TailReader {
    tail: Option<Tail>,
}

impl TailReader {
    /// Takes the next record.
    pub fn push(&mut self, record: &CommitRecord) -> Result<(), TailError> {
        let Some(body) = &record.body else { return Err(TailError::UnknownRecord) };
        if let Some(summary) = &record.summary {
            let ends = summary
                .ends
                .iter()
                .map(|end| (TopicPartition { topic: end.topic.clone(), partition: end.partition }, end.last));
            let tail = Tail {
                feed_id: record.feed_id.to_vec(),
                cluster_id: summary.cluster_id,
                contract_version: summary.contract_version,
                epoch: record.epoch,
                watermark: Tso::new(record.watermark),
                next_seq: record.next_seq,
                layout: summary.layout.as_ref().map(RowLayout::from_proto).unwrap_or_default(),
                rules_hash: summary.rules_hash,
                ends: ends.collect(),
                unfinished: summary.unfinished.as_ref().map(Unfinished::after),
                pull_from: Tso::new(record.watermark),
                schema: summary
                    .schema
                    .as_ref()
                    .map(|extent| SchemaExtent { end: extent.end, keys: extent.keys }),
                declared_to: Tso::new(summary.declared_to),
            };
            if let Some(before) = &self.tail {
                before.check_successor(record)?;
            }
            self.tail = Some(tail);
        }
        let Some(tail) = &mut self.tail else { return Ok(()) };
        tail.check_successor(record)?;
        tail.epoch = record.epoch;
        tail.watermark = Tso::new(record.watermark);
        tail.next_seq = record.next_seq;
        tail.pull_from = match record.pull_from {
            0 => tail.watermark,
            from => Tso::new(from).min(tail.watermark),
        };
        match body {
            Body::Txns(txns) => {
                tail.name_ranges(&txns.ranges);
                tail.unfinished = None;
            }
            Body::Part(part) => {
                tail.name_ranges(&part.ranges);
                tail.unfinished = Some(Unfinished::after(part));
            }
            Body::Start(_) | Body::Tick(_) => {}
            Body::Gap(gap) => tail.declared_to = tail.declared_to.max(Tso::new(gap.to)),
            Body::Layout(layout) => tail.layout = RowLayout::from_proto(layout),
        }
        if tail.declared_to <= tail.watermark {
            tail.declared_to = Tso::ZERO;
        }
        Ok(())
    }

    /// Where the feed stands; `None` if no record with a summary was among those read.
    pub fn finish(self) -> Option<Tail> {
        self.tail
    }
}

impl Tail {
    fn check_successor(&self, record: &CommitRecord) -> Result<(), TailError> {
        if record.feed_id != self.feed_id {
            return Err(TailError::ForeignFeed { first: hex(&self.feed_id), second: hex(&record.feed_id) });
        }
        let numbers = [
            ("epoch", self.epoch, record.epoch),
            ("watermark", self.watermark.get(), record.watermark),
            ("next_seq", self.next_seq, record.next_seq),
        ];
        match numbers.into_iter().find(|(_, from, to)| to < from) {
            Some((what, from, to)) => Err(TailError::WentBack { what, from, to }),
            None => Ok(()),
        }
    }

    fn name_ranges(&mut self, ranges: &[PartitionRange]) {
        for range in ranges {
            let at = TopicPartition { topic: range.topic.clone(), partition: range.partition };
            let end = self.ends.entry(at).or_insert(range.last);
            *end = range.last.max(*end);
        }
    }
}

/// Bytes as lower-case hexadecimal, as feed ids are shown.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
