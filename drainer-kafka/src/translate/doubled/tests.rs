//! A partitioned table whose every write is recorded as TiDB does in each state of a reorganisation, against the same
//! writes recorded once.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use schemas::binlog::TableMutation;
use serde_json::json;
use tidb::datum::Datum;

use super::*;
use crate::translate::tests::{Cluster, column, insert, int, mutation, pairs, update};

/// What a job in flight makes TiDB write.
#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    /// Nothing runs.
    Rest,
    /// The first state: the new partitions take deletions only.
    DeleteOnly,
    /// From then on they take everything.
    WriteOnly,
}

/// How the table finds its rows.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Handle {
    /// Its primary key.
    Clustered,
    /// A `_tidb_rowid` beside a NOT NULL unique key.
    RowId,
    /// A `_tidb_rowid` alone.
    NoKey,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Insert { key: i64, value: i64 },
    Update { row: usize, value: i64 },
    Delete { row: usize },
}

/// A row: key and value; the value decides the partition, now and after the job.
type Row = (i64, i64);

struct Table {
    handle: Handle,
    state: State,
    /// TiDB 8.2 and later delete before they insert.
    deletes_first: bool,
    rows: BTreeMap<i64, Row>,
    next_row_id: i64,
    recorded: TableMutation,
    once: Vec<Step>,
    meant: TableMutation,
    /// What the last step made.
    made: Option<Row>,
}

fn partition(value: i64) -> i64 {
    value / 4
}

fn new_partition(value: i64) -> i64 {
    value % 3
}

fn is_reorganised(partition: i64) -> bool {
    partition < 2
}

impl Table {
    fn new(handle: Handle, state: State, deletes_first: bool) -> Self {
        Self {
            handle,
            state,
            deletes_first,
            rows: BTreeMap::new(),
            next_row_id: 0,
            recorded: mutation(50),
            once: Vec::new(),
            meant: mutation(50),
            made: None,
        }
    }

    fn row_id(&mut self) -> i64 {
        self.next_row_id += 1;
        self.next_row_id
    }

    fn pairs(&self, handle: i64, (key, value): Row) -> Vec<(i64, Datum)> {
        let mut out = vec![int(1, key), int(2, value)];
        if self.handle != Handle::Clustered {
            out.push(int(-1, handle));
        }
        out
    }

    fn inserted(&self, handle: i64, (key, value): Row) -> Bytes {
        match self.handle {
            Handle::Clustered => insert(key, &[int(2, value)]),
            Handle::RowId | Handle::NoKey => insert(handle, &[int(1, key), int(2, value)]),
        }
    }

    fn write(into: &mut TableMutation, op: Op, blob: Bytes) {
        let (kind, list) = match op {
            Op::Insert => (0, &mut into.inserted_rows),
            Op::Update => (1, &mut into.updated_rows),
            Op::Delete => (4, &mut into.deleted_rows),
        };
        into.sequence.push(kind);
        list.push(blob);
    }

    fn record(&mut self, op: Op, blob: Bytes) {
        Self::write(&mut self.recorded, op, blob);
    }

    /// The first of the two writes: what is meant, too.
    fn mean(&mut self, op: Op, blob: Bytes) {
        Self::write(&mut self.meant, op, blob.clone());
        self.record(op, blob);
    }

    fn insert(&mut self, row: Row) {
        let handle = if self.handle == Handle::Clustered { row.0 } else { self.row_id() };
        self.rows.insert(handle, row);
        self.mean(Op::Insert, self.inserted(handle, row));
        if self.state == State::WriteOnly && is_reorganised(partition(row.1)) {
            // Two rows with two row ids are two rows, as far as anybody can tell.
            let again = if self.handle == Handle::RowId { self.row_id() } else { handle };
            self.record(Op::Insert, self.inserted(again, row));
        }
    }

    fn delete(&mut self, handle: i64) {
        let Some(row) = self.rows.remove(&handle) else { return };
        let gone: Bytes = pairs(&self.pairs(handle, row)).into();
        self.mean(Op::Delete, gone.clone());
        if self.state != State::Rest && is_reorganised(partition(row.1)) {
            self.record(Op::Delete, gone);
        }
    }

    fn update(&mut self, handle: i64, value: i64) {
        let old = self.rows[&handle];
        let new = (old.0, value);
        let (from, to) = (partition(old.1), partition(new.1));
        let gone: Bytes = pairs(&self.pairs(handle, old)).into();
        let mut moved = handle;
        if from == to {
            self.mean(Op::Update, update(&self.pairs(handle, old), &self.pairs(handle, new)));
        } else {
            if self.handle != Handle::Clustered {
                moved = self.row_id();
            }
            let there = self.inserted(moved, new);
            if self.deletes_first {
                self.mean(Op::Delete, gone.clone());
                self.mean(Op::Insert, there);
            } else {
                self.mean(Op::Insert, there);
                self.mean(Op::Delete, gone.clone());
            }
        }
        self.rows.remove(&handle);
        self.rows.insert(moved, new);
        self.update_again(handle, moved, old, new, gone);
    }

    fn update_again(&mut self, handle: i64, moved: i64, old: Row, new: Row, gone: Bytes) {
        if self.state == State::Rest {
            return;
        }
        let (from, to) = (is_reorganised(partition(old.1)), is_reorganised(partition(new.1)));
        if from && to && new_partition(old.1) == new_partition(new.1) {
            if self.state == State::DeleteOnly && partition(old.1) == partition(new.1) {
                self.record(Op::Delete, gone);
            } else {
                self.record(Op::Update, update(&self.pairs(handle, old), &self.pairs(handle, new)));
            }
            return;
        }
        let inserts = to && self.state == State::WriteOnly;
        let there = if self.handle == Handle::Clustered { moved } else { self.row_id() };
        let there = self.inserted(there, new);
        if self.deletes_first && from {
            self.record(Op::Delete, gone.clone());
        }
        // An insertion alone, under another row id, into a table without a key, is told from nothing.
        if inserts && (from || self.handle != Handle::NoKey) {
            self.record(Op::Insert, there);
        }
        if !self.deletes_first && from {
            self.record(Op::Delete, gone);
        }
    }

    fn step(&mut self, step: Step) {
        self.once.push(step);
        let pick = |rows: &BTreeMap<i64, Row>, row: usize| rows.keys().nth(row % rows.len().max(1)).copied();
        // Of two equal rows made one after the other in a table without a key nothing tells whether the second is one.
        let made = self.made;
        let is_untold =
            |new: Row| self.handle == Handle::NoKey && self.state != State::Rest && made == Some(new);
        match step {
            Step::Insert { key, value } => {
                let is_taken = self.handle != Handle::NoKey && self.rows.values().any(|row| row.0 == key);
                if !is_taken && !is_untold((key, value)) {
                    self.made = Some((key, value));
                    self.insert((key, value));
                }
            }
            Step::Update { row, value } => {
                let Some(handle) = pick(&self.rows, row) else { return };
                let new = (self.rows[&handle].0, value);
                if self.rows[&handle] != new && !is_untold(new) {
                    self.made = Some(new);
                    self.update(handle, value);
                }
            }
            Step::Delete { row } => {
                if let Some(handle) = pick(&self.rows, row) {
                    self.made = None;
                    self.delete(handle);
                }
            }
        }
    }
}

fn cluster(handle: Handle) -> Cluster {
    let mut cluster = Cluster::new();
    let not_null = json!({"type": {"Tp": 8, "Flag": 1, "Flen": 20, "Decimal": 0, "Charset": "binary", "Collate": "binary"}});
    let mut key = column(1, if handle == Handle::Clustered { json!({}) } else { not_null });
    key["offset"] = json!(0);
    let mut more = json!({"pk_is_handle": handle == Handle::Clustered});
    if handle == Handle::RowId {
        more["index_info"] = json!([{
            "id": 1, "idx_name": {"O": "k", "L": "k"}, "idx_cols": [{"name": {"O": "c1", "L": "c1"}, "offset": 0, "length": -1}],
            "state": 5, "is_unique": true,
        }]);
    }
    cluster.table(&[key, column(2, json!({}))], more);
    cluster
}

fn step() -> impl Strategy<Value = Step> {
    let (key, value) = (0..3_i64, 0..12_i64);
    prop_oneof![
        3 => (key, value.clone()).prop_map(|(key, value)| Step::Insert { key, value }),
        5 => (0..9_usize, value).prop_map(|(row, value)| Step::Update { row, value }),
        2 => (0..9_usize).prop_map(|row| Step::Delete { row }),
    ]
}

/// Every order of writes to few rows in few partitions: nothing repeated is left, nothing meant is missing.
#[test]
fn what_is_recorded_twice_goes_out_once() {
    for handle in [Handle::Clustered, Handle::RowId, Handle::NoKey] {
        let cluster = cluster(handle);
        for state in [State::Rest, State::DeleteOnly, State::WriteOnly] {
            for deletes_first in [false, true] {
                let config = Config { cases: 200, failure_persistence: None, ..Config::default() };
                let steps = proptest::collection::vec(step(), 1..14);
                TestRunner::new(config)
                    .run(&steps, |steps| {
                        let mut table = Table::new(handle, state, deletes_first);
                        steps.into_iter().for_each(|step| table.step(step));
                        let meant = net(&cluster, table.meant, false);
                        prop_assert_eq!(
                            net(&cluster, table.recorded, true),
                            meant,
                            "{:?} {:?} deletes first: {} {:?}",
                            handle,
                            state,
                            deletes_first,
                            table.once
                        );
                        Ok(())
                    })
                    .unwrap();
            }
        }
    }
}

/// What goes out, as the rows' changes: through the rules, or all of it.
fn net(cluster: &Cluster, mutation: TableMutation, ruled: bool) -> Vec<String> {
    let show = |op: &str, before: &[schemas::sluice::v1::Field], after: &[schemas::sluice::v1::Field]| {
        format!("{op} {before:?} {after:?}")
    };
    let one = |mutation: TableMutation| {
        let changes = cluster.changes(vec![mutation]);
        changes.iter().map(|c| show(&format!("{:?}", c.op()), &c.before, &c.after)).collect::<Vec<_>>()
    };
    if ruled {
        return one(mutation);
    }
    // Each write in a transaction of its own repeats nothing.
    let (mut inserted, mut updated, mut deleted) =
        (mutation.inserted_rows.iter(), mutation.updated_rows.iter(), mutation.deleted_rows.iter());
    let mut out = Vec::new();
    for kind in mutation.sequence {
        let mut alone = TableMutation { sequence: vec![kind], ..crate::translate::tests::mutation(50) };
        match kind {
            0 => alone.inserted_rows = inserted.next().cloned().into_iter().collect(),
            1 => alone.updated_rows = updated.next().cloned().into_iter().collect(),
            _ => alone.deleted_rows = deleted.next().cloned().into_iter().collect(),
        }
        out.extend(one(alone));
    }
    out
}

/// A row may be deleted, inserted and deleted again as it was; a phantom delete may come before the real change.
#[test]
fn what_only_looks_repeated_stays() {
    let cluster = cluster(Handle::Clustered);
    let a = || Bytes::from(pairs(&[int(1, 1), int(2, 5)]));
    let a_again = || insert(1, &[int(2, 5)]);
    let change = update(&[int(1, 1), int(2, 5)], &[int(1, 1), int(2, 6)]);
    let kinds = |mutation: TableMutation| {
        cluster.changes(vec![mutation]).iter().map(|c| format!("{:?}", c.op())).collect::<Vec<_>>()
    };
    let again = TableMutation {
        deleted_rows: vec![a(), a()],
        inserted_rows: vec![a_again()],
        sequence: vec![4, 0, 4],
        ..mutation(50)
    };
    assert_eq!(kinds(again), ["Delete", "Insert", "Delete"]);
    let phantom = TableMutation {
        deleted_rows: vec![a()],
        updated_rows: vec![change],
        sequence: vec![4, 1],
        ..mutation(50)
    };
    assert_eq!(kinds(phantom), ["Delete", "Update"]);
}
