//! Writing rows: the exact inverse of reading them.

use super::{ROW_ID, RowImage};
use crate::{datum::Datum, value::Value};

/// Writes an inserted row: the handle, then the columns that do not come from it.
pub fn encode_insert(image: &RowImage) -> Vec<u8> {
    let mut out = Vec::with_capacity(estimate(image));
    out.extend_from_slice(&image.handle);
    let start = out.len();
    put_columns(&mut out, image);
    if out.len() == start {
        out.push(0);
    }
    out
}

/// Writes an updated row from the images before and after.
pub fn encode_update(before: &RowImage, after: &RowImage) -> Vec<u8> {
    let mut out = Vec::with_capacity(estimate(before) + estimate(after));
    put_row(&mut out, before);
    put_row(&mut out, after);
    out
}

/// Writes a deleted row.
pub fn encode_delete(image: &RowImage) -> Vec<u8> {
    let mut out = Vec::with_capacity(estimate(image));
    put_row(&mut out, image);
    out
}

fn estimate(image: &RowImage) -> usize {
    let strings = image.columns.iter().map(|(_, value)| match value {
        Value::Bytes(v) | Value::Text(v) => v.len(),
        Value::Json(v) => v.value_bytes().len(),
        _ => 0,
    });
    image.handle.len() + 12 * (image.columns.len() + image.unknown.len() + 1) + strings.sum::<usize>()
}

fn put_row(out: &mut Vec<u8>, image: &RowImage) {
    let start = out.len();
    put_columns(out, image);
    if let Some(row_id) = image.row_id {
        put(out, ROW_ID, &Datum::Int(row_id));
    }
    if out.len() == start {
        out.push(0);
    }
}

fn put_columns(out: &mut Vec<u8>, image: &RowImage) {
    let mut unknown = image.unknown.iter().peekable();
    for (i, (id, value)) in image.columns.iter().enumerate().skip(image.from_handle) {
        while let Some(u) = unknown.next_if(|u| u.at <= i) {
            put(out, u.id, &u.datum);
        }
        put(out, *id, &value.to_datum());
    }
    for u in unknown {
        put(out, u.id, &u.datum);
    }
}

fn put(out: &mut Vec<u8>, id: i64, datum: &Datum) {
    Datum::Int(id).encode_value(out);
    datum.encode_value(out);
}
