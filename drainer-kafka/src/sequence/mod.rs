//! Numbers transactions and writes the commit stream. Pure: it hands out records and takes delivery results; the task
//! around it ([`crate::kafka::sink`]) owns the producer.
//!
//! A [`Sequencer`] lives for one epoch. Within it everything goes forward: `seq` without gaps, the watermark never
//! falls, offsets per partition only grow. One Kafka transaction is one [`Batch`]: rows first; when all their offsets
//! are known, the commit records that name them.
//!
//! ```text
//!   open ─▶ row… ─▶ close ─▶ open ─▶ row… ─▶ close ─▶ settle(offsets) ─▶ TXNS
//!   open ─▶ row… ─▶ cut ─▶ settle ─▶ PART            (a transaction larger than a Kafka transaction)
//!              row… ─▶ close ─▶ settle ─▶ PART(last), TXNS
//! ```
//!
//! After a crash or an unknown outcome the whole value is thrown away and made anew from the [`Tail`] of the log.

mod error;
mod tail;

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use prost::Message;
use schemas::MAX_COMMIT_RECORD;
use schemas::digest::TxnDigest;
use schemas::sluice::v1::commit_record::Body;
use schemas::sluice::v1::{
    CommitRecord, DdlEntry, Gap, Origin, Part, PartitionEnd, PartitionRange, RowMeta, Start, Summary, Tick,
    Txn, TxnKind, Txns,
};
use tidb::ts::{CommitTs, StartTs, Tso};

pub use self::error::SequenceError;
pub use self::tail::{RowLayout, SchemaExtent, Tail, TailError, TailReader, TopicPartition, Unfinished, hex};
use crate::claims::Claim;

/// A commit record carries a summary at least this often.
const SUMMARY_EVERY: u32 = 500;

/// Room that a commit record keeps for its envelope and for the rounding of estimates.
const ENVELOPE: usize = 1024;

/// A row record's place within the layout: index of the topic, partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowPartition {
    /// Index into [`RowLayout::topics`].
    pub topic: u16,
    /// Partition number.
    pub partition: i32,
}

/// One record of a row topic, shaped and serialised; what is still missing is its number.
#[derive(Clone, Debug)]
pub struct RowRecord {
    /// Where it goes.
    pub place: RowPartition,
    /// The record's key, if the table has one.
    pub key: Option<Bytes>,
    /// The value, or a slice of a large one.
    pub value: Bytes,
    /// What the value only names: written to a file before the record goes out.
    pub claim: Option<Claim>,
    /// CRC-32C of key and value.
    pub checksum: u32,
    /// Number of the change in its transaction, from 0.
    pub change: u32,
    /// Number of this record in its change, from 0.
    pub record: u32,
    /// Records of this change.
    pub records: u32,
    /// The table whose definition shaped it.
    pub table_id: i64,
    /// The version of that definition.
    pub schema_version: i64,
}

impl RowRecord {
    /// Bytes it takes in memory and, roughly, in Kafka (or in a file beside it).
    pub fn size(&self) -> usize {
        const HEADERS: usize = 128;
        let claimed = self.claim.as_ref().map_or(0, |claim| claim.content.len());
        self.key.as_ref().map_or(0, Bytes::len) + self.value.len() + claimed + HEADERS
    }
}

/// What a transaction is, before its rows.
#[derive(Clone, Debug)]
pub struct TxnHeader {
    /// When it began.
    pub start_ts: StartTs,
    /// Its place in the order.
    pub commit_ts: CommitTs,
    /// Changes that pass the filters.
    pub changes: u32,
    /// Set for a DDL.
    pub ddl: Option<DdlEntry>,
    /// Where it was first made, if another Sluice applied it here.
    pub origin: Option<Origin>,
}

/// Where the records of one partition went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivered {
    /// First offset.
    pub first: i64,
    /// Last offset.
    pub last: i64,
    /// Number of records.
    pub count: u64,
}

/// The transaction whose rows are being written.
#[derive(Debug)]
struct Open {
    header: TxnHeader,
    seq: u64,
    digest: TxnDigest,
    /// Changes in Kafka or in this batch.
    changes: u32,
    /// Parts written so far.
    parts: u32,
}

/// Where an opened transaction begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Changes that are in Kafka already, written by a predecessor: to be left out.
    pub skip_changes: u32,
}

/// The feed's own constants.
#[derive(Clone, Debug)]
pub struct Feed {
    /// Random, 16 bytes.
    pub feed_id: Bytes,
    /// Upstream cluster.
    pub cluster_id: u64,
    /// Row topics.
    pub layout: RowLayout,
    /// Hash of the filter and partition rules.
    pub rules_hash: u32,
    /// Name of the schema topic.
    pub schema_topic: String,
}

/// Numbers transactions and composes commit records, for one epoch.
#[derive(Debug)]
pub struct Sequencer {
    feed: Feed,
    epoch: u64,
    next_seq: u64,
    watermark: Tso,
    ends: BTreeMap<TopicPartition, i64>,
    unfinished: Option<Unfinished>,
    open: Option<Open>,
    since_summary: u32,
    /// What the schema topic holds.
    schema: SchemaExtent,
    /// What is missing up to here is in the log as gaps.
    declared_to: Tso,
    /// Rows after it brought values that are held; see `CommitRecord.pull_from`.
    held_after: Option<Tso>,
    batch: Batch,
}

/// What the current Kafka transaction holds.
#[derive(Debug, Default)]
struct Batch {
    txns: Vec<Txn>,
    sent: HashMap<RowPartition, u64>,
    bytes: usize,
    entries: usize,
    changes: u64,
}

impl Sequencer {
    /// A feed that has no record yet; everything at or below `position` is left out.
    pub fn fresh(feed: Feed, position: Tso) -> Self {
        Self {
            feed,
            epoch: 1,
            next_seq: 1,
            watermark: position,
            ends: BTreeMap::new(),
            unfinished: None,
            open: None,
            since_summary: 0,
            schema: SchemaExtent::default(),
            declared_to: Tso::ZERO,
            held_after: None,
            batch: Batch::default(),
        }
    }

    /// Goes on where the log ends, in the next epoch, beside a schema topic that holds `schema`.
    pub fn resume(feed: Feed, tail: &Tail, schema: SchemaExtent) -> Self {
        Self {
            epoch: tail.epoch + 1,
            next_seq: tail.next_seq,
            ends: tail.ends.clone(),
            unfinished: tail.unfinished.clone(),
            schema,
            declared_to: tail.declared_to,
            ..Self::fresh(feed, tail.watermark)
        }
    }

    /// This epoch's number.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Everything at or below it is in Kafka, or in the batch at hand.
    pub fn watermark(&self) -> Tso {
        self.watermark
    }

    /// Number of the next transaction.
    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    /// The first record of the epoch.
    pub fn start(&mut self) -> CommitRecord {
        self.record(Body::Start(Start {
            cluster_id: self.feed.cluster_id,
            contract_version: schemas::CONTRACT_VERSION,
            resumed_from: self.watermark.get(),
            next_seq: self.next_seq,
            layout: Some(self.feed.layout.to_proto()),
            value_format: "protobuf".to_owned(),
            rules_hash: self.feed.rules_hash,
            schema_topic: self.feed.schema_topic.clone(),
        }))
    }

    /// Nothing but the watermark.
    pub fn tick(&mut self) -> CommitRecord {
        self.record(Body::Tick(Tick {}))
    }

    /// Declares that transactions in (from, to] are missing; others in that range may follow. Everything up to `from` has been
    /// sequenced. `None` if the range is behind the watermark.
    pub fn gap(&mut self, from: Tso, to: Tso, cause: String) -> Option<CommitRecord> {
        self.advance(from);
        if to <= self.watermark {
            return None;
        }
        self.declared_to = self.declared_to.max(to);
        let from = self.watermark.get();
        Some(self.record(Body::Gap(Gap { from, to: to.get(), cause })))
    }

    /// The Kafka transaction at hand put records into the schema topic, of so many new keys. Its commit record will say so.
    pub fn schema_written(&mut self, delivered: Delivered, keys: u64) -> Result<(), SequenceError> {
        if delivered.first < self.schema.end {
            let (topic, named) = (self.feed.schema_topic.clone(), self.schema.end - 1);
            return Err(SequenceError::OffsetsWentBack { topic, partition: 0, named, got: delivered.first });
        }
        self.schema = SchemaExtent { end: delivered.last + 1, keys: self.schema.keys + keys };
        self.since_summary = 0;
        Ok(())
    }

    /// Everything at or below `watermark` has been sequenced, or does not exist.
    pub fn advance(&mut self, watermark: Tso) {
        self.watermark = self.watermark.max(watermark);
    }

    /// The first transaction whose values for coming columns are held, up to the batch at hand.
    pub fn held(&mut self, oldest: Option<CommitTs>) {
        self.held_after = oldest.map(|commit_ts| commit_ts.0.prev());
    }

    /// True if nothing is in the batch.
    pub fn batch_is_empty(&self) -> bool {
        self.batch.txns.is_empty() && self.open.is_none() && self.batch.sent.is_empty()
    }

    /// True between open and close, and after the close of a transaction in parts until it is settled. Then the batch
    /// must be settled before another transaction is opened.
    pub fn has_open(&self) -> bool {
        self.open.is_some()
    }

    /// Bytes of row records in the batch.
    pub fn batch_bytes(&self) -> usize {
        self.batch.bytes
    }

    /// Transactions and changes in the batch.
    pub fn batch_counts(&self) -> (usize, u64) {
        (self.batch.txns.len(), self.batch.changes)
    }

    /// True if an entry of this transaction fits into the batch's commit record beside `partitions` more ranges.
    pub fn fits(&self, header: &TxnHeader) -> bool {
        let ddl = header.ddl.as_ref().map_or(0, Message::encoded_len);
        const ROW_ENTRY: usize = 128;
        self.batch.entries + ddl + ROW_ENTRY + self.fixed_size() < MAX_COMMIT_RECORD
    }

    /// What a commit record may take besides its entries: ranges of every partition, and a summary.
    fn fixed_size(&self) -> usize {
        let partition = |(topic, partitions): &(String, u32)| (topic.len() + 48) * *partitions as usize;
        let all: usize = self.feed.layout.topics.iter().map(partition).sum();
        let ends: usize = self.ends.keys().map(|at| at.topic.len() + 32).sum();
        let layout: usize = self.feed.layout.topics.iter().map(|(topic, _)| topic.len() + 16).sum();
        all + ends + layout + ENVELOPE
    }

    /// Begins the next transaction.
    pub fn open(&mut self, header: TxnHeader) -> Result<Opened, SequenceError> {
        let commit_ts = header.commit_ts;
        if commit_ts.0 <= self.watermark {
            return Err(SequenceError::OutOfOrder { commit_ts, watermark: self.watermark });
        }
        let open = match self.unfinished.take() {
            None => Open { header, seq: self.next_seq, digest: TxnDigest::default(), changes: 0, parts: 0 },
            Some(unfinished)
                if unfinished.commit_ts == commit_ts.get()
                    && unfinished.start_ts == header.start_ts.get()
                    && unfinished.changes <= header.changes =>
            {
                Open {
                    header,
                    seq: unfinished.seq,
                    digest: TxnDigest::resume(unfinished.digest),
                    changes: unfinished.changes,
                    parts: unfinished.next_part,
                }
            }
            Some(unfinished) => {
                return Err(SequenceError::UnfinishedElsewhere {
                    changes: unfinished.changes,
                    commit_ts: unfinished.commit_ts,
                    next: commit_ts,
                });
            }
        };
        let skip_changes = open.changes;
        self.open = Some(open);
        Ok(Opened { skip_changes })
    }

    /// Numbers the next record of the open transaction; the result goes into its header. Without an open transaction
    /// there is nothing to number: `None`.
    pub fn row(&mut self, record: &RowRecord) -> Option<RowMeta> {
        let open = self.open.as_mut()?;
        open.digest.push(record.table_id, record.change, record.checksum);
        open.changes = record.change + 1;
        *self.batch.sent.entry(record.place).or_default() += 1;
        self.batch.bytes += record.size();
        if record.record == 0 {
            self.batch.changes += 1;
        }
        Some(RowMeta {
            epoch: self.epoch,
            seq: open.seq,
            commit_ts: open.header.commit_ts.get(),
            start_ts: open.header.start_ts.get(),
            change: record.change,
            changes: open.header.changes,
            record: record.record,
            records: record.records,
            table_id: record.table_id,
            schema_version: record.schema_version,
            origin: open.header.origin,
            checksum: record.checksum,
        })
    }

    /// Ends the open transaction; all its rows are in the batch.
    pub fn close(&mut self) -> Result<(), SequenceError> {
        let Some(open) = &self.open else { return Ok(()) };
        let commit_ts = open.header.commit_ts;
        if open.changes != open.header.changes {
            return Err(SequenceError::ChangesDiffer {
                commit_ts,
                announced: open.header.changes,
                brought: open.changes,
            });
        }
        // A transaction with parts keeps its entry apart: its last part must come first.
        if open.parts == 0 {
            let txn = open.entry();
            self.enter(txn)?;
            self.open = None;
        }
        Ok(())
    }

    fn enter(&mut self, txn: Txn) -> Result<(), SequenceError> {
        let bytes = txn.encoded_len() + 8;
        let commit_ts = CommitTs::new(txn.commit_ts);
        if bytes + self.fixed_size() > MAX_COMMIT_RECORD {
            return Err(SequenceError::EntryTooLarge { commit_ts, bytes });
        }
        self.batch.entries += bytes;
        self.watermark = commit_ts.0;
        self.next_seq = txn.seq + 1;
        self.batch.txns.push(txn);
        Ok(())
    }

    /// Ends the batch: checks where its records went and returns the commit records that name them, in order. With a
    /// transaction still open, that is a Part; the transaction goes on in the next batch.
    pub fn settle(
        &mut self,
        delivered: &HashMap<RowPartition, Delivered>,
    ) -> Result<Vec<CommitRecord>, SequenceError> {
        let ranges = self.ranges(delivered)?;
        let batch = std::mem::take(&mut self.batch);
        let mut records = Vec::new();
        let Some(open) = &mut self.open else {
            let body = if batch.txns.is_empty() {
                Body::Tick(Tick {})
            } else {
                Body::Txns(Txns { txns: batch.txns, ranges })
            };
            records.push(self.record(body));
            return Ok(records);
        };
        if !batch.txns.is_empty() {
            return Err(SequenceError::Mixed { commit_ts: open.header.commit_ts });
        }
        let last = open.changes == open.header.changes;
        let part = Part {
            seq: open.seq,
            commit_ts: open.header.commit_ts.get(),
            start_ts: open.header.start_ts.get(),
            part: open.parts,
            changes_so_far: open.changes,
            last,
            ranges,
            digest_so_far: open.digest.value(),
            origin: open.header.origin,
        };
        open.parts += 1;
        let entry = last.then(|| open.entry());
        records.push(self.record(Body::Part(part)));
        if let Some(entry) = entry {
            self.open = None;
            self.enter(entry)?;
            let txns = std::mem::take(&mut self.batch).txns;
            records.push(self.record(Body::Txns(Txns { txns, ranges: Vec::new() })));
        }
        Ok(records)
    }

    fn ranges(
        &mut self,
        delivered: &HashMap<RowPartition, Delivered>,
    ) -> Result<Vec<PartitionRange>, SequenceError> {
        let mut sent: Vec<(RowPartition, u64)> =
            self.batch.sent.iter().map(|(place, n)| (*place, *n)).collect();
        sent.sort_unstable();
        let mut ranges = Vec::with_capacity(sent.len());
        for (place, sent) in sent {
            let topic = self
                .feed
                .layout
                .topics
                .get(usize::from(place.topic))
                .map(|(t, _)| t.clone())
                .unwrap_or_default();
            let partition = place.partition;
            let Some(at) = delivered.get(&place).filter(|at| at.count == sent) else {
                let delivered = delivered.get(&place).map_or(0, |at| at.count);
                return Err(SequenceError::Miscounted { topic, partition, sent, delivered });
            };
            let end = self.ends.entry(TopicPartition { topic: topic.clone(), partition }).or_insert(-1);
            if at.first <= *end {
                return Err(SequenceError::OffsetsWentBack { topic, partition, named: *end, got: at.first });
            }
            *end = at.last;
            ranges.push(PartitionRange { topic, partition, first: at.first, last: at.last, count: at.count });
        }
        Ok(ranges)
    }

    fn record(&mut self, body: Body) -> CommitRecord {
        let due = self.since_summary == 0 || self.since_summary >= SUMMARY_EVERY;
        let summary = due.then(|| self.summary());
        self.since_summary = if due { 1 } else { self.since_summary + 1 };
        let seq_of_open = self.open.as_ref().map(|open| open.seq);
        CommitRecord {
            feed_id: self.feed.feed_id.clone(),
            epoch: self.epoch,
            watermark: self.watermark.get(),
            next_seq: seq_of_open.unwrap_or(self.next_seq),
            summary,
            pull_from: self.held_after.map_or(0, Tso::get),
            body: Some(body),
        }
    }

    fn summary(&self) -> Summary {
        let open = self.open.as_ref().filter(|open| open.parts > 0).map(|open| Unfinished {
            seq: open.seq,
            commit_ts: open.header.commit_ts.get(),
            start_ts: open.header.start_ts.get(),
            next_part: open.parts,
            changes: open.changes,
            digest: open.digest.value(),
        });
        Summary {
            layout: Some(self.feed.layout.to_proto()),
            ends: self
                .ends
                .iter()
                .map(|(at, last)| PartitionEnd {
                    topic: at.topic.clone(),
                    partition: at.partition,
                    last: *last,
                })
                .collect(),
            rules_hash: self.feed.rules_hash,
            cluster_id: self.feed.cluster_id,
            contract_version: schemas::CONTRACT_VERSION,
            unfinished: self.unfinished.clone().or(open).map(|unfinished| unfinished.to_proto()),
            schema: Some(self.schema.to_proto()),
            declared_to: if self.declared_to > self.watermark { self.declared_to.get() } else { 0 },
        }
    }
}

impl Open {
    fn entry(&self) -> Txn {
        Txn {
            seq: self.seq,
            commit_ts: self.header.commit_ts.get(),
            start_ts: self.header.start_ts.get(),
            kind: if self.header.ddl.is_some() { TxnKind::Ddl } else { TxnKind::Rows }.into(),
            changes: self.header.changes,
            digest: self.digest.value(),
            origin: self.header.origin,
            ddl: self.header.ddl.clone(),
            parted: self.parts > 0,
        }
    }
}

#[cfg(test)]
mod tests;
