//! Row records put together again and read with the definition they name. Pure.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use schemas::sluice::v1::{ClaimCheck, Field, Op, RowChange, field};

use crate::event::{Change, ChangeKind, Row, Value};
use crate::schema::Table;
use crate::spill::RowRecord;

/// A row record cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("change {change} of transaction {seq}, a row of table id {table_id} version {version}: {what}")]
pub struct ShapeError {
    /// The transaction.
    pub seq: u64,
    /// The change.
    pub change: u32,
    /// The table.
    pub table_id: i64,
    /// The definition.
    pub version: i64,
    /// What is wrong.
    pub what: String,
}

/// Puts the records of one change together. They come in order and none is missing: the aligner saw to that.
#[derive(Debug, Default)]
pub struct Assembler {
    value: BytesMut,
}

impl Assembler {
    /// Takes the next record; gives the change's value with its last record.
    pub fn push(&mut self, row: &RowRecord) -> Option<Bytes> {
        if row.records == 1 {
            return Some(row.value.clone());
        }
        self.value.extend_from_slice(&row.value);
        (row.record + 1 == row.records).then(|| std::mem::take(&mut self.value).freeze())
    }
}

/// A value as far as the record has it.
#[derive(Debug)]
pub enum Decoded {
    /// All of it.
    Change(Change),
    /// Only where it lies: to be fetched and decoded in its place.
    Claim(ClaimCheck),
}

/// Reads a change's value. `last` is any record of the change.
pub fn decode(last: &RowRecord, value: Bytes, table: &Arc<Table>) -> Result<Decoded, ShapeError> {
    let bad = |what: String| ShapeError {
        seq: last.seq,
        change: last.change,
        table_id: last.table_id,
        version: last.schema_version,
        what,
    };
    let cost = value.len() + 160 + 48 * table.columns().len();
    let change = RowChange::decode(value).map_err(|error| bad(format!("does not parse: {error}")))?;
    if change.database != table.database() || change.table != table.name() {
        let (database, name) = (table.database(), table.name());
        return Err(bad(format!(
            "is of {}.{}, its definition of {database}.{name}",
            change.database, change.table
        )));
    }
    if let Some(claim) = change.claim {
        return Ok(Decoded::Claim(claim));
    }
    let op = change.op();
    let image =
        |fields: Vec<Field>, which| row(fields, table).map_err(|what| bad(format!("{which}: {what}")));
    let kind = match op {
        Op::Insert => ChangeKind::Insert { after: image(change.after, "row")? },
        Op::Update => ChangeKind::Update {
            before: image(change.before, "row before")?,
            after: image(change.after, "row after")?,
        },
        Op::Delete => ChangeKind::Delete { before: image(change.before, "row")? },
        Op::Unspecified => return Err(bad("is neither insert, update nor delete".to_owned())),
    };
    Ok(Decoded::Change(Change { table: table.clone(), kind, cost }))
}

fn row(fields: Vec<Field>, table: &Table) -> Result<Row, String> {
    let mut row: Row = vec![None; table.columns().len()].into();
    for field in fields {
        let place = table
            .place(field.column_id)
            .ok_or_else(|| format!("column id {} is not defined", field.column_id))?;
        let value =
            field.value.ok_or_else(|| format!("column {} has no value", table.columns()[place].name))?;
        if row[place].replace(value).is_some() {
            return Err(format!("column {} is there twice", table.columns()[place].name));
        }
    }
    Ok(row)
}

/// NULL.
pub const NULL: Value = field::Value::Null(schemas::sluice::v1::Null {});
