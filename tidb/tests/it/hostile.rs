//! Bytes that TiDB does not send: recordings with bytes changed, cut or swapped, and noise. Nothing panics, and nothing
//! grows past a multiple of what was put in.

use bytes::Bytes;
use proptest::prelude::*;
use tidb::{
    binlog::{self, Change, Header},
    model::{Job, TableInfo},
    row::{self, RowImage, v2},
    value::Value,
};

use crate::recording;

/// Table definitions of every kind of key and type, with a row of each kind of change where the recordings have one.
fn samples() -> Vec<(TableInfo, Vec<Bytes>)> {
    let mut samples = Vec::new();
    for name in ["types", "keys"] {
        let jobs = Job::parse_list(&recording::history_body(name)).unwrap();
        let transactions = recording::committed(name);
        let definitions = recording::definitions(&jobs, &transactions);
        let mut rows: std::collections::BTreeMap<i64, Vec<Bytes>> = Default::default();
        for transaction in transactions.iter().filter(|t| !t.prewrite.prewrite_value.is_empty()) {
            for mutation in
                binlog::decode_value(transaction.prewrite.prewrite_value.clone()).unwrap().mutations
            {
                let rows = rows.entry(mutation.table_id.unwrap()).or_default();
                for change in binlog::changes(&mutation) {
                    let (Change::Insert(blob) | Change::Update(blob) | Change::Delete(blob)) =
                        change.unwrap();
                    if rows.len() < 12 && blob.len() < 4000 {
                        rows.push(blob.clone());
                    }
                }
            }
        }
        for (id, rows) in rows {
            samples.push((definitions[&id].last().unwrap().table.clone(), rows));
        }
    }
    assert!(samples.len() > 25);
    samples
}

/// Bytes of memory that an image holds, roughly; strings share the blob.
fn weight(image: &RowImage) -> usize {
    image.columns.len() * size_of::<(i64, Value)>() + image.unknown.len() * size_of::<row::Unknown>()
}

fn read_everything(table: &TableInfo, blob: &Bytes) {
    let limit = 64 * blob.len() + 4096;
    let images = [
        row::decode_insert(table, blob).map(|image| vec![image]),
        row::decode_update(table, blob).map(|(before, after)| vec![before, after]),
        row::decode_delete(table, blob).map(|image| vec![image]),
    ];
    for image in images.into_iter().flatten().flatten() {
        assert!(weight(&image) <= limit, "{} bytes became {}", blob.len(), weight(&image));
        for (id, value) in &image.columns {
            assert!(value.to_string().len() <= limit);
            let column = table.column(*id).unwrap();
            if let Ok(Some(text)) = value.to_text(&column.field_type) {
                assert!(text.len() <= limit);
            }
        }
        let _ = (row::encode_insert(&image), row::encode_delete(&image));
    }
    let _ = v2::Row::decode(blob);
    let _ = tidb::datum::decode_all(blob);
}

/// A few changes to a blob: a byte replaced, inserted or removed, the end cut off, a stretch repeated.
fn mutate(blob: &Bytes, edits: &[(u8, prop::sample::Index, u8)]) -> Bytes {
    let mut bytes = blob.to_vec();
    for (kind, at, byte) in edits {
        let at = at.index(bytes.len() + 1).min(bytes.len());
        match kind % 6 {
            0 if at < bytes.len() => bytes[at] = *byte,
            1 if at < bytes.len() => bytes[at] ^= 1 << (byte % 8),
            2 => bytes.insert(at, *byte),
            3 if at < bytes.len() => drop(bytes.remove(at)),
            4 => bytes.truncate(at),
            _ => {
                let again = bytes[at..(at + usize::from(*byte)).min(bytes.len())].to_vec();
                bytes.splice(at..at, again);
            }
        }
    }
    bytes.into()
}

type Edits = Vec<(u8, prop::sample::Index, u8)>;

fn edits() -> impl Strategy<Value = Edits> {
    prop::collection::vec(any::<(u8, prop::sample::Index, u8)>(), 1..4)
}

#[test]
fn mutated_rows() {
    let samples = samples();
    proptest!(ProptestConfig::with_cases(3000), |(table: prop::sample::Index, row: prop::sample::Index, edits in edits())| {
        let (table, rows) = &samples[table.index(samples.len())];
        read_everything(table, &mutate(&rows[row.index(rows.len())], &edits));
    });
}

#[test]
fn rows_of_other_tables() {
    let samples = samples();
    for (table, _) in &samples {
        for (_, rows) in &samples {
            for blob in rows.iter().take(3) {
                read_everything(table, blob);
            }
        }
    }
}

#[test]
fn noise() {
    let samples = samples();
    proptest!(ProptestConfig::with_cases(2000), |(table: prop::sample::Index, noise: Vec<u8>)| {
        let (table, _) = &samples[table.index(samples.len())];
        read_everything(table, &noise.into());
    });
}

#[test]
fn every_cut() {
    for (table, rows) in samples() {
        for blob in rows.iter().take(4) {
            for end in 0..blob.len() {
                read_everything(&table, &blob.slice(..end));
            }
        }
    }
}

#[test]
fn more_columns_than_a_table_has() {
    let table = samples().swap_remove(0).0;
    // Row id, then 300,000 NULLs of unknown columns.
    let mut blob = vec![8, 2];
    for id in 1000..301_000i64 {
        tidb::datum::Datum::Int(id).encode_value(&mut blob);
        blob.push(0);
    }
    let error = row::decode_insert(&table, &blob.into()).unwrap_err();
    assert_eq!(error.fault, row::RowFault::TooManyColumns);
}

#[test]
fn mutated_records() {
    let payloads: Vec<Bytes> = ["types", "keys", "ddl"]
        .iter()
        .flat_map(|n| recording::payloads(n))
        .filter(|p| p.len() < 10_000)
        .collect();
    proptest!(ProptestConfig::with_cases(3000), |(payload: prop::sample::Index, edits in edits())| {
        let bytes = mutate(&payloads[payload.index(payloads.len())], &edits);
        if let Ok(header) = Header::decode(bytes) {
            let _ = Header::decode(header.encode()).unwrap();
            if let Ok(value) = binlog::decode_value(header.prewrite_value) {
                for mutation in &value.mutations {
                    let rows = mutation.inserted_rows.len() + mutation.updated_rows.len() + mutation.deleted_rows.len();
                    prop_assert!(binlog::changes(mutation).count() <= rows + 1);
                }
            }
        }
    });
}

#[test]
fn mutated_schema_json() {
    let body = recording::history_body("shop");
    let jobs = Job::parse_list(&body).unwrap();
    let job = Bytes::from(tidb::gojson::to_vec(&jobs[0]).unwrap());
    proptest!(ProptestConfig::with_cases(2000), |(edits in edits())| {
        if let Ok(job) = Job::parse(&mutate(&job, &edits)) {
            let written = tidb::gojson::to_vec(&job).unwrap();
            prop_assert_eq!(Job::parse(&written).unwrap(), job);
        }
    });
}
