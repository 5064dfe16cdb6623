//! The statements that net changes become, word for word.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails loudly")]

use std::sync::Arc;

use bytes::Bytes;
use consumers::event::{Change, ChangeKind, Row, Value};
use consumers::mysql::fold::Fold;
use consumers::mysql::session::Target;
use consumers::mysql::sql::{Kind, Renderer, Statement};
use consumers::schema::Table;
use schemas::sluice::v1::{Column, Json, Key, Null, TableDefinition};

const INT: i32 = 3;
const DATETIME: i32 = 12;
const VARCHAR: i32 = 15;
const JSON: i32 = 245;
const ENUM: i32 = 247;
const BLOB: i32 = 252;

fn table(columns: &[(&str, i32)], keys: &[&[i64]]) -> Arc<Table> {
    let columns = columns
        .iter()
        .zip(1..)
        .map(|((name, mysql_type), id)| {
            let text = *mysql_type == VARCHAR;
            let (charset, collate) =
                if text { ("utf8mb4", "utf8mb4_general_ci") } else { ("binary", "binary") };
            let not_null = keys.first().is_some_and(|key| key.contains(&id));
            Column {
                id,
                name: (*name).into(),
                mysql_type: *mysql_type,
                charset: charset.into(),
                collate: collate.into(),
                not_null,
                generated: name.starts_with("gen"),
                generated_stored: name.starts_with("gen"),
                ..Default::default()
            }
        })
        .collect();
    let key = |(index, ids): (usize, &&[i64])| Key {
        primary: index == 0,
        column_ids: ids.to_vec(),
        ..Default::default()
    };
    Arc::new(Table::new(TableDefinition {
        table_id: 1,
        version: 1,
        database: "d".into(),
        table: "t`x".into(),
        columns,
        unique_keys: keys.iter().enumerate().map(key).collect(),
        ..Default::default()
    }))
}

fn row(values: Vec<Value>) -> Row {
    values.into_iter().map(Some).collect()
}

fn int(v: i64) -> Value {
    Value::Int(v)
}

fn text(v: &str) -> Value {
    Value::Text(v.into())
}

fn insert(values: Vec<Value>) -> ChangeKind {
    ChangeKind::Insert { after: row(values) }
}

fn update(before: Vec<Value>, after: Vec<Value>) -> ChangeKind {
    ChangeKind::Update { before: row(before), after: row(after) }
}

fn delete(values: Vec<Value>) -> ChangeKind {
    ChangeKind::Delete { before: row(values) }
}

fn render_for(version: &str, rows: usize, table: &Arc<Table>, kinds: Vec<ChangeKind>) -> Vec<Statement> {
    let mut fold = Fold::new();
    for kind in kinds {
        fold.add(Change { table: table.clone(), kind, cost: 1 });
    }
    let renderer = Renderer { target: Target::from_version(version), rows, bytes: 1 << 20 };
    renderer.render(&fold.finish().0).unwrap()
}

fn render(table: &Arc<Table>, kinds: Vec<ChangeKind>) -> Vec<(Kind, u64, String)> {
    render_for("10.11.6-MariaDB", 100, table, kinds).into_iter().map(|s| (s.kind, s.rows, s.sql)).collect()
}

fn sql(kind: Kind, rows: u64, sql: &str) -> (Kind, u64, String) {
    (kind, rows, sql.to_owned())
}

#[test]
fn deletes_then_updates_then_inserts() {
    let table = table(&[("id", INT), ("u", INT), ("v", VARCHAR)], &[&[1], &[2]]);
    let statements = render(
        &table,
        vec![
            insert(vec![int(7), int(70), text("it's")]),
            insert(vec![int(8), int(80), Value::Null(Null {})]),
            update(vec![int(1), int(10), text("a")], vec![int(1), int(10), text("b")]),
            update(vec![int(2), int(20), text("a")], vec![int(2), int(20), text("c")]),
            // Its unique key moves.
            update(vec![int(3), int(30), text("a")], vec![int(3), int(31), text("a")]),
            delete(vec![int(4), int(40), text("a")]),
        ],
    );
    assert_eq!(
        statements,
        [
            sql(Kind::Delete, 2, "DELETE FROM `d`.`t``x` WHERE `id` IN (3,4)"),
            sql(
                Kind::Update,
                2,
                "UPDATE `d`.`t``x` t JOIN (SELECT 1 AS k0,'b' AS c2 UNION ALL SELECT 2,'c') d ON t.`id`=d.k0 SET t.`v`=d.c2"
            ),
            sql(
                Kind::Insert,
                3,
                "INSERT INTO `d`.`t``x` (`id`,`u`,`v`) VALUES (7,70,'it\\'s'),(8,80,NULL),(3,31,'a')"
            ),
        ]
    );
}

#[test]
fn several_key_columns_and_a_collation() {
    let table = table(&[("k", VARCHAR), ("n", INT), ("v", INT)], &[&[1, 2]]);
    let statements = render(
        &table,
        vec![
            update(vec![text("a"), int(1), int(0)], vec![text("a"), int(1), int(5)]),
            update(vec![text("b"), int(2), int(0)], vec![text("b"), int(2), int(6)]),
            delete(vec![text("c"), int(3), int(0)]),
            delete(vec![text("d"), int(4), int(0)]),
        ],
    );
    assert_eq!(
        statements,
        [
            sql(
                Kind::Delete,
                2,
                "DELETE FROM `d`.`t``x` WHERE (`k` = 'c' AND `n` = 3) OR (`k` = 'd' AND `n` = 4)"
            ),
            sql(
                Kind::Update,
                2,
                "UPDATE `d`.`t``x` t JOIN (SELECT 'a' AS k0,1 AS k1,5 AS c2 UNION ALL SELECT 'b',2,6) d ON t.`k`=d.k0 COLLATE \
                 utf8mb4_general_ci AND t.`n`=d.k1 SET t.`v`=d.c2"
            ),
        ]
    );
}

#[test]
fn keys_that_do_not_join_are_updated_one_by_one() {
    let table = table(&[("at", DATETIME), ("v", INT)], &[&[1]]);
    let at = |text: &str| Value::Datetime(text.into());
    let statements = render(
        &table,
        vec![
            update(vec![at("2024-01-01 00:00:00"), int(0)], vec![at("2024-01-01 00:00:00"), int(1)]),
            update(vec![at("0000-00-00 00:00:00"), int(0)], vec![at("0000-00-00 00:00:00"), int(2)]),
        ],
    );
    assert_eq!(
        statements,
        [
            sql(Kind::Update, 1, "UPDATE `d`.`t``x` SET `v`=1 WHERE `at` = '2024-01-01 00:00:00'"),
            sql(Kind::Update, 1, "UPDATE `d`.`t``x` SET `v`=2 WHERE `at` = '0000-00-00 00:00:00'"),
        ]
    );
}

#[test]
fn statements_are_cut_by_rows() {
    let table = table(&[("id", INT), ("v", INT)], &[&[1]]);
    let inserts = (0..5).map(|id| insert(vec![int(id), int(0)])).collect();
    let rows: Vec<u64> =
        render_for("8.0.36", 2, &table, inserts).iter().map(|statement| statement.rows).collect();
    assert_eq!(rows, [2, 2, 1]);
}

#[test]
fn generated_columns_make_themselves() {
    let table = table(&[("id", INT), ("gen", INT), ("v", INT)], &[&[1]]);
    let statements = render(
        &table,
        vec![
            insert(vec![int(1), int(2), int(3)]),
            update(vec![int(5), int(2), int(3)], vec![int(5), int(4), int(3)]),
        ],
    );
    assert_eq!(
        statements,
        [
            // Only the generated column changed: a statement that still finds the row.
            sql(Kind::Update, 1, "UPDATE `d`.`t``x` SET `id`=5 WHERE `id` = 5"),
            sql(Kind::Insert, 1, "INSERT INTO `d`.`t``x` (`id`,`v`) VALUES (1,3)"),
        ]
    );
}

#[test]
fn rows_without_a_key_are_matched_exactly_and_counted() {
    let table = table(&[("a", INT), ("b", VARCHAR), ("j", JSON)], &[]);
    let json = Value::Json(Json { text: "{}".into(), binary: Bytes::new() });
    let gone = || delete(vec![Value::Null(Null {}), text("x"), json.clone()]);
    let statements = render(&table, vec![gone(), gone()]);
    assert_eq!(
        statements,
        [sql(
            Kind::Delete,
            2,
            "DELETE FROM `d`.`t``x` WHERE `a` <=> NULL AND `b` <=> 'x' AND CAST(CONVERT(`b` USING utf8mb4) AS BINARY) <=> \
             CAST('x' AS BINARY) AND `j` <=> '{}' AND CAST(CONVERT(`j` USING utf8mb4) AS BINARY) <=> CAST('{}' AS BINARY) \
             LIMIT 2"
        )]
    );
    let on_mysql = render_for("8.0.36", 100, &table, vec![gone()]);
    assert!(on_mysql[0].sql.contains("`j` <=> CAST('{}' AS JSON) LIMIT 1"), "{}", on_mysql[0].sql);
}

#[test]
fn large_values_are_bound_and_go_alone() {
    let table = table(&[("id", INT), ("b", BLOB)], &[&[1]]);
    let large = || Value::Bytes(vec![7; 100_000].into());
    let small = || Value::Bytes(Bytes::from_static(b"\x01"));
    let statements = render_for(
        "10.11.6-MariaDB",
        100,
        &table,
        vec![
            insert(vec![int(1), small()]),
            insert(vec![int(2), large()]),
            insert(vec![int(3), small()]),
            update(vec![int(4), small()], vec![int(4), large()]),
            update(vec![int(5), small()], vec![int(5), Value::Bytes(Bytes::new())]),
        ],
    );
    let shown: Vec<(&str, usize)> = statements.iter().map(|s| (s.sql.as_str(), s.params.len())).collect();
    assert_eq!(
        shown,
        [
            ("UPDATE `d`.`t``x` t JOIN (SELECT 5 AS k0,x'' AS c1) d ON t.`id`=d.k0 SET t.`b`=d.c1", 0),
            ("UPDATE `d`.`t``x` SET `b`=? WHERE `id` = 4", 1),
            ("INSERT INTO `d`.`t``x` (`id`,`b`) VALUES (1,x'01')", 0),
            ("INSERT INTO `d`.`t``x` (`id`,`b`) VALUES (2,?)", 1),
            ("INSERT INTO `d`.`t``x` (`id`,`b`) VALUES (3,x'01')", 0),
        ]
    );
}

#[test]
fn an_enum_s_error_value_needs_a_lenient_mode() {
    let table = table(&[("id", INT), ("e", ENUM)], &[&[1]]);
    let lenient =
        |value| render_for("8.0.36", 10, &table, vec![insert(vec![int(1), Value::Enum(value)])])[0].lenient;
    assert!(lenient(0));
    assert!(!lenient(1));
}

/// A generated column follows from the others, and the target may compute it otherwise.
#[test]
fn a_row_without_a_key_is_not_found_by_what_is_generated() {
    let mut definition = table(&[("a", INT), ("g", INT)], &[]).definition.clone();
    definition.columns[1].generated = true;
    definition.columns[1].generated_stored = true;
    let table = Arc::new(Table::new(definition));
    let statements = render(&table, vec![delete(vec![int(1), int(2)])]);
    assert_eq!(statements, [sql(Kind::Delete, 1, "DELETE FROM `d`.`t``x` WHERE `a` <=> 1 LIMIT 1")]);
}

/// A key that is no primary key may be on its way out: then a row is found by all its values, and only by them.
#[test]
fn a_row_whose_key_is_being_dropped_is_found_by_its_values() {
    let mut definition = table(&[("k", INT), ("v", INT)], &[&[1]]).definition.clone();
    definition.unique_keys[0].primary = false;
    definition.columns[0].not_null = true;
    let table = Arc::new(Table::new(definition));
    let mut fold = Fold::new();
    let without_key = ChangeKind::Delete { before: vec![None, Some(int(9))].into() };
    let kinds = [
        update(vec![int(1), int(1)], vec![int(1), int(2)]),
        delete(vec![int(3), int(3)]),
        without_key,
        delete(vec![int(4), int(4)]),
    ];
    kinds.into_iter().for_each(|kind| fold.add(Change { table: table.clone(), kind, cost: 1 }));
    let folded = fold.finish().0;
    let renderer = Renderer { target: Target::from_version("10.11.6-MariaDB"), rows: 100, bytes: 1 << 20 };
    let singles = renderer.render_singles(&folded).unwrap();
    let said: Vec<(&str, Option<&str>)> = singles
        .iter()
        .map(|single| (single.statement.sql.as_str(), single.exact.as_ref().map(|exact| exact.sql.as_str())))
        .collect();
    assert_eq!(
        said,
        [
            (
                "DELETE FROM `d`.`t``x` WHERE `k` = 3",
                Some("DELETE FROM `d`.`t``x` WHERE `k` <=> 3 AND `v` <=> 3 LIMIT 1")
            ),
            (
                "UPDATE `d`.`t``x` SET `v`=2 WHERE `k` = 1",
                Some("UPDATE `d`.`t``x` SET `k`=1,`v`=2 WHERE `k` <=> 1 AND `v` <=> 1 LIMIT 1")
            ),
            // Several may look like this one: then it stops.
            ("DELETE FROM `d`.`t``x` WHERE `v` <=> 9", None),
            ("DELETE FROM `d`.`t``x` WHERE `k` <=> 4 AND `v` <=> 4 LIMIT 1", None),
        ]
    );
}
