//! A sound log passes; each way of breaking it is found.

use schemas::sluice::v1::{DdlEntry, Gap, PartitionEnd, Summary, Tick, TopicLayout};

use super::*;
use crate::checker::Commit;

const TOPIC: &str = "t";
const PARTITIONS: i32 = 4;
const TABLE: (&str, &str) = ("shop", "orders");

fn partition() -> i32 {
    by_table(TABLE.0, TABLE.1, PARTITIONS as u32) as i32
}

fn layout() -> Layout {
    let topics = vec![TopicLayout { topic: TOPIC.into(), partitions: PARTITIONS }];
    Layout { topics, partition_by: "table".into(), hash: "murmur2".into() }
}

fn row(epoch: u64, seq: u64, change: u32, changes: u32, offset: i64) -> Row {
    let checksum = 1000 + offset as u32;
    let meta = RowMeta {
        epoch,
        seq,
        commit_ts: seq * 10 + 5,
        start_ts: seq * 10,
        change,
        changes,
        record: 0,
        records: 1,
        table_id: 7,
        schema_version: 3,
        origin: None,
        checksum,
    };
    Row {
        topic: TOPIC.into(),
        partition: partition(),
        offset,
        commit_ts_header: meta.commit_ts.to_string(),
        meta,
        checksum,
        table: Some((TABLE.0.into(), TABLE.1.into())),
    }
}

fn digest(rows: &[Row]) -> u32 {
    let mut digest = TxnDigest::default();
    rows.iter().for_each(|row| digest.push(row.meta.table_id, row.meta.change, row.checksum));
    digest.value()
}

fn ranges(rows: &[Row]) -> Vec<PartitionRange> {
    let offsets = || rows.iter().map(|row| row.offset);
    vec![PartitionRange {
        topic: TOPIC.into(),
        partition: partition(),
        first: offsets().min().unwrap(),
        last: offsets().max().unwrap(),
        count: rows.len() as u64,
    }]
}

fn txn(rows: &[Row]) -> Txn {
    let meta = &rows[0].meta;
    Txn {
        seq: meta.seq,
        commit_ts: meta.commit_ts,
        start_ts: meta.start_ts,
        kind: TxnKind::Rows.into(),
        changes: meta.changes,
        digest: digest(rows),
        ..Txn::default()
    }
}

fn start(epoch: u64, resumed_from: u64, next_seq: u64, ends: Vec<PartitionEnd>) -> CommitRecord {
    let body = Start {
        cluster_id: 1,
        contract_version: 1,
        resumed_from,
        next_seq,
        layout: Some(layout()),
        value_format: "protobuf".into(),
        rules_hash: 9,
        schema_topic: "t.schema".into(),
    };
    let summary = Some(Summary { layout: Some(layout()), ends, rules_hash: 9, ..Summary::default() });
    CommitRecord { summary, ..record(epoch, resumed_from, next_seq, Body::Start(body)) }
}

fn record(epoch: u64, watermark: u64, next_seq: u64, body: Body) -> CommitRecord {
    CommitRecord {
        feed_id: vec![1; 16].into(),
        epoch,
        watermark,
        next_seq,
        summary: None,
        pull_from: 0,
        body: Some(body),
    }
}

/// Two epochs: a batch of two transactions, a tick, a restart, a DDL with a row in its wake, a transaction in two parts
/// that another restart tears.
fn sound() -> Log {
    let (first, second) = (vec![row(1, 1, 0, 2, 0), row(1, 1, 1, 2, 1)], vec![row(1, 2, 0, 1, 2)]);
    let wake = vec![row(2, 3, 0, 1, 5)];
    let (one, two) = (vec![row(2, 4, 0, 3, 7), row(2, 4, 1, 3, 8)], vec![row(3, 4, 2, 3, 10)]);
    let both: Vec<Row> = first.iter().chain(&second).cloned().collect();
    let all: Vec<Row> = one.iter().chain(&two).cloned().collect();
    let end = |last| vec![PartitionEnd { topic: TOPIC.into(), partition: partition(), last }];
    let part = |part, rows: &[Row], so_far, digest, last| {
        Body::Part(Part {
            seq: 4,
            commit_ts: 45,
            start_ts: 40,
            part,
            changes_so_far: so_far,
            last,
            ranges: ranges(rows),
            digest_so_far: digest,
            origin: None,
        })
    };
    let ddl = Txn {
        kind: TxnKind::Ddl.into(),
        ddl: Some(DdlEntry { job_id: 77, ..DdlEntry::default() }),
        ..txn(&wake)
    };
    let mut records = [
        start(1, 3, 1, vec![]),
        record(1, 26, 3, Body::Txns(Txns { txns: vec![txn(&first), txn(&second)], ranges: ranges(&both) })),
        record(1, 30, 3, Body::Tick(Tick {})),
        start(2, 30, 3, end(2)),
        record(2, 35, 4, Body::Txns(Txns { txns: vec![ddl], ranges: ranges(&wake) })),
        record(2, 44, 4, part(0, &one, 2, digest(&one), false)),
        start(3, 44, 4, end(8)),
        record(3, 44, 4, part(1, &two, 3, digest(&all), true)),
        record(3, 45, 5, Body::Txns(Txns { txns: vec![Txn { parted: true, ..txn(&all) }], ranges: vec![] })),
    ];
    records[6].summary.as_mut().unwrap().unfinished = Some(Part { seq: 4, ..Part::default() });
    Log {
        commits: records
            .into_iter()
            .zip(0..)
            .map(|(record, offset)| Commit { offset, size: 100, keyed: false, record })
            .collect(),
        rows: [both, wake, all].concat(),
        schema_keys: ["table/7/3", "ddl/77"].map(str::to_owned).into(),
    }
}

fn txns(log: &mut Log, at: usize) -> &mut Txns {
    match &mut log.commits[at].record.body {
        Some(Body::Txns(txns)) => txns,
        other => panic!("{other:?}"),
    }
}

fn start_at(log: &mut Log, at: usize) -> &mut Start {
    match &mut log.commits[at].record.body {
        Some(Body::Start(start)) => start,
        other => panic!("{other:?}"),
    }
}

fn part_at(log: &mut Log, at: usize) -> &mut Part {
    match &mut log.commits[at].record.body {
        Some(Body::Part(part)) => part,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_sound_log_passes() {
    let report = verify(&sound());
    assert!(report.violations.is_empty(), "{report}");
    assert_eq!(
        (report.epochs, report.transactions, report.ddls, report.parts, report.ticks),
        (3, 3, 1, 2, 1)
    );
    assert_eq!((report.rows, report.ahead, report.watermark), (7, 0, 45));
    assert_eq!(report.by_table["shop.orders"][&(TOPIC.into(), partition())], 7);
}

#[test]
fn rows_past_the_stream_are_ahead_not_wrong() {
    let mut log = sound();
    log.rows.push(row(3, 5, 0, 1, 11));
    let report = verify(&log);
    assert!(report.violations.is_empty() && report.ahead == 1, "{report}");
}

/// Breaks a sound log in one way.
type Breaks = fn(&mut Log);

#[test]
fn every_broken_promise_is_found() {
    let ways: &[(&str, Breaks, &str)] = &[
        ("a row is lost", |log| drop(log.rows.remove(1)), "ends before change 1"),
        ("a row is there twice", |log| log.rows.insert(2, row(1, 1, 1, 2, 1)), "a second record"),
        ("a row comes again under another seq", |log| log.rows[2].meta.start_ts = 10, "is at t/"),
        ("a row from nowhere", |log| log.rows.insert(3, row(1, 0, 0, 1, 3)), "named by no commit record"),
        ("a zombie's row", |log| log.rows[3].meta.epoch = 1, "is of Facts"),
        ("a changed value", |log| log.rows[0].checksum ^= 1, "checksum"),
        (
            "a changed value with its checksum",
            |log| {
                log.rows[0].checksum ^= 1;
                log.rows[0].meta.checksum ^= 1;
            },
            "digest",
        ),
        (
            "rows swapped in their partition",
            |log| {
                let offset = log.rows[0].offset;
                log.rows[0].offset = log.rows[1].offset;
                log.rows[1].offset = offset;
                log.rows.swap(0, 1);
            },
            "comes after",
        ),
        (
            "a row in another partition",
            |log| {
                for row in &mut log.rows[..3] {
                    row.partition = (row.partition + 1) % PARTITIONS;
                }
            },
            "belongs into partition",
        ),
        ("header and meta differ", |log| log.rows[0].commit_ts_header.push('0'), "header commit_ts"),
        ("meta counts wrong", |log| log.rows[0].meta.change = 2, "change 2 of 2"),
        ("no such definition", |log| log.rows[0].meta.schema_version = 4, "no table/7/4"),
        (
            "no such DDL",
            |log| {
                log.schema_keys.remove("ddl/77");
            },
            "no ddl/77",
        ),
        ("no START", |log| drop(log.commits.remove(0)), "does not begin with START"),
        ("nothing at all", |log| *log = Log::default(), "stream is empty"),
        ("another feed", |log| log.commits[2].record.feed_id = vec![2; 16].into(), "another feed"),
        ("a hole in seq", |log| txns(log, 1).txns[1].seq = 3, "follows seq 1"),
        ("a lost commit record", |log| drop(log.commits.remove(1)), "follows seq 0"),
        (
            "a repeated commit record",
            |log| {
                let again = log.commits[1].clone();
                log.commits.insert(2, again);
            },
            "follows seq 2",
        ),
        ("a falling watermark", |log| log.commits[2].record.watermark = 20, "falls"),
        ("commit_ts above the watermark", |log| log.commits[1].record.watermark = 24, "outside"),
        ("commit_ts out of order", |log| txns(log, 1).txns.swap(0, 1), "outside"),
        ("start_ts not below commit_ts", |log| txns(log, 1).txns[0].start_ts = 15, "is not below"),
        (
            "an epoch that does not grow",
            |log| log.commits[3].record.epoch = 1,
            "START of epoch 1 after epoch 1",
        ),
        (
            "a record of another epoch",
            |log| log.commits[2].record.epoch = 2,
            "epoch 2 after START of epoch 1",
        ),
        ("resumed elsewhere", |log| start_at(log, 3).resumed_from = 26, "resumed from 26"),
        ("numbering starts over", |log| start_at(log, 3).next_seq = 1, "3 was due"),
        (
            "partitions grow silently",
            |log| {
                start_at(log, 3).layout.as_mut().unwrap().topics[0].partitions = 8;
            },
            "another layout",
        ),
        ("rules change inside a transaction", |log| start_at(log, 6).rules_hash = 1, "other rules"),
        ("a contract of the future", |log| start_at(log, 0).contract_version = 2, "contract version 2"),
        ("a wrong count", |log| txns(log, 1).ranges[0].count = 2, "is named"),
        ("a wrong first offset", |log| txns(log, 1).ranges[0].first = 1, "is named"),
        ("a wrong last offset", |log| txns(log, 1).ranges[0].last = 3, "is named"),
        (
            "a range too many",
            |log| {
                let mut range = txns(log, 1).ranges[0].clone();
                range.partition += 1;
                txns(log, 1).ranges.push(range);
            },
            "is named",
        ),
        ("too few changes named", |log| txns(log, 1).txns[0].changes = 1, "is of Facts"),
        ("a record too large", |log| log.commits[1].size = MAX_COMMIT_RECORD + 1, "at most"),
        ("a record with a key", |log| log.commits[1].keyed = true, "has a key"),
        ("a record without body", |log| log.commits[2].record.body = None, "no body"),
        ("wrong next seq", |log| log.commits[2].record.next_seq = 4, "says that seq 4"),
        ("a START without summary", |log| log.commits[3].record.summary = None, "no summary"),
        (
            "a summary that forgets",
            |log| log.commits[3].record.summary.as_mut().unwrap().ends.clear(),
            "sums up",
        ),
        (
            "a summary without the open transaction",
            |log| {
                log.commits[6].record.summary.as_mut().unwrap().unfinished = None;
            },
            "unfinished",
        ),
        ("a part is lost", |log| drop(log.commits.remove(5)), "after part 0 with 0"),
        ("a part out of order", |log| part_at(log, 7).part = 2, "after part"),
        (
            "the watermark passes an open transaction",
            |log| log.commits[5].record.watermark = 45,
            "is not before it",
        ),
        ("the last part is missing", |log| part_at(log, 7).last = false, "the last is missing"),
        ("a wrong digest in a part", |log| part_at(log, 5).digest_so_far ^= 1, "part 0: digest"),
        (
            "an open transaction is passed",
            |log| {
                let rows = vec![row(3, 4, 0, 1, 12)];
                let body = Txns { txns: vec![Txn { changes: 3, ..txn(&rows) }], ranges: vec![] };
                log.commits[8].record.body = Some(Body::Txns(body));
            },
            "was left open",
        ),
    ];
    let mut unseen = String::new();
    for (way, breaks, finding) in ways {
        let mut log = sound();
        breaks(&mut log);
        let report = verify(&log);
        if !report.violations.iter().any(|violation| violation.contains(finding)) {
            unseen += &format!("{way}: nothing says {finding:?} in\n{report}\n");
        }
    }
    assert!(unseen.is_empty(), "{unseen}");
}

#[test]
fn a_gap_stands_where_it_begins() {
    let with_gap = |before: u64, length: u64| {
        let mut log = sound();
        let tick = log.commits.iter_mut().find(|commit| matches!(commit.record.body, Some(Body::Tick(_))));
        let record = &mut tick.unwrap().record;
        let (from, cause) = (record.watermark - before, "lost".to_owned());
        record.body = Some(Body::Gap(Gap { from, to: from + length, cause }));
        verify(&log)
    };
    let report = with_gap(0, 5);
    assert!(report.violations.is_empty() && report.gaps.len() == 1, "{report}");
    for report in [with_gap(1, 5), with_gap(5, 5), with_gap(0, 0)] {
        assert!(report.violations.iter().any(|violation| violation.contains("gap (")), "{report}");
    }
}
