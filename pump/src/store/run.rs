//! The index: every transaction that the watermark has passed, sorted by commit_ts, in files that only grow.
//!
//! The watermark makes transactions final in commit_ts order, so the sorted order is also the order of writing. Those
//! that it has not passed wait in memory, sorted too. An entry has 48 bytes, little-endian: commit_ts, start_ts, position
//! of the prewrite, position of the commit (8 each), their lengths (4 each), CRC-32C of those (4), zero (4). Nothing here
//! is synced before a checkpoint rests on it: the log has it all.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock};

use tidb::ts::{CommitTs, StartTs, Tso};

use super::StoreError;
use super::disk::DiskFile;
use super::pairing::{Committed, Place};
use super::record::{u32_at, u64_at};
use super::segment::{Position, Segments, write_at};

/// Bytes of an entry.
const ENTRY: usize = 48;
/// Entries of a file.
const RUN: u64 = if cfg!(test) { 40 } else { 1 << 20 };

/// One index file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// commit_ts of its first entry, which is its name.
    pub first: CommitTs,
    /// commit_ts of its last entry.
    pub last: CommitTs,
    /// How many entries it has.
    pub count: u64,
}

impl Run {
    pub(super) fn name(&self) -> String {
        run_name(self.first.get())
    }
}

/// The name of the index file whose first entry has this commit_ts.
pub(super) fn run_name(first: u64) -> String {
    format!("{first:020}.run")
}

/// What readers see; consistent under its lock.
#[derive(Debug, Default)]
pub(super) struct Published {
    /// In order, and all before `waiting`.
    pub runs: Vec<Run>,
    /// Not in a file yet.
    pub waiting: BTreeMap<(CommitTs, StartTs), Committed>,
    pub collected: CommitTs,
    /// Entries of files that were dropped.
    pub given_up: u64,
}

impl Published {
    /// Everything at or below this commit_ts is in files.
    pub(super) fn last_in_files(&self) -> CommitTs {
        self.runs.last().map_or(self.collected, |run| run.last)
    }
}

/// The index's writing end.
pub(super) struct Index {
    segments: Arc<Segments>,
    pub(super) published: Arc<RwLock<Published>>,
    /// The file that was written to last, and the commit_ts that names it.
    active: Option<(CommitTs, Arc<dyn DiskFile>)>,
    /// Files written to since the last checkpoint.
    unsynced: Vec<Arc<dyn DiskFile>>,
}

fn encode(committed: &Committed, out: &mut Vec<u8>) {
    let at = out.len();
    for number in [
        committed.commit_ts.get(),
        committed.start_ts.get(),
        committed.prewrite.position.get(),
        committed.commit.position.get(),
    ] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&committed.prewrite.len.to_le_bytes());
    out.extend_from_slice(&committed.commit.len.to_le_bytes());
    let crc = crc32c::crc32c(&out[at..]);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
}

fn decode(bytes: &[u8]) -> Option<Committed> {
    (crc32c::crc32c(bytes.get(..40)?) == u32_at(bytes, 40)).then(|| Committed {
        commit_ts: CommitTs::new(u64_at(bytes, 0)),
        start_ts: StartTs::new(u64_at(bytes, 8)),
        prewrite: Place { position: Position(u64_at(bytes, 16)), len: u32_at(bytes, 32) },
        commit: Place { position: Position(u64_at(bytes, 24)), len: u32_at(bytes, 36) },
    })
}

impl Index {
    /// Continues behind `published.runs`.
    pub(super) fn new(segments: Arc<Segments>, published: Arc<RwLock<Published>>) -> Self {
        Self { segments, published, active: None, unsynced: Vec::new() }
    }

    /// Adds transactions that committed. Readers see them from here on; how far they may read is theirs to know.
    pub(super) fn add(&self, committed: impl IntoIterator<Item = Committed>) {
        let mut published = self.published.write().unwrap_or_else(PoisonError::into_inner);
        for committed in committed {
            published.waiting.insert((committed.commit_ts, committed.start_ts), committed);
        }
    }

    /// Moves what the watermark has passed into files. After an error all of it waits on, still to be read: the next call
    /// writes the same bytes to the same places again.
    pub(super) fn settle(&mut self, watermark: Tso) -> io::Result<()> {
        let (passed, mut last) = {
            let published = self.published.read().unwrap_or_else(PoisonError::into_inner);
            let passed = published.waiting.values().take_while(|waiting| waiting.commit_ts.0 <= watermark);
            (passed.copied().collect::<Vec<_>>(), published.runs.last().copied())
        };
        let mut rest = passed.as_slice();
        let mut written = Vec::new();
        while let Some(first) = rest.first() {
            // Entries of one commit_ts stay in one file: a reader's place between files is a commit_ts.
            let mut run = match last.filter(|run| run.count < RUN || run.last == first.commit_ts) {
                Some(run) => run,
                None => Run { first: first.commit_ts, last: first.commit_ts, count: 0 },
            };
            let file = match &self.active {
                Some((first, file)) if *first == run.first => Arc::clone(file),
                _ if run.count == 0 => self.begin(&run)?,
                _ => self.segments.disk.open(&run.name())?,
            };
            self.active = Some((run.first, Arc::clone(&file)));
            let mut take = (RUN.saturating_sub(run.count) as usize).clamp(1, rest.len());
            while take < rest.len() && rest[take].commit_ts == rest[take - 1].commit_ts {
                take += 1;
            }
            let (now, later) = rest.split_at(take);
            let mut bytes = Vec::with_capacity(take * ENTRY);
            for committed in now {
                encode(committed, &mut bytes);
                run.last = committed.commit_ts;
            }
            write_at(file.as_ref(), &bytes, run.count * ENTRY as u64)?;
            if !self.unsynced.iter().any(|known| Arc::ptr_eq(known, &file)) {
                self.unsynced.push(file);
            }
            run.count += take as u64;
            rest = later;
            last = Some(run);
            written.push(run);
        }
        let mut published = self.published.write().unwrap_or_else(PoisonError::into_inner);
        for run in written {
            match published.runs.last_mut() {
                Some(known) if known.first == run.first => *known = run,
                _ => published.runs.push(run),
            }
        }
        for committed in passed {
            published.waiting.remove(&(committed.commit_ts, committed.start_ts));
        }
        Ok(())
    }

    /// The file of a new run. It may be there already, if it was made when there was no space to write to it.
    fn begin(&self, run: &Run) -> io::Result<Arc<dyn DiskFile>> {
        match self.segments.disk.create(&run.name()) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                self.segments.disk.open(&run.name())
            }
            created => created,
        }
    }

    /// The files that a checkpoint must sync before it rests on them.
    pub(super) fn take_unsynced(&mut self) -> Vec<Arc<dyn DiskFile>> {
        std::mem::take(&mut self.unsynced)
    }

    /// Refuses readers below `through` from here on, and takes out what waits at or below it and the files that hold
    /// nothing above it; returns their names.
    pub(super) fn collect(&mut self, through: CommitTs) -> Vec<String> {
        let mut published = self.published.write().unwrap_or_else(PoisonError::into_inner);
        published.collected = published.collected.max(through);
        let drop = published.runs.partition_point(|run| run.last <= through);
        let dropped: Vec<_> = published.runs.drain(..drop).collect();
        let kept = published.waiting.split_off(&(CommitTs(through.0.next()), StartTs::default()));
        let waited = std::mem::replace(&mut published.waiting, kept).len() as u64;
        published.given_up += dropped.iter().map(|run| run.count).sum::<u64>() + waited;
        if published.runs.is_empty() {
            self.active = None;
        }
        dropped.iter().map(Run::name).collect()
    }
}

/// The transactions in (`after`, `upto`], in order: about `max` of them (those of one commit_ts are not parted), none if
/// there is none.
pub(super) fn read(
    segments: &Segments,
    published: &RwLock<Published>,
    after: CommitTs,
    upto: CommitTs,
    max: usize,
) -> Result<Vec<Committed>, StoreError> {
    let run = {
        let published = published.read().unwrap_or_else(PoisonError::into_inner);
        if after < published.collected {
            return Err(StoreError::Collected { requested: after, oldest: published.collected });
        }
        let at = published.runs.partition_point(|run| run.last <= after);
        match published.runs.get(at) {
            Some(run) => *run,
            None if after >= upto => return Ok(Vec::new()),
            None => {
                let from = Bound::Excluded((after, StartTs(Tso::MAX)));
                let to = Bound::Included((upto, StartTs(Tso::MAX)));
                let mut found: Vec<Committed> = Vec::new();
                for (key, committed) in published.waiting.range((from, to)) {
                    if found.len() >= max && found.last().is_some_and(|last| last.commit_ts < key.0) {
                        break;
                    }
                    found.push(*committed);
                }
                return Ok(found);
            }
        }
    };
    match read_run(segments, run, after, max.max(1)) {
        Ok(mut found) => {
            let keep = found.partition_point(|committed| committed.commit_ts <= upto);
            found.truncate(keep);
            Ok(found)
        }
        Err(error) => {
            let oldest = published.read().unwrap_or_else(PoisonError::into_inner).collected;
            // Collected while it was read?
            Err(if after < oldest { StoreError::Collected { requested: after, oldest } } else { error })
        }
    }
}

fn read_run(
    segments: &Segments,
    run: Run,
    after: CommitTs,
    max: usize,
) -> Result<Vec<Committed>, StoreError> {
    let name = run.name();
    let io = |source| StoreError::Read { path: segments.disk.path(&name), source };
    let file = segments.file(&name).map_err(io)?;
    let entries = |from: u64, count: usize| -> Result<Vec<Committed>, StoreError> {
        let mut bytes = vec![0; count * ENTRY];
        file.read_exact_at(&mut bytes, from * ENTRY as u64).map_err(io)?;
        let decoded = bytes.chunks_exact(ENTRY).enumerate().map(|(index, bytes)| {
            decode(bytes).ok_or_else(|| StoreError::Corrupt {
                path: segments.disk.path(&name),
                offset: (from + index as u64) * ENTRY as u64,
                what: "an index entry does not match its checksum; stop the pump, remove the file `checkpoint` beside \
                       it, and start again: the index is then rebuilt from the log",
            })
        });
        decoded.collect()
    };

    let (mut low, mut high) = (0, run.count);
    while low < high {
        let middle = low + (high - low) / 2;
        match entries(middle, 1)?.first() {
            Some(entry) if entry.commit_ts <= after => low = middle + 1,
            _ => high = middle,
        }
    }
    let mut found = entries(low, max.min((run.count - low) as usize))?;
    let mut next = low + found.len() as u64;
    while next < run.count {
        let entry = entries(next, 1)?;
        if entry.first().map(|entry| entry.commit_ts) != found.last().map(|entry| entry.commit_ts) {
            break;
        }
        found.extend(entry);
        next += 1;
    }
    Ok(found)
}

/// True if the file of `run` has all its entries and the last is whole. What is behind them is written over.
pub(super) fn is_there(segments: &Segments, run: &Run) -> io::Result<bool> {
    let file = match segments.disk.open(&run.name()) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let len = run.count * ENTRY as u64;
    if run.count == 0 || file.len()? < len {
        return Ok(false);
    }
    let mut bytes = [0; ENTRY];
    file.read_exact_at(&mut bytes, len - ENTRY as u64)?;
    Ok(decode(&bytes).is_some_and(|entry| entry.commit_ts == run.last))
}
