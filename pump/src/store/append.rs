//! Writing: one synced write per group. There is one [`Appender`], owned by the writer thread.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rocksdb::{WriteBatch, WriteOptions};

use super::key::{self, Family};
use super::mark::Mark;
use super::{Record, Shared, StoreError};

/// The store's only writer of records. All calls block.
pub struct Appender {
    shared: Arc<Shared>,
    mark: Mark,
    /// Number of the last group.
    last: u64,
}

impl Appender {
    pub(super) fn new(shared: Arc<Shared>, mark: Mark, last: u64) -> Self {
        Self { shared, mark, last }
    }

    /// Writes which format this is.
    pub(super) fn describe(&self, format: u64) -> Result<(), StoreError> {
        let meta = self.shared.family(Family::Meta)?;
        let mut batch = WriteBatch::default();
        batch.put_cf(meta, "format", key::u64_key(format));
        self.shared.db.write_opt(batch, &synced()).map_err(StoreError::Write)
    }

    /// Writes the records in their order, whole or not at all; when it returns, they are durable and readable.
    ///
    /// # Errors
    /// After any error the state on disk is unknown: the caller must not write again, and must say nothing to clients.
    pub fn append(&mut self, records: &[Record]) -> Result<(), StoreError> {
        let shared = &*self.shared;
        let number = self.last + 1;
        let mut batch = WriteBatch::default();
        batch.put_cf(shared.family(Family::Batch)?, key::u64_key(number), []);
        for record in records {
            put(shared, &mut batch, record)?;
        }
        shared.db.write_opt(batch, &synced()).map_err(StoreError::Write)?;
        self.last = number;
        self.mark.write(number)?;
        shared.synced.store(number, Ordering::Release);
        for record in records {
            if let Record::Collected(ts) = record {
                shared.collected.store(ts.get(), Ordering::Release);
            }
        }
        Ok(())
    }
}

pub(super) fn synced() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    options
}

fn put(shared: &Shared, batch: &mut WriteBatch, record: &Record) -> Result<(), StoreError> {
    match record {
        Record::Prewrite { start_ts, floor, payload } => {
            let key = key::start_key(*start_ts);
            batch.put_cf(shared.family(Family::Prewrite)?, key, payload);
            batch.put_cf(shared.family(Family::Pending)?, key, key::pending_value(*floor, false));
        }
        Record::Floor { start_ts, floor, rollback_seen } => {
            let value = key::pending_value(*floor, *rollback_seen);
            batch.put_cf(shared.family(Family::Pending)?, key::start_key(*start_ts), value);
        }
        Record::Commit { start_ts, commit_ts, payload } => {
            let start = key::start_key(*start_ts);
            batch.put_cf(shared.family(Family::Commit)?, key::commit_key(*commit_ts, *start_ts), payload);
            batch.delete_cf(shared.family(Family::Pending)?, start);
            batch.delete_cf(shared.family(Family::Dropped)?, start);
        }
        Record::Dropped { start_ts, fate, floor } => {
            let start = key::start_key(*start_ts);
            batch.put_cf(shared.family(Family::Dropped)?, start, key::dropped_value(*fate, *floor));
            batch.delete_cf(shared.family(Family::Pending)?, start);
        }
        Record::Gap { start_ts, at, cause } => {
            batch.put_cf(shared.family(Family::Gap)?, key::pair(at.get(), start_ts.get()), cause);
        }
        Record::Watermark(ts) => {
            batch.put_cf(shared.family(Family::Meta)?, "watermark", key::u64_key(ts.get()));
        }
        Record::Collected(ts) => {
            batch.put_cf(shared.family(Family::Meta)?, "collected", key::u64_key(ts.get()));
        }
    }
    Ok(())
}
