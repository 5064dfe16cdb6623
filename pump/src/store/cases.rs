//! Single cases on the disk that loses power, and one on a real file system.

use std::sync::Arc;

use bytes::Bytes;
use tidb::ts::{CommitTs, StartTs, Tso};

use super::crash::{CrashDisk, Dice};
use super::disk::Disk as _;
use super::keeper::Pace;
use super::model::{OPTIONS, open};
use super::open::open_on;
use super::segment::{Name, spare_name};
use super::{Fate, Options, Reader, Record, Recovered, StoreError};

fn prewrites(starts: std::ops::Range<u64>, len: usize) -> Vec<Record> {
    let prewrite = |start| Record::Prewrite {
        start_ts: StartTs::new(start),
        floor: Tso::new(start),
        payload: vec![start as u8; len].into(),
    };
    starts.map(prewrite).collect()
}

/// A group that is torn exactly where the log had been closed leaves nothing that a later life could stumble over.
#[test]
fn a_torn_group_behind_a_closed_end() {
    for seed in 0..200 {
        let disk = CrashDisk::default();
        let (mut appender, ..) = open(&disk).unwrap();
        appender.append(&prewrites(1..3, 100)).unwrap();
        appender.close().unwrap();
        let (mut appender, ..) = open(&disk).unwrap();
        disk.power_off_after(1);
        appender.append(&prewrites(3..8, 700)).unwrap_err();
        drop(appender);
        disk.reboot(&mut Dice(seed));

        let (mut appender, _, recovered) = open(&disk).unwrap();
        let survived = recovered.pending.len() as u64 + 1;
        assert!((3..=8).contains(&survived));
        // As long as a segment, so that the torn one is followed by another.
        appender.append(&prewrites(survived..12, 2000)).unwrap();
        drop(appender);
        disk.kill();
        let (_, _, recovered) = open(&disk).unwrap();
        assert_eq!(recovered.pending.len(), 11, "seed {seed}");
    }
}

/// A group takes one write and one sync, whatever its size; a prepared segment costs two more at its begin.
#[test]
fn one_sync_for_a_group() {
    let disk = CrashDisk::default();
    let (mut appender, ..) = open(&disk).unwrap();
    appender.append(&prewrites(1..2, 10)).unwrap();
    for group in [2..3, 3..30, 30..31] {
        let before = disk.counts();
        appender.append(&prewrites(group, 10)).unwrap();
        let after = disk.counts();
        assert_eq!((after.writes - before.writes, after.syncs - before.syncs), (1, 1));
    }
}

/// A segment is written over with zeros beforehand, which speeds up the sync of small groups; for large ones it would only
/// write everything twice.
#[test]
fn zeros_for_small_groups_only() {
    const SEGMENT: u64 = 6 << 20;
    let options = Options { segment_bytes: SEGMENT, ..OPTIONS };
    for (payload, zeros) in [(64 << 10, true), (512 << 10, false)] {
        let disk = CrashDisk::default();
        let (mut appender, ..) = open_on(Arc::new(disk.clone()), options, Pace::Inline).unwrap();
        let groups = SEGMENT / payload as u64;
        let mut start = 1;
        let mut fill = || {
            let before = disk.counts().writes;
            for _ in 0..groups {
                appender.append(&prewrites(start..start + 1, payload)).unwrap();
                start += 1;
            }
            disk.counts().writes - before - groups
        };
        // What the first segment took decides about the spares from the third on.
        fill();
        fill();
        let beside = fill();
        assert_eq!(
            beside > SEGMENT >> 20,
            zeros,
            "{beside} writes beside {groups} groups of {payload} bytes"
        );
    }
}

/// On a full disk prewrites are turned away before the reserve is touched; commits go on; space that comes back is used.
#[test]
fn the_reserve_is_for_commits() {
    let disk = CrashDisk::default();
    let (mut appender, reader, _) = open(&disk).unwrap();
    disk.limit(Some(disk.used() + 40 * 1024));
    let mut start = 1;
    while appender.admits(500).unwrap() {
        appender.append(&prewrites(start..start + 1, 440)).unwrap();
        start += 1;
    }
    assert!(appender.room() >= OPTIONS.reserve_bytes);
    let commit = |start| Record::Commit {
        start_ts: StartTs::new(start),
        commit_ts: CommitTs::new(1000 + start),
        payload: Bytes::new(),
    };
    let mut committed = 1;
    let error = loop {
        match appender.append(&[commit(committed)]) {
            Ok(()) => committed += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
    assert!(committed > OPTIONS.reserve_bytes / 64, "only {committed} commits fitted into the reserve");
    assert!(!appender.admits(500).unwrap());

    disk.limit(None);
    appender.tick();
    assert!(appender.admits(500).unwrap());
    appender.append(&[commit(committed)]).unwrap();
    let scan = reader.scan(Tso::ZERO, Tso::MAX, 1 << 20).unwrap();
    assert_eq!(scan.transactions.len() as u64, committed);
}

/// Where there is no space for the index, what it should hold is served from memory, at a start too, and goes to files when
/// space is back; making space by collecting works meanwhile.
#[test]
fn a_full_disk_does_not_stop_the_index() {
    let disk = CrashDisk::default();
    let options = Options { segment_bytes: 64 << 10, ..OPTIONS };
    let open = |disk: &CrashDisk| open_on(Arc::new(disk.clone()), options, Pace::Inline);
    let (mut appender, mut reader, _) = open(&disk).unwrap();
    let txn = |ts| {
        let commit = Record::Commit {
            start_ts: StartTs::new(ts),
            commit_ts: CommitTs::new(ts + 1),
            payload: Bytes::new(),
        };
        [prewrites(ts..ts + 1, 10).remove(0), commit, Record::Watermark(Tso::new(ts + 1))]
    };
    let starts = |reader: &Reader, after| -> Vec<u64> {
        let (mut found, mut after) = (Vec::new(), Tso::new(after));
        while after < Tso::new(10_000) {
            let scan = reader.scan(after, Tso::new(10_000), 1 << 20).unwrap();
            found.extend(scan.transactions.iter().map(|txn| txn.start_ts.get()));
            after = scan.reached;
        }
        found
    };
    let runs = |disk: &CrashDisk| {
        disk.files().iter().filter(|(name, _)| matches!(Name::parse(name), Name::Index)).count()
    };
    let mut expected = Vec::new();
    // What is prepared has room for the log; not a byte is left for the index, then enough to begin a file and no more.
    for (left, from) in [(0, 10), (1, 600)] {
        disk.limit(Some(disk.used() + left));
        let before = runs(&disk);
        for ts in (from..from + 500).step_by(10) {
            appender.append(&txn(ts)).unwrap();
            expected.push(ts);
        }
        assert!(runs(&disk) <= before + 1);
        assert!(reader.waiting() >= 9, "{} wait", reader.waiting());
        drop(appender);
        disk.kill();
        (appender, reader, _) = open(&disk).unwrap();
        assert_eq!(starts(&reader, 0), expected);
        disk.limit(None);
        appender.append(&txn(from + 500)).unwrap();
        assert_eq!(reader.waiting(), 0);
        expected.push(from + 500);
        assert_eq!(starts(&reader, 0), expected);
    }
    disk.limit(Some(disk.used()));
    appender.append(&txn(2000)).unwrap();
    appender.append(&[Record::Collected(Tso::new(551))]).unwrap();
    expected.retain(|&start| start > 551);
    expected.push(2000);
    assert_eq!(starts(&reader, 551), expected);
}

/// A prepared segment whose first block has another generation than its name (its use began again, and the power went) is
/// not used: records that it held before would count as new ones.
#[test]
fn a_spare_with_anothers_first_block_is_dropped() {
    let disk = CrashDisk::default();
    open(&disk).unwrap().0.close().unwrap();
    let spares = |disk: &CrashDisk| -> Vec<u64> {
        let names = disk.files().into_iter().map(|(name, _)| Name::parse(&name));
        names
            .filter_map(|name| if let Name::Spare(generation) = name { Some(generation) } else { None })
            .collect()
    };
    let [generation] = spares(&disk)[..] else { panic!("one is prepared") };
    let renamed = generation + (5 << 32);
    disk.rename(&spare_name(generation), &spare_name(renamed)).unwrap();
    disk.sync_dir().unwrap();
    open(&disk).unwrap().0.close().unwrap();
    let [prepared] = spares(&disk)[..] else { panic!("one is prepared") };
    assert!(prepared >> 32 > renamed >> 32, "{prepared:x} after {renamed:x}");
}

/// An open prewrite before the last checkpoint is not read by a replay, but will be needed: the start names it.
#[test]
fn a_rotten_open_prewrite_is_named_at_the_start() {
    let disk = CrashDisk::default();
    let (mut appender, ..) = open(&disk).unwrap();
    appender.append(&prewrites(1..2, 500)).unwrap();
    appender.close().unwrap();
    disk.kill();
    let (segment, _) =
        disk.files().into_iter().find(|(name, _)| matches!(Name::parse(name), Name::Segment(_))).unwrap();
    disk.damage(&segment, |bytes| bytes[4096 + 48 + 250] ^= 1);
    let error = open(&disk).map(drop).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { offset: 4096, .. }), "{error}");
    assert!(error.to_string().contains(&segment), "{error}");
}

/// Each way to lose files is refused by name.
#[test]
fn what_is_missing_is_named() {
    let filled = || {
        let disk = CrashDisk::default();
        let (mut appender, ..) = open(&disk).unwrap();
        for start in 1..10 {
            appender.append(&prewrites(start..start + 1, 7000)).unwrap();
        }
        appender.close().unwrap();
        disk.kill();
        disk
    };
    let refusal = |disk: &CrashDisk| open(disk).map(drop).unwrap_err().to_string();
    let segments = |disk: &CrashDisk| -> Vec<String> {
        let names = disk.files().into_iter().map(|(name, _)| name);
        names.filter(|name| matches!(Name::parse(name), Name::Segment(_))).collect()
    };

    let disk = filled();
    disk.lose("mark");
    assert!(refusal(&disk).contains("/crash/mark: missing or damaged"));

    let disk = filled();
    let names = segments(&disk);
    disk.lose(&names[1]);
    assert_eq!(
        refusal(&disk),
        format!(
            "/crash/{}: the part of the log before this file is gone (positions 16384 to 32768)",
            names[2]
        )
    );

    let disk = filled();
    disk.lose(segments(&disk).last().unwrap());
    assert!(refusal(&disk).contains("records 9 to 9 had been acknowledged"), "{}", refusal(&disk));

    let disk = filled();
    for name in segments(&disk) {
        disk.lose(&name);
    }
    assert!(refusal(&disk).contains("all segments of the log are gone; records below 10"));

    let disk = filled();
    let names = segments(&disk);
    disk.damage(&names[0], |bytes| bytes[10] ^= 1);
    assert_eq!(
        refusal(&disk),
        format!("/crash/{}: the segment's first block is damaged; restore it from a copy", names[0])
    );
}

/// Records that contradict what is stored are refused, and nothing of their group is written.
#[test]
fn contradictions_are_refused() {
    let disk = CrashDisk::default();
    let (mut appender, ..) = open(&disk).unwrap();
    let commit = |start, commit| Record::Commit {
        start_ts: StartTs::new(start),
        commit_ts: CommitTs::new(commit),
        payload: Bytes::new(),
    };
    let dropped = |start| Record::Dropped {
        start_ts: StartTs::new(start),
        fate: Fate::RolledBack,
        floor: Tso::new(start),
    };
    appender.append(&prewrites(1..4, 10)).unwrap();
    appender.append(&[commit(1, 10), Record::Watermark(Tso::new(12))]).unwrap();
    let before = disk.counts();
    for record in
        [commit(1, 20), commit(9, 20), commit(2, 12), dropped(9), dropped(1), prewrites(2..3, 10).remove(0)]
    {
        let group = [prewrites(50..51, 10).remove(0), record];
        let error = appender.append(&group).unwrap_err();
        assert!(matches!(error, StoreError::Unfounded { .. }), "{:?}: {error}", group[1]);
        assert!(!error.is_retryable());
    }
    assert_eq!(disk.counts(), before);
    appender.append(&[dropped(2), commit(2, 13), commit(3, 14)]).unwrap();
}

/// The same on a real file system, with the keeper on its thread: files are the owner's alone, collected space comes back.
#[test]
fn on_a_file_system() {
    use std::os::unix::fs::PermissionsExt as _;

    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("log");
    let options = Options { segment_bytes: 64 * 1024, spares: 1, recycled: 1, reserve_bytes: 0, ..OPTIONS };
    let (mut appender, reader, recovered) = super::open(&dir, options).unwrap();
    assert_eq!(recovered, Recovered { empty: true, ..Recovered::default() });
    let payload = |start: u64| Bytes::from(vec![start as u8; 1000 + start as usize]);
    for start in 1..500 {
        let floor = Tso::new(10 * start);
        appender
            .append(&[Record::Prewrite { start_ts: StartTs(floor), floor, payload: payload(start) }])
            .unwrap();
        let commit_ts = CommitTs::new(10 * start + 5);
        let commit =
            Record::Commit { start_ts: StartTs(floor), commit_ts, payload: Bytes::from_static(b"commit") };
        appender.append(&[commit, Record::Watermark(commit_ts.0)]).unwrap();
    }
    let all = |reader: &Reader, after: u64| -> Vec<_> {
        let mut found = Vec::new();
        let mut after = Tso::new(after);
        while after < Tso::new(4995) {
            let scan = reader.scan(after, Tso::new(4995), 50_000).unwrap();
            after = scan.reached;
            found.extend(scan.transactions);
        }
        found
    };
    let found = all(&reader, 0);
    assert!(found.iter().map(|found| found.prewrite.clone()).eq((1..500).map(payload)));
    assert!(found.iter().all(|found| found.commit == "commit"));

    let size = reader.size();
    assert_eq!(reader.through_for_size(size), None);
    // Two segments have to go for that: no more than the transactions in them.
    let through = reader.through_for_size(size - options.segment_bytes - 1).unwrap();
    assert!((CommitTs::new(10)..CommitTs::new(1250)).contains(&through), "{through}");
    appender.append(&[Record::Collected(through.0)]).unwrap();
    assert_eq!(reader.size(), size - 2 * options.segment_bytes);
    appender.append(&[Record::Collected(Tso::new(2500))]).unwrap();
    appender.finish_background().unwrap();
    assert!(reader.size() < size * 2 / 3);
    let on_disk: u64 =
        std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    let spares = 2 * options.segment_bytes;
    assert!(on_disk < reader.size() + spares + 64 * 1024, "{on_disk} bytes are left of {size}");
    for entry in std::fs::read_dir(&dir).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", entry.path());
    }
    assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    assert!(all(&reader, 2500) == found[249..]);
    assert!(matches!(reader.scan(Tso::new(2499), Tso::MAX, 1), Err(StoreError::Collected { .. })));

    appender.close().unwrap();
    let (_appender, reader, recovered) = super::open(&dir, options).unwrap();
    assert_eq!((recovered.replayed, recovered.rebuilt, recovered.empty), (0, false, false));
    assert!(all(&reader, 2500) == found[249..]);
}
