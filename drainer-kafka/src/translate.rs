//! Turns a transaction's binlog into row records, shaped by the definitions at its place in commit order. Pure.
//!
//! The rules (design: the order of the merge decides):
//! - Only public, visible columns go out. Virtual generated columns never do (only deleted rows bring them); stored
//!   ones go out in both images, as the upstream computed them.
//! - A column that an inserted row lacks gets its `origin_default`, else NULL, else the type's zero. A column that an
//!   updated or deleted row lacks is left out: it is absent, not NULL.
//! - Rows of a table id that was dropped or truncated earlier in commit order are invisible upstream: discarded and
//!   counted. After EXCHANGE PARTITION, rows under the plain table's old id are rows of the partitioned table.
//! - A table id that no DDL made stops the feed.
//! - While partitions are being made anew, TiDB records writes twice; what repeats is left out ([`doubled`]).
//!
//! A transaction is turned into records slice by slice ([`TxnRows::next_slice`]), so that a large one is never in
//! memory twice.

mod doubled;
mod record;

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use schemas::binlog::{MutationType, PrewriteValue, TableMutation};
use schemas::sluice::v1 as proto;
use tidb::datum::Datum;
use tidb::model::{ColumnInfo, DefaultFault};
use tidb::row::{RowError, RowImage, decode_delete, decode_insert, decode_update};
use tidb::ts::{CommitTs, StartTs};
use tidb::value::Value;

use crate::inflight::{HeldChange, HeldRow, RowIdentity, Write};
use crate::native;
use crate::schema::zone::HOW_TO_KNOW;
use crate::schema::{Definition, Definitions, Lookup};
use crate::sequence::RowRecord;
use crate::transaction::Transaction;

use self::doubled::Recent;
pub use self::record::{LargeRow, Shape};
use self::record::{Place, row_key};

/// Why a transaction cannot be turned into records.
#[derive(Clone, Debug, thiserror::Error)]
#[error("transaction start_ts {start_ts}, commit_ts {commit_ts}: {fault}")]
pub struct TranslateError {
    /// The transaction.
    pub start_ts: StartTs,
    /// Its place.
    pub commit_ts: CommitTs,
    /// What is wrong.
    pub fault: TranslateFault,
}

/// What is wrong with a transaction.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TranslateFault {
    /// Its payload is no `PrewriteValue`.
    #[error("its payload is not a PrewriteValue: {0}")]
    Payload(String),
    /// It names a table that no DDL so far made.
    #[error(
        "it writes to table id {0}, which no DDL before it made. The upstream's DDL history is incomplete, or the feed \
         began at a commit_ts that lies before the table's creation by a TiDB without binlog"
    )]
    UnknownTable(i64),
    /// A kind of mutation that TiDB has not written since version 2.
    #[error("table id {table_id} has a mutation of the obsolete kind {kind}")]
    ObsoleteMutation {
        /// The table.
        table_id: i64,
        /// TiDB's number.
        kind: i32,
    },
    /// The order list names more rows than there are.
    #[error("the order list of table id {table_id} names more {kind} rows than the transaction holds")]
    MissingRow {
        /// The table.
        table_id: i64,
        /// Which list is too short.
        kind: &'static str,
    },
    /// A row cannot be read.
    #[error("a row does not fit its table's definition at this place in commit order: {0}")]
    Row(#[from] RowError),
    /// A column's default cannot be read.
    #[error("column {column} of table {table}: its origin_default cannot be read: {reason}")]
    Default {
        /// The table.
        table: String,
        /// The column.
        column: String,
        /// Why.
        reason: String,
    },
    /// A row is larger than a record may be, and the policy is to stop.
    #[error(
        "a row of {table} takes {bytes} bytes, more than the {limit} of the topic's max.message.bytes; raise that, or \
         set output.large-row = \"chunk\" or \"claim-check\""
    )]
    TooLarge {
        /// The table.
        table: String,
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// More changes than a transaction's numbering holds.
    #[error("it has more than {} changes", u32::MAX)]
    TooManyChanges,
}

/// True for the ids at the upper end of TiDB's range that its own tables have, which no job makes
/// (`ReservedGlobalIDLowerBound` in its package `metadef`, 1000 below `MaxInt48`).
fn is_system(table_id: i64) -> bool {
    const MAX: i64 = (1 << 48) - 1;
    (MAX - 1000..=MAX).contains(&table_id)
}

/// The rows of one table within a transaction.
#[derive(Debug)]
struct TableRows {
    definition: Arc<Definition>,
    mutation: TableMutation,
    cursor: Cursor,
    recent: Recent,
}

/// How far a table's three lists have been read.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    sequence: usize,
    inserted: usize,
    updated: usize,
    deleted: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Insert,
    Update,
    Delete,
}

/// A transaction being turned into records.
#[derive(Debug)]
pub struct TxnRows {
    start_ts: StartTs,
    commit_ts: CommitTs,
    tables: std::vec::IntoIter<TableRows>,
    current: Option<TableRows>,
    changes: u32,
    next_change: u32,
    discarded: u64,
    filtered: u64,
    held: Vec<HeldChange>,
}

impl TxnRows {
    /// Of a transaction that is in the log already: to be skipped, for what it brought for columns that do not exist yet.
    pub fn of_written(transaction: &Transaction, definitions: &Definitions) -> Result<Self, TranslateError> {
        let mut rows = Self::empty(transaction);
        let tables = rows.plan(transaction, definitions, true).map_err(|fault| rows.error(fault))?;
        rows.tables = tables.into_iter();
        Ok(rows)
    }

    /// Reads the transaction's payload and counts what will come out of it.
    pub fn new(transaction: &Transaction, definitions: &Definitions) -> Result<Self, TranslateError> {
        let mut rows = Self::empty(transaction);
        let tables = rows.plan(transaction, definitions, false).map_err(|fault| rows.error(fault))?;
        rows.tables = tables.into_iter();
        Ok(rows)
    }

    fn empty(transaction: &Transaction) -> Self {
        Self {
            start_ts: transaction.start_ts,
            commit_ts: transaction.commit_ts,
            tables: Vec::new().into_iter(),
            current: None,
            changes: 0,
            next_change: 0,
            discarded: 0,
            filtered: 0,
            held: Vec::new(),
        }
    }

    /// Sets the tables up. Of a transaction that is `written` already, only those whose definition has not changed since
    /// are of interest.
    fn plan(
        &mut self,
        transaction: &Transaction,
        definitions: &Definitions,
        written: bool,
    ) -> Result<Vec<TableRows>, TranslateFault> {
        let payload = transaction.payload.clone();
        let value = PrewriteValue::decode(payload).map_err(|e| TranslateFault::Payload(e.to_string()))?;
        let mut tables = Vec::with_capacity(value.mutations.len());
        for mutation in value.mutations {
            let listed = mutation.sequence.len() as u64;
            let definition = match definitions.lookup(mutation.table_id()) {
                Lookup::Unknown if written => continue,
                Lookup::Live(definition) if written && definition.commit_ts > transaction.commit_ts => {
                    continue;
                }
                Lookup::Unknown if is_system(mutation.table_id()) => {
                    self.filtered += listed;
                    continue;
                }
                Lookup::Unknown => return Err(TranslateFault::UnknownTable(mutation.table_id())),
                Lookup::Dropped => {
                    self.discarded += listed;
                    continue;
                }
                Lookup::Live(definition) if definition.place.is_none() => {
                    self.filtered += listed;
                    continue;
                }
                Lookup::Live(definition) => definition.clone(),
            };
            let mut rows =
                TableRows { definition, mutation, cursor: Cursor::default(), recent: Recent::default() };
            let mut count = 0_usize;
            while rows.next_row()?.is_some() {
                count += 1;
            }
            (rows.cursor, rows.recent) = (Cursor::default(), Recent::default());
            let total = u64::from(self.changes) + count as u64;
            self.changes = u32::try_from(total).map_err(|_| TranslateFault::TooManyChanges)?;
            tables.push(rows);
        }
        Ok(tables)
    }

    /// When the transaction began.
    pub fn start_ts(&self) -> StartTs {
        self.start_ts
    }

    /// Its place in the order.
    pub fn commit_ts(&self) -> CommitTs {
        self.commit_ts
    }

    /// Changes that pass the filters.
    pub fn changes(&self) -> u32 {
        self.changes
    }

    /// Rows of dropped or truncated tables that were discarded.
    pub fn discarded(&self) -> u64 {
        self.discarded
    }

    /// Rows that the filter rules leave out.
    pub fn filtered(&self) -> u64 {
        self.filtered
    }

    /// Values for columns that do not exist yet, brought by the changes so far.
    pub fn take_held(&mut self) -> Vec<HeldChange> {
        std::mem::take(&mut self.held)
    }

    /// Leaves out the first `changes`: a predecessor has written them. What they brought for columns that do not exist
    /// yet still counts.
    pub fn skip(&mut self, changes: u32) -> Result<(), TranslateError> {
        for _ in 0..changes {
            let Some((definition, op, blob)) = self.next_row().map_err(|fault| self.error(fault))? else {
                break;
            };
            let images = Images::decode(&definition, op, &blob).map_err(|fault| self.error(fault))?;
            let held = images.held(&definition).map_err(|fault| self.error(fault))?;
            self.held.extend(held);
        }
        Ok(())
    }

    /// The next records, whole changes, until they take `max_bytes` or more; empty at the end.
    pub fn next_slice(&mut self, shape: &Shape, max_bytes: usize) -> Result<Vec<RowRecord>, TranslateError> {
        let mut out = Vec::new();
        let mut bytes = 0;
        while bytes < max_bytes {
            let from = out.len();
            match self.next_change(shape, &mut out) {
                Ok(true) => bytes += out[from..].iter().map(RowRecord::size).sum::<usize>(),
                Ok(false) => break,
                Err(fault) => return Err(self.error(fault)),
            }
        }
        Ok(out)
    }

    fn next_change(&mut self, shape: &Shape, out: &mut Vec<RowRecord>) -> Result<bool, TranslateFault> {
        let change = self.next_change;
        let Some((definition, op, blob)) = self.next_row()? else { return Ok(false) };
        let images = Images::decode(&definition, op, &blob)?;
        self.held.extend(images.held(&definition)?);
        let row = images.change(&definition, op)?;
        shape.records(&definition, row, Place { commit_ts: self.commit_ts, change }, out)?;
        Ok(true)
    }

    fn next_row(&mut self) -> Result<Option<(Arc<Definition>, Op, Bytes)>, TranslateFault> {
        loop {
            if self.current.is_none() {
                self.current = self.tables.next();
            }
            let Some(rows) = &mut self.current else { return Ok(None) };
            if let Some((op, blob)) = rows.next_row()? {
                let row = (rows.definition.clone(), op, blob);
                self.next_change += 1;
                return Ok(Some(row));
            }
            self.current = None;
        }
    }

    fn error(&self, fault: TranslateFault) -> TranslateError {
        TranslateError { start_ts: self.start_ts, commit_ts: self.commit_ts, fault }
    }
}

impl TableRows {
    /// The next row in the order of the statements, without what TiDB recorded twice. Rows that the order list does not
    /// name do not exist.
    fn next_row(&mut self) -> Result<Option<(Op, Bytes)>, TranslateFault> {
        while let Some((op, blob, after)) = self.row_at(self.cursor)? {
            let mut recent = std::mem::take(&mut self.recent);
            let mut beyond = after;
            let doubled = recent.doubled(&self.definition, (op, &blob), || {
                // What cannot be read is met, and named, when its turn comes.
                let (op, blob, next) = self.row_at(after).ok().flatten()?;
                beyond = next;
                Some((op, blob))
            });
            self.recent = recent;
            self.cursor = if doubled == 2 { beyond } else { after };
            if doubled == 0 {
                self.recent.push(op, blob.clone());
                return Ok(Some((op, blob)));
            }
        }
        Ok(None)
    }

    /// The row at a place, and the place after it.
    fn row_at(&self, mut cursor: Cursor) -> Result<Option<(Op, Bytes, Cursor)>, TranslateFault> {
        let table_id = self.mutation.table_id();
        let Some(kind) = self.mutation.sequence.get(cursor.sequence).copied() else { return Ok(None) };
        cursor.sequence += 1;
        let (op, list, at, name) = match MutationType::try_from(kind) {
            Ok(MutationType::Insert) => {
                (Op::Insert, &self.mutation.inserted_rows, &mut cursor.inserted, "inserted")
            }
            Ok(MutationType::Update) => {
                (Op::Update, &self.mutation.updated_rows, &mut cursor.updated, "updated")
            }
            Ok(MutationType::DeleteRow) => {
                (Op::Delete, &self.mutation.deleted_rows, &mut cursor.deleted, "deleted")
            }
            Ok(MutationType::DeleteId | MutationType::DeletePk) | Err(_) => {
                return Err(TranslateFault::ObsoleteMutation { table_id, kind });
            }
        };
        let Some(blob) = list.get(*at) else {
            return Err(TranslateFault::MissingRow { table_id, kind: name });
        };
        *at += 1;
        Ok(Some((op, blob.clone(), cursor)))
    }
}

/// The images of a row.
struct Images {
    before: Option<RowImage>,
    after: Option<RowImage>,
}

impl Images {
    fn decode(definition: &Definition, op: Op, blob: &Bytes) -> Result<Self, TranslateFault> {
        Ok(match op {
            Op::Insert => Self { before: None, after: Some(decode_insert(&definition.info, blob)?) },
            Op::Update => {
                let (before, after) = decode_update(&definition.info, blob)?;
                Self { before: Some(before), after: Some(after) }
            }
            Op::Delete => Self { before: Some(decode_delete(&definition.info, blob)?), after: None },
        })
    }

    fn change(&self, definition: &Definition, op: Op) -> Result<proto::RowChange, TranslateFault> {
        let before = self.before.as_ref().map(|image| present(definition, image)).unwrap_or_default();
        let (op, after) = match (op, &self.after) {
            (Op::Insert, Some(image)) => (proto::Op::Insert, inserted(definition, image)?),
            (Op::Update, Some(image)) => (proto::Op::Update, present(definition, image)),
            (Op::Delete | Op::Insert | Op::Update, _) => (proto::Op::Delete, Vec::new()),
        };
        Ok(row_change(definition, op, before, after))
    }

    /// What the row brings for columns that the definition does not have yet. A deletion may lack such a column though the
    /// row has it.
    fn held(&self, definition: &Arc<Definition>) -> Result<Option<HeldChange>, TranslateFault> {
        let coming = |image: &RowImage| image.unknown.iter().any(|u| u.id > definition.info.max_col_id);
        if self.after.is_some() && ![&self.before, &self.after].into_iter().flatten().any(coming) {
            return Ok(None);
        }
        let before = self.before.as_ref().and_then(|image| identity(definition, image));
        let mut after = None;
        if let Some(image) = self.after.as_ref().filter(|image| coming(image)) {
            // An inserted row leaves NULLs out; without a clustered key, all columns are needed to find it again.
            let fields = match &self.before {
                None => inserted(definition, image)?,
                Some(_) => present(definition, image),
            };
            let write = write(definition, self.before.as_ref(), image);
            after = identity(definition, image).map(|identity| {
                let fields = if identity.row_id.is_some() { fields } else { keyed(definition, fields) };
                let values = coming_values(definition, image);
                Box::new((identity, HeldRow { fields, values, writes: vec![write] }))
            });
        }
        Ok(Some(HeldChange { definition: definition.clone(), before, after }))
    }
}

/// What the image holds for columns that the definition does not have yet.
fn coming_values(definition: &Definition, image: &RowImage) -> Vec<(i64, Datum)> {
    let values = image.unknown.iter().filter(|u| u.id > definition.info.max_col_id);
    values.map(|u| (u.id, u.datum.clone())).collect()
}

/// What a write says about columns that may have been replaced by others.
fn write(definition: &Definition, before: Option<&RowImage>, after: &RowImage) -> Write {
    let mut find = Finder::new(after);
    let lacking: Vec<&ColumnInfo> = carried(definition).filter(|c| find.get(c.id).is_none()).collect();
    let is_null = |column: &&ColumnInfo| {
        !column.not_null() && column.origin_default.is_none() && column.origin_default_bit.is_none()
    };
    Write {
        lacking_is_null: lacking.iter().all(is_null),
        lacking: lacking.into_iter().map(|column| column.id).collect(),
        before: before.map(|image| coming_values(definition, image)),
    }
}

/// Which row an image is of; `None` if it does not tell. A key column that it lacks is being replaced by another: what goes
/// out for that identifies nothing.
fn identity(definition: &Definition, image: &RowImage) -> Option<RowIdentity> {
    let field = |at: &usize| {
        let id = definition.info.cols.get(*at)?.id;
        Some(native::field(id, image.get(id)?))
    };
    let fields: Option<Vec<proto::Field>> = definition.key.iter().map(field).collect();
    let key = fields.and_then(|fields| row_key(definition, &fields));
    (key.is_some() || image.row_id.is_some()).then_some(RowIdentity { row_id: image.row_id, key })
}

/// Those of a row's fields by which a consumer finds it.
fn keyed(definition: &Definition, fields: Vec<proto::Field>) -> Vec<proto::Field> {
    let ids: Vec<i64> =
        definition.key.iter().filter_map(|at| Some(definition.info.cols.get(*at)?.id)).collect();
    fields.into_iter().filter(|field| ids.contains(&field.column_id)).collect()
}

fn row_change(
    definition: &Definition,
    op: proto::Op,
    before: Vec<proto::Field>,
    after: Vec<proto::Field>,
) -> proto::RowChange {
    proto::RowChange {
        database: definition.database.clone(),
        table: definition.table().to_owned(),
        op: op.into(),
        before,
        after,
        claim: None,
    }
}

/// The columns of an image that go out, where it has them.
fn present(definition: &Definition, image: &RowImage) -> Vec<proto::Field> {
    let mut find = Finder::new(image);
    carried(definition).filter_map(|c| find.get(c.id).map(|value| native::field(c.id, value))).collect()
}

/// The columns of an inserted row, complete.
fn inserted(definition: &Definition, image: &RowImage) -> Result<Vec<proto::Field>, TranslateFault> {
    let mut find = Finder::new(image);
    carried(definition)
        .map(|column| match find.get(column.id) {
            Some(value) => Ok(native::field(column.id, value)),
            None => Ok(native::field(column.id, &missing(definition, column)?)),
        })
        .collect()
}

/// The value of a column that an inserted row lacks.
fn missing(definition: &Definition, column: &ColumnInfo) -> Result<Value, TranslateFault> {
    column.absent_value().map_err(|e| TranslateFault::Default {
        table: format!("{}.{}", definition.database, definition.table()),
        column: column.name().to_owned(),
        reason: match e.fault {
            DefaultFault::ServerTimeZone => HOW_TO_KNOW.to_owned(),
            _ => e.to_string(),
        },
    })
}

fn carried(definition: &Definition) -> impl Iterator<Item = &ColumnInfo> {
    definition.columns.iter().filter_map(|at| definition.info.cols.get(*at))
}

/// Finds columns of an image that mostly come in the order they are asked for.
struct Finder<'a> {
    columns: &'a [(i64, Value)],
    next: usize,
}

impl<'a> Finder<'a> {
    fn new(image: &'a RowImage) -> Self {
        Self { columns: &image.columns, next: 0 }
    }

    fn get(&mut self, id: i64) -> Option<&'a Value> {
        let at = match self.columns.get(self.next) {
            Some((column, _)) if *column == id => self.next,
            _ => self.columns.iter().position(|(column, _)| *column == id)?,
        };
        self.next = at + 1;
        self.columns.get(at).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests;
