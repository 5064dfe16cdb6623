//! Databases, tables and indexes.

use serde::{Deserialize, Serialize};

use super::{ColumnInfo, List, Name, PartitionInfo, Raw, SchemaState};

/// A database.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DbInfo {
    /// Its id.
    pub id: i64,
    /// Its name.
    #[serde(rename = "db_name")]
    pub name: Name,
    /// Default character set.
    pub charset: String,
    /// Default collation.
    pub collate: String,
    /// Whether it is visible.
    pub state: SchemaState,
    /// Placement policy.
    pub policy_ref_info: Raw,
}

/// A table, view or sequence.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "fields that nothing reads are named as in TiDB's JSON")]
pub struct TableInfo {
    /// The id that binlog rows name. TRUNCATE and (un)partitioning give a table a new one.
    pub id: i64,
    pub name: Name,
    pub charset: String,
    pub collate: String,
    /// All columns: public ones first, in order; those that a running job adds, drops or changes at the end.
    pub cols: List<ColumnInfo>,
    /// All indexes. A table whose `pk_is_handle` has no entry for its primary key.
    pub index_info: List<IndexInfo>,
    pub constraint_info: Raw,
    pub fk_info: Raw,
    pub state: SchemaState,
    /// The primary key is one integer column and is the row's handle.
    pub pk_is_handle: bool,
    /// The primary key is clustered and not a single integer: its columns make the handle.
    pub is_common_handle: bool,
    pub common_handle_version: u16,
    pub comment: String,
    pub auto_inc_id: i64,
    #[serde(skip_serializing_if = "is_zero")]
    pub auto_inc_id_extra: i64,
    pub auto_id_cache: i64,
    pub auto_rand_id: i64,
    /// The highest column id given out so far.
    pub max_col_id: i64,
    pub max_idx_id: i64,
    pub max_fk_id: i64,
    pub max_cst_id: i64,
    pub update_timestamp: u64,
    #[serde(skip_serializing_if = "is_zero")]
    pub old_schema_id: i64,
    #[serde(rename = "ShardRowIDBits")]
    pub shard_row_id_bits: u64,
    pub max_shard_row_id_bits: u64,
    pub auto_random_bits: u64,
    pub auto_random_range_bits: u64,
    pub pre_split_regions: u64,
    pub partition: Option<PartitionInfo>,
    pub compression: String,
    /// Not null: a view.
    pub view: Raw,
    /// Not null: a sequence.
    pub sequence: Raw,
    #[serde(rename = "Lock")]
    pub lock: Raw,
    /// Version of the definition's format.
    pub version: u16,
    pub tiflash_replica: Raw,
    pub is_columnar: bool,
    /// 0 none, 1 global, 2 local; rows of temporary tables are not in the binlog.
    pub temp_table_type: u8,
    pub cache_table_status: i64,
    pub policy_ref_info: Raw,
    pub stats_options: Raw,
    pub exchange_partition_info: Raw,
    pub ttl_info: Raw,
    pub revision: u64,
}

impl TableInfo {
    /// The table's name as written.
    pub fn name(&self) -> &str {
        self.name.as_str()
    }

    /// True for views, which have no rows.
    pub fn is_view(&self) -> bool {
        !self.view.is_null()
    }

    /// True for sequences, which have no rows.
    pub fn is_sequence(&self) -> bool {
        !self.sequence.is_null()
    }

    /// The column of this id, whatever its state.
    pub fn column(&self, id: i64) -> Option<&ColumnInfo> {
        self.cols.iter().find(|c| c.id == id)
    }

    /// The column of this name (compared in lower case), whatever its state.
    pub fn column_by_name(&self, name: &str) -> Option<&ColumnInfo> {
        let lower = name.to_lowercase();
        self.cols.iter().find(|c| c.name.lower == lower)
    }

    /// The columns that SQL sees, in order: public and not hidden.
    pub fn public_columns(&self) -> impl Iterator<Item = &ColumnInfo> {
        self.cols.iter().filter(|c| c.is_public() && !c.hidden)
    }

    /// The integer column that is the row's handle, if the table is clustered by one.
    pub fn handle_column(&self) -> Option<&ColumnInfo> {
        if self.pk_is_handle { self.cols.iter().find(|c| c.is_primary_key()) } else { None }
    }

    /// The primary key's index, clustered or not. None where `pk_is_handle`, or without a primary key.
    pub fn primary_index(&self) -> Option<&IndexInfo> {
        self.index_info.iter().find(|i| i.is_primary)
    }

    /// True if rows are stored by `_tidb_rowid`: neither clustered form.
    pub fn has_row_id(&self) -> bool {
        !self.pk_is_handle && !self.is_common_handle
    }

    /// The columns of an index, with prefix lengths (−1: whole); None if the index names a column out of range.
    pub fn index_columns<'a>(&'a self, index: &'a IndexInfo) -> Option<Vec<(&'a ColumnInfo, i64)>> {
        index.idx_cols.iter().map(|c| Some((self.cols.get(c.offset)?, c.length))).collect()
    }

    /// The partitions, if the table is partitioned.
    pub fn partitions(&self) -> Option<&PartitionInfo> {
        self.partition.as_ref().filter(|p| p.enable)
    }
}

/// An index.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct IndexInfo {
    /// Its id within the table.
    pub id: i64,
    /// Its name; `PRIMARY` for the primary key.
    #[serde(rename = "idx_name")]
    pub name: Name,
    /// Unused by TiDB.
    pub tbl_name: Name,
    /// Its columns, in order.
    pub idx_cols: List<IndexColumn>,
    /// Whether it is visible.
    pub state: SchemaState,
    /// Progress of its backfill.
    pub backfill_state: u32,
    /// Comment.
    pub comment: String,
    /// 1 btree, 2 hash, 3 rtree.
    pub index_type: i64,
    /// UNIQUE, or the primary key.
    pub is_unique: bool,
    /// The primary key.
    pub is_primary: bool,
    /// INVISIBLE to the optimiser.
    pub is_invisible: bool,
    /// Spans all partitions.
    pub is_global: bool,
    /// Indexes the elements of JSON arrays.
    pub mv_index: bool,
}

impl IndexInfo {
    /// True if SQL sees it (public).
    pub fn is_public(&self) -> bool {
        self.state == SchemaState::Public
    }
}

/// A column of an index.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IndexColumn {
    /// The column's name.
    pub name: Name,
    /// Place in the table's `cols`.
    pub offset: usize,
    /// Prefix length in characters (bytes for binary strings); −1 for the whole column.
    pub length: i64,
}

impl Default for IndexColumn {
    fn default() -> Self {
        Self { name: Name::default(), offset: 0, length: -1 }
    }
}

fn is_zero(v: &i64) -> bool {
    *v == 0
}
