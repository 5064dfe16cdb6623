//! The store against a model in memory, on a disk that loses power, fills up, fails and rots.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use proptest::prelude::*;
use tidb::ts::{CommitTs, StartTs, Tso};

use super::crash::{CrashDisk, Dice};
use super::keeper::Pace;
use super::segment::Name;
use super::writer::open_on;
use super::{AppendError, Applied, Entry, OpenError, Options, ReadError, Reader, Recovered, Space, Writer};

const OPTIONS: Options = Options { segment_bytes: 16 * 1024, spares: 1, recycled: 2, reserve_bytes: 2048 };

/// What is known about a transaction.
#[derive(Clone, Debug, PartialEq)]
struct Txn {
    floor: u64,
    payload: Bytes,
    rollback_seen: bool,
}

/// The plain truth: what a store that never fails would hold.
#[derive(Clone, Debug, Default)]
struct Model {
    clock: u64,
    watermark: u64,
    collected: u64,
    pending: BTreeMap<u64, Txn>,
    committed: BTreeMap<u64, (u64, Bytes)>,
}

impl Model {
    fn now(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// Takes in an entry; says what the store must answer (positions aside).
    fn apply(&mut self, entry: &Entry) -> Applied {
        let start = entry.start_ts().get();
        match entry {
            Entry::Prewrite { floor, payload, .. } => {
                if let Some(known) = self.pending.get(&start) {
                    return if known.payload == payload { Applied::Repeated } else { Applied::Conflict };
                }
                if self.above(start).is_some() {
                    return Applied::Repeated;
                }
                let txn = Txn { floor: floor.get(), payload: payload.clone(), rollback_seen: false };
                self.pending.insert(start, txn);
                Applied::Pending(Default::default())
            }
            Entry::Commit { commit_ts, .. } => {
                let commit = commit_ts.get();
                if let Some(known) = self.above(start) {
                    return if known == commit { Applied::Repeated } else { Applied::Conflict };
                }
                let Some(txn) = self.pending.get(&start) else {
                    let known = commit <= self.watermark
                        && commit > self.collected
                        && self.committed.get(&commit).is_some_and(|(known, _)| *known == start);
                    return if known { Applied::Repeated } else { Applied::Unpaired };
                };
                let late = commit <= txn.floor || commit <= self.watermark;
                let txn = self.pending.remove(&start).unwrap();
                if late {
                    return Applied::Late;
                }
                self.committed.insert(commit, (start, txn.payload));
                Applied::Paired
            }
            Entry::Rollback { .. } => match self.pending.get_mut(&start) {
                Some(txn) if txn.rollback_seen => Applied::Repeated,
                Some(txn) => {
                    txn.rollback_seen = true;
                    Applied::Noted
                }
                None => Applied::Unpaired,
            },
            Entry::Dropped { .. } => match self.pending.remove(&start) {
                Some(_) => Applied::Paired,
                None => Applied::Repeated,
            },
        }
    }

    /// The commit_ts of a transaction that the watermark has not passed.
    fn above(&self, start: u64) -> Option<u64> {
        let above = self.committed.range(self.watermark + 1..);
        above.filter(|(_, (known, _))| *known == start).map(|(commit, _)| *commit).next()
    }

    fn emitted(&self) -> Vec<(u64, u64, Bytes)> {
        let range = self.committed.range(self.collected + 1..=self.watermark.max(self.collected));
        range.map(|(commit, (start, payload))| (*commit, *start, payload.clone())).collect()
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// Entries of these kinds and payload lengths, as one batch.
    Append(Vec<(u8, u32)>),
    Advance,
    /// Collects through a share of what was emitted.
    Collect(u8),
    Tick,
    Close,
    Kill,
    /// Power goes within the next steps, after this many operations.
    PowerOff(u8),
    /// The checkpoint is lost.
    LoseCheckpoint,
    /// The next sync but these fails.
    FailSync(u8),
    /// The disk has this many KiB left.
    Fill(u16),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = prop_oneof![8 => 0u32..300, 3 => 300u32..5000, 1 => 5000u32..40_000];
    let batch = prop::collection::vec((0u8..14, len), 1..12);
    prop::collection::vec(
        prop_oneof![
            30 => batch.prop_map(Step::Append),
            15 => Just(Step::Advance),
            4 => any::<u8>().prop_map(Step::Collect),
            3 => Just(Step::Tick),
            2 => Just(Step::Close),
            2 => Just(Step::Kill),
            6 => (0u8..30).prop_map(Step::PowerOff),
            1 => Just(Step::LoseCheckpoint),
            1 => (0u8..6).prop_map(Step::FailSync),
            1 => (0u16..40).prop_map(Step::Fill),
        ],
        1..60,
    )
}

struct Run {
    disk: CrashDisk,
    dice: Dice,
    model: Model,
    writer: Option<Writer>,
    reader: Reader,
    /// Sent but not acknowledged: a prefix of it may have survived.
    doubtful: Vec<Entry>,
    /// A collection that may have been decided before the power went.
    collecting: Option<u64>,
}

fn open(disk: &CrashDisk) -> Result<(Writer, Reader, Recovered), OpenError> {
    open_on(Arc::new(disk.clone()), OPTIONS, Pace::Inline)
}

impl Run {
    fn new(seed: u64) -> Self {
        let disk = CrashDisk::default();
        let (writer, reader, _) = open(&disk).unwrap();
        let model = Model::default();
        Self { disk, dice: Dice(seed), model, writer: Some(writer), reader, doubtful: vec![], collecting: None }
    }

    fn payload(&mut self, len: u32) -> Bytes {
        let mut dice = Dice(self.dice.roll(u64::MAX));
        (0..len).map(|_| dice.roll(256) as u8).collect::<Vec<_>>().into()
    }

    fn some_pending(&mut self) -> Option<u64> {
        let nth = self.dice.roll(self.model.pending.len() as u64) as usize;
        self.model.pending.keys().nth(nth).copied()
    }

    fn entry(&mut self, kind: u8, len: u32, used: &mut BTreeSet<u64>) -> Entry {
        let fresh = StartTs::new(self.model.now());
        let pending = self.some_pending().map_or(fresh, StartTs::new);
        let committed = {
            let nth = self.dice.roll(self.model.committed.len() as u64) as usize;
            self.model.committed.iter().nth(nth).map(|(commit, (start, _))| (*commit, *start))
        };
        used.insert(pending.get());
        match kind {
            // A prewrite comes a second time, with the same bytes or others; or that of a settled transaction does.
            6 => {
                let known = self.model.pending.get(&pending.get()).cloned();
                let payload = match known {
                    Some(txn) if self.dice.roll(4) > 0 => txn.payload,
                    _ => self.payload(len),
                };
                let floor = Tso::new(self.model.now());
                Entry::Prewrite { start_ts: pending, floor, payload }
            }
            7..=9 => {
                let commit_ts = CommitTs::new(self.model.now());
                let payload = self.payload(len % 50);
                Entry::Commit { start_ts: pending, commit_ts, payload }
            }
            10 => match committed {
                // A commit comes a second time, or contradicts the first.
                Some((commit, start)) => {
                    let other = self.dice.roll(4) == 0;
                    let commit = if other { self.model.now() } else { commit };
                    let payload = self.payload(len % 50);
                    Entry::Commit { start_ts: StartTs::new(start), commit_ts: CommitTs::new(commit), payload }
                }
                None => Entry::Dropped { start_ts: fresh },
            },
            11 => {
                // The commit of another copy: it was taken before this prewrite came.
                let floor = self.model.pending.get(&pending.get()).map_or(1, |txn| txn.floor);
                Entry::Commit { start_ts: pending, commit_ts: CommitTs::new(floor), payload: Bytes::new() }
            }
            12 => Entry::Rollback { start_ts: pending, payload: self.payload(len % 50) },
            13 => Entry::Dropped { start_ts: pending },
            _ => {
                let payload = self.payload(len);
                let floor = Tso::new(self.model.now());
                Entry::Prewrite { start_ts: fresh, floor, payload }
            }
        }
    }

    fn append(&mut self, batch: &[(u8, u32)]) {
        let mut used = BTreeSet::new();
        let entries: Vec<_> = batch.iter().map(|&(kind, len)| self.entry(kind, len, &mut used)).collect();
        let space = if entries.iter().any(|entry| matches!(entry, Entry::Prewrite { .. })) {
            Space::Keep
        } else {
            Space::Use
        };
        let writer = self.writer.as_mut().unwrap();
        match writer.append(&entries, space) {
            Ok(applied) => {
                let expected: Vec<_> = entries.iter().map(|entry| self.model.apply(entry)).collect();
                let known: Vec<_> = applied
                    .into_iter()
                    .map(|outcome| match outcome {
                        Applied::Pending(_) => Applied::Pending(Default::default()),
                        outcome => outcome,
                    })
                    .collect();
                assert_eq!(known, expected, "{entries:?}");
            }
            // What was stored before the space ran out is there, so it is taken in as far as it went.
            Err(AppendError::NoSpace { .. }) => {
                self.doubtful = entries;
                self.settle_doubts();
            }
            Err(AppendError::Poisoned { .. }) => {
                self.doubtful = entries;
                self.restart();
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// The pending prewrites as the store has them.
    fn stored_pending(&self) -> BTreeMap<u64, Txn> {
        let pairing = self.reader.pairing.lock().unwrap();
        let pending: Vec<_> = pairing.pending.values().copied().collect();
        drop(pairing);
        let read = |start_ts| self.reader.prewrite(start_ts).unwrap().unwrap();
        let txn = |pending: super::Pending| Txn {
            floor: pending.floor.get(),
            payload: read(pending.start_ts),
            rollback_seen: pending.rollback_seen,
        };
        pending.into_iter().map(|pending| (pending.start_ts.get(), txn(pending))).collect()
    }

    fn stored_above(&self) -> BTreeMap<u64, u64> {
        let pairing = self.reader.pairing.lock().unwrap();
        pairing.waiting.values().map(|waiting| (waiting.commit_ts.get(), waiting.start_ts.get())).collect()
    }

    /// Finds out how much of the unacknowledged batch survived: some prefix must explain what is there.
    fn settle_doubts(&mut self) {
        let doubtful = std::mem::take(&mut self.doubtful);
        let stored = self.stored_pending();
        let above = self.stored_above();
        let mut model = self.model.clone();
        for survived in 0..=doubtful.len() {
            if survived > 0 {
                model.apply(&doubtful[survived - 1]);
            }
            let watermark = model.watermark;
            let expected: BTreeMap<_, _> =
                model.committed.range(watermark + 1..).map(|(commit, (start, _))| (*commit, *start)).collect();
            if model.pending == stored && expected == above {
                self.model = model;
                return;
            }
        }
        panic!("lost or invented: {stored:?} {above:?}, model {:?}, doubtful {doubtful:?}", self.model);
    }

    /// Opens again after whatever happened, and compares everything.
    fn restart(&mut self) {
        self.writer = None;
        if self.disk.is_off() {
            self.disk.reboot(&mut self.dice);
        } else {
            self.disk.kill();
        }
        self.disk.limit(None);
        let mut attempts = 0;
        let (writer, reader, recovered) = loop {
            // Power may go during recovery too.
            if attempts < 3 && self.dice.roll(4) == 0 {
                let operations = self.dice.roll(12) + 1;
                self.disk.power_off_after(operations);
            }
            match open(&self.disk) {
                Ok(opened) if !self.disk.is_off() => break opened,
                Err(error) if !self.disk.is_off() => panic!("refused: {error}"),
                _ => self.disk.reboot(&mut self.dice),
            }
            attempts += 1;
        };
        self.disk.power_off_after(u64::MAX);
        self.reader = reader;
        self.writer = Some(writer);

        assert!(recovered.watermark.get() <= self.model.watermark);
        let collected = recovered.collected.get();
        assert!(collected == self.model.collected || Some(collected) == self.collecting);
        self.model.collected = collected;
        self.collecting = None;
        // The sorter starts at W of the stored floors and a fresh T, which is no smaller.
        self.writer.as_mut().unwrap().advance(Tso::new(self.model.watermark)).unwrap();
        self.settle_doubts();
        self.compare();
    }

    fn compare(&mut self) {
        let expected = self.model.emitted();
        let mut found = Vec::new();
        let mut after = CommitTs::new(self.model.collected);
        loop {
            let max = 1 + self.dice.roll(9) as usize;
            let budget = self.dice.roll(3000);
            let part = self.reader.scan(after, max, budget).unwrap();
            let Some(last) = part.last() else { break };
            after = last.commit_ts;
            found.extend(part.into_iter().map(|t| (t.commit_ts.get(), t.start_ts.get(), t.payload)));
        }
        assert_eq!(found, expected);
        assert_eq!(self.stored_pending(), self.model.pending);
        if let Some(&(commit, start, ref payload)) = expected.last() {
            let committed = self.reader.committed(CommitTs::new(commit)).unwrap().unwrap();
            assert_eq!(committed.start_ts.get(), start);
            self.reader.verify(&committed).unwrap();
            let half = committed.len / 2;
            let mut whole = self.reader.payload_range(&committed, 0..half).unwrap().to_vec();
            whole.extend(self.reader.payload_range(&committed, half..u32::MAX).unwrap());
            assert_eq!(whole, payload);
        }
        if self.model.collected > 0 {
            let error = self.reader.scan(CommitTs::new(self.model.collected - 1), 1, 1).unwrap_err();
            assert!(matches!(error, ReadError::Collected { .. }), "{error}");
        }
    }

    fn step(&mut self, step: &Step) {
        let writer = self.writer.as_mut().unwrap();
        match step {
            Step::Append(batch) => self.append(batch),
            Step::Advance => {
                let floors = self.model.pending.values().map(|txn| txn.floor).min();
                let watermark = floors.unwrap_or(u64::MAX).min(self.model.clock).max(self.model.watermark);
                match writer.advance(Tso::new(watermark)) {
                    Ok(()) => {
                        self.model.watermark = watermark;
                        assert_eq!(self.reader.watermark(), Tso::new(watermark));
                    }
                    Err(_) => self.restart(),
                }
            }
            Step::Collect(share) => {
                let (from, to) = (self.model.collected, self.model.watermark);
                if to > from {
                    let through = from + (to - from) * u64::from(*share) / 255;
                    self.collecting = Some(through);
                    match writer.collect(CommitTs::new(through)) {
                        Ok(done) => {
                            assert_eq!(done.through.get(), through);
                            self.model.collected = through;
                        }
                        Err(_) => self.restart(),
                    }
                }
            }
            Step::Tick => writer.tick(),
            Step::Close => {
                let writer = self.writer.take().unwrap();
                let closed = writer.close().is_ok();
                let full = self.disk.is_off();
                self.restart();
                assert!(closed || full || self.model.clock > 0);
            }
            Step::Kill => self.restart(),
            Step::PowerOff(operations) => self.disk.power_off_after(u64::from(*operations) + 1),
            Step::LoseCheckpoint => {
                if self.disk.files().iter().any(|(name, _)| name == "checkpoint") {
                    self.writer = None;
                    self.disk.kill();
                    self.disk.lose("checkpoint");
                    self.restart();
                }
            }
            Step::FailSync(syncs) => self.disk.fail_sync_after(u64::from(*syncs)),
            Step::Fill(kib) => self.disk.limit(Some(self.disk.used() + u64::from(*kib) * 1024)),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, max_shrink_iters: 4000, ..ProptestConfig::default() })]

    /// Whatever happens, what was acknowledged is there, in order, and nothing else.
    #[test]
    fn acknowledged_is_there(steps in steps(), seed in any::<u64>()) {
        let mut run = Run::new(seed);
        for step in &steps {
            run.step(step);
        }
        run.disk.limit(None);
        run.restart();
    }

    /// A rotten byte anywhere in the log: everything is there, or the start or the read refuses and names the place.
    #[test]
    fn rot_is_never_silent(steps in steps(), seed in any::<u64>(), place in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut run = Run::new(seed);
        for step in &steps {
            run.step(step);
        }
        run.disk.limit(None);
        run.restart();
        run.writer.take().unwrap().close().unwrap();
        run.disk.kill();
        let segments: Vec<_> =
            run.disk.files().into_iter().filter(|(name, _)| matches!(Name::parse(name), Name::Segment(_))).collect();
        let total: usize = segments.iter().map(|(_, len)| len).sum();
        prop_assume!(total > 0);
        let mut offset = place.index(total);
        let mut lose = "";
        for (name, len) in &segments {
            if offset < *len {
                run.disk.damage(name, |bytes| bytes[offset] ^= 1 << bit);
                lose = name;
                break;
            }
            offset -= len;
        }
        // Without a checkpoint every record is read at the start; with one, those before it when they are asked for.
        if run.dice.roll(2) == 0 && run.disk.files().iter().any(|(name, _)| name == "checkpoint") {
            run.disk.lose("checkpoint");
        }
        match open(&run.disk) {
            Err(error) => {
                let text = error.to_string();
                prop_assert!(text.contains(lose) || matches!(error, OpenError::LostTail { .. }), "{text}");
            }
            Ok((mut writer, reader, _)) => {
                writer.advance(Tso::new(run.model.watermark)).unwrap();
                let mut after = CommitTs::new(run.model.collected);
                let mut found = Vec::new();
                let error = loop {
                    match reader.scan(after, 3, 500) {
                        Ok(part) if part.is_empty() => break None,
                        Ok(part) => {
                            after = part[part.len() - 1].commit_ts;
                            found.extend(part.into_iter().map(|t| (t.commit_ts.get(), t.start_ts.get(), t.payload)));
                        }
                        Err(error) => break Some(error.to_string()),
                    }
                };
                let expected = run.model.emitted();
                match error {
                    Some(text) => prop_assert!(text.contains(lose), "{text}"),
                    None => prop_assert_eq!(&found, &expected),
                }
                prop_assert!(expected.starts_with(&found));
                for (start, txn) in &run.model.pending {
                    match reader.prewrite(StartTs::new(*start)) {
                        Ok(payload) => prop_assert_eq!(payload, Some(txn.payload.clone())),
                        Err(error) => prop_assert!(error.to_string().contains(lose), "{}", error),
                    }
                }
            }
        }
    }
}
