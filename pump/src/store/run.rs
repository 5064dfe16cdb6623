//! Index files: entries sorted by commit_ts, 48 bytes each.
//!
//! An entry, little-endian: commit_ts, start_ts, position of the prewrite, position of the commit (8 bytes each), their
//! lengths (4 each), CRC-32C of those (4), zero (4). A file only grows; nothing in it changes once it can be read. What is
//! behind the entries that `index` counts is of no meaning, and is written over.

use std::io;

use tidb::ts::{CommitTs, StartTs};

use super::StoreError;
use super::pairing::{Committed, Place};
use super::record::{u32_at, u64_at};
use super::segment::{Position, Segments};

/// Bytes of an entry.
pub(super) const ENTRY: usize = 48;
/// Entries of a file.
const RUN: u64 = if cfg!(test) { 40 } else { 1 << 20 };
/// Entries of a read: the first one's, and the most of a later one.
const READ: (u64, u64) = if cfg!(test) { (2, 8) } else { (64, 4096) };

/// One index file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// commit_ts of its first entry.
    pub first: CommitTs,
    /// start_ts of its first entry, if it was spilled; then it is a part of the name, since another file may begin with the
    /// same commit_ts.
    pub spilled: Option<StartTs>,
    /// commit_ts of its last entry.
    pub last: CommitTs,
    /// How many entries it has.
    pub count: u64,
}

impl Run {
    /// A file that will begin with this entry.
    pub(super) fn beginning_with(entry: &Committed, spilled: bool) -> Self {
        Self {
            first: entry.commit_ts,
            spilled: spilled.then_some(entry.start_ts),
            last: entry.commit_ts,
            count: 0,
        }
    }

    /// The file's name.
    pub(super) fn name(&self) -> String {
        let first = self.first.get();
        match self.spilled {
            None => format!("{first:020}.run"),
            Some(start_ts) => format!("{first:020}-{:020}.spill", start_ts.get()),
        }
    }

    /// True for the same file, however long.
    pub(super) fn is(&self, other: &Self) -> bool {
        (self.first, self.spilled) == (other.first, other.spilled)
    }

    /// Whether entries that begin with this one may be appended: there is room, or it has the last one's commit_ts.
    pub(super) fn goes_on_with(&self, entry: &Committed) -> bool {
        self.count < RUN || self.last == entry.commit_ts
    }

    /// How many of these entries, which are not none, belong into it. Those of one commit_ts stay in one file.
    pub(super) fn takes(&self, entries: &[Committed]) -> usize {
        let mut take = entries.len().min(RUN.saturating_sub(self.count).max(1) as usize);
        while take < entries.len() && entries[take].commit_ts == entries[take - 1].commit_ts {
            take += 1;
        }
        take
    }
}

/// Appends an entry's bytes.
pub(super) fn encode(committed: &Committed, out: &mut Vec<u8>) {
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

/// The file's entries in (`after`, `upto`], in order: all of them, or about `max` (those of one commit_ts are not parted).
pub(super) fn entries(
    segments: &Segments,
    run: Run,
    after: CommitTs,
    upto: CommitTs,
    max: usize,
) -> Result<Vec<Committed>, StoreError> {
    let name = run.name();
    let io = |source| StoreError::Read { path: segments.disk.path(&name), source };
    let file = segments.file(&name).map_err(io)?;
    let read = |from: u64, count: u64| -> Result<Vec<Committed>, StoreError> {
        let mut bytes = vec![0; count as usize * ENTRY];
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
        match read(middle, 1)?.first() {
            Some(entry) if entry.commit_ts <= after => low = middle + 1,
            _ => high = middle,
        }
    }
    // Of many files that overlap each has only some of what is wanted, so a read begins small.
    let mut found: Vec<Committed> = Vec::new();
    let (mut count, most) = READ;
    while low < run.count {
        count = count.min(run.count - low);
        for entry in read(low, count)? {
            let enough =
                found.len() >= max && found.last().is_some_and(|last| last.commit_ts < entry.commit_ts);
            if enough || entry.commit_ts > upto {
                return Ok(found);
            }
            found.push(entry);
        }
        low += count;
        count = most.min(4 * count);
    }
    Ok(found)
}

/// True if the file has all its entries and the last is whole.
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
