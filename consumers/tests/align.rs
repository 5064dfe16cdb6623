//! The aligner against the list of transactions that went into a feed.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "what a test prepares may fail loudly")]

mod feed;

use bytes::Bytes;
use consumers::align::{AlignError, Aligner, Step};
use consumers::chain::{ChainError, Start};
use consumers::position::Position;
use consumers::shape::Assembler;
use feed::{Change, Feed, Transaction};
use proptest::prelude::*;
use prost::Message as _;
use schemas::sluice::v1::{RowMeta, commit_record::Body};
use tidb::ts::CommitTs;

/// What came out: commit_ts, the values of the changes, the position after it.
type Out = (u64, Vec<Vec<u8>>, Position);

/// Reads a feed as the follower does, from `start`, and ends at the first error.
fn read(feed: &Feed, start: &Start, budget: usize) -> (Vec<Out>, Vec<Position>, Option<AlignError>) {
    let dir = tempfile::tempdir().unwrap();
    let mut aligner = Aligner::new(start, dir.path(), budget);
    let (mut out, mut passed) = (Vec::new(), Vec::new());
    let from = match start {
        Start::Resume(position) => position.commits_offset,
        Start::Attach { .. } => 0,
    };
    let mut run = || -> Result<(), AlignError> {
        for (offset, record) in feed.commits.iter().filter(|(offset, _)| *offset >= from) {
            match aligner.begin(*offset, record.clone())? {
                Step::Rows(ranges) => {
                    for (index, range) in ranges.iter().enumerate() {
                        let records = feed.partitions.get(&range.partition).into_iter().flatten();
                        for record in records.filter(|r| (range.first..=range.last).contains(&r.offset)) {
                            let value = record.value.clone().map(Bytes::from);
                            aligner.row(
                                index,
                                record.offset,
                                record.meta.as_deref(),
                                record.key.as_deref(),
                                value,
                            )?;
                        }
                        aligner.end_range(index)?;
                    }
                    let mut batch = aligner.finish()?;
                    while let Some(txn) = batch.next_txn()? {
                        let mut assembler = Assembler::default();
                        let rows = txn.rows.into_rows().unwrap().map(Result::unwrap);
                        let values =
                            rows.filter_map(|row| assembler.push(&row)).map(|value| value.to_vec()).collect();
                        out.push((txn.txn.commit_ts, values, txn.after));
                    }
                }
                Step::Started { position, .. } | Step::Passed(position) | Step::Gap(_, position) => {
                    passed.extend(position)
                }
                Step::Stale | Step::LayoutChanged(..) => {}
            }
        }
        Ok(())
    };
    let error = run().err();
    (out, passed, error)
}

const FROM_THE_BEGINNING: Start = Start::Attach { initial: None };

/// What a drainer does next.
#[derive(Clone, Debug)]
enum Action {
    Batch(Vec<Transaction>),
    /// A transaction in parts of so many changes; perhaps with a new epoch after the first part.
    Parts(Transaction, u32, bool),
    Tick,
    Restart,
    Gap,
    /// A fenced writer's commit record and rows appear late.
    Zombie,
    Hole(i32),
    Stranger(i32),
}

fn transaction() -> impl Strategy<Value = Transaction> {
    let change = (1..4_i64, 0..3_i32, proptest::collection::vec(any::<u8>(), 0..300), 1..4_u32)
        .prop_map(|(table_id, partition, value, records)| Change { table_id, partition, value, records });
    (proptest::collection::vec(change, 0..6), any::<bool>()).prop_map(|(changes, ddl)| Transaction {
        commit_ts: 0,
        ddl: ddl && changes.len() < 2,
        changes,
    })
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        4 => proptest::collection::vec(transaction(), 1..5).prop_map(Action::Batch),
        2 => (transaction(), 1..3_u32, any::<bool>()).prop_map(|(txn, size, restart)| Action::Parts(txn, size, restart)),
        1 => Just(Action::Tick),
        1 => Just(Action::Restart),
        1 => Just(Action::Gap),
        1 => Just(Action::Zombie),
        1 => (0..3_i32).prop_map(Action::Hole),
        1 => (0..3_i32).prop_map(Action::Stranger),
    ];
    proptest::collection::vec(action, 1..12)
}

/// Writes the feed; returns it with the transactions in it.
fn write(actions: Vec<Action>) -> (Feed, Vec<Transaction>) {
    let mut feed = Feed::default();
    let mut all = Vec::new();
    let mut ts = 100;
    feed.start(50);
    for action in actions {
        match action {
            Action::Batch(mut txns) => {
                for txn in &mut txns {
                    ts += 10;
                    txn.commit_ts = ts;
                }
                feed.txns(&txns);
                all.extend(txns);
            }
            Action::Parts(mut txn, size, restart) => {
                if txn.changes.is_empty() || txn.ddl {
                    continue;
                }
                ts += 10;
                txn.commit_ts = ts;
                let total = txn.changes.len() as u32;
                for first in (0..total).step_by(size as usize) {
                    feed.part(&txn, first, size.min(total - first));
                    if first == 0 && restart {
                        feed.start(0);
                    }
                }
                feed.close(&txn);
                all.push(txn);
            }
            Action::Tick => {
                ts += 5;
                feed.tick(ts);
            }
            Action::Restart => feed.start(0),
            Action::Gap => {
                ts += 5;
                feed.gap(ts);
            }
            Action::Zombie if feed.epoch > 1 => {
                let (epoch, watermark) = (feed.epoch, feed.watermark);
                (feed.epoch, feed.watermark) = (epoch - 1, 7);
                feed.tick(7);
                (feed.epoch, feed.watermark) = (epoch, watermark);
                let stale = RowMeta { epoch: epoch - 1, seq: feed.seq + 1, ..Default::default() };
                feed.noise(1, Some(stale), true);
            }
            Action::Zombie => {}
            Action::Hole(partition) => feed.noise(partition, None, false),
            Action::Stranger(partition) => feed.noise(partition, None, true),
        }
    }
    (feed, all)
}

fn values(txn: &Transaction) -> Vec<Vec<u8>> {
    txn.changes.iter().map(|change| change.value.clone()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_went_in_comes_out_whole_and_in_order(actions in actions(), budget in 0..6_000_usize) {
        let (feed, all) = write(actions);
        let (out, passed, error) = read(&feed, &FROM_THE_BEGINNING, budget);
        prop_assert!(error.is_none(), "{:?}", error);
        let expected: Vec<_> = all.iter().map(|txn| (txn.commit_ts, values(txn))).collect();
        let got: Vec<_> = out.iter().map(|(ts, values, _)| (*ts, values.clone())).collect();
        prop_assert_eq!(&got, &expected);
        // From every position that was given out, the rest follows and nothing else.
        for position in out.iter().map(|(_, _, position)| position).chain(&passed) {
            let (rest, _, error) = read(&feed, &Start::Resume(position.clone()), budget);
            prop_assert!(error.is_none(), "{position}: {:?}", error);
            let expected: Vec<_> = expected.iter().filter(|(ts, _)| *ts > position.commit_ts.get()).cloned().collect();
            let rest: Vec<_> = rest.into_iter().map(|(ts, values, _)| (ts, values)).collect();
            prop_assert_eq!(rest, expected, "from {}", position);
        }
    }

    /// A target that holds everything up to some timestamp gets the rest, wherever the log begins.
    #[test]
    fn a_first_attach_gets_what_follows_or_is_refused(actions in actions(), initial in 50..250_u64, trim in 0..8_usize) {
        let (mut feed, all) = write(actions);
        // A log goes on for as long as there is a drainer: what a fenced writer's last record hides, the next one shows.
        feed.tick(feed.watermark + 1);
        let trim = trim.min(feed.commits.len() - 1);
        feed.commits.drain(..trim);
        let start = Start::Attach { initial: Some(CommitTs::new(initial)) };
        let (out, _, error) = read(&feed, &start, 10_000);
        let expected: Vec<_> = all.iter().map(|txn| txn.commit_ts).filter(|ts| *ts > initial).collect();
        let got: Vec<_> = out.iter().map(|(ts, ..)| *ts).collect();
        match error {
            None => prop_assert_eq!(got, expected),
            Some(AlignError::Chain(ChainError::BeforeLog { .. } | ChainError::BadPart { .. })) => {
                prop_assert!(trim > 0);
                prop_assert!(got.is_empty());
            }
            // A fenced writer's record may be the first one left.
            Some(AlignError::Chain(_)) => prop_assert!(trim > 0),
            Some(other) => prop_assert!(false, "{other:?}"),
        }
    }

    /// Whatever single thing is wrong with the rows of a feed, no transaction comes out changed, and if any is missing
    /// there is an error.
    #[test]
    fn damage_never_passes(actions in actions(), which in any::<prop::sample::Index>(), how in 0..5_u8) {
        let (mut feed, all) = write(actions);
        let ours: Vec<(i32, usize)> = feed
            .partitions
            .iter()
            .flat_map(|(partition, records)| {
                let named = |r: &feed::Record| r.key.is_some();
                records.iter().enumerate().filter(move |(_, r)| named(r)).map(|(at, _)| (*partition, at)).collect::<Vec<_>>()
            })
            .collect();
        prop_assume!(!ours.is_empty());
        let (partition, at) = ours[which.index(ours.len())];
        let records = feed.partitions.get_mut(&partition).unwrap();
        let record = &mut records[at];
        match how {
            0 => { records.remove(at); }
            1 => record.value.as_mut().unwrap().push(0),
            2 => record.key = Some(b"other".to_vec()),
            3 => record.meta = None,
            _ => {
                let mut meta = RowMeta::decode(&record.meta.as_ref().unwrap()[..]).unwrap();
                meta.table_id += 1;
                record.meta = Some(meta.encode_to_vec());
            }
        }
        let (out, _, error) = read(&feed, &FROM_THE_BEGINNING, 10_000);
        prop_assert!(error.is_some());
        for ((ts, got, _), txn) in out.iter().zip(&all) {
            prop_assert_eq!(*ts, txn.commit_ts);
            prop_assert_eq!(got, &values(txn));
        }
        prop_assert!(out.len() < all.len());
    }

    /// Commit records that are lost, doubled or swapped are noticed.
    #[test]
    fn a_broken_chain_never_passes(actions in actions(), which in any::<prop::sample::Index>(), how in 0..3_u8) {
        let (mut feed, all) = write(actions);
        // What is lost at the very end shows with the next record.
        feed.tick(feed.watermark + 1);
        let with_txns: Vec<usize> = feed
            .commits
            .iter()
            .enumerate()
            .filter(|(_, (_, record))| matches!(&record.body, Some(Body::Txns(txns)) if !txns.txns.is_empty()))
            .map(|(at, _)| at)
            .collect();
        prop_assume!(with_txns.len() > 1);
        let at = with_txns[which.index(with_txns.len() - 1)];
        let next = with_txns[with_txns.iter().position(|found| *found == at).unwrap() + 1];
        match how {
            0 => { feed.commits.remove(at); }
            1 => feed.commits[next].1 = feed.commits[at].1.clone(),
            _ => {
                let (first, second) = (feed.commits[at].1.clone(), feed.commits[next].1.clone());
                feed.commits[at].1 = second;
                feed.commits[next].1 = first;
            }
        }
        let (out, _, error) = read(&feed, &FROM_THE_BEGINNING, 10_000);
        prop_assert!(error.is_some(), "{} of {}", out.len(), all.len());
        for ((ts, got, _), txn) in out.iter().zip(&all) {
            prop_assert_eq!(*ts, txn.commit_ts);
            prop_assert_eq!(got, &values(txn));
        }
    }
}

fn one(commit_ts: u64) -> Transaction {
    let change = Change { table_id: 1, partition: 0, value: b"v".to_vec(), records: 1 };
    Transaction { commit_ts, changes: vec![change], ddl: false }
}

#[test]
fn another_feed_is_named() {
    let mut feed = Feed::default();
    feed.start(50);
    feed.txns(&[one(60)]);
    feed.txns(&[one(70)]);
    feed.commits[2].1.feed_id = vec![1; 16].into();
    let (out, _, error) = read(&feed, &FROM_THE_BEGINNING, 1000);
    assert_eq!(out.len(), 1);
    assert!(matches!(error, Some(AlignError::Chain(ChainError::WrongFeed { offset: 4, .. }))), "{error:?}");
}

#[test]
fn an_epoch_that_skips_time_is_a_hole() {
    let mut feed = Feed::default();
    feed.start(50);
    feed.txns(&[one(60)]);
    feed.start(90);
    let (_, _, error) = read(&feed, &FROM_THE_BEGINNING, 1000);
    let hole = matches!(error, Some(AlignError::Chain(ChainError::Hole { epoch: 2, .. })));
    assert!(hole, "{error:?}");
}

#[test]
fn a_watermark_that_falls_and_a_version_that_is_unknown_stop() {
    let mut feed = Feed::default();
    feed.start(50);
    feed.tick(90);
    feed.tick(80);
    let (_, _, error) = read(&feed, &FROM_THE_BEGINNING, 1000);
    assert!(matches!(error, Some(AlignError::Chain(ChainError::WatermarkFell { .. }))), "{error:?}");
    let mut feed = Feed::default();
    feed.start(50);
    if let Some(Body::Start(start)) = &mut feed.commits[0].1.body {
        start.contract_version = 2;
    }
    let (_, _, error) = read(&feed, &FROM_THE_BEGINNING, 1000);
    assert!(matches!(error, Some(AlignError::Chain(ChainError::UnknownVersion { .. }))), "{error:?}");
}

#[test]
fn a_log_without_its_beginning_is_refused_without_a_timestamp() {
    let mut feed = Feed::default();
    feed.start(50);
    feed.txns(&[one(60)]);
    feed.txns(&[one(70)]);
    feed.commits.drain(..2);
    let (out, _, error) = read(&feed, &FROM_THE_BEGINNING, 1000);
    assert!(out.is_empty());
    assert!(
        matches!(error, Some(AlignError::Chain(ChainError::BeginningGone { next_seq: 2, .. }))),
        "{error:?}"
    );
    let at = |ts| Start::Attach { initial: Some(CommitTs::new(ts)) };
    assert!(matches!(read(&feed, &at(68), 1000).2, Some(AlignError::Chain(ChainError::BeforeLog { .. }))));
    assert_eq!(read(&feed, &at(69), 1000).0.len(), 1);
}

#[test]
fn a_partition_that_goes_back_is_named() {
    let mut feed = Feed::default();
    feed.start(50);
    feed.txns(&[one(60)]);
    feed.txns(&[one(70)]);
    if let Some(Body::Txns(txns)) = &mut feed.commits[2].1.body {
        (txns.ranges[0].first, txns.ranges[0].last) = (0, 0);
    }
    let (_, _, error) = read(&feed, &FROM_THE_BEGINNING, 1000);
    assert!(error.is_some_and(|error| error.to_string().contains("rows partition 0")));
}

#[test]
fn a_gap_that_ends_where_the_target_begins_is_none_for_it() {
    let mut feed = Feed::default();
    feed.start(50);
    feed.gap(60);
    let dir = tempfile::tempdir().unwrap();
    let last = |initial: u64| {
        let start = Start::Attach { initial: Some(CommitTs::new(initial)) };
        let mut aligner = Aligner::new(&start, dir.path(), 1000);
        feed.commits.iter().map(|(offset, record)| aligner.begin(*offset, record.clone()).unwrap()).last()
    };
    assert!(matches!(last(59), Some(Step::Gap(gap, _)) if (gap.from, gap.to) == (50, 60)));
    assert!(matches!(last(60), Some(Step::Passed(_))));
}
