//! What a DDL becomes in the commit stream: whether it goes out, and the statement to run. Pure.
//!
//! TiDB's text alone is not enough: it carries no current database, a multi-table DROP gives every one of its jobs the
//! same text, and RENAME may mix qualified and unqualified names. So DROP TABLE, VIEW and SEQUENCE and both kinds of
//! RENAME are written anew from the job, fully qualified; every other statement goes out as TiDB rendered it, with the
//! job's database as the current one.

use schemas::sluice::v1::{DdlEntry, DdlRecord, TableVersion};
use tidb::model::{ActionType, InvolvingSchema, Job};
use tidb::ts::{CommitTs, StartTs};

use crate::filter::Filter;
use crate::schema::{Definition, Effect};

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
        // EXCHANGE PARTITION lists the plain table too; the statement is about the partitioned one.
        _ if !job.schema_name.is_empty() => job.schema_name.clone(),
        (Some(table), _) | (None, Some(table)) => table.database.clone(),
        (None, None) => String::new(),
    }
}

/// The steps of a RENAME in order, those of replicated tables only. Chains (`a TO c, b TO a, c TO b`) keep their middle
/// names, so each table is followed through them.
fn renames(filter: &Filter, job: &Job, effect: &Effect) -> Result<Vec<String>, DdlError> {
    let misfit = |reason| DdlError::RenameNames { job: job.id, reason };
    let replicated = |t: &Definition| filter.table(&t.database, t.table());
    let pairs = job.involving_schema_info.to_vec();
    if pairs.is_empty() {
        // Older TiDB versions do not list the names. One table's are known; of several, the order of steps is not.
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
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::filter::{FilterRules, TablePattern};
    use crate::routing::Routing;
    use crate::schema::{SchemaError, Tracker};
    use crate::sequence::RowLayout;

    struct Upstream {
        tracker: Tracker,
        filter: Filter,
        version: i64,
    }

    fn upstream(rules: FilterRules) -> Upstream {
        let filter = Filter::new(rules).unwrap();
        let layout = RowLayout { topics: vec![("t".to_owned(), 1)] };
        let mut upstream = Upstream {
            tracker: Tracker::new(Arc::new(Routing::new(filter.clone(), layout))),
            filter,
            version: 0,
        };
        for (id, name) in [(10, "a"), (20, "b")] {
            let info = json!({"id": id, "db_name": {"O": name, "L": name}});
            upstream.run(json!({"type": 1, "schema_id": id, "binlog": {"DBInfo": info}}), "").unwrap();
        }
        upstream
    }

    fn table(id: i64, name: &str) -> serde_json::Value {
        json!({"id": id, "name": {"O": name, "L": name.to_lowercase()}, "cols": []})
    }

    impl Upstream {
        fn apply(&mut self, mut job: serde_json::Value) -> Result<(Job, Effect), SchemaError> {
            self.version += 1;
            job["id"] = json!(1000 + self.version);
            if job.get("state").is_none() {
                job["state"] = json!(6);
            }
            job["binlog"]["SchemaVersion"] = json!(self.version);
            let job: Job = serde_json::from_value(job).unwrap();
            let effect = self.tracker.apply(&job, CommitTs::new(self.version as u64 * 10))?;
            Ok((job, effect))
        }

        fn run(&mut self, job: serde_json::Value, query: &str) -> Result<Option<DdlEntry>, DdlError> {
            let (job, effect) = self.apply(job).unwrap();
            let (start_ts, commit_ts) = (StartTs::new(1), CommitTs::new(2));
            let out = outgoing(&self.filter, &job, &effect, query.as_bytes(), start_ts, commit_ts)?;
            Ok(out.map(|out| out.entry))
        }

        fn create(&mut self, schema: i64, id: i64, name: &str) -> Option<DdlEntry> {
            let job = json!({"type": 3, "schema_id": schema, "table_id": id, "schema_name": "?", "binlog": {"TableInfo": table(id, name)}});
            self.run(job, "CREATE TABLE …").unwrap()
        }
    }

    #[test]
    fn setval_is_told_by_its_beginning() {
        assert!(is_setval(b"SELECT SETVAL(`d`.`s`, 5);") && is_setval(b"  select setval(`s`,1)"));
        assert!(!is_setval(b"CREATE TABLE t(a int)") && !is_setval(b"select"));
    }

    #[test]
    fn every_table_of_a_drop_gets_its_own_statement() {
        let mut upstream = upstream(FilterRules::default());
        upstream.create(10, 100, "x`y");
        upstream.create(20, 101, "z");
        let text = "DROP TABLE `x``y`, `b`.`z`;";
        let drop = |id: i64, schema: i64| json!({"type": 4, "schema_id": schema, "table_id": id, "schema_name": "a"});
        let first = upstream.run(drop(100, 10), text).unwrap().unwrap();
        assert_eq!(
            (first.statement.as_str(), first.current_database.as_str()),
            ("DROP TABLE `a`.`x``y`", "a")
        );
        assert_eq!(first.before, [TableVersion { table_id: 100, version: 3 }]);
        assert_eq!(upstream.run(drop(101, 20), text).unwrap().unwrap().statement, "DROP TABLE `b`.`z`");
        assert!(matches!(
            upstream.apply(drop(101, 20)),
            Err(SchemaError::UnknownTable { table_id: 101, .. })
        ));
    }

    #[test]
    fn chains_of_renames_keep_their_middle_names() {
        let mut upstream = upstream(FilterRules::default());
        upstream.create(10, 100, "r1");
        upstream.create(20, 101, "r2");
        let name = |database: &str, table: &str| json!({"database": database, "table": table});
        let job = json!({
            "type": 47, "schema_id": 10, "table_id": 100, "schema_name": "a",
            "binlog": {"MultipleTableInfos": [table(100, "r2"), table(101, "r1"), table(100, "r2")]},
            "involving_schema_info": [
                name("a", "r1"), name("a", "tmp"), name("b", "r2"), name("a", "r1"), name("a", "tmp"), name("b", "r2"),
            ],
        });
        let entry = upstream.run(job, "RENAME TABLE `r1` TO `tmp`, …").unwrap().unwrap();
        assert_eq!(
            entry.statement,
            "RENAME TABLE `a`.`r1` TO `a`.`tmp`, `b`.`r2` TO `a`.`r1`, `a`.`tmp` TO `b`.`r2`"
        );
        let definitions = upstream.tracker.definitions();
        assert_eq!(definitions.table(100).unwrap().database, "b");
        assert_eq!(
            (definitions.table(101).unwrap().database.as_str(), definitions.table(101).unwrap().table()),
            ("a", "r1")
        );
        // Names that do not lead to where the tables are now are not believed.
        let job = json!({
            "type": 14, "schema_id": 10, "table_id": 101, "binlog": {"TableInfo": table(101, "new")},
            "involving_schema_info": [name("a", "r1"), name("a", "other")],
        });
        assert!(matches!(upstream.run(job, ""), Err(DdlError::RenameNames { .. })));
    }

    #[test]
    fn a_rename_across_the_filter() {
        let rules = FilterRules { do_dbs: vec!["a".into()], ..FilterRules::default() };
        let mut upstream = upstream(rules);
        assert!(upstream.create(10, 100, "t").is_some());
        assert!(upstream.create(20, 101, "u").is_none());
        let rename = |id: i64, schema: i64, name: &str| json!({"type": 14, "schema_id": schema, "table_id": id, "binlog": {"TableInfo": table(id, name)}});
        // Out of the replicated set: renamed downstream too, its rows stop there.
        let out = upstream.run(rename(100, 20, "t"), "").unwrap().unwrap();
        assert_eq!(out.statement, "RENAME TABLE `a`.`t` TO `b`.`t`");
        assert!(upstream.tracker.definitions().table(100).unwrap().place.is_none());
        // Into it: its rows so far were never sent.
        let into = upstream.run(rename(101, 10, "u"), "");
        assert!(
            matches!(into, Err(DdlError::RenameIntoFilter { from, to, .. }) if from == "`b`.`u`" && to == "`a`.`u`")
        );
        // Within what is left out: nobody's business.
        assert_eq!(upstream.run(rename(100, 20, "v"), "").unwrap(), None);
    }

    #[test]
    fn what_is_left_out_by_kind() {
        let rules = FilterRules {
            ignore_tables: vec![TablePattern { db_name: "a".into(), tbl_name: "secret".into() }],
            ..FilterRules::default()
        };
        let mut upstream = upstream(rules);
        assert!(upstream.create(10, 100, "secret").is_none());
        let policy = json!({"type": 51, "schema_id": 1, "schema_name": "pp"});
        let entry = upstream.run(policy, "CREATE PLACEMENT POLICY pp").unwrap().unwrap();
        assert_eq!(entry.current_database, "");
        let drop_database = json!({"type": 2, "schema_id": 10, "schema_name": "a"});
        let entry = upstream.run(drop_database, "DROP DATABASE `a`;").unwrap().unwrap();
        assert_eq!((entry.statement.as_str(), entry.before.len()), ("DROP DATABASE `a`;", 1));
        // Undone jobs do nothing.
        let undone = json!({"type": 7, "schema_id": 20, "table_id": 5, "state": 3});
        assert_eq!(upstream.run(undone, "ALTER TABLE …").unwrap(), None);
    }

    #[test]
    fn flashback_cluster_and_unknown_kinds_are_refused_by_name() {
        let mut upstream = upstream(FilterRules::default());
        let error = upstream.apply(json!({"type": 62})).unwrap_err();
        assert!(error.to_string().contains("FLASHBACK CLUSTER"), "{error}");
        let error = upstream.apply(json!({"type": 99})).unwrap_err();
        assert!(error.to_string().contains("job type 99"), "{error}");
        let error = upstream.apply(json!({"type": 5, "schema_id": 10, "table_id": 7})).unwrap_err();
        assert!(
            error.to_string().contains("add column") && error.to_string().contains("table definition"),
            "{error}"
        );
    }

    #[test]
    fn a_flashed_back_database_has_its_tables_again() {
        let mut upstream = upstream(FilterRules::default());
        upstream.create(10, 100, "t");
        upstream.run(json!({"type": 2, "schema_id": 10, "schema_name": "a"}), "DROP DATABASE `a`;").unwrap();
        assert!(upstream.tracker.definitions().table(100).is_none());
        let back = json!({
            "type": 63, "schema_id": 10, "schema_name": "c",
            "binlog": {"DBInfo": {"id": 10, "db_name": {"O": "c", "L": "c"}}},
            "raw_args": [{"DBInfo": null, "RecoverTabsInfo": [{"SchemaID": 10, "TableInfo": table(100, "t")}], "DropJobID": 5}, 7],
        });
        let entry = upstream.run(back, "FLASHBACK DATABASE `a` TO `c`;").unwrap().unwrap();
        assert_eq!(entry.after, [TableVersion { table_id: 100, version: 5 }]);
        assert_eq!(upstream.tracker.definitions().table(100).unwrap().database, "c");
        let empty = json!({"type": 63, "schema_id": 20, "binlog": {"DBInfo": {"id": 20, "db_name": "d"}}});
        assert!(matches!(upstream.apply(empty), Err(SchemaError::Incomplete { .. })));
    }

    #[test]
    fn an_exchanged_table_goes_on_under_its_new_id() {
        let mut upstream = upstream(FilterRules::default());
        let parted = |ids: &[i64]| {
            let definitions: Vec<_> = ids.iter().map(|id| json!({"id": id, "name": "p"})).collect();
            let mut table = table(100, "p");
            table["partition"] = json!({"type": 1, "enable": true, "definitions": definitions});
            table
        };
        let job = json!({"type": 3, "schema_id": 10, "table_id": 100, "binlog": {"TableInfo": parted(&[101, 102])}});
        upstream.run(job, "").unwrap();
        upstream.create(20, 200, "plain");
        let exchange = json!({"type": 42, "schema_id": 10, "table_id": 200, "schema_name": "a", "binlog": {"TableInfo": parted(&[101, 200])}});
        let entry = upstream.run(exchange, "ALTER TABLE `p` EXCHANGE PARTITION …").unwrap().unwrap();
        assert_eq!(entry.current_database, "a");
        let definitions = upstream.tracker.definitions();
        assert_eq!(definitions.table(102).map(|t| (t.database.as_str(), t.table())), Some(("b", "plain")));
        // Late rows under the old id are rows of the partitioned table now.
        assert!(matches!(definitions.lookup(200), crate::schema::Lookup::Live(t) if t.id() == 100));
        let ids = |list: &[TableVersion]| list.iter().map(|t| t.table_id).collect::<Vec<_>>();
        assert_eq!((ids(&entry.before), ids(&entry.after)), (vec![200, 100], vec![100, 102]));
    }

    #[test]
    fn long_statements_stay_in_the_schema_topic() {
        let mut upstream = upstream(FilterRules::default());
        let (job, effect) = upstream
            .apply(json!({"type": 3, "schema_id": 10, "table_id": 9, "schema_name": "a", "binlog": {"TableInfo": table(9, "t")}}))
            .unwrap();
        let text = "x".repeat(MAX_STATEMENT + 1);
        let out =
            outgoing(&upstream.filter, &job, &effect, text.as_bytes(), StartTs::new(1), CommitTs::new(2));
        let out = out.unwrap().unwrap();
        assert_eq!((out.entry.statement.len(), out.record.statement.len()), (0, MAX_STATEMENT + 1));
    }
}
