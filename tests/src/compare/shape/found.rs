//! What MariaDB has, from its `information_schema`.

use anyhow::Result;
use mysql_async::{Conn, prelude::Queryable as _};

use super::{
    ColumnShape, DefaultValue, ForeignKeyShape, KeyShape, Shape, condition, default_of, definition,
    plain_type, recorded, recorded::nameless,
};
use crate::compare::read::quoted;

type ColumnRow = (String, String, Option<String>, Option<String>, String, Option<String>, String, String);

/// A table, view or sequence of MariaDB.
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
        let query: Option<String> = session
            .exec_first(
                "SELECT view_definition FROM information_schema.views WHERE table_schema = ? AND table_name = ?",
                (schema, table),
            )
            .await?;
        shape.defined_as = definition(&query.unwrap_or_default());
        return Ok(shape);
    }
    if kind == "SEQUENCE" {
        let query = format!("SHOW CREATE SEQUENCE {}.{}", quoted(schema), quoted(table));
        let created: Option<(String, String)> = session.query_first(query).await?;
        shape.defined_as = recorded::sequence(&created.unwrap_or_default().1);
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
    let checks: Vec<(String, String)> = session
        .exec(
            "SELECT constraint_name, check_clause FROM information_schema.check_constraints WHERE constraint_schema = ? \
             AND table_name = ?",
            (schema, table),
        )
        .await?;
    for (name, clause) in checks {
        // Rule::JsonIsText: the CHECK of a JSON column has the column's name.
        if !shape.columns.iter().any(|column| column.name == name && column.kind == "longtext") {
            shape.checks.insert(name, condition(&clause));
        }
    }
    foreign_keys(session, schema, table, &mut shape).await?;
    partitions(session, schema, table, &mut shape).await?;
    let comment: Option<String> = session
        .exec_first(
            "SELECT table_comment FROM information_schema.tables WHERE table_schema = ? AND table_name = ?",
            (schema, table),
        )
        .await?;
    shape.comment = comment.unwrap_or_default();
    Ok(shape)
}

async fn foreign_keys(session: &mut Conn, schema: &str, table: &str, shape: &mut Shape) -> Result<()> {
    let rules: Vec<(String, String, String)> = session
        .exec(
            "SELECT constraint_name, delete_rule, update_rule FROM information_schema.referential_constraints WHERE \
             constraint_schema = ? AND table_name = ?",
            (schema, table),
        )
        .await?;
    for (name, on_delete, on_update) in rules {
        let parts: Vec<(String, String, String, String)> = session
            .exec(
                "SELECT column_name, referenced_table_schema, referenced_table_name, referenced_column_name FROM \
                 information_schema.key_column_usage WHERE table_schema = ? AND table_name = ? AND constraint_name = ? \
                 ORDER BY ordinal_position",
                (schema, table, &name),
            )
            .await?;
        let mut key = ForeignKeyShape { on_delete, on_update, ..ForeignKeyShape::default() };
        for (column, schema, table, referenced) in parts {
            key.columns.push(column);
            key.referenced = format!("{schema}.{table}");
            key.referenced_columns.push(referenced);
        }
        shape.foreign_keys.insert(name, key);
    }
    Ok(())
}

type PartitionRow = (String, String, Option<String>, Option<String>);

async fn partitions(session: &mut Conn, schema: &str, table: &str, shape: &mut Shape) -> Result<()> {
    let partitions: Vec<PartitionRow> = session
        .exec(
            "SELECT partition_name, partition_method, partition_expression, partition_description FROM \
             information_schema.partitions WHERE table_schema = ? AND table_name = ? AND partition_name IS NOT NULL \
             ORDER BY partition_ordinal_position",
            (schema, table),
        )
        .await?;
    for (name, method, expression, bound) in partitions {
        shape.partitioned_by = definition(&format!("{method} ({})", expression.unwrap_or_default()));
        shape.partitions.push((name, bound.unwrap_or_default()));
    }
    Ok(())
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
