//! Partitions by range, and what is written where: while rows are put into other partitions, TiDB writes to those that hold
//! them and to those that will, and records both.

use serde_json::json;

use crate::image::Piece;
use crate::table::{Column, Flight, Handle, LAST, Role, Row, Table};

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Partition {
    pub(crate) id: i64,
    pub(crate) name: String,
    /// Its rows are below this, and not below that of the partition before it.
    pub(crate) below: i64,
}

/// `PARTITION BY RANGE (column)`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Partitioning {
    pub(crate) column: u64,
    pub(crate) partitions: Vec<Partition>,
}

/// The id of the partition that a table without partitions is.
const WHOLE: i64 = 0;

impl Partitioning {
    /// The first partition also has what is NULL.
    fn locate(&self, row: &Row) -> i64 {
        let value = row.values[&self.column];
        let holds = |partition: &&Partition| value.is_none_or(|value| value < partition.below);
        self.partitions.iter().find(holds).expect("the last bound is above all values").id
    }

    fn has(&self, id: i64) -> bool {
        self.partitions.iter().any(|partition| partition.id == id)
    }

    /// From where to where a partition goes; the first has no beginning.
    pub(crate) fn range(&self, at: usize) -> (Option<i64>, i64) {
        let from = at.checked_sub(1).map(|before| self.partitions[before].below);
        (from, self.partitions[at].below)
    }

    /// True if the partition at this place holds the row.
    pub(crate) fn holds(&self, at: usize, row: &Row) -> bool {
        self.locate(row) == self.partitions[at].id
    }

    /// `PARTITION p VALUES LESS THAN (…), …`
    pub(crate) fn sql(partitions: &[Partition]) -> String {
        let part = |part: &Partition| format!("PARTITION `{}` VALUES LESS THAN ({})", part.name, part.below);
        partitions.iter().map(part).collect::<Vec<_>>().join(", ")
    }

    pub(crate) fn info(&self, column: &str) -> serde_json::Value {
        let definition = |part: &Partition| {
            json!({
                "id": part.id, "name": {"O": part.name, "L": part.name}, "less_than": [part.below.to_string()],
                "in_values": null,
            })
        };
        json!({
            "type": 1, "expr": format!("`{column}`"), "columns": null, "enable": true, "num": self.partitions.len(),
            "definitions": self.partitions.iter().map(definition).collect::<Vec<_>>(),
        })
    }
}

/// Where a TiDB in some state of a change writes rows.
struct Places<'a> {
    holding: Option<&'a Partitioning>,
    /// While rows move: where else they are written.
    other: Option<Option<&'a Partitioning>>,
    /// The job's first state: rows are deleted there but not inserted.
    first: bool,
}

fn locate(by: Option<&Partitioning>, row: &Row) -> i64 {
    by.map_or(WHOLE, |by| by.locate(row))
}

impl Places<'_> {
    fn holding(&self, row: &Row) -> i64 {
        locate(self.holding, row)
    }

    /// The partition that gets the row, too, if it moves.
    fn other(&self, row: &Row) -> Option<i64> {
        let other = self.other?;
        let here = self.holding(row);
        let stays = other.map_or(here == WHOLE, |other| other.has(here));
        (!stays).then(|| locate(other, row))
    }
}

/// A TiDB that writes.
pub(crate) struct Writer<'a> {
    pub(crate) table: &'a Table,
    pub(crate) flight: Option<&'a Flight>,
    pub(crate) roles: &'a [(Column, Role)],
    /// Where a row moves between partitions, TiDB before 8.2 inserts it before it deletes it.
    pub(crate) inserts_first: bool,
    /// The next `_tidb_rowid`.
    pub(crate) next: &'a mut u64,
}

impl Writer<'_> {
    fn places(&self) -> Places<'_> {
        match self.flight {
            // In its last state the new partitions hold the rows, and those that go get them, too.
            Some(Flight::Repartition { from, to, stage: LAST, .. }) => {
                Places { holding: to.as_ref(), other: Some(from.as_ref()), first: false }
            }
            Some(Flight::Repartition { from, to, stage, .. }) => {
                Places { holding: from.as_ref(), other: Some(to.as_ref()), first: *stage == 0 }
            }
            _ => Places { holding: self.table.partitioning.as_ref(), other: None, first: false },
        }
    }

    /// The row again where it is inserted once more: under a `_tidb_rowid` of its own.
    fn again(&mut self, row: &Row) -> Row {
        let mut row = row.clone();
        if self.table.handle == Handle::RowId {
            *self.next += 1;
            row.handle = *self.next as i64;
        }
        row
    }

    fn inserted(&self, row: &Row) -> Piece {
        Piece::Insert(self.table.encode_insert(row, self.roles))
    }

    fn deleted(&self, row: &Row) -> Piece {
        Piece::Delete(self.table.encode_delete(row, self.roles))
    }

    fn updated(&self, before: &Row, after: &Row) -> Piece {
        Piece::Update(self.table.encode_update(before, after, self.roles))
    }

    pub(crate) fn insert(&mut self, row: &Row) -> Vec<Piece> {
        let mut out = vec![self.inserted(row)];
        let places = self.places();
        if places.other(row).is_some() && !places.first {
            let again = self.again(row);
            out.push(self.inserted(&again));
        }
        out
    }

    pub(crate) fn delete(&self, row: &Row) -> Vec<Piece> {
        let doubled = self.places().other(row).is_some();
        let count = if doubled { 2 } else { 1 };
        (0..count).map(|_| self.deleted(row)).collect()
    }

    /// May give the row another `_tidb_rowid`.
    pub(crate) fn update(&mut self, before: &Row, after: &mut Row) -> Vec<Piece> {
        if self.table.moves_handle(before, after) {
            return [self.delete(before), self.insert(after)].concat();
        }
        let places = self.places();
        let (from, to) = (places.holding(before), places.holding(after));
        let (other_from, other_to) = (places.other(before), places.other(after));
        let first = places.first;
        let mut out = Vec::new();
        if from == to {
            out.push(self.updated(before, after));
            match (other_from, other_to) {
                (Some(old_place), Some(new_place)) if old_place == new_place => {
                    out.push(if first { self.deleted(before) } else { self.updated(before, after) });
                    return out;
                }
                _ => {}
            }
        } else {
            *after = self.again(after);
            out.extend(self.moved(before, after));
            match (other_from, other_to) {
                // Under the row id that it had.
                (Some(old_place), Some(new_place)) if old_place == new_place => {
                    out.push(self.updated(before, after));
                    return out;
                }
                _ => {}
            }
        }
        let deleted = other_from.map(|_| self.deleted(before));
        let inserted = other_to.filter(|_| !first).map(|_| {
            let again = self.again(after);
            self.inserted(&again)
        });
        let again = if self.inserts_first { [inserted, deleted] } else { [deleted, inserted] };
        out.extend(again.into_iter().flatten());
        out
    }

    fn moved(&self, before: &Row, after: &Row) -> [Piece; 2] {
        let mut pieces = [self.deleted(before), self.inserted(after)];
        if self.inserts_first {
            pieces.reverse();
        }
        pieces
    }
}
