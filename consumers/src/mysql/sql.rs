//! Net changes as statements. Pure.
//!
//! Per table: all deletes, then updates that touch no unique key, then plain inserts, many rows a statement; never
//! REPLACE or ON DUPLICATE KEY UPDATE, so that a row that should not be there is seen. Each statement says how many rows
//! it must affect.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use schemas::sluice::v1::Column;

use super::fold::{FoldedTable, complete};
use super::literal::{BadDecimal, exactly, identifier, literal, string, table_name, types};
use super::session::Target;
use crate::event::{ChangeKind, Row, Value};
use crate::schema::Table;

/// What a statement does to rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Rows go.
    Delete,
    /// Rows change.
    Update,
    /// Rows come.
    Insert,
}

impl Kind {
    /// For metrics and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Delete => "delete",
            Self::Update => "update",
            Self::Insert => "insert",
        }
    }
}

/// A statement.
#[derive(Clone, Debug)]
pub struct Statement {
    /// Its text; `?` for each of `params`.
    pub sql: String,
    /// Values too large to be written out.
    pub params: Vec<Bytes>,
    /// What it does.
    pub kind: Kind,
    /// Rows it must find (delete, update) or write (insert).
    pub rows: u64,
    /// It holds an ENUM's error value, which strict mode refuses.
    pub lenient: bool,
    /// Its table.
    pub table: Arc<Table>,
}

impl Statement {
    /// `database.table`, for messages.
    pub fn table_name(&self) -> String {
        format!("{}.{}", self.table.database(), self.table.name())
    }
}

/// One row, by itself: what to run, and what instead if the row is missing.
#[derive(Debug)]
pub struct Single {
    /// What to run.
    pub statement: Statement,
    /// The same by all values of the row, where the key by which it is found may be on its way out. Rows equal in all of
    /// them are as good as one another.
    pub exact: Option<Statement>,
    /// An update's new row as an insert.
    pub insert_if_missing: Option<Statement>,
    /// An insert as REPLACE.
    pub replace_if_present: Option<Statement>,
    /// The row's key, for people.
    pub key: String,
}

/// How statements are cut.
#[derive(Clone, Debug)]
pub struct Renderer {
    /// For which server.
    pub target: Target,
    /// Most rows of a statement.
    pub rows: usize,
    /// Most bytes of a statement, unless a single row has more.
    pub bytes: usize,
}

/// Values larger than this are bound instead of written out.
const BOUND: usize = 64 * 1024;

/// Text of a statement in the making.
#[derive(Debug, Default)]
struct Draft {
    sql: String,
    params: Vec<Bytes>,
    lenient: bool,
}

impl Draft {
    fn value(&mut self, value: &Value, column: &Column) -> Result<(), BadDecimal> {
        self.lenient |= matches!(value, Value::Enum(0));
        let large = match value {
            Value::Bytes(bytes) if bytes.len() > BOUND => Some(bytes.clone()),
            Value::Text(text) if text.len() > BOUND => Some(Bytes::copy_from_slice(text.as_bytes())),
            Value::Json(json) if json.text.len() > BOUND => {
                Some(Bytes::copy_from_slice(json.text.as_bytes()))
            }
            _ => None,
        };
        match large {
            Some(bytes) => {
                self.sql.push('?');
                self.params.push(bytes);
                Ok(())
            }
            None => literal(&mut self.sql, value, column),
        }
    }

    fn into_statement(self, kind: Kind, rows: u64, table: &Arc<Table>) -> Statement {
        let Self { sql, params, lenient } = self;
        Statement { sql, params, kind, rows, lenient, table: table.clone() }
    }
}

fn is_large(row: &Row) -> bool {
    row.iter().flatten().any(|value| match value {
        Value::Bytes(bytes) => bytes.len() > BOUND,
        Value::Text(text) => text.len() > BOUND,
        Value::Json(json) => json.text.len() > BOUND,
        _ => false,
    })
}

impl Renderer {
    /// All statements of a stretch, in the order in which they must run.
    pub fn render(&self, tables: &[FoldedTable]) -> Result<Vec<Statement>, BadDecimal> {
        let mut out = Vec::new();
        for folded in tables {
            let table = &folded.table;
            self.deletes(table, &folded.deletes, &mut out)?;
            for (row, times) in &folded.counted_deletes {
                out.push(self.counted_delete(table, row, *times)?);
            }
            self.updates(table, &folded.updates, &mut out)?;
            self.inserts(table, &folded.inserts, &mut out)?;
            for kind in &folded.tail {
                out.push(self.tail(table, kind)?);
            }
        }
        Ok(out)
    }

    /// The same, a row at a time.
    pub fn render_singles(&self, tables: &[FoldedTable]) -> Result<Vec<Single>, BadDecimal> {
        let alone = Self { rows: 1, ..self.clone() };
        let mut out = Vec::new();
        for folded in tables {
            let table = &folded.table;
            let single = |statement, row: &Row| Single {
                statement,
                exact: None,
                insert_if_missing: None,
                replace_if_present: None,
                key: describe(table, row),
            };
            for row in &folded.deletes {
                let mut delete = single(alone.delete_one(table, row)?, row);
                if !table.has_lasting_identity() {
                    delete.exact = Some(self.tail(table, &ChangeKind::Delete { before: row.clone() })?);
                }
                out.push(delete);
            }
            for (row, times) in &folded.counted_deletes {
                out.push(single(self.counted_delete(table, row, *times)?, row));
            }
            for (before, after) in &folded.updates {
                let columns = changed(table, before, after);
                let mut update = single(alone.update_one(table, &columns, before, after)?, before);
                update.insert_if_missing =
                    Some(alone.insert(table, std::slice::from_ref(after), "INSERT")?);
                if !table.has_lasting_identity() {
                    let kind = ChangeKind::Update { before: before.clone(), after: after.clone() };
                    update.exact = Some(self.tail(table, &kind)?);
                }
                out.push(update);
            }
            for row in &folded.inserts {
                let rows = std::slice::from_ref(row);
                let mut insert = single(alone.insert(table, rows, "INSERT")?, row);
                insert.replace_if_present = Some(alone.insert(table, rows, "REPLACE")?);
                out.push(insert);
            }
            for kind in &folded.tail {
                let row = kind.before().or(kind.after());
                let mut tail = Single {
                    statement: self.tail(table, kind)?,
                    exact: None,
                    insert_if_missing: None,
                    replace_if_present: None,
                    key: row.map(|row| describe(table, row)).unwrap_or_default(),
                };
                if let ChangeKind::Update { after, .. } = kind {
                    tail.insert_if_missing =
                        Some(alone.insert(table, std::slice::from_ref(after), "INSERT")?);
                }
                out.push(tail);
            }
        }
        Ok(out)
    }

    fn deletes(&self, table: &Arc<Table>, rows: &[Row], out: &mut Vec<Statement>) -> Result<(), BadDecimal> {
        let places = table.identity().unwrap_or_default();
        let mut rest = rows;
        while !rest.is_empty() {
            let mut draft = Draft::default();
            let _ = write!(draft.sql, "DELETE FROM {} WHERE ", table_name(table.database(), table.name()));
            if let [place] = places {
                identifier(&mut draft.sql, &table.columns()[*place].name);
                draft.sql.push_str(" IN (");
            }
            let mut taken = 0;
            for row in rest {
                if taken == self.rows || (taken > 0 && draft.sql.len() > self.bytes) {
                    break;
                }
                match places {
                    [place] => {
                        draft.sql.push_str(if taken > 0 { "," } else { "" });
                        if let Some(value) = &row[*place] {
                            draft.value(value, &table.columns()[*place])?;
                        }
                    }
                    places => {
                        draft.sql.push_str(if taken > 0 { " OR (" } else { "(" });
                        self.key(&mut draft, table, places, row)?;
                        draft.sql.push(')');
                    }
                }
                taken += 1;
            }
            if places.len() == 1 {
                draft.sql.push(')');
            }
            out.push(draft.into_statement(Kind::Delete, taken as u64, table));
            rest = &rest[taken..];
        }
        Ok(())
    }

    fn delete_one(&self, table: &Arc<Table>, row: &Row) -> Result<Statement, BadDecimal> {
        let mut draft = Draft::default();
        let _ = write!(draft.sql, "DELETE FROM {} WHERE ", table_name(table.database(), table.name()));
        self.key(&mut draft, table, table.identity().unwrap_or_default(), row)?;
        Ok(draft.into_statement(Kind::Delete, 1, table))
    }

    /// `a = 1 AND b = 2` over the columns that tell rows apart.
    fn key(&self, draft: &mut Draft, table: &Table, places: &[usize], row: &Row) -> Result<(), BadDecimal> {
        for (index, place) in places.iter().enumerate() {
            draft.sql.push_str(if index > 0 { " AND " } else { "" });
            let column = &table.columns()[*place];
            identifier(&mut draft.sql, &column.name);
            draft.sql.push_str(" = ");
            if let Some(value) = &row[*place] {
                draft.value(value, column)?;
            }
        }
        Ok(())
    }

    fn counted_delete(&self, table: &Arc<Table>, row: &Row, times: u64) -> Result<Statement, BadDecimal> {
        let mut draft = Draft::default();
        let _ = write!(draft.sql, "DELETE FROM {} WHERE ", table_name(table.database(), table.name()));
        self.whole_row(&mut draft, table, row)?;
        let _ = write!(draft.sql, " LIMIT {times}");
        Ok(draft.into_statement(Kind::Delete, times, table))
    }

    /// All columns that the image has, exactly. Not generated ones: the target may compute them otherwise, and they follow
    /// from the others.
    fn whole_row(&self, draft: &mut Draft, table: &Table, row: &Row) -> Result<(), BadDecimal> {
        let mut first = true;
        for (value, column) in writable(table, row) {
            if !std::mem::take(&mut first) {
                draft.sql.push_str(" AND ");
            }
            exactly(&mut draft.sql, value, column, &self.target)?;
        }
        if first {
            draft.sql.push_str("TRUE");
        }
        Ok(())
    }

    fn updates(
        &self,
        table: &Arc<Table>,
        rows: &[(Row, Row)],
        out: &mut Vec<Statement>,
    ) -> Result<(), BadDecimal> {
        // All rows set what any of them changes; rows whose image lacks one of those columns go by what they have.
        let union: Vec<usize> = {
            let mut changes = vec![false; table.columns().len()];
            for (before, after) in rows {
                changed(table, before, after).into_iter().for_each(|place| changes[place] = true);
            }
            (0..changes.len()).filter(|place| changes[*place]).collect()
        };
        let mut groups: BTreeMap<Vec<usize>, Vec<&(Row, Row)>> = BTreeMap::new();
        for row in rows {
            let columns: Vec<usize> = union.iter().copied().filter(|place| row.1[*place].is_some()).collect();
            groups.entry(columns).or_default().push(row);
        }
        for (columns, rows) in groups {
            let together = joinable(table) && rows.len() > 1;
            let (one_by_one, joined): (Vec<_>, Vec<_>) =
                rows.into_iter().partition(|row| !together || is_large(&row.1));
            self.update_joined(table, &columns, &joined, out)?;
            for (before, after) in one_by_one {
                out.push(self.update_one(table, &columns, before, after)?);
            }
        }
        Ok(())
    }

    fn update_one(
        &self,
        table: &Arc<Table>,
        columns: &[usize],
        before: &Row,
        after: &Row,
    ) -> Result<Statement, BadDecimal> {
        let mut draft = Draft::default();
        let _ = write!(draft.sql, "UPDATE {} SET ", table_name(table.database(), table.name()));
        self.assignments(&mut draft, table, columns, after)?;
        draft.sql.push_str(" WHERE ");
        self.key(&mut draft, table, table.identity().unwrap_or_default(), before)?;
        Ok(draft.into_statement(Kind::Update, 1, table))
    }

    fn assignments(
        &self,
        draft: &mut Draft,
        table: &Table,
        columns: &[usize],
        after: &Row,
    ) -> Result<(), BadDecimal> {
        let mut first = true;
        for place in columns {
            let Some(value) = &after[*place] else { continue };
            if !std::mem::take(&mut first) {
                draft.sql.push(',');
            }
            let column = &table.columns()[*place];
            identifier(&mut draft.sql, &column.name);
            draft.sql.push('=');
            draft.value(value, column)?;
        }
        Ok(())
    }

    /// `UPDATE t JOIN (SELECT … UNION ALL …) d ON key SET t.c = d.c`.
    fn update_joined(
        &self,
        table: &Arc<Table>,
        columns: &[usize],
        rows: &[&(Row, Row)],
        out: &mut Vec<Statement>,
    ) -> Result<(), BadDecimal> {
        let places = table.identity().unwrap_or_default();
        let mut rest = rows;
        while !rest.is_empty() {
            let mut draft = Draft::default();
            let _ = write!(draft.sql, "UPDATE {} t JOIN (", table_name(table.database(), table.name()));
            let mut taken = 0;
            for (before, after) in rest {
                if taken == self.rows || (taken > 0 && draft.sql.len() > self.bytes) {
                    break;
                }
                draft.sql.push_str(if taken > 0 { " UNION ALL SELECT " } else { "SELECT " });
                let keys = places.iter().map(|place| (before, 'k', place));
                let values = columns.iter().map(|place| (after, 'c', place));
                for (index, (row, letter, place)) in keys.chain(values).enumerate() {
                    draft.sql.push_str(if index > 0 { "," } else { "" });
                    if let Some(value) = &row[*place] {
                        draft.value(value, &table.columns()[*place])?;
                    }
                    if taken == 0 {
                        let _ = write!(draft.sql, " AS {letter}{place}");
                    }
                }
                taken += 1;
            }
            draft.sql.push_str(") d ON ");
            for (index, place) in places.iter().enumerate() {
                draft.sql.push_str(if index > 0 { " AND t." } else { "t." });
                let column = &table.columns()[*place];
                identifier(&mut draft.sql, &column.name);
                self.joined_key(&mut draft.sql, column, *place);
            }
            for (index, place) in columns.iter().enumerate() {
                draft.sql.push_str(if index > 0 { ",t." } else { " SET t." });
                identifier(&mut draft.sql, &table.columns()[*place].name);
                let _ = write!(draft.sql, "=d.c{place}");
            }
            out.push(draft.into_statement(Kind::Update, taken as u64, table));
            rest = &rest[taken..];
        }
        Ok(())
    }

    /// A column of the derived table has the connection's collation; an index is found only in the column's own.
    fn joined_key(&self, sql: &mut String, column: &Column, place: usize) {
        let binary = column.charset.is_empty() || column.charset.eq_ignore_ascii_case("binary");
        if !types::is_string(column.mysql_type) || binary {
            let _ = write!(sql, "=d.k{place}");
            return;
        }
        let (charset, collate) = super::charset::for_target(&self.target, &column.charset, &column.collate);
        if charset.eq_ignore_ascii_case("utf8mb4") {
            let _ = write!(sql, "=d.k{place} COLLATE {collate}");
        } else {
            let _ = write!(sql, "=CONVERT(d.k{place} USING {charset}) COLLATE {collate}");
        }
    }

    fn inserts(&self, table: &Arc<Table>, rows: &[Row], out: &mut Vec<Statement>) -> Result<(), BadDecimal> {
        let mut groups: BTreeMap<Vec<bool>, Vec<&Row>> = BTreeMap::new();
        for row in rows {
            groups.entry(row.iter().map(Option::is_some).collect()).or_default().push(row);
        }
        for rows in groups.into_values() {
            let mut rest = &rows[..];
            while let Some(first) = rest.first() {
                let mut draft = self.insert_head(table, first, "INSERT");
                let mut taken = 0;
                for row in rest {
                    let large = is_large(row);
                    if taken == self.rows || (taken > 0 && (large || draft.sql.len() > self.bytes)) {
                        break;
                    }
                    draft.sql.push_str(if taken > 0 { ",(" } else { "(" });
                    self.insert_row(&mut draft, table, row)?;
                    draft.sql.push(')');
                    taken += 1;
                    if large {
                        break;
                    }
                }
                out.push(draft.into_statement(Kind::Insert, taken as u64, table));
                rest = &rest[taken..];
            }
        }
        Ok(())
    }

    fn insert(&self, table: &Arc<Table>, rows: &[Row], verb: &str) -> Result<Statement, BadDecimal> {
        let mut draft = Draft::default();
        for row in rows {
            draft = self.insert_head(table, row, verb);
            draft.sql.push('(');
            self.insert_row(&mut draft, table, row)?;
            draft.sql.push(')');
        }
        Ok(draft.into_statement(Kind::Insert, rows.len() as u64, table))
    }

    /// `INSERT INTO t (the columns that the row has) VALUES `.
    fn insert_head(&self, table: &Table, row: &Row, verb: &str) -> Draft {
        let mut sql = format!("{verb} INTO {} (", table_name(table.database(), table.name()));
        let mut first = true;
        for (_, column) in writable(table, row) {
            if !std::mem::take(&mut first) {
                sql.push(',');
            }
            identifier(&mut sql, &column.name);
        }
        sql.push_str(") VALUES ");
        Draft { sql, ..Draft::default() }
    }

    fn insert_row(&self, draft: &mut Draft, table: &Table, row: &Row) -> Result<(), BadDecimal> {
        let mut first = true;
        for (value, column) in writable(table, row) {
            if !std::mem::take(&mut first) {
                draft.sql.push(',');
            }
            draft.value(value, column)?;
        }
        Ok(())
    }

    /// A change that has to keep its place, its row found by all its values.
    fn tail(&self, table: &Arc<Table>, kind: &ChangeKind) -> Result<Statement, BadDecimal> {
        // Of rows that are equal in everything, any will do. Of rows that are equal in what the image has, a table without a
        // key cannot tell which was meant; where there is a key, more than one is a reason to stop.
        let limit =
            |row: &Row| if table.identity().is_none() || complete(table, row) { " LIMIT 1" } else { "" };
        match kind {
            ChangeKind::Insert { after } => self.insert(table, std::slice::from_ref(after), "INSERT"),
            ChangeKind::Delete { before } => {
                let mut draft = Draft::default();
                let _ =
                    write!(draft.sql, "DELETE FROM {} WHERE ", table_name(table.database(), table.name()));
                self.whole_row(&mut draft, table, before)?;
                draft.sql.push_str(limit(before));
                Ok(draft.into_statement(Kind::Delete, 1, table))
            }
            ChangeKind::Update { before, after } => {
                let mut draft = Draft::default();
                let _ = write!(draft.sql, "UPDATE {} SET ", table_name(table.database(), table.name()));
                let columns: Vec<usize> =
                    (0..after.len()).filter(|place| !table.columns()[*place].generated).collect();
                self.assignments(&mut draft, table, &columns, after)?;
                draft.sql.push_str(" WHERE ");
                self.whole_row(&mut draft, table, before)?;
                draft.sql.push_str(limit(before));
                Ok(draft.into_statement(Kind::Update, 1, table))
            }
        }
    }
}

/// Values that are written, with their columns: generated columns make themselves.
fn writable<'a>(table: &'a Table, row: &'a Row) -> impl Iterator<Item = (&'a Value, &'a Column)> {
    row.iter()
        .zip(table.columns())
        .filter(|(_, column)| !column.generated)
        .filter_map(|(v, c)| Some((v.as_ref()?, c)))
}

/// Places of the columns to set: those that changed and can be set. At least one, so that the statement has something to
/// do and still finds its row.
fn changed(table: &Table, before: &Row, after: &Row) -> Vec<usize> {
    let settable = |place: &usize| after[*place].is_some() && !table.columns()[*place].generated;
    let changed: Vec<usize> =
        (0..after.len()).filter(settable).filter(|place| before[*place] != after[*place]).collect();
    if changed.is_empty() { (0..after.len()).find(settable).into_iter().collect() } else { changed }
}

/// True if the identity's columns compare the same in a join as against a constant: integers, decimals and strings.
fn joinable(table: &Table) -> bool {
    let columns = table.identity().unwrap_or_default().iter().map(|place| &table.columns()[*place]);
    columns.into_iter().all(|column| {
        matches!(column.mysql_type, 1 | 2 | 3 | 8 | 9 | 246) || types::is_string(column.mysql_type)
    })
}

/// A row's key for people; the whole row if it has none.
fn describe(table: &Table, row: &Row) -> String {
    let all: Vec<usize> = (0..row.len()).collect();
    let mut out = String::new();
    for place in table.identity().unwrap_or(&all) {
        let Some(value) = &row[*place] else { continue };
        if out.len() > 200 {
            out.push('…');
            break;
        }
        out.push_str(if out.is_empty() { "" } else { ", " });
        out.push_str(&table.columns()[*place].name);
        out.push('=');
        match value {
            Value::Text(text) if text.len() > 64 => {
                string(&mut out, &text.chars().take(64).collect::<String>())
            }
            Value::Bytes(bytes) if bytes.len() > 32 => out.push_str("(bytes)"),
            value => {
                if literal(&mut out, value, &table.columns()[*place]).is_err() {
                    out.push('?');
                }
            }
        }
    }
    out
}
