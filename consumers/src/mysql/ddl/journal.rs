//! Runs a schema change exactly once.
//!
//! A schema change commits by itself, so it cannot be in one transaction with the position. Instead each of its steps is
//! written down before it runs – intent, with how the databases and tables concerned look (their definitions, and the identities that
//! tell a swapped or exchanged table from its partner) – and after:
//!
//! ```text
//! intent 0 ─▶ run step 0 ─▶ intent 1 ─▶ run step 1 ─▶ … ─▶ done + position, in one transaction
//! ```
//!
//! After a crash the connection that may still be running the step is ended and waited for. If the tables look as they did
//! before the step, it did not happen and is run; if they look different, it happened: nobody else changes them. A step that
//! leaves no trace there (TRUNCATE) may run twice without harm, since no row comes between. Of a step that the target refused
//! it is written down that it did not happen: an operator may change those tables by hand then.

use mysql_async::prelude::Queryable as _;
use mysql_async::{Error, Row as DbRow, params};
use tidb::model::Job;
use tracing::{info, warn};

use super::DdlError;
use super::plan::{Plan, Step, plan};
use super::verdict::Verdict;
use crate::event::Ddl;
use crate::metrics;
use crate::mysql::config::{Config, DdlPolicy};
use crate::mysql::literal::{quoted, string, table_name};
use crate::mysql::meta::{Meta, OwnerEpoch};
use crate::mysql::operator;
use crate::mysql::session::{DML_MODE, Session, ddl_mode, is_transient};
use crate::position::Position;

/// A journal entry.
struct Entry {
    steps: usize,
    state: String,
    connection_id: u64,
    before_step: String,
    statements: Vec<String>,
}

/// Runs `ddl`, or what is left of it, and moves the position. `verdict` is an operator's word on it, if it stopped before.
pub(crate) async fn run(
    session: &mut Session,
    meta: &Meta,
    owner: OwnerEpoch,
    config: &Config,
    ddl: &Ddl,
    from: &Position,
    verdict: Option<&Verdict>,
) -> Result<(), DdlError> {
    let steps = steps(session, config, ddl, verdict)?;
    let mut next = 0;
    match entry(session, meta, ddl.seq).await? {
        // It did not happen, however the tables look by now: somebody may have helped by hand.
        Some(entry) if entry.state == "refused" => next = if verdict.is_some() { 0 } else { entry.steps },
        Some(entry) if entry.state == "done" => return finish(session, meta, owner, ddl, from, &steps).await,
        Some(entry) => {
            session.end(entry.connection_id).await?;
            next = entry.steps;
            let same = entry.statements.iter().eq(steps.iter().map(|step| &step.statement));
            if looks(session, ddl).await? == entry.before_step {
                info!(job = ddl.entry.job_id, step = next, "an interrupted schema change had not happened");
            } else {
                info!(job = ddl.entry.job_id, step = next, "an interrupted schema change had happened");
                next += 1;
            }
            if !same && verdict.is_some() {
                // Other statements than those that were tried.
                next = 0;
            }
        }
        None => {}
    }
    for (number, step) in steps.iter().enumerate().skip(next) {
        intend(session, meta, owner, ddl, from, &steps, number).await?;
        let done = execute(session, ddl, step, config).await;
        if matches!(done, Err(DdlError::Stopped { .. })) {
            // It did not happen: the target would not have it.
            let note = Note { ddl, steps: &steps, step: number, state: "refused", before_step: "" };
            write_down(session, meta, owner, (from, from), &note).await?;
        }
        done?;
    }
    finish(session, meta, owner, ddl, from, &steps).await?;
    metrics::ddl(if steps.is_empty() { "nothing" } else { "run" });
    Ok(())
}

/// The steps to run, by plan and policy.
pub(crate) fn steps(
    session: &Session,
    config: &Config,
    ddl: &Ddl,
    verdict: Option<&Verdict>,
) -> Result<Vec<Step>, DdlError> {
    let job_id = ddl.entry.job_id;
    match verdict {
        Some(Verdict::Skip) => {
            metrics::ddl("skipped");
            return Ok(Vec::new());
        }
        Some(Verdict::Replace(statement)) => {
            metrics::ddl("replaced");
            return Ok(vec![Step::in_current(ddl, statement.as_str())]);
        }
        None => {}
    }
    if config.ddl.skip.contains(&job_id) {
        warn!(job = job_id, statement = ddl.entry.statement, "left out a schema change, as configured");
        metrics::ddl("skipped");
        return Ok(Vec::new());
    }
    if let Some(statement) = config.ddl.replace.get(&job_id.to_string()) {
        warn!(job = job_id, statement, "running another statement for a schema change, as configured");
        metrics::ddl("replaced");
        return Ok(vec![Step::in_current(ddl, statement.as_str())]);
    }
    match plan(ddl, &session.target, &config.ddl) {
        Plan::Run(steps) => Ok(steps),
        Plan::Nothing(why) => {
            info!(job = job_id, statement = ddl.entry.statement, why, "a schema change needs nothing here");
            Ok(Vec::new())
        }
        Plan::Unsupported(reason) if config.ddl.unsupported == DdlPolicy::Skip => {
            warn!(
                job = job_id,
                statement = ddl.entry.statement,
                reason,
                "left out a schema change that the target cannot run"
            );
            metrics::ddl("skipped");
            Ok(Vec::new())
        }
        Plan::Unsupported(reason) => Err(stopped(ddl, config, reason)),
    }
}

fn stopped(ddl: &Ddl, config: &Config, reason: String) -> DdlError {
    let action = tidb::model::ActionType::from(ddl.entry.action.unsigned_abs());
    DdlError::Stopped {
        job_id: ddl.entry.job_id,
        action: action.name().to_owned(),
        seq: ddl.seq,
        reason,
        statement: ddl.entry.statement.clone(),
        flags: operator::flags(config),
    }
}

async fn entry(session: &mut Session, meta: &Meta, seq: u64) -> Result<Option<Entry>, Error> {
    let row: Option<(u64, String, u64, String, String)> = session
        .conn
        .exec_first(
            format!(
                "SELECT step, state, connection_id, before_step, statements FROM {} WHERE consumer = :consumer AND seq = :seq",
                meta.table("ddl_journal")
            ),
            params! { "consumer" => meta.consumer(), seq },
        )
        .await?;
    Ok(row.map(|(step, state, connection_id, before_step, statements)| Entry {
        steps: step as usize,
        state,
        connection_id,
        before_step,
        statements: serde_json::from_str(&statements).unwrap_or_default(),
    }))
}

/// How the databases and tables concerned look: their definitions and identities, or that they are not there.
async fn looks(session: &mut Session, ddl: &Ddl) -> Result<String, Error> {
    let mut out = String::new();
    let mut names: Vec<(String, String)> = Vec::new();
    for table in ddl.before.iter().chain(&ddl.after) {
        names.push((table.database().to_owned(), table.name().to_owned()));
    }
    names.sort();
    names.dedup();
    let mut databases: Vec<String> = names.iter().map(|(database, _)| database.clone()).collect();
    databases.push(ddl.entry.current_database.clone());
    databases.extend(changed_database(ddl));
    databases.sort();
    databases.dedup();
    for database in databases.iter().filter(|database| !database.is_empty()) {
        out.push_str(&show(session, &format!("SHOW CREATE DATABASE {}", quoted(database))).await?);
        out.push('\n');
    }
    for (database, table) in &names {
        out.push_str(&show(session, &format!("SHOW CREATE TABLE {}", table_name(database, table))).await?);
        out.push('\n');
        out.push_str(&identities(session, database, table).await?);
        out.push('\n');
    }
    Ok(out)
}

/// The database that the job is about. A statement about a database itself needs no current one and need not name a table,
/// so this may be all that tells whether it happened.
fn changed_database(ddl: &Ddl) -> Option<String> {
    // The drainer wrote it from a job that it had read; a change without a job is about no database.
    let job = Job::parse(ddl.job.as_ref()?).ok()?;
    let described = job.binlog.db_info.map(|database| database.name.as_str().to_owned());
    Some(described.unwrap_or(job.schema_name))
}

/// The text of a SHOW CREATE; of what is not there, that.
async fn show(session: &mut Session, sql: &str) -> Result<String, Error> {
    match session.conn.query_first::<DbRow, _>(sql).await {
        Ok(row) => {
            Ok(row.and_then(|mut row| row.take_opt::<String, _>(1)).and_then(Result::ok).unwrap_or_default())
        }
        // No such database, table or view.
        Err(Error::Server(server)) if matches!(server.code, 1049 | 1146 | 1356 | 4091) => {
            Ok(format!("{sql}: not there"))
        }
        Err(error) => Err(error),
    }
}

/// The server's own ids of a table and its partitions: they move when tables are swapped or exchanged. Empty where the
/// user may not see them.
async fn identities(session: &mut Session, database: &str, table: &str) -> Result<String, Error> {
    use crate::mysql::session::Target;
    let mut place = String::new();
    let query = match &session.target {
        Target::TiDb { .. } => {
            let (mut schema, mut name) = (String::new(), String::new());
            string(&mut schema, database);
            string(&mut name, table);
            format!(
                "SELECT CONCAT(tidb_table_id, ' ', (SELECT COALESCE(GROUP_CONCAT(tidb_partition_id ORDER BY \
                 partition_ordinal_position), '') FROM information_schema.partitions WHERE table_schema = {schema} AND \
                 table_name = {name})) FROM information_schema.tables WHERE table_schema = {schema} AND table_name = {name}"
            )
        }
        Target::MySql { .. } | Target::MariaDb { .. } => {
            let view = if session.target.is_mariadb() { "innodb_sys_tables" } else { "innodb_tables" };
            string(&mut place, &format!("{}/{}", file_name(database), file_name(table)));
            format!(
                "SELECT GROUP_CONCAT(CONCAT(name, '=', table_id) ORDER BY name) FROM information_schema.{view} WHERE name = \
                 {place} OR name LIKE CONCAT(REPLACE(REPLACE({place}, '_', '\\\\_'), '%', '\\\\%'), '#p#%')"
            )
        }
    };
    match session.conn.query_first::<Option<String>, _>(query).await {
        Ok(found) => Ok(found.flatten().unwrap_or_default()),
        // Not allowed to see them, or not such a server.
        Err(Error::Server(server)) if matches!(server.code, 1044 | 1045 | 1109 | 1142 | 1227) => {
            Ok(String::new())
        }
        Err(error) => Err(error),
    }
}

/// A name as InnoDB writes it: other characters than letters, digits and `_` as `@` and four hexadecimal digits. (Letters
/// of other scripts have shorter forms there; such a table is recognised by its definition alone.)
fn file_name(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_ascii_alphanumeric() || c == '_' {
            out.push(c);
        } else {
            out.push_str(&format!("@{:04x}", u32::from(c)));
        }
    }
    out
}

/// Writes down what is about to run. Also the last look at the lease.
pub(crate) async fn intend(
    session: &mut Session,
    meta: &Meta,
    owner: OwnerEpoch,
    ddl: &Ddl,
    from: &Position,
    steps: &[Step],
    number: usize,
) -> Result<(), DdlError> {
    let before_step = looks(session, ddl).await?;
    let note = Note { ddl, steps, step: number, state: "intent", before_step: &before_step };
    write_down(session, meta, owner, (from, from), &note).await
}

/// What the journal is to say of a schema change.
struct Note<'a> {
    ddl: &'a Ddl,
    steps: &'a [Step],
    /// The step that is next, or has been done.
    step: usize,
    state: &'a str,
    before_step: &'a str,
}

/// Replaces the entry and moves the position, in one transaction and under the lease.
async fn write_down(
    session: &mut Session,
    meta: &Meta,
    owner: OwnerEpoch,
    (from, to): (&Position, &Position),
    note: &Note<'_>,
) -> Result<(), DdlError> {
    session.conn.query_drop("BEGIN").await?;
    if !meta.advance(&mut session.conn, from, to, owner).await? {
        session.conn.query_drop("ROLLBACK").await?;
        return Err(DdlError::Fenced);
    }
    write_entry(session, meta, note).await?;
    session.conn.query_drop("COMMIT").await?;
    Ok(())
}

async fn write_entry(session: &mut Session, meta: &Meta, note: &Note<'_>) -> Result<(), Error> {
    let Note { ddl, steps, step, state, before_step } = note;
    let statements: Vec<&str> = steps.iter().map(|step| step.statement.as_str()).collect();
    let connection_id = session.conn.id();
    session
        .conn
        .exec_drop(
            format!(
                "REPLACE INTO {} (consumer, seq, job_id, commit_ts, statements, step, state, connection_id, before_step) \
                 VALUES (:consumer, :seq, :job_id, :commit_ts, :statements, :step, :state, :connection_id, :before_step)",
                meta.table("ddl_journal")
            ),
            params! {
                "consumer" => meta.consumer(),
                "seq" => ddl.seq,
                "job_id" => ddl.entry.job_id,
                "commit_ts" => ddl.commit_ts.get(),
                "statements" => serde_json::Value::from(statements).to_string(),
                "step" => *step as u64,
                "state" => *state,
                connection_id,
                "before_step" => *before_step,
            },
        )
        .await
}

pub(crate) async fn execute(
    session: &mut Session,
    ddl: &Ddl,
    step: &Step,
    config: &Config,
) -> Result<(), DdlError> {
    let mut settings = vec![format!("SET SESSION sql_mode='{}'", ddl_mode(&session.target))];
    if let Some(micros) = step.timestamp {
        settings.push(format!("SET SESSION timestamp={}.{:06}", micros / 1_000_000, micros % 1_000_000));
    }
    if let Some(zone) = &step.time_zone {
        let mut name = String::new();
        string(&mut name, zone);
        settings.push(format!("SET SESSION time_zone={name}"));
    }
    // Without it, the names would be looked for in the database that happened to be current before.
    settings.extend(step.database.as_ref().map(|database| format!("USE {}", quoted(database))));
    for setting in &settings {
        match session.conn.query_drop(setting.as_str()).await {
            Ok(()) => {}
            Err(error) if is_transient(&error) => return Err(error.into()),
            Err(error) => {
                reset(session).await?;
                return Err(stopped(
                    ddl,
                    config,
                    format!("the target refuses `{setting}`, which it needs: {error}"),
                ));
            }
        }
    }
    let tables: Vec<String> =
        ddl.after.iter().map(|table| table_name(table.database(), table.name())).collect();
    info!(job = ddl.entry.job_id, seq = ddl.seq, commit_ts = %ddl.commit_ts, tables = tables.join(", "), statement = step.statement, "running a schema change");
    let result = session.conn.query_drop(step.statement.as_str()).await;
    match result {
        Ok(()) => {}
        Err(error) if is_transient(&error) => return Err(error.into()),
        Err(error) => {
            reset(session).await?;
            if config.ddl.unsupported == DdlPolicy::Skip {
                warn!(job = ddl.entry.job_id, statement = step.statement, %error, "left out a schema change that the target refused");
                metrics::ddl("skipped");
                return Ok(());
            }
            return Err(stopped(ddl, config, format!("the target refuses `{}`: {error}", step.statement)));
        }
    }
    Ok(reset(session).await?)
}

/// Back to the pins for rows.
async fn reset(session: &mut Session) -> Result<(), Error> {
    session.conn.query_drop("SET SESSION timestamp=DEFAULT").await?;
    session.conn.query_drop("SET SESSION time_zone='+00:00'").await?;
    session.conn.query_drop(format!("SET SESSION sql_mode='{DML_MODE}'")).await
}

/// Marks it done and moves the position, in one transaction.
async fn finish(
    session: &mut Session,
    meta: &Meta,
    owner: OwnerEpoch,
    ddl: &Ddl,
    from: &Position,
    steps: &[Step],
) -> Result<(), DdlError> {
    // Rows with the same seq may follow; the position moves with them.
    let to = ddl.after_position.as_ref().unwrap_or(from);
    let note = Note { ddl, steps, step: steps.len(), state: "done", before_step: "" };
    write_down(session, meta, owner, (from, to), &note).await
}
