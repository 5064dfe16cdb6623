//! The watermark stands: what waits for it is spilled, and nobody who reads can tell.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tidb::ts::{CommitTs, StartTs, Tso};

use super::crash::{CrashDisk, Dice};
use super::index::WAITING;
use super::keeper::Pace;
use super::model::{OPTIONS, open_for};
use super::open::open_on;
use super::segment::Name;
use super::{Options, Reader, Record};

const MAY_WAIT: u64 = 10;

/// Transactions that begin at `ts` and commit just above.
fn transactions(ts: impl IntoIterator<Item = u64>) -> Vec<Record> {
    let transaction = |ts| {
        let start_ts = StartTs::new(ts);
        let payload = Bytes::from(vec![ts as u8; 10]);
        let commit_ts = CommitTs::new(ts + 1);
        [
            Record::Prewrite { start_ts, floor: start_ts.0, payload },
            Record::Commit { start_ts, commit_ts, payload: Bytes::new() },
        ]
    };
    ts.into_iter().flat_map(transaction).collect()
}

fn starts(reader: &Reader, after: u64, upto: u64) -> Vec<u64> {
    let (mut found, mut after) = (Vec::new(), Tso::new(after));
    while after < Tso::new(upto) {
        let scan = reader.scan(after, Tso::new(upto), 1000).unwrap();
        found.extend(scan.transactions.iter().map(|txn| txn.start_ts.get()));
        after = scan.reached;
    }
    found
}

fn index_files(disk: &CrashDisk) -> Vec<(String, usize)> {
    disk.files().into_iter().filter(|(name, _)| Name::parse(name) == Name::Index).collect()
}

/// Memory is bounded, whatever comes; every entry is written once, to few files; they go when they are collected.
#[test]
fn memory_is_bounded_and_nothing_is_written_twice() {
    let disk = CrashDisk::default();
    let (mut appender, mut reader, _) = open_for(&disk, MAY_WAIT).unwrap();
    // Nearly in order: none comes later than the third one after it.
    let mut dice = Dice(1);
    let mut order: Vec<_> = (1..=1000).map(|nth| (nth + dice.roll(4), nth)).collect();
    order.sort_unstable();
    for group in order.chunks(5) {
        appender.append(&transactions(group.iter().map(|(_, nth)| 10 * nth))).unwrap();
        assert!(reader.waiting() as u64 <= MAY_WAIT, "{} wait", reader.waiting());
    }
    let (waiting, files) = (reader.waiting() as u64, index_files(&disk));
    assert_eq!(reader.spilled() + waiting, 1000);
    assert!(files.len() <= 1000 / 40 + 1, "{} files: they overlap", files.len());
    let all: Vec<u64> = (1..=1000).map(|nth| 10 * nth).collect();
    assert_eq!(starts(&reader, 0, 20_000), all);

    // One from long ago, before all that was spilled.
    appender.append(&transactions([15])).unwrap();
    appender.append(&transactions((1001..=1010).map(|nth| 10 * nth))).unwrap();
    let all: Vec<u64> = [10, 15].into_iter().chain((2..=1010).map(|nth| 10 * nth)).collect();
    for kill in [false, true] {
        assert_eq!(starts(&reader, 0, 20_000), all);
        if kill {
            drop(appender);
            disk.kill();
        } else {
            appender.close().unwrap();
        }
        (appender, reader, _) = open_for(&disk, MAY_WAIT).unwrap();
        assert!(reader.waiting() as u64 <= MAY_WAIT);
    }
    appender.append(&[Record::Watermark(Tso::new(20_000))]).unwrap();
    assert_eq!(reader.waiting(), 0);
    assert_eq!(starts(&reader, 0, 20_000), all);
    let bytes: usize = index_files(&disk).iter().map(|(_, len)| len).sum();
    assert_eq!(bytes, all.len() * 48);

    // The watermark goes on: nothing has to be spilled, and what is written does not continue what was.
    let spilled = reader.spilled();
    for ts in 20_001..20_100 {
        appender.append(&transactions([3 * ts])).unwrap();
        appender.append(&[Record::Watermark(Tso::new(3 * ts + 1))]).unwrap();
    }
    assert_eq!(reader.spilled(), spilled);
    appender.append(&[Record::Collected(Tso::new(20_000))]).unwrap();
    let left: Vec<_> = index_files(&disk).into_iter().map(|(name, _)| name).collect();
    assert!(!left.is_empty() && left.iter().all(|name| name.ends_with(".run")), "{left:?}");
    assert_eq!(starts(&reader, 20_000, 100_000), (20_001..20_100).map(|ts| 3 * ts).collect::<Vec<_>>());
}

/// Where nothing can be spilled memory takes more than it is meant to, until there is space again.
#[test]
fn without_space_it_waits_in_memory() {
    let disk = CrashDisk::default();
    let options = Options { segment_bytes: 64 << 10, waiting_bytes: MAY_WAIT * WAITING, ..OPTIONS };
    let open = || open_on(Arc::new(disk.clone()), options, Pace::Inline).unwrap();
    let (mut appender, mut reader, _) = open();
    disk.limit(Some(disk.used()));
    for ts in 1..=100 {
        appender.append(&transactions([10 * ts])).unwrap();
    }
    let all: Vec<u64> = (1..=100).map(|nth| 10 * nth).collect();
    for _ in 0..2 {
        assert_eq!((reader.waiting(), reader.spilled()), (100, 0));
        assert_eq!(index_files(&disk), []);
        assert_eq!(starts(&reader, 0, 20_000), all);
        drop(appender);
        disk.kill();
        (appender, reader, _) = open();
    }
    disk.limit(None);
    // Nothing is passed yet, but it may be tried again.
    appender.append(&[Record::Watermark(Tso::new(1))]).unwrap();
    assert!(reader.waiting() as u64 <= MAY_WAIT, "{} wait", reader.waiting());
    assert_eq!(starts(&reader, 0, 20_000), all);
}

/// A checkpoint rests on all files, also on those that were too many to be kept open until it was saved.
#[test]
fn every_file_is_synced_before_a_checkpoint() {
    for seed in 0..20 {
        let disk = CrashDisk::default();
        let (mut appender, ..) = open_for(&disk, 1).unwrap();
        // Each below the last one: a file each.
        for nth in (1..=12).rev() {
            appender.append(&transactions([10 * nth])).unwrap();
        }
        assert_eq!(index_files(&disk).len(), 11);
        appender.close().unwrap();
        disk.reboot(&mut Dice(seed));
        let (_, reader, recovered) = open_for(&disk, 1).unwrap();
        assert!(!recovered.rebuilt, "seed {seed}");
        assert_eq!(starts(&reader, 0, 20_000), (1..=12).map(|nth| 10 * nth).collect::<Vec<_>>());
    }
}

/// An index that has lost a file is written again, and differently: from its first file on, the checkpoint that fitted the
/// old one must never be found again.
#[test]
fn a_useless_checkpoint_goes_before_the_index_is_written_again() {
    for operations in 1..30 {
        let disk = CrashDisk::default();
        let (mut appender, ..) = open_for(&disk, MAY_WAIT).unwrap();
        for ts in 1..=100 {
            appender.append(&transactions([10 * ts])).unwrap();
        }
        appender.close().unwrap();
        let before: BTreeSet<_> = index_files(&disk).into_iter().collect();
        let (lost, _) = before.first().unwrap();
        disk.lose(lost);

        disk.power_off_after(operations);
        let opened = open_for(&disk, 2 * MAY_WAIT);
        let saved = opened.is_ok() && !disk.is_off();
        drop(opened);
        disk.reboot(&mut Dice(operations));
        if !saved && disk.files().iter().any(|(name, _)| name == "checkpoint") {
            let now: BTreeSet<_> = index_files(&disk).into_iter().collect();
            let again: Vec<_> =
                now.difference(&before).chain(now.iter().filter(|file| file.0 == *lost)).collect();
            // Unless the new one came to be saved before the power went.
            let (_, reader, recovered) = open_for(&disk, MAY_WAIT).unwrap();
            assert!(again.is_empty() || !recovered.rebuilt, "{operations}: {again:?}");
            assert_eq!(starts(&reader, 0, 20_000).len(), 100, "{operations}");
        }
    }
}

/// On a real file system, beside a reader who follows the watermark: it gets everything once, in order, while it moves from
/// memory to files.
#[test]
fn a_reader_follows_while_it_is_spilled() {
    const GROUPS: u64 = 400;
    let parent = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 64 << 10, waiting_bytes: MAY_WAIT * WAITING, ..OPTIONS };
    let (mut appender, reader, _) = super::open(&parent.path().join("log"), options).unwrap();
    let watermark = AtomicU64::new(0);
    let mut found: Vec<u64> = Vec::new();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for group in 0..GROUPS {
                // Backwards within a group, and groups in pairs the other way round.
                let base = 100 * (group ^ 1);
                appender.append(&transactions((1..=5).rev().map(|nth| base + 10 * nth))).unwrap();
                if group % 20 == 19 {
                    let passed = 100 * (group + 1);
                    watermark.store(passed, Ordering::Release);
                    appender.append(&[Record::Watermark(Tso::new(passed))]).unwrap();
                }
            }
        });
        let mut after = 0;
        loop {
            let ended = writer.is_finished();
            let upto = watermark.load(Ordering::Acquire);
            while after < upto {
                let scan = reader.scan(Tso::new(after), Tso::new(upto), 1000).unwrap();
                found.extend(scan.transactions.iter().map(|txn| txn.start_ts.get()));
                after = scan.reached.get();
            }
            if ended {
                break;
            }
            std::thread::yield_now();
        }
    });
    let all = (0..GROUPS).flat_map(|group| (1..=5).map(move |nth| 100 * group + 10 * nth));
    assert!(found.into_iter().eq(all));
    assert!(reader.spilled() > 0);
}
