//! Holds a MariaDB against a recorded state: tables, views and sequences as they are defined ([`shape`]), and row by row.
//!
//! Cells are compared as the bytes both servers print, in UTC. Only where the two print one value differently are they
//! compared as values; [`Form`] lists those places, and there are no others.

pub mod load;
mod read;
pub mod shape;
pub mod zone;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use anyhow::Result;
use mysql_async::Conn;

use crate::recording::{Cell, State, Table};

/// How many differences of one table a report shows.
const SHOWN: usize = 5;

/// How a column's two texts are held against each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Byte for byte.
    Exact,
    /// FLOAT, as a number: MariaDB prints six digits of it (so it is read widened to DOUBLE), TiDB prints the shortest
    /// text that means it, but cuts that to six digits in exponent form.
    Float,
    /// DOUBLE, as a number: exponents are spelled differently (`1e15`, `1e+15`).
    Double,
    /// ZEROFILL integers, without leading zeros: MariaDB pads them, TiDB's text protocol does not.
    ZeroFill,
    /// JSON, as a document: MariaDB keeps the text it was given, and the order and spacing in it mean nothing.
    Json,
}

/// The outcome for all tables.
#[derive(Debug, Default)]
pub struct Comparison {
    /// By `schema.table`, of either side.
    pub tables: BTreeMap<String, TableComparison>,
}

/// The outcome for one table.
#[derive(Debug, Default)]
pub struct TableComparison {
    /// Rows in the recorded state.
    pub rows: usize,
    /// What differs, one line each; empty when equal.
    pub differences: Vec<String>,
}

impl Comparison {
    /// Whether every table is equal.
    pub fn is_equal(&self) -> bool {
        self.tables.values().all(|table| table.differences.is_empty())
    }

    /// Rows in the recorded state.
    pub fn rows(&self) -> usize {
        self.tables.values().map(|table| table.rows).sum()
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, table) in &self.tables {
            match table.differences.len() {
                0 => writeln!(f, "{name}: {} rows, equal", table.rows)?,
                n => writeln!(f, "{name}: {n} differences")?,
            }
            for difference in table.differences.iter().take(SHOWN) {
                writeln!(f, "  {difference}")?;
            }
            if table.differences.len() > SHOWN {
                writeln!(f, "  … and {} more", table.differences.len() - SHOWN)?;
            }
        }
        Ok(())
    }
}

/// Compares every table outside MariaDB's and Sluice's own schemas with the state. The session must be in UTC.
pub async fn compare(state: &State, session: &mut Conn) -> Result<Comparison> {
    let downstream = read::tables(state, session).await?;
    let names: BTreeSet<&String> = state.tables.keys().chain(downstream.keys()).collect();
    let tables = names.into_iter().map(|name| {
        let outcome = match (state.tables.get(name), downstream.get(name)) {
            (Some(recorded), Some(found)) => table(recorded, found),
            (Some(recorded), None) => differing(recorded.rows.len(), "is not there"),
            (None, _) => differing(0, "should not be there"),
        };
        (name.clone(), outcome)
    });
    Ok(Comparison { tables: tables.collect() })
}

fn differing(rows: usize, what: &str) -> TableComparison {
    TableComparison { rows, differences: vec![what.to_owned()] }
}

/// Compares rows that somebody else holds, in no order, with a table of the state. Their cells are as MariaDB prints them.
pub fn compare_rows(recorded: &Table, rows: &[Vec<Cell>]) -> TableComparison {
    TableComparison { rows: recorded.rows.len(), differences: row_differences(recorded, rows) }
}

/// The columns' definitions by their names, from SHOW CREATE TABLE: type first.
pub fn column_types(table: &Table) -> BTreeMap<String, &str> {
    table.create.lines().filter_map(column_definition).collect()
}

/// The forms of a table's columns, from its SHOW CREATE TABLE; a column that is not found there is `Exact`.
pub fn forms(table: &Table) -> Vec<Form> {
    let types = column_types(table);
    let form = |column: &String| match types.get(column).copied() {
        Some(definition) if definition.contains(" zerofill ") => Form::ZeroFill,
        Some(definition) => match definition.split(|c: char| !c.is_ascii_lowercase()).next() {
            Some("float") => Form::Float,
            Some("double") => Form::Double,
            Some("json") => Form::Json,
            _ => Form::Exact,
        },
        None => Form::Exact,
    };
    table.columns.iter().map(form).collect()
}

/// Name and the rest, which begins with the type, from a line like "  `a``b` double DEFAULT NULL,".
fn column_definition(line: &str) -> Option<(String, &str)> {
    let mut rest = line.trim_start().strip_prefix('`')?;
    let mut name = String::new();
    loop {
        let (part, after) = rest.split_once('`')?;
        name.push_str(part);
        match after.strip_prefix('`') {
            Some(more) => {
                name.push('`');
                rest = more;
            }
            None => {
                rest = after;
                break;
            }
        }
    }
    Some((name, rest.trim_start()))
}

fn table(recorded: &Table, found: &read::Found) -> TableComparison {
    let rows = recorded.rows.len();
    if recorded.kind != found.kind {
        return differing(rows, &format!("is a {}, recorded is a {}", found.kind, recorded.kind));
    }
    let mut differences =
        shape::differences(&shape::recorded(&recorded.kind, &recorded.create), &found.shape);
    if recorded.kind != "BASE TABLE" {
        return TableComparison { rows, differences };
    }
    if recorded.columns != found.columns {
        let what = format!(
            "has the columns {}, recorded are {}",
            found.columns.join(", "),
            recorded.columns.join(", ")
        );
        return differing(rows, &what);
    }
    differences.extend(row_differences(recorded, &found.rows));
    TableComparison { rows, differences }
}

fn row_differences(recorded: &Table, found: &[Vec<Cell>]) -> Vec<String> {
    let forms = forms(recorded);
    // Rows that may be equal share a bucket; inside it the strict comparison decides.
    let mut buckets: BTreeMap<Vec<Cell>, Vec<&Vec<Cell>>> = BTreeMap::new();
    for row in found {
        buckets.entry(bucket(&forms, row)).or_default().push(row);
    }
    let mut missing = Vec::new();
    for row in &recorded.rows {
        let candidates = buckets.entry(bucket(&forms, row)).or_default();
        match candidates.iter().position(|candidate| equal_rows(&forms, row, candidate)) {
            Some(at) => drop(candidates.swap_remove(at)),
            None => missing.push(row),
        }
    }
    let mut differences = Vec::new();
    let mut extra: Vec<&Vec<Cell>> = buckets.into_values().flatten().collect();
    for row in missing {
        // The first column is the key often enough to show what changed instead of two whole rows.
        match extra.iter().position(|candidate| candidate.first() == row.first()) {
            Some(at) => differences.push(changed(&recorded.columns, &forms, row, extra.swap_remove(at))),
            None => differences.push(format!("missing: {}", shown(&recorded.columns, row))),
        }
    }
    differences.extend(extra.into_iter().map(|row| format!("too many: {}", shown(&recorded.columns, row))));
    differences
}

fn bucket(forms: &[Form], row: &[Cell]) -> Vec<Cell> {
    let key = |(form, cell): (&Form, &Cell)| match form {
        Form::Exact => cell.clone(),
        Form::Float | Form::Double | Form::ZeroFill | Form::Json => Cell::Null,
    };
    forms.iter().zip(row).map(key).collect()
}

fn equal_rows(forms: &[Form], recorded: &[Cell], found: &[Cell]) -> bool {
    recorded.len() == found.len()
        && forms
            .iter()
            .zip(recorded)
            .zip(found)
            .all(|((form, recorded), found)| equal(*form, recorded, found))
}

fn equal(form: Form, recorded: &Cell, found: &Cell) -> bool {
    let (Cell::Bytes(recorded), Cell::Bytes(found)) = (recorded, found) else { return recorded == found };
    let texts = (str::from_utf8(recorded), str::from_utf8(found));
    let (Ok(recorded_text), Ok(found_text)) = texts else { return recorded == found };
    match form {
        Form::Exact => recorded == found,
        Form::Float => equal_floats(recorded_text, found_text),
        Form::Double => match (recorded_text.parse::<f64>(), found_text.parse::<f64>()) {
            (Ok(recorded), Ok(found)) => recorded == found,
            _ => false,
        },
        Form::ZeroFill => recorded_text.trim_start_matches('0') == found_text.trim_start_matches('0'),
        Form::Json => match (serde_json::from_str(recorded_text), serde_json::from_str(found_text)) {
            (Ok(recorded), Ok(found)) => equal_json(&recorded, &found),
            _ => false,
        },
    }
}

fn equal_floats(recorded: &str, found: &str) -> bool {
    let (Ok(value), Ok(widened)) = (recorded.parse::<f32>(), found.parse::<f64>()) else { return false };
    let exact = widened as f32;
    let cut =
        recorded.contains('e') && format!("{exact:.5e}").parse::<f64>().ok() == recorded.parse::<f64>().ok();
    f64::from(exact) == widened && (value == exact || cut)
}

fn equal_json(a: &serde_json::Value, b: &serde_json::Value) -> bool {
    use serde_json::Value::{Array, Number, Object};
    match (a, b) {
        (Number(a), Number(b)) => a == b || equal_numbers(a, b) || equal_numbers(b, a),
        (Array(a), Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal_json(a, b)),
        (Object(a), Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| equal_json(a, b)))
        }
        _ => a == b,
    }
}

/// Whether an integer and a floating-point number are one number: `1` and `1.0`.
fn equal_numbers(whole: &serde_json::Number, other: &serde_json::Number) -> bool {
    match (whole.as_i128(), other.as_f64().filter(|_| other.is_f64())) {
        // Of a whole number below 2^127 nothing is lost.
        (Some(whole), Some(other)) => other.fract() == 0.0 && other.abs() < 2e38 && other as i128 == whole,
        _ => false,
    }
}

fn changed(columns: &[String], forms: &[Form], recorded: &[Cell], found: &[Cell]) -> String {
    let key = columns.first().zip(recorded.first()).map(|(name, cell)| format!("{name}={}", text(cell)));
    let cells = columns.iter().zip(forms).zip(recorded.iter().zip(found));
    let parts: Vec<String> = cells
        .filter(|((_, form), (recorded, found))| !equal(**form, recorded, found))
        .map(|((name, _), (recorded, found))| {
            format!("{name} is {}, recorded {}", text(found), text(recorded))
        })
        .collect();
    format!("row {}: {}", key.unwrap_or_default(), parts.join("; "))
}

fn shown(columns: &[String], row: &[Cell]) -> String {
    let cells: Vec<String> =
        columns.iter().zip(row).map(|(name, cell)| format!("{name}={}", text(cell))).collect();
    cells.join(", ")
}

fn text(cell: &Cell) -> String {
    const LONGEST: usize = 60;
    let Cell::Bytes(bytes) = cell else { return "NULL".into() };
    let text = match str::from_utf8(bytes) {
        Ok(text) => format!("{text:?}"),
        Err(_) => format!("0x{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()),
    };
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], bytes.len()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cell(text: &str) -> Cell {
        Cell::Bytes(text.into())
    }

    fn recorded(rows: &[[&str; 2]]) -> Table {
        Table {
            kind: "BASE TABLE".into(),
            create: "CREATE TABLE `t` (\n  `id` int(11) NOT NULL,\n  `v` double DEFAULT NULL\n)".into(),
            columns: vec!["id".into(), "v".into()],
            rows: rows.iter().map(|row| row.iter().map(|text| cell(text)).collect()).collect(),
        }
    }

    fn found(rows: &[[&str; 2]]) -> read::Found {
        let Table { kind, columns, rows, create } = recorded(rows);
        let shape = shape::recorded(&kind, &create);
        read::Found { kind, columns, rows, shape }
    }

    #[test]
    fn finds_what_differs() {
        let state = recorded(&[["1", "1e15"], ["2", "2"], ["3", "3"]]);
        assert!(table(&state, &found(&[["3", "3"], ["1", "1e+15"], ["2", "2.0"]])).differences.is_empty());
        let outcome = table(&state, &found(&[["1", "1e15"], ["2", "2.5"], ["4", "4"]]));
        assert_eq!(
            outcome.differences,
            [
                r#"row id="2": v is "2.5", recorded "2""#,
                r#"missing: id="3", v="3""#,
                r#"too many: id="4", v="4""#
            ]
        );
        // A row twice is not a row once.
        assert_eq!(
            table(&state, &found(&[["1", "1e15"], ["2", "2"], ["3", "3"], ["3", "3"]])).differences.len(),
            1
        );
        assert_eq!(table(&state, &found(&[])).differences.len(), 3);
    }

    #[test]
    fn columns_and_kind_count() {
        let mut other = found(&[]);
        other.columns.swap(0, 1);
        assert!(table(&recorded(&[]), &other).differences[0].contains("columns v, id"));
        let mut view = found(&[]);
        view.kind = "VIEW".into();
        assert!(table(&recorded(&[]), &view).differences[0].contains("is a VIEW"));
    }

    #[test]
    fn numbers_and_documents() {
        for (form, recorded, found, same) in [
            (Form::Exact, "1.0", "1", false),
            (Form::Double, "0.1", "0.1", true),
            (Form::Double, "0.1", "0.10000000000000002", false),
            (Form::Float, "1.17549e-38", "1.1754943508222875e-38", true),
            (Form::Float, "16777216", "16777216", true),
            (Form::Float, "16777216", "16777200", false),
            (Form::Float, "0.1", "0.10000000149011612", true),
            (Form::Float, "0.1", "0.1", false),
            (Form::ZeroFill, "1", "00000001", true),
            (Form::ZeroFill, "0", "00000000", true),
            (Form::ZeroFill, "1", "00000010", false),
            (Form::Json, r#"{"a": 1, "b": [1.0]}"#, r#"{"b":[1],"a":1}"#, true),
            (Form::Json, r#"{"a": 1}"#, r#"{"a": 1, "b": 2}"#, false),
            (Form::Json, "9007199254740993", "9007199254740992", false),
            (Form::Json, "9007199254740993", "9007199254740992.0", false),
            (Form::Json, "9007199254740992.0", "9007199254740992", true),
            (Form::Json, "18446744073709551615", "18446744073709551616.0", false),
            (Form::Json, "-3", "-3.0", true),
            (Form::Json, "1.5", "1", false),
        ] {
            assert_eq!(equal(form, &cell(recorded), &cell(found)), same, "{form:?} {recorded} {found}");
        }
        assert!(!equal(Form::Exact, &Cell::Null, &cell("")));
    }

    #[test]
    fn reads_column_definitions() {
        assert_eq!(
            column_definition("  `a``b` float DEFAULT NULL,"),
            Some(("a`b".into(), "float DEFAULT NULL,"))
        );
        assert_eq!(column_definition("  `c` json"), Some(("c".into(), "json")));
        assert_eq!(column_definition("  PRIMARY KEY (`id`)"), None);
    }
}
