//! Values at their extremes go in and come out as they are, whatever zone and mode the server has.

use bytes::Bytes;
use schemas::sluice::v1::{Json, Null};

use super::*;

const COLUMNS: [(&str, i32, &str); 24] = [
    ("id", 3, "INT PRIMARY KEY"),
    ("i", 8, "BIGINT"),
    ("iu", 8, "BIGINT UNSIGNED"),
    ("f", 4, "FLOAT"),
    ("d", 5, "DOUBLE"),
    ("n", 246, "DECIMAL(65,30)"),
    ("da", 10, "DATE"),
    ("dt", 12, "DATETIME(6)"),
    ("ts", 7, "TIMESTAMP(6) NULL"),
    ("ti", 11, "TIME(6)"),
    ("y", 13, "YEAR"),
    ("c", 254, "CHAR(10) CHARACTER SET utf8mb4"),
    ("vc", 15, "VARCHAR(200) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin"),
    ("tx", 252, "LONGTEXT CHARACTER SET utf8mb4"),
    ("b", 254, "BINARY(4)"),
    ("vb", 15, "VARBINARY(100)"),
    ("bl", 252, "LONGBLOB"),
    ("e", 247, "ENUM('a','it''s')"),
    ("s", 248, "SET('x','y','z')"),
    ("bi", 16, "BIT(64)"),
    ("j", 245, "JSON"),
    ("l1", 15, "VARCHAR(20) CHARACTER SET latin1"),
    ("weird `n.m", 3, "INT"),
    ("ai", 3, "INT"),
];

fn definition() -> Arc<Table> {
    let columns = COLUMNS
        .iter()
        .zip(1..)
        .map(|((name, kind, _), id)| {
            let text = matches!(*name, "c" | "vc" | "tx" | "l1");
            let charset = if text { "utf8mb4" } else { "binary" };
            Column { charset: charset.into(), ..column(id, name, *kind) }
        })
        .collect();
    table(1, "v", "t", columns, &[&[1]])
}

fn low() -> Vec<Value> {
    vec![
        Value::Int(1),
        Value::Int(i64::MIN),
        Value::Uint(0),
        Value::Float(f32::MIN),
        Value::Double(f64::MIN_POSITIVE),
        Value::Decimal(format!("-{}.{}", "9".repeat(35), "9".repeat(30))),
        Value::Date("0000-00-00".into()),
        Value::Datetime("0000-00-00 00:00:00.000000".into()),
        Value::Timestamp("0000-00-00 00:00:00.000000".into()),
        Value::Time("-838:59:59.000000".into()),
        Value::Int(0),
        text(""),
        text("it's \"q\" \\ \n\r\0\u{1a}%_"),
        text(&"x".repeat(100_000)),
        Value::Bytes(Bytes::from_static(b"\0\0\0\0")),
        Value::Bytes(Bytes::from_static(b"")),
        Value::Bytes(vec![0xff; 300_000].into()),
        Value::Enum(0),
        Value::Set(0),
        Value::Bit(0),
        Value::Json(Json { text: "{\"a\": [1, \"é\\n\", null]}".into(), binary: Bytes::new() }),
        text("café"),
        Value::Int(0),
        Value::Int(0),
    ]
}

fn high() -> Vec<Value> {
    vec![
        Value::Int(2),
        Value::Int(i64::MAX),
        Value::Uint(u64::MAX),
        Value::Float(0.1),
        Value::Double(f64::MAX),
        Value::Decimal("0.000000000000000000000000000001".into()),
        Value::Date("2023-02-31".into()),
        Value::Datetime("9999-12-31 23:59:59.999999".into()),
        Value::Timestamp("2038-01-19 03:14:07.999999".into()),
        Value::Time("838:59:59.000000".into()),
        Value::Int(2155),
        text("青😀"),
        text("`; DROP TABLE t; --"),
        text(""),
        Value::Bytes(Bytes::from_static(b"\xff\0'\\")),
        Value::Bytes(Bytes::from_static(b"\x80\xff")),
        Value::Bytes(Bytes::new()),
        Value::Enum(2),
        Value::Set(5),
        Value::Bit(u64::MAX),
        Value::Json(Json { text: "-0.1".into(), binary: Bytes::new() }),
        text(""),
        Value::Int(7),
        Value::Int(-1),
    ]
}

fn nulls() -> Vec<Value> {
    let mut row = vec![Value::Null(Null {}); COLUMNS.len()];
    row[0] = Value::Int(3);
    row
}

/// As the server shows a column, in hexadecimal.
fn select() -> String {
    let columns: Vec<String> = COLUMNS
        .iter()
        .map(|(name, kind, sql)| {
            let name = crate::mysql::literal::quoted(name);
            let binary = sql.contains("BINARY") || sql.contains("BLOB");
            match kind {
                252 | 254 | 15 if binary => format!("COALESCE(HEX({name}), 'NULL')"),
                4 | 5 => format!("COALESCE(CAST({name} AS DOUBLE), 'NULL')"),
                16 | 247 | 248 => format!("COALESCE(CAST({name} + 0 AS CHAR), 'NULL')"),
                252 | 254 | 15 => format!("COALESCE(HEX(CONVERT({name} USING utf8mb4)), 'NULL')"),
                _ => format!("COALESCE(CAST({name} AS CHAR), 'NULL')"),
            }
        })
        .collect();
    format!("SELECT {} FROM v.t ORDER BY id", columns.join(", "))
}

/// What the server should show.
fn shown(value: &Value, binary: bool) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02X}")).collect::<String>();
    match value {
        Value::Null(_) => "NULL".into(),
        Value::Int(v) => v.to_string(),
        Value::Uint(v) | Value::Enum(v) | Value::Set(v) | Value::Bit(v) => v.to_string(),
        Value::Float(v) => f64::from(*v).to_string(),
        Value::Double(v) => v.to_string(),
        Value::Text(text) => hex(text.as_bytes()),
        Value::Bytes(bytes) => {
            assert!(binary);
            hex(bytes)
        }
        Value::Json(json) => json.text.clone(),
        Value::Decimal(text)
        | Value::Date(text)
        | Value::Datetime(text)
        | Value::Timestamp(text)
        | Value::Time(text) => text.clone(),
    }
}

async fn stored(server: &Server) -> Vec<Vec<String>> {
    let mut session = server.session().await;
    let rows: Vec<mysql_async::Row> = session.conn.query(select()).await.unwrap();
    let text = |value: &mysql_async::Value| match value {
        mysql_async::Value::Bytes(bytes) => String::from_utf8(bytes.clone()).unwrap(),
        mysql_async::Value::Double(v) => v.to_string(),
        other => panic!("{other:?}"),
    };
    // The server spells exponents in its own way: numbers are compared as numbers.
    let number = |text: String| text.parse::<f64>().map_or(text, |number| number.to_string());
    let cell = |(value, (_, kind, _)): (&mysql_async::Value, &(&str, i32, &str))| match kind {
        4 | 5 => number(text(value)),
        _ => text(value),
    };
    rows.into_iter().map(|row| row.unwrap().iter().zip(&COLUMNS).map(cell).collect()).collect()
}

fn expected(rows: &[Vec<Value>]) -> Vec<Vec<String>> {
    let rows = rows.iter().map(|row| {
        let mut out: Vec<String> = row.iter().map(|value| shown(value, true)).collect();
        out[10] = if out[10] == "0" { "0000".into() } else { out[10].clone() };
        out
    });
    rows.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extremes_survive() {
    let server = Server::start().await;
    let columns: Vec<String> = COLUMNS
        .iter()
        .map(|(name, _, sql)| format!("{} {sql}", crate::mysql::literal::quoted(name)))
        .collect();
    server.run("CREATE DATABASE v").await;
    server.run(&format!("CREATE TABLE v.t ({})", columns.join(", "))).await;
    let table = definition();
    let insert = |values: Vec<Value>| ChangeKind::Insert { after: row(values) };
    let config = server.config("values");
    let events = vec![txn(1, &table, vec![insert(low()), insert(high()), insert(nulls())]), end(1)];
    apply(&config, events).await.unwrap();
    compare(&stored(&server).await, &expected(&[low(), high(), nulls()]));
    // Every value by an update, both ways; alone and joined.
    let with_id = |mut values: Vec<Value>, id: i64| {
        values[0] = Value::Int(id);
        values
    };
    let update =
        |before: Vec<Value>, after: Vec<Value>| ChangeKind::Update { before: row(before), after: row(after) };
    let events = vec![
        txn(
            2,
            &table,
            vec![
                update(low(), with_id(high(), 1)),
                update(high(), with_id(nulls(), 2)),
                update(nulls(), with_id(low(), 3)),
            ],
        ),
        end(2),
    ];
    apply(&config, events).await.unwrap();
    compare(&stored(&server).await, &expected(&[with_id(high(), 1), with_id(nulls(), 2), with_id(low(), 3)]));
}

fn compare(found: &[Vec<String>], expected: &[Vec<String>]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        for (place, (name, ..)) in COLUMNS.iter().enumerate() {
            let short = |text: &str| text.chars().take(80).collect::<String>();
            assert!(
                found[place] == expected[place],
                "{name}: {} instead of {}",
                short(&found[place]),
                short(&expected[place])
            );
        }
    }
}

/// Rows without a key are found by all their columns, exactly.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_without_a_key_are_found_by_their_values() {
    let server = Server::start().await;
    let columns: Vec<String> = COLUMNS
        .iter()
        .map(|(name, _, sql)| {
            format!("{} {}", crate::mysql::literal::quoted(name), sql.replace(" PRIMARY KEY", ""))
        })
        .collect();
    server.run("CREATE DATABASE v").await;
    server.run(&format!("CREATE TABLE v.t ({})", columns.join(", "))).await;
    let keyed = definition();
    let table = table(1, "v", "t", keyed.columns().to_vec(), &[]);
    let insert = |values: Vec<Value>| ChangeKind::Insert { after: row(values) };
    let delete = |values: Vec<Value>| ChangeKind::Delete { before: row(values) };
    let config = server.config("keyless");
    let rows = || [low(), high(), nulls(), nulls()];
    apply(&config, vec![txn(1, &table, rows().map(insert).into()), end(1)]).await.unwrap();
    assert_eq!(stored(&server).await.len(), 4);
    apply(&config, vec![txn(2, &table, vec![delete(low()), delete(nulls())]), end(2)]).await.unwrap();
    compare(&stored(&server).await, &expected(&[high(), nulls()]));
    apply(&config, vec![txn(3, &table, vec![delete(high()), delete(nulls())]), end(3)]).await.unwrap();
    assert_eq!(stored(&server).await.len(), 0);
}
