//! Table definitions and schema changes, as the schema topic has them.
//!
//! A definition is named by (table id, version) and never changes; rows and schema changes of the log say which one they
//! mean. What is older than the consumer's position, but for the newest definition of each table, is let go.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use schemas::sluice::v1::{Column, schema_record::Body};
use schemas::sluice::v1::{DatabaseDefinition, DdlRecord, RowMeta, SchemaRecord, TableDefinition};
use serde::Deserialize;
use tidb::ts::CommitTs;

/// One version of a table, with what is looked up all the time.
#[derive(Debug, PartialEq)]
pub struct Table {
    /// The definition.
    pub definition: TableDefinition,
    places: HashMap<i64, usize>,
    identity: Option<Vec<usize>>,
    lasting: bool,
    unique: Vec<Option<Vec<usize>>>,
}

impl Table {
    /// Prepares a definition.
    pub fn new(definition: TableDefinition) -> Self {
        let places: HashMap<i64, usize> =
            definition.columns.iter().enumerate().map(|(place, column)| (column.id, place)).collect();
        // Virtual generated columns are in no row; a key over one cannot be read off a row.
        let readable = |id: &i64| {
            let place = *places.get(id)?;
            let column = definition.columns.get(place)?;
            (!column.generated || column.generated_stored).then_some(place)
        };
        let unique: Vec<Option<Vec<usize>>> =
            definition.unique_keys.iter().map(|key| key.column_ids.iter().map(readable).collect()).collect();
        let identity = definition.unique_keys.iter().zip(&unique).find_map(|(key, places)| {
            let places = places.as_ref()?;
            let never_null =
                places.iter().all(|place| definition.columns.get(*place).is_some_and(|c| c.not_null));
            (key.primary || never_null).then(|| (places.clone(), key.primary))
        });
        let (identity, primary) = identity.map_or((None, false), |(places, primary)| (Some(places), primary));
        let lasting = primary && is_clustered(&definition);
        Self { places, identity, lasting, unique, definition }
    }

    /// TiDB's table id.
    pub fn id(&self) -> i64 {
        self.definition.table_id
    }

    /// The schema version that made this definition.
    pub fn version(&self) -> i64 {
        self.definition.version
    }

    /// Its database.
    pub fn database(&self) -> &str {
        &self.definition.database
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.definition.table
    }

    /// Its public columns, in order.
    pub fn columns(&self) -> &[Column] {
        &self.definition.columns
    }

    /// Place of a column in [`Self::columns`] and in rows.
    pub fn place(&self, column_id: i64) -> Option<usize> {
        self.places.get(&column_id).copied()
    }

    /// The places of the columns that tell rows apart: those of the primary key, else of the first unique key whose
    /// columns are all NOT NULL. `None`: only the whole row does.
    pub fn identity(&self) -> Option<&[usize]> {
        self.identity.as_deref()
    }

    /// True if the identity is the primary key and that is clustered. Any other unique key may be dropped while rows are
    /// written, a primary key that is not clustered too, and from the moment the upstream begins to drop it, rows that are
    /// equal in it come.
    pub fn has_lasting_identity(&self) -> bool {
        self.lasting
    }

    /// For each unique key the places of its columns; `None` for a key over a column that rows do not carry.
    pub fn unique_keys(&self) -> &[Option<Vec<usize>>] {
        &self.unique
    }
}

/// Whether a primary key is clustered, as TiDB's own description says it.
#[derive(Deserialize)]
struct Clustering {
    #[serde(default)]
    pk_is_handle: bool,
    #[serde(default)]
    is_common_handle: bool,
}

/// True if rows are stored by their primary key. Where there is no description, nothing else is known.
fn is_clustered(definition: &TableDefinition) -> bool {
    let clustering = serde_json::from_slice::<Clustering>(&definition.tidb_json);
    clustering.map_or(true, |clustering| clustering.pk_is_handle || clustering.is_common_handle)
}

/// A schema record cannot be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the schema record {key:?} at offset {offset} {what}")]
pub struct SchemaError {
    /// The record's key.
    pub key: String,
    /// Its offset.
    pub offset: i64,
    /// What is wrong.
    pub what: String,
}

/// All definitions read so far that may still be needed.
#[derive(Debug, Default)]
pub struct SchemaView {
    tables: HashMap<i64, BTreeMap<i64, Arc<Table>>>,
    ddls: HashMap<i64, Arc<DdlRecord>>,
    databases: HashMap<i64, DatabaseDefinition>,
    chunks: HashMap<String, Chunks>,
}

#[derive(Debug, Default)]
struct Chunks {
    records: u32,
    parts: BTreeMap<u32, Bytes>,
}

impl SchemaView {
    /// Takes a record of the schema topic. `meta` is its `sluice` header: records of several chunks have one. Records
    /// without value (deleted by compaction) and keys of no known kind are passed over.
    pub fn apply(
        &mut self,
        offset: i64,
        key: Option<&[u8]>,
        value: Option<Bytes>,
        meta: Option<&[u8]>,
    ) -> Result<(), SchemaError> {
        let key = String::from_utf8_lossy(key.unwrap_or_default()).into_owned();
        let Some(value) = value else { return Ok(()) };
        let bad = |what: String| SchemaError { key: key.clone(), offset, what };
        let meta = meta
            .map(RowMeta::decode)
            .transpose()
            .map_err(|_| bad("has a header that does not parse".into()))?;
        let value = match meta.filter(|meta| meta.records > 1) {
            None => value,
            Some(meta) => match self.chunk(&key, &meta, value) {
                Some(whole) => whole,
                None => return Ok(()),
            },
        };
        let record = SchemaRecord::decode(value).map_err(|error| bad(format!("does not parse: {error}")))?;
        match record.body {
            Some(Body::Table(table)) => {
                let versions = self.tables.entry(table.table_id).or_default();
                versions.insert(table.version, Arc::new(Table::new(table)));
            }
            Some(Body::Ddl(ddl)) => {
                self.ddls.insert(ddl.job_id, Arc::new(ddl));
            }
            Some(Body::Database(database)) => {
                let newest = self.databases.entry(database.database_id).or_default();
                if newest.version <= database.version {
                    *newest = database;
                }
            }
            None => return Err(bad("is of a kind unknown to this build".into())),
        }
        Ok(())
    }

    /// Chunk `j` of a value lies under `<key>/<j>`, the first under the plain key.
    fn chunk(&mut self, key: &str, meta: &RowMeta, value: Bytes) -> Option<Bytes> {
        let suffix = format!("/{}", meta.record);
        let base =
            key.strip_suffix(&suffix).filter(|_| meta.record > 0 && key.split('/').count() > plain(key));
        let base = base.unwrap_or(key).to_owned();
        let chunks = self.chunks.entry(base.clone()).or_default();
        if chunks.records != meta.records {
            *chunks = Chunks { records: meta.records, parts: BTreeMap::new() };
        }
        chunks.parts.insert(meta.record, value);
        if chunks.parts.len() < meta.records as usize {
            return None;
        }
        let chunks = self.chunks.remove(&base)?;
        let mut whole = BytesMut::with_capacity(chunks.parts.values().map(Bytes::len).sum());
        chunks.parts.values().for_each(|part| whole.extend_from_slice(part));
        Some(whole.freeze())
    }

    /// A definition, if it was read already.
    pub fn table(&self, table_id: i64, version: i64) -> Option<&Arc<Table>> {
        self.tables.get(&table_id)?.get(&version)
    }

    /// A schema change in full, if it was read already.
    pub fn ddl(&self, job_id: i64) -> Option<&Arc<DdlRecord>> {
        self.ddls.get(&job_id)
    }

    /// Charset and collation of a database, as last defined: names are compared as TiDB does, without case.
    pub fn database(&self, name: &str) -> Option<&DatabaseDefinition> {
        self.databases
            .values()
            .filter(|database| !database.dropped)
            .find(|d| d.name.eq_ignore_ascii_case(name))
    }

    /// Lets go of what nothing after `position` can name: all but the newest definition of each table made by then, and
    /// schema changes up to then.
    pub fn forget_before(&mut self, position: CommitTs) {
        for versions in self.tables.values_mut() {
            let made = |table: &Table| CommitTs::new(table.definition.commit_ts) <= position;
            let newest = versions.iter().rev().find(|(_, table)| made(table)).map(|(version, _)| *version);
            if let Some(newest) = newest {
                versions.retain(|version, table| *version >= newest || !made(table));
            }
        }
        self.ddls.retain(|_, ddl| CommitTs::new(ddl.commit_ts) > position);
    }
}

/// Number of segments of a key without chunk number.
fn plain(key: &str) -> usize {
    if key.starts_with("ddl/") { 2 } else { 3 }
}

#[cfg(test)]
mod tests {
    use schemas::sluice::v1::Key;

    use super::*;

    fn record(table_id: i64, version: i64, commit_ts: u64) -> Bytes {
        let table = TableDefinition { table_id, version, commit_ts, ..Default::default() };
        SchemaRecord { body: Some(Body::Table(table)) }.encode_to_vec().into()
    }

    fn chunk(record: u32, records: u32) -> Vec<u8> {
        RowMeta { record, records, ..Default::default() }.encode_to_vec()
    }

    #[test]
    fn chunks_come_together_in_any_order() {
        let value = record(7, 3, 0);
        let (head, tail) = (value.slice(..3), value.slice(3..));
        for keys in [["table/7/3", "table/7/3/1"], ["table/7/3", "table/7/3"]] {
            let mut view = SchemaView::default();
            view.apply(0, Some(keys[1].as_bytes()), Some(tail.clone()), Some(&chunk(1, 2))).unwrap();
            assert!(view.table(7, 3).is_none());
            view.apply(1, Some(keys[0].as_bytes()), Some(head.clone()), Some(&chunk(0, 2))).unwrap();
            assert!(view.table(7, 3).is_some());
        }
        // A key whose last number happens to be the chunk's.
        let mut view = SchemaView::default();
        view.apply(0, Some(b"table/7/1"), Some(tail), Some(&chunk(1, 2))).unwrap();
        view.apply(1, Some(b"table/7/1"), Some(head), Some(&chunk(0, 2))).unwrap();
        assert!(view.table(7, 3).is_some());
    }

    #[test]
    fn old_definitions_go_but_the_newest() {
        let mut view = SchemaView::default();
        for (version, commit_ts) in [(1, 0), (2, 10), (3, 20), (4, 30)] {
            view.apply(version, Some(b"table/7/x"), Some(record(7, version, commit_ts)), None).unwrap();
        }
        view.forget_before(CommitTs::new(20));
        let left: Vec<_> = (1..=4).filter(|version| view.table(7, *version).is_some()).collect();
        assert_eq!(left, [3, 4]);
    }

    #[test]
    fn garbage_is_named() {
        let mut view = SchemaView::default();
        let error =
            view.apply(5, Some(b"table/1/1"), Some(Bytes::from_static(b"\xff\xff")), None).unwrap_err();
        assert!(error.to_string().contains("\"table/1/1\" at offset 5"), "{error}");
        assert!(view.apply(6, Some(b"table/1/1"), None, None).is_ok());
    }

    #[test]
    fn rows_are_told_apart_by_the_first_key_without_nulls() {
        let column = |id, not_null, generated| Column { id, not_null, generated, ..Default::default() };
        let key = |primary, column_ids: &[i64]| Key {
            primary,
            column_ids: column_ids.to_vec(),
            ..Default::default()
        };
        let columns = vec![column(10, false, false), column(11, true, false), column(12, true, true)];
        let identity = |unique_keys| {
            let table =
                Table::new(TableDefinition { columns: columns.clone(), unique_keys, ..Default::default() });
            table.identity().map(<[usize]>::to_vec)
        };
        assert_eq!(identity(vec![]), None);
        assert_eq!(identity(vec![key(false, &[10])]), None);
        assert_eq!(identity(vec![key(false, &[10]), key(false, &[11])]), Some(vec![1]));
        assert_eq!(identity(vec![key(true, &[11, 10]), key(false, &[11])]), Some(vec![1, 0]));
        // A virtual column is in no row.
        assert_eq!(identity(vec![key(false, &[12])]), None);
        assert_eq!(identity(vec![key(false, &[99])]), None);
    }

    /// A primary key that is not clustered can be dropped.
    #[test]
    fn only_a_clustered_primary_key_lasts() {
        let lasts = |primary, json: &str| {
            let key = Key { primary, column_ids: vec![1], ..Default::default() };
            let column = Column { id: 1, not_null: true, ..Default::default() };
            let table = Table::new(TableDefinition {
                columns: vec![column],
                unique_keys: vec![key],
                tidb_json: Bytes::copy_from_slice(json.as_bytes()),
                ..Default::default()
            });
            assert_eq!(table.identity(), Some(&[0][..]));
            table.has_lasting_identity()
        };
        let handles = |integer, common| {
            format!(r#"{{"id":1,"pk_is_handle":{integer},"is_common_handle":{common},"cols":[]}}"#)
        };
        assert!(lasts(true, &handles(true, false)) && lasts(true, &handles(false, true)));
        assert!(!lasts(true, &handles(false, false)) && !lasts(false, &handles(false, false)));
        // Versions of TiDB before 5.0 know no other clustered keys.
        assert!(lasts(true, r#"{"pk_is_handle":true}"#) && !lasts(true, r#"{"id":1}"#));
    }
}
