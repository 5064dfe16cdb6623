//! A table of the upstream, with a schema change on its way through TiDB's states.

use std::collections::BTreeMap;

use serde_json::json;

use crate::partition::Partitioning;

/// The stage of a schema change after which its binlog is written. A multi-schema change shows its columns from here on,
/// and may take steps more.
pub(crate) const LAST: u8 = 3;

/// The text that stands for a number in columns that are no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    BigInt,
    /// With a space at its end, which a sort key leaves out.
    Varchar,
    Char,
}

/// A generated column is one more than the column that it is computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Generated {
    pub(crate) of: u64,
    pub(crate) stored: bool,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Column {
    /// Stays through a type change, which gives the column a new id.
    pub(crate) logical: u64,
    pub(crate) id: i64,
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) not_null: bool,
    /// What new rows have, if nothing is said.
    pub(crate) default: Option<i64>,
    /// What rows have that are older than the column.
    pub(crate) origin: Option<i64>,
    pub(crate) generated: Option<Generated>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Index {
    pub(crate) id: i64,
    pub(crate) name: String,
    pub(crate) columns: Vec<u64>,
    pub(crate) unique: bool,
    pub(crate) primary: bool,
}

/// What TiDB finds a row by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handle {
    RowId,
    /// The first column.
    Integer,
    /// The columns of the primary key.
    Common,
}

#[derive(Clone, Debug)]
pub(crate) enum Flight {
    Add {
        column: Column,
        stage: u8,
    },
    Drop {
        column: Column,
        stage: u8,
    },
    Type {
        column: Column,
        new_id: i64,
        stage: u8,
    },
    Several {
        parts: Parts,
        stage: u8,
    },
    AddIndex {
        index: Index,
        stage: u8,
    },
    DropIndex {
        index: i64,
        stage: u8,
    },
    /// Its rows are put into other partitions; the table may get a new id.
    Repartition {
        from: Option<Partitioning>,
        to: Option<Partitioning>,
        new_id: Option<i64>,
        stage: u8,
    },
}

/// What a multi-schema change does.
#[derive(Clone, Debug, Default)]
pub(crate) struct Parts {
    pub(crate) added: Vec<Column>,
    /// A column that gets another type, its new id, and perhaps another name.
    pub(crate) changed: Option<(Column, i64, String)>,
    pub(crate) dropped: Option<Column>,
    /// An index that is dropped.
    pub(crate) unkeyed: Option<i64>,
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

/// A row: what is not generated, by logical column.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// `_tidb_rowid`, where it has one.
    pub(crate) handle: i64,
    pub(crate) values: BTreeMap<u64, Option<i64>>,
}

#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) id: i64,
    pub(crate) name: String,
    pub(crate) handle: Handle,
    pub(crate) columns: Vec<Column>,
    pub(crate) next_column: i64,
    pub(crate) indexes: Vec<Index>,
    pub(crate) next_index: i64,
    pub(crate) partitioning: Option<Partitioning>,
    pub(crate) rows: Vec<Row>,
    pub(crate) flight: Option<Flight>,
    /// The same one state earlier: what a lagging TiDB works with.
    pub(crate) earlier: Option<Flight>,
    /// The id that the table had then.
    pub(crate) earlier_id: Option<i64>,
}

impl Column {
    pub(crate) fn is_virtual(&self) -> bool {
        self.generated.is_some_and(|generated| !generated.stored)
    }

    /// What rows have that lack it.
    pub(crate) fn filled(&self) -> Option<i64> {
        self.written(self.origin)
    }

    /// What a user's value becomes here.
    pub(crate) fn written(&self, value: Option<i64>) -> Option<i64> {
        if self.not_null { Some(value.unwrap_or(0)) } else { value }
    }
}

impl Row {
    pub(crate) fn value(&self, column: &Column) -> Option<i64> {
        match column.generated {
            Some(Generated { of, .. }) => self.values.get(&of).copied().flatten().map(|value| value + 1),
            None => self.values.get(&column.logical).copied().unwrap_or_else(|| column.filled()),
        }
    }
}

impl Flight {
    pub(crate) fn stage(&mut self) -> &mut u8 {
        match self {
            Self::Add { stage, .. }
            | Self::Drop { stage, .. }
            | Self::Type { stage, .. }
            | Self::Several { stage, .. }
            | Self::AddIndex { stage, .. }
            | Self::DropIndex { stage, .. }
            | Self::Repartition { stage, .. } => stage,
        }
    }

    /// The stage after which the binlog is written.
    pub(crate) fn last(&self) -> u8 {
        match self {
            Self::Several {
                parts: Parts { dropped: Some(_), .. } | Parts { unkeyed: Some(_), .. }, ..
            } => LAST + 1,
            _ => LAST,
        }
    }

    /// The index that nobody keeps unique any more.
    fn given_up(&self, table: &Table) -> Option<i64> {
        match self {
            Self::DropIndex { index, stage: 1.. } => Some(*index),
            Self::Drop { column, stage: 1.. } => table.index_of(column.logical),
            Self::Several { parts, stage } if *stage > LAST => {
                parts.unkeyed.or_else(|| table.index_of(parts.dropped.as_ref()?.logical))
            }
            _ => None,
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
            None | Some(Flight::AddIndex { .. } | Flight::DropIndex { .. } | Flight::Repartition { .. }) => {}
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

    pub(crate) fn column(&self, logical: u64) -> &Column {
        self.columns.iter().find(|column| column.logical == logical).unwrap()
    }

    pub(crate) fn primary(&self) -> Option<&Index> {
        self.indexes.iter().find(|index| index.primary)
    }

    /// The index that is over this column alone.
    pub(crate) fn index_of(&self, logical: u64) -> Option<i64> {
        self.indexes.iter().find(|index| index.columns == [logical]).map(|index| index.id)
    }

    /// The columns of each key that a TiDB in this state of a change keeps unique.
    pub(crate) fn unique_keys(&self, flight: Option<&Flight>) -> Vec<Vec<u64>> {
        let given_up = flight.and_then(|flight| flight.given_up(self));
        let kept = self.indexes.iter().filter(|index| index.unique && Some(index.id) != given_up);
        let mut keys: Vec<Vec<u64>> = kept.map(|index| index.columns.clone()).collect();
        if self.handle == Handle::Integer {
            keys.push(vec![self.columns[0].logical]);
        }
        match flight {
            Some(Flight::AddIndex { index, stage: 1.. }) if index.unique => keys.push(index.columns.clone()),
            _ => {}
        }
        keys
    }

    /// True if no two rows can be equal, by the table's definition.
    pub(crate) fn has_key(&self) -> bool {
        let not_null = |logical: &u64| self.column(*logical).not_null;
        let tells = |index: &Index| index.unique && index.columns.iter().all(not_null);
        self.handle != Handle::RowId || self.indexes.iter().any(tells)
    }

    /// True if another row than the one at `except` has these values in one of the keys.
    pub(crate) fn is_taken(&self, keys: &[Vec<u64>], row: &Row, except: Option<usize>) -> bool {
        keys.iter().any(|key| {
            let of = |row: &Row| -> Option<Vec<i64>> {
                key.iter().map(|logical| row.value(self.column(*logical))).collect()
            };
            let wanted = of(row);
            let mut others = self.rows.iter().enumerate().filter(|(at, _)| Some(*at) != except);
            wanted.is_some() && others.any(|(_, other)| of(other) == wanted)
        })
    }

    /// True if a row's handle would be another one with these values.
    pub(crate) fn moves_handle(&self, before: &Row, after: &Row) -> bool {
        let key = match self.handle {
            Handle::RowId => return false,
            Handle::Integer => vec![self.columns[0].logical],
            Handle::Common => self.primary().unwrap().columns.clone(),
        };
        key.iter().any(|logical| before.values[logical] != after.values[logical])
    }

    /// True if other things are built on the column: keys of several columns, the primary key, partitions, generated ones.
    pub(crate) fn is_held(&self, column: &Column) -> bool {
        let logical = column.logical;
        let in_key =
            |index: &Index| index.columns.contains(&logical) && (index.primary || index.columns.len() > 1);
        let generates = |other: &Column| other.generated.is_some_and(|generated| generated.of == logical);
        let handle = self.handle == Handle::Integer && self.columns[0].logical == logical;
        handle
            || self.indexes.iter().any(in_key)
            || self.columns.iter().any(generates)
            || self.partitioning.as_ref().is_some_and(|partitioning| partitioning.column == logical)
    }

    pub(crate) fn info(&self) -> serde_json::Value {
        const NOT_NULL: u32 = 1;
        const PRIMARY: u32 = 2;
        let name = |name: &str| json!({"O": name, "L": name});
        let offset = |logical: u64| self.columns.iter().position(|column| column.logical == logical).unwrap();
        let columns: Vec<_> = self
            .columns
            .iter()
            .enumerate()
            .map(|(offset, column)| {
                let is_key = self.handle == Handle::Integer && offset == 0
                    || self.primary().is_some_and(|index| index.columns.contains(&column.logical));
                let flag = if column.not_null { NOT_NULL } else { 0 } | if is_key { PRIMARY } else { 0 };
                let (tp, flen, charset, collate) = match column.kind {
                    Kind::BigInt => (8, 20, "binary", "binary"),
                    Kind::Varchar => (15, 30, "utf8mb4", "utf8mb4_bin"),
                    Kind::Char => (254, 30, "utf8mb4", "utf8mb4_bin"),
                };
                let generated = column.generated.map(|generated| self.column(generated.of));
                json!({
                    "id": column.id, "name": name(&column.name), "offset": offset, "state": 5,
                    "origin_default": column.origin.map(|v| v.to_string()),
                    "default": column.default.map(|v| v.to_string()),
                    "generated_expr_string": generated.map(expression).unwrap_or_default(),
                    "generated_stored": column.generated.is_some_and(|generated| generated.stored),
                    "type": {"Tp": tp, "Flag": flag, "Flen": flen, "Decimal": 0, "Charset": charset, "Collate": collate},
                })
            })
            .collect();
        let indexes: Vec<_> = self
            .indexes
            .iter()
            .map(|index| {
                let column = |logical: &u64| json!({"name": name(&self.column(*logical).name), "offset": offset(*logical), "length": -1});
                json!({
                    "id": index.id, "idx_name": name(&index.name), "tbl_name": name(""), "state": 5, "index_type": 1,
                    "idx_cols": index.columns.iter().map(column).collect::<Vec<_>>(),
                    "is_unique": index.unique, "is_primary": index.primary,
                })
            })
            .collect();
        let partition = self.partitioning.as_ref().map(|by| by.info(&self.column(by.column).name));
        json!({
            "id": self.id, "name": name(&self.name), "cols": columns, "index_info": indexes,
            "pk_is_handle": self.handle == Handle::Integer, "is_common_handle": self.handle == Handle::Common,
            "max_col_id": self.next_column - 1, "max_idx_id": self.next_index - 1,
            "charset": "utf8mb4", "collate": "utf8mb4_bin", "state": 5, "partition": partition,
        })
    }

    /// True if another row differs from this one at most in columns that are dropped or swapped: there comes a state in
    /// which TiDB's images of the two are the same.
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
        self.rows.iter().enumerate().any(|(at, other)| at != row && rest(other) == values)
    }

    /// The column, an index of it alone, and its values are gone.
    pub(crate) fn forget(&mut self, column: &Column) {
        let index = self.index_of(column.logical);
        self.indexes.retain(|other| Some(other.id) != index);
        self.columns.retain(|other| other.id != column.id);
        for row in &mut self.rows {
            row.values.remove(&column.logical);
        }
    }

    /// Gives rows that lack them what rows have that are older than the columns.
    pub(crate) fn fill(&mut self, columns: &[Column]) {
        for row in &mut self.rows {
            for column in columns.iter().filter(|column| column.generated.is_none()) {
                row.values.entry(column.logical).or_insert_with(|| column.filled());
            }
        }
    }
}

/// What a column generated from this one is.
pub(crate) fn expression(of: &Column) -> String {
    format!("`{}` + 1", of.name)
}
