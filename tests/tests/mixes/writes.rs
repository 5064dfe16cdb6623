//! Transactions: what users write, as a TiDB in some state of each table's change records it.

use std::collections::BTreeMap;

use drainer_kafka::transaction::{DdlBinlog, Transaction};
use prost::Message as _;
use schemas::binlog::{PrewriteValue, TableMutation};
use tidb::binlog::MutationBuilder;

use crate::image::Piece;
use crate::partition::Writer;
use crate::steps::RowStep;
use crate::table::{Column, Flight, Handle, LAST, Parts, Role, Row, Table};
use crate::upstream::{Event, Upstream};

impl Upstream {
    pub(crate) fn send(&mut self, version: i64, mutations: Vec<TableMutation>) -> Event {
        let (start_ts, commit_ts) = self.tick();
        let value = PrewriteValue { schema_version: Some(version), mutations };
        Event::Transaction(Transaction {
            start_ts,
            commit_ts,
            payload: value.encode_to_vec().into(),
            ddl: None::<DdlBinlog>,
            budget: None,
        })
    }

    pub(crate) fn late_write(&mut self, table: u8) -> Option<Event> {
        if let Some(event) = self.late_write_to_partition(table) {
            return Some(event);
        }
        let id = *self.gone.get(usize::from(table) % self.gone.len().max(1))?;
        let mut mutation = MutationBuilder::new(id);
        mutation.insert(vec![8, 2, 0]);
        self.count("row of a table that is gone");
        Some(self.send(self.version, vec![mutation.build()]))
    }

    /// A row under the id that a partition had as a table is a row of that partition.
    fn late_write_to_partition(&mut self, table: u8) -> Option<Event> {
        let id = self.exchanged.get(usize::from(table) % (2 * self.exchanged.len()).max(1)).copied()?;
        let has = |table: &Table| {
            let partitions = table.partitioning.as_ref().map(|by| &by.partitions);
            partitions.is_some_and(|partitions| partitions.iter().any(|partition| partition.id == id))
        };
        let at = self.tables.iter().position(|table| has(table) && table.flight.is_none())?;
        let table = &self.tables[at];
        let by = table.partitioning.as_ref()?;
        let below = by.partitions.iter().find(|partition| partition.id == id)?.below;
        self.next += 1;
        let mut row = Row { handle: self.next as i64, values: BTreeMap::new() };
        for column in table.columns.iter().filter(|column| column.generated.is_none()) {
            let value = if column.logical == by.column { below - 1 } else { self.next as i64 };
            row.values.insert(column.logical, Some(value));
        }
        let is_there = by.partitions.iter().position(|partition| partition.id == id);
        if !is_there.is_some_and(|place| by.holds(place, &row))
            || table.is_taken(&table.unique_keys(None), &row, None)
        {
            return None;
        }
        let mut mutation = MutationBuilder::new(id);
        mutation.insert(table.encode_insert(&row, &table.roles(None)));
        self.tables[at].rows.push(row);
        self.count("row of a table that is a partition");
        Some(self.send(self.version, vec![mutation.build()]))
    }

    pub(crate) fn transaction(&mut self, steps: &[RowStep], lagging: bool, version: i64) -> Option<Event> {
        let mut mutations: Vec<(usize, MutationBuilder)> = Vec::new();
        for step in steps {
            let at = usize::from(step.table) % self.tables.len();
            let table = &self.tables[at];
            let flight = if lagging { table.earlier.clone() } else { table.flight.clone() };
            let place = mutations.iter().position(|(other, _)| *other == at);
            // Of a table without a key nobody can tell all that is recorded twice from what happens twice.
            let careful = matches!(flight, Some(Flight::Repartition { .. })) && !table.has_key();
            if careful && place.is_some() {
                continue;
            }
            let inserts_first = version % 2 == 0;
            let writing = Writing { at, flight: flight.as_ref(), lagging, inserts_first, careful };
            let Some((what, pieces)) = self.write(step, &writing) else { continue };
            let table = &self.tables[at];
            let id = table.earlier_id.filter(|_| lagging).unwrap_or(table.id);
            let place = place.unwrap_or_else(|| {
                mutations.push((at, MutationBuilder::new(id)));
                mutations.len() - 1
            });
            let expected = if what == "move" { 2 } else { 1 };
            if pieces.len() > expected {
                self.count("write recorded twice");
            }
            pieces.into_iter().for_each(|piece| piece.put(&mut mutations[place].1));
            self.count(what);
            let stage = stage(flight.as_ref(), self.tables[at].flight.is_some());
            self.count(stage);
        }
        let mutations = mutations.into_iter().map(|(_, mutation)| mutation.build()).collect();
        Some(self.send(version, mutations))
    }

    /// A row step, as far as TiDB lets it happen.
    fn write(&mut self, step: &RowStep, writing: &Writing<'_>) -> Option<(&'static str, Vec<Piece>)> {
        let table = &self.tables[writing.at];
        let roles = table.roles(writing.flight);
        let keys = table.unique_keys(writing.flight.filter(|_| !self.keys_hold));
        let row = usize::from(step.row) % table.rows.len().max(1);
        // A TiDB that has not seen a column swapped does not find what others wrote into it since; and a write that does
        // not carry a coming column at all is not seen by what is held for the row (docs/fidelity.md).
        let behind_swap = writing.lagging
            && matches!(table.flight, Some(Flight::Several { parts: Parts { changed: Some(_), .. }, .. }));
        // Nor can anybody tell apart rows without a key once their images are the same: docs/fidelity.md.
        let unsure = behind_swap || table.has_twin(row);
        let mut writer = Writer {
            table,
            flight: writing.flight,
            roles: &roles,
            inserts_first: writing.inserts_first,
            next: &mut self.next,
        };
        match (step.what % 5, table.rows.is_empty() || unsure) {
            (0 | 1, _) | (_, true) => {
                let row = inserted(step, table, &roles, &keys, writer.next)?;
                let pieces = writer.insert(&row);
                if writing.careful && pieces.len() > 1 {
                    return None;
                }
                let table = &mut self.tables[writing.at];
                table.rows.push(row);
                // Columns that this TiDB does not write have their default from the start.
                let visible = table.columns.clone();
                table.fill(&visible);
                Some(("insert", pieces))
            }
            (2 | 3, false) => {
                let before = &table.rows[row];
                let mut after = before.clone();
                let public: Vec<&Column> = public(&roles).collect();
                let column = public[usize::from(step.column) % public.len()];
                after.values.insert(column.logical, column.written(step.value));
                // TiDB writes nothing where nothing changes.
                if after.values == before.values
                    || table.is_taken(&keys, &after, Some(row))
                    || is_twin(table, &after, Some(row))
                {
                    return None;
                }
                let moves_handle = table.moves_handle(before, &after);
                let pieces = writer.update(before, &mut after);
                let inserts = pieces.iter().any(|piece| matches!(piece, Piece::Insert(_)));
                // Where a row moves that TiDB finds by its row id but that has a primary key, the statement fails
                // ("EncodeRow error").
                let fails = inserts && table.handle == Handle::RowId && table.primary().is_some();
                if fails || writing.careful && inserts {
                    return None;
                }
                let what = match &pieces[0] {
                    _ if moves_handle => "change of a handle",
                    Piece::Update(_) => "update",
                    Piece::Insert(_) | Piece::Delete(_) => "move",
                };
                if what != "update" {
                    forget_unwritten(&mut after, &roles);
                }
                self.tables[writing.at].rows[row] = after;
                Some((what, pieces))
            }
            _ => {
                let pieces = writer.delete(&table.rows[row]);
                self.tables[writing.at].rows.remove(row);
                Some(("delete", pieces))
            }
        }
    }
}

/// A row that is made anew has nothing in columns that are not written.
fn forget_unwritten(row: &mut Row, roles: &[(Column, Role)]) {
    let is_written = |logical: u64| {
        roles.iter().any(|(column, role)| column.logical == logical && *role != Role::DeleteOnly)
    };
    for (column, _) in roles.iter().filter(|(column, _)| column.generated.is_none()) {
        if !is_written(column.logical) {
            row.values.insert(column.logical, column.filled());
        }
    }
}

struct Writing<'a> {
    at: usize,
    flight: Option<&'a Flight>,
    lagging: bool,
    inserts_first: bool,
    /// Only what can be told from what is recorded twice.
    careful: bool,
}

/// The columns that users write.
fn public(roles: &[(Column, Role)]) -> impl Iterator<Item = &Column> {
    let written = |(column, role): &&(Column, Role)| *role == Role::Public && column.generated.is_none();
    roles.iter().filter(written).map(|(column, _)| column)
}

fn inserted(
    step: &RowStep,
    table: &Table,
    roles: &[(Column, Role)],
    keys: &[Vec<u64>],
    next: &mut u64,
) -> Option<Row> {
    let hidden = roles.iter().filter(|(column, role)| *role == Role::WriteOnly && column.generated.is_none());
    let mut values: BTreeMap<u64, Option<i64>> =
        hidden.map(|(column, _)| (column.logical, column.filled())).collect();
    for (place, column) in public(roles).enumerate() {
        let other = step.value.map(|value| value + place as i64 * i64::from(step.column % 3));
        values.insert(column.logical, column.written(other));
    }
    *next += 1;
    let mut row = Row { handle: *next as i64, values };
    let first = &table.columns[0];
    if first.not_null {
        row.values.insert(first.logical, Some(i64::from(step.row % 32)));
    }
    // Keys that are taken are evaded, if they can be.
    for key in keys {
        if table.is_taken(std::slice::from_ref(key), &row, None) {
            let column = table.column(key[0]);
            let column = column.generated.map_or(column.logical, |generated| generated.of);
            row.values.insert(column, Some(*next as i64));
        }
    }
    (!table.is_taken(keys, &row, None) && !is_twin(table, &row, None)).then_some(row)
}

/// True if a table has a key that may be dropped, and the row would equal another one in everything: while the key goes, nobody
/// can tell that from a row that is recorded twice.
fn is_twin(table: &Table, row: &Row, except: Option<usize>) -> bool {
    let same = |other: &Row| {
        let value = |row: &Row, column: &Column| row.value(column);
        table.columns.iter().all(|column| value(other, column) == value(row, column))
    };
    table.has_key() && table.rows.iter().enumerate().any(|(at, other)| Some(at) != except && same(other))
}

/// What is remarkable about the writer's view of the table.
fn stage(flight: Option<&Flight>, in_flight: bool) -> &'static str {
    match (flight, in_flight) {
        (Some(Flight::Several { parts: Parts { changed: Some(_), .. }, stage: LAST.. }), true) => {
            "value of a changed column before its job"
        }
        (Some(Flight::Several { stage: LAST.., .. }), true) => "value before its column",
        (Some(Flight::Add { .. } | Flight::Several { .. }), true) => "row before its column",
        (Some(Flight::DropIndex { stage: 1.., .. }), true) => "row while its key is dropped",
        (Some(Flight::Repartition { new_id: Some(_), .. }), false) => {
            "row under the id before its partitions"
        }
        (Some(_), false) => "row after its column's end",
        _ => "row at rest",
    }
}
