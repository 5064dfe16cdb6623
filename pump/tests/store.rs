//! The store against a model, through crashes, collection and damage.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use proptest::prelude::*;
use pump::config::StorageConfig;
use pump::store::{self, Appender, Collector, Fate, Pending, Reader, Record, Recovered, StoreError};
use tempfile::TempDir;
use tidb::ts::{CommitTs, StartTs, Tso};

struct Open {
    appender: Appender,
    reader: Reader,
    collector: Collector,
    recovered: Recovered,
}

fn open(dir: &Path) -> Result<Open, StoreError> {
    let (appender, reader, collector, recovered) = store::open(dir, &StorageConfig::default())?;
    Ok(Open { appender, reader, collector, recovered })
}

/// What kill -9 leaves: the files as the kernel has them at one moment. RocksDB compacts in the background: what changed
/// while it was copied is copied again.
fn copy(from: &Path) -> TempDir {
    loop {
        let to = tempfile::tempdir().unwrap();
        let before = listing(from);
        match copy_into(from, to.path()) {
            Ok(()) if before.is_some() && before == listing(from) => return to,
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// Names and lengths; `None` if a file vanished meanwhile.
fn listing(dir: &Path) -> Option<BTreeMap<PathBuf, u64>> {
    let mut listing = BTreeMap::new();
    for entry in std::fs::read_dir(dir.join("store")).unwrap() {
        let path = entry.unwrap().path();
        listing.insert(path.clone(), std::fs::metadata(path).ok()?.len());
    }
    Some(listing)
}

fn copy_into(from: &Path, to: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            std::fs::create_dir(&target)?;
            copy_into(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

fn logs(dir: &Path) -> Vec<PathBuf> {
    let mut logs: Vec<_> = std::fs::read_dir(dir.join("store"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .collect();
    logs.sort();
    logs
}

fn prewrite(start: u64, floor: u64, payload: &[u8]) -> Record {
    Record::Prewrite {
        start_ts: StartTs::new(start),
        floor: Tso::new(floor),
        payload: Bytes::copy_from_slice(payload),
    }
}

fn commit(start: u64, commit: u64) -> Record {
    Record::Commit {
        start_ts: StartTs::new(start),
        commit_ts: CommitTs::new(commit),
        payload: Bytes::from_static(b"c"),
    }
}

#[derive(Debug, Clone)]
enum Op {
    /// Groups of prewrites, by payload size.
    Prewrites(Vec<u16>),
    /// Settles some of the open ones: committed or dropped.
    Settle(Vec<(u8, bool)>),
    Raise(u8),
    Collect(u8),
    Checkpoint,
    Close,
    Crash,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => prop::collection::vec(0..2_000u16, 1..6).prop_map(Op::Prewrites),
        6 => prop::collection::vec(any::<(u8, bool)>(), 1..6).prop_map(Op::Settle),
        2 => any::<u8>().prop_map(Op::Raise),
        1 => any::<u8>().prop_map(Op::Collect),
        1 => Just(Op::Checkpoint),
        1 => Just(Op::Close),
        2 => Just(Op::Crash),
    ]
}

#[derive(Debug, Default)]
struct Model {
    clock: u64,
    payloads: BTreeMap<u64, Bytes>,
    open: BTreeMap<u64, (u64, bool)>,
    committed: BTreeMap<u64, u64>,
    dropped: BTreeSet<u64>,
    collected: u64,
}

impl Model {
    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn pick(&self, choice: u8) -> Option<u64> {
        (!self.open.is_empty()).then(|| *self.open.keys().nth(choice as usize % self.open.len()).unwrap())
    }

    fn check(&self, store: &Open) -> Result<(), TestCaseError> {
        for budget in [1, 3_000, usize::MAX] {
            let mut after = Tso::new(self.collected);
            let end = Tso::new(self.clock + 10);
            let mut found = Vec::new();
            while after < end {
                let scan = store.reader.scan(after, end, budget).unwrap();
                prop_assert!(scan.reached > after, "no progress");
                for stored in scan.transactions {
                    prop_assert!(stored.commit_ts.0 > after && stored.commit_ts.0 <= scan.reached);
                    prop_assert_eq!(&stored.prewrite, &self.payloads[&stored.start_ts.get()]);
                    prop_assert_eq!(&stored.commit[..], b"c");
                    found.push((stored.commit_ts.get(), stored.start_ts.get()));
                }
                after = scan.reached;
            }
            let expected: Vec<_> = self.committed.iter().map(|(&c, &s)| (c, s)).collect();
            prop_assert_eq!(found, expected);
        }
        for &start in &self.dropped {
            prop_assert!(store.reader.dropped(StartTs::new(start)).unwrap().is_some());
        }
        for (&start, payload) in &self.payloads {
            prop_assert_eq!(store.reader.prewrite(StartTs::new(start)).unwrap(), Some(payload.clone()));
        }
        prop_assert_eq!(store.reader.collected().get(), self.collected);
        Ok(())
    }

    fn check_recovered(&self, store: &Open) -> Result<(), TestCaseError> {
        let expected: Vec<_> = self
            .open
            .iter()
            .map(|(&start, &(floor, rollback_seen))| Pending {
                start_ts: StartTs::new(start),
                floor: Tso::new(floor),
                rollback_seen,
            })
            .collect();
        prop_assert_eq!(&store.recovered.pending, &expected);
        self.check(store)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn what_was_appended_is_there_whatever_happens(ops in prop::collection::vec(op(), 1..40)) {
        run(ops)?;
    }
}

fn run(ops: Vec<Op>) -> Result<(), TestCaseError> {
    let mut dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap();
    let mut model = Model::default();
    for op in ops {
        match op {
            Op::Prewrites(sizes) => {
                let mut group = Vec::new();
                for size in sizes {
                    let start = model.tick();
                    let floor = start + u64::from(size % 3);
                    let payload = vec![start as u8; size as usize];
                    group.push(prewrite(start, floor, &payload));
                    model.payloads.insert(start, payload.into());
                    model.open.insert(start, (floor, false));
                    model.clock = model.clock.max(floor);
                }
                store.appender.append(&group).unwrap();
            }
            Op::Settle(choices) => {
                let mut group = Vec::new();
                for (choice, committed) in choices {
                    let Some(start) = model.pick(choice) else { break };
                    let (floor, _) = model.open.remove(&start).unwrap();
                    if committed {
                        let at = model.tick();
                        group.push(commit(start, at));
                        model.committed.insert(at, start);
                    } else {
                        let (start_ts, floor) = (StartTs::new(start), Tso::new(floor));
                        group.push(Record::Dropped { start_ts, fate: Fate::RolledBack, floor });
                        model.dropped.insert(start);
                    }
                }
                store.appender.append(&group).unwrap();
            }
            Op::Raise(choice) => {
                let Some(start) = model.pick(choice) else { continue };
                let floor = model.tick();
                model.open.insert(start, (floor, true));
                let (start_ts, floor) = (StartTs::new(start), Tso::new(floor));
                store.appender.append(&[Record::Floor { start_ts, floor, rollback_seen: true }]).unwrap();
            }
            Op::Collect(choice) => {
                // Up to some commit, and never past an open prewrite's floor.
                let Some(&upto) = model.committed.keys().nth(choice as usize % (model.committed.len() + 1))
                else {
                    continue;
                };
                let upto = model.open.values().map(|&(floor, _)| floor).chain([upto]).min().unwrap();
                if upto <= model.collected {
                    continue;
                }
                model.collected = upto;
                store.appender.append(&[Record::Collected(Tso::new(upto))]).unwrap();
                while store.collector.clear().unwrap() > 0 {}
                for (_, start) in model.committed.extract_if(..=upto, |_, _| true) {
                    model.payloads.remove(&start);
                    prop_assert_eq!(store.reader.prewrite(StartTs::new(start)).unwrap(), None);
                }
                // Dropped ones go by their floor, which the model does not keep: whatever is gone must be old enough.
                let gone: Vec<_> = model
                    .dropped
                    .iter()
                    .copied()
                    .filter(|&start| store.reader.dropped(StartTs::new(start)).unwrap().is_none())
                    .collect();
                for start in gone {
                    prop_assert!(start <= upto);
                    model.dropped.remove(&start);
                    model.payloads.remove(&start);
                }
            }
            Op::Checkpoint => store.collector.checkpoint().unwrap(),
            Op::Close => {
                drop(store);
                store = open(dir.path()).unwrap();
                model.check_recovered(&store)?;
            }
            Op::Crash => {
                let after = copy(dir.path());
                drop(store);
                dir = after;
                store = open(dir.path()).unwrap();
                model.check_recovered(&store)?;
            }
        }
        model.check(&store)?;
    }
    Ok(())
}

/// A store with some groups, and its files as a crash leaves them.
fn crashed(groups: u64) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap();
    for i in 1..=groups {
        store.appender.append(&[prewrite(i, i, &[i as u8; 300])]).unwrap();
    }
    copy(dir.path())
}

fn refuses(dir: &Path, what: &str) {
    match open(dir) {
        Err(StoreError::Hole { .. } | StoreError::Open { .. }) => {}
        Err(other) => panic!("{what}: {other}"),
        Ok(store) => panic!("{what}: opened with {} groups", store.recovered.batches),
    }
}

#[test]
fn a_torn_log_is_refused_where_it_was_acknowledged() {
    let whole = crashed(20);
    let log = logs(whole.path()).pop().unwrap();
    let length = std::fs::metadata(&log).unwrap().len();
    for cut in [1, 7, 100, 300, 1_000, length / 2, length - 1, length] {
        let dir = copy(whole.path());
        let log = logs(dir.path()).pop().unwrap();
        std::fs::OpenOptions::new().write(true).open(log).unwrap().set_len(length - cut).unwrap();
        refuses(dir.path(), &format!("{cut} bytes cut off"));
    }
}

#[test]
fn a_torn_tail_that_nobody_was_told_of_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap();
    for i in 1..=5 {
        store.appender.append(&[prewrite(i, i, b"told")]).unwrap();
    }
    let told = copy(dir.path());
    let before = std::fs::metadata(logs(dir.path()).pop().unwrap()).unwrap().len();
    store.appender.append(&[prewrite(6, 6, &[6; 500])]).unwrap();
    let after = std::fs::metadata(logs(dir.path()).pop().unwrap()).unwrap().len();
    for keep in [before + 1, before + 10, (before + after) / 2, after - 1] {
        let crash = copy(dir.path());
        // The process died before it could mark the group as synced.
        std::fs::copy(told.path().join("durable"), crash.path().join("durable")).unwrap();
        let log = logs(crash.path()).pop().unwrap();
        std::fs::OpenOptions::new().write(true).open(log).unwrap().set_len(keep).unwrap();
        let store = open(crash.path()).unwrap();
        assert_eq!(store.recovered.batches, 5);
        assert_eq!(store.recovered.pending.len(), 5);
        assert_eq!(store.reader.prewrite(StartTs::new(6)).unwrap(), None);
    }
}

#[test]
fn damage_in_the_middle_is_refused() {
    let whole = crashed(20);
    let length = std::fs::metadata(logs(whole.path()).pop().unwrap()).unwrap().len() as usize;
    for at in (5..length).step_by(length / 23) {
        let dir = copy(whole.path());
        let log = logs(dir.path()).pop().unwrap();
        let mut bytes = std::fs::read(&log).unwrap();
        bytes[at] ^= 0x10;
        std::fs::write(&log, bytes).unwrap();
        refuses(dir.path(), &format!("bit flipped at {at}"));
    }
    // Zeros look to RocksDB like a log that ends there.
    for at in [length / 3, length - 200] {
        let dir = copy(whole.path());
        let log = logs(dir.path()).pop().unwrap();
        let mut bytes = std::fs::read(&log).unwrap();
        bytes[at..].fill(0);
        std::fs::write(&log, bytes).unwrap();
        refuses(dir.path(), &format!("zeros from {at}"));
    }
}

#[test]
fn a_lost_log_file_is_refused() {
    let dir = crashed(20);
    for log in logs(dir.path()) {
        std::fs::remove_file(log).unwrap();
    }
    refuses(dir.path(), "log removed");

    // In the middle: the log before a later one.
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap();
    store.appender.append(&[prewrite(1, 1, b"a")]).unwrap();
    let with_first = copy(dir.path());
    let first = logs(with_first.path()).pop().unwrap();
    drop(store);
    // Reopening starts another log; the first one is kept until its content is in tables.
    let mut store = open(dir.path()).unwrap();
    store.appender.append(&[prewrite(2, 2, b"b")]).unwrap();
    let crash = copy(dir.path());
    drop(store);
    let name = first.file_name().unwrap();
    if crash.path().join("store").join(name).try_exists().unwrap() {
        std::fs::remove_file(crash.path().join("store").join(name)).unwrap();
        refuses(crash.path(), "first log removed");
    } else {
        assert_eq!(open(crash.path()).unwrap().recovered.batches, 2);
    }
}

#[test]
fn a_checkpoint_moves_the_check_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap();
    for i in 1..=10 {
        store.appender.append(&[prewrite(i, i, b"x")]).unwrap();
    }
    assert_eq!(store.collector.since_checkpoint().unwrap(), 10);
    store.collector.checkpoint().unwrap();
    assert_eq!(store.collector.since_checkpoint().unwrap(), 0);
    store.appender.append(&[prewrite(11, 11, b"x")]).unwrap();
    let crash = copy(dir.path());
    let again = open(crash.path()).unwrap();
    assert_eq!((again.recovered.batches, again.recovered.pending.len()), (11, 11));
    drop(again);
    for log in logs(crash.path()) {
        std::fs::remove_file(log).unwrap();
    }
    // What was behind the checkpoint may have moved into tables when the copy was opened; the eleventh is either there
    // or missed.
    if let Ok(store) = open(crash.path()) {
        assert_eq!(store.recovered.pending.len(), 11);
    }
}

#[test]
fn without_its_mark_the_store_stays_shut() {
    let dir = crashed(3);
    std::fs::remove_file(dir.path().join("durable")).unwrap();
    assert!(matches!(open(dir.path()), Err(StoreError::Mark { .. })));
}

#[test]
fn a_commit_without_its_prewrite_is_an_error_not_a_skip() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path()).unwrap();
    store.appender.append(&[commit(5, 9)]).unwrap();
    match store.reader.scan(Tso::ZERO, Tso::new(100), 1 << 20) {
        Err(StoreError::MissingPrewrite { start_ts, commit_ts }) => {
            assert_eq!((start_ts.get(), commit_ts.get()), (5, 9));
        }
        other => panic!("{other:?}"),
    }
}
