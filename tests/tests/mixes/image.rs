//! Rows as TiDB's binlog has them.

use bytes::Bytes;
use tidb::binlog::MutationBuilder;
use tidb::datum::Datum;

use crate::table::{Column, Handle, Kind, Role, Row, Table};

/// A row in a transaction's mutation of its table.
#[derive(Clone, Debug)]
pub(crate) enum Piece {
    Insert(Bytes),
    Update(Bytes),
    Delete(Bytes),
}

impl Piece {
    pub(crate) fn put(self, mutation: &mut MutationBuilder) {
        match self {
            Self::Insert(row) => mutation.insert(row),
            Self::Update(row) => mutation.update(row),
            Self::Delete(row) => mutation.delete(row),
        };
    }
}

impl Kind {
    fn datum(self, value: i64) -> Datum {
        match self {
            Self::BigInt => Datum::Int(value),
            Self::Varchar => Datum::Bytes(format!("{value} ").into()),
            Self::Char => Datum::Bytes(value.to_string().into()),
        }
    }

    /// As it stands in a handle: the sort key of text.
    fn sort_key(self, value: i64) -> Datum {
        match self {
            Self::BigInt => Datum::Int(value),
            Self::Varchar | Self::Char => Datum::Bytes(value.to_string().into()),
        }
    }
}

impl Table {
    fn pairs(
        &self,
        row: &Row,
        roles: &[(Column, Role)],
        take: impl Fn(&Column, Role, Option<i64>) -> bool,
    ) -> Vec<u8> {
        let mut out = Vec::new();
        for (column, role) in roles {
            let value = row.value(column);
            if take(column, *role, value) {
                Datum::Int(column.id).encode_value(&mut out);
                value.map_or(Datum::Null, |value| column.kind.datum(value)).encode_value(&mut out);
            }
        }
        out
    }

    fn with_row_id(&self, mut pairs: Vec<u8>, row: &Row) -> Vec<u8> {
        if self.handle == Handle::RowId {
            Datum::Int(-1).encode_value(&mut pairs);
            Datum::Int(row.handle).encode_value(&mut pairs);
        }
        pairs
    }

    /// True for a column whose value an inserted row has in its handle only.
    fn is_in_handle(&self, column: &Column) -> bool {
        match self.handle {
            Handle::RowId => false,
            Handle::Integer => column.logical == self.columns[0].logical,
            // The sort key of a VARCHAR is not the text.
            Handle::Common => {
                column.kind != Kind::Varchar && self.primary().unwrap().columns.contains(&column.logical)
            }
        }
    }

    pub(crate) fn encode_insert(&self, row: &Row, roles: &[(Column, Role)]) -> Bytes {
        let mut out = Vec::new();
        match self.handle {
            Handle::RowId => Datum::Int(row.handle).encode_value(&mut out),
            Handle::Integer => Datum::Int(row.value(&self.columns[0]).unwrap()).encode_value(&mut out),
            Handle::Common => {
                for logical in &self.primary().unwrap().columns {
                    let column = self.column(*logical);
                    column.kind.sort_key(row.value(column).unwrap()).encode_value(&mut out);
                }
            }
        }
        let type_change =
            |column: &Column| roles.iter().any(|(c, _)| c.logical == column.logical && c.id < column.id);
        let pairs = self.pairs(row, roles, |column, role, value| {
            let without = column.default.is_none() && column.origin.is_none() && !type_change(column);
            let omitted = value.is_none() && without || self.is_in_handle(column) || column.is_virtual();
            role != Role::DeleteOnly && !omitted
        });
        out.extend(if pairs.is_empty() { vec![0] } else { pairs });
        out.into()
    }

    pub(crate) fn encode_update(&self, before: &Row, after: &Row, roles: &[(Column, Role)]) -> Bytes {
        let written = |column: &Column, role: Role, _| role != Role::DeleteOnly && !column.is_virtual();
        // Both under the row id by which the row was found.
        let half = |values: &Row| self.with_row_id(self.pairs(values, roles, written), before);
        [half(before), half(after)].concat().into()
    }

    pub(crate) fn encode_delete(&self, row: &Row, roles: &[(Column, Role)]) -> Bytes {
        self.with_row_id(self.pairs(row, roles, |_, _, _| true), row).into()
    }
}
