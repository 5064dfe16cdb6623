//! Reading: transactions in commit order, joined with their prewrites. All calls block; run them off the runtime.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use rocksdb::ReadOptions;
use tidb::ts::{CommitTs, StartTs, Tso};

use super::key::{self, Family};
use super::{Fate, Shared, StoreError};

/// Reads what the appender made durable. Cheap to clone.
#[derive(Clone)]
pub struct Reader {
    shared: Arc<Shared>,
}

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

impl Reader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Transactions with commit_ts in (after, upto], until `budget` bytes are exceeded; at least one if there is any.
    ///
    /// # Errors
    /// A commit without its prewrite is an error, never skipped.
    pub fn scan(&self, after: Tso, upto: Tso, budget: usize) -> Result<Scan, StoreError> {
        let shared = &*self.shared;
        let mut scan = Scan { transactions: Vec::new(), reached: upto };
        if after >= upto {
            return Ok(scan);
        }
        // One snapshot for both families: collection between the two reads must not show half a transaction.
        let snapshot = shared.db.snapshot();
        let prewrites = shared.family(Family::Prewrite)?;
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(key::u64_key(upto.next().get()));
        let mut iterator = snapshot.raw_iterator_cf_opt(shared.family(Family::Commit)?, options);
        iterator.seek(key::u64_key(after.next().get()));
        let mut bytes = 0;
        while let Some((key, value)) = iterator.item() {
            let (commit_ts, start_ts) = key::parse_commit_key(key)?;
            let prewrite = snapshot.get_cf(prewrites, key::start_key(start_ts)).map_err(StoreError::Read)?;
            let prewrite = Bytes::from(prewrite.ok_or(StoreError::MissingPrewrite { start_ts, commit_ts })?);
            let commit = Bytes::copy_from_slice(value);
            bytes += prewrite.len() + commit.len() + 64;
            if bytes > budget && !scan.transactions.is_empty() {
                // The next one belongs to the next scan; two transactions never share a commit_ts with binlog on, but
                // if two did, both would be above this bound or below it.
                scan.reached = commit_ts.0.prev();
                return Ok(scan);
            }
            scan.transactions.push(Stored { start_ts, commit_ts, prewrite, commit });
            iterator.next();
        }
        iterator.status().map_err(StoreError::Read)?;
        Ok(scan)
    }

    /// The prewrite binlog of a transaction, byte for byte.
    ///
    /// # Errors
    /// When reading fails.
    pub fn prewrite(&self, start_ts: StartTs) -> Result<Option<Bytes>, StoreError> {
        let family = self.shared.family(Family::Prewrite)?;
        let value = self.shared.db.get_cf(family, key::start_key(start_ts)).map_err(StoreError::Read)?;
        Ok(value.map(Bytes::from))
    }

    /// Whether this very commit is stored.
    ///
    /// # Errors
    /// When reading fails.
    pub fn has_commit(&self, start_ts: StartTs, commit_ts: CommitTs) -> Result<bool, StoreError> {
        let family = self.shared.family(Family::Commit)?;
        let value = self.shared.db.get_pinned_cf(family, key::commit_key(commit_ts, start_ts));
        Ok(value.map_err(StoreError::Read)?.is_some())
    }

    /// The greatest commit_ts stored, zero if none.
    ///
    /// # Errors
    /// When reading fails.
    pub fn last_commit(&self) -> Result<CommitTs, StoreError> {
        let mut iterator = self.shared.db.raw_iterator_cf(self.shared.family(Family::Commit)?);
        iterator.seek_to_last();
        let last = iterator.key().map(key::parse_commit_key).transpose()?;
        iterator.status().map_err(StoreError::Read)?;
        Ok(last.map_or(CommitTs::default(), |(commit_ts, _)| commit_ts))
    }

    /// Why a transaction was dropped, and its floor then.
    ///
    /// # Errors
    /// When reading fails.
    pub fn dropped(&self, start_ts: StartTs) -> Result<Option<(Fate, Tso)>, StoreError> {
        let family = self.shared.family(Family::Dropped)?;
        let value =
            self.shared.db.get_pinned_cf(family, key::start_key(start_ts)).map_err(StoreError::Read)?;
        value.map(|value| key::parse_dropped(&value)).transpose()
    }

    /// The declared gaps: (commit_ts or floor, start_ts, cause), at most `limit`.
    ///
    /// # Errors
    /// When reading fails.
    pub fn gaps(&self, limit: usize) -> Result<Vec<(Tso, StartTs, String)>, StoreError> {
        let mut gaps = Vec::new();
        let mut iterator = self.shared.db.raw_iterator_cf(self.shared.family(Family::Gap)?);
        iterator.seek_to_first();
        while let Some((key, value)) = iterator.item()
            && gaps.len() < limit
        {
            let (at, start_ts) = key::parse_pair(Family::Gap, key)?;
            gaps.push((Tso::new(at), StartTs::new(start_ts), String::from_utf8_lossy(value).into_owned()));
            iterator.next();
        }
        iterator.status().map_err(StoreError::Read)?;
        Ok(gaps)
    }

    /// Transactions at or below it may be gone; a read must start at it or above.
    pub fn collected(&self) -> Tso {
        Tso::new(self.shared.collected.load(Ordering::Acquire))
    }

    /// Bytes on disk, as RocksDB counts them, and bytes in memory tables.
    pub fn size(&self) -> u64 {
        Family::ALL
            .iter()
            .filter_map(|family| {
                let family = self.shared.family(*family).ok()?;
                self.shared.db.property_int_value_cf(family, "rocksdb.total-sst-files-size").ok()?
            })
            .sum()
    }
}
