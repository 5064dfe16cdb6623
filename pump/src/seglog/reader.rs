//! The reading end: transactions in commit_ts order, and single prewrites. Any number of threads, beside the writer.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use bytes::Bytes;
use tidb::ts::{CommitTs, StartTs, Tso};

use super::ReadError;
use super::pairing::{Committed, Pairing};
use super::record::{HEADER, Header, Kind, crc_of_header, padded};
use super::run::{self, Published};
use super::segment::{Position, Segment, Segments};

/// One read serves records that lie closer together than this.
const GAP: u64 = 8 * 1024;
/// One read is at most this long, unless a record is longer.
const READ: u64 = 1 << 20;
/// A record is checked in steps of this when it is not wanted whole.
const STEP: usize = 1 << 20;

/// A committed transaction with its prewrite binlog.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transaction {
    /// When it began.
    pub start_ts: StartTs,
    /// When it became visible.
    pub commit_ts: CommitTs,
    /// The prewrite binlog as TiDB sent it.
    pub payload: Bytes,
}

/// A handle for reading; clones share everything.
#[derive(Clone)]
pub struct Reader {
    pub(super) segments: Arc<Segments>,
    pub(super) durable: Arc<AtomicU64>,
    pub(super) published: Arc<RwLock<Published>>,
    pub(super) pairing: Arc<Mutex<Pairing>>,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").field("watermark", &self.watermark()).finish_non_exhaustive()
    }
}

impl Reader {
    /// Everything at or below it can be read, in order, and nothing will come at or below it any more.
    pub fn watermark(&self) -> Tso {
        self.published.read().unwrap_or_else(PoisonError::into_inner).watermark
    }

    /// Transactions at or below it were collected; reading begins at or after it.
    pub fn collected(&self) -> CommitTs {
        self.published.read().unwrap_or_else(PoisonError::into_inner).collected
    }

    /// Prewrites that are not settled.
    pub fn pending(&self) -> usize {
        self.pairing.lock().unwrap_or_else(PoisonError::into_inner).pending.len()
    }

    /// Where the transactions in (`after`, watermark] lie, in commit_ts order: about `max` of them (those of one commit_ts
    /// are not parted); empty if there is none yet.
    ///
    /// # Errors
    /// [`ReadError::Collected`] if transactions after `after` were collected.
    pub fn commits(&self, after: CommitTs, max: usize) -> Result<Vec<Committed>, ReadError> {
        run::read(&self.segments, &self.published, after, max)
    }

    /// The transaction that committed at `commit_ts`, if the watermark has passed it.
    ///
    /// # Errors
    /// As [`Self::commits`].
    pub fn committed(&self, commit_ts: CommitTs) -> Result<Option<Committed>, ReadError> {
        let before = CommitTs(commit_ts.0.prev());
        let found = self.commits(before, 1)?;
        Ok(found.into_iter().find(|committed| committed.commit_ts == commit_ts))
    }

    /// Transactions in (`after`, watermark] with their prewrite binlogs: at most about `max_transactions`, and no more
    /// after `max_bytes` were reached, but at least one if there is one.
    ///
    /// # Errors
    /// [`ReadError::Collected`] if transactions after `after` were collected; otherwise the store is damaged.
    pub fn scan(
        &self,
        after: CommitTs,
        max_transactions: usize,
        max_bytes: u64,
    ) -> Result<Vec<Transaction>, ReadError> {
        let mut commits = self.commits(after, max_transactions)?;
        let mut bytes = 0;
        let fits = commits.iter().take_while(|committed| {
            let fits = bytes < max_bytes;
            bytes += u64::from(committed.len);
            fits
        });
        let mut keep = fits.count();
        while keep > 0 && keep < commits.len() && commits[keep].commit_ts == commits[keep - 1].commit_ts {
            keep += 1;
        }
        commits.truncate(keep);
        let payloads = self.payloads(&commits)?;
        let transactions = commits.iter().zip(payloads).map(|(committed, payload)| Transaction {
            start_ts: committed.start_ts,
            commit_ts: committed.commit_ts,
            payload,
        });
        Ok(transactions.collect())
    }

    /// The prewrite binlog of a pending transaction.
    ///
    /// # Errors
    /// The store is damaged.
    pub fn prewrite(&self, start_ts: StartTs) -> Result<Option<Bytes>, ReadError> {
        let pending =
            self.pairing.lock().unwrap_or_else(PoisonError::into_inner).pending.get(&start_ts).copied();
        let Some(pending) = pending else { return Ok(None) };
        let committed = Committed {
            commit_ts: CommitTs::default(),
            start_ts,
            position: pending.position,
            len: pending.len,
        };
        Ok(self.payloads(&[committed])?.pop())
    }

    /// The prewrite binlogs of `commits`, in their order. Records that lie together are read together, and share memory.
    ///
    /// # Errors
    /// The store is damaged, or they were collected.
    pub fn payloads(&self, commits: &[Committed]) -> Result<Vec<Bytes>, ReadError> {
        let mut order: Vec<usize> = (0..commits.len()).collect();
        order.sort_unstable_by_key(|&index| commits[index].position);
        let mut payloads = vec![Bytes::new(); commits.len()];
        let mut rest = order.as_slice();
        while let Some(&first) = rest.first() {
            let segment = self.segment(&commits[first])?;
            let from = commits[first].position.get();
            let mut to = from;
            let mut count = 0;
            for &index in rest {
                let committed = &commits[index];
                let end = committed.position.get() + padded(committed.len as usize);
                let near = committed.position.get() <= to + GAP && end - from <= READ && end <= segment.end();
                if count > 0 && !near {
                    break;
                }
                to = end;
                count += 1;
            }
            let (now, later) = rest.split_at(count);
            self.read_together(segment, from, to, now, commits, &mut payloads)?;
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
        commits: &[Committed],
        payloads: &mut [Bytes],
    ) -> Result<(), ReadError> {
        let len = (to.min(segment.end()) - from) as usize;
        let mut bytes = vec![0; len];
        self.read(segment, from, &mut bytes)?;
        let bytes = Bytes::from(bytes);
        for &index in wanted {
            let committed = &commits[index];
            let skip = (committed.position.get() - from) as usize;
            let payload = self
                .check(segment, committed, bytes.get(skip..).unwrap_or_default())
                .map(|range| bytes.slice(skip + range.start..skip + range.end));
            payloads[index] = payload.ok_or_else(|| self.corrupt(segment, committed.position))?;
        }
        Ok(())
    }

    /// The payload's place in `bytes` if they begin with the whole record of this transaction's prewrite.
    fn check(&self, segment: Segment, committed: &Committed, bytes: &[u8]) -> Option<Range<usize>> {
        let head = bytes.first_chunk::<HEADER>()?;
        let crc = expected_crc(segment, committed, head)?;
        let end = HEADER + committed.len as usize;
        let payload = bytes.get(HEADER..end)?;
        (crc32c::crc32c_append(crc_of_header(head), payload) == crc).then_some(HEADER..end)
    }

    /// Checks a prewrite's record without holding it: afterwards [`Self::payload_range`] may hand it out in pieces.
    ///
    /// # Errors
    /// The store is damaged, or the transaction was collected.
    pub fn verify(&self, committed: &Committed) -> Result<(), ReadError> {
        let segment = self.segment(committed)?;
        let mut head = [0; HEADER];
        self.read(segment, committed.position.get(), &mut head)?;
        let expected = expected_crc(segment, committed, &head);
        let mut actual = crc_of_header(&head);
        let mut from = 0;
        while from < committed.len {
            let to = committed.len.min(from.saturating_add(STEP as u32));
            actual = crc32c::crc32c_append(actual, &self.payload_range(committed, from..to)?);
            from = to;
        }
        if expected == Some(actual) { Ok(()) } else { Err(self.corrupt(segment, committed.position)) }
    }

    /// A part of a prewrite binlog, unchecked: see [`Self::verify`]. `range` is cut to the binlog's end.
    ///
    /// # Errors
    /// The disk failed, or the transaction was collected.
    pub fn payload_range(&self, committed: &Committed, range: Range<u32>) -> Result<Bytes, ReadError> {
        let segment = self.segment(committed)?;
        let end = range.end.min(committed.len);
        let start = range.start.min(end);
        let mut bytes = vec![0; (end - start) as usize];
        let from = committed.position.get() + HEADER as u64 + u64::from(start);
        self.read(segment, from, &mut bytes)?;
        Ok(bytes.into())
    }

    /// The segment of a record, which must be synced.
    fn segment(&self, committed: &Committed) -> Result<Segment, ReadError> {
        let position = committed.position;
        let end = position.get().saturating_add(padded(committed.len as usize));
        let segment = self.segments.at(position).ok_or_else(|| ReadError::Collected {
            requested: committed.commit_ts,
            oldest: self.collected(),
        })?;
        if end > self.durable.load(Ordering::Acquire) || end > segment.end() {
            return Err(ReadError::Unsynced { position });
        }
        Ok(segment)
    }

    fn read(&self, segment: Segment, from: u64, bytes: &mut [u8]) -> Result<(), ReadError> {
        let name = segment.name();
        let read =
            self.segments.file(&name).and_then(|file| file.read_exact_at(bytes, from - segment.base));
        read.map_err(|source| self.gone(from).unwrap_or(ReadError::Io { path: self.path(segment), source }))
    }

    fn corrupt(&self, segment: Segment, position: Position) -> ReadError {
        self.gone(position.get()).unwrap_or(ReadError::Corrupt {
            path: self.path(segment),
            offset: position.get() - segment.base,
            what: "a prewrite does not match its checksum or its index entry",
        })
    }

    /// The right error if the segment was collected while it was read.
    fn gone(&self, position: u64) -> Option<ReadError> {
        let oldest = self.collected();
        self.segments
            .at(Position(position))
            .is_none()
            .then_some(ReadError::Collected { requested: CommitTs::default(), oldest })
    }

    fn path(&self, segment: Segment) -> std::path::PathBuf {
        self.segments.disk.path(&segment.name())
    }
}

/// The CRC that the record must have, if the header is that of this transaction's prewrite.
fn expected_crc(segment: Segment, committed: &Committed, head: &[u8; HEADER]) -> Option<u32> {
    let (header, crc) = Header::decode(head)?;
    let is_it = header.kind == Kind::Prewrite
        && header.start_ts == committed.start_ts.get()
        && header.len == committed.len
        && header.generation == segment.generation;
    is_it.then_some(crc)
}
