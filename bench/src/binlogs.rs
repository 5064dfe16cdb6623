//! The binlogs that are sent: as TiDB's, and of the length wanted.

use bytes::Bytes;
use prost::Message as _;
use schemas::binlog::{Binlog, BinlogType, MutationType, PrewriteValue, TableMutation};
use tidb::ts::{CommitTs, StartTs};

/// Different contents, so that nothing between client and disk profits from repetition.
const VARIANTS: usize = 61;

/// The primary key of every transaction: nothing conflicts here.
pub(crate) const PRIMARY: &[u8] = b"t\x80\0\0\0\0\0\0\x50_r\x80\0\0\0\0\0\0\x01";

/// Makes binlogs whose prewrites have a given length.
#[derive(Clone, Debug)]
pub struct Binlogs {
    values: Vec<Bytes>,
    len: usize,
}

fn binlog(tp: BinlogType, start_ts: StartTs, commit_ts: CommitTs, value: Option<Bytes>) -> Bytes {
    let binlog = Binlog {
        tp: Some(tp as i32),
        start_ts: Some(start_ts.0.to_i64()),
        commit_ts: Some(commit_ts.0.to_i64()),
        prewrite_key: Some(Bytes::from_static(PRIMARY)),
        prewrite_value: value,
        ddl_query: None,
        ddl_job_id: Some(0),
        ddl_schema_state: Some(0),
    };
    binlog.encode_to_vec().into()
}

fn value(rows: Bytes) -> Bytes {
    let mutation = TableMutation {
        table_id: Some(80),
        inserted_rows: vec![rows],
        sequence: vec![MutationType::Insert as i32],
        ..TableMutation::default()
    };
    PrewriteValue { schema_version: Some(42), mutations: vec![mutation] }.encode_to_vec().into()
}

impl Binlogs {
    /// Prewrites of about `len` bytes, exactly so unless it is very small.
    pub fn new(len: usize) -> Self {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut noise = |len: usize| -> Bytes {
            let bytes = (0..len).map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                state as u8
            });
            bytes.collect()
        };
        // The row's length that gives the wanted one; a longer row may need longer length fields, so it is sought.
        let whole = |row: usize| prewrite_len(value(vec![0; row].into()));
        let mut row = len;
        while row > 0 && whole(row) > len {
            row -= (whole(row) - len).min(row);
        }
        Self { values: (0..VARIANTS).map(|_| value(noise(row))).collect(), len }
    }

    /// Bytes of a prewrite.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True if prewrites have no bytes, which none has.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The prewrite binlog of a transaction.
    pub fn prewrite(&self, start_ts: StartTs) -> Bytes {
        let variant = start_ts.get() as usize % VARIANTS;
        binlog(BinlogType::Prewrite, start_ts, CommitTs::default(), Some(self.values[variant].clone()))
    }

    /// Its commit binlog.
    pub fn commit(&self, start_ts: StartTs, commit_ts: CommitTs) -> Bytes {
        binlog(BinlogType::Commit, start_ts, commit_ts, None)
    }
}

fn prewrite_len(value: Bytes) -> usize {
    // Timestamps of today take nine bytes.
    binlog(BinlogType::Prewrite, StartTs::new(1 << 58), CommitTs::default(), Some(value)).len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_exact() {
        let today = StartTs::new(441_534_075_403_763_717);
        for len in [100, 300, 1024, 102_400] {
            assert_eq!(Binlogs::new(len).prewrite(today).len(), len);
        }
    }
}
