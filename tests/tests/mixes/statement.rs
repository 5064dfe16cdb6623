//! What a DDL's text says, and the text.

use crate::table::{Column, Table, expression};

/// A column that is added, and what rows that are there get.
#[derive(Clone, Debug)]
pub(crate) struct Given {
    pub(crate) name: String,
    pub(crate) value: Option<i64>,
    /// The column that it is computed from.
    pub(crate) of: Option<String>,
    sql: String,
}

/// A column that gets another type, and perhaps another name.
#[derive(Clone, Debug)]
pub(crate) struct Changed {
    pub(crate) from: String,
    pub(crate) to: String,
    sql: String,
}

/// The rows of a partition: those whose column lies from here, or has no value, to there.
#[derive(Clone, Debug)]
pub(crate) struct Range {
    pub(crate) column: String,
    pub(crate) from: Option<i64>,
    pub(crate) below: i64,
}

#[derive(Clone, Debug)]
pub(crate) enum Statement {
    CreateDatabase,
    /// With the columns that are computed, and those that they are computed from.
    Create {
        table: String,
        generated: Vec<(String, String)>,
    },
    Add {
        table: String,
        columns: Vec<Given>,
    },
    DropColumn {
        table: String,
        column: String,
    },
    /// Several changes in one: a type change, a column and an index dropped, columns added.
    Several {
        table: String,
        changed: Option<Changed>,
        dropped: Option<String>,
        unkeyed: Option<String>,
        added: Vec<Given>,
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
        changed: Changed,
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
    /// A change that no row notices.
    Rowless {
        table: String,
        change: String,
    },
    /// A partition's rows go: TRUNCATE PARTITION, DROP PARTITION.
    Clear {
        table: String,
        change: String,
        range: Range,
    },
    /// A partition's rows and those of another table change places.
    Exchange {
        table: String,
        partition: String,
        range: Range,
        with: String,
    },
}

/// A column that is not generated, without its name.
fn definition(column: &Column) -> String {
    match (column.not_null, column.default) {
        (true, None) => "BIGINT NOT NULL".to_owned(),
        (true, Some(default)) => format!("BIGINT NOT NULL DEFAULT '{default}'"),
        (false, Some(default)) => format!("BIGINT DEFAULT '{default}'"),
        (false, None) => "BIGINT DEFAULT NULL".to_owned(),
    }
}

impl Given {
    pub(crate) fn new(column: &Column, table: &Table) -> Self {
        let of = column.generated.map(|generated| table.column(generated.of));
        let name = column.name.clone();
        let definition = match of {
            Some(of) => format!("BIGINT GENERATED ALWAYS AS ({}) VIRTUAL", expression(of)),
            None => definition(column),
        };
        let sql = format!("ADD COLUMN `{name}` {definition}");
        Self { name, value: column.filled(), of: of.map(|of| of.name.clone()), sql }
    }
}

impl Changed {
    pub(crate) fn new(column: &Column, to: &str) -> Self {
        let (from, definition) = (column.name.clone(), definition(column));
        let sql = if from == to {
            format!("MODIFY COLUMN `{from}` {definition}")
        } else {
            format!("CHANGE COLUMN `{from}` `{to}` {definition}")
        };
        Self { from, to: to.to_owned(), sql }
    }
}

impl Statement {
    /// As a user of TiDB would have typed it. (What a table is made of comes with the job.)
    pub(crate) fn sql(&self) -> String {
        match self {
            Self::CreateDatabase => "CREATE DATABASE `d`".into(),
            Self::Create { table, .. } => format!("CREATE TABLE `{table}` (…)"),
            Self::Add { table, columns } => {
                let columns = columns.iter().map(|given| given.sql.clone());
                format!("ALTER TABLE `{table}` {}", columns.collect::<Vec<_>>().join(", "))
            }
            Self::Several { table, changed, dropped, unkeyed, added } => {
                let changed = changed.as_ref().map(|changed| changed.sql.clone());
                let dropped = dropped.as_ref().map(|name| format!("DROP COLUMN `{name}`"));
                let unkeyed = unkeyed.clone();
                let added = added.iter().map(|given| given.sql.clone());
                let parts = changed.into_iter().chain(dropped).chain(unkeyed).chain(added);
                format!("ALTER TABLE `{table}` {}", parts.collect::<Vec<_>>().join(", "))
            }
            Self::Nothing => "ALTER TABLE …".into(),
            Self::DropColumn { table, column } => format!("ALTER TABLE `{table}` DROP COLUMN `{column}`"),
            Self::RenameColumn { table, from, to } => {
                format!("ALTER TABLE `{table}` RENAME COLUMN `{from}` TO `{to}`")
            }
            Self::ChangeType { table, changed } => format!("ALTER TABLE `{table}` {}", changed.sql),
            Self::RenameTable { from, to } => format!("RENAME TABLE `{from}` TO `{to}`"),
            Self::Truncate { table } => format!("TRUNCATE TABLE `{table}`"),
            Self::Drop { table } => format!("DROP TABLE `{table}`"),
            Self::Rowless { table, change } | Self::Clear { table, change, .. } => {
                format!("ALTER TABLE `{table}` {change}")
            }
            Self::Exchange { table, partition, with, .. } => {
                format!("ALTER TABLE `{table}` EXCHANGE PARTITION `{partition}` WITH TABLE `{with}`")
            }
        }
    }
}
