//! What to run downstream for a schema change. Pure.
//!
//! TiDB runs the statement as it stands, as far as that means the same there ([`super::verbatim`]). For MySQL and MariaDB it is
//! made from the definitions before and after the change, so that nothing depends on the server's defaults or on the
//! database a session was in; only ALTER TABLE follows the statement's own text ([`super::alter`]). A kind of job that is
//! not known is refused.

use serde::Deserialize;
use tidb::model::{ActionType, DbInfo, Job, TableInfo};

use super::alter::{self, Spec, specs};
use super::create::{Impossible, create_table, create_view};
use super::statement::Statement;
use super::verbatim;
use super::zone::Zone;
use crate::event::{Ddl, is_sequence_value};
use crate::mysql::charset;
use crate::mysql::config::{DdlConfig, RecoverPolicy};
use crate::mysql::literal::{quoted, table_name};
use crate::mysql::session::Target;
use crate::schema::Table;

/// A statement and what it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// Where unqualified names are to be found; `None`: there are none.
    pub database: Option<String>,
    /// The statement, as it is written where backslashes escape.
    pub statement: String,
    /// Unix time to pin `CURRENT_TIMESTAMP` to, in microseconds.
    pub timestamp: Option<i64>,
    /// `time_zone` to run it in, if another than UTC.
    pub time_zone: Option<String>,
}

impl Step {
    /// A statement that names everything with its database.
    pub(super) fn qualified(statement: impl Into<String>) -> Self {
        Self { database: None, statement: statement.into(), timestamp: None, time_zone: None }
    }

    /// A statement whose names are to be found in the current database of a change, if it has one.
    pub(super) fn in_current(ddl: &Ddl, statement: impl Into<String>) -> Self {
        let database = Some(ddl.entry.current_database.clone()).filter(|name| !name.is_empty());
        Self { database, ..Self::qualified(statement) }
    }
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Run these, in order.
    Run(Vec<Step>),
    /// Nothing: it has no effect on this target.
    Nothing(&'static str),
    /// The target cannot run it.
    Unsupported(String),
}

/// Why a job needs nothing on MySQL and MariaDB.
const NO_EFFECT: &str = "it has no effect on rows or their shape";

/// Why LOCK TABLES and UNLOCK TABLES need nothing anywhere.
const LOCKS: &str = "a lock is of the session that took it, and that is one of the upstream's";

/// The plan for a schema change.
pub fn plan(ddl: &Ddl, target: &Target, config: &DdlConfig) -> Plan {
    let planned = Statement::of(ddl).and_then(|statement| {
        let context = Context { ddl, target, config, statement: &statement };
        if is_sequence_value(&ddl.entry) {
            context.setval()
        } else if target.is_tidb() {
            context.as_it_stands()
        } else {
            context.adjusted()
        }
    });
    match planned {
        Ok(plan) => plan,
        Err(Impossible(reason)) => Plan::Unsupported(reason),
    }
}

struct Context<'a> {
    ddl: &'a Ddl,
    target: &'a Target,
    config: &'a DdlConfig,
    statement: &'a Statement,
}

impl Context<'_> {
    /// The statement as the upstream ran it.
    fn own(&self) -> Result<Plan, Impossible> {
        Ok(Plan::Run(vec![Step::in_current(self.ddl, self.statement.runnable())]))
    }

    fn run(statement: impl Into<String>) -> Result<Plan, Impossible> {
        Ok(Plan::Run(vec![Step::qualified(statement)]))
    }

    fn as_it_stands(&self) -> Result<Plan, Impossible> {
        match self.action() {
            ActionType::FlashbackCluster => self.flashback_cluster(),
            // A DROP of several is one job each, all with the same text.
            ActionType::DropTable => self.drop("TABLE"),
            ActionType::DropView => self.drop("VIEW"),
            ActionType::DropSequence => self.drop("SEQUENCE"),
            ActionType::CreateView => self.create_view(),
            // A session that holds locks may write to nothing else, and this one writes to everything.
            ActionType::LockTable | ActionType::UnlockTable => Ok(Plan::Nothing(LOCKS)),
            ActionType::RepairTable => self.repair(),
            // Jobs have other numbers there.
            ActionType::RecoverTable if self.statement.tokens().is(2, &["BY", "JOB"]) => {
                let table =
                    self.ddl.after.first().ok_or_else(|| {
                        Impossible("the table that it recovered is not in the log".to_owned())
                    })?;
                Self::run(format!("RECOVER TABLE {}", table_name(table.database(), table.name())))
            }
            _ => verbatim::plan(self.ddl, self.statement),
        }
    }

    fn setval(&self) -> Result<Plan, Impossible> {
        if matches!(self.target, Target::MySql { .. }) {
            return Ok(Plan::Nothing("MySQL has no sequences"));
        }
        self.own()
    }

    fn action(&self) -> ActionType {
        ActionType::from(self.ddl.entry.action.unsigned_abs())
    }

    fn adjusted(&self) -> Result<Plan, Impossible> {
        match self.action() {
            ActionType::CreateSchema => self.create_database(),
            ActionType::DropSchema => self.own(),
            ActionType::ModifySchemaCharset => self.alter_database(),
            ActionType::CreateTable => self.create_tables(),
            ActionType::CreateTables => self.create_tables(),
            ActionType::DropTable => self.drop("TABLE"),
            ActionType::DropView => self.drop("VIEW"),
            ActionType::DropSequence => self.sequence(|| self.drop("SEQUENCE")),
            ActionType::CreateSequence | ActionType::AlterSequence => self.sequence(|| self.own()),
            ActionType::CreateView => self.create_view(),
            ActionType::TruncateTable => {
                let table = self.one_before()?;
                Self::run(format!("TRUNCATE TABLE {}", table_name(table.database(), table.name())))
            }
            ActionType::RenameTable | ActionType::RenameTables => self.rename(),
            ActionType::RecoverTable => self.recover(),
            ActionType::FlashbackSchema => self.flashback_database(),
            ActionType::FlashbackCluster => self.flashback_cluster(),
            ActionType::AddColumn
            | ActionType::DropColumn
            | ActionType::AddColumns
            | ActionType::DropColumns
            | ActionType::ModifyColumn
            | ActionType::SetDefaultValue
            | ActionType::AddIndex
            | ActionType::DropIndex
            | ActionType::DropIndexes
            | ActionType::RenameIndex
            | ActionType::AlterIndexVisibility
            | ActionType::AddPrimaryKey
            | ActionType::DropPrimaryKey
            | ActionType::AddForeignKey
            | ActionType::DropForeignKey
            | ActionType::AddCheckConstraint
            | ActionType::DropCheckConstraint
            | ActionType::AlterCheckConstraint
            | ActionType::RebaseAutoId
            | ActionType::ModifyTableComment
            | ActionType::ModifyTableCharset
            | ActionType::AddTablePartition
            | ActionType::DropTablePartition
            | ActionType::TruncateTablePartition
            | ActionType::ReorganizeTablePartition
            | ActionType::ExchangeTablePartition
            | ActionType::PartitionTableBy
            | ActionType::RemoveTablePartitioning
            | ActionType::MultiSchemaChange => self.alter_table(),
            ActionType::LockTable | ActionType::UnlockTable => Ok(Plan::Nothing(LOCKS)),
            ActionType::RepairTable => self.repair(),
            ActionType::SetTiFlashReplica
            | ActionType::UpdateTiFlashStatus
            | ActionType::ModifyAutoIdCache
            | ActionType::RebaseAutoRandom
            | ActionType::ShardRowId
            | ActionType::AlterTableAttributes
            | ActionType::AlterTablePartitionAttributes
            | ActionType::CreatePlacementPolicy
            | ActionType::AlterPlacementPolicy
            | ActionType::DropPlacementPolicy
            | ActionType::AlterTablePartitionPlacement
            | ActionType::ModifySchemaPlacement
            | ActionType::AlterTablePlacement
            | ActionType::AlterCacheTable
            | ActionType::AlterNoCacheTable
            | ActionType::AlterTableStatsOptions
            | ActionType::AlterTtlInfo
            | ActionType::RemoveTtlInfo
            | ActionType::CreateResourceGroup
            | ActionType::AlterResourceGroup
            | ActionType::DropResourceGroup => Ok(Plan::Nothing(NO_EFFECT)),
            other => Err(Impossible(format!("jobs of type {} are not known to this build", other.number()))),
        }
    }

    fn job(&self) -> Result<Job, Impossible> {
        let json = self.ddl.job.as_ref();
        let json = json.ok_or_else(|| Impossible("the job is not in the schema topic".to_owned()))?;
        Job::parse(json).map_err(|error| Impossible(format!("the job cannot be read: {error}")))
    }

    fn database(&self) -> Result<DbInfo, Impossible> {
        self.job()?
            .binlog
            .db_info
            .ok_or_else(|| Impossible("the job does not describe its database".to_owned()))
    }

    /// `CHARACTER SET … COLLATE …` of a database, as TiDB has it.
    fn database_charset(&self, database: &DbInfo) -> String {
        let (charset, collate) = charset::for_target(self.target, &database.charset, &database.collate);
        format!("CHARACTER SET {charset} COLLATE {collate}")
    }

    fn create_database(&self) -> Result<Plan, Impossible> {
        let database = self.database()?;
        let exists = self.statement.tokens().is(2, &["IF", "NOT", "EXISTS"]);
        let exists = if exists { "IF NOT EXISTS " } else { "" };
        let charset = self.database_charset(&database);
        Self::run(format!("CREATE DATABASE {exists}{} {charset}", quoted(database.name.as_str())))
    }

    fn alter_database(&self) -> Result<Plan, Impossible> {
        let database = self.database()?;
        let charset = self.database_charset(&database);
        Self::run(format!("ALTER DATABASE {} {charset}", quoted(database.name.as_str())))
    }

    fn create_tables(&self) -> Result<Plan, Impossible> {
        if self.ddl.after.is_empty() {
            return Err(Impossible("the definition that it made is not in the log".to_owned()));
        }
        let create = |table: &std::sync::Arc<Table>| {
            Ok(Step::qualified(create_table(table.database(), &info(table)?, self.target)?))
        };
        Ok(Plan::Run(self.ddl.after.iter().map(create).collect::<Result<_, _>>()?))
    }

    fn create_view(&self) -> Result<Plan, Impossible> {
        let view = self.ddl.after.first();
        let view =
            view.ok_or_else(|| Impossible("the definition that it made is not in the log".to_owned()))?;
        Self::run(create_view(&self.statement.tokens(), view.database(), &info(view)?)?)
    }

    fn one_before(&self) -> Result<&Table, Impossible> {
        let table = self.ddl.before.first();
        table
            .map(AsRef::as_ref)
            .ok_or_else(|| Impossible("the definition that it changed is not in the log".to_owned()))
    }

    fn drop(&self, what: &str) -> Result<Plan, Impossible> {
        if self.ddl.before.is_empty() {
            // Not the statement: it may name more than this job's.
            let job = self.job()?;
            let info = job.binlog.table_info.as_ref();
            let info = info.ok_or_else(|| Impossible("what it dropped is not in the log".to_owned()))?;
            return Self::run(format!("DROP {what} {}", table_name(&job.schema_name, info.name())));
        }
        let names: Vec<String> =
            self.ddl.before.iter().map(|table| table_name(table.database(), table.name())).collect();
        Self::run(format!("DROP {what} {}", names.join(", ")))
    }

    fn sequence(&self, plan: impl FnOnce() -> Result<Plan, Impossible>) -> Result<Plan, Impossible> {
        if self.target.is_mariadb() { plan() } else { Err(Impossible("MySQL has no sequences".to_owned())) }
    }

    /// Through names of our own where tables change places.
    fn rename(&self) -> Result<Plan, Impossible> {
        let mut moves = Vec::new();
        for before in &self.ddl.before {
            let after = self.ddl.after.iter().find(|after| after.id() == before.id());
            let after = after
                .ok_or_else(|| Impossible(format!("where table {} went is not in the log", before.name())))?;
            let (from, to) =
                (table_name(before.database(), before.name()), table_name(after.database(), after.name()));
            if from != to {
                moves.push((
                    from,
                    to,
                    table_name(after.database(), &format!("_sluice_rename_{}", before.id())),
                ));
            }
        }
        if moves.is_empty() {
            return if self.ddl.before.is_empty() { self.own() } else { Ok(Plan::Nothing("the name stays")) };
        }
        let collide =
            moves.iter().any(|(_, to, _)| moves.iter().any(|(from, ..)| from.eq_ignore_ascii_case(to)));
        let pairs: Vec<String> = if collide {
            let away = moves.iter().map(|(from, _, through)| format!("{from} TO {through}"));
            away.chain(moves.iter().map(|(_, to, through)| format!("{through} TO {to}"))).collect()
        } else {
            moves.iter().map(|(from, to, _)| format!("{from} TO {to}")).collect()
        };
        Self::run(format!("RENAME TABLE {}", pairs.join(", ")))
    }

    fn recover(&self) -> Result<Plan, Impossible> {
        match self.config.recover_table {
            RecoverPolicy::Empty => self.create_tables(),
            RecoverPolicy::Stop => Err(Impossible(format!(
                "{} has no recycle bin, so the rows of the recovered table are not there. Load them by hand after creating \
                 the table, or set ddl.recover-table = \"empty\" to create it without rows",
                self.target.describe()
            ))),
        }
    }

    fn flashback_database(&self) -> Result<Plan, Impossible> {
        match self.config.recover_table {
            RecoverPolicy::Empty => {
                let database = self.database()?;
                let charset = self.database_charset(&database);
                let create = format!("CREATE DATABASE {} {charset}", quoted(database.name.as_str()));
                let mut steps = vec![Step::qualified(create)];
                if let (false, Plan::Run(tables)) = (self.ddl.after.is_empty(), self.create_tables()?) {
                    steps.extend(tables);
                }
                Ok(Plan::Run(steps))
            }
            RecoverPolicy::Stop => self.recover(),
        }
    }

    /// ADMIN REPAIR TABLE writes a definition anew that TiDB could not read; it is what it was, unless the user got it wrong.
    /// There is nothing to repair here.
    fn repair(&self) -> Result<Plan, Impossible> {
        let create = |tables: &[std::sync::Arc<Table>]| {
            let table = tables.first();
            table.map(|table| create_table(table.database(), &info(table)?, self.target)).transpose()
        };
        if create(&self.ddl.before)? == create(&self.ddl.after)? {
            return Ok(Plan::Nothing("it repairs a definition that is whole here"));
        }
        Err(Impossible(
            "ADMIN REPAIR TABLE gave the table another definition than it had in the log. Give the table here the same one by \
             hand and leave this out, or load it anew"
                .to_owned(),
        ))
    }

    fn flashback_cluster(&self) -> Result<Plan, Impossible> {
        Err(Impossible(
            "FLASHBACK CLUSTER moved the whole upstream back in time without writing what changed into its binlog. Load \
             this target anew from the upstream and attach it with initial-commit-ts"
                .to_owned(),
        ))
    }

    fn alter_table(&self) -> Result<Plan, Impossible> {
        let before = self.one_before()?;
        let after = self.ddl.after.iter().find(|after| after.id() == before.id()).or(self.ddl.after.first());
        let after =
            after.ok_or_else(|| Impossible("the definition that it made is not in the log".to_owned()))?;
        // The partitioned table of an exchange is the one that the statement alters.
        let (before, after) = self.altered(before, after);
        let (old, new) = (info(before)?, info(after)?);
        if old.is_view() || old.is_sequence() {
            return self.own();
        }
        let partner = partner(self.ddl);
        let change = alter::Change {
            before: &old,
            after: &new,
            database: before.database(),
            partner: partner.as_deref(),
            target: self.target,
            in_utc: Zone::of(self.ddl).is_some_and(|zone| zone.is_utc()),
        };
        let specs = specs(&self.statement.tokens(), change)?;
        let name = table_name(before.database(), before.name());
        let steps = steps(&specs).into_iter().map(|(parts, timestamp)| Step {
            timestamp,
            ..Step::qualified(format!("ALTER TABLE {name} {}", parts.join(", ")))
        });
        let steps: Vec<Step> = steps.collect();
        Ok(if steps.is_empty() { Plan::Nothing(NO_EFFECT) } else { Plan::Run(steps) })
    }

    /// The table that the statement names, before and after: of several, the partitioned one.
    fn altered<'b>(&'b self, before: &'b Table, after: &'b Table) -> (&'b Table, &'b Table) {
        if self.action() != ActionType::ExchangeTablePartition {
            return (before, after);
        }
        let partitioned =
            |table: &&std::sync::Arc<Table>| info(table).is_ok_and(|info| info.partitions().is_some());
        let before = self.ddl.before.iter().find(partitioned).map_or(before, AsRef::as_ref);
        let after =
            self.ddl.after.iter().find(|after| after.id() == before.id()).map_or(after, AsRef::as_ref);
        (before, after)
    }
}

/// Parts put into statements: those that come before, those that share a clock, those that come after.
fn steps(specs: &[Spec]) -> Vec<(Vec<&str>, Option<i64>)> {
    let mut steps: Vec<(Vec<&str>, Option<i64>)> = Vec::new();
    for turn in 0..=2 {
        let specs: Vec<&Spec> = specs.iter().filter(|spec| spec.turn == turn).collect();
        let clocks: Vec<i64> = specs.iter().filter_map(|spec| spec.timestamp).collect();
        if clocks.windows(2).all(|pair| pair[0] == pair[1]) {
            if !specs.is_empty() {
                steps.push((specs.iter().map(|spec| spec.text.as_str()).collect(), clocks.first().copied()));
            }
        } else {
            // Columns of different clocks (the upstream session had a zone of its own) one by one, in order.
            steps.extend(specs.iter().map(|spec| (vec![spec.text.as_str()], spec.timestamp)));
        }
    }
    steps
}

/// Of an exchange, the plain table as it was: qualified.
pub(super) fn partner(ddl: &Ddl) -> Option<String> {
    let plain = |table: &&std::sync::Arc<Table>| info(table).is_ok_and(|info| info.partitions().is_none());
    let table = ddl.before.iter().find(plain)?;
    Some(table_name(table.database(), table.name()))
}

/// TiDB's own description of a table.
pub(super) fn info(table: &Table) -> Result<TableInfo, Impossible> {
    let json = &table.definition.tidb_json;
    let mut reader = serde_json::Deserializer::from_slice(json);
    TableInfo::deserialize(&mut reader).map_err(|error| {
        Impossible(format!("the definition of {}.{} cannot be read: {error}", table.database(), table.name()))
    })
}

#[cfg(test)]
mod tests;
