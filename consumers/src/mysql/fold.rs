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
//! heals: what is written last counts. Not so where the identity is no primary key: such a key may be on its way out, and
//! two rows that are equal in it are two rows. From the first change that speaks of another row than the one known by its
//! key, or that lacks a column of the key (it is being dropped), the table's changes stay in their order. So they do from an
//! update of a key on that lacks another column: the row cannot be made anew.

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
    /// What has to follow in order, after everything else: each row is found by all its values.
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

/// How a change fits what is known of its row.
enum Fit {
    /// It follows from it.
    Follows,
    /// It was taken in already: rows are recorded twice while a partition is reorganized.
    Doubled,
    /// It is about another row.
    Another,
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
    /// The row as it was when it went.
    gone: Option<Row>,
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
    pub fn add(&mut self, change: Change) {
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
        self.tables[at].add(kind, &mut self.anomalies);
    }

    /// The net changes, in the order in which the tables were first touched.
    pub fn finish(self) -> (Vec<FoldedTable>, Anomalies) {
        (self.tables.into_iter().map(TableFold::finish).collect(), self.anomalies)
    }
}

impl TableFold {
    fn add(&mut self, kind: ChangeKind, anomalies: &mut Anomalies) {
        if self.table.identity().is_none() {
            return self.count(kind);
        }
        if !self.tail.is_empty() {
            return self.tail.push(kind);
        }
        if !kind.before().is_none_or(|row| self.has_key(row))
            || !kind.after().is_none_or(|row| self.has_key(row))
        {
            return self.tail.push(kind);
        }
        if self.moves_in_part(&kind) {
            return self.tail.push(kind);
        }
        // A primary key says by itself which row is meant.
        let fit = if self.table.has_lasting_identity() { Fit::Follows } else { self.fit(&kind) };
        match (fit, kind) {
            (Fit::Another, kind) => self.tail.push(kind),
            (Fit::Doubled, ChangeKind::Insert { .. }) => anomalies.insert_of_present += 1,
            (Fit::Doubled, ChangeKind::Update { .. }) => anomalies.update_of_missing += 1,
            (Fit::Doubled, ChangeKind::Delete { .. }) => anomalies.delete_of_missing += 1,
            (Fit::Follows, ChangeKind::Insert { after }) => self.insert(after, anomalies),
            (Fit::Follows, ChangeKind::Update { before, after }) => self.update(before, after, anomalies),
            (Fit::Follows, ChangeKind::Delete { before }) => {
                self.delete(before, anomalies);
            }
        }
    }

    /// True if a row gets another key and not all of its columns are known, since one is being dropped: it cannot be
    /// deleted and inserted anew.
    fn moves_in_part(&self, kind: &ChangeKind) -> bool {
        let ChangeKind::Update { before, after } = kind else { return false };
        let from = self.key(before);
        if from == self.key(after) {
            return false;
        }
        let known = self.rows.get(&from).and_then(|net| net.now.as_ref());
        let mut moved = after.clone();
        fill(&mut moved, known);
        fill(&mut moved, Some(before));
        !complete(&self.table, &moved)
    }

    /// True if the image has every column of the identity.
    fn has_key(&self, row: &Row) -> bool {
        self.table.identity().unwrap_or_default().iter().all(|place| row[*place].is_some())
    }

    fn key(&self, row: &Row) -> Key {
        let mut key = BytesMut::new();
        for place in self.table.identity().unwrap_or_default() {
            if let Some(value) = &row[*place] {
                value.encode(&mut key);
            }
        }
        key.as_ref().into()
    }

    /// Whether a change is about the row that its key stands for.
    fn fit(&self, kind: &ChangeKind) -> Fit {
        let (before, after) = (kind.before(), kind.after());
        let (from, to) = (before.map(|row| self.key(row)), after.map(|row| self.key(row)));
        let moves = from != to;
        let net = |key: Option<Key>| key.and_then(|key| self.rows.get(&key));
        let (from, to) = (net(from), net(to));
        let now = |net: Option<&Net>, row: Option<&Row>| {
            net.and_then(|net| net.now.as_ref()).zip(row).is_some_and(|(now, row)| agree(now, row))
        };
        let gone = from.filter(|net| net.now.is_none()).and_then(|net| net.gone.as_ref());
        // What goes must be there as it was, what comes must find its place free.
        let goes = before.is_none() || from.is_none() || now(from, before);
        let comes = !moves || to.is_none_or(|net| net.now.is_none());
        if goes && (after.is_none() || comes) {
            return Fit::Follows;
        }
        let went = before.is_none() || !moves || gone.zip(before).is_some_and(|(gone, row)| agree(gone, row));
        let came = after.is_none() || now(to, after);
        if went && came { Fit::Doubled } else { Fit::Another }
    }

    fn net(&mut self, key: Key) -> Option<&mut Net> {
        self.rows.get_mut(&key)
    }

    fn set(&mut self, key: Key, net: Net) {
        if self.rows.insert(key.clone(), net).is_none() {
            self.order.push(key);
        }
    }

    fn insert(&mut self, after: Row, anomalies: &mut Anomalies) {
        let key = self.key(&after);
        match self.net(key.clone()) {
            None => self.set(key, Net { base: None, now: Some(after), gone: None }),
            Some(net) => {
                anomalies.insert_of_present += u64::from(net.now.is_some());
                net.now = Some(after);
            }
        }
    }

    /// Gives the row as it was known last, if it was touched before.
    fn delete(&mut self, before: Row, anomalies: &mut Anomalies) -> Option<Row> {
        let key = self.key(&before);
        // Only where it may be asked for.
        let gone = (!self.table.has_lasting_identity()).then(|| before.clone());
        match self.net(key.clone()) {
            None => {
                self.set(key, Net { base: Some(before), now: None, gone });
                None
            }
            Some(net) => {
                anomalies.delete_of_missing += u64::from(net.now.is_none());
                net.gone = gone;
                net.now.take()
            }
        }
    }

    fn update(&mut self, before: Row, mut after: Row, anomalies: &mut Anomalies) {
        let (from, to) = (self.key(&before), self.key(&after));
        if from == to {
            match self.net(from.clone()) {
                None => self.set(from, Net { base: Some(before), now: Some(after), gone: None }),
                Some(net) => {
                    anomalies.update_of_missing += u64::from(net.now.is_none());
                    fill(&mut after, net.now.take().as_ref());
                    net.now = Some(after);
                }
            }
            return;
        }
        let image = before.clone();
        let known = self.delete(before, anomalies);
        fill(&mut after, known.as_ref());
        fill(&mut after, Some(&image));
        self.insert(after, anomalies);
    }

    fn count(&mut self, kind: ChangeKind) {
        let whole = |row: &Row| complete(&self.table, row);
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
            let key = encode_whole(&self.table, &row);
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
                None | Some(Net { base: None, now: None, .. }) => {}
                Some(Net { base: Some(before), now: None, .. }) => folded.deletes.push(before),
                Some(Net { base: None, now: Some(after), .. }) => folded.inserts.push(after),
                Some(Net { base: Some(before), now: Some(after), .. }) => {
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
fn agree(one: &Row, other: &Row) -> bool {
    one.iter().zip(other).all(|(one, other)| one.is_none() || other.is_none() || one == other)
}

/// True if the image after says nothing that the one before does not.
fn same(before: &Row, after: &Row) -> bool {
    agree(before, after) && before.iter().zip(after).all(|(old, new)| new.is_none() || old.is_some())
}

/// True if a unique key changes, or may.
fn moves(table: &Table, before: &Row, after: &Row) -> bool {
    table.unique_keys().iter().any(|key| match key {
        None => true,
        Some(places) => places.iter().any(|place| before[*place] != after[*place]),
    })
}

/// True if the image can be inserted: nothing but generated columns is missing.
pub(super) fn complete(table: &Table, row: &Row) -> bool {
    row.iter().zip(table.columns()).all(|(value, column)| value.is_some() || column.generated)
}

/// Values one after the other, each with its kind and length. Not those of generated columns, which follow from the others:
/// while one is being dropped, a row comes without it and goes with it.
fn encode_whole(table: &Table, row: &Row) -> Key {
    let mut key = BytesMut::new();
    for (value, _) in row.iter().zip(table.columns()).filter(|(_, column)| !column.generated) {
        match value {
            // No kind of value begins with this byte.
            None => key.put_u8(0),
            Some(value) => value.encode(&mut key),
        }
    }
    key.as_ref().into()
}
