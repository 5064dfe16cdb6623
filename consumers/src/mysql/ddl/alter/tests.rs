//! The parts of ALTER TABLE, statement by statement.

use super::*;
use crate::mysql::ddl::token::{Backslash, tokenize};

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
    run_on("10.11.6-MariaDB", statement, before, after, in_utc)
}

fn run_on(
    version: &str,
    statement: &str,
    before: &TableInfo,
    after: &TableInfo,
    in_utc: bool,
) -> Result<Vec<String>, String> {
    let target = Target::from_version(version);
    let tokens = tokenize(statement, Backslash::Plain);
    let partner = Some("`e`.`x`");
    let change = Change { before, after, database: "d", partner, target: &target, in_utc };
    let specs = specs(&Tokens::new(statement, &tokens, Backslash::Plain), change)
        .map_err(|error| error.to_string())?;
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

/// The name ends in a back-tick: dropping it must not drop its neighbour.
#[test]
fn columns_with_back_ticks_are_told_apart() {
    let before = table(&[column(1, "a", 3), column(2, "a`", 3), column(3, "`", 3)], "");
    let after = table(&[column(1, "a", 3), column(3, "``b", 3)], "");
    let said = run(
        "ALTER TABLE `t```.```t` DROP COLUMN `a```, CHANGE COLUMN ```` `````b` INT",
        &before,
        &after,
        true,
    );
    assert_eq!(said.unwrap(), ["DROP COLUMN `a```", "CHANGE COLUMN ```` `````b` int NULL DEFAULT NULL"]);
}

#[test]
fn comments_and_defaults_are_those_of_the_definition() {
    let before = table(&[column(1, "a", 3)], "");
    let commented =
        |name: &str, id| column(id, name, 3).replace(r#""state":5"#, r#""comment":"C:\\","state":5"#);
    let after = table(&[column(1, "a", 3), commented("p", 2), column(3, "q", 3)], r#","comment":"it's \\""#);
    let statement = r"ALTER TABLE `t` ADD COLUMN `p` INT COMMENT 'C:\',ADD COLUMN `q` INT, COMMENT = 'x' AUTO_INCREMENT = 5";
    assert_eq!(
        run(statement, &before, &after, true).unwrap(),
        [
            r"ADD COLUMN `p` int NULL DEFAULT NULL COMMENT 'C:\\'",
            "ADD COLUMN `q` int NULL DEFAULT NULL",
            r"COMMENT = 'it\'s \\'",
            "AUTO_INCREMENT = 5"
        ]
    );
}

/// Which rows are in a partition by KEY is decided by another hash; by HASH it is the remainder everywhere.
#[test]
fn a_partition_by_key_is_another_one_here() {
    let parted = |kind: u8| {
        let rest = format!(
            r#","partition":{{"type":{kind},"expr":"`a`","columns":[{{"O":"a","L":"a"}}],"enable":true,"num":2,"definitions":[{{"id":1,"name":{{"O":"p0","L":"p0"}}}},{{"id":2,"name":{{"O":"p1","L":"p1"}}}}]}}"#
        );
        table(&[column(1, "a", 3)], &rest)
    };
    let (hash, by_key) = (parted(2), parted(4));
    for version in ["10.11.6-MariaDB", "8.0.36"] {
        for (statement, expected) in [
            ("TRUNCATE PARTITION `p1`", "TRUNCATE PARTITION `p1`"),
            ("EXCHANGE PARTITION `p1` WITH TABLE `x`", "EXCHANGE PARTITION `p1` WITH TABLE `e`.`x`"),
        ] {
            let statement = format!("ALTER TABLE `t` {statement}");
            let said = run_on(version, &statement, &hash, &hash, true).unwrap();
            assert_eq!(said, [expected], "{version}");
            let said = run_on(version, &statement, &by_key, &by_key, true).unwrap_err();
            assert!(said.contains("partitioned by KEY"), "{version}: {said}");
        }
        // All rows stay, wherever they are.
        let said = run_on(version, "ALTER TABLE `t` COALESCE PARTITION 1", &by_key, &by_key, true).unwrap();
        assert_eq!(said, ["COALESCE PARTITION 1"]);
    }
    let validated = "ALTER TABLE `t` EXCHANGE PARTITION `p1` WITH TABLE `e`.`x` WITHOUT VALIDATION";
    let word = run_on("8.0.36", validated, &hash, &hash, true).unwrap();
    assert_eq!(word, ["EXCHANGE PARTITION `p1` WITH TABLE `e`.`x` WITHOUT VALIDATION"]);
    let none = run(validated, &hash, &hash, true).unwrap();
    assert_eq!(none, ["EXCHANGE PARTITION `p1` WITH TABLE `e`.`x`"]);
}

#[test]
fn text_made_of_other_types_goes_through_plain_numbers_or_is_refused() {
    let zerofill = |kind: u8| column(1, "a", kind).replace(r#""Flag":0"#, r#""Flag":96"#);
    let keyed = r#","pk_is_handle":true"#;
    let statement = "ALTER TABLE `t` MODIFY COLUMN `a` X";
    let (mariadb, mysql) = ("10.11.6-MariaDB", "8.0.36");
    for (version, from, to, rest, expected) in [
        (mariadb, zerofill(3), 15, "", Ok("MODIFY COLUMN `a` bigint unsigned NULL")),
        (mysql, zerofill(246), 15, "", Ok("MODIFY COLUMN `a` decimal(20,0) unsigned NULL")),
        (mariadb, column(1, "a", 11), 12, "", Err("from TIME to a date")),
        (mysql, column(1, "a", 11), 10, "", Err("from TIME to a date")),
        (mysql, column(1, "a", 245), 15, "", Err("from JSON to text")),
        (mariadb, column(1, "a", 245), 15, "", Ok("")),
        (mariadb, column(1, "a", 15), 245, "", Err("table without a key")),
        (mariadb, column(1, "a", 15), 245, keyed, Ok("")),
        (mysql, column(1, "a", 15), 245, "", Ok("")),
    ] {
        let (before, after) = (table(std::slice::from_ref(&from), rest), table(&[column(1, "a", to)], rest));
        let said = run_on(version, statement, &before, &after, true);
        match expected {
            Ok("") => assert_eq!(said.as_ref().map(Vec::len), Ok(1), "{version} {from} {to}: {said:?}"),
            Ok(first) => assert_eq!(said.unwrap()[0], first, "{version} {from} {to}"),
            Err(why) => assert!(said.as_ref().is_err_and(|said| said.contains(why)), "{from} {to}: {said:?}"),
        }
    }
}

#[test]
fn partitioning_is_that_of_the_definition() {
    let parted = |kind: u8, rule: &str, definitions: &str| {
        let rest = format!(
            r#","partition":{{"type":{kind},{rule},"enable":true,"num":2,"definitions":[{definitions}]}}"#
        );
        table(&[column(1, "a", 3)], &rest)
    };
    let named = |name: &str, rest: &str| format!(r#"{{"id":7,"name":{{"O":"{name}","L":"{name}"}}{rest}}}"#);
    let plain = table(&[column(1, "a", 3)], "");
    let range = parted(
        1,
        r#""expr":"`a`""#,
        &[named("p0", r#","less_than":["10"]"#), named("p1", r#","less_than":["MAXVALUE"]"#)].join(","),
    );
    let list = parted(
        3,
        r#""expr":"","columns":[{"O":"a","L":"a"}]"#,
        &named("l", r#","in_values":[["1"],["NULL"]]"#),
    );
    let hash = parted(2, r#""expr":"`a`""#, &[named("p0", ""), named("p1", "")].join(","));
    for version in ["10.11.6-MariaDB", "8.0.36"] {
        for (statement, before, after, expected) in [
            (
                "PARTITION BY RANGE (`a`) (PARTITION `p0` VALUES LESS THAN (5 + 5),PARTITION `p1` VALUES LESS THAN (MAXVALUE))",
                &plain,
                &range,
                "PARTITION BY RANGE (`a`) (PARTITION `p0` VALUES LESS THAN (10), PARTITION `p1` VALUES LESS THAN (MAXVALUE))",
            ),
            (
                "PARTITION BY LIST COLUMNS (`a`) (PARTITION `l` VALUES IN (1, NULL)) UPDATE INDEXES (`k` GLOBAL)",
                &range,
                &list,
                "PARTITION BY LIST COLUMNS(`a`) (PARTITION `l` VALUES IN (1, NULL))",
            ),
            // Named as TiDB names them, so that later statements find them.
            (
                "PARTITION BY HASH (`a`) PARTITIONS 2",
                &list,
                &hash,
                "PARTITION BY HASH (`a`) (PARTITION `p0`, PARTITION `p1`)",
            ),
            ("REMOVE PARTITIONING", &hash, &plain, "REMOVE PARTITIONING"),
        ] {
            let said = run_on(version, &format!("ALTER TABLE `t` {statement}"), before, after, true);
            assert_eq!(said.unwrap(), [expected], "{version}");
        }
    }
    let refused = run("ALTER TABLE `t` PARTITION BY HASH (`a`)", &plain, &plain, true).unwrap_err();
    assert!(refused.contains("not in the definition"), "{refused}");
}

#[test]
fn foreign_keys_are_those_of_the_definition() {
    let with = |foreign: &[(i64, &str, &str, u8)]| {
        let keys: Vec<String> = foreign
            .iter()
            .map(|(id, name, schema, on_delete)| {
                format!(
                    r#"{{"id":{id},"fk_name":{{"O":"{name}","L":"{}"}},"ref_schema":{{"O":"{schema}","L":"{schema}"}},"ref_table":{{"O":"p","L":"p"}},"ref_cols":[{{"O":"x","L":"x"}}],"cols":[{{"O":"a","L":"a"}}],"on_delete":{on_delete},"on_update":0,"state":5,"version":1}}"#,
                    name.to_lowercase()
                )
            })
            .collect();
        table(&[column(1, "a", 3)], &format!(r#","fk_info":[{}]"#, keys.join(",")))
    };
    let (none, one, two) = (with(&[]), with(&[(1, "F", "", 0)]), with(&[(1, "F", "", 0), (2, "g", "e", 2)]));
    let add = |name: &str, table: &str, rest: &str| {
        format!("ADD CONSTRAINT `{name}` FOREIGN KEY (`a`) REFERENCES {table} (`x`){rest}")
    };
    for version in ["10.11.6-MariaDB", "8.0.36"] {
        for (statement, before, after, expected) in [
            // Without a name TiDB gives it one.
            ("ADD FOREIGN KEY (`a`) REFERENCES `p`(`x`)", &none, &one, vec![add("F", "`d`.`p`", "")]),
            (
                "ADD CONSTRAINT `g` FOREIGN KEY (`a`) REFERENCES `e`.`p`(`x`) ON DELETE CASCADE",
                &one,
                &two,
                vec![add("g", "`e`.`p`", " ON DELETE CASCADE")],
            ),
            ("DROP FOREIGN KEY `F`", &one, &none, vec!["DROP FOREIGN KEY `F`".to_owned()]),
            ("DROP FOREIGN KEY IF EXISTS f", &one, &none, vec!["DROP FOREIGN KEY `f`".to_owned()]),
            ("DROP FOREIGN KEY IF EXISTS `h`", &one, &one, vec![]),
        ] {
            let said = run_on(version, &format!("ALTER TABLE `t` {statement}"), before, after, true);
            assert_eq!(said.unwrap(), expected, "{version} {statement}");
        }
    }
}
