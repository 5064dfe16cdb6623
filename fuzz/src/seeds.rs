//! Inputs taken from the recordings, and the tables whose rows they are.

use std::{
    collections::{BTreeMap, HashSet},
    fs::File,
    io::Read,
    path::PathBuf,
};

use bytes::Bytes;
use flate2::read::GzDecoder;
use prost::Message;
use schemas::sluice::v1::{Origin, RowMeta};
use tidb::{
    binlog::{self, Change, Header},
    datum::Datum,
    gojson,
    model::{Job, TableInfo},
    row::{self, v2},
    value::Value,
};

/// Recordings with many types, keys and schema changes in few bytes.
const NAMES: [&str; 3] = ["types", "keys", "ddl"];
/// Rows of one table that become seeds.
const ROWS_PER_TABLE: usize = 12;
/// Larger inputs slow a fuzzer down and teach it little.
const MAX_LEN: usize = 4096;

fn unzip(name: &str, file: &str) -> Option<Vec<u8>> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name).join(file);
    let mut out = Vec::new();
    GzDecoder::new(File::open(path).ok()?).read_to_end(&mut out).unwrap();
    Some(out)
}

fn jobs(name: &str) -> Vec<Job> {
    Job::parse_list(&unzip(name, "ddl-history.json.gz").expect("a history")).unwrap()
}

/// The tables of the recordings by their last definition, with the recording's place in [`NAMES`].
fn definitions() -> Vec<(usize, TableInfo)> {
    let mut tables = BTreeMap::new();
    for (place, name) in NAMES.iter().enumerate() {
        // Newest job first; TiDB's own tables come before job 88.
        for job in jobs(name).iter().filter(|j| j.id > 88) {
            for table in job.binlog.table_info.iter().chain(&job.binlog.multiple_table_infos) {
                if !table.is_view() && !table.is_sequence() {
                    tables.entry((place, table.id)).or_insert_with(|| table.clone());
                }
            }
        }
    }
    let tables: Vec<_> = tables.into_iter().map(|((place, _), table)| (place, table)).collect();
    // One byte picks a table.
    assert!(tables.len() > 30 && tables.len() <= 256, "{} tables", tables.len());
    tables
}

/// The tables that the first byte of a row's input picks from.
pub fn tables() -> Vec<TableInfo> {
    definitions().into_iter().map(|(_, table)| table).collect()
}

fn payloads(name: &str) -> Vec<Bytes> {
    let files = (1..=3).filter_map(|pump| unzip(name, &format!("pump-{pump}.rec.gz")));
    let mut payloads = Vec::new();
    for data in files.map(Bytes::from) {
        let mut at = 0;
        while at < data.len() {
            let len = u32::from_be_bytes(data[at + 8..at + 12].try_into().unwrap()) as usize;
            payloads.push(data.slice(at + 12..at + 12 + len));
            at += 12 + len;
        }
    }
    payloads
}

/// Inputs by target.
pub fn seeds() -> BTreeMap<&'static str, Vec<Vec<u8>>> {
    let mut seeds: BTreeMap<&str, Vec<Vec<u8>>> = BTreeMap::new();
    let mut add = |target, seed: Vec<u8>| {
        if !seed.is_empty() && seed.len() <= MAX_LEN {
            seeds.entry(target).or_default().push(seed);
        }
    };
    let definitions = definitions();
    for (place, name) in NAMES.iter().enumerate() {
        let mut rows: BTreeMap<i64, usize> = BTreeMap::new();
        for (i, payload) in payloads(name).into_iter().enumerate() {
            if i % 4 == 0 {
                add("binlog", payload.to_vec());
            }
            let Ok(header) = Header::decode(payload) else { continue };
            let (start_ts, commit_ts) = (header.start_ts.get(), header.commit_ts.get());
            let value = binlog::decode_value(header.prewrite_value).unwrap();
            let schema_version = value.schema_version.unwrap_or_default();
            for mutation in value.mutations {
                let id = mutation.table_id.unwrap_or_default();
                if i % 16 == 0 {
                    let changes = mutation.sequence.len() as u32;
                    let meta = RowMeta {
                        epoch: 1 + place as u64,
                        seq: i as u64,
                        commit_ts: commit_ts.max(start_ts + 1),
                        start_ts,
                        changes,
                        change: changes.saturating_sub(1),
                        records: 1,
                        table_id: id,
                        schema_version,
                        checksum: 0x9e37_79b9_u32.wrapping_mul(i as u32),
                        ..RowMeta::default()
                    };
                    add("row_meta", meta.encode_to_vec());
                }
                let Some(picker) = definitions.iter().position(|(p, table)| (*p, table.id) == (place, id))
                else {
                    continue;
                };
                for change in binlog::changes(&mutation).map(Result::unwrap) {
                    let count = rows.entry(id).or_default();
                    *count += 1;
                    if *count > ROWS_PER_TABLE {
                        break;
                    }
                    let (Change::Insert(blob) | Change::Update(blob) | Change::Delete(blob)) = change;
                    let with_picker = |bytes: &[u8]| [&[picker as u8], bytes].concat();
                    add("row_v1", with_picker(blob));
                    add("datums", blob.to_vec());
                    if let Change::Insert(blob) = change
                        && let Ok(image) = row::decode_insert(&definitions[picker].1, blob)
                    {
                        let values = image.columns.iter().map(|(id, value)| (*id as u32, value.clone()));
                        add("row_v2", with_picker(&v2::Row::new(&values.collect::<Vec<_>>()).encode()));
                        image.columns.into_iter().for_each(|(_, value)| add_value(&mut add, &value));
                    }
                }
            }
        }
        for job in jobs(name).iter().filter(|j| j.id > 88).step_by(5) {
            add("job", gojson::to_vec(job).unwrap());
        }
    }
    let meta = RowMeta {
        epoch: 1,
        seq: 300,
        commit_ts: 441_534_075_405_598_721,
        start_ts: 441_534_075_403_763_717,
        changes: 1,
        records: 1,
        table_id: 104,
        schema_version: 57,
        origin: Some(Origin { cluster_id: 7, commit_ts: 441_534_075_405_598_721 }),
        checksum: 0xdead_beef,
        ..RowMeta::default()
    };
    add("row_meta", meta.encode_to_vec());
    for text in ["2024-02-29 12:34:56.123456", "-838:59:59.000001", "0000-00-00 00:00:00"] {
        add("time", text.as_bytes().to_vec());
    }
    for inputs in seeds.values_mut() {
        let mut seen = HashSet::new();
        inputs.retain(|input| seen.insert(input.clone()));
    }
    seeds
}

fn add_value(add: &mut impl FnMut(&'static str, Vec<u8>), value: &Value) {
    let mut out = Vec::new();
    match value {
        Value::Json(json) => {
            json.encode(&mut out);
            add("json", out);
            add("json", json.to_string().into_bytes());
        }
        Value::Decimal(decimal) => {
            decimal.encode(&mut out);
            add("decimal", out);
            let text = decimal.to_string();
            add("decimal", [&[decimal.precision(), decimal.frac()], text.as_bytes()].concat());
        }
        Value::Date(time) | Value::Datetime(time) | Value::Timestamp(time) => {
            add("time", time.packed().to_le_bytes().to_vec());
            add("time", time.core_time().to_le_bytes().to_vec());
        }
        Value::Duration(duration) => add("time", duration.to_string().into_bytes()),
        other => {
            other.to_datum().encode_key(&mut out);
            Datum::Null.encode_key(&mut out);
            add("datums", out);
        }
    }
}
