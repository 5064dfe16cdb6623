//! Reads exported files as a stranger would, by the manifest, and holds them against the log.

mod state;
mod values;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use e2e::{
    checker,
    harness::site::{Format, Site},
};
use serde_json::Value;

pub(crate) use state::makes_the_recorded_state;

/// A change: its transaction's start_ts and its number in it.
type Change = (u64, u64);

/// Every row change of the log is in the files that the manifest names, once, under its table; nothing else is; no other
/// file lies about.
pub(crate) async fn hold_the_log_once(site: &Site, format: Format) -> Result<()> {
    let log = checker::read::log(site.kafka.client(), site.topic()).await?;
    let mut logged: BTreeMap<Change, String> = BTreeMap::new();
    let mut pieces: Vec<Change> = Vec::new();
    for row in &log.rows {
        let change = (row.meta.start_ts, row.meta.change.into());
        match &row.table {
            Some((database, table)) => drop(logged.insert(change, format!("{database}.{table}"))),
            // A value in pieces names its table only as a whole.
            None => pieces.push(change),
        }
    }
    let folder = site.exported();
    let mut exported: BTreeMap<Change, String> = BTreeMap::new();
    let mut named = BTreeSet::from(["manifest.jsonl".to_owned()]);
    for file in manifest(&folder)? {
        let path = file["path"].as_str().context("a file without path")?.to_owned();
        let bytes = fs::read(folder.join(&path)).with_context(|| path.clone())?;
        ensure!(
            file["bytes"].as_u64() == Some(bytes.len() as u64),
            "{path} has {} bytes: {file}",
            bytes.len()
        );
        let checksum = format!("{:08x}", crc32c::crc32c(&bytes));
        ensure!(file["crc32c"] == checksum.as_str(), "{path} has the checksum {checksum}: {file}");
        if file["kind"] == "rows" {
            let table = format!(
                "{}.{}",
                file["database"].as_str().unwrap_or(""),
                file["table"].as_str().unwrap_or("")
            );
            let changes = match format {
                Format::Jsonl => json_lines(&bytes),
                Format::Csv => csv_lines(&bytes),
            }
            .with_context(|| path.clone())?;
            ensure!(
                file["rows"].as_u64() == Some(changes.len() as u64),
                "{path} holds {} changes: {file}",
                changes.len()
            );
            for change in changes {
                let before = exported.insert(change, table.clone());
                ensure!(
                    before.is_none(),
                    "{path}: start_ts {} change {} is exported twice",
                    change.0,
                    change.1
                );
            }
        }
        named.insert(path);
    }
    for change in pieces {
        let table = exported.get(&change).cloned().unwrap_or_else(|| "in pieces".to_owned());
        logged.insert(change, table);
    }
    ensure!(exported.len() > 50, "only {} changes exported: this proves nothing", exported.len());
    let differing = |a: &BTreeMap<Change, String>, b: &BTreeMap<Change, String>| -> Vec<String> {
        a.iter()
            .filter(|(change, table)| b.get(change) != Some(table))
            .map(|entry| format!("{entry:?}"))
            .take(5)
            .collect()
    };
    ensure!(
        exported == logged,
        "{} changes exported, {} logged; only in the files: {:?}; only in the log: {:?}",
        exported.len(),
        logged.len(),
        differing(&exported, &logged),
        differing(&logged, &exported)
    );
    let mut there = BTreeSet::new();
    walk(&folder, &folder, &mut there)?;
    let strangers: Vec<&String> = there.difference(&named).filter(|path| !path.starts_with('.')).collect();
    ensure!(strangers.is_empty(), "files that the manifest does not name: {strangers:?}");
    Ok(())
}

/// The files that the manifest names, over all of its checkpoints.
fn manifest(folder: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(folder.join("manifest.jsonl")).context("read the manifest")?;
    let mut files = Vec::new();
    for line in text.lines() {
        let checkpoint: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        files.extend(
            checkpoint["checkpoint"]["files"]
                .as_array()
                .context("a checkpoint without files")?
                .iter()
                .cloned(),
        );
    }
    Ok(files)
}

fn json_lines(bytes: &[u8]) -> Result<Vec<Change>> {
    let lines = str::from_utf8(bytes)?.lines();
    let change = |line: &str| -> Result<Change> {
        let row: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        Ok((row["start_ts"].as_u64().context("no start_ts")?, row["change"].as_u64().context("no change")?))
    };
    lines.map(change).collect()
}

/// An update is two lines, before and after.
fn csv_lines(bytes: &[u8]) -> Result<Vec<Change>> {
    let mut reader = csv::Reader::from_reader(bytes);
    let names = reader.headers()?.clone();
    let column =
        |name: &str| names.iter().position(|head| head == name).with_context(|| format!("no column {name}"));
    let (op, start_ts, number) = (column("_op")?, column("_start_ts")?, column("_change")?);
    let mut changes = Vec::new();
    let mut open: Option<Change> = None;
    for line in reader.records() {
        let line = line?;
        let change = (line[start_ts].parse()?, line[number].parse()?);
        match &line[op] {
            "update_before" => {
                ensure!(open.replace(change).is_none(), "two before images in a row at {change:?}")
            }
            "update_after" => {
                ensure!(open.take() == Some(change), "an after image without its before image at {change:?}");
                changes.push(change);
            }
            _ => changes.push(change),
        }
    }
    ensure!(open.is_none(), "ends with a before image");
    Ok(changes)
}

fn walk(root: &Path, folder: &Path, found: &mut BTreeSet<String>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            walk(root, &path, found)?;
        } else {
            found.insert(path.strip_prefix(root)?.display().to_string());
        }
    }
    Ok(())
}
