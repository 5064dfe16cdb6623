//! The writing end: the log, and the index that follows it.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tidb::ts::{CommitTs, StartTs, Tso};

use super::checkpoint::Checkpoint;
use super::index::Index;
use super::keeper::{Discard, Save, is_full};
use super::log::{Log, NewRecord};
use super::pairing::Pairing;
use super::record::{Header, Kind};
use super::recover::End;
use super::segment::Segments;
use super::{Options, Record, StoreError};

/// Bytes of a gap's cause that are kept.
const CAUSE: usize = 4096;

/// What the store has of a transaction.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Open,
    Dropped,
    /// Committed, or unknown.
    Settled,
}

/// The only writer. Every call may wait for the disk: it belongs on a thread of its own.
pub struct Appender {
    pub(super) log: Log,
    pub(super) index: Index,
    pub(super) segments: Arc<Segments>,
    pub(super) pairing: Arc<Mutex<Pairing>>,
    /// Where the log was at the last checkpoint, and how many bytes that one took.
    pub(super) checkpointed: (u64, u64),
    pub(super) options: Options,
    /// The base of the last segment that has a record: it stays, or the next sequence number would be unknown.
    pub(super) last_base: u64,
}

impl fmt::Debug for Appender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Appender").field("end", &self.log.end()).finish_non_exhaustive()
    }
}

impl Appender {
    fn pairing(&self) -> MutexGuard<'_, Pairing> {
        self.pairing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the records in their order: one write and one sync for all of them (one more for each segment that they
    /// fill). When it returns, they are durable and readable.
    ///
    /// # Errors
    /// Nobody may be told that any of them is stored. After [`StoreError::Stopped`] the state on disk is unknown and
    /// nothing can be written any more; after the others nothing was written.
    pub fn append(&mut self, records: &[Record]) -> Result<(), StoreError> {
        self.log.check()?;
        self.verify(records)?;
        let raw: Vec<_> = records.iter().filter_map(raw).collect();

        let mut headers = Vec::with_capacity(raw.len());
        self.log.append(&raw, |record, position| {
            let header = Header {
                len: record.payload.len() as u32,
                sequence: 0,
                generation: 0,
                in_batch: 0,
                kind: record.kind,
                start_ts: record.start_ts,
                stamp: record.stamp,
            };
            headers.push((header, position));
        })?;

        // The lists are short and mostly of one segment, so it is not looked up for each record.
        let mut segment = None;
        let mut committed = Vec::new();
        let mut pairing = self.pairing.lock().unwrap_or_else(PoisonError::into_inner);
        for ((header, position), record) in headers.into_iter().zip(&raw) {
            if segment.is_none_or(|segment: super::segment::Segment| position.get() >= segment.end()) {
                segment = self.segments.at(position);
            }
            self.last_base = segment.map_or(self.last_base, |segment| segment.base);
            match pairing.apply(&header, &record.payload, position, self.last_base) {
                Ok(found) => committed.extend(found),
                // Cannot be: `verify` looked. But it is stored now, so going on would hide a contradiction.
                Err(_) => {
                    drop(pairing);
                    return Err(self
                        .log
                        .poison(format!("a record of {} contradicts the log", header.start_ts)));
                }
            }
        }
        let watermark = pairing.watermark;
        drop(pairing);
        self.index.add(committed);

        for record in records {
            match record {
                Record::Watermark(_) => {
                    let settled = self.index.settle(watermark);
                    self.written(settled)?;
                }
                Record::Collected(through) => self.collect(CommitTs(*through))?,
                _ => {}
            }
        }
        let spilled = self.index.spill();
        self.written(spilled)?;
        // Its own size counts, so that a large state does not cost more than the log itself.
        let (last, size) = self.checkpointed;
        if self.log.end().get() >= last + self.options.segment_bytes.max(8 * size) {
            self.save();
        }
        Ok(())
    }

    /// What became of a write to the index.
    fn written(&mut self, result: io::Result<()>) -> Result<(), StoreError> {
        match result {
            // The log has it all, and what waits in memory is read from there: the next watermark tries again.
            Err(error) if !is_full(&error) => Err(self.log.fail("write the index", &error)),
            _ => Ok(()),
        }
    }

    /// Refuses records that contradict what is stored, before anything is written.
    fn verify(&self, records: &[Record]) -> Result<(), StoreError> {
        let pairing = self.pairing();
        // What the records before change.
        let mut changed: HashMap<StartTs, Standing> = HashMap::new();
        let mut watermark = pairing.watermark;
        for record in records {
            let (start_ts, change) = match record {
                Record::Prewrite { start_ts, .. } => (*start_ts, Some(Standing::Open)),
                Record::Floor { start_ts, .. } => (*start_ts, None),
                Record::Commit { start_ts, .. } => (*start_ts, Some(Standing::Settled)),
                Record::Dropped { start_ts, .. } => (*start_ts, Some(Standing::Dropped)),
                Record::Watermark(ts) => {
                    watermark = watermark.max(*ts);
                    continue;
                }
                Record::Gap(_) | Record::Collected(_) => continue,
            };
            if let Record::Prewrite { payload, .. } | Record::Commit { payload, .. } = record
                && u32::try_from(payload.len()).is_err()
            {
                return Err(StoreError::TooLarge { start_ts, len: payload.len() });
            }
            let standing = match changed.get(&start_ts) {
                Some(standing) => *standing,
                None if pairing.open.contains_key(&start_ts) => Standing::Open,
                None if pairing.dropped.get(start_ts).is_some() => Standing::Dropped,
                None => Standing::Settled,
            };
            let founded = match record {
                Record::Prewrite { .. } => standing != Standing::Open,
                Record::Commit { commit_ts, .. } => standing != Standing::Settled && commit_ts.0 > watermark,
                _ => standing == Standing::Open,
            };
            if !founded {
                return Err(StoreError::Unfounded { start_ts });
            }
            if let Some(change) = change {
                changed.insert(start_ts, change);
            }
        }
        Ok(())
    }

    /// True if prewrites of `bytes` in all fit without touching the reserve. Ask before taking them in; commits and
    /// verdicts need not ask.
    ///
    /// # Errors
    /// The disk failed.
    pub fn admits(&mut self, bytes: u64) -> Result<bool, StoreError> {
        self.log.admits(bytes)
    }

    /// Bytes of records that can be stored without asking the file system for space, the reserve included.
    pub fn room(&self) -> u64 {
        self.log.room()
    }

    fn collect(&mut self, through: CommitTs) -> Result<(), StoreError> {
        let (through, first) = {
            let limit = self.last_base;
            let mut pairing = self.pairing();
            let through = through.min(CommitTs(pairing.watermark));
            (through, pairing.collect(through, limit))
        };
        let runs = self.index.collect(through);
        let segments = self.segments.drop_below(first);
        let first = self.segments.list().first().map_or(0, |segment| segment.base);
        let checkpoint = self.checkpoint();
        self.log.keeper.discard(Discard { collected: through.get(), checkpoint, first, segments, runs });
        self.log.check()
    }

    /// The index's state, so that a later start replays little of the log.
    fn checkpoint(&mut self) -> Save {
        let end = End { position: self.log.end(), sequence: self.log.next_sequence() };
        let bytes = {
            let pairing = self.pairing();
            let published = self.index.published.read().unwrap_or_else(PoisonError::into_inner);
            Checkpoint::encode(end, &published, &pairing)
        };
        self.checkpointed = (end.position.get(), bytes.len() as u64);
        Save { runs: self.index.take_unsynced(), bytes }
    }

    /// Hands a checkpoint to the keeper.
    pub(super) fn save(&mut self) {
        let checkpoint = self.checkpoint();
        self.log.keeper.save(checkpoint);
    }

    /// Waits until the work beside the writer is done: segments prepared, a checkpoint saved, collected space given back.
    ///
    /// # Errors
    /// The disk failed.
    pub fn finish_background(&mut self) -> Result<(), StoreError> {
        self.log.keeper.finish();
        self.log.check()
    }

    /// Closes the log in order: the next start has little to replay and nothing to check. Without it a start takes a
    /// little longer, that is all.
    ///
    /// # Errors
    /// The disk failed; what was appended is durable nevertheless.
    pub fn close(mut self) -> Result<(), StoreError> {
        self.log.check()?;
        self.save();
        let end = self.log.end();
        let closed = self.log.keeper.close(end.get());
        closed.map_err(|error| StoreError::Stopped {
            reason: format!("could not close the log: {error}").into(),
        })
    }

    /// Lets a second pass for the keeper.
    #[cfg(test)]
    pub(super) fn tick(&self) {
        self.log.keeper.tick();
    }
}

/// How a record stands in the log; a collection stands in the mark.
fn raw(record: &Record) -> Option<NewRecord> {
    let raw = |kind, start_ts: StartTs, stamp: Tso, payload: Bytes| {
        Some(NewRecord { kind, start_ts: start_ts.get(), stamp: stamp.get(), payload })
    };
    match record {
        Record::Prewrite { start_ts, floor, payload } => {
            raw(Kind::Prewrite, *start_ts, *floor, payload.clone())
        }
        Record::Floor { start_ts, floor, rollback_seen } => {
            let kind = if *rollback_seen { Kind::RollbackSeen } else { Kind::Floor };
            raw(kind, *start_ts, *floor, Bytes::new())
        }
        Record::Commit { start_ts, commit_ts, payload } => {
            raw(Kind::Commit, *start_ts, commit_ts.0, payload.clone())
        }
        Record::Dropped { start_ts, fate, floor } => {
            raw(Kind::Dropped, *start_ts, *floor, Bytes::copy_from_slice(&fate.encode()))
        }
        Record::Gap(gap) => {
            let cause = gap.cause.as_bytes();
            let mut fact = gap.after.get().to_le_bytes().to_vec();
            fact.extend_from_slice(&cause[..cause.len().min(CAUSE)]);
            raw(Kind::Gap, gap.start_ts, gap.upto, fact.into())
        }
        Record::Watermark(ts) => raw(Kind::Watermark, StartTs(*ts), Tso::ZERO, Bytes::new()),
        Record::Collected(_) => None,
    }
}
