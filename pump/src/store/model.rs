//! The store against a model in memory, on a disk that loses power, fills up, fails and rots.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use tidb::ts::{CommitTs, StartTs, Tso};

use super::appender::Appender;
use super::crash::{CrashDisk, Dice};
use super::index::WAITING;
use super::keeper::Pace;
use super::open::open_on;
use super::segment::Name;
use super::{Fate, Gap, Options, Reader, Record, Recovered, StoreError};

pub(super) const OPTIONS: Options = Options {
    segment_bytes: 16 * 1024,
    spares: 1,
    recycled: 2,
    reserve_bytes: 2048,
    waiting_bytes: u64::MAX,
};

/// An open prewrite.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Open {
    floor: u64,
    rollback_seen: bool,
    pub payload: Bytes,
}

/// A transaction as it is emitted: commit_ts, start_ts, prewrite, commit.
pub(super) type Txn = (u64, u64, Bytes, Bytes);

/// The plain truth: what a store that never fails would hold.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    clock: u64,
    /// The sorter's.
    pub watermark: u64,
    /// As recorded last.
    recorded: u64,
    pub collected: u64,
    pub open: BTreeMap<u64, Open>,
    dropped: BTreeMap<u64, (Fate, u64, Bytes)>,
    /// By commit_ts and start_ts.
    committed: BTreeMap<(u64, u64), Txn>,
    gaps: Vec<Gap>,
}

impl Model {
    fn now(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn apply(&mut self, record: &Record) {
        match record {
            Record::Prewrite { start_ts, floor, payload } => {
                let open = Open { floor: floor.get(), rollback_seen: false, payload: payload.clone() };
                self.open.insert(start_ts.get(), open);
            }
            Record::Floor { start_ts, floor, rollback_seen } => {
                let open = self.open.get_mut(&start_ts.get()).unwrap();
                (open.floor, open.rollback_seen) = (floor.get(), *rollback_seen);
            }
            Record::Commit { start_ts, commit_ts, payload } => {
                let (start, commit) = (start_ts.get(), commit_ts.get());
                let open = self.open.remove(&start).map(|open| open.payload);
                let prewrite = open.or_else(|| self.dropped.remove(&start).map(|dropped| dropped.2)).unwrap();
                self.committed.insert((commit, start), (commit, start, prewrite, payload.clone()));
            }
            Record::Dropped { start_ts, fate, floor } => {
                let open = self.open.remove(&start_ts.get()).unwrap();
                self.dropped.insert(start_ts.get(), (*fate, floor.get(), open.payload));
            }
            Record::Gap(gap) => self.gaps.push(gap.clone()),
            Record::Watermark(ts) => self.recorded = self.recorded.max(ts.get()),
            Record::Collected(_) => {}
        }
    }

    fn kept_gaps(&self) -> impl Iterator<Item = Gap> {
        self.gaps.iter().filter(|gap| gap.upto.get() > self.collected).cloned()
    }

    /// What is not collected, whatever the watermark.
    fn kept(&self) -> impl Iterator<Item = &Txn> {
        self.committed.range((self.collected + 1, 0)..).map(|(_, txn)| txn)
    }

    pub(super) fn emitted(&self) -> Vec<Txn> {
        self.kept().take_while(|txn| txn.0 <= self.watermark).cloned().collect()
    }
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    /// Records of these kinds and payload lengths, as one group.
    Append(Vec<(u8, u32)>),
    /// The sorter's watermark moves; told to the store or not.
    Advance(bool),
    /// Collects through a share of what was emitted.
    Collect(u8),
    Tick,
    Close,
    Kill,
    /// Power goes within the next steps, after this many operations.
    PowerOff(u8),
    /// The checkpoint is lost.
    LoseCheckpoint,
    /// One of the index's files is lost.
    LoseIndex(u8),
    /// The next sync but these fails.
    FailSync(u8),
    /// The disk has this many KiB left.
    Fill(u16),
}

pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = prop_oneof![8 => 0u32..300, 3 => 300u32..5000, 1 => 5000u32..40_000];
    let group = prop::collection::vec((0u8..16, len), 1..12);
    prop::collection::vec(
        prop_oneof![
            30 => group.prop_map(Step::Append),
            15 => any::<bool>().prop_map(Step::Advance),
            4 => any::<u8>().prop_map(Step::Collect),
            3 => Just(Step::Tick),
            5 => Just(Step::Close),
            2 => Just(Step::Kill),
            6 => (0u8..30).prop_map(Step::PowerOff),
            1 => Just(Step::LoseCheckpoint),
            1 => any::<u8>().prop_map(Step::LoseIndex),
            1 => (0u8..6).prop_map(Step::FailSync),
            1 => (0u16..40).prop_map(Step::Fill),
        ],
        1..60,
    )
}

pub(super) struct World {
    pub disk: CrashDisk,
    pub dice: Dice,
    pub model: Model,
    pub appender: Option<Appender>,
    reader: Reader,
    /// Transactions that may wait in memory; another number in each life.
    may_wait: u64,
    /// The disk is, or was in this life, too small.
    short: bool,
    /// Sent but not acknowledged: a prefix of it may have survived.
    doubtful: Vec<Record>,
}

pub(super) fn open(disk: &CrashDisk) -> Result<(Appender, Reader, Recovered), StoreError> {
    open_on(Arc::new(disk.clone()), OPTIONS, Pace::Inline)
}

/// With memory for so many commits above the watermark.
pub(super) fn open_for(disk: &CrashDisk, waiting: u64) -> Result<(Appender, Reader, Recovered), StoreError> {
    let options = Options { waiting_bytes: waiting * WAITING, ..OPTIONS };
    open_on(Arc::new(disk.clone()), options, Pace::Inline)
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let disk = CrashDisk::default();
        let (appender, reader, _) = open(&disk).unwrap();
        Self {
            disk,
            dice: Dice(seed),
            model: Model::default(),
            appender: Some(appender),
            reader,
            may_wait: u64::MAX / WAITING,
            short: false,
            doubtful: vec![],
        }
    }

    fn payload(&mut self, len: u32) -> Bytes {
        let mut dice = Dice(self.dice.roll(u64::MAX));
        (0..len).map(|_| dice.roll(256) as u8).collect::<Vec<_>>().into()
    }

    /// A record that may follow what `model` holds.
    fn record(&mut self, kind: u8, len: u32, model: &mut Model) -> Record {
        let nth = self.dice.roll(model.open.len() as u64) as usize;
        let open = model.open.iter().nth(nth).map(|(start, open)| (StartTs::new(*start), open.clone()));
        let kept: Vec<_> = model.dropped.iter().filter(|(_, dropped)| dropped.1 > model.collected).collect();
        let nth = self.dice.roll(kept.len() as u64) as usize;
        let dropped = kept.get(nth).map(|(start, _)| StartTs::new(**start));
        match (kind, open, dropped) {
            (6..=9, Some((start_ts, _)), _) | (15, _, Some(start_ts)) => {
                // Commits come in any order above their floor.
                let floor = model.open.get(&start_ts.get()).map_or(model.watermark, |open| open.floor);
                let low = floor.max(model.watermark) + 1;
                let commit = low + self.dice.roll((model.clock + 1).saturating_sub(low));
                // Several may have one commit_ts.
                let last = model.committed.last_key_value().map_or(0, |(key, _)| key.0);
                let commit = if last >= low && self.dice.roll(6) == 0 { last } else { commit };
                let commit_ts = CommitTs::new(if commit > model.clock { model.now() } else { commit });
                let payload = self.payload(len % 50);
                Record::Commit { start_ts, commit_ts, payload }
            }
            (10, Some((start_ts, open)), _) => {
                let floor = Tso::new(model.now());
                Record::Floor { start_ts, floor, rollback_seen: open.rollback_seen || len.is_multiple_of(2) }
            }
            (11 | 12, Some((start_ts, open)), _) => {
                let fate = match len % 3 {
                    0 => Fate::RolledBack,
                    1 => Fate::LateCopy { commit_ts: CommitTs::new(open.floor) },
                    _ => Fate::Unknown,
                };
                Record::Dropped { start_ts, fate, floor: Tso::new(open.floor) }
            }
            (13, ..) => {
                let start_ts = StartTs::new(model.now());
                let upto = Tso::new(model.now());
                Record::Gap(Gap {
                    start_ts,
                    after: start_ts.0,
                    upto,
                    cause: format!("gap {}", start_ts.get()),
                })
            }
            (14, ..) => Record::Watermark(Tso::new(model.watermark)),
            _ => {
                let start_ts = StartTs::new(model.now());
                let floor = Tso::new(model.now());
                Record::Prewrite { start_ts, floor, payload: self.payload(len) }
            }
        }
    }

    pub(super) fn append(&mut self, kinds: &[(u8, u32)]) {
        let mut model = self.model.clone();
        let mut records = Vec::new();
        for &(kind, len) in kinds {
            let record = self.record(kind, len, &mut model);
            model.apply(&record);
            records.push(record);
        }
        self.model.clock = model.clock;
        self.send(records, model);
    }

    /// Appends; `model` is what holds afterwards.
    fn send(&mut self, records: Vec<Record>, model: Model) {
        match self.appender.as_mut().unwrap().append(&records) {
            Ok(()) => self.model = model,
            Err(StoreError::NoSpace { .. }) => {}
            Err(StoreError::Stopped { .. }) => {
                let error = self.appender.as_mut().unwrap().append(&records).unwrap_err();
                assert!(matches!(error, StoreError::Stopped { .. }), "went on after a failure");
                self.doubtful = records;
                self.restart();
            }
            Err(error) => panic!("{error}"),
        }
        // The power may have gone in the keeper's work.
        if self.disk.is_off() {
            self.restart();
        }
        let waiting = self.reader.waiting() as u64;
        assert!(self.short || waiting <= self.may_wait, "{waiting} wait, not {}", self.may_wait);
        self.verify_open();
    }

    /// The open prewrites as the store has them.
    fn stored_open(&self) -> BTreeMap<u64, Open> {
        let pairing = self.reader.pairing.lock().unwrap().clone();
        let open = pairing.open.iter().map(|(&start_ts, open)| {
            let payload = self.reader.prewrite(start_ts).unwrap().unwrap();
            let open = Open { floor: open.floor.get(), rollback_seen: open.rollback_seen, payload };
            (start_ts.get(), open)
        });
        open.collect()
    }

    fn verify_open(&self) {
        assert_eq!(self.stored_open(), self.model.open);
    }

    fn stored_gaps(&self) -> impl Iterator<Item = Gap> {
        let collected = self.model.collected;
        self.reader.gaps(usize::MAX).into_iter().filter(move |gap| gap.upto.get() > collected)
    }

    fn stored_committed(&self) -> Vec<Txn> {
        let mut reader = Vec::new();
        let mut after = self.model.collected;
        loop {
            let scan = self.reader.scan(Tso::new(after), Tso::MAX, 1 << 20).unwrap();
            after = scan.reached.get();
            if scan.transactions.is_empty() {
                return reader;
            }
            reader.extend(scan.transactions.into_iter().map(txn));
        }
    }

    /// Finds out how much of the unacknowledged group survived: some prefix of it must explain what is there.
    fn settle_doubts(&mut self) {
        let doubtful = std::mem::take(&mut self.doubtful);
        let open = self.stored_open();
        let committed = self.stored_committed();
        let recorded = self.reader.pairing.lock().unwrap().watermark.get();
        let mut model = self.model.clone();
        for survived in 0..=doubtful.len() {
            if survived > 0 {
                model.apply(&doubtful[survived - 1]);
            }
            let same = model.open == open
                && committed.iter().eq(model.kept())
                && model.kept_gaps().eq(self.stored_gaps());
            if same && model.recorded == recorded {
                self.model = model;
                return;
            }
        }
        let open: Vec<_> = open.keys().collect();
        let committed: Vec<_> = committed.iter().map(|txn| txn.0).collect();
        let expected =
            (self.model.open.keys().collect::<Vec<_>>(), self.model.committed.keys().collect::<Vec<_>>());
        panic!(
            "lost or invented: {open:?} {committed:?} {recorded}, not {expected:?} {}",
            self.model.recorded
        );
    }

    /// Opens again after whatever happened, and compares everything.
    pub(super) fn restart(&mut self) {
        self.appender = None;
        self.after_crash();
        // A full disk may stay full.
        if self.dice.roll(2) == 0 {
            self.disk.limit(None);
            self.short = false;
        }
        self.may_wait = [0, 2, 6, 20, u64::MAX / WAITING][self.dice.roll(5) as usize];
        let mut attempts = 0;
        let (appender, reader, recovered) = loop {
            // Power may go during recovery too.
            if attempts < 3 && self.dice.roll(4) == 0 {
                let operations = self.dice.roll(12) + 1;
                self.disk.power_off_after(operations);
            }
            match open_for(&self.disk, self.may_wait) {
                Ok(opened) if !self.disk.is_off() => break opened,
                Err(error) if !self.disk.is_off() => panic!("refused: {error}"),
                _ => self.after_crash(),
            }
            attempts += 1;
        };
        self.disk.power_on();
        self.reader = reader;
        self.appender = Some(appender);

        assert!(recovered.watermark.get() <= self.model.watermark);
        let collecting = self.doubtful.iter().find_map(|record| match record {
            Record::Collected(through) => Some(through.get()),
            _ => None,
        });
        let collected = self.reader.collected().get();
        if collected != self.model.collected {
            assert_eq!(Some(collected), collecting);
            self.model.collected = collected;
        }
        if recovered.rebuilt {
            // The record of the last watermark may have been in a segment that was collected.
            assert!(
                (collected..=self.model.recorded).contains(&recovered.watermark.get())
                    || !self.doubtful.is_empty()
            );
            self.model.recorded = self.model.recorded.min(recovered.watermark.get());
        }
        self.settle_doubts();
        self.compare();
        let open: Vec<_> =
            recovered.pending.iter().map(|open| (open.start_ts.get(), open.floor.get())).collect();
        let expected: Vec<_> = self.model.open.iter().map(|(start, open)| (*start, open.floor)).collect();
        assert_eq!(open, expected);
    }

    fn after_crash(&mut self) {
        // At any operation the machine may lose its power, or only the process its life.
        if self.disk.is_off() && self.dice.roll(3) > 0 {
            self.disk.reboot(&mut self.dice);
        } else {
            self.disk.kill();
        }
    }

    fn compare(&mut self) {
        let expected = self.model.emitted();
        let mut found = Vec::new();
        let mut after = Tso::new(self.model.collected);
        let upto = Tso::new(self.model.watermark);
        while after < upto {
            let budget = self.dice.roll(3000) as usize;
            let scan = self.reader.scan(after, upto, budget).unwrap();
            assert!(scan.reached > after && scan.reached <= upto);
            after = scan.reached;
            found.extend(scan.transactions.into_iter().map(txn));
        }
        assert_eq!(found, expected);
        // The same from the index alone, a few at a time.
        let mut places = Vec::new();
        let mut after = CommitTs::new(self.model.collected);
        loop {
            let max = self.dice.roll(7) as usize;
            let more = self.reader.commits(after, CommitTs(upto), max).unwrap();
            let Some(last) = more.last() else { break };
            after = last.commit_ts;
            places.extend(more.iter().map(|found| (found.commit_ts.get(), found.start_ts.get())));
        }
        assert!(places.iter().copied().eq(expected.iter().map(|txn| (txn.0, txn.1))));
        self.verify_open();
        for (start, (fate, floor, payload)) in &self.model.dropped {
            let start_ts = StartTs::new(*start);
            if *floor > self.model.collected {
                assert_eq!(self.reader.dropped(start_ts), Some((*fate, Tso::new(*floor))));
                assert_eq!(self.reader.prewrite(start_ts).unwrap().as_ref(), Some(payload));
            }
        }
        assert!(self.model.kept_gaps().eq(self.stored_gaps()));

        if let Some((commit, start, prewrite, _)) = expected.last() {
            let (start_ts, commit_ts) = (StartTs::new(*start), CommitTs::new(*commit));
            assert!(self.reader.has_commit(start_ts, commit_ts).unwrap());
            assert!(!self.reader.has_commit(start_ts, CommitTs::new(commit + 1)).unwrap());
            let found = self.reader.commits(CommitTs(commit_ts.0.prev()), commit_ts, 1).unwrap();
            let place = found.iter().find(|found| found.start_ts == start_ts).unwrap().prewrite;
            self.reader.verify(place).unwrap();
            let half = place.len / 2;
            let mut whole = self.reader.payload_range(place, 0..half).unwrap().to_vec();
            whole.extend(self.reader.payload_range(place, half..u32::MAX).unwrap());
            assert_eq!(whole, *prewrite);
        }
        if self.model.collected > 0 {
            let before = Tso::new(self.model.collected - 1);
            let error = self.reader.scan(before, upto.max(before.next()), 1).unwrap_err();
            assert!(matches!(error, StoreError::Collected { .. }), "{error}");
        }
    }

    /// Bytes of the log's files up to its end.
    pub(super) fn end(&self) -> usize {
        let appender = self.appender.as_ref().unwrap();
        let first = appender.segments.list().first().map_or(0, |segment| segment.base);
        (appender.log.end().get() - first) as usize
    }

    /// One of these files is gone when the next life begins.
    fn lose(&mut self, which: impl Fn(&str) -> bool, nth: u8) {
        let files = self.disk.files().into_iter().map(|(name, _)| name);
        let files: Vec<_> = files.filter(|name| which(name)).collect();
        if !self.disk.is_off() && !files.is_empty() {
            self.appender = None;
            self.disk.kill();
            self.disk.lose(&files[usize::from(nth) % files.len()]);
            self.restart();
        }
    }

    pub(super) fn step(&mut self, step: &Step) {
        match step {
            Step::Append(kinds) => self.append(kinds),
            Step::Advance(record) => {
                let floors = self.model.open.values().map(|open| open.floor).min();
                let watermark = floors.unwrap_or(u64::MAX).min(self.model.clock);
                self.model.watermark = watermark.max(self.model.watermark);
                if *record {
                    let mut model = self.model.clone();
                    let record = Record::Watermark(Tso::new(model.watermark));
                    model.apply(&record);
                    self.send(vec![record], model);
                }
            }
            Step::Collect(share) => {
                let (from, to) = (self.model.collected, self.model.recorded);
                if to > from {
                    let through = from + (to - from) * u64::from(*share) / 255;
                    let model = Model { collected: through, ..self.model.clone() };
                    self.send(vec![Record::Collected(Tso::new(through))], model);
                    assert_eq!(self.reader.collected(), Tso::new(self.model.collected));
                }
            }
            Step::Tick => self.appender.as_ref().unwrap().tick(),
            Step::Close => {
                let _ = self.appender.take().unwrap().close();
                self.restart();
            }
            Step::Kill => self.restart(),
            Step::PowerOff(operations) => self.disk.power_off_after(u64::from(*operations) + 1),
            Step::LoseCheckpoint => self.lose(|name| name == "checkpoint", 0),
            Step::LoseIndex(nth) => self.lose(|name| Name::parse(name) == Name::Index, *nth),
            Step::FailSync(syncs) => self.disk.fail_sync_after(u64::from(*syncs)),
            Step::Fill(kib) => {
                self.disk.limit(Some(self.disk.used() + u64::from(*kib) * 1024));
                self.short = true;
            }
        }
    }
}

pub(super) fn txn(stored: super::Stored) -> Txn {
    (stored.commit_ts.get(), stored.start_ts.get(), stored.prewrite, stored.commit)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 4000, ..ProptestConfig::default() })]

    /// Whatever happens, what was acknowledged is there, in order, and nothing else.
    #[test]
    fn acknowledged_is_there(steps in steps(), seed in any::<u64>()) {
        let mut world = World::new(seed);
        for step in &steps {
            world.step(step);
        }
        world.restart();
    }
}
