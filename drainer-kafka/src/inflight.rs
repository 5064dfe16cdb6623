//! Values of columns that do not exist yet. Pure.
//!
//! While a job adds a column, rows already carry it under an id that no definition has. Almost always the value is the
//! column's `origin_default`, which every replica fills in by itself when it runs the DDL. But a multi-schema change makes
//! its columns public some milliseconds before its binlog (seen in recordings of TiDB 7.1): rows that users wrote in between
//! commit *before* the DDL with values that would be lost. So such values are held, per row, until the DDL comes; where
//! they differ from the default, an update of those columns follows the DDL.
//!
//! Held values live in memory, within a budget. The log remembers from where a successor must read the pumps to hold the
//! same (`CommitRecord.pull_from`). Columns whose default TiDB tells in advance are only held where they differ from it, so
//! a long-running job holds nothing.

use std::collections::{BTreeSet, HashMap, HashSet};

use bytes::Bytes;
use schemas::sluice::v1::Field;
use tidb::datum::Datum;
use tidb::model::TableInfo;
use tidb::ts::CommitTs;
use tidb::value::Value;

use crate::native;
use crate::schema::Definition;

/// The most bytes that held values may take.
const BUDGET: usize = 64 << 20;

/// Which row of a table.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum RowIdentity {
    /// By the record's key.
    Key(Bytes),
    /// By `_tidb_rowid`.
    RowId(i64),
}

/// What a row brought that its definition does not have.
#[derive(Clone, Debug, PartialEq)]
pub struct HeldRow {
    /// The row afterwards, as far as the definition goes: its key, or all of it where it has none.
    pub fields: Vec<Field>,
    /// Values of unknown columns.
    pub values: Vec<(i64, Datum)>,
}

/// A row change that concerns held values.
#[derive(Clone, Debug, PartialEq)]
pub struct HeldChange {
    /// The table.
    pub table_id: i64,
    /// The row before, if there was one.
    pub before: Option<RowIdentity>,
    /// The row afterwards, if there is one.
    pub after: Option<(RowIdentity, HeldRow)>,
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
        "rows of table id {table_id} carry column id {column_id}, whose DDL has not come yet, and TiDB does not tell its \
         default: more than {BUDGET} bytes of such values would have to be held. Make a TiDB status port reachable \
         (tidb-status)"
    )]
    TooMuch {
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
    /// It replaces another column; the DDL itself converts the values.
    Conversion,
    /// Rows that say nothing else have this value.
    Default(Datum),
}

/// Held values by table and row.
#[derive(Debug, Default)]
pub struct InFlight {
    rows: HashMap<i64, HashMap<RowIdentity, (CommitTs, HeldRow)>>,
    /// The commit_ts of every held row, for the oldest.
    places: BTreeSet<(CommitTs, i64, u64)>,
    coming: HashMap<(i64, i64), Coming>,
    bytes: usize,
}

impl InFlight {
    /// The columns in these changes of which nothing was asked yet, as table ids.
    pub fn strangers(&self, changes: &[HeldChange]) -> HashSet<i64> {
        let mut tables = HashSet::new();
        for change in changes {
            let Some((_, row)) = &change.after else { continue };
            if row.values.iter().any(|(id, _)| !self.coming.contains_key(&(change.table_id, *id))) {
                tables.insert(change.table_id);
            }
        }
        tables
    }

    /// What TiDB shows of a table whose job is in flight; `None` if it cannot be asked.
    pub fn learn(&mut self, table_id: i64, changes: &[HeldChange], info: Option<&TableInfo>) {
        let ids = changes
            .iter()
            .filter(|change| change.table_id == table_id)
            .filter_map(|change| change.after.as_ref())
            .flat_map(|(_, row)| row.values.iter().map(|(id, _)| *id));
        for id in ids.collect::<HashSet<_>>() {
            let coming = match info.and_then(|info| info.column(id)) {
                None => Coming::Unknown,
                Some(column) if column.change_state_info.is_some() => Coming::Conversion,
                Some(column) => {
                    column.absent_value().map_or(Coming::Unknown, |value| Coming::Default(value.to_datum()))
                }
            };
            self.coming.entry((table_id, id)).or_insert(coming);
        }
    }

    /// Takes the changes of one transaction, in order.
    pub fn take(&mut self, commit_ts: CommitTs, changes: Vec<HeldChange>) -> Result<(), InFlightError> {
        for HeldChange { table_id, before, after } in changes {
            if let Some(before) = before {
                self.forget(table_id, &before);
            }
            let Some((identity, mut row)) = after else { continue };
            self.forget(table_id, &identity);
            row.values.retain(|(id, value)| match self.coming.get(&(table_id, *id)) {
                None | Some(Coming::Unknown) => true,
                Some(Coming::Conversion) => false,
                Some(Coming::Default(default)) => default != value,
            });
            let Some((column_id, _)) = row.values.first() else { continue };
            self.bytes += size(&row);
            if self.bytes > BUDGET {
                return Err(InFlightError::TooMuch { table_id, column_id: *column_id });
            }
            self.places.insert(place(commit_ts, table_id, &identity));
            self.rows.entry(table_id).or_default().insert(identity, (commit_ts, row));
        }
        Ok(())
    }

    fn forget(&mut self, table_id: i64, identity: &RowIdentity) {
        let Some(rows) = self.rows.get_mut(&table_id) else { return };
        if let Some((commit_ts, row)) = rows.remove(identity) {
            self.bytes -= size(&row);
            self.places.remove(&place(commit_ts, table_id, identity));
        }
        if rows.is_empty() {
            self.rows.remove(&table_id);
        }
    }

    /// The first transaction whose values are held.
    pub fn oldest(&self) -> Option<CommitTs> {
        self.places.first().map(|(commit_ts, _, _)| *commit_ts)
    }

    /// A table is gone: nothing of it is needed any more.
    pub fn dropped(&mut self, table_id: i64) {
        let identities: Vec<RowIdentity> =
            self.rows.get(&table_id).into_iter().flat_map(|rows| rows.keys().cloned()).collect();
        identities.iter().for_each(|identity| self.forget(table_id, identity));
        self.coming.retain(|(table, _), _| *table != table_id);
    }

    /// A DDL turned `before` into `after`: the updates that must follow it, by commit order of the rows that brought the
    /// values. Everything held for the table's columns is given up.
    pub fn fulfil(
        &mut self,
        before: &Definition,
        after: &Definition,
    ) -> Result<Vec<Fulfilled>, InFlightError> {
        let table_id = after.id();
        let mut rows: Vec<(CommitTs, HeldRow)> =
            self.rows.get(&table_id).into_iter().flat_map(|rows| rows.values().cloned()).collect();
        self.dropped(table_id);
        rows.sort_by_key(|(commit_ts, _)| *commit_ts);
        let mut updates = Vec::new();
        for (_, row) in rows {
            let mut usuals = Vec::new();
            let mut news = Vec::new();
            for (id, datum) in row.values {
                if let Some((usual, field)) = news_of(before, after, id, datum)? {
                    usuals.push(usual);
                    news.push(field);
                }
            }
            if news.is_empty() {
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

/// What running the DDL gives the column, and the field to set, if that differs.
fn news_of(
    before: &Definition,
    after: &Definition,
    id: i64,
    datum: Datum,
) -> Result<Option<(Field, Field)>, InFlightError> {
    let carried =
        after.columns.iter().filter_map(|at| after.info.cols.get(*at)).find(|column| column.id == id);
    let Some(column) = carried else { return Ok(None) };
    // A generated column is computed where the DDL is run; a column of the same name under a new id is a type change.
    if column.is_generated() || before.info.column_by_name(column.name()).is_some_and(|old| old.is_public()) {
        return Ok(None);
    }
    let misfit = |reason: String| InFlightError::Misfit {
        table: format!("{}.{}", after.database, after.table()),
        column: column.name().to_owned(),
        reason,
    };
    let value = Value::from_datum(datum, &column.field_type).map_err(|e| misfit(e.to_string()))?;
    let usual = column.absent_value().map_err(|e| misfit(e.to_string()))?;
    Ok((value != usual).then(|| (native::field(id, &usual), native::field(id, &value))))
}

fn size(row: &HeldRow) -> usize {
    // Fields and values are small structs with a little text; a generous guess per piece keeps this honest.
    use prost::Message as _;
    128 + row.fields.iter().map(|field| field.encoded_len() + 64).sum::<usize>()
        + row.values.iter().map(|(_, datum)| 64 + datum_size(datum)).sum::<usize>()
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
mod tests {
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
        RowIdentity::Key(Bytes::from(vec![row as u8]))
    }

    fn brought(row: i64, values: &[(i64, i64)]) -> HeldChange {
        let values = values.iter().map(|(id, value)| (*id, Datum::Int(*value))).collect();
        let after = HeldRow { fields: vec![int(1, row)], values };
        HeldChange { table_id: 50, before: None, after: Some((identity(row), after)) }
    }

    #[test]
    fn only_what_the_ddl_does_not_give_follows_it() {
        let (before, after) = definitions();
        let mut inflight = InFlight::default();
        let changes = vec![brought(1, &[(3, 7)]), brought(2, &[(3, 8), (4, 5)]), brought(3, &[(3, 9)])];
        assert_eq!(inflight.strangers(&changes), HashSet::from([50]));
        inflight.learn(50, &changes, None);
        assert!(inflight.strangers(&changes).is_empty());
        inflight.take(CommitTs::new(100), changes).unwrap();
        assert_eq!(inflight.oldest(), Some(CommitTs::new(100)));
        // Row 3 goes away again, row 2 is written once more.
        let gone = HeldChange { table_id: 50, before: Some(identity(3)), after: None };
        let again = HeldChange { before: Some(identity(2)), ..brought(2, &[(3, 8), (4, 6)]) };
        inflight.take(CommitTs::new(110), vec![gone, again]).unwrap();
        let updates = inflight.fulfil(&before, &after).unwrap();
        let null = Field { column_id: 4, value: Some(V::Null(schemas::sluice::v1::Null {})) };
        let expected = Fulfilled {
            before: vec![int(1, 2), int(3, 7), null],
            after: vec![int(1, 2), int(3, 8), int(4, 6)],
        };
        assert_eq!(updates, [expected]);
        assert_eq!((inflight.oldest(), inflight.bytes), (None, 0));
    }

    #[test]
    fn a_known_default_is_not_held() {
        let (_, after) = definitions();
        let mut inflight = InFlight::default();
        let changes = vec![brought(1, &[(3, 7)]), brought(2, &[(3, 8)])];
        inflight.learn(50, &changes, Some(&after.info));
        inflight.take(CommitTs::new(100), vec![changes[0].clone()]).unwrap();
        assert_eq!(inflight.oldest(), None);
        inflight.take(CommitTs::new(101), vec![changes[1].clone()]).unwrap();
        assert_eq!(inflight.oldest(), Some(CommitTs::new(101)));
        inflight.dropped(50);
        assert_eq!((inflight.oldest(), inflight.bytes), (None, 0));
    }

    #[test]
    fn a_type_change_is_left_to_the_ddl() {
        let (before, after) = definitions();
        let mut changing = after.info.clone();
        changing.cols.as_mut_slice()[2].change_state_info = Some(tidb::model::ChangeStateInfo::default());
        let mut inflight = InFlight::default();
        let changes = vec![brought(1, &[(3, 1)])];
        inflight.learn(50, &changes, Some(&changing));
        inflight.take(CommitTs::new(100), changes).unwrap();
        assert_eq!(inflight.oldest(), None);
        // Where TiDB could not be asked, the name tells: the old definition had a column of the new one's name.
        let mut inflight = InFlight::default();
        let mut old = before.info.clone();
        old.cols.as_mut_slice()[1].name = tidb::model::Name::new("b");
        let renamed = Definition { info: old, ..(*before).clone() };
        inflight.take(CommitTs::new(100), vec![brought(1, &[(3, 1)])]).unwrap();
        assert_eq!(inflight.fulfil(&renamed, &after).unwrap(), []);
    }

    #[test]
    fn the_budget_is_kept() {
        let mut inflight = InFlight::default();
        let big = Datum::Bytes(Bytes::from(vec![0; BUDGET]));
        let after = HeldRow { fields: Vec::new(), values: vec![(3, big)] };
        let change = HeldChange { table_id: 50, before: None, after: Some((identity(1), after)) };
        let error = inflight.take(CommitTs::new(1), vec![change]).unwrap_err();
        assert_eq!(error, InFlightError::TooMuch { table_id: 50, column_id: 3 });
    }
}
