//! Does the log add up? Reads the topics of a feed with a plain consumer under `read_committed` and verifies what the
//! Kafka contract promises: it shares the generated messages and the golden-tested hashes with the product, and no other code.
//!
//! [`read::log`] fetches, [`rules::verify`] judges; the judge is pure and is itself tested with logs broken on purpose.

pub mod read;
pub mod rules;

use std::{collections::BTreeMap, fmt};

use schemas::sluice::v1::{CommitRecord, RowMeta};

/// A feed's topics, as `read_committed` shows them.
#[derive(Clone, Debug, Default)]
pub struct Log {
    /// The commit stream in order of offset.
    pub commits: Vec<Commit>,
    /// The records of the row topics; in order of offset within a partition.
    pub rows: Vec<Row>,
    /// The keys of the schema topic.
    pub schema_keys: std::collections::BTreeSet<String>,
}

/// A record of the commit stream.
#[derive(Clone, Debug)]
pub struct Commit {
    /// Its offset.
    pub offset: i64,
    /// Bytes of its value.
    pub size: usize,
    /// Whether it had a key; the contract says none.
    pub keyed: bool,
    /// The decoded value.
    pub record: CommitRecord,
}

/// A record of a row topic, without its values.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its topic.
    pub topic: String,
    /// Its partition.
    pub partition: i32,
    /// Its offset.
    pub offset: i64,
    /// The header `sluice`.
    pub meta: RowMeta,
    /// The header `commit_ts`.
    pub commit_ts_header: String,
    /// The checksum computed from key and value as received.
    pub checksum: u32,
    /// Database and table named by the value; `None` for a piece of a chunked one.
    pub table: Option<(String, String)>,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Broken promises, one line each. Empty: the log adds up.
    pub violations: Vec<String>,
    /// START records.
    pub epochs: usize,
    /// Upstream transactions with rows.
    pub transactions: usize,
    /// DDL transactions.
    pub ddls: usize,
    /// PART records.
    pub parts: usize,
    /// TICK records.
    pub ticks: usize,
    /// Declared gaps, as (from, to, cause).
    pub gaps: Vec<(u64, u64, String)>,
    /// Row records that the commit stream names.
    pub rows: usize,
    /// Row records newer than the commit stream as read; none when the drainer is idle.
    pub ahead: usize,
    /// The last watermark.
    pub watermark: u64,
    /// Row records by `db.table`, then (topic, partition).
    pub by_table: BTreeMap<String, BTreeMap<(String, i32), usize>>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} epochs, {} transactions, {} DDL, {} parts, {} ticks, {} gaps, {} row records, {} ahead, watermark {}",
            self.epochs,
            self.transactions,
            self.ddls,
            self.parts,
            self.ticks,
            self.gaps.len(),
            self.rows,
            self.ahead,
            self.watermark
        )?;
        for violation in self.violations.iter().take(20) {
            writeln!(f, "  {violation}")?;
        }
        if self.violations.len() > 20 {
            writeln!(f, "  … and {} more", self.violations.len() - 20)?;
        }
        Ok(())
    }
}
