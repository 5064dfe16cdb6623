//! Where DDL jobs come from: TiDB's status port.
//!
//! History (`/ddl/history`) holds finished jobs only, and a job gets there when every holder of the metadata lock is
//! gone, which can be hours after its binlog. Until then the job is read from the row that the DDL's own transaction
//! wrote into `mysql.tidb_ddl_job`: the version under the binlog's start_ts is the job as of that binlog.

use std::future::Future;

use bytes::Bytes;
use node::tidb_status::{StatusError, TidbStatus};
use tidb::model::{Job, TableInfo};
use tidb::schema_api::{
    DDL_HISTORY_LIMIT, DDL_HISTORY_PATH, DDL_JOB_PATH, DdlJobVersions, MVCC_DECODE_QUERY, SCHEMA_PATH,
};
use tidb::ts::StartTs;

/// The most bytes taken of one answer.
const MAX_ANSWER: usize = 1 << 30;

/// Why a job or the history cannot be had now.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// No TiDB answers, or it refuses.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// The answer is not what TiDB writes.
    #[error("TiDB's answer to {path} cannot be read: {reason}")]
    Unreadable {
        /// What was asked.
        path: String,
        /// What is wrong.
        reason: String,
    },
}

impl HistoryError {
    /// True if the same question may be answered later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Status(error) => error.is_retryable(),
            Self::Unreadable { .. } => false,
        }
    }
}

/// TiDB's DDL jobs.
pub trait SchemaHistory: Send + Sync + 'static {
    /// A page of finished jobs as a JSON list, newest id first, from about `start_job_id` (0: the newest) downwards.
    /// Pages may overlap by a job; one that brings nothing new is the last.
    fn page(&self, start_job_id: i64) -> impl Future<Output = Result<Bytes, HistoryError>> + Send;

    /// The job of a DDL binlog, finished or as that binlog's transaction left it; `None` while TiDB shows neither.
    fn job(
        &self,
        job_id: i64,
        start_ts: StartTs,
    ) -> impl Future<Output = Result<Option<Job>, HistoryError>> + Send;

    /// The table as it is now, jobs in flight included; `None` if there is none.
    fn table(&self, table_id: i64) -> impl Future<Output = Result<Option<TableInfo>, HistoryError>> + Send;

    /// JSON lists of the databases, or of the tables of one.
    fn schema(&self, database: Option<&str>) -> impl Future<Output = Result<Bytes, HistoryError>> + Send;
}

/// TiDB's status port.
#[derive(Debug)]
pub struct StatusPort {
    status: TidbStatus,
}

impl StatusPort {
    /// Over a client of the status ports.
    pub fn new(status: TidbStatus) -> Self {
        Self { status }
    }

    async fn unfinished(&self, job_id: i64, start_ts: StartTs) -> Result<Option<Job>, HistoryError> {
        let path = format!("{DDL_JOB_PATH}/{job_id}?{MVCC_DECODE_QUERY}");
        let body = match self.status.get(&path, MAX_ANSWER).await {
            Ok(body) => body,
            // TiDB before 6.2 has no such table; a row that is gone may be answered so as well.
            Err(StatusError::Refused { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let unreadable =
            |e: serde_json::Error| HistoryError::Unreadable { path: path.clone(), reason: e.to_string() };
        let versions: DdlJobVersions = serde_json::from_slice(&body).map_err(unreadable)?;
        versions.job(start_ts).transpose().map_err(unreadable)
    }
}

impl SchemaHistory for StatusPort {
    async fn page(&self, start_job_id: i64) -> Result<Bytes, HistoryError> {
        let limit = DDL_HISTORY_LIMIT;
        let path = match start_job_id {
            0 => format!("{DDL_HISTORY_PATH}?limit={limit}"),
            from => format!("{DDL_HISTORY_PATH}?start_job_id={from}&limit={limit}"),
        };
        Ok(self.status.get(&path, MAX_ANSWER).await?)
    }

    async fn job(&self, job_id: i64, start_ts: StartTs) -> Result<Option<Job>, HistoryError> {
        // Whether `start_job_id` itself is included differs between versions of TiDB: ask from one above.
        let path = format!("{DDL_HISTORY_PATH}?start_job_id={}&limit=2", job_id + 1);
        let body = self.status.get(&path, MAX_ANSWER).await?;
        let jobs =
            Job::parse_list(&body).map_err(|e| HistoryError::Unreadable { path, reason: e.to_string() })?;
        match jobs.into_iter().find(|job| job.id == job_id) {
            Some(job) => Ok(Some(job)),
            None => self.unfinished(job_id, start_ts).await,
        }
    }

    async fn table(&self, table_id: i64) -> Result<Option<TableInfo>, HistoryError> {
        let path = format!("{SCHEMA_PATH}?table_id={table_id}");
        match self.status.get(&path, MAX_ANSWER).await {
            Ok(body) => serde_json::from_slice(&body)
                .map_err(|e| HistoryError::Unreadable { path, reason: e.to_string() }),
            Err(StatusError::Refused { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn schema(&self, database: Option<&str>) -> Result<Bytes, HistoryError> {
        let path = database.map_or_else(|| SCHEMA_PATH.to_owned(), tables_path);
        Ok(self.status.get(&path, MAX_ANSWER).await?)
    }
}

/// Where the tables of a database are listed.
fn tables_path(database: &str) -> String {
    format!("{SCHEMA_PATH}/{}", percent_encoding::utf8_percent_encode(database, PATH_SEGMENT))
}

/// What must be encoded in a path segment: everything but unreserved characters.
const PATH_SEGMENT: &percent_encoding::AsciiSet =
    &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_urls() {
        for (name, path) in [
            ("shop", "/schema/shop"),
            ("a/b", "/schema/a%2Fb"),
            ("../x", "/schema/..%2Fx"),
            ("q?table_id=1#f", "/schema/q%3Ftable_id%3D1%23f"),
            ("100% \"`", "/schema/100%25%20%22%60"),
            ("店", "/schema/%E5%BA%97"),
        ] {
            assert_eq!(tables_path(name), path);
        }
    }
}
