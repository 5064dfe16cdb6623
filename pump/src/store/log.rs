//! The log's writing end: one batch, one write, one sync.
//!
//! A batch is written behind the last record of the current segment. What does not fit begins the next segment, as a
//! batch of its own: a segment is begun only when everything before it is synced. The write goes on with zeros to the end
//! of its 4 KiB page, so that the kernel never has to read a page from disk to fill the rest of it.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::disk::DiskFile;
use super::keeper::{Keeper, Spare, is_full};
use super::record::{ALIGN, HEADER, Header, Kind, padded};
use super::segment::{DATA, Position, Segment, Segments, segment_name};
use super::{Options, StoreError};

/// The kernel's page.
const PAGE: u64 = 4096;
/// A payload of this length or more is written from where it lies instead of being copied beside its header.
const COPY_BELOW: usize = 16 * 1024;

/// A record to append.
#[derive(Clone, Debug)]
pub(super) struct NewRecord {
    pub kind: Kind,
    pub start_ts: u64,
    pub stamp: u64,
    /// At most `u32::MAX` bytes.
    pub payload: Bytes,
}

/// The segment that is written to.
struct Current {
    segment: Segment,
    file: Arc<dyn DiskFile>,
    /// Where the next record begins in the file.
    offset: u64,
    /// Where this life of the process went on in it, and how many batches it has taken since.
    resumed: u64,
    batches: u64,
}

/// A part of a batch that goes into one segment.
struct Part {
    /// The segment to begin, if it is not the current one.
    begin: Option<Spare>,
    records: Range<usize>,
}

/// The writer's state.
pub(super) struct Log {
    segments: Arc<Segments>,
    pub(super) keeper: Keeper,
    options: Options,
    current: Option<Current>,
    /// Where the first segment begins if there is none.
    start: u64,
    next_sequence: u64,
    /// The position after the last synced record; readers go no further.
    durable: Arc<AtomicU64>,
    poisoned: Option<Arc<str>>,
    scratch: Vec<u8>,
}

impl Log {
    /// Continues a log behind its last record. `end` is where that is, in its last segment; a log without segments begins
    /// at `end` itself.
    pub(super) fn resume(
        segments: Arc<Segments>,
        keeper: Keeper,
        options: Options,
        end: Position,
        next_sequence: u64,
    ) -> io::Result<Self> {
        let current = match segments.list().last() {
            Some(&segment) => {
                let offset = end.0.saturating_sub(segment.base).max(DATA);
                let file = segments.disk.open(&segment.name())?;
                Some(Current { segment, file, offset, resumed: offset, batches: 0 })
            }
            None => None,
        };
        keeper.opened(next_sequence)?;
        Ok(Self {
            segments,
            keeper,
            options,
            current,
            start: end.0,
            next_sequence,
            durable: Arc::new(AtomicU64::new(end.0)),
            poisoned: None,
            scratch: Vec::new(),
        })
    }

    /// The position after the last synced record, shared with readers.
    pub(super) fn durable(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.durable)
    }

    /// Where the next record will go if it fits into the current segment.
    pub(super) fn end(&self) -> Position {
        Position(self.current.as_ref().map_or(self.start, |current| current.segment.base + current.offset))
    }

    /// The sequence number of the next record.
    pub(super) fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// Bytes of records that fit into what is prepared.
    pub(super) fn room(&self) -> u64 {
        self.left() + self.keeper.spare_bytes()
    }

    fn left(&self) -> u64 {
        self.current.as_ref().map_or(0, |current| current.segment.size.saturating_sub(current.offset))
    }

    /// Why nothing can be written any more, if so.
    pub(super) fn check(&mut self) -> Result<(), StoreError> {
        if self.poisoned.is_none() {
            self.poisoned = self.keeper.failed();
        }
        match &self.poisoned {
            Some(reason) => Err(StoreError::Stopped { reason: Arc::clone(reason) }),
            None => Ok(()),
        }
    }

    /// Appends `records` and syncs them. `placed` is told each record's position, in order, before anything is written.
    ///
    /// # Errors
    /// After [`StoreError::NoSpace`] nothing has been written and `placed` was not called.
    pub(super) fn append(
        &mut self,
        records: &[NewRecord],
        mut placed: impl FnMut(&NewRecord, Position),
    ) -> Result<(), StoreError> {
        self.check()?;
        if records.is_empty() {
            return Ok(());
        }
        let parts = self.plan(records)?;

        let mut at = self.end().0;
        let mut end = self.current.as_ref().map_or(self.start, |current| current.segment.end());
        for part in &parts {
            if let Some(spare) = &part.begin {
                at = end + DATA;
                end += spare.size;
            }
            for index in part.records.clone() {
                placed(&records[index], Position(at));
                at += padded(records[index].payload.len());
            }
        }

        for part in parts {
            self.write(part.begin, &records[part.records])
                .map_err(|(what, error)| self.poison(format!("could not {what}: {error}")))?;
        }
        Ok(())
    }

    /// Stops the log for good after a failure beside it.
    pub(super) fn fail(&mut self, what: &str, error: &io::Error) -> StoreError {
        self.poison(format!("could not {what}: {error}"))
    }

    /// Stops the log for good.
    pub(super) fn poison(&mut self, reason: String) -> StoreError {
        let reason = self.poisoned.get_or_insert_with(|| reason.into());
        StoreError::Stopped { reason: Arc::clone(reason) }
    }

    /// Decides which segment each record goes to, and takes the segments it needs; all space is there when this returns.
    fn plan(&mut self, records: &[NewRecord]) -> Result<VecDeque<Part>, StoreError> {
        let mut parts = VecDeque::from([Part { begin: None, records: 0..0 }]);
        let planned = self.fill(&mut parts, records);
        if let Err(error) = planned {
            for spare in parts.into_iter().rev().filter_map(|part| part.begin) {
                self.keeper.put_back(spare);
            }
            if is_full(&error) {
                return Err(StoreError::NoSpace { dir: self.segments.disk.path("") });
            }
            return Err(self.poison(format!("could not prepare a segment: {error}")));
        }
        parts.retain(|part| !part.records.is_empty());
        Ok(parts)
    }

    fn fill(&self, parts: &mut VecDeque<Part>, records: &[NewRecord]) -> io::Result<()> {
        let mut left = self.left();
        for (index, record) in records.iter().enumerate() {
            let need = padded(record.payload.len());
            if need > left {
                let spare = match self.keeper.take_spare(need) {
                    Some(spare) => spare,
                    None => self.keeper.prepare(need)?,
                };
                left = spare.size - DATA;
                parts.push_back(Part { begin: Some(spare), records: index..index });
            }
            left -= need;
            if let Some(part) = parts.back_mut() {
                part.records.end = index + 1;
            }
        }
        Ok(())
    }

    /// True if `bytes` more of payloads fit without touching the reserve, the space for them being there already.
    pub(super) fn admits(&mut self, bytes: u64) -> Result<bool, StoreError> {
        self.check()?;
        // The current segment's rest is lost when a record does not fit into it.
        let lost = if bytes > self.left() { self.left() } else { 0 };
        while self.room() < lost + bytes + self.options.reserve_bytes {
            match self.keeper.prepare(bytes) {
                Ok(spare) => self.keeper.put_back(spare),
                Err(error) if is_full(&error) => return Ok(false),
                Err(error) => return Err(self.fail("prepare a segment", &error)),
            }
        }
        Ok(true)
    }

    fn write(
        &mut self,
        begin: Option<Spare>,
        records: &[NewRecord],
    ) -> Result<(), (&'static str, io::Error)> {
        if let Some(spare) = begin {
            self.begin(spare).map_err(|error| ("begin a segment", error))?;
        }
        let Some(current) = &mut self.current else {
            return Err(("append", io::Error::other("there is no segment")));
        };

        // Headers, small payloads, gaps and the page's rest lie in `scratch`; `pieces` says in which order they and the
        // large payloads go to disk.
        let scratch = &mut self.scratch;
        scratch.clear();
        let mut pieces = Vec::new();
        let mut written = 0;
        for (index, record) in (0u32..).zip(records) {
            let len = record.payload.len();
            let header = Header {
                len: len as u32,
                sequence: self.next_sequence + u64::from(index),
                generation: current.segment.generation,
                in_batch: index,
                kind: record.kind,
                start_ts: record.start_ts,
                stamp: record.stamp,
            };
            header.encode(&record.payload, scratch);
            if len < COPY_BELOW {
                scratch.extend_from_slice(&record.payload);
            } else {
                pieces.push((scratch.len(), &record.payload));
            }
            let gap = padded(len) as usize - HEADER - len;
            scratch.extend_from_slice(&[0; ALIGN][..gap]);
            written += padded(len);
        }
        let end = current.offset + written;
        scratch.resize(scratch.len() + (end.next_multiple_of(PAGE) - end) as usize, 0);

        let mut slices = Vec::with_capacity(2 * pieces.len() + 1);
        let mut from = 0;
        for (to, payload) in pieces {
            slices.push(IoSlice::new(&scratch[from..to]));
            slices.push(IoSlice::new(payload));
            from = to;
        }
        if from < scratch.len() {
            slices.push(IoSlice::new(&scratch[from..]));
        }
        current
            .file
            .write_all_at(&mut slices, current.offset)
            .map_err(|error| ("write to the log", error))?;
        current.file.sync().map_err(|error| ("sync the log", error))?;

        current.offset = end;
        current.batches += 1;
        self.next_sequence += records.len() as u64;
        self.durable.store(current.segment.base + end, Ordering::Release);
        self.keeper.durable(self.next_sequence);
        Ok(())
    }

    /// Makes a prepared segment part of the log.
    fn begin(&mut self, spare: Spare) -> io::Result<()> {
        let base = self.current.as_ref().map_or(self.start, |current| current.segment.end());
        if let Some(full) = &self.current {
            self.keeper.filled(full.offset - full.resumed, full.batches);
        }
        let segment = Segment { base, size: spare.size, generation: spare.generation };
        let disk = self.segments.disk.as_ref();
        disk.rename(&spare.name, &segment_name(base))?;
        disk.sync_dir()?;
        self.segments.push(segment);
        self.current = Some(Current { segment, file: spare.file, offset: DATA, resumed: DATA, batches: 0 });
        Ok(())
    }
}
