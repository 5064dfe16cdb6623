//! Whole transactions out of a commit stream and partitions of rows. Pure, but for rows beyond the byte budget, which
//! wait in unnamed temporary files.
//!
//! For each commit record: [`Aligner::begin`] checks it against the chain and says which ranges of which partitions to
//! read; the reader hands over every record it sees there ([`Aligner::row`]) and says when it is past a range
//! ([`Aligner::end_range`]); [`Aligner::finish`] gives the transactions, in order, each verified whole.
//!
//! A range is whole when exactly `count` records of the commit record's epoch and seqs were seen between `first` and
//! `last`; whatever else lies there (aborted records, strangers, a fenced writer's) is counted and ignored. A transaction
//! is whole when its changes 0..n are there, each with its records 0..m, and the digest over all of them agrees.
//!
//! Large transactions come as parts, each in a commit record of its own; they wait (on disk past the budget) until the
//! entry that closes them. Until then the position stays before the first part, so that a restart reads them again.

mod error;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::iter::Peekable;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message as _;
use schemas::digest::{TxnDigest, record_checksum};
use schemas::sluice::v1::{
    CommitRecord, Gap, Layout, Part, PartitionRange, RowMeta, Start as StartRecord, Txn,
};
use schemas::sluice::v1::{TxnKind, commit_record::Body};
use tidb::ts::CommitTs;

pub use self::error::AlignError;
use crate::chain::{Chain, ChainError, Start, Verdict};
use crate::position::Position;
use crate::spill::{RowLog, RowRecord, Sorted, Sorter};

/// What to do after [`Aligner::begin`].
#[derive(Debug)]
pub enum Step {
    /// The record is of a fenced writer: nothing.
    Stale,
    /// An epoch began. `attached` is the first position of a first attach.
    Started {
        /// The START.
        start: StartRecord,
        /// Its epoch.
        epoch: u64,
        /// `None` while a large transaction is unfinished.
        position: Option<Position>,
    },
    /// No rows to read; everything before `position` is complete. `None` while a large transaction is unfinished.
    Passed(Option<Position>),
    /// The layout changed.
    LayoutChanged(Layout, Option<Position>),
    /// Transactions are missing by an operator's decision.
    Gap(Gap, Option<Position>),
    /// Read these ranges, one after the other, then call [`Aligner::finish`].
    Rows(Vec<PartitionRange>),
}

/// What became of a row record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It belongs to the range.
    Row,
    /// Another epoch's or seq's, or no record of this contract at all.
    Stranger,
    /// A fenced writer's: its epoch is lower than the commit record's.
    Stale,
}

/// A whole, verified transaction.
#[derive(Debug)]
pub struct AlignedTxn {
    /// Its entry in the commit stream.
    pub txn: Txn,
    /// Its records by (change, record).
    pub rows: RowLog,
    /// The position before it, if nothing but this transaction was ever taken from the feed.
    pub before: Position,
    /// The position after it.
    pub after: Position,
}

/// See the module's description.
#[derive(Debug)]
pub struct Aligner {
    chain: Chain,
    dir: PathBuf,
    budget: usize,
    work: Option<Work>,
    open: Option<OpenTxn>,
    read_to: HashMap<(String, i32), i64>,
}

#[derive(Debug)]
struct Work {
    offset: i64,
    epoch: u64,
    body: WorkBody,
    /// By seq: is it wanted, and what its records must say.
    expected: BTreeMap<u64, Expected>,
    ranges: Vec<(PartitionRange, u64)>,
    sorter: Sorter,
}

#[derive(Debug)]
enum WorkBody {
    Txns(Vec<Txn>),
    Part(Part),
}

#[derive(Debug)]
struct Expected {
    wanted: bool,
    commit_ts: u64,
    start_ts: u64,
    /// Unknown while parts come in.
    changes: Option<u32>,
}

/// A large transaction whose closing entry has not come.
#[derive(Debug)]
struct OpenTxn {
    seq: u64,
    commit_ts: u64,
    start_ts: u64,
    wanted: bool,
    /// Where its first part is.
    epoch: u64,
    offset: i64,
    parts: u32,
    changes: u32,
    digest: TxnDigest,
    ended: bool,
    rows: RowLog,
}

impl Aligner {
    /// An aligner that begins at `start`. Up to `budget` bytes of rows stay in memory, the rest in `dir`.
    pub fn new(start: &Start, dir: &Path, budget: usize) -> Self {
        Self {
            chain: Chain::new(start),
            dir: dir.to_owned(),
            budget,
            work: None,
            open: None,
            read_to: HashMap::new(),
        }
    }

    /// State of the commit stream's check.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    /// Takes the commit record at `offset`.
    pub fn begin(&mut self, offset: i64, record: CommitRecord) -> Result<Step, AlignError> {
        if self.chain.accept(offset, &record)? == Verdict::Stale {
            return Ok(Step::Stale);
        }
        let position = self.position_after(offset);
        match record.body {
            Some(Body::Start(start)) => Ok(Step::Started { start, epoch: record.epoch, position }),
            Some(Body::Txns(txns)) => self.begin_txns(offset, record.epoch, txns.txns, txns.ranges),
            Some(Body::Part(part)) => self.begin_part(offset, record.epoch, part),
            Some(Body::Layout(layout)) => Ok(Step::LayoutChanged(layout, position)),
            // A target that was loaded after the gap has what is missing in it.
            Some(Body::Gap(gap)) if CommitTs::new(gap.to) <= self.chain.floor() => Ok(Step::Passed(position)),
            Some(Body::Gap(gap)) => Ok(Step::Gap(gap, position)),
            Some(Body::Tick(_)) | None => Ok(Step::Passed(position)),
        }
    }

    /// The position after the record at `offset`; `None` while a large transaction is unfinished.
    fn position_after(&self, offset: i64) -> Option<Position> {
        if self.open.is_some() { None } else { self.chain.position(offset + 1) }
    }

    fn begin_txns(
        &mut self,
        offset: i64,
        epoch: u64,
        txns: Vec<Txn>,
        ranges: Vec<PartitionRange>,
    ) -> Result<Step, AlignError> {
        let mut expected = BTreeMap::new();
        for (index, txn) in txns.iter().enumerate() {
            let wanted = self.chain.wants(txn.seq, CommitTs::new(txn.commit_ts));
            match &self.open {
                Some(open) if index == 0 => check_close(open, txn, offset)?,
                _ if txn.parted && wanted => {
                    let what = "is closed, but its parts did not come before";
                    return Err(ChainError::BadPart { seq: txn.seq, part: 0, what, offset }.into());
                }
                _ => {}
            }
            let Txn { commit_ts, start_ts, changes, .. } = *txn;
            if !txn.parted {
                expected.insert(txn.seq, Expected { wanted, commit_ts, start_ts, changes: Some(changes) });
            }
        }
        let any_wanted = txns.iter().any(|txn| self.chain.wants(txn.seq, CommitTs::new(txn.commit_ts)));
        if !any_wanted {
            if !txns.is_empty() {
                self.open = None;
            }
            return Ok(Step::Passed(self.position_after(offset)));
        }
        self.read(offset, epoch, WorkBody::Txns(txns), expected, ranges)
    }

    fn begin_part(&mut self, offset: i64, epoch: u64, mut part: Part) -> Result<Step, AlignError> {
        let bad = |what| ChainError::BadPart { seq: part.seq, part: part.part, what, offset };
        let wanted = self.chain.wants(part.seq, CommitTs::new(part.commit_ts));
        match &self.open {
            Some(open) => {
                if open.commit_ts != part.commit_ts || open.start_ts != part.start_ts {
                    return Err(bad("names other timestamps than the parts before it").into());
                }
                if open.ended {
                    return Err(bad("comes after the last part").into());
                }
                if open.wanted && part.part != open.parts {
                    return Err(bad("does not follow the part before it").into());
                }
            }
            None if wanted && part.part != 0 => {
                return Err(bad("the parts before it are not in the log").into());
            }
            None => {}
        }
        let open = self.open.get_or_insert_with(|| OpenTxn {
            seq: part.seq,
            commit_ts: part.commit_ts,
            start_ts: part.start_ts,
            wanted,
            epoch,
            offset,
            parts: 0,
            changes: 0,
            digest: TxnDigest::default(),
            ended: false,
            rows: RowLog::new(&self.dir, self.budget / 2),
        });
        if !wanted {
            open.ended = part.last;
            return Ok(Step::Passed(None));
        }
        let Part { seq, commit_ts, start_ts, .. } = part;
        let expected = BTreeMap::from([(seq, Expected { wanted, commit_ts, start_ts, changes: None })]);
        let ranges = std::mem::take(&mut part.ranges);
        self.read(offset, epoch, WorkBody::Part(part), expected, ranges)
    }

    fn read(
        &mut self,
        offset: i64,
        epoch: u64,
        body: WorkBody,
        expected: BTreeMap<u64, Expected>,
        ranges: Vec<PartitionRange>,
    ) -> Result<Step, AlignError> {
        for range in &ranges {
            let PartitionRange { topic, partition, first, last, count } = range;
            // A range of n records spans at least n offsets.
            if *first < 0 || last < first || *count == 0 || *count > last.abs_diff(*first) + 1 {
                let what = format!(
                    "its range {first}..={last} of {topic} partition {partition} cannot hold {count} records"
                );
                return Err(ChainError::Malformed { offset, what }.into());
            }
            let read = self.read_to.entry((topic.clone(), *partition)).or_insert(-1);
            if first <= read {
                let (topic, partition) = (topic.clone(), *partition);
                let (first, last, read) = (*first, *last, *read);
                return Err(AlignError::RangeBack { topic, partition, first, last, read, commit: offset });
            }
            *read = *last;
        }
        let sorter = Sorter::new(&self.dir, self.budget / 2);
        let counted = ranges.iter().map(|range| (range.clone(), 0)).collect();
        self.work = Some(Work { offset, epoch, body, expected, ranges: counted, sorter });
        Ok(Step::Rows(ranges))
    }

    /// Takes the record at `offset` of range number `range`; `meta` is its `sluice` header.
    pub fn row(
        &mut self,
        range: usize,
        offset: i64,
        meta: Option<&[u8]>,
        key: Option<&[u8]>,
        value: Option<Bytes>,
    ) -> Result<Taken, AlignError> {
        let Some(work) = &mut self.work else { return Ok(Taken::Stranger) };
        let Some((PartitionRange { topic, partition, first, last, .. }, seen)) = work.ranges.get_mut(range)
        else {
            return Ok(Taken::Stranger);
        };
        let Some(meta) = meta.and_then(|meta| RowMeta::decode(meta).ok()) else { return Ok(Taken::Stranger) };
        if !(*first..=*last).contains(&offset) {
            return Ok(Taken::Stranger);
        }
        if meta.epoch < work.epoch {
            return Ok(Taken::Stale);
        }
        let Some(expected) = work.expected.get(&meta.seq).filter(|_| meta.epoch == work.epoch) else {
            return Ok(Taken::Stranger);
        };
        let bad = |what: String| {
            Err(AlignError::BadRow { topic: topic.clone(), partition: *partition, offset, what })
        };
        *seen += 1;
        if meta.commit_ts != expected.commit_ts || meta.start_ts != expected.start_ts {
            return bad(format!("transaction {} has other timestamps in the commit stream", meta.seq));
        }
        if expected.changes.is_some_and(|changes| changes != meta.changes) {
            return bad(format!(
                "transaction {} has another number of changes in the commit stream",
                meta.seq
            ));
        }
        if meta.record >= meta.records || meta.change >= meta.changes {
            let RowMeta { change, changes, record, records, .. } = meta;
            return bad(format!(
                "it claims to be record {record} of {records} of change {change} of {changes}"
            ));
        }
        let found = record_checksum(key, value.as_deref());
        if found != meta.checksum {
            return bad(format!("its checksum is {found:08x}, its header says {:08x}", meta.checksum));
        }
        let Some(value) = value else { return bad("it has no value".to_owned()) };
        if expected.wanted {
            work.sorter.push(RowRecord {
                seq: meta.seq,
                change: meta.change,
                record: meta.record,
                records: meta.records,
                table_id: meta.table_id,
                schema_version: meta.schema_version,
                checksum: meta.checksum,
                value,
            })?;
        }
        Ok(Taken::Row)
    }

    /// How many records of range number `range` were seen, and how many there should be.
    pub fn seen(&self, range: usize) -> Option<(u64, u64)> {
        let (range, seen) = self.work.as_ref()?.ranges.get(range)?;
        Some((*seen, range.count))
    }

    /// The reader is past the last offset of range number `range`.
    pub fn end_range(&mut self, range: usize) -> Result<(), AlignError> {
        let Some(work) = &self.work else { return Ok(()) };
        match work.ranges.get(range) {
            Some((range, seen)) if *seen != range.count => Err(AlignError::Torn {
                topic: range.topic.clone(),
                partition: range.partition,
                first: range.first,
                last: range.last,
                expected: range.count,
                seen: *seen,
                commit: work.offset,
            }),
            _ => Ok(()),
        }
    }

    /// All ranges were read. The transactions of the record follow; none after a part.
    pub fn finish(&mut self) -> Result<Batch, AlignError> {
        let Some(work) = self.work.take() else { return Ok(Batch::empty(&self.dir, 0)) };
        let sorted = work.sorter.finish()?.peekable();
        match work.body {
            WorkBody::Part(part) => {
                self.finish_part(&part, work.offset, sorted)?;
                Ok(Batch::empty(&self.dir, 0))
            }
            WorkBody::Txns(txns) => {
                let open = self.open.take();
                let Some(position) = self.chain.position(work.offset + 1) else {
                    return Ok(Batch::empty(&self.dir, 0));
                };
                let last = txns.last().map(|txn| txn.seq);
                let mut waiting = VecDeque::with_capacity(txns.len());
                for txn in txns {
                    if !self.chain.wants(txn.seq, CommitTs::new(txn.commit_ts)) {
                        continue;
                    }
                    let within = self.chain.position_within(&txn, work.offset);
                    let Some(after) = (if Some(txn.seq) == last { Some(position.clone()) } else { within })
                    else {
                        continue;
                    };
                    let (epoch, commits_offset) = match &open {
                        Some(open) if txn.parted => (open.epoch, open.offset),
                        _ => (work.epoch, work.offset),
                    };
                    let commit_ts = self.chain.floor();
                    let before =
                        Position { epoch, commits_offset, seq: txn.seq - 1, commit_ts, ..position.clone() };
                    waiting.push_back(Waiting { txn, before, after });
                }
                Ok(Batch {
                    dir: self.dir.clone(),
                    budget: self.budget / 2,
                    sorted: Some(sorted),
                    waiting,
                    open,
                })
            }
        }
    }

    fn finish_part(
        &mut self,
        part: &Part,
        offset: i64,
        mut sorted: Peekable<Sorted>,
    ) -> Result<(), AlignError> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let mut walk = Walk { next_change: open.changes, record: None, digest: open.digest };
        for row in sorted.by_ref() {
            let row = row?;
            walk.step(&row, CommitTs::new(part.commit_ts))?;
            open.rows.push(row)?;
        }
        let bad = |what| ChainError::BadPart { seq: part.seq, part: part.part, what, offset };
        if walk.record.is_some() {
            return Err(bad("ends within a change").into());
        }
        if walk.next_change != part.changes_so_far {
            return Err(bad("does not hold the changes it counts").into());
        }
        if walk.digest.value() != part.digest_so_far {
            return Err(bad("has another digest than its records").into());
        }
        open.digest = walk.digest;
        open.changes = walk.next_change;
        open.parts += 1;
        open.ended = part.last;
        Ok(())
    }
}

fn check_close(open: &OpenTxn, txn: &Txn, offset: i64) -> Result<(), ChainError> {
    let bad = |what| ChainError::BadPart { seq: open.seq, part: open.parts, what, offset };
    if !txn.parted || txn.seq != open.seq {
        return Err(bad("another transaction follows before it is closed"));
    }
    if open.wanted && !open.ended {
        return Err(bad("is closed before its last part"));
    }
    if txn.commit_ts != open.commit_ts || txn.start_ts != open.start_ts {
        return Err(bad("is closed with other timestamps"));
    }
    if open.wanted && (txn.changes != open.changes || txn.digest != open.digest.value()) {
        return Err(bad("is closed with another count or digest than its parts"));
    }
    Ok(())
}

/// Goes through the records of one transaction and sees that none is missing or repeated.
struct Walk {
    next_change: u32,
    /// Within a change of several records: the next record and how many there are.
    record: Option<(u32, u32)>,
    digest: TxnDigest,
}

impl Walk {
    fn step(&mut self, row: &RowRecord, commit_ts: CommitTs) -> Result<(), AlignError> {
        let (record, records) = self.record.unwrap_or((0, row.records));
        if (row.change, row.record, row.records) != (self.next_change, record, records) {
            let what = format!(
                "record {} of {} of change {} is there where record {record} of {records} of change {} should be",
                row.record, row.records, row.change, self.next_change
            );
            return Err(AlignError::BadTxn { seq: row.seq, commit_ts, what });
        }
        self.digest.push(row.table_id, row.change, row.checksum);
        self.record = Some((record + 1, records)).filter(|(next, all)| next < all);
        if self.record.is_none() {
            self.next_change += 1;
        }
        Ok(())
    }
}

/// The transactions of one commit record, in order.
#[derive(Debug)]
pub struct Batch {
    dir: PathBuf,
    budget: usize,
    sorted: Option<Peekable<Sorted>>,
    waiting: VecDeque<Waiting>,
    open: Option<OpenTxn>,
}

#[derive(Debug)]
struct Waiting {
    txn: Txn,
    before: Position,
    after: Position,
}

impl Batch {
    fn empty(dir: &Path, budget: usize) -> Self {
        Self { dir: dir.to_owned(), budget, sorted: None, waiting: VecDeque::new(), open: None }
    }

    /// The next transaction, verified whole; `None` at the end.
    pub fn next_txn(&mut self) -> Result<Option<AlignedTxn>, AlignError> {
        let Some(Waiting { txn, before, after }) = self.waiting.pop_front() else { return Ok(None) };
        if let Some(open) = self.open.take_if(|_| txn.parted) {
            return Ok(Some(AlignedTxn { txn, rows: open.rows, before, after }));
        }
        let commit_ts = CommitTs::new(txn.commit_ts);
        let mut walk = Walk { next_change: 0, record: None, digest: TxnDigest::default() };
        let mut rows = RowLog::new(&self.dir, self.budget);
        if let Some(sorted) = &mut self.sorted {
            while let Some(row) = sorted.next_if(|row| row.as_ref().map_or(true, |row| row.seq == txn.seq)) {
                let row = row?;
                walk.step(&row, commit_ts)?;
                rows.push(row)?;
            }
        }
        let bad = |what| Err(AlignError::BadTxn { seq: txn.seq, commit_ts, what });
        if walk.record.is_some() || walk.next_change != txn.changes {
            return bad(format!("{} of its {} changes are whole", walk.next_change, txn.changes));
        }
        if walk.digest.value() != txn.digest {
            return bad(format!(
                "its digest is {:08x}, its records make {:08x}",
                txn.digest,
                walk.digest.value()
            ));
        }
        if txn.kind() == TxnKind::Ddl && txn.ddl.is_none() {
            return bad("it is a schema change without an entry that says which".to_owned());
        }
        Ok(Some(AlignedTxn { txn, rows, before, after }))
    }
}
