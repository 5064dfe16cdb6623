//! A database as a replica has it: tables and columns by name, statements run as any server runs them.
//!
//! There are two of them. One takes every change by itself, the other the net changes of a stretch, as `apply-mysql` does.

use std::collections::BTreeMap;

use consumers::event::{Change, ChangeKind, Row, Value};
use consumers::mysql::fold::{Fold, FoldedTable};
use consumers::schema::Table;
use proptest::prelude::*;

use crate::statement::{Given, Range, Statement};

/// A row by column name; `None` is NULL.
pub(crate) type NamedRow = BTreeMap<String, Option<i64>>;
/// Tables by name, their rows sorted.
pub(crate) type Shown = BTreeMap<String, Vec<NamedRow>>;

/// What is not computed, and what is computed from what.
#[derive(Clone, Debug, Default)]
struct NaiveTable {
    rows: Vec<NamedRow>,
    generated: BTreeMap<String, String>,
}

#[derive(Default)]
pub(crate) struct Downstream {
    tables: BTreeMap<String, NaiveTable>,
}

/// Both databases.
#[derive(Default)]
pub(crate) struct Replicas {
    single: Downstream,
    net: Downstream,
    fold: Fold,
}

impl Replicas {
    pub(crate) fn apply(&mut self, change: Change) -> Result<(), TestCaseError> {
        self.single.apply(&change)?;
        self.fold.add(change);
        Ok(())
    }

    /// Ends a stretch.
    pub(crate) fn flush(&mut self) -> Result<(), TestCaseError> {
        let (tables, anomalies) = std::mem::take(&mut self.fold).finish();
        prop_assert_eq!(anomalies.total(), 0, "{:?}", anomalies);
        tables.iter().try_for_each(|table| self.net.folded(table))
    }

    pub(crate) fn ddl(&mut self, statement: &Statement) -> Result<(), TestCaseError> {
        self.flush()?;
        self.single.ddl(statement);
        self.net.ddl(statement);
        Ok(())
    }

    /// What there is by each change.
    pub(crate) fn single(&self) -> Shown {
        self.single.shown()
    }

    /// What there is by net changes; ends a stretch.
    pub(crate) fn net(&mut self) -> Result<Shown, TestCaseError> {
        self.flush()?;
        Ok(self.net.shown())
    }
}

/// The number that a value stands for.
fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Null(_) => None,
        Value::Int(value) => Some(*value),
        Value::Text(text) => Some(text.trim_end().parse().unwrap()),
        other => panic!("a value that no column here can have: {other:?}"),
    }
}

impl NaiveTable {
    /// A row with what is computed.
    fn computed(&self, row: &NamedRow) -> NamedRow {
        let of = |from: &String| row.get(from).copied().flatten().map(|value| value + 1);
        let generated = self.generated.iter().map(|(name, from)| (name.clone(), of(from)));
        row.iter().map(|(name, value)| (name.clone(), *value)).chain(generated).collect()
    }

    /// What an image says of the columns that are not computed.
    fn named(&self, table: &Table, row: &Row) -> NamedRow {
        let columns = table.columns().iter().zip(row.iter());
        let said = columns.filter(|(column, _)| !self.generated.contains_key(&column.name));
        said.filter_map(|(column, value)| Some((column.name.clone(), number(value.as_ref()?)))).collect()
    }

    /// What an image says of the columns that are computed is right.
    fn check(&self, table: &Table, row: &Row) -> Result<(), TestCaseError> {
        let named = self.named(table, row);
        let computed = self.computed(&named);
        for (column, value) in table.columns().iter().zip(row.iter()) {
            let (Some(from), Some(value)) = (self.generated.get(&column.name), value) else { continue };
            prop_assert!(column.generated_stored, "{} is in no image", column.name);
            // New rows have NULL in what is being dropped.
            if let (Some(value), true) = (number(value), named.contains_key(from)) {
                prop_assert_eq!(Some(value), computed[&column.name], "{} of {:?}", column.name, named);
            }
        }
        Ok(())
    }

    /// Where a row is that has all these values.
    fn find(&self, image: &NamedRow) -> Option<usize> {
        self.rows.iter().position(|row| image.iter().all(|(name, value)| row[name] == *value))
    }

    /// The rows that are the same by the table's key.
    fn by_key(&self, table: &Table, image: &NamedRow) -> Vec<usize> {
        let places = table.identity().expect("a table with a key");
        let names: Vec<&String> = places.iter().map(|place| &table.columns()[*place].name).collect();
        let wanted = self.computed(image);
        let same = |row: &NamedRow| {
            let row = self.computed(row);
            names.iter().all(|name| row[*name] == wanted[*name])
        };
        (0..self.rows.len()).filter(|at| same(&self.rows[*at])).collect()
    }
}

impl Range {
    fn has(&self, row: &NamedRow) -> bool {
        match row[&self.column] {
            Some(value) => self.from.is_none_or(|from| from <= value) && value < self.below,
            None => self.from.is_none(),
        }
    }
}

impl Downstream {
    fn table(&mut self, table: &Table) -> Result<&mut NaiveTable, TestCaseError> {
        let naive = self.tables.get_mut(table.name());
        naive.ok_or_else(|| TestCaseError::fail(format!("no table {}", table.name())))
    }

    /// Runs a change the strict way: a row that is not there, or there already, is an error.
    pub(crate) fn apply(&mut self, change: &Change) -> Result<(), TestCaseError> {
        let table = &change.table;
        let naive = self.table(table)?;
        let images = [change.kind.before(), change.kind.after()];
        images.into_iter().flatten().try_for_each(|image| naive.check(table, image))?;
        self.change(table, &change.kind)
    }

    fn change(&mut self, table: &Table, kind: &ChangeKind) -> Result<(), TestCaseError> {
        let naive = self.table(table)?;
        let missing = |image: &NamedRow| TestCaseError::fail(format!("{}: no row {image:?}", table.name()));
        match kind {
            ChangeKind::Insert { after } => {
                let after = naive.named(table, after);
                let known = table.columns().iter().filter(|column| !column.generated).count();
                prop_assert_eq!(after.len(), known, "an insert is complete");
                if table.has_lasting_identity() {
                    prop_assert!(
                        naive.by_key(table, &after).is_empty(),
                        "{} has {:?} already",
                        table.name(),
                        after
                    );
                }
                naive.rows.push(after);
            }
            ChangeKind::Update { before, after } => {
                let (before, after) = (naive.named(table, before), naive.named(table, after));
                let at = naive.find(&before).ok_or_else(|| missing(&before))?;
                naive.rows[at].extend(after);
            }
            ChangeKind::Delete { before } => {
                let before = naive.named(table, before);
                let at = naive.find(&before).ok_or_else(|| missing(&before))?;
                naive.rows.swap_remove(at);
            }
        }
        Ok(())
    }

    /// Runs the net changes of a stretch: rows are found by their key, or, where it tells them apart no more, by all of
    /// their values.
    fn folded(&mut self, folded: &FoldedTable) -> Result<(), TestCaseError> {
        let table = &folded.table;
        let naive = self.table(table)?;
        let find = |naive: &NaiveTable, image: &NamedRow| match naive.by_key(table, image).as_slice() {
            [at] => Ok(*at),
            [] => Err(TestCaseError::fail(format!("{}: no row {image:?}", table.name()))),
            _ if table.has_lasting_identity() => {
                Err(TestCaseError::fail(format!("{}: several rows like {image:?}", table.name())))
            }
            _ => naive
                .find(image)
                .ok_or_else(|| TestCaseError::fail(format!("{}: none is {image:?}", table.name()))),
        };
        for row in &folded.deletes {
            let row = naive.named(table, row);
            let at = find(naive, &row)?;
            naive.rows.swap_remove(at);
        }
        for (row, times) in &folded.counted_deletes {
            for _ in 0..*times {
                self.change(table, &ChangeKind::Delete { before: row.clone() })?;
            }
        }
        let naive = self.table(table)?;
        for (before, after) in &folded.updates {
            let (before, after) = (naive.named(table, before), naive.named(table, after));
            let at = find(naive, &before)?;
            naive.rows[at].extend(after);
        }
        for row in &folded.inserts {
            self.change(table, &ChangeKind::Insert { after: row.clone() })?;
        }
        folded.tail.iter().try_for_each(|kind| self.change(table, kind))
    }

    pub(crate) fn ddl(&mut self, statement: &Statement) {
        let tables = &mut self.tables;
        match statement {
            Statement::Create { table, generated } => {
                let generated = generated.iter().cloned().collect();
                assert!(tables.insert(table.clone(), NaiveTable { rows: Vec::new(), generated }).is_none());
            }
            Statement::Add { table, columns } => tables.get_mut(table).unwrap().add(columns),
            Statement::DropColumn { table, column } => tables.get_mut(table).unwrap().drop(column),
            Statement::RenameColumn { table, from, to } => tables.get_mut(table).unwrap().rename(from, to),
            Statement::Several { table, changed, dropped, added, .. } => {
                let table = tables.get_mut(table).unwrap();
                if let Some(changed) = changed {
                    table.rename(&changed.from, &changed.to);
                }
                if let Some(dropped) = dropped {
                    table.drop(dropped);
                }
                table.add(added);
            }
            Statement::CreateDatabase
            | Statement::ChangeType { .. }
            | Statement::Rowless { .. }
            | Statement::Nothing => {}
            Statement::RenameTable { from, to } => {
                let rows = tables.remove(from).unwrap();
                assert!(tables.insert(to.clone(), rows).is_none());
            }
            Statement::Truncate { table } => tables.get_mut(table).unwrap().rows.clear(),
            Statement::Drop { table } => assert!(tables.remove(table).is_some()),
            Statement::Clear { table, range, .. } => {
                tables.get_mut(table).unwrap().rows.retain(|row| !range.has(row));
            }
            Statement::Exchange { table, range, with, .. } => {
                let rows = &mut tables.get_mut(table).unwrap().rows;
                let (leave, stay) = std::mem::take(rows).into_iter().partition(|row| range.has(row));
                *rows = stay;
                let come = std::mem::replace(&mut tables.get_mut(with).unwrap().rows, leave);
                tables.get_mut(table).unwrap().rows.extend(come);
            }
        }
    }

    pub(crate) fn shown(&self) -> Shown {
        let shown = self.tables.iter().map(|(name, table)| {
            let mut rows: Vec<NamedRow> = table.rows.iter().map(|row| table.computed(row)).collect();
            rows.sort();
            (name.clone(), rows)
        });
        shown.collect()
    }
}

impl NaiveTable {
    fn add(&mut self, columns: &[Given]) {
        for Given { name, value, of, .. } in columns {
            match of {
                Some(of) => assert!(self.generated.insert(name.clone(), of.clone()).is_none()),
                None => {
                    self.rows.iter_mut().for_each(|row| assert!(row.insert(name.clone(), *value).is_none()));
                }
            }
        }
    }

    fn drop(&mut self, column: &str) {
        if self.generated.remove(column).is_none() {
            self.rows.iter_mut().for_each(|row| assert!(row.remove(column).is_some()));
        }
    }

    fn rename(&mut self, from: &str, to: &str) {
        if let Some(of) = self.generated.remove(from) {
            self.generated.insert(to.to_owned(), of);
        } else {
            for row in &mut self.rows {
                let value = row.remove(from).unwrap();
                row.insert(to.to_owned(), value);
            }
        }
    }
}
