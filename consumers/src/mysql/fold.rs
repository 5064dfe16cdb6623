//! Consecutive transactions folded into the net change of each row. Pure.
//!
//! Rows of a table are told apart by its identity key (the primary key, else a unique key without NULLs). For each row
//! the first image before and the last image after remain; applying them – per table all deletes, then updates that touch
//! no unique key, then inserts – takes the table from the state before the first transaction to the state after the last,
//! and no statement on the way can meet a row that is in its way: whatever moves along a unique key is deleted first and
//! inserted last.
//!
//! Without an identity key, rows are counted: equal rows that go and come cancel each other, what is left is deleted or
//! inserted that many times. A row image that lacks columns (a column is being dropped) cannot be counted so; from the
//! first one on, the table's changes stay in their order.
//!
//! Images that do not fit the state so far – the log itself can hold those, see [`Anomalies`] – are taken the way that
//! heals: what is written last counts.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{BufMut as _, BytesMut};

use crate::event::{Change, ChangeKind, Row};
use crate::schema::Table;

/// Things in the log that do not follow from each other. TiDB makes each of them: a phantom delete (an UPDATE IGNORE that
/// did not happen leaves its delete behind), rows recorded twice while a partition is reorganized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Anomalies {
    /// A row was inserted that was there.
    pub insert_of_present: u64,
    /// A row was updated that was gone.
    pub update_of_missing: u64,
    /// A row was deleted that was gone.
    pub delete_of_missing: u64,
}

impl Anomalies {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.insert_of_present + self.update_of_missing + self.delete_of_missing
    }
}

/// What became of the rows of one table.
#[derive(Debug)]
pub struct FoldedTable {
    /// The table.
    pub table: Arc<Table>,
    /// Rows to delete, by their identity.
    pub deletes: Vec<Row>,
    /// Rows to update: before, after. No unique key changes.
    pub updates: Vec<(Row, Row)>,
    /// Rows to insert.
    pub inserts: Vec<Row>,
    /// Of tables without identity: whole rows to delete that many times, before the inserts.
    pub counted_deletes: Vec<(Row, u64)>,
    /// Of tables without identity: what has to follow in order, after everything else.
    pub tail: Vec<ChangeKind>,
}

/// Net changes of a stretch of the log without schema changes.
#[derive(Debug, Default)]
pub struct Fold {
    tables: Vec<TableFold>,
    index: HashMap<(i64, i64), usize>,
    changes: u64,
    bytes: usize,
    anomalies: Anomalies,
}

/// A row image that has no identity: it lacks a column of the key.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a row image of {database}.{table} lacks a column of the key that tells its rows apart")]
pub struct NoIdentity {
    /// Database.
    pub database: String,
    /// Table.
    pub table: String,
}

#[derive(Debug)]
struct TableFold {
    table: Arc<Table>,
    rows: HashMap<Key, Net>,
    /// Keys in the order of their first change, so that equal input makes equal statements.
    order: Vec<Key>,
    counts: HashMap<Key, Count>,
    tail: Vec<ChangeKind>,
}

type Key = Box<[u8]>;

#[derive(Debug)]
struct Net {
    /// The row before the stretch, if the log says that it was there.
    base: Option<Row>,
    /// The row now.
    now: Option<Row>,
}

#[derive(Debug)]
struct Count {
    row: Row,
    /// Inserted minus deleted.
    net: i64,
}

impl Fold {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of changes taken in.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    /// Bytes of the changes taken in.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// True when nothing was taken in.
    pub fn is_empty(&self) -> bool {
        self.changes == 0
    }

    /// Takes in the next change.
    pub fn add(&mut self, change: Change) -> Result<(), NoIdentity> {
        let Change { table, kind, cost } = change;
        self.changes += 1;
        self.bytes += cost;
        let at = *self.index.entry((table.id(), table.version())).or_insert_with(|| {
            self.tables.push(TableFold {
                table,
                rows: HashMap::new(),
                order: Vec::new(),
                counts: HashMap::new(),
                tail: Vec::new(),
            });
            self.tables.len() - 1
        });
        let fold = &mut self.tables[at];
        if fold.table.identity().is_none() {
            fold.count(kind);
            return Ok(());
        }
        match kind {
            ChangeKind::Insert { after } => fold.insert(after, &mut self.anomalies),
            ChangeKind::Delete { before } => fold.delete(before, &mut self.anomalies).map(|_| ()),
            ChangeKind::Update { before, after } => fold.update(before, after, &mut self.anomalies),
        }
    }

    /// The net changes, in the order in which the tables were first touched.
    pub fn finish(self) -> (Vec<FoldedTable>, Anomalies) {
        (self.tables.into_iter().map(TableFold::finish).collect(), self.anomalies)
    }
}

impl TableFold {
    fn key(&self, row: &Row) -> Result<Key, NoIdentity> {
        let places = self.table.identity().unwrap_or_default();
        encode(places.iter().map(|place| row[*place].as_ref())).ok_or_else(|| NoIdentity {
            database: self.table.database().to_owned(),
            table: self.table.name().to_owned(),
        })
    }

    fn net(&mut self, key: Key) -> Option<&mut Net> {
        self.rows.get_mut(&key)
    }

    fn set(&mut self, key: Key, net: Net) {
        if self.rows.insert(key.clone(), net).is_none() {
            self.order.push(key);
        }
    }

    fn insert(&mut self, after: Row, anomalies: &mut Anomalies) -> Result<(), NoIdentity> {
        let key = self.key(&after)?;
        match self.net(key.clone()) {
            None => self.set(key, Net { base: None, now: Some(after) }),
            Some(net) => {
                anomalies.insert_of_present += u64::from(net.now.is_some());
                net.now = Some(after);
            }
        }
        Ok(())
    }

    /// Gives the row as it was known last, if it was touched before.
    fn delete(&mut self, before: Row, anomalies: &mut Anomalies) -> Result<Option<Row>, NoIdentity> {
        let key = self.key(&before)?;
        match self.net(key.clone()) {
            None => {
                self.set(key, Net { base: Some(before), now: None });
                Ok(None)
            }
            Some(net) => {
                anomalies.delete_of_missing += u64::from(net.now.is_none());
                Ok(net.now.take())
            }
        }
    }

    fn update(&mut self, before: Row, mut after: Row, anomalies: &mut Anomalies) -> Result<(), NoIdentity> {
        let (from, to) = (self.key(&before)?, self.key(&after)?);
        if from == to {
            match self.net(from.clone()) {
                None => self.set(from, Net { base: Some(before), now: Some(after) }),
                Some(net) => {
                    anomalies.update_of_missing += u64::from(net.now.is_none());
                    fill(&mut after, net.now.take().as_ref());
                    net.now = Some(after);
                }
            }
            return Ok(());
        }
        let image = before.clone();
        let known = self.delete(before, anomalies)?;
        fill(&mut after, known.as_ref());
        fill(&mut after, Some(&image));
        self.insert(after, anomalies)
    }

    fn count(&mut self, kind: ChangeKind) {
        let virtual_column = |place: usize| {
            self.table.columns().get(place).is_some_and(|c| c.generated && !c.generated_stored)
        };
        let whole =
            |row: &Row| row.iter().enumerate().all(|(place, value)| value.is_some() || virtual_column(place));
        let countable = kind.before().is_none_or(whole) && kind.after().is_none_or(whole);
        if !countable || !self.tail.is_empty() {
            self.tail.push(kind);
            return;
        }
        let (before, after) = match kind {
            ChangeKind::Insert { after } => (None, Some(after)),
            ChangeKind::Update { before, after } => (Some(before), Some(after)),
            ChangeKind::Delete { before } => (Some(before), None),
        };
        for (row, by) in [(before, -1), (after, 1)] {
            let Some(row) = row else { continue };
            let key = encode_whole(&row);
            if let Some(count) = self.counts.get_mut(&key) {
                count.net += by;
            } else {
                self.counts.insert(key.clone(), Count { row, net: by });
                self.order.push(key);
            }
        }
    }

    fn finish(mut self) -> FoldedTable {
        let mut folded = FoldedTable {
            table: self.table.clone(),
            deletes: Vec::new(),
            updates: Vec::new(),
            inserts: Vec::new(),
            counted_deletes: Vec::new(),
            tail: self.tail,
        };
        for key in self.order {
            if let Some(Count { row, net }) = self.counts.remove(&key) {
                if net < 0 {
                    folded.counted_deletes.push((row, net.unsigned_abs()));
                } else {
                    folded.inserts.extend(std::iter::repeat_n(row, net.unsigned_abs() as usize));
                }
                continue;
            }
            match self.rows.remove(&key) {
                None | Some(Net { base: None, now: None }) => {}
                Some(Net { base: Some(before), now: None }) => folded.deletes.push(before),
                Some(Net { base: None, now: Some(after) }) => folded.inserts.push(after),
                Some(Net { base: Some(before), now: Some(after) }) => {
                    if same(&before, &after) {
                        continue;
                    }
                    if moves(&self.table, &before, &after) && complete(&self.table, &after) {
                        folded.deletes.push(before);
                        folded.inserts.push(after);
                    } else {
                        folded.updates.push((before, after));
                    }
                }
            }
        }
        folded
    }
}

/// Columns that an image lacks did not change: take them from the image before.
fn fill(after: &mut Row, from: Option<&Row>) {
    for (value, old) in after.iter_mut().zip(from.into_iter().flat_map(|row| row.iter())) {
        if value.is_none() {
            value.clone_from(old);
        }
    }
}

/// True if no column that both images have differs.
fn same(before: &Row, after: &Row) -> bool {
    before.iter().zip(after).all(|(old, new)| old.is_none() || new.is_none() || old == new)
        && before.iter().zip(after).all(|(old, new)| new.is_none() || old.is_some())
}

/// True if a unique key changes, or may.
fn moves(table: &Table, before: &Row, after: &Row) -> bool {
    table.unique_keys().iter().any(|key| match key {
        None => true,
        Some(places) => places.iter().any(|place| before[*place] != after[*place]),
    })
}

/// True if the image can be inserted: only virtual generated columns are missing.
fn complete(table: &Table, row: &Row) -> bool {
    row.iter().zip(table.columns()).all(|(value, column)| value.is_some() || column.generated)
}

/// Values one after the other, each with its kind and length; `None` if one is missing.
fn encode<'a>(values: impl Iterator<Item = Option<&'a crate::event::Value>>) -> Option<Key> {
    let mut key = BytesMut::new();
    for value in values {
        value?.encode(&mut key);
    }
    Some(key.as_ref().into())
}

fn encode_whole(row: &Row) -> Key {
    let mut key = BytesMut::new();
    for value in row {
        match value {
            // No kind of value begins with this byte.
            None => key.put_u8(0),
            Some(value) => value.encode(&mut key),
        }
    }
    key.as_ref().into()
}
