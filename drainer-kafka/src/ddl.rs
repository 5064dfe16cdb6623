//! What a DDL becomes in the commit stream: whether it goes out, and the statement to run. Pure.
//!
//! TiDB's text alone is not enough: it carries no current database, a multi-table DROP gives every one of its jobs the
//! same text, and RENAME may mix qualified and unqualified names. So DROP TABLE, VIEW and SEQUENCE and both kinds of
//! RENAME are written anew from the job, fully qualified; every other statement goes out as TiDB rendered it, with the
//! job's database as the current one.
//!
//! What a sequence has handed out reaches the log too: TiDB writes it as a pseudo DDL, `SELECT SETVAL(…)`, without a job.

use schemas::sluice::v1::{DdlEntry, DdlRecord, TableVersion};
use tidb::model::{ActionType, InvolvingSchema, Job};
use tidb::ts::{CommitTs, StartTs};

use crate::filter::Filter;
use crate::schema::{Definition, Definitions, Effect};
use crate::statement::set_sequence;

/// The longest statement that a commit record carries; longer ones are read from the schema topic.
const MAX_STATEMENT: usize = 64 * 1024;

/// The most tables that an entry lists on either side (DROP DATABASE can take any number).
const MAX_LISTED: usize = 10_000;

/// Why a DDL cannot go out though it concerns replicated tables.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DdlError {
    /// A table enters the replicated set by RENAME; its rows were never sent.
    #[error(
        "job {job} renames {from}, which the filter rules leave out, to {to}, which they replicate: its rows so far are \
         not in the log. Give it a name that is left out, or start a new feed with rules that include both names"
    )]
    RenameIntoFilter {
        /// Job id.
        job: i64,
        /// Old name.
        from: String,
        /// New name.
        to: String,
    },
    /// The job's list of names does not fit the tables it renames.
    #[error("job {job} lists the names of its renames in a way that does not fit its tables: {reason}")]
    RenameNames {
        /// Job id.
        job: i64,
        /// What does not fit.
        reason: &'static str,
    },
}

/// True for the pseudo DDL that sequences write when they hand out values; no job belongs to it.
pub fn is_setval(query: &[u8]) -> bool {
    const PREFIX: &[u8] = b"select setval(";
    let query = query.trim_ascii_start();
    query.len() >= PREFIX.len() && query[..PREFIX.len()].eq_ignore_ascii_case(PREFIX)
}

/// The entry of a sequence's new value; `None` if the rules leave the sequence out, or it is gone or not to be made out.
pub fn sequence_value(
    filter: &Filter,
    definitions: &Definitions,
    job_id: i64,
    query: &[u8],
) -> Option<DdlEntry> {
    let statement = String::from_utf8_lossy(query).into_owned();
    let name = set_sequence(&statement)?;
    let database = definitions.database_by_name(&name.database?.to_lowercase())?;
    let sequence = definitions.table_by_name(database.info.id, &name.table.to_lowercase())?;
    filter.table(&sequence.database, sequence.table()).then(|| DdlEntry {
        job_id,
        statement,
        current_database: sequence.database.clone(),
        ..DdlEntry::default()
    })
}

/// A name in back-quotes.
pub fn quote(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

fn qualified(database: &str, table: &str) -> String {
    format!("{}.{}", quote(database), quote(table))
}

/// A DDL that goes out: its entry in the commit stream, and its record in the schema topic.
#[derive(Clone, Debug)]
pub struct OutgoingDdl {
    /// For the commit stream.
    pub entry: DdlEntry,
    /// For the schema topic.
    pub record: DdlRecord,
}

/// The DDL's entry, or `None` if the filter rules leave everything it touches out, or it has no effect.
pub fn outgoing(
    filter: &Filter,
    job: &Job,
    effect: &Effect,
    query: &[u8],
    start_ts: StartTs,
    commit_ts: CommitTs,
) -> Result<Option<OutgoingDdl>, DdlError> {
    if !job.state.is_applied() || job.schema_version() == 0 || !passes(filter, job, effect)? {
        return Ok(None);
    }
    let Some((statement, current_database)) = statement(filter, job, effect, query)? else { return Ok(None) };
    let versions = |tables: &[std::sync::Arc<Definition>]| {
        let version = |t: &std::sync::Arc<Definition>| TableVersion { table_id: t.id(), version: t.version };
        tables.iter().take(MAX_LISTED).map(version).collect::<Vec<_>>()
    };
    let record = DdlRecord {
        job_id: job.id,
        action: job.kind.number() as i32,
        statement: statement.clone(),
        current_database: current_database.clone(),
        schema_version: job.schema_version(),
        commit_ts: commit_ts.get(),
        start_ts: start_ts.get(),
        tidb_json: tidb::gojson::to_vec(job).unwrap_or_default().into(),
    };
    let entry = DdlEntry {
        job_id: record.job_id,
        action: record.action,
        statement: if statement.len() > MAX_STATEMENT { String::new() } else { statement },
        current_database,
        before: versions(&effect.before),
        after: versions(&effect.after),
        schema_version: record.schema_version,
    };
    Ok(Some(OutgoingDdl { entry, record }))
}

fn passes(filter: &Filter, job: &Job, effect: &Effect) -> Result<bool, DdlError> {
    let table = |t: &std::sync::Arc<Definition>| filter.table(&t.database, t.table());
    let on_databases = effect.databases.iter().chain(&effect.dropped_databases);
    let mut databases = on_databases.peekable();
    if databases.peek().is_some() {
        return Ok(databases.any(|database| filter.database(database.info.name.as_str())));
    }
    if matches!(job.kind, ActionType::RenameTable | ActionType::RenameTables) {
        for after in &effect.after {
            let Some(before) = effect.before.iter().find(|before| before.id() == after.id()) else {
                continue;
            };
            if table(after) && !table(before) {
                return Err(DdlError::RenameIntoFilter {
                    job: job.id,
                    from: qualified(&before.database, before.table()),
                    to: qualified(&after.database, after.table()),
                });
            }
        }
        // A table that leaves the replicated set is renamed downstream too; its rows stop there.
        return Ok(effect.before.iter().any(table));
    }
    if effect.before.is_empty() && effect.after.is_empty() {
        let global = job.schema_name.is_empty() || matches!(job.kind.number(), 51..=53 | 68..=70);
        return Ok(if global { filter.global() } else { filter.table(&job.schema_name, &job.table_name) });
    }
    Ok(effect.before.iter().chain(&effect.after).any(table))
}

/// The statement and its current database; `None` if nothing of it is left after filtering.
fn statement(
    filter: &Filter,
    job: &Job,
    effect: &Effect,
    query: &[u8],
) -> Result<Option<(String, String)>, DdlError> {
    let dropped = |what: &str| {
        let table = effect.before.first()?;
        Some((format!("DROP {what} {}", qualified(&table.database, table.table())), table.database.clone()))
    };
    Ok(match job.kind {
        ActionType::DropTable => dropped("TABLE"),
        ActionType::DropView => dropped("VIEW"),
        ActionType::DropSequence => dropped("SEQUENCE"),
        ActionType::RenameTable | ActionType::RenameTables => {
            let renames = renames(filter, job, effect)?;
            let database = effect.after.first().map(|t| t.database.clone()).unwrap_or_default();
            (!renames.is_empty()).then(|| (format!("RENAME TABLE {}", renames.join(", ")), database))
        }
        _ => Some((String::from_utf8_lossy(query).into_owned(), current_database(job, effect))),
    })
}

fn current_database(job: &Job, effect: &Effect) -> String {
    match (effect.after.first(), effect.before.first()) {
        // Database statements name their database; policies and resource groups have none.
        _ if !effect.databases.is_empty() || !effect.dropped_databases.is_empty() => String::new(),
        (None, None) if matches!(job.kind.number(), 51..=53 | 68..=70) => String::new(),
        // EXCHANGE PARTITION lists the plain table too; the statement is about the partitioned one. A job names the
        // database in lower case, which on a case-sensitive server is another one.
        _ if !job.schema_name.is_empty() => {
            effect.database.clone().unwrap_or_else(|| job.schema_name.clone())
        }
        (Some(table), _) | (None, Some(table)) => table.database.clone(),
        (None, None) => String::new(),
    }
}

/// The steps of a RENAME in order, those of replicated tables only. Chains (`a TO c, b TO a, c TO b`) keep their middle
/// names, so each table is followed through them.
fn renames(filter: &Filter, job: &Job, effect: &Effect) -> Result<Vec<String>, DdlError> {
    let misfit = |reason| DdlError::RenameNames { job: job.id, reason };
    let replicated = |t: &Definition| filter.table(&t.database, t.table());
    let pairs =
        if effect.renames.is_empty() { job.involving_schema_info.to_vec() } else { effect.renames.clone() };
    if pairs.is_empty() {
        // Older TiDB versions do not list the names; where only one table is renamed they are known all the same.
        let [before] = effect.before.as_slice() else { return Err(misfit("the list is empty")) };
        let [after] = effect.after.as_slice() else { return Err(misfit("the list is empty")) };
        let step = format!(
            "{} TO {}",
            qualified(&before.database, before.table()),
            qualified(&after.database, after.table())
        );
        return Ok(if replicated(before) { vec![step] } else { Vec::new() });
    }
    let key = |database: &str, table: &str| (database.to_lowercase(), table.to_lowercase());
    let mut at: std::collections::HashMap<(String, String), &std::sync::Arc<Definition>> =
        effect.before.iter().map(|t| (key(&t.database, t.table()), t)).collect();
    let mut steps = Vec::new();
    let mut rest: &[InvolvingSchema] = &pairs;
    while let [from, to, tail @ ..] = rest {
        let Some(table) = at.remove(&key(&from.database, &from.table)) else {
            return Err(misfit("a step begins with a name that none of its tables has"));
        };
        at.insert(key(&to.database, &to.table), table);
        if replicated(table) {
            steps.push(format!(
                "{} TO {}",
                qualified(&from.database, &from.table),
                qualified(&to.database, &to.table)
            ));
        }
        rest = tail;
    }
    if !rest.is_empty() {
        return Err(misfit("a step has no target"));
    }
    let arrived = effect.after.iter().all(|after| {
        at.get(&key(&after.database, after.table())).is_some_and(|before| before.id() == after.id())
    });
    if arrived { Ok(steps) } else { Err(misfit("the steps do not lead to the new names")) }
}

#[cfg(test)]
mod tests;
