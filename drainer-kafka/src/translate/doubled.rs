//! Writes that TiDB records twice. Pure.
//!
//! While REORGANIZE PARTITION, PARTITION BY or REMOVE PARTITIONING runs, TiDB writes rows to the partition that holds them
//! and to the one that will (`partitionedTableUpdateRecord` and its neighbours in TiDB's `table/tables/partition.go`), and
//! the second write stands in the binlog right after the first, under the same table id:
//!
//! | write | recorded as | then again as |
//! |---|---|---|
//! | insert b | I(b) | I(b), not in the job's first state |
//! | delete a | D(a) | D(a) |
//! | update a→b within a partition | U(a→b) | U(a→b); D(a) in the job's first state; D(a) and I(b) where the new partitions differ |
//! | update a→b that moves | D(a) and I(b) | U(a→b), or D(a) and I(b), or either alone |
//!
//! D(a) and I(b) come in this order from TiDB 8.2 on and the other way round before. All of the right column is impossible
//! otherwise: a row that is gone is not deleted or updated, one that became b is not deleted as a, a key is not inserted
//! twice. So it is recognised by what was written just before, whatever the definition says of partitions (a table that
//! becomes partitioned is doubled before its DDL). A table without a key, whose second insertion has a `_tidb_rowid` of
//! its own, leaves some untold: I(b), I(b) is taken for two rows; D(a) and I(b) behind U(a→b) or themselves for the same
//! again, which they are unless only D(a) is recorded again and the transaction made b's like at that very place.
//!
//! Where a and b agree in every column that goes out nothing but equal neighbours is left out: a row may be deleted,
//! inserted and deleted again as it was.

use bytes::Bytes;
use tidb::datum::{Datum, Reader};
use tidb::row::{RowImage, decode_delete, decode_insert, decode_update};
use tidb::value::Value;

use super::{Op, carried};
use crate::schema::Definition;

/// The last two writes of a table in a transaction, as far as the next may repeat them.
#[derive(Clone, Debug, Default)]
pub(super) struct Recent {
    before: Option<(Op, Bytes)>,
    last: Option<(Op, Bytes)>,
}

impl Recent {
    /// A write that is no repetition.
    pub(super) fn push(&mut self, op: Op, blob: Bytes) {
        self.before = self.last.replace((op, blob));
    }

    /// How many of the coming writes repeat what was written last: none, the next, or the next two.
    pub(super) fn doubled(
        &mut self,
        definition: &Definition,
        (op, blob): (Op, &Bytes),
        second: impl FnOnce() -> Option<(Op, Bytes)>,
    ) -> usize {
        let Some((last_op, last)) = &self.last else { return 0 };
        let rows = Rows { definition };
        // A neighbour may come a third time as it is, so the last write stays.
        if *last_op == op && (blob == last || op == Op::Insert && rows.same_insert(last, blob)) {
            return 1;
        }
        let doubled = match (&self.before, last_op) {
            (_, Op::Update) => match op {
                Op::Delete if rows.is_old_half(last, blob) => match second() {
                    Some((Op::Insert, inserted)) if rows.is_new_half(last, &inserted) => 2,
                    _ => 1,
                },
                Op::Insert => match second() {
                    Some((Op::Delete, deleted))
                        if rows.is_old_half(last, &deleted) && rows.is_new_half(last, blob) =>
                    {
                        2
                    }
                    _ => 0,
                },
                Op::Delete | Op::Update => 0,
            },
            (Some((Op::Delete, deleted)), Op::Insert) => {
                rows.move_again((deleted, last), false, (op, blob), second)
            }
            (Some((Op::Insert, inserted)), Op::Delete) => {
                rows.move_again((last, inserted), true, (op, blob), second)
            }
            _ => 0,
        };
        if doubled > 0 {
            *self = Self::default();
        }
        doubled
    }
}

/// Compares rows of one table.
struct Rows<'a> {
    definition: &'a Definition,
}

impl Rows<'_> {
    /// How many of the coming writes repeat the deletion of a and the insertion of b.
    fn move_again(
        &self,
        (deleted, inserted): (&Bytes, &Bytes),
        deleted_last: bool,
        (op, blob): (Op, &Bytes),
        second: impl FnOnce() -> Option<(Op, Bytes)>,
    ) -> usize {
        let same_delete = |other: &Bytes| other == deleted;
        let same_insert = |other: &Bytes| other == inserted || self.differ_by_row_id(inserted, other);
        let count = match op {
            Op::Update => usize::from(self.is_old_half(blob, deleted) && self.is_new_half(blob, inserted)),
            Op::Delete if same_delete(blob) => match second() {
                Some((Op::Insert, other)) if same_insert(&other) => 2,
                _ => usize::from(!deleted_last),
            },
            Op::Insert if same_insert(blob) => match second() {
                Some((Op::Delete, other)) if same_delete(&other) => 2,
                _ => usize::from(deleted_last && self.same_insert(inserted, blob)),
            },
            Op::Delete | Op::Insert => 0,
        };
        if count > 0 && self.is_other_row(deleted, inserted) { count } else { 0 }
    }

    /// True if the second insertion cannot be of another row than the first.
    fn same_insert(&self, first: &Bytes, second: &Bytes) -> bool {
        first == second || !self.definition.key.is_empty() && self.differ_by_row_id(first, second)
    }

    /// True if nothing but the handle tells two inserted rows apart, and that is a `_tidb_rowid`.
    fn differ_by_row_id(&self, first: &Bytes, second: &Bytes) -> bool {
        let row = |blob: &Bytes| {
            let mut reader = Reader::new(blob);
            matches!(reader.datum(), Ok(Datum::Int(_))).then(|| blob.slice(reader.position()..))
        };
        self.definition.info.has_row_id() && row(first).is_some_and(|first| Some(first) == row(second))
    }

    /// True if the deleted row is the one that the update changed, as it was, and the update changed it.
    fn is_old_half(&self, updated: &Bytes, deleted: &Bytes) -> bool {
        if begins_otherwise(updated, deleted) {
            return false;
        }
        let info = &self.definition.info;
        let Ok((old, new)) = decode_update(info, updated) else { return false };
        let Ok(gone) = decode_delete(info, deleted) else { return false };
        old.row_id == gone.row_id && self.same_columns(&old, &gone) && !self.same_columns(&old, &new)
    }

    /// True if the inserted row is what the update made.
    fn is_new_half(&self, updated: &Bytes, inserted: &Bytes) -> bool {
        let info = &self.definition.info;
        let Ok((_, new)) = decode_update(info, updated) else { return false };
        decode_insert(info, inserted).is_ok_and(|inserted| self.same_columns(&new, &inserted))
    }

    /// True if the rows differ in a column that goes out.
    fn is_other_row(&self, deleted: &Bytes, inserted: &Bytes) -> bool {
        let info = &self.definition.info;
        let (Ok(deleted), Ok(inserted)) = (decode_delete(info, deleted), decode_insert(info, inserted))
        else {
            return false;
        };
        !self.same_columns(&deleted, &inserted)
    }

    /// Inserted rows leave NULLs out.
    fn same_columns(&self, a: &RowImage, b: &RowImage) -> bool {
        let value = |image: &RowImage, id: i64| image.get(id).cloned().unwrap_or(Value::Null);
        carried(self.definition).all(|column| value(a, column.id) == value(b, column.id))
    }
}

/// True if the rows have the same first column with different values: most rows that are not the same are told apart by
/// this alone.
fn begins_otherwise(a: &Bytes, b: &Bytes) -> bool {
    let first = |blob: &Bytes| {
        let mut reader = Reader::new(blob);
        Some((reader.datum().ok()?, reader.datum().ok()?))
    };
    let (Some((id, value)), Some((other_id, other_value))) = (first(a), first(b)) else { return false };
    id == other_id && value != other_value
}

#[cfg(test)]
mod tests;
