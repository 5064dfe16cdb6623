//! Row changes as CSV, RFC 4180: a header line, CRLF, fields in double quotes where needed, quotes within doubled.
//!
//! Before the table's columns stand `_op`, `_seq`, `_change`, `_commit_ts`, `_start_ts`. An update is two lines,
//! `update_before` and `update_after`, with the same `_seq` and `_change`. NULL is the configured marker without quotes
//! (by default nothing), so that it differs from the empty string, which is `""`. Values are those of the JSON lines; a
//! document of a JSON column is its text, quoted where it could be taken for the marker. Virtual generated columns have no field.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemas::sluice::v1::Column;

use super::config::CsvConfig;
use super::json::elements;
use crate::event::{Change, ChangeKind, Row, Rows, Value};
use crate::schema::Table;

/// The fields before the table's own.
const OURS: [&str; 5] = ["_op", "_seq", "_change", "_commit_ts", "_start_ts"];

/// The header line.
pub fn header(out: &mut Vec<u8>, table: &Table, config: &CsvConfig) {
    for (index, name) in OURS.iter().enumerate() {
        separator(out, index);
        out.extend_from_slice(name.as_bytes());
    }
    for column in table.columns().iter().filter(|column| in_rows(column)) {
        out.push(b',');
        field(out, &column.name, config);
    }
    out.extend_from_slice(b"\r\n");
}

/// One change as a line, an update as two.
pub fn change(out: &mut Vec<u8>, rows: &Rows, number: u32, change: &Change, config: &CsvConfig) {
    match &change.kind {
        ChangeKind::Insert { after } => line(out, "insert", rows, number, &change.table, after, config),
        ChangeKind::Delete { before } => line(out, "delete", rows, number, &change.table, before, config),
        ChangeKind::Update { before, after } => {
            line(out, "update_before", rows, number, &change.table, before, config);
            line(out, "update_after", rows, number, &change.table, after, config);
        }
    }
}

fn in_rows(column: &Column) -> bool {
    !column.generated || column.generated_stored
}

fn separator(out: &mut Vec<u8>, index: usize) {
    if index > 0 {
        out.push(b',');
    }
}

fn line(out: &mut Vec<u8>, op: &str, rows: &Rows, number: u32, table: &Table, row: &Row, config: &CsvConfig) {
    let ours = [
        op.to_owned(),
        rows.seq.to_string(),
        number.to_string(),
        rows.commit_ts.to_string(),
        rows.start_ts.to_string(),
    ];
    for (index, text) in ours.iter().enumerate() {
        separator(out, index);
        out.extend_from_slice(text.as_bytes());
    }
    for (value, column) in row.iter().zip(table.columns()).filter(|(_, column)| in_rows(column)) {
        out.push(b',');
        match value {
            None => out.extend_from_slice(config.absent.as_bytes()),
            Some(Value::Null(_)) => out.extend_from_slice(config.null.as_bytes()),
            Some(value) => scalar(out, value, column, config),
        }
    }
    out.extend_from_slice(b"\r\n");
}

fn scalar(out: &mut Vec<u8>, value: &Value, column: &Column, config: &CsvConfig) {
    let plain = |out: &mut Vec<u8>, text: String| out.extend_from_slice(text.as_bytes());
    match value {
        Value::Null(_) => out.extend_from_slice(config.null.as_bytes()),
        Value::Int(v) => plain(out, v.to_string()),
        Value::Uint(v) | Value::Bit(v) => plain(out, v.to_string()),
        Value::Float(v) => plain(out, serde_json::Value::from(*v).to_string()),
        Value::Double(v) => plain(out, serde_json::Value::from(*v).to_string()),
        Value::Decimal(text) => plain(out, text.clone()),
        Value::Text(text) if config.formula_guard && text.starts_with(['=', '+', '-', '@', '\t', '\r']) => {
            field(out, &format!("'{text}"), config);
        }
        Value::Text(text)
        | Value::Date(text)
        | Value::Datetime(text)
        | Value::Timestamp(text)
        | Value::Time(text) => field(out, text, config),
        Value::Enum(_) | Value::Set(_) => field(out, &elements(value, column), config),
        Value::Bytes(bytes) => field(out, &STANDARD.encode(bytes), config),
        Value::Json(json) => field(out, &json.text, config),
    }
}

/// A string, in quotes if anything could mistake it.
fn field(out: &mut Vec<u8>, text: &str, config: &CsvConfig) {
    let quoted = text.is_empty()
        || text == config.null
        || text == config.absent
        || text.starts_with(' ')
        || text.ends_with(' ')
        || text.contains(['"', ',', '\r', '\n']);
    if !quoted {
        out.extend_from_slice(text.as_bytes());
        return;
    }
    out.push(b'"');
    for byte in text.bytes() {
        if byte == b'"' {
            out.push(b'"');
        }
        out.push(byte);
    }
    out.push(b'"');
}
