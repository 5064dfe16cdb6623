//! A feed of random transactions, cut into random Kafka transactions, with crashes in between, against a simulated
//! Kafka; afterwards the log is checked by a reader that shares no code with the sequencer.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message as _;
use schemas::digest::TxnDigest;
use schemas::sluice::v1::commit_record::Body;
use schemas::sluice::v1::{CommitRecord, RowMeta};
use tidb::ts::{CommitTs, StartTs, Tso};

use super::*;

const PARTITIONS: i32 = 3;

/// A transaction of the upstream: sizes of its changes in bytes, and the partition each goes to.
#[derive(Clone, Debug)]
struct Upstream {
    commit_ts: u64,
    changes: Vec<(usize, i32)>,
}

/// Kafka as read_committed shows it.
#[derive(Default)]
struct Log {
    rows: BTreeMap<i32, Vec<(i64, RowMeta)>>,
    next_offset: BTreeMap<i32, i64>,
    commits: Vec<CommitRecord>,
}

/// The open Kafka transaction.
#[derive(Default)]
struct Pending {
    rows: Vec<(i32, i64, RowMeta)>,
    delivered: HashMap<RowPartition, Delivered>,
}

impl Log {
    fn send(&mut self, pending: &mut Pending, place: RowPartition, meta: RowMeta) {
        let next = self.next_offset.entry(place.partition).or_default();
        let offset = *next;
        *next += 1;
        let at =
            pending.delivered.entry(place).or_insert(Delivered { first: offset, last: offset, count: 0 });
        at.last = offset;
        at.count += 1;
        pending.rows.push((place.partition, offset, meta));
    }

    /// Makes the transaction visible; markers take an offset in every partition.
    fn commit(&mut self, pending: Pending, records: Vec<CommitRecord>) {
        for (partition, offset, meta) in pending.rows {
            self.rows.entry(partition).or_default().push((offset, meta));
        }
        self.commits.extend(records);
        (0..PARTITIONS).for_each(|partition| *self.next_offset.entry(partition).or_default() += 1);
    }

    fn tail(&self, from: usize) -> Option<Tail> {
        let mut reader = TailReader::default();
        self.commits[from..].iter().for_each(|record| reader.push(record).unwrap());
        reader.finish()
    }
}

fn feed() -> Feed {
    Feed {
        feed_id: Bytes::from_static(b"0123456789abcdef"),
        cluster_id: 7,
        layout: RowLayout { topics: vec![("rows".to_owned(), PARTITIONS as u32)] },
        rules_hash: 3,
        schema_topic: "schema".to_owned(),
    }
}

fn row(change: u32, size: usize, partition: i32) -> RowRecord {
    RowRecord {
        place: RowPartition { topic: 0, partition },
        key: None,
        value: Bytes::from(vec![change as u8; size]),
        claim: None,
        checksum: change.wrapping_mul(77),
        change,
        record: 0,
        records: 1,
        table_id: 100 + i64::from(partition),
        schema_version: 5,
    }
}

/// Writes what the log lacks, until the crash.
fn run(log: &mut Log, upstream: &[Upstream], limit: usize, mut steps: u32) {
    let mut sequencer = match log.tail(0) {
        Some(tail) => Sequencer::resume(feed(), &tail, tail.schema.unwrap()),
        None => Sequencer::fresh(feed(), Tso::ZERO),
    };
    let start = sequencer.start();
    log.commit(Pending::default(), vec![start]);
    let mut pending = Pending::default();
    let settle = |sequencer: &mut Sequencer, log: &mut Log, pending: &mut Pending| {
        let pending = std::mem::take(pending);
        let records = sequencer.settle(&pending.delivered).unwrap();
        records.iter().for_each(|record| assert!(record.encoded_len() <= MAX_COMMIT_RECORD));
        log.commit(pending, records);
    };
    let position = sequencer.watermark();
    for transaction in upstream.iter().filter(|t| t.commit_ts > position.get()) {
        let bytes: usize = transaction.changes.iter().map(|(size, _)| size + 128).sum();
        if sequencer.batch_bytes() + bytes > limit && !sequencer.batch_is_empty() {
            settle(&mut sequencer, log, &mut pending);
        }
        if transaction.changes.is_empty() {
            sequencer.advance(Tso::new(transaction.commit_ts));
            continue;
        }
        let header = TxnHeader {
            start_ts: StartTs::new(transaction.commit_ts - 1),
            commit_ts: CommitTs::new(transaction.commit_ts),
            changes: transaction.changes.len() as u32,
            ddl: None,
            origin: None,
        };
        let opened = sequencer.open(header).unwrap();
        for (change, (size, partition)) in (0..).zip(&transaction.changes).skip(opened.skip_changes as usize)
        {
            if sequencer.batch_bytes() + size > limit && sequencer.batch_bytes() > 0 {
                settle(&mut sequencer, log, &mut pending);
            }
            let record = row(change, *size, *partition);
            let meta = sequencer.row(&record).unwrap();
            log.send(&mut pending, record.place, meta);
            steps = match steps.checked_sub(1) {
                Some(steps) => steps,
                None => return,
            };
        }
        sequencer.close().unwrap();
        if sequencer.has_open() {
            settle(&mut sequencer, log, &mut pending);
        }
    }
    settle(&mut sequencer, log, &mut pending);
}

/// Reads the log as a suspicious consumer.
fn check(log: &Log, upstream: &[Upstream]) -> Result<(), TestCaseError> {
    let (mut next_seq, mut epoch, mut watermark) = (1, 0, 0);
    let mut named = 0;
    let mut ends: BTreeMap<i32, i64> = BTreeMap::new();
    let mut seen: Vec<(u64, u32, u32)> = Vec::new();
    let mut digests: HashMap<u64, TxnDigest> = HashMap::new();
    let mut parts: HashMap<u64, (u32, u32, bool)> = HashMap::new();
    for record in &log.commits {
        prop_assert!(record.epoch >= epoch && record.watermark >= watermark);
        epoch = record.epoch;
        watermark = record.watermark;
        let (seqs, ranges) = match record.body.as_ref().unwrap() {
            Body::Txns(txns) => (txns.txns.iter().map(|t| t.seq).collect::<Vec<_>>(), txns.ranges.clone()),
            Body::Part(part) => (vec![part.seq], part.ranges.clone()),
            _ => (Vec::new(), Vec::new()),
        };
        let mut metas: Vec<&RowMeta> = Vec::new();
        for range in &ranges {
            let end = ends.entry(range.partition).or_insert(-1);
            prop_assert!(range.first > *end && range.last >= range.first);
            *end = range.last;
            let inside: Vec<&RowMeta> = log.rows[&range.partition]
                .iter()
                .filter(|(offset, meta)| {
                    (range.first..=range.last).contains(offset)
                        && meta.epoch == record.epoch
                        && seqs.contains(&meta.seq)
                })
                .map(|(_, meta)| meta)
                .collect();
            prop_assert_eq!(inside.len() as u64, range.count);
            metas.extend(inside);
        }
        named += metas.len();
        metas.sort_by_key(|meta| (meta.seq, meta.change));
        for meta in metas {
            digests.entry(meta.seq).or_default().push(meta.table_id, meta.change, meta.checksum);
            let part = parts.entry(meta.seq).or_default();
            prop_assert_eq!(part.1, meta.change, "changes come in order, once");
            part.1 += 1;
        }
        match record.body.as_ref().unwrap() {
            Body::Part(part) => {
                let state = parts.entry(part.seq).or_default();
                prop_assert_eq!((state.0, state.1, state.2), (part.part, part.changes_so_far, false));
                prop_assert_eq!(digests.entry(part.seq).or_default().value(), part.digest_so_far);
                *state = (part.part + 1, part.changes_so_far, part.last);
                prop_assert_eq!(part.seq, next_seq);
                prop_assert!(part.commit_ts > record.watermark);
            }
            Body::Txns(txns) => {
                for txn in &txns.txns {
                    prop_assert_eq!(txn.seq, next_seq);
                    next_seq += 1;
                    let (part_count, changes, last) = parts[&txn.seq];
                    prop_assert_eq!((changes, part_count > 0, last), (txn.changes, txn.parted, txn.parted));
                    prop_assert_eq!(digests[&txn.seq].value(), txn.digest);
                    prop_assert!(txn.commit_ts <= record.watermark);
                    seen.push((txn.commit_ts, txn.changes, txn.digest));
                }
            }
            Body::Start(start) => prop_assert_eq!(start.next_seq, next_seq),
            _ => {}
        }
        prop_assert_eq!(record.next_seq, next_seq);
    }
    prop_assert_eq!(named, log.rows.values().map(Vec::len).sum::<usize>(), "no row is unaccounted for");
    let expected: Vec<(u64, u32, u32)> = upstream
        .iter()
        .filter(|t| !t.changes.is_empty())
        .map(|t| {
            let mut digest = TxnDigest::default();
            for (change, (_, partition)) in (0..).zip(&t.changes) {
                digest.push(100 + i64::from(*partition), change, change.wrapping_mul(77));
            }
            (t.commit_ts, t.changes.len() as u32, digest.value())
        })
        .collect();
    prop_assert_eq!(seen, expected);
    Ok(())
}

fn upstreams() -> impl Strategy<Value = Vec<Upstream>> {
    let change = (0_usize..400, 0..PARTITIONS);
    let transaction = (1_u64..5, proptest::collection::vec(change, 0..12));
    proptest::collection::vec(transaction, 0..25).prop_map(|list| {
        let mut commit_ts = 10;
        list.into_iter()
            .map(|(step, changes)| {
                commit_ts += step;
                Upstream { commit_ts, changes }
            })
            .collect()
    })
}

proptest! {
    /// However often the writer dies, the log ends up with every transaction once, in order, and adds up.
    #[test]
    fn exactly_once(
        upstream in upstreams(),
        limit in 300_usize..3000,
        crashes in proptest::collection::vec(0_u32..60, 0..5),
    ) {
        let mut log = Log::default();
        for steps in crashes {
            run(&mut log, &upstream, limit, steps);
        }
        run(&mut log, &upstream, limit, u32::MAX);
        check(&log, &upstream)?;
    }

    /// Any suffix of the stream that holds a summary tells the same as the whole.
    #[test]
    fn the_end_of_the_stream_suffices(upstream in upstreams(), crashes in proptest::collection::vec(0_u32..60, 0..4)) {
        let mut log = Log::default();
        for steps in crashes {
            run(&mut log, &upstream, 700, steps);
        }
        run(&mut log, &upstream, 700, 30);
        let whole = log.tail(0);
        for from in 0..log.commits.len() {
            if let Some(tail) = log.tail(from) {
                prop_assert_eq!(Some(&tail), whole.as_ref(), "from record {}", from);
            }
        }
    }
}

/// What the brokers deliver after offset 40 of a partition was named. An epoch ends with its first error.
#[test]
fn a_topic_made_anew_is_noticed() {
    let at = RowPartition { topic: 0, partition: 1 };
    let write = |sequencer: &mut Sequencer, commit_ts: u64, delivered: Delivered| {
        let header = TxnHeader {
            start_ts: StartTs::new(commit_ts - 1),
            commit_ts: CommitTs::new(commit_ts),
            changes: 1,
            ddl: None,
            origin: None,
        };
        sequencer.open(header)?;
        sequencer.row(&row(0, 10, 1)).unwrap();
        sequencer.close()?;
        sequencer.settle(&HashMap::from([(at, delivered)])).map(|_| ())
    };
    let second = |commit_ts: u64, delivered: Delivered| {
        let mut sequencer = Sequencer::fresh(feed(), Tso::ZERO);
        write(&mut sequencer, 5, Delivered { first: 40, last: 40, count: 1 }).unwrap();
        write(&mut sequencer, commit_ts, delivered)
    };
    assert_eq!(second(6, Delivered { first: 41, last: 41, count: 1 }), Ok(()));
    assert!(matches!(
        second(4, Delivered { first: 41, last: 41, count: 1 }),
        Err(SequenceError::OutOfOrder { .. })
    ));
    for got in [0, 40] {
        assert_eq!(
            second(6, Delivered { first: got, last: got, count: 1 }),
            Err(SequenceError::OffsetsWentBack { topic: "rows".into(), partition: 1, named: 40, got })
        );
    }
    assert!(matches!(
        second(7, Delivered { first: 50, last: 51, count: 2 }),
        Err(SequenceError::Miscounted { sent: 1, delivered: 2, .. })
    ));
}

#[test]
fn another_transaction_cannot_finish_what_is_half_written() {
    let unfinished = Unfinished { seq: 4, commit_ts: 50, start_ts: 49, next_part: 2, changes: 3, digest: 9 };
    let tail = Tail {
        feed_id: b"0123456789abcdef".to_vec(),
        cluster_id: 7,
        contract_version: 1,
        epoch: 2,
        watermark: Tso::new(40),
        next_seq: 4,
        layout: feed().layout,
        rules_hash: 3,
        ends: BTreeMap::new(),
        unfinished: Some(unfinished),
        pull_from: Tso::new(40),
        schema: None,
        declared_to: Tso::ZERO,
    };
    let header = |commit_ts: u64| TxnHeader {
        start_ts: StartTs::new(commit_ts - 1),
        commit_ts: CommitTs::new(commit_ts),
        changes: 5,
        ddl: None,
        origin: None,
    };
    let refused = Sequencer::resume(feed(), &tail, SchemaExtent::default()).open(header(45));
    assert!(matches!(refused, Err(SequenceError::UnfinishedElsewhere { commit_ts: 50, .. })));
    let mut sequencer = Sequencer::resume(feed(), &tail, SchemaExtent::default());
    assert_eq!(sequencer.start().next_seq, 4);
    assert_eq!(sequencer.open(header(50)), Ok(Opened { skip_changes: 3 }));
    assert_eq!(sequencer.row(&row(3, 1, 0)).unwrap().seq, 4);
}

#[test]
fn a_foreign_or_backward_record_is_refused() {
    let mut sequencer = Sequencer::fresh(feed(), Tso::new(9));
    let mut reader = TailReader::default();
    let start = sequencer.start();
    reader.push(&start).unwrap();
    reader.push(&sequencer.tick()).unwrap();
    let lower = CommitRecord { watermark: 3, ..sequencer.tick() };
    assert!(matches!(reader.push(&lower), Err(TailError::WentBack { what: "watermark", from: 9, to: 3 })));
    let foreign = CommitRecord { feed_id: Bytes::from_static(b"other"), ..sequencer.tick() };
    assert!(matches!(reader.push(&foreign), Err(TailError::ForeignFeed { .. })));
    assert_eq!(reader.push(&CommitRecord { body: None, ..start }), Err(TailError::UnknownRecord));
}

#[test]
fn summaries_come_often_enough() {
    let mut sequencer = Sequencer::fresh(feed(), Tso::ZERO);
    let records: Vec<CommitRecord> =
        std::iter::once(sequencer.start()).chain((0..3000).map(|_| sequencer.tick())).collect();
    let mut without = 0;
    for record in &records {
        without = if record.summary.is_some() { 0 } else { without + 1 };
        assert!(without < 1000);
    }
}

/// A gap stands where it begins: its record's watermark is its `from`, so what stops there has exactly what came before.
#[test]
fn a_gap_is_written_where_it_begins_and_remembered_until_it_is_passed() {
    let mut sequencer = Sequencer::fresh(feed(), Tso::new(5));
    let mut log = vec![sequencer.start()];
    let gap = |from: u64, to: u64| Body::Gap(Gap { from, to, cause: "lost".to_owned() });
    let declare = |sequencer: &mut Sequencer, from: u64, to: u64| {
        sequencer.gap(Tso::new(from), Tso::new(to), "lost".to_owned())
    };
    let first = declare(&mut sequencer, 9, 20).unwrap();
    assert_eq!((first.watermark, first.body.clone()), (9, Some(gap(9, 20))));
    log.push(first);
    // From the beginning, a successor that resumes within the range knows that it is declared; so does one that sees
    // only a later summary.
    let declared = |log: &[CommitRecord]| {
        let mut reader = TailReader::default();
        log.iter().for_each(|record| reader.push(record).unwrap());
        reader.finish().unwrap().declared_to
    };
    assert_eq!(declared(&log), Tso::new(20));
    sequencer.advance(Tso::new(15));
    log.extend((0..SUMMARY_EVERY).map(|_| sequencer.tick()));
    let summed_up = log.iter().rposition(|record| record.summary.is_some()).unwrap();
    assert_eq!(declared(&log[summed_up..]), Tso::new(20));
    // What lies before the watermark already cannot be placed there any more.
    let second = declare(&mut sequencer, 12, 30).unwrap();
    assert_eq!((second.watermark, second.body.clone()), (15, Some(gap(15, 30))));
    log.push(second);
    sequencer.advance(Tso::new(30));
    log.push(sequencer.tick());
    assert_eq!(declared(&log), Tso::ZERO);
    assert_eq!(declare(&mut sequencer, 12, 30), None);
}

#[test]
fn what_the_schema_topic_holds_is_said_with_the_records_that_change_it() {
    let mut sequencer = Sequencer::fresh(feed(), Tso::ZERO);
    let extent = |record: &CommitRecord| {
        record.summary.as_ref().and_then(|s| s.schema.as_ref()).map(|s| (s.end, s.keys))
    };
    sequencer.schema_written(Delivered { first: 0, last: 4, count: 5 }, 4).unwrap();
    assert_eq!(extent(&sequencer.start()), Some((5, 4)));
    assert_eq!(extent(&sequencer.tick()), None);
    sequencer.schema_written(Delivered { first: 7, last: 8, count: 2 }, 2).unwrap();
    let changed = sequencer.tick();
    assert_eq!(extent(&changed), Some((9, 6)));
    let mut reader = TailReader::default();
    reader.push(&changed).unwrap();
    let tail = reader.finish().unwrap();
    assert_eq!(tail.schema, Some(SchemaExtent { end: 9, keys: 6 }));
    let mut successor = Sequencer::resume(feed(), &tail, SchemaExtent { end: 9, keys: 6 });
    let anew = successor.schema_written(Delivered { first: 0, last: 1, count: 2 }, 2);
    assert_eq!(
        anew,
        Err(SequenceError::OffsetsWentBack { topic: "schema".into(), partition: 0, named: 8, got: 0 })
    );
}
