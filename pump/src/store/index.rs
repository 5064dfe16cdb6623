//! The index: where every committed transaction lies, by commit_ts.
//!
//! ```text
//!  commits ──▶ waiting (memory) ──watermark──▶ *.run     one after the other, each above the last
//!                    └──────too many─────────▶ *.spill   anywhere above the watermark of their time
//! ```
//!
//! A transaction stands in exactly one of the three. The watermark makes transactions final in commit_ts order, so what it
//! passes is appended to the *runs*, which are one sorted sequence. Until then transactions wait in memory, sorted too. When
//! more of them wait than memory is meant for (the watermark stands while TiKV does not answer), the lowest are *spilled*:
//! written to files of the same kind, at once and for good. The watermark passes those where they are: a reader merges the
//! runs, or what waits, with the spilled files that reach into the stretch it reads, so nothing is ever written a second
//! time. Since the lowest go first, a spilled file mostly goes on where the last one ended, and few of them overlap.
//!
//! **Order**: a reader gets each transaction once, in order, up to wherever it may read: what moves from memory to a file
//! does so under the lock under which the reader chose its sources, and files only grow.
//!
//! **A crash**: nothing here is synced before a checkpoint rests on it; the log has it all. Files that the checkpoint does
//! not name are removed at the start, entries that it does not count are written over.
//!
//! **A full disk**: what can be written neither to a run nor to a spilled file waits on in memory, and is served from there.
//! There may be more of it than memory is meant for, but no more than the log still finds space for.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use tidb::ts::{CommitTs, StartTs, Tso};

use super::StoreError;
use super::disk::DiskFile;
use super::keeper::is_full;
use super::pairing::Committed;
use super::run::{self, ENTRY, Run};
use super::segment::{Segments, write_at};

/// Bytes of memory that a waiting transaction takes, roughly: its entry, its key, and what the map leaves empty.
pub(super) const WAITING: u64 = 200;
/// Entries that are written, and moved from memory, at a time: readers wait for no more.
const PIECE: usize = if cfg!(test) { 8 } else { 1 << 16 };
/// Files written to that are kept open for the next checkpoint to sync.
const UNSYNCED: usize = if cfg!(test) { 3 } else { 64 };

/// What readers see; consistent under its lock.
#[derive(Debug, Default)]
pub(super) struct Published {
    /// In order, and all before `waiting`.
    pub runs: Vec<Run>,
    /// As they were begun. They may overlap each other, the runs, and what waits.
    pub spilled: Vec<Run>,
    /// Not in a file yet.
    pub waiting: BTreeMap<(CommitTs, StartTs), Committed>,
    pub collected: CommitTs,
    /// Entries of files that were dropped.
    pub given_up: u64,
    /// Entries that were spilled since the start.
    pub spilled_entries: u64,
}

impl Published {
    /// The greatest commit_ts, zero if there is none.
    pub(super) fn last(&self) -> CommitTs {
        let files = self.runs.last().into_iter().chain(&self.spilled).map(|run| run.last);
        files.chain(self.waiting.last_key_value().map(|(key, _)| key.0)).max().unwrap_or_default()
    }
}

/// The first of these, which are sorted: about `max`, those of one commit_ts are not parted.
fn first_of<'a>(sorted: impl Iterator<Item = &'a Committed>, max: usize) -> Vec<Committed> {
    let mut found: Vec<Committed> = Vec::new();
    for committed in sorted {
        if found.len() >= max && found.last().is_some_and(|last| last.commit_ts < committed.commit_ts) {
            break;
        }
        found.push(*committed);
    }
    found
}

/// The index's writing end.
pub(super) struct Index {
    segments: Arc<Segments>,
    pub(super) published: Arc<RwLock<Published>>,
    /// Bytes that waiting transactions may take.
    limit: u64,
    /// Files written to since the last checkpoint, by name.
    unsynced: Vec<(String, Arc<dyn DiskFile>)>,
    /// There was no space to spill; not tried again before the next watermark.
    full: bool,
}

impl Index {
    /// Continues behind the files of `published`; more than `limit` bytes of waiting transactions are spilled.
    pub(super) fn new(segments: Arc<Segments>, published: Published, limit: u64) -> Self {
        let published = Arc::new(RwLock::new(published));
        Self { segments, published, limit, unsynced: Vec::new(), full: false }
    }

    fn published(&self) -> RwLockReadGuard<'_, Published> {
        self.published.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> RwLockWriteGuard<'_, Published> {
        self.published.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds transactions that committed. Readers see them from here on; how far they may read is theirs to know.
    pub(super) fn add(&self, committed: impl IntoIterator<Item = Committed>) {
        let mut published = self.change();
        for committed in committed {
            published.waiting.insert((committed.commit_ts, committed.start_ts), committed);
        }
    }

    /// Moves what the watermark has passed from memory into files. After an error the rest waits on, still to be read.
    pub(super) fn settle(&mut self, watermark: Tso) -> io::Result<()> {
        self.full = false;
        loop {
            let (entries, last) = {
                let published = self.published();
                let passed =
                    published.waiting.values().take_while(|waiting| waiting.commit_ts.0 <= watermark);
                (first_of(passed, PIECE), published.runs.last().copied())
            };
            let Some(first) = entries.first() else { return Ok(()) };
            let run = last.filter(|run| run.goes_on_with(first));
            let run = run.unwrap_or_else(|| Run::beginning_with(first, false));
            self.move_into(run, &entries)?;
        }
    }

    /// Moves the lowest waiting transactions into files while more wait than may. After an error the rest waits on.
    pub(super) fn spill(&mut self) -> io::Result<()> {
        while !self.full {
            let (entries, last, settled) = {
                let published = self.published();
                let waiting = published.waiting.len();
                if waiting as u64 * WAITING <= self.limit {
                    break;
                }
                // Half of them at most: commits come nearly in order, and those to come should be above what is in the file.
                let entries = first_of(published.waiting.values(), (waiting / 2).clamp(1, PIECE));
                (entries, published.spilled.last().copied(), published.runs.last().map(|run| run.last))
            };
            let Some(first) = entries.first() else { break };
            // One that the watermark has passed is left, or it would reach over all that did not have to be spilled.
            let run = last.filter(|run| {
                run.last <= first.commit_ts && Some(run.last) > settled && run.goes_on_with(first)
            });
            let run = run.unwrap_or_else(|| Run::beginning_with(first, true));
            if let Err(error) = self.move_into(run, &entries) {
                self.full = is_full(&error);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Moves these, the lowest ones that wait, from memory to the end of a file, as many as belong into it.
    fn move_into(&mut self, mut run: Run, entries: &[Committed]) -> io::Result<()> {
        let entries = &entries[..run.takes(entries)];
        let Some(last) = entries.last() else { return Ok(()) };
        self.write(&run, entries)?;
        run.last = last.commit_ts;
        run.count += entries.len() as u64;

        let moved = {
            let mut published = self.change();
            let published = &mut *published;
            let files = match run.spilled {
                Some(_) => {
                    published.spilled_entries += entries.len() as u64;
                    &mut published.spilled
                }
                None => &mut published.runs,
            };
            match files.last_mut() {
                Some(known) if known.is(&run) => *known = run,
                _ => files.push(run),
            }
            let key = (last.commit_ts, last.start_ts);
            let mut kept = published.waiting.split_off(&key);
            kept.remove(&key);
            std::mem::replace(&mut published.waiting, kept)
        };
        // Freed when nobody waits for the lock.
        drop(moved);
        Ok(())
    }

    fn write(&mut self, run: &Run, entries: &[Committed]) -> io::Result<()> {
        let name = run.name();
        let known = self.unsynced.iter().find(|(known, _)| *known == name);
        let file = match known {
            Some((_, file)) => Arc::clone(file),
            None => {
                let file =
                    if run.count == 0 { self.begin(&name)? } else { self.segments.disk.open(&name)? };
                if self.unsynced.len() >= UNSYNCED {
                    sync(self.unsynced.remove(0).1.as_ref())?;
                }
                self.unsynced.push((name.clone(), Arc::clone(&file)));
                file
            }
        };
        let mut bytes = Vec::with_capacity(entries.len() * ENTRY);
        for committed in entries {
            run::encode(committed, &mut bytes);
        }
        let written = write_at(file.as_ref(), &bytes, run.count * ENTRY as u64);
        if let Err(error) = &written
            && is_full(error)
            && run.count == 0
        {
            // What it took may be what the log needs. If it cannot be removed, the next start will.
            self.unsynced.retain(|(known, _)| *known != name);
            let _ = self.segments.disk.remove(&name);
        }
        written
    }

    /// A new file. It may be there already, if it could not be removed when there was no space to write to it.
    fn begin(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        match self.segments.disk.create(name) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.segments.disk.open(name),
            created => created,
        }
    }

    /// The files that a checkpoint must sync before it rests on them.
    pub(super) fn take_unsynced(&mut self) -> Vec<Arc<dyn DiskFile>> {
        std::mem::take(&mut self.unsynced).into_iter().map(|(_, file)| file).collect()
    }

    /// Refuses readers below `through` from here on, and takes out what waits at or below it and the files that hold
    /// nothing above it; returns their names.
    pub(super) fn collect(&mut self, through: CommitTs) -> Vec<String> {
        let (dropped, waited) = {
            let mut published = self.change();
            let published = &mut *published;
            published.collected = published.collected.max(through);
            let passed = |run: &Run| run.last <= through;
            let runs = published.runs.extract_if(.., |run| passed(run));
            let dropped: Vec<Run> = runs.chain(published.spilled.extract_if(.., |run| passed(run))).collect();
            let kept = published.waiting.split_off(&(CommitTs(through.0.next()), StartTs::default()));
            let waited = std::mem::replace(&mut published.waiting, kept);
            published.given_up += dropped.iter().map(|run| run.count).sum::<u64>() + waited.len() as u64;
            (dropped, waited)
        };
        drop(waited);
        dropped.iter().map(Run::name).collect()
    }
}

/// Syncs an index file. That fails as more than a full disk: what was to be kept may be gone from memory, too.
pub(super) fn sync(file: &dyn DiskFile) -> io::Result<()> {
    file.sync().map_err(|error| io::Error::other(format!("sync of an index file: {error}")))
}

/// A part of the stream.
#[derive(Debug)]
pub(super) struct Stretch {
    /// In order.
    pub found: Vec<Committed>,
    /// All there is up to here is in `found`.
    pub reached: CommitTs,
}

impl Stretch {
    /// Merges in all that another source has up to `reached`, or the first `max` of it; ends where `max` are found.
    fn add(&mut self, more: Vec<Committed>, max: usize) {
        self.found.extend(more);
        // Two sorted stretches: a stable sort only merges them.
        self.found.sort_by_key(|committed| (committed.commit_ts, committed.start_ts));
        if let Some(last) = self.found.get(max - 1) {
            self.reached = self.reached.min(last.commit_ts);
        }
        let keep = self.found.partition_point(|committed| committed.commit_ts <= self.reached);
        self.found.truncate(keep);
    }
}

/// The transactions in (`after`, `upto`], in order: about `max` of them (those of one commit_ts are not parted), none only
/// if there is none.
pub(super) fn read(
    segments: &Segments,
    published: &RwLock<Published>,
    after: CommitTs,
    upto: CommitTs,
    max: usize,
) -> Result<Stretch, StoreError> {
    let max = max.max(1);
    let mut stretch = Stretch { found: Vec::new(), reached: upto };
    let mut files = {
        let published = published.read().unwrap_or_else(PoisonError::into_inner);
        if after < published.collected {
            return Err(StoreError::Collected { requested: after, oldest: published.collected });
        }
        if after >= upto {
            return Ok(stretch);
        }
        let at = published.runs.partition_point(|run| run.last <= after);
        let run = published.runs.get(at);
        match run {
            // Another run, or what waits, comes after it.
            Some(run) => stretch.reached = upto.min(run.last),
            None => {
                let from = Bound::Excluded((after, StartTs(Tso::MAX)));
                let to = Bound::Included((upto, StartTs(Tso::MAX)));
                let waiting = published.waiting.range((from, to)).map(|(_, committed)| committed);
                stretch.add(first_of(waiting, max), max);
            }
        }
        let spilled = published.spilled.iter().filter(|run| run.last > after && run.first <= stretch.reached);
        run.into_iter().chain(spilled).copied().collect::<Vec<_>>()
    };
    // Once enough is found, the files that begin behind it need not be read.
    files.sort_unstable_by_key(|run| run.first);
    for run in files {
        if run.first > stretch.reached {
            break;
        }
        match run::entries(segments, run, after, stretch.reached, max) {
            Ok(more) => stretch.add(more, max),
            Err(error) => {
                let oldest = published.read().unwrap_or_else(PoisonError::into_inner).collected;
                // Collected while it was read?
                return Err(if after < oldest {
                    StoreError::Collected { requested: after, oldest }
                } else {
                    error
                });
            }
        }
    }
    Ok(stretch)
}
