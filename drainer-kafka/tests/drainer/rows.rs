//! Every recorded row through the translation, applied to the naive database, compared with the recorded states.

use std::collections::HashMap;

use drainer_kafka::ddl;
use drainer_kafka::schema::{Definition, Effect, Tracker};
use drainer_kafka::translate::{LargeRow, Shape, TxnRows};
use prost::Message as _;
use schemas::sluice::v1::RowChange;
use tidb::model::{ActionType, tp};

use crate::model::{Row, Rows, Value, expected, float};
use crate::recording::{ALL, Recording, State};
use crate::schema::routing;

const SHAPE: Shape = Shape { max_record: 1 << 20, large_row: LargeRow::Chunk };

#[derive(Default)]
struct Database {
    tables: HashMap<i64, Rows>,
    changes: u64,
    discarded: u64,
    chunked: u64,
}

impl Database {
    fn transaction(&mut self, tracker: &Tracker, rows: &mut TxnRows) {
        let definitions = tracker.definitions();
        self.discarded += rows.discarded();
        let mut value = Vec::new();
        loop {
            let slice = rows.next_slice(&SHAPE, 100_000).unwrap();
            if slice.is_empty() {
                return;
            }
            for record in slice {
                assert!(
                    record.value.len() + record.key.as_ref().map_or(0, |key| key.len()) <= SHAPE.max_record
                );
                value.extend_from_slice(&record.value);
                if record.record + 1 < record.records {
                    self.chunked += 1;
                    continue;
                }
                let change = RowChange::decode(value.as_slice()).unwrap();
                value.clear();
                let definition = definitions.table(record.table_id).unwrap();
                assert_eq!(
                    (definition.version, record.place),
                    (record.schema_version, definition.place.unwrap())
                );
                assert_eq!(
                    (change.database.as_str(), change.table.as_str()),
                    (&*definition.database, definition.table())
                );
                self.tables.entry(record.table_id).or_default().apply(definition, &change);
                self.changes += 1;
            }
        }
    }

    fn ddl(&mut self, kind: ActionType, effect: &Effect) {
        use ActionType as A;
        let partitions_go = matches!(
            kind,
            A::DropTablePartition
                | A::TruncateTablePartition
                | A::ExchangeTablePartition
                | A::ReorganizeTablePartition
        );
        for before in &effect.before {
            let Some(mut rows) = self.tables.remove(&before.id()) else { continue };
            let Some(after) = effect.after.iter().find(|after| after.id() == before.id()) else { continue };
            rows.reshape(before, after);
            self.tables.insert(after.id(), rows);
        }
        if partitions_go {
            for after in &effect.after {
                self.tables.entry(after.id()).or_default().lost_track = true;
            }
        }
    }

    fn compare(&self, name: &str, tracker: &Tracker, state: &State) -> usize {
        let mut compared = 0;
        for table in tracker
            .definitions()
            .tables()
            .filter(|t| t.place.is_some() && !t.info.is_view() && !t.info.is_sequence())
        {
            let full_name = format!("{}.{}", table.database, table.table());
            let rows = self.tables.get(&table.id()).cloned().unwrap_or_default();
            if rows.lost_track {
                continue;
            }
            let at = format!("{name}, state {}, {full_name}", state.label);
            let mut have: Vec<Vec<Value>> = rows.rows.iter().map(|row| line(table, row)).collect();
            let mut want: Vec<Vec<Value>> =
                state.tables[&full_name].rows.iter().map(|row| recorded(table, row)).collect();
            compared += want.len();
            have.sort();
            want.sort();
            have.retain(|row| match want.binary_search(row) {
                Ok(found) => {
                    want.remove(found);
                    false
                }
                Err(_) => true,
            });
            // Only rows with cells that the model cannot tell are left.
            for row in have {
                let fitting = want.iter().position(|w| w.iter().zip(&row).all(|(w, have)| have.fits(w)));
                let Some(found) = fitting else {
                    panic!("{at}: {row:?} is not among {:?}", want.iter().take(3).collect::<Vec<_>>())
                };
                want.swap_remove(found);
            }
            assert!(want.is_empty(), "{at}: missing {:?}", &want[..want.len().min(3)]);
        }
        compared
    }
}

fn line(table: &Definition, row: &Row) -> Vec<Value> {
    table
        .columns
        .iter()
        .map(|at| {
            let column = &table.info.cols[*at];
            match (&row[&column.id], column.field_type.tp) {
                (Value::Bytes(text), tp::FLOAT) => {
                    Value::Bytes(float(std::str::from_utf8(text).unwrap().parse().unwrap()))
                }
                (Value::Bytes(text), tp::DOUBLE) => {
                    let number: f64 = std::str::from_utf8(text).unwrap().parse().unwrap();
                    Value::Bytes(format!("{number:e}").into_bytes())
                }
                (value, _) => value.clone(),
            }
        })
        .collect()
}

/// The recorded row, without virtual columns.
fn recorded(table: &Definition, row: &[Option<crate::recording::Cell>]) -> Vec<Value> {
    let visible: Vec<_> = table.info.public_columns().collect();
    assert_eq!(visible.len(), row.len());
    visible
        .iter()
        .zip(row)
        .filter(|(column, _)| !column.is_virtual())
        .map(|(column, cell)| cell.as_ref().map_or(Value::Null, |cell| expected(column, &cell.bytes())))
        .collect()
}

fn replay(name: &str) -> (Database, usize) {
    let recording = Recording::load(name);
    let mut tracker = Tracker::new(routing());
    let mut database = Database::default();
    let mut states = recording.states.iter().peekable();
    let mut compared = 0;
    for transaction in &recording.transactions {
        while let Some(state) = states.next_if(|state| state.commit_ts < transaction.commit_ts.get()) {
            compared += database.compare(name, &tracker, state);
        }
        match &transaction.ddl {
            Some(ddl) if ddl.schema_state == 1 || ddl::is_setval(&ddl.query) => {}
            Some(ddl) => {
                let job = recording.job(ddl.job_id).unwrap();
                let effect = tracker.apply(job, transaction.commit_ts).unwrap();
                database.ddl(job.kind, &effect);
            }
            None => {
                let mut rows = TxnRows::new(transaction, &tracker.definitions()).unwrap();
                database.transaction(&tracker, &mut rows);
            }
        }
    }
    for state in states {
        compared += database.compare(name, &tracker, state);
    }
    (database, compared)
}

#[test]
fn rows_equal_every_recorded_state() {
    for name in ALL {
        let (database, compared) = replay(name);
        println!(
            "{name}: {} changes, {compared} rows compared, {} discarded",
            database.changes, database.discarded
        );
        assert!(compared > 10 && database.changes as usize >= 10, "{name}: {compared}");
        if name == "large" {
            assert!(database.chunked > 0, "rows of several megabytes are cut");
        }
    }
}
