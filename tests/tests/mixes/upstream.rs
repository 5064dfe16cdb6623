//! A small TiDB: tables whose schema changes go through TiDB's states while rows are written, every row encoded by the
//! rules of its state. It knows what its users see; what it sends is all that the pipeline gets.

use std::collections::BTreeMap;

use drainer_kafka::transaction::{DdlBinlog, Transaction};
use proptest::prelude::*;
use prost::Message as _;
use schemas::binlog::{PrewriteValue, TableMutation};
use serde_json::json;
use tidb::binlog::MutationBuilder;
use tidb::model::{Job, JobState};
use tidb::ts::{CommitTs, StartTs};

use crate::downstream::{NamedRow, Shown, Statement};
use crate::table::{Column, Flight, LAST, Parts, Role, Row, Table};

const DATABASE: i64 = 900;

/// One step of a mix; numbers pick modulo what there is.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Transaction {
        rows: Vec<RowStep>,
        lagging: bool,
        version: i64,
    },
    Create {
        keyed: bool,
    },
    Begin {
        table: u8,
        what: Change,
        default: Option<i64>,
    },
    Advance {
        table: u8,
    },
    /// The change that is under way is given up.
    Undo {
        table: u8,
    },
    RenameTable {
        table: u8,
    },
    RenameColumn {
        table: u8,
    },
    Truncate {
        table: u8,
    },
    Drop {
        table: u8,
    },
    /// A write to a table that is gone.
    Gone {
        table: u8,
    },
    Restart,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Change {
    Add,
    AddSeveral,
    /// Gives a column another type and adds others; perhaps another name, perhaps a column dropped.
    TypeAndAdd {
        renamed: bool,
        dropping: bool,
    },
    Drop,
    Type,
}

#[derive(Clone, Debug)]
pub(crate) struct RowStep {
    pub(crate) table: u8,
    pub(crate) row: u8,
    pub(crate) what: u8,
    pub(crate) value: Option<i64>,
}

impl Step {
    pub(crate) fn any() -> impl Strategy<Value = Self> {
        let value = || proptest::option::weighted(0.8, -2_i64..100);
        let row = (any::<u8>(), any::<u8>(), any::<u8>(), value())
            .prop_map(|(table, row, what, value)| RowStep { table, row, what, value });
        let change = prop_oneof![
            Just(Change::Add),
            Just(Change::Add),
            Just(Change::AddSeveral),
            Just(Change::AddSeveral),
            any::<(bool, bool)>().prop_map(|(renamed, dropping)| Change::TypeAndAdd { renamed, dropping }),
            any::<(bool, bool)>().prop_map(|(renamed, dropping)| Change::TypeAndAdd { renamed, dropping }),
            Just(Change::Drop),
            Just(Change::Type),
            Just(Change::Type)
        ];
        let table = any::<u8>;
        prop_oneof![
            9 => (proptest::collection::vec(row, 1..8), any::<bool>(), 0..99_i64)
                .prop_map(|(rows, lagging, version)| Self::Transaction { rows, lagging, version }),
            1 => any::<bool>().prop_map(|keyed| Self::Create { keyed }),
            4 => (table(), change, value()).prop_map(|(table, what, default)| Self::Begin { table, what, default }),
            15 => table().prop_map(|table| Self::Advance { table }),
            1 => table().prop_map(|table| Self::Undo { table }),
            1 => table().prop_map(|table| Self::RenameTable { table }),
            1 => table().prop_map(|table| Self::RenameColumn { table }),
            1 => table().prop_map(|table| Self::Truncate { table }),
            1 => table().prop_map(|table| Self::Drop { table }),
            1 => table().prop_map(|table| Self::Gone { table }),
            1 => Just(Self::Restart),
        ]
    }
}

pub(crate) enum Event {
    Transaction(Transaction),
    Ddl { job: Box<Job>, commit_ts: CommitTs, statement: Statement },
    Restart,
}

#[derive(Default)]
pub(crate) struct Upstream {
    tables: Vec<Table>,
    gone: Vec<i64>,
    ts: u64,
    version: i64,
    next: u64,
    counts: BTreeMap<&'static str, usize>,
}

impl Upstream {
    pub(crate) fn counts(&self) -> impl Iterator<Item = (&'static str, usize)> {
        self.counts.iter().map(|(what, count)| (*what, *count))
    }

    /// True where a replica that is up to date shows the same: while a column goes, it still has it; what users write
    /// into a column that was swapped comes with the job.
    pub(crate) fn is_settled(&self) -> bool {
        let ahead = |flight: &Flight| match flight {
            Flight::Drop { .. } => true,
            Flight::Several { parts, stage } => {
                *stage >= LAST && (parts.changed.is_some() || parts.dropped.is_some())
            }
            Flight::Add { .. } | Flight::Type { .. } => false,
        };
        !self.tables.iter().any(|table| table.flight.as_ref().is_some_and(ahead))
    }

    pub(crate) fn shown(&self) -> Shown {
        let tables = self.tables.iter().map(|table| {
            let named = |row: &Row| -> NamedRow {
                table
                    .columns
                    .iter()
                    .map(|column| (column.name.clone(), row.values[&column.logical]))
                    .collect()
            };
            let mut rows: Vec<NamedRow> = table.rows.iter().map(named).collect();
            rows.sort();
            (table.name.clone(), rows)
        });
        tables.collect()
    }

    /// Brings every change in flight to its end.
    pub(crate) fn settle(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        for at in 0..self.tables.len() {
            while self.tables[at].flight.is_some() {
                events.extend(self.advance(at));
            }
        }
        events
    }

    pub(crate) fn step(&mut self, step: &Step) -> Vec<Event> {
        let mut events = Vec::new();
        if self.tables.is_empty() {
            if self.ts == 0 {
                let database = json!({"DBInfo": {
                    "id": DATABASE, "db_name": {"O": "d", "L": "d"}, "charset": "utf8mb4", "collate": "utf8mb4_bin",
                    "state": 5,
                }});
                events.push(self.job("create database", 1, 0, database, Statement::CreateDatabase));
            }
            events.push(self.create(self.ts.is_multiple_of(2)));
        }
        let pick = |table: u8| usize::from(table) % self.tables.len();
        match step {
            Step::Transaction { rows, lagging, version } => {
                events.extend(self.transaction(rows, *lagging, *version))
            }
            Step::Create { keyed } => events.push(self.create(*keyed)),
            Step::Begin { table, what, default } => self.begin(pick(*table), *what, *default),
            Step::Advance { table } => events.extend(self.advance(pick(*table))),
            Step::Undo { table } => events.extend(self.undo(pick(*table))),
            Step::RenameTable { table } => events.extend(self.rename_table(pick(*table))),
            Step::RenameColumn { table } => events.extend(self.rename_column(pick(*table))),
            Step::Truncate { table } => events.extend(self.truncate(pick(*table))),
            Step::Drop { table } => events.extend(self.drop(pick(*table))),
            Step::Gone { table } => events.extend(self.late_write(*table)),
            Step::Restart => {
                *self.counts.entry("restart").or_default() += 1;
                events.push(Event::Restart);
            }
        }
        events
    }

    fn name(&mut self, prefix: &str) -> String {
        self.next += 1;
        format!("{prefix}{}", self.next)
    }

    fn column(&mut self, id: i64, default: Option<i64>) -> Column {
        let name = self.name("c");
        Column { logical: self.next, id, name, default }
    }

    fn tick(&mut self) -> (StartTs, CommitTs) {
        self.ts += 2;
        (StartTs::new(self.ts - 1), CommitTs::new(self.ts))
    }

    fn job(
        &mut self,
        what: &'static str,
        kind: u32,
        table_id: i64,
        mut binlog: serde_json::Value,
        statement: Statement,
    ) -> Event {
        *self.counts.entry(what).or_default() += 1;
        // Versions that no job has lie between.
        self.version += 3;
        binlog["SchemaVersion"] = json!(self.version);
        let job = json!({
            "id": self.version, "type": kind, "schema_id": DATABASE, "schema_name": "d", "table_id": table_id,
            "state": 6, "query": statement.sql(), "binlog": binlog,
        });
        let (_, commit_ts) = self.tick();
        Event::Ddl { job: Box::new(serde_json::from_value(job).unwrap()), commit_ts, statement }
    }

    fn create(&mut self, keyed: bool) -> Event {
        let name = self.name("t");
        let id = 1000 + self.next as i64;
        let columns = vec![self.column(1, None), self.column(2, None), self.column(3, None)];
        let table =
            Table { id, name, keyed, columns, next_column: 4, rows: Vec::new(), flight: None, earlier: None };
        let event = self.job(
            "create",
            3,
            id,
            json!({"TableInfo": table.info()}),
            Statement::Create { table: table.name.clone() },
        );
        self.tables.push(table);
        event
    }

    fn begin(&mut self, at: usize, what: Change, default: Option<i64>) {
        if self.tables[at].flight.is_some() {
            return;
        }
        let id = self.tables[at].next_column;
        // The first column may be the key, and one column has to stay.
        let mut free: Vec<Column> =
            self.tables[at].columns.iter().skip(2).filter(|column| column.id > 2).cloned().collect();
        let last = free.pop();
        let several = |parts| Flight::Several { parts, stage: 0 };
        let (flight, ids) = match (what, last) {
            (Change::Add, _) => (Flight::Add { column: self.column(id, default), stage: 0 }, 1),
            (Change::AddSeveral, _) => {
                let added = vec![self.column(id, default), self.column(id + 1, None)];
                (several(Parts { added, changed: None, dropped: None }), 2)
            }
            (Change::TypeAndAdd { renamed, dropping }, Some(column)) => {
                let name = if renamed { self.name("c") } else { column.name.clone() };
                let added = vec![self.column(id + 1, default)];
                let dropped = if dropping { free.pop() } else { None };
                (several(Parts { added, changed: Some((column, id, name)), dropped }), 2)
            }
            (Change::Drop, Some(column)) => (Flight::Drop { column, stage: 0 }, 0),
            (Change::Type, Some(column)) => (Flight::Type { column, new_id: id, stage: 0 }, 1),
            (Change::TypeAndAdd { .. } | Change::Drop | Change::Type, None) => return,
        };
        let table = &mut self.tables[at];
        table.next_column += ids;
        table.earlier = None;
        table.flight = Some(flight);
    }

    fn advance(&mut self, at: usize) -> Option<Event> {
        let table = &mut self.tables[at];
        table.earlier = table.flight.clone();
        let flight = table.flight.as_mut()?;
        if *flight.stage() < flight.last() {
            *flight.stage() += 1;
            if let Flight::Several { parts, stage: LAST } = flight {
                let columns = parts.added.clone();
                table.fill(&columns);
            }
            return None;
        }
        let flight = table.flight.take()?;
        let name = table.name.clone();
        let (what, kind, statement) = match flight {
            Flight::Add { column, .. } => {
                table.fill(std::slice::from_ref(&column));
                let given = vec![(column.name.clone(), column.default)];
                table.columns.push(column);
                ("add column", 5, Statement::Add { table: name, columns: given })
            }
            Flight::Several { parts: Parts { added, changed, dropped }, .. } => {
                table.fill(&added);
                let given = added.iter().map(|column| (column.name.clone(), column.default)).collect();
                table.columns.extend(added);
                let what = if changed.is_some() { "multi-schema type change" } else { "multi-schema change" };
                let changed = changed.map(|(column, new_id, to)| {
                    let place = table.columns.iter_mut().find(|other| other.id == column.id).unwrap();
                    (place.id, place.name) = (new_id, to.clone());
                    (column.name, to)
                });
                let dropped = dropped.map(|column| {
                    table.forget(&column);
                    column.name
                });
                (what, 61, Statement::Several { table: name, changed, dropped, added: given })
            }
            Flight::Drop { column, .. } => {
                table.forget(&column);
                ("drop column", 6, Statement::DropColumn { table: name, column: column.name })
            }
            Flight::Type { column, new_id, .. } => {
                for other in table.columns.iter_mut().filter(|other| other.id == column.id) {
                    other.id = new_id;
                }
                ("type change", 12, Statement::ChangeType { table: name, column: column.name })
            }
        };
        let (id, info) = (table.id, table.info());
        Some(self.job(what, kind, id, json!({"TableInfo": info}), statement))
    }

    /// A change that can be undone still is: its columns go again, and its job says so.
    fn undo(&mut self, at: usize) -> Option<Event> {
        let table = &mut self.tables[at];
        let kind = match table.flight.as_ref()? {
            Flight::Add { .. } => 5,
            Flight::Type { .. } => 12,
            Flight::Several { stage, .. } if *stage < LAST => 61,
            Flight::Several { .. } | Flight::Drop { .. } => return None,
        };
        table.earlier = table.flight.take();
        let id = table.id;
        let mut event = self.job("undone", kind, id, json!({}), Statement::Nothing);
        if let Event::Ddl { job, .. } = &mut event {
            job.state = JobState::RollbackDone;
        }
        Some(event)
    }

    /// A job that is done at once; none may be while another is under way for the table.
    fn at_rest(&mut self, at: usize) -> Option<&mut Table> {
        let table = &mut self.tables[at];
        if table.flight.is_some() {
            return None;
        }
        table.earlier = None;
        Some(table)
    }

    fn rename_table(&mut self, at: usize) -> Option<Event> {
        let to = self.name("t");
        let table = self.at_rest(at)?;
        let from = std::mem::replace(&mut table.name, to.clone());
        let (id, info) = (table.id, table.info());
        Some(self.job(
            "rename table",
            14,
            id,
            json!({"TableInfo": info}),
            Statement::RenameTable { from, to },
        ))
    }

    fn rename_column(&mut self, at: usize) -> Option<Event> {
        let to = self.name("c");
        let table = self.at_rest(at)?;
        let name = table.name.clone();
        let from = std::mem::replace(&mut table.columns.last_mut()?.name, to.clone());
        let (id, info) = (table.id, table.info());
        let statement = Statement::RenameColumn { table: name, from, to };
        Some(self.job("rename column", 12, id, json!({"TableInfo": info}), statement))
    }

    fn truncate(&mut self, at: usize) -> Option<Event> {
        self.next += 1;
        let new_id = 1000 + self.next as i64;
        let table = self.at_rest(at)?;
        table.rows.clear();
        let old_id = std::mem::replace(&mut table.id, new_id);
        let (name, info) = (table.name.clone(), table.info());
        self.gone.push(old_id);
        Some(self.job(
            "truncate",
            11,
            old_id,
            json!({"TableInfo": info}),
            Statement::Truncate { table: name },
        ))
    }

    fn drop(&mut self, at: usize) -> Option<Event> {
        let (id, info) = {
            let table = self.at_rest(at)?;
            (table.id, table.info())
        };
        let table = self.tables.remove(at);
        self.gone.push(id);
        Some(self.job("drop", 4, id, json!({"TableInfo": info}), Statement::Drop { table: table.name }))
    }

    fn send(&mut self, version: i64, mutations: Vec<TableMutation>) -> Event {
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

    fn late_write(&mut self, table: u8) -> Option<Event> {
        let id = *self.gone.get(usize::from(table) % self.gone.len().max(1))?;
        let mut mutation = MutationBuilder::new(id);
        mutation.insert(vec![8, 2, 0]);
        *self.counts.entry("row of a table that is gone").or_default() += 1;
        Some(self.send(self.version, vec![mutation.build()]))
    }

    fn transaction(&mut self, steps: &[RowStep], lagging: bool, version: i64) -> Option<Event> {
        let mut mutations: Vec<(usize, MutationBuilder)> = Vec::new();
        for step in steps {
            let at = usize::from(step.table) % self.tables.len();
            self.next += 1;
            let handle = self.next as i64;
            let table = &mut self.tables[at];
            let flight = if lagging { table.earlier.clone() } else { table.flight.clone() };
            let roles = table.roles(flight.as_ref());
            let written: Vec<&Column> =
                roles.iter().filter(|(_, role)| *role == Role::Public).map(|(column, _)| column).collect();
            let place = mutations.iter().position(|(other, _)| *other == at).unwrap_or_else(|| {
                mutations.push((at, MutationBuilder::new(table.id)));
                mutations.len() - 1
            });
            let mutation = &mut mutations[place].1;
            let row = usize::from(step.row) % table.rows.len().max(1);
            // A TiDB that has not seen a column swapped does not find what others wrote into it since; and a write that does
            // not carry a coming column at all is not seen by what is held for the row (docs/fidelity.md).
            let behind_swap = lagging
                && matches!(
                    table.flight,
                    Some(Flight::Several { parts: Parts { changed: Some(_), .. }, .. })
                );
            // Nor can anybody tell apart rows without a key once their images are the same: docs/fidelity.md.
            let unsure = behind_swap || table.has_twin(row);
            let what = match (step.what % 5, table.rows.is_empty() || unsure) {
                (0 | 1, _) | (_, true) => {
                    let mut values: BTreeMap<u64, Option<i64>> = roles
                        .iter()
                        .filter(|(_, role)| *role == Role::WriteOnly)
                        .map(|(column, _)| (column.logical, column.default))
                        .collect();
                    values.extend(written.iter().map(|column| (column.logical, step.value)));
                    if table.keyed {
                        values.insert(table.columns[0].logical, Some(handle));
                    }
                    let row = Row { handle, values };
                    mutation.insert(table.encode_insert(&row, &roles));
                    table.rows.push(row);
                    // Columns that this TiDB does not write have their default from the start.
                    let visible = table.columns.clone();
                    table.fill(&visible);
                    "insert"
                }
                (2 | 3, false) => {
                    let before = table.rows[row].clone();
                    let mut after = before.clone();
                    // Not the first: it may be the key.
                    let column = written[1 + usize::from(step.row) % (written.len() - 1)];
                    after.values.insert(column.logical, step.value);
                    mutation.update(table.encode_update(&before, &after, &roles));
                    table.rows[row] = after;
                    "update"
                }
                _ => {
                    let gone = table.rows.remove(row);
                    mutation.delete(table.encode_delete(&gone, &roles));
                    "delete"
                }
            };
            *self.counts.entry(what).or_default() += 1;
            let stage = match (&flight, table.flight.is_some()) {
                (Some(Flight::Several { parts: Parts { changed: Some(_), .. }, stage: LAST.. }), true) => {
                    "value of a changed column before its job"
                }
                (Some(Flight::Several { stage: LAST.., .. }), true) => "value before its column",
                (Some(Flight::Add { .. } | Flight::Several { .. }), true) => "row before its column",
                (Some(_), false) => "row after its column's end",
                _ => "row at rest",
            };
            *self.counts.entry(stage).or_default() += 1;
        }
        let mutations = mutations.into_iter().map(|(_, mutation)| mutation.build()).collect();
        Some(self.send(version, mutations))
    }
}
