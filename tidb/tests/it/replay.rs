//! The recorded changes, applied in commit order to a model that knows nothing but these decoders, give the recorded
//! state, value for value.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap, HashSet},
};

use serde_json::Value as Cell;
use tidb::{
    binlog::{self, Change},
    datum::Datum,
    model::{ActionType, ColumnInfo, Job, TableInfo, tp},
    row::{RowImage, decode_delete, decode_insert, decode_update},
    ts::CommitTs,
    value::Value,
};

use crate::recording;

/// A row's values, and those of columns that the table did not have yet when they came.
#[derive(Default)]
struct Row {
    values: HashMap<i64, Value>,
    held: HashMap<i64, Datum>,
}

impl Row {
    fn take(&mut self, image: RowImage) {
        self.values.extend(image.columns);
        self.held.extend(image.unknown.into_iter().map(|u| (u.id, u.datum)));
    }

    /// The value of a column: as it came, else as it came before the column was there, else the default.
    fn get(&self, column: &ColumnInfo) -> Value {
        match (self.values.get(&column.id), self.held.get(&column.id)) {
            (Some(value), _) => value.clone(),
            (None, Some(datum)) => Value::from_datum(datum.clone(), &column.field_type).unwrap(),
            (None, None) => column.absent_value().unwrap(),
        }
    }
}

/// A table: rows by row id, or by the text of their primary key.
struct Table {
    database: String,
    info: TableInfo,
    rows: HashMap<String, Row>,
}

impl Table {
    fn identity(&self, image: &RowImage) -> String {
        if let Some(row_id) = image.row_id {
            return format!("row id {row_id}");
        }
        let key = self.info.cols.iter().filter(|c| c.is_primary_key());
        key.map(|c| format!("{:?};", image.get(c.id).expect("a key column"))).collect()
    }

    fn insert(&mut self, image: RowImage) {
        let identity = self.identity(&image);
        let mut row = Row::default();
        row.take(image);
        assert!(self.rows.insert(identity, row).is_none(), "inserted twice into {}", self.info.name);
    }

    fn delete(&mut self, image: &RowImage) -> Row {
        let identity = self.identity(image);
        let row = self.rows.remove(&identity);
        let row = row.unwrap_or_else(|| panic!("no row {identity} in {}", self.info.name));
        // The old image is what the row held.
        for column in self.info.public_columns().filter(|c| !c.is_virtual()) {
            if let Some(value) = image.get(column.id) {
                assert_eq!(*value, row.get(column), "{} {identity} column {}", self.info.name, column.name);
            }
        }
        row
    }

    fn update(&mut self, before: &RowImage, after: RowImage) {
        let mut row = self.delete(before);
        let identity = self.identity(&after);
        row.take(after);
        assert!(self.rows.insert(identity, row).is_none());
    }

    /// Removes and returns the rows of a RANGE partition of the definition.
    fn take_partition(&mut self, id: i64) -> HashMap<String, Row> {
        let partition = self.info.partitions().expect("partitions");
        let place = partition.definitions.iter().position(|d| d.id == id).expect("the partition");
        let bound = |place: usize| partition.definitions[place].less_than[0].parse().unwrap_or(i64::MAX);
        let range = if place == 0 { i64::MIN } else { bound(place - 1) }..bound(place);
        let column = self.info.column_by_name(partition.expr.trim_matches('`')).expect("the column").id;
        self.rows
            .extract_if(|_, row| matches!(row.values[&column], Value::Int(v) if range.contains(&v)))
            .collect()
    }
}

#[derive(Default)]
struct Model {
    tables: HashMap<i64, Table>,
    databases: HashMap<i64, String>,
}

impl Model {
    fn apply_job(&mut self, job: &Job) {
        if let Some(database) = &job.binlog.db_info {
            self.databases.insert(database.id, database.name.original.clone());
            return;
        }
        let info = job.binlog.table_info.clone().expect("a definition");
        let database = self.databases.get(&job.schema_id).cloned().unwrap_or_else(|| "mysql".to_owned());
        match job.kind {
            ActionType::CreateTable => {
                self.tables.insert(info.id, Table { database, info, rows: HashMap::new() });
            }
            ActionType::ExchangeTablePartition => {
                let table = self.tables.get_mut(&info.id).expect("the partitioned table");
                let gone: Vec<i64> = recording::definition_ids(&table.info)
                    .filter(|id| !recording::definition_ids(&info).any(|d| d == *id))
                    .collect();
                let rows = table.take_partition(gone[0]);
                let mut plain = self.tables.remove(&job.table_id).expect("the plain table");
                let rows = std::mem::replace(&mut plain.rows, rows);
                let table = self.tables.get_mut(&info.id).expect("the partitioned table");
                table.rows.extend(rows);
                table.info = info;
                plain.info.id = gone[0];
                self.tables.insert(gone[0], plain);
            }
            ActionType::TruncateTablePartition | ActionType::DropTablePartition => {
                let table = self.tables.get_mut(&info.id).expect("the partitioned table");
                let kept: HashSet<i64> = recording::definition_ids(&info).collect();
                for id in recording::definition_ids(&table.info).collect::<Vec<_>>() {
                    if !kept.contains(&id) {
                        drop(table.take_partition(id));
                    }
                }
                table.info = info;
            }
            ActionType::DropTable => drop(self.tables.remove(&job.table_id)),
            ActionType::TruncateTable => {
                self.tables.remove(&job.table_id).expect("the table");
                self.tables.insert(info.id, Table { database, info, rows: HashMap::new() });
            }
            ActionType::AddColumn
            | ActionType::DropColumn
            | ActionType::ModifyColumn
            | ActionType::SetDefaultValue
            | ActionType::MultiSchemaChange
            | ActionType::AddIndex
            | ActionType::RenameTable
            | ActionType::AddTablePartition
            | ActionType::ReorganizeTablePartition => {
                let table = self.tables.get_mut(&info.id).expect("the table");
                for (old, new) in changed_types(&table.info, &info) {
                    for row in table.rows.values_mut().filter(|row| !row.held.contains_key(&new)) {
                        let converted = match row.get(&old) {
                            Value::Null => Value::Null,
                            value => Value::Text(value.to_string().into()),
                        };
                        row.values.insert(new, converted);
                    }
                }
                (table.database, table.info) = (database, info);
            }
            other => panic!("{other} is not in these recordings"),
        }
    }

    fn apply_changes(&mut self, value: &schemas::binlog::PrewriteValue) -> usize {
        let mut count = 0;
        for mutation in &value.mutations {
            // Rows of a table that is gone are invisible upstream.
            let Some(table) = self.tables.get_mut(&mutation.table_id.unwrap()) else { continue };
            for change in binlog::changes(mutation) {
                count += 1;
                match change.unwrap() {
                    Change::Insert(blob) => table.insert(decode_insert(&table.info, blob).unwrap()),
                    Change::Update(blob) => {
                        let (before, after) = decode_update(&table.info, blob).unwrap();
                        table.update(&before, after);
                    }
                    Change::Delete(blob) => drop(table.delete(&decode_delete(&table.info, blob).unwrap())),
                }
            }
        }
        count
    }
}

/// Columns that a job gave another type, so another id. These recordings have changes to VARCHAR only.
fn changed_types(before: &TableInfo, after: &TableInfo) -> Vec<(ColumnInfo, i64)> {
    let same_name =
        |old: &ColumnInfo| after.cols.iter().find(|new| new.name == old.name && new.id != old.id).cloned();
    let pairs = before.cols.iter().filter_map(|old| Some((old, same_name(old)?)));
    pairs
        .map(|(old, new)| {
            assert_eq!(new.field_type.tp, tp::VARCHAR);
            (old.clone(), new.id)
        })
        .collect()
}

/// A cell as both sides can be compared: FLOAT cut to six digits, as the text protocol does.
fn cell(text: Option<&[u8]>, column: &ColumnInfo) -> String {
    let Some(text) = text else { return "NULL".to_owned() };
    if column.field_type.tp == tp::FLOAT {
        let number: f32 = std::str::from_utf8(text).unwrap().parse().unwrap();
        return format!("{number:.5e}");
    }
    format!("{:?}", bytes::Bytes::copy_from_slice(text))
}

fn expected_cell(value: &Cell) -> Option<Vec<u8>> {
    match value {
        Cell::Null => None,
        Cell::String(text) => Some(text.as_bytes().to_vec()),
        other => {
            let hex = other["hex"].as_str().unwrap();
            Some((0..hex.len()).step_by(2).map(|i| u8::from_str_radix(&hex[i..i + 2], 16).unwrap()).collect())
        }
    }
}

/// Compares all tables with the recorded state; returns how many values were compared.
fn compare(name: &str, model: &Model, state: &Cell) -> usize {
    let mut compared = 0;
    let by_name: BTreeMap<String, &Table> =
        model.tables.values().map(|t| (format!("{}.{}", t.database, t.info.name), t)).collect();
    for (table_name, expected) in state["tables"].as_object().unwrap() {
        if expected["type"] != "BASE TABLE" {
            continue;
        }
        let table = by_name.get(table_name).unwrap_or_else(|| panic!("{name}: no table {table_name}"));
        let columns: Vec<_> = table.info.public_columns().collect();
        let names: Vec<_> =
            expected["columns"].as_array().unwrap().iter().map(|c| c.as_str().unwrap()).collect();
        assert_eq!(columns.iter().map(|c| c.name()).collect::<Vec<_>>(), names);
        // Virtual columns are not in inserted rows.
        let stored: Vec<_> = columns.iter().enumerate().filter(|(_, c)| !c.is_virtual()).collect();
        let mut actual: Vec<Vec<String>> = Vec::new();
        for row in table.rows.values() {
            let cells = stored.iter().map(|(_, column)| {
                cell(row.get(column).to_text(&column.field_type).unwrap().as_deref(), column)
            });
            actual.push(cells.collect());
        }
        let mut wanted: Vec<Vec<String>> = Vec::new();
        for row in expected["rows"].as_array().unwrap() {
            let cells = stored.iter().map(|(i, column)| cell(expected_cell(&row[*i]).as_deref(), column));
            wanted.push(cells.collect());
            compared += stored.len();
        }
        actual.sort();
        wanted.sort();
        assert_eq!(actual.len(), wanted.len(), "{name} {table_name}: number of rows");
        for (actual, wanted) in actual.iter().zip(&wanted) {
            assert_eq!(actual, wanted, "{name} {table_name}");
        }
    }
    compared
}

fn replay(name: &str) -> (usize, usize) {
    let jobs = Job::parse_list(&recording::history_body(name)).unwrap();
    let by_id: HashMap<i64, &Job> = jobs.iter().map(|j| (j.id, j)).collect();
    let transactions = recording::committed(name);
    let sent: HashSet<i64> = transactions.iter().map(|t| t.prewrite.ddl_job_id).collect();
    let mut model = Model::default();
    // What was there before the recording began; TiDB's own views have no rows.
    let mut before: Vec<_> =
        jobs.iter().filter(|j| !sent.contains(&j.id) && j.kind != ActionType::CreateView).collect();
    before.sort_by_key(|j| j.schema_version());
    before.iter().for_each(|job| model.apply_job(job));
    let mut states = recording::states(name);
    states.sort_by_key(|state| Reverse(state["commit_ts"].as_u64()));
    let (mut changes, mut compared) = (0, 0);
    let mut compare_due = |model: &Model, next: Option<CommitTs>| {
        while let Some(state) =
            states.pop_if(|s| next.is_none_or(|ts| ts.get() > s["commit_ts"].as_u64().unwrap()))
        {
            compared += compare(name, model, &state);
        }
    };
    for transaction in &transactions {
        compare_due(&model, Some(transaction.commit_ts));
        let prewrite = &transaction.prewrite;
        if !prewrite.is_ddl() {
            changes += model.apply_changes(&binlog::decode_value(prewrite.prewrite_value.clone()).unwrap());
        } else if prewrite.ddl_schema_state != 1 {
            let job = by_id[&prewrite.ddl_job_id];
            if job.kind != ActionType::CreateView && job.state.is_applied() {
                model.apply_job(job);
            }
        }
    }
    compare_due(&model, None);
    println!("{name}: {changes} changes, {compared} values compared");
    (changes, compared)
}

#[test]
fn types() {
    let (changes, compared) = replay("types");
    assert!(changes > 50 && compared > 400);
}

#[test]
fn keys() {
    let (changes, compared) = replay("keys");
    assert!(changes > 100 && compared > 90);
}

#[test]
fn shop() {
    let (changes, compared) = replay("shop");
    assert!(changes > 500 && compared > 2000);
}

#[test]
fn concurrent() {
    let (changes, compared) = replay("concurrent");
    assert!(changes > 2000 && compared > 2000);
}

#[test]
fn large() {
    let (changes, compared) = replay("large");
    assert!(changes > 60_000 && compared > 90_000);
}

#[test]
fn orphans() {
    let (changes, compared) = replay("orphans");
    assert!(changes > 500 && compared > 400);
}

#[test]
fn random() {
    let (changes, compared) = replay("random");
    assert!(changes > 30_000 && compared > 100_000);
}
