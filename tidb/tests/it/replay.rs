//! The recorded changes, applied in commit order to a model that knows nothing but these decoders, give the recorded
//! state, value for value.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::Value as Cell;
use tidb::{
    binlog::{self, Change},
    model::{ActionType, Job, TableInfo, tp},
    row::{RowImage, decode_delete, decode_insert, decode_update},
    ts::CommitTs,
    value::Value,
};

use crate::recording;

type Row = HashMap<i64, Value>;

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
        let row = image.columns.into_iter().collect();
        assert!(self.rows.insert(identity, row).is_none(), "inserted twice into {}", self.info.name);
    }

    fn delete(&mut self, image: &RowImage) -> Row {
        let identity = self.identity(image);
        let row = self.rows.remove(&identity);
        let row = row.unwrap_or_else(|| panic!("no row {identity} in {}", self.info.name));
        // The old image is what the row held.
        for (id, value) in image.columns.iter().filter(|(id, _)| row.contains_key(id)) {
            assert_eq!(row.get(id), Some(value), "{} {identity} column {id}", self.info.name);
        }
        row
    }

    fn update(&mut self, before: &RowImage, after: RowImage) {
        let mut row = self.delete(before);
        let identity = self.identity(&after);
        row.extend(after.columns);
        assert!(self.rows.insert(identity, row).is_none());
    }

    /// Removes and returns the rows of a RANGE partition of the definition.
    fn take_partition(&mut self, id: i64) -> HashMap<String, Row> {
        let partition = self.info.partitions().expect("partitions");
        let place = partition.definitions.iter().position(|d| d.id == id).expect("the partition");
        let bound = |place: usize| partition.definitions[place].less_than[0].parse().unwrap_or(i64::MAX);
        let range = if place == 0 { i64::MIN } else { bound(place - 1) }..bound(place);
        let column = self.info.column_by_name(partition.expr.trim_matches('`')).expect("the column").id;
        self.rows.extract_if(|_, row| matches!(row[&column], Value::Int(v) if range.contains(&v))).collect()
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
            ActionType::AddColumn
            | ActionType::AddIndex
            | ActionType::RenameTable
            | ActionType::AddTablePartition
            | ActionType::ReorganizeTablePartition => {
                let table = self.tables.get_mut(&info.id).expect("the table");
                (table.database, table.info) = (database, info);
            }
            other => panic!("{other} is not in these recordings"),
        }
    }

    fn apply_changes(&mut self, value: &schemas::binlog::PrewriteValue) -> usize {
        let mut count = 0;
        for mutation in &value.mutations {
            let table = self.tables.get_mut(&mutation.table_id.unwrap()).expect("a table");
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

/// A cell as both sides can be compared: FLOAT cut to six digits, as the text protocol does.
fn cell(text: Option<&[u8]>, column: &tidb::model::ColumnInfo) -> String {
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
                let absent = column.absent_value().unwrap();
                let value = row.get(&column.id).unwrap_or(&absent);
                cell(value.to_text(&column.field_type).unwrap().as_deref(), column)
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
    let state = recording::end_state(name);
    let end = CommitTs::new(state["commit_ts"].as_u64().unwrap());
    let mut changes = 0;
    for transaction in transactions.iter().filter(|t| t.commit_ts <= end) {
        let prewrite = &transaction.prewrite;
        if prewrite.is_ddl() {
            let job = by_id[&prewrite.ddl_job_id];
            if job.kind != ActionType::CreateView {
                model.apply_job(job);
            }
        } else {
            changes += model.apply_changes(&binlog::decode_value(prewrite.prewrite_value.clone()).unwrap());
        }
    }
    let compared = compare(name, &model, &state);
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
