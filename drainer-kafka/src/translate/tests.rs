//! Rows as TiDB writes them, shaped by definitions that differ from the ones they were written with.

mod ids;

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use schemas::digest::record_checksum;
use schemas::sluice::v1::field::Value as V;
use schemas::sluice::v1::{Field, RowChange};
use serde_json::json;
use tidb::datum::Datum;

use super::*;
use crate::filter::{Filter, FilterRules};
use crate::routing::Routing;
use crate::schema::zone::UpstreamZone;
use crate::schema::{Effect, SchemaError, Tracker};
use crate::sequence::RowLayout;

const SHAPE: Shape = Shape { max_record: 1 << 20, large_row: LargeRow::Chunk };

/// A cluster with database `d` (id 1) and the tables that a test makes.
pub(super) struct Cluster {
    tracker: Tracker,
    version: i64,
}

impl Cluster {
    pub(super) fn new() -> Self {
        Self::in_zone(None)
    }

    fn in_zone(zone: Option<UpstreamZone>) -> Self {
        let layout = RowLayout { topics: vec![("t".to_owned(), 4)] };
        let routing = Routing::new(Filter::new(FilterRules::default()).unwrap(), layout).in_zone(zone);
        let mut cluster = Self { tracker: Tracker::new(Arc::new(routing)), version: 0 };
        let database = json!({"id": 9, "db_name": {"O": "d", "L": "d"}});
        cluster.run(1, 0, json!({"DBInfo": database}));
        cluster
    }

    fn run(&mut self, kind: u32, table_id: i64, binlog: serde_json::Value) {
        self.try_run(kind, table_id, 6, binlog).unwrap();
    }

    fn try_run(
        &mut self,
        kind: u32,
        table_id: i64,
        state: u32,
        mut binlog: serde_json::Value,
    ) -> Result<Effect, SchemaError> {
        self.version += 1;
        binlog["SchemaVersion"] = json!(self.version);
        let job = json!({
            "id": self.version, "type": kind, "schema_id": 9, "table_id": table_id, "state": state, "binlog": binlog,
        });
        let commit_ts = CommitTs::new(self.version as u64);
        self.tracker.apply(&serde_json::from_value(job).unwrap(), commit_ts)
    }

    pub(super) fn table(&mut self, columns: &[serde_json::Value], more: serde_json::Value) {
        let mut info = json!({"id": 50, "name": {"O": "T", "L": "t"}, "cols": columns, "pk_is_handle": true, "max_col_id": 9});
        info.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.run(3, 50, json!({"TableInfo": info}));
    }

    fn rows(&self, mutations: Vec<TableMutation>) -> Result<TxnRows, TranslateError> {
        TxnRows::new(&transaction(mutations), &self.tracker.definitions())
    }

    pub(super) fn changes(&self, mutations: Vec<TableMutation>) -> Vec<RowChange> {
        let mut rows = self.rows(mutations).unwrap();
        let records = rows.next_slice(&SHAPE, usize::MAX).unwrap();
        assert_eq!(records.len(), rows.changes() as usize);
        records.iter().map(|record| RowChange::decode(record.value.clone()).unwrap()).collect()
    }
}

fn transaction(mutations: Vec<TableMutation>) -> Transaction {
    let value = PrewriteValue { schema_version: Some(1), mutations };
    Transaction {
        start_ts: StartTs::new(100),
        commit_ts: CommitTs::new(101),
        payload: value.encode_to_vec().into(),
        ddl: None,
        budget: None,
    }
}

/// BIGINT columns, but for what `more` says; column 1 is the primary key.
pub(super) fn column(id: i64, more: serde_json::Value) -> serde_json::Value {
    let flag = if id == 1 { 3 } else { 0 };
    let mut column = json!({
        "id": id, "name": {"O": format!("c{id}"), "L": format!("c{id}")}, "state": 5,
        "type": {"Tp": 8, "Flag": flag, "Flen": 20, "Decimal": 0, "Charset": "binary", "Collate": "binary"},
    });
    column.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    column
}

/// A row's pairs in TiDB's row format: column id and value, both in value form.
pub(super) fn pairs(values: &[(i64, Datum)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (id, datum) in values {
        Datum::Int(*id).encode_value(&mut out);
        datum.encode_value(&mut out);
    }
    if out.is_empty() { vec![0] } else { out }
}

pub(super) fn int(id: i64, value: i64) -> (i64, Datum) {
    (id, Datum::Int(value))
}

pub(super) fn insert(handle: i64, values: &[(i64, Datum)]) -> Bytes {
    let mut out = Vec::new();
    Datum::Int(handle).encode_value(&mut out);
    out.extend(pairs(values));
    out.into()
}

pub(super) fn update(before: &[(i64, Datum)], after: &[(i64, Datum)]) -> Bytes {
    [pairs(before), pairs(after)].concat().into()
}

pub(super) fn mutation(table_id: i64) -> TableMutation {
    TableMutation { table_id: Some(table_id), ..TableMutation::default() }
}

fn inserts(rows: Vec<Bytes>) -> TableMutation {
    TableMutation { sequence: vec![0; rows.len()], inserted_rows: rows, ..mutation(50) }
}

fn shown(fields: &[Field]) -> Vec<(i64, String)> {
    fields
        .iter()
        .map(|field| {
            let text = match field.value.as_ref().unwrap() {
                V::Null(_) => "NULL".to_owned(),
                V::Int(v) => v.to_string(),
                V::Text(v) | V::Timestamp(v) => v.clone(),
                other => format!("{other:?}"),
            };
            (field.column_id, text)
        })
        .collect()
}

fn values(list: &[(i64, &str)]) -> Vec<(i64, String)> {
    list.iter().map(|(id, text)| (*id, (*text).to_owned())).collect()
}

/// What a replica must not see, and what an insert lacks.
#[test]
fn columns_by_their_state() {
    let mut cluster = Cluster::new();
    cluster.table(
        &[
            column(1, json!({})),
            column(2, json!({"origin_default": "7", "default": "8"})),
            column(3, json!({})),
            column(4, json!({"type": {"Tp": 8, "Flag": 1, "Flen": 20, "Decimal": 0, "Charset": "binary"}})),
            column(5, json!({"generated_expr_string": "`c2`+1", "generated_stored": false})),
            column(6, json!({"generated_expr_string": "`c2`+2", "generated_stored": true})),
            column(7, json!({"state": 2})),
            column(8, json!({"hidden": true})),
        ],
        json!({}),
    );
    // Everything left out: default of old rows, NULL, the type's zero.
    let lacking = insert(-5, &[]);
    let full =
        insert(1, &[int(2, 20), int(3, 30), int(4, 40), int(6, 22), int(7, 70), int(8, 80), int(99, 1)]);
    let changes = cluster.changes(vec![inserts(vec![lacking, full])]);
    assert_eq!((changes[0].database.as_str(), changes[0].table.as_str()), ("d", "T"));
    assert_eq!(shown(&changes[0].after), values(&[(1, "-5"), (2, "7"), (3, "NULL"), (4, "0"), (6, "NULL")]));
    assert_eq!(shown(&changes[1].after), values(&[(1, "1"), (2, "20"), (3, "30"), (4, "40"), (6, "22")]));

    // What an update or a delete lacks is absent, never a default; virtual columns of deletes do not go out.
    let updated = update(&[int(1, 1), int(2, 20)], &[int(1, 1), int(2, 21)]);
    let deleted = pairs(&[int(1, 1), int(3, 30), int(5, 21), int(7, 70)]).into();
    let change = TableMutation {
        updated_rows: vec![updated],
        deleted_rows: vec![deleted],
        sequence: vec![4, 1],
        ..mutation(50)
    };
    let changes = cluster.changes(vec![change]);
    assert_eq!(changes[0].op(), proto::Op::Delete);
    assert_eq!(shown(&changes[0].before), values(&[(1, "1"), (3, "30")]));
    assert_eq!(shown(&changes[1].before), values(&[(1, "1"), (2, "20")]));
    assert_eq!(shown(&changes[1].after), values(&[(1, "1"), (2, "21")]));
}

#[test]
fn rows_of_tables_that_are_gone_or_unknown() {
    let mut cluster = Cluster::new();
    cluster.table(&[column(1, json!({}))], json!({}));
    let row = || inserts(vec![insert(1, &[])]);
    assert_eq!(cluster.changes(vec![row()]).len(), 1);
    let truncated = json!({"TableInfo": {"id": 51, "name": {"O": "T", "L": "t"}, "cols": [column(1, json!({}))], "pk_is_handle": true}});
    cluster.run(11, 50, truncated);
    let rows = cluster.rows(vec![row()]).unwrap();
    assert_eq!((rows.changes(), rows.discarded()), (0, 1));
    let unknown = TableMutation { table_id: Some(777), ..row() };
    let error = cluster.rows(vec![unknown]).unwrap_err();
    assert!(matches!(error.fault, TranslateFault::UnknownTable(777)));
    assert!(error.to_string().contains("commit_ts 101") && error.to_string().contains("777"), "{error}");
}

#[test]
fn malformed_transactions_are_refused() {
    let mut cluster = Cluster::new();
    cluster.table(&[column(1, json!({})), column(2, json!({}))], json!({}));
    let definitions = cluster.tracker.definitions();
    let garbage = Transaction { payload: Bytes::from_static(b"\xff\xff"), ..transaction(Vec::new()) };
    assert!(matches!(TxnRows::new(&garbage, &definitions).unwrap_err().fault, TranslateFault::Payload(_)));
    let missing = TableMutation { sequence: vec![0, 0], ..inserts(vec![insert(1, &[])]) };
    let missing = TableMutation { sequence: vec![0, 0], ..missing };
    assert!(matches!(cluster.rows(vec![missing]).unwrap_err().fault, TranslateFault::MissingRow { .. }));
    for kind in [2, 3, 9] {
        let obsolete = TableMutation { sequence: vec![kind], ..mutation(50) };
        let fault = cluster.rows(vec![obsolete]).unwrap_err().fault;
        assert!(matches!(fault, TranslateFault::ObsoleteMutation { table_id: 50, kind: k } if k == kind));
    }
    let mut broken =
        cluster.rows(vec![inserts(vec![insert(1, &[(2, Datum::Bytes(Bytes::from_static(b"x")))])])]).unwrap();
    let error = broken.next_slice(&SHAPE, usize::MAX).unwrap_err();
    assert!(matches!(error.fault, TranslateFault::Row(_)), "{error}");
}

/// TiDB may record a write twice, whatever the definition says of partitions; other repetitions are meant.
#[test]
fn equal_neighbours_are_one_write() {
    let partition =
        json!({"partition": {"type": 1, "enable": true, "definitions": [{"id": 60, "name": "p"}]}});
    for more in [partition, json!({})] {
        let mut cluster = Cluster::new();
        cluster.table(&[column(1, json!({})), column(2, json!({}))], more);
        let row = insert(1, &[int(2, 5)]);
        let deleted: Bytes = pairs(&[int(1, 1), int(2, 5)]).into();
        let change = TableMutation {
            inserted_rows: vec![row.clone(), row.clone(), row],
            deleted_rows: vec![deleted.clone(), deleted.clone(), deleted],
            // Twice each, and then a delete and an insert of the same row again.
            sequence: vec![0, 0, 4, 4, 0, 4],
            ..mutation(50)
        };
        assert_eq!(cluster.changes(vec![change]).len(), 4);
    }
}

#[test]
fn large_rows() {
    let text = json!({"type": {"Tp": 252, "Flag": 0, "Flen": -1, "Decimal": 0, "Charset": "utf8mb4", "Collate": "utf8mb4_bin"}});
    let mut cluster = Cluster::new();
    cluster.table(&[column(1, json!({})), column(2, text)], json!({}));
    let large = "x".repeat(2_500);
    let row = insert(7, &[(2, Datum::Bytes(large.clone().into()))]);
    let shape = Shape { max_record: 1_000, large_row: LargeRow::Chunk };
    let mut rows = cluster.rows(vec![inserts(vec![row.clone(), insert(8, &[])])]).unwrap();
    let records = rows.next_slice(&shape, usize::MAX).unwrap();
    let places: Vec<(u32, u32, u32)> = records.iter().map(|r| (r.change, r.record, r.records)).collect();
    assert_eq!(places, [(0, 0, 3), (0, 1, 3), (0, 2, 3), (1, 0, 1)]);
    let key = records[0].key.clone();
    assert!(
        key.is_some()
            && records[..3]
                .iter()
                .all(|r| r.key == key && r.value.len() + key.as_ref().unwrap().len() <= 1_000)
    );
    for record in &records {
        assert_eq!(record.checksum, record_checksum(record.key.as_deref(), Some(&record.value)));
    }
    let whole: Vec<u8> = records[..3].iter().flat_map(|r| r.value.to_vec()).collect();
    assert_eq!(shown(&RowChange::decode(whole.as_slice()).unwrap().after), values(&[(1, "7"), (2, &large)]));

    // The record of a claim check names the value, whole; a successor gives it the same name.
    let shape = Shape { large_row: LargeRow::ClaimCheck, ..shape };
    let mut rows = cluster.rows(vec![inserts(vec![row.clone(), insert(8, &[])])]).unwrap();
    let records = rows.next_slice(&shape, usize::MAX).unwrap();
    assert_eq!(records.iter().map(|r| (r.change, r.records)).collect::<Vec<_>>(), [(0, 1), (1, 1)]);
    let named = RowChange::decode(records[0].value.clone()).unwrap();
    assert_eq!((named.table.as_str(), named.after.len()), ("T", 0));
    let claim = records[0].claim.as_ref().unwrap();
    let check = named.claim.unwrap();
    assert_eq!((claim.name.as_str(), check.name.as_str()), ("0/101-0", "0/101-0"));
    assert_eq!(claim.content, whole);
    assert_eq!((check.length, check.checksum), (whole.len() as u64, crc32c::crc32c(&whole)));
    assert!(records[1].claim.is_none() && records[0].size() > whole.len());

    let shape = Shape { large_row: LargeRow::Stop, ..shape };
    let error = cluster.rows(vec![inserts(vec![row])]).unwrap().next_slice(&shape, 1).unwrap_err();
    assert!(matches!(error.fault, TranslateFault::TooLarge { limit: 1_000, .. }), "{error}");
}

/// However it is sliced, and wherever a successor goes on, the records are the same.
#[test]
fn slices_and_skips_give_the_same_records() {
    let mut cluster = Cluster::new();
    cluster.table(&[column(1, json!({})), column(2, json!({}))], json!({}));
    let all = || cluster.rows(vec![inserts((0..40).map(|i| insert(i, &[int(2, i * 3)])).collect())]).unwrap();
    let plain = |records: &[RowRecord]| -> Vec<(u32, Bytes)> {
        records.iter().map(|r| (r.change, r.value.clone())).collect()
    };
    let whole = plain(&all().next_slice(&SHAPE, usize::MAX).unwrap());
    assert_eq!(whole.len(), 40);
    for (skip, bytes) in [(0, 1), (0, 700), (13, 1), (39, 9_999), (40, 10)] {
        let mut rows = all();
        rows.skip(skip).unwrap();
        let mut got = Vec::new();
        loop {
            let slice = rows.next_slice(&SHAPE, bytes).unwrap();
            if slice.is_empty() {
                break;
            }
            got.extend(plain(&slice));
        }
        assert_eq!(got, whole[skip as usize..], "skip {skip}, slices of {bytes}");
    }
}

/// Values for columns that no DDL has made yet are handed out for holding, with what finds their row again.
#[test]
fn values_of_coming_columns_are_held() {
    let mut cluster = Cluster::new();
    cluster.table(&[column(1, json!({})), column(2, json!({}))], json!({"max_col_id": 3}));
    // 3 was dropped long ago, 4 is about to come.
    let row = insert(6, &[int(2, 1), int(3, 5), int(4, 9)]);
    let moved = update(&[int(1, 6), int(4, 9)], &[int(1, 7), int(4, 10)]);
    let gone: Bytes = pairs(&[int(1, 7), int(4, 10)]).into();
    let change = TableMutation {
        inserted_rows: vec![insert(5, &[int(2, 1)]), row],
        updated_rows: vec![moved],
        deleted_rows: vec![gone],
        sequence: vec![0, 0, 1, 4],
        ..mutation(50)
    };
    let mut rows = cluster.rows(vec![change.clone()]).unwrap();
    let records = rows.next_slice(&SHAPE, usize::MAX).unwrap();
    let keys: Vec<_> = records.iter().map(|r| RowIdentity { row_id: None, key: r.key.clone() }).collect();
    let held = rows.take_held();
    let seen: Vec<_> = held
        .iter()
        .map(|h| {
            let after = h.after.as_deref();
            (h.before.clone(), after.map(|(identity, row)| (identity.clone(), row.values.clone())))
        })
        .collect();
    assert_eq!(
        seen,
        [
            (None, Some((keys[1].clone(), vec![int(4, 9)]))),
            (Some(keys[1].clone()), Some((keys[2].clone(), vec![int(4, 10)]))),
            (Some(keys[2].clone()), None),
        ]
    );
    let (_, row) = held[0].after.as_deref().unwrap();
    assert_eq!(shown(&row.fields), values(&[(1, "6")]));
    // A successor that finds the transaction in the log holds the same.
    let mut again = TxnRows::of_written(&transaction(vec![change]), &cluster.tracker.definitions()).unwrap();
    again.skip(again.changes()).unwrap();
    assert_eq!(again.take_held(), held);
}

/// Older TiDBs list public columns only of a row that they delete, whatever it holds besides.
#[test]
fn a_deletion_that_lacks_a_coming_column_releases_its_row() {
    let mut cluster = Cluster::new();
    let index = json!({"id": 1, "idx_name": {"O": "k", "L": "k"}, "is_unique": true, "state": 5,
        "idx_cols": [{"name": {"O": "c2", "L": "c2"}, "offset": 1, "length": -1}]});
    let key = json!({"type": {"Tp": 8, "Flag": 1, "Flen": 20, "Decimal": 0, "Charset": "binary"}});
    cluster.table(
        &[column(1, json!({})), column(2, key)],
        json!({"max_col_id": 3, "pk_is_handle": false, "index_info": [index]}),
    );
    let row = |values: &[(i64, Datum)]| pairs(&[values, &[int(-1, 7)]].concat());
    let change = TableMutation {
        inserted_rows: vec![insert(7, &[int(1, 1), int(2, 5), int(4, 9)])],
        updated_rows: vec![[row(&[int(2, 5)]), row(&[int(2, 6)])].concat().into()],
        deleted_rows: vec![row(&[int(1, 1), int(2, 6)]).into(), row(&[int(1, 1)]).into()],
        sequence: vec![0, 1, 4, 4],
        ..mutation(50)
    };
    let mut rows = cluster.rows(vec![change]).unwrap();
    let records = rows.next_slice(&SHAPE, usize::MAX).unwrap();
    let held = rows.take_held();
    let seen: Vec<_> = held
        .iter()
        .map(|h| (h.before.clone(), h.after.as_deref().map(|(identity, _)| identity.clone())))
        .collect();
    let named = |key: &Option<Bytes>| Some(RowIdentity { row_id: Some(7), key: key.clone() });
    // An update carries what the row has, or there is nothing to hold. What lacks the key is told by its row id.
    let expected = [(None, named(&records[0].key)), (named(&records[2].key), None), (named(&None), None)];
    assert_eq!(seen, expected);
    assert!(records[0].key.is_some() && records[0].key != records[2].key);
}

/// The version that a transaction names orders nothing: it may be older than the table, or one that no job has.
#[test]
fn the_version_of_a_transaction_is_not_asked() {
    let mut cluster = Cluster::new();
    cluster.version = 40;
    cluster.table(&[column(1, json!({})), column(2, json!({"origin_default": "7"}))], json!({}));
    let expected = values(&[(1, "1"), (2, "7")]);
    for named in [0, 1, 39, 41, 42, 9_999] {
        let value =
            PrewriteValue { schema_version: Some(named), mutations: vec![inserts(vec![insert(1, &[])])] };
        let transaction = Transaction { payload: value.encode_to_vec().into(), ..transaction(Vec::new()) };
        let mut rows = TxnRows::new(&transaction, &cluster.tracker.definitions()).unwrap();
        let records = rows.next_slice(&SHAPE, usize::MAX).unwrap();
        assert_eq!(shown(&RowChange::decode(records[0].value.clone()).unwrap().after), expected, "{named}");
        assert_eq!(records[0].schema_version, 41);
    }
}

/// A TIMESTAMP default from before TiDB kept those in UTC: in a row that lacks the column, and in the schema topic.
#[test]
fn old_timestamp_defaults_are_read_in_the_upstream_s_time_zone() {
    let old = column(
        2,
        json!({
            "version": 0, "origin_default": "2019-07-15 12:00:00", "default": "2019-01-15 12:00:00",
            "type": {"Tp": 7, "Flag": 0, "Flen": 19, "Decimal": 0, "Charset": "binary", "Collate": "binary"},
        }),
    );
    let columns = [column(1, json!({})), old];
    let mut cluster = Cluster::new();
    cluster.table(&columns, json!({}));
    let error = cluster.rows(vec![inserts(vec![insert(1, &[])])]).unwrap().next_slice(&SHAPE, 1).unwrap_err();
    assert!(error.to_string().contains("upstream-time-zone") && error.to_string().contains("c2"), "{error}");
    assert!(cluster.tracker.unread_default().is_some());

    let mut cluster = Cluster::in_zone(Some(UpstreamZone::parse("+08:00").unwrap()));
    cluster.table(&columns, json!({}));
    assert_eq!(cluster.tracker.unread_default(), None);
    let change = cluster.changes(vec![inserts(vec![insert(1, &[])])]).remove(0);
    assert_eq!(shown(&change.after), values(&[(1, "1"), (2, "2019-07-15 04:00:00")]));
    let definitions = cluster.tracker.definitions();
    let written = definitions.table(50).unwrap().to_proto().tidb_json;
    let written: tidb::model::TableInfo = serde_json::from_slice(&written).unwrap();
    let literal = |text: &str| Some(tidb::model::Literal::from_text(text));
    assert_eq!(written.cols[1].version, 1);
    assert_eq!(written.cols[1].default, literal("2019-01-15 04:00:00"));
    assert_eq!(written.cols[1].origin_default, literal("2019-07-15 04:00:00"));
}

/// Rows that were written before a DDL and commit after it, and the other way round.
#[test]
fn rows_take_the_shape_of_their_place() {
    let mut cluster = Cluster::new();
    let (id, old, new) =
        (column(1, json!({})), column(2, json!({})), column(3, json!({"origin_default": "5"})));
    cluster.table(&[id.clone(), old.clone()], json!({"max_col_id": 2}));
    let with_new = || insert(1, &[int(2, 20), int(3, 30)]);
    let without = || insert(2, &[int(2, 20)]);
    let both = |cluster: &Cluster| cluster.changes(vec![inserts(vec![with_new(), without()])]);
    let changes = both(&cluster);
    assert_eq!(shown(&changes[0].after), values(&[(1, "1"), (2, "20")]));

    // ADD COLUMN: who lacks it has its origin_default; an update that lacks it did not touch it.
    let table = |columns: &[&serde_json::Value], name: &str| json!({"TableInfo": {"id": 50, "name": {"O": name, "L": name}, "cols": columns, "pk_is_handle": true, "max_col_id": 9}});
    cluster.run(5, 50, table(&[&id, &old, &new], "T"));
    let changes = both(&cluster);
    assert_eq!(shown(&changes[0].after), values(&[(1, "1"), (2, "20"), (3, "30")]));
    assert_eq!(shown(&changes[1].after), values(&[(1, "2"), (2, "20"), (3, "5")]));
    let updated = TableMutation {
        updated_rows: vec![update(&[int(1, 2), int(2, 20)], &[int(1, 2), int(2, 21)])],
        sequence: vec![1],
        ..mutation(50)
    };
    let change = cluster.changes(vec![updated]).remove(0);
    assert_eq!(shown(&change.before), values(&[(1, "2"), (2, "20")]));
    assert_eq!(shown(&change.after), values(&[(1, "2"), (2, "21")]));

    // A lossy MODIFY gives the column a new id; rows that carry both go by the new one.
    let changed = column(4, json!({"name": {"O": "c2", "L": "c2"}}));
    cluster.run(12, 50, table(&[&id, &changed, &new], "T"));
    let converted = insert(3, &[int(2, 20), int(3, 30), int(4, 40)]);
    assert_eq!(
        shown(&cluster.changes(vec![inserts(vec![converted])])[0].after),
        values(&[(1, "3"), (4, "40"), (3, "30")])
    );

    // DROP COLUMN and RENAME in one: what the row still has is not replicated, the name is the new one.
    cluster.run(61, 50, table(&[&id, &changed], "renamed"));
    let change = cluster.changes(vec![inserts(vec![insert(4, &[int(3, 30), int(4, 1)])])]).remove(0);
    assert_eq!((change.table.as_str(), shown(&change.after)), ("renamed", values(&[(1, "4"), (4, "1")])));
}

/// Jobs that were undone change nothing; FLASHBACK CLUSTER stops the feed, also where its own entry in the history looks
/// as if it still ran, but not where it was given up.
#[test]
fn jobs_by_their_state() {
    let mut cluster = Cluster::new();
    cluster.table(&[column(1, json!({}))], json!({}));
    let (done, rolled_back, cancelled, running) = (4, 3, 5, 1);
    let wider = json!({"TableInfo": {
        "id": 50, "name": {"O": "T", "L": "t"}, "cols": [column(1, json!({})), column(2, json!({}))], "pk_is_handle": true,
    }});
    for state in [rolled_back, cancelled] {
        let effect = cluster.try_run(5, 50, state, wider.clone()).unwrap();
        assert!(effect.after.is_empty());
        assert_eq!(cluster.tracker.definitions().table(50).unwrap().columns.len(), 1);
        assert!(cluster.try_run(62, 0, state, json!({})).is_ok());
    }
    for state in [done, running] {
        let error = cluster.try_run(62, 0, state, json!({})).unwrap_err().to_string();
        for words in ["FLASHBACK CLUSTER", "backup", "drainer-kafka --config", "--initial-commit-ts"] {
            assert!(error.contains(words), "{error}");
        }
    }
    assert_eq!(cluster.try_run(5, 50, done, wider).unwrap().after.len(), 1);
}

/// TiDB's own tables: rows and jobs of such that no job made are passed over, those of others stop the feed.
#[test]
fn system_tables_that_no_job_made() {
    let mut cluster = Cluster::new();
    let info = json!({"TableInfo": {"id": 77, "name": {"O": "x", "L": "x"}, "cols": [column(1, json!({}))]}});
    let in_mysql = |kind: u32, version: i64| {
        let mut binlog = info.clone();
        binlog["SchemaVersion"] = json!(version);
        json!({"id": version, "type": kind, "schema_id": 1, "schema_name": "mysql", "table_id": 77, "state": 6, "binlog": binlog})
    };
    for (kind, version) in [(4, 20), (5, 21), (4, 22)] {
        let job = serde_json::from_value(in_mysql(kind, version)).unwrap();
        cluster.tracker.apply(&job, CommitTs::new(1)).unwrap();
    }
    cluster.version = 30;
    let error = cluster.try_run(5, 77, 6, info).unwrap_err();
    assert!(matches!(error, SchemaError::UnknownTable { table_id: 77, .. }));

    let row = |table_id: i64| TableMutation { table_id: Some(table_id), ..inserts(vec![insert(1, &[])]) };
    let rows = cluster.rows(vec![row((1 << 48) - 5)]).unwrap();
    assert_eq!((rows.changes(), rows.filtered()), (0, 1));
    assert!(cluster.rows(vec![row((1 << 48) - 5000)]).is_err());
}
