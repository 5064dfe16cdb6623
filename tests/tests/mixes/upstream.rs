//! A small TiDB: tables whose schema changes go through TiDB's states while rows are written, every row encoded by the
//! rules of its state. It knows what its users see; what it sends is all that the pipeline gets.

use std::collections::BTreeMap;

use drainer_kafka::transaction::Transaction;
use serde_json::json;
use tidb::model::Job;
use tidb::ts::{CommitTs, StartTs};

use crate::downstream::{NamedRow, Shown};
use crate::statement::Statement;
use crate::steps::Step;
use crate::table::{Flight, LAST, Row, Table};

const DATABASE: i64 = 900;

pub(crate) enum Event {
    Transaction(Transaction),
    Ddl { job: Box<Job>, commit_ts: CommitTs, statement: Statement },
    Restart,
}

#[derive(Default)]
pub(crate) struct Upstream {
    /// What is unique stays so until the end of the job that drops its key: a target that has the key would stop at rows
    /// that are equal in it (docs/fidelity.md).
    pub(crate) keys_hold: bool,
    pub(crate) tables: Vec<Table>,
    pub(crate) gone: Vec<i64>,
    /// Old ids of plain tables that were exchanged for a partition.
    pub(crate) exchanged: Vec<i64>,
    ts: u64,
    pub(crate) version: i64,
    pub(crate) next: u64,
    pub(crate) counts: BTreeMap<&'static str, usize>,
}

impl Upstream {
    pub(crate) fn counts(&self) -> impl Iterator<Item = (&'static str, usize)> {
        self.counts.iter().map(|(what, count)| (*what, *count))
    }

    pub(crate) fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// True where a replica that is up to date shows the same: while a column goes, it still has it; what users write
    /// into a column that was swapped comes with the job.
    pub(crate) fn is_settled(&self) -> bool {
        let ahead = |flight: &Flight| match flight {
            Flight::Drop { .. } => true,
            Flight::Several { parts, stage } => {
                *stage >= LAST && (parts.changed.is_some() || parts.dropped.is_some())
            }
            Flight::Add { .. }
            | Flight::Type { .. }
            | Flight::AddIndex { .. }
            | Flight::DropIndex { .. }
            | Flight::Repartition { .. } => false,
        };
        !self.tables.iter().any(|table| table.flight.as_ref().is_some_and(ahead))
    }

    pub(crate) fn shown(&self) -> Shown {
        let tables = self.tables.iter().map(|table| {
            let named = |row: &Row| -> NamedRow {
                table.columns.iter().map(|column| (column.name.clone(), row.value(column))).collect()
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
            events.push(self.create(Default::default()));
        }
        let pick = |table: u8| usize::from(table) % self.tables.len();
        let flights: Vec<usize> =
            (0..self.tables.len()).filter(|at| self.tables[*at].flight.is_some()).collect();
        let in_flight = |table: u8| flights.get(usize::from(table) % flights.len().max(1)).copied();
        match step {
            Step::Transaction { rows, lagging, version } => {
                events.extend(self.transaction(rows, *lagging, *version))
            }
            Step::Create { design } => events.push(self.create(*design)),
            Step::Begin { table, what, default } => self.begin(pick(*table), *what, *default),
            Step::Advance { table } => events.extend(in_flight(*table).and_then(|at| self.advance(at))),
            Step::Undo { table } => events.extend(in_flight(*table).and_then(|at| self.undo(at))),
            Step::RenameTable { table } => events.extend(self.rename_table(pick(*table))),
            Step::RenameColumn { table } => events.extend(self.rename_column(pick(*table))),
            Step::SetDefault { table, default } => events.extend(self.set_default(pick(*table), *default)),
            Step::Truncate { table } => events.extend(self.truncate(pick(*table))),
            Step::Drop { table } => events.extend(self.drop(pick(*table))),
            Step::Partition { table, partition, what } => {
                events.extend(self.partition(*table, usize::from(*partition), *what));
            }
            Step::Gone { table } => events.extend(self.late_write(*table)),
            Step::Restart => {
                self.count("restart");
                events.push(Event::Restart);
            }
        }
        events
    }

    pub(crate) fn name(&mut self, prefix: &str) -> String {
        self.next += 1;
        format!("{prefix}{}", self.next)
    }

    /// A new id for a table or a partition.
    pub(crate) fn physical_id(&mut self) -> i64 {
        self.next += 1;
        1000 + self.next as i64
    }

    pub(crate) fn tick(&mut self) -> (StartTs, CommitTs) {
        self.ts += 2;
        (StartTs::new(self.ts - 1), CommitTs::new(self.ts))
    }

    pub(crate) fn job(
        &mut self,
        what: &'static str,
        kind: u32,
        table_id: i64,
        mut binlog: serde_json::Value,
        statement: Statement,
    ) -> Event {
        self.count(what);
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

    /// A job that leaves the table as it is now.
    pub(crate) fn table_job(
        &mut self,
        what: &'static str,
        kind: u32,
        at: usize,
        statement: Statement,
    ) -> Event {
        let (id, info) = (self.tables[at].id, self.tables[at].info());
        self.job(what, kind, id, json!({"TableInfo": info}), statement)
    }
}
