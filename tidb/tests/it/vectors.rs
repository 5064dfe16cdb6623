//! The published vectors of whole rows and records, bytes written out.

use bytes::Bytes;
use prost::Message;
use schemas::binlog::{MutationType, PrewriteValue};
use tidb::{
    binlog::{self, Change, Header, Kind, MutationBuilder},
    decimal::Decimal,
    json::Json,
    key::{Handle, record},
    model::{ColumnInfo, FieldType, IndexColumn, IndexInfo, Name, SchemaState, TableInfo, flag, tp},
    row::{
        Collation, RowFault, RowImage, decode_delete, decode_insert, decode_update, encode_delete,
        encode_insert, encode_update,
    },
    time::Time,
    ts::{CommitTs, StartTs},
    value::Value,
};

pub(crate) fn hex(text: &str) -> Bytes {
    let text: String = text.split_whitespace().collect();
    (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap()).collect()
}

pub(crate) fn column(id: i64, name: &str, field_type: FieldType) -> ColumnInfo {
    ColumnInfo {
        id,
        name: Name::new(name),
        offset: id as usize - 1,
        field_type,
        state: SchemaState::Public,
        version: 2,
        ..ColumnInfo::default()
    }
}

pub(crate) fn field(tp: u8, flag: u64, flen: i64, decimal: i64) -> FieldType {
    FieldType {
        tp,
        flag,
        flen,
        decimal,
        charset: "binary".into(),
        collate: "binary".into(),
        ..FieldType::default()
    }
}

pub(crate) fn text(tp: u8, flag: u64, flen: i64, collate: &str) -> FieldType {
    FieldType { charset: "utf8mb4".into(), collate: collate.into(), ..field(tp, flag, flen, 0) }
}

fn table_a() -> TableInfo {
    let set = FieldType {
        elems: ["a", "b", "c"].map(str::to_owned).to_vec().into(),
        ..text(tp::SET, 0, 5, "utf8mb4_bin")
    };
    TableInfo {
        id: 104,
        name: Name::new("a"),
        pk_is_handle: true,
        cols: vec![
            column(1, "id", field(tp::LONGLONG, flag::NOT_NULL | flag::PRI_KEY, 20, 0)),
            column(2, "name", text(tp::VARCHAR, 0, 20, "utf8mb4_bin")),
            column(3, "amt", field(tp::NEW_DECIMAL, 0, 10, 2)),
            column(4, "ts", field(tp::TIMESTAMP, 0, 23, 3)),
            column(5, "f", set),
            column(6, "doc", field(tp::JSON, 0, -1, 0)),
        ]
        .into(),
        ..TableInfo::default()
    }
}

fn row_a(name: &'static str, doc: Value) -> Vec<(i64, Value)> {
    vec![
        (1, Value::Int(7)),
        (2, Value::Text(Bytes::from_static(name.as_bytes()))),
        (3, Value::Decimal(Decimal::parse("12.50", 10, 2).unwrap())),
        (4, Value::Timestamp(Time::parse("2023-05-17 10:20:30.123", 3).unwrap())),
        (5, Value::Set(5)),
        (6, doc),
    ]
}

const INSERT_A: &str = "080e 080402 06626f62 0806060a028000000c32 080809f8c087f0d1d488d819 080a0905";

#[test]
fn table_a_insert() {
    let blob = hex(INSERT_A);
    assert_eq!(blob.len(), 35);
    let image = decode_insert(&table_a(), &blob).unwrap();
    assert_eq!(image.columns, row_a("bob", Value::Null)[..5]);
    assert_eq!((image.row_id, image.unknown.len()), (None, 0));
    assert!(image.is_from_handle(1) && !image.is_from_handle(2));
    assert_eq!(encode_insert(&image), blob);
    // NULL without any default is left out.
    let built = RowImage::for_insert(&table_a(), &row_a("bob", Value::Null), None, Collation::New).unwrap();
    assert_eq!(built, image);
}

#[test]
fn table_a_update_and_delete() {
    let before = "0802080e08040206626f620806060a028000000c32080809f8c087f0d1d488d819080a0905080c00";
    let after = "0802080e08040204626f0806060a028000000c32080809f8c087f0d1d488d819080a0905\
                 080c0a01010000001c0000001300000001000914000000610100000000000000";
    let old = row_a("bob", Value::Null);
    let new = row_a("bo", Value::Json(Json::parse("{\"a\":1}").unwrap()));
    let blob = hex(&format!("{before}{after}"));
    let (decoded_old, decoded_new) = decode_update(&table_a(), &blob).unwrap();
    assert_eq!((&decoded_old.columns, &decoded_new.columns), (&old, &new));
    assert_eq!(encode_update(&decoded_old, &decoded_new), blob);
    let deleted = decode_delete(&table_a(), &hex(after)).unwrap();
    assert_eq!(deleted.columns, new);
    assert_eq!(encode_delete(&deleted), hex(after));
    assert_eq!(RowImage::for_change(&table_a(), &new, None, true).unwrap(), deleted);
}

fn ints(id: i64, count: i64) -> TableInfo {
    let names = ["c1", "c2"];
    TableInfo {
        id,
        name: Name::new("ints"),
        cols: (1..=count)
            .map(|i| column(i, names[i as usize - 1], field(tp::LONG, 0, 11, 0)))
            .collect::<Vec<_>>()
            .into(),
        ..TableInfo::default()
    }
}

#[test]
fn without_primary_key() {
    let table = ints(9, 2);
    let blob = hex("08060802080408040806");
    let image = decode_insert(&table, &blob).unwrap();
    assert_eq!(image.row_id, Some(3));
    assert_eq!(image.columns, [(1, Value::Int(2)), (2, Value::Int(3))]);
    assert_eq!(encode_insert(&image), blob);
    let blob = hex("080208040804080608010806 080208060804080608010806");
    let (before, after) = decode_update(&table, &blob).unwrap();
    assert_eq!((before.row_id, after.row_id), (Some(3), Some(3)));
    assert_eq!(before.columns, [(1, Value::Int(2)), (2, Value::Int(3))]);
    assert_eq!(after.columns, [(1, Value::Int(3)), (2, Value::Int(3))]);
    assert_eq!(encode_update(&before, &after), blob);
    let built = RowImage::for_change(&table, &after.columns, Some(3), false).unwrap();
    assert_eq!(built, after);
    assert!(RowImage::for_insert(&table, &after.columns, None, Collation::New).is_err());
}

#[test]
fn nothing_but_the_key() {
    let mut table = ints(9, 1);
    table.pk_is_handle = true;
    table.cols.as_mut_slice()[0].field_type.flag = flag::NOT_NULL | flag::PRI_KEY;
    let image = decode_insert(&table, &hex("080200")).unwrap();
    assert_eq!(image.columns, [(1, Value::Int(1))]);
    assert_eq!(encode_insert(&image), hex("080200"));

    let key = &mut table.cols.as_mut_slice()[0].field_type;
    (key.tp, key.flag) = (tp::LONGLONG, flag::NOT_NULL | flag::PRI_KEY | flag::UNSIGNED);
    let image = decode_insert(&table, &hex("080100")).unwrap();
    assert_eq!(image.columns, [(1, Value::Uint(u64::MAX))]);
    assert_eq!(encode_insert(&image), hex("080100"));
    assert_eq!(RowImage::for_insert(&table, &image.columns, None, Collation::New).unwrap(), image);
    let image = decode_delete(&table, &hex("080209ffffffffffffffffff01")).unwrap();
    assert_eq!(image.columns, [(1, Value::Uint(u64::MAX))]);
    assert_eq!(encode_delete(&image), hex("080209ffffffffffffffffff01"));
}

fn table_b(collate: &str) -> TableInfo {
    let part = |name: &str, offset| IndexColumn { name: Name::new(name), offset, length: -1 };
    TableInfo {
        id: 105,
        name: Name::new("b"),
        is_common_handle: true,
        cols: vec![
            column(1, "k", text(tp::VARCHAR, flag::NOT_NULL | flag::PRI_KEY, 10, collate)),
            column(2, "d", field(tp::DATE, flag::NOT_NULL | flag::PRI_KEY, 10, 0)),
            column(3, "v", field(tp::LONG, 0, 11, 0)),
        ]
        .into(),
        index_info: vec![IndexInfo {
            id: 1,
            name: Name::new("PRIMARY"),
            idx_cols: vec![part("k", 0), part("d", 1)].into(),
            is_unique: true,
            is_primary: true,
            ..IndexInfo::default()
        }]
        .into(),
        ..TableInfo::default()
    }
}

#[test]
fn clustered_by_strings() {
    let table = table_b("utf8mb4_bin");
    let blob = hex("02046162 098080808080c0aed919 08020206616220 0806080a");
    let values = vec![
        (1, Value::Text(Bytes::from_static(b"ab "))),
        (2, Value::Date(Time::parse("2024-02-29", 0).unwrap())),
        (3, Value::Int(5)),
    ];
    let image = decode_insert(&table, &blob).unwrap();
    // The date comes from the handle; of the string the handle has the sort key, the row the value.
    assert_eq!(image.columns, [values[1].clone(), values[0].clone(), values[2].clone()]);
    assert_eq!(encode_insert(&image), blob);
    assert_eq!(RowImage::for_insert(&table, &values, None, Collation::New).unwrap(), image);

    let deleted = hex("08020206616220 0804098080808080c0aed919 0806080a");
    assert_eq!(decode_delete(&table, &deleted).unwrap().columns, values);
    assert_eq!(encode_delete(&RowImage::for_change(&table, &values, None, true).unwrap()), deleted);

    // A sort key of general_ci is no value; the row has it.
    let blob = hex("020800410042 098080808080c0aed919 08020204 4162 0806080a");
    let image = decode_insert(&table_b("utf8mb4_general_ci"), &blob).unwrap();
    assert_eq!(image.get(1), Some(&Value::Text(Bytes::from_static(b"Ab"))));
    assert_eq!(encode_insert(&image), blob);
    let refused = RowImage::for_insert(&table_b("utf8mb4_general_ci"), &values, None, Collation::New);
    assert!(refused.unwrap_err().to_string().contains("utf8mb4_general_ci"));
}

#[test]
fn prefix_columns_come_from_the_row() {
    let mut table = table_b("utf8mb4_bin");
    let mut index = table.index_info[0].clone();
    index.idx_cols.as_mut_slice()[0].length = 2;
    table.index_info = vec![index].into();
    let values = vec![
        (1, Value::Text(Bytes::from_static("äöü".as_bytes()))),
        (2, Value::Date(Time::ZERO)),
        (3, Value::Null),
    ];
    let image = RowImage::for_insert(&table, &values, None, Collation::Old).unwrap();
    let blob = Bytes::from(encode_insert(&image));
    assert_eq!(blob, hex("0208c3a4c3b6 0900 08020 20cc3a4c3b6c3bc"));
    assert_eq!(decode_insert(&table, &blob).unwrap(), image);
}

#[test]
fn ids_without_definition_are_kept() {
    let table = ints(9, 1);
    // Columns 5 and 6 are unknown, 1 is known; row id 3.
    let blob = hex("0806 080a020278 08020804 080c00");
    let image = decode_insert(&table, &blob).unwrap();
    assert_eq!(image.columns, [(1, Value::Int(2))]);
    assert_eq!(image.unknown.iter().map(|u| (u.id, u.at)).collect::<Vec<_>>(), [(5, 0), (6, 1)]);
    assert_eq!(encode_insert(&image), blob);
}

#[test]
fn faults_name_the_place() {
    let table = ints(9, 2);
    let error = decode_delete(&table, &hex("080208040804020261")).unwrap_err();
    assert_eq!((error.table_id, error.column.as_deref(), error.at), (9, Some("c2"), 9));
    assert!(
        error.to_string().starts_with("row of table ints (id 9), byte 9, column c2: a byte string datum"),
        "{error}"
    );
    let error = decode_delete(&table, &hex("0802080408020804")).unwrap_err();
    assert_eq!(error.fault, RowFault::Repeated(1));
    // c2 has a value before the update only.
    let error = decode_update(&table, &hex("08020804080408060802 0806")).unwrap_err();
    assert_eq!(error.fault, RowFault::Unpaired(2));
    let error = decode_update(&table, &hex("08020804")).unwrap_err();
    assert_eq!(error.fault, RowFault::Unpaired(1));
    assert!(
        decode_insert(&table, &hex("02026108020804")).unwrap_err().to_string().contains("integer handle")
    );
}

#[test]
fn envelope() {
    let key = record(104, &Handle::Int(7));
    assert_eq!(key, hex("7480000000000000685f728000000000000007"));
    let mut mutation = MutationBuilder::new(104);
    mutation.insert(hex(INSERT_A));
    let value = PrewriteValue { schema_version: Some(57), mutations: vec![mutation.build()] };
    let value_bytes = binlog::encode_value(&value);
    let row: String = INSERT_A.split_whitespace().collect();
    assert_eq!(value_bytes, hex(&format!("08391229 08681223 {row} 3800")));
    assert_eq!(value_bytes.len(), 45);

    let prewrite = Header::prewrite(StartTs::new(441_534_075_403_763_717), key.clone().into(), &value);
    let key_hex = "7480000000000000685f728000000000000007";
    let p = hex(&format!(
        "0800108580b0c5ef9ca9900618002213 {key_hex} 2a2d 08391229 08681223 {row} 3800 38004000"
    ));
    assert_eq!(prewrite.encode(), p);
    assert_eq!(Header::decode(p).unwrap(), prewrite);

    let commit = prewrite.committed(CommitTs::new(441_534_075_405_598_721));
    let c = hex(&format!("0801108580b0c5ef9ca99006188180a0c6ef9ca990062213 {key_hex} 38004000"));
    assert_eq!(commit.encode(), c);
    assert_eq!(Header::decode(c).unwrap(), commit);
    assert_eq!(prewrite.rolled_back().kind, Kind::Rollback);
}

#[test]
fn sequence_is_written_unpacked_and_read_either_way() {
    let (a, b, c) = (hex("01"), hex("02"), hex("03"));
    let mut mutation = MutationBuilder::new(1);
    mutation.delete(a.clone()).insert(b.clone()).update(c.clone());
    let mutation = mutation.build();
    let bytes = mutation.encode_to_vec();
    assert!(bytes.ends_with(&hex("380438003801")));
    let packed = [&bytes[..bytes.len() - 6], &hex("3a03040001")].concat();
    let read = schemas::binlog::TableMutation::decode(&packed[..]).unwrap();
    assert_eq!(read, mutation);
    let changes: Vec<_> = binlog::changes(&read).map(Result::unwrap).collect();
    assert_eq!(changes, [Change::Delete(&a), Change::Insert(&b), Change::Update(&c)]);
}

#[test]
fn sequence_must_match_the_rows() {
    let mut mutation = MutationBuilder::new(1);
    mutation.insert(hex("00"));
    let good = mutation.build();
    let errors = |mutation: &schemas::binlog::TableMutation| {
        binlog::changes(mutation).filter_map(Result::err).map(|e| e.to_string()).collect::<Vec<_>>()
    };
    assert!(errors(&good).is_empty());
    let mut more = good.clone();
    more.sequence.push(MutationType::Update as i32);
    assert_eq!(errors(&more), ["table 1: the sequence of changes and the rows do not match at place 1"]);
    let mut left = good.clone();
    left.deleted_rows.push(hex("00"));
    assert_eq!(errors(&left), ["table 1: the sequence of changes and the rows do not match at place 1"]);
    let mut dead = good;
    dead.sequence[0] = MutationType::DeletePk as i32;
    assert_eq!(errors(&dead), ["table 1: mutation type 3 at place 0 is not insert, update or delete row"]);
}

#[test]
fn record_types() {
    for tp in [3, 4, 9] {
        assert!(
            Header::decode(Bytes::from(vec![0x08, tp])).unwrap_err().to_string().contains(&tp.to_string())
        );
    }
    assert!(Header::decode(hex("0aff")).is_err());
    // A v3.0 record without ddl_schema_state.
    let old = Header::decode(hex("08001001 1800 3800")).unwrap();
    assert_eq!((old.kind, old.start_ts, old.ddl_schema_state), (Kind::Prewrite, StartTs::new(1), 0));
    let setval =
        Header { ddl_query: Bytes::from_static(b"SELECT SETVAL(`d`.`s`, 7);"), ddl_job_id: 5, ..old };
    assert!(setval.is_ddl() && setval.is_sequence_value());
}
