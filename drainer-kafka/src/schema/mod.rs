//! The schema tracker: which definition every table has at the current place in commit order. Pure.
//!
//! It applies DDL jobs one after the other, in the order of their binlogs' commit_ts (which is the order of their
//! schema versions; a job's FinishedTS is later than its place and orders nothing). Rows that commit between two DDLs
//! are shaped by what the first left, whatever schema version their transaction names.
//!
//! Every kind of job that TiDB has is handled or refused by name (TiDB's `parser/model.ActionType`). Nothing is guessed: a job that
//! lacks what its kind must bring, or names a table or database that is not there, stops the feed.
//!
//! A crash loses nothing: every version is in the schema topic, in the same Kafka transaction as the DDL's entry in the
//! commit stream.

pub mod bootstrap;
mod definition;
pub mod history;
pub mod records;
mod renames;
pub mod zone;

use std::sync::Arc;

use serde::Deserialize;
use tidb::model::{ActionType, DbInfo, InvolvingSchema, Job, List, TableInfo};
use tidb::ts::CommitTs;

pub use self::definition::{Database, Definition, Definitions, Dropped, Lookup, Recoverable};
use self::zone::UnreadDefault;
use crate::filter::is_system_schema;
use crate::routing::Routing;

/// Why a DDL job cannot be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaError {
    /// Data changed without any row in the binlog.
    #[error(
        "job {job} is FLASHBACK CLUSTER: it turns data back inside TiKV and none of that is in the binlog, so the log \
         cannot follow. Take a backup of the cluster as it is now, restore it downstream, and begin a new feed there: \
         `drainer-kafka --config <this one's> --topic-name <new name> --initial-commit-ts <BackupTS>`"
    )]
    FlashbackCluster {
        /// Job id.
        job: i64,
    },
    /// A kind of job this build does not know.
    #[error("job {job} is of a kind this version does not know ({kind}); upgrade the drainer")]
    UnknownKind {
        /// Job id.
        job: i64,
        /// TiDB's number.
        kind: String,
    },
    /// The job lacks what its kind must bring.
    #[error("job {job} ({kind}) carries no {what}")]
    Incomplete {
        /// Job id.
        job: i64,
        /// Its kind.
        kind: ActionType,
        /// What is missing.
        what: &'static str,
    },
    /// A replicated table that the job leaves has a default that nobody can read.
    #[error("job {job}: {unread}")]
    UnreadDefault {
        /// Job id.
        job: i64,
        /// Which.
        unread: UnreadDefault,
    },
    /// The job is about a table that no earlier job made.
    #[error("job {job} ({kind}) names table id {table_id}, which no earlier job made")]
    UnknownTable {
        /// Job id.
        job: i64,
        /// Its kind.
        kind: ActionType,
        /// The table.
        table_id: i64,
    },
    /// The job is about a database that no earlier job made.
    #[error("job {job} ({kind}) names database {database}, which no earlier job made")]
    UnknownDatabase {
        /// Job id.
        job: i64,
        /// Its kind.
        kind: ActionType,
        /// Id or name.
        database: String,
    },
    /// The job's version is not above the last one: commit order and version order are the same for DDL.
    #[error("job {job} has schema version {version}, but {applied} was applied before it")]
    OutOfOrder {
        /// Job id.
        job: i64,
        /// Its version.
        version: i64,
        /// The last one.
        applied: i64,
    },
    /// The parts of an exchange do not fit together.
    #[error("job {job} exchanges a partition of table id {partitioned} with table id {plain}: {reason}")]
    Exchange {
        /// Job id.
        job: i64,
        /// The partitioned table.
        partitioned: i64,
        /// The plain table's old id.
        plain: i64,
        /// What does not fit.
        reason: &'static str,
    },
}

/// What a job did to the schema.
#[derive(Clone, Debug, Default)]
pub struct Effect {
    /// Tables as they were, of those that changed or went.
    pub before: Vec<Arc<Definition>>,
    /// Tables as they are now, of those that changed or came.
    pub after: Vec<Arc<Definition>>,
    /// Databases that came or changed.
    pub databases: Vec<Arc<Database>>,
    /// Databases that went.
    pub dropped_databases: Vec<Arc<Database>>,
    /// Ids that went.
    pub dropped: Vec<(i64, Dropped)>,
    /// The name of the job's database as it was written; the job has it in lower case. `None`: no database has it.
    pub database: Option<String>,
    /// The pairs of a RENAME TABLE whose job does not list them: from, to, from, to.
    pub renames: Vec<InvolvingSchema>,
}

/// Applies jobs in commit order.
#[derive(Clone, Debug)]
pub struct Tracker {
    routing: Arc<Routing>,
    definitions: Arc<Definitions>,
    version: i64,
}

/// True for a job that left everything as it was.
pub fn was_undone(job: &Job) -> bool {
    use tidb::model::JobState as S;
    match job.state {
        S::RollbackDone | S::Cancelled | S::RollingBack | S::Cancelling => true,
        S::Done | S::Synced | S::None | S::Running | S::Queueing | S::Paused | S::Pausing | S::Other(_) => {
            false
        }
    }
}

/// TiDB's own database `mysql` exists without a job.
const MYSQL_DATABASE_ID: i64 = 1;

impl Tracker {
    /// An empty cluster, before its first job.
    pub fn new(routing: Arc<Routing>) -> Self {
        let mut definitions = Definitions::default();
        let mysql =
            DbInfo { id: MYSQL_DATABASE_ID, name: tidb::model::Name::new("mysql"), ..DbInfo::default() };
        definitions.put_database(mysql, 0);
        Self { routing, definitions: Arc::new(definitions), version: 0 }
    }

    /// The schema at this place. Stays as it is while the tracker goes on.
    pub fn definitions(&self) -> Arc<Definitions> {
        self.definitions.clone()
    }

    /// The schema version of the last job applied.
    pub fn version(&self) -> i64 {
        self.version
    }

    /// Sets the version that was reached, where definitions were restored rather than applied.
    pub fn set_version(&mut self, version: i64) {
        self.version = self.version.max(version);
    }

    /// Puts a definition that is known from elsewhere than a job (the schema topic, `/schema`).
    pub fn restore_table(&mut self, database: &DbInfo, info: TableInfo, version: i64, commit_ts: CommitTs) {
        let routing = self.routing.clone();
        Arc::make_mut(&mut self.definitions).put_table(&routing, database, info, version, commit_ts);
    }

    /// Puts a database that is known from elsewhere than a job.
    pub fn restore_database(&mut self, info: DbInfo, version: i64) {
        Arc::make_mut(&mut self.definitions).put_database(info, version);
    }

    /// Marks an id as gone, as known from elsewhere than a job.
    pub fn restore_dropped(&mut self, table_id: i64, dropped: Dropped) {
        Arc::make_mut(&mut self.definitions).drop_table(table_id, dropped);
    }

    /// Remembers a database that is gone, with its tables and their versions, as known from elsewhere than a job.
    pub fn restore_recoverable(&mut self, database: DbInfo, tables: Vec<(TableInfo, i64)>) {
        let routing = self.routing.clone();
        let define = |(info, version)| {
            Arc::new(Definition::new(&routing, &database, info, version, CommitTs::default()))
        };
        let tables = tables.into_iter().map(define).collect();
        let gone = Recoverable { info: database.clone(), tables };
        Arc::make_mut(&mut self.definitions).remember_database(gone);
    }

    /// Forgets the ids that were dropped by jobs up to this version: no row can name them any more.
    pub fn forget_dropped(&mut self, version: i64) {
        Arc::make_mut(&mut self.definitions).forget_dropped(version);
    }

    /// A default of a replicated table that nobody can read.
    pub fn unread_default(&self) -> Option<UnreadDefault> {
        let mut tables: Vec<_> = self.definitions.tables().filter(|table| table.place.is_some()).collect();
        tables.sort_unstable_by_key(|table| table.id());
        tables.into_iter().find_map(|table| table.unread_default(&self.routing))
    }

    /// Passes over a job of a kind that this build does not know and that is history: what it left behind counts, if it is
    /// a new definition of a table that is there.
    pub fn pass(&mut self, job: &Job) {
        let known = |table: &&TableInfo| self.definitions.table(table.id).is_some();
        let table = job.binlog.table_info.as_ref().filter(known).cloned();
        let database = self.definitions.database(job.schema_id).map(|database| database.info.clone());
        if let (Some(table), Some(database)) = (table, database) {
            self.restore_table(&database, table, job.schema_version(), CommitTs::default());
        }
        self.set_version(job.schema_version());
    }

    /// Applies the next job; `commit_ts` is its place in commit order (zero where only the order is known). A job that
    /// was rolled back, or changes no schema, has an empty effect.
    pub fn apply(&mut self, job: &Job, commit_ts: CommitTs) -> Result<Effect, SchemaError> {
        // Its own entry in the history was turned back with everything else: it may look as if it still ran.
        if job.kind == ActionType::FlashbackCluster && !was_undone(job) {
            return Err(SchemaError::FlashbackCluster { job: job.id });
        }
        if !job.state.is_applied() {
            return Ok(Effect::default());
        }
        let version = job.schema_version();
        if version == 0 {
            return Ok(Effect::default());
        }
        if version <= self.version {
            return Err(SchemaError::OutOfOrder { job: job.id, version, applied: self.version });
        }
        let routing = self.routing.clone();
        let mut step = Step {
            job,
            commit_ts,
            routing: &routing,
            definitions: Arc::make_mut(&mut self.definitions),
            effect: Effect::default(),
        };
        step.run()?;
        let mut effect = step.effect;
        let database = self.definitions.database_by_name(&job.schema_name.to_lowercase());
        effect.database = database.map(|database| database.info.name.as_str().to_owned());
        self.version = version;
        Ok(effect)
    }
}

/// One job being applied.
struct Step<'a> {
    job: &'a Job,
    commit_ts: CommitTs,
    routing: &'a Routing,
    definitions: &'a mut Definitions,
    effect: Effect,
}

impl Step<'_> {
    fn run(&mut self) -> Result<(), SchemaError> {
        use ActionType as A;
        match self.job.kind {
            A::CreateSchema | A::ModifySchemaCharset | A::ModifySchemaPlacement => self.put_database(),
            A::DropSchema => self.drop_database(),
            A::FlashbackSchema => self.flashback_database(),
            A::CreateTable | A::CreateSequence | A::RecoverTable | A::RepairTable => {
                let table = self.table_info()?.clone();
                self.put(table, self.job.schema_id)
            }
            A::CreateView => self.create_view(),
            A::CreateTables => {
                for table in self.several("table definitions")? {
                    self.put(table, self.job.schema_id)?;
                }
                Ok(())
            }
            A::DropTable | A::DropView | A::DropSequence => {
                if self.definitions.table(self.job.table_id).is_none() {
                    self.known_or_system(self.job.table_id)
                } else {
                    self.drop(self.job.table_id, 0).map(|_| ())
                }
            }
            A::TruncateTable => {
                let table = self.table_info()?.clone();
                if table.id != self.job.table_id {
                    self.drop(self.job.table_id, 0)?;
                }
                self.put(table, self.job.schema_id)
            }
            // The rows stay: a TiDB that is a state behind writes to the new partitions already, under the old id.
            A::PartitionTableBy | A::RemoveTablePartitioning => {
                let table = self.table_info()?.clone();
                if table.id != self.job.table_id {
                    self.drop(self.job.table_id, table.id)?;
                }
                self.put(table, self.job.schema_id)
            }
            A::RenameTable => {
                let table = self.table_info()?.clone();
                self.known_or_system(table.id)?;
                self.put(table, self.job.schema_id)
            }
            A::RenameTables => self.rename_tables(),
            A::ExchangeTablePartition => self.exchange_partition(),
            A::CreatePlacementPolicy
            | A::AlterPlacementPolicy
            | A::DropPlacementPolicy
            | A::CreateResourceGroup
            | A::AlterResourceGroup
            | A::DropResourceGroup => Ok(()),
            A::AddColumn
            | A::DropColumn
            | A::AddColumns
            | A::DropColumns
            | A::ModifyColumn
            | A::SetDefaultValue
            | A::MultiSchemaChange
            | A::AddIndex
            | A::DropIndex
            | A::DropIndexes
            | A::RenameIndex
            | A::AlterIndexVisibility
            | A::AddPrimaryKey
            | A::DropPrimaryKey
            | A::AddForeignKey
            | A::DropForeignKey
            | A::AddCheckConstraint
            | A::DropCheckConstraint
            | A::AlterCheckConstraint
            | A::RebaseAutoId
            | A::RebaseAutoRandom
            | A::ModifyAutoIdCache
            | A::ShardRowId
            | A::ModifyTableComment
            | A::ModifyTableCharset
            | A::AddTablePartition
            | A::DropTablePartition
            | A::TruncateTablePartition
            | A::ReorganizeTablePartition
            | A::AlterSequence
            | A::AlterTableAttributes
            | A::AlterTablePartitionAttributes
            | A::AlterTablePartitionPlacement
            | A::AlterTablePlacement
            | A::AlterTableStatsOptions
            | A::AlterTtlInfo
            | A::RemoveTtlInfo => {
                let table = self.table_info()?.clone();
                self.known_or_system(table.id)?;
                self.put(table, self.job.schema_id)
            }
            // Nothing in them shapes a row, and old versions leave the definition out.
            A::SetTiFlashReplica
            | A::UpdateTiFlashStatus
            | A::AlterCacheTable
            | A::AlterNoCacheTable
            | A::LockTable
            | A::UnlockTable => match self.job.binlog.table_info.clone() {
                Some(table) if self.definitions.table(table.id).is_some() => {
                    self.put(table, self.job.schema_id)
                }
                _ => Ok(()),
            },
            A::FlashbackCluster => Err(SchemaError::FlashbackCluster { job: self.job.id }),
            A::Other(_) => {
                Err(SchemaError::UnknownKind { job: self.job.id, kind: self.job.kind.to_string() })
            }
        }
    }

    fn incomplete(&self, what: &'static str) -> SchemaError {
        SchemaError::Incomplete { job: self.job.id, kind: self.job.kind, what }
    }

    fn table_info(&self) -> Result<&TableInfo, SchemaError> {
        self.job.binlog.table_info.as_ref().ok_or_else(|| self.incomplete("table definition"))
    }

    fn db_info(&self) -> Result<&DbInfo, SchemaError> {
        self.job.binlog.db_info.as_ref().ok_or_else(|| self.incomplete("database definition"))
    }

    fn several(&self, what: &'static str) -> Result<Vec<TableInfo>, SchemaError> {
        let tables = self.job.binlog.multiple_table_infos.to_vec();
        if tables.is_empty() { Err(self.incomplete(what)) } else { Ok(tables) }
    }

    fn known(&self, table_id: i64) -> Result<Arc<Definition>, SchemaError> {
        self.definitions.table(table_id).cloned().ok_or(SchemaError::UnknownTable {
            job: self.job.id,
            kind: self.job.kind,
            table_id,
        })
    }

    /// The table has to be there, unless it is one of TiDB's own: some of those were made without a job, and their
    /// changes need no replication.
    fn known_or_system(&self, table_id: i64) -> Result<(), SchemaError> {
        let database = self.definitions.database(self.job.schema_id);
        let system = database.is_some_and(|database| is_system_schema(&database.info.name.lower));
        if system { Ok(()) } else { self.known(table_id).map(drop) }
    }

    /// Puts a table into the database of this id, in place of what it was.
    fn put(&mut self, table: TableInfo, database_id: i64) -> Result<(), SchemaError> {
        let Some(database) = self.definitions.database(database_id).cloned() else {
            return Err(SchemaError::UnknownDatabase {
                job: self.job.id,
                kind: self.job.kind,
                database: database_id.to_string(),
            });
        };
        self.effect.before.extend(self.definitions.table(table.id).cloned());
        let version = self.job.schema_version();
        let after = self.definitions.put_table(self.routing, &database.info, table, version, self.commit_ts);
        self.effect.after.push(after);
        Ok(())
    }

    fn drop(&mut self, table_id: i64, continued_by: i64) -> Result<Arc<Definition>, SchemaError> {
        self.known(table_id)?;
        let dropped = Dropped { version: self.job.schema_version(), continued_by };
        let Some(before) = self.definitions.drop_table(table_id, dropped) else {
            return Err(SchemaError::UnknownTable { job: self.job.id, kind: self.job.kind, table_id });
        };
        self.effect.before.push(before.clone());
        self.effect.dropped.push((table_id, dropped));
        Ok(before)
    }

    fn put_database(&mut self) -> Result<(), SchemaError> {
        let info = self.db_info()?.clone();
        let database = self.definitions.put_database(info, self.job.schema_version());
        self.effect.databases.push(database);
        Ok(())
    }

    fn drop_database(&mut self) -> Result<(), SchemaError> {
        let Some(database) = self.definitions.remove_database(self.job.schema_id) else {
            return Err(SchemaError::UnknownDatabase {
                job: self.job.id,
                kind: self.job.kind,
                database: self.job.schema_name.clone(),
            });
        };
        let tables = self.definitions.tables_of(database.info.id);
        for table in &tables {
            self.drop(table.id(), 0)?;
        }
        self.definitions.remember_database(Recoverable { info: database.info.clone(), tables });
        self.effect.dropped_databases.push(database);
        Ok(())
    }

    /// FLASHBACK DATABASE brings the database and all its tables back, under the ids they had. From 8.3 on (and in late
    /// releases of 7.5) TiDB reads the tables as it runs, and its job does not list them: they are those that went with
    /// the database.
    fn flashback_database(&mut self) -> Result<(), SchemaError> {
        self.put_database()?;
        let database_id = self.db_info()?.id;
        let arguments: List<Recovered> = self.job.raw_args.parse().unwrap_or_default();
        let listed = arguments.iter().find_map(|argument| match argument {
            Recovered::Schema(schema) => Some(schema),
            Recovered::Other(_) => None,
        });
        let gone = self.definitions.recall_database(database_id);
        let tables: Vec<TableInfo> = match (listed, gone) {
            (Some(listed), _) if !listed.tables.is_empty() => {
                listed.tables.iter().map(|table| table.table_info.clone()).collect()
            }
            (_, Some(gone)) => gone.tables.iter().map(|table| table.info.clone()).collect(),
            (Some(listed), None) if !listed.loads_tables => Vec::new(),
            _ => {
                let what =
                    "list of the tables it brings back, and what the database held is not known any more";
                return Err(self.incomplete(what));
            }
        };
        for table in tables {
            self.put(table, database_id)?;
        }
        Ok(())
    }

    /// CREATE OR REPLACE VIEW gives the view a new id and drops the old one without a job.
    fn create_view(&mut self) -> Result<(), SchemaError> {
        let view = self.table_info()?.clone();
        let same_name = self.definitions.table_by_name(self.job.schema_id, &view.name.lower);
        if let Some(old) = same_name.map(|old| old.id()).filter(|old| *old != view.id) {
            self.drop(old, 0)?;
        }
        self.put(view, self.job.schema_id)
    }

    /// The job lists a definition per rename, each already with its final name; where each ends up stands in the
    /// pairs of (from, to). A table renamed twice is listed twice: the last pair counts.
    fn rename_tables(&mut self) -> Result<(), SchemaError> {
        let tables = self.several("table definitions")?;
        let mut pairs = self.job.involving_schema_info.to_vec();
        if pairs.is_empty() {
            pairs = renames::of_statement(self.job, &tables, self.definitions)
                .map_err(|what| self.incomplete(what))?;
            self.effect.renames.clone_from(&pairs);
        }
        for (at, table) in tables.iter().enumerate() {
            if tables[at + 1..].iter().any(|later| later.id == table.id) {
                continue;
            }
            let before = self.known(table.id)?;
            let database_id = match pairs.get(2 * at + 1) {
                None => before.database_id,
                Some(to) => match self.definitions.database_by_name(&to.database.to_lowercase()) {
                    Some(database) => database.info.id,
                    None => {
                        return Err(SchemaError::UnknownDatabase {
                            job: self.job.id,
                            kind: self.job.kind,
                            database: to.database.clone(),
                        });
                    }
                },
            };
            self.put(table.clone(), database_id)?;
        }
        Ok(())
    }

    /// The partitioned table now holds the plain table's old id among its partitions; the partition id that vanished
    /// from it is the plain table's new id. Late rows under the old id are rows of the partitioned table.
    fn exchange_partition(&mut self) -> Result<(), SchemaError> {
        let after = self.table_info()?.clone();
        let before = self.known(after.id)?;
        let plain_id = self.job.table_id;
        let misfit = |reason| SchemaError::Exchange {
            job: self.job.id,
            partitioned: after.id,
            plain: plain_id,
            reason,
        };
        let ids = |table: &TableInfo| -> Vec<i64> {
            table.partition.iter().flat_map(|p| p.definitions.iter().map(|d| d.id)).collect()
        };
        let (old_ids, new_ids) = (ids(&before.info), ids(&after));
        if !new_ids.contains(&plain_id) {
            return Err(misfit("its partitions do not hold that id now"));
        }
        let mut gone = old_ids.iter().filter(|id| !new_ids.contains(id));
        let (Some(new_id), None) = (gone.next().copied(), gone.next()) else {
            return Err(misfit("not exactly one partition id left it"));
        };
        let plain = self.drop(plain_id, after.id)?;
        self.put(after, before.database_id)?;
        self.put(TableInfo { id: new_id, ..plain.info.clone() }, plain.database_id)
    }
}

/// An argument of FLASHBACK DATABASE's job: the first is the database with its tables.
#[derive(Deserialize)]
#[serde(untagged)]
enum Recovered {
    Schema(RecoveredSchema),
    Other(serde::de::IgnoredAny),
}

#[derive(Deserialize)]
struct RecoveredSchema {
    #[serde(rename = "RecoverTabsInfo")]
    tables: List<RecoveredTable>,
    #[serde(rename = "LoadTablesOnExecute", default)]
    loads_tables: bool,
}

#[derive(Deserialize)]
struct RecoveredTable {
    #[serde(rename = "TableInfo")]
    table_info: TableInfo,
}
