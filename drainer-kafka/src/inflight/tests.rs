//! What is held, and what of it follows a DDL.

use std::sync::Arc;

use schemas::sluice::v1::field::Value as V;
use serde_json::json;

use super::*;
use crate::filter::{Filter, FilterRules};
use crate::routing::Routing;
use crate::schema::{Definitions, Tracker};
use crate::sequence::RowLayout;

fn column(id: i64, name: &str, default: Option<&str>) -> serde_json::Value {
    json!({
        "id": id, "name": {"O": name, "L": name}, "state": 5, "origin_default": default,
        "type": {"Tp": 8, "Flag": if id == 1 { 3 } else { 0 }, "Flen": 20, "Decimal": 0, "Charset": "binary"},
    })
}

fn table(columns: Vec<serde_json::Value>, max_column: i64) -> serde_json::Value {
    json!({
        "id": 50, "name": {"O": "t", "L": "t"}, "cols": columns, "pk_is_handle": true, "max_col_id": max_column,
    })
}

/// The table before and after a job that adds columns 3 (default 7) and 4 (no default).
fn definitions() -> (Arc<Definition>, Arc<Definition>) {
    let layout = RowLayout { topics: vec![("t".to_owned(), 1)] };
    let routing = Routing::new(Filter::new(FilterRules::default()).unwrap(), layout);
    let mut tracker = Tracker::new(Arc::new(routing));
    let old = vec![column(1, "id", None), column(2, "a", None)];
    let mut new = old.clone();
    new.extend([column(3, "b", Some("7")), column(4, "c", None)]);
    let find = |definitions: &Definitions| definitions.table(50).unwrap().clone();
    let database = json!({"id": 9, "db_name": {"O": "d", "L": "d"}});
    let jobs = [
        json!({"id": 1, "type": 1, "schema_id": 9, "state": 6, "binlog": {"SchemaVersion": 1, "DBInfo": database}}),
        json!({"id": 2, "type": 3, "schema_id": 9, "state": 6, "binlog": {"SchemaVersion": 2, "TableInfo": table(old, 2)}}),
        json!({"id": 3, "type": 61, "schema_id": 9, "state": 6, "binlog": {"SchemaVersion": 9, "TableInfo": table(new, 4)}}),
    ];
    let mut made = Vec::new();
    for job in jobs {
        tracker.apply(&serde_json::from_value(job).unwrap(), CommitTs::default()).unwrap();
        made.push(tracker.definitions());
    }
    (find(&made[1]), find(&made[2]))
}

fn int(column_id: i64, value: i64) -> Field {
    Field { column_id, value: Some(V::Int(value)) }
}

fn identity(row: i64) -> RowIdentity {
    RowIdentity { row_id: None, key: Some(Bytes::from(vec![row as u8])) }
}

/// An inserted row that has all of the definition's columns.
fn brought(row: i64, values: &[(i64, i64)]) -> HeldChange {
    let values = values.iter().map(|(id, value)| (*id, Datum::Int(*value))).collect();
    let write = Write { lacking: Vec::new(), before: None, lacking_is_null: true };
    let after = HeldRow { fields: vec![int(1, row)], values, writes: vec![write] };
    HeldChange { definition: definitions().0, before: None, after: Some(Box::new((identity(row), after))) }
}

/// A write of a row that lacks column 2, whose place column 3 takes; `before` is what column 3 held.
fn replaced(row: i64, before: Option<i64>, after: Datum) -> HeldChange {
    let mut change = brought(row, &[]);
    let (_, held) = change.after.as_deref_mut().unwrap();
    held.values = vec![(3, after)];
    let before = before.map(|value| vec![(3, Datum::Int(value))]);
    change.before = before.is_some().then(|| identity(row));
    held.writes = vec![Write { lacking: vec![2], before, lacking_is_null: true }];
    change
}

/// The table before and after column `from` (2) became column 3 of another type, with this name.
fn type_change(from: &str, to: &str) -> (Definition, Definition) {
    let (before, after) = definitions();
    let (mut before, mut after) = ((*before).clone(), (*after).clone());
    before.info.cols.as_mut_slice()[1].name = tidb::model::Name::new(from);
    let mut columns = after.info.cols.to_vec();
    columns.retain(|column| [1, 3].contains(&column.id));
    columns[1].name = tidb::model::Name::new(to);
    columns[1].origin_default = None;
    after.info.cols = columns.into();
    after.columns = vec![0, 1];
    (before, after)
}

const BUDGET: usize = 64 << 20;

fn null(column_id: i64) -> Field {
    Field { column_id, value: Some(V::Null(schemas::sluice::v1::Null {})) }
}

#[test]
fn only_what_the_ddl_does_not_give_follows_it() {
    let (before, after) = definitions();
    let mut inflight = InFlight::new(BUDGET);
    let changes = vec![brought(1, &[(3, 7)]), brought(2, &[(3, 8), (4, 5)]), brought(3, &[(3, 9)])];
    assert_eq!(inflight.strangers(&changes), HashSet::from([50]));
    inflight.learn(50, &changes, None);
    assert!(inflight.strangers(&changes).is_empty());
    inflight.take(CommitTs::new(100), changes).unwrap();
    assert_eq!(inflight.oldest(), Some(CommitTs::new(100)));
    // Row 3 goes away again, row 2 is written once more.
    let gone = HeldChange { definition: before.clone(), before: Some(identity(3)), after: None };
    let again = HeldChange { before: Some(identity(2)), ..brought(2, &[(3, 8), (4, 6)]) };
    inflight.take(CommitTs::new(110), vec![gone, again]).unwrap();
    let updates = inflight.fulfil(&before, &after, &[]).unwrap();
    let expected = Fulfilled {
        before: vec![int(1, 2), int(3, 7), null(4)],
        after: vec![int(1, 2), int(3, 8), int(4, 6)],
    };
    assert_eq!(updates, [expected]);
    assert_eq!((inflight.oldest(), inflight.bytes), (None, 0));
}

#[test]
fn a_known_default_is_not_held() {
    let (_, after) = definitions();
    let mut inflight = InFlight::new(BUDGET);
    let changes = vec![brought(1, &[(3, 7)]), brought(2, &[(3, 8)])];
    inflight.learn(50, &changes, Some(&after.info));
    inflight.take(CommitTs::new(100), vec![changes[0].clone()]).unwrap();
    assert_eq!(inflight.oldest(), None);
    inflight.take(CommitTs::new(101), vec![changes[1].clone()]).unwrap();
    assert_eq!(inflight.oldest(), Some(CommitTs::new(101)));
    inflight.dropped(50);
    assert_eq!((inflight.oldest(), inflight.bytes), (None, 0));
}

/// A row that carries both ids went out under the old one: the DDL converts that.
#[test]
fn a_type_change_is_left_to_the_ddl_where_the_row_has_both_ids() {
    let (before, after) = type_change("b", "b");
    // What TiDB shows while it runs: the column and, not public yet, what takes its place.
    let mut shown = before.info.clone();
    let mut target = after.info.cols[1].clone();
    target.name = tidb::model::Name::new("_Col$_b_0");
    target.change_state_info = Some(tidb::model::ChangeStateInfo { relative_column_offset: 1 });
    shown.cols.push(target);
    let both = || vec![brought(1, &[(3, 1)])];
    let mut inflight = InFlight::new(BUDGET);
    inflight.learn(50, &both(), Some(&shown));
    inflight.take(CommitTs::new(100), both()).unwrap();
    // Of an inserted row that lacks the column because it is NULL nothing is held either.
    inflight.take(CommitTs::new(101), vec![replaced(2, None, Datum::Null)]).unwrap();
    assert_eq!(inflight.oldest(), None);
    // Where TiDB could not be asked, the old definition tells.
    let mut inflight = InFlight::new(BUDGET);
    inflight.take(CommitTs::new(100), both()).unwrap();
    assert_eq!(inflight.oldest(), Some(CommitTs::new(100)));
    assert_eq!(inflight.fulfil(&before, &after, &[]).unwrap(), []);
}

/// From the step of a multi-schema change that swaps the column until its binlog, rows carry the new id only.
#[test]
fn a_type_changed_column_s_values_follow_the_ddl_where_the_row_lacks_the_old_id() {
    for (from, to) in [("b", "b"), ("a", "b")] {
        let (before, after) = type_change(from, to);
        let renamed = if from == to { vec![] } else { vec![(from.to_owned(), to.to_owned())] };
        for shown in [None, Some(&after.info)] {
            let mut inflight = InFlight::new(BUDGET);
            let changes = vec![
                // Inserted; went out with NULL.
                replaced(1, None, Datum::Int(7)),
                // There before, changed from 4 to 5, then to 6.
                replaced(2, Some(4), Datum::Int(5)),
                replaced(2, Some(5), Datum::Int(6)),
                // Another column was changed.
                replaced(3, Some(8), Datum::Int(8)),
                // Inserted and changed.
                replaced(4, None, Datum::Int(1)),
                replaced(4, Some(1), Datum::Int(2)),
                // Inserted, and then changed by a TiDB that is a state behind and writes both.
                replaced(5, None, Datum::Int(1)),
                HeldChange { before: Some(identity(5)), ..brought(5, &[(3, 3)]) },
            ];
            inflight.learn(50, &changes, shown);
            inflight.take(CommitTs::new(100), changes).unwrap();
            let mut updates = inflight.fulfil(&before, &after, &renamed).unwrap();
            updates.sort_by_key(|update| format!("{update:?}"));
            let expected =
                [(1, null(3), 7), (2, int(3, 4), 6), (4, null(3), 2)].map(|(row, usual, value)| Fulfilled {
                    before: vec![int(1, row), usual],
                    after: vec![int(1, row), int(3, value)],
                });
            assert_eq!(updates, expected, "{from} to {to}, shown: {}", shown.is_some());
            assert_eq!((inflight.oldest(), inflight.bytes), (None, 0));
        }
    }
}

/// A successor must see how the row came to be as it is.
#[test]
fn a_row_that_is_changed_again_is_held_from_its_first_change_on() {
    let (before, after) = type_change("b", "b");
    let mut inflight = InFlight::new(BUDGET);
    inflight.take(CommitTs::new(100), vec![replaced(1, None, Datum::Int(7))]).unwrap();
    inflight.take(CommitTs::new(110), vec![replaced(1, Some(7), Datum::Int(7))]).unwrap();
    assert_eq!(inflight.oldest(), Some(CommitTs::new(100)));
    assert_eq!(inflight.fulfil(&before, &after, &[]).unwrap().len(), 1);
}

/// A row of a table with row ids that moves to another partition is inserted there before it is deleted here.
#[test]
fn a_row_that_moves_to_another_partition_keeps_what_it_brought() {
    let (before, after) = definitions();
    let mut inflight = InFlight::new(BUDGET);
    let at = |row_id: i64| RowIdentity { row_id: Some(row_id), ..identity(1) };
    let inserted = |row_id: i64, value: i64| {
        let mut change = brought(1, &[(3, value)]);
        change.after.as_deref_mut().unwrap().0 = at(row_id);
        change
    };
    let deleted =
        |row_id: i64| HeldChange { definition: before.clone(), before: Some(at(row_id)), after: None };
    inflight.take(CommitTs::new(100), vec![inserted(1, 8)]).unwrap();
    inflight.take(CommitTs::new(101), vec![inserted(2, 8), deleted(1)]).unwrap();
    assert_eq!(inflight.oldest(), Some(CommitTs::new(101)));
    inflight.take(CommitTs::new(102), vec![inserted(3, 9), deleted(2)]).unwrap();
    let updates = inflight.fulfil(&before, &after, &[]).unwrap();
    let expected = Fulfilled { before: vec![int(1, 1), int(3, 7)], after: vec![int(1, 1), int(3, 9)] };
    assert_eq!(updates, [expected]);
    inflight.take(CommitTs::new(103), vec![inserted(3, 9), deleted(3)]).unwrap();
    assert_eq!((inflight.oldest(), inflight.bytes), (None, 0));
}

/// Images that lack a column of the key, because another takes its place, and images that have it are of one row.
#[test]
fn a_row_is_told_by_its_row_id_where_its_key_is_being_replaced() {
    let named = |row_id: i64, key: Option<u8>| RowIdentity {
        row_id: Some(row_id),
        key: key.map(|key| Bytes::from(vec![key])),
    };
    for (first, second) in [(None, Some(1)), (Some(1), None), (None, None), (Some(1), Some(1))] {
        let mut inflight = InFlight::new(BUDGET);
        let mut change = brought(1, &[(3, 8)]);
        change.after.as_deref_mut().unwrap().0 = named(5, first);
        let definition = change.definition.clone();
        let gone =
            |identity| HeldChange { definition: definition.clone(), before: Some(identity), after: None };
        inflight
            .take(CommitTs::new(100), vec![change, gone(named(4, second)), gone(named(6, second))])
            .unwrap();
        assert_eq!(inflight.oldest(), Some(CommitTs::new(100)), "{first:?}, {second:?}");
        inflight.take(CommitTs::new(101), vec![gone(named(5, second))]).unwrap();
        assert_eq!((inflight.oldest(), inflight.bytes), (None, 0), "{first:?}, {second:?}");
    }
    // After EXCHANGE PARTITION, rows of two partitions may have one row id.
    let mut inflight = InFlight::new(BUDGET);
    let mut changes = vec![brought(1, &[(3, 8)]), brought(2, &[(3, 9)])];
    for (change, key) in changes.iter_mut().zip([1, 2]) {
        change.after.as_deref_mut().unwrap().0 = named(5, Some(key));
    }
    inflight.take(CommitTs::new(100), changes).unwrap();
    let (before, after) = definitions();
    assert_eq!(inflight.fulfil(&before, &after, &[]).unwrap().len(), 2);
}

/// What went out for a NOT NULL column is its zero, of which nobody knows what the conversion makes.
#[test]
fn a_column_that_may_be_null_from_now_on() {
    let (mut before, after) = type_change("b", "b");
    before.info.cols.as_mut_slice()[1].field_type.flag |= tidb::model::flag::NOT_NULL;
    let mut inflight = InFlight::new(BUDGET);
    let mut left_out = replaced(1, None, Datum::Int(0));
    left_out.after.as_deref_mut().unwrap().1.values = vec![(9, Datum::Int(0))];
    let changes = vec![left_out, replaced(2, None, Datum::Int(0))];
    inflight.take(CommitTs::new(100), changes).unwrap();
    let mut updates = inflight.fulfil(&before, &after, &[]).unwrap();
    updates.sort_by_key(|update| format!("{update:?}"));
    let expected = [(1, null(3)), (2, int(3, 0))]
        .map(|(row, value)| Fulfilled { before: vec![int(1, row)], after: vec![int(1, row), value] });
    assert_eq!(updates, expected);
}

/// A change by a row of a table whose key is not clustered.
fn by_row_id(row_id: i64, key: Option<u8>, value: Option<i64>) -> HeldChange {
    let identity = RowIdentity { row_id: Some(row_id), key: key.map(|key| Bytes::from(vec![key])) };
    let mut change = brought(row_id, &[]);
    let (_, mut held) = *change.after.take().unwrap();
    change.before = Some(identity.clone());
    if let Some(value) = value {
        held.values = vec![(3, Datum::Int(value))];
        change.after = Some(Box::new((identity, held)));
    }
    change
}

/// A key that is not clustered may be dropped by the very job that adds the column: rows that are equal in it are two. And
/// after an exchange of partitions, rows of two keys may have one row id.
#[test]
fn rows_are_told_apart_by_row_id_and_key() {
    let (before, after) = definitions();
    let mut inflight = InFlight::new(BUDGET);
    let changes = vec![
        by_row_id(1, Some(9), Some(8)),
        by_row_id(2, Some(9), Some(10)),
        by_row_id(2, Some(7), Some(11)),
        by_row_id(3, Some(5), Some(12)),
        by_row_id(4, Some(4), Some(13)),
        by_row_id(5, Some(3), Some(14)),
        // The key's column is being dropped: updates lack it, deletes have it.
        by_row_id(3, None, Some(20)),
        by_row_id(4, None, Some(21)),
        by_row_id(4, Some(4), None),
        by_row_id(5, None, None),
    ];
    inflight.take(CommitTs::new(100), changes).unwrap();
    let updates = inflight.fulfil(&before, &after, &[]).unwrap();
    let mut followed: Vec<(Field, Field)> =
        updates.into_iter().map(|update| (update.after[0].clone(), update.after[1].clone())).collect();
    followed.sort_by_key(|fields| format!("{fields:?}"));
    let expected = [(1, 8), (2, 10), (2, 11), (3, 20)].map(|(row, value)| (int(1, row), int(3, value)));
    assert_eq!(followed, expected);
    assert_eq!((inflight.oldest(), inflight.bytes), (None, 0));
}

#[test]
fn the_budget_is_kept() {
    let budget = 1 << 20;
    let mut inflight = InFlight::new(budget);
    let mut change = brought(1, &[]);
    change.after.as_deref_mut().unwrap().1.values = vec![(3, Datum::Bytes(Bytes::from(vec![0; budget])))];
    let error = inflight.take(CommitTs::new(1), vec![change]).unwrap_err();
    assert_eq!(error, InFlightError::TooMuch { budget, table_id: 50, column_id: 3 });
    assert!(error.to_string().contains("in-flight-budget"));
}
