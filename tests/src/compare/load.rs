//! Puts a recorded state into MariaDB: the backup that a target is loaded from before it follows the log.

use anyhow::{Context as _, Result};
use mysql_async::{Conn, Value, prelude::Queryable as _};

use crate::recording::{Cell, State};

/// Creates every table of the state as it was recorded and fills it. The target must not have them yet.
pub async fn load(state: &State, session: &mut Conn) -> Result<()> {
    for (name, table) in &state.tables {
        let (schema, table_name) = name.split_once('.').context("a name without schema")?;
        session.query_drop(format!("CREATE DATABASE IF NOT EXISTS `{schema}`")).await?;
        session.query_drop(format!("USE `{schema}`")).await?;
        session.query_drop(&table.create).await?;
        let marks = vec!["?"; table.columns.len()].join(", ");
        for row in &table.rows {
            let values: Vec<Value> = row
                .iter()
                .map(|cell| match cell {
                    Cell::Null => Value::NULL,
                    Cell::Bytes(bytes) => Value::Bytes(bytes.clone()),
                })
                .collect();
            session.exec_drop(format!("INSERT INTO `{table_name}` VALUES ({marks})"), values).await?;
        }
    }
    Ok(())
}
