//! Configuration: the original pump's keys and flags, and ours beside them.
//!
//! Precedence: command line, then `PUMP_<FLAG>` in the environment, then the TOML file, then the default. Keys that only
//! tune the original's own storage engine are accepted, so that its files work; [`Config::ignored`] names those set.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::Parser;
use node::admin::AdminConfig;
use node::config::{
    Addresses, ConfigError, HumanDuration, Invalid, Validate, listed, overlay, validate_pd_urls,
};
use node::telemetry::{LogConfig, LogFormat};
use node::tls::Security;
use serde::{Deserialize, Serialize};
use tidb::ts::Tso;

/// The largest message that gRPC's Go implementation, and so TiDB, can send.
const GRPC_CEILING: u64 = (2 << 30) - 1;

/// Whoever looks at the registry entry alone takes a node for dead after ten seconds.
const LONGEST_HEARTBEAT: Duration = Duration::from_secs(8);

/// Everything a pump can be told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Config {
    /// Where TiDB, drainers and binlogctl reach the pump: `host:port`. Default: first routed IPv4 address, port 8250.
    pub addr: String,
    /// What is written into the registry, if not `addr`.
    pub advertise_addr: String,
    /// A Unix socket to serve beside it (`unix:///path` or a path); TiDB's `binlog-socket`.
    pub socket: String,
    /// PD's client URLs, comma-separated.
    pub pd_urls: String,
    /// Store, node id and lock.
    pub data_dir: PathBuf,
    /// Default: `hostname:port`, then kept in `<data-dir>/.node`, which wins.
    pub node_id: String,
    /// How often the registry entry is rewritten; integer = seconds.
    #[serde(deserialize_with = "node::config::seconds")]
    pub heartbeat_interval: HumanDuration,
    /// How long transactions are kept, by PD's time; integer = days.
    #[serde(deserialize_with = "node::config::days")]
    pub gc: HumanDuration,
    /// The oldest transactions go, too, when the log takes more than this; default: no limit. What drainers still need
    /// stays in either case.
    pub gc_size: Option<ByteSize>,
    /// Collects what drainers still need: theirs is then a gap, reported as out of range. For a volume that must not fill.
    pub gc_past_drainers: bool,
    /// Declared gaps that end at or below this timestamp are known to the operator: original drainers, whose protocol
    /// cannot carry a gap, may pass them, and `/readyz` does not name them any more. Default 0: none.
    pub accept_gaps_upto: Tso,
    /// The longest silence on an idle original pull stream; integer = seconds. Fakes follow every tick, usually sooner.
    #[serde(deserialize_with = "node::config::seconds")]
    pub gen_binlog_interval: HumanDuration,
    /// How often a timestamp is fetched from PD, which moves the watermark. Drainers that wait get one at once.
    pub tick_interval: HumanDuration,
    /// debug, info, warn, error.
    pub log_level: String,
    /// Default: stdout.
    pub log_file: Option<PathBuf>,
    /// text or json.
    pub log_format: LogFormat,
    /// A larger binlog is refused with RESOURCE_EXHAUSTED, which fails that transaction alone.
    pub max_message_size: ByteSize,
    /// Bytes of binlogs received and not yet durable, over all connections. A binlog may exceed it, alone.
    pub receive_budget: ByteSize,
    /// Bytes of transactions read ahead for one drainer.
    pub pull_budget: ByteSize,
    /// Streams that drainers may have open at a time, each with its `pull-budget`.
    pub max_pull_streams: u32,
    /// Connections at a time; further ones wait to be accepted.
    pub max_connections: u32,
    /// Whether `/debug/binlog/{ts}` on the pump's port shows keys, statements and row values.
    pub show_row_values: bool,
    /// TLS of the pump's port and of what it dials.
    pub security: Security,
    /// The store.
    pub storage: StorageConfig,
    /// Metrics, health, status: a listener of its own.
    pub admin: AdminConfig,
    /// The original's push gateway, by flag only; without effect.
    #[serde(skip)]
    pub metrics_addr: Option<String>,
}

/// `[storage]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct StorageConfig {
    /// Accepted; every acknowledged write is synced whatever it says.
    pub sync_log: bool,
    /// Accepted, without effect: queues are bounded in bytes here.
    #[serde(rename = "kv_chan_cap")]
    pub kv_chan_cap: u64,
    /// Seconds after which a write is logged as slow.
    #[serde(rename = "slow_write_threshold")]
    pub slow_write_threshold: f64,
    /// Free space below which prewrites are refused; default: 10 GiB, or a tenth of a volume smaller than 100 GiB.
    pub stop_write_at_available_space: Option<ByteSize>,
    /// Bytes of one synced write at most (a larger binlog goes alone).
    pub group_commit_size: ByteSize,
    /// Length of a log file, in which space is prepared ahead and given back; a multiple of 4KiB. Default: 64MiB, less on
    /// a volume smaller than 4GiB.
    pub segment_size: Option<ByteSize>,
    /// Bytes of memory for commits that the saved watermark has not passed; more are spilled to files. Less than a few
    /// seconds of traffic makes many small files.
    pub commit_memory: ByteSize,
    /// `[storage.kv]`.
    pub kv: KvConfig,
}

/// `[storage.kv]`: tunes the original's LSM tree. Accepted, without effect: this store has none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KvConfig {
    /// Memory for blocks read.
    #[serde(rename = "block-cache-capacity")]
    pub block_cache_capacity: ByteSize,
    /// Keys between restart points.
    #[serde(rename = "block-restart-interval")]
    pub block_restart_interval: u32,
    /// Bytes of a block.
    #[serde(rename = "block-size")]
    pub block_size: ByteSize,
    /// Level-0 files that start a compaction.
    #[serde(rename = "compaction-L0-trigger")]
    pub compaction_l0_trigger: u32,
    /// Bytes of a table file.
    #[serde(rename = "compaction-table-size")]
    pub compaction_table_size: ByteSize,
    /// Bytes of level 1.
    #[serde(rename = "compaction-total-size")]
    pub compaction_total_size: ByteSize,
    /// Growth from level to level.
    #[serde(rename = "compaction-total-size-multiplier")]
    pub compaction_total_size_multiplier: f64,
    /// Bytes of a memory table.
    #[serde(rename = "write-buffer")]
    pub write_buffer: ByteSize,
    /// Level-0 files at which writes stop.
    #[serde(rename = "write-L0-pause-trigger")]
    pub write_l0_pause_trigger: u32,
    /// Level-0 files at which writes slow down.
    #[serde(rename = "write-L0-slowdown-trigger")]
    pub write_l0_slowdown_trigger: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            addr: String::new(),
            advertise_addr: String::new(),
            socket: String::new(),
            pd_urls: "http://127.0.0.1:2379".into(),
            data_dir: "data.pump".into(),
            node_id: String::new(),
            heartbeat_interval: HumanDuration::from_secs(2),
            gc: HumanDuration::from_secs(7 * 24 * 3600),
            gc_size: None,
            gc_past_drainers: false,
            accept_gaps_upto: Tso::ZERO,
            gen_binlog_interval: HumanDuration::from_secs(3),
            tick_interval: HumanDuration::from_millis(100),
            log_level: "info".into(),
            log_file: None,
            log_format: LogFormat::default(),
            max_message_size: ByteSize::gib(1),
            receive_budget: ByteSize::mib(256),
            pull_budget: ByteSize::mib(8),
            max_pull_streams: 64,
            max_connections: 1024,
            show_row_values: false,
            security: Security::default(),
            storage: StorageConfig::default(),
            admin: AdminConfig::on("127.0.0.1:8251"),
            metrics_addr: None,
        }
    }
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self {
            sync_log: true,
            kv_chan_cap: 1 << 20,
            slow_write_threshold: 1.0,
            stop_write_at_available_space: None,
            group_commit_size: ByteSize::mib(2),
            segment_size: None,
            commit_memory: ByteSize::mib(64),
            kv: KvConfig::default(),
        }
    }
}

impl Default for KvConfig {
    fn default() -> Self {
        Self {
            block_cache_capacity: ByteSize::mib(8),
            block_restart_interval: 16,
            block_size: ByteSize::kib(4),
            compaction_l0_trigger: 8,
            compaction_table_size: ByteSize::mib(64),
            compaction_total_size: ByteSize::mib(512),
            compaction_total_size_multiplier: 8.0,
            write_buffer: ByteSize::mib(64),
            write_l0_pause_trigger: 24,
            write_l0_slowdown_trigger: 17,
        }
    }
}

impl Config {
    /// PD's client URLs one by one.
    pub fn pd_urls(&self) -> Vec<String> {
        listed(&self.pd_urls)
    }

    /// Where to listen and what to register.
    pub fn addresses(&self) -> Addresses<'_> {
        Addresses { addr: &self.addr, advertise_addr: &self.advertise_addr, default_port: 8250 }
    }

    /// How to log.
    pub fn log(&self) -> LogConfig {
        LogConfig { level: self.log_level.clone(), format: self.log_format, file: self.log_file.clone() }
    }

    /// Between two rewrites of the registry entry: an entry not rewritten for 10 s counts as dead, if it has no lease beside
    /// it.
    pub fn heartbeat(&self) -> Duration {
        self.heartbeat_interval.get().min(LONGEST_HEARTBEAT)
    }

    /// Keys that are set away from their default but have no effect here, for a warning at start.
    pub fn ignored(&self) -> Vec<&'static str> {
        let default = StorageConfig::default();
        let mut ignored = Vec::new();
        if !self.storage.sync_log {
            ignored.push("storage.sync-log (every acknowledged write is synced)");
        }
        if self.storage.kv_chan_cap != default.kv_chan_cap {
            ignored.push("storage.kv_chan_cap (see receive-budget)");
        }
        if self.storage.kv != default.kv {
            ignored.push("storage.kv (there is no LSM tree to tune)");
        }
        if self.heartbeat_interval.get() > LONGEST_HEARTBEAT {
            ignored.push(
                "heartbeat-interval above 8s (an entry not rewritten for 10s would count as dead; 8s it is)",
            );
        }
        if self.metrics_addr.is_some() {
            ignored.push("metrics-addr (nothing is pushed; scrape /metrics)");
        }
        ignored
    }
}

impl Validate for Config {
    fn validate(&self) -> Result<(), Invalid> {
        self.addresses().validate("others")?;
        validate_pd_urls(&self.pd_urls)?;
        if self.node_id.contains('/') {
            let reason = format!("`{}` contains a slash, which breaks TiDB's listing of pumps", self.node_id);
            return Err(Invalid::new("node-id", reason));
        }
        for (field, duration) in [
            ("gc", self.gc),
            ("heartbeat-interval", self.heartbeat_interval),
            ("gen-binlog-interval", self.gen_binlog_interval),
            ("tick-interval", self.tick_interval),
        ] {
            if duration.get().is_zero() {
                return Err(Invalid::new(field, "must be greater than zero"));
            }
        }
        for (field, size) in [
            ("max-message-size", self.max_message_size),
            ("receive-budget", self.receive_budget),
            ("pull-budget", self.pull_budget),
            ("storage.group-commit-size", self.storage.group_commit_size),
        ] {
            if size.as_u64() < 1024 {
                return Err(Invalid::new(field, format!("{size} is too small, 1KiB is the least")));
            }
        }
        if self.gc_size.is_some_and(|size| size.as_u64() == 0) {
            return Err(Invalid::new("gc-size", "must be greater than zero; leave it out for no limit"));
        }
        if self.storage.commit_memory.as_u64() < 64 << 10 {
            let reason = format!("{} is too small, 64KiB is the least", self.storage.commit_memory);
            return Err(Invalid::new("storage.commit-memory", reason));
        }
        if let Some(size) = self.storage.segment_size
            && (size.as_u64() < 64 << 10 || size.as_u64() > 4 << 30 || !size.as_u64().is_multiple_of(4096))
        {
            let reason = format!("{size} is no multiple of 4KiB from 64KiB to 4GiB");
            return Err(Invalid::new("storage.segment-size", reason));
        }
        for (field, count) in
            [("max-pull-streams", self.max_pull_streams), ("max-connections", self.max_connections)]
        {
            if count == 0 {
                return Err(Invalid::new(field, "must be greater than zero"));
            }
        }
        if self.receive_budget.as_u64() > u64::from(u32::MAX) {
            return Err(Invalid::new("receive-budget", "must be below 4GiB"));
        }
        if self.storage.slow_write_threshold.is_nan() || self.storage.slow_write_threshold <= 0.0 {
            return Err(Invalid::new("storage.slow_write_threshold", "must be greater than zero"));
        }
        self.security.validate()?;
        self.admin.validate()
    }
}

/// The command line. Go's single-dash forms (`-pd-urls`, `-addr=…`) work too.
#[derive(Debug, Parser)]
#[command(
    name = "pump",
    version,
    about = "Receives, stores and serves the binlogs of TiDB.",
    disable_version_flag = true
)]
pub struct Flags {
    /// TOML file.
    #[arg(long, env = "PUMP_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address to listen on, host:port [default: first routed IPv4 address, port 8250].
    #[arg(long, env = "PUMP_ADDR")]
    addr: Option<String>,
    /// Address to register, host:port [default: addr].
    #[arg(long, env = "PUMP_ADVERTISE_ADDR")]
    advertise_addr: Option<String>,
    /// Unix socket to listen on as well.
    #[arg(long, env = "PUMP_SOCKET")]
    socket: Option<String>,
    /// PD's client URLs, comma-separated [default: http://127.0.0.1:2379].
    #[arg(long, env = "PUMP_PD_URLS")]
    pd_urls: Option<String>,
    /// Directory of the store [default: data.pump].
    #[arg(long, env = "PUMP_DATA_DIR")]
    data_dir: Option<PathBuf>,
    /// Name of this pump [default: hostname:port, kept in the data directory].
    #[arg(long, env = "PUMP_NODE_ID")]
    node_id: Option<String>,
    /// Seconds (or a duration) between rewrites of the registry entry [default: 2].
    #[arg(long, env = "PUMP_HEARTBEAT_INTERVAL", value_parser = node::config::parse_seconds)]
    heartbeat_interval: Option<HumanDuration>,
    /// Days (or a duration) for which transactions are kept [default: 7].
    #[arg(long, env = "PUMP_GC", value_parser = node::config::parse_days)]
    gc: Option<HumanDuration>,
    /// Bytes (or a size) of the log above which the oldest transactions go [default: no limit].
    #[arg(long, env = "PUMP_GC_SIZE")]
    gc_size: Option<ByteSize>,
    /// Collect what drainers still need, too.
    #[arg(long, env = "PUMP_GC_PAST_DRAINERS")]
    gc_past_drainers: bool,
    /// Seconds (or a duration): longest silence on an idle original pull stream [default: 3].
    #[arg(long, env = "PUMP_FAKE_BINLOG_INTERVAL", value_parser = node::config::parse_seconds)]
    fake_binlog_interval: Option<HumanDuration>,
    /// Log level: debug, info, warn, error [default: info].
    #[arg(short = 'L', env = "PUMP_L")]
    log_level: Option<String>,
    /// Log file [default: stdout].
    #[arg(long, env = "PUMP_LOG_FILE")]
    log_file: Option<PathBuf>,
    /// Bytes (or a size) of the largest binlog taken [default: 1GiB].
    #[arg(long, env = "PUMP_MAX_MESSAGE_SIZE")]
    max_message_size: Option<ByteSize>,
    /// Address of the metrics and status listener, host:port [default: 127.0.0.1:8251].
    #[arg(long, env = "PUMP_ADMIN_ADDR")]
    admin_addr: Option<String>,
    /// Print the version and exit.
    #[arg(short = 'V', action = clap::ArgAction::Version)]
    version: Option<bool>,
    /// The original's push gateway; not supported, scrape /metrics instead.
    #[arg(long, env = "PUMP_METRICS_ADDR", hide = true)]
    metrics_addr: Option<String>,
    /// As metrics-addr.
    #[arg(long, env = "PUMP_METRICS_INTERVAL", hide = true)]
    metrics_interval: Option<String>,
    /// Without effect, as in the original.
    #[arg(long, env = "PUMP_ENABLE_DEBUG", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    enable_debug: Option<String>,
    /// Without effect, as in the original.
    #[arg(long, env = "PUMP_BINLOG_FILE_SIZE", hide = true)]
    binlog_file_size: Option<String>,
    /// Without effect, as in the original.
    #[arg(long, env = "PUMP_ENABLE_BINLOG_SLICE", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    enable_binlog_slice: Option<String>,
    /// Without effect, as in the original.
    #[arg(long, env = "PUMP_BINLOG_SLICE_SIZE", hide = true)]
    binlog_slice_size: Option<String>,
    /// Without effect, as in the original.
    #[arg(long, env = "PUMP_LOG_ROTATE", hide = true)]
    log_rotate: Option<String>,
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
        overlay(&mut config.socket, self.socket);
        overlay(&mut config.pd_urls, self.pd_urls);
        overlay(&mut config.data_dir, self.data_dir);
        overlay(&mut config.node_id, self.node_id);
        overlay(&mut config.heartbeat_interval, self.heartbeat_interval);
        overlay(&mut config.gc, self.gc);
        overlay(&mut config.gc_size, self.gc_size.map(Some));
        overlay(&mut config.gc_past_drainers, self.gc_past_drainers.then_some(true));
        overlay(&mut config.gen_binlog_interval, self.fake_binlog_interval);
        overlay(&mut config.log_level, self.log_level);
        overlay(&mut config.log_file, self.log_file.map(Some));
        // The original's default is the largest int64; what gRPC cannot carry is not worth an error.
        let size = self.max_message_size.map(|size| ByteSize(size.as_u64().min(GRPC_CEILING)));
        overlay(&mut config.max_message_size, size);
        overlay(&mut config.admin.addr, self.admin_addr);
        overlay(&mut config.metrics_addr, self.metrics_addr.filter(|addr| !addr.is_empty()).map(Some));
        config.max_message_size = ByteSize(config.max_message_size.as_u64().min(GRPC_CEILING));
        config.validate()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(arguments: &[&str]) -> Result<Config, ConfigError> {
        Flags::from_command_line(std::iter::once("pump").chain(arguments.iter().copied()).map(OsString::from))
            .resolve()
    }

    #[test]
    fn the_originals_file_and_flags_are_understood() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pump.toml");
        std::fs::write(
            &file,
            r#"
            addr = "127.0.0.1:8250"
            pd-urls = "http://a:2379, http://b:2379"
            gc = 3
            heartbeat-interval = 4
            gen-binlog-interval = 5
            data-dir = "/from/file"
            [security]
            [storage]
            sync-log = false
            kv_chan_cap = 7
            slow_write_threshold = 2.5
            stop-write-at-available-space = "42 MiB"
            commit-memory = "3 MiB"
            [storage.kv]
            block-cache-capacity = 8388608
            compaction-L0-trigger = 9
            "#,
        )
        .unwrap();
        let config =
            flags(&["-config", file.to_str().unwrap(), "-data-dir=/from/flag", "-gc", "8h", "-L", "warn"])
                .unwrap();
        assert_eq!(config.data_dir, PathBuf::from("/from/flag"));
        assert_eq!(config.gc, HumanDuration::from_secs(8 * 3600));
        assert_eq!(config.heartbeat_interval, HumanDuration::from_secs(4));
        assert_eq!(config.pd_urls(), ["http://a:2379", "http://b:2379"]);
        assert_eq!(config.storage.stop_write_at_available_space, Some(ByteSize::mib(42)));
        assert_eq!(config.storage.commit_memory, ByteSize::mib(3));
        assert_eq!(config.storage.kv.compaction_l0_trigger, 9);
        assert_eq!(config.log_level, "warn");
        assert_eq!(config.ignored().len(), 3);
        assert_eq!(
            flags(&["-addr", "h:1", "-max-message-size", "9223372032660586496"])
                .unwrap()
                .max_message_size
                .as_u64(),
            GRPC_CEILING
        );
    }

    #[test]
    fn mistakes_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pump.toml");
        std::fs::write(&file, "addr = \"h:1\"\npd-url = \"http://a\"\n").unwrap();
        let error = flags(&["-config", file.to_str().unwrap()]).unwrap_err().to_string();
        assert!(error.contains("pump.toml:2") && error.contains("pd-url"), "{error}");

        for (arguments, field) in [
            (["-addr", "h", "-gc", "7"], "addr"),
            (["-addr", "0.0.0.0:8250", "-gc", "7"], "advertise-addr"),
            (["-addr", "h:1", "-pd-urls", "a:2379"], "pd-urls"),
            (["-addr", "h:1", "-node-id", "a/b"], "node-id"),
            (["-addr", "h:1", "-heartbeat-interval", "0"], "heartbeat-interval"),
            (["-addr", "h:1", "-max-message-size", "5"], "max-message-size"),
            (["-addr", "h:1", "-gc", "0"], "gc"),
            (["-addr", "h:1", "-gc-size", "0"], "gc-size"),
        ] {
            match flags(&arguments).unwrap_err() {
                ConfigError::Invalid(invalid) => assert_eq!(invalid.field, field),
                other => panic!("{other}"),
            }
        }
        for (storage, field) in [
            ("commit-memory = \"63 KiB\"", "storage.commit-memory"),
            ("segment-size = \"5000 B\"", "storage.segment-size"),
            ("group-commit-size = 7", "storage.group-commit-size"),
        ] {
            std::fs::write(&file, format!("addr = \"h:1\"\n[storage]\n{storage}\n")).unwrap();
            match flags(&["-config", file.to_str().unwrap()]).unwrap_err() {
                ConfigError::Invalid(invalid) => assert_eq!(invalid.field, field),
                other => panic!("{other}"),
            }
        }
        assert!(flags(&["-addr", "0.0.0.0:8250", "-advertise-addr", "http://pump-1:8250"]).is_ok());
    }

    #[test]
    fn what_the_original_would_have_done_is_named() {
        let plain = flags(&["-addr", "h:1", "-metrics-addr", ""]).unwrap();
        assert_eq!((plain.ignored(), plain.heartbeat()), (Vec::new(), Duration::from_secs(2)));
        let config =
            flags(&["-addr", "h:1", "-heartbeat-interval", "60", "-metrics-addr", "push:9091"]).unwrap();
        assert_eq!(config.heartbeat(), Duration::from_secs(8));
        let ignored = config.ignored();
        assert_eq!(ignored.len(), 2);
        assert!(ignored[0].starts_with("heartbeat-interval") && ignored[1].starts_with("metrics-addr"));
    }
}
