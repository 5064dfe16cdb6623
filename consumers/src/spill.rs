//! Row records waiting for their transaction: in memory up to a byte budget, in an unnamed temporary file beyond it.
//!
//! [`Sorter`] takes records in any order and gives them back by (seq, change, record): it sorts what fits the budget and
//! writes it out as one sorted run, then merges the runs. [`RowLog`] keeps records in the order given. A crash leaves
//! nothing behind: the files have no name.

use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::vec;

use bytes::Bytes;

/// One record of a row topic, checked, without what its transaction already says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowRecord {
    /// Its transaction.
    pub seq: u64,
    /// Its change within the transaction, from 0.
    pub change: u32,
    /// Which record of the change it is, from 0.
    pub record: u32,
    /// How many records the change has.
    pub records: u32,
    /// The table whose definition shaped it.
    pub table_id: i64,
    /// The version of that definition.
    pub schema_version: i64,
    /// CRC-32C of the record's key and value.
    pub checksum: u32,
    /// The value.
    pub value: Bytes,
}

/// What a record costs beside its value, in memory.
const OVERHEAD: usize = 80;
const HEADER: usize = 48;
const BUFFER: usize = 64 * 1024;

impl RowRecord {
    /// Bytes it is counted with.
    pub fn cost(&self) -> usize {
        self.value.len() + OVERHEAD
    }

    fn order(&self) -> (u64, u32, u32) {
        (self.seq, self.change, self.record)
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut header = [0; HEADER];
        header[..8].copy_from_slice(&self.seq.to_le_bytes());
        header[8..12].copy_from_slice(&self.change.to_le_bytes());
        header[12..16].copy_from_slice(&self.record.to_le_bytes());
        header[16..20].copy_from_slice(&self.records.to_le_bytes());
        header[20..28].copy_from_slice(&self.table_id.to_le_bytes());
        header[28..36].copy_from_slice(&self.schema_version.to_le_bytes());
        header[36..40].copy_from_slice(&self.checksum.to_le_bytes());
        header[40..48].copy_from_slice(&(self.value.len() as u64).to_le_bytes());
        out.write_all(&header)?;
        out.write_all(&self.value)
    }

    fn read(from: &mut impl Read) -> io::Result<Self> {
        let mut header = [0; HEADER];
        from.read_exact(&mut header)?;
        let mut rest = &header[..];
        let seq = take(&mut rest, u64::from_le_bytes);
        let change = take(&mut rest, u32::from_le_bytes);
        let record = take(&mut rest, u32::from_le_bytes);
        let records = take(&mut rest, u32::from_le_bytes);
        let table_id = take(&mut rest, i64::from_le_bytes);
        let schema_version = take(&mut rest, i64::from_le_bytes);
        let checksum = take(&mut rest, u32::from_le_bytes);
        // The file is ours alone; its lengths are those of values that were in memory before.
        let mut value = vec![0; take(&mut rest, u64::from_le_bytes) as usize];
        from.read_exact(&mut value)?;
        Ok(Self { seq, change, record, records, table_id, schema_version, checksum, value: value.into() })
    }
}

fn take<const N: usize, T>(bytes: &mut &[u8], make: fn([u8; N]) -> T) -> T {
    let (head, rest) = bytes.split_at(N);
    *bytes = rest;
    let mut array = [0; N];
    array.copy_from_slice(head);
    make(array)
}

/// Records in the order given, in memory until `budget` bytes, then all in a file.
#[derive(Debug)]
pub struct RowLog {
    dir: PathBuf,
    budget: usize,
    held: usize,
    count: u64,
    bytes: u64,
    memory: Vec<RowRecord>,
    file: Option<BufWriter<File>>,
}

impl RowLog {
    /// An empty one; its file, if one is needed, lies in `dir`.
    pub fn new(dir: &Path, budget: usize) -> Self {
        Self { dir: dir.to_owned(), budget, held: 0, count: 0, bytes: 0, memory: Vec::new(), file: None }
    }

    /// Adds a record.
    pub fn push(&mut self, row: RowRecord) -> io::Result<()> {
        self.count += 1;
        self.bytes += row.value.len() as u64;
        if let Some(file) = &mut self.file {
            return row.write(file);
        }
        self.held += row.cost();
        self.memory.push(row);
        if self.held > self.budget {
            let mut file = BufWriter::with_capacity(BUFFER, tempfile::tempfile_in(&self.dir)?);
            self.memory.drain(..).try_for_each(|row| row.write(&mut file))?;
            self.memory.shrink_to_fit();
            self.held = 0;
            self.file = Some(file);
        }
        Ok(())
    }

    /// Number of records.
    pub fn len(&self) -> u64 {
        self.count
    }

    /// True when nothing was pushed.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of all values.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// True once the records are on disk.
    pub fn is_spilled(&self) -> bool {
        self.file.is_some()
    }

    /// Gives the records back, in order.
    pub fn into_rows(self) -> io::Result<Rows> {
        match self.file {
            None => Ok(Rows::Memory(self.memory.into_iter())),
            Some(file) => {
                let mut file = file.into_inner().map_err(|error| error.into_error())?;
                file.seek(SeekFrom::Start(0))?;
                Ok(Rows::File { file: BufReader::with_capacity(BUFFER, file), left: self.count })
            }
        }
    }
}

/// Records coming back from a [`RowLog`].
#[derive(Debug)]
pub enum Rows {
    /// They never left memory.
    Memory(vec::IntoIter<RowRecord>),
    /// They are read from disk.
    File {
        /// Where from.
        file: BufReader<File>,
        /// How many are left.
        left: u64,
    },
}

impl Iterator for Rows {
    type Item = io::Result<RowRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Memory(rows) => rows.next().map(Ok),
            Self::File { left: 0, .. } => None,
            Self::File { file, left } => {
                *left -= 1;
                Some(RowRecord::read(file))
            }
        }
    }
}

/// Records in any order, given back by (seq, change, record).
#[derive(Debug)]
pub struct Sorter {
    dir: PathBuf,
    budget: usize,
    held: usize,
    rows: Vec<RowRecord>,
    runs: Vec<Rows>,
}

impl Sorter {
    /// An empty one; at most `budget` bytes stay in memory, plus a small buffer for each run on disk.
    pub fn new(dir: &Path, budget: usize) -> Self {
        Self { dir: dir.to_owned(), budget, held: 0, rows: Vec::new(), runs: Vec::new() }
    }

    /// Adds a record.
    pub fn push(&mut self, row: RowRecord) -> io::Result<()> {
        self.held += row.cost();
        self.rows.push(row);
        if self.held > self.budget {
            self.rows.sort_unstable_by_key(RowRecord::order);
            let mut file = BufWriter::with_capacity(BUFFER, tempfile::tempfile_in(&self.dir)?);
            self.rows.iter().try_for_each(|row| row.write(&mut file))?;
            let mut file = file.into_inner().map_err(|error| error.into_error())?;
            file.seek(SeekFrom::Start(0))?;
            let left = self.rows.len() as u64;
            self.runs.push(Rows::File { file: BufReader::with_capacity(BUFFER, file), left });
            self.rows.clear();
            self.held = 0;
        }
        Ok(())
    }

    /// Gives everything back in order.
    pub fn finish(mut self) -> io::Result<Sorted> {
        self.rows.sort_unstable_by_key(RowRecord::order);
        self.runs.push(Rows::Memory(self.rows.into_iter()));
        let mut heads = BinaryHeap::with_capacity(self.runs.len());
        for (run, rows) in self.runs.iter_mut().enumerate() {
            if let Some(row) = rows.next() {
                heads.push(Head { row: row?, run });
            }
        }
        Ok(Sorted { runs: self.runs, heads })
    }
}

/// The merge of a [`Sorter`]'s runs.
#[derive(Debug)]
pub struct Sorted {
    runs: Vec<Rows>,
    heads: BinaryHeap<Head>,
}

impl Iterator for Sorted {
    type Item = io::Result<RowRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        let Head { row, run } = self.heads.pop()?;
        match self.runs[run].next() {
            Some(Ok(next)) => self.heads.push(Head { row: next, run }),
            Some(Err(error)) => return Some(Err(error)),
            None => {}
        }
        Some(Ok(row))
    }
}

#[derive(Debug)]
struct Head {
    row: RowRecord,
    run: usize,
}

impl Ord for Head {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // The smallest first; equal ones in the order of their runs.
        (other.row.order(), other.run).cmp(&(self.row.order(), self.run))
    }
}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Head {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn records() -> impl Strategy<Value = Vec<RowRecord>> {
        let record =
            (0..4_u64, 0..5_u32, 0..3_u32, any::<u32>(), proptest::collection::vec(any::<u8>(), 0..200));
        let record = record.prop_map(|(seq, change, record, checksum, value)| RowRecord {
            seq,
            change,
            record,
            records: 3,
            table_id: -5,
            schema_version: 7,
            checksum,
            value: value.into(),
        });
        proptest::collection::vec(record, 0..60)
    }

    proptest! {
        #[test]
        fn a_log_gives_back_what_it_got(rows in records(), budget in 0..8_000_usize) {
            let dir = tempfile::tempdir().unwrap();
            let mut log = RowLog::new(dir.path(), budget);
            rows.iter().for_each(|row| log.push(row.clone()).unwrap());
            prop_assert_eq!(log.is_spilled(), rows.iter().map(RowRecord::cost).sum::<usize>() > budget);
            prop_assert_eq!(log.len(), rows.len() as u64);
            let back: Vec<_> = log.into_rows().unwrap().map(Result::unwrap).collect();
            prop_assert_eq!(back, rows);
        }

        #[test]
        fn a_sorter_sorts_whatever_its_budget(mut rows in records(), budget in 0..8_000_usize) {
            let dir = tempfile::tempdir().unwrap();
            // Unique places, as in the log.
            rows.sort_by_key(RowRecord::order);
            rows.dedup_by_key(|row| row.order());
            let mut shuffled = rows.clone();
            shuffled.sort_by_key(|row| row.checksum);
            let mut sorter = Sorter::new(dir.path(), budget);
            shuffled.into_iter().for_each(|row| sorter.push(row).unwrap());
            let back: Vec<_> = sorter.finish().unwrap().map(Result::unwrap).collect();
            prop_assert_eq!(back, rows);
            prop_assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        }
    }
}
