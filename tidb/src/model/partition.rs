//! How a table is partitioned.

use serde::{Deserialize, Serialize};

use super::{List, Name, Raw, SchemaState};
use crate::gojson;

/// The rule by which rows are divided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "u32", into = "u32")]
pub enum PartitionKind {
    /// 0: not partitioned.
    #[default]
    None,
    /// 1: RANGE.
    Range,
    /// 2: HASH.
    Hash,
    /// 3: LIST.
    List,
    /// 4: KEY.
    Key,
    /// 5: SYSTEM_TIME.
    SystemTime,
    /// A number this build does not know.
    Other(u32),
}

impl From<u32> for PartitionKind {
    fn from(number: u32) -> Self {
        match number {
            0 => Self::None,
            1 => Self::Range,
            2 => Self::Hash,
            3 => Self::List,
            4 => Self::Key,
            5 => Self::SystemTime,
            other => Self::Other(other),
        }
    }
}

impl From<PartitionKind> for u32 {
    fn from(kind: PartitionKind) -> Self {
        match kind {
            PartitionKind::None => 0,
            PartitionKind::Range => 1,
            PartitionKind::Hash => 2,
            PartitionKind::List => 3,
            PartitionKind::Key => 4,
            PartitionKind::SystemTime => 5,
            PartitionKind::Other(other) => other,
        }
    }
}

/// The partitions of a table. Binlog rows name the table's id, never a partition's; partitions' ids matter for
/// EXCHANGE PARTITION and for keys.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PartitionInfo {
    /// The rule.
    #[serde(rename = "type")]
    pub kind: PartitionKind,
    /// The partitioning expression.
    pub expr: String,
    /// The columns of RANGE COLUMNS, LIST COLUMNS and KEY.
    pub columns: List<Name>,
    /// False: ignore the partitions.
    pub enable: bool,
    /// KEY partitioning by the primary key; TiDB 8.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "gojson::present")]
    pub is_empty_columns: Option<bool>,
    /// The partitions.
    pub definitions: List<PartitionDefinition>,
    /// Partitions that a running job adds.
    pub adding_definitions: List<PartitionDefinition>,
    /// Partitions that a running job removes.
    pub dropping_definitions: List<PartitionDefinition>,
    /// States of partitions while a job runs.
    pub states: Raw,
    /// Number of partitions.
    pub num: u64,
    /// State of the running job.
    pub ddl_state: SchemaState,
    /// The table's new id while PARTITION BY runs; TiDB 8.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "gojson::present")]
    pub new_table_id: Option<i64>,
    /// The rule that a running job brings; TiDB 8.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "gojson::present")]
    pub ddl_type: Option<PartitionKind>,
    /// The expression that a running job brings; TiDB 8.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "gojson::present")]
    pub ddl_expr: Option<String>,
    /// The columns that a running job brings; TiDB 8.
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "gojson::present")]
    pub ddl_columns: Option<List<Name>>,
}

/// One partition.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PartitionDefinition {
    /// The physical table id, which stands in keys.
    pub id: i64,
    /// Its name.
    pub name: Name,
    /// RANGE: upper bounds, one an expression.
    pub less_than: List<String>,
    /// LIST: the values.
    pub in_values: List<List<String>>,
    /// Placement policy.
    pub policy_ref_info: Raw,
    /// Comment.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub comment: String,
}
