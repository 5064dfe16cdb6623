//! Folding against a table that takes every change one after the other and keeps its keys unique.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails loudly")]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use consumers::event::{Change, ChangeKind, Row, Value};
use consumers::mysql::fold::{Anomalies, Fold, FoldedTable};
use consumers::schema::Table;
use proptest::prelude::*;
use schemas::sluice::v1::{Column, Key, Null, TableDefinition};

/// `(id INT PRIMARY KEY, u INT UNIQUE, v TEXT)`, or without the keys.
fn table(keyed: bool) -> Arc<Table> {
    let column = |id, name: &str, mysql_type, not_null| Column {
        id,
        name: name.into(),
        mysql_type,
        not_null,
        ..Default::default()
    };
    let key = |name: &str, primary, id| Key {
        name: name.into(),
        primary,
        column_ids: vec![id],
        prefix_lengths: vec![-1],
    };
    Arc::new(Table::new(TableDefinition {
        table_id: if keyed { 1 } else { 2 },
        version: 5,
        database: "d".into(),
        table: "t".into(),
        columns: vec![column(1, "id", 3, keyed), column(2, "u", 3, false), column(3, "v", 252, false)],
        unique_keys: if keyed { vec![key("PRIMARY", true, 1), key("u", false, 2)] } else { vec![] },
        ..Default::default()
    }))
}

type Plain = (i64, Option<i64>, String);

fn row(plain: &Plain) -> Row {
    let (id, u, v) = plain;
    let u = u.map_or(Value::Null(Null {}), Value::Int);
    vec![Some(Value::Int(*id)), Some(u), Some(Value::Text(v.clone()))].into()
}

fn plain(row: &Row) -> Plain {
    let Some(Value::Int(id)) = row[0] else { panic!("{row:?}") };
    let u = match row[1] {
        Some(Value::Int(u)) => Some(u),
        Some(Value::Null(_)) => None,
        _ => panic!("{row:?}"),
    };
    let Some(Value::Text(v)) = &row[2] else { panic!("{row:?}") };
    (id, u, v.clone())
}

fn change(table: &Arc<Table>, kind: ChangeKind) -> Change {
    Change { table: table.clone(), kind, cost: 10 }
}

/// What a session does next; keys are small, so that they meet.
#[derive(Clone, Debug)]
enum Op {
    /// INSERT, or REPLACE of whatever is in the way.
    Put(Plain),
    Delete(i64),
    /// UPDATE of the row with this id to another id, unique value and text.
    Update(i64, Plain),
    /// The unique values of two rows change places, one update each, through NULL.
    Swap(i64, i64),
    /// A downstream transaction ends here.
    Cut,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let plain = || (0..6_i64, proptest::option::of(0..4_i64), "[ab]{0,2}");
    let op = prop_oneof![
        4 => plain().prop_map(Op::Put),
        2 => (0..6_i64).prop_map(Op::Delete),
        4 => (0..6_i64, plain()).prop_map(|(id, to)| Op::Update(id, to)),
        1 => (0..6_i64, 0..6_i64).prop_map(|(a, b)| Op::Swap(a, b)),
        1 => Just(Op::Cut),
    ];
    proptest::collection::vec(op, 0..40)
}

/// The upstream: unique keys hold at every moment.
#[derive(Clone, Default, Debug, PartialEq)]
struct Upstream(BTreeMap<i64, Plain>);

impl Upstream {
    fn holder(&self, u: Option<i64>) -> Option<i64> {
        self.0.values().find(|row| u.is_some() && row.1 == u).map(|row| row.0)
    }

    fn set(&mut self, to: Plain, out: &mut Vec<ChangeKind>) {
        for id in [Some(to.0).filter(|id| self.0.contains_key(id)), self.holder(to.1)].into_iter().flatten() {
            if let Some(old) = self.0.remove(&id) {
                out.push(ChangeKind::Delete { before: row(&old) });
            }
        }
        out.push(ChangeKind::Insert { after: row(&to) });
        self.0.insert(to.0, to);
    }

    fn update(&mut self, id: i64, to: Plain, out: &mut Vec<ChangeKind>) {
        let Some(old) = self.0.get(&id).cloned() else { return };
        let taken = to.0 != id && self.0.contains_key(&to.0);
        if taken || self.holder(to.1).is_some_and(|holder| holder != id) {
            return;
        }
        self.0.remove(&id);
        self.0.insert(to.0, to.clone());
        out.push(ChangeKind::Update { before: row(&old), after: row(&to) });
    }

    fn swap(&mut self, a: i64, b: i64, out: &mut Vec<ChangeKind>) {
        let (Some(first), Some(second)) = (self.0.get(&a).cloned(), self.0.get(&b).cloned()) else { return };
        if a == b {
            return;
        }
        self.update(a, (first.0, None, first.2.clone()), out);
        self.update(b, (second.0, first.1, second.2), out);
        self.update(a, (first.0, second.1, first.2), out);
    }
}

/// The downstream: refuses what a database would refuse.
#[derive(Default)]
struct Downstream(BTreeMap<i64, Plain>);

impl Downstream {
    fn apply(&mut self, tables: &[FoldedTable]) {
        for folded in tables {
            for before in &folded.deletes {
                assert!(self.0.remove(&plain(before).0).is_some(), "deletes {before:?}, which is not there");
            }
            for (before, after) in &folded.updates {
                let (before, after) = (plain(before), plain(after));
                assert_eq!((before.0, before.1), (after.0, after.1), "an update touches a unique key");
                assert!(self.0.insert(after.0, after).is_some(), "updates a row that is not there");
            }
            for after in &folded.inserts {
                let after = plain(after);
                let unique = after.1.is_none() || self.0.values().all(|row| row.1 != after.1);
                assert!(unique, "inserts {after:?} against the unique key");
                assert!(self.0.insert(after.0, after).is_none(), "inserts a row that is there");
            }
            assert!(folded.counted_deletes.is_empty() && folded.tail.is_empty());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_net_change_leads_to_the_same_table(ops in ops()) {
        let table = table(true);
        let (mut upstream, mut downstream) = (Upstream::default(), Downstream::default());
        let mut fold = Fold::new();
        for op in ops.into_iter().chain([Op::Cut]) {
            let mut out = Vec::new();
            match op {
                Op::Put(to) => upstream.set(to, &mut out),
                Op::Delete(id) => {
                    if let Some(old) = upstream.0.remove(&id) {
                        out.push(ChangeKind::Delete { before: row(&old) });
                    }
                }
                Op::Update(id, to) => upstream.update(id, to, &mut out),
                Op::Swap(a, b) => upstream.swap(a, b, &mut out),
                Op::Cut => {
                    let (tables, anomalies) = std::mem::take(&mut fold).finish();
                    prop_assert_eq!(anomalies, Anomalies::default());
                    downstream.apply(&tables);
                    prop_assert_eq!(&downstream.0, &upstream.0);
                }
            }
            for kind in out {
                fold.add(change(&table, kind));
            }
        }
    }

    /// Without keys, equal rows are counted.
    #[test]
    fn rows_without_a_key_are_counted(ops in proptest::collection::vec((0..3_u8, 0..2_i64, 0..2_i64), 0..60)) {
        let table = table(false);
        let mut upstream: Vec<Plain> = vec![(0, None, String::new()); 2];
        let mut downstream = upstream.clone();
        let mut fold = Fold::new();
        for (op, a, b) in ops {
            let plain = |id: i64| (id, None, String::new());
            let at = upstream.iter().position(|row| row.0 == a);
            let kind = match (op, at) {
                (0, _) => {
                    upstream.push(plain(a));
                    ChangeKind::Insert { after: row(&plain(a)) }
                }
                (1, Some(at)) => {
                    upstream.remove(at);
                    ChangeKind::Delete { before: row(&plain(a)) }
                }
                (_, Some(at)) => {
                    upstream[at] = plain(b);
                    ChangeKind::Update { before: row(&plain(a)), after: row(&plain(b)) }
                }
                _ => continue,
            };
            fold.add(change(&table, kind));
        }
        let (tables, _) = fold.finish();
        for folded in &tables {
            for (before, times) in &folded.counted_deletes {
                for _ in 0..*times {
                    let at = downstream.iter().position(|found| *found == plain(before));
                    downstream.remove(at.expect("deletes a row that is not there"));
                }
            }
            downstream.extend(folded.inserts.iter().map(plain));
            prop_assert!(folded.updates.is_empty() && folded.deletes.is_empty());
        }
        downstream.sort();
        upstream.sort();
        prop_assert_eq!(downstream, upstream);
    }
}

fn finish(kinds: Vec<ChangeKind>, keyed: bool) -> (FoldedTable, Anomalies) {
    let table = table(keyed);
    let mut fold = Fold::new();
    kinds.into_iter().for_each(|kind| fold.add(change(&table, kind)));
    let (mut tables, anomalies) = fold.finish();
    (tables.remove(0), anomalies)
}

fn p(id: i64, u: i64, v: &str) -> Row {
    row(&(id, Some(u), v.to_owned()))
}

#[test]
fn a_phantom_delete_is_healed_by_the_update_after_it() {
    let delete = ChangeKind::Delete { before: p(1, 1, "a") };
    let update = ChangeKind::Update { before: p(1, 1, "a"), after: p(1, 1, "b") };
    let (folded, anomalies) = finish(vec![delete.clone(), update], true);
    assert_eq!(folded.updates, [(p(1, 1, "a"), p(1, 1, "b"))]);
    assert_eq!(anomalies, Anomalies { update_of_missing: 1, ..Default::default() });
    let (folded, anomalies) = finish(vec![delete.clone(), delete], true);
    assert_eq!((folded.deletes.len(), anomalies.delete_of_missing), (1, 1));
}

#[test]
fn a_row_recorded_twice_is_inserted_once() {
    let insert = ChangeKind::Insert { after: p(1, 1, "a") };
    let (folded, anomalies) = finish(vec![insert.clone(), insert], true);
    assert_eq!(folded.inserts, [p(1, 1, "a")]);
    assert_eq!(anomalies, Anomalies { insert_of_present: 1, ..Default::default() });
}

fn without(mut row: Row, place: usize) -> Row {
    row[place] = None;
    row
}

#[test]
fn columns_that_an_image_lacks_keep_their_value() {
    let insert = ChangeKind::Insert { after: p(1, 1, "a") };
    let update = ChangeKind::Update { before: without(p(1, 1, "a"), 2), after: without(p(2, 7, "x"), 2) };
    let (folded, anomalies) = finish(vec![insert, update.clone()], true);
    assert_eq!(folded.inserts, [p(2, 7, "a")]);
    assert_eq!(anomalies.total(), 0);
    // Of a row that was there before, the unknown column is not made up: it is updated, not deleted and inserted.
    let same_id = ChangeKind::Update { before: without(p(1, 1, "a"), 2), after: without(p(1, 7, "x"), 2) };
    let (folded, _) = finish(vec![same_id], true);
    assert_eq!(folded.updates, [(without(p(1, 1, "a"), 2), without(p(1, 7, "x"), 2))]);
    assert!(folded.deletes.is_empty() && folded.inserts.is_empty());
}

#[test]
fn without_a_key_partial_images_keep_their_place() {
    let insert = ChangeKind::Insert { after: p(1, 1, "a") };
    let partial = ChangeKind::Delete { before: without(p(1, 1, "a"), 2) };
    let (folded, _) = finish(vec![insert.clone(), partial.clone(), insert.clone()], false);
    assert_eq!(folded.inserts, [p(1, 1, "a")]);
    assert_eq!(folded.tail, [partial, insert]);
}

/// While a stored column is being dropped, inserted rows have NULL there and deleted ones what it was.
#[test]
fn without_a_key_rows_are_the_same_whatever_is_generated() {
    let mut definition = table(false).definition.clone();
    (definition.columns[2].generated, definition.columns[2].generated_stored) = (true, true);
    let table = Arc::new(Table::new(definition));
    let mut inserted = p(1, 1, "");
    inserted[2] = Some(Value::Null(Null {}));
    for gone in [p(1, 1, "a"), without(p(1, 1, "a"), 2)] {
        let mut fold = Fold::new();
        fold.add(change(&table, ChangeKind::Insert { after: inserted.clone() }));
        fold.add(change(&table, ChangeKind::Delete { before: gone }));
        let folded = fold.finish().0.remove(0);
        assert_eq!((folded.counted_deletes, folded.inserts, folded.tail), (vec![], vec![], vec![]));
    }
}

#[test]
fn tables_keep_their_order_and_versions_stay_apart() {
    let (keyed, unkeyed) = (table(true), table(false));
    let mut newer = keyed.definition.clone();
    newer.version = 6;
    let newer = Arc::new(Table::new(newer));
    let mut fold = Fold::new();
    for table in [&unkeyed, &keyed, &newer, &unkeyed] {
        fold.add(change(table, ChangeKind::Insert { after: p(1, 1, "a") }));
    }
    let order: HashMap<(i64, i64), usize> =
        fold.finish().0.iter().enumerate().map(|(at, f)| ((f.table.id(), f.table.version()), at)).collect();
    assert_eq!((order[&(2, 5)], order[&(1, 5)], order[&(1, 6)]), (0, 1, 2));
}

/// A column of the key is being dropped: the row is found by what is left.
#[test]
fn from_an_image_without_its_key_on_changes_keep_their_order() {
    let kinds = [
        ChangeKind::Insert { after: p(1, 1, "a") },
        ChangeKind::Delete { before: without(p(2, 2, "b"), 0) },
        ChangeKind::Delete { before: p(1, 1, "a") },
    ];
    let (folded, anomalies) = finish(kinds.to_vec(), true);
    assert_eq!(folded.inserts, [p(1, 1, "a")]);
    assert_eq!(folded.tail, kinds[1..]);
    assert_eq!(anomalies, Anomalies::default());
}

/// A column is being dropped while a row gets another key: what the row has there is not in the log, so it is not made anew.
#[test]
fn a_row_whose_key_changes_keeps_what_its_image_lacks() {
    let moved = ChangeKind::Update { before: without(p(1, 1, "a"), 2), after: without(p(2, 1, "a"), 2) };
    let later = ChangeKind::Delete { before: p(3, 3, "c") };
    for clustered in [true, false] {
        let finish = |kinds: &[ChangeKind]| {
            if clustered { finish(kinds.to_vec(), true) } else { finish_by_unique_key(kinds) }
        };
        let (folded, anomalies) = finish(&[moved.clone(), later.clone()]);
        assert_eq!((folded.deletes, folded.inserts), (vec![], vec![]));
        assert_eq!(folded.tail, [moved.clone(), later.clone()]);
        assert_eq!(anomalies, Anomalies::default());
        // Here it is known from the row's insertion.
        let insert = ChangeKind::Insert { after: p(1, 1, "a") };
        let (folded, _) = finish(&[insert, moved.clone()]);
        assert_eq!((folded.inserts, folded.tail), (vec![p(2, 1, "a")], vec![]));
    }
}

/// `(id INT NOT NULL UNIQUE, …)`: a key that the upstream may be dropping.
fn finish_by_unique_key(kinds: &[ChangeKind]) -> (FoldedTable, Anomalies) {
    let mut definition = table(true).definition.clone();
    definition.unique_keys.remove(0);
    definition.unique_keys[0].column_ids = vec![1];
    let table = Arc::new(Table::new(definition));
    assert!(!table.has_lasting_identity() && table.identity() == Some(&[0]));
    let mut fold = Fold::new();
    kinds.iter().for_each(|kind| fold.add(change(&table, kind.clone())));
    let (mut tables, anomalies) = fold.finish();
    (tables.remove(0), anomalies)
}

#[test]
fn rows_equal_in_a_unique_key_that_is_being_dropped_are_two_rows() {
    let insert = |v| ChangeKind::Insert { after: p(1, 1, v) };
    let delete = |v| ChangeKind::Delete { before: p(1, 1, v) };
    let update = |from, to| ChangeKind::Update { before: p(1, 1, from), after: p(1, 1, to) };
    let moved = |from: Row, to: Row| ChangeKind::Update { before: from, after: to };
    for (kinds, in_order) in [
        // Each list, and how many of its changes fold; the rest keep their order.
        (vec![insert("a"), insert("b"), delete("a")], 1),
        (vec![update("a", "b"), delete("c"), update("b", "d")], 1),
        (vec![delete("a"), delete("b"), insert("c")], 1),
        (vec![delete("a"), update("b", "c")], 1),
        (vec![insert("a"), moved(p(2, 2, "x"), p(1, 2, "x"))], 1),
        (vec![update("a", "b"), moved(p(1, 1, "z"), p(3, 1, "z"))], 1),
        (vec![delete("a"), insert("b"), update("b", "c"), moved(p(1, 1, "c"), p(2, 1, "c"))], 4),
    ] {
        let (folded, anomalies) = finish_by_unique_key(&kinds);
        assert_eq!(folded.tail, kinds[in_order..], "{kinds:?}");
        assert_eq!(anomalies, Anomalies::default(), "{kinds:?}");
    }
}

/// The same change twice, as REORGANIZE PARTITION records it, is one.
#[test]
fn a_doubled_change_by_a_unique_key_is_one() {
    let insert = ChangeKind::Insert { after: p(1, 1, "a") };
    let update = ChangeKind::Update { before: p(1, 1, "a"), after: p(1, 1, "b") };
    let moved = ChangeKind::Update { before: p(1, 1, "b"), after: p(2, 1, "b") };
    let delete = ChangeKind::Delete { before: p(2, 1, "b") };
    let twice = |kinds: &[&ChangeKind]| -> Vec<ChangeKind> {
        kinds.iter().flat_map(|kind| [(*kind).clone(), (*kind).clone()]).collect()
    };
    let (folded, anomalies) = finish_by_unique_key(&twice(&[&insert, &update]));
    assert_eq!((folded.inserts, folded.tail), (vec![p(1, 1, "b")], vec![]));
    assert_eq!((anomalies.insert_of_present, anomalies.update_of_missing), (1, 1));
    let (folded, anomalies) = finish_by_unique_key(&twice(&[&update, &moved, &delete]));
    assert_eq!((folded.deletes, folded.tail), (vec![p(1, 1, "a")], vec![]));
    assert_eq!((anomalies.update_of_missing, anomalies.delete_of_missing), (2, 1));
}
