//! Runs batches and schema changes against the target, one downstream transaction after the other.
//!
//! A transaction moves the stored position first – a row lock that an older instance cannot pass – then writes, then
//! commits. When the outcome of a commit is unknown (the connection broke), that connection is ended and the stored position
//! says which it was. A statement that affects another number of rows than it must, or that the target refuses, is undone and
//! its batch run row by row ([`super::conflict`]), where the conflict policy decides. A row at which it has to stop is waited
//! for: nothing of its transaction stays, and it is tried again until somebody has put it right.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mysql_async::prelude::Queryable as _;
use mysql_async::{Error, Params, Value as DbValue};
use node::admin::Health;
use node::shutdown::Shutdown;
use schemas::sluice::v1::Gap;
use tokio::sync::mpsc;
use tracing::{error, info, warn};

use super::batch::{Batch, Work};
use super::config::Config;
use super::ddl::verdict::{Stopped, Verdicts};
use super::ddl::{DdlError, journal};
use super::error::ApplyError;
use super::meta::{Meta, OwnerEpoch};
use super::session::{self, Backoff, DML_MODE, LENIENT_MODE, Session, is_transient, server_text};
use super::sql::Statement;
use crate::metrics;
use crate::position::Position;
use crate::progress::FollowProgress;

/// A value was cut or changed: what an ENUM's error value gives outside strict mode.
const TRUNCATED: u16 = 1265;

/// How an attempt ended other than well.
pub(super) enum Failed {
    /// Nothing is known; try again on a new connection.
    Transient(Error),
    /// A statement met rows that are not as they should be, or was refused.
    Mismatch,
    /// The stored position is not where it was, or not ours.
    Moved,
    Stop(ApplyError),
}

/// Applies work. One task; owns the connection that writes.
pub(crate) struct Applier {
    pub(super) config: Config,
    meta: Meta,
    owner: OwnerEpoch,
    pub(super) session: Session,
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
                // Everything before it is applied by now.
                Some(Work::Gap(gap)) => {
                    let Gap { from, to, cause } = gap;
                    return Err(ApplyError::Gap { from, to, cause });
                }
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
        let (mut backoff, mut patience) = (Backoff::new(), Backoff::patient());
        let mut singly = false;
        let mut held = None;
        loop {
            let continued = self.open;
            match self.attempt(batch, &from, singly).await {
                Ok(()) => break,
                Err(Failed::Stop(error)) => {
                    // Leave no transaction behind; an error here only repeats the one at hand.
                    let _ = self.session.conn.query_drop("ROLLBACK").await;
                    self.open = false;
                    if !(error.is_about_rows() && self.config.holds_stopped_rows()) {
                        return Err(error);
                    }
                    self.hold(&error, &mut held);
                    if self.shutdown.unless(patience.wait()).await.is_none() {
                        return Ok(());
                    }
                    if continued {
                        // The pieces before it were undone, too.
                        return Err(ApplyError::Restart);
                    }
                }
                Err(Failed::Moved) => {
                    let _ = self.session.conn.query_drop("ROLLBACK").await;
                    self.open = false;
                    // A commit whose answer was lost may have been on its way still when the position was looked at.
                    match self.stored().await? {
                        Some(stored) if batch.after.as_ref() == Some(&stored) => break,
                        stored => return Err(self.fenced(stored)),
                    }
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
                    self.reconnect_alone().await?;
                    match (self.stored().await?, &batch.after) {
                        (Some(stored), Some(after)) if stored == *after => break,
                        (Some(stored), _) if stored == from => {}
                        (stored, _) => return Err(self.fenced(stored)),
                    }
                }
            }
        }
        if held.is_some() {
            info!("going on: the rows are as they should be");
            self.health.set("rows", Ok(()));
            self.progress.waiting(None);
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

    /// Says what is waited for, once.
    fn hold(&self, error: &ApplyError, held: &mut Option<String>) {
        let text = error.to_string();
        if held.as_ref() != Some(&text) {
            error!(error = text, "waiting, and trying again from time to time");
            self.health.set("rows", Err(text.clone()));
            self.progress.waiting(Some(text.clone()));
            *held = Some(text);
        }
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
                let affected = match self.execute(statement).await {
                    Ok(affected) => affected,
                    // Row by row it shows which one it is about.
                    Err(error @ Error::Server(_)) if !is_transient(&error) => return Err(Failed::Mismatch),
                    Err(error) => return Err(self.failed(error, statement, "", batch)),
                };
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

    pub(super) async fn own(&mut self, sql: &'static str) -> Result<(), Failed> {
        self.session.conn.query_drop(sql).await.map_err(|error| own_failed("control its transaction", error))
    }

    async fn advance(&mut self, from: &Position, to: &Position) -> Result<(), Failed> {
        match self.meta.advance(&mut self.session.conn, from, to, self.owner).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(Failed::Moved),
            Err(error) => Err(own_failed("store the position", error)),
        }
    }

    pub(super) async fn execute(&mut self, statement: &Statement) -> Result<u64, Error> {
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

    /// Connects anew and sees to it that nothing runs on the connection before any more.
    async fn reconnect_alone(&mut self) -> Result<(), ApplyError> {
        let before = self.session.conn.id();
        loop {
            self.reconnect().await?;
            match self.session.end(before.into()).await {
                Ok(()) => return Ok(()),
                Err(error) if is_transient(&error) => {}
                // It may be on a server behind another address: the position will tell.
                Err(error) => {
                    warn!(
                        error = server_text(&error, false),
                        connection = before,
                        "could not end a connection"
                    );
                    return Ok(());
                }
            }
        }
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
