//! Bodies of TiDB's status port: what a drainer reads there and what the simulator serves.
//!
//! | path | body |
//! |---|---|
//! | `/schema` | list of [`DbInfo`] |
//! | `/schema/{db}` | list of [`TableInfo`] |
//! | `/schema/{db}/{table}`, `/schema?table_id=` | [`TableInfo`] |
//! | `/ddl/history?start_job_id=&limit=` | list of [`Job`], newest first |
//! | `/mvcc/key/mysql/tidb_ddl_job/{job id}?decode=true` | [`DdlJobVersions`] |
//!
//! TiDB indents its answers by one blank: [`body`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use crate::model::{DbInfo, Job, TableInfo};
use crate::{
    gojson::{self, Raw},
    ts::StartTs,
};

/// Path of the list of databases, and with `/{database}` behind it of its tables.
pub const SCHEMA_PATH: &str = "/schema";
/// Path of the list of finished DDL jobs.
pub const DDL_HISTORY_PATH: &str = "/ddl/history";
/// Most jobs that one request for the history returns.
pub const DDL_HISTORY_LIMIT: usize = 2048;
/// Path in front of a job's id where a job that is not yet in the history is found. Ask with [`MVCC_DECODE_QUERY`].
pub const DDL_JOB_PATH: &str = "/mvcc/key/mysql/tidb_ddl_job";
/// Has TiDB decode the versions of the row.
pub const MVCC_DECODE_QUERY: &str = "decode=true";

/// A body as TiDB writes it.
pub fn body<T: Serialize + ?Sized>(value: &T) -> serde_json::Result<Vec<u8>> {
    gojson::to_vec_indented(value)
}

/// Reads a list; an empty one may be `null`.
pub fn parse_list<T: for<'de> Deserialize<'de>>(body: &[u8]) -> serde_json::Result<Vec<T>> {
    Ok(serde_json::from_slice::<Option<Vec<T>>>(body)?.unwrap_or_default())
}

/// All versions that TiKV still has of a job's row in `mysql.tidb_ddl_job`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DdlJobVersions {
    /// The row's key, in hexadecimal.
    pub key: String,
    /// The undecoded versions.
    pub info: Raw,
    /// The row's columns by the start_ts of the transaction that wrote them.
    pub data: Option<BTreeMap<String, BTreeMap<String, Option<String>>>>,
}

impl DdlJobVersions {
    /// The job as the transaction with this start_ts left it. The version under the DDL binlog's own start_ts is the job
    /// as of that binlog. None if there is no such version.
    pub fn job(&self, start_ts: StartTs) -> Option<serde_json::Result<Job>> {
        let row = self.data.as_ref()?.get(&start_ts.to_string())?;
        let meta = row.get("job_meta")?.as_deref()?;
        Some(Job::parse(meta.as_bytes()))
    }

    /// Adds a version, as TiDB would show it.
    pub fn insert(&mut self, start_ts: StartTs, job: &Job) -> serde_json::Result<()> {
        let meta = String::from_utf8_lossy(&gojson::to_vec(job)?).into_owned();
        let columns = [
            ("job_id", job.id.to_string()),
            ("reorg", "0".to_owned()),
            ("schema_ids", job.schema_id.to_string()),
            ("table_ids", job.table_id.to_string()),
            ("job_meta", meta),
            ("type", job.kind.number().to_string()),
            ("processing", "1".to_owned()),
        ];
        let row = columns.into_iter().map(|(name, value)| (name.to_owned(), Some(value))).collect();
        self.data.get_or_insert_default().insert(start_ts.to_string(), row);
        Ok(())
    }
}
