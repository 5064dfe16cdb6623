//! A naive database that applies row changes and DDL effects as a consumer would, column by column.

use std::collections::BTreeMap;

use drainer_kafka::schema::Definition;
use schemas::sluice::v1::{Field, Op, RowChange, field::Value as V};
use tidb::model::{ColumnInfo, tp};

/// A cell: what the text protocol would return, or unknown because the model does not convert types.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Value {
    Null,
    Bytes(Vec<u8>),
    Unknown,
}

impl Value {
    pub(crate) fn fits(&self, expected: &Self) -> bool {
        *self == Self::Unknown || *expected == Self::Unknown || self == expected
    }
}

pub(crate) type Row = BTreeMap<i64, Value>;

/// A table's rows.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rows {
    pub(crate) rows: Vec<Row>,
    /// Partitions went or were exchanged: which rows that took is not in the binlog.
    pub(crate) lost_track: bool,
}

impl Rows {
    pub(crate) fn apply(&mut self, definition: &Definition, change: &RowChange) {
        let image =
            |fields: &[Field]| -> Row { fields.iter().map(|f| (f.column_id, cell(definition, f))).collect() };
        let (before, after) = (image(&change.before), image(&change.after));
        match change.op() {
            Op::Insert => {
                assert_eq!(after.len(), definition.columns.len(), "an insert is complete");
                self.rows.push(after);
            }
            Op::Update => {
                if let Some(at) = self.find(definition, &before) {
                    self.rows[at].extend(after);
                }
            }
            Op::Delete => {
                if let Some(at) = self.find(definition, &before) {
                    self.rows.swap_remove(at);
                }
            }
            Op::Unspecified => panic!("no operation"),
        }
    }

    /// The row of a before image: by the key if there is one, else by everything the image has.
    fn find(&self, definition: &Definition, before: &Row) -> Option<usize> {
        let key: Vec<i64> = definition.key.iter().map(|at| definition.info.cols[*at].id).collect();
        let wanted: Row = match key.as_slice() {
            [] => before.clone(),
            key => key.iter().map(|id| (*id, before[id].clone())).collect(),
        };
        let found = self.rows.iter().position(|row| {
            wanted.iter().all(|(id, value)| row.get(id).is_some_and(|have| have.fits(value)))
        });
        assert!(
            found.is_some() || self.lost_track,
            "{}.{}: no row for {before:?}",
            definition.database,
            definition.table()
        );
        found
    }

    /// What an ALTER does to the rows that are there.
    pub(crate) fn reshape(&mut self, before: &Definition, after: &Definition) {
        let ids = |d: &Definition| -> Vec<i64> { d.columns.iter().map(|at| d.info.cols[*at].id).collect() };
        let (old, new) = (ids(before), ids(after));
        for row in &mut self.rows {
            row.retain(|id, _| new.contains(id));
            for id in new.iter().filter(|id| !old.contains(id)) {
                let column = after.info.column(*id).unwrap();
                row.insert(*id, initial(before, column));
            }
        }
    }
}

/// The value that a new column has in rows that were there.
fn initial(before: &Definition, column: &ColumnInfo) -> Value {
    // A lossy type change gives a column a new id: the values are converted by rules this model does not have.
    if before.info.column_by_name(column.name()).is_some() || column.is_generated() {
        return Value::Unknown;
    }
    let default = column.origin_default_value().unwrap();
    let value = default
        .unwrap_or_else(|| if column.not_null() { column.zero_value() } else { tidb::value::Value::Null });
    match value.to_text(&column.field_type).unwrap() {
        Some(bytes) => Value::Bytes(bytes.to_vec()),
        None => Value::Null,
    }
}

/// A field as the text protocol returns it.
fn cell(definition: &Definition, field: &Field) -> Value {
    let column = definition.info.column(field.column_id).unwrap();
    let names = || column.field_type.elems.to_vec();
    Value::Bytes(match field.value.as_ref().unwrap() {
        V::Null(_) => return Value::Null,
        V::Int(0) if column.field_type.tp == tp::YEAR => b"0000".to_vec(),
        V::Int(v) => v.to_string().into_bytes(),
        V::Uint(v) => v.to_string().into_bytes(),
        V::Float(v) => format!("{v:e}").into_bytes(),
        V::Double(v) => format!("{v:e}").into_bytes(),
        V::Decimal(v) | V::Text(v) | V::Date(v) | V::Datetime(v) | V::Timestamp(v) | V::Time(v) => {
            v.clone().into_bytes()
        }
        V::Bytes(v) => v.to_vec(),
        V::Enum(0) => Vec::new(),
        V::Enum(v) => names()[*v as usize - 1].clone().into_bytes(),
        V::Set(v) => {
            let chosen: Vec<String> = names()
                .into_iter()
                .enumerate()
                .filter(|(bit, _)| v >> bit & 1 == 1)
                .map(|(_, name)| name)
                .collect();
            chosen.join(",").into_bytes()
        }
        V::Bit(v) => {
            let width = (column.field_type.flen as usize).div_ceil(8);
            v.to_be_bytes()[8 - width..].to_vec()
        }
        V::Json(v) => v.text.clone().into_bytes(),
    })
}

/// A recorded cell, numbers of FLOAT and DOUBLE columns as this model writes them.
pub(crate) fn expected(column: &ColumnInfo, bytes: &[u8]) -> Value {
    let number = || std::str::from_utf8(bytes).unwrap().parse::<f64>().unwrap();
    Value::Bytes(match column.field_type.tp {
        tp::FLOAT => return Value::Bytes(float(number() as f32)),
        tp::DOUBLE => format!("{:e}", number()).into_bytes(),
        _ => bytes.to_vec(),
    })
}

/// TiDB's text protocol shows six digits of a FLOAT in exponent form: compare those.
pub(crate) fn float(value: f32) -> Vec<u8> {
    format!("{value:.5e}").into_bytes()
}
