//! What to run downstream for a schema change. Pure.

use tidb::model::ActionType;

use crate::event::Ddl;
use crate::mysql::config::{DdlConfig, RecoverPolicy};
use crate::mysql::session::Target;

/// A statement and what it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Where unqualified names are to be found; `None`: there are none.
    pub database: Option<String>,
    /// The statement.
    pub statement: String,
    /// Unix time to pin `CURRENT_TIMESTAMP` to, in microseconds.
    pub timestamp: Option<i64>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Run these, in order.
    Run(Vec<Step>),
    /// Nothing: it has no effect on this target.
    Nothing(&'static str),
    /// The target cannot run it.
    Unsupported(String),
}

/// Kinds of jobs that change no table's rows or shape: placement, TiFlash, caching, statistics, resource groups.
fn has_no_effect(action: ActionType) -> bool {
    matches!(
        action,
        ActionType::LockTable
            | ActionType::UnlockTable
            | ActionType::SetTiFlashReplica
            | ActionType::UpdateTiFlashStatus
            | ActionType::ModifyAutoIdCache
            | ActionType::RebaseAutoRandom
            | ActionType::ShardRowId
            | ActionType::AlterTableAttributes
            | ActionType::AlterTablePartitionAttributes
            | ActionType::CreatePlacementPolicy
            | ActionType::AlterPlacementPolicy
            | ActionType::DropPlacementPolicy
            | ActionType::AlterTablePartitionPlacement
            | ActionType::ModifySchemaPlacement
            | ActionType::AlterTablePlacement
            | ActionType::AlterCacheTable
            | ActionType::AlterNoCacheTable
            | ActionType::AlterTableStatsOptions
            | ActionType::AlterTtlInfo
            | ActionType::RemoveTtlInfo
            | ActionType::CreateResourceGroup
            | ActionType::AlterResourceGroup
            | ActionType::DropResourceGroup
    )
}

/// The plan for a schema change.
pub fn plan(ddl: &Ddl, target: &Target, config: &DdlConfig) -> Plan {
    let action = ActionType::from(ddl.entry.action.unsigned_abs());
    let statement = ddl.entry.statement.trim().trim_end_matches(';').to_owned();
    let database = (!ddl.entry.current_database.is_empty()).then(|| ddl.entry.current_database.clone());
    let run =
        |statement: String| Plan::Run(vec![Step { database: database.clone(), statement, timestamp: None }]);
    if !target.is_tidb() && has_no_effect(action) {
        return Plan::Nothing("it has no effect on rows or their shape");
    }
    let _ = (config.recover_table, RecoverPolicy::Stop);
    run(statement)
}
