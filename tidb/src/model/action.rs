//! The kinds of DDL jobs, by the numbers TiDB gives them (TiDB `parser/model/ddl.go`).

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a DDL job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "u32", into = "u32")]
pub enum ActionType {
    /// 1.
    CreateSchema,
    /// 2.
    DropSchema,
    /// 3.
    CreateTable,
    /// 4.
    DropTable,
    /// 5.
    AddColumn,
    /// 6.
    DropColumn,
    /// 7.
    AddIndex,
    /// 8.
    DropIndex,
    /// 9.
    AddForeignKey,
    /// 10.
    DropForeignKey,
    /// 11.
    TruncateTable,
    /// 12.
    ModifyColumn,
    /// 13.
    RebaseAutoId,
    /// 14.
    RenameTable,
    /// 15.
    SetDefaultValue,
    /// 16.
    ShardRowId,
    /// 17.
    ModifyTableComment,
    /// 18.
    RenameIndex,
    /// 19.
    AddTablePartition,
    /// 20.
    DropTablePartition,
    /// 21.
    CreateView,
    /// 22.
    ModifyTableCharset,
    /// 23.
    TruncateTablePartition,
    /// 24.
    DropView,
    /// 25.
    RecoverTable,
    /// 26.
    ModifySchemaCharset,
    /// 27.
    LockTable,
    /// 28.
    UnlockTable,
    /// 29.
    RepairTable,
    /// 30.
    SetTiFlashReplica,
    /// 31.
    UpdateTiFlashStatus,
    /// 32.
    AddPrimaryKey,
    /// 33.
    DropPrimaryKey,
    /// 34.
    CreateSequence,
    /// 35.
    AlterSequence,
    /// 36.
    DropSequence,
    /// 37.
    AddColumns,
    /// 38.
    DropColumns,
    /// 39.
    ModifyAutoIdCache,
    /// 40.
    RebaseAutoRandom,
    /// 41.
    AlterIndexVisibility,
    /// 42.
    ExchangeTablePartition,
    /// 43.
    AddCheckConstraint,
    /// 44.
    DropCheckConstraint,
    /// 45.
    AlterCheckConstraint,
    /// 47.
    RenameTables,
    /// 48.
    DropIndexes,
    /// 49.
    AlterTableAttributes,
    /// 50.
    AlterTablePartitionAttributes,
    /// 51.
    CreatePlacementPolicy,
    /// 52.
    AlterPlacementPolicy,
    /// 53.
    DropPlacementPolicy,
    /// 54.
    AlterTablePartitionPlacement,
    /// 55.
    ModifySchemaPlacement,
    /// 56.
    AlterTablePlacement,
    /// 57.
    AlterCacheTable,
    /// 58.
    AlterTableStatsOptions,
    /// 59.
    AlterNoCacheTable,
    /// 60.
    CreateTables,
    /// 61.
    MultiSchemaChange,
    /// 62.
    FlashbackCluster,
    /// 63.
    FlashbackSchema,
    /// 64.
    ReorganizeTablePartition,
    /// 65.
    AlterTtlInfo,
    /// 67.
    RemoveTtlInfo,
    /// 68.
    CreateResourceGroup,
    /// 69.
    AlterResourceGroup,
    /// 70.
    DropResourceGroup,
    /// 71.
    PartitionTableBy,
    /// 72.
    RemoveTablePartitioning,
    /// A number this build does not know.
    Other(u32),
}

impl Default for ActionType {
    fn default() -> Self {
        Self::Other(0)
    }
}

/// Every known kind: number, kind, name.
const KINDS: [(u32, ActionType, &str); 70] = [
    (1, ActionType::CreateSchema, "create schema"),
    (2, ActionType::DropSchema, "drop schema"),
    (3, ActionType::CreateTable, "create table"),
    (4, ActionType::DropTable, "drop table"),
    (5, ActionType::AddColumn, "add column"),
    (6, ActionType::DropColumn, "drop column"),
    (7, ActionType::AddIndex, "add index"),
    (8, ActionType::DropIndex, "drop index"),
    (9, ActionType::AddForeignKey, "add foreign key"),
    (10, ActionType::DropForeignKey, "drop foreign key"),
    (11, ActionType::TruncateTable, "truncate table"),
    (12, ActionType::ModifyColumn, "modify column"),
    (13, ActionType::RebaseAutoId, "rebase auto id"),
    (14, ActionType::RenameTable, "rename table"),
    (15, ActionType::SetDefaultValue, "set default value"),
    (16, ActionType::ShardRowId, "shard row id"),
    (17, ActionType::ModifyTableComment, "modify table comment"),
    (18, ActionType::RenameIndex, "rename index"),
    (19, ActionType::AddTablePartition, "add table partition"),
    (20, ActionType::DropTablePartition, "drop table partition"),
    (21, ActionType::CreateView, "create view"),
    (22, ActionType::ModifyTableCharset, "modify table charset"),
    (23, ActionType::TruncateTablePartition, "truncate table partition"),
    (24, ActionType::DropView, "drop view"),
    (25, ActionType::RecoverTable, "recover table"),
    (26, ActionType::ModifySchemaCharset, "modify schema charset"),
    (27, ActionType::LockTable, "lock table"),
    (28, ActionType::UnlockTable, "unlock table"),
    (29, ActionType::RepairTable, "repair table"),
    (30, ActionType::SetTiFlashReplica, "set tiflash replica"),
    (31, ActionType::UpdateTiFlashStatus, "update tiflash status"),
    (32, ActionType::AddPrimaryKey, "add primary key"),
    (33, ActionType::DropPrimaryKey, "drop primary key"),
    (34, ActionType::CreateSequence, "create sequence"),
    (35, ActionType::AlterSequence, "alter sequence"),
    (36, ActionType::DropSequence, "drop sequence"),
    (37, ActionType::AddColumns, "add columns"),
    (38, ActionType::DropColumns, "drop columns"),
    (39, ActionType::ModifyAutoIdCache, "modify auto id cache"),
    (40, ActionType::RebaseAutoRandom, "rebase auto random"),
    (41, ActionType::AlterIndexVisibility, "alter index visibility"),
    (42, ActionType::ExchangeTablePartition, "exchange table partition"),
    (43, ActionType::AddCheckConstraint, "add check constraint"),
    (44, ActionType::DropCheckConstraint, "drop check constraint"),
    (45, ActionType::AlterCheckConstraint, "alter check constraint"),
    (47, ActionType::RenameTables, "rename tables"),
    (48, ActionType::DropIndexes, "drop indexes"),
    (49, ActionType::AlterTableAttributes, "alter table attributes"),
    (50, ActionType::AlterTablePartitionAttributes, "alter table partition attributes"),
    (51, ActionType::CreatePlacementPolicy, "create placement policy"),
    (52, ActionType::AlterPlacementPolicy, "alter placement policy"),
    (53, ActionType::DropPlacementPolicy, "drop placement policy"),
    (54, ActionType::AlterTablePartitionPlacement, "alter table partition placement"),
    (55, ActionType::ModifySchemaPlacement, "modify schema placement"),
    (56, ActionType::AlterTablePlacement, "alter table placement"),
    (57, ActionType::AlterCacheTable, "alter cache table"),
    (58, ActionType::AlterTableStatsOptions, "alter table stats options"),
    (59, ActionType::AlterNoCacheTable, "alter no cache table"),
    (60, ActionType::CreateTables, "create tables"),
    (61, ActionType::MultiSchemaChange, "multi schema change"),
    (62, ActionType::FlashbackCluster, "flashback cluster"),
    (63, ActionType::FlashbackSchema, "flashback schema"),
    (64, ActionType::ReorganizeTablePartition, "reorganize table partition"),
    (65, ActionType::AlterTtlInfo, "alter ttl info"),
    (67, ActionType::RemoveTtlInfo, "remove ttl info"),
    (68, ActionType::CreateResourceGroup, "create resource group"),
    (69, ActionType::AlterResourceGroup, "alter resource group"),
    (70, ActionType::DropResourceGroup, "drop resource group"),
    (71, ActionType::PartitionTableBy, "partition table by"),
    (72, ActionType::RemoveTablePartitioning, "remove table partitioning"),
];

impl ActionType {
    /// Every kind this build knows, by number.
    pub fn all() -> impl Iterator<Item = Self> {
        KINDS.iter().map(|&(_, kind, _)| kind)
    }

    /// The number TiDB gives it.
    pub fn number(self) -> u32 {
        match self {
            Self::Other(number) => number,
            known => KINDS.iter().find(|(_, kind, _)| *kind == known).map_or(0, |&(number, ..)| number),
        }
    }

    /// Its name in words, such as `create table`; `unknown` for a number this build does not know.
    pub fn name(self) -> &'static str {
        KINDS.iter().find(|(_, kind, _)| *kind == self).map_or("unknown", |&(.., name)| name)
    }
}

impl fmt::Display for ActionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Other(number) => write!(f, "job type {number}"),
            known => f.write_str(known.name()),
        }
    }
}

impl From<u32> for ActionType {
    fn from(number: u32) -> Self {
        KINDS.iter().find(|(n, ..)| *n == number).map_or(Self::Other(number), |&(_, kind, _)| kind)
    }
}

impl From<ActionType> for u32 {
    fn from(kind: ActionType) -> Self {
        kind.number()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip() {
        for number in 0..300 {
            assert_eq!(ActionType::from(number).number(), number);
        }
        assert_eq!(ActionType::from(3), ActionType::CreateTable);
        assert_eq!(ActionType::from(42), ActionType::ExchangeTablePartition);
        assert_eq!(ActionType::from(61).to_string(), "multi schema change");
        assert_eq!(ActionType::from(72), ActionType::RemoveTablePartitioning);
        assert_eq!(ActionType::from(46).to_string(), "job type 46");
    }
}
