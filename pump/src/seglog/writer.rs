//! The writing end, and opening: the log and the index as one store.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tidb::ts::{CommitTs, Tso};

use super::checkpoint::{self, Checkpoint};
use super::disk::Disk;
use super::keeper::{Discard, Keeper, Pace, Save};
use super::log::{Log, NewRecord};
use super::pairing::{Applied, Pairing};
use super::record::{Header, Kind};
use super::recover::{self, End, Survey, at};
use super::run::{self, Index, Published, run_name};
use super::segment::{DATA, Position, Segments};
use super::{AppendError, Entry, OpenError, Options, ReadError, Reader, Recovered, Space};

/// The watermark is noted in the log each time this much was appended, for a rebuild of the index.
const WATERMARK_EVERY: u64 = 256 * 1024;

/// What a collection did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Collected {
    /// Transactions at or below are gone.
    pub through: CommitTs,
    /// Bytes of segments given back.
    pub bytes: u64,
}

/// The only writer. Every call may wait for the disk: it belongs on a thread of its own.
pub struct Writer {
    log: Log,
    index: Index,
    segments: Arc<Segments>,
    published: Arc<RwLock<Published>>,
    pairing: Arc<Mutex<Pairing>>,
    reader: Reader,
    /// Where the log was, and how much a checkpoint took, when the last one was made.
    checkpointed: (u64, u64),
    /// Where the log was when the watermark was last noted in it, and what it was.
    noted: (u64, Tso),
    options: Options,
    /// The base of the last segment that has a record: it stays, or the sequence would be unknown.
    last_base: u64,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("end", &self.log.end()).finish_non_exhaustive()
    }
}

fn lock(pairing: &Mutex<Pairing>) -> MutexGuard<'_, Pairing> {
    pairing.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Writer {
    /// Stores `entries`: one write and one sync for all of them (one more per segment that they fill, and per second entry
    /// of a transaction within them). When this returns, all are durable, and the answer says what became of each.
    ///
    /// # Errors
    /// Nothing of the call may be acknowledged.
    pub fn append(&mut self, entries: &[Entry], space: Space) -> Result<Vec<Applied>, AppendError> {
        let mut applied = Vec::with_capacity(entries.len());
        let mut seen = HashSet::with_capacity(entries.len());
        let mut rest = entries;
        while !rest.is_empty() {
            // What a second entry of a transaction does depends on what became of the first.
            seen.clear();
            let now = rest.iter().take_while(|entry| seen.insert(entry.start_ts())).count();
            let (now, later) = rest.split_at(now);
            self.append_distinct(now, space, &mut applied)?;
            rest = later;
        }
        self.maybe_checkpoint()?;
        Ok(applied)
    }

    fn append_distinct(
        &mut self,
        entries: &[Entry],
        space: Space,
        applied: &mut Vec<Applied>,
    ) -> Result<(), AppendError> {
        self.log.check()?;
        let mut records = Vec::with_capacity(entries.len() + 1);
        let watermark = self.watermark_to_note();
        if let Some(watermark) = watermark {
            let payload: &[u8] = &[];
            records.push(NewRecord { kind: Kind::Watermark, start_ts: watermark.get(), stamp: 0, payload });
        }
        let notes = records.len();
        let before = applied.len();
        for entry in entries {
            let (outcome, record) = self.judge(entry)?;
            applied.push(outcome);
            if outcome.is_stored() {
                if u32::try_from(record.payload.len()).is_err() {
                    return Err(AppendError::TooLarge { start_ts: entry.start_ts(), len: record.payload.len() });
                }
                records.push(record);
            }
        }
        if records.len() == notes {
            return Ok(());
        }

        let mut positions = Vec::with_capacity(records.len());
        self.log.append(&records, space, |_, position| positions.push(position))?;

        let mut pairing = lock(&self.pairing);
        let mut stored = records.iter().zip(positions).skip(notes);
        for outcome in &mut applied[before..] {
            if !outcome.is_stored() {
                continue;
            }
            let Some((record, position)) = stored.next() else { break };
            self.last_base = self.segments.at(position).map_or(self.last_base, |segment| segment.base);
            let header = Header {
                len: record.payload.len() as u32,
                sequence: 0,
                generation: 0,
                in_batch: 0,
                kind: record.kind,
                start_ts: record.start_ts,
                stamp: record.stamp,
            };
            // A commit is only recorded as such if its prewrite is pending, so it cannot be an orphan.
            let _ = pairing.apply(&header, position, self.last_base);
            if *outcome == Applied::Pending(Position::default()) {
                *outcome = Applied::Pending(position);
            }
        }
        if let Some(watermark) = watermark {
            self.noted = (self.log.end().get(), watermark);
        }
        Ok(())
    }

    fn watermark_to_note(&self) -> Option<Tso> {
        let watermark = lock(&self.pairing).watermark;
        let due = self.log.end().get() >= self.noted.0.saturating_add(WATERMARK_EVERY);
        (due && watermark > self.noted.1).then_some(watermark)
    }

    /// What an entry does, and the record that says so.
    fn judge<'a>(&self, entry: &'a Entry) -> Result<(Applied, NewRecord<'a>), AppendError> {
        let pairing = lock(&self.pairing);
        let start_ts = entry.start_ts();
        let record =
            |kind, stamp, payload: &'a [u8]| NewRecord { kind, start_ts: start_ts.get(), stamp, payload };
        Ok(match entry {
            Entry::Prewrite { floor, payload, .. } => {
                let outcome = if pairing.pending.contains_key(&start_ts) {
                    drop(pairing);
                    let same = self.reader.prewrite(start_ts).map_err(|error| self.damaged(&error))?;
                    if same.as_ref() == Some(payload) { Applied::Repeated } else { Applied::Conflict }
                } else if pairing.decided.contains_key(&start_ts) {
                    Applied::Repeated
                } else {
                    Applied::Pending(Position::default())
                };
                (outcome, record(Kind::Prewrite, floor.get(), payload))
            }
            Entry::Commit { commit_ts, payload, .. } => {
                let indexed = || {
                    let found = self.reader.committed(*commit_ts);
                    match found {
                        Ok(found) => Ok(found.is_some_and(|found| found.start_ts == start_ts)),
                        // So old that it cannot be told any more; it changes nothing.
                        Err(ReadError::Collected { .. }) => Ok(false),
                        Err(error) => Err(self.damaged(&error)),
                    }
                };
                let outcome = pairing.judge_commit(start_ts, *commit_ts, indexed)?;
                let kind = if outcome == Applied::Paired { Kind::Commit } else { Kind::Stray };
                (outcome, record(kind, commit_ts.get(), payload))
            }
            Entry::Rollback { payload, .. } => {
                let outcome = match pairing.pending.get(&start_ts) {
                    Some(pending) if pending.rollback_seen => Applied::Repeated,
                    Some(_) => Applied::Noted,
                    None => Applied::Unpaired,
                };
                (outcome, record(Kind::Rollback, 0, payload))
            }
            Entry::Dropped { .. } => {
                let known = pairing.pending.contains_key(&start_ts);
                let outcome = if known { Applied::Paired } else { Applied::Repeated };
                (outcome, record(Kind::Dropped, 0, &[]))
            }
        })
    }

    fn damaged(&self, error: &ReadError) -> AppendError {
        AppendError::Poisoned { reason: error.to_string().into() }
    }

    /// Makes every transaction at or below `watermark` readable. A smaller one than before changes nothing.
    ///
    /// # Errors
    /// The disk failed.
    pub fn advance(&mut self, watermark: Tso) -> Result<(), AppendError> {
        self.log.check()?;
        let mut settled = Vec::new();
        lock(&self.pairing).advance(watermark, |committed| settled.push(committed));
        self.index.extend(&settled, watermark).map_err(|error| self.log.fail("write the index", &error))
    }

    /// Bytes of records that can be stored without asking the file system for space, the reserve included.
    pub fn room(&self) -> u64 {
        self.log.room()
    }

    /// Bytes of the log's segments on disk, the prepared ones not counted.
    pub fn size(&self) -> u64 {
        self.segments.list().iter().map(|segment| segment.size).sum()
    }

    /// Drops transactions at or below `through`, cut to the watermark. Whole segments go once every prewrite in them is
    /// settled and at or below; one that is not holds its segment and all after it, so that no commit loses its prewrite.
    ///
    /// # Errors
    /// The disk failed.
    pub fn collect(&mut self, through: CommitTs) -> Result<Collected, AppendError> {
        self.log.check()?;
        let first = {
            let mut pairing = lock(&self.pairing);
            let through = through.min(CommitTs(pairing.watermark));
            let first = pairing.first_needed(through).unwrap_or(u64::MAX).min(self.last_base);
            pairing.needed = pairing.needed.split_off(&first);
            first
        };
        let through = through.min(CommitTs(self.reader.watermark()));
        let runs = self.index.collect(through);
        let segments = self.segments.drop_below(first);
        let bytes = segments.iter().map(|segment| segment.size).sum();
        // The old checkpoint may lie in a segment that goes; without one the next start reads the whole log.
        self.checkpoint()?;
        let first = self.segments.list().first().map_or(0, |segment| segment.base);
        self.log.keeper.discard(Discard { segments, runs, first, collected: through.get() });
        self.log.check()?;
        Ok(Collected { through, bytes })
    }

    /// Saves the index's state, so that a later start replays little of the log. Done now and then by itself.
    ///
    /// # Errors
    /// The disk failed.
    pub fn checkpoint(&mut self) -> Result<(), AppendError> {
        self.log.check()?;
        self.index.flush().map_err(|error| self.log.fail("write the index", &error))?;
        let end = End { position: self.log.end(), sequence: self.log.next_sequence() };
        let runs = self.published.read().unwrap_or_else(PoisonError::into_inner).runs.clone();
        let bytes = Checkpoint::encode(end, &runs, &lock(&self.pairing));
        self.checkpointed = (end.position.get(), bytes.len() as u64);
        self.log.keeper.save(Save { runs: self.index.take_unsynced(), bytes });
        Ok(())
    }

    fn maybe_checkpoint(&mut self) -> Result<(), AppendError> {
        // Its own size counts, so that a large state does not cost more than the log itself.
        let (last, size) = self.checkpointed;
        if self.log.end().get() >= last + self.options.segment_bytes.max(8 * size) {
            self.checkpoint()?;
        }
        Ok(())
    }

    /// Closes the log in order: the next start has nothing to replay or to check.
    ///
    /// # Errors
    /// The disk failed; everything acknowledged is durable nevertheless.
    pub fn close(mut self) -> Result<(), AppendError> {
        self.checkpoint()?;
        let end = self.log.end();
        let dir = self.segments.disk.path("");
        let Self { log, .. } = self;
        log.keeper.close(end.get()).map_err(|error| AppendError::Poisoned {
            reason: format!("{}: could not close the log: {error}", dir.display()).into(),
        })
    }

    /// Lets a second pass for the keeper.
    #[cfg(test)]
    pub(super) fn tick(&self) {
        self.log.keeper.tick();
    }
}

/// Opens the log on a disk.
pub(super) fn open_on(
    disk: Arc<dyn Disk>,
    options: Options,
    pace: Pace,
) -> Result<(Writer, Reader, Recovered), OpenError> {
    if options.segment_bytes < 2 * DATA || !options.segment_bytes.is_multiple_of(DATA) {
        return Err(OpenError::Options("segment_bytes must be a multiple of 4096, and at least 8192"));
    }
    let mut survey = recover::survey(disk.as_ref(), &options)?;
    let segments = Arc::new(Segments::new(Arc::clone(&disk), survey.segments.clone()));
    let saved = usable_checkpoint(disk.as_ref(), &survey, &segments)?;
    let rebuild = saved.is_none() && !survey.segments.is_empty();
    remove_other_runs(disk.as_ref(), &survey, saved.as_ref())?;

    let collected = CommitTs::new(survey.mark.collected);
    let (from, runs, mut pairing) = match saved {
        Some(Checkpoint { end, runs, pairing }) => (end, runs, pairing),
        None => {
            let first = survey.segments.first().map_or(survey.mark.first, |segment| segment.base);
            (End { position: Position(first), sequence: 0 }, Vec::new(), Pairing::default())
        }
    };
    let runs = runs.into_iter().filter(|run| run.last > collected).collect();
    let published =
        Arc::new(RwLock::new(Published { runs, watermark: pairing.watermark, collected, ..Published::default() }));
    let mut index = Index::new(Arc::clone(&segments), Arc::clone(&published));

    let mut replayed = 0;
    let end = recover::replay(disk.as_ref(), &survey, from, |header, position| {
        replayed += 1;
        let segment = segments.at(position);
        let base = segment.map_or(0, |segment| segment.base);
        if header.kind == Kind::Watermark {
            let mut settled = Vec::new();
            let watermark = Tso::new(header.start_ts);
            pairing.advance(watermark, |committed| settled.push(committed));
            return at(disk.as_ref(), "", index.extend(&settled, watermark));
        }
        match pairing.apply(header, position, base) {
            // Its prewrite was collected, and so would the transaction be.
            Err(orphan) if orphan.commit_ts > collected => Err(OpenError::Orphan {
                path: disk.path(&segment.map(|segment| segment.name()).unwrap_or_default()),
                offset: position.get().saturating_sub(base),
                start_ts: orphan.start_ts,
                commit_ts: orphan.commit_ts,
            }),
            _ => Ok(()),
        }
    })?;

    let mut pending: Vec<_> = pairing.pending.values().copied().collect();
    pending.sort_unstable_by_key(|pending| pending.start_ts);
    let recovered = Recovered {
        pending,
        watermark: pairing.watermark,
        newest: pairing.newest,
        collected,
        index_rebuilt: rebuild,
        replayed,
    };

    let spares = std::mem::take(&mut survey.spares);
    let keeper = Keeper::start(
        Arc::clone(&segments),
        options,
        Arc::clone(&survey.mark_file),
        survey.mark,
        spares,
        survey.newest_generation,
        pace,
    );
    let keeper = at(disk.as_ref(), "", keeper)?;
    let log = Log::resume(Arc::clone(&segments), keeper, options, end.position, end.sequence);
    let log = at(disk.as_ref(), "", log)?;
    let pairing = Arc::new(Mutex::new(pairing));
    let reader = Reader {
        segments: Arc::clone(&segments),
        durable: log.durable(),
        published: Arc::clone(&published),
        pairing: Arc::clone(&pairing),
    };
    let noted = (end.position.get(), recovered.watermark);
    let last_base = survey
        .segments
        .iter()
        .rev()
        .map(|segment| segment.base)
        .find(|base| base + DATA < end.position.get())
        .unwrap_or(0);
    let mut writer = Writer {
        log,
        index,
        segments,
        published,
        pairing,
        reader: reader.clone(),
        checkpointed: (from.position.get(), 0),
        noted,
        options,
        last_base,
    };
    if rebuild {
        let saved = writer.checkpoint();
        saved.map_err(|error| OpenError::Io { path: disk.path(checkpoint::NAME), source: io::Error::other(error) })?;
    }
    Ok((writer, reader, recovered))
}

/// The checkpoint, if there is one and it fits what is on disk.
fn usable_checkpoint(
    disk: &dyn Disk,
    survey: &Survey,
    segments: &Arc<Segments>,
) -> Result<Option<Checkpoint>, OpenError> {
    let file = match disk.open(checkpoint::NAME) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(OpenError::Io { path: disk.path(checkpoint::NAME), source }),
    };
    let len = at(disk, checkpoint::NAME, file.len())?;
    let mut bytes = vec![0; len as usize];
    at(disk, checkpoint::NAME, file.read_exact_at(&mut bytes, 0))?;
    let Some(saved) = Checkpoint::decode(&bytes) else { return Ok(None) };
    let first = survey.segments.first().map_or(survey.mark.first, |segment| segment.base);
    if saved.end.position.get() < first {
        return Ok(None);
    }
    for run in &saved.runs {
        if run.last.get() <= survey.mark.collected {
            continue;
        }
        if !at(disk, &run.name(), run::restore(segments, run))? {
            return Ok(None);
        }
    }
    Ok(Some(saved))
}

/// Removes index files that no checkpoint rests on: they are written again from the log.
fn remove_other_runs(disk: &dyn Disk, survey: &Survey, saved: Option<&Checkpoint>) -> Result<(), OpenError> {
    for &first in &survey.runs {
        let used = saved.is_some_and(|saved| {
            saved.runs.iter().any(|run| run.first.get() == first && run.last.get() > survey.mark.collected)
        });
        if !used {
            at(disk, &run_name(first), disk.remove(&run_name(first)))?;
        }
    }
    Ok(())
}
