//! Values of columns that do not exist yet. Pure.
//!
//! While a job adds a column, rows already carry it under an id that no definition has. Almost always the value is the
//! column's `origin_default`, which every replica fills in by itself when it runs the DDL. But a multi-schema change makes
//! its columns public some milliseconds before its binlog (seen in recordings of TiDB 7.1): rows that users wrote in between
//! commit *before* the DDL with values that would be lost. So such values are held, per row, until the DDL comes; where
//! they differ from the default, an update of those columns follows the DDL.
//!
//! The same holds for a column whose type a multi-schema change makes another (TiDB `onMultiSchemaChange`): the step that
//! ends the part that can be undone also swaps the column, so from there until the binlog rows carry its new id only.
//! Where a row carries both ids, old and new, the DDL itself converts what went out under the old one; where it lacks the
//! old id, the new one's value is held.
//!
//! Who writes while a job is under way? TiDB's servers are at most one state apart. Where one of them shows a column, the
//! others write it at least: their insertions and updates carry it, an update with the value that the row has, or, where it
//! replaces another column, with what they make of that one. So nothing that is held outlives a write unseen. Only their
//! deletions may lack it (up to 6.5.9, 7.1.5, 7.5.1 and 8.1.0 TiDB lists public columns there), so every deletion counts.
//! Two states apart, where a column is not written yet, others write nothing but its default or a conversion: what is held
//! of that (because TiDB could not be asked) is what the DDL gives, and leads to no update.
//!
//! Held values live in memory, within a budget. The log remembers from where a successor must read the pumps to hold the
//! same (`CommitRecord.pull_from`). Columns whose default TiDB tells in advance are only held where they differ from it, so
//! a long-running job holds nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use schemas::sluice::v1::Field;
use tidb::datum::Datum;
use tidb::model::{ColumnInfo, TableInfo};
use tidb::ts::CommitTs;
use tidb::value::Value;

use crate::native;
use crate::schema::Definition;

/// Which row of a table, as far as an image tells. In a table that has row ids neither part says enough: any key that is not
/// clustered may be on its way out, so that rows equal in it come; and after EXCHANGE PARTITION two partitions may have rows
/// of one row id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowIdentity {
    /// Its `_tidb_rowid`, in a table that has such. A row that moves to another partition gets a new one, and is inserted
    /// there before it is deleted here.
    pub row_id: Option<i64>,
    /// The record's key, unless the image lacks a column of it.
    pub key: Option<Bytes>,
}

/// What a row brought that its definition does not have.
#[derive(Clone, Debug, PartialEq)]
pub struct HeldRow {
    /// The row afterwards, as far as the definition goes: its clustered key, or all of it where it has none.
    pub fields: Vec<Field>,
    /// Values of unknown columns.
    pub values: Vec<(i64, Datum)>,
    /// The writes that brought it here, oldest first; of equal neighbours the first.
    pub writes: Vec<Write>,
}

/// What a write of a row says about columns whose type is being changed.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// Columns of the definition that the row lacked.
    pub lacking: Vec<i64>,
    /// What the unknown columns held before; `None`: the row was inserted.
    pub before: Option<Vec<(i64, Datum)>>,
    /// All that it lacked went out as NULL.
    pub lacking_is_null: bool,
}

/// A row change that concerns held values.
#[derive(Clone, Debug, PartialEq)]
pub struct HeldChange {
    /// The table, as its rows are shaped at this place.
    pub definition: Arc<Definition>,
    /// The row before, if there was one.
    pub before: Option<RowIdentity>,
    /// The row afterwards, if there is one and it brings something. Most changes that come here are deletions of rows of
    /// which nothing is held.
    pub after: Option<Box<(RowIdentity, HeldRow)>>,
}

/// An update that must follow a DDL.
#[derive(Clone, Debug, PartialEq)]
pub struct Fulfilled {
    /// What identifies the row, and what the DDL gave its new columns.
    pub before: Vec<Field>,
    /// The same, with the new columns' values.
    pub after: Vec<Field>,
}

/// Too much to hold, or not to be understood.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InFlightError {
    /// The budget is used up.
    #[error(
        "rows of table id {table_id} carry column id {column_id}, whose DDL has not come yet: more than {budget} bytes of \
         such values would have to be held. Raise in-flight-budget; if no TiDB status port is reachable (tidb-status), \
         make one so, since TiDB tells which of the values are the column's default and need no holding"
    )]
    TooMuch {
        /// Bytes.
        budget: usize,
        /// The table.
        table_id: i64,
        /// One of the columns.
        column_id: i64,
    },
    /// A held value does not fit the column that the DDL made.
    #[error("a value held for column {column} of {table} does not fit it: {reason}")]
    Misfit {
        /// The table.
        table: String,
        /// The column.
        column: String,
        /// Why.
        reason: String,
    },
}

/// What is known of a column that does not exist yet.
#[derive(Clone, Debug, PartialEq)]
enum Coming {
    /// Nothing.
    Unknown,
    /// It replaces this column; the DDL itself converts the values of rows that carry both.
    Conversion(i64),
    /// Rows that say nothing else have this value.
    Default(Datum),
}

/// Held values by table and row.
#[derive(Debug)]
pub struct InFlight {
    /// The most bytes that held values may take.
    budget: usize,
    /// With the first transaction that brought a value which was held on until now.
    rows: HashMap<i64, BTreeMap<RowIdentity, (CommitTs, HeldRow)>>,
    /// The same of every held row, for the oldest.
    places: BTreeSet<(CommitTs, i64, u64)>,
    coming: HashMap<(i64, i64), Coming>,
    bytes: usize,
}

impl RowIdentity {
    /// As which this row is in the list. Images of one row that lack a column of the key, because it is being replaced, and
    /// others that have it are told to be the same by its `_tidb_rowid`.
    fn among<T>(&self, rows: &BTreeMap<Self, T>) -> Option<Self> {
        if rows.contains_key(self) {
            return Some(self.clone());
        }
        let first = Self { row_id: Some(self.row_id?), key: None };
        let mut others = rows.range(first..).map(|(other, _)| other);
        let same = |other: &&Self| other.row_id == self.row_id && (self.key.is_none() || other.key.is_none());
        others.next().filter(same).cloned()
    }
}

impl HeldChange {
    fn table_id(&self) -> i64 {
        self.definition.id()
    }
}

impl InFlight {
    /// Holds nothing yet, and up to `budget` bytes.
    pub fn new(budget: usize) -> Self {
        Self { budget, rows: HashMap::new(), places: BTreeSet::new(), coming: HashMap::new(), bytes: 0 }
    }

    /// The columns in these changes of which nothing was asked yet, as table ids.
    pub fn strangers(&self, changes: &[HeldChange]) -> HashSet<i64> {
        let mut tables = HashSet::new();
        for change in changes {
            let Some((_, row)) = change.after.as_deref() else { continue };
            let table_id = change.table_id();
            if row.values.iter().any(|(id, _)| !self.coming.contains_key(&(table_id, *id))) {
                tables.insert(table_id);
            }
        }
        tables
    }

    /// What TiDB shows of a table whose job is in flight; `None` if it cannot be asked.
    pub fn learn(&mut self, table_id: i64, changes: &[HeldChange], info: Option<&TableInfo>) {
        for change in changes.iter().filter(|change| change.table_id() == table_id) {
            let Some((_, row)) = change.after.as_deref() else { continue };
            for (id, _) in &row.values {
                let coming =
                    || info.map_or(Coming::Unknown, |info| coming(&change.definition.info, info, *id));
                self.coming.entry((table_id, *id)).or_insert_with(coming);
            }
        }
    }

    /// Takes the changes of one transaction, in order.
    pub fn take(&mut self, commit_ts: CommitTs, changes: Vec<HeldChange>) -> Result<(), InFlightError> {
        for HeldChange { definition, before, after } in changes {
            let table_id = definition.id();
            let earlier = before.and_then(|before| self.forget(table_id, &before));
            let Some((identity, mut row)) = after.map(|after| *after) else { continue };
            self.forget(table_id, &identity);
            let HeldRow { values, writes, .. } = &mut row;
            let keeps = |(id, value): &(i64, Datum)| match self.coming.get(&(table_id, *id)) {
                None | Some(Coming::Unknown) => true,
                Some(Coming::Conversion(source)) => writes.iter().any(|write| write.keeps(*source, value)),
                Some(Coming::Default(default)) => default != value,
            };
            // A row without a clustered key is found by all of its values, if there is anything to hold.
            if identity.row_id.is_none() || !values.iter().any(keeps) {
                values.retain(keeps);
            }
            let Some((column_id, _)) = row.values.first() else { continue };
            // A successor needs the writes from the first on.
            let since = earlier.as_ref().map_or(commit_ts, |(since, _)| *since);
            if let Some((_, earlier)) = earlier {
                row.writes = [earlier.writes, row.writes].concat();
                row.writes.dedup_by(|later, earlier| later.lacking == earlier.lacking);
            }
            self.bytes += size(&row);
            if self.bytes > self.budget {
                let (budget, column_id) = (self.budget, *column_id);
                return Err(InFlightError::TooMuch { budget, table_id, column_id });
            }
            self.places.insert(place(since, table_id, &identity));
            self.rows.entry(table_id).or_default().insert(identity, (since, row));
        }
        Ok(())
    }

    fn forget(&mut self, table_id: i64, identity: &RowIdentity) -> Option<(CommitTs, HeldRow)> {
        let rows = self.rows.get_mut(&table_id)?;
        let known = identity.among(rows)?;
        let (since, row) = rows.remove(&known)?;
        if rows.is_empty() {
            self.rows.remove(&table_id);
        }
        self.bytes -= size(&row);
        self.places.remove(&place(since, table_id, &known));
        Some((since, row))
    }

    /// The first transaction whose values are held.
    pub fn oldest(&self) -> Option<CommitTs> {
        self.places.first().map(|(commit_ts, _, _)| *commit_ts)
    }

    /// A table is gone: nothing of it is needed any more.
    pub fn dropped(&mut self, table_id: i64) {
        let identities: Vec<RowIdentity> =
            self.rows.get(&table_id).into_iter().flat_map(|rows| rows.keys().cloned()).collect();
        identities.iter().for_each(|identity| drop(self.forget(table_id, identity)));
        self.coming.retain(|(table, _), _| *table != table_id);
    }

    /// A DDL turned `before` into `after` and gave columns new names (`renamed`: from, to): the updates that must follow
    /// it, by commit order of the rows that brought the values. Everything held for the table's columns is given up.
    pub fn fulfil(
        &mut self,
        before: &Definition,
        after: &Definition,
        renamed: &[(String, String)],
    ) -> Result<Vec<Fulfilled>, InFlightError> {
        let table_id = after.id();
        let mut rows: Vec<(CommitTs, bool, HeldRow)> = Vec::new();
        for (identity, (since, row)) in self.rows.get(&table_id).into_iter().flatten() {
            rows.push((*since, identity.row_id.is_some(), row.clone()));
        }
        self.dropped(table_id);
        rows.sort_by_key(|(since, ..)| *since);
        let columns: Vec<Made<'_>> = after
            .columns
            .iter()
            .filter_map(|at| after.info.cols.get(*at))
            .filter(|column| before.info.column(column.id).is_none_or(|old| !old.is_public()))
            // A generated column is computed where the DDL is run.
            .filter(|column| !column.is_generated())
            .map(|column| Made { table: after, column, source: source(before, after, renamed, column) })
            .collect();
        let mut updates = Vec::new();
        for (_, is_by_row_id, row) in rows {
            let mut usuals = Vec::new();
            let mut news = Vec::new();
            let mut differs = false;
            for column in &columns {
                let Some((usual, value)) = column.values(&row)? else { continue };
                let is_new = usual.as_ref() != Some(&value);
                differs |= is_new;
                if is_new || is_by_row_id {
                    usuals.extend(usual.map(|usual| native::field(column.column.id, &usual)));
                    news.push(native::field(column.column.id, &value));
                }
            }
            if !differs {
                continue;
            }
            let still_there = |field: &Field| after.info.column(field.column_id).is_some();
            let kept: Vec<Field> = row.fields.into_iter().filter(still_there).collect();
            // Of equal rows of a table without a key, one that has its update already is not meant again.
            let before = kept.iter().cloned().chain(usuals).collect();
            updates.push(Fulfilled { before, after: kept.into_iter().chain(news).collect() });
        }
        Ok(updates)
    }
}

impl Write {
    fn lacks(&self, column_id: i64) -> bool {
        self.lacking.contains(&column_id)
    }

    /// True if the value that this write gave a column must be held, where the column takes `source`'s place. An
    /// inserted row leaves NULLs out: what it lacks may just be that.
    fn keeps(&self, source: i64, value: &Datum) -> bool {
        let is_null = self.before.is_none() && self.lacking_is_null && *value == Datum::Null;
        self.lacks(source) && !is_null
    }
}

impl HeldRow {
    /// The first of the last writes that lacked a column: after it, the downstream knew nothing of what happened to it.
    fn first_lacking(&self, column_id: i64) -> Option<&Write> {
        self.writes.iter().rev().take_while(|write| write.lacks(column_id)).last()
    }

    fn value(&self, column_id: i64) -> Option<&Datum> {
        self.values.iter().find(|(id, _)| *id == column_id).map(|(_, datum)| datum)
    }
}

/// What a column of a table whose job is in flight will be, by how TiDB shows the table.
fn coming(known: &TableInfo, shown: &TableInfo, id: i64) -> Coming {
    let Some(column) = shown.column(id) else { return Coming::Unknown };
    if let Some(change) = &column.change_state_info {
        let source = usize::try_from(change.relative_column_offset).ok().and_then(|at| shown.cols.get(at));
        return source.map_or(Coming::Unknown, |source| Coming::Conversion(source.id));
    }
    // Once it has its place, it may have taken that of a column that is gone.
    let gone = |old: &ColumnInfo| shown.column(old.id).is_none();
    if column.is_public() && known.public_columns().any(gone) {
        return Coming::Unknown;
    }
    column.absent_value().map_or(Coming::Unknown, |value| Coming::Default(value.to_datum()))
}

/// The column whose type was changed to make this one. (Its id is another one, or nothing would have to be held.)
fn source<'a>(
    before: &'a Definition,
    after: &Definition,
    renamed: &[(String, String)],
    column: &ColumnInfo,
) -> Option<&'a ColumnInfo> {
    let same = |a: &str, b: &str| a.to_lowercase() == b.to_lowercase();
    let name = match renamed.iter().find(|(_, to)| same(to, column.name())) {
        Some((from, _)) => from.as_str(),
        None if renamed.iter().any(|(from, _)| same(from, column.name())) => return None,
        None => column.name(),
    };
    let old = before.info.column_by_name(name).filter(|old| old.is_public())?;
    after.info.column(old.id).is_none().then_some(old)
}

/// A column that a DDL made.
struct Made<'a> {
    table: &'a Definition,
    column: &'a ColumnInfo,
    /// The column whose place it takes.
    source: Option<&'a ColumnInfo>,
}

impl Made<'_> {
    /// What running the DDL gives the column in this row, as far as that is known, and what it holds upstream; `None`
    /// where nothing is known.
    fn values(&self, row: &HeldRow) -> Result<Option<(Option<Value>, Value)>, InFlightError> {
        let held = row.value(self.column.id).map(|datum| self.read(datum)).transpose()?;
        let Some(source) = self.source else {
            let Some(value) = held else { return Ok(None) };
            let usual = self.column.absent_value().map_err(|e| self.misfit(e.to_string()))?;
            return Ok(Some((Some(usual), value)));
        };
        let Some(first) = row.first_lacking(source.id) else {
            return Ok(held.map(|value| (Some(value.clone()), value)));
        };
        // NULL is left out of inserted rows.
        let left_out = first.before.is_none() && !self.column.not_null();
        let Some(value) = held.or(left_out.then_some(Value::Null)) else { return Ok(None) };
        Ok(Some((self.converted(source, first)?, value)))
    }

    /// What the DDL makes of what the downstream has for the source.
    fn converted(&self, source: &ColumnInfo, first: &Write) -> Result<Option<Value>, InFlightError> {
        if let Some(before) = &first.before {
            let datum = before.iter().find(|(id, _)| *id == self.column.id).map(|(_, datum)| datum);
            return datum.map(|datum| self.read(datum)).transpose();
        }
        // An inserted row went out with NULL, with the source's origin default, which TiDB converts as it does a value,
        // or with the type's zero, of which it says nothing.
        let sent = source.origin_default_value().map_err(|e| self.misfit(e.to_string()))?;
        Ok(match sent {
            Some(_) => self.column.origin_default_value().map_err(|e| self.misfit(e.to_string()))?,
            None if source.not_null() || self.column.not_null() => None,
            None => Some(Value::Null),
        })
    }

    fn read(&self, datum: &Datum) -> Result<Value, InFlightError> {
        Value::from_datum(datum.clone(), &self.column.field_type).map_err(|e| self.misfit(e.to_string()))
    }

    fn misfit(&self, reason: String) -> InFlightError {
        InFlightError::Misfit {
            table: format!("{}.{}", self.table.database, self.table.table()),
            column: self.column.name().to_owned(),
            reason,
        }
    }
}

fn size(row: &HeldRow) -> usize {
    // Fields and values are small structs with a little text; a generous guess per piece keeps this honest.
    use prost::Message as _;
    128 + row.fields.iter().map(|field| field.encoded_len() + 64).sum::<usize>()
        + values_size(&row.values)
        + row.writes.iter().map(write_size).sum::<usize>()
}

fn values_size(values: &[(i64, Datum)]) -> usize {
    values.iter().map(|(_, datum)| 64 + datum_size(datum)).sum()
}

fn write_size(write: &Write) -> usize {
    64 + 8 * write.lacking.len() + write.before.as_deref().map_or(0, values_size)
}

fn datum_size(datum: &Datum) -> usize {
    let mut out = Vec::new();
    datum.encode_value(&mut out);
    out.len()
}

fn place(commit_ts: CommitTs, table_id: i64, identity: &RowIdentity) -> (CommitTs, i64, u64) {
    use std::hash::{DefaultHasher, Hash as _, Hasher as _};
    let mut hasher = DefaultHasher::new();
    identity.hash(&mut hasher);
    (commit_ts, table_id, hasher.finish())
}

#[cfg(test)]
mod tests;
