//! The parts of ALTER TABLE, statement by statement.

use super::*;

fn column(id: i64, name: &str, kind: u8) -> String {
    let text = if kind == 15 { "utf8mb4" } else { "binary" };
    format!(
        r#"{{"id":{id},"name":{{"O":"{name}","L":"{name}"}},"offset":{},"origin_default":null,"default":null,"type":{{"Tp":{kind},"Flag":0,"Flen":20,"Decimal":0,"Charset":"{text}","Collate":"{text}","Elems":null}},"state":5}}"#,
        id - 1
    )
}

fn table(columns: &[String], rest: &str) -> TableInfo {
    let json = format!(
        r#"{{"id":1,"name":{{"O":"t","L":"t"}},"charset":"utf8mb4","collate":"utf8mb4_bin","cols":[{}],"index_info":null,"state":5{rest}}}"#,
        columns.join(",")
    );
    serde_json::from_str(&json).unwrap()
}

fn run(statement: &str, before: &TableInfo, after: &TableInfo, in_utc: bool) -> Result<Vec<String>, String> {
    let target = Target::from_version("10.11.6-MariaDB");
    let specs = specs(statement, before, after, "d", &target, in_utc).map_err(|error| error.to_string())?;
    Ok(specs.into_iter().map(|spec| spec.text).collect())
}

#[test]
fn the_word_column_may_be_left_out() {
    let before = table(&[column(1, "a", 3), column(2, "b", 3)], "");
    let after = table(&[column(1, "a", 3), column(2, "z", 3)], "");
    for statement in [
        "alter table t drop b, add z int after a",
        "ALTER TABLE `d`.`t` DROP COLUMN `b`, ADD COLUMN `z` INT AFTER `a`;",
        "alter table t /*!40101 drop b, */ add z int after a /*!90000 SHARD_ROW_ID_BITS=4 */",
    ] {
        let said = run(statement, &before, &after, true).unwrap();
        assert_eq!(
            said,
            ["DROP COLUMN `b`", "ADD COLUMN `z` int NULL DEFAULT NULL AFTER `a`"],
            "{statement}"
        );
    }
}

#[test]
fn conversions_that_would_come_out_otherwise_are_refused() {
    let statement = "ALTER TABLE `t` MODIFY COLUMN `a` X";
    for (from, to, in_utc, refused) in [
        (5, 15, true, Some("floating")),
        (4, 15, true, Some("floating")),
        (3, 15, true, None),
        (7, 12, false, Some("time zone")),
        (12, 7, false, Some("time zone")),
        (7, 12, true, None),
        (7, 7, false, None),
    ] {
        let (before, after) = (table(&[column(1, "a", from)], ""), table(&[column(1, "a", to)], ""));
        let said = run(statement, &before, &after, in_utc);
        match refused {
            Some(why) => assert!(said.clone().is_err_and(|said| said.contains(why)), "{from} {to}: {said:?}"),
            None => assert_eq!(said.map(|said| said.len()), Ok(1), "{from} {to}"),
        }
    }
}

#[test]
fn checks_are_those_in_force() {
    let check = |enforced: bool| {
        let rest = format!(
            r#","constraint_info":[{{"id":1,"constraint_name":{{"O":"c","L":"c"}},"expr_string":"`a` > 0","enforced":{enforced},"state":5}}]"#
        );
        table(&[column(1, "a", 3)], &rest)
    };
    let without = table(&[column(1, "a", 3)], "");
    let add = "ADD CONSTRAINT `c` CHECK (`a` > 0)";
    for (statement, before, after, expected) in [
        ("ALTER TABLE `t` ADD CONSTRAINT `c` CHECK(`a`>0) ENFORCED", &without, &check(true), vec![add]),
        ("ALTER TABLE `t` ADD CONSTRAINT `c` CHECK(`a`>0) NOT ENFORCED", &without, &check(false), vec![]),
        (
            "ALTER TABLE `t` ALTER CHECK `c` NOT ENFORCED",
            &check(true),
            &check(false),
            vec!["DROP CONSTRAINT `c`"],
        ),
        ("ALTER TABLE `t` ALTER CHECK `c` ENFORCED", &check(false), &check(true), vec![add]),
        ("ALTER TABLE `t` DROP CHECK `c`", &check(false), &without, vec![]),
    ] {
        assert_eq!(run(statement, before, after, true).unwrap(), expected, "{statement}");
    }
}

#[test]
fn ranges_are_taken_from_the_definition() {
    let ranges = |definitions: &[(i64, &str, &str)]| {
        let definitions: Vec<String> = definitions
            .iter()
            .map(|(id, name, below)| {
                format!(r#"{{"id":{id},"name":{{"O":"{name}","L":"{name}"}},"less_than":["{below}"]}}"#)
            })
            .collect();
        let rest = format!(
            r#","partition":{{"type":1,"expr":"`a`","enable":true,"num":1,"definitions":[{}]}}"#,
            definitions.join(",")
        );
        table(&[column(1, "a", 3)], &rest)
    };
    let (one, two) = (ranges(&[(1, "p0", "10")]), ranges(&[(1, "p0", "10"), (2, "p1", "20")]));
    let merged = ranges(&[(3, "p", "20")]);
    let (p1, p) = ("PARTITION `p1` VALUES LESS THAN (20)", "PARTITION `p` VALUES LESS THAN (20)");
    for (statement, before, after, expected) in [
        (
            "ALTER TABLE `t` ADD PARTITION (PARTITION `p1` VALUES LESS THAN (UNIX_TIMESTAMP('…')))",
            &one,
            &two,
            format!("ADD PARTITION ({p1})"),
        ),
        ("ALTER TABLE `t` LAST PARTITION LESS THAN (20)", &one, &two, format!("ADD PARTITION ({p1})")),
        ("ALTER TABLE `t` DROP PARTITION `p1`", &two, &one, "DROP PARTITION `p1`".to_owned()),
        (
            "ALTER TABLE `t` MERGE FIRST PARTITION LESS THAN (20)",
            &two,
            &merged,
            format!("REORGANIZE PARTITION `p0`, `p1` INTO ({p})"),
        ),
    ] {
        assert_eq!(run(statement, before, after, true).unwrap(), [expected], "{statement}");
    }
}

#[test]
fn what_is_not_known_is_refused_and_what_has_no_effect_is_left_out() {
    let same = table(&[column(1, "a", 3)], "");
    for statement in ["SHARD_ROW_ID_BITS = 4", "SET TIFLASH REPLICA 1", "REMOVE TTL", "CACHE", "NOCACHE"] {
        let said = run(&format!("ALTER TABLE `t` {statement}"), &same, &same, true);
        assert_eq!(said, Ok(vec![]), "{statement}");
    }
    let said = run("ALTER TABLE `t` TELEPORT", &same, &same, true);
    assert_eq!(said, Err("`TELEPORT` is not known".to_owned()));
}
