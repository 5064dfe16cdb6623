//! The schema topic: what the tracker knows, as records, and back. Pure.
//!
//! Keys are `table/<id>/<version>`, `database/<id>/<version>` and `ddl/<job id>`; nothing is ever overwritten with
//! something else, so compaction removes nothing but repetitions. A value too large for one record is cut: record *j*
//! (from 1) has the key `<key>/<j>`; the header says how many there are.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use prost::Message;
use schemas::digest::record_checksum;
use schemas::sluice::v1::schema_record::Body;
use schemas::sluice::v1::{DatabaseDefinition, DdlRecord, RowMeta, SchemaRecord, TableDefinition};
use tidb::model::{DbInfo, TableInfo};
use tidb::ts::CommitTs;

use super::{Database, Definition, Dropped, Effect, Tracker};
use crate::routing::Routing;

/// A record of the schema topic, ready to send.
#[derive(Clone, Debug, PartialEq)]
pub struct SchemaTopicRecord {
    /// The record's key.
    pub key: String,
    /// The value, or a slice of a large one.
    pub value: Bytes,
    /// The header `sluice`: number and count of the slices, checksum.
    pub meta: RowMeta,
}

/// Why the schema topic cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordsError {
    /// A record is not what a drainer writes.
    #[error("record {key:?}: {reason}")]
    Unreadable {
        /// Its key.
        key: String,
        /// What is wrong.
        reason: String,
    },
}

/// What one DDL adds to the schema topic.
pub fn of_effect(
    effect: &Effect,
    ddl: Option<&DdlRecord>,
    commit_ts: CommitTs,
    limit: usize,
) -> Vec<SchemaTopicRecord> {
    let mut out = Vec::new();
    for database in &effect.databases {
        put(&mut out, database_record(database, false), limit);
    }
    for database in &effect.dropped_databases {
        put(&mut out, database_record(database, true), limit);
    }
    for (table_id, dropped) in &effect.dropped {
        let before = effect.before.iter().find(|table| table.id() == *table_id);
        put(&mut out, dropped_record(*table_id, *dropped, before, commit_ts), limit);
    }
    for table in &effect.after {
        put(&mut out, (table_key(table.id(), table.version), Body::Table(table.to_proto())), limit);
    }
    if let Some(ddl) = ddl {
        put(&mut out, (format!("ddl/{}", ddl.job_id), Body::Ddl(ddl.clone())), limit);
    }
    out
}

/// Everything the tracker knows: the beginning of a feed.
pub fn of_all(tracker: &Tracker, limit: usize) -> Vec<SchemaTopicRecord> {
    let definitions = tracker.definitions();
    let mut out = Vec::new();
    let mut databases: Vec<_> = definitions.databases().collect();
    databases.sort_unstable_by_key(|database| database.info.id);
    for database in databases {
        put(&mut out, database_record(database, false), limit);
    }
    for gone in definitions.recoverable() {
        for table in &gone.tables {
            put(&mut out, (table_key(table.id(), table.version), Body::Table(table.to_proto())), limit);
        }
        let database = Database { version: tracker.version(), info: gone.info.clone() };
        put(&mut out, database_record(&database, true), limit);
    }
    let recoverable = || definitions.recoverable().iter().flat_map(|gone| &gone.tables);
    let mut dropped: Vec<_> = definitions.dropped().collect();
    dropped.sort_unstable_by_key(|(table_id, _)| *table_id);
    for (table_id, gone) in dropped {
        let before = recoverable().find(|table| table.id() == table_id);
        put(&mut out, dropped_record(table_id, gone, before, CommitTs::default()), limit);
    }
    let mut tables: Vec<_> = definitions.tables().collect();
    tables.sort_unstable_by_key(|table| table.id());
    for table in tables {
        put(&mut out, (table_key(table.id(), table.version), Body::Table(table.to_proto())), limit);
    }
    out
}

fn table_key(table_id: i64, version: i64) -> String {
    format!("table/{table_id}/{version}")
}

fn database_record(database: &Database, dropped: bool) -> (String, Body) {
    let info = &database.info;
    let definition = DatabaseDefinition {
        database_id: info.id,
        version: database.version,
        name: info.name.as_str().to_owned(),
        charset: info.charset.clone(),
        collate: info.collate.clone(),
        dropped,
        tidb_json: tidb::gojson::to_vec(info).unwrap_or_default().into(),
    };
    let gone = if dropped { "/dropped" } else { "" };
    (format!("database/{}/{}{gone}", info.id, database.version), Body::Database(definition))
}

fn dropped_record(
    table_id: i64,
    dropped: Dropped,
    before: Option<&Arc<Definition>>,
    commit_ts: CommitTs,
) -> (String, Body) {
    let definition = TableDefinition {
        table_id,
        version: dropped.version,
        database_id: before.map_or(0, |table| table.database_id),
        database: before.map(|table| table.database.clone()).unwrap_or_default(),
        table: before.map(|table| table.table().to_owned()).unwrap_or_default(),
        dropped: true,
        continued_by: dropped.continued_by,
        commit_ts: commit_ts.get(),
        ..TableDefinition::default()
    };
    (table_key(table_id, dropped.version), Body::Table(definition))
}

fn put(out: &mut Vec<SchemaTopicRecord>, (key, body): (String, Body), limit: usize) {
    let value = Bytes::from(SchemaRecord { body: Some(body) }.encode_to_vec());
    let room = limit.saturating_sub(key.len() + 16).max(1);
    let records = value.len().div_ceil(room).max(1) as u32;
    for record in 0..records {
        let from = record as usize * room;
        let slice = value.slice(from..value.len().min(from + room));
        let key = if record == 0 { key.clone() } else { format!("{key}/{record}") };
        let checksum = record_checksum(Some(key.as_bytes()), Some(&slice));
        let meta = RowMeta { record, records, checksum, ..RowMeta::default() };
        out.push(SchemaTopicRecord { key, value: slice, meta });
    }
}

/// Reads the schema topic from its beginning and puts a tracker together.
#[derive(Debug, Default)]
pub struct SchemaReader {
    partial: Option<(String, u32, u32, BytesMut)>,
    tables: HashMap<i64, TableDefinition>,
    databases: HashMap<i64, DatabaseDefinition>,
    /// Tables that went with their database, by its id.
    gone: HashMap<i64, Vec<TableDefinition>>,
    version: i64,
    keys: HashSet<String>,
}

impl SchemaReader {
    /// True if nothing was read.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// How many different keys were read.
    pub fn keys(&self) -> u64 {
        self.keys.len() as u64
    }

    /// Takes the next record of the topic.
    pub fn push(&mut self, key: &str, meta: &RowMeta, value: &[u8]) -> Result<(), RecordsError> {
        let unreadable = |reason: String| RecordsError::Unreadable { key: key.to_owned(), reason };
        if record_checksum(Some(key.as_bytes()), Some(value)) != meta.checksum {
            return Err(unreadable("its checksum does not fit".to_owned()));
        }
        self.keys.insert(key.to_owned());
        if meta.records <= 1 {
            self.partial = None;
            return self.take(key, value);
        }
        if meta.record == 0 {
            self.partial = Some((key.to_owned(), 1, meta.records, BytesMut::from(value)));
            return Ok(());
        }
        // A slice whose beginning compaction took away belongs to a repetition that follows.
        let Some((first, next, of, buffer)) = &mut self.partial else { return Ok(()) };
        if *key != format!("{first}/{}", meta.record) || *next != meta.record || *of != meta.records {
            return Err(unreadable(format!("a slice that does not follow slice {} of {first:?}", *next - 1)));
        }
        buffer.extend_from_slice(value);
        *next += 1;
        if *next == *of {
            let Some((first, _, _, buffer)) = self.partial.take() else { return Ok(()) };
            return self.take(&first, &buffer);
        }
        Ok(())
    }

    fn take(&mut self, key: &str, value: &[u8]) -> Result<(), RecordsError> {
        let unreadable = |reason: String| RecordsError::Unreadable { key: key.to_owned(), reason };
        let record = SchemaRecord::decode(value).map_err(|e| unreadable(e.to_string()))?;
        match record.body.ok_or_else(|| unreadable("a record of an unknown kind".to_owned()))? {
            Body::Table(table) => {
                self.version = self.version.max(table.version);
                let known = self.tables.get(&table.table_id);
                // A job that takes an id and gives it back (TRUNCATE never does) would stand here in order.
                if known.is_none_or(|known| known.version <= table.version) {
                    let database = self.databases.get(&table.database_id);
                    let with_it = database.is_some_and(|database| database.dropped);
                    if let Some(known) = known.filter(|known| table.dropped && with_it && !known.dropped) {
                        self.gone.entry(table.database_id).or_default().push(known.clone());
                    }
                    self.tables.insert(table.table_id, table);
                }
            }
            Body::Database(database) => {
                self.version = self.version.max(database.version);
                let known = self.databases.get(&database.database_id);
                if known.is_none_or(|known| known.version <= database.version) {
                    if !database.dropped {
                        self.gone.remove(&database.database_id);
                    }
                    self.databases.insert(database.database_id, database);
                }
            }
            Body::Ddl(ddl) => self.version = self.version.max(ddl.schema_version),
        }
        Ok(())
    }

    /// The tracker at the end of the topic.
    pub fn finish(mut self, routing: Arc<Routing>) -> Result<Tracker, RecordsError> {
        let mut tracker = Tracker::new(routing);
        let mut databases = HashMap::new();
        let mut lost = Vec::new();
        for database in self.databases.into_values() {
            let key = format!("database/{}/{}", database.database_id, database.version);
            let info: DbInfo = serde_json::from_slice(&database.tidb_json)
                .map_err(|e| RecordsError::Unreadable { key, reason: e.to_string() })?;
            if database.dropped {
                // A database's version is that of its own last change; its tables know when it went.
                let went = self
                    .gone
                    .get(&info.id)
                    .into_iter()
                    .flatten()
                    .filter_map(|t| self.tables.get(&t.table_id));
                lost.push((went.map(|t| t.version).max().unwrap_or(database.version), info.clone()));
            } else {
                tracker.restore_database(info.clone(), database.version);
            }
            databases.insert(database.database_id, info);
        }
        let info_of = |table: &TableDefinition| -> Result<TableInfo, RecordsError> {
            let key = table_key(table.table_id, table.version);
            serde_json::from_slice(&table.tidb_json)
                .map_err(|e| RecordsError::Unreadable { key, reason: e.to_string() })
        };
        lost.sort_unstable_by_key(|(version, _)| *version);
        for (_, database) in lost {
            let mut tables = self.gone.remove(&database.id).unwrap_or_default();
            tables.sort_unstable_by_key(|table| table.table_id);
            let tables = tables.iter().map(|table| Ok((info_of(table)?, table.version)));
            tracker.restore_recoverable(database, tables.collect::<Result<Vec<_>, _>>()?);
        }
        for table in self.tables.into_values() {
            if table.dropped {
                let dropped = Dropped { version: table.version, continued_by: table.continued_by };
                tracker.restore_dropped(table.table_id, dropped);
                continue;
            }
            let key = table_key(table.table_id, table.version);
            let unreadable = |reason: String| RecordsError::Unreadable { key: key.clone(), reason };
            let info = info_of(&table)?;
            let database = databases.get(&table.database_id).ok_or_else(|| {
                unreadable(format!("its database {} is not in the topic", table.database_id))
            })?;
            tracker.restore_table(database, info, table.version, CommitTs::new(table.commit_ts));
        }
        tracker.set_version(self.version);
        Ok(tracker)
    }
}
