//! Configuration of `apply-mysql`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Parser;
use node::admin::AdminConfig;
use node::config::{HumanDuration, Invalid, Secret, Validate, overlay};
use node::kafka::KafkaConfig;
use node::telemetry::{LogConfig, LogFormat};
use node::tls::Security;
use serde::{Deserialize, Serialize};

use crate::config::{self as sections, FeedConfig};

/// Applies a Sluice feed to TiDB, MySQL or MariaDB, exactly once and in commit order. Flags beat the file.
#[derive(Debug, Parser)]
#[command(name = "apply-mysql", version)]
pub struct Args {
    /// TOML file.
    #[arg(long, env = "SLUICE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Apply everything up to and including this commit_ts, then exit with 0. The target then equals the upstream at it.
    #[arg(long, value_name = "TSO")]
    pub until_commit_ts: Option<u64>,
    /// Where the target stands at the first start [default: where the feed begins].
    #[arg(long, value_name = "TSO")]
    pub initial_commit_ts: Option<u64>,
    /// Name under which progress is stored in the target [default: apply-mysql].
    #[arg(long)]
    pub name: Option<String>,
    /// The feed [default: sluice].
    #[arg(long)]
    pub topic: Option<String>,
    /// Kafka brokers, `host:port`, separated by commas.
    #[arg(long, value_delimiter = ',')]
    pub kafka_brokers: Option<Vec<String>>,
    /// The target's host [default: 127.0.0.1].
    #[arg(long)]
    pub mysql_host: Option<String>,
    /// The target's port [default: 3306].
    #[arg(long)]
    pub mysql_port: Option<u16>,
    /// The target's user [default: root].
    #[arg(long)]
    pub mysql_user: Option<String>,
    /// The target's password: `env:NAME`, `file:/path` or the text itself.
    #[arg(long, env = "SLUICE_MYSQL_PASSWORD", hide_env_values = true)]
    pub mysql_password: Option<String>,
    /// Lock file and rows beyond the memory budget [default: data.apply-mysql].
    #[arg(long)]
    pub data_dir: Option<PathBuf>,
    /// Admin listener: metrics, health, status [default: 127.0.0.1:8261].
    #[arg(long)]
    pub admin_addr: Option<String>,
    /// debug, info, warn, error [default: info].
    #[arg(short = 'L', long)]
    pub log_level: Option<String>,
    /// Log file [default: standard output].
    #[arg(long)]
    pub log_file: Option<PathBuf>,
    /// Check the configuration and exit.
    #[arg(long)]
    pub check: bool,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Config {
    /// Key of the progress in the target; one instance works under a name at a time.
    pub name: String,
    /// Lock file and rows beyond the memory budget.
    pub data_dir: PathBuf,
    /// For everything that grows with the workload, read-ahead included. The process itself needs about 40 MiB more.
    pub memory_budget: ByteSize,
    /// Log level.
    pub log_level: String,
    /// `text` or `json`.
    pub log_format: LogFormat,
    /// Log file; absent: standard output.
    pub log_file: Option<PathBuf>,
    /// The feed.
    pub feed: FeedConfig,
    /// The brokers.
    pub kafka: KafkaConfig,
    /// The target.
    pub mysql: MysqlConfig,
    /// How rows are applied.
    pub apply: ApplyConfig,
    /// How schema changes are applied.
    pub ddl: DdlConfig,
    /// The admin listener.
    pub admin: AdminConfig,
    /// Set by the flag only.
    #[serde(skip)]
    pub until_commit_ts: Option<u64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "apply-mysql".to_owned(),
            data_dir: "data.apply-mysql".into(),
            memory_budget: ByteSize::mib(256),
            log_level: "info".to_owned(),
            log_format: LogFormat::default(),
            log_file: None,
            feed: FeedConfig::default(),
            kafka: KafkaConfig::default(),
            mysql: MysqlConfig::default(),
            apply: ApplyConfig::default(),
            ddl: DdlConfig::default(),
            admin: sections::admin_on(8261),
            until_commit_ts: None,
        }
    }
}

/// The target database.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct MysqlConfig {
    /// Host name or address. With TLS the certificate must be for it.
    pub host: String,
    /// Port.
    pub port: u16,
    /// User: needs all rights on the databases replicated and on `meta-database`.
    pub user: String,
    /// Password; `env:`, `file:` or literal.
    pub password: Option<Secret>,
    /// TLS: `ssl-ca` switches it on; identity is always verified.
    pub security: Security,
    /// Database of the progress, lease and journal tables.
    pub meta_database: String,
    /// How long connecting may take.
    pub connect_timeout: HumanDuration,
}

impl Default for MysqlConfig {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 3306,
            user: "root".to_owned(),
            password: None,
            security: Security::default(),
            meta_database: "sluice_meta".to_owned(),
            connect_timeout: HumanDuration(Duration::from_secs(10)),
        }
    }
}

/// What to do with a row that is not as the log says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConflictPolicy {
    /// An update of a missing row becomes an insert of the new row; a delete of a missing row is counted and named. A row
    /// that is there although it should not be stops. TiDB's own phantom deletes need this.
    #[default]
    Heal,
    /// Stop.
    Stop,
    /// As `heal`, and a row in the way of an insert is replaced.
    Overwrite,
}

/// How rows are applied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ApplyConfig {
    /// When a row is not as the log says: `heal`, `stop` or `overwrite`.
    pub conflict: ConflictPolicy,
    /// When the policy is to stop at a row, or the target refuses it: `hold` (wait and try again) or `exit`. Absent: `hold`,
    /// but with `--until-commit-ts` `exit`, since nobody may be there.
    pub on_stop: Option<OnStop>,
    /// Most rows folded into one downstream transaction. A larger upstream transaction stays whole.
    pub batch_rows: usize,
    /// Most bytes folded into one downstream transaction; absent: a sixteenth of the memory budget.
    pub batch_bytes: Option<ByteSize>,
    /// Most rows in one statement.
    pub statement_rows: usize,
    /// How long the lease of the one active instance lasts unless renewed; how long a takeover waits.
    pub lease_ttl: HumanDuration,
    /// Show keys and values of rows in logs and errors.
    pub show_values: bool,
}

impl Default for ApplyConfig {
    fn default() -> Self {
        Self {
            conflict: ConflictPolicy::default(),
            on_stop: None,
            batch_rows: 8_192,
            batch_bytes: None,
            statement_rows: 256,
            lease_ttl: HumanDuration(Duration::from_secs(10)),
            show_values: false,
        }
    }
}

/// What to do with a schema change that the target cannot run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DdlPolicy {
    /// Stop before it and wait for the operator.
    #[default]
    Stop,
    /// Leave it out, log and count it.
    Skip,
}

/// What RECOVER TABLE and FLASHBACK TABLE do on a target without a recycle bin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecoverPolicy {
    /// Stop and wait for the operator.
    #[default]
    Stop,
    /// Make the table again, empty: its rows before the drop are not in the log.
    Empty,
}

/// What the process does when a row or a schema change stops it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnStop {
    /// Wait for the operator, not ready meanwhile.
    Hold,
    /// Exit with an error.
    Exit,
}

/// How schema changes are applied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct DdlConfig {
    /// When the target cannot run a schema change: `stop` or `skip`.
    pub unsupported: DdlPolicy,
    /// When a schema change stops: `hold` or `exit`. Absent: `hold`, but with `--until-commit-ts` `exit`, since nobody may
    /// be there.
    pub on_stop: Option<OnStop>,
    /// RECOVER and FLASHBACK TABLE on a target without a recycle bin: `stop` or `empty`.
    pub recover_table: RecoverPolicy,
    /// Job ids to leave out.
    pub skip: Vec<i64>,
    /// Statement to run instead, by job id.
    pub replace: BTreeMap<String, String>,
}

impl Config {
    /// File and flags together, checked.
    pub fn from_args(args: Args) -> anyhow::Result<Self> {
        let mut config: Self = match &args.config {
            Some(path) => node::config::load(path)?,
            None => Self::default(),
        };
        config.until_commit_ts = args.until_commit_ts;
        if args.initial_commit_ts.is_some() {
            config.feed.initial_commit_ts = args.initial_commit_ts;
        }
        overlay(&mut config.name, args.name);
        overlay(&mut config.feed.topic, args.topic);
        overlay(&mut config.kafka.brokers, args.kafka_brokers);
        overlay(&mut config.mysql.host, args.mysql_host);
        overlay(&mut config.mysql.port, args.mysql_port);
        overlay(&mut config.mysql.user, args.mysql_user);
        if let Some(password) = args.mysql_password {
            config.mysql.password = Some(Secret::from(password));
        }
        overlay(&mut config.data_dir, args.data_dir);
        overlay(&mut config.admin.addr, args.admin_addr);
        overlay(&mut config.log_level, args.log_level);
        if args.log_file.is_some() {
            config.log_file = args.log_file;
        }
        config.validate()?;
        Ok(config)
    }

    /// The log settings.
    pub fn log(&self) -> LogConfig {
        sections::log_config(&self.log_level, self.log_format, self.log_file.as_ref())
    }

    /// True if a schema change that stops waits for an operator.
    pub fn holds_stopped_ddl(&self) -> bool {
        self.holds(self.ddl.on_stop)
    }

    /// True if a row at which it has to stop is waited for.
    pub fn holds_stopped_rows(&self) -> bool {
        self.holds(self.apply.on_stop)
    }

    fn holds(&self, on_stop: Option<OnStop>) -> bool {
        on_stop.map_or(self.until_commit_ts.is_none(), |on_stop| on_stop == OnStop::Hold)
    }

    /// Bytes folded into one downstream transaction.
    pub fn batch_bytes(&self) -> usize {
        let budget = self.memory_budget.as_u64() as usize;
        self.apply.batch_bytes.map_or(budget / 16, |bytes| bytes.as_u64() as usize)
    }
}

impl Validate for Config {
    fn validate(&self) -> Result<(), Invalid> {
        sections::validate_name(&self.name)?;
        sections::validate_memory(self.memory_budget)?;
        self.feed.validate()?;
        sections::validate_kafka(&self.kafka)?;
        self.admin.validate()?;
        self.mysql.security.validate().map_err(|invalid| invalid.within("mysql"))?;
        let meta = &self.mysql.meta_database;
        if meta.is_empty() || meta.chars().count() > 64 {
            return Err(Invalid::new("mysql.meta-database", "must be 1 to 64 characters"));
        }
        if self.mysql.port == 0 {
            return Err(Invalid::new("mysql.port", "must not be 0"));
        }
        if self.apply.batch_rows == 0 {
            return Err(Invalid::new("apply.batch-rows", "must be at least 1"));
        }
        if !(1..=1000).contains(&self.apply.statement_rows) {
            return Err(Invalid::new("apply.statement-rows", "must be 1 to 1000"));
        }
        if self.apply.batch_bytes.is_some_and(|bytes| bytes.as_u64() > self.memory_budget.as_u64() / 8) {
            return Err(Invalid::new("apply.batch-bytes", "must be at most an eighth of memory-budget"));
        }
        if self.apply.lease_ttl.0 < Duration::from_secs(1) {
            return Err(Invalid::new("apply.lease-ttl", "must be at least 1s"));
        }
        if let Some(key) = self.ddl.replace.keys().find(|key| key.parse::<i64>().is_err()) {
            return Err(Invalid::new(format!("ddl.replace.{key}"), "the key must be a job id"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let config: Config = node::config::parse(text, "test.toml").map_err(|error| error.to_string())?;
        config.validate().map_err(|error| error.to_string())?;
        Ok(config)
    }

    #[test]
    fn a_misspelt_key_is_named() {
        let error = parse("[mysql]\nhots = \"db\"\n").unwrap_err();
        assert!(error.contains("test.toml:2") && error.contains("hots"), "{error}");
    }

    #[test]
    fn values_that_make_no_sense_are_named() {
        let base = "[kafka]\nbrokers = [\"b:9092\"]\n";
        assert!(parse(base).is_ok());
        for (text, field) in [
            ("", "kafka.brokers"),
            ("memory-budget = \"1MiB\"\n[kafka]\nbrokers = [\"b:1\"]", "memory-budget"),
            ("name = \"\"\n[kafka]\nbrokers = [\"b:1\"]", "name"),
            ("[kafka]\nbrokers = [\"b:1\"]\n[feed]\ntopic = \"a/b\"", "feed.topic"),
            ("[kafka]\nbrokers = [\"b:1\"]\n[apply]\nstatement-rows = 0", "apply.statement-rows"),
            ("[kafka]\nbrokers = [\"b:1\"]\n[ddl.replace]\nx = \"DROP TABLE t\"", "ddl.replace.x"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(field), "{text}: {error}");
        }
    }
}
