//! Row changes, schema changes and definitions as JSON lines.
//!
//! ```text
//! {"op":"update","seq":7,"change":0,"commit_ts":…,"start_ts":…,"database":"shop","table":"orders",
//!  "before":{"id":1,…},"after":{"id":1,…}}
//! ```
//!
//! Numbers are exact and may exceed 2⁵³; decimals are strings with all their digits; dates and times are strings, TIMESTAMP
//! in UTC; binary strings are base64; ENUM and SET are their names; BIT is a number. Character strings that are not valid
//! UTF-8 are `{"base64":"…"}`. A column that the log does not carry is left out.
//!
//! A JSON column is a string with the document's text, so that `"null"`, the document, is not `null`, SQL's NULL; every
//! other value of the column is a string, too, whatever its document holds. On request documents are embedded: then these
//! two look alike.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemas::sluice::v1::{Column, TableDefinition};
use serde_json::value::RawValue;
use serde_json::{Map, Value as Json, json};

use super::config::JsonColumns;
use crate::event::{Change, ChangeKind, Ddl, Row, Rows, Value};
use crate::schema::Table;

/// One change as a line.
pub fn change(
    out: &mut Vec<u8>,
    rows: &Rows,
    number: u32,
    change: &Change,
    documents: JsonColumns,
) -> serde_json::Result<()> {
    let op = match &change.kind {
        ChangeKind::Insert { .. } => "insert",
        ChangeKind::Update { .. } => "update",
        ChangeKind::Delete { .. } => "delete",
    };
    let head = json!({
        "op": op,
        "seq": rows.seq,
        "change": number,
        "commit_ts": rows.commit_ts.get(),
        "start_ts": rows.start_ts.get(),
        "database": change.table.database(),
        "table": change.table.name(),
    });
    let head = serde_json::to_vec(&head)?;
    out.extend_from_slice(&head[..head.len() - 1]);
    for (name, row) in [("before", change.kind.before()), ("after", change.kind.after())] {
        let Some(row) = row else { continue };
        out.extend_from_slice(b",\"");
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\":{");
        image(out, &change.table, row, documents)?;
        out.push(b'}');
    }
    if let Some(origin) = rows.origin {
        out.extend_from_slice(b",\"origin\":");
        serde_json::to_writer(
            &mut *out,
            &json!({ "cluster_id": origin.cluster_id, "commit_ts": origin.commit_ts }),
        )?;
    }
    out.extend_from_slice(b"}\n");
    Ok(())
}

fn image(out: &mut Vec<u8>, table: &Table, row: &Row, documents: JsonColumns) -> serde_json::Result<()> {
    let mut first = true;
    for (value, column) in row.iter().zip(table.columns()) {
        let Some(value) = value else { continue };
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        serde_json::to_writer(&mut *out, &column.name)?;
        out.push(b':');
        scalar(out, value, column, documents)?;
    }
    Ok(())
}

fn scalar(
    out: &mut Vec<u8>,
    value: &Value,
    column: &Column,
    documents: JsonColumns,
) -> serde_json::Result<()> {
    match value {
        Value::Null(_) => out.extend_from_slice(b"null"),
        Value::Int(v) => serde_json::to_writer(out, v)?,
        Value::Uint(v) | Value::Bit(v) => serde_json::to_writer(out, v)?,
        Value::Float(v) => serde_json::to_writer(out, v)?,
        Value::Double(v) => serde_json::to_writer(out, v)?,
        Value::Decimal(text)
        | Value::Text(text)
        | Value::Date(text)
        | Value::Datetime(text)
        | Value::Timestamp(text)
        | Value::Time(text) => serde_json::to_writer(out, text)?,
        Value::Enum(_) | Value::Set(_) => serde_json::to_writer(out, &elements(value, column))?,
        Value::Bytes(bytes) if column.charset == "binary" || column.charset.is_empty() => {
            serde_json::to_writer(out, &STANDARD.encode(bytes))?;
        }
        Value::Bytes(bytes) => serde_json::to_writer(out, &json!({ "base64": STANDARD.encode(bytes) }))?,
        Value::Json(json) => match documents {
            JsonColumns::Text => serde_json::to_writer(out, &json.text)?,
            JsonColumns::Embedded => match serde_json::from_str::<&RawValue>(&json.text) {
                Ok(raw) => out.extend_from_slice(raw.get().as_bytes()),
                // MySQL's JSON is JSON; should it ever not be, it is kept as text.
                Err(_) => serde_json::to_writer(out, &json.text)?,
            },
        },
    }
    Ok(())
}

/// The names of an ENUM's or SET's value: `""` for ENUM's error value, names joined by commas for a SET. A number that no
/// element stands for is written as that number.
pub fn elements(value: &Value, column: &Column) -> String {
    match value {
        Value::Enum(0) => String::new(),
        Value::Enum(index) => usize::try_from(index - 1)
            .ok()
            .and_then(|index| column.elements.get(index).cloned())
            .unwrap_or_else(|| index.to_string()),
        Value::Set(mask) if column.elements.len() < 64 && mask >> column.elements.len() != 0 => {
            mask.to_string()
        }
        Value::Set(mask) => {
            let names = column.elements.iter().enumerate().filter(|(bit, _)| mask >> bit & 1 == 1);
            names.map(|(_, name)| name.as_str()).collect::<Vec<_>>().join(",")
        }
        _ => String::new(),
    }
}

/// A schema change as a line.
pub fn ddl(out: &mut Vec<u8>, ddl: &Ddl) -> serde_json::Result<()> {
    let versions = |tables: &[std::sync::Arc<Table>]| -> Vec<Json> {
        let one = |table: &std::sync::Arc<Table>| json!({ "table_id": table.id(), "version": table.version(), "database": table.database(), "table": table.name() });
        tables.iter().map(one).collect()
    };
    let action = tidb::model::ActionType::from(ddl.entry.action.unsigned_abs());
    let line = json!({
        "op": "ddl",
        "seq": ddl.seq,
        "commit_ts": ddl.commit_ts.get(),
        "start_ts": ddl.start_ts.get(),
        "job_id": ddl.entry.job_id,
        "action": action.name(),
        "schema_version": ddl.entry.schema_version,
        "database": ddl.entry.current_database,
        "statement": ddl.entry.statement,
        "before": versions(&ddl.before),
        "after": versions(&ddl.after),
    });
    serde_json::to_writer(&mut *out, &line)?;
    out.push(b'\n');
    Ok(())
}

/// A definition as a document: what is needed to read its rows, and TiDB's own description under `tidb`.
pub fn definition(definition: &TableDefinition) -> serde_json::Result<Vec<u8>> {
    let columns: Vec<Json> = definition
        .columns
        .iter()
        .map(|column| {
            json!({
                "id": column.id,
                "name": column.name,
                "type": column.sql_type,
                "not_null": column.not_null,
                "charset": column.charset,
                "collate": column.collate,
                "elements": column.elements,
                "generated": column.generated,
                "stored": column.generated_stored,
            })
        })
        .collect();
    let name_of = |id: &i64| {
        definition.columns.iter().find(|column| column.id == *id).map(|column| column.name.as_str())
    };
    let keys: Vec<Json> = definition
        .unique_keys
        .iter()
        .map(|key| {
            json!({
                "name": key.name,
                "primary": key.primary,
                "columns": key.column_ids.iter().map(name_of).collect::<Vec<_>>(),
                "prefix_lengths": key.prefix_lengths,
            })
        })
        .collect();
    let mut document = Map::new();
    document.insert("table_id".into(), definition.table_id.into());
    document.insert("version".into(), definition.version.into());
    document.insert("database".into(), definition.database.as_str().into());
    document.insert("table".into(), definition.table.as_str().into());
    document.insert("kind".into(), definition.kind.as_str().into());
    document.insert("charset".into(), definition.charset.as_str().into());
    document.insert("collate".into(), definition.collate.as_str().into());
    document.insert("commit_ts".into(), definition.commit_ts.into());
    document.insert("columns".into(), columns.into());
    document.insert("unique_keys".into(), keys.into());
    let tidb = if definition.tidb_json.is_empty() {
        Json::Null
    } else {
        serde_json::from_slice(&definition.tidb_json)?
    };
    document.insert("tidb".into(), tidb);
    let mut text = serde_json::to_vec_pretty(&Json::Object(document))?;
    text.push(b'\n');
    Ok(text)
}
