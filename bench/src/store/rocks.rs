//! RocksDB, laid out as a pump would: prewrites by start_ts, open ones, commits by commit_ts.

use std::path::Path;

use rocksdb::{
    BlockBasedOptions, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, DBRecoveryMode, Options,
    ReadOptions, WriteBatch, WriteOptions,
};
use tidb::ts::{CommitTs, Tso};

use super::{Engine, Op, READ, Scanned};

pub(super) struct Rocks(DB);

fn key(ts: Tso) -> [u8; 8] {
    ts.get().to_be_bytes()
}

impl Rocks {
    pub(super) fn open(dir: &Path, blobs: bool) -> anyhow::Result<Self> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
        options.set_max_background_jobs(2);
        options.set_max_total_wal_size(256 << 20);
        options.set_bytes_per_sync(1 << 20);
        let families = ["prewrite", "pending", "commit"].map(|name| {
            let mut family = Options::default();
            let mut table = BlockBasedOptions::default();
            if name == "prewrite" {
                table.set_bloom_filter(10.0, false);
                family.set_enable_blob_files(blobs);
                family.set_min_blob_size(0);
                family.set_enable_blob_gc(blobs);
                family.set_blob_compression_type(DBCompressionType::Lz4);
            }
            family.set_block_based_table_factory(&table);
            family.set_compression_type(DBCompressionType::Lz4);
            family.set_write_buffer_size(if name == "pending" { 4 << 20 } else { 64 << 20 });
            ColumnFamilyDescriptor::new(name, family)
        });
        Ok(Self(DB::open_cf_descriptors(&options, dir, families)?))
    }

    fn family(&self, name: &str) -> anyhow::Result<&ColumnFamily> {
        self.0.cf_handle(name).ok_or_else(|| anyhow::anyhow!("no column family {name}"))
    }
}

impl Engine for Rocks {
    fn append(&mut self, group: &[Op]) -> anyhow::Result<()> {
        let (prewrites, pending, commits) =
            (self.family("prewrite")?, self.family("pending")?, self.family("commit")?);
        let mut batch = WriteBatch::default();
        for op in group {
            match op {
                Op::Prewrite { start_ts, payload } => {
                    batch.put_cf(prewrites, key(start_ts.0), payload);
                    batch.put_cf(pending, key(start_ts.0), key(start_ts.0));
                }
                Op::Commit { start_ts, commit_ts, payload } => {
                    batch.put_cf(commits, [key(commit_ts.0), key(start_ts.0)].concat(), payload);
                    batch.delete_cf(pending, key(start_ts.0));
                }
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(true);
        Ok(self.0.write_opt(batch, &options)?)
    }

    fn advance(&mut self, _: Tso) -> anyhow::Result<()> {
        Ok(())
    }

    fn scan(&self, after: CommitTs, upto: CommitTs) -> anyhow::Result<Scanned> {
        let prewrites = self.family("prewrite")?;
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(key(upto.0.next()));
        let mut iterator = self.0.raw_iterator_cf_opt(self.family("commit")?, options);
        iterator.seek(key(after.0.next()));
        let mut scanned = Scanned::default();
        while let Some(found) = iterator.key() {
            let (commit_ts, start_ts) = found.split_at(8);
            let payload = self.0.get_cf(prewrites, start_ts)?;
            let payload = payload.ok_or_else(|| anyhow::anyhow!("a commit without its prewrite"))?;
            scanned.last = CommitTs::new(u64::from_be_bytes(commit_ts.try_into()?));
            scanned.count += 1;
            scanned.bytes += payload.len() as u64;
            if scanned.bytes as usize >= READ {
                break;
            }
            iterator.next();
        }
        iterator.status()?;
        Ok(scanned)
    }

    fn collect(&mut self, through: CommitTs) -> anyhow::Result<()> {
        let (prewrites, commits) = (self.family("prewrite")?, self.family("commit")?);
        let mut iterator = self.0.raw_iterator_cf(commits);
        iterator.seek_to_first();
        let mut batch = WriteBatch::default();
        while let Some(found) = iterator.key() {
            let (commit_ts, start_ts) = found.split_at(8);
            if commit_ts > key(through.0).as_slice() {
                break;
            }
            batch.delete_cf(commits, found);
            batch.delete_cf(prewrites, start_ts);
            if batch.len() >= 2000 {
                self.0.write(std::mem::take(&mut batch))?;
            }
            iterator.next();
        }
        iterator.status()?;
        drop(iterator);
        self.0.write(batch)?;
        // The space is given back by compaction; what is measured is when it is there.
        for name in ["prewrite", "commit"] {
            let family = self.family(name)?;
            self.0.flush_cf(family)?;
            self.0.compact_range_cf(family, None::<&[u8]>, None::<&[u8]>);
        }
        Ok(())
    }
}
