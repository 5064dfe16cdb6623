//! Rows of the binlog, in TiDB's row format v1, read by a table's definition and written back byte for byte
//! (TiDB `tablecodec`: `EncodeOldRow`; `table/tables`); and format v2, which TiKV holds ([`v2`]).
//!
//! Decoding takes from the blob what it says and adds nothing: columns that the definition has and the row lacks are
//! absent from the image (their value is for the caller to decide), ids that the definition lacks are kept aside.

mod build;
mod decode;
mod encode;
pub mod v2;

use bytes::Bytes;

pub use self::{
    build::{BuildRowError, Collation},
    decode::{decode_delete, decode_insert, decode_update},
    encode::{encode_delete, encode_insert, encode_update},
};
use crate::{DecodeError, datum::Datum, value::Value, value::ValueError};

/// The column id of `_tidb_rowid`, the handle of tables that are not clustered.
pub const ROW_ID: i64 = -1;

/// Most columns accepted in a row: TiDB allows 4096, and columns of running jobs come on top.
pub const MAX_COLUMNS: usize = 8192;

/// What a blob says about one row: one image of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowImage {
    /// Column id and value of every id that the definition has, whatever the column's state, in the order of the blob;
    /// columns that only the handle of an inserted row holds come first.
    pub columns: Vec<(i64, Value)>,
    /// Ids that the definition lacks: of columns that a job in flight adds, or that were dropped.
    pub unknown: Vec<Unknown>,
    /// `_tidb_rowid`, for tables that are not clustered.
    pub row_id: Option<i64>,
    /// Inserted rows: the handle's datums as they stand in the blob.
    handle: Bytes,
    /// Inserted rows: how many of `columns` come from the handle alone.
    from_handle: usize,
}

/// A column that the definition lacks.
#[derive(Clone, Debug, PartialEq)]
pub struct Unknown {
    /// The column's id.
    pub id: i64,
    /// Its value, without a type.
    pub datum: Datum,
    /// How many of the image's `columns` stand before it in the blob (those from the handle included).
    pub at: usize,
}

impl RowImage {
    /// The value of a column; None if the row lacks it.
    pub fn get(&self, id: i64) -> Option<&Value> {
        self.columns.iter().find(|(column, _)| *column == id).map(|(_, value)| value)
    }

    /// True if the column's value came with the handle and not in the row proper.
    pub fn is_from_handle(&self, id: i64) -> bool {
        self.columns[..self.from_handle].iter().any(|(column, _)| *column == id)
    }

    /// Inserted rows: the handle's datums as they stand in the blob, in value form. Strings are sort keys.
    pub fn handle(&self) -> &Bytes {
        &self.handle
    }
}

/// A row that cannot be read, and where.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("row of table {table} (id {table_id}), byte {at}{}: {fault}", column.as_ref().map(|c| format!(", column {c}")).unwrap_or_default())]
pub struct RowError {
    /// The table's id.
    pub table_id: i64,
    /// The table's name.
    pub table: String,
    /// The column, if the fault lies in one.
    pub column: Option<String>,
    /// Where in the blob.
    pub at: usize,
    /// What is wrong.
    pub fault: RowFault,
}

/// What is wrong with a row.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RowFault {
    /// Malformed bytes.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// A value that its column cannot hold.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// A column stands in the row more often than it may.
    #[error("column id {0} occurs too often")]
    Repeated(i64),
    /// An updated row whose halves do not list the same columns.
    #[error("column id {0} has a value before or after the update only")]
    Unpaired(i64),
    /// More columns than a table can have.
    #[error("more than {MAX_COLUMNS} columns")]
    TooManyColumns,
    /// The definition contradicts itself: a handle without the columns that make it.
    #[error("the definition names no usable {0}")]
    Definition(&'static str),
}
