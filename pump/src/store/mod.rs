//! The durable store: what was acknowledged, and what became of it.
//!
//! Owns everything under `<data-dir>/store` and the file `<data-dir>/durable`. Nothing outside this module knows that
//! RocksDB is underneath: [`open`] gives one [`Appender`] (one synced write per group of [`Record`]s), one clonable
//! [`Reader`] and one [`Collector`].
//!
//! ```text
//! column family   key                       value
//! prewrite        start_ts                  TiDB's prewrite binlog, byte for byte
//! pending         start_ts                  floor, flags (open prewrites only: what a restart has to read)
//! commit          commit_ts, start_ts       TiDB's commit binlog, byte for byte; empty where TiKV told us
//! dropped         start_ts                  why it will never be emitted, its floor, its commit_ts if known
//! gap             commit_ts, start_ts       text: transactions this pump can no longer deliver
//! batch           batch number              nothing: one key per synced write since `base`
//! meta            name                      a number: format, base, watermark, collected, cleared
//! ```
//!
//! Numbers are big-endian, so that key order is timestamp order.
//!
//! **Order.** A group is applied whole or not at all, in the order of the calls; when [`Appender::append`] returns, the
//! group is synced and readable.
//!
//! **After a crash.** A group that was not acknowledged may be there or not; an acknowledged one is there, or opening
//! fails. RocksDB's own log recovery is set to refuse corruption in the middle; it does not notice a lost log file or
//! a log that ends too early. For that, every group carries the next batch number: after recovery the numbers must run
//! on from `base` without a hole, and must reach the number in `<data-dir>/durable`, which is written (outside RocksDB)
//! after each sync and so never promises too much. [`Collector::checkpoint`] moves `base` up once everything before it
//! is in table files.

mod append;
mod collect;
mod key;
mod mark;
mod read;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBCompressionType, DBRecoveryMode, Options,
};
use tidb::ts::{CommitTs, StartTs, Tso};

pub use append::Appender;
pub use collect::Collector;
pub use read::{Reader, Scan, Stored};

use crate::config::StorageConfig;
use key::Family;
use mark::Mark;

const FORMAT: u64 = 1;

/// Why the store cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// RocksDB refused to open the directory, for example because its log is corrupt in the middle.
    #[error(
        "cannot open the store in {path}: {reason}; acknowledged binlogs may be damaged, so nothing was repaired"
    )]
    Open {
        /// The store's directory.
        path: PathBuf,
        /// RocksDB's words.
        reason: String,
    },
    /// Acknowledged writes are missing.
    #[error(
        "the store in {path} has a hole: write {missing} was acknowledged but is not there (recovered up to {recovered}); \
         restore the directory from a copy, or declare this pump lost with `binlogctl offline-pump`"
    )]
    Hole {
        /// The store's directory.
        path: PathBuf,
        /// The first missing batch number.
        missing: u64,
        /// The last batch number that was recovered.
        recovered: u64,
    },
    /// The file with the durable mark is gone or unreadable.
    #[error(
        "{path}: {reason}; without it a lost tail of the log cannot be noticed, so the pump does not start"
    )]
    Mark {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The directory was written by a version that this one does not know.
    #[error("the data directory has format {found}, this version knows format {FORMAT}")]
    UnknownFormat {
        /// As stored.
        found: u64,
    },
    /// A stored key or value does not have the form that this version writes.
    #[error("a record of {family} is malformed: {reason}")]
    Malformed {
        /// The column family.
        family: &'static str,
        /// What was found.
        reason: String,
    },
    /// A commit is stored whose prewrite is not.
    #[error("the prewrite {start_ts} of the commit {commit_ts} is not in the store")]
    MissingPrewrite {
        /// The transaction.
        start_ts: StartTs,
        /// Its place.
        commit_ts: CommitTs,
    },
    /// A write failed. Whether it reached the disk is unknown: the process has to end.
    #[error("writing to the store failed: {0}")]
    Write(rocksdb::Error),
    /// A read failed.
    #[error("reading from the store failed: {0}")]
    Read(rocksdb::Error),
    /// A file beside RocksDB could not be written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
}

/// Why a prewrite is never emitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// TiKV rolled the transaction back, or it can no longer commit.
    RolledBack,
    /// A second copy that came after another pump's acknowledgement: the other pump emits it.
    LateCopy {
        /// When the transaction committed.
        commit_ts: CommitTs,
    },
    /// TiKV may have forgotten the transaction: a declared gap.
    Unknown,
}

/// One change to the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record {
    /// A prewrite, open from now on.
    Prewrite {
        /// The transaction.
        start_ts: StartTs,
        /// Lower bound of its commit_ts (exclusive).
        floor: Tso,
        /// The binlog as received.
        payload: Bytes,
    },
    /// A raised floor of an open prewrite, or news of its rollback binlog.
    Floor {
        /// The transaction.
        start_ts: StartTs,
        /// Its new floor.
        floor: Tso,
        /// TiDB sent a rollback binlog for it.
        rollback_seen: bool,
    },
    /// An open (or wrongly dropped) prewrite has committed.
    Commit {
        /// The transaction.
        start_ts: StartTs,
        /// Its place in the order.
        commit_ts: CommitTs,
        /// The commit binlog as received; empty if TiKV told us.
        payload: Bytes,
    },
    /// An open prewrite will never be emitted.
    Dropped {
        /// The transaction.
        start_ts: StartTs,
        /// Why.
        fate: Fate,
        /// Its floor, by which it is collected.
        floor: Tso,
    },
    /// A transaction that this pump cannot deliver.
    Gap {
        /// The transaction.
        start_ts: StartTs,
        /// Its place, or its floor if unknown.
        at: Tso,
        /// What happened, for the operator.
        cause: String,
    },
    /// The watermark, saved now and then.
    Watermark(Tso),
    /// Transactions at or below it are about to be deleted.
    Collected(Tso),
}

impl Record {
    /// Bytes that the record adds to a group, roughly.
    pub fn weight(&self) -> usize {
        let variable = match self {
            Self::Prewrite { payload, .. } | Self::Commit { payload, .. } => payload.len(),
            Self::Gap { cause, .. } => cause.len(),
            Self::Floor { .. } | Self::Dropped { .. } | Self::Watermark(_) | Self::Collected(_) => 0,
        };
        variable + 64
    }
}

/// An open prewrite as found at start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pending {
    /// The transaction.
    pub start_ts: StartTs,
    /// Lower bound of its commit_ts (exclusive).
    pub floor: Tso,
    /// TiDB sent a rollback binlog for it.
    pub rollback_seen: bool,
}

/// What the store knew when it was opened.
#[derive(Debug, Clone, Default)]
pub struct Recovered {
    /// Prewrites without settlement.
    pub pending: Vec<Pending>,
    /// The watermark as last saved; the true one may have been higher.
    pub watermark: Tso,
    /// The largest start_ts stored, zero if none.
    pub newest_start: Tso,
    /// Number of the last group written, zero if none.
    pub batches: u64,
}

/// What the handles share.
struct Shared {
    db: DB,
    path: PathBuf,
    /// Last batch number that is synced.
    synced: AtomicU64,
    /// Transactions at or below it may be gone.
    collected: AtomicU64,
}

impl Shared {
    fn family(&self, family: Family) -> Result<&rocksdb::ColumnFamily, StoreError> {
        self.db.cf_handle(family.name()).ok_or_else(|| StoreError::Malformed {
            family: family.name(),
            reason: "column family is missing".into(),
        })
    }

    fn number(&self, name: &str) -> Result<Option<u64>, StoreError> {
        let value = self.db.get_cf(self.family(Family::Meta)?, name).map_err(StoreError::Read)?;
        value.map(|value| key::number(Family::Meta, &value)).transpose()
    }

    /// Verifies that every acknowledged group is there.
    fn verify_batches(&self, promised: u64) -> Result<u64, StoreError> {
        let base = self.number("base")?.unwrap_or(1);
        let mut expected = base;
        let mut iterator = self.db.raw_iterator_cf(self.family(Family::Batch)?);
        iterator.seek(key::u64_key(base));
        while let Some(found) = iterator.key() {
            let found = key::number(Family::Batch, found)?;
            if found != expected {
                return Err(StoreError::Hole {
                    path: self.path.clone(),
                    missing: expected,
                    recovered: expected - 1,
                });
            }
            expected += 1;
            iterator.next();
        }
        iterator.status().map_err(StoreError::Read)?;
        let recovered = expected - 1;
        if recovered < promised {
            return Err(StoreError::Hole { path: self.path.clone(), missing: expected, recovered });
        }
        Ok(recovered)
    }

    fn pending(&self) -> Result<Vec<Pending>, StoreError> {
        let mut pending = Vec::new();
        let mut iterator = self.db.raw_iterator_cf(self.family(Family::Pending)?);
        iterator.seek_to_first();
        while let Some((key, value)) = iterator.item() {
            let start_ts = StartTs::new(key::number(Family::Pending, key)?);
            let (floor, rollback_seen) = key::parse_pending(value)?;
            pending.push(Pending { start_ts, floor, rollback_seen });
            iterator.next();
        }
        iterator.status().map_err(StoreError::Read)?;
        Ok(pending)
    }

    fn newest_start(&self) -> Result<Tso, StoreError> {
        let mut iterator = self.db.raw_iterator_cf(self.family(Family::Prewrite)?);
        iterator.seek_to_last();
        let newest = iterator.key().map(|key| key::number(Family::Prewrite, key)).transpose()?;
        iterator.status().map_err(StoreError::Read)?;
        Ok(Tso::new(newest.unwrap_or(0)))
    }
}

/// Opens or creates the store in `data_dir`, checks that nothing acknowledged is missing, and reads what
/// the sorter needs. Blocking.
///
/// # Errors
/// A hole, corruption, an unknown format, or whatever the file system says. Nothing is repaired or dropped.
pub fn open(
    data_dir: &Path,
    config: &StorageConfig,
) -> Result<(Appender, Reader, Collector, Recovered), StoreError> {
    let path = data_dir.join("store");
    let existed =
        path.join("CURRENT").try_exists().map_err(|source| StoreError::Io { path: path.clone(), source })?;
    let mark = if existed { Mark::open(data_dir)? } else { Mark::create(data_dir)? };

    let options = database_options(config);
    let cache =
        Cache::new_lru_cache(usize::try_from(config.kv.block_cache_capacity.as_u64()).unwrap_or(usize::MAX))
            .map_err(|e| StoreError::Open { path: path.clone(), reason: e.into_string() })?;
    let families = Family::ALL
        .map(|family| ColumnFamilyDescriptor::new(family.name(), family_options(family, config, &cache)));
    let db = DB::open_cf_descriptors(&options, &path, families)
        .map_err(|e| StoreError::Open { path: path.clone(), reason: e.into_string() })?;
    let shared = Shared { db, path, synced: AtomicU64::new(0), collected: AtomicU64::new(0) };

    let format = shared.number("format")?;
    if let Some(found) = format
        && found != FORMAT
    {
        return Err(StoreError::UnknownFormat { found });
    }
    let batches = shared.verify_batches(mark.promised())?;
    let recovered = Recovered {
        pending: shared.pending()?,
        watermark: Tso::new(shared.number("watermark")?.unwrap_or(0)),
        newest_start: shared.newest_start()?,
        batches,
    };
    shared.synced.store(batches, std::sync::atomic::Ordering::Release);
    let collected = shared.number("collected")?.unwrap_or(0);
    shared.collected.store(collected, std::sync::atomic::Ordering::Release);

    let shared = Arc::new(shared);
    let appender = Appender::new(shared.clone(), mark, batches);
    if format.is_none() {
        appender.describe(FORMAT)?;
    }
    Ok((appender, Reader::new(shared.clone()), Collector::new(shared), recovered))
}

fn database_options(config: &StorageConfig) -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_paranoid_checks(true);
    // The default would silently end recovery at the first corrupt record, acknowledged or not.
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_max_background_jobs(2);
    options.set_keep_log_file_num(4);
    options.set_max_total_wal_size(4 * config.kv.write_buffer.as_u64().max(16 << 20));
    options.set_bytes_per_sync(1 << 20);
    options
}

fn family_options(family: Family, config: &StorageConfig, cache: &Cache) -> Options {
    let size = |bytes: bytesize::ByteSize| usize::try_from(bytes.as_u64()).unwrap_or(usize::MAX);
    let kv = &config.kv;
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_block_size(size(kv.block_size));
    table.set_block_restart_interval(i32::try_from(kv.block_restart_interval).unwrap_or(16));
    if family.looked_up() {
        table.set_bloom_filter(10.0, false);
    }
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_write_buffer_size(if family.holds_payloads() { size(kv.write_buffer) } else { 4 << 20 });
    options.set_max_write_buffer_number(3);
    options.set_target_file_size_base(kv.compaction_table_size.as_u64());
    options.set_max_bytes_for_level_base(kv.compaction_total_size.as_u64());
    options.set_max_bytes_for_level_multiplier(kv.compaction_total_size_multiplier);
    options.set_level_zero_file_num_compaction_trigger(i32::try_from(kv.compaction_l0_trigger).unwrap_or(8));
    options.set_level_zero_slowdown_writes_trigger(i32::try_from(kv.write_l0_slowdown_trigger).unwrap_or(17));
    options.set_level_zero_stop_writes_trigger(i32::try_from(kv.write_l0_pause_trigger).unwrap_or(24));
    options
}
