//! The index: every transaction that the watermark has passed, sorted by commit_ts, in files that only grow.
//!
//! The watermark makes transactions final in commit_ts order, so the sorted order is also the order of writing. An entry
//! is 32 bytes: commit_ts, start_ts, position, length of the prewrite binlog (4), CRC-32C of those (4); little-endian.
//! Nothing here is synced before a checkpoint rests on it: the log has it all.

use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use tidb::ts::{CommitTs, StartTs, Tso};

use super::ReadError;
use super::disk::DiskFile;
use super::pairing::Committed;
use super::record::{u32_at, u64_at};
use super::segment::{Position, Segments, write_at};

/// Bytes of an entry.
pub(super) const ENTRY: usize = 32;
/// Entries kept in memory before they are written to a file.
const TAIL: usize = if cfg!(test) { 5 } else { 8192 };
/// Entries of a file.
const RUN: u64 = if cfg!(test) { 13 } else { 1 << 20 };

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
    /// In order; strictly increasing across files.
    pub runs: Vec<Run>,
    /// What comes after the files.
    pub tail: Vec<Committed>,
    pub watermark: Tso,
    pub collected: CommitTs,
}

/// The index's writing end.
pub(super) struct Index {
    segments: Arc<Segments>,
    published: Arc<RwLock<Published>>,
    /// The file that the last run is appended to, once something was.
    active: Option<Arc<dyn DiskFile>>,
    /// Files appended to since the last checkpoint.
    unsynced: Vec<Arc<dyn DiskFile>>,
}

fn encode(committed: &Committed, out: &mut Vec<u8>) {
    let at = out.len();
    out.extend_from_slice(&committed.commit_ts.get().to_le_bytes());
    out.extend_from_slice(&committed.start_ts.get().to_le_bytes());
    out.extend_from_slice(&committed.position.get().to_le_bytes());
    out.extend_from_slice(&committed.len.to_le_bytes());
    let crc = crc32c::crc32c(&out[at..]);
    out.extend_from_slice(&crc.to_le_bytes());
}

fn decode(bytes: &[u8]) -> Option<Committed> {
    (crc32c::crc32c(bytes.get(..28)?) == u32_at(bytes, 28)).then(|| Committed {
        commit_ts: CommitTs::new(u64_at(bytes, 0)),
        start_ts: StartTs::new(u64_at(bytes, 8)),
        position: Position(u64_at(bytes, 16)),
        len: u32_at(bytes, 24),
    })
}

impl Index {
    /// Continues behind `published.runs`.
    pub(super) fn new(segments: Arc<Segments>, published: Arc<RwLock<Published>>) -> Self {
        Self { segments, published, active: None, unsynced: Vec::new() }
    }

    /// Adds transactions that have become final, in order, and publishes them with their watermark.
    pub(super) fn extend(&mut self, settled: &[Committed], watermark: Tso) -> io::Result<()> {
        let full = {
            let mut published = self.published.write().unwrap_or_else(PoisonError::into_inner);
            published.tail.extend_from_slice(settled);
            published.watermark = published.watermark.max(watermark);
            published.tail.len() >= TAIL
        };
        if full { self.flush() } else { Ok(()) }
    }

    /// Writes what is in memory to files.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let (tail, mut last) = {
            let published = self.published.read().unwrap_or_else(PoisonError::into_inner);
            (published.tail.clone(), published.runs.last().copied())
        };
        let mut rest = tail.as_slice();
        let mut done = Vec::new();
        while let Some(first) = rest.first() {
            // Entries of one commit_ts stay in one file: a reader's position between files is a commit_ts.
            let appendable = last.filter(|run| run.count < RUN || run.last == first.commit_ts);
            let mut run = match appendable {
                Some(run) => run,
                None => Run { first: first.commit_ts, last: first.commit_ts, count: 0 },
            };
            let file = match (&self.active, run.count) {
                (Some(file), 1..) => Arc::clone(file),
                (None, 1..) => self.segments.disk.open(&run.name())?,
                (_, 0) => self.segments.disk.create(&run.name())?,
            };
            let mut take = (RUN.saturating_sub(run.count) as usize).clamp(1, rest.len());
            while take < rest.len() && rest[take].commit_ts == rest[take - 1].commit_ts {
                take += 1;
            }
            let (now, later) = rest.split_at(take);
            let mut bytes = Vec::with_capacity(take * ENTRY);
            for committed in now {
                encode(committed, &mut bytes);
            }
            write_at(file.as_ref(), &bytes, run.count * ENTRY as u64)?;
            if !self.unsynced.iter().any(|known| Arc::ptr_eq(known, &file)) {
                self.unsynced.push(Arc::clone(&file));
            }
            self.active = Some(file);
            run.count += take as u64;
            run.last = now.last().map_or(run.last, |committed| committed.commit_ts);
            rest = later;
            last = Some(run);
            done.push(run);
        }
        let mut published = self.published.write().unwrap_or_else(PoisonError::into_inner);
        for run in done {
            match published.runs.last_mut() {
                Some(known) if known.first == run.first => *known = run,
                _ => published.runs.push(run),
            }
        }
        published.tail.clear();
        Ok(())
    }

    /// The files that a checkpoint must sync before it rests on them.
    pub(super) fn take_unsynced(&mut self) -> Vec<Arc<dyn DiskFile>> {
        std::mem::take(&mut self.unsynced)
    }

    /// Takes the files out that hold nothing above `through`; returns their names.
    pub(super) fn collect(&mut self, through: CommitTs) -> Vec<String> {
        let mut published = self.published.write().unwrap_or_else(PoisonError::into_inner);
        published.collected = published.collected.max(through);
        let drop = published.runs.partition_point(|run| run.last <= through);
        let dropped: Vec<_> = published.runs.drain(..drop).map(|run| run.name()).collect();
        if published.runs.is_empty() {
            self.active = None;
        }
        dropped
    }
}

/// The transactions after `after`, in order: at most about `max` (those of one commit_ts are not parted), none if `after`
/// is at the watermark.
pub(super) fn read(
    segments: &Segments,
    published: &RwLock<Published>,
    after: CommitTs,
    max: usize,
) -> Result<Vec<Committed>, ReadError> {
    let run = {
        let published = published.read().unwrap_or_else(PoisonError::into_inner);
        if after < published.collected {
            return Err(ReadError::Collected { requested: after, oldest: published.collected });
        }
        let at = published.runs.partition_point(|run| run.last <= after);
        match published.runs.get(at) {
            Some(run) => *run,
            None => {
                let from = published.tail.partition_point(|committed| committed.commit_ts <= after);
                let rest = &published.tail[from..];
                let mut take = max.max(1).min(rest.len());
                while take < rest.len() && rest[take].commit_ts == rest[take - 1].commit_ts {
                    take += 1;
                }
                return Ok(rest[..take].to_vec());
            }
        }
    };
    match read_run(segments, run, after, max.max(1)) {
        // Collected while it was read.
        Err(ReadError::Io { .. } | ReadError::Corrupt { .. })
            if after < published.read().unwrap_or_else(PoisonError::into_inner).collected =>
        {
            let oldest = published.read().unwrap_or_else(PoisonError::into_inner).collected;
            Err(ReadError::Collected { requested: after, oldest })
        }
        result => result,
    }
}

fn read_run(segments: &Segments, run: Run, after: CommitTs, max: usize) -> Result<Vec<Committed>, ReadError> {
    let name = run.name();
    let io = |source| ReadError::Io { path: segments.disk.path(&name), source };
    let file = segments.file(&name).map_err(io)?;
    let entries = |from: u64, count: usize| -> Result<Vec<Committed>, ReadError> {
        let mut bytes = vec![0; count * ENTRY];
        file.read_exact_at(&mut bytes, from * ENTRY as u64).map_err(io)?;
        let decoded = bytes.chunks_exact(ENTRY).enumerate().map(|(index, bytes)| {
            decode(bytes).ok_or_else(|| ReadError::Corrupt {
                path: segments.disk.path(&name),
                offset: (from + index as u64) * ENTRY as u64,
                what: "an index entry does not match its checksum; stop, remove the files *.run and the file checkpoint, and start again: the index is rebuilt from the log",
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

/// True if the file of `run` has all its entries and the last is whole; cuts what is behind.
pub(super) fn restore(segments: &Segments, run: &Run) -> io::Result<bool> {
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
    if decode(&bytes).is_none_or(|entry| entry.commit_ts != run.last) {
        return Ok(false);
    }
    if file.len()? > len {
        file.set_len(len)?;
    }
    Ok(true)
}
