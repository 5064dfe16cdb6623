//! Segment files: their names, their first block, where a position lies, and a bounded set of open files.

use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::disk::{Disk, DiskFile};
use super::record::{u32_at, u64_at};

/// Bytes of a segment's first block; records begin after it.
pub(super) const DATA: u64 = 4096;
const MAGIC: [u8; 8] = *b"SLCSEG\0\x01";
/// Files kept open for readers.
const OPEN_FILES: usize = 64;

/// A place in the log: the bytes of all segment files before it, collected ones included. Grows with every record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(pub(super) u64);

impl Position {
    /// The number, for messages and metrics.
    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a file of the log's directory is, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Name {
    /// `<base>.seg`: a part of the log that begins at this position.
    Segment(u64),
    /// `spare-<generation>.seg`: prepared, not yet part of the log; of this generation.
    Spare(u64),
    /// `<first commit_ts>.run` or `<first commit_ts>-<its start_ts>.spill`: a part of the index.
    Index,
    /// Left behind by a replacement that was cut short.
    Temporary,
    /// Not one of the above.
    Other,
}

impl Name {
    /// Reads a file name.
    pub(super) fn parse(name: &str) -> Self {
        if let Some(stem) = name.strip_suffix(".seg") {
            if let Some(generation) = stem.strip_prefix("spare-") {
                return generation_of(generation).map_or(Self::Other, Self::Spare);
            }
            return number(stem).map_or(Self::Other, Self::Segment);
        }
        let run = name.strip_suffix(".run").map(|stem| number(stem).is_some());
        let spilled = name.strip_suffix(".spill").and_then(|stem| stem.split_once('-'));
        let spilled = spilled.map(|(first, start_ts)| number(first).is_some() && number(start_ts).is_some());
        if run.or(spilled) == Some(true) {
            return Self::Index;
        }
        if name.ends_with(".tmp") { Self::Temporary } else { Self::Other }
    }
}

fn number(stem: &str) -> Option<u64> {
    if stem.len() == 20 && stem.bytes().all(|b| b.is_ascii_digit()) { stem.parse().ok() } else { None }
}

fn generation_of(stem: &str) -> Option<u64> {
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if stem.len() == 16 && stem.bytes().all(hex) { u64::from_str_radix(stem, 16).ok() } else { None }
}

/// The name of the segment that begins at `base`.
pub(super) fn segment_name(base: u64) -> String {
    format!("{base:020}.seg")
}

/// The name of a prepared segment.
pub(super) fn spare_name(generation: u64) -> String {
    format!("spare-{generation:016x}.seg")
}

/// One segment of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// The position of its first byte.
    pub base: u64,
    /// Its file's length.
    pub size: u64,
    /// In each of its records; bytes of an earlier use of the file carry another.
    pub generation: u64,
}

impl Segment {
    pub(super) fn name(&self) -> String {
        segment_name(self.base)
    }

    /// The position after its last byte, where the next segment begins.
    pub(super) fn end(&self) -> u64 {
        self.base.saturating_add(self.size)
    }
}

/// The first block of a segment file.
pub(super) fn encode_header(generation: u64, size: u64) -> Vec<u8> {
    let mut block = Vec::with_capacity(DATA as usize);
    block.extend_from_slice(&MAGIC);
    block.extend_from_slice(&generation.to_le_bytes());
    block.extend_from_slice(&size.to_le_bytes());
    let crc = crc32c::crc32c(&block);
    block.extend_from_slice(&crc.to_le_bytes());
    block.resize(DATA as usize, 0);
    block
}

/// Reads a segment's first block: its generation, and its size, which must be the file's. `None` if it is not whole.
pub(super) fn read_header(file: &dyn DiskFile) -> io::Result<Option<(u64, u64)>> {
    let len = file.len()?;
    let mut block = [0; 28];
    if len < DATA {
        return Ok(None);
    }
    file.read_exact_at(&mut block, 0)?;
    let whole = block[..8] == MAGIC
        && u32_at(&block, 24) == crc32c::crc32c(&block[..24])
        && u64_at(&block, 16) == len;
    Ok(whole.then(|| (u64_at(&block, 8), len)))
}

/// Writes `bytes` at `offset`.
pub(super) fn write_at(file: &dyn DiskFile, bytes: &[u8], offset: u64) -> io::Result<()> {
    file.write_all_at(&mut [IoSlice::new(bytes)], offset)
}

/// Fills a file with zeros from `from` to `to`, so that later writes need no new space on disk. Synced step by step: a sync
/// of the log that comes meanwhile waits for one step at most.
pub(super) fn write_zeros(file: &dyn DiskFile, from: u64, to: u64) -> io::Result<()> {
    let zeros = vec![0; 1 << 20];
    let mut at = from;
    while at < to {
        let part = (to - at).min(zeros.len() as u64);
        write_at(file, &zeros[..part as usize], at)?;
        file.sync()?;
        at += part;
    }
    Ok(())
}

/// The segments of the log, shared by the writer and the readers, and the files that are open.
pub(super) struct Segments {
    pub(super) disk: Arc<dyn Disk>,
    list: RwLock<Vec<Segment>>,
    open: Mutex<VecDeque<(String, Arc<dyn DiskFile>)>>,
}

impl fmt::Debug for Segments {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Segments").field("list", &self.list).finish_non_exhaustive()
    }
}

impl Segments {
    pub(super) fn new(disk: Arc<dyn Disk>, list: Vec<Segment>) -> Self {
        Self { disk, list: RwLock::new(list), open: Mutex::default() }
    }

    /// A copy of the list, in log order.
    pub(super) fn list(&self) -> Vec<Segment> {
        self.list.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The segment that holds `position`.
    pub(super) fn at(&self, position: Position) -> Option<Segment> {
        let list = self.list.read().unwrap_or_else(PoisonError::into_inner);
        let after = list.partition_point(|segment| segment.base <= position.0);
        list.get(after.checked_sub(1)?).filter(|segment| position.0 < segment.end()).copied()
    }

    /// Adds the newest segment.
    pub(super) fn push(&self, segment: Segment) {
        self.list.write().unwrap_or_else(PoisonError::into_inner).push(segment);
    }

    /// Takes the segments that end at or below `position` off the list; reading them is an error from here on.
    pub(super) fn drop_below(&self, position: u64) -> Vec<Segment> {
        let mut list = self.list.write().unwrap_or_else(PoisonError::into_inner);
        let keep = list.partition_point(|segment| segment.end() <= position);
        list.drain(..keep).collect()
    }

    /// An open file, from the set of recently used ones if it is there.
    pub(super) fn file(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = open.iter().position(|(known, _)| known == name) {
            // Moved to the back: the front is given up first.
            if let Some(entry) = open.remove(at) {
                let file = entry.1.clone();
                open.push_back(entry);
                return Ok(file);
            }
        }
        let file = self.disk.open(name)?;
        // A file that somebody still reads stays known, or `forget` could not tell.
        if open.len() >= OPEN_FILES
            && let Some(idle) = open.iter().position(|(_, file)| Arc::strong_count(file) == 1)
        {
            open.remove(idle);
        }
        open.push_back((name.to_owned(), file.clone()));
        Ok(file)
    }

    /// Closes a file that leaves the log. True if nobody reads it any more, so that its space may be written over.
    pub(super) fn forget(&self, name: &str) -> bool {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(at) = open.iter().position(|(known, _)| known == name) else { return true };
        open.remove(at).is_none_or(|(_, file)| Arc::strong_count(&file) == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(Name::parse(&segment_name(67_108_864)), Name::Segment(67_108_864));
        assert_eq!(Name::parse(&spare_name(0xabcd)), Name::Spare(0xabcd));
        assert_eq!(Name::parse("spare-9.seg"), Name::Other);
        assert_eq!(Name::parse("00000000000000000007.run"), Name::Index);
        assert_eq!(Name::parse("7.run"), Name::Other);
        assert_eq!(Name::parse("00000000000000000007-00000000000000000005.spill"), Name::Index);
        assert_eq!(Name::parse("00000000000000000007.spill"), Name::Other);
        assert_eq!(Name::parse("checkpoint.tmp"), Name::Temporary);
        assert_eq!(Name::parse("7.seg"), Name::Other);
        assert_eq!(Name::parse("mark"), Name::Other);
    }
}
