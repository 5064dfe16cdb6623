//! What becomes of each kind of job on each target.

use std::sync::Arc;

use schemas::sluice::v1::{DdlEntry, TableDefinition};
use tidb::ts::{CommitTs, StartTs};

use super::*;
use crate::mysql::config::RecoverPolicy;

fn ddl(action: u32, statement: &str) -> Ddl {
    Ddl {
        seq: 1,
        commit_ts: CommitTs::new(2),
        start_ts: StartTs::new(1),
        entry: DdlEntry {
            job_id: 9,
            action: action as i32,
            statement: statement.to_owned(),
            current_database: "d".into(),
            ..Default::default()
        },
        before: vec![],
        after: vec![],
        job: None,
        after_position: None,
    }
}

fn table(name: &str) -> Arc<Table> {
    let json = format!(
        r#"{{"id":5,"name":{{"O":"{name}","L":"{name}"}},"charset":"utf8mb4","collate":"utf8mb4_bin","cols":[{{"id":1,"name":{{"O":"a","L":"a"}},"offset":0,"origin_default":null,"default":null,"type":{{"Tp":3,"Flag":0,"Flen":11,"Decimal":0,"Charset":"binary","Collate":"binary","Elems":null}},"state":5}}],"index_info":null,"state":5,"pk_is_handle":false}}"#
    );
    Arc::new(Table::new(TableDefinition {
        table_id: 5,
        version: 1,
        database: "d".into(),
        table: name.into(),
        tidb_json: json.into_bytes().into(),
        ..Default::default()
    }))
}

fn target(version: &str) -> Target {
    Target::from_version(version)
}

fn statements(plan: Plan) -> Vec<String> {
    match plan {
        Plan::Run(steps) => steps.into_iter().map(|step| step.statement).collect(),
        Plan::Nothing(_) => Vec::new(),
        Plan::Unsupported(reason) => vec![format!("refused: {reason}")],
    }
}

/// No kind falls through to the refusal of unknown ones, and each is in the documentation.
#[test]
fn every_kind_of_job_is_decided_and_documented() {
    let page = include_str!("../../../../../docs/fidelity.md");
    let mut known = 0;
    for number in 1..=200 {
        let action = ActionType::from(number);
        let plan = plan(&ddl(number, "x"), &target("10.11.6-MariaDB"), &DdlConfig::default());
        let unknown = format!("jobs of type {number} are not known to this build");
        if matches!(action, ActionType::Other(_)) {
            assert_eq!(plan, Plan::Unsupported(unknown));
            continue;
        }
        known += 1;
        assert_ne!(plan, Plan::Unsupported(unknown));
        assert!(page.contains(&format!("`{action:?}`")), "{action:?} is not in docs/fidelity.md");
    }
    assert!(known >= 68, "{known}");
}

#[test]
fn what_only_tidb_can_do_stops_and_says_why() {
    let config = DdlConfig::default();
    for version in ["10.11.6-MariaDB", "8.0.36", "5.7.25-TiDB-v7.1.6"] {
        let flashback = ddl(ActionType::FlashbackCluster.number(), "FLASHBACK CLUSTER TO TIMESTAMP '…'");
        let said = statements(plan(&flashback, &target(version), &config));
        assert!(
            said[0].contains("refused: FLASHBACK CLUSTER") && said[0].contains("initial-commit-ts"),
            "{said:?}"
        );
    }
    let mut recover = ddl(ActionType::RecoverTable.number(), "RECOVER TABLE BY JOB 7;");
    recover.after = vec![table("t")];
    let said = statements(plan(&recover, &target("8.0.36"), &config));
    assert!(said[0].contains("MySQL") && said[0].contains("no recycle bin"), "{said:?}");
    let empty = DdlConfig { recover_table: RecoverPolicy::Empty, ..DdlConfig::default() };
    assert!(
        statements(plan(&recover, &target("10.11.6-MariaDB"), &empty))[0].starts_with("CREATE TABLE `d`.`t`")
    );
    // Jobs have other numbers on another TiDB.
    let tidb = statements(plan(&recover, &target("5.7.25-TiDB-v7.1.6"), &config));
    assert_eq!(tidb, ["RECOVER TABLE `d`.`t`"]);
    let sequence = ddl(ActionType::CreateSequence.number(), "CREATE SEQUENCE `s`");
    assert_eq!(statements(plan(&sequence, &target("8.0.36"), &config)), ["refused: MySQL has no sequences"]);
    assert_eq!(statements(plan(&sequence, &target("10.11.6-MariaDB"), &config)), ["CREATE SEQUENCE `s`"]);
}

/// Neither a lock nor a repair, and on TiDB not the statement either: a session that holds a lock may not write elsewhere,
/// and a TiDB that is not in repair mode refuses to repair.
#[test]
fn locks_and_repairs_are_the_upstream_s_own() {
    let (as_it_was, other) = (table("t"), table("u"));
    for version in ["10.11.6-MariaDB", "8.0.36", "5.7.25-TiDB-v7.1.6"] {
        let run = |ddl: &Ddl| plan(ddl, &target(version), &DdlConfig::default());
        for (action, statement) in
            [(ActionType::LockTable, "LOCK TABLES `t` WRITE;"), (ActionType::UnlockTable, "UNLOCK TABLES;")]
        {
            let mut lock = ddl(action.number(), statement);
            (lock.before, lock.after) = (vec![as_it_was.clone()], vec![as_it_was.clone()]);
            assert_eq!(run(&lock), Plan::Nothing(LOCKS), "{version}");
            // Old versions leave the definition out.
            assert_eq!(run(&ddl(action.number(), statement)), Plan::Nothing(LOCKS), "{version}");
        }
        let mut repair =
            ddl(ActionType::RepairTable.number(), "ADMIN REPAIR TABLE `t` CREATE TABLE `t` (`a` INT);");
        (repair.before, repair.after) = (vec![as_it_was.clone()], vec![as_it_was.clone()]);
        assert_eq!(statements(run(&repair)), [""; 0], "{version}");
        repair.after = vec![other.clone()];
        let said = statements(run(&repair));
        assert!(said[0].starts_with("refused: ADMIN REPAIR TABLE gave"), "{version}: {said:?}");
    }
}

#[test]
fn attributes_have_no_effect_but_on_tidb() {
    for (action, statement) in [
        (ActionType::AlterTableAttributes, "ALTER TABLE `t` ATTRIBUTES='merge_option=deny'"),
        (
            ActionType::AlterTablePartitionAttributes,
            "ALTER TABLE `t` PARTITION `p0` ATTRIBUTES='merge_option=allow'",
        ),
    ] {
        let mut change = ddl(action.number(), statement);
        (change.before, change.after) = (vec![table("t")], vec![table("t")]);
        let run = |version| statements(plan(&change, &target(version), &DdlConfig::default()));
        assert_eq!(run("5.7.25-TiDB-v7.1.6"), [statement]);
        for version in ["10.11.6-MariaDB", "8.0.36"] {
            assert_eq!(run(version), [""; 0], "{version}");
        }
    }
}

/// One job each, all with the same text.
#[test]
fn a_drop_of_several_drops_one_at_a_time() {
    let mut drop = ddl(ActionType::DropTable.number(), "DROP TABLE `t`, `u`");
    drop.before = vec![table("t")];
    for version in ["10.11.6-MariaDB", "8.0.36", "5.7.25-TiDB-v7.1.6"] {
        let said = statements(plan(&drop, &target(version), &DdlConfig::default()));
        assert_eq!(said, ["DROP TABLE `d`.`t`"], "{version}");
    }
    drop.before.clear();
    let said = statements(plan(&drop, &target("8.0.36"), &DdlConfig::default()));
    assert!(said[0].starts_with("refused: "), "{said:?}");
}
