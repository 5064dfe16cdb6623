//! Configuration: the original drainer's keys where it has them, ours beside them.
//!
//! `[syncer]` and `[syncer.to]` are the original's; `[syncer.to] kafka-addrs` and `topic-name` mean what they meant
//! there. How to log in to Kafka stands in `[kafka]`, as in every Sluice process; `[output]` says how the log is
//! written. Keys of the original that have no meaning for Kafka (`txn-batch`, `worker-count`, `safe-mode`, …) are
//! refused by name rather than ignored; `binlogctl import-drainer-config` leaves them out.
//!
//! Precedence: command line, then `DRAINER_<FLAG>` in the environment, then the file, then the default.

mod flags;

use std::path::PathBuf;

use node::admin::AdminConfig;
use node::config::{Addresses, ByteSize, HumanDuration, Invalid, Validate, listed, validate_pd_urls};
use node::kafka::KafkaConfig;
use node::telemetry::{LogConfig, LogFormat};
use node::tls::Security;
use serde::{Deserialize, Serialize};

pub use self::flags::Flags;
use crate::filter::{Filter, FilterRules, TablePattern};
use crate::schema::zone::UpstreamZone;
use crate::translate::LargeRow;

/// Everything a drainer can be told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Config {
    /// Where joining pumps reach the drainer: `host:port`. Default: first routed IPv4 address, port 8249.
    pub addr: String,
    /// What is written into the registry, if not `addr`.
    pub advertise_addr: String,
    /// PD's client URLs, comma-separated.
    pub pd_urls: String,
    /// Node id, lock, and the savepoint that a first start reads.
    pub data_dir: PathBuf,
    /// Default: `hostname:port`, then kept in `<data-dir>/.node`, which wins.
    pub node_id: String,
    /// How often pumps are listed besides the watch; integer = seconds.
    #[serde(deserialize_with = "node::config::seconds")]
    pub detect_interval: HumanDuration,
    /// Where a first start begins: transactions with a greater commit_ts are replicated. −1: `<data-dir>/savepoint`,
    /// else now. The commit stream, once there is one, always wins.
    pub initial_commit_ts: i64,
    /// debug, info, warn, error.
    pub log_level: String,
    /// Default: stdout.
    pub log_file: Option<PathBuf>,
    /// text or json.
    pub log_format: LogFormat,
    /// Bytes received from one pump and not yet in Kafka. A larger transaction is taken alone.
    pub pull_budget: ByteSize,
    /// Bytes of values held for columns whose DDL has not come yet. Beyond it the feed stops.
    pub in_flight_budget: ByteSize,
    /// The largest transaction that a pump may send.
    pub max_message_size: ByteSize,
    /// TiDB status ports (`host:port`), comma-separated. Default: those registered in PD.
    pub tidb_status: String,
    /// The time zone of TIMESTAMP defaults that the upstream keeps from before TiDB 2.1: a name such as `Asia/Shanghai`, or an
    /// offset such as `+08:00`. The upstream's `system_tz` (in its table `mysql.tidb`). Needed only if there are such.
    pub upstream_time_zone: String,
    /// How long a leader may be out of touch with etcd before a standby takes over.
    pub lease: HumanDuration,
    /// TLS of the drainer's port and of what it dials (PD, pumps, TiDB's status ports).
    pub security: Security,
    /// Which tables, as in the original.
    pub syncer: SyncerConfig,
    /// How to reach Kafka.
    pub kafka: KafkaConfig,
    /// How the log is written.
    pub output: OutputConfig,
    /// Metrics, health, status: a listener of its own.
    pub admin: AdminConfig,
}

/// `[syncer]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct SyncerConfig {
    /// Only `kafka`.
    pub db_type: String,
    /// Databases to leave out, comma-separated.
    pub ignore_schemas: String,
    /// Databases to replicate; `~` begins a regular expression.
    pub replicate_do_db: Vec<String>,
    /// Tables to replicate.
    pub replicate_do_table: Vec<TablePattern>,
    /// Tables to leave out.
    pub ignore_table: Vec<TablePattern>,
    /// `[syncer.to]`.
    pub to: ToConfig,
}

/// `[syncer.to]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct ToConfig {
    /// Brokers, comma-separated; the same as `kafka.brokers`.
    pub kafka_addrs: String,
    /// Name of the row topic; `.commits` and `.schema` are added for the others. Default: `sluice_<cluster id>`.
    pub topic_name: String,
    /// Client id that brokers log. Default: `sluice-drainer`.
    pub kafka_client_id: String,
}

/// `[output]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct OutputConfig {
    /// Partitions of the row topic, when it is created. Fixed from then on by the commit stream.
    pub partitions: u32,
    /// Copies of each partition, when topics are created; −1: the brokers' default.
    pub replication_factor: i32,
    /// How long rows are kept, when the topic is created; 0: the brokers' default.
    pub retention: HumanDuration,
    /// The longest a transaction waits for its Kafka transaction to be committed.
    pub commit_interval: HumanDuration,
    /// Bytes of rows in one Kafka transaction; a larger upstream transaction is written in parts.
    pub max_kafka_transaction: ByteSize,
    /// How long Kafka lets a transaction stay open before it aborts it.
    pub transaction_timeout: HumanDuration,
    /// What happens to a row larger than the topic's `max.message.bytes`.
    pub large_row: LargeRowPolicy,
    /// Where `large-row = "claim-check"` puts values: a directory that the consumers can read too (their
    /// `feed.claim-check-dir`). Files older than `retention` are removed.
    pub claim_check_dir: Option<PathBuf>,
    /// none, lz4, snappy, gzip, zstd.
    pub compression: String,
}

/// What happens to a row larger than a record may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LargeRowPolicy {
    /// Its value is cut into several records.
    #[default]
    Chunk,
    /// The feed stops, naming it.
    Stop,
    /// Its value goes into a file under `claim-check-dir`; the record names it.
    ClaimCheck,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            addr: String::new(),
            advertise_addr: String::new(),
            pd_urls: "http://127.0.0.1:2379".into(),
            data_dir: "data.drainer".into(),
            node_id: String::new(),
            detect_interval: HumanDuration::from_secs(5),
            initial_commit_ts: -1,
            log_level: "info".into(),
            log_file: None,
            log_format: LogFormat::default(),
            pull_budget: ByteSize::mib(32),
            in_flight_budget: ByteSize::mib(64),
            max_message_size: ByteSize::gib(1),
            tidb_status: String::new(),
            upstream_time_zone: String::new(),
            lease: HumanDuration::from_secs(10),
            security: Security::default(),
            syncer: SyncerConfig::default(),
            kafka: KafkaConfig::default(),
            output: OutputConfig::default(),
            admin: AdminConfig::on("127.0.0.1:8248"),
        }
    }
}

impl Default for SyncerConfig {
    fn default() -> Self {
        Self {
            db_type: "kafka".into(),
            ignore_schemas: "INFORMATION_SCHEMA,PERFORMANCE_SCHEMA,mysql".into(),
            replicate_do_db: Vec::new(),
            replicate_do_table: Vec::new(),
            ignore_table: Vec::new(),
            to: ToConfig::default(),
        }
    }
}

impl Default for OutputConfig {
    fn default() -> Self {
        Self {
            partitions: 8,
            replication_factor: -1,
            retention: HumanDuration::from_secs(0),
            commit_interval: HumanDuration::from_millis(100),
            max_kafka_transaction: ByteSize::mib(64),
            transaction_timeout: HumanDuration::from_secs(60),
            large_row: LargeRowPolicy::Chunk,
            claim_check_dir: None,
            compression: "lz4".into(),
        }
    }
}

impl SyncerConfig {
    /// The filter rules.
    ///
    /// # Errors
    /// A pattern is not a valid regular expression; the error names the key.
    pub fn filter(&self) -> Result<Filter, Invalid> {
        let ignore_schemas = listed(&self.ignore_schemas);
        Filter::new(FilterRules {
            do_dbs: self.replicate_do_db.clone(),
            do_tables: self.replicate_do_table.clone(),
            ignore_schemas,
            ignore_tables: self.ignore_table.clone(),
        })
        .map_err(|e| Invalid::new("syncer", e.to_string()))
    }
}

impl Config {
    /// PD's client URLs one by one.
    pub fn pd_urls(&self) -> Vec<String> {
        listed(&self.pd_urls)
    }

    /// TiDB status ports one by one; empty: those that PD knows.
    pub fn tidb_status(&self) -> Vec<String> {
        listed(&self.tidb_status)
    }

    /// The time zone of defaults from before TiDB kept them in UTC, if it is set.
    ///
    /// # Errors
    /// It is no time zone; the error names the key.
    pub fn upstream_zone(&self) -> Result<Option<UpstreamZone>, Invalid> {
        if self.upstream_time_zone.is_empty() {
            return Ok(None);
        }
        let zone = UpstreamZone::parse(&self.upstream_time_zone);
        zone.map(Some).map_err(|reason| Invalid::new("upstream-time-zone", reason))
    }

    /// The `[kafka]` section with the brokers of `[syncer.to]`, whichever was set.
    pub fn kafka(&self) -> KafkaConfig {
        let mut kafka = self.kafka.clone();
        if !self.syncer.to.kafka_addrs.is_empty() {
            kafka.brokers = listed(&self.syncer.to.kafka_addrs);
        }
        if kafka.brokers.is_empty() {
            kafka.brokers = vec!["127.0.0.1:9092".to_owned()];
        }
        kafka
    }

    /// Name of the row topic.
    pub fn topic(&self, cluster_id: u64) -> String {
        match self.syncer.to.topic_name.as_str() {
            "" => format!("sluice_{cluster_id}"),
            topic => topic.to_owned(),
        }
    }

    /// Where to listen and what to register.
    pub fn addresses(&self) -> Addresses<'_> {
        Addresses { addr: &self.addr, advertise_addr: &self.advertise_addr, default_port: 8249 }
    }

    /// How to log.
    pub fn log(&self) -> LogConfig {
        LogConfig { level: self.log_level.clone(), format: self.log_format, file: self.log_file.clone() }
    }
}

impl From<LargeRowPolicy> for LargeRow {
    fn from(policy: LargeRowPolicy) -> Self {
        match policy {
            LargeRowPolicy::Chunk => Self::Chunk,
            LargeRowPolicy::ClaimCheck => Self::ClaimCheck,
            LargeRowPolicy::Stop => Self::Stop,
        }
    }
}

impl Validate for Config {
    fn validate(&self) -> Result<(), Invalid> {
        self.addresses().validate("pumps")?;
        validate_pd_urls(&self.pd_urls)?;
        if self.node_id.contains('/') {
            let reason = format!("`{}` contains a slash, which breaks the listing of drainers", self.node_id);
            return Err(Invalid::new("node-id", reason));
        }
        if self.initial_commit_ts < -1 {
            return Err(Invalid::new("initial-commit-ts", "is a TSO; −1 means the savepoint, else now"));
        }
        if self.syncer.db_type != "kafka" {
            let reason = format!(
                "`{}` is not written by this drainer, only `kafka`; see apply-mysql and export-files",
                self.syncer.db_type
            );
            return Err(Invalid::new("syncer.db-type", reason));
        }
        self.syncer.filter()?;
        self.upstream_zone()?;
        self.validate_topic()?;
        if !self.syncer.to.kafka_addrs.is_empty()
            && !self.kafka.brokers.is_empty()
            && listed(&self.syncer.to.kafka_addrs) != self.kafka.brokers
        {
            return Err(Invalid::new("syncer.to.kafka-addrs", "differs from kafka.brokers; set one of them"));
        }
        self.kafka().validate()?;
        self.validate_output()?;
        for (field, size) in [
            ("pull-budget", self.pull_budget),
            ("in-flight-budget", self.in_flight_budget),
            ("max-message-size", self.max_message_size),
        ] {
            if size.as_u64() < 64 * 1024 || size.as_u64() > u64::from(u32::MAX) {
                return Err(Invalid::new(field, format!("{size} is out of range: 64KiB to 4GiB")));
            }
        }
        for (field, duration) in [("detect-interval", self.detect_interval), ("lease", self.lease)] {
            if duration.get().as_secs() < 1 {
                return Err(Invalid::new(field, "must be at least 1s"));
            }
        }
        self.security.validate()?;
        self.admin.validate()
    }
}

impl Config {
    fn validate_topic(&self) -> Result<(), Invalid> {
        let topic = self.topic(u64::MAX);
        let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        // Kafka allows 249; the longest suffix of ours is `.commits`.
        if topic.len() > 240 || !topic.chars().all(legal) || topic == "." || topic == ".." {
            let reason = format!("`{topic}` is no topic name: up to 240 of a-z A-Z 0-9 . _ -");
            return Err(Invalid::new("syncer.to.topic-name", reason));
        }
        Ok(())
    }

    fn validate_output(&self) -> Result<(), Invalid> {
        let output = &self.output;
        if output.partitions == 0 || output.partitions > 4000 {
            return Err(Invalid::new(
                "output.partitions",
                "must be 1 to 4000: a commit record names them all",
            ));
        }
        if output.replication_factor == 0 || output.replication_factor < -1 {
            return Err(Invalid::new(
                "output.replication-factor",
                "must be positive, or −1 for the brokers' default",
            ));
        }
        match (output.large_row, &output.claim_check_dir) {
            (LargeRowPolicy::ClaimCheck, None) => {
                let reason =
                    "`large-row = \"claim-check\"` needs a directory that the consumers can read too";
                return Err(Invalid::new("output.claim-check-dir", reason));
            }
            (LargeRowPolicy::Chunk | LargeRowPolicy::Stop, Some(_)) => {
                let reason = "is of use only with `large-row = \"claim-check\"`";
                return Err(Invalid::new("output.claim-check-dir", reason));
            }
            _ => {}
        }
        if !["none", "lz4", "snappy", "gzip", "zstd"].contains(&output.compression.as_str()) {
            return Err(Invalid::new("output.compression", "must be none, lz4, snappy, gzip or zstd"));
        }
        let interval = output.commit_interval.get();
        if interval.is_zero() || interval.as_secs() >= 10 {
            return Err(Invalid::new("output.commit-interval", "must be above 0 and below 10s"));
        }
        let timeout = output.transaction_timeout.get().as_secs();
        if !(10..=900).contains(&timeout) {
            return Err(Invalid::new("output.transaction-timeout", "must be 10s to 15m, the brokers' limit"));
        }
        let bytes = output.max_kafka_transaction.as_u64();
        if !(64 * 1024..=4 << 30).contains(&bytes) {
            return Err(Invalid::new("output.max-kafka-transaction", "must be 64KiB to 4GiB"));
        }
        Ok(())
    }
}
