//! Housekeeping beside the writer: giving space back, and moving the log into table files.
//!
//! A commit and its prewrite go together. Order: the appender first makes `collected` durable, so that no reader starts below it; then [`Collector::clear`]
//! deletes in small unsynced steps. A crash in between leaves records that the next run deletes, since it goes on from
//! `cleared`, which moves only with the deletes themselves.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use rocksdb::{ReadOptions, WriteBatch};
use tidb::ts::Tso;

use super::append::synced;
use super::key::{self, Family};
use super::{Shared, StoreError};

/// Records per delete step.
const STEP: usize = 1_000;

/// Deletes collected transactions and moves the checkpoint. All calls block; the writer goes on meanwhile.
pub struct Collector {
    shared: Arc<Shared>,
}

impl Collector {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Deletes a step of what lies at or below `collected`. Returns how many records; fewer than a step means done.
    ///
    /// # Errors
    /// When reading or writing fails.
    pub fn clear(&self) -> Result<usize, StoreError> {
        let shared = &*self.shared;
        let upto = Tso::new(shared.collected.load(Ordering::Acquire));
        let (commits, prewrites) = (shared.family(Family::Commit)?, shared.family(Family::Prewrite)?);
        let mut batch = WriteBatch::default();
        let mut count = 0;

        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(key::u64_key(upto.next().get()));
        let mut iterator = shared.db.raw_iterator_cf_opt(commits, options);
        iterator.seek(key::u64_key(shared.number("cleared")?.unwrap_or(0)));
        let mut cleared = upto.next().get();
        while let Some(key) = iterator.key() {
            let (commit_ts, start_ts) = key::parse_commit_key(key)?;
            if count == STEP {
                cleared = commit_ts.get();
                break;
            }
            batch.delete_cf(commits, key);
            batch.delete_cf(prewrites, key::start_key(start_ts));
            count += 1;
            iterator.next();
        }
        iterator.status().map_err(StoreError::Read)?;

        if count < STEP {
            count += self.clear_dropped(upto, STEP - count, &mut batch)?;
        }
        batch.put_cf(shared.family(Family::Meta)?, "cleared", key::u64_key(cleared));
        shared.db.write(batch).map_err(StoreError::Write)?;
        Ok(count)
    }

    /// Groups written since the last checkpoint.
    ///
    /// # Errors
    /// When reading fails.
    pub fn since_checkpoint(&self) -> Result<u64, StoreError> {
        let base = self.shared.number("base")?.unwrap_or(1);
        Ok((self.shared.synced.load(Ordering::Acquire) + 1).saturating_sub(base))
    }

    /// Moves everything written so far into table files, and with it the point from which batch numbers are checked.
    ///
    /// # Errors
    /// When writing fails; the state on disk is then unknown.
    pub fn checkpoint(&self) -> Result<(), StoreError> {
        let shared = &*self.shared;
        // Read first: whatever comes while the tables are written stays behind the new base.
        let base = shared.synced.load(Ordering::Acquire) + 1;
        for family in Family::ALL {
            shared.db.flush_cf(shared.family(family)?).map_err(StoreError::Write)?;
        }
        let mut batch = WriteBatch::default();
        batch.put_cf(shared.family(Family::Meta)?, "base", key::u64_key(base));
        batch.delete_range_cf(shared.family(Family::Batch)?, key::u64_key(0), key::u64_key(base));
        shared.db.write_opt(batch, &synced()).map_err(StoreError::Write)
    }

    /// Dropped prewrites whose floor was collected. Few, since most transactions commit.
    fn clear_dropped(&self, upto: Tso, limit: usize, batch: &mut WriteBatch) -> Result<usize, StoreError> {
        let shared = &*self.shared;
        let (dropped, prewrites) = (shared.family(Family::Dropped)?, shared.family(Family::Prewrite)?);
        let mut options = ReadOptions::default();
        // A floor is never below start_ts.
        options.set_iterate_upper_bound(key::u64_key(upto.next().get()));
        let mut iterator = shared.db.raw_iterator_cf_opt(dropped, options);
        iterator.seek_to_first();
        let mut count = 0;
        while let Some((key, value)) = iterator.item()
            && count < limit
        {
            if key::parse_dropped(value)?.1 <= upto {
                batch.delete_cf(dropped, key);
                batch.delete_cf(prewrites, key);
                count += 1;
            }
            iterator.next();
        }
        iterator.status().map_err(StoreError::Read)?;
        Ok(count)
    }
}
