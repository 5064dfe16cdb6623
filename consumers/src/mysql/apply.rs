//! Runs batches and schema changes against the target, one downstream transaction after the other.
//!
//! A transaction moves the stored position first – a row lock that an older instance cannot pass – then writes, then
//! commits. When the outcome of a commit is unknown (the connection broke), the stored position says which it was. A
//! statement that affects another number of rows than it must, or meets a row in its way, is undone and its batch run row
//! by row, where the conflict policy decides.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mysql_async::prelude::Queryable as _;
use mysql_async::{Error, Params, Value as DbValue};
use node::admin::Health;
use node::shutdown::Shutdown;
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::batch::{Batch, Work};
use super::config::{Config, ConflictPolicy};
use super::ddl::verdict::{Stopped, Verdicts};
use super::ddl::{DdlError, journal};
use super::meta::{Meta, OwnerEpoch};
use super::session::{
    self, Backoff, ConnectError, DML_MODE, LENIENT_MODE, Session, is_transient, server_text,
};
use super::sql::{Kind, Single, Statement};
use crate::metrics;
use crate::position::Position;
use crate::progress::FollowProgress;

/// Duplicate entry for a key.
const DUPLICATE: u16 = 1062;
/// A value was cut or changed: what an ENUM's error value gives outside strict mode.
const TRUNCATED: u16 = 1265;

/// Applying cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// Another instance works under our name.
    #[error(
        "the progress of consumer {consumer} was changed by another instance (stored: {stored}): this one stops, nothing \
         was written twice"
    )]
    Fenced {
        /// Our name.
        consumer: String,
        /// What the target says.
        stored: String,
    },
    /// The target cannot be reached in a way that retrying helps.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A row is not as the log says, and the policy is to stop.
    #[error(
        "transaction {seq}: {what} in {table}{key}. The target was changed by somebody else, or was not where the log \
         begins. Repair the row, or set apply.conflict (now `{policy}`)"
    )]
    Conflict {
        /// First transaction of the batch.
        seq: u64,
        /// What was found.
        what: &'static str,
        /// Where.
        table: String,
        /// The row's key, if it may be shown.
        key: String,
        /// The policy in force.
        policy: &'static str,
    },
    /// The target refuses a statement.
    #[error("transaction {seq}: the target refuses a {kind} of {rows} rows in {table}: {reason}")]
    Refused {
        /// First transaction of the batch.
        seq: u64,
        /// What the statement does.
        kind: &'static str,
        /// To how many rows.
        rows: u64,
        /// Where.
        table: String,
        /// What the server says.
        reason: String,
    },
    /// The target refuses something of our own.
    #[error("the target refuses to {what}: {reason}")]
    Meta {
        /// What was tried.
        what: &'static str,
        /// What the server says.
        reason: String,
    },
    /// A schema change.
    #[error(transparent)]
    Ddl(#[from] Box<DdlError>),
    /// A statement cannot be written.
    #[error("transaction {seq}: {reason}")]
    Render {
        /// First transaction of the batch.
        seq: u64,
        /// Why.
        reason: String,
    },
    /// The connection broke within a transaction that came in pieces: start again from the stored position.
    #[error("the connection broke within a large transaction, starting again from the stored position")]
    Restart,
}

/// How an attempt ended other than well.
enum Failed {
    /// Nothing is known; try again on a new connection.
    Transient(Error),
    /// A statement met rows that are not as they should be.
    Mismatch,
    Stop(ApplyError),
}

/// Applies work. One task; owns the connection that writes.
pub(crate) struct Applier {
    config: Config,
    meta: Meta,
    owner: OwnerEpoch,
    session: Session,
    position: Option<Position>,
    /// Pieces of a transaction are written, but not committed.
    open: bool,
    progress: Arc<FollowProgress>,
    verdicts: Verdicts,
    health: Health,
    shutdown: Shutdown,
}

/// What an applier is made of.
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) meta: Meta,
    pub(crate) owner: OwnerEpoch,
    pub(crate) session: Session,
    /// The stored position.
    pub(crate) position: Option<Position>,
    pub(crate) progress: Arc<FollowProgress>,
    pub(crate) verdicts: Verdicts,
    pub(crate) health: Health,
    pub(crate) shutdown: Shutdown,
}

impl Applier {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { config, meta, owner, session, position, progress, verdicts, health, shutdown } = parts;
        Self { config, meta, owner, session, position, open: false, progress, verdicts, health, shutdown }
    }

    /// Works until the end asked for, the shutdown or an error. The transaction in hand is finished first.
    pub(crate) async fn run(mut self, mut work: mpsc::Receiver<Work>) -> Result<(), ApplyError> {
        loop {
            let next = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => None,
                next = work.recv() => next,
            };
            match next {
                None => break,
                Some(Work::Attach(position)) => self.attach(position).await?,
                Some(Work::Batch(batch)) => self.batch(&batch).await?,
                Some(Work::Ddl(ddl)) => self.ddl(&ddl).await?,
                Some(Work::Finish(position)) => {
                    let end = Batch {
                        statements: Vec::new(),
                        folded: Vec::new(),
                        after: Some(position.clone()),
                        first_seq: position.seq,
                        transactions: 0,
                        changes: 0,
                        anomalies: Default::default(),
                    };
                    self.batch(&end).await?;
                    info!(%position, "applied everything up to the end asked for");
                    break;
                }
            }
        }
        // An error here changes nothing: what was not committed is read again.
        let _ = tokio::time::timeout(Duration::from_secs(2), self.session.conn.disconnect()).await;
        Ok(())
    }

    async fn attach(&mut self, position: Position) -> Result<(), ApplyError> {
        loop {
            match self.meta.attach(&mut self.session.conn, &position, self.owner).await {
                Ok(()) => break,
                Err(error) if is_transient(&error) => {
                    self.reconnect().await?;
                    if let Some(stored) = self.stored().await? {
                        if stored == position {
                            break;
                        }
                        return Err(self.fenced(Some(stored)));
                    }
                }
                Err(error) => {
                    return Err(ApplyError::Meta {
                        what: "store the first position",
                        reason: error.to_string(),
                    });
                }
            }
        }
        self.progress.applied(&position);
        self.position = Some(position);
        Ok(())
    }

    async fn batch(&mut self, batch: &Batch) -> Result<(), ApplyError> {
        let Some(from) = self.position.clone() else {
            return Err(ApplyError::Meta {
                what: "apply rows",
                reason: "no position was attached".to_owned(),
            });
        };
        let began = Instant::now();
        let mut backoff = Backoff::new();
        let mut singly = false;
        loop {
            let continued = self.open;
            match self.attempt(batch, &from, singly).await {
                Ok(()) => break,
                Err(Failed::Stop(error)) => {
                    // Leave no transaction behind; an error here only repeats the one at hand.
                    let _ = self.session.conn.query_drop("ROLLBACK").await;
                    return Err(error);
                }
                Err(Failed::Mismatch) => {
                    let back = if continued { "ROLLBACK TO SAVEPOINT piece" } else { "ROLLBACK" };
                    if let Err(error) = self.session.conn.query_drop(back).await
                        && !is_transient(&error)
                    {
                        return Err(ApplyError::Meta { what: "roll back", reason: error.to_string() });
                    }
                    self.open = continued;
                    singly = true;
                }
                Err(Failed::Transient(error)) => {
                    metrics::retry();
                    warn!(
                        error = server_text(&error, false),
                        "a downstream transaction failed, trying again"
                    );
                    if continued {
                        return Err(ApplyError::Restart);
                    }
                    self.open = false;
                    backoff.wait().await;
                    self.reconnect().await?;
                    match (self.stored().await?, &batch.after) {
                        (Some(stored), Some(after)) if stored == *after => break,
                        (Some(stored), _) if stored == from => {}
                        (stored, _) => return Err(self.fenced(stored)),
                    }
                }
            }
        }
        if let Some(after) = &batch.after {
            self.progress.applied(after);
            self.position = Some(after.clone());
        }
        if batch.transactions > 0 {
            metrics::batch(began.elapsed(), batch.transactions, batch.changes.saturating_sub(batch.rows()));
        }
        self.report_anomalies(batch);
        Ok(())
    }

    fn report_anomalies(&self, batch: &Batch) {
        let found = batch.anomalies;
        if found.total() == 0 {
            return;
        }
        metrics::conflict("log_insert_of_present", found.insert_of_present);
        metrics::conflict("log_update_of_missing", found.update_of_missing);
        metrics::conflict("log_delete_of_missing", found.delete_of_missing);
        warn!(
            first_seq = batch.first_seq,
            tables = batch.tables().join(", "),
            insert_of_present = found.insert_of_present,
            update_of_missing = found.update_of_missing,
            delete_of_missing = found.delete_of_missing,
            "the log holds changes that do not follow from each other (phantom deletes, doubled rows); the last one counts"
        );
    }

    /// One try: begin, move the position, write, commit – or, of a piece, the part of that which is its.
    async fn attempt(&mut self, batch: &Batch, from: &Position, singly: bool) -> Result<(), Failed> {
        let continued = self.open;
        if continued {
            self.own("SAVEPOINT piece").await?;
        } else {
            self.own("BEGIN").await?;
            self.open = true;
            // The first piece of several moves nothing yet, but takes the row's lock.
            self.advance(from, batch.after.as_ref().unwrap_or(from)).await?;
        }
        if singly {
            self.singly(batch).await?;
        } else {
            for statement in &batch.statements {
                let affected =
                    self.execute(statement).await.map_err(|error| self.failed(error, statement, batch))?;
                if affected != statement.rows {
                    return Err(Failed::Mismatch);
                }
                metrics::written(statement.kind.name(), affected);
            }
        }
        if let Some(after) = &batch.after {
            if continued {
                self.advance(from, after).await?;
            }
            self.own("COMMIT").await?;
            self.open = false;
        }
        Ok(())
    }

    async fn own(&mut self, sql: &'static str) -> Result<(), Failed> {
        self.session.conn.query_drop(sql).await.map_err(|error| own_failed("control its transaction", error))
    }

    async fn advance(&mut self, from: &Position, to: &Position) -> Result<(), Failed> {
        match self.meta.advance(&mut self.session.conn, from, to, self.owner).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Failed::Stop(self.fenced(None))),
            Err(error) => Err(own_failed("store the position", error)),
        }
    }

    async fn execute(&mut self, statement: &Statement) -> Result<u64, Error> {
        if !statement.lenient {
            return run(&mut self.session, statement).await;
        }
        self.session.conn.query_drop(format!("SET SESSION sql_mode='{LENIENT_MODE}'")).await?;
        let result = run(&mut self.session, statement).await;
        let odd = match &result {
            Ok(_) if self.session.conn.get_warnings() > 0 => {
                let warnings: Vec<(String, u16, String)> = self.session.conn.query("SHOW WARNINGS").await?;
                warnings.into_iter().find(|(_, code, _)| *code != TRUNCATED)
            }
            _ => None,
        };
        self.session.conn.query_drop(format!("SET SESSION sql_mode='{DML_MODE}'")).await?;
        match odd {
            // What strict mode would have said.
            Some((_, code, message)) => {
                Err(Error::Server(mysql_async::ServerError { code, message, state: "HY000".to_owned() }))
            }
            None => result,
        }
    }

    fn failed(&self, error: Error, statement: &Statement, batch: &Batch) -> Failed {
        match &error {
            Error::Server(server) if server.code == DUPLICATE => Failed::Mismatch,
            other if is_transient(other) => Failed::Transient(error),
            other => Failed::Stop(ApplyError::Refused {
                seq: batch.first_seq,
                kind: statement.kind.name(),
                rows: statement.rows,
                table: statement.table_name(),
                reason: server_text(other, self.config.apply.show_values),
            }),
        }
    }

    /// Row by row: here the conflict policy decides.
    async fn singly(&mut self, batch: &Batch) -> Result<(), Failed> {
        let renderer = super::renderer(&self.session, &self.config);
        let singles = renderer.render_singles(&batch.folded).map_err(|error| {
            Failed::Stop(ApplyError::Render { seq: batch.first_seq, reason: error.to_string() })
        })?;
        for single in &singles {
            let Single { statement, .. } = single;
            match self.execute(statement).await {
                Ok(affected) if affected == statement.rows => {
                    metrics::written(statement.kind.name(), affected)
                }
                Ok(affected) => self.missing(single, affected, batch).await?,
                Err(Error::Server(server)) if server.code == DUPLICATE => self.present(single, batch).await?,
                Err(error) => return Err(self.failed(error, statement, batch)),
            }
        }
        Ok(())
    }

    /// A delete or update found fewer rows than there must be.
    async fn missing(&mut self, single: &Single, affected: u64, batch: &Batch) -> Result<(), Failed> {
        let Single { statement, insert_if_missing, .. } = single;
        let rows = statement.rows.abs_diff(affected);
        let policy = self.config.apply.conflict;
        if policy == ConflictPolicy::Stop || affected > statement.rows {
            let what = match statement.kind {
                _ if affected > statement.rows => "a statement for one row found several",
                Kind::Delete => "a row to delete is missing",
                Kind::Update | Kind::Insert => "a row to update is missing",
            };
            return Err(Failed::Stop(self.conflict(what, single, batch)));
        }
        let (kind, done) = match (statement.kind, insert_if_missing) {
            (Kind::Update, Some(insert)) => {
                match self.execute(insert).await {
                    Ok(_) => {}
                    Err(Error::Server(server)) if server.code == DUPLICATE => {
                        let what = "a row to update is missing, and another row holds its unique key";
                        return Err(Failed::Stop(self.conflict(what, single, batch)));
                    }
                    Err(error) => return Err(self.failed(error, insert, batch)),
                }
                ("update_of_missing", "inserted instead")
            }
            _ => ("delete_of_missing", "nothing to delete"),
        };
        metrics::conflict(kind, rows);
        let key = self.shown(single);
        warn!(
            first_seq = batch.first_seq,
            table = statement.table_name(),
            key,
            rows,
            kind,
            done,
            "a row was missing"
        );
        Ok(())
    }

    /// An insert met a row.
    async fn present(&mut self, single: &Single, batch: &Batch) -> Result<(), Failed> {
        let replace = single
            .replace_if_present
            .as_ref()
            .filter(|_| self.config.apply.conflict == ConflictPolicy::Overwrite);
        let Some(replace) = replace else {
            return Err(Failed::Stop(self.conflict(
                "a row to insert, or one with its unique key, is already there",
                single,
                batch,
            )));
        };
        if let Err(error) = self.execute(replace).await {
            return Err(self.failed(error, replace, batch));
        }
        metrics::conflict("insert_of_present", 1);
        let key = self.shown(single);
        warn!(
            first_seq = batch.first_seq,
            table = replace.table_name(),
            key,
            "a row was in the way and was replaced"
        );
        Ok(())
    }

    fn conflict(&self, what: &'static str, single: &Single, batch: &Batch) -> ApplyError {
        let policy = match self.config.apply.conflict {
            ConflictPolicy::Heal => "heal",
            ConflictPolicy::Stop => "stop",
            ConflictPolicy::Overwrite => "overwrite",
        };
        let key = self.shown(single);
        let key = if key.is_empty() {
            " (set apply.show-values to see its key)".to_owned()
        } else {
            format!(" ({key})")
        };
        ApplyError::Conflict { seq: batch.first_seq, what, table: single.statement.table_name(), key, policy }
    }

    fn shown(&self, single: &Single) -> String {
        if self.config.apply.show_values { single.key.clone() } else { String::new() }
    }

    async fn ddl(&mut self, ddl: &crate::event::Ddl) -> Result<(), ApplyError> {
        let Some(from) = self.position.clone() else {
            return Err(ApplyError::Meta {
                what: "change a schema",
                reason: "no position was attached".to_owned(),
            });
        };
        let mut backoff = Backoff::new();
        let mut verdict = None;
        loop {
            let run = journal::run(
                &mut self.session,
                &self.meta,
                self.owner,
                &self.config,
                ddl,
                &from,
                verdict.as_ref(),
            );
            match run.await {
                Ok(()) => break,
                Err(DdlError::Stopped { .. }) if self.shutdown.is_cancelled() => return Ok(()),
                Err(stop @ DdlError::Stopped { .. }) if self.config.holds_stopped_ddl() => {
                    error!(error = %stop, "waiting for an operator");
                    let text = stop.to_string();
                    self.health.set("ddl", Err(text.clone()));
                    self.progress.waiting(Some(text));
                    let DdlError::Stopped { job_id, statement, reason, .. } = stop else { continue };
                    let word = self.verdicts.wait(Stopped { job_id, statement, reason });
                    let Some(given) = self.shutdown.unless(word).await else { return Ok(()) };
                    verdict = Some(given);
                    self.health.set("ddl", Ok(()));
                    self.progress.waiting(None);
                }
                Err(DdlError::Server { source, .. }) if is_transient(&source) => {
                    metrics::retry();
                    warn!(
                        error = server_text(&source, true),
                        job = ddl.entry.job_id,
                        "a schema change was interrupted, looking what became of it"
                    );
                    backoff.wait().await;
                    self.reconnect().await?;
                    match (self.stored().await?, &ddl.after_position) {
                        (Some(stored), Some(after)) if stored == *after => break,
                        (Some(stored), _) if stored == from => {}
                        (stored, _) => return Err(self.fenced(stored)),
                    }
                }
                Err(DdlError::Fenced) => return Err(self.fenced(None)),
                Err(error) => return Err(Box::new(error).into()),
            }
        }
        if let Some(after) = &ddl.after_position {
            self.progress.applied(after);
            self.position = Some(after.clone());
        }
        Ok(())
    }

    /// Connects anew, as long as it takes.
    async fn reconnect(&mut self) -> Result<(), ApplyError> {
        let mut backoff = Backoff::new();
        loop {
            match session::connect(&self.config.mysql).await {
                Ok(session) => {
                    self.session = session;
                    self.progress.waiting(None);
                    return Ok(());
                }
                Err(error) if error.is_retryable() && !self.shutdown.is_cancelled() => {
                    warn!(%error, "cannot reach the target, trying again");
                    self.progress.waiting(Some(format!("the target: {error}")));
                    backoff.wait().await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn stored(&mut self) -> Result<Option<Position>, ApplyError> {
        loop {
            match self.meta.position(&mut self.session.conn).await {
                // Ours only while the lease is.
                Ok(Some(stored)) if stored.owner_epoch != self.owner => {
                    return Err(self.fenced(Some(stored.position)));
                }
                Ok(stored) => return Ok(stored.map(|stored| stored.position)),
                Err(error) if is_transient(&error) => self.reconnect().await?,
                Err(error) => {
                    return Err(ApplyError::Meta { what: "read the position", reason: error.to_string() });
                }
            }
        }
    }

    fn fenced(&self, stored: Option<Position>) -> ApplyError {
        let stored = stored
            .map_or_else(|| "not where this instance left it".to_owned(), |position| position.to_string());
        ApplyError::Fenced { consumer: self.meta.consumer().to_owned(), stored }
    }
}

fn own_failed(what: &'static str, error: Error) -> Failed {
    if is_transient(&error) {
        return Failed::Transient(error);
    }
    Failed::Stop(ApplyError::Meta { what, reason: error.to_string() })
}

async fn run(session: &mut Session, statement: &Statement) -> Result<u64, Error> {
    if statement.params.is_empty() {
        session.conn.query_drop(statement.sql.as_str()).await?;
    } else {
        let values = statement.params.iter().map(|bytes| DbValue::Bytes(bytes.to_vec())).collect();
        session.conn.exec_drop(statement.sql.as_str(), Params::Positional(values)).await?;
    }
    Ok(session.conn.affected_rows())
}
