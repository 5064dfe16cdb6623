//! The export's folder across crashes at every point, and what is in the files.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails loudly")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use consumers::event::{Change, ChangeKind, Ddl, Row, Rows, Value};
use consumers::files::config::{By, CsvConfig, Format, JsonColumns, JsonlConfig, OutputConfig};
use consumers::files::manifest::{Checkpoint, FileEntry, FileKind, Manifest};
use consumers::files::output::Output;
use consumers::position::{FeedId, Position};
use consumers::schema::Table;
use node::config::ByteSize;
use schemas::sluice::v1::{Column, DdlEntry, Json, Key, Null, TableDefinition};
use tidb::ts::{CommitTs, StartTs};

const HOURS: u64 = 3_600_000 << 18;

fn table(id: i64, name: &str) -> Arc<Table> {
    let column = |id, name: &str, mysql_type, charset: &str| Column {
        id,
        name: name.into(),
        mysql_type,
        charset: charset.into(),
        elements: vec!["new".into(), "it's, \"paid\"".into()],
        ..Default::default()
    };
    let mut doubled = column(9, "doubled", 3, "binary");
    doubled.generated = true;
    Arc::new(Table::new(TableDefinition {
        table_id: id,
        version: 3,
        database: "shop/..".into(),
        table: name.into(),
        columns: vec![
            column(1, "id", 8, "binary"),
            column(2, "note", 15, "utf8mb4"),
            column(3, "state", 247, "utf8mb4"),
            column(4, "raw", 252, "binary"),
            column(5, "doc", 245, "binary"),
            column(6, "price", 246, "binary"),
            doubled,
        ],
        unique_keys: vec![Key {
            name: "PRIMARY".into(),
            primary: true,
            column_ids: vec![1],
            prefix_lengths: vec![-1],
        }],
        kind: "table".into(),
        tidb_json: Bytes::from_static(b"{\"id\":1}"),
        ..Default::default()
    }))
}

fn row(id: i64, note: Option<&str>) -> Row {
    vec![
        Some(Value::Int(id)),
        Some(note.map_or(Value::Null(Null {}), |note| Value::Text(note.into()))),
        Some(Value::Enum(2)),
        Some(Value::Bytes(Bytes::from_static(b"\0\xff"))),
        Some(Value::Json(Json { text: "{\"a\": [1, null]}".into(), binary: Bytes::new() })),
        Some(Value::Decimal("-0.50".into())),
        None,
    ]
    .into()
}

fn position(seq: u64) -> Position {
    let feed_id = FeedId::from_bytes(&[1; 16]).unwrap();
    Position { feed_id, epoch: 1, seq, commit_ts: CommitTs::new(seq * HOURS), commits_offset: seq as i64 }
}

/// Transaction `seq`: rows of two tables, one every eight hours.
fn transaction(seq: u64) -> Rows {
    let kind = |id: i64| match seq % 3 {
        0 => ChangeKind::Delete { before: row(id, None) },
        1 => ChangeKind::Insert { after: row(id, Some("a,\"b\"\r\nc")) },
        _ => ChangeKind::Update { before: row(id, Some("")), after: row(id, Some("=1+1")) },
    };
    let change = |table, id| Change { table, kind: kind(id), cost: 100 };
    let id = seq as i64;
    Rows {
        seq,
        commit_ts: CommitTs::new(seq * 8 * HOURS),
        start_ts: StartTs::new(seq * 8 * HOURS - 1),
        origin: None,
        first_change: 0,
        changes: vec![
            change(table(1, "orders"), id),
            change(table(2, "a/b"), id),
            change(table(1, "orders"), id + 100),
        ],
        cost: 300,
        after: Some(position(seq)),
    }
}

fn ddl(seq: u64) -> Ddl {
    Ddl {
        seq,
        commit_ts: CommitTs::new(seq * 8 * HOURS),
        start_ts: StartTs::new(1),
        entry: DdlEntry { job_id: 9, action: 3, statement: "CREATE TABLE `x`".into(), ..Default::default() },
        before: vec![],
        after: vec![table(7, "x")],
        job: None,
        after_position: Some(position(seq)),
    }
}

fn config(dir: &Path, format: Format) -> OutputConfig {
    OutputConfig {
        dir: dir.to_owned(),
        format,
        rotate_bytes: ByteSize::b(1024),
        open_files: 2,
        ..OutputConfig::default()
    }
}

fn checkpoints(dir: &Path) -> Vec<Checkpoint> {
    let mut all = Vec::new();
    Manifest::open(dir, |checkpoint| all.push(checkpoint)).unwrap();
    all
}

fn files(dir: &Path) -> Vec<FileEntry> {
    checkpoints(dir).into_iter().flat_map(|checkpoint| checkpoint.files).collect()
}

/// All files below a folder, by path.
fn on_disk(dir: &Path, out: &mut BTreeSet<String>, root: &Path) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            on_disk(&entry.path(), out, root);
        } else {
            out.insert(entry.path().strip_prefix(root).unwrap().display().to_string());
        }
    }
}

/// (seq, change, table) of every line, and that every file is as the manifest says.
fn lines(dir: &Path) -> Vec<(u64, u64, String)> {
    let mut seen = Vec::new();
    for file in files(dir) {
        let bytes = fs::read(dir.join(&file.path)).unwrap();
        assert_eq!(bytes.len() as u64, file.bytes, "{}", file.path);
        assert_eq!(format!("{:08x}", crc32c::crc32c(&bytes)), file.crc32c, "{}", file.path);
        if file.kind != FileKind::Rows {
            continue;
        }
        let mut last = 0;
        let mut count = 0;
        for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let line: serde_json::Value = serde_json::from_slice(line).unwrap();
            let seq = line["seq"].as_u64().unwrap();
            assert!(seq >= last && (file.first_seq..=file.last_seq).contains(&seq));
            assert_eq!(line["table"], file.table);
            (last, count) = (seq, count + 1);
            seen.push((seq, line["change"].as_u64().unwrap(), file.table.clone()));
        }
        assert_eq!(count, file.rows);
    }
    seen.sort();
    seen
}

const LAST: u64 = 12;

/// Writes from the manifest's position to the end, with a checkpoint every `every` transactions; dies after transaction
/// `die`, without a checkpoint.
fn export(dir: &Path, every: u64, die: Option<u64>) {
    let mut output = Output::open(&config(dir, Format::Jsonl)).unwrap();
    let from = output.position().map_or(0, |position| position.seq);
    for seq in from + 1..=LAST {
        if seq == 5 {
            output.ddl(&ddl(seq)).unwrap();
        } else {
            output.rows(&transaction(seq)).unwrap();
        }
        if Some(seq) == die {
            return;
        }
        if seq % every == 0 {
            output.checkpoint(position(seq)).unwrap();
        }
    }
    if !LAST.is_multiple_of(every) {
        output.checkpoint(position(LAST)).unwrap();
    }
}

#[test]
fn every_row_is_exported_once_whatever_dies_when() {
    let smooth = tempfile::tempdir().unwrap();
    export(smooth.path(), 4, None);
    let expected = lines(smooth.path());
    assert_eq!(expected.len() as u64, (LAST - 1) * 3);
    let manifest = fs::read(smooth.path().join("manifest.jsonl")).unwrap();
    let whole: Vec<usize> =
        (0..manifest.len()).filter(|at| manifest[*at] == b'\n').map(|at| at + 1).collect();
    assert_eq!(whole.len(), 3);
    for die in 1..=LAST {
        let dir = tempfile::tempdir().unwrap();
        export(dir.path(), 4, Some(die));
        export(dir.path(), 3, Some(die.saturating_add(2)));
        export(dir.path(), 5, None);
        assert_eq!(lines(dir.path()), expected, "died after {die}");
    }
    // The manifest's last line reached the disk in part, or not at all; its files are all there.
    for cut in [whole[1], whole[1] + 1, whole[1] + 40, whole[2] - 1] {
        let dir = tempfile::tempdir().unwrap();
        export(dir.path(), 4, None);
        fs::write(dir.path().join("manifest.jsonl"), &manifest[..cut]).unwrap();
        export(dir.path(), 4, None);
        assert_eq!(lines(dir.path()), expected, "cut at {cut}");
    }
    // Nothing lies about that the manifest does not name.
    let mut found = BTreeSet::new();
    on_disk(smooth.path(), &mut found, smooth.path());
    let named: BTreeSet<String> =
        files(smooth.path()).into_iter().map(|file| file.path).chain(["manifest.jsonl".to_owned()]).collect();
    assert_eq!(found, named);
}

#[test]
fn names_stay_in_the_folder_and_strangers_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("mine")).unwrap();
    fs::write(dir.path().join("mine/notes.txt"), "mine").unwrap();
    fs::create_dir_all(dir.path().join("data/x")).unwrap();
    fs::write(dir.path().join("data/x/left-behind.jsonl"), "old").unwrap();
    export(dir.path(), 4, None);
    assert_eq!(fs::read(dir.path().join("mine/notes.txt")).unwrap(), b"mine");
    assert!(!dir.path().join("data/x").is_dir());
    let rows: Vec<FileEntry> =
        files(dir.path()).into_iter().filter(|file| file.kind == FileKind::Rows).collect();
    assert!(rows.iter().all(|file| file.path.starts_with("data/shop%2F%2E%2E/")));
    assert!(rows.iter().any(|file| file.path.contains("/a%2Fb/")));
    // By table and day: eight hours apart are three a day.
    let days: BTreeSet<&str> = rows.iter().map(|file| file.path.split('/').nth(3).unwrap()).collect();
    assert_eq!(
        days.into_iter().collect::<Vec<_>>(),
        ["1970-01-01", "1970-01-02", "1970-01-03", "1970-01-04", "1970-01-05"]
    );
    // Each table's definition lies beside its rows, once.
    let schemas: Vec<String> = files(dir.path())
        .into_iter()
        .filter(|file| file.kind == FileKind::Schema)
        .map(|file| file.path)
        .collect();
    assert_eq!(schemas.len(), 3);
    assert!(schemas.iter().any(|path| path == "data/shop%2F%2E%2E/orders/schema-1-3.json"), "{schemas:?}");
    let document: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.path().join(&schemas[0])).unwrap()).unwrap();
    assert_eq!(document["columns"][1]["name"], "note");
    assert_eq!(document["unique_keys"][0]["columns"][0], "id");
    assert_eq!(document["tidb"]["id"], 1);
}

#[test]
fn a_file_that_was_changed_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    export(dir.path(), 4, None);
    let file = files(dir.path()).remove(0);
    fs::write(dir.path().join(&file.path), "shorter").unwrap();
    let error = Output::open(&config(dir.path(), Format::Jsonl)).unwrap_err().to_string();
    assert!(error.contains(&file.path) && error.contains("7 bytes"), "{error}");
}

#[test]
fn json_lines_hold_exact_values() {
    let dir = tempfile::tempdir().unwrap();
    let mut output = Output::open(&config(dir.path(), Format::Jsonl)).unwrap();
    output.rows(&transaction(2)).unwrap();
    output.checkpoint(position(2)).unwrap();
    let file = files(dir.path())
        .into_iter()
        .find(|file| file.table == "a/b" && file.kind == FileKind::Rows)
        .unwrap();
    let text = fs::read_to_string(dir.path().join(&file.path)).unwrap();
    let line: serde_json::Value = serde_json::from_str(&text).unwrap();
    let expected = serde_json::json!({
        "op": "update", "seq": 2, "change": 1, "commit_ts": 16 * HOURS, "start_ts": 16 * HOURS - 1,
        "database": "shop/..", "table": "a/b",
        "before": {"id": 2, "note": "", "state": "it's, \"paid\"", "raw": "AP8=", "doc": "{\"a\": [1, null]}", "price": "-0.50"},
        "after": {"id": 2, "note": "=1+1", "state": "it's, \"paid\"", "raw": "AP8=", "doc": "{\"a\": [1, null]}", "price": "-0.50"},
    });
    assert_eq!(line, expected);
}

/// Transaction 1: rows whose JSON column is SQL's NULL, the document `null` and the document `"null"`.
fn nulls() -> Rows {
    let documents = [None, Some("null"), Some("\"null\"")];
    let changes = documents.into_iter().map(|document| {
        let value = document.map_or(Value::Null(Null {}), |text| {
            Value::Json(Json { text: text.into(), binary: Bytes::new() })
        });
        let mut after = row(1, None).to_vec();
        after[4] = Some(value);
        Change { table: table(1, "orders"), kind: ChangeKind::Insert { after: after.into() }, cost: 100 }
    });
    Rows { changes: changes.collect(), ..transaction(1) }
}

/// Exports [`nulls`] and reads the one file of rows.
fn exported_nulls(config: impl FnOnce(&mut OutputConfig)) -> (FileEntry, String) {
    let dir = tempfile::tempdir().unwrap();
    let mut options = OutputConfig { dir: dir.path().to_owned(), ..OutputConfig::default() };
    config(&mut options);
    let mut output = Output::open(&options).unwrap();
    output.rows(&nulls()).unwrap();
    output.checkpoint(position(1)).unwrap();
    let mut rows = files(dir.path());
    assert!(rows.iter().all(|file| (file.kind == FileKind::Rows) == file.json_columns.is_some()));
    rows.retain(|file| file.kind == FileKind::Rows);
    let text = fs::read_to_string(dir.path().join(&rows[0].path)).unwrap();
    (rows.remove(0), text)
}

#[test]
fn sql_null_is_not_the_document_null() {
    let documents = |text: &str| -> Vec<String> {
        text.lines()
            .map(|line| {
                let (_, rest) = line.split_once("\"doc\":").unwrap();
                rest.split_once(",\"price\"").unwrap().0.to_owned()
            })
            .collect()
    };
    let (file, text) = exported_nulls(|_| {});
    assert_eq!(documents(&text), ["null", "\"null\"", "\"\\\"null\\\"\""]);
    assert_eq!(file.json_columns, Some(JsonColumns::Text));
    // On request, at the price that is documented; the manifest tells who reads it.
    let (file, text) = exported_nulls(|options| {
        options.jsonl = JsonlConfig { json_columns: JsonColumns::Embedded };
    });
    assert_eq!(documents(&text), ["null", "null", "\"null\""]);
    assert_eq!(file.json_columns, Some(JsonColumns::Embedded));
    // CSV: without quotes it is NULL, whatever the marker.
    for (marker, expected) in
        [("", ["", "null", "\"\"\"null\"\"\""]), ("null", ["null", "\"null\"", "\"\"\"null\"\"\""])]
    {
        let (file, text) = exported_nulls(|options| {
            options.format = Format::Csv;
            options.csv.null = marker.to_owned();
        });
        let fields: Vec<&str> = text.lines().skip(1).map(|line| line.rsplit(',').nth(1).unwrap()).collect();
        assert_eq!(fields, expected);
        assert_eq!(file.json_columns, Some(JsonColumns::Text));
    }
}

#[test]
fn csv_reads_back_with_null_apart_from_empty() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), Format::Csv);
    config.by = By::None;
    config.csv = CsvConfig { formula_guard: true, ..CsvConfig::default() };
    let mut output = Output::open(&config).unwrap();
    (1..=3).for_each(|seq| output.rows(&transaction(seq)).unwrap());
    output.checkpoint(position(3)).unwrap();
    let file = files(dir.path())
        .into_iter()
        .find(|file| file.table == "a/b" && file.kind == FileKind::Rows)
        .unwrap();
    assert!(file.path.contains("/all/") && file.path.ends_with(".csv"));
    assert_eq!(file.rows, 3);
    let text = fs::read_to_string(dir.path().join(&file.path)).unwrap();
    let mut reader = csv::ReaderBuilder::new().from_reader(text.as_bytes());
    let header: Vec<String> = reader.headers().unwrap().iter().map(str::to_owned).collect();
    assert_eq!(
        header,
        ["_op", "_seq", "_change", "_commit_ts", "_start_ts", "id", "note", "state", "raw", "doc", "price"]
    );
    let records: Vec<BTreeMap<String, String>> = reader.deserialize().map(Result::unwrap).collect();
    let ops: Vec<&str> = records.iter().map(|record| record["_op"].as_str()).collect();
    assert_eq!(ops, ["insert", "update_before", "update_after", "delete"]);
    assert_eq!(records[0]["note"], "a,\"b\"\r\nc");
    assert_eq!(records[0]["state"], "it's, \"paid\"");
    assert_eq!(records[0]["raw"], "AP8=");
    assert_eq!(records[0]["doc"], "{\"a\": [1, null]}");
    assert_eq!(records[2]["note"], "'=1+1");
    // The empty string is quoted, NULL is not.
    let raw: Vec<&str> = text.split("\r\n").collect();
    assert!(
        raw.iter().any(|line| line.starts_with("update_before,2,1,") && line.contains(",2,\"\",")),
        "{text}"
    );
    assert!(raw.iter().any(|line| line.starts_with("delete,3,1,") && line.contains(",3,,")), "{text}");
}
