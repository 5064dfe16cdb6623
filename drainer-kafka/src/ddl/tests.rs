//! What goes out of a DDL, by kind of job.

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
    let drop =
        |id: i64, schema: i64| json!({"type": 4, "schema_id": schema, "table_id": id, "schema_name": "a"});
    let first = upstream.run(drop(100, 10), text).unwrap().unwrap();
    assert_eq!((first.statement.as_str(), first.current_database.as_str()), ("DROP TABLE `a`.`x``y`", "a"));
    assert_eq!(first.before, [TableVersion { table_id: 100, version: 3 }]);
    assert_eq!(upstream.run(drop(101, 20), text).unwrap().unwrap().statement, "DROP TABLE `b`.`z`");
    assert!(matches!(upstream.apply(drop(101, 20)), Err(SchemaError::UnknownTable { table_id: 101, .. })));
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

/// TiDB before 7.1 lists no names: the statement has them, and the job's tables tell where they are.
#[test]
fn renames_whose_job_lists_no_names() {
    let job = |query: &str, tables: &[(i64, &str)]| {
        let infos: Vec<_> = tables.iter().map(|(id, name)| table(*id, name)).collect();
        json!({
            "type": 47, "schema_id": 10, "table_id": tables[0].0, "schema_name": "a", "query": query,
            "binlog": {"MultipleTableInfos": infos},
        })
    };
    let at = |upstream: &Upstream, id: i64| {
        let definitions = upstream.tracker.definitions();
        let table = definitions.table(id).unwrap();
        format!("{}.{}", table.database, table.table())
    };
    let mut upstream = upstream(FilterRules::default());
    upstream.create(10, 100, "r1");
    upstream.create(20, 101, "r2");
    let chain = "rename table r1 to tmp, /* b's */ `b`.`R2` to `r1`, tmp to b.r2";
    let entry = upstream.run(job(chain, &[(100, "r2"), (101, "r1"), (100, "r2")]), chain).unwrap().unwrap();
    assert_eq!(
        entry.statement,
        "RENAME TABLE `a`.`r1` TO `a`.`tmp`, `b`.`R2` TO `a`.`r1`, `a`.`tmp` TO `b`.`r2`"
    );
    assert_eq!((at(&upstream, 100), at(&upstream, 101)), ("b.r2".into(), "a.r1".into()));
    // Across databases, as history shows it: nothing goes out there, but the table has moved.
    upstream.apply(job("RENAME TABLE `r1` TO `b`.`x`", &[(101, "x")])).unwrap();
    assert_eq!(at(&upstream, 101), "b.x");
    // Nothing is guessed.
    for unreadable in [
        "",
        "RENAME TABLE `b`.`x` TO `y`, `b`.`z` TO `q`",
        "RENAME TABLE `a`.`x` TO `y`",
        "RENAME TABLE z TO y",
    ] {
        let error = upstream.apply(job(unreadable, &[(101, "y")])).unwrap_err();
        assert!(matches!(error, SchemaError::Incomplete { .. }), "{unreadable}: {error}");
        assert!(error.to_string().contains("names"), "{error}");
    }
}

/// Jobs name databases in lower case; on a case-sensitive server that is another one.
#[test]
fn the_current_database_is_named_as_it_was_written() {
    let mut upstream = upstream(FilterRules::default());
    let info = json!({"id": 30, "db_name": {"O": "Shop", "L": "shop"}});
    upstream.run(json!({"type": 1, "schema_id": 30, "binlog": {"DBInfo": info}}), "").unwrap();
    let job = json!({"type": 3, "schema_id": 30, "table_id": 100, "schema_name": "shop", "binlog": {"TableInfo": table(100, "T")}});
    let entry = upstream.run(job, "CREATE TABLE `T` (`a` INT);").unwrap().unwrap();
    assert_eq!(entry.current_database, "Shop");
    let job = json!({"type": 5, "schema_id": 30, "table_id": 100, "schema_name": "shop", "binlog": {"TableInfo": table(100, "T")}});
    assert_eq!(upstream.run(job, "ALTER TABLE `T` …").unwrap().unwrap().current_database, "Shop");
}

/// A sequence's values go out as the statement says; those of one that is gone, or left out, do not.
#[test]
fn what_a_sequence_has_handed_out() {
    let rules = FilterRules { ignore_schemas: vec!["b".into()], ..FilterRules::default() };
    let mut upstream = upstream(rules);
    for (schema, id) in [(10, 100), (20, 200)] {
        let mut sequence = table(id, "S`1");
        sequence["sequence"] = json!({"sequence_start": 1});
        upstream
            .run(
                json!({"type": 34, "schema_id": schema, "table_id": id, "binlog": {"TableInfo": sequence}}),
                "",
            )
            .unwrap();
    }
    let entry = |upstream: &Upstream, query: &str| {
        sequence_value(&upstream.filter, &upstream.tracker.definitions(), 77, query.as_bytes())
    };
    let query = "SELECT SETVAL(`a`.`s``1`, 1000);";
    let expected = DdlEntry {
        job_id: 77,
        statement: query.to_owned(),
        current_database: "a".to_owned(),
        ..DdlEntry::default()
    };
    assert_eq!(entry(&upstream, query), Some(expected));
    for none in [
        "SELECT SETVAL(`b`.`s``1`, 1);",
        "SELECT SETVAL(`a`.`t`, 1);",
        "SELECT SETVAL(`c`.`s``1`, 1);",
        "SELECT SETVAL(1);",
    ] {
        assert_eq!(entry(&upstream, none), None, "{none}");
    }
    upstream.run(json!({"type": 36, "schema_id": 10, "table_id": 100}), "DROP SEQUENCE …").unwrap();
    assert_eq!(entry(&upstream, query), None);
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

/// TiDB from 8.3 on does not list the tables; they are those that went with the database, also for a successor.
#[test]
fn a_flashed_back_database_whose_job_lists_no_tables() {
    use crate::schema::records::{SchemaReader, of_all, of_effect};

    let mut upstream = upstream(FilterRules::default());
    upstream.create(10, 100, "t");
    upstream.create(10, 101, "dropped before");
    upstream.create(10, 102, "u");
    upstream.create(20, 200, "other");
    upstream.run(json!({"type": 4, "schema_id": 10, "table_id": 101}), "DROP TABLE …").unwrap();
    let mut topic = of_all(&upstream.tracker, 1 << 20);
    let (_, effect) = upstream.apply(json!({"type": 2, "schema_id": 10, "schema_name": "a"})).unwrap();
    topic.extend(of_effect(&effect, None, CommitTs::new(50), 1 << 20));
    let routing = || {
        let layout = RowLayout { topics: vec![("t".to_owned(), 1)] };
        Arc::new(Routing::new(Filter::new(FilterRules::default()).unwrap(), layout))
    };
    let reread = |topic: &[crate::schema::records::SchemaTopicRecord]| {
        let mut reader = SchemaReader::default();
        topic.iter().for_each(|record| reader.push(&record.key, &record.meta, &record.value).unwrap());
        reader.finish(routing()).unwrap()
    };
    let successor = reread(&topic);
    // A feed that begins here writes down what may come back, too.
    let another = reread(&of_all(&upstream.tracker, 1 << 20));
    let back = json!({
        "id": 9, "type": 63, "schema_id": 10, "schema_name": "a", "state": 6,
        "binlog": {"SchemaVersion": 99, "DBInfo": {"id": 10, "db_name": {"O": "a", "L": "a"}}},
        "raw_args": [{"DBInfo": null, "RecoverTabsInfo": null, "LoadTablesOnExecute": true, "DropJobID": 5}, 7],
    });
    let job: Job = serde_json::from_value(back).unwrap();
    for (who, mut tracker) in [("itself", upstream.tracker), ("successor", successor), ("another", another)] {
        let effect = tracker.apply(&job, CommitTs::new(60)).unwrap();
        let tables: Vec<_> = effect.after.iter().map(|t| (t.id(), t.table().to_owned())).collect();
        assert_eq!(tables, [(100, "t".to_owned()), (102, "u".to_owned())], "{who}");
        assert_eq!(tracker.definitions().table(102).unwrap().database, "a", "{who}");
        assert!(tracker.definitions().table(101).is_none(), "{who}");
        // Once is enough.
        let mut again = job.clone();
        again.binlog.schema_version = 100;
        let error = tracker.apply(&again, CommitTs::new(61)).unwrap_err();
        assert!(error.to_string().contains("what the database held is not known"), "{who}: {error}");
    }
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
    let job =
        json!({"type": 3, "schema_id": 10, "table_id": 100, "binlog": {"TableInfo": parted(&[101, 102])}});
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
    let out = outgoing(&upstream.filter, &job, &effect, text.as_bytes(), StartTs::new(1), CommitTs::new(2));
    let out = out.unwrap().unwrap();
    assert_eq!((out.entry.statement.len(), out.record.statement.len()), (0, MAX_STATEMENT + 1));
}
