//! The command line: the original drainer's flags and ours.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;
use node::config::{ConfigError, HumanDuration, Validate, overlay};

use super::Config;

/// The command line. Go's single-dash forms (`-pd-urls`, `-addr=…`) work too.
#[derive(Debug, Parser)]
#[command(
    name = "drainer-kafka",
    version,
    about = "Merges the binlogs of all pumps and writes them to Kafka, exactly once and in order.",
    disable_version_flag = true
)]
pub struct Flags {
    /// TOML file.
    #[arg(long, env = "DRAINER_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address to listen on for joining pumps, host:port [default: first routed IPv4 address, port 8249].
    #[arg(long, env = "DRAINER_ADDR")]
    addr: Option<String>,
    /// Address to register, host:port [default: addr].
    #[arg(long, env = "DRAINER_ADVERTISE_ADDR")]
    advertise_addr: Option<String>,
    /// PD's client URLs, comma-separated [default: http://127.0.0.1:2379].
    #[arg(long, env = "DRAINER_PD_URLS")]
    pd_urls: Option<String>,
    /// Directory of node id and savepoint [default: data.drainer].
    #[arg(long, env = "DRAINER_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Name of this drainer [default: hostname:port, kept in the data directory].
    #[arg(long, env = "DRAINER_NODE_ID")]
    node_id: Option<String>,
    /// Seconds (or a duration) between listings of the pumps [default: 5].
    #[arg(long, env = "DRAINER_DETECT_INTERVAL", value_parser = node::config::parse_seconds)]
    detect_interval: Option<HumanDuration>,
    /// TSO after which a first start begins; -1: the savepoint, else now [default: -1].
    #[arg(long, env = "DRAINER_INITIAL_COMMIT_TS", allow_negative_numbers = true)]
    initial_commit_ts: Option<i64>,
    /// Databases to leave out, comma-separated [default: INFORMATION_SCHEMA,PERFORMANCE_SCHEMA,mysql].
    #[arg(long, env = "DRAINER_IGNORE_SCHEMAS")]
    ignore_schemas: Option<String>,
    /// Only `kafka`.
    #[arg(long, env = "DRAINER_DEST_DB_TYPE")]
    dest_db_type: Option<String>,
    /// Kafka brokers, host:port, comma-separated [default: 127.0.0.1:9092].
    #[arg(long, env = "KAFKA_ADDRS")]
    kafka_addrs: Option<String>,
    /// Name of the row topic [default: sluice_<cluster id>].
    #[arg(long, env = "DRAINER_TOPIC_NAME")]
    topic_name: Option<String>,
    /// Partitions of the row topic, when it is created [default: 8].
    #[arg(long, env = "DRAINER_PARTITIONS")]
    partitions: Option<u32>,
    /// TiDB status ports, host:port, comma-separated [default: those registered in PD].
    #[arg(long, env = "DRAINER_TIDB_STATUS")]
    tidb_status: Option<String>,
    /// Log level: debug, info, warn, error [default: info].
    #[arg(short = 'L', env = "DRAINER_L")]
    log_level: Option<String>,
    /// Log file [default: stdout].
    #[arg(long, env = "DRAINER_LOG_FILE")]
    log_file: Option<PathBuf>,
    /// Address of the metrics and status listener, host:port [default: 127.0.0.1:8248].
    #[arg(long, env = "DRAINER_ADMIN_ADDR")]
    admin_addr: Option<String>,
    /// Print the version and exit.
    #[arg(short = 'V', action = clap::ArgAction::Version)]
    version: Option<bool>,
    /// The original's push gateway; not supported, scrape /metrics instead.
    #[arg(long, env = "DRAINER_METRICS_ADDR", hide = true)]
    metrics_addr: Option<String>,
    /// As metrics-addr.
    #[arg(long, env = "DRAINER_METRICS_INTERVAL", hide = true)]
    metrics_interval: Option<String>,
}

impl Flags {
    /// From a command line in either style; prints and exits on `--help`, `-V` and mistakes (status 2).
    pub fn from_command_line(arguments: impl IntoIterator<Item = OsString>) -> Self {
        Self::parse_from(node::args::go_style(arguments))
    }

    /// Flags over file over defaults, validated.
    ///
    /// # Errors
    /// The file cannot be read or parsed, or a value makes no sense; the error names file, line and key.
    pub fn resolve(self) -> Result<Config, ConfigError> {
        let mut config: Config = match &self.config {
            Some(path) => node::config::load(path)?,
            None => Config::default(),
        };
        overlay(&mut config.addr, self.addr);
        overlay(&mut config.advertise_addr, self.advertise_addr);
        overlay(&mut config.pd_urls, self.pd_urls);
        overlay(&mut config.data_dir, self.data_dir);
        overlay(&mut config.node_id, self.node_id);
        overlay(&mut config.detect_interval, self.detect_interval);
        overlay(&mut config.initial_commit_ts, self.initial_commit_ts);
        overlay(&mut config.syncer.ignore_schemas, self.ignore_schemas);
        overlay(&mut config.syncer.db_type, self.dest_db_type);
        if let Some(addresses) = self.kafka_addrs {
            config.syncer.to.kafka_addrs = addresses;
            config.kafka.brokers.clear();
        }
        overlay(&mut config.syncer.to.topic_name, self.topic_name);
        overlay(&mut config.output.partitions, self.partitions);
        overlay(&mut config.tidb_status, self.tidb_status);
        overlay(&mut config.log_level, self.log_level);
        overlay(&mut config.log_file, self.log_file.map(Some));
        overlay(&mut config.admin.addr, self.admin_addr);
        config.validate()?;
        Ok(config)
    }
}
