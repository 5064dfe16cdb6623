//! DDL jobs, as `/ddl/history` and TiDB's system tables hold them (TiDB `parser/model/ddl.go`).

use serde::{Deserialize, Serialize};

use super::{ActionType, DbInfo, JobState, List, Raw, SchemaState, TableInfo};
use crate::gojson;

/// One DDL job.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "fields that nothing reads are named as in TiDB's JSON")]
pub struct Job {
    /// Its id, as DDL binlogs name it.
    pub id: i64,
    /// What it does.
    #[serde(rename = "type")]
    pub kind: ActionType,
    /// The database; for a rename the new one.
    pub schema_id: i64,
    /// The table; for truncate and (un)partitioning the old id, for exchange the plain table's old id.
    pub table_id: i64,
    /// The database's name.
    pub schema_name: String,
    /// The table's name; for a rename the old one.
    pub table_name: String,
    /// How far it came.
    pub state: JobState,
    pub warning: Raw,
    pub err: Raw,
    pub err_count: i64,
    pub row_count: i64,
    /// Arguments; gone once most kinds of jobs have ended.
    pub raw_args: Raw,
    /// State of the object it changes.
    pub schema_state: SchemaState,
    pub snapshot_ver: u64,
    pub real_start_ts: u64,
    pub start_ts: u64,
    pub dependency_id: i64,
    /// The statement as the user wrote it.
    pub query: String,
    /// The definitions it left behind.
    pub binlog: HistoryInfo,
    pub version: i64,
    pub reorg_meta: Raw,
    /// The steps of a statement that changes several things.
    pub multi_schema_info: Option<MultiSchemaInfo>,
    pub priority: i64,
    /// Place in history.
    pub seq_num: u64,
    pub charset: String,
    pub collate: String,
    /// Names of the databases and tables it touches, where they are not the job's own: for renames, pairs of from and
    /// to.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    pub involving_schema_info: List<InvolvingSchema>,
    pub admin_operator: i64,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "gojson::present")]
    pub trace_info: Option<Raw>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "gojson::present")]
    pub bdr_role: Option<Raw>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "gojson::present")]
    pub cdc_write_source: Option<Raw>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "gojson::present")]
    pub local_mode: Option<Raw>,
    /// The session's SQL mode, TiDB 8 and later.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "gojson::present")]
    pub sql_mode: Option<Raw>,
}

impl Job {
    /// Reads the body of `/ddl/history`: a list of jobs, newest first.
    pub fn parse_list(body: &[u8]) -> serde_json::Result<Vec<Self>> {
        // An empty history is Go's nil slice.
        Ok(serde_json::from_slice::<Option<Vec<Self>>>(body)?.unwrap_or_default())
    }

    /// Reads one job.
    pub fn parse(json: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(json)
    }

    /// The schema version it made; 0 means that it did not change the schema.
    pub fn schema_version(&self) -> i64 {
        self.binlog.schema_version
    }
}

/// What a job left behind, under the job's key `binlog`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct HistoryInfo {
    /// The schema version that the job made; jobs in this order are in commit order.
    pub schema_version: i64,
    /// For jobs on databases.
    #[serde(rename = "DBInfo")]
    pub db_info: Option<DbInfo>,
    /// The table after the job; for a drop, as it was.
    pub table_info: Option<TableInfo>,
    /// When the job was found finished: later than the commit_ts of its binlog, so never a place in commit order.
    #[serde(rename = "FinishedTS")]
    pub finished_ts: u64,
    /// For jobs on several tables: create tables (60), rename tables (47).
    pub multiple_table_infos: List<TableInfo>,
}

/// The steps of a multi-schema change.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MultiSchemaInfo {
    /// In execution order.
    pub sub_jobs: List<SubJob>,
    /// Whether it can still be undone.
    pub revertible: bool,
}

/// One step of a multi-schema change.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "fields that nothing reads are named as in TiDB's JSON")]
pub struct SubJob {
    /// What it does.
    #[serde(rename = "type")]
    pub kind: ActionType,
    pub raw_args: Raw,
    pub schema_state: SchemaState,
    pub snapshot_ver: u64,
    pub revertible: bool,
    pub state: JobState,
    pub row_count: i64,
    pub warning: Raw,
    pub schema_version: i64,
    pub reorg_tp: i64,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "gojson::present")]
    pub use_cloud: Option<Raw>,
}

/// A database and table that a job touches; `*` stands for all, an empty name for none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InvolvingSchema {
    /// Database name.
    pub database: String,
    /// Table name.
    pub table: String,
    /// Placement policy, TiDB 8.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub policy: String,
    /// Resource group, TiDB 8.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub resource_group: String,
    /// Kind of access, TiDB 8.
    #[serde(skip_serializing_if = "is_zero")]
    pub mode: i64,
}

fn is_zero(v: &i64) -> bool {
    *v == 0
}
