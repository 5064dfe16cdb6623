//! What TiDB is given to run.

use std::sync::Arc;

use schemas::sluice::v1::{DdlEntry, TableDefinition};
use tidb::ts::{CommitTs, StartTs};

use super::*;
use crate::mysql::config::DdlConfig;
use crate::mysql::ddl::plan;
use crate::mysql::session::Target;
use crate::schema::Table;

/// A column with what follows its type.
fn column(id: i64, name: &str, kind: u8, default: &str, origin: &str) -> String {
    let quoted = |text: &str| if text.is_empty() { "null".to_owned() } else { format!("\"{text}\"") };
    format!(
        r#"{{"id":{id},"name":{{"O":"{name}","L":"{name}"}},"offset":{},"origin_default":{},"default":{},"version":2,"type":{{"Tp":{kind},"Flag":0,"Flen":20,"Decimal":0,"Charset":"binary","Collate":"binary","Elems":null}},"state":5}}"#,
        id - 1,
        quoted(origin),
        quoted(default)
    )
}

fn table(name: &str, columns: &[String], rest: &str) -> Arc<Table> {
    let json = format!(
        r#"{{"id":1,"name":{{"O":"{name}","L":"{name}"}},"charset":"utf8mb4","collate":"utf8mb4_bin","cols":[{}],"index_info":null,"state":5{rest}}}"#,
        columns.join(",")
    );
    Arc::new(Table::new(TableDefinition {
        table_id: 1,
        database: "d".into(),
        table: name.into(),
        tidb_json: json.into_bytes().into(),
        ..Default::default()
    }))
}

fn ddl(
    action: ActionType,
    statement: &str,
    before: &[&Arc<Table>],
    after: &[&Arc<Table>],
    location: &str,
) -> Ddl {
    let all = |tables: &[&Arc<Table>]| tables.iter().map(|table| Arc::clone(table)).collect();
    Ddl {
        seq: 1,
        commit_ts: CommitTs::new(2),
        start_ts: StartTs::new(1),
        entry: DdlEntry {
            action: action.number() as i32,
            statement: statement.to_owned(),
            current_database: "d".into(),
            ..Default::default()
        },
        before: all(before),
        after: all(after),
        job: Some(format!(r#"{{"id":9,"query":"x","reorg_meta":{location}}}"#).into()),
        after_position: None,
    }
}

const UNTOLD: &str = "null";
const SHANGHAI: &str = r#"{"location":{"name":"Asia/Shanghai","offset":0}}"#;

fn steps(ddl: &Ddl) -> Result<Vec<Step>, String> {
    match plan::plan(ddl, &Target::from_version("5.7.25-TiDB-v7.1.6"), &DdlConfig::default()) {
        Plan::Run(steps) => Ok(steps),
        Plan::Nothing(_) => Ok(vec![]),
        Plan::Unsupported(reason) => Err(reason),
    }
}

fn texts(ddl: &Ddl) -> Vec<String> {
    steps(ddl).unwrap().into_iter().map(|step| step.statement).collect()
}

#[test]
fn a_timestamp_s_default_is_the_instant_of_the_definition() {
    let before = table("t", &[column(1, "a", 3, "", "")], "");
    let after = table(
        "t",
        &[
            column(1, "a", 3, "", ""),
            column(2, "ts", 7, "2020-01-01 00:00:00", "2020-01-01 00:00:00"),
            column(3, "dt", 12, "2020-01-01 08:00:00", "2020-01-01 08:00:00"),
            column(4, "z", 7, "0000-00-00 00:00:00", ""),
        ],
        "",
    );
    for (statement, expected) in [
        (
            "ALTER TABLE `t` ADD COLUMN `ts` TIMESTAMP NOT NULL DEFAULT '2020-01-01 08:00:00', ADD COLUMN (`dt` DATETIME DEFAULT \
             '2020-01-01 08:00:00',`z` TIMESTAMP DEFAULT '0000-00-00 00:00:00');",
            "ALTER TABLE `t` ADD COLUMN `ts` TIMESTAMP NOT NULL DEFAULT '2020-01-01 00:00:00', ADD COLUMN (`dt` DATETIME DEFAULT \
             '2020-01-01 08:00:00',`z` TIMESTAMP DEFAULT '0000-00-00 00:00:00')",
        ),
        (
            "ALTER TABLE `t` ALTER COLUMN `ts` SET DEFAULT _UTF8MB4'2020-01-01 08:00:00'",
            "ALTER TABLE `t` ALTER COLUMN `ts` SET DEFAULT '2020-01-01 00:00:00'",
        ),
        (
            "ALTER TABLE `t` MODIFY COLUMN `ts` TIMESTAMP DEFAULT 20200101080000 /*T! x */",
            "ALTER TABLE `t` MODIFY COLUMN `ts` TIMESTAMP DEFAULT '2020-01-01 00:00:00' /*T! x */",
        ),
    ] {
        let said = steps(&ddl(ActionType::AddColumn, statement, &[&before], &[&after], UNTOLD)).unwrap();
        assert_eq!(said.len(), 1, "{said:?}");
        assert_eq!((said[0].statement.as_str(), said[0].time_zone.as_deref()), (expected, None));
        assert_eq!(said[0].database.as_deref(), Some("d"));
    }
    let create = "CREATE TABLE `t` (`a` INT,`ts` TIMESTAMP DEFAULT '2020-01-01 08:00:00',PRIMARY KEY(`a`) /*T![clustered_index] \
                  CLUSTERED */)";
    let said = texts(&ddl(ActionType::CreateTable, create, &[], &[&after], UNTOLD));
    assert_eq!(said, [create.replace("08:00:00", "00:00:00")]);
}

#[test]
fn conversions_run_in_the_zone_of_the_session_or_not_at_all() {
    let before = table("t", &[column(1, "a", 12, "", "")], "");
    let after = table("t", &[column(1, "b", 7, "2020-01-01 00:00:00", "")], "");
    let statement = "ALTER TABLE `t` CHANGE COLUMN `a` `b` TIMESTAMP DEFAULT '2020-01-01 08:00:00'";
    let said = steps(&ddl(ActionType::ModifyColumn, statement, &[&before], &[&after], SHANGHAI)).unwrap();
    assert_eq!(
        (said[0].statement.as_str(), said[0].time_zone.as_deref()),
        (statement, Some("Asia/Shanghai"))
    );
    let refused = steps(&ddl(ActionType::ModifyColumn, statement, &[&before], &[&after], UNTOLD));
    assert!(refused.as_ref().is_err_and(|why| why.contains("time zone")), "{refused:?}");
    // The date of the day on which it is converted.
    let time = table("t", &[column(1, "a", 11, "", "")], "");
    let refused = steps(&ddl(ActionType::ModifyColumn, statement, &[&time], &[&after], SHANGHAI));
    assert!(refused.as_ref().is_err_and(|why| why.contains("from TIME to a date")), "{refused:?}");
}

#[test]
fn bounds_given_as_texts_are_the_numbers_of_the_definition() {
    let parted = table(
        "t",
        &[column(1, "a", 7, "", "")],
        r#","partition":{"type":1,"expr":"UNIX_TIMESTAMP(`a`)","enable":true,"num":1,"definitions":[{"id":1,"name":{"O":"p0","L":"p0"},"less_than":["1577836800"]}]}"#,
    );
    let statement = "ALTER TABLE `t` ADD PARTITION (PARTITION `p0` VALUES LESS THAN (UNIX_TIMESTAMP('2020-01-01 08:00:00')))";
    let said = texts(&ddl(ActionType::AddTablePartition, statement, &[&parted], &[&parted], UNTOLD));
    assert_eq!(said, ["ALTER TABLE `t` ADD PARTITION (PARTITION `p0` VALUES LESS THAN (1577836800))"]);
    let other = statement.replace("`p0`", "`p9`");
    let refused = steps(&ddl(ActionType::AddTablePartition, &other, &[&parted], &[&parted], UNTOLD));
    assert!(refused.as_ref().is_err_and(|why| why.contains("UNIX_TIMESTAMP")), "{refused:?}");
}

#[test]
fn the_clock_is_the_upstream_s() {
    let before = table("t", &[column(1, "a", 3, "", "")], "");
    let with = |origins: [&str; 2]| {
        let now = |id, name, kind, origin| column(id, name, kind, "CURRENT_TIMESTAMP", origin);
        let columns = [column(1, "a", 3, "", ""), now(2, "b", 7, origins[0]), now(3, "c", 12, origins[1])];
        table("t", &columns, "")
    };
    let statement = "ALTER TABLE `t` ADD COLUMN `b` TIMESTAMP DEFAULT CURRENT_TIMESTAMP(), ADD COLUMN `c` DATETIME DEFAULT \
                     CURRENT_TIMESTAMP()";
    let run = |after: &Arc<Table>| {
        steps(&ddl(ActionType::MultiSchemaChange, statement, &[&before], &[after], UNTOLD))
    };
    let said = run(&with(["2020-01-01 00:00:01", "2020-01-01 00:00:01"])).unwrap();
    assert_eq!(said[0].timestamp, Some(1_577_836_801_000_000));
    // The session was not in UTC: no one clock gives both.
    assert!(run(&with(["2020-01-01 00:00:01", "2020-01-01 08:00:01"])).is_err());
}

#[test]
fn what_is_a_cluster_s_own_is_left_out() {
    for (action, statement) in [
        (ActionType::SetTiFlashReplica, "ALTER TABLE `t` SET TIFLASH REPLICA 1"),
        (ActionType::CreatePlacementPolicy, "CREATE PLACEMENT POLICY `p` FOLLOWERS=4"),
        (ActionType::AlterTablePlacement, "ALTER TABLE `t` PLACEMENT POLICY=`p`"),
        (ActionType::CreateResourceGroup, "CREATE RESOURCE GROUP `g` RU_PER_SEC=5"),
    ] {
        assert_eq!(steps(&ddl(action, statement, &[], &[], UNTOLD)), Ok(vec![]), "{statement}");
    }
    let create = r"CREATE TABLE `t` (`a` INT COMMENT '/*T![placement] \') /*T![placement] PLACEMENT POLICY = `p` */ COMMENT = 'x\' /*T![ttl] TTL = `a` */";
    let after = table("t", &[column(1, "a", 3, "", "")], "");
    let said = texts(&ddl(ActionType::CreateTable, create, &[], &[&after], UNTOLD));
    // Backslashes escape in our sessions.
    assert_eq!(
        said,
        [r"CREATE TABLE `t` (`a` INT COMMENT '/*T![placement] \\')  COMMENT = 'x\\' /*T![ttl] TTL = `a` */"]
    );
}

#[test]
fn several_tables_are_one_statement_each() {
    let one = |name: &str| table(name, &[column(1, "ts", 7, "2020-01-01 00:00:00", "")], "");
    let (t, u) = (one("t"), one("u"));
    let statement = "CREATE TABLE `t` (`ts` TIMESTAMP DEFAULT '2020-01-01 08:00:00');CREATE TABLE `u` (`ts` TIMESTAMP DEFAULT \
                     '2020-01-01 09:00:00' COMMENT ';');";
    let said = texts(&ddl(ActionType::CreateTables, statement, &[], &[&t, &u], UNTOLD));
    assert_eq!(
        said,
        [
            "CREATE TABLE `t` (`ts` TIMESTAMP DEFAULT '2020-01-01 00:00:00')",
            "CREATE TABLE `u` (`ts` TIMESTAMP DEFAULT '2020-01-01 00:00:00' COMMENT ';')"
        ]
    );
    assert!(steps(&ddl(ActionType::CreateTables, statement, &[], &[&t], UNTOLD)).is_err());
}

#[test]
fn other_tables_are_named_with_their_database() {
    let parted = table(
        "p",
        &[column(1, "a", 3, "", "")],
        r#","partition":{"type":1,"expr":"`a`","enable":true,"num":1,"definitions":[{"id":1,"name":{"O":"p0","L":"p0"},"less_than":["10"]}]}"#,
    );
    let plain = table("x", &[column(1, "a", 3, "", "")], "");
    for other in ["`x`", "`e`.`x`"] {
        let statement =
            format!("ALTER TABLE `d`.`p` EXCHANGE PARTITION `p0` WITH TABLE {other} WITHOUT VALIDATION");
        let exchange = ddl(
            ActionType::ExchangeTablePartition,
            &statement,
            &[&parted, &plain],
            &[&parted, &plain],
            UNTOLD,
        );
        let said = texts(&exchange);
        assert_eq!(
            said,
            ["ALTER TABLE `d`.`p` EXCHANGE PARTITION `p0` WITH TABLE `d`.`x` WITHOUT VALIDATION"]
        );
    }
    for (statement, known) in [
        ("CREATE TABLE `x` LIKE `y`", true),
        ("CREATE TABLE IF NOT EXISTS `d`.`x` LIKE `e`.`y`", true),
        ("CREATE TABLE `d`.`x` LIKE `y`", false),
        ("CREATE TABLE IF NOT EXISTS `d`.`x` (LIKE `y`)", false),
    ] {
        let said = steps(&ddl(ActionType::CreateTable, statement, &[], &[&plain], UNTOLD));
        assert_eq!(said.is_ok(), known, "{statement}: {said:?}");
    }
}
