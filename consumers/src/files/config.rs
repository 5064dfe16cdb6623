//! Configuration of `export-files`.

use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Parser, ValueEnum};
use node::admin::AdminConfig;
use node::config::{HumanDuration, Invalid, Validate, overlay};
use node::kafka::KafkaConfig;
use node::telemetry::{LogConfig, LogFormat};
use serde::{Deserialize, Serialize};

use crate::config::{self as sections, FeedConfig};

/// Exports a Sluice feed to files, exactly once and in commit order. Flags beat the file.
#[derive(Debug, Parser)]
#[command(name = "export-files", version)]
pub struct Args {
    /// TOML file.
    #[arg(long, env = "SLUICE_CONFIG")]
    pub config: Option<PathBuf>,
    /// Export everything up to and including this commit_ts, then exit with 0.
    #[arg(long, value_name = "TSO")]
    pub until_commit_ts: Option<u64>,
    /// Export only what follows this commit_ts [default: from where the feed begins].
    #[arg(long, value_name = "TSO")]
    pub initial_commit_ts: Option<u64>,
    /// Name for logs and the admin listener [default: export-files].
    #[arg(long)]
    pub name: Option<String>,
    /// The feed [default: sluice].
    #[arg(long)]
    pub topic: Option<String>,
    /// Kafka brokers, `host:port`, separated by commas.
    #[arg(long, value_delimiter = ',')]
    pub kafka_brokers: Option<Vec<String>>,
    /// Folder to export to [default: export].
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Format of row files [default: jsonl].
    #[arg(long)]
    pub format: Option<Format>,
    /// Admin listener: metrics, health, status [default: 127.0.0.1:8262].
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

/// Format of row files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// One JSON object a line.
    #[default]
    Jsonl,
    /// RFC 4180, with a header line.
    Csv,
}

impl Format {
    /// The files' extension.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Jsonl => "jsonl",
            Self::Csv => "csv",
        }
    }
}

/// In which folders a table's files lie, by the UTC date of commit_ts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// One folder.
    None,
    /// A folder a day.
    #[default]
    Day,
    /// A folder an hour.
    Hour,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Config {
    /// Name for logs and the admin listener.
    pub name: String,
    /// For everything that grows with the workload, read-ahead included. The process itself needs about 30 MiB more.
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
    /// The files.
    pub output: OutputConfig,
    /// The admin listener.
    pub admin: AdminConfig,
    /// Set by the flag only.
    #[serde(skip)]
    pub until_commit_ts: Option<u64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "export-files".to_owned(),
            memory_budget: ByteSize::mib(128),
            log_level: "info".to_owned(),
            log_format: LogFormat::default(),
            log_file: None,
            feed: FeedConfig::default(),
            kafka: KafkaConfig::default(),
            output: OutputConfig::default(),
            admin: sections::admin_on(8262),
            until_commit_ts: None,
        }
    }
}

/// The files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct OutputConfig {
    /// Folder; one exporter at a time works in it.
    pub dir: PathBuf,
    /// `jsonl` or `csv`.
    pub format: Format,
    /// Folders by `day` (default), `hour` or `none`.
    pub by: By,
    /// A file ends when it has this many bytes.
    pub rotate_bytes: ByteSize,
    /// What was read is in finished files after this long at the latest.
    pub flush_interval: HumanDuration,
    /// Most files written at a time.
    pub open_files: usize,
    /// The format of JSON lines.
    pub jsonl: JsonlConfig,
    /// The format of CSV.
    pub csv: CsvConfig,
}

impl Default for OutputConfig {
    fn default() -> Self {
        Self {
            dir: "export".into(),
            format: Format::default(),
            by: By::default(),
            rotate_bytes: ByteSize::mib(64),
            flush_interval: HumanDuration(Duration::from_secs(10)),
            open_files: 64,
            jsonl: JsonlConfig::default(),
            csv: CsvConfig::default(),
        }
    }
}

/// The format of JSON lines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct JsonlConfig {
    /// What a JSON column's document is in a line.
    pub json_columns: JsonColumns,
}

/// How the documents of JSON columns stand in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JsonColumns {
    /// A string that holds the document's text: `"null"` is the document `null`, `null` is SQL's NULL.
    #[default]
    Text,
    /// The document itself, as part of the line. The document `null` looks like SQL's NULL.
    Embedded,
}

/// The format of CSV.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct CsvConfig {
    /// What stands for NULL, unquoted; a string of that text is quoted. Default: nothing, so that `,,` is NULL and
    /// `,"",` the empty string.
    pub null: String,
    /// What stands for a column that the log does not carry because it did not change, unquoted.
    pub absent: String,
    /// Put a `'` before text that a spreadsheet would take as a formula. Changes data.
    pub formula_guard: bool,
}

impl Default for CsvConfig {
    fn default() -> Self {
        Self { null: String::new(), absent: "\\U".to_owned(), formula_guard: false }
    }
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
        overlay(&mut config.output.dir, args.dir);
        overlay(&mut config.output.format, args.format);
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
}

impl Validate for Config {
    fn validate(&self) -> Result<(), Invalid> {
        sections::validate_name(&self.name)?;
        sections::validate_memory(self.memory_budget)?;
        self.feed.validate()?;
        sections::validate_kafka(&self.kafka)?;
        self.admin.validate()?;
        let output = &self.output;
        if output.dir.as_os_str().is_empty() {
            return Err(Invalid::new("output.dir", "must name a folder"));
        }
        if output.rotate_bytes.as_u64() < 1024 {
            return Err(Invalid::new("output.rotate-bytes", "must be at least 1KiB"));
        }
        if output.flush_interval.0 < Duration::from_millis(100) {
            return Err(Invalid::new("output.flush-interval", "must be at least 100ms"));
        }
        if !(1..=10_000).contains(&output.open_files) {
            return Err(Invalid::new("output.open-files", "must be 1 to 10000"));
        }
        for (field, marker) in [("null", &output.csv.null), ("absent", &output.csv.absent)] {
            if marker.contains(['"', ',', '\r', '\n']) {
                let reason = "must not hold quotes, commas or line ends";
                return Err(Invalid::new(format!("output.csv.{field}"), reason));
            }
        }
        if output.csv.null == output.csv.absent {
            return Err(Invalid::new("output.csv.absent", "must differ from output.csv.null"));
        }
        Ok(())
    }
}
