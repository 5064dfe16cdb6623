//! What MariaDB has, from its `information_schema`.

use anyhow::Result;
use mysql_async::{Conn, prelude::Queryable as _};

use super::{ColumnShape, DefaultValue, KeyShape, Shape, default_of, plain_type, recorded::nameless};

type ColumnRow = (String, String, Option<String>, Option<String>, String, Option<String>, String, String);

/// A table or view of MariaDB.
pub(crate) async fn shape(session: &mut Conn, kind: &str, schema: &str, table: &str) -> Result<Shape> {
    let rows: Vec<ColumnRow> = session
        .exec(
            "SELECT column_name, column_type, character_set_name, collation_name, is_nullable, column_default, extra, \
             column_comment FROM information_schema.columns WHERE table_schema = ? AND table_name = ? ORDER BY \
             ordinal_position",
            (schema, table),
        )
        .await?;
    let mut shape = Shape::default();
    if kind == "VIEW" {
        shape.columns = rows.into_iter().map(|(name, ..)| nameless(name)).collect();
        return Ok(shape);
    }
    shape.columns = rows.into_iter().map(column).collect();
    let keys: Vec<(String, u8, String, Option<u64>, String)> = session
        .exec(
            "SELECT index_name, non_unique, column_name, sub_part, ignored FROM information_schema.statistics WHERE \
             table_schema = ? AND table_name = ? ORDER BY index_name, seq_in_index",
            (schema, table),
        )
        .await?;
    for (name, non_unique, column, length, ignored) in keys {
        let key = shape.keys.entry(name).or_insert(KeyShape {
            unique: non_unique == 0,
            parts: Vec::new(),
            ignored: ignored == "YES",
        });
        key.parts.push((column, length));
    }
    let constraints: Vec<(String, String)> = session
        .exec(
            "SELECT constraint_name, constraint_type FROM information_schema.table_constraints WHERE table_schema = ? AND \
             table_name = ? AND constraint_type IN ('FOREIGN KEY', 'CHECK')",
            (schema, table),
        )
        .await?;
    for (name, kind) in constraints {
        if kind == "FOREIGN KEY" {
            shape.foreign_keys.insert(name);
        } else if !shape.columns.iter().any(|column| column.name == name && column.kind == "longtext") {
            // Rule::JsonIsText: the CHECK of a JSON column has the column's name.
            shape.checks.insert(name);
        }
    }
    shape.partitions = session
        .exec(
            "SELECT partition_name FROM information_schema.partitions WHERE table_schema = ? AND table_name = ? AND \
             partition_name IS NOT NULL ORDER BY partition_ordinal_position",
            (schema, table),
        )
        .await?;
    let comment: Option<String> = session
        .exec_first(
            "SELECT table_comment FROM information_schema.tables WHERE table_schema = ? AND table_name = ?",
            (schema, table),
        )
        .await?;
    shape.comment = comment.unwrap_or_default();
    Ok(shape)
}

fn column(row: ColumnRow) -> ColumnShape {
    let (name, kind, charset, collation, nullable, default, extra, comment) = row;
    let upper = extra.to_uppercase();
    let generated = ["STORED", "VIRTUAL"].iter().find(|kind| upper.contains(&format!("{kind} GENERATED")));
    ColumnShape {
        name,
        kind: plain_type(&kind),
        text: charset.zip(collation),
        nullable: nullable == "YES",
        default: match default {
            Some(default) if generated.is_none() => default_of(&default),
            _ => DefaultValue::Absent,
        },
        on_update: upper.contains("ON UPDATE"),
        auto_increment: upper.contains("AUTO_INCREMENT"),
        generated: generated.map(|kind| (*kind).to_owned()),
        comment,
    }
}
