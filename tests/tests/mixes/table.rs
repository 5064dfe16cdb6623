//! A table of the upstream, with a schema change on its way through TiDB's states, and its rows as each state writes them.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::json;
use tidb::datum::Datum;

/// The stage of a schema change after which its binlog is written. A multi-schema change shows its columns from here on,
/// and may take steps more.
pub(crate) const LAST: u8 = 3;

#[derive(Clone, Debug)]
pub(crate) struct Column {
    /// Stays through a type change, which gives the column a new id.
    pub(crate) logical: u64,
    pub(crate) id: i64,
    pub(crate) name: String,
    pub(crate) default: Option<i64>,
}

#[derive(Clone, Debug)]
pub(crate) enum Flight {
    Add { column: Column, stage: u8 },
    Drop { column: Column, stage: u8 },
    Type { column: Column, new_id: i64, stage: u8 },
    Several { parts: Parts, stage: u8 },
}

/// What a multi-schema change does.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    pub(crate) added: Vec<Column>,
    /// A column that gets another type, its new id, and perhaps another name.
    pub(crate) changed: Option<(Column, i64, String)>,
    pub(crate) dropped: Option<Column>,
}

/// How a column is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Role {
    /// Users see it.
    Public,
    /// Written, but nobody sees it.
    WriteOnly,
    /// Only deletes bring it.
    DeleteOnly,
}

#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) handle: i64,
    pub(crate) values: BTreeMap<u64, Option<i64>>,
}

#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) id: i64,
    pub(crate) name: String,
    pub(crate) keyed: bool,
    pub(crate) columns: Vec<Column>,
    pub(crate) next_column: i64,
    pub(crate) rows: Vec<Row>,
    pub(crate) flight: Option<Flight>,
    /// The same one state earlier: what a lagging TiDB works with.
    pub(crate) earlier: Option<Flight>,
}

impl Flight {
    pub(crate) fn stage(&mut self) -> &mut u8 {
        match self {
            Self::Add { stage, .. }
            | Self::Drop { stage, .. }
            | Self::Type { stage, .. }
            | Self::Several { stage, .. } => stage,
        }
    }

    /// The stage after which the binlog is written.
    pub(crate) fn last(&self) -> u8 {
        match self {
            Self::Several { parts: Parts { dropped: Some(_), .. }, .. } => LAST + 1,
            _ => LAST,
        }
    }
}

impl Table {
    /// The columns of a row with their roles, as a TiDB in this state of the change writes them.
    pub(crate) fn roles(&self, flight: Option<&Flight>) -> Vec<(Column, Role)> {
        let mut roles: Vec<(Column, Role)> =
            self.columns.iter().map(|column| (column.clone(), Role::Public)).collect();
        let mut set = |column: &Column, role: Role| {
            roles.retain(|(other, _)| other.id != column.id);
            roles.push((column.clone(), role));
        };
        let coming = |stage: u8| if stage == 0 { Role::DeleteOnly } else { Role::WriteOnly };
        match flight {
            None => {}
            Some(Flight::Add { column, stage }) => set(column, coming(*stage)),
            Some(Flight::Drop { column, stage: 0 }) => set(column, Role::WriteOnly),
            Some(Flight::Drop { column, .. }) => set(column, Role::DeleteOnly),
            Some(Flight::Type { column, new_id, stage }) => {
                set(column, Role::Public);
                set(&Column { id: *new_id, ..column.clone() }, coming(*stage));
            }
            // One step ends the part that can be undone: it shows what comes, swaps what changes, and begins to drop.
            Some(Flight::Several { parts, stage }) => {
                let shown = *stage >= LAST;
                let role = if shown { Role::Public } else { coming(*stage) };
                parts.added.iter().for_each(|column| set(column, role));
                if let Some((column, new_id, _)) = &parts.changed {
                    set(&Column { id: *new_id, ..column.clone() }, role);
                }
                match &parts.dropped {
                    Some(column) if *stage == LAST => set(column, Role::WriteOnly),
                    Some(column) if shown => set(column, Role::DeleteOnly),
                    _ => {}
                }
                if let Some((column, ..)) = parts.changed.as_ref().filter(|_| shown) {
                    roles.retain(|(other, _)| other.id != column.id);
                }
            }
        }
        roles
    }

    pub(crate) fn pairs(
        &self,
        row: &Row,
        roles: &[(Column, Role)],
        take: impl Fn(&Column, Role, Option<i64>) -> bool,
    ) -> Vec<u8> {
        let mut out = Vec::new();
        for (column, role) in roles {
            let value = row.values.get(&column.logical).copied().unwrap_or(column.default);
            if take(column, *role, value) {
                Datum::Int(column.id).encode_value(&mut out);
                value.map_or(Datum::Null, Datum::Int).encode_value(&mut out);
            }
        }
        out
    }

    pub(crate) fn with_row_id(&self, mut pairs: Vec<u8>, row: &Row) -> Vec<u8> {
        if !self.keyed {
            Datum::Int(-1).encode_value(&mut pairs);
            Datum::Int(row.handle).encode_value(&mut pairs);
        }
        pairs
    }

    pub(crate) fn encode_insert(&self, row: &Row, roles: &[(Column, Role)]) -> Bytes {
        let mut out = Vec::new();
        Datum::Int(row.handle).encode_value(&mut out);
        let type_change =
            |column: &Column| roles.iter().any(|(c, _)| c.logical == column.logical && c.id < column.id);
        let pairs = self.pairs(row, roles, |column, role, value| {
            let is_key = self.keyed && column.id == 1;
            let omitted = value.is_none() && column.default.is_none() && !type_change(column);
            role != Role::DeleteOnly && !is_key && !omitted
        });
        out.extend(if pairs.is_empty() { vec![0] } else { pairs });
        out.into()
    }

    pub(crate) fn encode_update(&self, before: &Row, after: &Row, roles: &[(Column, Role)]) -> Bytes {
        let half =
            |row: &Row| self.with_row_id(self.pairs(row, roles, |_, role, _| role != Role::DeleteOnly), row);
        [half(before), half(after)].concat().into()
    }

    pub(crate) fn encode_delete(&self, row: &Row, roles: &[(Column, Role)]) -> Bytes {
        self.with_row_id(self.pairs(row, roles, |_, _, _| true), row).into()
    }

    pub(crate) fn info(&self) -> serde_json::Value {
        let columns: Vec<_> = self
            .columns
            .iter()
            .enumerate()
            .map(|(offset, column)| {
                let flag = if self.keyed && column.id == 1 { 3 } else { 0 };
                json!({
                    "id": column.id, "name": {"O": column.name, "L": column.name}, "offset": offset, "state": 5,
                    "origin_default": column.default.map(|v| v.to_string()),
                    "default": column.default.map(|v| v.to_string()),
                    "type": {"Tp": 8, "Flag": flag, "Flen": 20, "Decimal": 0, "Charset": "binary", "Collate": "binary"},
                })
            })
            .collect();
        json!({
            "id": self.id, "name": {"O": self.name, "L": self.name}, "cols": columns, "pk_is_handle": self.keyed,
            "max_col_id": self.next_column - 1, "charset": "utf8mb4", "collate": "utf8mb4_bin", "state": 5,
        })
    }

    /// True if another row, without a key, differs from this one at most in columns that are dropped or swapped: there comes
    /// a state in which TiDB's images of the two are the same.
    pub(crate) fn has_twin(&self, row: usize) -> bool {
        let going: Vec<u64> = match &self.flight {
            Some(Flight::Drop { column, .. }) => vec![column.logical],
            Some(Flight::Several { parts, .. }) => {
                let changed = parts.changed.iter().map(|(column, ..)| column.logical);
                changed.chain(parts.dropped.iter().map(|column| column.logical)).collect()
            }
            _ => return false,
        };
        let rest = |row: &Row| -> BTreeMap<u64, Option<i64>> {
            let stays = row.values.iter().filter(|(logical, _)| !going.contains(logical));
            stays.map(|(logical, value)| (*logical, *value)).collect()
        };
        let Some(values) = self.rows.get(row).map(rest) else { return false };
        !self.keyed && self.rows.iter().enumerate().any(|(at, other)| at != row && rest(other) == values)
    }

    /// The column and its values are gone.
    pub(crate) fn forget(&mut self, column: &Column) {
        self.columns.retain(|other| other.id != column.id);
        for row in &mut self.rows {
            row.values.remove(&column.logical);
        }
    }

    /// Gives rows that lack them their columns' defaults.
    pub(crate) fn fill(&mut self, columns: &[Column]) {
        for row in &mut self.rows {
            for column in columns {
                row.values.entry(column.logical).or_insert(column.default);
            }
        }
    }
}
