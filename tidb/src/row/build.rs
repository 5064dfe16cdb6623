//! Making images of rows that no blob holds yet, with the columns and the handle that TiDB would give them.

use bytes::Bytes;

use super::RowImage;
use crate::{
    datum::Datum,
    model::{ColumnInfo, FieldType, TableInfo, tp},
    value::Value,
};

/// Whether the cluster compares strings by collations in keys (`new_collation_enabled`, fixed at its bootstrap).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collation {
    /// Keys hold sort keys.
    New,
    /// Keys hold the strings' bytes.
    Old,
}

/// Why an image cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuildRowError {
    /// A handle column, or the row id, is missing.
    #[error("no value for {0}, which the handle of table {1} needs")]
    MissingHandle(String, String),
    /// The sort key of this collation needs weight tables that this build does not have.
    #[error("sort keys of collation {0} are not supported")]
    Collation(String),
    /// The definition names no usable primary key.
    #[error("table {0} has a clustered primary key without columns")]
    Definition(String),
}

impl RowImage {
    /// The image of a row to be inserted. `values` are those of the columns with a value, in any order; `row_id` is
    /// needed by tables that are not clustered. Left out as TiDB does: virtual columns, and NULLs where default and
    /// origin default are NULL.
    pub fn for_insert(
        table: &TableInfo,
        values: &[(i64, Value)],
        row_id: Option<i64>,
        collation: Collation,
    ) -> Result<Self, BuildRowError> {
        let missing = |what: &str| BuildRowError::MissingHandle(what.to_owned(), table.name().to_owned());
        let value_of = |id: i64| values.iter().find(|(column, _)| *column == id).map(|(_, value)| value);
        let mut image = Self::default();
        let mut handle = Vec::new();
        if table.is_common_handle {
            let definition = || BuildRowError::Definition(table.name().to_owned());
            let index = table.primary_index().ok_or_else(definition)?;
            for (column, length) in table.index_columns(index).ok_or_else(definition)? {
                let value = value_of(column.id).ok_or_else(|| missing(column.name()))?;
                handle_datum(column, value, length, collation)?.encode_value(&mut handle);
                if length == -1 && !is_restored(&column.field_type, collation) {
                    image.columns.push((column.id, value.clone()));
                }
            }
        } else if let Some(column) = table.handle_column() {
            let value = value_of(column.id).ok_or_else(|| missing(column.name()))?;
            let handle_value = match value {
                Value::Int(v) => *v,
                Value::Uint(v) => *v as i64,
                _ => return Err(missing(column.name())),
            };
            Datum::Int(handle_value).encode_value(&mut handle);
            image.columns.push((column.id, value.clone()));
        } else {
            let row_id = row_id.ok_or_else(|| missing("_tidb_rowid"))?;
            Datum::Int(row_id).encode_value(&mut handle);
            image.row_id = Some(row_id);
        }
        image.from_handle = image.columns.len();
        for column in &table.cols {
            let Some(value) = value_of(column.id) else { continue };
            let null = value.is_null() && column.default.is_none() && column.origin_default.is_none();
            if !null && !column.is_virtual() && !image.is_from_handle(column.id) {
                image.columns.push((column.id, value.clone()));
            }
        }
        image.handle = Bytes::from(handle);
        Ok(image)
    }

    /// One half of an updated row, or a deleted row: `values` in the definition's order, virtual columns only if
    /// `deleted`, the row id where the table is not clustered.
    pub fn for_change(
        table: &TableInfo,
        values: &[(i64, Value)],
        row_id: Option<i64>,
        deleted: bool,
    ) -> Result<Self, BuildRowError> {
        let columns = table.cols.iter().filter(|c| deleted || !c.is_virtual()).filter_map(|column| {
            let (_, value) = values.iter().find(|(id, _)| *id == column.id)?;
            Some((column.id, value.clone()))
        });
        let mut image = Self { columns: columns.collect(), ..Self::default() };
        if table.has_row_id() {
            let missing = || BuildRowError::MissingHandle("_tidb_rowid".into(), table.name().to_owned());
            image.row_id = Some(row_id.ok_or_else(missing)?);
        }
        Ok(image)
    }
}

/// True if a column of a clustered primary key stands in the row as well, because the handle alone does not give it
/// back ("restored data").
fn is_restored(field: &FieldType, collation: Collation) -> bool {
    collation == Collation::New
        && field.is_text()
        && field.collate != "utf8mb4_0900_bin"
        && (!field.collate.ends_with("_bin") || matches!(field.tp, tp::VARCHAR | tp::VAR_STRING))
}

fn handle_datum(
    column: &ColumnInfo,
    value: &Value,
    length: i64,
    collation: Collation,
) -> Result<Datum, BuildRowError> {
    Ok(match value {
        Value::Duration(v) => Datum::Duration(v.nanos),
        Value::Bytes(v) => Datum::Bytes(v.slice(..prefix_bytes(v, length))),
        Value::Text(v) => {
            let multi_byte = column.field_type.charset != "ascii";
            let cut = if multi_byte { prefix_chars(v, length) } else { prefix_bytes(v, length) };
            Datum::Bytes(sort_key(&column.field_type, v.slice(..cut), collation)?)
        }
        other => other.to_datum(),
    })
}

fn prefix_bytes(v: &Bytes, length: i64) -> usize {
    usize::try_from(length).map_or(v.len(), |n| n.min(v.len()))
}

fn prefix_chars(v: &Bytes, length: i64) -> usize {
    let Ok(length) = usize::try_from(length) else { return v.len() };
    // A byte that continues no character counts as one, as in Go.
    let mut left = length;
    let mut at = 0;
    for chunk in v.utf8_chunks() {
        for c in chunk.valid().chars() {
            if left == 0 {
                return at;
            }
            left -= 1;
            at += c.len_utf8();
        }
        for _ in chunk.invalid() {
            if left == 0 {
                return at;
            }
            left -= 1;
            at += 1;
        }
    }
    at
}

fn sort_key(field: &FieldType, text: Bytes, collation: Collation) -> Result<Bytes, BuildRowError> {
    if collation == Collation::Old {
        return Ok(text);
    }
    match field.collate.as_str() {
        "binary" | "utf8mb4_0900_bin" => Ok(text),
        "utf8mb4_bin" | "utf8_bin" | "ascii_bin" | "latin1_bin" => {
            let end = text.iter().rposition(|&b| b != b' ').map_or(0, |i| i + 1);
            Ok(text.slice(..end))
        }
        other => Err(BuildRowError::Collation(other.to_owned())),
    }
}
