//! Everything that was recorded decodes, and encodes to the same bytes.

use std::collections::HashSet;

use prost::Message;
use schemas::binlog::Binlog;
use tidb::{
    binlog::{self, Change, Header},
    gojson,
    model::{ActionType, Job, SchemaState},
    row::{decode_delete, decode_insert, decode_update, encode_delete, encode_insert, encode_update},
};

use crate::recording::{self, NAMES};

#[test]
fn envelopes_are_written_back() {
    for name in NAMES {
        for payload in recording::payloads(name) {
            let header = Header::decode(payload.clone()).unwrap();
            assert_eq!(header.encode(), payload, "{name} {}", header.start_ts);
            assert_eq!(Binlog::decode(payload.clone()).unwrap().encode_to_vec(), payload);
            if !header.prewrite_value.is_empty() {
                let value = binlog::decode_value(header.prewrite_value.clone()).unwrap();
                assert_eq!(binlog::encode_value(&value), header.prewrite_value, "{name} {}", header.start_ts);
            }
        }
    }
}

#[test]
fn rows_are_written_back() {
    let (mut inserts, mut updates, mut deletes, mut unknown) = (0, 0, 0, 0);
    for name in NAMES {
        let jobs = Job::parse_list(&recording::history_body(name)).unwrap();
        let transactions = recording::committed(name);
        let definitions = recording::definitions(&jobs, &transactions);
        for transaction in &transactions {
            if transaction.prewrite.prewrite_value.is_empty() {
                continue;
            }
            let value = binlog::decode_value(transaction.prewrite.prewrite_value.clone()).unwrap();
            for mutation in &value.mutations {
                let id = mutation.table_id.unwrap();
                let Some(definitions) = definitions.get(&id) else {
                    panic!("{name}: table {id} has no definition");
                };
                let table = recording::at(definitions, transaction.commit_ts);
                for change in binlog::changes(mutation) {
                    match change.unwrap() {
                        Change::Insert(blob) => {
                            let image = decode_insert(table, blob).unwrap();
                            assert_eq!(encode_insert(&image), *blob, "{name} {image:?}");
                            inserts += 1;
                            unknown += image.unknown.len();
                        }
                        Change::Update(blob) => {
                            let (before, after) = decode_update(table, blob).unwrap();
                            assert_eq!(encode_update(&before, &after), *blob, "{name} {before:?} {after:?}");
                            updates += 1;
                            unknown += before.unknown.len();
                        }
                        Change::Delete(blob) => {
                            let image = decode_delete(table, blob).unwrap();
                            assert_eq!(encode_delete(&image), *blob, "{name} {image:?}");
                            deletes += 1;
                            unknown += image.unknown.len();
                        }
                    }
                }
            }
        }
    }
    println!(
        "{inserts} inserts, {updates} updates, {deletes} deletes; {unknown} values of columns in flight"
    );
    // The recordings hold plenty of each; a decoder that finds nothing must not pass.
    assert!(inserts > 40_000 && updates > 5_000 && deletes > 1_000 && unknown > 10);
}

#[test]
fn history_is_written_back() {
    let mut kinds = HashSet::new();
    for name in NAMES {
        let body = recording::history_body(name);
        let jobs = Job::parse_list(&body).unwrap();
        assert!(jobs.len() > 45);
        let written = gojson::to_vec_indented(&jobs).unwrap();
        if let Some(at) = (0..body.len().max(written.len())).find(|&i| body.get(i) != written.get(i)) {
            let window = |text: &[u8]| {
                String::from_utf8_lossy(&text[at.saturating_sub(200)..(at + 100).min(text.len())])
                    .into_owned()
            };
            panic!("{name} differs at {at}:\n{}\n-- written:\n{}", window(&body), window(&written));
        }
        kinds.extend(jobs.iter().map(|j| j.kind));
        for table in jobs.iter().filter_map(|j| j.binlog.table_info.as_ref()) {
            let compact = gojson::to_vec(table).unwrap();
            assert_eq!(serde_json::from_slice::<tidb::model::TableInfo>(&compact).unwrap(), *table);
            assert!(table.is_view() || table.is_sequence() || table.public_columns().next().is_some());
            assert_eq!(
                table.cols.iter().filter(|c| c.state == SchemaState::Public).count(),
                table.cols.len()
            );
            // The columns of TiDB's own view have no types.
            for column in table.cols.iter().filter(|_| !table.is_view()) {
                column.origin_default_value().unwrap();
                assert!(!column.sql_type().contains("unknown"), "{}", column.sql_type());
            }
        }
    }
    assert!(kinds.len() > 35 && !kinds.iter().any(|k| matches!(k, ActionType::Other(_))), "{kinds:?}");
}
