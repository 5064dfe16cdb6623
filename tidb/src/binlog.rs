//! TiDB's binlog records: their envelope, and the changes inside (tipb `binlog.proto`).
//!
//! Fields that TiDB always writes are always written, zero or not; fields it leaves out are left out: what is encoded
//! here is byte for byte what TiDB sends.

use bytes::Bytes;
use prost::Message;
use schemas::binlog::{Binlog, BinlogType, MutationType, PrewriteValue, TableMutation};

use crate::ts::{CommitTs, StartTs, Tso};

/// A record that cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BinlogError {
    /// Not a message of this type.
    #[error("not a {0} message: {1}")]
    Protobuf(&'static str, prost::DecodeError),
    /// A record type that no supported TiDB writes.
    #[error("binlog type {0} is not prewrite, commit or rollback")]
    Type(i32),
    /// A kind of change that no supported TiDB writes.
    #[error("table {table_id}: mutation type {kind} at place {place} is not insert, update or delete row")]
    Mutation {
        /// The table.
        table_id: i64,
        /// The number in `sequence`.
        kind: i32,
        /// Its place there.
        place: usize,
    },
    /// `sequence` names more rows of a kind than there are, or fewer.
    #[error("table {table_id}: the sequence of changes and the rows do not match at place {place}")]
    Sequence {
        /// The table.
        table_id: i64,
        /// The place in `sequence`; its end if rows are left over.
        place: usize,
    },
}

/// What kind of record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Before the transaction commits; carries the changes.
    Prewrite,
    /// The transaction committed.
    Commit,
    /// The commit failed, or its outcome was not known: proves nothing.
    Rollback,
}

/// A record, its changes not decoded. Parts share the payload's buffer.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// What kind of record.
    pub kind: Kind,
    /// The transaction.
    pub start_ts: StartTs,
    /// Zero but in commit records.
    pub commit_ts: CommitTs,
    /// The transaction's primary key in TiKV.
    pub prewrite_key: Bytes,
    /// An encoded [`PrewriteValue`]; empty in DDL records and in commit and rollback records.
    pub prewrite_value: Bytes,
    /// The DDL statement; empty for DML.
    pub ddl_query: Bytes,
    /// The DDL job; 0 for DML.
    pub ddl_job_id: i64,
    /// State of the DDL's object; 1 marks the extra record of DROP COLUMN.
    pub ddl_schema_state: i32,
}

impl Header {
    /// Reads a payload of `WriteBinlog`.
    pub fn decode(payload: Bytes) -> Result<Self, BinlogError> {
        let binlog = Binlog::decode(payload).map_err(|e| BinlogError::Protobuf("Binlog", e))?;
        Self::try_from(binlog)
    }

    /// True for DDL records, whatever their kind.
    pub fn is_ddl(&self) -> bool {
        self.ddl_job_id != 0
    }

    /// True for the record that a sequence writes when it hands out numbers: it looks like a DDL, but has no job.
    pub fn is_sequence_value(&self) -> bool {
        const PREFIX: &[u8] = b"select setval";
        self.ddl_query.get(..PREFIX.len()).is_some_and(|q| q.eq_ignore_ascii_case(PREFIX))
    }

    /// The record as a message.
    pub fn to_binlog(&self) -> Binlog {
        let tp = match self.kind {
            Kind::Prewrite => BinlogType::Prewrite,
            Kind::Commit => BinlogType::Commit,
            Kind::Rollback => BinlogType::Rollback,
        };
        let bytes = |b: &Bytes| if b.is_empty() { None } else { Some(b.clone()) };
        Binlog {
            tp: Some(tp as i32),
            start_ts: Some(self.start_ts.0.to_i64()),
            commit_ts: Some(self.commit_ts.0.to_i64()),
            prewrite_key: bytes(&self.prewrite_key),
            prewrite_value: bytes(&self.prewrite_value),
            ddl_query: bytes(&self.ddl_query),
            ddl_job_id: Some(self.ddl_job_id),
            ddl_schema_state: Some(self.ddl_schema_state),
        }
    }

    /// The payload as TiDB sends it.
    pub fn encode(&self) -> Bytes {
        self.to_binlog().encode_to_vec().into()
    }

    /// The prewrite record of a DML transaction.
    pub fn prewrite(start_ts: StartTs, prewrite_key: Bytes, value: &PrewriteValue) -> Self {
        Self {
            kind: Kind::Prewrite,
            start_ts,
            commit_ts: CommitTs::default(),
            prewrite_key,
            prewrite_value: encode_value(value),
            ddl_query: Bytes::new(),
            ddl_job_id: 0,
            ddl_schema_state: 0,
        }
    }

    /// The commit record that belongs to this prewrite record.
    pub fn committed(&self, commit_ts: CommitTs) -> Self {
        Self { kind: Kind::Commit, commit_ts, prewrite_value: Bytes::new(), ..self.clone() }
    }

    /// The rollback record that belongs to this prewrite record.
    pub fn rolled_back(&self) -> Self {
        Self { kind: Kind::Rollback, prewrite_value: Bytes::new(), ..self.clone() }
    }
}

impl TryFrom<Binlog> for Header {
    type Error = BinlogError;

    fn try_from(binlog: Binlog) -> Result<Self, BinlogError> {
        let tp = binlog.tp.unwrap_or_default();
        let kind = match BinlogType::try_from(tp) {
            Ok(BinlogType::Prewrite) => Kind::Prewrite,
            Ok(BinlogType::Commit) => Kind::Commit,
            Ok(BinlogType::Rollback) => Kind::Rollback,
            Ok(BinlogType::PreDdl | BinlogType::PostDdl) | Err(_) => return Err(BinlogError::Type(tp)),
        };
        Ok(Self {
            kind,
            start_ts: StartTs(Tso::from_i64(binlog.start_ts.unwrap_or_default())),
            commit_ts: CommitTs(Tso::from_i64(binlog.commit_ts.unwrap_or_default())),
            prewrite_key: binlog.prewrite_key.unwrap_or_default(),
            prewrite_value: binlog.prewrite_value.unwrap_or_default(),
            ddl_query: binlog.ddl_query.unwrap_or_default(),
            ddl_job_id: binlog.ddl_job_id.unwrap_or_default(),
            ddl_schema_state: binlog.ddl_schema_state.unwrap_or_default(),
        })
    }
}

/// Reads the changes of a prewrite record; rows share its buffer.
pub fn decode_value(value: Bytes) -> Result<PrewriteValue, BinlogError> {
    PrewriteValue::decode(value).map_err(|e| BinlogError::Protobuf("PrewriteValue", e))
}

/// Writes the changes of a prewrite record.
pub fn encode_value(value: &PrewriteValue) -> Bytes {
    value.encode_to_vec().into()
}

/// One change to one table: the row's blob, for [`crate::row`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// An inserted row.
    Insert(&'a Bytes),
    /// An updated row.
    Update(&'a Bytes),
    /// A deleted row.
    Delete(&'a Bytes),
}

/// The changes of one table in their order. Rows that the order does not name are an error at the end, as are rows that
/// it names and that are not there.
pub fn changes(mutation: &TableMutation) -> impl Iterator<Item = Result<Change<'_>, BinlogError>> {
    let table_id = mutation.table_id.unwrap_or_default();
    let mut inserted = mutation.inserted_rows.iter();
    let mut updated = mutation.updated_rows.iter();
    let mut deleted = mutation.deleted_rows.iter();
    let end = mutation.sequence.len();
    let mut place = 0;
    std::iter::from_fn(move || {
        let Some(&kind) = mutation.sequence.get(place) else {
            let left = inserted.len() + updated.len() + deleted.len();
            if place == end && left > 0 {
                place += 1;
                return Some(Err(BinlogError::Sequence { table_id, place: end }));
            }
            return None;
        };
        let change = match MutationType::try_from(kind) {
            Ok(MutationType::Insert) => inserted.next().map(Change::Insert),
            Ok(MutationType::Update) => updated.next().map(Change::Update),
            Ok(MutationType::DeleteRow) => deleted.next().map(Change::Delete),
            Ok(MutationType::DeleteId | MutationType::DeletePk) | Err(_) => {
                let error = BinlogError::Mutation { table_id, kind, place };
                place = usize::MAX;
                return Some(Err(error));
            }
        };
        let at = place;
        place = if change.is_some() { place + 1 } else { usize::MAX };
        Some(change.ok_or(BinlogError::Sequence { table_id, place: at }))
    })
}

/// Collects the changes of one table in the form TiDB writes.
#[derive(Clone, Debug)]
pub struct MutationBuilder(TableMutation);

impl MutationBuilder {
    /// For the table of this (logical) id.
    pub fn new(table_id: i64) -> Self {
        Self(TableMutation { table_id: Some(table_id), ..TableMutation::default() })
    }

    /// Adds an inserted row, as [`crate::row::encode_insert`] writes it.
    pub fn insert(&mut self, row: impl Into<Bytes>) -> &mut Self {
        self.0.inserted_rows.push(row.into());
        self.0.sequence.push(MutationType::Insert as i32);
        self
    }

    /// Adds an updated row, as [`crate::row::encode_update`] writes it.
    pub fn update(&mut self, row: impl Into<Bytes>) -> &mut Self {
        self.0.updated_rows.push(row.into());
        self.0.sequence.push(MutationType::Update as i32);
        self
    }

    /// Adds a deleted row, as [`crate::row::encode_delete`] writes it.
    pub fn delete(&mut self, row: impl Into<Bytes>) -> &mut Self {
        self.0.deleted_rows.push(row.into());
        self.0.sequence.push(MutationType::DeleteRow as i32);
        self
    }

    /// The message.
    pub fn build(self) -> TableMutation {
        self.0
    }
}
