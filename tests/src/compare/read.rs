//! What MariaDB holds, as its text protocol prints it.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use mysql_async::{Conn, Row, Value, prelude::Queryable as _};

use super::{Form, forms, shape};
use crate::recording::{Cell, State};

/// A table of MariaDB.
#[derive(Debug)]
pub(super) struct Found {
    /// As `information_schema` calls it.
    pub(super) kind: String,
    /// In order.
    pub(super) columns: Vec<String>,
    /// In no order.
    pub(super) rows: Vec<Vec<Cell>>,
    /// Its definition.
    pub(super) shape: shape::Shape,
}

/// Schemas that are not the user's: MariaDB's, and the one in which consumers keep their progress.
const OWN: &str = "'mysql','information_schema','performance_schema','sys','sluice_meta'";

/// All tables, by `schema.table`, at one moment. Rows are read for tables only.
pub(super) async fn tables(state: &State, session: &mut Conn) -> Result<BTreeMap<String, Found>> {
    session.query_drop("START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY").await?;
    let tables: Vec<(String, String, String)> = session
        .query(format!(
            "SELECT table_schema, table_name, table_type FROM information_schema.tables WHERE table_schema NOT IN ({OWN})"
        ))
        .await?;
    let mut found = BTreeMap::new();
    for (schema, table, kind) in tables {
        let name = format!("{schema}.{table}");
        let columns: Vec<String> = session
            .exec(
                "SELECT column_name FROM information_schema.columns WHERE table_schema = ? AND table_name = ? \
                 ORDER BY ordinal_position",
                (&schema, &table),
            )
            .await?;
        let shape = shape::found(session, &kind, &schema, &table).await?;
        let mut entry = Found { kind, columns, rows: Vec::new(), shape };
        if let Some(recorded) = state.tables.get(&name).filter(|table| table.columns == entry.columns) {
            let selected: Vec<String> =
                entry.columns.iter().zip(forms(recorded)).map(|(name, form)| select(name, form)).collect();
            let query = format!("SELECT {} FROM {}.{}", selected.join(", "), quoted(&schema), quoted(&table));
            let rows: Vec<Row> = session.query(query).await.with_context(|| format!("read {name}"))?;
            entry.rows =
                rows.into_iter().map(cells).collect::<Result<_>>().with_context(|| format!("read {name}"))?;
        }
        found.insert(name, entry);
    }
    session.query_drop("COMMIT").await?;
    Ok(found)
}

fn select(column: &str, form: Form) -> String {
    match form {
        Form::Float => format!("{} + 0e0", quoted(column)),
        Form::Exact | Form::Double | Form::ZeroFill | Form::Json => quoted(column),
    }
}

/// An identifier between back-ticks.
pub(super) fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

fn cells(row: Row) -> Result<Vec<Cell>> {
    row.unwrap()
        .into_iter()
        .map(|value| match value {
            Value::NULL => Ok(Cell::Null),
            Value::Bytes(bytes) => Ok(Cell::Bytes(bytes)),
            other => anyhow::bail!("{other:?} is not of the text protocol"),
        })
        .collect()
}
