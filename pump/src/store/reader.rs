//! The reading end: transactions in commit_ts order, and single prewrites. Any number of threads, beside the writer.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;
use tidb::ts::{CommitTs, StartTs, Tso};

use super::index::{self, Published, Stretch};
use super::pairing::{Committed, Pairing, Place};
use super::record::{HEADER, Header, crc_of_header, padded};
use super::segment::{Position, Segment, Segments};
use super::{Fate, Gap, StoreError};

/// One read serves records that lie closer together than this.
const GAP: u64 = 8 * 1024;
/// One read is at most this long, unless a record is longer.
const READ: u64 = 1 << 20;
/// A record is checked in steps of this when it is not wanted whole.
const STEP: u32 = 1 << 20;
/// Transactions of one scan.
const SCAN: usize = 4096;

/// A committed transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The transaction.
    pub start_ts: StartTs,
    /// Its place in the order.
    pub commit_ts: CommitTs,
    /// TiDB's prewrite binlog, byte for byte.
    pub prewrite: Bytes,
    /// TiDB's commit binlog, byte for byte; empty where TiKV told us.
    pub commit: Bytes,
}

/// Part of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scan {
    /// In order of commit_ts.
    pub transactions: Vec<Stored>,
    /// Everything in (after, reached] is in `transactions`.
    pub reached: Tso,
}

/// Reads what the appender made durable. Cheap to clone. All calls may wait for the disk.
#[derive(Clone)]
pub struct Reader {
    pub(super) segments: Arc<Segments>,
    pub(super) durable: Arc<AtomicU64>,
    pub(super) published: Arc<RwLock<Published>>,
    pub(super) pairing: Arc<Mutex<Pairing>>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("durable", &self.durable).finish_non_exhaustive()
    }
}

impl Reader {
    fn pairing(&self) -> MutexGuard<'_, Pairing> {
        self.pairing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn published(&self) -> RwLockReadGuard<'_, Published> {
        self.published.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Transactions at or below it may be gone; a read must start at it or above.
    pub fn collected(&self) -> Tso {
        self.published().collected.0
    }

    /// Transactions deleted since the start.
    pub fn given_up(&self) -> u64 {
        self.published().given_up
    }

    /// Transactions with commit_ts in (after, upto], until `budget` bytes are exceeded; at least one if there is any.
    /// `upto` must not exceed the sorter's watermark: above it there may be more to come.
    ///
    /// # Errors
    /// [`StoreError::Collected`] if some of them were collected; otherwise the store is damaged.
    pub fn scan(&self, after: Tso, upto: Tso, budget: usize) -> Result<Scan, StoreError> {
        if after >= upto {
            return Ok(Scan { transactions: Vec::new(), reached: upto });
        }
        let Stretch { found: mut commits, reached } = self.stretch(CommitTs(after), CommitTs(upto), SCAN)?;
        let mut bytes = 0;
        let mut keep = 0;
        for committed in &commits {
            bytes += committed.prewrite.len as usize + committed.commit.len as usize + 64;
            let apart = keep == 0 || commits[keep - 1].commit_ts < committed.commit_ts;
            if bytes > budget && keep > 0 && apart {
                break;
            }
            keep += 1;
        }
        let cut = keep < commits.len();
        commits.truncate(keep);
        let reached = match commits.last() {
            Some(last) if cut => last.commit_ts.0,
            _ => reached.0,
        };

        let places: Vec<_> = commits.iter().flat_map(|found| [found.prewrite, found.commit]).collect();
        let mut payloads = self.payloads(&places)?.into_iter();
        let transactions = commits.iter().map_while(|committed| {
            Some(Stored {
                start_ts: committed.start_ts,
                commit_ts: committed.commit_ts,
                prewrite: payloads.next()?,
                commit: payloads.next()?,
            })
        });
        Ok(Scan { transactions: transactions.collect(), reached })
    }

    /// Where the transactions with commit_ts in (after, upto] lie, in order: about `max` of them (those of one commit_ts
    /// are not parted); fewer do not mean that there are no more, none does.
    ///
    /// # Errors
    /// As [`Self::scan`].
    pub fn commits(&self, after: CommitTs, upto: CommitTs, max: usize) -> Result<Vec<Committed>, StoreError> {
        self.stretch(after, upto, max).map(|stretch| stretch.found)
    }

    fn stretch(&self, after: CommitTs, upto: CommitTs, max: usize) -> Result<Stretch, StoreError> {
        index::read(&self.segments, &self.published, after, upto, max)
    }

    fn place(&self, start_ts: StartTs) -> Option<Place> {
        let pairing = self.pairing();
        let open = pairing.open.get(&start_ts).map(|open| open.place);
        let committed = || pairing.committed.get(start_ts).map(|committed| committed.prewrite);
        let dropped = || pairing.dropped.get(start_ts).map(|dropped| dropped.place);
        open.or_else(committed).or_else(dropped)
    }

    /// The prewrite binlog of a transaction that is open, or was settled not long ago (65,536 committed
    /// and as many dropped ones are remembered).
    ///
    /// # Errors
    /// The store is damaged.
    pub fn prewrite(&self, start_ts: StartTs) -> Result<Option<Bytes>, StoreError> {
        let Some(place) = self.place(start_ts) else { return Ok(None) };
        match self.payloads(&[place]) {
            Ok(mut payloads) => Ok(payloads.pop()),
            Err(StoreError::Collected { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether this very commit is stored.
    ///
    /// # Errors
    /// The store is damaged.
    pub fn has_commit(&self, start_ts: StartTs, commit_ts: CommitTs) -> Result<bool, StoreError> {
        if let Some(known) = self.pairing().committed.get(start_ts) {
            return Ok(known.commit_ts == commit_ts);
        }
        match self.commits(CommitTs(commit_ts.0.prev()), commit_ts, 1) {
            Ok(found) => Ok(found.iter().any(|found| found.start_ts == start_ts)),
            // Too long ago to tell.
            Err(StoreError::Collected { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The greatest commit_ts stored, zero if none.
    pub fn last_commit(&self) -> CommitTs {
        self.published().last()
    }

    /// Why a transaction was dropped not long ago (see [`Self::prewrite`]), and its floor then.
    pub fn dropped(&self, start_ts: StartTs) -> Option<(Fate, Tso)> {
        self.pairing().dropped.get(start_ts).map(|dropped| (dropped.fate, dropped.floor))
    }

    /// The floor with which a prewrite came that is open or was settled not long ago (see [`Self::prewrite`]); raised ones
    /// stand in records of their own.
    ///
    /// # Errors
    /// The store is damaged.
    pub fn first_floor(&self, start_ts: StartTs) -> Result<Option<Tso>, StoreError> {
        let Some(place) = self.place(start_ts) else { return Ok(None) };
        self.verify(place)?;
        let segment = self.segment(place)?;
        let mut head = [0; HEADER];
        self.read(segment, place.position.get(), &mut head)?;
        Ok(Header::decode(&head).map(|(header, _)| Tso::new(header.stamp)))
    }

    /// The declared gaps that end in (after, upto], in that order. One that is declared later ends above the watermark of
    /// that moment, so a stream that goes up to a watermark misses none.
    pub fn gaps_within(&self, after: Tso, upto: Tso) -> Vec<Gap> {
        let mut gaps: Vec<_> = {
            let pairing = self.pairing();
            pairing.gaps.iter().filter(|gap| after < gap.upto && gap.upto <= upto).cloned().collect()
        };
        gaps.sort_by_key(|gap| (gap.upto, gap.start_ts));
        gaps
    }

    /// Whether the loss of this very commit was declared.
    pub fn is_lost(&self, start_ts: StartTs, commit_ts: CommitTs) -> bool {
        let covers =
            |gap: &Gap| gap.start_ts == start_ts && gap.after < commit_ts.0 && commit_ts.0 <= gap.upto;
        self.pairing().gaps.iter().any(covers)
    }

    /// Commits in memory: those that no recorded watermark has passed, and that were not spilled.
    pub fn waiting(&self) -> usize {
        self.published().waiting.len()
    }

    /// Commits written to files before the watermark passed them, since the start: they would have taken too much memory.
    pub fn spilled(&self) -> u64 {
        self.published().spilled_entries
    }

    /// The declared gaps that are not collected, at most `limit`.
    pub fn gaps(&self, limit: usize) -> Vec<Gap> {
        self.pairing().gaps.iter().take(limit).cloned().collect()
    }

    /// Bytes of the log's segments.
    pub fn size(&self) -> u64 {
        self.segments.list().iter().map(|segment| segment.size).sum()
    }

    /// Through which commit_ts to collect so that the log's segments take at most `limit` bytes again, or as close to it
    /// as open prewrites allow; `None` if they do already, or if nothing can go.
    pub fn through_for_size(&self, limit: u64) -> Option<CommitTs> {
        let segments = self.segments.list();
        let size: u64 = segments.iter().map(|segment| segment.size).sum();
        let excess = size.checked_sub(limit).filter(|excess| *excess > 0)?;
        self.pairing().through(&segments, excess)
    }

    /// The binlogs at `places`, in their order, checked. Records that lie together are read together, and share memory.
    ///
    /// # Errors
    /// The store is damaged, or they were collected.
    pub fn payloads(&self, places: &[Place]) -> Result<Vec<Bytes>, StoreError> {
        let mut order: Vec<usize> = (0..places.len()).filter(|&index| places[index].len > 0).collect();
        order.sort_unstable_by_key(|&index| places[index].position);
        let mut payloads = vec![Bytes::new(); places.len()];
        let mut rest = order.as_slice();
        while let Some(&first) = rest.first() {
            let segment = self.segment(places[first])?;
            let from = places[first].position.get();
            let mut to = from;
            let mut count = 0;
            for &index in rest {
                let begin = places[index].position.get();
                let end = begin + padded(places[index].len as usize);
                let near = begin <= to + GAP && end - from <= READ && end <= segment.end();
                if count > 0 && !near {
                    break;
                }
                to = end;
                count += 1;
            }
            let (now, later) = rest.split_at(count);
            self.read_together(segment, from, to, now, places, &mut payloads)?;
            rest = later;
        }
        Ok(payloads)
    }

    fn read_together(
        &self,
        segment: Segment,
        from: u64,
        to: u64,
        wanted: &[usize],
        places: &[Place],
        payloads: &mut [Bytes],
    ) -> Result<(), StoreError> {
        let len = (to.min(segment.end()) - from) as usize;
        let mut bytes = vec![0; len];
        self.read(segment, from, &mut bytes)?;
        let bytes = Bytes::from(bytes);
        for &index in wanted {
            let place = places[index];
            let skip = (place.position.get() - from) as usize;
            let payload = check(segment, place, bytes.get(skip..).unwrap_or_default())
                .map(|range| bytes.slice(skip + range.start..skip + range.end));
            payloads[index] = payload.ok_or_else(|| self.corrupt(segment, place.position))?;
        }
        Ok(())
    }

    /// Checks a binlog without holding it: afterwards [`Self::payload_range`] may hand it out in pieces.
    ///
    /// # Errors
    /// The store is damaged, or the binlog was collected.
    pub fn verify(&self, place: Place) -> Result<(), StoreError> {
        let segment = self.segment(place)?;
        let mut head = [0; HEADER];
        self.read(segment, place.position.get(), &mut head)?;
        let expected = expected_crc(segment, place, &head);
        let mut actual = crc_of_header(&head);
        let mut from = 0;
        while from < place.len {
            let to = place.len.min(from.saturating_add(STEP));
            actual = crc32c::crc32c_append(actual, &self.payload_range(place, from..to)?);
            from = to;
        }
        if expected == Some(actual) { Ok(()) } else { Err(self.corrupt(segment, place.position)) }
    }

    /// A part of a binlog, unchecked: see [`Self::verify`]. `range` is cut to the binlog's end.
    ///
    /// # Errors
    /// The disk failed, or the binlog was collected.
    pub fn payload_range(&self, place: Place, range: Range<u32>) -> Result<Bytes, StoreError> {
        let segment = self.segment(place)?;
        let end = range.end.min(place.len);
        let start = range.start.min(end);
        let mut bytes = vec![0; (end - start) as usize];
        self.read(segment, place.position.get() + HEADER as u64 + u64::from(start), &mut bytes)?;
        Ok(bytes.into())
    }

    /// The segment of a record, which must be synced.
    fn segment(&self, place: Place) -> Result<Segment, StoreError> {
        let position = place.position;
        let end = position.get().saturating_add(padded(place.len as usize));
        let Some(segment) = self.segments.at(position) else {
            let oldest = self.published().collected;
            return Err(StoreError::Collected { requested: CommitTs::default(), oldest });
        };
        if end > self.durable.load(Ordering::Acquire) || end > segment.end() {
            return Err(StoreError::Unsynced { position });
        }
        Ok(segment)
    }

    fn read(&self, segment: Segment, from: u64, bytes: &mut [u8]) -> Result<(), StoreError> {
        let name = segment.name();
        let read = self.segments.file(&name).and_then(|file| file.read_exact_at(bytes, from - segment.base));
        read.map_err(|source| {
            self.gone(from).unwrap_or(StoreError::Read { path: self.segments.disk.path(&name), source })
        })
    }

    fn corrupt(&self, segment: Segment, position: Position) -> StoreError {
        self.gone(position.get()).unwrap_or(StoreError::Corrupt {
            path: self.segments.disk.path(&segment.name()),
            offset: position.get() - segment.base,
            what: "the record here does not match its checksum or its index entry; restore the directory from a copy, \
                   or declare this pump's data lost",
        })
    }

    /// The right error if the segment was collected while it was read.
    fn gone(&self, position: u64) -> Option<StoreError> {
        let oldest = self.published().collected;
        let gone = self.segments.at(Position(position)).is_none();
        gone.then_some(StoreError::Collected { requested: CommitTs::default(), oldest })
    }
}

/// The payload's place in `bytes` if they begin with the whole record that `place` names.
fn check(segment: Segment, place: Place, bytes: &[u8]) -> Option<Range<usize>> {
    let head = bytes.first_chunk::<HEADER>()?;
    let crc = expected_crc(segment, place, head)?;
    let end = HEADER + place.len as usize;
    let payload = bytes.get(HEADER..end)?;
    (crc32c::crc32c_append(crc_of_header(head), payload) == crc).then_some(HEADER..end)
}

/// The CRC that the record must have, if its header fits.
fn expected_crc(segment: Segment, place: Place, head: &[u8; HEADER]) -> Option<u32> {
    let (header, crc) = Header::decode(head)?;
    (header.len == place.len && header.generation == segment.generation).then_some(crc)
}
