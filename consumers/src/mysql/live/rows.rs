//! Random changes, in random batches, against a model that takes them one by one.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::test_runner::{Config as ProptestConfig, RngAlgorithm, TestRng, TestRunner};
use schemas::sluice::v1::Null;

use super::*;

/// Tables whose rows are told apart in every way there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Shape {
    /// INT primary key, a unique key that may be NULL.
    IntAndUnique,
    /// Two columns, one of them text that ignores case.
    TextPair,
    /// DATETIME: not joinable.
    Time,
    /// No key.
    None,
}

const SHAPES: [Shape; 4] = [Shape::IntAndUnique, Shape::TextPair, Shape::Time, Shape::None];

impl Shape {
    fn sql(self) -> &'static str {
        match self {
            Self::IntAndUnique => {
                "CREATE TABLE m.a (k INT PRIMARY KEY, u INT UNIQUE, v VARCHAR(20) CHARACTER SET utf8mb4)"
            }
            Self::TextPair => {
                "CREATE TABLE m.b (k VARCHAR(10) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci, u INT, v VARCHAR(20) \
                 CHARACTER SET utf8mb4, PRIMARY KEY (k, u))"
            }
            Self::Time => {
                "CREATE TABLE m.c (k DATETIME PRIMARY KEY, u INT, v VARCHAR(20) CHARACTER SET utf8mb4)"
            }
            Self::None => {
                "CREATE TABLE m.d (k VARCHAR(10) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci, u INT, v VARCHAR(20) \
                 CHARACTER SET utf8mb4)"
            }
        }
    }

    fn table(self) -> Arc<Table> {
        let string = |id, name: &str, collate: &str| Column {
            charset: "utf8mb4".into(),
            collate: collate.into(),
            ..column(id, name, 15)
        };
        let v = string(3, "v", "utf8mb4_bin");
        let u = column(2, "u", 3);
        let ci = string(1, "k", "utf8mb4_general_ci");
        match self {
            Self::IntAndUnique => table(1, "m", "a", vec![column(1, "k", 3), u, v], &[&[1], &[2]]),
            Self::TextPair => table(2, "m", "b", vec![ci, u, v], &[&[1, 2]]),
            Self::Time => table(3, "m", "c", vec![column(1, "k", 12), u, v], &[&[1]]),
            Self::None => table(4, "m", "d", vec![ci, u, v], &[]),
        }
    }

    fn key(self, k: u8) -> Value {
        match self {
            Self::IntAndUnique => Value::Int(i64::from(k)),
            // The same to the collation, not to us: a key that changes its case.
            Self::TextPair | Self::None => text(["a", "A", "b`'\\", "青", "é", ""][usize::from(k) % 6]),
            Self::Time => Value::Datetime(format!("2024-02-{:02} 00:00:00", k + 1)),
        }
    }

    /// What a unique key is compared by.
    fn identity(self, (k, u, _): &Plain) -> Option<(u8, Option<u8>)> {
        match self {
            Self::IntAndUnique | Self::Time => Some((*k, None)),
            Self::TextPair => Some((if k % 6 == 1 { 0 } else { k % 6 }, Some(u.unwrap_or(0)))),
            Self::None => None,
        }
    }
}

type Plain = (u8, Option<u8>, u8);

fn image(shape: Shape, (k, u, v): &Plain) -> Row {
    let u = match (shape, u) {
        (Shape::TextPair, u) => Value::Int(i64::from(u.unwrap_or(0))),
        (_, Some(u)) => Value::Int(i64::from(*u)),
        (_, None) => Value::Null(Null {}),
    };
    row(vec![shape.key(*k), u, text(&format!("v{v}'"))])
}

#[derive(Clone, Debug)]
enum Op {
    Insert(usize, Plain),
    Update(usize, prop::sample::Index, Plain),
    Delete(usize, prop::sample::Index),
    /// The upstream transaction ends.
    Commit,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let plain = || (0..6_u8, proptest::option::of(0..4_u8), 0..3_u8);
    let op = prop_oneof![
        4 => (0..4_usize, plain()).prop_map(|(shape, row)| Op::Insert(shape, row)),
        4 => (0..4_usize, any::<prop::sample::Index>(), plain()).prop_map(|(shape, at, row)| Op::Update(shape, at, row)),
        2 => (0..4_usize, any::<prop::sample::Index>()).prop_map(|(shape, at)| Op::Delete(shape, at)),
        3 => Just(Op::Commit),
    ];
    proptest::collection::vec(op, 1..80)
}

/// True if the row may stand beside the others (without the one at `except`).
fn fits(shape: Shape, rows: &[Plain], row: &Plain, except: Option<usize>) -> bool {
    rows.iter().enumerate().filter(|(at, _)| Some(*at) != except).all(|(_, other)| {
        let same_key = shape.identity(row).is_some() && shape.identity(row) == shape.identity(other);
        let same_unique = shape == Shape::IntAndUnique && row.1.is_some() && row.1 == other.1;
        !same_key && !same_unique
    })
}

async fn check(server: &Server, number: u64, ops: Vec<Op>, batch_rows: usize) {
    for shape in SHAPES {
        server.run(&format!("TRUNCATE TABLE m.{}", shape.table().name())).await;
    }
    let mut model: BTreeMap<Shape, Vec<Plain>> = BTreeMap::new();
    let mut events = Vec::new();
    let (mut seq, mut open) = (1, false);
    for op in ops.into_iter().chain([Op::Commit]) {
        let (shape, kind) = match op {
            Op::Commit => {
                events.push(slice(seq, &SHAPES[0].table(), vec![], true));
                seq += 1;
                open = false;
                continue;
            }
            Op::Insert(shape, row) => {
                let shape = SHAPES[shape];
                let rows = model.entry(shape).or_default();
                if !fits(shape, rows, &row, None) {
                    continue;
                }
                rows.push(row);
                (shape, ChangeKind::Insert { after: image(shape, &row) })
            }
            Op::Update(shape, at, row) => {
                let shape = SHAPES[shape];
                let rows = model.entry(shape).or_default();
                if rows.is_empty() {
                    continue;
                }
                let at = at.index(rows.len());
                if !fits(shape, rows, &row, Some(at)) {
                    continue;
                }
                let before = std::mem::replace(&mut rows[at], row);
                (shape, ChangeKind::Update { before: image(shape, &before), after: image(shape, &row) })
            }
            Op::Delete(shape, at) => {
                let shape = SHAPES[shape];
                let rows = model.entry(shape).or_default();
                if rows.is_empty() {
                    continue;
                }
                let before = rows.remove(at.index(rows.len()));
                (shape, ChangeKind::Delete { before: image(shape, &before) })
            }
        };
        open = true;
        events.push(slice(seq, &shape.table(), vec![kind], false));
    }
    assert!(!open);
    events.push(end(seq - 1));
    let mut config = server.config(&format!("rows{number}"));
    config.apply.batch_rows = batch_rows;
    config.apply.statement_rows = 3;
    apply(&config, events).await.unwrap();
    for shape in SHAPES {
        let mut expected: Vec<Vec<String>> = model
            .get(&shape)
            .into_iter()
            .flatten()
            .map(|plain| image(shape, plain).iter().map(|value| shown(value.as_ref().unwrap())).collect())
            .collect();
        expected.sort();
        let name = shape.table().name().to_owned();
        let mut found: Vec<Vec<String>> = server
            .rows::<(String, Option<i64>, String)>(&format!("SELECT CAST(k AS CHAR), u, v FROM m.{name}"))
            .await
            .into_iter()
            .map(|(k, u, v)| vec![k, u.map_or("NULL".into(), |u| u.to_string()), v])
            .collect();
        found.sort();
        assert_eq!(found, expected, "{shape:?}");
    }
    let at: Vec<(u64, u64)> =
        server.rows(&format!("SELECT seq, commit_ts FROM meta_rows{number}.progress")).await;
    assert_eq!(at, [(seq - 1, (seq - 1) * 10)]);
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null(_) => "NULL".into(),
        Value::Int(v) => v.to_string(),
        Value::Text(text) | Value::Datetime(text) => text.clone(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn random_changes_leave_what_the_model_has() {
    let server = Server::start().await;
    server.run("CREATE DATABASE m").await;
    for shape in SHAPES {
        server.run(shape.sql()).await;
    }
    // The same cases each time: what fails once can be looked at.
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[7; 32]);
    let mut runner = TestRunner::new_with_rng(ProptestConfig::default(), rng);
    for number in 0..30 {
        let ops = ops().new_tree(&mut runner).unwrap().current();
        // Small limits cut transactions into pieces.
        let batch_rows = [1, 4, 1000][number as usize % 3];
        check(&server, number, ops, batch_rows).await;
    }
}
