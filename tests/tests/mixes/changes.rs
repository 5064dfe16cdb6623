//! Schema changes that go through states: their beginning, each step, their end.

use serde_json::json;
use tidb::model::JobState;

use crate::partition::{Partition, Partitioning};
use crate::statement::{Changed, Given, Statement};
use crate::steps::{Change, Repartition};
use crate::table::{Column, Flight, Handle, Index, Kind, LAST, Parts, Table};
use crate::upstream::{Event, Upstream};

/// The last partition's bound: above all that is ever written.
pub(crate) const HIGHEST: i64 = 1_000_000;

impl Upstream {
    /// A column that is NULL where nothing is said.
    pub(crate) fn column(&mut self, id: i64) -> Column {
        let name = self.name("c");
        Column {
            logical: self.next,
            id,
            name,
            kind: Kind::BigInt,
            not_null: false,
            default: None,
            origin: None,
            generated: None,
        }
    }

    fn added(&mut self, id: i64, not_null: bool, default: Option<i64>) -> Column {
        // Without a default, rows older than a column that is NOT NULL have zero.
        let origin = if not_null { Some(default.unwrap_or(0)) } else { default };
        Column { not_null, default, origin, ..self.column(id) }
    }

    pub(crate) fn partitions(&mut self, column: u64, bounds: &[i64]) -> Partitioning {
        let partition =
            |below: &i64| Partition { id: self.physical_id(), name: self.name("p"), below: *below };
        Partitioning { column, partitions: bounds.iter().map(partition).collect() }
    }

    pub(crate) fn begin(&mut self, at: usize, what: Change, default: Option<i64>) {
        if self.tables[at].flight.is_some() {
            return;
        }
        let Some(flight) = self.flight(at, what, default) else { return };
        let table = &mut self.tables[at];
        table.next_column += 3;
        table.next_index += 1;
        (table.earlier, table.earlier_id) = (None, None);
        table.flight = Some(flight);
    }

    fn flight(&mut self, at: usize, what: Change, default: Option<i64>) -> Option<Flight> {
        let table = &self.tables[at];
        let id = table.next_column;
        // Two columns have to stay.
        let keyed = |column: &Column| {
            self.keys_hold && table.indexes.iter().any(|index| index.columns.contains(&column.logical))
        };
        let free = table.columns.iter().skip(2).filter(|column| !table.is_held(column));
        let mut droppable: Vec<Column> = free.clone().filter(|column| !keyed(column)).cloned().collect();
        let convertible = free.clone().rfind(|column| column.generated.is_none()).cloned();
        let indexes = table.indexes.clone();
        let droppable_index = |pick: u8| {
            let may_go = |index: &&Index| table.handle != Handle::Common || !index.primary;
            let indexes: Vec<&Index> = indexes.iter().filter(may_go).collect();
            indexes.get(usize::from(pick) % indexes.len().max(1)).map(|index| index.id)
        };
        Some(match what {
            Change::Add { not_null } => Flight::Add { column: self.added(id, not_null, default), stage: 0 },
            Change::AddGenerated => {
                let of =
                    table.columns.iter().rfind(|of| of.generated.is_none() && of.kind == Kind::BigInt)?;
                let generated = Some(crate::table::Generated { of: of.logical, stored: false });
                Flight::Add { column: Column { generated, ..self.column(id) }, stage: 0 }
            }
            Change::AddSeveral => {
                let added = vec![self.added(id, false, default), self.added(id + 1, true, None)];
                Flight::Several { parts: Parts { added, ..Parts::default() }, stage: 0 }
            }
            Change::TypeAndAdd { renamed, dropping } => {
                // Rows that are equal in a unique key for want of the new value collide: docs/fidelity.md.
                let unique = |column: &Column| {
                    indexes.iter().any(|index| index.unique && index.columns.contains(&column.logical))
                };
                // And what went out for want of a value that is NOT NULL finds no row without a key again.
                let found = |column: &Column| table.has_key() || !column.not_null;
                let column = convertible.filter(|column| !unique(column) && found(column))?;
                droppable.retain(|other| other.id != column.id);
                let name = if renamed { self.name("c") } else { column.name.clone() };
                let added = vec![self.added(id + 1, false, default)];
                let dropped = if dropping { droppable.pop() } else { None };
                let parts = Parts { added, changed: Some((column, id, name)), dropped, unkeyed: None };
                Flight::Several { parts, stage: 0 }
            }
            Change::UnkeyAndAdd { index } => {
                let unkeyed = Some(droppable_index(index)?);
                let added = vec![self.added(id, false, default)];
                Flight::Several { parts: Parts { added, unkeyed, ..Parts::default() }, stage: 0 }
            }
            Change::Drop => Flight::Drop { column: droppable.pop()?, stage: 0 },
            Change::Type => Flight::Type { column: convertible?, new_id: id, stage: 0 },
            Change::AddIndex { column, unique } => {
                let index = self.index(at, column, |_| true)?;
                Flight::AddIndex { index: Index { unique, ..index }, stage: 0 }
            }
            Change::AddPrimary { column } => {
                if table.handle != Handle::RowId || table.primary().is_some() {
                    return None;
                }
                let index = self.index(at, column, |column| column.not_null)?;
                let index = Index { primary: true, unique: true, name: "PRIMARY".into(), ..index };
                Flight::AddIndex { index, stage: 0 }
            }
            Change::DropIndex { index } => Flight::DropIndex { index: droppable_index(index)?, stage: 0 },
            Change::Repartition(what) => return self.repartition(at, what),
        })
    }

    /// An index over a column, and the one by which the table is partitioned.
    fn index(&mut self, at: usize, pick: u8, fits: impl Fn(&Column) -> bool) -> Option<Index> {
        let name = self.name("k");
        let table = &self.tables[at];
        let is_free = |column: &&Column| fits(column) && table.index_of(column.logical).is_none();
        let free: Vec<&Column> = table.columns.iter().filter(is_free).collect();
        let mut columns = vec![free.get(usize::from(pick) % free.len().max(1))?.logical];
        if let Some(by) = table.partitioning.as_ref().map(|by| by.column).filter(|by| !columns.contains(by)) {
            if !fits(table.column(by)) {
                return None;
            }
            columns.push(by);
        }
        Some(Index { id: table.next_index, name, columns, unique: false, primary: false })
    }

    fn repartition(&mut self, at: usize, what: Repartition) -> Option<Flight> {
        let from = self.tables[at].partitioning.clone();
        let to = match (what, &from) {
            (Repartition::Merge { first }, Some(from)) if from.partitions.len() > 1 => {
                let first = usize::from(first) % (from.partitions.len() - 1);
                let below = from.partitions[first + 1].below;
                let mut to = from.clone();
                let merged = self.partitions(from.column, &[below]).partitions;
                to.partitions.splice(first..=first + 1, merged);
                Some(to)
            }
            (Repartition::Split { partition }, Some(from)) => {
                let place = usize::from(partition) % from.partitions.len();
                let (begin, below) = from.range(place);
                let begin = begin.unwrap_or(-10);
                let middle = (begin + below.min(begin + 60)) / 2;
                if middle <= begin || middle >= below {
                    return None;
                }
                let mut to = from.clone();
                to.partitions
                    .splice(place..=place, self.partitions(from.column, &[middle, below]).partitions);
                Some(to)
            }
            (Repartition::By { column }, from) => {
                let table = &self.tables[at];
                let keys = table.unique_keys(None);
                let fits = |column: &&Column| {
                    column.kind == Kind::BigInt
                        && column.generated.is_none()
                        && keys.iter().all(|key| key.contains(&column.logical))
                        && from.as_ref().is_none_or(|from| from.column != column.logical)
                };
                let columns: Vec<&Column> = table.columns.iter().filter(fits).collect();
                let column = columns.get(usize::from(column) % columns.len().max(1))?.logical;
                Some(self.partitions(column, &[20, 60, HIGHEST]))
            }
            (Repartition::Remove, Some(_)) => None,
            _ => return None,
        };
        let new_id = match what {
            Repartition::By { .. } | Repartition::Remove => Some(self.physical_id()),
            Repartition::Merge { .. } | Repartition::Split { .. } => None,
        };
        Some(Flight::Repartition { from, to, new_id, stage: 0 })
    }

    pub(crate) fn advance(&mut self, at: usize) -> Option<Event> {
        let table = &mut self.tables[at];
        (table.earlier, table.earlier_id) = (table.flight.clone(), None);
        let flight = table.flight.as_mut()?;
        if *flight.stage() < flight.last() {
            *flight.stage() += 1;
            if let Flight::Several { parts, stage: LAST } = flight {
                let columns = parts.added.clone();
                table.fill(&columns);
            }
            return None;
        }
        match table.flight.take()? {
            Flight::AddIndex { index, .. } => Some(self.end_of_index(at, index)),
            Flight::Repartition { from, to, new_id, .. } => {
                Some(self.end_of_repartition(at, from, to, new_id))
            }
            flight => Some(self.end(at, flight)),
        }
    }

    fn end(&mut self, at: usize, flight: Flight) -> Event {
        let table = &mut self.tables[at];
        let name = table.name.clone();
        let (what, kind, statement) = match flight {
            Flight::Add { column, .. } => {
                table.fill(std::slice::from_ref(&column));
                let columns = vec![Given::new(&column, table)];
                let what = if column.generated.is_some() { "add generated column" } else { "add column" };
                table.columns.push(column);
                (what, 5, Statement::Add { table: name, columns })
            }
            Flight::Several { parts: Parts { added, changed, dropped, unkeyed }, .. } => {
                table.fill(&added);
                let given = added.iter().map(|column| Given::new(column, table)).collect();
                table.columns.extend(added);
                let what = match (&changed, unkeyed) {
                    (Some(_), _) => "multi-schema type change",
                    (None, Some(_)) => "multi-schema drop of an index",
                    (None, None) => "multi-schema change",
                };
                let changed = changed.map(|(column, new_id, to)| {
                    let place = table.columns.iter_mut().find(|other| other.id == column.id).unwrap();
                    let changed = Changed::new(&column, &to);
                    (place.id, place.name) = (new_id, to);
                    changed
                });
                let dropped = dropped.map(|column| {
                    table.forget(&column);
                    column.name
                });
                let unkeyed = unkeyed.map(|index| drop_index(table, index).1);
                (what, 61, Statement::Several { table: name, changed, dropped, unkeyed, added: given })
            }
            Flight::Drop { column, .. } => {
                table.forget(&column);
                ("drop column", 6, Statement::DropColumn { table: name, column: column.name })
            }
            Flight::DropIndex { index, .. } => {
                let (primary, change) = drop_index(table, index);
                let (what, kind) = if primary { ("drop primary key", 33) } else { ("drop index", 8) };
                (what, kind, Statement::Rowless { table: name, change })
            }
            Flight::Type { column, new_id, .. } => {
                for other in table.columns.iter_mut().filter(|other| other.id == column.id) {
                    other.id = new_id;
                }
                let changed = Changed::new(&column, &column.name);
                ("type change", 12, Statement::ChangeType { table: name, changed })
            }
            Flight::AddIndex { .. } | Flight::Repartition { .. } => unreachable!("they end otherwise"),
        };
        self.table_job(what, kind, at, statement)
    }

    /// Rows that are equal in a new unique key make an end of it.
    fn end_of_index(&mut self, at: usize, index: Index) -> Event {
        let table = &mut self.tables[at];
        let kind = if index.primary { 32 } else { 7 };
        let keys = [index.columns.clone()];
        let doubled =
            |(at, row): (usize, &crate::table::Row)| index.unique && table.is_taken(&keys, row, Some(at));
        if table.rows.iter().enumerate().any(doubled) {
            return self.undone("duplicate in a new key", at, kind);
        }
        let columns: Vec<String> =
            index.columns.iter().map(|logical| format!("`{}`", table.column(*logical).name)).collect();
        let columns = columns.join(", ");
        let (what, change) = match (index.primary, index.unique) {
            (true, _) => ("add primary key", format!("ADD PRIMARY KEY ({columns}) NONCLUSTERED")),
            (false, true) => ("add unique key", format!("ADD UNIQUE INDEX `{}` ({columns})", index.name)),
            (false, false) => ("add index", format!("ADD INDEX `{}` ({columns})", index.name)),
        };
        table.indexes.push(index);
        let statement = Statement::Rowless { table: table.name.clone(), change };
        self.table_job(what, kind, at, statement)
    }

    fn end_of_repartition(
        &mut self,
        at: usize,
        from: Option<Partitioning>,
        to: Option<Partitioning>,
        new_id: Option<i64>,
    ) -> Event {
        let table = &mut self.tables[at];
        table.partitioning.clone_from(&to);
        let old_id = table.id;
        if let Some(new_id) = new_id {
            table.id = new_id;
            table.earlier_id = Some(old_id);
        }
        let (what, kind, change) = match (from, to) {
            (_, None) => ("remove partitioning", 72, "REMOVE PARTITIONING".to_owned()),
            (Some(from), Some(to)) if new_id.is_none() => {
                let others = |one: &Partitioning, two: &Partitioning| -> Vec<Partition> {
                    one.partitions.iter().filter(|part| !two.partitions.contains(part)).cloned().collect()
                };
                let gone: Vec<String> =
                    others(&from, &to).iter().map(|part| format!("`{}`", part.name)).collect();
                let made = Partitioning::sql(&others(&to, &from));
                let change = format!("REORGANIZE PARTITION {} INTO ({made})", gone.join(", "));
                ("reorganize partition", 64, change)
            }
            (_, Some(to)) => {
                let column = &table.column(to.column).name;
                let parts = Partitioning::sql(&to.partitions);
                ("partition by", 71, format!("PARTITION BY RANGE (`{column}`) ({parts})"))
            }
        };
        let statement = Statement::Rowless { table: table.name.clone(), change };
        let info = table.info();
        self.job(what, kind, old_id, json!({"TableInfo": info}), statement)
    }

    /// A change that can be undone still is: what it brought goes again, and its job says so.
    pub(crate) fn undo(&mut self, at: usize) -> Option<Event> {
        let table = &mut self.tables[at];
        let kind = match table.flight.as_ref()? {
            Flight::Add { .. } => 5,
            Flight::Type { .. } => 12,
            Flight::AddIndex { index, .. } => {
                if index.primary {
                    32
                } else {
                    7
                }
            }
            Flight::Several { stage, .. } if *stage < LAST => 61,
            Flight::Repartition { stage, .. } if *stage < LAST => 64,
            Flight::Several { .. }
            | Flight::Drop { .. }
            | Flight::DropIndex { .. }
            | Flight::Repartition { .. } => return None,
        };
        (table.earlier, table.earlier_id) = (table.flight.take(), None);
        Some(self.undone("undone", at, kind))
    }

    fn undone(&mut self, what: &'static str, at: usize, kind: u32) -> Event {
        let mut event = self.job(what, kind, self.tables[at].id, json!({}), Statement::Nothing);
        if let Event::Ddl { job, .. } = &mut event {
            job.state = JobState::RollbackDone;
        }
        event
    }
}

/// The index is gone; whether it was the primary key, and what the statement says.
fn drop_index(table: &mut Table, id: i64) -> (bool, String) {
    let at = table.indexes.iter().position(|index| index.id == id).unwrap();
    let index = table.indexes.remove(at);
    let change =
        if index.primary { "DROP PRIMARY KEY".to_owned() } else { format!("DROP INDEX `{}`", index.name) };
    (index.primary, change)
}
