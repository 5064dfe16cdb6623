//! Reading rows.

use bytes::Bytes;

use super::{MAX_COLUMNS, ROW_ID, RowError, RowFault, RowImage, Unknown};
use crate::{
    DecodeError,
    datum::{Datum, Reader},
    model::{ColumnInfo, TableInfo},
    value::Value,
};

/// Reads an inserted row: handle, then the row.
pub fn decode_insert(table: &TableInfo, blob: &Bytes) -> Result<RowImage, RowError> {
    let mut rows = Rows::new(table, blob);
    rows.insert().map_err(|fault| rows.error(fault))
}

/// Reads an updated row: the images before and after it.
pub fn decode_update(table: &TableInfo, blob: &Bytes) -> Result<(RowImage, RowImage), RowError> {
    let mut rows = Rows::new(table, blob);
    rows.update().map_err(|fault| rows.error(fault))
}

/// Reads a deleted row: the image before.
pub fn decode_delete(table: &TableInfo, blob: &Bytes) -> Result<RowImage, RowError> {
    let mut rows = Rows::new(table, blob);
    rows.delete().map_err(|fault| rows.error(fault))
}

/// The state of reading one blob.
struct Rows<'a> {
    table: &'a TableInfo,
    reader: Reader<'a>,
    blob: &'a Bytes,
    /// Where in the table's columns the next one is expected: rows list them in the definition's order.
    cursor: usize,
    /// The table's columns that the present image already has.
    seen: Seen,
    /// The column being read, for errors.
    current: Option<&'a ColumnInfo>,
}

/// A set of small numbers; tables of up to 128 columns need no allocation.
#[derive(Default)]
struct Seen {
    low: u128,
    high: Vec<bool>,
}

impl Seen {
    /// False if it is already there.
    fn insert(&mut self, n: usize) -> bool {
        if n < 128 {
            let fresh = self.low >> n & 1 == 0;
            self.low |= 1 << n;
            return fresh;
        }
        if self.high.len() <= n - 128 {
            self.high.resize(n - 127, false);
        }
        !std::mem::replace(&mut self.high[n - 128], true)
    }
}

impl<'a> Rows<'a> {
    fn new(table: &'a TableInfo, blob: &'a Bytes) -> Self {
        Self { table, reader: Reader::new(blob), blob, cursor: 0, seen: Seen::default(), current: None }
    }

    fn error(&self, fault: RowFault) -> RowError {
        RowError {
            table_id: self.table.id,
            table: self.table.name().to_owned(),
            column: self.current.map(|c| c.name().to_owned()),
            at: self.reader.position(),
            fault,
        }
    }

    fn insert(&mut self) -> Result<RowImage, RowFault> {
        let mut image = RowImage::default();
        if self.table.is_common_handle {
            let mut datums = Vec::new();
            let index = self.table.primary_index().ok_or(RowFault::Definition("primary key"))?;
            for _ in 0..index.idx_cols.len() {
                datums.push(self.reader.datum()?);
            }
            self.inserted_columns(&mut image)?;
            let mut from_handle = Vec::new();
            for (part, datum) in index.idx_cols.iter().zip(datums) {
                let column = self.table.cols.get(part.offset).ok_or(RowFault::Definition("primary key"))?;
                // A prefix is not the value, and where the row has the column, the row is right: the handle holds a
                // sort key.
                if part.length == -1 && image.get(column.id).is_none() {
                    self.current = Some(column);
                    from_handle.push((
                        column.id,
                        Value::from_datum(datum, &column.field_type).map_err(RowFault::Value)?,
                    ));
                    self.current = None;
                }
            }
            Self::put_first(&mut image, from_handle);
            return Ok(image);
        }
        let Datum::Int(handle) = self.reader.datum()? else {
            return Err(DecodeError::Malformed("integer handle").into());
        };
        self.inserted_columns(&mut image)?;
        if self.table.pk_is_handle {
            let column = self.table.handle_column().ok_or(RowFault::Definition("primary key column"))?;
            if image.get(column.id).is_none() {
                let value =
                    if column.is_unsigned() { Value::Uint(handle as u64) } else { Value::Int(handle) };
                Self::put_first(&mut image, vec![(column.id, value)]);
            }
        } else {
            image.row_id = Some(handle);
        }
        Ok(image)
    }

    /// An inserted row names its row id as handle only.
    fn inserted_columns(&mut self, image: &mut RowImage) -> Result<(), RowFault> {
        image.handle = self.blob.slice(..self.reader.position());
        self.row(image)?;
        if image.row_id.is_some() { Err(RowFault::Repeated(ROW_ID)) } else { Ok(()) }
    }

    fn put_first(image: &mut RowImage, columns: Vec<(i64, Value)>) {
        let count = columns.len();
        image.from_handle = count;
        image.columns.splice(0..0, columns);
        for unknown in &mut image.unknown {
            unknown.at += count;
        }
    }

    fn delete(&mut self) -> Result<RowImage, RowFault> {
        let mut image = RowImage::default();
        self.row(&mut image)?;
        Ok(image)
    }

    /// The rest of the blob as one image.
    fn row(&mut self, image: &mut RowImage) -> Result<(), RowFault> {
        // A row without columns is a lone NULL datum.
        if self.reader.rest() == [0] {
            return Ok(());
        }
        image.columns.reserve(self.expected_columns());
        while !self.reader.is_empty() {
            let id = self.column_id()?;
            self.cell(id, image)?;
        }
        Ok(())
    }

    /// Two images that list the same ids in the same order: the second begins where the first id comes again.
    fn update(&mut self) -> Result<(RowImage, RowImage), RowFault> {
        let mut before = RowImage::default();
        before.columns.reserve(self.expected_columns() / 2 + 1);
        let first = self.column_id()?;
        let mut id = first;
        loop {
            self.cell(id, &mut before)?;
            if self.reader.is_empty() {
                return Err(RowFault::Unpaired(first));
            }
            id = self.column_id()?;
            if id == first {
                break;
            }
        }
        (self.cursor, self.seen) = (0, Seen::default());
        let mut after = RowImage::default();
        after.columns.reserve_exact(before.columns.len().min(self.expected_columns() + 1));
        loop {
            self.cell(id, &mut after)?;
            if self.reader.is_empty() {
                break;
            }
            id = self.column_id()?;
        }
        match unpaired(&before, &after) {
            Some(id) => Err(RowFault::Unpaired(id)),
            None => Ok((before, after)),
        }
    }

    /// How many columns to make room for: no more than the definition has or the bytes can hold.
    fn expected_columns(&self) -> usize {
        self.table.cols.len().min(self.reader.rest().len() / 3)
    }

    fn column_id(&mut self) -> Result<i64, RowFault> {
        self.current = None;
        Ok(self.reader.column_id()?)
    }

    /// Reads the value of column `id` into the image.
    fn cell(&mut self, id: i64, image: &mut RowImage) -> Result<(), RowFault> {
        if image.columns.len() + image.unknown.len() >= MAX_COLUMNS {
            return Err(RowFault::TooManyColumns);
        }
        let Some((index, column)) = self.find(id) else {
            let datum = self.reader.datum()?;
            let repeated = match datum {
                Datum::Int(row_id) if id == ROW_ID => image.row_id.replace(row_id).is_some(),
                datum => {
                    let repeated = image.unknown.iter().any(|u| u.id == id);
                    image.unknown.push(Unknown { id, datum, at: image.columns.len() });
                    repeated
                }
            };
            return if repeated { Err(RowFault::Repeated(id)) } else { Ok(()) };
        };
        self.current = Some(column);
        let datum = self.reader.datum()?;
        if !self.seen.insert(index) {
            return Err(RowFault::Repeated(id));
        }
        image.columns.push((id, Value::from_datum(datum, &column.field_type).map_err(RowFault::Value)?));
        self.current = None;
        Ok(())
    }

    /// The column of this id, looked for first where the definition's order has it.
    fn find(&mut self, id: i64) -> Option<(usize, &'a ColumnInfo)> {
        let cols: &'a [ColumnInfo] = &self.table.cols;
        let (before, after) = cols.split_at(self.cursor.min(cols.len()));
        let index = match after.iter().position(|c| c.id == id) {
            Some(i) => before.len() + i,
            None => before.iter().position(|c| c.id == id)?,
        };
        self.cursor = index + 1;
        Some((index, cols.get(index)?))
    }
}

/// An id that stands in one half only, or elsewhere in the other.
fn unpaired(before: &RowImage, after: &RowImage) -> Option<i64> {
    fn ids(image: &RowImage) -> impl Iterator<Item = (i64, usize)> {
        let columns = image.columns.iter().map(|(id, _)| (*id, 0));
        columns.chain(image.unknown.iter().map(|u| (u.id, u.at))).chain(image.row_id.map(|_| (ROW_ID, 0)))
    }
    let (mut old, mut new) = (ids(before), ids(after));
    loop {
        match (old.next(), new.next()) {
            (None, None) => return None,
            (a, b) if a == b => {}
            (Some((id, _)), _) | (None, Some((id, _))) => return Some(id),
        }
    }
}
