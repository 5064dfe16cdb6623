//! A feed written by the book, in memory: the drainer's side of the contract, as simple as it can be.
#![allow(unreachable_pub, dead_code, reason = "shared by several test binaries")]

use std::collections::BTreeMap;

use prost::Message as _;
use schemas::digest::{TxnDigest, record_checksum};
use schemas::sluice::v1::{
    CommitRecord, DdlEntry, Gap, Part, PartitionRange, RowMeta, Start, Tick, Txn, TxnKind, Txns,
    commit_record::Body,
};

pub const TOPIC: &str = "rows";
pub const FEED: [u8; 16] = [9; 16];

/// A record of a row partition.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub offset: i64,
    pub meta: Option<Vec<u8>>,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
}

/// A change: its table, its partition and its value, cut into so many records.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    pub table_id: i64,
    pub partition: i32,
    pub value: Vec<u8>,
    pub records: u32,
}

/// An upstream transaction.
#[derive(Clone, Debug, PartialEq)]
pub struct Transaction {
    pub commit_ts: u64,
    pub changes: Vec<Change>,
    pub ddl: bool,
}

/// The log so far.
#[derive(Clone, Debug, Default)]
pub struct Feed {
    pub commits: Vec<(i64, CommitRecord)>,
    pub partitions: BTreeMap<i32, Vec<Record>>,
    pub epoch: u64,
    pub seq: u64,
    pub watermark: u64,
    next_offsets: BTreeMap<i32, i64>,
    next_commit: i64,
    part: Option<(TxnDigest, u32, u32)>,
}

impl Feed {
    fn commit(&mut self, body: Body) {
        let record = CommitRecord {
            feed_id: FEED.to_vec().into(),
            epoch: self.epoch,
            watermark: self.watermark,
            next_seq: self.seq + 1,
            body: Some(body),
            ..Default::default()
        };
        self.commits.push((self.next_commit, record));
        // A marker follows.
        self.next_commit += 2;
    }

    pub fn start(&mut self, resumed_from: u64) {
        self.epoch += 1;
        self.watermark = self.watermark.max(resumed_from);
        let start = Start {
            cluster_id: 1,
            contract_version: 1,
            resumed_from: self.watermark,
            next_seq: self.seq + 1,
            layout: None,
            value_format: "protobuf".into(),
            rules_hash: 0,
            schema_topic: String::new(),
        };
        self.commit(Body::Start(start));
    }

    pub fn tick(&mut self, watermark: u64) {
        self.watermark = watermark;
        self.commit(Body::Tick(Tick {}));
    }

    pub fn gap(&mut self, to: u64) {
        let gap = Gap { from: self.watermark, to, cause: "test".into() };
        self.commit(Body::Gap(gap));
    }

    /// Something in a partition that is not ours; `None` leaves a hole (a marker, an aborted record).
    pub fn noise(&mut self, partition: i32, meta: Option<RowMeta>, visible: bool) {
        let offset = self.offset(partition);
        if visible {
            let (key, value) = (None, Some(b"noise".to_vec()));
            let meta = meta.map(|meta| meta.encode_to_vec());
            self.partitions.entry(partition).or_default().push(Record { offset, meta, key, value });
        }
    }

    fn offset(&mut self, partition: i32) -> i64 {
        let next = self.next_offsets.entry(partition).or_insert(0);
        *next += 1;
        *next - 1
    }

    fn rows(
        &mut self,
        txn: &Transaction,
        seq: u64,
        first: u32,
        changes: &[Change],
        digest: &mut TxnDigest,
        ranges: &mut BTreeMap<i32, PartitionRange>,
    ) {
        for (change, number) in changes.iter().zip(first..) {
            let pieces = change.records.max(1) as usize;
            let size = change.value.len().div_ceil(pieces).max(1);
            for record in 0..pieces {
                let from = (record * size).min(change.value.len());
                let to = ((record + 1) * size).min(change.value.len());
                let key = b"key".to_vec();
                let value = change.value[from..to].to_vec();
                let checksum = record_checksum(Some(&key), Some(&value));
                let meta = RowMeta {
                    epoch: self.epoch,
                    seq,
                    commit_ts: txn.commit_ts,
                    start_ts: txn.commit_ts - 1,
                    change: number,
                    changes: txn.changes.len() as u32,
                    record: record as u32,
                    records: pieces as u32,
                    table_id: change.table_id,
                    schema_version: 1,
                    origin: None,
                    checksum,
                };
                digest.push(change.table_id, number, checksum);
                let partition = change.partition;
                let offset = self.offset(partition);
                let record =
                    Record { offset, meta: Some(meta.encode_to_vec()), key: Some(key), value: Some(value) };
                self.partitions.entry(partition).or_default().push(record);
                let range = ranges.entry(partition).or_insert_with(|| PartitionRange {
                    topic: TOPIC.into(),
                    partition,
                    first: offset,
                    last: offset,
                    count: 0,
                });
                range.last = offset;
                range.count += 1;
            }
        }
    }

    /// A batch of transactions in one commit record.
    pub fn txns(&mut self, txns: &[Transaction]) {
        let mut entries = Vec::new();
        let mut ranges = BTreeMap::new();
        for txn in txns {
            self.seq += 1;
            let mut digest = TxnDigest::default();
            self.rows(txn, self.seq, 0, &txn.changes, &mut digest, &mut ranges);
            entries.push(self.entry(txn, digest, false));
            self.watermark = txn.commit_ts;
        }
        self.commit(Body::Txns(Txns { txns: entries, ranges: ranges.into_values().collect() }));
        for partition in self.next_offsets.values_mut() {
            *partition += 1;
        }
    }

    fn entry(&self, txn: &Transaction, digest: TxnDigest, parted: bool) -> Txn {
        Txn {
            seq: self.seq,
            commit_ts: txn.commit_ts,
            start_ts: txn.commit_ts - 1,
            kind: if txn.ddl { TxnKind::Ddl } else { TxnKind::Rows }.into(),
            changes: txn.changes.len() as u32,
            digest: digest.value(),
            origin: None,
            ddl: txn.ddl.then(|| DdlEntry { job_id: 5, statement: "SELECT 1".into(), ..Default::default() }),
            parted,
        }
    }

    /// A piece of the next transaction: changes `first..first + count`.
    pub fn part(&mut self, txn: &Transaction, first: u32, count: u32) {
        let (mut digest, part, _) = self.part.take().unwrap_or_default();
        let mut ranges = BTreeMap::new();
        let changes = &txn.changes[first as usize..(first + count) as usize];
        self.rows(txn, self.seq + 1, first, changes, &mut digest, &mut ranges);
        let changes_so_far = first + count;
        self.part = Some((digest, part + 1, changes_so_far));
        self.commit(Body::Part(Part {
            seq: self.seq + 1,
            commit_ts: txn.commit_ts,
            start_ts: txn.commit_ts - 1,
            part,
            changes_so_far,
            last: changes_so_far as usize == txn.changes.len(),
            ranges: ranges.into_values().collect(),
            digest_so_far: digest.value(),
            origin: None,
        }));
        for partition in self.next_offsets.values_mut() {
            *partition += 1;
        }
    }

    /// Closes a transaction that came in parts.
    pub fn close(&mut self, txn: &Transaction) {
        let (digest, ..) = self.part.take().unwrap_or_default();
        self.seq += 1;
        let entry = self.entry(txn, digest, true);
        self.watermark = txn.commit_ts;
        self.commit(Body::Txns(Txns { txns: vec![entry], ranges: vec![] }));
    }
}
