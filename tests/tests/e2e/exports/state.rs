//! Exported files folded into a state: every change and schema change in the order of the feed, and what is left is held
//! against what TiDB had.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs,
};

use anyhow::{Context as _, Result, bail, ensure};
use e2e::{
    compare::{column_types, compare_rows},
    harness::site::{Format, Site},
    recording::{Cell, Table},
};
use serde_json::Value;

use super::{
    manifest,
    values::{Field, Type, csv},
};

/// A row image: text of the file by column; types come in later, from the recorded definition.
type Image = BTreeMap<String, Exported>;

/// A value as a file has it.
#[derive(Clone, Debug, PartialEq)]
enum Exported {
    Json(Value),
    Csv(Field),
}

/// Something that happened, in its place in the feed.
#[derive(Debug)]
enum Step {
    Change {
        table: String,
        before: Option<Image>,
        after: Option<Image>,
    },
    /// Names of a table before and after, by its id.
    Ddl {
        before: BTreeMap<u64, String>,
        after: BTreeMap<u64, String>,
    },
}

/// The rows of a table by the values of its primary key.
type Rows = BTreeMap<String, Image>;

/// The files hold exactly the changes that make the last recorded state of nothing. All tables have a primary key.
pub(crate) fn makes_the_recorded_state(site: &Site, format: Format) -> Result<()> {
    let state = site.recording().state(site.recording().end())?;
    let folder = site.exported();
    let (mut steps, mut keys) = (BTreeMap::new(), BTreeMap::new());
    for file in manifest(&folder)? {
        let path = file["path"].as_str().context("a file without path")?;
        let text = fs::read_to_string(folder.join(path)).with_context(|| path.to_owned())?;
        let table =
            format!("{}.{}", file["database"].as_str().unwrap_or(""), file["table"].as_str().unwrap_or(""));
        match file["kind"].as_str() {
            Some("rows") => rows(&text, format, &table, &mut steps).with_context(|| path.to_owned())?,
            Some("ddl") => ddl(&text, &mut steps).with_context(|| path.to_owned())?,
            _ => drop(keys.insert(table, primary_key(&text).with_context(|| path.to_owned())?)),
        }
    }
    let tables = fold(steps, &keys)?;
    for name in tables.keys().filter(|name| !tables[*name].is_empty()) {
        ensure!(state.tables.contains_key(name), "{name} is left, and was not recorded");
    }
    let mut values = 0;
    for (name, recorded) in state.tables.iter().filter(|(_, table)| table.kind == "BASE TABLE") {
        let (recorded, rows) = typed(recorded, tables.get(name)).with_context(|| name.clone())?;
        values += rows.iter().map(Vec::len).sum::<usize>();
        let outcome = compare_rows(&recorded, &rows);
        ensure!(outcome.differences.is_empty(), "{name} as exported: {:#?}", outcome.differences);
    }
    ensure!(values > 100, "only {values} values were compared: this proves nothing");
    Ok(())
}

fn add(steps: &mut BTreeMap<(u64, u64), Step>, at: (u64, u64), step: Step) -> Result<()> {
    match steps.entry(at) {
        Entry::Vacant(place) => drop(place.insert(step)),
        Entry::Occupied(there) => bail!("{:?} and {step:?} are both at {at:?}", there.get()),
    }
    Ok(())
}

fn rows(text: &str, format: Format, table: &str, steps: &mut BTreeMap<(u64, u64), Step>) -> Result<()> {
    match format {
        Format::Jsonl => json_rows(text, table, steps),
        Format::Csv => csv_rows(text, table, steps),
    }
}

fn number(line: &Value, name: &str) -> Result<u64> {
    line[name].as_u64().with_context(|| format!("no {name} in {line}"))
}

fn json_rows(text: &str, table: &str, steps: &mut BTreeMap<(u64, u64), Step>) -> Result<()> {
    for line in text.lines() {
        let line: Value = serde_json::from_str(line)?;
        let image = |name: &str| {
            line[name].as_object().map(|columns| {
                columns.iter().map(|(name, value)| (name.clone(), Exported::Json(value.clone()))).collect()
            })
        };
        let (before, after): (Option<Image>, Option<Image>) = (image("before"), image("after"));
        let expected = match line["op"].as_str() {
            Some("insert") => (false, true),
            Some("update") => (true, true),
            Some("delete") => (true, false),
            other => bail!("{other:?} is no kind of change"),
        };
        ensure!((before.is_some(), after.is_some()) == expected, "{line}");
        let at = (number(&line, "seq")?, number(&line, "change")? + 1);
        add(steps, at, Step::Change { table: table.to_owned(), before, after })?;
    }
    Ok(())
}

fn csv_rows(text: &str, table: &str, steps: &mut BTreeMap<(u64, u64), Step>) -> Result<()> {
    let mut lines = csv(text)?.into_iter();
    let head = lines.next().context("no header")?;
    let names: Vec<String> = head
        .into_iter()
        .map(|field| match field {
            Field::Text(name) => Ok(name),
            Field::Null => bail!("a column without a name"),
        })
        .collect::<Result<_>>()?;
    let mut open = None;
    for line in lines {
        ensure!(line.len() == names.len(), "{line:?} below {names:?}");
        let fields: BTreeMap<String, Field> = names.iter().cloned().zip(line).collect();
        let own = |name: &str| match fields.get(name) {
            Some(Field::Text(text)) => Ok(text.as_str()),
            other => bail!("{name} is {other:?}"),
        };
        let at = (own("_seq")?.parse::<u64>()?, own("_change")?.parse::<u64>()? + 1);
        let image: Image = fields
            .iter()
            .filter(|(name, field)| !name.starts_with('_') && **field != Field::Text("\\U".into()))
            .map(|(name, field)| (name.clone(), Exported::Csv(field.clone())))
            .collect();
        let (before, after) = match own("_op")? {
            "insert" => (None, Some(image)),
            "delete" => (Some(image), None),
            "update_before" => {
                open = Some(image);
                continue;
            }
            "update_after" => (Some(open.take().context("no before image")?), Some(image)),
            other => bail!("{other:?} is no kind of change"),
        };
        add(steps, at, Step::Change { table: table.to_owned(), before, after })?;
    }
    Ok(())
}

fn ddl(text: &str, steps: &mut BTreeMap<(u64, u64), Step>) -> Result<()> {
    for line in text.lines() {
        let line: Value = serde_json::from_str(line)?;
        let versions = |name: &str| -> Result<BTreeMap<u64, String>> {
            let versions = line[name].as_array().with_context(|| format!("no {name}"))?;
            let table = |version: &Value| {
                let part = |name: &str| version[name].as_str().unwrap_or_default();
                Ok((number(version, "table_id")?, format!("{}.{}", part("database"), part("table"))))
            };
            versions.iter().map(table).collect()
        };
        let step = Step::Ddl { before: versions("before")?, after: versions("after")? };
        add(steps, (number(&line, "seq")?, 0), step)?;
    }
    Ok(())
}

/// The columns of the primary key, from a file that holds a definition.
fn primary_key(text: &str) -> Result<Vec<String>> {
    let definition: Value = serde_json::from_str(text)?;
    let keys = definition["unique_keys"].as_array().context("no keys")?;
    let primary = keys.iter().find(|key| key["primary"] == true).context("no primary key")?;
    let columns = primary["columns"].as_array().context("a key without columns")?;
    columns.iter().map(|name| Ok(name.as_str().context("a column without a name")?.to_owned())).collect()
}

fn fold(
    steps: BTreeMap<(u64, u64), Step>,
    keys: &BTreeMap<String, Vec<String>>,
) -> Result<BTreeMap<String, Rows>> {
    let mut tables: BTreeMap<String, Rows> = BTreeMap::new();
    for (at, step) in steps {
        match step {
            Step::Ddl { before, after } => {
                for (id, name) in &before {
                    let rows = tables.remove(name).unwrap_or_default();
                    // Dropped, or truncated and known by another id from now on.
                    let Some(name) = after.get(id) else { continue };
                    tables.insert(name.clone(), rows);
                }
            }
            Step::Change { table, before, after } => {
                let columns = keys.get(&table).with_context(|| format!("no definition of {table}"))?;
                let key = |image: &Image| {
                    let values = columns.iter().map(|column| image.get(column));
                    format!("{:?}", values.collect::<Vec<_>>())
                };
                let rows = tables.entry(table.clone()).or_default();
                if let Some(before) = &before {
                    let held = rows.remove(&key(before));
                    let held =
                        held.with_context(|| format!("{table}: {at:?} changes a row that is not there"))?;
                    for (column, value) in held {
                        let seen = before.get(&column).is_none_or(|before| *before == value);
                        ensure!(
                            seen,
                            "{table}: {at:?} saw {column} as {:?}, it is {value:?}",
                            before.get(&column)
                        );
                    }
                }
                if let Some(after) = after {
                    let there = rows.insert(key(&after), after);
                    ensure!(there.is_none(), "{table}: {at:?} inserts a row that is there: {there:?}");
                }
            }
        }
    }
    Ok(tables)
}

/// The recorded table without what is not exported (virtual columns), and the rows in its form. A row older than a column
/// has that column's default.
fn typed(recorded: &Table, rows: Option<&Rows>) -> Result<(Table, Vec<Vec<Cell>>)> {
    let types = column_types(recorded);
    let exported: Vec<(usize, &String, &str)> = recorded
        .columns
        .iter()
        .enumerate()
        .map(|(place, name)| (place, name, types.get(name).copied().unwrap_or_default()))
        .filter(|(_, _, definition)| !definition.contains(") VIRTUAL"))
        .collect();
    let row = |image: &Image| -> Result<Vec<Cell>> {
        let cell = |&(_, name, definition): &(usize, &String, &str)| {
            let cell = match image.get(name) {
                Some(Exported::Json(value)) => Type(definition).of_json(value),
                Some(Exported::Csv(field)) => Type(definition).of_csv(field),
                None => {
                    let default =
                        definition.split_once("DEFAULT '").and_then(|(_, rest)| rest.split_once('\''));
                    let (default, _) =
                        default.with_context(|| format!("{name} is absent and has no default"))?;
                    Ok(Cell::Bytes(default.as_bytes().to_vec()))
                }
            };
            cell.with_context(|| name.clone())
        };
        exported.iter().map(cell).collect()
    };
    let rows = rows.into_iter().flat_map(|rows| rows.values()).map(row).collect::<Result<_>>()?;
    let mut narrowed = recorded.clone();
    narrowed.columns = exported.iter().map(|(_, name, _)| (*name).clone()).collect();
    for row in &mut narrowed.rows {
        *row = exported.iter().map(|(place, ..)| row[*place].clone()).collect();
    }
    Ok((narrowed, rows))
}
