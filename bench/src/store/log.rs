//! The pump's own store.

use std::path::Path;

use pump::seglog::{self, Appender, Options, Reader, Record};
use tidb::ts::{CommitTs, Tso};

use super::{Engine, Op, READ, Scanned};

pub(super) struct SegmentLog {
    appender: Appender,
    reader: Reader,
}

impl SegmentLog {
    pub(super) fn open(dir: &Path) -> anyhow::Result<Self> {
        let (appender, reader, _) = seglog::open(dir, Options::default())?;
        Ok(Self { appender, reader })
    }
}

impl Engine for SegmentLog {
    fn append(&mut self, group: &[Op]) -> anyhow::Result<()> {
        let records: Vec<_> = group
            .iter()
            .cloned()
            .map(|op| match op {
                Op::Prewrite { start_ts, payload } => {
                    Record::Prewrite { start_ts, floor: start_ts.0, payload }
                }
                Op::Commit { start_ts, commit_ts, payload } => {
                    Record::Commit { start_ts, commit_ts, payload }
                }
            })
            .collect();
        Ok(self.appender.append(&records)?)
    }

    fn advance(&mut self, watermark: Tso) -> anyhow::Result<()> {
        Ok(self.appender.append(&[Record::Watermark(watermark)])?)
    }

    fn scan(&self, after: CommitTs, upto: CommitTs) -> anyhow::Result<Scanned> {
        let scan = self.reader.scan(after.0, upto.0, READ)?;
        Ok(Scanned {
            count: scan.transactions.len() as u64,
            bytes: scan.transactions.iter().map(|stored| stored.prewrite.len() as u64).sum(),
            last: CommitTs(scan.reached),
        })
    }

    fn collect(&mut self, through: CommitTs) -> anyhow::Result<()> {
        self.appender.append(&[Record::Collected(through.0)])?;
        // The space is given back beside the writer; what is measured is when it is there.
        Ok(self.appender.finish_background()?)
    }
}
