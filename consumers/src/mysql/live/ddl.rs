//! Schema changes that a crash interrupts, before and after they happened.

use schemas::sluice::v1::DdlEntry;
use tidb::model::ActionType;

use super::*;
use crate::event::Ddl;
use crate::mysql::ddl::{DdlError, journal};

/// A definition whose TiDB description is made from SQL-ish parts.
fn defined(id: i64, version: i64, name: &str, json: &str) -> Arc<Table> {
    Arc::new(Table::new(TableDefinition {
        table_id: id,
        version,
        database: "j".into(),
        table: name.into(),
        kind: "table".into(),
        tidb_json: json.as_bytes().to_vec().into(),
        ..Default::default()
    }))
}

fn int(id: i64, name: &str, offset: i64) -> String {
    format!(
        r#"{{"id":{id},"name":{{"O":"{name}","L":"{name}"}},"offset":{offset},"origin_default":null,"default":null,"type":{{"Tp":3,"Flag":{},"Flen":11,"Decimal":0,"Charset":"binary","Collate":"binary","Elems":null}},"state":5}}"#,
        if id == 1 { 3 } else { 0 }
    )
}

fn info(id: i64, name: &str, columns: &[String], rest: &str) -> String {
    format!(
        r#"{{"id":{id},"name":{{"O":"{name}","L":"{name}"}},"charset":"utf8mb4","collate":"utf8mb4_bin","cols":[{}],"index_info":null,"state":5,"pk_is_handle":true{rest}}}"#,
        columns.join(",")
    )
}

fn partitions(names: &[(&str, i64, i64)]) -> String {
    let definitions: Vec<String> = names
        .iter()
        .map(|(name, id, below)| {
            format!(r#"{{"id":{id},"name":{{"O":"{name}","L":"{name}"}},"less_than":["{below}"]}}"#)
        })
        .collect();
    format!(
        r#","partition":{{"type":1,"expr":"`id`","enable":true,"definitions":[{}],"num":2}}"#,
        definitions.join(",")
    )
}

fn ddl(
    seq: u64,
    action: ActionType,
    statement: &str,
    before: Vec<Arc<Table>>,
    after: Vec<Arc<Table>>,
) -> Ddl {
    Ddl {
        seq,
        commit_ts: CommitTs::new(seq * 10),
        start_ts: StartTs::new(seq * 10 - 1),
        entry: DdlEntry {
            job_id: 100 + seq as i64,
            action: action.number() as i32,
            statement: statement.to_owned(),
            current_database: "j".into(),
            ..Default::default()
        },
        before,
        after,
        job: None,
        after_position: Some(position(seq)),
    }
}

/// A change of a database itself, as the drainer describes it: without a current database, and without tables.
fn of_database(seq: u64, action: ActionType, statement: &str, collate: &str) -> Ddl {
    let job = format!(
        r#"{{"id":{},"type":{},"state":6,"schema_id":9,"schema_name":"k","binlog":{{"SchemaVersion":{seq},"DBInfo":{{"id":9,"db_name":{{"O":"k","L":"k"}},"charset":"utf8mb4","collate":"{collate}","state":5}}}}}}"#,
        100 + seq,
        action.number()
    );
    let mut ddl = ddl(seq, action, statement, vec![], vec![]);
    ddl.entry.current_database = String::new();
    ddl.job = Some(job.into());
    ddl
}

/// The changes, one after the other. Each has an effect that shows when it happens twice or not at all.
fn changes() -> Vec<Ddl> {
    let plain = |id, version, name: &str| defined(id, version, name, &info(id, name, &[int(1, "id", 0)], ""));
    let wide = |id, version, name: &str| {
        defined(id, version, name, &info(id, name, &[int(1, "id", 0), int(2, "v", 1)], ""))
    };
    let parted = |version, id: i64| {
        let json = info(3, "p", &[int(1, "id", 0)], &partitions(&[("p0", id, 10), ("p1", 32, 20)]));
        defined(3, version, "p", &json)
    };
    vec![
        ddl(1, ActionType::CreateTable, "CREATE TABLE `a` (…)", vec![], vec![plain(1, 1, "a")]),
        ddl(2, ActionType::CreateTable, "CREATE TABLE `b` (…)", vec![], vec![plain(2, 2, "b")]),
        ddl(
            3,
            ActionType::AddColumn,
            "ALTER TABLE `a` ADD COLUMN `v` INT;",
            vec![plain(1, 1, "a")],
            vec![wide(1, 3, "a")],
        ),
        // The tables change places: afterwards the names are the same.
        ddl(
            4,
            ActionType::RenameTables,
            "RENAME TABLE `a` TO `x`, `b` TO `a`, `x` TO `b`;",
            vec![wide(1, 3, "a"), plain(2, 2, "b")],
            vec![wide(1, 4, "b"), plain(2, 4, "a")],
        ),
        ddl(5, ActionType::CreateTable, "CREATE TABLE `p` (…)", vec![], vec![parted(5, 31)]),
        // A partition and a table of the same shape change places.
        ddl(
            6,
            ActionType::ExchangeTablePartition,
            "ALTER TABLE `p` EXCHANGE PARTITION `p0` WITH TABLE `a` WITHOUT VALIDATION;",
            vec![parted(5, 31), plain(2, 4, "a")],
            vec![parted(6, 2), plain(31, 6, "a")],
        ),
        ddl(
            7,
            ActionType::DropColumn,
            "ALTER TABLE `b` DROP COLUMN `v`;",
            vec![wide(1, 4, "b")],
            vec![plain(1, 7, "b")],
        ),
        ddl(8, ActionType::DropTable, "DROP TABLE `j`.`b`", vec![plain(1, 7, "b")], vec![]),
        of_database(9, ActionType::CreateSchema, "CREATE DATABASE `k`;", "utf8mb4_bin"),
        of_database(10, ActionType::ModifySchemaCharset, "ALTER DATABASE `k` …", "utf8mb4_general_ci"),
        of_database(11, ActionType::DropSchema, "DROP DATABASE `k`;", "utf8mb4_general_ci"),
    ]
}

/// Rows that tell the tables apart, put there as soon as a table is.
async fn mark(server: &Server, seq: u64) {
    let insert = match seq {
        1 => "INSERT INTO j.a VALUES (1)",
        2 => "INSERT INTO j.b VALUES (2)",
        5 => "INSERT INTO j.p VALUES (3), (13)",
        _ => return,
    };
    server.run(insert).await;
}

async fn state(server: &Server) -> Vec<String> {
    let mut state = Vec::new();
    for table in ["a", "b", "p"] {
        let mut session = server.session().await;
        match session.conn.query_first::<(String, String), _>(format!("SHOW CREATE TABLE j.{table}")).await {
            Ok(created) => state.push(created.unwrap().1),
            Err(_) => continue,
        }
        state.extend(
            server.rows::<String>(&format!("SELECT CAST(id AS CHAR) FROM j.{table} ORDER BY id")).await,
        );
    }
    state
}

/// Where the process died.
#[derive(Clone, Copy, Debug)]
enum Crash {
    Nowhere,
    /// The intent was stored, the statement did not run.
    BeforeTheStatement,
    /// The statement ran, nothing was stored after it.
    AfterTheStatement,
    /// Everything was done but the answer.
    AtTheEnd,
}

async fn run_all(server: &Server, crash: Crash, name: &str) -> Vec<String> {
    server.run("DROP DATABASE IF EXISTS j").await;
    server.run("CREATE DATABASE j CHARACTER SET utf8mb4 COLLATE utf8mb4_bin").await;
    let config = server.config(name);
    let (owner, mut session, _) = attach(&config).await;
    let meta = Meta::new(&config.mysql.meta_database, &config.name);
    for ddl in changes() {
        let from = position(ddl.seq - 1);
        let steps = journal::steps(&session, &config, &ddl, None).unwrap();
        assert_eq!(steps.len(), 1, "{steps:?}");
        match crash {
            Crash::Nowhere => {}
            Crash::BeforeTheStatement | Crash::AfterTheStatement => {
                journal::intend(&mut session, &meta, owner, &ddl, &from, &steps, 0).await.unwrap();
                if matches!(crash, Crash::AfterTheStatement) {
                    journal::execute(&mut session, &ddl, &steps[0], &config).await.unwrap();
                }
                session = server.session().await;
            }
            Crash::AtTheEnd => {
                journal::run(&mut session, &meta, owner, &config, &ddl, &from, None).await.unwrap();
                // The position went with it: back, as for rows that follow with the same seq.
                assert!(meta.advance(&mut session.conn, &position(ddl.seq), &from, owner).await.unwrap());
            }
        }
        journal::run(&mut session, &meta, owner, &config, &ddl, &from, None).await.unwrap();
        mark(server, ddl.seq).await;
    }
    let stored = meta.position(&mut session.conn).await.unwrap().unwrap();
    assert_eq!(stored.position, position(changes().len() as u64));
    state(server).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_neither_loses_nor_repeats_a_schema_change() {
    let server = Server::start().await;
    let smooth = run_all(&server, Crash::Nowhere, "smooth").await;
    // a is what p0 was; p holds what a held and its own second partition.
    let text = smooth.join("\n");
    assert!(!text.contains("CREATE TABLE `b`") && text.contains("PARTITION"), "{text}");
    let rows: Vec<&str> =
        smooth.iter().map(String::as_str).filter(|line| !line.starts_with("CREATE")).collect();
    assert_eq!(rows, ["3", "2", "13"], "{text}");
    for (crash, name) in
        [(Crash::BeforeTheStatement, "before"), (Crash::AfterTheStatement, "after"), (Crash::AtTheEnd, "end")]
    {
        assert_eq!(run_all(&server, crash, name).await, smooth, "{crash:?}");
    }
}

/// A statement that is still running on a connection of the dead instance is ended and seen not to have happened.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_left_running_is_ended_first() {
    let server = Server::start().await;
    server.run("CREATE DATABASE j CHARACTER SET utf8mb4 COLLATE utf8mb4_bin").await;
    let config = server.config("running");
    let (owner, mut dead, _) = attach(&config).await;
    let meta = Meta::new(&config.mysql.meta_database, &config.name);
    let changes = changes();
    journal::run(&mut dead, &meta, owner, &config, &changes[0], &position(0), None).await.unwrap();
    journal::run(&mut dead, &meta, owner, &config, &changes[1], &position(1), None).await.unwrap();
    // A reader holds the table, so the ALTER waits.
    let mut reader = server.session().await;
    reader.conn.query_drop("BEGIN").await.unwrap();
    reader.conn.query_drop("SELECT * FROM j.a").await.unwrap();
    let ddl = changes[2].clone();
    let steps = journal::steps(&dead, &config, &ddl, None).unwrap();
    journal::intend(&mut dead, &meta, owner, &ddl, &position(2), &steps, 0).await.unwrap();
    let (stuck, id) = (steps[0].clone(), dead.conn.id());
    let (other_config, other_ddl) = (config.clone(), ddl.clone());
    let waiting =
        tokio::spawn(async move { journal::execute(&mut dead, &other_ddl, &stuck, &other_config).await });
    let waits =
        format!("SELECT COUNT(*) FROM information_schema.processlist WHERE id = {id} AND info LIKE 'ALTER%'");
    while server.rows::<i64>(&waits).await != [1] {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let mut session = server.session().await;
    let running = tokio::spawn(async move {
        journal::run(&mut session, &meta, owner, &config, &ddl, &position(2), None).await
    });
    // The old one is ended although the reader still holds the table.
    assert!(waiting.await.unwrap().is_err());
    reader.conn.query_drop("ROLLBACK").await.unwrap();
    running.await.unwrap().unwrap();
    let columns: Vec<String> =
        server.rows("SELECT column_name FROM information_schema.columns WHERE table_schema = 'j' AND table_name = 'a' ORDER BY 1").await;
    assert_eq!(columns, ["id", "v"]);
}

/// A database that is not there is no reason to run a statement in the one that was current before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_is_not_run_in_another_database() {
    let server = Server::start().await;
    server.run("CREATE DATABASE j CHARACTER SET utf8mb4 COLLATE utf8mb4_bin").await;
    server.run("CREATE TABLE j.t (id INT)").await;
    let config = server.config("elsewhere");
    let (owner, mut session, _) = attach(&config).await;
    let meta = Meta::new(&config.mysql.meta_database, &config.name);
    session.conn.query_drop("USE j").await.unwrap();
    let mut sequence = ddl(1, ActionType::CreateSequence, "CREATE SEQUENCE `s`;", vec![], vec![]);
    sequence.entry.current_database = "gone".into();
    let error =
        journal::run(&mut session, &meta, owner, &config, &sequence, &position(0), None).await.unwrap_err();
    assert!(matches!(&error, DdlError::Stopped { reason, .. } if reason.contains("USE `gone`")), "{error}");
    assert!(server.rows::<String>("SHOW TABLES IN j LIKE 's'").await.is_empty());
    // It is there now, by hand: not a trace of the statement, which runs when it is asked for again.
    server.run("CREATE DATABASE gone").await;
    journal::run(&mut session, &meta, owner, &config, &sequence, &position(0), None).await.unwrap();
    assert_eq!(server.rows::<String>("SHOW TABLES IN gone LIKE 's'").await, ["s"]);
    server.run("DROP DATABASE gone").await;
    session.conn.query_drop("USE j").await.unwrap();
    // A view is made from its definition, which names everything.
    let json = r#"{"id":9,"name":{"O":"v","L":"v"},"cols":[{"id":1,"name":{"O":"id","L":"id"},"state":5}],"state":5,"view":{"view_select":"SELECT `id` AS `id` FROM `j`.`t`"}}"#;
    let mut view =
        ddl(2, ActionType::CreateView, "CREATE VIEW `k`.`v` AS SELECT `id` FROM `t`;", vec![], vec![]);
    view.after = vec![defined(9, 1, "v", json)];
    view.entry.current_database = "gone".into();
    journal::run(&mut session, &meta, owner, &config, &view, &position(1), None).await.unwrap();
    assert_eq!(server.rows::<String>("SHOW TABLES IN j LIKE 'v'").await, ["v"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_has_its_zone_and_leaves_none_behind() {
    let server = Server::start().await;
    server.run("CREATE DATABASE j CHARACTER SET utf8mb4 COLLATE utf8mb4_bin").await;
    let config = server.config("zone");
    let mut session = server.session().await;
    let change = ddl(
        1,
        ActionType::CreateSequence,
        "CREATE TABLE z AS SELECT @@session.time_zone AS zone",
        vec![],
        vec![],
    );
    let mut step = journal::steps(&session, &config, &change, None).unwrap().remove(0);
    step.time_zone = Some("+08:00".into());
    journal::execute(&mut session, &change, &step, &config).await.unwrap();
    assert_eq!(server.rows::<String>("SELECT zone FROM j.z").await, ["+08:00"]);
    step.time_zone = Some("Nowhere/Land".into());
    let error = journal::execute(&mut session, &change, &step, &config).await.unwrap_err();
    assert!(matches!(&error, DdlError::Stopped { reason, .. } if reason.contains("Nowhere/Land")), "{error}");
    let zone: Option<String> = session.conn.query_first("SELECT @@session.time_zone").await.unwrap();
    assert_eq!(zone.as_deref(), Some("+00:00"));
}

/// As TiDB writes it into its binlog, a backslash is itself.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backslash_at_the_end_of_a_comment_swallows_nothing() {
    let server = Server::start().await;
    server.run("CREATE DATABASE j CHARACTER SET utf8mb4 COLLATE utf8mb4_bin").await;
    server.run("CREATE TABLE j.a (id INT PRIMARY KEY)").await;
    let config = server.config("backslash");
    let (owner, mut session, _) = attach(&config).await;
    let meta = Meta::new(&config.mysql.meta_database, &config.name);
    let commented = int(2, "p", 1).replace(r#""state":5"#, r#""comment":"C:\\","state":5"#);
    let before = defined(1, 1, "a", &info(1, "a", &[int(1, "id", 0)], ""));
    let after = defined(1, 2, "a", &info(1, "a", &[int(1, "id", 0), commented, int(3, "q", 2)], ""));
    let statement = r"ALTER TABLE `a` ADD COLUMN `p` INT COMMENT 'C:\',ADD COLUMN `q` INT;";
    let mut change = ddl(1, ActionType::MultiSchemaChange, statement, vec![before], vec![after]);
    change.job = Some(r#"{"id":1,"query":"alter table a add p int comment 'C:\\\\', add q int"}"#.into());
    journal::run(&mut session, &meta, owner, &config, &change, &position(0), None).await.unwrap();
    let columns: Vec<(String, String)> = server.rows("SELECT column_name, column_comment FROM information_schema.columns WHERE table_schema = 'j' AND table_name = 'a' ORDER BY ordinal_position").await;
    let columns: Vec<(&str, &str)> =
        columns.iter().map(|(name, comment)| (name.as_str(), comment.as_str())).collect();
    assert_eq!(columns, [("id", ""), ("p", "C:\\"), ("q", "")]);
}

/// Rows stay where partitions come and go, and foreign keys refuse nothing: what cascades is in the log.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_and_foreign_keys_come_and_go() {
    let server = Server::start().await;
    server.run("CREATE DATABASE j CHARACTER SET utf8mb4 COLLATE utf8mb4_bin").await;
    server.run("CREATE TABLE j.p (id INT NOT NULL PRIMARY KEY)").await;
    server.run("CREATE TABLE j.c (id INT NOT NULL PRIMARY KEY)").await;
    server.run("INSERT INTO j.p VALUES (1), (15)").await;
    server.run("INSERT INTO j.c VALUES (1), (99)").await;
    let config = server.config("come_and_go");
    let (owner, mut session, _) = attach(&config).await;
    let meta = Meta::new(&config.mysql.meta_database, &config.name);
    let of = |id, name: &str, rest: &str| defined(id, id, name, &info(id, name, &[int(1, "id", 0)], rest));
    let key = |id: i64, name: &str, on_delete: u8| {
        format!(
            r#"{{"id":{id},"fk_name":{{"O":"{name}","L":"{name}"}},"ref_schema":{{"O":"","L":""}},"ref_table":{{"O":"p","L":"p"}},"ref_cols":[{{"O":"id","L":"id"}}],"cols":[{{"O":"id","L":"id"}}],"on_delete":{on_delete},"on_update":0}}"#
        )
    };
    let keys = |keys: &[String]| of(50, "c", &format!(r#","fk_info":[{}]"#, keys.join(",")));
    let (f, g) = (key(1, "f", 2), key(2, "g", 0));
    // The table has a new id after each change of its partitioning.
    let (plain, ranges) = (of(41, "p", ""), of(42, "p", &partitions(&[("p0", 60, 10), ("p1", 61, 20)])));
    let hash = of(
        43,
        "p",
        r#","partition":{"type":2,"expr":"`id`","enable":true,"definitions":[{"id":62,"name":{"O":"p0","L":"p0"}}],"num":1}"#,
    );
    let whole = of(44, "p", "");
    use ActionType as A;
    let changes = [
        (
            A::PartitionTableBy,
            "ALTER TABLE `p` PARTITION BY RANGE (`id`) (…);",
            (&plain, &ranges),
            ("p", "PARTITION `p1` VALUES LESS THAN (20)", true),
        ),
        (
            A::PartitionTableBy,
            "ALTER TABLE `p` PARTITION BY HASH (`id`) PARTITIONS 1;",
            (&ranges, &hash),
            ("p", "PARTITION BY HASH", true),
        ),
        (
            A::RemoveTablePartitioning,
            "ALTER TABLE `p` REMOVE PARTITIONING;",
            (&hash, &whole),
            ("p", "PARTITION", false),
        ),
        (
            A::AddForeignKey,
            "ALTER TABLE `c` ADD CONSTRAINT `f` FOREIGN KEY (`id`) REFERENCES `p` (`id`) ON DELETE CASCADE;",
            (&keys(&[]), &keys(std::slice::from_ref(&f))),
            ("c", "CONSTRAINT `f` FOREIGN KEY (`id`) REFERENCES `p` (`id`) ON DELETE CASCADE", true),
        ),
        (
            A::AddForeignKey,
            "ALTER TABLE `c` ADD FOREIGN KEY `g` (`id`) REFERENCES `p` (`id`);",
            (&keys(std::slice::from_ref(&f)), &keys(&[f.clone(), g.clone()])),
            ("c", "CONSTRAINT `g` FOREIGN KEY", true),
        ),
        (
            A::DropForeignKey,
            "ALTER TABLE `c` DROP FOREIGN KEY IF EXISTS `f`;",
            (&keys(&[f.clone(), g.clone()]), &keys(std::slice::from_ref(&g))),
            ("c", "CONSTRAINT `f`", false),
        ),
    ];
    for (seq, (action, statement, (before, after), (name, wanted, there))) in (1..).zip(changes) {
        let change = ddl(seq, action, statement, vec![before.clone()], vec![after.clone()]);
        let from = position(seq - 1);
        journal::run(&mut session, &meta, owner, &config, &change, &from, None).await.unwrap();
        let shown = server.rows::<(String, String)>(&format!("SHOW CREATE TABLE j.{name}")).await.remove(0).1;
        assert_eq!(shown.contains(wanted), there, "{statement}: {shown}");
    }
    let shown = server.rows::<(String, String)>("SHOW CREATE TABLE j.c").await.remove(0).1;
    assert!(shown.contains("CONSTRAINT `g`"), "{shown}");
    // The key of a row that is there without its parent's is not looked at, nor does a delete cascade.
    session.conn.query_drop("DELETE FROM j.p WHERE id = 1").await.unwrap();
    assert_eq!(server.rows::<i64>("SELECT id FROM j.c ORDER BY id").await, [1, 99]);
    assert_eq!(server.rows::<i64>("SELECT id FROM j.p").await, [15]);
}
