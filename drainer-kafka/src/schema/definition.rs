//! Table definitions, and the whole schema at one place in commit order. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use schemas::sluice::v1 as proto;
use tidb::model::{ColumnInfo, DbInfo, IndexInfo, TableInfo};
use tidb::ts::CommitTs;

use super::zone::{self, UnreadDefault};
use crate::routing::Routing;
use crate::sequence::RowPartition;

/// A table, view or sequence as one DDL left it.
#[derive(Clone, Debug, PartialEq)]
pub struct Definition {
    /// The schema version of the DDL that made it.
    pub version: i64,
    /// That DDL's place in commit order; zero if the table was there when the feed began.
    pub commit_ts: CommitTs,
    /// Id of its database.
    pub database_id: i64,
    /// Name of its database, as written.
    pub database: String,
    /// TiDB's own description; the defaults of TIMESTAMP columns in UTC, as far as the upstream's time zone is known.
    pub info: TableInfo,
    /// Columns whose values go out: public, not hidden, not virtual; as positions in `info.cols`.
    pub columns: Vec<usize>,
    /// The columns of a row record's key, as positions in `info.cols`; empty if the table has no suitable key.
    pub key: Vec<usize>,
    /// Where its rows go; `None` if the filter rules leave the table out.
    pub place: Option<RowPartition>,
}

impl Definition {
    pub(super) fn new(
        routing: &Routing,
        database: &DbInfo,
        mut info: TableInfo,
        version: i64,
        commit_ts: CommitTs,
    ) -> Self {
        if let Some(zone) = routing.upstream_zone() {
            zone.put_in_utc(&mut info);
        }
        let database_name = database.name.as_str().to_owned();
        let columns = info.cols.iter().enumerate().filter(|(_, c)| is_carried(c)).map(|(at, _)| at).collect();
        Self {
            version,
            commit_ts,
            database_id: database.id,
            columns,
            key: key_columns(&info),
            place: routing.place(&database_name, info.name()),
            database: database_name,
            info,
        }
    }

    /// The table's id.
    pub fn id(&self) -> i64 {
        self.info.id
    }

    /// The table's name, as written.
    pub fn table(&self) -> &str {
        self.info.name()
    }

    /// A default of which nobody can tell what instant it is, so that neither rows that lack it nor a DDL can be given on.
    pub fn unread_default(&self, routing: &Routing) -> Option<UnreadDefault> {
        zone::unread(&self.database, &self.info, routing.upstream_zone())
    }

    /// For the schema topic.
    pub fn to_proto(&self) -> proto::TableDefinition {
        let info = &self.info;
        let mut unique_keys: Vec<proto::Key> = info.handle_column().map(handle_key).into_iter().collect();
        let mut indexes: Vec<&IndexInfo> =
            info.index_info.iter().filter(|i| i.is_unique && i.is_public()).collect();
        indexes.sort_by_key(|index| !index.is_primary);
        unique_keys.extend(indexes.into_iter().filter_map(|index| unique_key(info, index)));
        let kind = match (info.is_view(), info.is_sequence()) {
            (true, _) => "view",
            (false, true) => "sequence",
            (false, false) => "table",
        };
        proto::TableDefinition {
            table_id: info.id,
            version: self.version,
            database_id: self.database_id,
            database: self.database.clone(),
            table: info.name().to_owned(),
            columns: info.public_columns().map(column).collect(),
            unique_keys,
            kind: kind.to_owned(),
            charset: info.charset.clone(),
            collate: info.collate.clone(),
            dropped: false,
            tidb_json: tidb::gojson::to_vec(info).unwrap_or_default().into(),
            commit_ts: self.commit_ts.get(),
            continued_by: 0,
        }
    }
}

/// True for a column whose values rows carry. A hidden one belongs to an expression index; a virtual one is computed
/// when read, and only some of the upstream's rows bring it, so it never goes out.
fn is_carried(column: &ColumnInfo) -> bool {
    column.is_public() && !column.hidden && !column.is_virtual()
}

/// The primary key, else the first unique key over NOT NULL columns, else nothing.
fn key_columns(info: &TableInfo) -> Vec<usize> {
    if info.pk_is_handle {
        return info.cols.iter().position(ColumnInfo::is_primary_key).into_iter().collect();
    }
    let offsets = |index: &IndexInfo| index.idx_cols.iter().map(|c| c.offset).collect::<Vec<_>>();
    let usable = |index: &&IndexInfo| {
        index.is_public()
            && (index.is_primary || index.is_unique)
            && !index.mv_index
            && index.idx_cols.iter().all(|c| {
                info.cols.get(c.offset).is_some_and(|c| is_carried(c) && (index.is_primary || c.not_null()))
            })
    };
    let primary = info.index_info.iter().filter(|index| index.is_primary).find(usable);
    primary.or_else(|| info.index_info.iter().find(usable)).map(offsets).unwrap_or_default()
}

fn handle_key(column: &ColumnInfo) -> proto::Key {
    proto::Key {
        name: "PRIMARY".to_owned(),
        primary: true,
        column_ids: vec![column.id],
        prefix_lengths: vec![-1],
    }
}

/// `None` for indexes over hidden columns (expressions): no column of the definition stands for them.
fn unique_key(info: &TableInfo, index: &IndexInfo) -> Option<proto::Key> {
    let columns = info.index_columns(index)?;
    (!index.mv_index && columns.iter().all(|(c, _)| c.is_public() && !c.hidden)).then(|| proto::Key {
        name: index.name.as_str().to_owned(),
        primary: index.is_primary,
        column_ids: columns.iter().map(|(c, _)| c.id).collect(),
        prefix_lengths: columns.iter().map(|(_, length)| *length as i32).collect(),
    })
}

fn column(column: &ColumnInfo) -> proto::Column {
    let field_type = &column.field_type;
    proto::Column {
        id: column.id,
        name: column.name().to_owned(),
        mysql_type: i32::from(field_type.tp),
        flags: field_type.flag as u32,
        length: field_type.flen as i32,
        decimals: field_type.decimal as i32,
        charset: field_type.charset.clone(),
        collate: field_type.collate.clone(),
        elements: field_type.elems.iter().map(|e| e.to_string()).collect(),
        not_null: column.not_null(),
        unsigned: column.is_unsigned(),
        generated: column.is_generated(),
        generated_stored: column.generated_stored,
        sql_type: column.sql_type(),
    }
}

/// A database as one DDL left it.
#[derive(Clone, Debug)]
pub struct Database {
    /// The schema version of the DDL that made it; zero if it was there when the feed began.
    pub version: i64,
    /// TiDB's own description.
    pub info: DbInfo,
}

/// What is known of a table id.
#[derive(Clone, Debug)]
pub enum Lookup<'a> {
    /// It lives; rows are shaped by this definition.
    Live(&'a Arc<Definition>),
    /// It was dropped or truncated earlier in commit order: its rows are invisible upstream.
    Dropped,
    /// No DDL so far made it.
    Unknown,
}

/// The whole schema at one place in commit order. Cheap to clone through an `Arc`; a DDL makes a new one.
#[derive(Clone, Debug, Default)]
pub struct Definitions {
    databases: HashMap<i64, Arc<Database>>,
    tables: HashMap<i64, Arc<Definition>>,
    /// Ids that are gone, with the version of the DDL that took them and the table that took over their rows.
    dropped: HashMap<i64, Dropped>,
    /// Databases that are gone and may come back, the oldest first.
    recoverable: Vec<Arc<Recoverable>>,
}

/// How many dropped databases are remembered. TiDB itself forgets them when its garbage collection takes their rows.
const MAX_RECOVERABLE: usize = 64;

/// A database that is gone, as FLASHBACK DATABASE would bring it back.
#[derive(Clone, Debug)]
pub struct Recoverable {
    /// TiDB's own description.
    pub info: DbInfo,
    /// The tables that went with it.
    pub tables: Vec<Arc<Definition>>,
}

/// A table id that is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dropped {
    /// The schema version of the DDL that took it.
    pub version: i64,
    /// The table to which late rows of the id belong (EXCHANGE PARTITION, PARTITION BY, REMOVE PARTITIONING); 0: none.
    pub continued_by: i64,
}

impl Definitions {
    /// What is known of a table id.
    pub fn lookup(&self, table_id: i64) -> Lookup<'_> {
        if let Some(definition) = self.tables.get(&table_id) {
            return Lookup::Live(definition);
        }
        match self.dropped.get(&table_id) {
            None => Lookup::Unknown,
            Some(dropped) => self.tables.get(&dropped.continued_by).map_or(Lookup::Dropped, Lookup::Live),
        }
    }

    /// The live table of this id.
    pub fn table(&self, table_id: i64) -> Option<&Arc<Definition>> {
        self.tables.get(&table_id)
    }

    /// The live table of this name within a database, compared as TiDB does, in lower case.
    pub fn table_by_name(&self, database_id: i64, lower: &str) -> Option<&Arc<Definition>> {
        self.tables.values().find(|t| t.database_id == database_id && t.info.name.lower == lower)
    }

    /// The tables of a database, by id.
    pub fn tables_of(&self, database_id: i64) -> Vec<Arc<Definition>> {
        let mut tables: Vec<_> =
            self.tables.values().filter(|t| t.database_id == database_id).cloned().collect();
        tables.sort_unstable_by_key(|table| table.id());
        tables
    }

    /// Every live table.
    pub fn tables(&self) -> impl Iterator<Item = &Arc<Definition>> {
        self.tables.values()
    }

    /// Every live database.
    pub fn databases(&self) -> impl Iterator<Item = &Arc<Database>> {
        self.databases.values()
    }

    /// Every id that is gone.
    pub fn dropped(&self) -> impl Iterator<Item = (i64, Dropped)> {
        self.dropped.iter().map(|(id, dropped)| (*id, *dropped))
    }

    /// The database of this id.
    pub fn database(&self, database_id: i64) -> Option<&Arc<Database>> {
        self.databases.get(&database_id)
    }

    /// The database of this name, compared in lower case.
    pub fn database_by_name(&self, lower: &str) -> Option<&Arc<Database>> {
        self.databases.values().find(|database| database.info.name.lower == lower)
    }

    pub(super) fn put_database(&mut self, info: DbInfo, version: i64) -> Arc<Database> {
        let database = Arc::new(Database { version, info });
        self.databases.insert(database.info.id, database.clone());
        database
    }

    pub(super) fn remove_database(&mut self, database_id: i64) -> Option<Arc<Database>> {
        self.databases.remove(&database_id)
    }

    /// Databases that are gone and may come back, the oldest first.
    pub fn recoverable(&self) -> &[Arc<Recoverable>] {
        &self.recoverable
    }

    pub(super) fn remember_database(&mut self, gone: Recoverable) {
        self.recoverable.push(Arc::new(gone));
        let surplus = self.recoverable.len().saturating_sub(MAX_RECOVERABLE);
        self.recoverable.drain(..surplus);
    }

    pub(super) fn recall_database(&mut self, database_id: i64) -> Option<Arc<Recoverable>> {
        let at = self.recoverable.iter().position(|gone| gone.info.id == database_id)?;
        Some(self.recoverable.remove(at))
    }

    pub(super) fn put_table(
        &mut self,
        routing: &Routing,
        database: &DbInfo,
        info: TableInfo,
        version: i64,
        commit_ts: CommitTs,
    ) -> Arc<Definition> {
        self.dropped.remove(&info.id);
        let definition = Arc::new(Definition::new(routing, database, info, version, commit_ts));
        self.tables.insert(definition.id(), definition.clone());
        definition
    }

    pub(super) fn drop_table(&mut self, table_id: i64, dropped: Dropped) -> Option<Arc<Definition>> {
        self.dropped.insert(table_id, dropped);
        self.tables.remove(&table_id)
    }

    /// Forgets ids that were dropped by a DDL up to this version.
    pub(super) fn forget_dropped(&mut self, version: i64) {
        self.dropped.retain(|_, dropped| dropped.version > version);
    }
}
