//! Every schema change of the recordings, planned and run on MariaDB; at the end its tables look as TiDB's did.

use std::collections::{BTreeMap, HashMap};
use std::io::Read as _;
use std::path::PathBuf;

use schemas::sluice::v1::DdlEntry;
use serde_json::Value as Json;
use tidb::model::{ActionType, Job, TableInfo};

use super::*;
use crate::event::Ddl;
use crate::mysql::config::{DdlConfig, RecoverPolicy};
use crate::mysql::ddl::journal;
use crate::mysql::ddl::plan::{Plan, plan};

fn fixture(corpus: &str, file: &str) -> Vec<u8> {
    let path = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap())
        .join("../tests/fixtures")
        .join(corpus)
        .join(file);
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut text = Vec::new();
    flate2::read::GzDecoder::new(&bytes[..]).read_to_end(&mut text).unwrap();
    text
}

/// What a drainer knows: the tables that there are, by id.
#[derive(Default)]
struct Tracker {
    tables: HashMap<i64, Arc<Table>>,
}

fn definition(database: &str, info: &TableInfo, version: i64) -> Arc<Table> {
    Arc::new(Table::new(TableDefinition {
        table_id: info.id,
        version,
        database: database.to_owned(),
        table: info.name().to_owned(),
        tidb_json: serde_json::to_vec(info).unwrap().into(),
        ..Default::default()
    }))
}

impl Tracker {
    /// The definitions before and after a job.
    fn step(&mut self, job: &Job) -> (Vec<Arc<Table>>, Vec<Arc<Table>>) {
        let version = job.schema_version();
        let binlog = &job.binlog;
        let (mut gone, mut made) = (vec![], vec![]);
        match (job.kind, &binlog.table_info) {
            (ActionType::DropSchema, _) => self.tables.retain(|_, table| table.database() != job.schema_name),
            (ActionType::DropTable | ActionType::DropView | ActionType::DropSequence, _) => {
                gone.push(job.table_id)
            }
            (ActionType::CreateView, Some(info)) => {
                // OR REPLACE makes a new id and drops the old one by name.
                gone.extend(
                    self.tables
                        .values()
                        .filter(|t| t.database() == job.schema_name && t.name() == info.name())
                        .map(|t| t.id()),
                );
                made.push((job.schema_name.clone(), info.clone()));
            }
            (ActionType::RenameTables, _) => {
                let pairs: Vec<_> = job.involving_schema_info.iter().collect();
                for (info, pair) in binlog.multiple_table_infos.iter().zip(pairs.chunks(2)) {
                    gone.push(info.id);
                    made.push((pair[1].database.clone(), info.clone()));
                }
            }
            (ActionType::RenameTable, Some(info)) => {
                gone.push(info.id);
                let to = job.involving_schema_info.get(1).map_or(&job.schema_name, |to| &to.database);
                made.push((to.clone(), info.clone()));
            }
            (ActionType::ExchangeTablePartition, Some(info)) => {
                let plain = self.tables[&job.table_id].clone();
                let before: TableInfo =
                    serde_json::from_slice(&self.tables[&info.id].definition.tidb_json).unwrap();
                let ids = |info: &TableInfo| -> Vec<i64> {
                    info.partitions().unwrap().definitions.iter().map(|d| d.id).collect()
                };
                let left = ids(&before).into_iter().find(|id| !ids(info).contains(id)).unwrap();
                let mut swapped: TableInfo = serde_json::from_slice(&plain.definition.tidb_json).unwrap();
                swapped.id = left;
                gone.extend([info.id, plain.id()]);
                made.push((self.tables[&info.id].database().to_owned(), info.clone()));
                made.push((plain.database().to_owned(), swapped));
            }
            (_, Some(info)) => {
                if self.tables.contains_key(&job.table_id) {
                    gone.push(job.table_id);
                }
                made.push((job.schema_name.clone(), info.clone()));
            }
            (_, None) => made.extend(
                binlog.multiple_table_infos.iter().map(|info| (job.schema_name.clone(), info.clone())),
            ),
        }
        gone.dedup();
        let before = gone.iter().filter_map(|id| self.tables.remove(id)).collect();
        let after: Vec<_> = made.iter().map(|(database, info)| definition(database, info, version)).collect();
        after.iter().for_each(|table| {
            self.tables.insert(table.id(), table.clone());
        });
        (before, after)
    }
}

/// The statements as TiDB's binlog has them, by job.
fn statements(corpus: &str) -> HashMap<i64, String> {
    let mut statements = HashMap::new();
    for pump in 1.. {
        let path = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap())
            .join("../tests/fixtures")
            .join(corpus);
        let name = format!("pump-{pump}.rec.gz");
        if !path.join(&name).is_file() {
            break;
        }
        let recording = fixture(corpus, &name);
        let mut rest = &recording[..];
        while rest.len() > 12 {
            let length = u32::from_be_bytes(rest[8..12].try_into().unwrap()) as usize;
            let payload = &rest[12..12 + length];
            rest = &rest[12 + length..];
            let binlog = <schemas::binlog::Binlog as prost::Message>::decode(payload).unwrap();
            if let Some(query) = binlog.ddl_query.filter(|query| !query.is_empty()) {
                let query = String::from_utf8(query.to_vec()).unwrap();
                statements.insert(binlog.ddl_job_id.unwrap_or_default(), query);
            }
        }
    }
    statements
}

fn changes(corpus: &str) -> Vec<Ddl> {
    let statements = statements(corpus);
    let mut jobs = Job::parse_list(&fixture(corpus, "ddl-history.json.gz")).unwrap();
    jobs.retain(|job| job.state.is_applied() && job.schema_name != "mysql" && job.schema_version() > 0);
    jobs.sort_by_key(Job::schema_version);
    let mut tracker = Tracker::default();
    let mut out = Vec::new();
    for (job, seq) in jobs.into_iter().zip(1..) {
        let (before, after) = tracker.step(&job);
        out.push(Ddl {
            seq,
            commit_ts: CommitTs::new(seq * 10),
            start_ts: StartTs::new(seq * 10 - 1),
            entry: DdlEntry {
                job_id: job.id,
                action: job.kind.number() as i32,
                statement: statements.get(&job.id).cloned().unwrap_or_default(),
                current_database: job.schema_name.clone(),
                ..Default::default()
            },
            before,
            after,
            job: Some(serde_json::to_vec(&job).unwrap().into()),
            after_position: Some(position(seq)),
        });
    }
    out
}

/// What MariaDB calls a column's type, in TiDB's words.
fn same_type(found: &str, create: &str) -> bool {
    let plain = |text: &str| {
        let text = text.to_lowercase();
        let text = text.replace("year(4)", "year").replace("longtext", "json");
        // Display widths of integers say nothing.
        let mut out = String::new();
        let mut rest = text.as_str();
        while let Some(at) = rest.find("int(") {
            let close = rest[at..].find(')').map_or(rest.len(), |close| at + close + 1);
            out.push_str(&rest[..at + 3]);
            rest = &rest[close..];
        }
        out + rest
    };
    plain(found) == plain(create)
}

/// Column names and types of a `SHOW CREATE TABLE` of TiDB, in order.
fn columns_of(create: &str) -> Vec<(String, String, bool)> {
    create
        .lines()
        .filter_map(|line| {
            let line = line.trim().strip_prefix('`')?;
            let mut name = String::new();
            let mut rest = line;
            loop {
                let at = rest.find('`')?;
                name.push_str(&rest[..at]);
                rest = &rest[at + 1..];
                if !rest.starts_with('`') {
                    break;
                }
                name.push('`');
                rest = &rest[1..];
            }
            let rest = rest.trim_start().trim_end_matches(',');
            let end = [
                " NOT NULL",
                " DEFAULT",
                " NULL",
                " CHARACTER SET",
                " COLLATE",
                " GENERATED",
                " /*",
                " COMMENT",
                " ON UPDATE",
                " AUTO_",
            ]
            .iter()
            .filter_map(|word| rest.find(word))
            .min()
            .unwrap_or(rest.len());
            Some((name, rest[..end].to_owned(), !rest.contains("NOT NULL")))
        })
        .collect()
}

async fn replay(server: &Server, corpus: &str) {
    let mut config = server.config(&format!("h_{corpus}"));
    config.ddl = DdlConfig { recover_table: RecoverPolicy::Empty, ..DdlConfig::default() };
    let (owner, mut session, _) = attach(&config).await;
    let meta = Meta::new(&config.mysql.meta_database, &config.name);
    for ddl in changes(corpus) {
        let from = position(ddl.seq - 1);
        let done = journal::run(&mut session, &meta, owner, &config, &ddl, &from, None).await;
        done.unwrap_or_else(|error| {
            panic!("{corpus}: {error}\n{:?}", plan(&ddl, &session.target, &config.ddl))
        });
    }
    let state: Json = serde_json::from_slice(&fixture(corpus, "state-end.json.gz")).unwrap();
    let mut expected: BTreeMap<String, Vec<(String, String, bool)>> = BTreeMap::new();
    for (name, table) in state["tables"].as_object().unwrap() {
        let create = table["create"].as_str().unwrap();
        if table["type"] == "BASE TABLE" {
            expected.insert(name.clone(), columns_of(create));
        }
    }
    let databases: Vec<String> = {
        let names = changes(corpus)
            .into_iter()
            .filter(|ddl| ddl.entry.action == 1)
            .map(|ddl| ddl.entry.current_database);
        names.collect()
    };
    let mut found: BTreeMap<String, Vec<(String, String, bool)>> = BTreeMap::new();
    let rows = server
        .rows::<(String, String, String, String, String)>(
            "SELECT c.table_schema, c.table_name, column_name, column_type, is_nullable FROM information_schema.columns c JOIN \
             information_schema.tables t USING (table_schema, table_name) WHERE table_type = 'BASE TABLE' ORDER BY \
             ordinal_position",
        )
        .await;
    for (schema, table, column, kind, nullable) in rows {
        if databases.contains(&schema) {
            found.entry(format!("{schema}.{table}")).or_default().push((column, kind, nullable == "YES"));
        }
    }
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{corpus}");
    for (table, expected) in &expected {
        let found = &found[table];
        let names =
            |columns: &[(String, String, bool)]| columns.iter().map(|c| c.0.clone()).collect::<Vec<_>>();
        assert_eq!(names(found), names(expected), "{corpus} {table}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(same_type(&found.1, &expected.1), "{corpus} {table}: {found:?} instead of {expected:?}");
            let generated_not_null = !expected.2 && found.2 && table == "types.gen";
            assert!(
                found.2 == expected.2 || generated_not_null,
                "{corpus} {table}: {found:?} instead of {expected:?}"
            );
        }
    }
    for database in databases {
        server.run(&format!("DROP DATABASE IF EXISTS {}", crate::mysql::literal::quoted(&database))).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_recordings_schema_changes_lead_to_the_recorded_tables() {
    let server = Server::start().await;
    for corpus in ["shop", "types", "keys", "ddl", "random", "large", "concurrent"] {
        replay(&server, corpus).await;
    }
}

/// Nothing of the recordings is refused for MySQL 8 but what it cannot have, by name.
#[test]
fn mysql_refuses_by_name() {
    let target = session::Target::from_version("8.0.36");
    let config = DdlConfig { recover_table: RecoverPolicy::Empty, ..DdlConfig::default() };
    let mut refused = Vec::new();
    for corpus in ["shop", "types", "keys", "ddl", "random"] {
        for ddl in changes(corpus) {
            if let Plan::Unsupported(reason) = plan(&ddl, &target, &config) {
                refused.push(reason);
            }
        }
    }
    assert_eq!(
        refused,
        ["MySQL has no sequences", "column id takes its default from a sequence", "MySQL has no sequences"]
    );
}
