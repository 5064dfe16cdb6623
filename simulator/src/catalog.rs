//! The schema that a list of DDL jobs leaves behind, as TiDB's status port shows it. Pure.

use std::collections::BTreeMap;

use serde::Deserialize;
use tidb::model::{ActionType, DbInfo, Job, Name, SchemaState, TableInfo};

/// Databases and tables at one moment, by their ids.
#[derive(Clone, Debug, Default)]
pub struct Catalog {
    databases: BTreeMap<i64, DbInfo>,
    /// With the id of its database.
    tables: BTreeMap<i64, (i64, TableInfo)>,
}

impl Catalog {
    /// The schema after `applied`. A database that a job of `all` names without having been created by an earlier one
    /// (`mysql`, above all) was there before.
    pub fn after<'a>(all: impl Iterator<Item = &'a Job>, applied: impl Iterator<Item = &'a Job>) -> Self {
        let mut catalog = Self::default();
        let mut created = Vec::new();
        for job in in_order(all) {
            if job.kind == ActionType::CreateSchema {
                created.push(job.schema_id);
            } else if job.schema_id > 0 && !created.contains(&job.schema_id) && !job.schema_name.is_empty() {
                catalog.databases.entry(job.schema_id).or_insert_with(|| DbInfo {
                    id: job.schema_id,
                    name: Name::new(&job.schema_name),
                    charset: "utf8mb4".into(),
                    collate: "utf8mb4_bin".into(),
                    state: SchemaState::Public,
                    ..DbInfo::default()
                });
            }
        }
        for job in in_order(applied).into_iter().filter(|job| job.state.is_applied()) {
            catalog.apply(job);
        }
        catalog
    }

    /// All databases.
    pub fn databases(&self) -> impl Iterator<Item = &DbInfo> {
        self.databases.values()
    }

    /// The tables, views and sequences of a database; `None` if there is no such database.
    pub fn tables(&self, database: &str) -> Option<impl Iterator<Item = &TableInfo>> {
        let id = self.database_id(database)?;
        Some(self.tables.values().filter(move |(owner, _)| *owner == id).map(|(_, table)| table))
    }

    /// A table by its id.
    pub fn table(&self, id: i64) -> Option<&TableInfo> {
        self.tables.get(&id).map(|(_, table)| table)
    }

    fn database_id(&self, name: &str) -> Option<i64> {
        let name = name.to_lowercase();
        self.databases.values().find(|database| database.name.lower == name).map(|database| database.id)
    }

    fn put(&mut self, database: i64, table: &TableInfo) {
        self.tables.insert(table.id, (database, table.clone()));
    }

    fn apply(&mut self, job: &Job) {
        let binlog = &job.binlog;
        let table = binlog.table_info.as_ref();
        match job.kind {
            ActionType::DropSchema => {
                self.databases.remove(&job.schema_id);
                self.tables.retain(|_, (owner, _)| *owner != job.schema_id);
                return;
            }
            ActionType::DropTable | ActionType::DropView | ActionType::DropSequence => {
                self.tables.remove(&job.table_id);
                return;
            }
            // The table goes on under a new id.
            ActionType::TruncateTable
            | ActionType::PartitionTableBy
            | ActionType::RemoveTablePartitioning => {
                self.tables.remove(&job.table_id);
            }
            // OR REPLACE drops the old view without a job.
            ActionType::CreateView => {
                if let Some(view) = table {
                    self.tables.retain(|_, (owner, old)| {
                        *owner != job.schema_id || old.name.lower != view.name.lower
                    });
                }
            }
            ActionType::ExchangeTablePartition => {
                if let Some(partitioned) = table {
                    self.exchange(job.table_id, partitioned);
                }
                return;
            }
            ActionType::RenameTables => {
                self.rename_tables(job);
                return;
            }
            ActionType::FlashbackSchema => self.recover_tables(job),
            _ => {}
        }
        if let Some(database) = &binlog.db_info {
            self.databases.insert(database.id, database.clone());
        }
        for table in table.into_iter().chain(binlog.multiple_table_infos.iter()) {
            // Only a rename moves a table; other jobs may name another database (a foreign key's, say).
            let known = self.tables.get(&table.id).map(|(owner, _)| *owner);
            let owner = known.filter(|_| job.kind != ActionType::RenameTable).unwrap_or(job.schema_id);
            self.put(owner, table);
        }
    }

    /// One info per rename, in order; the pairs of names beside them say into which database.
    fn rename_tables(&mut self, job: &Job) {
        for (index, table) in job.binlog.multiple_table_infos.iter().enumerate() {
            let target = job.involving_schema_info.get(2 * index + 1);
            let known = self.tables.get(&table.id).map(|(owner, _)| *owner);
            let owner = target
                .and_then(|target| self.database_id(&target.database))
                .or(known)
                .unwrap_or(job.schema_id);
            self.put(owner, table);
        }
    }

    /// The plain table's id is now a partition's, and it goes on under that partition's old id.
    fn exchange(&mut self, plain: i64, partitioned: &TableInfo) {
        let partitions = |table: &TableInfo| -> Vec<i64> {
            table.partition.iter().flat_map(|partition| partition.definitions.iter().map(|d| d.id)).collect()
        };
        let now = partitions(partitioned);
        let old = self.tables.get(&partitioned.id).map(|(owner, old)| (*owner, partitions(old)));
        let Some((owner, before)) = old else { return };
        if let Some(vanished) = before.into_iter().find(|id| !now.contains(id))
            && let Some((plain_owner, mut table)) = self.tables.remove(&plain)
        {
            table.id = vanished;
            self.put(plain_owner, &table);
        }
        self.put(owner, partitioned);
    }

    /// FLASHBACK DATABASE keeps the tables that come back in its arguments only.
    fn recover_tables(&mut self, job: &Job) {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Recovered {
            table_info: TableInfo,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Schema {
            #[serde(default)]
            recover_tabs_info: Option<Vec<Recovered>>,
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Argument {
            Schema(Schema),
            Other(serde::de::IgnoredAny),
        }
        for argument in job.raw_args.parse::<Vec<Argument>>().unwrap_or_default() {
            if let Argument::Schema(schema) = argument {
                for recovered in schema.recover_tabs_info.unwrap_or_default() {
                    self.put(job.schema_id, &recovered.table_info);
                }
            }
        }
    }
}

/// TiDB's own order: by schema version; jobs without one change nothing.
fn in_order<'a>(jobs: impl Iterator<Item = &'a Job>) -> Vec<&'a Job> {
    let mut jobs: Vec<&Job> = jobs.filter(|job| job.schema_version() > 0).collect();
    jobs.sort_by_key(|job| job.schema_version());
    jobs
}
