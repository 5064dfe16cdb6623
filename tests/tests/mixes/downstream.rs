//! A database as a replica has it: tables and columns by name, statements run as any server runs them.

use std::collections::BTreeMap;

use consumers::event::{Change, ChangeKind, Row, Value};
use consumers::schema::Table;
use proptest::prelude::*;

/// A row by column name; `None` is NULL.
pub(crate) type NamedRow = BTreeMap<String, Option<i64>>;
/// Tables by name, their rows sorted.
pub(crate) type Shown = BTreeMap<String, Vec<NamedRow>>;

/// What a DDL's text says.
#[derive(Clone, Debug)]
pub(crate) enum Statement {
    CreateDatabase,
    Create {
        table: String,
    },
    /// Columns with what they hold in rows that are there.
    Add {
        table: String,
        columns: Vec<(String, Option<i64>)>,
    },
    DropColumn {
        table: String,
        column: String,
    },
    /// Several changes in one: a type change (from, to), a column dropped, columns added.
    Several {
        table: String,
        changed: Option<(String, String)>,
        dropped: Option<String>,
        added: Vec<(String, Option<i64>)>,
    },
    /// It was undone.
    Nothing,
    RenameColumn {
        table: String,
        from: String,
        to: String,
    },
    /// Values stay: what TiDB converts them to is the same number here.
    ChangeType {
        table: String,
        column: String,
    },
    RenameTable {
        from: String,
        to: String,
    },
    Truncate {
        table: String,
    },
    Drop {
        table: String,
    },
}

impl Statement {
    /// As a user of TiDB would have typed it. (What a table is made of comes with the job.)
    pub(crate) fn sql(&self) -> String {
        match self {
            Self::CreateDatabase => "CREATE DATABASE `d`".into(),
            Self::Create { table } => format!("CREATE TABLE `{table}` (…)"),
            Self::Add { table, columns } => {
                let columns = columns.iter().map(added_column);
                format!("ALTER TABLE `{table}` {}", columns.collect::<Vec<_>>().join(", "))
            }
            Self::Several { table, changed, dropped, added } => {
                let changed = changed.as_ref().map(|(from, to)| {
                    if from == to {
                        format!("MODIFY COLUMN `{from}` BIGINT")
                    } else {
                        format!("CHANGE COLUMN `{from}` `{to}` BIGINT")
                    }
                });
                let dropped = dropped.as_ref().map(|name| format!("DROP COLUMN `{name}`"));
                let parts = changed.into_iter().chain(dropped).chain(added.iter().map(added_column));
                format!("ALTER TABLE `{table}` {}", parts.collect::<Vec<_>>().join(", "))
            }
            Self::Nothing => "ALTER TABLE …".into(),
            Self::DropColumn { table, column } => format!("ALTER TABLE `{table}` DROP COLUMN `{column}`"),
            Self::RenameColumn { table, from, to } => {
                format!("ALTER TABLE `{table}` RENAME COLUMN `{from}` TO `{to}`")
            }
            Self::ChangeType { table, column } => {
                format!("ALTER TABLE `{table}` MODIFY COLUMN `{column}` BIGINT")
            }
            Self::RenameTable { from, to } => format!("RENAME TABLE `{from}` TO `{to}`"),
            Self::Truncate { table } => format!("TRUNCATE TABLE `{table}`"),
            Self::Drop { table } => format!("DROP TABLE `{table}`"),
        }
    }
}

fn added_column((name, default): &(String, Option<i64>)) -> String {
    let default = default.map_or("NULL".into(), |default| format!("'{default}'"));
    format!("ADD COLUMN `{name}` BIGINT DEFAULT {default}")
}

#[derive(Default)]
pub(crate) struct Downstream {
    tables: Shown,
}

fn named(table: &Table, row: &Row) -> NamedRow {
    let cells = table.columns().iter().zip(row.iter());
    cells
        .filter_map(|(column, value)| {
            let value = match value.as_ref()? {
                Value::Null(_) => None,
                Value::Int(value) => Some(*value),
                other => panic!("a value that no column here can have: {other:?}"),
            };
            Some((column.name.clone(), value))
        })
        .collect()
}

impl Downstream {
    /// Runs a change the strict way: a row that is not there, or there already, is an error.
    pub(crate) fn apply(&mut self, change: &Change) -> Result<(), TestCaseError> {
        let table = &change.table;
        let rows = self.tables.get_mut(table.name());
        let Some(rows) = rows else { return Err(TestCaseError::fail(format!("no table {}", table.name()))) };
        let names: Option<Vec<&str>> = table
            .identity()
            .map(|places| places.iter().map(|place| table.columns()[*place].name.as_str()).collect());
        let find = |rows: &[NamedRow], image: &NamedRow| {
            rows.iter().position(|row| match &names {
                Some(names) => names.iter().all(|name| row[*name] == image[*name]),
                None => image.iter().all(|(name, value)| row[name] == *value),
            })
        };
        let missing = |image: &NamedRow| TestCaseError::fail(format!("{}: no row {image:?}", table.name()));
        match &change.kind {
            ChangeKind::Insert { after } => {
                let after = named(table, after);
                prop_assert_eq!(after.len(), table.columns().len(), "an insert is complete");
                prop_assert!(
                    names.is_none() || find(rows, &after).is_none(),
                    "{} is there already",
                    table.name()
                );
                rows.push(after);
            }
            ChangeKind::Update { before, after } => {
                let before = named(table, before);
                let at = find(rows, &before).ok_or_else(|| missing(&before))?;
                rows[at].extend(named(table, after));
            }
            ChangeKind::Delete { before } => {
                let before = named(table, before);
                let at = find(rows, &before).ok_or_else(|| missing(&before))?;
                rows.swap_remove(at);
            }
        }
        Ok(())
    }

    pub(crate) fn ddl(&mut self, statement: &Statement) {
        let rows = |tables: &mut Shown, table: &str, change: &dyn Fn(&mut NamedRow)| {
            tables.get_mut(table).unwrap().iter_mut().for_each(change);
        };
        match statement {
            Statement::Create { table } => assert!(self.tables.insert(table.clone(), Vec::new()).is_none()),
            Statement::Add { table, columns } => {
                rows(&mut self.tables, table, &|row| row.extend(columns.iter().cloned()));
            }
            Statement::DropColumn { table, column } => rows(&mut self.tables, table, &|row| {
                assert!(row.remove(column).is_some());
            }),
            Statement::RenameColumn { table, from, to } => rows(&mut self.tables, table, &|row| {
                let value = row.remove(from).unwrap();
                row.insert(to.clone(), value);
            }),
            Statement::Several { table, changed, dropped, added } => rows(&mut self.tables, table, &|row| {
                if let Some((from, to)) = changed {
                    let value = row.remove(from).unwrap();
                    row.insert(to.clone(), value);
                }
                if let Some(dropped) = dropped {
                    assert!(row.remove(dropped).is_some());
                }
                row.extend(added.iter().cloned());
            }),
            Statement::CreateDatabase | Statement::ChangeType { .. } | Statement::Nothing => {}
            Statement::RenameTable { from, to } => {
                let rows = self.tables.remove(from).unwrap();
                assert!(self.tables.insert(to.clone(), rows).is_none());
            }
            Statement::Truncate { table } => self.tables.get_mut(table).unwrap().clear(),
            Statement::Drop { table } => assert!(self.tables.remove(table).is_some()),
        }
    }

    pub(crate) fn shown(&self) -> Shown {
        let mut shown = self.tables.clone();
        shown.values_mut().for_each(|rows| rows.sort());
        shown
    }
}
