//! `/debug/binlog/{ts}`: what this pump has under a timestamp, as text for people.
//!
//! The route stands on the pump's port, where TiDB and drainers connect, so it shows shapes and sizes only: no keys, no
//! statements, no values. With `show-row-values` it shows those too, and asks TiKV about the transaction.

use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use schemas::binlog::TableMutation;
use tidb::binlog::{Change, Header, changes, decode_value};
use tidb::ts::{CommitTs, StartTs, Tso};

use crate::clock::Clock;
use crate::progress::Progress;
use crate::resolver::Tikv;
use crate::store::{Reader, StoreError};

/// A transaction that was settled long ago is looked for among this many that committed after it began.
const SEARCH: usize = 1 << 20;

/// Looks things up.
#[derive(Clone)]
pub struct Inspector {
    /// The store.
    pub reader: Reader,
    /// What is open.
    pub progress: Arc<Progress>,
    /// For the transaction's state.
    pub tikv: Arc<Tikv>,
    /// For the moment of the question.
    pub clock: Arc<Clock>,
    /// Whether contents may be shown.
    pub values: bool,
}

/// Where a timestamp leads.
enum Found {
    Nothing,
    /// A prewrite by its start_ts.
    Prewrite(Bytes),
    /// A commit by its commit_ts, and its prewrite.
    Commit {
        start_ts: StartTs,
        commit_ts: CommitTs,
        prewrite: Bytes,
        commit: Bytes,
    },
}

impl Inspector {
    /// The page about `ts`, a start_ts or a commit_ts; `None` if this pump has neither.
    ///
    /// # Errors
    /// The store cannot be read, or holds what does not decode.
    pub async fn page(&self, ts: Tso) -> anyhow::Result<Option<String>> {
        let reader = self.reader.clone();
        let found = tokio::task::spawn_blocking(move || find(&reader, ts)).await??;
        let mut page = String::new();
        let (start_ts, prewrite) = match found {
            Found::Nothing => return Ok(None),
            Found::Prewrite(prewrite) => (StartTs(ts), prewrite),
            Found::Commit { start_ts, commit_ts, prewrite, commit } => {
                let from = if commit.is_empty() { "TiKV's word" } else { "TiDB's commit binlog" };
                writeln!(page, "commit_ts: {commit_ts} (by {from})")?;
                (start_ts, prewrite)
            }
        };
        writeln!(page, "start_ts: {start_ts}")?;
        if let Some(floor) = self.progress.floor(start_ts) {
            writeln!(page, "open: it will commit above {floor} if at all")?;
        }
        let size = prewrite.len();
        let header = Header::decode(prewrite)?;
        writeln!(page, "prewrite: {size} bytes, primary key of {} bytes", header.prewrite_key.len())?;
        if header.is_ddl() {
            writeln!(
                page,
                "ddl: job {}, schema state {}, a statement of {} bytes",
                header.ddl_job_id,
                header.ddl_schema_state,
                header.ddl_query.len()
            )?;
        }
        if self.values {
            writeln!(page, "primary key: {}", hex(&header.prewrite_key))?;
            if header.is_ddl() {
                writeln!(page, "statement: {}", String::from_utf8_lossy(&header.ddl_query))?;
            }
            writeln!(page, "TiKV: {}", self.ask(&header.prewrite_key, start_ts).await)?;
        }
        let value = decode_value(header.prewrite_value)?;
        writeln!(page, "schema version: {}", value.schema_version.unwrap_or_default())?;
        for mutation in &value.mutations {
            table(&mut page, mutation, self.values)?;
        }
        Ok(Some(page))
    }

    async fn ask(&self, primary: &Bytes, start_ts: StartTs) -> String {
        let answer = async { self.tikv.peek(primary, start_ts, self.clock.fresh().await?).await };
        match answer.await {
            Ok(status) => format!("{status:?}"),
            Err(error) => error.to_string(),
        }
    }
}

fn find(reader: &Reader, ts: Tso) -> Result<Found, StoreError> {
    if let Some(prewrite) = reader.prewrite(StartTs(ts))? {
        return Ok(Found::Prewrite(prewrite));
    }
    if ts <= reader.collected() {
        return Ok(Found::Nothing);
    }
    let found = reader.scan(ts.prev(), ts, 1)?.transactions.into_iter().next();
    if let Some(stored) = found {
        return Ok(Found::Commit {
            start_ts: stored.start_ts,
            commit_ts: stored.commit_ts,
            prewrite: stored.prewrite,
            commit: stored.commit,
        });
    }
    search(reader, StartTs(ts))
}

/// By start_ts in the index, which is sorted by commit_ts: a transaction commits after it begins, mostly soon.
fn search(reader: &Reader, start_ts: StartTs) -> Result<Found, StoreError> {
    let mut after = CommitTs(start_ts.0);
    let mut seen = 0;
    while seen < SEARCH {
        let commits = reader.commits(after, reader.last_commit(), 4096)?;
        let Some(last) = commits.last() else { break };
        if let Some(found) = commits.iter().find(|found| found.start_ts == start_ts) {
            let mut payloads = reader.payloads(&[found.prewrite, found.commit])?.into_iter();
            return Ok(match (payloads.next(), payloads.next()) {
                (Some(prewrite), Some(commit)) => {
                    Found::Commit { start_ts, commit_ts: found.commit_ts, prewrite, commit }
                }
                _ => Found::Nothing,
            });
        }
        after = last.commit_ts;
        seen += commits.len();
    }
    Ok(Found::Nothing)
}

fn table(page: &mut String, mutation: &TableMutation, values: bool) -> anyhow::Result<()> {
    let [mut inserted, mut updated, mut deleted] = [(0, 0); 3];
    let mut rows = String::new();
    for change in changes(mutation) {
        let (kind, name, row) = match change? {
            Change::Insert(row) => (&mut inserted, "insert", row),
            Change::Update(row) => (&mut updated, "update", row),
            Change::Delete(row) => (&mut deleted, "delete", row),
        };
        kind.0 += 1;
        kind.1 += row.len();
        if values {
            writeln!(rows, "  {name} {}", hex(row))?;
        }
    }
    writeln!(
        page,
        "table {}: {} rows inserted ({} bytes), {} updated ({} bytes), {} deleted ({} bytes)",
        mutation.table_id.unwrap_or_default(),
        inserted.0,
        inserted.1,
        updated.0,
        updated.1,
        deleted.0,
        deleted.1
    )?;
    page.push_str(&rows);
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Cannot fail: the text grows.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
