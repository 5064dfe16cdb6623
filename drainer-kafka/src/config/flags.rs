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

#[cfg(test)]
mod tests {
    use node::config::ByteSize;

    use super::*;
    use crate::config::LargeRowPolicy;

    fn flags(arguments: &[&str]) -> Result<Config, ConfigError> {
        let line = std::iter::once("drainer-kafka").chain(arguments.iter().copied()).map(OsString::from);
        Flags::from_command_line(line).resolve()
    }

    fn with_file(text: &str, arguments: &[&str]) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("drainer.toml");
        std::fs::write(&file, text).unwrap();
        flags(&[&["-config", file.to_str().unwrap()], arguments].concat())
    }

    #[test]
    fn the_originals_keys_and_flags_are_understood() {
        let text = r#"
            addr = "127.0.0.1:8249"
            pd-urls = "http://a:2379, http://b:2379"
            data-dir = "/from/file"
            detect-interval = 10
            initial-commit-ts = 42
            upstream-time-zone = "+08:00"
            [security]
            [syncer]
            db-type = "kafka"
            ignore-schemas = "mysql, secret"
            replicate-do-db = ["~^b.*", "s1"]
            [[syncer.replicate-do-table]]
            db-name = "test"
            tbl-name = "~^a.*"
            [syncer.to]
            kafka-addrs = "k1:9092,k2:9092"
            topic-name = "orders"
            [output]
            large-row = "stop"
            max-kafka-transaction = "8 MiB"
        "#;
        let config =
            with_file(text, &["-data-dir=/from/flag", "-initial-commit-ts", "-1", "--partitions", "3"])
                .unwrap();
        assert_eq!(config.data_dir, PathBuf::from("/from/flag"));
        assert_eq!((config.initial_commit_ts, config.output.partitions), (-1, 3));
        assert_eq!(config.detect_interval, HumanDuration::from_secs(10));
        assert_eq!(config.upstream_zone().unwrap().unwrap().name(), "+08:00");
        assert_eq!(config.pd_urls(), ["http://a:2379", "http://b:2379"]);
        assert_eq!(config.kafka().brokers, ["k1:9092", "k2:9092"]);
        assert_eq!(config.topic(7), "orders");
        assert_eq!(
            (config.output.large_row, config.output.max_kafka_transaction),
            (LargeRowPolicy::Stop, ByteSize::mib(8))
        );
        let filter = config.syncer.filter().unwrap();
        assert!(filter.table("bank", "x") && filter.table("test", "Abc") && !filter.table("test", "x"));
        assert!(!filter.table("secret", "x"));
        assert_eq!(flags(&["-addr", "h:1"]).unwrap().topic(7), "sluice_7");
    }

    #[test]
    fn mistakes_are_named() {
        let cases = [
            ("adr = \"x\"", "drainer.toml:1:1: adr"),
            ("[syncer]\ntxn-batch = 20", "syncer.txn-batch"),
            ("[syncer]\ndb-type = \"mysql\"", "syncer.db-type"),
            ("[syncer]\nreplicate-do-db = [\"~(\"]", "~("),
            ("[syncer.to]\ntopic-name = \"a/b\"", "syncer.to.topic-name"),
            ("[output]\nlarge-row = \"claim-check\"", "output.claim-check-dir"),
            ("[output]\nclaim-check-dir = \"/x\"", "output.claim-check-dir"),
            ("[output]\nlarge-row = \"cut\"", "large-row"),
            ("[output]\npartitions = 0", "output.partitions"),
            ("[output]\ncommit-interval = \"0s\"", "output.commit-interval"),
            ("[output]\ncompression = \"brotli\"", "output.compression"),
            ("[syncer.to]\nkafka-addrs = \"a:1\"\n[kafka]\nbrokers = [\"b:1\"]", "kafka.brokers"),
            ("pd-urls = \"a:2379\"", "pd-urls"),
            ("pull-budget = \"1 KiB\"", "pull-budget"),
            ("upstream-time-zone = \"Middle/Earth\"", "upstream-time-zone"),
            ("in-flight-budget = \"1 KiB\"", "in-flight-budget"),
            ("addr = \"0.0.0.0:8249\"", "advertise-addr"),
            ("initial-commit-ts = -5", "initial-commit-ts"),
        ];
        for (text, expected) in cases {
            let error = with_file(text, &[]).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
